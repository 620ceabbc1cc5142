"""How fast the environments are, beside what others offer for the same work, measured on the machine at hand."""

import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

import numba
import numpy as np

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.grid import Feeder, load_feeder, power_flow
from evcs_gym.envs.grid.pandapower_net import STIFF_SOURCE_MVA
from evcs_gym.envs.types import ComplexArray
from evcs_gym.envs.units import KW_PER_MW, N_SLOTS, NS_PER_S, V_PER_KV

_LOG: Final = logging.getLogger(__name__)
_TOLERANCE_PU: Final = 1e-8
GROWTH_BUSES: Final = (33, 123, 906, 2500, 8500)
"""Sizes of the trees that show how the cost grows: those of well-known test feeders."""
GROWTH_FEEDERS: Final = ("ieee123",)
"""Shipped feeders that are timed beside the trees: with laterals, regulators and loads that depend on voltage."""
GROWTH_BUS_CASES: Final = 2**19
"""Buses times cases of a call on a large tree: enough for a steady time, little enough for memory."""


@dataclass(frozen=True)
class SpeedRow:
    """One measured figure: the median time of a call, divided by its items.

    times_own: how much longer an item takes than evcs-gym's in its largest batch on the same buses; NaN where there is
    nothing to compare.
    """

    name: str
    case: str
    buses: int
    batch: int
    seconds_per_item: float
    items_per_second: float
    times_own: float = math.nan

    def as_dict(self) -> dict[str, str | int | float]:
        """The row as plain values, for JSON."""
        return asdict(self)


def speed_power_flow(
    batches: Sequence[int] = (1, 32, 1024, 4096),
    min_seconds: float = 0.5,
    feeder: Feeder | None = None,
    growth_buses: Sequence[int] = GROWTH_BUSES,
    growth_feeders: Sequence[str] = GROWTH_FEEDERS,
) -> list[SpeedRow]:
    """Three-phase power flows per second and core: this project, then power-grid-model and pandapower if installed.

    batches: cases per call. min_seconds: each figure is the median of at least five calls over at least this time.
    feeder: "synthetic33" by default; pandapower can take part only if its lines are transposed. growth_buses: sizes
    of synthetic trees that this project is timed on afterwards, to show how the cost grows; growth_feeders: shipped
    feeders timed after them.

    Every program runs on one thread and is timed in seconds of that core (CPU time), which other work on the machine
    disturbs little. Every case has its own loads (50-120 % of nominal per phase), starts from the source voltage and
    is solved to 1e-8 pu. power-grid-model runs its batch mode with the faster of its two iterative methods. pandapower
    has no batch mode for unbalanced networks: one row, batch 1.

    Raises ConfigError if a batch is empty.
    """
    if not batches or min(batches) < 1:
        raise ConfigError(f"speed power-flow: every batch must hold at least one case, got {list(batches)}")
    feeder = load_feeder("synthetic33") if feeder is None else feeder
    rng = np.random.default_rng(0)
    loads = feeder.load_kva * rng.uniform(0.5, 1.2, (max(batches), len(feeder), 3))
    with _one_thread():
        rows = [_own_row(feeder, loads[:batch], min_seconds) for batch in batches]
        peers: tuple[tuple[str, Callable[[], Iterable[SpeedRow]]], ...] = (
            ("power-grid-model", lambda: [_power_grid_model_row(feeder, loads[:b], min_seconds) for b in batches]),
            ("pandapower", lambda: [_pandapower_row(feeder, loads[0], min_seconds)]),
        )
        for name, measure in peers:
            try:
                rows.extend(measure())
            except ImportError as error:
                _LOG.warning("%s is not installed, its rows are left out (%s)", name, error)
        own_s = next(row.seconds_per_item for row in rows if row.batch == max(batches))
        rows = [replace(row, times_own=row.seconds_per_item / own_s) for row in rows]
        larger = (*map(synthetic_tree, growth_buses), *map(load_feeder, growth_feeders))
        return rows + [_growth_row(feeder, min_seconds) for feeder in larger]


@contextmanager
def _one_thread() -> Iterator[None]:
    """This project's kernels on the calling thread alone."""
    n_threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        yield
    finally:
        numba.set_num_threads(n_threads)


