"""Feeders from OpenDSS files, through the OpenDSS engine (package ``dss_python``, extra ``peers``).

Every element is taken as the engine sees it, by its primitive admittance matrix: whatever can be described in a file
as a line, a reactor, a transformer or a bank of them is read the same way, with the taps at which the file leaves it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid.network import CURRENT, IMPEDANCE, POWER, LoadTable, Network, with_loads
from evcs_gym.envs.types import BoolArray, ComplexArray

SOURCE_NAME: Final = "ideal_source"
"""Label of bus 0, behind the source's impedance."""
_SERIES: Final = ("line", "reactor", "transformer")
_SILENT: Final = (
    "monitor",
    "energymeter",
    "regcontrol",
    "capcontrol",
    "sensor",
    "swtcontrol",
    "fuse",
    "relay",
    "recloser",
)
"""Classes that measure or control: taps and switches stay where the file left them."""
_KIND_OF_MODEL: Final = {1: POWER, 2: IMPEDANCE, 5: CURRENT}
"""Of OpenDSS's load models those that exist here."""
_PAIRS: Final = {frozenset((1, 2)): 0, frozenset((2, 3)): 1, frozenset((1, 3)): 2}
_FLOATING: Final = 1e-4
"""Share of a winding's admittances that its common current may find and the winding still counts as ungrounded."""


@dataclass
class CircuitParts:
    """What is collected of a circuit, buses by name. Admittances in siemens, loads in kVA."""

    series: dict[tuple[str, str], ComplexArray] = field(default_factory=dict)
    is_line: dict[tuple[str, str], bool] = field(default_factory=dict)
    shunt: dict[str, ComplexArray] = field(default_factory=dict)
    loads: dict[tuple[str, str, int], ComplexArray] = field(default_factory=dict)  # constant P, I, Z
    source: tuple[str, ComplexArray, float] | None = None

    def add_shunt(self, bus: str, siemens: ComplexArray) -> None:
        """Add to the shunt of a bus."""
        self.shunt[bus] = self.shunt.get(bus, np.zeros((3, 3), dtype=np.complex128)) + siemens


def read_circuit(path: str | Path) -> dict[str, Any]:
    """Arguments of ``Feeder.from_arrays`` from an OpenDSS file; see ``Feeder.from_opendss``."""
    parts, level, name = collect_circuit(path)
    where = f"OpenDSS circuit {name!r}"
    network, keys = _network_of(parts, level, name, where)
    ungrounded = _add_branches(network, parts, keys, where)
    loads = LoadTable()
    index = {bus: row for row, bus in enumerate(network.bus_name)}
    for (bus, connection, place), sums in parts.loads.items():
        row = index[bus]
        if connection == "wye" and ungrounded[row]:
            raise ConfigError(
                f"{where}: bus {bus!r} has a load between phase {'abc'[place]} and ground, but is fed by an ungrounded "
                "winding, whose voltage to ground is not settled by anything; connect the load between phases"
            )
        kv = network.bus_kv[row] / (1.0 if connection == "delta" else math.sqrt(3.0))
        loads.add(row, connection, place, sums * kv ** np.arange(3))
    return with_loads(network, loads)


def _network_of(
    parts: "CircuitParts", level: Mapping[str, float], name: str, where: str
) -> tuple[Network, list[tuple[str, str]]]:
    """The tree with the source's impedance, and the buses of each of its other branches in their order."""
    if parts.source is None:
        raise ConfigError(f"{where}: one three-phase source is needed, and there is none")
    head, head_ohm, head_kv = parts.source
    joined = {bus for pair in parts.series for bus in pair} | {head}
    names = [SOURCE_NAME, head, *(bus for bus in level if bus in joined and bus != head)]
    stray = sorted(({bus for bus, _, _ in parts.loads} | set(parts.shunt)) - joined)
    if stray:
        raise DataError(f"{where}: bus {stray[0]!r} has a load or a shunt, but is not connected to the source")
    bus_kv = np.array([level[head], *(level[bus] for bus in names[1:])])
    if not (bus_kv > 0).all():
        raise DataError(f"{where}: bus {names[int(np.argmin(bus_kv))]!r} has no nominal voltage; set voltagebases")
    index = {bus: row for row, bus in enumerate(names)}
    keys = list(parts.series)
    network = Network.of(name, names, bus_kv, [(0, 1), *((index[a], index[b]) for a, b in keys)], where)
    network.impedance_ohm[1] = head_ohm
    network.transfer[1] = np.eye(3) * (head_kv / level[head])
    for label, siemens in parts.shunt.items():
        network.shunt_siemens[index[label]] += siemens
    return network, keys


