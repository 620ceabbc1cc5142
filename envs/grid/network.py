"""What the readers of other programs' networks share: the tree, and loads of several kinds on its buses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.grid.equipment import Equipment
from evcs_gym.envs.types import ComplexArray, FloatArray, IntArray

POWER: Final = 0
CURRENT: Final = 1
IMPEDANCE: Final = 2
"""Kinds of load in the last axis of ``LoadTable.add`` and of ``Equipment.share_frac``."""
_ONE_ANGLE: Final = 1e-9
"""Relative difference up to which loads count as of one power factor."""
_JOINT_OHM: Final = 1e-6
"""Impedance between a bus and the one that carries more of its loads: 1 A drops a millionth of a volt."""


@dataclass
class Network:
    """A network of N buses without its loads, bus 0 the source; the arrays are those of ``Feeder`` and ``Equipment``.

    branch: (N,) position, among the branches it was made of, of the one that leads to each bus.
    """

    name: str
    bus_name: list[str]
    bus_kv: FloatArray
    parent: IntArray
    branch: IntArray
    impedance_ohm: ComplexArray
    transfer: ComplexArray
    shunt_siemens: ComplexArray
    ampacity_a: FloatArray

    @classmethod
    def of(
        cls, name: str, bus_name: Sequence[str], bus_kv: FloatArray, branches: Sequence[tuple[int, int]], where: str
    ) -> "Network":
        """A network on the tree of undirected branches, whose impedances are still zero."""
        parent, branch = tree_from_branches(branches, bus_name, where)
        n_buses = len(bus_name)
        zero = np.zeros((n_buses, 3, 3), dtype=np.complex128)
        return cls(
            name=name,
            bus_name=list(bus_name),
            bus_kv=bus_kv,
            parent=parent,
            branch=branch,
            impedance_ohm=zero,
            transfer=zero + np.eye(3),
            shunt_siemens=zero.copy(),
            ampacity_a=np.full(n_buses, np.inf),
        )

    def inward(self) -> list[int]:
        """Buses without the source, each before its parent."""
        order, depth = [], {0: 0}
        for bus in range(1, len(self.parent)):
            path = [bus]
            while path[-1] not in depth:
                path.append(int(self.parent[path[-1]]))
            for one in reversed(path[:-1]):
                depth[one] = depth[int(self.parent[one])] + 1
            order.append(bus)
        return sorted(order, key=lambda bus: -depth[bus])


@dataclass
class LoadTable:
    """Nominal loads by (bus, "wye" or "delta", phase or pair ab, bc, ca): complex (3,) [kVA], see ``add``."""

    kva: dict[tuple[int, str, int], ComplexArray] = field(default_factory=dict)

    def add(self, bus: int, connection: str, place: int, kva: ComplexArray) -> None:
        """Add (3,) loads of constant power, current and impedance, as they are at the bus's nominal voltage."""
        key = (bus, connection, place)
        self.kva[key] = self.kva.get(key, np.zeros(3, dtype=np.complex128)) + kva


def with_loads(network: Network, loads: LoadTable) -> dict[str, Any]:
    """Arguments of ``Feeder.from_arrays``. Equipment is left out where there is none.

    A bus has one power and three shares per phase and pair. Loads of different kinds whose power factors differ go to
    buses of their own, "NAME#2" and "NAME#3", joined to theirs by a millionth of an ohm.
    """
    layered = {key: _layers(kinds) for key, kinds in sorted(loads.kva.items())}
    extra = sorted({(key[0], layer) for key, found in layered.items() for layer in range(1, len(found))})
    host = [bus for bus, _ in extra]
    index = {pair: len(network.bus_name) + row for row, pair in enumerate(extra)}
    n_buses = len(network.bus_name) + len(extra)
    kva = {kind: np.zeros((n_buses, 3), dtype=np.complex128) for kind in ("wye", "delta")}
    share = {kind: np.tile([1.0, 0.0, 0.0], (n_buses, 3, 1)) for kind in ("wye", "delta")}
    for (bus, connection, place), found in layered.items():
        for layer, kinds in enumerate(found):
            row = index.get((bus, layer), bus)
            kva[connection][row, place] = kinds.sum()
            share[connection][row, place] = np.abs(kinds) / np.abs(kinds).sum()
    bus_kv = np.append(network.bus_kv, network.bus_kv[host])
    transfer = np.concatenate([network.transfer, np.tile(np.eye(3), (len(extra), 1, 1))])
    shunt = np.concatenate([network.shunt_siemens, np.zeros((len(extra), 3, 3))])
    equipment = Equipment.of(
        n_buses,
        float(bus_kv[0]),
        transfer=transfer,
        shunt_siemens=shunt,
        delta_kva=kva["delta"],
        share_frac=share["wye"],
        delta_share_frac=share["delta"],
        bus_kv=bus_kv,
    )
    return {
        "parent": np.append(network.parent, np.array(host, dtype=np.int64)),
        "impedance_ohm": np.concatenate([network.impedance_ohm, _joints(network, host)]),
        "line_to_line_kv": float(bus_kv[0]),
        "load_kva": kva["wye"],
        "bus_name": [*network.bus_name, *(f"{network.bus_name[bus]}#{layer + 1}" for bus, layer in extra)],
        "ampacity_a": np.append(network.ampacity_a, np.full(len(extra), np.inf)),
        "name": network.name,
        "equipment": None if _is_plain(equipment) else equipment,
    }


