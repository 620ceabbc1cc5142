"""The power flow: sums by hand, the feeder's known values, properties of every batch, and what is refused."""

import csv
import math
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import loss_reference_kw, sweep_reference

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid import (
    PHASE_UNIT,
    Feeder,
    branch_current_a,
    load_feeder,
    power_flow,
    voltage_unbalance_frac,
)
from evcs_gym.envs.grid.kernels import LANES, solve
from evcs_gym.envs.types import ComplexArray

REFERENCE_VOLTAGES = Path(__file__).parents[1] / "data" / "synthetic33_reference_voltages.csv"
KV = math.sqrt(3.0)  # 1 kV per phase: 1 ohm is 1 pu on the base of 1 MVA per phase


def two_buses(resistance_ohm: float) -> Feeder:
    impedance = np.zeros((2, 3, 3), dtype=complex)
    impedance[1] = resistance_ohm * np.eye(3)
    return Feeder.from_arrays(parent=[-1, 0], impedance_ohm=impedance, line_to_line_kv=KV, load_kva=np.zeros((2, 3)))


def random_feeder(seed: int, n_buses: int) -> Feeder:
    """A tree in random numbering with untransposed lines of a few milliohm (0.1 % of the base) and random loads."""
    rng = np.random.default_rng(seed)
    parent = np.concatenate([[-1], [rng.integers(0, bus) for bus in range(1, n_buses)]]).astype(np.int64)
    number = np.concatenate([[0], 1 + rng.permutation(n_buses - 1)])
    renumbered = np.full(n_buses, -1)
    renumbered[number[1:]] = number[parent[1:]]
    mutual = rng.uniform(0.2, 0.6, (n_buses, 3, 3)) * (0.3 + 0.5j)
    impedance = mutual + mutual.transpose(0, 2, 1) + rng.uniform(1, 2, (n_buses, 3, 1)) * (1 + 1j) * np.eye(3)
    impedance *= rng.uniform(0.001, 0.01, (n_buses, 1, 1))
    load = rng.uniform(-30, 90, (n_buses, 3)) + 1j * rng.uniform(-10, 40, (n_buses, 3))
    impedance[0], load[0] = 0, 0
    return Feeder.from_arrays(parent=renumbered, impedance_ohm=impedance, line_to_line_kv=KV, load_kva=load)


def cases(feeder: Feeder, n_cases: int, seed: int = 0) -> ComplexArray:
    return feeder.load_kva * np.random.default_rng(seed).uniform(0.5, 1.2, (n_cases, len(feeder), 3))


def test_one_branch_one_phase_by_hand() -> None:
    # 0.1 pu of resistance, 0.9 pu of load: V (1 - V) = 0.09, so V = 0.9; the current is 1 pu, the loss 0.1 pu.
    flow = power_flow(two_buses(0.1), [[[0, 0, 0], [900, 0, 0]]], tolerance_pu=1e-13)
    assert flow.converged.tolist() == [True]
    np.testing.assert_allclose(flow.voltage_pu[0, 1], [0.9, PHASE_UNIT[1], PHASE_UNIT[2]], atol=1e-12)
    assert flow.loss_kw[0] == pytest.approx(100.0, abs=1e-9)


def test_the_source_voltage_may_differ_by_case() -> None:
    # At 1.1 pu: V (1.1 - V) = 0.1 S with V = 1 gives S = 1 pu.
    load = np.zeros((2, 2, 3))
    load[:, 1] = [[900] * 3, [1000] * 3]
    flow = power_flow(two_buses(0.1), load, source_pu=[1.0, 1.1], tolerance_pu=1e-13)
    np.testing.assert_allclose(np.abs(flow.voltage_pu[:, 1]), [[0.9] * 3, [1.0] * 3], atol=1e-12)
    np.testing.assert_allclose(np.abs(flow.voltage_pu[:, 0]), [[1.0] * 3, [1.1] * 3])


