"""The exact optimum of normal charging: against enumeration, another LP, the environment, and pandapower."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from evcs_gym.baselines import normal_charging as algorithm
from evcs_gym.baselines.certificate import dual_bound, relative_gap
from evcs_gym.baselines.forms.normal_charging import VoltageRows
from evcs_gym.baselines.local_search import improved, kicked
from evcs_gym.baselines.normal_charging import Budget, common_gap, solve_programme, with_network
from evcs_gym.baselines.problems import normal_charging as problems
from evcs_gym.baselines.problems.normal_charging import NetworkProblem, NormalProblem
from evcs_gym.baselines.solve import optimum
from evcs_gym.baselines.solvers import StandardForm, stop_workers
from evcs_gym.envs.day import Day
from evcs_gym.envs.errors import ConfigError, ConvergenceError, InfeasibleError, SolverError
from evcs_gym.envs.fleet.normal import replay
from evcs_gym.envs.grid import load_feeder, power_flow
from evcs_gym.envs.scenario import Scenario, load_scenario
from evcs_gym.envs.types import FloatArray, Sessions

Maker = Callable[..., NormalProblem]
Plans = Callable[[NormalProblem], FloatArray]


def budget(limit_s: float = 60.0) -> Budget:
    return Budget(time.monotonic(), limit_s)


@cache
def city() -> Scenario:
    return load_scenario("ieee33_residential")


def modulated(scenario: Scenario) -> Scenario:
    spec = scenario.normal_charging.model_copy(update={"mode": "modulated"})
    return scenario.model_copy(update={"normal_charging": spec})


def crowd(seed: int, n_cars: int, n_buses: int, mode: str) -> NormalProblem:
    """Cars of three charging powers with a night's stay, DG surplus in about half of the 48 slots."""
    rng = np.random.default_rng(seed)
    arrival = np.clip(np.rint(rng.normal(12, 4, n_cars)), 0, 40).astype(np.int64)
    departure = np.clip(np.rint(rng.normal(39, 3, n_cars)), arrival + 3, 48).astype(np.int64)
    most_kw = rng.choice([3.7, 7.4, 11.0], n_cars)
    stay = departure - arrival
    energy = np.minimum(rng.uniform(0.2, 0.7, n_cars) * rng.choice([39.0, 58.0, 77.0], n_cars), most_kw * 0.5 * stay)
    slots = np.ceil(energy / (most_kw * 0.5) - 1e-9).astype(np.int64)
    hour = (12 + 0.5 * np.arange(48)) % 24
    shape = 0.35 + 0.65 * np.exp(-(((hour - 19.5) / 2.5) ** 2))
    scale = n_cars / n_buses / 21
    wind = np.clip(0.4 + 0.3 * np.sin(np.arange(48)[:, None] / 8 + rng.uniform(0, 6, n_buses)), 0, 1)
    net = scale * (rng.choice([36.0, 54.0, 72.0], n_buses) * shape[:, None] - 100 * wind * rng.uniform(0, 1, n_buses))
    return NormalProblem(
        mode="on_off" if mode == "on_off" else "modulated",
        bus=np.sort(rng.integers(0, n_buses, n_cars)),
        phase=np.where(most_kw > 7.4, -1, rng.integers(0, 3, n_cars)),
        arrival_slot=arrival,
        departure_slot=departure,
        car=np.arange(n_cars),
        power_kw=energy / (slots * 0.5) if mode == "on_off" else most_kw,
        energy_kwh=energy,
        n_slots=slots,
        infeasible_kwh=np.zeros(n_cars),
        net_kw=net,
        import_eur_per_kwh=np.repeat(0.05 + 0.07 * rng.random(24), 2),
        gap_eur_per_kwh=0.08,
        energy_weight=1.0,
    )


