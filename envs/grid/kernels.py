"""Compiled backward/forward sweeps over lanes of independent cases.

Layout. Up to ``LANES`` cases travel together. A *row* holds one bus of all of them as 6 * LANES contiguous numbers:
Re a, Im a, Re b, Im b, Re c, Im c, each for LANES cases side by side. Loops over lanes are the innermost ones, touch
few arrays and have no branch, so that the compiler turns them into vector instructions. Rows are buses in the
feeder's sweep order (parents first), flat in one buffer: row i starts at i * ROW. Offsets are unsigned because signed
ones make numba test for negative indices, which prevents vectors.

Every lane is computed by the same operations whatever its neighbours are, and its result is written at the sweep in
which it converges: results do not depend on the batch. Fused multiply-add is the one liberty the compiler has.

Arrays are float64 and, but for the loads handed in, in per unit; a complex array (.., 3) arrives as its real view
(.., 6).
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numpy as np
from numba import njit, uintp

from evcs_gym.envs.types import FloatArray, IntArray

LANES: Final = 16
"""Cases per block: two or four vectors of current processors; wider rows leave the fast cache."""
_IM: Final = LANES
_PHASE: Final = 2 * LANES
_ROW: Final = 6 * LANES
_PER_MATRIX: Final = 18

_Function = TypeVar("_Function", bound=Callable[..., Any])
_OPTIONS: Final[dict[str, Any]] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def _compiled(function: _Function) -> _Function:
    """Compile for use by other kernels; the disk cache of the kernel that calls it holds a copy."""
    return cast(_Function, njit(**_OPTIONS)(function))


def _entry(function: _Function) -> _Function:
    """Compile for Python and keep the result on disk. It runs without Python's lock, so that threads can share it."""
    return cast(_Function, njit(cache=True, **_OPTIONS)(function))


@_compiled
def _inject(voltage: FloatArray, load: FloatArray, current: FloatArray, at: Any, n_lanes: int) -> None:
    """Load current of one row."""
    for phase in range(3):
        for lane in range(n_lanes):
            re = at + uintp(phase * _PHASE + lane)
            im = re + uintp(_IM)
            v_re = voltage[re]
            v_im = voltage[im]
            scale = 1.0 / (v_re * v_re + v_im * v_im)
            p = load[re]
            q = load[im]
            current[re] = (p * v_re + q * v_im) * scale  # (P1)
            current[im] = (p * v_im - q * v_re) * scale


@_compiled
def _collect(current: FloatArray, at: Any, parent_at: Any, n_lanes: int) -> None:
    """Add the current of a row's branch to its parent's row."""
    for part in range(6):
        for lane in range(n_lanes):
            k = uintp(part * LANES + lane)
            current[parent_at + k] += current[at + k]  # (P2)


@_compiled
def _drop(impedance: FloatArray, current: FloatArray, drop: FloatArray, at: Any, z_at: Any, n_lanes: int) -> None:
    """Voltage drop Z J along the branch of one row."""
    for phase in range(3):
        z = z_at + uintp(6 * phase)
        r_a = impedance[z]
        x_a = impedance[z + uintp(1)]
        r_b = impedance[z + uintp(2)]
        x_b = impedance[z + uintp(3)]
        r_c = impedance[z + uintp(4)]
        x_c = impedance[z + uintp(5)]
        for lane in range(n_lanes):
            k = at + uintp(lane)
            a_re = current[k]
            a_im = current[k + uintp(LANES)]
            b_re = current[k + uintp(2 * LANES)]
            b_im = current[k + uintp(3 * LANES)]
            c_re = current[k + uintp(4 * LANES)]
            c_im = current[k + uintp(5 * LANES)]
            re = uintp(phase * _PHASE + lane)
            drop[re] = r_a * a_re - x_a * a_im + r_b * b_re - x_b * b_im + r_c * c_re - x_c * c_im
            drop[re + uintp(_IM)] = r_a * a_im + x_a * a_re + r_b * b_im + x_b * b_re + r_c * c_im + x_c * c_re


@_compiled
def _advance(
    new: FloatArray,
    parent_at: Any,
    drop: FloatArray,
    old: FloatArray,
    change_sq: FloatArray,
    at: Any,
    n_lanes: int,
) -> None:
    """New voltage of one row, and the largest squared change of each lane so far.

    The sum with 0 * change keeps a value that is not finite in ``change_sq``, where a plain maximum would lose it.
    """
    for phase in range(3):
        for lane in range(n_lanes):
            re = uintp(phase * _PHASE + lane)
            im = re + uintp(_IM)
            v_re = new[parent_at + re] - drop[re]  # (P3)
            v_im = new[parent_at + im] - drop[im]
            d_re = v_re - old[at + re]
            d_im = v_im - old[at + im]
            change = d_re * d_re + d_im * d_im
            largest = change_sq[uintp(lane)]
            change_sq[uintp(lane)] = change if change > largest else largest + 0.0 * change
            new[at + re] = v_re
            new[at + im] = v_im


