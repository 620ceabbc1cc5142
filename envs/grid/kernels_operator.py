"""The compiled network operator ``pro_rata``: checks first flows against limits, and searches caps where they break.

The layout is that of ``kernels``. Cases that break a limit are packed into lanes: a lane that is done takes the next.
What a search knows lies in one row of ``memo`` (see the columns), so that the same two functions, ``begin`` and
``learn``, serve lanes here and whole batches of feeders with equipment (``operator``).

A search brackets the factor between a low end that has passed a power flow and a high end that has not. Each kind of
limit has its own excess at both ends; the next factor tried is the nearest of their zeros by regula falsi, weights of
an end that stays shrunk by Anderson and Bjorck (1973, 10.1007/BF01951936). A limit that the base load itself touches
has no zero to aim at from below: there the line through the last two failures is used.
"""

from typing import Any, Final

import numpy as np
from numba import uintp

from evcs_gym.envs.grid.kernels import (
    BANK,
    ROW,
    collect,
    compiled,
    entry,
    gather,
    gather_banks,
    inject,
    inject_station,
    publish,
    settle,
)
from evcs_gym.envs.grid.simd import LANES, get, most, put, root, splat
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray

PASS_TOLERANCE: Final = 1e-6
"""Excess that passes [pu of voltage, share of a current or kVA limit, or unbalance]: the power flow's own tolerance has
room in it, and the 1e-4 that an accepted slot may be off are far."""
MAX_EXTRA_FLOWS: Final = 10
"""Power flows that a slot with a broken limit may cost beside the first."""
N_KINDS: Final = 5
"""Kinds of limits: voltage below, voltage above, current, kVA of the source, unbalance."""
_GOOD_ENOUGH: Final = 1e-7
"""A search ends where the passing factor leaves this little of the limit unused (same units as the tolerance)."""
_ROOM: Final = 1e-4
"""A limit with less room than this at factor 0 is touched by the base load: its low end says nothing about its zero."""
_FACTOR_STEP: Final = 1e-6
"""Width of the bracket of the factor at which a search ends."""
_CLOSEST: Final = 1e-3
"""Share of the bracket by which a tried factor keeps away from its ends."""
COLLAPSED: Final = 1.0
"""Excess of a case without power flow: larger than any other."""

STAGE: Final = 0
"""What the lane tries next: ``_GROUP_AT_ZERO``, ``ALL_AT_ZERO``, ``_SEARCH``; 0 where it is done, ``FAULT``."""
KIND: Final = 1
"""Which positions are scaled: ``IMPORTS``, ``EXPORTS`` or ``ALL``."""
LOW: Final = 2
_HIGH: Final = 3
TRIED: Final = 4
N_FLOWS: Final = 5
_LAST: Final = 6
"""1 if the low end moved last, -1 if the high end did."""
_PREVIOUS: Final = 7
"""The high end before this one."""
_AT_ZERO: Final = 8
_LOW_EXCESS: Final = _AT_ZERO + N_KINDS
_HIGH_EXCESS: Final = _LOW_EXCESS + N_KINDS
_LOW_WEIGHT: Final = _HIGH_EXCESS + N_KINDS
_HIGH_WEIGHT: Final = _LOW_WEIGHT + N_KINDS
_PREVIOUS_EXCESS: Final = _HIGH_WEIGHT + N_KINDS
MEMO: Final = _PREVIOUS_EXCESS + N_KINDS
"""Columns of ``memo``."""
_GROUP_AT_ZERO: Final = 1.0
ALL_AT_ZERO: Final = 2.0
_SEARCH: Final = 3.0
FAULT: Final = 4.0
IMPORTS: Final = 1.0
EXPORTS: Final = 2.0
ALL: Final = 3.0
_IM: Final = LANES
_PHASE: Final = 2 * LANES
_BOUND: Final = 3 * LANES
"""Numbers of a row in the buffers of voltage limits."""
LIMIT_ROW: Final = 8 * LANES
"""Numbers of a row in the buffer of limits."""
_SIN120: Final = 0.75**0.5


