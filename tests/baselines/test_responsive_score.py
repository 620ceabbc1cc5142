"""Scoring where drivers respond: prices by hand, cars and euros that add up, every rule at every retail rule."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from evcs_gym.baselines import make_rule
from evcs_gym.baselines.retail_market import RETAIL_RULES, retail_rule
from evcs_gym.baselines.rules_market import MARKET_RULES
from evcs_gym.baselines.score_responsive import AtPrices, responsive_rollout
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.market.core import initial_state
from evcs_gym.envs.market.responsive import ResponsiveWorld, responsive_world
from evcs_gym.envs.market.view import MarketView, view
from evcs_gym.envs.scenario import Scenario, scenario_from_dict
from evcs_gym.envs.specs import read_yaml
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import SLOT_H

LEAST, LARGEST = 0.30, 0.50


def city(**section: Any) -> Scenario:
    source, content = read_yaml("scenarios", "ieee33_twelve")
    return scenario_from_dict({**content, "responsive_demand": section}, source)


@pytest.fixture(scope="module")
def world() -> ResponsiveWorld:
    scenario = city()
    return responsive_world(scenario, scenario.days([0, 1], "test"))


@pytest.fixture(scope="module")
def evening(world: ResponsiveWorld) -> MarketView:
    """Two rows in slot 3 of a day whose import tariff is 0.20 but for 0.26 there: 0.00125 more in the mean of 48."""
    imports = np.full((2, 48), 0.20)
    imports[:, 3] = 0.26
    seen = view(world.market, initial_state(world.market, np.array([0, 1])))
    return dataclasses.replace(seen, slot=np.array([3, 4]), import_eur_per_kwh=imports)


# --- by hand -----------------------------------------------------------------------------------------------


def test_retail_prices_by_hand(evening: MarketView) -> None:
    owned = evening.assets.retail_eur_per_kwh
    np.testing.assert_array_equal(RETAIL_RULES["own"](evening, LEAST, LARGEST), [owned, owned])
    assert set(RETAIL_RULES["least"](evening, LEAST, LARGEST).ravel()) == {0.30}
    assert set(RETAIL_RULES["largest"](evening, LEAST, LARGEST).ravel()) == {0.50}
    moved = RETAIL_RULES["tariff"](evening, 0.0, 1.0)
    np.testing.assert_allclose(moved, [owned + 0.06 - 0.00125, owned - 0.00125])
    held = RETAIL_RULES["tariff"](evening, LEAST, float(owned.max()) + 0.01)
    np.testing.assert_allclose(held[0], np.minimum(owned + 0.05875, owned.max() + 0.01))


def test_every_car_is_served_or_stays_outside_and_takes_20_kwh(world: ResponsiveWorld) -> None:
    """At the least price nobody stays outside, at the largest nearly everybody does. The day takes over what the slot
    before it committed and leaves as much to the next: a part of one slot's cars."""
    cars = SLOT_H * world.assigned_veh_per_h[:, :, 12:].sum(axis=(1, 2))
    cheap = responsive_rollout(world, AtPrices(make_rule("idle", "market"), RETAIL_RULES["least"]))
    dear = responsive_rollout(world, AtPrices(make_rule("idle", "market"), RETAIL_RULES["largest"]))
    np.testing.assert_allclose(cheap.outside_veh, 0.0, atol=1e-9)
    np.testing.assert_allclose(cheap.served_kwh.sum(axis=1), 20.0 * cars, rtol=0.02)
    assert (dear.outside_veh > 0.9 * cars).all()
    taken_over_kwh = 20.0 * world.before_veh_per_h.sum(axis=1) * SLOT_H * (20.0 / 150.0) / (2.0 * SLOT_H)  # (T6)
    left_kwh = 20.0 * (cars - dear.outside_veh) + taken_over_kwh - dear.served_kwh.sum(axis=1)
    assert ((left_kwh >= -1e-6) & (left_kwh < 20.0)).all()  # of the few who charge in the last slot
    np.testing.assert_allclose(cheap.served_kwh.sum(axis=1), cheap.market.asked_kwh - cheap.market.unserved_kwh)


def test_the_gain_is_profit_less_drivers_payments_time_and_the_outside_option(world: ResponsiveWorld) -> None:
    """15 EUR for an hour, 12 EUR for a car outside; what drivers pay is the stations' and leaves the sum."""
    played = responsive_rollout(world, AtPrices(make_rule("dp_truthful", "market"), RETAIL_RULES["largest"]))
    income_eur = 0.50 * played.served_kwh.sum(axis=1)
    np.testing.assert_allclose(played.market.income_eur, income_eur)
    gain = played.market.profit_eur.sum(axis=1) - income_eur - 15.0 * played.travel_h - 12.0 * played.outside_veh
    np.testing.assert_allclose(played.cooperative_eur, gain, rtol=1e-9)


def test_drivers_know_prices_and_no_storage(world: ResponsiveWorld) -> None:
    idle, moving = (responsive_rollout(world, AtPrices(make_rule(name, "market"))) for name in ("idle", "dp_truthful"))
    np.testing.assert_array_equal(idle.travel_h, moving.travel_h)
    np.testing.assert_array_equal(idle.market.asked_kwh, moving.market.asked_kwh)
    assert (idle.market.profit_eur != moving.market.profit_eur).all()


# --- contract ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retail", RETAIL_RULES)
@pytest.mark.parametrize("policy", MARKET_RULES)
def test_every_rule_plays_at_every_retail_rule_and_its_accounts_hold(
    world: ResponsiveWorld, policy: str, retail: str
) -> None:
    played = responsive_rollout(world, AtPrices(make_rule(policy, "market"), retail_rule(retail)))
    market = played.market
    assert market.profit_eur.shape == played.served_kwh.shape == (2, 8)
    np.testing.assert_allclose(market.profit_eur.sum(axis=1), market.income_eur - market.cost_eur, atol=1e-8)
    np.testing.assert_allclose(played.served_kwh.sum(axis=1), market.asked_kwh - market.unserved_kwh, atol=1e-6)
    assert (played.served_kwh >= 0.0).all()
    assert (played.outside_veh >= 0.0).all()
    assert market.n_violations.tolist() == market.n_collapsed.tolist() == [0, 0]


def test_prices_outside_the_band_or_of_another_shape_are_refused(world: ResponsiveWorld) -> None:
    def far(seen: MarketView, least: float, largest: float) -> FloatArray:
        return np.full_like(seen.energy_kwh, largest + 0.01)

    def one(seen: MarketView, least: float, largest: float) -> FloatArray:
        return np.array([least])

    with pytest.raises(ConfigError, match=r"retail price \[0, 0\] must lie in \[0.3, 0.5\]"):
        responsive_rollout(world, AtPrices(make_rule("idle", "market"), far))
    with pytest.raises(DataError, match=r"retail prices must have shape \(B, S\) = \(2, 8\)"):
        responsive_rollout(world, AtPrices(make_rule("idle", "market"), one))


def test_an_unknown_retail_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no retail rule 'tarif'; did you mean 'tariff'"):
        retail_rule("tarif")
