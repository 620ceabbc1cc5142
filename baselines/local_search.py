"""Cheaper ``on_off`` plans by moving and swapping slots of cars: the start point of the exact search.

The relaxation of the ``on_off`` programme is degenerate (half-hours of one hour have one price), so that rounding it
leaves more on the table than proving costs. Both moves keep (8) and every stay:

* *move*: a car leaves a slot for another of its stay;
* *swap*: two cars of a bus exchange a slot of each, which changes the bus's power by the difference of theirs only.

The cost is that of the programme, with the slack of its linear voltage rows.
"""

import time
from dataclasses import dataclass

import numpy as np

from evcs_gym.baselines.forms.normal_charging import VoltageRows
from evcs_gym.baselines.problems.normal_charging import NormalProblem, connection_of, connection_power_kw, cost
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import SLOT_H

LEAST_GAIN_EUR = 1e-9
"""A move that saves less is rounding: the search would not end."""
MAX_MOVES_PER_CAR = 20
MAX_CARS_TO_SWAP = 64
"""Swaps look at all pairs of cars; with more cars, single moves already leave next to nothing."""
KICKED_CARS = 4
KICKS_PER_CAR, MAX_KICKS = 12, 2000
"""With few cars the exact search is quick and kicks find little."""
MAX_PASSES = 4
"""Passes over the buses: voltage rows couple them."""


def improved(problem: NormalProblem, power_kw: FloatArray, rows: VoltageRows | None = None) -> FloatArray:
    """A plan (T, S) that no move, and on buses with few cars no swap, makes cheaper in the programme with ``rows``."""
    plan_kw = power_kw.copy()
    rows = None if rows is None or not len(rows.slot) else rows
    outside_pu = np.zeros(0) if rows is None else _outside_pu(problem, rows, plan_kw)
    for _ in range(1 if rows is None else MAX_PASSES):
        before = plan_kw.copy()
        for bus in range(problem.net_kw.shape[1]):
            cars = np.flatnonzero((problem.bus == bus) & (problem.n_slots > 0))
            if len(cars):
                search = _BusSearch(problem, bus, cars, rows, plan_kw, outside_pu)
                search.run()
                plan_kw[:, cars] = (search.charges * search.power_kw[:, None]).T
        if (plan_kw == before).all():
            break
    return plan_kw


def kicked(
    problem: NormalProblem, power_kw: FloatArray, rows: VoltageRows | None, target_eur: float, seconds: float
) -> FloatArray:
    """A plan (T, S) at least as cheap, by iterated local search.

    Again and again a few cars of one bus, drawn with a fixed seed, are moved at random and the bus is searched anew;
    what is not cheaper is undone. Ends at ``target_eur``, after so many kicks or after ``seconds``.
    """
    rng, end = np.random.default_rng(0), time.monotonic() + seconds
    plan_kw, rows = power_kw.copy(), None if rows is None or not len(rows.slot) else rows
    best_eur = _programme_eur(problem, plan_kw, rows)
    movable = problem.n_slots < problem.departure_slot - problem.arrival_slot
    buses = [np.flatnonzero((problem.bus == bus) & (problem.n_slots > 0)) for bus in np.unique(problem.bus[movable])]
    for _ in range(min(MAX_KICKS, KICKS_PER_CAR * problem.n_sessions) if buses else 0):
        if best_eur <= target_eur or time.monotonic() > end:
            break
        cars = buses[int(rng.integers(len(buses)))]
        loose = cars[movable[cars]]
        trial = plan_kw.copy()
        for i in rng.choice(loose, min(KICKED_CARS, len(loose)), replace=False):
            stay = slice(int(problem.arrival_slot[i]), int(problem.departure_slot[i]))
            on, off = np.flatnonzero(trial[stay, i] > 0.0), np.flatnonzero(trial[stay, i] == 0.0)
            trial[stay, i][[rng.choice(on), rng.choice(off)]] = 0.0, problem.power_kw[i]
        outside_pu = np.zeros(0) if rows is None else _outside_pu(problem, rows, trial)
        search = _BusSearch(problem, int(problem.bus[cars[0]]), cars, rows, trial, outside_pu)
        search.run()
        trial[:, cars] = (search.charges * search.power_kw[:, None]).T
        cost_eur = _programme_eur(problem, trial, rows)
        if cost_eur < best_eur - LEAST_GAIN_EUR:
            plan_kw, best_eur = trial, cost_eur
    return plan_kw


def _programme_eur(problem: NormalProblem, power_kw: FloatArray, rows: VoltageRows | None) -> float:
    if rows is None:
        return cost(problem, power_kw)
    slack_pu = np.maximum(_outside_pu(problem, rows, power_kw), 0.0)
    return cost(problem, power_kw) + rows.price_eur_per_pu * float(slack_pu.sum())


def _outside_pu(problem: NormalProblem, rows: VoltageRows, power_kw: FloatArray) -> FloatArray:
    """How far each row is outside its limit, negative inside, (R,)."""
    voltage = rows.voltage_pu(connection_power_kw(problem, power_kw))
    return np.asarray(rows.sign * (rows.limit_pu - voltage))


