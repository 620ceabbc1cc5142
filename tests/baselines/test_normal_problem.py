"""Normal charging as a problem: cost, check, classes and voltages, by hand and as properties."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evcs_gym.baselines.problems import normal_charging as problems
from evcs_gym.baselines.problems.normal_charging import NetworkProblem, NormalProblem
from evcs_gym.envs.errors import DataError, InfeasibleError
from evcs_gym.envs.grid import load_feeder, power_flow
from evcs_gym.envs.scenario import load_scenario

Maker = Callable[..., NormalProblem]


@pytest.fixture
def two_cars(by_hand: Maker) -> NormalProblem:
    """Two cars of 4 and 6 kW at one bus in three slots; surplus of 5 kW in slot 1."""
    return by_hand(
        net_kw=[[2.0], [-5.0], [1.0]],
        price=[0.10, 0.20, 0.05],
        stays=[(0, 3), (1, 3)],
        n_slots=[2, 1],
        power_kw=[4.0, 6.0],
    )


def test_the_cost_of_a_plan_by_hand(two_cars: NormalProblem) -> None:
    """Net power 2, -5 + 4, 1 + 4 + 6: 0.08 * 0.5 * 14 EUR; energy 2 kWh at 0.20 and 5 kWh at 0.05 EUR."""
    plan = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 6.0]])
    problems.check(two_cars, plan)
    assert problems.cost(two_cars, plan) == pytest.approx(0.08 * 0.5 * (2 + 1 + 11) + 2 * 0.20 + 5 * 0.05)
    heavy = replace(two_cars, energy_weight=3.0)
    assert problems.cost(heavy, plan) == pytest.approx(0.08 * 0.5 * 14 + 3 * 0.65)
    np.testing.assert_array_equal(problems.bus_power_kw(two_cars, plan)[:, 0], [0.0, 4.0, 10.0])


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([[0, 6], [4, 0], [4, 0]], r"session 1 \(car 101\), slot 0: the car is away"),
        ([[0, 0], [-4, 6], [4, 0]], r"session 0 \(car 100\), slot 1: the car must charge within 0 and its power"),
        ([[0, 0], [4, 7], [4, 0]], r"session 1 .*slot 1: the car must charge within 0 and its power"),
        ([[2, 0], [4, 6], [2, 0]], r"session 0 .*slot 0: the car must charge with its full power or not at all"),
        ([[4, 0], [4, 6], [4, 0]], r"session 0 .*slot 2: the car must have charged in exactly its n_slots slots"),
        ([[4, 0], [4, 0], [0, 0]], r"session 1 .*slot 2: the car must have charged in exactly its n_slots slots"),
    ],
)
def test_a_plan_that_breaks_a_rule_is_refused(two_cars: NormalProblem, plan: Any, message: str) -> None:
    with pytest.raises(InfeasibleError, match=message):
        problems.check(two_cars, np.array(plan, dtype=np.float64))


def test_a_modulated_plan_may_charge_with_less_but_must_fill(two_cars: NormalProblem) -> None:
    modulated = replace(two_cars, mode="modulated")
    problems.check(modulated, np.array([[2.0, 0.0], [4.0, 1.0], [2.0, 5.0]]))
    with pytest.raises(InfeasibleError, match=r"session 1 .*slot 2: the car must have received exactly its energy"):
        problems.check(modulated, np.array([[2.0, 0.0], [4.0, 1.0], [2.0, 4.0]]))


@pytest.mark.parametrize("plan", [np.zeros((3, 1)), np.full((3, 2), np.nan)])
def test_a_plan_of_the_wrong_shape_or_with_nan_is_refused(two_cars: NormalProblem, plan: Any) -> None:
    with pytest.raises(DataError, match=r"a plan must be a finite array \(3, 2\)"):
        problems.check(two_cars, plan)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"net_kw": np.full((3, 1), np.nan)}, DataError, "problem.net_kw must be finite"),
        ({"gap_eur_per_kwh": -0.1}, DataError, "must not be negative, got -0.1 and 1.0"),
        ({"energy_weight": -1.0}, DataError, "must not be negative, got 0.08 and -1.0"),
        ({"bus": np.array([0, 1])}, DataError, r"problem.bus must be in 0\.\.0, got 0\.\.1"),
        ({"departure_slot": np.array([3, 1])}, InfeasibleError, r"session 1 \(car 101\) must stay within slots 0\.\.2"),
        ({"departure_slot": np.array([4, 3])}, InfeasibleError, r"session 0 .*must stay within slots"),
        ({"energy_kwh": np.array([4.0, 6.5])}, InfeasibleError, "session 1 .*needs more energy than its stay can give"),
        ({"n_slots": np.array([2, 3])}, InfeasibleError, "session 1 .*needs more slots than its stay has"),
        ({"n_slots": np.array([3, 1])}, InfeasibleError, "session 0 .*must get its energy in exactly n_slots slots"),
    ],
)
def test_impossible_data_are_refused(two_cars: NormalProblem, change: Any, error: Any, message: str) -> None:
    problems.check_data(two_cars)
    with pytest.raises(error, match=message):
        problems.check_data(replace(two_cars, **change))


def test_equal_cars_make_a_class_and_others_do_not(by_hand: Maker) -> None:
    problem = by_hand(
        net_kw=[[0.0]] * 3,
        price=[0.1] * 3,
        stays=[(0, 3), (0, 3), (0, 2), (0, 3)],
        n_slots=[2, 2, 2, 0],
        power_kw=[4.0, 4.0, 4.0, 4.0],
    )
    classes = problems.classes_of(problem)
    assert classes.n_cars.tolist() == [1, 2]
    assert classes.class_of.tolist() == [1, 1, 0, -1]  # the last one needs nothing
    assert classes.need_slots.tolist() == [2.0, 2.0]
    assert classes.cell_slot.tolist() == [0, 1, 0, 1, 2]
    assert classes.first_cell.tolist() == [0, 2, 5]


def test_only_buses_with_equal_powers_have_one_power(by_hand: Maker) -> None:
    problem = by_hand(
        net_kw=[[0.0, 0.0, 0.0]] * 3,
        price=[0.1] * 3,
        stays=[(0, 3)] * 4,
        n_slots=[1] * 4,
        power_kw=[4.0, 4.0 * (1 + 1e-12), 4.0, 5.0],
        bus=[0, 0, 1, 1],
    )
    np.testing.assert_allclose(problems.one_power_per_bus(problems.classes_of(problem), 3), [4.0, np.nan, np.nan])


@settings(deadline=None, max_examples=50)
@given(n_cars=st.integers(1, 5), stay=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_dealing_slots_gives_every_car_its_number_and_no_slot_twice(n_cars: int, stay: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    need = int(rng.integers(1, stay + 1))
    one = np.arange(stay) < need
    count = sum(rng.permutation(one).astype(np.int64) for _ in range(n_cars))
    problem = NormalProblem(
        mode="on_off",
        bus=np.zeros(n_cars, dtype=np.int64),
        phase=np.full(n_cars, -1),
        arrival_slot=np.zeros(n_cars, dtype=np.int64),
        departure_slot=np.full(n_cars, stay),
        car=np.arange(n_cars),
        power_kw=np.full(n_cars, 5.0),
        energy_kwh=np.full(n_cars, need * 2.5),
        n_slots=np.full(n_cars, need),
        infeasible_kwh=np.zeros(n_cars),
        net_kw=np.zeros((stay, 1)),
        import_eur_per_kwh=np.full(stay, 0.1),
        gap_eur_per_kwh=0.1,
        energy_weight=1.0,
    )
    classes = problems.classes_of(problem)
    plan = problems.plan_of_cells(problem, classes, np.asarray(count, dtype=np.float64))
    problems.check(problem, plan)
    np.testing.assert_array_equal(problems.cells_of_plan(problem, classes, plan), count)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), mode=st.sampled_from(["on_off", "modulated"]))
def test_charging_on_arrival_is_always_feasible(at_random: Maker, seed: int, mode: str) -> None:
    problem = at_random(seed, n_cars=6, mode=mode)
    if mode == "modulated":
        problem = replace(problem, energy_kwh=0.93 * problem.energy_kwh)
    problems.check_data(problem)
    classes = problems.classes_of(problem)
    plan = problems.plan_of_cells(problem, classes, problems.on_arrival_cells(classes))
    problems.check(problem, plan)
    first = problem.arrival_slot
    assert (plan[first, np.arange(6)] > 0.0).all()


def test_balanced_cars_put_a_third_on_each_phase(by_hand: Maker) -> None:
    problem = by_hand([[0.0]] * 2, [0.1] * 2, [(0, 2), (0, 2)], [1, 1], [6.0, 4.0], phase=[-1, 2])
    plan = np.array([[6.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(problems.phase_power_kw(problem, plan)[0, 0], [2.0, 2.0, 6.0])
    np.testing.assert_allclose(problems.connection_power_kw(problem, plan)[0, 0], [0.0, 0.0, 4.0, 6.0])


def small_network(n_slots: int, vmin: float) -> NetworkProblem:
    """The shipped feeder at half its load, with one charging bus at the end of its longest branch."""
    feeder = load_feeder("synthetic33")
    load = np.repeat(0.5 * feeder.load_kva[None], n_slots, axis=0)
    base = np.abs(power_flow(feeder, load, source_pu=1.0).voltage_pu)
    return NetworkProblem(
        feeder=feeder,
        source_pu=np.ones(n_slots),
        charging_bus=np.array([17]),
        load_kva=load,
        base_voltage_pu=base,
        vmin_pu=np.minimum(vmin, base),
        vmax_pu=np.maximum(1.1, base),
        voltage_eur_per_pu=100.0,
    )


def test_the_voltage_of_a_plan_is_the_power_flow_of_its_load(by_hand: Maker) -> None:
    problem = by_hand([[0.0]] * 2, [0.1] * 2, [(0, 2), (0, 2)], [1, 1], [60.0, 40.0], phase=[-1, 2])
    network = small_network(2, 0.95)
    plan = np.array([[60.0, 40.0], [0.0, 0.0]])
    voltage, converged = problems.plan_voltage(problem, network, plan)
    load = network.load_kva.copy()
    load[0, 17] += np.array([20.0, 20.0, 60.0])
    expected = np.abs(power_flow(network.feeder, load, source_pu=1.0).voltage_pu)
    assert converged.all()
    np.testing.assert_allclose(voltage, expected, atol=1e-12)
    np.testing.assert_allclose(voltage[1], network.base_voltage_pu[1], atol=1e-7)


def test_voltage_outside_the_limits_is_priced_and_the_source_is_not(by_hand: Maker) -> None:
    """Two bus-phases 0.01 and 0.02 pu below, one 0.03 pu above: 100 EUR/pu * 0.06 pu."""
    network = small_network(1, 0.9)
    voltage = np.clip(network.base_voltage_pu, 0.9, 1.1)
    voltage[0, 0] = 0.5
    voltage[0, 3, 0] = network.vmin_pu[0, 3, 0] - 0.01
    voltage[0, 4, 1] = network.vmin_pu[0, 4, 1] - 0.02
    voltage[0, 5, 2] = network.vmax_pu[0, 5, 2] + 0.03
    assert problems.voltage_cost(network, voltage) == pytest.approx(6.0)


def test_a_collapsed_slot_counts_as_zero_volts(by_hand: Maker) -> None:
    problem = by_hand([[0.0]] * 2, [0.1] * 2, [(0, 2)], [1], [1e6])
    network = small_network(2, 0.9)
    voltage, converged = problems.plan_voltage(problem, network, np.array([[1e6], [0.0]]))
    assert converged.tolist() == [False, True]
    assert (voltage[0] == 0.0).all()
    # 32 buses of three phases, each 0.9 pu below
    assert problems.voltage_cost(network, voltage) == pytest.approx(100.0 * network.vmin_pu[0, 1:].sum())


def test_the_problem_of_a_scenario_has_its_weights_and_needs() -> None:
    scenario = load_scenario("ieee33_residential")
    day = scenario.day(0, "test")
    problem, network = problems.problem_of(scenario, day), problems.network_of(scenario, day)
    problems.check_data(problem)
    assert problem.mode == "on_off"
    assert problem.gap_eur_per_kwh == scenario.normal_charging.omega1_eur_per_kwh
    np.testing.assert_array_equal(problem.net_kw, day.base_kw - day.dg_kw)
    assert (problems.problem_of(scenario, day, "modulated").power_kw == day.sessions.power_kw).all()
    assert network.voltage_eur_per_pu == 100.0
    printed = scenario.normal_charging.model_copy(update={"as_printed": True})
    as_printed = problems.problem_of(scenario.model_copy(update={"normal_charging": printed}), day)
    assert as_printed.energy_weight == scenario.normal_charging.omega1_eur_per_kwh  # omega1 before both terms
