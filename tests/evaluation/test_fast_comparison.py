"""Comparisons in fast charging: every policy between nearest and the bound of the day that knows all requests."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from fast_fixtures import fast_content
from rich.console import Console

from evcs_gym.baselines.registry import make_rule
from evcs_gym.baselines.score import rollout
from evcs_gym.envs import Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.fleet.fast import make_fast_world, replay
from evcs_gym.evaluation.benchmark import compare
from evcs_gym.evaluation.contest_fast import BOUND_LABEL, PlannedStations
from evcs_gym.evaluation.pages import results_block
from evcs_gym.evaluation.records import Comparison, FastResult, PolicyResult, read_csv, read_json
from evcs_gym.evaluation.report import rich_table
from evcs_gym.training.config import load_preset
from evcs_gym.training.train import train

N_DAYS = 2
POLICIES = ("nearest", "cheapest", "slot_optimum", "optimum")
TINY = (
    "n_envs=2",
    "pool_days=2",
    "total_steps=64",
    "ppo.n_steps=16",
    "ppo.batch_size=16",
    "ppo.n_epochs=1",
    "ppo.hidden_units=[8]",
    "validation.n_days=1",
)


@pytest.fixture(scope="module")
def city_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("city") / "tiny_fast.yaml"
    path.write_text(yaml.safe_dump(fast_content((100, 60))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def city(city_file: Path) -> Scenario:
    return load_scenario(city_file)


@pytest.fixture(scope="module")
def run(city_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training seeds of a tiny run."""
    folder = tmp_path_factory.mktemp("run")
    train(load_preset("fast_charging", [f"scenario={city_file}", *TINY]), run_dir=folder, seeds=(0, 1))
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def compared(city_file: Path, run: Path, out: Path) -> Comparison:
    return compare("fast_charging", [*POLICIES, str(run)], N_DAYS, "test", str(city_file), out)


def named(comparison: Comparison, label: str) -> PolicyResult:
    return next(result for result in comparison.results if result.label == label)


def fast_of(result: PolicyResult) -> FastResult:
    assert result.fast is not None
    return result.fast


def test_nearest_captures_nothing_and_nobody_is_below_the_bound(compared: Comparison) -> None:
    assert (compared.naive_label, compared.bound_label, compared.complete) == ("nearest", BOUND_LABEL, True)
    assert named(compared, "nearest").captured == 0.0
    assert compared.below_bound() == ()
    assert named(compared, "optimum").captured == max(result.captured for result in compared.results)


def test_numbers_are_those_of_the_rollout(compared: Comparison, city: Scenario) -> None:
    world = make_fast_world(city, city.days(range(N_DAYS), "test"))
    played, shown = rollout(world, make_rule("cheapest", "fast_charging")), named(compared, "cheapest")
    np.testing.assert_array_equal(shown.cost_eur[0], played.cost_eur)
    np.testing.assert_array_equal(fast_of(shown).unabsorbed_kwh[0], played.unabsorbed_kwh)
    np.testing.assert_array_equal(fast_of(shown).n_stranded[0], played.n_stranded)


def test_a_plan_plays_as_it_was_solved(city: Scenario) -> None:
    days = city.days(range(N_DAYS), "test")
    world = make_fast_world(city, days)
    nearest = rollout(world, make_rule("nearest", "fast_charging"))
    again = rollout(world, PlannedStations(list(nearest.station)))
    np.testing.assert_array_equal(again.station, nearest.station)
    plan = nearest.station[1][: world.n_requests[1]]
    assert replay(city, days[1], plan).cost_eur == pytest.approx(again.cost_eur[1], rel=1e-9)


def test_the_planner_says_that_it_solves(compared: Comparison) -> None:
    planner, rule = named(compared, "slot_optimum"), named(compared, "cheapest")
    assert (planner.kind, rule.kind, rule.note) == ("planner", "rule", "")
    assert "ms a slot on average" in planner.note


def test_a_learned_policy_has_a_row_for_each_seed(compared: Comparison, run: Path) -> None:
    learned = named(compared, str(run))
    assert (learned.kind, learned.training_seeds) == ("learned", (0, 1))
    assert np.shape(fast_of(learned).n_stranded) == (2, N_DAYS)


def test_files_and_report_hold_the_same(compared: Comparison, out: Path) -> None:
    assert read_json(out / "comparison.json") == compared
    assert len(read_csv(out / "days.csv")) == (len(POLICIES) + 2) * N_DAYS
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Sum over the stations" in page
    assert "for one decision of one request" in page
    taken = f"{np.mean(fast_of(named(compared, 'cheapest')).unabsorbed_kwh):.0f}"
    assert f"<td>{taken}</td>" in page


def test_tables_show_stranded_cars_and_generation(compared: Comparison) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(rich_table(compared))
    head = next(line for line in capture.get().splitlines() if "policy" in line)
    assert head.split() == [
        "policy",
        "EUR/day",
        "captured",
        "(95",
        "%)",
        "not",
        "taken",
        "stranded",
        "viol./day",
        "ms/dec.",
    ]
    block = results_block(compared, "docs/results/fast_charging.json")
    assert "| policy | what it is | EUR/day | captured | 95 % | not taken | stranded | violations/day |" in block


def test_a_result_of_other_days_is_refused(compared: Comparison) -> None:
    result = named(compared, "cheapest")
    few = FastResult(n_stranded=((0,),), unabsorbed_kwh=((0.0,),), charge_eur=((0.0,),))
    with pytest.raises(ValueError, match="fast must have the seeds and days of cost_eur"):
        PolicyResult.model_validate({**result.__dict__, "fast": few})
    with pytest.raises(ValueError, match="charge_eur must have the seeds and days of n_stranded"):
        FastResult(n_stranded=((0,),), unabsorbed_kwh=((0.0,),), charge_eur=((0.0, 1.0),))


def test_a_run_of_another_problem_and_a_city_without_the_world_are_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"was trained for fast_charging, not for normal_charging"):
        compare("normal_charging", [str(run)], 1)
    with pytest.raises((ConfigError, DataError), match="fast_charging"):
        compare("fast_charging", ["nearest"], 1, scenario="ieee33_residential")
