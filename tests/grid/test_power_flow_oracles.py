"""The power flow against programs that other people wrote: power-grid-model and pandapower's runpp_3ph."""

from typing import Any

import numpy as np
import pandapower
import pandapower.networks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from power_grid_model import CalculationMethod, PowerGridModel, initialize_array

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid import Feeder, load_feeder, power_flow
from evcs_gym.envs.grid.equipment import Equipment, capacitor_siemens
from evcs_gym.envs.types import ComplexArray
from evcs_gym.evaluation.speed import power_grid_model_input, power_grid_model_update


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
    net = feeder.to_pandapower(source_pu=1.02)
    pandapower.runpp_3ph(net, tolerance_mva=1e-10)
    result = net.res_bus_3ph
    theirs = np.stack([result[f"vm_{p}_pu"] * np.exp(1j * np.radians(result[f"va_{p}_degree"])) for p in "abc"], axis=1)
    ours = power_flow(feeder, feeder.load_kva[None], source_pu=1.02).voltage_pu[0]
    # runpp_3ph stops on the power mismatch; 1.7e-8 pu is what that leaves at nominal load.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-8)


def test_a_feeder_survives_the_way_to_pandapower_and_back() -> None:
    feeder = load_feeder("synthetic33")
    twin = Feeder.from_pandapower(feeder.to_pandapower())
    assert np.array_equal(twin.parent, feeder.parent)
    np.testing.assert_allclose(twin.impedance_ohm, feeder.impedance_ohm, rtol=1e-14)
    np.testing.assert_allclose(twin.load_kva, feeder.load_kva, rtol=1e-14)


def test_what_the_peers_cannot_describe_is_refused() -> None:
    with pytest.raises(ConfigError, match="bus '1' is fed by an untransposed line, which pandapower cannot describe"):
        untransposed_feeder(0, 5).to_pandapower()
    impedance = np.zeros((2, 3, 3))
    impedance[1, 0, 0] = 1.0
    single = Feeder.from_arrays(parent=[-1, 0], impedance_ohm=impedance, line_to_line_kv=0.4, load_kva=np.zeros((2, 3)))
    with pytest.raises(ConfigError, match="absent phases, which power-grid-model's lines do not know"):
        power_grid_model_input(single)


def dyn_net(**changes: Any) -> Any:
    """20 kV, a Dyn transformer, a 0.4 kV line with unbalanced load, and a capacitor."""
    net = pandapower.create_empty_network()
    high, low, end = (pandapower.create_bus(net, vn_kv=kv) for kv in (20.0, 0.4, 0.4))
    pandapower.create_ext_grid(net, high, s_sc_max_mva=1e12, rx_max=0.1, x0x_max=1.0, r0x0_max=0.1, vm_pu=1.01)
    values: dict[str, Any] = {"sn_mva": 0.4, "vn_hv_kv": 20.0, "vn_lv_kv": 0.4, "vk_percent": 6.0, "vkr_percent": 1.4}
    values |= {"vk0_percent": 5.0, "vkr0_percent": 1.2, "pfe_kw": 0.0, "i0_percent": 0.0, "shift_degree": 150.0}
    values |= {"mag0_percent": 100.0, "mag0_rx": 0.0, "si0_hv_partial": 0.9, "vector_group": "Dyn"}
    values |= {"tap_side": "hv", "tap_neutral": 0, "tap_pos": 1, "tap_step_percent": 2.5, "tap_min": -2, "tap_max": 2}
    values |= {"tap_changer_type": "Ratio"}
    pandapower.create_transformer_from_parameters(net, high, low, **(values | changes))
    line = {"r_ohm_per_km": 0.2, "x_ohm_per_km": 0.08, "r0_ohm_per_km": 0.8, "x0_ohm_per_km": 0.32}
    pandapower.create_line_from_parameters(net, low, end, 0.2, c_nf_per_km=0, c0_nf_per_km=0, max_i_ka=1, **line)
    power = {"p_a_mw": 0.04, "p_b_mw": 0.02, "p_c_mw": 0.01, "q_a_mvar": 0.01, "q_b_mvar": 0.01, "q_c_mvar": 0.0}
    pandapower.create_asymmetric_load(net, end, **power)
    return net


def test_pandapower_agrees_on_a_dyn_transformer_with_a_tap() -> None:
    net = dyn_net()
    pandapower.runpp_3ph(net, tolerance_mva=1e-10)
    result = net.res_bus_3ph
    theirs = np.stack([result[f"vm_{p}_pu"].to_numpy() for p in "abc"], axis=1)
    feeder = Feeder.from_pandapower(net)
    ours = power_flow(feeder, feeder.load_kva[None], source_pu=1.01, tolerance_pu=1e-13).voltage_pu[0]
    np.testing.assert_allclose(np.abs(ours), theirs, rtol=0, atol=1e-6)


