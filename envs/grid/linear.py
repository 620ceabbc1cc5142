"""Linear three-phase power flow (LinDistFlow): squared voltages as affine functions of the loads.

Gan and Low, Convex relaxations and linear approximation for optimal power flow in multiphase radial networks, PSCC
2014, 10.1109/PSCC.2014.7038399; the same rows in Arnold et al., IEEE PES General Meeting 2016.
"""

from dataclasses import dataclass

import numpy as np

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.grid.feeder import Feeder
from evcs_gym.envs.grid.powerflow import PHASE_UNIT
from evcs_gym.envs.types import FloatArray, frozen
from evcs_gym.envs.units import PHASE_BASE_KVA


@dataclass(frozen=True, eq=False)
class LinDistFlow:
    """|V|^2 ~ source_sq_pu - resistance . p_kw - reactance . q_kvar, summed over the last two axes.

    resistance: (N, 3, N, 3) fall of |V|^2 at (bus, phase) per kW drawn at (bus, phase) [pu^2/kW].
    reactance: the same per kvar [pu^2/kvar]. source_sq_pu: squared voltage of the source [pu^2].
    Losses are left out, so voltages under load come out too high (a few thousandths of a pu at nominal load).
    Rows of absent phases are zero: they show the source voltage and are not to be limited.
    """

    resistance: FloatArray
    reactance: FloatArray
    source_sq_pu: float

    def voltage_sq_pu(self, p_kw: FloatArray, q_kvar: FloatArray) -> FloatArray:
        """|V|^2 [pu^2] of loads (..., N, 3) [kW, kvar], same shape."""
        axes = ([-2, -1], [2, 3])
        drop: FloatArray = np.tensordot(p_kw, self.resistance, axes) + np.tensordot(q_kvar, self.reactance, axes)
        return self.source_sq_pu - drop


def lindistflow(feeder: Feeder, source_pu: float = 1.0) -> LinDistFlow:
    """The linear power flow of a feeder with the source at ``source_pu``.

    Along a branch |V_j|^2 = |V_i|^2 - 2 Re(conj(V_i) Z J) + |Z J|^2. The last term is dropped, as are the losses in J,
    and voltages are taken as balanced: with rho = exp(j(angle_f - angle_g)) between phases f and g, the fall caused
    by P + jQ on phase g is 2 (Re(conj(rho) Z_fg) P + Im(conj(rho) Z_fg) Q). A load acts through the branches that its
    path shares with the bus looked at.

    Raises ConfigError if source_pu is not positive or the feeder has equipment.
    """
    if not 0 < source_pu < np.inf:
        raise ConfigError(f"lindistflow: source_pu must be positive and finite, got {source_pu}")
    if feeder.equipment is not None:
        raise ConfigError(
            f"lindistflow: it knows lines and constant-power wye loads only, and feeder {feeder.name!r} has equipment"
        )
    rotation = PHASE_UNIT[:, None] / PHASE_UNIT[None, :]
    branch = 2.0 * np.conj(rotation) * feeder.impedance_pu / PHASE_BASE_KVA
    on_path = _on_path(feeder)
    shared = np.einsum("ik,jk,kfg->ifjg", on_path, on_path, branch, optimize=True)
    return LinDistFlow(
        resistance=frozen(np.ascontiguousarray(shared.real)),
        reactance=frozen(np.ascontiguousarray(shared.imag)),
        source_sq_pu=float(source_pu) ** 2,
    )


def _on_path(feeder: Feeder) -> FloatArray:
    """(N, N) 1 where the branch to bus k lies on the path from the source to bus i."""
    n_buses = len(feeder)
    on_path = np.zeros((n_buses, n_buses))
    for bus in feeder.sweep_order[1:]:
        on_path[bus] = on_path[feeder.parent[bus]]
        on_path[bus, bus] = 1.0
    return on_path
