"""Native Stable-Baselines3 vector environments: B days of a problem, one pass through its batched core per step.

Two forms. Rows are environments: one joint policy with the reward of the whole environment. Rows are agents (charging
buses, stations): every (environment, agent) is a row of one shared policy with observation (F,), the agent's own action
and its own reward; `SharedPolicy` makes such a policy one of the whole environment.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from evcs_gym.baselines.policy import Policy
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet import normal
from evcs_gym.envs.fleet.env import check_action
from evcs_gym.envs.fleet.observation import action_space, observation_space
from evcs_gym.envs.fleet.vector import Batch, step_terms
from evcs_gym.envs.types import BoolArray, FloatArray

Rows = Literal["buses", "environments"]


class RowStep(Protocol):
    """What a step of a batch gives, A agents: observation (B, A, F) with the first of the next day where one ended,
    final_observation (n, A, F) of the days that ended, reward_eur (B, A), ended (B,), outcome of the core."""

    @property
    def observation(self) -> np.ndarray: ...
    @property
    def final_observation(self) -> np.ndarray: ...
    @property
    def reward_eur(self) -> FloatArray: ...
    @property
    def ended(self) -> BoolArray: ...
    @property
    def outcome(self) -> Any: ...


class RowBatch(Protocol):
    """Rows that play days one after the other: state, generator of days, and the two calls."""

    world: Any
    rng: np.random.Generator
    state: Any

    def running(self) -> Any:
        """The present state; refused before the first reset."""
        ...

    def reset(self, seed: int | list[int | None] | None, rows: BoolArray | None = None) -> np.ndarray:
        """New days; observation (B, A, F)."""
        ...

    def step(self, action: Any) -> Any:
        """One action of every row, a `RowStep`."""
        ...


class RowVecEnv(VecEnv, ABC):
    """SB3 vector environment over the rows of a batch; a problem says how its slots are told in ``infos``.

    Args:
        batch: the environments. n_envs: their number B. shared: rows are (environment, agent), else environments.
        observation: space of a row. action: space of a row.
        reward_scale_per_eur: factor on the reward, fixed for the run.

    Raises:
        ConfigError: a scale that is not positive; `step` before `reset`.
        DataError: actions of the wrong shape, with NaN or outside [-1, 1].

    Attributes:
        episode_terms: sums of the named terms of the days that ended in the last step, arrays (number of such days,).
    """

    def __init__(
        self,
        batch: RowBatch,
        n_envs: int,
        shared: bool,
        observation: spaces.Box,
        action: spaces.Space[Any],
        n_agents: int,
        reward_scale_per_eur: float,
    ) -> None:
        if not 0.0 < reward_scale_per_eur < float("inf"):
            raise ConfigError(f"reward_scale_per_eur must be a positive number, got {reward_scale_per_eur}")
        self.batch, self.shared, self.n_envs, self.n_agents = batch, shared, n_envs, n_agents
        self.reward_scale: float | FloatArray = reward_scale_per_eur
        super().__init__(n_envs * n_agents if shared else n_envs, observation, action)
        self._actions: np.ndarray = np.zeros((n_envs, n_agents))
        self._returns, self._steps = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        self._terms: dict[str, np.ndarray] = {}
        self.episode_terms: dict[str, np.ndarray] = {}

    @abstractmethod
    def _to_batch(self, actions: FloatArray) -> FloatArray:
        """Actions of the rows as the batch takes them."""

    @abstractmethod
    def _step_terms(self, outcome: Any) -> Mapping[str, np.ndarray]:
        """Named terms of a slot, one number per environment (B,)."""

    @abstractmethod
    def _infos(self, outcome: Any) -> list[dict[str, Any]]:
        """True EUR of the slot for every row."""

    def _by_row(self, values: np.ndarray) -> np.ndarray:
        """(n, A, ...) to rows."""
        return values.reshape(-1, *values.shape[2:]) if self.shared else values

    def _row_sum(self, values: FloatArray) -> FloatArray:
        """A term (B, A) of every row: the agent's own, or the environment's sum."""
        return values.reshape(-1) if self.shared else values.sum(axis=1)

    def reset(self) -> np.ndarray:
        """New days in all rows."""
        seed = self._seeds[0]
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._steps[:] = 0.0, 0
        self._terms = {}
        return self._by_row(self.batch.reset(seed))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the generator that draws days at the next reset; one generator serves all rows."""
        self._seeds = [seed] * self.num_envs
        return self._seeds

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions of all rows."""
        shape = (self.num_envs, *self.action_space.shape)  # type: ignore[misc]
        self._actions = self._to_batch(check_action(actions, shape))

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """One slot of every row; rows whose day ends show the first observation of the next."""
        result: RowStep = self.batch.step(self._actions)
        reward = self.reward_scale * self._row_sum(result.reward_eur)
        self._returns += reward
        self._steps += 1
        for name, values in self._step_terms(result.outcome).items():
            self._terms[name] = self._terms.get(name, 0.0) + values
        ended = np.repeat(result.ended, self.num_envs // self.n_envs)
        infos = self._infos(result.outcome)
        self.episode_terms = {}
        if ended.any():
            self._finish(ended, result.ended, self._by_row(result.final_observation), infos)
        return self._by_row(result.observation), reward.astype(np.float32), ended, infos

    def _finish(self, rows: np.ndarray, envs: np.ndarray, final: np.ndarray, infos: list[dict[str, Any]]) -> None:
        for observation, row in zip(final, np.flatnonzero(rows), strict=True):
            infos[row]["terminal_observation"] = observation
            infos[row]["TimeLimit.truncated"] = False
            infos[row]["episode"] = {"r": float(self._returns[row]), "l": int(self._steps[row]), "t": 0.0}
        self._returns[rows], self._steps[rows] = 0.0, 0
        self.episode_terms = {name: values[envs].copy() for name, values in self._terms.items()}
        for name, values in self._terms.items():
            self._terms[name] = np.where(envs, 0.0, values)

    def close(self) -> None:
        """Nothing to close: the environments hold arrays only."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of this object for every row asked for; ``render_mode`` is None."""
        value = None if attr_name == "render_mode" else getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refused: rows share one world."""
        raise ConfigError(f"rows of this vector environment share one world; {attr_name!r} cannot be set per row")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Refused: rows are arrays, not objects with methods."""
        raise ConfigError(f"rows of this vector environment are arrays; they have no method {method_name!r}")

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """No row is wrapped."""
        return [False for _ in self._get_indices(indices)]


