"""The network operator: caps on stations that break the network's limits.

Stages know arrays: positions of stations, a base load and limits go in, caps come out. Every accepted slot has passed
the nonlinear power flow.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from evcs_gym.envs.errors import ConfigError, ConvergenceError, DataError
from evcs_gym.envs.grid.feeder import Feeder
from evcs_gym.envs.grid.kernels_operator import (
    ALL,
    COLLAPSED,
    EXPORTS,
    FAULT,
    IMPORTS,
    KIND,
    LOW,
    MAX_EXTRA_FLOWS,
    MEMO,
    N_FLOWS,
    PASS_TOLERANCE,
    STAGE,
    TRIED,
    adjust_rows,
    begin_rows,
    learn_rows,
)
from evcs_gym.envs.grid.powerflow import (
    MAX_SWEEPS,
    PARALLEL_FROM,
    PHASE_UNIT,
    PowerFlow,
    branch_current_a,
    network_tables,
    power_flow,
    used_banks,
    voltage_unbalance_frac,
    writable,
)
from evcs_gym.envs.grid.simd import LANES
from evcs_gym.envs.threads import run_rows
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray, IntArray, frozen
from evcs_gym.envs.units import PHASE_BASE_KVA

__all__ = [
    "MAX_EXTRA_FLOWS",
    "PASS_TOLERANCE",
    "Adjustment",
    "Limits",
    "adjust",
    "effective_limits",
    "excesses",
    "row_current_a",
    "with_stations",
]


@dataclass(frozen=True, eq=False)
class Limits:
    """Effective limits of a batch of slots; see ``effective_limits``.

    vmin_pu, vmax_pu: (B, N, 3). current_a: (B, N), branch from the parent. head_kva: (B,), apparent power of the
    source. unbalance_frac: (B, N).
    """

    vmin_pu: FloatArray
    vmax_pu: FloatArray
    current_a: FloatArray
    head_kva: FloatArray
    unbalance_frac: FloatArray


@dataclass(frozen=True, eq=False)
class Adjustment:
    """What the operator answers, (B, ...).

    cap_kw: (B, S) bound on |position|, infinite where there is none; the sign stays. position_kw: (B, S) under the
    caps. factor: (B,) by which the capped positions were multiplied, 1 where none was. flow: the power flow of the
    adjusted positions. n_extra_flows: (B,) power flows beside the first.
    """

    cap_kw: FloatArray
    position_kw: FloatArray
    factor: FloatArray
    flow: PowerFlow
    n_extra_flows: IntArray


@dataclass(frozen=True, eq=False)
class _Case:
    """The slots of a search: what stays while the factor changes."""

    feeder: Feeder
    limits: Limits
    base_load_kva: ComplexArray
    position_kw: FloatArray
    station_bus: IntArray
    source_pu: FloatArray
    capacitor_kvar: FloatArray | None
    tolerance_pu: float

    def rows(self, keep: IntArray) -> "_Case":
        limits = Limits(**{name: getattr(self.limits, name)[keep] for name in Limits.__dataclass_fields__})
        kvar = None if self.capacitor_kvar is None else self.capacitor_kvar[keep]
        return replace(
            self,
            limits=limits,
            base_load_kva=self.base_load_kva[keep],
            position_kw=self.position_kw[keep],
            source_pu=self.source_pu[keep],
            capacitor_kvar=kvar,
        )

    def solve(self, position_kw: FloatArray, start_pu: ComplexArray | None) -> PowerFlow:
        load = with_stations(self.base_load_kva, position_kw, self.station_bus)
        return power_flow(
            self.feeder,
            load,
            self.source_pu,
            self.tolerance_pu,
            MAX_SWEEPS,
            warm_start=start_pu,
            capacitor_kvar=self.capacitor_kvar,
        )

    def excesses(self, position_kw: FloatArray, flow: PowerFlow) -> FloatArray:
        load = with_stations(self.base_load_kva, position_kw, self.station_bus)
        return excesses(self.feeder, self.limits, load, flow, self.source_pu, self.capacitor_kvar)


def effective_limits(
    feeder: Feeder,
    base_load_kva: ComplexArray,
    source_pu: FloatArray | float = 1.0,
    *,
    vmin_pu: float = 0.95,
    vmax_pu: float = 1.05,
    unbalance_frac: float = 0.02,
    head_kva: float = np.inf,
    capacitor_kvar: FloatArray | None = None,
) -> Limits:
    """Nominal limits, or what the base load alone needs where that is more: nobody is held to what it did not cause.

    base_load_kva: (B, N, 3), without stations. Ampacities are the feeder's. Raises ConfigError for limits in the wrong
    order, ConvergenceError where the base load has no power flow.
    """
    if not 0.0 < vmin_pu < vmax_pu or unbalance_frac < 0.0 or head_kva <= 0.0:
        raise ConfigError(
            "operator: limits must be 0 < vmin_pu < vmax_pu, unbalance_frac >= 0 and head_kva > 0, got "
            f"{vmin_pu}, {vmax_pu}, {unbalance_frac}, {head_kva}"
        )
    source = np.broadcast_to(np.asarray(source_pu, dtype=np.float64), (len(base_load_kva),))
    flow = power_flow(feeder, base_load_kva, source_pu=source, capacitor_kvar=capacitor_kvar)
    if not flow.converged.all():
        raise ConvergenceError(
            f"operator: the base load of slot {int(np.argmin(flow.converged))} has no power flow; lower it"
        )
    size, present = np.abs(flow.voltage_pu), feeder.phase_present
    current = branch_current_a(feeder, base_load_kva, flow.voltage_pu, None, capacitor_kvar)
    head = _head_kva(feeder, current, source)
    return Limits(
        vmin_pu=frozen(np.where(present, np.minimum(vmin_pu, size), 0.0)),
        vmax_pu=frozen(np.where(present, np.maximum(vmax_pu, size), np.inf)),
        current_a=frozen(np.maximum(feeder.ampacity_a, np.abs(current).max(axis=-1))),
        head_kva=frozen(np.maximum(head_kva, head)),
        unbalance_frac=frozen(np.maximum(unbalance_frac, voltage_unbalance_frac(flow.voltage_pu))),
    )


def with_stations(base_load_kva: ComplexArray, position_kw: FloatArray, station_bus: IntArray) -> ComplexArray:
    """Loads (B, N, 3) of the base load and of stations, which inject balanced at unity power factor."""
    load = base_load_kva.copy()
    for station, bus in enumerate(station_bus.tolist()):
        load[:, bus] -= position_kw[:, station, None] / 3.0
    return load


def excesses(
    feeder: Feeder,
    limits: Limits,
    load_kva: ComplexArray,
    flow: PowerFlow,
    source_pu: FloatArray,
    capacitor_kvar: FloatArray | None = None,
) -> FloatArray:
    """(B, 5): by how much the worst bus is below vmin and above vmax, and current, kVA and unbalance over their limits.

    Voltages in pu, currents and kVA as shares of their limit, unbalance as such; negative where there is room. A case
    without power flow exceeds all of them.
    """
    size = np.abs(flow.voltage_pu)
    below = (limits.vmin_pu - size).max(axis=(1, 2))
    above = (size - limits.vmax_pu).max(axis=(1, 2))
    current = branch_current_a(feeder, load_kva, flow.voltage_pu, None, capacitor_kvar)
    over = (np.abs(current).max(axis=-1) / limits.current_a - 1.0)[:, 1:].max(axis=1)
    head = _head_kva(feeder, current, source_pu) / limits.head_kva - 1.0
    unbalance = (voltage_unbalance_frac(flow.voltage_pu) - limits.unbalance_frac).max(axis=1)
    out = np.stack([below, above, over, head, unbalance], axis=1)
    return np.where(flow.converged[:, None], out, COLLAPSED)


def adjust(
    feeder: Feeder,
    limits: Limits,
    base_load_kva: ComplexArray,
    position_kw: FloatArray,
    station_bus: IntArray,
    source_pu: FloatArray | float = 1.0,
    warm_start: ComplexArray | None = None,
    *,
    capacitor_kvar: FloatArray | None = None,
    tolerance_pu: float = 1e-8,
) -> Adjustment:
    """The operator ``pro_rata``: one factor in [0, 1] per slot on the positions that push towards a broken limit.

    limits: of ``effective_limits`` for the same base load, source and capacitors. base_load_kva: (B, N, 3).
    position_kw: (B, S), surplus > 0. station_bus: (S,). warm_start, capacitor_kvar, tolerance_pu: of the power flows.
    The factor is the largest that a search with at most 10 power flows finds; imports are scaled at undervoltage,
    exports at overvoltage, all for other limits or several at once. Where that group at zero is not enough, all are
    scaled; all at zero is the base load, which passes by definition. Slots within their limits are returned as they
    are and cost nothing beside their first power flow.

    Raises DataError for arrays that do not fit together or are not finite, and where even the base load breaks limits.
    """
    case = _checked(feeder, limits, base_load_kva, position_kw, station_bus, source_pu, capacitor_kvar, tolerance_pu)
    flow = case.solve(case.position_kw, warm_start)
    n_cases, shape = len(case.position_kw), case.position_kw.shape
    answer = Adjustment(np.empty(shape), np.empty(shape), np.empty(n_cases), flow, np.empty(n_cases, dtype=np.int64))
    if feeder.equipment is None:
        _adjust_lanes(case, answer)
    else:
        _adjust_batch(case, answer)
    if n_cases and answer.n_extra_flows.min() < 0:
        raise DataError(
            f"operator: the base load alone exceeds the limits in slot {int(answer.n_extra_flows.argmin())}; limits "
            "must be the effective ones of the same base load, source and capacitors: "
            "effective_limits(feeder, base_load_kva, source_pu)"
        )
    return answer


def _adjust_lanes(case: _Case, answer: Adjustment) -> None:
    """The kernel's call."""
    n_cases, flow = len(case.position_kw), answer.flow
    buses, kvar = used_banks(case.capacitor_kvar, n_cases)
    network = (*network_tables(case.feeder, case.station_bus, buses), row_current_a(case.feeder))
    source = (case.source_pu[:, None] * PHASE_UNIT).view(np.float64)
    ready = (source, case.base_load_kva.view(np.float64), kvar, 1.0 / PHASE_BASE_KVA)
    limits = case.limits
    names = ("vmin_pu", "vmax_pu", "current_a", "head_kva", "unbalance_frac")
    bounds = tuple(writable(getattr(limits, name)) for name in names)
    own = (np.arange(n_cases), case.position_kw, float(case.tolerance_pu), MAX_SWEEPS)
    loss_pu = flow.loss_kw / PHASE_BASE_KVA
    sweeps = np.where(flow.converged, flow.iterations, -flow.iterations)
    written = (answer.position_kw, answer.cap_kw, answer.factor, answer.n_extra_flows)
    arrays = (*network, *ready, *bounds, *own, flow.voltage_pu.view(np.float64), loss_pu, sweeps, *written)
    run_rows(adjust_rows, n_cases, arrays, parallel_from=PARALLEL_FROM, block=LANES)
    np.multiply(loss_pu, PHASE_BASE_KVA, out=flow.loss_kw)
    np.abs(sweeps, out=flow.iterations)
    np.greater(sweeps, 0, out=flow.converged)


