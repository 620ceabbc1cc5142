"""A day: which calendar day a seed draws, tariffs, effective limits, forecasts, and what sessions are refused."""

import collections
import dataclasses
import datetime
from typing import Any

import numpy as np
import pytest
from envs_fixtures import Car, sessions_of, tiny_content, tiny_scenario
from hypothesis import given, settings
from hypothesis import strategies as st

from evcs_gym.envs import ConfigError, ConvergenceError, DataError, Day, Scenario
from evcs_gym.envs.day import N_WINDOWS, SPLITS, calendar_window, check_sessions, split_windows
from evcs_gym.envs.grid import power_flow
from evcs_gym.envs.scenario import scenario_from_dict
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS

DATE_OF_TEST_DAY_3 = "2016-12-29"
TEST_DAY_3 = {
    "import_eur_per_kwh": 2.194496957974394,
    "export_eur_per_kwh": 0.7660187117818097,
    "charging_bus": 18.060753088741485,
    "base_kw": 552.934378142986,
    "dg_kw": 617.161769166229,
    "load_kva": 18858.433723480804,
    "base_voltage_pu": 2361.082081137014,
    "vmin_pu": 2138.348972810809,
    "vmax_pu": 2613.537633435433,
    "source_pu": 23.807970769876405,
    "tap_position": 0.0,
    "capacitor_step": 0.0,
    "capacitor_kvar": 0.0,
    "current_limit_a": np.inf,
    "head_limit_kva": np.inf,
    "unbalance_limit_frac": 15.848535150361384,
    "sessions.bus": 0.7983738762488439,
    "sessions.phase": -0.3819660112501051,
    "sessions.arrival_slot": 61.65631459994955,
    "sessions.departure_slot": 131.2305898749054,
    "sessions.soc0_frac": 1.7854924384631115,
    "sessions.capacity_kwh": 163.87510972949357,
    "sessions.power_kw": 24.459392216606474,
    "sessions.efficiency_frac": 2.7404166626479696,
    "sessions.car": 28.05764746872635,
    "forecast.growth_frac": 0.0,
    "forecast.import_eur_per_kwh": 0.0,
    "forecast.base_kw": 0.0,
    "forecast.dg_kw": 0.0,
    "forecast.station_pv_kw": 0.0,
    "forecast.station_ev_kw": 0.0,
    "forecast.fast_base_kw": 0.0,
    "forecast.fast_dg_kw": 0.0,
}
"""Fingerprints of the arrays of one day; they change only with the model or its data. A relative 1e-9 leaves room for
the last bits in which processors differ, and for no other draw."""


def scenario_with(part: str, **values: Any) -> Scenario:
    """The tiny scenario with cars, with one part changed."""
    content = tiny_content(n_cars=(12, 6))
    content[part] = {**content.get(part, {}), **values}
    return scenario_from_dict(content)


def arrays_of(day: Day) -> dict[str, np.ndarray]:
    """All arrays of a day by dotted name."""
    records = {"": day, "sessions.": day.sessions, "forecast.": day.forecast}
    return {
        prefix + field.name: getattr(record, field.name)
        for prefix, record in records.items()
        for field in dataclasses.fields(record)
        if isinstance(getattr(record, field.name), np.ndarray)
    }


def forecast_price(day: Day, slot: int) -> FloatArray:
    """Import prices as known in a slot, (T - slot,)."""
    lead = np.arange(N_SLOTS - slot)
    return day.import_eur_per_kwh[slot:] + day.forecast.growth_frac[lead] * day.forecast.import_eur_per_kwh[slot:]


# --------------------------------------------------------------------------------------------------------------- splits


def test_splits_are_disjoint_and_cover_the_year() -> None:
    counts = collections.Counter(int(window) for split in SPLITS for window in split_windows(split))
    assert counts == dict.fromkeys(range(N_WINDOWS), 1)
    assert [len(split_windows(split)) for split in SPLITS] == [274, 36, 55]


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_all_weekdays_and_all_seasons(split: str) -> None:
    dates = [datetime.date(2016, 1, 1) + datetime.timedelta(days=int(window)) for window in split_windows(split)]
    assert {date.weekday() for date in dates} == set(range(7))
    assert {date.month for date in dates} == set(range(1, 13))


@pytest.mark.parametrize("split", SPLITS)
def test_consecutive_seeds_go_through_all_days_of_a_split_before_one_comes_again(split: str) -> None:
    n = len(split_windows(split))
    drawn = [calendar_window(5, seed, split) for seed in range(n)]
    assert sorted(drawn) == split_windows(split).tolist()
    assert drawn != sorted(drawn)
    assert calendar_window(5, n, split) == drawn[0]


