"""Stable-Baselines3 vector environment of fast charging, with masks for sb3-contrib's MaskablePPO."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet import fast
from evcs_gym.envs.fleet.fast_batch import TERMS, FastBatch, check_actions, step_terms
from evcs_gym.envs.fleet.fast_observation import action_space, observation_space
from evcs_gym.envs.types import BoolArray, FloatArray
from evcs_gym.training.vec_env import RowVecEnv

MASKS = "action_masks"
"""The method that sb3-contrib asks for."""


class FastChargingVecEnv(RowVecEnv):
    """Rows are environments; days differ in their number of requests, so that rows end at different steps.

    Args:
        world: days to draw from, see `evcs_gym.envs.fleet.fast_pool.load_fast_pool`.
        n_envs: number of environments.
        reward_scale_per_eur: factor on the reward, fixed for the run.

    Raises:
        ConfigError: no environment, a day without a request, and as `RowVecEnv`.

    Every info holds ``cost_eur`` of the step and its named terms.
    """

    batch: FastBatch

    def __init__(self, world: fast.FastWorld, n_envs: int, reward_scale_per_eur: float = 1.0) -> None:
        spaces_ = observation_space(world.n_stations), action_space(world.n_stations)
        super().__init__(FastBatch(world, n_envs), n_envs, False, *spaces_, 1, reward_scale_per_eur)

    def action_masks(self) -> BoolArray:
        """Allowed actions of every row, (B, J + 1)."""
        return self.batch.action_masks()

    def view(self) -> fast.FastView:
        """What policies may know now, per environment."""
        return fast.view(self.batch.world, self.batch.running())

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """``action_masks`` of the rows asked for, as sb3-contrib wants them; rows have no other method."""
        if method_name != MASKS:
            raise ConfigError(f"rows of this vector environment are arrays; their only method is {MASKS!r}")
        masks = self.action_masks()
        return [masks[row] for row in self._get_indices(indices)]

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions of all rows."""
        self._actions = check_actions(actions, (self.num_envs,), self.batch.world.n_stations)

    def _to_batch(self, actions: FloatArray) -> FloatArray:
        return actions

    def _row_sum(self, values: FloatArray) -> FloatArray:
        return values

    def _step_terms(self, outcome: fast.FastOutcome) -> Mapping[str, np.ndarray]:
        return step_terms(outcome)

    def _infos(self, outcome: fast.FastOutcome) -> list[dict[str, Any]]:
        names = ("cost_eur", *TERMS)
        columns = (getattr(outcome, name).tolist() for name in names)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
