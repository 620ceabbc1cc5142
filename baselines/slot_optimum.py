"""The optimum of each slot as a policy of fast charging: the strategy of the paper, played request by request.

All requests of a slot ask at its beginning, so that the first of them can be sent by a plan of all. The policy knows
(1), (2), (4) and the plugs, but no network: voltages are priced by the environment afterwards.
"""

import time
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from evcs_gym.baselines.fast_charging import Answer, solve_programme
from evcs_gym.baselines.normal_charging import Budget
from evcs_gym.baselines.problems.fast_charging import FastProblem
from evcs_gym.baselines.registry import SLOT_OPTIMUM
from evcs_gym.envs.errors import SolverError
from evcs_gym.envs.fleet.fast import FastView
from evcs_gym.envs.fleet.fast_kernels import REACH_TOLERANCE_KWH
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import SLOT_H

GAP: Final = 1e-4
"""Relative gap to which a slot is solved, of the part of its cost that a plan changes."""
SOLVE_LIMIT_S: Final = 60.0
SAME_KW: Final = 1e-6
"""A load within this of the planned one is the planned one."""


@dataclass
class _Rest:
    """What is left of the plan of a slot: the next request, where it and those after it go, and the load of the slot,
    (J,), that is there if all before it went as planned."""

    request: int
    station: IntArray
    load_kw: FloatArray


@dataclass
class SlotOptimum:
    """A rule of fast charging: solves a slot at its first request and follows the plan while it is followed.

    Somebody else's decisions, or another history of the same day, make it plan anew. ``rest`` holds plans by day.
    """

    rest: dict[int, _Rest] = field(default_factory=dict)

    def __call__(self, view: FastView) -> IntArray:
        """The station of every row's present request, (B,), J for stranded.

        Raises:
            SolverError: no solver, or a slot that is not solved to `GAP` within `SOLVE_LIMIT_S`.
        """
        return np.array([self._send(view, row) for row in range(len(view.slot))], dtype=np.int64)

    def _send(self, view: FastView, row: int) -> int:
        day, slot, request = int(view.day[row]), int(view.slot[row]), int(view.request[row])
        load_kw, rest = view.load_kw[row, slot], self.rest.get(day)
        if rest is None or rest.request != request or np.abs(rest.load_kw - load_kw).max() > SAME_KW:
            rest = _Rest(request, solved(window_of(view, row)).station, load_kw)
        station = int(rest.station[0])
        if len(rest.station) > 1:
            self.rest[day] = _Rest(request + 1, rest.station[1:], _after(view, row, load_kw, station))
        else:
            self.rest.pop(day, None)
        return station


def _after(view: FastView, row: int, load_kw: FloatArray, station: int) -> FloatArray:
    """Load of the slot once the present request charges at a station, (J,)."""
    out = load_kw.copy()
    if station < len(load_kw):
        energy_kwh = view.missing_kwh[row, 0] + view.drive_kwh[row, 0, station]
        out[station] += min(view.rules.plug_kw[station], energy_kwh / SLOT_H)
    return out


def window_of(view: FastView, row: int) -> FastProblem:
    """The problem of the requests of a slot that still wait, in a row of a batch; what was sent is committed load."""
    slot, n = int(view.slot[row]), int(view.n_waiting[row])
    drive_kwh = view.drive_kwh[row, :n]
    reach = drive_kwh <= view.spare_kwh[row, :n, None] + REACH_TOLERANCE_KWH
    net_kw = view.base_kw[row, slot] - view.dg_kw[row, slot] + view.load_kw[row, slot]
    return FastProblem(
        slot=np.zeros(n, dtype=np.int64),
        car=int(view.request[row]) + np.arange(n),
        need_kwh=view.missing_kwh[row, :n],
        detour_kwh=np.where(reach, drive_kwh, 0.0),
        reach=reach,
        request_weight=np.full(n, view.rules.energy_weight / float(view.n_slot[row])),
        plug_kw=view.rules.plug_kw,
        net_kw=net_kw[None],
        free_plugs=view.n_free[row][None],
        import_eur_per_kwh=view.import_eur_per_kwh[row, slot : slot + 1],
        absorb_eur_per_kw=view.rules.absorb_eur_per_kw,
        stranded_eur=view.rules.stranded_eur,
    )


def solved(window: FastProblem) -> Answer:
    """The proven plan of a slot.

    Raises:
        SolverError: see `SlotOptimum`.
    """
    answer = solve_programme(window, None, GAP, Budget(time.monotonic(), SOLVE_LIMIT_S))
    if answer.relative_gap > GAP:
        raise SolverError(
            f"policy {SLOT_OPTIMUM!r}: a slot of {window.n_requests} requests must be solved to a gap of {GAP:g} "
            f"within {SOLVE_LIMIT_S:g} s, got {answer.relative_gap:.2g}; take a rule, such as cheapest, for so many"
        )
    return answer