def test_unknown_split_is_refused(small_scenario: Scenario) -> None:
    with pytest.raises(ConfigError, match=r"split must be one of train, validation, test, got 'valid'"):
        small_scenario.day(0, "valid")


@pytest.mark.parametrize("seed", [-1, 1.0, True, "3", None])
def test_seed_that_is_no_whole_number_is_refused(small_scenario: Scenario, seed: Any) -> None:
    with pytest.raises(ConfigError, match=rf"seed of a day must be an integer >= 0, got {seed!r}"):
        small_scenario.day(seed)


# ------------------------------------------------------------------------------------------------------- same day again


def test_same_seed_gives_the_same_day_bit_for_bit(small_scenario: Scenario) -> None:
    again = scenario_with("feeder").day(3, "test")  # another scenario object, equal content
    for name, array in arrays_of(small_scenario.day(3, "test")).items():
        np.testing.assert_array_equal(array, arrays_of(again)[name], err_msg=name)


def fingerprint(array: np.ndarray) -> float:
    """Sum of the values, each with a weight of its own (the golden ratio's multiples modulo 1)."""
    weights = (np.arange(1, array.size + 1) * 0.6180339887498949) % 1.0
    return float((array.real.ravel() * weights).sum() + (array.imag.ravel() * weights[::-1]).sum())


def test_a_seed_gives_the_same_day_on_every_machine(small_scenario: Scenario) -> None:
    day = small_scenario.day(3, "test")
    assert day.date == DATE_OF_TEST_DAY_3
    got = {name: fingerprint(array) for name, array in arrays_of(day).items()}
    assert got == {name: pytest.approx(value, rel=1e-9, abs=1e-9) for name, value in TEST_DAY_3.items()}


def test_other_seeds_and_splits_give_other_days(small_scenario: Scenario) -> None:
    days = [small_scenario.day(0, "train"), small_scenario.day(1, "train"), small_scenario.day(0, "test")]
    assert len({day.date for day in days}) == 3
    second_round = small_scenario.day(len(split_windows("train")), "train")
    assert second_round.date == days[0].date
    np.testing.assert_array_equal(second_round.base_kw, days[0].base_kw)
    assert not np.array_equal(second_round.sessions.soc0_frac, days[0].sessions.soc0_frac)


def test_days_of_several_seeds_come_in_their_order(small_scenario: Scenario) -> None:
    assert [day.seed for day in small_scenario.days([4, 0, 2], "test")] == [4, 0, 2]
    assert small_scenario.day(np.int64(4), "test").seed == 4  # type: ignore[arg-type]


def test_arrays_of_a_day_are_read_only(small_scenario: Scenario) -> None:
    for name, array in arrays_of(small_scenario.day(0)).items():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        assert array.flags.writeable is False, name


# -------------------------------------------------------------------------------------------------- series by the rules


def test_tariffs_are_spot_plus_adder_and_spot_less_fee_never_negative(small_scenario: Scenario) -> None:
    day, tariff = small_scenario.day(0), small_scenario.tariff
    window = (datetime.date.fromisoformat(day.date) - datetime.date(2016, 1, 1)).days
    first = 48 * window + 24  # noon
    spot = small_scenario.profiles.price_eur_per_kwh[first : first + 48]
    np.testing.assert_allclose(day.import_eur_per_kwh, spot + 0.05)
    np.testing.assert_allclose(day.export_eur_per_kwh, np.maximum(0.0, spot - 0.010))
    assert (day.export_eur_per_kwh + tariff.network_fee_eur_per_kwh < day.import_eur_per_kwh).all()


def test_export_tariff_stops_at_zero() -> None:
    day = scenario_with("tariff", export_fee_eur_per_kwh=1.0).day(0)
    np.testing.assert_array_equal(day.export_eur_per_kwh, 0.0)


def test_generation_is_profile_times_installed_power_and_feeds_in_balanced(small_scenario: Scenario) -> None:
    day = small_scenario.day(1, "test")
    window = (datetime.date.fromisoformat(day.date) - datetime.date(2016, 1, 1)).days
    rows = slice(48 * window + 24, 48 * window + 72)
    profiles = small_scenario.profiles
    np.testing.assert_allclose(day.dg_kw[:, 0], 60.0 * profiles.pv_frac[rows, profiles.pv_name.index("PV4")])
    np.testing.assert_allclose(day.dg_kw[:, 1], 40.0 * profiles.wind_frac[rows, profiles.wind_name.index("WP5")])
    np.testing.assert_allclose(day.load_kva[:, 17].sum(axis=1).real, day.base_kw[:, 0] - day.dg_kw[:, 0], atol=1e-9)
    gross = day.load_kva[:, 32] + day.dg_kw[:, 1, None] / 3.0
    nominal = small_scenario.feeder.load_kva[32]
    np.testing.assert_allclose(gross.real / nominal.real, np.repeat(gross.real[:, :1] / nominal.real[0], 3, axis=1))


