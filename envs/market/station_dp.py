"""A station's own plan at the tariffs of the utility: a dynamic programme over the energy of its storage.

``value_eur[t, j]`` is the least cost from slot t to the end of the day, terminal (S3) included, with energy j of an
even grid between least and full. Between grid points it is a straight line. A slot's cost is linear in the storage
power between few kinks, so its least is found among the kinks, exactly: energies of the grid, no storage power, net
position zero, the ends of what can be executed.
"""

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.station import Assets, Slot, dispatch, missing_cost_eur, next_energy, power_interval
from evcs_gym.envs.threads import run_rows
from evcs_gym.envs.types import FloatArray, IntArray, frozen
from evcs_gym.envs.units import SLOT_H

N_ENERGIES: Final = 41
"""Points of the energy grid: on random days of a 100 kWh storage the plan is 0.06 to 0.12 EUR above its optimum."""
_PARALLEL_FROM: Final = 8
"""Days from which a second thread pays."""


class Decision(NamedTuple):
    """What the plan says in one slot: storage power [kW], and the value of one kWh more in storage
    after it [EUR/kWh]."""

    storage_kw: float
    water_eur_per_kwh: float


def plan_days(
    assets: Assets,
    import_eur_per_kwh: FloatArray,
    export_eur_per_kwh: FloatArray,
    pv_kw: FloatArray,
    ev_kw: FloatArray,
    n_energies: int = N_ENERGIES,
) -> FloatArray:
    """Values (D, S, T + 1, G) of all stations on days that are known: tariffs (D, T), pv_kw, ev_kw (D, T, S).

    Raises:
        ConfigError: fewer than two points of the grid.
    """
    if n_energies < 2:
        raise ConfigError(f"station plan: n_energies must be at least 2, got {n_energies}")
    n_days, n_slots, n_stations = pv_kw.shape
    value = np.empty((n_days, n_stations, n_slots + 1, n_energies))
    first_slot = np.zeros(n_days, dtype=np.int64)
    series = [_contiguous(x) for x in (import_eur_per_kwh, export_eur_per_kwh, pv_kw, ev_kw)]
    arguments = (assets, series[0], series[1], series[2], series[3], first_slot, value)
    run_rows(plan_rows, n_days, arguments, parallel_from=_PARALLEL_FROM)
    return np.asarray(frozen(value))


def _contiguous(values: FloatArray) -> FloatArray:
    """Read-only and C-contiguous, the one layout for which the kernels are compiled."""
    array: FloatArray = frozen(np.array(values, dtype=np.float64, order="C"))
    return array


@njit(cache=True, nogil=True)
def plan_rows(
    first: int,
    stop: int,
    assets: Assets,
    imports: FloatArray,
    exports: FloatArray,
    pv_kw: FloatArray,
    ev_kw: FloatArray,
    first_slot: IntArray,
    value: FloatArray,
) -> None:
    """Backward recursion of rows ``first .. stop - 1`` from the end to ``first_slot`` of the row; earlier values are
    not written."""
    n_slots, n_stations, n_energies = pv_kw.shape[1], pv_kw.shape[2], value.shape[3]
    for row in range(first, stop):
        largest = imports[row, 0]
        for slot in range(n_slots):
            largest = max(largest, imports[row, slot])
        for n in range(n_stations):
            for j in range(n_energies):
                value[row, n, n_slots, j] = missing_cost_eur(grid_energy(j, n_energies, assets, n), largest, assets, n)
            for slot in range(n_slots - 1, first_slot[row] - 1, -1):
                for j in range(n_energies):
                    energy = grid_energy(j, n_energies, assets, n)
                    value[row, n, slot, j] = best_power(
                        energy,
                        pv_kw[row, slot, n],
                        ev_kw[row, slot, n],
                        imports[row, slot],
                        exports[row, slot],
                        value[row, n, slot + 1],
                        assets,
                        n,
                    )[1]


@njit(cache=True, nogil=True)
def grid_energy(j: int, n_energies: int, assets: Assets, n: int) -> float:
    """Energy of point j of the grid [kWh]."""
    low = assets.energy_min_kwh[n]
    return float(low + (assets.storage_kwh[n] - low) * j / (n_energies - 1))


@njit(cache=True, nogil=True)
def _value_at(energy_kwh: float, later: FloatArray, assets: Assets, n: int) -> float:
    """Value between grid points; a storage without capacity has one energy."""
    width = assets.storage_kwh[n] - assets.energy_min_kwh[n]
    if width <= 0.0:
        return float(later[0])
    last = later.size - 1
    place = min(max((energy_kwh - assets.energy_min_kwh[n]) / width, 0.0), 1.0) * last
    below = min(int(place), last - 1)
    share = place - below
    return float(later[below] * (1.0 - share) + later[below + 1] * share)


