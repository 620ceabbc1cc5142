"""Rows that play days of fast charging one after the other: the state behind Gymnasium's and SB3's classes."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from evcs_gym.envs.draws import day_of_episode
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.fleet import fast
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS

TERMS: Final = ("absorb_eur", "energy_eur", "stranded_eur", "voltage_eur")
"""Named terms of the reward: minus their sum."""
_COUNTS: Final = ("station", "n_stranded", "n_slots", "violation_pu", "n_violations", "n_collapsed", "n_replaced")
_TOLD: Final = (*TERMS, "charge_eur", "delivered_kwh", *_COUNTS)


@dataclass(frozen=True, eq=False)
class FastBatchStep:
    """What a step of a batch gives: the first observation of the next day stands in ``observation`` of rows whose day
    ended, the last one of the old day in ``final_observation`` (number of such rows, in their order)."""

    observation: np.ndarray  # (B, F)
    final_observation: np.ndarray  # (n, F)
    reward_eur: FloatArray  # (B,)
    ended: BoolArray  # (B,)
    outcome: fast.FastOutcome
    day: IntArray  # (B,) row of the world's stack that was played
    beyond_kwh: FloatArray  # (B,) energy that charges of the day that was played take after it


class FastBatch:
    """Rows with slots of their own; a row whose day ends begins the next one in the same step."""

    def __init__(self, world: fast.FastWorld, n_rows: int) -> None:
        if n_rows < 1:
            raise ConfigError(f"the number of environments must be at least 1, got {n_rows}")
        if not world.n_requests.all():
            bad = int(world.seed[int(np.argmin(world.n_requests))])
            raise ConfigError(f"the day of seed {bad} has no request for fast charging: there is nothing to decide")
        self.world, self.n_rows = world, n_rows
        self.rng = np.random.default_rng()
        self.state: fast.FastState | None = None

    def running(self) -> fast.FastState:
        """The present state; refused before the first reset."""
        if self.state is None:
            raise ConfigError("the environments have no day yet; call reset() first")
        return self.state

    def action_masks(self) -> BoolArray:
        """Allowed actions of every row, (B, J + 1)."""
        return fast.action_masks(self.world, self.running())

    def day_seed(self) -> IntArray:
        """Seeds of the days in play, (B,)."""
        return np.asarray(self.world.seed[self.running().day])

    def reset(self, seed: int | list[int | None] | None, rows: BoolArray | None = None) -> np.ndarray:
        """Start new days, in all rows or in the marked ones; observation (B, F)."""
        if seed is not None:
            self.rng = np.random.default_rng(seed)  # type: ignore[arg-type]  # one generator serves all rows
        if self.state is None or (seed is not None and rows is None):
            none = np.zeros(self.n_rows, dtype=np.int64)
            self.state = fast.initial_state(self.world, self._draw(np.arange(self.n_rows), none))
        else:
            rows = np.ones(self.n_rows, dtype=np.bool_) if rows is None else rows
            day = self._draw(np.flatnonzero(rows), self.state.episode[rows] + 1)
            self.state = fast.with_reset_rows(self.world, self.state, rows, day)
        return fast.observe(self.world, self.state)

    def _draw(self, rows: IntArray, episode: IntArray) -> IntArray:
        return day_of_episode(self.rng, rows, episode, self.world.n_days)

    def step(self, action: IntArray) -> FastBatchStep:
        """One request of every row, an action that is not allowed replaced as in `fast.step_executed`."""
        before = self.running()
        after, outcome = fast.step_executed(self.world, before, action)
        ended = after.slot >= N_SLOTS
        observation = fast.observe(self.world, after)
        final, beyond = observation[ended], after.beyond_kwh.sum(axis=1)
        self.state = after
        if ended.any():
            observation = self.reset(None, ended)
        return FastBatchStep(observation, final, -outcome.cost_eur, ended, outcome, before.day, beyond)


def step_terms(outcome: fast.FastOutcome) -> dict[str, np.ndarray]:
    """Named terms of a step, one number per row (B,), in EUR, kWh and counts."""
    return {"cost_eur": outcome.cost_eur, **{name: getattr(outcome, name) for name in _TOLD}}


def check_actions(action: Any, shape: tuple[int, ...], n_stations: int) -> IntArray:
    """Actions as whole numbers of the given shape; whether they are allowed is another question.

    Raises:
        DataError: another shape, no whole numbers, no station and not stranded.
    """
    values = np.asarray(action)
    if values.shape != shape or not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"the action must be whole numbers of shape {shape}, got {values.dtype} {values.shape}")
    if values.min() < 0 or values.max() > n_stations:
        raise DataError(f"the action must be a station 0..{n_stations - 1} or {n_stations}, stranded, got {values}")
    return values.astype(np.int64)
