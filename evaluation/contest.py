"""What comparisons have in common: the days with their exact solutions, the runs, and what a policy did."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evcs_gym.envs import Day, Scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.types import FloatArray
from evcs_gym.evaluation.records import Kind, PolicyResult, TrainingCurve
from evcs_gym.training.checkpoint import RunInfo

if TYPE_CHECKING:
    from evcs_gym.baselines.certificate import Solution
    from evcs_gym.baselines.market import MarketSolution

    AnySolution = Solution | MarketSolution

OPTIMUM = "optimum"
"""The policy that is the exact plan of the day, in every problem."""

Listener = Callable[[str, int, int], None]
"""Called with (what is being done, done, in all)."""


@dataclass(frozen=True, eq=False)
class Contest:
    """The days of a comparison with their exact solutions; world and solutions are of the problem's own kind."""

    scenario: Scenario
    split: str
    seeds: tuple[int, ...]
    days: list[Day]
    world: Any
    solutions: list[Any]
    naive_cost_eur: FloatArray

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


@dataclass
class Played:
    """What one policy did: its result and, for the figures, its first day in the problem's own form."""

    result: PolicyResult
    first_day: Any
    curve: TrainingCurve | None = None


@dataclass(frozen=True)
class Game:
    """A problem in which policies play.

    scenario: where none is named. rules: their names. plans: names of policies that come from the exact plan.
    bound_label: what scores 1. solve: one day exactly. world: of days. naive: cost of the naive rule on a world, (D,).
    play: one policy on a contest; runs hold the learned ones. trace: figures' data of the policies shown.
    """

    scenario: str
    naive_label: str
    bound_label: str
    rules: Collection[str]
    plans: tuple[str, ...]
    solve: "Callable[[Scenario, Day, float], AnySolution]"
    world: Callable[[Scenario, Sequence[Day]], Any]
    naive: Callable[[Any], FloatArray]
    infeasible_kwh: Callable[[Contest], FloatArray]
    play: Callable[[Contest, str, Mapping[str, Run]], Played]
    trace: Callable[[Contest, Sequence[Played]], Any]
    stations: Callable[[Contest], tuple[str, ...]] = lambda _contest: ()


def prepare(
    game: Game, scenario: Scenario, n_days: int, split: str, relative_gap: float, listener: Listener
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
    world = game.world(scenario, days)
    return Contest(scenario, split, seeds, days, world, solutions, game.naive(world))
