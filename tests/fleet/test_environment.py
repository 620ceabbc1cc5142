"""The Gymnasium environment, its vector form and the pool of prepared days, as a user meets them."""

import builtins
import copy
import dataclasses
import math
import os
import pickle
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from envs_fixtures import Car, hand_day, tiny_scenario
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import evcs_gym.envs
import evcs_gym.envs.grid.devices
from evcs_gym.envs import ConfigError, DataError, Day, Scenario
from evcs_gym.envs.fleet import kernels, pool
from evcs_gym.envs.fleet.env import NormalChargingEnv
from evcs_gym.envs.fleet.observation import OBSERVATION, feature_slices, observation_page, observation_space
from evcs_gym.envs.fleet.vector import NormalChargingVectorEnv
from evcs_gym.envs.pool import cache_folder
from evcs_gym.envs.units import N_SLOTS

POOL_DAYS = 4
TERMS = ("gap_eur", "energy_eur", "voltage_eur")
IDS = ("evcs/NormalCharging-v0", "evcs_gym.envs:evcs/NormalCharging-v0")


@pytest.fixture
def env(small_scenario: Scenario) -> NormalChargingEnv:
    """One environment of the small city, not reset."""
    return NormalChargingEnv(small_scenario, pool_days=POOL_DAYS)


def make_vector(scenario: Scenario, n: int, **arguments: Any) -> NormalChargingVectorEnv:
    """The vector environment through Gymnasium's registry."""
    made = gym.make_vec(IDS[0], num_envs=n, scenario=scenario, pool_days=POOL_DAYS, **arguments)
    assert isinstance(made, NormalChargingVectorEnv)
    return made


def played(env: NormalChargingEnv, actions: np.ndarray, **reset: Any) -> list[tuple[Any, ...]]:
    """Everything that a day returns, the reset's first."""
    steps: list[tuple[Any, ...]] = [env.reset(**reset)]
    steps += [env.step(action) for action in actions]
    return steps


def random_actions(seed: int, *shape: int) -> np.ndarray:
    """Uniform actions of the given shape, as a float32 policy gives them."""
    return np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)


# ------------------------------------------------------------------------------------------------- the usual contract


@pytest.mark.parametrize("name", IDS)
def test_environment_stands_gymnasiums_checker(name: str, small_scenario: Scenario) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = gym.make(name, scenario=small_scenario, pool_days=POOL_DAYS)
        check_env(made.unwrapped, skip_render_check=True)
    assert made.spec is not None
    assert made.spec.max_episode_steps is None  # the end of the day is a termination, there is no time limit


def test_environment_stands_stable_baselines3s_checker(env: NormalChargingEnv) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env_sb3(env, skip_render_check=True)
    messages = [str(warning.message) for warning in caught]
    assert all("unconventional shape" in message for message in messages), messages  # the 2-D observation


def test_every_registered_id_is_listed() -> None:
    registered = {name for name in gym.registry if name.startswith("evcs/")}
    assert registered == set(evcs_gym.envs.ENVIRONMENT_IDS)


def test_default_environment_has_eight_buses(shipped_scenario: Scenario) -> None:
    env = gym.make(IDS[0], pool_days=2)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (8,), np.float32)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (8, kernels.N_FEATURES)
    assert env.unwrapped.scenario == shipped_scenario  # type: ignore[attr-defined]
    assert isinstance(env.unwrapped.day, Day)  # type: ignore[attr-defined]


def test_a_day_has_48_steps_and_ends_in_a_termination(env: NormalChargingEnv) -> None:
    steps = played(env, random_actions(0, N_SLOTS, 2), seed=1)
    assert [step[2] for step in steps[1:]] == [False] * 47 + [True]
    assert not any(step[3] for step in steps[1:])
    for observation, *_ in steps:
        assert env.observation_space.contains(observation)
    assert steps[-1][4]["infeasible_kwh"] >= 0.0
    assert "infeasible_kwh" not in steps[-2][4]


