"""Best response of one station: by hand, against enumeration, against random plans, in the environment."""

import itertools
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_fixtures import city_world, random_action, small_world, stations
from numpy.typing import ArrayLike

from evcs_gym.baselines.best_response import (
    GAP_EUR,
    Bids,
    best_response,
    record_bids,
    regret,
    replay_eur,
    response_problem,
    station_regret,
)
from evcs_gym.baselines.forms.best_response import best_response as form_of
from evcs_gym.baselines.policy_market import MarketStage
from evcs_gym.baselines.problems import best_response as problems
from evcs_gym.baselines.problems.best_response import (
    ASK_STEP_EUR_PER_KWH,
    STEP_KW,
    ResponseProblem,
    Way,
    check_data,
    play,
    ways,
)
from evcs_gym.envs.errors import ConfigError, DataError, SolverError
from evcs_gym.envs.market.core import MarketAction, MarketWorld
from evcs_gym.envs.market.operators import NO_OPERATOR, PRO_RATA
from evcs_gym.envs.market.station import kernel_assets
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS

OFF_EUR = 2 * GAP_EUR
"""Gap of the search, and the same for asks and quantities that stay a step apart from where a price changes."""


FEE = 0.01


def problem_by_hand(
    others_kw: ArrayLike,
    others_ask: ArrayLike,
    *,
    pv_kw: ArrayLike = 0.0,
    ev_kw: ArrayLike = 0.0,
    imports: ArrayLike = 0.10,
    exports: ArrayLike = 0.02,
    rule: str = "marginal",
    reservation: bool = True,
    **columns: ArrayLike,
) -> ResponseProblem:
    """One station of `market_fixtures.stations` without retail income against others (T, O); fee 0.01."""
    others, asks = np.array(others_kw, dtype=np.float64), np.array(others_ask, dtype=np.float64)

    def wide(values: ArrayLike) -> FloatArray:
        return np.array(np.broadcast_to(np.asarray(values, dtype=np.float64), (len(others),)))

    return ResponseProblem(
        name="s0",
        assets=kernel_assets(stations(1, **{"retail_eur_per_kwh": 0.0, **columns})),
        import_eur_per_kwh=wide(imports),
        export_eur_per_kwh=wide(exports),
        network_fee_eur_per_kwh=FEE,
        price_rule=rule,
        reservation=reservation,
        pv_kw=wide(pv_kw),
        ev_kw=wide(ev_kw),
        others_kw=others,
        others_ask_eur_per_kwh=np.array(np.broadcast_to(asks, others.shape)),
    )


NO_STORAGE = {"storage_kwh": 0.0, "storage_kw": 0.0, "energy_start_kwh": 0.0}


# --- by hand -------------------------------------------------------------------------------------------------


def test_a_pivotal_seller_asks_the_top_of_the_band() -> None:
    """Demand 100, the rival offers 60 at 0.03: 40 kW at the largest ask 0.09 and 60 to the utility at 0.02 are 4.8 an
    hour; all 100 just below the rival's ask are 3.0, sold at 0.03 beside the rival 0.03 x 40 + 0.02 x 60 = 2.4."""
    problem = problem_by_hand([[60.0, -100.0]], 0.03, pv_kw=100.0, **NO_STORAGE)
    found = best_response(problem)
    assert found.ask_eur_per_kwh[0] == pytest.approx(0.09, abs=1e-12)
    assert found.profit_eur == pytest.approx(0.5 * (40 * 0.09 + 60 * 0.02), abs=1e-9)
    assert found.gap_eur == pytest.approx(0.0, abs=1e-9)


def test_a_seller_that_is_not_pivotal_asks_just_below_its_rival() -> None:
    problem = problem_by_hand([[150.0, -100.0]], 0.05, pv_kw=100.0, **NO_STORAGE)
    found = best_response(problem)
    assert found.ask_eur_per_kwh[0] == pytest.approx(0.05 - ASK_STEP_EUR_PER_KWH)
    assert found.bound_eur == pytest.approx(0.5 * 100 * 0.05)
    assert found.profit_eur == pytest.approx(0.5 * 100 * (0.05 - ASK_STEP_EUR_PER_KWH))


