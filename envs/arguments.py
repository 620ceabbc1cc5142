"""What users hand to environments: a scenario, an action."""

from typing import Any

import numpy as np

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.scenario import Scenario, load_scenario
from evcs_gym.envs.types import FloatArray


def as_scenario(scenario: Scenario | str) -> Scenario:
    """The scenario itself, or the one of a name or path."""
    return scenario if isinstance(scenario, Scenario) else load_scenario(scenario)


def checked_action(action: Any, shape: tuple[int, ...], meaning: str) -> FloatArray:
    """The action as float64 of the given shape; ``meaning`` says in the complaint what its numbers are.

    Raises:
        DataError: no numbers, wrong shape, NaN, or outside [-1, 1].
    """
    try:
        values = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"the action must be an array of numbers of shape {shape}; {error}") from None
    if values.shape != shape:
        raise DataError(f"the action must have shape {shape} ({meaning}), got {values.shape}")
    largest = np.abs(values).max(initial=0.0)
    if not np.isfinite(largest):
        raise DataError("the action must be finite, got NaN or infinity")
    if largest > 1.0 + 1e-6:
        worst = values.flat[np.abs(values).argmax()]
        raise DataError(f"the action must lie in [-1, 1], got {worst:.6g}; clip it as Stable-Baselines3 does")
    if largest <= 1.0:
        return values.copy()
    return np.minimum(np.maximum(values, -1.0), 1.0)  # only the rounding allowed above
