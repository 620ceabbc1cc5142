"""What training needs to know of a problem: one record each; everything else in this package is common to all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evcs_gym.baselines.policy import Policy
from evcs_gym.baselines.reference import References, references
from evcs_gym.baselines.score import rollout
from evcs_gym.envs.day import Day
from evcs_gym.envs.fleet import normal
from evcs_gym.envs.fleet.pool import load_pool
from evcs_gym.envs.scenario import Scenario
from evcs_gym.envs.types import FloatArray
from evcs_gym.training.config import Preset, ProblemName
from evcs_gym.training.vec_env import NormalChargingVecEnv, Rows, RowVecEnv


@dataclass(frozen=True, eq=False)
class Judgement:
    """A policy on D days: cost_eur (D,), and means over the days of what TensorBoard shows beside it."""

    cost_eur: FloatArray
    shown: Mapping[str, float]


@dataclass(frozen=True)
class Problem:
    """One problem, as training sees it.

    pool: days to learn on, prepared once, as (scenario, split, number of days) -> world. world: of given days.
    env: vector environment over the rows of a world. judge: plays every day of a world once, deterministically.
    references: naive cost and proven bound of days.
    """

    pool: Callable[[Scenario, str, int], Any]
    world: Callable[[Scenario, Sequence[Day]], Any]
    env: Callable[[Any, int, Preset], RowVecEnv]
    judge: Callable[[Any, Policy, Preset], Judgement]
    references: Callable[[Scenario, str, Sequence[int]], References]


def _normal_env(world: normal.World, n_envs: int, preset: Preset) -> NormalChargingVecEnv:
    rows: Rows = "buses" if preset.rows == "buses" else "environments"
    return NormalChargingVecEnv(world, n_envs, rows, preset.reward_shift, preset.reward_scale_per_eur)


def _normal_judge(world: normal.World, policy: Policy, preset: Preset) -> Judgement:
    result = rollout(world, policy)
    names = ("n_violations", "gap_eur", "energy_eur", "voltage_eur")
    return Judgement(result.cost_eur, {name: float(np.mean(getattr(result, name))) for name in names})


PROBLEMS: dict[ProblemName, Problem] = {
    "normal_charging": Problem(load_pool, normal.make_world, _normal_env, _normal_judge, references),
}
