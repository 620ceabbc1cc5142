"""The pure core of normal charging: sums by hand on two buses, properties on real days, twins of the kernels."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from envs_fixtures import OMEGA1_EUR_PER_KWH, Car, begin, hand_day, play, tiny_content, tiny_scenario
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    bounds_reference,
    dispatch_reference,
    observation_reference,
    plan_cost_reference,
    scale_of,
    sweep_reference,
)

from evcs_gym.envs import ConfigError, DataError, Day, InfeasibleError, Scenario
from evcs_gym.envs.fleet import normal
from evcs_gym.envs.fleet.observation import OBSERVATION, feature_slices
from evcs_gym.envs.grid import power_flow
from evcs_gym.envs.scenario import scenario_from_dict
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS

THREE_CARS = (Car(5.0, 10.0, 0, 1, car=0), Car(5.0, 10.0, 0, 20, car=1), Car(5.0, 10.0, 0, 20, car=2))
"""The first must charge at once; all three can take 10 kW."""


def dispatched(scenario: Scenario, day: Day, *action: float, slot: int = 0) -> list[float]:
    """Car powers of one slot for the actions of the two buses."""
    world, state = begin(scenario, day, slot=slot)
    return list(normal.dispatch(world, state, np.array([action]))[0])


def stepped(scenario: Scenario, day: Day, *power_kw: float) -> normal.Outcome:
    """What slot 0 costs at these car powers."""
    world, state = begin(scenario, day)
    return normal.step(world, state, np.array([power_kw]))[1]


def scenario_in(variant: str) -> Scenario:
    """The tiny city with 18 cars, in one of the variants that the kernels know."""
    content = tiny_content(n_cars=(12, 6))
    if variant in ("persistence", "noisy"):
        content["forecast"] = {"kind": variant}
    elif variant == "modulated":
        content["normal_charging"]["mode"] = variant
    elif variant in ("price_laxity", "noisy_price_laxity"):
        content["normal_charging"]["disaggregation"] = "price_laxity"
        content["forecast"] = {"kind": "noisy" if variant.startswith("noisy") else "perfect"}
    elif variant == "as_printed":
        content["normal_charging"]["as_printed"] = True
    return scenario_from_dict(content)


VARIANTS = ("on_off", "modulated", "price_laxity", "noisy_price_laxity", "noisy", "persistence", "as_printed")


def random_actions(seed: int, n_rows: int) -> FloatArray:
    """Actions (T, B, C): uniform, with the three special values among them."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1.0, 1.0, (N_SLOTS, n_rows, 2))
    return np.where(rng.random(actions.shape) < 0.3, rng.choice([-1.0, 0.0, 1.0], actions.shape), actions)


# ----------------------------------------------------------------------------------------------------------- the knee


@pytest.mark.parametrize(
    ("dg_kw", "action", "bus_kw"),
    [
        (25.0, -1.0, 10.0),  # least: the car that leaves
        (25.0, -0.5, 12.5),
        (25.0, 0.0, 15.0),  # the surplus 25 - 10
        (25.0, 0.5, 22.5),
        (25.0, 1.0, 30.0),  # all cars
        (60.0, 0.0, 30.0),  # more surplus than the cars can take
        (60.0, -0.5, 20.0),
        (0.0, 0.0, 10.0),  # no surplus: the knee is the least power
        (0.0, -0.7, 10.0),
        (0.0, 0.25, 15.0),
    ],
)
def test_knee(dg_kw: float, action: float, bus_kw: float) -> None:
    scenario = tiny_scenario(mode="modulated")
    assert sum(dispatched(scenario, hand_day(scenario, *THREE_CARS, dg_kw=dg_kw), action, 0.0)) == pytest.approx(bus_kw)


@settings(deadline=None, max_examples=50)
@given(
    bounds=st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 100.0)),
    surplus=st.floats(-200.0, 200.0),
    share=st.floats(0.0, 1.0),
)
def test_knee_action_gives_the_power_it_was_made_for(bounds: tuple[float, float], surplus: float, share: float) -> None:
    least, largest = min(bounds), max(bounds)
    wanted = least + share * (largest - least)
    knee = float(np.clip(surplus, least, largest))
    action = float(normal.knee_action(np.array(wanted), np.array(surplus), np.array(least), np.array(largest)))
    assert -1.0 <= action <= 1.0
    got = knee + action * (knee - least if action < 0.0 else largest - knee)
    assert got == pytest.approx(wanted, abs=2e-6)  # below 1e-6 kW a side of the knee counts as empty


