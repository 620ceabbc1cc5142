"""The environment of fast charging, its vector forms and its pool, as a user meets them."""

import builtins
import copy
import dataclasses
import pickle
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fast_fixtures import Request, fast_hand_day, fast_scenario
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from evcs_gym.envs import ConfigError, DataError, Scenario
from evcs_gym.envs.fleet import fast, fast_kernels, fast_pool
from evcs_gym.envs.fleet.fast_batch import TERMS, FastBatch
from evcs_gym.envs.fleet.fast_env import FastChargingEnv
from evcs_gym.envs.fleet.fast_observation import (
    COMMON,
    PER_STATION,
    fast_observation_page,
    feature_slices,
    observation_space,
)
from evcs_gym.envs.fleet.fast_vector import FastChargingVectorEnv
from evcs_gym.envs.units import N_SLOTS

POOL_DAYS = 4
ID = "evcs/FastCharging-v0"


@pytest.fixture(scope="module")
def city() -> Scenario:
    """Two stations and some hundred cars."""
    return fast_scenario()


@pytest.fixture
def env(city: Scenario) -> FastChargingEnv:
    """One environment, not reset."""
    return FastChargingEnv(city, pool_days=POOL_DAYS)


def choices(masks: np.ndarray, step: int) -> np.ndarray:
    """An allowed action of every row, drawn from the number of the row's step."""
    draw = np.random.default_rng(step).random(len(masks))
    return (np.cumsum(masks, axis=1) > (draw * masks.sum(axis=1))[:, None]).argmax(axis=1)


def day_of(env: FastChargingEnv, **reset: Any) -> list[tuple[Any, ...]]:
    """Everything that a day returns, the reset's first; the first allowed station each time."""
    steps: list[tuple[Any, ...]] = [env.reset(**reset)]
    while len(steps) == 1 or not steps[-1][2]:
        steps.append(env.step(int(env.action_masks().argmax())))
    return steps


def test_environment_stands_gymnasiums_checker(city: Scenario) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = gym.make(ID, scenario=city, pool_days=POOL_DAYS)
        check_env(made.unwrapped, skip_render_check=True)
    assert made.spec is not None
    assert made.spec.max_episode_steps is None


def test_environment_stands_stable_baselines3s_checker(env: FastChargingEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env_sb3(env, skip_render_check=True)


def test_a_day_has_a_step_for_every_request(env: FastChargingEnv, city: Scenario) -> None:
    day = city.day(2, "test")
    steps = day_of(env, options={"day": day})
    assert len(steps) == 1 + len(fast.requests_of(day))
    assert [step[2] for step in steps[1:]] == [False] * (len(steps) - 2) + [True]
    assert not any(step[3] for step in steps[1:])
    for observation, *_ in steps:
        assert env.observation_space.contains(observation)
    infos = [step[4] for step in steps[1:]]
    for (_, reward, *_), info in zip(steps[1:], infos, strict=True):
        assert info["cost_eur"] == pytest.approx(-reward) == pytest.approx(sum(info[term] for term in TERMS))
        assert info["n_replaced"] == 0
    plan = np.array([info["station"] for info in infos])
    result = fast.replay(city, day, plan)
    assert sum(info["cost_eur"] for info in infos) == pytest.approx(result.cost_eur, abs=1e-9)
    assert infos[-1]["beyond_kwh"] == pytest.approx(result.beyond_kwh.sum())
    assert sum(info["n_slots"] for info in infos) == N_SLOTS - fast.requests_of(day).slot[0]
    assert np.array_equal([info["slot"] for info in infos], fast.requests_of(day).slot)


def test_what_is_not_allowed_is_replaced_by_the_nearest_and_told(city: Scenario, env: FastChargingEnv) -> None:
    near = Request(slot=3, distance_km=(5.0, 100.0))  # the quick station is out of reach
    far = Request(slot=3, soc0_frac=0.01)
    env.reset(options={"day": fast_hand_day(city, near, near, near, near, far)})
    told = []
    for action in (1, 2, 0, 0, 0):
        *_, info = env.step(action)
        told.append((info["station"], info["n_replaced"]))
    assert told == [(0, 1), (0, 1), (0, 0), (2, 1), (2, 1)]  # three plugs, then nothing is left


def test_seeds_name_days_and_equal_seeds_give_equal_trajectories(env: FastChargingEnv, city: Scenario) -> None:
    first, again = day_of(env, seed=3), day_of(env, seed=3)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:] == other[1:]
    assert env.day.seed == first[0][1]["day_seed"]
    np.testing.assert_array_equal(env.reset(options={"day": env.day})[0], first[0][0])
    seeds = {env.reset()[1]["day_seed"] for _ in range(20)}
    assert seeds == set(range(POOL_DAYS))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copy_goes_on_as_the_original_would(env: FastChargingEnv, clone: Any) -> None:
    env.reset(seed=1)
    for _ in range(5):
        env.step(int(env.action_masks().argmax()))
    twin = clone(env)
    before = {name: len(getattr(fast_kernels, name).signatures) for name in ("advance", "observe", "feed", "judge")}
    ended = False
    while not ended:
        action = int(env.action_masks().argmax())
        one, other = env.step(action), twin.step(action)
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:] == other[1:]
        ended = one[2]
    assert env.reset()[1] == twin.reset()[1]  # the generator was copied too
    with pytest.raises(ValueError, match="read-only"):
        twin.world.days.base_kw[0, 0, 0] = 0.0
    # no layout of copied arrays makes a kernel compile again, which takes seconds
    assert {name: len(getattr(fast_kernels, name).signatures) for name in before} == before


