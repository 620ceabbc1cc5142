"""The observation of a station as a table: it gives the space, the documentation page and the tests."""

from typing import Final

import numpy as np
from gymnasium import spaces

from evcs_gym.envs.market.features import LEADS_SLOTS, N_FEATURES, N_LEADS, OBSERVATION_CLIP
from evcs_gym.envs.observation import Feature, page_rows, slices_of

_WINDOWS: Final = ", ".join(f"{int(first)}-{int(stop) - 1}" for first, stop in LEADS_SLOTS)

OBSERVATION: Final[tuple[Feature, ...]] = (
    Feature("time", 3, "-", "t/48, sin and cos of 2 pi t/48; slot 0 begins at 12:00"),
    Feature("price_z", 1, "spread", "import price now minus the mean of the day as known now"),
    Feature("price_rank", 1, "-", "share of the day's slots that are cheaper, from -1 to 1"),
    Feature("price_rank_left", 1, "-", "share of the later slots that are cheaper, from -1 to 1"),
    Feature("price_to_highest", 1, "spread", "dearest of this and the later slots minus now"),
    Feature("price_to_lowest", 1, "spread", "cheapest of this and the later slots minus now"),
    Feature("price_spread", 1, "0.01 EUR/kWh", "spread: standard deviation of the day's prices plus 0.003 EUR/kWh"),
    Feature("export_price", 1, "0.05 EUR/kWh", "export price now"),
    Feature("price_ahead", N_LEADS, "spread", f"mean import price {_WINDOWS} slots ahead minus now"),
    Feature("pv", 1, "storage kW", "photovoltaic power now"),
    Feature("ev", 1, "storage kW", "charging power that drivers ask for now"),
    Feature("net", 1, "storage kW", "pv minus ev"),
    Feature("net_ahead", N_LEADS, "storage kW", f"mean of pv minus ev {_WINDOWS} slots ahead"),
    Feature("surplus_left", 1, "tanh of storage kWh", "surplus of this and the later slots"),
    Feature("deficit_left", 1, "tanh of storage kWh", "deficit of this and the later slots"),
    Feature("size_pv", 1, "MW", "installed photovoltaics"),
    Feature("size_chargers", 1, "500 kW", "installed chargers"),
    Feature("size_storage", 1, "MWh", "capacity of the storage"),
    Feature("energy", 1, "-", "stored energy, -1 empty, 1 full"),
    Feature("last_price", 1, "band", "price that the market published for the slot before, 0 at slot 0"),
    Feature("last_volume", 1, "storage kW", "volume that the market published for the slot before"),
    Feature("last_cap", 1, "connection kW", "own cap of the operator in the slot before, 1 without"),
    Feature("last_accepted", 1, "storage kW", "own accepted power in the slot before, sold > 0"),
    Feature("last_position", 1, "storage kW", "own net position in the slot before, surplus > 0"),
    Feature("plan_power", 1, "storage kW", "storage power of the station's own plan at the utility's tariffs"),
    Feature("plan_ask", 1, "band", "ask that covers what a sold kWh costs under that plan"),
    Feature("plan_water_value", 1, "band", "value of one kWh more in storage under that plan, -0.5 to 2"),
)
"""Per station. *storage kW*: largest storage power, at least 50 kW; *storage kWh*: capacity, at least 50 kWh; *band*: 0
at the least ask of the slot, 1 at the largest; *spread*: see price_spread. All numbers are clipped to [-10, 10]."""

ACTION_MEANING: Final = (
    "two numbers per station: storage power and ask. The ask goes from the least (-1) to the largest (+1) of the slot. "
    "Storage power is that of the station's own plan plus the number times the largest storage power (`residual`, the "
    "default), or the number times the largest storage power; what cannot be executed is projected. Where drivers "
    "respond (`responsive_demand`), one more number is the retail price, from the least to the largest allowed"
)


def feature_slices() -> dict[str, slice]:
    """Where each feature lies in the last axis of the observation."""
    return slices_of(OBSERVATION)


def observation_space(n_stations: int | None) -> spaces.Box:
    """Box of shape (S, F), or (F,) for one station (``None``)."""
    shape = (N_FEATURES,) if n_stations is None else (n_stations, N_FEATURES)
    return spaces.Box(-OBSERVATION_CLIP, OBSERVATION_CLIP, shape, np.float32)


def action_space(*shape: int) -> spaces.Box:
    """Box(-1, 1) of the given shape."""
    return spaces.Box(-1.0, 1.0, shape, np.float32)


def observation_page() -> str:
    """Markdown page of the observation and the action, generated from the table."""
    lines = [
        "# Observation and action of the market",
        "",
        "Generated from `envs/market/observation.py` by `make docs`; do not edit.",
        "",
        f"Action: Box(-1, 1), {ACTION_MEANING}. In `evcs/Bidding-v0` (2,), in `market_env` (2,) per agent; in "
        "`evcs/Market-v0` (stations,), storage power alone: asks stand at the export price.",
        "",
        f"Observation: Box(-10, 10), float32, {N_FEATURES} numbers per station: (stations, {N_FEATURES}) in "
        f"`evcs/Market-v0`, ({N_FEATURES},) elsewhere. The present slot is true, later slots are forecasts; a window "
        "past the end of the day shows its last slot. *spread*: see `price_spread`; *band*: 0 at the least ask of the "
        "slot, 1 at the largest; *storage kW* and *storage kWh*: the station's own, at least 50.",
        "",
        *page_rows(OBSERVATION),
    ]
    return "\n".join(lines) + "\n"
