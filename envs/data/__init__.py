"""Shipped tables: profiles of one year, travel habits, car models; how they are read and checked.

Everything stands on the fixed clock UTC+1 in half-hours. Origin, licence and changes of every file are in SOURCES.md
beside this module; ``build.py`` made the files. Every ``load_*`` also reads a user's own file of the same layout.
"""

import csv
import math
import os
import zipfile
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

import numpy as np

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.types import FloatArray, IntArray, frozen
from evcs_gym.envs.units import DAY_START_HOUR, N_SLOTS, SLOT_H

CLOCK: Final = timezone(timedelta(hours=1))
"""The fixed clock of every table: UTC+1, no daylight saving."""
SHIPPED_YEARS: Final = (2016,)
DAY_TYPES: Final = ("weekdays", "saturday", "sunday")
"""Day types of the travel tables; an index into this tuple is a *day type* everywhere."""
PERSON_TYPES: Final = ("non_worker", "worker")
HOME: Final = "home"
MIN_PER_H: Final = 60.0
LONGEST_LEG_H: Final = 6.0
"""Longer trips do not fit into diaries of one day with a way back."""
FRACTION_TOLERANCE: Final = 1e-3
"""Printed probabilities are rounded to five digits or fewer, so their sums miss 1 by up to about 1e-4."""

DataPath = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Profiles:
    """Half-hourly profiles; H half-hours from ``start`` on, all arrays read-only.

    start: beginning of the first half-hour (UTC+1).
    load_name, load_p_frac, load_q_frac: names (n) and (H, n) active and reactive load, each as a fraction of the
        load's nominal active and reactive power. pv_name, pv_frac, wind_name, wind_frac: (H, n) of installed power.
    price_eur_per_kwh: (H,) day-ahead spot price.
    """

    start: datetime
    load_name: tuple[str, ...]
    load_p_frac: FloatArray
    load_q_frac: FloatArray
    pv_name: tuple[str, ...]
    pv_frac: FloatArray
    wind_name: tuple[str, ...]
    wind_frac: FloatArray
    price_eur_per_kwh: FloatArray

    def __len__(self) -> int:
        return len(self.price_eur_per_kwh)


@dataclass(frozen=True, eq=False)
class TravelTables:
    """Travel habits: when trips start and where they lead, how many there are, how far and how long they go.

    departure_frac: (2, 3, 48, D) by PERSON_TYPES, DAY_TYPES, half-hour of the calendar day and destination; each
        (person, day) table sums to 1 over all trips of a day. destinations: D names, one of them "home".
    n_trips_frac: (3, M) probability of 0, 1, .. M - 1 trips by DAY_TYPES.
    leg_frac: (R, C) joint probability of a trip's distance and duration; distance_edge_km (R + 1,) and
        duration_edge_h (C + 1,) are the borders of its cells.
    """

    departure_frac: FloatArray
    destinations: tuple[str, ...]
    n_trips_frac: FloatArray
    leg_frac: FloatArray
    distance_edge_km: FloatArray
    duration_edge_h: FloatArray

    @property
    def home(self) -> int:
        """Column of the destination "home"."""
        return self.destinations.index(HOME)


@dataclass(frozen=True, eq=False)
class VehicleModels:
    """Battery cars on sale, arrays (M,): registrations, usable battery, largest AC and DC charging power."""

    names: tuple[str, ...]
    n_registrations: IntArray
    capacity_kwh: FloatArray
    ac_power_kw: FloatArray
    dc_power_kw: FloatArray


# ---------------------------------------------------------------------------------------------------- profiles


