"""What is wrong with a feeder, in words, and a drawing of its voltages."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.grid.equipment import no_load_pu
from evcs_gym.envs.grid.powerflow import PowerFlow, branch_current_a, power_flow, voltage_unbalance_frac
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import PHASE_BASE_KVA

if TYPE_CHECKING:
    from evcs_gym.envs.grid.feeder import Feeder

_PHASES: Final = "abc"
_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73")
LARGE_DROP_PU: Final = 0.2
"""Fall of voltage along one branch that no network has: its impedance or the loads behind it are in another unit."""
SMALL_DROP_PU: Final = 1e-6
"""Largest fall along any branch below which the impedances do nothing: per unit given as ohm, or no loads."""
VUF_LIMIT_FRAC: Final = 0.02
LEVEL_TOLERANCE_PU: Final = 0.2
"""Distance from nominal voltage without load that no tap changer bridges: a voltage level is wrong."""
PASSIVE_TOLERANCE: Final = 1e-3
"""Negative share of a resistance matrix's largest entry that rounding in published matrices explains."""


def complaints(feeder: "Feeder", vmin_pu: float, vmax_pu: float) -> list[str]:
    """See ``Feeder.check``. The feeder is sound in itself: trees, phases and signs are checked when it is made."""
    found = [*_unit_complaints(feeder), *_level_complaints(feeder), *_passive_complaints(feeder)]
    flow = power_flow(feeder, feeder.load_kva[None])
    if not flow.converged[0]:
        return [*found, "the nominal loads have no power flow (voltage collapse): too much load, or a wrong unit"]
    return found + _voltage_complaints(feeder, flow, vmin_pu, vmax_pu) + _current_complaints(feeder, flow)


def _unit_complaints(feeder: "Feeder") -> list[str]:
    """Falls of voltage along single branches at nominal load and voltage, the first sign of a wrong unit."""
    load = np.abs(feeder.load_kva)
    if feeder.equipment is not None:
        load = load + np.abs(feeder.equipment.delta_kva)
    below = load.sum(axis=1)
    if not below.any():
        return ["there is no load at all"]
    for bus in feeder.sweep_order[:0:-1]:
        below[feeder.parent[bus]] += below[bus]
    n_phases = np.maximum(feeder.phase_present.sum(axis=1), 1)
    size_pu = np.abs(np.diagonal(feeder.impedance_pu, axis1=1, axis2=2)).max(axis=1)
    fall = size_pu * below / n_phases / PHASE_BASE_KVA
    names = feeder.bus_name
    found = [
        f"the branch to bus {names[bus]!r} would drop {fall[bus]:.3g} pu at nominal load: is its impedance "
        f"({np.abs(feeder.impedance_ohm[bus]).max():.4g} ohm) in ohm, and are the loads behind it in kVA?"
        for bus in np.flatnonzero(fall > LARGE_DROP_PU)
    ]
    if fall.max() < SMALL_DROP_PU:
        found.append(
            f"no branch drops more than {fall.max():.1e} pu at nominal load: "
            "are the impedances in ohm, not in per unit?"
        )
    return found


def _level_complaints(feeder: "Feeder") -> list[str]:
    """Buses whose nominal voltage is far from what reaches them without load."""
    if feeder.equipment is None:
        return []
    size = np.abs(no_load_pu(feeder, feeder.equipment))
    far = feeder.phase_present & (np.abs(size - 1.0) > LEVEL_TOLERANCE_PU)
    first = [bus for bus in np.flatnonzero(far.any(axis=1)) if bus and not far[feeder.parent[bus]].any()]
    return [
        f"without load bus {feeder.bus_name[bus]!r} has {size[bus][far[bus]][0]:.3f} pu of its nominal "
        f"{feeder.bus_kv[bus]:.4g} kV: does the ratio of its transformer or regulator fit the voltages at both ends?"
        for bus in first
    ]


