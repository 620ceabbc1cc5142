"""What a policy is: SB3's ``predict``; and rules, which see a `View` of the cars present besides the observation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet.normal import View, knee_action
from evcs_gym.envs.types import FloatArray


@runtime_checkable
class Policy(Protocol):
    """Anything with Stable-Baselines3's ``predict``: a trained model, a rule, a re-planning optimiser."""

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions of a batch of observations, and the recurrent state."""
        ...


class ViewSource(Protocol):
    """An environment, vector environment or rollout that shows what may be known now."""

    def view(self) -> View:
        """The public part of the present slot, batched."""
        ...


@dataclass
class Rule:
    """A rule: the bus powers that it wants, (B, C) kW, from a view. The environment's knee makes them feasible.

    `attach` names the environment whose view the rule reads; what it knows is what every policy may know.
    """

    name: str
    target_kw: Callable[[View], FloatArray]
    source: ViewSource | None = None

    def attach(self, source: Any) -> None:
        """Read the views of this environment (or of the one that it wraps)."""
        self.source = getattr(source, "unwrapped", source)

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions in [-1, 1], shape (C,) for one observation (C, F) and (B, C) for a batch.

        Raises:
            ConfigError: `attach` was not called.
        """
        if self.source is None:
            raise ConfigError(f"rule {self.name!r} needs an environment: call attach(env) before predict")
        view = self.source.view()
        action = knee_action(self.target_kw(view), view.surplus_kw, view.least_kw, view.largest_kw)
        return (action[0] if np.ndim(observation) == 2 else action).astype(np.float32), None
