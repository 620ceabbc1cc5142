"""Three-phase unbalanced power flow of radial feeders, for many cases at once.

Backward/forward sweep (Shirmohammadi et al. 1988, 10.1109/59.192932; three-phase form Cheng and Shirmohammadi 1995,
10.1109/59.387902): (P1) load currents from the last voltages, (P2) branch currents as sums over the subtree, (P3)
voltages from the source outwards; repeated until the largest change of a voltage is within the tolerance.
"""

import cmath
import math
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid.feeder import Feeder
from evcs_gym.envs.grid.kernels import solve
from evcs_gym.envs.grid.kernels_general import solve_general
from evcs_gym.envs.grid.simd import LANES
from evcs_gym.envs.threads import run_rows
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray, IntArray
from evcs_gym.envs.units import PHASE_BASE_KVA

PHASE_UNIT: Final = np.array([cmath.rect(1.0, math.radians(angle)) for angle in (0.0, -120.0, 120.0)])
"""(3,) direction of the source voltage of phases a, b, c."""
PARALLEL_FROM: Final = 48 * LANES
"""Cases from which threads pay for their launch (about a millisecond of work)."""
MAX_SWEEPS: Final = 100
"""Sweeps after which a case counts as not converging, unless the caller says otherwise."""
_PHASES: Final = ("a", "b", "c")
_NO_START: Final = np.empty((0, 0, 0))
_Number = TypeVar("_Number", np.float64, np.complex128)


@dataclass(frozen=True, eq=False)
class PowerFlow:
    """Result of a batch of power flows.

    voltage_pu: complex (B, N, 3), 0 on absent phases. Where a case did not converge it holds finite voltages that are
        no solution.
    loss_kw: (B,) active power of the source less that of the loads [kW]; 0 where the case did not converge.
    iterations: (B,) sweeps used.
    converged: (B,) whether max |change| fell to the tolerance. False means voltage collapse or too few iterations.
    """

    voltage_pu: ComplexArray
    loss_kw: FloatArray
    iterations: IntArray
    converged: BoolArray


def power_flow(
    feeder: Feeder,
    load_kva: ArrayLike,
    source_pu: ArrayLike = 1.0,
    tolerance_pu: float = 1e-8,
    max_iterations: int = MAX_SWEEPS,
    warm_start: ArrayLike | None = None,
    delta_kva: ArrayLike | None = None,
    capacitor_kvar: ArrayLike | None = None,
) -> PowerFlow:
    """Voltages of a batch of loads on one feeder.

    load_kva: complex (B, N, 3), P + jQ drawn from each phase [kVA]; generation is negative. Row 0, the source, has no
        effect. source_pu: magnitude of the source voltage, one number or (B,). tolerance_pu: largest change of a
        voltage in the last sweep. warm_start: complex (B, N, 3), voltages to start from, such as the last result;
        cases that do not converge from there are solved again from the source voltage. delta_kva: complex (B, N, 3),
        loads between phases ab, bc, ca [kVA] of a feeder with equipment; its nominal ones by default. There the powers
        of all loads are those at nominal voltage, of which the feeder's shares depend on the voltage. capacitor_kvar:
        (B, N, 3), what capacitors between phase and neutral give at nominal voltage [kvar], beside those of the feeder.

    A case that does not converge is marked in ``converged``; it never raises and never yields NaN. The result of a
    case is the same bit for bit whatever else is in the batch. From 384 cases on the work is spread over
    ``numba.get_num_threads()`` threads; below that, and where that is 1, the calling thread does it alone.

    Raises DataError for arrays of the wrong shape, values that are not finite and loads on absent phases, ConfigError
    for a tolerance, an iteration limit or a source voltage out of range.

    >>> from evcs_gym.envs.grid import load_feeder
    >>> feeder = load_feeder("synthetic33")
    >>> flow = power_flow(feeder, feeder.load_kva[None])
    >>> print(f"{flow.loss_kw[0]:.3f} kW lost, lowest voltage {abs(flow.voltage_pu).min():.5f} pu")
    205.004 kW lost, lowest voltage 0.90606 pu
    """
    load = _checked_load(feeder, load_kva)
    n_cases = len(load)
    source = _checked_source(source_pu, n_cases)
    _check_limits(tolerance_pu, max_iterations)
    start = None if warm_start is None else _checked_start(warm_start, load.shape)
    delta = _checked_delta(feeder, delta_kva, n_cases)
    capacitor = _checked_capacitor(feeder, capacitor_kvar, n_cases)
    limits = (float(tolerance_pu), int(max_iterations))
    if delta is None:
        return _solve(feeder, load, capacitor, source, start, limits)
    return _solve_general(feeder, load, delta, capacitor, source, start, limits)


