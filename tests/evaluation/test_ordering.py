"""Bounds below everything that plays the market: rows by hand, a day of the shipped city, runs that go on."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import evcs_gym.baselines
from evcs_gym.baselines import second_opinion
from evcs_gym.baselines.market_network import NetworkSolution, solve_market_network
from evcs_gym.baselines.registry import make_rule
from evcs_gym.baselines.rules_market import MARKET_RULES
from evcs_gym.baselines.score_market import MarketRollout, market_rollout
from evcs_gym.baselines.second_opinion import SecondOpinion, TwoOpinions
from evcs_gym.envs import Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.evaluation import ordering as module
from evcs_gym.evaluation.cli import SecondSolver, app
from evcs_gym.evaluation.ordering import (
    EXACT_PLAN,
    FILE,
    FREE_PLAN,
    OrderedDay,
    Ordering,
    linear_excess_pu,
    ordered_day,
    ordering,
    orders,
)
from evcs_gym.evaluation.records import collect_provenance


@pytest.fixture(scope="module")
def city() -> Scenario:
    return load_scenario("ieee33_twelve")


def day_of(seed: int, costs: tuple[float, float], network: float | None = None, excess: float = -0.1) -> OrderedDay:
    """A day with a network-free bound of 100 EUR and two policies, a and b; ``excess`` is that of b."""
    return OrderedDay(
        seed=seed, network_free_bound_eur=100.0, network_bound_eur=network, relative_gap=0.0, status="optimal",
        seconds=1.0, rounding_eur=1e-9, cost_eur={"a": costs[0], "b": costs[1]},
        linear_excess_pu={} if network is None else {"a": -0.2, "b": excess},
    )  # fmt: skip


def ordering_of(*days: OrderedDay) -> Ordering:
    provenance = collect_provenance(config_hash="", training_seeds=(), solver="", relative_gap=1e-4)
    return Ordering(scenario="s", split="test", policies=("a", "b"), provenance=provenance, days=days)


# --- by hand -------------------------------------------------------------------------------------------------


def test_margins_by_hand() -> None:
    first, second = orders(ordering_of(day_of(0, (110.0, 100.0)), day_of(1, (104.0, 130.0), network=103.0)))
    assert (first.policy, first.n_days, first.cost_eur, first.least_eur, first.least_on_seed) == ("a", 2, 107.0, 4.0, 1)
    assert (first.n_network, first.least_network_eur, first.linear_excess_pu) == (1, 1.0, -0.2)
    assert (second.least_eur, second.least_on_seed, second.n_below) == (0.0, 0, 0)
    assert first.n_below == first.n_below_network == first.n_unexplained == 0


def test_rounding_is_no_break_and_more_is() -> None:
    (first, second) = orders(ordering_of(day_of(0, (100.0 - 1e-10, 100.0 - 1e-8))))
    assert (first.n_below, second.n_below) == (0, 1)
    assert (first.n_network, first.least_network_eur, first.linear_excess_pu) == (0, None, None)


@pytest.mark.parametrize(("excess", "n_unexplained"), [(1e-4, 0), (-1e-4, 1)])
def test_a_cost_below_the_network_bound_is_explained_by_the_linearisation_or_not_at_all(
    excess: float, n_unexplained: int
) -> None:
    row = orders(ordering_of(day_of(0, (110.0, 104.0), network=105.0, excess=excess)))[1]
    assert (row.n_below, row.n_below_network, row.n_unexplained) == (0, 1, n_unexplained)
    assert row.least_network_eur == -1.0


def test_an_exact_plan_below_its_own_bound_is_never_explained() -> None:
    day = day_of(0, (110.0, 104.0), network=105.0).model_copy(update={"linear_excess_pu": {"a": 0.0}})
    assert orders(ordering_of(day))[1].n_unexplained == 1


# --- a day of the shipped city -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solution(city: Scenario) -> NetworkSolution:
    return solve_market_network(city, city.day(3, "test"), 1e-4, 60.0)


def test_a_shipped_day_is_in_order(city: Scenario, solution: NetworkSolution, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "solve_market_network", lambda *_: solution)
    day = ordered_day(city, city.day(3, "test"), {"again": make_rule("idle", "market")})
    assert set(day.cost_eur) == {*MARKET_RULES, EXACT_PLAN, FREE_PLAN, "again"}
    assert min(day.cost_eur.values()) >= day.network_free_bound_eur - day.rounding_eur
    assert day.cost_eur["again"] == day.cost_eur["idle"] > day.network_free_bound_eur + 1.0
    assert day.cost_eur[EXACT_PLAN] == pytest.approx(day.network_free_bound_eur, abs=0.1)
    assert (day.status, day.linear_excess_pu) == ("optimal", {})


def test_programmes_of_the_slots_allow_what_the_power_flow_let_pass_and_nothing_absurd(
    city: Scenario, solution: NetworkSolution
) -> None:
    day = city.day(3, "test")
    world = market_world(city, [day])
    played = market_rollout(world, make_rule("idle", "market"), keep_outcomes=True)
    absurd = shifted(played, -900.0)
    found = linear_excess_pu(city, day, solution, {"idle": played, "absurd": absurd})
    assert found["idle"] <= 1e-8
    assert found["absurd"] > 1e-3


def shifted(played: MarketRollout, by_kw: float) -> MarketRollout:
    assert played.outcomes is not None
    last = played.outcomes[-1]
    return replace(played, outcomes=(*played.outcomes[:-1], replace(last, position_kw=last.position_kw + by_kw)))


# --- runs that go on -----------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Days without a solve; the seeds that were played."""
    played: list[int] = []

    def play(scenario: Any, day: Any, learned: Any, gap: float) -> OrderedDay:
        played.append(day.seed)
        names = (*MARKET_RULES, EXACT_PLAN, FREE_PLAN, *learned)
        return day_of(day.seed, (0.0, 0.0)).model_copy(update={"cost_eur": dict.fromkeys(names, 100.0 + day.seed)})

    monkeypatch.setattr(module, "ordered_day", play)
    return played


