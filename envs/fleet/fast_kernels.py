"""Numba kernels of fast charging on rows ``first .. stop_row - 1`` of a batch; arrays and scalars only.

Every kernel takes the stacked days (`FastDays`, leading axis D) and the rows' state as `evcs_gym.envs.fleet.fast` has
it: ``load_kw`` and ``n_busy`` (B, T, J) are what is committed so far, the present slot included. Plain twins stand in
tests/reference_fast.py.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from evcs_gym.envs.compilation import inner
from evcs_gym.envs.fleet.kernels import ENERGY_ROUNDING_KWH, voltage_excess
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H

REACH_TOLERANCE_KWH = 1e-9
"""(4) is closed: a way that takes this much more than is there, which is rounding, is allowed."""


class FastDays(NamedTuple):
    """Days stacked along D as the kernels read them; see `evcs_gym.envs.fleet.fast.FastWorld`."""

    import_eur_per_kwh: FloatArray  # (D, T)
    base_kw: FloatArray  # (D, T, J)
    dg_kw: FloatArray  # (D, T, J)
    load_kva: ComplexArray  # (D, T, N, P)
    base_voltage_pu: FloatArray  # (D, T, N, P)
    vmin_pu: FloatArray  # (D, T, N, P)
    vmax_pu: FloatArray  # (D, T, N, P)
    slot_start: IntArray  # (D, T + 1): requests of slot t are slot_start[t] .. slot_start[t + 1] - 1
    car: IntArray  # (D, R)
    missing_kwh: FloatArray  # (D, R) (1 - SoC0) C
    spare_kwh: FloatArray  # (D, R) (SoC0 - reserve) C
    consumption_kwh_per_km: FloatArray  # (D, R)
    distance_km: FloatArray  # (D, R, J)
    growth_frac: FloatArray  # (D, T)
    price_error_eur_per_kwh: FloatArray  # (D, T)
    base_error_kw: FloatArray  # (D, T, J)
    dg_error_kw: FloatArray  # (D, T, J)


class FastRules(NamedTuple):
    """What the kernels need of the scenario."""

    absorb_eur_per_kw: float
    energy_weight: float
    stranded_eur: float
    plug_kw: FloatArray  # (J,)
    n_plugs: IntArray  # (J,)


@inner
def in_reach(distance_km: float, consumption_kwh_per_km: float, spare_kwh: float) -> bool:
    """Reach: dis E_c <= (SoC0 - reserve) C."""
    return distance_km * consumption_kwh_per_km <= spare_kwh + REACH_TOLERANCE_KWH  # (4)


@inner
def allowed(days: FastDays, rules: FastRules, d: int, t: int, r: int, j: int, n_busy: IntArray) -> bool:
    """Whether request r may go to station j: in reach, and a plug is free; the last choice if no other one is.

    ``n_busy`` (T, J) of the row.
    """
    n_stations = rules.plug_kw.shape[0]
    if j < n_stations:
        near = in_reach(days.distance_km[d, r, j], days.consumption_kwh_per_km[d, r], days.spare_kwh[d, r])
        return near and n_busy[t, j] < rules.n_plugs[j]
    for k in range(n_stations):
        near = in_reach(days.distance_km[d, r, k], days.consumption_kwh_per_km[d, r], days.spare_kwh[d, r])
        if near and n_busy[t, k] < rules.n_plugs[k]:
            return False
    return True


@inner
def delivered_kwh(days: FastDays, d: int, r: int, j: int) -> float:
    """E = (1 - SoC0) C + dis E_c, what request r is given at station j."""
    return float(days.missing_kwh[d, r] + days.distance_km[d, r, j] * days.consumption_kwh_per_km[d, r])


@inner
def plug_in(
    t: int,
    j: int,
    plug_kw: float,
    energy_kwh: float,
    load_kw: FloatArray,
    n_busy: IntArray,
    beyond_kwh: FloatArray,
) -> None:
    """A charge from slot t on until its energy is delivered; what comes after the day goes into ``beyond_kwh`` (J,)."""
    left, s = energy_kwh, t
    while left > ENERGY_ROUNDING_KWH:
        power = min(plug_kw, left / SLOT_H)
        if s < N_SLOTS:
            load_kw[s, j] += power
            n_busy[s, j] += 1
        else:
            beyond_kwh[j] += power * SLOT_H
        left -= power * SLOT_H
        s += 1


@inner
def absorb_eur(days: FastDays, rules: FastRules, d: int, t: int, load_kw: FloatArray) -> float:
    """First term of (1) in slot t, ``load_kw`` (T, J) of the row."""
    total = 0.0
    for j in range(rules.plug_kw.shape[0]):
        total += abs(days.base_kw[d, t, j] + load_kw[t, j] - days.dg_kw[d, t, j])
    return rules.absorb_eur_per_kw * total  # (1), first term


@inner
def send(
    days: FastDays,
    rules: FastRules,
    d: int,
    t: int,
    r: int,
    j: int,
    load_kw: FloatArray,
    n_busy: IntArray,
    beyond_kwh: FloatArray,
) -> tuple[float, float, float]:
    """Request r to station j, or stranded: by how much it raises both terms of (1), and what stranding costs [EUR]."""
    if j == rules.plug_kw.shape[0]:
        return 0.0, 0.0, rules.stranded_eur
    net = days.base_kw[d, t, j] - days.dg_kw[d, t, j]
    before = abs(net + load_kw[t, j])
    energy = delivered_kwh(days, d, r, j)
    plug_in(t, j, rules.plug_kw[j], energy, load_kw, n_busy, beyond_kwh)
    n_requests = days.slot_start[d, t + 1] - days.slot_start[d, t]
    cost = energy * days.import_eur_per_kwh[d, t]  # (2)
    absorb = rules.absorb_eur_per_kw * (abs(net + load_kw[t, j]) - before)
    weighted = rules.energy_weight * cost / n_requests  # (1), second term
    return absorb, weighted, 0.0


@inner
def skip_empty(days: FastDays, rules: FastRules, d: int, t: int, load_kw: FloatArray) -> tuple[int, float]:
    """The first slot from t on that has a request, 48 if none; and the first term of (1) of the slots before it."""
    waiting = 0.0
    while t < N_SLOTS and days.slot_start[d, t] == days.slot_start[d, t + 1]:
        waiting += absorb_eur(days, rules, d, t, load_kw)
        t += 1
    return t, waiting


@njit(cache=True, nogil=True)
def begin(
    first: int,
    stop_row: int,
    days: FastDays,
    rules: FastRules,
    day: IntArray,
    load_kw: FloatArray,
    slot: IntArray,
    pending_eur: FloatArray,
) -> None:
    """Written: slot of the day's first request (B,), and what the slots before it cost, (B, 2) absorb and voltage."""
    for b in range(first, stop_row):
        slot[b], pending_eur[b, 0] = skip_empty(days, rules, day[b], 0, load_kw[b])
        pending_eur[b, 1] = 0.0


