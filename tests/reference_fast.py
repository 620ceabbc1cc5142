"""A plain, slow twin of fast charging: a day's cost straight from the formulas, car by car and slot by slot."""

from dataclasses import dataclass

import numpy as np

from evcs_gym.envs import Day, Scenario
from evcs_gym.envs.grid import power_flow
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H


@dataclass(frozen=True)
class PlainDay:
    """Cost of every slot (T,) by term, the stations' load (T, J), and what is delivered after the day."""

    absorb_eur: FloatArray
    energy_eur: FloatArray
    stranded_eur: FloatArray
    voltage_eur: FloatArray
    load_kw: FloatArray
    beyond_kwh: float


def charge_profile(energy_kwh: float, plug_kw: float) -> list[float]:
    """Power of every slot of a charge."""
    powers = []
    while energy_kwh > 1e-9:
        powers.append(min(plug_kw, energy_kwh / SLOT_H))
        energy_kwh -= powers[-1] * SLOT_H
    return powers


def plain_day(scenario: Scenario, day: Day, station: IntArray) -> PlainDay:
    """The plan's cost by (1), (2), stranding and (3). Raises AssertionError where (4) or the plugs are broken."""
    spec, stations, fast = scenario.fast_charging, scenario.fast_stations, day.fast
    assert fast is not None
    n_stations = len(stations.name)
    load, beyond = np.zeros((N_SLOTS, n_stations)), 0.0
    plugs: dict[tuple[int, int], int] = {}
    energy, stranded = np.zeros(N_SLOTS), np.zeros(N_SLOTS)
    for r, j in enumerate(station):
        t = int(fast.slot[r])
        n = int((fast.slot == t).sum())
        if j == n_stations:
            stranded[t] += spec.stranded_eur
            continue
        drive = float(fast.distance_km[r, j] * fast.consumption_kwh_per_km[r])
        assert drive <= (fast.soc0_frac[r] - spec.reserve_soc_frac) * fast.capacity_kwh[r] + 1e-9
        kwh = float((1.0 - fast.soc0_frac[r]) * fast.capacity_kwh[r]) + drive
        weight = spec.omega2 * (1.0 if spec.as_printed else spec.mean_requests_per_slot)
        energy[t] += weight * kwh * day.import_eur_per_kwh[t] / n
        for later, power in enumerate(charge_profile(kwh, float(stations.plug_kw[j]))):
            if t + later < N_SLOTS:
                load[t + later, j] += power
                plugs[t + later, int(j)] = plugs.get((t + later, int(j)), 0) + 1
                assert plugs[t + later, int(j)] <= stations.n_plugs[j]
            else:
                beyond += power * SLOT_H
    weight = spec.omega1_eur_per_kwh * (1.0 if spec.as_printed else SLOT_H)
    absorb = weight * np.abs(fast.base_kw + load - fast.dg_kw).sum(axis=1)
    return PlainDay(absorb, energy, stranded, spec.voltage_eur_per_pu * _outside_pu(scenario, day, load), load, beyond)


def _outside_pu(scenario: Scenario, day: Day, load_kw: FloatArray) -> FloatArray:
    """What lies outside the effective limits in slots with charging, (T,)."""
    out = np.zeros(N_SLOTS)
    for t in np.flatnonzero(load_kw.any(axis=1)):
        fed = day.load_kva[t].copy()
        for j, bus in enumerate(scenario.fast_stations.bus):
            fed[bus] += load_kw[t, j] / 3.0
        size = np.abs(power_flow(day.feeder, fed[None], source_pu=day.source_pu[t]).voltage_pu[0])
        outside = np.maximum(day.vmin_pu[t] - size, size - day.vmax_pu[t])
        out[t] = np.maximum(outside, 0.0)[1:].sum()
    return out
