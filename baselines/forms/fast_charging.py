"""Fast charging as a Pyomo model: variables and one function per printed equation; knows no solver.

Variables, all in finite boxes (a proven bound charges reduced costs over them):

* ``dispatch[a]``: whether a request goes to a station, a an arc of `Arcs`.
* ``stranded[r]``: whether a request is stranded.
* ``unabsorbed_kw[i]``: DG surplus of a slot and station that no charge takes.
* ``load_kw[i]``: charging power of a slot and station, where a voltage row needs it.
* ``slack_pu[r]``: what a voltage row is outside its limit, at a price.

Sun, Yang, Yan (2017), 10.1186/s41601-017-0065-x, equations (1)-(4), in the form of model.md section 8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.core.expr.numeric_expr import LinearExpression

from evcs_gym.baselines.forms.balance import balance, balance_point
from evcs_gym.baselines.forms.normal_charging import VoltageRows
from evcs_gym.baselines.problems.fast_charging import (
    Arcs,
    FastProblem,
    balanced_kw,
    chosen_arcs,
    new_load_kw,
)
from evcs_gym.envs.types import FloatArray, IntArray

EQUAL_POWER_RTOL = 1e-9
"""Powers within this are one power."""


@dataclass(frozen=True, eq=False)
class FastForm:
    """The model and its variables: dispatch in the order of the arcs (A,), stranded in that of the requests (R,).

    surplus_place, load_place: flat index slot * J + station of unabsorbed and load variables.
    """

    model: pyo.ConcreteModel
    dispatch: list[Any]
    stranded: list[Any]
    unabsorbed: list[Any]
    surplus_place: IntArray
    load: list[Any]
    load_place: IntArray
    slack: list[Any]


def fast_charging(problem: FastProblem, arcs: Arcs, rows: VoltageRows | None = None) -> FastForm:
    """min (1) subject to (4), plugs, and (3) where ``rows`` are given; `stranded_last` is added where needed."""
    model = pyo.ConcreteModel(name="fast_charging")
    dispatch = c4_within_reach(model, arcs)
    model.stranded = pyo.Var(range(problem.n_requests), domain=pyo.Integers, bounds=(0, 1))
    stranded = list(model.stranded.values())
    exchange = problem.balance == "exchange"
    surplus_place = _surplus_places(problem, arcs) if exchange else np.zeros(0, dtype=np.int64)
    one_destination(model, problem, arcs)
    plugs(model, problem, arcs)
    terms = [
        c2_energy_cost(arcs, dispatch),
        _linear(np.full(problem.n_requests, problem.stranded_eur), stranded),
    ]
    if exchange:
        terms += [c1_exchange(problem, arcs, dispatch), c1_unabsorbed(model, problem, arcs, surplus_place)]
        c1_whole_cars(model, problem, arcs, surplus_place)
    else:
        terms.append(_other_balance(model, problem, arcs, dispatch))
    model.stranded_last = pyo.ConstraintList()
    if rows is not None:
        terms.append(c3_voltage(model, problem, arcs, rows))
    model.cost_eur = pyo.Objective(
        expr=LinearExpression(
            constant=sum(term.constant for term in terms),
            linear_coefs=[coefficient for term in terms for coefficient in term.linear_coefs],
            linear_vars=[variable for term in terms for variable in term.linear_vars],
        )
    )
    return FastForm(
        model=model,
        dispatch=dispatch,
        stranded=stranded,
        unabsorbed=list(model.unabsorbed_kw.values()) if exchange else [],
        surplus_place=surplus_place,
        load=[] if rows is None else list(model.load_kw.values()),
        load_place=np.array([] if rows is None else list(model.load_kw.keys()), dtype=np.int64),
        slack=[] if rows is None else list(model.slack_pu.values()),
    )


def point_of_plan(
    form: FastForm, problem: FastProblem, arcs: Arcs, station: IntArray, rows: VoltageRows | None
) -> tuple[list[Any], FloatArray]:
    """All variables and their values at a plan (R,); slacks take their least value."""
    chosen = chosen_arcs(problem, arcs, station).astype(np.float64)
    new_kw = new_load_kw(problem, arcs, chosen)
    total_kw = (problem.net_kw + new_kw).ravel()
    values = [chosen, (station == problem.n_stations).astype(np.float64)]
    values.append(np.maximum(-total_kw[form.surplus_place], 0.0))
    if rows is not None:
        values += [new_kw.ravel()[form.load_place], rows.slack_pu(balanced_kw(new_kw))]
    variables = [*form.dispatch, *form.stranded, *form.unabsorbed, *form.load, *form.slack]
    if problem.balance != "exchange":
        others, other_values = balance_point(form.model, problem.balance, problem.net_kw + new_kw)
        variables, values = [*variables, *others], [*values, other_values]
    return variables, np.concatenate(values)


def _linear(coefficients: FloatArray, variables: Sequence[Any], constant: float = 0.0) -> LinearExpression:
    return LinearExpression(constant=constant, linear_coefs=coefficients.tolist(), linear_vars=list(variables))


def _entries_by_place(problem: FastProblem, arcs: Arcs) -> tuple[IntArray, IntArray]:
    """Load entries sorted by place, and where each place begins, (T * J + 1,)."""
    order = np.argsort(arcs.load_place, kind="stable")
    return order, np.searchsorted(arcs.load_place[order], np.arange(problem.net_kw.size + 1))


def _surplus_places(problem: FastProblem, arcs: Arcs) -> IntArray:
    """Slots and stations, as flat indices, with a DG surplus and a request that could take it."""
    used = np.zeros(problem.net_kw.size, dtype=np.bool_)
    used[arcs.load_place] = True
    return np.flatnonzero(used & (problem.net_kw.ravel() < 0.0))


def _other_balance(model: Any, problem: FastProblem, arcs: Arcs, dispatch: Sequence[Any]) -> LinearExpression:
    """What stands in the place of the first term of (1), see `BALANCES`."""
    order, first = _entries_by_place(problem, arcs)
    entries = {int(place): order[first[place] : first[place + 1]] for place in np.flatnonzero(np.diff(first) > 0)}
    draws = {p: (arcs.load_kw[own].tolist(), [dispatch[a] for a in arcs.load_arc[own]]) for p, own in entries.items()}
    most_kw = np.zeros(problem.net_kw.shape)
    most_kw.ravel()[list(entries)] = [float(arcs.load_kw[own].sum()) for own in entries.values()]
    most_kw = np.minimum(most_kw, problem.free_plugs * problem.plug_kw)
    return balance(model, problem.balance, problem.net_kw, draws, most_kw, problem.absorb_eur_per_kw)


def c4_within_reach(model: Any, arcs: Arcs) -> list[Any]:
    """(4): a request has variables for the stations within its reach alone."""
    model.dispatch = pyo.Var(range(len(arcs.request)), domain=pyo.Integers, bounds=(0, 1))
    return list(model.dispatch.values())


def one_destination(model: Any, problem: FastProblem, arcs: Arcs) -> None:
    """Every request goes to one station or is stranded."""
    dispatch, first = list(model.dispatch.values()), arcs.first.tolist()

    def row(_: Any, r: int) -> Any:
        own = [*dispatch[first[r] : first[r + 1]], model.stranded[r]]
        return (1.0, LinearExpression(constant=0.0, linear_coefs=[1.0] * len(own), linear_vars=own), 1.0)

    model.one_destination = pyo.Constraint(range(problem.n_requests), rule=row)


def plugs(model: Any, problem: FastProblem, arcs: Arcs) -> None:
    """Charges hold no more plugs than are free; rows only where requests could want more."""
    dispatch = list(model.dispatch.values())
    order, first = _entries_by_place(problem, arcs)
    free = problem.free_plugs.ravel()
    places = np.flatnonzero(np.diff(first) > np.maximum(free, 0)).tolist()

    def row(_: Any, place: int) -> Any:
        own = [dispatch[a] for a in arcs.load_arc[order[first[place] : first[place + 1]]]]
        body = LinearExpression(constant=0.0, linear_coefs=[1.0] * len(own), linear_vars=own)
        return (None, body, float(free[place]))

    model.plugs = pyo.Constraint(places, rule=row)


def c2_energy_cost(arcs: Arcs, dispatch: Sequence[Any]) -> LinearExpression:
    """(2) of the cars that are sent to a station, weighted as in (1)."""
    return _linear(arcs.energy_eur, dispatch)


def c1_exchange(problem: FastProblem, arcs: Arcs, dispatch: Sequence[Any]) -> LinearExpression:
    """The part of (1) that is linear: |x| = x + 2 max(0, -x) with x = base + charging - DG."""
    drawn_kw = np.bincount(arcs.load_arc, weights=arcs.load_kw, minlength=len(arcs.request))
    price = problem.absorb_eur_per_kw
    return _linear(np.asarray(price * drawn_kw, dtype=np.float64), dispatch, price * float(problem.net_kw.sum()))


def c1_unabsorbed(model: Any, problem: FastProblem, arcs: Arcs, places: IntArray) -> LinearExpression:
    """The other part of (1): unabsorbed >= DG - base - charging, which costs twice; a constant where nobody charges."""
    dispatch, net = list(model.dispatch.values()), problem.net_kw.ravel()
    order, first = _entries_by_place(problem, arcs)
    model.unabsorbed_kw = pyo.Var(range(len(places)), bounds=lambda _, i: (0.0, float(-net[places[i]])))
    unabsorbed = list(model.unabsorbed_kw.values())

    def row(_: Any, i: int) -> Any:
        entries = order[first[places[i]] : first[places[i] + 1]]
        own = [*(dispatch[a] for a in arcs.load_arc[entries]), unabsorbed[i]]
        return (float(-net[places[i]]), _linear(np.append(arcs.load_kw[entries], 1.0), own), None)

    model.c1_unabsorbed = pyo.Constraint(range(len(places)), rule=row)
    price = 2.0 * problem.absorb_eur_per_kw
    alone = np.maximum(-net, 0.0)
    alone[places] = 0.0
    return _linear(np.full(len(places), price), unabsorbed, price * float(alone.sum()))


def c1_whole_cars(model: Any, problem: FastProblem, arcs: Arcs, places: IntArray) -> None:
    """(1) interpolated between whole numbers of cars, where all that may charge there draw one power q.

    With n cars the unabsorbed power max(0, surplus - q n) is convex in n; its chord between the whole numbers around
    surplus / q cuts off fractional n. In a window of one slot what remains is a transport problem whose cost bends at
    whole numbers only: its relaxation has whole vertices, so that the linear programme is exact.
    """
    dispatch, unabsorbed = list(model.dispatch.values()), list(model.unabsorbed_kw.values())
    order, first = _entries_by_place(problem, arcs)
    surplus = -problem.net_kw.ravel()
    model.c1_whole_cars = pyo.ConstraintList()
    for i, place in enumerate(places.tolist()):
        entries = order[first[place] : first[place + 1]]
        power = arcs.load_kw[entries]
        if np.ptp(power) > EQUAL_POWER_RTOL * power.max():
            continue
        n_below = np.floor(surplus[place] / power[0])
        rest = float(surplus[place] - n_below * power[0])  # unabsorbed when n_below cars charge, 0 with one more
        own = [*(dispatch[a] for a in arcs.load_arc[entries]), unabsorbed[i]]
        body = LinearExpression(constant=0.0, linear_coefs=[*([rest] * len(entries)), 1.0], linear_vars=own)
        model.c1_whole_cars.add((float(rest * (n_below + 1.0)), body, None))


def stranded_last(form: FastForm, problem: FastProblem, arcs: Arcs, pairs: IntArray) -> None:
    """Stranded only if nothing else is allowed, for pairs (K, 2) of request and station: adds rows to the model.

    A stranded request has found every station in its reach full: plugs held by charges of earlier slots, and by those
    of its own slot that came before it, are all that are free.
    """
    place_order, place_first = _entries_by_place(problem, arcs)
    for r, j in pairs.tolist():
        place = int(problem.slot[r]) * problem.n_stations + j
        taken = arcs.load_arc[place_order[place_first[place] : place_first[place + 1]]]
        own = [form.dispatch[a] for a in taken[arcs.request[taken] < r]]
        n_free = float(problem.free_plugs[problem.slot[r], j])
        body = LinearExpression(
            constant=0.0, linear_coefs=[*([1.0] * len(own)), -n_free], linear_vars=[*own, form.stranded[r]]
        )
        form.model.stranded_last.add((0.0, body, None))


def c3_voltage(model: Any, problem: FastProblem, arcs: Arcs, rows: VoltageRows) -> LinearExpression:
    """(3): sign (base + gain . power - limit) + slack >= 0 for every row; returns the price of the slack.

    The rows' base holds what earlier charges draw; power is that of the window's own charges.
    """
    dispatch, n_stations = list(model.dispatch.values()), problem.n_stations
    order, first = _entries_by_place(problem, arcs)
    slots = set(rows.slot.tolist())
    places = [place for place in np.flatnonzero(np.diff(first) > 0).tolist() if place // n_stations in slots]
    largest = {p: float(arcs.load_kw[order[first[p] : first[p + 1]]].sum()) for p in places}
    model.load_kw = pyo.Var(places, bounds=lambda _, p: (0.0, largest[p]))

    def power(_: Any, place: int) -> Any:
        entries = order[first[place] : first[place + 1]]
        own = [*(dispatch[a] for a in arcs.load_arc[entries]), model.load_kw[place]]
        return (0.0, _linear(np.append(arcs.load_kw[entries], -1.0), own), 0.0)

    model.load_power = pyo.Constraint(places, rule=power)
    gain = rows.sign[:, None] * rows.gain_pu_per_kw[:, :, -1]  # (R, J), balanced
    most = np.zeros(problem.net_kw.shape)
    most.ravel()[places] = [largest[p] for p in places]
    missing = rows.sign * (rows.limit_pu - rows.base_pu)
    worst = np.maximum(missing - (np.minimum(gain, 0.0) * most[rows.slot]).sum(axis=1), 0.0)
    model.slack_pu = pyo.Var(range(len(rows.slot)), bounds=lambda _, i: (0.0, float(worst[i])))

    def row(_: Any, i: int) -> Any:
        here = [p for p in places if p // n_stations == rows.slot[i]]
        own = [*(model.load_kw[p] for p in here), model.slack_pu[i]]
        return (float(missing[i]), _linear(np.append([gain[i, p % n_stations] for p in here], 1.0), own), None)

    model.c3_voltage = pyo.Constraint(range(len(rows.slot)), rule=row)
    return _linear(np.full(len(rows.slot), rows.price_eur_per_pu), list(model.slack_pu.values()))
