"""Trying to break the market's bound: nothing does, and a false bound is found out."""

import json
from typing import Any

import numpy as np
import pytest
from market_fixtures import city_world
from typer.testing import CliRunner

from evcs_gym.baselines.market import MarketAnswer, solve_programme
from evcs_gym.baselines.policy_market import MarketStage
from evcs_gym.baselines.rules_market import MARKET_RULES
from evcs_gym.envs import Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.core import initial_state
from evcs_gym.evaluation import bounds
from evcs_gym.evaluation.bounds import RandomPolicy, bound_margins
from evcs_gym.evaluation.cli import app


@pytest.fixture(scope="module")
def city() -> Scenario:
    return load_scenario("ieee33_twelve")


def test_no_contender_falls_below_the_bound_on_days_of_the_shipped_city(
    city: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "DAYS_AT_ONCE", 4)
    seen: list[tuple[int, int]] = []
    rows = bound_margins(city, 6, "test", 2, lambda done, total: seen.append((done, total)))
    assert seen == [(4, 6), (6, 6)]
    assert len(rows) == 2 * (len(MARKET_RULES) + 2 + len(bounds.NOISE_FRAC))
    by_name = {(row.policy, row.operator): row for row in rows}
    assert all((row.n_days, row.n_below) == (6, 0) and row.least_eur >= 0.0 for row in rows)
    assert by_name["optimum_shaken_0", "none"].least_eur < 0.1 < by_name["random_0", "none"].least_eur
    assert all(row.n_capped_slots == 0 for row in rows if row.operator == "none")
    assert sum(row.n_capped_slots for row in rows) > 0


def test_a_false_bound_is_found_out(city: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound ten EUR too high: the exact plan itself lies below it, and the command says so by its exit code."""

    def false_bound(problem: Any, limit_s: float) -> MarketAnswer:
        true = solve_programme(problem, limit_s)
        return MarketAnswer(true.plan, true.cost_eur, true.bound_eur + 10.0, true.in_time)

    monkeypatch.setattr(bounds, "solve_programme", false_bound)
    done = CliRunner().invoke(app, ["bounds", "--days", "2", "--random", "0", "--json"])
    assert done.exit_code == 1
    rows = {(row["policy"], row["operator"]): row for row in json.loads(done.stdout)["rows"]}
    assert rows["optimum_shaken_0", "none"]["n_below"] == 2
    assert rows["zero_intelligence", "none"]["n_below"] == 0


def test_random_policies_reach_the_ends_of_powers_and_asks() -> None:
    world = city_world(4)
    stage = MarketStage(world, initial_state(world, np.arange(4)))
    action = RandomPolicy(np.zeros((4, 48, 8)), 1.0, 0).decide(stage)
    low, high = stage.least_ask_eur_per_kwh(), world.days.import_eur_per_kwh[:, 0, None] - 0.008
    assert (np.abs(action.storage_kw) <= world.assets.storage_kw + 1e-9).all()
    assert (np.abs(action.storage_kw) == world.assets.storage_kw).any()
    assert (action.ask_eur_per_kwh == low).any()
    assert (action.ask_eur_per_kwh == high).any()
    assert len(np.unique(action.storage_kw)) > 16


def test_no_days_and_negative_numbers_are_refused(city: Scenario) -> None:
    for n_days, n_random in ((0, 1), (1, -1)):
        with pytest.raises(ConfigError, match=f"bounds: at least one day .* got {n_days} and {n_random}"):
            bound_margins(city, n_days, n_random=n_random)
