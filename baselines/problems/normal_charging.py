"""Normal charging of one day as a problem: its data, the cost of a plan, the check of a plan; numpy only.

A *plan* is the charging power of every session in every slot, ``power_kw`` (T, S). The problem re-prices every plan
that a solver returns: no solver's word is final. Equations (5)-(8) of Sun, Yang, Yan (2017),
10.1186/s41601-017-0065-x, in EUR as model.md section 9 states them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evcs_gym.baselines.problems.balance import Balance, imbalance_kw
from evcs_gym.envs.errors import DataError, InfeasibleError
from evcs_gym.envs.fleet.needs import ChargingMode, session_needs
from evcs_gym.envs.grid import Feeder, power_flow
from evcs_gym.envs.types import BALANCED, BoolArray, ComplexArray, FloatArray, IntArray, frozen
from evcs_gym.envs.units import SLOT_H

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

POWER_TOLERANCE_KW = 1e-6
"""A plan may exceed a car's power by this: the tolerance of the environment's own check."""
ENERGY_TOLERANCE_KWH = 1e-6
"""A plan may miss a car's energy by this."""
N_CONNECTIONS = 4
"""Connections of a car to its bus: one of three phases, or balanced (3)."""
EQUAL_POWER_RTOL = 1e-9
"""Cars whose powers differ by less charge with one power."""


@dataclass(frozen=True, eq=False)
class NormalProblem:
    """Cars, series and weights of one day; S sessions, T slots, C charging buses.

    mode: ``on_off`` (a car charges in exactly ``n_slots`` slots with ``power_kw``) or ``modulated`` (with at most
    ``power_kw`` in every slot, ``energy_kwh`` in all).
    bus (column), phase, arrival_slot, departure_slot, car: as in `Sessions`, (S,).
    power_kw, energy_kwh, n_slots, infeasible_kwh: as in `Needs`, (S,).
    net_kw: base load minus DG, (T, C). import_eur_per_kwh: (T,).
    gap_eur_per_kwh: omega1, price of |base + charging - DG|. energy_weight: factor of the charging cost.
    """

    mode: ChargingMode
    bus: IntArray
    phase: IntArray
    arrival_slot: IntArray
    departure_slot: IntArray
    car: IntArray
    power_kw: FloatArray
    energy_kwh: FloatArray
    n_slots: IntArray
    infeasible_kwh: FloatArray
    net_kw: FloatArray
    import_eur_per_kwh: FloatArray
    gap_eur_per_kwh: float
    energy_weight: float
    balance: Balance = "exchange"

    @property
    def n_sessions(self) -> int:
        """Number of sessions S."""
        return len(self.bus)


@dataclass(frozen=True, eq=False)
class NetworkProblem:
    """The network of the same day: N feeder buses, P phases.

    load_kva: net load without cars, (T, N, P). base_voltage_pu: magnitude of its power flow.
    vmin_pu, vmax_pu: effective limits, (T, N, P). source_pu: head voltage, (T,). capacitor_kvar: nominal kvar of the
    capacitors in service, (T, N, P); None where there are none.
    charging_bus: feeder bus of each column, (C,). voltage_eur_per_pu: price of one bus-phase and slot.
    """

    feeder: Feeder
    source_pu: FloatArray
    charging_bus: IntArray
    load_kva: ComplexArray
    base_voltage_pu: FloatArray
    vmin_pu: FloatArray
    vmax_pu: FloatArray
    voltage_eur_per_pu: float
    capacitor_kvar: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class Classes:
    """Cars that no equation can tell apart, counted; K classes, M cells = (class, slot of its stay).

    bus, phase, arrival_slot, departure_slot, n_cars: (K,). power_kw: (K,). need_slots: slots at ``power_kw`` that one
    car needs, a whole number in ``on_off``, (K,). class_of: class of each session, (S,), -1 for a session without need.
    cell_class, cell_slot: (M,), sorted by class, then slot. first_cell: (K + 1,).
    """

    bus: IntArray
    phase: IntArray
    arrival_slot: IntArray
    departure_slot: IntArray
    power_kw: FloatArray
    need_slots: FloatArray
    n_cars: IntArray
    class_of: IntArray
    cell_class: IntArray
    cell_slot: IntArray
    first_cell: IntArray


@dataclass(frozen=True, eq=False)
class NormalPlan:
    """Charging power of every session in every slot, (T, S)."""

    power_kw: FloatArray