@pytest.mark.parametrize("shifted", [False, True])
def test_info_holds_true_eur_and_named_terms_whatever_the_reward_is(small_scenario: Scenario, shifted: bool) -> None:
    env = NormalChargingEnv(small_scenario, pool_days=POOL_DAYS, reward_shift=shifted)
    plain = NormalChargingEnv(small_scenario, pool_days=POOL_DAYS)
    day, actions = small_scenario.day(3, "test"), random_actions(1, N_SLOTS, 2)
    one = played(env, actions, options={"day": day})[1:]
    true = played(plain, actions, options={"day": day})[1:]
    for (*_, info), (_, reward, _, _, expected) in zip(one, true, strict=True):
        assert info["cost_eur"] == pytest.approx(sum(info[term] for term in TERMS), abs=1e-12)
        assert info["cost_eur"] == pytest.approx(info["bus_cost_eur"].sum(), abs=1e-12)
        assert info["cost_eur"] == pytest.approx(-reward, abs=1e-12)
        assert {name: info[name] for name in TERMS} == {name: expected[name] for name in TERMS}
    rewards, costs = sum(step[1] for step in one), sum(step[4]["cost_eur"] for step in one)
    assert (rewards == pytest.approx(-costs)) is not shifted


def test_terms_of_a_slot_by_hand() -> None:
    # one car of 10 kW at 0.10 EUR/kWh: 0.50 EUR of energy; |10 + 10| and |10| kW * 0.5 h * 0.02 EUR/kWh: 0.30 EUR
    scenario = tiny_scenario()
    env = NormalChargingEnv(scenario, pool_days=1)
    env.reset(options={"day": hand_day(scenario, Car(5.0, 10.0))})
    _, reward, _, _, info = env.step(np.array([1.0, 0.0], dtype=np.float32))
    assert (info["energy_eur"], info["gap_eur"]) == (pytest.approx(0.50), pytest.approx(0.30))
    assert reward == pytest.approx(-0.80)
    assert info["bus_power_kw"].tolist() == pytest.approx([10.0, 0.0])
    assert (info["n_violations"], info["violation_pu"], info["converged"]) == (0, 0.0, True)


# ---------------------------------------------------------------------------------------------------- days and seeds


def test_any_day_through_options(env: NormalChargingEnv, small_scenario: Scenario) -> None:
    day = small_scenario.day(31, "test")
    _, info = env.reset(options={"day": day})
    assert env.day is day
    assert info == {"day_seed": 31}
    env.reset(seed=0)
    assert env.day.split == "train"


def test_day_of_the_pool_is_the_one_that_the_info_names(env: NormalChargingEnv, small_scenario: Scenario) -> None:
    observation, info = env.reset(seed=5)
    day = small_scenario.day(info["day_seed"], "train")
    assert env.day.date == day.date
    np.testing.assert_array_equal(env.reset(options={"day": day})[0], observation)