def _passive_complaints(feeder: "Feeder") -> list[str]:
    """Branches that would give off power: their phases are coupled more strongly than they resist."""
    resistance = feeder.impedance_ohm.real
    least = np.linalg.eigvalsh((resistance + resistance.transpose(0, 2, 1)) / 2.0)[:, 0]
    active = np.flatnonzero(least < -PASSIVE_TOLERANCE * np.abs(resistance).max(axis=(1, 2)))
    return [
        f"the branch to bus {feeder.bus_name[bus]!r} generates power for some currents (its resistance matrix has the "
        f"eigenvalue {least[bus]:.3g} ohm): are mutual and self impedances in the right places?"
        for bus in active
    ]


def _voltage_complaints(feeder: "Feeder", flow: PowerFlow, vmin_pu: float, vmax_pu: float) -> list[str]:
    size = np.abs(flow.voltage_pu[0])
    present = feeder.phase_present
    found = []
    for words, outside, worst in (
        (f"below {vmin_pu} pu", present & (size < vmin_pu), np.argmin(np.where(present, size, np.inf))),
        (f"above {vmax_pu} pu", present & (size > vmax_pu), np.argmax(np.where(present, size, -np.inf))),
    ):
        if outside.any():
            bus, phase = divmod(int(worst), 3)
            found.append(
                f"at nominal load {int(outside.sum())} bus-phases are {words}; the worst is bus "
                f"{feeder.bus_name[bus]!r}, phase {_PHASES[phase]}, at {size[bus, phase]:.4f} pu"
            )
    unbalance = voltage_unbalance_frac(flow.voltage_pu[0])
    if unbalance.max() > VUF_LIMIT_FRAC:
        most = int(unbalance.argmax())
        found.append(f"at nominal load the voltage unbalance at bus {feeder.bus_name[most]!r} is {unbalance[most]:.2%}")
    return found


def _current_complaints(feeder: "Feeder", flow: PowerFlow) -> list[str]:
    current = np.abs(branch_current_a(feeder, feeder.load_kva[None], flow.voltage_pu)[0]).max(axis=1)
    over = np.flatnonzero(current[1:] > feeder.ampacity_a[1:]) + 1
    return [
        f"at nominal load the branch to bus {feeder.bus_name[bus]!r} carries {current[bus]:.1f} A of "
        f"{feeder.ampacity_a[bus]:.1f} A"
        for bus in over
    ]


def distance_ohm(feeder: "Feeder") -> FloatArray:
    """(N,) electrical distance of every bus from the source: sum of the largest self impedances on the path [ohm]."""
    own = np.abs(np.diagonal(feeder.impedance_ohm, axis1=1, axis2=2)).max(axis=1)
    distance = np.zeros(len(feeder))
    for bus in feeder.sweep_order[1:]:
        distance[bus] = distance[feeder.parent[bus]] + own[bus]
    return distance


def voltage_figure(feeder: "Feeder", flow: PowerFlow, case: int) -> Any:
    """See ``Feeder.plot``."""
    n_cases = len(flow.converged)
    if flow.voltage_pu.shape[1] != len(feeder) or not -n_cases <= case < n_cases:
        raise ConfigError(
            f"plot: a power flow of feeder {feeder.name!r} ({len(feeder)} buses) and one of its cases are needed, "
            f"got {flow.voltage_pu.shape[1]} buses and case {case} of {n_cases}"
        )
    if not flow.converged[case]:
        raise ConfigError(f"plot: case {case} did not converge, so it has no voltages to draw")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    axes = figure.subplots()
    distance, size = distance_ohm(feeder), np.abs(flow.voltage_pu[case])
    for phase, colour in enumerate(_COLOURS):
        buses = np.flatnonzero(feeder.phase_present[:, phase])
        for bus in buses[buses > 0]:
            ends = [int(feeder.parent[bus]), int(bus)]
            axes.plot(distance[ends], size[ends, phase], color=colour, lw=1.2)
        axes.plot(distance[buses], size[buses, phase], ".", color=colour, label=f"phase {_PHASES[phase]}")
    axes.set_xlabel("electrical distance from the source [ohm]")
    axes.set_ylabel("voltage [pu]")
    axes.set_title(feeder.name)
    axes.legend()
    return figure
