"""What a feeder's check says, and the drawing of its voltages."""

import numpy as np
import pytest

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.grid import Feeder, load_feeder, power_flow
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
