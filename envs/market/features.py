"""What a station observes, as numbers: kernels behind the table of `evcs_gym.envs.market.observation`.

Forecasts follow from day and slot alone, so what is made of them lies ready with the day; a step only copies it and
adds what changes. Prices are normalised by the day as known in the slot, powers by the station's own storage.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from evcs_gym.envs.market.core_kernels import MarketDays, MarketRules
from evcs_gym.envs.market.station import Assets
from evcs_gym.envs.threads import run_rows
from evcs_gym.envs.types import FloatArray, IntArray, frozen
from evcs_gym.envs.units import KW_PER_MW, KWH_PER_MWH, N_SLOTS, SLOT_H

Float32Array = NDArray[np.float32]

LEADS_SLOTS: Final = frozen(np.array([(1, 2), (2, 4), (4, 8), (8, 12), (12, 18), (18, 26), (26, 48)], dtype=np.int64))
"""Windows ahead, first slot and the one after the last, over which means are shown."""
N_LEADS: Final = len(LEADS_SLOTS)
N_COMMON: Final = 10 + N_LEADS
N_OWN: Final = 8 + N_LEADS
N_STATE: Final = 6
N_PLAN: Final = 3
N_FEATURES: Final = N_COMMON + N_OWN + N_STATE + N_PLAN
OBSERVATION_CLIP: Final = 10.0

LEAST_SPREAD_EUR_PER_KWH: Final = 0.003
"""Added to the standard deviation of the day's prices: a flat day shows small numbers."""
SPREAD_UNIT_EUR_PER_KWH: Final = 0.01
EXPORT_UNIT_EUR_PER_KWH: Final = 0.05
LEAST_SCALE_KW: Final = 50.0
LEAST_CAPACITY_KWH: Final = 50.0
"""Stand in for the storage of a station that has none or a tiny one."""
CHARGERS_UNIT_KW: Final = 500.0
_PARALLEL_FROM: Final = 16


class Features(NamedTuple):
    """What lies ready: common (D, T + 1, N_COMMON) for all stations, own (D, T + 1, S, N_OWN) of each, float32; slot T
    is the end of the day. idle_eur (D, T, S): what a station earns without storage at the utility's tariffs."""

    common: Float32Array
    own: Float32Array
    idle_eur: FloatArray


def prepare_features(
    days: MarketDays, assets: Assets, rules: MarketRules, pv_kw: FloatArray, chargers_kw: FloatArray
) -> Features:
    """Features of stacked days; pv_kw, chargers_kw (S,) are installed sizes."""
    n_days, n_slots, n_stations = days.pv_kw.shape
    made = Features(
        common=np.zeros((n_days, n_slots + 1, N_COMMON), dtype=np.float32),
        own=np.zeros((n_days, n_slots + 1, n_stations, N_OWN), dtype=np.float32),
        idle_eur=np.zeros((n_days, n_slots, n_stations)),
    )
    sizes = np.stack(
        [pv_kw / KW_PER_MW, chargers_kw / CHARGERS_UNIT_KW, np.asarray(assets.storage_kwh) / KWH_PER_MWH], axis=1
    )
    run_rows(
        _prepare_rows, n_days, (days, assets, rules, frozen(sizes), LEADS_SLOTS, made), parallel_from=_PARALLEL_FROM
    )
    return Features(*(frozen(array) for array in made))


@njit(cache=True, nogil=True)
def _prepare_rows(
    first: int,
    stop: int,
    days: MarketDays,
    assets: Assets,
    rules: MarketRules,
    sizes: FloatArray,
    leads: IntArray,
    made: Features,
) -> None:
    n_slots, n_stations = days.pv_kw.shape[1], days.pv_kw.shape[2]
    price, net = np.empty(n_slots), np.empty(n_slots)
    for d in range(first, stop):
        for t in range(n_slots + 1):
            angle = 2.0 * np.pi * t / n_slots
            made.common[d, t, 0] = t / n_slots
            made.common[d, t, 1] = np.sin(angle)
            made.common[d, t, 2] = np.cos(angle)
            for n in range(n_stations):
                for k in range(3):
                    made.own[d, t, n, N_OWN - 3 + k] = sizes[n, k]
            if t == n_slots:
                continue
            for s in range(n_slots):
                growth = days.growth_frac[d, s - t] if s > t else 0.0
                price[s] = days.import_eur_per_kwh[d, s] + growth * days.price_error_eur_per_kwh[d, s]
            _price_features(price, t, days.export_eur_per_kwh[d, t], leads, made.common[d, t])
            for n in range(n_stations):
                for s in range(n_slots):
                    growth = days.growth_frac[d, s - t] if s > t else 0.0
                    pv = days.pv_kw[d, s, n] + growth * days.pv_error_kw[d, s, n]
                    net[s] = pv - days.ev_kw[d, s, n] - growth * days.ev_error_kw[d, s, n]
                scale = max(assets.storage_kw[n], LEAST_SCALE_KW)
                capacity = max(assets.storage_kwh[n], LEAST_CAPACITY_KWH)
                made.own[d, t, n, 0] = days.pv_kw[d, t, n] / scale
                made.own[d, t, n, 1] = days.ev_kw[d, t, n] / scale
                _net_features(net, t, scale, capacity, leads, made.own[d, t, n])
                energy_price = days.export_eur_per_kwh[d, t] if net[t] > 0.0 else days.import_eur_per_kwh[d, t]
                income = assets.retail_eur_per_kwh[n] * days.ev_kw[d, t, n]
                made.idle_eur[d, t, n] = SLOT_H * (income + net[t] * energy_price)


