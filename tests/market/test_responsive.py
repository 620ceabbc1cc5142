"""Drivers who answer prices: small sums by hand, the same answers in any batch, agreement with a convex programme."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evcs_gym.baselines.traffic import traffic_optimum
from evcs_gym.envs import load_scenario
from evcs_gym.envs.errors import ConfigError, ConvergenceError, DataError
from evcs_gym.envs.market import responsive
from evcs_gym.envs.market.core import MarketAction, ask_band, initial_state, step
from evcs_gym.envs.market.responsive import (
    Drivers,
    ResponsiveState,
    ResponsiveWorld,
    answer_prices,
    cooperative_eur,
    initial_responsive_state,
    responsive_world,
    step_responsive,
    with_reset_responsive_rows,
)
from evcs_gym.envs.scenario import Scenario, scenario_from_dict
from evcs_gym.envs.specs import read_yaml
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H


def city(**section: Any) -> Scenario:
    source, content = read_yaml("scenarios", "ieee33_twelve")
    return scenario_from_dict({**content, "responsive_demand": section}, source)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return city()


@pytest.fixture(scope="module")
def world(scenario: Scenario) -> ResponsiveWorld:
    return responsive_world(scenario, scenario.days(range(3), "test"))


def rest(world: ResponsiveWorld, state: ResponsiveState) -> MarketAction:
    """Idle storage, asks at the export price."""
    low, _ = ask_band(world.market, state.market)
    shape = state.arrivals_veh_per_h.shape
    return MarketAction(np.zeros(shape), np.broadcast_to(low[:, None], shape))


def at_slot(world: ResponsiveWorld, slot: int, day: int = 0) -> ResponsiveState:
    state = initial_responsive_state(world, np.array([day]))
    return dataclasses.replace(state, market=dataclasses.replace(state.market, slot=np.array([slot])))


def answer(world: ResponsiveWorld, price: float | FloatArray, slot: int = 40) -> Drivers:
    return answer_prices(world, at_slot(world, slot), np.broadcast_to(price, (1, 8)) + np.zeros((1, 8)))[0]


def own_prices(world: ResponsiveWorld) -> FloatArray:
    return np.array(world.market.assets.retail_eur_per_kwh)


# --- by hand -----------------------------------------------------------------------------------------------


def test_every_car_of_the_slot_charges_here_or_takes_the_outside_option(world: ResponsiveWorld) -> None:
    charging = world.assigned_veh_per_h[0, 40, 12:].sum()
    for price in (0.30, 0.45, 0.50):
        found = answer(world, price)
        assert found.arrivals_veh_per_h.sum() + found.outside_veh_per_h[0] == pytest.approx(charging, rel=1e-9)
        assert found.outside_eur[0] == pytest.approx(SLOT_H * 12.0 * found.outside_veh_per_h[0])


def test_dear_stations_lose_cars_and_where_all_are_dear_cars_stay_away(world: ResponsiveWorld) -> None:
    prices = np.full(8, 0.40)
    alike = answer(world, prices)
    prices[5] = 0.42
    assert answer(world, prices).arrivals_veh_per_h[0, 5] < alike.arrivals_veh_per_h[0, 5] - 1.0
    assert alike.outside_veh_per_h[0] == 0.0
    # 20 kWh at 0.50 EUR/kWh and 8 minutes at 15 EUR/h cost 12 EUR, as much as the outside option, queues come on top
    assert answer(world, 0.50).arrivals_veh_per_h.sum() < 0.1 * alike.arrivals_veh_per_h.sum()


def test_time_is_that_of_roads_and_stations(world: ResponsiveWorld) -> None:
    found, model = answer(world, 0.40), world.model
    roads = found.link_flow_veh_per_h[0] @ model.network.link_time_h(found.link_flow_veh_per_h[0])
    cars, capacity = found.arrivals_veh_per_h[0], model.stations.capacity_veh_per_h
    stations = cars @ (20.0 / 150.0 * (1.0 + 0.1 * cars / (capacity - cars)))  # (T2), J = 0.1
    assert found.travel_eur[0] == pytest.approx(SLOT_H * 15.0 * (roads + stations), rel=1e-9)


def test_power_and_income_follow_the_cars_and_their_price(world: ResponsiveWorld) -> None:
    state = at_slot(world, 38)
    price = own_prices(world)[None] + 0.01
    after, outcome, drivers = step_responsive(world, state, rest(world, state), price)
    late = (20.0 / 150.0) / (2.0 * SLOT_H)
    power = 20.0 * ((1.0 - late) * drivers.arrivals_veh_per_h + late * state.arrivals_veh_per_h)  # (T6)
    np.testing.assert_allclose(outcome.ev_kw, power, rtol=1e-12)
    np.testing.assert_allclose(outcome.terms.ev_income_eur, SLOT_H * price * (power - outcome.unserved_kw), rtol=1e-12)
    np.testing.assert_array_equal(after.arrivals_veh_per_h, drivers.arrivals_veh_per_h)
    np.testing.assert_allclose(
        cooperative_eur(outcome, drivers), -outcome.community_eur - drivers.travel_eur - drivers.outside_eur
    )


def test_at_their_own_prices_a_day_is_the_prepared_one() -> None:
    """Where the outside option is dear and the gap small, the answer is the day's own traffic."""
    scenario = city(outside_eur=100.0, relative_gap=1e-8)
    world = responsive_world(scenario, scenario.days([0], "test"))
    state, prepared = initial_responsive_state(world, np.array([0])), initial_state(world.market, np.array([0]))
    for _ in range(6):
        action = rest(world, state)
        prepared, known = step(world.market, prepared, action)
        state, outcome, _ = step_responsive(world, state, action, own_prices(world)[None])
        np.testing.assert_allclose(outcome.ev_kw, known.ev_kw, atol=1.0)
        np.testing.assert_allclose(outcome.profit_eur, known.profit_eur, atol=0.2)


