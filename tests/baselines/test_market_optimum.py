"""The network-free optimum of the market: by hand, against enumeration and network flows, and below every policy."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_fixtures import city_world, line, random_action, small_world, stations
from market_problems import lossless_at_random, lossy_at_random, problem_by_hand, problem_of_row

from evcs_gym.baselines import make_rule, optimum
from evcs_gym.baselines import market as markets
from evcs_gym.baselines.market import MarketSolution, best_played, replay, solve_market, solve_programme
from evcs_gym.baselines.policy_market import MarketStage, PlanPolicy
from evcs_gym.baselines.problems import market as problems
from evcs_gym.baselines.problems.market import MarketPlan, MarketProblem
from evcs_gym.baselines.registry import rules_of
from evcs_gym.baselines.score_market import market_rollout
from evcs_gym.baselines.solvers import Result, Status
from evcs_gym.envs import Day, Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.core import MarketAction, MarketWorld
from evcs_gym.envs.market.operators import NO_OPERATOR, PRO_RATA
from evcs_gym.envs.types import FloatArray

SOLVER_EUR = 1e-5
"""What a mixed-integer programme's own tolerances may be worth."""
LIMIT_S = 60.0


# --- by hand: import 0.10, export 0.04, fee 0.008, half an hour ---------------------------------------------


def test_a_storage_moves_energy_from_the_cheap_slot_to_the_dear_one() -> None:
    """40 kW of cars in slot 1 at 0.30: 20 kWh bought in slot 0 at 0.10, worn 0.01 per kWh each way."""
    problem = problem_by_hand(2, ev_kw=[[0], [40]], imports=[0.10, 0.30], degradation_eur_per_kwh=0.01)
    answer = solve_programme(problem, LIMIT_S)
    assert answer.plan.storage_kw[:, 0] == pytest.approx([40.0, -40.0])
    assert answer.bound_eur == pytest.approx(20 * 0.10 + 2 * 20 * 0.01)
    assert answer.cost_eur == pytest.approx(answer.bound_eur)


def test_trade_saves_the_spread_less_the_fee() -> None:
    """30 kW of sun at one, 30 kW of cars at the other: the community pays the fee alone."""
    problem = problem_by_hand(1, 2, pv_kw=[30, 0], ev_kw=[0, 30])
    assert solve_programme(problem, LIMIT_S).bound_eur == pytest.approx(0.5 * 30 * 0.008)


def test_nobody_is_made_to_buy_for_what_self_discharge_takes_below_the_least_energy() -> None:
    """Half of 40 kWh is lost in a slot; buying it back in time would cost its wear on top."""
    problem = problem_by_hand(
        1, energy_start_kwh=40.0, energy_min_kwh=40.0, self_discharge_frac=0.5, degradation_eur_per_kwh=0.02
    )
    answer = solve_programme(problem, LIMIT_S)
    assert answer.bound_eur == pytest.approx(20 * 0.10)
    assert problems.cost(problem, answer.plan) == pytest.approx(answer.bound_eur)


def test_where_drivers_are_worth_less_than_energy_the_bound_leaves_them_waiting_but_the_plan_cannot() -> None:
    """Without operator a station serves its drivers: that is the gap. Under one a cap may spare it the energy."""
    problem = problem_by_hand(1, ev_kw=40.0, storage_kwh=0.0, energy_start_kwh=0.0, lost_load_eur_per_kwh=0.06)
    answer = solve_programme(problem, LIMIT_S)
    assert answer.bound_eur == pytest.approx(20 * 0.06)
    assert problems.cost(problem, answer.plan) == pytest.approx(20 * 0.10)


def test_a_policy_can_use_a_cap_to_leave_worthless_drivers_waiting_and_stays_above_the_bound() -> None:
    """Its cost lies below every operation that serves all drivers: a bound that served them all would be false."""
    assets = stations(2, lost_load_eur_per_kwh=0.0, connection_kw=5000.0, storage_kw=10.0)
    world = small_world(assets, feeder=line(2, resistance_ohm=5.0), ev_kw=[0.0, 3000.0])
    cost = market_rollout(world, make_rule("idle", "market"), PRO_RATA)
    problem = problem_of_row(world, 0)
    served = replace(problem, stations=replace(assets, lost_load_eur_per_kwh=np.full(2, 9.0)))
    assert cost.unserved_kwh[0] > 1000.0
    assert solve_programme(problem, LIMIT_S).bound_eur <= cost.cost_eur[0]
    assert solve_programme(served, LIMIT_S).bound_eur > cost.cost_eur[0] + 1.0


