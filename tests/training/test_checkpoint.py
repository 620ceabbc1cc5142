"""Run folders: whole or not at all, plain data only, and every fault named."""

import json
import os
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from training_fixtures import tiny_preset

from evcs_gym.envs import Scenario
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.files import replace_file
from evcs_gym.envs.fleet.normal import World, make_world
from evcs_gym.training import checkpoint
from evcs_gym.training.checkpoint import (
    CHECKPOINT_FILE,
    POLICY_FILE,
    RUN_FILE,
    RunInfo,
    load_weights,
    read_run,
    restore_checkpoint,
    save_checkpoint,
    save_policy,
    write_run,
)
from evcs_gym.training.train import load_policy, make_model
from evcs_gym.training.vec_env import NormalChargingVecEnv


@pytest.fixture
def info(city_file: Path) -> RunInfo:
    preset = tiny_preset(city_file).model_dump(mode="json")
    return RunInfo(preset=preset, seed=3, kind="learned", provenance={"python": "3.11"})


# --- the record ---------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was(tmp_path: Path, info: RunInfo) -> None:
    done = info.model_copy(update={"finished": True, "captured_validation": 0.9, "seconds": 12.5})
    for record in (info, done):
        write_run(tmp_path / "run", record)
        assert read_run(tmp_path / "run") == record


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: there is no such run folder; give the folder"):
        read_run(tmp_path / "nowhere")


def test_a_folder_without_a_record(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no run.json, so it is no run folder"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{half", "run.json: cannot be read as a run record .*; train the policy again"),
        (b"\xff\xfe", "cannot be read as a run record"),
        (b"[1, 2]", "must be a run record of format 1"),
        (b"{}", "must be a run record of format 1"),
        (b'{"format": 7}', "must be a run record of format 1"),
        (b'{"format": 1}', "run.json: preset is missing"),
        (b'{"format": 1, "preset": {}, "seed": "x", "kind": "learned", "provenance": {}}', "seed: .*got 'x'"),
        (b'{"format": 1, "preset": {}, "seed": 1, "kind": "stolen", "provenance": {}}', "kind: .*got 'stolen'"),
        (
            b'{"format": 1, "preset": {}, "seed": 1, "kind": "learned", "provenance": {}, "sed": 1}',
            "sed is no known key",
        ),
    ],
)
def test_a_broken_record(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / RUN_FILE).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_run(tmp_path)


# --- atomic writes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, fault: type[BaseException]) -> None:
    path = tmp_path / "file"
    replace_file(path, lambda file: file.write(b"old"))

    def fail(file: IO[bytes]) -> None:
        file.write(b"half of the n")
        raise fault

    with pytest.raises(fault):
        replace_file(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"run.json: cannot be written \(.*\); choose another folder"):
        replace_file(tmp_path / "file" / RUN_FILE, lambda file: file.write(b""))


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", lambda file: file.write(b""))
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


# --- weights ------------------------------------------------------------------------------------------------


