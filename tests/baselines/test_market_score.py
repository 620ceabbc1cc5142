"""Scoring policies of the market: rollouts by hand, the accounts of every slot, references, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from market_fixtures import asks, city_world, line, random_action, small_world, stations
from market_problems import problem_of_row

from evcs_gym.baselines import make_rule, reference
from evcs_gym.baselines.market import solve_programme
from evcs_gym.baselines.policy import Policy
from evcs_gym.baselines.policy_market import MarketPolicy, MarketStage, PlanPolicy, Predictor
from evcs_gym.baselines.reference import references
from evcs_gym.baselines.registry import NAIVE_RULES, played, rules_of
from evcs_gym.baselines.rules_market import MARKET_RULES
from evcs_gym.baselines.score import ms_per_decision, rollout, world_of
from evcs_gym.baselines.score_market import MarketRollout, market_rollout
from evcs_gym.envs import Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.market import PRICE_RULES
from evcs_gym.envs.market.core import MarketAction, MarketOutcome, MarketState, MarketWorld, initial_state, step
from evcs_gym.envs.market.operators import NO_OPERATOR
from evcs_gym.envs.units import N_SLOTS


class AtRandom:
    """Wishes beyond what can be executed, asks anywhere in the band, some of them tied."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def decide(self, stage: MarketStage) -> MarketAction:
        return random_action(stage.world, stage.state, self.rng)


# --- by hand -----------------------------------------------------------------------------------------------


def test_a_day_of_trade_by_hand() -> None:
    """All day 100 kW of sun at one, 60 kW of cars at the other: 60 are traded at 0.04 + 0.008, 40 exported at 0.04."""
    world = small_world(stations(2), pv_kw=[100.0, 0.0], ev_kw=[0.0, 60.0])
    done = rollout(world, make_rule("idle", "market"))
    assert isinstance(done, MarketRollout)
    assert done.cost_eur == pytest.approx([24 * (60 * 0.008 - 40 * 0.04)])
    assert done.income_eur == pytest.approx([24 * 60 * 0.40])
    assert done.profit_eur == pytest.approx(np.array([[24 * 100 * 0.04, 24 * 60 * (0.40 - 0.048)]]))
    assert done.terms.trade_eur == pytest.approx(np.array([[24 * 60 * 0.04, -24 * 60 * 0.048]]))
    assert (done.traded_kwh[0], done.asked_kwh[0]) == pytest.approx((24 * 60, 24 * 60))
    assert done.end_kwh.tolist() == [[50.0, 50.0]]
    zero = ("unserved_kwh", "curtailed_kwh", "held_kwh", "moved_kwh", "n_capped_slots", "n_violations", "n_collapsed")
    assert all(getattr(done, name).tolist() == [0] for name in zero)
    assert 0.99 < done.lowest_voltage_pu[0] < 1.0 < done.highest_voltage_pu[0] < 1.01
    assert done.outcomes is None


def test_a_connection_curtails_and_leaves_drivers_waiting() -> None:
    """120 kW of sun and of cars behind 60 kW: the storage takes or gives 50 kWh, the rest of 60 kW is lost."""
    world = small_world(stations(2, connection_kw=60.0), pv_kw=[120.0, 0.0], ev_kw=[0.0, 120.0])
    done = rollout(world, make_rule("idle", "market"))
    assert done.curtailed_kwh == pytest.approx([24 * 60 - 50])
    assert done.unserved_kwh == pytest.approx([24 * 60 - 50])
    assert done.end_kwh.tolist() == [[100.0, 0.0]]
    assert done.n_capped_slots.tolist() == [0]  # the connection is no cap of the operator's


def test_limits_are_broken_without_an_operator_and_kept_with_one() -> None:
    world = small_world(stations(2, connection_kw=1e4), feeder=line(2, resistance_ohm=5.0), ev_kw=[0.0, 3000.0])
    free, held = (
        market_rollout(world, make_rule("idle", "market"), *how, keep_outcomes=True) for how in ([NO_OPERATOR], [])
    )
    assert (free.n_violations.tolist(), free.n_capped_slots.tolist()) == ([N_SLOTS], [0])
    assert (held.n_violations.tolist(), held.n_capped_slots.tolist()) == ([0], [N_SLOTS])
    assert free.lowest_voltage_pu[0] < 0.94 < 0.95 - 1e-4 < held.lowest_voltage_pu[0]
    assert held.unserved_kwh[0] > 0.0 == free.unserved_kwh[0]
    assert held.moved_kwh[0] == pytest.approx(50.0)  # the storage of the capped station, once
    assert held.outcomes is not None
    assert len(held.outcomes) == N_SLOTS