def test_profits_are_income_less_the_cost_of_the_community(world: ResponsiveWorld) -> None:
    state, rng = initial_responsive_state(world, np.arange(3)), np.random.default_rng(0)
    for _ in range(N_SLOTS):
        action = dataclasses.replace(rest(world, state), storage_kw=300.0 * rng.uniform(-1.0, 1.0, (3, 8)))
        state, outcome, drivers = step_responsive(world, state, action, rng.uniform(0.30, 0.50, (3, 8)))
        income = outcome.terms.ev_income_eur.sum(axis=1)
        np.testing.assert_allclose(outcome.profit_eur.sum(axis=1), income - outcome.community_eur, atol=1e-9)
        assert drivers.relative_gap.max() <= world.relative_gap
    assert (state.market.slot == N_SLOTS).all()


# --- properties --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=10)
@given(slot=st.integers(0, 47), seed=st.integers(0, 1000))
def test_an_answer_is_the_same_bit_for_bit_in_any_company(world: ResponsiveWorld, slot: int, seed: int) -> None:
    price = np.random.default_rng(seed).uniform(0.30, 0.50, (40, 8))
    start = initial_responsive_state(world, np.arange(40) % 3)
    start = dataclasses.replace(start, market=dataclasses.replace(start.market, slot=np.full(40, slot)))
    together = answer_prices(world, start, price)[0]
    alone = answer_prices(world, at_slot(world, slot, 39 % 3), price[39:])[0]
    np.testing.assert_array_equal(together.arrivals_veh_per_h[39:], alone.arrivals_veh_per_h)
    np.testing.assert_array_equal(together.travel_eur[39:], alone.travel_eur)


