"""The pool of prepared days of charging at home that `reset` draws from; see `evcs_gym.envs.pool`."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from evcs_gym.envs.fleet.kernels import DayArrays
from evcs_gym.envs.fleet.normal import World, make_world
from evcs_gym.envs.pool import DEFAULT_POOL_DAYS, PoolFormat
from evcs_gym.envs.types import frozen

if TYPE_CHECKING:
    from evcs_gym.envs.scenario import Scenario

_WORLD_ARRAYS = (
    "need_kwh",
    "infeasible_kwh",
    "n_sessions",
    "mean_price_eur_per_kwh",
    "source_pu",
    "capacitor_step",
)


def _make(scenario: "Scenario", split: str, n_days: int) -> World:
    return make_world(scenario, scenario.days(range(n_days), split))


def _pack(world: World) -> dict[str, np.ndarray]:
    return {**world.days._asdict(), **{name: getattr(world, name) for name in _WORLD_ARRAYS}}


def _unpack(scenario: "Scenario", arrays: dict[str, np.ndarray]) -> World:
    for value in arrays.values():
        frozen(value)
    frame = make_world(scenario, [scenario.day(0)])  # everything of a world but its days
    days = DayArrays(**{name: arrays[name] for name in DayArrays._fields})
    rest: dict[str, Any] = {name: arrays[name] for name in _WORLD_ARRAYS}
    return dataclasses.replace(frame, days=days, **rest)


NORMAL_POOL = PoolFormat(
    name="pool",
    arrays=(*DayArrays._fields, *_WORLD_ARRAYS),
    make=_make,
    pack=_pack,
    unpack=_unpack,
)


def load_pool(scenario: "Scenario", split: str = "train", n_days: int = DEFAULT_POOL_DAYS) -> World:
    """The world of the split's days with seeds 0 .. n_days - 1, from disk where it lies there."""
    scenario.normal_charging  # noqa: B018 - refuses, before any day is made, a scenario without charging at home
    return NORMAL_POOL.load(scenario, split, n_days)
