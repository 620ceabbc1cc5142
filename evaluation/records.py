"""What a comparison leaves behind: one record per number, as JSON and CSV, and the traces that figures are
drawn from.

Records are complete (version, code, configuration, seeds, solver, gap tolerance, command) and strict: a NaN
never enters one, unknown keys are refused, and a file is replaced whole or not at all, so an interrupted run
leaves the last complete state behind.
"""

import csv
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NoReturn, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.files import replace_file
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.evaluation import statistics

R = TypeVar("R", bound="Record")
Kind = Literal["rule", "planner", "learned", "optimum", "clone"]
BY_SEED_AND_DAY = ("cost_eur", "n_violations", "violation_pu", "unmet_kwh")
ORDERING_TOLERANCE = 1e-6
"""Relative slack of the check 'no policy is cheaper than the bound': the rounding of a replayed plan."""


class Record(BaseModel):
    """Base of the records: frozen, strict about unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MarketResult(Record):
    """What only the market has, of one policy. First axis training seeds, second days.

    profit_eur: (n_seeds, n_days, S) of each station [EUR], the income from drivers in it. traded_kwh: sold between
    stations. curtailed_kwh: photovoltaic energy not used. moved_kwh: moved into or out of storage by quantity caps.
    n_capped_slots: slots in which some station was capped. lowest_voltage_pu, highest_voltage_pu: of the day.
    """

    profit_eur: tuple[tuple[tuple[float, ...], ...], ...]
    traded_kwh: tuple[tuple[float, ...], ...]
    curtailed_kwh: tuple[tuple[float, ...], ...]
    moved_kwh: tuple[tuple[float, ...], ...]
    n_capped_slots: tuple[tuple[int, ...], ...]
    lowest_voltage_pu: tuple[tuple[float, ...], ...]
    highest_voltage_pu: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _same_shapes(self) -> Self:
        shape = _shape(self.traded_kwh)
        for name in type(self).model_fields:
            if _shape(getattr(self, name)) != shape:
                raise ValueError(f"{name} must have the seeds and days of traded_kwh {shape}")
        if len({len(stations) for row in self.profit_eur for stations in row}) != 1:
            raise ValueError("profit_eur must have the same stations on every day")
        return self

    @property
    def mean_profit_eur(self) -> tuple[float, ...]:
        """Mean profit of each station [EUR/day]."""
        return tuple(np.mean(self.profit_eur, axis=(0, 1)).tolist())


class FastResult(Record):
    """What only fast charging has, of one policy. First axis training seeds, second days.

    n_stranded: cars that reached no station with a free plug. unabsorbed_kwh: local generation at the stations' buses
    that neither base nor charging took. charge_eur: what charging cost the drivers.
    """

    n_stranded: tuple[tuple[int, ...], ...]
    unabsorbed_kwh: tuple[tuple[float, ...], ...]
    charge_eur: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _same_shapes(self) -> Self:
        shape = _shape(self.n_stranded)
        for name in type(self).model_fields:
            if _shape(getattr(self, name)) != shape:
                raise ValueError(f"{name} must have the seeds and days of n_stranded {shape}")
        return self


class ExploitDay(Record):
    """What each station could have earned more on one day, (S,) [EUR], if the others had bid as they did.

    training_seed: None for rules. played_eur: profit as played, without operator. storage_eur: regret under the asks it
    had; strategic_eur: what other asks add. storage_open_eur, open_eur: what is not proven of the best profit under its
    asks, and of the best profit; the strategic part lies between strategic - storage_open and strategic + open.
    replay_error_eur: profit of the best response in the environment less the programme's, others hold back as they must
    there. operated_gain_eur: what the response brings in the environment with the operator.
    community_eur, optimum_eur: what the community paid, and pays in the cooperative optimum, both without operator.
    traded_kwh; markup_eur: volume x (price - competitive price); competitive_eur: volume x competitive price, which is
    that of the same offers at asks that cover the sellers' costs. n_competition_slots, n_pivotal_slots: slots in which
    several sellers offer more than is asked for, and of those in which one of them cannot be done without.
    """

    training_seed: int | None
    day_seed: int
    played_eur: tuple[float, ...]
    storage_eur: tuple[float, ...]
    strategic_eur: tuple[float, ...]
    storage_open_eur: tuple[float, ...]
    open_eur: tuple[float, ...]
    replay_error_eur: tuple[float, ...]
    operated_gain_eur: tuple[float, ...]
    community_eur: float
    optimum_eur: float
    traded_kwh: float
    markup_eur: float
    competitive_eur: float
    n_competition_slots: int
    n_pivotal_slots: int
    seconds: float


class PolicyResult(Record):
    """One policy on the days of a comparison. Rows are training seeds (one row for rules and the optimum).

    label: as shown in tables. kind: where the decisions come from. training_seeds: one per row, empty for
    rules. cost_eur: (n_seeds, n_days) true cost of the day [EUR]. captured, captured_low, captured_high,
    gap: model.md section 10; the bounds of the 95 % interval are None on fewer than two days. n_violations:
    (n_seeds, n_days) bus-phase-slots outside the effective voltage limits, in the market slots outside any
    effective limit. violation_pu: (n_seeds, n_days) how far outside, summed over them [pu]; None in the market.
    unmet_kwh: (n_seeds, n_days) energy that could have been charged and was not [kWh, grid side]. ms_per_decision:
    wall time of one decision of all buses [ms], None where none was measured. relative_gap: (n_days,) certified gap
    of the solved programme; only for the optimum. note: one line for the report, such as how a learned policy was
    started. exploit: best responses on some of the days, where they were asked for.
    """

    label: str
    kind: Kind
    training_seeds: tuple[int, ...] = ()
    cost_eur: tuple[tuple[float, ...], ...]
    captured: float
    captured_low: float | None
    captured_high: float | None
    gap: float
    n_violations: tuple[tuple[int, ...], ...]
    violation_pu: tuple[tuple[float, ...], ...] | None
    unmet_kwh: tuple[tuple[float, ...], ...]
    ms_per_decision: float | None = None
    relative_gap: tuple[float, ...] | None = None
    note: str = ""
    market: MarketResult | None = None
    fast: FastResult | None = None
    exploit: tuple[ExploitDay, ...] = ()

    @model_validator(mode="after")
    def _same_shapes(self) -> Self:
        shape = _shape(self.cost_eur)
        for name in BY_SEED_AND_DAY[1:]:
            rows = getattr(self, name)
            if rows is not None and _shape(rows) != shape:
                raise ValueError(f"{name} must have the shape of cost_eur {shape}")
        if self.market is not None and _shape(self.market.traded_kwh) != shape:
            raise ValueError(f"market must have the seeds and days of cost_eur {shape}")
        if self.fast is not None and _shape(self.fast.n_stranded) != shape:
            raise ValueError(f"fast must have the seeds and days of cost_eur {shape}")
        if self.training_seeds and len(self.training_seeds) != shape[0]:
            raise ValueError(f"training_seeds must name the {shape[0]} rows of cost_eur")
        if self.relative_gap is not None and len(self.relative_gap) != shape[1]:
            raise ValueError(f"relative_gap must have one number for each of the {shape[1]} days")
        return self

    @property
    def mean_cost_eur(self) -> float:
        """Mean over seeds and days [EUR/day]."""
        return float(np.mean(self.cost_eur))

    @property
    def mean_violations(self) -> float:
        """Bus-phase-slots outside the limits per day."""
        return float(np.mean(self.n_violations))

    @property
    def clean_days(self) -> tuple[int, ...]:
        """Indices of the days on which no seed left the limits."""
        return tuple(int(i) for i in np.flatnonzero(np.sum(self.n_violations, axis=0) == 0))


class Provenance(Record):
    """What is needed to make the numbers again; config_hash covers scenario and presets."""

    version: str
    git_hash: str | None
    config_hash: str
    python: str
    numpy: str
    torch: str | None
    highspy: str | None
    platform: str
    training_seeds: tuple[int, ...]
    solver: str
    relative_gap: float
    timestamp: str
    command: str


class Comparison(Record):
    """Policies beside each other on the same days.

    problem, scenario, split: what was asked. day_seeds: (n_days,) seeds of the days. naive_label: the rule that
    scores 0. bound_label: which proven bound scores 1. naive_cost_eur, lower_bound_eur, infeasible_kwh: (n_days,);
    the last is energy that no policy can deliver. stations: names, in the market. notes: caveats for the report.
    complete: False while policies are still missing.
    """

    record: Literal["evcs-gym comparison 1"] = "evcs-gym comparison 1"
    problem: str
    scenario: str
    split: str
    day_seeds: tuple[int, ...]
    naive_label: str
    bound_label: str
    naive_cost_eur: tuple[float, ...]
    lower_bound_eur: tuple[float, ...]
    infeasible_kwh: tuple[float, ...]
    results: tuple[PolicyResult, ...]
    provenance: Provenance
    stations: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    complete: bool = True

    @model_validator(mode="after")
    def _same_days(self) -> Self:
        n_days = len(self.day_seeds)
        for name in ("naive_cost_eur", "lower_bound_eur", "infeasible_kwh"):
            if len(getattr(self, name)) != n_days:
                raise ValueError(f"{name} must have one number for each of the {n_days} days")
        for result in self.results:
            if _shape(result.cost_eur)[1] != n_days:
                raise ValueError(f"results of {result.label!r} must cover the {n_days} days")
            if result.market is not None and len(result.market.mean_profit_eur) != len(self.stations):
                raise ValueError(f"results of {result.label!r} must cover the {len(self.stations)} stations")
        labels = [result.label for result in self.results]
        if len(set(labels)) != len(labels):
            raise ValueError(f"labels of policies must differ, got {labels}")
        return self

    @property
    def is_fast(self) -> bool:
        """Whether cars are sent to fast-charging stations."""
        return self.problem == "fast_charging"

    def with_result(self, result: PolicyResult, *, complete: bool) -> "Comparison":
        """A copy with one more policy; written after each policy, an interruption loses only the current
        one.
        """
        data = {**self.__dict__, "results": (*self.results, result), "complete": complete}
        return validated(Comparison, data, "comparison")

    def below_bound(self) -> tuple[tuple[str, int], ...]:
        """(label, day seed) of every cost below the bound: a defect of the bound or of the cost, never a
        success.
        """
        bound = np.asarray(self.lower_bound_eur)
        slack_eur = ORDERING_TOLERANCE * np.maximum(1.0, np.abs(bound))
        return tuple(
            (result.label, self.day_seeds[int(day)])
            for result in self.results
            for day in np.flatnonzero((np.asarray(result.cost_eur) < bound - slack_eur).any(axis=0))
        )


def policy_result(
    label: str,
    kind: Kind,
    *,
    cost_eur: ArrayLike,
    naive_cost_eur: ArrayLike,
    lower_bound_eur: ArrayLike,
    n_violations: ArrayLike,
    violation_pu: ArrayLike | None,
    unmet_kwh: ArrayLike,
    training_seeds: Sequence[int] = (),
    ms_per_decision: float | None = None,
    relative_gap: ArrayLike | None = None,
    note: str = "",
    market: MarketResult | None = None,
    fast: FastResult | None = None,
) -> PolicyResult:
    """Score one policy: arrays (n_seeds, n_days) or (n_days,) as in `PolicyResult`, the reference costs
    (n_days,).

    Raises:
        DataError: shapes differ or a number is not finite; the message names the policy.
    """
    try:
        share = statistics.captured(cost_eur, naive_cost_eur, lower_bound_eur)
    except DataError as error:
        raise DataError(f"policy {label!r}: {error}") from error
    data = {
        "label": label,
        "kind": kind,
        "training_seeds": tuple(training_seeds),
        "cost_eur": np.atleast_2d(cost_eur).astype(float).tolist(),
        "captured": share.value,
        "captured_low": share.low,
        "captured_high": share.high,
        "gap": 1.0 - share.value,
        "n_violations": np.atleast_2d(n_violations).tolist(),
        "violation_pu": None if violation_pu is None else np.atleast_2d(violation_pu).astype(float).tolist(),
        "unmet_kwh": np.atleast_2d(unmet_kwh).astype(float).tolist(),
        "ms_per_decision": ms_per_decision,
        "relative_gap": None if relative_gap is None else np.asarray(relative_gap, dtype=float).tolist(),
        "note": note,
        "market": market,
        "fast": fast,
    }
    return validated(PolicyResult, data, f"policy {label!r}")


def validated(record: type[R], data: object, where: str) -> R:
    """The record, or a DataError that says where and which field is wrong."""
    try:
        return record.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or record.__name__
        raise DataError(f"{where}: {field}: {first['msg']}") from error


def _shape(rows: Sequence[Sequence[object]]) -> tuple[int, int]:
    """(n_seeds, n_days) of nested rows, or a ValueError that pydantic reports with the field."""
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"must be (n_seeds, n_days) with equal, non-empty rows, got lengths {sorted(lengths)}")
    return len(rows), lengths.pop()


# --- provenance ---------------------------------------------------------------------------------------------


def collect_provenance(
    *, config_hash: str, training_seeds: Sequence[int], solver: str, relative_gap: float
) -> Provenance:
    """Versions, code, machine and command of this process.

    Args:
        config_hash: of the scenario and presets, as their loaders compute it.
        training_seeds: of all learned policies compared.
        solver: name and version of what made the bound.
        relative_gap: tolerance that the solver was given.
    """
    return Provenance(
        version=installed_version("evcs-gym") or "not installed",
        git_hash=git_hash(),
        config_hash=config_hash,
        python=platform.python_version(),
        numpy=np.__version__,
        torch=installed_version("torch"),
        highspy=installed_version("highspy"),
        platform=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        training_seeds=tuple(training_seeds),
        solver=solver,
        relative_gap=relative_gap,
        timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, without importing it; None where it is absent."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_hash(root: Path | None = None) -> str | None:
    """Commit of the checkout that this code runs from, '+changed' with uncommitted changes; None elsewhere.

    root: folder that must be the top of the checkout. An installed copy inside somebody else's repository (a
    virtual environment in it) is not that repository's code, so the top must be the folder that holds this
    package.
    """
    root = root or Path(__file__).resolve().parent.parent
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != root.resolve():
        return None
    return commit + ("+changed" if _git(root, "status", "--porcelain") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, None where git is missing or refuses (both mean: no checkout to name)."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# --- files --------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> Path:
    """Replace a file whole: written beside it, flushed to disk, then renamed over it.

    Raises:
        DataError: the folder cannot be made or written; the file is then as it was.
    """
    replace_file(path, lambda file: file.write(text.encode()))
    return path


def write_json(path: Path, comparison: Record) -> Path:
    """Write a comparison as strict JSON."""
    return write_text(path, as_json(comparison) + "\n")


def as_json(comparison: Record) -> str:
    """A comparison as strict JSON text: no NaN, no infinity."""
    return json.dumps(comparison.model_dump(mode="json"), allow_nan=False, indent=1)


def read_json(path: Path) -> Comparison:
    """Read what `write_json` wrote.

    Raises:
        DataError: the file is missing, is not strict JSON or is not a comparison.
    """
    return validated(Comparison, strict_json(path), str(path))


def strict_json(path: Path, command: str = "compare") -> object:
    """Content of a JSON file that a command wrote.

    Raises:
        DataError: the file is missing or is not strict JSON.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run 'evcs-gym {command}' first") from error
    except ValueError as error:
        raise DataError(f"{path}: must be strict JSON ({error}); run 'evcs-gym {command}' again") from error


