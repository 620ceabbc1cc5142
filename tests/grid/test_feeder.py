"""What a feeder holds, what it refuses, and that every way to read one gives the same feeder."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandapower
import pandapower.networks
import pytest

from evcs_gym.envs.data import build_ieee123
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid import SHIPPED_FEEDERS, Feeder, load_feeder, power_flow

VOLTAGES_123 = Path(__file__).parents[1] / "data" / "ieee123_opendss_voltages.csv"
Z = np.array([[0.4, 0.1, 0.1], [0.1, 0.4, 0.1], [0.1, 0.1, 0.4]]) * (1 + 1j)


def line_of(n_buses: int, **changes: Any) -> dict[str, Any]:
    """Arguments of a feeder whose buses follow each other; 30 kW per phase at each bus but the source."""
    impedance = np.zeros((n_buses, 3, 3), dtype=complex)
    impedance[1:] = Z
    load = np.full((n_buses, 3), 30 + 10j)
    load[0] = 0
    arguments = {
        "parent": np.arange(n_buses) - 1,
        "impedance_ohm": impedance,
        "line_to_line_kv": 12.66,
        "load_kva": load,
    }
    return {**arguments, **changes}


def changed(array: np.ndarray[Any, Any], index: Any, value: Any) -> np.ndarray[Any, Any]:
    result = array.copy()
    result[index] = value
    return result


def test_a_feeder_keeps_private_read_only_copies_and_names_its_buses() -> None:
    arguments = line_of(3)
    feeder = Feeder.from_arrays(**arguments)
    arguments["load_kva"][1] = 0
    assert feeder.load_kva[1, 0] == 30 + 10j
    assert feeder.bus_name == ("0", "1", "2")
    assert np.isinf(feeder.ampacity_a).all()
    assert len(feeder) == 3
    with pytest.raises(ValueError, match="read-only"):
        feeder.load_kva[1] = 0


def test_per_unit_by_hand() -> None:
    # 10 kV line to line: 10/sqrt3 kV per phase, 1 MVA per phase: 100/3 ohm and 173.2 A are 1 pu.
    feeder = Feeder.from_arrays(**line_of(2, line_to_line_kv=10.0))
    assert feeder.impedance_pu[1, 0, 0] == pytest.approx(0.4 * (1 + 1j) * 3 / 100)
    assert feeder.base_current_a == pytest.approx(100 * np.sqrt(3))


def test_sweep_order_puts_parents_first_although_numbers_do_not() -> None:
    feeder = Feeder.from_arrays(**line_of(4, parent=[-1, 3, 1, 0]))
    assert feeder.sweep_order.tolist() == [0, 3, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parent": [-1, 0, 7]}, r"bus '2' has parent 7, a bus that does not exist"),
        ({"parent": [-1, 0, -2]}, r"bus '2' has parent -2, a bus that does not exist"),
        ({"parent": [-1, 0, -1]}, r"bus '2' is not connected"),
        ({"parent": [-1, 2, 1]}, r"form a loop: 1 -> 2 -> 1"),
        ({"parent": [-1, 0, 2]}, r"form a loop: 2 -> 2"),
        ({"parent": [0, 0, 1]}, r"bus 0 is the source and must have parent -1"),
        ({"parent": [[-1, 0, 1]]}, r"parent must be a one-dimensional array"),
        ({"parent": [-1.0, 0.0, 1.0]}, r"parent must be .* integers"),
        ({"impedance_ohm": np.zeros((3, 3))}, r"impedance_ohm must have shape \(N, 3, 3\) = \(3, 3, 3\), got \(3, 3\)"),
        ({"impedance_ohm": "wire"}, r"impedance_ohm must be an array of numbers"),
        ({"load_kva": np.zeros((4, 3))}, r"load_kva must have shape \(N, 3\)"),
        ({"load_kva": changed(line_of(3)["load_kva"], (2, 1), np.nan)}, r"load_kva must be finite, got .* \(2, 1\)"),
        ({"load_kva": changed(line_of(3)["load_kva"], 0, 5)}, r"load at the source '0'"),
        ({"impedance_ohm": changed(line_of(3)["impedance_ohm"], 2, 0)}, r"branch to bus '2' has no impedance"),
        ({"impedance_ohm": changed(line_of(3)["impedance_ohm"], 0, Z)}, r"impedance_ohm\[0\] must be zero"),
        ({"impedance_ohm": -line_of(3)["impedance_ohm"]}, r"bus '1' has a negative resistance"),
        ({"impedance_ohm": changed(line_of(3)["impedance_ohm"], (2, 1, 1), 0)}, r"bus '2' couples phase b"),
        ({"ampacity_a": [np.inf, 100, 0]}, r"bus '2' must have a positive ampacity_a, got 0"),
        ({"ampacity_a": [np.inf, np.nan, 10]}, r"ampacity_a must be finite"),
        ({"line_to_line_kv": 0.0}, r"line_to_line_kv must be positive"),
        ({"line_to_line_kv": np.nan}, r"line_to_line_kv must be positive"),
        ({"bus_name": ["a", "b", "b"]}, r"3 different names, one per bus, got 3 of which 2 differ"),
    ],
)
def test_what_is_not_a_feeder_is_refused_with_the_bus(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Feeder.from_arrays(**line_of(3, **changes))


def test_a_load_on_an_absent_phase_and_a_phase_from_nowhere_are_refused() -> None:
    single = np.zeros((3, 3), dtype=complex)
    single[0, 0] = 0.5 + 0.5j
    impedance = changed(line_of(3)["impedance_ohm"], 2, single)
    with pytest.raises(DataError, match="bus '2' has a load on phase b, which is absent"):
        Feeder.from_arrays(**line_of(3, impedance_ohm=impedance))
    load = changed(line_of(3)["load_kva"], 2, [30, 0, 0])
    feeder = Feeder.from_arrays(**line_of(3, impedance_ohm=impedance, load_kva=load))
    assert feeder.phase_present.tolist() == [[True] * 3, [True] * 3, [True, False, False]]
    assert not feeder.has_all_phases
    backwards = changed(line_of(3)["impedance_ohm"], 1, single)
    with pytest.raises(DataError, match="bus '2' has phase b, which its parent '1' does not have"):
        Feeder.from_arrays(**line_of(3, impedance_ohm=backwards, load_kva=np.zeros((3, 3))))


@pytest.mark.parametrize("name", SHIPPED_FEEDERS[:2])
def test_shipped_feeders_have_33_buses_and_the_nominal_load_of_baran_and_wu(name: str) -> None:
    feeder = load_feeder(name)
    assert len(feeder) == 33
    assert feeder.line_to_line_kv == 12.66
    assert feeder.bus_name == tuple(str(i) for i in range(1, 34))
    assert feeder.load_kva.sum() == pytest.approx(3715 + 2300j)


def test_pickled_and_copied_feeders_compute_the_same_without_compiling_again() -> None:
    from evcs_gym.envs.grid.kernels import solve

    feeder = load_feeder("synthetic33")
    expected = power_flow(feeder, feeder.load_kva[None]).voltage_pu
    for twin in (pickle.loads(pickle.dumps(feeder)), copy.deepcopy(feeder), load_feeder("synthetic33")):
        assert np.array_equal(power_flow(twin, feeder.load_kva[None]).voltage_pu, expected)
    assert len(solve.signatures) == 1  # type: ignore[attr-defined]


def test_unknown_feeder_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no feeder 'synthetic3'.*did you mean 'synthetic33'"):
        load_feeder("synthetic3")


def write_tables(folder: Path, lines: str, loads: str) -> str:
    (folder / "mine_lines.csv").write_text("from,to,Rself_ohm,Xself_ohm,Rmut_ohm,Xmut_ohm\n" + lines)
    (folder / "mine_loads.csv").write_text("bus,Pa_kW,Pb_kW,Pc_kW,Qa_kvar,Qb_kvar,Qc_kvar,base_kV_LL\n" + loads)
    return str(folder / "mine")


LINES = "s,x,0.4,0.3,0.1,0.05\ny,x,0.4,0.3,0.1,0.05\n"
LOADS = "s,0,0,0,0,0,0,10\nx,1,2,3,4,5,6,10\ny,1,1,1,0,0,0,10\n"


def test_own_tables_are_read_in_any_direction(tmp_path: Path) -> None:
    feeder = load_feeder(write_tables(tmp_path, LINES, LOADS))
    assert feeder.bus_name == ("s", "x", "y")
    assert feeder.parent.tolist() == [-1, 0, 1]
    assert feeder.load_kva[1].tolist() == [1 + 4j, 2 + 5j, 3 + 6j]
    assert feeder.impedance_ohm[2, 0].tolist() == [0.4 + 0.3j, 0.1 + 0.05j, 0.1 + 0.05j]


@pytest.mark.parametrize(
    ("lines", "loads", "message"),
    [
        (LINES + "s,y,0.4,0.3,0,0\n", LOADS, r"mine_lines.csv: .* closes a loop"),
        (LINES + "y,z,0.4,0.3,0,0\n", LOADS, r"a branch names bus 'z', which does not exist"),
        ("s,x,0.4,0.3,0,0\n", LOADS, r"bus 'y' is not connected to the source 's'"),
        ("s,x,0.4,,0,0\n", LOADS, r"mine_lines.csv:2: Xself_ohm must be a finite number, got ''"),
        (LINES.replace("0.05", "nan"), LOADS, r"mine_lines.csv:2: Xmut_ohm must be a finite number, got 'nan'"),
        (LINES, LOADS + "y,0,0,0,0,0,0,10\n", r"mine_loads.csv: bus_name must hold 4 different names"),
        (LINES, "", r"mine_loads.csv: the table has no rows"),
        (LINES, LOADS.replace("6,10", "6,20"), r"mine_loads.csv: all buses must have one voltage level"),
    ],
)
def test_malformed_tables_are_refused_with_file_and_line(tmp_path: Path, lines: str, loads: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_feeder(write_tables(tmp_path, lines, loads))


def test_missing_table_and_column(tmp_path: Path) -> None:
    prefix = write_tables(tmp_path, LINES, LOADS)
    (tmp_path / "mine_lines.csv").write_text("from,to\n1,2\n")
    with pytest.raises(DataError, match="missing columns Rself_ohm, Xself_ohm"):
        load_feeder(prefix)
    (tmp_path / "mine_lines.csv").unlink()
    with pytest.raises(DataError, match="the table is missing; a feeder needs both"):
        load_feeder(prefix)


def test_case33bw_of_pandapower_equals_the_shipped_tables() -> None:
    ours, theirs = load_feeder("case33bw"), Feeder.from_pandapower(pandapower.networks.case33bw())
    assert np.array_equal(ours.parent, theirs.parent)
    np.testing.assert_allclose(theirs.impedance_ohm, ours.impedance_ohm, rtol=1e-15)
    np.testing.assert_allclose(theirs.load_kva, ours.load_kva, rtol=1e-14)
    assert np.array_equal(ours.ampacity_a, theirs.ampacity_a)
    assert ours.line_to_line_kv == theirs.line_to_line_kv


def small_net() -> Any:
    """The source at bus 3; lines 3-7 (2 km, two in parallel, zero sequence known) and 7-5; loads at 7 and 5."""
    net = pandapower.create_empty_network()
    for bus in (7, 3, 5):
        pandapower.create_bus(net, vn_kv=10.0, index=bus)
    pandapower.create_ext_grid(net, bus=3, vm_pu=1.02)
    own = {"r_ohm_per_km": 0.3, "x_ohm_per_km": 0.2, "c_nf_per_km": 0.0, "max_i_ka": 0.1}
    zero = {"r0_ohm_per_km": 0.9, "x0_ohm_per_km": 0.6, "c0_nf_per_km": 0.0}
    pandapower.create_line_from_parameters(net, 7, 3, length_km=2.0, parallel=2, **own, **zero)
    pandapower.create_line_from_parameters(net, 7, 5, length_km=1.0, **own)
    pandapower.create_load(net, 7, p_mw=0.3, q_mvar=0.15, scaling=0.5)
    pandapower.create_asymmetric_load(net, 5, p_a_mw=0.01, p_b_mw=0.02, p_c_mw=0.03, q_a_mvar=0.004)
    return net


def test_pandapower_lines_and_loads_by_hand() -> None:
    feeder = Feeder.from_pandapower(small_net())
    assert feeder.bus_name == ("3", "7", "5")
    assert feeder.parent.tolist() == [-1, 0, 1]
    # Z1 = .3+.2j, Z0 = 3 Z1 (two parallel lines of 2 km): self (Z0 + 2 Z1)/3 = 5/3 Z1, mutual 2/3 Z1.
    assert feeder.impedance_ohm[1, 0, :2] == pytest.approx(np.array([5 / 3, 2 / 3]) * (0.3 + 0.2j))
    # Without zero-sequence data the phases are uncoupled.
    assert feeder.impedance_ohm[2, 0, :2] == pytest.approx([0.3 + 0.2j, 0])
    assert feeder.load_kva[1] == pytest.approx([50 + 25j] * 3)
    assert feeder.load_kva[2] == pytest.approx([10 + 4j, 20, 30])
    assert feeder.ampacity_a.tolist() == pytest.approx([np.inf, 200.0, 100.0])


def test_pandapower_delta_loads_and_shares_by_hand() -> None:
    net = small_net()
    net.load["type"] = "delta"
    net.load["const_i_p_percent"] = net.load["const_i_q_percent"] = 30.0
    net.load["const_z_p_percent"] = net.load["const_z_q_percent"] = 20.0
    pandapower.create_asymmetric_load(net, 5, p_b_mw=0.06, q_b_mvar=0.03, type="delta")
    feeder = Feeder.from_pandapower(net)
    parts = feeder.equipment
    assert parts is not None
    assert parts.delta_kva[1] == pytest.approx([50 + 25j] * 3)
    assert parts.delta_share_frac[1] == pytest.approx(np.tile([0.5, 0.3, 0.2], (3, 1)))
    assert parts.delta_kva[2] == pytest.approx([0, 60 + 30j, 0])
    assert not feeder.load_kva[1].any()
    assert feeder.load_kva[2] == pytest.approx([10 + 4j, 20, 30])


def test_shares_that_differ_between_active_and_reactive_power_go_to_two_buses() -> None:
    net = small_net()
    net.load["const_z_p_percent"], net.load["const_z_q_percent"] = 20.0, 60.0
    feeder = Feeder.from_pandapower(net)
    parts = feeder.equipment
    assert feeder.bus_name == ("3", "7", "5", "7#2")
    assert feeder.parent.tolist() == [-1, 0, 1, 1]
    assert parts is not None
    # 50 + 25j per phase: constant power 40 + 10j, constant impedance 10 + 15j
    assert feeder.load_kva[[1, 3], 0] == pytest.approx([40 + 10j, 10 + 15j])
    assert parts.share_frac[[1, 3], 0].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert abs(feeder.impedance_ohm[3]).max() <= 1e-6


def test_open_and_out_of_service_elements_do_not_count() -> None:
    net = small_net()
    loop = pandapower.create_line_from_parameters(
        net, 3, 5, length_km=1.0, r_ohm_per_km=1.0, x_ohm_per_km=1.0, c_nf_per_km=0.0, max_i_ka=1.0
    )
    with pytest.raises(DataError, match="closes a loop"):
        Feeder.from_pandapower(net)
    pandapower.create_switch(net, bus=3, element=loop, et="l", closed=False)
    pandapower.create_sgen(net, 5, p_mw=1.0, in_service=False)
    pandapower.create_load(net, 5, p_mw=1.0, in_service=False)
    feeder = Feeder.from_pandapower(net)
    assert feeder.parent.tolist() == [-1, 0, 1]
    assert feeder.load_kva.real.sum() == pytest.approx(210.0)


def add_transformer(net: Any) -> None:
    low = pandapower.create_bus(net, vn_kv=0.4)
    pandapower.create_transformer(net, 5, low, std_type="0.4 MVA 10/0.4 kV")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (add_transformer, ConfigError, r"pfe_kw must be 0"),
        (lambda net: pandapower.create_sgen(net, 5, p_mw=0.1), ConfigError, r"net.sgen are in service"),
        (
            lambda net: pandapower.create_storage(net, 5, p_mw=0.1, max_e_mwh=1),
            ConfigError,
            r"net.storage are in service",
        ),
        (lambda net: pandapower.create_ext_grid(net, 5), ConfigError, r"one external grid .* got 2"),
        (lambda net: net.ext_grid.drop(0, inplace=True), ConfigError, r"one external grid .* got 0"),
        (lambda net: net.ext_grid.__setitem__("bus", 99), DataError, r"external grid is at bus 99, which does not"),
        (lambda net: pandapower.create_switch(net, 7, 5, et="b"), ConfigError, r"closed and of type 'b'"),
        (lambda net: net.line.__setitem__("c_nf_per_km", 10.0), ConfigError, r"c_nf_per_km is not zero"),
        (lambda net: net.line.__setitem__("to_bus", 99), DataError, r"line 0 ends at bus 99, which does not exist"),
        (lambda net: net.load.__setitem__("bus", 99), DataError, r"net.load 0 is at bus 99, which does not exist"),
        (
            lambda net: net.asymmetric_load.__setitem__("type", "star"),
            ConfigError,
            r"net.asymmetric_load 0 has type 'star'; the connection must be 'wye' or 'delta'",
        ),
        (
            lambda net: net.load.__setitem__("const_z_p_percent", 105.0),
            DataError,
            r"net.load 0: const_z and const_i of its p must lie in \[0, 100\] .* got 105.0 and 0.0",
        ),
        (lambda net: net.line.__setitem__("r_ohm_per_km", np.nan), DataError, r"impedance_ohm must be finite"),
        (lambda net: net.line.__setitem__("in_service", False), DataError, r"bus '7' is not connected"),
        (
            lambda net: net.bus.__setitem__("vn_kv", [10.0, 10.0, 20.0]),
            DataError,
            r"joins 10\.0 kV and 20\.0 kV|joins 20\.0 kV and 10\.0 kV",
        ),
    ],
)
def test_pandapower_networks_beyond_the_model_are_refused(spoil: Any, error: type[Exception], message: str) -> None:
    net = small_net()
    spoil(net)
    with pytest.raises(error, match=message):
        Feeder.from_pandapower(net)


def test_pandapower_transformers_that_lead_nowhere_are_refused() -> None:
    net = pandapower.create_empty_network()
    high, low = pandapower.create_bus(net, vn_kv=10.0), pandapower.create_bus(net, vn_kv=0.4)
    values = {"sn_mva": 0.4, "vn_hv_kv": 10.0, "vn_lv_kv": 0.4, "vk_percent": 4.0, "vkr_percent": 1.0}
    values |= {"pfe_kw": 0.0, "i0_percent": 0.0, "shift_degree": 150.0}
    pandapower.create_transformer_from_parameters(net, high, low, vector_group="Dyn", **values)
    pandapower.create_ext_grid(net, low)
    with pytest.raises(ConfigError, match="must have its low side towards the loads"):
        Feeder.from_pandapower(net)
    net.trafo.loc[0, "hv_bus"] = 99
    with pytest.raises(DataError, match=r"net\.trafo 0 ends at bus 99"):
        Feeder.from_pandapower(net)


PUBLISHED_13 = """
rg60 1.0625 0.00 1.0500 -120.00 1.0687 120.00
632 1.0210 -2.49 1.0420 -121.72 1.0174 117.83
633 1.0180 -2.56 1.0401 -121.77 1.0148 117.82
634 0.9940 -3.23 1.0218 -122.22 0.9960 117.34
645 nan nan 1.0329 -121.90 1.0155 117.86
646 nan nan 1.0311 -121.98 1.0134 117.90
671 0.9900 -5.30 1.0529 -122.34 0.9778 116.02
675 0.9835 -5.56 1.0553 -122.52 0.9758 116.03
680 0.9900 -5.30 1.0529 -122.34 0.9778 116.02
684 0.9881 -5.32 nan nan 0.9758 115.92
611 nan nan nan nan 0.9738 115.78
652 0.9825 -5.25 nan nan nan nan
"""
"""Voltages [pu, degree] of the feeder's published solution, as copied in saveriob/1ACPF and others on GitHub."""