@compiled
def scaled(position_kw: float, kind: float, factor: float) -> float:
    """A position under the factor of a group."""
    if kind == ALL or (kind == IMPORTS and position_kw < 0.0) or (kind == EXPORTS and position_kw > 0.0):
        return factor * position_kw  # (N2)
    return position_kw


@compiled
def begin(k: int, excess: FloatArray, memo: FloatArray) -> bool:
    """Start the search of row k from the excesses (., 5) of its first flow; whether any limit is broken."""
    below, above = excess[k, 0] > PASS_TOLERANCE, excess[k, 1] > PASS_TOLERANCE
    other = excess[k, 2] > PASS_TOLERANCE or excess[k, 3] > PASS_TOLERANCE or excess[k, 4] > PASS_TOLERANCE
    memo[k, STAGE] = _GROUP_AT_ZERO
    memo[k, KIND] = ALL if other or below == above else (IMPORTS if below else EXPORTS)
    memo[k, LOW], memo[k, _HIGH], memo[k, TRIED], memo[k, N_FLOWS] = 0.0, 1.0, 0.0, 0.0
    memo[k, _LAST], memo[k, _PREVIOUS] = 0.0, -1.0
    for kind in range(N_KINDS):
        memo[k, _HIGH_EXCESS + kind] = excess[k, kind]
        memo[k, _HIGH_WEIGHT + kind] = excess[k, kind]
    return bool(below or above or other)


@compiled
def learn(k: int, excess: FloatArray, memo: FloatArray) -> bool:
    """Take in the excesses of the factor tried and choose the next one; whether they passed."""
    memo[k, N_FLOWS] += 1.0
    passed = True
    for kind in range(N_KINDS):
        passed &= excess[k, kind] <= PASS_TOLERANCE  # (N4)
    if memo[k, STAGE] == _SEARCH:
        _narrow(k, passed, excess, memo)
    elif passed:
        memo[k, STAGE] = _SEARCH
        for kind in range(N_KINDS):
            for column in (_AT_ZERO, _LOW_EXCESS, _LOW_WEIGHT):
                memo[k, column + kind] = excess[k, kind]
    elif memo[k, STAGE] == _GROUP_AT_ZERO:
        memo[k, STAGE] = ALL_AT_ZERO
        memo[k, KIND] = ALL
    else:
        memo[k, STAGE] = FAULT
    if memo[k, STAGE] == _SEARCH:
        _aim(k, memo)
    return passed


@compiled
def _narrow(k: int, passed: bool, excess: FloatArray, memo: FloatArray) -> None:
    """Move one end of the bracket to the factor tried."""
    moved, stays = (_LOW_WEIGHT, _HIGH_WEIGHT) if passed else (_HIGH_WEIGHT, _LOW_WEIGHT)
    repeated = memo[k, _LAST] == (1.0 if passed else -1.0)
    for kind in range(N_KINDS):
        now, before = excess[k, kind], memo[k, moved + kind]
        if repeated:
            shrink = 1.0 - now / before if before != 0.0 else 0.5
            memo[k, stays + kind] *= shrink if 0.0 < shrink < 1.0 else 0.5
        memo[k, moved + kind] = now
        if passed:
            memo[k, _LOW_EXCESS + kind] = now
        else:
            memo[k, _PREVIOUS_EXCESS + kind] = memo[k, _HIGH_EXCESS + kind]
            memo[k, _HIGH_EXCESS + kind] = now
    if passed:
        memo[k, LOW] = memo[k, TRIED]
    else:
        memo[k, _PREVIOUS] = memo[k, _HIGH]
        memo[k, _HIGH] = memo[k, TRIED]
    memo[k, _LAST] = 1.0 if passed else -1.0


