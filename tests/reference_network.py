"""Programmes of one slot of a network, written again from the textbooks, in CVXPY.

Nothing of the project's forms is used: only the feeder's impedances, the loads and the limits.
"""

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np

from evcs_gym.baselines.problems.network import NetworkProblem
from evcs_gym.envs.grid import Feeder
from evcs_gym.envs.types import ComplexArray, FloatArray
from evcs_gym.envs.units import PHASE_BASE_KVA, SLOT_H


@dataclass(frozen=True, eq=False)
class SlotOptimum:
    """Cost [EUR], kW that drivers do not get (S,), squared voltages (N,), largest v l - P2 - Q2."""

    cost_eur: float
    unserved_kw: FloatArray
    squared_pu: FloatArray
    looseness: float


@dataclass(frozen=True, eq=False)
class HeadOptimum:
    """Least power at the head [kW], positions (S,), squared voltages (N, 3), second eigenvalue of a branch over the
    first."""

    head_kw: float
    position_kw: FloatArray
    squared_pu: FloatArray
    looseness: float


def _cost(problem: NetworkProblem, unserved_kw: Any) -> Any:
    market = problem.market
    bought = market.import_eur_per_kwh[0] * (market.ev_kw[0].sum() - cp.sum(unserved_kw))
    return SLOT_H * (bought + market.stations.lost_load_eur_per_kwh @ unserved_kw)


def _children(problem: NetworkProblem) -> list[list[int]]:
    parent = problem.feeder.parent.tolist()
    return [[j for j in range(1, len(parent)) if parent[j] == i] for i in range(len(parent))]


def plain_branch_flow(problem: NetworkProblem) -> SlotOptimum:
    """Baran and Wu's branch flow with v l >= P2 + Q2 (Farivar and Low 2013, 10.1109/TPWRS.2013.2255317) on one phase of
    a balanced feeder: what energy and unserved drivers cost, over the positions of stations without sun and storage."""
    feeder, n, children = problem.feeder, len(problem.feeder), _children(problem)
    z = feeder.impedance_pu[:, 0, 0]
    load = problem.load_kva[0, :, 0] / PHASE_BASE_KVA
    unserved = cp.Variable(problem.n_stations, nonneg=True)
    p, q, v, current = (cp.Variable(n) for _ in range(4))
    drawn: list[Any] = [load[j].real for j in range(n)]
    for s, bus in enumerate(problem.stations.bus.tolist()):
        drawn[bus] = drawn[bus] + (problem.market.ev_kw[0, s] - unserved[s]) / (3.0 * PHASE_BASE_KVA)
    low, high = problem.limits.vmin_pu[0, :, 0] ** 2, problem.limits.vmax_pu[0, :, 0] ** 2
    rules = [unserved <= problem.market.ev_kw[0], v[0] == problem.head_pu[problem.own[0]] ** 2, current >= 0.0]
    for j in range(1, n):
        i, r, x = int(feeder.parent[j]), z[j].real, z[j].imag
        rules += [
            p[j] - r * current[j] == drawn[j] + sum(p[k] for k in children[j]),
            q[j] - x * current[j] == load[j].imag + sum(q[k] for k in children[j]),
            v[j] == v[i] - 2.0 * (r * p[j] + x * q[j]) + (r**2 + x**2) * current[j],
            cp.SOC(v[i] + current[j], cp.hstack([2.0 * p[j], 2.0 * q[j], v[i] - current[j]])),
            v[j] >= low[j],
            v[j] <= high[j],
        ]
    programme = cp.Problem(cp.Minimize(_cost(problem, unserved)), rules)
    programme.solve(solver=cp.CLARABEL)
    assert programme.status == cp.OPTIMAL
    above = v.value[feeder.parent[1:]]
    loose = above * current.value[1:] - p.value[1:] ** 2 - q.value[1:] ** 2
    return SlotOptimum(float(programme.value), unserved.value, v.value, float(loose.max()))


