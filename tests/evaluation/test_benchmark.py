"""Comparisons: every policy between the naive rule and the bound, on the same days, with all it takes to redo it."""

from pathlib import Path

import numpy as np
import pytest
from training_fixtures import CLONE, interrupt_at, tiny_city, tiny_preset

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.evaluation.benchmark import compare
from evcs_gym.evaluation.contest import OPTIMUM
from evcs_gym.evaluation.contest_normal import BOUND_LABEL, OPEN_LOOP
from evcs_gym.evaluation.records import Comparison, PolicyResult, read_csv, read_json
from evcs_gym.training.checkpoint import POLICY_FILE, RUN_FILE
from evcs_gym.training.train import train

N_DAYS = 3
RULE = "charge_on_arrival"


@pytest.fixture(scope="module")
def city_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_city(tmp_path_factory.mktemp("city"))


@pytest.fixture(scope="module")
def run(city_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training seeds of a tiny run."""
    folder = tmp_path_factory.mktemp("run")
    train(tiny_preset(city_file, "total_steps=400"), run_dir=folder, seeds=(0, 3))
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def compared(city_file: Path, run: Path, out: Path) -> Comparison:
    policies = [RULE, "water_filling", OPTIMUM, OPEN_LOOP, str(run), str(run / "seed-3")]
    return compare("normal_charging", policies, N_DAYS, "test", str(city_file), out)


def named(comparison: Comparison, label: str) -> PolicyResult:
    return next(result for result in comparison.results if result.label == label)


def test_days_and_references_are_those_asked_for(compared: Comparison) -> None:
    assert (compared.problem, compared.scenario, compared.split) == ("normal_charging", "tiny", "test")
    assert compared.day_seeds == (0, 1, 2)
    assert (compared.naive_label, compared.bound_label) == (RULE, BOUND_LABEL)
    assert compared.complete


def test_the_naive_rule_captures_exactly_nothing(compared: Comparison) -> None:
    naive = named(compared, RULE)
    assert (naive.captured, naive.gap) == (0.0, 1.0)
    assert naive.cost_eur[0] == compared.naive_cost_eur


def test_nothing_is_cheaper_than_the_bound_and_no_total_cheaper_than_the_optimums(compared: Comparison) -> None:
    assert compared.below_bound() == ()
    best = named(compared, OPTIMUM)
    bound = np.array(compared.lower_bound_eur)
    assert (np.array(best.cost_eur[0]) >= bound - 1e-6 * np.maximum(1.0, np.abs(bound))).all()
    for result in compared.results:
        slack = 1e-3 * max(N_DAYS, abs(sum(best.cost_eur[0])))  # the gap that the optimum was asked for
        assert min(map(sum, result.cost_eur)) >= sum(best.cost_eur[0]) - slack, result.label


def test_captured_is_a_ratio_of_sums(compared: Comparison) -> None:
    naive, bound = sum(compared.naive_cost_eur), sum(compared.lower_bound_eur)
    for result in compared.results:
        assert result.captured == pytest.approx((naive - np.sum(result.cost_eur, axis=1).mean()) / (naive - bound))


def test_kinds_seeds_and_notes(compared: Comparison, run: Path) -> None:
    learned, best = named(compared, str(run)), named(compared, OPTIMUM)
    assert [result.kind for result in compared.results] == ["rule", "rule", "optimum", "optimum", "learned", "learned"]
    assert learned.training_seeds == (0, 3)
    assert np.shape(learned.cost_eur) == (2, N_DAYS)
    assert "of training" in learned.note
    assert learned.ms_per_decision is not None
    assert learned.ms_per_decision > 0.0
    assert named(compared, str(run / "seed-3")).cost_eur[0] == learned.cost_eur[1]
    assert best.relative_gap is not None
    assert all(0.0 <= gap <= 1e-2 for gap in best.relative_gap)
    assert "not an upper bound" in named(compared, OPEN_LOOP).note


def test_where_the_numbers_come_from(compared: Comparison) -> None:
    origin = compared.provenance
    assert origin.training_seeds == (0, 3)
    assert "HiGHS" in origin.solver
    assert origin.relative_gap == 1e-3


def test_files_hold_the_same_numbers(compared: Comparison, out: Path, run: Path) -> None:
    assert read_json(out / "comparison.json") == compared
    rows = read_csv(out / "days.csv")
    assert len(rows) == (4 + 2 + 1) * N_DAYS
    learned = [row for row in rows if row.policy == str(run)]
    assert [(row.training_seed, row.day_seed) for row in learned] == [(s, d) for s in (0, 3) for d in range(N_DAYS)]
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")


def test_the_same_comparison_twice_gives_the_same_costs(city_file: Path, compared: Comparison, run: Path) -> None:
    again = compare("normal_charging", [str(run)], N_DAYS, "test", str(city_file))
    assert again.results[0].cost_eur == named(compared, str(run)).cost_eur
    assert again.lower_bound_eur == pytest.approx(compared.lower_bound_eur, rel=1e-9)


def test_the_hash_covers_the_presets(city_file: Path, run: Path, compared: Comparison) -> None:
    alone = compare("normal_charging", [RULE], 1, "test", str(city_file))
    assert alone.provenance.training_seeds == ()
    assert alone.provenance.config_hash != compared.provenance.config_hash


def test_a_clone_is_shown_as_one_and_an_unfinished_run_as_unfinished(city_file: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_preset(city_file, *CLONE), run_dir=tmp_path, listener=interrupt_at(1))
    result = compare("normal_charging", [str(tmp_path)], 1, "test", str(city_file)).results[0]
    assert result.kind == "clone"
    assert "cloned from a plan that knows the whole day" in result.note
    assert "not finished" in result.note


def test_an_interruption_leaves_what_was_done(city_file: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("of an older comparison", encoding="utf-8")

    def stop(what: str, _done: int, _all: int) -> None:
        if what == "playing least_laxity":
            raise KeyboardInterrupt

    policies = [RULE, "water_filling", "least_laxity"]
    with pytest.raises(KeyboardInterrupt):
        compare("normal_charging", policies, 2, "test", str(city_file), tmp_path, listener=stop)
    left = read_json(tmp_path / "comparison.json")
    assert [result.label for result in left.results] == [RULE, "water_filling"]
    assert not left.complete
    assert len(read_csv(tmp_path / "days.csv")) == 4
    assert not (tmp_path / "report.html").exists()


def test_the_listener_hears_every_step(city_file: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    compare("normal_charging", [RULE], 2, "train", str(city_file), listener=lambda *news: heard.append(news))
    solving = "solving days exactly"
    assert heard == [(solving, 0, 2), (solving, 1, 2), (solving, 2, 2), (f"playing {RULE}", 0, 1), ("done", 1, 1)]


# --- refusals, all before anything is solved -----------------------------------------------------------------


@pytest.fixture
def unsolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a day is solved."""

    def solve(*_: object, **__: object) -> None:
        raise AssertionError("a day was solved before the mistake was found")

    monkeypatch.setattr("evcs_gym.baselines.optimum", solve)


@pytest.mark.usefixtures("unsolved")
@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ([], "name at least one policy"),
        ([RULE, "water_filing"], "no policy 'water_filing'; did you mean 'water_filling'"),
        (["optimun"], "no policy 'optimun'; did you mean 'optimum'"),
        (["zzz"], "no policy 'zzz' .known: charge_on_arrival, .*optimum, .*or give a run folder"),
        ([RULE, OPTIMUM, RULE], "each policy may be named once"),
        (["runs/nowhere"], "runs/nowhere: there is no such run folder"),
    ],
)
def test_bad_names_of_policies(city_file: Path, policies: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare("normal_charging", policies, 1, "test", str(city_file))


@pytest.mark.usefixtures("unsolved")
def test_a_folder_that_is_no_run(city_file: Path, tmp_path: Path) -> None:
    (tmp_path / "seed-old").mkdir()
    (tmp_path / "seed-old" / RUN_FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"holds no run.json"):
        compare("normal_charging", [str(tmp_path)], 1, "test", str(city_file))


@pytest.mark.usefixtures("unsolved")
def test_a_run_without_a_model(city_file: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_bytes((run / "seed-0" / RUN_FILE).read_bytes())
    with pytest.raises(ConfigError, match=r"holds no policy.pt: the run has no model"):
        compare("normal_charging", [RULE, str(tmp_path)], 1, "test", str(city_file))
    (tmp_path / POLICY_FILE).write_bytes(b"half")
    with pytest.raises(DataError, match=r"policy.pt: cannot be read as weights"):
        compare("normal_charging", [RULE, str(tmp_path)], 1, "test", str(city_file))


@pytest.mark.usefixtures("unsolved")
def test_a_problem_a_split_and_a_number_of_days_that_are_none(city_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"problem must be normal_charging or market or fast_charging, got 'traffic'"):
        compare("traffic", [RULE], 1, "test", str(city_file))
    with pytest.raises(ConfigError, match=r"split must be one of train, validation, test, got 'tests'"):
        compare("normal_charging", [RULE], 1, "tests", str(city_file))
    with pytest.raises(ConfigError, match=r"at least one day, got 0"):
        compare("normal_charging", [RULE], 0, "test", str(city_file))


def test_an_out_that_cannot_be_written(city_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be written"):
        compare("normal_charging", [RULE], 1, "test", str(city_file), tmp_path / "file" / "out")
