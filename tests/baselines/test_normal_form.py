"""Normal charging as a Pyomo model: its constraints by hand, and its objective against the problem's own cost."""

import itertools
from collections.abc import Callable

import numpy as np
import pyomo.environ as pyo
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array

from evcs_gym.baselines.forms import normal_charging as forms
from evcs_gym.baselines.forms.normal_charging import VoltageRows
from evcs_gym.baselines.problems import normal_charging as problems
from evcs_gym.baselines.problems.normal_charging import NormalProblem
from evcs_gym.baselines.solvers import Task, compile_model, solve
from evcs_gym.envs.types import FloatArray

Maker = Callable[..., NormalProblem]


def programme_cost(problem: NormalProblem, rows: VoltageRows | None, plan: FloatArray) -> float:
    """Cost of a plan written without the form: |base + charging - DG|, prices, and what rows are outside."""
    cost = problems.cost(problem, plan)
    if rows is not None:
        for r in range(len(rows.slot)):
            voltage = rows.base_pu[r]
            for i in range(problem.n_sessions):
                connection = 3 if problem.phase[i] == -1 else problem.phase[i]
                voltage += rows.gain_pu_per_kw[r, problem.bus[i], connection] * plan[rows.slot[r], i]
            cost += 100.0 * max(0.0, rows.sign[r] * (rows.limit_pu[r] - voltage))
    return cost


def test_the_model_says_what_the_equations_say(by_hand: Maker) -> None:
    """Two different cars at one bus, surplus of 5 kW in slot 1: one row of (5), two of (8), none for whole cars."""
    problem = by_hand([[2.0], [-5.0], [-1.0]], [0.1, 0.2, 0.3], [(0, 2), (0, 2)], [1, 2], [4.0, 6.0])
    form = forms.normal_charging(problem, problems.classes_of(problem))
    model = form.model
    assert [len(model.c5_unabsorbed), len(model.c5_whole_cars), len(model.c8_full_at_departure)] == [1, 0, 2]
    assert len(form.charging) == 4
    assert all(variable.is_integer() for variable in form.charging)
    assert [variable.ub for variable in form.unabsorbed] == [5.0]
    for variable, value in zip(form.charging, [0, 1, 1, 1], strict=True):
        variable.set_value(value)
    form.unabsorbed[0].set_value(0.0)
    # slot 0 draws 2 + 6 kW, slot 1 -5 + 4 + 6 kW, slot 2 has no car and leaves 1 kW unabsorbed
    expected = 0.08 * 0.5 * (8 + 5 + 1) + 3 * 0.1 + 5 * 0.2
    assert pyo.value(model.cost_eur) == pytest.approx(expected)
    assert pyo.value(model.c5_unabsorbed[0].body) == pytest.approx(10.0)
    assert model.c5_unabsorbed[0].lower == 5.0


def test_modulated_cars_are_continuous_and_need_parts_of_a_slot(by_hand: Maker) -> None:
    problem = by_hand([[0.0]] * 2, [0.1, 0.2], [(0, 2)], [2], [4.0], mode="modulated", energy_kwh=[3.0])
    form = forms.normal_charging(problem, problems.classes_of(problem))
    assert all(variable.is_continuous() for variable in form.charging)
    assert form.model.c8_full_at_departure[0].upper == pytest.approx(1.5)
    result = solve(Task(compile_model(form.model).form), 20.0)
    # 2 kWh in the cheap slot, 1 kWh in the other; |power| costs 0.08 per kWh in both
    assert result.objective == pytest.approx(2 * 0.1 + 1 * 0.2 + 0.08 * 3)


def test_cars_of_one_power_get_the_chord_between_whole_numbers(by_hand: Maker) -> None:
    """Surplus 10 kW, cars of 4 kW: two cars leave 2 kW, three none, so unabsorbed >= 2 (3 - n)."""
    problem = by_hand([[-10.0], [5.0]], [0.1, 0.1], [(0, 2)] * 4, [1] * 4, [4.0] * 4)
    form = forms.normal_charging(problem, problems.classes_of(problem))
    (row,) = form.model.c5_whole_cars.values()
    form.unabsorbed[0].set_value(0.0)
    for n_cars, unabsorbed in ((2, 2.0), (3, 0.0)):
        form.charging[0].set_value(n_cars)
        assert row.lower - pyo.value(row.body) == pytest.approx(unabsorbed)


