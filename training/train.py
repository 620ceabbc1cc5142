"""Train a policy from a preset: seeds, run folders, validation, interruption and resumption."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.scenario import Scenario, load_scenario
from evcs_gym.envs.specs import validated
from evcs_gym.training.callbacks import Progress, RunCallback, Validation
from evcs_gym.training.checkpoint import (
    CHECKPOINT_FILE,
    POLICY_FILE,
    RUN_FILE,
    RunInfo,
    load_weights,
    read_run,
    restore_checkpoint,
    write_run,
)
from evcs_gym.training.config import Preset, ProblemName, load_preset
from evcs_gym.training.imitation import clone, fit_critic
from evcs_gym.training.problems import PROBLEMS
from evcs_gym.training.provenance import config_hash, provenance
from evcs_gym.training.vec_env import NormalChargingVecEnv, RowVecEnv

Listener = Callable[[int, Progress], None]


@dataclass(frozen=True, eq=False)
class Course:
    """What all seeds of a run share: preset, scenario, days to learn on and days to be judged on."""

    preset: Preset
    scenario: Scenario
    world: Any
    validation: Validation


def make_model(preset: Preset, env: RowVecEnv, seed: int | None) -> OnPolicyAlgorithm:
    """PPO with the preset's hyper-parameters; a seed also seeds the global random generators."""
    spec, problem = preset.ppo, PROBLEMS[preset.problem]
    span = spec.learning_rate_start - spec.learning_rate_end
    policy, policy_kwargs = problem.network(preset)
    model = problem.algorithm(
        policy,
        env,
        learning_rate=lambda left: spec.learning_rate_end + span * left,
        n_steps=spec.n_steps,
        batch_size=spec.batch_size,
        n_epochs=spec.n_epochs,
        gamma=spec.gamma,
        gae_lambda=spec.gae_lambda,
        clip_range=spec.clip_range,
        ent_coef=spec.entropy_coefficient,
        vf_coef=spec.value_coefficient,
        max_grad_norm=spec.max_gradient_norm,
        policy_kwargs=policy_kwargs,
        seed=seed,
        device="cpu",
    )
    if isinstance(env.action_space, spaces.Discrete):
        return model
    n_actions = len(model.policy.log_std)
    if spec.log_std_final is not None:
        _log_std(spec.log_std_final, n_actions)
    with torch.no_grad():
        model.policy.log_std.copy_(_log_std(spec.log_std_initial, n_actions))
    model.policy.log_std.requires_grad_(spec.log_std_final is None)  # else by schedule, see RunCallback.explore
    return model


def _log_std(value: float | tuple[float, ...], n_actions: int) -> torch.Tensor:
    """One number for each number of an action.

    Raises:
        ConfigError: another count of them.
    """
    if isinstance(value, tuple) and len(value) != n_actions:
        raise ConfigError(f"ppo.log_std_initial and log_std_final need 1 or {n_actions} numbers, got {len(value)}")
    return torch.as_tensor(value).expand(n_actions)


def make_validation(scenario: Scenario, n_days: int, problem: ProblemName = "normal_charging") -> Validation:
    """The first days of the validation split, with their naive costs and proven bounds where these are defined."""
    record = PROBLEMS[problem]
    known = None if record.references is None else record.references(scenario, "validation", range(n_days))
    days = scenario.days(range(n_days), "validation")
    return Validation(record.world(scenario, days), known, record.facts(days))


def run_folder(root: Path, seed: int) -> Path:
    """Folder of one seed of a run."""
    return root / f"seed-{seed}"


def train(
    preset: str | Path | Preset,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    run_dir: Path | str = "runs/train",
    listener: Listener = lambda _seed, _progress: None,
) -> list[Path]:
    """Train one policy per seed; a run that was interrupted goes on, a finished one is left as it is.

    Args:
        preset: name of a shipped preset, path of a YAML file, or the record itself.
        overrides: ``key=value`` assignments, dots go into sections.
        run_dir: folder of the run; each seed gets ``seed-N`` in it.
        listener: called with (seed, progress) between rollouts.

    Returns:
        The run folders of the seeds, in order.

    Raises:
        ConfigError: bad preset or seed, or a folder that holds a run with other settings; before anything long begins.
        DataError: a broken run folder, or one that cannot be written.
    """
    record = preset if isinstance(preset, Preset) else load_preset(preset, list(overrides))
    for seed in seeds:
        if seed < 0:
            raise ConfigError(f"a training seed must be an integer >= 0, got {seed}")
    scenario = load_scenario(record.scenario)
    folders = [run_folder(Path(run_dir), seed) for seed in seeds]
    found = [continues(folder, record, scenario, seed) for folder, seed in zip(folders, seeds, strict=True)]
    open_runs = {
        seed: folder
        for seed, folder, info in zip(seeds, folders, found, strict=True)
        if info is None or not info.finished
    }
    if open_runs:
        validation = make_validation(scenario, record.validation.n_days, record.problem)
        pool = PROBLEMS[record.problem].pool(scenario, "train", record.pool_days)
        course = Course(record, scenario, pool, validation)
        with one_thread():
            for seed, folder in open_runs.items():
                _train_seed(course, seed, folder, listener)
    return folders


