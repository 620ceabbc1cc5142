"""Play a policy of the market on days, all at once, and record what it cost the community and brought each station."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from evcs_gym.baselines.policy_market import MarketPolicy, MarketStage
from evcs_gym.envs.grid import PowerFlow
from evcs_gym.envs.grid.operator import Limits, excesses, with_stations
from evcs_gym.envs.market.core import MarketOutcome, MarketState, MarketWorld, initial_state, step
from evcs_gym.envs.market.core_kernels import Terms
from evcs_gym.envs.market.operators import PRO_RATA, Operator
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import MS_PER_S, N_SLOTS, SLOT_H

ACCEPTED_OFF = 1e-4
"""(N4): what a slot may be off its limits, in pu or as a share, before it counts as a violation."""


@dataclass(frozen=True, eq=False)
class MarketRollout:
    """A policy on D days of the market.

    cost_eur (D,): what the community pays, (C) of model.md section 6. profit_eur (D, S) of each station, terms: its
    named parts, (D, S). income_eur (D,) from drivers: the profits sum to it less the cost.
    traded_kwh, asked_kwh, unserved_kwh, curtailed_kwh, (D,): between stations; asked for by drivers, not delivered; sun
    not used. held_kwh: kept because it was not sold; moved_kwh: moved into or out of storage by caps.
    n_capped_slots (D,): slots in which some station was capped. n_fallbacks (D,): those in which the operator took a
    safer answer than its own. n_violations (D,): slots outside an effective limit;
    n_collapsed (D,): slots without power flow; both need an operator that lets them pass. lowest_voltage_pu,
    highest_voltage_pu (D,).
    end_kwh (D, S): energy at the end. outcomes: of the slots in order, rows the days; None unless asked for.
    """

    cost_eur: FloatArray
    profit_eur: FloatArray
    terms: Terms
    income_eur: FloatArray
    traded_kwh: FloatArray
    asked_kwh: FloatArray
    unserved_kwh: FloatArray
    curtailed_kwh: FloatArray
    held_kwh: FloatArray
    moved_kwh: FloatArray
    n_capped_slots: IntArray
    n_fallbacks: IntArray
    n_violations: IntArray
    n_collapsed: IntArray
    lowest_voltage_pu: FloatArray
    highest_voltage_pu: FloatArray
    end_kwh: FloatArray
    outcomes: tuple[MarketOutcome, ...] | None = None


def market_rollout(
    world: MarketWorld, policy: MarketPolicy, operator: Operator = PRO_RATA, keep_outcomes: bool = False
) -> MarketRollout:
    """Play every day of the world once.

    Raises:
        DataError: the policy gives actions of the wrong shape or NaN. ConfigError: an ask outside the band.
    """
    stage = MarketStage(world, initial_state(world, np.arange(world.n_days)))
    outcomes, violated = [], np.zeros(world.n_days, dtype=np.int64)
    for _ in range(N_SLOTS):
        before = stage.state
        stage.state, outcome = step(world, before, policy.decide(stage), operator)
        violated += slots_outside(world, before, outcome)
        outcomes.append(outcome)
    return collect_slots(world, stage.state, outcomes, violated, keep_outcomes)


def slots_outside(world: MarketWorld, state: MarketState, outcome: MarketOutcome) -> IntArray:
    """Rows (B,) whose slot is outside an effective limit: 1, else 0."""
    grid, at = world.grid, state.day * N_SLOTS + state.slot
    limits = Limits(**{name: getattr(grid.limits, name)[at] for name in Limits.__dataclass_fields__})
    load = with_stations(grid.load_kva[at], outcome.position_kw, grid.station_bus)
    n_sweeps = np.ones(len(at), dtype=np.int64)
    flow = PowerFlow(outcome.voltage_pu, outcome.loss_kw, n_sweeps, outcome.converged)
    kvar = None if grid.capacitor_kvar is None else grid.capacitor_kvar[at]
    worst = excesses(world.feeder, limits, load, flow, grid.source_pu[at], kvar).max(axis=1)
    return np.asarray(worst > ACCEPTED_OFF, dtype=np.int64)


def collect_slots(
    world: MarketWorld,
    end: MarketState,
    outcomes: list[MarketOutcome],
    n_violations: IntArray,
    keep_outcomes: bool = False,
) -> MarketRollout:
    """The record of days that ended in a state, from the outcomes of their slots in order."""

    def energy_kwh(name: str) -> FloatArray:
        return np.asarray(SLOT_H * sum(np.abs(getattr(o, name)).sum(axis=1) for o in outcomes))

    def count(flags: Any) -> IntArray:
        return np.asarray(sum(np.asarray(flag, dtype=np.int64) for flag in flags))

    terms = Terms(*(np.asarray(sum(values)) for values in zip(*(o.terms for o in outcomes), strict=True)))
    size = np.abs(np.stack([o.voltage_pu for o in outcomes]))[:, :, world.feeder.phase_present]
    return MarketRollout(
        cost_eur=np.asarray(sum(o.community_eur for o in outcomes)),
        profit_eur=np.asarray(sum(terms)),
        terms=terms,
        income_eur=terms.ev_income_eur.sum(axis=1),
        traded_kwh=np.asarray(SLOT_H * sum(o.volume_kw for o in outcomes)),
        asked_kwh=energy_kwh("ev_kw"),
        unserved_kwh=energy_kwh("unserved_kw"),
        curtailed_kwh=energy_kwh("curtailed_kw"),
        held_kwh=energy_kwh("held_kw"),
        moved_kwh=energy_kwh("moved_kw"),
        n_capped_slots=count(np.isfinite(o.cap_kw).any(axis=1) for o in outcomes),
        n_fallbacks=count(o.fallback for o in outcomes),
        n_violations=n_violations,
        n_collapsed=count(~o.converged for o in outcomes),
        lowest_voltage_pu=size.min(axis=(0, 2)),
        highest_voltage_pu=size.max(axis=(0, 2)),
        end_kwh=end.energy_kwh,
        outcomes=tuple(outcomes) if keep_outcomes else None,
    )


def market_ms_per_decision(world: MarketWorld, policy: MarketPolicy) -> float:
    """Median milliseconds of one decision of one environment: its view and the policy, not the environment's step."""
    stage, seconds = MarketStage(world, initial_state(world, np.zeros(1, dtype=np.int64))), []
    for _ in range(N_SLOTS):
        begin = time.perf_counter()
        action = policy.decide(stage)
        seconds.append(time.perf_counter() - begin)
        stage.state, _ = step(world, stage.state, action)
    return float(np.median(seconds)) * MS_PER_S
