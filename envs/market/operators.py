"""Network operators of the market as row functions: positions of a range of rows go in, caps and flows come out.

The network's arrays lie ready by slot of a day, M = D * T entries, in the layout of `evcs_gym.envs.grid.kernels`; a row
takes entry ``at[row]``. Nothing is copied per step, and one launch of threads covers the whole slot of the market.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.grid import Feeder, power_flow
from evcs_gym.envs.grid.kernels import solve
from evcs_gym.envs.grid.kernels_operator import adjust_rows
from evcs_gym.envs.grid.operator import Limits, adjust, row_current_a, with_stations
from evcs_gym.envs.grid.powerflow import MAX_SWEEPS, PHASE_UNIT, network_tables, used_banks
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray, IntArray
from evcs_gym.envs.units import PHASE_BASE_KVA

TOLERANCE_PU: Final = 1e-8
"""Largest change of a voltage in the last sweep."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The network and what the days bring to it, entry by entry.

    station_bus (S,). load_kva (M, N, 3) without stations, source_pu (M,), capacitor_kvar (M, N, 3) or None where no day
    has banks in service, limits of all entries. The rest is the same for the kernels (`network_tables`): network, empty
    for a feeder with equipment; row_current_a (N,), bank_kvar (M, K, 3), source (M, 6). Arrays are writable, as the
    kernels are compiled for.
    """

    feeder: Feeder
    station_bus: IntArray
    load_kva: ComplexArray
    source_pu: FloatArray
    capacitor_kvar: FloatArray | None
    limits: Limits
    network: tuple[Any, ...]
    row_current_a: FloatArray
    bank_kvar: FloatArray
    source: FloatArray

    @property
    def ready(self) -> tuple[Any, ...]:
        """What lies ready for `solve`."""
        return self.source, self.load_kva.view(np.float64), self.bank_kvar, 1.0 / PHASE_BASE_KVA


def make_grid(
    feeder: Feeder,
    station_bus: IntArray,
    load_kva: ComplexArray,
    source_pu: FloatArray,
    capacitor_kvar: FloatArray,
    limits: Limits,
) -> Grid:
    """Lay the arrays of M entries out for the kernels."""
    kvar = capacitor_kvar if capacitor_kvar.any() else None
    buses, bank_kvar = used_banks(kvar, len(load_kva))
    return Grid(
        feeder=feeder,
        station_bus=np.array(station_bus, dtype=np.int64),
        load_kva=load_kva,
        source_pu=source_pu,
        capacitor_kvar=kvar,
        limits=limits,
        network=network_tables(feeder, station_bus, buses) if feeder.equipment is None else (),
        row_current_a=row_current_a(feeder),
        bank_kvar=bank_kvar,
        source=(source_pu[:, None] * PHASE_UNIT).view(np.float64),
    )


class Answer(NamedTuple):
    """What an operator fills, row by row: cap_kw (B, S), infinite without a cap; adjusted_kw (B, S); factor (B,);
    n_extra_flows (B,), negative where even the base load breaks the limits; voltage_pu (B, N, 3), loss_pu (B,),
    n_sweeps (B,), negative where the power flow did not converge; fallback (B,), where a safer answer than the
    operator's own had to do."""

    cap_kw: FloatArray
    adjusted_kw: FloatArray
    factor: FloatArray
    n_extra_flows: IntArray
    voltage_pu: ComplexArray
    loss_pu: FloatArray
    n_sweeps: IntArray
    fallback: BoolArray

    @property
    def converged(self) -> BoolArray:
        """Whether the power flow of the adjusted positions exists, (B,)."""
        return np.asarray(self.n_sweeps > 0)


def empty_answer(n_rows: int, n_stations: int, n_buses: int) -> Answer:
    """An answer that lets every position pass, for an operator to fill."""
    cap_kw, factor = np.empty((n_rows, n_stations)), np.empty(n_rows)
    cap_kw.fill(np.inf)
    factor.fill(1.0)
    return Answer(
        cap_kw=cap_kw,
        adjusted_kw=np.empty((n_rows, n_stations)),
        factor=factor,
        n_extra_flows=np.zeros(n_rows, dtype=np.int64),
        voltage_pu=np.empty((n_rows, n_buses, 3), dtype=np.complex128),
        loss_pu=np.zeros(n_rows),
        n_sweeps=np.zeros(n_rows, dtype=np.int64),
        fallback=np.zeros(n_rows, dtype=np.bool_),
    )


class Operator(Protocol):
    """A network operator. in_threads: whether `answer` may run on several threads at once; it must not raise then."""

    @property
    def in_threads(self) -> bool:
        """See the class."""
        ...

    def answer(
        self,
        first: int,
        stop: int,
        grid: Grid,
        at: IntArray,
        position_kw: FloatArray,
        start_pu: ComplexArray,
        into: Answer,
    ) -> None:
        """Fill rows ``first .. stop - 1``: position_kw (B, S) at the entries at (B,), start_pu (B, N, 3)."""
        ...


