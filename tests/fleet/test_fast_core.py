"""The core of fast charging: by hand, against a plain twin, and the properties that a day must have."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from fast_fixtures import (
    CAPACITY_KWH,
    OMEGA1_EUR_PER_KWH,
    PRICE_EUR_PER_KWH,
    Request,
    fast_content,
    fast_hand_day,
    fast_scenario,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_fast import plain_day

from evcs_gym.envs import ConfigError, DataError, Day, InfeasibleError, Scenario
from evcs_gym.envs.fleet import fast
from evcs_gym.envs.scenario import scenario_from_dict
from evcs_gym.envs.types import IntArray
from evcs_gym.envs.units import N_SLOTS


@pytest.fixture(scope="module")
def city() -> Scenario:
    """Two stations, three plugs of 20 kW and two of 100 kW."""
    return fast_scenario(voltage_eur_per_pu=0.0)


def played(world: fast.FastWorld, plan: IntArray, day: int = 0) -> tuple[fast.FastState, list[fast.FastOutcome]]:
    """A plan of one day, request by request."""
    state, outcomes = fast.initial_state(world, np.array([day])), []
    for station in plan:
        state, outcome = fast.step(world, state, np.array([station]))
        outcomes.append(outcome)
    return state, outcomes


def allowed_plan(world: fast.FastWorld, seed: int, day: int = 0) -> IntArray:
    """Random allowed stations of a day's requests."""
    rng, state, plan = np.random.default_rng(seed), fast.initial_state(world, np.array([day])), []
    while state.slot[0] < N_SLOTS:
        plan.append(int(rng.choice(np.flatnonzero(fast.action_masks(world, state)[0]))))
        state, _ = fast.step(world, state, np.array(plan[-1:]))
    return np.array(plan, dtype=np.int64)


def test_one_car_by_hand(city: Scenario) -> None:
    # 40 of 50 kWh are missing, 5 km at 0.2 take 1 more: 41 kWh at 20 kW are 4 whole slots and 2 kW in a fifth.
    # Base 10 kW at both: |10| twice in every slot, 20 more in 4 slots, 2 in one; at 0.2 EUR/kWh and 0.5 h.
    day = fast_hand_day(city, Request(slot=3))
    result = fast.replay(city, day, np.array([0]))
    assert result.load_kw[:, 0].tolist() == pytest.approx([0.0] * 3 + [20.0] * 4 + [2.0] + [0.0] * 40)
    assert result.n_busy[:, 0].tolist() == [0] * 3 + [1] * 5 + [0] * 40
    assert result.absorb_eur.sum() == pytest.approx(OMEGA1_EUR_PER_KWH * 0.5 * (48 * 20 + 4 * 20 + 2))
    # (2) 41 kWh at 0.1; n = 1 request, weighed with 2 requests per slot
    assert result.charge_eur[3] == pytest.approx(41 * PRICE_EUR_PER_KWH)
    assert result.energy_eur.tolist() == pytest.approx([0.0] * 3 + [2 * 41 * PRICE_EUR_PER_KWH] + [0.0] * 44)
    assert result.cost_eur == pytest.approx(result.absorb_eur.sum() + result.energy_eur.sum())
    assert result.beyond_kwh.tolist() == [0.0, 0.0]


def test_generation_is_absorbed_and_what_is_not_is_reported(city: Scenario) -> None:
    # 110 kW of sun at a base of 10: 100 kW unabsorbed at each station; one car takes 84 kW at the quick one.
    day = fast_hand_day(city, Request(slot=47), dg_kw=110.0)
    result = fast.replay(city, day, np.array([1]))
    assert result.load_kw[47].tolist() == pytest.approx([0.0, 84.0])  # 42 kWh within the slot
    assert result.unabsorbed_kwh[46:].tolist() == pytest.approx([100.0, 58.0])
    assert result.absorb_eur[47] == pytest.approx(OMEGA1_EUR_PER_KWH * 0.5 * (100 + 16))


def test_energy_after_the_day_is_reported(city: Scenario) -> None:
    result = fast.replay(city, fast_hand_day(city, Request(slot=46)), np.array([0]))
    assert result.load_kw[:, 0].sum() * 0.5 == pytest.approx(20.0)
    assert result.beyond_kwh.tolist() == pytest.approx([21.0, 0.0])


