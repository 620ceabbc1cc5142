"""Radial three-phase feeders: what they consist of, and how they are read from arrays, tables and pandapower.

A feeder is a tree. Bus 0 is the source, an ideal three-phase voltage; every other bus hangs on its parent by one
branch with a full 3x3 series impedance. Loads are constant power between phase and neutral (wye).
"""

import csv
import difflib
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid import opendss, pandapower_net
from evcs_gym.envs.grid.defects import refuse_defects
from evcs_gym.envs.grid.equipment import Equipment, no_load_pu
from evcs_gym.envs.grid.feeder_file import read_feeder, save_feeder
from evcs_gym.envs.grid.flags import HAS_DELTA, HAS_SHARES, HAS_SHUNT, HAS_TRANSFER
from evcs_gym.envs.grid.network import phase_matrix, tree_from_branches
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray, IntArray, frozen
from evcs_gym.envs.units import PHASE_BASE_KVA, V_PER_KV

if TYPE_CHECKING:
    from evcs_gym.envs.grid.powerflow import PowerFlow

SHIPPED_FEEDERS: Final = ("case33bw", "synthetic33", "ieee13", "ieee123")
"""Names that ``load_feeder`` knows."""

_N_PHASES: Final = 3


@dataclass(frozen=True, eq=False)
class Feeder:
    """A radial three-phase feeder. Build it with ``from_arrays``, ``from_pandapower`` or ``load_feeder``.

    parent: (N,) bus that feeds bus i; -1 for the source, bus 0. A parent may have a larger index than its child.
    impedance_ohm: (N, 3, 3) series impedance of the branch from the parent [ohm]; row 0 is zero. A phase that does
        not reach a bus has a zero row and column there.
    line_to_line_kv: nominal voltage between two phases [kV].
    load_kva: (N, 3) nominal load, P + jQ per phase [kVA], positive when it draws from the network.
    ampacity_a: (N,) largest current of the branch from the parent, per phase [A]; infinite where unknown.
    bus_name: (N,) label of each bus in messages and reports.
    name: label of the feeder.
    equipment: transformers, regulators, shunts, delta and voltage-dependent loads; None where there are none.
    """

    parent: IntArray
    impedance_ohm: ComplexArray
    line_to_line_kv: float
    load_kva: ComplexArray
    ampacity_a: FloatArray
    bus_name: tuple[str, ...]
    name: str = "feeder"
    equipment: Equipment | None = None

    def __len__(self) -> int:
        """Number of buses, the source included."""
        return len(self.parent)

    @cached_property
    def phase_present(self) -> BoolArray:
        """(N, 3) whether a phase reaches the bus. An absent phase has voltage 0 and takes part in no limit."""
        present: BoolArray = np.diagonal(self.impedance_ohm, axis1=1, axis2=2) != 0
        present[0] = True
        return frozen(present)  # type: ignore[no-any-return]

    @cached_property
    def has_all_phases(self) -> bool:
        """Whether every phase reaches every bus."""
        return bool(self.phase_present.all())

    @cached_property
    def impedance_pu(self) -> ComplexArray:
        """(N, 3, 3) branch impedances on the base of one phase: (nominal kV / sqrt 3)^2 / PHASE_BASE_KVA."""
        return frozen(self.impedance_ohm / self.base_ohm[:, None, None])  # type: ignore[no-any-return]

    @cached_property
    def bus_kv(self) -> FloatArray:
        """(N,) nominal voltage between two phases of every bus [kV]."""
        level = np.full(len(self), self.line_to_line_kv) if self.equipment is None else self.equipment.bus_kv
        return frozen(level)  # type: ignore[no-any-return]

    @property
    def base_ohm(self) -> FloatArray:
        """(N,) impedance of 1 pu at each bus [ohm]."""
        phase_kv = self.bus_kv / math.sqrt(3.0)
        return np.asarray(phase_kv**2 * V_PER_KV / PHASE_BASE_KVA)

    @cached_property
    def sweep_order(self) -> IntArray:
        """(N,) buses, each after its parent and close to it (depth first): the row order of the power flow."""
        children: list[list[int]] = [[] for _ in self.parent]
        for bus, parent in enumerate(self.parent[1:].tolist(), start=1):
            children[parent].append(bus)
        order: list[int] = []
        pending = [0]
        while pending:
            bus = pending.pop()
            order.append(bus)
            pending.extend(reversed(children[bus]))
        return frozen(np.array(order, dtype=np.int64))  # type: ignore[no-any-return]

    @cached_property
    def sweep_tables(self) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
        """What the power-flow kernel reads, one row per bus in sweep order; private to the grid package.

        Bus (N,) and parent's row (N,), flat impedances in per unit (N * 18,), phases present as 1 or 0 (N, 3). The
        arrays stay writable, because numba would compile again for read-only ones and pickling loses that mark.
        """
        order = self.sweep_order
        row_of_bus = np.empty_like(order)
        row_of_bus[order] = np.arange(len(order))
        parent_row = np.zeros_like(order)
        parent_row[1:] = row_of_bus[self.parent[order[1:]]]
        impedance = np.ascontiguousarray(self.impedance_pu[order]).view(np.float64).ravel()
        return np.array(order), parent_row, impedance, self.phase_present[order].astype(np.float64)

    @cached_property
    def general_tables(self) -> tuple[IntArray, IntArray, IntArray, FloatArray, FloatArray, FloatArray]:
        """What the general kernel reads of a feeder with equipment, in sweep order; private to the grid package.

        Bus (N,), parent's row (N,), flags (N,), constants (N * TABLE,), phases present (N, 3), no-load voltages (N, 6).
        """
        order, parent_row, _, present = self.sweep_tables
        parts = self.equipment
        if parts is None:
            raise DataError(f"feeder {self.name!r}: general_tables are those of equipment, and it has none")
        n_buses = len(order)
        shunt_pu = parts.shunt_siemens * self.base_ohm[:, None, None]
        columns = (self.impedance_pu, parts.transfer, shunt_pu)
        matrices = [np.ascontiguousarray(c[order]).view(np.float64).reshape(n_buses, -1) for c in columns]
        shares = [share[order].reshape(n_buses, -1) for share in (parts.share_frac, parts.delta_share_frac)]
        flags = np.zeros(n_buses, dtype=np.int64)
        flags += HAS_TRANSFER * (np.abs(parts.transfer - np.eye(3)).max(axis=(1, 2)) > 0.0)[order]
        flags += HAS_SHUNT * (np.abs(parts.shunt_siemens).max(axis=(1, 2)) > 0.0)[order]
        # a batch may bring delta loads of its own
        flags += HAS_DELTA * (self.phase_present.sum(axis=1) > 1)[order]
        flags += HAS_SHARES * np.any(parts.share_frac[..., 0] != 1.0, axis=1)[order]
        voltage = np.ascontiguousarray(no_load_pu(self, parts)[order]).view(np.float64)
        return order, parent_row, flags, np.hstack([*matrices, *shares]).ravel(), present, voltage

    @property
    def phase_kv(self) -> float:
        """Nominal voltage between phase and neutral [kV]."""
        return self.line_to_line_kv / math.sqrt(3.0)

    @property
    def base_current_a(self) -> float:
        """Current of 1 pu [A]."""
        return PHASE_BASE_KVA / self.phase_kv

    @classmethod
    def from_arrays(
        cls,
        *,
        parent: ArrayLike,
        impedance_ohm: ArrayLike,
        line_to_line_kv: float,
        load_kva: ArrayLike,
        bus_name: Sequence[str] | None = None,
        ampacity_a: ArrayLike | None = None,
        name: str = "feeder",
        equipment: Equipment | None = None,
    ) -> Self:
        """A feeder from plain arrays, checked completely; the arrays are copied.

        parent: (N,) integers, -1 for the source, bus 0. impedance_ohm: (N, 3, 3) complex [ohm]. line_to_line_kv: kV.
        load_kva: (N, 3) complex [kVA]. bus_name: N different labels, "0", "1", ... by default. ampacity_a: (N,) [A],
        infinite by default. equipment: ``Equipment.of``, where there is more than lines and constant-power wye loads.

        Raises DataError, naming the bus, for a wrong shape, a value that is not finite, a parent that does not
        exist, a loop, a bus that is not connected, a branch without impedance, a negative resistance, a phase that
        its parent does not have, and a load at the source or on an absent phase. All such defects are listed, one per
        line; ``check_arrays`` gives them as a list.
        """
        where = f"feeder {name!r}"
        parent_bus = _parent_array(parent, where)
        n_buses = len(parent_bus)
        names = _bus_names(bus_name, n_buses, where)
        impedance = _array(impedance_ohm, np.complex128, (n_buses, 3, 3), "impedance_ohm", "(N, 3, 3)", where)
        load = _array(load_kva, np.complex128, (n_buses, 3), "load_kva", "(N, 3)", where)
        limit = np.full(n_buses, np.inf) if ampacity_a is None else ampacity_a
        ampacity = _array(limit, np.float64, (n_buses,), "ampacity_a", "(N,)", where)
        if not (math.isfinite(line_to_line_kv) and line_to_line_kv > 0):
            raise DataError(f"{where}: line_to_line_kv must be positive and finite, got {line_to_line_kv}")
        feeder = cls(
            parent=frozen(parent_bus),
            impedance_ohm=frozen(impedance),
            line_to_line_kv=float(line_to_line_kv),
            load_kva=frozen(load),
            ampacity_a=frozen(ampacity),
            bus_name=names,
            name=name,
            equipment=equipment,
        )
        refuse_defects(feeder, where)
        return feeder

    @classmethod
    def from_pandapower(cls, net: Any) -> Self:
        """A feeder from a pandapower network with one external grid, lines, Dyn transformers, loads and shunts.

        Bus 0 is the bus of the external grid, the others follow in the order of ``net.bus``; labels are pandapower's
        bus indices. Each line becomes a branch with the positive-sequence impedance of its columns r, x_ohm_per_km;
        where r0, x0_ohm_per_km are given the phases are coupled (self (Z0 + 2 Z1)/3, mutual (Z0 - Z1)/3), else Z0 =
        Z1 and they are not. Rows of ``net.load`` are split evenly over the phases, or over the pairs where their type
        is "delta"; those of ``net.asymmetric_load`` are taken phase by phase, or pair by pair (ab, bc, ca). Shares of
        constant impedance and current (columns const_z_p_percent and so on) may differ between active and reactive
        power; where one bus cannot hold all that is on it, more buses carry it ("NAME#2", joined by a millionth of an
        ohm). ``net.ext_grid.vm_pu`` and its short-circuit power are not taken over: the source is ideal and its
        voltage an argument of the power flow, since tap changers move it.

        Raises ConfigError for what this model does not have (transformers other than Dyn, generators, line
        capacitance, closed bus-bus switches, several external grids) and DataError for loops, isolated buses and
        malformed values.
        """
        return cls.from_arrays(**pandapower_net.read_net(net))

    @classmethod
    def check_arrays(cls, vmin_pu: float = 0.95, vmax_pu: float = 1.05, **arrays: Any) -> list[str]:
        """Everything that is wrong or doubtful about a network, in words, without raising; empty if nothing is.

        arrays: those of ``from_arrays``. What that would refuse (buses that are not connected, loops, branches without
        impedance, negative resistances, loads on absent phases, wrong shapes); if nothing, what ``check`` says.
        """
        try:
            feeder = cls.from_arrays(**arrays)
        except DataError as error:
            return str(error).splitlines()
        return feeder.check(vmin_pu, vmax_pu)

    def check(self, vmin_pu: float = 0.95, vmax_pu: float = 1.05) -> list[str]:
        """What is doubtful about the feeder, in words; empty if nothing is.

        Suspected units (a branch that would drop 20 % at nominal load, or none that drops anything, a nominal voltage
        that the transformers do not lead to), branches that no passive line can be, and what the power flow of the
        nominal loads breaks: voltage limits, ampacities, 2 % unbalance, convergence. What makes a feeder impossible
        (loops, islands, absent phases, signs) is refused when it is made, with a DataError; ``check_arrays`` lists
        both.
        """
        from evcs_gym.envs.grid.inspect import complaints

        return complaints(self, vmin_pu, vmax_pu)

    def plot(self, flow: "PowerFlow", case: int = 0) -> Any:
        """Matplotlib figure of one case's voltages by phase against the electrical distance from the source.

        Raises ConfigError for a power flow of another feeder or a case that did not converge.
        """
        from evcs_gym.envs.grid.inspect import voltage_figure

        return voltage_figure(self, flow, case)

    def save(self, path: str | Path, source: str) -> None:
        """Write the feeder with its equipment to a JSON file for ``load_feeder``; source: where the data come from."""
        save_feeder(self, path, source)

    def to_pandapower(self, load_kva: ComplexArray | None = None, source_pu: float = 1.0) -> Any:
        """The feeder as a pandapower network ready for ``runpp_3ph`` and its plots; bus index = bus.

        load_kva: (N, 3) [kVA] of the loads between phase and neutral, the nominal ones by default. Delta loads and
        capacitors equal on three phases go along. Loads that depend on voltage go to ``net.load``, where they must be
        equal on three phases; pandapower's ``runpp`` honours their shares, its ``runpp_3ph`` does not. Raises
        ConfigError, naming the bus, for transformers, regulators, untransposed lines (pandapower describes a line by
        its sequence impedances), other shunts and uneven loads that depend on voltage.
        """
        return pandapower_net.write_net(self, self.load_kva if load_kva is None else load_kva, source_pu)

    @classmethod
    def from_opendss(cls, path: str | Path) -> Self:
        """A feeder from an OpenDSS file, read by the OpenDSS engine (package dss_python, extra ``peers``).

        path: the master file of the circuit. Lines, reactors, transformers and banks of them are taken with their
        primitive admittances, regulators at the taps and switches in the state in which the file leaves them. Bus 0 is
        the ideal voltage behind the source's impedance; the source's pu is part of the feeder, so that ``source_pu``
        = 1 is the file's source, and angles count from it. Loads keep their model at every voltage; OpenDSS's change
        to constant impedance outside vminpu..vmaxpu.

        Loads of several models and power factors on one phase are spread over buses "NAME", "NAME#2" and "NAME#3",
        joined by a millionth of an ohm. Networks behind an ungrounded delta winding, such as the IEEE 37-bus feeder,
        are taken with the shunts from which their voltage to ground results.

        Raises ConfigError where the engine is not installed and for what this model does not have (generators, load
        models other than constant power, current and impedance, ungrounded neutrals, loads to ground behind an
        ungrounded winding, elements between three buses), DataError for a file that does not run or does not solve,
        loops and isolated buses.
        """
        return cls.from_arrays(**opendss.read_circuit(path))


