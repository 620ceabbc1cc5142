"""A tiny city and days made by hand: two charging buses of the synthetic feeder and a few cars with round numbers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from evcs_gym.envs import Day, Scenario, Sessions
from evcs_gym.envs.fleet import normal
from evcs_gym.envs.scenario import scenario_from_dict
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS

OMEGA1_EUR_PER_KWH = 0.02
CAPACITY_KWH = 100.0


def tiny_content(n_cars: Sequence[int] = (0, 0), **normal_charging: Any) -> dict[str, Any]:
    """A scenario as a YAML file would give it; keywords go into ``normal_charging``."""
    return {
        "name": "tiny",
        "seed": 5,
        "feeder": {"name": "synthetic33", "source_pu": 1.0},
        "profiles": {
            "base_load_frac": 0.5,
            "load_profiles": ["lv_rural1", "H0-A"],
            "pv_profile": "PV4",
            "wind_profile": "WP5",
        },
        "charging_buses": [
            {"bus": "18", "n_cars": n_cars[0], "pv_kw": 60},
            {"bus": "33", "n_cars": n_cars[1], "wind_kw": 40},
        ],
        "normal_charging": {"omega1_eur_per_kwh": OMEGA1_EUR_PER_KWH, **normal_charging},
    }


def tiny_scenario(n_cars: Sequence[int] = (0, 0), **normal_charging: Any) -> Scenario:
    """The scenario of `tiny_content`."""
    return scenario_from_dict(tiny_content(n_cars, **normal_charging))


def model_city_content(**devices: Any) -> dict[str, Any]:
    """The network of the default city of the market, with two buses at which a few cars charge at home; keywords go
    into ``feeder.devices``."""
    return {
        **tiny_content(n_cars=(12, 6)),
        "name": "model_city",
        "seed": 2016,
        "feeder": {
            "name": "synthetic33",
            "source_pu": 1.0,
            "vmin_pu": 0.95,
            "vmax_pu": 1.05,
            "ampacity_factor": 1.5,
            "ampacity_least_a": 100.0,
            "head_kva": 6000.0,
            "vuf_max_frac": 0.02,
            "devices": {
                "controller": "dynamic_programme",
                "tap_changer": {"start": 2},
                "capacitors": [
                    {"bus": 30, "kvar_per_step": 600.0, "start": 1},
                    {"bus": 13, "kvar_per_step": 300.0, "start": 1},
                ],
                **devices,
            },
        },
        "profiles": {
            "year": 2016,
            "base_load_frac": 0.8,
            "load_profiles": ["lv_rural1", "lv_semiurb4", "lv_urban6"],
            "load_profile_at_bus": {24: "G3-A", 25: "G3-A", 30: "G6-A"},
            "pv_profile": "PV4",
            "wind_profile": "WP5",
        },
    }


@dataclass(frozen=True)
class Car:
    """A session with round numbers: it needs ``need_kwh`` from the grid."""

    need_kwh: float
    power_kw: float
    arrival_slot: int = 0
    departure_slot: int = N_SLOTS
    bus: int = 0
    phase: int = -1
    car: int = 0


def sessions_of(*cars: Car) -> Sessions:
    """Sessions of cars, which must be given bus by bus; efficiency 1, battery 100 kWh."""
    whole = {
        name: np.array([getattr(car, name) for car in cars], dtype=np.int64)
        for name in ("bus", "phase", "arrival_slot", "departure_slot", "car")
    }
    n = len(cars)
    return Sessions(
        **whole,
        soc0_frac=1.0 - np.array([car.need_kwh for car in cars], dtype=np.float64) / CAPACITY_KWH,
        capacity_kwh=np.full(n, CAPACITY_KWH),
        power_kw=np.array([car.power_kw for car in cars], dtype=np.float64),
        efficiency_frac=np.ones(n),
    )


def hand_day(
    scenario: Scenario,
    *cars: Car,
    base_kw: ArrayLike = 10.0,
    dg_kw: ArrayLike = 0.0,
    price_eur_per_kwh: ArrayLike = 0.10,
    **changes: Any,
) -> Day:
    """A real day of the scenario with these cars, loads, generation (broadcast to (T, C)) and import prices (T,)."""
    day = scenario.day(0)
    shape = (N_SLOTS, len(scenario.charging_buses))

    def series(values: ArrayLike, wanted: tuple[int, ...]) -> FloatArray:
        return np.array(np.broadcast_to(np.asarray(values, dtype=np.float64), wanted))

    return dataclasses.replace(
        day,
        sessions=sessions_of(*cars),
        base_kw=series(base_kw, shape),
        dg_kw=series(dg_kw, shape),
        import_eur_per_kwh=series(price_eur_per_kwh, (N_SLOTS,)),
        **changes,
    )


def begin(scenario: Scenario, *days: Day, slot: int = 0) -> tuple[normal.World, normal.State]:
    """World of the days and a state in which every row plays its own, in the given slot."""
    world = normal.make_world(scenario, days)
    state = normal.initial_state(world, np.arange(len(days)))
    return world, dataclasses.replace(state, slot=np.full(len(days), slot, dtype=np.int64))


def play(world: normal.World, state: normal.State, actions: FloatArray) -> tuple[normal.State, list[normal.Outcome]]:
    """Bus actions (T, B, C) slot by slot from ``state`` on."""
    outcomes = []
    for action in actions:
        state, outcome = normal.step(world, state, normal.dispatch(world, state, action))
        outcomes.append(outcome)
    return state, outcomes