def test_the_mean_counts_stranded_requests(city: Scenario) -> None:
    # Two requests in a slot, one of them out of reach: its cost is 0, the other's is halved.
    day = fast_hand_day(city, Request(slot=5), Request(slot=5, soc0_frac=0.01))
    result = fast.replay(city, day, np.array([0, 2]))
    assert result.n_stranded[5] == 1
    assert result.stranded_eur[5] == 50.0
    assert result.energy_eur[5] == pytest.approx(2 * 41 * PRICE_EUR_PER_KWH / 2)


def test_as_printed_weighs_kilowatts_and_the_mean_cost() -> None:
    printed = fast_scenario(voltage_eur_per_pu=0.0, as_printed=True)
    result = fast.replay(printed, fast_hand_day(printed, Request(slot=3)), np.array([0]))
    assert result.absorb_eur.sum() == pytest.approx(OMEGA1_EUR_PER_KWH * (48 * 20 + 4 * 20 + 2))
    assert result.energy_eur.sum() == pytest.approx(41 * PRICE_EUR_PER_KWH)


def test_reach_is_closed() -> None:
    # (0.2 - 0.1) of 50 kWh are 5 kWh: 25 km at 0.2, not a metre more.
    city = fast_scenario(reserve_soc_frac=0.1)
    for km, reachable in ((25.0, True), (25.001, False), (np.inf, False)):
        day = fast_hand_day(city, Request(slot=0, distance_km=(km, np.inf)))
        world = fast.make_fast_world(city, [day])
        masks = fast.action_masks(world, fast.initial_state(world, np.zeros(1, dtype=np.int64)))
        assert masks.tolist() == [[reachable, False, not reachable]]
        assert fast.within_reach(fast.requests_of(day), 0.1).tolist() == [[reachable, False]]


def test_plugs_are_taken_by_cars_of_the_slot_and_by_unfinished_charges(city: Scenario) -> None:
    # The quick station's two plugs: 42 kWh at 100 kW take one slot, so both are free again in the next.
    day = fast_hand_day(city, *[Request(slot=2)] * 3, *[Request(slot=3)] * 2)
    world = fast.make_fast_world(city, [day])
    state = fast.initial_state(world, np.zeros(1, dtype=np.int64))
    free = []
    for _ in range(5):
        mask = fast.action_masks(world, state)[0]
        free.append(bool(mask[1]))
        state, _ = fast.step(world, state, np.array([1 if mask[1] else 0]))
    assert free == [True, True, False, True, True]
    # The slow one keeps its plugs for five slots.
    day = fast_hand_day(city, *[Request(slot=2, distance_km=(5.0, np.inf))] * 4, Request(slot=6), Request(slot=7))
    with pytest.raises(InfeasibleError, match=r"request 3 \(car 3, slot 2\) .* 'slow': all of its 3 plugs are in use"):
        fast.replay(city, day, np.array([0, 0, 0, 0, 1, 0]))
    with pytest.raises(InfeasibleError, match=r"request 4 \(car 4, slot 6\) .* plugs are in use"):
        fast.replay(city, day, np.array([0, 0, 0, 2, 0, 0]))
    assert fast.replay(city, day, np.array([0, 0, 0, 2, 1, 0])).n_busy[7, 0] == 1


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            [1],
            r"request 0 \(car 0, slot 3\) cannot reach station 'quick': it needs 20 kWh to get there and has 10 above",
        ),
        ([2], r"request 0 \(car 0, slot 3\) must not be stranded: station 'slow' is allowed"),
        ([3], r"must go to a station 0..1 or be stranded, got 3"),
        ([-1], r"must go to a station 0..1 or be stranded, got -1"),
    ],
)
def test_impossible_plans_are_refused(city: Scenario, plan: list[int], message: str) -> None:
    day = fast_hand_day(city, Request(slot=3, distance_km=(5.0, 100.0)))
    with pytest.raises(InfeasibleError, match=message):
        fast.replay(city, day, np.array(plan))
    world = fast.make_fast_world(city, [day])
    with pytest.raises(InfeasibleError, match=message):
        fast.step(world, fast.initial_state(world, np.zeros(1, dtype=np.int64)), np.array(plan))


