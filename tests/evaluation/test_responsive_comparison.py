"""Comparisons where drivers respond: the rollout's numbers in record, files and tables; no captured share; refusals."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from evcs_gym.baselines import make_rule
from evcs_gym.baselines.score_responsive import AtPrices, responsive_rollout
from evcs_gym.envs import Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.responsive import responsive_world
from evcs_gym.evaluation import cli
from evcs_gym.evaluation.responsive import CAPTION, ResponsiveComparison, compare_responsive
from evcs_gym.evaluation.responsive_tables import headline, responsive_tables


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = load_scenario("ieee33_twelve").model_dump(mode="json", by_alias=True) | {"responsive_demand": {}}
    file = tmp_path_factory.mktemp("city") / "answering.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def city(path: Path) -> Scenario:
    return load_scenario(str(path))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    (folder / "report.html").write_text("of an older comparison", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def compared(city: Scenario, out: Path) -> ResponsiveComparison:
    return compare_responsive(city, ["idle", "dp_truthful"], ["own", "largest"], 2, "test", out)


def test_results_are_the_rollouts_rule_by_rule_and_price_by_price(
    compared: ResponsiveComparison, city: Scenario
) -> None:
    named = [(result.policy, result.retail) for result in compared.results]
    assert named == [("idle", "own"), ("idle", "largest"), ("dp_truthful", "own"), ("dp_truthful", "largest")]
    world = responsive_world(city, city.days([0, 1], "test"))
    played = responsive_rollout(world, AtPrices(make_rule("dp_truthful", "market")))
    result = compared.results[2]
    np.testing.assert_array_equal(result.profit_eur, [played.market.profit_eur])
    np.testing.assert_array_equal(result.served_kwh, [played.served_kwh])
    np.testing.assert_array_equal(result.retail_eur_per_kwh, [played.retail_eur_per_kwh])
    assert result.mean.profit_eur.value == pytest.approx(played.market.profit_eur.sum() / 2)
    assert result.mean.station_served_kwh == pytest.approx(played.served_kwh.mean(axis=0))
    assert result.mean.travel_h == pytest.approx(played.travel_h.sum() / 2)
    assert result.mean.cooperative_eur == pytest.approx(played.cooperative_eur.sum() / 2)
    profits = [result.mean.profit_eur.value for result in compared.results]
    ahead = [result.mean.ahead_eur for result in compared.results]
    assert (ahead[0].value, ahead[0].low, ahead[0].high) == (0.0, 0.0, 0.0)
    assert [mean.value for mean in ahead] == pytest.approx([profit - profits[0] for profit in profits])
    own, largest = compared.results[2].mean, compared.results[3].mean
    assert own.outside_veh == 0.0 < largest.outside_veh
    assert 0.40 < own.retail_eur_per_kwh < 0.405
    assert largest.retail_eur_per_kwh == pytest.approx(0.50)
    assert own.served_kwh > largest.served_kwh


def test_files_hold_the_same_numbers(compared: ResponsiveComparison, out: Path) -> None:
    content = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert ResponsiveComparison.model_validate(content) == compared
    assert content["caption"] == CAPTION
    days, stations = (
        list(csv.DictReader((out / name).read_text(encoding="utf-8").splitlines()))
        for name in ("days.csv", "stations.csv")
    )
    assert (len(days), len(stations)) == (4 * 2, 4 * 2 * 8)
    assert float(days[0]["profit_eur"]) == pytest.approx(sum(float(row["profit_eur"]) for row in stations[:8]))
    assert float(days[0]["served_kwh"]) == pytest.approx(sum(compared.results[0].served_kwh[0][0]))
    assert (stations[8]["policy"], stations[8]["retail"], stations[8]["day_seed"]) == ("idle", "own", "1")


def test_the_report_is_of_these_numbers(compared: ResponsiveComparison, out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "of an older comparison" not in page
    assert headline(compared) in page
    assert CAPTION in page
    for result in compared.results:
        assert f"{result.policy}, {result.retail} prices" in page
        assert f"{result.mean.profit_eur.value:.2f}" in page
        assert all(f"{profit:.1f}" in page for profit in result.mean.station_profit_eur)
    words = ("Retail prices of the stations", "Cars that do not charge here", "Profit of each station", "solved to a")
    assert all(word in page for word in words)
    assert "<h2>Training</h2>" not in page  # nobody learned
    assert page.count("<svg") == 2
    assert "://" not in page.replace("http://www.w3.org", "")  # nothing is loaded from elsewhere


def test_the_table_says_why_there_is_no_captured_share(compared: ResponsiveComparison) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        for table in responsive_tables(compared):
            console.print(table)
    text = capture.get()
    first = compared.results[0].mean
    assert f"{first.profit_eur.value:.2f}" in text
    assert f"{first.travel_h:.1f}" in text
    assert CAPTION in " ".join(text.split())
    titles = ("profit EUR", "ahead", "travel h", "outside", "served kWh", "gain EUR")
    titles += ("Profit of each", "Energy served of each")
    assert all(title in text for title in titles)
    assert "captured (" not in text


def test_the_command_takes_the_scenario_and_prints_json(path: Path) -> None:
    arguments = ["compare", "market", "--scenario", str(path), "--days", "1", "--retail", "tariff", "idle"]
    done = CliRunner().invoke(cli.app, [*arguments, "--json"])
    content = json.loads(done.stdout)
    assert [(result["policy"], result["retail"]) for result in content["results"]] == [("idle", "tariff")]
    assert len(content["results"][0]["mean"]["station_profit_eur"]) == 8
    assert "Market, drivers respond: 1 result on 1 test day" in CliRunner().invoke(cli.app, arguments).stdout


@pytest.mark.parametrize(
    ("policies", "retail", "n_days", "message"),
    [
        (["optimum"], ["own"], 1, "'optimum' cannot be compared where drivers respond"),
        (["runs/of_nobody"], ["own"], 1, "there is no such run folder"),
        (["dp_trutful"], ["own"], 1, "no rule 'dp_trutful'; did you mean 'dp_truthful'"),
        (["idle"], ["owns"], 1, "no retail rule 'owns'"),
        ([], ["own"], 1, "at least one policy, and each once, got none"),
        (["idle"], ["own", "own"], 1, "at least one retail rule, and each once, got own, own"),
        (["idle"], ["own"], 0, "at least one day, got 0"),
    ],
)
def test_bad_questions_are_refused(
    city: Scenario, policies: list[str], retail: list[str], n_days: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compare_responsive(city, policies, retail, n_days)


def test_without_responsive_demand_there_are_no_retail_prices() -> None:
    with pytest.raises(ConfigError, match="responsive_demand must be on where drivers answer prices"):
        compare_responsive(load_scenario("ieee33_twelve"), ["idle"])
    done = CliRunner().invoke(cli.app, ["compare", "market", "--retail", "own", "idle"])
    assert done.exit_code == cli.EXIT_ERROR
    assert "--retail needs a scenario of the market with responsive_demand" in " ".join(done.stderr.split())


def test_where_drivers_respond_there_is_one_operator(path: Path) -> None:
    asked = ["compare", "market", "--scenario", str(path), "--operator", "misocp", "idle"]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == cli.EXIT_ERROR
    assert "where drivers respond the operator is pro_rata, got 'misocp'" in " ".join(done.stderr.split())