def problem_of(scenario: "Scenario", day: "Day", mode: ChargingMode | None = None) -> NormalProblem:
    """The problem of a day; ``mode`` overrides the scenario's (the bound is always of ``modulated``)."""
    spec = scenario.normal_charging
    mode = spec.mode if mode is None else mode
    needs, sessions = session_needs(day.sessions, mode), day.sessions
    return NormalProblem(
        mode=mode,
        bus=sessions.bus,
        phase=sessions.phase,
        arrival_slot=sessions.arrival_slot,
        departure_slot=sessions.departure_slot,
        car=sessions.car,
        power_kw=needs.power_kw,
        energy_kwh=needs.energy_kwh,
        n_slots=needs.n_slots,
        infeasible_kwh=needs.infeasible_kwh,
        net_kw=frozen(day.base_kw - day.dg_kw),
        import_eur_per_kwh=day.import_eur_per_kwh,
        gap_eur_per_kwh=spec.omega1_eur_per_kwh,
        energy_weight=spec.energy_weight,
    )


def network_of(scenario: "Scenario", day: "Day") -> NetworkProblem:
    """The network part of the same day."""
    return NetworkProblem(
        feeder=day.feeder,
        source_pu=day.source_pu,
        charging_bus=day.charging_bus,
        load_kva=day.load_kva,
        base_voltage_pu=day.base_voltage_pu,
        vmin_pu=day.vmin_pu,
        vmax_pu=day.vmax_pu,
        voltage_eur_per_pu=scenario.normal_charging.voltage_eur_per_pu,
        capacitor_kvar=day.capacitor_kvar if scenario.devices.banks else None,
    )


def check_data(problem: NormalProblem) -> None:
    """Refuse data that no plan can meet.

    Raises:
        InfeasibleError: a stay outside the day, more energy or slots than the stay has, slots and energy that differ.
        DataError: NaN, a negative price of the gap or an unknown bus.
    """
    n_slots, n_buses = problem.net_kw.shape
    for name in ("net_kw", "import_eur_per_kwh", "power_kw", "energy_kwh"):
        if not np.isfinite(getattr(problem, name)).all():
            raise DataError(f"problem.{name} must be finite, got NaN or infinity")
    if problem.gap_eur_per_kwh < 0.0 or problem.energy_weight < 0.0:
        raise DataError(
            "problem.gap_eur_per_kwh and problem.energy_weight must not be negative, got "
            f"{problem.gap_eur_per_kwh} and {problem.energy_weight}: (5) is convex only then"
        )
    if problem.balance != "exchange" and problem.mode == "on_off":
        raise DataError(
            f"problem.balance must be exchange where problem.mode is on_off, got {problem.balance}: its local search "
            "knows no other; take modulated"
        )
    if problem.n_sessions and not (problem.bus.min() >= 0 and problem.bus.max() < n_buses):
        raise DataError(f"problem.bus must be in 0..{n_buses - 1}, got {problem.bus.min()}..{problem.bus.max()}")
    stay = problem.departure_slot - problem.arrival_slot
    outside = (problem.arrival_slot < 0) | (problem.departure_slot > n_slots) | (stay <= 0)
    _refuse(problem, outside, f"must stay within slots 0..{n_slots - 1} and leave after it arrives")
    room_kwh = problem.power_kw * SLOT_H * stay
    _refuse(problem, problem.energy_kwh > room_kwh + ENERGY_TOLERANCE_KWH, "needs more energy than its stay can give")
    if problem.mode == "on_off":
        _refuse(problem, problem.n_slots > stay, "needs more slots than its stay has")
        exact = np.abs(problem.n_slots * problem.power_kw * SLOT_H - problem.energy_kwh)
        _refuse(problem, exact > ENERGY_TOLERANCE_KWH, "must get its energy in exactly n_slots slots")


def _refuse(problem: NormalProblem, bad: BoolArray, rule: str) -> None:
    if bad.any():
        i = int(np.argmax(bad))
        raise InfeasibleError(
            f"session {i} (car {int(problem.car[i])}) {rule}: arrival_slot {int(problem.arrival_slot[i])}, "
            f"departure_slot {int(problem.departure_slot[i])}, energy_kwh {problem.energy_kwh[i]:.6g}, "
            f"n_slots {int(problem.n_slots[i])}, power_kw {problem.power_kw[i]:.6g}; correct the session"
        )


