"""Gymnasium views of the market: a batch of one over the pure core, seen by one actor."""

from typing import Any, Final

import gymnasium as gym
import numpy as np

from evcs_gym.envs.arguments import as_scenario, checked_action
from evcs_gym.envs.day import Day
from evcs_gym.envs.draws import draw_days
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.batch import MarketBatch, MarketBatchStep
from evcs_gym.envs.market.core import MarketAction, MarketState
from evcs_gym.envs.market.operators import PRO_RATA, Operator
from evcs_gym.envs.market.play import Rule, truthful
from evcs_gym.envs.market.pool import any_world, load_any_pool
from evcs_gym.envs.market.roles import Central, Role, bidder, told
from evcs_gym.envs.market.view import MarketView, OwnPlan
from evcs_gym.envs.pool import DEFAULT_POOL_DAYS
from evcs_gym.envs.resets import given_day, known_options
from evcs_gym.envs.scenario import Scenario
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS

DEFAULT_SCENARIO: Final = "ieee33_twelve"
RENDER_MODES: Final = ("rgb_array",)
FRAMES_PER_S: Final = 4
_ROW: Final = np.zeros(1, dtype=np.int64)


class OneMarket:
    """All stations of one environment: the days that it plays, and a batch of one.

    Attributes:
        batch: state and step. last: the slot played last, None at the start of a day. published_eur_per_kwh: prices of
        the day so far.
    """

    def __init__(self, scenario: Scenario | str, split: str, pool_days: int, **batch: Any) -> None:
        if pool_days < 1:
            raise ConfigError(f"pool_days must be at least 1, got {pool_days}")
        self.scenario, self.split = as_scenario(scenario), split
        self._pool = load_any_pool(self.scenario, split, pool_days)
        self.batch = MarketBatch(self._pool, 1, **batch)
        self.last: MarketBatchStep | None = None
        self.published_eur_per_kwh: list[float] = []
        self._given: Day | None = None
        self._drawn: tuple[int, Day] | None = None

    def running(self) -> MarketState:
        """The present state; refused before the first reset."""
        if self.batch.state is None:
            raise ConfigError("the environment has no day yet; call reset() first")
        return self.batch.state

    @property
    def day(self) -> Day:
        """The day that is being played; one of the pool is made once more, with its traffic."""
        row = int(self.running().day[0])
        if self._given is not None:
            return self._given
        if self._drawn is None or self._drawn[0] != row:
            self._drawn = (row, self.scenario.day(row, self.split))
        return self._drawn[1]

    @property
    def day_seed(self) -> int:
        """Seed of the day that is being played."""
        return self._given.seed if self._given is not None else int(self.running().day[0])

    def start(self, rng: np.random.Generator, day: Any = None, devices: Any = None) -> np.ndarray:
        """Begin a day: the given one, under given devices where there are any, else one of the pool; observation
        (1, S, F).

        Raises:
            ConfigError: a day that is none, devices without a day.
        """
        day = given_day(self.scenario, day, devices)
        if day is None:
            self.batch.enter(self._pool)
            row = draw_days(rng, _ROW, self.batch.world.n_days)
        else:
            self.batch.enter(any_world(self.scenario, [day], self._pool))
            row = _ROW
        self._given, self.last, self.published_eur_per_kwh = day, None, []
        return self.batch.start(row)

    def play(self, action: MarketAction, retail_eur_per_kwh: FloatArray | None = None) -> MarketBatchStep:
        """One slot."""
        self.last = self.batch.play(action, autoreset=False, retail_eur_per_kwh=retail_eur_per_kwh)
        self.published_eur_per_kwh.append(float(self.last.outcome.price_eur_per_kwh[0]))
        return self.last

    def refuse_ended(self) -> None:
        """ConfigError before the first reset and after the last slot of the day."""
        if self.running().slot[0] >= N_SLOTS:
            raise ConfigError("the day is over; call reset() before the next step")

    def frame(self) -> np.ndarray:
        """A picture of the slot played last, (height, width, 3) uint8."""
        from evcs_gym.envs.market.render import Scene, draw_frame

        state, last = self.running(), self.last
        return draw_frame(
            Scene(
                scenario=self.scenario,
                day=self.day,
                world=self.batch.world,
                slot=int((state if last is None else last.before).slot[0]),
                outcome=None if last is None else last.outcome,
                energy_kwh=state.energy_kwh[0],
                price_eur_per_kwh=tuple(self.published_eur_per_kwh),
                drivers=None if last is None else last.drivers,
            )
        )


def checked_render_mode(render_mode: str | None) -> str | None:
    """The mode itself.

    Raises:
        ConfigError: a mode that does not exist.
    """
    if render_mode not in (None, *RENDER_MODES):
        raise ConfigError(f"render_mode must be None or one of {', '.join(RENDER_MODES)}, got {render_mode!r}")
    return render_mode


def row_terms(terms: Any, row: int) -> dict[str, Any]:
    """Named numbers of one environment, for its ``info``."""
    return {name: values.item(row) if values.ndim == 1 else values[row].copy() for name, values in terms.items()}


