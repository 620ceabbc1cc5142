"""Numba kernels of normal charging on rows ``first .. stop_row - 1`` of a batch; arrays and scalars only.

Every kernel takes the stacked days (`DayArrays`, leading axis D), the row's day ``day`` (B,), its slot ``slot`` (B,)
and its ``remaining_kwh`` (B, S). Sessions are sorted by bus: those of bus c begin at ``bus_start[d, c]``.
They run without Python's lock and write into arrays, so that threads share a batch. Plain twins stand in
tests/reference.py.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from evcs_gym.envs.compilation import inner
from evcs_gym.envs.fleet.needs import SLOT_ROUNDING
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H

ENERGY_ROUNDING_KWH = 1e-9
"""A car that needs less than this is full."""
POWER_ROUNDING_KW = 1e-6
"""A plan may exceed a car's power by this much: solvers work to such a tolerance."""
LEADS_SLOTS = np.array([1, 2, 4, 6, 8, 12, 16, 20, 24, 28], dtype=np.int64)
"""Lead times of the flexibility envelope."""
N_HOURS_AHEAD = 20
"""Hourly means of price and net load ahead."""
URGENT_LAXITY_SLOTS = 6
PRICE_SCALE_EUR_PER_KWH = 0.01
MARGINAL_SCALE_EUR_PER_KWH = 0.004
VOLTAGE_SCALE_PU = 0.05
OBSERVATION_CLIP = 10.0
N_FEATURES = 18 + 2 * 10 + 2 + 2 * 20 + 2 + 1


class DayArrays(NamedTuple):
    """Days stacked along D, as the kernels read them; see `evcs_gym.envs.fleet.normal.World`."""

    import_eur_per_kwh: FloatArray  # (D, T)
    base_kw: FloatArray  # (D, T, C)
    dg_kw: FloatArray  # (D, T, C)
    load_kva: ComplexArray  # (D, T, N, P)
    base_voltage_pu: FloatArray  # (D, T, N, P)
    vmin_pu: FloatArray  # (D, T, N, P)
    vmax_pu: FloatArray  # (D, T, N, P)
    bus_start: IntArray  # (D, C + 1)
    phase: IntArray  # (D, S)
    arrival_slot: IntArray  # (D, S)
    departure_slot: IntArray  # (D, S)
    power_kw: FloatArray  # (D, S)
    car: IntArray  # (D, S)
    growth_frac: FloatArray  # (D, T)
    price_error_eur_per_kwh: FloatArray  # (D, T)
    base_error_kw: FloatArray  # (D, T, C)
    dg_error_kw: FloatArray  # (D, T, C)


class Rules(NamedTuple):
    """Scalars of the scenario that the kernels need."""

    on_off: bool
    price_laxity: bool
    omega1_eur_per_kwh: float
    energy_weight: float


@inner
def sort_positions(key: np.ndarray, out: IntArray) -> None:
    """Positions by ascending key into ``out``, which says how many; ties by position.

    A heap sort, which compiles faster than argsort.
    """
    n = out.shape[0]
    for i in range(n):
        out[i] = i
    for size in range(n, 1, -1):
        first_parent = size // 2 - 1 if size == n else 0
        for root in range(first_parent, -1, -1):
            parent = root
            while 2 * parent + 1 < size:
                child = 2 * parent + 1
                if child + 1 < size and comes_before(key, out[child], out[child + 1]):
                    child += 1
                if not comes_before(key, out[parent], out[child]):
                    break
                out[parent], out[child] = out[child], out[parent]
                parent = child
        out[0], out[size - 1] = out[size - 1], out[0]


@inner
def comes_before(key: np.ndarray, i: int, j: int) -> bool:
    """Order of two positions."""
    return key[i] < key[j] or (key[i] == key[j] and i < j)


@inner
def slots_left(remaining_kwh: float, power_kw: float) -> int:
    """Fewest slots that deliver the remaining energy."""
    return math.ceil(remaining_kwh / (power_kw * SLOT_H) - SLOT_ROUNDING)


