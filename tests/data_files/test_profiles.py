"""Shipped tables: their sums, their sources, and every way in which a user's own file can be wrong."""

import csv
import datetime
import importlib.metadata
import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evcs_gym.envs import data
from evcs_gym.envs.data import build
from evcs_gym.envs.errors import ConfigError, DataError

SHIPPED = Path(str(files("evcs_gym.envs.data")))
TRAVEL_FILES = ("travel_departures.csv", "travel_departures_worker.csv", "travel_trips_per_day.csv", "travel_legs.csv")
PRICE_HEADER = "Country,Datetime (UTC),Datetime (Local),Price (EUR/MWhe)\n"


def data_extra_missing() -> str:
    """Name of a package of the data extra that is absent or another version, else empty."""
    for name, version in build.VERSIONS.items():
        try:
            if importlib.metadata.version(name) != version:
                return name
        except importlib.metadata.PackageNotFoundError:
            return name
    return ""


needs_data_extra = pytest.mark.skipif(bool(data_extra_missing()), reason="the data extra is not installed")


# -------------------------------------------------------------------------------------------------- shipped


def test_profiles_cover_2016_in_half_hours_of_utc_plus_1() -> None:
    profiles = data.load_profiles()
    assert len(profiles) == 366 * 48 == 17568
    assert profiles.start.isoformat() == "2016-01-01T00:00:00+01:00"
    assert profiles.load_p_frac.shape == profiles.load_q_frac.shape == (17568, len(profiles.load_name))
    assert profiles.pv_frac.shape == (17568, 4)
    assert profiles.wind_frac.shape == (17568, 4)
    assert profiles.load_p_frac.max() <= 1
    assert profiles.pv_frac.max() <= 1
    assert profiles.wind_frac.max() <= 1


def test_first_half_hour_is_the_mean_of_simbench_s_first_two_quarters() -> None:
    # WP4 at 01.01.2016 00:00 and 00:15 in RESProfile.csv
    profiles = data.load_profiles()
    wind = profiles.wind_frac[0, profiles.wind_name.index("WP4")]
    assert wind == pytest.approx((0.980905615 + 0.983083099) / 2, abs=1e-7)


def test_price_is_shifted_from_utc_by_one_hour() -> None:
    # The price file has 16.18 EUR/MWh at 2016-02-21 14:00 UTC: 15:00 of the fixed clock, day 51 (0 = 1 January).
    price = data.load_profiles().price_eur_per_kwh
    hour = 51 * 48 + 30
    assert price[hour] == price[hour + 1] == pytest.approx(0.01618)


def test_prices_last_whole_hours() -> None:
    price = data.load_profiles().price_eur_per_kwh.reshape(-1, 2)
    assert np.array_equal(price[:, 0], price[:, 1])
    assert price.mean() == pytest.approx(0.0322455, abs=1e-6)


def test_photovoltaics_sleep_at_night() -> None:
    profiles = data.load_profiles()
    pv = profiles.pv_frac.reshape(366, 48, -1)
    assert pv[:, :6].max() == 0
    assert pv[:, 44:].max() == 0
    assert pv[:, 20:28].mean() > 0.15


def test_tables_are_shared_and_read_only() -> None:
    profiles = data.load_profiles()
    assert data.load_profiles() is profiles
    with pytest.raises(ValueError, match="read-only"):
        profiles.price_eur_per_kwh[0] = 1.0


@pytest.mark.skipif("EVCS_GYM_REFERENCE_DATA" not in os.environ, reason="EVCS_GYM_REFERENCE_DATA is not set")
def test_prices_agree_with_the_separately_cleaned_table() -> None:
    path = Path(os.environ["EVCS_GYM_REFERENCE_DATA"]) / "nl_day_ahead_hourly_2015_2024_clean.csv"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in EVCS_GYM_REFERENCE_DATA")
    with path.open(encoding="utf-8") as stream:
        clean = {row["utc"]: float(row["eur_per_mwh"]) for row in csv.DictReader(stream)}
    first = datetime.datetime(2015, 12, 31, 23)
    expected = [clean[str(first + datetime.timedelta(hours=h))] for h in range(8784)]
    assert data.load_profiles().price_eur_per_kwh[::2] * 1e3 == pytest.approx(expected, abs=1e-9)
    if not data_extra_missing():
        assert build.dutch_prices_eur_per_mwh(build.package_file(build.PRICE_FILE)) == clean


