"""The market as a Pyomo model: its rows by hand, and its objective against the problem's own cost."""

from typing import Any

import numpy as np
import pyomo.environ as pyo
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_problems import lossy_at_random, problem_by_hand

from evcs_gym.baselines.forms.market import MarketForm, market
from evcs_gym.baselines.problems import market as problems
from evcs_gym.baselines.problems.market import MarketPlan, MarketProblem

ROWS = ("s1_energy", "s2_position", "s3_missing", "m1_offered", "m4_utility")


def set_plan(form: MarketForm, problem: MarketProblem, plan: MarketPlan) -> None:
    """Give every variable its value at a plan."""
    model, position = form.model, problems.positions_kw(problem, plan)
    energy = problems.energies_kwh(problem, plan.storage_kw)
    net = position.sum(axis=1)
    values = {
        "charge_kw": np.maximum(plan.storage_kw, 0.0),
        "discharge_kw": np.maximum(-plan.storage_kw, 0.0),
        "curtailed_kw": plan.curtailed_kw,
        "unserved_kw": plan.unserved_kw,
        "position_kw": position,
        "offered_kw": np.maximum(position, 0.0),
        "energy_kwh": energy,
        "imported_kw": np.maximum(-net, 0.0),
        "exported_kw": np.maximum(net, 0.0),
        "missing_kwh": np.maximum(problem.stations.energy_start_kwh - energy[-1], 0.0),
    }
    for name, array in values.items():
        for variable, value in zip(getattr(model, name).values(), array.ravel().tolist(), strict=True):
            variable.set_value(value, skip_validation=True)


def worst(model: Any) -> float:
    """By how much the values break a row or a box."""
    rows = [row for name in ROWS for row in getattr(model, name).values()]
    bodies = [(pyo.value(row.body), row.lower, row.upper) for row in rows]
    boxes = [(v.value, v.lb, v.ub) for v in model.component_data_objects(pyo.Var)]
    out = [0.0]
    for value, low, high in bodies + boxes:
        out += [low - value if low is not None else 0.0, value - high if high is not None else 0.0]
    return max(out)


def test_the_model_says_what_the_equations_say() -> None:
    problem = problem_by_hand(
        2,
        2,
        pv_kw=[[100, 0], [0, 0]],
        ev_kw=[[0, 60], [0, 60]],
        charge_efficiency_frac=0.8,
        discharge_efficiency_frac=0.5,
        self_discharge_frac=0.1,
        energy_min_kwh=10.0,
        degradation_eur_per_kwh=0.02,
    )
    form = market(problem)
    model = form.model
    assert {name: len(getattr(model, name)) for name in ROWS} == {
        "s1_energy": 4,
        "s2_position": 4,
        "s3_missing": 2,
        "m1_offered": 4,
        "m4_utility": 2,
    }
    assert all(
        v.is_continuous() and v.lb is not None and v.ub is not None for v in model.component_data_objects(pyo.Var)
    )
    assert (model.energy_kwh[0, 0].lb, model.energy_kwh[0, 0].ub) == (50.0, 50.0)
    assert (model.energy_kwh[2, 1].lb, model.energy_kwh[2, 1].ub) == (pytest.approx(8.1), 100.0)
    plan = MarketPlan(np.array([[20.0, 0.0], [-10.0, 0.0]]), np.zeros((2, 2)), np.array([[0.0, 0.0], [0.0, 10.0]]))
    set_plan(form, problem, plan)
    assert worst(model) == pytest.approx(0.0, abs=1e-12)
    # 50 kWh keep 45 and get 8; they keep 47.7 and lose 10; the other keeps 45, then 40.5
    assert [model.energy_kwh[t, 0].value for t in range(3)] == pytest.approx([50.0, 53.0, 37.7])
    assert [model.missing_kwh[n].value for n in range(2)] == pytest.approx([12.3, 9.5])
    # positions 80 and -60, then 10 and -50
    assert [model.imported_kw[1].value, model.exported_kw[0].value] == [40.0, 20.0]
    energy_eur = 0.5 * (40 * 0.10 - 20 * 0.048 + (80 + 10) * 0.008)
    expected = energy_eur + 0.5 * (30 * 0.02 + 10 * 0.50) + (12.3 + 9.5) * 0.10 / 0.8
    assert pyo.value(model.cost_eur) == pytest.approx(expected)
    model.charge_kw[0, 0].set_value(25.0)  # 5 kW more break (S1) by 2 kWh and (S2) by 5 kW
    assert pyo.value(model.s1_energy[0, 0].body) == pytest.approx(-2.0)
    assert pyo.value(model.s2_position[0, 0].body) == pytest.approx(105.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_every_plan_is_feasible_in_the_form_and_costs_the_same(seed: int) -> None:
    """Deliberate curtailment and unserved energy too, as caps of an operator bring them about."""
    problem, rng = lossy_at_random(seed), np.random.default_rng(seed)
    shape = problem.pv_kw.shape
    plan = problems.executed(problem, rng.uniform(-80.0, 80.0, shape))
    surplus, deficit = (np.maximum(sign * problems.positions_kw(problem, plan), 0.0) for sign in (1.0, -1.0))
    more = [
        rng.uniform(0.0, 1.0, shape) * np.minimum(surplus, problem.pv_kw - plan.curtailed_kw),
        rng.uniform(0.0, 1.0, shape) * np.minimum(deficit, problem.ev_kw - plan.unserved_kw),
    ]
    plan = MarketPlan(plan.storage_kw, plan.curtailed_kw + more[0], plan.unserved_kw + more[1])
    problems.check(problem, plan)
    form = market(problem)
    set_plan(form, problem, plan)
    assert worst(form.model) <= 1e-9
    assert pyo.value(form.model.cost_eur) == pytest.approx(problems.cost(problem, plan), abs=1e-9)
