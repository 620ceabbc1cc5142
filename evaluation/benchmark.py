"""Compare policies with each other and with the proven optimum, on the same days."""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evcs_gym.baselines.open_loop import OpenLoop, bus_totals_kw
from evcs_gym.baselines.policy import Policy
from evcs_gym.baselines.registry import NAIVE_RULE, RULES, make_rule
from evcs_gym.baselines.score import Rollout, ms_per_decision, rollout
from evcs_gym.envs import Day, Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet.env import DEFAULT_SCENARIO
from evcs_gym.envs.fleet.normal import World, make_world, replay
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import DAY_START_HOUR, N_SLOTS, SLOT_H
from evcs_gym.evaluation.records import (
    Comparison,
    DayTrace,
    Kind,
    PolicyResult,
    TrainingCurve,
    collect_provenance,
    policy_result,
    read_training_curve,
    write_csv,
    write_json,
)
from evcs_gym.evaluation.report import write_report
from evcs_gym.training.callbacks import PROGRESS_FILE
from evcs_gym.training.checkpoint import RUN_FILE, RunInfo, read_run
from evcs_gym.training.provenance import config_hash
from evcs_gym.training.train import load_policy, one_thread

if TYPE_CHECKING:
    from evcs_gym.baselines.certificate import Solution

OPTIMUM, OPEN_LOOP = "optimum", "open_loop_optimum"
"""Policies that are no rule: the exact plan, and its bus totals replayed through the disaggregation."""
BOUND_LABEL = "LP with power in [0, p] and exact energy per car, no network"
OPEN_LOOP_NOTE = "bus totals of the exact plan, disaggregated by the environment; not an upper bound"

N_DRAWN = 5
"""Policies whose first day is drawn: the best ones; the table holds all."""

Listener = Callable[[str, int, int], None]
"""Called with (what is being done, done, in all)."""


@dataclass(frozen=True, eq=False)
class Contest:
    """The days of a comparison with their exact solutions."""

    scenario: Scenario
    split: str
    seeds: tuple[int, ...]
    days: list[Day]
    world: World
    solutions: "list[Solution]"
    naive_cost_eur: FloatArray

    @property
    def lower_bound_eur(self) -> FloatArray:
        """Proven bound of every day, (D,)."""
        return np.array([solution.lower_bound_eur for solution in self.solutions])


@dataclass(frozen=True, eq=False)
class Run:
    """A learned policy: its folders, records and policies, one of each per training seed."""

    folders: list[Path]
    records: list[RunInfo]
    policies: list[Policy]


@dataclass
class Played:
    """What one policy did: its result and, for the figures, its first day."""

    result: PolicyResult
    charging_kw: FloatArray  # (T,) of the first day, all buses
    voltage_pu: FloatArray  # (T, N, P) magnitudes of the first day
    curve: TrainingCurve | None = None


def _seed_folders(path: Path) -> list[Path]:
    """The run folders of a path: itself, or its ``seed-N`` children in order."""
    if (path / RUN_FILE).is_file():
        return [path]
    children = sorted(
        (c for c in path.glob("seed-*") if c.name.removeprefix("seed-").isdecimal() and (c / RUN_FILE).is_file()),
        key=lambda child: int(child.name.removeprefix("seed-")),
    )
    if not children:
        read_run(path)  # raises with the reason
    return children


def check_policies(policies: Sequence[str]) -> None:
    """Refuse names that are no rule, not the optimum and no run folder, before anything long begins.

    Raises:
        ConfigError: no policy, one named twice, or one that does not exist.
    """
    if not policies:
        raise ConfigError("name at least one policy: a rule, 'optimum' or a run folder")
    if len(set(policies)) != len(policies):
        raise ConfigError(f"each policy may be named once, got {', '.join(policies)}")
    for name in policies:
        if name in RULES or name in (OPTIMUM, OPEN_LOOP):
            continue
        if Path(name).is_dir():
            _seed_folders(Path(name))
        elif "/" in name or "\\" in name:
            read_run(Path(name))
        else:
            known = (*RULES, OPTIMUM, OPEN_LOOP)
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"there is no policy {name!r}{hint} (known: {', '.join(known)}, or give a run folder)")


def load_runs(policies: Sequence[str], scenario: Scenario) -> dict[str, Run]:
    """The learned ones among the policies, ready to play.

    Raises:
        ConfigError: a run folder without a model, or one that does not fit the scenario. DataError: a broken file.
    """
    runs = {}
    for name in policies:
        if name not in RULES and name not in (OPTIMUM, OPEN_LOOP):
            folders = _seed_folders(Path(name))
            runs[name] = Run(folders, [read_run(f) for f in folders], [load_policy(f, scenario) for f in folders])
    return runs


