"""The auction: sums by hand, what must hold for every slot, and a linear programme as the judge."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import auction_reference
from scipy.optimize import linprog

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.market import PRICE_RULES, Clearing, clear
from evcs_gym.envs.market.auction import TIE_FRAC

IMPORT, EXPORT, FEE = 0.10, 0.03, 0.008
TOP = IMPORT - FEE
ASKED_RULES = [rule for rule in PRICE_RULES if rule != "mid_market"]
"""Rules under which asks decide who sells."""


def cleared(position_kw: Any, ask: Any, rule: str = "marginal") -> Clearing:
    return clear(position_kw, ask, IMPORT, EXPORT, FEE, rule)


# --- by hand -----------------------------------------------------------------------------------------------


def test_the_cheaper_seller_sells_first_and_the_marginal_ask_is_the_price() -> None:
    slot = cleared([100.0, 50.0, -120.0], [0.06, 0.04, 0.03])
    assert slot.accepted_kw.tolist() == [70.0, 50.0, -120.0]
    assert (slot.price_eur_per_kwh, slot.volume_kw) == (0.06, 120.0)
    assert slot.payment_eur_per_h == pytest.approx([-70 * 0.06, -50 * 0.06, 120 * 0.068])


@pytest.mark.parametrize(
    ("rule", "price"), [("marginal", 0.04), ("critical", 0.06), ("mid_market", 0.061), ("pay_as_ask", 0.04)]
)
def test_prices_where_demand_ends_with_the_first_seller(rule: str, price: float) -> None:
    slot = cleared([100.0, 50.0, -50.0], [0.06, 0.04, 0.03], rule)
    assert slot.price_eur_per_kwh == pytest.approx(price)


def test_critical_is_the_top_of_the_band_only_when_nobody_is_left_over() -> None:
    assert cleared([100.0, -99.0], [0.05, 0.03], "critical").price_eur_per_kwh == 0.05
    assert cleared([100.0, -100.0], [0.05, 0.03], "critical").price_eur_per_kwh == TOP


def test_scarcity_shares_among_buyers_and_lifts_the_price_to_the_top() -> None:
    slot = cleared([60.0, -40.0, -80.0], [0.04, 0.03, 0.03])
    assert slot.accepted_kw.tolist() == [60.0, -20.0, -40.0]
    assert slot.price_eur_per_kwh == TOP
    assert cleared([60.0, -40.0, -80.0], [0.04, 0.03, 0.03], "pay_as_ask").price_eur_per_kwh == 0.04


def test_pay_as_ask_pays_each_its_ask_and_publishes_the_mean() -> None:
    slot = cleared([100.0, 50.0, -120.0], [0.06, 0.04, 0.03], "pay_as_ask")
    mean = (70 * 0.06 + 50 * 0.04) / 120
    assert slot.price_eur_per_kwh == pytest.approx(mean)
    assert slot.payment_eur_per_h == pytest.approx([-70 * 0.06, -50 * 0.04, 120 * (mean + FEE)])


def test_the_middle_of_the_band_ignores_asks_and_shares_among_all_sellers() -> None:
    slot = cleared([100.0, 50.0, -75.0], [0.09, 0.03, 0.03], "mid_market")
    assert slot.accepted_kw.tolist() == [50.0, 25.0, -75.0]
    assert slot.price_eur_per_kwh == pytest.approx((EXPORT + TOP) / 2)


@pytest.mark.parametrize("rule", PRICE_RULES)
def test_without_two_sides_nothing_is_traded_and_the_price_says_which_side_is_missing(rule: str) -> None:
    for position, price in (([10.0, 5.0], EXPORT), ([0.0, 0.0], EXPORT), ([-10.0, 0.0], TOP)):
        slot = cleared(position, [0.05, 0.05], rule)
        assert slot.price_eur_per_kwh == price
        assert slot.volume_kw == 0.0
        assert not slot.accepted_kw.any()
        assert not slot.payment_eur_per_h.any()


def test_rounding_does_not_choose_the_price() -> None:
    """0.1 + 0.2 > 0.3 in binary: the third seller would be marginal by 5e-17 kW."""
    slot = cleared([0.1, 0.2, 9.0, -0.3], [0.04, 0.04, 0.08, 0.03])
    assert slot.price_eur_per_kwh == 0.04
    slot = cleared([0.1, 0.1, 0.1, 9.0, -0.3], [0.04, 0.04, 0.04, 0.08, 0.03])
    assert slot.price_eur_per_kwh == 0.04


def test_many_slots_at_once_are_each_alone() -> None:
    rng = np.random.default_rng(0)
    position, ask = rng.normal(size=(5, 3, 4)) * 100, rng.uniform(EXPORT, TOP, (5, 3, 4))
    imports = rng.uniform(0.10, 0.2, (5, 3))
    many = clear(position, ask, imports, EXPORT, FEE, "critical")
    for place in np.ndindex(5, 3):
        one = clear(position[place], ask[place], imports[place], EXPORT, FEE, "critical")
        assert many.price_eur_per_kwh[place] == one.price_eur_per_kwh
        assert np.array_equal(many.payment_eur_per_h[place], one.payment_eur_per_h)


# --- what must hold ----------------------------------------------------------------------------------------

quantities = st.one_of(st.floats(-1e4, 1e4).filter(lambda x: abs(x) > 1e-3), st.sampled_from([0.0, 100.0, -100.0]))
asks = st.one_of(st.floats(EXPORT, TOP), st.sampled_from([EXPORT, 0.05, TOP]))
slots = st.lists(st.tuples(quantities, asks), min_size=1, max_size=9)
some = settings(deadline=None, max_examples=150)


@some
@given(slots, st.sampled_from(PRICE_RULES))
def test_bought_is_sold_and_payments_leave_the_fee(offers: list[tuple[float, float]], rule: str) -> None:
    position, ask = np.array(offers).T
    slot = cleared(position, ask, rule)
    volume = float(slot.volume_kw)
    assert volume == pytest.approx(min(position.clip(0).sum(), -position.clip(max=0).sum()), rel=1e-12)
    for side in (position > 0, position < 0):
        assert abs(math.fsum(np.abs(slot.accepted_kw[side]).tolist()) - volume) <= 4 * np.spacing(volume)
    assert slot.payment_eur_per_h.sum() == pytest.approx(FEE * volume, abs=1e-12 * (1 + volume))
    assert (np.abs(slot.accepted_kw) <= np.abs(position)).all()
    assert (slot.accepted_kw * position >= 0).all()


@some
@given(slots, st.sampled_from(PRICE_RULES))
def test_nobody_is_worse_off_than_with_the_utility_and_the_price_is_in_its_band(
    offers: list[tuple[float, float]], rule: str
) -> None:
    position, ask = np.array(offers).T
    slot = cleared(position, ask, rule)
    assert EXPORT <= slot.price_eur_per_kwh <= TOP
    utility = np.where(slot.accepted_kw > 0, EXPORT, IMPORT)
    gain = -slot.payment_eur_per_h - slot.accepted_kw * utility
    assert (gain >= -1e-12 * np.abs(position)).all()


@some
@given(slots, st.sampled_from(ASKED_RULES), st.integers(0, 8), st.floats(0.0, 1.0))
def test_a_lower_ask_never_lowers_the_accepted_quantity(
    offers: list[tuple[float, float]], rule: str, station: int, share: float
) -> None:
    position, ask = np.array(offers).T
    station %= len(position)
    changed = ask.copy()
    changed[station] = EXPORT + share * (ask[station] - EXPORT)
    before, after = (cleared(position, x, rule).accepted_kw[station] for x in (ask, changed))
    assert after * np.sign(position[station]) >= (before - 1e-12 * position[station]) * np.sign(position[station])


@some
@given(slots, st.sampled_from(PRICE_RULES), st.floats(1e-3, 1e4), st.floats(1.0, 3.0))
def test_more_demand_never_lowers_the_price(
    offers: list[tuple[float, float]], rule: str, demand_kw: float, times: float
) -> None:
    position, ask = np.array([*offers, (-demand_kw, EXPORT)]).T
    more = position.copy()
    more[-1] *= times
    before, after = (cleared(x, ask, rule).price_eur_per_kwh for x in (position, more))
    assert after >= before - 1e-15


@some
@given(slots, st.sampled_from(PRICE_RULES), st.randoms(use_true_random=False))
def test_the_order_of_stations_changes_nothing(offers: list[tuple[float, float]], rule: str, rng: Any) -> None:
    position, ask = np.array(offers).T
    order = list(range(len(position)))
    rng.shuffle(order)
    here, there = cleared(position, ask, rule), cleared(position[order], ask[order], rule)
    assert here.price_eur_per_kwh == there.price_eur_per_kwh
    assert np.array_equal(here.accepted_kw[order], there.accepted_kw)
    assert np.array_equal(here.payment_eur_per_h[order], there.payment_eur_per_h)


@some
@given(slots, st.sampled_from(PRICE_RULES), st.sampled_from([1e-3, 1.0 / 3.0, 7.0, 1e3]))
def test_the_unit_of_power_changes_nothing(offers: list[tuple[float, float]], rule: str, unit: float) -> None:
    position, ask = np.array(offers).T
    supply, demand = position.clip(0).sum(), -position.clip(max=0).sum()
    assume(demand == 0 or abs(supply / demand - 1) > 1e-6)
    here, there = cleared(position, ask, rule), cleared(position * unit, ask, rule)
    assert there.price_eur_per_kwh == pytest.approx(here.price_eur_per_kwh, abs=1e-12)
    assert there.accepted_kw / unit == pytest.approx(here.accepted_kw, rel=1e-9, abs=1e-9 * supply + 1e-12)


@some
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0.01, 0.99), st.sampled_from(PRICE_RULES))
def test_equal_asks_share_pro_rata(one: float, other: float, share: float, rule: str) -> None:
    slot = cleared([one, other, -share * (one + other)], [0.05, 0.05, EXPORT], rule)
    assert slot.accepted_kw[:2] == pytest.approx([share * one, share * other], rel=1e-12)


# --- a judge that somebody else wrote -------------------------------------------------------------------------


@some
@given(slots, st.sampled_from(ASKED_RULES))
def test_the_accepted_asks_are_the_cheapest_as_a_linear_programme_finds(
    offers: list[tuple[float, float]], rule: str
) -> None:
    position, ask = np.array(offers).T
    slot = cleared(position, ask, rule)
    sellers, volume = position > 0, float(slot.volume_kw)
    assume(sellers.any() and volume > 1e-2)
    quantity = position[sellers] / volume  # in units of the volume, so that the solver's tolerances mean one thing
    best = linprog(ask[sellers], A_eq=np.ones((1, len(quantity))), b_eq=[1.0], bounds=[(0, q) for q in quantity])
    assert best.status == 0 or quantity.sum() < 1 + 1e-9
    if best.status == 0:
        assert ask[sellers] @ slot.accepted_kw[sellers] / volume == pytest.approx(best.fun, abs=1e-8)


def test_the_marginal_price_is_the_dual_of_the_balance() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        supply, ask = rng.uniform(1, 100, 6), rng.uniform(EXPORT, TOP, 6)
        demand = rng.uniform(0.05, 0.95) * supply.sum()
        best = linprog(ask, A_eq=np.ones((1, 6)), b_eq=[demand], bounds=[(0, q) for q in supply])
        slot = cleared([*supply, -demand], [*ask, EXPORT])
        assert slot.price_eur_per_kwh == pytest.approx(best.eqlin.marginals[0], abs=1e-9)


@some
@given(slots, st.sampled_from(PRICE_RULES))
def test_the_kernel_agrees_with_its_plain_twin(offers: list[tuple[float, float]], rule: str) -> None:
    position, ask = np.array(offers).T
    slot = cleared(position, ask, rule)
    supply, demand = position.clip(0).sum(), -position.clip(max=0).sum()
    assume(demand == 0 or abs(supply / demand - 1) > 1e-6)
    price, volume, accepted, paid = auction_reference(position.tolist(), ask.tolist(), IMPORT, EXPORT, FEE, rule)
    assert slot.price_eur_per_kwh == pytest.approx(price, abs=1e-12)
    assert slot.volume_kw == pytest.approx(volume, rel=1e-12)
    assert slot.accepted_kw == pytest.approx(accepted, abs=1e-12 * (1 + supply))
    assert slot.payment_eur_per_h == pytest.approx(paid, abs=1e-12 * (1 + supply + demand))


# --- refusals ----------------------------------------------------------------------------------------------


def test_asks_outside_the_band_are_refused_and_those_of_buyers_are_not_looked_at() -> None:
    for ask in (EXPORT - 1e-9, TOP + 1e-9):
        with pytest.raises(ConfigError, match=r"ask_eur_per_kwh\[0\] must lie in \[export, import - network fee\]"):
            cleared([1.0, -1.0], [ask, 0.05])
    assert cleared([1.0, -1.0], [0.05, 99.0]).volume_kw == 1.0


@pytest.mark.parametrize("name", ["position_kw", "ask_eur_per_kwh"])
def test_values_that_are_not_finite_are_refused(name: str) -> None:
    arrays = {"position_kw": np.array([[1.0, -1.0]]), "ask_eur_per_kwh": np.array([[0.05, 0.05]])}
    arrays[name][0, 1] = np.nan
    with pytest.raises(DataError, match=rf"{name}\[0, 1\] must be finite, got nan"):
        cleared(*arrays.values())


@pytest.mark.parametrize(("position", "ask"), [([], []), (1.0, 0.05), ([1.0, 2.0], [0.05]), ([[1.0]], [0.05])])
def test_shapes_that_do_not_fit_and_markets_without_stations_are_refused(position: Any, ask: Any) -> None:
    with pytest.raises(DataError, match=r"must have one shape \(\.\.\., S\) with at least one station"):
        cleared(position, ask)
    with pytest.raises(DataError, match=r"import_eur_per_kwh must be one number or of shape \(\), got \(2,\)"):
        clear([1.0], [0.05], [0.1, 0.1], EXPORT, FEE)


def test_tariffs_that_allow_arbitrage_and_unknown_rules_are_refused() -> None:
    for imports, exports, fee in ((0.038, 0.03, 0.008), (0.1, 0.03, -0.001)):
        with pytest.raises(ConfigError, match=r"network fee must be >= 0 and export \+ network fee must stay below"):
            clear([1.0, -1.0], [0.03, 0.03], imports, exports, fee)
    with pytest.raises(DataError, match="the import price must be finite"):
        clear([1.0, -1.0], [0.03, 0.03], np.nan, EXPORT, FEE)
    with pytest.raises(ConfigError, match="rule must be one of marginal, critical, mid_market, pay_as_ask, got 'vcg'"):
        cleared([1.0, -1.0], [0.05, 0.05], "vcg")


def test_the_tolerance_of_a_tie_is_far_below_what_is_called_scarce() -> None:
    """Scarcity is supply <= demand (1 + 1e-9): one part in a million above is not scarce."""
    assert TIE_FRAC == 1e-9
    assert cleared([100.0 * (1 + 1e-6), -100.0], [0.05, 0.03]).price_eur_per_kwh == 0.05
    assert cleared([100.0 * (1 + 1e-10), -100.0], [0.05, 0.03]).price_eur_per_kwh == TOP