@compiled
def _aim(k: int, memo: FloatArray) -> None:
    """The next factor to try, or the end of the search."""
    low, high = memo[k, LOW], memo[k, _HIGH]
    share = 1.0
    close = high - low <= _FACTOR_STEP or memo[k, N_FLOWS] >= MAX_EXTRA_FLOWS
    for kind in range(N_KINDS):
        if memo[k, _HIGH_EXCESS + kind] <= PASS_TOLERANCE:
            continue
        if memo[k, _AT_ZERO + kind] < -_ROOM:
            close |= memo[k, _LOW_EXCESS + kind] > -_GOOD_ENOUGH
            share = min(share, _between(k, kind, memo))
        else:
            found = _beyond(k, kind, memo)
            close |= abs(found) * (high - low) <= _FACTOR_STEP
            share = min(share, found if found > 0.0 else 0.5)
    memo[k, TRIED] = low + (high - low) * min(max(share, _CLOSEST), 1.0 - _CLOSEST)
    if close:
        memo[k, STAGE] = 0.0


@compiled
def _between(k: int, kind: int, memo: FloatArray) -> float:
    """Share of the bracket at which a limit is met, from its weights at both ends."""
    below, above = memo[k, _LOW_WEIGHT + kind], memo[k, _HIGH_WEIGHT + kind]
    return float(below / min(below - above, -PASS_TOLERANCE))


@compiled
def _beyond(k: int, kind: int, memo: FloatArray) -> float:
    """The same from the last two factors that broke it, half the bracket where there is but one."""
    high, previous = memo[k, _HIGH], memo[k, _PREVIOUS]
    now, then = memo[k, _HIGH_EXCESS + kind], memo[k, _PREVIOUS_EXCESS + kind]
    if previous <= high or then <= now:
        return 0.5
    return float(1.0 - now * (previous - high) / (then - now) / (high - memo[k, LOW]))


@entry
def begin_rows(excess: FloatArray, memo: FloatArray, broken: BoolArray) -> None:
    """``begin`` for all rows; written: broken (B,)."""
    for k in range(broken.size):
        broken[k] = begin(k, excess, memo)


@entry
def learn_rows(excess: FloatArray, memo: FloatArray, passed: BoolArray) -> None:
    """``learn`` for all rows; written: passed (B,)."""
    for k in range(passed.size):
        passed[k] = learn(k, excess, memo)


@compiled
def _gather_limits(
    lane: int,
    entry_of_case: int,
    order: IntArray,
    present: FloatArray,
    vmin_pu: FloatArray,
    vmax_pu: FloatArray,
    current_a: FloatArray,
    head_kva: FloatArray,
    unbalance_frac: FloatArray,
    bounds: FloatArray,
) -> None:
    """A lane's limits: per row vmin and vmax of each phase, current, unbalance; the head's in the row of the source.

    An absent phase idles at the source voltage and has no limits.
    """
    for row in range(order.size):
        bus, k = order[row], row * LIMIT_ROW + lane
        for phase in range(3):
            there = present[row, phase] != 0.0
            bounds[k + phase * LANES] = vmin_pu[entry_of_case, bus, phase] if there else 0.0
            bounds[k + _BOUND + phase * LANES] = vmax_pu[entry_of_case, bus, phase] if there else np.inf
        bounds[k + 2 * _BOUND] = current_a[entry_of_case, bus] if row > 0 else head_kva[entry_of_case]
        bounds[k + 2 * _BOUND + LANES] = unbalance_frac[entry_of_case, bus]


@compiled
def _unbalance(k: Any, voltage: FloatArray) -> Any:
    """|V-| / |V+| of the row at ``k``, by Fortescue's components."""
    a_re, a_im = get(voltage, k), get(voltage, k + uintp(_IM))
    sum_re = get(voltage, k + uintp(_PHASE)) + get(voltage, k + uintp(2 * _PHASE))
    sum_im = get(voltage, k + uintp(_PHASE + _IM)) + get(voltage, k + uintp(2 * _PHASE + _IM))
    turn, half = splat(_SIN120), splat(0.5)
    # V_b e^(+-j120) + V_c e^(-+j120) = -(V_b + V_c) / 2 +- j sin 120 (V_b - V_c)
    d_re = turn * (get(voltage, k + uintp(_PHASE + _IM)) - get(voltage, k + uintp(2 * _PHASE + _IM)))
    d_im = turn * (get(voltage, k + uintp(_PHASE)) - get(voltage, k + uintp(2 * _PHASE)))
    m_re, m_im = a_re - half * sum_re, a_im - half * sum_im
    p_re, p_im, n_re, n_im = m_re - d_re, m_im + d_im, m_re + d_re, m_im - d_im
    return root((n_re * n_re + n_im * n_im) / (p_re * p_re + p_im * p_im))


