"""What 0 and 1 mean on given days: the naive rule's cost and the proven bound, kept on disk once they are known."""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evcs_gym.baselines.registry import NAIVE_RULES, make_rule, played
from evcs_gym.baselines.score import rollout, world_of
from evcs_gym.envs.files import write_whole
from evcs_gym.envs.pool import cache_folder, sources_digest
from evcs_gym.envs.types import FloatArray

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

BOUND_TIME_LIMIT_S = 120.0
FAST_BOUND_GAP = 1e-3
"""Gap at which the bound of fast charging is good enough: its programme has whole cars, closing it all is slow."""


@dataclass(frozen=True, eq=False)
class References:
    """Naive cost and proven lower bound of each day, (D,) EUR."""

    naive_cost_eur: FloatArray
    lower_bound_eur: FloatArray


def _file(scenario: "Scenario", split: str, problem: str) -> Path:
    text = f"{problem}|{scenario.model_dump_json(by_alias=True)}|{split}|{sources_digest()}|{_baselines_digest()}"
    return cache_folder() / f"reference-{scenario.name}-{split}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _baselines_digest() -> str:
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[int, float]:
    try:
        return {int(seed): float(bound) for seed, bound in json.loads(path.read_text(encoding="utf-8")).items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, AttributeError) as error:
        warnings.warn(f"{path}: cannot be read ({error}); bounds are solved anew", stacklevel=3)
        return {}


def _write(path: Path, bounds: dict[int, float]) -> None:
    try:
        write_whole(path, lambda file: file.write(json.dumps(bounds).encode()))
    except OSError as error:
        warnings.warn(f"{path}: cannot be written ({error}); bounds will be solved again next time", stacklevel=3)


def lower_bound_eur(scenario: "Scenario", day: "Day", problem: str = "normal_charging") -> float:
    """The proven bound of a day: no policy of the environment costs less (model.md sections 7 (i) and 9, *bound*).

    Raises:
        ConfigError: no policies play in that problem.
    """
    if problem == "fast_charging":
        from evcs_gym.baselines.fast_charging import day_bound_eur

        return day_bound_eur(scenario, day, FAST_BOUND_GAP, BOUND_TIME_LIMIT_S)
    if played(problem) == "market":
        from evcs_gym.baselines.market import solve_programme as solve_market_programme
        from evcs_gym.baselines.problems.market import problem_of as market_problem_of

        return solve_market_programme(market_problem_of(scenario, day), BOUND_TIME_LIMIT_S).bound_eur
    from evcs_gym.baselines.normal_charging import Budget, solve_programme
    from evcs_gym.baselines.problems.normal_charging import check_data, problem_of

    data = problem_of(scenario, day, "modulated")
    check_data(data)
    return solve_programme(data, None, 0.0, Budget(time.monotonic(), BOUND_TIME_LIMIT_S)).bound_eur


def references(
    scenario: "Scenario",
    split: str,
    seeds: Sequence[int],
    progress: Callable[[int, int], None] = lambda _done, _all: None,
    problem: str = "normal_charging",
) -> References:
    """References of the days of a split; solved bounds are stored after each day, so an interruption loses one.

    Args:
        progress: called with (days done, days in all).
        problem: one in which policies play; its naive rule is that of `NAIVE_RULES`.

    Raises:
        ConfigError: no policies play in that problem.
    """
    naive_rule = make_rule(NAIVE_RULES[played(problem)], problem)
    path = _file(scenario, split, problem)
    bounds = _read(path)
    seeds = [int(seed) for seed in seeds]  # numpy's integers are no JSON keys
    days = scenario.days(seeds, split)
    for number, (seed, day) in enumerate(zip(seeds, days, strict=True)):
        if seed not in bounds:
            bounds[seed] = lower_bound_eur(scenario, day, problem)
            _write(path, bounds)
        progress(number + 1, len(seeds))
    naive = rollout(world_of(scenario, days, problem), naive_rule).cost_eur
    return References(naive, np.array([bounds[seed] for seed in seeds]))