def test_the_shipped_13_bus_feeder_has_the_published_voltages() -> None:
    """Tolerances are for the load along line 632-671, at one node here; the substation lags by 30 degrees."""
    feeder = load_feeder("ieee13")
    voltage = power_flow(feeder, feeder.load_kva[None]).voltage_pu[0] * np.exp(1j * np.pi / 6)
    for line in PUBLISHED_13.strip().splitlines():
        name, *numbers = line.split()
        published = np.array(numbers, dtype=np.float64).reshape(3, 2)
        ours = voltage[feeder.bus_name.index(name)]
        assert np.array_equal(ours != 0, np.isfinite(published[:, 0]))
        there = ours != 0
        np.testing.assert_allclose(np.abs(ours[there]), published[there, 0], rtol=0, atol=2e-3)
        np.testing.assert_allclose(np.degrees(np.angle(ours[there])), published[there, 1], rtol=0, atol=0.1)


def test_the_shipped_123_bus_feeder_has_the_voltages_that_opendss_computes() -> None:
    """Stored results of OpenDSS (dss_python 0.15.7) on the deck of tests/ieee_decks.py, nine decimals."""
    feeder = load_feeder("ieee123")
    voltage = np.abs(power_flow(feeder, feeder.load_kva[None], tolerance_pu=1e-12).voltage_pu[0])
    rows = [line.split(",") for line in VOLTAGES_123.read_text(encoding="utf-8").splitlines()[1:]]
    assert [row[0] for row in rows] == list(feeder.bus_name[1:])
    np.testing.assert_allclose(voltage[1:], np.array([row[1:] for row in rows], dtype=np.float64), rtol=0, atol=1e-7)


