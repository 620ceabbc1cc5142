"""Traffic equilibrium of one slot as a problem: its data, the cost of a plan, the check of a plan; numpy only.

A *plan* is the flow of every resource (roads, stations, the outside option), ``flow_veh_per_h`` (R,). Minimising (T3)
over such flows is another way to the equilibrium than that of `evcs_gym.envs.traffic`.
"""

from dataclasses import dataclass

import numpy as np

from evcs_gym.envs.errors import InfeasibleError
from evcs_gym.envs.traffic import TrafficModel
from evcs_gym.envs.traffic.charging import beckmann_eur
from evcs_gym.envs.traffic.graph import pair_costs
from evcs_gym.envs.traffic.kernels import resource_times, trees
from evcs_gym.envs.types import FloatArray

BALANCE_TOLERANCE_FRAC = 1e-6
"""A plan may break the balance of a node by this share of all demand."""


@dataclass(frozen=True, eq=False)
class TrafficProblem:
    """One slot: the model, demand of its 2 K pairs (through, then charging), fixed costs of its resources (R,)."""

    model: TrafficModel
    demand_veh_per_h: FloatArray
    fixed_h: FloatArray


def cost_eur(problem: TrafficProblem, flow_veh_per_h: FloatArray) -> float:
    """(T3) of a plan."""
    return beckmann_eur(problem.model, flow_veh_per_h, problem.fixed_h)


def lower_bound_eur(problem: TrafficProblem, flow_veh_per_h: FloatArray) -> float:
    """No plan costs less: f + SPTT - TSTT, the tangent of the convex (T3) at a flow, minimised over all plans.

    SPTT is the cost of all demand on shortest paths at the flow's times, TSTT the cost of the flow itself.
    """
    arrays = problem.model.graph.arrays
    cost, slope = np.empty(len(flow_veh_per_h)), np.empty(len(flow_veh_per_h))
    resource_times(arrays, flow_veh_per_h, problem.fixed_h, cost, slope)
    distance = np.empty((len(arrays.origin), problem.model.graph.n_nodes))
    trees(0, len(arrays.origin), arrays, cost, distance, np.empty(distance.shape, dtype=np.int64))
    used = problem.demand_veh_per_h > 0.0
    least = pair_costs(problem.model.graph, distance)[used] @ problem.demand_veh_per_h[used]
    change_h = float(least - cost @ flow_veh_per_h)
    return cost_eur(problem, flow_veh_per_h) + problem.model.value_of_time_eur_per_h * change_h


def check(problem: TrafficProblem, flow_veh_per_h: FloatArray) -> None:
    """InfeasibleError where a plan is negative, breaks the balance of a node or does not charge all charging cars.

    Summed over classes: flow on roads leaves a node as it came but for the demand, and stations take charging demand.
    """
    model, n_pairs = problem.model, problem.model.network.n_pairs
    network, roads = model.network, flow_veh_per_h[: model.network.n_links]
    tolerance = BALANCE_TOLERANCE_FRAC * max(1.0, float(problem.demand_veh_per_h.sum()))
    total = problem.demand_veh_per_h[:n_pairs] + problem.demand_veh_per_h[n_pairs:]
    wrong = _at_nodes(network.tail, roads, network.n_nodes) - _at_nodes(network.head, roads, network.n_nodes)
    wrong -= _at_nodes(network.origin, total, network.n_nodes) - _at_nodes(network.destination, total, network.n_nodes)
    node = int(np.argmax(np.abs(wrong)))
    if abs(wrong[node]) > tolerance:
        raise InfeasibleError(f"{network.name}: node {node} must be balanced, got {wrong[node]:.6g} veh/h too much")
    short = float(problem.demand_veh_per_h[n_pairs:].sum() - flow_veh_per_h[network.n_links :].sum())
    if abs(short) > tolerance:
        raise InfeasibleError(f"{network.name}: all charging cars must pass a station, got {short:.6g} veh/h without")
    resource = int(np.argmin(flow_veh_per_h))
    if flow_veh_per_h[resource] < 0.0:
        raise InfeasibleError(
            f"{network.name}: flows must not be negative, resource {resource} has {flow_veh_per_h[resource]:.6g} veh/h"
        )


def _at_nodes(node: "np.typing.NDArray[np.int64]", flow: FloatArray, n_nodes: int) -> FloatArray:
    return np.bincount(node, weights=flow, minlength=n_nodes).astype(np.float64)
