"""Learning in the market: rows, rewards and roles are those of the core, and a run is judged, stored and resumed."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from market_fixtures import city_world, small_world, stations
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_fixtures import interrupt_after

from evcs_gym.baselines.policy_market import MarketStage
from evcs_gym.baselines.registry import make_rule
from evcs_gym.baselines.score import rollout
from evcs_gym.envs import load_scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.core import MarketAction, MarketWorld, ask_band, initial_state, step
from evcs_gym.envs.market.play import scaled_action
from evcs_gym.envs.market.view import own_plan
from evcs_gym.envs.units import N_SLOTS
from evcs_gym.training.checkpoint import POLICY_FILE, load_weights, read_run
from evcs_gym.training.config import Preset, load_preset
from evcs_gym.training.market import MarketVecEnv, market_policy, watched_rollout
from evcs_gym.training.problems import PROBLEMS
from evcs_gym.training.train import load_policy, make_model, make_validation, train

B, S = 3, 8
TINY = (
    "n_envs=4",
    "pool_days=4",
    "ppo.n_steps=24",
    "ppo.batch_size=64",
    "ppo.n_epochs=2",
    "ppo.hidden_units=[16]",
    "validation.n_days=2",
    "validation.every_rollouts=2",
    "checkpoint_every_rollouts=2",
)
ROWS = 4 * S
ROLLOUT = 24 * ROWS


@pytest.fixture(scope="module")
def world() -> MarketWorld:
    """Four random days of eight stations of different size."""
    return city_world(n_days=4)


def made(world: MarketWorld, rows: str = "stations", **spec: Any) -> MarketVecEnv:
    """Plain EUR, nothing shifted."""
    preset = Preset(name="made", problem="market", rows=rows, market=spec, reward_shift=False, reward_scale_per_eur=1.0)
    env = MarketVecEnv(world, B, preset)
    env.seed(3)
    return env


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.3, 0.3, shape)


def tiny(name: str = "market_shared", *overrides: str) -> Preset:
    return load_preset(name, [*TINY, *overrides])


# --- rows ---------------------------------------------------------------------------------------------------


def test_rows_are_stations_with_their_own_profits(world: MarketWorld) -> None:
    env = made(world, by_size=False)
    observation = env.reset()
    assert observation.shape == (B * S, *env.observation_space.shape)  # type: ignore[misc]
    state = env.batch.running()
    action = numbers(B, S, 2)
    _, outcome = step(world, state, scaled_action(world, state, own_plan(world, state), action))
    _, reward, _, infos = env.step(action.reshape(-1, 2))
    np.testing.assert_allclose(reward, outcome.profit_eur.reshape(-1), rtol=1e-5)
    np.testing.assert_allclose([info["profit_eur"] for info in infos], outcome.profit_eur.reshape(-1))


def test_a_reward_by_size_is_per_kw_of_storage(world: MarketWorld) -> None:
    plain, scaled = made(world, by_size=False), made(world)
    plain.reset(), scaled.reset()
    action = numbers(B * S, 2)
    size_kw = world.assets.storage_kw
    wanted = plain.step(action)[1].reshape(B, S) * size_kw.mean() / size_kw
    np.testing.assert_allclose(scaled.step(action)[1].reshape(B, S), wanted, rtol=1e-5)


def test_a_team_shares_the_profit_of_all(world: MarketWorld) -> None:
    own, team, mixed = (made(world, by_size=False, team_frac=share) for share in (0.0, 1.0, 0.25))
    action = numbers(B * S, 2)
    rewards = []
    for env in (own, team, mixed):
        env.reset()
        rewards.append(env.step(action)[1].reshape(B, S))
    together = np.repeat(rewards[0].sum(axis=1, keepdims=True), S, axis=1)
    np.testing.assert_allclose(rewards[1], together, rtol=1e-4)
    np.testing.assert_allclose(rewards[2], 0.75 * rewards[0] + 0.25 * together, rtol=1e-4, atol=1e-4)


def test_one_controller_decides_on_storage_and_asks_stand_at_the_least(world: MarketWorld) -> None:
    env = made(world, "environments")
    assert env.reset().shape[:2] == (B, S)
    state, action = env.batch.running(), numbers(B, S)
    both = np.stack([action, np.full((B, S), -1.0)], axis=-1)
    wanted = scaled_action(world, state, own_plan(world, state), both)
    np.testing.assert_array_equal(wanted.ask_eur_per_kwh, np.repeat(ask_band(world, state)[0][:, None], S, axis=1))
    _, outcome = step(world, state, wanted)
    reward = env.step(action)[1]
    np.testing.assert_allclose(reward, -outcome.community_eur, rtol=1e-5)


def test_one_station_learns_among_stations_that_play_a_rule(world: MarketWorld) -> None:
    env = made(world, by_size=False, station=world.stations.name[5])
    k = 5
    assert env.reset().shape[0] == B
    state, action = env.batch.running(), numbers(B, 2)
    rule = make_rule("dp_truthful", "market").decide(MarketStage(world, state))
    own = scaled_action(world, state, own_plan(world, state), np.repeat(action[:, None], S, axis=1))
    storage, ask = rule.storage_kw.copy(), rule.ask_eur_per_kwh.copy()
    storage[:, k], ask[:, k] = own.storage_kw[:, k], own.ask_eur_per_kwh[:, k]
    _, outcome = step(world, state, MarketAction(storage, ask))
    reward = env.step(action)[1]
    np.testing.assert_allclose(reward, outcome.profit_eur[:, k], rtol=1e-5)


def test_a_day_ends_with_its_sums(world: MarketWorld) -> None:
    env = made(world)
    env.reset()
    rest = np.zeros((B * S, 2))
    total, ended, infos = np.zeros(B), np.zeros(0), []
    for _ in range(N_SLOTS):
        _, _, ended, infos = env.step(rest)
        total += np.array([info["profit_eur"] for info in infos]).reshape(B, S).sum(axis=1)
    assert ended.all()
    assert all("terminal_observation" in info and info["episode"]["l"] == N_SLOTS for info in infos)
    np.testing.assert_allclose(env.episode_terms["profit_eur"], total)
    assert set(env.episode_terms) >= {"cost_eur", "traded_kwh", "curtailed_kwh", "n_capped_slots"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"station": "station_99"}, "station must be one of .*got 'station_99'"),
        ({"station": "first", "others": "dp_truthfull"}, "did you mean 'dp_truthful'"),
    ],
)
def test_stations_and_rules_that_are_none(world: MarketWorld, spec: dict[str, str], message: str) -> None:
    spec = {**spec, "station": world.stations.name[0] if spec["station"] == "first" else spec["station"]}
    with pytest.raises(ConfigError, match=message):
        made(world, **spec)


# --- presets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rows=buses", "rows of market must be stations or environments, got buses"),
        ("problem=normal_charging", "rows of normal_charging must be buses or environments, got stations"),
        ("market.team_frac=1.5", "market.team_frac: .*less than or equal to 1"),
        ("market.teamfrac=1", "market.teamfrac is no known key; did you mean 'team_frac'"),
    ],
)
def test_presets_that_cannot_be(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny("market_shared", setting)


def test_one_station_and_one_controller_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match=r"market.station needs rows: stations, got environments"):
        tiny("bidding", "rows=environments")


def test_what_stations_learn_is_no_setting_of_normal_charging() -> None:
    with pytest.raises(ConfigError, match=r"market goes with problems of the market, got normal_charging"):
        load_preset("normal_charging", ["market.team_frac=1"])


def test_deviations_of_each_number_of_an_action(world: MarketWorld) -> None:
    model = make_model(tiny(), made(world), 0)
    np.testing.assert_allclose(model.policy.log_std.detach(), [-1.6, -0.9])
    for key in ("log_std_initial", "log_std_final"):
        with pytest.raises(ConfigError, match="need 1 or 2 numbers, got 3"):
            make_model(tiny("market_shared", f"ppo.{key}=[-1,-1,-1]"), made(world), 0)


# --- policies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["market_shared", "market", "bidding"])
def test_a_model_plays_alike_in_training_and_when_it_is_scored(world: MarketWorld, name: str) -> None:
    preset = tiny(name, f"market.station={world.stations.name[0]}") if name == "bidding" else tiny(name)
    env = PROBLEMS["market"].env(world, world.n_days, preset)
    model = make_model(preset, env, 0)
    env.reset()
    env.batch.state = initial_state(world, np.arange(world.n_days))
    observation = env._by_row(env.batch.observe())  # type: ignore[attr-defined]
    for _ in range(N_SLOTS):
        action = np.clip(model.predict(observation, deterministic=True)[0], -1.0, 1.0)
        observation = env.step(action)[0]
    result = rollout(world, market_policy(model, world, preset))
    np.testing.assert_allclose(env.episode_terms["cost_eur"], result.cost_eur, rtol=1e-4)
    np.testing.assert_allclose(env.episode_terms["profit_eur"], result.profit_eur.sum(axis=1), rtol=1e-4)


def test_the_markup_is_what_is_asked_above_cost(world: MarketWorld) -> None:
    truthful = watched_rollout(world, make_rule("dp_truthful", "market"))[1]
    dearer = watched_rollout(world, make_rule("dp_markup", "market"))[1]
    assert truthful["markup_eur_per_kwh"] == 0.0
    assert dearer["markup_eur_per_kwh"] > 0.0
    assert truthful["volume_kwh"] > 0.0


def test_without_trade_price_and_markup_are_zero() -> None:
    alone = small_world(stations(1), pv_kw=10.0)
    shown = watched_rollout(alone, make_rule("idle", "market"))[1]
    assert (shown["volume_kwh"], shown["price_eur_per_kwh"], shown["markup_eur_per_kwh"]) == (0.0, 0.0, 0.0)


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five rollouts that nothing interrupted; every second begins in the middle of a day."""
    return train(tiny("market_shared", f"total_steps={5 * ROLLOUT}"), run_dir=tmp_path_factory.mktemp("run"))[0]