@lru_cache(maxsize=8)
def load_profiles(year: int = 2016, path: DataPath | None = None) -> Profiles:
    """Profiles of a calendar year: H = 48 half-hours per day from 1 January 00:00 (UTC+1) on.

    ``path`` names an .npz file with the arrays ``start`` (ISO text, UTC+1), ``load_name``, ``load_p_frac``,
    ``load_q_frac``, ``pv_name``, ``pv_frac``, ``wind_name``, ``wind_frac``, ``price_eur_per_kwh``; without it the
    shipped file of the year is read. The record is shared by all callers and read-only.

    Raises DataError: no such file or year, a missing array, NaN, another length, a negative load, PV or wind.
    """
    if path is None and year not in SHIPPED_YEARS:
        raise DataError(f"profiles: year must be one of {list(SHIPPED_YEARS)}, got {year}; pass path= to your own file")
    source = files(__package__) / f"profiles_{year}.npz" if path is None else Path(path)
    arrays = _read_npz(source)
    n_rows = N_SLOTS * ((date(year + 1, 1, 1) - date(year, 1, 1)).days)
    profiles = Profiles(
        start=_start(arrays, source, year),
        load_name=_names(arrays, source, "load_name"),
        load_p_frac=_profile(arrays, source, "load_p_frac", n_rows, "load_name"),
        load_q_frac=_profile(arrays, source, "load_q_frac", n_rows, "load_name", signed=True),
        pv_name=_names(arrays, source, "pv_name"),
        pv_frac=_profile(arrays, source, "pv_frac", n_rows, "pv_name"),
        wind_name=_names(arrays, source, "wind_name"),
        wind_frac=_profile(arrays, source, "wind_frac", n_rows, "wind_name"),
        price_eur_per_kwh=_profile(arrays, source, "price_eur_per_kwh", n_rows, None, signed=True),
    )
    return profiles


def profile_window(day_index: int, n_days: int = 366) -> slice:
    """Rows of the 48 half-hours from noon of calendar day ``day_index`` (0 = 1 January) to noon of the next.

    n_days: days of the profiles' year. Raises ConfigError: ``day_index`` outside 0..n_days - 2 (the last day has no
    next noon).
    """
    if not 0 <= day_index <= n_days - 2:
        raise ConfigError(f"profile_window: day_index must be in 0..{n_days - 2} of {n_days} days, got {day_index}")
    first = day_index * N_SLOTS + round(DAY_START_HOUR / SLOT_H)
    return slice(first, first + N_SLOTS)


def _read_npz(source: Traversable) -> dict[str, Any]:
    """Every array of an .npz file; no pickle."""
    try:
        with source.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise DataError(f"{source}: no such profile file; check the path, or reinstall evcs-gym") from error
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{source}: must be an .npz archive of plain arrays; {error}") from error


def _array(arrays: dict[str, Any], source: Traversable, name: str) -> Any:
    if name not in arrays:
        raise DataError(f"{source}: must hold the array {name!r}, got {sorted(arrays)}")
    return arrays[name]


def _start(arrays: dict[str, Any], source: Traversable, year: int) -> datetime:
    text = str(_array(arrays, source, "start"))
    expected = datetime(year, 1, 1, tzinfo=CLOCK)
    try:
        start = datetime.fromisoformat(text)
    except ValueError as error:
        raise DataError(f"{source}: start must be an ISO time such as {expected.isoformat()}, got {text!r}") from error
    if start.tzinfo is None or start.astimezone(UTC) != expected.astimezone(UTC):
        raise DataError(f"{source}: start must be {expected.isoformat()} for the year {year}, got {text!r}")
    return expected


def _names(arrays: dict[str, Any], source: Traversable, name: str) -> tuple[str, ...]:
    names = tuple(str(entry) for entry in np.atleast_1d(_array(arrays, source, name)))
    if not names or len(set(names)) != len(names):
        raise DataError(f"{source}: {name} must hold at least one name, none twice, got {list(names)}")
    return names


def _profile(
    arrays: dict[str, Any], source: Traversable, name: str, n_rows: int, names: str | None, signed: bool = False
) -> FloatArray:
    """One table (n_rows, names) or column (n_rows,), finite, and not negative unless ``signed``."""
    try:
        table: FloatArray = np.array(_array(arrays, source, name), dtype=np.float64, order="C")
    except ValueError as error:
        raise DataError(f"{source}: {name} must hold numbers; {error}") from error
    shape = (n_rows,) if names is None else (n_rows, len(_names(arrays, source, names)))
    if table.shape != shape:
        raise DataError(
            f"{source}: {name} must have the shape {shape} (half-hours of the year, {names or 'one price'}), "
            f"got {table.shape}"
        )
    _refuse(~np.isfinite(table), table, f"{source}: {name} must be finite")
    if not signed:
        _refuse(table < 0, table, f"{source}: {name} must not be negative")
    frozen_table: FloatArray = frozen(table)
    return frozen_table


def _refuse(bad: Any, table: Any, rule: str) -> None:
    """DataError that names the first bad entry."""
    if np.any(bad):
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(f"{rule}, got {table[where]} at {where}; mend the file")


# ------------------------------------------------------------------------------------------------ travel tables