def test_knee_action_takes_what_cannot_be_given_to_the_bounds() -> None:
    powers, bounds = np.array([-5.0, 500.0]), (np.array([10.0, 10.0]), np.array([30.0, 30.0]))
    assert normal.knee_action(powers, np.array([15.0, 15.0]), *bounds).tolist() == [-1.0, 1.0]


# ------------------------------------------------------------------------------------------------------ disaggregation


@pytest.mark.parametrize(
    ("surplus_kw", "expected"),
    [
        (4.9, [0, 0, 0]),  # not even half of the first car
        (5.001, [0, 0, 10]),  # car 1 (last in the list) and car 5 have laxity 9, car 9 has 19: car 1 is first
        (14.9, [0, 0, 10]),
        (15.001, [10, 0, 10]),  # sum plus half: 10 + 5 is at the target
        (25.001, [10, 10, 10]),
    ],
)
def test_least_laxity_first_ties_by_car_while_the_sum_plus_half_fits(surplus_kw: float, expected: list[float]) -> None:
    scenario = tiny_scenario()
    cars = (Car(5.0, 10.0, 0, 10, car=5), Car(5.0, 10.0, 0, 20, car=9), Car(5.0, 10.0, 0, 10, car=1))
    day = hand_day(scenario, *cars, dg_kw=10.0 + surplus_kw)
    assert dispatched(scenario, day, 0.0, 0.0) == pytest.approx(expected)


def test_must_run_comes_before_all_others_and_counts_in_the_sum() -> None:
    # car 0 has to charge (10 kW); with a target of 14 kW nothing else fits: 10 + 5 > 14
    scenario = tiny_scenario()
    assert dispatched(scenario, hand_day(scenario, *THREE_CARS, dg_kw=24.0), 0.0, 0.0) == pytest.approx([10, 0, 0])
    assert dispatched(scenario, hand_day(scenario, *THREE_CARS, dg_kw=25.001), 0.0, 0.0) == pytest.approx([10, 10, 0])


def test_car_that_does_not_fit_is_passed_over_and_a_smaller_one_behind_it_charges() -> None:
    scenario = tiny_scenario()
    day = hand_day(scenario, Car(11.0, 22.0, 0, 3, car=0), Car(5.0, 10.0, 0, 20, car=1), dg_kw=20.0)
    assert dispatched(scenario, day, 0.0, 0.0) == pytest.approx([0, 10])  # 0 + 11 > 10, then 0 + 5 <= 10


def test_modulated_car_takes_the_remainder() -> None:
    scenario = tiny_scenario(mode="modulated")
    cars = [dataclasses.replace(car, departure_slot=10 + car.car) for car in THREE_CARS]
    assert dispatched(scenario, hand_day(scenario, *cars, dg_kw=25.0), 0.0, 0.0) == pytest.approx([10, 5, 0])


def test_modulated_car_must_take_what_later_slots_cannot_give() -> None:
    # 8 kWh in two slots of 5 kWh: 3 kWh now, 6 kW
    scenario = tiny_scenario(mode="modulated")
    day = hand_day(scenario, Car(8.0, 10.0, 0, 2))
    assert dispatched(scenario, day, -1.0, 0.0) == pytest.approx([6.0])
    assert dispatched(scenario, day, 1.0, 0.0) == pytest.approx([10.0])


@pytest.mark.parametrize(("order", "expected"), [("laxity", [10, 0]), ("price_laxity", [0, 10])])
def test_price_laxity_sorts_by_cheaper_slots_ahead_less_slots_needed(order: str, expected: list[float]) -> None:
    # car 0: leaves in slot 2, needs 1, cheaper ahead 1: 1 - 1 = 0. car 1: leaves in 12, needs 6, cheaper ahead 5: -1
    scenario = tiny_scenario(disaggregation=order)
    price = np.full(N_SLOTS, 0.30)
    price[0], price[1:6] = 0.20, 0.10
    cars = (Car(5.0, 10.0, 0, 2, car=0), Car(30.0, 10.0, 0, 12, car=1))
    assert dispatched(scenario, hand_day(scenario, *cars, price_eur_per_kwh=price), 0.4, 0.0) == pytest.approx(expected)


def test_cars_that_are_full_or_not_there_get_nothing() -> None:
    scenario = tiny_scenario()
    cars = (Car(5.0, 10.0, 3, 20, car=0), Car(0.0, 10.0, 0, 20, car=1), Car(5.0, 10.0, 0, 20, bus=1, car=2))
    day = hand_day(scenario, *cars)
    assert dispatched(scenario, day, 1.0, -1.0) == [0, 0, 0]
    assert dispatched(scenario, day, 1.0, 1.0, slot=3) == pytest.approx([10, 0, 10])


