"""A tiny city with fast charging, and days of it made by hand: round batteries, distances, plugs and prices."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from envs_fixtures import tiny_content
from numpy.typing import ArrayLike

from evcs_gym.envs import Day, Scenario
from evcs_gym.envs.scenario import scenario_from_dict
from evcs_gym.envs.types import FastDay
from evcs_gym.envs.units import N_SLOTS

OMEGA1_EUR_PER_KWH = 0.2
PRICE_EUR_PER_KWH = 0.1
CAPACITY_KWH = 50.0
CONSUMPTION_KWH_PER_KM = 0.2


def fast_content(n_cars: Sequence[int] = (300, 200), **fast_charging: Any) -> dict[str, Any]:
    """A scenario as a YAML file would give it; keywords go into ``fast_charging``."""
    content = tiny_content(n_cars)
    for bus, node in zip(content["charging_buses"], (1, 12), strict=True):
        bus["node"] = node
    content["fleet"] = {"home_charger_frac": 0.3}
    content["roads"] = {"name": "city12"}
    content["fast_charging"] = {
        "omega1_eur_per_kwh": OMEGA1_EUR_PER_KWH,
        "mean_requests_per_slot": 2.0,
        "stations": [
            {"name": "slow", "bus": 18, "node": 1, "n_plugs": 3, "plug_kw": 20, "pv_kw": 100},
            {"name": "quick", "bus": 30, "node": 7, "n_plugs": 2, "plug_kw": 100, "wind_kw": 200},
        ],
        **fast_charging,
    }
    return content


def fast_scenario(n_cars: Sequence[int] = (300, 200), **fast_charging: Any) -> Scenario:
    """The scenario of `fast_content`."""
    return scenario_from_dict(fast_content(n_cars, **fast_charging), "tiny_fast.yaml")


@dataclass(frozen=True)
class Request:
    """A request with round numbers: 50 kWh, 0.2 kWh/km."""

    slot: int
    soc0_frac: float = 0.2
    distance_km: tuple[float, ...] = (5.0, 10.0)
    capacity_kwh: float = CAPACITY_KWH


def fast_hand_day(
    scenario: Scenario,
    *requests: Request,
    base_kw: ArrayLike = 10.0,
    dg_kw: ArrayLike = 0.0,
    price_eur_per_kwh: ArrayLike = PRICE_EUR_PER_KWH,
    **changes: Any,
) -> Day:
    """A real day of the scenario with these requests (cars are numbered as they stand), base load and generation of the
    stations (broadcast to (T, J)) and import prices (T,)."""
    day, n = scenario.day(0), len(requests)
    shape = (N_SLOTS, len(scenario.fast_stations))
    fast = FastDay(
        slot=np.array([request.slot for request in requests], dtype=np.int64),
        car=np.arange(n),
        soc0_frac=np.array([request.soc0_frac for request in requests], dtype=np.float64),
        capacity_kwh=np.array([request.capacity_kwh for request in requests], dtype=np.float64),
        consumption_kwh_per_km=np.full(n, CONSUMPTION_KWH_PER_KM),
        node=np.zeros(n, dtype=np.int64),
        distance_km=np.array([request.distance_km for request in requests], dtype=np.float64).reshape(n, shape[1]),
        base_kw=np.array(np.broadcast_to(np.asarray(base_kw, dtype=np.float64), shape)),
        dg_kw=np.array(np.broadcast_to(np.asarray(dg_kw, dtype=np.float64), shape)),
    )
    price = np.array(np.broadcast_to(np.asarray(price_eur_per_kwh, dtype=np.float64), (N_SLOTS,)))
    return dataclasses.replace(day, import_eur_per_kwh=price, **{"fast": fast, **changes})