def voltage_unbalance_frac(voltage_pu: ComplexArray) -> FloatArray:
    """Voltage unbalance factor |V-| / |V+| of complex voltages (..., 3), shape (...).

    V- and V+ are the symmetrical components (Fortescue 1918). Where a phase is absent (voltage exactly 0) the factor
    is not defined and 0 is returned, so that a limit on it never binds there.
    """
    a = cmath.rect(1.0, math.radians(120.0))
    v_a, v_b, v_c = voltage_pu[..., 0], voltage_pu[..., 1], voltage_pu[..., 2]
    positive = np.abs(v_a + a * v_b + a**2 * v_c)
    negative = np.abs(v_a + a**2 * v_b + a * v_c)
    complete = (voltage_pu != 0).all(axis=-1)
    return np.divide(negative, positive, out=np.zeros_like(positive), where=complete)


def branch_current_a(
    feeder: Feeder,
    load_kva: ComplexArray,
    voltage_pu: ComplexArray,
    delta_kva: ComplexArray | None = None,
    capacitor_kvar: FloatArray | None = None,
) -> ComplexArray:
    """Current of the branch from the parent of each bus, complex (B, N, 3) [A], from loads [kVA] and voltages [pu].

    Column 0 is what leaves the source; a transformer's current is that of its side away from the source. Compare
    magnitudes with ``feeder.ampacity_a``. delta_kva, capacitor_kvar: as in ``power_flow``.
    """
    per_unit = _branch_current_pu(feeder, load_kva, voltage_pu, delta_kva, capacitor_kvar)
    return np.asarray(per_unit * (PHASE_BASE_KVA / (feeder.bus_kv / math.sqrt(3.0)))[:, None])


def _branch_current_pu(
    feeder: Feeder,
    load_kva: ComplexArray,
    voltage_pu: ComplexArray,
    delta_kva: ComplexArray | None,
    capacitor_kvar: FloatArray | None,
) -> ComplexArray:
    current = _load_current_pu(feeder, load_kva, voltage_pu, delta_kva)
    if capacitor_kvar is not None:
        current += 1j * capacitor_kvar / PHASE_BASE_KVA * voltage_pu
    if feeder.equipment is not None:
        shunt_pu = feeder.equipment.shunt_siemens * feeder.base_ohm[:, None, None]
        current += np.einsum("nfg,bng->bnf", shunt_pu, voltage_pu)
    current[:, 0] = 0.0
    for bus in feeder.sweep_order[:0:-1]:
        passed = current[:, bus]
        if feeder.equipment is not None:
            passed = passed @ feeder.equipment.transfer[bus]  # (T^T J)^T = J^T T
        current[:, feeder.parent[bus]] += passed
    return current


def _load_current_pu(
    feeder: Feeder, load_kva: ComplexArray, voltage_pu: ComplexArray, delta_kva: ComplexArray | None
) -> ComplexArray:
    """Currents (B, N, 3) that the loads draw from the phases."""
    present = feeder.phase_present
    voltage = np.where(present, voltage_pu, 1.0)
    current: ComplexArray = np.where(present, np.conj(load_kva / PHASE_BASE_KVA / voltage), 0.0)
    parts = feeder.equipment
    if parts is None:
        return current
    current = current * _rise(parts.share_frac, np.abs(voltage))
    between = voltage - np.roll(voltage, -1, axis=-1)
    delta = parts.delta_kva[None] if delta_kva is None else delta_kva
    there = np.where(delta != 0, between, 1.0)
    drawn = np.conj(delta / PHASE_BASE_KVA / there) * _rise(parts.delta_share_frac, np.abs(there) / math.sqrt(3.0))
    return np.asarray(current + drawn - np.roll(drawn, 1, axis=-1))