# ------------------------------------------------------------------------------------------------------ terms of (5)


@pytest.mark.parametrize(
    ("weights", "energy_eur"), [({}, 0.50), ({"omega2": 3.0}, 1.50), ({"as_printed": True}, 0.50 * OMEGA1_EUR_PER_KWH)]
)
def test_terms_of_a_slot(weights: dict[str, Any], energy_eur: float) -> None:
    # bus 0: |10 + 10 - 4| kW * 0.5 h * 0.02 EUR = 0.16, energy 10 kW * 0.5 h * 0.10 = 0.50; bus 1: |10 - 14| -> 0.04
    scenario = tiny_scenario(**weights)
    day = hand_day(scenario, Car(5.0, 10.0), dg_kw=[[4.0, 14.0]])
    outcome = stepped(scenario, day, 10.0)
    assert outcome.gap_eur[0].tolist() == pytest.approx([0.16, 0.04])
    assert outcome.energy_eur[0].tolist() == pytest.approx([energy_eur, 0.0])
    assert outcome.voltage_eur[0].tolist() == [0.0, 0.0]
    assert outcome.cost_eur[0].tolist() == pytest.approx([0.16 + energy_eur, 0.04])
    assert outcome.bus_power_kw[0].tolist() == pytest.approx([10.0, 0.0])


def limits_off_by(day: Day, excess_pu: float, bus: int = 5, phase: int = 1) -> Day:
    """The day with one bus-phase below its limit by ``excess_pu`` in slot 0, where nobody charges."""
    vmin = np.array(day.vmin_pu)
    vmin[0, bus, phase] = day.base_voltage_pu[0, bus, phase] + excess_pu
    return dataclasses.replace(day, vmin_pu=vmin)


def test_voltage_outside_the_limits_costs_its_price_shared_equally_if_nobody_charges() -> None:
    # 0.001 pu * 100 EUR/pu = 0.10 EUR, half for each bus
    scenario = tiny_scenario()
    outcome = stepped(scenario, limits_off_by(hand_day(scenario, Car(5.0, 10.0)), 0.001), 0.0)
    assert outcome.violation_pu[0] == pytest.approx(0.001, abs=1e-7)
    assert outcome.n_violations.tolist() == [1]
    assert outcome.voltage_eur[0].tolist() == pytest.approx([0.05, 0.05], abs=1e-5)


def test_voltage_is_shared_by_charging_power_if_none_is_above_must_run() -> None:
    scenario = tiny_scenario()
    cars = (Car(5.0, 10.0, 0, 1), Car(15.0, 30.0, 0, 1, bus=1))
    outcome = stepped(scenario, limits_off_by(hand_day(scenario, *cars), 0.001), 10.0, 30.0)
    assert outcome.must_run_kw[0].tolist() == pytest.approx([10.0, 30.0])
    assert outcome.voltage_eur[0].tolist() == pytest.approx(100.0 * outcome.violation_pu[0] * np.array([0.25, 0.75]))
    assert outcome.violation_pu[0] > 0.001  # charging adds to it


def test_voltage_is_shared_by_what_is_charged_above_must_run() -> None:
    # bus 0: 20 kW, 10 of them must-run; bus 1: 30 kW, all must-run: bus 0 pays alone
    scenario = tiny_scenario()
    cars = (Car(5.0, 10.0, 0, 1), Car(5.0, 10.0, 0, 20, car=1), Car(15.0, 30.0, 0, 1, bus=1))
    outcome = stepped(scenario, limits_off_by(hand_day(scenario, *cars), 0.001), 10.0, 10.0, 30.0)
    assert outcome.voltage_eur[0].tolist() == pytest.approx([100.0 * outcome.violation_pu[0], 0.0])


def test_voltage_above_the_upper_limit_costs_too_and_the_source_is_not_judged() -> None:
    scenario = tiny_scenario()
    day = hand_day(scenario, Car(5.0, 10.0))
    vmin, vmax = np.array(day.vmin_pu), np.array(day.vmax_pu)
    vmin[0, 0] = 1.5
    vmax[0, 7, 2] = day.base_voltage_pu[0, 7, 2] - 0.002
    outcome = stepped(scenario, dataclasses.replace(day, vmin_pu=vmin, vmax_pu=vmax), 0.0)
    assert outcome.n_violations.tolist() == [1]
    assert outcome.violation_pu[0] == pytest.approx(0.002, abs=1e-7)


