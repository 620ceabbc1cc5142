"""The equilibrium as a conic programme: an independent formulation of the same (T3), with a certified bound."""

import numpy as np
import pytest

from evcs_gym.baselines import optimum
from evcs_gym.baselines.problems.traffic import TrafficProblem, check, cost_eur, lower_bound_eur
from evcs_gym.baselines.solvers import ConicRows, StandardForm, solve_conic
from evcs_gym.baselines.traffic import TrafficSolution, traffic_optimum
from evcs_gym.envs import Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError, ConvergenceError, DataError, InfeasibleError, SolverError
from evcs_gym.envs.traffic import (
    TrafficModel,
    assign_charging,
    load_departures_frac,
    load_roads,
    load_stations,
    traffic_model,
)
from evcs_gym.envs.types import FloatArray

PRICE = np.linspace(0.40, 0.48, 8)


def city(queue: str = "davidson", outside_eur: float | None = None) -> TrafficModel:
    return traffic_model(load_roads("city12"), load_stations(queue), outside_eur=outside_eur)


def slot_problem() -> tuple[TrafficProblem, FloatArray]:
    """A slot and the flows of its equilibrium."""
    model = city()
    demand = model.network.demand_veh_per_h
    found = assign_charging(model, 0.07 * demand, demand, PRICE, relative_gap=1e-12)
    problem = TrafficProblem(model, np.concatenate([demand, 0.07 * demand]), model.fixed_h(PRICE))
    return problem, np.concatenate([found.link_flow_veh_per_h, found.station_veh_per_h])


@pytest.mark.parametrize("slot", range(0, 48, 6))
def test_the_city_with_davidson_stations_agrees_over_the_day(slot: int) -> None:
    model = city(outside_eur=None if slot % 4 else 11.0)
    demand = load_departures_frac()[slot] * model.network.demand_veh_per_h
    own = assign_charging(model, 0.07 * demand, demand, PRICE, relative_gap=1e-12)
    solved = traffic_optimum(model, 0.07 * demand, demand, PRICE)
    assert solved.cost_eur == pytest.approx(own.beckmann_eur, rel=1e-6)
    assert solved.lower_bound_eur <= own.beckmann_eur * (1.0 + 1e-12)
    assert 0.0 <= solved.relative_gap <= 1e-6
    assert solved.flow_veh_per_h[:40] == pytest.approx(own.link_flow_veh_per_h, abs=0.1)  # flat: cost^0.5


@pytest.mark.parametrize("load", [0.5, 1.0])
def test_exact_queues_agree_by_steps_of_second_order(load: float) -> None:
    model = city("erlang")
    demand = load * model.network.demand_veh_per_h
    own = assign_charging(model, 0.07 * demand, demand, PRICE, relative_gap=1e-12)
    solved = traffic_optimum(model, 0.07 * demand, demand, PRICE, gap=1e-6)
    assert 1 < solved.certificate.n_rounds < 10
    assert solved.relative_gap <= 1e-6
    assert solved.cost_eur == pytest.approx(own.beckmann_eur, rel=1e-6)
    assert solved.lower_bound_eur <= own.beckmann_eur * (1.0 + 1e-12)