def test_no_load_no_drop_and_no_cases_no_result() -> None:
    flow = power_flow(load_feeder("synthetic33"), np.zeros((3, 33, 3)), source_pu=1.03)
    assert (flow.voltage_pu == 1.03 * PHASE_UNIT).all()
    assert (flow.loss_kw == 0).all()
    assert (flow.iterations == 1).all()
    assert power_flow(load_feeder("synthetic33"), np.zeros((0, 33, 3))).voltage_pu.shape == (0, 33, 3)


def test_case33bw_known_values() -> None:
    feeder = load_feeder("case33bw")
    flow = power_flow(feeder, feeder.load_kva[None])
    magnitude = np.abs(flow.voltage_pu[0])
    assert flow.loss_kw[0] == pytest.approx(202.677, abs=5e-4)
    assert magnitude.min() == pytest.approx(0.91309, abs=5e-6)
    assert feeder.bus_name[int(magnitude[:, 0].argmin())] == "18"
    assert (magnitude < 0.95).any(axis=1).sum() == 21
    assert voltage_unbalance_frac(flow.voltage_pu).max() < 1e-12


def test_synthetic33_known_values_and_reference_voltages() -> None:
    feeder = load_feeder("synthetic33")
    flow = power_flow(feeder, feeder.load_kva[None], tolerance_pu=1e-12)
    assert flow.loss_kw[0] == pytest.approx(205.004, abs=5e-4)
    assert np.abs(flow.voltage_pu).min() == pytest.approx(0.90606, abs=5e-6)
    unbalance = voltage_unbalance_frac(flow.voltage_pu[0])
    assert unbalance.max() == pytest.approx(0.00585, abs=5e-6)
    with REFERENCE_VOLTAGES.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["bus"] for row in rows] == list(feeder.bus_name)
    for i, row in enumerate(rows):
        # The table has 8 decimals of magnitude and 6 of angle; its own check against OpenDSS was 3.7e-9 pu.
        for phase, voltage in zip("abc", flow.voltage_pu[0, i], strict=True):
            assert abs(voltage) == pytest.approx(float(row[f"V{phase}_pu"]), abs=1.5e-8)
            assert math.degrees(np.angle(voltage)) == pytest.approx(float(row[f"ang{phase}_deg"]), abs=1.5e-6)
        assert 100 * unbalance[i] == pytest.approx(float(row["VUF_pct"]), abs=1.5e-6)


def test_unbalance_by_hand() -> None:
    # Phase b at half voltage: V+ = (1 + 1/2 + 1)/3, V- = |1 + a/2 + a^2|/3 = (1/2)/3 as 1 + a + a^2 = 0: 20 %.
    a = np.exp(2j * np.pi / 3)
    half, one_missing, dead = [1, 0.5 * a**2, a], [1, 0, a], [0, 0, 0]
    np.testing.assert_allclose(voltage_unbalance_frac(np.array([half, one_missing, dead])), [0.2, 0, 0], atol=1e-15)


def test_absent_phases_report_zero_and_change_nothing_else() -> None:
    # Bus 2 hangs on phase a alone, behind 0.1 pu: at 0.9 pu of load it sees 0.9 of the source voltage.
    impedance = np.zeros((3, 3, 3), dtype=complex)
    impedance[1], impedance[2, 0, 0] = 1e-9 * np.eye(3), 0.1
    feeder = Feeder.from_arrays(
        parent=[-1, 2, 0], impedance_ohm=impedance[[0, 2, 1]], line_to_line_kv=KV, load_kva=np.zeros((3, 3))
    )
    load = np.zeros((1, 3, 3))
    load[0, 1, 0] = 900
    flow = power_flow(feeder, load, tolerance_pu=1e-12)
    np.testing.assert_allclose(flow.voltage_pu[0, 1], [0.9, 0, 0], atol=1e-8)
    np.testing.assert_allclose(flow.voltage_pu[0, 2], PHASE_UNIT, atol=1e-8)
    assert flow.loss_kw[0] == pytest.approx(100, abs=1e-5)
    again = power_flow(feeder, load, warm_start=flow.voltage_pu)
    assert again.iterations[0] <= 2
    np.testing.assert_allclose(again.voltage_pu, flow.voltage_pu, atol=1e-8)
    assert np.abs(branch_current_a(feeder, load, flow.voltage_pu)[0, :, 0]).tolist() == pytest.approx([1000.0] * 3)
    with pytest.raises(DataError, match="case 0 has a load at bus '1', phase b, which is absent there"):
        power_flow(feeder, np.ones((1, 3, 3)))


