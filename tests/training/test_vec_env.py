"""The native vector environment: the core's numbers in Stable-Baselines3's shapes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.fleet import normal
from evcs_gym.envs.fleet.kernels import N_FEATURES
from evcs_gym.envs.units import N_SLOTS
from evcs_gym.training.vec_env import NormalChargingVecEnv, Rows, SharedPolicy

B, C = 3, 2
FORMS: tuple[Rows, ...] = ("buses", "environments")


def made(world: normal.World, rows: Rows, **options: Any) -> NormalChargingVecEnv:
    env = NormalChargingVecEnv(world, B, rows, **options)
    env.seed(7)
    return env


def actions_of(seed: int) -> np.ndarray:
    """A day of actions, (T, B, C)."""
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (N_SLOTS, B, C))


def in_rows(env: NormalChargingVecEnv, values: np.ndarray) -> np.ndarray:
    """(B, C) as the form wants it."""
    return values.reshape(-1, 1) if env.rows == "buses" else values


@pytest.mark.parametrize("rows", FORMS)
def test_shapes_and_types_are_those_of_the_spaces(world: normal.World, rows: Rows) -> None:
    env = made(world, rows)
    n_rows, shape = (B * C, (N_FEATURES,)) if rows == "buses" else (B, (C, N_FEATURES))
    observation = env.reset()
    assert env.num_envs == n_rows
    assert env.observation_space.shape == shape
    assert env.action_space.shape == ((1,) if rows == "buses" else (C,))
    assert observation.shape == (n_rows, *shape)
    assert observation.dtype == np.float32
    observation, reward, done, infos = env.step(np.zeros((n_rows, *env.action_space.shape)))
    assert observation.shape == (n_rows, *shape)
    assert (reward.shape, reward.dtype) == ((n_rows,), np.float32)
    assert (done.shape, done.dtype) == ((n_rows,), np.bool_)
    assert len(infos) == n_rows
    assert all(env.observation_space.contains(row) for row in observation)


@pytest.mark.parametrize("rows", FORMS)
@pytest.mark.parametrize("shift", [True, False])
def test_a_day_is_the_pure_cores_day(world: normal.World, rows: Rows, shift: bool) -> None:
    env = made(world, rows, reward_shift=shift, reward_scale_per_eur=2.5)
    observation = env.reset()
    state = normal.initial_state(world, env.batch.running().day)
    for slot, action in enumerate(actions_of(0)):
        np.testing.assert_array_equal(observation, env._by_row(normal.observe(world, state)))
        after, outcome = normal.step(world, state, normal.dispatch(world, state, action))
        wanted = 2.5 * normal.reward_eur(world, state, outcome, shift)
        observation, reward, done, infos = env.step(in_rows(env, action))
        expected = wanted.reshape(-1) if rows == "buses" else wanted.sum(axis=1)
        np.testing.assert_allclose(reward, expected, rtol=1e-6, atol=1e-9)
        cost = outcome.cost_eur.reshape(-1) if rows == "buses" else outcome.cost_eur.sum(axis=1)
        np.testing.assert_allclose([info["cost_eur"] for info in infos], cost, rtol=1e-12)
        named = [info["gap_eur"] + info["energy_eur"] + info["voltage_eur"] for info in infos]
        np.testing.assert_allclose(named, cost, rtol=1e-12)
        assert done.all() == (slot == N_SLOTS - 1)
        state = after


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 1000))
def test_rewards_of_the_buses_sum_to_the_environments(world: normal.World, seed: int) -> None:
    by_bus, by_env = made(world, "buses"), made(world, "environments")
    by_bus.seed(seed)
    by_env.seed(seed)
    by_bus.reset()
    by_env.reset()
    for action in actions_of(seed)[:12]:
        one = by_bus.step(in_rows(by_bus, action))[1]
        np.testing.assert_allclose(one.reshape(B, C).sum(axis=1), by_env.step(action)[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", FORMS)
def test_the_end_of_a_day_shows_both_observations_and_the_sums(world: normal.World, rows: Rows) -> None:
    env = made(world, rows, reward_shift=False, reward_scale_per_eur=3.0)
    env.reset()
    total, cost = np.zeros(env.num_envs), np.zeros(env.num_envs)
    for action in actions_of(1):
        assert env.episode_terms == {}
        observation, reward, done, infos = env.step(in_rows(env, action))
        total += reward
        cost += [info["cost_eur"] for info in infos]
    assert done.all()
    for row, info in enumerate(infos):
        assert info["episode"]["l"] == N_SLOTS
        assert info["episode"]["r"] == pytest.approx(total[row], rel=1e-5)
        assert info["episode"]["r"] == pytest.approx(-3.0 * cost[row], rel=1e-9)
        assert info["TimeLimit.truncated"] is False
        assert info["terminal_observation"].shape == env.observation_space.shape
        assert not np.array_equal(info["terminal_observation"], observation[row])
    np.testing.assert_array_equal(env.batch.running().slot, np.zeros(B))
    np.testing.assert_allclose(env.episode_terms["cost_eur"].sum(), cost.sum(), rtol=1e-9)
    env.step(in_rows(env, actions_of(2)[0]))
    assert env.episode_terms == {}


def test_days_that_begin_at_different_times_end_alone(world: normal.World) -> None:
    env = made(world, "buses", reward_shift=False)
    env.reset()
    actions = actions_of(3)
    for action in actions[:10]:
        env.step(in_rows(env, action))
    env.batch.reset(None, np.array([False, True, False]))  # the second environment starts a day in slot 10
    for action in actions[10:]:
        _, _, done, infos = env.step(in_rows(env, action))
    np.testing.assert_array_equal(done, [True, True, False, False, True, True])
    assert ["episode" in info for info in infos] == done.tolist()
    assert env.episode_terms["cost_eur"].shape == (2,)


@pytest.mark.parametrize("rows", FORMS)
def test_a_seed_gives_the_same_days_again(world: normal.World, rows: Rows) -> None:

    def days_drawn(seed: int) -> list[list[int]]:
        env = made(world, rows)
        env.seed(seed)
        env.reset()
        days = [env.batch.running().day.tolist()]
        for _ in range(4 * N_SLOTS):
            env.step(np.zeros((env.num_envs, *env.action_space.shape)))
            days.append(env.batch.running().day.tolist())
        env.reset()
        return [*days, env.batch.running().day.tolist()]

    assert days_drawn(7) == days_drawn(7)
    assert days_drawn(7) != days_drawn(8)


@pytest.mark.parametrize("rows", FORMS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda action: action[:-1], "must have shape"),
        (lambda action: action.reshape(-1), "must have shape"),
        (lambda action: action * np.nan, "must be finite"),
        (lambda action: action + 1.5, r"must lie in \[-1, 1\], got 1.5"),
    ],
)
def test_bad_actions_are_refused(world: normal.World, rows: Rows, change: Any, message: str) -> None:
    env = made(world, rows)
    env.reset()
    wrong = change(np.zeros((env.num_envs, *env.action_space.shape)))
    with pytest.raises(DataError, match=message):
        env.step(wrong)


def test_the_callers_action_is_untouched(world: normal.World) -> None:
    env = made(world, "buses")
    env.reset()
    action = np.full((B * C, 1), 0.5, dtype=np.float32)
    env.step(action)
    np.testing.assert_array_equal(action, 0.5)


def test_what_is_no_environment_is_refused(world: normal.World) -> None:
    with pytest.raises(ConfigError, match="rows must be one of buses, environments, got 'cars'"):
        NormalChargingVecEnv(world, B, "cars")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="number of environments must be at least 1, got 0"):
        NormalChargingVecEnv(world, 0)
    with pytest.raises(ConfigError, match="reward_scale_per_eur must be a positive number, got 0"):
        NormalChargingVecEnv(world, B, reward_scale_per_eur=0.0)
    with pytest.raises(ConfigError, match=r"no day yet; call reset\(\) first"):
        NormalChargingVecEnv(world, B).step(np.zeros((B * C, 1)))


def test_rows_are_no_objects(world: normal.World) -> None:
    env = made(world, "buses")
    with pytest.raises(ConfigError, match="'day' cannot be set per row"):
        env.set_attr("day", 3)
    with pytest.raises(ConfigError, match="no method 'render'"):
        env.env_method("render")
    assert env.get_attr("render_mode") == [None] * (B * C)
    assert env.get_attr("rows", indices=[0, 1]) == ["buses"] * 2
    assert env.env_is_wrapped(Monitor, indices=0) == [False]


@pytest.mark.parametrize("rows", FORMS)
def test_sb3_learns_a_rollout(world: normal.World, rows: Rows) -> None:
    env = made(world, rows)
    model = PPO("MlpPolicy", env, n_steps=N_SLOTS, batch_size=N_SLOTS, n_epochs=1, seed=0, device="cpu")
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(env.num_envs * N_SLOTS)
    assert model.num_timesteps == env.num_envs * N_SLOTS
    assert len(model.ep_info_buffer or []) == env.num_envs
    assert any(not np.array_equal(a, b.detach()) for a, b in zip(before, model.policy.parameters(), strict=True))


def test_a_policy_of_rows_plays_the_whole_environment(world: normal.World) -> None:
    env = made(world, "buses")
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu")
    observation = env.reset()
    row_wise = np.array([model.predict(row, deterministic=True)[0] for row in observation])
    whole, state = SharedPolicy(model).predict(observation.reshape(B, C, -1), deterministic=True)
    assert state is None
    np.testing.assert_allclose(whole, row_wise.reshape(B, C), rtol=1e-5, atol=1e-7)
    single, _ = SharedPolicy(model).predict(observation[:C], deterministic=True)
    np.testing.assert_allclose(single, row_wise[:C, 0], rtol=1e-5, atol=1e-7)


def test_a_policy_of_rows_never_leaves_the_action_space() -> None:
    class Wild:
        def predict(self, observation: np.ndarray, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
            return np.linspace(-3.0, 3.0, len(observation))[:, None], None

    action, _ = SharedPolicy(Wild()).predict(np.zeros((2, 2, N_FEATURES)))
    np.testing.assert_allclose(action, [[-1.0, -1.0], [1.0, 1.0]])
