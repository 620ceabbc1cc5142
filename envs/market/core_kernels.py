"""Numba kernels of the market's step on rows ``first .. stop - 1`` of a batch; arrays and scalars only.

Each row is one environment. Kernels run without Python's lock and write into arrays, so that threads share a batch.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from evcs_gym.envs.market.auction import MID_MARKET, clear_row
from evcs_gym.envs.market.station import (
    Assets,
    Slot,
    dispatch,
    follow,
    hold_unsold,
    missing_cost_eur,
    next_energy,
    power_interval,
)
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H


class MarketDays(NamedTuple):
    """Prepared days stacked along D, as the kernels read them: contiguous, read-only.

    Tariffs (D, T), largest_import_eur_per_kwh (D,). Stations (D, T, S): pv_kw available, ev_kw asked for by drivers.
    Forecast errors, see `evcs_gym.envs.day.Forecast`:
    growth_frac (D, T), price_error_eur_per_kwh (D, T), pv_error_kw, ev_error_kw (D, T, S).
    """

    import_eur_per_kwh: FloatArray
    export_eur_per_kwh: FloatArray
    largest_import_eur_per_kwh: FloatArray
    pv_kw: FloatArray
    ev_kw: FloatArray
    growth_frac: FloatArray
    price_error_eur_per_kwh: FloatArray
    pv_error_kw: FloatArray
    ev_error_kw: FloatArray


class MarketRules(NamedTuple):
    """Scalars of the scenario: number of the price rule, whether asks are reservation prices, fee on trades, and the
    tariffs' adder and fee, from which the export forecast follows."""

    price_rule: int
    reservation: bool
    network_fee_eur_per_kwh: float
    import_adder_eur_per_kwh: float
    export_fee_eur_per_kwh: float


class Demand(NamedTuple):
    """What drivers ask for in the slot: ev_kw (B, S), and the price that they pay, (B, S) or one row for all."""

    ev_kw: FloatArray
    retail_eur_per_kwh: FloatArray


class Hand(NamedTuple):
    """What the kernels of one step pass on, (B, S) and (B,): see `MarketOutcome`."""

    position_kw: FloatArray
    storage_kw: FloatArray
    curtailed_kw: FloatArray
    unserved_kw: FloatArray
    accepted_kw: FloatArray
    payment_eur_per_h: FloatArray
    held_kw: FloatArray
    moved_kw: FloatArray
    price_eur_per_kwh: FloatArray
    volume_kw: FloatArray


class Terms(NamedTuple):
    """What a slot brought each station, (B, S) [EUR]: gains positive; their sum is its profit.

    missing_eur: in the last slot, the price of energy that the storage lacks against the day's beginning.
    """

    ev_income_eur: FloatArray
    export_eur: FloatArray
    import_eur: FloatArray
    trade_eur: FloatArray
    degradation_eur: FloatArray
    unserved_eur: FloatArray
    missing_eur: FloatArray


def empty_hand(n_rows: int, n_stations: int) -> Hand:
    """Arrays for the kernels to fill."""
    n_by_row = 2  # price and volume, the last ones; few blocks of memory, for one environment feels every call
    return Hand(*np.empty((len(Hand._fields) - n_by_row, n_rows, n_stations)), *np.empty((n_by_row, n_rows)))


def empty_terms(n_rows: int, n_stations: int) -> Terms:
    """Arrays for the kernels to fill."""
    return Terms(*np.empty((len(Terms._fields), n_rows, n_stations)))


@njit(cache=True, nogil=True)
def is_playable(
    imports: FloatArray,
    exports: FloatArray,
    fee: float,
    day: IntArray,
    slot: IntArray,
    wish_kw: FloatArray,
    ask: FloatArray,
) -> bool:
    """Whether all days go on, wishes (B, S) are finite and asks in their band. imports, exports: (D, T)."""
    for row in range(day.size):
        if slot[row] >= imports.shape[1]:
            return False
        low, high = exports[day[row], slot[row]], imports[day[row], slot[row]] - fee
        for n in range(wish_kw.shape[1]):
            if not (np.isfinite(wish_kw[row, n]) and low <= ask[row, n] <= high):
                return False
    return True


@njit(cache=True, nogil=True)
def offer_rows(
    first: int,
    stop: int,
    days: MarketDays,
    assets: Assets,
    rules: MarketRules,
    day: IntArray,
    slot: IntArray,
    energy_kwh: FloatArray,
    demand: Demand,
    wish_kw: FloatArray,
    ask: FloatArray,
    hand: Hand,
) -> None:
    """Positions of the stations, the first clearing, and what stays in the storage because it was not sold."""
    order = np.empty(wish_kw.shape[1], dtype=np.int64)
    for row in range(first, stop):
        d, t = day[row], slot[row]
        for n in range(wish_kw.shape[1]):
            least, largest = power_interval(energy_kwh[row, n], assets, n)
            done = dispatch(
                days.pv_kw[d, t, n], demand.ev_kw[row, n], wish_kw[row, n], least, largest, assets.connection_kw[n]
            )
            _put(hand, row, n, done)
        _clear(days, rules, d, t, row, ask, order, hand)
        hold = rules.reservation and rules.price_rule != MID_MARKET
        for n in range(wish_kw.shape[1]):
            before = hand.storage_kw[row, n]
            if hold:
                sold = hand.accepted_kw[row, n]
                _put(hand, row, n, hold_unsold(_get(hand, row, n), sold, ask[row, n], days.export_eur_per_kwh[d, t]))
            hand.held_kw[row, n] = hand.storage_kw[row, n] - before