@compiled
def _over_voltage(row: int, complete: bool, voltage: FloatArray, bounds: FloatArray, worst: FloatArray) -> None:
    """Raise the worst excess of voltage and unbalance of each lane to that of a row."""
    k, b = uintp(row * ROW), uintp(row * LIMIT_ROW)
    below, above = get(worst, uintp(0)), get(worst, uintp(LANES))
    for phase in range(3):
        re, at = k + uintp(phase * _PHASE), b + uintp(phase * LANES)
        v_re, v_im = get(voltage, re), get(voltage, re + uintp(_IM))
        size = root(v_re * v_re + v_im * v_im)
        below = most(below, get(bounds, at) - size)
        above = most(above, size - get(bounds, at + uintp(_BOUND)))
    put(worst, uintp(0), below)
    put(worst, uintp(LANES), above)
    limit = get(bounds, b + uintp(2 * _BOUND + LANES))
    factor = _unbalance(k, voltage) if complete else splat(0.0)
    put(worst, uintp(4 * LANES), most(get(worst, uintp(4 * LANES)), factor - limit))


@compiled
def _over_current(row: int, a_per_pu: float, current: FloatArray, bounds: FloatArray, worst: FloatArray) -> None:
    """Raise the worst excess of branch currents to that of a row."""
    k = uintp(row * ROW)
    largest = splat(0.0)
    for phase in range(3):
        re = k + uintp(phase * _PHASE)
        i_re, i_im = get(current, re), get(current, re + uintp(_IM))
        largest = most(largest, i_re * i_re + i_im * i_im)
    limit = get(bounds, uintp(row * LIMIT_ROW + 2 * _BOUND))
    share = root(largest) * splat(a_per_pu) / limit - splat(1.0)
    put(worst, uintp(2 * LANES), most(get(worst, uintp(2 * LANES)), share))


@compiled
def _over_head(
    parent_row: IntArray, kva_per_pu: float, voltage: FloatArray, current: FloatArray, bounds: FloatArray,
    worst: FloatArray,
) -> None:  # fmt: skip
    """Excess of the apparent power that leaves the source, the sum of its phases."""
    p, q = splat(0.0), splat(0.0)
    for row in range(1, parent_row.size):
        if parent_row[row] != 0:
            continue
        for phase in range(3):
            v, i = uintp(phase * _PHASE), uintp(row * ROW + phase * _PHASE)
            v_re, v_im, i_re, i_im = (
                get(voltage, v), get(voltage, v + uintp(_IM)), get(current, i), get(current, i + uintp(_IM))
            )  # fmt: skip
            p += v_re * i_re + v_im * i_im
            q += v_im * i_re - v_re * i_im
    share = root(p * p + q * q) * splat(kva_per_pu) / get(bounds, uintp(2 * _BOUND)) - splat(1.0)
    put(worst, uintp(3 * LANES), share)


@compiled
def measure(
    parent_row: IntArray,
    present: FloatArray,
    bank: IntArray,
    base_current_a: FloatArray,
    pu_per_kva: float,
    load: FloatArray,
    susceptance: FloatArray,
    voltage: FloatArray,
    bounds: FloatArray,
    current: FloatArray,
    worst: FloatArray,
    excess: FloatArray,
) -> None:
    """Excesses (LANES, 5) of a block's voltages over its limits, as ``operator.excesses``."""
    for k in range(5):
        put(worst, uintp(k * LANES), splat(-np.inf))
    inject(bank, load, susceptance, voltage, current)
    collect(parent_row, current)
    for row in range(parent_row.size):
        complete = present[row, 0] * present[row, 1] * present[row, 2] != 0.0
        _over_voltage(row, complete, voltage, bounds, worst)
        if row > 0:
            _over_current(row, base_current_a[row], current, bounds, worst)
    _over_head(parent_row, 1.0 / pu_per_kva, voltage, current, bounds, worst)
    for kind in range(N_KINDS):
        for lane in range(LANES):
            excess[lane, kind] = worst[kind * LANES + lane]