def test_a_voltage_row_by_hand(by_hand: Maker) -> None:
    """10 kW lower the voltage from 0.96 by 0.02; the limit is 0.95: 0.01 pu of slack."""
    problem = by_hand([[0.0]], [0.1], [(0, 1)], [1], [10.0], phase=[1])
    gain = np.zeros((1, 1, 4))
    gain[0, 0, 1] = -0.002
    rows = VoltageRows(
        slot=np.array([0]),
        bus=np.array([5]),
        phase=np.array([1]),
        limit_pu=np.array([0.95]),
        base_pu=np.array([0.96]),
        sign=np.array([1.0]),
        gain_pu_per_kw=gain,
        price_eur_per_pu=100.0,
    )
    group_kw = problems.connection_power_kw(problem, np.array([[10.0]]))
    np.testing.assert_allclose(rows.voltage_pu(group_kw), [0.94])
    np.testing.assert_allclose(rows.slack_pu(group_kw), [0.01])
    form = forms.normal_charging(problem, problems.classes_of(problem), rows)
    result = solve(Task(compile_model(form.model).form), 20.0)
    assert result.objective == pytest.approx(0.08 * 5 + 0.1 * 5 + 100 * 0.01)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), with_rows=st.booleans(), one_power=st.booleans())
def test_every_plan_is_feasible_in_the_form_and_costs_the_same(
    at_random: Maker,
    enumerated: Callable[[NormalProblem], FloatArray],
    random_rows: Callable[..., VoltageRows],
    seed: int,
    with_rows: bool,
    one_power: bool,
) -> None:
    problem = at_random(seed, n_cars=3, one_power=one_power)
    rows = random_rows(problem, seed) if with_rows else None
    classes = problems.classes_of(problem)
    form = forms.normal_charging(problem, classes, rows)
    compiled = compile_model(form.model)
    matrix = csc_array((compiled.form.value, compiled.form.index, compiled.form.start)).toarray()
    for plan in enumerated(problem)[:50]:
        cells = problems.cells_of_plan(problem, classes, plan)
        variables, values = forms.point_of_plan(form, problem, cells, plan, rows)
        x = np.zeros(len(compiled.form.cost))
        x[compiled.columns(variables)] = values
        assert (x >= compiled.form.col_lower - 1e-9).all()
        assert (x <= compiled.form.col_upper + 1e-9).all()
        assert (matrix @ x >= compiled.form.row_lower - 1e-9).all()
        assert (matrix @ x <= compiled.form.row_upper + 1e-9).all()
        assert compiled.form.objective(x) == pytest.approx(programme_cost(problem, rows, plan))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_with_one_power_the_relaxation_is_whole_and_exact(
    at_random: Maker, enumerated: Callable[[NormalProblem], FloatArray], seed: int
) -> None:
    problem = at_random(seed, n_cars=4, n_buses=1, n_slots=5, one_power=True)
    compiled = compile_model(forms.normal_charging(problem, problems.classes_of(problem)).model)
    result = solve(Task(compiled.form.relaxed()), 20.0)
    assert result.x is not None
    whole = result.x[compiled.form.integer]
    np.testing.assert_allclose(whole, np.rint(whole), atol=1e-6)
    best = min(problems.cost(problem, plan) for plan in enumerated(problem))
    assert result.objective == pytest.approx(best)


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10_000))
def test_with_voltage_rows_the_programme_is_the_best_of_all_plans(
    at_random: Maker,
    enumerated: Callable[[NormalProblem], FloatArray],
    random_rows: Callable[..., VoltageRows],
    seed: int,
) -> None:
    problem = at_random(seed, n_cars=3, n_slots=5)
    rows = random_rows(problem, seed)
    compiled = compile_model(forms.normal_charging(problem, problems.classes_of(problem), rows).model)
    best = min(programme_cost(problem, rows, plan) for plan in enumerated(problem))
    assert solve(Task(compiled.form), 20.0).objective == pytest.approx(best)


def test_forms_name_no_solver() -> None:
    source = (forms.__file__, problems.__file__)
    names = ("highspy", "HiGHS", "Clarabel", "SCIP", "Gurobi")
    for path, name in itertools.product(source, names):
        with open(path, encoding="utf-8") as file:
            assert name not in file.read(), (path, name)
