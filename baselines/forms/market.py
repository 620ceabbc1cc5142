"""The market's day as a Pyomo model: variables and one function per numbered equation; knows no solver.

Variables, all in finite boxes (a proven bound charges reduced costs over them), by slot t and station n:

* ``charge_kw``, ``discharge_kw``, ``energy_kwh`` (before each slot, and at the end).
* ``curtailed_kw``, ``unserved_kw``, ``position_kw`` (surplus > 0), ``offered_kw`` >= surplus.
* ``imported_kw``, ``exported_kw`` by slot: with the utility, of all stations together.
* ``missing_kwh`` by station, at the end of the day.

A storage that charges and discharges at once only loses: what it burns could be curtailed, or not bought, for less. So
the linear programme needs no direction. (C) is linear too: with N = Q - D, what the community pays in a slot is
import max(0, -N) - (export + fee) max(0, N) + fee Q, convex since export + fee < import.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.core.expr.numeric_expr import LinearExpression

from evcs_gym.baselines.problems.market import MarketProblem
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import SLOT_H

Terms = list[tuple[FloatArray, list[Any]]]
"""Parts of a linear expression: coefficients and their variables."""


@dataclass(frozen=True, eq=False)
class MarketForm:
    """The model and the variables of its plan, each list (T * S,) by slot, then station."""

    model: pyo.ConcreteModel
    charge: list[Any]
    discharge: list[Any]
    curtailed: list[Any]
    unserved: list[Any]


def market(problem: MarketProblem) -> MarketForm:
    """min (C) subject to (S1)-(S3), the limits of storage and connection; no network."""
    model = pyo.ConcreteModel(name="market")
    model.slots, model.stations = range(problem.n_slots), range(len(problem.stations))
    _add_variables(model, problem)
    s1_energy(model, problem)
    s2_position(model, problem)
    m1_offered(model)
    m4_utility(model)
    terms = [*c_trade(model, problem), *s3_missing(model, problem), *s4_wear_and_unserved(model, problem)]
    model.cost_eur = pyo.Objective(expr=_linear(terms))
    return MarketForm(
        model=model,
        charge=list(model.charge_kw.values()),
        discharge=list(model.discharge_kw.values()),
        curtailed=list(model.curtailed_kw.values()),
        unserved=list(model.unserved_kw.values()),
    )


def _linear(terms: Terms) -> LinearExpression:
    return LinearExpression(
        constant=0.0,
        linear_coefs=[float(factor) for factors, _ in terms for factor in factors],
        linear_vars=[variable for _, variables in terms for variable in variables],
    )


def _row(low: float | None, high: float | None, factors: Sequence[float], variables: Sequence[Any]) -> Any:
    return (low, LinearExpression(constant=0.0, linear_coefs=list(factors), linear_vars=list(variables)), high)


def _add_variables(model: pyo.ConcreteModel, problem: MarketProblem) -> None:
    own = problem.stations
    power, limit = own.storage_kw.tolist(), own.connection_kw.tolist()
    pv, ev, floor = problem.pv_kw.tolist(), problem.ev_kw.tolist(), problem.floor_kwh.tolist()
    first, full = own.energy_start_kwh.tolist(), own.storage_kwh.tolist()
    cells, all_kw = (model.slots, model.stations), sum(limit)
    model.charge_kw = pyo.Var(*cells, bounds=lambda _, t, n: (0.0, power[n]))
    model.discharge_kw = pyo.Var(*cells, bounds=lambda _, t, n: (0.0, power[n]))
    model.curtailed_kw = pyo.Var(*cells, bounds=lambda _, t, n: (0.0, pv[t][n]))
    model.unserved_kw = pyo.Var(*cells, bounds=lambda _, t, n: (0.0, ev[t][n]))
    model.position_kw = pyo.Var(*cells, bounds=lambda _, t, n: (-limit[n], limit[n]))
    model.offered_kw = pyo.Var(*cells, bounds=lambda _, t, n: (0.0, limit[n]))
    model.energy_kwh = pyo.Var(
        range(problem.n_slots + 1),
        model.stations,
        bounds=lambda _, t, n: (floor[t][n], full[n]) if t else (first[n], first[n]),
    )
    model.imported_kw = pyo.Var(model.slots, bounds=(0.0, all_kw))
    model.exported_kw = pyo.Var(model.slots, bounds=(0.0, all_kw))
    model.missing_kwh = pyo.Var(model.stations, bounds=lambda _, n: (0.0, first[n]))


def s1_energy(model: pyo.ConcreteModel, problem: MarketProblem) -> None:
    """(S1): energy after = energy before (1 - sigma) + slot (eta_c charge - discharge / eta_d)."""
    own = problem.stations
    kept = (1.0 - own.self_discharge_frac).tolist()
    into = (SLOT_H * own.charge_efficiency_frac).tolist()
    out = (SLOT_H / own.discharge_efficiency_frac).tolist()

    def row(m: Any, t: int, n: int) -> Any:
        variables = [m.energy_kwh[t + 1, n], m.energy_kwh[t, n], m.charge_kw[t, n], m.discharge_kw[t, n]]
        return _row(0.0, 0.0, [1.0, -kept[n], -into[n], out[n]], variables)

    model.s1_energy = pyo.Constraint(model.slots, model.stations, rule=row)


def s2_position(model: pyo.ConcreteModel, problem: MarketProblem) -> None:
    """(S2): position = pv - curtailed - (ev - unserved) - charge + discharge."""
    surplus = (problem.pv_kw - problem.ev_kw).tolist()

    def row(m: Any, t: int, n: int) -> Any:
        plus = [m.position_kw[t, n], m.curtailed_kw[t, n], m.charge_kw[t, n]]
        minus = [m.unserved_kw[t, n], m.discharge_kw[t, n]]
        return _row(surplus[t][n], surplus[t][n], [1.0, 1.0, 1.0, -1.0, -1.0], [*plus, *minus])

    model.s2_position = pyo.Constraint(model.slots, model.stations, rule=row)


def s3_missing(model: pyo.ConcreteModel, problem: MarketProblem) -> Terms:
    """(S3): missing >= start - energy at the end, bought at the dearest import price; returns its price."""
    first, last = problem.stations.energy_start_kwh.tolist(), problem.n_slots

    def row(m: Any, n: int) -> Any:
        return _row(first[n], None, [1.0, 1.0], [m.missing_kwh[n], m.energy_kwh[last, n]])

    model.s3_missing = pyo.Constraint(model.stations, rule=row)
    return [(problem.missing_eur_per_kwh, list(model.missing_kwh.values()))]


def s4_wear_and_unserved(model: pyo.ConcreteModel, problem: MarketProblem) -> Terms:
    """(S4): the price of degradation and of unserved energy."""
    own, n_slots = problem.stations, problem.n_slots
    wear = np.tile(SLOT_H * own.degradation_eur_per_kwh, n_slots)
    lost = np.tile(SLOT_H * own.lost_load_eur_per_kwh, n_slots)
    moved = [list(model.charge_kw.values()), list(model.discharge_kw.values())]
    return [(wear, moved[0]), (wear, moved[1]), (lost, list(model.unserved_kw.values()))]


def m1_offered(model: pyo.ConcreteModel) -> None:
    """(M1): Q is the sum of offered >= position, offered >= 0; at the optimum it is the surplus, or free."""

    def row(m: Any, t: int, n: int) -> Any:
        return _row(0.0, None, [1.0, -1.0], [m.offered_kw[t, n], m.position_kw[t, n]])

    model.m1_offered = pyo.Constraint(model.slots, model.stations, rule=row)


def m4_utility(model: pyo.ConcreteModel) -> None:
    """(M4): import - export = D - Q, the rest that the stations do not trade among themselves."""

    def row(m: Any, t: int) -> Any:
        positions = [m.position_kw[t, n] for n in m.stations]
        return _row(0.0, 0.0, [1.0, -1.0, *[1.0] * len(positions)], [m.imported_kw[t], m.exported_kw[t], *positions])

    model.m4_utility = pyo.Constraint(model.slots, rule=row)


def c_trade(model: pyo.ConcreteModel, problem: MarketProblem) -> Terms:
    """(C), what goes through the connections: import max(0, -N) - (export + fee) max(0, N) + fee Q."""
    fee = problem.network_fee_eur_per_kwh
    bought, sold = SLOT_H * problem.import_eur_per_kwh, -SLOT_H * (problem.export_eur_per_kwh + fee)
    offered = list(model.offered_kw.values())
    return [
        (bought, list(model.imported_kw.values())),
        (sold, list(model.exported_kw.values())),
        (np.full(len(offered), SLOT_H * fee), offered),
    ]
