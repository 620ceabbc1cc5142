"""What comparisons have in common: the days with their exact solutions, the runs, and what a policy did."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evcs_gym.baselines.registry import NAIVE_RULES, make_policy, make_rule
from evcs_gym.baselines.score import ms_per_decision, world_of
from evcs_gym.envs import Day, Scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.operators import PRO_RATA, Operator
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import MS_PER_S, N_SLOTS
from evcs_gym.evaluation.records import ExploitDay, Kind, PolicyResult, TrainingCurve, policy_result
from evcs_gym.training.checkpoint import RUN_FILE, RunInfo, read_run
from evcs_gym.training.config import ProblemName
from evcs_gym.training.train import load_policy

if TYPE_CHECKING:
    from evcs_gym.baselines.certificate import Solution
    from evcs_gym.baselines.fast_charging import FastSolution
    from evcs_gym.baselines.market import MarketSolution

    AnySolution = Solution | MarketSolution | FastSolution

OPTIMUM = "optimum"
"""The policy that is the exact plan of the day, in every problem."""

Listener = Callable[[str, int, int], None]
"""Called with (what is being done, done, in all)."""


@dataclass(frozen=True, eq=False)
class Contest:
    """The days of a comparison with their exact solutions; world and solutions are of the problem's own kind. operator:
    of the market's network."""

    scenario: Scenario
    split: str
    seeds: tuple[int, ...]
    days: list[Day]
    world: Any
    solutions: list[Any]
    naive_cost_eur: FloatArray
    operator: Operator = PRO_RATA

    @property
    def lower_bound_eur(self) -> FloatArray:
        """Proven bound of every day, (D,)."""
        return np.array([solution.lower_bound_eur for solution in self.solutions])


@dataclass(frozen=True, eq=False)
class Run:
    """A learned policy: its folders, records and policies, one of each per training seed; policies as the problem's
    rollouts take them."""

    folders: list[Path]
    records: list[RunInfo]
    policies: list[Any]

    @property
    def kind(self) -> Kind:
        """Where its decisions come from."""
        return "clone" if any(record.kind != "learned" for record in self.records) else "learned"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds."""
        return tuple(record.seed for record in self.records)

    def note(self) -> str:
        """One line for the report."""
        seconds = np.mean([record.seconds for record in self.records])
        cloned = self.kind == "clone"
        how = "cloned from a plan that knows the whole day, then learned" if cloned else "learned"
        finished = all(record.finished for record in self.records)
        return f"{how}, {seconds:.0f} s of training" if finished else f"{how}; training is not finished"


def seed_folders(path: Path) -> list[Path]:
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


def load_run(name: str, scenario: Scenario, problem: ProblemName) -> Run:
    """What was trained in a run folder, of one seed or of several, ready to play.

    Raises:
        ConfigError: a run folder without a model, of another problem, or one that does not fit the scenario.
        DataError: a broken file.
    """
    folders = seed_folders(Path(name))
    records = [read_run(folder) for folder in folders]
    for folder, record in zip(folders, records, strict=True):
        learned = record.preset.get("problem", problem)
        if learned != problem:
            raise ConfigError(f"{folder}: was trained for {learned}, not for {problem}; compare it there")
    return Run(folders, records, [load_policy(folder, scenario) for folder in folders])


@dataclass
class Played:
    """What one policy did: its result and, for the figures, its first day in the problem's own form."""

    result: PolicyResult
    first_day: Any
    curve: TrainingCurve | None = None