def test_collapse_is_a_flag_for_that_case_only() -> None:
    feeder = two_buses(0.1)
    load = np.zeros((5, 2, 3))
    # V (1 - V) = 0.1 S has a solution up to S = 2.5 pu.
    load[:, 1] = np.array([2490, 2600, 900, 1e7, 1e300])[:, None]
    flow = power_flow(feeder, load, max_iterations=400)
    assert flow.converged.tolist() == [True, False, True, False, False]
    assert np.isfinite(flow.voltage_pu.view(float)).all()
    assert np.isfinite(flow.loss_kw).all()
    assert (flow.loss_kw[~flow.converged] == 0).all()
    assert flow.iterations[1] <= 400
    alone = power_flow(feeder, load[2:3])
    assert (flow.voltage_pu[2] == alone.voltage_pu[0]).all()


def test_too_few_iterations_are_a_flag_too() -> None:
    feeder = load_feeder("synthetic33")
    flow = power_flow(feeder, feeder.load_kva[None], max_iterations=3)
    assert flow.converged.tolist() == [False]
    assert flow.iterations.tolist() == [3]
    assert np.abs(flow.voltage_pu).min() == pytest.approx(0.906, abs=1e-2)


def test_voltages_beyond_every_number_leave_the_last_finite_ones() -> None:
    flow = power_flow(two_buses(1e200), [[[0, 0, 0], [1e200, 1e200, 1e200]]])
    assert flow.converged.tolist() == [False]
    assert np.isfinite(flow.voltage_pu.view(float)).all()


@pytest.mark.parametrize("name", ["synthetic33", "case33bw"])
def test_kernel_agrees_with_its_plain_twin(name: str) -> None:
    feeder = load_feeder(name)
    load = cases(feeder, 3)
    flow = power_flow(feeder, load, source_pu=1.02)
    for case in range(3):
        voltage, iterations = sweep_reference(feeder, load[case], source_pu=1.02)
        np.testing.assert_allclose(flow.voltage_pu[case], voltage, atol=1e-14)
        assert flow.iterations[case] == iterations
    with pytest.raises(ArithmeticError, match="no convergence"):
        sweep_reference(feeder, 100 * load[0])


@given(seed=st.integers(0, 10**6), n_buses=st.integers(2, 40))
@settings(deadline=None, max_examples=25)
def test_numbering_of_buses_does_not_matter(seed: int, n_buses: int) -> None:
    feeder = random_feeder(seed, n_buses)
    number = np.concatenate([[0], 1 + np.random.default_rng(seed).permutation(n_buses - 1)])
    parent, impedance, load = np.full(n_buses, -1), np.zeros_like(feeder.impedance_ohm), np.zeros_like(feeder.load_kva)
    parent[number[1:]] = number[feeder.parent[1:]]
    impedance[number], load[number] = feeder.impedance_ohm, feeder.load_kva
    twin = Feeder.from_arrays(parent=parent, impedance_ohm=impedance, line_to_line_kv=KV, load_kva=load)
    ours = power_flow(feeder, feeder.load_kva[None], tolerance_pu=1e-13)
    theirs = power_flow(twin, load[None], tolerance_pu=1e-13)
    assert ours.converged.all()
    assert theirs.converged.all()
    np.testing.assert_allclose(theirs.voltage_pu[:, number], ours.voltage_pu, atol=1e-12)