def load_feeder(name_or_path: str | Path) -> Feeder:
    """A shipped feeder by name ("synthetic33", "case33bw", "ieee13", "ieee123"), or one of your own.

    Your own is a file of ``Feeder.save`` (PATH.json), or the common prefix of two tables.

    ``<prefix>_bus.csv`` and ``<prefix>_branch.csv`` hold a balanced network (columns bus, Pd_kW, Qd_kvar, base_kV_LL;
    from, to, r_ohm, x_ohm, status_closed): a third of each load per phase, uncoupled phases. ``<prefix>_lines.csv``
    and ``<prefix>_loads.csv`` hold an unbalanced one with transposed lines (from, to, Rself_ohm, Xself_ohm, Rmut_ohm,
    Xmut_ohm; bus, Pa_kW, Pb_kW, Pc_kW, Qa_kvar, Qb_kvar, Qc_kvar, base_kV_LL). The first bus of the table is the
    source. Feeders with other matrices: ``Feeder.from_arrays``.

    Raises ConfigError if there is no such feeder, DataError if a table is malformed.
    """
    text = str(name_or_path)
    if text in SHIPPED_FEEDERS:
        folder: Traversable = importlib.resources.files("evcs_gym.envs.data")
        packed = folder / f"feeder_{text}.json"
        if packed.is_file():
            return Feeder.from_arrays(**read_feeder(packed.read_text(encoding="utf-8"), packed.name))
        return _read_tables(folder, f"feeder_{text}", text)
    prefix = Path(name_or_path)
    if prefix.suffix == ".json" and prefix.is_file():
        return Feeder.from_arrays(**read_feeder(prefix.read_text(encoding="utf-8"), prefix.name))
    if prefix.parent.is_dir() and any(prefix.parent.glob(f"{prefix.name}_*.csv")):
        return _read_tables(prefix.parent, prefix.name, prefix.name)
    nearest = difflib.get_close_matches(text, SHIPPED_FEEDERS, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigError(
        f"no feeder {text!r}: give one of {', '.join(SHIPPED_FEEDERS)}, a .json file of Feeder.save, "
        "or the common prefix of two tables (PREFIX_lines.csv with PREFIX_loads.csv, or PREFIX_branch.csv with "
        f"PREFIX_bus.csv){hint}"
    )


def _array(
    value: ArrayLike, dtype: Any, shape: tuple[int, ...], name: str, letters: str, where: str
) -> np.ndarray[Any, Any]:
    """A private, contiguous copy of the right type and shape without NaN; infinity passes only as an ampacity."""
    try:
        array = np.array(value, dtype=dtype, order="C")
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {name} must be an array of numbers of shape {letters}: {error}") from error
    if array.shape != shape:
        raise DataError(f"{where}: {name} must have shape {letters} = {shape}, got {array.shape}")
    bad = np.isnan(array) if name == "ampacity_a" else ~np.isfinite(array)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(f"{where}: {name} must be finite, got {array[index]} at index {index}")
    return array


def _parent_array(parent: ArrayLike, where: str) -> IntArray:
    array = np.array(parent)
    if array.ndim != 1 or len(array) < 2 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{where}: parent must be a one-dimensional array of at least 2 integers, "
            f"got shape {array.shape} of {array.dtype}"
        )
    return array.astype(np.int64)