@dataclass(frozen=True)
class Game:
    """A problem in which policies play.

    scenario: where none is named. rules: by name. planners: names of policies that solve programmes as they play, which
    play only where they are asked for. plans: names of policies that come from the exact plan. bound_label: what scores
    1. solve: one day exactly. roll: a policy on a world under an operator, with ``cost_eur`` and ``n_violations`` (D,).
    columns: the problem's own numbers of rollouts, one for each training seed, as `policy_result` takes them. plan: one
    of the plans as it played. first_day: of a policy, in the problem's own form. trace: figures' data of the policies
    shown. remark: what a reader should know of rollouts. exploit: best responses to a policy on the first days, where
    stations bid.
    """

    problem: ProblemName
    scenario: str
    bound_label: str
    rules: Mapping[str, Any]
    plans: tuple[str, ...]
    solve: "Callable[[Scenario, Day, float], AnySolution]"
    roll: Callable[[Any, Any, Operator], Any]
    columns: Callable[[Contest, Sequence[Any]], Mapping[str, Any]]
    infeasible_kwh: Callable[[Contest], FloatArray]
    plan: Callable[[Contest, str], Played]
    first_day: Callable[[Contest, Any], Any]
    trace: Callable[[Contest, Sequence[Played]], Any]
    remark: Callable[[Sequence[Any]], str] = lambda _rollouts: ""
    stations: Callable[[Contest], tuple[str, ...]] = lambda _contest: ()
    exploit: Callable[[Contest, str, Mapping[str, Run], int, Listener], tuple[ExploitDay, ...]] | None = None
    planners: tuple[str, ...] = ()

    @property
    def naive_label(self) -> str:
        """The rule that scores 0."""
        return NAIVE_RULES[self.problem]

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of all policies that are no run."""
        return (*self.rules, *self.planners, *self.plans)


def scored(
    game: Game, contest: Contest, label: str, kind: Kind, rollouts: Sequence[Any], note: str = "", **extra: Any
) -> PolicyResult:
    """What a policy did: one rollout for each training seed, or one."""
    return policy_result(
        label,
        kind,
        cost_eur=np.stack([r.cost_eur for r in rollouts]),
        naive_cost_eur=contest.naive_cost_eur,
        lower_bound_eur=contest.lower_bound_eur,
        n_violations=np.stack([r.n_violations for r in rollouts]),
        note="; ".join(part for part in (note, game.remark(rollouts)) if part),
        **game.columns(contest, rollouts),
        **extra,
    )


def play(game: Game, contest: Contest, name: str, runs: Mapping[str, Run]) -> Played:
    """One policy on a contest: a plan, a rule, a planner, or one of the runs."""
    if name in game.plans:
        return game.plan(contest, name)
    if name in runs:
        return _play_run(game, contest, name, runs[name])
    policy = make_policy(name, game.problem, contest.scenario)
    timed = ms_per_decision(contest.world, policy)
    began = time.perf_counter()
    rollouts = [game.roll(contest.world, policy, contest.operator)]
    ms_per_slot = (time.perf_counter() - began) * MS_PER_S / (len(contest.days) * N_SLOTS)
    kind: Kind = "planner" if name in game.planners else "rule"
    note = f"{ms_per_slot:.1f} ms a slot on average" if kind == "planner" else ""
    result = scored(game, contest, name, kind, rollouts, note, ms_per_decision=timed)
    return Played(result, game.first_day(contest, policy))


def _play_run(game: Game, contest: Contest, name: str, run: Run) -> Played:
    result = scored(
        game,
        contest,
        name,
        run.kind,
        [game.roll(contest.world, policy, contest.operator) for policy in run.policies],
        run.note(),
        training_seeds=run.seeds,
        ms_per_decision=ms_per_decision(contest.world, run.policies[0]),
    )
    return Played(result, game.first_day(contest, run.policies[0]))


def prepare(
    game: Game,
    scenario: Scenario,
    n_days: int,
    split: str,
    relative_gap: float,
    listener: Listener,
    operator: Operator = PRO_RATA,
) -> Contest:
    """Draw the days 0 .. n_days - 1 of a split and solve each exactly.

    Raises:
        ConfigError: no day, or an unknown split.
    """
    if n_days < 1:
        raise ConfigError(f"a comparison needs at least one day, got {n_days}")
    seeds = tuple(range(n_days))
    days = scenario.days(seeds, split)
    solutions = []
    for number, day in enumerate(days):
        listener("solving days exactly", number, n_days)
        solutions.append(game.solve(scenario, day, relative_gap))
    listener("solving days exactly", n_days, n_days)
    world = world_of(scenario, days, game.problem)
    naive = game.roll(world, make_rule(game.naive_label, game.problem), operator).cost_eur
    return Contest(scenario, split, seeds, days, world, solutions, naive, operator)
