"""Play policies on days whose drivers respond, retail prices among what they decide, and record what it meant for whom.

Bounds, gap and captured share are defined with responsive demand off (docs/adr/013-responsive-demand.md): what is
scored here is profit, everybody's time, energy served, and the community's gain.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evcs_gym.baselines.policy_market import MarketPolicy, MarketStage
from evcs_gym.baselines.retail_market import RetailRule, own
from evcs_gym.baselines.score_market import MarketRollout, collect_slots, slots_outside
from evcs_gym.envs.market.core import MarketAction, MarketOutcome, MarketState
from evcs_gym.envs.market.operators import PRO_RATA, Operator
from evcs_gym.envs.market.responsive import (
    Drivers,
    ResponsiveWorld,
    cooperative_eur,
    initial_responsive_state,
    step_responsive,
)
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H

LEAST_SERVED_KWH = 1e-9
"""Keeps a mean price finite on a day on which nobody charges."""


@dataclass(frozen=True, eq=False)
class ResponsiveStage:
    """Days in play, B rows: what a policy decides on where drivers respond."""

    world: ResponsiveWorld
    state: MarketState

    def market(self) -> MarketStage:
        """The same stage as policies see it that leave retail prices to others."""
        return MarketStage(self.world.market, self.state)


class ResponsivePolicy(Protocol):
    """Wishes, asks and retail prices of all stations, (B, S), on a stage."""

    def decide(self, stage: ResponsiveStage) -> tuple[MarketAction, FloatArray]:
        """What is decided for the stage's slot; the stage is left as it is."""
        ...


@dataclass(frozen=True)
class AtPrices:
    """A policy for storage and asks at the prices of a retail rule."""

    policy: MarketPolicy
    prices: RetailRule = own

    def decide(self, stage: ResponsiveStage) -> tuple[MarketAction, FloatArray]:
        """See `ResponsivePolicy`."""
        market, world = stage.market(), stage.world
        retail = self.prices(market.view(), world.least_retail_eur_per_kwh, world.largest_retail_eur_per_kwh)
        return self.policy.decide(market), retail


@dataclass(frozen=True, eq=False)
class FirstDay:
    """The first of the days, slot by slot: retail prices (T, S), power that drivers asked for, cars that did not charge
    here, and the published price of the stations' market, (T,)."""

    retail_eur_per_kwh: FloatArray
    charging_kw: FloatArray
    outside_veh_per_h: FloatArray
    price_eur_per_kwh: FloatArray


@dataclass(frozen=True, eq=False)
class ResponsiveRollout:
    """A policy on D days whose drivers respond.

    market: profits, cost, network; asked for by drivers is what they asked for at these prices. served_kwh: (D, S)
    charged. travel_h: (D,) vehicle-hours of everybody on roads and at stations. outside_veh: (D,) cars that did not
    charge here. retail_eur_per_kwh: (D,) what drivers paid for a kWh in the mean, 0 where nobody charged.
    cooperative_eur: (D,) what the community gains, see `cooperative_eur`. first_day: see `FirstDay`.
    """

    market: MarketRollout
    served_kwh: FloatArray
    travel_h: FloatArray
    outside_veh: FloatArray
    retail_eur_per_kwh: FloatArray
    cooperative_eur: FloatArray
    first_day: FirstDay


def responsive_rollout(
    world: ResponsiveWorld, policy: ResponsivePolicy, operator: Operator = PRO_RATA
) -> ResponsiveRollout:
    """Play every day of the world once.

    Raises:
        DataError: actions or prices of the wrong shape or NaN. ConfigError: an ask or a price outside its band.
        ConvergenceError: an equilibrium that does not reach the gap.
    """
    state = initial_responsive_state(world, np.arange(world.market.n_days))
    outcomes: list[MarketOutcome] = []
    answers: list[Drivers] = []
    retail: list[FloatArray] = []
    n_violations = np.zeros(world.market.n_days, dtype=np.int64)
    for _ in range(N_SLOTS):
        before = state.market
        action, prices = policy.decide(ResponsiveStage(world, before))
        state, outcome, drivers = step_responsive(world, state, action, prices, operator)
        n_violations += slots_outside(world.market, before, outcome)
        outcomes.append(outcome)
        answers.append(drivers)
        retail.append(prices[0])
    market = collect_slots(world.market, state.market, outcomes, n_violations)
    served = np.asarray(SLOT_H * sum(outcome.ev_kw - outcome.unserved_kw for outcome in outcomes))
    gain = sum(cooperative_eur(outcome, drivers) for outcome, drivers in zip(outcomes, answers, strict=True))
    return ResponsiveRollout(
        market=market,
        served_kwh=served,
        travel_h=np.asarray(sum(drivers.travel_eur for drivers in answers)) / world.model.value_of_time_eur_per_h,
        outside_veh=np.asarray(SLOT_H * sum(drivers.outside_veh_per_h for drivers in answers)),
        retail_eur_per_kwh=market.income_eur / np.maximum(served.sum(axis=1), LEAST_SERVED_KWH),
        cooperative_eur=np.asarray(gain),
        first_day=_first_day(outcomes, answers, retail),
    )


def _first_day(outcomes: list[MarketOutcome], answers: list[Drivers], retail: list[FloatArray]) -> FirstDay:
    return FirstDay(
        retail_eur_per_kwh=np.array(retail),
        charging_kw=np.array([outcome.ev_kw[0].sum() for outcome in outcomes]),
        outside_veh_per_h=np.array([drivers.outside_veh_per_h[0] for drivers in answers]),
        price_eur_per_kwh=np.array([outcome.price_eur_per_kwh[0] for outcome in outcomes]),
    )