@dataclass(frozen=True)
class NoOperator:
    """Every position passes; the power flow is computed and shown."""

    in_threads: bool = True

    def answer(
        self,
        first: int,
        stop: int,
        grid: Grid,
        at: IntArray,
        position_kw: FloatArray,
        start_pu: ComplexArray,
        into: Answer,
    ) -> None:
        """See `Operator`."""
        into.adjusted_kw[first:stop] = position_kw[first:stop]
        if grid.feeder.equipment is None:
            _first_flow(first, stop, grid, grid.ready, at, position_kw, start_pu, into)
            return
        rows = slice(first, stop)
        load = with_stations(grid.load_kva[at[rows]], position_kw[rows], grid.station_bus)
        kvar = None if grid.capacitor_kvar is None else grid.capacitor_kvar[at[rows]]
        flow = power_flow(
            grid.feeder, load, grid.source_pu[at[rows]], TOLERANCE_PU, warm_start=start_pu[rows], capacitor_kvar=kvar
        )
        _keep_flow(rows, into, flow)


@dataclass(frozen=True)
class ProRata:
    """The largest common factor on the positions that push towards a broken limit; see `grid.operator.adjust`."""

    in_threads: bool = True

    def answer(
        self,
        first: int,
        stop: int,
        grid: Grid,
        at: IntArray,
        position_kw: FloatArray,
        start_pu: ComplexArray,
        into: Answer,
    ) -> None:
        """See `Operator`."""
        if grid.feeder.equipment is not None:
            _adjust_with_equipment(slice(first, stop), grid, at, position_kw, start_pu, into)
            return
        ready = grid.ready
        _first_flow(first, stop, grid, ready, at, position_kw, start_pu, into)
        limits = grid.limits
        bounds = (limits.vmin_pu, limits.vmax_pu, limits.current_a, limits.head_kva, limits.unbalance_frac)
        own = (at, position_kw, TOLERANCE_PU, MAX_SWEEPS, into.voltage_pu.view(np.float64), into.loss_pu, into.n_sweeps)
        written = (into.adjusted_kw, into.cap_kw, into.factor, into.n_extra_flows)
        arrays: tuple[Any, ...] = (*grid.network, grid.row_current_a, *ready, *bounds, *own, *written)
        adjust_rows(first, stop, *arrays)


@dataclass(frozen=True, eq=False)
class AgreedCaps:
    """Caps (B, S) that stand already, infinite where there is none, and behind them another operator."""

    operator: Operator
    cap_kw: FloatArray

    @property
    def in_threads(self) -> bool:
        """That of the operator behind."""
        return self.operator.in_threads

    def answer(
        self,
        first: int,
        stop: int,
        grid: Grid,
        at: IntArray,
        position_kw: FloatArray,
        start_pu: ComplexArray,
        into: Answer,
    ) -> None:
        """See `Operator`."""
        rows, capped = slice(first, stop), position_kw.copy()
        capped[rows] = np.clip(position_kw[rows], -self.cap_kw[rows], self.cap_kw[rows])
        self.operator.answer(first, stop, grid, at, capped, start_pu, into)
        binding = np.abs(position_kw[rows]) > self.cap_kw[rows]
        into.cap_kw[rows] = np.minimum(into.cap_kw[rows], np.where(binding, self.cap_kw[rows], np.inf))


PRO_RATA: Final = ProRata()
NO_OPERATOR: Final = NoOperator()


def _first_flow(
    first: int,
    stop: int,
    grid: Grid,
    ready: tuple[Any, ...],
    at: IntArray,
    position_kw: FloatArray,
    start_pu: ComplexArray,
    into: Answer,
) -> None:
    """The power flow of the positions as they are."""
    own = (at, position_kw, start_pu.view(np.float64), TOLERANCE_PU, MAX_SWEEPS)
    written = (into.voltage_pu.view(np.float64), into.loss_pu, into.n_sweeps)
    arrays: tuple[Any, ...] = (*grid.network, *ready, *own, *written)
    solve(first, stop, *arrays)


def _adjust_with_equipment(
    rows: slice, grid: Grid, at: IntArray, position_kw: FloatArray, start_pu: ComplexArray, into: Answer
) -> None:
    """Feeders with equipment have no kernel over rows: their batch is the whole call."""
    some = at[rows]
    found = adjust(
        grid.feeder,
        Limits(**{name: getattr(grid.limits, name)[some] for name in Limits.__dataclass_fields__}),
        grid.load_kva[some],
        position_kw[rows],
        grid.station_bus,
        grid.source_pu[some],
        start_pu[rows],
        capacitor_kvar=None if grid.capacitor_kvar is None else grid.capacitor_kvar[some],
        tolerance_pu=TOLERANCE_PU,
    )
    for name in ("cap_kw", "factor", "n_extra_flows"):
        getattr(into, name)[rows] = getattr(found, name)
    into.adjusted_kw[rows] = found.position_kw
    _keep_flow(rows, into, found.flow)


def _keep_flow(rows: slice, into: Answer, flow: Any) -> None:
    into.voltage_pu[rows] = flow.voltage_pu
    into.loss_pu[rows] = flow.loss_kw / PHASE_BASE_KVA
    into.n_sweeps[rows] = np.where(flow.converged, flow.iterations, -flow.iterations)


def refuse_faults(answer: Answer) -> None:
    """Refuse limits that even the base load breaks.

    Raises:
        DataError: names the row.
    """
    if answer.n_extra_flows.min() < 0:
        raise DataError(
            f"operator: the base load alone of row {int(answer.n_extra_flows.argmin())} exceeds the day's limits; "
            "limits must be the effective ones of the same base load, source and capacitors"
        )