def network_for(problem: NormalProblem, vmin: float, base_load_frac: float = 0.8) -> NetworkProblem:
    """The shipped feeder; the columns of the problem are its first buses, or its branch ends if they are few."""
    n_buses = problem.net_kw.shape[1]
    feeder = load_feeder("synthetic33")
    hour = (12 + 0.5 * np.arange(len(problem.net_kw))) % 24
    shape = 0.4 + 0.6 * np.exp(-(((hour - 19.5) / 2.5) ** 2))
    load = base_load_frac * feeder.load_kva[None] * shape[:, None, None]
    base = np.abs(power_flow(feeder, load, source_pu=1.0).voltage_pu)
    return NetworkProblem(
        feeder=feeder,
        source_pu=np.ones(len(load)),
        charging_bus=np.arange(1, n_buses + 1) if n_buses > 4 else np.array([17, 21, 24, 32])[:n_buses],
        load_kva=load,
        base_voltage_pu=base,
        vmin_pu=np.minimum(vmin, base),
        vmax_pu=np.maximum(1.1, base),
        voltage_eur_per_pu=100.0,
    )


def oracle_lp(problem: NormalProblem) -> float:
    """The modulated optimum by another formulation: |x| as the difference of two variables, energies in kWh."""
    cost, rows, rhs = [], [], []
    n_slots, n_buses = problem.net_kw.shape
    index: dict[tuple[int, int], int] = {}
    for i in range(problem.n_sessions):
        for t in range(problem.arrival_slot[i], problem.departure_slot[i]):
            index[i, t] = len(cost)
            cost.append(0.5 * problem.energy_weight * problem.import_eur_per_kwh[t])
    bounds: list[tuple[float, float | None]] = [(0.0, float(problem.power_kw[i])) for i, _ in index]
    n = len(cost) + 2 * n_slots * n_buses
    for i in range(problem.n_sessions):
        row = np.zeros(n)
        for t in range(problem.arrival_slot[i], problem.departure_slot[i]):
            row[index[i, t]] = 0.5
        rows.append(row)
        rhs.append(problem.energy_kwh[i])
    for t in range(n_slots):
        for b in range(n_buses):
            row, place = np.zeros(n), len(index) + 2 * (t * n_buses + b)
            for i in np.flatnonzero(problem.bus == b):
                if (int(i), t) in index:
                    row[index[int(i), t]] = 1.0
            row[place], row[place + 1] = -1.0, 1.0
            rows.append(row)
            rhs.append(-problem.net_kw[t, b])
    cost += [0.5 * problem.gap_eur_per_kwh] * (2 * n_slots * n_buses)
    bounds += [(0.0, None)] * (2 * n_slots * n_buses)
    return float(linprog(cost, A_eq=np.array(rows), b_eq=np.array(rhs), bounds=bounds).fun)


def test_one_car_takes_the_surplus_then_the_cheaper_slot(by_hand: Maker) -> None:
    """4 kW for two of three slots: the surplus saves 0.16 EUR in slot 1, slot 2 is cheaper than slot 0."""
    problem = by_hand([[0.0], [-4.0], [0.0]], [0.10, 0.12, 0.09], [(0, 3)], [2], [4.0])
    answer = solve_programme(problem, None, 0.0, budget())
    np.testing.assert_array_equal(answer.power_kw[:, 0], [0.0, 4.0, 4.0])
    assert answer.cost_eur == pytest.approx(2 * 0.12 + 2 * 0.09 + 0.08 * 2)
    assert answer.bound_eur == pytest.approx(answer.cost_eur)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), one_power=st.booleans())
