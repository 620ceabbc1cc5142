"""Gymnasium view of fast charging: a batch of one over the pure core."""

from typing import Any

import gymnasium as gym
import numpy as np

from evcs_gym.envs.arguments import as_scenario
from evcs_gym.envs.day import Day
from evcs_gym.envs.draws import day_of_episode
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet import fast
from evcs_gym.envs.fleet.fast_batch import check_actions, step_terms
from evcs_gym.envs.fleet.fast_observation import action_space, observation_space
from evcs_gym.envs.fleet.fast_pool import load_fast_pool
from evcs_gym.envs.pool import DEFAULT_POOL_DAYS
from evcs_gym.envs.resets import given_day, known_options
from evcs_gym.envs.scenario import Scenario
from evcs_gym.envs.types import BoolArray, IntArray
from evcs_gym.envs.units import N_SLOTS

DEFAULT_SCENARIO = "ieee33_mobility"


class FastChargingEnv(gym.Env[np.ndarray, np.integer[Any]]):
    """One day of fast charging, a step for every car that asks for it; the day ends with its last request.

    Action: Discrete(J + 1), the station to which the car is sent, or J: stranded. `action_masks` says what is allowed;
    for anything else the nearest allowed station is taken, and ``info["n_replaced"]`` is 1. Observation: float32 (F,),
    see docs/observation.md. Reward: minus what the request adds to the cost [EUR] of its slot: the slot's exchange
    with the network, energy, stranding, voltage; ``info`` names the terms. The first request of a slot also pays for
    what the slot costs without any, and for slots without requests before it; the last one of a slot for its voltage,
    and the last one of the day for all slots after it. The end of the day is a termination.
    ``reset(options={"day": day})`` starts any `Day`, with ``"devices": schedule`` under other positions of tap changer
    and capacitors; else one of the pool is drawn.

    Args:
        scenario: a `Scenario`, a shipped name or a path.
        split: "train", "validation" or "test": the calendar days of the pool.
        pool_days: number of prepared days.

    Attributes:
        day: the present `Day`. scenario: the `Scenario`. world, state: the core's records.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(
        self,
        scenario: Scenario | str = DEFAULT_SCENARIO,
        split: str = "train",
        pool_days: int = DEFAULT_POOL_DAYS,
    ) -> None:
        self.scenario = as_scenario(scenario)
        if pool_days < 1:
            raise ConfigError(f"pool_days must be at least 1, got {pool_days}")
        self.split, self.render_mode = split, None
        self._pool = load_fast_pool(self.scenario, split, pool_days)
        self._own_day: Day | None = None
        self.world = self._pool
        self.state: fast.FastState | None = None
        self.observation_space = observation_space(self.world.n_stations)
        self.action_space = action_space(self.world.n_stations)

    @property
    def day(self) -> Day:
        """The day that is being played."""
        row = self._running().day[0]
        return self._own_day if self._own_day is not None else self.scenario.day(int(self.world.seed[row]), self.split)

    def view(self) -> fast.FastView:
        """What a policy may know now, as a batch of one; rules use it."""
        return fast.view(self.world, self._running())

    def action_masks(self) -> BoolArray:
        """Allowed actions, (J + 1,)."""
        masks: BoolArray = fast.action_masks(self.world, self._running())[0]
        return masks

    def _running(self) -> fast.FastState:
        if self.state is None:
            raise ConfigError("the environment has no day yet; call reset() first")
        return self.state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a day: the one in ``options["day"]``, else one of the pool drawn with the environment's generator.

        ``options["devices"]``: a `DeviceSchedule` for the given day; its effective limits stay as they are.

        Raises:
            ConfigError: a day without a request: there is nothing to decide.
        """
        super().reset(seed=seed)
        known = known_options(options)
        day = given_day(self.scenario, known.get("day"), known.get("devices"))
        episode = np.full(1, -1) if seed is not None or self.state is None else self.state.episode
        if day is None:
            self.world = self._pool
            episode = episode + 1
            row = int(day_of_episode(self.np_random, np.zeros(1, dtype=np.int64), episode, self._pool.n_days)[0])
        else:
            if not len(fast.requests_of(day)):
                raise ConfigError(
                    f"day {day.split}/{day.seed} has no request for fast charging, there is nothing to decide; "
                    "take another one"
                )
            self.world, row = fast.make_fast_world(self.scenario, [day]), 0
        self._own_day = day
        self.state = fast.initial_state(self.world, np.array([row]), episode)
        return fast.observe(self.world, self.state)[0], {"day_seed": int(self.world.seed[row])}

    def step(self, action: "np.integer[Any] | IntArray | int") -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Send one request.

        Raises:
            DataError: an action that is no whole number 0 .. J. ConfigError: no day yet, or the day is over.
        """
        state = self._running()
        if state.slot[0] >= N_SLOTS:
            raise ConfigError("the day is over; call reset() before the next step")
        asked = check_actions(action, (), self.world.n_stations)[None]
        self.state, outcome = fast.step_executed(self.world, state, asked)
        terminated = bool(self.state.slot[0] == N_SLOTS)
        info: dict[str, Any] = {name: values[0].item() for name, values in step_terms(outcome).items()}
        info["slot"] = int(state.slot[0])
        if terminated:
            info["beyond_kwh"] = float(self.state.beyond_kwh.sum())
        return fast.observe(self.world, self.state)[0], -float(outcome.cost_eur[0]), terminated, False, info