@pytest.mark.parametrize(
    ("action", "complaint"),
    [
        (3, r"the action must be a station 0\.\.1 or 2, stranded, got 3"),
        (-1, r"the action must be a station 0\.\.1 or 2, stranded, got -1"),
        (0.0, r"the action must be whole numbers of shape \(\), got float64"),
        ([0], r"the action must be whole numbers of shape \(\), got int64 \(1,\)"),
    ],
)
def test_impossible_action_is_refused_and_the_day_goes_on(env: FastChargingEnv, action: Any, complaint: str) -> None:
    env.reset(seed=0)
    with pytest.raises(DataError, match=complaint):
        env.step(action)
    assert env.state is not None
    assert env.state.request.tolist() == [0]
    env.step(0)


def test_days_and_arguments_are_checked(env: FastChargingEnv, city: Scenario, small_scenario: Scenario) -> None:
    for call in (env.action_masks, env.view, lambda: env.step(0)):
        with pytest.raises(ConfigError, match=r"no day yet; call reset\(\) first"):
            call()
    with pytest.raises(ConfigError, match=r"day train/0 has no request for fast charging, there is nothing to decide"):
        env.reset(options={"day": fast_hand_day(city)})
    with pytest.raises(DataError, match="must be one of a scenario with fast_charging"):
        env.reset(options={"day": small_scenario.day(0)})
    day_of(env, seed=0)
    with pytest.raises(ConfigError, match=r"the day is over; call reset\(\) before the next step"):
        env.step(0)
    with pytest.raises(ConfigError, match="the day of row 0 is over; there is nothing to be sent"):
        env.view()
    with pytest.raises(ConfigError, match="pool_days must be at least 1, got 0"):
        FastChargingEnv(city, pool_days=0)
    with pytest.raises(ConfigError, match="fast_charging is no section of this scenario; add fast_charging and roads"):
        FastChargingEnv(small_scenario)
    with pytest.raises(ConfigError, match="number of environments must be at least 1, got 0"):
        FastChargingVectorEnv(0, city, pool_days=1)
    with pytest.raises(ConfigError, match="the day of seed 0 has no request for fast charging"):
        FastBatch(fast.make_fast_world(city, [fast_hand_day(city)]), 1)


# ------------------------------------------------------------------------------------------------------- vector form