def _rise(share_frac: FloatArray, size_pu: FloatArray) -> FloatArray:
    """Power of a load at a voltage over its power at nominal voltage."""
    return np.asarray(share_frac[..., 0] + share_frac[..., 1] * size_pu + share_frac[..., 2] * size_pu**2)


def _solve(
    feeder: Feeder,
    load_kva: ComplexArray,
    capacitor_kvar: FloatArray | None,
    source: ComplexArray,
    start_pu: ComplexArray | None,
    limits: tuple[float, int],
) -> PowerFlow:
    """The kernel's call: checked arrays in, a record out."""
    n_cases = len(load_kva)
    voltage, loss_pu = np.empty(load_kva.shape, dtype=np.complex128), np.zeros(n_cases)
    n_sweeps = np.empty(n_cases, dtype=np.int64)
    buses, kvar = used_banks(capacitor_kvar, n_cases)
    network = network_tables(feeder, capacitor_bus=buses)
    ready = (source.view(np.float64), load_kva.view(np.float64), kvar, 1.0 / PHASE_BASE_KVA)
    start = _NO_START if start_pu is None else start_pu.view(np.float64)
    own = (np.arange(n_cases), np.empty((n_cases, 0)), start, *limits)
    written = (voltage.view(np.float64), loss_pu, n_sweeps)
    run_rows(solve, n_cases, (*network, *ready, *own, *written), parallel_from=PARALLEL_FROM, block=LANES)
    return PowerFlow(voltage, loss_pu * PHASE_BASE_KVA, np.abs(n_sweeps), n_sweeps > 0)


def _solve_general(
    feeder: Feeder,
    load_kva: ComplexArray,
    delta_kva: ComplexArray,
    capacitor_kvar: FloatArray | None,
    source: ComplexArray,
    start_pu: ComplexArray | None,
    limits: tuple[float, int],
) -> PowerFlow:
    """The same for a feeder with equipment."""
    n_cases = len(load_kva)
    voltage, n_sweeps = np.empty(load_kva.shape, dtype=np.complex128), np.empty(n_cases, dtype=np.int64)
    buses, kvar = used_banks(capacitor_kvar, n_cases)
    bank = np.full(len(feeder), -1)
    bank[np.argsort(feeder.sweep_order)[buses]] = np.arange(len(buses))
    powers = (load_kva.view(np.float64), delta_kva.view(np.float64), kvar, 1.0 / PHASE_BASE_KVA)
    start = _NO_START if start_pu is None else start_pu.view(np.float64)
    own = (np.arange(n_cases), start, *limits, voltage.view(np.float64), n_sweeps)
    arrays = (*feeder.general_tables, bank, source.view(np.float64), *powers, *own)
    run_rows(solve_general, n_cases, arrays, parallel_from=PARALLEL_FROM, block=LANES)
    converged = n_sweeps > 0
    loss_kw = np.zeros(n_cases)
    solved = voltage[converged]
    some = None if capacitor_kvar is None else capacitor_kvar[converged]
    loss_kw[converged] = _general_loss_kw(
        feeder, load_kva[converged], delta_kva[converged], some, source[converged], solved
    )
    return PowerFlow(voltage, loss_kw, np.abs(n_sweeps), converged)


