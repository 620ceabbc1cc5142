"""Fast charging of a day: where the cars that ask for it are, and the same day with their load in it."""

import dataclasses
from typing import TYPE_CHECKING, Final

import numpy as np

from evcs_gym.envs.draws import uniform_of
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.fleet.vehicles import HOME, FastRequests
from evcs_gym.envs.grid.devices import DeviceSchedule
from evcs_gym.envs.network import under_schedule
from evcs_gym.envs.types import FastDay, FloatArray, IntArray, frozen
from evcs_gym.envs.units import N_SLOTS

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

PLACE_STREAM: Final = 8
"""Stream of random numbers of a scenario; see `day`."""
_LEGS_PER_CAR: Final = 1 << 20


def fast_day(
    scenario: "Scenario", requests: FastRequests, base_kw: FloatArray, dg_kw: FloatArray, key: list[int]
) -> FastDay:
    """The requests of a day on the roads, (R,), and base load and generation at the stations (T, J)."""
    fleet, distances = scenario.fleet, scenario.road_distances
    rng = np.random.default_rng([*key, PLACE_STREAM])
    first_key = int(rng.integers(2**61))
    origin = _end_of_leg(scenario, requests.car, requests.from_leg, first_key)
    destination = _end_of_leg(scenario, requests.car, requests.to_leg, first_key)
    node = distances.node_on_way(origin, destination, requests.share_frac)
    return FastDay(
        slot=requests.slot,
        car=requests.car,
        soc0_frac=requests.soc_frac,
        capacity_kwh=frozen(fleet.capacity_kwh[requests.car]),
        consumption_kwh_per_km=frozen(fleet.consumption_kwh_per_km[requests.car]),
        node=frozen(node),
        distance_km=frozen(distances.distance_km[node][:, scenario.fast_stations.node]),
        base_kw=frozen(base_kw),
        dg_kw=frozen(dg_kw),
    )


def _end_of_leg(scenario: "Scenario", car: IntArray, leg: IntArray, first_key: int) -> IntArray:
    """Node at which a leg ends: the car's home, else one of the nodes that cars may pass, each as likely.

    The travel survey says how long a trip is, not where it leads; a leg that is met again leads to the same node.
    """
    roads = scenario.roads
    uniform = uniform_of(first_key + car * _LEGS_PER_CAR + leg)
    drawn = roads.n_closed + (uniform * (roads.n_nodes - roads.n_closed)).astype(np.int64)
    return np.where(leg == HOME, scenario.home_node[scenario.fleet.bus[car]], drawn)


def with_fast_load(scenario: "Scenario", day: "Day", load_kw: FloatArray) -> "Day":
    """The day with a load of the fast-charging stations (T, J) in its base, for charging at home (model.md section 9).

    It is part of the feeder's load, and of ``base_kw`` of charging buses at the same bus, now and in forecasts: fast
    charging is dispatched first. The effective limits stay: a load does not excuse its own violations.

    Raises:
        ConfigError: a scenario without fast charging. DataError: a load of another shape, negative or not finite.
        ConvergenceError: no power flow in a slot.
    """
    if not scenario.has_fast_charging:
        raise ConfigError(f"{scenario.name}: with_fast_load needs a scenario with fast_charging")
    stations, shape = scenario.fast_stations, (N_SLOTS, len(scenario.fast_stations))
    load = np.asarray(load_kw, dtype=np.float64)
    if load.shape != shape or not np.isfinite(load).all() or (load < 0.0).any():
        raise DataError(f"load_kw must be a finite array {shape} of powers that are not negative, got {load.shape}")
    load_kva, base_kw = day.load_kva.copy(), day.base_kw.copy()
    load_kva[:, stations.bus] += load[:, :, None] / 3.0
    for column, bus in enumerate(day.charging_bus):
        base_kw[:, column] += load[:, stations.bus == bus].sum(axis=1)
    schedule = DeviceSchedule(day.tap_position, day.capacitor_step)
    network = under_schedule(scenario, load_kva, schedule, day.date)
    return dataclasses.replace(
        day, load_kva=frozen(load_kva), base_kw=frozen(base_kw), base_voltage_pu=frozen(network.size_pu)
    )
