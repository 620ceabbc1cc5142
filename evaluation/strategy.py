"""Both schedules on the same days: fast charging first, charging at home on what it leaves (model.md sections 8, 9).

Fast charging sends the cars that run low on their way to stations; its load becomes part of the base on which charging
at home is scheduled. A pair of policies, one of each, is put beside uncoordinated charging: every car drives to the
nearest station, and at home it charges on arrival.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from evcs_gym.baselines.fast_charging import FastSolution
from evcs_gym.baselines.policy_fast import FastPolicy, MaskedPredictor
from evcs_gym.baselines.registry import NAIVE_RULES, make_policy, names_of
from evcs_gym.baselines.score import rollout
from evcs_gym.baselines.solve import optimum
from evcs_gym.baselines.solvers import SOLVER_NAME, solver_version
from evcs_gym.envs import Day, Scenario, load_scenario
from evcs_gym.envs.day_fast import with_fast_load
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet import fast, normal
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import DAY_START_HOUR, N_SLOTS, SLOT_H
from evcs_gym.evaluation.contest import OPTIMUM, Listener
from evcs_gym.evaluation.records import DayTrace, Provenance, Record, collect_provenance
from evcs_gym.training.checkpoint import read_run
from evcs_gym.training.provenance import config_hash
from evcs_gym.training.train import load_policy, one_thread

DEFAULT_SCENARIO: Final = "ieee33_mobility"
UNCOORDINATED: Final = "uncoordinated"
RELATIVE_GAP: Final = 1e-3
"""Asked of exact plans; what they reached stands in the result."""


class StrategyResult(Record):
    """A pair of policies on the days of a `StrategyComparison`; tuples (n_days,) unless said otherwise.

    fast_cost_eur, normal_cost_eur: true cost of each world, (1) and (5) with stranded cars and voltage; where a station
    and a charging bus share a feeder bus both count its exchange. fast_bill_eur, home_bill_eur: energy at the import
    price, what drivers pay. n_fast, n_home: cars that charged. absorbed_kwh: local generation at all buses with some
    that base load or charging takes; charged_kwh: what of it only charging takes. peak_kw: largest net load of the
    feeder. n_violations, violation_pu: bus-phases and slots outside the effective limits, with both loads.
    n_stranded; unmet_kwh: could have been charged at home and was not; infeasible_kwh: stays were too short;
    beyond_kwh: fast charging after the day. lowest_pu, highest_pu: voltage by feeder bus and phase over all days and
    slots, (n_buses, 3), 0 where there is no such phase. fast_gap, normal_gap: largest gap of exact plans, else None.
    """

    label: str
    fast: str
    normal: str
    fast_cost_eur: tuple[float, ...]
    normal_cost_eur: tuple[float, ...]
    fast_bill_eur: tuple[float, ...]
    home_bill_eur: tuple[float, ...]
    n_fast: tuple[int, ...]
    n_home: tuple[int, ...]
    absorbed_kwh: tuple[float, ...]
    charged_kwh: tuple[float, ...]
    peak_kw: tuple[float, ...]
    n_violations: tuple[int, ...]
    violation_pu: tuple[float, ...]
    n_stranded: tuple[int, ...]
    unmet_kwh: tuple[float, ...]
    infeasible_kwh: tuple[float, ...]
    beyond_kwh: tuple[float, ...]
    lowest_pu: tuple[tuple[float, ...], ...]
    highest_pu: tuple[tuple[float, ...], ...]
    fast_gap: float | None = None
    normal_gap: float | None = None


class StrategyComparison(Record):
    """Strategies on the same days. generation_kwh (n_days,): of all buses. bus_name: of the feeder.
    vmin_pu, vmax_pu: the tightest effective limits of any day and slot, (n_buses, 3)."""

    record: Literal["evcs-gym strategy 1"] = "evcs-gym strategy 1"
    scenario: str
    split: str
    day_seeds: tuple[int, ...]
    n_cars: int
    generation_kwh: tuple[float, ...]
    bus_name: tuple[str, ...]
    vmin_pu: tuple[tuple[float, ...], ...]
    vmax_pu: tuple[tuple[float, ...], ...]
    results: tuple[StrategyResult, ...]
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class _Sites:
    """Feeder buses with charging or generation, U of them: bus (U,), base_kw and dg_kw (D, T, U) without any car;
    home (C, U) and station (J, U): which charging buses and stations are there."""

    bus: IntArray
    base_kw: FloatArray
    dg_kw: FloatArray
    home: FloatArray
    station: FloatArray


@dataclass(frozen=True, eq=False)
class _Home:
    """Charging at home on days with the load of fast charging: (D,), power (D, T, C), voltage (D, T, N, P)."""

    cost_eur: FloatArray
    power_kw: FloatArray
    voltage_pu: FloatArray
    n_violations: IntArray
    violation_pu: FloatArray
    unmet_kwh: FloatArray
    infeasible_kwh: FloatArray
    gap: float | None = None


def compare_strategy(
    fast_policy: str,
    normal_policy: str,
    n_days: int = 10,
    split: str = "test",
    scenario: str | Scenario | None = None,
    listener: Listener = lambda _what, _done, _all: None,
) -> tuple[StrategyComparison, DayTrace]:
    """Play a pair of policies, and uncoordinated charging, on the seeds 0 .. n_days - 1 of a split.

    Returns the numbers and the first day to draw.

    Args:
        fast_policy, normal_policy: a rule or planner of the registry, "optimum", or a run folder.

    Raises:
        ConfigError: an unknown policy or split, no day, a scenario without one of the worlds; before anything is
            played. SolverError: no solver, or one that failed.
    """
    world = scenario if isinstance(scenario, Scenario) else load_scenario(scenario or DEFAULT_SCENARIO)
    if n_days < 1:
        raise ConfigError(f"strategy: n_days must be at least 1, got {n_days}")
    if not (world.has_fast_charging and world.has_home_charging):
        raise ConfigError(f"strategy: {world.name} must have fast charging and charging at home, as {DEFAULT_SCENARIO}")
    naive = (NAIVE_RULES["fast_charging"], NAIVE_RULES["normal_charging"])
    chosen = (check_policy(fast_policy, "fast_charging"), check_policy(normal_policy, "normal_charging"))
    label = f"{fast_policy} + {normal_policy}"
    seeds = tuple(range(n_days))
    days = world.days(seeds, split)
    pairs = {UNCOORDINATED: naive} | ({label: chosen} if chosen != naive else {})
    sites, results, traces = _sites(world, days), [], {}
    for number, (name, (fast_name, normal_name)) in enumerate(pairs.items()):
        listener(f"playing {name}", number, len(pairs))
        with one_thread():
            result, traces[name] = _played(world, days, sites, name, fast_name, normal_name)
        results.append(result)
    listener("done", len(pairs), len(pairs))
    return _comparison(world, days, split, sites, results), _trace(world, days[0], sites, traces)


def check_policy(name: str, problem: Literal["fast_charging", "normal_charging"]) -> str:
    """The name, checked to be a rule, a planner, the optimum or a run of the problem.

    Raises:
        ConfigError: it is none, or a run of another problem.
    """
    if name == OPTIMUM or name in names_of(problem):
        return name
    if not Path(name).is_dir():
        known = (*names_of(problem), OPTIMUM)
        raise ConfigError(
            f"strategy: there is no policy {name!r} of {problem} (known: {', '.join(known)}, a run folder)"
        )
    learned = read_run(Path(name)).preset.get("problem", "normal_charging")
    if learned != problem:
        raise ConfigError(f"strategy: {name} was trained for {learned}, not for {problem}")
    return name


# -- the two worlds ---------------------------------------------------------------------------------------------------


def _fast(scenario: Scenario, days: Sequence[Day], name: str) -> tuple[list[fast.FastReplay], float | None]:
    """Every day's fast charging put through the environment, and the largest gap of exact plans."""
    if name == OPTIMUM:
        solutions = [optimum(scenario, day, "fast_charging", RELATIVE_GAP) for day in days]
        plans = [s.plan.station for s in solutions if isinstance(s, FastSolution)]
        return _replays(scenario, days, plans), max(s.relative_gap for s in solutions)
    policy: Any = _policy(scenario, name, "fast_charging")
    if not isinstance(policy, FastPolicy):
        policy = MaskedPredictor(policy)
    played = rollout(fast.make_fast_world(scenario, days), policy)
    plans = [played.station[d, : len(fast.requests_of(day))] for d, day in enumerate(days)]
    return _replays(scenario, days, plans), None


