"""What a feeder can have beyond lines and constant-power wye loads: transformers, regulators, shunts, other loads.

A feeder without ``Equipment`` is computed by the plain kernels; one with it by ``kernels_general``.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.types import ComplexArray, FloatArray, frozen
from evcs_gym.envs.units import KW_PER_MW

if TYPE_CHECKING:
    from evcs_gym.envs.grid.feeder import Feeder

_EYE: Final = np.eye(3)
_DELTA_FROM: Final = np.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0], [-1.0, 0.0, 1.0]])
"""Line voltages ab, bc, ca from phase voltages a, b, c."""
_SHARE_TOLERANCE: Final = 1e-9
DELTA_WYE_LAG: Final = np.array([[1.0, 0.0, -1.0], [-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]]) / math.sqrt(3.0)
"""Transfer of a transformer from delta to grounded wye that lags by 30 degrees (Dyn1): V_a' = (V_a - V_c) / sqrt 3."""
DELTA_WYE_LEAD: Final = _DELTA_FROM / math.sqrt(3.0)
"""The same with the wye side leading by 30 degrees (Dyn11)."""


@dataclass(frozen=True, eq=False)
class Equipment:
    """Parts of a feeder beside lines and constant-power wye loads. Build it with ``Equipment.of``.

    transfer: complex (N, 3, 3), V_j = T_j V_i - Z_j J_j in per unit, and J_j enters the parent as T_j^T J_j. The unit
        matrix for a line and a wye-wye transformer, ``diag(ratio)`` for a regulator, ``DELTA_WYE_LAG`` for Dyn1. The
        branch impedance of such a bus is the transformer's, in ohm on the side of bus j.
    shunt_siemens: complex (N, 3, 3), current drawn from bus j per voltage: capacitors, line charging.
    delta_kva: complex (N, 3), nominal loads between phases ab, bc and ca [kVA].
    share_frac, delta_share_frac: (N, 3, 3), for each bus and load the shares of constant power, constant current and
        constant impedance, which sum to 1.
    bus_kv: (N,) nominal voltage between two phases [kV].
    """

    transfer: ComplexArray
    shunt_siemens: ComplexArray
    delta_kva: ComplexArray
    share_frac: FloatArray
    delta_share_frac: FloatArray
    bus_kv: FloatArray

    @classmethod
    def of(
        cls,
        n_buses: int,
        line_to_line_kv: float,
        *,
        transfer: ArrayLike | None = None,
        shunt_siemens: ArrayLike | None = None,
        delta_kva: ArrayLike | None = None,
        share_frac: ArrayLike | None = None,
        delta_share_frac: ArrayLike | None = None,
        bus_kv: ArrayLike | None = None,
    ) -> Self:
        """Equipment of a feeder of ``n_buses``; what is left out is that of plain lines and constant power.

        Raises DataError for wrong shapes, values that are not finite, shares that do not sum to 1, voltages that are
        not positive.
        """
        n = n_buses
        power_only = np.broadcast_to([1.0, 0.0, 0.0], (n, 3, 3))
        parts = cls(
            transfer=_part(transfer, np.broadcast_to(_EYE, (n, 3, 3)), np.complex128, "transfer"),
            shunt_siemens=_part(shunt_siemens, np.zeros((n, 3, 3)), np.complex128, "shunt_siemens"),
            delta_kva=_part(delta_kva, np.zeros((n, 3)), np.complex128, "delta_kva"),
            share_frac=_part(share_frac, power_only, np.float64, "share_frac"),
            delta_share_frac=_part(delta_share_frac, power_only, np.float64, "delta_share_frac"),
            bus_kv=_part(bus_kv, np.full(n, line_to_line_kv), np.float64, "bus_kv"),
        )
        for name, share in (("share_frac", parts.share_frac), ("delta_share_frac", parts.delta_share_frac)):
            off = np.abs(share.sum(axis=-1) - 1.0) > _SHARE_TOLERANCE
            if off.any():
                bus, load = (int(i) for i in np.argwhere(off)[0])
                raise DataError(
                    f"equipment: {name}[{bus}, {load}] must sum to 1 over constant power, current and impedance, "
                    f"got {share[bus, load].tolist()}"
                )
        if (parts.bus_kv <= 0).any():
            raise DataError(f"equipment: bus_kv must be positive, got {parts.bus_kv.min()} kV")
        return parts


def regulator(ratio: ArrayLike) -> FloatArray:
    """Transfer (3, 3) of a regulator with the ratios of its three phases, such as 1 + 0.00625 times the position."""
    return np.diag(np.broadcast_to(np.asarray(ratio, dtype=np.float64), 3))


def capacitor_siemens(kvar: ArrayLike, line_to_line_kv: float) -> ComplexArray:
    """Shunt (3, 3) [S] of capacitors between each phase and neutral that give ``kvar`` (3,) at nominal voltage."""
    phase_kv_sq = line_to_line_kv**2 / 3.0
    siemens = np.broadcast_to(np.asarray(kvar, dtype=np.float64), 3) / (phase_kv_sq * KW_PER_MW)
    return np.diag(siemens).astype(np.complex128) * 1j


def no_load_pu(feeder: "Feeder", parts: Equipment) -> ComplexArray:
    """(N, 3) voltages from a source of 1 pu without any current, absent phases included."""
    angle = np.exp(-2j * np.pi / 3.0 * np.arange(3))
    voltage: ComplexArray = np.tile(angle, (len(feeder), 1)).astype(np.complex128)
    for bus in feeder.sweep_order[1:]:
        voltage[bus] = parts.transfer[bus] @ voltage[feeder.parent[bus]]
    return voltage


def _part(value: ArrayLike | None, default: np.ndarray[Any, Any], dtype: Any, name: str) -> np.ndarray[Any, Any]:
    """A private, frozen copy of the right type and shape, finite."""
    array = np.array(default if value is None else value, dtype=dtype, order="C")
    if array.shape != default.shape:
        raise DataError(f"equipment: {name} must have shape {default.shape}, got {array.shape}")
    if not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise DataError(f"equipment: {name} must be finite, got {array[index]} at index {index}")
    return frozen(array)  # type: ignore[no-any-return]