def test_collapse_counts_as_zero_volts_and_the_next_slot_starts_flat() -> None:
    scenario = tiny_scenario()
    day = hand_day(scenario, Car(50.0, 10.0))
    huge = dataclasses.replace(day.sessions, capacity_kwh=np.array([1e7]), power_kw=np.array([1e6]))
    day = dataclasses.replace(day, sessions=huge)
    world, state = begin(scenario, day)
    after, outcome = normal.step(world, state, world.days.power_kw[:1].copy())
    assert outcome.converged.tolist() == [False]
    assert outcome.n_violations.tolist() == [32 * 3]
    assert outcome.violation_pu[0] == pytest.approx(day.vmin_pu[0, 1:].sum())
    np.testing.assert_allclose(np.abs(after.voltage_pu), 1.0)
    assert np.isfinite(normal.observe(world, after)).all()


# ----------------------------------------------------------------------------------------------------- properties


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10_000), variant=st.sampled_from(VARIANTS))
def test_every_car_is_filled_whatever_the_actions(seed: int, variant: str) -> None:
    world, state = begin(scenario_in(variant), scenario_in(variant).day(seed % 40))
    after, outcomes = play(world, state, random_actions(seed, 1))
    assert after.remaining_kwh.max() == 0.0
    delivered = sum(outcome.power_kw * 0.5 for outcome in outcomes)
    np.testing.assert_allclose(delivered, world.need_kwh, atol=1e-8)


@pytest.mark.parametrize("variant", ["on_off", "modulated", "as_printed"])
def test_reward_shift_is_the_same_sum_for_every_policy(variant: str) -> None:
    scenario = scenario_in(variant)
    world, first = begin(scenario, *scenario.days(range(4)))
    shifts = []
    for actions in (random_actions(1, 4), np.ones((N_SLOTS, 4, 2)), -np.ones((N_SLOTS, 4, 2))):
        state, total = first, np.zeros((4, 2))
        for action in actions:
            after, outcome = normal.step(world, state, normal.dispatch(world, state, action))
            np.testing.assert_array_equal(normal.reward_eur(world, state, outcome, False), -outcome.cost_eur)
            total += normal.reward_eur(world, state, outcome, True) + outcome.cost_eur
            state = after
        shifts.append(total)
    np.testing.assert_allclose(shifts[1], shifts[0], atol=1e-9)
    np.testing.assert_allclose(shifts[2], shifts[0], atol=1e-9)
    assert shifts[0].min() > 0.0


def test_reward_shift_of_a_slot_by_hand() -> None:
    # bus 0: |10 - 4| * 0.5 * 0.02 = 0.06 for standing idle, mean price 0.10 * 10 kW * 0.5 h = 0.50, less the cost 0.66
    scenario = tiny_scenario()
    world, state = begin(scenario, hand_day(scenario, Car(5.0, 10.0), dg_kw=4.0))
    _, outcome = normal.step(world, state, np.array([[10.0]]))
    assert normal.reward_eur(world, state, outcome, True)[0].tolist() == pytest.approx([0.06 + 0.50 - 0.66, 0.0])


def test_step_is_pure(small_scenario: Scenario) -> None:
    world, state = begin(small_scenario, *small_scenario.days([0, 1]), slot=12)
    before = {name: values.copy() for name, values in vars(state).items()}
    action = np.array([[0.5, -0.2], [1.0, 0.0]])
    results = []
    for _ in range(2):
        power = normal.dispatch(world, state, action)
        asked = power.copy()
        after, outcome = normal.step(world, state, power)
        np.testing.assert_array_equal(power, asked)
        results.append({**vars(after), **vars(outcome), "seen": normal.observe(world, after)})
    for name, values in before.items():
        np.testing.assert_array_equal(values, getattr(state, name), err_msg=name)
    assert action.tolist() == [[0.5, -0.2], [1.0, 0.0]]
    for name, values in results[0].items():
        np.testing.assert_array_equal(values, results[1][name], err_msg=name)


