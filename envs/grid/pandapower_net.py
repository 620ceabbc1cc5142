"""Feeders from and to pandapower. Reading is duck-typed; only writing needs pandapower itself."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid.equipment import Equipment
from evcs_gym.envs.grid.network import CURRENT, IMPEDANCE, POWER, LoadTable, Network, phase_matrix, with_loads
from evcs_gym.envs.types import ComplexArray, FloatArray
from evcs_gym.envs.units import KW_PER_MW, V_PER_KV

STIFF_SOURCE_MVA: Final = 1e12
"""Short-circuit power that makes another program's source ideal, as ours is."""
_ZERO_KEYS: Final = ("pfe_kw", "i0_percent")
_LETTERS: Final = (("i", CURRENT), ("z", IMPEDANCE))
"""Letters of the kinds of load in pandapower's column names."""
_A_PER_KA: Final = V_PER_KV
"""The prefix kilo is the same for volts and amperes."""
_UNLIMITED_KA: Final = 99999.0
"""What pandapower's MATPOWER converter writes for a branch without a rating."""
_UNSUPPORTED_ELEMENTS: Final = (
    "trafo3w",
    "gen",
    "sgen",
    "asymmetric_sgen",
    "storage",
    "motor",
    "ward",
    "xward",
    "impedance",
    "dcline",
    "svc",
    "ssc",
    "tcsc",
    "vsc",
)
_SEQUENCE: Final = np.exp(2j * np.pi / 3.0 * np.array([[0, 0, 0], [0, 2, 1], [0, 1, 2]]))
"""Phase values from symmetrical components 0, +, -."""


def read_net(net: Any) -> dict[str, Any]:
    """Arguments of ``Feeder.from_arrays`` from a pandapower network; see ``Feeder.from_pandapower``."""
    name = str(getattr(net, "name", "") or "pandapower")
    where = f"pandapower network {name!r}"
    _refuse_unsupported(net, where)
    buses = _buses(net, where)
    index = {bus: row for row, bus in enumerate(buses)}
    bus_kv = net.bus.vn_kv.loc[buses].to_numpy(dtype=np.float64)
    pairs, matrices, ampacity = _lines(net, index, where)
    ends = [*pairs, *_transformer_ends(net, index, where)]
    network = Network.of(name, [str(bus) for bus in buses], bus_kv, ends, where)
    transformers = list(net.trafo[net.trafo.in_service.astype(bool)].itertuples())
    for bus in range(1, len(buses)):
        up, kind = int(network.parent[bus]), int(network.branch[bus])
        if kind < len(pairs):
            if bus_kv[up] != bus_kv[bus]:
                raise DataError(
                    f"{where}: the line to bus {network.bus_name[bus]!r} joins {bus_kv[up]} kV and {bus_kv[bus]} kV"
                )
            network.impedance_ohm[bus], network.ampacity_a[bus] = matrices[kind], ampacity[kind]
            continue
        row = transformers[kind - len(pairs)]
        label = f"{where}: net.trafo {row.Index}"
        if buses[bus] != row.lv_bus:
            raise ConfigError(f"{label} must have its low side towards the loads, but it is fed from there")
        found = transformer_branch(row, bus_kv[up], bus_kv[bus], label)
        network.impedance_ohm[bus], network.transfer[bus], network.ampacity_a[bus] = found
    network.shunt_siemens += shunt_siemens(net, index, where)
    return with_loads(network, _loads(net, index, where))


def _buses(net: Any, where: str) -> list[Any]:
    """Buses in service, that of the one external grid first."""
    grids = net.ext_grid[net.ext_grid.in_service.astype(bool)]
    if len(grids) != 1:
        raise ConfigError(f"{where}: one external grid in service is needed as the source, got {len(grids)}")
    source = grids.bus.iloc[0]
    in_service = net.bus[net.bus.in_service.astype(bool)]
    if source not in in_service.index:
        raise DataError(f"{where}: the external grid is at bus {source}, which does not exist or is out of service")
    return [source, *(bus for bus in in_service.index if bus != source)]


def _transformer_ends(net: Any, index: Mapping[Any, int], where: str) -> list[tuple[int, int]]:
    """Ends of the transformers in service."""
    pairs: list[tuple[int, int]] = []
    for row in net.trafo[net.trafo.in_service.astype(bool)].itertuples():
        for end in (row.hv_bus, row.lv_bus):
            if end not in index:
                raise DataError(
                    f"{where}: net.trafo {row.Index} ends at bus {end}, which does not exist or is out of service"
                )
        pairs.append((index[row.hv_bus], index[row.lv_bus]))
    return pairs


