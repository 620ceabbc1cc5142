"""Compare policies with each other and with the proven optimum, on the same days."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from evcs_gym.baselines.problems.best_response import refuse_other_rules
from evcs_gym.baselines.registry import make_operator
from evcs_gym.envs import Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.evaluation.contest import Contest, Game, Listener, Played, Run, load_run, play, prepare, seed_folders
from evcs_gym.evaluation.contest_fast import FAST_CHARGING
from evcs_gym.evaluation.contest_market import MARKET
from evcs_gym.evaluation.contest_normal import NORMAL_CHARGING
from evcs_gym.evaluation.records import (
    Comparison,
    TrainingCurve,
    collect_provenance,
    read_training_curve,
    write_csv,
    write_json,
    write_station_csv,
)
from evcs_gym.evaluation.report import Part, write_parts
from evcs_gym.training.callbacks import PROGRESS_FILE
from evcs_gym.training.checkpoint import read_run
from evcs_gym.training.config import ProblemName
from evcs_gym.training.provenance import config_hash
from evcs_gym.training.train import one_thread

GAMES: dict[ProblemName, Game] = {game.problem: game for game in (NORMAL_CHARGING, MARKET, FAST_CHARGING)}
"""Problems in which policies play."""
DEFAULT_OPERATOR = "pro_rata"
N_DRAWN = 5
"""Policies whose first day is drawn: the best ones; the table holds all."""


def game_of(problem: str) -> tuple[ProblemName, Game]:
    """The problem's name and record.

    Raises:
        ConfigError: no policies play in it.
    """
    for name, game in GAMES.items():
        if name == problem:
            return name, game
    raise ConfigError(f"problem must be {' or '.join(GAMES)}, got {problem!r}")


def check_policies(policies: Sequence[str], game: Game) -> None:
    """Refuse names that are no rule, not the optimum and no run folder, before anything long begins.

    Raises:
        ConfigError: no policy, one named twice, or one that does not exist.
    """
    if not policies:
        raise ConfigError("name at least one policy: a rule, 'optimum' or a run folder")
    if len(set(policies)) != len(policies):
        raise ConfigError(f"each policy may be named once, got {', '.join(policies)}")
    known = game.policies
    for name in policies:
        if name in known:
            continue
        if Path(name).is_dir():
            seed_folders(Path(name))
        elif "/" in name or "\\" in name:
            read_run(Path(name))
        else:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"there is no policy {name!r}{hint} (known: {', '.join(known)}, or give a run folder)")


def load_runs(policies: Sequence[str], scenario: Scenario, problem: ProblemName) -> dict[str, Run]:
    """The learned ones among the policies, ready to play.

    Raises:
        ConfigError: a run folder without a model, of another problem, or one that does not fit the scenario.
        DataError: a broken file.
    """
    game = GAMES[problem]
    return {name: load_run(name, scenario, problem) for name in policies if name not in game.policies}


def _curve(run: Run | None) -> TrainingCurve | None:
    """The training curve of all seeds, None for what was not trained."""
    files = [folder / PROGRESS_FILE for folder in run.folders if (folder / PROGRESS_FILE).is_file()] if run else []
    return read_training_curve(*files) if files else None


def _part(comparison: Comparison, contest: Contest, game: Game, played: Sequence[Played]) -> Part:
    """What the report shows of a comparison."""
    curves = {p.result.label: p.curve for p in played if p.curve is not None}
    shown = sorted(played, key=lambda p: -p.result.captured)[:N_DRAWN]
    return Part(comparison, [game.trace(contest, shown)], curves or None)


def _store(out: Path, comparison: Comparison) -> None:
    write_json(out / "comparison.json", comparison)
    write_csv(out / "days.csv", comparison)
    if comparison.stations:
        write_station_csv(out / "stations.csv", comparison)


def compare(
    problem: str,
    policies: Sequence[str],
    n_days: int = 20,
    split: str = "test",
    scenario: str | Scenario | None = None,
    out: Path | None = None,
    relative_gap: float = 1e-3,
    listener: Listener = lambda _what, _done, _all: None,
    operator: str = DEFAULT_OPERATOR,
    n_exploit: int = 0,
) -> Comparison:
    """Play every policy on the same days and score it between the naive rule (0) and the proven bound (1).

    Args:
        problem: "normal_charging", "market" or "fast_charging".
        policies: names of rules, "optimum", in normal charging "open_loop_optimum", or run folders (of one seed or of
            several).
        n_days: the seeds 0 .. n_days - 1 of the split.
        out: folder for comparison.json, days.csv and, in the market, stations.csv, written after each policy, and
            report.html, written at the end.
        relative_gap: asked of the exact optimum.
        operator: of the market's network, one of `evcs_gym.baselines.registry.OPERATORS`.
        n_exploit: in the market, days on which every station's best response is found too; seconds for each.

    Raises:
        ConfigError: an unknown problem, policy or split, no day, a run folder without a model, or best responses that
            the problem, its price rule or the days do not allow; before anything is solved. DataError: a broken run
            folder, or an ``out`` that cannot be written. SolverError: no solver.
    """
    part = compare_part(problem, policies, n_days, split, scenario, out, relative_gap, listener, operator, n_exploit)
    if out is not None:
        write_parts(out / "report.html", [part])
    return part.comparison


def compare_part(
    problem: str,
    policies: Sequence[str],
    n_days: int,
    split: str,
    scenario: str | Scenario | None,
    out: Path | None,
    relative_gap: float = 1e-3,
    listener: Listener = lambda _what, _done, _all: None,
    operator: str = DEFAULT_OPERATOR,
    n_exploit: int = 0,
) -> Part:
    """`compare` with what a report draws, which is left to the caller; an older report in ``out`` is removed."""
    name, game = game_of(problem)
    if operator != DEFAULT_OPERATOR and name != "market":
        raise ConfigError(f"operator is for the market, whose network caps stations, got {operator!r} for {name}")
    network = make_operator(operator)
    check_policies(policies, game)
    world = scenario if isinstance(scenario, Scenario) else load_scenario(scenario or game.scenario)
    _check_exploit(game, world, n_exploit, n_days)
    runs = load_runs(policies, world, name)
    contest = prepare(game, world, n_days, split, relative_gap, listener, network)
    comparison = _empty(name, contest, relative_gap, runs, operator)
    played: list[Played] = []
    for number, policy in enumerate(policies):
        listener(f"playing {policy}", number, len(policies))
        with one_thread():
            played.append(replace(play(game, contest, policy, runs), curve=_curve(runs.get(policy))))
        if game.exploit is not None and n_exploit:
            left = game.exploit(contest, policy, runs, n_exploit, listener)
            played[-1].result = played[-1].result.model_copy(update={"exploit": left})
        comparison = comparison.with_result(played[-1].result, complete=number + 1 == len(policies))
        if out is not None:
            _store(out, comparison)
            (out / "report.html").unlink(missing_ok=True)  # it would not belong to the numbers beside it
    listener("done", len(policies), len(policies))
    return _part(comparison, contest, game, played)


def _check_exploit(game: Game, scenario: Scenario, n_exploit: int, n_days: int) -> None:
    if not n_exploit:
        return
    if game.exploit is None:
        raise ConfigError("compare: best responses need stations that bid; leave exploit out, or compare the market")
    if not 0 < n_exploit <= n_days:
        raise ConfigError(f"compare: exploit must be a number of days from 1 to {n_days}, got {n_exploit}")
    refuse_other_rules(scenario.market.rule)


def _empty(
    problem: ProblemName, contest: Contest, relative_gap: float, runs: Mapping[str, Run], operator: str
) -> Comparison:
    game, certificate = GAMES[problem], contest.solutions[0].certificate
    records = [record for run in runs.values() for record in run.records]
    presets = json.dumps([record.preset for record in records], sort_keys=True)
    return Comparison(
        problem=problem,
        scenario=contest.scenario.name,
        split=contest.split,
        day_seeds=contest.seeds,
        naive_label=game.naive_label,
        bound_label=game.bound_label,
        naive_cost_eur=tuple(contest.naive_cost_eur.tolist()),
        lower_bound_eur=tuple(contest.lower_bound_eur.tolist()),
        infeasible_kwh=tuple(game.infeasible_kwh(contest).tolist()),
        results=(),
        stations=game.stations(contest),
        notes=() if operator == DEFAULT_OPERATOR else (f"The network's operator is {operator}.",),
        provenance=collect_provenance(
            config_hash=config_hash(contest.scenario.model_dump_json(by_alias=True) + presets),
            training_seeds=sorted({record.seed for record in records}),
            solver=f"{certificate.solver} {certificate.solver_version}",
            relative_gap=relative_gap,
        ),
        complete=False,
    )
