"""The pool of prepared days that `reset` draws from: made once per scenario and split, kept on disk without pickle.

The cache lies in ``$EVCS_GYM_CACHE``, else in the user's cache folder; its key covers the scenario, the package version
and the bytes of every module and data file that makes a day, so that a stale pool is never read.
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.resources
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from evcs_gym.envs.files import write_whole
from evcs_gym.envs.fleet.kernels import DayArrays
from evcs_gym.envs.fleet.normal import World, make_world

if TYPE_CHECKING:
    from evcs_gym.envs.scenario import Scenario

DEFAULT_POOL_DAYS = 256
_WORLD_ARRAYS = (
    "need_kwh",
    "infeasible_kwh",
    "n_sessions",
    "mean_price_eur_per_kwh",
    "source_pu",
    "capacitor_step",
)
_SOURCES = ("", "data", "grid", "fleet", "traffic")


def cache_folder() -> Path:
    """Folder of the pools: ``$EVCS_GYM_CACHE``, else ``$XDG_CACHE_HOME/evcs-gym``, else ``~/.cache/evcs-gym``."""
    own = os.environ.get("EVCS_GYM_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evcs-gym"


@lru_cache(maxsize=1)
def sources_digest() -> str:
    """Digest of the package version and of every module and data file that makes a day."""
    digest = hashlib.sha256(importlib.metadata.version("evcs-gym").encode())
    digest.update(np.__version__.encode())
    root = importlib.resources.files("evcs_gym.envs")
    for folder in _SOURCES:
        for entry in sorted((root / folder if folder else root).iterdir(), key=lambda e: e.name):
            if entry.name.endswith((".py", ".csv", ".json", ".npz")):
                digest.update(entry.name.encode() + entry.read_bytes())
    return digest.hexdigest()


def _pool_file(scenario: "Scenario", split: str, n_days: int) -> Path:
    text = scenario.model_dump_json(by_alias=True) + f"|{split}|{n_days}|{sources_digest()}"
    return cache_folder() / f"pool-{scenario.name}-{split}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"


def _read(path: Path, scenario: "Scenario") -> World:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in (*DayArrays._fields, *_WORLD_ARRAYS)}
    for value in arrays.values():
        value.setflags(write=False)
    frame = make_world(scenario, [scenario.day(0)])  # everything of a world but its days
    days = DayArrays(**{name: arrays[name] for name in DayArrays._fields})
    return dataclasses.replace(frame, days=days, **{name: arrays[name] for name in _WORLD_ARRAYS})


def _write(path: Path, world: World) -> None:
    arrays = {**world.days._asdict(), **{name: getattr(world, name) for name in _WORLD_ARRAYS}}
    write_whole(path, lambda file: np.savez(file, **arrays))


def load_pool(scenario: "Scenario", split: str = "train", n_days: int = DEFAULT_POOL_DAYS) -> World:
    """The world of the split's days with seeds 0 .. n_days - 1, from disk where it lies there.

    A cache folder that cannot be read or written costs time, not correctness: the pool is made anew with a warning.
    """
    scenario.normal_charging  # noqa: B018 - refuses, before any day is made, a scenario without charging at home
    path = _pool_file(scenario, split, n_days)
    if path.exists():
        try:
            return _read(path, scenario)
        except (OSError, EOFError, BadZipFile, KeyError, ValueError) as error:
            warnings.warn(f"{path}: cannot be read ({error}); the pool of days is made anew", stacklevel=2)
    world = make_world(scenario, scenario.days(range(n_days), split))
    try:
        _write(path, world)
    except OSError as error:
        warnings.warn(
            f"{path}: cannot be written ({error}); set EVCS_GYM_CACHE to a folder that can, or every start prepares "
            "its days again",
            stacklevel=2,
        )
    return world
