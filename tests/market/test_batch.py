"""Rows that play days of the market one after the other, and the pool that the days come from."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_fixtures import city_world, random_action, small_world, stations

from evcs_gym.envs import Scenario, load_scenario
from evcs_gym.envs.draws import draw_days, uniform_of
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.batch import MarketBatch
from evcs_gym.envs.market.core import MarketAction, MarketWorld, ask_band, initial_state, step
from evcs_gym.envs.market.play import reward_eur, scaled_action, slot_terms, storage_action
from evcs_gym.envs.market.pool import load_market_pool
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.market.view import own_plan
from evcs_gym.envs.units import N_SLOTS


@pytest.fixture(scope="module")
def world() -> MarketWorld:
    """Four random days of eight stations."""
    return city_world(n_days=4)


@pytest.fixture(scope="module")
def city() -> Scenario:
    """The default city."""
    return load_scenario("ieee33_twelve")


# --- actions and rewards -----------------------------------------------------------------------------------


def test_an_action_by_hand() -> None:
    # storage 50 kW, band 0.04..0.092
    world = small_world(stations(2), pv_kw=[100.0, 0.0], ev_kw=[0.0, 60.0])
    state = initial_state(world, np.array([0]))
    plan = own_plan(world, state)
    action = np.array([[[0.5, 0.0], [-1.0, 1.0]]])
    plain = scaled_action(world, state, plan, action, residual=False)
    assert plain.storage_kw.tolist() == [[25.0, -50.0]]
    np.testing.assert_allclose(plain.ask_eur_per_kwh, [[0.066, 0.092]])
    residual = scaled_action(world, state, plan, action, residual=True)
    np.testing.assert_array_equal(residual.storage_kw, plan.storage_kw + plain.storage_kw)
    np.testing.assert_array_equal(residual.ask_eur_per_kwh, plain.ask_eur_per_kwh)


def test_the_ends_of_the_action_are_the_ends_of_the_band(world: MarketWorld) -> None:
    state = initial_state(world, np.arange(4))
    low, high = ask_band(world, state)
    for end, edge in ((-1.0, low), (1.0, high)):
        action = scaled_action(world, state, own_plan(world, state), np.full((4, 8, 2), end))
        np.testing.assert_array_equal(action.ask_eur_per_kwh, np.repeat(edge[:, None], 8, axis=1))
        step(world, state, action)  # accepted: rounding does not leave the band


@pytest.mark.parametrize("residual", [False, True])
def test_numbers_for_storage_alone_are_actions_whose_ask_is_the_least_bit_for_bit(
    world: MarketWorld, residual: bool
) -> None:
    state = initial_state(world, np.arange(4))
    plan, numbers = own_plan(world, state), np.random.default_rng(0).uniform(-1.0, 1.0, (4, 8))
    alone = storage_action(world, state, plan, numbers, residual)
    both = scaled_action(world, state, plan, np.stack([numbers, np.full_like(numbers, -1.0)], axis=-1), residual)
    np.testing.assert_array_equal(alone.storage_kw, both.storage_kw)
    np.testing.assert_array_equal(alone.ask_eur_per_kwh, both.ask_eur_per_kwh)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), slot=st.integers(0, N_SLOTS - 1), residual=st.booleans())
def test_any_numbers_become_asks_in_the_band_and_powers_that_are_executed_within_the_storage(
    world: MarketWorld, seed: int, slot: int, residual: bool
) -> None:
    rng = np.random.default_rng(seed)
    state = dataclasses.replace(initial_state(world, np.arange(4)), slot=np.full(4, slot))
    numbers = rng.choice([-1.0, 1.0, rng.uniform(-1.0, 1.0)], (4, 8, 2))
    action = scaled_action(world, state, own_plan(world, state), numbers, residual)
    low, high = ask_band(world, state)
    assert (action.ask_eur_per_kwh >= low[:, None]).all()
    assert (action.ask_eur_per_kwh <= high[:, None]).all()
    after, outcome = step(world, state, action)
    assert (np.abs(outcome.storage_kw) <= world.assets.storage_kw + 1e-9).all()
    assert (after.energy_kwh >= world.assets.energy_min_kwh - 1e-6).all()
    assert (after.energy_kwh <= world.assets.storage_kwh + 1e-6).all()


def test_rewards_are_own_profit_team_profit_or_a_mix(world: MarketWorld) -> None:
    state = initial_state(world, np.arange(4))
    _, outcome = step(world, state, random_action(world, state, np.random.default_rng(0)))
    own, team = reward_eur(world, state, outcome), reward_eur(world, state, outcome, team_frac=1.0)
    np.testing.assert_array_equal(own, outcome.profit_eur)
    np.testing.assert_allclose(team, np.repeat(own.sum(axis=1, keepdims=True), 8, axis=1), atol=1e-12)
    np.testing.assert_allclose(reward_eur(world, state, outcome, 0.25), 0.75 * own + 0.25 * team, atol=1e-12)


def test_a_reward_may_be_changed_in_place_without_changing_the_profit(world: MarketWorld) -> None:
    state = initial_state(world, np.arange(4))
    _, outcome = step(world, state, random_action(world, state, np.random.default_rng(2)))
    profit = outcome.profit_eur.copy()
    np.testing.assert_array_equal(profit, sum(outcome.terms))
    reward = reward_eur(world, state, outcome)
    reward *= 0.0
    np.testing.assert_array_equal(outcome.profit_eur, profit)


def test_the_reward_shift_is_what_an_idle_station_without_a_market_earns() -> None:
    hours = np.arange(N_SLOTS)[:, None]
    world = small_world(stations(1), pv_kw=100.0 * (hours < 20), ev_kw=60.0 * (hours > 10), spot_eur_per_kwh=0.05)
    idle, charging = np.zeros((1, 1)), np.full((1, 1), 50.0)
    state, ask = initial_state(world, np.array([0])), np.full((1, 1), 0.04)
    _, outcome = step(world, state, MarketAction(charging, ask))
    # 50 kW for half an hour that the utility would have bought at 0.04 EUR/kWh
    np.testing.assert_allclose(reward_eur(world, state, outcome, reward_shift=True), -1.0, atol=1e-12)
    for _ in range(N_SLOTS):
        after, outcome = step(world, state, MarketAction(idle, ask))
        np.testing.assert_allclose(reward_eur(world, state, outcome, reward_shift=True), 0.0, atol=1e-12)
        state = after


def test_terms_of_a_slot_add_up(world: MarketWorld) -> None:
    state = initial_state(world, np.arange(4))
    _, outcome = step(world, state, random_action(world, state, np.random.default_rng(1)))
    terms = slot_terms(outcome)
    named = sum(terms[name] for name in outcome.terms._fields)
    np.testing.assert_allclose(terms["profit_eur"], named, atol=1e-12)
    np.testing.assert_allclose(terms["profit_eur"], terms["ev_income_eur"] - terms["community_eur"], atol=1e-9)
    assert ((terms["lowest_voltage_pu"] > 0.9) & (terms["lowest_voltage_pu"] < 1.0125)).all()


# --- batches -----------------------------------------------------------------------------------------------


def trajectory(world: MarketWorld, n_rows: int, n_steps: int, seed: int) -> list[np.ndarray]:
    """What the first two rows see and earn under actions that are the same for every size of the batch."""
    batch, rng = MarketBatch(world, n_rows), np.random.default_rng(3)
    seen = [batch.reset(seed)[:2]]
    for _ in range(n_steps):
        action = np.zeros((n_rows, 8, 2))
        action[:2] = rng.uniform(-1.0, 1.0, (2, 8, 2))
        done = batch.step(action)
        seen += [done.observation[:2], done.reward_eur[:2]]
    return seen


@pytest.fixture
def all_threads() -> Iterator[None]:
    """Gives numba its threads back."""
    yield
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


@pytest.mark.usefixtures("all_threads")
@pytest.mark.parametrize(("n_rows", "n_threads"), [(2, 1), (37, 1), (600, 2)])
def test_a_row_plays_the_same_in_any_batch_and_on_any_number_of_threads(
    world: MarketWorld, n_rows: int, n_threads: int
) -> None:
    expected = trajectory(world, 3, N_SLOTS + 20, seed=7)
    numba.set_num_threads(min(n_threads, numba.config.NUMBA_NUM_THREADS))
    for one, other in zip(expected, trajectory(world, n_rows, N_SLOTS + 20, seed=7), strict=True):
        np.testing.assert_array_equal(one, other)


def test_days_of_rows_follow_from_the_generator_and_the_row_alone() -> None:
    few = draw_days(np.random.default_rng(1), np.arange(3), 50)
    assert draw_days(np.random.default_rng(1), np.arange(200), 50)[:3].tolist() == few.tolist()
    assert draw_days(np.random.default_rng(2), np.arange(3), 50).tolist() != few.tolist()
    many = draw_days(np.random.default_rng(1), np.arange(5000), 50)
    counts = np.bincount(many, minlength=50)
    assert len(counts) == 50
    assert 60 < counts.min() <= counts.max() < 145  # mean 100, standard deviation 10
    draws = uniform_of(np.arange(10_000))
    assert abs(draws.mean() - 0.5) < 0.01
    assert 0.0 <= draws.min() < draws.max() < 1.0


def test_rows_begin_the_next_day_in_the_step_in_which_their_day_ends(world: MarketWorld) -> None:
    batch = MarketBatch(world, 2)
    batch.reset(0)
    batch.start(np.array([1]), np.array([False, True]))
    for _ in range(5):
        done = batch.step(np.zeros((2, 8, 2)))
    batch.start(np.array([2]), np.array([False, True]))
    assert batch.running().slot.tolist() == [5, 0]
    for _ in range(N_SLOTS - 6):
        done = batch.step(np.zeros((2, 8, 2)))
        assert not done.ended.any()
        assert len(done.final_observation) == 0
    done = batch.step(np.zeros((2, 8, 2)))
    assert done.ended.tolist() == [True, False]
    assert done.final_observation.shape == (1, 8, 41)
    assert done.final_observation[0, 0, 0] == 1.0
    assert done.observation[:, 0, 0].tolist() == [0.0, pytest.approx((N_SLOTS - 5) / N_SLOTS)]
    assert done.before.slot.tolist() == [N_SLOTS - 1, N_SLOTS - 6]
    assert batch.running().slot.tolist() == [0, N_SLOTS - 5]


def test_a_residual_of_nothing_is_the_station_s_own_plan(world: MarketWorld) -> None:
    batch = MarketBatch(world, 3)
    batch.reset(4)
    for _ in range(3):
        plan = own_plan(world, batch.running())
        np.testing.assert_array_equal(batch.market_action(np.zeros((3, 8, 2))).storage_kw, plan.storage_kw)
        batch.step(np.zeros((3, 8, 2)))
    batch.state = initial_state(world, np.arange(3))  # put in from outside, as a checkpoint does
    np.testing.assert_array_equal(batch.plan.storage_kw, own_plan(world, batch.state).storage_kw)


def test_what_a_batch_is_given_is_checked(world: MarketWorld) -> None:
    with pytest.raises(ConfigError, match="number of environments must be at least 1, got 0"):
        MarketBatch(world, 0)
    with pytest.raises(ConfigError, match=r"team_frac must be in \[0, 1\] .*, got 1.5"):
        MarketBatch(world, 1, team_frac=1.5)
    with pytest.raises(ConfigError, match=r"the environments have no day yet; call reset\(\) first"):
        MarketBatch(world, 1).step(np.zeros((1, 8, 2)))


# --- the pool ----------------------------------------------------------------------------------------------


def arrays_of(value: Any, name: str = "world") -> Iterator[tuple[str, np.ndarray]]:
    """All arrays of a record, its records included."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from arrays_of(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, tuple):
        for place, part in enumerate(value):
            yield from arrays_of(part, f"{name}.{place}")