def test_a_seller_spreads_its_sun_so_that_the_dear_rival_stays_marginal() -> None:
    """Rivals offer 80 at 0.03 and 80 at 0.08 to a demand of 100: there is room for 20 kW at 0.08. All the sun of 40 kW
    at once would bring 40 x 0.03, or 20 x 0.08 and the rest nothing; half of it stored brings 20 x 0.08 twice."""
    problem = problem_by_hand(
        [[80.0, 80.0, -100.0]] * 2, [0.03, 0.08, 0.0], pv_kw=[40.0, 0.0], exports=0.0, storage_kw=40.0,
        storage_kwh=20.0, energy_start_kwh=0.0,
    )  # fmt: skip
    found = best_response(problem)
    assert found.profit_eur == pytest.approx(0.5 * 2 * 20 * 0.08, abs=OFF_EUR)
    assert play(problem, found.storage_kw, found.ask_eur_per_kwh).position_kw == pytest.approx([20.0, 20.0], abs=1e-4)


def test_a_buyer_spreads_its_purchase_so_that_the_dear_seller_is_not_needed() -> None:
    """Sellers offer 50 at 0.03 and 100 at 0.08, another buyer takes 30: up to 20 kW cost 0.03 and the fee 0.01.
    Its 40 kW of the second slot at once would all cost 0.09; half of it stored in the first costs 0.04 twice."""
    problem = problem_by_hand(
        [[50.0, 100.0, -30.0]] * 2, [0.03, 0.08, 0.0], ev_kw=[0.0, 40.0], storage_kw=40.0, storage_kwh=20.0,
        energy_start_kwh=0.0,
    )  # fmt: skip
    found = best_response(problem)
    assert found.profit_eur == pytest.approx(-0.5 * 2 * 20 * 0.04, abs=OFF_EUR)
    assert play(problem, found.storage_kw, found.ask_eur_per_kwh).position_kw == pytest.approx([-20.0, -20.0], abs=1e-4)


def test_the_ways_of_a_slot_by_hand() -> None:
    """Sun 10, demand of the others 30, a rival offers 20 at 0.05. Selling: 10 kW more than the rival leaves at the top
    0.09, up to 30 kW just below 0.05, all at 0.02. Buying: below 0.05 for nobody, the rival serves others."""
    problem = problem_by_hand([[20.0, -30.0]], [0.05, 0.0], pv_kw=10.0, storage_kw=30.0, storage_kwh=100.0)
    found = {(way.low_kw, way.high_kw, round(way.slope_eur_per_kw / -0.5, 9)) for way in ways(problem)}
    assert found == {
        (-20.0, 0.0, 0.05),  # discharging, up to 30 kW sold below the rival
        (-30.0, 0.0, 0.02),  # discharging, all of it at the utility's price
        (0.0, 10.0, 0.09),  # charging from the own sun, the rest sold at the top of the band
        (10.0, 30.0, 0.10),  # charging more than the own sun
    }


def test_a_kept_ask_keeps_its_place() -> None:
    """Asking 0.06 above a rival's 0.05 that is enough for the demand sells nothing, whatever the storage does."""
    problem = problem_by_hand([[50.0, -40.0]], 0.05, pv_kw=20.0, **NO_STORAGE)
    kept = best_response(problem, np.array([0.06]))
    assert kept.profit_eur == pytest.approx(0.5 * 20 * 0.02)
    assert best_response(problem).profit_eur == pytest.approx(0.5 * 20 * 0.05, abs=1e-4)