def test_a_run_goes_on_where_it_was(city: Scenario, quick: list[int], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    ordering(city, 2, out=tmp_path)
    found = ordering(city, 4, out=tmp_path, listener=lambda _, done, total: seen.append((done, total)))
    assert quick == [0, 1, 2, 3]
    assert [day.seed for day in found.days] == quick
    assert seen[0] == (0, 4)
    assert seen[-1] == (4, 4)
    assert [day.seed for day in ordering(city, 2, out=tmp_path).days] == [0, 1]
    assert len(json.loads((tmp_path / FILE).read_text())["days"]) == 4
    assert quick == [0, 1, 2, 3]


def test_another_run_in_the_folder_is_refused(city: Scenario, quick: list[int], tmp_path: Path) -> None:
    ordering(city, 1, out=tmp_path)
    with pytest.raises(ConfigError, match=r"ordering.json: split must be validation, got test; choose another folder"):
        ordering(city, 1, split="validation", out=tmp_path)
    with pytest.raises(ConfigError, match=r"ordering.json: relative_gap must be 0.001, got 0.0001"):
        ordering(city, 1, relative_gap=1e-3, out=tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(DataError, match=r"ordering.json: cannot be read .* remove it and play the days again"):
        ordering(city, 1, out=tmp_path)
    (tmp_path / FILE).write_text('{"days": 1}')
    with pytest.raises(DataError, match=r"ordering.json: "):
        ordering(city, 1, out=tmp_path)


def test_no_days_and_no_such_run_are_refused(city: Scenario) -> None:
    with pytest.raises(ConfigError, match="ordering: at least one day, got 0"):
        ordering(city, 0)
    with pytest.raises(ConfigError, match="there is no policy 'nothing'"):
        ordering(city, 1, ["nothing"])


def test_the_command_shows_a_table_or_json_and_fails_where_a_bound_is_broken(
    quick: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(app, ["ordering", "--days", "2"])
    assert done.exit_code == 0
    assert "dp_truthful" in done.stdout
    assert "a bound of the network was needed on 0 of 2 days" in done.stdout
    told = json.loads(CliRunner().invoke(app, ["ordering", "--days", "2", "--json"]).stdout)
    assert {row["policy"]: row["least_eur"] for row in told["rows"]}["idle"] == 0.0
    assert [day["seed"] for day in told["days"]] == [0, 1]
    broken = module.ordered_day
    monkeypatch.setattr(
        module, "ordered_day", lambda *a: broken(*a).model_copy(update={"network_free_bound_eur": 101.0})
    )
    assert CliRunner().invoke(app, ["ordering", "--days", "1"]).exit_code == 1


# --- solve --check -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bound_eur", "words", "exit_code"), [(9.9, "agree", 0), (10.1, "DISAGREE", 1)])
def test_solve_shows_a_second_opinion_and_fails_where_it_is_another(
    monkeypatch: pytest.MonkeyPatch, bound_eur: float, words: str, exit_code: int
) -> None:
    second = SecondOpinion("scip", "10", bound_eur, 10.2, "optimal", 1.0, None, 0.0, 0.0, 0, 1, 0)
    opinions = TwoOpinions(3, 2, 9.8, 10.0, second)
    record = {"cost_eur": 1.0, "lower_bound_eur": 1.0, "relative_gap": 0.0, "status": "optimal", "seconds": 1.0}
    solution = SimpleNamespace(plan=None, as_dict=lambda: dict(record))
    monkeypatch.setattr(evcs_gym.baselines, "optimum", lambda *a, **k: solution)
    monkeypatch.setattr(second_opinion, "two_opinions", lambda *a: opinions)
    arguments = ["solve", "market", "--network", "misocp", "--check", "scip"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == exit_code
    assert words in done.stdout
    assert "3-4" in done.stdout
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["check"]
    assert (told["agree"], told["second"]["bound_eur"]) == (exit_code == 0, bound_eur)
    assert np.isfinite(told["cost_eur"])


def test_a_second_opinion_is_for_the_network_alone_and_by_a_known_solver() -> None:
    assert [solver.value for solver in SecondSolver] == list(second_opinion.SECOND_SOLVERS)
    wrong = CliRunner().invoke(app, ["solve", "market", "--network", "misocp", "--check", "clp"])
    assert wrong.exit_code == 2
    done = CliRunner().invoke(app, ["solve", "market", "--check", "scip"])
    assert done.exit_code == 2
    assert "--check is for the market with --network misocp" in done.output
