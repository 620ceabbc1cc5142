"""The linear power flow: a sum by hand, its derivative property, and its distance to the full power flow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.grid import Feeder, lindistflow, load_feeder, power_flow


def test_one_uncoupled_branch_by_hand() -> None:
    # 1 kV per phase, Z = 0.01 + 0.02j pu: |V|^2 falls by 2 (0.01 P + 0.02 Q), P = 0.5 pu, Q = 0.25 pu: by 0.02.
    impedance = np.zeros((2, 3, 3), dtype=complex)
    impedance[1] = (0.01 + 0.02j) * np.eye(3)
    feeder = Feeder.from_arrays(
        parent=[-1, 0], impedance_ohm=impedance, line_to_line_kv=np.sqrt(3.0), load_kva=np.zeros((2, 3))
    )
    p_kw, q_kvar = np.zeros((2, 3)), np.zeros((2, 3))
    p_kw[1, 0], q_kvar[1, 0] = 500, 250
    squared = lindistflow(feeder, source_pu=1.1).voltage_sq_pu(p_kw, q_kvar)
    np.testing.assert_allclose(squared, [[1.21] * 3, [1.19, 1.21, 1.21]])


def test_a_load_on_one_phase_moves_its_neighbours_through_the_mutual_reactance() -> None:
    # P on phase a moves phase b by -2 Re(exp(j 120 deg) j X_m) P = +sqrt(3) X_m P, and phase c by as much downwards.
    impedance = np.zeros((2, 3, 3), dtype=complex)
    impedance[1] = 0.05 * np.eye(3) + 0.01j * (1 - np.eye(3))
    feeder = Feeder.from_arrays(
        parent=[-1, 0], impedance_ohm=impedance, line_to_line_kv=np.sqrt(3.0), load_kva=np.zeros((2, 3))
    )
    p_kw = np.zeros((2, 3))
    p_kw[1, 0] = 10
    change = lindistflow(feeder).voltage_sq_pu(p_kw, np.zeros((2, 3)))[1] - 1
    np.testing.assert_allclose(change, [-2 * 0.05 * 0.01, np.sqrt(3) * 0.01 * 0.01, -np.sqrt(3) * 0.01 * 0.01])
    flow = power_flow(feeder, p_kw[None])
    np.testing.assert_allclose(np.abs(flow.voltage_pu[0, 1]) ** 2 - 1, change, atol=1e-6)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_it_is_the_derivative_of_the_power_flow_at_no_load(seed: int) -> None:
    feeder = load_feeder("synthetic33")
    rng = np.random.default_rng(seed)
    direction = rng.uniform(-1, 1, (33, 3)) + 1j * rng.uniform(-1, 1, (33, 3))
    direction[0] = 0
    direction *= 0.1
    both = power_flow(feeder, np.stack([direction, -direction]), tolerance_pu=1e-14).voltage_pu
    squared = np.abs(both) ** 2
    slope = (squared[0] - squared[1]) / 2
    linear = lindistflow(feeder).voltage_sq_pu(direction.real, direction.imag) - 1
    # Central difference with loads of about 0.1 kVA: falls of up to 5e-4 pu, so a third-order term of 1e-10.
    np.testing.assert_allclose(linear, slope, rtol=0, atol=2e-10)
    assert np.abs(slope).max() > 1e-5


@pytest.mark.parametrize(("scale", "largest"), [(1.0, 0.0045), (0.5, 0.0010), (-0.5, 0.0010)])
def test_it_is_a_little_optimistic_on_the_unbalanced_default(scale: float, largest: float) -> None:
    # Losses are left out, so linear voltages are never too low; measured 0.0044 pu at nominal load.
    feeder = load_feeder("synthetic33")
    load = scale * feeder.load_kva
    linear = np.sqrt(lindistflow(feeder).voltage_sq_pu(load.real, load.imag))
    error = linear - np.abs(power_flow(feeder, load[None]).voltage_pu[0])
    assert error.max() < largest
    assert error.min() > -1e-12


def test_batches_of_loads_and_a_bad_source() -> None:
    feeder = load_feeder("case33bw")
    load = feeder.load_kva * np.array([0.0, 1.0])[:, None, None]
    squared = lindistflow(feeder, 1.05).voltage_sq_pu(load.real, load.imag)
    assert squared.shape == (2, 33, 3)
    assert (squared[0] == 1.05**2).all()
    with pytest.raises(ConfigError, match="source_pu must be positive and finite, got 0"):
        lindistflow(feeder, 0.0)
