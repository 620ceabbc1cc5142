"""Shortest paths by length between all nodes of a road network, and where on its path a car is."""

from dataclasses import dataclass

import numpy as np

from evcs_gym.envs.traffic.roads import RoadNetwork
from evcs_gym.envs.types import FloatArray, IntArray, frozen


@dataclass(frozen=True, eq=False)
class RoadDistances:
    """distance_km: (N, N) from node to node, inf where no path leads. next_node: (N, N) the node after the first one
    on the shortest path to the second, -1 where there is none."""

    distance_km: FloatArray
    next_node: IntArray

    def node_on_way(self, origin: IntArray, destination: IntArray, share_frac: FloatArray) -> IntArray:
        """Node of the shortest path nearest to the share driven, all (R,); the earlier one of two equally near.

        Where no path leads a car counts as being at its origin until it has arrived.
        """
        length = self.distance_km[origin, destination]
        joined = np.isfinite(length)
        driven = np.where(joined, share_frac * np.where(joined, length, 0.0), 0.0)
        node, here, nearest = origin.copy(), origin.copy(), driven.copy()
        under_way = joined & (here != destination)
        while under_way.any():
            here = np.where(under_way, self.next_node[here, destination], here)
            off = np.abs(np.where(joined, length - self.distance_km[here, destination], 0.0) - driven)
            closer = under_way & (off < nearest)
            node, nearest = np.where(closer, here, node), np.where(closer, off, nearest)
            under_way &= here != destination
        return np.where(share_frac >= 1.0, destination, node)


def road_distances(network: RoadNetwork) -> RoadDistances:
    """All shortest paths by length (Floyd 1962, 10.1145/367766.368168); closed zones are not passed through."""
    n = network.n_nodes
    distance = np.full((n, n), np.inf)
    following = np.full((n, n), -1, dtype=np.int64)
    for tail, head, length in zip(network.tail, network.head, network.length_km, strict=True):
        if length < distance[tail, head]:
            distance[tail, head], following[tail, head] = length, head
    np.fill_diagonal(distance, 0.0)
    np.fill_diagonal(following, np.arange(n))
    for k in range(network.n_closed, n):
        through = distance[:, k, None] + distance[None, k]
        shorter = through < distance
        distance = np.where(shorter, through, distance)
        following = np.where(shorter, following[:, k, None], following)
    return RoadDistances(frozen(distance), frozen(following))