def test_the_bound_meets_the_cost_at_the_equilibrium_and_lies_below_it_elsewhere() -> None:
    problem, flow = slot_problem()
    best = cost_eur(problem, flow)
    assert lower_bound_eur(problem, flow) == pytest.approx(best, rel=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = flow * rng.uniform(0.6, 1.05, len(flow))
        assert lower_bound_eur(problem, other) <= best * (1.0 + 1e-12)


def test_plans_that_break_a_rule_are_refused() -> None:
    problem, flow = slot_problem()
    check(problem, flow)
    wrong = flow.copy()
    wrong[0] += 50.0
    with pytest.raises(InfeasibleError, match=r"node \d+ must be balanced, got"):
        check(problem, wrong)
    wrong = flow.copy()
    wrong[40] -= 9.0
    with pytest.raises(InfeasibleError, match="all charging cars must pass a station, got 9 veh/h without"):
        check(problem, wrong)
    wrong = flow.copy()
    wrong[40:42] += [-500.0, 500.0]
    with pytest.raises(InfeasibleError, match="flows must not be negative, resource 40 has -"):
        check(problem, wrong)


def test_a_gap_that_cannot_be_proven_is_an_error() -> None:
    demand = load_roads("city12").demand_veh_per_h
    with pytest.raises(ConvergenceError, match=r"relative gap of 0 was asked for, .* proven after 1 solves"):
        traffic_optimum(city(), 0.07 * demand, demand, PRICE, gap=0.0)


def conic_form(upper: float) -> StandardForm:
    """min -x, 0 <= x <= upper."""
    none = np.zeros(0)
    return StandardForm(
        cost=np.array([-1.0]),
        offset=0.0,
        start=np.zeros(2, dtype=np.int64),
        index=np.zeros(0, dtype=np.int64),
        value=none,
        row_lower=none,
        row_upper=none,
        col_lower=np.zeros(1),
        col_upper=np.array([upper]),
        integer=np.zeros(1, dtype=np.bool_),
    )


def test_cones_by_hand() -> None:
    """x <= 32^(1/5) = 2 in a power cone; exp(x) <= 5 in an exponential one."""
    power = ConicRows("power", 0.2, (32.0, 1.0, 0.0), (-1, -1, 0), (0.0, 0.0, 1.0))
    exponential = ConicRows("exponential", 0.0, (0.0, 1.0, 5.0), (0, -1, -1), (1.0, 0.0, 0.0))
    assert solve_conic(conic_form(9.0), [power], 10.0)[0] == pytest.approx([2.0])
    assert solve_conic(conic_form(9.0), [exponential], 10.0)[0] == pytest.approx([np.log(5.0)])
    assert solve_conic(conic_form(1.5), [], 10.0)[0] == pytest.approx([1.5])


def test_conic_programmes_without_an_answer_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InfeasibleError, match="solver Clarabel: a programme of 1 variables and 0 rows has no"):
        solve_conic(conic_form(-1.0), [], 10.0)
    with pytest.raises(SolverError, match="solver Clarabel: ended with status 'DualInfeasible'"):
        solve_conic(conic_form(np.inf), [], 10.0)
    with pytest.raises(DataError, match="col_upper of a programme must be numbers, got NaN"):
        solve_conic(conic_form(np.nan), [], 10.0)
    monkeypatch.setitem(__import__("sys").modules, "clarabel", None)
    with pytest.raises(SolverError, match="solver Clarabel: could not be loaded"):
        solve_conic(conic_form(1.0), [], 10.0)


@pytest.mark.parametrize("name", ["ieee33_twelve", "nguyen_dupuis_33"])
def test_the_optimum_of_a_slot_of_a_day_meets_the_equilibrium_that_the_day_carries(name: str) -> None:
    scenario = load_scenario(name)
    day = scenario.day(3, "test")
    solved = optimum(scenario, day, problem="traffic", slot=11, relative_gap=1e-6)
    assert isinstance(solved, TrafficSolution)
    assert day.traffic is not None
    evidence = solved.certificate
    assert (evidence.slot, evidence.equilibrium_relative_gap) == (11, float(day.traffic.relative_gap[11]))
    assert evidence.equilibrium_cost_eur is not None
    assert solved.lower_bound_eur <= evidence.equilibrium_cost_eur <= solved.cost_eur * (1.0 + 1e-9)
    assert solved.cost_eur <= solved.lower_bound_eur * (1.0 + 1e-6)
    shown = solved.as_dict(plan=True)
    assert shown["certificate"]["n_rounds"] == evidence.n_rounds
    assert shown["plan"]["flow_veh_per_h"] == solved.plan_arrays()["flow_veh_per_h"].tolist()
    assert "plan" not in solved.as_dict()


def test_slots_and_days_that_have_no_traffic_are_refused(small_scenario: Scenario) -> None:
    city = load_scenario("ieee33_twelve")
    day = city.day(0)
    with pytest.raises(ConfigError, match=r"slot must be in 0\.\.47, got 48"):
        optimum(city, day, problem="traffic", slot=48)
    with pytest.raises(ConfigError, match="slot must be given for traffic and for nothing else, got None for traffic"):
        optimum(city, day, problem="traffic")
    with pytest.raises(ConfigError, match="for nothing else, got 3 for normal_charging"):
        optimum(city, day, problem="normal_charging", slot=3)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="the day must be one of scenario 'ieee33_twelve', got one without stations"):
        optimum(city, small_scenario.day(0), problem="traffic", slot=3)
    with pytest.raises(ConfigError, match="tiny: stations is no section of this scenario"):
        optimum(small_scenario, day, problem="traffic", slot=3)
    with pytest.raises(ConfigError, match="ieee33_twelve: normal_charging is no section of this scenario"):
        optimum(city, day)