def test_result_of_a_row_does_not_depend_on_its_neighbours(small_scenario: Scenario) -> None:
    days, actions = small_scenario.days(range(5)), random_actions(3, 5)
    order = np.array([3, 0, 4, 1, 2])
    world, state = begin(small_scenario, *days)
    shuffled = dataclasses.replace(state, day=order, remaining_kwh=state.remaining_kwh[order])
    after, outcomes = play(world, state, actions[:24])
    after_shuffled, shuffled_outcomes = play(world, shuffled, actions[:24, order])
    for one, other in ((after, after_shuffled), *zip(outcomes, shuffled_outcomes, strict=True)):
        for name, values in vars(one).items():
            np.testing.assert_array_equal(values[order], getattr(other, name), err_msg=name)
    seen = normal.observe(world, after)
    np.testing.assert_array_equal(seen[order], normal.observe(world, after_shuffled))
    alone_world, alone = begin(small_scenario, days[2])
    alone, _ = play(alone_world, alone, actions[:24, 2:3])
    np.testing.assert_array_equal(normal.observe(alone_world, alone)[0], seen[2])


def test_threads_change_nothing(small_scenario: Scenario) -> None:
    n = normal.PARALLEL_FROM_ROWS + 3
    world, _ = begin(small_scenario, *small_scenario.days(range(3)))
    state = normal.initial_state(world, np.arange(n) % 3)
    after, _ = play(world, state, np.tile(random_actions(4, 1)[:20], (1, n, 1)))
    seen = normal.observe(world, after)
    for row in range(3, n):
        np.testing.assert_array_equal(seen[row], seen[row % 3])


def test_power_balance_feeder_load_is_base_less_dg_plus_cars(small_scenario: Scenario) -> None:
    day = small_scenario.day(2, "test")
    world, state = begin(small_scenario, day)
    _, outcomes = play(world, state, random_actions(5, 1))
    power = np.concatenate([outcome.power_kw for outcome in outcomes])[:, : len(day.sessions)]
    load = day.load_kva.copy()
    for i, (bus, phase) in enumerate(zip(day.sessions.bus, day.sessions.phase, strict=True)):
        share = np.full(3, 1 / 3) if phase < 0 else np.eye(3)[phase]
        load[:, day.charging_bus[bus]] += power[:, i, None] * share
    assert power.sum() > 0.0
    assert {-1} < set(day.sessions.phase.tolist())  # single-phase and balanced cars
    expected = power_flow(small_scenario.feeder, load, source_pu=1.0).voltage_pu
    got = np.concatenate([outcome.voltage_pu for outcome in outcomes])
    np.testing.assert_allclose(got, expected, atol=5e-8)
    slot = int(power.sum(axis=1).argmax())
    twin, _ = sweep_reference(small_scenario.feeder, load[slot])
    np.testing.assert_allclose(got[slot], twin, atol=5e-8)


# ----------------------------------------------------------------------------------------------- what a policy may know


def assert_same_view(one: normal.View, other: normal.View) -> None:
    """All fields equal."""
    for field in dataclasses.fields(normal.View):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


def test_later_arrivals_do_not_show_before_they_come() -> None:
    scenario = tiny_scenario()
    early = (Car(20.0, 10.0, 0, 40, car=3), Car(5.0, 7.0, 2, 30, bus=1, car=4))
    late = (Car(9.0, 11.0, 20, 44, car=0), Car(30.0, 7.0, 20, 48, bus=1, car=9), Car(3.0, 5.0, 25, 47, bus=1, car=11))
    plain = begin(scenario, hand_day(scenario, *early))
    crowded = begin(scenario, hand_day(scenario, early[0], late[0], early[1], *late[1:]))
    for slot in range(20):
        np.testing.assert_array_equal(normal.observe(*plain), normal.observe(*crowded), err_msg=str(slot))
        assert_same_view(normal.view(*plain), normal.view(*crowded))
        action = np.array([[0.1, -0.3]])
        plain = plain[0], play(*plain, action[None])[0]
        crowded = crowded[0], play(*crowded, action[None])[0]
    assert not np.array_equal(normal.observe(*plain), normal.observe(*crowded))
    assert normal.view(*crowded).remaining_kwh.sum() > normal.view(*plain).remaining_kwh.sum()


@pytest.mark.parametrize("variant", ["persistence", "noisy"])
def test_series_ahead_are_forecasts_and_nothing_more(variant: str) -> None:
    scenario, slot = scenario_in(variant), 15
    day = scenario.day(0)
    growth = day.forecast.growth_frac[1]  # what slot 15 knows of slot 16
    price, error = day.import_eur_per_kwh.copy(), day.forecast.import_eur_per_kwh.copy()
    price[slot + 1] += 0.25
    error[slot + 1] -= 0.25 / growth
    other = dataclasses.replace(
        day, import_eur_per_kwh=price, forecast=dataclasses.replace(day.forecast, import_eur_per_kwh=error)
    )
    one, changed = begin(scenario, day, slot=slot), begin(scenario, other, slot=slot)
    np.testing.assert_allclose(normal.view(*one).import_eur_per_kwh, normal.view(*changed).import_eur_per_kwh)
    np.testing.assert_allclose(normal.observe(*one), normal.observe(*changed), atol=1e-4)