def least_loss_kvar(feeder: Feeder, bus: list[int]) -> tuple[float, FloatArray, float]:
    """Losses [kW] of a balanced feeder at its nominal load, the kvar at given buses that make them least, and the
    largest v l - P2 - Q2; capacitors that give the same at any voltage."""
    n, parent = len(feeder), feeder.parent.tolist()
    children = [[j for j in range(1, n) if parent[j] == i] for i in range(n)]
    z, load = feeder.impedance_pu[:, 0, 0], feeder.load_kva[:, 0] / PHASE_BASE_KVA
    kvar = cp.Variable(len(bus), nonneg=True)
    p, q, v, current = (cp.Variable(n) for _ in range(4))
    given: list[Any] = [0.0] * n
    for k, where in enumerate(bus):
        given[where] = kvar[k]
    rules = [v[0] == 1.0]
    for j in range(1, n):
        i, r, x = parent[j], z[j].real, z[j].imag
        rules += [
            p[j] - r * current[j] == load[j].real + sum(p[k] for k in children[j]),
            q[j] - x * current[j] + given[j] == load[j].imag + sum(q[k] for k in children[j]),
            v[j] == v[i] - 2.0 * (r * p[j] + x * q[j]) + (r**2 + x**2) * current[j],
            cp.SOC(v[i] + current[j], cp.hstack([2.0 * p[j], 2.0 * q[j], v[i] - current[j]])),
        ]
    programme = cp.Problem(cp.Minimize(z.real[1:] @ current[1:]), rules)
    programme.solve(solver=cp.CLARABEL)
    assert programme.status == cp.OPTIMAL
    loose = v.value[feeder.parent[1:]] * current.value[1:] - p.value[1:] ** 2 - q.value[1:] ** 2
    return 3.0 * PHASE_BASE_KVA * float(programme.value), 3.0 * PHASE_BASE_KVA * kvar.value, float(loose.max())


def semidefinite(problem: NetworkProblem, least_kw: FloatArray, largest_kw: FloatArray) -> HeadOptimum:
    """The three-phase branch flow with [W S; S^H L] >= 0 (Gan and Low 2014, 10.1109/PSCC.2014.7038399): the least
    power at the head with station positions in a range and voltages in their limits; every bus has three phases."""
    feeder, children, n = problem.feeder, _children(problem), len(problem.feeder)
    source = problem.head_pu[problem.own[0]] * np.exp(-2j * np.pi / 3.0 * np.arange(3))
    given = cp.Variable(problem.n_stations)  # net positions, pu of a phase
    drawn: list[Any] = [problem.load_kva[0, j] / PHASE_BASE_KVA for j in range(n)]
    for station, bus in enumerate(problem.stations.bus.tolist()):
        drawn[bus] = drawn[bus] - given[station] * np.ones(3)
    w = [cp.Variable((3, 3), hermitian=True) for _ in range(n)]
    s = [cp.Variable((3, 3), complex=True) for _ in range(n)]
    square = [cp.Variable((3, 3), hermitian=True) for _ in range(n)]
    rules: list[Any] = [w[0] == np.outer(source, source.conj())]
    rules += [3.0 * PHASE_BASE_KVA * given >= least_kw, 3.0 * PHASE_BASE_KVA * given <= largest_kw]
    for j in range(1, n):
        i, z = int(feeder.parent[j]), feeder.impedance_pu[j]
        arrives, leaves = cp.diag(s[j] - z @ square[j]), sum((cp.diag(s[k]) for k in children[j]), np.zeros(3))
        size_sq = cp.real(cp.diag(w[j]))
        rules += [
            w[j] == w[i] - s[j] @ z.conj().T - z @ s[j].H + z @ square[j] @ z.conj().T,
            cp.bmat([[w[i], s[j]], [s[j].H, square[j]]]) >> 0,
            arrives - leaves == drawn[j],
            size_sq >= problem.limits.vmin_pu[0, j] ** 2,
            size_sq <= problem.limits.vmax_pu[0, j] ** 2,
        ]
    head = sum(cp.real(cp.trace(s[k])) for k in children[0])
    programme = cp.Problem(cp.Minimize(head), rules)
    programme.solve(solver=cp.CLARABEL)
    pairs = [(w[feeder.parent[j]].value, s[j].value, square[j].value) for j in range(1, n)]
    loose = max(_second_eigenvalue(np.block([[a, b], [b.conj().T, c]])) for a, b, c in pairs)
    squares = np.array([np.diag(matrix.value).real for matrix in w])
    return HeadOptimum(PHASE_BASE_KVA * float(programme.value), 3.0 * PHASE_BASE_KVA * given.value, squares, loose)


def _second_eigenvalue(matrix: ComplexArray) -> float:
    values = np.linalg.eigvalsh(matrix)
    return float(values[-2] / values[-1])