def test_tiny_days_agree_with_enumeration(at_random: Maker, enumerated: Plans, seed: int, one_power: bool) -> None:
    problem = at_random(seed, one_power=one_power)
    answer = solve_programme(problem, None, 0.0, budget())
    problems.check(problem, answer.power_kw)
    best = min(problems.cost(problem, plan) for plan in enumerated(problem))
    assert answer.cost_eur == pytest.approx(best)
    assert answer.bound_eur == pytest.approx(best)
    # modulated cars may do all that on_off cars do: the bound of every policy
    bound = solve_programme(replace(problem, mode="modulated"), None, 0.0, budget())
    assert bound.bound_eur <= best + 1e-9


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10_000))
def test_the_modulated_optimum_agrees_with_another_formulation(at_random: Maker, seed: int) -> None:
    problem = at_random(seed, n_cars=8, n_slots=10, mode="modulated")
    problem = replace(problem, energy_kwh=problem.energy_kwh * np.random.default_rng(seed).uniform(0.3, 1.0, 8))
    answer = solve_programme(problem, None, 0.0, budget())
    problems.check(problem, answer.power_kw)
    assert answer.cost_eur == pytest.approx(oracle_lp(problem))
    assert answer.bound_eur == pytest.approx(answer.cost_eur)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_any_duals_give_a_true_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(3, 5))
    inside = rng.uniform(0.0, 1.0, 5)
    form = StandardForm(
        cost=rng.normal(size=5),
        offset=2.0,
        start=np.arange(0, 16, 3),
        index=np.tile(np.arange(3), 5),
        value=matrix.T.ravel(),
        row_lower=np.where(rng.random(3) < 0.5, -np.inf, matrix @ inside - 0.1),
        row_upper=np.where(rng.random(3) < 0.5, np.inf, matrix @ inside + 0.1),
        col_lower=np.zeros(5),
        col_upper=np.ones(5),
        integer=np.zeros(5, dtype=np.bool_),
    )
    bound, _ = dual_bound(form, rng.normal(size=3))
    assert bound <= form.objective(inside) + 1e-9


def test_the_gap_is_relative_to_the_cost_but_never_to_less_than_one_euro() -> None:
    assert relative_gap(200.0, 198.0) == pytest.approx(0.01)
    assert relative_gap(0.1, 0.0) == pytest.approx(0.1)
    assert relative_gap(-200.0, -202.0) == pytest.approx(0.01)
    assert relative_gap(1.0, 1.0 + 1e-12) == 0.0


def test_what_one_part_does_not_need_goes_to_the_others() -> None:
    """Gaps 0.1, 2 and 5 may add up to 3: the small one keeps its 0.1, the others get 1.45 each."""
    assert common_gap(np.array([5.0, 0.1, 2.0]), 3.0) == pytest.approx(1.45)
    assert common_gap(np.array([5.0, 0.1, 2.0]), 8.0) == np.inf
    assert common_gap(np.array([5.0, 0.1]), 0.0) == 0.0


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), with_rows=st.booleans())
def test_the_local_search_keeps_every_rule_and_ends_where_no_move_saves(
    at_random: Maker, random_rows: Callable[..., VoltageRows], seed: int, with_rows: bool
) -> None:
    problem = at_random(seed, n_cars=5, n_buses=1, n_slots=7)
    rows = random_rows(problem, seed) if with_rows else None
    classes = problems.classes_of(problem)
    start = problems.plan_of_cells(problem, classes, problems.on_arrival_cells(classes))
    plan = improved(problem, start, rows)
    problems.check(problem, plan)
    cost = algorithm.programme_cost(problem, rows, plan)
    assert cost <= algorithm.programme_cost(problem, rows, start) + 1e-9
    for i in range(5):
        for source in np.flatnonzero(plan[:, i]):
            for target in range(problem.arrival_slot[i], problem.departure_slot[i]):
                moved = plan.copy()
                moved[source, i], moved[target, i] = moved[target, i], moved[source, i]
                assert algorithm.programme_cost(problem, rows, moved) >= cost - 1e-8


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10_000), with_rows=st.booleans())
def test_kicks_keep_every_rule_and_never_cost(
    at_random: Maker, random_rows: Callable[..., VoltageRows], seed: int, with_rows: bool
) -> None:
    problem = at_random(seed, n_cars=6, n_slots=7)
    rows = random_rows(problem, seed) if with_rows else None
    classes = problems.classes_of(problem)
    start = problems.plan_of_cells(problem, classes, problems.on_arrival_cells(classes))
    cost = algorithm.programme_cost(problem, rows, start)
    np.testing.assert_array_equal(kicked(problem, start, rows, cost, 1.0), start)  # the target is reached already
    plan = kicked(problem, start, rows, cost - 0.05, 0.2)
    problems.check(problem, plan)
    assert algorithm.programme_cost(problem, rows, plan) <= cost + 1e-9


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10_000))
def test_tiny_programmes_with_voltage_rows_agree_with_enumeration(
    at_random: Maker, enumerated: Plans, random_rows: Callable[..., VoltageRows], seed: int
) -> None:
    problem = at_random(seed, n_cars=4, n_slots=5)
    rows = random_rows(problem, seed)
    answer = solve_programme(problem, rows, 0.0, budget(3.0))
    problems.check(problem, answer.power_kw)
    best = min(algorithm.programme_cost(problem, rows, plan) for plan in enumerated(problem))
    assert answer.cost_eur == pytest.approx(best)
    assert answer.bound_eur == pytest.approx(best)