@needs_data_extra
def test_building_again_gives_the_shipped_tables_and_twice_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("once", "twice"):
        build.main(["--folder", str(tmp_path / folder)])
    names = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert names == sorted(("profiles_2016.npz", "vehicles.csv", *TRAVEL_FILES))
    for name in names:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
        if name.endswith(".csv"):
            assert (tmp_path / "once" / name).read_bytes() == (SHIPPED / name).read_bytes()
    # Another zlib may compress to other bytes: the arrays must be equal all the same.
    with np.load(tmp_path / "once" / "profiles_2016.npz") as new, np.load(SHIPPED / "profiles_2016.npz") as old:
        assert new.files == old.files
        assert all(np.array_equal(new[name], old[name]) for name in old.files)


def test_shipped_folder_stays_below_3_megabytes_and_every_table_has_its_source() -> None:
    tables = [path for path in SHIPPED.iterdir() if path.suffix in (".csv", ".npz", ".json")]
    assert sum(path.stat().st_size for path in tables) < 3e6
    sources = (SHIPPED / "SOURCES.md").read_text(encoding="utf-8")
    assert [path.name for path in tables if path.name not in sources] == []


# -------------------------------------------------------------------------------------------------- calendar


def test_window_of_day_0_begins_at_noon_of_1_january() -> None:
    assert data.profile_window(0) == slice(24, 72)


@given(day=st.integers(0, 364))
@settings(deadline=None)
def test_windows_follow_each_other_without_gap(day: int) -> None:
    rows = data.profile_window(day)
    assert rows.stop - rows.start == 48
    assert rows.stop <= 17568
    assert rows.start % 48 == 24
    if day:
        assert data.profile_window(day - 1).stop == rows.start


@pytest.mark.parametrize("day", [-1, 365])
def test_window_outside_the_year_is_refused(day: int) -> None:
    with pytest.raises(ConfigError, match=r"day_index must be in 0\.\.364"):
        data.profile_window(day)


def test_2016_begins_on_a_friday() -> None:
    types = data.calendar_day_types(datetime.date(2016, 1, 1), 5)
    assert types.tolist() == [0, 1, 2, 0, 0]


@given(day=st.dates(datetime.date(1990, 1, 1), datetime.date(2100, 1, 1)), n=st.integers(1, 40))
@settings(deadline=None)
def test_day_types_are_those_of_the_calendar(day: datetime.date, n: int) -> None:
    expected = [(day + datetime.timedelta(days=i)).isoweekday() for i in range(n)]
    assert data.calendar_day_types(day, n).tolist() == [{6: 1, 7: 2}.get(weekday, 0) for weekday in expected]


# ------------------------------------------------------------------------------------- a user's own profiles


def own_arrays(**changes: Any) -> dict[str, Any]:
    """Arrays of a valid profile file of 2017; a change of None leaves the array out."""
    n = 365 * 48
    arrays: dict[str, Any] = {
        "start": "2017-01-01T00:00+01:00",
        "load_name": ["house", "shop"],
        "load_p_frac": np.full((n, 2), 0.5),
        "load_q_frac": np.full((n, 2), -0.1),
        "pv_name": ["roof"],
        "pv_frac": np.zeros((n, 1)),
        "wind_name": ["hill"],
        "wind_frac": np.ones((n, 1)),
        "price_eur_per_kwh": np.full(n, -0.02),
    }
    return {name: value for name, value in {**arrays, **changes}.items() if value is not None}


def own_file(folder: Path, **changes: Any) -> Path:
    path = folder / "own.npz"
    np.savez(path, **own_arrays(**changes))
    return path


def spoiled(value: float, *at: int) -> Any:
    table = np.full((365 * 48, 2), 0.5)
    table[at] = value
    return table


def test_own_profiles_are_read(tmp_path: Path) -> None:
    profiles = data.load_profiles(2017, own_file(tmp_path))
    assert profiles.load_name == ("house", "shop")
    assert profiles.load_q_frac.min() == -0.1
    assert profiles.price_eur_per_kwh.max() == -0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pv_frac": None}, "must hold the array 'pv_frac'"),
        ({"load_p_frac": spoiled(np.nan, 7, 1)}, r"load_p_frac must be finite, got nan at \(7, 1\)"),
        ({"load_p_frac": spoiled(-0.25, 3, 0)}, r"load_p_frac must not be negative, got -0.25 at \(3, 0\)"),
        ({"wind_frac": np.full((365 * 48, 1), -1e-9)}, "wind_frac must not be negative"),
        ({"price_eur_per_kwh": np.full(365 * 48, np.inf)}, "price_eur_per_kwh must be finite"),
        ({"price_eur_per_kwh": np.zeros(366 * 48)}, r"must have the shape \(17520,\)"),
        ({"load_q_frac": np.zeros((365 * 48, 1))}, r"load_q_frac must have the shape \(17520, 2\)"),
        ({"load_name": ["twin", "twin"]}, "load_name must hold at least one name, none twice"),
        ({"load_p_frac": np.full((365 * 48, 2), "x")}, "load_p_frac must hold numbers"),
        ({"start": "new year"}, "start must be an ISO time"),
        ({"start": "2016-01-01T00:00+01:00"}, "start must be 2017-01-01T00:00:00"),
        ({"start": "2017-01-01T00:00"}, "start must be 2017-01-01T00:00:00"),
    ],
)
def test_wrong_profiles_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.load_profiles(2017, own_file(tmp_path, **changes))


