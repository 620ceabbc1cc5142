"""Between a policy's numbers and the market's step: actions in [-1, 1], and what a slot is worth to whom."""

from collections.abc import Callable

import numpy as np

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.core import MarketAction, MarketOutcome, MarketState, MarketWorld, ask_band
from evcs_gym.envs.market.view import MarketView, OwnPlan
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import SLOT_H

Rule = Callable[[MarketView, OwnPlan], MarketAction]
"""What decides for stations that do not learn: what may be known and their own plans to wishes and asks, (B, S)."""


def truthful(view: MarketView, plan: OwnPlan) -> MarketAction:
    """The station's own dynamic programme at the utility's tariffs; asks what a sold kWh costs it."""
    return MarketAction(plan.storage_kw, plan.ask_eur_per_kwh)


def scaled_action(
    world: MarketWorld, state: MarketState, plan: OwnPlan, action: FloatArray, residual: bool = True
) -> MarketAction:
    """Wishes and asks of numbers in [-1, 1], (B, S, 2): storage power, position of the ask in its band.

    residual: the storage power is added to that of the station's own plan.
    """
    low, high = (edge[:, None] for edge in ask_band(world, state))
    ask = np.clip(low + (0.5 + 0.5 * action[..., 1]) * (high - low), low, high)
    return MarketAction(_wish_kw(world, plan, action[..., 0], residual), ask)


def storage_action(
    world: MarketWorld, state: MarketState, plan: OwnPlan, action: FloatArray, residual: bool = True
) -> MarketAction:
    """Wishes of numbers in [-1, 1], (B, S), as `scaled_action` makes them; asks stand at the export price."""
    ask = np.empty(action.shape)
    ask[...] = world.days.export_eur_per_kwh[state.day, state.slot][:, None]
    return MarketAction(_wish_kw(world, plan, action, residual), ask)


def _wish_kw(world: MarketWorld, plan: OwnPlan, action: FloatArray, residual: bool) -> FloatArray:
    wish_kw = action * world.assets.storage_kw
    return wish_kw + plan.storage_kw if residual else wish_kw


def reward_eur(
    world: MarketWorld,
    before: MarketState,
    outcome: MarketOutcome,
    team_frac: float = 0.0,
    reward_shift: bool = False,
) -> FloatArray:
    """Reward of every station in a slot, (B, S) EUR: (1 - team_frac) own profit + team_frac profit of all stations.

    reward_shift: profits less what the station would earn without storage at the utility's tariffs, which no policy
    changes.
    """
    profit = outcome.profit_eur
    if reward_shift:
        profit = profit - world.features.idle_eur[before.day, before.slot]
    if team_frac == 0.0:
        return profit.copy()  # the outcome keeps its own
    return np.asarray((1.0 - team_frac) * profit + team_frac * profit.sum(axis=1, keepdims=True))


def community_reward_eur(
    world: MarketWorld, before: MarketState, outcome: MarketOutcome, reward_shift: bool = False
) -> FloatArray:
    """Reward of all stations together in a slot, (B,) EUR: minus what the community pays.

    reward_shift: less what it would pay without storage and market, which no policy changes.
    """
    if not reward_shift:
        return -outcome.community_eur
    at = (before.day, before.slot)
    income = SLOT_H * (world.assets.retail_eur_per_kwh * world.days.ev_kw[at]).sum(axis=1)
    return np.asarray(income - world.features.idle_eur[at].sum(axis=1) - outcome.community_eur)


def check_team_frac(team_frac: float) -> float:
    """The share of the team's profit in a reward.

    Raises:
        ConfigError: outside [0, 1].
    """
    if not 0.0 <= team_frac <= 1.0:
        raise ConfigError(f"team_frac must be in [0, 1] (0 own profit, 1 that of all stations), got {team_frac}")
    return float(team_frac)


def slot_terms(outcome: MarketOutcome) -> dict[str, np.ndarray]:
    """Named terms of a slot, one number per environment (B,): sums over stations in EUR and kW, what was published."""
    names = ("curtailed_kw", "unserved_kw", "moved_kw", "held_kw")
    sums = np.array([*outcome.terms, *(getattr(outcome, name) for name in names)]).sum(axis=2)
    money, power = sums[: len(outcome.terms)], sums[len(outcome.terms) :]
    return {
        "community_eur": outcome.community_eur,
        "profit_eur": money.sum(axis=0),
        **dict(zip(outcome.terms._fields, money, strict=True)),
        "price_eur_per_kwh": outcome.price_eur_per_kwh,
        "volume_kw": outcome.volume_kw,
        **dict(zip(names, power, strict=True)),
        "rounds": outcome.n_rounds,
        "factor": outcome.factor,
        "operator_fallback": outcome.fallback,
        "lowest_voltage_pu": lowest_voltage_pu(outcome),
        "loss_kw": outcome.loss_kw,
        "converged": outcome.converged,
    }


def station_terms(outcome: MarketOutcome) -> dict[str, np.ndarray]:
    """What each station is told of a slot of its own, (B, S): money and powers."""
    told = ("position_kw", "storage_kw", "curtailed_kw", "unserved_kw", "accepted_kw", "held_kw", "moved_kw", "cap_kw")
    return {
        "profit_eur": outcome.profit_eur,
        **outcome.terms._asdict(),
        **{name: getattr(outcome, name) for name in (*told, "ask_eur_per_kwh")},
    }


def published_terms(outcome: MarketOutcome) -> dict[str, np.ndarray]:
    """What all stations are told of a slot, (B,)."""
    return {"price_eur_per_kwh": outcome.price_eur_per_kwh, "volume_kw": outcome.volume_kw}


def lowest_voltage_pu(outcome: MarketOutcome) -> FloatArray:
    """Lowest voltage of any bus and phase, (B,); absent phases are not looked at."""
    size = np.abs(outcome.voltage_pu)
    return np.asarray(np.minimum.reduce(size, axis=(1, 2), initial=np.inf, where=size > 0.0))
