"""How fast traffic equilibria are, beside AequilibraE where a Python that has it is named."""

import json
import logging
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.traffic import (
    RoadNetwork,
    assign,
    assign_days,
    load_departures_frac,
    load_roads,
    load_stations,
    respond,
    road_graph,
    solve_batch,
    synthetic_roads,
    traffic_model,
)
from evcs_gym.envs.types import FloatArray
from evcs_gym.evaluation.speed import median_seconds

_LOG: Final = logging.getLogger(__name__)
PEER_PYTHON: Final = "EVCS_GYM_AEQUILIBRAE_PYTHON"
"""Names a Python with AequilibraE, which needs packages that do not go with ours."""
REFERENCE_DATA: Final = "EVCS_GYM_REFERENCE_DATA"
_PEER_LIMIT_S: Final = 120.0
_SIZES: Final = ((100, 16), (416, 38), (933, 120), (933, 387))
"""Nodes and zones of the synthetic networks; the second is of Anaheim's size, the last of Chicago Sketch's."""
_PEER_SIZE: Final = (416, 38)
_CHARGING_SHARE: Final = 0.06


@dataclass(frozen=True)
class TrafficSpeedRow:
    """One measured figure: median wall time of a call over its items, and the largest relative gap reached.

    buses: None, for there is no feeder in it: rows of all speed targets have the same first six values.
    """

    name: str
    case: str
    buses: None
    batch: int
    seconds_per_item: float
    items_per_second: float
    nodes: int
    pairs: int
    relative_gap: float

    def as_dict(self) -> dict[str, str | int | float | None]:
        """The row as plain values, for JSON."""
        return asdict(self)


def speed_traffic(min_seconds: float = 0.5) -> list[TrafficSpeedRow]:
    """Equilibria per second: single networks to several gaps, batches of "city12", days, answers to prices.

    Sioux Falls where EVCS_GYM_REFERENCE_DATA names a folder that has it. AequilibraE (bi-conjugate Frank-Wolfe, one
    core) on Sioux Falls and on the network of Anaheim's size, where EVCS_GYM_AEQUILIBRAE_PYTHON names its Python.
    """
    rows: list[TrafficSpeedRow] = []
    roads = _sioux_falls()
    if roads is not None:
        rows += [_single_row("Sioux Falls", roads, gap, min_seconds) for gap in (1e-6, 1e-10, 1e-12)]
        rows += _peer_rows("Sioux Falls", roads)
    for n_nodes, n_zones in _SIZES:
        roads = synthetic_roads(n_nodes, n_zones)
        rows += [_single_row("synthetic", roads, gap, min_seconds) for gap in (1e-6, 1e-10)]
        if (n_nodes, n_zones) == _PEER_SIZE:
            rows += _peer_rows("synthetic", roads)
    rows += [_batch_row(load, gap, min_seconds) for load in (1.0, 2.5) for gap in (1e-6, 1e-10)]
    return [*rows, *(_days_row(queue) for queue in ("davidson", "erlang")), _response_row(min_seconds)]


def _row(case: str, roads: RoadNetwork, batch: int, gap: float, seconds: float, name: str = "") -> TrafficSpeedRow:
    times = (seconds / batch, batch / seconds)
    return TrafficSpeedRow(name or "evcs-gym", case, None, batch, *times, roads.n_nodes, roads.n_pairs, gap)


def _sioux_falls() -> RoadNetwork | None:
    folder = Path(os.environ.get(REFERENCE_DATA, ""))
    if not (folder / "SiouxFalls_net.tntp").is_file():
        _LOG.warning("%s names no folder with SiouxFalls_net.tntp, its rows are left out", REFERENCE_DATA)
        return None
    return RoadNetwork.from_tntp(folder / "SiouxFalls_net.tntp", folder / "SiouxFalls_trips.tntp")


def _single_row(case: str, roads: RoadNetwork, gap: float, min_seconds: float) -> TrafficSpeedRow:
    found = assign(roads, relative_gap=gap)
    seconds = median_seconds(lambda: assign(roads, relative_gap=gap), min_seconds, min_calls=3)
    return _row(f"{case}, to {gap:.0e}", roads, 1, found.relative_gap, seconds)


def _batch_row(load: float, gap: float, min_seconds: float, n_days: int = 100) -> TrafficSpeedRow:
    """Slots of many days of through traffic, from nothing but shared paths."""
    roads = load_roads("city12")
    rng = np.random.default_rng(0)
    demand = load * roads.demand_veh_per_h * load_departures_frac()[:, None]
    rows = (demand * rng.uniform(0.7, 1.3, (n_days, *demand.shape))).reshape(-1, roads.n_pairs)
    graph = road_graph(roads)
    found = solve_batch(graph, rows, gap)
    seconds = median_seconds(lambda: solve_batch(graph, rows, gap), min_seconds, min_calls=3)
    most = float((found.flow_veh_per_h / roads.capacity_veh_per_h).max())
    case = f"city12, demand x {load:g} (flow/capacity up to {most:.2f}), batch to {gap:.0e}"
    return _row(case, roads, len(rows), float(found.relative_gap.max()), seconds)


