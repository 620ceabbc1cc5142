"""How both scheduling worlds grow with the number of cars: time and memory of a step, a heuristic, the exact solve.

The cars of a shipped city are multiplied and each is made smaller in the same measure, battery, consumption, charger
and plugs: the same energy is split among more cars, so that network and generation mean the same at every size.

Every cell is measured in a process of its own, which gives its memory and which can be stopped. Finished cells are kept
in a file: the same command goes on where it was interrupted.
"""

import contextlib
import dataclasses
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from evcs_gym.envs import Day, Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError, DataError, EvcsError
from evcs_gym.envs.fleet import fast, normal
from evcs_gym.envs.fleet.fast import requests_of
from evcs_gym.envs.fleet.needs import session_needs
from evcs_gym.envs.scenario import scenario_from_dict
from evcs_gym.envs.types import Sessions, frozen
from evcs_gym.envs.units import MS_PER_S, N_SLOTS
from evcs_gym.evaluation.contest import Listener
from evcs_gym.evaluation.records import write_text
from evcs_gym.evaluation.speed_fast import nearest_plan, play_plan

CARS: Final = (100, 1_000, 10_000, 100_000)
CITIES: Final = {"normal_charging": "ieee33_residential", "fast_charging": "ieee33_mobility"}
"""City whose cars are multiplied, by world."""
CELLS: Final = {
    "normal_charging": ("environment", "water_filling", "receding_horizon", "exact", "bound"),
    "fast_charging": ("environment", "slot_at_once", "cheapest", "slot_optimum", "exact", "bound"),
}
"""What is measured. ``environment``: steps with observations, in fast charging a request each; ``slot_at_once``: the
same with all requests of a slot in one step. ``bound``: only where ``exact`` proves nothing in time."""
CPU_CELLS: Final = ("environment", "slot_at_once", "water_filling", "cheapest")
"""Cells timed in seconds of the processor, which other work on the machine disturbs little; the others, whose solver is
a process of its own, in wall time."""
SPLIT: Final = "test"
RELATIVE_GAP: Final = 1e-3
BUILD_FACTOR: Final = 2.0
"""A cell may take this many times the limit of its solver: models of very many cars take long to build."""
START_S: Final = 60.0
"""And this long to start, to prepare its day and to compile."""
STOP_S: Final = 10.0
KIB_PER_MIB: Final = 1024
DONE: Final = "done"


@dataclass(frozen=True)
class ScaleRow:
    """A measured cell.

    n_decided: cars that ask to be charged on the day. seconds: of what was measured, without preparing the day; see
    `CPU_CELLS`. ms_per_slot: of the steps or decisions of a slot, mean over the day. memory_mib: largest resident
    memory of the process and of its solver. cost_eur, bound_eur: of the plan, and below what none can be. status:
    "done", else why not; of ``bound`` rows the plan is the rounded one. NaN, null in JSON: nothing to say.
    """

    world: str
    n_cars: int
    cell: str
    n_decided: int
    seconds: float
    ms_per_slot: float
    memory_mib: float
    cost_eur: float
    bound_eur: float
    status: str

    @property
    def gap(self) -> float:
        """What is not proven, as a share of the cost."""
        return (self.cost_eur - self.bound_eur) / max(1.0, abs(self.cost_eur))

    def as_dict(self) -> dict[str, Any]:
        """The row as plain values; what is not known is None."""
        return {key: None if value != value else value for key, value in {**asdict(self), "gap": self.gap}.items()}


def scale_table(
    cars: Sequence[int] = CARS,
    limit_s: float = 120.0,
    out: Path | None = None,
    listener: Listener = lambda _what, _done, _all: None,
) -> list[ScaleRow]:
    """Measure every cell that is not in ``out``/scale.json yet.

    Args:
        cars: sizes of the fleet. limit_s: of the solver in a cell.

    Raises:
        ConfigError: no cars, or no time. DataError: a broken or unwritable file.
    """
    if not cars or min(cars) < 1 or limit_s <= 0.0:
        raise ConfigError(f"scale: cars and limit_s must be positive, got {list(cars)} and {limit_s:g}")
    known = {} if out is None else _read(out / "scale.json")
    wanted = [(world, n, cell) for world, cells in CELLS.items() for n in cars for cell in cells]
    rows: list[ScaleRow] = []
    for number, (world, n, cell) in enumerate(wanted):
        listener(f"{world}, {n} cars, {cell}", number, len(wanted))
        if cell == "bound" and rows[-1].status == DONE:
            continue
        row = known.get((world, n, cell)) or _in_a_process(world, n, cell, limit_s)
        rows.append(row)
        if out is not None:
            known[world, n, cell] = row
            content = [one.as_dict() for one in known.values()]
            write_text(out / "scale.json", json.dumps(content, allow_nan=False, indent=1) + "\n")
    listener("done", len(wanted), len(wanted))
    return rows