def classes_of(problem: NormalProblem) -> Classes:
    """Group the sessions that need energy; see `Classes`."""
    needy = np.flatnonzero(problem.n_slots > 0)
    need = problem.n_slots[needy].astype(np.float64)
    if problem.mode == "modulated":
        need = problem.energy_kwh[needy] / (problem.power_kw[needy] * SLOT_H)
    integers = (problem.bus, problem.phase, problem.arrival_slot, problem.departure_slot)
    key = np.column_stack([*(array[needy] for array in integers), problem.power_kw[needy], need])
    unique, first, inverse, count = np.unique(key, axis=0, return_index=True, return_inverse=True, return_counts=True)
    one = needy[first]
    arrival, departure = problem.arrival_slot[one], problem.departure_slot[one]
    stay = departure - arrival
    class_of = np.full(problem.n_sessions, -1, dtype=np.int64)
    class_of[needy] = inverse.ravel()
    first_cell = np.concatenate([[0], np.cumsum(stay)]).astype(np.int64)
    cell_class = np.repeat(np.arange(len(one)), stay)
    return Classes(
        bus=problem.bus[one],
        phase=problem.phase[one],
        arrival_slot=arrival,
        departure_slot=departure,
        power_kw=unique[:, 4] if len(one) else np.zeros(0),
        # a need that rounds to the whole stay must not exceed it
        need_slots=np.minimum(unique[:, 5], stay) if len(one) else np.zeros(0),
        n_cars=count.astype(np.int64),
        class_of=class_of,
        cell_class=cell_class,
        cell_slot=np.arange(len(cell_class)) - first_cell[cell_class] + arrival[cell_class],
        first_cell=first_cell,
    )


def one_power_per_bus(classes: Classes, n_buses: int) -> FloatArray:
    """Common power of the cars of each bus [kW], NaN where they differ or there are none, (C,)."""
    power = np.full(n_buses, np.nan)
    for bus in range(n_buses):
        here = classes.power_kw[classes.bus == bus]
        if len(here) and np.ptp(here) <= EQUAL_POWER_RTOL * here.max():
            power[bus] = here.mean()
    return power


def plan_of_cells(problem: NormalProblem, classes: Classes, charging: FloatArray) -> FloatArray:
    """Plan (T, S) of the number of cars that charge in each cell (M,).

    ``on_off``: the slots of a class, each as often as cars charge in it, are dealt to its cars in turn: every car gets
    its number of slots, none gets a slot twice. ``modulated``: its cars share equally.
    """
    power_kw = np.zeros((len(problem.net_kw), problem.n_sessions))
    order = np.argsort(classes.class_of, kind="stable")
    first = np.searchsorted(classes.class_of[order], np.arange(len(classes.n_cars) + 1))
    for k in range(len(classes.n_cars)):
        cells = slice(classes.first_cell[k], classes.first_cell[k + 1])
        cars, slots = order[first[k] : first[k + 1]], classes.cell_slot[cells]
        if problem.mode == "modulated":
            power_kw[np.ix_(slots, cars)] = (charging[cells] * classes.power_kw[k] / len(cars))[:, None]
            continue
        dealt = np.repeat(slots, np.rint(charging[cells]).astype(np.int64))
        power_kw[dealt, cars[np.arange(len(dealt)) % len(cars)]] = classes.power_kw[k]
    return power_kw


def cells_of_plan(problem: NormalProblem, classes: Classes, power_kw: FloatArray) -> FloatArray:
    """How many cars of each class charge in each of its slots, (M,); the inverse of `plan_of_cells`."""
    needy = np.flatnonzero(classes.class_of >= 0)
    total_kw = np.zeros((len(classes.n_cars), len(power_kw)))
    np.add.at(total_kw, classes.class_of[needy], power_kw[:, needy].T)
    return np.asarray(total_kw[classes.cell_class, classes.cell_slot] / classes.power_kw[classes.cell_class])


def on_arrival_cells(classes: Classes) -> FloatArray:
    """Cars of each cell (M,) that charge if each starts on arrival: feasible in both modes."""
    since = classes.cell_slot - classes.arrival_slot[classes.cell_class]
    share = np.clip(classes.need_slots[classes.cell_class] - since, 0.0, 1.0)
    return np.asarray(share * classes.n_cars[classes.cell_class])


def bus_power_kw(problem: NormalProblem, power_kw: FloatArray) -> FloatArray:
    """Charging power of each bus, (T, C)."""
    member = np.zeros((problem.n_sessions, problem.net_kw.shape[1]))
    member[np.arange(problem.n_sessions), problem.bus] = 1.0
    return np.asarray(power_kw @ member)


def cost(problem: NormalProblem, power_kw: FloatArray) -> float:
    """Cost of a plan (T, S) without the voltage term [EUR]: the two terms of (5), summed over slots and buses."""
    charging_kw = bus_power_kw(problem, power_kw)
    gap_kw = imbalance_kw(problem.balance, problem.net_kw + charging_kw, problem.net_kw)
    gap_eur = problem.gap_eur_per_kwh * SLOT_H * gap_kw
    energy_eur = problem.energy_weight * SLOT_H * (problem.import_eur_per_kwh @ charging_kw).sum()
    return float(gap_eur + energy_eur)