def row_current_a(feeder: Feeder) -> FloatArray:
    """(N,) current of 1 pu at each row of the kernels [A]."""
    return np.asarray((PHASE_BASE_KVA / (feeder.bus_kv / math.sqrt(3.0)))[feeder.sweep_order])


def _adjust_batch(case: _Case, answer: Adjustment) -> None:
    """The same search where the power flow is that of equipment: all slots with a broken limit try a factor at once."""
    flow, n_cases = answer.flow, len(case.position_kw)
    memo, broken = np.zeros((n_cases, MEMO)), np.empty(n_cases, dtype=np.bool_)
    begin_rows(case.excesses(case.position_kw, flow), memo, broken)
    memo[~broken, KIND], memo[~broken, LOW] = 0.0, 1.0
    active, start_pu = np.flatnonzero(broken), flow.voltage_pu.copy()
    while len(active):
        some, known = case.rows(active), memo[active]
        tried = np.where(_group(some.position_kw, known), known[:, TRIED, None] * some.position_kw, some.position_kw)
        now, passed = some.solve(tried, start_pu[active]), np.empty(len(active), dtype=np.bool_)
        learn_rows(some.excesses(tried, now), known, passed)
        memo[active] = known
        start_pu[active[now.converged]] = now.voltage_pu[now.converged]
        _take(flow, active[passed], now, passed)
        active = active[(known[:, STAGE] > 0.0) & (known[:, STAGE] < FAULT)]
    group = _group(case.position_kw, memo)
    answer.factor[:] = memo[:, LOW]
    answer.n_extra_flows[:] = np.where(memo[:, STAGE] == FAULT, -1.0, memo[:, N_FLOWS] * broken)
    answer.position_kw[:] = np.where(group, memo[:, LOW, None] * case.position_kw, case.position_kw)
    answer.cap_kw[:] = np.where(group, np.abs(answer.position_kw), np.inf)