def _replays(scenario: Scenario, days: Sequence[Day], plans: Sequence[IntArray]) -> list[fast.FastReplay]:
    return [fast.replay(scenario, day, plan) for day, plan in zip(days, plans, strict=True)]


def _policy(scenario: Scenario, name: str, problem: str) -> Any:
    return make_policy(name, problem, scenario) if name in names_of(problem) else load_policy(name, scenario)


def _home(scenario: Scenario, days: Sequence[Day], name: str) -> _Home:
    """Charging at home on days that hold the load of fast charging."""
    world = normal.make_world(scenario, days)
    infeasible_kwh = world.infeasible_kwh.sum(axis=1)
    if name == OPTIMUM:
        solutions = [optimum(scenario, day, "normal_charging", RELATIVE_GAP) for day in days]
        replays = [normal.replay(scenario, day, s.plan.power_kw) for day, s in zip(days, solutions, strict=True)]
        return _Home(
            cost_eur=np.array([r.cost_eur for r in replays]),
            power_kw=np.stack([r.bus_power_kw for r in replays]),
            voltage_pu=np.abs(np.stack([r.voltage_pu for r in replays])),
            n_violations=np.array([r.n_violations.sum() for r in replays]),
            violation_pu=np.array([r.violation_pu.sum() for r in replays]),
            unmet_kwh=np.array([r.missing_kwh for r in replays]),
            infeasible_kwh=infeasible_kwh,
            gap=max(s.relative_gap for s in solutions),
        )
    done = rollout(world, _policy(scenario, name, "normal_charging"), keep_voltage=True)
    return _Home(
        cost_eur=done.cost_eur,
        power_kw=done.bus_power_kw,
        voltage_pu=np.abs(np.asarray(done.voltage_pu)),
        n_violations=done.n_violations,
        violation_pu=done.violation_pu,
        unmet_kwh=done.unmet_kwh,
        infeasible_kwh=infeasible_kwh,
    )


