"""Compiled sweeps for feeders with transformers, regulators, shunts, delta loads or loads that depend on voltage.

The layout is that of ``kernels``. These sweeps are compiled only when a feeder needs them. A row's ``flags`` say which
parts it has, so that the others cost nothing; all constants of a row lie in one flat table (see ``TABLE``).
"""

from typing import Any, Final

import numpy as np
from numba import uintp

from evcs_gym.envs.grid.flags import HAS_DELTA, HAS_SHARES, HAS_SHUNT, HAS_TRANSFER
from evcs_gym.envs.grid.kernels import (
    BANK,
    PER_MATRIX,
    ROW,
    compensate,
    compiled,
    entry,
    gather,
    gather_banks,
    judge,
    keep,
    publish,
    retry,
    total_sweeps,
)
from evcs_gym.envs.grid.simd import LANES, get, larger, put, root, splat
from evcs_gym.envs.types import FloatArray, IntArray

AT_IMPEDANCE: Final = 0
AT_TRANSFER: Final = PER_MATRIX
AT_SHUNT: Final = 2 * PER_MATRIX
AT_SHARES: Final = 3 * PER_MATRIX
AT_DELTA_SHARES: Final = AT_SHARES + 9
TABLE: Final = AT_DELTA_SHARES + 9
"""Numbers of a row: impedance, transfer and shunt matrices, then shares of constant power, current and impedance of the
three wye and the three delta loads."""
_IM: Final = LANES
_PHASE: Final = 2 * LANES
_SQRT3: Final = 3.0**0.5


@compiled
def _product_re(matrix: FloatArray, at: Any, vector: FloatArray, k: Any) -> Any:
    """Real part of one row of a matrix times the complex vector of a row of the buffers."""
    total = splat(0.0)
    for phase in range(3):
        m = at + uintp(2 * phase)
        v = k + uintp(phase * _PHASE)
        total += splat(matrix[m]) * get(vector, v) - splat(matrix[m + uintp(1)]) * get(vector, v + uintp(_IM))
    return total


@compiled
def _product_im(matrix: FloatArray, at: Any, vector: FloatArray, k: Any) -> Any:
    """Imaginary part of the same."""
    total = splat(0.0)
    for phase in range(3):
        m = at + uintp(2 * phase)
        v = k + uintp(phase * _PHASE)
        total += splat(matrix[m]) * get(vector, v + uintp(_IM)) + splat(matrix[m + uintp(1)]) * get(vector, v)
    return total


@compiled
def _admittance(table: FloatArray, at: Any, v_sq: Any, nominal: float) -> Any:
    """Factor g of I = conj(s) V g of a load with shares of constant power, current and impedance."""
    of_power = splat(table[at]) / v_sq
    of_current = splat(table[at + uintp(1)]) / (splat(nominal) * root(v_sq))
    return of_power + of_current + splat(table[at + uintp(2)] / (nominal * nominal))  # (P5)


@compiled
def _draw_wye(
    table: FloatArray, t: Any, flags: int, load: FloatArray, voltage: FloatArray, current: FloatArray, k: Any
) -> None:
    """Currents of the loads between phase and neutral of one row."""
    for phase in range(3):
        re = k + uintp(phase * _PHASE)
        im = re + uintp(_IM)
        v_re, v_im, p, q = get(voltage, re), get(voltage, im), get(load, re), get(load, im)
        v_sq = v_re * v_re + v_im * v_im
        if flags & HAS_SHARES:
            factor = _admittance(table, t + uintp(AT_SHARES + 3 * phase), v_sq, 1.0)
        else:
            factor = splat(1.0) / v_sq
        put(current, re, (p * v_re + q * v_im) * factor)
        put(current, im, (p * v_im - q * v_re) * factor)