def test_two_cars_swap_slots_where_no_single_move_saves(by_hand: Maker) -> None:
    """Surplus 8 and 6 kW, cars of 6 and 8 kW in the wrong slots: moving one alone makes both slots worse."""
    problem = by_hand([[-8.0], [-6.0]], [0.1, 0.1], [(0, 2), (0, 2)], [1, 1], [6.0, 8.0])
    plan = improved(problem, np.array([[6.0, 0.0], [0.0, 8.0]]))
    np.testing.assert_array_equal(plan, [[0.0, 8.0], [6.0, 0.0]])


@pytest.mark.parametrize("mode", ["modulated", "on_off"])
def test_a_thousand_mixed_cars_on_one_bus(mode: str) -> None:
    began = time.monotonic()
    problem = crowd(1, 1000, 1, mode)
    answer = solve_programme(problem, None, 0.0 if mode == "modulated" else 1e-3, budget())
    problems.check(problem, answer.power_kw)
    assert relative_gap(answer.cost_eur, answer.bound_eur) <= (1e-9 if mode == "modulated" else 1e-3)
    assert time.monotonic() - began < 20.0


def best_of_all(problem: NormalProblem, network: NetworkProblem, plans: FloatArray) -> float:
    """Least true cost, voltage by the exact power flow, of all plans."""
    return min(true_cost(problem, network, plan) for plan in plans)


def weak_day(at_random: Maker, seed: int) -> tuple[NormalProblem, NetworkProblem]:
    """Cars of some 300 kW at the ends of the branches: what is cheapest without network goes far below 0.93 pu."""
    problem = at_random(seed, n_cars=4)
    problem = replace(problem, power_kw=40 * problem.power_kw, energy_kwh=40 * problem.energy_kwh)
    return problem, network_for(problem, vmin=0.93, base_load_frac=0.4)


def true_cost(problem: NormalProblem, network: NetworkProblem, plan: FloatArray) -> float:
    return problems.cost(problem, plan) + problems.voltage_cost(
        network, problems.plan_voltage(problem, network, plan)[0]
    )


@pytest.mark.parametrize("seed", [2, 3, 14, 29])
def test_with_a_weak_network_tiny_days_agree_with_enumeration(at_random: Maker, enumerated: Plans, seed: int) -> None:
    problem, network = weak_day(at_random, seed)
    free = solve_programme(problem, None, 0.0, budget())
    found = with_network(problem, network, free, 0.0, budget())
    problems.check(problem, found.answer.power_kw)
    assert found.rows is not None
    best = best_of_all(problem, network, enumerated(problem))
    assert true_cost(problem, network, free.power_kw) > best + 0.5
    assert true_cost(problem, network, found.answer.power_kw) == pytest.approx(best)
    # the rows are made exact at the plan that comes back: the programme's cost is the true one
    assert found.answer.cost_eur == pytest.approx(best, abs=0.05)
    assert free.bound_eur <= found.answer.bound_eur <= best + 1e-6


def test_a_plan_of_an_earlier_round_is_judged_by_rows_that_are_exact_at_it(at_random: Maker, enumerated: Plans) -> None:
    """Here linear rows cannot prove the plan that enumeration finds best: it comes back with an open gap."""
    problem, network = weak_day(at_random, 30)
    found = with_network(problem, network, solve_programme(problem, None, 0.0, budget()), 0.0, budget())
    best = best_of_all(problem, network, enumerated(problem))
    assert true_cost(problem, network, found.answer.power_kw) == pytest.approx(best)
    assert found.answer.cost_eur == pytest.approx(best)
    assert found.answer.bound_eur < best - 1.0


