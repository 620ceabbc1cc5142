"""The whole strategy: days by hand, sums that must agree with each world alone, the page, the command, its errors."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from envs_fixtures import Car, sessions_of
from fast_fixtures import Request, fast_content, fast_hand_day, fast_scenario
from typer.testing import CliRunner

from evcs_gym.baselines import make_rule
from evcs_gym.baselines.score import rollout, world_of
from evcs_gym.envs import Day, Scenario
from evcs_gym.envs.day_fast import with_fast_load
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.units import N_SLOTS
from evcs_gym.evaluation.cli import app
from evcs_gym.evaluation.records import DayTrace
from evcs_gym.evaluation.strategy import (
    MEASURES,
    StrategyComparison,
    StrategyResult,
    _played,
    _sites,
    check_policy,
    compare_strategy,
    table_rows,
)
from evcs_gym.evaluation.strategy_page import publish, strategy_html


@pytest.fixture(scope="module")
def city() -> Scenario:
    """Stations at buses 18 and 30, homes at 18 and 33: one bus has both."""
    return fast_scenario()


@pytest.fixture(scope="module")
def compared(city: Scenario) -> tuple[StrategyComparison, DayTrace]:
    return compare_strategy("cheapest", "water_filling", 2, "test", city)


def hand_day(city: Scenario, *cars: Car, requests: tuple[Request, ...] = (), dg_kw: float = 0.0) -> Day:
    """Base load 10 kW and the same generation at all four places."""
    day = fast_hand_day(city, *requests, base_kw=10.0, dg_kw=dg_kw)
    home = np.full((N_SLOTS, 2), 1.0)
    return dataclasses.replace(day, sessions=sessions_of(*cars), base_kw=10.0 * home, dg_kw=dg_kw * home)


def played(city: Scenario, day: Day) -> StrategyResult:
    """Uncoordinated charging on one day."""
    return _played(city, [day], _sites(city, [day]), "by hand", "nearest", "charge_on_arrival")[0]


def test_a_day_without_cars_absorbs_what_its_base_load_takes(city: Scenario) -> None:
    # three buses, 18, 30 and 33: 10 of 25 kW at each for 24 h
    found = played(city, hand_day(city, dg_kw=25.0))
    assert found.absorbed_kwh == pytest.approx((3 * 10.0 * 24.0,))
    assert found.charged_kwh == (0.0,)
    assert (found.n_fast, found.n_home, found.n_stranded) == ((0,), (0,), (0,))


def test_what_both_kinds_of_charging_absorb_and_cost(city: Scenario) -> None:
    # One request goes to the slow station at bus 18: 40 kWh and 1 kWh for 5 km, at 20 kW for two hours and 1 kWh more.
    # A car of 10 kW at home at bus 33 charges 10 kWh in two slots. Of 15 kW of surplus at bus 18 the station takes 15
    # in four slots and 2 kW in the last one: 30 + 1 kWh; at bus 33 10 of 15 kW: 10 kWh.
    day = hand_day(city, Car(10.0, 10.0, 4, 20, bus=1), requests=(Request(slot=10),), dg_kw=25.0)
    found = played(city, day)
    assert found.charged_kwh == pytest.approx((41.0,))
    assert found.absorbed_kwh == pytest.approx((3 * 10.0 * 24.0 + 41.0,))
    assert found.fast_bill_eur == pytest.approx((41.0 * 0.1,))
    assert found.home_bill_eur == pytest.approx((10.0 * 0.1,))
    assert (found.n_fast, found.n_home) == ((1,), (1,))
    base_kw = day.load_kva.real.sum(axis=(1, 2))
    charging = np.zeros(N_SLOTS)
    charging[4:6], charging[10:14], charging[14] = 10.0, 20.0, 2.0
    assert found.peak_kw == pytest.approx((float((base_kw + charging).max()),))


def test_both_worlds_cost_what_they_cost_alone(city: Scenario, compared: tuple[StrategyComparison, DayTrace]) -> None:
    days = city.days(range(2), "test")
    for result in compared[0].results:
        sent = rollout(world_of(city, days, "fast_charging"), make_rule(result.fast, "fast_charging"))
        assert result.fast_cost_eur == pytest.approx(tuple(sent.cost_eur))
        assert result.n_stranded == tuple(sent.n_stranded)
        loaded = [with_fast_load(city, day, load) for day, load in zip(days, sent.load_kw, strict=True)]
        home = rollout(world_of(city, loaded, "normal_charging"), make_rule(result.normal, "normal_charging"))
        assert result.normal_cost_eur == pytest.approx(tuple(home.cost_eur))
        assert result.n_violations == tuple(home.n_violations)


def test_shares_are_shares_and_the_naive_pair_stands_first(compared: tuple[StrategyComparison, DayTrace]) -> None:
    comparison, trace = compared
    assert [result.label for result in comparison.results] == ["uncoordinated", "cheapest + water_filling"]
    assert (comparison.results[0].fast, comparison.results[0].normal) == ("nearest", "charge_on_arrival")
    for result in comparison.results:
        absorbed, charged = np.array(result.absorbed_kwh), np.array(result.charged_kwh)
        assert (charged <= absorbed).all()
        assert (absorbed <= np.array(comparison.generation_kwh) + 1e-9).all()
        assert np.shape(result.lowest_pu) == (len(comparison.bus_name), 3)
    assert list(trace.charging_kw) == [result.label for result in comparison.results]
    rows = table_rows(comparison)
    assert [row["measure"] for row in rows] == [measure.name for measure in MEASURES]
    cost = next(row for row in rows if row["measure"].startswith("cost of fast charging"))
    assert float(cost["uncoordinated"]) == pytest.approx(np.mean(comparison.results[0].fast_cost_eur), abs=0.01)


def test_exact_plans_and_planners_take_part_and_say_how_exact_they_are(city: Scenario) -> None:
    comparison, trace = compare_strategy("optimum", "optimum", 1, "test", city)
    naive, exact = comparison.results
    assert exact.fast_gap is not None
    assert exact.normal_gap is not None
    assert sum(exact.fast_cost_eur) <= sum(naive.fast_cost_eur) + 1e-6
    assert "know the whole day" in strategy_html(comparison, trace)
    planned = compare_strategy("slot_optimum", "receding_horizon", 1, "test", city)[0].results[1]
    assert (planned.fast_gap, planned.normal_gap) == (None, None)
    assert planned.unmet_kwh == (0.0,)


def test_the_naive_pair_is_not_shown_twice(city: Scenario) -> None:
    comparison, _ = compare_strategy("nearest", "charge_on_arrival", 1, "test", city)
    assert [result.label for result in comparison.results] == ["uncoordinated"]


def test_page_and_numbers_are_written(compared: tuple[StrategyComparison, DayTrace], tmp_path: Path) -> None:
    page = publish(tmp_path, *compared).read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert "<script" not in page
    assert "--accent" in page  # the style of the report
    for row in table_rows(compared[0]):
        assert row["uncoordinated"] in page
    kept = StrategyComparison.model_validate_json((tmp_path / "strategy.json").read_text(encoding="utf-8"))
    assert kept == compared[0]


def test_the_command_shows_the_table_and_writes(city: Scenario, tmp_path: Path) -> None:
    (tmp_path / "city.yaml").write_text(json.dumps(fast_content()))
    options = [
        "--days",
        "1",
        "--scenario",
        str(tmp_path / "city.yaml"),
        "--fast",
        "nearest",
        "--normal",
        "dg_following",
    ]
    done = CliRunner().invoke(app, ["strategy", *options, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "nearest + dg_following" in " ".join(done.stdout.split())
    assert (tmp_path / "out" / "strategy.html").exists()
    shown = json.loads(CliRunner().invoke(app, ["strategy", *options, "--json"]).stdout)
    assert shown["record"] == "evcs-gym strategy 1"


def test_unknown_policies_and_cities_are_refused_before_anything_is_played(
    city: Scenario, small_scenario: Scenario, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="strategy: there is no policy 'water_filling' of fast_charging"):
        compare_strategy("water_filling", "water_filling", 1, "test", city)
    with pytest.raises(ConfigError, match="strategy: n_days must be at least 1, got 0"):
        compare_strategy("nearest", "water_filling", 0, "test", city)
    with pytest.raises(ConfigError, match="strategy: tiny must have fast charging and charging at home"):
        compare_strategy("nearest", "water_filling", 1, "test", small_scenario)
    with pytest.raises(ConfigError):
        check_policy(str(tmp_path), "normal_charging")  # a folder without a run