def test_the_123_bus_feeder_is_what_its_tables_say(tmp_path: Path) -> None:
    build_ieee123.main([str(tmp_path)])
    shipped = Path(build_ieee123.__file__).with_name("feeder_ieee123.json")
    assert (tmp_path / "feeder_ieee123.json").read_text(encoding="utf-8") == shipped.read_text(encoding="utf-8")
    feeder = load_feeder("ieee123")
    assert feeder.phase_present.sum() == 277  # with the three of the ideal source
    # a mile of configuration 1 has 0.4576 ohm in phase a; 149-1 is 400 ft of it
    assert feeder.impedance_ohm[feeder.bus_name.index("1"), 0, 0].real == pytest.approx(0.4576 * 400 / 5280)


def test_the_tables_of_the_123_bus_feeder_have_the_published_totals() -> None:
    """1420 + j775, 915 + j515 and 1155 + j630 kVA by phase; delta loads count for their first phase."""
    folder = Path(build_ieee123.__file__).parent
    rows = [line.split(",")[3:] for line in (folder / "ieee123_loads.csv").read_text().splitlines()[1:]]
    assert np.array(rows, dtype=np.float64).sum(axis=0).tolist() == [1420, 775, 915, 515, 1155, 630]


def test_single_phase_laterals_of_the_123_bus_feeder_in_a_batch() -> None:
    feeder = load_feeder("ieee123")
    loads = feeder.load_kva * np.random.default_rng(0).uniform(0.3, 1.2, (20, len(feeder), 3))
    together = power_flow(feeder, loads)
    assert together.converged.all()
    for case in (0, 7, 19):
        assert np.array_equal(power_flow(feeder, loads[case : case + 1]).voltage_pu[0], together.voltage_pu[case])
    stray = loads.copy()
    stray[3, feeder.bus_name.index("114"), 2] = 5.0
    with pytest.raises(DataError, match="load at bus '114', phase c, which is absent there"):
        power_flow(feeder, stray)