class _RoleEnv(gym.Env[np.ndarray, np.ndarray]):
    """What `MarketEnv` and `BiddingEnv` share: all but the role."""

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": FRAMES_PER_S}  # noqa: RUF012 - Gymnasium's convention

    def __init__(self, market: OneMarket, role: Role, render_mode: str | None) -> None:
        self.market, self.role, self.render_mode = market, role, checked_render_mode(render_mode)
        self.observation_space, self.action_space = role.spaces

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

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a day: that of ``options["day"]``, under ``options["devices"]`` where given, else one of the pool."""
        super().reset(seed=seed)
        seen = self.market.start(self.np_random, **known_options(options))
        return self.role.seen(seen)[0], {"day_seed": self.market.day_seed}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One slot.

        Raises:
            DataError: an action of the wrong shape, with NaN or outside [-1, 1].
            ConfigError: no day yet, or the day is over.
        """
        self.market.refuse_ended()
        batch, role = self.market.batch, self.role
        values = checked_action(action, self.action_space.shape or (), role.action_meaning)
        decided = values[None]
        done = self.market.play(role.market_action(batch, decided), role.retail_eur_per_kwh(batch, decided))
        reward = float(role.reward_eur(batch, done)[0])
        info = row_terms(told(role, done), 0)
        return role.seen(done.observation)[0], reward, bool(done.ended[0]), False, info

    def render(self) -> np.ndarray | None:
        """A picture of the slot played last, or None without a ``render_mode``."""
        return self.market.frame() if self.render_mode == "rgb_array" else None


class MarketEnv(_RoleEnv):
    """One day of all charging stations under one controller, 48 half-hour steps from noon to noon.

    Action: Box(-1, 1) of shape (S,), the storage of each station; asks stand at the export price. Observation: float32
    (S, F), see docs/observation.md. Reward: minus what the community pays in the slot [EUR], (C) of the model. ``info``
    holds true EUR: ``community_eur``, ``profit_eur`` and its terms, sums over stations; ``station_*`` of each. The end
    of the day is a termination. ``reset(options={"day": day})`` starts any `Day`. In a scenario with
    ``responsive_demand`` the action is (S, 2), storage power and retail price, and the reward counts everybody's time.

    Args:
        scenario: a `Scenario` with stations, a shipped name or a path.
        split: "train", "validation" or "test": the calendar days of the pool.
        pool_days: number of prepared days.
        residual: actions are added to the storage power of each station's own plan.
        reward_shift: reward less what no policy changes, which makes learning easier; off for evaluation.
        operator: of the network, see `evcs_gym.envs.market.operators`.
        render_mode: None or "rgb_array".

    Attributes:
        day: the present `Day`. scenario: the `Scenario`. market: state and days.
    """

    def __init__(
        self,
        scenario: Scenario | str = DEFAULT_SCENARIO,
        split: str = "train",
        pool_days: int = DEFAULT_POOL_DAYS,
        residual: bool = True,
        reward_shift: bool = False,
        operator: Operator = PRO_RATA,
        render_mode: str | None = None,
    ) -> None:
        market = OneMarket(scenario, split, pool_days, residual=residual, reward_shift=reward_shift, operator=operator)
        super().__init__(
            market, Central(market.batch.world.n_stations, market.batch.responsive is not None), render_mode
        )


class BiddingEnv(_RoleEnv):
    """One day of one charging station that bids against others, 48 half-hour steps from noon to noon.

    Action: Box(-1, 1) of shape (2,), storage power and ask. Observation: float32 (F,), see docs/observation.md: the
    station's own state and forecasts, tariffs, what the market published. Reward: its profit in the slot [EUR].
    ``info`` holds its own terms in true EUR and what was published, nothing of the others. In a scenario with
    ``responsive_demand`` a third number of the action is its retail price; the others keep theirs.

    Args:
        scenario, split, pool_days, residual, reward_shift, operator, render_mode: as in `MarketEnv`.
        station: the learning station, by number or name.
        others: the rule that all others play, a function of view and plans to a `MarketAction`; their own plans with
            truthful asks by default (`evcs_gym.baselines.rules_market.MARKET_RULES` holds others).
        team_frac: share of the profit of all stations in the reward.
    """

    def __init__(
        self,
        scenario: Scenario | str = DEFAULT_SCENARIO,
        split: str = "train",
        pool_days: int = DEFAULT_POOL_DAYS,
        station: int | str = 0,
        others: Rule = truthful,
        team_frac: float = 0.0,
        residual: bool = True,
        reward_shift: bool = False,
        operator: Operator = PRO_RATA,
        render_mode: str | None = None,
    ) -> None:
        market = OneMarket(
            scenario,
            split,
            pool_days,
            team_frac=team_frac,
            residual=residual,
            reward_shift=reward_shift,
            operator=operator,
        )
        super().__init__(
            market, bidder(market.batch.world, station, others, market.batch.responsive is not None), render_mode
        )