def test_plans_and_actions_of_another_kind_are_refused(city: Scenario) -> None:
    day = fast_hand_day(city, Request(slot=3))
    for plan in (np.array([0.0]), np.array([0, 1])):
        with pytest.raises(DataError, match=r"the plan must hold whole numbers \(1,\)"):
            fast.replay(city, day, plan)
    world = fast.make_fast_world(city, [day])
    state = fast.initial_state(world, np.zeros(1, dtype=np.int64))
    with pytest.raises(DataError, match=r"actions must be whole numbers of shape \(1,\), got float64"):
        fast.step(world, state, np.array([0.0]))  # type: ignore[arg-type]
    after, _ = fast.step(world, state, np.array([0]))
    with pytest.raises(ConfigError, match="the day of row 0 is over"):
        fast.step(world, after, np.array([0]))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("slot", [48], r"fast.slot\[0\] must be in 0..47, got 48 \(car 0\)"),
        ("slot", [1.0], "fast.slot must hold integers"),
        ("soc0_frac", [1.2], r"fast.soc0_frac\[0\] must be in \[0, 1\], got 1.2"),
        ("soc0_frac", [np.nan], "fast.soc0_frac must be finite"),
        ("capacity_kwh", [0.0], r"capacity_kwh\[0\] must be > 0"),
        ("consumption_kwh_per_km", [-0.1], r"consumption_kwh_per_km\[0\] must be > 0"),
        ("distance_km", [[-1.0, 2.0]], r"distance_km\[0\] must not be negative"),
        ("distance_km", [[np.nan, 2.0]], "distance_km must be finite"),
        ("car", [0, 1], r"fast.car must have shape \(1,\), got \(2,\)"),
    ],
)
def test_impossible_requests_are_refused(city: Scenario, name: str, values: Any, message: str) -> None:
    day = fast_hand_day(city, Request(slot=3))
    broken = dataclasses.replace(fast.requests_of(day), **{name: np.array(values)})
    with pytest.raises(DataError, match=message):
        fast.make_fast_world(city, [dataclasses.replace(day, fast=broken)])


def test_days_without_the_world_are_refused(city: Scenario) -> None:
    day = fast_hand_day(city, Request(slot=3), Request(slot=2))
    with pytest.raises(DataError, match="fast must be sorted by slot, then car"):
        fast.make_fast_world(city, [day])
    with pytest.raises(DataError, match="must be a day of scenario 'tiny' with fast charging"):
        fast.make_fast_world(city, [dataclasses.replace(day, fast=None)])
    with pytest.raises(DataError, match="must be one of a scenario with fast_charging"):
        fast.replay(city, dataclasses.replace(day, fast=None), np.zeros(0, dtype=np.int64))
    good, wrong = fast_hand_day(city, Request(slot=3)), {"import_eur_per_kwh": np.full(N_SLOTS, np.nan)}
    with pytest.raises(DataError, match=r"import_eur_per_kwh must be finite and have shape \(48,\), got shape \(48,\)"):
        fast.make_fast_world(city, [dataclasses.replace(good, **wrong)])
    with pytest.raises(DataError, match=r"source_pu must be finite and have shape \(48,\), got shape \(3,\)"):
        fast.make_fast_world(city, [dataclasses.replace(good, source_pu=np.ones(3))])
    with pytest.raises(ConfigError, match="at least one day is needed"):
        fast.make_fast_world(city, [])


@given(seed=st.integers(0, 2**32), day_seed=st.integers(0, 3))
@settings(deadline=None, max_examples=20)
def test_rewards_of_a_day_are_its_slots(seed: int, day_seed: int) -> None:
    city = fast_scenario()  # with a price of voltage
    day: Day = city.day(day_seed)
    world = fast.make_fast_world(city, [day])
    plan = allowed_plan(world, seed)
    state, outcomes = played(world, plan)
    result = fast.replay(city, day, plan)
    for name in ("absorb_eur", "energy_eur", "stranded_eur", "voltage_eur", "violation_pu", "charge_eur"):
        total = sum(float(getattr(outcome, name)[0]) for outcome in outcomes)
        assert total == pytest.approx(float(getattr(result, name).sum()), abs=1e-9), name
    np.testing.assert_array_equal(state.load_kw[0], result.load_kw)
    np.testing.assert_array_equal(state.n_busy[0], result.n_busy)
    np.testing.assert_array_equal(state.beyond_kwh[0], result.beyond_kwh)
    # slot by slot: what the steps of a slot pay is the slot's cost and that of the empty ones before it
    fast_day, paid = fast.requests_of(day), np.zeros(N_SLOTS)
    np.add.at(paid, fast_day.slot, [float(outcome.cost_eur[0]) for outcome in outcomes])
    busy = np.unique(fast_day.slot)
    due = np.add.reduceat(result.slot_eur, np.r_[0, busy[:-1] + 1])
    assert paid[busy] == pytest.approx(due[: len(busy)], abs=1e-9) or len(busy) == 0
    # energy: what was delivered is what was missing and driven
    delivered = sum(float(outcome.delivered_kwh[0]) for outcome in outcomes)
    assert 0.5 * result.load_kw.sum() + result.beyond_kwh.sum() == pytest.approx(delivered)
    assert (result.n_busy <= city.fast_stations.n_plugs).all()
    assert CAPACITY_KWH > 0