def _add_branches(network: Network, parts: "CircuitParts", keys: list[tuple[str, str]], where: str) -> BoolArray:
    """Impedances, transfers and shunts of all branches but the source's; returns which buses (N,) have no ground.

    Behind an ungrounded winding the voltage to ground hangs on the shunts there. A sweep that meets them one by one
    after the winding's own leakage diverges, so all of them count as part of the winding, whose terminal gives them
    back as a negative shunt: the same equations, but the sweep finds the voltage at once.
    """
    n_buses = len(network.parent)
    names, seen = network.bus_name, np.zeros((n_buses, 3, 3), dtype=np.complex128)
    ungrounded = np.zeros(n_buses, dtype=np.bool_)
    for bus in (bus for bus in network.inward() if bus > 1):
        up, key = int(network.parent[bus]), keys[network.branch[bus] - 1]
        from_first = names[up] == key[0]
        ratio = network.bus_kv[up] / network.bus_kv[bus]
        label = f"{where}: the branch from {names[up]!r} to {names[bus]!r}"
        block = parts.series[key] if from_first else np.roll(parts.series[key], (3, 3), axis=(0, 1))
        ungrounded[bus] = not parts.is_line[key] and is_floating(block)
        within = seen[bus] + network.shunt_siemens[bus]
        if ungrounded[bus]:
            block = block.copy()
            block[3:, 3:] += within
            network.shunt_siemens[bus] -= within
            within = np.zeros((3, 3), dtype=np.complex128)
        impedance, transfer, near, far = branch_of(block, parts.is_line[key], ratio, label)
        network.impedance_ohm[bus], network.transfer[bus] = impedance, transfer
        network.shunt_siemens[up] += near
        network.shunt_siemens[bus] += far
        seen[up] += transfer.T @ (within + far) @ transfer / ratio**2
    for bus in reversed(network.inward()):
        up = int(network.parent[bus])
        passes = np.abs(network.transfer[bus].sum(axis=1)).max() > _FLOATING
        ungrounded[bus] |= ungrounded[up] and passes
    return ungrounded


def is_floating(block: ComplexArray) -> bool:
    """Whether the far end of a three-phase admittance matrix (6, 6) has no path for a current common to its phases."""
    far = block[3:, 3:]
    return bool(np.diagonal(far).all()) and abs(far.sum()) < _FLOATING * float(np.abs(far).sum())