def test_base_load_peaks_at_its_share_of_nominal(small_scenario: Scenario) -> None:
    # bus 18 is row 17: profile 17 mod 2 = 1, H0-A; its yearly peak is base_load_frac = 0.5 of the nominal load
    profiles = small_scenario.profiles
    column = profiles.load_name.index("H0-A")
    day = small_scenario.day(0)
    window = (datetime.date.fromisoformat(day.date) - datetime.date(2016, 1, 1)).days
    load = profiles.load_p_frac[48 * window + 24 : 48 * window + 72, column]
    nominal_kw = small_scenario.feeder.load_kva[17].real.sum()
    np.testing.assert_allclose(day.base_kw[:, 0], 0.5 * nominal_kw * load / profiles.load_p_frac[:, column].max())


def test_load_profile_of_a_single_bus_replaces_the_round() -> None:
    plain, other = scenario_with("profiles"), scenario_with("profiles", load_profile_at_bus={18: "G3-A"})
    assert not np.allclose(plain.day(0).base_kw[:, 0], other.day(0).base_kw[:, 0])
    np.testing.assert_array_equal(plain.day(0).base_kw[:, 1], other.day(0).base_kw[:, 1])


# ----------------------------------------------------------------------------------------------------- effective limits


def test_effective_limits_are_the_nominal_ones_or_what_the_base_load_needs() -> None:
    scenario = scenario_with("feeder", source_pu=1.0, vmin_pu=0.99, vmax_pu=1.001)
    day = scenario.day(0)
    base = np.abs(power_flow(scenario.feeder, day.load_kva, source_pu=1.0).voltage_pu)
    np.testing.assert_allclose(day.base_voltage_pu, base)
    below, above = base < 0.99, base > 1.001
    assert below.any()
    assert (~below).any()
    np.testing.assert_array_equal(day.vmin_pu, np.where(below, base, 0.99))
    np.testing.assert_array_equal(day.vmax_pu, np.where(above, base, 1.001))


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("profiles", {"base_load_frac": 3.0, "load_profiles": ["H0-A"]}),
        ("charging_buses", [{"bus": "18", "n_cars": 0, "wind_kw": 100_000}]),
    ],
)
def test_a_day_without_a_power_flow_is_an_error(part: str, values: Any) -> None:
    content = tiny_content()
    content["feeder"]["source_pu"] = 0.8
    content[part] = {**content[part], **values} if isinstance(values, dict) else values
    with pytest.raises(
        ConvergenceError, match=r"tiny: load and DG of 2016-.* no power flow in slot \d+; lower profiles"
    ):
        scenario_from_dict(content).days(range(40))


# ------------------------------------------------------------------------------------------------------------ forecasts


def test_perfect_forecast_is_the_truth(small_scenario: Scenario) -> None:
    day = small_scenario.day(0)
    assert not day.forecast.growth_frac.any()
    np.testing.assert_array_equal(forecast_price(day, 7), day.import_eur_per_kwh[7:])


def test_persistence_forecast_is_the_calendar_day_before() -> None:
    scenario = scenario_with("forecast", kind="persistence")
    day = scenario.day(0)
    window = (datetime.date.fromisoformat(day.date) - datetime.date(2016, 1, 1)).days
    yesterday = scenario.profiles.price_eur_per_kwh[48 * (window - 1) + 24 : 48 * window + 24] + 0.05
    np.testing.assert_allclose(forecast_price(day, 5)[1:], yesterday[6:])
    assert forecast_price(day, 5)[0] == day.import_eur_per_kwh[5]
    before = next(  # the day with that date, in whatever split it lies
        other
        for split in SPLITS
        for seed, other_window in enumerate(calendar_window(5, s, split) for s in range(len(split_windows(split))))
        if other_window == window - 1
        for other in [scenario.day(seed, split)]
    )
    np.testing.assert_allclose(day.base_kw + day.forecast.base_kw, before.base_kw, atol=1e-9)
    np.testing.assert_allclose(day.dg_kw + day.forecast.dg_kw, before.dg_kw, atol=1e-9)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 300), correlation=st.sampled_from([0.0, 0.8, 0.99]))
