"""Rules of fast charging by hand, and how any policy of it is scored."""

from typing import Any

import numpy as np
import pytest
from fast_fixtures import Request, fast_hand_day, fast_scenario

from evcs_gym.baselines.policy_fast import FastPolicy, FastStage, MaskedPredictor
from evcs_gym.baselines.registry import NAIVE_RULES, make_rule, rules_of
from evcs_gym.baselines.score import ms_per_decision, rollout, world_of
from evcs_gym.envs import ConfigError, DataError, Day, Scenario
from evcs_gym.envs.fleet import fast
from evcs_gym.envs.types import IntArray

RULES = tuple(rules_of("fast_charging"))


@pytest.fixture(scope="module")
def city() -> Scenario:
    """Three plugs of 20 kW, two of 100 kW."""
    return fast_scenario(voltage_eur_per_pu=0.0)


def sent(city: Scenario, name: str, *days: Day) -> list[list[int]]:
    """Stations to which a rule sends the requests of each day."""
    done = rollout(world_of(city, days, "fast_charging"), make_rule(name, "fast_charging"))
    return [row[:n].tolist() for row, n in zip(done.station, done.n_requests, strict=True)]


def test_nearest_takes_the_next_nearest_when_plugs_run_out(city: Scenario) -> None:
    day = fast_hand_day(city, *[Request(slot=1)] * 4, Request(slot=1, distance_km=(10.0, 5.0)), Request(slot=1))
    assert sent(city, "nearest", day) == [[0, 0, 0, 1, 1, 2]]


def test_least_loaded_takes_the_largest_share_of_free_plugs(city: Scenario) -> None:
    # 3/3 and 2/2 free: the nearest; 2/3 and 2/2; 2/3 and 1/2; 1/3 and 1/2; 1/3 and 0/2
    day = fast_hand_day(city, *[Request(slot=1)] * 5)
    assert sent(city, "least_loaded", day) == [[0, 1, 0, 1, 0]]


def test_cheapest_follows_the_surplus_through_the_whole_charge(city: Scenario) -> None:
    # 30 kW of surplus at the slow station all day, 80 kW at the quick one in slot 5 alone. Slow: 41 kWh inside the
    # surplus, -8.2, and 1 kWh to drive at 2 * 0.1. Quick: 84 kW, 4 of them beyond the surplus, -7.6, and 2 kWh.
    dg = np.full((48, 2), 10.0)
    dg[:, 0], dg[5, 1] = 40.0, 90.0
    assert sent(city, "cheapest", fast_hand_day(city, Request(slot=5), dg_kw=dg)) == [[0]]
    dg[6:, 0] = 10.0  # the sun sets: what the slow station draws later is imported
    assert sent(city, "cheapest", fast_hand_day(city, Request(slot=5), dg_kw=dg)) == [[1]]


def test_random_feasible_draws_from_day_and_request_alone(city: Scenario) -> None:
    days = [city.day(seed) for seed in range(3)]
    together, alone = sent(city, "random_feasible", *days), sent(city, "random_feasible", days[0])
    assert together[0] == alone[0]
    counts = np.bincount(np.concatenate([np.array(row) for row in together]), minlength=3)
    assert counts[:2].min() > 0.25 * counts[:2].sum()


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_scored_as_its_plan_is_replayed(name: str) -> None:
    city = fast_scenario()
    days = [*city.days(range(3), "test"), fast_hand_day(city)]
    world = world_of(city, days, "fast_charging")
    done = rollout(world, make_rule(name, "fast_charging"))
    for row, day in enumerate(days):
        result = fast.replay(city, day, done.station[row, : done.n_requests[row]])
        assert done.cost_eur[row] == pytest.approx(result.cost_eur, abs=1e-9)
        for term in ("absorb_eur", "energy_eur", "stranded_eur", "voltage_eur", "charge_eur", "unabsorbed_kwh"):
            assert getattr(done, term)[row] == pytest.approx(getattr(result, term).sum(), abs=1e-9), term
        assert done.n_stranded[row] == result.n_stranded.sum()
        assert done.n_violations[row] == result.n_violations.sum()
        assert done.beyond_kwh[row] == pytest.approx(result.beyond_kwh.sum())
        np.testing.assert_array_equal(done.load_kw[row], result.load_kw)
        energy = 0.5 * result.load_kw.sum() + result.beyond_kwh.sum()
        assert done.delivered_kwh[row] == pytest.approx(energy)
    assert 0.0 < ms_per_decision(world, make_rule(name, "fast_charging")) < 1e3


class _Sends:
    """A policy that gives the same actions whatever comes."""

    def __init__(self, action: Any) -> None:
        self.action = action

    def send(self, stage: FastStage) -> IntArray:
        return np.asarray(self.action)

    def predict(self, observation: np.ndarray, *, deterministic: bool, action_masks: np.ndarray) -> tuple[Any, Any]:
        assert deterministic
        assert observation.shape[0] == action_masks.shape[0]
        return action_masks.argmax(axis=1), None


def test_policies_are_checked_and_maskable_ones_see_masks(city: Scenario, small_scenario: Scenario) -> None:
    world = world_of(city, [fast_hand_day(city, *[Request(slot=1)] * 4)], "fast_charging")
    learned: FastPolicy = MaskedPredictor(_Sends(None))
    assert rollout(world, learned).station.tolist() == [[0, 0, 0, 1]]
    stranger: Any = make_rule("charge_on_arrival")
    for play in (rollout, ms_per_decision):
        with pytest.raises(ConfigError, match=r"a policy of fast charging must have send\(stage\), got Rule"):
            play(world, stranger)  # type: ignore[operator]
        with pytest.raises(DataError, match=r"actions must be whole numbers of shape \(1,\), got float64"):
            play(world, _Sends([0.5]))  # type: ignore[operator]
    home = world_of(small_scenario, [small_scenario.day(0)], "normal_charging")
    other: Any = make_rule("nearest", "fast_charging")
    with pytest.raises(ConfigError, match=r"must have predict\(observation\), got FastRulePolicy"):
        rollout(home, other)


def test_names(city: Scenario) -> None:
    assert set(RULES) == {"nearest", "cheapest", "least_loaded", "random_feasible"}
    assert NAIVE_RULES["fast_charging"] == "nearest"
    with pytest.raises(ConfigError, match=r"there is no rule 'neares'; did you mean 'nearest'\? \(rules: nearest, "):
        make_rule("neares", "fast_charging")
