"""Gymnasium's vector form of the market: B environments of one process, one pass through the pure core per step."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from evcs_gym.envs.arguments import as_scenario, checked_action
from evcs_gym.envs.market.batch import MarketBatch, MarketBatchStep
from evcs_gym.envs.market.env import DEFAULT_SCENARIO
from evcs_gym.envs.market.operators import PRO_RATA, Operator
from evcs_gym.envs.market.play import Rule, truthful
from evcs_gym.envs.market.pool import load_any_pool
from evcs_gym.envs.market.roles import Central, Role, bidder, told
from evcs_gym.envs.market.view import MarketView, OwnPlan
from evcs_gym.envs.pool import DEFAULT_POOL_DAYS
from evcs_gym.envs.resets import final_rows, marked_rows
from evcs_gym.envs.scenario import Scenario
from evcs_gym.envs.types import BoolArray, FloatArray


class _RoleVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """What `MarketVectorEnv` and `BiddingVectorEnv` share: all but the role.

    Rows reset in the step in which their day ends (``AutoresetMode.SAME_STEP``): ``infos["final_obs"]`` and
    ``infos["final_info"]`` hold the last observation and terms of the old day, ``infos["day_seed"]`` the seed of the
    new one. Row 0 plays what the single environment of the same seed plays.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - Gymnasium's convention

    def __init__(self, scenario: Scenario, batch: MarketBatch, role: Role) -> None:
        super().__init__()
        self.scenario, self.num_envs, self.render_mode = scenario, batch.n_rows, None
        self.batch, self.role = batch, role
        observation, action = role.spaces
        self.single_observation_space: gym.Space[np.ndarray] = observation
        self.single_action_space: gym.Space[np.ndarray] = action
        self.observation_space = batch_space(observation, self.num_envs)
        self.action_space = batch_space(action, self.num_envs)

    def view(self) -> MarketView:
        """What policies may know now, batched."""
        return self.batch.view()

    def plan(self) -> OwnPlan:
        """What each station would do alone, batched."""
        return self.batch.plan

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """New days in all rows, or in those of ``options["reset_mask"]`` (B,)."""
        rows = marked_rows(seed, options, self.num_envs)
        if rows is not None:
            self.batch.running()  # before the first reset there is nothing to keep in the other rows
        seen = self.role.seen(self.batch.reset(seed, rows))
        return seen, {"day_seed": self.batch.running().day.copy()}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """One slot of every row; named terms of the slot are arrays in the infos."""
        self.batch.running()
        shape = (self.num_envs, *(self.single_action_space.shape or ()))
        values = checked_action(actions, shape, f"{self.role.action_meaning} in every row")
        retail = self.role.retail_eur_per_kwh(self.batch, values)
        done = self.batch.play(self.role.market_action(self.batch, values), retail_eur_per_kwh=retail)
        reward, none = self.role.reward_eur(self.batch, done), np.zeros(self.num_envs, dtype=np.bool_)
        return self.role.seen(done.observation), reward, done.ended, none, self._infos(done)

    def _infos(self, done: MarketBatchStep) -> dict[str, Any]:
        terms = told(self.role, done)
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        infos: dict[str, Any] = {**terms, **{f"_{name}": everywhere for name in terms}}
        if done.ended.any():
            final = final_rows(done.ended, self.role.seen(done.final_observation))
            rows = done.ended.copy()
            infos |= {"final_obs": final, "_final_obs": rows, "final_info": terms, "_final_info": rows}
            infos |= {"day_seed": self.batch.running().day.copy(), "_day_seed": rows}
        return infos


class MarketVectorEnv(_RoleVectorEnv):
    """``gymnasium.make_vec("evcs/Market-v0", num_envs=B)``; arguments as in `evcs_gym.envs.market.env.MarketEnv`."""

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenario | str = DEFAULT_SCENARIO,
        split: str = "train",
        pool_days: int = DEFAULT_POOL_DAYS,
        residual: bool = True,
        reward_shift: bool = False,
        operator: Operator = PRO_RATA,
    ) -> None:
        city = as_scenario(scenario)
        world = load_any_pool(city, split, pool_days)
        batch = MarketBatch(world, num_envs, residual=residual, reward_shift=reward_shift, operator=operator)
        super().__init__(city, batch, Central(batch.world.n_stations, batch.responsive is not None))


class BiddingVectorEnv(_RoleVectorEnv):
    """``gymnasium.make_vec("evcs/Bidding-v0", num_envs=B)``; arguments as in `evcs_gym.envs.market.env.BiddingEnv`."""

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenario | str = DEFAULT_SCENARIO,
        split: str = "train",
        pool_days: int = DEFAULT_POOL_DAYS,
        station: int | str = 0,
        others: Rule = truthful,
        team_frac: float = 0.0,
        residual: bool = True,
        reward_shift: bool = False,
        operator: Operator = PRO_RATA,
    ) -> None:
        city = as_scenario(scenario)
        world = load_any_pool(city, split, pool_days)
        settings: dict[str, Any] = {"team_frac": team_frac, "residual": residual, "reward_shift": reward_shift}
        batch = MarketBatch(world, num_envs, operator=operator, **settings)
        super().__init__(city, batch, bidder(batch.world, station, others, batch.responsive is not None))
