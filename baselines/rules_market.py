"""The rules to beat in the market. Each maps a `MarketView` and the stations' own plans to wishes and asks, (B, S).

A station's wish and ask follow from its own columns and from what everybody knows. idle is the naive reference of every
comparison: no storage, surplus offered at the utility's price. The day ends at noon and what the storage lacks then
against its beginning is bought dear, so self_consumption and arbitrage restore it in the night.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from evcs_gym.envs.draws import uniform_of
from evcs_gym.envs.market.core import MarketAction
from evcs_gym.envs.market.play import Rule, truthful
from evcs_gym.envs.market.view import MarketView, OwnPlan
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H

NIGHT_SLOT: Final = 28
"""02:00: from here on the storage does not go below what it began with."""
RESTORED_SLOT: Final = 36
"""06:00: until here what is missing is bought, evenly, or in the cheapest slots."""
DEAR_SLOTS: Final = 12
"""Slots of the day in which arbitrage discharges."""
CHEAP_SLOTS: Final = 8
"""Slots from 22:00 on in which arbitrage charges."""
EVENING_SLOT: Final = 20
MARKUP_FRAC: Final = 0.3
"""Share of the way from the truthful ask to the top of the band."""

MarketRule = Rule
"""What every market rule is; those that look at no plan ignore it."""


def idle(view: MarketView, plan: OwnPlan) -> MarketAction:
    """The storage rests; a surplus is offered at the utility's price."""
    return MarketAction(np.zeros_like(view.energy_kwh), _asks(view, 0.0))


def self_consumption(view: MarketView, plan: OwnPlan) -> MarketAction:
    """Own surplus into the storage, own deficit out of it; at night what is missing is bought evenly until 06:00."""
    assets, slot = view.assets, view.slot[:, None]
    wish = np.clip(view.surplus_kw, -assets.storage_kw, assets.storage_kw)
    left = np.maximum(RESTORED_SLOT - slot, 1)
    restore = np.maximum(wish, _missing_kw(view) / left)
    night = np.where(slot < NIGHT_SLOT, wish, np.maximum(restore, -_spare_kw(view)))
    return MarketAction(night, _asks(view, 0.0))


def arbitrage(view: MarketView, plan: OwnPlan) -> MarketAction:
    """Discharges into the own deficit in the dearest slots, charges its surplus before midnight and what is missing in
    the cheapest slots from 22:00 on; what is still missing at 08:00 is bought at once."""
    assets, slot = view.assets, view.slot[:, None]
    price = view.import_eur_per_kwh[np.arange(len(view.slot)), view.slot]
    dear = price >= np.sort(view.import_eur_per_kwh, axis=1)[:, -DEAR_SLOTS]
    cheap = price <= np.sort(view.import_eur_per_kwh[:, EVENING_SLOT:], axis=1)[:, CHEAP_SLOTS - 1]
    surplus = view.surplus_kw
    give = -np.minimum(assets.storage_kw, np.maximum(-surplus, 0.0))
    store = np.where(slot < N_SLOTS // 2, np.maximum(surplus, 0.0), 0.0)
    wish = np.where(dear[:, None], np.where(slot < NIGHT_SLOT, give, np.maximum(give, -_spare_kw(view))), store)
    wants = (cheap[:, None] & (slot >= EVENING_SLOT)) | (slot >= RESTORED_SLOT + 4)
    wish = np.where(wants & (_missing_kw(view) > 0.0), _missing_kw(view), wish)
    return MarketAction(wish, _asks(view, 0.0))


def dp_markup(view: MarketView, plan: OwnPlan) -> MarketAction:
    """The same plan; asks more than a sold kWh costs."""
    top = view.largest_ask_eur_per_kwh[:, None]
    ask = plan.ask_eur_per_kwh + MARKUP_FRAC * (top - plan.ask_eur_per_kwh)
    return MarketAction(plan.storage_kw, np.clip(ask, view.least_ask_eur_per_kwh[:, None], top))


def zero_intelligence(view: MarketView, plan: OwnPlan) -> MarketAction:
    """Random power within what can be executed and random asks within the band (Gode and Sunder 1993,
    10.1086/261868); draws follow from the day, the slot and the station alone. At night it restores."""
    power, ask = _draws(view)
    wish = view.least_kw + power * (view.largest_kw - view.least_kw)
    night = np.maximum(wish, np.minimum(_missing_kw(view), view.largest_kw))
    return MarketAction(np.where(view.slot[:, None] < NIGHT_SLOT, wish, night), _asks(view, ask))


MARKET_RULES: Final[Mapping[str, MarketRule]] = {
    "idle": idle,
    "self_consumption": self_consumption,
    "arbitrage": arbitrage,
    "dp_truthful": truthful,
    "dp_markup": dp_markup,
    "zero_intelligence": zero_intelligence,
}
"""Rules by name."""


def _asks(view: MarketView, share_frac: FloatArray | float) -> FloatArray:
    """Asks at a share of the band, (B, S)."""
    low, high = view.least_ask_eur_per_kwh[:, None], view.largest_ask_eur_per_kwh[:, None]
    return np.clip(low + share_frac * (high - low) + np.zeros_like(view.energy_kwh), low, high)


def _missing_kw(view: MarketView) -> FloatArray:
    """Charging power that would restore the beginning's energy by the end of this slot and hold it, (B, S)."""
    assets = view.assets
    kept = view.energy_kwh * (1.0 - assets.self_discharge_frac)
    missing = np.maximum(_kept_until_noon(view) - kept, 0.0)
    return np.asarray(missing / (assets.charge_efficiency_frac * SLOT_H))


def _spare_kw(view: MarketView) -> FloatArray:
    """Discharging power that leaves the beginning's energy, (B, S)."""
    assets = view.assets
    kept = view.energy_kwh * (1.0 - assets.self_discharge_frac)
    return np.asarray(np.maximum(kept - _kept_until_noon(view), 0.0) * assets.discharge_efficiency_frac / SLOT_H)


def _kept_until_noon(view: MarketView) -> FloatArray:
    """Energy after this slot that leaves the beginning's energy at the end of the day, at most full, (B, S)."""
    assets = view.assets
    slots_after = (N_SLOTS - 1 - view.slot)[:, None]
    needed = assets.energy_start_kwh / np.maximum(1.0 - assets.self_discharge_frac, 1e-9) ** slots_after
    return np.asarray(np.minimum(needed, assets.storage_kwh))


def _draws(view: MarketView) -> tuple[FloatArray, FloatArray]:
    """Two uniform numbers per station from (day, slot, station) alone, whatever else is in the batch."""
    station = np.arange(view.energy_kwh.shape[1])[None]
    key = ((view.day[:, None] * N_SLOTS + view.slot[:, None]) << 16) + station
    return uniform_of(2 * key), uniform_of(2 * key + 1)