class DayRow(Record):
    """One line of the CSV: one policy, trained with one seed, on one day, with where it came from."""

    problem: str
    scenario: str
    split: str
    day_seed: int
    policy: str
    kind: Kind
    training_seed: int | None
    cost_eur: float
    naive_cost_eur: float
    lower_bound_eur: float
    n_violations: int
    violation_pu: float | None
    unmet_kwh: float
    infeasible_kwh: float
    relative_gap: float | None
    solver: str
    solver_relative_gap: float
    version: str
    git_hash: str | None
    config_hash: str
    timestamp: str


def day_rows(comparison: Comparison) -> tuple[DayRow, ...]:
    """All numbers of a comparison, tidy: policies, then training seeds, then days."""
    return tuple(
        _day_row(comparison, result, row, day)
        for result in comparison.results
        for row in range(len(result.cost_eur))
        for day in range(len(comparison.day_seeds))
    )


def _day_row(comparison: Comparison, result: PolicyResult, row: int, day: int) -> DayRow:
    origin = comparison.provenance
    return DayRow(
        problem=comparison.problem,
        scenario=comparison.scenario,
        split=comparison.split,
        day_seed=comparison.day_seeds[day],
        policy=result.label,
        kind=result.kind,
        training_seed=result.training_seeds[row] if result.training_seeds else None,
        cost_eur=result.cost_eur[row][day],
        naive_cost_eur=comparison.naive_cost_eur[day],
        lower_bound_eur=comparison.lower_bound_eur[day],
        n_violations=result.n_violations[row][day],
        violation_pu=None if result.violation_pu is None else result.violation_pu[row][day],
        unmet_kwh=result.unmet_kwh[row][day],
        infeasible_kwh=comparison.infeasible_kwh[day],
        relative_gap=None if result.relative_gap is None else result.relative_gap[day],
        solver=origin.solver,
        solver_relative_gap=origin.relative_gap,
        version=origin.version,
        git_hash=origin.git_hash,
        config_hash=origin.config_hash,
        timestamp=origin.timestamp,
    )


