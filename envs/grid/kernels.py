"""Compiled backward/forward sweeps over lanes of independent cases.

Layout. ``LANES`` cases travel together. A *row* holds one bus of all of them as 6 vectors, Re a, Im a, Re b, Im b,
Re c, Im c; rows are buses in the feeder's sweep order (parents first), flat in one buffer: row i starts at i * ROW.
Three buffers (loads, voltages, currents) are all that a sweep touches; for 33 buses they fill the fastest cache.
A sweep reads each twice: currents are collected towards the source, then, going outwards, a row's voltage, its change
and its load current for the next sweep are computed while they are in registers.

Every lane is computed by the same operations whatever its neighbours are, and its result is written at the sweep in
which it converges; unused lanes repeat the last case: results do not depend on the batch. Fused multiply-add is the
one liberty the compiler has.

Arrays are float64 and, but for the loads handed in, in per unit; a complex array (.., 3) arrives as its real view
(.., 6).
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numpy as np
from numba import njit, uintp

from evcs_gym.envs.grid.simd import LANES, get, larger, put, splat
from evcs_gym.envs.types import FloatArray, IntArray

ROW: Final = 6 * LANES
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
def _inject(voltage: FloatArray, load: FloatArray, current: FloatArray, n_rows: int) -> None:
    """Load currents of all rows at the start voltages."""
    for k in range(1 * 3, n_rows * 3):
        re = uintp(k * _PHASE)
        im = re + uintp(_IM)
        v_re, v_im, p, q = get(voltage, re), get(voltage, im), get(load, re), get(load, im)
        scale = splat(1.0) / (v_re * v_re + v_im * v_im)
        put(current, re, (p * v_re + q * v_im) * scale)  # (P1)
        put(current, im, (p * v_im - q * v_re) * scale)


@compiled
def _collect(parent_row: IntArray, current: FloatArray) -> None:
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
    put(change_sq, uintp(0), largest)


@compiled
def _lost(voltage: FloatArray, current: FloatArray, n_rows: int, loss: FloatArray) -> None:
    """Loss of each lane from voltages and load currents: what the source sends less what the loads draw.

    That is Re sum_i (V0 - V_i) conj(I_i), free of cancellation.
    """
    total = splat(0.0)
    for part in range(6):
        v0 = get(voltage, uintp(part * LANES))
        for row in range(1, n_rows):
            k = uintp(row * ROW + part * LANES)
            total += (v0 - get(voltage, k)) * get(current, k)
    put(loss, uintp(0), total)


@compiled
def gather(
    first: int,
    n_lanes: int,
    order: IntArray,
    present: FloatArray,
    source: FloatArray,
    load_kva: FloatArray,
    pu_per_kva: float,
    start_pu: FloatArray,
    load: FloatArray,
    voltage: FloatArray,
) -> None:
    """Rows of loads and start voltages from the cases' arrays; an absent phase idles at the source voltage."""
    warm = start_pu.shape[0] > 0
    for row in range(order.size):
        bus = order[row]
        for lane in range(LANES):
            case = first + min(lane, n_lanes - 1)
            at = row * ROW + lane
            for part in range(6):
                load[at + part * LANES] = load_kva[case, bus, part] * pu_per_kva
                voltage[at + part * LANES] = source[case, part]
            if warm and row > 0:
                for part in range(6):
                    if present[row, part // 2] != 0.0:
                        voltage[at + part * LANES] = start_pu[case, bus, part]


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
def _sweep(
    parent_row: IntArray,
    impedance: FloatArray,
    load: FloatArray,
    voltage: FloatArray,
    current: FloatArray,
    change_sq: FloatArray,
) -> None:
    """One iteration: currents collected towards the source, then voltages outwards."""
    _collect(parent_row, current)
    _advance(parent_row, impedance, load, voltage, current, change_sq)


@compiled
def _replay(
    n_sweeps: int,
    first: int,
    n_lanes: int,
    order: IntArray,
    parent_row: IntArray,
    impedance: FloatArray,
    present: FloatArray,
    source: FloatArray,
    load_kva: FloatArray,
    pu_per_kva: float,
    start_pu: FloatArray,
) -> FloatArray:
    """Voltages of a block after ``n_sweeps`` sweeps: how a lane stood before the sweep that broke it."""
    size = order.size * ROW
    load, voltage, current, change_sq = np.empty(size), np.empty(size), np.empty(size), np.empty(LANES)
    gather(first, n_lanes, order, present, source, load_kva, pu_per_kva, start_pu, load, voltage)
    _inject(voltage, load, current, order.size)
    for _ in range(n_sweeps):
        _sweep(parent_row, impedance, load, voltage, current, change_sq)
    return voltage


@entry
def solve(
    first_case: int,
    end_case: int,
    order: IntArray,
    parent_row: IntArray,
    impedance: FloatArray,
    present: FloatArray,
    source: FloatArray,
    load_kva: FloatArray,
    pu_per_kva: float,
    start_pu: FloatArray,
    tolerance_pu: float,
    max_iterations: int,
    voltage_pu: FloatArray,
    loss_pu: FloatArray,
    n_sweeps: IntArray,
) -> None:
    """Solve the cases first_case .. end_case - 1 of the arrays, one block of lanes after the other.

    order, parent_row: (N,) bus of each row and row of its parent. impedance: (N * 18,) per row. present: (N, 3) per
    row, 1 or 0. source: (B, 6) voltage of the source. load_kva: (B, N, 6). start_pu: (B, N, 6), or (0, 0, 0) to start
    from the source voltage. Written: voltage_pu (B, N, 6); loss_pu (B,), untouched where a case does not converge;
    n_sweeps (B,), the sweeps used, negative where a case does not converge.
    """
    size = order.size * ROW
    load, voltage, current = np.empty(size), np.empty(size), np.empty(size)
    change_sq, loss = np.empty(LANES), np.empty(LANES)
    pending = np.empty(LANES, dtype=np.bool_)
    for first in range(first_case, end_case, LANES):
        n_lanes = min(LANES, end_case - first)
        gather(first, n_lanes, order, present, source, load_kva, pu_per_kva, start_pu, load, voltage)
        _inject(voltage, load, current, order.size)
        for lane in range(n_lanes):
            pending[lane] = True
        n_pending = n_lanes
        for iteration in range(1, max_iterations + 1):
            _sweep(parent_row, impedance, load, voltage, current, change_sq)
            lost = False
            for lane in range(n_lanes):
                if not pending[lane]:
                    continue
                case = first + lane
                converged = change_sq[lane] <= tolerance_pu * tolerance_pu
                # Collapse: the new voltages are not finite, those before are the last that were.
                collapsed = not change_sq[lane] < np.inf
                if not (converged or collapsed or iteration == max_iterations):
                    continue
                if collapsed:
                    before = _replay(
                        iteration - 1, first, n_lanes, order, parent_row, impedance, present, source, load_kva,
                        pu_per_kva, start_pu,
                    )  # fmt: skip
                    publish(lane, case, order, present, before, voltage_pu)
                else:
                    publish(lane, case, order, present, voltage, voltage_pu)
                if converged:
                    if not lost:
                        _lost(voltage, current, order.size, loss)
                        lost = True
                    loss_pu[case] = loss[lane]
                n_sweeps[case] = iteration if converged else -iteration
                pending[lane] = False
                n_pending -= 1
            if n_pending == 0:
                break