@compiled
def _try(
    lane_case: IntArray,
    position_kw: FloatArray,
    station_row: IntArray,
    pu_per_kva: float,
    memo: FloatArray,
    base_load: FloatArray,
    load: FloatArray,
) -> None:
    """Loads of the factors that the lanes try."""
    for k in range(load.size):
        load[k] = base_load[k]
    for lane in range(LANES):
        for station in range(station_row.size):
            tried = scaled(position_kw[lane_case[lane], station], memo[lane, KIND], memo[lane, TRIED])
            inject_station(lane, station_row[station], tried, pu_per_kva, load)


@compiled
def _restart(lane: int, voltage: FloatArray) -> None:
    """Start a lane from the source voltage, which its row 0 holds."""
    for k in range(ROW, voltage.size, ROW):
        for part in range(6):
            voltage[k + part * LANES + lane] = voltage[part * LANES + lane]


@compiled
def _collapse(lane: int, excess: FloatArray) -> None:
    """Without a power flow every limit counts as broken."""
    for kind in range(N_KINDS):
        excess[lane, kind] = COLLAPSED


@compiled
def _conclude(
    case: int,
    lane: int,
    memo: FloatArray,
    position_kw: FloatArray,
    adjusted_kw: FloatArray,
    cap_kw: FloatArray,
    factor: FloatArray,
    n_extra: IntArray,
) -> None:
    """What a search found: positions, caps on their sizes, the factor and the flows it took, negative for a fault."""
    fault = memo[lane, STAGE] == FAULT
    factor[case] = memo[lane, LOW]
    n_extra[case] = -int(memo[lane, N_FLOWS]) if fault else int(memo[lane, N_FLOWS])
    for station in range(position_kw.shape[1]):
        given = position_kw[case, station]
        touched = scaled(given, memo[lane, KIND], 0.0) != given
        adjusted_kw[case, station] = scaled(given, memo[lane, KIND], memo[lane, LOW])
        cap_kw[case, station] = abs(adjusted_kw[case, station]) if touched else np.inf


