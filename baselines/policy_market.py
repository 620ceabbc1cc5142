"""What a policy of the market is: anything that decides a `MarketAction` on a `MarketStage`.

Rules, replays of a plan and random bidders decide from the stage; a learned policy is a `Predictor`:
Stable-Baselines3's ``predict`` between two functions, one that shows the stage as an observation and one that reads
the answer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from evcs_gym.baselines.policy import Policy
from evcs_gym.baselines.rules_market import MarketRule
from evcs_gym.envs.errors import DataError
from evcs_gym.envs.market.core import MarketAction, MarketState, MarketWorld, ask_band
from evcs_gym.envs.market.view import MarketView, OwnPlan, own_plan, view
from evcs_gym.envs.types import FloatArray


@dataclass
class MarketStage:
    """Days in play, B rows: what a policy decides on."""

    world: MarketWorld
    state: MarketState

    def view(self) -> MarketView:
        """What may be known now."""
        return view(self.world, self.state)

    def plan(self) -> OwnPlan:
        """What each station would do alone."""
        return own_plan(self.world, self.state)

    def least_ask_eur_per_kwh(self) -> FloatArray:
        """The lowest ask for every station, (B, S): what is not sold is sold to the utility, nothing is held back."""
        low, _ = ask_band(self.world, self.state)
        return np.repeat(low[:, None], self.world.n_stations, axis=1)


@runtime_checkable
class MarketPolicy(Protocol):
    """Wishes and asks of all stations, (B, S), on a stage."""

    def decide(self, stage: MarketStage) -> MarketAction:
        """The action of the stage's slot; the stage is left as it is."""
        ...


@dataclass(frozen=True)
class MarketRulePolicy:
    """A rule of `evcs_gym.baselines.rules_market` by its name."""

    name: str
    rule: MarketRule

    def decide(self, stage: MarketStage) -> MarketAction:
        """See `MarketPolicy`."""
        return self.rule(stage.view(), stage.plan())


@dataclass(frozen=True, eq=False)
class PlanPolicy:
    """Storage power of a plan for each day of the world, (D, T, S), replayed; asks stand at the export price, so that
    no station holds anything back."""

    storage_kw: FloatArray

    def decide(self, stage: MarketStage) -> MarketAction:
        """See `MarketPolicy`.

        Raises:
            DataError: the plan is not one of the world's days and stations.
        """
        days = stage.world.days.pv_kw.shape
        if self.storage_kw.shape != days:
            raise DataError(f"a plan must have shape (D, T, S) = {days} of the world, got {self.storage_kw.shape}")
        wish = self.storage_kw[stage.state.day, stage.state.slot]
        return MarketAction(wish, stage.least_ask_eur_per_kwh())


@dataclass
class Predictor:
    """A policy with Stable-Baselines3's ``predict``, deterministic, as one of the market.

    observe: the stage as the policy's observation. act: the policy's answer on the stage as wishes and asks. A
    recurrent state is forgotten where a day begins in all rows.
    """

    policy: Policy
    observe: Callable[[MarketStage], np.ndarray]
    act: Callable[[MarketStage, np.ndarray], MarketAction]
    recurrent: tuple[np.ndarray, ...] | None = field(default=None, repr=False)

    def decide(self, stage: MarketStage) -> MarketAction:
        """See `MarketPolicy`."""
        start = np.asarray(stage.state.slot == 0)
        if start.all():
            self.recurrent = None
        observation = self.observe(stage)
        answer, self.recurrent = self.policy.predict(observation, self.recurrent, start, deterministic=True)
        return self.act(stage, answer)