def synthetic_tree(n_buses: int, drop_pu: float = 0.05) -> Feeder:
    """A random tree of ``n_buses`` at 12.66 kV with equal coupled lines and unbalanced loads, the same every time.

    Loads are scaled so that the lowest voltage of the linear power flow is ``drop_pu`` below the source's: trees of
    every size are equally hard, so that the time of a power flow shows the number of buses and nothing else.
    """
    rng = np.random.default_rng(n_buses)
    parent = [-1, *(int(rng.integers(max(0, bus - 6), bus)) for bus in range(1, n_buses))]
    line = np.full((3, 3), 0.1 + 0.2j) + np.diag(np.full(3, 0.2 + 0.3j))
    impedance = np.repeat(line[None], n_buses, axis=0)
    load = rng.uniform(0.5, 1.5, (n_buses, 3)) * (1.0 + 0.5j)
    impedance[0], load[0] = 0.0, 0.0

    def tree(load_kva: ComplexArray) -> Feeder:
        return Feeder.from_arrays(
            parent=parent,
            impedance_ohm=impedance,
            line_to_line_kv=12.66,
            load_kva=load_kva,
            name=f"tree{n_buses}",
        )

    tiny: ComplexArray = np.asarray(load * 1e-9, dtype=np.complex128)
    fall = 1.0 - np.abs(power_flow(tree(tiny), tiny[None], tolerance_pu=1e-13).voltage_pu).min()
    return tree(np.asarray(tiny * (drop_pu / fall)))