def test_a_tie_is_shared_and_offering_more_than_one_has_to_sell_enlarges_the_share() -> None:
    """Demand 30, a rival offers 30 at the same ask 0.05. The sun of 30 alone gets 15; 30 kW of storage offered with it
    get 30 x 60 / 90 = 20, and what is not sold stays in the storage."""
    problem = problem_by_hand(
        [[30.0, -30.0]], [0.05, 0.0], pv_kw=30.0, storage_kw=30.0, storage_kwh=50.0, energy_start_kwh=50.0
    )
    kept = best_response(problem, np.array([0.05]))
    assert kept.profit_eur == pytest.approx(0.5 * (20 * 0.05 + 10 * 0.02))
    played = play(problem, kept.storage_kw, kept.ask_eur_per_kwh)
    assert (played.storage_kw[0], played.energy_kwh[1]) == (0.0, 50.0)
    assert kept.gap_eur == pytest.approx(0.0, abs=1e-9)


def test_the_model_says_what_the_equations_say() -> None:
    problem = problem_by_hand(
        [[0.0]] * 2, 0.02, storage_kw=10.0, storage_kwh=20.0, energy_start_kwh=10.0, energy_min_kwh=4.0,
        self_discharge_frac=0.1, charge_efficiency_frac=0.8, discharge_efficiency_frac=0.5,
    )  # fmt: skip
    named = [Way(0, -10.0, 0.0, 1.0, 2.0, 0.02), Way(1, 0.0, 10.0, 3.0, 4.0, 0.02, full=True)]
    model: Any = form_of(problem, [*named, Way(1, -10.0, 0.0, 0.0, 0.0, 0.02, empty=True)]).model
    rows = {
        "one_way[1]": [1.0, 1.0],
        "above_the_least[0]": [1.0, 10.0],
        "below_the_most[1]": [1.0, -10.0],
        "s1_energy[0]": [1.0, -0.9, -1.0],  # half an hour over 0.5
        "s1_energy[1]": [1.0, -0.9, -0.4, -1.0],
        "s1_least_energy[0]": [1.0, 3.6 - 4.0],
        "n3_full[1]": [1.0, -20.0],
        "n3_empty[1]": [1.0, 16.0],
        "s3_missing": [1.0, 1.0],
    }
    for name, factors in rows.items():
        assert model.find_component(name).body.linear_coefs == pytest.approx(factors), name
    assert model.cost_eur.expr.linear_coefs == pytest.approx([0.125, -1.0, -2.0, -3.0, -4.0, 0.0, 0.0])


# --- against enumeration -------------------------------------------------------------------------------------


def lossless_at_random(seed: int, n_slots: int) -> ResponseProblem:
    """Powers are multiples of 10 kW: prices change at such quantities, so one of them, or a step from it, is best."""
    rng = np.random.default_rng(seed)
    shape, spot = (n_slots, 2), rng.integers(4, 12, n_slots) / 100.0
    share = rng.integers(0, 4, shape) / 3.0
    low, high = spot - 0.04, (spot + 0.05) - FEE
    return problem_by_hand(
        10.0 * rng.integers(-6, 7, shape),
        np.minimum(low[:, None] + share * (high - low)[:, None], high[:, None]),
        pv_kw=10.0 * rng.integers(0, 4, n_slots),
        ev_kw=10.0 * rng.integers(0, 4, n_slots),
        imports=spot + 0.05,
        exports=low,
        rule=("marginal", "critical")[seed % 2],
        storage_kw=20.0,
        storage_kwh=20.0,
        energy_start_kwh=5.0 * rng.integers(0, 5),
        connection_kw=10.0 * rng.integers(3, 6),
        degradation_eur_per_kwh=rng.integers(0, 3) / 100.0,
        lost_load_eur_per_kwh=rng.choice([0.06, 0.50]),
    )


def best_by_enumeration(problem: ResponseProblem) -> float:
    """The most that wishes of 10 kW steps, and a little less or more, and all asks that matter earn."""
    wishes = np.add.outer(10.0 * np.arange(-2, 3), (0.0, -2 * STEP_KW, 2 * STEP_KW)).ravel()
    top = problem.import_eur_per_kwh - problem.network_fee_eur_per_kwh
    choices = []
    for t in range(problem.n_slots):
        low, asks = problem.export_eur_per_kwh[t], problem.others_ask_eur_per_kwh[t]
        near = [low, top[t], *asks, *(asks - ASK_STEP_EUR_PER_KWH), *(asks + ASK_STEP_EUR_PER_KWH)]
        choices.append(list(itertools.product(wishes, np.unique(np.clip(near, low, top[t])))))
    best = -np.inf
    for plan in itertools.product(*choices):
        wish, ask = (np.array(values) for values in zip(*plan, strict=True))
        best = max(best, play(problem, wish, ask).profit_eur)
    return float(best)


