"""Learning where drivers respond: rows, rewards and prices are the core's; runs are judged by profit, go on exactly."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_fixtures import interrupt_after

from evcs_gym.baselines.score_responsive import ResponsiveStage, responsive_rollout
from evcs_gym.envs import Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.play import scaled_action
from evcs_gym.envs.market.responsive import (
    ResponsiveState,
    ResponsiveWorld,
    cooperative_eur,
    initial_responsive_state,
    responsive_world,
    step_responsive,
)
from evcs_gym.envs.market.view import own_plan
from evcs_gym.evaluation.benchmark import compare
from evcs_gym.evaluation.responsive import LEARNED_RETAIL, compare_responsive
from evcs_gym.training.checkpoint import POLICY_FILE, load_weights, read_run
from evcs_gym.training.config import Preset, load_preset
from evcs_gym.training.market import MarketVecEnv
from evcs_gym.training.problems import PROBLEMS, Judgement
from evcs_gym.training.train import load_policy, make_model, make_validation, train

B, S = 3, 8
TINY = (
    "n_envs=4",
    "pool_days=3",
    "ppo.n_steps=24",
    "ppo.batch_size=64",
    "ppo.n_epochs=2",
    "ppo.hidden_units=[16]",
    "validation.n_days=2",
    "validation.every_rollouts=2",
    "checkpoint_every_rollouts=2",
)
ROLLOUT = 24 * 4 * S


@pytest.fixture(scope="module")
def city() -> Scenario:
    return load_scenario("ieee33_twelve_responsive")


@pytest.fixture(scope="module")
def world(city: Scenario) -> ResponsiveWorld:
    return responsive_world(city, city.days([0, 1, 2]))


def tiny(*overrides: str) -> Preset:
    return load_preset("market_responsive", [*TINY, *overrides])


def made(world: ResponsiveWorld, rows: str = "stations", **spec: Any) -> MarketVecEnv:
    """Plain EUR, nothing shifted."""
    preset = Preset(
        name="made",
        problem="market_responsive",
        scenario="ieee33_twelve_responsive",
        rows=rows,
        market={"by_size": False, **spec},
        reward_shift=False,
        reward_scale_per_eur=1.0,
    )
    env = MarketVecEnv(world, B, preset)
    env.seed(3)
    return env


def remembered(env: MarketVecEnv) -> ResponsiveState:
    state = env.remembered()
    assert isinstance(state, ResponsiveState)
    return state


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.3, 0.3, shape)


def test_the_city_is_the_default_one_with_drivers_who_answer(city: Scenario) -> None:
    """Nothing else differs, so that results stand beside those of the default city."""
    theirs, default = (load_scenario(name).model_dump(mode="json") for name in (city.name, "ieee33_twelve"))
    for content in (theirs, default):
        del content["name"], content["description"]
    assert theirs.pop("responsive_spec") == {
        "least_retail_eur_per_kwh": 0.30,
        "largest_retail_eur_per_kwh": 0.50,
        "outside_eur": 12.0,
        "relative_gap": 1e-4,
    }
    assert theirs == default


def test_rows_set_prices_and_earn_what_the_core_says(world: ResponsiveWorld) -> None:
    """0.40 + 0.10 x EUR/kWh: the third number goes from 0.30 to 0.50."""
    env = made(world)
    assert env.reset().shape == (B * S, 41)
    state, action = remembered(env), numbers(B, S, 3)
    market = scaled_action(world.market, state.market, own_plan(world.market, state.market), action)
    retail = np.clip(0.40 + 0.10 * action[..., 2], 0.30, 0.50)
    after, outcome, _ = step_responsive(world, state, market, retail)
    _, reward, _, infos = env.step(action.reshape(-1, 3))
    np.testing.assert_allclose(reward, outcome.profit_eur.reshape(-1), rtol=1e-5)
    np.testing.assert_allclose([info["profit_eur"] for info in infos], outcome.profit_eur.reshape(-1))
    np.testing.assert_allclose(remembered(env).arrivals_veh_per_h, after.arrivals_veh_per_h, rtol=1e-9)


def test_a_chain_of_stations_learns_the_profit_of_all(world: ResponsiveWorld) -> None:
    env, own = made(world, team_frac=1.0), made(world)
    env.reset(), own.reset()
    action = numbers(B * S, 3)
    _, reward, _, _ = env.step(action)
    _, alone, _, _ = own.step(action)
    total = np.repeat(alone.reshape(B, S).sum(axis=1), S)
    np.testing.assert_allclose(reward, total, rtol=1e-4)


def test_one_controller_gains_what_the_community_gains(world: ResponsiveWorld) -> None:
    env = made(world, "environments")
    assert env.reset().shape == (B, S, 41)
    state, action = remembered(env), numbers(B, S, 2)
    batch = env.every
    market = batch.storage_action(action[..., 0])
    _, outcome, drivers = step_responsive(world, state, market, np.clip(0.40 + 0.10 * action[..., 1], 0.30, 0.50))
    _, reward, _, _ = env.step(action)
    np.testing.assert_allclose(reward, cooperative_eur(outcome, drivers), rtol=1e-5)


def test_one_station_among_others_at_their_own_prices(world: ResponsiveWorld) -> None:
    env = made(world, station="station_2")
    assert env.reset().shape == (B, 41)
    state, action = remembered(env), numbers(B, 3)
    retail = np.tile(world.market.assets.retail_eur_per_kwh, (B, 1))
    retail[:, 2] = 0.40 + 0.10 * action[:, 2]
    plan = own_plan(world.market, state.market)
    every = np.zeros((B, S, 2))
    every[:, 2] = action[:, :2]
    market = scaled_action(world.market, state.market, plan, every)
    asks = plan.ask_eur_per_kwh.copy()
    asks[:, 2] = market.ask_eur_per_kwh[:, 2]
    _, outcome, _ = step_responsive(world, state, type(market)(market.storage_kw, asks), retail)
    _, reward, _, _ = env.step(action)
    np.testing.assert_allclose(reward, outcome.profit_eur[:, 2], rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "spec"), [("stations", {}), ("environments", {}), ("stations", {"station": "station_0"})]
)
def test_a_model_plays_alike_in_training_and_when_it_is_scored(
    world: ResponsiveWorld, rows: str, spec: dict[str, Any]
) -> None:
    env = made(world, rows, **spec)
    preset = Preset(
        name="made", problem="market_responsive", scenario="ieee33_twelve_responsive", rows=rows, market=spec
    )
    model = make_model(preset.model_copy(update={"ppo": preset.ppo.model_copy(update={"log_std_final": None})}), env, 0)
    policy = PROBLEMS["market_responsive"].policy(model, world.market, preset)
    seen = env.reset()
    state = remembered(env)
    market, retail = policy.decide(ResponsiveStage(world, state.market))
    _, outcome, _ = step_responsive(world, state, market, retail)
    action, _ = model.predict(seen, deterministic=True)
    _, _, _, infos = env.step(np.clip(action, -1.0, 1.0))
    profit = outcome.profit_eur.reshape(-1) if rows == "stations" and not spec else outcome.profit_eur.sum(axis=1)
    expected = outcome.profit_eur[:, 0] if spec else profit
    np.testing.assert_allclose([info["profit_eur"] for info in infos], expected, rtol=1e-6)


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five rollouts that nothing interrupted; every second begins in the middle of a day."""
    return train(tiny(f"total_steps={5 * ROLLOUT}"), run_dir=tmp_path_factory.mktemp("run"))[0]