def _read(path: Path) -> dict[tuple[str, int, str], ScaleRow]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [_row_of(row) for row in content]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: must hold rows of scale, got {error}; delete it to measure anew") from error
    return {(row.world, row.n_cars, row.cell): row for row in rows}


def _row_of(content: dict[str, Any]) -> ScaleRow:
    """The row of its plain values; raises KeyError where one is missing."""
    values: dict[str, Any] = {field.name: content[field.name] for field in dataclasses.fields(ScaleRow)}
    known: dict[str, Any] = {name: float("nan") if value is None else value for name, value in values.items()}
    return ScaleRow(**known)


def _in_a_process(world: str, n_cars: int, cell: str, limit_s: float) -> ScaleRow:
    """The cell measured by this module run as a program; a row with a reason where that ends badly."""
    command = [sys.executable, "-m", "evcs_gym.evaluation.scale", world, str(n_cars), cell, str(limit_s)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    allowed_s = BUILD_FACTOR * limit_s + START_S
    status = f"stopped after {allowed_s:.0f} s"
    try:
        answer, remarks = child.communicate(timeout=allowed_s)
        if child.returncode == 0:
            return _row_of(json.loads(answer.splitlines()[-1]))
        last = remarks.strip().splitlines()[-1:] or [f"status {child.returncode}"]
        status = f"failed: {last[0]}"
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)  # its solver ends with it
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=STOP_S)
    finally:
        child.kill()
        child.wait()
    return ScaleRow(world, n_cars, cell, 0, allowed_s, np.nan, np.nan, np.nan, np.nan, status)


