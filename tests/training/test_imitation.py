"""Cloning: the teacher is the clairvoyant plan, the learner comes closer to it, and the label says so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from envs_fixtures import Car, begin, hand_day, tiny_scenario
from hypothesis import given, settings
from hypothesis import strategies as st
from training_fixtures import CLONE, tiny_preset

from evcs_gym.baselines.registry import make_rule
from evcs_gym.baselines.score import rollout
from evcs_gym.envs import Scenario
from evcs_gym.envs.fleet import normal
from evcs_gym.envs.units import N_SLOTS
from evcs_gym.training.checkpoint import read_run
from evcs_gym.training.config import CloneSpec, Preset
from evcs_gym.training.imitation import (
    _collect,
    _teacher_action,
    clone,
    discounted_returns,
    fit_critic,
    teacher_power_kw,
)
from evcs_gym.training.train import make_model, train
from evcs_gym.training.vec_env import NormalChargingVecEnv, SharedPolicy

SPEC = CloneSpec(n_passes=2, n_days=6, n_epochs=5, batch_size=64, learning_rate=3e-3, critic_steps=40)


@pytest.fixture
def preset(city_file: Path) -> Preset:
    return tiny_preset(city_file)


@pytest.fixture(scope="module")
def modulated() -> Scenario:
    """The tiny city with cars that take any power: what the teacher wants is then what the buses do."""
    return tiny_scenario((12, 6), mode="modulated")


def test_the_teacher_leaves_the_surplus_to_a_car_that_has_no_other() -> None:
    # 2 kW of surplus in slots 0 and 2, the latter a little cheaper. A car with time charges in slot 2, unless another
    # one, which stays in slot 2 only, will need it: the teacher knows of it two slots before it comes
    scenario = tiny_scenario()
    early, late = Car(1.0, 2.0, 0, 4, car=0), Car(1.0, 2.0, 2, 3, car=1)
    slot = np.arange(N_SLOTS)
    dg_kw = np.where((slot == 0) | (slot == 2), 2.0, 0.0)[:, None]
    price = np.where(slot == 2, 0.099, 0.10)

    def wanted_kw(*cars: Car) -> float:
        day = hand_day(scenario, *cars, base_kw=0.0, dg_kw=dg_kw, price_eur_per_kwh=price)
        return float(teacher_power_kw(*begin(scenario, day))[0, 0])

    assert wanted_kw(early) == pytest.approx(0.0)
    assert wanted_kw(early, late) == pytest.approx(2.0)


def test_the_teachers_action_gives_the_power_of_its_plan(modulated: Scenario) -> None:
    world = normal.make_world(modulated, modulated.days(range(4)))
    state = normal.initial_state(world, np.arange(4))
    charged = 0.0
    for _ in range(N_SLOTS):
        wanted = teacher_power_kw(world, state)
        action, weight = _teacher_action(world, state)
        view = normal.view(world, state)
        assert np.abs(action).max() <= 1.0
        assert (weight >= 0.0).all()
        assert (weight <= 1.0).all()
        state, outcome = normal.step(world, state, normal.dispatch(world, state, action))
        np.testing.assert_allclose(outcome.bus_power_kw, np.clip(wanted, view.least_kw, view.largest_kw), atol=1e-6)
        charged += outcome.bus_power_kw.sum()
    assert charged > 0.0
    np.testing.assert_allclose(state.remaining_kwh, 0.0, atol=1e-6)


def test_the_teacher_beats_the_rule_that_sees_only_the_cars_present(city: Scenario) -> None:
    world = normal.make_world(city, city.days(range(12)))
    state = normal.initial_state(world, np.arange(12))
    cost = 0.0
    for _ in range(N_SLOTS):
        action, _ = _teacher_action(world, state)
        state, outcome = normal.step(world, state, normal.dispatch(world, state, action))
        cost += float(outcome.cost_eur.sum())
    assert cost < rollout(world, make_rule("water_filling")).cost_eur.sum()


def test_the_first_pass_is_the_teachers_alone(world: normal.World) -> None:
    days = np.array([0, 2])
    observation, action, weight = _collect(world, days, None, 0.0, np.random.default_rng(0))
    state = normal.initial_state(world, days)
    assert (len(observation), action.shape, weight.shape) == (N_SLOTS * 4, (N_SLOTS * 4, 1), (N_SLOTS * 4,))
    for slot in range(N_SLOTS):
        rows = slice(4 * slot, 4 * slot + 4)
        np.testing.assert_array_equal(observation[rows], normal.observe(world, state).reshape(4, -1))
        wanted, _ = _teacher_action(world, state)
        np.testing.assert_array_equal(action[rows, 0], wanted.reshape(-1))
        state, _ = normal.step(world, state, normal.dispatch(world, state, wanted))


def test_cloning_brings_the_policy_to_the_teacher(preset: Preset, world: normal.World) -> None:
    env = NormalChargingVecEnv(world, preset.n_envs)
    model = make_model(preset, env, 0)
    rows = _collect(world, np.arange(4), None, 1.0, np.random.default_rng(0))

    def error() -> float:
        own = np.clip(model.predict(rows[0], deterministic=True)[0], -1.0, 1.0)
        return float((rows[2] * (own - rows[1])[:, 0] ** 2).mean())

    before, cost_before = error(), rollout(world, SharedPolicy(model)).cost_eur.sum()
    losses: list[tuple[int, float]] = []
    clone(model, world, SPEC, np.random.default_rng(0), lambda *news: losses.append(news))
    assert [number for number, _ in losses] == [1, 2]
    assert error() < 0.5 * before
    assert rollout(world, SharedPolicy(model)).cost_eur.sum() < cost_before


def test_the_critic_is_fitted_and_the_actor_left(preset: Preset, world: normal.World) -> None:
    env = NormalChargingVecEnv(world, preset.n_envs)
    model = make_model(preset, env, 0)
    one = fit_critic(model, env, SPEC.model_copy(update={"critic_steps": 1}), np.random.default_rng(3))
    actor = [p.detach().clone() for p in model.policy.mlp_extractor.policy_net.parameters()]
    many = fit_critic(model, env, SPEC, np.random.default_rng(3))
    assert many < 0.7 * one
    for before, now in zip(actor, model.policy.mlp_extractor.policy_net.parameters(), strict=True):
        assert torch.equal(before, now)


def test_returns_by_hand() -> None:
    np.testing.assert_allclose(discounted_returns(np.array([[1.0], [2.0], [4.0]]), 0.5), [[3.0], [4.0], [4.0]])


@settings(deadline=None)
@given(rewards=st.lists(st.floats(-10.0, 10.0), min_size=1, max_size=20))
def test_undiscounted_returns_begin_with_the_total(rewards: list[float]) -> None:
    given_rewards = np.array(rewards)[:, None]
    returns = discounted_returns(given_rewards, 1.0)
    np.testing.assert_allclose(returns[0, 0], sum(rewards), atol=1e-9)
    np.testing.assert_array_equal(given_rewards[:, 0], rewards)


def test_a_cloned_run_says_so(city_file: Path, tmp_path: Path) -> None:
    folder = train(tiny_preset(city_file, *CLONE, "total_steps=100"), run_dir=tmp_path)[0]
    assert read_run(folder).kind == "cloned, then learned"