@inner
def car_bounds(slot: int, on_off: bool, departure: int, power_kw: float, remaining_kwh: float) -> tuple[float, float]:
    """Least and largest power of a car that is present: the least still fills it by its departure."""
    largest = power_kw if on_off else min(power_kw, remaining_kwh / SLOT_H)
    if on_off:
        must = slots_left(remaining_kwh, power_kw) >= departure - slot
        return (largest if must else 0.0), largest
    later_kwh = power_kw * SLOT_H * (departure - slot - 1)
    return min(max(0.0, (remaining_kwh - later_kwh) / SLOT_H), largest), largest


@inner
def bus_bounds(
    slot: int,
    on_off: bool,
    start: int,
    stop: int,
    arrival: IntArray,
    departure: IntArray,
    power: FloatArray,
    remaining: FloatArray,
) -> tuple[float, float]:
    """Least and largest power of a bus: sums over the cars present."""
    least, largest = 0.0, 0.0
    for i in range(start, stop):
        if remaining[i] > ENERGY_ROUNDING_KWH and arrival[i] <= slot < departure[i]:
            low, high = car_bounds(slot, on_off, departure[i], power[i], remaining[i])
            least += low
            largest += high
    return least, largest


@inner
def knee_power(action: float, surplus_kw: float, least_kw: float, largest_kw: float) -> float:
    """Bus power of an action: -1 the least, 0 what absorbs the DG surplus, +1 the largest; linear between."""
    knee = min(max(surplus_kw, least_kw), largest_kw)
    if action < 0.0:
        return knee + action * (knee - least_kw)
    return knee + action * (largest_kw - knee)


@inner
def action_of(power_kw: float, surplus_kw: float, least_kw: float, largest_kw: float) -> float:
    """The action whose knee gives a bus power, the inverse of `knee_power`; powers outside the bounds go to them."""
    knee = min(max(surplus_kw, least_kw), largest_kw)
    power = min(max(power_kw, least_kw), largest_kw)
    if power < knee:
        return (power - knee) / (knee - least_kw) if knee - least_kw > POWER_ROUNDING_KW else 0.0
    return (power - knee) / (largest_kw - knee) if largest_kw - knee > POWER_ROUNDING_KW else 0.0


@inner
def forecast_of(truth: FloatArray, error: FloatArray, growth: FloatArray, slot: int, out: FloatArray) -> None:
    """Truth up to the slot, forecast beyond it (model.md section 0)."""
    for s in range(slot):
        out[s] = truth[s]
    for s in range(slot, truth.shape[0]):
        out[s] = truth[s] + growth[s - slot] * error[s]


@inner
def net_forecast(days: DayArrays, d: int, c: int, slot: int, out: FloatArray) -> None:
    """Base load minus DG of a charging bus as known in the slot."""
    for s in range(out.shape[0]):
        out[s] = days.base_kw[d, s, c] - days.dg_kw[d, s, c]
        if s > slot:
            error = days.base_error_kw[d, s, c] - days.dg_error_kw[d, s, c]
            out[s] += days.growth_frac[d, s - slot] * error


@inner
def cheaper_ahead(slot: int, price: FloatArray, net: FloatArray, rules: Rules, out: IntArray) -> None:
    """out[s] = number of slots in (slot, s) whose marginal cost of charging is below the present one's."""
    here = rules.energy_weight * price[slot] + rules.omega1_eur_per_kwh * np.sign(net[slot])
    count = 0
    for s in range(min(slot + 2, out.shape[0])):
        out[s] = 0
    for s in range(slot + 1, price.shape[0]):
        if rules.energy_weight * price[s] + rules.omega1_eur_per_kwh * np.sign(net[s]) < here - 1e-9:
            count += 1
        out[s + 1] = count