@given(seed=st.integers(0, 10**6), scale=st.floats(0.2, 5.0))
@settings(deadline=None, max_examples=25)
def test_voltage_times_k_and_power_times_k_squared_is_the_same_flow(seed: int, scale: float) -> None:
    feeder = random_feeder(seed, 12)
    ours = power_flow(feeder, feeder.load_kva[None], tolerance_pu=1e-13)
    theirs = power_flow(feeder, feeder.load_kva[None] * scale**2, source_pu=scale, tolerance_pu=1e-13 * scale)
    np.testing.assert_allclose(theirs.voltage_pu / scale, ours.voltage_pu, atol=1e-12)
    np.testing.assert_allclose(theirs.loss_kw / scale**2, ours.loss_kw, rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 10**6), n_buses=st.integers(2, 40))
@settings(deadline=None, max_examples=25)
def test_loss_is_source_power_less_loads_and_the_heat_in_the_branches(seed: int, n_buses: int) -> None:
    feeder = random_feeder(seed, n_buses)
    flow = power_flow(feeder, feeder.load_kva[None], tolerance_pu=1e-13)
    assert flow.loss_kw[0] == pytest.approx(
        loss_reference_kw(feeder, feeder.load_kva, flow.voltage_pu[0]), rel=1e-9, abs=1e-9
    )
    current_pu = branch_current_a(feeder, feeder.load_kva[None], flow.voltage_pu) / feeder.base_current_a
    source_kw = 1000 * (PHASE_UNIT * current_pu[0, 0].conj()).sum().real
    assert source_kw - feeder.load_kva.sum().real == pytest.approx(flow.loss_kw[0], abs=1e-8)


@given(seed=st.integers(0, 10**6), n_cases=st.integers(1, 3 * LANES + 1))
@settings(deadline=None, max_examples=40)
def test_a_case_is_bitwise_the_same_in_every_batch(seed: int, n_cases: int) -> None:
    feeder = load_feeder("synthetic33")
    rng = np.random.default_rng(seed)
    load = cases(feeder, n_cases, seed) * rng.choice([0.1, 1.0, 3.0, 30.0], (n_cases, 1, 1))
    whole = power_flow(feeder, load, max_iterations=40)
    order = rng.permutation(n_cases)
    shuffled = power_flow(feeder, load[order], max_iterations=40)
    cut = int(rng.integers(0, n_cases + 1))
    parts = [power_flow(feeder, part, max_iterations=40) for part in (load[:cut], load[cut:])]
    alone = power_flow(feeder, load[:1], max_iterations=40)
    for field in ("voltage_pu", "loss_kw", "iterations", "converged"):
        expected = getattr(whole, field)
        assert np.array_equal(getattr(shuffled, field), expected[order])
        assert np.array_equal(np.concatenate([getattr(part, field) for part in parts]), expected)
        assert np.array_equal(getattr(alone, field)[0], expected[0])


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_rows_that_only_some_cases_load_are_bitwise_the_same(seed: int) -> None:
    """A bus without load in all cases of a block is not computed; with a neighbour's load it is."""
    feeder, rng = load_feeder("synthetic33"), np.random.default_rng(seed)
    load = cases(feeder, LANES, seed) * rng.choice([0.0, 3.0], (LANES, 33, 1), p=[0.8, 0.2])
    whole = power_flow(feeder, load)
    for k in range(LANES):
        alone = power_flow(feeder, load[k : k + 1])
        assert np.array_equal(alone.voltage_pu[0], whole.voltage_pu[k])
        assert alone.loss_kw[0] == whole.loss_kw[k]
        np.testing.assert_allclose(alone.voltage_pu[0], sweep_reference(feeder, load[k])[0], rtol=0, atol=1e-14)


