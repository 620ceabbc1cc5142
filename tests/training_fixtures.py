"""A tiny city as a YAML file and presets that train on it in a second or two."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from envs_fixtures import tiny_content

from evcs_gym.training.callbacks import Progress
from evcs_gym.training.config import Preset, load_preset

ROWS = 8
"""Rows of the tiny preset: four environments of two buses."""
N_STEPS = 24
"""Half a day: every second rollout begins in the middle of one."""
ROLLOUT = ROWS * N_STEPS

TINY = (
    "n_envs=4",
    "pool_days=6",
    f"total_steps={7 * ROLLOUT}",
    "ppo.n_steps=24",
    "ppo.batch_size=48",
    "ppo.n_epochs=2",
    "ppo.hidden_units=[16]",
    "validation.n_days=2",
    "validation.every_rollouts=2",
    "checkpoint_every_rollouts=2",
)
CLONE = ("clone.n_passes=1", "clone.n_days=4", "clone.n_epochs=2", "clone.batch_size=128", "clone.critic_steps=4")


def tiny_city(folder: Path, **normal_charging: Any) -> Path:
    """The YAML file of a city with two charging buses and eighteen cars."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_content((12, 6), **normal_charging)), encoding="utf-8")
    return path


def tiny_preset(city: Path, *overrides: str) -> Preset:
    """The shipped preset, cut down."""
    return load_preset("normal_charging", [f"scenario={city}", *TINY, *overrides])


def interrupt_after(n_steps: int) -> Callable[[int, Progress], None]:
    """A listener that presses Ctrl-C when this many steps are behind."""

    def listen(_seed: int, progress: Progress) -> None:
        if progress.steps >= n_steps:
            raise KeyboardInterrupt

    return listen


def interrupt_at(n_rollouts: int) -> Callable[[int, Progress], None]:
    """A listener that presses Ctrl-C when this many rollouts of the tiny preset are behind."""
    return interrupt_after(n_rollouts * ROLLOUT)