def check(problem: NormalProblem, power_kw: FloatArray) -> None:
    """Refuse a plan (T, S) that breaks (8), a stay or a power limit.

    Raises:
        DataError: wrong shape or NaN. InfeasibleError: names the car, the slot and what must hold.
    """
    shape = (len(problem.net_kw), problem.n_sessions)
    if power_kw.shape != shape or not np.isfinite(power_kw).all():
        raise DataError(f"a plan must be a finite array {shape} (slots, sessions), got {power_kw.shape} or NaN")
    slot = np.arange(shape[0])[:, None]
    away = (slot < problem.arrival_slot) | (slot >= problem.departure_slot)
    _refuse_plan(problem, power_kw, away & (np.abs(power_kw) > POWER_TOLERANCE_KW), "is away and must not charge")
    low, high = power_kw < -POWER_TOLERANCE_KW, power_kw > problem.power_kw + POWER_TOLERANCE_KW
    _refuse_plan(problem, power_kw, low | high, "must charge within 0 and its power")
    if problem.mode == "on_off":
        on, full = power_kw > POWER_TOLERANCE_KW, np.abs(power_kw - problem.power_kw) <= POWER_TOLERANCE_KW
        _refuse_plan(problem, power_kw, on & ~full, "must charge with its full power or not at all")
        n_on = (on & full).sum(axis=0)
        wrong = np.broadcast_to(n_on != problem.n_slots, shape) & (slot == problem.departure_slot - 1)
        _refuse_plan(problem, power_kw, wrong, "must have charged in exactly its n_slots slots by its departure")
    missing = np.abs(power_kw.sum(axis=0) * SLOT_H - problem.energy_kwh) > ENERGY_TOLERANCE_KWH
    wrong = np.broadcast_to(missing, shape) & (slot == problem.departure_slot - 1)
    _refuse_plan(problem, power_kw, wrong, "must have received exactly its energy by its departure (8)")


def _refuse_plan(problem: NormalProblem, power_kw: FloatArray, bad: BoolArray, rule: str) -> None:
    if bad.any():
        t, i = (int(index) for index in np.argwhere(bad)[0])
        got = f"{power_kw[t, i]:.6g} kW in this slot, {power_kw[:, i].sum() * SLOT_H:.6g} kWh in all"
        raise InfeasibleError(
            f"session {i} (car {int(problem.car[i])}), slot {t}: the car {rule}; it stays in slots "
            f"{int(problem.arrival_slot[i])}..{int(problem.departure_slot[i]) - 1}, has {problem.power_kw[i]:.6g} kW, "
            f"{int(problem.n_slots[i])} slots and {problem.energy_kwh[i]:.6g} kWh to get; the plan gives {got}"
        )


def connection_power_kw(problem: NormalProblem, power_kw: FloatArray) -> FloatArray:
    """Charging power by slot, charging bus and connection (three phases, balanced), (T, C, 4)."""
    member = np.zeros((problem.n_sessions, problem.net_kw.shape[1], N_CONNECTIONS))
    member[np.arange(problem.n_sessions), problem.bus, connection_of(problem.phase)] = 1.0
    return np.asarray(np.tensordot(power_kw, member, axes=1))


def connection_of(phase: IntArray) -> IntArray:
    """Index of a car's connection: its phase, or 3 if it is balanced."""
    return np.where(phase == BALANCED, N_CONNECTIONS - 1, phase).astype(np.int64)


def phase_power_kw(problem: NormalProblem, power_kw: FloatArray) -> FloatArray:
    """Charging power by slot, charging bus and phase, (T, C, P): a third on each phase for balanced cars."""
    by_connection = connection_power_kw(problem, power_kw)
    return np.asarray(by_connection[:, :, :3] + by_connection[:, :, 3:] / 3.0)


def plan_voltage(problem: NormalProblem, network: NetworkProblem, power_kw: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Voltage magnitude of a plan by the exact power flow, (T, N, P), and whether each slot converged, (T,).

    A collapsed slot has zero volts everywhere, as in the environment.
    """
    load, cars_kw = network.load_kva.copy(), phase_power_kw(problem, power_kw)
    for column, bus in enumerate(network.charging_bus):
        load[:, bus] += cars_kw[:, column]
    flow = power_flow(network.feeder, load, source_pu=network.source_pu, capacitor_kvar=network.capacitor_kvar)
    return np.where(flow.converged[:, None, None], np.abs(flow.voltage_pu), 0.0), flow.converged


def excess_pu(network: NetworkProblem, voltage_pu: FloatArray) -> FloatArray:
    """(7) How far each bus-phase is outside its effective limits, 0 inside and at the source, (T, N, P)."""
    excess = np.maximum(np.maximum(network.vmin_pu - voltage_pu, voltage_pu - network.vmax_pu), 0.0)
    excess[:, 0] = 0.0
    return np.asarray(excess)


def voltage_cost(network: NetworkProblem, voltage_pu: FloatArray) -> float:
    """Price of the voltages outside the effective limits [EUR]."""
    return float(network.voltage_eur_per_pu * excess_pu(network, voltage_pu).sum())
