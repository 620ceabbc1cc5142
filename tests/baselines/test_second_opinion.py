"""Second opinions: the whole programme by other solvers says what the decomposition says, and nothing false."""

import importlib.util
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_problems import problem_by_hand
from network_problems import line_with_load, network_by_hand

from evcs_gym.baselines import second_opinion as module
from evcs_gym.baselines.decomposition import Search, find_plan, lift_bound, network_free_bound, references_of
from evcs_gym.baselines.problems.network import (
    NetworkPlan,
    NetworkProblem,
    check,
    common_excess,
    cost_eur,
    network_problem,
)
from evcs_gym.baselines.second_opinion import GAP, SECOND_SOLVERS, second_opinion, tangents, two_opinions, window
from evcs_gym.baselines.solvers import SecondOrderRows, StandardForm
from evcs_gym.envs import load_scenario
from evcs_gym.envs.errors import ConfigError, InfeasibleError
from evcs_gym.envs.grid.devices import Devices, Oltc

LIMIT_S = 60.0
OHM = 12.66**2 / 3.0
"""Impedance of 1 pu."""
WIDER = 2.1e-4
"""What limits wider by 1e-4 pu are in squared voltages, and the linearisation."""


def hungry() -> NetworkProblem:
    """Cars at the end of a line ask for more than the lower voltage limit lets through; cones are tight."""
    market = problem_by_hand(
        3, 2, bus=[1, 2], ev_kw=[[50, 300], [50, 700], [50, 300]], storage_kw=100.0, storage_kwh=100.0,
        energy_start_kwh=40.0, imports=[0.10, 0.12, 0.11], charge_efficiency_frac=0.95, discharge_efficiency_frac=0.95,
    )  # fmt: skip
    return network_by_hand(market, line_with_load(2, 0.12 * OHM, 0.05 * OHM, 50 + 20j), load_frac=1.0, vmin_pu=0.95)


def sunny(n_slots: int = 3, n_moves: int = 0) -> NetworkProblem:
    """More sun at the end of a line than the upper voltage limit takes; a step of the tap changer makes room for it."""
    market = problem_by_hand(
        n_slots, 2, bus=[1, 2], pv_kw=[0.0, 900.0], ev_kw=[100.0, 0.0], storage_kw=60.0, storage_kwh=60.0,
        energy_start_kwh=30.0, degradation_eur_per_kwh=0.01,
    )  # fmt: skip
    taps = Devices(Oltc(step_pu=0.05, lowest=-1, highest=1, start=0, max_moves=n_moves))
    feeder = line_with_load(2, 0.10 * OHM, 0.05 * OHM, 50 + 20j)
    return network_by_hand(market, feeder, load_frac=1.0, vmin_pu=0.8, vmax_pu=1.02, devices=taps)


PROBLEMS = {"hungry": hungry(), "sunny": sunny(), "sunny_with_tap": sunny(4, 1)}


def decomposed(problem: NetworkProblem) -> tuple[float, NetworkPlan]:
    """Bound and plan of the decomposition, any positions of the devices."""
    search = Search(problem, GAP, time.monotonic() + LIMIT_S)
    plan = find_plan(search, problem.admissible)
    assert plan is not None
    return lift_bound(search, references_of(problem, plan), np.inf), plan


def skip_if_missing(solver: str) -> None:
    if solver != "tangent" and importlib.util.find_spec("pyscipopt") is None:
        pytest.skip("SCIP is not installed: pip install evcs-gym[scip]")


# --- against the decomposition -------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["tangent", "scip"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_bounds_of_both_ways_lie_below_plans_of_both_ways(name: str, solver: str) -> None:
    """At the same references. The whole programme has whole devices and the order of (N3): its bound is the higher."""
    skip_if_missing(solver)
    problem = PROBLEMS[name]
    bound, plan = decomposed(problem)
    found = second_opinion(problem, solver, LIMIT_S, references_of(problem, plan))
    assert found.status == "optimal"
    assert found.n_refreshes == 0
    scale = max(1.0, abs(found.cost_eur))
    assert bound <= found.bound_eur + 1e-4
    assert found.bound_eur <= found.cost_eur + 1e-5 * scale
    assert found.bound_eur <= cost_eur(problem, plan) + 1e-5 * scale
    assert found.cost_eur - found.bound_eur < 1e-5 * scale


