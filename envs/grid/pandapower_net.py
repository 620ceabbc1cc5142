"""Feeders to pandapower, and what its transformers and shunts become here; only writing needs pandapower itself."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.types import ComplexArray
from evcs_gym.envs.units import KW_PER_MW, V_PER_KV

STIFF_SOURCE_MVA: Final = 1e12
"""Short-circuit power that makes another program's source ideal, as ours is."""
_ZERO_KEYS: Final = ("pfe_kw", "i0_percent")
_SEQUENCE: Final = np.exp(2j * np.pi / 3.0 * np.array([[0, 0, 0], [0, 2, 1], [0, 1, 2]]))
"""Phase values from symmetrical components 0, +, -."""


def transformer_branch(row: Any, hv_kv: float, lv_kv: float, label: str) -> tuple[ComplexArray, ComplexArray, float]:
    """Impedance (3, 3) [ohm, low side], transfer (3, 3) and ampacity [A, low side] of a row of net.trafo.

    row: of ``net.trafo``, vector group Dyn with its low side towards the loads. hv_kv, lv_kv: nominal voltages of its
    buses. Positive and negative sequence turn by the shift in opposite directions; the zero sequence does not pass and
    meets the short-circuited delta beside the magnetising impedance (columns mag0_percent, mag0_rx, si0_hv_partial).
    Raises ConfigError for other groups, no-load losses, taps on the low side and phase shifters.
    """
    group = str(getattr(row, "vector_group", ""))
    if not group.startswith("Dyn"):
        raise ConfigError(f"{label} has vector group {group!r}; only Dyn (delta to grounded wye) is supported")
    for key in _ZERO_KEYS:
        if getattr(row, key, 0.0) != 0.0:
            raise ConfigError(f"{label}: {key} must be 0, got {getattr(row, key)}: no-load currents are not modelled")
    ratio = _tap_ratio(row, label)
    turn = np.exp(-1j * math.radians(float(row.shift_degree)))
    sequence = np.diag([0.0, turn, np.conj(turn)])
    passed = _SEQUENCE @ sequence @ np.linalg.inv(_SEQUENCE)
    size = hv_kv / (float(row.vn_hv_kv) * ratio) * float(row.vn_lv_kv) / lv_kv
    z1 = _short_circuit_ohm(row, "vk_percent", "vkr_percent", label)
    z0 = _zero_sequence_ohm(row, label)
    impedance = _SEQUENCE @ np.diag([z0, z1, z1]) @ np.linalg.inv(_SEQUENCE)
    rated_a = float(row.sn_mva) * float(row.parallel) * KW_PER_MW / (math.sqrt(3.0) * float(row.vn_lv_kv))
    return np.asarray(impedance, dtype=np.complex128), (passed.real * size).astype(np.complex128), rated_a


def _tap_ratio(row: Any, label: str) -> float:
    position = getattr(row, "tap_pos", math.nan)
    if position is None or math.isnan(position):
        return 1.0
    steps = float(position) - float(row.tap_neutral)
    if steps == 0.0:
        return 1.0
    turn = float(getattr(row, "tap_step_degree", 0.0))
    if str(row.tap_side) != "hv" or not (turn == 0.0 or math.isnan(turn)):
        raise ConfigError(
            f"{label}: only taps on the high side that change the ratio are supported; set tap_pos neutral"
        )
    return 1.0 + steps * float(row.tap_step_percent) / 100.0


def _short_circuit_ohm(row: Any, total: str, active: str, label: str) -> complex:
    """Short-circuit impedance on the low side from its percentages."""
    size, resistive = float(getattr(row, total, math.nan)), float(getattr(row, active, math.nan))
    if not 0.0 <= resistive <= size:
        raise DataError(f"{label}: {active} must lie in [0, {total}], got {resistive} and {size}")
    base_ohm = float(row.vn_lv_kv) ** 2 / (float(row.sn_mva) * float(row.parallel))
    return complex(resistive, math.sqrt(size**2 - resistive**2)) / 100.0 * base_ohm