def _growth_row(feeder: Feeder, min_seconds: float) -> SpeedRow:
    n_buses = len(feeder)
    batch = max(64, min(1024, GROWTH_BUS_CASES // n_buses))
    loads = feeder.load_kva * np.random.default_rng(0).uniform(0.5, 1.2, (batch, n_buses, 3))
    row = _own_row(feeder, loads, min_seconds)
    return replace(row, case=f"{feeder.name}, {row.seconds_per_item / n_buses * NS_PER_S:.1f} ns per bus")


def median_seconds(
    call: Callable[[], object],
    min_seconds: float,
    min_calls: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median time of a call [s], after one call that is not counted; wall time unless ``clock`` is another one."""
    call()
    seconds: list[float] = []
    end = time.perf_counter() + min_seconds
    while len(seconds) < min_calls or time.perf_counter() < end:
        start = clock()
        call()
        seconds.append(clock() - start)
    return statistics.median(seconds)


def _row(name: str, feeder: Feeder, batch: int, seconds_per_call: float, case: str = "") -> SpeedRow:
    label = f"{feeder.name}, {case}" if case else feeder.name
    return SpeedRow(name, label, len(feeder), batch, seconds_per_call / batch, batch / seconds_per_call)


def _own_row(feeder: Feeder, loads_kva: ComplexArray, min_seconds: float) -> SpeedRow:
    call = partial(power_flow, feeder, loads_kva, tolerance_pu=_TOLERANCE_PU)
    seconds = median_seconds(call, min_seconds, clock=time.process_time)
    return _row("evcs-gym", feeder, len(loads_kva), seconds)


# power-grid-model


def _power_grid_model_row(feeder: Feeder, loads_kva: ComplexArray, min_seconds: float) -> SpeedRow:
    from power_grid_model import CalculationMethod, ComponentType, PowerGridModel

    model = PowerGridModel(power_grid_model_input(feeder))
    update = power_grid_model_update(feeder, loads_kva)
    seconds = {
        method.name: median_seconds(
            lambda method=method: model.calculate_power_flow(  # type: ignore[misc]
                symmetric=False,
                error_tolerance=_TOLERANCE_PU,
                calculation_method=method,
                update_data=update,
                threading=-1,
                output_component_types={ComponentType.node: ["u_pu", "u_angle"]},
            ),
            min_seconds,
            clock=time.process_time,
        )
        for method in (CalculationMethod.newton_raphson, CalculationMethod.iterative_current)
    }
    best = min(seconds, key=lambda name: seconds[name])
    return _row("power-grid-model", feeder, len(loads_kva), seconds[best], best)


def power_grid_model_input(feeder: Feeder, source_pu: float = 1.0) -> dict[str, Any]:
    """Input data of power-grid-model: one ideal source, full 3x3 lines, one load per bus; node id = bus.

    Only for feeders on which every phase reaches every bus; raises ConfigError for others.
    """
    from power_grid_model import initialize_array

    if not feeder.has_all_phases:
        raise ConfigError(f"feeder {feeder.name!r} has absent phases, which power-grid-model's lines do not know")
    n_buses = len(feeder)
    buses = np.arange(n_buses)
    node = initialize_array("input", "node", n_buses)
    node["id"], node["u_rated"] = buses, feeder.line_to_line_kv * V_PER_KV
    line = initialize_array("input", "asym_line", n_buses - 1)
    line["id"] = n_buses + buses[1:]
    line["from_node"], line["to_node"] = feeder.parent[1:], buses[1:]
    line["from_status"] = line["to_status"] = 1
    for row, column in ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)):
        key = "abc"[row] + "abc"[column]
        line[f"r_{key}"] = feeder.impedance_ohm[1:, row, column].real
        line[f"x_{key}"] = feeder.impedance_ohm[1:, row, column].imag
    line["c0"] = line["c1"] = 0.0
    load = initialize_array("input", "asym_load", n_buses - 1)
    load["id"], load["node"], load["status"], load["type"] = 2 * n_buses + buses[1:], buses[1:], 1, 0
    load["p_specified"] = feeder.load_kva[1:].real * KW_PER_MW
    load["q_specified"] = feeder.load_kva[1:].imag * KW_PER_MW
    source = initialize_array("input", "source", 1)
    source["id"], source["node"], source["status"], source["u_ref"] = 3 * n_buses, 0, 1, source_pu
    source["sk"] = STIFF_SOURCE_MVA * KW_PER_MW**2
    return {"node": node, "asym_line": line, "asym_load": load, "source": source}


def power_grid_model_update(feeder: Feeder, loads_kva: ComplexArray) -> dict[str, Any]:
    """Batch update of power-grid-model with the loads (B, N, 3) [kVA]."""
    from power_grid_model import initialize_array

    n_buses = len(feeder)
    update = initialize_array("update", "asym_load", (len(loads_kva), n_buses - 1))
    update["id"] = 2 * n_buses + np.arange(1, n_buses)
    update["p_specified"] = loads_kva[:, 1:].real * KW_PER_MW
    update["q_specified"] = loads_kva[:, 1:].imag * KW_PER_MW
    return {"asym_load": update}


# pandapower


def _pandapower_row(feeder: Feeder, load_kva: ComplexArray, min_seconds: float) -> SpeedRow:
    from pandapower import runpp_3ph

    net = feeder.to_pandapower(load_kva)
    tolerance_mva = _TOLERANCE_PU
    seconds = median_seconds(partial(runpp_3ph, net, tolerance_mva=tolerance_mva), min_seconds, clock=time.process_time)
    return _row("pandapower", feeder, 1, seconds, "runpp_3ph")


# environments

SPEED_FLEET_CARS = 200
"""Cars of the city that the environment is timed on, spread over its charging buses."""


def speed_fleet(batches: Sequence[int] = (32, 256, 1024), min_seconds: float = 1.0) -> list[SpeedRow]:
    """Steps per second of normal charging, random actions, with the full observation and a power flow every step.

    Cases: a city of 200 cars and the shipped one; ``gymnasium.make`` (batch 1), ``gymnasium.make_vec`` in one process,
    and the SB3 environment with rows of buses, whose items are row steps. Then the time of a reset from the pool, of
    the import, and of the first step after it with a cold and a warm numba cache, each in a fresh process.
    """
    import gymnasium as gym

    from evcs_gym.envs.fleet.env import DEFAULT_SCENARIO, NormalChargingEnv
    from evcs_gym.envs.scenario import load_scenario

    shipped = load_scenario(DEFAULT_SCENARIO)
    rows: list[SpeedRow] = []
    for label, scenario in ((f"{SPEED_FLEET_CARS} cars", _city_of(SPEED_FLEET_CARS)), ("shipped city", shipped)):
        n_buses = len(scenario.feeder)
        options: dict[str, Any] = {"scenario": scenario, "pool_days": 32}
        env = gym.make("evcs/NormalCharging-v0", **options)
        rows.append(_steps_row(f"{label}, gymnasium.make", n_buses, 1, _single_day(env), min_seconds))
        for batch in batches:
            call = _vector_day(gym.make_vec("evcs/NormalCharging-v0", num_envs=batch, **options))
            rows.append(_steps_row(f"{label}, gymnasium.make_vec", n_buses, batch, call, min_seconds))
        rows.append(_sb3_row(label, scenario, min_seconds))
    plain = NormalChargingEnv(shipped, pool_days=32)
    rows.append(_call_row("reset from the pool", len(shipped.feeder), median_seconds(plain.reset, min_seconds)))
    return rows + _start_rows(len(shipped.feeder))


def _city_of(n_cars: int) -> Any:
    from evcs_gym.envs.fleet.env import DEFAULT_SCENARIO
    from evcs_gym.envs.scenario import scenario_from_dict
    from evcs_gym.envs.specs import read_yaml

    source, content = read_yaml("scenarios", DEFAULT_SCENARIO)
    places = content["charging_buses"]
    for number, place in enumerate(places):
        place["n_cars"] = n_cars * (number + 1) // len(places) - n_cars * number // len(places)
    return scenario_from_dict(content, source)


def _single_day(env: Any) -> Callable[[], object]:
    """A whole day of one environment: 48 steps and a reset."""
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (N_SLOTS, *env.action_space.shape)).astype(np.float32)

    def play() -> None:
        env.reset()
        for action in actions:
            env.step(action)

    return play


def _vector_day(env: Any) -> Callable[[], object]:
    """A whole day of a vector environment."""
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (N_SLOTS, *env.action_space.shape)).astype(np.float32)
    env.reset(seed=0)

    def play() -> None:
        for action in actions:
            env.step(action)

    return play


def _sb3_row(label: str, scenario: Any, min_seconds: float, n_envs: int = 256) -> SpeedRow:
    from evcs_gym.envs.fleet.pool import load_pool
    from evcs_gym.training.vec_env import NormalChargingVecEnv

    env = NormalChargingVecEnv(load_pool(scenario, "train", 32), n_envs)
    case = f"{label}, SB3 rows of buses"
    return _steps_row(case, len(scenario.feeder), env.num_envs, _rows_day(env), min_seconds)


def _rows_day(env: Any) -> Callable[[], object]:
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (N_SLOTS, env.num_envs, 1))
    env.reset()

    def play() -> None:
        for action in actions:
            env.step(action)

    return play


def _steps_row(case: str, n_buses: int, batch: int, play: Callable[[], object], min_seconds: float) -> SpeedRow:
    seconds = median_seconds(play, min_seconds, min_calls=3) / (N_SLOTS * batch)
    return SpeedRow("evcs-gym", case, n_buses, batch, seconds, 1.0 / seconds)


def _call_row(case: str, n_buses: int, seconds: float) -> SpeedRow:
    return SpeedRow("evcs-gym", case, n_buses, 1, seconds, 1.0 / seconds)


_IMPORT_SCRIPT: Final = """
import time; begin = time.perf_counter()
import evcs_gym.envs
print(time.perf_counter() - begin)
"""
_FIRST_STEP_SCRIPT: Final = """
import time
import gymnasium, evcs_gym.envs
begin = time.perf_counter()
env = gymnasium.make("evcs/NormalCharging-v0"); env.reset(seed=0); env.step(env.action_space.sample())
print(time.perf_counter() - begin)
"""


def _start_rows(n_buses: int) -> list[SpeedRow]:
    """Import, and first step after it: cold numba cache and no pool on disk, then both warm; fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"NUMBA_CACHE_DIR": f"{folder}/numba", "EVCS_GYM_CACHE": f"{folder}/pools"}
        return [
            _call_row(case, n_buses, _printed_seconds(script, places))
            for case, script in (
                ("first step after import, cold numba cache", _FIRST_STEP_SCRIPT),
                ("first step after import, warm numba cache", _FIRST_STEP_SCRIPT),
                ("import evcs_gym.envs", _IMPORT_SCRIPT),
            )
        ]


def _printed_seconds(script: str, places: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **places}, capture_output=True, text=True, check=True
    )
    return float(done.stdout)