@lru_cache(maxsize=8)
def load_travel_tables(folder: DataPath | None = None) -> TravelTables:
    """Travel tables from the four ``travel_*.csv`` files of a folder (default: the shipped ones).

    Source: emobpy 0.6.2 (Gaete-Morales et al. 2021, 10.1038/s41597-021-00932-9), made from the German survey
    *Mobilität in Deutschland*. Raises DataError: a file or column missing, no number, negative, sums other than 1.
    """
    place = files(__package__) if folder is None else Path(folder)
    names, non_worker = _departures(place / "travel_departures.csv")
    worker_names, worker = _departures(place / "travel_departures_worker.csv")
    if worker_names != names:
        raise DataError(
            f"{place / 'travel_departures_worker.csv'}: destinations must be those of travel_departures.csv "
            f"{list(names)}, got {list(worker_names)}"
        )
    leg_frac, distance_edge_km, duration_edge_h = _legs(place / "travel_legs.csv")
    return TravelTables(
        departure_frac=frozen(np.stack([non_worker, worker])),
        destinations=names,
        n_trips_frac=frozen(_trips_per_day(place / "travel_trips_per_day.csv")),
        leg_frac=frozen(leg_frac),
        distance_edge_km=frozen(distance_edge_km),
        duration_edge_h=frozen(duration_edge_h),
    )


def _departures(source: Traversable) -> tuple[tuple[str, ...], FloatArray]:
    """Destinations and the table (3, 48, D): probability that a trip of the day starts then and leads there."""
    header, rows = _read_csv(source)
    names = tuple(column.removesuffix("_frac") for column in header[2:])
    if header[:2] != ["day_type", "start_h"] or HOME not in names:
        raise DataError(f"{source}: columns must be day_type, start_h and destinations with home_frac, got {header}")
    table = np.zeros((len(DAY_TYPES), N_SLOTS, len(names)))
    seen = np.zeros((len(DAY_TYPES), N_SLOTS), dtype=bool)
    for row in rows:
        slot = _number(source, row[1]) / SLOT_H
        if row[0] not in DAY_TYPES or slot not in range(N_SLOTS):
            raise DataError(
                f"{source}: day_type must be in {list(DAY_TYPES)}, start_h in 0, 0.5, .. 23.5, got {row[:2]}"
            )
        at = DAY_TYPES.index(row[0]), int(slot)
        table[at] = [_number(source, entry) for entry in row[2:]]
        seen[at] = True
    if len(rows) != seen.size or not seen.all():
        raise DataError(
            f"{source}: every day type must have 48 rows, one per half-hour, got {seen.sum(axis=1).tolist()}"
        )
    _check_distribution(source, table.reshape(len(DAY_TYPES), -1))
    home_frac = table[:, :, names.index(HOME)].sum(axis=1)
    if np.any(home_frac <= 0) or np.any(home_frac >= table.sum(axis=(1, 2))):
        raise DataError(
            f"{source}: every day type must have trips home and trips elsewhere, got home {home_frac.tolist()}"
        )
    return names, _normalised(table, (1, 2))


def _trips_per_day(source: Traversable) -> FloatArray:
    """(3, M): probability of 0, 1, .. trips by day type; Saturday and Sunday share the weekend's column."""
    header, rows = _read_csv(source)
    if header != ["n_trips", "weekday_frac", "weekend_frac"]:
        raise DataError(f"{source}: columns must be n_trips, weekday_frac, weekend_frac, got {header}")
    numbers = np.array([[_number(source, entry) for entry in row] for row in rows])
    if numbers[:, 0].tolist() != list(range(len(rows))):
        raise DataError(f"{source}: n_trips must be 0, 1, 2, .. without gaps, got {numbers[:, 0].tolist()}")
    if np.any(numbers[1, 1:] != 0):
        raise DataError(
            f"{source}: a day of one trip must have probability 0 (a day starts and ends at home), "
            f"got {numbers[1, 1:].tolist()}"
        )
    table: FloatArray = numbers[:, [1, 2, 2]].T
    _check_distribution(source, table)
    if np.any(numbers[0, 1:] >= 1):
        raise DataError(f"{source}: some days must have trips, got probability 1 for none")
    return _normalised(table, (1,))


