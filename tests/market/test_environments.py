"""The market's environments as a user meets them: Gymnasium, its vector form, PettingZoo; every id by one contract."""

import copy
import pickle
import time
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numba
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from pettingzoo.test import parallel_api_test, parallel_seed_test
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from evcs_gym.baselines.rules_market import MARKET_RULES
from evcs_gym.envs import ENVIRONMENT_IDS, ConfigError, DataError, Day, Scenario, load_scenario, market_env
from evcs_gym.envs.market.env import BiddingEnv, MarketEnv
from evcs_gym.envs.market.features import N_FEATURES
from evcs_gym.envs.market.operators import NO_OPERATOR
from evcs_gym.envs.units import N_SLOTS

POOL_DAYS = 3
MARKET_IDS = ("evcs/Market-v0", "evcs/Bidding-v0")
TERMS = ("ev_income_eur", "export_eur", "import_eur", "trade_eur", "degradation_eur", "unserved_eur", "missing_eur")


@pytest.fixture(scope="module")
def city() -> Scenario:
    """The default city; its days are made once for this file."""
    return load_scenario("ieee33_twelve")


def make(name: str, **arguments: Any) -> Any:
    """One environment through Gymnasium's registry, without wrappers."""
    return gym.make(name, pool_days=POOL_DAYS, **arguments).unwrapped


def random_actions(seed: int, *shape: int) -> np.ndarray:
    """Uniform actions as a float32 policy gives them."""
    return np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)


def played(env: Any, actions: np.ndarray, **reset: Any) -> list[tuple[Any, ...]]:
    """Everything that a day returns, the reset's first."""
    steps: list[tuple[Any, ...]] = [env.reset(**reset)]
    steps += [env.step(action) for action in actions]
    return steps