@inner
def share_among_cars(
    slot: int,
    target_kw: float,
    start: int,
    stop: int,
    arrival: IntArray,
    departure: IntArray,
    power: FloatArray,
    car: IntArray,
    remaining: FloatArray,
    rules: Rules,
    cheaper: IntArray,
    out_kw: FloatArray,
) -> None:
    """Disaggregation of a bus's target: must-run first, then by laxity (ties by car) while the sum plus half fits.

    ``price_laxity`` sorts by the number of cheaper slots ahead less the slots needed, then by laxity. In ``modulated``
    the last car takes the remainder.
    """
    present = np.empty(stop - start, np.int64)
    key = np.empty(stop - start)
    n, total_kw, n_cars = 0, 0.0, 1
    for i in range(start, stop):
        n_cars = max(n_cars, car[i] + 1)
    for i in range(start, stop):
        if remaining[i] <= ENERGY_ROUNDING_KWH or arrival[i] > slot or slot >= departure[i]:
            continue
        low, high = car_bounds(slot, rules.on_off, departure[i], power[i], remaining[i])
        out_kw[i] = low
        total_kw += low
        if high > low:
            needed = slots_left(remaining[i], power[i])
            laxity = departure[i] - slot - needed
            rank = laxity
            if rules.price_laxity:
                rank += (cheaper[departure[i]] - needed + N_SLOTS) * 2 * N_SLOTS
            present[n] = i
            key[n] = rank * n_cars + car[i]
            n += 1
    order = np.empty(n, np.int64)
    sort_positions(key, order)
    for j in range(n):
        i = present[order[j]]
        low, high = car_bounds(slot, rules.on_off, departure[i], power[i], remaining[i])
        extra = high - low
        if rules.on_off:
            if total_kw + 0.5 * extra > target_kw:
                continue
        else:
            extra = min(extra, target_kw - total_kw)
            if extra <= 0.0:
                break
        out_kw[i] = low + extra
        total_kw += extra


