"""Builds the shipped tables from the public packages of the ``data`` extra: ``python -m evcs_gym.envs.data.build``.

For developers; nothing else imports this module and it downloads nothing: it finds the files of the installed
packages simbench, ev2gym and emobpy, without importing them. The same packages give byte-identical files. What is
changed on the way is listed in SOURCES.md.
"""

import argparse
import csv
import io
import json
import sys
import zipfile
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

import numpy as np

from evcs_gym.envs.data import CLOCK, VEHICLE_COLUMNS
from evcs_gym.envs.errors import DataError
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS, eur_per_kwh

YEAR: Final = 2016
VERSIONS: Final = {"simbench": "1.6.3", "ev2gym": "2.0.0", "emobpy": "0.6.2"}

LOADS: Final = (
    *("H0-A", "H0-B", "H0-C", "H0-G", "H0-L"),  # households
    *("G0-A", "G1-A", "G2-A", "G3-A", "G4-A", "G6-A"),  # trade and services
    *("lv_rural1", "lv_semiurb4", "lv_urban6"),  # whole low-voltage networks, as a medium-voltage bus sees them
)
PV: Final = ("PV3", "PV4", "PV5", "PV8")
WIND: Final = ("WP4", "WP5", "WP6", "WP12")

SIMBENCH_FOLDER: Final = "simbench/networks/1-complete_data-mixed-all-0-sw"
PRICE_FILE: Final = "ev2gym/data/Netherlands_day-ahead-2015-2024.csv"
VEHICLE_FILE: Final = "ev2gym/data/ev_specs.json"
TRAVEL_FOLDER: Final = "emobpy/data/eg1/config_files"
NON_WORKER_FOLDER: Final = "emobpy/data/base/config_files"
ZIP_DATE: Final = (1980, 1, 1, 0, 0, 0)


def build(folder: Path) -> list[Path]:
    """Writes every built table into ``folder`` and returns their paths. Raises DataError: package missing or other."""
    written = [_write_profiles(folder), _write_vehicles(folder)]
    written += [_write_departures(folder, NON_WORKER_FOLDER, "DepartureDestinationTrip.csv", "travel_departures.csv")]
    written += [
        _write_departures(folder, TRAVEL_FOLDER, "DepartureDestinationTrip_Worker.csv", "travel_departures_worker.csv")
    ]
    written += [_write_trips_per_day(folder), _write_legs(folder)]
    return written


def package_file(name: str) -> Path:
    """Path of a file inside the installed package that its first part names, which must have the tested version."""
    package = name.split("/")[0]
    wanted = VERSIONS[package]
    try:
        found = distribution(package)
    except PackageNotFoundError as error:
        raise DataError(f"build: {package} {wanted} must be installed (pip install evcs-gym[data])") from error
    if found.version != wanted:
        raise DataError(f"build: {package} must have the version {wanted}, got {found.version}")
    path = Path(str(found.locate_file(name)))
    if not path.is_file():
        raise DataError(f"build: {package} {wanted} must hold {name}; reinstall the package")
    return path


# ---------------------------------------------------------------------------------------------------- profiles