def assert_same(one: Any, other: Any) -> None:
    """Equal to the last bit, whatever is inside."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        np.testing.assert_array_equal(one, other)


# --- every id, one contract --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENVIRONMENT_IDS)
def test_every_id_stands_the_checkers(name: str) -> None:
    env = make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env_sb3(env, skip_render_check=True)
    messages = [str(warning.message) for warning in caught]
    assert all("unconventional shape" in message for message in messages), messages  # 2-D observations


def random_actions_of(env: Any, seed: int) -> np.ndarray:
    """As many actions as a day of the market has slots; days of fast charging have more requests."""
    if isinstance(env.action_space, gym.spaces.Discrete):
        return np.random.default_rng(seed).integers(0, env.action_space.n, N_SLOTS)
    return random_actions(seed, N_SLOTS, *env.action_space.shape)


@pytest.mark.parametrize("name", ENVIRONMENT_IDS)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_of_every_id_go_on_as_the_original_would(name: str, clone: Any) -> None:
    env = make(name)
    actions = random_actions_of(env, 2)
    played(env, actions[:20], seed=3)
    twin = clone(env)
    assert_same([env.step(action) for action in actions[20:]], [twin.step(action) for action in actions[20:]])
    assert_same(env.reset(), twin.reset())  # the generator was copied too


@pytest.mark.parametrize("name", ENVIRONMENT_IDS)
def test_every_id_plays_the_same_from_the_same_seed(name: str) -> None:
    one, other = make(name), make(name)
    actions = random_actions_of(one, 1)
    assert_same(played(one, actions, seed=5), played(other, actions, seed=5))


@pytest.fixture
def all_threads() -> Iterator[None]:
    """Gives numba its threads back."""
    yield
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


@pytest.mark.usefixtures("all_threads")
@pytest.mark.parametrize("name", MARKET_IDS)
@pytest.mark.parametrize(("n_rows", "n_threads"), [(3, 1), (530, 2)])
def test_a_row_of_any_batch_on_any_number_of_threads_is_the_single_environment(
    name: str, n_rows: int, n_threads: int
) -> None:
    env = make(name)
    actions = random_actions(4, N_SLOTS + 5, *env.action_space.shape)
    vector = gym.make_vec(name, num_envs=n_rows, pool_days=POOL_DAYS)
    numba.set_num_threads(min(n_threads, numba.config.NUMBA_NUM_THREADS))
    seen, info = vector.reset(seed=8)
    assert vector.observation_space.contains(seen)
    expected, told = env.reset(seed=8)
    assert info["day_seed"][0] == told["day_seed"]
    np.testing.assert_array_equal(seen[0], expected)
    others = random_actions(9, n_rows, *env.action_space.shape)
    for action in actions:
        others[0] = action
        seen, reward, ended, truncated, infos = vector.step(others)
        expected, value, done, _, told = env.step(action)
        np.testing.assert_array_equal(infos["final_obs"][0] if done else seen[0], expected)
        assert (reward[0], ended[0], truncated[0]) == (value, done, False)
        assert_same(
            {key: infos[key][0].tolist() for key in told}, {key: np.asarray(told[key]).tolist() for key in told}
        )
        if done:
            expected, told = env.reset()  # both draw the next day from the same generator
            np.testing.assert_array_equal(seen[0], expected)
            assert infos["day_seed"][0] == told["day_seed"]
            assert infos["_final_info"].all()
            assert vector.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP


# --- one controller, one bidder ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MARKET_IDS)
def test_a_day_has_48_steps_and_ends_in_a_termination(name: str) -> None:
    env = make(name)
    steps = played(env, random_actions(0, N_SLOTS, *env.action_space.shape), seed=1)
    assert [step[2] for step in steps[1:]] == [False] * 47 + [True]
    assert not any(step[3] for step in steps[1:])
    assert all(env.observation_space.contains(step[0]) for step in steps)
    with pytest.raises(ConfigError, match=r"the day is over; call reset\(\) before the next step"):
        env.step(np.zeros(env.action_space.shape))


def test_the_controller_s_reward_is_what_the_community_pays_and_info_holds_its_terms(city: Scenario) -> None:
    env, shifted = make(MARKET_IDS[0]), make(MARKET_IDS[0], reward_shift=True)
    assert env.observation_space.shape == (8, N_FEATURES)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (8,), np.float32)
    day, actions = city.day(3, "test"), random_actions(1, N_SLOTS, 8)
    plain, other = (played(one, actions, options={"day": day})[1:] for one in (env, shifted))
    for _, reward, _, _, info in plain:
        assert reward == -info["community_eur"]
        assert info["profit_eur"] == pytest.approx(sum(info[term] for term in TERMS), abs=1e-9)
        assert info["profit_eur"] == pytest.approx(info["ev_income_eur"] - info["community_eur"], abs=1e-9)
        assert info["profit_eur"] == pytest.approx(info["station_profit_eur"].sum(), abs=1e-9)
        assert info["converged"]
    shift = [b[1] - a[1] for a, b in zip(plain, other, strict=True)]
    again = played(shifted, np.zeros((N_SLOTS, 8)), options={"day": day})[1:]
    same = [step[1] + step[4]["community_eur"] for step in again]
    np.testing.assert_allclose(shift, same, atol=1e-9)  # it does not depend on the policy
    assert max(shift) > 1.0


def test_the_controller_s_asks_stand_at_the_export_price_and_numbers_are_storage_power(city: Scenario) -> None:
    env = make(MARKET_IDS[0], residual=False, operator=NO_OPERATOR)
    env.reset(options={"day": city.day(3, "test")})
    *_, info = env.step(np.full(8, -0.5, dtype=np.float32))
    np.testing.assert_allclose(info["station_storage_kw"], -0.5 * env.market.batch.world.assets.storage_kw)
    outcome = env.market.last.outcome
    np.testing.assert_array_equal(outcome.ask_eur_per_kwh, np.full((1, 8), env.day.export_eur_per_kwh[0]))


def test_a_bidder_alone_sees_and_is_told_its_own(city: Scenario) -> None:
    env = make(MARKET_IDS[1], station=2)
    assert env.observation_space.shape == (N_FEATURES,)
    assert env.action_space.shape == (2,)
    day = city.day(3, "test")
    seen, _ = env.reset(options={"day": day})
    whole = make(MARKET_IDS[0])
    np.testing.assert_array_equal(seen, whole.reset(options={"day": day})[0][2])
    _, reward, _, _, info = env.step(np.array([0.2, -1.0], dtype=np.float32))
    assert reward == info["profit_eur"] == pytest.approx(sum(info[term] for term in TERMS), abs=1e-9)
    assert all(np.ndim(value) == 0 for value in info.values())
    assert info["ask_eur_per_kwh"] == pytest.approx(day.export_eur_per_kwh[0])
    assert {"price_eur_per_kwh", "volume_kw", "storage_kw", "cap_kw"} < set(info)


@pytest.mark.parametrize("rule", ["dp_truthful", "dp_markup", "zero_intelligence"])
def test_the_others_play_the_named_rule(city: Scenario, rule: str) -> None:
    env = make(MARKET_IDS[1], station=0, others=MARKET_RULES[rule])
    env.reset(options={"day": city.day(3, "test")})
    for _ in range(3):
        expected = MARKET_RULES[rule](env.view(), env.plan())
        env.step(np.array([1.0, 0.3], dtype=np.float32))
        asks = env.market.last.outcome.ask_eur_per_kwh[0]
        np.testing.assert_array_equal(asks[1:], expected.ask_eur_per_kwh[0, 1:])
        assert asks[0] != expected.ask_eur_per_kwh[0, 0]


def test_the_station_is_chosen_by_number_or_name_and_the_team_may_count(city: Scenario) -> None:
    by_name, team = make(MARKET_IDS[1], station="station_5"), make(MARKET_IDS[1], station=5, team_frac=1.0)
    assert by_name.role.station == 5
    day = city.day(3, "test")
    by_name.reset(options={"day": day})
    team.reset(options={"day": day})
    _, own, *_ = by_name.step(np.zeros(2))
    _, whole, *_ = team.step(np.zeros(2))
    assert own == by_name.market.last.outcome.profit_eur[0, 5]
    assert whole == pytest.approx(by_name.market.last.outcome.profit_eur.sum(), abs=1e-9)


# --- days --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MARKET_IDS)
def test_a_day_of_the_pool_is_the_one_that_the_info_names(name: str, city: Scenario) -> None:
    env = make(name)
    seen, info = env.reset(seed=5)
    assert isinstance(env.day, Day)
    assert (env.day.seed, env.day.split) == (info["day_seed"], "train")
    np.testing.assert_array_equal(env.reset(options={"day": city.day(info["day_seed"])})[0], seen)


def test_a_day_is_played_under_given_devices_and_refused_days_leave_the_old_one(city: Scenario) -> None:
    env = make(MARKET_IDS[0])
    day = city.day(3, "test")
    env.reset(options={"day": day, "devices": day.schedule})
    assert env.day.tap_position.tolist() == day.tap_position.tolist()
    with pytest.raises(ConfigError, match=r"options\['devices'\] must be a DeviceSchedule, given together with"):
        env.reset(options={"devices": day.schedule})
    with pytest.raises(ConfigError, match=r"options\['day'\] must be a Day \(scenario.day\(seed\)\), got int"):
        env.reset(options={"day": 3})
    with pytest.raises(ConfigError, match=r"reset options must be among \['day', 'devices'\], got \['date'\]"):
        env.reset(options={"date": 3})
    assert env.day.date == day.date
    env.step(np.zeros(8))


def test_reset_takes_a_fifth_of_a_millisecond_from_the_pool() -> None:
    for name in MARKET_IDS:
        env = make(name)
        env.reset(seed=0)
        seconds = []
        for _ in range(60):
            begin = time.perf_counter()
            env.reset()
            seconds.append(time.perf_counter() - begin)
        assert min(seconds) < 0.2e-3  # the least of many: other work on the machine only adds


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MARKET_IDS)
def test_impossible_actions_are_refused_and_the_day_goes_on(name: str) -> None:
    env = make(name)
    with pytest.raises(ConfigError, match=r"the environment has no day yet; call reset\(\) first"):
        env.step(np.zeros(env.action_space.shape))
    for wants in (lambda: env.day, env.view, env.plan):
        with pytest.raises(ConfigError, match="no day yet"):
            wants()
    env.reset(seed=0)
    wrong = [np.zeros(3), np.full(env.action_space.shape, np.nan), np.full(env.action_space.shape, 1.1), "no numbers"]
    for action, words in zip(
        wrong, ("must have shape", "must be finite", "must lie in", "array of numbers"), strict=True
    ):
        with pytest.raises(DataError, match=words):
            env.step(action)
    assert env.market.running().slot.tolist() == [0]
    env.step(np.zeros(env.action_space.shape))


def test_arguments_are_checked(city: Scenario) -> None:
    for words, arguments in {
        "pool_days must be at least 1, got 0": {"pool_days": 0},
        "split must be one of train, validation, test, got 'all'": {"split": "all"},
        "nothing called 'ieee34'": {"scenario": "ieee34"},
        "stations is no section of this scenario": {"scenario": "ieee33_residential"},
        "render_mode must be None or one of rgb_array, got 'human'": {"render_mode": "human"},
    }.items():
        with pytest.raises(ConfigError, match=words):
            MarketEnv(**{"pool_days": POOL_DAYS, **arguments})  # type: ignore[arg-type]
    for words, arguments in {
        r"station must be one of station_0, .* or a number 0..7, got 8": {"station": 8},
        "got 'west'": {"station": "west"},
        "got True": {"station": True},
        "others must be a rule, a function of view": {"others": "dp_truthful"},
        r"team_frac must be in \[0, 1\]": {"team_frac": -0.1},
    }.items():
        with pytest.raises(ConfigError, match=words):
            BiddingEnv(**{"pool_days": POOL_DAYS, "scenario": city, **arguments})  # type: ignore[arg-type]


def test_the_vector_form_checks_its_input_and_resets_marked_rows() -> None:
    vector: Any = gym.make_vec(MARKET_IDS[1], num_envs=3, pool_days=POOL_DAYS)
    with pytest.raises(ConfigError, match=r"the environments have no day yet; call reset\(\) first"):
        vector.step(np.zeros((3, 2)))
    with pytest.raises(ConfigError, match="a list of seeds must hold integers only"):
        vector.reset(seed=[1, None, 2])
    with pytest.raises(ConfigError, match=r"reset options must be among \['reset_mask'\], got \['day'\]"):
        vector.reset(options={"day": 1})
    vector.reset(seed=0)
    with pytest.raises(DataError, match=r"must have shape \(3, 2\) \(storage power and ask in every row\), got \(2,\)"):
        vector.step(np.zeros(2))
    with pytest.raises(ConfigError, match=r"options\['reset_mask'\] must be a bool array \(3,\)"):
        vector.reset(options={"reset_mask": [True, False]})
    for _ in range(4):
        before, *_ = vector.step(np.zeros((3, 2)))
    after, _ = vector.reset(options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert vector.batch.running().slot.tolist() == [4, 0, 4]
    assert vector.view().slot.tolist() == [4, 0, 4]
    assert vector.plan().storage_kw.shape == (3, 8)


# --- PettingZoo --------------------------------------------------------------------------------------------


def stations_env(**arguments: Any) -> Any:
    """The default city, every station an agent."""
    return market_env(pool_days=POOL_DAYS, **arguments)


def test_the_parallel_environment_stands_pettingzoos_tests() -> None:
    with pytest.warns(
        UserWarning, match=r"reset options are 'day' and 'devices'; \['options'\] changes nothing"
    ) as caught:
        parallel_api_test(stations_env(), num_cycles=2 * N_SLOTS)
    assert len(caught) == 1  # the checker's own odd option is all that is complained about
    parallel_seed_test(stations_env, num_cycles=N_SLOTS)


def test_every_agent_sees_its_own_row_and_earns_its_own_profit(city: Scenario) -> None:
    env, whole = stations_env(), make(MARKET_IDS[0])
    day = city.day(3, "test")
    seen, infos = env.reset(options={"day": day})
    assert env.agents == [f"station_{n}" for n in range(8)]
    assert infos["station_3"] == {"day_seed": 3}
    np.testing.assert_array_equal(np.stack(list(seen.values())), whole.reset(options={"day": day})[0])
    np.testing.assert_array_equal(env.state(), np.concatenate(list(seen.values())))
    numbers = random_actions(0, 8, 2)
    _, rewards, terminated, truncated, infos = env.step(dict(zip(env.agents, numbers, strict=True)))
    outcome = env.market.last.outcome
    assert list(rewards.values()) == outcome.profit_eur[0].tolist()
    assert all(isinstance(reward, float) for reward in rewards.values())
    assert not any(terminated.values())
    assert not any(truncated.values())
    assert infos["station_2"]["position_kw"] == outcome.position_kw[0, 2]
    assert infos["station_2"]["ask_eur_per_kwh"] == outcome.ask_eur_per_kwh[0, 2]


def test_all_agents_terminate_at_noon_and_play_the_same_whatever_the_order_of_their_actions() -> None:
    one, other = stations_env(team_frac=0.5), stations_env(team_frac=0.5)
    one.reset(seed=2)
    other.reset(seed=2)
    for slot in range(N_SLOTS):
        actions = dict(zip(one.agents, random_actions(slot, 8, 2), strict=True))
        mixed = dict(sorted(actions.items(), reverse=True))
        left, right = one.step(actions), other.step(mixed)
        assert_same(left, right)
    assert all(left[2].values())
    assert one.agents == []
    with pytest.raises(ConfigError, match=r"the day is over; call reset\(\)"):
        one.step({})
    assert one.reset(seed=2)[1]["station_0"]["day_seed"] == other.reset(seed=2)[1]["station_0"]["day_seed"]


def test_actions_of_agents_are_checked() -> None:
    env = stations_env()
    with pytest.raises(ConfigError, match="no day yet"):
        env.step({})
    env.reset(seed=0)
    actions = {agent: np.zeros(2) for agent in env.agents}
    with pytest.raises(ConfigError, match=r"actions must be given for station_0, .*, got station_0$"):
        env.step({"station_0": np.zeros(2)})
    with pytest.raises(DataError, match=r"must have shape \(2,\) \(storage power and ask of station_4\), got \(3,\)"):
        env.step({**actions, "station_4": np.zeros(3)})
    with pytest.raises(ConfigError, match="render_mode must be None or one of rgb_array"):
        stations_env(render_mode="ansi")
    env.step(actions)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_of_the_parallel_environment_go_on_as_the_original_would(clone: Any) -> None:
    env = stations_env()
    env.reset(seed=0)
    actions = [dict(zip(env.agents, random_actions(slot, 8, 2), strict=True)) for slot in range(6)]
    for action in actions[:3]:
        env.step(action)
    twin = clone(env)
    assert_same([env.step(action) for action in actions[3:]], [twin.step(action) for action in actions[3:]])
    assert_same(env.reset(), twin.reset())