def progress_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "progress.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_run_shows_the_market_on_validation_days(whole: Path) -> None:
    assert read_run(whole).finished
    accumulator = EventAccumulator(str(whole))
    accumulator.Reload()  # type: ignore[no-untyped-call]
    tags = set(accumulator.Tags()["scalars"])  # type: ignore[no-untyped-call]
    shown = ("captured", "cost_eur", "profit_eur", "price_eur_per_kwh", "volume_kwh", "markup_eur_per_kwh")
    shown += ("lowest_voltage_pu", "curtailed_kwh", "n_capped_slots", "traffic_gap", "n_violations")
    assert {f"validation/{name}" for name in shown} <= tags
    assert {"day/cost_eur", "day/profit_eur", "day/traded_kwh"} <= tags
    gaps = [event.value for event in accumulator.Scalars("validation/traffic_gap")]  # type: ignore[no-untyped-call]
    assert all(0.0 <= gap <= 1e-3 for gap in gaps)


def test_an_interrupted_run_goes_on_exactly(whole: Path, tmp_path: Path) -> None:
    preset = tiny("market_shared", f"total_steps={5 * ROLLOUT}")
    with pytest.raises(KeyboardInterrupt):
        train(preset, run_dir=tmp_path, listener=interrupt_after(4 * ROLLOUT))
    folder = train(preset, run_dir=tmp_path)[0]
    for name, values in load_weights(whole / POLICY_FILE).items():
        np.testing.assert_array_equal(values, load_weights(folder / POLICY_FILE)[name])
    assert progress_of(folder) == progress_of(whole)


def test_the_policy_that_is_kept_is_the_best_of_the_curve(whole: Path) -> None:
    city = load_scenario("ieee33_twelve")
    validation = make_validation(city, 2, "market")
    kept = validation.captured(rollout(validation.world, load_policy(whole, city)))
    assert kept == pytest.approx(max(float(row["captured"]) for row in progress_of(whole)), abs=1e-6)


def test_a_station_among_rules_keeps_what_earned_it_most(tmp_path: Path) -> None:
    city = load_scenario("ieee33_twelve")
    preset = tiny("bidding", f"total_steps={4 * 24 * 4}")
    folder = train(preset, run_dir=tmp_path)[0]
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()  # type: ignore[no-untyped-call]
    earned = [e.value for e in accumulator.Scalars("validation/own_profit_eur")]  # type: ignore[no-untyped-call]
    validation = make_validation(city, 2, "market")
    result = rollout(validation.world, load_policy(folder, city))
    assert float(result.profit_eur[:, 0].mean()) == pytest.approx(max(earned), rel=1e-6)
