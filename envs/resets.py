"""What a reset may be asked for, and what it hands over: the same in every world."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evcs_gym.envs.day import Day, with_devices
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.grid.devices import DeviceSchedule
from evcs_gym.envs.scenario import Scenario
from evcs_gym.envs.types import BoolArray


def known_options(options: dict[str, Any] | None, known: Sequence[str] = ("day", "devices")) -> dict[str, Any]:
    """Options of a reset.

    Raises:
        ConfigError: an option that does not exist.
    """
    unknown = set(options or {}) - set(known)
    if unknown:
        raise ConfigError(f"reset options must be among {list(known)}, got {sorted(unknown)}")
    return dict(options or {})


def given_day(scenario: Scenario, day: Any, devices: Any) -> Day | None:
    """The day that was asked for, under the device schedule where there is one; None where one is to be drawn.

    Raises:
        ConfigError: a day that is none, devices without a day, positions that the network does not allow.
    """
    if devices is not None:
        if not isinstance(day, Day) or not isinstance(devices, DeviceSchedule):
            raise ConfigError(
                "options['devices'] must be a DeviceSchedule, given together with options['day'], got "
                f"{type(devices).__name__} and {type(day).__name__}"
            )
        return with_devices(scenario, day, devices)
    if day is not None and not isinstance(day, Day):
        raise ConfigError(f"options['day'] must be a Day (scenario.day(seed)), got {type(day).__name__}")
    return day


def marked_rows(seed: Any, options: dict[str, Any] | None, n_rows: int) -> BoolArray | None:
    """Rows of a vector environment that a reset is to begin anew, ``options["reset_mask"]`` (B,); None for all.

    Raises:
        ConfigError: an unknown option, a list of seeds with gaps, a mask of another shape or kind or without a row.
    """
    if isinstance(seed, list) and None in seed:
        raise ConfigError(f"a list of seeds must hold integers only, got {seed!r}")
    mask = known_options(options, ("reset_mask",)).get("reset_mask")
    if mask is None:
        return None
    rows = np.asarray(mask)
    if rows.shape != (n_rows,) or rows.dtype != np.bool_ or not rows.any():
        raise ConfigError(
            f"options['reset_mask'] must be a bool array ({n_rows},) with at least one True, got {mask!r}"
        )
    return rows


def final_rows(ended: BoolArray, observations: np.ndarray) -> np.ndarray:
    """Last observations of the rows that ended, in the form of Gymnasium's ``final_obs``: (B,) of arrays or None."""
    final = np.full(len(ended), None, dtype=object)
    for row, observation in zip(np.flatnonzero(ended), observations, strict=True):
        final[row] = observation
    return final
