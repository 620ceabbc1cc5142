"""The graph that the equilibrium is computed on, made of roads and, with charging, of stations."""

from dataclasses import dataclass

import numpy as np

from evcs_gym.envs.errors import InfeasibleError
from evcs_gym.envs.traffic.kernels import BPR, GraphArrays
from evcs_gym.envs.traffic.roads import RoadNetwork
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray, frozen


@dataclass(frozen=True, eq=False)
class Graph:
    """Arcs, resources and pairs as the kernels read them; R resources, K pairs.

    fixed_h: (R,) what a resource costs beside its time. name: for messages. pair_label: (K,) for messages.
    """

    name: str
    arrays: GraphArrays
    fixed_h: FloatArray
    pair_label: tuple[str, ...]

    @property
    def n_nodes(self) -> int:
        """Number of nodes of the graph."""
        return len(self.arrays.no_through)

    @property
    def n_pairs(self) -> int:
        """Number of pairs K."""
        return len(self.pair_label)


@dataclass(frozen=True, eq=False)
class Resources:
    """Parameters of resources (R,) in the order of `GraphArrays`."""

    kind: IntArray
    base_h: FloatArray
    slope: FloatArray
    power: FloatArray
    capacity: FloatArray
    fixed_h: FloatArray

    def joined(self, other: "Resources") -> "Resources":
        """These, then the others."""
        names = self.__dataclass_fields__
        return Resources(**{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names})


def road_resources(network: RoadNetwork) -> Resources:
    """Links as resources; a power of 0 makes the time constant."""
    constant = network.bpr_power == 0.0
    time = network.free_flow_h * np.where(constant, 1.0 + network.bpr_b, 1.0)
    steep = network.free_flow_h * network.bpr_b / network.capacity_veh_per_h**network.bpr_power
    return Resources(
        kind=np.full(network.n_links, BPR, dtype=np.int64),
        base_h=time,
        slope=np.where(constant, 0.0, steep),
        power=np.where(constant, 1.0, network.bpr_power),
        capacity=network.capacity_veh_per_h.copy(),
        fixed_h=network.fixed_h.copy(),
    )


def build_graph(
    name: str,
    resources: Resources,
    arcs: tuple[IntArray, IntArray, IntArray],
    pairs: tuple[IntArray, IntArray],
    no_through: BoolArray,
    pair_label: tuple[str, ...],
) -> Graph:
    """A graph from arcs (tail, head, resource), pairs (origin, destination) and closed nodes (N,)."""
    tail, head, resource = arcs
    order = np.argsort(tail, kind="stable")
    origins, row = np.unique(pairs[0], return_inverse=True)
    arrays = GraphArrays(
        kind=frozen(resources.kind),
        base_h=frozen(resources.base_h),
        slope=frozen(resources.slope),
        power=frozen(resources.power),
        capacity=frozen(resources.capacity),
        first_arc=frozen(np.searchsorted(tail[order], np.arange(len(no_through) + 1)).astype(np.int64)),
        arc_head=frozen(head[order].astype(np.int64)),
        arc_tail=frozen(tail[order].astype(np.int64)),
        arc_resource=frozen(resource[order].astype(np.int64)),
        no_through=frozen(no_through),
        origin=frozen(origins.astype(np.int64)),
        pair_origin=frozen(row.astype(np.int64)),
        pair_destination=frozen(pairs[1].astype(np.int64)),
    )
    return Graph(name, arrays, frozen(resources.fixed_h), pair_label)


def road_graph(network: RoadNetwork) -> Graph:
    """The roads alone: one arc and one resource per link."""
    return build_graph(
        network.name,
        road_resources(network),
        (network.tail, network.head, np.arange(network.n_links)),
        (network.origin, network.destination),
        np.arange(network.n_nodes) < network.n_closed,
        pair_labels(network),
    )


def pair_labels(network: RoadNetwork, suffix: str = "") -> tuple[str, ...]:
    """Names of the pairs for messages."""
    ends = zip(network.origin.tolist(), network.destination.tolist(), strict=True)
    return tuple(f"{begin} -> {end}{suffix}" for begin, end in ends)


def pair_costs(graph: Graph, distance: FloatArray) -> FloatArray:
    """Least costs of the pairs (K,) in those of all nodes from all origins, (O, N)."""
    return np.asarray(distance[graph.arrays.pair_origin, graph.arrays.pair_destination])


def refuse_unreachable(graph: Graph, demand: FloatArray, distance: FloatArray) -> None:
    """InfeasibleError where a pair with demand (K,) has no path; distance (O, N)."""
    least = pair_costs(graph, distance)
    for pair in np.flatnonzero((demand > 0.0) & ~np.isfinite(least))[:1]:
        raise InfeasibleError(
            f"{graph.name}: every pair with demand needs a path, pair {pair} ({graph.pair_label[pair]}) with "
            f"{demand[pair]:.6g} veh/h has none; add links or take its demand out"
        )
