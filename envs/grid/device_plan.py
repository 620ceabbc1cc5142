"""Device positions for a day whose base load is known: a dynamic programme within the budgets of movements.

Lexicographic: first the least room to the voltage limits over all buses, phases and slots is made as large as it can
be; among the schedules that reach it, the sum over the slots of the squared distance of the worst voltage from the
middle of the band is made least. The state is (tap, tap moves used) and, of each bank, (steps, switchings used).
"""

import itertools
from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from evcs_gym.envs.errors import ConfigError, ConvergenceError
from evcs_gym.envs.grid.devices import Devices, DeviceSchedule, base_flow
from evcs_gym.envs.grid.feeder import Feeder
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray, IntArray, frozen

MAX_STATES: Final = 200_000
"""Largest number of states per slot: about a second a day."""


@dataclass(frozen=True, eq=False)
class BankStates:
    """What banks can be in: combinations (C, K) of steps; states S of (combination, switchings used).

    combination: (S,) row of the combinations. successor: (S, A) states that a slot can lead to, itself first, -1 where
    there are fewer than A. first: state before the day.
    """

    combinations: IntArray
    combination: IntArray
    successor: IntArray
    first: int


def bank_states(devices: Devices) -> BankStates:
    """All states of the banks that can be reached from the start, in the order of discovery."""
    banks = devices.banks
    combinations = list(itertools.product(*(range(bank.n_steps + 1) for bank in banks)))
    row = {steps: index for index, steps in enumerate(combinations)}
    start = (tuple(bank.start for bank in banks), (0,) * len(banks))
    index, found, successors = {start: 0}, [start], []
    for steps, used in found:
        ways = []
        for target in combinations:
            spent = tuple(u + abs(b - a) for u, a, b in zip(used, steps, target, strict=True))
            if any(s > bank.max_switchings for s, bank in zip(spent, banks, strict=True)):
                continue
            state = (target, spent)
            if state not in index:
                if len(index) >= MAX_STATES:
                    raise _too_many(len(index))
                index[state] = len(found)
                found.append(state)
            ways.append(index[state])
        itself = index[(steps, used)]
        successors.append([itself, *(way for way in ways if way != itself)])
    table = np.full((len(found), max(map(len, successors))), -1, dtype=np.int64)
    for state_row, ways in enumerate(successors):
        table[state_row, : len(ways)] = ways
    return BankStates(
        combinations=np.array(combinations, dtype=np.int64).reshape(len(combinations), len(banks)),
        combination=np.array([row[steps] for steps, _ in found], dtype=np.int64),
        successor=table,
        first=0,
    )


def _too_many(n_states: int) -> ConfigError:
    return ConfigError(
        f"devices: the dynamic programme may have at most {MAX_STATES} states, got {n_states} or more; lower steps or "
        "budgets, or take controller: local or schedule"
    )


def planned_schedule(
    feeder: Feeder,
    devices: Devices,
    load_kva: ComplexArray,
    source_pu: float,
    vmin_pu: float,
    vmax_pu: float,
) -> DeviceSchedule:
    """The positions with the largest least room to the limits, and with voltages near the middle of the band.

    load_kva: (T, N, 3) base load. Voltages of the positions are interpolated (see ``worst_distance_pu``), so that the
    caller looks at the power flow of the schedule, as everyone does.

    Raises ConfigError for devices with more than ``MAX_STATES`` states, ConvergenceError where a slot has no power flow
    whatever the positions.
    """
    changer, states = devices.tap_changer, bank_states(devices)
    lowest = max(changer.lowest, changer.start - changer.max_moves)
    highest = min(changer.highest, changer.start + changer.max_moves)
    taps = np.arange(lowest, highest + 1)
    n_moves = min(changer.max_moves, len(load_kva) * (highest - lowest))
    n_states = len(states.combination) * len(taps) * (n_moves + 1)
    if n_states > MAX_STATES:
        raise _too_many(n_states)
    distance = worst_distance_pu(feeder, devices, states, taps, load_kva, source_pu, 0.5 * (vmin_pu + vmax_pu))
    first_tap = changer.start - lowest
    worst, _, _ = best_path(distance, states, first_tap, n_moves, True)
    if not np.isfinite(worst):
        slot = int(np.argmin(np.isfinite(distance).any(axis=(1, 2))))
        raise ConvergenceError(
            f"devices: slot {slot} has no power flow at any position that can be reached; lower the base load"
        )
    cost = np.where(distance <= worst, distance**2, np.inf)
    _, tap, state = best_path(cost, states, first_tap, n_moves, False)
    steps = states.combinations[states.combination[state]]
    return DeviceSchedule(frozen(tap + lowest), frozen(steps))