class StationRow(Record):
    """One line of the market's second CSV: one station under one policy, trained with one seed, on one day."""

    policy: str
    training_seed: int | None
    day_seed: int
    station: str
    profit_eur: float


def station_rows(comparison: Comparison) -> tuple[StationRow, ...]:
    """Profits, tidy: policies, then training seeds, days and stations; empty outside the market."""
    return tuple(
        StationRow(
            policy=result.label,
            training_seed=result.training_seeds[row] if result.training_seeds else None,
            day_seed=day_seed,
            station=station,
            profit_eur=profit,
        )
        for result in comparison.results
        if result.market is not None
        for row, days in enumerate(result.market.profit_eur)
        for day_seed, profits in zip(comparison.day_seeds, days, strict=True)
        for station, profit in zip(comparison.stations, profits, strict=True)
    )


def write_csv(path: Path, comparison: Comparison) -> Path:
    """Write `day_rows` as CSV; an empty field stands for None."""
    return write_rows(path, DayRow, day_rows(comparison))


def write_station_csv(path: Path, comparison: Comparison) -> Path:
    """Write `station_rows` as CSV; an empty field stands for None."""
    return write_rows(path, StationRow, station_rows(comparison))


def write_rows(path: Path, kind: type[Record], rows: Iterable[Record]) -> Path:
    """Write records of one kind as CSV; an empty field stands for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(kind.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.model_dump() for row in rows)
    return write_text(path, text.getvalue())


def read_csv(path: Path) -> tuple[DayRow, ...]:
    """Read what `write_csv` wrote.

    Raises:
        DataError: the file is missing, or a line is not a `DayRow`; the message names the line.
    """
    return tuple(
        validated(DayRow, {key: value or None for key, value in line.items()}, f"{path}: line {number}")
        for number, line in enumerate(_csv_lines(path, DayRow.model_fields), start=2)
    )


def _csv_lines(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Lines of a CSV file by column name, or a DataError where the file or a column is missing."""
    try:
        lines = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    missing = sorted(set(columns) - set(lines.fieldnames or ()))
    if missing:
        raise DataError(f"{path}: columns {', '.join(missing)} are missing, got {lines.fieldnames}")
    return list(lines)


