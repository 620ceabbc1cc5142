"""Receding horizon for normal charging: in every slot plan the rest of the day, commit one slot, plan again.

The cars present are planned exactly, each with its own energy, power and departure; the cars that a day may still bring
are a fluid, the mean of the training days (`evcs_gym.baselines.arrivals`). Base load, DG and price are the forecasts
that every policy sees. The buses do not know of each other: the network is left out, as in the bound.

The programme of a bus keeps its matrix over the whole day: a car takes a seat, of which there are as many as cars were
ever present, and a slot changes bounds, prices and right sides only, so that the solver starts from its last basis.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from evcs_gym.baselines.arrivals import ExpectedArrivals, expected_arrivals
from evcs_gym.baselines.policy import Rule
from evcs_gym.baselines.solvers import HotProgrammes, StandardForm
from evcs_gym.envs.fleet.kernels import POWER_ROUNDING_KW
from evcs_gym.envs.fleet.normal import View
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H

if TYPE_CHECKING:
    from evcs_gym.envs.scenario import Scenario

NAME = "receding_horizon"
SOLVE_LIMIT_S = 60.0
"""Longest time of one bus and slot; beyond it the policy ends with an error: half a plan is none."""
SPARE_SEATS_FRAC = 0.5
"""Seats beyond the cars present when a programme is made: making it anew costs a cold start."""
LEAST_SEATS = 8
TIE_EUR_PER_KWH = 1e-6
"""Taken off the price of the present slot: of plans that cost the same that which charges now is taken, whatever basis
the solver came from. The day may bring less surplus or more cars than expected."""
N_BLOCKS = 3
"""Prices of the power of a slot: into the DG surplus, across its end, beyond it."""


@dataclass(frozen=True, eq=False)
class BusPlan:
    """Plan of one bus for the rest of its day: power of the present slot and cost of all slots from it on, (5)."""

    power_kw: float
    cost_eur: float


@dataclass(frozen=True, eq=False)
class _Frame:
    """Programme of a bus without numbers. Columns: M cells (a group in a slot of its stay) [kWh], then the blocks of
    every slot [kWh]; rows: G groups (classes of expected cars, then seats), then slots.

    cell_group, cell_slot: (M,). n_classes: groups before the seats.
    """

    form: StandardForm
    cell_group: IntArray
    cell_slot: IntArray
    n_classes: int
    n_seats: int


def receding_horizon(scenario: "Scenario") -> Rule:
    """The policy, with the arrivals that the scenario's training days let expect."""
    return Rule(NAME, Horizon(expected_arrivals(scenario)).target_kw)


class Horizon:
    """Plans of the rest of a day; ``target_kw`` is a rule."""

    def __init__(self, arrivals: ExpectedArrivals) -> None:
        self.arrivals = arrivals
        self._programmes = HotProgrammes()
        self._frames: dict[int, _Frame] = {}

    def target_kw(self, view: View) -> FloatArray:
        """Power of every bus in the present slot, (B, C): that of the plan; where there is no choice, none is made."""
        out = view.largest_kw.copy()
        for row, bus in np.argwhere(view.largest_kw > view.least_kw + POWER_ROUNDING_KW):
            out[row, bus] = self.plan(view, int(row), int(bus)).power_kw
        return out

    def plan(self, view: View, row: int, bus: int) -> BusPlan:
        """The cheapest plan of one bus of a batch.

        Raises:
            SolverError: no solver, or no optimum within `SOLVE_LIMIT_S`.
        """
        slot = int(view.slot[row])
        cars = slice(int(view.bus_start[row, bus]), int(view.bus_start[row, bus + 1]))
        frame = self._frame(bus, cars.stop - cars.start)
        net_kw = (view.base_kw - view.dg_kw)[row, :, bus]
        form = _with_groups(frame, self.arrivals, bus, view, row, cars)
        step_kw = float(view.power_kw[row, cars].mean()) if view.rules.on_off and cars.stop > cars.start else 0.0
        form = _with_blocks(frame, form, view.import_eur_per_kwh[row], net_kw, step_kw, view)
        now = np.flatnonzero((frame.cell_slot == slot) & (frame.cell_group >= frame.n_classes))
        form.cost[now] = -TIE_EUR_PER_KWH
        x = self._programmes.solve(bus, form, SOLVE_LIMIT_S)
        now_kwh = float(x[now].sum())
        standing_eur = view.rules.omega1_eur_per_kwh * SLOT_H * float(np.abs(net_kw[slot:]).sum())
        return BusPlan(now_kwh / SLOT_H, form.objective(x) + TIE_EUR_PER_KWH * now_kwh + standing_eur)

    def _frame(self, bus: int, n_cars: int) -> _Frame:
        """The loaded programme of a bus with seats for the cars present."""
        frame = self._frames.get(bus)
        if frame is None or frame.n_seats < n_cars:
            seats = max(LEAST_SEATS, int(n_cars * (1.0 + SPARE_SEATS_FRAC)))
            frame = _frame_of(self.arrivals, seats)
            self._programmes.load(bus, frame.form)
            self._frames[bus] = frame
        return frame