@njit(cache=True, nogil=True)
def slot_cost_eur(slot: Slot, import_price: float, export_price: float, assets: Assets, n: int) -> float:
    """Cost of a slot at the utility's tariffs."""
    energy_eur = -slot.position_kw * (export_price if slot.position_kw > 0.0 else import_price)
    wear_eur = assets.degradation_eur_per_kwh[n] * abs(slot.storage_kw)
    return float(SLOT_H * (energy_eur + wear_eur + assets.lost_load_eur_per_kwh[n] * slot.unserved_kw))


@njit(cache=True, nogil=True)
def best_power(
    energy_kwh: float,
    pv_kw: float,
    ev_kw: float,
    import_price: float,
    export_price: float,
    later: FloatArray,
    assets: Assets,
    n: int,
) -> tuple[float, float]:
    """The storage power of least cost now and later, and that cost. later: (G,) values of the next slot.

    Of equal costs the first in this order: no power, the position zero, the ends, the grid from below.
    """
    least, largest = power_interval(energy_kwh, assets, n)
    kept = energy_kwh * (1.0 - assets.self_discharge_frac[n])
    last = later.size - 1
    width = assets.storage_kwh[n] - assets.energy_min_kwh[n]
    best_cost, best = np.inf, 0.0
    per_kwh = last / width if width > 0.0 else 0.0
    first_j = int(np.ceil((next_energy(energy_kwh, least, assets, n) - assets.energy_min_kwh[n]) * per_kwh))
    last_j = int(np.floor((next_energy(energy_kwh, largest, assets, n) - assets.energy_min_kwh[n]) * per_kwh))
    for candidate in range(-4, min(last_j, last) - max(first_j, 0) + 1):
        if candidate == -4:
            wish = 0.0
        elif candidate == -3:
            wish = pv_kw - ev_kw
        elif candidate == -2:
            wish = least
        elif candidate == -1:
            wish = largest
        else:
            change = grid_energy(max(first_j, 0) + candidate, last + 1, assets, n) - kept
            if change > 0.0:
                wish = change / (assets.charge_efficiency_frac[n] * SLOT_H)
            else:
                wish = change * assets.discharge_efficiency_frac[n] / SLOT_H
        done = dispatch(pv_kw, ev_kw, wish, least, largest, assets.connection_kw[n])
        cost = slot_cost_eur(done, import_price, export_price, assets, n)
        cost += _value_at(next_energy(energy_kwh, done.storage_kw, assets, n), later, assets, n)
        if cost < best_cost:
            best_cost, best = cost, done.storage_kw
    return best, best_cost


@njit(cache=True, nogil=True)
def decide(
    energy_kwh: float,
    pv_kw: float,
    ev_kw: float,
    import_price: float,
    export_price: float,
    later: FloatArray,
    assets: Assets,
    n: int,
) -> Decision:
    """Storage power of the plan, and minus the slope of the value from the energy after it upwards."""
    storage, _ = best_power(energy_kwh, pv_kw, ev_kw, import_price, export_price, later, assets, n)
    width = assets.storage_kwh[n] - assets.energy_min_kwh[n]
    if width <= 0.0:
        return Decision(storage, 0.0)
    last = later.size - 1
    after = next_energy(energy_kwh, storage, assets, n)
    place = min(max((after - assets.energy_min_kwh[n]) / width, 0.0), 1.0) * last
    below = min(int(place), last - 1)
    return Decision(storage, (later[below] - later[below + 1]) * last / width)


@njit(cache=True, nogil=True)
def truthful_ask(
    decision: Decision, energy_kwh: float, import_price: float, export_price: float, fee: float, assets: Assets, n: int
) -> float:
    """What a kWh sold costs the station, within the band of asks [EUR/kWh].

    One that comes out of the storage is missed there; one of a surplus that the storage could have taken, too; any
    other would have gone to the utility.
    """
    wear = assets.degradation_eur_per_kwh[n]
    _, largest = power_interval(energy_kwh, assets, n)
    ask = export_price
    if decision.storage_kw < 0.0:
        ask = decision.water_eur_per_kwh / assets.discharge_efficiency_frac[n] + wear
    elif decision.storage_kw < largest:
        ask = decision.water_eur_per_kwh * assets.charge_efficiency_frac[n] - wear
    return min(max(ask, export_price), import_price - fee)
