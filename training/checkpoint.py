"""Run folders: what a run was, its policy, and everything needed to go on exactly where it stopped. No pickle.

A run folder holds ``run.json`` (preset, seed, versions), ``policy.pt`` (best policy on validation days, weights only),
``progress.csv``, TensorBoard events, and, while it trains, ``checkpoint.pt`` (policy, optimiser, random states,
environment).
"""

import json
import random
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.files import replace_file
from evcs_gym.envs.specs import Spec, validated
from evcs_gym.training.vec_env import RowVecEnv

RUN_FILE, POLICY_FILE, CHECKPOINT_FILE = "run.json", "policy.pt", "checkpoint.pt"
FORMAT = 1


class RunInfo(Spec):
    """What a run was: preset as loaded, seed, how its policy came about, versions."""

    preset: dict[str, Any]
    seed: int
    kind: Literal["learned", "cloned, then learned"]
    provenance: dict[str, Any]
    finished: bool = False
    captured_validation: float | None = None
    seconds: float = 0.0


def write_run(folder: Path, info: RunInfo) -> None:
    """Store ``run.json``."""
    text = json.dumps({"format": FORMAT, **info.model_dump(mode="json")}, indent=2, allow_nan=False)
    replace_file(folder / RUN_FILE, lambda file: file.write(text.encode()))


def read_run(folder: Path) -> RunInfo:
    """The record of a run folder.

    Raises:
        ConfigError: no folder, or no run in it. DataError: a broken file.
    """
    path = folder / RUN_FILE
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such run folder; give the folder that `evcs-gym train` named")
    if not path.is_file():
        raise ConfigError(f"{folder}: holds no {RUN_FILE}, so it is no run folder; train one with `evcs-gym train`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a run record ({error}); train the policy again") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise DataError(f"{path}: must be a run record of format {FORMAT}; train the policy again")
    try:
        return validated(RunInfo, content, str(path))
    except ConfigError as error:
        raise DataError(f"{error}; train the policy again") from None


def save_policy(folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Store the weights of a policy."""
    replace_file(folder / POLICY_FILE, lambda file: torch.save(dict(weights), file))


def load_weights(path: Path) -> Any:
    """Tensors and plain values of a file, without unpickling objects.

    Raises:
        ConfigError: no such file. DataError: not a file of weights.
    """
    if not path.is_file():
        raise ConfigError(f"{path.parent}: holds no {path.name}: the run has no model (yet); train it to the end first")
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds; its words advise to load the file with pickle: not repeated
        kind = type(error).__name__
        raise DataError(f"{path}: cannot be read as weights ({kind}); remove {path.parent} and train again") from None


def _numpy_state(state: Any) -> dict[str, Any]:
    """MT19937's state tuple in plain types."""
    return {"keys": torch.as_tensor(state[1].astype(np.int64)), "rest": [int(state[2]), int(state[3]), float(state[4])]}


def save_checkpoint(folder: Path, model: OnPolicyAlgorithm, env: RowVecEnv, extra: Mapping[str, Any]) -> None:
    """Store everything that an exact continuation needs; called between two rollouts."""
    content = {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "last_observation": torch.as_tensor(np.asarray(model._last_obs)),
        "episode_starts": torch.as_tensor(np.asarray(model._last_episode_starts)),
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": _numpy_state(np.random.get_state()),  # noqa: NPY002 - SB3 shuffles with the global generator
        "python_rng": json.dumps(random.getstate()),
        "env_rng": json.dumps(env.batch.rng.bit_generator.state),
        "env_state": {name: torch.as_tensor(values) for name, values in _arrays(env.remembered()).items()},
        "env_returns": torch.as_tensor(env._returns),
        "env_terms": {name: torch.as_tensor(values) for name, values in env._terms.items()},
        "extra": dict(extra),
    }
    replace_file(folder / CHECKPOINT_FILE, lambda file: torch.save(content, file))


def _arrays(state: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of a state by name; states within it are gone through, their names joined by dots."""
    found: dict[str, np.ndarray] = {}
    for field in fields(state):
        value, name = getattr(state, field.name), f"{prefix}{field.name}"
        found |= _arrays(value, f"{name}.") if is_dataclass(value) else {name: value}
    return found


def _like(present: Any, stored: Mapping[str, np.ndarray], prefix: str = "") -> Any:
    """A state of the present one's kind from what `_arrays` gave."""
    values = {}
    for field in fields(present):
        now, name = getattr(present, field.name), f"{prefix}{field.name}"
        if is_dataclass(now):
            values[field.name] = _like(now, stored, f"{name}.")
            continue
        if stored[name].shape != np.shape(now):
            raise ValueError(f"{name} must have shape {np.shape(now)}, got {stored[name].shape}")
        values[field.name] = stored[name]
    return type(present)(**values)


def restore_checkpoint(folder: Path, model: OnPolicyAlgorithm, env: RowVecEnv) -> dict[str, Any]:
    """Put model, environment and random generators back to the checkpoint; what `save_checkpoint` got as ``extra``.

    Raises:
        ConfigError: no checkpoint. DataError: a broken one, or one of another model or environment.
    """
    path = folder / CHECKPOINT_FILE
    content = load_weights(path)
    try:
        _restore_model(content, model)
        _restore_env(content, env)
        _restore_random(content)
        return dict(content["extra"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        first = str(error).splitlines()[0] if str(error) else ""
        raise DataError(
            f"{path}: is no checkpoint of this run ({type(error).__name__}: {first}); remove {folder} and train again"
        ) from None


def _restore_model(content: Mapping[str, Any], model: OnPolicyAlgorithm) -> None:
    model.policy.load_state_dict(content["policy"])
    model.policy.optimizer.load_state_dict(content["optimizer"])
    model.num_timesteps, model._n_updates = content["num_timesteps"], content["n_updates"]
    model._last_obs = content["last_observation"].numpy()
    model._last_episode_starts = content["episode_starts"].numpy()


def _restore_env(content: Mapping[str, Any], env: RowVecEnv) -> None:
    stored = {name: values.numpy() for name, values in content["env_state"].items()}
    env.remember(_like(env.remembered(), stored))
    env.batch.rng = np.random.default_rng()
    env.batch.rng.bit_generator.state = json.loads(content["env_rng"])
    env._returns = content["env_returns"].numpy()
    env._terms = {name: values.numpy() for name, values in content["env_terms"].items()}


def _restore_random(content: Mapping[str, Any]) -> None:
    keys, rest = content["numpy_rng"]["keys"].numpy().astype(np.uint32), content["numpy_rng"]["rest"]
    np.random.set_state(("MT19937", keys, *rest))  # noqa: NPY002
    version, internal, gauss = json.loads(content["python_rng"])
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(content["torch_rng"])
