"""Play a policy on days, all at once, and record what it cost in true EUR."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from evcs_gym.baselines.policy import Policy
from evcs_gym.baselines.policy_fast import FastPolicy
from evcs_gym.baselines.policy_market import MarketPolicy
from evcs_gym.baselines.registry import played
from evcs_gym.baselines.score_fast import FastRollout, fast_ms_per_decision, fast_rollout
from evcs_gym.baselines.score_market import MarketRollout, market_ms_per_decision, market_rollout
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.fleet import fast, normal
from evcs_gym.envs.market.core import MarketWorld
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray, IntArray
from evcs_gym.envs.units import MS_PER_S, N_SLOTS

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

TIMED_DECISIONS = 48
"""Decisions that are timed, one environment at a time, after the batch has warmed the policy up."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """A policy on D days. cost_eur = gap_eur + energy_eur + voltage_eur, each (D,).

    violation_pu (D,), n_violations (D,): voltages outside the effective limits, summed over slots, buses and phases.
    n_collapsed (D,): slots without a power flow. infeasible_kwh (D,): what stays were too short for; unmet_kwh (D,):
    what could have been charged and was not.
    bus_power_kw (D, T, C). voltage_pu (D, T, N, P) complex, None unless asked for.
    """

    cost_eur: FloatArray
    gap_eur: FloatArray
    energy_eur: FloatArray
    voltage_eur: FloatArray
    violation_pu: FloatArray
    n_violations: IntArray
    n_collapsed: IntArray
    infeasible_kwh: FloatArray
    unmet_kwh: FloatArray
    bus_power_kw: FloatArray
    voltage_pu: ComplexArray | None = None


class _Stage:
    """Days in play: what a rule attaches to."""

    def __init__(self, world: normal.World, day: IntArray) -> None:
        self.world = world
        self.state = normal.initial_state(world, day)

    def view(self) -> normal.View:
        return normal.view(self.world, self.state)


def _attach(policy: Policy, stage: _Stage) -> None:
    attach: Any = getattr(policy, "attach", None)
    if attach is not None:
        attach(stage)


def _checked(action: np.ndarray, shape: tuple[int, ...]) -> FloatArray:
    values = np.asarray(action, dtype=np.float64)
    if values.shape != shape or not np.isfinite(values).all():
        raise DataError(f"the policy must give finite actions of shape {shape}, got shape {values.shape}")
    return np.clip(values, -1.0, 1.0)  # as Stable-Baselines3 does with a Gaussian policy


def world_of(scenario: "Scenario", days: "Sequence[Day]", problem: str) -> Any:
    """The days as the world of a problem, for `rollout`.

    Raises:
        ConfigError: no policies play in that problem, or the scenario has no such world.
    """
    worlds: dict[str, Callable[[Scenario, Sequence[Day]], Any]] = {
        "normal_charging": normal.make_world,
        "market": market_world,
        "fast_charging": fast.make_fast_world,
    }
    return worlds[played(problem)](scenario, days)


@overload
def rollout(world: MarketWorld, policy: MarketPolicy, keep_voltage: bool = ...) -> MarketRollout: ...


@overload
def rollout(world: fast.FastWorld, policy: FastPolicy, keep_voltage: bool = ...) -> FastRollout: ...


@overload
def rollout(world: normal.World, policy: Policy, keep_voltage: bool = ...) -> Rollout: ...


def rollout(
    world: normal.World | MarketWorld | fast.FastWorld,
    policy: "AnyPolicy",
    keep_voltage: bool = False,
) -> Rollout | MarketRollout | FastRollout:
    """Play every day of the world once, deterministically; all kinds of result have ``cost_eur`` (D,).

    Args:
        keep_voltage: voltages too; in the market the outcomes of all slots, which hold them. Of fast charging its
            `replay` gives them.

    Raises:
        ConfigError: a policy of another world.
        DataError: the policy gives actions of the wrong shape or NaN.
    """
    if isinstance(world, MarketWorld):
        return market_rollout(world, _of_the_market(policy), keep_outcomes=keep_voltage)
    if isinstance(world, fast.FastWorld):
        return fast_rollout(world, _of_fast_charging(policy))
    return _normal_rollout(world, _of_normal_charging(policy), keep_voltage)


AnyPolicy = Policy | MarketPolicy | FastPolicy


def _of_fast_charging(policy: AnyPolicy) -> FastPolicy:
    if not isinstance(policy, FastPolicy):
        raise ConfigError(f"a policy of fast charging must have send(stage), got {type(policy).__name__}")
    return policy


def _of_the_market(policy: AnyPolicy) -> MarketPolicy:
    if not isinstance(policy, MarketPolicy):
        raise ConfigError(f"a policy of the market must have decide(stage), got {type(policy).__name__}")
    return policy


def _of_normal_charging(policy: AnyPolicy) -> Policy:
    if not isinstance(policy, Policy):
        raise ConfigError(f"a policy of normal charging must have predict(observation), got {type(policy).__name__}")
    return policy


def _normal_rollout(world: normal.World, policy: Policy, keep_voltage: bool) -> Rollout:
    stage = _Stage(world, np.arange(world.n_days))
    _attach(policy, stage)
    start = np.ones(world.n_days, dtype=np.bool_)
    recurrent: tuple[np.ndarray, ...] | None = None
    outcomes = []
    for slot in range(N_SLOTS):
        observation = normal.observe(world, stage.state)
        action, recurrent = policy.predict(observation, recurrent, start & (slot == 0), deterministic=True)
        power = normal.dispatch(world, stage.state, _checked(action, (world.n_days, world.n_buses)))
        stage.state, outcome = normal.step(world, stage.state, power)
        outcomes.append(outcome)
    return _collect(world, outcomes, stage.state.remaining_kwh.sum(axis=1), keep_voltage)


def _collect(world: normal.World, outcomes: list[normal.Outcome], unmet_kwh: FloatArray, keep_voltage: bool) -> Rollout:
    def total(name: str) -> Any:
        return sum(getattr(outcome, name) for outcome in outcomes)

    terms = {name: total(name).sum(axis=1) for name in ("gap_eur", "energy_eur", "voltage_eur")}
    collapsed: BoolArray = np.stack([~outcome.converged for outcome in outcomes])
    return Rollout(
        cost_eur=terms["gap_eur"] + terms["energy_eur"] + terms["voltage_eur"],
        **terms,
        violation_pu=total("violation_pu"),
        n_violations=total("n_violations"),
        n_collapsed=collapsed.sum(axis=0),
        infeasible_kwh=world.infeasible_kwh.sum(axis=1),
        unmet_kwh=unmet_kwh,
        bus_power_kw=np.stack([outcome.bus_power_kw for outcome in outcomes], axis=1),
        voltage_pu=np.stack([outcome.voltage_pu for outcome in outcomes], axis=1) if keep_voltage else None,
    )


def ms_per_decision(world: normal.World | MarketWorld | fast.FastWorld, policy: AnyPolicy) -> float:
    """Median milliseconds of one decision of one environment: its view and the policy, not the environment's step.

    Raises:
        ConfigError: a policy of another world. DataError: actions of the wrong shape or NaN.
    """
    if isinstance(world, MarketWorld):
        return market_ms_per_decision(world, _of_the_market(policy))
    if isinstance(world, fast.FastWorld):
        return fast_ms_per_decision(world, _of_fast_charging(policy))
    policy = _of_normal_charging(policy)
    stage = _Stage(world, np.zeros(1, dtype=np.int64))
    _attach(policy, stage)
    seconds = []
    recurrent: tuple[np.ndarray, ...] | None = None
    for slot in range(TIMED_DECISIONS):
        observation = normal.observe(world, stage.state)
        begin = time.perf_counter()
        action, recurrent = policy.predict(observation, recurrent, np.array([slot == 0]), deterministic=True)
        seconds.append(time.perf_counter() - begin)
        power = normal.dispatch(world, stage.state, _checked(action, (1, world.n_buses)))
        stage.state, _ = normal.step(world, stage.state, power)
    return float(np.median(seconds)) * MS_PER_S
