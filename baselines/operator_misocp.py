"""The network operator `misocp`: the least adjustment of positions that keeps every limit, by (Q1)-(Q6).

It answers where `pro_rata` does, with the same interface. Slots within their limits pass untouched. In the others the
programme of the slot, with the day's devices as they stand, is solved at the power flow of the best positions known,
the first of which are those of `pro_rata`; the power flow at its answer judges, and becomes the next reference.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from evcs_gym.baselines.decomposition import cone_rows
from evcs_gym.baselines.forms.network import Reference, Tightness, adjustment_form
from evcs_gym.baselines.solvers import compile_model, solve_second_order
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.grid import Feeder, PowerFlow, branch_current_a, power_flow
from evcs_gym.envs.grid.devices import FIXED, Devices
from evcs_gym.envs.grid.operator import PASS_TOLERANCE, Limits, adjust, excesses, with_stations
from evcs_gym.envs.market.operators import PRO_RATA, Answer, Grid
from evcs_gym.envs.types import ComplexArray, FloatArray, IntArray
from evcs_gym.envs.units import PHASE_BASE_KVA

MAX_REFRESHES: Final = 12
"""Programmes of a slot at most; two to four do."""
SETTLED_KW: Final = 1e-2
"""What another refresh must gain."""
_FLOW_TOLERANCE_PU: Final = 1e-10
_WIDEST_FRAC: Final = 0.1
"""Share of the largest l at the first reference by which l may exceed its tangent at first."""
_SHRINK: Final = 0.125
"""What that becomes at most where the power flow refuses the answer, and one over it where the programme has none."""
_SHRINK_PER_SQUARE: Final = 500.0
"""The excess left is proportional to that room, the way back needs its square: with sensitivities above 0.05 pu of
voltage per pu of power this factor leaves enough."""
_SLOT_LIMIT_S: Final = 10.0


@dataclass(frozen=True, eq=False)
class SlotNetwork:
    """One slot of a `Grid` as (Q1)-(Q6) read it (`evcs_gym.baselines.problems.network.Network`, T = 1): devices stand
    as they are, and no position leaves the range between nothing and what was asked for."""

    feeder: Feeder
    station_bus: IntArray
    load_kva: ComplexArray
    limits: Limits
    head_pu: FloatArray
    standing_kvar: FloatArray
    wish_kw: FloatArray

    @classmethod
    def of(cls, grid: Grid, entry: int, wish_kw: FloatArray) -> "SlotNetwork":
        """The slot of an entry of the grid with positions (S,) asked for."""
        names, feeder = Limits.__dataclass_fields__, grid.feeder
        kvar = np.zeros((len(feeder), 3)) if grid.capacitor_kvar is None else grid.capacitor_kvar[entry]
        return cls(
            feeder=feeder,
            station_bus=grid.station_bus,
            load_kva=grid.load_kva[entry : entry + 1],
            limits=Limits(**{name: getattr(grid.limits, name)[entry : entry + 1] for name in names}),
            head_pu=grid.source_pu[entry : entry + 1],
            standing_kvar=kvar,
            wish_kw=wish_kw,
        )

    @property
    def devices(self) -> Devices:
        """None that move."""
        return FIXED

    @property
    def range_kw(self) -> tuple[FloatArray, FloatArray]:
        """(1, S) least and largest position: a cap bounds |g| at unchanged sign."""
        return np.minimum(self.wish_kw, 0.0)[None], np.maximum(self.wish_kw, 0.0)[None]

    @property
    def reach_kw(self) -> float:
        """All that was asked for."""
        return float(np.abs(self.wish_kw).sum())

    def flow(self, position_kw: FloatArray, start_pu: ComplexArray) -> tuple[PowerFlow, float]:
        """Nonlinear power flow at positions (S,), and its largest excess over a limit."""
        load = with_stations(self.load_kva, position_kw[None], self.station_bus)
        kvar = self.standing_kvar[None]
        flow = power_flow(
            self.feeder, load, self.head_pu, _FLOW_TOLERANCE_PU, warm_start=start_pu[None], capacitor_kvar=kvar
        )
        return flow, float(excesses(self.feeder, self.limits, load, flow, self.head_pu, kvar).max())

    def reference(self, position_kw: FloatArray, voltage_pu: ComplexArray) -> Reference:
        """What the programme is linearised at: voltages (N, 3) of the power flow at positions (S,)."""
        load = with_stations(self.load_kva, position_kw[None], self.station_bus)
        current = branch_current_a(self.feeder, load, voltage_pu[None], None, self.standing_kvar[None])
        return Reference(voltage_pu, current[0] / self.feeder.base_current_a)


@dataclass(eq=False)
class _Found:
    """The best positions (S,) that keep the limits, their flow where it is not that of `pro_rata`, and whether they are
    the answer of a programme."""

    position_kw: FloatArray
    flow: PowerFlow | None = None
    own: bool = False
    n_flows: int = 0

    @property
    def kept_kw(self) -> float:
        return float(np.abs(self.position_kw).sum())


@dataclass(frozen=True)
class Misocp:
    """The least sum of cuts that keeps the limits; see `evcs_gym.envs.market.operators.Operator`.

    `Answer.fallback` marks rows in which no programme's answer passed the power flow: then `pro_rata` stands, on what
    was asked for or on the last answer, whichever keeps more.
    """

    in_threads: bool = False

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
        """See `Operator`.

        Raises:
            ConfigError: a feeder with equipment. SolverError: no solver, or one that failed.
        """
        if grid.feeder.equipment is not None:
            raise ConfigError(
                f"operator 'misocp' knows lines and constant-power wye loads, and feeder {grid.feeder.name!r} has "
                "equipment; take another feeder or operator 'pro_rata'"
            )
        PRO_RATA.answer(first, stop, grid, at, position_kw, start_pu, into)
        for row in range(first, stop):
            if into.n_extra_flows[row] > 0:
                slot = SlotNetwork.of(grid, int(at[row]), position_kw[row])
                found = least_adjustment(slot, into.adjusted_kw[row], into.voltage_pu[row])
                _fill(into, row, slot, found)


MISOCP: Final = Misocp()


def least_adjustment(slot: SlotNetwork, safe_kw: FloatArray, voltage_pu: ComplexArray) -> _Found:
    """Positions (S,) with the least sum of cuts that the power flow passes.

    safe_kw: positions that keep the limits, voltage_pu (N, 3) of their power flow.
    """
    best, refused = _Found(safe_kw.copy()), None
    reference = slot.reference(safe_kw, voltage_pu)
    widest = _WIDEST_FRAC * float(np.abs(reference.current_pu).max() ** 2)
    for _ in range(MAX_REFRESHES):
        tried = _programme(slot, reference, widest)
        if tried is None:
            widest /= _SHRINK
            continue
        flow, excess = slot.flow(tried, reference.voltage_pu)
        best.n_flows += 1
        if excess <= PASS_TOLERANCE:
            gained_kw = float(np.abs(tried).sum()) - best.kept_kw
            if gained_kw > -SETTLED_KW and (not best.own or gained_kw > 0.0):
                best.position_kw, best.flow, best.own = tried, flow, True
            if gained_kw <= SETTLED_KW:
                break
        else:
            refused, widest = tried, min(_SHRINK * widest, _SHRINK_PER_SQUARE * excess**2)
        if flow.converged[0]:
            reference = slot.reference(tried, flow.voltage_pu[0])
    if not best.own and refused is not None:
        _scaled_back(slot, best, refused)
    return best


def _programme(slot: SlotNetwork, reference: Reference, widest: float) -> FloatArray | None:
    """Answer of the programme at a reference, (S,); None where it has none."""
    form = adjustment_form(slot, 0, reference, Tightness(0.0, widest), slot.wish_kw)
    compiled = compile_model(form.model)
    answer = solve_second_order(compiled.form, cone_rows(form.cones, compiled), _SLOT_LIMIT_S)
    if answer.ray:
        return None
    low, high = slot.range_kw
    found = np.clip(answer.x[compiled.columns(form.shared[: len(slot.wish_kw)])], low[0], high[0])
    return np.asarray(np.where(np.abs(found - slot.wish_kw) < SETTLED_KW, slot.wish_kw, found))


def _scaled_back(slot: SlotNetwork, best: _Found, refused_kw: FloatArray) -> None:
    """`pro_rata` on positions (S,) that the power flow refused, where that keeps more."""
    given = adjust(
        slot.feeder,
        slot.limits,
        slot.load_kva,
        refused_kw[None],
        slot.station_bus,
        slot.head_pu,
        capacitor_kvar=slot.standing_kvar[None],
    )
    best.n_flows += 1 + int(given.n_extra_flows[0])
    if float(np.abs(given.position_kw).sum()) > best.kept_kw:
        best.position_kw, best.flow = given.position_kw[0], given.flow


def _fill(into: Answer, row: int, slot: SlotNetwork, found: _Found) -> None:
    """Write what was found into the row of an answer that holds what `pro_rata` says."""
    into.n_extra_flows[row] += found.n_flows
    into.fallback[row] = not found.own
    if found.flow is None:
        return
    position, wish = found.position_kw, slot.wish_kw
    capped = position != wish
    into.adjusted_kw[row] = position
    into.cap_kw[row] = np.where(capped, np.abs(position), np.inf)
    asked = float(np.abs(wish[capped]).sum())
    into.factor[row] = float(np.abs(position[capped]).sum()) / asked if asked > 0.0 else 1.0
    into.voltage_pu[row] = found.flow.voltage_pu[0]
    into.loss_pu[row] = found.flow.loss_kw[0] / PHASE_BASE_KVA
    into.n_sweeps[row] = found.flow.iterations[0]
