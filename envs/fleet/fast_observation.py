"""The observation of fast charging as a table: it gives the space, the documentation page and the tests."""

import numpy as np
from gymnasium import spaces

from evcs_gym.envs.fleet.fast_kernels import LEADS_SLOTS, N_COMMON, N_PER_STATION, OBSERVATION_CLIP, n_features
from evcs_gym.envs.observation import Feature, page_rows

_N_LEADS = len(LEADS_SLOTS)
_LEADS = ", ".join(str(lead) for lead in LEADS_SLOTS)

COMMON: tuple[Feature, ...] = (
    Feature("time", 3, "-", "t/48, sin and cos of 2 pi t/48; slot 0 begins at 12:00"),
    Feature("requests_slot", 1, "mean requests per slot", "all requests of the slot"),
    Feature("requests_waiting", 1, "mean requests per slot", "those still to be sent, this one included"),
    Feature("energy_missing", 1, "50 kWh", "what the battery lacks for full"),
    Feature("energy_spare", 1, "50 kWh", "what the battery holds above the reserve"),
    Feature("reach", 1, "10 km", "how far that takes the car"),
    Feature("price", 1, "0.1 EUR/kWh", "import price now"),
)
"""Of the request and its slot."""

PER_STATION: tuple[Feature, ...] = (
    Feature("allowed", 1, "-", "1 within reach (4) and with a free plug, else 0"),
    Feature("distance", 1, "10 km", "shortest path to the station, at most 100 km"),
    Feature("drive_energy", 1, "2 kWh", "what driving there takes"),
    Feature("plug", 1, "100 kW", "power of a plug"),
    Feature("plugs_free", 1, "plugs of the station", "free plugs now"),
    Feature("net_load", 1, "100 kW", "base load plus charging minus DG at the station's bus now"),
    Feature("charging", 1, "100 kW", "power of the cars that charge there now, those sent before this one included"),
    Feature(
        "cost_now",
        1,
        "EUR",
        "what going there adds to (1) in this slot, without the energy that the battery lacks whatever the station",
    ),
    Feature("cost_foreseen", 1, "EUR", "the same with the later slots of the charge, as forecast"),
    Feature(
        "net_load_ahead", _N_LEADS, "100 kW", f"net load with committed charging {_LEADS} slots ahead, 0 past the day"
    ),
    Feature("charging_ahead", _N_LEADS, "100 kW", f"committed charging {_LEADS} slots ahead"),
    Feature(
        "voltage_base_headroom", 1, "0.05 pu", "lowest phase of the bus without charging minus its lower limit, now"
    ),
)
"""Of every station, in the scenario's order. All numbers are clipped to [-10, 10]."""


def feature_slices(station: int) -> dict[str, slice]:
    """Where the request's features and those of one station lie in the observation."""
    out, at = {}, 0
    for table, first in ((COMMON, 0), (PER_STATION, N_COMMON + N_PER_STATION * station)):
        at = first
        for feature in table:
            out[feature.name] = slice(at, at + feature.size)
            at += feature.size
    return out


def observation_space(n_stations: int) -> spaces.Box:
    """Box of shape (F,)."""
    return spaces.Box(-OBSERVATION_CLIP, OBSERVATION_CLIP, (n_features(n_stations),), np.float32)


def action_space(n_stations: int) -> spaces.Discrete:
    """A station 0 .. J - 1, or J: stranded."""
    return spaces.Discrete(n_stations + 1)


def fast_observation_page() -> str:
    """Markdown page of the observation and the action, generated from the table."""
    lines = [
        "# Observation and action of `evcs/FastCharging-v0`",
        "",
        "Generated from `envs/fleet/fast_observation.py` by `make docs`; do not edit.",
        "",
        "Action: Discrete(stations + 1), the station to which the request is sent; the last one, stranded, is allowed "
        "only when no station is. `action_masks()` says which are; for anything else the nearest allowed station is "
        "taken.",
        "",
        f"Observation: Box(-10, 10), float32, {N_COMMON} numbers of the request and its slot, then {N_PER_STATION} of "
        "every station. The present slot is true, later slots are forecasts; requests of later slots are not shown.",
        "",
        "## The request",
        "",
        *page_rows(COMMON),
        "",
        "## Every station",
        "",
        f"Positions count from {N_COMMON} + {N_PER_STATION} × the number of the station.",
        "",
        *page_rows(PER_STATION),
    ]
    return "\n".join(lines) + "\n"