# --- what figures are drawn from ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DayTrace:
    """One day under several policies, summed over the charging buses.

    time_h: (T,) start of each slot on the clock, 12.0 at the first and growing past 24. base_kw, dg_kw: (T,)
    load without cars and generation. import_eur_per_kwh: (T,). charging_kw: label -> (T,). voltage_pu: label
    -> (T, N, P) magnitudes, 0 on absent phases. vmin_pu, vmax_pu: (T, N, P) effective limits. title: what
    day this is.
    """

    time_h: FloatArray
    base_kw: FloatArray
    dg_kw: FloatArray
    import_eur_per_kwh: FloatArray
    charging_kw: Mapping[str, FloatArray]
    voltage_pu: Mapping[str, FloatArray]
    vmin_pu: FloatArray
    vmax_pu: FloatArray
    title: str = ""

    def __post_init__(self) -> None:
        n_slots = (len(self.time_h),)
        limits = (*n_slots, *np.shape(self.vmin_pu)[1:])
        expected = dict.fromkeys(("time_h", "base_kw", "dg_kw", "import_eur_per_kwh"), n_slots)
        expected |= {"vmin_pu": limits, "vmax_pu": limits}
        for name, shape in expected.items():
            _check_trace("DayTrace", name, getattr(self, name), shape)
        for label, array in self.charging_kw.items():
            _check_trace("DayTrace", f"charging_kw[{label!r}]", array, n_slots)
        for label, array in self.voltage_pu.items():
            _check_trace("DayTrace", f"voltage_pu[{label!r}]", array, limits)