def test_same_seed_same_days_other_seed_other_days(env: NormalChargingEnv) -> None:
    env.reset(seed=11)
    first = [env.reset()[1]["day_seed"] for _ in range(12)]
    env.reset(seed=11)
    assert [env.reset()[1]["day_seed"] for _ in range(12)] == first
    env.reset(seed=12)
    assert [env.reset()[1]["day_seed"] for _ in range(12)] != first
    assert set(first) == set(range(POOL_DAYS))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copy_goes_on_as_the_original_would(env: NormalChargingEnv, clone: Any) -> None:
    actions = random_actions(2, N_SLOTS, 2)
    played(env, actions[:20], seed=3)
    twin = clone(env)
    for action in actions[20:]:
        one, other = env.step(action), twin.step(action)
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:4] == other[1:4]
    assert env.reset()[1] == twin.reset()[1]  # the generator was copied too
    with pytest.raises(ValueError, match="read-only"):
        twin.world.days.base_kw[0, 0, 0] = 0.0


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("action", "complaint"),
    [
        ([0.0], r"the action must have shape \(2,\) \(one number per charging bus\), got \(1,\)"),
        ([[0.0, 0.0]], r"the action must have shape \(2,\)"),
        (0.0, r"the action must have shape \(2,\).*got \(\)"),
        ([np.nan, 0.0], r"the action must be finite, got NaN or infinity"),
        ([np.inf, 0.0], r"the action must be finite"),
        ([0.0, -1.1], r"the action must lie in \[-1, 1\], got -1\.1; clip it"),
        (["a", "b"], r"the action must be an array of numbers of shape \(2,\)"),
        ([[0.0], [0.0, 1.0]], r"the action must be an array of numbers of shape \(2,\)"),
    ],
)
def test_impossible_action_is_refused_and_the_day_goes_on(env: NormalChargingEnv, action: Any, complaint: str) -> None:
    env.reset(seed=0)
    with pytest.raises(DataError, match=complaint):
        env.step(action)
    assert env.state is not None
    assert env.state.slot.tolist() == [0]
    env.step(np.zeros(2, dtype=np.float32))


def test_action_may_miss_the_range_by_rounding_and_is_left_as_it_was(env: NormalChargingEnv) -> None:
    env.reset(seed=0)
    action = np.array([1.0 + 5e-7, -1.0 - 5e-7])
    env.step(action)
    assert action.tolist() == [1.0 + 5e-7, -1.0 - 5e-7]


def test_step_needs_a_day_that_is_not_over(env: NormalChargingEnv) -> None:
    with pytest.raises(ConfigError, match=r"the environment has no day yet; call reset\(\) first"):
        env.step(np.zeros(2))
    with pytest.raises(ConfigError, match="no day yet"):
        _ = env.day
    with pytest.raises(ConfigError, match="no day yet"):
        env.view()
    played(env, np.zeros((N_SLOTS, 2)), seed=0)
    with pytest.raises(ConfigError, match=r"the day is over; call reset\(\) before the next step"):
        env.step(np.zeros(2))


def test_reset_options_are_checked_and_a_refused_day_leaves_the_old_one(env: NormalChargingEnv) -> None:
    env.reset(seed=0)
    date = env.day.date
    with pytest.raises(ConfigError, match=r"reset options must be among \['day', 'devices'\], got \['date'\]"):
        env.reset(options={"date": "2016-05-01"})
    with pytest.raises(ConfigError, match=r"options\['day'\] must be a Day \(scenario\.day\(seed\)\), got int"):
        env.reset(options={"day": 3})
    broken = dataclasses.replace(env.day, dg_kw=np.full((N_SLOTS, 2), np.nan))
    with pytest.raises(DataError, match="dg_kw must be finite"):
        env.reset(options={"day": broken})
    assert env.day.date == date
    env.step(np.zeros(2))


def test_arguments_are_checked(small_scenario: Scenario) -> None:
    with pytest.raises(ConfigError, match="pool_days must be at least 1, got 0"):
        NormalChargingEnv(small_scenario, pool_days=0)
    with pytest.raises(ConfigError, match="split must be one of train, validation, test, got 'all'"):
        NormalChargingEnv(small_scenario, split="all", pool_days=1)
    with pytest.raises(ConfigError, match="nothing called 'ieee34'"):
        NormalChargingEnv("ieee34")
    with pytest.raises(ConfigError, match="number of environments must be at least 1, got 0"):
        NormalChargingVectorEnv(0, small_scenario, pool_days=1)


# ------------------------------------------------------------------------------------------------------- vector form


