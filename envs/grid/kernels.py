"""Compiled backward/forward sweeps over lanes of independent cases.

Layout. ``LANES`` cases travel together. A *row* holds one bus of all of them as 6 vectors, Re a, Im a, Re b, Im b,
Re c, Im c; rows are buses in the feeder's sweep order (parents first), flat in one buffer: row i starts at i * ROW.
Three buffers (loads, voltages, currents) are all that a sweep touches; for 33 buses they fill the fastest cache.
A sweep reads each twice: currents are collected towards the source, then, going outwards, a row's voltage, its change
and its load current for the next sweep are computed while they are in registers.

Every lane is computed by the same operations whatever its neighbours are, and its result is kept at the sweep in which
it converges; unused lanes repeat the last case: results do not depend on the batch. Fused multiply-add is the
one liberty the compiler has.

Arrays are float64 and, but for the loads handed in, in per unit; a complex array (.., 3) arrives as its real view
(.., 6).
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numpy as np
from numba import njit, uintp

from evcs_gym.envs.grid.simd import LANES, get, larger, pick, put, splat
from evcs_gym.envs.types import FloatArray, IntArray

ROW: Final = 6 * LANES
BANK: Final = 3 * LANES
"""Numbers of a capacitor bank: the susceptance of every phase of all lanes."""
PER_MATRIX: Final = 18
"""Numbers of a complex 3x3 matrix."""
_IM: Final = LANES
_PHASE: Final = 2 * LANES

_Function = TypeVar("_Function", bound=Callable[..., Any])
_OPTIONS: Final[dict[str, Any]] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def compiled(function: _Function) -> _Function:
    """Compile for use by other kernels; the disk cache of the kernel that calls it holds a copy."""
    return cast(_Function, njit(**_OPTIONS)(function))


def entry(function: _Function) -> _Function:
    """Compile for Python and keep the result on disk. It runs without Python's lock, so that threads can share it."""
    return cast(_Function, njit(cache=True, **_OPTIONS)(function))


@compiled
def compensate(k: Any, at: Any, susceptance: FloatArray, voltage: FloatArray, current: FloatArray) -> None:
    """Add the capacitor currents of the row at ``k`` to its load currents."""
    for phase in range(3):
        re = k + uintp(phase * _PHASE)
        im = re + uintp(_IM)
        b = get(susceptance, at + uintp(phase * LANES))
        put(current, re, get(current, re) - b * get(voltage, im))  # (P8)
        put(current, im, get(current, im) + b * get(voltage, re))


@compiled
def inject(bank: IntArray, load: FloatArray, susceptance: FloatArray, voltage: FloatArray, current: FloatArray) -> None:
    """Load currents of all rows at the start voltages."""
    for row in range(1, bank.size):
        for phase in range(3):
            re = uintp(row * ROW + phase * _PHASE)
            im = re + uintp(_IM)
            v_re, v_im, p, q = get(voltage, re), get(voltage, im), get(load, re), get(load, im)
            scale = splat(1.0) / (v_re * v_re + v_im * v_im)
            put(current, re, (p * v_re + q * v_im) * scale)  # (P1)
            put(current, im, (p * v_im - q * v_re) * scale)
        if bank[row] >= 0:
            compensate(uintp(row * ROW), uintp(bank[row] * BANK), susceptance, voltage, current)


