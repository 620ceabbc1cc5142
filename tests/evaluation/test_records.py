"""Records: what is computed, what is refused, and that files come back as they were written."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evcs_gym.envs.errors import DataError
from evcs_gym.evaluation import records
from evcs_gym.evaluation.records import (
    Comparison,
    DayTrace,
    Provenance,
    collect_provenance,
    day_rows,
    git_hash,
    policy_result,
    read_csv,
    read_json,
    read_training_curve,
    write_csv,
    write_json,
    write_text,
)

ONE_DAY = {"n_violations": [[0, 0]], "violation_pu": [[0.0, 0.0]], "unmet_kwh": [[0.0, 0.0]]}


def test_a_result_holds_the_captured_share_of_its_costs() -> None:
    # saved 2 + 6 of 4 + 10
    result = policy_result("a", "rule", cost_eur=[8, 14], naive_cost_eur=[10, 20], lower_bound_eur=[6, 10], **ONE_DAY)
    assert result.captured == pytest.approx(8 / 14)
    assert result.gap == pytest.approx(6 / 14)
    assert result.mean_cost_eur == pytest.approx(11.0)
    assert (result.captured_low, result.captured_high) == pytest.approx((0.5, 0.6))


def test_clean_days_are_those_on_which_no_seed_left_the_limits(comparison: Comparison) -> None:
    naive, learned, _ = comparison.results
    assert naive.clean_days == (0, 2)
    assert naive.mean_violations == pytest.approx(4 / 3)
    assert learned.clean_days == (0, 1, 2)


def test_json_comes_back_as_it_was_written(comparison: Comparison, tmp_path: Path) -> None:
    assert read_json(write_json(tmp_path / "new" / "comparison.json", comparison)) == comparison


money = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(money, min_size=3, max_size=3), st.text(max_size=20))
def test_json_and_csv_keep_every_bit_of_every_number(
    comparison: Comparison, tmp_path: Path, cost_eur: list[float], note: str
) -> None:
    result = comparison.results[0].model_copy(update={"cost_eur": (tuple(cost_eur),), "note": note})
    changed = comparison.model_copy(update={"results": (result,)})
    assert read_json(write_json(tmp_path / "a.json", changed)) == changed
    assert read_csv(write_csv(tmp_path / "a.csv", changed)) == day_rows(changed)


def test_csv_has_one_line_for_every_policy_seed_and_day(comparison: Comparison, tmp_path: Path) -> None:
    rows = read_csv(write_csv(tmp_path / "days.csv", comparison))
    assert rows == day_rows(comparison)
    assert len(rows) == 3 + 6 + 3
    ppo = [row for row in rows if row.policy == "ppo"]
    assert [(row.training_seed, row.day_seed) for row in ppo] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert ppo[4].cost_eur == 11.0
    assert rows[0].training_seed is None
    assert rows[-1].relative_gap == 1e-4
    assert {row.git_hash for row in rows} == {"0123abc"}


def test_json_is_strict_and_readable_by_anyone(comparison: Comparison, tmp_path: Path) -> None:
    text = write_json(tmp_path / "a.json", comparison).read_text()
    assert "NaN" not in text
    assert json.loads(text)["results"][1]["cost_eur"] == [[7.0, 12.0, 9.0], [8.0, 11.0, 9.0]]


def test_a_nan_never_enters_a_result() -> None:
    with pytest.raises(DataError, match=r"policy 'a': statistics: cost_eur must be finite, got nan at index \(0, 1\)"):
        policy_result("a", "rule", cost_eur=[8, np.nan], naive_cost_eur=[10, 20], lower_bound_eur=[6, 10], **ONE_DAY)
    fields = ONE_DAY | {"violation_pu": [[0.0, np.inf]]}
    with pytest.raises(DataError, match=r"policy 'a': violation_pu.0.1: Input should be a finite number"):
        policy_result("a", "rule", cost_eur=[8, 9], naive_cost_eur=[10, 20], lower_bound_eur=[6, 10], **fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_violations": [[0]]}, r"n_violations must have the shape of cost_eur \(1, 2\)"),
        ({"training_seeds": (1, 2)}, "training_seeds must name the 1 rows"),
        ({"relative_gap": [0.0]}, "relative_gap must have one number for each of the 2 days"),
        ({"unmet_kwh": [[]]}, "must be .n_seeds, n_days. with equal, non-empty rows"),
    ],
)
def test_results_whose_arrays_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    fields = {"cost_eur": [8, 9], "naive_cost_eur": [10, 20], "lower_bound_eur": [6, 10], **ONE_DAY, **changes}
    with pytest.raises(DataError, match=f"policy 'a'.*{message}"):
        policy_result("a", "rule", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"infeasible_kwh": (0.0,)}, "infeasible_kwh must have one number for each of the 3 days"),
        ({"day_seeds": (0, 1)}, "naive_cost_eur must have one number for each of the 2 days"),
        ({"naive": 1}, "Extra inputs are not permitted"),
    ],
)
def test_comparisons_that_do_not_fit_are_refused(
    comparison: Comparison, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Comparison.model_validate(comparison.model_dump() | changes)


def test_results_on_other_days_are_refused(comparison: Comparison) -> None:
    other = policy_result("a", "rule", cost_eur=[8, 9], naive_cost_eur=[10, 20], lower_bound_eur=[6, 10], **ONE_DAY)
    with pytest.raises(DataError, match="results of 'a' must cover the 3 days"):
        comparison.with_result(other, complete=True)


def test_two_policies_of_one_name_are_refused(comparison: Comparison) -> None:
    with pytest.raises(DataError, match="labels of policies must differ"):
        comparison.with_result(comparison.results[0], complete=True)


def test_a_comparison_grows_by_a_result_and_leaves_the_first_alone(comparison: Comparison) -> None:
    start = comparison.model_copy(update={"results": comparison.results[:1], "complete": False})
    grown = start.with_result(comparison.results[1], complete=False)
    assert [result.label for result in grown.results] == ["charge_on_arrival", "ppo"]
    assert not grown.complete
    assert len(start.results) == 1


def test_costs_below_the_bound_are_named(comparison: Comparison) -> None:
    assert comparison.below_bound() == ()
    # 1e-8 below is rounding of a replayed plan, 0.01 below is a defect
    broken = comparison.model_copy(update={"lower_bound_eur": (6.5 + 1e-8, 10.51, 8.0)})
    assert broken.below_bound() == (("optimum", 1),)


def test_provenance_names_versions_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/evcs-gym", "compare", "normal_charging"])
    origin = collect_provenance(config_hash="c", training_seeds=[1], solver="HiGHS", relative_gap=1e-3)
    assert isinstance(origin, Provenance)
    assert origin.command == "evcs-gym compare normal_charging"
    assert origin.numpy == np.__version__
    assert origin.timestamp.endswith("+00:00")


def test_a_distribution_that_is_absent_has_no_version() -> None:
    assert records.installed_version("a-distribution-nobody-made") is None


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_git_hash_is_that_of_a_checkout_of_this_project_only(tmp_path: Path) -> None:
    assert git_hash(tmp_path) is None
    _git(tmp_path, "init")
    (tmp_path / "a").write_text("a")
    _git(tmp_path, "add", "a")
    _git(tmp_path, "commit", "-m", "a")
    clean = git_hash(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert git_hash(inside) is None
    (tmp_path / "a").write_text("b")
    assert git_hash(tmp_path) == f"{clean}+changed"


def test_without_git_there_is_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_hash() is None


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written .*choose another folder"):
        write_text(tmp_path / "file" / "a.json", "")


def test_a_missing_comparison_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.json: cannot be read .* run 'evcs-gym compare' first"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("text", ["{", '{"a": NaN}', "[1, Infinity]"])
def test_json_that_is_not_strict_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a.json: must be strict JSON"):
        read_json(tmp_path / "a.json")


def test_json_that_is_no_comparison_is_refused_with_the_field(comparison: Comparison, tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", comparison)
    path.write_text(path.read_text().replace('"split": "test"', '"split": 3'))
    with pytest.raises(DataError, match=r"a.json: split: Input should be a valid string"):
        read_json(path)


def test_csv_with_a_broken_line_is_refused_with_its_number(comparison: Comparison, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", comparison)
    lines = path.read_text().splitlines()
    lines[2] = lines[2].replace("20.0", "nan", 1)
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"a.csv: line 3: cost_eur: Input should be a finite number"):
        read_csv(path)


def test_csv_without_a_column_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("policy,kind\nppo,learned\n")
    with pytest.raises(DataError, match=r"a.csv: columns .*cost_eur.* are missing"):
        read_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"b.csv: cannot be read"):
        read_csv(tmp_path / "b.csv")


def test_a_trace_with_another_number_of_slots_is_refused(trace: DayTrace) -> None:
    with pytest.raises(DataError, match=r"DayTrace: base_kw must have shape \(48,\), got \(47,\)"):
        dataclasses.replace(trace, base_kw=np.zeros(47))
    with pytest.raises(DataError, match=r"charging_kw\['ppo'\] must have shape \(48,\), got \(3,\)"):
        dataclasses.replace(trace, charging_kw={"ppo": np.zeros(3)})
    with pytest.raises(DataError, match=r"voltage_pu\['ppo'\] must have shape \(48, 2, 3\)"):
        dataclasses.replace(trace, voltage_pu={"ppo": np.ones((48, 3, 3))})


def test_a_trace_with_a_nan_is_refused(trace: DayTrace) -> None:
    with pytest.raises(DataError, match="DayTrace: dg_kw must be finite"):
        dataclasses.replace(trace, dg_kw=np.full(48, np.nan))


def test_a_training_curve_is_read_from_the_files_of_its_seeds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("training_seed,n_steps,seconds,captured\n0,100,1.5,0.5\n0,200,3,0.75\n")
    (tmp_path / "b.csv").write_text("captured,n_steps,training_seed\n-0.25,100,7\n")
    curve = read_training_curve(tmp_path / "a.csv", tmp_path / "b.csv")
    assert curve.training_seed.tolist() == [0, 0, 7]
    assert curve.n_steps.tolist() == [100, 200, 100]
    assert curve.measure.tolist() == [0.5, 0.75, -0.25]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "a.csv hold no line"),
        ("0,100,0.5\n0,many,0.5\n", "a.csv: line 3: training_seed, n_steps, captured must be numbers"),
        ("0,100\n", "a.csv: line 2: .* must be numbers"),
        ("0,100,nan\n", "a.csv: line 2: .* must be finite"),
    ],
)
def test_a_training_curve_that_says_nothing_is_refused(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(f"training_seed,n_steps,captured\n{lines}")
    with pytest.raises(DataError, match=message):
        read_training_curve(tmp_path / "a.csv")
