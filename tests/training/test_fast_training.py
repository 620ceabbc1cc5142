"""Training in fast charging: runs, their policies and the training form of the reward."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fast_fixtures import fast_content, fast_scenario
from training_fixtures import interrupt_after

from evcs_gym.baselines.policy_fast import FastStage, MaskedPredictor
from evcs_gym.baselines.score import rollout
from evcs_gym.envs import Scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet import fast
from evcs_gym.envs.fleet.fast_pool import load_fast_pool
from evcs_gym.training.checkpoint import CHECKPOINT_FILE, POLICY_FILE, load_weights, read_run
from evcs_gym.training.config import Preset, load_preset
from evcs_gym.training.fast_vec_env import FastChargingVecEnv
from evcs_gym.training.train import load_policy, make_model, make_validation, train

N_ENVS, N_STEPS, N_ROLLOUTS = 4, 16, 6
ROLLOUT = N_ENVS * N_STEPS


@pytest.fixture(scope="module")
def city() -> Scenario:
    """Two stations and some hundred cars."""
    return fast_scenario()


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Preset:
    """The shipped preset, cut down to that city."""
    path = tmp_path_factory.mktemp("city") / "tiny_fast.yaml"
    path.write_text(yaml.safe_dump(fast_content()), encoding="utf-8")
    small = (f"n_envs={N_ENVS}", "pool_days=4", f"total_steps={N_ROLLOUTS * ROLLOUT}", f"ppo.n_steps={N_STEPS}")
    smaller = ("ppo.batch_size=32", "ppo.n_epochs=2", "ppo.hidden_units=[8]", "validation.n_days=2")
    paces = ("validation.every_rollouts=2", "checkpoint_every_rollouts=2")
    return load_preset("fast_charging", [f"scenario={path}", *small, *smaller, *paces])


@pytest.fixture(scope="module")
def whole(preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one go."""
    return train(preset, run_dir=tmp_path_factory.mktemp("whole"))[0]


def captured(folder: Path) -> list[float]:
    """The curve of a run."""
    with (folder / "progress.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["captured"]) for row in csv.DictReader(file)]


# --- runs ---------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_best_policy(whole: Path, city: Scenario) -> None:
    info = read_run(whole)
    assert (info.kind, info.finished) == ("learned", True)
    assert not (whole / CHECKPOINT_FILE).exists()
    shares = captured(whole)
    assert len(shares) == 4
    validation = make_validation(city, 2, "fast_charging")
    kept = validation.captured(rollout(validation.world, load_policy(whole, city)))
    assert kept == pytest.approx(max(shares), abs=1e-6)


@pytest.mark.parametrize("at", [(3,), (1, 4)])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    whole: Path, preset: Preset, tmp_path: Path, at: tuple[int, ...]
) -> None:
    for n_rollouts in at:
        with pytest.raises(KeyboardInterrupt):
            train(preset, run_dir=tmp_path, listener=interrupt_after(n_rollouts * ROLLOUT))
    folder = train(preset, run_dir=tmp_path)[0]
    one, two = load_weights(whole / POLICY_FILE), load_weights(folder / POLICY_FILE)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert captured(folder) == captured(whole)


def test_a_trained_policy_takes_allowed_actions_only(whole: Path, city: Scenario) -> None:
    """Few plugs and hundreds of cars: what the scores alone would take is often not allowed."""
    policy = load_policy(whole, city)
    assert isinstance(policy, MaskedPredictor)
    world = fast.make_fast_world(city, city.days(range(4), "test"))
    state, n_refused = fast.initial_state(world, np.arange(4)), 0
    for _ in range(int(world.n_requests.min())):
        stage = FastStage(world, state)
        masks, action = stage.action_masks(), policy.send(stage)
        assert masks[np.arange(4), action].all()
        free, _ = policy.policy.predict(stage.observe(), deterministic=True, action_masks=np.ones_like(masks))
        n_refused += int((~masks[np.arange(4), free]).sum())
        state, outcome = fast.step(world, state, action)
        assert outcome.n_replaced.sum() == 0
    assert n_refused > 0


def test_a_run_of_another_city_is_refused(whole: Path) -> None:
    three = fast_content()
    three["fast_charging"]["stations"].append({"name": "third", "bus": 5, "node": 3, "n_plugs": 1, "plug_kw": 20})
    stations = three["fast_charging"]["stations"]
    with pytest.raises(ConfigError, match=r"the policy does not fit 'tiny'"):
        load_policy(whole, fast_scenario(stations=stations))


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("fast_charging", "rows=buses", r"rows of fast_charging must be environments, got buses"),
        ("fast_charging", "market.residual=true", r"market goes with problems of the market, got fast_charging"),
    ],
)
def test_settings_of_other_problems_are_refused(name: str, change: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_preset(name, [change])


# --- the scores ---------------------------------------------------------------------------------------------


def test_an_unlearned_policy_likes_all_allowed_stations_alike(preset: Preset, city: Scenario) -> None:
    env = FastChargingVecEnv(load_fast_pool(city, "train", 4), N_ENVS)
    env.seed(0)
    observation, masks = torch.as_tensor(env.reset()), env.action_masks()
    chance = make_model(preset, env, 0).policy.get_distribution(observation, action_masks=masks).distribution.probs
    np.testing.assert_allclose(chance.detach().numpy(), masks / masks.sum(axis=1, keepdims=True), atol=1e-6)


def test_stations_share_one_network(preset: Preset, city: Scenario) -> None:
    """Two stations that look alike differ by their names only: exchanged names exchange the scores."""
    model = make_model(preset, FastChargingVecEnv(load_fast_pool(city, "train", 4), 1), 0)
    scores = model.policy.mlp_extractor
    torch.nn.init.normal_(scores.last.weight)
    observation = torch.randn(1, model.observation_space.shape[0])  # type: ignore[index]
    first, second = (slice(9 + 18 * j, 9 + 18 * (j + 1)) for j in (0, 1))
    swapped = observation.clone()
    swapped[:, first], swapped[:, second] = observation[:, second], observation[:, first]
    with torch.no_grad():
        scores.score[0].weight[:, -2:] = 0.0  # what says which station it is
        one, two = scores.forward_actor(observation), scores.forward_actor(swapped)
    torch.testing.assert_close(one[:, [1, 0, 2]], two)


# --- the training form of the reward ------------------------------------------------------------------------


def test_both_rewards_of_a_day_differ_by_a_constant(city: Scenario) -> None:
    """Over a day the training form is the cost less what no decision changes: the same for all policies."""
    world = load_fast_pool(city, "train", 4)
    constants = []
    for draw in range(3):
        totals = []
        for shift in (False, True):
            rng, env = np.random.default_rng(draw), FastChargingVecEnv(world, 4, reward_shift=shift)
            env.seed(2)
            env.reset()
            total, over = np.zeros(4), np.zeros(4, dtype=np.bool_)
            while not over.all():
                action = np.array([rng.choice(np.flatnonzero(mask)) for mask in env.action_masks()])
                _, reward, ended, _ = env.step(action)
                total += np.where(over, 0.0, reward)
                over |= ended
            totals.append(total)
        constants.append(totals[1] - totals[0])
    np.testing.assert_allclose(constants[1:], constants[:1] * 2, rtol=1e-4)
    assert np.ptp(constants[0]) > 0.0