def test_view_holds_the_cars_present_and_the_truth_so_far() -> None:
    scenario = scenario_in("noisy")
    day = hand_day(scenario, Car(20.0, 10.0, 0, 40), Car(6.0, 8.0, 12, 30, car=1), Car(6.0, 4.0, 3, 9, bus=1, car=2))
    view = normal.view(*begin(scenario, day, slot=12))
    assert view.bus_start.tolist() == [[0, 2, 2]]
    assert view.departure_slot.tolist() == [[40, 30]]
    assert view.remaining_kwh[0].tolist() == pytest.approx([20.0, 6.0])
    np.testing.assert_array_equal(view.import_eur_per_kwh[0, :13], day.import_eur_per_kwh[:13])
    lead = np.arange(1, N_SLOTS - 12)
    ahead = day.dg_kw[13:] + day.forecast.growth_frac[lead, None] * day.forecast.dg_kw[13:]
    np.testing.assert_allclose(view.dg_kw[0, 13:], ahead)
    assert view.surplus_kw[0].tolist() == pytest.approx([-10.0, -10.0])
    assert view.largest_kw[0, 0] == pytest.approx(10.0 + 6.0)  # 6 kWh at up to 8 kW: two slots at 6 kW


# ----------------------------------------------------------------------------------------------- twins of the kernels


@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_equal_their_plain_twins_on_real_days(variant: str) -> None:
    scenario = scenario_in(variant)
    world, state = begin(scenario, *scenario.days([0, 1, 2]), scenario.day(0, "test"))
    slices = feature_slices()
    for slot, action in enumerate(random_actions(len(variant), 4)):
        if slot % 3 == 0 or slot > 44:
            for got, expected in zip(normal.bus_bounds(world, state), bounds_reference(world, state), strict=True):
                np.testing.assert_allclose(got, expected, atol=1e-9)
            np.testing.assert_allclose(
                normal.dispatch(world, state, action), dispatch_reference(world, state, action), atol=1e-9
            )
            seen = normal.observe(world, state)
            for row, bus in ((0, 0), (1, 1), (3, 0)):
                for name, expected_values in observation_reference(world, state, row, bus).items():
                    np.testing.assert_allclose(
                        seen[row, bus, slices[name]],
                        np.clip(expected_values, -10.0, 10.0),
                        rtol=2e-6,
                        atol=2e-6,
                        err_msg=f"slot {slot}, row {row}, bus {bus}: {name}",
                    )
        state, _ = normal.step(world, state, normal.dispatch(world, state, action))


def test_observation_of_a_day_that_is_over_shows_the_time_alone(small_scenario: Scenario) -> None:
    seen = normal.observe(*begin(small_scenario, small_scenario.day(0), slot=N_SLOTS))[0]
    np.testing.assert_allclose(seen[:, :3], [[1.0, 0.0, 1.0]] * 2, atol=1e-6)
    assert not seen[:, 3:].any()


def test_observation_by_hand() -> None:
    # one car of 10 kW needs 15 kWh in 24 h; installed 1 kW (no car lives there); price 0.10, from slot 24 on 0.09
    scenario = tiny_scenario()
    price = np.where(np.arange(N_SLOTS) < 24, 0.10, 0.09)
    day = hand_day(scenario, Car(15.0, 10.0), base_kw=10.0, dg_kw=12.0, price_eur_per_kwh=price)
    seen_all = normal.observe(*begin(scenario, day))[0, 0]
    seen = {name: seen_all[place].tolist() for name, place in feature_slices().items()}
    unit = {feature.name: scale_of(feature.unit) for feature in OBSERVATION}
    assert list(seen) == list(unit)
    assert seen["power_least"] == [0.0]
    assert seen["power_largest"] == [10.0]
    assert seen["cars"] == pytest.approx([1 / unit["cars"]])
    assert seen["laxity_mean"] == pytest.approx([(48 - 3) / unit["laxity_mean"]])
    assert seen["power_required_mean"] == pytest.approx([15.0 / 24.0])
    assert seen["energy_urgent"] == [0.0]
    # surplus 2 kW: from slot 24 on 24 blocks of 1 kWh at 0.09 - 0.02; the 15 kWh fit into them: the level is 0.07
    assert seen["valley_to_low"] == pytest.approx([max((0.07 - 0.08) / unit["valley_to_low"], -10.0)])
    assert seen["valley_to_high"] == pytest.approx([max((0.07 - 0.12) / unit["valley_to_high"], -10.0)])
    assert seen["valley_power"] == [0.0]
    # cheaper than 0.08: those 24 kWh; than 0.12: 24 kWh of surplus more and 24 * 4 kWh at 0.11, cut at 5 times the need
    assert seen["cheaper_than_low"] == pytest.approx([24 / 15])
    assert seen["cheaper_than_high"] == [5.0]
    assert seen["surplus_ahead"] == [3.0]  # 48 * 1 kWh of 15, cut
    assert seen["knee_fraction"] == pytest.approx([0.2])
    assert seen["net_load"] == [-2.0]
    assert seen["price_deviation"] == pytest.approx([0.005 / unit["price_deviation"]])
    assert seen["price_ahead"] == pytest.approx([0.0] * 12 + [-0.01 / unit["price_ahead"]] * 8)


