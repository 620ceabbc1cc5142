"""The demo: one command from nothing to a report, again and after an interruption."""

import functools
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from training_fixtures import ROLLOUT, TINY, interrupt_at, tiny_city
from typer.testing import CliRunner

from evcs_gym.envs.errors import ConfigError
from evcs_gym.evaluation import cli, demo
from evcs_gym.evaluation.demo import ACTS
from evcs_gym.evaluation.demo import run_demo as run_acts
from evcs_gym.evaluation.records import Comparison, read_json
from evcs_gym.training.checkpoint import RUN_FILE, read_run
from evcs_gym.training.train import train

FOLDER = "normal_charging"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return (f"scenario={tiny_city(tmp_path_factory.mktemp('city'))}", *TINY)


def run_demo(out: Path, n_days: int, overrides: Sequence[str]) -> Comparison:
    """The part of normal charging."""
    (comparison,) = run_acts(out, n_days, [replace(ACTS[0], overrides=tuple(overrides))])
    return comparison


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the report, whose figures take longer than all the rest."""
    monkeypatch.setattr(demo, "write_parts", lambda *_: None)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Ctrl-C after five rollouts; undo it to let the demo run to its end."""

    def stopped(*arguments: Any, **options: Any) -> list[Path]:
        return train(*arguments, **(options | {"listener": interrupt_at(5)}))

    monkeypatch.setattr(demo, "train", stopped)
    return monkeypatch


def test_the_demo_writes_a_report_and_says_how_to_open_it(
    tmp_path: Path,
    settings: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "demo"
    comparison = run_demo(out, 2, settings)
    assert read_json(out / FOLDER / "comparison.json") == comparison
    assert comparison.complete
    assert comparison.scenario == "tiny"
    assert {"charge_on_arrival", "water_filling", "optimum", str(out / FOLDER / "ppo")} <= {
        r.label for r in comparison.results
    }
    assert (out / FOLDER / "days.csv").is_file()
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")
    assert list((out / FOLDER / "ppo" / "seed-0").glob("events.out.tfevents.*"))
    printed = capsys.readouterr().out
    assert "water_filling" in printed
    assert f"{out / 'report.html'}  (open it in a browser)" in printed
    assert f"evcs-gym watch {out}" in printed
    # what it did while it worked, without a terminal: some lines and no control characters
    assert "training: training PPO, captured" in printed
    assert "solving: solving days exactly (1 of 2)" in printed
    assert "\x1b" not in printed

    begin = {path: path.stat().st_mtime_ns for path in (out / FOLDER / "ppo" / "seed-0").iterdir()}
    monkeypatch.setattr(demo, "write_parts", lambda *_: None)
    again = run_demo(out, 2, settings)  # a finished policy is not trained again
    assert {path: path.stat().st_mtime_ns for path in (out / FOLDER / "ppo" / "seed-0").iterdir()} == begin
    assert [r.cost_eur for r in again.results] == [r.cost_eur for r in comparison.results]


MARKET = ("n_envs=2", "pool_days=2", "total_steps=400", "ppo.n_steps=24", "ppo.batch_size=64", "validation.n_days=1")


def test_all_problems_stand_in_one_report(tmp_path: Path, settings: tuple[str, ...]) -> None:
    assert [act.preset for act in ACTS] == ["normal_charging_demo", "market_demo"]
    acts = [
        replace(ACTS[0], overrides=settings, policies=("charge_on_arrival",)),
        replace(ACTS[1], overrides=MARKET, policies=("idle", "dp_truthful")),
    ]
    normal, market = run_acts(tmp_path, 1, acts)
    assert (normal.problem, market.problem) == ("normal_charging", "market")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Charging on test day 0" in page
    assert "Market on test day 0" in page
    assert read_json(tmp_path / "market" / "comparison.json") == market
    assert (tmp_path / "market" / "stations.csv").is_file()
    assert not (tmp_path / "market" / "report.html").exists()


def test_an_interrupted_demo_goes_on(
    tmp_path: Path,
    settings: tuple[str, ...],
    interrupted: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, 1, settings)
    assert "stopped; the same command goes on from the last checkpoint" in capsys.readouterr().out
    assert not read_run(tmp_path / FOLDER / "ppo" / "seed-0").finished
    interrupted.undo()
    run_demo(tmp_path, 1, settings)
    printed = capsys.readouterr().out
    assert f"({4 * ROLLOUT:,} of {7 * ROLLOUT:,})" in printed
    assert f"({2 * ROLLOUT:,} of" not in printed
    assert read_run(tmp_path / FOLDER / "ppo" / "seed-0").finished


@pytest.mark.usefixtures("unreported")
def test_a_demo_of_other_settings_leaves_the_older_run(
    tmp_path: Path, settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    older = tmp_path / FOLDER / "ppo" / "seed-0"
    run_demo(tmp_path, 1, settings)
    before = (older / RUN_FILE).read_bytes()
    capsys.readouterr()
    comparison = run_demo(tmp_path, 1, (*settings, "ppo.gamma=0.9"))
    printed = capsys.readouterr().out
    assert "holds a run with other settings (ppo.gamma: 1.0, now 0.9)" in printed
    assert (older / RUN_FILE).read_bytes() == before
    own = Path(comparison.results[0].label)
    assert own.parent == tmp_path / FOLDER
    assert own != older.parent
    assert f"It is left as it is; this demo trains in {own}" in printed
    assert read_run(own / "seed-0").finished
    assert run_demo(tmp_path, 1, (*settings, "ppo.gamma=0.9")).results[0].label == str(own)


@pytest.mark.usefixtures("unreported")
def test_a_broken_older_run_does_not_stop_the_demo(
    tmp_path: Path, settings: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    older = tmp_path / FOLDER / "ppo" / "seed-0"
    older.mkdir(parents=True)
    (older / RUN_FILE).write_text("{half", encoding="utf-8")
    comparison = run_demo(tmp_path, 1, settings)
    assert "cannot be read as a run record" in capsys.readouterr().out
    assert comparison.results[0].label != str(tmp_path / FOLDER / "ppo")
    assert (older / RUN_FILE).read_text(encoding="utf-8") == "{half"


def test_bad_arguments_end_before_anything_begins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a demo needs at least one day, got 0"):
        run_acts(tmp_path, 0)
    with pytest.raises(ConfigError, match="totl_steps is no known key; did you mean 'total_steps'"):
        run_demo(tmp_path, 1, ["totl_steps=3"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unreported")
def test_the_command(tmp_path: Path, settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run_demo", functools.partial(run_demo, n_days=1, overrides=settings))
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "here")])
    assert result.exit_code == 0, result.output
    assert read_json(tmp_path / "here" / FOLDER / "comparison.json").complete


def test_a_terminal_shows_bars() -> None:
    text = io.StringIO()
    with demo._shown(Console(file=text, force_terminal=True, width=100)) as show:
        show("training", "learning", 5, 10)
        show("training", "learned", 12, 10)
        show("solving", "days", 1, 2)
    assert "learned" in text.getvalue()
    assert "10/10" in text.getvalue()
    assert "━" in text.getvalue()


def test_a_log_shows_at_most_a_line_per_tenth() -> None:
    text = io.StringIO()
    with demo._shown(Console(file=text, force_terminal=False, width=100)) as show:
        for done in range(1001):
            show("training", "learning", done, 1000)
    lines = text.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[0] == "training: learning (0 of 1,000)"
    assert lines[-1] == "training: learning (1,000 of 1,000)"