def _write_profiles(folder: Path) -> Path:
    load_file = package_file(f"{SIMBENCH_FOLDER}/LoadProfile.csv")
    generation_file = package_file(f"{SIMBENCH_FOLDER}/RESProfile.csv")
    p_frac = simbench_half_hours(load_file, tuple(f"{name}_pload" for name in LOADS))
    q_frac = simbench_half_hours(load_file, tuple(f"{name}_qload" for name in LOADS))
    # Idle turbines draw up to 1e-5 of their power: no generation in our terms.
    pv_frac = np.maximum(simbench_half_hours(generation_file, PV), 0.0)
    wind_frac = np.maximum(simbench_half_hours(generation_file, WIND), 0.0)
    price_eur_per_mwh = dutch_prices_eur_per_mwh(package_file(PRICE_FILE))
    hours = [datetime(YEAR, 1, 1, tzinfo=CLOCK) + timedelta(hours=h) for h in range(len(p_frac) // 2)]
    price = np.array([eur_per_kwh(price_eur_per_mwh[_utc_text(hour)]) for hour in hours])
    arrays = {
        "start": np.array(hours[0].isoformat()),
        "load_name": np.array(LOADS),
        "load_p_frac": p_frac.astype(np.float32),
        "load_q_frac": q_frac.astype(np.float32),
        "pv_name": np.array(PV),
        "pv_frac": pv_frac.astype(np.float32),
        "wind_name": np.array(WIND),
        "wind_frac": wind_frac.astype(np.float32),
        "price_eur_per_kwh": np.repeat(price, 2),
    }
    return _write_npz(folder / f"profiles_{YEAR}.npz", arrays)


def simbench_half_hours(path: Path, columns: tuple[str, ...]) -> FloatArray:
    """Half-hour means (17568, len(columns)) of a SimBench profile file of quarter-hours.

    Its times are local with daylight saving, but its rows follow each other without a gap: the hour that is missing
    in March and the one that comes twice in October show that row k is quarter-hour k of the fixed clock UTC+1.
    """
    with path.open(encoding="utf-8") as stream:
        header = stream.readline().strip().split(";")
    missing = [column for column in columns if column not in header]
    if missing:
        raise DataError(f"{path}: must hold the columns {missing}")
    table = np.loadtxt(path, delimiter=";", skiprows=1, usecols=[header.index(c) for c in columns], ndmin=2)
    n_rows = 2 * N_SLOTS * 366
    if table.shape[0] != n_rows or not np.isfinite(table).all():
        raise DataError(f"{path}: must hold {n_rows} finite quarter-hours of {YEAR}, got {table.shape[0]} rows")
    half_hours: FloatArray = table.reshape(-1, 2, len(columns)).mean(axis=1)
    return half_hours


def dutch_prices_eur_per_mwh(path: Path) -> dict[str, float]:
    """Day-ahead price of every hour of 2015-2024 by its UTC time, from the file in the ev2gym package.

    That file writes dates in two forms, holds many hours twice (with equal prices), one row without a time, eight
    days of 2025, and lacks two hours, which are filled with the mean of their neighbours, rounded to cents.
    """
    prices: dict[str, float] = {}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        for row in csv.DictReader(stream):
            text = row["Datetime (UTC)"]
            if not text:
                continue
            hour = _price_hour(text).strftime("%Y-%m-%d %H:%M:%S")
            price = float(row["Price (EUR/MWhe)"])
            if prices.setdefault(hour, price) != price:
                raise DataError(f"{path}: {hour} must have one price, got {prices[hour]} and {price}")
    first, end = datetime(2015, 1, 1), datetime(2025, 1, 1)
    n_hours = (end - first) // timedelta(hours=1)
    hours = [(first + timedelta(hours=h)).strftime("%Y-%m-%d %H:%M:%S") for h in range(n_hours)]
    return {hour: prices[hour] if hour in prices else _filled(prices, hours, h) for h, hour in enumerate(hours)}


def _price_hour(text: str) -> datetime:
    form = "%Y-%m-%d %H:%M:%S" if text[4] == "-" else "%d/%m/%Y %H:%M"
    return datetime.strptime(text, form)


def _filled(prices: dict[str, float], hours: list[str], at: int) -> float:
    """Mean of the neighbouring hours' prices; both must exist."""
    around = [hours[i] for i in (at - 1, at + 1) if 0 <= i < len(hours) and hours[i] in prices]
    if len(around) < 2:
        raise DataError(f"price of {hours[at]} is missing and has no two neighbours to be filled from")
    return float(np.round((prices[around[0]] + prices[around[1]]) / 2, 2))


def _utc_text(hour: datetime) -> str:
    return (hour - hour.utcoffset()).strftime("%Y-%m-%d %H:%M:%S")  # type: ignore[operator]  # CLOCK has an offset


def _write_npz(path: Path, arrays: dict[str, Any]) -> Path:
    """Like numpy.savez_compressed, with a fixed date in every entry: equal arrays give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(
                buffer, np.asarray(array, order="F"), allow_pickle=False
            )  # columns compress better
            entry = zipfile.ZipInfo(f"{name}.npy", ZIP_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue(), compresslevel=9)
    return path


# ------------------------------------------------------------------------------------------------ cars and travel


def _write_vehicles(folder: Path) -> Path:
    with package_file(VEHICLE_FILE).open(encoding="utf-8") as stream:
        models: dict[str, dict[str, Any]] = json.load(stream)
    keys = ("number_of_registrations", "battery_capacity", "max_ac_charge_power", "max_dc_charge_power")
    rows = [[model, *(str(entry[key]) for key in keys)] for model, entry in models.items()]
    return _write_csv(folder / "vehicles.csv", list(VEHICLE_COLUMNS), rows)


def _write_departures(folder: Path, source_folder: str, source: str, target: str) -> Path:
    header, rows = _rows(package_file(f"{source_folder}/{source}"))
    return _write_csv(folder / target, ["day_type", "start_h", *(f"{name}_frac" for name in header[2:])], rows)


def _write_trips_per_day(folder: Path) -> Path:
    _, rows = _rows(package_file(f"{TRAVEL_FOLDER}/TripsPerDay.csv"))
    return _write_csv(folder / "travel_trips_per_day.csv", ["n_trips", "weekday_frac", "weekend_frac"], rows)


def _write_legs(folder: Path) -> Path:
    header, rows = _rows(package_file(f"{TRAVEL_FOLDER}/DistanceDurationTrip.csv"))
    return _write_csv(folder / "travel_legs.csv", ["distance_km", *(f"up_to_{m}_min" for m in header[1:])], rows)


def _rows(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = [row for row in csv.reader(stream) if row]
    return rows[0], rows[1:]


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def main(arguments: list[str] | None = None) -> None:
    """Command line: ``python -m evcs_gym.envs.data.build [--folder DIR]`` (default: beside this file)."""
    parser = argparse.ArgumentParser(description="Build the shipped tables from simbench, ev2gym and emobpy.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for path in build(folder):
        sys.stdout.write(f"{path.name}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