@compiled
def _draw_delta(table: FloatArray, t: Any, delta: FloatArray, voltage: FloatArray, current: FloatArray, k: Any) -> None:
    """Add the currents of the loads between two phases of one row: ab, bc, ca."""
    for phase in range(3):
        one = k + uintp(phase * _PHASE)
        two = k + uintp((phase + 1) % 3 * _PHASE)
        u_re = get(voltage, one) - get(voltage, two)
        u_im = get(voltage, one + uintp(_IM)) - get(voltage, two + uintp(_IM))
        p, q = get(delta, one), get(delta, one + uintp(_IM))
        factor = _admittance(table, t + uintp(AT_DELTA_SHARES + 3 * phase), u_re * u_re + u_im * u_im, _SQRT3)
        i_re = (p * u_re + q * u_im) * factor  # (P4)
        i_im = (p * u_im - q * u_re) * factor
        put(current, one, get(current, one) + i_re)
        put(current, one + uintp(_IM), get(current, one + uintp(_IM)) + i_im)
        put(current, two, get(current, two) - i_re)
        put(current, two + uintp(_IM), get(current, two + uintp(_IM)) - i_im)


@compiled
def _draw(
    flags: IntArray,
    table: FloatArray,
    bank: IntArray,
    load: FloatArray,
    delta: FloatArray,
    susceptance: FloatArray,
    voltage: FloatArray,
    current: FloatArray,
) -> None:
    """Load and shunt currents of all rows."""
    for row in range(1, flags.size):
        k, t = uintp(row * ROW), uintp(row * TABLE)
        _draw_wye(table, t, flags[row], load, voltage, current, k)
        if flags[row] & HAS_DELTA:
            _draw_delta(table, t, delta, voltage, current, k)
        if flags[row] & HAS_SHUNT:
            for phase in range(3):
                at = t + uintp(AT_SHUNT + 6 * phase)
                re = k + uintp(phase * _PHASE)
                put(current, re, get(current, re) + _product_re(table, at, voltage, k))  # (P6)
                put(current, re + uintp(_IM), get(current, re + uintp(_IM)) + _product_im(table, at, voltage, k))
        if bank[row] >= 0:
            compensate(k, uintp(bank[row] * BANK), susceptance, voltage, current)


@compiled
def _collect(parent_row: IntArray, flags: IntArray, table: FloatArray, current: FloatArray) -> None:
    """Branch currents of all rows: a transformer passes the transpose of its matrix on, a line the current itself."""
    for row in range(parent_row.size - 1, 0, -1):
        k, up = uintp(row * ROW), uintp(parent_row[row] * ROW)
        if up == uintp(0):
            continue
        if flags[row] & HAS_TRANSFER:
            for phase in range(3):
                re = up + uintp(phase * _PHASE)
                sum_re, sum_im = get(current, re), get(current, re + uintp(_IM))
                for other in range(3):
                    m = uintp(row * TABLE + AT_TRANSFER + 6 * other + 2 * phase)
                    j = k + uintp(other * _PHASE)
                    j_re, j_im = get(current, j), get(current, j + uintp(_IM))
                    sum_re += splat(table[m]) * j_re - splat(table[m + uintp(1)]) * j_im  # (P7)
                    sum_im += splat(table[m]) * j_im + splat(table[m + uintp(1)]) * j_re
                put(current, re, sum_re)
                put(current, re + uintp(_IM), sum_im)
        else:
            for part in range(6):
                at = uintp(part * LANES)
                put(current, up + at, get(current, up + at) + get(current, k + at))


@compiled
def _advance(
    parent_row: IntArray,
    flags: IntArray,
    table: FloatArray,
    voltage: FloatArray,
    current: FloatArray,
    change_sq: FloatArray,
) -> None:
    """New voltages of all rows from branch currents, and the largest squared change of each lane."""
    largest = splat(0.0)
    for row in range(1, parent_row.size):
        k, up, t = uintp(row * ROW), uintp(parent_row[row] * ROW), uintp(row * TABLE)
        for phase in range(3):
            z = t + uintp(AT_IMPEDANCE + 6 * phase)
            re = k + uintp(phase * _PHASE)
            im = re + uintp(_IM)
            if flags[row] & HAS_TRANSFER:
                at = t + uintp(AT_TRANSFER + 6 * phase)
                from_re, from_im = _product_re(table, at, voltage, up), _product_im(table, at, voltage, up)
            else:
                from_re, from_im = (
                    get(voltage, up + uintp(phase * _PHASE)),
                    get(voltage, up + uintp(phase * _PHASE + _IM)),
                )
            v_re = from_re - _product_re(table, z, current, k)
            v_im = from_im - _product_im(table, z, current, k)
            d_re, d_im = v_re - get(voltage, re), v_im - get(voltage, im)
            largest = larger(largest, d_re * d_re + d_im * d_im)
            put(voltage, re, v_re)
            put(voltage, im, v_im)
    put(change_sq, uintp(0), largest)