# -- what is measured -------------------------------------------------------------------------------------------------


def _sites(scenario: Scenario, days: Sequence[Day]) -> _Sites:
    """The buses of both worlds; one that has a station and cars at home is one site with one generation."""
    stations = scenario.fast_stations.bus
    bus = np.unique(np.concatenate([scenario.charging_bus, stations]))
    home = (scenario.charging_bus[:, None] == bus).astype(np.float64)
    station = (stations[:, None] == bus).astype(np.float64)
    first = np.array([np.flatnonzero(np.concatenate([scenario.charging_bus, stations]) == b)[0] for b in bus])

    def series(name: str) -> FloatArray:
        both = [np.hstack([getattr(day, name), getattr(fast.requests_of(day), name)]) for day in days]
        return np.stack(both)[:, :, first]

    return _Sites(bus, series("base_kw"), series("dg_kw"), home, station)


def _played(
    scenario: Scenario, days: Sequence[Day], sites: _Sites, label: str, fast_name: str, normal_name: str
) -> tuple[StrategyResult, tuple[FloatArray, FloatArray]]:
    """A pair of policies; of the first day the charging power of all sites (T,) and the voltage (T, N, P)."""
    sent, fast_gap = _fast(scenario, days, fast_name)
    loaded = [with_fast_load(scenario, day, one.load_kw) for day, one in zip(days, sent, strict=True)]
    home = _home(scenario, loaded, normal_name)
    charging_kw = np.stack([one.load_kw for one in sent]) @ sites.station + home.power_kw @ sites.home  # (D, T, U)
    base_taken = np.minimum(sites.dg_kw, sites.base_kw)
    absorbed = np.minimum(sites.dg_kw, sites.base_kw + charging_kw)
    prices = np.stack([day.import_eur_per_kwh for day in days])
    net_kw = np.stack([day.load_kva.real.sum(axis=(1, 2)) for day in days]) + charging_kw.sum(axis=2)
    present = scenario.feeder.phase_present
    result = StrategyResult(
        label=label,
        fast=fast_name,
        normal=normal_name,
        fast_cost_eur=_numbers([one.cost_eur for one in sent]),
        normal_cost_eur=_numbers(home.cost_eur),
        fast_bill_eur=_numbers([one.charge_eur.sum() for one in sent]),
        home_bill_eur=_numbers(SLOT_H * (prices * home.power_kw.sum(axis=2)).sum(axis=1)),
        n_fast=tuple(
            len(fast.requests_of(day)) - int(one.n_stranded.sum()) for day, one in zip(days, sent, strict=True)
        ),
        n_home=tuple(int((row > 0.0).sum()) for row in normal.make_world(scenario, loaded).need_kwh),
        absorbed_kwh=_numbers(SLOT_H * absorbed.sum(axis=(1, 2))),
        charged_kwh=_numbers(SLOT_H * (absorbed - base_taken).sum(axis=(1, 2))),
        peak_kw=_numbers(net_kw.max(axis=1)),
        n_violations=tuple(int(n) for n in home.n_violations),
        violation_pu=_numbers(home.violation_pu),
        n_stranded=tuple(int(one.n_stranded.sum()) for one in sent),
        unmet_kwh=_numbers(home.unmet_kwh),
        infeasible_kwh=_numbers(home.infeasible_kwh),
        beyond_kwh=_numbers([one.beyond_kwh.sum() for one in sent]),
        lowest_pu=_by_bus(np.where(present, home.voltage_pu.min(axis=(0, 1)), 0.0)),
        highest_pu=_by_bus(np.where(present, home.voltage_pu.max(axis=(0, 1)), 0.0)),
        fast_gap=fast_gap,
        normal_gap=home.gap,
    )
    return result, (charging_kw[0].sum(axis=1), home.voltage_pu[0])


