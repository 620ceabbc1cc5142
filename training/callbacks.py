"""What happens between rollouts: validation against proven bounds, TensorBoard terms, checkpoints, progress."""

import csv
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.files import replace_file
from evcs_gym.envs.types import FloatArray
from evcs_gym.training.checkpoint import save_checkpoint, save_policy
from evcs_gym.training.config import Preset
from evcs_gym.training.problems import PROBLEMS
from evcs_gym.training.vec_env import RowVecEnv

PROGRESS_FILE = "progress.csv"
_COLUMNS = ("training_seed", "n_steps", "seconds", "captured", "cost_eur", "n_violations")


class Scored(Protocol):
    """What knows the cost of days, (D,)."""

    @property
    def cost_eur(self) -> FloatArray: ...


@dataclass(frozen=True, eq=False)
class Validation:
    """Days on which a run is judged: their world, the naive cost and the proven bound of each, (D,), and what is logged
    of them whatever the policy."""

    world: Any
    naive_cost_eur: FloatArray
    lower_bound_eur: FloatArray
    facts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.naive_cost_eur - self.lower_bound_eur).sum() > 0.0:
            raise ConfigError("validation: the naive rule leaves nothing to capture on these days; take more days")

    def captured(self, result: Scored) -> float:
        """Share of the possible saving, a ratio of sums (model.md section 10)."""
        possible = float((self.naive_cost_eur - self.lower_bound_eur).sum())
        return float((self.naive_cost_eur - result.cost_eur).sum()) / possible


@dataclass(frozen=True)
class Progress:
    """What a listener hears after each rollout."""

    steps: int
    total_steps: int
    captured: float
    best_captured: float
    steps_per_second: float


class RunCallback(BaseCallback):
    """Judges, logs and stores a run between its rollouts; keeps the best policy on validation days."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        env: RowVecEnv,
        validation: Validation,
        preset: Preset,
        listener: Callable[[Progress], None],
    ) -> None:
        super().__init__()
        self.folder, self.seed, self.env, self.validation = folder, seed, env, validation
        self.preset, self.listener = preset, listener
        self.n_rollouts, self.seconds_before = 0, 0.0
        self.best, self.best_captured, self.latest = -np.inf, -np.inf, -np.inf
        self._begin, self._begin_steps = time.perf_counter(), 0
        self._sums: dict[str, list[FloatArray]] = {}
        self._rows: list[list[str]] = []
        self._best_weights: dict[str, torch.Tensor] = {}

    def resume(self, extra: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint holds; what came after it, in curves and best policy, is dropped."""
        self.n_rollouts, self.best = int(extra["n_rollouts"]), float(extra["best"])
        self.best_captured = float(extra["best_captured"])
        self.latest, self.seconds_before = float(extra["latest"]), float(extra["seconds"])
        self._rows, self._best_weights = list(extra["rows"]), dict(extra["best_weights"])
        self._write_rows()
        if self._best_weights:
            save_policy(self.folder, self._best_weights)

    @property
    def seconds(self) -> float:
        """Seconds of training, earlier parts of a resumed run counted in."""
        return self.seconds_before + time.perf_counter() - self._begin

    def _on_training_start(self) -> None:
        self._begin, self._begin_steps = time.perf_counter(), self.num_timesteps

    def _on_rollout_start(self) -> None:
        self.explore()
        if self.n_rollouts % self.preset.checkpoint_every_rollouts == 0:
            self.checkpoint()  # before anything of this rollout: a resumed run judges and counts it again
        if self.n_rollouts % self.preset.validation.every_rollouts == 0:
            self.judge()
        self.n_rollouts += 1
        self.listener(
            Progress(
                self.num_timesteps,
                self.preset.total_steps,
                self.latest,
                self.best_captured,
                self._row_steps_per_second(),
            )
        )

    def explore(self) -> None:
        """Set the policy's deviation by its schedule: a function of the steps done, so that resuming is exact."""
        first, last = self.preset.ppo.log_std_initial, self.preset.ppo.log_std_final
        if last is None:
            return
        assert isinstance(self.model, PPO)
        left = 1.0 - min(self.num_timesteps / self.preset.total_steps, 1.0)
        with torch.no_grad():
            start, end = (torch.as_tensor(value, dtype=torch.float64) for value in (first, last))
            self.model.policy.log_std.copy_(end + left * (start - end))

    def _row_steps_per_second(self) -> float:
        return (self.num_timesteps - self._begin_steps) / max(time.perf_counter() - self._begin, 1e-9)

    def _on_step(self) -> bool:
        for name, values in self.env.episode_terms.items():
            self._sums.setdefault(name, []).append(values)
        return True

    def _on_rollout_end(self) -> None:
        for name, values in self._sums.items():
            self.logger.record(f"day/{name}", float(np.concatenate(values).mean()))
        self._sums = {}
        self.logger.record("time/row_steps_per_second", self._row_steps_per_second())

    def _on_training_end(self) -> None:
        self.judge()

    def checkpoint(self) -> None:
        """Store the run so that it goes on exactly here."""
        assert isinstance(self.model, PPO)
        extra = {
            "n_rollouts": self.n_rollouts,
            "best": float(self.best),
            "best_captured": float(self.best_captured),
            "latest": float(self.latest),
            "seconds": self.seconds,
            "rows": self._rows,
            "best_weights": self._best_weights,
        }
        save_checkpoint(self.folder, self.model, self.env, extra)

    def judge(self) -> None:
        """Play the validation days, log the share captured, keep the policy if it is the best so far."""
        assert isinstance(self.model, PPO)
        problem, world = PROBLEMS[self.preset.problem], self.validation.world
        result = problem.judge(world, problem.policy(self.model, world, self.preset), self.preset)
        self.latest = self.validation.captured(result)
        self.logger.record("validation/captured", self.latest)
        self.logger.record("validation/cost_eur", float(result.cost_eur.mean()))
        for term, value in (*result.shown.items(), *self.validation.facts.items()):
            self.logger.record(f"validation/{term}", value)
        self.logger.dump(self.num_timesteps)
        merit = self.latest if result.merit is None else result.merit
        if merit > self.best:
            self.best, self.best_captured = merit, self.latest
            self._best_weights = {name: value.clone() for name, value in self.model.policy.state_dict().items()}
            save_policy(self.folder, self._best_weights)
        cost, violations = float(result.cost_eur.mean()), result.shown["n_violations"]
        numbers = (f"{self.seconds:.3f}", f"{self.latest:.6f}", f"{cost:.6f}", str(violations))
        self._rows.append([str(self.seed), str(self.num_timesteps), *numbers])
        self._write_rows()

    def _write_rows(self) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *self._rows])
        replace_file(self.folder / PROGRESS_FILE, lambda file: file.write(text.getvalue().encode()))