def test_power_grid_model_agrees_on_a_dyn_transformer_with_phase_shift() -> None:
    """Clock 5, equal short-circuit impedances of all sequences, as power-grid-model assumes."""
    feeder = Feeder.from_pandapower(dyn_net(vk0_percent=6.0, vkr0_percent=1.4, mag0_percent=1e9, tap_pos=0))
    plain = Feeder.from_arrays(
        parent=feeder.parent,
        impedance_ohm=feeder.impedance_ohm,
        line_to_line_kv=0.4,
        load_kva=feeder.load_kva,
    )
    given = power_grid_model_input(plain, 1.01)
    given["node"]["u_rated"][0] = 20e3
    given["asym_line"] = given["asym_line"][1:]
    transformer = initialize_array("input", "transformer", 1)
    values: dict[str, Any] = {"id": 99, "from_node": 0, "to_node": 1, "from_status": 1, "to_status": 1}
    values |= {"u1": 20e3, "u2": 400.0, "sn": 400e3, "uk": 0.06, "pk": 0.014 * 400e3, "i0": 0.0, "p0": 0.0}
    values |= {"winding_from": 2, "winding_to": 1, "clock": 5}
    values |= {"tap_side": 0, "tap_pos": 0, "tap_min": -1, "tap_max": 1, "tap_nom": 0, "tap_size": 0.0}
    for key, value in values.items():
        transformer[key] = value
    given["transformer"] = transformer
    node = PowerGridModel(given).calculate_power_flow(symmetric=False, error_tolerance=1e-12)["node"]
    ours = power_flow(feeder, feeder.load_kva[None], source_pu=1.01, tolerance_pu=1e-13).voltage_pu[0]
    np.testing.assert_allclose(ours, node["u_pu"] * np.exp(1j * node["u_angle"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vector_group": "YNyn"}, "vector group 'YNyn'; only Dyn"),
        ({"pfe_kw": 1.0}, "pfe_kw must be 0"),
        ({"tap_side": "lv"}, "only taps on the high side"),
        ({"si0_hv_partial": 2.0}, r"si0_hv_partial in \[0, 1\]"),
        ({"vkr0_percent": 9.0}, r"vkr0_percent must lie in \[0, vk0_percent\]"),
    ],
)
def test_transformers_that_are_not_modelled_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        Feeder.from_pandapower(dyn_net(**changes))


def test_a_shunt_of_pandapower_is_a_capacitor() -> None:
    net = load_feeder("synthetic33").to_pandapower()
    pandapower.create_shunt(net, 17, q_mvar=-0.3, p_mw=0.0)
    pandapower.runpp_3ph(net, tolerance_mva=1e-10)
    theirs = np.stack([net.res_bus_3ph[f"vm_{p}_pu"].to_numpy() for p in "abc"], axis=1)
    feeder = Feeder.from_pandapower(net)
    ours = power_flow(feeder, feeder.load_kva[None], tolerance_pu=1e-13).voltage_pu[0]
    np.testing.assert_allclose(np.abs(ours), theirs, rtol=0, atol=1e-6)
    net.shunt.loc[0, "bus"] = 99
    with pytest.raises(DataError, match=r"net\.shunt 0 is at bus 99"):
        Feeder.from_pandapower(net)


def test_transformers_are_not_written_to_pandapower() -> None:
    feeder = Feeder.from_pandapower(dyn_net())
    with pytest.raises(ConfigError, match="bus '1' is fed by a transformer or a regulator"):
        feeder.to_pandapower()


def changed_default(**equipment: Any) -> Feeder:
    """The unbalanced default with equipment."""
    plain = load_feeder("synthetic33")
    return Feeder.from_arrays(
        parent=plain.parent,
        impedance_ohm=plain.impedance_ohm,
        line_to_line_kv=plain.line_to_line_kv,
        load_kva=plain.load_kva,
        equipment=Equipment.of(33, plain.line_to_line_kv, **equipment),
    )


def delta_and_capacitors() -> Feeder:
    delta, shunt = np.zeros((33, 3), dtype=np.complex128), np.zeros((33, 3, 3), dtype=np.complex128)
    delta[[5, 17, 30]] = [[50 + 20j, 0, 90], [0, 60 + 60j, 0], [40, 40, -30 + 10j]]
    shunt[29] = capacitor_siemens(200.0, 12.66)
    return changed_default(delta_kva=delta, shunt_siemens=shunt)


def test_pandapower_agrees_on_delta_loads() -> None:
    feeder = delta_and_capacitors()
    net = feeder.to_pandapower(source_pu=1.01)
    pandapower.runpp_3ph(net, tolerance_mva=1e-10)
    theirs = np.stack([net.res_bus_3ph[f"vm_{p}_pu"].to_numpy() for p in "abc"], axis=1)
    ours = power_flow(feeder, feeder.load_kva[None], source_pu=1.01).voltage_pu[0]
    np.testing.assert_allclose(np.abs(ours), theirs, rtol=0, atol=5e-8)


def test_pandapower_agrees_on_the_european_low_voltage_feeder() -> None:
    """906 buses, 55 loads on single phases, behind a Dyn transformer; the source made ideal, as ours is.

    Measured 1.6e-6 pu apart; runpp_3ph stops at a mismatch of 3e-8 MVA, whatever tolerance it is given.
    """
    net = pandapower.networks.ieee_european_lv_asymmetric("on_peak_566")
    net.ext_grid["s_sc_max_mva"] = 1e12
    pandapower.runpp_3ph(net, tolerance_mva=1e-10)
    feeder = Feeder.from_pandapower(net)
    assert len(feeder) == 907
    theirs = net.res_bus_3ph.loc[[int(bus) for bus in feeder.bus_name], [f"vm_{p}_pu" for p in "abc"]].to_numpy()
    ours = power_flow(feeder, feeder.load_kva[None], source_pu=1.05).voltage_pu[0]
    np.testing.assert_allclose(np.abs(ours), theirs, rtol=0, atol=2e-6)


def test_pandapower_agrees_on_loads_that_depend_on_voltage() -> None:
    """Its balanced power flow, since runpp_3ph ignores the shares: even loads in wye and delta."""
    net = load_feeder("case33bw").to_pandapower()
    net.asymmetric_load.drop(net.asymmetric_load.index[1:], inplace=True)
    for bus, connection in ((7, "wye"), (17, "delta"), (24, "wye"), (32, "delta")):
        shares = {"const_z_p_percent": 20.0, "const_i_p_percent": 3.0 * (bus % 10), "const_z_q_percent": 70.0}
        pandapower.create_load(net, bus, p_mw=0.8, q_mvar=0.5, type=connection, **shares)
    pandapower.runpp(net, tolerance_mva=1e-10, voltage_depend_loads=True)
    feeder = Feeder.from_pandapower(net)
    ours = np.abs(power_flow(feeder, feeder.load_kva[None]).voltage_pu[0, :33])
    np.testing.assert_allclose(ours, np.tile(net.res_bus.vm_pu.to_numpy()[:, None], 3), rtol=0, atol=1e-8)


def test_delta_loads_shares_and_capacitors_survive_the_way_to_pandapower_and_back() -> None:
    shares = np.tile([1.0, 0.0, 0.0], (33, 3, 1))
    shares[32] = [0.2, 0.5, 0.3]
    even = load_feeder("case33bw")
    parts = Equipment.of(33, 12.66, delta_kva=even.load_kva / 3, share_frac=shares, delta_share_frac=shares)
    mixed = Feeder.from_arrays(
        parent=even.parent,
        impedance_ohm=even.impedance_ohm,
        line_to_line_kv=12.66,
        load_kva=even.load_kva,
        equipment=parts,
    )
    for feeder in (delta_and_capacitors(), mixed):
        twin = Feeder.from_pandapower(feeder.to_pandapower())
        ours, theirs = feeder.equipment, twin.equipment
        assert ours is not None
        assert theirs is not None
        np.testing.assert_allclose(twin.load_kva, feeder.load_kva, rtol=1e-14)
        for key in ("delta_kva", "shunt_siemens", "share_frac", "delta_share_frac"):
            np.testing.assert_allclose(getattr(theirs, key), getattr(ours, key), rtol=1e-13, atol=1e-15)


def test_what_pandapower_has_no_words_for_is_refused() -> None:
    share, shunt = np.tile([1.0, 0.0, 0.0], (33, 3, 1)), np.zeros((33, 3, 3), dtype=np.complex128)
    share[4, 1] = [0.0, 1.0, 0.0]
    with pytest.raises(ConfigError, match="the loads at bus '4' depend on voltage and differ between phases"):
        changed_default(share_frac=share).to_pandapower()
    shunt[6, 0, 0] = 1e-3j
    with pytest.raises(ConfigError, match="bus '6' has a shunt that differs between phases"):
        changed_default(shunt_siemens=shunt).to_pandapower()
    with pytest.raises(ConfigError, match="bus '3' has a nominal voltage of its own"):
        changed_default(bus_kv=np.where(np.arange(33) == 3, 0.4, 12.66)).to_pandapower()
