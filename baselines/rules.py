"""The rules to beat in normal charging. Each maps a `View` to the bus powers it wants, (B, C) kW.

charge_on_arrival is the naive reference of every comparison; water_filling is the strongest.
"""

import numpy as np
from numba import njit

from evcs_gym.envs.compilation import inner
from evcs_gym.envs.fleet.kernels import ENERGY_ROUNDING_KWH, car_bounds, slots_left
from evcs_gym.envs.fleet.normal import View
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H

WATER_FILLING_PASSES = 3
"""Times that each car's slots are chosen anew given the others': one pass is the plain rule, more only improve it."""


def charge_on_arrival(view: View) -> FloatArray:
    """All that the cars present can take."""
    return view.largest_kw


def dg_following(view: View) -> FloatArray:
    """What absorbs exactly the DG surplus."""
    return view.surplus_kw


def least_laxity(view: View) -> FloatArray:
    """Average power: the energy of every car present spread evenly to its departure; least laxity charges first."""
    stay = np.maximum(view.departure_slot - view.slot[:, None], 1)
    return _sum_by_bus(view.remaining_kwh / (SLOT_H * stay), view.bus_start)


def _sum_by_bus(values: FloatArray, bus_start: IntArray) -> FloatArray:
    """Sums over the sessions of each bus, (B, C)."""
    running = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
    return np.asarray(np.diff(np.take_along_axis(running, bus_start, axis=1), axis=1))


def cheapest_slots(view: View) -> FloatArray:
    """Every car charges in the cheapest slots of its stay, each car for itself."""
    return _cheapest_slots(
        view.slot,
        view.bus_start,
        view.departure_slot,
        view.power_kw,
        view.remaining_kwh,
        view.import_eur_per_kwh,
        view.rules.on_off,
    )


@njit(cache=True)
def _cheapest_slots(
    slot: IntArray,
    bus_start: IntArray,
    departure_slot: IntArray,
    power_kw: FloatArray,
    remaining_kwh: FloatArray,
    price: FloatArray,
    on_off: bool,
) -> FloatArray:
    n_rows, n_buses = bus_start.shape[0], bus_start.shape[1] - 1
    out = np.zeros((n_rows, n_buses))
    for b in range(n_rows):
        t = slot[b]
        for c in range(n_buses):
            for i in range(bus_start[b, c], bus_start[b, c + 1]):
                if remaining_kwh[b, i] <= ENERGY_ROUNDING_KWH:
                    continue
                cheaper = 0
                for s in range(t + 1, departure_slot[b, i]):
                    if price[b, s] < price[b, t] - 1e-12:
                        cheaper += 1
                if cheaper < slots_left(remaining_kwh[b, i], power_kw[b, i]):
                    out[b, c] += car_bounds(t, on_off, departure_slot[b, i], power_kw[b, i], remaining_kwh[b, i])[1]
    return out


def water_filling(view: View) -> FloatArray:
    """Plan the cars present over price and DG gap for the rest of the day, commit this slot, plan again in the next.

    Least laxity first, each car takes the slots in which its power costs least given the cars before it; then every car
    chooses again given all others, `WATER_FILLING_PASSES` times in all.
    """
    return fill_valleys(
        view.slot,
        view.bus_start,
        np.zeros_like(view.departure_slot),
        view.departure_slot,
        view.power_kw,
        view.remaining_kwh,
        view.import_eur_per_kwh,
        np.ascontiguousarray((view.base_kw - view.dg_kw).transpose(0, 2, 1)),
        view.rules.omega1_eur_per_kwh,
        view.rules.energy_weight,
        WATER_FILLING_PASSES,
    )


@inner
def _choose_slots(
    t: int,
    departure: int,
    power_kw: float,
    remaining_kwh: float,
    price: FloatArray,
    load_kw: FloatArray,
    w1: float,
    energy_weight: float,
    plan_kw: FloatArray,
) -> None:
    """The cheapest slots of one car given the load of all others; adds its plan to the load."""
    n = departure - t
    cost = np.empty(n)
    for k in range(n):
        before = load_kw[t + k]
        cost[k] = energy_weight * price[t + k] * power_kw + w1 * (abs(before + power_kw) - abs(before))
    order = np.argsort(cost)
    left = remaining_kwh
    for j in range(n):
        if left <= ENERGY_ROUNDING_KWH:
            break
        s = t + order[j]
        plan_kw[s] = min(power_kw, left / SLOT_H)
        load_kw[s] += plan_kw[s]
        left -= plan_kw[s] * SLOT_H


@njit(cache=True)
def fill_valleys(
    slot: IntArray,
    bus_start: IntArray,
    arrival_slot: IntArray,
    departure_slot: IntArray,
    power_kw: FloatArray,
    remaining_kwh: FloatArray,
    price: FloatArray,
    net_kw: FloatArray,
    w1: float,
    energy_weight: float,
    n_passes: int,
) -> FloatArray:
    """Power of the present slot in a plan of all given cars over price and net load (B, C, T); see `water_filling`.

    Cars with ``arrival_slot`` after the present slot are planned too: a clairvoyant teacher passes them, a rule cannot.
    """
    n_rows, n_buses = bus_start.shape[0], bus_start.shape[1] - 1
    out = np.zeros((n_rows, n_buses))
    for b in range(n_rows):
        t = slot[b]
        for c in range(n_buses):
            start, stop = bus_start[b, c], bus_start[b, c + 1]
            laxity = np.full(stop - start, 10 * N_SLOTS)
            for i in range(start, stop):
                if remaining_kwh[b, i] > ENERGY_ROUNDING_KWH:
                    needed = slots_left(remaining_kwh[b, i], power_kw[b, i])
                    laxity[i - start] = departure_slot[b, i] - max(t, arrival_slot[b, i]) - needed
            order = np.argsort(laxity, kind="mergesort")
            load = net_kw[b, c].copy()
            plan = np.zeros((stop - start, N_SLOTS))
            for _ in range(n_passes):
                for j in order:
                    i = start + j
                    if remaining_kwh[b, i] <= ENERGY_ROUNDING_KWH:
                        continue
                    load -= plan[j]
                    plan[j] = 0.0
                    _choose_slots(
                        max(t, arrival_slot[b, i]),
                        departure_slot[b, i],
                        power_kw[b, i],
                        remaining_kwh[b, i],
                        price[b],
                        load,
                        w1,
                        energy_weight,
                        plan[j],
                    )
            out[b, c] = load[t] - net_kw[b, c, t]
    return out