# ------------------------------------------------------------------------------------------------- plans and replay


def test_replay_of_a_plan_costs_what_the_formula_says(small_scenario: Scenario) -> None:
    day = small_scenario.day(1)
    world, state = begin(small_scenario, day)
    _, outcomes = play(world, state, random_actions(8, 1))
    plan = np.concatenate([outcome.power_kw for outcome in outcomes])[:, : len(day.sessions)]
    replay = normal.replay(small_scenario, day, plan)
    gap_eur, energy_eur = plan_cost_reference(world, plan)
    assert replay.gap_eur == pytest.approx(gap_eur, rel=1e-12)
    assert replay.energy_eur == pytest.approx(energy_eur, rel=1e-12)
    assert replay.cost_eur == pytest.approx(sum(outcome.cost_eur.sum() for outcome in outcomes), rel=1e-12)
    assert replay.voltage_pu.shape == (N_SLOTS, 33, 3)
    assert replay.missing_kwh == 0.0
    np.testing.assert_allclose(replay.bus_power_kw.sum(axis=1), plan.sum(axis=1))


@pytest.mark.parametrize(
    ("slot", "power_kw", "complaint"),
    [
        (
            1,
            10.0,
            r"session 0 \(car 7\) cannot charge at 10 kW in slot 1: it stays in slots 3\.\.5, charges at exactly",
        ),
        (3, 4.0, r"cannot charge at 4 kW in slot 3.*still needs 10 kWh"),
        (3, 11.0, r"cannot charge at 11 kW in slot 3"),
        (3, -1.0, r"cannot charge at -1 kW in slot 3"),
        (6, 10.0, r"cannot charge at 10 kW in slot 6"),
    ],
)
def test_plan_that_a_car_cannot_follow_is_refused(slot: int, power_kw: float, complaint: str) -> None:
    scenario = tiny_scenario()
    plan = np.zeros((N_SLOTS, 1))
    plan[slot] = power_kw
    with pytest.raises(InfeasibleError, match=complaint):
        normal.replay(scenario, hand_day(scenario, Car(10.0, 10.0, 3, 6, car=7)), plan)


def test_car_that_is_full_cannot_charge_on() -> None:
    scenario = tiny_scenario()
    plan = np.zeros((N_SLOTS, 1))
    plan[3:6] = 10.0
    with pytest.raises(InfeasibleError, match=r"cannot charge at 10 kW in slot 5.*still needs 0 kWh"):
        normal.replay(scenario, hand_day(scenario, Car(10.0, 10.0, 3, 6)), plan)


def test_modulated_plan_may_take_any_power_up_to_the_rated_one() -> None:
    scenario = tiny_scenario(mode="modulated")
    day = hand_day(scenario, Car(10.0, 10.0, 3, 6))
    plan = np.zeros((N_SLOTS, 1))
    plan[3:6, 0] = (4.0, 6.0, 10.0)
    assert normal.replay(scenario, day, plan).energy_eur == pytest.approx(1.0)  # 10 kWh at 0.10
    plan[3] = 10.5
    with pytest.raises(InfeasibleError, match=r"cannot charge at 10\.5 kW in slot 3.*charges at up to 10 kW"):
        normal.replay(scenario, day, plan)


def test_plan_that_leaves_a_car_unfilled_is_refused() -> None:
    scenario = tiny_scenario()
    plan = np.zeros((N_SLOTS, 1))
    plan[3] = 10.0
    complaint = r"session 0 \(car 0\) must be full at its departure in slot 6, the plan leaves 5 kWh missing"
    with pytest.raises(InfeasibleError, match=complaint):
        normal.replay(scenario, hand_day(scenario, Car(10.0, 10.0, 3, 6)), plan)


