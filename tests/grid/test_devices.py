"""Tap changer and capacitor banks: positions by hand, budgets, relays, the programme against enumeration."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import device_path_reference

from evcs_gym.envs.errors import ConfigError, ConvergenceError
from evcs_gym.envs.grid import Feeder, device_plan, load_feeder
from evcs_gym.envs.grid.device_plan import bank_states, best_path, planned_schedule, worst_distance_pu
from evcs_gym.envs.grid.devices import (
    CapacitorBank,
    Devices,
    DeviceSchedule,
    LocalControl,
    Oltc,
    bank_kvar,
    base_flow,
    capacitor_kvar,
    check_devices,
    checked_schedule,
    head_voltage_pu,
    held,
    local_schedule,
    moves_of,
)
from evcs_gym.envs.types import ComplexArray

KV = math.sqrt(3.0)  # 1 kV per phase: 1 ohm is 1 pu on the base of 1 MVA per phase, 1000 kvar per phase are 1 pu
DEVICES = Devices(Oltc(start=2), (CapacitorBank(29, 600.0, start=1), CapacitorBank(12, 300.0, start=1)))


def reactance(ohm: float = 0.1) -> Feeder:
    impedance = np.zeros((2, 3, 3), dtype=complex)
    impedance[1] = 1j * ohm * np.eye(3)
    return Feeder.from_arrays(parent=[-1, 0], impedance_ohm=impedance, line_to_line_kv=KV, load_kva=np.zeros((2, 3)))


def no_load(n_slots: int) -> ComplexArray:
    return np.zeros((n_slots, 2, 3), dtype=complex)


def real_load(seed: int, n_slots: int = 48) -> tuple[Feeder, ComplexArray]:
    """synthetic33 with an evening peak and noise of its own for every bus."""
    feeder, rng = load_feeder("synthetic33"), np.random.default_rng(seed)
    hour = (12 + 48 / n_slots * 0.5 * np.arange(n_slots)) % 24
    shape = 0.25 + 0.55 * np.exp(-(((hour - 19.5) / 2.5) ** 2))
    factor = shape[:, None] * rng.uniform(0.6, 1.2, (n_slots, len(feeder)))
    return feeder, feeder.load_kva[None] * factor[:, :, None]


def schedule(taps: list[int], *banks: list[int]) -> DeviceSchedule:
    return DeviceSchedule(np.array(taps), np.array(banks, dtype=np.int64).reshape(len(banks), len(taps)).T)


# ------------------------------------------------------------------------------------------------------------ positions


def test_two_steps_of_the_tap_changer_raise_the_head_by_a_hundredth_and_a_quarter() -> None:
    np.testing.assert_allclose(head_voltage_pu(Devices(Oltc()), np.array([-16, 0, 2]), 0.96), [0.864, 0.96, 0.972])


def test_a_bank_gives_a_third_of_its_steps_to_each_phase() -> None:
    kvar = capacitor_kvar(DEVICES, np.array([[1, 0], [0, 1]]), 33)
    assert kvar.shape == (2, 33, 3)
    assert kvar[0, 29].tolist() == [200.0] * 3
    assert kvar[1, 12].tolist() == [100.0] * 3
    assert kvar.sum() == 900.0
    assert bank_kvar(Devices(Oltc()), 33).shape == (0, 33, 3)


def test_movements_count_from_the_start_positions_step_by_step() -> None:
    n_moves, n_switchings = moves_of(DEVICES, schedule([4, 4, 1], [1, 0, 1], [0, 0, 0]))
    assert n_moves == 2 + 3
    assert n_switchings.tolist() == [2, 1]
    assert moves_of(DEVICES, held(DEVICES, 3))[0] == 0


@pytest.mark.parametrize(
    ("given_schedule", "complaint"),
    [
        (schedule([2, 2], [1, 1], [1, 1]), r"here: tap_position must be integers of shape \(3,\), got int64 of shape"),
        (schedule([2] * 3, [1] * 3), r"here: capacitor_step must be integers of shape \(3, 2\), got int64 of shape"),
        (DeviceSchedule(np.full(3, 2.0), np.ones((3, 2))), r"tap_position must be integers of .*, got float64"),  # type: ignore[arg-type]
        (schedule([2, 17, 2], [1] * 3, [1] * 3), r"tap_position must be in -16\.\.16, got 17 in slot 1"),
        (schedule([2] * 3, [1] * 3, [1, 1, 2]), r"capacitor_step of bank 1 must be in 0\.\.1, got 2 in slot 2"),
        (
            schedule([6, 0, 3], [1] * 3, [1] * 3),
            r"tap_position must move by at most 12 steps a day, .* got 13; move less",
        ),
        (
            schedule([2] * 6, [0, 1, 0, 1, 0, 0], [1] * 6),
            r"capacitor_step of bank 0 must move by at most 4 steps a day, .* got 5",
        ),
    ],
)
def test_a_schedule_that_the_devices_cannot_follow_is_refused(given_schedule: DeviceSchedule, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        checked_schedule(DEVICES, given_schedule, 6 if "at most 4" in complaint else 3, "here")


def test_a_schedule_within_its_budgets_is_taken_as_it_is() -> None:
    given_schedule = schedule([6, 0, 2], [0, 1, 1], [1] * 3)
    assert moves_of(DEVICES, checked_schedule(DEVICES, given_schedule, 3, "here"))[0] == 12


@pytest.mark.parametrize(
    ("devices", "complaint"),
    [
        (Devices(Oltc(step_pu=0.0)), r"tap_changer\.step_pu must be in \(0, 0\.1\]"),
        (Devices(Oltc(step_pu=0.1)), r"leave a positive voltage at position -16, got 0\.1"),
        (Devices(Oltc(start=17)), r"lowest <= start <= highest and max_moves >= 0, got -16, 17, 16 and 12"),
        (Devices(Oltc(max_moves=-1)), r"got -16, 0, 16 and -1"),
        (
            Devices(Oltc(), (CapacitorBank(0, 300.0),)),
            r"capacitors\.0\.bus must be row 1\.\.1 with three phases, got 0",
        ),
        (Devices(Oltc(), (CapacitorBank(1, math.inf),)), r"kvar_per_step must be positive and finite, got inf"),
        (
            Devices(Oltc(), (CapacitorBank(1, 1.0, start=2),)),
            r"0 <= start <= n_steps and max_switchings >= 0, got 2, 1",
        ),
    ],
)
def test_devices_that_cannot_be_are_refused(devices: Devices, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_devices(devices, reactance())


# --------------------------------------------------------------------------------------------------------------- relays


def test_the_relay_stops_at_the_first_position_inside_its_band_and_stays() -> None:
    """0.97 (1 + 0.00625 k) reaches 0.99 at k = 4; nothing moves afterwards, though the middle is farther up."""
    control = LocalControl(bus=1, deadband_pu=0.02)
    found = local_schedule(reactance(), Devices(Oltc()), no_load(3), 0.97, control)
    assert found.tap_position.tolist() == [4, 4, 4]
    assert found.capacitor_step.shape == (3, 0)
    down = local_schedule(reactance(), Devices(Oltc()), no_load(1), 1.03, control)
    assert down.tap_position.tolist() == [-4]  # 1.03 * 0.975 = 1.004; at -3 it is 1.0107, outside


def test_the_relay_stops_where_its_budget_or_its_range_ends() -> None:
    control = LocalControl(bus=1)
    assert local_schedule(reactance(), Devices(Oltc(max_moves=2)), no_load(2), 0.97, control).tap_position.tolist() == [
        2,
        2,
    ]
    assert local_schedule(reactance(), Devices(Oltc(highest=3)), no_load(1), 0.97, control).tap_position.tolist() == [3]


def test_a_bank_switches_when_the_tap_changer_is_done() -> None:
    """0.3 pu of susceptance behind 0.1 pu of reactance: 0.96 becomes 0.96 / 0.97 = 0.9897."""
    bank, control = CapacitorBank(1, 900.0), LocalControl(bus=1, deadband_pu=0.1, capacitor_deadband_pu=0.06)
    found = local_schedule(reactance(), Devices(Oltc(), (bank,)), no_load(2), 0.96, control)
    assert found.tap_position.tolist() == [0, 0]
    assert found.capacitor_step.tolist() == [[1], [1]]
    again = dataclasses.replace(bank, start=1)
    off = local_schedule(reactance(), Devices(Oltc(), (again,)), no_load(1), 1.01, control)
    assert off.capacitor_step.tolist() == [[0]]  # 1.01 / 0.97 = 1.041 is above 1.03


def test_a_relay_without_power_flow_is_an_error() -> None:
    heavy = no_load(2)
    heavy[1, 1] = 1e5
    with pytest.raises(ConvergenceError, match=r"slot 1 has no power flow at tap 0 and capacitor steps \[\]; lower"):
        local_schedule(reactance(), Devices(Oltc()), heavy, 1.0, LocalControl(bus=1))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_relays_keep_their_budgets_and_the_programme_leaves_more_room(seed: int) -> None:
    feeder, load = real_load(seed, n_slots=12)
    relays = local_schedule(feeder, DEVICES, load, 1.0, LocalControl(bus=17))
    checked_schedule(DEVICES, relays, 12, "relays")
    programme = planned_schedule(feeder, DEVICES, load, 1.0, 0.95, 1.05)
    worst = [
        np.abs(np.abs(base_flow(feeder, DEVICES, s, load, 1.0).voltage_pu) - 1.0).max() for s in (relays, programme)
    ]
    assert worst[1] <= worst[0] + 5e-5  # the programme chooses on interpolated voltages


# -------------------------------------------------------------------------------------------------------- the programme


def test_the_programme_takes_the_best_position_and_holds_it() -> None:
    """0.97 (1 + 0.00625 k) is nearest to 1 at k = 5: 1.0003; with a budget of three it is k = 3."""
    plan = planned_schedule(reactance(), Devices(Oltc()), no_load(4), 0.97, 0.95, 1.05)
    assert plan.tap_position.tolist() == [5] * 4
    short = planned_schedule(reactance(), Devices(Oltc(max_moves=3)), no_load(4), 0.97, 0.95, 1.05)
    assert short.tap_position.tolist() == [3] * 4


def test_banks_alone_are_planned_too() -> None:
    """300 kvar per phase are drawn, 900 in all: the bank gives just them at 1 pu. One that may not switch stays out."""
    load, still = no_load(2), Oltc(max_moves=0)
    load[:, 1] = 300j
    plan = planned_schedule(reactance(), Devices(still, (CapacitorBank(1, 900.0),)), load, 1.0, 0.95, 1.05)
    assert plan.capacitor_step.tolist() == [[1], [1]]
    assert plan.tap_position.tolist() == [0, 0]
    flow = base_flow(reactance(), Devices(still, (CapacitorBank(1, 900.0),)), plan, load, 1.0)
    np.testing.assert_allclose(np.abs(flow.voltage_pu), 1.0, atol=1e-8)
    stuck = CapacitorBank(1, 900.0, max_switchings=0)
    plan = planned_schedule(reactance(), Devices(still, (stuck,)), load, 1.0, 0.95, 1.05)
    assert plan.capacitor_step.tolist() == [[0], [0]]


def test_the_least_room_comes_first_and_the_sum_second() -> None:
    """One move to spend. The worst slot (5 away at tap 0) gets it although two others would gain more in the sum."""
    cost = np.array([[[4.0, 1.0]], [[4.0, 1.0]], [[4.0, 6.0]], [[5.0, 4.5]]])
    states = bank_states(Devices(Oltc()))
    worst, tap, _ = best_path(cost, states, 0, 1, True)
    assert worst == 4.5
    assert tap.tolist() == [0, 0, 0, 1]
    total, tap, _ = best_path(cost, states, 0, 1, False)
    assert total == 1.0 + 1.0 + 6.0 + 4.5
    assert tap.tolist() == [1, 1, 1, 1]


@given(seed=st.integers(0, 10**6), n_moves=st.integers(0, 4), switchings=st.integers(0, 3), bottleneck=st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_programme_agrees_with_enumeration(seed: int, n_moves: int, switchings: int, bottleneck: bool) -> None:
    rng = np.random.default_rng(seed)
    start = int(rng.integers(0, 3))
    banks = (CapacitorBank(1, 1.0, n_steps=2, start=int(rng.integers(0, 3)), max_switchings=switchings),)
    devices = Devices(Oltc(lowest=0, highest=2, start=start), banks)
    states = bank_states(devices)
    cost = rng.integers(0, 6, (3, 3, 3)).astype(np.float64)
    value, tap, state = best_path(cost, states, start, n_moves, bottleneck)
    assert value == device_path_reference(cost, devices, states.combinations, n_moves, bottleneck)
    rows = states.combination[state]
    along = cost[np.arange(3), rows, tap]
    assert value == (along.max() if bottleneck else along.sum())
    limited = dataclasses.replace(devices, tap_changer=dataclasses.replace(devices.tap_changer, max_moves=n_moves))
    checked_schedule(limited, DeviceSchedule(tap, states.combinations[rows]), 3, "path")


@pytest.mark.parametrize("seed", [0, 1])
def test_interpolated_voltages_are_those_of_the_power_flow(seed: int) -> None:
    feeder, load = real_load(seed, n_slots=6)
    states, taps = bank_states(DEVICES), np.arange(-10, 15)
    fast = worst_distance_pu(feeder, DEVICES, states, taps, load, 1.0, 1.0)
    for x, tap in enumerate(taps):
        for c, steps in enumerate(states.combinations):
            there = DeviceSchedule(np.full(6, tap), np.tile(steps, (6, 1)))
            size = np.abs(base_flow(feeder, DEVICES, there, load, 1.0).voltage_pu)
            np.testing.assert_allclose(fast[:, c, x], np.abs(size - 1.0).max(axis=(1, 2)), rtol=0, atol=3e-5)


def test_positions_without_power_flow_are_avoided_and_none_at_all_is_an_error() -> None:
    """A load that collapses at low taps only: every tap gets a power flow of its own, low ones are infinitely far."""
    feeder, devices = reactance(), Devices(Oltc(lowest=-16, highest=0, max_moves=16))
    load = no_load(2)
    load[:, 1] = 4700.0  # collapse below V^2 = 2 x S = 0.94
    distance = worst_distance_pu(feeder, devices, bank_states(devices), np.arange(-16, 1), load, 1.0, 1.0)
    assert np.isinf(distance[:, 0, 0]).all()
    assert np.isfinite(distance[:, 0, -1]).all()
    assert planned_schedule(feeder, devices, load, 1.0, 0.5, 1.5).tap_position.tolist() == [0, 0]
    load[1, 1] = 1e5
    with pytest.raises(ConvergenceError, match=r"slot 1 has no power flow at any position that can be reached; lower"):
        planned_schedule(feeder, devices, load, 1.0, 0.5, 1.5)


def test_too_many_states_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_plan, "MAX_STATES", 20)
    many = Devices(Oltc(), (CapacitorBank(1, 1.0, n_steps=10, max_switchings=20),))
    with pytest.raises(ConfigError, match=r"at most 20 states, got 20 or more; lower steps or budgets, or take"):
        bank_states(many)
    with pytest.raises(ConfigError, match=r"at most 20 states, got 325 or more"):
        planned_schedule(reactance(), Devices(Oltc()), no_load(4), 1.0, 0.95, 1.05)
