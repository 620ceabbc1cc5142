"""Pictures of a slot: what is drawn follows from what happened, and a day becomes a film."""

import dataclasses
import warnings
from io import BytesIO
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image

from evcs_gym.envs import Scenario, load_scenario, market_env
from evcs_gym.envs.grid import load_feeder
from evcs_gym.envs.market.env import OneMarket
from evcs_gym.envs.market.render import road_positions, trades, tree_positions, write_gif


@pytest.fixture(scope="module")
def city() -> Scenario:
    """The default city."""
    return load_scenario("ieee33_twelve")


@pytest.mark.parametrize("name", ["evcs/Market-v0", "evcs/Bidding-v0"])
def test_a_picture_is_drawn_at_the_start_and_after_a_slot(name: str) -> None:
    env: Any = gym.make(name, pool_days=2, render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    first = env.render()
    env.step(np.ones(env.action_space.shape, dtype=np.float32))
    second = env.render()
    for frame in (first, second):
        assert frame.shape == (540, 960, 3)
        assert frame.dtype == np.uint8
        assert frame.std() > 10.0
    assert (first != second).any()
    np.testing.assert_array_equal(second, env.render())  # drawing changes nothing
    assert gym.make(name, pool_days=2).unwrapped.render() is None


def test_rendering_stands_gymnasiums_checker() -> None:
    env = gym.make("evcs/Bidding-v0", pool_days=2, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_the_parallel_environment_draws_the_same_picture(city: Scenario) -> None:
    one, day = market_env(pool_days=2, render_mode="rgb_array"), city.day(0, "test")
    other = OneMarket(city, "train", 2)
    one.reset(options={"day": day})
    other.start(np.random.default_rng(0), day)
    one.step({agent: np.array([0.5, 0.0]) for agent in one.agents})
    other.play(other.batch.market_action(np.tile([0.5, 0.0], (1, 8, 1))))
    np.testing.assert_array_equal(one.render(), other.frame())
    assert market_env(pool_days=2).render() is None


def test_trades_are_pro_rata() -> None:
    # 30 and 60 kW sold, 40 and 50 bought: every buyer takes a third of the first and two thirds of the second
    found = {(seller, buyer): power for seller, buyer, power in trades(np.array([30.0, -40.0, 60.0, -50.0, 0.0]))}
    assert found == {
        (0, 1): pytest.approx(40.0 / 3.0),
        (0, 3): pytest.approx(50.0 / 3.0),
        (2, 1): pytest.approx(80.0 / 3.0),
        (2, 3): pytest.approx(100.0 / 3.0),
    }
    assert trades(np.array([0.5, -0.5])) == []  # too little to be drawn
    assert trades(np.zeros(3)) == []


def test_buses_lie_right_of_their_parents_and_no_two_on_one_place() -> None:
    for name in ("synthetic33", "ieee123"):
        feeder = load_feeder(name)
        at = tree_positions(feeder)
        assert (at[1:, 0] == at[feeder.parent[1:], 0] + 1.0).all()
        assert len(np.unique(at, axis=0)) == len(feeder)


def test_roads_without_positions_lie_on_a_circle(city: Scenario) -> None:
    np.testing.assert_array_equal(road_positions(city), city.roads.node_xy_km)
    bare = load_scenario("nguyen_dupuis_33")
    unplaced = dataclasses.replace(bare.roads, node_xy_km=None)
    bare.__dict__["roads"] = unplaced
    at = road_positions(bare)
    np.testing.assert_allclose(np.hypot(*at.T), 1.0)
    assert len(np.unique(at.round(6), axis=0)) == bare.roads.n_nodes


def test_a_film_holds_its_frames_for_their_time() -> None:
    frames = [np.full((20, 30, 3), shade, dtype=np.uint8) for shade in (0, 120, 250)]
    film = Image.open(BytesIO(write_gif(frames, frames_per_s=4.0)))
    assert (film.format, film.n_frames, film.size) == ("GIF", 3, (30, 20))
    assert film.info["duration"] == 250
    for number, shade in enumerate((0, 120, 250)):
        film.seek(number)
        assert abs(int(np.asarray(film.convert("RGB"))[0, 0, 0]) - shade) <= 4
