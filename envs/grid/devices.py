"""Devices of a feeder that move during the day: the tap changer at the head and capacitor banks with steps.

Stages know arrays: a base load goes in, positions come out. ``local_schedule`` reacts to the voltage of a bus as a
relay does, ``device_plan.planned_schedule`` knows the day's base load; both keep within the budgets of movements.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from evcs_gym.envs.errors import ConfigError, ConvergenceError
from evcs_gym.envs.grid.feeder import Feeder
from evcs_gym.envs.grid.powerflow import PowerFlow, power_flow
from evcs_gym.envs.types import ComplexArray, FloatArray, IntArray, frozen


@dataclass(frozen=True)
class Oltc:
    """On-load tap changer at the head: the source's voltage is multiplied by 1 + step_pu * position.

    lowest, highest: positions. start: position before the day. max_moves: steps per day, a move by k positions is k.
    """

    step_pu: float = 0.00625
    lowest: int = -16
    highest: int = 16
    start: int = 0
    max_moves: int = 12


@dataclass(frozen=True)
class CapacitorBank:
    """Capacitors at a bus, switched in steps.

    bus: row of the feeder. kvar_per_step: of the three phases together, at nominal voltage. n_steps: steps of the bank.
    start: steps in service before the day. max_switchings: steps switched in or out per day.
    """

    bus: int
    kvar_per_step: float
    n_steps: int = 1
    start: int = 0
    max_switchings: int = 4


@dataclass(frozen=True)
class Devices:
    """What moves in a network: one tap changer, K banks."""

    tap_changer: Oltc
    banks: tuple[CapacitorBank, ...] = ()


FIXED: Final = Devices(Oltc(lowest=0, highest=0, max_moves=0))
"""The devices of a network that has none."""


@dataclass(frozen=True, eq=False)
class DeviceSchedule:
    """Positions of a day: tap_position (T,), capacitor_step (T, K) steps in service."""

    tap_position: IntArray
    capacitor_step: IntArray


@dataclass(frozen=True)
class LocalControl:
    """Relays: the tap changer holds bus ``bus`` at target_pu +- deadband_pu / 2, each bank its own bus with a deadband
    of its own. What is measured is the mean of the phases present."""

    bus: int
    target_pu: float = 1.0
    deadband_pu: float = 0.02
    capacitor_deadband_pu: float = 0.06


def check_devices(devices: Devices, feeder: Feeder, where: str = "devices") -> None:
    """Refuse devices that cannot be. Raises ConfigError, naming the device."""
    taps = devices.tap_changer
    if not 0.0 < taps.step_pu <= 0.1 or 1.0 + taps.step_pu * taps.lowest <= 0.0:
        raise ConfigError(
            f"{where}: tap_changer.step_pu must be in (0, 0.1] and leave a positive voltage at position "
            f"{taps.lowest}, got {taps.step_pu}"
        )
    if not taps.lowest <= taps.start <= taps.highest or taps.max_moves < 0:
        raise ConfigError(
            f"{where}: tap_changer must have lowest <= start <= highest and max_moves >= 0, got {taps.lowest}, "
            f"{taps.start}, {taps.highest} and {taps.max_moves}"
        )
    for k, bank in enumerate(devices.banks):
        label = f"{where}: capacitors.{k}"
        if not 0 < bank.bus < len(feeder) or not feeder.phase_present[bank.bus].all():
            raise ConfigError(f"{label}.bus must be row 1..{len(feeder) - 1} with three phases, got {bank.bus}")
        if not 0.0 < bank.kvar_per_step < np.inf:
            raise ConfigError(f"{label}.kvar_per_step must be positive and finite, got {bank.kvar_per_step}")
        if not 0 <= bank.start <= bank.n_steps or bank.max_switchings < 0:
            raise ConfigError(
                f"{label} must have 0 <= start <= n_steps and max_switchings >= 0, got {bank.start}, {bank.n_steps} "
                f"and {bank.max_switchings}"
            )


def held(devices: Devices, n_slots: int) -> DeviceSchedule:
    """Nothing moves: the start positions in every slot."""
    start = np.array([bank.start for bank in devices.banks], dtype=np.int64)
    taps = np.full(n_slots, devices.tap_changer.start, dtype=np.int64)
    return DeviceSchedule(frozen(taps), frozen(np.tile(start, (n_slots, 1))))


def head_voltage_pu(devices: Devices, tap_position: IntArray | int, source_pu: float) -> FloatArray:
    """Voltage behind the tap changer, v (1 + step * position), shape of the positions."""
    return np.asarray(source_pu * (1.0 + devices.tap_changer.step_pu * np.asarray(tap_position)))  # (P9)


def bank_kvar(devices: Devices, n_buses: int) -> FloatArray:
    """Nominal kvar of one step of each bank by bus and phase, (K, N, 3): a third per phase."""
    out = np.zeros((len(devices.banks), n_buses, 3))
    for k, bank in enumerate(devices.banks):
        out[k, bank.bus] = bank.kvar_per_step / 3.0
    return out


def capacitor_kvar(devices: Devices, capacitor_step: IntArray, n_buses: int) -> FloatArray:
    """Nominal kvar in service (..., N, 3) of steps (..., K)."""
    return np.asarray(np.tensordot(capacitor_step, bank_kvar(devices, n_buses), axes=1))


def moves_of(devices: Devices, schedule: DeviceSchedule) -> tuple[int, IntArray]:
    """Steps that the tap changer makes and switchings (K,) of the banks, from the start positions on."""
    start = held(devices, 1)
    taps = np.abs(np.diff(schedule.tap_position, prepend=start.tap_position)).sum()
    banks = np.abs(np.diff(schedule.capacitor_step, axis=0, prepend=start.capacitor_step)).sum(axis=0)
    return int(taps), banks.astype(np.int64)


def checked_schedule(devices: Devices, schedule: DeviceSchedule, n_slots: int, where: str) -> DeviceSchedule:
    """The schedule as frozen integers, if the devices can follow it.

    Raises ConfigError for another shape, positions that do not exist and more movements than the budgets allow.
    """
    taps = _whole(schedule.tap_position, (n_slots,), f"{where}: tap_position")
    steps = _whole(schedule.capacitor_step, (n_slots, len(devices.banks)), f"{where}: capacitor_step")
    changer = devices.tap_changer
    _check_range(taps, changer.lowest, changer.highest, f"{where}: tap_position")
    for k, bank in enumerate(devices.banks):
        _check_range(steps[:, k], 0, bank.n_steps, f"{where}: capacitor_step of bank {k}")
    out = DeviceSchedule(taps, steps)
    n_moves, n_switchings = moves_of(devices, out)
    budgets = [("tap_position", n_moves, changer.max_moves)]
    budgets += [
        (f"capacitor_step of bank {k}", int(n), bank.max_switchings)
        for k, (n, bank) in enumerate(zip(n_switchings, devices.banks, strict=True))
    ]
    for name, used, allowed in budgets:
        if used > allowed:
            raise ConfigError(
                f"{where}: {name} must move by at most {allowed} steps a day, counted from the start position, "
                f"got {used}; move less, or raise the budget of the device"
            )
    return out


def _whole(values: Any, shape: tuple[int, ...], name: str) -> IntArray:
    array = np.asarray(values)
    if array.shape != shape or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        raise ConfigError(f"{name} must be integers of shape {shape}, got {array.dtype} of shape {array.shape}")
    return frozen(array.astype(np.int64))  # type: ignore[no-any-return]


def _check_range(values: IntArray, lowest: int, highest: int, name: str) -> None:
    bad = (values < lowest) | (values > highest)
    if bad.any():
        slot = int(np.argmax(bad))
        raise ConfigError(f"{name} must be in {lowest}..{highest}, got {int(values[slot])} in slot {slot}")


def base_flow(
    feeder: Feeder, devices: Devices, schedule: DeviceSchedule, load_kva: ComplexArray, source_pu: float
) -> PowerFlow:
    """Power flow of the loads (T, N, 3) under a schedule."""
    head = head_voltage_pu(devices, schedule.tap_position, source_pu)
    if not devices.banks:
        return power_flow(feeder, load_kva, source_pu=head)
    kvar = capacitor_kvar(devices, schedule.capacitor_step, len(feeder))
    return power_flow(feeder, load_kva, source_pu=head, capacitor_kvar=kvar)


def local_schedule(
    feeder: Feeder, devices: Devices, load_kva: ComplexArray, source_pu: float, control: LocalControl
) -> DeviceSchedule:
    """Positions that relays would take, slot after slot, from the positions of the slot before.

    One device moves at a time, by one step, towards its band: the tap changer first, then the banks in their order,
    until all are inside their bands, at their ends or out of budget. The budgets end every hunt.

    Raises ConvergenceError where a slot has no power flow at the positions in which the devices are.
    """
    taps, steps = devices.tap_changer.start, np.array([bank.start for bank in devices.banks], dtype=np.int64)
    left = np.array([devices.tap_changer.max_moves, *(bank.max_switchings for bank in devices.banks)])
    tap_position, capacitor_step = [], []
    for slot in range(len(load_kva)):
        while True:
            here = DeviceSchedule(np.array([taps]), steps[None])
            flow = base_flow(feeder, devices, here, load_kva[slot : slot + 1], source_pu)
            if not flow.converged[0]:
                raise ConvergenceError(
                    f"devices: slot {slot} has no power flow at tap {taps} and capacitor steps {steps.tolist()}; "
                    "lower the load or begin at a higher tap"
                )
            size = np.abs(flow.voltage_pu[0])
            move = next(_wanted(feeder, devices, control, taps, steps, left, size), None)
            if move is None:
                break
            device, direction = move
            left[device] -= 1
            if device == 0:
                taps += direction
            else:
                steps = steps.copy()
                steps[device - 1] += direction
        tap_position.append(taps)
        capacitor_step.append(steps)
    shape = (len(load_kva), len(devices.banks))
    return DeviceSchedule(
        frozen(np.array(tap_position, dtype=np.int64)), frozen(np.array(capacitor_step, dtype=np.int64).reshape(shape))
    )


def _wanted(
    feeder: Feeder,
    devices: Devices,
    control: LocalControl,
    taps: int,
    steps: IntArray,
    left: IntArray,
    size_pu: FloatArray,
) -> Iterator[tuple[int, int]]:
    """Moves (device, +1 or -1) that relays ask for and devices can make; device 0 is the tap changer."""
    changer = devices.tap_changer
    places = [(control.bus, control.deadband_pu, taps, changer.lowest, changer.highest)]
    places += [
        (bank.bus, control.capacitor_deadband_pu, int(step), 0, bank.n_steps)
        for bank, step in zip(devices.banks, steps, strict=True)
    ]
    for device, (bus, deadband_pu, position, lowest, highest) in enumerate(places):
        off = float(size_pu[bus, feeder.phase_present[bus]].mean()) - control.target_pu
        direction = -1 if off > 0.0 else 1
        outside = abs(off) > deadband_pu / 2.0
        if outside and left[device] > 0 and lowest <= position + direction <= highest:
            yield device, direction
