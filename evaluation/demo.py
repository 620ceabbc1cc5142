"""`evcs-gym demo`: a short training, the rules and the proven optimum of the same test days, a table and a report."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evcs_gym.baselines.registry import RULES
from evcs_gym.evaluation.benchmark import OPEN_LOOP, OPTIMUM, compare
from evcs_gym.evaluation.records import Comparison
from evcs_gym.evaluation.report import rich_table
from evcs_gym.training import callbacks
from evcs_gym.training.train import train

DEMO_PRESET = "normal_charging_demo"
DEMO_DAYS = 20


def run_demo(out: Path = Path("runs/demo"), n_days: int = DEMO_DAYS, overrides: tuple[str, ...] = ()) -> Comparison:
    """Train, solve, compare, report.

    Args:
        out: folder for the run, report.html, comparison.json and days.csv.
        n_days: test days, the seeds 0 .. n_days - 1. overrides: of the training preset, as in `train`.
    """
    console = Console()
    console.print(
        "[bold]evcs-gym demo[/bold]: normal charging, eight buses of an unbalanced 33-bus feeder, 2016 profiles"
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    run = out / "ppo"
    with Progress(*columns, console=console) as bars:
        training = bars.add_task("preparing days", total=None)

        def show(_seed: int, progress: callbacks.Progress) -> None:
            words = f"training PPO, captured {max(progress.best_captured, 0.0):.3f} on validation days"
            bars.update(training, description=words, completed=progress.steps, total=progress.total_steps)

        folder = train(DEMO_PRESET, overrides, seeds=(0,), run_dir=run, listener=show)[0]
        bars.update(training, description="trained", completed=1, total=1)
        judging = bars.add_task("solving days exactly", total=n_days)

        def tell(what: str, done: int, total: int) -> None:
            bars.update(judging, description=what, completed=done, total=total)

        policies = [str(folder), *RULES, OPTIMUM, OPEN_LOOP]
        comparison = compare("normal_charging", policies, n_days, "test", out=out, listener=tell)
    console.print(rich_table(comparison))
    console.print(f"Report:      {out / 'report.html'}  (open it in a browser)", soft_wrap=True)
    console.print(f"TensorBoard: evcs-gym watch {out}", soft_wrap=True)
    return comparison
