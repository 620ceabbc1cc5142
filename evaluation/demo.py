"""`evcs-gym demo`: for each problem a short training, rules and proven optimum of the same test days; one report."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from evcs_gym.envs import load_scenario
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.evaluation.benchmark import compare_part
from evcs_gym.evaluation.contest_market import MARKET
from evcs_gym.evaluation.contest_normal import NORMAL_CHARGING
from evcs_gym.evaluation.records import Comparison
from evcs_gym.evaluation.report import Part, profit_table, rich_table, write_parts
from evcs_gym.training import callbacks
from evcs_gym.training.config import Preset, load_preset
from evcs_gym.training.provenance import config_hash
from evcs_gym.training.train import continues, run_folder, train

DEMO_DAYS = 20
SEED = 0
N_LINES = 10
"""Lines per stage where no bar can be drawn, such as in the log of a CI job."""

Show = Callable[[str, str, int, int], None]
"""Called with (stage, words, done, in all)."""


@dataclass(frozen=True)
class Act:
    """One problem of the demo: words for its beginning, the preset that is trained, with overrides as in `train`, and
    the policies beside the trained one."""

    words: str
    preset: str
    policies: tuple[str, ...]
    overrides: tuple[str, ...] = ()


ACTS = (
    Act(
        "normal charging, eight buses of an unbalanced 33-bus feeder, 2016 profiles",
        "normal_charging_demo",
        (*NORMAL_CHARGING.rules, *NORMAL_CHARGING.plans),
    ),
    Act(
        "the market of eight charging stations on the same feeder and 12-node roads",
        "market_demo",
        (*MARKET.rules, *MARKET.plans),
    ),
)


def run_demo(out: Path = Path("runs/demo"), n_days: int = DEMO_DAYS, acts: Sequence[Act] = ACTS) -> list[Comparison]:
    """Train, solve, compare for each act, and write one report of all.

    A demo that was interrupted goes on. What an earlier one left in ``out`` with other settings stays: the new policy
    is trained in a folder of its own beside it.

    Args:
        out: folder for report.html; each problem has a folder in it with its run, comparison.json and days.csv.
        n_days: test days, the seeds 0 .. n_days - 1.

    Raises:
        ConfigError: bad overrides, no day. DataError: ``out`` cannot be written. SolverError: no solver.
    """
    if n_days < 1:
        raise ConfigError(f"a demo needs at least one day, got {n_days}")
    console = Console()
    presets = [load_preset(act.preset, list(act.overrides)) for act in acts]
    try:
        parts = [_play(act, preset, out, n_days, console) for act, preset in zip(acts, presets, strict=True)]
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from the last checkpoint")
        raise
    write_parts(out / "report.html", parts)
    console.print(Text(f"Report:      {out / 'report.html'}  (open it in a browser)"), soft_wrap=True)
    console.print(Text(f"TensorBoard: evcs-gym watch {out}"), soft_wrap=True)
    return [part.comparison for part in parts]


def _play(act: Act, preset: Preset, out: Path, n_days: int, console: Console) -> Part:
    console.print(f"[bold]evcs-gym demo[/bold]: {act.words}")
    folder = out / preset.problem
    run = _run_dir(folder, preset, console)
    with _shown(console) as show:
        part = _train_and_compare(act, run, preset, folder, n_days, show)
    console.print(rich_table(part.comparison))
    if part.comparison.stations:
        console.print(profit_table(part.comparison))
    return part


def _train_and_compare(act: Act, run: Path, preset: Preset, folder: Path, n_days: int, show: Show) -> Part:
    show("training", "preparing days", 0, preset.total_steps)

    def learning(_seed: int, progress: callbacks.Progress) -> None:
        words = f"training PPO, {progress.words} on validation days"
        show("training", words, progress.steps, progress.total_steps)

    train(preset, seeds=(SEED,), run_dir=run, listener=learning)
    show("training", "trained", preset.total_steps, preset.total_steps)

    def judging(what: str, done: int, total: int) -> None:
        show("solving" if what.startswith("solving") else "playing", what, done, total)

    policies = [str(run), *act.policies]
    return compare_part(preset.problem, policies, n_days, "test", preset.scenario, folder, listener=judging)


def _run_dir(folder: Path, preset: Preset, console: Console) -> Path:
    """Where the policy is trained: ``ppo`` in the folder, or one named by the settings where that holds another run."""
    usual, scenario = folder / "ppo", load_scenario(preset.scenario)
    try:
        continues(run_folder(usual, SEED), preset, scenario, SEED)
    except (ConfigError, DataError) as error:
        settings = preset.model_dump_json() + scenario.model_dump_json(by_alias=True)
        own = folder / f"ppo-{config_hash(settings)[:8]}"
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
