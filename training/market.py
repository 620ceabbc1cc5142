"""Learning in the market: (environment, station) rows, one controller of all stations, or one station among rules.

`MarketVecEnv` trains, `market_policy` plays what was trained in the rollouts that score any policy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from evcs_gym.baselines.policy import Policy
from evcs_gym.baselines.policy_market import MarketPolicy, MarketStage, Predictor
from evcs_gym.baselines.registry import make_rule
from evcs_gym.baselines.score_market import MarketRollout, market_rollout
from evcs_gym.envs.day import Day
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.batch import MarketBatch, MarketBatchStep
from evcs_gym.envs.market.core import MarketAction, MarketOutcome, MarketState, MarketWorld
from evcs_gym.envs.market.observation import action_space, observation_space
from evcs_gym.envs.market.play import scaled_action
from evcs_gym.envs.market.view import look
from evcs_gym.envs.types import BoolArray, FloatArray
from evcs_gym.envs.units import SLOT_H
from evcs_gym.training.config import MarketLearningSpec, Preset
from evcs_gym.training.vec_env import RowVecEnv, SharedPolicy

LEAST_KW: Final = 50.0
"""Storage power below which rewards are not scaled up further, as in observations."""


def learner(world: MarketWorld, spec: MarketLearningSpec) -> int | None:
    """Column of the only station that learns; None where all do.

    Raises:
        ConfigError: the city has no such station.
    """
    if spec.station is None:
        return None
    names = world.stations.name
    if spec.station not in names:
        raise ConfigError(f"market.station must be one of {', '.join(names)}, got {spec.station!r}")
    return names.index(spec.station)


def stations_action(answer: np.ndarray, joint: bool) -> FloatArray:
    """Numbers of a policy as (B, S, 2): a controller of all stations decides on storage alone, asks stand at the
    least."""
    values = np.asarray(answer, dtype=np.float64)
    return np.stack([values, -np.ones_like(values)], axis=-1) if joint else values


def with_others(rule: MarketPolicy, stage: MarketStage, action: MarketAction, station: int) -> MarketAction:
    """The action of one station among those that the rule decides for the others."""
    mixed = rule.decide(stage)
    storage, ask = np.array(mixed.storage_kw), np.array(mixed.ask_eur_per_kwh)
    storage[:, station], ask[:, station] = action.storage_kw[:, station], action.ask_eur_per_kwh[:, station]
    return MarketAction(storage, ask)


class OneStation:
    """A batch of the market in which one station is played and the others follow a rule; the shape of `MarketBatch`."""

    def __init__(self, batch: MarketBatch, station: int, rule: str) -> None:
        self.inner, self.station, self.rule = batch, station, make_rule(rule, "market")
        self.world = batch.world

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
        """Observation of the present slot, (B, 1, F)."""
        return self._own(self.inner.observe())

    def reset(self, seed: int | list[int | None] | None = None, rows: BoolArray | None = None) -> np.ndarray:
        """New days; observation (B, 1, F)."""
        return self._own(self.inner.reset(seed, rows))

    def step(self, action: FloatArray) -> MarketBatchStep:
        """One slot; action (B, 1, 2)."""
        everyone = np.repeat(action, self.world.n_stations, axis=1)
        wanted = self.inner.market_action(everyone)
        stage = MarketStage(self.world, self.running())
        result = self.inner.play(with_others(self.rule, stage, wanted, self.station))
        return replace(
            result,
            observation=self._own(result.observation),
            final_observation=self._own(result.final_observation),
            reward_eur=self._own(result.reward_eur),
        )

    def _own(self, values: np.ndarray) -> np.ndarray:
        return values[:, self.station, None]


class MarketVecEnv(RowVecEnv):
    """SB3 vector environment of the market.

    Args:
        world: days to draw from, see `evcs_gym.envs.market.pool.load_market_pool`. n_envs: number of environments.
        rows: "stations" (rows are (environment, station), or one station's where the spec names one) or
            "environments" (one controller of all storages with the profit of all stations; asks stand at the least).
        spec: whose profit is learned, and by whom. reward_shift: profits less those of idle storage at the tariffs.
        reward_scale_per_eur: factor on the reward, fixed for the run.

    Raises:
        ConfigError: a station that the city has not, a rule that does not exist, and as `RowVecEnv`.

    Every info holds ``profit_eur`` of the slot, of the row's station or of all stations.
    """

    def __init__(
        self,
        world: MarketWorld,
        n_envs: int,
        rows: str,
        spec: MarketLearningSpec,
        reward_shift: bool = True,
        reward_scale_per_eur: float = 1.0,
    ) -> None:
        joint, station = rows == "environments", learner(world, spec)
        team = 0.0 if joint else spec.team_frac  # the sum of own profits is the team's
        every = MarketBatch(world, n_envs, team_frac=team, reward_shift=reward_shift, residual=spec.residual)
        batch = every if station is None else OneStation(every, station, spec.others)
        n_agents = world.n_stations if station is None else 1
        shapes = (observation_space(n_agents), action_space(n_agents)) if joint else (observation_space(None), _TWO)
        super().__init__(batch, n_envs, not joint, *shapes, n_agents, reward_scale_per_eur)
        self.station, self.joint = station, joint
        if spec.by_size and not joint:
            size_kw = np.maximum(world.assets.storage_kw, LEAST_KW)
            own_kw = size_kw if station is None else size_kw[station : station + 1]
            self.reward_scale = np.tile(reward_scale_per_eur * size_kw.mean() / own_kw, n_envs)

    def _to_batch(self, actions: FloatArray) -> FloatArray:
        rows = actions.reshape(self.n_envs, self.n_agents, *(() if self.joint else (2,)))
        return stations_action(rows, self.joint)

    def _step_terms(self, outcome: MarketOutcome) -> Mapping[str, np.ndarray]:
        return day_terms(outcome)

    def _infos(self, outcome: MarketOutcome) -> list[dict[str, Any]]:
        profit = outcome.profit_eur if self.station is None else outcome.profit_eur[:, self.station, None]
        return [{"profit_eur": value} for value in self._row_sum(profit).tolist()]

    def restored(self) -> None:
        """The stations' own plans belong to the slot that was put in."""
        self.batch.observe()  # type: ignore[attr-defined]


_TWO: Final = action_space(2)


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


# --- playing what was trained ---------------------------------------------------------------------------------


@dataclass
class _OneAmongRules:
    """A trained station among stations that follow a rule."""

    own: Predictor
    rule: MarketPolicy
    station: int

    def decide(self, stage: MarketStage) -> MarketAction:
        """See `MarketPolicy`."""
        return with_others(self.rule, stage, self.own.decide(stage), self.station)


def market_policy(model: Policy, world: MarketWorld, preset: Preset) -> MarketPolicy:
    """What was trained with a preset, as a policy of all stations."""
    spec, joint = preset.market_spec, preset.rows == "environments"

    def observe(stage: MarketStage) -> np.ndarray:
        return look(stage.world, stage.state)[1]

    def act(stage: MarketStage, answer: np.ndarray) -> MarketAction:
        numbers = stations_action(np.clip(answer, -1.0, 1.0), joint)
        return scaled_action(stage.world, stage.state, stage.plan(), numbers, spec.residual)

    station = learner(world, spec)
    own = Predictor(model if joint else SharedPolicy(model), observe, act)
    return own if station is None else _OneAmongRules(own, make_rule(spec.others, "market"), station)


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
