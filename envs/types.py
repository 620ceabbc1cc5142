"""Frozen records that stages hand to each other; the legend of shapes, units and signs.

Shapes: B parallel environments, T slots of a day (48), N buses of the feeder, P phases (a, b, c), C charging
buses, S sessions of a day (padded to the longest day where days are stacked) or charging stations of the market,
R fast-charging requests of a day, J fast-charging stations, F features of an observation.

Signs: a load is positive when it draws from the network, a DG is positive when it feeds in, charging power is
positive. Costs are positive when paid; rewards are their negative.

Clock: slot t covers [12:00 + t/2 h, 12:00 + (t+1)/2 h) of UTC+1; ``arrival_slot`` is the first slot in which a car
may charge and ``departure_slot`` the first in which it may not.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
ComplexArray = NDArray[np.complex128]

BALANCED: int = -1
"""Value of ``Sessions.phase`` for a car that charges on three phases."""


@dataclass(frozen=True, eq=False)
class Sessions:
    """Charging requests at home of one day, sorted by (bus, arrival_slot, car); all arrays (S,).

    bus: column of the day's charging buses, 0..C-1 (``day.charging_bus`` gives the feeder bus).
    phase: 0, 1, 2, or -1 for a balanced three-phase charger.
    arrival_slot, departure_slot: 0 <= arrival < departure <= 48.
    soc0_frac: state of charge on arrival. capacity_kwh: battery. power_kw: largest charging power, grid side.
    efficiency_frac: grid to battery. car: index of the car in the fleet, the tie-breaker of every order.
    """

    bus: IntArray
    phase: IntArray
    arrival_slot: IntArray
    departure_slot: IntArray
    soc0_frac: FloatArray
    capacity_kwh: FloatArray
    power_kw: FloatArray
    efficiency_frac: FloatArray
    car: IntArray

    def __len__(self) -> int:
        return len(self.bus)


@dataclass(frozen=True, eq=False)
class StationAssets:
    """What the charging stations of the market own, in the scenario's order; all arrays (S,) (model.md section 3).

    name: of each station. bus: row of the feeder at which it connects, balanced on three phases. node: row of the road
    network. pv_kw: installed photovoltaics. storage_kwh, storage_kw: capacity and largest power, either way, grid side.
    charge_efficiency_frac, discharge_efficiency_frac: each way. self_discharge_frac: lost per slot.
    energy_start_kwh, energy_min_kwh: E_0 and E_min. degradation_eur_per_kwh: per kWh charged or discharged, grid side.
    n_plugs, plug_kw: chargers. connection_kw: largest net position, either sign. retail_eur_per_kwh: what drivers pay.
    lost_load_eur_per_kwh: value of energy that drivers asked for and did not get.
    """

    name: tuple[str, ...]
    bus: IntArray
    node: IntArray
    pv_kw: FloatArray
    storage_kwh: FloatArray
    storage_kw: FloatArray
    charge_efficiency_frac: FloatArray
    discharge_efficiency_frac: FloatArray
    self_discharge_frac: FloatArray
    energy_start_kwh: FloatArray
    energy_min_kwh: FloatArray
    degradation_eur_per_kwh: FloatArray
    n_plugs: IntArray
    plug_kw: FloatArray
    connection_kw: FloatArray
    retail_eur_per_kwh: FloatArray
    lost_load_eur_per_kwh: FloatArray

    def __len__(self) -> int:
        return len(self.name)


@dataclass(frozen=True, eq=False)
class StationDay:
    """What a day brings to the stations of the market; arrays (T, S).

    pv_kw: available photovoltaic power. ev_kw: charging power that drivers ask for, committed load included (T6).
    arrivals_veh_per_h: charging cars that come, wait_h: their time in the queue, both of the traffic equilibrium.
    """

    pv_kw: FloatArray
    ev_kw: FloatArray
    arrivals_veh_per_h: FloatArray
    wait_h: FloatArray


@dataclass(frozen=True, eq=False)
class TrafficDay:
    """Traffic behind a `StationDay`; L links, K pairs, classes through and charging.

    assigned_veh_per_h: (T, 2, K), what travels in each slot. link_flow_veh_per_h: (T, L), both classes. relative_gap:
    (T,) reached. on_road_veh: (2,) cars of each class still on the road after the last slot. committed_kw: (S,)
    charging power that the cars of the last slot take in the slot after it.
    """

    assigned_veh_per_h: FloatArray
    link_flow_veh_per_h: FloatArray
    relative_gap: FloatArray
    on_road_veh: FloatArray
    committed_kw: FloatArray


@dataclass(frozen=True, eq=False)
class FastStations:
    """Stations at which cars charge fast (model.md section 8), in the scenario's order; all arrays (J,).

    name: of each station. bus: row of the feeder at which it connects, balanced on three phases. node: row of the road
    network. n_plugs, plug_kw: chargers, all of a station alike. pv_kw, wind_kw: its own generation, installed.
    """

    name: tuple[str, ...]
    bus: IntArray
    node: IntArray
    n_plugs: IntArray
    plug_kw: FloatArray
    pv_kw: FloatArray
    wind_kw: FloatArray

    def __len__(self) -> int:
        return len(self.name)


@dataclass(frozen=True, eq=False)
class FastDay:
    """Fast-charging requests of one day, arrays (R,) sorted by (slot, car), and the buses of the stations.

    slot: at whose start the car is dispatched. car: index in the fleet. soc0_frac: state of charge then. capacity_kwh:
    battery. consumption_kwh_per_km: from the battery. node: row of the road network at which the car is.
    distance_km: (R, J) of the shortest path to each station, inf where there is none.
    base_kw, dg_kw: (T, J) load without charging, and all local generation, at the bus of each station.
    """

    slot: IntArray
    car: IntArray
    soc0_frac: FloatArray
    capacity_kwh: FloatArray
    consumption_kwh_per_km: FloatArray
    node: IntArray
    distance_km: FloatArray
    base_kw: FloatArray
    dg_kw: FloatArray

    def __len__(self) -> int:
        return len(self.slot)


def frozen(array: Any) -> Any:
    """The array itself, made read-only: records are shared between environments and must not change."""
    array.setflags(write=False)
    return array
