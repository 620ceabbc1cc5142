"""User equilibrium: sums by hand, Wardrop's condition, invariances, a published optimum."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import least_costs_reference

from evcs_gym.envs.errors import ConfigError, ConvergenceError, DataError, InfeasibleError
from evcs_gym.envs.traffic import Assignment, RoadNetwork, assign, load_roads
from evcs_gym.envs.traffic.graph import road_graph
from evcs_gym.envs.traffic.kernels import least_costs, trees
from evcs_gym.envs.types import FloatArray, frozen

SIOUX_FALLS_OBJECTIVE = 4231335.28710744
TIGHT = 1e-12
"""Rounding of double precision leaves gaps of about 1e-15: this is reached everywhere."""


def divergence(roads: RoadNetwork, flow: FloatArray) -> FloatArray:
    """Flow out of each node less flow into it, (N,)."""
    out = np.bincount(roads.tail, weights=flow, minlength=roads.n_nodes)
    return np.asarray(out - np.bincount(roads.head, weights=flow, minlength=roads.n_nodes))


def check_wardrop(roads: RoadNetwork, found: Assignment, tolerance: float) -> None:
    """Flow is conserved at nodes, and every path with flow costs the least cost of its pair."""
    wanted = np.bincount(roads.origin, weights=roads.demand_veh_per_h, minlength=roads.n_nodes)
    wanted -= np.bincount(roads.destination, weights=roads.demand_veh_per_h, minlength=roads.n_nodes)
    assert divergence(roads, found.link_flow_veh_per_h) == pytest.approx(
        wanted, abs=1e-8 * roads.demand_veh_per_h.sum()
    )
    cost = found.link_time_h + roads.fixed_h
    least = least_costs_reference(roads, cost)
    assert found.od_time_h == pytest.approx(least, rel=1e-12)
    starts = found.columns.path_start
    pair = found.columns.pair_of_path()
    for q, (begin, end) in enumerate(pairwise(starts.tolist())):
        if found.path_flow_veh_per_h[q] > 1e-6 * roads.demand_veh_per_h[pair[q]]:
            path = found.columns.path_resource[begin:end]
            assert cost[path].sum() == pytest.approx(least[pair[q]], rel=tolerance)


def grid(n: int, seed: int, load: float) -> RoadNetwork:
    """n x n nodes, two-way roads, as many random pairs as nodes."""
    rng = np.random.default_rng(seed)
    node = np.arange(n * n).reshape(n, n)
    one = np.concatenate(
        [np.stack([node[:, :-1], node[:, 1:]]).reshape(2, -1).T, np.stack([node[:-1], node[1:]]).reshape(2, -1).T]
    )
    links = np.concatenate([one, one[:, ::-1]])
    code = rng.permutation([i for i in range(n**4) if i // n**2 != i % n**2])[: n * n]
    return RoadNetwork.from_arrays(
        tail=links[:, 0],
        head=links[:, 1],
        free_flow_h=rng.uniform(0.03, 0.1, len(links)),
        capacity_veh_per_h=rng.uniform(300.0, 900.0, len(links)),
        origin=code // n**2,
        destination=code % n**2,
        demand_veh_per_h=load * rng.uniform(50.0, 300.0, len(code)),
    )


def test_two_parallel_roads_by_hand() -> None:
    """Times 1 + x and 2 + y with x + y = 5: 1 + x = 2 + y, so x = 3, y = 2, time 4; Beckmann 3 + 4.5 + 4 + 2."""
    roads = RoadNetwork.from_arrays(
        tail=[0, 0],
        head=[1, 1],
        free_flow_h=[1.0, 2.0],
        capacity_veh_per_h=1.0,
        bpr_b=[1.0, 0.5],
        bpr_power=1.0,
        origin=[0],
        destination=[1],
        demand_veh_per_h=[5.0],
    )
    found = assign(roads, relative_gap=TIGHT)
    assert found.link_flow_veh_per_h == pytest.approx([3.0, 2.0])
    assert (found.beckmann, found.total_travel_time) == pytest.approx((13.5, 20.0))


def test_braess_paradox() -> None:
    """With the bridge everybody takes 92 instead of 83."""
    roads = load_roads("braess")
    found = assign(roads, relative_gap=TIGHT)
    assert found.od_time_h[0] == pytest.approx(92.0, rel=1e-7)  # the file gives the free links 1e-8 h
    assert (found.total_travel_time, found.beckmann) == pytest.approx((552.0, 386.0), rel=1e-7)
    keep = np.array([0, 1, 2, 4])
    names = ("tail", "head", "free_flow_h", "capacity_veh_per_h", "bpr_b", "bpr_power")
    arrays = {name: getattr(roads, name)[keep] for name in names}
    without = RoadNetwork.from_arrays(**arrays, origin=[0], destination=[1], demand_veh_per_h=[6.0])
    found = assign(without, relative_gap=TIGHT)
    assert (found.od_time_h[0], found.total_travel_time) == pytest.approx((83.0, 498.0), rel=1e-7)


@pytest.mark.parametrize("name", ["city12", "nguyen_dupuis", "braess", "grid24"])
@pytest.mark.parametrize("load", [0.5, 1.0, 3.0, 10.0])
def test_used_paths_have_equal_least_cost_from_light_to_heavy_load(name: str, load: float) -> None:
    roads = load_roads(name)
    roads = roads.with_demand(load * roads.demand_veh_per_h)
    found = assign(roads, relative_gap=TIGHT)
    assert found.converged
    check_wardrop(roads, found, 1e-5)  # a path may carry little and differ more than the mean does


@given(seed=st.integers(0, 10_000), load=st.floats(0.1, 8.0))
@settings(max_examples=15, deadline=None)
def test_random_grids_reach_the_gap(seed: int, load: float) -> None:
    roads = grid(4, seed, load)
    found = assign(roads, relative_gap=TIGHT)
    assert found.converged
    check_wardrop(roads, found, 1e-5)


def test_the_gap_is_that_of_a_fresh_pass_over_all_paths() -> None:
    roads = grid(5, 1, 3.0)
    found = assign(roads, relative_gap=1e-3)
    cost = found.link_time_h + roads.fixed_h
    total = float(cost @ found.link_flow_veh_per_h)
    least = float(roads.demand_veh_per_h @ least_costs_reference(roads, cost))
    assert 0.0 < found.relative_gap <= 1e-3
    assert found.relative_gap == pytest.approx((total - least) / total, rel=1e-9)


@given(seed=st.integers(0, 10_000), more=st.floats(0.01, 1.0))
@settings(max_examples=10, deadline=None)
def test_more_demand_of_one_pair_never_makes_it_faster(seed: int, more: float) -> None:
    roads = grid(3, seed, 2.0)
    demand = roads.demand_veh_per_h.copy()
    demand[0] *= 1.0 + more
    before, after = assign(roads, relative_gap=TIGHT), assign(roads.with_demand(demand), relative_gap=TIGHT)
    assert after.od_time_h[0] >= before.od_time_h[0] * (1.0 - 1e-9)


def test_units_and_the_order_of_links_and_pairs_do_not_matter() -> None:
    roads = grid(4, 3, 2.0)
    found = assign(roads, relative_gap=1e-13)
    link, pair = np.random.default_rng(0).permutation(roads.n_links), np.arange(roads.n_pairs)[::-1]
    names = ("tail", "head", "free_flow_h", "capacity_veh_per_h")
    arrays = {name: getattr(roads, name)[link] for name in names}
    arrays["free_flow_h"] = 60.0 * arrays["free_flow_h"]
    arrays["capacity_veh_per_h"] = arrays["capacity_veh_per_h"] / 7.0
    other = assign(
        RoadNetwork.from_arrays(
            **arrays,
            origin=roads.origin[pair],
            destination=roads.destination[pair],
            demand_veh_per_h=roads.demand_veh_per_h[pair] / 7.0,
        ),
        relative_gap=1e-13,
    )
    assert other.link_flow_veh_per_h * 7.0 == pytest.approx(found.link_flow_veh_per_h[link], abs=1e-4)
    assert other.od_time_h == pytest.approx(60.0 * found.od_time_h[pair], rel=1e-9)


def test_tolls_move_traffic_and_count_in_the_cost_but_not_in_the_time() -> None:
    arrays = {"tail": [0, 0], "head": [1, 1], "free_flow_h": [1.0, 1.0], "capacity_veh_per_h": 1.0, "bpr_b": 0.0}
    pair = {"origin": [0], "destination": [1], "demand_veh_per_h": [2.0]}
    found = assign(RoadNetwork.from_arrays(**arrays, **pair, fixed_h=[0.5, 0.25]))
    assert found.link_flow_veh_per_h.tolist() == [0.0, 2.0]
    assert (found.od_time_h[0], found.total_travel_time, found.beckmann) == (1.25, 2.0, 2.5)


def test_zones_are_not_passed_through() -> None:
    arrays = {"tail": [0, 1, 0], "head": [1, 2, 2], "free_flow_h": [0.1, 0.1, 1.0], "capacity_veh_per_h": 9.0}
    pair = {"origin": [0], "destination": [2], "demand_veh_per_h": [1.0]}
    through = assign(RoadNetwork.from_arrays(**arrays, **pair, bpr_b=0.0))
    closed = assign(RoadNetwork.from_arrays(**arrays, **pair, bpr_b=0.0, n_closed=3))
    assert through.link_flow_veh_per_h.tolist() == [1.0, 1.0, 0.0]
    assert closed.link_flow_veh_per_h.tolist() == [0.0, 0.0, 1.0]


def test_constant_and_linear_and_odd_powers_and_zero_times() -> None:
    """Times 2 (power 0), 1 + x and 1 + x^2.5 / 2 meet at 2: flows 1 and 2^0.4, the rest on the first road."""
    arrays = {"tail": [0, 0, 0], "head": [1, 1, 1], "capacity_veh_per_h": 1.0, "bpr_b": [1.0, 1.0, 0.5]}
    pair = {"origin": [0], "destination": [1], "demand_veh_per_h": [9.0]}
    roads = RoadNetwork.from_arrays(**arrays, **pair, free_flow_h=1.0, bpr_power=[0.0, 1.0, 2.5])
    found = assign(roads, relative_gap=TIGHT)
    assert found.link_time_h == pytest.approx([2.0, 2.0, 2.0])
    assert found.link_flow_veh_per_h[1:] == pytest.approx([1.0, 2.0**0.4])
    free = RoadNetwork.from_arrays(**arrays, **pair, free_flow_h=0.0)
    assert (assign(free).relative_gap, assign(free).total_travel_time) == (0.0, 0.0)


def test_a_warm_start_reaches_the_same_flows_in_fewer_passes() -> None:
    roads = grid(5, 2, 3.0)
    cold = assign(roads, relative_gap=TIGHT)
    near = roads.with_demand(1.02 * roads.demand_veh_per_h)
    warm, fresh = assign(near, relative_gap=TIGHT, warm_start=cold), assign(near, relative_gap=TIGHT)
    assert warm.iterations < fresh.iterations
    assert warm.link_flow_veh_per_h == pytest.approx(fresh.link_flow_veh_per_h, abs=1e-2)  # flow is flat in the gap
    assert warm.beckmann == pytest.approx(fresh.beckmann, rel=1e-12)


def test_demand_may_be_zero() -> None:
    roads = load_roads("city12").with_demand(0.0)
    found = assign(roads)
    assert (found.relative_gap, found.beckmann) == (0.0, 0.0)
    assert found.od_time_h == pytest.approx(least_costs_reference(roads, roads.free_flow_h))


def test_a_pair_without_a_path_is_named() -> None:
    roads = RoadNetwork.from_arrays(
        tail=[0], head=[1], free_flow_h=1.0, capacity_veh_per_h=1.0, origin=[0, 1], destination=[1, 0],
        demand_veh_per_h=[1.0, 2.0], name="one way",
    )  # fmt: skip
    with pytest.raises(InfeasibleError, match=r"one way: every pair .* pair 1 \(1 -> 0\) with 2 veh/h has none"):
        assign(roads)
    assert assign(roads.with_demand([1.0, 0.0])).od_time_h.tolist() == [1.15, np.inf]


def test_what_is_not_reached_is_reported_and_raised_only_when_asked() -> None:
    roads = grid(6, 0, 4.0)
    found = assign(roads, relative_gap=0.0, max_seconds=1e-9)
    assert not found.converged
    assert found.relative_gap > 0.0
    with pytest.raises(ConvergenceError, match=r"relative_gap 0 was asked for, .* reached after 1 passes"):
        assign(roads, relative_gap=0.0, max_seconds=1e-9, require_convergence=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"relative_gap": -1.0}, r"relative_gap must be in \[0, 1\), got -1"),
        ({"max_seconds": 0.0}, "max_seconds must be positive, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        assign(load_roads("braess"), **options)  # type: ignore[arg-type]


def test_a_start_of_another_network_is_refused() -> None:
    with pytest.raises(DataError, match="warm_start must be an assignment of the same links and pairs"):
        assign(load_roads("city12"), warm_start=assign(load_roads("braess")))


def test_sioux_falls_reaches_the_published_optimum() -> None:
    folder = os.environ.get("EVCS_GYM_REFERENCE_DATA")
    if not folder or not (Path(folder) / "SiouxFalls_net.tntp").is_file():
        pytest.skip("EVCS_GYM_REFERENCE_DATA names no folder with SiouxFalls_net.tntp, which may not be shipped")
    data = Path(folder)
    roads = RoadNetwork.from_tntp(data / "SiouxFalls_net.tntp", data / "SiouxFalls_trips.tntp")
    found = assign(roads, relative_gap=TIGHT)
    assert found.converged
    assert found.beckmann == pytest.approx(SIOUX_FALLS_OBJECTIVE, rel=1e-12)
    published = np.loadtxt(data / "SiouxFalls_flow.tntp", skiprows=1)
    assert found.link_flow_veh_per_h == pytest.approx(published[:, 2], abs=0.1)  # the file's own gap is about 1e-13
    for load in (2.0, 8.0):
        heavy = roads.with_demand(load * roads.demand_veh_per_h)
        assert assign(heavy, relative_gap=TIGHT).converged


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 5), closed=st.floats(0.0, 0.6))
def test_least_costs_of_all_origins_are_those_of_the_trees_bit_for_bit(seed: int, n: int, closed: float) -> None:
    """Whatever the order in which nodes pass costs on: rounding is monotone, so the least sums are the same numbers."""
    rng = np.random.default_rng(seed)
    arrays = road_graph(grid(n, seed, 1.0)).arrays
    arrays = arrays._replace(no_through=frozen(rng.random(n * n) < closed))
    cost = rng.uniform(0.0, 1.0, len(arrays.kind))
    shape = (len(arrays.origin), n * n)
    distance, at_once = np.empty(shape), np.empty(shape[::-1])
    trees(0, shape[0], arrays, cost, distance, np.empty(shape, dtype=np.int64))
    least_costs(arrays, cost, at_once, np.empty(n * n, dtype=np.bool_))
    np.testing.assert_array_equal(at_once.T, distance)