@inner
def nearest_allowed(days: FastDays, rules: FastRules, d: int, t: int, r: int, n_busy: IntArray) -> int:
    """The nearest station that request r may go to, of equally near ones the first; J, stranded, if there is none."""
    n_stations = rules.plug_kw.shape[0]
    best = n_stations
    for j in range(n_stations):
        near = best == n_stations or days.distance_km[d, r, j] < days.distance_km[d, r, best]
        if near and allowed(days, rules, d, t, r, j, n_busy):
            best = j
    return int(best)


@njit(cache=True, nogil=True)
def advance(
    first: int,
    stop_row: int,
    days: FastDays,
    rules: FastRules,
    day: IntArray,
    action: IntArray,
    slot: IntArray,
    request: IntArray,
    load_kw: FloatArray,
    n_busy: IntArray,
    beyond_kwh: FloatArray,
    pending_eur: FloatArray,
    station: IntArray,
    terms: FloatArray,
) -> None:
    """The next requests of every row, at most K of its slot; the row's state is changed in place.

    ``action`` (B, K). Written: ``station`` (B, K), the action or, where that is not allowed, the nearest station that
    is, -1 where the slot had no more requests; ``terms`` (B, 5), zero before: absorb, energy and stranded term of the
    step, voltage left out, delivered energy [kWh] and its cost (2). ``pending_eur[:, 0]`` is paid and begins anew with
    what later empty slots cost.
    """
    for b in range(first, stop_row):
        d, t = day[b], slot[b]
        terms[b, 0] = pending_eur[b, 0]
        pending_eur[b, 0] = 0.0
        if request[b] == days.slot_start[d, t]:
            terms[b, 0] += absorb_eur(days, rules, d, t, load_kw[b])
        n_left = days.slot_start[d, t + 1] - request[b]
        for k in range(action.shape[1]):
            station[b, k] = -1
            if k < n_left:
                r, j = request[b], action[b, k]
                if j < 0 or j > rules.plug_kw.shape[0] or not allowed(days, rules, d, t, r, j, n_busy[b]):
                    j = nearest_allowed(days, rules, d, t, r, n_busy[b])
                absorb, energy, stranded = send(days, rules, d, t, r, j, load_kw[b], n_busy[b], beyond_kwh[b])
                delivered = 0.0 if j == rules.plug_kw.shape[0] else delivered_kwh(days, d, r, j)
                terms[b, 0] += absorb
                terms[b, 1] += energy
                terms[b, 2] += stranded
                terms[b, 3] += delivered
                terms[b, 4] += delivered * days.import_eur_per_kwh[d, t]
                station[b, k] = j
                request[b] = r + 1
        if request[b] == days.slot_start[d, t + 1]:
            slot[b], waiting = skip_empty(days, rules, d, t + 1, load_kw[b])
            if slot[b] == N_SLOTS:
                terms[b, 0] += waiting
            else:
                pending_eur[b, 0] = waiting