@contextmanager
def one_thread() -> Iterator[None]:
    """The matrices are small: one thread is faster than two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def continues(folder: Path, preset: Preset, scenario: Scenario, seed: int) -> RunInfo | None:
    """The record of a run in the folder, checked to be the same run; None if the folder is free."""
    if not (folder / RUN_FILE).exists():
        return None
    info = read_run(folder)
    before, now = _flat(info.preset), _flat(preset.model_dump(mode="json"))
    before["seed"], now["seed"] = info.seed, seed
    before["scenario_hash"] = info.provenance.get("scenario_hash")
    now["scenario_hash"] = config_hash(scenario.model_dump_json(by_alias=True))
    changed = [
        f"{key}: {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{folder}: holds a run with other settings ({'; '.join(changed)}); choose another run folder or remove it"
        )
    return info


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    out: dict[str, Any] = {}
    for key, value in content.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def _train_seed(course: Course, seed: int, folder: Path, listener: Listener) -> None:
    preset = course.preset
    write_run(folder, _info(course, seed))
    set_random_seed(seed)
    env = PROBLEMS[preset.problem].env(course.world, preset.n_envs, preset)
    model = make_model(preset, env, seed)
    callback = RunCallback(folder, seed, env, course.validation, preset, lambda progress: listener(seed, progress))
    resumed = (folder / CHECKPOINT_FILE).exists()
    if resumed:
        env.reset()
        callback.resume(restore_checkpoint(folder, model, env))
    elif isinstance(env, NormalChargingVecEnv) and isinstance(model, PPO) and preset.clone is not None:
        begin = time.perf_counter()
        _clone(preset, model, env, seed)
        callback.seconds_before = time.perf_counter() - begin
    logger = _logger(folder, model.num_timesteps + 1 if resumed else 0)
    model.set_logger(logger)
    try:
        left = preset.total_steps - model.num_timesteps
        model.learn(left, callback=callback, reset_num_timesteps=not resumed, log_interval=1)
    finally:
        logger.close()
    write_run(folder, _info(course, seed, callback))
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def _info(course: Course, seed: int, done: RunCallback | None = None) -> RunInfo:
    preset = course.preset
    return RunInfo(
        preset=preset.model_dump(mode="json"),
        seed=seed,
        kind="learned" if preset.clone is None else "cloned, then learned",
        provenance=provenance(preset.model_dump_json(), course.scenario.model_dump_json(by_alias=True)),
        finished=done is not None,
        captured_validation=None if done is None else done.best_captured,
        seconds=0.0 if done is None else round(done.seconds, 1),
    )


def _logger(folder: Path, first_step: int) -> Logger:
    """TensorBoard events of a run; those that an interrupted run wrote from ``first_step`` on are no longer shown."""
    output = TensorBoardOutputFormat(str(folder))
    writer: Any = output.writer.file_writer
    writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), first_step)
    return Logger(str(folder), [output])


def _clone(preset: Preset, model: PPO, env: NormalChargingVecEnv, seed: int) -> None:
    if preset.clone is None:
        return
    rng = np.random.default_rng([seed, 1])
    clone(model, env.batch.world, preset.clone, rng)
    if preset.clone.critic_steps > 0:
        fit_critic(model, env, preset.clone, rng)


def load_policy(folder: Path | str, scenario: Scenario) -> Any:
    """The best policy of a run folder as `rollout` takes it: a `Policy`, in the market a `MarketPolicy`.

    Raises:
        ConfigError: no run, no model, or another number of charging buses than a joint policy was trained for.
        DataError: a broken file.
    """
    path = Path(folder)
    info = read_run(path)
    try:
        preset = validated(Preset, info.preset, f"{path / RUN_FILE}: preset")
    except ConfigError as error:
        raise DataError(f"{error}; train the policy again") from None
    weights = load_weights(path / POLICY_FILE)
    problem = PROBLEMS[preset.problem]
    unused = preset.ppo.model_copy(update={"n_steps": 2, "batch_size": 2})  # of a model that does not learn: kept small
    env = problem.env(problem.world(scenario, [scenario.day(0)]), 1, preset)
    model = make_model(preset.model_copy(update={"ppo": unused}), env, None)
    try:
        model.policy.load_state_dict(weights)
    except (TypeError, AttributeError):
        raise DataError(f"{path / POLICY_FILE}: must hold the weights of a policy; train the policy again") from None
    except RuntimeError as error:
        raise ConfigError(f"{path}: the policy does not fit {scenario.name!r}: {str(error).splitlines()[0]}") from None
    return problem.policy(model, env.batch.world, preset)