def test_noisy_forecast_is_physical_and_its_error_grows_with_lead_time(seed: int, correlation: float) -> None:
    scenario = scenario_with(
        "forecast", kind="noisy", noise_price_frac=1.0, noise_dg_frac=1.0, noise_correlation_frac=correlation
    )
    day = scenario.day(seed)
    growth = day.forecast.growth_frac
    assert growth[0] == 0.0  # the present slot is known
    assert (np.diff(growth) >= 0.0).all()
    assert (growth <= 1.0).all()
    np.testing.assert_allclose(growth[1:], np.sqrt(1.0 - correlation ** (2 * np.arange(1, N_SLOTS))))
    fee, export_fee = scenario.tariff.network_fee_eur_per_kwh, scenario.tariff.export_fee_eur_per_kwh
    for share in (0.3, 1.0):  # any lead time
        assert (day.base_kw + share * day.forecast.base_kw >= -1e-12).all()
        assert (day.dg_kw + share * day.forecast.dg_kw >= -1e-12).all()
        price = day.import_eur_per_kwh + share * day.forecast.import_eur_per_kwh
        export = np.maximum(0.0, price - 0.05 - export_fee)
        assert (export + fee < price).all()


def test_noisy_forecast_has_the_stated_spread() -> None:
    # load noise is rarely cut at zero: over many days the errors have the share of the mean that the scenario states
    scenario = scenario_with("forecast", kind="noisy", noise_load_frac=0.05)
    shares = [day.forecast.base_kw / day.base_kw.mean(axis=0) for day in scenario.days(range(60))]
    assert np.std(np.stack(shares)) == pytest.approx(0.05, rel=0.15)


def test_kind_of_forecast_changes_nothing_else(small_scenario: Scenario) -> None:
    truth, noisy = arrays_of(small_scenario.day(2)), arrays_of(scenario_with("forecast", kind="noisy").day(2))
    for name, array in truth.items():
        if not name.startswith("forecast."):
            np.testing.assert_array_equal(array, noisy[name], err_msg=name)


# ------------------------------------------------------------------------------------------------------------- sessions


def test_sessions_of_a_day_stand_the_check(small_scenario: Scenario) -> None:
    day = small_scenario.day(0)
    assert len(day.sessions) > 0
    check_sessions(day.sessions, 2)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"bus": [0, 2]}, r"sessions\.bus\[1\] must be a charging bus 0\.\.1, got 2 \(car 8, arrival_slot 4\)"),
        ({"bus": [-1, 0]}, r"sessions\.bus\[0\] must be a charging bus 0\.\.1, got -1"),
        ({"bus": [1, 0]}, r"sessions must be sorted by bus"),
        ({"phase": [3, 0]}, r"sessions\.phase\[0\] must be 0, 1, 2 or -1 \(balanced\), got 3"),
        ({"arrival_slot": [48, 4]}, r"sessions\.arrival_slot\[0\] must be in 0\.\.47, got 48"),
        ({"arrival_slot": [-1, 4]}, r"sessions\.arrival_slot\[0\] must be in 0\.\.47, got -1"),
        ({"departure_slot": [20, 4]}, r"sessions\.departure_slot\[1\] must come after arrival_slot, got 4"),
        ({"departure_slot": [20, 49]}, r"sessions\.departure_slot\[1\] must be at most 48, got 49"),
        ({"soc0_frac": [1.2, 0.5]}, r"sessions\.soc0_frac\[0\] must be in \[0, 1\], got 1\.2"),
        ({"capacity_kwh": [50.0, 0.0]}, r"sessions\.capacity_kwh\[1\] must be > 0, got 0\.0"),
        ({"power_kw": [-7.4, 7.4]}, r"sessions\.power_kw\[0\] must be > 0, got -7\.4"),
        ({"efficiency_frac": [1.0, 1.1]}, r"sessions\.efficiency_frac\[1\] must be in \(0, 1\], got 1\.1"),
        ({"soc0_frac": [0.5, np.nan]}, r"sessions\.soc0_frac\[1\] must be finite, got nan"),
        ({"power_kw": [np.inf, 1.0]}, r"sessions\.power_kw\[0\] must be finite, got inf"),
        ({"power_kw": [7.4]}, r"sessions\.power_kw must have shape \(2,\), got \(1,\)"),
        ({"phase": [0.0, 1.0]}, r"sessions\.phase must hold integers, got float64"),
    ],
)
def test_sessions_that_no_car_can_have_are_refused(change: dict[str, list[float]], complaint: str) -> None:
    sessions = sessions_of(Car(5.0, 7.4, 2, 20, car=7), Car(5.0, 7.4, 4, 30, bus=1, car=8))
    check_sessions(sessions, 2)
    bad = dataclasses.replace(sessions, **{name: np.array(values) for name, values in change.items()})
    with pytest.raises(DataError, match=complaint):
        check_sessions(bad, 2)


def test_a_day_without_cars_is_a_day() -> None:
    assert len(tiny_scenario().day(0).sessions) == 0