class _BusSearch:
    """The cars of one bus in the middle of the search: mutable, unlike the records of the project.

    charges, stays: (cars, T). total_kw: net power of the bus, (T,). slot_eur: price of charging, (cars, T). rows: what
    the cars do to the voltage rows, sorted by slot; outside_pu (R,) is shared by the searches of all buses.
    """

    def __init__(
        self,
        problem: NormalProblem,
        bus: int,
        cars: IntArray,
        rows: VoltageRows | None,
        plan_kw: FloatArray,
        outside_pu: FloatArray,
    ) -> None:
        slot = np.arange(len(plan_kw))
        self.power_kw = problem.power_kw[cars]
        self.charges = plan_kw[:, cars].T > 0.0
        self.stays = (slot >= problem.arrival_slot[cars, None]) & (slot < problem.departure_slot[cars, None])
        self.total_kw = problem.net_kw[:, bus] + self.power_kw @ self.charges
        self.gap_eur_per_kw = SLOT_H * problem.gap_eur_per_kwh
        price = SLOT_H * problem.energy_weight * problem.import_eur_per_kwh
        self.slot_eur = price * self.power_kw[:, None]
        self.outside_pu = outside_pu
        self.rows = None if rows is None else _RowEffects.of(problem, rows, bus, cars)

    def run(self) -> None:
        """Improve until nothing helps: moves first, a swap only when no move does."""
        n_cars = len(self.power_kw)
        for _ in range(MAX_MOVES_PER_CAR * n_cars):
            if not self._move() and not (n_cars <= MAX_CARS_TO_SWAP and self._swap()):
                return

    def _change_eur(self, more_kw: FloatArray, more_eur: FloatArray, harm_pu: FloatArray) -> FloatArray:
        """Cost of a change in every slot, (..., T): power (..., 1), its price (..., T), effect on the rows (..., R)."""
        gap = np.abs(self.total_kw + more_kw) - np.abs(self.total_kw)
        change = self.gap_eur_per_kw * gap + more_eur
        return np.asarray(change if self.rows is None else change + self.rows.cost_eur(self.outside_pu, harm_pu))

    def _harm_pu(self) -> FloatArray:
        return np.zeros((len(self.power_kw), 0)) if self.rows is None else self.rows.harm_pu

    def _move(self) -> bool:
        """The best move of one car, if any saves."""
        power, harm = self.power_kw[:, None], self._harm_pu()
        leave = np.where(self.charges, self._change_eur(-power, -self.slot_eur, -harm), np.inf)
        enter = np.where(self.stays & ~self.charges, self._change_eur(power, self.slot_eur, harm), np.inf)
        change = leave.min(axis=1) + enter.min(axis=1)
        i = int(np.argmin(change))
        if change[i] >= -LEAST_GAIN_EUR:
            return False
        self._put(i, int(np.argmin(leave[i])), False)
        self._put(i, int(np.argmin(enter[i])), True)
        return True

    def _swap(self) -> bool:
        """The best swap of two cars, if any saves: i leaves ``source`` to j and takes ``target`` from j."""
        power, harm = self.power_kw, self._harm_pu()
        more_kw = (power[:, None] - power[None, :])[:, :, None]
        more_eur = self.slot_eur[:, None] - self.slot_eur[None, :]
        more_harm = harm[:, None] - harm[None, :]
        i_to_j = self.charges[:, None] & (self.stays & ~self.charges)[None, :]
        at_source = np.where(i_to_j, self._change_eur(-more_kw, -more_eur, -more_harm), np.inf)
        at_target = np.where(i_to_j.transpose(1, 0, 2), self._change_eur(more_kw, more_eur, more_harm), np.inf)
        change = at_source.min(axis=2) + at_target.min(axis=2)
        i, j = (int(index) for index in np.unravel_index(int(np.argmin(change)), change.shape))
        if change[i, j] >= -LEAST_GAIN_EUR:
            return False
        source, target = int(np.argmin(at_source[i, j])), int(np.argmin(at_target[i, j]))
        for car, slot, on in ((i, source, False), (j, source, True), (j, target, False), (i, target, True)):
            self._put(car, slot, on)
        return True

    def _put(self, car: int, slot: int, on: bool) -> None:
        """Switch a car on or off in a slot."""
        sign = 1.0 if on else -1.0
        self.charges[car, slot] = on
        self.total_kw[slot] += sign * self.power_kw[car]
        if self.rows is not None:
            here = self.rows.slot == slot
            self.outside_pu[self.rows.order[here]] += sign * self.rows.harm_pu[car, here]


@dataclass(frozen=True, eq=False)
class _RowEffects:
    """What the cars of a bus do to the voltage rows, which are sorted by slot.

    order: rows of the programme, (R,). slot: theirs, (R,). harm_pu: how much further outside a row is when the car
    charges in its slot, (cars, R). places, first: the slots that have rows, and the first row of each.
    """

    order: IntArray
    slot: IntArray
    harm_pu: FloatArray
    places: IntArray
    first: IntArray
    n_slots: int
    price_eur_per_pu: float

    @staticmethod
    def of(problem: NormalProblem, rows: VoltageRows, bus: int, cars: IntArray) -> "_RowEffects":
        """Effects of the cars of one bus."""
        order = np.argsort(rows.slot, kind="stable")
        slot = rows.slot[order]
        places, first = np.unique(slot, return_index=True)
        gain = (-rows.sign[:, None] * rows.gain_pu_per_kw[:, bus])[order]
        harm = gain[:, connection_of(problem.phase[cars])].T * problem.power_kw[cars, None]
        return _RowEffects(order, slot, harm, places, first, len(problem.net_kw), rows.price_eur_per_pu)

    def cost_eur(self, outside_pu: FloatArray, harm_pu: FloatArray) -> FloatArray:
        """Change of the slack's price in every slot, (..., T), for effects (..., R)."""
        now = outside_pu[self.order]
        change = self.price_eur_per_pu * (np.maximum(now + harm_pu, 0.0) - np.maximum(now, 0.0))
        out = np.zeros((*harm_pu.shape[:-1], self.n_slots))
        out[..., self.places] = np.add.reduceat(change, self.first, axis=-1)
        return out