@_compiled
def _sweep(
    parent_row: IntArray,
    impedance: FloatArray,
    load: FloatArray,
    old: FloatArray,
    new: FloatArray,
    drop: FloatArray,
    change_sq: FloatArray,
    n_lanes: int,
) -> None:
    """One iteration: currents of ``old`` collected towards the source, then voltages outwards into ``new``.

    ``new`` first holds the currents; a row's current is no longer needed once its voltage is known.
    """
    n_rows = parent_row.size
    for row in range(1, n_rows):
        _inject(old, load, new, uintp(row * _ROW), n_lanes)
    for row in range(n_rows - 1, 0, -1):
        if parent_row[row] > 0:
            _collect(new, uintp(row * _ROW), uintp(parent_row[row] * _ROW), n_lanes)
    # Element by element: a slice assignment would make numba compile its error message, which takes seconds.
    for k in range(_ROW):
        new[k] = old[k]
    for lane in range(n_lanes):
        change_sq[lane] = 0.0
    for row in range(1, n_rows):
        at = uintp(row * _ROW)
        _drop(impedance, new, drop, at, uintp(row * _PER_MATRIX), n_lanes)
        _advance(new, uintp(parent_row[row] * _ROW), drop, old, change_sq, at, n_lanes)


@_compiled
def _gather(
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
        for phase in range(3):
            taken = warm and row > 0 and present[row, phase] != 0.0
            for part in range(2 * phase, 2 * phase + 2):
                at = row * _ROW + part * LANES
                for lane in range(n_lanes):
                    load[at + lane] = load_kva[first + lane, bus, part] * pu_per_kva
                    voltage[at + lane] = start_pu[first + lane, bus, part] if taken else source[first + lane, part]


@_compiled
def _publish(
    lane: int,
    case: int,
    order: IntArray,
    present: FloatArray,
    source: FloatArray,
    load: FloatArray,
    voltage: FloatArray,
    voltage_pu: FloatArray,
) -> float:
    """Write one lane's voltages and return its loss: what the source sends less what the loads draw.

    The source sends Re sum_i s_i V0 / V_i, so the loss is Re sum_i s_i (V0 - V_i) / V_i, free of cancellation.
    """
    loss = 0.0
    for row in range(order.size):
        bus = order[row]
        for phase in range(3):
            at = row * _ROW + phase * _PHASE + lane
            v_re = voltage[at] * present[row, phase]
            v_im = voltage[at + _IM] * present[row, phase]
            voltage_pu[case, bus, 2 * phase] = v_re
            voltage_pu[case, bus, 2 * phase + 1] = v_im
            if present[row, phase] != 0.0:
                u_re = source[case, 2 * phase] - v_re
                u_im = source[case, 2 * phase + 1] - v_im
                p = load[at]
                q = load[at + _IM]
                along = u_re * v_re + u_im * v_im
                across = u_im * v_re - u_re * v_im
                loss += (p * along - q * across) / (v_re * v_re + v_im * v_im)
    return loss


@_entry
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
    n_rows = order.size
    load = np.empty(n_rows * _ROW)
    old = np.empty(n_rows * _ROW)
    new = np.empty(n_rows * _ROW)
    drop = np.empty(_ROW)
    change_sq = np.empty(LANES)
    pending = np.empty(LANES, dtype=np.bool_)
    for first in range(first_case, end_case, LANES):
        n_lanes = min(LANES, end_case - first)
        _gather(first, n_lanes, order, present, source, load_kva, pu_per_kva, start_pu, load, old)
        for lane in range(n_lanes):
            pending[lane] = True
        n_pending = n_lanes
        for iteration in range(1, max_iterations + 1):
            _sweep(parent_row, impedance, load, old, new, drop, change_sq, n_lanes)
            for lane in range(n_lanes):
                if not pending[lane]:
                    continue
                case = first + lane
                converged = change_sq[lane] <= tolerance_pu * tolerance_pu
                # Collapse: the new voltages are not finite, the old ones are the last that were.
                collapsed = not change_sq[lane] < np.inf
                if converged or collapsed or iteration == max_iterations:
                    last = old if collapsed else new
                    loss = _publish(lane, case, order, present, source, load, last, voltage_pu)
                    if converged:
                        loss_pu[case] = loss
                    n_sweeps[case] = iteration if converged else -iteration
                    pending[lane] = False
                    n_pending -= 1
            if n_pending == 0:
                break
            old, new = new, old