@pytest.mark.parametrize("seed", range(4))
def test_enumeration_through_the_auction_finds_nothing_better_and_comes_close(seed: int) -> None:
    problem = lossless_at_random(seed, n_slots=2)
    found, best = best_response(problem), best_by_enumeration(problem)
    assert best <= found.bound_eur + 1e-9
    assert found.profit_eur == pytest.approx(best, abs=OFF_EUR)


# --- properties ----------------------------------------------------------------------------------------------


def lossy_at_random(seed: int, n_slots: int = 4, n_others: int = 3) -> ResponseProblem:
    """Losses, self-discharge, least energies, tight connections, now and then worthless drivers, ties or none."""
    rng = np.random.default_rng(seed)
    shape, spot = (n_slots, n_others), rng.uniform(0.02, 0.12, n_slots)
    size, low = rng.uniform(20.0, 100.0), np.maximum(spot - 0.05, 0.0)
    least = rng.uniform(0.0, 0.3) * size * rng.integers(0, 2)
    share = np.round(3.0 * rng.uniform(size=shape)) / 3.0 if rng.integers(0, 2) else rng.uniform(size=shape)
    top = ((spot + 0.05) - FEE)[:, None]
    return problem_by_hand(
        np.round(rng.uniform(-80.0, 80.0, shape), rng.integers(0, 3)) * rng.integers(0, 2, shape),
        np.clip(low[:, None] + share * (top - low[:, None]), low[:, None], top),
        pv_kw=rng.uniform(0.0, 80.0, n_slots) * rng.integers(0, 2, n_slots),
        ev_kw=rng.uniform(0.0, 80.0, n_slots) * rng.integers(0, 2, n_slots),
        imports=spot + 0.05,
        exports=low,
        rule=rng.choice(["marginal", "critical"]),
        reservation=bool(rng.integers(0, 4)),
        storage_kw=rng.uniform(10.0, 50.0),
        storage_kwh=size,
        energy_start_kwh=least + rng.uniform() * (size - least),
        energy_min_kwh=least,
        charge_efficiency_frac=rng.uniform(0.7, 1.0),
        discharge_efficiency_frac=rng.uniform(0.7, 1.0),
        self_discharge_frac=rng.uniform(0.0, 0.05) * rng.integers(0, 2),
        connection_kw=rng.uniform(20.0, 150.0),
        degradation_eur_per_kwh=rng.uniform(0.0, 0.02),
        lost_load_eur_per_kwh=rng.choice([0.06, 0.50]),
        retail_eur_per_kwh=rng.choice([0.0, 0.4]),
    )


