"""Environments whose drivers answer retail prices: one more number of the action, and what it does."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from pettingzoo.test import parallel_seed_test

from evcs_gym.envs import ConfigError, Scenario, market_env
from evcs_gym.envs.market.batch import MarketBatch
from evcs_gym.envs.market.core import initial_state
from evcs_gym.envs.market.pool import load_any_pool, load_market_pool
from evcs_gym.envs.market.responsive import ResponsiveWorld, responsive_world, step_responsive
from evcs_gym.envs.scenario import scenario_from_dict
from evcs_gym.envs.specs import read_yaml
from evcs_gym.envs.units import N_SLOTS

POOL_DAYS = 2
LEAST, LARGEST = 0.30, 0.50


@pytest.fixture(scope="module")
def city() -> Scenario:
    """The default city with drivers who answer prices of 0.30 to 0.50 EUR/kWh."""
    source, content = read_yaml("scenarios", "ieee33_twelve")
    return scenario_from_dict({**content, "responsive_demand": {}}, source)


@pytest.fixture(scope="module")
def world(city: Scenario) -> ResponsiveWorld:
    """Days of the pool."""
    found = load_any_pool(city, "train", POOL_DAYS)
    assert isinstance(found, ResponsiveWorld)
    return found


def make(name: str, city: Scenario, **arguments: Any) -> Any:
    """One environment, without wrappers."""
    return gym.make(name, scenario=city, pool_days=POOL_DAYS, **arguments).unwrapped


def test_the_pool_reads_back_what_was_made(city: Scenario, world: ResponsiveWorld) -> None:
    made = responsive_world(city, city.days(range(POOL_DAYS)))
    read = load_any_pool(city, "train", POOL_DAYS)
    assert isinstance(read, ResponsiveWorld)
    for name in ("assigned_veh_per_h", "before_veh_per_h"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
        np.testing.assert_array_equal(getattr(world, name), getattr(made, name))
    assert read.paths.n_paths == made.paths.n_paths
    with pytest.raises(ConfigError, match="this needs a market whose drivers do not respond"):
        load_market_pool(city, "train", POOL_DAYS)


def test_the_third_number_goes_from_the_least_to_the_largest_price(world: ResponsiveWorld) -> None:
    batch = MarketBatch(world, 2)
    batch.reset(0)
    assert batch.n_numbers == 3
    numbers = np.zeros((2, 8, 3))
    numbers[0, :, 2], numbers[1, :4, 2] = -1.0, 1.0
    prices = batch.retail_eur_per_kwh(numbers)
    assert prices is not None
    np.testing.assert_allclose(prices, [[LEAST] * 8, [LARGEST] * 4 + [0.40] * 4])
    done = batch.step(numbers)
    assert done.drivers is not None
    served = done.outcome.terms.ev_income_eur  # EUR of half an hour at the price that was asked
    np.testing.assert_allclose(served, 0.5 * prices * (done.outcome.ev_kw - done.outcome.unserved_kw), atol=1e-9)
    assert done.drivers.arrivals_veh_per_h[1, :4].sum() < done.drivers.arrivals_veh_per_h[0, :4].sum()


def test_a_batch_plays_what_the_step_says_and_without_prices_the_stations_own(world: ResponsiveWorld) -> None:
    batch, other = MarketBatch(world, 3), MarketBatch(world, 3)
    batch.reset(1)
    other.reset(1)
    for _ in range(4):
        action, before = batch.market_action(np.zeros((3, 8, 3))), batch._answering()
        own = np.tile(world.market.assets.retail_eur_per_kwh, (3, 1))
        _, outcome, drivers = step_responsive(world, before, action, own)
        done, same = batch.play(action), other.play(action, retail_eur_per_kwh=own)
        np.testing.assert_array_equal(done.outcome.position_kw, outcome.position_kw)
        np.testing.assert_array_equal(done.outcome.position_kw, same.outcome.position_kw)
        assert done.drivers is not None
        np.testing.assert_array_equal(done.drivers.link_flow_veh_per_h, drivers.link_flow_veh_per_h)


def test_rows_that_reset_forget_the_drivers_of_the_old_day(world: ResponsiveWorld) -> None:
    batch, fresh = MarketBatch(world, 2), MarketBatch(world, 1)
    batch.reset(0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        batch.step(rng.uniform(-1.0, 1.0, (2, 8, 3)))
    batch.start(np.array([1]), np.array([False, True]))
    fresh.start(np.array([1]))
    left, right = batch.step(np.zeros((2, 8, 3))), fresh.step(np.zeros((1, 8, 3)))
    np.testing.assert_array_equal(left.outcome.position_kw[1], right.outcome.position_kw[0])
    assert batch.running().slot.tolist() == [4, 1]


def test_a_state_from_outside_lacks_what_drivers_did_before(world: ResponsiveWorld) -> None:
    batch = MarketBatch(world, 1)
    batch.state = initial_state(world.market, np.array([0]))
    with pytest.raises(ConfigError, match=r"the environments have no day yet; call reset\(\) first"):
        batch.step(np.zeros((1, 8, 3)))


def test_the_controller_pays_for_everybodys_time(city: Scenario) -> None:
    env = make("evcs/Market-v0", city)
    assert env.action_space.shape == (8, 2)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.zeros((8, 2), dtype=np.float32))
    assert reward == pytest.approx(-info["community_eur"] - info["travel_eur"] - info["outside_eur"], abs=1e-9)
    assert info["travel_eur"] > 0.0
    assert info["station_arrivals_veh_per_h"].shape == (8,)


def test_a_dearer_bidder_is_visited_less_and_the_others_keep_their_price(city: Scenario) -> None:
    cheap, dear = make("evcs/Bidding-v0", city, station=5), make("evcs/Bidding-v0", city, station=5)
    day = city.day(3, "test")
    seen = []
    for env, price in ((cheap, -1.0), (dear, 1.0)):
        assert env.action_space.shape == (3,)
        env.reset(options={"day": day})
        seen.append(env.step(np.array([0.0, 0.0, price], dtype=np.float32))[4])
    assert seen[1]["arrivals_veh_per_h"] < seen[0]["arrivals_veh_per_h"]
    outcome = dear.market.last.outcome
    others = np.delete(np.arange(8), 5)
    own = city.stations.retail_eur_per_kwh[others]
    expected = 0.5 * own * (outcome.ev_kw - outcome.unserved_kw)[0, others]
    np.testing.assert_allclose(outcome.terms.ev_income_eur[0, others], expected, atol=1e-9)


@pytest.mark.parametrize("name", ["evcs/Market-v0", "evcs/Bidding-v0"])
def test_the_ids_stand_the_checker_copies_and_batches(name: str, city: Scenario) -> None:
    env = make(name, city)
    check_env(env, skip_render_check=True)
    env.reset(seed=3)
    vector = gym.make_vec(name, num_envs=2, scenario=city, pool_days=POOL_DAYS)
    vector.reset(seed=3)
    rng = np.random.default_rng(0)
    for slot in range(N_SLOTS):
        actions = rng.uniform(-1.0, 1.0, vector.action_space.shape)
        twin = copy.deepcopy(env) if slot == 5 else None
        seen, reward, ended, _, infos = env.step(actions[0])
        if twin is not None:
            np.testing.assert_array_equal(twin.step(actions[0])[0], seen)
        many, rewards, *_, told = vector.step(actions)
        np.testing.assert_array_equal(told["final_obs"][0] if ended else many[0], seen)
        assert rewards[0] == reward
        assert all(np.array_equal(told[key][0], infos[key]) for key in infos)


def test_agents_set_retail_prices(city: Scenario) -> None:
    def make_parallel() -> Any:
        return market_env(city, pool_days=POOL_DAYS, render_mode="rgb_array")

    env = make_parallel()
    env.reset(seed=0)
    assert env.action_space("station_0").shape == (3,)
    *_, infos = env.step({agent: np.zeros(3) for agent in env.agents})
    arrivals = env.market.last.drivers.arrivals_veh_per_h[0]
    assert [infos[f"station_{n}"]["arrivals_veh_per_h"] for n in range(8)] == arrivals.tolist()
    assert env.render().shape == (540, 960, 3)
    parallel_seed_test(make_parallel, num_cycles=10)