def test_rows_of_the_vector_form_equal_single_environments(small_scenario: Scenario) -> None:
    vector = make_vector(small_scenario, 3)
    actions = random_actions(4, N_SLOTS, 3, 2)
    observation, info = vector.reset(seed=8)
    assert vector.observation_space.contains(observation)
    steps = [vector.step(action) for action in actions]
    for row, seed in enumerate(info["day_seed"]):
        single = played(
            NormalChargingEnv(small_scenario, pool_days=POOL_DAYS),
            actions[:, row],
            options={"day": small_scenario.day(int(seed))},
        )
        np.testing.assert_array_equal(observation[row], single[0][0])
        for slot, (seen, reward, ended, truncated, infos) in enumerate(steps):
            expected = single[slot + 1]
            assert reward[row] == pytest.approx(expected[1], abs=1e-12)
            assert (ended[row], truncated[row]) == expected[2:4]
            for term in ("cost_eur", *TERMS, "n_violations", "violation_pu", "converged"):
                assert infos[term][row] == pytest.approx(expected[4][term], abs=1e-12)
            last = infos["final_obs"][row] if ended[row] else seen[row]
            np.testing.assert_array_equal(last, expected[0])


def test_rows_reset_in_the_step_in_which_their_day_ends(small_scenario: Scenario) -> None:
    vector = make_vector(small_scenario, 2)
    assert vector.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    vector.reset(seed=0)
    for _ in range(N_SLOTS - 1):
        _, _, ended, _, infos = vector.step(np.zeros((2, 2)))
        assert not ended.any()
        assert "final_obs" not in infos
    seen, _, ended, truncated, infos = vector.step(np.zeros((2, 2)))
    assert ended.tolist() == [True, True]
    assert not truncated.any()
    assert infos["_final_obs"].tolist() == [True, True]
    assert [final[0, 0] for final in infos["final_obs"]] == [1.0, 1.0]  # time t / 48
    assert seen[:, 0, 0].tolist() == [0.0, 0.0]
    assert infos["_infeasible_kwh"].all()
    assert infos["final_info"]["cost_eur"].tolist() == infos["cost_eur"].tolist()
    assert infos["day_seed"].tolist() == vector.batch.running().day.tolist()
    assert vector.batch.running().slot.tolist() == [0, 0]