# --- enumeration and an algorithm of others ----------------------------------------------------------------


def least_of_all(problem: MarketProblem) -> float:
    """Least cost over all storage powers that are multiples of 10 kW, with the best curtailment and service of each
    slot, by enumeration."""
    shape = problem.pv_kw.shape
    levels = [-20.0, -10.0, 0.0, 10.0, 20.0]
    best = np.inf
    for powers in itertools.product(levels, repeat=shape[0] * shape[1]):
        storage = np.array(powers).reshape(shape)
        energy = problems.energies_kwh(problem, storage)
        if energy.min() >= -1e-9 and (energy <= problem.stations.storage_kwh + 1e-9).all():
            best = min(best, cheapest_with(problem, storage))
    return best


def cheapest_with(problem: MarketProblem, storage_kw: FloatArray) -> float:
    """Cost of given storage powers, with the best multiples of 10 kW curtailed and unserved, slot by slot."""
    nothing = np.zeros(storage_kw.shape)
    plan = MarketPlan(storage_kw, nothing, nothing)
    terms = problems.cost_terms(problem, plan)
    total = terms.degradation_eur + terms.missing_eur
    for t in range(problem.n_slots):
        one = replace(
            problem,
            import_eur_per_kwh=problem.import_eur_per_kwh[t : t + 1],
            export_eur_per_kwh=problem.export_eur_per_kwh[t : t + 1],
            pv_kw=problem.pv_kw[t : t + 1],
            ev_kw=problem.ev_kw[t : t + 1],
        )
        choices = [np.arange(0.0, top + 1.0, 10.0) for top in (*one.pv_kw[0], *one.ev_kw[0])]
        best, n = np.inf, one.pv_kw.shape[1]
        for choice in itertools.product(*choices):
            now = MarketPlan(storage_kw[t : t + 1], np.array([choice[:n]]), np.array([choice[n:]]))
            if (np.abs(problems.positions_kw(one, now)) <= one.stations.connection_kw + 1e-9).all():
                parts = problems.cost_terms(one, now)
                best = min(best, parts.utility_eur + parts.fee_eur + parts.unserved_eur)
        total += best
    return total


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_the_bound_of_tiny_cities_is_the_best_of_all_plans(seed: int) -> None:
    problem = lossless_at_random(seed, n_slots=2)
    assert solve_programme(problem, LIMIT_S).bound_eur == pytest.approx(least_of_all(problem), abs=1e-7)


UNIT_EUR = 1e-4
"""Prices become whole numbers of it: the network simplex is exact on integers."""


def least_flow_cost(problem: MarketProblem) -> float:
    """(C) of a city without losses as a flow of least cost, by the network simplex of networkx: slots of 5 kWh."""
    graph, own = nx.DiGraph(), problem.stations

    def arc(tail: Any, head: Any, kwh: float, eur_per_kwh: float) -> None:
        middle = (tail, head, graph.number_of_edges())
        for a, b, price in ((tail, middle, eur_per_kwh), (middle, head, 0.0)):  # parallel arcs need a node between
            graph.add_edge(a, b, capacity=round(kwh / 5.0), weight=round(5.0 * price / UNIT_EUR))

    graph.add_node("world", demand=0)
    for n in range(len(own)):
        wear, limit = float(own.degradation_eur_per_kwh[n]), 0.5 * float(own.connection_kw[n])
        for t in range(problem.n_slots):
            here, store, later = ("bus", t, n), ("store", t, n), ("store", t + 1, n)
            arc("world", here, 0.5 * problem.pv_kw[t, n], 0.0)
            graph.add_node(here, demand=round(0.5 * problem.ev_kw[t, n] / 5.0))
            arc("world", here, 0.5 * problem.ev_kw[t, n], float(own.lost_load_eur_per_kwh[n]))
            arc(here, ("hub", t), limit, problem.network_fee_eur_per_kwh)
            arc(("hub", t), here, limit, 0.0)
            arc(here, store, 0.5 * float(own.storage_kw[n]), wear)
            arc(store, here, 0.5 * float(own.storage_kw[n]), wear)
            arc(store, later, float(own.storage_kwh[n]), 0.0)
        end = ("store", problem.n_slots, n)
        graph.nodes[("store", 0, n)]["demand"] = -round(own.energy_start_kwh[n] / 5.0)
        graph.add_node(end, demand=round(own.energy_start_kwh[n] / 5.0))
        arc(end, "world", float(own.storage_kwh[n]), 0.0)
        arc("world", end, float(own.energy_start_kwh[n]), float(problem.missing_eur_per_kwh[n]))
    for t in range(problem.n_slots):
        arc("world", ("hub", t), 1e4, float(problem.import_eur_per_kwh[t]))
        fee = problem.network_fee_eur_per_kwh
        arc(("hub", t), "world", 1e4, -float(problem.export_eur_per_kwh[t]) - fee)
    balance = sum(data.get("demand", 0) for _, data in graph.nodes(data=True))
    graph.nodes["world"]["demand"] = -balance
    return float(nx.network_simplex(graph)[0]) * UNIT_EUR


