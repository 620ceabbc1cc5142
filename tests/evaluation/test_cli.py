"""The command line: what it passes on, what it prints where, and how it ends."""

import importlib
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from envs_fixtures import tiny_content
from typer.testing import CliRunner, Result

import evcs_gym.baselines
from evcs_gym.envs.errors import SolverError
from evcs_gym.evaluation import cli, doctor
from evcs_gym.evaluation.records import Comparison, as_json
from evcs_gym.training.callbacks import Progress

SCENARIO = "ieee33_residential"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a module in the place of a real one, which may be heavy: fake("package.module", name=function)."""

    def put(name: str, **attributes: object) -> None:
        module = ModuleType(name)
        module.__dict__.update(attributes)
        package, _, last = name.rpartition(".")
        monkeypatch.setattr(importlib.import_module(package), last, module, raising=False)
        monkeypatch.setitem(sys.modules, name, module)

    return put


class Solved:
    """A solution of which the command line needs only this much."""

    def __init__(self, cost_eur: float) -> None:
        self.cost_eur = cost_eur

    def plan_arrays(self) -> dict[str, Any]:
        return {"power_kw": np.full((48, 2), self.cost_eur)}

    def as_dict(self) -> dict[str, Any]:
        numbers = {"cost_eur": self.cost_eur, "lower_bound_eur": 1.0, "relative_gap": 0.0, "seconds": 0.1}
        return {"problem": "normal_charging", "status": "optimal", **numbers, "certificate": {"n_rounds": 1}}


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the optimiser; the calls it got."""
    calls: list[dict[str, Any]] = []

    def optimum(scenario: Any, day: Any, **options: Any) -> Solved:
        calls.append({"scenario": scenario.name, "day": day, **options})
        print("a solver that chatters")
        return Solved(float(len(calls)))

    monkeypatch.setattr(evcs_gym.baselines, "optimum", optimum, raising=False)
    return calls


# --- start-up and errors -----------------------------------------------------------------------------------


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from evcs_gym.evaluation.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pyomo', 'stable_baselines3', 'matplotlib', 'pandas', 'pandapower', 'numba', 'scipy'}\n"
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    assert "compare" in done.stdout


def test_version_is_that_of_the_distribution() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"evcs-gym {importlib.metadata.version('evcs-gym')}\n")


def test_no_command_shows_the_commands() -> None:
    result = run()
    for name in (
        "doctor",
        "speed",
        "solve",
        "bounds",
        "train",
        "watch",
        "compare",
        "demo",
        "scenario",
        "city",
        "rounds",
    ):
        assert name in result.output


def test_every_command_explains_itself() -> None:
    for name in (
        "doctor",
        "speed",
        "solve",
        "bounds",
        "train",
        "watch",
        "compare",
        "demo",
        "scenario",
        "city",
        "rounds",
    ):
        result = run(name, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.output


def test_an_expected_error_is_one_line_on_stderr_and_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise SolverError("no solver [found]:\n install one")

    monkeypatch.setattr(doctor, "diagnose", fail)
    result = run("doctor")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: no solver [found]: install one\n"


def test_debug_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise SolverError("no solver")

    monkeypatch.setattr(doctor, "diagnose", fail)
    assert isinstance(run("--debug", "doctor").exception, SolverError)


def test_a_defect_is_not_dressed_up_as_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "diagnose", fail)
    assert isinstance(run("doctor").exception, ZeroDivisionError)


# --- doctor, speed, scenario -------------------------------------------------------------------------------


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_doctor_fails_when_something_required_is_missing(monkeypatch: pytest.MonkeyPatch, ok: bool, code: int) -> None:
    checks = (doctor.Check("solver", ok, True, "detail"), doctor.Check("GPU", False, False, "none"))
    monkeypatch.setattr(doctor, "diagnose", lambda: doctor.Diagnosis(checks))
    plain = run("doctor")
    assert plain.exit_code == code
    assert ("MISSING" in plain.stdout) is not ok
    assert "absent" in plain.stdout
    pure = run("doctor", "--json")
    assert pure.exit_code == code
    assert json.loads(pure.stdout)["ok"] is ok


ROW = {"name": "evcs-gym", "case": "c", "buses": 33, "batch": 8, "seconds_per_item": 1e-6, "items_per_second": 1e6}


@pytest.mark.parametrize(
    ("target", "module", "function"),
    [
        ("fleet", "speed", "speed_fleet"),
        ("power-flow", "speed", "speed_power_flow"),
        ("traffic", "speed_traffic", "speed_traffic"),
        ("market", "speed_market", "speed_market"),
    ],
)
def test_speed_prints_rows(fake: Callable[..., None], target: str, module: str, function: str) -> None:
    for name in ("speed_traffic", "speed_market"):  # they import from the real one
        importlib.import_module(f"evcs_gym.evaluation.{name}")
    fake(f"evcs_gym.evaluation.{module}", **{function: lambda: [SimpleNamespace(as_dict=lambda: dict(ROW))]})
    assert json.loads(run("speed", target, "--json").stdout) == {"rows": [ROW]}
    assert "evcs-gym" in run("speed", target).stdout