def rich_scale_table(rows: Sequence[ScaleRow]) -> Table:
    """The rows for the terminal, 80 columns wide."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("world", "cars", "cell", "seconds", "ms/slot", "MiB", "gap %", "status"):
        table.add_column(name, justify="left" if name in ("world", "cell", "status") else "right", overflow="fold")
    for row in rows:
        numbers = (row.seconds, row.ms_per_slot, row.memory_mib, 100.0 * row.gap)
        shown = ["" if value != value else f"{value:.3g}" for value in numbers]
        world = row.world.removesuffix("_charging")
        table.add_row(*(Text(cell) for cell in (world, str(row.n_cars), row.cell, *shown, row.status)))
    return table


# -- cities -----------------------------------------------------------------------------------------------------------


def city_of(world: str, n_cars: int) -> Scenario:
    """The city of a world with about ``n_cars`` cars, shared among its buses as before; its stations have plugs in
    proportion, each of them smaller."""
    content = load_scenario(CITIES[world]).model_dump(mode="json", by_alias=True)
    buses = content["charging_buses"]
    factor = n_cars / sum(bus["n_cars"] for bus in buses)
    for bus in buses:
        bus["n_cars"] = max(1, round(bus["n_cars"] * factor))
    section = content.get("fast_charging")
    if section is not None:
        section["mean_requests_per_slot"] *= factor
        section["stranded_eur"] /= factor
        for station in section["stations"]:
            plugs = max(1, round(station["n_plugs"] * factor))
            station["plug_kw"] *= station["n_plugs"] / plugs
            station["n_plugs"] = plugs
    return scenario_from_dict(content, f"{CITIES[world]} with {n_cars} cars")


def day_of(scenario: Scenario, world: str, seed: int = 0) -> Day:
    """A day of the city whose cars are smaller in the measure in which there are more of them."""
    day = scenario.day(seed, SPLIT)
    shipped = load_scenario(CITIES[world])
    size = sum(b.n_cars for b in shipped.charging_buses) / sum(b.n_cars for b in scenario.charging_buses)
    sessions = _smaller(day.sessions, size, "capacity_kwh", "power_kw")
    fast_day = None if day.fast is None else _smaller(day.fast, size, "capacity_kwh", "consumption_kwh_per_km")
    return dataclasses.replace(day, sessions=sessions, fast=fast_day)


def _smaller(record: Any, size: float, *names: str) -> Any:
    return dataclasses.replace(record, **{name: frozen(getattr(record, name) * size) for name in names})


# -- cells, each in its own process -----------------------------------------------------------------------------------


@dataclass
class _Measured:
    """What a cell finds."""

    seconds: float
    n_decided: int
    ms_per_slot: float = float("nan")
    cost_eur: float = float("nan")
    bound_eur: float = float("nan")
    status: str = DONE


def measure(world: str, n_cars: int, cell: str, limit_s: float) -> ScaleRow:
    """One cell, in this process.

    Raises:
        ConfigError: no such cell. SolverError: no solver, or one that failed.
    """
    if cell not in CELLS.get(world, ()):
        raise ConfigError(f"scale: {world!r} has no cell {cell!r}")
    city = city_of(world, n_cars)
    day = day_of(city, world)
    cells: dict[str, Callable[[], _Measured]] = {
        "environment": lambda: _environment(city, day, world),
        "slot_at_once": lambda: _slots_at_once(city, day),
        "exact": lambda: _exact(city, day, world, limit_s),
        "bound": lambda: _bound(city, day, world, limit_s),
    }
    found = cells[cell]() if cell in cells else _policy(city, day, world, cell, limit_s)
    return ScaleRow(world, n_cars, cell, memory_mib=_memory_mib(), **asdict(found))


def _n_decided(day: Day, world: str) -> int:
    if world == "fast_charging":
        return len(requests_of(day))
    return int((session_needs(day.sessions, "on_off").n_slots > 0).sum())


def _environment(city: Scenario, day: Day, world: str) -> _Measured:
    """Step and observation of one environment through a day, after one that compiles the kernels."""
    if world == "fast_charging":
        seconds = _play_fast(fast.make_fast_world(city, [day]), 1)
    else:
        _play_normal(city, _tenth(day))
        seconds = _play_normal(city, day)
    return _Measured(seconds, _n_decided(day, world), MS_PER_S * seconds / N_SLOTS)


def _slots_at_once(city: Scenario, day: Day) -> _Measured:
    """A day of fast charging with all requests of a slot in one step, the second time: the first one compiles."""
    world = fast.make_fast_world(city, [day])
    seconds = _play_fast(world, int(np.diff(world.days.slot_start[0]).max()))
    return _Measured(seconds, len(requests_of(day)), MS_PER_S * seconds / N_SLOTS)


def _tenth(day: Day) -> Day:
    """The same day with a tenth of its cars: enough to compile everything."""
    keep = np.arange(0, len(day.sessions), 10)
    sessions = Sessions(**{n: getattr(day.sessions, n)[keep] for n in Sessions.__dataclass_fields__})
    return dataclasses.replace(day, sessions=sessions)


def _play_normal(city: Scenario, day: Day) -> float:
    """Seconds of the steps of a day that absorbs the DG surplus."""
    world = normal.make_world(city, [day])
    state, action = normal.initial_state(world, np.zeros(1, dtype=np.int64)), np.zeros((1, world.n_buses))
    began = time.process_time()
    while state.slot[0] < N_SLOTS:
        state, _ = normal.step(world, state, normal.dispatch(world, state, action))
        normal.observe(world, state)
    return time.process_time() - began


def _play_fast(world: fast.FastWorld, width: int) -> float:
    """Seconds of the steps of a day, every request to the nearest station, ``width`` of a slot at a time."""
    plan = nearest_plan(world)
    play_plan(world, plan, width)
    began = time.process_time()
    play_plan(world, plan, width)
    return time.process_time() - began


def _policy(city: Scenario, day: Day, world: str, name: str, limit_s: float) -> _Measured:
    """A day under a rule or planner, decisions alone timed; stops when their time is over."""
    from evcs_gym.baselines.registry import make_policy
    from evcs_gym.baselines.score import rollout, world_of

    policy: Any = _expecting(city, day) if name == "receding_horizon" else make_policy(name, world, city)
    timed: Any = _Timed(policy, limit_s, time.process_time if name in CPU_CELLS else time.perf_counter)
    try:
        done = rollout(world_of(city, [day], world), timed)
    except _OutOfTime:  # a request is a decision of fast charging, a slot one of charging at home
        per_slot = MS_PER_S * timed.seconds / timed.n_decisions if world == "normal_charging" else float("nan")
        status = f"stopped after {timed.n_decisions} decisions"
        return _Measured(timed.seconds, _n_decided(day, world), per_slot, status=status)
    return _Measured(
        timed.seconds, _n_decided(day, world), MS_PER_S * timed.seconds / N_SLOTS, cost_eur=float(done.cost_eur[0])
    )


def _expecting(city: Scenario, day: Day) -> Any:
    """A receding horizon that expects smaller cars, as the day has them: the mean of a few training days."""
    from evcs_gym.baselines.arrivals import arrivals_of
    from evcs_gym.baselines.policy import Rule
    from evcs_gym.baselines.receding_normal import Horizon

    size = float(day.sessions.capacity_kwh.mean() / city.day(day.seed, SPLIT).sessions.capacity_kwh.mean())
    days = [
        dataclasses.replace(one, sessions=_smaller(one.sessions, size, "capacity_kwh", "power_kw"))
        for one in city.days(range(N_EXPECTED_DAYS))
    ]
    return Rule("receding_horizon", Horizon(arrivals_of(normal.make_world(city, days))).target_kw)


N_EXPECTED_DAYS: Final = 8
"""Training days from which the planner of a large city learns: the fleet is large, its means are smooth."""


class _OutOfTime(Exception):
    """A policy has had its time."""


class _Timed:
    """A policy of either world with a stop-watch."""

    def __init__(self, policy: Any, limit_s: float, clock: Callable[[], float]) -> None:
        self.policy, self.limit_s, self.clock = policy, limit_s, clock
        self.seconds, self.n_decisions = 0.0, 0
        for name in ("predict", "send"):
            if hasattr(policy, name):
                setattr(self, name, self._watched(getattr(policy, name)))

    def attach(self, source: Any) -> None:
        """See `Rule`."""
        self.policy.attach(source)

    def _watched(self, decide: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            began = self.clock()
            answer = decide(*arguments, **named)
            self.seconds, self.n_decisions = self.seconds + self.clock() - began, self.n_decisions + 1
            if self.seconds > self.limit_s:
                raise _OutOfTime
            return answer

        return watched


def _exact(city: Scenario, day: Day, world: str, limit_s: float) -> _Measured:
    """The exact day, with network and certificate."""
    from evcs_gym.baselines import optimum

    began = time.perf_counter()
    solution: Any = optimum(city, day, world, RELATIVE_GAP, limit_s)
    return _Measured(
        time.perf_counter() - began,
        _n_decided(day, world),
        cost_eur=solution.cost_eur,
        bound_eur=solution.lower_bound_eur,
        status=DONE if solution.status == "optimal" else f"{solution.status} at {100 * solution.relative_gap:.2g} %",
    )


def _bound(city: Scenario, day: Day, world: str, limit_s: float) -> _Measured:
    """The relaxation alone, and its plan rounded by playing it through the environment."""
    rounded = _rounded_normal if world == "normal_charging" else _rounded_fast
    began = time.perf_counter()
    cost, bound = rounded(city, day, limit_s)
    return _Measured(time.perf_counter() - began, _n_decided(day, world), cost_eur=cost, bound_eur=bound)


def _rounded_normal(city: Scenario, day: Day, limit_s: float) -> tuple[float, float]:
    from evcs_gym.baselines.normal_charging import Budget, solve_programme
    from evcs_gym.baselines.open_loop import OpenLoop, bus_totals_kw
    from evcs_gym.baselines.problems.normal_charging import problem_of
    from evcs_gym.baselines.score import rollout

    budget = Budget(time.monotonic(), limit_s)
    answer = solve_programme(problem_of(city, day, "modulated"), None, 0.0, budget)
    totals = bus_totals_kw(day.sessions, answer.power_kw, len(city.charging_buses))
    played = rollout(normal.make_world(city, [day]), OpenLoop([totals]))
    return float(played.cost_eur[0]), answer.bound_eur


def _rounded_fast(city: Scenario, day: Day, limit_s: float) -> tuple[float, float]:
    from evcs_gym.baselines.fast_charging import solve_programme
    from evcs_gym.baselines.normal_charging import Budget
    from evcs_gym.baselines.problems.fast_charging import problem_of

    answer = solve_programme(problem_of(city, day), None, 0.0, Budget(time.monotonic(), limit_s), relaxed=True)
    return fast.replay(city, day, answer.station).cost_eur, answer.bound_eur


def _memory_mib() -> float:
    """Largest resident memory of this process and of its solvers, which end here."""
    from evcs_gym.baselines.solvers import stop_workers

    stop_workers()
    gc.collect()  # planners keep a solver of their own, which ends with them
    until = time.monotonic() + STOP_S
    with contextlib.suppress(ChildProcessError):  # none is left: the system has counted them all
        while time.monotonic() < until:
            os.waitpid(-1, os.WNOHANG)
            time.sleep(0.01)
    kib = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kib / KIB_PER_MIB


@contextlib.contextmanager
def _stdout_for_the_row() -> Iterator[None]:
    with contextlib.redirect_stdout(sys.stderr):
        yield


def main(arguments: Sequence[str]) -> int:
    """Measure one cell and print its row as JSON: what `scale_table` starts."""
    world, n_cars, cell, limit_s = arguments
    try:
        with _stdout_for_the_row():
            row = measure(world, int(n_cars), cell, float(limit_s))
    except EvcsError as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1
    sys.stdout.write(json.dumps(row.as_dict(), allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