def _group(position_kw: FloatArray, memo: FloatArray) -> BoolArray:
    """(B, S) positions that a search scales."""
    kind = memo[:, KIND, None]
    pushing = ((kind == IMPORTS) & (position_kw < 0.0)) | ((kind == EXPORTS) & (position_kw > 0.0))
    return np.asarray(pushing | ((kind == ALL) & (position_kw != 0.0)))


def _take(into: PowerFlow, rows: IntArray, flow: PowerFlow, chosen: BoolArray) -> None:
    """Put the chosen rows of a power flow into another."""
    for name in ("voltage_pu", "loss_kw", "iterations", "converged"):
        getattr(into, name)[rows] = getattr(flow, name)[chosen]


def _head_kva(feeder: Feeder, current_a: ComplexArray, source_pu: FloatArray) -> FloatArray:
    """(B,) apparent power that leaves the source [kVA], from branch currents [A]."""
    phase_kv = feeder.phase_kv * np.asarray(source_pu)[:, None] * PHASE_UNIT
    return np.asarray(np.abs((phase_kv * np.conj(current_a[:, 0])).sum(axis=1)))


def _checked(
    feeder: Feeder,
    limits: Limits,
    base_load_kva: ComplexArray,
    position_kw: FloatArray,
    station_bus: IntArray,
    source_pu: FloatArray | float,
    capacitor_kvar: FloatArray | None,
    tolerance_pu: float,
) -> _Case:
    base, position = writable(np.asarray(base_load_kva, dtype=np.complex128)), np.array(position_kw, dtype=np.float64)
    buses = np.asarray(station_bus, dtype=np.int64)
    n_cases = len(base)
    if position.shape != (n_cases, len(buses)) or limits.vmin_pu.shape != base.shape:
        raise DataError(
            "operator: base_load_kva (B, N, 3), position_kw (B, S), station_bus (S,) and limits must fit together, got "
            f"{base.shape}, {position.shape}, {buses.shape} and limits of {limits.vmin_pu.shape}"
        )
    if not np.isfinite(position).all():
        row, station = (int(i) for i in np.argwhere(~np.isfinite(position))[0])
        raise DataError(f"operator: position_kw[{row}, {station}] must be finite, got {position[row, station]}")
    if len(buses) and not (buses.min() > 0 and buses.max() < len(feeder) and feeder.phase_present[buses].all()):
        raise DataError(
            f"operator: station_bus must be buses 1..{len(feeder) - 1} with all three phases, got {buses.tolist()}"
        )
    source = np.array(np.broadcast_to(np.asarray(source_pu, dtype=np.float64), (n_cases,)))
    return _Case(feeder, limits, base, position, buses, source, capacitor_kvar, tolerance_pu)
