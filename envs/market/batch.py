"""Rows that play days of the market one after the other: the state behind Gymnasium's and SB3's vector classes."""

from dataclasses import dataclass, replace

import numpy as np

from evcs_gym.envs.draws import draw_days
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.core import (
    MarketAction,
    MarketOutcome,
    MarketState,
    MarketWorld,
    initial_state,
    step,
    with_reset_rows,
)
from evcs_gym.envs.market.operators import PRO_RATA, Operator
from evcs_gym.envs.market.play import check_team_frac, reward_eur, scaled_action, storage_action
from evcs_gym.envs.market.responsive import (
    Drivers,
    ResponsiveState,
    ResponsiveWorld,
    initial_responsive_state,
    step_responsive,
    with_reset_responsive_rows,
)
from evcs_gym.envs.market.view import MarketView, OwnPlan, look, view
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS


@dataclass(frozen=True, eq=False)
class MarketBatchStep:
    """What a step of a batch gives: the first observation of the next day stands in ``observation`` of rows whose day
    ended, the last one of the old day in ``final_observation`` (number of such rows, in their order)."""

    observation: np.ndarray  # (B, S, F)
    final_observation: np.ndarray  # (n, S, F)
    reward_eur: FloatArray  # (B, S)
    ended: BoolArray  # (B,)
    outcome: MarketOutcome
    before: MarketState  # the slot that was played
    drivers: Drivers | None = None  # where they respond