def prepare(scenario: Scenario, n_days: int, split: str, relative_gap: float, listener: Listener) -> Contest:
    """Draw the days 0 .. n_days - 1 of a split and solve each exactly."""
    from evcs_gym.baselines import optimum

    if n_days < 1:
        raise ConfigError(f"a comparison needs at least one day, got {n_days}")
    seeds = tuple(range(n_days))
    days = scenario.days(seeds, split)
    solutions = []
    for number, day in enumerate(days):
        listener("solving days exactly", number, n_days)
        solutions.append(optimum(scenario, day, relative_gap=relative_gap))
    listener("solving days exactly", n_days, n_days)
    world = make_world(scenario, days)
    naive = rollout(world, make_rule(NAIVE_RULE)).cost_eur
    return Contest(scenario, split, seeds, days, world, solutions, naive)


def _scored(contest: Contest, label: str, kind: Kind, rollouts: Sequence[Rollout], **extra: object) -> PolicyResult:
    return policy_result(
        label,
        kind,
        cost_eur=np.stack([r.cost_eur for r in rollouts]),
        naive_cost_eur=contest.naive_cost_eur,
        lower_bound_eur=contest.lower_bound_eur,
        n_violations=np.stack([r.n_violations for r in rollouts]),
        violation_pu=np.stack([r.violation_pu for r in rollouts]),
        unmet_kwh=np.stack([r.unmet_kwh for r in rollouts]),
        **extra,  # type: ignore[arg-type]
    )


def _first_day(contest: Contest, policy: Policy) -> tuple[FloatArray, FloatArray]:
    """Charging power (T,) and voltage magnitudes (T, N, P) of the first day."""
    shown = rollout(make_world(contest.scenario, contest.days[:1]), policy, keep_voltage=True)
    if shown.voltage_pu is None:  # pragma: no cover - asked for above
        raise ConfigError("the rollout kept no voltages")
    return shown.bus_power_kw[0].sum(axis=1), np.abs(shown.voltage_pu[0])


def _play_rule(contest: Contest, name: str) -> Played:
    rule = make_rule(name)
    result = _scored(
        contest, name, "rule", [rollout(contest.world, rule)], ms_per_decision=ms_per_decision(contest.world, rule)
    )
    return Played(result, *_first_day(contest, rule))


def _play_open_loop(contest: Contest) -> Played:
    totals = [
        bus_totals_kw(day.sessions, solution.plan.power_kw, contest.world.n_buses)
        for day, solution in zip(contest.days, contest.solutions, strict=True)
    ]
    policy = OpenLoop(totals)
    result = _scored(contest, OPEN_LOOP, "optimum", [rollout(contest.world, policy)], note=OPEN_LOOP_NOTE)
    return Played(result, *_first_day(contest, policy))


def _play_optimum(contest: Contest) -> Played:
    solutions = contest.solutions
    shown = replay(contest.scenario, contest.days[0], solutions[0].plan.power_kw)
    result = policy_result(
        OPTIMUM,
        "optimum",
        cost_eur=[s.cost_eur for s in solutions],
        naive_cost_eur=contest.naive_cost_eur,
        lower_bound_eur=contest.lower_bound_eur,
        n_violations=[s.certificate.n_violations for s in solutions],
        violation_pu=[s.certificate.voltage_excess_pu for s in solutions],
        unmet_kwh=[s.certificate.missing_kwh for s in solutions],
        relative_gap=[s.relative_gap for s in solutions],
        note=f"sees the whole day; {np.mean([s.seconds for s in solutions]):.1f} s per day",
    )
    return Played(result, shown.bus_power_kw.sum(axis=1), np.abs(shown.voltage_pu))


def _play_run(contest: Contest, name: str, run: Run) -> Played:
    cloned = any(record.kind != "learned" for record in run.records)
    seconds = np.mean([record.seconds for record in run.records])
    how = "cloned from a plan that knows the whole day, then learned" if cloned else "learned"
    finished = all(record.finished for record in run.records)
    result = _scored(
        contest,
        name,
        "clone" if cloned else "learned",
        [rollout(contest.world, policy) for policy in run.policies],
        training_seeds=tuple(record.seed for record in run.records),
        ms_per_decision=ms_per_decision(contest.world, run.policies[0]),
        note=f"{how}, {seconds:.0f} s of training" if finished else f"{how}; training is not finished",
    )
    files = [folder / PROGRESS_FILE for folder in run.folders if (folder / PROGRESS_FILE).is_file()]
    return Played(result, *_first_day(contest, run.policies[0]), read_training_curve(*files) if files else None)


