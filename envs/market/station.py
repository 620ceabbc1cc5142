"""One charging station: storage, photovoltaics, chargers behind one connection point.

Kernels on one station's numbers, called from the step and from the station's own plan. Storage power is that of the
grid side, charging positive; one signed power per slot, so a storage never does both.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.types import FloatArray, StationAssets, frozen
from evcs_gym.envs.units import SLOT_H


class Assets(NamedTuple):
    """Columns of `StationAssets` that the kernels read, contiguous and read-only, (S,)."""

    storage_kwh: FloatArray
    storage_kw: FloatArray
    charge_efficiency_frac: FloatArray
    discharge_efficiency_frac: FloatArray
    self_discharge_frac: FloatArray
    energy_start_kwh: FloatArray
    energy_min_kwh: FloatArray
    degradation_eur_per_kwh: FloatArray
    connection_kw: FloatArray
    retail_eur_per_kwh: FloatArray
    lost_load_eur_per_kwh: FloatArray


class Slot(NamedTuple):
    """What one station does in one slot [kW]: net position (surplus > 0), storage power (charging > 0), curtailed
    photovoltaics, charging power that drivers asked for and did not get."""

    position_kw: float
    storage_kw: float
    curtailed_kw: float
    unserved_kw: float


def kernel_assets(assets: StationAssets) -> Assets:
    """The columns that kernels read.

    Raises:
        DataError: no station, a column of another length, a value out of its physical range; names the station.
    """
    n_stations = len(assets)
    if n_stations == 0:
        raise DataError("stations: at least one station is needed, got none")
    columns = {}
    for name in Assets._fields:
        values = np.array(getattr(assets, name), dtype=np.float64)
        if values.shape != (n_stations,):
            raise DataError(f"stations.{name} must have shape ({n_stations},), got {values.shape}")
        low, high = (0.0, 1.0) if name.endswith("_frac") else (0.0, np.inf)
        good = np.isfinite(values) & (values >= low) & (values <= high)
        if name in ("charge_efficiency_frac", "discharge_efficiency_frac"):
            good &= values > 0.0
        _refuse_first(good, assets, f"{name} must be finite and in its range {low:g}..{high:g}", values)
        columns[name] = frozen(values)
    fits = (columns["energy_min_kwh"] <= columns["energy_start_kwh"]) & (
        columns["energy_start_kwh"] <= columns["storage_kwh"]
    )
    _refuse_first(fits, assets, "energy_start_kwh must lie in energy_min_kwh..storage_kwh", columns["energy_start_kwh"])
    return Assets(**columns)


def _refuse_first(good: np.ndarray, assets: StationAssets, rule: str, values: FloatArray) -> None:
    if not good.all():
        bad = int(np.argmin(good))
        raise DataError(f"stations: station {assets.name[bad]!r}: {rule}, got {values[bad]}")


@njit(cache=True, nogil=True)
def power_interval(energy_kwh: float, assets: Assets, n: int) -> tuple[float, float]:
    """Least and largest storage power of station ``n`` that keep its energy within its bounds; 0 lies between them.

    Self-discharge alone may take an empty storage below its least energy: nobody is made to buy for it.
    """
    kept = energy_kwh * (1.0 - assets.self_discharge_frac[n])
    least = max(
        -assets.storage_kw[n], -max(kept - assets.energy_min_kwh[n], 0.0) * assets.discharge_efficiency_frac[n] / SLOT_H
    )
    room = max(assets.storage_kwh[n] - kept, 0.0) / (assets.charge_efficiency_frac[n] * SLOT_H)
    return least, min(assets.storage_kw[n], room)


@njit(cache=True, nogil=True)
def next_energy(energy_kwh: float, storage_kw: float, assets: Assets, n: int) -> float:
    """Energy at the end of the slot [kWh]."""
    kept = energy_kwh * (1.0 - assets.self_discharge_frac[n])
    charged, discharged = max(storage_kw, 0.0), max(-storage_kw, 0.0)
    gain = assets.charge_efficiency_frac[n] * charged - discharged / assets.discharge_efficiency_frac[n]
    return float(kept + SLOT_H * gain)  # (S1)


@njit(cache=True, nogil=True)
def dispatch(
    pv_kw: float, ev_kw: float, wish_kw: float, least_kw: float, largest_kw: float, connection_kw: float
) -> Slot:
    """What a station does that wishes a storage power: projected to what it can execute, then the connection limit."""
    storage = min(max(wish_kw, least_kw), largest_kw)
    position = pv_kw - ev_kw - storage  # (S2)
    return follow(Slot(position, storage, 0.0, 0.0), connection_kw, least_kw, largest_kw)


@njit(cache=True, nogil=True)
def follow(slot: Slot, cap_kw: float, least_kw: float, largest_kw: float) -> Slot:
    """The slot under a bound on |position| at unchanged sign: storage moves first, then PV is curtailed (export) or
    drivers wait in vain (import)."""
    position, storage, curtailed, unserved = slot
    if position > cap_kw:  # (N3) export
        moved = min(position - cap_kw, max(largest_kw - storage, 0.0))
        curtailed += position - cap_kw - moved
        return Slot(cap_kw, storage + moved, curtailed, unserved)
    if position < -cap_kw:  # (N3) import
        moved = min(-cap_kw - position, max(storage - least_kw, 0.0))
        unserved += -cap_kw - position - moved
        return Slot(-cap_kw, storage - moved, curtailed, unserved)
    return slot


@njit(cache=True, nogil=True)
def hold_unsold(slot: Slot, accepted_kw: float, ask: float, export_price: float) -> Slot:
    """A seller that asks more than the utility pays keeps in its storage what it would have discharged and did not
    sell."""
    if slot.position_kw <= 0.0 or ask <= export_price:
        return slot
    held = min(slot.position_kw - accepted_kw, max(-slot.storage_kw, 0.0))  # (M6)
    return Slot(slot.position_kw - held, slot.storage_kw + held, slot.curtailed_kw, slot.unserved_kw)


@njit(cache=True, nogil=True)
def missing_cost_eur(energy_kwh: float, largest_import_eur_per_kwh: float, assets: Assets, n: int) -> float:
    """Price of what is missing at the end of the day against its beginning [EUR]."""
    missing = max(0.0, assets.energy_start_kwh[n] - energy_kwh)
    return float(missing * largest_import_eur_per_kwh / assets.charge_efficiency_frac[n])  # (S3)
