"""Road networks: arrays, the TNTP format, shipped data, export."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.traffic import SHIPPED_ROADS, RoadNetwork, load_departures_frac, load_roads, load_stations

NET = """<NUMBER OF ZONES> 2
<NUMBER OF NODES> 3
<FIRST THRU NODE> 3
<NUMBER OF LINKS> 3
<END OF METADATA>
~ init term capacity length time b power speed toll type ;
1 3 100 2 0 0.15 4 0 0 1 ;
3 2 200 3 10 0.15 4 0 5 1 ;   ~ a comment
1 2 50 9 40 0.15 4 0 0 1 ;
"""
TRIPS = """<NUMBER OF ZONES> 2
<TOTAL OD FLOW> 31.0
<END OF METADATA>
Origin 1
  1 : 1.0;  2 : 30.0;
Origin  2
"""
ARRAYS: dict[str, Any] = {
    "tail": [0, 1],
    "head": [1, 2],
    "free_flow_h": [0.1, 0.2],
    "capacity_veh_per_h": [100.0, 200.0],
    "origin": [0],
    "destination": [2],
    "demand_veh_per_h": [50.0],
}


def tntp(folder: Path, net: str = NET, trips: str = TRIPS) -> tuple[Path, Path]:
    (folder / "net.tntp").write_text(net, encoding="utf-8")
    (folder / "trips.tntp").write_text(trips, encoding="utf-8")
    return folder / "net.tntp", folder / "trips.tntp"


def test_tntp_is_read_with_comments_closed_zones_zero_times_and_factors(tmp_path: Path) -> None:
    roads = RoadNetwork.from_tntp(*tntp(tmp_path), toll_factor=2.0, distance_factor=0.5)
    assert (roads.n_nodes, roads.n_links, roads.n_closed) == (3, 3, 2)
    assert roads.tail.tolist() == [0, 2, 0]
    assert roads.head.tolist() == [2, 1, 1]
    assert roads.free_flow_h.tolist() == [0.0, 10.0, 40.0]
    assert roads.fixed_h.tolist() == [1.0, 11.5, 4.5]  # 2 toll + length / 2
    assert (roads.origin.tolist(), roads.destination.tolist(), roads.demand_veh_per_h.tolist()) == ([0], [1], [30.0])


def test_tntp_times_can_be_given_another_unit(tmp_path: Path) -> None:
    roads = RoadNetwork.from_tntp(*tntp(tmp_path), toll_factor=2.0, time_unit_h=0.5)
    assert roads.free_flow_h.tolist() == [0.0, 5.0, 20.0]
    assert roads.fixed_h.tolist() == [0.0, 5.0, 0.0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("<NUMBER OF LINKS> 3", "<NUMBER OF LINKS> 4", "NUMBER OF LINKS is 4, but 3 rows follow"),
        ("<NUMBER OF NODES> 3", "<NUMBER OF NODES> three", "whole number <NUMBER OF NODES>, got 'three'"),
        ("<END OF METADATA>", "", "has a line <END OF METADATA>, but there is none"),
        ("1 2 50 9 40 0.15 4 0 0 1 ;", "1 2 50 ;", "line 9: a link needs 9 columns or more, got 3"),
        ("1 2 50", "1 2 many", "line 9: a number was expected, got 'many'"),
        ("1 3 100", "1 4 100", r"head must be a node 0\.\.2, link 0 has 3"),
        ("1 3 100", "1 3 0", r"capacity_veh_per_h must be positive, link 0 \(0 -> 2\) has 0\.0"),
    ],
)
def test_a_malformed_net_file_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        RoadNetwork.from_tntp(*tntp(tmp_path, net=NET.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("<NUMBER OF ZONES> 2", "<NUMBER OF ZONES> 5", "NUMBER OF ZONES must be that of"),
        ("31.0", "40", "TOTAL OD FLOW is 40.0, but the trips add up to 31.0"),
        ("2 : 30.0", "7 : 30.0", r"line 5: a zone 1\.\.2 was expected, got '7'"),
        ("2 : 30.0", "2 = 30.0", "line 5: expected 'zone : trips;' below an Origin, got '2 = 30.0'"),
        ("2 : 30.0", "2 : x", "line 5: a number was expected, got 'x'"),
    ],
)
def test_a_malformed_trips_file_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        RoadNetwork.from_tntp(*tntp(tmp_path, trips=TRIPS.replace(old, new)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape("no.tntp: cannot be read")):
        RoadNetwork.from_tntp(tmp_path / "no.tntp", tmp_path / "no.tntp")


@pytest.mark.parametrize("key", ["toll_factor", "distance_factor", "time_unit_h"])
def test_factors_out_of_range_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"from_tntp: {key} must be"):
        RoadNetwork.from_tntp(*tntp(tmp_path), **{key: -1.0})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"demand_veh_per_h": [-1.0]}, r"demand_veh_per_h must not be negative, pair 0 \(0 -> 2\) has -1\.0"),
        ({"capacity_veh_per_h": [0.0, 1.0]}, r"capacity_veh_per_h must be positive, link 0 \(0 -> 1\) has 0\.0"),
        ({"free_flow_h": [0.1, -0.2]}, r"free_flow_h must not be negative, link 1 \(1 -> 2\) has -0\.2"),
        ({"free_flow_h": [0.1, np.nan]}, "free_flow_h must be finite, got nan at index 1"),
        ({"free_flow_h": [0.1]}, r"free_flow_h must have 2 entries, got shape \(1,\)"),
        ({"bpr_power": 0.5}, r"bpr_power must be 0 or at least 1, link 0 \(0 -> 1\) has 0\.5"),
        ({"head": [1]}, "head must have 2 entries as tail has, got 1"),
        ({"head": [1.5, 2.5]}, "head must be a list of whole numbers, got float64"),
        ({"origin": [9], "n_nodes": 3}, r"origin must be a node 0\.\.2, pair 0 has 9"),
        ({"origin": [0, 1]}, r"demand_veh_per_h must have 2 entries, got shape \(1,\)"),
        ({"origin": [0, 1], "demand_veh_per_h": 1.0}, "destination must have 2 entries as origin has, got 1"),
        ({"destination": [0]}, "a pair must lead to another node, pair 0 begins and ends at 0"),
        (
            {"origin": [0, 0], "destination": [2, 2], "demand_veh_per_h": 1.0},
            r"a pair must come once, pair 1 \(0 -> 2\) does not",
        ),
        ({"n_closed": 7}, r"n_closed must be in 0\.\.3, got 7"),
        ({"node_xy_km": [[0.0, 0.0]]}, r"node_xy_km must have shape \(3, 2\), got \(1, 2\)"),
    ],
)
def test_impossible_arrays_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        RoadNetwork.from_arrays(**{**ARRAYS, **change})


def test_the_time_of_a_link_by_hand() -> None:
    roads = RoadNetwork.from_arrays(**ARRAYS)
    assert roads.link_time_h([100.0, 100.0]) == pytest.approx([0.1 * 1.15, 0.2 * (1 + 0.15 / 16)])
    # integral of 0.1 (1 + 0.15 (x/100)^4) to 100: 0.1 (100 + 0.15 * 100 / 5)
    assert roads.beckmann_veh([100.0, 0.0]) == pytest.approx(10.3)


@pytest.mark.parametrize("name", SHIPPED_ROADS)
def test_shipped_networks_have_the_sizes_they_are_named_for(name: str) -> None:
    sizes = {"city12": (12, 40, 12), "grid24": (24, 76, 24), "nguyen_dupuis": (13, 19, 4), "braess": (4, 5, 1)}
    roads = load_roads(name)
    assert (roads.n_nodes, roads.n_links, roads.n_pairs) == sizes[name]


def test_the_shipped_city_has_two_way_roads_eight_stations_and_a_profile() -> None:
    roads = load_roads("city12")
    there = set(zip(roads.tail.tolist(), roads.head.tolist(), strict=True))
    assert {(head, tail) for tail, head in there} == there
    assert len(load_stations()) == 8
    profile = load_departures_frac()
    assert profile.shape == (48,)
    assert profile.max() == 1.0
    assert profile.min() > 0.0


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"name must be one of city12, nguyen_dupuis, braess, grid24, got 'x'"):
        load_roads("x")


def test_geojson_has_a_line_per_link_and_is_json() -> None:
    roads = load_roads("city12")
    content = json.loads(json.dumps(roads.to_geojson(np.arange(40.0)), allow_nan=False))
    lines = [feature for feature in content["features"] if feature["geometry"]["type"] == "LineString"]
    points = [feature for feature in content["features"] if feature["geometry"]["type"] == "Point"]
    assert (content["type"], len(lines), len(points)) == ("FeatureCollection", 40, 12)
    assert lines[3]["properties"]["flow_veh_per_h"] == 3.0
    assert roads.node_xy_km is not None
    assert lines[3]["geometry"]["coordinates"][0] == roads.node_xy_km[roads.tail[3]].tolist()


def test_networkx_has_every_link_once() -> None:
    networkx = pytest.importorskip("networkx")
    graph = load_roads("nguyen_dupuis").to_networkx(np.ones(19))
    assert isinstance(graph, networkx.MultiDiGraph)
    assert graph.number_of_edges() == 19
    assert {data["flow_veh_per_h"] for *_, data in graph.edges(data=True)} == {1.0}


def test_export_without_positions_or_with_other_flows_is_refused() -> None:
    with pytest.raises(DataError, match="to_geojson needs positions, but node_xy_km is None"):
        load_roads("braess").to_geojson()
    with pytest.raises(DataError, match="link_flow_veh_per_h must have 40 entries, got shape"):
        load_roads("city12").to_geojson([1.0])


def test_the_plot_draws_every_link_and_node() -> None:
    figure_module = pytest.importorskip("matplotlib.figure")
    axes = figure_module.Figure().subplots()
    assert load_roads("city12").plot(np.full(40, 500.0), axes) is axes.figure
    (own,) = load_roads("city12").plot(np.full(40, 500.0)).axes
    assert len(own.lines) == 40 + 1
    assert len(axes.lines) == 40 + 1
    assert [text.get_text() for text in axes.texts] == [str(node) for node in range(1, 13)]