def _refuse_unsupported(net: Any, where: str) -> None:
    for element in _UNSUPPORTED_ELEMENTS:
        table = net.get(element)
        if table is not None and len(table) and table.in_service.astype(bool).any():
            raise ConfigError(
                f"{where}: {int(table.in_service.sum())} element(s) of net.{element} are in service, but a feeder "
                "holds lines, Dyn transformers, loads and shunts only; remove them, or set in_service to False"
            )
    switches = net.switch[net.switch.closed.astype(bool)]
    for row in switches.itertuples():
        if row.et != "l":
            raise ConfigError(
                f"{where}: switch {row.Index} is closed and of type {row.et!r}; only line switches ('l') are "
                "supported: fuse the two buses, or open the switch"
            )


def _lines(net: Any, index: Mapping[Any, int], where: str) -> tuple[list[tuple[int, int]], ComplexArray, FloatArray]:
    """Ends, matrices (M, 3, 3) [ohm] and ampacities (M,) [A] of the lines that conduct."""
    switch = net.switch
    opened = set(switch.element[(switch.et == "l") & ~switch.closed.astype(bool)])
    lines = net.line[net.line.in_service.astype(bool) & ~net.line.index.isin(opened)]
    for column in ("c_nf_per_km", "g_us_per_km"):
        if column in lines and (lines[column].to_numpy(dtype=np.float64) != 0).any():
            raise ConfigError(
                f"{where}: net.line.{column} is not zero, but branches are series impedances here; "
                f"set net.line[{column!r}] = 0 if it may be neglected"
            )
    pairs: list[tuple[int, int]] = []
    for row in lines.itertuples():
        for end in (row.from_bus, row.to_bus):
            if end not in index:
                raise DataError(
                    f"{where}: line {row.Index} ends at bus {end}, which does not exist or is out of service"
                )
        pairs.append((index[row.from_bus], index[row.to_bus]))
    parallel = lines.parallel.to_numpy(dtype=np.float64)
    per_ohm = lines.length_km.to_numpy(dtype=np.float64) / parallel
    z1 = (lines.r_ohm_per_km.to_numpy(np.float64) + 1j * lines.x_ohm_per_km.to_numpy(np.float64)) * per_ohm
    z0 = z1.copy()
    if "r0_ohm_per_km" in lines and "x0_ohm_per_km" in lines:
        given = lines.r0_ohm_per_km.to_numpy(np.float64) + 1j * lines.x0_ohm_per_km.to_numpy(np.float64)
        z0 = np.where(np.isnan(given), z1, given * per_ohm)
    limit_ka = lines.max_i_ka.to_numpy(dtype=np.float64)
    unlimited = np.isnan(limit_ka) | (limit_ka >= _UNLIMITED_KA)
    ampacity = np.where(unlimited, np.inf, limit_ka * lines.df.to_numpy(np.float64) * parallel * _A_PER_KA)
    return pairs, phase_matrix((z0 + 2.0 * z1) / 3.0, (z0 - z1) / 3.0), ampacity


def _loads(net: Any, index: Mapping[Any, int], where: str) -> LoadTable:
    """Loads of net.load, split evenly over the phases or pairs, and of net.asymmetric_load."""
    loads = LoadTable()
    for element in ("load", "asymmetric_load"):
        table = net.get(element)
        if table is None:
            continue
        for row in table[table.in_service.astype(bool)].itertuples():
            label = f"{where}: net.{element} {row.Index}"
            if row.bus not in index:
                raise DataError(f"{label} is at bus {row.bus}, which does not exist or is out of service")
            connection = str(row.type).lower()
            if connection not in ("wye", "delta"):
                connection = _unnamed_connection(row, element, label)
            p_share, q_share = _zip_shares(row, label)
            for place, power in enumerate(_powers_kva(row, element)):
                loads.add(index[row.bus], connection, place, power.real * p_share + 1j * power.imag * q_share)
    return loads


def _unnamed_connection(row: Any, element: str, label: str) -> str:
    """Wye for what names no connection; other names are refused where the connection matters."""
    if element == "load" or row.type is None or row.type != row.type:
        return "wye"
    raise ConfigError(f"{label} has type {row.type!r}; the connection must be 'wye' or 'delta'")


def _powers_kva(row: Any, element: str) -> list[complex]:
    """Power of each of the three phases or pairs [kVA]."""
    factor = float(row.scaling) * KW_PER_MW
    if element == "load":
        return [complex(row.p_mw, row.q_mvar) * factor / 3.0] * 3
    return [complex(getattr(row, f"p_{phase}_mw"), getattr(row, f"q_{phase}_mvar")) * factor for phase in "abc"]