@pytest.mark.parametrize("seed", range(6))
def test_the_network_simplex_of_others_finds_the_same_cost(seed: int) -> None:
    """Six slots, four stations: another algorithm on a graph that was drawn from the equations, not from the form."""
    problem = lossless_at_random(seed, n_slots=6, n_stations=4)
    assert solve_programme(problem, LIMIT_S).bound_eur == pytest.approx(least_flow_cost(problem), abs=1e-6)


# --- no policy falls below ---------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_no_plan_costs_less_than_the_bound(seed: int) -> None:
    """Losses, least energies, tight connections, worthless drivers."""
    problem, rng = lossy_at_random(seed), np.random.default_rng(seed)
    answer = solve_programme(problem, LIMIT_S)
    assert problems.cost(problem, answer.plan) >= answer.bound_eur
    for size in (80.0, 10.0, 1.0):
        wish = answer.plan.storage_kw + rng.uniform(-size, size, problem.pv_kw.shape)
        assert problems.cost(problem, problems.executed(problem, wish)) >= answer.bound_eur


class Shaken:
    """An exact plan with noise on powers and asks, from nothing to all of the range."""

    def __init__(self, storage_kw: FloatArray, noise_frac: float, seed: int) -> None:
        self.plan, self.noise_frac, self.rng = PlanPolicy(storage_kw), noise_frac, np.random.default_rng(seed)

    def decide(self, stage: MarketStage) -> MarketAction:
        exact, noise = self.plan.decide(stage), random_action(stage.world, stage.state, self.rng)
        return MarketAction(exact.storage_kw + self.noise_frac * noise.storage_kw, noise.ask_eur_per_kwh)


@pytest.fixture(scope="module")
def bounded() -> Callable[[MarketWorld], tuple[FloatArray, FloatArray]]:
    """Bounds (D,) and plans (D, T, S) of a world's days."""

    def get(world: MarketWorld) -> tuple[FloatArray, FloatArray]:
        answers = [solve_programme(problem_of_row(world, row), LIMIT_S) for row in range(world.n_days)]
        return np.array([a.bound_eur for a in answers]), np.stack([a.plan.storage_kw for a in answers])

    return get


@pytest.mark.parametrize("rule", ["marginal", "critical", "mid_market", "pay_as_ask"])
def test_no_rule_and_no_random_policy_falls_below_the_bound(
    rule: str, bounded: Callable[[MarketWorld], tuple[FloatArray, FloatArray]]
) -> None:
    """Days on which limits bind, drivers wait and sun is curtailed, with and without operator."""
    world = city_world(5, rule, seed=3)
    bound, plans = bounded(world)
    policies: list[Any] = [make_rule(name, "market") for name in rules_of("market")]
    policies += [Shaken(plans, noise, seed) for seed, noise in enumerate((0.0, 1e-3, 0.3, 1.0))]
    seen_capped = 0
    for policy, operator in itertools.product(policies, (PRO_RATA, NO_OPERATOR)):
        played = market_rollout(world, policy, operator)
        assert (played.cost_eur >= bound).all()
        seen_capped += int(played.n_capped_slots.sum())
    assert seen_capped > 50
    exact = market_rollout(world, PlanPolicy(plans), NO_OPERATOR)
    assert exact.cost_eur == pytest.approx(bound, abs=1e-6)