def _days_row(queue: str, n_days: int = 100) -> TrafficSpeedRow:
    model = traffic_model(load_roads("city12"), load_stations(queue))
    rng = np.random.default_rng(0)
    demand = model.network.demand_veh_per_h * load_departures_frac()[:, None]
    demand = demand * rng.uniform(0.8, 1.15, (n_days, *demand.shape))
    split = ((1.0 - _CHARGING_SHARE) * demand, _CHARGING_SHARE * demand)
    found = assign_days(model, *split, 0.4)
    seconds = median_seconds(lambda: assign_days(model, *split, 0.4), 0.0, min_calls=3)
    case = f"city12, whole days with carry-over, {queue} stations, to 1e-06"
    return _row(case, model.network, n_days, float(found.relative_gap.max()), seconds)


def _response_row(min_seconds: float, n_rows: int = 256) -> TrafficSpeedRow:
    """Prices that move by up to 0.01 EUR/kWh between calls; charging is elastic."""
    model = traffic_model(load_roads("city12"), load_stations(), outside_eur=12.0)
    rng = np.random.default_rng(0)
    through = model.network.demand_veh_per_h * rng.uniform(0.4, 0.9, (n_rows, 1)) * np.ones((n_rows, 12))
    price = rng.uniform(0.38, 0.42, (n_rows, 8))
    _, last = respond(model, through, _CHARGING_SHARE * through, price)
    steps = iter(rng.uniform(-0.01, 0.01, (10_000, n_rows, 8)))

    def call() -> None:
        nonlocal last
        _, last = respond(model, through, _CHARGING_SHARE * through, price + next(steps), last)

    seconds = median_seconds(call, min_seconds)
    return _row("city12, answer to prices, to 1e-06", model.network, n_rows, float(last.relative_gap.max()), seconds)


# AequilibraE

_PEER_SCRIPT: Final = """
import json, sys, time
import numpy as np, pandas as pd
from aequilibrae.matrix import AequilibraeMatrix
from aequilibrae.paths import Graph, TrafficAssignment, TrafficClass
data = np.load(sys.argv[1])
links = len(data["tail"])
graph = Graph()
graph.network = pd.DataFrame({"link_id": np.arange(1, links + 1), "a_node": data["tail"] + 1,
    "b_node": data["head"] + 1, "direction": np.ones(links, dtype=np.int8), "capacity": data["capacity"],
    "free_flow_time": data["time"], "b": data["b"], "power": data["power"]})
zones = np.arange(1, int(data["zones"]) + 1)
graph.prepare_graph(zones)
graph.set_graph("free_flow_time")
graph.set_blocked_centroid_flows(bool(data["closed"]))
matrix = AequilibraeMatrix()
matrix.create_empty(zones=len(zones), matrix_names=["trips"], memory_only=True)
matrix.index[:] = zones
matrix.matrix["trips"][:, :] = data["trips"]
matrix.computational_view(["trips"])
work = TrafficAssignment()
work.set_classes([TrafficClass("car", graph, matrix)])
work.set_vdf("BPR")
work.set_vdf_parameters({"alpha": "b", "beta": "power"})
work.set_capacity_field("capacity")
work.set_time_field("free_flow_time")
work.set_algorithm("bfw")
work.set_cores(1)
work.max_iter, work.rgap_target = 100000, 1e-6
begin = time.perf_counter()
work.execute()
seconds = time.perf_counter() - begin
flow = work.results().sort_index()["PCE_AB"].to_numpy()
print("RESULT " + json.dumps({"seconds": seconds, "gap": float(work.assignment.rgap), "flow": flow.tolist()}))
"""


def _peer_rows(case: str, roads: RoadNetwork) -> list[TrafficSpeedRow]:
    python = os.environ.get(PEER_PYTHON)
    if not python:
        _LOG.warning("%s is not set, the rows of AequilibraE are left out", PEER_PYTHON)
        return []
    answer = run_peer(python, roads)
    if answer is None:
        _LOG.warning("AequilibraE has not ended on %s within %g s, its row is left out", case, _PEER_LIMIT_S)
        return []
    flow: FloatArray = np.array(answer["flow"])
    excess = roads.beckmann_veh(flow) / assign(roads, relative_gap=1e-10).beckmann - 1.0
    label = f"{case}, to 1e-06 by bfw, Beckmann {excess:.1e} above the least"
    return [_row(label, roads, 1, float(answer["gap"]), float(answer["seconds"]), "AequilibraE")]


def run_peer(python: str, roads: RoadNetwork) -> dict[str, Any] | None:
    """AequilibraE's seconds, gap and flows; None where it has not ended in time. Raises DataError where it fails."""
    n_zones = int(max(roads.origin.max(), roads.destination.max())) + 1
    trips = np.zeros((n_zones, n_zones))
    trips[roads.origin, roads.destination] = roads.demand_veh_per_h
    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            f"{folder}/case.npz",
            tail=roads.tail,
            head=roads.head,
            capacity=roads.capacity_veh_per_h,
            time=roads.free_flow_h,
            b=roads.bpr_b,
            power=roads.bpr_power,
            zones=n_zones,
            closed=roads.n_closed > 0,
            trips=trips,
        )
        command = [python, "-c", _PEER_SCRIPT, f"{folder}/case.npz"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=folder, timeout=_PEER_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            return None
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode != 0 or not lines:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise DataError(f"{PEER_PYTHON}={python}: AequilibraE must give a result, it said: {said[0]}")
    answer: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return answer