@pytest.mark.parametrize("plan", [np.zeros((N_SLOTS, 2)), np.zeros(N_SLOTS), np.full((N_SLOTS, 1), np.nan)])
def test_plan_of_the_wrong_shape_or_with_nan_is_refused(plan: np.ndarray) -> None:
    scenario = tiny_scenario()
    with pytest.raises(DataError, match=r"the plan must be a finite array \(48, 1\), got shape"):
        normal.replay(scenario, hand_day(scenario, Car(10.0, 10.0)), plan)


def test_step_refuses_nan_wrong_shapes_and_days_that_are_over() -> None:
    scenario = tiny_scenario()
    world, state = begin(scenario, hand_day(scenario, Car(10.0, 10.0)))
    with pytest.raises(InfeasibleError, match="cannot charge at nan kW"):
        normal.step(world, state, np.array([[np.nan]]))
    with pytest.raises(DataError, match=r"power_kw must have shape \(1, 1\), got \(1, 2\)"):
        normal.step(world, state, np.zeros((1, 2)))
    with pytest.raises(ConfigError, match="the day of row 0 is over"):
        normal.step(world, dataclasses.replace(state, slot=np.array([48])), np.zeros((1, 1)))


# ------------------------------------------------------------------------------------------------------ making a world


def test_days_are_stacked_and_padded_with_cars_that_never_come() -> None:
    scenario = tiny_scenario()
    one, none = hand_day(scenario, Car(5.0, 10.0, 1, 9, bus=1)), hand_day(scenario)
    world = normal.make_world(scenario, [one, none])
    assert (world.n_days, world.n_buses, world.n_sessions.tolist()) == (2, 2, [1, 0])
    assert world.days.bus_start.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert world.need_kwh.tolist() == [[pytest.approx(5.0)], [0.0]]
    state, outcomes = play(world, normal.initial_state(world, np.array([1])), np.ones((N_SLOTS, 1, 2)))
    assert sum(outcome.bus_power_kw.sum() for outcome in outcomes) == 0.0
    assert state.slot.tolist() == [48]


def test_rows_reset_alone(small_scenario: Scenario) -> None:
    world, state = begin(small_scenario, *small_scenario.days(range(3)))
    state, _ = play(world, state, random_actions(2, 3)[:10])
    mixed = normal.with_reset_rows(world, state, np.array([False, True, False]), np.array([2]))
    assert (mixed.slot.tolist(), mixed.day.tolist()) == ([10, 0, 10], [0, 2, 2])
    np.testing.assert_array_equal(mixed.remaining_kwh[1], world.need_kwh[2])
    np.testing.assert_array_equal(mixed.voltage_pu[[0, 2]], state.voltage_pu[[0, 2]])
    np.testing.assert_allclose(np.abs(mixed.voltage_pu[1]), 1.0)
    assert state.slot.tolist() == [10, 10, 10]


def test_world_without_days_is_refused(small_scenario: Scenario) -> None:
    with pytest.raises(ConfigError, match="at least one day is needed, got none"):
        normal.make_world(small_scenario, [])


def test_days_that_do_not_fit_the_scenario_are_refused(small_scenario: Scenario, shipped_scenario: Scenario) -> None:
    day = small_scenario.day(4, "test")
    nan = day.dg_kw.copy()
    nan[3, 1] = np.nan
    with pytest.raises(DataError, match=r"day test/4: dg_kw must be finite, got NaN or infinity"):
        normal.make_world(small_scenario, [dataclasses.replace(day, dg_kw=nan)])
    with pytest.raises(DataError, match=r"day test/4: import_eur_per_kwh must have shape \(48,\), got \(47,\)"):
        normal.make_world(small_scenario, [dataclasses.replace(day, import_eur_per_kwh=day.import_eur_per_kwh[1:])])
    with pytest.raises(DataError, match=r"day test/0: its charging buses and feeder must be those of scenario 'tiny'"):
        normal.make_world(small_scenario, [dataclasses.replace(shipped_scenario.day(0, "test"), sessions=day.sessions)])
    late = dataclasses.replace(day.sessions, departure_slot=day.sessions.arrival_slot)
    with pytest.raises(DataError, match=r"sessions\.departure_slot\[0\] must come after arrival_slot"):
        normal.make_world(small_scenario, [dataclasses.replace(day, sessions=late)])