def test_missing_year_and_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"year must be one of \[2016\], got 2023; pass path="):
        data.load_profiles(2023)
    with pytest.raises(DataError, match="no such profile file"):
        data.load_profiles(2016, tmp_path / "nowhere.npz")


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x93NUMPY"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"must be an \.npz archive"):
        data.load_profiles(2016, path)


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "single.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(DataError, match=r"must be an \.npz archive"):
        data.load_profiles(2016, path)


# ---------------------------------------------------------------------------------------------- travel tables


def test_travel_tables_hold_the_printed_numbers() -> None:
    tables = data.load_travel_tables()
    assert tables.destinations == ("errands", "escort", "home", "leisure", "shopping", "workplace")
    assert tables.n_trips_frac[0].tolist() == pytest.approx([0.3541, 0, 0.2987, 0.0833, 0.125, 0.1389])
    assert np.array_equal(tables.n_trips_frac[1], tables.n_trips_frac[2])
    # non-worker, weekday, 12:00, to home; the table's own sum differs from 1 by rounding
    assert tables.departure_frac[0, 0, 24, tables.home] == pytest.approx(0.0196402, rel=1e-4)
    assert tables.leg_frac[0, 0] == pytest.approx(0.02895, rel=1e-4)
    assert tables.distance_edge_km.tolist() == [0, 1, 2, 5, 10, 20, 50, 100, 400]
    assert (tables.duration_edge_h * 60).tolist() == pytest.approx([5, 10, 15, 20, 30, 45, 60, 185])
    assert tables.departure_frac.sum(axis=(2, 3)) == pytest.approx(np.ones((2, 3)))
    assert tables.departure_frac[0, :, :, 5].max() == 0  # nobody who does not work drives to work


def edited(folder: Path, name: str, old: str, new: str) -> Path:
    """A copy of the travel tables in which one text is replaced."""
    for file in TRAVEL_FILES:
        shutil.copy(SHIPPED / file, folder / file)
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("travel_departures.csv", "home_frac", "house_frac", "destinations with home_frac"),
        ("travel_departures.csv", "sunday,3,", "someday,3,", "day_type must be in"),
        ("travel_departures.csv", "sunday,3,", "sunday,3.25,", "start_h in 0, 0.5"),
        ("travel_departures.csv", "sunday,3,", "sunday,2.5,", "must have 48 rows"),
        ("travel_departures.csv", "0.0232569", "0.9", "must sum to 1"),
        ("travel_departures.csv", "0.0232569", "-0.0232569", "must not be negative"),
        ("travel_departures.csv", "0.0232569", "many", "must hold a number, got 'many'"),
        ("travel_departures.csv", "0.0232569", "nan", "must hold finite numbers"),
        ("travel_departures_worker.csv", "leisure_frac", "fun_frac", "destinations must be those of"),
        ("travel_trips_per_day.csv", "weekend_frac", "weekend", "columns must be n_trips"),
        ("travel_trips_per_day.csv", "\n5,", "\n6,", "without gaps"),
        ("travel_trips_per_day.csv", "\n1,0,0", "\n1,0.1,0", "a day of one trip must have probability 0"),
        ("travel_legs.csv", "distance_km", "km", "columns must be distance_km"),
        ("travel_legs.csv", "\n2,", "\n0.5,", "distance_km must rise"),
        ("travel_legs.csv", "up_to_20_min", "up_to_15_min", "durations must rise"),
        ("travel_legs.csv", "up_to_185_min", "up_to_500_min", "durations must not exceed 6.0 h"),
        ("travel_legs.csv", "1,0.02895", "1", "rows of the same length"),
    ],
)
def test_wrong_travel_tables_are_refused(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.load_travel_tables(edited(tmp_path, name, old, new))


def test_travel_tables_without_trips_are_refused(tmp_path: Path) -> None:
    edited(tmp_path, "travel_trips_per_day.csv", "n_trips", "n_trips")
    (tmp_path / "travel_trips_per_day.csv").write_text("n_trips,weekday_frac,weekend_frac\n0,1,1\n1,0,0\n")
    with pytest.raises(DataError, match="some days must have trips"):
        data.load_travel_tables(tmp_path)


def test_travel_tables_without_a_way_home_are_refused(tmp_path: Path) -> None:
    edited(tmp_path, "travel_departures.csv", "day_type", "day_type")
    rows = [f"{day},{slot / 2},{1 / 48},0\n" for day in data.DAY_TYPES for slot in range(48)]
    (tmp_path / "travel_departures.csv").write_text("day_type,start_h,leisure_frac,home_frac\n" + "".join(rows))
    with pytest.raises(DataError, match="must have trips home"):
        data.load_travel_tables(tmp_path)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a readable CSV file"):
        data.load_travel_tables(tmp_path)


# ------------------------------------------------------------------------------------------------------- cars


def test_vehicle_models_are_the_thirteen_of_the_source() -> None:
    models = data.load_vehicle_models()
    assert len(models.names) == 13
    assert models.names[0] == "Tesla Model 3"
    assert models.n_registrations[0] == 45545
    assert models.capacity_kwh[0] == 57.5
    assert models.ac_power_kw[0] == 11
    assert models.dc_power_kw[0] == 170


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,capacity_kwh\nA,50\n", "columns must be"),
        ("model,n_registrations,capacity_kwh,ac_power_kw,dc_power_kw\nA,1,0,11,50\n", "must be positive, got 0.0"),
        ("model,n_registrations,capacity_kwh,ac_power_kw,dc_power_kw\nA,1,big,11,50\n", "must hold a number"),
        ("model,n_registrations,capacity_kwh,ac_power_kw,dc_power_kw\n", "must hold a header and rows"),
    ],
)
def test_wrong_vehicle_models_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cars.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        data.load_vehicle_models(path)


