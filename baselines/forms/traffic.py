"""(T3) as a conic programme in Pyomo: flows by origin and class, and one function per equation; knows no solver.

Pyomo carries the linear part; the cones stand beside it as `Cone` records over its variables: power cones for roads,
exponential cones for Davidson's stations. The integral of an Erlang-C station has no cone: the algorithm approaches it
by tangents (`add_tangent`), then by its second-order expansion around a plan, a cone again. Flows are in units of all
demand, so that the programme is well scaled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.core.expr.numeric_expr import LinearExpression

from evcs_gym.baselines.problems.traffic import TrafficProblem
from evcs_gym.envs.traffic.kernels import BPR, DAVIDSON, ERLANG, LARGEST_UTILISATION, erlang_sojourn
from evcs_gym.envs.types import FloatArray


@dataclass(frozen=True, eq=False)
class Cone:
    """Three affine rows in a cone: each a constant and at most one variable with its factor.

    ``power``: row0^alpha row1^(1 - alpha) >= |row2|. ``exponential``: row1 exp(row0 / row1) <= row2.
    """

    kind: str
    constant: tuple[float, float, float]
    variable: tuple[Any, Any, Any]
    factor: tuple[float, float, float]
    alpha: float = 0.0


@dataclass(frozen=True, eq=False)
class TrafficForm:
    """The model, its cones, the variables of the resources' flows (R,) and what one unit of them is [veh/h]."""

    model: pyo.ConcreteModel
    cones: list[Cone]
    flow: list[Any]
    unit_veh_per_h: float


def traffic_form(problem: TrafficProblem, around: FloatArray | None = None) -> TrafficForm:
    """min (T3) over flows by origin and class that meet the demand; the objective is in hours per unit of flow.

    around: flows of the resources (R,) [veh/h] at which the integrals of Erlang-C stations are expanded; without it
    they count nothing until tangents are added.
    """
    model = pyo.ConcreteModel(name="traffic")
    unit = max(1.0, float(problem.demand_veh_per_h.sum()))
    arrays = problem.model.graph.arrays
    resources = range(len(arrays.kind))
    model.flow = pyo.Var(resources, bounds=(0.0, None))
    model.grown = pyo.Var(resources, bounds=(0.0, None))
    model.part = pyo.Var(range(len(_commodities(problem)) * len(arrays.arc_head)), bounds=(0.0, None))
    t3_balance(model, problem, unit)
    t3_shared_flow(model, problem)
    cones = [*t1_roads(model, problem, unit), *t2_davidson(model, problem, unit)]
    model.tangents = pyo.ConstraintList()
    t2_capacity(model, problem, unit)
    if around is not None:
        cones += t2_second_order(model, problem, unit, around)
    model.cost = pyo.Objective(expr=t3_beckmann(model, problem, unit))
    return TrafficForm(model, cones, list(model.flow.values()), unit)