def _zero_sequence_ohm(row: Any, label: str) -> complex:
    """Zero-sequence impedance on the low side: a T of leakage shares and the magnetising impedance, delta closed."""
    z0 = _short_circuit_ohm(row, "vk0_percent", "vkr0_percent", label)
    size, ratio, share = (float(getattr(row, key)) for key in ("mag0_percent", "mag0_rx", "si0_hv_partial"))
    if not (size > 0.0 and 0.0 <= share <= 1.0 and ratio >= 0.0):
        raise DataError(
            f"{label}: mag0_percent must be positive, si0_hv_partial in [0, 1] and mag0_rx not negative, "
            f"got {size}, {share} and {ratio}"
        )
    magnetising = complex(ratio, 1.0) / math.hypot(ratio, 1.0) * abs(z0) * size / 100.0
    delta = share * z0
    return (1.0 - share) * z0 + delta * magnetising / (delta + magnetising)


def shunt_siemens(net: Any, index: Mapping[Any, int], where: str) -> ComplexArray:
    """(N, 3, 3) shunts of the rows of net.shunt in service: p, q at vn_kv, equal on the three phases."""
    out = np.zeros((len(index), 3, 3), dtype=np.complex128)
    for row in net.shunt[net.shunt.in_service.astype(bool)].itertuples():
        if row.bus not in index:
            raise DataError(f"{where}: net.shunt {row.Index} is at bus {row.bus}, which does not exist")
        total = complex(row.p_mw, -row.q_mvar) * row.step
        out[index[row.bus]] += np.eye(3) * total / float(row.vn_kv) ** 2
    return out


def write_net(feeder: Any, load_kva: ComplexArray, source_pu: float) -> Any:
    """See ``Feeder.to_pandapower``."""
    import pandapower

    if feeder.equipment is not None:
        raise ConfigError(
            f"feeder {feeder.name!r} has equipment (transformers, shunts, delta or voltage-dependent loads), which "
            "is not written to pandapower"
        )
    own = feeder.impedance_ohm[:, 0, 0]
    mutual = feeder.impedance_ohm[:, 0, 1]
    transposed = np.where(np.eye(3, dtype=np.bool_), own[:, None, None], mutual[:, None, None])
    if not np.allclose(feeder.impedance_ohm, transposed, rtol=1e-9, atol=0.0):
        raise ConfigError(f"feeder {feeder.name!r} has untransposed lines, which pandapower cannot describe")
    z1, z0 = own - mutual, own + 2.0 * mutual
    net = pandapower.create_empty_network(name=feeder.name)
    for bus in range(len(feeder)):
        pandapower.create_bus(net, vn_kv=feeder.line_to_line_kv, name=feeder.bus_name[bus], index=bus)
        if bus > 0:
            _write_line_and_load(net, bus, feeder, complex(z1[bus]), complex(z0[bus]), load_kva[bus])
    pandapower.create_ext_grid(
        net,
        bus=0,
        vm_pu=source_pu,
        s_sc_max_mva=STIFF_SOURCE_MVA,
        rx_max=0.1,
        x0x_max=1.0,
        r0x0_max=0.1,
    )
    return net


def _write_line_and_load(net: Any, bus: int, feeder: Any, z1: complex, z0: complex, load_kva: ComplexArray) -> None:
    import pandapower

    pandapower.create_line_from_parameters(
        net,
        from_bus=int(feeder.parent[bus]),
        to_bus=bus,
        length_km=1.0,
        r_ohm_per_km=z1.real,
        x_ohm_per_km=z1.imag,
        c_nf_per_km=0.0,
        max_i_ka=feeder.ampacity_a[bus] / V_PER_KV,
        r0_ohm_per_km=z0.real,
        x0_ohm_per_km=z0.imag,
        c0_nf_per_km=0.0,
    )
    power = {
        f"{part}_{phase}_{unit}": value / KW_PER_MW
        for part, unit, values in (("p", "mw", load_kva.real), ("q", "mvar", load_kva.imag))
        for phase, value in zip("abc", values.tolist(), strict=True)
    }
    pandapower.create_asymmetric_load(net, bus=bus, **power)
