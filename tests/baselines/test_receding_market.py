"""Receding horizon in the market: by hand, equal to the optimum of a known day, above its bound on a foreseen one."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_fixtures import city_world, day_of, line, scenario_of, small_world, stations
from market_problems import problem_of_row

from evcs_gym.baselines import receding_market
from evcs_gym.baselines.market import solve_programme
from evcs_gym.baselines.policy_market import MarketPolicy, MarketStage
from evcs_gym.baselines.receding_market import Outlook, RecedingHorizon, rest_of_day
from evcs_gym.baselines.registry import PLANNERS, make_policy
from evcs_gym.baselines.score_market import market_ms_per_decision, market_rollout
from evcs_gym.baselines.solvers import Result, Status
from evcs_gym.envs.errors import ConfigError, InfeasibleError, SolverError
from evcs_gym.envs.market.core import MarketWorld, initial_state
from evcs_gym.envs.market.operators import NO_OPERATOR
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.units import N_SLOTS

LIMIT_S = 60.0


def bounds_eur(world: MarketWorld) -> list[float]:
    return [solve_programme(problem_of_row(world, row), LIMIT_S).bound_eur for row in range(world.n_days)]


def noisy_world(seed: int, reservation: bool = True) -> MarketWorld:
    """Two days of three stations, of sun and drivers at random, foreseen wrongly."""
    rng, feeder = np.random.default_rng(seed), line(3)
    assets = stations(
        3, charge_efficiency_frac=0.9, discharge_efficiency_frac=0.9, self_discharge_frac=1e-3,
        degradation_eur_per_kwh=0.004,
    )  # fmt: skip
    days = []
    for _ in range(2):
        pv_kw = rng.uniform(0.0, 80.0, (N_SLOTS, 3)) * (rng.uniform(size=(N_SLOTS, 3)) < 0.5)
        days.append(
            day_of(
                feeder,
                3,
                pv_kw=pv_kw,
                ev_kw=rng.uniform(0.0, 60.0, (N_SLOTS, 3)),
                spot_eur_per_kwh=rng.uniform(0.02, 0.10, N_SLOTS),
                growth_frac=np.minimum(np.arange(N_SLOTS) / 8.0, 1.0),
                pv_error_kw=rng.uniform(-0.8, 0.8, (N_SLOTS, 3)) * pv_kw,
                price_error_eur_per_kwh=rng.uniform(-0.01, 0.01, N_SLOTS),
            )
        )
    return market_world(scenario_of(assets, feeder, reservation=reservation), days)


# --- by hand: import spot + 0.05, export spot - 0.01, fee 0.008 ---------------------------------------------


def test_one_station_stores_for_another_when_that_is_cheaper_for_both() -> None:
    """30 kW of sun in slot 0 at one, 30 kW of cars in slot 1 at the other. Sold at once the sun brings 0.04 a kWh, the
    cars cost 0.10: whoever stores it saves the community 0.06 less the fee of 0.008."""
    pv_kw, ev_kw = np.zeros((N_SLOTS, 2)), np.zeros((N_SLOTS, 2))
    pv_kw[0, 0], ev_kw[1, 1] = 30.0, 30.0
    world = small_world(stations(2, energy_start_kwh=0.0), pv_kw=pv_kw, ev_kw=ev_kw)
    done = market_rollout(world, RecedingHorizon(), keep_outcomes=True)
    assert done.cost_eur == pytest.approx([15 * 0.008])
    assert done.outcomes is not None
    assert done.outcomes[0].storage_kw.sum() == pytest.approx(30.0)
    assert done.outcomes[1].storage_kw.sum() == pytest.approx(-30.0)
    alone = market_rollout(world, make_policy("dp_truthful", "market"))
    assert alone.cost_eur > done.cost_eur + 0.3


def test_a_wrong_forecast_is_believed_and_paid_for() -> None:
    """The forecast says that energy gets dear in slot 1: the storage fills as fast as it can. It does not get dear, and
    25 kWh went in and out for nothing but wear: 48 slots of 10 kWh at 0.10, and 50 kWh at 0.001."""
    error = np.zeros(N_SLOTS)
    error[1] = 0.20
    world = small_world(
        stations(1, energy_start_kwh=0.0, degradation_eur_per_kwh=0.001),
        ev_kw=20.0,
        spot_eur_per_kwh=0.05,
        growth_frac=np.where(np.arange(N_SLOTS) == 1, 1.0, 0.0),
        price_error_eur_per_kwh=error,
    )
    done = market_rollout(world, RecedingHorizon(), keep_outcomes=True)
    assert done.outcomes is not None
    assert done.outcomes[0].storage_kw[0, 0] == pytest.approx(50.0)
    assert done.cost_eur == pytest.approx([48.0 + 0.05])
    assert bounds_eur(world) == pytest.approx([48.0])


def test_the_plan_stands_whatever_the_auction_does_with_it() -> None:
    """One seller discharges, nobody buys: at the export price it does not hold the energy back (M6)."""
    spot = np.full(N_SLOTS, 0.02)
    spot[0] = 0.50
    world = small_world(stations(1), spot_eur_per_kwh=spot)
    done = market_rollout(world, RecedingHorizon(), keep_outcomes=True)
    assert done.held_kwh.tolist() == [0.0]
    assert done.outcomes is not None
    assert done.outcomes[0].position_kw[0, 0] == pytest.approx(50.0)


# --- the optimum ---------------------------------------------------------------------------------------------


def test_on_a_known_day_it_costs_the_optimum_without_network() -> None:
    world = city_world(2, seed=3)
    done = market_rollout(world, RecedingHorizon(), NO_OPERATOR)
    assert done.cost_eur == pytest.approx(bounds_eur(world), abs=1e-6)


@settings(max_examples=2, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_on_a_foreseen_day_it_costs_no_less_than_the_bound(seed: int, reservation: bool) -> None:
    world = noisy_world(seed, reservation)
    cost, bound = market_rollout(world, RecedingHorizon()).cost_eur, np.array(bounds_eur(world))
    assert (cost >= bound).all()
    assert (cost > bound + 1e-3).any()  # wrong forecasts cost something
    known = dataclasses.replace(world, days=world.days._replace(growth_frac=world.days.growth_frac * 0.0))
    assert market_rollout(known, RecedingHorizon()).cost_eur == pytest.approx(bound, abs=1e-6)


def test_rows_are_planned_alone_and_a_day_anew() -> None:
    """A batch plays as its rows do, and a second rollout as the first: nothing of the last day is left."""
    world, policy = noisy_world(1), RecedingHorizon()
    together = market_rollout(world, policy).cost_eur
    assert np.array_equal(market_rollout(world, policy).cost_eur, together)
    stage = MarketStage(world, initial_state(world, np.array([1])))
    one = RecedingHorizon().decide(stage).storage_kw
    both = RecedingHorizon().decide(MarketStage(world, initial_state(world, np.arange(2)))).storage_kw
    assert np.array_equal(one[0], both[1])


def test_a_programme_begins_with_what_is_there() -> None:
    """Below its least energy a storage may only fall by self-discharge; the past costs nothing."""
    own = stations(1, energy_min_kwh=20.0, self_discharge_frac=0.1)
    nothing = np.zeros((4, 1))
    now = Outlook(2, np.array([10.0]), np.full(4, 0.1), np.full(4, 0.04), nothing, nothing + 5.0)
    programme = rest_of_day(own, 0.008, 4)
    form = programme.numbers(now)
    energy = programme.columns["energy_kwh"][:, 0]
    assert form.col_lower[energy].tolist() == pytest.approx([10.0, 10.0, 10.0, 9.0, 8.1])
    assert form.col_upper[energy].tolist() == pytest.approx([10.0, 10.0, 10.0, 100.0, 100.0])
    plan = programme.solve(now)
    assert plan.storage_kw[:2].tolist() == [[0.0], [0.0]]
    assert plan.energy_kwh[-1, 0] >= 8.1 - 1e-9


# --- names and refusals ----------------------------------------------------------------------------------------


def test_planners_are_found_by_name() -> None:
    assert isinstance(make_policy("receding_horizon", "market"), RecedingHorizon)
    assert isinstance(make_policy("idle", "market"), MarketPolicy)
    assert all(isinstance(make(None), MarketPolicy) for make in PLANNERS["market"].values())
    with pytest.raises(ConfigError, match=r"there is no policy 'receding'; did you mean 'receding_horizon'\? \(known:"):
        make_policy("receding", "market")


def test_milliseconds_of_a_plan_are_those_of_a_decision() -> None:
    assert 0.0 < market_ms_per_decision(small_world(stations(2)), RecedingHorizon()) < 1e3


def test_energies_that_no_storage_has_are_refused() -> None:
    world = small_world(stations(2))
    state = dataclasses.replace(initial_state(world, np.zeros(1, dtype=np.int64)), energy_kwh=np.array([[50.0, 900.0]]))
    with pytest.raises(InfeasibleError, match=r"market, slot 0: stations 's0', 's1' have no plan .* \[50.0, 900.0\]"):
        RecedingHorizon().decide(MarketStage(world, state))


def test_a_plan_that_is_not_optimal_is_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any) -> Result:
        return Result(None, None, np.inf, -np.inf, Status.TIME_LIMIT, 10.0, 0)

    monkeypatch.setattr(receding_market, "solve", late)
    world = small_world(stations(1))
    with pytest.raises(SolverError, match=r"the plan of stations .s0. must be optimal, got status .time_limit."):
        RecedingHorizon().decide(MarketStage(world, initial_state(world, np.zeros(1, dtype=np.int64))))
