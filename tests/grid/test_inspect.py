"""What a feeder's check says, and the drawing of its voltages."""

import numpy as np
import pytest

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid import Feeder, load_feeder, power_flow
from evcs_gym.envs.grid.equipment import Equipment
from evcs_gym.envs.types import ComplexArray


def changed(impedance_factor: float = 1.0, load: ComplexArray | float = 1.0, ampacity_a: float = np.inf) -> Feeder:
    plain = load_feeder("synthetic33")
    return Feeder.from_arrays(
        parent=plain.parent,
        impedance_ohm=plain.impedance_ohm * impedance_factor,
        line_to_line_kv=plain.line_to_line_kv,
        load_kva=plain.load_kva * load,
        ampacity_a=np.full(33, ampacity_a),
        bus_name=plain.bus_name,
    )


def test_a_good_feeder_has_no_complaints() -> None:
    assert load_feeder("synthetic33").check(vmin_pu=0.90) == []


def test_base_case_violations_are_listed_with_the_worst_bus() -> None:
    low = load_feeder("case33bw").check(vmin_pu=0.95)
    assert len(low) == 1
    assert low[0].startswith("at nominal load 63 bus-phases are below 0.95 pu; the worst is bus '18'")
    assert low[0].endswith("at 0.9131 pu")
    assert "above 0.99 pu" in load_feeder("case33bw").check(vmin_pu=0.9, vmax_pu=0.99)[0]
    assert "bus '2' carries 2" in changed(ampacity_a=100.0).check(vmin_pu=0.9)[0]


def test_unbalance_is_listed() -> None:
    on_one_phase = np.array([2.0, 0.2, 0.2])
    assert any("voltage unbalance at bus" in line for line in changed(load=on_one_phase + 0j).check())


def test_wrong_units_are_suspected_at_the_branch() -> None:
    in_milliohm = changed(impedance_factor=1000.0).check()
    assert in_milliohm[0].startswith("the branch to bus '2' would drop")
    assert in_milliohm[-1].startswith("the nominal loads have no power flow")
    assert "are the impedances in ohm, not in per unit?" in changed(impedance_factor=1e-5).check()[0]
    assert changed(load=0.0).check() == ["there is no load at all"]


def test_everything_that_is_wrong_is_listed_at_once() -> None:
    line, zero = (0.3 + 0.3j) * np.eye(3), np.zeros((3, 3))
    impedance = np.stack([zero, line, line * [1, 0, 0], zero, -line])
    load = np.zeros((5, 3))
    load[0, 0], load[2, 1:] = 5.0, 3.0
    arrays = {"impedance_ohm": impedance, "line_to_line_kv": 10.0, "load_kva": load, "name": "mine"}
    found = Feeder.check_arrays(parent=[-1, 0, 1, 1, 2], **arrays)
    assert [line.removeprefix("feeder 'mine': ").split(";")[0] for line in found] == [
        "the branch to bus '3' has no impedance on the diagonal",
        "the branch to bus '4' has a negative resistance: [-0.3 -0.3 -0.3] ohm",
        "the branch to bus '4' has phase b, which its parent '2' does not have",
        "a load at the source '0' meets no impedance and would never be seen",
        "bus '2' has a load on phase b, which is absent",
        "bus '2' has a load on phase c, which is absent",
    ]
    with pytest.raises(DataError) as refused:
        Feeder.from_arrays(parent=[-1, 0, 1, 1, 2], **arrays)
    assert str(refused.value).splitlines() == found
    lost = Feeder.check_arrays(parent=[-1, 0, 9, -1, 4], **arrays)
    assert [line.removeprefix("feeder 'mine': ") for line in lost] == [
        "bus '2' has parent 9, a bus that does not exist; buses are 0..4",
        "bus '3' is not connected: its parent is -1; only bus 0 has none",
        "the feeder must be a tree, but the parents form a loop: 4 -> 4",
    ]
    assert Feeder.check_arrays(parent=[[0]], **arrays)[0].startswith("feeder 'mine': parent must be a one-dimensional")


