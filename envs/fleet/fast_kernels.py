"""Numba kernels of fast charging on rows ``first .. stop_row - 1`` of a batch; arrays and scalars only.

Every kernel takes the stacked days (`FastDays`, leading axis D) and the rows' state as `evcs_gym.envs.fleet.fast` has
it: ``load_kw`` and ``n_busy`` (B, T, J) are what is committed so far, the present slot included. Plain twins stand in
tests/reference_fast.py.
"""

from typing import NamedTuple

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
    """(4) dis E_c <= (SoC0 - reserve) C."""
    return distance_km * consumption_kwh_per_km <= spare_kwh + REACH_TOLERANCE_KWH


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
    return rules.absorb_eur_per_kw * total


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
    return absorb, rules.energy_weight * cost / n_requests, 0.0


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
    terms: FloatArray,
    fault: BoolArray,
) -> None:
    """One request of every row; the row's state is changed in place.

    Written: ``terms`` (B, 3) absorb, energy, stranded of the step, voltage left out; ``fault`` (B,): the action is not
    allowed, the row is left as it was. ``pending_eur[:, 0]`` is paid and begins anew with what later empty slots cost.
    """
    for b in range(first, stop_row):
        d, t, r, j = day[b], slot[b], request[b], action[b]
        fault[b] = j < 0 or j > rules.plug_kw.shape[0] or not allowed(days, rules, d, t, r, j, n_busy[b])
        if fault[b]:
            continue
        absorb = pending_eur[b, 0]
        pending_eur[b, 0] = 0.0
        if r == days.slot_start[d, t]:
            absorb += absorb_eur(days, rules, d, t, load_kw[b])
        more, terms[b, 1], terms[b, 2] = send(days, rules, d, t, r, j, load_kw[b], n_busy[b], beyond_kwh[b])
        absorb += more
        request[b] = r + 1
        if r + 1 == days.slot_start[d, t + 1]:
            slot[b], waiting = skip_empty(days, rules, d, t + 1, load_kw[b])
            if slot[b] == N_SLOTS:
                absorb += waiting
            else:
                pending_eur[b, 0] = waiting
        terms[b, 0] = absorb


@njit(cache=True, nogil=True)
def play(
    days: FastDays,
    rules: FastRules,
    action: IntArray,
    load_kw: FloatArray,
    n_busy: IntArray,
    beyond_kwh: FloatArray,
    energy_eur: FloatArray,
    stranded_eur: FloatArray,
    absorb: FloatArray,
) -> int:
    """A plan, the station of every request of day 0; all arrays of one row. Terms of every slot (T,), voltage left out.

    Returns the first request that may not go where it is sent, -1 if all may; stops there.
    """
    for t in range(N_SLOTS):
        for r in range(days.slot_start[0, t], days.slot_start[0, t + 1]):
            j = action[r]
            if not allowed(days, rules, 0, t, r, j, n_busy):
                return r
            _, energy, stranded = send(days, rules, 0, t, r, j, load_kw, n_busy, beyond_kwh)
            energy_eur[t] += energy
            stranded_eur[t] += stranded
        absorb[t] = absorb_eur(days, rules, 0, t, load_kw)
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
    """Written: what lies outside the effective limits [pu], and how many bus-phases do, of cases (K,). (3)"""
    for k in range(first, stop_row):
        d, t = day[k], slot[k]
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