def worst_distance_pu(
    feeder: Feeder,
    devices: Devices,
    states: BankStates,
    taps: IntArray,
    load_kva: ComplexArray,
    source_pu: float,
    middle_pu: float,
) -> FloatArray:
    """(T, C, X) largest distance of a voltage from the middle of the band, of slots, combinations and taps.

    Power flows at three taps, at the ends and between, and a parabola through each bus's voltages: about 2e-5 pu off
    over 24 taps (the voltage is smooth in the tap), which does not matter to a choice that is then looked at. If one
    of them does not converge, every tap gets a power flow of its own; without one the distance is infinite.
    """
    nodes = np.unique(taps[[0, len(taps) // 2, -1]])
    size, converged = _voltages(feeder, devices, states, nodes, load_kva, source_pu)
    if not converged.all():
        nodes = taps
        size, converged = _voltages(feeder, devices, states, nodes, load_kva, source_pu)
    if len(nodes) < len(taps):
        size = np.einsum("xk,tckv->tcxv", _lagrange(nodes, taps), size, optimize=True)
    distance: FloatArray = np.abs(size - middle_pu).max(axis=-1)
    return distance if converged.all() else np.where(converged, distance, np.inf)


def _voltages(
    feeder: Feeder, devices: Devices, states: BankStates, taps: IntArray, load_kva: ComplexArray, source_pu: float
) -> tuple[FloatArray, BoolArray]:
    """Magnitudes (T, C, X, V) of the V bus-phases present, and whether the flows converged (T, C, X)."""
    shape = (len(load_kva), len(states.combinations), len(taps))
    rows = np.indices(shape).reshape(3, -1)
    schedule = DeviceSchedule(taps[rows[2]], states.combinations[rows[1]])
    flow = base_flow(feeder, devices, schedule, load_kva[rows[0]], source_pu)
    size = np.abs(flow.voltage_pu)[:, feeder.phase_present]
    return size.reshape(*shape, -1), flow.converged.reshape(shape)


def _lagrange(nodes: IntArray, at: IntArray) -> FloatArray:
    """(X, K) weights of the values at K nodes in the polynomial through them, at X places."""
    weights = np.ones((len(at), len(nodes)))
    for k, node in enumerate(nodes):
        for other in np.delete(nodes, k):
            weights[:, k] *= (at - other) / (node - other)
    return weights


def best_path(
    cost: FloatArray, states: BankStates, first_tap: int, n_moves: int, bottleneck: bool
) -> tuple[float, IntArray, IntArray]:
    """Least sum, or least maximum (bottleneck), of cost (T, C, X) over the slots; taps (T,), bank states (T,).

    n_moves: budget of the tap changer. Of equal paths the one that moves last is taken. An infinite value has no path.
    """
    n_slots, _, n_taps = cost.shape
    tap, state = np.empty(n_slots, dtype=np.int64), np.empty(n_slots, dtype=np.int64)
    shape = (n_slots, len(states.combination), n_taps, n_moves + 1)
    to_tap, to_state = np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.int32)
    tables = (np.ascontiguousarray(cost), states.combination, states.successor)
    value = walk(*tables, first_tap, states.first, bottleneck, to_tap, to_state, tap, state)
    return float(value), tap, state


@numba.njit(nogil=True, cache=True)
def walk(
    cost: FloatArray,
    combination: IntArray,
    successor: IntArray,
    first_tap: int,
    first_state: int,
    bottleneck: bool,
    to_tap: NDArray[np.int32],
    to_state: NDArray[np.int32],
    tap: IntArray,
    state: IntArray,
) -> float:
    """Backward recursion into to_tap and to_state (T, S, X, M + 1), then forward from the start into tap and state."""
    n_slots, n_states, n_taps, n_used = to_tap.shape
    value = np.zeros((n_states, n_taps, n_used))
    moved = np.empty((n_states, n_taps, n_used))
    for t in range(n_slots - 1, -1, -1):
        for s in range(n_states):
            move_taps(cost[t, combination[s]], value[s], bottleneck, moved[s], to_tap[t, s])
        switch_banks(moved, successor, value, to_state[t])
    s, x, used = first_state, first_tap, 0
    total = value[s, x, used]
    for t in range(n_slots):
        s = to_state[t, s, x, used]
        target = to_tap[t, s, x, used]
        used += abs(target - x)
        x = target
        tap[t], state[t] = x, s
    return float(total)


@numba.njit(nogil=True, cache=True)
def move_taps(
    cost: FloatArray, later: FloatArray, bottleneck: bool, moved: FloatArray, to_tap: NDArray[np.int32]
) -> None:
    """Best tap of a slot (X,) for every tap and number of moves used before it, (X, M + 1), the banks in their state.

    A move by k positions is k moves by one, so that each looks at its neighbours only.
    """
    n_taps, n_used = moved.shape
    for used in range(n_used - 1, -1, -1):
        for x in range(n_taps):
            here = max(cost[x], later[x, used]) if bottleneck else cost[x] + later[x, used]  # (P10)
            best, target = here, x
            if used + 1 < n_used:
                if x > 0 and moved[x - 1, used + 1] < best:
                    best, target = moved[x - 1, used + 1], to_tap[x - 1, used + 1]
                if x + 1 < n_taps and moved[x + 1, used + 1] < best:
                    best, target = moved[x + 1, used + 1], to_tap[x + 1, used + 1]
            moved[x, used] = best
            to_tap[x, used] = target


@numba.njit(nogil=True, cache=True)
def switch_banks(moved: FloatArray, successor: IntArray, value: FloatArray, to_state: NDArray[np.int32]) -> None:
    """Best state of the banks in a slot, (S, X, M + 1), for every state before it."""
    n_states, n_taps, n_used = moved.shape
    for s in range(n_states):
        for x in range(n_taps):
            for used in range(n_used):
                value[s, x, used] = moved[s, x, used]
                to_state[s, x, used] = s
                for way in range(1, successor.shape[1]):
                    other = successor[s, way]
                    if other >= 0 and moved[other, x, used] < value[s, x, used]:
                        value[s, x, used] = moved[other, x, used]
                        to_state[s, x, used] = other