def _bus_names(bus_name: Sequence[str] | None, n_buses: int, where: str) -> tuple[str, ...]:
    names = tuple(str(i) for i in range(n_buses)) if bus_name is None else tuple(str(n) for n in bus_name)
    if len(names) != n_buses or len(set(names)) != n_buses:
        raise DataError(
            f"{where}: bus_name must hold {n_buses} different names, one per bus, "
            f"got {len(names)} of which {len(set(names))} differ"
        )
    return names


# Tables


def _read_tables(folder: Traversable, prefix: str, name: str) -> Feeder:
    """The feeder in the two tables ``<prefix>_*.csv`` of a folder."""
    if (folder / f"{prefix}_bus.csv").is_file():
        buses, branches = folder / f"{prefix}_bus.csv", folder / f"{prefix}_branch.csv"
        names, load_kva, base_kv = _balanced_loads(buses)
        ends, matrices = _uncoupled_lines(branches)
    else:
        buses, branches = folder / f"{prefix}_loads.csv", folder / f"{prefix}_lines.csv"
        names, load_kva, base_kv = _unbalanced_loads(buses)
        ends, matrices = _transposed_lines(branches)
    _bus_names(names, len(names), buses.name)
    index = {bus: i for i, bus in enumerate(names)}
    pairs = [(_bus_index(index, a, branches.name), _bus_index(index, b, branches.name)) for a, b in ends]
    parent, branch = tree_from_branches(pairs, names, branches.name)
    return Feeder.from_arrays(
        parent=parent,
        impedance_ohm=_by_bus(matrices, branch),
        line_to_line_kv=_one_level(base_kv, buses.name),
        load_kva=load_kva,
        bus_name=names,
        name=name,
    )


