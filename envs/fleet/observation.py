"""The observation of normal charging as a table: it gives the space, the documentation page and the tests."""

import numpy as np
from gymnasium import spaces

from evcs_gym.envs.fleet.kernels import LEADS_SLOTS, N_FEATURES, N_HOURS_AHEAD, OBSERVATION_CLIP
from evcs_gym.envs.observation import Feature, page_rows, slices_of

N_LEADS = len(LEADS_SLOTS)
_LEADS = ", ".join(str(int(lead)) for lead in LEADS_SLOTS)

OBSERVATION: tuple[Feature, ...] = (
    Feature("time", 3, "-", "t/48, sin and cos of 2 pi t/48; slot 0 begins at 12:00"),
    Feature("power_least", 1, "installed kW", "least bus power that still fills every car by its departure"),
    Feature("power_largest", 1, "installed kW", "power that the cars present can take"),
    Feature("energy_needed", 1, "h of installed kW", "energy that the cars present still need"),
    Feature("cars", 1, "10 cars", "cars present that still need energy"),
    Feature("laxity_mean", 1, "20 slots", "mean over cars of slots to departure minus slots needed"),
    Feature("power_required_mean", 1, "installed kW", "sum over cars of energy needed over time to departure"),
    Feature("energy_urgent", 1, "h of installed kW", "energy of cars with laxity of at most 6 slots"),
    Feature(
        "valley_to_low", 1, "0.004 EUR/kWh", "water-filling level minus the cost of charging inside the DG surplus now"
    ),
    Feature(
        "valley_to_high", 1, "0.004 EUR/kWh", "water-filling level minus the cost of charging beyond the surplus now"
    ),
    Feature(
        "valley_power",
        1,
        "installed kW",
        "power that water-filling of the cars present, each within its stay, puts in this slot",
    ),
    Feature("cheaper_than_low", 1, "energy needed", "capacity ahead cheaper than inside the surplus now, at most 5"),
    Feature("cheaper_than_high", 1, "energy needed", "capacity ahead cheaper than beyond the surplus now, at most 5"),
    Feature("surplus_ahead", 1, "energy needed", "DG surplus ahead that the cars present can absorb, at most 3"),
    Feature("valley_action", 1, "-", "the action that gives valley_power"),
    Feature("knee_fraction", 1, "-", "the DG surplus between the bounds of the bus power"),
    Feature("envelope_must", N_LEADS, "h of installed kW", f"energy due within the next {_LEADS} slots"),
    Feature("envelope_can", N_LEADS, "h of installed kW", f"energy that can flow within the next {_LEADS} slots"),
    Feature("price_deviation", 1, "0.01 EUR/kWh", "import price now minus the mean of the day as known now"),
    Feature("net_load", 1, "installed kW", "base load minus DG of the bus now"),
    Feature(
        "price_ahead", N_HOURS_AHEAD, "0.01 EUR/kWh", "hourly mean of the import price ahead minus now, 0 past noon"
    ),
    Feature("net_ahead", N_HOURS_AHEAD, "installed kW", "hourly mean of base load minus DG ahead, 0 past noon"),
    Feature("voltage_base_headroom", 1, "0.05 pu", "lowest phase of the bus without cars minus its lower limit"),
    Feature(
        "voltage_last_headroom", 1, "0.05 pu", "lowest phase of the bus in the last slot minus its lower limit now"
    ),
    Feature("valley_cost", 1, "EUR", "cost of water-filling the cars present, less their energy at the mean price"),
)
"""Per charging bus; "installed kW" is the sum of the chargers at the bus. All numbers are clipped to [-10, 10]."""

ACTION_MEANING = (
    "power of each charging bus: -1 the least power that still fills every car by its departure, 0 the power that "
    "absorbs exactly the DG surplus, +1 all that the cars present can take; linear between"
)


def feature_slices() -> dict[str, slice]:
    """Where each feature lies in the last axis of the observation."""
    return slices_of(OBSERVATION)


def observation_space(n_buses: int | None) -> spaces.Box:
    """Box of shape (C, F), or (F,) where each bus is a row of its own (``None``)."""
    shape = (N_FEATURES,) if n_buses is None else (n_buses, N_FEATURES)
    return spaces.Box(-OBSERVATION_CLIP, OBSERVATION_CLIP, shape, np.float32)


def action_space(n_buses: int) -> spaces.Box:
    """Box(-1, 1) with one number per charging bus."""
    return spaces.Box(-1.0, 1.0, (n_buses,), np.float32)


def observation_page() -> str:
    """Markdown page of the observation and the action, generated from the table."""
    lines = [
        "# Observation and action of `evcs/NormalCharging-v0`",
        "",
        "Generated from `envs/fleet/observation.py` by `make docs`; do not edit.",
        "",
        f"Action: Box(-1, 1), one number per charging bus: {ACTION_MEANING}.",
        "",
        f"Observation: Box(-10, 10), float32, shape (charging buses, {N_FEATURES}). *Installed kW* is the sum of the "
        "chargers of the cars that live at the bus. The present slot is true, later slots are forecasts.",
        "",
        *page_rows(OBSERVATION),
    ]
    return "\n".join(lines) + "\n"