def network_tables(
    feeder: Feeder, station_bus: ArrayLike = (), capacitor_bus: ArrayLike = ()
) -> tuple[IntArray, IntArray, FloatArray, FloatArray, IntArray, IntArray]:
    """The first arguments of ``kernels.solve`` and ``kernels_operator.adjust_rows``, for other kernels that call them.

    station_bus: (S,), capacitor_bus: (K,), no bus twice. order, parent_row, impedance, present, bank, station_row.
    Raises ConfigError for a feeder with equipment, which these kernels do not know.
    """
    if feeder.equipment is not None:
        raise ConfigError(
            f"network_tables: {feeder.name!r} has equipment, which these kernels do not know; use power_flow and "
            "operator.adjust"
        )
    row = np.argsort(feeder.sweep_order)
    bank = np.full(len(feeder), -1)
    buses = np.asarray(capacitor_bus, dtype=np.int64)
    bank[row[buses]] = np.arange(len(buses))
    return (*feeder.sweep_tables, bank, row[np.asarray(station_bus, dtype=np.int64)])


def used_banks(capacitor_kvar: FloatArray | None, n_cases: int) -> tuple[IntArray, FloatArray]:
    """(K,) buses that have capacitors in any case, and (B, K, 3) what those give [kvar]."""
    if capacitor_kvar is None:
        return np.empty(0, dtype=np.int64), np.empty((n_cases, 0, 3))
    buses = np.flatnonzero(capacitor_kvar.any(axis=(0, 2)))
    return buses, np.ascontiguousarray(capacitor_kvar[:, buses])


def _general_loss_kw(
    feeder: Feeder,
    load_kva: ComplexArray,
    delta_kva: ComplexArray,
    capacitor_kvar: FloatArray | None,
    source: ComplexArray,
    voltage_pu: ComplexArray,
) -> FloatArray:
    """(B,) active power that leaves the source less what the loads draw [kW]."""
    leaving = _branch_current_pu(feeder, load_kva, voltage_pu, delta_kva, capacitor_kvar)[:, 0]
    sent = (source * np.conj(leaving)).sum(axis=-1)
    drawn = _load_current_pu(feeder, load_kva, voltage_pu, delta_kva)
    drawn[:, 0] = 0.0
    used = (voltage_pu * np.conj(drawn)).sum(axis=(-2, -1))
    return np.asarray((sent - used).real * PHASE_BASE_KVA)


def writable(array: NDArray[_Number]) -> NDArray[_Number]:
    """The array, or a copy if need be: kernels are compiled for contiguous, writable ones; those of a day are not."""
    whole = np.ascontiguousarray(array)
    return whole if whole.flags.writeable else whole.copy()


def _complex_array(value: ArrayLike, name: str) -> ComplexArray:
    try:
        return np.asarray(value, dtype=np.complex128)
    except (TypeError, ValueError) as error:
        raise DataError(f"power_flow: {name} must be an array of complex numbers: {error}") from error


def _check_finite(array: ComplexArray | FloatArray, name: str, feeder: Feeder) -> None:
    # The sum is finite unless an entry is not, or unless they are absurdly large: one cheap pass decides.
    if not cmath.isfinite(array.sum()) and not np.isfinite(array).all():
        case, bus, phase = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise DataError(
            f"power_flow: {name} must be finite, got {array[case, bus, phase]} in case {case}, "
            f"bus {feeder.bus_name[bus]!r}, phase {_PHASES[phase]}"
        )


def _check_phases(array: ComplexArray | FloatArray, name: str, what: str, feeder: Feeder) -> None:
    if feeder.has_all_phases:
        return
    stray = (array != 0) & ~feeder.phase_present
    if stray.any():
        case, bus, phase = (int(i) for i in np.argwhere(stray)[0])
        raise DataError(
            f"power_flow: {name} of case {case} has a {what} at bus {feeder.bus_name[bus]!r}, "
            f"phase {_PHASES[phase]}, which is absent there"
        )