def test_a_reservation_ask_keeps_energy_and_the_record_says_how_much() -> None:
    """Nobody buys: what is offered above the export price stays in the storage."""
    world = small_world(stations(1))

    class Dear:
        def decide(self, stage: MarketStage) -> MarketAction:
            return MarketAction(np.full((1, 1), -40.0), asks(stage.world, stage.state, 1.0))

    done = rollout(world, Dear())
    assert done.held_kwh == pytest.approx([24 * 40.0])
    assert done.end_kwh.tolist() == [[50.0]]


# --- the accounts ------------------------------------------------------------------------------------------


def accounts(world: MarketWorld, state: MarketState, done: MarketOutcome) -> None:
    """Section 6: profits = income - what the community pays, (C) from positions alone, payments - receipts = fee."""
    at, fee = (state.day, state.slot), world.rules.network_fee_eur_per_kwh
    supply = np.maximum(done.position_kw, 0.0).sum(axis=1)
    demand = np.maximum(-done.position_kw, 0.0).sum(axis=1)
    exchange = world.days.import_eur_per_kwh[at] * np.maximum(demand - supply, 0.0)
    exchange -= world.days.export_eur_per_kwh[at] * np.maximum(supply - demand, 0.0)
    own = world.assets
    lost = own.lost_load_eur_per_kwh * done.unserved_kw + own.degradation_eur_per_kwh * np.abs(done.storage_kw)
    community = 0.5 * (exchange + fee * np.minimum(supply, demand) + lost.sum(axis=1))
    community -= done.terms.missing_eur.sum(axis=1)
    assert done.community_eur == pytest.approx(community, abs=1e-9)
    income = 0.5 * (own.retail_eur_per_kwh * (world.days.ev_kw[at] - done.unserved_kw)).sum(axis=1)
    assert done.profit_eur.sum(axis=1) == pytest.approx(income - community, abs=1e-9)
    assert done.payment_eur_per_h.sum(axis=1) == pytest.approx(fee * done.volume_kw, abs=1e-9)


@pytest.mark.parametrize("price_rule", PRICE_RULES)
def test_accounts_hold_in_every_slot_of_every_policy(price_rule: str) -> None:
    """Days with caps, rationing, ties and unserved energy, as the last lines make sure."""
    world = city_world(5, price_rule, seed=1)
    policies: list[MarketPolicy] = [make_rule(name, "market") for name in rules_of("market")]
    seen: list[MarketOutcome] = []
    for policy in (*policies, AtRandom(), AtRandom(1)):
        stage = MarketStage(world, initial_state(world, np.arange(5)))
        for _ in range(N_SLOTS):
            before = stage.state
            stage.state, done = step(world, before, policy.decide(stage))
            accounts(world, before, done)
            seen.append(done)
    assert sum(np.isfinite(done.cap_kw).any(axis=1).sum() for done in seen) > 20
    assert sum(done.unserved_kw.sum() for done in seen) > 1.0
    rationed = [(done.accepted_kw > done.position_kw + 1e-6) & (done.position_kw < 0.0) for done in seen]
    assert sum(int(flags.sum()) for flags in rationed) > 100
    assert any(len(np.unique(done.ask_eur_per_kwh[0])) < 8 for done in seen)


def test_a_rollout_is_the_sum_of_its_slots() -> None:
    world = city_world(3, seed=2)
    done = market_rollout(world, AtRandom(4), keep_outcomes=True)
    assert done.outcomes is not None
    assert done.cost_eur == pytest.approx(sum(o.community_eur for o in done.outcomes))
    assert done.profit_eur == pytest.approx(sum(o.profit_eur for o in done.outcomes))
    assert done.profit_eur.sum(axis=1) == pytest.approx(done.income_eur - done.cost_eur, abs=1e-9)
    served = done.asked_kwh - done.unserved_kwh
    assert done.income_eur == pytest.approx(0.40 * served)


@pytest.mark.parametrize("name", MARKET_RULES)
def test_rules_play_batches_as_they_play_single_days(name: str) -> None:
    together = rollout(city_world(3), make_rule(name, "market")).cost_eur
    for n_days in (1, 2):
        assert np.array_equal(rollout(city_world(n_days), make_rule(name, "market")).cost_eur, together[:n_days])


# --- learned policies and plans ----------------------------------------------------------------------------