def play(contest: Contest, name: str, runs: Mapping[str, Run]) -> Played:
    """Play one policy on all days of the contest; ``runs`` holds the learned ones."""
    if name == OPTIMUM:
        return _play_optimum(contest)
    if name == OPEN_LOOP:
        return _play_open_loop(contest)
    return _play_rule(contest, name) if name in RULES else _play_run(contest, name, runs[name])


def _trace(contest: Contest, played: Sequence[Played]) -> DayTrace:
    day = contest.days[0]
    absent = ~contest.scenario.feeder.phase_present[None]
    return DayTrace(
        time_h=DAY_START_HOUR + SLOT_H * np.arange(N_SLOTS, dtype=np.float64),
        base_kw=day.base_kw.sum(axis=1),
        dg_kw=day.dg_kw.sum(axis=1),
        import_eur_per_kwh=day.import_eur_per_kwh,
        charging_kw={p.result.label: p.charging_kw for p in played},
        voltage_pu={p.result.label: p.voltage_pu for p in played},
        vmin_pu=day.vmin_pu,
        vmax_pu=np.where(absent, contest.scenario.feeder_spec.vmax_pu, day.vmax_pu),
        title=f"{contest.split} day {day.seed}, {day.date}",
    )


def _store(out: Path, comparison: Comparison, contest: Contest, played: Sequence[Played]) -> None:
    write_json(out / "comparison.json", comparison)
    write_csv(out / "days.csv", comparison)
    if not comparison.complete:
        (out / "report.html").unlink(missing_ok=True)  # an older one would not belong to the numbers beside it
        return
    curves = {p.result.label: p.curve for p in played if p.curve is not None}
    shown = sorted(played, key=lambda p: -p.result.captured)[:N_DRAWN]
    write_report(out / "report.html", comparison, [_trace(contest, shown)], curves or None)


def compare(
    problem: str,
    policies: Sequence[str],
    n_days: int = 20,
    split: str = "test",
    scenario: str | Scenario | None = None,
    out: Path | None = None,
    relative_gap: float = 1e-3,
    listener: Listener = lambda _what, _done, _all: None,
) -> Comparison:
    """Play every policy on the same days and score it between the naive rule (0) and the proven bound (1).

    Args:
        policies: names of rules, "optimum", "open_loop_optimum", or run folders (of one seed or of several).
        n_days: the seeds 0 .. n_days - 1 of the split.
        out: folder for comparison.json and days.csv, written after each policy, and report.html, written at the end.
        relative_gap: asked of the exact optimum.

    Raises:
        ConfigError: an unknown problem, policy or split, no day, or a run folder without a model; before anything is
            solved. DataError: a broken run folder, or an ``out`` that cannot be written. SolverError: no solver.
    """
    if problem != "normal_charging":
        raise ConfigError(f"problem must be normal_charging, got {problem!r}")
    check_policies(policies)
    world = scenario if isinstance(scenario, Scenario) else load_scenario(scenario or DEFAULT_SCENARIO)
    runs = load_runs(policies, world)
    contest = prepare(world, n_days, split, relative_gap, listener)
    comparison = _empty(problem, contest, relative_gap, runs)
    played: list[Played] = []
    for number, name in enumerate(policies):
        listener(f"playing {name}", number, len(policies))
        with one_thread():
            played.append(play(contest, name, runs))
        comparison = comparison.with_result(played[-1].result, complete=number + 1 == len(policies))
        if out is not None:
            _store(out, comparison, contest, played)
    listener("done", len(policies), len(policies))
    return comparison


def _empty(problem: str, contest: Contest, relative_gap: float, runs: Mapping[str, Run]) -> Comparison:
    certificate = contest.solutions[0].certificate
    records = [record for run in runs.values() for record in run.records]
    presets = json.dumps([record.preset for record in records], sort_keys=True)
    return Comparison(
        problem=problem,
        scenario=contest.scenario.name,
        split=contest.split,
        day_seeds=contest.seeds,
        naive_label=NAIVE_RULE,
        bound_label=BOUND_LABEL,
        naive_cost_eur=tuple(contest.naive_cost_eur.tolist()),
        lower_bound_eur=tuple(contest.lower_bound_eur.tolist()),
        infeasible_kwh=tuple(contest.world.infeasible_kwh.sum(axis=1).tolist()),
        results=(),
        provenance=collect_provenance(
            config_hash=config_hash(contest.scenario.model_dump_json(by_alias=True) + presets),
            training_seeds=sorted({record.seed for record in records}),
            solver=f"{certificate.solver} {certificate.solver_version}",
            relative_gap=relative_gap,
        ),
        complete=False,
    )
