"""Try to break the proven bound of the market: every rule, random policies and shaken exact plans on many days."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evcs_gym.baselines.market import solve_programme
from evcs_gym.baselines.policy_market import MarketPolicy, MarketStage, PlanPolicy
from evcs_gym.baselines.problems.market import problem_of
from evcs_gym.baselines.registry import make_rule, rules_of
from evcs_gym.baselines.score_market import market_rollout
from evcs_gym.envs import Scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.core import MarketAction, MarketWorld, ask_band
from evcs_gym.envs.market.operators import NO_OPERATOR, PRO_RATA
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.types import FloatArray

TIME_LIMIT_S = 120.0
DAYS_AT_ONCE = 50
NOISE_FRAC = (0.0, 0.001, 0.03, 0.3, 1.0)
"""Shares of their power by which exact plans are shaken."""


@dataclass(frozen=True)
class Margin:
    """How far a policy stayed above the bound.

    n_days played. cost_eur, bound_eur: means. least_eur: least cost less bound of a day, on which seed. n_below: days
    below the bound, none if it is true. n_capped_slots: of all days.
    """

    policy: str
    operator: str
    n_days: int
    cost_eur: float
    bound_eur: float
    least_eur: float
    least_on_seed: int
    n_below: int
    n_capped_slots: int

    def as_dict(self) -> dict[str, Any]:
        """The row as plain numbers and strings."""
        return asdict(self)


class RandomPolicy:
    """A plan (D, T, S), or no storage power, with noise: ``noise_frac`` of the storages' power evenly either way, a
    quarter of all wishes at an end of it, asks anywhere in the band, a quarter at each end."""

    def __init__(self, storage_kw: FloatArray, noise_frac: float, seed: int) -> None:
        self.plan, self.noise_frac, self.rng = PlanPolicy(storage_kw), noise_frac, np.random.default_rng(seed)

    def decide(self, stage: MarketStage) -> MarketAction:
        """See `MarketPolicy`."""
        wish = self.plan.decide(stage).storage_kw
        draw = self.rng.uniform(-1.0, 1.0, wish.shape)
        draw = np.where(self.rng.uniform(size=wish.shape) < 0.25, np.sign(draw), draw)
        low, high = (edge[:, None] for edge in ask_band(stage.world, stage.state))
        share = np.clip(self.rng.uniform(-0.5, 1.5, wish.shape), 0.0, 1.0)
        ask = np.clip(low + share * (high - low), low, high)
        return MarketAction(wish + self.noise_frac * stage.world.assets.storage_kw * draw, ask)


def contenders(world: MarketWorld, storage_kw: FloatArray, n_random: int, seed: int) -> dict[str, MarketPolicy]:
    """Every rule, ``n_random`` random policies, and the exact plans (D, T, S), shaken less and more."""
    out: dict[str, MarketPolicy] = {name: make_rule(name, "market") for name in rules_of("market")}
    for k in range(n_random):
        out[f"random_{k}"] = RandomPolicy(np.zeros(world.days.pv_kw.shape), 1.0, seed + k)
    for k, noise in enumerate(NOISE_FRAC):
        out[f"optimum_shaken_{noise:g}"] = RandomPolicy(storage_kw, noise, seed + n_random + k)
    return out


def bound_margins(
    scenario: Scenario,
    n_days: int,
    split: str = "test",
    n_random: int = 3,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[Margin]:
    """Play every contender on the days 0 .. n_days - 1, with the operator and without, and compare with the bounds.

    Args:
        progress: called with (days done, days in all).

    Raises:
        ConfigError: no day, a negative number of random policies, a scenario without stations.
    """
    if n_days < 1 or n_random < 0:
        raise ConfigError(f"bounds: at least one day and no negative number of policies, got {n_days} and {n_random}")
    seen: dict[tuple[str, str], list[tuple[FloatArray, FloatArray, int]]] = {}
    for first in range(0, n_days, DAYS_AT_ONCE):
        seeds = range(first, min(first + DAYS_AT_ONCE, n_days))
        days = scenario.days(seeds, split)
        answers = [solve_programme(problem_of(scenario, day), TIME_LIMIT_S) for day in days]
        world, bound = market_world(scenario, days), np.array([answer.bound_eur for answer in answers])
        plans = np.stack([answer.plan.storage_kw for answer in answers])
        for name, policy in contenders(world, plans, n_random, first).items():
            for label, operator in (("pro_rata", PRO_RATA), ("none", NO_OPERATOR)):
                played = market_rollout(world, policy, operator)
                row = (played.cost_eur, bound, int(played.n_capped_slots.sum()))
                seen.setdefault((name, label), []).append(row)
        progress(seeds.stop, n_days)
    return [_margin(name, label, rows) for (name, label), rows in seen.items()]


def _margin(policy: str, operator: str, rows: Sequence[tuple[FloatArray, FloatArray, int]]) -> Margin:
    cost, bound = (np.concatenate([row[k] for row in rows]) for k in (0, 1))
    above = cost - bound
    return Margin(
        policy=policy,
        operator=operator,
        n_days=len(cost),
        cost_eur=float(cost.mean()),
        bound_eur=float(bound.mean()),
        least_eur=float(above.min()),
        least_on_seed=int(above.argmin()),
        n_below=int((above < 0.0).sum()),
        n_capped_slots=sum(row[2] for row in rows),
    )
