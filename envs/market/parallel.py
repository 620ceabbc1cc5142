"""PettingZoo view of the market: every station an agent, a batch of one over the pure core."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv

from evcs_gym.envs.arguments import checked_action
from evcs_gym.envs.day import Day
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.env import FRAMES_PER_S, RENDER_MODES, OneMarket, checked_render_mode, row_terms
from evcs_gym.envs.market.observation import action_space, observation_space
from evcs_gym.envs.market.play import published_terms, station_terms
from evcs_gym.envs.market.view import MarketView, OwnPlan
from evcs_gym.envs.scenario import Scenario

Observations = dict[str, np.ndarray]


class StationsEnv(ParallelEnv[str, np.ndarray, np.ndarray]):  # type: ignore[misc]  # PettingZoo has no types
    """One day of all charging stations, each an agent ``station_0``, ``station_1``, ... in the scenario's order.

    Made by `evcs_gym.envs.market_env`. Action of an agent: Box(-1, 1) of shape (2,), storage power and ask.
    Observation: float32 (F,), see docs/observation.md: its own state and forecasts, tariffs, what the market published;
    nothing of the others. Reward: its profit in the slot [EUR], or a mix with that of all stations. Its info holds its
    own terms and what was published. All agents terminate at noon. In a scenario with ``responsive_demand`` a third
    number of the action is the retail price.

    Attributes:
        day: the present `Day`. scenario: the `Scenario`. market: state and days.
    """

    metadata = {  # noqa: RUF012 - PettingZoo's convention
        "name": "evcs_market_v0",
        "render_modes": list(RENDER_MODES),
        "render_fps": FRAMES_PER_S,
        "is_parallelizable": True,
    }

    def __init__(self, market: OneMarket, render_mode: str | None) -> None:
        self.market, self.render_mode = market, checked_render_mode(render_mode)
        self.possible_agents = [f"station_{n}" for n in range(market.batch.world.n_stations)]
        self.agents: list[str] = []
        self.observation_spaces = {agent: observation_space(None) for agent in self.possible_agents}
        self.action_spaces = {agent: action_space(market.batch.n_numbers) for agent in self.possible_agents}
        self._rng = np.random.default_rng()

    def observation_space(self, agent: str) -> gym.Space[np.ndarray]:
        """Box of the agent's observation."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.Space[np.ndarray]:
        """Box(-1, 1) of the agent's action."""
        return self.action_spaces[agent]

    @property
    def scenario(self) -> Scenario:
        """The city."""
        return self.market.scenario

    @property
    def day(self) -> Day:
        """The day that is being played."""
        return self.market.day

    def view(self) -> MarketView:
        """What policies may know now, as a batch of one; a station's columns are its own."""
        self.market.running()
        return self.market.batch.view()

    def plan(self) -> OwnPlan:
        """What each station would do alone, as a batch of one."""
        self.market.running()
        return self.market.batch.plan

    def state(self) -> np.ndarray:
        """Observations of all stations in one array, (S * F,), for a critic that sees everything."""
        self.market.running()
        return self.market.batch.observe().reshape(-1)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, dict[str, Any]]]:
        """Start a day: the one in ``options["day"]``, under ``options["devices"]`` where given, else one of the pool.

        Other options are ignored with a warning: PettingZoo's own checker gives some.
        """
        unknown = sorted(set(options or {}) - {"day", "devices"})
        if unknown:
            warnings.warn(f"reset options are 'day' and 'devices'; {unknown} changes nothing", stacklevel=2)
        known = {name: value for name, value in (options or {}).items() if name not in unknown}
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        seen = self.market.start(self._rng, **known)[0]
        self.agents = self.possible_agents[:]
        return self._each(seen), {agent: {"day_seed": self.market.day_seed} for agent in self.agents}

    def _each(self, values: np.ndarray) -> dict[str, Any]:
        return dict(zip(self.possible_agents, values, strict=True))

    def step(
        self, actions: dict[str, np.ndarray]
    ) -> tuple[Observations, dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """One slot.

        Raises:
            DataError: an action of the wrong shape, with NaN or outside [-1, 1].
            ConfigError: no day yet, the day is over, or an agent without an action.
        """
        self.market.refuse_ended()
        if set(actions) != set(self.agents):
            raise ConfigError(f"actions must be given for {', '.join(self.agents)}, got {', '.join(map(str, actions))}")
        batch, shape = self.market.batch, (self.market.batch.n_numbers,)
        words = "storage power and ask" if batch.responsive is None else "storage power, ask and retail price"
        numbers = np.array([checked_action(actions[a], shape, f"{words} of {a}") for a in self.agents])[None]
        done = self.market.play(batch.market_action(numbers), batch.retail_eur_per_kwh(numbers))
        ended = bool(done.ended[0])
        rewards = self._each(done.reward_eur[0].tolist())
        public = row_terms(published_terms(done.outcome), 0)
        own = {name: values[0].tolist() for name, values in station_terms(done.outcome).items()}
        if done.drivers is not None:
            own["arrivals_veh_per_h"] = done.drivers.arrivals_veh_per_h[0].tolist()
        infos = {
            agent: {**{name: values[n] for name, values in own.items()}, **public}
            for n, agent in enumerate(self.agents)
        }
        terminated, truncated = dict.fromkeys(self.agents, ended), dict.fromkeys(self.agents, False)
        if ended:
            self.agents = []
        return self._each(done.observation[0]), rewards, terminated, truncated, infos

    def render(self) -> np.ndarray | None:
        """A picture of the slot played last, or None without a ``render_mode``."""
        return self.market.frame() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Nothing to close: the environment holds arrays only."""