@compiled
def collect(parent_row: IntArray, current: FloatArray) -> None:
    """Branch currents of all rows from load currents. What flows into the row before stays in registers."""
    none = splat(0.0)
    a_re, a_im, b_re, b_im, c_re, c_im = none, none, none, none, none, none
    for row in range(parent_row.size - 1, 0, -1):
        k = uintp(row * ROW)
        a_re += get(current, k)  # (P2)
        a_im += get(current, k + uintp(LANES))
        b_re += get(current, k + uintp(2 * LANES))
        b_im += get(current, k + uintp(3 * LANES))
        c_re += get(current, k + uintp(4 * LANES))
        c_im += get(current, k + uintp(5 * LANES))
        put(current, k, a_re)
        put(current, k + uintp(LANES), a_im)
        put(current, k + uintp(2 * LANES), b_re)
        put(current, k + uintp(3 * LANES), b_im)
        put(current, k + uintp(4 * LANES), c_re)
        put(current, k + uintp(5 * LANES), c_im)
        parent = parent_row[row]
        if parent != row - 1:
            k = uintp(parent * ROW)
            put(current, k, get(current, k) + a_re)
            put(current, k + uintp(LANES), get(current, k + uintp(LANES)) + a_im)
            put(current, k + uintp(2 * LANES), get(current, k + uintp(2 * LANES)) + b_re)
            put(current, k + uintp(3 * LANES), get(current, k + uintp(3 * LANES)) + b_im)
            put(current, k + uintp(4 * LANES), get(current, k + uintp(4 * LANES)) + c_re)
            put(current, k + uintp(5 * LANES), get(current, k + uintp(5 * LANES)) + c_im)
            a_re, a_im, b_re, b_im, c_re, c_im = none, none, none, none, none, none


@compiled
def _advance(
    parent_row: IntArray,
    impedance: FloatArray,
    load: FloatArray,
    bank: IntArray,
    susceptance: FloatArray,
    voltage: FloatArray,
    current: FloatArray,
    change_sq: FloatArray,
) -> None:
    """New voltages of all rows from branch currents, which give way to the load currents at these voltages.

    change_sq: written, the largest squared change of each lane.
    """
    largest = splat(0.0)
    for row in range(1, parent_row.size):
        k = uintp(row * ROW)
        parent = uintp(parent_row[row] * ROW)
        a_re = get(current, k)
        a_im = get(current, k + uintp(LANES))
        b_re = get(current, k + uintp(2 * LANES))
        b_im = get(current, k + uintp(3 * LANES))
        c_re = get(current, k + uintp(4 * LANES))
        c_im = get(current, k + uintp(5 * LANES))
        for phase in range(3):
            z = uintp(row * PER_MATRIX + 6 * phase)
            r_a, x_a = splat(impedance[z]), splat(impedance[z + uintp(1)])
            r_b, x_b = splat(impedance[z + uintp(2)]), splat(impedance[z + uintp(3)])
            r_c, x_c = splat(impedance[z + uintp(4)]), splat(impedance[z + uintp(5)])
            drop_re = r_a * a_re - x_a * a_im + r_b * b_re - x_b * b_im + r_c * c_re - x_c * c_im
            drop_im = r_a * a_im + x_a * a_re + r_b * b_im + x_b * b_re + r_c * c_im + x_c * c_re
            re = k + uintp(phase * _PHASE)
            im = re + uintp(_IM)
            v_re = get(voltage, parent + uintp(phase * _PHASE)) - drop_re  # (P3)
            v_im = get(voltage, parent + uintp(phase * _PHASE + _IM)) - drop_im
            d_re, d_im = v_re - get(voltage, re), v_im - get(voltage, im)
            largest = larger(largest, d_re * d_re + d_im * d_im)
            put(voltage, re, v_re)
            put(voltage, im, v_im)
            p, q = get(load, re), get(load, im)
            scale = splat(1.0) / (v_re * v_re + v_im * v_im)
            put(current, re, (p * v_re + q * v_im) * scale)  # the current of (P1)
            put(current, im, (p * v_im - q * v_re) * scale)
        if bank[row] >= 0:
            compensate(k, uintp(bank[row] * BANK), susceptance, voltage, current)
    put(change_sq, uintp(0), largest)


@compiled
def _lost(voltage: FloatArray, current: FloatArray, n_rows: int, chosen: FloatArray, loss: FloatArray) -> None:
    """Loss of the chosen lanes from voltages and load currents: what the source sends less what the loads draw.

    That is Re sum_i (V0 - V_i) conj(I_i), free of cancellation.
    """
    total = splat(0.0)
    for part in range(6):
        v0 = get(voltage, uintp(part * LANES))
        for row in range(1, n_rows):
            k = uintp(row * ROW + part * LANES)
            total += (v0 - get(voltage, k)) * get(current, k)
    put(loss, uintp(0), pick(get(chosen, uintp(0)), total, get(loss, uintp(0))))


