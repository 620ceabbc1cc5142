"""The operator pro_rata: sums by hand, what must hold for every slot, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evcs_gym.envs.errors import ConfigError, ConvergenceError, DataError
from evcs_gym.envs.grid import Feeder, load_feeder, power_flow
from evcs_gym.envs.grid.operator import (
    MAX_EXTRA_FLOWS,
    PASS_TOLERANCE,
    Adjustment,
    adjust,
    effective_limits,
    excesses,
    with_stations,
)

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
        for v in (0.95, 0.94, 0.92)
    ]
    assert (np.diff(factors, axis=0) >= -1e-3).all()


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
    with pytest.raises(DataError, match="the base load alone exceeds the limits"):
        adjust(feeder, effective_limits(feeder, light), heavy, np.full((1, 6), -100.0), STATIONS)