@pytest.mark.parametrize("name", SHIPPED_FEEDERS)
def test_a_feeder_survives_its_file(name: str, tmp_path: Path) -> None:
    feeder = load_feeder(name)
    feeder.save(tmp_path / "mine.json", "a test")
    twin = load_feeder(tmp_path / "mine.json")
    ours, theirs = (power_flow(f, f.load_kva[None], tolerance_pu=1e-12).voltage_pu for f in (feeder, twin))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)
    assert twin.bus_name == feeder.bus_name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a feeder file holds name, line_to_line_kv and buses"),
        ('{"name": "x", "buses": []}', "KeyError: 'line_to_line_kv'"),
        ('{"name": "x", "line_to_line_kv": 1, "buses": [{"name": "0", "volts": 1}]}', "unknown key 'volts'"),
        (
            '{"name": "x", "line_to_line_kv": 1, "buses": [{"name": "0"}, {"name": "1", "parent": "7"}]}',
            "bus '1' must have a parent among the buses, got '7'",
        ),
        (
            '{"name": "x", "line_to_line_kv": 1, "buses": [{"name": "0", "load_kva": [1]}]}',
            r"load_kva must have shape \(3, 2\), got \(1,\)",
        ),
        (
            '{"name": "x", "line_to_line_kv": 1, "buses": [{"name": "0", "load_kva": "much"}]}',
            "load_kva must hold numbers",
        ),
    ],
)
def test_malformed_feeder_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        load_feeder(file)