# --- the shipped city --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def city() -> Scenario:
    return load_scenario("ieee33_twelve")


@pytest.fixture(scope="module")
def days(city: Scenario) -> list[Day]:
    return city.days(range(4), "test")


def test_shipped_days_are_proven_and_replay(city: Scenario, days: list[Day]) -> None:
    for day in days[:2]:
        found = optimum(city, day, problem="market", network="none", relative_gap=1e-6, time_limit_s=LIMIT_S)
        again = replay(city, day, found.plan.storage_kw)
        assert (found.status, found.certificate.exact) == ("optimal", False)
        assert found.relative_gap <= 1e-6
        assert again.cost_eur[0] == pytest.approx(found.cost_eur, rel=1e-12)
        assert abs(found.cost_eur - found.lower_bound_eur) <= 1e-6 * found.certificate.scale_eur
        assert found.certificate.replay_relative_error <= 1e-9
        assert found.certificate.operated_cost_eur >= found.lower_bound_eur
        assert (found.certificate.n_capped_slots > 0) == (found.certificate.n_violations > 0)


def test_a_solution_as_plain_numbers(city: Scenario, days: list[Day]) -> None:
    found: MarketSolution = solve_market(city, days[0])
    content = found.as_dict(plan=True)
    assert (content["problem"], content["status"], content["certificate"]["network"]) == ("market", "optimal", "none")
    assert set(content["plan"]) == {"storage_kw", "curtailed_kw", "unserved_kw"}
    assert all(np.shape(values) == (48, 8) for values in content["plan"].values())
    assert "plan" not in found.as_dict()


def test_without_time_the_storages_rest_and_the_bound_is_weak_but_true(
    city: Scenario, days: list[Day], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = Result(None, None, np.inf, -np.inf, Status.TIME_LIMIT, 0.0, 0)
    exact = solve_market(city, days[0])
    monkeypatch.setattr(markets, "solve", lambda *_: nothing)
    found = solve_market(city, days[0])
    assert found.status == "time_limit"
    assert not found.plan.storage_kw.any()
    assert found.lower_bound_eur <= exact.lower_bound_eur < found.cost_eur
    assert found.relative_gap > 0.1


# --- plans that can be played ------------------------------------------------------------------------------


def played_best(problem: MarketProblem, gap_eur: float = 0.0) -> markets.MarketAnswer:
    return best_played(problem, solve_programme(problem, LIMIT_S), gap_eur, LIMIT_S)


def test_a_full_connection_moves_the_storage_before_it_curtails_and_the_exact_programme_knows() -> None:
    """120 kW of sun behind 60 kW. The bound curtails 60 kW and spares the storage its wear of 0.03 each way; the
    environment charges 50 kW first, and then they are sold, as a wear of 0.03 is less than the 0.04 that they fetch."""
    problem = problem_by_hand(2, pv_kw=[[120], [0]], connection_kw=60.0, degradation_eur_per_kwh=0.03)
    bound, exact = solve_programme(problem, LIMIT_S), played_best(problem)
    assert bound.bound_eur == pytest.approx(-30 * 0.04)
    assert exact.plan.storage_kw[0, 0] == pytest.approx(50.0)
    assert exact.bound_eur == pytest.approx(-30 * 0.04 + 25 * 0.03 - 25 * (0.04 - 0.03))
    assert problems.cost(problem, exact.plan) == pytest.approx(exact.bound_eur)


def test_a_storage_that_discharges_ends_at_its_least_energy_or_above() -> None:
    """45 kWh keep 40.5 in the dear slot: 0.5 above the least energy, 4.5 above what self-discharge alone reaches. The
    5 kWh of cars cost 0.30 each there; what then lacks to 45 kWh is bought at 0.10 in the next slot."""
    problem = problem_by_hand(
        2,
        ev_kw=[[10], [0]],
        imports=[0.30, 0.10],
        energy_start_kwh=45.0,
        energy_min_kwh=40.0,
        self_discharge_frac=0.1,
    )
    bound, exact = solve_programme(problem, LIMIT_S), played_best(problem)
    assert bound.bound_eur == pytest.approx(0.5 * 0.30 + (45 - 36 * 0.9) * 0.10)
    assert exact.bound_eur == pytest.approx(4.5 * 0.30 + (45 - 40 * 0.9) * 0.10)
    assert exact.plan.storage_kw[:, 0] == pytest.approx([-1.0, 18.0])
    assert problems.cost(problem, exact.plan) == pytest.approx(exact.bound_eur)


@pytest.mark.parametrize("seed", range(6))
def test_the_exact_programme_is_the_best_of_all_wishes(seed: int) -> None:
    """Every wish of multiples of 10 kW, executed as the environment does it."""
    problem = lossless_at_random(seed, n_slots=2)
    wishes = itertools.product([-20.0, -10.0, 0.0, 10.0, 20.0], repeat=4)
    best = min(problems.cost(problem, problems.executed(problem, np.array(wish).reshape(2, 2))) for wish in wishes)
    exact = played_best(problem)
    assert exact.bound_eur == pytest.approx(best, abs=1e-7)
    assert problems.cost(problem, exact.plan) == pytest.approx(best, abs=1e-7)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000))