def test_voltage_without_a_price_needs_no_rows(at_random: Maker) -> None:
    problem, network = weak_day(at_random, 2)
    free = solve_programme(problem, None, 0.0, budget())
    found = with_network(problem, replace(network, voltage_eur_per_pu=0.0), free, 0.0, budget())
    assert found.rows is None
    np.testing.assert_array_equal(found.answer.power_kw, free.power_kw)


@pytest.mark.parametrize("mode", ["modulated", "on_off"])
def test_voltage_rows_remove_violations_at_a_proven_cost(mode: str) -> None:
    problem = crowd(2, 250, 12, mode)
    network = network_for(problem, vmin=0.93)
    free = solve_programme(problem, None, 1e-3, budget())
    found = with_network(problem, network, free, 1e-3, budget())
    problems.check(problem, found.answer.power_kw)
    free_voltage, _ = problems.plan_voltage(problem, network, free.power_kw)
    before, after = (problems.voltage_cost(network, voltage) for voltage in (free_voltage, found.voltage_pu))
    assert found.rows is not None
    assert before > 2.0
    assert after < 0.2 * before
    assert problems.cost(problem, found.answer.power_kw) + after < problems.cost(problem, free.power_kw) + before
    assert relative_gap(found.answer.cost_eur, found.answer.bound_eur) <= 1e-3
    assert found.answer.bound_eur >= free.bound_eur - 1e-3 * abs(free.bound_eur)


def test_a_day_without_violations_needs_no_rows() -> None:
    problem = crowd(3, 20, 4, "on_off")
    free = solve_programme(problem, None, 1e-3, budget())
    found = with_network(problem, network_for(problem, vmin=0.6), free, 1e-3, budget())
    assert (found.rows, found.n_rounds) == (None, 0)
    assert found.answer.cost_eur == pytest.approx(free.cost_eur)


@cache
def solved(mode: str) -> tuple[Scenario, Day, Any]:
    scenario = city() if mode == "on_off" else modulated(city())
    day = scenario.day(3, "test")
    return scenario, day, optimum(scenario, day)


@pytest.mark.parametrize("mode", ["modulated", "on_off"])
def test_the_default_day_is_proven_and_replays(mode: str) -> None:
    scenario, day, solution = solved(mode)
    assert solution.status == "optimal"
    assert solution.relative_gap <= 1e-3
    assert solution.lower_bound_eur <= solution.cost_eur
    assert solution.certificate.replay_relative_error <= 1e-6
    assert solution.certificate.missing_kwh == 0.0
    assert replay(scenario, day, solution.plan.power_kw).cost_eur == pytest.approx(solution.cost_eur, rel=1e-6)
    if solution.certificate.n_violations == 0 and mode == "modulated":
        assert solution.cost_eur == pytest.approx(solution.lower_bound_eur)


def test_the_bound_holds_for_other_plans_in_both_modes() -> None:
    _, _, solution = solved("on_off")
    rng = np.random.default_rng(0)
    for scenario in (city(), modulated(city())):
        day = scenario.day(3, "test")
        problem = problems.problem_of(scenario, day)
        classes = problems.classes_of(problem)
        arrival = problems.plan_of_cells(problem, classes, problems.on_arrival_cells(classes))
        assert replay(scenario, day, arrival).cost_eur >= solution.lower_bound_eur
        if problem.mode == "on_off":
            other = improved(replace(problem, import_eur_per_kwh=rng.uniform(0.0, 0.3, 48)), arrival)
            assert replay(scenario, day, other).cost_eur >= solution.lower_bound_eur
    assert solved("modulated")[2].lower_bound_eur == pytest.approx(solution.lower_bound_eur)


