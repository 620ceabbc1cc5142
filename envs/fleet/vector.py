"""Batched normal charging: B environments of one process, one pass through the pure core per step."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from evcs_gym.envs.arguments import as_scenario
from evcs_gym.envs.draws import draw_days
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet import normal
from evcs_gym.envs.fleet.env import DEFAULT_SCENARIO, check_action
from evcs_gym.envs.fleet.observation import action_space, observation_space
from evcs_gym.envs.fleet.pool import load_pool
from evcs_gym.envs.pool import DEFAULT_POOL_DAYS
from evcs_gym.envs.resets import final_rows, marked_rows
from evcs_gym.envs.scenario import Scenario
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS


@dataclass(frozen=True, eq=False)
class BatchStep:
    """What a step of a batch gives: the first observation of the next day stands in ``observation`` of rows whose day
    ended, the last one of the old day in ``final_observation`` (number of such rows, in their order)."""

    observation: np.ndarray  # (B, C, F)
    final_observation: np.ndarray  # (n, C, F)
    reward_eur: FloatArray  # (B, C)
    ended: BoolArray  # (B,)
    outcome: normal.Outcome
    day: IntArray  # (B,) row of the world's stack that was played
    infeasible_kwh: FloatArray  # (B,) of the day that was played


class Batch:
    """Rows that play days of a world one after the other: the state behind Gymnasium's and SB3's vector classes."""

    def __init__(self, world: normal.World, n_rows: int, reward_shift: bool) -> None:
        if n_rows < 1:
            raise ConfigError(f"the number of environments must be at least 1, got {n_rows}")
        self.world, self.n_rows, self.reward_shift = world, n_rows, reward_shift
        self.rng = np.random.default_rng()
        self.state: normal.State | None = None

    def running(self) -> normal.State:
        """The present state; refused before the first reset."""
        if self.state is None:
            raise ConfigError("the environments have no day yet; call reset() first")
        return self.state

    def _draw(self, rows: IntArray) -> IntArray:
        return draw_days(self.rng, rows, self.world.n_days)

    def reset(self, seed: int | list[int | None] | None, rows: BoolArray | None = None) -> np.ndarray:
        """Start new days, in all rows or in the marked ones; observation (B, C, F)."""
        if seed is not None:
            self.rng = np.random.default_rng(seed)  # type: ignore[arg-type]  # one generator serves all rows
        if rows is None or self.state is None:
            self.state = normal.initial_state(self.world, self._draw(np.arange(self.n_rows)))
        else:
            self.state = normal.with_reset_rows(self.world, self.state, rows, self._draw(np.flatnonzero(rows)))
        return normal.observe(self.world, self.state)

    def step(self, action: FloatArray) -> BatchStep:
        """One slot of every row; rows whose day ends begin the next one in the same step."""
        before = self.running()
        after, outcome = normal.step(self.world, before, normal.dispatch(self.world, before, action))
        reward = normal.reward_eur(self.world, before, outcome, self.reward_shift)
        ended = after.slot >= N_SLOTS
        observation = normal.observe(self.world, after)
        final = observation[ended]
        self.state = after
        if ended.any():
            observation = self.reset(None, ended)
        infeasible = self.world.infeasible_kwh[before.day].sum(axis=1)
        return BatchStep(observation, final, reward, ended, outcome, before.day, infeasible)


def step_terms(outcome: normal.Outcome) -> dict[str, np.ndarray]:
    """Named terms of a slot, one number per environment (B,), in EUR and counts."""
    return {
        "cost_eur": outcome.cost_eur.sum(axis=1),
        "gap_eur": outcome.gap_eur.sum(axis=1),
        "energy_eur": outcome.energy_eur.sum(axis=1),
        "voltage_eur": outcome.voltage_eur.sum(axis=1),
        "n_violations": outcome.n_violations,
        "violation_pu": outcome.violation_pu,
        "converged": outcome.converged,
    }


class NormalChargingVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """``gymnasium.make_vec("evcs/NormalCharging-v0", num_envs=B)``: B days at once in one process.

    Rows reset in the step in which their day ends (``AutoresetMode.SAME_STEP``): ``infos["final_obs"]`` and
    ``infos["final_info"]`` hold the last observation and terms of the old day, ``infos["day_seed"]`` the seed of the
    new one. Arguments as in `NormalChargingEnv`.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - Gymnasium's convention

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenario | str = DEFAULT_SCENARIO,
        split: str = "train",
        pool_days: int = DEFAULT_POOL_DAYS,
        reward_shift: bool = False,
    ) -> None:
        super().__init__()
        self.scenario, self.num_envs, self.render_mode = as_scenario(scenario), num_envs, None
        self.batch = Batch(load_pool(self.scenario, split, pool_days), num_envs, reward_shift)
        self.single_observation_space: gym.Space[np.ndarray] = observation_space(self.batch.world.n_buses)
        self.single_action_space: gym.Space[np.ndarray] = action_space(self.batch.world.n_buses)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def view(self) -> normal.View:
        """What policies may know now, batched."""
        return normal.view(self.batch.world, self.batch.running())

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """New days in all rows, or in those of ``options["reset_mask"]`` (B,)."""
        rows = marked_rows(seed, options, self.num_envs)
        if rows is not None:
            self.batch.running()  # before the first reset there is nothing to keep in the other rows
        observation = self.batch.reset(seed, rows)
        return observation, {"day_seed": self.batch.running().day.copy()}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """One slot of every environment; true EUR of every row stand in the infos."""
        result = self.batch.step(check_action(actions, (self.num_envs, self.batch.world.n_buses)))
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        infos: dict[str, Any] = dict(step_terms(result.outcome))
        infos.update({f"_{name}": everywhere for name in tuple(infos)})
        if result.ended.any():
            infos["final_obs"] = final_rows(result.ended, result.final_observation)
            infos["_final_obs"] = result.ended.copy()
            infos["infeasible_kwh"], infos["_infeasible_kwh"] = result.infeasible_kwh, result.ended.copy()
            infos["final_info"] = {name: infos[name] for name in (*step_terms(result.outcome), "infeasible_kwh")}
            infos["_final_info"] = result.ended.copy()
            infos["day_seed"], infos["_day_seed"] = self.batch.running().day.copy(), result.ended.copy()
        reward = result.reward_eur.sum(axis=1)
        return result.observation, reward, result.ended, np.zeros(self.num_envs, dtype=np.bool_), infos
