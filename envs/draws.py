"""Random numbers that follow from keys alone: the same for a row whatever else is in its batch."""

import copy
from typing import Final

import numpy as np

from evcs_gym.envs.types import FloatArray, IntArray

GOLDEN: Final = 0x9E3779B97F4A7C15


def uniform_of(key: IntArray) -> FloatArray:
    """Numbers in [0, 1) of integer keys: one round of SplitMix64 (Steele, Lea, Flood 2014, 10.1145/2660193.2660195)."""
    bits = (key.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
    for shift, times in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(times)
    return np.asarray((bits ^ (bits >> np.uint64(31))) >> np.uint64(11), dtype=np.float64) * 2.0**-53


def draw_days(rng: np.random.Generator, rows: IntArray, n_days: int) -> IntArray:
    """A day 0 .. n_days - 1 for each of the rows of a batch, by its number; takes one number of the generator.

    Row r of a batch that is seeded alike gets the same days in a batch of any size.
    """
    key = int(rng.integers(2**62)) + rows
    return np.asarray(uniform_of(key) * n_days, dtype=np.int64)


def day_of_episode(rng: np.random.Generator, rows: IntArray, episode: IntArray, n_days: int) -> IntArray:
    """A day 0 .. n_days - 1 for each of the rows of a batch (B,), by its number and how many days it began before.

    Rows whose days end at different times get the same days in a batch of any size. The generator is left as it is: its
    state and the episodes say which days come.
    """
    key = int(copy.deepcopy(rng).integers(2**61)) + (episode << 32) + rows
    return np.asarray(uniform_of(key) * n_days, dtype=np.int64)
