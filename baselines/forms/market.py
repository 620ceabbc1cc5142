"""The market's day as a Pyomo model: variables and one function per numbered equation; knows no solver.

Variables, all in finite boxes (a proven bound charges reduced costs over them), by slot t and station n:

* ``charge_kw``, ``discharge_kw``, ``energy_kwh`` (before each slot, and at the end).
* ``curtailed_kw``, ``unserved_kw``, ``position_kw`` (surplus > 0), ``offered_kw`` >= surplus.
* ``imported_kw``, ``exported_kw`` by slot: with the utility, of all stations together.
* ``missing_kwh`` by station, at the end of the day.

A storage that charges and discharges at once only loses: what it burns could be curtailed, or not bought, for less. So
the linear programme needs no direction. (C) is linear too: with N = Q - D, what the community pays in a slot is
import max(0, -N) - (export + fee) max(0, N) + fee Q, convex since export + fee < import.

That is the programme of the bound: every policy is in it. ``exact`` adds what the environment does without operator,
with binaries where it matters, so that its optimum is the best plan that can be played: nobody discharges below the
least energy, and only where a connection is full, after the storage has moved, sun is curtailed or drivers wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.core.expr.numeric_expr import LinearExpression

from evcs_gym.baselines.problems.market import MarketProblem
from evcs_gym.envs.types import BoolArray, FloatArray
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


def market(problem: MarketProblem, exact: bool = False) -> MarketForm:
    """min (C) subject to (S1)-(S3), the limits of storage and connection; no network. See the module for ``exact``."""
    model = pyo.ConcreteModel(name="market")
    model.slots, model.stations = range(problem.n_slots), range(len(problem.stations))
    _add_variables(model, problem)
    s1_energy(model, problem)
    s2_position(model, problem)
    m1_offered(model)
    m4_utility(model)
    if exact:
        s1_least_energy(model, problem)
        n3_storage_before_sun(model, problem)
        n3_storage_before_drivers(model, problem)
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


def s1_least_energy(model: pyo.ConcreteModel, problem: MarketProblem) -> None:
    """(S1) as executed: a storage that discharges ends the slot at its least energy or above."""
    own, floor, power = problem.stations, problem.floor_kwh, problem.stations.storage_kw.tolist()
    cells = [(t, n) for t in model.slots for n in model.stations if floor[t + 1, n] < own.energy_min_kwh[n]]
    drop = (own.energy_min_kwh - floor).tolist()
    model.discharging = pyo.Var(cells, domain=pyo.Binary)

    def only_then(m: Any, t: int, n: int) -> Any:
        return _row(None, 0.0, [1.0, -power[n]], [m.discharge_kw[t, n], m.discharging[t, n]])

    def above(m: Any, t: int, n: int) -> Any:
        low = float(floor[t + 1, n])
        return _row(low, None, [1.0, -drop[t + 1][n]], [m.energy_kwh[t + 1, n], m.discharging[t, n]])

    model.s1_discharging = pyo.Constraint(cells, rule=only_then)
    model.s1_least_energy = pyo.Constraint(cells, rule=above)


def n3_storage_before_sun(model: pyo.ConcreteModel, problem: MarketProblem) -> None:
    """(N3) at a full connection: sun is curtailed only if the storage charges with all its power, or is full."""
    own = problem.stations
    cells = _only_there(model, model.curtailed_kw, problem.pv_kw - problem.ev_kw + own.storage_kw > own.connection_kw)
    pv, power, full = problem.pv_kw.tolist(), own.storage_kw.tolist(), own.storage_kwh.tolist()
    model.curtailing = pyo.Var(cells, domain=pyo.Binary)
    model.full = pyo.Var(cells, domain=pyo.Binary)

    def only_then(m: Any, t: int, n: int) -> Any:
        return _row(None, 0.0, [1.0, -pv[t][n]], [m.curtailed_kw[t, n], m.curtailing[t, n]])

    def not_out(m: Any, t: int, n: int) -> Any:
        return _row(None, power[n], [1.0, power[n]], [m.discharge_kw[t, n], m.curtailing[t, n]])

    def all_power(m: Any, t: int, n: int) -> Any:
        variables = [m.charge_kw[t, n], m.curtailing[t, n], m.full[t, n]]
        return _row(0.0, None, [1.0, -power[n], power[n]], variables)

    def or_full(m: Any, t: int, n: int) -> Any:
        variables = [m.energy_kwh[t + 1, n], m.curtailing[t, n], m.full[t, n]]
        return _row(-full[n], None, [1.0, -full[n], -full[n]], variables)

    for rule in (only_then, not_out, all_power, or_full):
        setattr(model, f"n3_sun_{rule.__name__}", pyo.Constraint(cells, rule=rule))


def n3_storage_before_drivers(model: pyo.ConcreteModel, problem: MarketProblem) -> None:
    """(N3) at a full connection: drivers wait only if the storage discharges with all its power, or is at its least
    energy, and then for no more than the connection lacks."""
    own = problem.stations
    cells = _only_there(model, model.unserved_kw, problem.ev_kw - problem.pv_kw + own.storage_kw > own.connection_kw)
    ev, power, limit = problem.ev_kw.tolist(), own.storage_kw.tolist(), own.connection_kw.tolist()
    full, room = own.storage_kwh.tolist(), (own.storage_kwh - own.energy_min_kwh).tolist()
    model.waiting = pyo.Var(cells, domain=pyo.Binary)
    model.empty = pyo.Var(cells, domain=pyo.Binary)

    def only_then(m: Any, t: int, n: int) -> Any:
        return _row(None, 0.0, [1.0, -ev[t][n]], [m.unserved_kw[t, n], m.waiting[t, n]])

    def connection_full(m: Any, t: int, n: int) -> Any:
        return _row(None, limit[n], [1.0, 2.0 * limit[n]], [m.position_kw[t, n], m.waiting[t, n]])

    def not_in(m: Any, t: int, n: int) -> Any:
        return _row(None, power[n], [1.0, power[n]], [m.charge_kw[t, n], m.waiting[t, n]])

    def all_power(m: Any, t: int, n: int) -> Any:
        variables = [m.discharge_kw[t, n], m.waiting[t, n], m.empty[t, n]]
        return _row(0.0, None, [1.0, -power[n], power[n]], variables)

    def or_empty(m: Any, t: int, n: int) -> Any:
        variables = [m.energy_kwh[t + 1, n], m.waiting[t, n], m.empty[t, n]]
        return _row(None, full[n] + room[n], [1.0, room[n], room[n]], variables)

    for rule in (only_then, connection_full, not_in, all_power, or_empty):
        setattr(model, f"n3_drivers_{rule.__name__}", pyo.Constraint(cells, rule=rule))


def _only_there(model: pyo.ConcreteModel, variable: Any, where: BoolArray) -> list[tuple[int, int]]:
    """The marked cells (T, S); elsewhere the variable is zero."""
    for (t, n), entry in variable.items():
        if not where[t, n]:
            entry.setub(0.0)
    return [(t, n) for t in model.slots for n in model.stations if where[t, n]]


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