def _check_trace(record: str, name: str, array: FloatArray, shape: tuple[int, ...]) -> None:
    if np.shape(array) != shape:
        raise DataError(f"{record}: {name} must have shape {shape}, got {np.shape(array)}")
    if not np.isfinite(array).all():
        raise DataError(f"{record}: {name} must be finite, got NaN or infinity")


@dataclass(frozen=True, eq=False)
class MarketTrace:
    """One day of the market under several policies.

    time_h: (T,) as in `DayTrace`. import_eur_per_kwh, export_eur_per_kwh: (T,) tariffs. surplus_kw: (T,)
    photovoltaic less charging power of all stations, storage apart. price_eur_per_kwh, volume_kw, stored_kwh: label
    -> (T,), what the market published and the energy in all storages at the end of the slot. voltage_pu, vmin_pu,
    vmax_pu, title: as in `DayTrace`.
    """

    time_h: FloatArray
    import_eur_per_kwh: FloatArray
    export_eur_per_kwh: FloatArray
    surplus_kw: FloatArray
    price_eur_per_kwh: Mapping[str, FloatArray]
    volume_kw: Mapping[str, FloatArray]
    stored_kwh: Mapping[str, FloatArray]
    voltage_pu: Mapping[str, FloatArray]
    vmin_pu: FloatArray
    vmax_pu: FloatArray
    title: str = ""

    def __post_init__(self) -> None:
        n_slots = (len(self.time_h),)
        for name in ("time_h", "import_eur_per_kwh", "export_eur_per_kwh", "surplus_kw"):
            _check_trace("MarketTrace", name, getattr(self, name), n_slots)
        limits = (*n_slots, *np.shape(self.vmin_pu)[1:])
        for name in ("vmin_pu", "vmax_pu"):
            _check_trace("MarketTrace", name, getattr(self, name), limits)
        for name in ("price_eur_per_kwh", "volume_kw", "stored_kwh", "voltage_pu"):
            for label, array in getattr(self, name).items():
                shape = limits if name == "voltage_pu" else n_slots
                _check_trace("MarketTrace", f"{name}[{label!r}]", array, shape)