def test_rows_begin_again_as_new(world: ResponsiveWorld) -> None:
    state = initial_responsive_state(world, np.array([0, 1]))
    later, _, _ = step_responsive(world, state, rest(world, state), np.tile(own_prices(world), (2, 1)))
    mixed = with_reset_responsive_rows(world, later, np.array([True, False]), np.array([2]))
    fresh = initial_responsive_state(world, np.array([2]))
    assert (mixed.market.day.tolist(), mixed.market.slot.tolist()) == ([2, 1], [0, 1])
    np.testing.assert_array_equal(mixed.arrivals_veh_per_h[0], fresh.arrivals_veh_per_h[0])
    np.testing.assert_array_equal(mixed.path_flow_veh_per_h[0], fresh.path_flow_veh_per_h[0])
    np.testing.assert_array_equal(mixed.arrivals_veh_per_h[1], later.arrivals_veh_per_h[1])


# --- by a convex programme ---------------------------------------------------------------------------------


def test_an_answer_is_the_minimum_of_beckmanns_function() -> None:
    scenario = city(relative_gap=1e-7)
    world = responsive_world(scenario, scenario.days([0], "test"))
    price = np.random.default_rng(4).uniform(0.36, 0.48, 8)
    found = answer(world, price)
    through, charging = world.assigned_veh_per_h[0, 40].reshape(2, -1)
    best = traffic_optimum(world.model, charging, through, price)
    np.testing.assert_allclose(
        found.arrivals_veh_per_h[0], best.flow_veh_per_h[world.model.station_resources], atol=0.2
    )


# --- refused -----------------------------------------------------------------------------------------------


def test_impossible_prices_are_refused(world: ResponsiveWorld) -> None:
    state = initial_responsive_state(world, np.array([0]))
    with pytest.raises(DataError, match=r"retail prices must have shape \(B, S\) = \(1, 8\), got \(1, 7\)"):
        step_responsive(world, state, rest(world, state), np.full((1, 7), 0.4))
    for bad in (0.6, 0.2, np.nan):
        with pytest.raises(ConfigError, match=r"retail price \[0, 0\] must lie in \[0.3, 0.5\] of responsive_demand"):
            step_responsive(world, state, rest(world, state), np.full((1, 8), bad))


def test_a_gap_that_cannot_be_reached_is_an_error(world: ResponsiveWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*arguments: Any) -> Any:
        found = solve(*arguments)
        return dataclasses.replace(found, converged=np.zeros(1, dtype=np.bool_))

    solve = responsive.solve_apart
    monkeypatch.setattr(responsive, "solve_apart", short)
    with pytest.raises(ConvergenceError, match=r"the answer to prices of row 0 must reach relative_gap 0\.0001"):
        answer(world, 0.4)


def test_a_scenario_without_responsive_demand_or_a_day_of_other_roads_is_refused(scenario: Scenario) -> None:
    plain = load_scenario("ieee33_twelve")
    with pytest.raises(ConfigError, match="ieee33_twelve: responsive_demand is no section of this scenario"):
        responsive_world(plain, plain.days([0]))
    day = dataclasses.replace(plain.day(0), traffic=None)
    with pytest.raises(DataError, match="day train/0 must have the traffic of scenario 'ieee33_twelve'"):
        responsive_world(scenario, [day])


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"least_retail_eur_per_kwh": 0.5}, "least_retail_eur_per_kwh must be below largest_retail_eur_per_kwh"),
        (
            {"largest_retail_eur_per_kwh": 0.402},
            r"retail_eur_per_kwh must lie in .*\[0.3, 0.402\], got 0.405",
        ),
        ({"outside_cost": 3.0}, "outside_cost is no known key; did you mean 'outside_eur'"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(section: dict[str, float], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        city(**section)


def test_responsive_demand_needs_stations_and_is_off_by_default() -> None:
    source, content = read_yaml("scenarios", "ieee33_residential")
    with pytest.raises(ConfigError, match="stations is missing; responsive_demand needs roads and stations"):
        scenario_from_dict({**content, "responsive_demand": {}}, source)
    shown = load_scenario("ieee33_twelve").model_dump(mode="json", by_alias=True)
    assert "responsive_demand" not in shown
    again = city().model_dump(mode="json", by_alias=True)
    assert scenario_from_dict(again).responsive_demand.outside_eur == 12.0
