"""Play a policy of the market and a retail rule on days whose drivers respond, and record what it meant for whom.

Bounds, gap and captured share are defined with responsive demand off (docs/adr/013-responsive-demand.md): what is
scored here is profit, everybody's time, energy served, and the community's gain.
"""

from dataclasses import dataclass

import numpy as np

from evcs_gym.baselines.policy_market import MarketPolicy, MarketStage
from evcs_gym.baselines.retail_market import RetailRule, own
from evcs_gym.baselines.score_market import MarketRollout, collect_slots, slots_outside
from evcs_gym.envs.market.core import MarketOutcome
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


@dataclass(frozen=True, eq=False)
class ResponsiveRollout:
    """A policy and a retail rule on D days whose drivers respond.

    market: profits, cost, network; asked for by drivers is what they asked for at these prices. served_kwh: (D, S)
    charged. travel_h: (D,) vehicle-hours of everybody on roads and at stations. outside_veh: (D,) cars that did not
    charge here. cooperative_eur: (D,) what the community gains, see `cooperative_eur`.
    """

    market: MarketRollout
    served_kwh: FloatArray
    travel_h: FloatArray
    outside_veh: FloatArray
    cooperative_eur: FloatArray


def responsive_rollout(
    world: ResponsiveWorld, policy: MarketPolicy, prices: RetailRule = own, operator: Operator = PRO_RATA
) -> ResponsiveRollout:
    """Play every day of the world once. Storage and asks are decided as in `market_rollout`, beside the prices.

    Raises:
        DataError: actions or prices of the wrong shape or NaN. ConfigError: an ask or a price outside its band.
        ConvergenceError: an equilibrium that does not reach the gap.
    """
    state = initial_responsive_state(world, np.arange(world.market.n_days))
    stage = MarketStage(world.market, state.market)
    outcomes: list[MarketOutcome] = []
    answers: list[Drivers] = []
    n_violations = np.zeros(world.market.n_days, dtype=np.int64)
    for _ in range(N_SLOTS):
        retail = prices(stage.view(), world.least_retail_eur_per_kwh, world.largest_retail_eur_per_kwh)
        state, outcome, drivers = step_responsive(world, state, policy.decide(stage), retail, operator)
        n_violations += slots_outside(world.market, stage.state, outcome)
        stage.state = state.market
        outcomes.append(outcome)
        answers.append(drivers)
    gain = sum(cooperative_eur(outcome, drivers) for outcome, drivers in zip(outcomes, answers, strict=True))
    return ResponsiveRollout(
        market=collect_slots(world.market, state.market, outcomes, n_violations),
        served_kwh=np.asarray(SLOT_H * sum(outcome.ev_kw - outcome.unserved_kw for outcome in outcomes)),
        travel_h=np.asarray(sum(drivers.travel_eur for drivers in answers)) / world.model.value_of_time_eur_per_h,
        outside_veh=np.asarray(SLOT_H * sum(drivers.outside_veh_per_h for drivers in answers)),
        cooperative_eur=np.asarray(gain),
    )