def make_vector(scenario: Scenario, n: int) -> FastChargingVectorEnv:
    """The vector environment through Gymnasium's registry."""
    made = gym.make_vec(ID, num_envs=n, scenario=scenario, pool_days=POOL_DAYS)
    assert isinstance(made, FastChargingVectorEnv)
    return made


@pytest.mark.parametrize("n", [3, 70])
def test_rows_are_the_environment_alone_in_any_batch(city: Scenario, n: int) -> None:
    """Row 0 is the environment alone, over several days of different lengths; 70 rows spread over threads."""
    alone, batch = FastChargingEnv(city, pool_days=POOL_DAYS), make_vector(city, n)
    first, info = alone.reset(seed=11)
    together, infos = batch.reset(seed=11)
    np.testing.assert_array_equal(first, together[0])
    assert info["day_seed"] == infos["day_seed"][0]
    rng, n_ended = np.random.default_rng(0), 0
    for _ in range(4 * int(batch.batch.world.n_requests.max())):
        masks = batch.action_masks()
        assert np.array_equal(alone.action_masks(), masks[0])
        actions = choices(masks, int(rng.integers(1 << 30)))
        seen, reward, ended, _, info = alone.step(actions[0])
        rows, rewards, row_ended, truncated, infos = batch.step(actions)
        assert (ended, reward) == (row_ended[0], rewards[0])
        assert not truncated.any()
        for term in ("cost_eur", *TERMS, "delivered_kwh", "station"):
            assert infos[term][0] == info[term]
        if ended:
            np.testing.assert_array_equal(infos["final_obs"][0], seen)
            assert infos["final_info"]["beyond_kwh"][0] == info["beyond_kwh"]
            seen, _ = alone.reset()
            n_ended += 1
        np.testing.assert_array_equal(seen, rows[0])
    assert n_ended >= 3


