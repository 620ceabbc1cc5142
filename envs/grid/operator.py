"""The network operator: caps on stations that break the network's limits.

Stages know arrays: positions of stations, a base load and limits go in, caps come out. Every accepted slot has passed
the nonlinear power flow.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from evcs_gym.envs.errors import ConfigError, ConvergenceError, DataError
from evcs_gym.envs.grid.feeder import Feeder
from evcs_gym.envs.grid.powerflow import PHASE_UNIT, PowerFlow, branch_current_a, power_flow, voltage_unbalance_frac
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray, IntArray, frozen

PASS_TOLERANCE: Final = 1e-6
"""Excess that passes [pu of voltage, share of a current or kVA limit, or unbalance]: the power flow's own tolerance has
room in it, and the 1e-4 that an accepted slot may be off are far."""
MAX_EXTRA_FLOWS: Final = 10
"""Power flows that a slot with a broken limit may cost beside the first."""
_GOOD_ENOUGH: Final = 1e-5
"""A search ends where the passing factor leaves this little of the limit unused (same units as the tolerance)."""
_ROOM: Final = 1e-4
"""A limit with less room than this at factor 0 is touched by the base load: its excess does not lead the search."""
_FACTOR_STEP: Final = 1e-4
"""Width of the bracket of the factor at which a search ends."""
_COLLAPSED: Final = 1.0
"""Excess of a case without power flow: larger than any other."""


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

    def rows(self, keep: BoolArray) -> "_Case":
        limits = Limits(**{name: getattr(self.limits, name)[keep] for name in Limits.__dataclass_fields__})
        base, position, source = self.base_load_kva[keep], self.position_kw[keep], self.source_pu[keep]
        return _Case(self.feeder, limits, base, position, self.station_bus, source)

    def solve(self, position_kw: FloatArray, start_pu: ComplexArray | None) -> PowerFlow:
        load = with_stations(self.base_load_kva, position_kw, self.station_bus)
        return power_flow(self.feeder, load, source_pu=self.source_pu, warm_start=start_pu)

    def excesses(self, position_kw: FloatArray, flow: PowerFlow) -> FloatArray:
        load = with_stations(self.base_load_kva, position_kw, self.station_bus)
        return excesses(self.feeder, self.limits, load, flow, self.source_pu)


def effective_limits(
    feeder: Feeder,
    base_load_kva: ComplexArray,
    source_pu: FloatArray | float = 1.0,
    *,
    vmin_pu: float = 0.95,
    vmax_pu: float = 1.05,
    unbalance_frac: float = 0.02,
    head_kva: float = np.inf,
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
    flow = power_flow(feeder, base_load_kva, source_pu=source)
    if not flow.converged.all():
        raise ConvergenceError(
            f"operator: the base load of slot {int(np.argmin(flow.converged))} has no power flow; lower it"
        )
    size, present = np.abs(flow.voltage_pu), feeder.phase_present
    current = np.abs(branch_current_a(feeder, base_load_kva, flow.voltage_pu)).max(axis=-1)
    return Limits(
        vmin_pu=frozen(np.where(present, np.minimum(vmin_pu, size), 0.0)),
        vmax_pu=frozen(np.where(present, np.maximum(vmax_pu, size), np.inf)),
        current_a=frozen(np.maximum(feeder.ampacity_a, current)),
        head_kva=frozen(np.maximum(head_kva, _head_kva(feeder, base_load_kva, flow.voltage_pu, source))),
        unbalance_frac=frozen(np.maximum(unbalance_frac, voltage_unbalance_frac(flow.voltage_pu))),
    )


def with_stations(base_load_kva: ComplexArray, position_kw: FloatArray, station_bus: IntArray) -> ComplexArray:
    """Loads (B, N, 3) of the base load and of stations, which inject balanced at unity power factor."""
    load = base_load_kva.copy()
    for station, bus in enumerate(station_bus.tolist()):
        load[:, bus] -= position_kw[:, station, None] / 3.0
    return load


def excesses(
    feeder: Feeder, limits: Limits, load_kva: ComplexArray, flow: PowerFlow, source_pu: FloatArray
) -> FloatArray:
    """(B, 5): by how much the worst bus is below vmin and above vmax, and current, kVA and unbalance over their limits.

    Voltages in pu, currents and kVA as shares of their limit, unbalance as such; negative where there is room. A case
    without power flow exceeds all of them.
    """
    size = np.abs(flow.voltage_pu)
    below = (limits.vmin_pu - size).max(axis=(1, 2))
    above = (size - limits.vmax_pu).max(axis=(1, 2))
    current = np.abs(branch_current_a(feeder, load_kva, flow.voltage_pu)).max(axis=-1)
    over = (current / limits.current_a - 1.0)[:, 1:].max(axis=1)
    head = _head_kva(feeder, load_kva, flow.voltage_pu, source_pu) / limits.head_kva - 1.0
    unbalance = (voltage_unbalance_frac(flow.voltage_pu) - limits.unbalance_frac).max(axis=1)
    out = np.stack([below, above, over, head, unbalance], axis=1)
    return np.where(flow.converged[:, None], out, _COLLAPSED)


def adjust(
    feeder: Feeder,
    limits: Limits,
    base_load_kva: ComplexArray,
    position_kw: FloatArray,
    station_bus: IntArray,
    source_pu: FloatArray | float = 1.0,
    warm_start: ComplexArray | None = None,
) -> Adjustment:
    """The operator ``pro_rata``: one factor in [0, 1] per slot on the positions that push towards a broken limit.

    limits: of ``effective_limits`` for the same base load and source. base_load_kva: (B, N, 3). position_kw: (B, S),
    surplus > 0. station_bus: (S,). The factor is the largest that a search with at most 10 power flows finds; imports
    are scaled at undervoltage, exports at overvoltage, all for other limits or several at once. Where that group at
    zero is not enough, all positions are scaled; all at zero is the base load, which passes by definition. Slots
    within their limits are returned as they are.

    Raises DataError for arrays that do not fit together or are not finite.
    """
    case = _checked(feeder, limits, base_load_kva, position_kw, station_bus, source_pu)
    flow = case.solve(case.position_kw, warm_start)
    excess = case.excesses(case.position_kw, flow)
    broken = excess > PASS_TOLERANCE
    rows: BoolArray = np.asarray(broken.any(axis=1))
    factor, group = np.ones(len(rows)), np.zeros(case.position_kw.shape, dtype=np.bool_)
    n_extra = np.zeros(len(rows), dtype=np.int64)
    if rows.any():
        some = case.rows(rows)
        found = _search(some, _pushing(some.position_kw, broken[rows]), excess[rows], flow.voltage_pu[rows])
        factor[rows], group[rows], n_extra[rows] = found[0], found[1], found[2]
        for name in ("voltage_pu", "loss_kw", "iterations", "converged"):
            getattr(flow, name)[rows] = getattr(found[3], name)
    scaled = np.where(group, factor[:, None] * case.position_kw, case.position_kw)
    cap = np.where(group, np.abs(scaled), np.inf)  # (N2)
    return Adjustment(cap, scaled, factor, flow, n_extra)


def _pushing(position_kw: FloatArray, broken: BoolArray) -> BoolArray:
    """(B, S) positions that push towards the broken limits (B, 5): below, above, others."""
    below, above, other = broken[:, :1], broken[:, 1:2], broken[:, 2:].any(axis=1, keepdims=True)
    imports = below & ~above & ~other & (position_kw < 0.0)
    exports = above & ~below & ~other & (position_kw > 0.0)
    every = (other | (below & above)) & (position_kw != 0.0)
    return np.asarray(imports | exports | every)


def _search(
    case: _Case, group: BoolArray, excess: FloatArray, start_pu: ComplexArray
) -> tuple[FloatArray, BoolArray, IntArray, PowerFlow]:
    """Largest passing factor of every slot, the group scaled, the flows used, the flow.

    Regula falsi (Illinois form) for each kind of limit, the nearest root of all; half the bracket where a limit is
    touched at both ends of it. The lower end of the bracket has always passed a power flow; it is what is returned.
    """
    group, at_zero, best, n_flows = _lower_end(case, group, start_pu)
    low, high = np.zeros(len(excess)), np.ones(len(excess))
    low_excess, high_excess = at_zero.copy(), excess.copy()
    low_weight, high_weight, last = at_zero.copy(), excess.copy(), np.zeros(len(excess))
    for _ in range(MAX_EXTRA_FLOWS - 2):
        binding = high_excess > PASS_TOLERANCE
        close = binding & (low_excess > -_GOOD_ENOUGH) & (at_zero < -_ROOM)
        active = (high - low > _FACTOR_STEP) & ~close.any(axis=1)
        if not active.any():
            break
        tried = np.where(active, low + (high - low) * _aim(low_weight, high_weight, binding), low)
        position = np.where(group, tried[:, None] * case.position_kw, case.position_kw)
        flow = case.solve(position, best.voltage_pu)
        now = case.excesses(position, flow)
        n_flows += active
        good = now.max(axis=1) <= PASS_TOLERANCE  # (N4)
        passed, missed = active & good, active & ~good
        # Illinois: the end that stays twice counts half
        high_weight[passed & (last > 0)] *= 0.5
        low_weight[missed & (last < 0)] *= 0.5
        low_weight[passed], high_weight[missed] = now[passed], now[missed]
        last = np.where(passed, 1.0, np.where(missed, -1.0, last))
        low, high = np.where(passed, tried, low), np.where(missed, tried, high)
        low_excess[passed], high_excess[missed] = now[passed], now[missed]
        _take(best, flow, passed)
    return low, group, n_flows, best


def _aim(low: FloatArray, high: FloatArray, binding: BoolArray) -> FloatArray:
    """(B,) share of the bracket at which the first limit is met, from excesses (B, 5) at its ends.

    Aimed a little below the limit, so that the lower end comes close to it; never at the ends themselves.
    """
    ratio = low / np.where(binding, np.minimum(low - high, -PASS_TOLERANCE), -1.0)
    share = np.where(binding, np.where(low < -PASS_TOLERANCE, ratio, 0.5), 1.0).min(axis=1)
    return np.asarray(np.clip(share * (1.0 - 1e-3), 0.01, 0.99))


def _lower_end(
    case: _Case, group: BoolArray, start_pu: ComplexArray
) -> tuple[BoolArray, FloatArray, PowerFlow, IntArray]:
    """The group whose factor 0 passes, its excess there, the power flow, and the flows used per slot.

    Raises DataError where even the base load breaks the limits.
    """
    rest = np.where(group, 0.0, case.position_kw)
    best = case.solve(rest, start_pu)
    excess = case.excesses(rest, best)
    n_flows = np.ones(len(excess), dtype=np.int64)
    failed: BoolArray = np.asarray(excess.max(axis=1) > PASS_TOLERANCE)
    if not failed.any():
        return group, excess, best, n_flows
    none = np.zeros_like(rest)
    base = case.solve(none, None)
    at_base = case.excesses(none, base)
    if (at_base[failed] > PASS_TOLERANCE).any():
        raise DataError(
            f"operator: the base load alone exceeds the limits by {at_base[failed].max():.2e}; limits must be the "
            "effective ones of the same base load and source: effective_limits(feeder, base_load_kva, source_pu)"
        )
    _take(best, base, failed)
    wider = group | (failed[:, None] & (case.position_kw != 0.0))
    return wider, np.where(failed[:, None], at_base, excess), best, n_flows + failed


def _take(into: PowerFlow, flow: PowerFlow, rows: BoolArray) -> None:
    """Put the marked rows of a power flow into another."""
    for name in ("voltage_pu", "loss_kw", "iterations", "converged"):
        getattr(into, name)[rows] = getattr(flow, name)[rows]


def _head_kva(feeder: Feeder, load_kva: ComplexArray, voltage_pu: ComplexArray, source_pu: FloatArray) -> FloatArray:
    """(B,) apparent power that leaves the source [kVA]."""
    current_a = branch_current_a(feeder, load_kva, voltage_pu)[:, 0]
    phase_kv = feeder.phase_kv * np.asarray(source_pu)[:, None] * PHASE_UNIT
    return np.asarray(np.abs((phase_kv * np.conj(current_a)).sum(axis=1)))


def _checked(
    feeder: Feeder,
    limits: Limits,
    base_load_kva: ComplexArray,
    position_kw: FloatArray,
    station_bus: IntArray,
    source_pu: FloatArray | float,
) -> _Case:
    base, position = np.asarray(base_load_kva, dtype=np.complex128), np.asarray(position_kw, dtype=np.float64)
    buses = np.asarray(station_bus)
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
    return _Case(feeder, limits, base, position, buses, source)