# --------------------------------------------------------------------------------------------------- building


def test_building_says_which_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.VERSIONS, "no-such-package", "1.0")
    with pytest.raises(DataError, match=r"no-such-package 1\.0 must be installed"):
        build.package_file("no-such-package/table.csv")


def test_building_refuses_other_versions_and_lost_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.VERSIONS, "numpy", "0.1")
    with pytest.raises(DataError, match=r"numpy must have the version 0\.1"):
        build.package_file("numpy/__init__.py")
    monkeypatch.setitem(build.VERSIONS, "numpy", importlib.metadata.version("numpy"))
    assert build.package_file("numpy/__init__.py").is_file()
    with pytest.raises(DataError, match=r"must hold numpy/lost\.csv"):
        build.package_file("numpy/lost.csv")


def test_building_refuses_simbench_files_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "profile.csv"
    path.write_text("time;PV1\n01.01.2016 00:00;0.5\n")
    with pytest.raises(DataError, match=r"must hold the columns \['PV9'\]"):
        build.simbench_half_hours(path, ("PV1", "PV9"))
    with pytest.raises(DataError, match="must hold 35136 finite quarter-hours of 2016, got 1 rows"):
        build.simbench_half_hours(path, ("PV1",))


def price_file(folder: Path, drop: tuple[str, ...] = (), extra: str = "") -> Path:
    """A file like the source's: ISO times up to 2022, day/month/year afterwards, price = hours since 2015."""
    first = datetime.datetime(2015, 1, 1)
    lines = []
    for hour in range(24 * 3653):
        time = first + datetime.timedelta(hours=hour)
        text = str(time) if time.year < 2023 else time.strftime("%d/%m/%Y %H:%M")
        if str(time) not in drop:
            lines.append(f"Netherlands,{text},-,{hour}.0\n")
    path = folder / "prices.csv"
    path.write_text(PRICE_HEADER + "".join(lines) + extra)
    return path


def test_price_cleaning_fills_gaps_and_drops_what_is_twice(tmp_path: Path) -> None:
    gap, twice = "2015-01-02 00:00:00", "Netherlands,2015-01-01 01:00:00,-,1.0\nNetherlands,,,0\n"
    prices = build.dutch_prices_eur_per_mwh(price_file(tmp_path, (gap,), twice + "Netherlands,01/02/2025 00:00,-,9\n"))
    assert len(prices) == 87672
    assert prices[gap] == 24.0
    assert prices["2024-02-01 00:00:00"] == 24 * (365 * 7 + 366 * 2 + 31)
    assert "2025-02-01 00:00:00" not in prices


def test_price_cleaning_refuses_contradictions_and_long_gaps(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2015-01-01 01:00:00 must have one price, got 1\.0 and 2\.0"):
        build.dutch_prices_eur_per_mwh(price_file(tmp_path, (), "Netherlands,2015-01-01 01:00:00,-,2.0\n"))
    with pytest.raises(DataError, match="2015-01-01 00:00:00 is missing and has no two neighbours"):
        build.dutch_prices_eur_per_mwh(price_file(tmp_path, ("2015-01-01 00:00:00",)))
