"""The command line: read the arguments, call what does the work, print.

Everything heavy is imported inside the commands, so that help appears at once. With --json, stdout carries
JSON and nothing else; progress and remarks go to stderr.
"""

import contextlib
import importlib.metadata
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

if TYPE_CHECKING:
    from evcs_gym.baselines.certificate import Solved
    from evcs_gym.envs import Day, Scenario
    from evcs_gym.training.callbacks import Progress

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
DEFAULT_SCENARIOS = {"market": "ieee33_twelve", "traffic": "ieee33_twelve", "fast_charging": "ieee33_mobility"}
"""Scenario that a problem is solved in where none is named; others take the default city of the environments."""
LOOPBACK = "127.0.0.1"
TENSORBOARD = (sys.executable, "-m", "tensorboard.main")
STOP_S = 5.0
"""How long TensorBoard may take to stop before it is killed."""


class Group(TyperGroup):
    """Commands whose expected errors end in one red line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _stderr().print("stopped")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except Exception as error:
            from evcs_gym.envs.errors import EvcsError

            if ctx.params.get("debug") or not isinstance(error, EvcsError):
                raise
            line = " ".join(str(error).split())
            _stderr().print(Text(f"error: {line}", style="red"), soft_wrap=True)
            raise typer.Exit(EXIT_ERROR) from error


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="EV charging: learned policies beside the proven optimum of the same days.",
)


class Split(StrEnum):
    """Which days: learned on, chosen on, or judged on."""

    train = "train"
    validation = "validation"
    test = "test"


class SpeedTarget(StrEnum):
    """What to time."""

    fleet = "fleet"
    power_flow = "power-flow"
    traffic = "traffic"
    market = "market"
    fast = "fast"


class SecondSolver(StrEnum):
    """Who is asked for a second opinion; those of `evcs_gym.baselines.second_opinion`."""

    tangent = "tangent"
    scip = "scip"
    gurobi = "gurobi"
    mosek = "mosek"


Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]
ProblemName = Annotated[str, typer.Argument(help="What is decided, such as normal_charging.")]
SplitName = Annotated[Split, typer.Option(help="Which days.")]
ScenarioName = Annotated[
    str | None,
    typer.Option("--scenario", help="Name of a shipped scenario or path of a YAML file.", show_default="shipped"),
]


def main() -> None:
    """Entry point of `evcs-gym`."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"evcs-gym {importlib.metadata.version('evcs-gym')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Both are handled elsewhere: the version by its callback, debug by `Group`."""


# --- commands ----------------------------------------------------------------------------------------------


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check versions, solvers (with a real solve), the environment, threads, disk and GPU."""
    from evcs_gym.evaluation.doctor import diagnose

    with _quiet_stdout(), _stderr().status("looking, the first time takes a while ..."):
        diagnosis = diagnose()
    if as_json:
        _print_json(diagnosis.as_dict())
    else:
        table = Table(box=None, show_header=False)
        for check in diagnosis.checks:
            mark = ("ok", "green") if check.ok else ("MISSING", "red") if check.required else ("absent", "yellow")
            table.add_row(Text(*mark), Text(check.name), Text(check.detail, overflow="fold"))
        _stdout().print(table)
        _stdout().print("All that is required works." if diagnosis.ok else "Something required does not work.")
    if not diagnosis.ok:
        raise typer.Exit(1)


@app.command()
def speed(
    target: Annotated[SpeedTarget, typer.Argument(help="What to time.")],
    plot: Annotated[Path | None, typer.Option(help="Power flow: store the growth with buses as SVG or PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Time environments, the power flow or traffic equilibria, beside the peers that are installed."""
    from evcs_gym.envs.errors import ConfigError

    if plot is not None and target is not SpeedTarget.power_flow:
        raise ConfigError("speed: --plot shows the growth of the power flow; leave it out for other targets")
    with _quiet_stdout(), _stderr().status("timing ..."):
        measured = _measured(target)
    if plot is not None:
        from evcs_gym.evaluation.figures import growth_figure

        growth_figure(measured).savefig(plot, facecolor="white")
    rows = [{k: v for k, v in row.as_dict().items() if v == v} for row in measured]  # NaN is no JSON
    if as_json:
        _print_json({"rows": rows})
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        _stdout().print(_table_of([{name: row.get(name, "") for name in names} for row in rows]))


def _measured(target: SpeedTarget) -> Any:
    if target is SpeedTarget.traffic:
        from evcs_gym.evaluation.speed_traffic import speed_traffic

        return speed_traffic()
    if target is SpeedTarget.market:
        from evcs_gym.evaluation.speed_market import speed_market

        return speed_market()
    if target is SpeedTarget.fast:
        from evcs_gym.evaluation.speed_fast import speed_fast

        return speed_fast()
    from evcs_gym.evaluation import speed as timing

    return timing.speed_fleet() if target is SpeedTarget.fleet else timing.speed_power_flow()


@app.command()
def solve(
    problem: ProblemName,
    day: Annotated[int | None, typer.Option(min=0, help="Seed of one day.", show_default="0")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Instead of --day: the seeds 0 to K-1.")] = None,
    split: SplitName = Split.test,
    scenario: ScenarioName = None,
    relative_gap: Annotated[
        float | None,
        typer.Option(help="Gap at which a day counts as solved.", show_default="1e-3, with --network misocp 1e-4"),
    ] = None,
    time_limit_s: Annotated[float, typer.Option(help="Longest time per day, in seconds.")] = 60.0,
    slot: Annotated[int | None, typer.Option(min=0, max=47, help="Traffic: the slot of the day.")] = None,
    network: Annotated[
        str | None, typer.Option(help="Market: what the programme knows of the network.", show_default="none")
    ] = None,
    horizon: Annotated[
        str | None, typer.Option(help="Fast charging: optimise the day or each slot.", show_default="day")
    ] = None,
    check: Annotated[
        SecondSolver | None, typer.Option(help="Market with network: another solver's opinion on some slots.")
    ] = None,
    check_slots: Annotated[int, typer.Option(min=1, max=48, help="Slots that it looks at, the tightest ones.")] = 2,
    plan: Annotated[Path | None, typer.Option(help="Store the plan of one day as .npz.")] = None,
    as_json: Json = False,
) -> None:
    """Solve days, or the traffic of one slot of them, exactly, with a certificate."""
    from evcs_gym.baselines import optimum
    from evcs_gym.envs.errors import ConfigError

    if days is not None and (day is not None or plan is not None):
        raise ConfigError("solve: --days goes neither with --day nor with --plan, which take one day")
    if check is not None and network != "misocp":
        raise ConfigError("solve: --check is for the market with --network misocp; leave it out")
    seeds = [day or 0] if days is None else list(range(days))
    world = _load_scenario(scenario or DEFAULT_SCENARIOS.get(problem))
    records = []
    with _quiet_stdout(), _stderr().status("solving ...") as status:
        for n_done, seed in enumerate(seeds):
            status.update(f"solving day {seed} ({n_done + 1} of {len(seeds)}) ...")
            solution = optimum(
                world,
                world.day(seed, split.value),
                problem=problem,
                relative_gap=relative_gap,
                time_limit_s=time_limit_s,
                slot=slot,
                network=network,
                horizon=horizon,
            )
            records.append({"day": seed, "split": split.value, "scenario": world.name, **solution.as_dict()})
            if check is not None:
                status.update(f"asking {check} for a second opinion on day {seed} ...")
                opinions = _two_opinions(world, world.day(seed, split.value), solution, check.value, check_slots)
                records[-1]["check"] = opinions
    if plan is not None:
        _save_plan(plan, solution)
    if as_json:
        _print_json(records[0] if days is None else {"solutions": records})
    else:
        columns = ("day", "cost_eur", "lower_bound_eur", "relative_gap", "status", "seconds")
        _stdout().print(_table_of([{name: record[name] for name in columns} for record in records]))
        if check is not None:
            _stdout().print(_table_of([row for record in records for row in _opinion_rows(record)]))
    if not all(record["check"]["agree"] for record in records if "check" in record):
        raise typer.Exit(1)


def _two_opinions(world: "Scenario", day: "Day", solution: Any, solver: str, n_slots: int) -> dict[str, Any]:
    from evcs_gym.baselines.problems.network import network_problem
    from evcs_gym.baselines.second_opinion import two_opinions

    return two_opinions(network_problem(world, day), solution.plan, solver, n_slots).as_dict()


def _opinion_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Both ways, one below the other."""
    found, second = record["check"], record["check"]["second"]
    first = {"day": record["day"], "slots": f"{found['first_slot']}-{found['first_slot'] + found['n_slots'] - 1}"}
    names = ("lower_bound_eur", "cost_eur", "status")
    ours = ("decomposition", found["lower_bound_eur"], found["cost_eur"], "agree" if found["agree"] else "DISAGREE")
    theirs = (second["solver"], second["bound_eur"], second["cost_eur"], second["status"])
    return [{**first, "by": by, **dict(zip(names, rest, strict=True))} for by, *rest in (ours, theirs)]


@app.command()
def bounds(
    days: Annotated[int, typer.Option(min=1, help="How many days: the seeds 0 to N-1.")] = 20,
    random: Annotated[int, typer.Option(min=0, help="How many random policies beside the rules.")] = 3,
    split: SplitName = Split.test,
    scenario: ScenarioName = None,
    as_json: Json = False,
) -> None:
    """Try to break the proven bound of the market: rules, random policies and shaken exact plans on many days."""
    from evcs_gym.evaluation.bounds import bound_margins

    world = _load_scenario(scenario or DEFAULT_SCENARIOS["market"])
    with _quiet_stdout(), _StageProgress(console=_stderr()) as progress:
        rows = bound_margins(
            world, days, split.value, random, lambda done, total: progress.show("playing days", done, total)
        )
    if as_json:
        _print_json({"scenario": world.name, "split": split.value, "rows": [row.as_dict() for row in rows]})
    else:
        shown = ("policy", "operator", "cost_eur", "bound_eur", "least_eur", "n_below", "n_capped_slots")
        _stdout().print(_table_of([{name: getattr(row, name) for name in shown} for row in rows]))
    if any(row.n_below for row in rows):
        raise typer.Exit(1)


@app.command()
def pareto(
    problem: ProblemName,
    days: Annotated[int, typer.Option(min=1, help="How many days: the seeds 0 to N-1.")] = 3,
    balance: Annotated[
        list[str] | None,
        typer.Option(help="First term: exchange, peak or quadratic; repeatable.", show_default="exchange"),
    ] = None,
    as_printed: Annotated[bool, typer.Option("--as-printed", help="Weights as the paper prints them.")] = False,
    time_limit_s: Annotated[float, typer.Option(help="Longest time per solve, in seconds.")] = 10.0,
    split: SplitName = Split.test,
    scenario: ScenarioName = None,
    plot: Annotated[Path | None, typer.Option(help="Store the front as SVG or PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Sweep the two weights of scheduling: what balance costs, by the exact optimum of each point."""
    from evcs_gym.evaluation.pareto import pareto as sweep

    world = _load_scenario(scenario or DEFAULT_SCENARIOS["fast_charging"])
    options: dict[str, Any] = {"balances": balance or ["exchange"], "as_printed": as_printed}
    options |= {"time_limit_s": time_limit_s, "split": split.value}
    with _quiet_stdout(), _StageProgress(console=_stderr()) as progress:
        points = sweep(
            problem, world, days, **options, listener=lambda done, total: progress.show("solving", done, total)
        )
    if plot is not None:
        from evcs_gym.evaluation.figures import pareto_figure

        pareto_figure(points).savefig(plot, facecolor="white")
    rows = [point.as_dict() for point in points]
    if as_json:
        _print_json({"problem": problem, "scenario": world.name, "split": split.value, "points": rows})
    else:
        shown = ("balance", "share", "charging_eur", "unabsorbed_kwh", "peak_kw", "relative_gap")
        _stdout().print(_table_of([{name: row[name] for name in shown} for row in rows]))


@app.command()
def ordering(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Folders of learned policies.")] = None,
    days: Annotated[int, typer.Option(min=1, help="How many days: the seeds 0 to N-1.")] = 100,
    split: SplitName = Split.test,
    scenario: ScenarioName = None,
    relative_gap: Annotated[float, typer.Option(help="Gap at which a day counts as solved.")] = 1e-4,
    out: Annotated[
        Path | None, typer.Option(help="Folder of ordering.json; a run that was interrupted goes on from it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Solve days of the market with their network and see whether the bounds stand below everything that plays them."""
    from evcs_gym.evaluation.ordering import ordering as run
    from evcs_gym.evaluation.ordering import orders, table_row

    world = _load_scenario(scenario or DEFAULT_SCENARIOS["market"])
    with _quiet_stdout(), _StageProgress(console=_stderr()) as progress:
        found = run(world, days, runs or [], split.value, relative_gap, out, progress.show)
    rows = orders(found)
    if as_json:
        _print_json({**found.model_dump(mode="json"), "rows": [row.as_dict() for row in rows]})
    else:
        _stdout().print(_table_of([table_row(row) for row in rows]))
        _stdout().print(f"a bound of the network was needed on {rows[0].n_network} of {len(found.days)} days")
    if any(row.n_below or row.n_unexplained for row in rows):
        raise typer.Exit(1)


@app.command()
def train(
    preset: Annotated[str, typer.Argument(help="Name of a shipped preset or path of a YAML file.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the preset; repeatable."),
    ] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", min=0, help="Training seed; repeatable.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run.", show_default="runs/ and the preset's name")
    ] = None,
) -> None:
    """Train a policy from a preset; a run that was interrupted goes on."""
    from evcs_gym.training.train import train as run

    folder = run_dir or Path("runs") / Path(preset).stem
    try:
        with _TrainingProgress(console=_stderr()) as progress:
            folders = run(preset, settings or [], seeds or [0], folder, progress.show)
            progress.finish()
    except KeyboardInterrupt:
        _stderr().print("stopped; the same command goes on from the last checkpoint")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    for trained in folders:
        _stdout().print(Text(str(trained)), soft_wrap=True)
    _stderr().print(f"curves: evcs-gym watch {folder}", soft_wrap=True)


@app.command()
def watch(
    run_dir: Annotated[Path, typer.Argument(help="A run folder, or a folder of several.")],
    port: Annotated[int, typer.Option(min=1024, max=65535)] = 6006,
) -> None:
    """Show training curves: TensorBoard on this machine only, until Ctrl-C."""
    from evcs_gym.envs.errors import ConfigError

    if not run_dir.is_dir():
        raise ConfigError(f"watch: {run_dir} must be a folder with runs; train first, or check the path")
    _check_port(port)
    _stderr().print(f"TensorBoard for {run_dir}: http://{LOOPBACK}:{port}/ (Ctrl-C stops it)", soft_wrap=True)
    remarks = _run_until_stopped([*TENSORBOARD, "--logdir", str(run_dir), "--host", LOOPBACK, "--port", str(port)])
    if remarks is not None:
        raise ConfigError(f"watch: TensorBoard stopped {remarks}; see 'evcs-gym doctor'")
    _stderr().print("stopped")


@app.command()
def compare(
    problem: ProblemName,
    policies: Annotated[list[str], typer.Argument(metavar="POLICY...", help="A rule, 'optimum' or a run folder.")],
    days: Annotated[int, typer.Option(min=1, help="How many days: the seeds 0 to N-1.")] = 20,
    split: SplitName = Split.test,
    scenario: ScenarioName = None,
    out: Annotated[Path | None, typer.Option(help="Folder for comparison.json, days.csv and report.html.")] = None,
    retail: Annotated[
        list[str] | None,
        typer.Option(help="Where drivers respond: a rule for retail prices, may be repeated.", show_default="own"),
    ] = None,
    exploit: Annotated[
        int, typer.Option(min=0, help="Market: on this many of the days, each station's best response too.")
    ] = 0,
    operator: Annotated[str, typer.Option(help="Of the market's network: pro_rata, misocp or none.")] = "pro_rata",
    as_json: Json = False,
) -> None:
    """Put policies beside each other and the proven bound, on the same days.

    Where drivers respond (responsive_demand of a scenario) there is no bound: rules and runs of
    market_responsive, by profit, time and energy.
    """
    from evcs_gym.envs.errors import ConfigError
    from evcs_gym.evaluation import benchmark
    from evcs_gym.evaluation.records import as_json as json_of
    from evcs_gym.evaluation.report import exploit_summaries, exploit_table, profit_table, rich_table

    if problem == "market" and scenario is not None:
        city = _load_scenario(scenario)
        if city.responsive_spec is not None:
            if exploit:
                raise ConfigError("compare: --exploit needs a market whose drivers do not respond; leave it out")
            if operator != benchmark.DEFAULT_OPERATOR:
                raise ConfigError(f"compare: where drivers respond the operator is pro_rata, got {operator!r}")
            _compare_responsive(city, policies, retail, days, split, out, as_json)
            return
    if retail:
        raise ConfigError("compare: --retail needs a scenario of the market with responsive_demand; leave it out")
    options: dict[str, Any] = {"n_days": days, "split": split.value, "scenario": scenario, "out": out}
    options["n_exploit"] = exploit
    options["operator"] = operator
    with _quiet_stdout(), _StageProgress(console=_stderr()) as progress:
        comparison = benchmark.compare(problem, policies, **options, listener=progress.show)
    if as_json:
        typer.echo(json_of(comparison))
    else:
        _stdout().print(rich_table(comparison))
        if comparison.stations:
            _stdout().print(profit_table(comparison))
        if exploit:
            _stdout().print(exploit_table(exploit_summaries(comparison)))
    if out is not None:
        _stderr().print(f"report: {out / 'report.html'}", soft_wrap=True)


def _compare_responsive(
    city: "Scenario",
    policies: list[str],
    retail: list[str] | None,
    days: int,
    split: Split,
    out: Path | None,
    in_json: bool,
) -> None:
    from evcs_gym.evaluation.records import as_json
    from evcs_gym.evaluation.responsive import OWN_RETAIL, compare_responsive
    from evcs_gym.evaluation.responsive_tables import responsive_tables

    with _quiet_stdout(), _StageProgress(console=_stderr()) as progress:
        comparison = compare_responsive(city, policies, retail or OWN_RETAIL, days, split.value, out, progress.show)
    if in_json:
        typer.echo(as_json(comparison))
    else:
        for table in responsive_tables(comparison):
            _stdout().print(table)
    if out is not None:
        _stderr().print(f"report: {out / 'report.html'}", soft_wrap=True)


@app.command()
def exploit(
    policy: Annotated[str, typer.Argument(help="A rule of the market, 'optimum' or a run folder.")],
    days: Annotated[int, typer.Option(min=1, help="How many days: the seeds 0 to N-1.")] = 10,
    split: SplitName = Split.test,
    scenario: ScenarioName = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for exploit.json.", show_default="runs/exploit/ and the policy's name")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find every station's best response to what the others bid; a search that was interrupted goes on."""
    from evcs_gym.evaluation import exploit as search
    from evcs_gym.evaluation.exploitability import summary
    from evcs_gym.evaluation.report import exploit_table

    world = _load_scenario(scenario or DEFAULT_SCENARIOS["market"])
    folder = out or Path("runs") / "exploit" / Path(policy).name
    with _quiet_stdout(), _StageProgress(console=_stderr()) as progress:
        found = search.exploit(policy, world, days, split.value, folder, progress.show)
    known = summary(found.days)
    if as_json:
        _print_json({**found.model_dump(mode="json"), "summary": known.as_dict()})
    else:
        _stdout().print(search.station_table(found))
        _stdout().print(exploit_table({policy: known}))
    _stderr().print(f"numbers: {folder / search.EXPLOIT_FILE}", soft_wrap=True)


@app.command()
def strategy(
    fast: Annotated[str, typer.Option(help="Fast charging: a rule, 'slot_optimum', 'optimum' or a run folder.")],
    normal: Annotated[str, typer.Option(help="At home: a rule, 'receding_horizon', 'optimum' or a run folder.")],
    days: Annotated[int, typer.Option(min=1, help="How many days: the seeds 0 to N-1.")] = 10,
    split: SplitName = Split.test,
    scenario: ScenarioName = None,
    out: Annotated[Path | None, typer.Option(help="Folder for strategy.json and strategy.html.")] = None,
    as_json: Json = False,
) -> None:
    """Schedule fast charging, then charging at home, on the same days; beside uncoordinated charging."""
    from evcs_gym.evaluation.records import as_json as json_of
    from evcs_gym.evaluation.strategy import compare_strategy
    from evcs_gym.evaluation.strategy_page import publish, strategy_table

    with _quiet_stdout(), _StageProgress(console=_stderr()) as progress:
        comparison, trace = compare_strategy(fast, normal, days, split.value, scenario, progress.show)
    page = None if out is None else publish(out, comparison, trace)
    if as_json:
        typer.echo(json_of(comparison))
    else:
        _stdout().print(strategy_table(comparison))
    if page is not None:
        _stderr().print(f"report: {page}", soft_wrap=True)


@app.command()
def scale(
    cars: Annotated[
        list[int] | None, typer.Option(min=1, help="Cars of the city; repeatable.", show_default="100 to 100000")
    ] = None,
    limit_s: Annotated[float, typer.Option(help="Time of the solver in a cell, in seconds.")] = 120.0,
    out: Annotated[Path | None, typer.Option(help="Folder of scale.json; what it holds is not measured again.")] = None,
    as_json: Json = False,
) -> None:
    """Time and memory of both scheduling worlds against the number of cars: step, heuristic, exact solve."""
    from evcs_gym.evaluation.scale import CARS, rich_scale_table, scale_table

    with _quiet_stdout(), _StageProgress(console=_stderr()) as progress:
        measured = scale_table(cars or CARS, limit_s, out, progress.show)
    if as_json:
        _print_json({"limit_s": limit_s, "rows": [row.as_dict() for row in measured]})
    else:
        _stdout().print(rich_scale_table(measured))


@app.command()
def render(
    out: Annotated[Path, typer.Option(help="The GIF that is written.")] = Path("runs/day.gif"),
    policy: Annotated[str, typer.Option(help="The rule that all stations play.")] = "dp_truthful",
    day: Annotated[int, typer.Option(min=0, help="Seed of the day.")] = 0,
    split: SplitName = Split.test,
    scenario: ScenarioName = None,
    frames_per_s: Annotated[float, typer.Option(help="Slots shown in a second.")] = 4.0,
) -> None:
    """Write a day of the market as an animated picture."""
    from evcs_gym.envs.units import N_SLOTS
    from evcs_gym.evaluation.film import write_film

    world = _load_scenario(scenario or DEFAULT_SCENARIOS["market"])
    with _quiet_stdout(), _stderr().status("drawing ...") as status:
        write_film(
            out,
            world,
            world.day(day, split.value),
            policy,
            frames_per_s,
            lambda slot: status.update(f"drawing slot {slot + 1} of {N_SLOTS} ..."),
        )
    _stdout().print(Text(str(out)), soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("runs/demo"),
) -> None:
    """Train for a few minutes, solve test days exactly, compare, write a report."""
    from evcs_gym.evaluation.demo import run_demo

    run_demo(out)


@app.command()
def scenario(
    name: Annotated[str, typer.Argument(help="Name of a shipped scenario or path of a YAML file.")],
    check: Annotated[
        bool, typer.Option("--check", help="Solve the base load of every day and show what it leaves of the limits.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check a scenario and show it with all defaults filled in."""
    world = _load_scenario(name)
    content = world.check().as_dict() if check else world.model_dump(mode="json", by_alias=True)
    if as_json:
        _print_json(content)
    else:
        import yaml

        typer.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def city(
    name: Annotated[str, typer.Argument(help="Name of a shipped scenario or path of a YAML file.")],
    policy: Annotated[
        str | None, typer.Option(help="Market rule that every station follows.", show_default="dp_truthful")
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, help="How many days: the seeds 0 to N-1.", show_default="50")
    ] = None,
    split: SplitName = Split.test,
    as_json: Json = False,
) -> None:
    """Show what a city with stations is like under a rule: trade, competition, how often its network binds."""
    from evcs_gym.evaluation.city import DEFAULT_DAYS, DEFAULT_POLICY, city_table

    world = _load_scenario(name)
    with _quiet_stdout(), _stderr().status("playing ..."):
        content = city_table(world, policy or DEFAULT_POLICY, days or DEFAULT_DAYS, split.value).as_dict()
    if as_json:
        _print_json(content)
    else:
        _stdout().print(_table_of([{"measure": key, "value": _short(value)} for key, value in content.items()]))


@app.command()
def rounds(
    day: Annotated[int, typer.Option(min=0, help="Seed of the day.")] = 0,
    split: SplitName = Split.test,
    scenario: ScenarioName = None,
    operator: Annotated[str, typer.Option(help="With whom the stations talk: pro_rata or misocp.")] = "misocp",
    max_rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of a talk.", show_default="5")] = None,
    as_json: Json = False,
) -> None:
    """Show the rounds of the four-stage method on a day: caps, curtailed energy, price, profit and its change."""
    from evcs_gym.baselines.four_stage import MAX_ROUNDS
    from evcs_gym.evaluation.rounds import round_rows, talk_records, talks_of_day

    world = _load_scenario(scenario or DEFAULT_SCENARIOS["market"])
    with _quiet_stdout(), _stderr().status("playing ..."):
        talks, played = talks_of_day(world, world.day(day, split.value), operator, max_rounds or MAX_ROUNDS)
    cost_eur = float(played.cost_eur[0])
    if as_json:
        _print_json({"scenario": world.name, "day": day, "cost_eur": cost_eur, "talks": talk_records(talks)})
    else:
        _stdout().print(_table_of(round_rows(talks)))
        _stdout().print(f"community cost {cost_eur:.2f} EUR")


def _short(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


# --- shared ------------------------------------------------------------------------------------------------


def _stdout() -> Console:
    return Console()


def _stderr() -> Console:
    return Console(stderr=True)


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """What libraries print while they work is a remark, not a result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _print_json(content: dict[str, Any]) -> None:
    typer.echo(json.dumps(content, allow_nan=False, indent=1))


def _table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Dictionaries with equal keys as a table; numbers with five significant digits."""
    table = Table()
    for name in rows[0] if rows else ():
        number = isinstance(rows[0][name], (int, float))
        table.add_column(Text(name), justify="right" if number else "left")
    for row in rows:
        cells = (f"{value:.5g}" if isinstance(value, float) else str(value) for value in row.values())
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _load_scenario(name: str | None) -> "Scenario":
    from evcs_gym.envs import load_scenario
    from evcs_gym.envs.fleet.env import DEFAULT_SCENARIO

    return load_scenario(name or DEFAULT_SCENARIO)


class _StageProgress(RichProgress):
    """One bar that says what is being done."""

    def show(self, what: str, n_done: int, n_all: int) -> None:
        """Listener of `compare`."""
        bar = self.tasks[0].id if self.tasks else self.add_task(what)
        self.update(bar, description=what, completed=n_done, total=n_all)


class _TrainingProgress(RichProgress):
    """One bar per training seed."""

    def show(self, seed: int, progress: "Progress") -> None:
        """Listener of `train`."""
        name = f"seed {seed}"
        known = {task.fields["name"]: task.id for task in self.tasks}
        bar = known[name] if name in known else self.add_task(name, total=progress.total_steps, name=name)
        words = f"{name}: {progress.words}, {progress.steps_per_second:,.0f} steps/s"
        self.update(bar, completed=progress.steps, description=words)

    def finish(self) -> None:
        """The listener hears of a rollout when it begins; the last one is over when `train` returns."""
        for task in self.tasks:
            self.update(task.id, completed=task.total)


def _save_plan(path: Path, solution: "Solved") -> None:
    import numpy as np

    from evcs_gym.envs.errors import DataError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            arrays: dict[str, Any] = solution.plan_arrays()
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another path") from error
    _stderr().print(f"plan: {path} ({', '.join(arrays)})", soft_wrap=True)


def _check_port(port: int) -> None:
    from evcs_gym.envs.errors import ConfigError

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ConfigError(f"watch: port {port} is in use; choose another one with --port") from error


def _run_until_stopped(command: Sequence[str]) -> str | None:
    """Run a child until Ctrl-C or SIGTERM, which end it too (None), or until it ends by itself (how it did)."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, remarks = child.communicate()
        last = remarks.strip().splitlines()[-1:] or ["without a message"]
        return f"with status {child.returncode}: {last[0]}"
    except KeyboardInterrupt:
        return None
    finally:
        _stop(child)
        signal.signal(signal.SIGTERM, before)


def _stop(child: "subprocess.Popen[str]") -> None:
    """End the child: politely, then for good."""
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
