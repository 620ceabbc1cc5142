"""Comparisons in the market: profits, costs and captured shares of one set of days, in records, tables and a report."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from evcs_gym.baselines import operator_misocp
from evcs_gym.baselines.operator_misocp import MISOCP
from evcs_gym.baselines.registry import make_rule
from evcs_gym.baselines.score import rollout
from evcs_gym.baselines.score_market import market_rollout
from evcs_gym.envs import Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.evaluation.benchmark import compare, compare_part
from evcs_gym.evaluation.contest_market import BOUND_LABEL
from evcs_gym.evaluation.figures import market_figure
from evcs_gym.evaluation.records import Comparison, MarketResult, MarketTrace, PolicyResult, read_csv, read_json
from evcs_gym.evaluation.report import Part, profit_table, rich_table, write_parts
from evcs_gym.training.config import load_preset
from evcs_gym.training.train import train

N_DAYS, S = 2, 8
TINY = (
    "n_envs=2",
    "pool_days=2",
    "total_steps=400",
    "ppo.n_steps=24",
    "ppo.batch_size=64",
    "ppo.n_epochs=1",
    "ppo.hidden_units=[8]",
    "validation.n_days=1",
)


@pytest.fixture(scope="module")
def city() -> Scenario:
    return load_scenario("ieee33_twelve")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training seeds of a tiny run."""
    folder = tmp_path_factory.mktemp("run")
    train(load_preset("market_shared", TINY), run_dir=folder, seeds=(0, 1))
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def part(run: Path, out: Path) -> Part:
    policies = ["idle", "dp_truthful", "optimum", str(run)]
    return compare_part("market", policies, N_DAYS, "test", None, out)


@pytest.fixture(scope="module")
def compared(part: Part) -> Comparison:
    return part.comparison


def named(comparison: Comparison, label: str) -> PolicyResult:
    return next(result for result in comparison.results if result.label == label)


def market_of(result: PolicyResult) -> MarketResult:
    assert result.market is not None
    return result.market


def test_the_days_and_references_are_those_of_the_market(compared: Comparison, city: Scenario) -> None:
    assert (compared.problem, compared.scenario, compared.bound_label) == ("market", "ieee33_twelve", BOUND_LABEL)
    assert compared.stations == city.stations.name
    naive = named(compared, "idle")
    assert (naive.captured, naive.cost_eur[0]) == (0.0, compared.naive_cost_eur)


def test_nobody_is_cheaper_than_the_bound_and_the_plan_is_near_it(compared: Comparison) -> None:
    assert compared.below_bound() == ()
    best = named(compared, "optimum")
    assert best.captured > 0.9  # the network takes a part
    assert best.captured == max(result.captured for result in compared.results)


def test_costs_and_profits_are_the_rollouts(compared: Comparison, city: Scenario) -> None:
    result = rollout(market_world(city, city.days(range(N_DAYS), "test")), make_rule("dp_truthful", "market"))
    truthful = named(compared, "dp_truthful")
    np.testing.assert_allclose(truthful.cost_eur[0], result.cost_eur)
    np.testing.assert_allclose(market_of(truthful).profit_eur[0], result.profit_eur)
    np.testing.assert_allclose(result.profit_eur.sum(axis=1), result.income_eur - result.cost_eur)
    assert truthful.violation_pu is None


def test_planners_are_compared_by_name_and_what_is_done_is_kept(city: Scenario, tmp_path: Path) -> None:
    """An interruption loses the policy that was playing, none before it."""

    def interrupt(what: str, *_: int) -> None:
        if what == "playing idle":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare("market", ["receding_horizon", "four_stage", "idle"], 1, "test", city, tmp_path, listener=interrupt)
    kept = read_json(tmp_path / "comparison.json")
    assert ([result.label for result in kept.results], kept.complete) == (["receding_horizon", "four_stage"], False)
    assert kept.below_bound() == ()
    together, alone = kept.results
    assert together.captured > 0.9 > alone.captured
    assert together.ms_per_decision is not None
    assert together.ms_per_decision > 0.0


def test_a_learned_policy_has_a_row_for_each_seed(compared: Comparison, run: Path) -> None:
    learned = named(compared, str(run))
    assert (learned.kind, learned.training_seeds) == ("learned", (0, 1))
    assert np.shape(market_of(learned).profit_eur) == (2, N_DAYS, S)


