"""Capacitor banks given by case: a sum by hand, shunts of the feeder, power-grid-model, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from power_grid_model import PowerGridModel, initialize_array

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.grid import (
    PHASE_UNIT,
    Equipment,
    Feeder,
    branch_current_a,
    capacitor_siemens,
    load_feeder,
    power_flow,
)
from evcs_gym.envs.types import FloatArray
from evcs_gym.evaluation.speed import power_grid_model_input

KV = math.sqrt(3.0)  # 1 kV per phase: 1 ohm is 1 pu on the base of 1 MVA per phase, 1000 kvar are 1 pu
BUSES = (13, 29)


def reactance(ohm: float = 0.1, present: tuple[int, ...] = (1, 1, 1)) -> Feeder:
    impedance = np.zeros((2, 3, 3), dtype=complex)
    impedance[1] = 1j * ohm * np.diag(present)
    return Feeder.from_arrays(parent=[-1, 0], impedance_ohm=impedance, line_to_line_kv=KV, load_kva=np.zeros((2, 3)))


def with_equipment(plain: Feeder, **parts: Any) -> Feeder:
    return Feeder.from_arrays(
        parent=plain.parent,
        impedance_ohm=plain.impedance_ohm,
        line_to_line_kv=plain.line_to_line_kv,
        load_kva=plain.load_kva,
        equipment=Equipment.of(len(plain), plain.line_to_line_kv, **parts),
    )


def banks(n_cases: int, seed: int = 0) -> FloatArray:
    """Kvar by phase at two buses of synthetic33; some cases have none."""
    rng = np.random.default_rng(seed)
    kvar = np.zeros((n_cases, 33, 3))
    kvar[:, BUSES] = rng.uniform(50, 300, (n_cases, 2, 3)) * rng.choice([0.0, 1.0], (n_cases, 2, 1))
    return kvar


def test_a_capacitor_raises_the_voltage_of_its_own_case() -> None:
    """V = 1 + x b V with x = 0.1 and b = 0.2: V = 1 / 0.98, and 200 / 0.98 A flow; without it nothing happens."""
    feeder, load, kvar = reactance(), np.zeros((2, 2, 3), dtype=complex), np.zeros((2, 2, 3))
    kvar[0, 1] = 200.0
    flow = power_flow(feeder, load, tolerance_pu=1e-14, capacitor_kvar=kvar)
    np.testing.assert_allclose(flow.voltage_pu[:, 1], [PHASE_UNIT / 0.98, PHASE_UNIT], rtol=1e-13)
    np.testing.assert_allclose(flow.loss_kw, 0.0, atol=1e-10)
    current = np.abs(branch_current_a(feeder, load, flow.voltage_pu, capacitor_kvar=kvar))
    np.testing.assert_allclose(current[:, 1], [[200 / 0.98] * 3, [0.0] * 3], rtol=1e-12)


@pytest.mark.parametrize("source_pu", [0.97, 1.04])
def test_banks_equal_the_shunts_of_a_feeder_with_equipment(source_pu: float) -> None:
    plain, kvar = load_feeder("synthetic33"), banks(4)
    load = plain.load_kva * np.array([0.2, 0.7, 1.0, 1.1])[:, None, None]
    ours = power_flow(plain, load, source_pu, 1e-13, capacitor_kvar=kvar)
    general = power_flow(with_equipment(plain), load, source_pu, 1e-13, capacitor_kvar=kvar)
    current = branch_current_a(plain, load, ours.voltage_pu, capacitor_kvar=kvar)
    for case in range(4):
        shunt = np.array([capacitor_siemens(bus_kvar, plain.line_to_line_kv) for bus_kvar in kvar[case]])
        feeder = with_equipment(plain, shunt_siemens=shunt)
        theirs = power_flow(feeder, load[case : case + 1], source_pu, 1e-13)
        for flow in (ours, general):
            np.testing.assert_allclose(flow.voltage_pu[case], theirs.voltage_pu[0], rtol=0, atol=1e-12)
            np.testing.assert_allclose(flow.loss_kw[case], theirs.loss_kw[0], rtol=1e-9)
        their_current = branch_current_a(feeder, load[case : case + 1], theirs.voltage_pu)
        np.testing.assert_allclose(current[case], their_current[0], rtol=0, atol=1e-8)


@given(seed=st.integers(0, 10**6), n_cases=st.integers(1, 20))
@settings(deadline=None, max_examples=25)
def test_a_case_with_banks_is_bitwise_the_same_alone(seed: int, n_cases: int) -> None:
    feeder, rng, kvar = load_feeder("synthetic33"), np.random.default_rng(seed), banks(n_cases, seed)
    load = feeder.load_kva * rng.uniform(0.2, 1.2, (n_cases, 33, 3)) * rng.choice([1.0, 30.0], (n_cases, 1, 1))
    source = rng.uniform(0.95, 1.05, n_cases)
    start = np.tile(PHASE_UNIT, (n_cases, 33, 1)) * rng.uniform(0.9, 1.1, (n_cases, 1, 1))
    whole = power_flow(feeder, load, source, max_iterations=40, warm_start=start, capacitor_kvar=kvar)
    for k in range(n_cases):
        own = slice(k, k + 1)
        given = None if not kvar[k].any() else kvar[own]
        alone = power_flow(
            feeder, load[own], source[own], max_iterations=40, warm_start=start[own], capacitor_kvar=given
        )
        for field in ("voltage_pu", "loss_kw", "iterations", "converged"):
            assert np.array_equal(getattr(alone, field)[0], getattr(whole, field)[k])


def test_power_grid_model_agrees() -> None:
    feeder = load_feeder("synthetic33")
    kvar = np.zeros((1, 33, 3))
    kvar[0, BUSES] = 300.0
    given = power_grid_model_input(feeder, 1.02)
    shunt = initialize_array("input", "shunt", len(BUSES))
    shunt["id"], shunt["node"], shunt["status"], shunt["g1"], shunt["g0"] = [998, 999], BUSES, 1, 0.0, 0.0
    shunt["b1"] = shunt["b0"] = capacitor_siemens(300.0, feeder.line_to_line_kv)[0, 0].imag
    given["shunt"] = shunt
    node = PowerGridModel(given).calculate_power_flow(symmetric=False, error_tolerance=1e-12)["node"]
    ours = power_flow(feeder, feeder.load_kva[None], 1.02, 1e-13, capacitor_kvar=kvar).voltage_pu[0]
    np.testing.assert_allclose(ours, node["u_pu"] * np.exp(1j * node["u_angle"]), rtol=0, atol=1e-8)


NAN = np.zeros((1, 2, 3))
NAN[0, 1, 2] = np.nan


@pytest.mark.parametrize(
    ("feeder", "kvar", "message"),
    [
        (reactance(), np.zeros((2, 2, 3)), r"capacitor_kvar must have the shape of load_kva, \(1, 2, 3\)"),
        (reactance(), NAN, "capacitor_kvar must be finite, got nan in case 0, bus '1', phase c"),
        (reactance(), "many", "capacitor_kvar must be an array of numbers"),
        (
            reactance(present=(1, 0, 0)),
            np.ones((1, 2, 3)),
            "case 0 has a capacitor at bus '1', phase b, which is absent",
        ),
    ],
)
def test_bad_capacitors_are_refused(feeder: Feeder, kvar: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        power_flow(feeder, np.zeros((1, 2, 3)), capacitor_kvar=kvar)
