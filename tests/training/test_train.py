"""Runs: what they log and keep, and that an interruption changes nothing."""

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_fixtures import CLONE, ROLLOUT, interrupt_at, tiny_preset

from evcs_gym.baselines.reference import References
from evcs_gym.baselines.registry import NAIVE_RULE, make_rule
from evcs_gym.baselines.score import rollout
from evcs_gym.envs import Scenario
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.fleet.normal import make_world
from evcs_gym.training.callbacks import Progress, RunCallback, Validation
from evcs_gym.training.checkpoint import CHECKPOINT_FILE, POLICY_FILE, RUN_FILE, load_weights, read_run
from evcs_gym.training.train import load_policy, make_model, make_validation, train
from evcs_gym.training.vec_env import NormalChargingVecEnv


def progress_rows(folder: Path) -> list[dict[str, str]]:
    """Lines of progress.csv without the wall time."""
    with (folder / "progress.csv").open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()  # type: ignore[no-untyped-call,no-any-return]


def steps_of(folder: Path, tag: str) -> list[int]:
    return [event.step for event in events(folder).Scalars(tag)]  # type: ignore[no-untyped-call]


def assert_equal(one: Any, two: Any, where: str = "") -> None:
    """Nested checkpoints are bit for bit the same, wall time aside."""
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            if key not in ("seconds", "rows"):
                assert_equal(one[key], two[key], f"{where}.{key}")
    else:
        assert one == two, where