@njit(cache=True, nogil=True)
def all_bus_bounds(
    days: DayArrays, rules: Rules, day: IntArray, slot: IntArray, remaining_kwh: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Least and largest power of every charging bus, each (B, C)."""
    n_rows, n_buses = slot.shape[0], days.bus_start.shape[1] - 1
    least = np.zeros((n_rows, n_buses))
    largest = np.zeros((n_rows, n_buses))
    for b in range(n_rows):
        d = day[b]
        for c in range(n_buses):
            start, stop = days.bus_start[d, c], days.bus_start[d, c + 1]
            arrival, departure, power = days.arrival_slot[d], days.departure_slot[d], days.power_kw[d]
            least[b, c], largest[b, c] = bus_bounds(
                slot[b], rules.on_off, start, stop, arrival, departure, power, remaining_kwh[b]
            )
    return least, largest


@njit(cache=True, nogil=True)
def dispatch(
    first: int,
    stop_row: int,
    days: DayArrays,
    rules: Rules,
    day: IntArray,
    slot: IntArray,
    remaining_kwh: FloatArray,
    action: FloatArray,
    out: FloatArray,
) -> None:
    """Power of every car for bus actions (B, C), into ``out`` (B, S), zero before: knee, then disaggregation."""
    n_buses = action.shape[1]
    for b in range(first, stop_row):
        d, t = day[b], slot[b]
        cheaper = np.zeros(N_SLOTS + 1, np.int64)
        price = np.empty(N_SLOTS)
        net = np.empty(N_SLOTS)
        for c in range(n_buses):
            start, stop = days.bus_start[d, c], days.bus_start[d, c + 1]
            arrival, departure, power = days.arrival_slot[d], days.departure_slot[d], days.power_kw[d]
            least, largest = bus_bounds(t, rules.on_off, start, stop, arrival, departure, power, remaining_kwh[b])
            if largest <= 0.0:
                continue
            surplus = days.dg_kw[d, t, c] - days.base_kw[d, t, c]
            target = knee_power(action[b, c], surplus, least, largest)
            if rules.price_laxity:
                growth = days.growth_frac[d]
                forecast_of(days.import_eur_per_kwh[d], days.price_error_eur_per_kwh[d], growth, t, price)
                net_forecast(days, d, c, t, net)
                cheaper_ahead(t, price, net, rules, cheaper)
            share_among_cars(
                t,
                target,
                start,
                stop,
                arrival,
                departure,
                power,
                days.car[d],
                remaining_kwh[b],
                rules,
                cheaper,
                out[b],
            )


@inner
def plan_fault(
    slot: int, on_off: bool, arrival: int, departure: int, power: float, remaining: float, planned: float
) -> bool:
    """Whether a car cannot charge at the planned power in this slot."""
    present = remaining > ENERGY_ROUNDING_KWH and arrival <= slot < departure
    largest = 0.0
    if present:
        largest = power if on_off else min(power, remaining / SLOT_H)
    if not (-POWER_ROUNDING_KW <= planned <= largest + POWER_ROUNDING_KW):
        return True
    return on_off and present and POWER_ROUNDING_KW < planned < largest - POWER_ROUNDING_KW


@njit(cache=True, nogil=True)
def charge(
    first: int,
    stop_row: int,
    days: DayArrays,
    rules: Rules,
    charging_bus: IntArray,
    day: IntArray,
    slot: IntArray,
    remaining_kwh: FloatArray,
    power_kw: FloatArray,
    left: FloatArray,
    load: ComplexArray,
    bus_kw: FloatArray,
    must_kw: FloatArray,
    fault: IntArray,
) -> None:
    """One slot of charging.

    Written: remaining energy ``left`` (B, S), feeder load (B, N, P), bus power and must-run power (B, C), and the first
    session of each row whose planned power is impossible, -1 if none, ``fault`` (B,).
    """
    n_buses = charging_bus.shape[0]
    for b in range(first, stop_row):
        fault[b] = -1
        d, t = day[b], slot[b]
        # element by element: a slice assignment makes numba compile its error message, which takes seconds
        for i in range(remaining_kwh.shape[1]):
            left[b, i] = remaining_kwh[b, i]
        for bus in range(load.shape[1]):
            for p in range(load.shape[2]):
                load[b, bus, p] = days.load_kva[d, t, bus, p]
        for c in range(n_buses):
            bus_kw[b, c], must_kw[b, c] = 0.0, 0.0
            bus = charging_bus[c]
            for i in range(days.bus_start[d, c], days.bus_start[d, c + 1]):
                arrival, departure, rated = (
                    days.arrival_slot[d, i],
                    days.departure_slot[d, i],
                    days.power_kw[d, i],
                )
                planned, need = power_kw[b, i], remaining_kwh[b, i]
                if plan_fault(t, rules.on_off, arrival, departure, rated, need, planned) and fault[b] < 0:
                    fault[b] = i
                if need > ENERGY_ROUNDING_KWH and arrival <= t < departure:
                    must_kw[b, c] += car_bounds(t, rules.on_off, departure, rated, need)[0]
                if planned == 0.0:
                    continue
                left[b, i] = need - planned * SLOT_H
                if left[b, i] < ENERGY_ROUNDING_KWH:
                    left[b, i] = 0.0
                bus_kw[b, c] += planned
                phase = days.phase[d, i]
                if phase >= 0:
                    load[b, bus, phase] += planned
                else:
                    for p in range(3):
                        load[b, bus, p] += planned / 3.0


@inner
def voltage_excess(
    voltage_pu: ComplexArray, vmin_pu: FloatArray, vmax_pu: FloatArray, converged: bool
) -> tuple[float, int]:
    """Sum over buses and phases of what lies outside the effective limits [pu], and how many lie outside.

    The source is given and not judged. A collapsed case counts as zero volts everywhere.
    """
    total, count = 0.0, 0
    for i in range(1, voltage_pu.shape[0]):
        for p in range(voltage_pu.shape[1]):
            magnitude = abs(voltage_pu[i, p]) if converged else 0.0
            excess = max(vmin_pu[i, p] - magnitude, magnitude - vmax_pu[i, p])
            if excess > 0.0:
                total += excess
                count += 1
    return total, count


@njit(cache=True, nogil=True)
def judge_voltage(
    first: int,
    stop_row: int,
    days: DayArrays,
    day: IntArray,
    slot: IntArray,
    voltage_pu: ComplexArray,
    converged: BoolArray,
    bus_kw: FloatArray,
    must_kw: FloatArray,
    excess: FloatArray,
    count: IntArray,
    share: FloatArray,
) -> None:
    """Written: excess [pu] and number of bus-phases outside the limits (B,), the share of each charging bus (B, C).

    Shares: by charging power above must-run, by charging power if none is above, equally if none charges.
    """
    n_buses = bus_kw.shape[1]
    for b in range(first, stop_row):
        d, t = day[b], slot[b]
        excess[b], count[b] = voltage_excess(voltage_pu[b], days.vmin_pu[d, t], days.vmax_pu[d, t], converged[b])
        above, total = 0.0, 0.0
        for c in range(n_buses):
            above += max(bus_kw[b, c] - must_kw[b, c], 0.0)
            total += bus_kw[b, c]
        for c in range(n_buses):
            if above > POWER_ROUNDING_KW:
                share[b, c] = max(bus_kw[b, c] - must_kw[b, c], 0.0) / above
            elif total > POWER_ROUNDING_KW:
                share[b, c] = bus_kw[b, c] / total
            else:
                share[b, c] = 1.0 / n_buses


@inner
def envelope(
    slot: int,
    start: int,
    stop: int,
    arrival: IntArray,
    departure: IntArray,
    power: FloatArray,
    remaining: FloatArray,
    scale: float,
    out: FloatArray,
    at: int,
) -> None:
    """Energy that must, and that can, be delivered within each lead time, written from ``at`` on."""
    n = LEADS_SLOTS.shape[0]
    for h in range(2 * n):
        out[at + h] = 0.0
    for i in range(start, stop):
        if remaining[i] <= ENERGY_ROUNDING_KWH or arrival[i] > slot or slot >= departure[i]:
            continue
        slot_kwh = power[i] * SLOT_H
        for h in range(n):
            until = slot + LEADS_SLOTS[h]
            out[at + h] += max(0.0, remaining[i] - slot_kwh * max(0, departure[i] - until))
            out[at + n + h] += min(remaining[i], slot_kwh * (min(departure[i], until) - slot))
    for h in range(2 * n):
        out[at + h] /= scale


@inner
def least_laxity_first(
    slot: int,
    start: int,
    stop: int,
    arrival: IntArray,
    departure: IntArray,
    power: FloatArray,
    remaining: FloatArray,
    cars: IntArray,
) -> int:
    """Sessions of the cars present, those with the least time to spare first, into ``cars``; how many there are."""
    present = np.empty(stop - start, np.int64)
    laxity = np.empty(stop - start)
    n = 0
    for i in range(start, stop):
        if remaining[i] > ENERGY_ROUNDING_KWH and arrival[i] <= slot < departure[i]:
            present[n] = i
            laxity[n] = departure[i] - remaining[i] / (power[i] * SLOT_H)
            n += 1
    order = np.empty(n, np.int64)
    sort_positions(laxity, order)
    for j in range(n):
        cars[j] = present[order[j]]
    return n


@inner
def pour(
    s: int,
    block_kwh: float,
    n_cars: int,
    cars: IntArray,
    departure: IntArray,
    power: FloatArray,
    need_kwh: FloatArray,
    taken_kwh: FloatArray,
) -> float:
    """Energy of the cars, in their order, into a block of slot ``s``; what was poured is no longer needed."""
    left = block_kwh
    for j in range(n_cars):
        if left <= ENERGY_ROUNDING_KWH:
            break
        i = cars[j]
        if s < departure[i]:
            take = min(min(need_kwh[j], power[i] * SLOT_H - taken_kwh[j, s]), left)
            need_kwh[j] -= take
            taken_kwh[j, s] += take
            left -= take
    return block_kwh - left


@inner
def valley(
    slot: int,
    order: IntArray,
    price: FloatArray,
    net: FloatArray,
    capacity_kw: FloatArray,
    n_cars: int,
    cars: IntArray,
    departure: IntArray,
    power: FloatArray,
    remaining: FloatArray,
    rules: Rules,
) -> tuple[float, float, float, float, float, float]:
    """Water-filling of the energy of the cars present over the slots of their stay, cheapest first.

    Each slot offers two blocks: up to the DG surplus at energy_weight * price - omega1, the rest of the capacity of the
    cars still there at energy_weight * price + omega1. A block takes from the cars in the given order, from each only
    before its departure and no more than its power. Returns the valley level [EUR/kWh], the power it puts in this
    slot [kW], the energies cheaper than this slot's two blocks and in surplus ahead [kWh], and what it costs [EUR].
    ``order`` sorts the leads by price, so the two block lists are sorted and merged in linear time.
    """
    w1 = rules.omega1_eur_per_kwh
    low_here = rules.energy_weight * price[slot] - w1
    high_here = rules.energy_weight * price[slot] + w1
    need_kwh = np.empty(n_cars)
    for j in range(n_cars):
        need_kwh[j] = remaining[cars[j]]
    taken_kwh = np.zeros((n_cars, N_SLOTS))
    n = order.shape[0]
    low, high = 0, 0
    level, here_kw, cheaper_low, cheaper_high, surplus_kwh, cost_eur = low_here, 0.0, 0.0, 0.0, 0.0, 0.0
    while low < n or high < n:
        cost_low = rules.energy_weight * price[slot + order[low]] - w1 if low < n else np.inf
        cost_high = rules.energy_weight * price[slot + order[high]] + w1 if high < n else np.inf
        is_low = cost_low <= cost_high
        s = slot + (order[low] if is_low else order[high])
        cost = cost_low if is_low else cost_high
        inside_kw = min(max(0.0, -net[s]), capacity_kw[s])
        block_kwh = (inside_kw if is_low else capacity_kw[s] - inside_kw) * SLOT_H
        if is_low:
            low += 1
            surplus_kwh += block_kwh
        else:
            high += 1
        if cost < low_here - 1e-12:
            cheaper_low += block_kwh
        if cost < high_here - 1e-12:
            cheaper_high += block_kwh
        take = pour(s, block_kwh, n_cars, cars, departure, power, need_kwh, taken_kwh)
        if take > ENERGY_ROUNDING_KWH:
            level = cost
            cost_eur += take * cost
            if s == slot:
                here_kw += take / SLOT_H
    return level, here_kw, cheaper_low, cheaper_high, surplus_kwh, cost_eur


@inner
def fraction(power_kw: float, least_kw: float, largest_kw: float) -> float:
    """Where a power lies between the bounds, 0 if they coincide."""
    if largest_kw - least_kw <= POWER_ROUNDING_KW:
        return 0.0
    return (min(max(power_kw, least_kw), largest_kw) - least_kw) / (largest_kw - least_kw)


@inner
def bus_features(
    t: int,
    start: int,
    stop: int,
    arrival: IntArray,
    departure: IntArray,
    power: FloatArray,
    remaining: FloatArray,
    order: IntArray,
    price: FloatArray,
    mean_price: float,
    net: FloatArray,
    installed_kw: float,
    rules: Rules,
    out: FloatArray,
) -> None:
    """Features of one bus that depend on its cars: positions 3..37 and 82 of the observation table."""
    capacity = np.zeros(N_SLOTS + 1)
    energy, laxity, mean_kw, urgent = 0.0, 0.0, 0.0, 0.0
    for i in range(start, stop):
        if remaining[i] <= ENERGY_ROUNDING_KWH or arrival[i] > t or t >= departure[i]:
            continue
        stay = departure[i] - t
        slack = stay - slots_left(remaining[i], power[i])
        energy += remaining[i]
        laxity += slack
        mean_kw += remaining[i] / (SLOT_H * stay)
        if slack <= URGENT_LAXITY_SLOTS:
            urgent += remaining[i]
        capacity[t] += power[i]
        capacity[departure[i]] -= power[i]
    for s in range(t + 1, N_SLOTS):
        capacity[s] += capacity[s - 1]
    least, largest = bus_bounds(t, rules.on_off, start, stop, arrival, departure, power, remaining)
    cars = np.empty(stop - start, np.int64)
    n_cars = least_laxity_first(t, start, stop, arrival, departure, power, remaining, cars)
    level, here_kw, cheaper_low, cheaper_high, surplus, cost = valley(
        t, order, price, net, capacity, n_cars, cars, departure, power, remaining, rules
    )
    w1, here = rules.omega1_eur_per_kwh, rules.energy_weight * price[t]
    per_kwh = 1.0 / max(energy, 1e-6)
    out[3], out[4], out[5] = least / installed_kw, largest / installed_kw, energy / installed_kw
    out[6], out[7], out[8] = n_cars / 10.0, laxity / max(n_cars, 1) / 20.0, mean_kw / installed_kw
    out[9] = urgent / installed_kw
    out[10] = (level - (here - w1)) / MARGINAL_SCALE_EUR_PER_KWH
    out[11] = (level - (here + w1)) / MARGINAL_SCALE_EUR_PER_KWH
    out[12] = here_kw / installed_kw
    out[13] = min(cheaper_low * per_kwh, 5.0)
    out[14] = min(cheaper_high * per_kwh, 5.0)
    out[15] = min(surplus * per_kwh, 3.0)
    out[16] = action_of(here_kw, -net[t], least, largest)
    out[82] = cost - rules.energy_weight * mean_price * energy
    out[17] = fraction(-net[t], least, largest)
    envelope(t, start, stop, arrival, departure, power, remaining, installed_kw, out, 18)


@inner
def hourly_ahead(t: int, series: FloatArray, offset: float, scale: float, out: FloatArray) -> None:
    """Means over the hours ahead of (series - offset) / scale, zero beyond the horizon."""
    for h in range(N_HOURS_AHEAD):
        total = 0.0
        for s in range(t + 2 * h, min(t + 2 * h + 2, N_SLOTS)):
            total += series[s] - offset
        out[h] = 0.5 * total / scale


@njit(cache=True, nogil=True)
def observe(
    first: int,
    stop_row: int,
    days: DayArrays,
    rules: Rules,
    charging_bus: IntArray,
    installed_kw: FloatArray,
    day: IntArray,
    slot: IntArray,
    remaining_kwh: FloatArray,
    voltage_pu: ComplexArray,
    out: np.ndarray,
) -> None:
    """Observation of every charging bus into ``out``, float32 (B, C, F), zero before; table in observation.py."""
    n_buses = charging_bus.shape[0]
    for b in range(first, stop_row):
        d, t = day[b], slot[b]
        row = np.zeros(N_FEATURES)
        row[0] = t / N_SLOTS
        row[1] = math.sin(2.0 * math.pi * t / N_SLOTS)
        row[2] = math.cos(2.0 * math.pi * t / N_SLOTS)
        if t >= N_SLOTS:
            for c in range(n_buses):
                for f in range(3):
                    out[b, c, f] = row[f]
            continue
        price = np.empty(N_SLOTS)
        net = np.empty(N_SLOTS)
        growth = days.growth_frac[d]
        forecast_of(days.import_eur_per_kwh[d], days.price_error_eur_per_kwh[d], growth, t, price)
        order = np.empty(N_SLOTS - t, np.int64)
        sort_positions(price[t:], order)
        mean_price = 0.0
        for s in range(N_SLOTS):
            mean_price += price[s] / N_SLOTS
        for c in range(n_buses):
            net_forecast(days, d, c, t, net)
            bus_features(
                t,
                days.bus_start[d, c],
                days.bus_start[d, c + 1],
                days.arrival_slot[d],
                days.departure_slot[d],
                days.power_kw[d],
                remaining_kwh[b],
                order,
                price,
                mean_price,
                net,
                installed_kw[c],
                rules,
                row,
            )
            row[38] = (price[t] - mean_price) / PRICE_SCALE_EUR_PER_KWH
            row[39] = net[t] / installed_kw[c]
            hourly_ahead(t, price, price[t], PRICE_SCALE_EUR_PER_KWH, row[40:60])
            hourly_ahead(t, net, 0.0, installed_kw[c], row[60:80])
            bus = charging_bus[c]
            headroom, seen = 1.0, 1.0
            for p in range(voltage_pu.shape[2]):
                if days.vmin_pu[d, t, bus, p] > 0.0:
                    headroom = min(headroom, days.base_voltage_pu[d, t, bus, p] - days.vmin_pu[d, t, bus, p])
                    seen = min(seen, abs(voltage_pu[b, bus, p]) - days.vmin_pu[d, t, bus, p])
            row[80] = headroom / VOLTAGE_SCALE_PU
            row[81] = seen / VOLTAGE_SCALE_PU
            for f in range(N_FEATURES):
                out[b, c, f] = min(max(row[f], -OBSERVATION_CLIP), OBSERVATION_CLIP)