@compiled
def _settle(
    parent_row: IntArray,
    flags: IntArray,
    table: FloatArray,
    bank: IntArray,
    tolerance_pu: float,
    limit: int,
    load: FloatArray,
    delta: FloatArray,
    susceptance: FloatArray,
    voltage: FloatArray,
    current: FloatArray,
    final: FloatArray,
    n_sweeps: IntArray,
) -> None:
    """As ``kernels.settle``, without losses."""
    change_sq, chosen = np.empty(LANES), np.empty(LANES)
    for lane in range(LANES):
        chosen[lane] = 1.0 if n_sweeps[lane] == 0 else 0.0
    keep(chosen, voltage, final)
    iteration = 0
    goes_on = True
    while goes_on:
        iteration += 1
        _draw(flags, table, bank, load, delta, susceptance, voltage, current)
        _collect(parent_row, flags, table, current)
        _advance(parent_row, flags, table, voltage, current, change_sq)
        goes_on = judge(iteration, limit, tolerance_pu, change_sq, chosen, n_sweeps)
        keep(chosen, voltage, final)


@entry
def solve_general(
    first_case: int,
    end_case: int,
    order: IntArray,
    parent_row: IntArray,
    flags: IntArray,
    table: FloatArray,
    present: FloatArray,
    no_load_pu: FloatArray,
    bank: IntArray,
    source: FloatArray,
    load_kva: FloatArray,
    delta_kva: FloatArray,
    capacitor_kvar: FloatArray,
    pu_per_kva: float,
    at: IntArray,
    start_pu: FloatArray,
    tolerance_pu: float,
    max_iterations: int,
    voltage_pu: FloatArray,
    n_sweeps: IntArray,
) -> None:
    """As ``kernels.solve``, with flags (N,) and table (N * TABLE,) per row, and delta_kva (M, N, 6) beside load_kva.

    no_load_pu: (N, 6) per row, the voltages without loads or shunts from a source of 1 pu: a cold start begins there.
    """
    size = order.size * ROW
    load, delta = np.empty(size), np.empty(size)
    voltage, current, final = np.empty(size), np.empty(size), np.empty(size)
    susceptance = np.empty(capacitor_kvar.shape[1] * BANK)
    used, before = np.empty(LANES, dtype=np.int64), np.empty(LANES, dtype=np.int64)
    for first in range(first_case, end_case, LANES):
        n_lanes = min(LANES, end_case - first)
        for lane in range(LANES):
            used[lane] = 0
            before[lane] = 0
        start = start_pu
        goes_on = True
        while goes_on:
            for lane in range(LANES):
                case = first + min(lane, n_lanes - 1)
                k = at[case]
                gather_banks(lane, k, capacitor_kvar, pu_per_kva, susceptance)
                gather(lane, case, k, order, present, source, delta_kva, pu_per_kva, start, delta, voltage)
                gather(lane, case, k, order, present, source, load_kva, pu_per_kva, start, load, voltage)
                _start(lane, source[k, 0], present, no_load_pu, start.shape[0] > 0, voltage)
            _settle(
                parent_row, flags, table, bank, tolerance_pu, max_iterations,
                load, delta, susceptance, voltage, current, final, used,
            )  # fmt: skip
            goes_on = start.shape[0] > 0 and retry(used, before)
            start = start_pu[:0]
        for lane in range(n_lanes):
            publish(lane, first + lane, order, present, final, voltage_pu)
            n_sweeps[first + lane] = total_sweeps(used[lane], before[lane])


@compiled
def _start(
    lane: int, source_re: float, present: FloatArray, no_load_pu: FloatArray, warm: bool, voltage: FloatArray
) -> None:
    """Voltages without load, scaled by the case's source, where no warm start is given or a phase is absent.

    source_re: of phase a, which lies on the real axis.
    """
    for row in range(1, present.shape[0]):
        for phase in range(3):
            if warm and present[row, phase] != 0.0:
                continue
            k = row * ROW + phase * _PHASE + lane
            voltage[k] = source_re * no_load_pu[row, 2 * phase]
            voltage[k + _IM] = source_re * no_load_pu[row, 2 * phase + 1]