def _checked_capacitor(feeder: Feeder, capacitor_kvar: ArrayLike | None, n_cases: int) -> FloatArray | None:
    if capacitor_kvar is None:
        return None
    try:
        kvar = np.asarray(capacitor_kvar, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"power_flow: capacitor_kvar must be an array of numbers: {error}") from error
    shape = (n_cases, len(feeder), 3)
    if kvar.shape != shape:
        raise DataError(f"power_flow: capacitor_kvar must have the shape of load_kva, {shape}, got {kvar.shape}")
    _check_finite(kvar, "capacitor_kvar", feeder)
    _check_phases(kvar, "capacitor_kvar", "capacitor", feeder)
    return kvar


def _checked_load(feeder: Feeder, load_kva: ArrayLike) -> ComplexArray:
    load = _complex_array(load_kva, "load_kva")
    n_buses = len(feeder)
    if load.ndim != 3 or load.shape[1:] != (n_buses, 3):
        raise DataError(
            f"power_flow: load_kva must have shape (B, N, P) = (B, {n_buses}, 3) for feeder {feeder.name!r}, "
            f"got {load.shape}"
        )
    _check_finite(load, "load_kva", feeder)
    _check_phases(load, "load_kva", "load", feeder)
    return writable(load)


def _checked_delta(feeder: Feeder, delta_kva: ArrayLike | None, n_cases: int) -> ComplexArray | None:
    """(B, N, 3) delta loads of a feeder with equipment, None for a feeder without."""
    parts = feeder.equipment
    if parts is None:
        if delta_kva is not None:
            raise ConfigError(
                f"power_flow: delta_kva needs a feeder with equipment, and {feeder.name!r} has none; "
                "build it with Equipment.of"
            )
        return None
    shape = (n_cases, len(feeder), 3)
    if delta_kva is None:
        return np.broadcast_to(parts.delta_kva, shape).copy()
    delta = _complex_array(delta_kva, "delta_kva")
    if delta.shape != shape:
        raise DataError(f"power_flow: delta_kva must have the shape of load_kva, {shape}, got {delta.shape}")
    _check_finite(delta, "delta_kva", feeder)
    stray = (delta != 0) & ~(feeder.phase_present & np.roll(feeder.phase_present, -1, axis=1))
    if stray.any():
        case, bus, pair = (int(i) for i in np.argwhere(stray)[0])
        raise DataError(
            f"power_flow: delta_kva of case {case} has a load at bus {feeder.bus_name[bus]!r} between phases "
            f"{('ab', 'bc', 'ca')[pair]}, of which one is absent there"
        )
    return np.array(delta, dtype=np.complex128, order="C")


def _checked_source(source_pu: ArrayLike, n_cases: int) -> ComplexArray:
    """(B, 3) phase voltages of the source from one magnitude or one per case."""
    magnitude = np.asarray(source_pu, dtype=np.float64)
    if magnitude.shape not in ((), (n_cases,)):
        raise DataError(
            f"power_flow: source_pu must be one number or of shape (B,) = ({n_cases},), got {magnitude.shape}"
        )
    if n_cases and not 0 < magnitude.min() <= magnitude.max() < np.inf:
        raise ConfigError(
            f"power_flow: source_pu must be positive and finite, got values from {magnitude.min()} to {magnitude.max()}"
        )
    source = np.empty((n_cases, 3), dtype=np.complex128)
    np.multiply(magnitude[..., None], PHASE_UNIT, out=source)
    return source


def _check_limits(tolerance_pu: float, max_iterations: int) -> None:
    if not 0 < tolerance_pu < np.inf:
        raise ConfigError(f"power_flow: tolerance_pu must be positive and finite, got {tolerance_pu}")
    if max_iterations < 1:
        raise ConfigError(f"power_flow: max_iterations must be at least 1, got {max_iterations}")


def _checked_start(warm_start: ArrayLike, shape: tuple[int, ...]) -> ComplexArray:
    start = _complex_array(warm_start, "warm_start")
    if start.shape != shape:
        raise DataError(f"power_flow: warm_start must have the shape of load_kva, {shape}, got {start.shape}")
    if not np.isfinite(start).all():
        raise DataError("power_flow: warm_start must be finite; leave it out where no voltages are known")
    return np.array(start, dtype=np.complex128, order="C")
