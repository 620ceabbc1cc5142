"""The market as a problem: cost, execution and check of a plan, by hand and against the environment's step."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_fixtures import city_stations, city_world, line, scenario_of, small_world, stations
from market_problems import lossy_at_random, problem_by_hand, problem_of_row

from evcs_gym.baselines.policy_market import PlanPolicy
from evcs_gym.baselines.problems import market as problems
from evcs_gym.baselines.problems.market import CostTerms, MarketPlan
from evcs_gym.baselines.score_market import market_rollout
from evcs_gym.envs.errors import ConfigError, DataError, InfeasibleError
from evcs_gym.envs.market.operators import NO_OPERATOR
from evcs_gym.envs.units import N_SLOTS


def plan_of(storage: Any, curtailed: Any = 0.0, unserved: Any = 0.0) -> MarketPlan:
    shape = np.shape(storage)
    return MarketPlan(
        *(np.broadcast_to(np.asarray(x, dtype=np.float64), shape) for x in (storage, curtailed, unserved))
    )


# --- by hand: import 0.10, export 0.04, fee 0.008, half an hour ---------------------------------------------


def test_the_cost_of_a_plan_by_hand() -> None:
    """Slot 0: 100 kW of sun, 20 kW of it stored, meet 60 kW of cars: 60 traded, 20 exported. Slot 1: 60 kW of cars, of
    which 10 wait in vain, get 30 kW of the storage: 20 imported, 30 traded. The other station ends 5 kWh short."""
    problem = problem_by_hand(
        2, 2, pv_kw=[[100, 0], [0, 0]], ev_kw=[[0, 60], [0, 60]], degradation_eur_per_kwh=[0.02, 0.0]
    )
    plan = plan_of([[20.0, 0.0], [-30.0, 0.0]], unserved=[[0, 0], [0, 10]])
    problems.check(problem, plan)
    assert problems.positions_kw(problem, plan).tolist() == [[80.0, -60.0], [30.0, -50.0]]
    assert problems.energies_kwh(problem, plan.storage_kw)[:, 0].tolist() == [50.0, 60.0, 45.0]
    expected = CostTerms(
        utility_eur=0.5 * (20 * 0.10 - 20 * 0.04),
        fee_eur=0.5 * 0.008 * (60 + 30),
        degradation_eur=0.5 * 0.02 * 50,
        unserved_eur=0.5 * 0.50 * 10,
        missing_eur=5 * 0.10,
    )
    assert problems.cost_terms(problem, plan) == pytest.approx(expected)
    assert problems.cost(problem, plan) == pytest.approx(sum(expected))


def test_what_is_missing_costs_the_dearest_price_over_the_efficiency() -> None:
    problem = problem_by_hand(3, imports=[0.10, 0.30, 0.20], exports=0.0, charge_efficiency_frac=0.8)
    assert problem.missing_eur_per_kwh.tolist() == pytest.approx([0.375])


def test_the_floor_falls_by_self_discharge_from_the_least_energy() -> None:
    problem = problem_by_hand(2, energy_min_kwh=40.0, self_discharge_frac=0.1)
    assert problem.floor_kwh[:, 0].tolist() == pytest.approx([40.0, 36.0, 32.4])


def test_the_scale_of_gaps_is_the_deficit_of_idle_storages_at_the_import_price() -> None:
    problem = problem_by_hand(2, 2, pv_kw=[[100, 0], [0, 0]], ev_kw=[[0, 60], [10, 60]], imports=[0.1, 0.2])
    assert problems.gap_scale_eur(problem) == pytest.approx(0.5 * (60 * 0.1 + 70 * 0.2))


def test_a_wish_is_projected_and_the_connection_moves_the_storage_first() -> None:
    """80 kW of storage power are 50; 120 kW of sun behind 60 kW: 50 into the storage, then 10 curtailed; it is full
    after two slots; 120 kW of cars: 50 out of the storage, 10 wait in vain."""
    problem = problem_by_hand(4, pv_kw=[[0], [120], [120], [0]], ev_kw=[[0], [0], [0], [120]], connection_kw=60.0)
    plan = problems.executed(problem, np.array([[-80.0], [-10.0], [0.0], [0.0]]))
    assert plan.storage_kw[:, 0].tolist() == [-50.0, 50.0, 50.0, -50.0]
    assert plan.curtailed_kw[:, 0].tolist() == [0.0, 10.0, 10.0, 0.0]
    assert plan.unserved_kw[:, 0].tolist() == [0.0, 0.0, 0.0, 10.0]
    problems.check(problem, plan)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (plan_of([[0.0], [60.0]]), r"station 's0', slot 1: storage power must lie within .* storage 60 kW"),
        (plan_of([[0.0], [0.0]], curtailed=[[40.0], [0]]), r"slot 0: curtailed power must lie in 0..pv_kw"),
        (plan_of([[0.0], [0.0]], curtailed=[[0], [-1.0]]), r"slot 1: curtailed power must lie in 0..pv_kw"),
        (plan_of([[0.0], [0.0]], unserved=[[0], [95.0]]), r"slot 1: unserved power must lie in 0..ev_kw"),
        (plan_of([[0.0], [0.0]]), r"slot 1: the net position must lie within the connection limit \(S2\)"),
        (
            plan_of([[-50.0], [-20.0]]),
            r"slot 0: the energy after the slot must lie in .*40 kWh before and 15 kWh after",
        ),
        (plan_of([[50.0], [-20.0]]), r"slot 0: the energy after the slot must lie in energy_min_kwh..storage_kwh"),
        (plan_of([[0.0], [np.nan]]), r"plan.storage_kw must be a finite array \(2, 1\) .*, got \(2, 1\) or NaN"),
        (plan_of([[0.0]]), r"plan.storage_kw must be a finite array \(2, 1\) \(slots, stations\), got \(1, 1\)"),
    ],
)
def test_a_plan_that_breaks_a_rule_is_refused(plan: MarketPlan, message: str) -> None:
    problem = problem_by_hand(
        2,
        pv_kw=[[30], [0]],
        ev_kw=[[0], [90]],
        connection_kw=80.0,
        storage_kwh=60.0,
        energy_start_kwh=40.0,
        energy_min_kwh=20.0,
    )
    with pytest.raises((InfeasibleError, DataError), match=message):
        problems.check(problem, plan)


def test_data_that_no_plan_can_have_are_refused() -> None:
    good = problem_by_hand(2)
    with pytest.raises(DataError, match=r"problem.ev_kw must have shape \(2, 1\), got \(3, 1\)"):
        problems.check_data(replace(good, ev_kw=np.zeros((3, 1))))
    with pytest.raises(DataError, match=r"problem.pv_kw must be finite and >= 0, got -1.0"):
        problems.check_data(replace(good, pv_kw=np.full((2, 1), -1.0)))
    with pytest.raises(DataError, match=r"problem.export_eur_per_kwh must be >= 0, got -0.01"):
        problems.check_data(replace(good, export_eur_per_kwh=np.array([0.04, -0.01])))
    with pytest.raises(ConfigError, match=r"export \+ network fee must stay below import"):
        problems.check_data(replace(good, export_eur_per_kwh=np.array([0.04, 0.095])))
    with pytest.raises(DataError, match="station 's0': storage_kw must be finite and in its range"):
        problems.check_data(replace(good, stations=stations(1, storage_kw=-5.0)))


def test_a_day_without_stations_is_refused() -> None:
    scenario: Any = scenario_of(stations(1), line(1))
    scenario.name = "tiny"
    day: Any = type("Day", (), {"stations": None})()
    with pytest.raises(ConfigError, match="market: the day must be one of scenario 'tiny', got one without stations"):
        problems.problem_of(scenario, day)


# --- the environment's step is the oracle ------------------------------------------------------------------


@pytest.mark.parametrize("tight", [False, True])
def test_executed_is_what_the_environment_does_and_costs_what_it_says(tight: bool) -> None:
    """Random wishes beyond what can be executed, connections that bind in the second case."""
    world = city_world(3)
    if tight:
        narrow = replace(city_stations(), connection_kw=np.full(8, 90.0), energy_min_kwh=np.full(8, 100.0))
        days = world.days
        world = small_world(
            replace(narrow, bus=np.arange(1, 9), self_discharge_frac=np.full(8, 0.01)),
            pv_kw=days.pv_kw[0],
            ev_kw=days.ev_kw[0],
            spot_eur_per_kwh=days.import_eur_per_kwh[0] - 0.05,
        )
    rng = np.random.default_rng(0)
    wish = 1.5 * world.assets.storage_kw * rng.uniform(-1.0, 1.0, (world.n_days, N_SLOTS, 8))
    played = market_rollout(world, PlanPolicy(wish), NO_OPERATOR, keep_outcomes=True)
    assert played.outcomes is not None
    for row in range(world.n_days):
        problem = problem_of_row(world, row)
        plan = problems.executed(problem, wish[row])
        problems.check(problem, plan)
        for name in MarketPlan.__dataclass_fields__:
            seen = np.stack([getattr(outcome, name)[row] for outcome in played.outcomes])
            assert seen == pytest.approx(getattr(plan, name), abs=1e-9), name
        assert problems.cost(problem, plan) == pytest.approx(played.cost_eur[row], abs=1e-9)
        assert problems.energies_kwh(problem, plan.storage_kw)[-1] == pytest.approx(played.end_kwh[row], abs=1e-9)
    assert (played.unserved_kwh.min() > 1.0) == tight


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_whatever_is_wished_is_a_plan_when_executed(seed: int) -> None:
    problem = lossy_at_random(seed)
    problems.check_data(problem)
    wish = np.random.default_rng(seed).uniform(-80.0, 80.0, problem.pv_kw.shape)
    plan = problems.executed(problem, wish)
    problems.check(problem, plan)
    again = problems.executed(problem, plan.storage_kw)
    assert again.storage_kw == pytest.approx(plan.storage_kw, abs=1e-9)
