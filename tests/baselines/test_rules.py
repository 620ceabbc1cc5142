"""The rules to beat: each by hand on tiny days, all through one contract, and how any policy is scored."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from envs_fixtures import Car, begin, hand_day, tiny_scenario
from reference import water_filling_reference

from evcs_gym.baselines import RULES, Policy, make_rule, optimum, reference
from evcs_gym.baselines.open_loop import OpenLoop, bus_totals_kw
from evcs_gym.baselines.policy import Rule
from evcs_gym.baselines.reference import References, references
from evcs_gym.baselines.registry import NAIVE_RULE
from evcs_gym.baselines.rules import WATER_FILLING_PASSES, fill_valleys, water_filling
from evcs_gym.baselines.score import Rollout, ms_per_decision, rollout
from evcs_gym.envs import ConfigError, DataError, Day, Scenario
from evcs_gym.envs.fleet import normal
from evcs_gym.envs.fleet.env import NormalChargingEnv
from evcs_gym.envs.fleet.vector import NormalChargingVectorEnv
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS

STRONG_RULE = "water_filling"


def played(scenario: Scenario, day: Day, name: str) -> FloatArray:
    """Bus powers (T, C) of a rule on a day."""
    return rollout(normal.make_world(scenario, [day]), make_rule(name)).bus_power_kw[0]


def slots_of(power_kw: FloatArray) -> list[int]:
    """Slots in which bus 0 charges."""
    return np.flatnonzero(power_kw[:, 0] > 1e-6).tolist()


def price_with(**cheap: float) -> FloatArray:
    """0.10 EUR/kWh but in the named slots (``s7=0.05``)."""
    price = np.full(N_SLOTS, 0.10)
    for name, value in cheap.items():
        price[int(name[1:])] = value
    return price


# -------------------------------------------------------------------------------------------------- rules by hand


def test_charge_on_arrival_charges_as_soon_and_as_much_as_possible() -> None:
    scenario = tiny_scenario()
    power = played(scenario, hand_day(scenario, Car(20.0, 10.0, 5, 40), Car(10.0, 10.0, 6, 30, car=1)), NAIVE_RULE)
    assert slots_of(power) == [5, 6, 7, 8]
    assert power[5:9, 0].tolist() == pytest.approx([10.0, 20.0, 20.0, 10.0])


def test_dg_following_charges_in_the_surplus_and_what_is_left_at_the_end() -> None:
    # 20 kWh at 10 kW are 4 slots; surplus of 10 kW in slots 8 and 9 alone: the other two are the last of the stay
    scenario = tiny_scenario()
    dg = np.zeros((N_SLOTS, 2))
    dg[8:10, 0] = 20.5
    assert slots_of(played(scenario, hand_day(scenario, Car(20.0, 10.0, 5, 40), dg_kw=dg), "dg_following")) == [
        8,
        9,
        38,
        39,
    ]


def test_cheapest_slots_takes_them_for_each_car_alone_and_the_earlier_of_equal_ones() -> None:
    scenario = tiny_scenario()
    price = price_with(s7=0.05, s20=0.06, s45=0.01)
    day = hand_day(scenario, Car(15.0, 10.0, 5, 40), price_eur_per_kwh=price)
    assert slots_of(played(scenario, day, "cheapest_slots")) == [5, 7, 20]


def test_least_laxity_spreads_the_energy_evenly() -> None:
    # 20 kWh over 8 slots = 5 kW: half of the car's 10 kW, reached by "sum plus half" in every other slot
    scenario = tiny_scenario(mode="modulated")
    power = played(scenario, hand_day(scenario, Car(20.0, 10.0, 2, 10)), "least_laxity")
    assert power[2:10, 0].tolist() == pytest.approx([5.0] * 8)


def test_least_laxity_in_whole_slots_charges_the_urgent_car_first() -> None:
    # car 1 leaves after 4 slots and needs 2: 5 kW; car 0 stays 20 and needs 4: 2 kW; 7 kW in all fit one car of 10 kW
    scenario = tiny_scenario()
    day = hand_day(scenario, Car(20.0, 10.0, 0, 20), Car(10.0, 10.0, 0, 4, car=1))
    world, state = begin(scenario, day)
    view = normal.view(world, state)
    target = RULES["least_laxity"](view)
    assert target[0].tolist() == pytest.approx([2.0 + 5.0, 0.0])
    action = normal.knee_action(target, view.surplus_kw, view.least_kw, view.largest_kw)
    assert normal.dispatch(world, state, action)[0].tolist() == pytest.approx([0.0, 10.0])


def test_water_filling_prefers_surplus_to_a_price_that_is_a_little_lower() -> None:
    # omega1 0.02: a kWh inside the surplus costs 0.10 - 0.02 = 0.08, in slot 7 0.09 + 0.02 = 0.11, elsewhere 0.12
    scenario = tiny_scenario()
    dg = np.zeros((N_SLOTS, 2))
    dg[12, 0] = 20.0
    day = hand_day(scenario, Car(10.0, 10.0, 5, 40), dg_kw=dg, price_eur_per_kwh=price_with(s7=0.09))
    assert slots_of(played(scenario, day, STRONG_RULE)) == [7, 12]


def test_water_filling_moves_a_car_out_of_the_surplus_that_another_needs_more() -> None:
    # car 0 (laxity 3) chooses the surplus of slot 4 first, car 1 the one of slot 5: nobody pays for exchange twice
    scenario = tiny_scenario()
    dg = np.zeros((N_SLOTS, 2))
    dg[4:6, 0] = 20.0
    day = hand_day(scenario, Car(5.0, 10.0, 2, 6), Car(5.0, 10.0, 2, 20, car=1), dg_kw=dg)
    power = played(scenario, day, STRONG_RULE)
    assert power[4:6, 0].tolist() == pytest.approx([10.0, 10.0])


def one_pass(view: normal.View) -> FloatArray:
    """Water-filling without second thoughts."""
    net = np.ascontiguousarray((view.base_kw - view.dg_kw).transpose(0, 2, 1))
    arrival = np.zeros_like(view.departure_slot)
    cars = (view.slot, view.bus_start, arrival, view.departure_slot, view.power_kw, view.remaining_kwh)
    weights = (view.rules.omega1_eur_per_kwh, view.rules.energy_weight)
    return fill_valleys(*cars, view.import_eur_per_kwh, net, *weights, 1)


def test_water_filling_equals_its_plain_twin() -> None:
    rng = np.random.default_rng(0)
    for mode in ("on_off", "modulated"):
        scenario = tiny_scenario(n_cars=(30, 20), mode=mode, omega1_eur_per_kwh=0.05)
        # prices without the ties of half-hours: between equal slots the order of sums decides
        days = [
            dataclasses.replace(day, import_eur_per_kwh=rng.uniform(0.05, 0.12, N_SLOTS))
            for day in scenario.days([0, 1, 2])
        ]
        world, state = begin(scenario, *days)
        for _ in range(N_SLOTS):
            view = normal.view(world, state)
            got = water_filling(view)
            if state.slot[0] % 4 == 0:
                for row in range(3):
                    for bus in range(2):
                        expected = water_filling_reference(view, row, bus, WATER_FILLING_PASSES)
                        assert got[row, bus] == pytest.approx(expected, abs=1e-9)
                        expected = water_filling_reference(view, row, bus, 1)
                        assert one_pass(view)[row, bus] == pytest.approx(expected, abs=1e-9)
            action = normal.knee_action(got, view.surplus_kw, view.least_kw, view.largest_kw)
            state, _ = normal.step(world, state, normal.dispatch(world, state, action))


def test_water_filling_is_on_average_at_least_as_good_as_one_pass(shipped_scenario: Scenario) -> None:
    world = normal.make_world(shipped_scenario, shipped_scenario.days(range(20), "train"))
    cost, plain = (rollout(world, rule).cost_eur for rule in (make_rule(STRONG_RULE), Rule("one_pass", one_pass)))
    assert cost.mean() <= plain.mean() * (1.0 + 1e-4)


# --------------------------------------------------------------------------------------------------- one contract


@pytest.fixture(scope="module")
def five_days(small_scenario: Scenario) -> list[Day]:
    """Days on which every rule plays."""
    return small_scenario.days(range(5), "test")


@pytest.fixture(scope="module")
def bounds_eur(small_scenario: Scenario, five_days: list[Day]) -> FloatArray:
    """Proven bounds of those days."""
    solutions = [optimum(small_scenario, day, time_limit_s=30.0) for day in five_days]
    assert all(solution.lower_bound_eur <= solution.cost_eur + 1e-9 for solution in solutions)
    return np.array([solution.lower_bound_eur for solution in solutions])


@pytest.mark.parametrize("name", RULES)
def test_every_rule_stays_in_the_space_fills_all_cars_and_costs_no_less_than_the_bound(
    name: str, small_scenario: Scenario, five_days: list[Day], bounds_eur: FloatArray
) -> None:
    rule = make_rule(name)
    assert isinstance(rule, Policy)
    env = NormalChargingEnv(small_scenario, pool_days=1)
    rule.attach(env)
    for day, bound in zip(five_days, bounds_eur, strict=True):
        observation, _ = env.reset(options={"day": day})
        cost, ended = 0.0, False
        while not ended:
            action, recurrent = rule.predict(observation)
            assert env.action_space.contains(action)
            assert recurrent is None
            observation, reward, ended, _, info = env.step(action)
            cost += info["cost_eur"]
            assert reward == pytest.approx(-info["cost_eur"], abs=1e-12)
        assert env.state is not None
        assert env.state.remaining_kwh.max() == 0.0
        assert cost >= bound - 1e-6


@pytest.mark.parametrize("name", RULES)
def test_rules_see_the_view_alone_and_leave_it_as_it_was(name: str, small_scenario: Scenario) -> None:
    world, state = begin(small_scenario, *small_scenario.days([0, 1]), slot=12)
    view = normal.view(world, state)
    before = {field.name: copy_of(getattr(view, field.name)) for field in dataclasses.fields(view)}
    target = RULES[name](view)
    assert target.shape == (2, 2)
    assert np.isfinite(target).all()
    for key, values in before.items():
        np.testing.assert_array_equal(values, getattr(view, key), err_msg=key)
    np.testing.assert_array_equal(RULES[name](view), target)
    alone = normal.view(*begin(small_scenario, small_scenario.day(1), slot=12))
    np.testing.assert_array_equal(RULES[name](alone)[0], target[1])


def copy_of(value: Any) -> Any:
    """A copy of an array, anything else as it is."""
    return value.copy() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("name", RULES)
def test_rules_play_batches_as_they_play_single_days(name: str, small_scenario: Scenario, five_days: list[Day]) -> None:
    together = rollout(normal.make_world(small_scenario, five_days), make_rule(name)).cost_eur
    alone = [rollout(normal.make_world(small_scenario, [day]), make_rule(name)).cost_eur[0] for day in five_days]
    np.testing.assert_array_equal(together, alone)


def test_rules_are_ordered_as_the_study_found(shipped_scenario: Scenario) -> None:
    world = normal.make_world(shipped_scenario, shipped_scenario.days(range(10), "validation"))
    cost = {name: rollout(world, make_rule(name)).cost_eur.sum() for name in RULES}
    assert min(cost, key=lambda name: cost[name]) == STRONG_RULE
    assert max(cost, key=lambda name: cost[name]) == NAIVE_RULE


def test_rule_attaches_to_wrapped_and_vector_environments(small_scenario: Scenario) -> None:
    rule = make_rule("least_laxity")
    wrapped = gym.wrappers.RecordEpisodeStatistics(NormalChargingEnv(small_scenario, pool_days=1))
    rule.attach(wrapped)
    observation, _ = wrapped.reset(seed=0)
    assert rule.predict(observation)[0].shape == (2,)
    vector = NormalChargingVectorEnv(3, small_scenario, pool_days=1)
    rule.attach(vector)
    observations, _ = vector.reset(seed=0)
    action, _ = rule.predict(observations)
    assert action.shape == (3, 2)
    assert action.dtype == np.float32


def test_rule_without_an_environment_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"rule 'water_filling' needs an environment: call attach\(env\) before predict"
    ):
        make_rule(STRONG_RULE).predict(np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (
            "waterfilling",
            r"there is no rule 'waterfilling'; did you mean 'water_filling'\? \(rules: charge_on_arrival, ",
        ),
        ("laxity", r"there is no rule 'laxity'; did you mean 'least_laxity'\?"),
        ("zzz", r"there is no rule 'zzz' \(rules: charge_on_arrival, .*water_filling\)"),
    ],
)
def test_unknown_rule_is_refused_with_the_nearest(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make_rule(name)


def test_every_call_makes_a_fresh_rule() -> None:
    assert make_rule(NAIVE_RULE) is not make_rule(NAIVE_RULE)


# ------------------------------------------------------------------------------------------------------------- score


class Fixed:
    """A policy that always gives the same action."""

    def __init__(self, value: float | np.ndarray) -> None:
        self.value = value

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, None]:
        """The action for every row."""
        assert deterministic
        assert episode_start.shape == (len(observation),)
        return np.broadcast_to(self.value, (*observation.shape[:-2], observation.shape[-2])), None


def test_rollout_sums_the_terms_that_the_environment_charges(small_scenario: Scenario, five_days: list[Day]) -> None:
    world = normal.make_world(small_scenario, five_days)
    result = rollout(world, Fixed(0.3), keep_voltage=True)
    np.testing.assert_allclose(result.cost_eur, result.gap_eur + result.energy_eur + result.voltage_eur)
    env = NormalChargingEnv(small_scenario, pool_days=1)
    for row, day in enumerate(five_days):
        env.reset(options={"day": day})
        infos = [env.step(np.full(2, 0.3))[4] for _ in range(N_SLOTS)]
        for name in ("cost_eur", "gap_eur", "energy_eur", "voltage_eur", "violation_pu", "n_violations"):
            assert getattr(result, name)[row] == pytest.approx(sum(info[name] for info in infos), abs=1e-9)
        assert result.infeasible_kwh[row] == pytest.approx(infos[-1]["infeasible_kwh"])
        np.testing.assert_allclose(result.bus_power_kw[row], [info["bus_power_kw"] for info in infos])
    assert result.unmet_kwh.tolist() == [0.0] * 5
    assert result.n_collapsed.tolist() == [0] * 5
    assert result.voltage_pu is not None
    assert result.voltage_pu.shape == (5, N_SLOTS, 33, 3)
    assert rollout(world, Fixed(0.3)).voltage_pu is None


def test_rollout_takes_a_policy_to_the_range_as_stable_baselines3_does(
    small_scenario: Scenario, five_days: list[Day]
) -> None:
    world = normal.make_world(small_scenario, five_days)
    np.testing.assert_array_equal(rollout(world, Fixed(7.0)).cost_eur, rollout(world, Fixed(1.0)).cost_eur)


def test_action_of_full_power_is_the_naive_rule(small_scenario: Scenario, five_days: list[Day]) -> None:
    world = normal.make_world(small_scenario, five_days)
    np.testing.assert_allclose(rollout(world, Fixed(1.0)).cost_eur, rollout(world, make_rule(NAIVE_RULE)).cost_eur)


def test_rollout_refuses_actions_that_are_none(small_scenario: Scenario, five_days: list[Day]) -> None:
    world = normal.make_world(small_scenario, five_days)
    with pytest.raises(DataError, match=r"the policy must give finite actions of shape \(5, 2\), got shape \(5, 2\)"):
        rollout(world, Fixed(np.nan))

    class Wide(Fixed):
        def predict(self, observation: np.ndarray, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
            return np.zeros((5, 3)), None

    with pytest.raises(DataError, match=r"of shape \(5, 2\), got shape \(5, 3\)"):
        rollout(world, Wide(0.0))


def test_recurrent_state_is_handed_on(small_scenario: Scenario, five_days: list[Day]) -> None:
    seen = []

    class Recurrent:
        def predict(
            self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
        ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
            seen.append((state, bool(episode_start.all()), bool(episode_start.any())))
            return np.zeros((5, 2)), (np.array([len(seen)]),)

    rollout(normal.make_world(small_scenario, five_days), Recurrent())
    assert seen[0] == (None, True, True)
    assert [int(state[0][0]) for state, _, _ in seen[1:]] == list(range(1, N_SLOTS))
    assert not any(started for _, _, started in seen[1:])


def test_milliseconds_of_a_decision_are_positive(small_scenario: Scenario, five_days: list[Day]) -> None:
    world = normal.make_world(small_scenario, five_days)
    assert 0.0 < ms_per_decision(world, make_rule(STRONG_RULE)) < 1e3


# ------------------------------------------------------------------------------------------------------ open-loop plan


def test_open_loop_replays_bus_totals(small_scenario: Scenario, five_days: list[Day]) -> None:
    world = normal.make_world(small_scenario, five_days)
    wanted = rollout(world, make_rule("cheapest_slots"))
    again: Rollout = rollout(world, OpenLoop(list(wanted.bus_power_kw)))
    np.testing.assert_allclose(again.cost_eur, wanted.cost_eur, rtol=0.02)  # float32 actions, same disaggregation
    assert again.unmet_kwh.max() == 0.0


def test_open_loop_needs_days() -> None:
    with pytest.raises(ConfigError, match=r"the open-loop plan needs a batch of days: call attach\(source\)"):
        OpenLoop([np.zeros((N_SLOTS, 2))]).predict(np.zeros((1, 2, 3)))


def test_bus_totals_are_sums_over_the_cars_of_a_bus() -> None:
    scenario = tiny_scenario()
    day = hand_day(scenario, Car(5.0, 1.0), Car(5.0, 1.0, car=1), Car(5.0, 1.0, bus=1, car=2))
    assert bus_totals_kw(day.sessions, np.array([[1.0, 2.0, 4.0], [0.0, 1.0, 0.0]]), 2).tolist() == [[3, 4], [1, 0]]


# ---------------------------------------------------------------------------------------------------------- references


def test_references_are_naive_cost_and_bound_and_are_solved_once(
    small_scenario: Scenario, bounds_eur: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVCS_GYM_CACHE", str(tmp_path))
    seen: list[tuple[int, int]] = []
    first: References = references(small_scenario, "test", [0, 2], lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    np.testing.assert_allclose(first.lower_bound_eur, bounds_eur[[0, 2]], rtol=1e-6)
    world = normal.make_world(small_scenario, small_scenario.days([0, 2], "test"))
    np.testing.assert_array_equal(first.naive_cost_eur, rollout(world, make_rule(NAIVE_RULE)).cost_eur)
    (file,) = tmp_path.iterdir()
    assert set(json.loads(file.read_text())) == {"0", "2"}
    monkeypatch.setattr(reference, "lower_bound_eur", lambda *_: pytest.fail("a known bound was solved again"))
    again = references(small_scenario, "test", list(np.array([2, 0])))  # numpy's integers are seeds too
    np.testing.assert_array_equal(again.lower_bound_eur, first.lower_bound_eur[::-1])
    np.testing.assert_array_equal(again.naive_cost_eur, first.naive_cost_eur[::-1])


def test_references_of_other_scenarios_and_splits_are_not_mixed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVCS_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(reference, "lower_bound_eur", lambda scenario, seed, split: 1.0)
    for omega2, split in ((1.0, "test"), (2.0, "test"), (1.0, "validation")):
        references(tiny_scenario(omega2=omega2), split, [0])
    assert len(list(tmp_path.iterdir())) == 3


def test_broken_reference_file_is_replaced_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVCS_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(reference, "lower_bound_eur", lambda *_: 1.5)
    scenario = tiny_scenario()
    references(scenario, "test", [0])
    (file,) = tmp_path.iterdir()
    for broken in ("{", "[1]", '{"a": 1}'):
        file.write_text(broken)
        with pytest.warns(UserWarning, match=r"reference-tiny-test-.*: cannot be read .*; bounds are solved anew"):
            assert references(scenario, "test", [0]).lower_bound_eur.tolist() == [1.5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        references(scenario, "test", [0])


def test_references_without_a_cache_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EVCS_GYM_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(reference, "lower_bound_eur", lambda *_: 1.5)
    with pytest.warns(UserWarning, match=r"cannot be written .*; bounds will be solved again next time"):
        references(tiny_scenario(), "test", [0])