def test_threads_give_bitwise_the_same_as_one() -> None:
    feeder = load_feeder("synthetic33")
    load = cases(feeder, 26 * LANES + 3)
    n_threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        one = power_flow(feeder, load)
    finally:
        numba.set_num_threads(n_threads)
    many = power_flow(feeder, load)
    assert np.array_equal(one.voltage_pu, many.voltage_pu)
    assert np.array_equal(one.loss_kw, many.loss_kw)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_a_warm_start_changes_the_way_but_not_the_result(seed: int) -> None:
    feeder = load_feeder("synthetic33")
    load = cases(feeder, 5, seed)
    cold = power_flow(feeder, load)
    warm = power_flow(feeder, load * 1.02, warm_start=cold.voltage_pu)
    np.testing.assert_allclose(warm.voltage_pu, power_flow(feeder, load * 1.02).voltage_pu, atol=2e-8)
    assert (warm.iterations < cold.iterations).all()


def test_a_useless_warm_start_falls_back_to_the_source_voltage() -> None:
    feeder = load_feeder("synthetic33")
    load = cases(feeder, 3)
    cold = power_flow(feeder, load)
    start = cold.voltage_pu.copy()
    start[1] = 0.0
    flow = power_flow(feeder, load, warm_start=start)
    assert flow.converged.all()
    assert np.array_equal(flow.voltage_pu[1], cold.voltage_pu[1])
    assert flow.loss_kw[1] == cold.loss_kw[1]
    assert flow.iterations[1] > cold.iterations[1]


def test_arguments_stay_as_they_were_and_read_only_ones_are_welcome() -> None:
    feeder = load_feeder("synthetic33")
    load = cases(feeder, 2)
    start = power_flow(feeder, load).voltage_pu
    copies = load.copy(), start.copy()
    load.setflags(write=False)
    start.setflags(write=False)
    power_flow(feeder, load, warm_start=start)
    power_flow(feeder, load[::-1], warm_start=start[::-1])
    assert np.array_equal(load, copies[0])
    assert np.array_equal(start, copies[1])
    assert len(solve.signatures) == 1, "read-only arrays must not make numba compile a second time"  # type: ignore[attr-defined]


NAN_LOAD = np.zeros((2, 33, 3), dtype=complex)
NAN_LOAD[1, 4, 2] = np.nan


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"load_kva": np.zeros((33, 3))}, DataError, r"load_kva must have shape \(B, N, P\) = \(B, 33, 3\)"),
        ({"load_kva": np.zeros((1, 32, 3))}, DataError, r"load_kva must have shape .* got \(1, 32, 3\)"),
        ({"load_kva": NAN_LOAD}, DataError, r"load_kva must be finite, got .*nan.* in case 1, bus '5', phase c"),
        ({"load_kva": "much"}, DataError, r"load_kva must be an array of complex numbers"),
        ({"source_pu": [1.0, 1.0, 1.0]}, DataError, r"source_pu must be one number or of shape \(B,\) = \(2,\)"),
        ({"source_pu": 0.0}, ConfigError, r"source_pu must be positive and finite, got values from 0.0"),
        ({"source_pu": np.nan}, ConfigError, r"source_pu must be positive and finite, got values from nan"),
        ({"source_pu": [1.0, np.inf]}, ConfigError, r"source_pu must be positive and finite"),
        ({"tolerance_pu": 0.0}, ConfigError, r"tolerance_pu must be positive and finite, got 0.0"),
        ({"tolerance_pu": np.nan}, ConfigError, r"tolerance_pu must be positive and finite, got nan"),
        ({"max_iterations": 0}, ConfigError, r"max_iterations must be at least 1, got 0"),
        ({"warm_start": np.ones((1, 33, 3))}, DataError, r"warm_start must have the shape of load_kva, \(2, 33, 3\)"),
        ({"warm_start": NAN_LOAD}, DataError, r"warm_start must be finite"),
        ({"warm_start": "here"}, DataError, r"warm_start must be an array of complex numbers"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        power_flow(load_feeder("synthetic33"), **{"load_kva": np.zeros((2, 33, 3)), **arguments})
