"""What a policy of fast charging is: anything that sends the present request of every row of a `FastStage`.

Rules and planning policies decide from the stage's view; a learned policy is a `MaskedPredictor`: the ``predict`` of
sb3-contrib's MaskablePPO on the stage's observation and masks.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evcs_gym.baselines.rules_fast import FastRule
from evcs_gym.envs.fleet import fast
from evcs_gym.envs.types import BoolArray, IntArray


@dataclass
class FastStage:
    """Days in play, B rows whose day is not over: what a policy decides on."""

    world: fast.FastWorld
    state: fast.FastState

    def view(self) -> fast.FastView:
        """What may be known now."""
        return fast.view(self.world, self.state)

    def observe(self) -> np.ndarray:
        """The observation, (B, F)."""
        return fast.observe(self.world, self.state)

    def action_masks(self) -> BoolArray:
        """Allowed actions, (B, J + 1)."""
        return fast.action_masks(self.world, self.state)


@runtime_checkable
class FastPolicy(Protocol):
    """The station of every row's present request, (B,), J for stranded."""

    def send(self, stage: FastStage) -> IntArray:
        """Allowed actions of the stage's rows; the stage is left as it is."""
        ...


@dataclass(frozen=True)
class FastRulePolicy:
    """A rule of `evcs_gym.baselines.rules_fast` by its name."""

    name: str
    rule: FastRule

    def send(self, stage: FastStage) -> IntArray:
        """See `FastPolicy`."""
        return self.rule(stage.view())


class MaskedPolicy(Protocol):
    """A policy with the ``predict`` of sb3-contrib's maskable algorithms."""

    def predict(self, observation: np.ndarray, *, deterministic: bool, action_masks: np.ndarray) -> tuple[Any, Any]:
        """Actions of a batch of observations, and a state that is None."""
        ...


@dataclass(frozen=True)
class MaskedPredictor:
    """A maskable policy, deterministic, as one of fast charging."""

    policy: MaskedPolicy

    def send(self, stage: FastStage) -> IntArray:
        """See `FastPolicy`."""
        masks = stage.action_masks()
        action, _ = self.policy.predict(stage.observe(), deterministic=True, action_masks=masks)
        return np.asarray(action, dtype=np.int64)
