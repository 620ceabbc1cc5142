"""Batched fast charging: B environments of one process, one pass through the pure core per step."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from evcs_gym.envs.arguments import as_scenario
from evcs_gym.envs.fleet import fast
from evcs_gym.envs.fleet.fast_batch import FastBatch, check_actions, step_terms
from evcs_gym.envs.fleet.fast_env import DEFAULT_SCENARIO
from evcs_gym.envs.fleet.fast_observation import action_space, observation_space
from evcs_gym.envs.fleet.fast_pool import load_fast_pool
from evcs_gym.envs.pool import DEFAULT_POOL_DAYS
from evcs_gym.envs.resets import final_rows, marked_rows
from evcs_gym.envs.scenario import Scenario
from evcs_gym.envs.types import BoolArray, FloatArray


class FastChargingVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """``gymnasium.make_vec("evcs/FastCharging-v0", num_envs=B)``: B days at once in one process.

    Days differ in their number of requests, so that rows end at different times; they reset in the step in which their
    day ends (``AutoresetMode.SAME_STEP``): ``infos["final_obs"]`` and ``infos["final_info"]`` hold the last observation
    and terms of the old day, ``infos["day_seed"]`` the seed of the new one. `action_masks` says what rows may do.
    Arguments as in `FastChargingEnv`.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - Gymnasium's convention

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenario | str = DEFAULT_SCENARIO,
        split: str = "train",
        pool_days: int = DEFAULT_POOL_DAYS,
    ) -> None:
        super().__init__()
        self.scenario, self.num_envs, self.render_mode = as_scenario(scenario), num_envs, None
        self.batch = FastBatch(load_fast_pool(self.scenario, split, pool_days), num_envs)
        n_stations = self.batch.world.n_stations
        self.single_observation_space: gym.Space[np.ndarray] = observation_space(n_stations)
        self.single_action_space: gym.Space[Any] = action_space(n_stations)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def view(self) -> fast.FastView:
        """What policies may know now, batched."""
        return fast.view(self.batch.world, self.batch.running())

    def action_masks(self) -> BoolArray:
        """Allowed actions of every row, (B, J + 1)."""
        return self.batch.action_masks()

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """New days in all rows, or in those of ``options["reset_mask"]`` (B,)."""
        rows = marked_rows(seed, options, self.num_envs)
        if rows is not None:
            self.batch.running()  # before the first reset there is nothing to keep in the other rows
        observation = self.batch.reset(seed, rows)
        return observation, {"day_seed": self.batch.day_seed()}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """One request of every environment; the terms of every row stand in the infos."""
        result = self.batch.step(check_actions(actions, (self.num_envs,), self.batch.world.n_stations))
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        terms = step_terms(result.outcome)
        infos: dict[str, Any] = {**terms, **{f"_{name}": everywhere for name in terms}}
        if result.ended.any():
            infos["final_obs"] = final_rows(result.ended, result.final_observation)
            infos["_final_obs"] = result.ended.copy()
            infos["beyond_kwh"], infos["_beyond_kwh"] = result.beyond_kwh, result.ended.copy()
            infos["final_info"] = {name: infos[name] for name in (*terms, "beyond_kwh")}
            infos["_final_info"] = result.ended.copy()
            infos["day_seed"], infos["_day_seed"] = self.batch.day_seed(), result.ended.copy()
        never = np.zeros(self.num_envs, dtype=np.bool_)
        return result.observation, result.reward_eur, result.ended, never, infos
