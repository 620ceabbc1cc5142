"""The pool of prepared days of fast charging that `reset` draws from; see `evcs_gym.envs.pool`."""

import dataclasses
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet.fast import FastWorld, make_fast_world, requests_of
from evcs_gym.envs.fleet.fast_kernels import FastDays
from evcs_gym.envs.pool import DEFAULT_POOL_DAYS, PoolFormat
from evcs_gym.envs.types import frozen

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

_WORLD_ARRAYS: Final = ("source_pu", "capacitor_step", "seed")
_EMPTY_DAYS_PER_DAY: Final = 20
"""Days without a request that are passed over for every one that has some, before the scenario is refused."""


def _days_with_requests(scenario: "Scenario", split: str, n_days: int) -> "list[Day]":
    found: list[Day] = []
    for first in range(0, n_days * (1 + _EMPTY_DAYS_PER_DAY), n_days):
        found += [day for day in scenario.days(range(first, first + n_days), split) if len(requests_of(day))]
        if len(found) >= n_days:
            return found[:n_days]
    raise ConfigError(
        f"{scenario.name}: {n_days} days with a request for fast charging are needed, the first "
        f"{n_days * (1 + _EMPTY_DAYS_PER_DAY)} seeds give {len(found)}; raise charging_buses.n_cars or lower "
        "fleet.home_charger_frac"
    )


def _make(scenario: "Scenario", split: str, n_days: int) -> FastWorld:
    return make_fast_world(scenario, _days_with_requests(scenario, split, n_days))


def _pack(world: FastWorld) -> dict[str, np.ndarray]:
    return {**world.days._asdict(), **{name: getattr(world, name) for name in _WORLD_ARRAYS}}


def _unpack(scenario: "Scenario", arrays: dict[str, np.ndarray]) -> FastWorld:
    for value in arrays.values():
        frozen(value)
    frame = make_fast_world(scenario, [scenario.day(0)])  # everything of a world but its days
    rest: dict[str, Any] = {name: arrays[name] for name in _WORLD_ARRAYS}
    return dataclasses.replace(frame, days=FastDays(**{name: arrays[name] for name in FastDays._fields}), **rest)


FAST_POOL = PoolFormat(name="fast", arrays=(*FastDays._fields, *_WORLD_ARRAYS), make=_make, pack=_pack, unpack=_unpack)


def load_fast_pool(scenario: "Scenario", split: str = "train", n_days: int = DEFAULT_POOL_DAYS) -> FastWorld:
    """The world of the first n_days seeds of the split whose days have a request, from disk where it lies there.

    Raises:
        ConfigError: a scenario without fast charging, or with too few requests.
    """
    scenario.fast_charging  # noqa: B018 - refuses, before any day is made, a scenario without fast charging
    return FAST_POOL.load(scenario, split, n_days)
