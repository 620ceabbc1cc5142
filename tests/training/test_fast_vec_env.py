"""Fast charging as Stable-Baselines3 and sb3-contrib see it."""

import numpy as np
import pytest
from fast_fixtures import fast_scenario
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

from evcs_gym.baselines.policy_fast import MaskedPredictor
from evcs_gym.baselines.score import rollout
from evcs_gym.envs import ConfigError, DataError, Scenario
from evcs_gym.envs.fleet.fast_batch import TERMS
from evcs_gym.envs.fleet.fast_env import FastChargingEnv
from evcs_gym.envs.fleet.fast_pool import load_fast_pool
from evcs_gym.training.fast_vec_env import FastChargingVecEnv

POOL_DAYS = 4


@pytest.fixture(scope="module")
def city() -> Scenario:
    """Two stations and some hundred cars."""
    return fast_scenario()


def make_env(city: Scenario, n_envs: int = 3, scale: float = 1.0) -> FastChargingVecEnv:
    """Rows of the small city."""
    return FastChargingVecEnv(load_fast_pool(city, "train", POOL_DAYS), n_envs, scale)


def test_masks_reach_sb3_contrib(city: Scenario) -> None:
    env = make_env(city)
    env.seed(0)
    env.reset()
    assert is_masking_supported(env)
    np.testing.assert_array_equal(get_action_masks(env), env.action_masks())
    np.testing.assert_array_equal(env.env_method("action_masks", indices=[1])[0], env.action_masks()[1])
    with pytest.raises(ConfigError, match="their only method is 'action_masks'"):
        env.env_method("reset")


def test_rows_of_days_of_different_lengths(city: Scenario) -> None:
    env = make_env(city, scale=0.1)
    env.seed(5)
    env.reset()
    lengths = env.batch.world.n_requests[env.batch.running().day]
    assert len(set(lengths.tolist())) > 1
    costs, seen = np.zeros(3), 0
    for step in range(int(lengths.max())):
        _, reward, ended, infos = env.step(env.action_masks().argmax(axis=1))
        assert reward.dtype == np.float32
        for row, info in enumerate(infos):
            assert info["cost_eur"] == pytest.approx(sum(info[term] for term in TERMS))
            assert reward[row] == pytest.approx(-0.1 * info["cost_eur"], rel=1e-5, abs=1e-6)
            costs[row] += info["cost_eur"]
            assert ("episode" in info) is bool(ended[row])
            if ended[row] and step + 1 == lengths[row]:
                assert info["episode"]["l"] == lengths[row]
                assert info["episode"]["r"] == pytest.approx(-0.1 * costs[row])
                assert info["terminal_observation"][0] == 1.0  # time t / 48
                place = int(np.flatnonzero(ended).tolist().index(row))
                assert env.episode_terms["cost_eur"][place] == pytest.approx(costs[row])
                seen += 1
    assert seen == 3


def test_actions_are_checked(city: Scenario) -> None:
    env = make_env(city)
    env.reset()
    with pytest.raises(DataError, match=r"whole numbers of shape \(3,\), got float64"):
        env.step(np.zeros(3))
    with pytest.raises(ConfigError, match="reward_scale_per_eur must be a positive number, got 0"):
        make_env(city, scale=0.0)


def test_maskable_ppo_learns_out_of_the_box_and_never_leaves_the_mask(city: Scenario) -> None:
    env = make_env(city, n_envs=4, scale=0.05)
    model = MaskablePPO("MlpPolicy", env, n_steps=32, batch_size=64, n_epochs=1, seed=0, device="cpu")
    replaced = []
    step = env.batch.step

    def watched(action: np.ndarray) -> object:
        result = step(action)
        replaced.append(int(result.outcome.n_replaced.sum()))
        return result

    env.batch.step = watched  # type: ignore[method-assign, assignment]
    model.learn(256)
    assert len(replaced) == 64
    assert sum(replaced) == 0
    done = rollout(load_fast_pool(city, "validation", 2), MaskedPredictor(model))
    assert np.isfinite(done.cost_eur).all()
    assert (done.station[:, 0] >= 0).all()


def test_maskable_ppo_takes_the_single_environment(city: Scenario) -> None:
    model = MaskablePPO(
        "MlpPolicy", FastChargingEnv(city, pool_days=2), n_steps=16, batch_size=16, seed=0, device="cpu"
    )
    model.learn(32)
    assert model.num_timesteps == 32
