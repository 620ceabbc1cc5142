"""Stable-Baselines3 vector environment of fast charging, with masks for sb3-contrib's MaskablePPO."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet import fast
from evcs_gym.envs.fleet.fast_batch import TERMS, FastBatch, FastBatchStep, check_actions, step_terms
from evcs_gym.envs.fleet.fast_observation import action_space, observation_space
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H
from evcs_gym.training.vec_env import RowStep, RowVecEnv

MASKS = "action_masks"
"""The method that sb3-contrib asks for."""


def decided_eur(world: fast.FastWorld, before: fast.FastState, outcome: fast.FastOutcome) -> FloatArray:
    """What the day's cost owes to each row's decision, (B,): the cost of a step in the order in which it is decided.

    The whole charge counts at once, against the load that is committed so far, with the day's true base and DG: by how
    much it raises the first term of (1) of all slots that it lasts; and of (2) the way. Over a day the sum is its cost
    less what no decision changes: the first term without any charging, and the energy that batteries lack.
    """
    days, rules, rows = world.days, world.rules, np.arange(len(before.day))
    served = outcome.station < world.n_stations
    station = np.where(served, outcome.station, 0)
    lead = np.arange(N_SLOTS)[None] - before.slot[:, None]
    plug_kw = rules.plug_kw[station][:, None]
    power_kw = np.where(lead < 0, 0.0, np.clip(outcome.delivered_kwh[:, None] / SLOT_H - lead * plug_kw, 0.0, plug_kw))
    net_kw = (days.base_kw - days.dg_kw)[before.day, :, station] + before.load_kw[rows, :, station]
    absorb_eur = rules.absorb_eur_per_kw * (np.abs(net_kw + power_kw) - np.abs(net_kw)).sum(axis=1)
    n_slot = days.slot_start[before.day, before.slot + 1] - days.slot_start[before.day, before.slot]
    price = days.import_eur_per_kwh[before.day, before.slot]
    lacked_eur = rules.energy_weight * days.missing_kwh[before.day, before.request] * price / n_slot
    return np.asarray(absorb_eur + outcome.energy_eur - lacked_eur + outcome.stranded_eur + outcome.voltage_eur)


class _DecidedBatch(FastBatch):
    """Rows whose reward is minus `decided_eur`."""

    def step(self, action: IntArray) -> FastBatchStep:
        before = self.running()
        done = super().step(action)
        return replace(done, reward_eur=-decided_eur(self.world, before, done.outcome))


class FastChargingVecEnv(RowVecEnv):
    """Rows are environments; days differ in their number of requests, so that rows end at different steps.

    Args:
        world: days to draw from, see `evcs_gym.envs.fleet.fast_pool.load_fast_pool`.
        n_envs: number of environments.
        reward_scale_per_eur: factor on the reward, fixed for the run.
        reward_shift: training form of the reward, minus `decided_eur`; ``infos`` and `episode_terms` hold true EUR
            either way.

    Raises:
        ConfigError: no environment, a day without a request, and as `RowVecEnv`.

    Every info holds ``cost_eur`` of the step and its named terms.
    """

    batch: FastBatch

    def __init__(
        self, world: fast.FastWorld, n_envs: int, reward_scale_per_eur: float = 1.0, reward_shift: bool = False
    ) -> None:
        spaces_ = observation_space(world.n_stations), action_space(world.n_stations)
        batch = (_DecidedBatch if reward_shift else FastBatch)(world, n_envs)
        super().__init__(batch, n_envs, False, *spaces_, 1, reward_scale_per_eur)

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

    def _step_terms(self, done: RowStep) -> Mapping[str, np.ndarray]:
        return step_terms(done.outcome)

    def _infos(self, outcome: fast.FastOutcome) -> list[dict[str, Any]]:
        names = ("cost_eur", *TERMS)
        columns = (getattr(outcome, name).tolist() for name in names)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
