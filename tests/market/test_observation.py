"""What a station observes: feature by feature against a plain twin, and nothing that is another station's."""

import dataclasses

import numpy as np
import pytest
from market_fixtures import city_world, play_random, small_world, stations
from reference import market_observation_reference

from evcs_gym.envs.market.core import MarketAction, MarketState, MarketWorld, initial_state, step
from evcs_gym.envs.market.features import N_FEATURES, OBSERVATION_CLIP
from evcs_gym.envs.market.observation import OBSERVATION, feature_slices, observation_page, observation_space
from evcs_gym.envs.market.view import look, own_plan
from evcs_gym.envs.observation import n_features
from evcs_gym.envs.units import N_SLOTS

PRIVATE = ("energy_kwh", "position_kw", "accepted_kw", "cap_kw")
"""What a state holds of each station."""


def shown(world: MarketWorld, state: MarketState, name: str) -> np.ndarray:
    """A feature of every row and station."""
    return look(world, state)[1][..., feature_slices()[name]]


def test_features_by_hand() -> None:
    # spot 0.05 but 0.09 in slot 1: import 0.10 and 0.14; 100 kW of sun and 40 of cars, storage 50 kW and 100 kWh
    spot = np.full(N_SLOTS, 0.05)
    spot[1] = 0.09
    world = small_world(stations(1), pv_kw=100.0, ev_kw=40.0, spot_eur_per_kwh=spot)
    state = initial_state(world, np.array([0]))
    spread = 0.04 * np.sqrt(47.0) / 48.0 + 0.003
    expected = {
        "time": [0.0, 0.0, 1.0],
        "price_z": [-0.04 / 48.0 / spread],
        "price_rank": [-1.0],
        "price_rank_left": [-1.0],
        "price_to_highest": [0.04 / spread],
        "price_to_lowest": [0.0],
        "price_spread": [spread / 0.01],
        "export_price": [0.04 / 0.05],
        "price_ahead": [0.04 / spread, 0, 0, 0, 0, 0, 0],
        "pv": [2.0],
        "ev": [0.8],
        "net": [1.2],
        "net_ahead": [1.2] * 7,
        "surplus_left": [1.0],
        "deficit_left": [0.0],
        "size_pv": [0.5],
        "size_chargers": [0.3],
        "size_storage": [0.1],
        "energy": [0.0],
        "last_price": [0.0],
        "last_volume": [0.0],
        "last_cap": [1.0],
        "last_accepted": [0.0],
        "last_position": [0.0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(shown(world, state, name)[0, 0], values, atol=1e-6, err_msg=name)
    assert {*expected, "plan_power", "plan_ask", "plan_water_value"} == {feature.name for feature in OBSERVATION}


def test_what_the_last_slot_published_and_told_the_station() -> None:
    # 100 kW against 60: the seller asks 0.04, the bottom of the band, and the rest goes to the utility
    world = small_world(stations(2), pv_kw=[100.0, 0.0], ev_kw=[0.0, 60.0])
    state = initial_state(world, np.array([0]))
    ask = np.array([[0.04 + 0.25 * (0.092 - 0.04), 0.04]])
    state, _ = step(world, state, MarketAction(np.zeros((1, 2)), ask))
    expected = {
        "last_price": [0.25, 0.25],
        "last_volume": [1.2, 1.2],
        "last_accepted": [1.2, -1.2],
        "last_position": [2.0, -1.2],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(shown(world, state, name)[0, :, 0], values, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("noisy", [False, True])
def test_kernels_equal_their_plain_twin_on_whole_days(noisy: bool) -> None:
    changes = {}
    if noisy:  # errors that grow with lead time
        rng = np.random.default_rng(5)
        changes = {
            "growth_frac": np.linspace(0.0, 1.0, N_SLOTS),
            "price_error_eur_per_kwh": 0.01 * rng.standard_normal(N_SLOTS),
            "pv_error_kw": np.abs(rng.standard_normal((N_SLOTS, 1))) * 20.0,
        }
    world = city_world(n_days=2, **changes)
    _, seen = play_random(world, 2)
    for state, _, _ in seen[:: 6 if noisy else 2] + seen[-1:]:
        observation = look(world, state)[1]
        for row in range(2):
            for station in (0, 3, 5):
                expected = market_observation_reference(world, state, row, station)
                np.testing.assert_allclose(observation[row, station], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("noisy", [False, True])
def test_at_the_end_of_the_day_there_is_nothing_ahead_and_no_plan(noisy: bool) -> None:
    world = city_world(n_days=2, growth_frac=np.linspace(0.0, 1.0, N_SLOTS) if noisy else 0.0)
    end, _ = play_random(world, 2)
    plan, seen = look(world, end)
    assert not plan.storage_kw.any()
    assert not own_plan(world, end).water_eur_per_kwh.any()
    place = feature_slices()
    np.testing.assert_allclose(seen[:, :, place["time"]], np.broadcast_to([1.0, 0.0, 1.0], (2, 8, 3)), atol=1e-6)
    for name in ("price_ahead", "net_ahead", "plan_power", "plan_ask", "plan_water_value"):
        assert not seen[:, :, place[name]].any()
    assert np.isfinite(seen).all()


def test_nothing_of_the_others_shows_before_the_market_speaks() -> None:
    world = city_world(n_days=2)
    _, slots = play_random(world, 2)
    for station in range(8):
        others = np.delete(np.arange(8), station)
        order = np.arange(8)
        order[others] = np.random.default_rng(station).permutation(others)
        assert (order != np.arange(8)).any()
        days = world.days._replace(
            **{
                name: np.ascontiguousarray(getattr(world.days, name)[:, :, order])
                for name in ("pv_kw", "ev_kw", "pv_error_kw", "ev_error_kw")
            }
        )
        features = world.features._replace(own=np.ascontiguousarray(world.features.own[:, :, order]))
        assets = type(world.assets)(*(np.ascontiguousarray(column[order]) for column in world.assets))
        value = np.ascontiguousarray(world.value_eur[:, order])
        mixed = dataclasses.replace(world, days=days, features=features, assets=assets, value_eur=value)
        for state, _, _ in slots[::8]:
            swapped = dataclasses.replace(state, **{name: getattr(state, name)[:, order] for name in PRIVATE})
            true, other = look(world, state), look(mixed, swapped)
            np.testing.assert_array_equal(true[1][:, station], other[1][:, station])
            np.testing.assert_array_equal(true[0].ask_eur_per_kwh[:, station], other[0].ask_eur_per_kwh[:, station])
            assert (true[1][:, others] != other[1][:, others]).any()


def test_the_table_fits_the_kernel_and_the_page_names_every_feature() -> None:
    assert n_features(OBSERVATION) == N_FEATURES == 41
    assert len(feature_slices()) == len(OBSERVATION)
    assert observation_space(3).shape == (3, N_FEATURES)
    assert observation_space(None).shape == (N_FEATURES,)
    assert observation_space(None).high.max() == OBSERVATION_CLIP
    for feature in OBSERVATION:
        assert f"| `{feature.name}` | {feature.unit} | {feature.meaning} |" in observation_page()