def _zip_shares(row: Any, label: str) -> tuple[FloatArray, FloatArray]:
    """Shares (3,) of constant power, current and impedance of the active and of the reactive power.

    Columns const_z_p_percent and so on; const_z_percent and const_i_percent of older networks hold for both.
    """
    shares = []
    for part in ("p", "q"):
        percent = np.zeros(3)
        for letter, kind in _LETTERS:
            names = (f"const_{letter}_{part}_percent", f"const_{letter}_percent")
            given = [float(getattr(row, name)) for name in names if hasattr(row, name)]
            percent[kind] = sum(value for value in given if not math.isnan(value))
        percent[POWER] = 100.0 - percent.sum()
        if (percent < 0.0).any():
            raise DataError(
                f"{label}: const_z and const_i of its {part} must lie in [0, 100] and sum to at most 100 percent, "
                f"got {percent[IMPEDANCE]} and {percent[CURRENT]}"
            )
        shares.append(percent / 100.0)
    return shares[0], shares[1]


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

    parts = feeder.equipment or Equipment.of(len(feeder), feeder.line_to_line_kv)
    _refuse_unwritable(feeder, parts)
    own = feeder.impedance_ohm[:, 0, 0]
    mutual = feeder.impedance_ohm[:, 0, 1]
    z1, z0 = own - mutual, own + 2.0 * mutual
    net = pandapower.create_empty_network(name=feeder.name)
    for bus in range(len(feeder)):
        pandapower.create_bus(net, vn_kv=feeder.line_to_line_kv, name=feeder.bus_name[bus], index=bus)
        if bus > 0:
            _write_line(net, bus, feeder, complex(z1[bus]), complex(z0[bus]))
            label = f"feeder {feeder.name!r}: the loads at bus {feeder.bus_name[bus]!r}"
            _write_loads(net, bus, "wye", load_kva[bus], parts.share_frac[bus], label)
            _write_loads(net, bus, "delta", parts.delta_kva[bus], parts.delta_share_frac[bus], label)
            siemens = complex(parts.shunt_siemens[bus, 0, 0])
            if siemens != 0.0:
                total = siemens * feeder.line_to_line_kv**2
                pandapower.create_shunt(net, bus, q_mvar=-total.imag, p_mw=total.real)
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


def _refuse_unwritable(feeder: Any, parts: Equipment) -> None:
    """Refuse what pandapower has no words for; the bus is named."""
    own, mutual = feeder.impedance_ohm[:, 0, 0], feeder.impedance_ohm[:, 0, 1]
    eye = np.eye(3)
    transposed = np.where(eye == 1.0, own[:, None, None], mutual[:, None, None])
    common = parts.shunt_siemens[:, 0, 0, None, None] * eye
    checks = (
        (parts.transfer == eye, "is fed by a transformer or a regulator, which are not written to pandapower"),
        ((parts.bus_kv == feeder.line_to_line_kv)[:, None, None], "has a nominal voltage of its own"),
        (
            np.isclose(feeder.impedance_ohm, transposed, rtol=1e-9, atol=0.0),
            "is fed by an untransposed line, which pandapower cannot describe",
        ),
        (
            np.isclose(parts.shunt_siemens, common, rtol=1e-9, atol=0.0),
            "has a shunt that differs between phases or couples them, which pandapower cannot describe",
        ),
    )
    for fine, words in checks:
        wrong = np.flatnonzero(~fine.all(axis=(1, 2)))
        if len(wrong):
            raise ConfigError(f"feeder {feeder.name!r}: bus {feeder.bus_name[wrong[0]]!r} {words}")


def _write_line(net: Any, bus: int, feeder: Any, z1: complex, z0: complex) -> None:
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


def _write_loads(net: Any, bus: int, connection: str, kva: ComplexArray, share_frac: FloatArray, label: str) -> None:
    """The three loads (3,) of a connection: per phase where their power is constant, else as one even load."""
    import pandapower

    there = np.flatnonzero(kva)
    if connection == "delta" and not len(there):
        return
    if (share_frac[there, POWER] == 1.0).all():
        power = {
            f"{part}_{phase}_{unit}": value / KW_PER_MW
            for part, unit, values in (("p", "mw", kva.real), ("q", "mvar", kva.imag))
            for phase, value in zip("abc", values.tolist(), strict=True)
        }
        pandapower.create_asymmetric_load(net, bus=bus, type=connection, **power)
        return
    if not (
        np.allclose(kva, kva[0], rtol=1e-9, atol=0.0) and np.allclose(share_frac, share_frac[0], rtol=0, atol=1e-9)
    ):
        raise ConfigError(
            f"{label} depend on voltage and differ between phases; pandapower knows voltage-dependent loads only as "
            "net.load, equal on all three: make them of constant power, or equal"
        )
    percent = 100.0 * share_frac[0]
    shares = {f"const_{letter}_{part}_percent": percent[k] for letter, k in _LETTERS for part in ("p", "q")}
    total = kva.sum() / KW_PER_MW
    pandapower.create_load(net, bus=bus, p_mw=total.real, q_mvar=total.imag, type=connection, **shares)