@pytest.fixture(scope="module")
def whole(city_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seven rollouts in one go."""
    return train(tiny_preset(city_file), run_dir=tmp_path_factory.mktemp("whole"))[0]


# --- what a run leaves --------------------------------------------------------------------------------------


def test_a_run_leaves_its_record_policy_and_curve(whole: Path) -> None:
    info = read_run(whole)
    assert (info.seed, info.kind, info.finished) == (0, "learned", True)
    assert info.seconds > 0.0
    assert {"config_hash", "scenario_hash", "versions"} <= info.provenance.keys()
    assert not (whole / CHECKPOINT_FILE).exists()
    rows = progress_rows(whole)
    assert [int(row["n_steps"]) for row in rows] == [0, 2 * ROLLOUT, 4 * ROLLOUT, 6 * ROLLOUT, 7 * ROLLOUT]
    best = max(float(row["captured"]) for row in rows)
    assert info.captured_validation == pytest.approx(best, abs=1e-6)


def test_the_policy_that_is_kept_is_the_best_of_the_curve(whole: Path, city: Scenario) -> None:
    validation = make_validation(city, 2)
    kept = validation.captured(rollout(validation.world, load_policy(whole, city)))
    assert kept == pytest.approx(max(float(row["captured"]) for row in progress_rows(whole)), abs=1e-6)


def test_captured_is_zero_for_the_naive_rule_and_a_ratio_of_sums(city: Scenario) -> None:
    validation = make_validation(city, 2)
    naive = rollout(validation.world, make_rule(NAIVE_RULE))
    assert validation.captured(naive) == 0.0
    filled = rollout(validation.world, make_rule("water_filling"))
    known = validation.references
    assert known is not None
    saved = known.naive_cost_eur.sum() - filled.cost_eur.sum()
    possible = known.naive_cost_eur.sum() - known.lower_bound_eur.sum()
    assert validation.captured(filled) == pytest.approx(saved / possible)
    assert 0.0 < saved <= possible


def test_days_on_which_nothing_can_be_captured_are_refused(city: Scenario) -> None:
    validation = make_validation(city, 2)
    assert validation.references is not None
    naive_eur = validation.references.naive_cost_eur
    with pytest.raises(ConfigError, match=r"leaves nothing to capture"):
        Validation(validation.world, References(naive_eur, naive_eur))


def test_tensorboard_shows_terms_shares_and_speed(whole: Path) -> None:
    tags = set(events(whole).Tags()["scalars"])  # type: ignore[no-untyped-call]
    wanted = {"day/cost_eur", "day/gap_eur", "day/energy_eur", "day/voltage_eur", "day/n_violations"}
    wanted |= {"validation/captured", "validation/cost_eur", "validation/n_violations", "validation/gap_eur"}
    wanted |= {"time/row_steps_per_second", "train/value_loss", "train/learning_rate"}
    assert wanted <= tags
    # days last two rollouts, and validation is logged where it was judged, the last included
    assert steps_of(whole, "day/cost_eur") == [2 * ROLLOUT, 4 * ROLLOUT, 6 * ROLLOUT]
    assert steps_of(whole, "validation/captured") == [int(row["n_steps"]) for row in progress_rows(whole)]
    speed = events(whole).Scalars("time/row_steps_per_second")  # type: ignore[no-untyped-call]
    assert len(speed) == 7
    assert all(event.value > 0.0 for event in speed)
    shares = [event.value for event in events(whole).Scalars("validation/captured")]  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(shares, [float(row["captured"]) for row in progress_rows(whole)], atol=1e-6)


def test_terms_of_a_day_sum_to_its_cost(whole: Path) -> None:
    def values(tag: str) -> np.ndarray:
        return np.array([event.value for event in events(whole).Scalars(f"day/{tag}")])  # type: ignore[no-untyped-call]

    np.testing.assert_allclose(
        values("gap_eur") + values("energy_eur") + values("voltage_eur"), values("cost_eur"), rtol=1e-5
    )


def test_training_improves(city_file: Path, tmp_path: Path) -> None:
    rows = ("n_envs=32", "pool_days=16", "ppo.n_steps=48", "total_steps=36864", "validation.n_days=8")
    pace = ("ppo.batch_size=768", "ppo.n_epochs=5", "ppo.learning_rate_start=3e-3", "ppo.hidden_units=[32,32]")
    preset = tiny_preset(city_file, *rows, *pace, "validation.every_rollouts=100")
    folder = train(preset, run_dir=tmp_path)[0]
    first, last = (float(row["captured"]) for row in progress_rows(folder))
    assert last > first + 0.1  # .37 to .62 when written


def test_equal_seeds_give_equal_weights_and_others_do_not(whole: Path, city_file: Path, tmp_path: Path) -> None:
    again = train(tiny_preset(city_file), run_dir=tmp_path, seeds=(0, 1))
    assert_equal(load_weights(again[0] / POLICY_FILE), load_weights(whole / POLICY_FILE))
    assert progress_rows(again[0]) == progress_rows(whole)
    assert [folder.name for folder in again] == ["seed-0", "seed-1"]
    assert [read_run(folder).seed for folder in again] == [0, 1]
    with pytest.raises(AssertionError):
        assert_equal(load_weights(again[0] / POLICY_FILE), load_weights(again[1] / POLICY_FILE))


def test_the_listener_hears_of_every_rollout(city_file: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, Progress]] = []
    train(tiny_preset(city_file), run_dir=tmp_path, seeds=(4,), listener=lambda *news: heard.append(news))
    assert [seed for seed, _ in heard] == [4] * 7
    assert [progress.steps for _, progress in heard] == [k * ROLLOUT for k in range(7)]
    assert all(progress.total_steps == 7 * ROLLOUT for _, progress in heard)
    shares = [(progress.best_captured, progress.captured) for _, progress in heard]
    assert all(best is not None and now is not None and best >= now for best, now in shares)


def test_a_joint_policy_trains_too(city_file: Path, city: Scenario, tmp_path: Path) -> None:
    folder = train(tiny_preset(city_file, "rows=environments", "total_steps=200"), run_dir=tmp_path)[0]
    world = make_validation(city, 2).world
    assert rollout(world, load_policy(folder, city)).cost_eur.shape == (2,)


def test_the_number_of_torch_threads_is_given_back(city_file: Path, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    train(tiny_preset(city_file, "total_steps=10"), run_dir=tmp_path)
    assert torch.get_num_threads() == 2


# --- interruption -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [(0,), (2,), (3,), (5,), (1, 3, 4)])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    whole: Path, city_file: Path, tmp_path: Path, at: tuple[int, ...]
) -> None:
    preset = tiny_preset(city_file)
    for n_rollouts in at:
        with pytest.raises(KeyboardInterrupt):
            train(preset, run_dir=tmp_path, listener=interrupt_at(n_rollouts))
        assert not read_run(tmp_path / "seed-0").finished
    folder = train(preset, run_dir=tmp_path)[0]
    assert read_run(folder).finished
    assert progress_rows(folder) == progress_rows(whole)
    assert_equal(load_weights(folder / POLICY_FILE), load_weights(whole / POLICY_FILE))


def test_tensorboard_shows_each_step_of_a_resumed_run_once(whole: Path, city_file: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_preset(city_file), run_dir=tmp_path, listener=interrupt_at(5))
    time.sleep(1.1)  # event files are ordered by the second in their name
    folder = train(tiny_preset(city_file), run_dir=tmp_path)[0]
    for tag in ("day/cost_eur", "time/row_steps_per_second"):
        assert steps_of(folder, tag) == steps_of(whole, tag)
    judged = steps_of(folder, "validation/captured")
    assert sorted(set(judged)) == steps_of(whole, "validation/captured")


def test_a_resumed_run_is_the_same_inside(city_file: Path, tmp_path: Path) -> None:
    preset = tiny_preset(city_file)
    for stops, name in (((6,), "one go"), ((3, 6), "two")):
        for n_rollouts in stops:
            with pytest.raises(KeyboardInterrupt):
                train(preset, run_dir=tmp_path / name, listener=interrupt_at(n_rollouts))
    one, two = (load_weights(tmp_path / name / "seed-0" / CHECKPOINT_FILE) for name in ("one go", "two"))
    assert one["num_timesteps"] == 6 * ROLLOUT
    assert_equal(one, two)


def test_a_resumed_run_begins_at_the_checkpoint(city_file: Path, tmp_path: Path) -> None:
    preset, heard = tiny_preset(city_file), []
    with pytest.raises(KeyboardInterrupt):
        train(preset, run_dir=tmp_path, listener=interrupt_at(5))
    train(preset, run_dir=tmp_path, listener=lambda _seed, progress: heard.append(progress.steps))
    assert heard == [4 * ROLLOUT, 5 * ROLLOUT, 6 * ROLLOUT]


def test_a_best_policy_from_after_the_checkpoint_is_not_kept(city_file: Path, tmp_path: Path) -> None:
    preset = tiny_preset(city_file, "validation.every_rollouts=1", "checkpoint_every_rollouts=4")
    with pytest.raises(KeyboardInterrupt):
        train(preset, run_dir=tmp_path, listener=interrupt_at(3))
    folder = tmp_path / "seed-0"
    torch.save({"from": torch.ones(1)}, folder / POLICY_FILE)  # as if a later rollout had been the best
    with pytest.raises(KeyboardInterrupt):
        train(preset, run_dir=tmp_path, listener=interrupt_at(5))
    torch.save({"from": torch.ones(1)}, folder / POLICY_FILE)
    with pytest.raises(KeyboardInterrupt):
        train(preset, run_dir=tmp_path, listener=interrupt_at(4))
    assert "from" not in load_weights(folder / POLICY_FILE)


def test_a_clone_is_not_made_twice(city_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = tiny_preset(city_file, *CLONE)
    reference = train(preset, run_dir=tmp_path / "one go")[0]
    with pytest.raises(KeyboardInterrupt):
        train(preset, run_dir=tmp_path / "two", listener=interrupt_at(1))
    monkeypatch.setattr("evcs_gym.training.train.clone", None)
    folder = train(preset, run_dir=tmp_path / "two")[0]
    assert progress_rows(folder) == progress_rows(reference)
    assert_equal(load_weights(folder / POLICY_FILE), load_weights(reference / POLICY_FILE))


def test_a_finished_run_is_left_alone(whole: Path, city_file: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    heard: list[Progress] = []
    train(tiny_preset(city_file), run_dir=whole.parent, listener=lambda _seed, progress: heard.append(progress))
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before
    assert heard == []


# --- refusals -----------------------------------------------------------------------------------------------


def test_other_settings_are_refused_and_named(whole: Path, city_file: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"seed-0: holds a run with other settings \(ppo.gamma: 1.0, now 0.9\); choose another"
    ):
        train(tiny_preset(city_file, "ppo.gamma=0.9"), run_dir=whole.parent)


def test_a_scenario_that_has_changed_is_refused(whole: Path, city_file: Path) -> None:
    text = city_file.read_text(encoding="utf-8")
    try:
        city_file.write_text(text.replace("n_cars: 12", "n_cars: 13"), encoding="utf-8")
        with pytest.raises(ConfigError, match=r"other settings \(scenario_hash: "):
            train(tiny_preset(city_file), run_dir=whole.parent)
    finally:
        city_file.write_text(text, encoding="utf-8")


def test_all_seeds_are_checked_before_the_first_is_trained(whole: Path, city_file: Path, tmp_path: Path) -> None:
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / RUN_FILE).write_bytes((whole / RUN_FILE).read_bytes())
    with pytest.raises(ConfigError, match=r"seed-1: holds a run with other settings \(seed: 0, now 1\)"):
        train(tiny_preset(city_file), run_dir=tmp_path, seeds=(0, 1))
    assert not (tmp_path / "seed-0").exists()


def test_a_negative_seed_is_refused(city_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training seed must be an integer >= 0, got -1"):
        train(tiny_preset(city_file), run_dir=tmp_path, seeds=(-1,))


def test_a_corrupt_checkpoint_says_what_to_do(city_file: Path, tmp_path: Path) -> None:
    preset = tiny_preset(city_file)
    with pytest.raises(KeyboardInterrupt):
        train(preset, run_dir=tmp_path, listener=interrupt_at(3))
    (tmp_path / "seed-0" / CHECKPOINT_FILE).write_bytes(b"half")
    with pytest.raises(DataError, match=r"checkpoint.pt: cannot be read as weights .*remove .*seed-0 and train again"):
        train(preset, run_dir=tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(city_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be written .*choose another folder"):
        train(tiny_preset(city_file), run_dir=tmp_path / "file" / "run")


def test_exploration_falls_by_its_schedule(city: Scenario, city_file: Path, tmp_path: Path) -> None:
    preset = tiny_preset(city_file, "ppo.log_std_initial=-0.5", "ppo.log_std_final=-1.5")
    env = NormalChargingVecEnv(make_world(city, city.days(range(2))), preset.n_envs)
    model = make_model(preset, env, 0)
    assert not model.policy.log_std.requires_grad
    callback = RunCallback(tmp_path, 0, env, make_validation(city, 2), preset, lambda _progress: None)
    callback.model = model
    for done, expected in ((0, -0.5), (preset.total_steps // 2, -1.0), (preset.total_steps, -1.5)):
        callback.num_timesteps = done
        callback.explore()
        assert model.policy.log_std.item() == pytest.approx(expected, abs=1e-3)
    learned = tiny_preset(city_file, "ppo.log_std_final=null")
    assert make_model(learned, env, 0).policy.log_std.requires_grad