def _balanced_loads(table: Traversable) -> tuple[list[str], ComplexArray, FloatArray]:
    """Bus names, loads (N, 3) [kVA] and nominal voltages (N,) [kV] of a table with one load per bus."""
    labels, rows = _read_csv(table, ("bus",), ("Pd_kW", "Qd_kvar", "base_kV_LL"))
    total = rows[:, 0] + 1j * rows[:, 1]
    return [bus for (bus,) in labels], np.repeat(total[:, None] / _N_PHASES, _N_PHASES, axis=1), rows[:, 2]


def _unbalanced_loads(table: Traversable) -> tuple[list[str], ComplexArray, FloatArray]:
    """Bus names, loads (N, 3) [kVA] and nominal voltages (N,) [kV] of a table with loads per phase."""
    columns = ("Pa_kW", "Pb_kW", "Pc_kW", "Qa_kvar", "Qb_kvar", "Qc_kvar", "base_kV_LL")
    labels, rows = _read_csv(table, ("bus",), columns)
    return [bus for (bus,) in labels], rows[:, 0:3] + 1j * rows[:, 3:6], rows[:, 6]


def _uncoupled_lines(table: Traversable) -> tuple[list[tuple[str, ...]], ComplexArray]:
    """Ends and matrices (M, 3, 3) [ohm] of the closed branches of a table with one impedance per branch."""
    ends, rows = _read_csv(table, ("from", "to"), ("r_ohm", "x_ohm", "status_closed"))
    closed = rows[:, 2] != 0
    self_ohm = rows[closed, 0] + 1j * rows[closed, 1]
    kept = [pair for pair, keep in zip(ends, closed.tolist(), strict=True) if keep]
    return kept, phase_matrix(self_ohm, np.zeros_like(self_ohm))