@njit(cache=True, nogil=True)
def play(
    days: FastDays,
    rules: FastRules,
    action: IntArray,
    load_kw: FloatArray,
    n_busy: IntArray,
    beyond_kwh: FloatArray,
    terms: FloatArray,
) -> int:
    """A plan, the station of every request of day 0; all arrays of one row.

    Added to ``terms`` (T, 4), zero before: absorb, energy and stranded term of each slot, and the sum of (2). Returns
    the first request that may not go where it is sent, -1 if all may; stops there.
    """
    for t in range(N_SLOTS):
        for r in range(days.slot_start[0, t], days.slot_start[0, t + 1]):
            j = action[r]
            if not allowed(days, rules, 0, t, r, j, n_busy):
                return r
            _, energy, stranded = send(days, rules, 0, t, r, j, load_kw, n_busy, beyond_kwh)
            terms[t, 1] += energy
            terms[t, 2] += stranded
            if j < rules.plug_kw.shape[0]:
                terms[t, 3] += delivered_kwh(days, 0, r, j) * days.import_eur_per_kwh[0, t]
        terms[t, 0] = absorb_eur(days, rules, 0, t, load_kw)
    return -1


@njit(cache=True, nogil=True)
def feed(
    first: int,
    stop_row: int,
    days: FastDays,
    bus: IntArray,
    day: IntArray,
    slot: IntArray,
    station_kw: FloatArray,
    load: ComplexArray,
) -> None:
    """Feeder load (K, N, P) of cases: a day's slot with the stations' power (K, J), balanced on three phases."""
    for k in range(first, stop_row):
        d, t = day[k], slot[k]
        for i in range(load.shape[1]):
            for p in range(load.shape[2]):
                load[k, i, p] = days.load_kva[d, t, i, p]
        for j in range(bus.shape[0]):
            for p in range(3):
                load[k, bus[j], p] += station_kw[k, j] / 3.0


@njit(cache=True, nogil=True)
def judge(
    first: int,
    stop_row: int,
    days: FastDays,
    day: IntArray,
    slot: IntArray,
    voltage_pu: ComplexArray,
    converged: BoolArray,
    excess: FloatArray,
    count: IntArray,
) -> None:
    """Written: what lies outside the effective limits [pu], and how many bus-phases do, of cases (K,)."""
    for k in range(first, stop_row):
        d, t = day[k], slot[k]
        # (3)
        excess[k], count[k] = voltage_excess(voltage_pu[k], days.vmin_pu[d, t], days.vmax_pu[d, t], converged[k])


@njit(cache=True, nogil=True)
def mask(
    first: int,
    stop_row: int,
    days: FastDays,
    rules: FastRules,
    day: IntArray,
    slot: IntArray,
    request: IntArray,
    n_busy: IntArray,
    out: BoolArray,
) -> None:
    """Allowed actions (B, J + 1); of rows whose day is over all are, since none counts."""
    n_stations = rules.plug_kw.shape[0]
    for b in range(first, stop_row):
        over = slot[b] >= N_SLOTS
        some = False
        for j in range(n_stations):
            out[b, j] = over or allowed(days, rules, day[b], slot[b], request[b], j, n_busy[b])
            some = some or out[b, j]
        out[b, n_stations] = over or not some


LEADS_SLOTS = (1, 2, 4, 8)
"""Lead times at which the observation shows committed load and the surplus to come."""
N_COMMON = 9
N_PER_STATION = 18
OBSERVATION_CLIP = 10.0
DISTANCE_SCALE_KM = 10.0
ENERGY_SCALE_KWH = 50.0
DRIVE_SCALE_KWH = 2.0
POWER_SCALE_KW = 100.0
PRICE_SCALE_EUR_PER_KWH = 0.1
VOLTAGE_SCALE_PU = 0.05


def n_features(n_stations: int) -> int:
    """Length of the observation."""
    return N_COMMON + N_PER_STATION * n_stations


@inner
def forecast_net_kw(days: FastDays, d: int, t: int, s: int, j: int) -> float:
    """Base load less DG of slot s as slot t knows it."""
    growth = days.growth_frac[d, s - t] if s > t else 0.0
    base = days.base_kw[d, s, j] + growth * days.base_error_kw[d, s, j]
    return float(base - days.dg_kw[d, s, j] - growth * days.dg_error_kw[d, s, j])


