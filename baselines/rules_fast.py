"""The rules to beat in fast charging. Each maps a `FastView` to the station of every row's present request, (B,).

nearest is the naive reference of every comparison; cheapest, which looks at what the whole charge costs, the strongest.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numba import njit

from evcs_gym.envs.draws import uniform_of
from evcs_gym.envs.fleet.fast import FastView
from evcs_gym.envs.fleet.kernels import ENERGY_ROUNDING_KWH
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H

FastRule = Callable[[FastView], IntArray]


def _least(view: FastView, *keys: FloatArray) -> IntArray:
    """The allowed station with the least first key, of these with the least second one; J where none is allowed."""
    candidates = view.allowed[:, :-1]
    n_stations = candidates.shape[1]
    for key in keys:
        value = np.where(candidates, key, np.inf)
        candidates = candidates & (value <= value.min(axis=1, keepdims=True))
    return np.asarray(np.where(view.allowed[:, -1], n_stations, candidates.argmax(axis=1)))


def nearest(view: FastView) -> IntArray:
    """The nearest station that is allowed."""
    return _least(view, view.distance_km[:, 0])


def least_loaded(view: FastView) -> IntArray:
    """The station with the largest share of free plugs; of equal ones the nearest."""
    return _least(view, -view.n_free / view.rules.n_plugs, view.distance_km[:, 0])


def random_feasible(view: FastView) -> IntArray:
    """Any allowed station, drawn from (day, request) alone."""
    draw = uniform_of((view.day << 32) + view.request)
    place = (draw * view.allowed.sum(axis=1)).astype(np.int64)
    return np.asarray((np.cumsum(view.allowed, axis=1) > place[:, None]).argmax(axis=1))


def cheapest(view: FastView) -> IntArray:
    """The station at which the request adds least to (1) until its charge ends, as forecast; then the nearest."""
    added_eur = _added_eur(
        view.slot,
        view.n_slot,
        view.missing_kwh[:, 0].copy(),
        np.where(view.allowed[:, :-1], view.drive_kwh[:, 0], 0.0),
        view.base_kw - view.dg_kw + view.load_kw,
        view.import_eur_per_kwh,
        view.rules.plug_kw,
        view.rules.absorb_eur_per_kw,
        view.rules.energy_weight,
    )
    return _least(view, added_eur, view.distance_km[:, 0])


@njit(cache=True)
def _added_eur(
    slot: IntArray,
    n_slot: IntArray,
    missing_kwh: FloatArray,
    drive_kwh: FloatArray,
    net_kw: FloatArray,
    price: FloatArray,
    plug_kw: FloatArray,
    absorb_eur_per_kw: float,
    energy_weight: float,
) -> FloatArray:
    """What a charge at each station adds to (1), (B, J), less its part that is the same at all stations."""
    out = np.zeros(drive_kwh.shape)
    for b in range(drive_kwh.shape[0]):
        for j in range(drive_kwh.shape[1]):
            left, s = missing_kwh[b] + drive_kwh[b, j], slot[b]
            while left > ENERGY_ROUNDING_KWH and s < N_SLOTS:
                power = min(plug_kw[j], left / SLOT_H)
                out[b, j] += absorb_eur_per_kw * (abs(net_kw[b, s, j] + power) - abs(net_kw[b, s, j]))
                left -= power * SLOT_H
                s += 1
            out[b, j] += energy_weight * drive_kwh[b, j] * price[b, slot[b]] / n_slot[b]
    return out


FAST_RULES: Final[Mapping[str, FastRule]] = {
    "nearest": nearest,
    "cheapest": cheapest,
    "least_loaded": least_loaded,
    "random_feasible": random_feasible,
}
"""Rules of fast charging by name."""
