"""The pool of prepared days of the market that `reset` draws from; see `evcs_gym.envs.pool`."""

from typing import TYPE_CHECKING

import numpy as np

from evcs_gym.envs.market.core import MarketWorld
from evcs_gym.envs.market.prepare import STACKED, market_world, stacked_of, world_of
from evcs_gym.envs.pool import DEFAULT_POOL_DAYS, PoolFormat

if TYPE_CHECKING:
    from evcs_gym.envs.scenario import Scenario


def _make(scenario: "Scenario", split: str, n_days: int) -> MarketWorld:
    return market_world(scenario, scenario.days(range(n_days), split))


def _pack(world: MarketWorld) -> dict[str, np.ndarray]:
    return {**stacked_of(world), "value_eur": world.value_eur}


def _unpack(scenario: "Scenario", arrays: dict[str, np.ndarray]) -> MarketWorld:
    return world_of(scenario, arrays, arrays["value_eur"])


MARKET_POOL = PoolFormat(name="market", arrays=(*STACKED, "value_eur"), make=_make, pack=_pack, unpack=_unpack)


def load_market_pool(scenario: "Scenario", split: str = "train", n_days: int = DEFAULT_POOL_DAYS) -> MarketWorld:
    """The world of the split's days with seeds 0 .. n_days - 1, from disk where it lies there."""
    scenario.stations  # noqa: B018 - refuses, before any day is made, a scenario without stations
    return MARKET_POOL.load(scenario, split, n_days)