def _commodities(problem: TrafficProblem) -> list[tuple[int, int]]:
    """(row of the origin, class) of every flow that is kept apart."""
    n_pairs = problem.model.network.n_pairs
    origin = problem.model.graph.arrays.pair_origin
    return sorted({(int(origin[i]), i // n_pairs) for i in np.flatnonzero(problem.demand_veh_per_h > 0.0).tolist()})


def t3_balance(model: pyo.ConcreteModel, problem: TrafficProblem, unit: float) -> None:
    """(T3), subject to: what leaves a node less what enters it is the demand that begins there less that which ends."""
    arrays, n_pairs = problem.model.graph.arrays, problem.model.network.n_pairs
    n_arcs, n_nodes = len(arrays.arc_head), problem.model.graph.n_nodes
    commodities = _commodities(problem)
    supply = np.zeros((len(commodities), n_nodes))
    row = {commodity: c for c, commodity in enumerate(commodities)}
    for i in np.flatnonzero(problem.demand_veh_per_h > 0.0).tolist():
        c = row[int(arrays.pair_origin[i]), i // n_pairs]
        supply[c, arrays.origin[arrays.pair_origin[i]]] += problem.demand_veh_per_h[i] / unit
        supply[c, arrays.pair_destination[i]] -= problem.demand_veh_per_h[i] / unit

    def balance(_: Any, c: int, node: int) -> Any:
        leaves, enters = np.flatnonzero(arrays.arc_tail == node), np.flatnonzero(arrays.arc_head == node)
        arcs = [*leaves.tolist(), *enters.tolist()]
        signs = [1.0] * len(leaves) + [-1.0] * len(enters)
        body = _linear(signs, [model.part[c * n_arcs + arc] for arc in arcs])
        return (float(supply[c, node]), body, float(supply[c, node]))

    # one balance per commodity follows from the others
    model.t3_balance = pyo.Constraint(range(len(commodities)), range(1, n_nodes), rule=balance)


def t3_shared_flow(model: pyo.ConcreteModel, problem: TrafficProblem) -> None:
    """(T3), subject to: the flow of a resource is the sum over the arcs that use it, of all origins and classes."""
    arrays = problem.model.graph.arrays
    n_arcs, n_commodities = len(arrays.arc_head), len(_commodities(problem))

    def shared(_: Any, r: int) -> Any:
        arcs = np.flatnonzero(arrays.arc_resource == r).tolist()
        parts = [model.part[c * n_arcs + arc] for c in range(n_commodities) for arc in arcs]
        return (0.0, _linear([1.0] * len(parts) + [-1.0], [*parts, model.flow[r]]), 0.0)

    model.t3_shared_flow = pyo.Constraint(range(len(arrays.kind)), rule=shared)


def t1_roads(model: pyo.ConcreteModel, problem: TrafficProblem, unit: float) -> list[Cone]:
    """(T1) integrated: grown >= (x / capacity)^(power + 1), a power cone for every road that slows down."""
    arrays = problem.model.graph.arrays
    cones = []
    for r in np.flatnonzero((arrays.kind == BPR) & (arrays.slope > 0.0)).tolist():
        grown, flow = model.grown[r], model.flow[r]
        alpha = 1.0 / (arrays.power[r] + 1.0)
        factor = (1.0, 0.0, unit / arrays.capacity[r])
        cones.append(Cone("power", (0.0, 1.0, 0.0), (grown, None, flow), factor, alpha))
    return cones


def t2_davidson(model: pyo.ConcreteModel, problem: TrafficProblem, unit: float) -> list[Cone]:
    """(T2), Davidson, integrated: grown >= -ln(1 - y / capacity), an exponential cone for every station."""
    arrays = problem.model.graph.arrays
    cones = []
    for r in np.flatnonzero(arrays.kind == DAVIDSON).tolist():
        grown, flow = model.grown[r], model.flow[r]
        factor = (-1.0, 0.0, -unit / arrays.capacity[r])
        cones.append(Cone("exponential", (0.0, 1.0, 1.0), (grown, None, flow), factor))
    return cones


def t2_capacity(model: pyo.ConcreteModel, problem: TrafficProblem, unit: float) -> None:
    """(T2), Erlang-C: no flow above the range in which the law of the queue is used."""
    arrays = problem.model.graph.arrays
    for r in np.flatnonzero(arrays.kind == ERLANG).tolist():
        model.flow[r].setub(LARGEST_UTILISATION * float(arrays.capacity[r]) / unit)


def t2_second_order(model: pyo.ConcreteModel, problem: TrafficProblem, unit: float, around: FloatArray) -> list[Cone]:
    """(T2), Erlang-C, integrated, but for a constant: grown >= t y + t' (y - y0)^2 / 2, t at y0 (`around`)."""
    arrays, stations, n_links = problem.model.graph.arrays, problem.model.stations, problem.model.network.n_links
    rows = np.flatnonzero(arrays.kind == ERLANG).tolist()
    model.bend = pyo.Var(rows, bounds=(0.0, None))
    cones = []
    for r in rows:
        service, n_chargers = float(stations.service_h[r - n_links]), int(stations.n_chargers[r - n_links])
        time, slope = erlang_sojourn(float(around[r]), service, n_chargers)
        body = _linear([1.0, -time, -1.0], [model.grown[r], model.flow[r], model.bend[r]])
        model.tangents.add((0.0, body, None))
        steep = float(np.sqrt(0.5 * slope * unit))
        constant = (0.0, 1.0, -steep * float(around[r]) / unit)
        cones.append(Cone("power", constant, (model.bend[r], None, model.flow[r]), (1.0, 0.0, steep), 0.5))
    return cones


def add_tangent(form: TrafficForm, resource: int, flow: float, integral: float, time: float) -> None:
    """(T2), Erlang-C, integrated, from below: grown >= its tangent at a flow [veh/h]; time [h] is its slope there."""
    unit, model = form.unit_veh_per_h, form.model
    body = _linear([1.0, -time], [model.grown[resource], model.flow[resource]])
    model.tangents.add((float(integral - time * flow) / unit, body, None))


def t3_beckmann(model: pyo.ConcreteModel, problem: TrafficProblem, unit: float) -> LinearExpression:
    """(T3): time at zero flow and fixed cost times flow, and what the growth of time adds, per unit and in hours."""
    arrays, fixed = problem.model.graph.arrays, problem.fixed_h
    flow_cost, grown_cost = fixed + arrays.base_h, np.ones(len(fixed))
    roads, davidson = arrays.kind == BPR, arrays.kind == DAVIDSON
    steep = arrays.slope * arrays.capacity ** (arrays.power + 1.0) / (arrays.power + 1.0) / unit
    grown_cost = np.where(roads, steep, grown_cost)
    grown_cost = np.where(davidson, arrays.base_h * arrays.slope * arrays.capacity / unit, grown_cost)
    flow_cost = np.where(davidson, fixed + arrays.base_h * (1.0 - arrays.slope), flow_cost)
    flow_cost = np.where(roads | davidson, flow_cost, fixed)
    return _linear([*flow_cost.tolist(), *grown_cost.tolist()], [*model.flow.values(), *model.grown.values()])


def _linear(coefficients: Sequence[float], variables: Sequence[Any]) -> LinearExpression:
    return LinearExpression(constant=0.0, linear_coefs=list(coefficients), linear_vars=list(variables))
