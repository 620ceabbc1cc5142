"""The power flow against programs that other people wrote: power-grid-model and pandapower's runpp_3ph."""

import numpy as np
import pandapower
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from power_grid_model import CalculationMethod, PowerGridModel

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.grid import Feeder, load_feeder, power_flow
from evcs_gym.envs.types import ComplexArray
from evcs_gym.evaluation.speed import pandapower_net, power_grid_model_input, power_grid_model_update


def untransposed_feeder(seed: int, n_buses: int) -> Feeder:
    """A random tree at 12.66 kV: IEEE 4-node line matrices (Kron-reduced, untransposed), unbalanced loads."""
    rng = np.random.default_rng(seed)
    shape = np.array(
        [
            [0.4576 + 1.0780j, 0.1559 + 0.5017j, 0.1535 + 0.3849j],
            [0.1559 + 0.5017j, 0.4666 + 1.0482j, 0.1580 + 0.4236j],
            [0.1535 + 0.3849j, 0.1580 + 0.4236j, 0.4615 + 1.0651j],
        ]
    )
    length = rng.uniform(0.2, 2.0, (n_buses, 1, 1))
    turned = np.array([shape[np.ix_(p, p)] for p in (rng.permutation(3) for _ in range(n_buses))])
    impedance = turned * length
    load = rng.uniform(-40, 120, (n_buses, 3)) + 1j * rng.uniform(-20, 60, (n_buses, 3))
    load *= min(1.0, 15 / n_buses)  # long feeders carry no more than short ones, so that none collapses
    impedance[0], load[0] = 0, 0
    parent = [-1, *(int(rng.integers(max(0, bus - 4), bus)) for bus in range(1, n_buses))]
    return Feeder.from_arrays(parent=parent, impedance_ohm=impedance, line_to_line_kv=12.66, load_kva=load)


def power_grid_model_voltage(feeder: Feeder, load_kva: ComplexArray, source_pu: float) -> ComplexArray:
    output = PowerGridModel(power_grid_model_input(feeder, source_pu)).calculate_power_flow(
        symmetric=False,
        error_tolerance=1e-12,
        max_iterations=100,
        calculation_method=CalculationMethod.newton_raphson,
        update_data=power_grid_model_update(feeder, load_kva),
    )["node"]
    voltage: ComplexArray = output["u_pu"] * np.exp(1j * output["u_angle"])
    return voltage


@given(seed=st.integers(0, 10**6), n_buses=st.integers(2, 50), source_pu=st.floats(0.95, 1.05))
@settings(deadline=None, max_examples=25)
def test_power_grid_model_agrees_on_random_unbalanced_feeders(seed: int, n_buses: int, source_pu: float) -> None:
    feeder = untransposed_feeder(seed, n_buses)
    load = feeder.load_kva * np.random.default_rng(seed).uniform(0.2, 1.0, (4, n_buses, 3))
    flow = power_flow(feeder, load, source_pu=source_pu, tolerance_pu=1e-13)
    assert flow.converged.all()
    np.testing.assert_allclose(flow.voltage_pu, power_grid_model_voltage(feeder, load, source_pu), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["synthetic33", "case33bw"])
def test_power_grid_model_agrees_on_the_shipped_feeders_at_the_tolerance_in_use(name: str) -> None:
    feeder = load_feeder(name)
    load = feeder.load_kva * np.array([1.0, 0.3, 1.5])[:, None, None]
    voltage = power_flow(feeder, load).voltage_pu
    np.testing.assert_allclose(voltage, power_grid_model_voltage(feeder, load, 1.0), rtol=0, atol=1e-8)


def test_pandapower_agrees_on_the_unbalanced_default() -> None:
    feeder = load_feeder("synthetic33")
    net = pandapower_net(feeder, feeder.load_kva, source_pu=1.02)
    pandapower.runpp_3ph(net, tolerance_mva=1e-10)
    result = net.res_bus_3ph
    theirs = np.stack([result[f"vm_{p}_pu"] * np.exp(1j * np.radians(result[f"va_{p}_degree"])) for p in "abc"], axis=1)
    ours = power_flow(feeder, feeder.load_kva[None], source_pu=1.02).voltage_pu[0]
    # runpp_3ph stops on the power mismatch; 1.7e-8 pu is what that leaves at nominal load.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-8)


def test_a_feeder_survives_the_way_to_pandapower_and_back() -> None:
    feeder = load_feeder("synthetic33")
    twin = Feeder.from_pandapower(pandapower_net(feeder, feeder.load_kva))
    assert np.array_equal(twin.parent, feeder.parent)
    np.testing.assert_allclose(twin.impedance_ohm, feeder.impedance_ohm, rtol=1e-14)
    np.testing.assert_allclose(twin.load_kva, feeder.load_kva, rtol=1e-14)


def test_what_the_peers_cannot_describe_is_refused() -> None:
    with pytest.raises(ConfigError, match="untransposed lines, which pandapower cannot describe"):
        pandapower_net(untransposed_feeder(0, 5), np.zeros((5, 3), dtype=complex))
    impedance = np.zeros((2, 3, 3))
    impedance[1, 0, 0] = 1.0
    single = Feeder.from_arrays(parent=[-1, 0], impedance_ohm=impedance, line_to_line_kv=0.4, load_kva=np.zeros((2, 3)))
    with pytest.raises(ConfigError, match="absent phases, which power-grid-model's lines do not know"):
        power_grid_model_input(single)
