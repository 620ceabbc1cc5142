"""Receding horizon of normal charging: days by hand, the exact optimum as an oracle, enumeration, and its errors."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from envs_fixtures import Car, begin, hand_day, tiny_scenario
from hypothesis import given, settings
from hypothesis import strategies as st

from evcs_gym.baselines import make_policy, make_rule, receding_normal
from evcs_gym.baselines.arrivals import ExpectedArrivals, arrivals_of, expected_arrivals, no_arrivals
from evcs_gym.baselines.policy import Rule
from evcs_gym.baselines.problems.normal_charging import NormalProblem, cost, problem_of
from evcs_gym.baselines.receding_normal import Horizon
from evcs_gym.baselines.reference import lower_bound_eur
from evcs_gym.baselines.score import rollout
from evcs_gym.envs import Day, Scenario
from evcs_gym.envs.errors import ConfigError, SolverError
from evcs_gym.envs.fleet import normal
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS

Plans = Callable[[NormalProblem], FloatArray]
N_BUSES = 2


def planner(arrivals: ExpectedArrivals | None = None) -> Rule:
    """The policy with the given expectation, by default nobody."""
    return Rule("by hand", Horizon(arrivals or no_arrivals(N_BUSES)).target_kw)


def expecting(cars: Sequence[Car]) -> ExpectedArrivals:
    """An expectation that knows the very cars."""
    place = np.array([car.bus for car in cars])[None] == np.arange(N_BUSES)[:, None]
    return ExpectedArrivals(
        arrival_slot=np.array([car.arrival_slot for car in cars], dtype=np.int64),
        departure_slot=np.array([car.departure_slot for car in cars], dtype=np.int64),
        energy_kwh=place * np.array([car.need_kwh for car in cars]),
        power_kw=place * np.array([car.power_kw for car in cars]),
    )


def series(level: float, **other: float) -> FloatArray:
    """The same in all slots but the named ones (``s7=0.05``)."""
    out = np.full(N_SLOTS, level)
    for name, value in other.items():
        out[int(name[1:])] = value
    return out


def powers(scenario: Scenario, day: Day, policy: Rule) -> FloatArray:
    """Power of bus 0 over the day."""
    return rollout(normal.make_world(scenario, [day]), policy).bus_power_kw[0, :, 0]


def bounds_of(view: normal.View) -> tuple[FloatArray, FloatArray, FloatArray]:
    """What the knee needs besides the power."""
    return view.surplus_kw, view.least_kw, view.largest_kw


def cars_at_random(seed: int, arrivals: Sequence[int], one_power: bool, n_cars: int = 6) -> list[Car]:
    """Cars with stays and needs that fit, sorted by bus and arrival."""
    rng = np.random.default_rng(seed)
    cars = []
    for number in range(n_cars):
        arrival = int(rng.choice(arrivals))
        power = 7.0 if one_power else float(rng.choice([3.7, 7.4, 11.0]))
        stay = int(rng.integers(1, 12))
        need = power * 0.5 * stay * float(rng.uniform(0.1, 1.0))
        cars.append(Car(need, power, arrival, arrival + stay, bus=int(rng.integers(N_BUSES)), car=number))
    return sorted(cars, key=lambda car: (car.bus, car.arrival_slot, car.car))


def day_at_random(scenario: Scenario, seed: int, cars: Sequence[Car]) -> Day:
    """Prices at random, DG surplus in about half of the slots."""
    rng = np.random.default_rng(seed)
    base, dg = rng.uniform(0.0, 10.0, (2, N_SLOTS, N_BUSES)) * np.array([1.0, 2.0])[:, None, None]
    return hand_day(scenario, *cars, base_kw=base, dg_kw=dg, price_eur_per_kwh=rng.uniform(0.03, 0.15, N_SLOTS))


# --------------------------------------------------------------------------------------------------------- by hand


def test_one_car_takes_the_two_cheapest_slots_of_its_stay() -> None:
    scenario = tiny_scenario()
    day = hand_day(scenario, Car(10.0, 10.0, 5, 12), price_eur_per_kwh=series(0.1, s3=0.01, s7=0.05, s9=0.06))
    assert np.flatnonzero(powers(scenario, day, planner())).tolist() == [7, 9]


def test_surplus_is_left_to_a_car_that_is_expected_to_need_it() -> None:
    # 10 kW of surplus in slots 2 and 5, one cent cheaper in 5. Alone the car waits for slot 5. If a car comes that can
    # charge in slot 5 only, its 5 kWh fill that surplus: both together cost least if the first one takes slot 2.
    scenario = tiny_scenario()
    first, second = Car(5.0, 10.0, 0, 8), Car(5.0, 10.0, 5, 6, car=1)
    dg = np.column_stack([series(10.0, s2=20.0, s5=20.0), np.zeros(N_SLOTS)])
    day = hand_day(scenario, first, dg_kw=dg, price_eur_per_kwh=series(0.1, s5=0.09))
    assert np.flatnonzero(powers(scenario, day, planner())).tolist() == [5]
    assert np.flatnonzero(powers(scenario, day, planner(expecting([second])))).tolist() == [2]


def test_whole_cars_take_a_surplus_only_if_it_is_worth_it() -> None:
    # One car of 10 kW, one slot to charge, surplus 4 kW in slot 3: |4 - 10| = 6 kW above it, 0.02 EUR/kWh. There it
    # moves the gap from 4 to 6 kW, +0.02 EUR; in slot 6 without surplus it moves from 0 to 10 kW, +0.10 EUR more.
    # Slot 6 must be cheaper by more than (10 - 2) kW * 0.5 h * 0.02 EUR/kWh = 0.08 EUR on 5 kWh: 1.6 cents.
    scenario = tiny_scenario()
    dg = np.column_stack([series(10.0, s3=14.0), np.zeros(N_SLOTS)])
    for saving, slot in ((0.015, 3), (0.017, 6)):
        price = series(0.2, s3=0.1, s6=0.1 - saving)
        assert np.flatnonzero(
            powers(scenario, hand_day(scenario, Car(5.0, 10.0), dg_kw=dg, price_eur_per_kwh=price), planner())
        ).tolist() == [slot]


def test_of_equal_slots_the_present_one_is_taken() -> None:
    scenario = tiny_scenario()
    assert np.flatnonzero(powers(scenario, hand_day(scenario, Car(10.0, 10.0, 4, 30)), planner())).tolist() == [4, 5]


def test_expected_arrivals_are_means_of_days() -> None:
    # two days: a car of 10 kW that needs 10 kWh on the first one, two cars of 4 kW and 4 kWh on the second one
    scenario = tiny_scenario(mode="modulated")
    first = hand_day(scenario, Car(10.0, 10.0, 3, 40))
    second = hand_day(scenario, Car(4.0, 4.0, 3, 38), Car(4.0, 4.0, 20, 48, bus=1, car=1))
    seen = arrivals_of(normal.make_world(scenario, [first, second]))
    assert seen.arrival_slot.tolist() == [3, 20]
    assert seen.departure_slot.tolist() == [39, 48]  # 40 and 38 are one class, their mean
    assert seen.energy_kwh.sum(axis=0).tolist() == pytest.approx([7.0, 2.0])
    assert seen.power_kw.sum(axis=0).tolist() == pytest.approx([7.0, 2.0])
    assert (seen.energy_kwh[1] / seen.energy_kwh.sum(axis=0)).tolist() == pytest.approx([4.0 / 18.0] * 2)


def test_nobody_is_expected_where_nobody_came() -> None:
    scenario = tiny_scenario()
    assert arrivals_of(normal.make_world(scenario, [hand_day(scenario)])).energy_kwh.shape == (N_BUSES, 0)


def test_expected_energy_is_that_of_the_training_days(small_scenario: Scenario) -> None:
    seen = expected_arrivals(small_scenario)
    days = small_scenario.days(range(256))
    whole = np.mean([normal.make_world(small_scenario, [day]).need_kwh.sum() for day in days])
    assert seen.energy_kwh.sum() == pytest.approx(whole, rel=1e-9)
    stay = seen.departure_slot - seen.arrival_slot
    assert (stay >= 1).all()
    assert (seen.energy_kwh <= seen.power_kw * 0.5 * stay + 1e-9).all()


# --------------------------------------------------------------------------------------- the exact optimum as oracle


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_with_all_cars_present_the_first_plan_costs_the_bound(seed: int) -> None:
    scenario = tiny_scenario(mode="modulated")
    day = day_at_random(scenario, seed, cars_at_random(seed, [0], one_power=False))
    world, state = begin(scenario, day)
    view, horizon = normal.view(world, state), Horizon(no_arrivals(N_BUSES))
    planned = sum(horizon.plan(view, 0, bus).cost_eur for bus in range(N_BUSES))
    assert planned == pytest.approx(lower_bound_eur(scenario, day), abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_who_knows_all_later_cars_plans_the_bound_from_the_first_slot_on(seed: int) -> None:
    scenario = tiny_scenario(mode="modulated")
    cars = cars_at_random(seed, [0, 1, 5, 20], one_power=False)
    day = day_at_random(scenario, seed, cars)
    world, state = begin(scenario, day)
    view, horizon = normal.view(world, state), Horizon(expecting(cars))
    planned = sum(horizon.plan(view, 0, bus).cost_eur for bus in range(N_BUSES))
    assert planned == pytest.approx(lower_bound_eur(scenario, day), abs=1e-6)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_without_later_arrivals_the_whole_day_costs_the_optimum(seed: int) -> None:
    # one car at each bus: whatever the plan gives the bus is what the car gets, slot after slot
    scenario = tiny_scenario(mode="modulated")
    first, second = cars_at_random(seed, [0], one_power=False, n_cars=2)
    cars = [Car(c.need_kwh, c.power_kw, 0, c.departure_slot, bus=bus) for bus, c in enumerate((first, second))]
    day = day_at_random(scenario, seed, cars)
    done = rollout(normal.make_world(scenario, [day]), planner())
    assert done.n_violations[0] == 0
    assert done.cost_eur[0] == pytest.approx(lower_bound_eur(scenario, day), abs=1e-5)  # float32 actions


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_cars_of_one_power_on_tiny_days_cost_what_enumeration_finds(enumerated: Plans, seed: int) -> None:
    # equal powers and departures: the order in which the environment serves the cars loses nothing
    rng = np.random.default_rng(seed)
    cars = [Car(3.5 * int(rng.integers(1, 4)), 7.0, 0, 5, car=number) for number in range(3)]
    scenario = tiny_scenario()
    day = day_at_random(scenario, seed, cars)
    problem = problem_of(scenario, day)
    best = min(cost(problem, plan) for plan in enumerated(problem))
    done = rollout(normal.make_world(scenario, [day]), planner())
    assert done.cost_eur[0] == pytest.approx(best, abs=1e-5)


def test_it_is_never_below_the_bound_fills_every_car_and_does_not_see_its_neighbours(small_scenario: Scenario) -> None:
    days = small_scenario.days(range(3), "test")
    policy = make_policy("receding_horizon", scenario=small_scenario)
    together = rollout(normal.make_world(small_scenario, days), policy)
    bounds = [lower_bound_eur(small_scenario, day) for day in days]
    assert (together.cost_eur >= np.array(bounds) - 1e-6).all()
    assert together.unmet_kwh.max() == 0.0
    naive = rollout(normal.make_world(small_scenario, days), make_rule("charge_on_arrival"))
    assert together.cost_eur.sum() < naive.cost_eur.sum()
    alone = rollout(normal.make_world(small_scenario, days[1:2]), policy).cost_eur[0]
    assert alone == pytest.approx(together.cost_eur[1], abs=1e-9)


# -------------------------------------------------------------------------------------------------- speed and errors


def test_a_thousand_cars_are_planned_within_two_seconds(shipped_scenario: Scenario) -> None:
    per_bus = [125] * len(shipped_scenario.charging_buses)
    rng = np.random.default_rng(1)
    cars = [
        Car(float(rng.uniform(2.0, 40.0)), 11.0, 0, int(rng.integers(20, 49)), bus=bus, car=100 * bus + i)
        for bus, n_cars in enumerate(per_bus)
        for i in range(n_cars)
    ]
    day = hand_day(shipped_scenario, *cars, base_kw=300.0, dg_kw=np.linspace(0.0, 900.0, N_SLOTS)[:, None])
    world, state = begin(shipped_scenario, day)
    horizon = Horizon(expected_arrivals(shipped_scenario))
    action = normal.knee_action(horizon.target_kw(view := normal.view(world, state)), *bounds_of(view))
    state, _ = normal.step(world, state, normal.dispatch(world, state, action))  # the first one starts the solver
    began = time.perf_counter()
    target = horizon.target_kw(normal.view(world, state))
    assert time.perf_counter() - began < 2.0
    assert target.shape == (1, len(per_bus))


def test_a_planner_without_a_scenario_is_refused() -> None:
    with pytest.raises(ConfigError, match="planner 'receding_horizon' needs the scenario whose cars it is to expect"):
        make_policy("receding_horizon")


def test_a_slot_without_time_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receding_normal, "SOLVE_LIMIT_S", 0.0)
    scenario = tiny_scenario()
    day = day_at_random(scenario, 3, cars_at_random(3, [0], one_power=False))
    with pytest.raises(SolverError, match=r"ended with status 'time_limit' .* which is no optimum"):
        powers(scenario, day, planner())