@compiled
def gather(
    lane: int,
    case: int,
    entry_of_case: int,
    order: IntArray,
    present: FloatArray,
    source: FloatArray,
    load_kva: FloatArray,
    pu_per_kva: float,
    start_pu: FloatArray,
    load: FloatArray,
    voltage: FloatArray,
) -> None:
    """A lane's loads and start voltages from the cases' arrays; an absent phase idles at the source voltage."""
    warm = start_pu.shape[0] > 0
    for row in range(order.size):
        bus = order[row]
        k = row * ROW + lane
        for part in range(6):
            load[k + part * LANES] = load_kva[entry_of_case, bus, part] * pu_per_kva
            voltage[k + part * LANES] = source[entry_of_case, part]
        if warm and row > 0:
            for part in range(6):
                if present[row, part // 2] != 0.0:
                    voltage[k + part * LANES] = start_pu[case, bus, part]


@compiled
def gather_banks(
    lane: int, entry_of_case: int, capacitor_kvar: FloatArray, pu_per_kva: float, susceptance: FloatArray
) -> None:
    """A lane's susceptances in per unit: the reactive power at nominal voltage."""
    for k in range(capacitor_kvar.shape[1]):
        for phase in range(3):
            susceptance[k * BANK + phase * LANES + lane] = capacitor_kvar[entry_of_case, k, phase] * pu_per_kva


@compiled
def inject_station(lane: int, row: int, position_kw: float, pu_per_kva: float, load: FloatArray) -> None:
    """Take the net position of a station, balanced and at unity power factor, from a lane's loads."""
    for phase in range(3):
        load[row * ROW + phase * _PHASE + lane] -= position_kw / 3.0 * pu_per_kva  # (N1)


@compiled
def publish(
    lane: int, case: int, order: IntArray, present: FloatArray, voltage: FloatArray, voltage_pu: FloatArray
) -> None:
    """Write one lane's voltages."""
    for row in range(order.size):
        bus = order[row]
        for part in range(6):
            voltage_pu[case, bus, part] = voltage[row * ROW + part * LANES + lane] * present[row, part // 2]


@compiled
def judge(
    iteration: int, limit: int, tolerance_pu: float, change_sq: FloatArray, chosen: FloatArray, n_sweeps: IntArray
) -> bool:
    """Mark the lanes that end with this sweep; whether any goes on. chosen: 1 where the voltages are to be kept."""
    goes_on = False
    for lane in range(LANES):
        chosen[lane] = 0.0
        if n_sweeps[lane] != 0:
            continue
        if change_sq[lane] <= tolerance_pu * tolerance_pu:
            n_sweeps[lane] = iteration
            chosen[lane] = 1.0
        elif not change_sq[lane] < np.inf:  # collapse: the voltages are no longer finite
            n_sweeps[lane] = -iteration
        elif iteration == limit:
            n_sweeps[lane] = -iteration
            chosen[lane] = 1.0
        else:
            goes_on = True
    return goes_on


@compiled
def keep(chosen: FloatArray, voltage: FloatArray, final: FloatArray) -> None:
    """Copy the voltages of the chosen lanes."""
    mask = get(chosen, uintp(0))
    for k in range(0, voltage.size, LANES):
        put(final, uintp(k), pick(mask, get(voltage, uintp(k)), get(final, uintp(k))))


@compiled
def settle(
    parent_row: IntArray,
    impedance: FloatArray,
    bank: IntArray,
    tolerance_pu: float,
    limit: int,
    load: FloatArray,
    susceptance: FloatArray,
    voltage: FloatArray,
    current: FloatArray,
    final: FloatArray,
    change_sq: FloatArray,
    chosen: FloatArray,
    loss: FloatArray,
    n_sweeps: IntArray,
) -> None:
    """Sweep a block until each of its lanes has converged, collapsed or used up its sweeps.

    load, susceptance, voltage: the block, voltage where it starts. n_sweeps (LANES,): 0 for the lanes to solve; becomes
    the sweeps used, negative without convergence. Written for these lanes, at the sweep that ends them: final, their
    voltages (after a collapse those of the start), and loss (LANES,).
    """
    for lane in range(LANES):
        chosen[lane] = 1.0 if n_sweeps[lane] == 0 else 0.0
    keep(chosen, voltage, final)
    inject(bank, load, susceptance, voltage, current)
    iteration = 0
    goes_on = True
    while goes_on:
        iteration += 1
        collect(parent_row, current)
        _advance(parent_row, impedance, load, bank, susceptance, voltage, current, change_sq)
        goes_on = judge(iteration, limit, tolerance_pu, change_sq, chosen, n_sweeps)
        any_chosen = False
        for lane in range(LANES):
            any_chosen |= chosen[lane] != 0.0
        if any_chosen:
            keep(chosen, voltage, final)
            _lost(voltage, current, parent_row.size, chosen, loss)


@compiled
def retry(used: IntArray, before: IntArray) -> bool:
    """Make the lanes that did not converge ready for another start; whether there are any."""
    any_left = False
    for lane in range(LANES):
        if used[lane] < 0:
            before[lane] = -used[lane]
            used[lane] = 0
            any_left = True
    return any_left


@compiled
def total_sweeps(used: int, before: int) -> int:
    """Sweeps of both starts, negative where the last one did not converge."""
    return used + before if used > 0 else used - before


@entry
def solve(
    first_case: int,
    end_case: int,
    order: IntArray,
    parent_row: IntArray,
    impedance: FloatArray,
    present: FloatArray,
    bank: IntArray,
    station_row: IntArray,
    source: FloatArray,
    load_kva: FloatArray,
    capacitor_kvar: FloatArray,
    pu_per_kva: float,
    at: IntArray,
    position_kw: FloatArray,
    start_pu: FloatArray,
    tolerance_pu: float,
    max_iterations: int,
    voltage_pu: FloatArray,
    loss_pu: FloatArray,
    n_sweeps: IntArray,
) -> None:
    """Solve the cases first_case .. end_case - 1, one block of lanes after the other.

    The network, in sweep order: order, parent_row (N,), bus of each row and row of its parent; impedance (N * 18,);
    present (N, 3), 1 or 0; bank (N,), the capacitor bank of a row or -1; station_row (S,), the row of each station.
    What lies ready, M entries of which case b takes at[b]: source (M, 6), voltage of the source; load_kva (M, N, 6);
    capacitor_kvar (M, K, 3). What is the case's own, B: at (B,); position_kw (B, S), injected by the stations; start_pu
    (B, N, 6), or (0, 0, 0) to start from the source voltage. Written: voltage_pu (B, N, 6), which may be start_pu;
    loss_pu (B,), untouched where a case does not converge; n_sweeps (B,), the sweeps used, negative where a case does
    not converge. A case that does not converge from start_pu is solved again from the source voltage.
    """
    size = order.size * ROW
    load, voltage, current, final = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    susceptance = np.empty(capacitor_kvar.shape[1] * BANK)
    change_sq, chosen, loss = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    used, before = np.empty(LANES, dtype=np.int64), np.empty(LANES, dtype=np.int64)
    for first in range(first_case, end_case, LANES):
        n_lanes = min(LANES, end_case - first)
        for lane in range(LANES):
            used[lane] = 0
            before[lane] = 0
            gather_banks(lane, at[first + min(lane, n_lanes - 1)], capacitor_kvar, pu_per_kva, susceptance)
        start = start_pu
        goes_on = True
        while goes_on:
            for lane in range(LANES):
                case = first + min(lane, n_lanes - 1)
                gather(lane, case, at[case], order, present, source, load_kva, pu_per_kva, start, load, voltage)
                for station in range(station_row.size):
                    inject_station(lane, station_row[station], position_kw[case, station], pu_per_kva, load)
            settle(
                parent_row, impedance, bank, tolerance_pu, max_iterations,
                load, susceptance, voltage, current, final, change_sq, chosen, loss, used,
            )  # fmt: skip
            goes_on = start.shape[0] > 0 and retry(used, before)
            start = start_pu[:0]
        for lane in range(n_lanes):
            case = first + lane
            publish(lane, case, order, present, final, voltage_pu)
            n_sweeps[case] = total_sweeps(used[lane], before[lane])
            if used[lane] > 0:
                loss_pu[case] = loss[lane]