@pytest.mark.parametrize("solver", ["tangent", "scip"])
def test_where_cones_are_tight_all_ways_agree(solver: str) -> None:
    """Nothing is whole or out of order in the optimum: the two bounds are one. Its plan keeps the widened limits."""
    skip_if_missing(solver)
    problem = PROBLEMS["hungry"]
    bound, plan = decomposed(problem)
    found = second_opinion(problem, solver, LIMIT_S, references_of(problem, plan))
    assert found.bound_eur == pytest.approx(bound, abs=2e-4)
    assert found.excess < WIDER
    assert 0.0 < cost_eur(problem, plan) - found.bound_eur < 0.5  # what limits wider by 1e-4 pu are worth


@pytest.mark.parametrize("solver", ["tangent", "scip"])
def test_its_own_refreshes_end_at_the_power_flow_of_its_plan(solver: str) -> None:
    skip_if_missing(solver)
    problem = PROBLEMS["sunny_with_tap"]
    found = second_opinion(problem, solver, LIMIT_S)
    assert found.plan is not None
    assert found.mismatch_pu <= 1e-6
    assert found.excess <= 0.0
    assert problem.tap_position[found.plan.devices].tolist() == [-1] * 4
    assert found.bound_eur == pytest.approx(network_free_bound(Search(problem, GAP, time.monotonic() + LIMIT_S)))
    assert found.cost_eur == pytest.approx(found.bound_eur, abs=1e-4)


def test_an_opinion_whose_references_are_not_those_of_its_plan_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REFRESHES", 0)
    found = second_opinion(PROBLEMS["sunny_with_tap"], "tangent", LIMIT_S)
    assert found.mismatch_pu > 1e-3
    assert (found.status, found.n_refreshes) == ("gap_open", 0)


def test_where_cones_are_loose_the_excess_says_so() -> None:
    """The relaxation loses sun in currents that do not flow; the power flow does not."""
    found = second_opinion(PROBLEMS["sunny"], "tangent", LIMIT_S)
    assert found.plan is not None
    assert found.excess == pytest.approx(common_excess(PROBLEMS["sunny"], found.plan).max())
    assert found.excess > 10.0 * WIDER


def test_slots_of_a_shipped_day() -> None:
    """Two slots of the evening on coupled phases, 100 positions of the devices: three ways, one number."""
    scenario = load_scenario("ieee33_twelve")
    problem = window(network_problem(scenario, scenario.day(6, "test")), 12, 2)
    search = Search(problem, GAP, time.monotonic() + LIMIT_S)
    plan = find_plan(search, problem.admissible)
    assert plan is not None
    found = second_opinion(problem, "tangent", LIMIT_S, references_of(problem, plan))
    assert found.plan is not None
    check(problem, found.plan)
    assert found.n_tangents > 100
    assert found.excess <= WIDER
    for eur in (found.bound_eur, found.cost_eur, network_free_bound(search)):
        assert eur == pytest.approx(cost_eur(problem, plan), rel=1e-6)


def test_both_ways_look_at_the_slots_with_the_least_room() -> None:
    """One way's bound must not lie above the other's cost."""
    problem = PROBLEMS["hungry"]
    _, plan = decomposed(problem)
    found = two_opinions(problem, plan, "tangent", 1, LIMIT_S)
    excess = common_excess(problem, plan)
    assert excess[found.first_slot] == excess.max()
    assert (found.n_slots, found.agree) == (1, True)
    assert found.lower_bound_eur <= found.second.cost_eur + 1e-4
    assert found.as_dict()["second"]["bound_eur"] == found.second.bound_eur
    assert not replace(found, cost_eur=0.9 * found.second.bound_eur).agree
    assert not replace(found, lower_bound_eur=1.1 * found.second.cost_eur).agree


# --- what comes back -----------------------------------------------------------------------------------------