def random_asks(problem: ResponseProblem, rng: np.random.Generator, like: FloatArray | None = None) -> FloatArray:
    """Anywhere in the band, at its ends, at another's ask or just below, or as another plan asks."""
    low, high = problem.export_eur_per_kwh, problem.import_eur_per_kwh - problem.network_fee_eur_per_kwh
    out = np.empty(problem.n_slots)
    for t in range(problem.n_slots):
        theirs = problem.others_ask_eur_per_kwh[t]
        known = [] if like is None else [like[t]]
        drawn = [low[t], high[t], rng.uniform(low[t], high[t]), *theirs, *(theirs - ASK_STEP_EUR_PER_KWH), *known]
        out[t] = np.clip(rng.choice(drawn), low[t], high[t])
    return out


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_no_plan_beats_the_bound_and_the_plan_found_reaches_it(seed: int) -> None:
    problem, rng = lossy_at_random(seed), np.random.default_rng(seed)
    found = best_response(problem)
    assert found.gap_eur <= OFF_EUR
    asks = random_asks(problem, rng)
    kept = best_response(problem, asks)
    assert kept.profit_eur <= min(kept.bound_eur, found.bound_eur) + 1e-6
    for _ in range(40):
        noise = rng.choice([0.0, 1.0, 10.0, 60.0]) * rng.uniform(-1.0, 1.0, problem.n_slots)
        noise *= rng.integers(0, 2, problem.n_slots)
        free = play(problem, found.storage_kw + noise, random_asks(problem, rng, found.ask_eur_per_kwh)).profit_eur
        assert free <= found.bound_eur + 1e-6
        assert play(problem, kept.storage_kw + noise, asks).profit_eur <= kept.bound_eur + 1e-6


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31))
def test_both_parts_of_the_regret_are_never_negative(seed: int) -> None:
    problem, rng = lossy_at_random(seed), np.random.default_rng(seed)
    wish, ask = rng.uniform(-60.0, 60.0, problem.n_slots), random_asks(problem, rng)
    left = regret(problem, wish, ask)
    assert left.played_eur == play(problem, wish, ask).profit_eur
    assert left.storage_eur >= 0.0
    assert left.strategic_eur >= 0.0
    assert left.kept.profit_eur - 1e-6 <= left.kept.bound_eur <= left.freed.bound_eur
    at_best = regret(problem, left.freed.storage_kw, left.freed.ask_eur_per_kwh)
    assert at_best.storage_eur + at_best.strategic_eur <= OFF_EUR


def test_a_price_taker_that_asks_its_cost_has_no_strategic_regret() -> None:
    """Two rivals offer far more than is asked for at 0.05, on either side of it: nobody alone moves the price."""
    others, asks = [[200.0, 200.0, 100.0, -150.0]], [0.05, 0.05, 0.08, 0.0]
    problem = problem_by_hand(others * 4, asks, pv_kw=20.0, storage_kw=20.0, storage_kwh=40.0, energy_start_kwh=20.0)
    left = regret(problem, np.zeros(4), np.full(4, 0.03))
    assert left.strategic_eur <= OFF_EUR


# --- in the environment --------------------------------------------------------------------------------------


@dataclass
class Shaken:
    """Random wishes and asks, some of them tied; the same on every call with one seed."""

    seed: int

    def decide(self, stage: MarketStage) -> MarketAction:
        """See `MarketPolicy`."""
        rng = np.random.default_rng([self.seed, int(stage.state.slot[0])])
        return random_action(stage.world, stage.state, rng)


@dataclass
class Fixed:
    """Sells sun and keeps its storage; asks at the export price, so that nobody holds anything back."""

    def decide(self, stage: MarketStage) -> MarketAction:
        """See `MarketPolicy`."""
        return MarketAction(np.zeros_like(stage.state.energy_kwh), stage.least_ask_eur_per_kwh())


def recorded(seed: int = 0, rule: str = "marginal", reservation: bool = True) -> tuple[MarketWorld, Bids]:
    world = city_world(2, rule=rule, reservation=reservation)
    return world, record_bids(world, Shaken(seed))


@pytest.mark.parametrize(("rule", "reservation"), [("marginal", True), ("critical", True), ("marginal", False)])
def test_what_was_played_earns_in_the_problem_what_it_earned_in_the_environment(rule: str, reservation: bool) -> None:
    world, bids = recorded(rule=rule, reservation=reservation)
    for day, station in itertools.product(range(2), range(8)):
        problem = response_problem(world, bids, day, station)
        again = play(problem, bids.wish_kw[day, :, station], bids.ask_eur_per_kwh[day, :, station])
        assert again.profit_eur == pytest.approx(bids.profit_eur[day, station], abs=1e-8)