@dataclass(frozen=True, eq=False)
class TrainingCurve:
    """A measure on validation days while training, such as the captured share; all arrays (K,), in file order."""

    training_seed: IntArray
    n_steps: IntArray
    measure: FloatArray


def read_training_curve(*paths: Path, measure: str = "captured") -> TrainingCurve:
    """Read what training logged on validation days; one file may hold one seed or several.

    Columns: training_seed, n_steps and the measure; others are ignored.

    Raises:
        DataError: a file, a column or a number is missing, or there is no line at all.
    """
    columns = ("training_seed", "n_steps", measure)
    rows = [
        _curve_point(line, columns, f"{path}: line {number}")
        for path in paths
        for number, line in enumerate(_csv_lines(path, columns), start=2)
    ]
    if not rows:
        named = ", ".join(str(path) for path in paths) or "no files"
        raise DataError(f"training curve: {named} hold no line; train with validation switched on")
    seed, steps, values = np.array(rows).T
    return TrainingCurve(seed.astype(np.int64), steps.astype(np.int64), values)


def _curve_point(line: Mapping[str, str], columns: Sequence[str], where: str) -> list[float]:
    try:
        point = [float(line[name]) for name in columns]
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {', '.join(columns)} must be numbers, got {dict(line)}") from error
    if not np.isfinite(point).all():
        raise DataError(f"{where}: {', '.join(columns)} must be finite, got {point}")
    return point