def collect_circuit(path: str | Path) -> tuple[CircuitParts, dict[str, float], str]:
    """Parts of the circuit in a file, the nominal kV between phases of its buses, and its name.

    Raises ConfigError without the engine or for an element that feeders do not have, DataError for a file that does
    not exist, does not run or does not solve.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"from_opendss: there is no file {str(file)!r}; give the master file of the circuit")
    engine = _engine()
    try:
        engine.Text.Command = f'redirect "{file.resolve()}"'
        engine.Text.Command = "set controlmode=off"
        engine.Text.Command = "calcvoltagebases"
        engine.Text.Command = "solve"
    except Exception as error:
        raise DataError(f"from_opendss: the engine could not run {file.name}: {error}") from error
    circuit = engine.ActiveCircuit
    if not circuit.Solution.Converged:
        raise DataError(f"from_opendss: the engine found no power flow of {file.name}; a feeder must have one")
    where = f"OpenDSS circuit {circuit.Name!r}"
    parts = CircuitParts()
    for name in circuit.AllElementNames:
        circuit.SetActiveElement(name)
        if circuit.ActiveCktElement.Enabled:
            _collect(parts, circuit, name.lower(), where)
    level = {name.lower(): circuit.Buses(name).kVBase * math.sqrt(3.0) for name in circuit.AllBusNames}
    return parts, level, circuit.Name


def _engine() -> Any:
    try:
        from dss import dss
    except ImportError as error:
        raise ConfigError(
            "from_opendss: the OpenDSS engine is not installed; pip install 'evcs-gym[peers]' brings it"
        ) from error
    engine = dss.NewContext()
    engine.AllowForms = False
    engine.AllowChangeDir = False
    return engine


def _collect(parts: CircuitParts, circuit: Any, name: str, where: str) -> None:
    """Add the active element to the parts."""
    kind = name.split(".", 1)[0]
    element = circuit.ActiveCktElement
    if kind in _SILENT:
        return
    if kind == "vsource":
        _collect_source(parts, circuit, name, where)
    elif kind == "load":
        _collect_load(parts, circuit, name, where)
    elif kind in (*_SERIES, "capacitor"):
        if not any(element.IsOpen(terminal, 0) for terminal in range(1, element.NumTerminals + 1)):
            _collect_delivery(parts, element, name, where)
    else:
        raise ConfigError(f"{where}: feeders have no element like {name!r}; remove it, or set enabled=no")


def _matrix(element: Any) -> tuple[ComplexArray, list[tuple[str, int]]]:
    """Primitive admittance [S] of an element without its grounded conductors, and the (bus, phase) of each row."""
    size = element.NumTerminals * element.NumConductors
    flat = np.asarray(element.Yprim)
    admittance = (flat if np.iscomplexobj(flat) else flat[0::2] + 1j * flat[1::2]).reshape(size, size).T
    buses = [bus.split(".")[0].lower() for bus in element.BusNames]
    places = [(buses[position // element.NumConductors], int(node)) for position, node in enumerate(element.NodeOrder)]
    kept = [k for k, (_, node) in enumerate(places) if node != 0]
    return admittance[np.ix_(kept, kept)], [places[k] for k in kept]


def _collect_delivery(parts: CircuitParts, element: Any, name: str, where: str) -> None:
    admittance, places = _matrix(element)
    buses = list(dict.fromkeys(bus for bus, _ in places))
    if any(node > 3 for _, node in places):
        raise ConfigError(f"{where}: {name!r} uses a node above 3; neutral conductors must be grounded")
    if len(buses) == 1:
        rows = [node - 1 for _, node in places]
        shunt = np.zeros((3, 3), dtype=np.complex128)
        np.add.at(shunt, np.ix_(rows, rows), admittance)
        parts.add_shunt(buses[0], shunt)
        return
    if len(buses) != 2:
        raise ConfigError(f"{where}: {name!r} joins {len(buses)} buses; only elements between two buses are supported")
    first, second = sorted(buses)
    rows = [node - 1 + (0 if bus == first else 3) for bus, node in places]
    block = np.zeros((6, 6), dtype=np.complex128)
    np.add.at(block, np.ix_(rows, rows), admittance)
    key = (first, second)
    parts.series[key] = parts.series.get(key, np.zeros((6, 6), dtype=np.complex128)) + block
    parts.is_line[key] = parts.is_line.get(key, True) and not name.startswith("transformer.")


def _collect_source(parts: CircuitParts, circuit: Any, name: str, where: str) -> None:
    admittance, places = _matrix(circuit.ActiveCktElement)
    if parts.source is not None or [node for _, node in places] != [1, 2, 3]:
        raise ConfigError(f"{where}: one three-phase source is needed, and {name!r} is a second or another one")
    source = circuit.Vsources
    source.Name = name.split(".", 1)[1]
    parts.source = (
        places[0][0],
        np.asarray(np.linalg.inv(admittance), dtype=np.complex128),
        float(source.pu * source.BasekV),
    )


def _collect_load(parts: CircuitParts, circuit: Any, name: str, where: str) -> None:
    loads = circuit.Loads
    loads.Name = name.split(".", 1)[1]
    model = int(loads.Model)
    if model not in _KIND_OF_MODEL:
        raise ConfigError(
            f"{where}: {name!r} is of model {model}; constant power (1), impedance (2) and current (5) are supported"
        )
    element = circuit.ActiveCktElement
    bus = element.BusNames[0].split(".")[0].lower()
    nodes = [int(node) for node in element.NodeOrder]
    n_phases = int(loads.Phases)
    load_kva = complex(loads.kW, loads.kvar) / n_phases
    kv = float(loads.kV)
    if n_phases == 1:
        ends = [(nodes[0], nodes[1])]
    elif loads.IsDelta and n_phases == 3:
        ends = [(nodes[k], nodes[(k + 1) % 3]) for k in range(3)]
    elif not loads.IsDelta:
        ends, kv = [(node, 0) for node in nodes[:n_phases]], kv / math.sqrt(3.0)
    else:
        raise ConfigError(f"{where}: {name!r} is a delta load of {n_phases} phases; 1 and 3 are supported")
    for one, other in ends:
        connection = "wye" if 0 in (one, other) else "delta"
        if max(one, other) > 3 or one == other:
            raise ConfigError(f"{where}: {name!r} lies between nodes {one} and {other}; phases are 1, 2 and 3")
        place = max(one, other) - 1 if connection == "wye" else _PAIRS[frozenset((one, other))]
        sums = parts.loads.setdefault((bus, connection, place), np.zeros(3, dtype=np.complex128))
        # per kV and per kV^2 for now, until the bus's nominal voltage is known
        kind = _KIND_OF_MODEL[model]
        sums[kind] += load_kva / kv**kind


def branch_of(
    block: ComplexArray, is_line: bool, kv_ratio: float, label: str
) -> tuple[ComplexArray, ComplexArray, ComplexArray, ComplexArray]:
    """Impedance [ohm], transfer [pu], shunt at the near and the far end [S] of an admittance matrix between two buses.

    block: (6, 6) [S], near bus first. kv_ratio: nominal voltage of the near over that of the far bus. A line becomes
    its series impedance and what it draws at its ends; anything else (Kron's reduction) a voltage behind an impedance:
    V_far = T V_near - Z J, and J enters the near end as T^T J plus a shunt.
    """
    far = np.flatnonzero(np.abs(np.diagonal(block)[3:]) > 0.0)
    y_nn, y_nf, y_fn, y_ff = block[:3, :3], block[:3, 3:], block[3:, :3], block[3:, 3:]
    inside = np.ix_(far, far)
    impedance, transfer = np.zeros((3, 3), dtype=np.complex128), np.eye(3, dtype=np.complex128)
    try:
        impedance[inside] = np.linalg.inv(-y_nf[inside] if is_line else y_ff[inside])
    except np.linalg.LinAlgError as error:
        raise DataError(f"{label} has no series impedance between equal phases of its ends: {error}") from error
    if is_line:
        return impedance, transfer, y_nn + y_nf, y_ff + y_fn
    volts = -impedance @ y_fn
    transfer[far] = volts[far] * kv_ratio
    return impedance, transfer, y_nn + y_nf @ volts, np.zeros((3, 3), dtype=np.complex128)