@pytest.mark.parametrize("width", [1, 3, 99])
def test_requests_of_a_slot_may_be_sent_at_once(width: int) -> None:
    city = fast_scenario()
    day = city.day(1)
    world = fast.make_fast_world(city, [day])
    plan = allowed_plan(world, 5)
    state, station, costs = fast.initial_state(world, np.zeros(1, dtype=np.int64)), [], 0.0
    while state.slot[0] < N_SLOTS:
        at = int(state.request[0])
        action = np.full((1, width), -7)  # what stands behind the slot's requests counts for nothing
        action[0, : len(plan) - at] = plan[at : at + width]
        n_left = int(fast.view(world, state).n_waiting[0])
        action[0, n_left:] = -7
        state, outcome = fast.step(world, state, action)
        sent = outcome.station[0]
        assert (sent[n_left:] == -1).all()
        station += sent[sent >= 0].tolist()
        costs += float(outcome.cost_eur[0])
    assert station == plan.tolist()
    assert costs == pytest.approx(fast.replay(city, day, plan).cost_eur, abs=1e-9)


def test_a_refused_request_is_named_among_several(city: Scenario) -> None:
    day = fast_hand_day(city, *[Request(slot=2)] * 3)
    world = fast.make_fast_world(city, [day])
    with pytest.raises(InfeasibleError, match=r"request 2 \(car 2, slot 2\) .* 'quick': all of its 2 plugs are in use"):
        fast.step(world, fast.initial_state(world, np.zeros(1, dtype=np.int64)), np.array([[1, 1, 1]]))


@given(seed=st.integers(0, 2**32), printed=st.booleans())
@settings(deadline=None, max_examples=15)
def test_the_core_agrees_with_its_plain_twin(seed: int, printed: bool) -> None:
    # behind 0.90 pu, where base voltages are limits themselves: every charge counts
    content = fast_content(as_printed=printed, reserve_soc_frac=0.0 if printed else 0.05)
    content["feeder"]["source_pu"] = 0.90
    city = scenario_from_dict(content)
    day = city.day(seed % 3)
    plan = allowed_plan(fast.make_fast_world(city, [day]), seed)
    result, plain = fast.replay(city, day, plan), plain_day(city, day, plan)
    for name in ("absorb_eur", "energy_eur", "stranded_eur", "voltage_eur"):
        np.testing.assert_allclose(getattr(result, name), getattr(plain, name), atol=1e-6, err_msg=name)
    np.testing.assert_allclose(result.load_kw, plain.load_kw, atol=1e-9)
    assert result.beyond_kwh.sum() == pytest.approx(plain.beyond_kwh)
    assert result.voltage_eur.sum() > 0.0


def test_a_collapse_counts_as_zero_volts_in_the_environment_and_in_the_replay() -> None:
    # 48 MW at the end of the feeder: there is no power flow. The other slots go on.
    stations = [
        {"bus": 18, "node": 1, "n_plugs": 2, "plug_kw": 96000},
        {"bus": 30, "node": 7, "n_plugs": 2, "plug_kw": 50},
    ]
    city = fast_scenario(stations=stations)
    big, small = Request(slot=3, capacity_kwh=60000.0), Request(slot=5)
    day = fast_hand_day(city, big, small)
    world = fast.make_fast_world(city, [day])
    _, outcomes = played(world, np.array([0, 1]))
    result = fast.replay(city, day, np.array([0, 1]))
    assert [int(outcome.n_collapsed[0]) for outcome in outcomes] == [1, 0]
    assert result.converged.tolist() == [slot != 3 for slot in range(N_SLOTS)]
    lost_pu = day.vmin_pu[3, 1:].sum()
    assert outcomes[0].violation_pu[0] == pytest.approx(lost_pu)
    assert result.voltage_eur[3] == pytest.approx(100.0 * lost_pu)
