"""Learning in the market: (environment, station) rows, one controller of all stations, or one station among rules.

`MarketVecEnv` trains, `market_policy` plays what was trained in the rollouts that score any policy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from evcs_gym.baselines.policy import Policy
from evcs_gym.baselines.policy_market import MarketPolicy, MarketStage
from evcs_gym.baselines.registry import make_rule
from evcs_gym.baselines.score_market import MarketRollout, market_rollout
from evcs_gym.baselines.score_responsive import (
    ResponsivePolicy,
    ResponsiveRollout,
    ResponsiveStage,
    responsive_rollout,
)
from evcs_gym.envs.day import Day
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.batch import MarketBatch, MarketBatchStep
from evcs_gym.envs.market.core import MarketAction, MarketOutcome, MarketState, MarketWorld
from evcs_gym.envs.market.observation import action_space, observation_space
from evcs_gym.envs.market.responsive import Drivers, ResponsiveState, ResponsiveWorld
from evcs_gym.envs.market.roles import Bidder, Central, Role, bidder
from evcs_gym.envs.scenario import Scenario
from evcs_gym.envs.types import BoolArray, FloatArray
from evcs_gym.envs.units import SLOT_H
from evcs_gym.training.config import Preset
from evcs_gym.training.vec_env import RowVecEnv, SharedPolicy

LEAST_KW: Final = 50.0
"""Storage power below which rewards are not scaled up further, as in observations."""


def refuse_answering_drivers(scenario: Scenario) -> None:
    """What is scored against the bound is played on the day's own traffic.

    Raises:
        ConfigError: a scenario with responsive demand.
    """
    if scenario.responsive_spec is not None:
        raise ConfigError(
            f"{scenario.name}: responsive_demand must be off where policies of the market are trained or compared "
            "with the bound (it and captured share are defined without), got a scenario with it; leave it out, or "
            "train with problem: market_responsive and compare by profit, travel time and served energy"
        )


def role_of(world: MarketWorld, preset: Preset) -> Role | None:
    """Who learns: a controller of all storages, one station among others that play a rule; None where all stations do.

    Raises:
        ConfigError: the city has no such station; there is no such rule.
    """
    spec, responsive = preset.market_spec, preset.problem == "market_responsive"
    if preset.rows == "environments":
        return Central(world.n_stations, responsive)
    if spec.station is None:
        return None
    return bidder(world, spec.station, make_rule(spec.others, "market").rule, responsive)


class RoleBatch:
    """A batch of the market that is played by one role; the shape of `MarketBatch` with one agent."""

    def __init__(self, batch: MarketBatch, role: Role) -> None:
        self.inner, self.role, self.world = batch, role, batch.world

    @property
    def rng(self) -> np.random.Generator:
        """The generator that draws days."""
        return self.inner.rng

    @rng.setter
    def rng(self, rng: np.random.Generator) -> None:
        self.inner.rng = rng

    @property
    def state(self) -> MarketState | None:
        """The present slot."""
        return self.inner.state

    @state.setter
    def state(self, state: MarketState) -> None:
        self.inner.state = state

    def running(self) -> MarketState:
        """The present state; refused before the first reset."""
        return self.inner.running()

    def observe(self) -> np.ndarray:
        """What the role sees of the present slot, (B, ...)."""
        return self.role.seen(self.inner.observe())

    def reset(self, seed: int | list[int | None] | None = None, rows: BoolArray | None = None) -> np.ndarray:
        """New days; what the role sees, (B, ...)."""
        return self.role.seen(self.inner.reset(seed, rows))

    def step(self, action: FloatArray) -> MarketBatchStep:
        """One slot; actions of the role, (B, ...), its reward (B, 1)."""
        retail = self.role.retail_eur_per_kwh(self.inner, action)
        result = self.inner.play(self.role.market_action(self.inner, action), retail_eur_per_kwh=retail)
        return replace(
            result,
            observation=self.role.seen(result.observation),
            final_observation=self.role.seen(result.final_observation),
            reward_eur=self.role.reward_eur(self.inner, result)[:, None],
        )


class MarketVecEnv(RowVecEnv):
    """SB3 vector environment of the market.

    Args:
        days: to draw from, see `evcs_gym.envs.market.pool.load_any_pool`. n_envs: number of environments.
        preset: whose profit is learned and by whom (`role_of`), residual, scale and shift of the reward. Rows are
            (environment, station) where all stations share a policy, else environments.

    Raises:
        ConfigError: a station that the city has not, a rule that does not exist, and as `RowVecEnv`.

    Every info holds ``profit_eur`` of the slot: of the row's station, of the one that learns, or of all.
    """

    def __init__(self, days: MarketWorld | ResponsiveWorld, n_envs: int, preset: Preset) -> None:
        world = days.market if isinstance(days, ResponsiveWorld) else days
        spec, role, scale = preset.market_spec, role_of(world, preset), preset.reward_scale_per_eur
        shift = preset.reward_shift
        every = MarketBatch(days, n_envs, team_frac=spec.team_frac, reward_shift=shift, residual=spec.residual)
        self.every = every
        batch = every if role is None else RoleBatch(every, role)
        shapes = (observation_space(None), action_space(every.n_numbers)) if role is None else role.spaces
        super().__init__(batch, n_envs, role is None, *shapes, world.n_stations if role is None else 1, scale)
        self.stations = slice(role.station, role.station + 1) if isinstance(role, Bidder) else slice(None)
        if spec.by_size and not isinstance(role, Central):
            size_kw = np.maximum(world.assets.storage_kw, LEAST_KW)
            self.reward_scale = np.tile(scale * size_kw.mean() / size_kw[self.stations], n_envs)

    def remembered(self) -> MarketState | ResponsiveState:
        """See `RowVecEnv`; what drivers did in the slot before is part of it."""
        return self.every.remembered()

    def remember(self, memory: MarketState | ResponsiveState) -> None:
        """See `RowVecEnv`."""
        self.every.remember(memory)

    def _to_batch(self, actions: FloatArray) -> FloatArray:
        return actions.reshape(self.n_envs, self.n_agents, -1) if self.shared else actions

    def _step_terms(self, done: MarketBatchStep) -> Mapping[str, np.ndarray]:
        return {**day_terms(done.outcome), **({} if done.drivers is None else driver_day_terms(done.drivers))}

    def _infos(self, outcome: MarketOutcome) -> list[dict[str, Any]]:
        profit = outcome.profit_eur[:, self.stations]
        return [{"profit_eur": value} for value in self._row_sum(profit).tolist()]


def day_terms(outcome: MarketOutcome) -> dict[str, np.ndarray]:
    """What adds up over a day, one number per environment (B,)."""
    return {
        "cost_eur": outcome.community_eur,
        "profit_eur": outcome.profit_eur.sum(axis=1),
        "traded_kwh": SLOT_H * outcome.volume_kw,
        "curtailed_kwh": SLOT_H * outcome.curtailed_kw.sum(axis=1),
        "unserved_kwh": SLOT_H * outcome.unserved_kw.sum(axis=1),
        "n_capped_slots": np.isfinite(outcome.cap_kw).any(axis=1).astype(np.float64),
    }


def driver_day_terms(drivers: Drivers) -> dict[str, np.ndarray]:
    """The same of drivers who respond."""
    return {"travel_eur": drivers.travel_eur, "outside_veh": SLOT_H * drivers.outside_veh_per_h}


# --- playing what was trained ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class LearnedPolicy:
    """What was trained, deterministic, as a policy of all stations; role: who it is, None where all stations share
    it."""

    policy: Policy
    role: Role | None
    residual: bool

    def decide(self, stage: MarketStage) -> MarketAction:
        """See `MarketPolicy`."""
        return self.answer(stage.world, stage.state)[0]

    def answer(
        self, world: MarketWorld | ResponsiveWorld, state: MarketState
    ) -> tuple[MarketAction, FloatArray | None]:
        """Wishes and asks of all stations in the state's slot, and retail prices where drivers respond."""
        batch = MarketBatch(world, len(state.slot), residual=self.residual)
        batch.state = state
        observation = batch.observe()
        seen = observation if self.role is None else self.role.seen(observation)
        numbers = np.clip(self.policy.predict(seen, deterministic=True)[0], -1.0, 1.0).astype(np.float64)
        if self.role is None:
            return batch.market_action(numbers), batch.retail_eur_per_kwh(numbers)
        return self.role.market_action(batch, numbers), self.role.retail_eur_per_kwh(batch, numbers)


