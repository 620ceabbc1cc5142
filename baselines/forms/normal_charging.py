"""Normal charging as a Pyomo model: variables and one function per numbered constraint; knows no solver.

Variables, all in finite boxes (a proven bound charges reduced costs over them):

* ``charging[m]``: how many cars of a class charge in a slot, m a cell of `Classes`; a whole number in ``on_off``.
* ``unabsorbed_kw[i]``: DG surplus of a bus and slot that no car takes.
* ``group_kw[i]``: charging power of a slot, bus and connection, where a voltage row needs it.
* ``slack_pu[r]``: what a voltage row is outside its limit, at a price.

Sun, Yang, Yan (2017), 10.1186/s41601-017-0065-x, equations (5)-(8), in the form of model.md section 9.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.core.expr.numeric_expr import LinearExpression

from evcs_gym.baselines.forms.balance import balance
from evcs_gym.baselines.problems.normal_charging import (
    N_CONNECTIONS,
    Classes,
    NormalProblem,
    bus_power_kw,
    connection_of,
    connection_power_kw,
    one_power_per_bus,
)
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import SLOT_H


@dataclass(frozen=True, eq=False)
class VoltageRows:
    """Voltage rows of (7) for some bus-phases and slots, R rows; linear in the cars' power.

    slot, bus, phase: where, (R,). limit_pu: effective limit, moved inwards by the row's margin.
    base_pu: voltage without cars. sign: +1 for a lower limit, -1 for an upper one.
    gain_pu_per_kw: change of the voltage with the power of each charging bus on each connection (three phases,
    balanced), (R, C, 4). price_eur_per_pu: of the slack.
    """

    slot: IntArray
    bus: IntArray
    phase: IntArray
    limit_pu: FloatArray
    base_pu: FloatArray
    sign: FloatArray
    gain_pu_per_kw: FloatArray
    price_eur_per_pu: float

    def voltage_pu(self, group_kw: FloatArray) -> FloatArray:
        """Linear voltage of each row, (R,), for charging power by slot, bus and connection (T, C, 4)."""
        return np.asarray(self.base_pu + np.einsum("rcg,rcg->r", self.gain_pu_per_kw, group_kw[self.slot]))

    def slack_pu(self, group_kw: FloatArray) -> FloatArray:
        """What each row is outside its limit, (R,), for charging power by slot, bus and connection (T, C, 4)."""
        return np.asarray(np.maximum(self.sign * (self.limit_pu - self.voltage_pu(group_kw)), 0.0))


@dataclass(frozen=True, eq=False)
class NormalForm:
    """The model and its variables: charging in the order of the cells (M,), slack in that of the rows.

    unabsorbed_place: flat index slot * C + bus. group_place: flat index (slot * C + bus) * 4 + connection.
    """

    model: pyo.ConcreteModel
    charging: list[Any]
    unabsorbed: list[Any]
    unabsorbed_place: IntArray
    group: list[Any]
    group_place: IntArray
    slack: list[Any]


def normal_charging(problem: NormalProblem, classes: Classes, rows: VoltageRows | None = None) -> NormalForm:
    """min (5) subject to (8), and to (7) where ``rows`` are given."""
    model = pyo.ConcreteModel(name=f"normal_charging_{problem.mode}")
    charging = _charging_variables(model, problem, classes)
    if problem.balance == "exchange":
        exchange_eur_per_kwh = problem.gap_eur_per_kwh
        gap = c5_unabsorbed(model, problem, classes, charging)
        c5_whole_cars(model, problem, classes, charging)
    else:
        exchange_eur_per_kwh, gap = 0.0, _other_balance(model, problem, classes, charging)
    terms = [c6_charging_cost(problem, classes, charging, exchange_eur_per_kwh), gap]
    c8_full_at_departure(model, classes, charging)
    if rows is not None:
        terms.append(c7_voltage(model, problem, classes, charging, rows))
    model.cost_eur = pyo.Objective(
        expr=LinearExpression(
            constant=sum(term.constant for term in terms),
            linear_coefs=[coefficient for term in terms for coefficient in term.linear_coefs],
            linear_vars=[variable for term in terms for variable in term.linear_vars],
        )
    )
    _, first = _cells_by_bus_and_slot(problem, classes)
    return NormalForm(
        model=model,
        charging=charging,
        unabsorbed=list(model.unabsorbed_kw.values()) if problem.balance == "exchange" else [],
        unabsorbed_place=_surplus_places(problem, first),
        group=[] if rows is None else list(model.group_kw.values()),
        group_place=np.array([] if rows is None else list(model.group_kw.keys()), dtype=np.int64),
        slack=[] if rows is None else list(model.slack_pu.values()),
    )


def point_of_plan(
    form: NormalForm, problem: NormalProblem, cells: FloatArray, power_kw: FloatArray, rows: VoltageRows | None
) -> tuple[list[Any], FloatArray]:
    """All variables and their values at a plan (T, S) with its cells (M,); slacks take their least value."""
    total_kw = (problem.net_kw + bus_power_kw(problem, power_kw)).ravel()
    values = [cells, np.maximum(-total_kw[form.unabsorbed_place], 0.0)]
    if rows is not None:
        group_kw = connection_power_kw(problem, power_kw)
        values += [group_kw.ravel()[form.group_place], rows.slack_pu(group_kw)]
    return [*form.charging, *form.unabsorbed, *form.group, *form.slack], np.concatenate(values)


def _linear(coefficients: FloatArray, variables: Sequence[Any], constant: float = 0.0) -> LinearExpression:
    return LinearExpression(constant=constant, linear_coefs=coefficients.tolist(), linear_vars=list(variables))


def _charging_variables(model: pyo.ConcreteModel, problem: NormalProblem, classes: Classes) -> list[Any]:
    largest = classes.n_cars[classes.cell_class].tolist()
    domain = pyo.Integers if problem.mode == "on_off" else pyo.Reals
    model.charging = pyo.Var(range(len(largest)), domain=domain, bounds=lambda _, m: (0, largest[m]))
    return list(model.charging.values())


def _cells_by_bus_and_slot(problem: NormalProblem, classes: Classes) -> tuple[IntArray, IntArray]:
    """Cells sorted by (slot, bus), and where each pair begins, (T * C + 1,)."""
    n_slots, n_buses = problem.net_kw.shape
    place = classes.cell_slot * n_buses + classes.bus[classes.cell_class]
    order = np.argsort(place, kind="stable")
    return order, np.searchsorted(place[order], np.arange(n_slots * n_buses + 1))


def _surplus_places(problem: NormalProblem, first: IntArray) -> IntArray:
    """Pairs (slot, bus), as flat indices, with a DG surplus and a car to take it."""
    return np.flatnonzero((problem.net_kw.ravel() < 0.0) & (np.diff(first) > 0))


def _other_balance(
    model: pyo.ConcreteModel, problem: NormalProblem, classes: Classes, charging: Sequence[Any]
) -> LinearExpression:
    """What stands in the place of the first term of (5), see `BALANCES`."""
    order, first = _cells_by_bus_and_slot(problem, classes)
    power, n_cars = classes.power_kw[classes.cell_class], classes.n_cars[classes.cell_class]
    cells = {int(place): order[first[place] : first[place + 1]] for place in np.flatnonzero(np.diff(first) > 0)}
    draws = {place: (power[own].tolist(), [charging[m] for m in own]) for place, own in cells.items()}
    most_kw = np.zeros(problem.net_kw.shape)
    most_kw.ravel()[list(cells)] = [float(power[own] @ n_cars[own]) for own in cells.values()]
    return balance(model, problem.balance, problem.net_kw, draws, most_kw, problem.gap_eur_per_kwh * SLOT_H)


def c6_charging_cost(
    problem: NormalProblem, classes: Classes, charging: Sequence[Any], exchange_eur_per_kwh: float
) -> LinearExpression:
    """(6), and the part of (5) that is linear: |x| = x + 2 max(0, -x) with x = base + charging - DG."""
    per_kwh = problem.energy_weight * problem.import_eur_per_kwh + exchange_eur_per_kwh
    kwh = classes.power_kw[classes.cell_class] * SLOT_H
    constant = exchange_eur_per_kwh * SLOT_H * float(problem.net_kw.sum())
    return _linear(per_kwh[classes.cell_slot] * kwh, charging, constant)


def c5_unabsorbed(
    model: pyo.ConcreteModel, problem: NormalProblem, classes: Classes, charging: Sequence[Any]
) -> LinearExpression:
    """(5), the other part: unabsorbed >= DG - base - charging, which costs twice; a constant where no car is."""
    order, first = _cells_by_bus_and_slot(problem, classes)
    places, net = _surplus_places(problem, first), problem.net_kw.ravel()
    power = classes.power_kw[classes.cell_class]
    model.unabsorbed_kw = pyo.Var(range(len(places)), bounds=lambda _, i: (0.0, float(-net[places[i]])))
    unabsorbed = list(model.unabsorbed_kw.values())

    def row(_: Any, i: int) -> Any:
        cells = order[first[places[i]] : first[places[i] + 1]]
        body = _linear(np.append(power[cells], 1.0), [*(charging[m] for m in cells), unabsorbed[i]])
        return (float(-net[places[i]]), body, None)

    model.c5_unabsorbed = pyo.Constraint(range(len(places)), rule=row)
    price = 2.0 * problem.gap_eur_per_kwh * SLOT_H
    alone = np.maximum(-net, 0.0)
    alone[places] = 0.0
    return _linear(np.full(len(places), price), unabsorbed, price * float(alone.sum()))


def c5_whole_cars(model: pyo.ConcreteModel, problem: NormalProblem, classes: Classes, charging: Sequence[Any]) -> None:
    """(5) interpolated between whole numbers of cars, where all cars of a bus have one power q.

    With n cars the unabsorbed power max(0, surplus - q n) is convex in n; its chord between the whole numbers around
    surplus / q cuts off fractional n. What remains is a flow with a cost that bends at whole numbers only: its
    relaxation has whole vertices, so that the LP is exact.
    """
    if problem.mode != "on_off":
        return
    order, first = _cells_by_bus_and_slot(problem, classes)
    places, n_buses = _surplus_places(problem, first), problem.net_kw.shape[1]
    surplus = -problem.net_kw.ravel()[places]
    power = one_power_per_bus(classes, n_buses)[places % n_buses]
    n_below = np.floor(surplus / power)
    rest = surplus - n_below * power  # unabsorbed when n_below cars charge, 0 with one more
    chosen = np.flatnonzero(np.isfinite(power))
    unabsorbed = list(model.unabsorbed_kw.values())

    def row(_: Any, i: int) -> Any:
        cells = order[first[places[i]] : first[places[i] + 1]]
        body = _linear(np.append(np.full(len(cells), rest[i]), 1.0), [*(charging[m] for m in cells), unabsorbed[i]])
        return (float(rest[i] * (n_below[i] + 1.0)), body, None)

    model.c5_whole_cars = pyo.Constraint(chosen.tolist(), rule=row)


def c8_full_at_departure(model: pyo.ConcreteModel, classes: Classes, charging: Sequence[Any]) -> None:
    """(8): every car has charged in as many slots as it needs when it leaves."""
    need = (classes.need_slots * classes.n_cars).tolist()

    def row(_: Any, k: int) -> Any:
        cells = charging[classes.first_cell[k] : classes.first_cell[k + 1]]
        return (need[k], _linear(np.ones(len(cells)), cells), need[k])

    model.c8_full_at_departure = pyo.Constraint(range(len(need)), rule=row)


def c7_voltage(
    model: pyo.ConcreteModel, problem: NormalProblem, classes: Classes, charging: Sequence[Any], rows: VoltageRows
) -> LinearExpression:
    """(7): sign (base + gain . power - limit) + slack >= 0 for every row; returns the price of the slack."""
    largest = _group_variables(model, problem, classes, charging, rows)
    n_buses = problem.net_kw.shape[1]
    shape = (len(problem.net_kw), n_buses, N_CONNECTIONS)
    groups_of_slot: dict[int, list[int]] = {}
    for group in largest:
        groups_of_slot.setdefault(group // (n_buses * N_CONNECTIONS), []).append(group)
    most = np.zeros(shape)
    most.ravel()[list(largest)] = list(largest.values())
    worst = _largest_slack(rows, most)
    model.slack_pu = pyo.Var(range(len(rows.slot)), bounds=lambda _, r: (0.0, float(worst[r])))
    gain = rows.gain_pu_per_kw.reshape(len(rows.slot), -1)

    def row(_: Any, r: int) -> Any:
        groups = np.array(groups_of_slot.get(int(rows.slot[r]), []), dtype=np.int64)
        coefficients = rows.sign[r] * gain[r, groups % (n_buses * N_CONNECTIONS)]
        body = _linear(np.append(coefficients, 1.0), [*(model.group_kw[g] for g in groups.tolist()), model.slack_pu[r]])
        return (float(rows.sign[r] * (rows.limit_pu[r] - rows.base_pu[r])), body, None)

    model.c7_voltage = pyo.Constraint(range(len(rows.slot)), rule=row)
    return _linear(np.full(len(rows.slot), rows.price_eur_per_pu), list(model.slack_pu.values()))


def _largest_slack(rows: VoltageRows, most_kw: FloatArray) -> FloatArray:
    """Slack that suffices whatever the cars do, (R,): every group at the end of its range that is worse."""
    harm = np.minimum(rows.sign[:, None, None] * rows.gain_pu_per_kw, 0.0) * most_kw[rows.slot]
    return np.asarray(np.maximum(rows.sign * (rows.limit_pu - rows.base_pu) - harm.sum(axis=(1, 2)), 0.0))


def _group_variables(
    model: pyo.ConcreteModel, problem: NormalProblem, classes: Classes, charging: Sequence[Any], rows: VoltageRows
) -> dict[int, float]:
    """Power of each slot, bus and connection in the rows' slots, with its definition; largest power by flat index."""
    n_buses = problem.net_kw.shape[1]
    k = classes.cell_class
    group = (classes.cell_slot * n_buses + classes.bus[k]) * N_CONNECTIONS + connection_of(classes.phase)[k]
    cells = np.flatnonzero(np.isin(classes.cell_slot, rows.slot))
    cells = cells[np.argsort(group[cells], kind="stable")]
    present, first = np.unique(group[cells], return_index=True)
    members = dict(zip(present.tolist(), np.split(cells, first[1:]), strict=True)) if len(present) else {}
    power, n_cars = classes.power_kw[k], classes.n_cars[k]
    largest = {g: float(power[m] @ n_cars[m]) for g, m in members.items()}
    model.group_kw = pyo.Var(list(members), bounds=lambda _, g: (0.0, largest[g]))

    def row(_: Any, g: int) -> Any:
        m = members[g]
        return (0.0, _linear(np.append(power[m], -1.0), [*(charging[cell] for cell in m), model.group_kw[g]]), 0.0)

    model.group_power = pyo.Constraint(list(members), rule=row)
    return largest