def _numbers(values: Sequence[float] | FloatArray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _by_bus(values: FloatArray) -> tuple[tuple[float, ...], ...]:
    return tuple(_numbers(row) for row in values)


def _comparison(
    scenario: Scenario, days: Sequence[Day], split: str, sites: _Sites, results: Sequence[StrategyResult]
) -> StrategyComparison:
    return StrategyComparison(
        scenario=scenario.name,
        split=split,
        day_seeds=tuple(day.seed for day in days),
        n_cars=sum(bus.n_cars for bus in scenario.charging_buses),
        generation_kwh=_numbers(SLOT_H * sites.dg_kw.sum(axis=(1, 2))),
        bus_name=tuple(scenario.feeder.bus_name),
        vmin_pu=_by_bus(np.stack([day.vmin_pu for day in days]).max(axis=(0, 1))),
        vmax_pu=_by_bus(np.stack([day.vmax_pu for day in days]).min(axis=(0, 1))),
        results=tuple(results),
        provenance=collect_provenance(
            config_hash=config_hash(scenario.model_dump_json(by_alias=True)),
            training_seeds=sorted(_training_seeds(results)),
            solver=f"{SOLVER_NAME} {solver_version()}",
            relative_gap=RELATIVE_GAP,
        ),
    )


def _training_seeds(results: Sequence[StrategyResult]) -> set[int]:
    names = {name for result in results for name in (result.fast, result.normal)}
    return {read_run(Path(name)).seed for name in names if Path(name).is_dir()}


def _trace(scenario: Scenario, day: Day, sites: _Sites, played: dict[str, tuple[FloatArray, FloatArray]]) -> DayTrace:
    """The first day of every strategy, summed over all sites."""
    absent = ~scenario.feeder.phase_present[None]
    return DayTrace(
        time_h=DAY_START_HOUR + SLOT_H * np.arange(N_SLOTS, dtype=np.float64),
        base_kw=sites.base_kw[0].sum(axis=1),
        dg_kw=sites.dg_kw[0].sum(axis=1),
        import_eur_per_kwh=day.import_eur_per_kwh,
        charging_kw={label: charging for label, (charging, _) in played.items()},
        voltage_pu={label: voltage for label, (_, voltage) in played.items()},
        vmin_pu=day.vmin_pu,
        vmax_pu=np.where(absent, scenario.feeder_spec.vmax_pu, day.vmax_pu),
        title=f"{day.split} day {day.seed}, {day.date}",
    )


# -- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """A line of the table: what it is, its unit, how it is printed, and its value of a strategy."""

    name: str
    unit: str
    digits: int
    value: Callable[[StrategyComparison, StrategyResult], float]


def _daily(field: str) -> Callable[[StrategyComparison, StrategyResult], float]:
    return lambda _, result: float(np.mean(getattr(result, field)))


def _per_car(bill: str, cars: str) -> Callable[[StrategyComparison, StrategyResult], float]:
    return lambda _, result: float(np.sum(getattr(result, bill)) / max(1, np.sum(getattr(result, cars))))


def _present(values: Sequence[Sequence[float]]) -> FloatArray:
    flat = np.array(values)
    return np.asarray(flat[flat > 0.0])


MEASURES: Final = (
    Measure("local generation absorbed", "kWh/day", 0, _daily("absorbed_kwh")),
    Measure(
        "share of the generation",
        "%",
        1,
        lambda comparison, result: 100.0 * sum(result.absorbed_kwh) / max(1e-9, sum(comparison.generation_kwh)),
    ),
    Measure("of it by charging alone", "kWh/day", 0, _daily("charged_kwh")),
    Measure("a fast charge", "EUR/car", 3, _per_car("fast_bill_eur", "n_fast")),
    Measure("a charge at home", "EUR/car", 3, _per_car("home_bill_eur", "n_home")),
    Measure("cost of fast charging, (1)", "EUR/day", 2, _daily("fast_cost_eur")),
    Measure("cost of charging at home, (5)", "EUR/day", 2, _daily("normal_cost_eur")),
    Measure("peak of the feeder's net load", "kW", 0, _daily("peak_kw")),
    Measure("lowest voltage", "pu", 4, lambda _, result: float(_present(result.lowest_pu).min())),
    Measure("highest voltage", "pu", 4, lambda _, result: float(_present(result.highest_pu).max())),
    Measure("bus-phases and slots out of limits", "a day", 1, _daily("n_violations")),
    Measure("stranded cars", "a day", 2, _daily("n_stranded")),
    Measure("unmet at home", "kWh/day", 1, _daily("unmet_kwh")),
    Measure("stays too short for", "kWh/day", 1, _daily("infeasible_kwh")),
    Measure("fast charging after the day", "kWh/day", 1, _daily("beyond_kwh")),
)


def table_rows(comparison: StrategyComparison) -> list[dict[str, str]]:
    """Lines of the table: measure, unit and one column per strategy."""
    return [
        {"measure": measure.name, "unit": measure.unit}
        | {result.label: f"{measure.value(comparison, result):.{measure.digits}f}" for result in comparison.results}
        for measure in MEASURES
    ]