@dataclass(frozen=True)
class LearnedPrices:
    """What was trained where drivers respond: a `ResponsivePolicy`."""

    learned: LearnedPolicy

    def decide(self, stage: ResponsiveStage) -> tuple[MarketAction, FloatArray]:
        """See `ResponsivePolicy`."""
        action, retail = self.learned.answer(stage.world, stage.state)
        if retail is None:  # pragma: no cover - the world of a `ResponsiveStage` has prices
            raise ConfigError("a policy for drivers who respond must set retail prices")
        return action, retail


def market_policy(model: Policy, world: MarketWorld, preset: Preset) -> LearnedPolicy:
    """What was trained with a preset, as a policy of all stations."""
    role = role_of(world, preset)
    return LearnedPolicy(SharedPolicy(model) if role is None else model, role, preset.market_spec.residual)


def responsive_shown(world: ResponsiveWorld, policy: ResponsivePolicy) -> tuple[ResponsiveRollout, dict[str, float]]:
    """Every day of the world once, with the means that TensorBoard shows."""
    result = responsive_rollout(world, policy)
    shown = {
        "n_violations": float(result.market.n_violations.mean()),
        "profit_eur": float(result.market.profit_eur.sum(axis=1).mean()),
        "travel_h": float(result.travel_h.mean()),
        "served_kwh": float(result.served_kwh.sum(axis=1).mean()),
        "outside_veh": float(result.outside_veh.mean()),
        "cooperative_eur": float(result.cooperative_eur.mean()),
        "retail_eur_per_kwh": float(result.retail_eur_per_kwh.mean()),
        "lowest_voltage_pu": float(result.market.lowest_voltage_pu.min()),
        "n_capped_slots": float(result.market.n_capped_slots.mean()),
    }
    return result, shown