def test_reset_mask_starts_days_in_the_marked_rows_alone(city: Scenario) -> None:
    vector = make_vector(city, 3)
    with pytest.raises(ConfigError, match="the environments have no day yet"):
        vector.reset(options={"reset_mask": np.array([True, False, False])})
    vector.reset(seed=0)
    for step in range(4):
        before, *_ = vector.step(choices(vector.action_masks(), step))
    after, _ = vector.reset(options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert vector.batch.running().request.tolist() == [4, 0, 4]
    assert vector.view().allowed.shape == (3, 3)


# ---------------------------------------------------------------------------------------------- the pool and the table


def test_pool_comes_back_from_disk_equal(city: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVCS_GYM_CACHE", str(tmp_path))
    made = fast_pool.load_fast_pool(city, "test", 3)
    monkeypatch.setattr(Scenario, "days", lambda *_: pytest.fail("the pool was made anew"))
    read = fast_pool.load_fast_pool(city, "test", 3)
    for name, array in made.days._asdict().items():
        np.testing.assert_array_equal(array, getattr(read.days, name), err_msg=name)
        assert not getattr(read.days, name).flags.writeable
    for name in ("seed", "source_pu", "capacitor_step"):
        np.testing.assert_array_equal(getattr(made, name), getattr(read, name))


def test_days_without_requests_do_not_enter_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVCS_GYM_CACHE", str(tmp_path))
    few = fast_scenario(n_cars=(4, 0))
    world = fast_pool.load_fast_pool(few, "train", 2)
    lengths = [len(fast.requests_of(few.day(seed))) for seed in range(int(world.seed.max()) + 1)]
    assert min(lengths) == 0
    assert world.seed.tolist() == np.flatnonzero(lengths)[:2].tolist()
    env = FastChargingEnv(few, pool_days=2)
    _, info = env.reset(seed=0)
    assert env.day.seed == info["day_seed"]
    with pytest.raises(ConfigError, match=r"1 days with a request .* needed, the first 21 seeds give 0; raise"):
        fast_pool.load_fast_pool(fast_scenario(n_cars=(1, 0)), "train", 1)


def test_reset_reads_no_file_and_solves_no_power_flow(env: FastChargingEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    env.reset(seed=0)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("reset must take its day from memory")

    for place, name in ((builtins, "open"), (np, "load"), (fast, "power_flow"), (Scenario, "day"), (Scenario, "days")):
        monkeypatch.setattr(place, name, forbidden)
    for _ in range(3):
        env.reset()


def test_table_of_the_observation_fits_the_kernel() -> None:
    assert sum(feature.size for feature in COMMON) == fast_kernels.N_COMMON
    assert sum(feature.size for feature in PER_STATION) == fast_kernels.N_PER_STATION
    assert observation_space(5).shape == (fast_kernels.n_features(5),)
    page = fast_observation_page()
    for feature in (*COMMON, *PER_STATION):
        assert f"| `{feature.name}` | {feature.unit} | {feature.meaning} |" in page


def test_observation_by_hand(city: Scenario, env: FastChargingEnv) -> None:
    # Two requests in slot 3; the first goes to the slow station: 20 kW now and for four slots, 2 kW in a fifth.
    day = fast_hand_day(city, Request(slot=3), Request(slot=3, soc0_frac=0.1), dg_kw=60.0)
    env.reset(options={"day": day})
    seen, *_ = env.step(0)
    slow, quick = (
        {name: seen[place].tolist() for name, place in feature_slices(station).items()} for station in (0, 1)
    )
    assert slow["time"][0] == pytest.approx(3 / 48)
    assert (slow["requests_slot"], slow["requests_waiting"]) == ([1.0], [0.5])
    assert slow["energy_missing"] == pytest.approx([45 / 50])
    assert slow["energy_spare"] == pytest.approx([5 / 50])
    assert slow["reach"] == pytest.approx([2.5])
    assert slow["price"] == pytest.approx([1.0])
    assert (slow["allowed"], quick["allowed"]) == ([1.0], [1.0])
    assert (slow["distance"], quick["distance"]) == ([0.5], [1.0])
    assert slow["drive_energy"] == pytest.approx([0.5])
    assert (slow["plugs_free"], quick["plugs_free"]) == (pytest.approx([2 / 3]), [1.0])
    assert (slow["net_load"], quick["net_load"]) == (pytest.approx([-0.3]), pytest.approx([-0.5]))
    assert slow["charging"] == pytest.approx([0.2])
    assert slow["charging_ahead"] == pytest.approx([0.2, 0.2, 0.02, 0.0])
    assert slow["net_load_ahead"] == pytest.approx([-0.3, -0.3, -0.48, -0.5])
    # quick: 47 kWh are 94 kW, of which 50 kW fill the surplus: -50 + 44 kW at 0.1 EUR/kW; 2 kWh to drive at 0.1, 2/2
    assert quick["cost_now"] == pytest.approx([-0.6 + 0.2], abs=1e-6)
    assert quick["cost_foreseen"] == pytest.approx(quick["cost_now"])
    # slow: 46 kWh are four slots of 20 kW and one of 12, all inside the surplus
    assert slow["cost_now"] == pytest.approx([-2.0 + 0.1])
    assert slow["cost_foreseen"] == pytest.approx([-9.2 + 0.1])


def test_forecasts_grow_wrong_with_lead_time_and_the_present_is_true(city: Scenario) -> None:
    day = fast_hand_day(city, Request(slot=3), base_kw=50.0, dg_kw=0.0)
    error = np.full((N_SLOTS, 2), 10.0)
    growth = np.where(np.arange(N_SLOTS) > 0, 0.5, 0.0)
    wrong = dataclasses.replace(day.forecast, growth_frac=growth, fast_base_kw=error)
    world = fast.make_fast_world(city, [dataclasses.replace(day, forecast=wrong)])
    seen = fast.view(world, fast.initial_state(world, np.zeros(1, dtype=np.int64)))
    assert seen.base_kw[0, :, 0].tolist() == [50.0] * 4 + [55.0] * 44
    observed = fast.observe(world, fast.initial_state(world, np.zeros(1, dtype=np.int64)))[0]
    places = feature_slices(0)
    assert observed[places["net_load"]] == pytest.approx([0.5])
    assert observed[places["net_load_ahead"]] == pytest.approx([0.55] * 4)
