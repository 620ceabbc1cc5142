"""Plain, slow twins of the compiled kernels: the equations of docs/model.md and nothing else."""

import numpy as np

from evcs_gym.envs.grid import PHASE_UNIT, Feeder
from evcs_gym.envs.types import ComplexArray
from evcs_gym.envs.units import PHASE_BASE_KVA


def sweep_reference(
    feeder: Feeder,
    load_kva: ComplexArray,
    source_pu: float = 1.0,
    tolerance_pu: float = 1e-8,
    max_iterations: int = 100,
    start_pu: ComplexArray | None = None,
) -> tuple[ComplexArray, int]:
    """Voltages (N, 3) of one case and the sweeps used; twin of ``evcs_gym.envs.grid.kernels.solve``.

    Raises ArithmeticError where the kernel reports a case that did not converge.
    """
    present = feeder.phase_present
    source = source_pu * PHASE_UNIT
    outwards = sorted(range(1, len(feeder)), key=lambda bus: _depth(feeder, bus))
    voltage = np.tile(source, (len(feeder), 1)) if start_pu is None else start_pu.copy()
    voltage[0] = source
    voltage[~present] = 1.0
    for iteration in range(1, max_iterations + 1):
        current = np.conj(load_kva / PHASE_BASE_KVA / voltage)
        for bus in reversed(outwards):
            if feeder.parent[bus] > 0:
                current[feeder.parent[bus]] += current[bus]
        new = voltage.copy()
        for bus in outwards:
            new[bus] = new[feeder.parent[bus]] - feeder.impedance_pu[bus] @ current[bus]
        change = np.abs(new - voltage)[present].max()
        voltage = np.where(present, new, 1.0)
        if change <= tolerance_pu:
            return np.where(present, voltage, 0.0), iteration
        if not np.isfinite(change):
            break
    raise ArithmeticError("no convergence")


def loss_reference_kw(feeder: Feeder, load_kva: ComplexArray, voltage_pu: ComplexArray) -> float:
    """Loss of one case as the heat in every branch: sum over branches of Re(J^H Z J) [kW]."""
    present = feeder.phase_present
    current = np.conj(load_kva / PHASE_BASE_KVA / np.where(present, voltage_pu, 1.0))
    for bus in sorted(range(1, len(feeder)), key=lambda bus: -_depth(feeder, bus)):
        if feeder.parent[bus] > 0:
            current[feeder.parent[bus]] += current[bus]
    heat = np.einsum("nf,nfg,ng->", current[1:].conj(), feeder.impedance_pu[1:], current[1:])
    return float(heat.real) * PHASE_BASE_KVA


def _depth(feeder: Feeder, bus: int) -> int:
    depth = 0
    while bus != 0:
        bus = int(feeder.parent[bus])
        depth += 1
    return depth