def test_the_pool_of_the_market_reads_back_equal_without_pickle(
    tmp_path: Path, city: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVCS_GYM_CACHE", str(tmp_path))
    made = load_market_pool(city, "test", 2)
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("market-ieee33_twelve-test-")
    with np.load(file, allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored.files)
    monkeypatch.setattr(Scenario, "days", lambda *_: pytest.fail("the pool was made anew"))
    read = dict(arrays_of(load_market_pool(city, "test", 2)))
    n_arrays = 0
    for name, array in arrays_of(made):
        n_arrays += 1
        np.testing.assert_array_equal(array, read[name], err_msg=name)
        assert array.dtype == read[name].dtype, name
        assert array.flags.writeable is read[name].flags.writeable, name  # or kernels are compiled again
        assert array.flags.c_contiguous == read[name].flags.c_contiguous, name
    assert n_arrays == len(read) > 40


def test_a_pool_that_cannot_be_read_is_made_anew(
    tmp_path: Path, city: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVCS_GYM_CACHE", str(tmp_path))
    load_market_pool(city, "test", 1)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"no archive")
    with pytest.warns(UserWarning, match="cannot be read .*; the pool of days is made anew"):
        assert load_market_pool(city, "test", 1).n_days == 1


def test_a_world_of_days_equals_the_pool_s(city: Scenario) -> None:
    pool, own = load_market_pool(city, "test", 2), market_world(city, [city.day(1, "test")])
    np.testing.assert_array_equal(pool.features.own[1], own.features.own[0])
    np.testing.assert_array_equal(pool.value_eur[1], own.value_eur[0])
    np.testing.assert_array_equal(pool.grid.load_kva[N_SLOTS:], own.grid.load_kva)
