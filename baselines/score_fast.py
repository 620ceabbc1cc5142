"""Play a policy of fast charging on days, all at once, and record what it cost."""

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from evcs_gym.baselines.policy_fast import FastPolicy, FastStage
from evcs_gym.envs.fleet import fast
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import MS_PER_S, N_SLOTS, SLOT_H

TIMED_DECISIONS: Final = 48
"""Decisions of one environment that are timed."""
_SUMMED: Final = (
    "absorb_eur",
    "energy_eur",
    "stranded_eur",
    "voltage_eur",
    "charge_eur",
    "delivered_kwh",
    "violation_pu",
    "n_violations",
    "n_collapsed",
    "n_stranded",
)


@dataclass(frozen=True, eq=False)
class FastRollout:
    """A policy on D days. cost_eur = absorb_eur + energy_eur + stranded_eur + voltage_eur, each (D,).

    charge_eur (D,): what charging cost the drivers, the sum of (2). delivered_kwh (D,), beyond_kwh (D,): all energy of
    the day's charges, and what of it comes after the day; unabsorbed_kwh (D,): local generation at the stations' buses
    that neither base nor charging took. violation_pu (D,), n_violations (D,): voltages outside the effective limits,
    summed over slots, buses and phases; n_collapsed (D,): slots without a power flow. n_stranded, n_requests (D,).
    load_kw (D, T, J). station (D, R): the plan, -1 behind a day's last request.
    """

    cost_eur: FloatArray
    absorb_eur: FloatArray
    energy_eur: FloatArray
    stranded_eur: FloatArray
    voltage_eur: FloatArray
    charge_eur: FloatArray
    delivered_kwh: FloatArray
    beyond_kwh: FloatArray
    unabsorbed_kwh: FloatArray
    violation_pu: FloatArray
    n_violations: IntArray
    n_collapsed: IntArray
    n_stranded: IntArray
    n_requests: IntArray
    load_kw: FloatArray
    station: IntArray


def fast_rollout(world: fast.FastWorld, policy: FastPolicy) -> FastRollout:
    """Play every day of the world once.

    Raises:
        DataError: the policy gives actions of the wrong shape or kind. InfeasibleError: or one that is not allowed.
    """
    state = fast.initial_state(world, np.arange(world.n_days))
    idle_eur = state.pending_eur.sum(axis=1)  # of days without a request: nobody pays it
    total = {name: np.zeros(world.n_days) for name in _SUMMED}
    station = np.full((world.n_days, world.days.car.shape[1]), -1, dtype=np.int64)
    while (rows := np.flatnonzero(state.slot < N_SLOTS)).size:
        stage = FastStage(world, fast.rows_of(state, rows))
        after, outcome = fast.step(world, stage.state, policy.send(stage))
        station[rows, stage.state.request] = outcome.station
        for name in _SUMMED:
            total[name][rows] += getattr(outcome, name)
        for name in fast.FastState.__dataclass_fields__:
            getattr(state, name)[rows] = getattr(after, name)
    total["absorb_eur"] += np.where(world.n_requests == 0, idle_eur, 0.0)
    return _collected(world, state, total, station)


def _collected(
    world: fast.FastWorld, end: fast.FastState, total: dict[str, FloatArray], station: IntArray
) -> FastRollout:
    days = world.days
    left_kw = np.maximum(days.dg_kw - days.base_kw - end.load_kw, 0.0)
    terms: dict[str, Any] = {
        name: values.astype(np.int64) if name.startswith("n_") else values for name, values in total.items()
    }
    return FastRollout(
        cost_eur=total["absorb_eur"] + total["energy_eur"] + total["stranded_eur"] + total["voltage_eur"],
        beyond_kwh=end.beyond_kwh.sum(axis=1),
        unabsorbed_kwh=SLOT_H * left_kw.sum(axis=(1, 2)),
        n_requests=world.n_requests,
        load_kw=end.load_kw,
        station=station,
        **terms,
    )


def fast_ms_per_decision(world: fast.FastWorld, policy: FastPolicy) -> float:
    """Median milliseconds of one decision of one environment: its view and the policy, not the environment's step."""
    stage = FastStage(world, fast.initial_state(world, np.zeros(1, dtype=np.int64)))
    seconds: list[float] = []
    while stage.state.slot[0] < N_SLOTS and len(seconds) < TIMED_DECISIONS:
        begin = time.perf_counter()
        action = policy.send(stage)
        seconds.append(time.perf_counter() - begin)
        stage.state, _ = fast.step(world, stage.state, action)
    return float(np.median(seconds)) * MS_PER_S
