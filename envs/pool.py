"""Prepared days on disk: made once per scenario and split, kept without pickle, read back instead of made again.

The cache lies in ``$EVCS_GYM_CACHE``, else in the user's cache folder; its key covers the scenario, the package version
and the bytes of every module and data file that makes a day, so that a stale pool is never read.
"""

import hashlib
import importlib.metadata
import importlib.resources
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from zipfile import BadZipFile

import numpy as np

from evcs_gym.envs.files import write_whole

if TYPE_CHECKING:
    from evcs_gym.envs.scenario import Scenario

DEFAULT_POOL_DAYS = 256
_SOURCES = ("", "data", "grid", "fleet", "traffic", "market")
World = TypeVar("World")


@dataclass(frozen=True)
class PoolFormat(Generic[World]):
    """How a world of prepared days is made of a scenario, and how it becomes arrays and comes back.

    name: first part of the files' names. arrays: names that `pack` gives and `unpack` takes. make: (scenario, split,
    n_days) to a world.
    """

    name: str
    arrays: tuple[str, ...]
    make: "Callable[[Scenario, str, int], World]"
    pack: Callable[[World], Mapping[str, np.ndarray]]
    unpack: "Callable[[Scenario, dict[str, np.ndarray]], World]"

    def load(self, scenario: "Scenario", split: str, n_days: int) -> World:
        """The world of the split's days with seeds 0 .. n_days - 1, from disk where it lies there.

        A cache folder that cannot be read or written costs time, not correctness: the pool is made anew with a warning.
        """
        path = self._file(scenario, split, n_days)
        if path.exists():
            try:
                return self.unpack(scenario, self._read(path))
            except (OSError, EOFError, BadZipFile, KeyError, ValueError) as error:
                warnings.warn(f"{path}: cannot be read ({error}); the pool of days is made anew", stacklevel=3)
        world = self.make(scenario, split, n_days)
        try:
            packed = self.pack(world)
            arrays: dict[str, Any] = {name: packed[name] for name in self.arrays}
            write_whole(path, lambda file: np.savez(file, **arrays))
        except OSError as error:
            warnings.warn(
                f"{path}: cannot be written ({error}); set EVCS_GYM_CACHE to a folder that can, or every start "
                "prepares its days again",
                stacklevel=3,
            )
        return world

    def _file(self, scenario: "Scenario", split: str, n_days: int) -> Path:
        text = scenario.model_dump_json(by_alias=True) + f"|{split}|{n_days}|{sources_digest()}"
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cache_folder() / f"{self.name}-{scenario.name}-{split}-{key}.npz"

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in self.arrays}


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
