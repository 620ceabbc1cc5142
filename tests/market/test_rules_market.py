"""The rules of the market: slots by hand, and the same contract for all of them."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from market_fixtures import city_world, small_world, stations

from evcs_gym.baselines.rules_market import MARKET_RULES, RESTORED_SLOT
from evcs_gym.envs.market.core import MarketOutcome, MarketState, MarketWorld, initial_state, step
from evcs_gym.envs.market.operators import NO_OPERATOR
from evcs_gym.envs.market.view import OwnPlan, own_plan, view
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS


def play(world: MarketWorld, name: str, n_rows: int = 1) -> tuple[MarketState, list[MarketOutcome]]:
    """A whole day under a rule, without operator."""
    state, outcomes = initial_state(world, np.arange(n_rows) % world.n_days), []
    for _ in range(N_SLOTS):
        action = MARKET_RULES[name](view(world, state), own_plan(world, state))
        state, outcome = step(world, state, action, NO_OPERATOR)
        outcomes.append(outcome)
    return state, outcomes


def at_slot(world: MarketWorld, slot: int, **changes: Any) -> MarketState:
    return dataclasses.replace(initial_state(world, np.array([0])), slot=np.array([slot]), **changes)


def wish(world: MarketWorld, name: str, slot: int, **changes: Any) -> list[float]:
    state = at_slot(world, slot, **changes)
    return MARKET_RULES[name](view(world, state), own_plan(world, state)).storage_kw[0].tolist()  # type: ignore[no-any-return]


# --- by hand -----------------------------------------------------------------------------------------------


def test_self_consumption_stores_the_surplus_and_covers_the_deficit() -> None:
    world = small_world(stations(2), pv_kw=[30.0, 0.0], ev_kw=[0.0, 80.0])
    assert wish(world, "self_consumption", 0) == [30.0, -50.0]
    assert wish(world, "self_consumption", 30) == [30.0, 0.0]  # at night nothing below the 50 kWh of noon


def test_at_night_the_rest_is_bought_evenly_until_six() -> None:
    world = small_world(stations(1))
    night = wish(world, "self_consumption", 32, energy_kwh=np.array([[40.0]]))
    assert night == pytest.approx([10.0 / 4 / 0.5])  # 10 kWh in four slots
    assert wish(world, "self_consumption", RESTORED_SLOT, energy_kwh=np.array([[40.0]])) == pytest.approx([20.0])


def test_arbitrage_discharges_when_dear_and_charges_when_cheap() -> None:
    spot = np.full(N_SLOTS, 0.05)
    spot[8:20], spot[30:38] = 0.10, 0.02
    world = small_world(stations(1), ev_kw=20.0, spot_eur_per_kwh=spot)
    assert [wish(world, "arbitrage", slot) for slot in (0, 10, 25)] == [[0.0], [-20.0], [0.0]]
    assert wish(world, "arbitrage", 31, energy_kwh=np.array([[45.0]])) == [10.0]


def test_the_markup_is_a_share_of_what_the_band_leaves() -> None:
    world = small_world(stations(1), pv_kw=10.0)
    state = at_slot(world, 0)
    seen = view(world, state)
    plan = OwnPlan(np.zeros((1, 1)), np.array([[0.062]]), np.zeros((1, 1)))
    assert MARKET_RULES["dp_markup"](seen, plan).ask_eur_per_kwh == pytest.approx(np.array([[0.071]]))
    assert MARKET_RULES["dp_truthful"](seen, plan).ask_eur_per_kwh == 0.062
    assert MARKET_RULES["idle"](seen, plan).ask_eur_per_kwh == pytest.approx(0.04)


def test_random_bids_are_spread_evenly_and_follow_from_the_row_alone() -> None:
    world = city_world(4)
    asks: list[FloatArray] = []
    for slot in range(0, N_SLOTS, 4):
        state = dataclasses.replace(initial_state(world, np.arange(4)), slot=np.full(4, slot))
        seen, plan = view(world, state), own_plan(world, state)
        action = MARKET_RULES["zero_intelligence"](seen, plan)
        low, high = seen.least_ask_eur_per_kwh[:, None], seen.largest_ask_eur_per_kwh[:, None]
        asks.append((action.ask_eur_per_kwh - low) / (high - low))
        alone = MarketState(**{f.name: getattr(state, f.name)[2:3] for f in dataclasses.fields(state)})
        one = MARKET_RULES["zero_intelligence"](view(world, alone), own_plan(world, alone))
        assert np.array_equal(one.storage_kw[0], action.storage_kw[2])
    shares = np.concatenate([ask.ravel() for ask in asks])
    assert len(np.unique(shares)) == len(shares)
    assert np.histogram(shares, 4, (0, 1))[0] == pytest.approx(np.full(4, len(shares) / 4), rel=0.3)


# --- the same contract for all -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MARKET_RULES)
def test_every_rule_can_be_played_and_ends_with_what_it_began_with(name: str) -> None:
    world = city_world(2)
    state, outcomes = play(world, name, n_rows=2)
    lacking = 1.0 - state.energy_kwh / world.assets.energy_start_kwh
    assert lacking.max() < (0.02 if name == "idle" else 1e-6)  # idle storage loses 0.02 % a slot
    again, _ = play(world, name, n_rows=2)
    assert np.array_equal(again.energy_kwh, state.energy_kwh)
    assert all(np.isfinite(outcome.profit_eur).all() for outcome in outcomes)


@pytest.mark.parametrize("name", MARKET_RULES)
def test_no_rule_looks_at_another_station(name: str) -> None:
    """Other energies and sizes of the neighbours change no wish and no ask of the first station."""
    one = small_world(stations(2), pv_kw=[30.0, 0.0], ev_kw=[0.0, 80.0])
    other = small_world(
        stations(2, storage_kwh=[100.0, 900.0], energy_start_kwh=[50.0, 400.0]), pv_kw=[30.0, 500.0], ev_kw=[0.0, 10.0]
    )
    for slot in (0, 20, 30, 40):
        actions = []
        for world in (one, other):
            state = at_slot(world, slot, energy_kwh=np.array([[45.0, 33.0]]))
            actions.append(MARKET_RULES[name](view(world, state), own_plan(world, state)))
        assert actions[0].storage_kw[0, 0] == actions[1].storage_kw[0, 0]
        assert actions[0].ask_eur_per_kwh[0, 0] == actions[1].ask_eur_per_kwh[0, 0]