@inner
def foreseen_eur(
    days: FastDays, rules: FastRules, d: int, t: int, j: int, energy_kwh: float, load_kw: FloatArray
) -> float:
    """By how much a charge at station j raises the first term of (1) until it ends, or the day does, as forecast."""
    total, left, s = 0.0, energy_kwh, t
    while left > ENERGY_ROUNDING_KWH and s < N_SLOTS:
        power = min(rules.plug_kw[j], left / SLOT_H)
        net = forecast_net_kw(days, d, t, s, j) + load_kw[s, j]
        total += abs(net + power) - abs(net)
        left -= power * SLOT_H
        s += 1
    return rules.absorb_eur_per_kw * total


@inner
def station_features(
    days: FastDays,
    rules: FastRules,
    bus: int,
    d: int,
    t: int,
    r: int,
    j: int,
    load_kw: FloatArray,
    n_busy: IntArray,
    out: FloatArray,
) -> None:
    """The features of station j for request r, N_PER_STATION numbers."""
    distance = min(days.distance_km[d, r, j], OBSERVATION_CLIP * DISTANCE_SCALE_KM)  # inf where no way leads
    drive = distance * days.consumption_kwh_per_km[d, r]
    plug, energy = rules.plug_kw[j], days.missing_kwh[d, r] + drive
    net = days.base_kw[d, t, j] - days.dg_kw[d, t, j] + load_kw[t, j]
    power = min(plug, energy / SLOT_H)
    now = rules.absorb_eur_per_kw * (abs(net + power) - abs(net))
    n_requests = days.slot_start[d, t + 1] - days.slot_start[d, t]
    drive_eur = rules.energy_weight * drive * days.import_eur_per_kwh[d, t] / n_requests
    out[0] = 1.0 if allowed(days, rules, d, t, r, j, n_busy) else 0.0
    out[1] = distance / DISTANCE_SCALE_KM
    out[2] = drive / DRIVE_SCALE_KWH
    out[3] = plug / POWER_SCALE_KW
    out[4] = (rules.n_plugs[j] - n_busy[t, j]) / rules.n_plugs[j]
    out[5] = net / POWER_SCALE_KW
    out[6] = load_kw[t, j] / POWER_SCALE_KW
    out[7] = now + drive_eur
    out[8] = foreseen_eur(days, rules, d, t, j, energy, load_kw) + drive_eur
    for k in range(len(LEADS_SLOTS)):
        s = t + LEADS_SLOTS[k]
        out[9 + k] = (forecast_net_kw(days, d, t, s, j) + load_kw[s, j]) / POWER_SCALE_KW if s < N_SLOTS else 0.0
        out[13 + k] = load_kw[s, j] / POWER_SCALE_KW if s < N_SLOTS else 0.0
    headroom = 1.0
    for p in range(days.vmin_pu.shape[3]):
        headroom = min(headroom, days.base_voltage_pu[d, t, bus, p] - days.vmin_pu[d, t, bus, p])
    out[17] = headroom / VOLTAGE_SCALE_PU


@njit(cache=True, nogil=True)
def observe(
    first: int,
    stop_row: int,
    days: FastDays,
    rules: FastRules,
    bus: IntArray,
    mean_requests: float,
    day: IntArray,
    slot: IntArray,
    request: IntArray,
    load_kw: FloatArray,
    n_busy: IntArray,
    out: np.ndarray,
) -> None:
    """Observation of every row into ``out``, float32 (B, F), zero before; table in fast_observation.py."""
    n_stations = rules.plug_kw.shape[0]
    for b in range(first, stop_row):
        d, t, r = day[b], slot[b], request[b]
        row = np.zeros(N_COMMON + N_PER_STATION * n_stations)
        row[0] = t / N_SLOTS
        row[1] = math.sin(2.0 * math.pi * t / N_SLOTS)
        row[2] = math.cos(2.0 * math.pi * t / N_SLOTS)
        if t < N_SLOTS:
            row[3] = (days.slot_start[d, t + 1] - days.slot_start[d, t]) / mean_requests
            row[4] = (days.slot_start[d, t + 1] - r) / mean_requests
            row[5] = days.missing_kwh[d, r] / ENERGY_SCALE_KWH
            row[6] = days.spare_kwh[d, r] / ENERGY_SCALE_KWH
            row[7] = days.spare_kwh[d, r] / days.consumption_kwh_per_km[d, r] / DISTANCE_SCALE_KM
            row[8] = days.import_eur_per_kwh[d, t] / PRICE_SCALE_EUR_PER_KWH
            for j in range(n_stations):
                at = N_COMMON + N_PER_STATION * j
                part = row[at : at + N_PER_STATION]
                station_features(days, rules, bus[j], d, t, r, j, load_kw[b], n_busy[b], part)
        for f in range(row.shape[0]):
            out[b, f] = min(max(row[f], -OBSERVATION_CLIP), OBSERVATION_CLIP)