@njit(cache=True, nogil=True)
def settle_rows(
    first: int,
    stop: int,
    days: MarketDays,
    assets: Assets,
    rules: MarketRules,
    day: IntArray,
    slot: IntArray,
    energy_kwh: FloatArray,
    demand: Demand,
    ask: FloatArray,
    cap_kw: FloatArray,
    hand: Hand,
    terms: Terms,
    community_eur: FloatArray,
    next_energy_kwh: FloatArray,
    n_rounds: IntArray,
) -> None:
    """Stations follow their caps, the auction is cleared again where there are any; then money and energy."""
    order = np.empty(ask.shape[1], dtype=np.int64)
    for row in range(first, stop):
        d, t = day[row], slot[row]
        capped = False
        for n in range(ask.shape[1]):
            before = hand.storage_kw[row, n]
            if np.isfinite(cap_kw[row, n]):
                capped = True
                least, largest = power_interval(energy_kwh[row, n], assets, n)
                _put(hand, row, n, follow(_get(hand, row, n), cap_kw[row, n], least, largest))
            hand.moved_kw[row, n] = hand.storage_kw[row, n] - before
        n_rounds[row] = 1 if capped else 0
        if capped:
            _clear(days, rules, d, t, row, ask, order, hand)
        supply, wanted, other_eur = 0.0, 0.0, 0.0
        for n in range(ask.shape[1]):
            now = next_energy(energy_kwh[row, n], hand.storage_kw[row, n], assets, n)
            next_energy_kwh[row, n] = now
            largest_import = days.largest_import_eur_per_kwh[d] if t == N_SLOTS - 1 else 0.0
            terms.missing_eur[row, n] = -missing_cost_eur(now, largest_import, assets, n)
            _charge(days, assets, demand, d, t, row, n, hand, terms)
            supply += max(hand.position_kw[row, n], 0.0)
            wanted += max(-hand.position_kw[row, n], 0.0)
            other_eur -= terms.degradation_eur[row, n] + terms.unserved_eur[row, n] + terms.missing_eur[row, n]
        bought = days.import_eur_per_kwh[d, t] * max(wanted - supply, 0.0)
        sold = days.export_eur_per_kwh[d, t] * max(supply - wanted, 0.0)
        fees = rules.network_fee_eur_per_kwh * min(supply, wanted)
        community_eur[row] = SLOT_H * (bought - sold + fees) + other_eur


@njit(cache=True, nogil=True)
def _clear(
    days: MarketDays, rules: MarketRules, d: int, t: int, row: int, ask: FloatArray, order: IntArray, hand: Hand
) -> None:
    hand.price_eur_per_kwh[row], hand.volume_kw[row] = clear_row(
        hand.position_kw[row],
        ask[row],
        days.import_eur_per_kwh[d, t],
        days.export_eur_per_kwh[d, t],
        rules.network_fee_eur_per_kwh,
        rules.price_rule,
        order,
        hand.accepted_kw[row],
        hand.payment_eur_per_h[row],
    )


@njit(cache=True, nogil=True)
def _charge(
    days: MarketDays, assets: Assets, demand: Demand, d: int, t: int, row: int, n: int, hand: Hand, terms: Terms
) -> None:
    """What the slot brought station ``n``."""
    rest = hand.position_kw[row, n] - hand.accepted_kw[row, n]
    served = demand.ev_kw[row, n] - hand.unserved_kw[row, n]
    retail = demand.retail_eur_per_kwh[row if demand.retail_eur_per_kwh.shape[0] > 1 else 0, n]
    terms.ev_income_eur[row, n] = SLOT_H * retail * served  # (S4) income
    terms.export_eur[row, n] = SLOT_H * days.export_eur_per_kwh[d, t] * max(rest, 0.0)  # (S4) export
    terms.import_eur[row, n] = SLOT_H * days.import_eur_per_kwh[d, t] * min(rest, 0.0)  # (S4) import
    terms.trade_eur[row, n] = -SLOT_H * hand.payment_eur_per_h[row, n]  # (S4) trade
    wear = assets.degradation_eur_per_kwh[n] * abs(hand.storage_kw[row, n])
    terms.degradation_eur[row, n] = -SLOT_H * wear  # (S4) degradation
    lost = assets.lost_load_eur_per_kwh[n] * hand.unserved_kw[row, n]
    terms.unserved_eur[row, n] = -SLOT_H * lost  # (S4) unserved


@njit(cache=True, nogil=True)
def _get(hand: Hand, row: int, n: int) -> Slot:
    return Slot(hand.position_kw[row, n], hand.storage_kw[row, n], hand.curtailed_kw[row, n], hand.unserved_kw[row, n])


@njit(cache=True, nogil=True)
def _put(hand: Hand, row: int, n: int, slot: Slot) -> None:
    hand.position_kw[row, n] = slot.position_kw
    hand.storage_kw[row, n] = slot.storage_kw
    hand.curtailed_kw[row, n] = slot.curtailed_kw
    hand.unserved_kw[row, n] = slot.unserved_kw