def test_speed_of_something_else_is_refused() -> None:
    result = run("speed", "light")
    assert result.exit_code == 2
    assert "power-flow" in result.stderr


def test_a_scenario_is_shown_with_its_defaults() -> None:
    content = json.loads(run("scenario", SCENARIO, "--json").stdout)
    assert content["name"] == SCENARIO
    assert f"name: {SCENARIO}" in run("scenario", SCENARIO).stdout


def test_check_shows_what_the_base_load_leaves_of_the_limits(tmp_path: Path) -> None:
    path = tmp_path / "city.yaml"
    path.write_text(yaml.safe_dump(tiny_content()), encoding="utf-8")
    content = json.loads(run("scenario", str(path), "--check", "--json").stdout)
    assert content["n_days"] == 365
    assert content["room_pu"] > 0.0
    assert content["bus"] in {str(bus) for bus in range(1, 34)}


def test_a_scenario_that_does_not_exist_is_an_error_with_the_nearest() -> None:
    result = run("scenario", "ieee33_residentail", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert SCENARIO in result.stderr


# --- solve -------------------------------------------------------------------------------------------------


def test_solve_prints_one_solution_as_one_object(solved: list[dict[str, Any]]) -> None:
    options = ("--relative-gap", "0.01", "--time-limit-s", "5")
    result = run("solve", "normal_charging", "--day", "3", "--split", "test", *options, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "day": 3,
        "split": "test",
        "scenario": SCENARIO,
        **Solved(1.0).as_dict(),
    }
    assert solved[0]["problem"] == "normal_charging"
    assert (solved[0]["relative_gap"], solved[0]["time_limit_s"]) == (0.01, 5.0)


def test_solve_passes_the_day_of_the_seed_and_split(solved: list[dict[str, Any]]) -> None:
    from evcs_gym.envs import load_scenario

    run("solve", "normal_charging", "--day", "3", "--split", "validation")
    asked = load_scenario(SCENARIO).day(3, "validation")
    assert np.array_equal(solved[0]["day"].base_kw, asked.base_kw)


def test_traffic_is_solved_slot_by_slot_in_a_city_with_roads(solved: list[dict[str, Any]]) -> None:
    assert run("solve", "traffic", "--slot", "11", "--json").exit_code == 0
    assert (solved[0]["problem"], solved[0]["slot"], solved[0]["scenario"]) == ("traffic", 11, "ieee33_twelve")
    assert solved[0]["day"].traffic is not None
    assert run("solve", "traffic", "--slot", "48").exit_code == 2


def test_traffic_in_a_city_without_roads_is_one_line() -> None:
    result = run("solve", "traffic", "--slot", "3", "--scenario", SCENARIO)
    assert result.exit_code == 2
    assert f"error: {SCENARIO}: stations is no section of this scenario; add roads and stations" in result.stderr


def test_the_market_is_solved_in_a_city_with_stations(solved: list[dict[str, Any]]) -> None:
    assert run("solve", "market", "--network", "none", "--day", "1", "--json").exit_code == 0
    names = ("problem", "network", "slot", "scenario")
    assert [solved[0][name] for name in names] == ["market", "none", None, "ieee33_twelve"]
    assert solved[0]["day"].stations is not None


def test_solve_of_several_days_is_a_list(solved: list[dict[str, Any]]) -> None:
    content = json.loads(run("solve", "normal_charging", "--days", "2", "--json").stdout)
    assert [(one["day"], one["cost_eur"]) for one in content["solutions"]] == [(0, 1.0), (1, 2.0)]


def test_solve_without_json_is_a_table(solved: list[dict[str, Any]]) -> None:
    result = run("solve", "normal_charging", "--days", "2")
    assert "optimal" in result.stdout
    assert "chatters" not in result.stdout


def test_a_plan_is_stored_without_pickle_and_said_on_stderr(solved: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.npz"
    result = run("solve", "normal_charging", "--plan", str(path), "--json")
    json.loads(result.stdout)
    assert str(path) in result.stderr
    with np.load(path, allow_pickle=False) as stored:
        assert stored["power_kw"].shape == (48, 2)


def test_a_plan_that_cannot_be_stored_is_an_error(solved: list[dict[str, Any]], tmp_path: Path) -> None:
    result = run("solve", "normal_charging", "--plan", str(tmp_path))
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize("other", [("--day", "0"), ("--plan", "a.npz")])
def test_several_days_go_neither_with_one_day_nor_with_a_plan(other: tuple[str, str]) -> None:
    result = run("solve", "normal_charging", "--days", "2", *other)
    assert result.exit_code == 2
    assert "--days goes neither with --day nor with --plan" in result.stderr


# --- train, compare, demo ----------------------------------------------------------------------------------


def test_train_passes_everything_on_and_names_the_folders(fake: Callable[..., None]) -> None:
    calls: list[tuple[Any, ...]] = []

    def train(preset: str, overrides: list[str], seeds: list[int], run_dir: Path, listener: Any) -> list[Path]:
        calls.append((preset, overrides, seeds, run_dir))
        for steps in (10, 20):
            listener(3, Progress(steps, 20, captured=0.4, best_captured=0.5, best=0.5, steps_per_second=1234.0))
        return [run_dir / "seed-3"]

    fake("evcs_gym.training.train", train=train)
    settings = ("--set", "total_steps=20", "--set", "ppo.gamma=1")
    result = run("train", "normal_charging", *settings, "--seed", "3", "--seed", "4", "--run-dir", "a")
    assert result.exit_code == 0
    assert calls == [("normal_charging", ["total_steps=20", "ppo.gamma=1"], [3, 4], Path("a"))]
    assert result.stdout == f"{Path('a/seed-3')}\n"
    assert "captured 0.500" in result.stderr
    run("train", "presets/mine.yaml")
    assert calls[1] == ("presets/mine.yaml", [], [0], Path("runs/mine"))


def test_progress_without_a_bound_is_told_in_euros() -> None:
    assert Progress(1, 2, captured=None, best_captured=None, best=4907.4, steps_per_second=1.0).words == "4,907 EUR/day"


def test_an_interrupted_training_says_how_to_go_on(fake: Callable[..., None]) -> None:
    def train(*_: object) -> None:
        raise KeyboardInterrupt

    fake("evcs_gym.training.train", train=train)
    result = run("train", "normal_charging")
    assert result.exit_code == 130
    assert "goes on from the last checkpoint" in result.stderr


def test_an_interrupted_comparison_ends_without_a_traceback(fake: Callable[..., None]) -> None:
    def compare(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    fake("evcs_gym.evaluation.benchmark", compare=compare)
    result = run("compare", "normal_charging", "optimum")
    assert result.exit_code == 130
    assert "stopped" in result.stderr
    assert "Traceback" not in result.output


def test_compare_passes_everything_on_and_prints_table_or_json(
    fake: Callable[..., None], comparison: Comparison, tmp_path: Path
) -> None:
    calls: list[tuple[Any, ...]] = []

    def compare(problem: str, policies: list[str], **options: Any) -> Comparison:
        print("chatter")
        options.pop("listener")("solving days exactly", 3, 3)
        calls.append((problem, policies, options))
        return comparison

    fake("evcs_gym.evaluation.benchmark", compare=compare)
    options = ("--days", "3", "--split", "validation", "--scenario", "s", "--out", str(tmp_path))
    options += ("--operator", "none", "--exploit", "2")
    result = run("compare", "normal_charging", "optimum", "least_laxity", *options, "--json")
    assert result.stdout == as_json(comparison) + "\n"
    assert "report.html" in result.stderr.replace("\n", "")
    assert "solving days exactly" in result.stderr
    expected = {"n_days": 3, "split": "validation", "scenario": "s", "out": tmp_path}
    expected |= {"operator": "none", "n_exploit": 2}
    assert calls == [("normal_charging", ["optimum", "least_laxity"], expected)]
    assert "ppo" in run("compare", "normal_charging", "ppo").stdout


def test_demo_writes_where_it_is_told(fake: Callable[..., None]) -> None:
    calls: list[Path] = []
    fake("evcs_gym.evaluation.demo", run_demo=calls.append)
    run("demo")
    run("demo", "--out", "elsewhere")
    assert calls == [Path("runs/demo"), Path("elsewhere")]


# --- watch -------------------------------------------------------------------------------------------------


def test_watch_needs_a_run_folder(tmp_path: Path) -> None:
    result = run("watch", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "must be a folder with runs" in result.stderr


def test_watch_refuses_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("watch", str(tmp_path), "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert "choose another one with --port" in result.stderr


CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits "ignore"
from evcs_gym.evaluation import cli
cli.TENSORBOARD = (sys.executable, "-c", "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)")
cli.main()
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_watch_leaves_no_child_behind(tmp_path: Path, kind: signal.Signals) -> None:
    command = [sys.executable, "-c", CHILD, "watch", str(tmp_path), "--port", "26006"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as parent:
        end = time.monotonic() + 30.0
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert parent.poll() is None, parent.stderr.read() if parent.stderr else ""
            assert time.monotonic() < end
            time.sleep(0.05)
        parent.send_signal(kind)
        _, remarks = parent.communicate(timeout=20)
    assert parent.returncode == 0
    assert "http://127.0.0.1:26006/" in remarks
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_watch_reports_why_tensorboard_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "TENSORBOARD", (sys.executable, "-c", "import sys; sys.exit('no such option')"))
    before = signal.getsignal(signal.SIGTERM)
    result = run("watch", str(tmp_path), "--port", "26007")
    assert result.exit_code == 2
    assert "TensorBoard stopped with status 1: no such option" in result.stderr
    assert signal.getsignal(signal.SIGTERM) is before
