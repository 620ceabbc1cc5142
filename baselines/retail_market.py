"""What stations ask drivers for a kWh where demand responds: retail rules, beside those for storage and asks.

A retail rule knows what everybody knows and the station's own price; it answers with prices (B, S) between the least
and the largest that stations may ask, as `evcs_gym.envs.market.responsive.step_responsive` wants them.
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.view import MarketView
from evcs_gym.envs.specs import nearest
from evcs_gym.envs.types import FloatArray

RetailRule = Callable[[MarketView, float, float], FloatArray]
"""From what may be known, the least and the largest price [EUR/kWh] to retail prices (B, S)."""


def own(view: MarketView, least_eur_per_kwh: float, largest_eur_per_kwh: float) -> FloatArray:
    """Every station its own price of the scenario, all day."""
    return np.asarray(view.assets.retail_eur_per_kwh + np.zeros_like(view.energy_kwh))


def least(view: MarketView, least_eur_per_kwh: float, largest_eur_per_kwh: float) -> FloatArray:
    """All stations the least price that is allowed."""
    return np.full_like(view.energy_kwh, least_eur_per_kwh)


def largest(view: MarketView, least_eur_per_kwh: float, largest_eur_per_kwh: float) -> FloatArray:
    """All stations the largest price that is allowed."""
    return np.full_like(view.energy_kwh, largest_eur_per_kwh)


def tariff(view: MarketView, least_eur_per_kwh: float, largest_eur_per_kwh: float) -> FloatArray:
    """The own price moved by what the utility's import tariff of the slot differs from its mean of the day (the truth
    up to now, the forecast beyond), held between the least and the largest."""
    imports = view.import_eur_per_kwh
    moved = imports[np.arange(len(view.slot)), view.slot] - imports.mean(axis=1)
    wanted = own(view, least_eur_per_kwh, largest_eur_per_kwh) + moved[:, None]
    return np.asarray(np.clip(wanted, least_eur_per_kwh, largest_eur_per_kwh))


RETAIL_RULES: Final[Mapping[str, RetailRule]] = {"own": own, "least": least, "largest": largest, "tariff": tariff}
"""Retail rules by name."""


def retail_rule(name: str) -> RetailRule:
    """The retail rule of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in RETAIL_RULES:
        raise ConfigError(f"there is no retail rule {name!r}{nearest(name, tuple(RETAIL_RULES))}")
    return RETAIL_RULES[name]
