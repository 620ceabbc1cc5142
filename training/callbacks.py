"""What happens between rollouts: validation, against proven bounds where there are any, TensorBoard, checkpoints."""

import csv
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from evcs_gym.baselines.reference import References
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.files import replace_file
from evcs_gym.envs.types import FloatArray
from evcs_gym.training.checkpoint import save_checkpoint, save_policy
from evcs_gym.training.config import Preset
from evcs_gym.training.problems import PROBLEMS
from evcs_gym.training.vec_env import RowVecEnv

PROGRESS_FILE = "progress.csv"
_COLUMNS = ("training_seed", "n_steps", "seconds")
"""Before those of the problem."""


class Scored(Protocol):
    """What knows the cost of days, (D,)."""

    @property
    def cost_eur(self) -> FloatArray: ...


@dataclass(frozen=True, eq=False)
class Validation:
    """Days on which a run is judged: their world, the naive cost and the proven bound of each where they are defined,
    and what is logged of them whatever the policy."""

    world: Any
    references: References | None
    facts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.references
        if known is not None and not (known.naive_cost_eur - known.lower_bound_eur).sum() > 0.0:
            raise ConfigError("validation: the naive rule leaves nothing to capture on these days; take more days")

    def captured(self, result: Scored) -> float | None:
        """Share of the possible saving, a ratio of sums (model.md section 10); None without bound."""
        if self.references is None:
            return None
        naive_eur, bound_eur = self.references.naive_cost_eur, self.references.lower_bound_eur
        return float((naive_eur - result.cost_eur).sum()) / float((naive_eur - bound_eur).sum())


@dataclass(frozen=True)
class Progress:
    """What a listener hears after each rollout. captured, best_captured: share on validation days, None without bound.
    best: what the best policy so far was chosen by, the captured share or EUR a day."""

    steps: int
    total_steps: int
    captured: float | None
    best_captured: float | None
    best: float
    steps_per_second: float

    @property
    def words(self) -> str:
        """How good the best policy is, in words."""
        return f"{self.best:,.0f} EUR/day" if self.best_captured is None else f"captured {self.best_captured:.3f}"


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
        self.best: float = -np.inf
        self.best_captured: float | None = -np.inf
        self.latest: float | None = -np.inf
        self._begin, self._begin_steps = time.perf_counter(), 0
        self._sums: dict[str, list[FloatArray]] = {}
        self._rows: list[list[str]] = []
        self._best_weights: dict[str, torch.Tensor] = {}

    def resume(self, extra: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint holds; what came after it, in curves and best policy, is dropped."""
        self.n_rollouts, self.best = int(extra["n_rollouts"]), float(extra["best"])
        self.best_captured, self.latest = extra["best_captured"], extra["latest"]
        self.seconds_before = float(extra["seconds"])
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
                self.best,
                self._row_steps_per_second(),
            )
        )

    def explore(self) -> None:
        """Set the policy's deviation by its schedule: a function of the steps done, so that resuming is exact."""
        first, last = self.preset.ppo.log_std_initial, self.preset.ppo.log_std_final
        if last is None or isinstance(self.env.action_space, spaces.Discrete):
            return
        assert isinstance(self.model, OnPolicyAlgorithm)
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
        assert isinstance(self.model, OnPolicyAlgorithm)
        extra = {
            "n_rollouts": self.n_rollouts,
            "best": float(self.best),
            "best_captured": self.best_captured,
            "latest": self.latest,
            "seconds": self.seconds,
            "rows": self._rows,
            "best_weights": self._best_weights,
        }
        save_checkpoint(self.folder, self.model, self.env, extra)

    def judge(self) -> None:
        """Play the validation days, log how good the policy is, keep it if it is the best so far."""
        assert isinstance(self.model, OnPolicyAlgorithm)
        problem = PROBLEMS[self.preset.problem]
        policy = problem.policy(self.model, self.env.batch.world, self.preset)
        result = problem.judge(self.validation.world, policy, self.preset)
        shown = {"cost_eur": float(result.cost_eur.mean()), **result.shown}
        self.latest = self.validation.captured(result)
        if self.latest is not None:
            shown["captured"] = self.latest
        for term, value in (*shown.items(), *self.validation.facts.items()):
            self.logger.record(f"validation/{term}", value)
        self.logger.dump(self.num_timesteps)
        merit = self.latest if result.merit is None else result.merit
        if merit is None:
            raise ConfigError(f"{self.preset.problem}: without a bound a judgement needs a merit to choose policies by")
        if merit > self.best:
            self.best, self.best_captured = merit, self.latest
            self._best_weights = {name: value.clone() for name, value in self.model.policy.state_dict().items()}
            save_policy(self.folder, self._best_weights)
        numbers = (f"{shown[name]:.6f}" for name in problem.curve)
        self._rows.append([str(self.seed), str(self.num_timesteps), f"{self.seconds:.3f}", *numbers])
        self._write_rows()

    def _write_rows(self) -> None:
        text, columns = io.StringIO(), (*_COLUMNS, *PROBLEMS[self.preset.problem].curve)
        csv.writer(text, lineterminator="\n").writerows([columns, *self._rows])
        replace_file(self.folder / PROGRESS_FILE, lambda file: file.write(text.getvalue().encode()))
