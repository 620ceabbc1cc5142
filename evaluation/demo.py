"""`evcs-gym demo`: a short training, the rules and the proven optimum of the same test days, a table and a report."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from evcs_gym.baselines.registry import RULES
from evcs_gym.envs import load_scenario
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.evaluation.benchmark import compare
from evcs_gym.evaluation.contest import OPTIMUM
from evcs_gym.evaluation.contest_normal import OPEN_LOOP
from evcs_gym.evaluation.records import Comparison
from evcs_gym.evaluation.report import rich_table
from evcs_gym.training import callbacks
from evcs_gym.training.config import Preset, load_preset
from evcs_gym.training.provenance import config_hash
from evcs_gym.training.train import continues, run_folder, train

DEMO_PRESET = "normal_charging_demo"
DEMO_DAYS = 20
SEED = 0
N_LINES = 10
"""Lines per stage where no bar can be drawn, such as in the log of a CI job."""

Show = Callable[[str, str, int, int], None]
"""Called with (stage, words, done, in all)."""


def run_demo(out: Path = Path("runs/demo"), n_days: int = DEMO_DAYS, overrides: Sequence[str] = ()) -> Comparison:
    """Train, solve, compare, report.

    A demo that was interrupted goes on. What an earlier one left in ``out`` with other settings stays: the new policy
    is trained in a folder of its own beside it.

    Args:
        out: folder for the run, report.html, comparison.json and days.csv.
        n_days: test days, the seeds 0 .. n_days - 1. overrides: of the training preset, as in `train`.

    Raises:
        ConfigError: bad overrides, no day. DataError: ``out`` cannot be written. SolverError: no solver.
    """
    if n_days < 1:
        raise ConfigError(f"a demo needs at least one day, got {n_days}")
    console = Console()
    console.print(
        "[bold]evcs-gym demo[/bold]: normal charging, eight buses of an unbalanced 33-bus feeder, 2016 profiles"
    )
    preset = load_preset(DEMO_PRESET, list(overrides))
    run = _run_dir(out, preset, console)
    try:
        with _shown(console) as show:
            comparison = _train_and_compare(run, preset, out, n_days, show)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from the last checkpoint")
        raise
    console.print(rich_table(comparison))
    console.print(Text(f"Report:      {out / 'report.html'}  (open it in a browser)"), soft_wrap=True)
    console.print(Text(f"TensorBoard: evcs-gym watch {out}"), soft_wrap=True)
    return comparison


def _train_and_compare(run: Path, preset: Preset, out: Path, n_days: int, show: Show) -> Comparison:
    show("training", "preparing days", 0, preset.total_steps)

    def learning(_seed: int, progress: callbacks.Progress) -> None:
        words = f"training PPO, captured {progress.best_captured:.3f} on validation days"
        show("training", words, progress.steps, progress.total_steps)

    train(preset, seeds=(SEED,), run_dir=run, listener=learning)
    show("training", "trained", preset.total_steps, preset.total_steps)

    def judging(what: str, done: int, total: int) -> None:
        show("solving" if what.startswith("solving") else "playing", what, done, total)

    policies = [str(run), *RULES, OPTIMUM, OPEN_LOOP]
    return compare("normal_charging", policies, n_days, "test", preset.scenario, out=out, listener=judging)


def _run_dir(out: Path, preset: Preset, console: Console) -> Path:
    """Where the policy is trained: ``out/ppo``, or a folder named by the settings where that holds another run."""
    usual, scenario = out / "ppo", load_scenario(preset.scenario)
    try:
        continues(run_folder(usual, SEED), preset, scenario, SEED)
    except (ConfigError, DataError) as error:
        settings = preset.model_dump_json() + scenario.model_dump_json(by_alias=True)
        own = out / f"ppo-{config_hash(settings)[:8]}"
        console.print(Text(f"{error}. It is left as it is; this demo trains in {own}", style="yellow"), soft_wrap=True)
        return own
    return usual


@contextmanager
def _shown(console: Console) -> Iterator[Show]:
    """Bars on a terminal; elsewhere a line now and then, so that a log shows that work goes on."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        tasks = {}

        def show(stage: str, words: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(words)
            bars.update(tasks[stage], description=words, completed=min(done, total), total=total)

        yield show


def _lines(console: Console) -> Show:
    last: dict[str, int] = {}

    def show(stage: str, words: str, done: int, total: int) -> None:
        part = N_LINES * min(done, total) // total
        if last.get(stage) != part:
            last[stage] = part
            console.print(Text(f"{stage}: {words} ({min(done, total):,} of {total:,})"), soft_wrap=True)

    return show