@njit(cache=True, nogil=True)
def _price_features(price: FloatArray, t: int, export: float, leads: IntArray, out: Float32Array) -> None:
    """Positions 3 .. of the common features from the prices of the day as known in slot ``t``."""
    n_slots, now = price.size, price[t]
    spread = np.std(price) + LEAST_SPREAD_EUR_PER_KWH
    cheaper, cheaper_left, highest, lowest = 0, 0, now, now
    for s in range(n_slots):
        cheaper += price[s] < now
        if s > t:
            cheaper_left += price[s] < now
            highest, lowest = max(highest, price[s]), min(lowest, price[s])
    out[3] = (now - np.mean(price)) / spread
    out[4] = 2.0 * cheaper / (n_slots - 1) - 1.0
    out[5] = 2.0 * cheaper_left / max(n_slots - 1 - t, 1) - 1.0
    out[6] = (highest - now) / spread
    out[7] = (lowest - now) / spread
    out[8] = spread / SPREAD_UNIT_EUR_PER_KWH
    out[9] = export / EXPORT_UNIT_EUR_PER_KWH
    for k in range(leads.shape[0]):
        out[10 + k] = (window_mean(price, t, leads[k, 0], leads[k, 1]) - now) / spread


@njit(cache=True, nogil=True)
def _net_features(
    net: FloatArray, t: int, scale_kw: float, capacity_kwh: float, leads: IntArray, out: Float32Array
) -> None:
    """Positions 2 .. of a station's own features from its surplus (> 0) of the day as known in slot ``t``."""
    out[2] = net[t] / scale_kw
    for k in range(leads.shape[0]):
        out[3 + k] = window_mean(net, t, leads[k, 0], leads[k, 1]) / scale_kw
    surplus, deficit = 0.0, 0.0
    for s in range(t, net.size):
        surplus += max(net[s], 0.0)
        deficit += max(-net[s], 0.0)
    out[3 + leads.shape[0]] = np.tanh(surplus * SLOT_H / capacity_kwh)
    out[4 + leads.shape[0]] = np.tanh(deficit * SLOT_H / capacity_kwh)


@njit(cache=True, nogil=True)
def window_mean(series: FloatArray, t: int, begin: int, end: int) -> float:
    """Mean over slots t + begin .. t + end - 1 of the day; its last slot where the window lies past it."""
    first = min(t + begin, series.size - 1)
    last = min(max(t + end, first + 1), series.size)
    total = 0.0
    for s in range(first, last):
        total += series[s]
    return float(total / (last - first))


@njit(cache=True, nogil=True)
def observe_rows(
    first: int,
    stop: int,
    days: MarketDays,
    assets: Assets,
    rules: MarketRules,
    features: Features,
    day: IntArray,
    slot: IntArray,
    energy_kwh: FloatArray,
    price: FloatArray,
    volume_kw: FloatArray,
    position_kw: FloatArray,
    accepted_kw: FloatArray,
    cap_kw: FloatArray,
    plan_kw: FloatArray,
    plan_ask: FloatArray,
    plan_water: FloatArray,
    out: Float32Array,
) -> None:
    """Observations (B, S, F) of the rows: what lies ready, what changes, the station's own plan."""
    for row in range(first, stop):
        d, t = day[row], slot[row]
        last_price = 0.0
        if t > 0:
            last_price = _band_position(price[row], d, t - 1, days, rules)
        for n in range(energy_kwh.shape[1]):
            seen = out[row, n]
            for k in range(N_COMMON):
                seen[k] = features.common[d, t, k]
            for k in range(N_OWN):
                seen[N_COMMON + k] = features.own[d, t, n, k]
            at, scale = N_COMMON + N_OWN, max(assets.storage_kw[n], LEAST_SCALE_KW)
            seen[at] = 2.0 * energy_kwh[row, n] / max(assets.storage_kwh[n], LEAST_CAPACITY_KWH) - 1.0
            seen[at + 1] = last_price
            seen[at + 2] = volume_kw[row] / scale
            seen[at + 3] = min(cap_kw[row, n] / assets.connection_kw[n], 1.0)
            seen[at + 4] = accepted_kw[row, n] / scale
            seen[at + 5] = position_kw[row, n] / scale
            at += N_STATE
            seen[at] = plan_kw[row, n] / scale
            seen[at + 1], seen[at + 2] = 0.0, 0.0
            if t < N_SLOTS:
                seen[at + 1] = _band_position(plan_ask[row, n], d, t, days, rules)
                seen[at + 2] = min(max(_band_position(plan_water[row, n], d, t, days, rules), -0.5), 2.0)
            for k in range(N_FEATURES):
                seen[k] = min(max(seen[k], -OBSERVATION_CLIP), OBSERVATION_CLIP)


@njit(cache=True, nogil=True)
def _band_position(price: float, d: int, t: int, days: MarketDays, rules: MarketRules) -> float:
    """0 at the least ask of the slot, 1 at the largest."""
    low = days.export_eur_per_kwh[d, t]
    high = days.import_eur_per_kwh[d, t] - rules.network_fee_eur_per_kwh
    return float((price - low) / (high - low))