class Recorded:
    """A recurrent model that counts its calls."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, bool]] = []

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        assert deterministic
        self.seen.append((state, bool(episode_start.all())))
        return observation, (np.array([len(self.seen)]),)


def test_a_predictor_shows_the_stage_and_reads_the_answer() -> None:
    world, model = city_world(2), Recorded()
    rule = make_rule("dp_truthful", "market")

    def act(stage: MarketStage, answer: np.ndarray) -> MarketAction:
        assert answer.tolist() == stage.state.slot.tolist()
        return rule.decide(stage)

    policy = Predictor(model, lambda stage: stage.state.slot, act)
    assert np.array_equal(rollout(world, policy).cost_eur, rollout(world, rule).cost_eur)
    assert model.seen[0] == (None, True)
    assert [int(state[0]) for (state,), _ in model.seen[1:]] == list(range(1, N_SLOTS))
    assert not any(start for _, start in model.seen[1:])
    rollout(world, policy)
    assert model.seen[N_SLOTS] == (None, True)  # the next rollout begins without memory


def test_a_plan_is_replayed_with_asks_at_the_export_price() -> None:
    world = city_world(2)
    wish = np.random.default_rng(0).uniform(-50.0, 50.0, (2, N_SLOTS, 8))
    done = market_rollout(world, PlanPolicy(wish), NO_OPERATOR, keep_outcomes=True)
    assert done.outcomes is not None
    assert not done.held_kwh.any()
    assert (done.outcomes[7].ask_eur_per_kwh == world.days.export_eur_per_kwh[:, 7, None]).all()
    with pytest.raises(
        DataError, match=r"a plan must have shape \(D, T, S\) = \(2, 48, 8\) of the world, got \(48, 8\)"
    ):
        rollout(world, PlanPolicy(wish[0]))


def test_policies_of_another_world_are_refused(small_scenario: Scenario) -> None:
    market, fleet = small_world(stations(1)), world_of(small_scenario, [small_scenario.day(0)], "normal_charging")
    stranger: Any = make_rule("charge_on_arrival")
    assert isinstance(stranger, Policy)
    for play in (rollout, ms_per_decision):
        with pytest.raises(ConfigError, match=r"a policy of the market must have decide\(stage\), got Rule"):
            play(market, stranger)  # type: ignore[operator]
        other: Any = make_rule("idle", "market")
        with pytest.raises(ConfigError, match=r"must have predict\(observation\), got MarketRulePolicy"):
            play(fleet, other)  # type: ignore[operator]


def test_milliseconds_of_a_decision_are_positive() -> None:
    assert 0.0 < ms_per_decision(small_world(stations(2)), make_rule("dp_truthful", "market")) < 1e3


# --- names and references ----------------------------------------------------------------------------------


def test_rules_are_found_by_problem() -> None:
    assert make_rule("dp_markup", "market").name == "dp_markup"
    assert set(rules_of("market")) == set(MARKET_RULES)
    assert all(NAIVE_RULES[problem] in rules_of(problem) for problem in NAIVE_RULES)
    with pytest.raises(ConfigError, match=r"there is no rule 'idel'; did you mean 'idle'\? \(rules: idle, self_cons"):
        make_rule("idel", "market")
    with pytest.raises(ConfigError, match="policies play in normal_charging, market, fast_charging, got"):
        played("traffic")


@pytest.fixture(scope="module")
def city() -> Scenario:
    return load_scenario("ieee33_twelve")


def test_references_of_the_market_are_idle_storages_and_bounds(
    city: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVCS_GYM_CACHE", str(tmp_path))
    first = references(city, "validation", [1, 0], problem="market")
    world = world_of(city, city.days([1, 0], "validation"), "market")
    assert np.array_equal(first.naive_cost_eur, rollout(world, make_rule("idle", "market")).cost_eur)
    problem = problem_of_row(world, 0)
    assert first.lower_bound_eur[0] == pytest.approx(solve_programme(problem, 60.0).bound_eur, abs=1e-9)
    assert (first.lower_bound_eur < first.naive_cost_eur - 10.0).all()
    (file,) = tmp_path.glob("reference-*.json")
    assert set(json.loads(file.read_text())) == {"0", "1"}
    monkeypatch.setattr(reference, "lower_bound_eur", lambda *_: pytest.fail("a known bound was solved again"))
    again = references(city, "validation", [0], problem="market")
    assert again.lower_bound_eur.tolist() == first.lower_bound_eur[1:].tolist()


def test_references_of_other_problems_are_refused(city: Scenario) -> None:
    with pytest.raises(ConfigError, match="policies play in normal_charging, market, fast_charging, got"):
        references(city, "test", [0], problem="traffic")
