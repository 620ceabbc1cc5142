"""Compare policies of the market on days whose drivers respond: profit, travel time, energy served, no captured share.

Bound, gap and captured share are defined with responsive demand off. Every rule is played at every retail rule named;
a learned policy sets retail prices itself.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from evcs_gym.baselines.registry import make_rule
from evcs_gym.baselines.retail_market import retail_rule
from evcs_gym.baselines.rules_market import MARKET_RULES
from evcs_gym.baselines.score_responsive import AtPrices, FirstDay, ResponsiveRollout, responsive_rollout
from evcs_gym.envs import Scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.responsive import ResponsiveWorld, responsive_world
from evcs_gym.envs.types import FloatArray
from evcs_gym.evaluation import statistics
from evcs_gym.evaluation.contest import OPTIMUM, Listener, Run, load_run
from evcs_gym.evaluation.records import (
    Kind,
    Provenance,
    Record,
    collect_provenance,
    validated,
    write_json,
    write_rows,
)
from evcs_gym.training.callbacks import PROGRESS_FILE
from evcs_gym.training.provenance import config_hash
from evcs_gym.training.train import one_thread

OWN_RETAIL: Final = ("own",)
PROBLEM: Final = "market_responsive"
LEARNED_RETAIL: Final = "learned"
"""Retail rule of a policy that sets prices itself."""
CAPTION: Final = (
    "Drivers respond to retail prices: who charges is part of the result, so bounds, gap and captured share, which are "
    "defined with responsive_demand off, are left out."
)
SOLVER: Final = "traffic equilibria by path-based gradient projection"


class Interval(Record):
    """A mean per day with its 95 % interval over days and training seeds; no interval on fewer than two days."""

    value: float
    low: float | None
    high: float | None


class ResponsiveMeans(Record):
    """Means per day, of all stations together and of each, (S,); units and meaning as in `ResponsiveResult`.

    ahead_eur: profit less that of the first result of the comparison, paired by day.
    """

    profit_eur: Interval
    ahead_eur: Interval
    station_profit_eur: tuple[float, ...]
    travel_h: float
    outside_veh: float
    served_kwh: float
    station_served_kwh: tuple[float, ...]
    retail_eur_per_kwh: float
    cooperative_eur: float


class ResponsiveResult(Record):
    """One policy: a rule for storage and asks at one retail rule, or a learned one. First axis training seeds (one row
    for rules), second days.

    profit_eur, served_kwh: (n_seeds, n_days, S) of each station. travel_h: vehicle-hours of everybody, on roads and at
    stations. outside_veh: cars that did not charge here. unserved_kwh: asked for at these prices and not delivered.
    retail_eur_per_kwh: what drivers paid for a kWh in the mean. cooperative_eur: minus what the community pays,
    everybody's time and the outside option. n_capped_slots, n_violations: slots in which some station was capped, slots
    outside a limit. note: how a learned policy was trained.
    """

    policy: str
    retail: str
    kind: Kind
    training_seeds: tuple[int, ...] = ()
    note: str = ""
    mean: ResponsiveMeans
    profit_eur: tuple[tuple[tuple[float, ...], ...], ...]
    served_kwh: tuple[tuple[tuple[float, ...], ...], ...]
    travel_h: tuple[tuple[float, ...], ...]
    outside_veh: tuple[tuple[float, ...], ...]
    unserved_kwh: tuple[tuple[float, ...], ...]
    retail_eur_per_kwh: tuple[tuple[float, ...], ...]
    cooperative_eur: tuple[tuple[float, ...], ...]
    n_capped_slots: tuple[tuple[int, ...], ...]
    n_violations: tuple[tuple[int, ...], ...]


class ResponsiveComparison(Record):
    """Policies beside each other on the same days. caption: why there is no captured share. provenance: its
    relative_gap is that of the traffic equilibria."""

    record: Literal["evcs-gym responsive comparison 2"] = "evcs-gym responsive comparison 2"
    scenario: str
    split: str
    day_seeds: tuple[int, ...]
    stations: tuple[str, ...]
    caption: str = CAPTION
    results: tuple[ResponsiveResult, ...]
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class Answered:
    """A comparison with what its report draws beside it: the first day of each result and training curves by policy."""

    comparison: ResponsiveComparison
    first_day: tuple[FirstDay, ...]
    first_title: str
    curves: Mapping[str, Sequence[Path]]


class ResponsiveDayRow(Record):
    """One line of days.csv: one policy, trained with one seed, on one day, all stations together."""

    policy: str
    retail: str
    training_seed: int | None
    day_seed: int
    profit_eur: float
    travel_h: float
    outside_veh: float
    served_kwh: float
    unserved_kwh: float
    retail_eur_per_kwh: float
    cooperative_eur: float
    n_capped_slots: int
    n_violations: int


class ResponsiveStationRow(Record):
    """One line of stations.csv: one station under one policy, trained with one seed, on one day."""

    policy: str
    retail: str
    training_seed: int | None
    day_seed: int
    station: str
    profit_eur: float
    served_kwh: float


def compare_responsive(
    scenario: Scenario,
    policies: Sequence[str],
    retail: Sequence[str] = OWN_RETAIL,
    n_days: int = 20,
    split: str = "test",
    out: Path | None = None,
    listener: Listener = lambda _what, _done, _all: None,
) -> ResponsiveComparison:
    """Play policies on the days 0 .. n_days - 1 of a split, every rule at every retail rule.

    Args:
        policies: names of market rules, and run folders of ``problem: market_responsive``.
        retail: names of retail rules, see `evcs_gym.baselines.retail_market.RETAIL_RULES`.
        out: folder for comparison.json, days.csv, stations.csv and report.html.

    Raises:
        ConfigError: a scenario without ``responsive_demand``; an unknown rule, retail rule or split, one named twice,
            none, no day; the exact plan, which does not play here, or a run of another problem. DataError: ``out``
            cannot be written. ConvergenceError: an equilibrium that does not reach ``responsive_demand.relative_gap``.
    """
    _check_question(scenario, policies, retail, n_days)
    runs = load_runs(policies, scenario)
    seeds, named = tuple(range(n_days)), list(_named(policies, retail, runs))
    listener("preparing days", 0, len(named))
    days = scenario.days(seeds, split)
    world = responsive_world(scenario, days)
    results: list[ResponsiveResult] = []
    first_days: list[FirstDay] = []
    for number, (policy, price) in enumerate(named):
        listener(f"playing {policy} at retail prices {price}", number, len(named))
        with one_thread():
            played = _play(world, policy, price, runs)
        results.append(responsive_result(policy, price, played, runs.get(policy), results[0] if results else None))
        first_days.append(played[0].first_day)
    listener("done", len(named), len(named))
    presets = [record.preset for run in runs.values() for record in run.records]
    comparison = ResponsiveComparison(
        scenario=scenario.name,
        split=split,
        day_seeds=seeds,
        stations=scenario.stations.name,
        results=tuple(results),
        provenance=collect_provenance(
            config_hash=config_hash(scenario.model_dump_json(by_alias=True) + json.dumps(presets, sort_keys=True)),
            training_seeds=sorted({seed for run in runs.values() for seed in run.seeds}),
            solver=SOLVER,
            relative_gap=world.relative_gap,
        ),
    )
    if out is not None:
        curves = {name: [folder / PROGRESS_FILE for folder in run.folders] for name, run in runs.items()}
        title = f"{split} day {days[0].seed}, {days[0].date}"
        _store(out, Answered(comparison, tuple(first_days), title, curves))
    return comparison


def _named(policies: Sequence[str], retail: Sequence[str], runs: Mapping[str, Run]) -> Iterator[tuple[str, str]]:
    """Policy and retail rule of every result."""
    for policy in policies:
        yield from [(policy, LEARNED_RETAIL)] if policy in runs else [(policy, price) for price in retail]


def _play(world: ResponsiveWorld, policy: str, price: str, runs: Mapping[str, Run]) -> list[ResponsiveRollout]:
    """The days under one policy, once for each training seed."""
    if policy in runs:
        return [responsive_rollout(world, learned) for learned in runs[policy].policies]
    return [responsive_rollout(world, AtPrices(make_rule(policy, "market"), retail_rule(price)))]


def _check_question(scenario: Scenario, policies: Sequence[str], retail: Sequence[str], n_days: int) -> None:
    if scenario.responsive_spec is None:
        raise ConfigError(
            f"{scenario.name}: responsive_demand must be on where drivers answer prices; add the section, or use "
            "compare"
        )
    if n_days < 1:
        raise ConfigError(f"a comparison needs at least one day, got {n_days}")
    for what, names in (("policy", policies), ("retail rule", retail)):
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"name at least one {what}, and each once, got {', '.join(names) or 'none'}")
    for name in policies:
        if name == OPTIMUM:
            raise ConfigError(
                f"{name!r} cannot be compared where drivers respond: the exact plan wants responsive_demand off; name "
                f"rules ({', '.join(MARKET_RULES)}) and run folders, or leave that section out"
            )
        if not is_run(name):
            make_rule(name, "market")
    for name in retail:
        retail_rule(name)


def is_run(name: str) -> bool:
    """Whether a policy is named by its run folder."""
    return name not in MARKET_RULES and (Path(name).is_dir() or "/" in name or "\\" in name)


def load_runs(policies: Sequence[str], scenario: Scenario) -> dict[str, Run]:
    """The learned ones among the policies, ready to play.

    Raises:
        ConfigError: a run folder without a model, of another problem, or one that does not fit the scenario.
        DataError: a broken file.
    """
    return {name: load_run(name, scenario, PROBLEM) for name in policies if is_run(name)}


def responsive_result(
    policy: str,
    retail: str,
    played: Sequence[ResponsiveRollout],
    run: Run | None = None,
    first: ResponsiveResult | None = None,
) -> ResponsiveResult:
    """The record of rollouts, one for each training seed; first: the result that it is compared with, else itself.

    Raises:
        DataError: a number is not finite.
    """

    def rows(name: str) -> FloatArray:
        return np.stack([getattr(p, name) if hasattr(p, name) else getattr(p.market, name) for p in played])

    profit, served = rows("profit_eur"), rows("served_kwh")
    whole = ("travel_h", "outside_veh", "unserved_kwh", "retail_eur_per_kwh", "cooperative_eur")
    total = profit.sum(axis=2)
    reference = total if first is None else np.sum(first.profit_eur, axis=2)
    data = {
        "policy": policy,
        "retail": retail,
        "kind": "rule" if run is None else run.kind,
        "training_seeds": () if run is None else run.seeds,
        "note": "" if run is None else run.note(),
        "mean": {
            "profit_eur": asdict(statistics.mean(total)),
            "ahead_eur": asdict(statistics.mean_difference(total, reference)),
            "station_profit_eur": profit.mean(axis=(0, 1)).tolist(),
            "served_kwh": float(served.sum(axis=2).mean()),
            "station_served_kwh": served.mean(axis=(0, 1)).tolist(),
            **{name: float(rows(name).mean()) for name in whole if name != "unserved_kwh"},
        },
        "profit_eur": profit.tolist(),
        "served_kwh": served.tolist(),
        **{name: rows(name).tolist() for name in (*whole, "n_capped_slots", "n_violations")},
    }
    return validated(ResponsiveResult, data, f"{policy!r} at retail prices {retail!r}")


def _store(out: Path, answered: Answered) -> None:
    from evcs_gym.evaluation.responsive_report import write_responsive_report

    comparison = answered.comparison
    (out / "report.html").unlink(missing_ok=True)  # it would not belong to the numbers beside it
    write_json(out / "comparison.json", comparison)
    write_rows(out / "days.csv", ResponsiveDayRow, _day_rows(comparison))
    write_rows(out / "stations.csv", ResponsiveStationRow, _station_rows(comparison))
    write_responsive_report(out / "report.html", answered)


def _rows_of(comparison: ResponsiveComparison) -> Iterator[tuple[ResponsiveResult, dict[str, Any], int, int]]:
    """(result, what names the line, row of the training seed, row of the day)."""
    for result in comparison.results:
        for row in range(len(result.travel_h)):
            for day, day_seed in enumerate(comparison.day_seeds):
                seed = result.training_seeds[row] if result.training_seeds else None
                named = {"policy": result.policy, "retail": result.retail, "training_seed": seed, "day_seed": day_seed}
                yield result, named, row, day


def _day_rows(comparison: ResponsiveComparison) -> Iterable[ResponsiveDayRow]:
    whole = ("travel_h", "outside_veh", "unserved_kwh", "retail_eur_per_kwh", "cooperative_eur")
    for result, named, row, day in _rows_of(comparison):
        yield ResponsiveDayRow(
            **named,
            profit_eur=float(np.sum(result.profit_eur[row][day])),
            served_kwh=float(np.sum(result.served_kwh[row][day])),
            **{name: getattr(result, name)[row][day] for name in (*whole, "n_capped_slots", "n_violations")},
        )


def _station_rows(comparison: ResponsiveComparison) -> Iterable[ResponsiveStationRow]:
    for result, named, row, day in _rows_of(comparison):
        columns = (comparison.stations, result.profit_eur[row][day], result.served_kwh[row][day])
        for station, profit_eur, served_kwh in zip(*columns, strict=True):
            yield ResponsiveStationRow(**named, station=station, profit_eur=profit_eur, served_kwh=served_kwh)