def test_without_time_there_is_a_bound_and_a_plan_only_if_the_machine_was_quick() -> None:
    problem = PROBLEMS["hungry"]
    found = second_opinion(problem, "tangent", 1e-3)
    assert found.status == "time_limit"
    assert -np.inf < found.bound_eur <= decomposed(problem)[0] + 1e-4
    assert (found.plan is None) == (found.cost_eur == np.inf)
    assert found.cost_eur >= found.bound_eur
    without = replace(found, plan=None, cost_eur=np.inf).as_dict()
    assert without["cost_eur"] is None
    assert "plan" not in without


def test_a_network_without_any_possible_position_is_infeasible() -> None:
    problem = PROBLEMS["hungry"]
    never = replace(problem, limits=replace(problem.limits, vmin_pu=np.full_like(problem.limits.vmin_pu, 1.2)))
    with pytest.raises(InfeasibleError, match=r"HiGHS: a programme of .* has no feasible point"):
        second_opinion(never, "tangent", LIMIT_S)


def test_a_window_is_a_day_of_its_own() -> None:
    problem = PROBLEMS["hungry"]
    part = window(problem, 1, 2)
    assert part.n_slots == 2
    assert part.market.ev_kw.tolist() == [[50.0, 700.0], [50.0, 300.0]]
    assert part.market.import_eur_per_kwh.tolist() == [0.12, 0.11]
    assert part.limits.vmin_pu.shape == (2, 3, 3)
    assert len(part.own) == len(part.admissible) == len(part.load_kva) == 2
    for first, n in ((-1, 2), (0, 0), (2, 2)):
        with pytest.raises(ConfigError, match=rf"slots must lie in 0\.\.2, got {n} from slot {first} on"):
            window(problem, first, n)


def test_bad_input_is_refused() -> None:
    problem = PROBLEMS["hungry"]
    assert SECOND_SOLVERS == ("tangent", "scip", "gurobi", "mosek")
    with pytest.raises(ConfigError, match=r"solver must be one of tangent, scip, gurobi, mosek, got 'clp'"):
        second_opinion(problem, "clp")
    for limit_s in (0.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"time_limit_s must be a positive number of seconds"):
            second_opinion(problem, "tangent", limit_s)


# --- tangents ------------------------------------------------------------------------------------------------


def radius(high: float = 9.0) -> tuple[StandardForm, SecondOrderRows]:
    """|(3, y)| <= r, 0 <= r <= high, -4 <= y <= 4."""
    form = StandardForm(
        cost=np.array([1.0, 0.0]), offset=0.0, start=np.array([0, 0, 0]), index=np.zeros(0, dtype=np.int64),
        value=np.zeros(0), row_lower=np.zeros(0), row_upper=np.zeros(0), col_lower=np.array([0.0, -4.0]),
        col_upper=np.array([high, 4.0]), integer=np.zeros(2, dtype=np.bool_),
    )  # fmt: skip
    cones = SecondOrderRows(
        np.array([0.0, 3.0, 0.0]), np.array([0, 2]), np.array([0, 1]), np.array([1.0, 1.0]), np.array([3])
    )
    return form, cones


def test_a_tangent_by_hand() -> None:
    """At (r, y) = (1, 4) the others have length 5: r >= (3 * 3 + 4 y) / 5."""
    matrix, lower = tangents(*radius(), np.array([1.0, 4.0]), 1e-6)
    assert matrix.toarray() == pytest.approx(np.array([[1.0, -0.8]]))
    assert lower == pytest.approx([1.8])
    assert len(tangents(*radius(), np.array([5.0, 4.0]), 1e-6)[1]) == 0


def test_small_entries_are_charged_and_not_dropped() -> None:
    """At y = 3e-8 the slope is 1e-8: its largest value, 4e-8, is taken off the right side."""
    matrix, lower = tangents(*radius(), np.array([0.0, 3e-8]), 1e-6)
    assert matrix.toarray().tolist() == [[1.0, 0.0]]
    assert lower[0] == pytest.approx(3.0 - 4e-8, abs=1e-12)


@settings(deadline=None)
@given(st.floats(-4.0, 4.0), st.floats(-4.0, 4.0), st.floats(0.0, 2.0))
def test_no_tangent_cuts_a_point_of_the_cone_off(at: float, y: float, more: float) -> None:
    matrix, lower = tangents(*radius(), np.array([0.0, at]), -np.inf)
    assert (matrix @ np.array([np.hypot(3.0, y) + more, y]) >= lower - 1e-12).all()