def _transposed_lines(table: Traversable) -> tuple[list[tuple[str, ...]], ComplexArray]:
    """Ends and matrices (M, 3, 3) [ohm] of a table with self and mutual impedances."""
    ends, rows = _read_csv(table, ("from", "to"), ("Rself_ohm", "Xself_ohm", "Rmut_ohm", "Xmut_ohm"))
    return ends, phase_matrix(rows[:, 0] + 1j * rows[:, 1], rows[:, 2] + 1j * rows[:, 3])


def _by_bus(matrices: ComplexArray, branch: IntArray) -> ComplexArray:
    """(N, 3, 3): the matrix of the branch that leads to each bus, zero for the source."""
    impedance = np.zeros((len(branch), _N_PHASES, _N_PHASES), dtype=np.complex128)
    impedance[1:] = matrices[branch[1:]]
    return impedance


def _bus_index(index: Mapping[str, int], label: str, where: str) -> int:
    if label not in index:
        raise DataError(f"{where}: a branch names bus {label!r}, which does not exist in the bus table")
    return index[label]


def _one_level(base_kv: FloatArray, where: str) -> float:
    levels = np.unique(base_kv)
    if len(levels) != 1:
        raise DataError(f"{where}: all buses must have one voltage level, got {levels.tolist()} kV")
    return float(levels[0])


def _read_csv(
    table: Traversable, label_columns: Sequence[str], number_columns: Sequence[str]
) -> tuple[list[tuple[str, ...]], FloatArray]:
    """Labels and numbers (rows, columns) of the named columns; the error says the line and the column."""
    if not table.is_file():
        raise DataError(f"{table}: the table is missing; a feeder needs both of its tables")
    labels: list[tuple[str, ...]] = []
    numbers: list[list[float]] = []
    with table.open(encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [c for c in (*label_columns, *number_columns) if c not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{table}: missing columns {', '.join(missing)}; found {reader.fieldnames}")
        for row in reader:
            labels.append(tuple(str(row[c]).strip() for c in label_columns))
            numbers.append([_number(row[c], f"{table}:{reader.line_num}: {c}") for c in number_columns])
    if not numbers:
        raise DataError(f"{table}: the table has no rows")
    return labels, np.array(numbers, dtype=np.float64)


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where} must be a finite number, got {text!r}")
    return value