def _legs(source: Traversable) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Joint distance and duration table (R, C) with its borders in km (R + 1,) and h (C + 1,).

    The table prints upper borders; the lowest borders are 0 km and half the first duration, so that the shortest
    trips do not take no time at all.
    """
    header, rows = _read_csv(source)
    if header[0] != "distance_km" or not all(c.startswith("up_to_") and c.endswith("_min") for c in header[1:]):
        raise DataError(f"{source}: columns must be distance_km, up_to_<number>_min, .., got {header}")
    numbers = np.array([[_number(source, entry) for entry in row] for row in rows])
    upper_min = [_number(source, c.removeprefix("up_to_").removesuffix("_min")) for c in header[1:]]
    duration_edge_h = np.array([upper_min[0] / 2, *upper_min]) / MIN_PER_H
    distance_edge_km = np.concatenate([[0.0], numbers[:, 0]])
    for name, edges in (("distance_km", distance_edge_km), ("durations", duration_edge_h)):
        if np.any(np.diff(edges) <= 0):
            raise DataError(f"{source}: {name} must rise, got {edges[1:].tolist()}")
    if duration_edge_h[-1] > LONGEST_LEG_H:
        raise DataError(f"{source}: durations must not exceed {LONGEST_LEG_H} h, got {duration_edge_h[-1]} h")
    _check_distribution(source, numbers[:, 1:].reshape(1, -1))
    return _normalised(numbers[:, 1:], (0, 1)), distance_edge_km, duration_edge_h


def _check_distribution(source: Traversable, table: FloatArray) -> None:
    _refuse(table < 0, table, f"{source}: probabilities must not be negative")
    sums = table.sum(axis=1)
    if np.any(np.abs(sums - 1) > FRACTION_TOLERANCE):
        raise DataError(f"{source}: probabilities of a day type must sum to 1, got {sums.tolist()}")


def _normalised(table: FloatArray, axes: tuple[int, ...]) -> FloatArray:
    result: FloatArray = table / table.sum(axis=axes, keepdims=True)
    return result


def calendar_day_types(first_day: date, n_days: int) -> IntArray:
    """Day type, an index into DAY_TYPES, of ``n_days`` calendar dates from ``first_day`` on (n_days,).

    Public holidays count as the weekday they fall on: the survey's tables do not set them apart.
    """
    weekday = (first_day.weekday() + np.arange(n_days)) % 7
    types: IntArray = np.select([weekday == 5, weekday == 6], [1, 2], 0).astype(np.int64)
    return types


# ------------------------------------------------------------------------------------------------------- cars

VEHICLE_COLUMNS: Final = ("model", "n_registrations", "capacity_kwh", "ac_power_kw", "dc_power_kw")


@lru_cache(maxsize=8)
def load_vehicle_models(path: DataPath | None = None) -> VehicleModels:
    """Car models from a CSV file with the columns of VEHICLE_COLUMNS (default: the shipped Dutch best sellers).

    Raises DataError: file or column missing, a number that is not positive.
    """
    source = files(__package__) / "vehicles.csv" if path is None else Path(path)
    header, rows = _read_csv(source)
    if header != list(VEHICLE_COLUMNS):
        raise DataError(f"{source}: columns must be {list(VEHICLE_COLUMNS)}, got {header}")
    numbers = np.array([[_number(source, entry) for entry in row[1:]] for row in rows])
    _refuse(numbers <= 0, numbers, f"{source}: registrations, capacity and power must be positive")
    return VehicleModels(
        names=tuple(row[0] for row in rows),
        n_registrations=frozen(numbers[:, 0].astype(np.int64)),
        capacity_kwh=frozen(numbers[:, 1].copy()),
        ac_power_kw=frozen(numbers[:, 2].copy()),
        dc_power_kw=frozen(numbers[:, 3].copy()),
    )


def _read_csv(source: Traversable) -> tuple[list[str], list[list[str]]]:
    """Header and rows; every row as long as the header."""
    try:
        with source.open("r", encoding="utf-8") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: must be a readable CSV file; {error}") from error
    if len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows):
        raise DataError(
            f"{source}: must hold a header and rows of the same length, got {[len(row) for row in rows][:5]}"
        )
    return rows[0], rows[1:]


def _number(source: Traversable, text: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise DataError(f"{source}: must hold a number, got {text!r}") from error
    if not math.isfinite(number):
        raise DataError(f"{source}: must hold finite numbers, got {text!r}")
    return number


__all__ = [
    "CLOCK",
    "DAY_TYPES",
    "HOME",
    "PERSON_TYPES",
    "SHIPPED_YEARS",
    "Profiles",
    "TravelTables",
    "VehicleModels",
    "calendar_day_types",
    "load_profiles",
    "load_travel_tables",
    "load_vehicle_models",
    "profile_window",
]