def _frame_of(arrivals: ExpectedArrivals, n_seats: int) -> _Frame:
    """Matrix of the programme of a bus: a cell adds to its group and to its slot, a block takes from its slot."""
    first = np.concatenate([arrivals.arrival_slot, np.zeros(n_seats, dtype=np.int64)])
    stay = np.concatenate([arrivals.departure_slot, np.full(n_seats, N_SLOTS)]) - first
    n_groups, n_cells, n_blocks = len(first), int(stay.sum()), N_BLOCKS * N_SLOTS
    group = np.repeat(np.arange(n_groups), stay)
    before = np.concatenate([[0], np.cumsum(stay)])
    slot = np.arange(n_cells) - before[group] + first[group]
    n_columns, n_rows = n_cells + n_blocks, n_groups + N_SLOTS
    index = np.column_stack([group, n_groups + slot]).ravel()
    form = StandardForm(
        cost=np.zeros(n_columns),
        offset=0.0,
        start=np.concatenate([2 * np.arange(n_cells), 2 * n_cells + np.arange(n_blocks + 1)]),
        index=np.concatenate([index, n_groups + np.tile(np.arange(N_SLOTS), N_BLOCKS)]),
        value=np.concatenate([np.ones(2 * n_cells), -np.ones(n_blocks)]),
        row_lower=np.zeros(n_rows),
        row_upper=np.zeros(n_rows),
        col_lower=np.zeros(n_columns),
        col_upper=np.zeros(n_columns),
        integer=np.zeros(n_columns, dtype=np.bool_),
    )
    return _Frame(form, group, slot, len(arrivals.arrival_slot), n_seats)


def _with_groups(
    frame: _Frame, arrivals: ExpectedArrivals, bus: int, view: View, row: int, cars: slice
) -> StandardForm:
    """(8) of every group: its energy, its power in the slots that are left of its stay; classes of the past are empty.

    The cars present need no more than their stays allow: the environment sees to it.
    """
    slot = int(view.slot[row])
    empty = np.zeros(frame.n_seats - (cars.stop - cars.start))
    coming = arrivals.arrival_slot > slot
    departure = np.concatenate([arrivals.departure_slot, view.departure_slot[row, cars], empty.astype(np.int64)])
    power_kw = np.concatenate([np.where(coming, arrivals.power_kw[bus], 0.0), view.power_kw[row, cars], empty])
    room_kwh = view.power_kw[row, cars] * SLOT_H * (view.departure_slot[row, cars] - slot)
    present_kwh = np.minimum(view.remaining_kwh[row, cars], room_kwh)  # off by rounding at most
    energy_kwh = np.concatenate([np.where(coming, arrivals.energy_kwh[bus], 0.0), present_kwh, empty])
    g, s = frame.cell_group, frame.cell_slot
    upper = frame.form.col_upper.copy()
    upper[: len(g)] = np.where((s >= slot) & (s < departure[g]), power_kw[g] * SLOT_H, 0.0)
    need = np.concatenate([energy_kwh, np.zeros(N_SLOTS)])
    return replace(frame.form, col_upper=upper, row_lower=need, row_upper=need)


def _with_blocks(
    frame: _Frame,
    form: StandardForm,
    price_eur_per_kwh: FloatArray,
    net_kw: FloatArray,
    step_kw: float,
    view: View,
) -> StandardForm:
    """(5), less what it is without charging: |net + P| - |net| falls up to the DG surplus and rises beyond it.

    With ``step_kw`` > 0 it is interpolated between the totals that whole cars of this power make: where all cars have
    one power the programme then has whole solutions, as in the exact one (forms/normal_charging.py).
    """
    w1, price = view.rules.omega1_eur_per_kwh, view.rules.energy_weight * price_eur_per_kwh
    surplus_kw = np.maximum(-net_kw, 0.0)
    below_kw, across_kw, inside_frac = surplus_kw, np.zeros(N_SLOTS), np.zeros(N_SLOTS)
    if step_kw > 0.0:
        n_whole = np.floor(surplus_kw / step_kw)
        below_kw, across_kw = n_whole * step_kw, np.full(N_SLOTS, step_kw)
        inside_frac = surplus_kw / step_kw - n_whole
    cost, upper = form.cost.copy(), form.col_upper.copy()
    blocks = slice(len(frame.cell_slot), None)
    cost[blocks] = np.concatenate([price - w1, price + w1 * (1.0 - 2.0 * inside_frac), price + w1])
    upper[blocks] = SLOT_H * np.concatenate([below_kw, across_kw, np.full(N_SLOTS, np.inf)])
    return replace(form, cost=cost, col_upper=upper)
