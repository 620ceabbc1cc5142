"""The operator pro_rata: sums by hand, what must hold for every slot, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from reference import factor_reference

from evcs_gym.envs.errors import ConfigError, ConvergenceError, DataError
from evcs_gym.envs.grid import PHASE_UNIT, Equipment, Feeder, capacitor_siemens, load_feeder, power_flow
from evcs_gym.envs.grid.kernels import solve
from evcs_gym.envs.grid.kernels_operator import adjust_rows
from evcs_gym.envs.grid.operator import (
    MAX_EXTRA_FLOWS,
    PASS_TOLERANCE,
    Adjustment,
    Limits,
    adjust,
    effective_limits,
    excesses,
    row_current_a,
    with_stations,
)
from evcs_gym.envs.grid.powerflow import network_tables
from evcs_gym.envs.units import PHASE_BASE_KVA

KV = math.sqrt(3.0)
STATIONS = np.array([7, 13, 17, 24, 29, 32])


def line(resistance_ohm: float = 0.05, ampacity_a: float = np.inf) -> Feeder:
    impedance = np.zeros((2, 3, 3), dtype=complex)
    impedance[1] = resistance_ohm * np.eye(3)
    return Feeder.from_arrays(
        parent=[-1, 0],
        impedance_ohm=impedance,
        line_to_line_kv=KV,
        load_kva=np.zeros((2, 3)),
        ampacity_a=[np.inf, ampacity_a],
    )


def one_station(feeder: Feeder, position_kw: list[float], **limits: Any) -> Adjustment:
    base = np.zeros((len(position_kw), 2, 3), dtype=complex)
    position = np.array(position_kw)[:, None]
    return adjust(feeder, effective_limits(feeder, base, **limits), base, position, np.array([1]))


# --- by hand -----------------------------------------------------------------------------------------------


def test_within_the_limits_nothing_happens_and_nothing_is_computed() -> None:
    answer = one_station(line(), [-600.0, 0.0, 600.0])
    assert np.isinf(answer.cap_kw).all()
    assert answer.n_extra_flows.tolist() == [0, 0, 0]
    assert answer.position_kw[:, 0].tolist() == [-600.0, 0.0, 600.0]


def test_an_import_is_cut_to_what_the_lower_limit_allows() -> None:
    """V = 1 - R p / V = 0.95 at p = 0.05 * 0.95 / 0.05 = 0.95 pu per phase: 2850 of 6000 kW at 0.05 ohm."""
    answer = one_station(line(), [-6000.0 / 2])
    assert answer.cap_kw[0, 0] == pytest.approx(2850.0, rel=1e-3)
    assert answer.position_kw[0, 0] == -answer.cap_kw[0, 0]
    assert np.abs(answer.flow.voltage_pu[0, 1]).min() == pytest.approx(0.95, abs=2e-5)


def test_an_export_is_cut_to_what_the_upper_limit_allows() -> None:
    """V = 1 + R p / V = 1.05 at p = 1.05 pu per phase."""
    answer = one_station(line(), [6000.0])
    assert answer.cap_kw[0, 0] == pytest.approx(3150.0, rel=1e-3)


def test_a_current_is_cut_to_the_ampacity() -> None:
    """500 A at about 1 kV and R = 0.01: V = 1 - 0.005, p = 0.4975 pu per phase."""
    answer = one_station(line(0.01, 500.0), [-3000.0])
    assert answer.cap_kw[0, 0] == pytest.approx(3 * 497.5, rel=1e-3)
    kva = one_station(line(0.01), [-3000.0], head_kva=1500.0)
    assert kva.cap_kw[0, 0] == pytest.approx(3 * 497.5, rel=1e-3)  # 1500 kVA are 500 A at the source


def test_only_the_positions_that_push_are_scaled() -> None:
    feeder = load_feeder("synthetic33")
    base = 0.3 * feeder.load_kva[None]
    position = np.array([[200.0, -1500.0, -1500.0, 300.0, 0.0, -500.0]])
    answer = adjust(feeder, effective_limits(feeder, base), base, position, STATIONS)
    assert np.isinf(answer.cap_kw[0]).tolist() == [True, False, False, True, True, False]
    np.testing.assert_allclose(answer.position_kw[0, [1, 2, 5]] / position[0, [1, 2, 5]], answer.factor[0])
    assert 0 < answer.factor[0] < 1


def test_where_the_pushing_group_alone_is_not_enough_all_are_scaled_down_to_the_base_load() -> None:
    """Imports break the lower limit, and exports alone would break the upper one: all are scaled."""
    feeder = load_feeder("synthetic33")
    base = np.zeros((1, 33, 3), dtype=complex)
    position = np.array([[0.0, 0.0, -9000.0, 0.0, 0.0, 9000.0]])
    limits = effective_limits(feeder, base, vmin_pu=0.97, vmax_pu=1.03)
    answer = adjust(feeder, limits, base, position, STATIONS)
    assert np.isinf(answer.cap_kw[0]).tolist() == [True, True, False, True, True, False]
    assert answer.flow.converged.all()


# --- what must hold ----------------------------------------------------------------------------------------


def slots(seed: int, n_slots: int = 12) -> tuple[Feeder, Any, Any, Any]:
    rng = np.random.default_rng(seed)
    feeder = load_feeder("synthetic33")
    base = feeder.load_kva * rng.uniform(0.1, 1.0, (n_slots, 1, 1))
    position = rng.uniform(-1500, 1500, (n_slots, len(STATIONS))) * rng.choice([0.0, 0.2, 1.0, 2.0], (n_slots, 1))
    source = rng.uniform(0.98, 1.03, n_slots)
    return feeder, base, position, source


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_every_adjusted_slot_passes_the_power_flow_and_a_feasible_one_is_left_alone(seed: int) -> None:
    feeder, base, position, source = slots(seed)
    limits = effective_limits(feeder, base, source, head_kva=6000.0)
    answer = adjust(feeder, limits, base, position, STATIONS, source)
    load = with_stations(base, answer.position_kw, STATIONS)
    flow = power_flow(feeder, load, source_pu=source, tolerance_pu=1e-12)
    assert flow.converged.all()
    assert excesses(feeder, limits, load, flow, source).max() <= 2 * PASS_TOLERANCE
    np.testing.assert_allclose(answer.flow.voltage_pu, flow.voltage_pu, rtol=0, atol=1e-7)
    assert (np.abs(answer.position_kw) <= np.abs(position)).all()
    assert (answer.position_kw * position >= 0).all()
    assert answer.n_extra_flows.max() <= MAX_EXTRA_FLOWS
    before = power_flow(feeder, with_stations(base, position, STATIONS), source_pu=source)
    fine = excesses(feeder, limits, with_stations(base, position, STATIONS), before, source).max(axis=1) <= 0
    assert np.array_equal(answer.position_kw[fine], position[fine])
    assert (answer.n_extra_flows[fine] == 0).all()


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=10)
def test_the_factor_is_the_largest_that_passes(seed: int) -> None:
    """One per cent more of the capped positions breaks a limit."""
    feeder, base, position, source = slots(seed)
    limits = effective_limits(feeder, base, source)
    answer = adjust(feeder, limits, base, position, STATIONS, source)
    capped = np.isfinite(answer.cap_kw).any(axis=1) & (answer.factor < 0.99)
    step = 0.01 * position * np.isfinite(answer.cap_kw)
    load = with_stations(base, answer.position_kw + step, STATIONS)
    flow = power_flow(feeder, load, source_pu=source)
    assert (excesses(feeder, limits, load, flow, source).max(axis=1)[capped] > 0).all()


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=10)
def test_wider_limits_never_cut_more(seed: int) -> None:
    feeder, base, position, source = slots(seed)
    position = -np.abs(position)
    factors = [
        adjust(feeder, effective_limits(feeder, base, source, vmin_pu=v), base, position, STATIONS, source).factor
        for v in (0.95, 0.945, 0.94, 0.92)
    ]
    # what passes lies within 1e-6 of a limit; where the voltage hardly answers the factor that is 1e-4 of it
    assert (np.diff(factors, axis=0) >= -2e-4).all()
    bounds = [effective_limits(feeder, base, source, vmax_pu=v) for v in (1.05, 1.06, 1.08)]
    factors = [adjust(feeder, limits, base, -position, STATIONS, source).factor for limits in bounds]
    assert (np.diff(factors, axis=0) >= -2e-4).all()


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=8)
def test_the_factor_is_that_of_a_bisection(seed: int) -> None:
    feeder, base, position, _ = slots(seed)
    limits = effective_limits(feeder, base, head_kva=5000.0)
    answer = adjust(feeder, limits, base, position, STATIONS, tolerance_pu=1e-12)
    factor, group = factor_reference(feeder, limits, base, position, STATIONS)
    assert np.array_equal(np.isfinite(answer.cap_kw), group)
    np.testing.assert_allclose(answer.factor, factor, rtol=0, atol=2e-4)  # as above


def with_equipment(plain: Feeder, **parts: Any) -> Feeder:
    return Feeder.from_arrays(
        parent=plain.parent,
        impedance_ohm=plain.impedance_ohm,
        line_to_line_kv=plain.line_to_line_kv,
        load_kva=plain.load_kva,
        equipment=Equipment.of(len(plain), plain.line_to_line_kv, **parts),
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_feeder_with_equipment_gets_the_same_answer(seed: int) -> None:
    """Capacitors as banks of the slots in lanes, and as shunts of a feeder with equipment."""
    feeder, base, position, source = slots(seed, 40)
    kvar = np.zeros((40, 33, 3))
    kvar[:, [13, 29]] = 150.0
    shunt = np.array([capacitor_siemens(bus_kvar, feeder.line_to_line_kv) for bus_kvar in kvar[0]])
    other = with_equipment(feeder, shunt_siemens=shunt)
    limits = effective_limits(feeder, base, source, head_kva=5000.0, capacitor_kvar=kvar)
    given = (limits, base, position, STATIONS, source)
    ours = adjust(feeder, *given, capacitor_kvar=kvar, tolerance_pu=1e-13)
    theirs = adjust(other, *given, tolerance_pu=1e-13)
    assert 0 < np.isfinite(ours.cap_kw).any(axis=1).sum() < 40
    np.testing.assert_allclose(ours.position_kw, theirs.position_kw, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.cap_kw, theirs.cap_kw, rtol=0, atol=1e-6)
    assert np.array_equal(ours.n_extra_flows, theirs.n_extra_flows)
    for field in ("voltage_pu", "loss_kw", "converged"):
        np.testing.assert_allclose(getattr(ours.flow, field), getattr(theirs.flow, field), rtol=0, atol=1e-7)


def test_absent_phases_have_no_limits() -> None:
    """A lateral of phase a alone: its absent phases neither break a limit nor count as unbalance."""
    impedance = np.zeros((3, 3, 3), dtype=complex)
    impedance[1], impedance[2, 0, 0] = 0.05 * np.eye(3), 0.01
    feeder = Feeder.from_arrays(
        parent=[-1, 0, 1], impedance_ohm=impedance, line_to_line_kv=KV, load_kva=np.zeros((3, 3))
    )
    base = np.zeros((1, 3, 3), dtype=complex)
    limits = effective_limits(feeder, base)
    answer = adjust(feeder, limits, base, np.array([[-3000.0]]), np.array([1]))
    assert answer.cap_kw[0, 0] == pytest.approx(2850.0, rel=1e-4)
    assert excesses(feeder, limits, base, answer.flow, np.ones(1))[0, 4] == pytest.approx(-0.02)


@njit
def twice(first: int, end: int, flow: Any, held: Any) -> None:
    """What a kernel of another stage does: first flows, then the operator, for a range of rows."""
    solve(first, end, *flow)
    adjust_rows(first, end, *held)


def test_another_kernel_runs_both_for_many_rows_of_few_slots() -> None:
    """Four slots lie ready, 21 rows of them are stepped by one launch, the first flows start from the last voltages."""
    feeder, base, _, source = slots(5, 4)
    position = np.random.default_rng(0).uniform(-2500, 1500, (21, 6))
    at = np.random.default_rng(1).integers(0, 4, 21)
    limits = effective_limits(feeder, base, source)
    names = ("vmin_pu", "vmax_pu", "current_a", "head_kva", "unbalance_frac")
    every = Limits(**{name: getattr(limits, name)[at] for name in names})
    expected = adjust(feeder, every, base[at], position, STATIONS, source[at], tolerance_pu=1e-12)
    network = network_tables(feeder, STATIONS)
    ready = ((source[:, None] * PHASE_UNIT).view(float), base.view(float), np.empty((4, 0, 3)), 1 / PHASE_BASE_KVA)
    voltage = np.tile(PHASE_UNIT.view(float), (21, 33, 1))
    flow = (voltage, np.empty(21), np.empty(21, dtype=np.int64))
    out = (np.empty((21, 6)), np.empty((21, 6)), np.empty(21), np.empty(21, dtype=np.int64))
    bounds = tuple(np.array(getattr(limits, name)) for name in names)
    held = (*network, row_current_a(feeder), *ready, *bounds, at, position, 1e-12, 100, *flow, *out)
    twice(0, 21, (*network, *ready, at, position, voltage, 1e-12, 100, *flow), held)
    assert 0 < (expected.n_extra_flows > 0).sum() < 21
    np.testing.assert_allclose(out[0], expected.position_kw, rtol=0, atol=1e-5)
    np.testing.assert_allclose(voltage.view(complex), expected.flow.voltage_pu, rtol=0, atol=1e-9)
    np.testing.assert_allclose(flow[1] * PHASE_BASE_KVA, expected.flow.loss_kw, rtol=0, atol=1e-6)


def test_a_slot_is_the_same_alone_and_in_a_batch() -> None:
    feeder, base, position, source = slots(3)
    limits = effective_limits(feeder, base, source)
    whole = adjust(feeder, limits, base, position, STATIONS, source)
    assert 0 < np.isfinite(whole.cap_kw).any(axis=1).sum() < len(base)
    for k in range(len(base)):
        own = effective_limits(feeder, base[k : k + 1], source[k : k + 1])
        alone = adjust(feeder, own, base[k : k + 1], position[k : k + 1], STATIONS, source[k : k + 1])
        assert np.array_equal(alone.position_kw[0], whole.position_kw[k])
        assert alone.n_extra_flows[0] == whole.n_extra_flows[k]


# --- refusals ----------------------------------------------------------------------------------------------


def test_arrays_that_do_not_fit_are_refused() -> None:
    feeder = line()
    base = np.zeros((1, 2, 3), dtype=complex)
    limits = effective_limits(feeder, base)
    with pytest.raises(DataError, match="must fit together"):
        adjust(feeder, limits, base, np.zeros((2, 1)), np.array([1]))
    with pytest.raises(DataError, match=r"position_kw\[0, 0\] must be finite"):
        adjust(feeder, limits, base, np.array([[np.nan]]), np.array([1]))
    with pytest.raises(DataError, match=r"buses 1\.\.1 with all three phases, got \[0\]"):
        adjust(feeder, limits, base, np.zeros((1, 1)), np.array([0]))
    with pytest.raises(ConfigError, match="limits must be 0 < vmin_pu < vmax_pu"):
        effective_limits(feeder, base, vmin_pu=1.1)
    with pytest.raises(ConvergenceError, match="base load of slot 0 has no power flow"):
        effective_limits(feeder, base + 9e5)


def test_limits_of_another_base_load_are_refused() -> None:
    feeder = load_feeder("synthetic33")
    light, heavy = 0.1 * feeder.load_kva[None], feeder.load_kva[None]
    limits = effective_limits(feeder, light)
    for network in (feeder, with_equipment(feeder)):
        with pytest.raises(DataError, match="the base load alone exceeds the limits in slot 0"):
            adjust(network, limits, heavy, np.full((1, 6), -100.0), STATIONS)
    with pytest.raises(ConfigError, match="network_tables: 'feeder' has equipment"):
        network_tables(with_equipment(feeder))