def test_files_hold_the_same_numbers(compared: Comparison, out: Path) -> None:
    assert read_json(out / "comparison.json") == compared
    assert len(read_csv(out / "days.csv")) == (3 + 2) * N_DAYS
    lines = (out / "stations.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "policy,training_seed,day_seed,station,profit_eur"
    assert len(lines) == 1 + (3 + 2) * N_DAYS * S
    first = lines[1].split(",")
    assert first[:4] == ["idle", "", "0", "station_0"]
    assert float(first[4]) == market_of(compared.results[0]).profit_eur[0][0][0]


def test_tables_show_profits(compared: Comparison) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(rich_table(compared))
        console.print(profit_table(compared))
    text = capture.get()
    assert all(name in text for name in ("captured (95 %)", "profit", "traded", "capped", "(station_...)"))
    total = sum(market_of(named(compared, "dp_truthful")).mean_profit_eur)
    assert f"{total:.2f}" in text


def test_one_page_holds_two_comparisons_without_an_id_twice(part: Part, tmp_path: Path) -> None:
    page = write_parts(tmp_path / "report.html", [part, part]).read_text(encoding="utf-8")
    assert page.count("Profit of each station") == 2
    assert page.count("Market on test day 0") == 2
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_run_of_another_problem_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"was trained for market, not for normal_charging; compare it there"):
        compare("normal_charging", ["charge_on_arrival", str(run)], 1)


def test_cities_whose_drivers_answer_prices_are_refused(city: Scenario, tmp_path: Path) -> None:
    content = city.model_dump(mode="json", by_alias=True) | {"responsive_demand": {}}
    path = tmp_path / "answering.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    message = "responsive_demand must be off where policies of the market are trained or compared"
    with pytest.raises(ConfigError, match=message):
        compare("market", ["idle"], 1, "test", str(path))
    with pytest.raises(ConfigError, match=message):
        train(load_preset("market_shared", [*TINY, f"scenario={path}"]), run_dir=tmp_path / "run")


def test_a_rule_of_another_problem_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no policy 'charge_on_arrival'"):
        compare("market", ["charge_on_arrival"], 1)


# --- records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"curtailed_kwh": ((1.0,),)}, "curtailed_kwh must have the seeds and days of traded_kwh"),
        ({"profit_eur": (((1.0,), (1.0, 2.0)),)}, "profit_eur must have the same stations on every day"),
    ],
)
def test_records_of_the_market_must_fit(compared: Comparison, update: dict[str, object], message: str) -> None:
    data = market_of(compared.results[0]).model_dump() | update
    with pytest.raises(ValueError, match=message):
        MarketResult.model_validate(data)


def test_results_must_cover_the_stations_and_days(compared: Comparison) -> None:
    data = compared.model_dump()
    with pytest.raises(ValueError, match="must cover the 7 stations"):
        Comparison.model_validate(data | {"stations": compared.stations[:7]})
    result = compared.results[0].model_dump()
    fewer = {name: [rows[0][:1]] for name, rows in result["market"].items()}
    with pytest.raises(ValueError, match="market must have the seeds and days of cost_eur"):
        PolicyResult.model_validate(result | {"market": fewer})


@pytest.mark.parametrize("name", ["surplus_kw", "vmax_pu", "volume_kw"])
def test_a_trace_of_another_length_or_with_nan_is_refused(part: Part, name: str) -> None:
    trace = part.traces[0]
    assert isinstance(trace, MarketTrace)
    market_figure(trace)
    for wrong, words in ((lambda a: a[:5], "must have shape"), (lambda a: a * np.nan, "must be finite")):
        values = getattr(trace, name)
        bad = {label: wrong(array) for label, array in values.items()} if isinstance(values, dict) else wrong(values)
        with pytest.raises(DataError, match=f"MarketTrace: {name}.*{words}"):
            MarketTrace(**{**trace.__dict__, name: bad})


def test_another_operator_says_so_and_marks_what_it_could_not_do(
    city: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test day 1: the stations' own plans break a limit in two slots."""
    monkeypatch.setattr(operator_misocp, "_programme", lambda *_: None)
    compared = compare("market", ["dp_truthful"], 2, operator="misocp")
    assert compared.notes == ("The network's operator is misocp.",)
    assert compared.results[0].note == "the operator fell back to pro_rata in 2 slots"
    monkeypatch.undo()
    compared = compare("market", ["dp_truthful"], 2, operator="misocp")
    world, rule = market_world(city, city.days((0, 1), "test")), make_rule("dp_truthful", "market")
    assert compared.results[0].cost_eur[0] == tuple(market_rollout(world, rule, MISOCP).cost_eur.tolist())
    assert compared.results[0].note == ""
    assert market_of(compared.results[0]).n_capped_slots == ((0, 2),)


def test_operators_are_for_the_market() -> None:
    with pytest.raises(ConfigError, match=r"operator is for the market, whose network caps stations, got 'misocp'"):
        compare("normal_charging", ["charge_on_arrival"], 1, operator="misocp")