def test_a_solution_becomes_json() -> None:
    _, day, solution = solved("on_off")
    out = json.loads(json.dumps(solution.as_dict(), allow_nan=False))
    assert out["problem"] == "normal_charging"
    assert out["cost_eur"] == solution.cost_eur
    assert out["certificate"]["solver"] == "HiGHS"
    assert "plan" not in out
    plan = json.loads(json.dumps(solution.as_dict(plan=True)))["plan"]["power_kw"]
    assert np.shape(plan) == (48, len(day.sessions))


def without_cars(day: Day) -> Day:
    none = {name: getattr(day.sessions, name)[:0] for name in Sessions.__dataclass_fields__}
    return replace(day, sessions=Sessions(**none))


def test_a_day_without_cars_costs_its_load() -> None:
    day = without_cars(city().day(0, "test"))
    solution = optimum(city(), day)
    idle = city().normal_charging.omega1_eur_per_kwh * 0.5 * np.abs(day.base_kw - day.dg_kw).sum()
    assert solution.cost_eur == pytest.approx(idle)
    assert solution.lower_bound_eur == pytest.approx(idle)
    assert solution.plan.power_kw.shape == (48, 0)


def test_too_little_time_gives_a_plan_and_an_honest_gap() -> None:
    scenario, day, good = solved("on_off")
    hurried = optimum(scenario, day, time_limit_s=1e-3)
    assert hurried.status == "time_limit"
    assert hurried.lower_bound_eur <= good.lower_bound_eur
    assert hurried.cost_eur >= good.cost_eur - 1e-3 * good.cost_eur
    assert hurried.relative_gap > 1e-3
    expected = relative_gap(hurried.certificate.programme_cost_eur, hurried.certificate.programme_bound_eur)
    assert hurried.relative_gap == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"problem": "chess"}, "problem must be one of normal_charging, market, traffic, fast_charging, got 'chess'"),
        ({"relative_gap": -0.1}, r"relative_gap must be in \[0, 1\), got -0.1"),
        ({"relative_gap": float("nan")}, r"relative_gap must be in \[0, 1\), got nan"),
        ({"time_limit_s": 0.0}, "time_limit_s must be a positive number"),
        ({"time_limit_s": float("inf")}, "time_limit_s must be a positive number"),
    ],
)
def test_impossible_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        optimum(city(), city().day(0, "test"), **arguments)


def test_a_missing_solver_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "highspy.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stop_workers()
    with pytest.raises(SolverError, match="could not be loaded"):
        optimum(city(), city().day(0, "test"))


def test_contradicting_data_are_refused_before_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, day, _ = solved("on_off")
    wrong = problems.problem_of(scenario, day)
    wrong = replace(wrong, n_slots=wrong.n_slots + 60)
    monkeypatch.setattr(problems, "problem_of", lambda *arguments: wrong)
    with pytest.raises(InfeasibleError, match=r"session 0 .*needs more slots than its stay has"):
        optimum(scenario, day)


def test_a_day_that_collapses_whatever_one_does_is_an_error() -> None:
    """A car that must draw 60 MW in every slot of its stay at the end of a 12.66 kV branch."""
    day = city().day(0, "test")
    one = {name: getattr(day.sessions, name)[:1].copy() for name in Sessions.__dataclass_fields__}
    one |= {"capacity_kwh": np.array([1e7]), "power_kw": np.array([6e4])}
    with pytest.raises(ConvergenceError, match="the best plan has no power flow in slot"):
        optimum(city(), replace(day, sessions=Sessions(**one)))


def test_an_answer_far_from_its_box_is_an_error(at_random: Maker) -> None:
    problem = at_random(0)
    classes = problems.classes_of(problem)
    cells = problems.on_arrival_cells(classes)
    cells[0] += 0.5
    with pytest.raises(SolverError, match=r"a charging variable is 0\.5 away from an allowed value"):
        algorithm.polished(problem, classes, cells)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_polishing_meets_the_energy_exactly_inside_the_box(at_random: Maker, seed: int) -> None:
    problem = at_random(seed, mode="modulated")
    problem = replace(problem, energy_kwh=problem.energy_kwh * 0.9)
    classes = problems.classes_of(problem)
    rng = np.random.default_rng(seed)
    cells = problems.on_arrival_cells(classes) + rng.uniform(-1e-7, 1e-7, len(classes.cell_slot))
    clean = algorithm.polished(problem, classes, cells)
    assert (clean >= 0.0).all()
    assert (clean <= classes.n_cars[classes.cell_class]).all()
    total = np.add.reduceat(clean, classes.first_cell[:-1])
    np.testing.assert_allclose(total, classes.need_slots * classes.n_cars, rtol=1e-12)