def progress_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "progress.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_run_is_judged_by_profit_and_keeps_its_best(whole: Path, city: Scenario) -> None:
    assert read_run(whole).finished
    assert read_run(whole).captured_validation is None
    rows = progress_of(whole)
    assert {"profit_eur", "travel_h", "served_kwh", "cooperative_eur"} <= set(rows[0])
    validation = make_validation(city, 2, "market_responsive")
    result = responsive_rollout(validation.world, load_policy(whole, city))
    assert validation.captured(result.market) is None
    best = max(float(row["profit_eur"]) for row in rows)
    assert result.market.profit_eur.sum(axis=1).mean() == pytest.approx(best, abs=1e-4)


def test_an_interrupted_run_goes_on_exactly(whole: Path, tmp_path: Path) -> None:
    """What drivers did in the slot before is part of the checkpoint: rollouts begin in the middle of a day."""
    preset = tiny(f"total_steps={5 * ROLLOUT}")
    with pytest.raises(KeyboardInterrupt):
        train(preset, run_dir=tmp_path, listener=interrupt_after(4 * ROLLOUT))
    folder = train(preset, run_dir=tmp_path)[0]
    for name, values in load_weights(whole / POLICY_FILE).items():
        np.testing.assert_array_equal(values, load_weights(folder / POLICY_FILE)[name])
    assert progress_of(folder) == progress_of(whole)


def test_a_run_is_compared_with_rules(whole: Path, city: Scenario, tmp_path: Path) -> None:
    named = str(whole.parent)
    compared = compare_responsive(city, ["dp_truthful", named], n_days=2, out=tmp_path)
    rule, learned = compared.results
    assert (learned.retail, learned.kind, learned.training_seeds) == (LEARNED_RETAIL, "learned", (0,))
    played = responsive_rollout(responsive_world(city, city.days([0, 1], "test")), load_policy(whole, city))
    np.testing.assert_array_equal(learned.profit_eur, [played.market.profit_eur])
    ahead = learned.mean.profit_eur.value - rule.mean.profit_eur.value
    assert learned.mean.ahead_eur.value == pytest.approx(ahead)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Profit of all stations on validation days" in page
    assert page.count("<svg") == 3
    with (tmp_path / "days.csv").open(encoding="utf-8") as file:
        seeds = [row["training_seed"] for row in csv.DictReader(file)]
    assert seeds == ["", "", "0", "0"]


def test_runs_and_cities_of_another_kind_are_refused(whole: Path) -> None:
    with pytest.raises(ConfigError, match=r"responsive_demand is no section of this scenario"):
        train(tiny("scenario=ieee33_twelve"), run_dir=whole.parent / "other")
    with pytest.raises(ConfigError, match=r"train with problem: market_responsive"):
        train(load_preset("market_shared", [*TINY, "scenario=ieee33_twelve_responsive"]), run_dir=whole.parent / "o")
    with pytest.raises(ConfigError, match=r"was trained for market_responsive, not for market"):
        compare("market", [str(whole)], n_days=1)


def test_the_first_slot_follows_one_at_the_stations_own_prices(world: ResponsiveWorld) -> None:
    env = made(world)
    env.reset()
    state = remembered(env)
    begun = initial_responsive_state(world, state.market.day)
    np.testing.assert_array_equal(state.arrivals_veh_per_h, begun.arrivals_veh_per_h)


def test_without_a_bound_a_judgement_needs_a_merit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mute = replace(
        PROBLEMS["market_responsive"],
        judge=lambda *_: Judgement(np.zeros(2), dict.fromkeys(PROBLEMS["market_responsive"].curve, 0.0)),
    )
    monkeypatch.setitem(PROBLEMS, "market_responsive", mute)
    with pytest.raises(ConfigError, match=r"without a bound a judgement needs a merit"):
        train(tiny(f"total_steps={ROLLOUT}"), run_dir=tmp_path)