def _layers(kinds: ComplexArray) -> list[ComplexArray]:
    """The loads (3,) of one place, parted so that each part has one power factor."""
    layers: list[ComplexArray] = []
    for kind in np.flatnonzero(kinds):
        one = np.where(np.arange(3) == kind, kinds, 0.0)
        for row, layer in enumerate(layers):
            both = layer + one
            if abs(both.sum()) >= (1.0 - _ONE_ANGLE) * np.abs(both).sum():
                layers[row] = both
                break
        else:
            layers.append(one)
    return layers


def _joints(network: Network, host: Sequence[int]) -> ComplexArray:
    """(M, 3, 3) impedances [ohm] to the extra buses of the hosts, on the phases that the hosts have."""
    present = np.diagonal(network.impedance_ohm[list(host)], axis1=1, axis2=2) != 0
    return np.asarray(np.eye(3) * present[:, None, :] * _JOINT_OHM, dtype=np.complex128).reshape(-1, 3, 3)


def _is_plain(parts: Equipment) -> bool:
    """Whether equipment says nothing that a feeder without it does not."""
    shares = np.concatenate([parts.share_frac[..., 0], parts.delta_share_frac[..., 0]])
    return bool(
        (parts.transfer == np.eye(3)).all()
        and not parts.shunt_siemens.any()
        and not parts.delta_kva.any()
        and (shares == 1.0).all()
        and (parts.bus_kv == parts.bus_kv[0]).all()
    )


def phase_matrix(self_ohm: ComplexArray, mutual_ohm: ComplexArray) -> ComplexArray:
    """(M, 3, 3) impedance matrices of transposed lines from their self and mutual impedances (M,)."""
    eye = np.eye(3)
    return self_ohm[:, None, None] * eye + mutual_ohm[:, None, None] * (1.0 - eye)


def tree_from_branches(
    branches: Sequence[tuple[int, int]], names: Sequence[str], where: str
) -> tuple[IntArray, IntArray]:
    """Parent of every bus and the branch that leads to it, (N,) each, from undirected branches; bus 0 is the source.

    A loop and a bus without a path to the source are refused here, where the branches are still known.
    """
    n_buses = len(names)
    neighbours: list[list[tuple[int, int]]] = [[] for _ in range(n_buses)]
    for k, (a, b) in enumerate(branches):
        neighbours[a].append((b, k))
        neighbours[b].append((a, k))
    parent = np.full(n_buses, -1, dtype=np.int64)
    branch = np.full(n_buses, -1, dtype=np.int64)
    reached = {0}
    pending = [0]
    while pending:
        bus = pending.pop()
        for other, k in neighbours[bus]:
            if k == branch[bus]:
                continue
            if other in reached:
                raise DataError(
                    f"{where}: the feeder must be a tree, but the branch between {names[bus]!r} and {names[other]!r} "
                    "closes a loop; open it"
                )
            reached.add(other)
            parent[other], branch[other] = bus, k
            pending.append(other)
    for bus in range(n_buses):
        if bus not in reached:
            raise DataError(f"{where}: bus {names[bus]!r} is not connected to the source {names[0]!r}")
    return parent, branch