@dataclass
class Watched:
    """A policy whose asks are kept beside those that would cover the stations' costs; lists of (B, S), a slot each."""

    policy: MarketPolicy
    truthful_eur_per_kwh: list[FloatArray]

    def decide(self, stage: MarketStage) -> MarketAction:
        """See `MarketPolicy`."""
        self.truthful_eur_per_kwh.append(np.array(stage.plan().ask_eur_per_kwh))
        return self.policy.decide(stage)


def watched_rollout(world: MarketWorld, policy: MarketPolicy) -> tuple[MarketRollout, dict[str, float]]:
    """Every day of the world once, with the means that TensorBoard shows.

    price_eur_per_kwh: of what was traded, 0 without trade. markup_eur_per_kwh: ask less what a sold kWh costs the
    seller under its own plan, over what was sold. lowest_voltage_pu: of all days.
    """
    watched = Watched(policy, [])
    result = market_rollout(world, watched, keep_outcomes=True)
    outcomes = result.outcomes or ()
    volume_kw = np.stack([o.volume_kw for o in outcomes])
    price = np.stack([o.price_eur_per_kwh for o in outcomes])
    sold_kw = np.maximum(np.stack([o.accepted_kw for o in outcomes]), 0.0)
    over = np.stack([o.ask_eur_per_kwh for o in outcomes]) - np.stack(watched.truthful_eur_per_kwh)
    shown = {
        "n_violations": float(result.n_violations.mean()),
        "profit_eur": float(result.profit_eur.sum(axis=1).mean()),
        "price_eur_per_kwh": _weighted(price, volume_kw),
        "volume_kwh": float(result.traded_kwh.mean()),
        "markup_eur_per_kwh": _weighted(over, sold_kw),
        "lowest_voltage_pu": float(result.lowest_voltage_pu.min()),
        "curtailed_kwh": float(result.curtailed_kwh.mean()),
        "n_capped_slots": float(result.n_capped_slots.mean()),
        "unserved_kwh": float(result.unserved_kwh.mean()),
    }
    return result, shown


def _weighted(values: FloatArray, weight: FloatArray) -> float:
    total = float(weight.sum())
    return float((values * weight).sum()) / total if total > 0.0 else 0.0


def traffic_facts(days: Sequence[Day]) -> dict[str, float]:
    """What TensorBoard shows of days whatever the policy: the largest relative gap of their traffic equilibria."""
    gaps = [float(day.traffic.relative_gap.max()) for day in days if day.traffic is not None]
    return {"traffic_gap": max(gaps)} if gaps else {}
