"""Shortest paths by length, and where on its path a car is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from evcs_gym.envs.traffic import RoadNetwork, load_roads
from evcs_gym.envs.traffic.distances import RoadDistances, road_distances


def roads(links: list[tuple[int, int, float]], n_closed: int = 0, n_nodes: int | None = None) -> RoadNetwork:
    """One-way roads of given lengths."""
    tail, head, length = zip(*links, strict=True)
    return RoadNetwork.from_arrays(
        tail=tail,
        head=head,
        free_flow_h=0.1,
        capacity_veh_per_h=100.0,
        length_km=length,
        origin=[0],
        destination=[1],
        demand_veh_per_h=1.0,
        n_closed=n_closed,
        n_nodes=n_nodes,
    )


def nodes_on_way(distances: RoadDistances, origin: int, destination: int, shares: list[float]) -> list[int]:
    """Where a car is at several shares of its way."""
    n = len(shares)
    return distances.node_on_way(np.full(n, origin), np.full(n, destination), np.array(shares)).tolist()


def test_a_car_stands_at_the_nearest_node_of_its_path() -> None:
    # 0 -2- 1 -4- 2 -4- 3, and a direct road 0 -> 3 that is longer. At 10 km of way the middles are 1, 4 and 8 km.
    line = [(0, 1, 2.0), (1, 2, 4.0), (2, 3, 4.0), (0, 3, 11.0)]
    distances = road_distances(roads(line))
    assert distances.distance_km[0].tolist() == [0.0, 2.0, 6.0, 10.0]
    assert nodes_on_way(distances, 0, 3, [0.0, 0.09, 0.1, 0.11, 0.39, 0.41, 0.79, 0.81, 1.0]) == [
        0,
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert nodes_on_way(distances, 2, 2, [0.3, 1.0]) == [2, 2]


def test_where_no_road_leads_a_car_is_at_its_origin_until_it_arrives() -> None:
    distances = road_distances(roads([(0, 1, 2.0)]))
    assert np.isinf(distances.distance_km[1, 0])
    assert nodes_on_way(distances, 1, 0, [0.0, 0.9, 1.0]) == [1, 1, 0]


def test_closed_zones_are_not_passed_and_the_shorter_of_two_roads_counts() -> None:
    # node 0 is a zone: 1 -> 0 -> 2 would be 2 km
    distances = road_distances(roads([(1, 0, 1.0), (0, 2, 1.0), (1, 2, 9.0), (1, 2, 5.0)], n_closed=1))
    assert distances.distance_km[1, 2] == 5.0
    assert distances.distance_km[1, 0] == 1.0
    assert distances.distance_km[0, 2] == 1.0


@pytest.mark.parametrize("name", ["city12", "grid24"])
def test_distances_are_dijkstras(name: str) -> None:
    network = load_roads(name)
    graph = csr_array((network.length_km, (network.tail, network.head)), shape=(network.n_nodes,) * 2)
    distances = road_distances(network)
    np.testing.assert_allclose(distances.distance_km, dijkstra(graph), atol=1e-12)
    for array in (distances.distance_km, distances.next_node):
        assert not array.flags.writeable


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_the_node_is_the_nearest_on_a_shortest_path(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 7))
    ends = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] != pair[1])
    pairs = data.draw(st.lists(ends, min_size=1, max_size=20, unique=True))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=len(pairs), max_size=len(pairs)))
    distances = road_distances(roads([(*pair, float(km)) for pair, km in zip(pairs, lengths, strict=True)], n_nodes=n))
    origin, destination = data.draw(ends)
    share = data.draw(st.floats(0.0, 1.0))
    (node,) = nodes_on_way(distances, origin, destination, [share])
    total = distances.distance_km[origin, destination]
    if np.isinf(total):
        assert node == (destination if share == 1.0 else origin)
        return
    assert distances.distance_km[origin, node] + distances.distance_km[node, destination] == total
    path, here = [origin], origin
    while here != destination:
        here = int(distances.next_node[here, destination])
        path.append(here)
    off = [abs(distances.distance_km[origin, place] - share * total) for place in path]
    assert abs(distances.distance_km[origin, node] - share * total) == pytest.approx(min(off), abs=1e-12)