class NormalChargingVecEnv(RowVecEnv):
    """SB3 vector environment of normal charging.

    Args:
        world: days to draw from, see `evcs_gym.envs.fleet.pool.load_pool`.
        n_envs: number of environments; there are ``n_envs * C`` rows where rows are buses.
        rows: "buses" or "environments".
        reward_shift: training form of the reward; ``infos`` and `episode_terms` hold true EUR either way.
        reward_scale_per_eur: factor on the reward, fixed for the run.

    Raises:
        ConfigError: unknown rows, no environment, and as `RowVecEnv`.

    Every info holds ``cost_eur`` of the slot and its named terms, of the row's bus or environment.
    """

    batch: Batch

    def __init__(
        self,
        world: normal.World,
        n_envs: int,
        rows: Rows = "buses",
        reward_shift: bool = True,
        reward_scale_per_eur: float = 1.0,
    ) -> None:
        if rows not in get_args(Rows):
            raise ConfigError(f"rows must be one of {', '.join(get_args(Rows))}, got {rows!r}")
        shared, n_buses = rows == "buses", world.n_buses
        self.rows = rows
        batch = Batch(world, n_envs, reward_shift)
        spaces_ = observation_space(None if shared else n_buses), action_space(1 if shared else n_buses)
        super().__init__(batch, n_envs, shared, *spaces_, n_buses, reward_scale_per_eur)

    def view(self) -> normal.View:
        """What policies may know now, per environment."""
        return normal.view(self.batch.world, self.batch.running())

    def _to_batch(self, actions: FloatArray) -> FloatArray:
        return actions.reshape(self.n_envs, -1)

    def _step_terms(self, outcome: normal.Outcome) -> Mapping[str, np.ndarray]:
        return step_terms(outcome)

    def _infos(self, outcome: normal.Outcome) -> list[dict[str, Any]]:
        terms = (outcome.gap_eur, outcome.energy_eur, outcome.voltage_eur)
        return [
            {"cost_eur": gap + energy + voltage, "gap_eur": gap, "energy_eur": energy, "voltage_eur": voltage}
            for gap, energy, voltage in zip(*(self._row_sum(term).tolist() for term in terms), strict=True)
        ]


@dataclass
class SharedPolicy:
    """A policy trained on rows of agents as a policy of the whole environment: (B, A, F) or (A, F) to (B, A, K) or
    (A, K); without the last axis where an agent has one action."""

    shared: Policy

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions of every agent."""
        rows = observation.reshape(-1, observation.shape[-1])
        action, state = self.shared.predict(rows, state, None, deterministic)
        last = action.shape[1:] if action.shape[-1] > 1 else ()
        return np.clip(action, -1.0, 1.0).reshape(*observation.shape[:-1], *last), state
