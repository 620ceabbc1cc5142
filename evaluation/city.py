"""What a city with charging stations is like under a rule: trade, competition, and how often its network binds."""

import dataclasses
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from evcs_gym.baselines.rules_market import MARKET_RULES
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.grid.operator import Limits, excesses, with_stations
from evcs_gym.envs.grid.powerflow import PowerFlow
from evcs_gym.envs.market.core import MarketAction, MarketOutcome, MarketState, MarketWorld, initial_state, step
from evcs_gym.envs.market.operators import NO_OPERATOR
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.market.view import own_plan, view
from evcs_gym.envs.scenario import Scenario
from evcs_gym.envs.specs import nearest
from evcs_gym.envs.types import BoolArray, FloatArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H

DEFAULT_POLICY: Final = "dp_truthful"
DEFAULT_DAYS: Final = 50
LIMIT_NAMES: Final = ("undervoltage", "overvoltage", "current", "head", "unbalance")
"""Limits in the order of `excesses`."""


@dataclass(frozen=True)
class CityTable:
    """Shares of days and slots, and means over the days, of a scenario played under one rule by all stations.

    binding_days_frac: days on which the operator caps somebody; the five that follow: days on which that limit was
    broken by what the stations wished. binding_slots_frac: slots with a cap. trade_frac: traded energy over EV energy.
    trade_slots_frac: slots with trade. competition_slots_frac: slots in which several sellers offer more than is asked
    for. pivotal_frac: of those, slots in which some seller cannot be done without. Offers: before (M6) and caps.
    """

    scenario: str
    policy: str
    split: str
    n_days: int
    n_stations: int
    n_buses: int
    binding_days_frac: float
    undervoltage_days_frac: float
    overvoltage_days_frac: float
    current_days_frac: float
    head_days_frac: float
    unbalance_days_frac: float
    binding_slots_frac: float
    trade_frac: float
    trade_slots_frac: float
    competition_slots_frac: float
    pivotal_frac: float
    ev_kwh_per_day: float
    pv_kwh_per_day: float
    curtailed_kwh_per_day: float
    unserved_kwh_per_day: float
    community_eur_per_day: float
    profit_eur_per_day: float

    def as_dict(self) -> dict[str, str | int | float]:
        """The table as plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Played:
    """One slot of all days: (D,), limits (D, 5)."""

    capped: BoolArray
    broken: BoolArray
    competition: BoolArray
    pivotal: BoolArray
    volume_kw: FloatArray
    curtailed_kw: FloatArray
    unserved_kw: FloatArray
    community_eur: FloatArray
    profit_eur: FloatArray


def city_table(
    scenario: Scenario, policy: str = DEFAULT_POLICY, n_days: int = DEFAULT_DAYS, split: str = "test"
) -> CityTable:
    """Play the seeds 0 .. n_days - 1 of a split, every station under the same rule, and count.

    Raises:
        ConfigError: no such rule, no day, an unknown split, a scenario without stations or with responsive demand.
    """
    if policy not in MARKET_RULES:
        raise ConfigError(f"city: there is no market rule {policy!r}{nearest(policy, tuple(MARKET_RULES))}")
    if scenario.responsive_spec is not None:
        raise ConfigError("city: responsive_demand must be off, rules ask no retail prices; leave the section out")
    if n_days < 1:
        raise ConfigError(f"city: n_days must be at least 1, got {n_days}")
    world = market_world(scenario, scenario.days(range(n_days), split))
    state, slots = initial_state(world, np.arange(n_days)), []
    for _ in range(N_SLOTS):
        action = MARKET_RULES[policy](view(world, state), own_plan(world, state))
        after, outcome = step(world, state, action)
        slots.append(_slot(world, state, action, outcome))
        state = after
    seen = {name: np.stack([getattr(slot, name) for slot in slots], axis=1) for name in _Played.__dataclass_fields__}
    ev_kwh, pv_kwh = (SLOT_H * float(power.sum()) / n_days for power in (world.days.ev_kw, world.days.pv_kw))
    return CityTable(
        scenario=scenario.name,
        policy=policy,
        split=split,
        n_days=n_days,
        n_stations=world.n_stations,
        n_buses=len(world.feeder),
        ev_kwh_per_day=ev_kwh,
        pv_kwh_per_day=pv_kwh,
        **_network_shares(seen),
        **_market_shares(seen, ev_kwh),
        curtailed_kwh_per_day=_per_day(seen["curtailed_kw"] * SLOT_H),
        unserved_kwh_per_day=_per_day(seen["unserved_kw"] * SLOT_H),
        community_eur_per_day=_per_day(seen["community_eur"]),
        profit_eur_per_day=_per_day(seen["profit_eur"]),
    )


def _network_shares(seen: dict[str, Any]) -> dict[str, float]:
    days = seen["broken"].any(axis=1).mean(axis=0)
    shares = {f"{name}_days_frac": float(days[k]) for k, name in enumerate(LIMIT_NAMES)}
    capped = seen["capped"]
    return {
        "binding_days_frac": float(capped.any(axis=1).mean()),
        "binding_slots_frac": float(capped.mean()),
        **shares,
    }


def _market_shares(seen: dict[str, Any], ev_kwh_per_day: float) -> dict[str, float]:
    competition, pivotal = seen["competition"].sum(), seen["pivotal"].sum()
    traded_kwh = _per_day(seen["volume_kw"] * SLOT_H)
    return {
        "trade_frac": traded_kwh / ev_kwh_per_day if ev_kwh_per_day > 0.0 else 0.0,
        "trade_slots_frac": float((seen["volume_kw"] > 0.0).mean()),
        "competition_slots_frac": float(seen["competition"].mean()),
        "pivotal_frac": float(pivotal / competition) if competition else 0.0,
    }


def _per_day(values: FloatArray) -> float:
    return float(values.sum()) / len(values)


def _slot(world: MarketWorld, state: MarketState, action: MarketAction, outcome: MarketOutcome) -> _Played:
    """What is counted of one slot. Wishes are seen by playing it again without reservation or without operator."""
    capped: BoolArray = np.asarray(np.isfinite(outcome.cap_kw).any(axis=1))
    broken = np.zeros((len(capped), len(LIMIT_NAMES)), dtype=np.bool_)
    if capped.any():
        broken[capped] = _broken_limits(world, state, action)[capped]
    plain = dataclasses.replace(world, rules=world.rules._replace(reservation=False))
    offer = step(plain, state, action, NO_OPERATOR)[1].position_kw
    competition, pivotal = competition_of(offer)
    return _Played(
        capped=capped,
        broken=broken,
        competition=competition,
        pivotal=pivotal,
        volume_kw=outcome.volume_kw,
        curtailed_kw=outcome.curtailed_kw.sum(axis=1),
        unserved_kw=outcome.unserved_kw.sum(axis=1),
        community_eur=outcome.community_eur,
        profit_eur=outcome.profit_eur.sum(axis=1),
    )


def competition_of(position_kw: FloatArray) -> tuple[BoolArray, BoolArray]:
    """For offers (B, S): whether several sellers offer more than is asked for, and whether some seller of them is
    pivotal, so that the others alone could not serve the demand; both (B,)."""
    sale = np.maximum(position_kw, 0.0)
    supply, demand = sale.sum(axis=1), np.maximum(-position_kw, 0.0).sum(axis=1)
    competition = (supply > demand) & (demand > 0.0) & ((sale > 0.0).sum(axis=1) > 1)
    return competition, competition & (supply - sale.max(axis=1) < demand)


def _broken_limits(world: MarketWorld, state: MarketState, action: MarketAction) -> BoolArray:
    """(B, 5) limits that the stations' positions break where no operator holds them."""
    free = step(world, state, action, NO_OPERATOR)[1]
    grid, at = world.grid, state.day * N_SLOTS + state.slot
    kvar = None if grid.capacitor_kvar is None else grid.capacitor_kvar[at]
    load = with_stations(grid.load_kva[at], free.position_kw, grid.station_bus)
    limits = Limits(**{name: getattr(grid.limits, name)[at] for name in Limits.__dataclass_fields__})
    flow = PowerFlow(
        voltage_pu=free.voltage_pu,
        loss_kw=free.loss_kw,
        iterations=np.ones(len(at), dtype=np.int64),
        converged=free.converged,
    )
    return np.asarray(excesses(world.feeder, limits, load, flow, grid.source_pu[at], kvar) > 0.0)