def test_pandapower_finds_the_voltages_of_a_slot_of_the_plan() -> None:
    """`runpp_3ph` with the branches' sequence impedances, at the slot in which the plan charges most."""
    pp = pytest.importorskip("pandapower")
    scenario, day, solution = solved("on_off")
    slot = int(solution.plan.power_kw.sum(axis=1).argmax())
    problem, network = problems.problem_of(scenario, day), problems.network_of(scenario, day)
    ours, _ = problems.plan_voltage(problem, network, solution.plan.power_kw)
    load = network.load_kva[slot].copy()
    load[network.charging_bus] += problems.phase_power_kw(problem, solution.plan.power_kw)[slot]
    feeder = network.feeder
    net = pp.create_empty_network(sn_mva=1.0)
    buses = [pp.create_bus(net, feeder.line_to_line_kv) for _ in feeder.parent]
    # a stiff source: as good as the fixed head voltage of ours
    pp.create_ext_grid(net, 0, vm_pu=network.source_pu[slot], s_sc_max_mva=1e9, rx_max=0.1, r0x0_max=0.1, x0x_max=1.0)
    for bus in range(1, len(buses)):
        z = feeder.impedance_ohm[bus]
        z1, z0 = z[0, 0] - z[0, 1], z[0, 0] + 2 * z[0, 1]  # of a transposed branch
        pp.create_line_from_parameters(
            net,
            int(feeder.parent[bus]),
            bus,
            1.0,
            r_ohm_per_km=z1.real,
            x_ohm_per_km=z1.imag,
            c_nf_per_km=0.0,
            max_i_ka=10.0,
            r0_ohm_per_km=z0.real,
            x0_ohm_per_km=z0.imag,
            c0_nf_per_km=0.0,
        )
        p, q = load[bus].real / 1e3, load[bus].imag / 1e3
        pp.create_asymmetric_load(net, bus, p[0], p[1], p[2], q[0], q[1], q[2])
    pp.runpp_3ph(net, tolerance_mva=1e-9, max_iteration=100, numba=False)
    theirs = net.res_bus_3ph[["vm_a_pu", "vm_b_pu", "vm_c_pu"]].to_numpy()
    np.testing.assert_allclose(ours[slot], theirs, atol=1e-6)


@pytest.mark.parametrize("mode", ["modulated", "on_off"])
def test_without_time_cars_charge_on_arrival_or_better(mode: str) -> None:
    problem = crowd(4, 10, 2, mode)
    answer = solve_programme(problem, None, 1e-3, budget(-1.0))
    problems.check(problem, answer.power_kw)
    classes = problems.classes_of(problem)
    arrival = problems.plan_of_cells(problem, classes, problems.on_arrival_cells(classes))
    assert answer.cost_eur <= problems.cost(problem, arrival)
    assert answer.bound_eur < answer.cost_eur
    assert answer.bound_eur <= solve_programme(problem, None, 0.0, budget()).bound_eur + 1e-9


def test_cars_of_one_power_need_no_branching(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 cars of 7.4 kW: the flow LP is whole, its cost is proven without any programme in integers."""
    problem = crowd(6, 300, 2, "on_off")
    problem = replace(problem, power_kw=np.full(300, 7.4), energy_kwh=problem.n_slots * 3.7)
    asked = []
    solve_all = algorithm.solve_all
    monkeypatch.setattr(algorithm, "solve_all", lambda tasks, left: asked.extend(tasks) or solve_all(tasks, left))
    answer = solve_programme(problem, None, 0.0, budget())
    problems.check(problem, answer.power_kw)
    assert relative_gap(answer.cost_eur, answer.bound_eur) < 1e-9
    assert asked
    assert not any(task.form.integer.any() for task in asked)
