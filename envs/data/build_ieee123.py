"""Builds feeder_ieee123.json from the tables ieee123_*.csv: ``python -m evcs_gym.envs.data.build_ieee123``.

For developers; nothing else imports this module. IEEE 123 Node Test Feeder, parameters of the IEEE PES Test Feeder
Working Group (see SOURCES.md), regulators at the published taps, switches in their normal positions. No other program
takes part: matrices come from the published ones, so that OpenDSS is an independent check of them.
"""

import csv
import importlib.resources
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from evcs_gym.envs.grid import Feeder
from evcs_gym.envs.grid.equipment import capacitor_siemens
from evcs_gym.envs.grid.network import CURRENT, IMPEDANCE, POWER, LoadTable, Network, with_loads
from evcs_gym.envs.types import ComplexArray

LINE_KV: Final = 4.16
PHASE_KV: Final = LINE_KV / math.sqrt(3.0)
LOAD_KV: Final = 2.4
"""Voltage at which loads between one phase and neutral draw what the table says, as in OpenDSS's edition."""
FT_PER_MILE: Final = 5280.0
SOURCE_OHM: Final = 1e-4j
SWITCH_OHM: Final = 1e-6
SWITCHES: Final = (("150r", "149"), ("13", "152"), ("18", "135"), ("60", "160"), ("97", "197"), ("61", "61s"))
"""Closed switches; the open ones (54-94, 151-300, 250-251, 450-451, 300-350, 95-195) and their far ends are absent."""
TAP_FRAC: Final = 0.00625
REGULATORS: Final = (
    ("150", "150r", {"a": 7, "b": 7, "c": 7}),
    ("9", "9r", {"a": -1}),
    ("25", "25r", {"a": 0, "c": -1}),
    ("160", "160r", {"a": 8, "b": 1, "c": 5}),
)
HEAD_REGULATOR_OHM: Final = 3.46112e-7 + 3.46112e-5j
REGULATOR_OHM: Final = 2.884802e-7 + 2.884802e-4j
"""Impedances of a regulator's phase at tap 0: next to none, as Kersting assumes; the values of OpenDSS's edition."""
CAPACITORS: Final = (
    ("83", (200.0, 200.0, 200.0), LINE_KV),
    ("88", (50.0, 0.0, 0.0), 2.402 * math.sqrt(3.0)),
    ("90", (0.0, 50.0, 0.0), 2.402 * math.sqrt(3.0)),
    ("92", (0.0, 0.0, 50.0), 2.402 * math.sqrt(3.0)),
)
"""Bus, kvar of phases a, b, c, and the voltage between phases at which they give it [kV]."""
XFM_1: Final = ("61s", "610", 0.48, (0.0127 + 0.0272j) * 0.48**2 / 0.15)
"""Delta-delta transformer of 150 kVA without load: from, to, kV, impedance on the low side [ohm]."""
KINDS: Final = {"PQ": POWER, "I": CURRENT, "Z": IMPEDANCE}
SOURCE: Final = (
    "IEEE 123 Node Test Feeder, parameters of the IEEE PES Test Feeder Working Group (Kersting, Radial distribution "
    "test feeders, 2001, 10.1109/PESW.2001.916993), two line lengths and rated voltages as in OpenDSS's edition; "
    "regulators at the published taps; built by evcs_gym.envs.data.build_ieee123"
)


def ieee123() -> Feeder:
    """The feeder, from its tables."""
    segments = [(row["from"], row["to"]) for row in _table("segments")]
    regulators = [(one, other) for one, other, _ in REGULATORS]
    ends = [("source", "150"), *segments, *SWITCHES, *regulators, XFM_1[:2]]
    names = ["source", *dict.fromkeys(bus for pair in ends[1:] for bus in pair)]
    index = {bus: row for row, bus in enumerate(names)}
    bus_kv = np.where(np.array(names) == XFM_1[1], XFM_1[2], LINE_KV)
    network = Network.of("ieee123", names, bus_kv, [(index[a], index[b]) for a, b in ends], "ieee123")
    network.impedance_ohm[index["150"]] = np.eye(3) * SOURCE_OHM
    for _, bus in SWITCHES:
        network.impedance_ohm[index[bus]] = np.eye(3) * SWITCH_OHM
    _add_segments(network, index)
    _add_regulators(network, index)
    network.transfer[index[XFM_1[1]]] = np.eye(3) - 1.0 / 3.0  # no common voltage comes through two deltas
    network.impedance_ohm[index[XFM_1[1]]] = np.eye(3) * XFM_1[3]
    for bus, kvar, kv in CAPACITORS:
        network.shunt_siemens[index[bus]] += capacitor_siemens(kvar, kv)
    return Feeder.from_arrays(**with_loads(network, _loads(index)))


def _add_segments(network: Network, index: dict[str, int]) -> None:
    """Series impedances of the line segments, and half of their charging at each end."""
    configurations = {row["configuration"]: row for row in _table("configurations")}
    for row in _table("segments"):
        miles = float(row["length_ft"]) / FT_PER_MILE
        configuration = configurations[row["configuration"]]
        ohm = (_matrix(configuration, "r") + 1j * _matrix(configuration, "x")) * miles
        half_siemens = 1j * _matrix(configuration, "b") * 1e-6 * miles / 2.0
        network.impedance_ohm[index[row["to"]]] = ohm
        for end in (row["from"], row["to"]):
            network.shunt_siemens[index[end]] += half_siemens


def _add_regulators(network: Network, index: dict[str, int]) -> None:
    for one, other, taps in REGULATORS:
        ohm = HEAD_REGULATOR_OHM if one == "150" else REGULATOR_OHM
        for phase, tap in taps.items():
            at = (index[other], "abc".index(phase), "abc".index(phase))
            ratio = 1.0 + TAP_FRAC * tap
            network.transfer[at], network.impedance_ohm[at] = ratio, ohm * ratio**2


def _loads(index: dict[str, int]) -> LoadTable:
    """Spot loads as they are at the nominal voltage of the feeder."""
    loads = LoadTable()
    for row in _table("loads"):
        kva = [complex(float(row[f"P{phase}_kW"]), float(row[f"Q{phase}_kvar"])) for phase in "abc"]
        three_phase = row["connection"] == "D" or (len(set(kva)) == 1 and kva[0] != 0.0)
        nominal = 1.0 if three_phase else PHASE_KV / LOAD_KV
        kind = KINDS[row["kind"]]
        for place, power in enumerate(kva):
            drawn = np.where(np.arange(3) == kind, power * nominal**kind, 0.0)
            loads.add(index[row["bus"]], "delta" if row["connection"] == "D" else "wye", place, drawn)
    return loads


def _matrix(configuration: dict[str, str], letter: str) -> ComplexArray:
    """(3, 3) symmetric matrix from the columns of its upper triangle, per mile."""
    row, column = np.triu_indices(3)
    matrix = np.zeros((3, 3), dtype=np.complex128)
    for i, j in zip(row.tolist(), column.tolist(), strict=True):
        matrix[i, j] = matrix[j, i] = float(configuration[f"{letter}{'abc'[i]}{'abc'[j]}"])
    return matrix


def _table(name: str) -> list[dict[str, str]]:
    path = importlib.resources.files("evcs_gym.envs.data") / f"ieee123_{name}.csv"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file into the folder given, the package's own by default."""
    given: Sequence[Any] = list(arguments or ())
    folder = Path(given[0]) if given else Path(str(importlib.resources.files("evcs_gym.envs.data")))
    ieee123().save(folder / "feeder_ieee123.json", SOURCE)


if __name__ == "__main__":
    main()
