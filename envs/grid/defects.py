"""What makes a feeder impossible, one sentence per defect; all of them, so that a user mends a network in one go."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.grid.equipment import Equipment, no_load_pu
from evcs_gym.envs.types import BoolArray

if TYPE_CHECKING:
    from evcs_gym.envs.grid.feeder import Feeder

LISTED: Final = 20
"""Defects that an error spells out; the rest are counted."""
_PHASES: Final = "abc"
_PAIRS: Final = ("ab", "bc", "ca")
_FLAT_PU: Final = 0.1
"""A voltage without load below this means that a transfer leads nowhere."""


def refuse_defects(feeder: "Feeder", where: str) -> None:
    """Raise a DataError with a line for each defect; those of branches and loads are looked for in a tree only."""
    found = list(tree_defects(feeder)) or [*branch_defects(feeder), *load_defects(feeder)]
    if feeder.equipment is not None and not found:
        found = list(equipment_defects(feeder, feeder.equipment))
    lines = [f"{where}: {words}" for words in found[:LISTED]]
    if len(found) > LISTED:
        lines.append(f"{where}: and {len(found) - LISTED} more")
    if lines:
        raise DataError("\n".join(lines))


def tree_defects(feeder: "Feeder") -> Iterator[str]:
    """Buses that do not reach bus 0 along their parents."""
    parent, names = feeder.parent, feeder.bus_name
    n_buses = len(parent)
    if parent[0] != -1:
        yield f"bus 0 is the source and must have parent -1, got {parent[0]}"
    lost: BoolArray = np.zeros(n_buses, dtype=np.bool_)
    for bus in range(1, n_buses):
        lost[bus] = not 0 <= parent[bus] < n_buses
        if parent[bus] == -1:
            yield f"bus {names[bus]!r} is not connected: its parent is -1; only bus 0 has none"
        elif lost[bus]:
            yield (
                f"bus {names[bus]!r} has parent {parent[bus]}, a bus that does not exist; buses are 0..{n_buses - 1}"
            )
    done = lost.copy()
    done[0] = True
    for bus in range(1, n_buses):
        path: list[int] = []
        here = bus
        while not done[here] and here not in path:
            path.append(here)
            here = int(parent[here])
        if not done[here]:
            loop = " -> ".join(names[b] for b in [*path[path.index(here) :], here])
            yield f"the feeder must be a tree, but the parents form a loop: {loop}"
        done[path] = True


def branch_defects(feeder: "Feeder") -> Iterator[str]:
    """Impedances that cannot be a line, phases that come from nowhere, ampacities that are no currents."""
    impedance, present, names = feeder.impedance_ohm, feeder.phase_present, feeder.bus_name
    if impedance[0].any():
        yield f"impedance_ohm[0] must be zero: no branch leads to the source {names[0]!r}"
    for bus in range(1, len(feeder)):
        label = f"the branch to bus {names[bus]!r}"
        coupled = (impedance[bus].any(axis=0) | impedance[bus].any(axis=1)) & ~present[bus]
        orphan = present[bus] & ~present[feeder.parent[bus]]
        if coupled.any():
            yield f"{label} couples phase {_PHASES[int(np.argmax(coupled))]} but has no self impedance there"
        elif not present[bus].any():
            yield f"{label} has no impedance on the diagonal; merge the two buses, or give the line's impedance"
        if (np.diagonal(impedance[bus]).real < 0).any():
            yield f"{label} has a negative resistance: {np.diagonal(impedance[bus]).real} ohm"
        if orphan.any():
            phase = _PHASES[int(np.argmax(orphan))]
            yield f"{label} has phase {phase}, which its parent {names[feeder.parent[bus]]!r} does not have"
        if feeder.ampacity_a[bus] <= 0:
            yield f"{label} must have a positive ampacity_a, got {feeder.ampacity_a[bus]}"


def load_defects(feeder: "Feeder") -> Iterator[str]:
    """Loads at the source and on absent phases."""
    if feeder.load_kva[0].any():
        yield (
            f"a load at the source {feeder.bus_name[0]!r} meets no impedance and would never be seen; "
            "put it on another bus"
        )
    for bus, phase in np.argwhere((feeder.load_kva != 0) & ~feeder.phase_present).tolist():
        if bus > 0:
            yield f"bus {feeder.bus_name[bus]!r} has a load on phase {_PHASES[phase]}, which is absent"


def equipment_defects(feeder: "Feeder", parts: Equipment) -> Iterator[str]:
    """Equipment that does not fit the feeder's buses and phases."""
    present, names = feeder.phase_present, feeder.bus_name
    if len(parts.bus_kv) != len(feeder):
        yield f"equipment must have one entry per bus, {len(feeder)}, got {len(parts.bus_kv)}"
        return
    if parts.shunt_siemens[0].any() or parts.delta_kva[0].any():
        yield f"a shunt or a delta load at the source {names[0]!r} would never be seen; move it"
    pair = present & np.roll(present, -1, axis=1)
    for bus, load in np.argwhere((parts.delta_kva != 0) & ~pair).tolist():
        yield f"bus {names[bus]!r} has a delta load between phases {_PAIRS[load]}, of which one is absent"
    touched = parts.shunt_siemens.any(axis=1) | parts.shunt_siemens.any(axis=2)
    for bus, phase in np.argwhere(touched & ~present).tolist():
        yield f"bus {names[bus]!r} has a shunt on phase {_PHASES[phase]}, which is absent"
    for bus, phase in np.argwhere(np.abs(no_load_pu(feeder, parts)) < _FLAT_PU).tolist():
        yield (
            f"without load bus {names[bus]!r} has no voltage on phase {_PHASES[phase]}: its transfer must "
            "lead from the parent's voltages to nominal ones (1 on the diagonal of an absent phase)"
        )