def test_a_long_list_is_cut_and_counted() -> None:
    arrays = {"impedance_ohm": np.zeros((30, 3, 3)), "line_to_line_kv": 10.0, "load_kva": np.zeros((30, 3))}
    found = Feeder.check_arrays(parent=np.arange(30) - 1, **arrays)
    assert len(found) == 21
    assert found[-1] == "feeder 'feeder': and 9 more"


def test_arrays_without_defects_are_checked_like_a_feeder() -> None:
    plain = load_feeder("synthetic33")
    arrays = {key: getattr(plain, key) for key in ("parent", "impedance_ohm", "line_to_line_kv", "load_kva")}
    assert Feeder.check_arrays(0.9, **arrays) == []
    assert Feeder.check_arrays(**arrays) == Feeder.from_arrays(**arrays).check() != []


def test_a_wrong_voltage_level_is_named_where_it_begins() -> None:
    """10 kV come through a wye-wye transformer to 0.4 kV, but the transfer was written for 0.23 kV."""
    transfer = np.tile(np.eye(3), (4, 1, 1))
    transfer[2] *= 0.23 / 0.4
    parts = Equipment.of(4, 10.0, transfer=transfer, bus_kv=[10.0, 10.0, 0.4, 0.4])
    impedance = np.tile(np.eye(3) * (0.1 + 0.1j), (4, 1, 1))
    impedance[0] = 0.0
    load = np.zeros((4, 3))
    load[3] = 0.5
    chain = {"parent": [-1, 0, 1, 2], "impedance_ohm": impedance, "line_to_line_kv": 10.0, "load_kva": load}
    found = Feeder.check_arrays(0.1, 2.0, equipment=parts, **chain)
    assert found == [
        "without load bus '2' has 0.575 pu of its nominal 0.4 kV: does the ratio of its transformer or regulator fit "
        "the voltages at both ends?"
    ]


def test_a_branch_that_generates_is_named() -> None:
    plain = load_feeder("synthetic33")
    impedance = plain.impedance_ohm.copy()
    own, mutual = impedance[7, 0, 0], impedance[7, 0, 1]
    impedance[7] = np.where(np.eye(3) == 1, mutual, own)  # mutual and self impedance confused
    found = Feeder.check_arrays(
        0.9, parent=plain.parent, impedance_ohm=impedance, line_to_line_kv=12.66, load_kva=plain.load_kva
    )
    assert len(found) == 1
    assert found[0].startswith("the branch to bus '7' generates power for some currents")


def test_the_published_feeders_have_plausible_units_and_levels() -> None:
    assert load_feeder("ieee123").check() == []
    above, unbalance = load_feeder("ieee13").check()
    assert above.endswith("the worst is bus 'rg60', phase c, at 1.0685 pu")
    assert unbalance == "at nominal load the voltage unbalance at bus '675' is 2.05%"


def test_the_drawing_has_every_bus_of_every_phase() -> None:
    feeder = load_feeder("synthetic33")
    flow = power_flow(feeder, feeder.load_kva[None])
    axes = feeder.plot(flow).axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [33, 33, 33]
    np.testing.assert_allclose(dots[1].get_ydata(), np.abs(flow.voltage_pu[0, :, 1]))
    assert max(dots[0].get_xdata()) == pytest.approx(np.abs(feeder.impedance_ohm[1:18, 0, 0]).sum())


def test_a_drawing_of_another_flow_is_refused() -> None:
    feeder = load_feeder("synthetic33")
    flow = power_flow(feeder, feeder.load_kva[None])
    with pytest.raises(ConfigError, match="got 33 buses and case 1 of 1"):
        feeder.plot(flow, case=1)
    collapsed = power_flow(feeder, 50 * feeder.load_kva[None])
    with pytest.raises(ConfigError, match="case 0 did not converge"):
        feeder.plot(collapsed)