class Bomb:
    """What a hostile file would run when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["pickle", "torch"])
@pytest.mark.parametrize("name", [POLICY_FILE, CHECKPOINT_FILE])
def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path, how: str, name: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / name
    if how == "pickle":
        path.write_bytes(pickle.dumps({"weights": Bomb(trace)}))
    else:
        torch.save({"weights": Bomb(trace)}, path)
    with pytest.raises(DataError, match=r"cannot be read as weights .*train again") as caught:
        load_weights(path)
    assert not trace.exists()
    assert "weights_only" not in str(caught.value)  # torch advises to load it with pickle
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.is_dir()  # the bomb is one


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 half a zip"])
def test_a_corrupt_file_of_weights(tmp_path: Path, content: bytes) -> None:
    (tmp_path / POLICY_FILE).write_bytes(content)
    with pytest.raises(DataError, match=r"policy.pt: cannot be read as weights"):
        load_weights(tmp_path / POLICY_FILE)


def test_a_run_without_a_model(tmp_path: Path, info: RunInfo, city: Scenario) -> None:
    write_run(tmp_path, info)
    with pytest.raises(ConfigError, match=r"holds no policy.pt: the run has no model \(yet\); train it to the end"):
        load_policy(tmp_path, city)


def test_weights_of_something_else(tmp_path: Path, info: RunInfo, city: Scenario) -> None:
    write_run(tmp_path, info)
    torch.save([1, 2], tmp_path / POLICY_FILE)
    with pytest.raises(DataError, match=r"must hold the weights of a policy"):
        load_policy(tmp_path, city)
    torch.save({"a": torch.zeros(2)}, tmp_path / POLICY_FILE)
    with pytest.raises(ConfigError, match=r"the policy does not fit 'tiny'"):
        load_policy(tmp_path, city)


def test_a_record_with_an_older_preset(tmp_path: Path, info: RunInfo, city: Scenario) -> None:
    write_run(tmp_path, info.model_copy(update={"preset": {**info.preset, "magic": 1}}))
    with pytest.raises(DataError, match=r"preset: magic is no known key.*train the policy again"):
        load_policy(tmp_path, city)


def test_a_joint_policy_fits_its_number_of_buses_only(
    tmp_path: Path, city_file: Path, info: RunInfo, world: World, city: Scenario, shipped_scenario: Scenario
) -> None:
    preset = tiny_preset(city_file, "rows=environments")
    write_run(tmp_path, info.model_copy(update={"preset": preset.model_dump(mode="json")}))
    save_policy(tmp_path, make_model(preset, NormalChargingVecEnv(world, 2, "environments"), 0).policy.state_dict())
    action, _ = load_policy(tmp_path, city).predict(np.zeros((5, 2, world_features(world))), deterministic=True)
    assert action.shape == (5, 2)
    with pytest.raises(ConfigError, match=r"the policy does not fit 'ieee33_residential'"):
        load_policy(tmp_path, shipped_scenario)


def world_features(world: World) -> int:
    return NormalChargingVecEnv(world, 1).observation_space.shape[0]  # type: ignore[index]


def test_loading_a_policy_leaves_the_callers_random_numbers(
    tmp_path: Path, city_file: Path, info: RunInfo, world: World, city: Scenario
) -> None:
    write_run(tmp_path, info)
    save_policy(tmp_path, make_model(tiny_preset(city_file), NormalChargingVecEnv(world, 2), 0).policy.state_dict())
    np.random.seed(5)  # noqa: NPY002
    wanted = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    load_policy(tmp_path, city)
    assert np.random.random() == wanted  # noqa: NPY002


# --- checkpoints --------------------------------------------------------------------------------------------


def started(city_file: Path, world: World, n_envs: int = 4) -> tuple[Any, NormalChargingVecEnv]:
    env = NormalChargingVecEnv(world, n_envs)
    model = make_model(tiny_preset(city_file), env, 0)
    model._last_obs = env.reset()
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    return model, env


def test_a_checkpoint_brings_everything_back(tmp_path: Path, city_file: Path, world: World) -> None:
    model, env = started(city_file, world)
    for _ in range(5):
        model._last_obs = env.step(np.full((env.num_envs, 1), 0.3))[0]
    save_checkpoint(tmp_path, model, env, {"n_rollouts": 5})
    wanted = (torch.rand(3), np.random.random(3), env.batch.rng.random(3), env.step(np.zeros((8, 1))))  # noqa: NPY002
    other, twin = started(city_file, world)
    assert restore_checkpoint(tmp_path, other, twin) == {"n_rollouts": 5}
    got = (torch.rand(3), np.random.random(3), twin.batch.rng.random(3), twin.step(np.zeros((8, 1))))  # noqa: NPY002
    for one, two in zip(wanted[:3], got[:3], strict=True):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(wanted[3][:3], got[3][:3], strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(model._last_obs, other._last_obs)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, city_file: Path, world: World, city: Scenario) -> None:
    model, env = started(city_file, world)
    save_checkpoint(tmp_path, model, env, {})
    with pytest.raises(DataError, match=r"checkpoint.pt: is no checkpoint of this run .*day must have shape"):
        restore_checkpoint(tmp_path, *started(city_file, world, n_envs=3))
    fewer = make_world(city, [min(city.days(range(4)), key=lambda day: len(day.sessions))])
    with pytest.raises(DataError, match=r"remaining_kwh must have shape"):
        restore_checkpoint(tmp_path, *started(city_file, fewer))


@pytest.mark.parametrize("content", [{}, [1, 2], {"policy": 3}])
def test_a_checkpoint_with_parts_missing(tmp_path: Path, city_file: Path, world: World, content: Any) -> None:
    torch.save(content, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(DataError, match=r"is no checkpoint of this run \(\w+: .*\); remove .* and train again"):
        restore_checkpoint(tmp_path, *started(city_file, world))


def test_a_checkpoint_that_is_missing(tmp_path: Path, city_file: Path, world: World) -> None:
    with pytest.raises(ConfigError, match=r"holds no checkpoint.pt"):
        restore_checkpoint(tmp_path, *started(city_file, world))


def test_the_record_is_strict_json(tmp_path: Path, info: RunInfo) -> None:
    write_run(tmp_path, info)
    content = json.loads((tmp_path / RUN_FILE).read_text(encoding="utf-8"))
    assert (content["format"], content["seed"]) == (checkpoint.FORMAT, 3)
