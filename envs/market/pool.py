"""The pool of prepared days of the market that `reset` draws from; see `evcs_gym.envs.pool`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.core import MarketWorld
from evcs_gym.envs.market.prepare import STACKED, market_world, stacked_of, world_of
from evcs_gym.envs.market.responsive import ResponsiveWorld, responsive_of, responsive_world
from evcs_gym.envs.pool import DEFAULT_POOL_DAYS, PoolFormat

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario


def _make(scenario: "Scenario", split: str, n_days: int) -> MarketWorld:
    return market_world(scenario, scenario.days(range(n_days), split))


def _pack(world: MarketWorld) -> dict[str, np.ndarray]:
    return {**stacked_of(world), "value_eur": world.value_eur}


def _unpack(scenario: "Scenario", arrays: dict[str, np.ndarray]) -> MarketWorld:
    return world_of(scenario, arrays, arrays["value_eur"])


MARKET_POOL = PoolFormat(name="market", arrays=(*STACKED, "value_eur"), make=_make, pack=_pack, unpack=_unpack)


def _make_responsive(scenario: "Scenario", split: str, n_days: int) -> ResponsiveWorld:
    return responsive_world(scenario, scenario.days(range(n_days), split))


def _pack_responsive(world: ResponsiveWorld) -> dict[str, np.ndarray]:
    return {**_pack(world.market), **{name: getattr(world, name) for name in _TRAFFIC}}


def _unpack_responsive(scenario: "Scenario", arrays: dict[str, np.ndarray]) -> ResponsiveWorld:
    assigned, before = (arrays[name] for name in _TRAFFIC)
    return responsive_of(scenario, _unpack(scenario, arrays), assigned, before)


_TRAFFIC = ("assigned_veh_per_h", "before_veh_per_h")
RESPONSIVE_POOL = PoolFormat(
    name="responsive",
    arrays=(*MARKET_POOL.arrays, *_TRAFFIC),
    make=_make_responsive,
    pack=_pack_responsive,
    unpack=_unpack_responsive,
)


def load_market_pool(scenario: "Scenario", split: str = "train", n_days: int = DEFAULT_POOL_DAYS) -> MarketWorld:
    """The world of the split's days with seeds 0 .. n_days - 1, from disk where it lies there.

    Raises:
        ConfigError: a scenario without stations, or with ``responsive_demand``, which would not respond.
    """
    scenario.stations  # noqa: B018 - refuses, before any day is made, a scenario without stations
    if scenario.responsive_spec is not None:
        raise ConfigError(
            f"{scenario.name}: this needs a market whose drivers do not respond, but the scenario has "
            "responsive_demand; leave that section out"
        )
    return MARKET_POOL.load(scenario, split, n_days)


def load_any_pool(scenario: "Scenario", split: str, n_days: int) -> MarketWorld | ResponsiveWorld:
    """The same, with drivers who respond where the scenario says so."""
    if scenario.responsive_spec is None:
        return load_market_pool(scenario, split, n_days)
    return RESPONSIVE_POOL.load(scenario, split, n_days)


def any_world(
    scenario: "Scenario", days: "Sequence[Day]", like: MarketWorld | ResponsiveWorld | None = None
) -> MarketWorld | ResponsiveWorld:
    """The world of given days, with drivers who respond where the scenario says so; like: another of its worlds."""
    if scenario.responsive_spec is None:
        return market_world(scenario, days)
    return responsive_world(scenario, days, like if isinstance(like, ResponsiveWorld) else None)