class MarketBatch:
    """B environments of all stations of a world.

    Args:
        world: days to play; a `ResponsiveWorld` where drivers answer the stations' retail prices.
        team_frac: share of the profit of all stations in a station's reward; the rest is its own profit.
        reward_shift: profits less what a station would earn without storage and market.
        residual: storage power is added to that of the station's own plan.
        operator: of the network.

    Attributes:
        state: the present slot, None before the first reset. plan: the stations' own plans in it. rng: draws days.
        responsive: the world of drivers, None where they do not respond.
    """

    def __init__(
        self,
        world: MarketWorld | ResponsiveWorld,
        n_rows: int,
        *,
        team_frac: float = 0.0,
        reward_shift: bool = False,
        residual: bool = True,
        operator: Operator = PRO_RATA,
    ) -> None:
        if n_rows < 1:
            raise ConfigError(f"the number of environments must be at least 1, got {n_rows}")
        self.n_rows, self.operator = n_rows, operator
        self.enter(world)
        self.team_frac, self.reward_shift, self.residual = check_team_frac(team_frac), reward_shift, residual
        self.rng = np.random.default_rng()

    def enter(self, world: MarketWorld | ResponsiveWorld) -> None:
        """Take the days of another world; the next call must start some."""
        self.responsive = world if isinstance(world, ResponsiveWorld) else None
        self.world = world.market if isinstance(world, ResponsiveWorld) else world
        self.state: MarketState | None = None
        self._answers: ResponsiveState | None = None
        self._planned: tuple[MarketState, OwnPlan] | None = None

    @property
    def n_numbers(self) -> int:
        """Numbers of an action per station: storage power, ask, and where drivers respond the retail price."""
        return 2 if self.responsive is None else 3

    def running(self) -> MarketState:
        """The present state; refused before the first reset."""
        if self.state is None:
            raise ConfigError("the environments have no day yet; call reset() first")
        return self.state

    @property
    def plan(self) -> OwnPlan:
        """The stations' own plans in the present slot."""
        if self._planned is not None and self._planned[0] is self.running():
            return self._planned[1]
        return self._look()[0]  # a state that was put in from outside

    def _look(self) -> tuple[OwnPlan, np.ndarray]:
        state = self.running()
        plan, seen = look(self.world, state)
        self._planned = (state, plan)
        return plan, seen

    def view(self) -> MarketView:
        """What policies may know now."""
        return view(self.world, self.running())

    def observe(self) -> np.ndarray:
        """Observation of the present slot, (B, S, F)."""
        return self._look()[1]

    def reset(self, seed: int | list[int | None] | None = None, rows: BoolArray | None = None) -> np.ndarray:
        """Start new days, in all rows or in the marked ones; observation (B, S, F)."""
        if seed is not None:
            self.rng = np.random.default_rng(seed)  # type: ignore[arg-type]  # one generator serves all rows
        return self.start(self.draw(rows), rows)

    def draw(self, rows: BoolArray | None = None) -> IntArray:
        """Days for all rows or for the marked ones."""
        chosen = np.arange(self.n_rows) if rows is None else np.flatnonzero(rows)
        return draw_days(self.rng, chosen, self.world.n_days)

    def start(self, day: IntArray, rows: BoolArray | None = None) -> np.ndarray:
        """Start the given days of the world, in all rows or in the marked ones; observation (B, S, F)."""
        if self.responsive is None:
            self.state = (
                initial_state(self.world, day)
                if rows is None or self.state is None
                else with_reset_rows(self.world, self.state, rows, day)
            )
        else:
            self._answers = (
                initial_responsive_state(self.responsive, day)
                if rows is None or self.state is None
                else with_reset_responsive_rows(self.responsive, self._answering(), rows, day)
            )
            self.state = self._answers.market
        return self.observe()

    def market_action(self, action: FloatArray) -> MarketAction:
        """Wishes and asks of the first two numbers in [-1, 1] of an action (B, S, n_numbers)."""
        return scaled_action(self.world, self.running(), self.plan, action, self.residual)

    def storage_action(self, storage: FloatArray) -> MarketAction:
        """Wishes of numbers in [-1, 1], (B, S); asks stand at the export price."""
        return storage_action(self.world, self.running(), self.plan, storage, self.residual)

    def retail_eur_per_kwh(self, action: FloatArray) -> FloatArray | None:
        """Retail prices of the third, between the least and the largest that stations may ask; None without them."""
        if self.responsive is None:
            return None
        low, high = self.responsive.least_retail_eur_per_kwh, self.responsive.largest_retail_eur_per_kwh
        return np.clip(low + (0.5 + 0.5 * action[..., 2]) * (high - low), low, high)

    def step(self, action: FloatArray) -> MarketBatchStep:
        """One slot of every row, numbers in [-1, 1], (B, S, n_numbers); rows whose day ends begin the next one in the
        same step."""
        return self.play(self.market_action(action), retail_eur_per_kwh=self.retail_eur_per_kwh(action))

    def play(
        self, action: MarketAction, autoreset: bool = True, retail_eur_per_kwh: FloatArray | None = None
    ) -> MarketBatchStep:
        """One slot of every row, wishes and asks; retail prices (B, S), the stations' own where none are given."""
        before = self.running()
        outcome, drivers = self._advance(action, retail_eur_per_kwh)
        reward = reward_eur(self.world, before, outcome, self.team_frac, self.reward_shift)
        ended = np.asarray(self.running().slot >= N_SLOTS)
        observation = self.observe()
        final = observation[ended]
        if autoreset and ended.any():
            observation = self.reset(None, ended)
        return MarketBatchStep(observation, final, reward, ended, outcome, before, drivers)

    def _advance(self, action: MarketAction, retail: FloatArray | None) -> tuple[MarketOutcome, Drivers | None]:
        before = self.running()
        if self.responsive is None:
            self.state, outcome = step(self.world, before, action, self.operator)
            return outcome, None
        if retail is None:
            retail = np.tile(self.world.assets.retail_eur_per_kwh, (self.n_rows, 1))
        known = (self.responsive, self._answering(), action, retail, self.operator)
        self._answers, outcome, drivers = step_responsive(*known)
        self.state = self._answers.market
        return outcome, drivers

    def remembered(self) -> MarketState | ResponsiveState:
        """What the next step reads of those before it: the present state, and where they respond what drivers did."""
        return self.running() if self.responsive is None else self._answering()

    def remember(self, memory: MarketState | ResponsiveState) -> None:
        """Go on from what `remembered` gave."""
        self._answers = memory if isinstance(memory, ResponsiveState) else None
        self.state = memory.market if isinstance(memory, ResponsiveState) else memory

    def _answering(self) -> ResponsiveState:
        """What drivers did before, beside the present state."""
        if self._answers is None:
            raise ConfigError("the environments have no day yet; call reset() first")
        return replace(self._answers, market=self.running())
