"""Which cars a bus may expect: the mean of the training days as fluid classes, known to whoever knows the scenario."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evcs_gym.envs.fleet.needs import SLOT_ROUNDING
from evcs_gym.envs.fleet.normal import World
from evcs_gym.envs.fleet.pool import load_pool
from evcs_gym.envs.types import FloatArray, IntArray, frozen
from evcs_gym.envs.units import N_SLOTS, SLOT_H

if TYPE_CHECKING:
    from evcs_gym.envs.scenario import Scenario

DEPARTURE_STEP_SLOTS = 6
"""Expected cars that arrive in one slot and leave within so many slots of each other are one class: finer ones make the
programmes larger and no plan better (docs/adr/024-receding-horizon.md)."""


@dataclass(frozen=True, eq=False)
class ExpectedArrivals:
    """Mean arrivals of a day, K classes, C charging buses; cars are a fluid here, their numbers need not be whole.

    arrival_slot, departure_slot: (K,). energy_kwh, power_kw: expected sums over the cars of a class at a bus, (C, K).
    """

    arrival_slot: IntArray
    departure_slot: IntArray
    energy_kwh: FloatArray
    power_kw: FloatArray


def expected_arrivals(scenario: "Scenario") -> ExpectedArrivals:
    """Mean over the pool of training days of the scenario, in its own charging mode.

    Times and energies are those of all buses together, where the fleet draws from one distribution; each bus has the
    share of its own energy.

    Raises:
        ConfigError: the scenario has no charging at home.
    """
    return arrivals_of(load_pool(scenario, "train"))


def arrivals_of(world: World) -> ExpectedArrivals:
    """The same from any prepared days."""
    day, session = np.nonzero(world.need_kwh > 0.0)
    start = world.days.bus_start
    bus = (session[:, None] >= start[day, 1:]).sum(axis=1)
    arrival, departure, power, need = (
        values[day, session]
        for values in (world.days.arrival_slot, world.days.departure_slot, world.days.power_kw, world.need_kwh)
    )
    if not len(day):
        return no_arrivals(world.n_buses)
    step = (N_SLOTS - departure) // DEPARTURE_STEP_SLOTS  # counted from the end: most stays are cut there
    _, name = np.unique(arrival * N_SLOTS + step, return_inverse=True)
    count = np.bincount(name)
    slot = np.rint(np.bincount(name, arrival) / count).astype(np.int64)
    power_kw, energy_kwh = np.bincount(name, power) / world.n_days, np.bincount(name, need) / world.n_days
    least_stay = np.ceil(energy_kwh / (power_kw * SLOT_H) - SLOT_ROUNDING).astype(np.int64)
    until = np.maximum(np.rint(np.bincount(name, departure) / count).astype(np.int64), slot + least_stay)
    share = np.bincount(bus, need, minlength=world.n_buses) / need.sum()
    return ExpectedArrivals(
        arrival_slot=frozen(slot),
        departure_slot=frozen(until),
        energy_kwh=frozen(share[:, None] * energy_kwh),
        power_kw=frozen(share[:, None] * power_kw),
    )


def no_arrivals(n_buses: int) -> ExpectedArrivals:
    """Nobody else is expected: what a plan of the cars present alone knows."""
    nothing, none = np.zeros(0, dtype=np.int64), np.zeros((n_buses, 0))
    return ExpectedArrivals(frozen(nothing), frozen(nothing), frozen(none), frozen(none))