def test_no_wish_costs_less_than_the_exact_programme_and_its_plan_is_played_as_it_stands(seed: int) -> None:
    problem, rng = lossy_at_random(seed), np.random.default_rng(seed)
    bound, exact = solve_programme(problem, LIMIT_S), played_best(problem)
    assert exact.bound_eur >= bound.bound_eur
    assert problems.cost(problem, exact.plan) == pytest.approx(exact.cost_eur, abs=1e-5)
    for size in (80.0, 5.0):
        wish = exact.plan.storage_kw + rng.uniform(-size, size, problem.pv_kw.shape)
        assert problems.cost(problem, problems.executed(problem, wish)) >= exact.bound_eur - SOLVER_EUR


def as_day(world: MarketWorld, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The world's only day as a scenario and a day: nothing else is read."""
    monkeypatch.setattr(markets, "market_world", lambda *_: world)
    monkeypatch.setattr(markets.problems, "problem_of", lambda *_: problem_of_row(world, 0))
    return None


def test_a_gap_between_bound_and_plan_is_closed_by_the_exact_programme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worthless drivers again, as a whole day: no policy costs less than the bound, no plan less than its own."""
    nothing = as_day(small_world(stations(1, lost_load_eur_per_kwh=0.01), ev_kw=40.0), monkeypatch)
    found = solve_market(nothing, nothing)
    assert (found.status, found.certificate.exact) == ("optimal", True)
    assert found.cost_eur == pytest.approx(48 * 20 * 0.10, rel=0.1)
    assert found.certificate.programme_bound_eur == pytest.approx(found.cost_eur, rel=1e-6)
    assert found.lower_bound_eur == pytest.approx(48 * 20 * 0.01, rel=0.3)
    assert found.certificate.replay_relative_error < 1e-9


def test_a_gap_that_stays_open_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the exact programme the plan is that of the bound, executed."""
    nothing = as_day(small_world(stations(1, lost_load_eur_per_kwh=0.01), ev_kw=40.0), monkeypatch)
    monkeypatch.setattr(markets, "best_played", lambda _problem, known, *_: known)
    found = solve_market(nothing, nothing)
    assert found.status == "gap_open"
    assert found.relative_gap > 0.1


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problem": "market", "network": "linear"}, r"network must be one of none.*, got 'linear' for market"),
        ({"problem": "normal_charging", "network": "none"}, r"for the market alone, got 'none' for normal_charging"),
        ({"problem": "market", "slot": 3}, "slot must be given for traffic and for nothing else, got 3 for market"),
        (
            {"problem": "auction"},
            "problem must be one of normal_charging, market, traffic, fast_charging, got 'auction'",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(city: Scenario, options: dict[str, Any], message: str) -> None:
    nothing: Any = None
    with pytest.raises(ConfigError, match=message):
        optimum(city, nothing, **options)


def test_a_scenario_without_stations_has_no_market(shipped_scenario: Scenario) -> None:
    with pytest.raises(ConfigError, match="stations"):
        optimum(shipped_scenario, shipped_scenario.day(0), problem="market")
