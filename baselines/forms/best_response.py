"""One station's best response as a Pyomo model: variables and one function per equation; knows no solver.

In each slot one of few ways is chosen; on each the profit is linear in the storage power, which has one sign there. The
programme with shares of ways instead of a choice is the concave envelope of the profit in every slot. Variables:

* ``chosen`` by way, binary; ``power_kw`` by way, charging > 0, zero where the way is not chosen.
* ``energy_kwh`` before each slot, and at the end. ``missing_kwh`` at the end of the day.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.core.expr.numeric_expr import LinearExpression

from evcs_gym.baselines.problems.best_response import ResponseProblem, Way
from evcs_gym.envs.units import SLOT_H


@dataclass(frozen=True, eq=False)
class ResponseForm:
    """The model and the variables of its plan, each list (K,) in the order of the ways."""

    model: pyo.ConcreteModel
    chosen: list[Any]
    power: list[Any]


def best_response(problem: ResponseProblem, ways: Sequence[Way]) -> ResponseForm:
    """min -profit subject to (S1), (S3), the limits of the storage and of the ways."""
    model = pyo.ConcreteModel(name="best response")
    model.slots, model.ways = range(problem.n_slots), range(len(ways))
    of_slot: list[list[int]] = [[] for _ in model.slots]
    for k, way in enumerate(ways):
        of_slot[way.slot].append(k)
    _add_variables(model, problem, ways)
    one_way(model, of_slot)
    within_the_way(model, ways)
    s1_energy(model, problem, ways, of_slot)
    s1_least_energy(model, problem, ways, of_slot)
    n3_full(model, problem, ways, of_slot)
    n3_empty(model, problem, ways, of_slot)
    s3_missing(model, problem)
    model.cost_eur = pyo.Objective(expr=cost(model, problem, ways))
    return ResponseForm(model, list(model.chosen.values()), list(model.power_kw.values()))


def _row(low: float | None, high: float | None, factors: Sequence[float], variables: Sequence[Any]) -> Any:
    return (low, LinearExpression(constant=0.0, linear_coefs=list(factors), linear_vars=list(variables)), high)


def _add_variables(model: pyo.ConcreteModel, problem: ResponseProblem, ways: Sequence[Way]) -> None:
    first, most = float(problem.assets.energy_start_kwh[0]), float(problem.assets.storage_kwh[0])
    floor = problem.floor_kwh.tolist()
    model.chosen = pyo.Var(model.ways, domain=pyo.Binary)
    model.power_kw = pyo.Var(
        model.ways, bounds=lambda _, k: (min(float(ways[k].low_kw), 0.0), max(float(ways[k].high_kw), 0.0))
    )
    model.energy_kwh = pyo.Var(
        range(problem.n_slots + 1), bounds=lambda _, t: (floor[t], most) if t else (first, first)
    )
    model.missing_kwh = pyo.Var(bounds=(0.0, first))


def one_way(model: pyo.ConcreteModel, of_slot: Sequence[Sequence[int]]) -> None:
    """In each slot one way is chosen."""

    def row(m: Any, t: int) -> Any:
        return _row(1.0, 1.0, [1.0] * len(of_slot[t]), [m.chosen[k] for k in of_slot[t]])

    model.one_way = pyo.Constraint(model.slots, rule=row)


def within_the_way(model: pyo.ConcreteModel, ways: Sequence[Way]) -> None:
    """low chosen <= power <= high chosen."""

    def above(m: Any, k: int) -> Any:
        return _row(0.0, None, [1.0, -float(ways[k].low_kw)], [m.power_kw[k], m.chosen[k]])

    def below(m: Any, k: int) -> Any:
        return _row(None, 0.0, [1.0, -float(ways[k].high_kw)], [m.power_kw[k], m.chosen[k]])

    model.above_the_least = pyo.Constraint(model.ways, rule=above)
    model.below_the_most = pyo.Constraint(model.ways, rule=below)


def s1_energy(
    model: pyo.ConcreteModel, problem: ResponseProblem, ways: Sequence[Way], of_slot: Sequence[Sequence[int]]
) -> None:
    """(S1): energy after = energy before (1 - sigma) + slot (eta_c charge - discharge / eta_d)."""
    kept = 1.0 - float(problem.assets.self_discharge_frac[0])
    into = SLOT_H * float(problem.assets.charge_efficiency_frac[0])
    out = SLOT_H / float(problem.assets.discharge_efficiency_frac[0])

    def row(m: Any, t: int) -> Any:
        gains = [-out if ways[k].discharges else -into for k in of_slot[t]]
        powers = [m.power_kw[k] for k in of_slot[t]]
        return _row(0.0, 0.0, [1.0, -kept, *gains], [m.energy_kwh[t + 1], m.energy_kwh[t], *powers])

    model.s1_energy = pyo.Constraint(model.slots, rule=row)


def s1_least_energy(
    model: pyo.ConcreteModel, problem: ResponseProblem, ways: Sequence[Way], of_slot: Sequence[Sequence[int]]
) -> None:
    """(S1) as executed: a storage that discharges ends the slot at its least energy or above."""
    least, floor = float(problem.assets.energy_min_kwh[0]), problem.floor_kwh.tolist()

    def row(m: Any, t: int) -> Any:
        giving = [m.chosen[k] for k in of_slot[t] if ways[k].discharges]
        low = floor[t + 1]
        return _row(low, None, [1.0, *[low - least] * len(giving)], [m.energy_kwh[t + 1], *giving])

    slots = [t for t in model.slots if floor[t + 1] < least]
    model.s1_least_energy = pyo.Constraint(slots, rule=row)


def n3_full(
    model: pyo.ConcreteModel, problem: ResponseProblem, ways: Sequence[Way], of_slot: Sequence[Sequence[int]]
) -> None:
    """(N3) at a full connection: sun is curtailed where the storage is full after the slot."""
    full = float(problem.assets.storage_kwh[0])

    def row(m: Any, t: int) -> Any:
        marked = [m.chosen[k] for k in of_slot[t] if ways[k].full]
        return _row(0.0, None, [1.0, *[-full] * len(marked)], [m.energy_kwh[t + 1], *marked])

    model.n3_full = pyo.Constraint(sorted({way.slot for way in ways if way.full}), rule=row)


def n3_empty(
    model: pyo.ConcreteModel, problem: ResponseProblem, ways: Sequence[Way], of_slot: Sequence[Sequence[int]]
) -> None:
    """(N3) at a full connection: drivers wait where the storage is at its least energy after the slot."""
    full, least = float(problem.assets.storage_kwh[0]), float(problem.assets.energy_min_kwh[0])

    def row(m: Any, t: int) -> Any:
        marked = [m.chosen[k] for k in of_slot[t] if ways[k].empty]
        return _row(None, full, [1.0, *[full - least] * len(marked)], [m.energy_kwh[t + 1], *marked])

    model.n3_empty = pyo.Constraint(sorted({way.slot for way in ways if way.empty}), rule=row)


def s3_missing(model: pyo.ConcreteModel, problem: ResponseProblem) -> None:
    """(S3): missing >= start - energy at the end."""
    first = float(problem.assets.energy_start_kwh[0])
    row = _row(first, None, [1.0, 1.0], [model.missing_kwh, model.energy_kwh[problem.n_slots]])
    model.s3_missing = pyo.Constraint(expr=row)


def cost(model: pyo.ConcreteModel, problem: ResponseProblem, ways: Sequence[Way]) -> LinearExpression:
    """(S3), (S4): the price of missing energy less what the chosen ways earn."""
    factors = [-float(value) for way in ways for value in (way.base_eur, way.slope_eur_per_kw)]
    variables = [variable for k in model.ways for variable in (model.chosen[k], model.power_kw[k])]
    return LinearExpression(
        constant=0.0,
        linear_coefs=[problem.missing_eur_per_kwh, *np.asarray(factors).tolist()],
        linear_vars=[model.missing_kwh, *variables],
    )