@entry
def adjust_rows(
    first_case: int,
    end_case: int,
    order: IntArray,
    parent_row: IntArray,
    impedance: FloatArray,
    present: FloatArray,
    bank: IntArray,
    station_row: IntArray,
    base_current_a: FloatArray,
    source: FloatArray,
    load_kva: FloatArray,
    capacitor_kvar: FloatArray,
    pu_per_kva: float,
    vmin_pu: FloatArray,
    vmax_pu: FloatArray,
    current_a: FloatArray,
    head_kva: FloatArray,
    unbalance_frac: FloatArray,
    at: IntArray,
    position_kw: FloatArray,
    tolerance_pu: float,
    max_iterations: int,
    voltage_pu: FloatArray,
    loss_pu: FloatArray,
    n_sweeps: IntArray,
    adjusted_kw: FloatArray,
    cap_kw: FloatArray,
    factor: FloatArray,
    n_extra: IntArray,
) -> None:
    """Hold the cases first_case .. end_case - 1, whose first flow is ``kernels.solve``'s, to their limits.

    The network and what lies ready as for ``kernels.solve``, with base_current_a (N,), the current of 1 pu at each row,
    and limits beside the loads: vmin_pu, vmax_pu (M, N, 3), current_a, unbalance_frac (M, N), head_kva (M,). What is
    the case's own: at (B,), position_kw (B, S). Read, and where the case is adjusted written: voltage_pu (B, N, 6),
    loss_pu and n_sweeps (B,) of its flow. Written: adjusted_kw, cap_kw (B, S), infinite without a cap; factor (B,);
    n_extra (B,), flows beside the first, negative where even the base load breaks the limits, as it never does
    effective ones.
    """
    size = order.size * ROW
    load, base_load, bounds = np.empty(size), np.empty(size), np.empty(order.size * LIMIT_ROW)
    voltage, current, final = np.empty(size), np.empty(size), np.empty(size)
    susceptance, worst = np.empty(capacitor_kvar.shape[1] * BANK), np.empty(N_KINDS * LANES)
    change_sq, chosen, loss = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    excess, memo = np.empty((LANES, N_KINDS)), np.zeros((LANES, MEMO))
    used, lane_case = np.zeros(LANES, dtype=np.int64), np.zeros(LANES, dtype=np.int64)
    queue, first_excess = np.empty(end_case - first_case, dtype=np.int64), np.empty((end_case - first_case, N_KINDS))
    n_queue, n_taken, next_case = 0, 0, first_case
    while True:
        checking = next_case < end_case
        n_busy = 0
        for lane in range(LANES):
            if checking:
                case = min(next_case + lane, end_case - 1)
                memo[lane, STAGE], memo[lane, KIND] = 0.0, 0.0
            elif memo[lane, STAGE] == 0.0 and n_taken < n_queue:
                case = queue[n_taken]
                for kind in range(N_KINDS):
                    excess[lane, kind] = first_excess[n_taken, kind]
                begin(lane, excess, memo)
                n_taken += 1
            else:
                case = -1
            if case >= 0:
                lane_case[lane] = case
                k = at[case]
                gather_banks(lane, k, capacitor_kvar, pu_per_kva, susceptance)
                gather(lane, case, k, order, present, source, load_kva, pu_per_kva, voltage_pu, base_load, final)
                _gather_limits(
                    lane, k, order, present, vmin_pu, vmax_pu, current_a, head_kva, unbalance_frac, bounds
                )  # fmt: skip
                if n_sweeps[case] <= 0:
                    _restart(lane, final)
            if memo[lane, STAGE] == ALL_AT_ZERO:
                _restart(lane, final)
            used[lane] = 1 if memo[lane, STAGE] == 0.0 else 0
            n_busy += 1 - used[lane]
        if not checking and n_busy == 0:
            break
        _try(lane_case, position_kw, station_row, pu_per_kva, memo, base_load, load)
        if not checking:
            for k in range(size):
                voltage[k] = final[k]
            settle(
                parent_row, impedance, bank, tolerance_pu, max_iterations,
                load, susceptance, voltage, current, final, change_sq, chosen, loss, used,
            )  # fmt: skip
        measure(
            parent_row, present, bank, base_current_a, pu_per_kva,
            load, susceptance, final, bounds, current, worst, excess,
        )  # fmt: skip
        for lane in range(LANES):
            case = lane_case[lane]
            if checking:
                if next_case + lane >= end_case:
                    continue
                if n_sweeps[case] <= 0:
                    _collapse(lane, excess)
                if begin(lane, excess, memo):
                    queue[n_queue] = case
                    for kind in range(N_KINDS):
                        first_excess[n_queue, kind] = excess[lane, kind]
                    n_queue += 1
                else:
                    memo[lane, KIND], memo[lane, LOW] = 0.0, 1.0
                    _conclude(case, lane, memo, position_kw, adjusted_kw, cap_kw, factor, n_extra)
                memo[lane, STAGE] = 0.0
            elif memo[lane, STAGE] != 0.0:
                if used[lane] <= 0:
                    _collapse(lane, excess)
                    _restart(lane, final)
                if learn(lane, excess, memo):
                    publish(lane, case, order, present, final, voltage_pu)
                    loss_pu[case] = loss[lane]
                    n_sweeps[case] = used[lane]
                if memo[lane, STAGE] == 0.0 or memo[lane, STAGE] == FAULT:
                    _conclude(case, lane, memo, position_kw, adjusted_kw, cap_kw, factor, n_extra)
                    memo[lane, STAGE] = 0.0
        next_case += LANES