def test_a_response_replays_exactly_where_nobody_holds_back() -> None:
    world = city_world(1)
    bids = record_bids(world, Fixed())
    found = [best_response(response_problem(world, bids, 0, station)) for station in range(8)]
    as_bid, replayed = replay_eur(world, bids, 0, found, NO_OPERATOR)
    np.testing.assert_allclose(as_bid, bids.profit_eur[0], atol=1e-8)
    np.testing.assert_allclose(replayed, [response.profit_eur for response in found], atol=1e-8)
    assert all(response.gap_eur <= OFF_EUR for response in found)


def test_others_that_hold_back_make_the_replay_differ() -> None:
    world, bids = recorded()
    found = [best_response(response_problem(world, bids, 0, station)) for station in range(8)]
    _, replayed = replay_eur(world, bids, 0, found, NO_OPERATOR)
    error = np.abs(replayed - [response.profit_eur for response in found])
    gain = np.array([response.profit_eur for response in found]) - bids.profit_eur[0]
    assert 1e-3 < error.max() < gain.max()
    _, operated = replay_eur(world, bids, 0, found, PRO_RATA)
    assert not np.allclose(operated, replayed)  # limits bind on this day


def test_the_regret_of_a_station_is_that_of_its_problem() -> None:
    world, bids = recorded()
    wish, ask = bids.wish_kw[1, :, 3], bids.ask_eur_per_kwh[1, :, 3]
    one, other = station_regret(world, bids, 1, 3), regret(response_problem(world, bids, 1, 3), wish, ask)
    assert one.played_eur == pytest.approx(bids.profit_eur[1, 3], abs=1e-8)
    assert (one.storage_eur, one.strategic_eur) == (other.storage_eur, other.strategic_eur)


def test_the_record_holds_offers_before_anything_is_held_back() -> None:
    """Two stations offer 50 kW of storage each at 0.06 to a demand of 30: one is served, both offered 50."""
    world = small_world(stations(3), ev_kw=[0.0, 0.0, 30.0])

    class Ask:
        """Both discharge with all their power."""

        def decide(self, stage: MarketStage) -> MarketAction:
            """See `MarketPolicy`."""
            wish = np.where(stage.state.slot[:, None] == 0, [-50.0, -50.0, 0.0], 0.0)
            return MarketAction(wish, stage.least_ask_eur_per_kwh() + np.array([0.01, 0.02, 0.0]))

    bids = record_bids(world, Ask())
    np.testing.assert_allclose(bids.offered_kw[0, 0], [50.0, 50.0, -30.0])
    np.testing.assert_allclose(bids.wish_kw[0, 0], [-50.0, -50.0, 0.0])
    assert (bids.wish_kw.shape, bids.volume_kw[0, 0]) == ((1, N_SLOTS, 3), 30.0)


# --- refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["mid_market", "pay_as_ask"])
def test_price_rules_without_exact_response_are_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"rule must be marginal or critical, .* got '{rule}'"):
        best_response(problem_by_hand([[10.0]], 0.03, rule=rule))


def test_wrong_shapes_and_nan_are_refused() -> None:
    problem = problem_by_hand([[10.0]], 0.03)
    with pytest.raises(DataError, match=r"problem.pv_kw must be a finite array \(1,\)"):
        check_data(replace(problem, pv_kw=np.zeros(2)))
    with pytest.raises(DataError, match=r"problem.others_kw must be a finite array \(1, 1\)"):
        check_data(replace(problem, others_kw=np.array([[np.nan]])))


def test_no_time_is_an_error_not_a_plan() -> None:
    with pytest.raises(SolverError, match=r"best response of station 's0': no plan in 0 s"):
        best_response(problem_by_hand([[10.0]], 0.03), time_limit_s=0.0)


def test_a_false_bound_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A programme that says 1 EUR at most of plans that earn 2 EUR."""
    monkeypatch.setattr(problems, "ways", lambda *_: [Way(0, 0.0, 0.0, 1.0, 0.0, 0.09)])
    monkeypatch.setattr(problems, "play", lambda *_: SimpleNamespace(profit_eur=2.0))
    with pytest.raises(SolverError, match=r"'s0': no plan can earn more than 1\.000000 EUR, but a known one earns 2"):
        best_response(problem_by_hand([[0.0]], 0.03))
