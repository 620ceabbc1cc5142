"""Loads of several kinds on one bus, and a network behind an ungrounded winding against its nodal equations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.grid import Feeder, opendss, power_flow
from evcs_gym.envs.grid.network import IMPEDANCE, LoadTable, Network, with_loads
from evcs_gym.envs.types import ComplexArray

ANGLES = np.exp(-2j * np.pi / 3 * np.arange(3))
HIGH_KV, LOW_KV = 4.16, 0.48


def two_buses() -> Network:
    network = Network.of("two", ["head", "end"], np.full(2, HIGH_KV), [(0, 1)], "two")
    network.impedance_ohm[1] = np.eye(3) * (0.3 + 0.6j)
    return network


def test_loads_of_one_power_factor_share_a_bus_and_others_get_one_of_their_own() -> None:
    loads = LoadTable()
    loads.add(1, "wye", 0, np.array([40 + 10j, 20 + 5j, 0]))
    loads.add(1, "wye", 1, np.array([0, 30, 0]))
    loads.add(1, "wye", 1, np.array([10 + 10j, 0, 0]))
    feeder = Feeder.from_arrays(**with_loads(two_buses(), loads))
    parts = feeder.equipment
    assert feeder.bus_name == ("head", "end", "end#2")
    assert parts is not None
    assert feeder.load_kva[1].tolist() == [60 + 15j, 10 + 10j, 0]
    assert feeder.load_kva[2].tolist() == [0, 30, 0]
    assert parts.share_frac[1, 0] == pytest.approx([2 / 3, 1 / 3, 0])
    assert parts.share_frac[2, 1].tolist() == [0, 1, 0]


def test_constant_power_alone_needs_no_equipment() -> None:
    loads = LoadTable()
    loads.add(1, "wye", 2, np.array([40 + 10j, 0, 0]))
    assert with_loads(two_buses(), loads)["equipment"] is None


PART = st.sampled_from([0.0, 12.0, -7.0, 30.0])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.builds(complex, PART, PART), min_size=3, max_size=3))
def test_the_parts_of_a_load_make_the_load_again(kva: list[complex]) -> None:
    """Kind by kind, at any voltage: what the buses of a load draw together is what the load draws."""
    loads = LoadTable()
    loads.add(1, "wye", 0, np.array(kva))
    found = with_loads(two_buses(), loads)
    share = np.tile([1.0, 0.0, 0.0], (len(found["load_kva"]), 3, 1))
    if found["equipment"] is not None:
        share = found["equipment"].share_frac
    again = (found["load_kva"][:, 0, None] * share[:, 0]).sum(axis=0)
    np.testing.assert_allclose(again, kva, rtol=0, atol=1e-7)


def delta_delta() -> ComplexArray:
    """(6, 6) [S] of 500 kVA, 4.16/0.48 kV, 1 + j4 %, with a leakage of a millionth of its rating at each end."""
    y = 0.5 / 3 / (0.01 + 0.04j)
    block = np.zeros((6, 6), dtype=np.complex128)
    for phase in range(3):
        winding = np.zeros(6)
        winding[[phase, (phase + 1) % 3]] = [1 / HIGH_KV, -1 / HIGH_KV]
        winding[[3 + phase, 3 + (phase + 1) % 3]] = [-1 / LOW_KV, 1 / LOW_KV]
        block += y * np.outer(winding, winding)
    kv = np.repeat([HIGH_KV, LOW_KV], 3)
    return block + np.diag(-0.5e-6j / kv**2)


def cable() -> ComplexArray:
    """(6, 6) [S] of a line with charging currents that differ between its phases."""
    series = np.linalg.inv(np.array([[0.02, 0.003, 0.003], [0.003, 0.02, 0.003], [0.003, 0.003, 0.02]]) * (1 + 1j))
    charging = np.diag([3e-5j, 2e-5j, 4e-5j])
    return np.block([[series + charging, -series], [-series, series + charging]])


def circuit(load_kva: complex, connection: str) -> opendss.CircuitParts:
    """Source, 4.16 kV bus, delta-delta transformer, cable; a constant impedance between phases a and b at its end."""
    parts = opendss.CircuitParts()
    parts.source = ("high", np.eye(3) * (0.01 + 0.05j), HIGH_KV)
    parts.series = {("high", "low"): delta_delta(), ("end", "low"): cable()}  # the cable is the same from both sides
    parts.is_line = {("high", "low"): False, ("end", "low"): True}
    of_impedance = np.zeros(3, dtype=np.complex128)
    of_impedance[IMPEDANCE] = load_kva / (LOW_KV if connection == "delta" else LOW_KV / math.sqrt(3)) ** 2
    parts.loads = {("end", connection, 0): of_impedance}
    return parts


def nodal_voltages_kv(load_kva: complex) -> ComplexArray:
    """(3, 3) voltages of the buses high, low and end, by solving Y V = I."""
    admittance = np.zeros((9, 9), dtype=np.complex128)
    admittance[:6, :6] += delta_delta()
    admittance[3:, 3:] += cable()
    source = np.eye(3) / (0.01 + 0.05j)
    admittance[:3, :3] += source
    between = np.zeros(9)
    between[6:8] = [1, -1]
    admittance += np.conj(load_kva) / 1000 / LOW_KV**2 * np.outer(between, between)
    injected = np.concatenate([source @ (HIGH_KV / math.sqrt(3) * ANGLES), np.zeros(6)])
    return np.asarray(np.linalg.solve(admittance, injected).reshape(3, 3))


def test_a_network_behind_an_ungrounded_winding_solves_its_nodal_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Voltages to ground included, which hang on charging currents of a few milliamperes."""
    level = {"high": HIGH_KV, "low": LOW_KV, "end": LOW_KV}
    monkeypatch.setattr(opendss, "collect_circuit", lambda path: (circuit(90 + 30j, "delta"), level, "mine"))
    feeder = Feeder.from_opendss("mine.dss")
    flow = power_flow(feeder, feeder.load_kva[None], tolerance_pu=1e-12)
    assert flow.converged.all()
    assert flow.iterations[0] <= 30
    ours = [flow.voltage_pu[0, feeder.bus_name.index(bus)] * kv / math.sqrt(3) for bus, kv in level.items()]
    theirs = nodal_voltages_kv(90 + 30j)
    assert abs(theirs[2].sum()) > 0.01  # the charging is uneven, so the voltages to ground are too
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_a_load_to_ground_behind_an_ungrounded_winding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    level = {"high": HIGH_KV, "low": LOW_KV, "end": LOW_KV}
    monkeypatch.setattr(opendss, "collect_circuit", lambda path: (circuit(90 + 30j, "wye"), level, "mine"))
    with pytest.raises(ConfigError, match="bus 'end' has a load between phase a and ground, but is fed by an unground"):
        Feeder.from_opendss("mine.dss")
