"""What training needs to know of a problem: one record each; everything else in this package is common to all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from evcs_gym.baselines.policy import Policy
from evcs_gym.baselines.policy_fast import MaskedPolicy, MaskedPredictor
from evcs_gym.baselines.policy_market import MarketPolicy
from evcs_gym.baselines.reference import References, references
from evcs_gym.baselines.score import rollout
from evcs_gym.baselines.score_responsive import ResponsivePolicy
from evcs_gym.envs.day import Day
from evcs_gym.envs.fleet import fast, normal
from evcs_gym.envs.fleet.fast_pool import load_fast_pool
from evcs_gym.envs.fleet.pool import load_pool
from evcs_gym.envs.market.core import MarketWorld
from evcs_gym.envs.market.pool import RESPONSIVE_POOL, load_market_pool
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.market.responsive import ResponsiveWorld, responsive_world
from evcs_gym.envs.market.roles import Bidder, Central
from evcs_gym.envs.scenario import Scenario
from evcs_gym.envs.types import FloatArray
from evcs_gym.training.config import Preset, ProblemName
from evcs_gym.training.fast_policy import StationPolicy
from evcs_gym.training.fast_vec_env import FastChargingVecEnv
from evcs_gym.training.market import (
    LearnedPrices,
    MarketVecEnv,
    market_policy,
    refuse_answering_drivers,
    responsive_shown,
    role_of,
    traffic_facts,
    watched_rollout,
)
from evcs_gym.training.vec_env import NormalChargingVecEnv, Rows, RowVecEnv, SharedPolicy


@dataclass(frozen=True, eq=False)
class Judgement:
    """A policy on D days: cost_eur (D,), means over the days of what TensorBoard shows beside it, and what the best
    policy is chosen by [EUR/day] where that is not the captured share."""

    cost_eur: FloatArray
    shown: Mapping[str, float]
    merit: float | None = None


def _gaussian_network(preset: Preset) -> tuple[Any, dict[str, Any]]:
    hidden = list(preset.ppo.hidden_units)
    arguments = {"net_arch": {"pi": hidden, "vf": hidden}, "activation_fn": nn.Tanh, "log_std_init": 0.0}
    return "MlpPolicy", arguments


@dataclass(frozen=True)
class Problem:
    """One problem, as training sees it.

    pool: days to learn on, prepared once, as (scenario, split, number of days) -> world. world: of given days.
    env: vector environment over the rows of a world. judge: plays every day of a world once, deterministically.
    references: naive cost and proven bound of days, None where they are not defined. policy: a model as rollouts take
    it. facts: what TensorBoard shows of days whatever the policy. curve: the numbers of progress.csv. algorithm: PPO,
    or that of masked choices. network: policy of the algorithm with its arguments, as the preset has them.
    """

    pool: Callable[[Scenario, str, int], Any]
    world: Callable[[Scenario, Sequence[Day]], Any]
    env: Callable[[Any, int, Preset], RowVecEnv]
    judge: Callable[[Any, Any, Preset], Judgement]
    references: Callable[[Scenario, str, Sequence[int]], References] | None
    policy: Callable[[Any, Any, Preset], Any]
    facts: Callable[[Sequence[Day]], Mapping[str, float]] = lambda _days: {}
    curve: tuple[str, ...] = ("captured", "cost_eur", "n_violations")
    algorithm: Callable[..., OnPolicyAlgorithm] = PPO
    network: Callable[[Preset], tuple[Any, dict[str, Any]]] = _gaussian_network


def _normal_env(world: normal.World, n_envs: int, preset: Preset) -> NormalChargingVecEnv:
    rows: Rows = "buses" if preset.rows == "buses" else "environments"
    return NormalChargingVecEnv(world, n_envs, rows, preset.reward_shift, preset.reward_scale_per_eur)


def _normal_judge(world: normal.World, policy: Policy, preset: Preset) -> Judgement:
    result = rollout(world, policy)
    names = ("n_violations", "gap_eur", "energy_eur", "voltage_eur")
    return Judgement(result.cost_eur, {name: float(np.mean(getattr(result, name))) for name in names})


def _normal_policy(model: Policy, _world: normal.World, preset: Preset) -> Policy:
    return SharedPolicy(model) if preset.rows == "buses" else model


def _market_pool(scenario: Scenario, split: str, n_days: int) -> MarketWorld:
    refuse_answering_drivers(scenario)
    return load_market_pool(scenario, split, n_days)


def _market_world(scenario: Scenario, days: Sequence[Day]) -> MarketWorld:
    refuse_answering_drivers(scenario)
    return market_world(scenario, days)


def _responsive_pool(scenario: Scenario, split: str, n_days: int) -> ResponsiveWorld:
    scenario.responsive_demand  # noqa: B018 - refuses, before any day is made, a scenario without
    return RESPONSIVE_POOL.load(scenario, split, n_days)


def _responsive_judge(world: ResponsiveWorld, policy: ResponsivePolicy, preset: Preset) -> Judgement:
    """Who learns is judged by what it learns: profit of all stations, of one, or what the community gains."""
    result, shown = responsive_shown(world, policy)
    role = role_of(world.market, preset)
    merit = shown["profit_eur"]
    if isinstance(role, Bidder):
        merit = float(result.market.profit_eur[:, role.station].mean())
        shown = {**shown, "own_profit_eur": merit}
    elif isinstance(role, Central):
        merit = shown["cooperative_eur"]
    return Judgement(result.market.cost_eur, shown, merit)


def _responsive_policy(model: Policy, world: MarketWorld, preset: Preset) -> ResponsivePolicy:
    return LearnedPrices(market_policy(model, world, preset))


def _market_env(world: MarketWorld | ResponsiveWorld, n_envs: int, preset: Preset) -> MarketVecEnv:
    return MarketVecEnv(world, n_envs, preset)


def _market_judge(world: MarketWorld, policy: MarketPolicy, preset: Preset) -> Judgement:
    result, shown = watched_rollout(world, policy)
    role = role_of(world, preset)
    if not isinstance(role, Bidder):
        return Judgement(result.cost_eur, shown)
    own_eur = float(result.profit_eur[:, role.station].mean())  # one station does not learn what all pay
    return Judgement(result.cost_eur, {**shown, "own_profit_eur": own_eur}, merit=own_eur)


def _market_references(scenario: Scenario, split: str, seeds: Sequence[int]) -> References:
    refuse_answering_drivers(scenario)
    return references(scenario, split, seeds, problem="market")


def _fast_env(world: fast.FastWorld, n_envs: int, preset: Preset) -> FastChargingVecEnv:
    return FastChargingVecEnv(world, n_envs, preset.reward_scale_per_eur, preset.reward_shift)


def _fast_judge(world: fast.FastWorld, policy: MaskedPredictor, _preset: Preset) -> Judgement:
    result = rollout(world, policy)
    names = ("n_violations", "n_stranded", "unabsorbed_kwh", "absorb_eur", "energy_eur", "stranded_eur", "voltage_eur")
    return Judgement(result.cost_eur, {name: float(np.mean(getattr(result, name))) for name in names})


def _fast_references(scenario: Scenario, split: str, seeds: Sequence[int]) -> References:
    return references(scenario, split, seeds, problem="fast_charging")


def _fast_network(preset: Preset) -> tuple[Any, dict[str, Any]]:
    return StationPolicy, {"hidden_units": preset.ppo.hidden_units}


def _fast_policy(model: MaskedPolicy, _world: fast.FastWorld, _preset: Preset) -> MaskedPredictor:
    return MaskedPredictor(model)


PROBLEMS: dict[ProblemName, Problem] = {
    "normal_charging": Problem(load_pool, normal.make_world, _normal_env, _normal_judge, references, _normal_policy),
    "market": Problem(
        _market_pool, _market_world, _market_env, _market_judge, _market_references, market_policy, traffic_facts
    ),
    "market_responsive": Problem(
        _responsive_pool,
        responsive_world,
        _market_env,
        _responsive_judge,
        None,
        _responsive_policy,
        curve=("profit_eur", "travel_h", "served_kwh", "cooperative_eur", "n_violations"),
    ),
    "fast_charging": Problem(
        load_fast_pool,
        fast.make_fast_world,
        _fast_env,
        _fast_judge,
        _fast_references,
        _fast_policy,
        algorithm=MaskablePPO,
        network=_fast_network,
    ),
}
