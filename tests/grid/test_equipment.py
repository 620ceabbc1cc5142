"""Transformers, regulators, shunts, delta and voltage-dependent loads: sums by hand, a plain twin, power-grid-model."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from power_grid_model import PowerGridModel, initialize_array
from reference import general_sweep_reference

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid import (
    DELTA_WYE_LAG,
    DELTA_WYE_LEAD,
    PHASE_UNIT,
    Equipment,
    Feeder,
    branch_current_a,
    capacitor_siemens,
    lindistflow,
    load_feeder,
    power_flow,
    regulator,
)
from evcs_gym.evaluation.speed import power_grid_model_input

KV = math.sqrt(3.0)  # 1 kV per phase: 1 ohm is 1 pu on the base of 1 MVA per phase, 1 siemens too
RATIO = [1.05, 1.0, 0.95]


def two_buses(branch_ohm: complex = 0.01, **equipment: Any) -> Feeder:
    impedance = np.zeros((2, 3, 3), dtype=complex)
    impedance[1] = branch_ohm * np.eye(3)
    return Feeder.from_arrays(
        parent=[-1, 0],
        impedance_ohm=impedance,
        line_to_line_kv=KV,
        load_kva=np.zeros((2, 3)),
        equipment=Equipment.of(2, KV, **equipment),
    )


def at_bus_1(value: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """An array (2, ...) that is ``value`` at bus 1 and zero at the source."""
    array = np.zeros((2, *shape), dtype=complex)
    array[1] = value
    return array


def shares(power: float, current: float, impedance: float) -> np.ndarray[Any, Any]:
    return np.broadcast_to([power, current, impedance], (2, 3, 3))


def voltage_of(feeder: Feeder, load: Any = 0.0) -> np.ndarray[Any, Any]:
    flow = power_flow(feeder, at_bus_1(load, (3,))[None], tolerance_pu=1e-14)
    assert flow.converged.all()
    return flow.voltage_pu[0, 1]


# --- by hand -----------------------------------------------------------------------------------------------


def test_equipment_that_is_nothing_changes_nothing() -> None:
    plain = load_feeder("synthetic33")
    feeder = Feeder.from_arrays(
        parent=plain.parent,
        impedance_ohm=plain.impedance_ohm,
        line_to_line_kv=plain.line_to_line_kv,
        load_kva=plain.load_kva,
        equipment=Equipment.of(33, plain.line_to_line_kv),
    )
    ours, theirs = (power_flow(f, plain.load_kva[None], tolerance_pu=1e-13) for f in (feeder, plain))
    np.testing.assert_allclose(ours.voltage_pu, theirs.voltage_pu, rtol=0, atol=1e-14)
    np.testing.assert_allclose(ours.loss_kw, theirs.loss_kw, rtol=1e-11)


def test_constant_impedance_divides_the_voltage() -> None:
    """100 kW at nominal voltage are 10 ohm; behind 0.01 ohm they see 10 / 10.01 of the source."""
    voltage = voltage_of(two_buses(share_frac=shares(0, 0, 1)), 100.0)
    np.testing.assert_allclose(voltage, PHASE_UNIT * 10 / 10.01, rtol=1e-13)


def test_constant_current_drops_the_same_voltage_whatever_the_source() -> None:
    feeder = two_buses(share_frac=shares(0, 1, 0))
    for source_pu in (0.9, 1.1):
        flow = power_flow(feeder, at_bus_1(100.0, (3,))[None], source_pu=source_pu, tolerance_pu=1e-14)
        np.testing.assert_allclose(np.abs(flow.voltage_pu[0, 1]), source_pu - 0.001, rtol=1e-13)


def test_a_delta_load_by_hand() -> None:
    """300 kW between a and b: U = sqrt 3 - 2 R s / U, so U = (sqrt 3 + sqrt(3 - 8 R s)) / 2; c sees nothing."""
    voltage = voltage_of(two_buses(delta_kva=at_bus_1([300.0, 0.0, 0.0], (3,))))
    assert abs(voltage[0] - voltage[1]) == pytest.approx((math.sqrt(3) + math.sqrt(3 - 8 * 0.01 * 0.3)) / 2, rel=1e-13)
    assert voltage[2] == pytest.approx(PHASE_UNIT[2])


def test_a_capacitor_raises_the_voltage() -> None:
    """V = 1 + x b V with x = 0.1 and b = 0.2: V = 1 / 0.98."""
    shunt = at_bus_1(capacitor_siemens(200.0, KV), (3, 3))
    np.testing.assert_allclose(voltage_of(two_buses(0.1j, shunt_siemens=shunt)), PHASE_UNIT / 0.98, rtol=1e-13)


def test_a_regulator_turns_voltage_up_and_current_too() -> None:
    transfer = np.stack([np.eye(3), regulator(RATIO)])
    feeder = two_buses(transfer=transfer, share_frac=shares(0, 1, 0))
    np.testing.assert_allclose(voltage_of(feeder), PHASE_UNIT * RATIO, rtol=1e-14)
    load = at_bus_1(100.0, (3,))[None]
    flow = power_flow(feeder, load, tolerance_pu=1e-14)
    np.testing.assert_allclose(np.abs(flow.voltage_pu[0, 1]), np.array(RATIO) - 0.001, rtol=1e-13)
    current = np.abs(branch_current_a(feeder, load, flow.voltage_pu)[0])
    np.testing.assert_allclose(current[1], 100.0, rtol=1e-13)  # 100 kVA at 1 kV
    np.testing.assert_allclose(current[0], 100.0 * np.array(RATIO), rtol=1e-13)
    np.testing.assert_allclose(flow.loss_kw, 3 * 0.1**2 * 0.01 * 1000, rtol=1e-9)


@pytest.mark.parametrize(("transfer", "degrees", "other"), [(DELTA_WYE_LAG, -30, 2), (DELTA_WYE_LEAD, 30, 1)])
def test_delta_wye_turns_the_voltage_and_sends_one_phase_through_two(transfer: Any, degrees: int, other: int) -> None:
    feeder = two_buses(transfer=np.stack([np.eye(3), transfer]), share_frac=shares(0, 1, 0))
    turn = np.exp(1j * math.radians(degrees))
    np.testing.assert_allclose(voltage_of(feeder), PHASE_UNIT * turn, rtol=1e-13)
    load = at_bus_1([100.0, 0.0, 0.0], (3,))[None]
    flow = power_flow(feeder, load, tolerance_pu=1e-14)
    current = branch_current_a(feeder, load, flow.voltage_pu)[0, 0]
    assert abs(current[0]) == pytest.approx(100 / math.sqrt(3))
    assert current[other] == pytest.approx(-current[0])
    assert current[3 - other] == pytest.approx(0, abs=1e-12)


def test_a_transformer_between_levels_equals_one_level_in_per_unit() -> None:
    """1 ohm at sqrt 3 kV is 1 pu, at 2 sqrt 3 kV a quarter."""
    low = voltage_of(two_buses(0.01, bus_kv=[KV, KV]), 100.0)
    high = voltage_of(two_buses(0.04, bus_kv=[KV, 2 * KV]), 100.0)
    np.testing.assert_allclose(low, high, rtol=1e-14)


# --- properties and the plain twin -------------------------------------------------------------------------


def random_general_feeder(seed: int, n_buses: int) -> Feeder:
    rng = np.random.default_rng(seed)
    impedance = 0.004 * (rng.uniform(0.5, 1.5, (n_buses, 1, 1)) + 1j) * (np.eye(3) + 0.3)
    impedance = impedance + 0.0005 * rng.uniform(size=(n_buses, 3, 3))
    transfer = np.repeat(np.eye(3)[None], n_buses, axis=0)
    transfer[1] = [DELTA_WYE_LAG, DELTA_WYE_LEAD, regulator(RATIO)][seed % 3]
    shunt = np.repeat(capacitor_siemens(10.0, KV)[None], n_buses, axis=0) * rng.uniform(size=(n_buses, 1, 1))
    load = rng.uniform(-10, 40, (n_buses, 3)) + 5j
    delta = rng.uniform(-10, 40, (n_buses, 3)) + 5j
    share = rng.dirichlet(np.ones(3), (n_buses, 3))
    delta_share = rng.dirichlet(np.ones(3), (n_buses, 3))
    for array in (impedance, load, delta, shunt):
        array[0] = 0
    parts = Equipment.of(
        n_buses,
        KV,
        transfer=transfer,
        shunt_siemens=shunt,
        delta_kva=delta,
        share_frac=share,
        delta_share_frac=delta_share,
    )
    parent = [-1, *(int(rng.integers(max(0, bus - 4), bus)) for bus in range(1, n_buses))]
    return Feeder.from_arrays(
        parent=parent, impedance_ohm=impedance, line_to_line_kv=KV, load_kva=load, equipment=parts
    )


@given(seed=st.integers(0, 10**6), n_buses=st.integers(2, 20), source_pu=st.floats(0.95, 1.05))
@settings(deadline=None, max_examples=20)
def test_the_kernel_agrees_with_its_plain_twin_and_with_kirchhoff(seed: int, n_buses: int, source_pu: float) -> None:
    feeder = random_general_feeder(seed, n_buses)
    flow = power_flow(feeder, feeder.load_kva[None], source_pu=source_pu, tolerance_pu=1e-13, max_iterations=200)
    assert flow.converged.all()
    np.testing.assert_allclose(flow.voltage_pu[0], general_sweep_reference(feeder, source_pu), rtol=0, atol=1e-11)
    assert flow.loss_kw[0] >= 0
    parts = feeder.equipment
    assert parts is not None
    amperes = branch_current_a(feeder, feeder.load_kva[None], flow.voltage_pu)[0]
    drop = np.einsum("nfg,ng->nf", feeder.impedance_ohm, amperes) / 1000  # kV on a base of 1 kV
    behind = np.einsum("nfg,ng->nf", parts.transfer, flow.voltage_pu[0, feeder.parent])
    residual = flow.voltage_pu[0, 1:] - (behind - drop)[1:]
    assert np.abs(residual).max() <= 1e-9


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=10)
def test_a_case_is_bitwise_the_same_in_every_batch(seed: int) -> None:
    feeder = random_general_feeder(seed, 12)
    factor = np.random.default_rng(seed).choice([0.1, 1.0, 2.0, 300.0], (19, 1, 1))
    load, delta = feeder.load_kva * factor, feeder.equipment.delta_kva * factor  # type: ignore[union-attr]
    whole = power_flow(feeder, load, delta_kva=delta, max_iterations=40)
    for case in (0, 7, 18):
        alone = power_flow(feeder, load[case : case + 1], delta_kva=delta[case : case + 1], max_iterations=40)
        assert np.array_equal(alone.voltage_pu[0], whole.voltage_pu[case])
        assert alone.converged[0] == whole.converged[case]
    assert np.isfinite(whole.voltage_pu).all()


def test_a_warm_start_gives_the_same_voltages_in_fewer_sweeps() -> None:
    feeder = random_general_feeder(1, 12)
    cold = power_flow(feeder, feeder.load_kva[None])
    warm = power_flow(feeder, feeder.load_kva[None], warm_start=cold.voltage_pu)
    np.testing.assert_allclose(warm.voltage_pu, cold.voltage_pu, atol=1e-8)
    assert warm.iterations[0] < cold.iterations[0]


def test_a_turn_of_all_phases_turns_the_result() -> None:
    """Phase permutation symmetry: loads, matrices and voltages of a, b, c renamed to b, c, a."""
    turned = two_buses(transfer=np.stack([np.eye(3), regulator(np.roll(RATIO, 1))]))
    plain = two_buses(transfer=np.stack([np.eye(3), regulator(RATIO)]))
    load = np.array([50.0, 100.0 + 20j, 10.0])
    size, size_turned = np.abs(voltage_of(plain, load)), np.abs(voltage_of(turned, np.roll(load, 1)))
    np.testing.assert_allclose(size_turned, np.roll(size, 1), rtol=1e-13)


# --- power-grid-model --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "share"), [(1, (0, 0, 1)), (2, (0, 1, 0))])
def test_power_grid_model_agrees_on_load_models_and_capacitors(kind: int, share: tuple[int, int, int]) -> None:
    plain = load_feeder("synthetic33")
    kvar = 300.0
    shunt = np.zeros((33, 3, 3), dtype=complex)
    shunt[17] = capacitor_siemens(kvar, plain.line_to_line_kv)
    parts = Equipment.of(33, plain.line_to_line_kv, shunt_siemens=shunt, share_frac=np.broadcast_to(share, (33, 3, 3)))
    feeder = Feeder.from_arrays(
        parent=plain.parent,
        impedance_ohm=plain.impedance_ohm,
        line_to_line_kv=plain.line_to_line_kv,
        load_kva=plain.load_kva,
        equipment=parts,
    )
    given = power_grid_model_input(plain)
    given["asym_load"]["type"] = kind
    bank = initialize_array("input", "shunt", 1)
    bank["id"], bank["node"], bank["status"], bank["g1"], bank["g0"] = 999, 17, 1, 0.0, 0.0
    bank["b1"] = bank["b0"] = shunt[17, 0, 0].imag
    given["shunt"] = bank
    node = PowerGridModel(given).calculate_power_flow(symmetric=False, error_tolerance=1e-12)["node"]
    ours = power_flow(feeder, plain.load_kva[None], tolerance_pu=1e-13).voltage_pu[0]
    np.testing.assert_allclose(ours, node["u_pu"] * np.exp(1j * node["u_angle"]), rtol=0, atol=1e-8)


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"transfer": np.zeros((2, 3))}, r"transfer must have shape \(2, 3, 3\)"),
        ({"delta_kva": at_bus_1(np.nan, (3,))}, "delta_kva must be finite"),
        ({"share_frac": shares(0.5, 0.4, 0.0)}, r"share_frac\[0, 0\] must sum to 1"),
        ({"bus_kv": [KV, -1.0]}, "bus_kv must be positive"),
        ({"delta_kva": np.ones((2, 3))}, "at the source '0' would never be seen"),
        ({"transfer": np.stack([np.eye(3), np.zeros((3, 3))])}, "without load bus '1' has no voltage on phase a"),
    ],
)
def test_impossible_equipment_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        two_buses(**parts)


def single_phase(n_parts: int = 2, **parts: Any) -> Feeder:
    impedance = at_bus_1(np.diag([0.01, 0, 0]), (3, 3))
    equipment = Equipment.of(n_parts, KV, **parts)
    return Feeder.from_arrays(
        parent=[-1, 0], impedance_ohm=impedance, line_to_line_kv=KV, load_kva=np.zeros((2, 3)), equipment=equipment
    )


def test_equipment_on_absent_phases_is_refused() -> None:
    with pytest.raises(DataError, match="bus '1' has a delta load between phases ab, of which one is absent"):
        single_phase(delta_kva=at_bus_1([1, 0, 0], (3,)))
    with pytest.raises(DataError, match="bus '1' has a shunt on phase b, which is absent"):
        single_phase(shunt_siemens=at_bus_1(capacitor_siemens(1.0, KV), (3, 3)))
    with pytest.raises(DataError, match="one entry per bus, 2, got 3"):
        single_phase(n_parts=3)


def test_delta_loads_of_a_batch_are_checked() -> None:
    load = np.zeros((1, 2, 3))
    with pytest.raises(ConfigError, match="delta_kva needs a feeder with equipment"):
        power_flow(load_feeder("synthetic33"), np.zeros((1, 33, 3)), delta_kva=np.zeros((1, 33, 3)))
    with pytest.raises(DataError, match="delta_kva must have the shape of load_kva"):
        power_flow(two_buses(), load, delta_kva=np.zeros((2, 2, 3)))
    with pytest.raises(DataError, match="delta_kva must be finite"):
        power_flow(two_buses(), load, delta_kva=np.full((1, 2, 3), np.nan))
    with pytest.raises(DataError, match="between phases ab, of which one is absent there"):
        power_flow(single_phase(), load, delta_kva=at_bus_1([1.0, 0, 0], (3,))[None])


def test_general_tables_belong_to_equipment_and_lindistflow_knows_none() -> None:
    with pytest.raises(DataError, match="general_tables are those of equipment"):
        _ = load_feeder("synthetic33").general_tables
    with pytest.raises(ConfigError, match="lines and constant-power wye loads only"):
        lindistflow(two_buses())