def test_reset_mask_starts_days_in_the_marked_rows_alone(small_scenario: Scenario) -> None:
    vector = make_vector(small_scenario, 3)
    before, _ = vector.reset(seed=0)
    for _ in range(5):
        before, *_ = vector.step(np.zeros((3, 2)))
    after, _ = vector.reset(options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert vector.batch.running().slot.tolist() == [5, 0, 5]
    for _ in range(N_SLOTS - 6):
        vector.step(np.zeros((3, 2)))
    _, _, ended, _, infos = vector.step(np.zeros((3, 2)))
    assert ended.tolist() == infos["_final_obs"].tolist() == [True, False, True]
    assert infos["final_obs"][1] is None
    assert vector.batch.running().slot.tolist() == [0, N_SLOTS - 5, 0]


@pytest.mark.parametrize("mask", [[True, False, True], [0, 1], [False, False], np.array([1.0, 0.0])])
def test_reset_mask_that_is_none_is_refused(small_scenario: Scenario, mask: Any) -> None:
    vector = make_vector(small_scenario, 2)
    vector.reset(seed=0)
    with pytest.raises(
        ConfigError, match=r"options\['reset_mask'\] must be a bool array \(2,\) with at least one True"
    ):
        vector.reset(options={"reset_mask": mask})


def test_vector_form_checks_its_input(small_scenario: Scenario) -> None:
    vector = make_vector(small_scenario, 2)
    with pytest.raises(ConfigError, match=r"the environments have no day yet; call reset\(\) first"):
        vector.step(np.zeros((2, 2)))
    with pytest.raises(ConfigError, match="the environments have no day yet"):
        vector.reset(options={"reset_mask": np.array([True, False])})
    vector.reset(seed=0)
    with pytest.raises(DataError, match=r"the action must have shape \(2, 2\)"):
        vector.step(np.zeros(2))
    with pytest.raises(ConfigError, match=r"reset options must be among \['reset_mask'\], got \['day'\]"):
        vector.reset(options={"day": small_scenario.day(0)})
    with pytest.raises(ConfigError, match=r"a list of seeds must hold integers only, got \[1, None\]"):
        vector.reset(seed=[1, None])


def test_vector_form_is_reproducible(small_scenario: Scenario) -> None:
    one, other = make_vector(small_scenario, 4), make_vector(small_scenario, 4)
    for seed in (3, [1, 2, 3, 4]):
        days = [
            np.concatenate([vector.reset(seed=seed)[1]["day_seed"], vector.reset()[1]["day_seed"]])
            for vector in (one, other)
        ]
        np.testing.assert_array_equal(*days)
    assert one.reset(seed=1)[1]["day_seed"].tolist() != one.reset(seed=2)[1]["day_seed"].tolist()


def test_vector_form_shows_views_of_all_rows(small_scenario: Scenario) -> None:
    vector = make_vector(small_scenario, 3)
    vector.reset(seed=0)
    assert vector.view().least_kw.shape == (3, 2)


def test_reward_shift_reaches_the_vector_form(small_scenario: Scenario) -> None:
    vector = make_vector(small_scenario, 2, reward_shift=True)
    vector.reset(seed=0)
    rewards, costs = np.zeros(2), np.zeros(2)
    for _ in range(N_SLOTS):
        _, reward, _, _, infos = vector.step(np.ones((2, 2)))
        rewards, costs = rewards + reward, costs + infos["cost_eur"]
    assert (np.abs(rewards + costs) > 0.01).all()


# ---------------------------------------------------------------------------------------------------------- the pool


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("EVCS_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def arrays_of(world: Any) -> Iterator[tuple[str, np.ndarray]]:
    """All arrays of a world."""
    yield from world.days._asdict().items()
    for field in dataclasses.fields(world):
        if isinstance(getattr(world, field.name), np.ndarray):
            yield field.name, getattr(world, field.name)


def test_pool_is_written_without_pickle_and_read_back_equal(
    cache: Path, small_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pool.load_pool(small_scenario, "test", 3)
    (file,) = cache.iterdir()
    with np.load(file, allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored.files)
    monkeypatch.setattr(Scenario, "days", lambda *_: pytest.fail("the pool was made anew"))
    read = dict(arrays_of(pool.load_pool(small_scenario, "test", 3)))
    for name, array in arrays_of(made):
        np.testing.assert_array_equal(array, read[name], err_msg=name)
        assert array.flags.writeable is read[name].flags.writeable is False, name
        assert array.flags.c_contiguous, name
        assert read[name].flags.c_contiguous, name
    assert not list(cache.glob("tmp*"))


def test_every_scenario_split_and_size_has_a_pool_of_its_own(cache: Path) -> None:
    for omega2, split, n_days in ((1.0, "train", 1), (2.0, "train", 1), (1.0, "test", 1), (1.0, "train", 2)):
        pool.load_pool(tiny_scenario(omega2=omega2), split, n_days)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("content", [b"", b"no archive", "truncated", "one array"])
def test_pool_that_cannot_be_read_is_made_anew_with_a_warning(
    cache: Path, small_scenario: Scenario, content: Any
) -> None:
    made = pool.load_pool(small_scenario, "train", 2)
    (file,) = cache.iterdir()
    if content == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif content == "one array":
        np.savez(file, base_kw=np.zeros(3))
    else:
        file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"pool-tiny-train-.*: cannot be read .*; the pool of days is made anew"):
        again = pool.load_pool(small_scenario, "train", 2)
    np.testing.assert_array_equal(again.need_kwh, made.need_kwh)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool.load_pool(small_scenario, "train", 2)  # the broken file was replaced


def test_cache_that_cannot_be_written_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_scenario: Scenario
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EVCS_GYM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match=r"cannot be written .*; set EVCS_GYM_CACHE to a folder that can"):
        assert pool.load_pool(small_scenario, "train", 1).n_days == 1


def test_interrupted_write_leaves_no_file(
    cache: Path, small_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.load_pool(small_scenario, "train", 1)
    assert list(cache.iterdir()) == []


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVCS_GYM_CACHE", "here")
    assert cache_folder() == Path("here")
    monkeypatch.delenv("EVCS_GYM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "there")
    assert cache_folder() == Path("there/evcs-gym")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "evcs-gym"


def test_tests_do_not_touch_the_users_cache() -> None:
    assert not Path(os.environ["EVCS_GYM_CACHE"]).is_relative_to(Path.home() / ".cache")


def test_reset_reads_no_file_and_solves_no_power_flow(env: NormalChargingEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    env.reset(seed=0)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("reset must take its day from memory")

    for place, name in ((builtins, "open"), (np, "load"), (os, "open"), (evcs_gym.envs.grid.devices, "power_flow")):
        monkeypatch.setattr(place, name, forbidden)
    monkeypatch.setattr("evcs_gym.envs.fleet.normal.power_flow", forbidden)
    monkeypatch.setattr(Scenario, "day", forbidden)
    for _ in range(3):
        env.reset()


def test_reset_takes_a_millisecond(env: NormalChargingEnv) -> None:
    env.reset(seed=0)
    seconds = []
    for _ in range(40):
        begin = time.perf_counter()
        env.reset()
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 1e-3  # the least of many: other work on the machine only adds


# -------------------------------------------------------------------------------------------- the observation's table


def test_table_of_the_observation_fits_the_kernel() -> None:
    sizes = [feature.size for feature in OBSERVATION]
    assert sum(sizes) == kernels.N_FEATURES < 100
    assert len({feature.name for feature in OBSERVATION}) == len(OBSERVATION)
    places = [place for name in feature_slices() for place in range(kernels.N_FEATURES)[feature_slices()[name]]]
    assert places == list(range(kernels.N_FEATURES))
    assert observation_space(3).shape == (3, kernels.N_FEATURES)
    assert observation_space(None).shape == (kernels.N_FEATURES,)


def test_page_of_the_observation_names_every_feature() -> None:
    page = observation_page()
    for feature in OBSERVATION:
        assert f"| `{feature.name}` | {feature.unit} | {feature.meaning} |" in page
    assert f"shape (charging buses, {kernels.N_FEATURES})" in page


def test_observation_shows_the_voltage_of_the_slot_before(env: NormalChargingEnv) -> None:
    env.reset(seed=0)
    observation, *_ = env.step(np.ones(2, dtype=np.float32))
    assert env.state is not None
    rows = env.world.charging_bus
    headroom = np.abs(env.state.voltage_pu[0, rows]) - env.world.days.vmin_pu[env.state.day[0], 1, rows]
    got = observation[:, feature_slices()["voltage_last_headroom"]][:, 0] * 0.05
    np.testing.assert_allclose(got, headroom.min(axis=1), atol=1e-6)
    assert math.isfinite(got.sum())


def test_no_layout_of_arrays_makes_the_kernels_compile_again(small_scenario: Scenario, cache: Path) -> None:
    # a compilation takes seconds: days made, read from disk, noisy, copied or pickled must look alike to the compiler
    noisy = small_scenario.model_copy(update={"forecast": small_scenario.forecast.model_copy(update={"kind": "noisy"})})
    first = NormalChargingEnv(noisy, pool_days=2)
    played(first, random_actions(0, 3, 2), seed=0)
    before = {
        name: len(getattr(kernels, name).signatures) for name in ("dispatch", "charge", "judge_voltage", "observe")
    }
    for env in (NormalChargingEnv(noisy, pool_days=2), copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        env.reset(seed=0)
        env.step(np.zeros((2, 2), order="F")[:, 0])
        env.reset(options={"day": small_scenario.day(0)})
        env.step(np.zeros(2, dtype=np.float32))
    assert {name: len(getattr(kernels, name).signatures) for name in before} == before
