"""The day of the market with its network as a problem: data, cost of a plan, check of a plan; numpy only.

A *plan* is what every station does and where the devices stand in each slot. The problem re-prices every plan that a
solver returns and puts it through the nonlinear power flow: no solver's word is final. Section 7 (ii) of the model.
"""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from evcs_gym.baselines.problems.market import (
    MarketPlan,
    MarketProblem,
    check_data,
    cost,
    energies_kwh,
    gap_scale_eur,
    positions_kw,
    problem_of,
)
from evcs_gym.baselines.problems.market import check as check_stations
from evcs_gym.envs.errors import ConfigError, InfeasibleError
from evcs_gym.envs.grid import Feeder, PowerFlow, branch_current_a, power_flow, voltage_unbalance_frac
from evcs_gym.envs.grid.devices import Devices, DeviceSchedule, bank_kvar, checked_schedule, head_voltage_pu
from evcs_gym.envs.grid.operator import PASS_TOLERANCE, Limits, excesses, with_stations
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray, IntArray, StationAssets, frozen
from evcs_gym.envs.units import SLOT_H

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

ORDER_TOLERANCE_KW: Final = 1e-5
"""Power by which a plan may miss the order of (N3)."""
MAX_POSITIONS: Final = 10_000
"""Largest number of joint positions of tap changer and banks: each is tried on the base load of every slot."""


class Network(Protocol):
    """What (Q1)-(Q6) read: T slots, S stations, N buses, C joint positions of the devices.

    load_kva (T, N, 3) without stations, limits of every slot, head_pu (C,), station_bus (S,), range_kw: least and
    largest net positions (T, S), reach_kw: no more is given or taken by all stations together, standing_kvar (N, 3):
    capacitors in service beside the banks of the devices.
    """

    @property
    def feeder(self) -> Feeder: ...
    @property
    def devices(self) -> Devices: ...
    @property
    def load_kva(self) -> ComplexArray: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def head_pu(self) -> FloatArray: ...
    @property
    def station_bus(self) -> IntArray: ...
    @property
    def range_kw(self) -> tuple[FloatArray, FloatArray]: ...
    @property
    def reach_kw(self) -> float: ...
    @property
    def standing_kvar(self) -> FloatArray: ...


@dataclass(frozen=True, eq=False)
class NetworkProblem:
    """Market and network of one day; T slots, S stations, N buses, K banks, C joint positions of the devices.

    market: stations, tariffs and series without network. feeder, devices: of the scenario.
    load_kva: (T, N, 3) without stations. limits: effective ones, a row per slot.
    tap_position (C,), capacitor_step (C, K): the joint positions; admissible: (T, C) those under which the base load
    keeps the limits. own: (T,) position of the day's own schedule among them. source_pu: ahead of the tap changer.
    """

    market: MarketProblem
    feeder: Feeder
    devices: Devices
    source_pu: float
    load_kva: ComplexArray
    limits: Limits
    tap_position: IntArray
    capacitor_step: IntArray
    admissible: BoolArray
    own: IntArray

    @property
    def n_slots(self) -> int:
        """Number of slots T."""
        return self.market.n_slots

    @property
    def stations(self) -> StationAssets:
        """What the stations own."""
        return self.market.stations

    @property
    def n_stations(self) -> int:
        """Number of stations S."""
        return len(self.stations)

    @property
    def station_bus(self) -> IntArray:
        """Bus of every station, (S,)."""
        return self.stations.bus

    @property
    def range_kw(self) -> tuple[FloatArray, FloatArray]:
        """See `position_range_kw`."""
        return position_range_kw(self)

    @property
    def reach_kw(self) -> float:
        """All connections together."""
        return float(self.stations.connection_kw.sum())

    @property
    def standing_kvar(self) -> FloatArray:
        """None: every bank is a device."""
        return np.zeros((len(self.feeder), 3))

    @property
    def head_pu(self) -> FloatArray:
        """Voltage behind the tap changer in each joint position, (C,)."""
        return head_voltage_pu(self.devices, self.tap_position, self.source_pu)

    @property
    def kvar(self) -> FloatArray:
        """Nominal kvar in service in each joint position, (C, N, 3)."""
        return steps_kvar(self, self.capacitor_step.astype(np.float64))


@dataclass(frozen=True, eq=False)
class NetworkPlan:
    """What stations do, and the row of the joint positions in which the devices are in each slot, (T,)."""

    stations: MarketPlan
    devices: IntArray


def network_problem(scenario: "Scenario", day: "Day") -> NetworkProblem:
    """The problem of a day.

    Raises:
        ConfigError: a scenario or day without stations, a feeder with equipment, more joint positions of the devices
            than `MAX_POSITIONS`.
    """
    market = problem_of(scenario, day)
    check_data(market)
    feeder, devices = scenario.feeder, scenario.devices
    if feeder.equipment is not None:
        raise ConfigError(
            f"market: network 'misocp' knows lines and constant-power wye loads, and feeder {feeder.name!r} has "
            "equipment; take another feeder or network 'none'"
        )
    tap, step = joint_positions(devices)
    own = _rows_of(tap, step, day.tap_position, day.capacitor_step)
    admissible = admissible_positions(
        feeder, devices, scenario.feeder_spec.source_pu, day.load_kva, day.limits, tap, step
    )
    admissible[np.arange(len(own)), own] = True  # by definition of the effective limits
    return NetworkProblem(
        market=market,
        feeder=feeder,
        devices=devices,
        source_pu=scenario.feeder_spec.source_pu,
        load_kva=day.load_kva,
        limits=day.limits,
        tap_position=frozen(tap),
        capacitor_step=frozen(step),
        admissible=frozen(admissible),
        own=frozen(own),
    )


def joint_positions(devices: Devices) -> tuple[IntArray, IntArray]:
    """Joint positions within reach of the budgets: taps (C,) and steps (C, K).

    Raises:
        ConfigError: more than `MAX_POSITIONS`.
    """
    taps, ranges = devices.tap_changer, []
    ranges.append(
        range(max(taps.lowest, taps.start - taps.max_moves), min(taps.highest, taps.start + taps.max_moves) + 1)
    )
    for bank in devices.banks:
        ranges.append(
            range(max(0, bank.start - bank.max_switchings), min(bank.n_steps, bank.start + bank.max_switchings) + 1)
        )
    n = int(np.prod([len(r) for r in ranges]))
    if n > MAX_POSITIONS:
        raise ConfigError(
            f"market: network 'misocp' tries at most {MAX_POSITIONS} joint positions of tap changer and capacitor "
            f"banks, got {n}; lower budgets or steps"
        )
    rows = np.array(list(itertools.product(*ranges)), dtype=np.int64)
    return rows[:, 0].copy(), rows[:, 1:].copy()


def _rows_of(tap: IntArray, step: IntArray, tap_position: IntArray, capacitor_step: IntArray) -> IntArray:
    """(T,) rows of given positions among the joint ones."""
    same = (tap[None] == tap_position[:, None]) & (step[None] == capacitor_step[:, None]).all(axis=2)
    return np.asarray(same.argmax(axis=1), dtype=np.int64)


def admissible_positions(
    feeder: Feeder,
    devices: Devices,
    source_pu: float,
    load_kva: ComplexArray,
    limits: Limits,
    tap_position: IntArray,
    capacitor_step: IntArray,
) -> BoolArray:
    """(T, C) whether the base load (T, N, 3) keeps the limits under each joint position, by the power flow."""
    n_slots, n_positions = len(load_kva), len(tap_position)
    kvar = np.tensordot(capacitor_step, bank_kvar(devices, len(feeder)), axes=1)
    head = head_voltage_pu(devices, tap_position, source_pu)
    out = np.zeros((n_slots, n_positions), dtype=np.bool_)
    for slot in range(n_slots):
        load = np.repeat(load_kva[slot : slot + 1], n_positions, axis=0)
        flow = power_flow(feeder, load, head, capacitor_kvar=kvar)
        here = rows_of_limits(limits, np.full(n_positions, slot))
        out[slot] = (excesses(feeder, here, load, flow, head, kvar) <= PASS_TOLERANCE).all(axis=1)
    return out


def rows_of_limits(limits: Limits, rows: IntArray) -> Limits:
    """The limits of some slots."""
    return Limits(**{name: getattr(limits, name)[rows] for name in Limits.__dataclass_fields__})


def position_kw(problem: NetworkProblem, plan: NetworkPlan) -> FloatArray:
    """Net positions (T, S), a surplus is positive."""
    return positions_kw(problem.market, plan.stations)


def position_range_kw(problem: NetworkProblem) -> tuple[FloatArray, FloatArray]:
    """(T, S) least and largest net position of any policy: caps bound it at unchanged sign, so that nobody who sells
    has drivers waiting, and nobody who buys curtails."""
    assets, own = problem.stations, problem.market.pv_kw - problem.market.ev_kw
    largest = np.clip(own + assets.storage_kw, 0.0, assets.connection_kw)
    least = -np.clip(assets.storage_kw - own, 0.0, assets.connection_kw)
    return least, largest


def storage_range_kw(problem: NetworkProblem, storage_kw: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(T, S) least and largest storage power that can be executed where the powers before were ``storage_kw``."""
    assets = problem.stations
    kept = energies_kwh(problem.market, storage_kw)[:-1] * (1.0 - assets.self_discharge_frac)
    room = np.maximum(assets.storage_kwh - kept, 0.0) / (assets.charge_efficiency_frac * SLOT_H)
    stock = np.maximum(kept - assets.energy_min_kwh, 0.0) * assets.discharge_efficiency_frac / SLOT_H
    return -np.minimum(assets.storage_kw, stock), np.minimum(assets.storage_kw, room)


def cost_eur(problem: NetworkProblem, plan: NetworkPlan) -> float:
    """Community cost (C) of a plan: what a replay through the environment must return."""
    return cost(problem.market, plan.stations)


def scale_eur(problem: NetworkProblem, cost_of_plan_eur: float) -> float:
    """What gaps and errors are relative to: max(1 EUR, |cost|, all deficits of the day with idle storages)."""
    return max(1.0, abs(cost_of_plan_eur), gap_scale_eur(problem.market))


def schedule_of(problem: NetworkProblem, plan: NetworkPlan) -> DeviceSchedule:
    """The plan's positions of tap changer and banks."""
    return DeviceSchedule(problem.tap_position[plan.devices], problem.capacitor_step[plan.devices])


def plan_flow(problem: NetworkProblem, plan: NetworkPlan, slots: IntArray | None = None) -> PowerFlow:
    """Nonlinear power flow of the plan in some slots, all by default."""
    rows = np.arange(problem.n_slots) if slots is None else slots
    load = plan_load_kva(problem, plan)[rows]
    where = plan.devices[rows]
    return power_flow(problem.feeder, load, problem.head_pu[where], 1e-11, capacitor_kvar=problem.kvar[where])


def plan_load_kva(problem: NetworkProblem, plan: NetworkPlan) -> ComplexArray:
    """Loads (T, N, 3) with the stations of the plan."""
    return with_stations(problem.load_kva, position_kw(problem, plan), problem.stations.bus)


def plan_excess(problem: NetworkProblem, plan: NetworkPlan) -> FloatArray:
    """(T, 5) by how much the plan exceeds the limits, see `operator.excesses`; negative where there is room."""
    where = plan.devices
    return excesses(
        problem.feeder,
        problem.limits,
        plan_load_kva(problem, plan),
        plan_flow(problem, plan),
        problem.head_pu[where],
        problem.kvar[where],
    )


LIMIT_NAMES: Final = ("undervoltage_pu", "overvoltage_pu", "current_frac", "head_frac", "unbalance_frac")
"""The limits, in the order of `operator.excesses`; the last word is the unit of an excess."""


@dataclass(frozen=True)
class Breach:
    """The worst place of a limit in a slot: limit, one of `LIMIT_NAMES`; excess in its unit, negative with room."""

    limit: str
    slot: int
    bus: int
    excess: float

    def __str__(self) -> str:
        kind, unit = self.limit.rsplit("_", maxsplit=1)
        return f"{kind} of {self.excess:.3g} {unit} at bus {self.bus} in slot {self.slot}"


def worst_places(problem: NetworkProblem, plan: NetworkPlan) -> list[Breach]:
    """For each limit the slot and bus where the plan's power flow is furthest beyond it or nearest to it; a bus stands
    for its branch from the parent, 0 for the head. Limits that nothing could reach are left out."""
    out = []
    for limit, excess in zip(LIMIT_NAMES, _excess_by_bus(problem, plan), strict=True):
        slot, bus = divmod(int(np.argmax(excess)), excess.shape[1])
        if np.isfinite(excess[slot, bus]):
            out.append(Breach(limit, slot, bus, float(excess[slot, bus])))
    return out


def breaches(problem: NetworkProblem, plan: NetworkPlan, tolerance: float) -> list[Breach]:
    """The worst bus of every limit and slot that the plan exceeds by more than the tolerance, the worst first."""
    out = []
    for limit, excess in zip(LIMIT_NAMES, _excess_by_bus(problem, plan), strict=True):
        for slot in np.flatnonzero(excess.max(axis=1) > tolerance).tolist():
            bus = int(np.argmax(excess[slot]))
            out.append(Breach(limit, slot, bus, float(excess[slot, bus])))
    return sorted(out, key=lambda breach: -breach.excess)


def _excess_by_bus(problem: NetworkProblem, plan: NetworkPlan) -> list[FloatArray]:
    """(T, N) excesses of every limit, as in `operator.excesses`; -inf where a bus has no such limit."""
    flow, limits = plan_flow(problem, plan), problem.limits
    size, there = np.abs(flow.voltage_pu), problem.feeder.phase_present
    amperes = np.abs(branch_current_pu(problem, plan, flow)).max(axis=2) * problem.feeder.base_current_a
    current, head = amperes / limits.current_a - 1.0, np.full(size.shape[:2], -np.inf)
    current[:, 0] = -np.inf
    head[:, 0] = plan_excess(problem, plan)[:, 3]
    return [
        np.where(there, limits.vmin_pu - size, -np.inf).max(axis=2),
        np.where(there, size - limits.vmax_pu, -np.inf).max(axis=2),
        np.where(np.isfinite(limits.current_a), current, -np.inf),
        head,
        voltage_unbalance_frac(flow.voltage_pu) - limits.unbalance_frac,
    ]


def common_excess(problem: NetworkProblem, plan: NetworkPlan) -> FloatArray:
    """(T,) the largest excess over a limit in the units of the programme: squared voltages, shares of the largest
    squared current and of the head's kVA, unbalance as such; negative where there is room."""
    head, kvar = problem.head_pu[plan.devices], problem.kvar[plan.devices]
    return excess_at(problem, problem.limits, position_kw(problem, plan), head, kvar)


def excess_at(
    problem: NetworkProblem, limits: Limits, position: FloatArray, head_pu: FloatArray, kvar: FloatArray
) -> FloatArray:
    """`common_excess` over any limits at positions (T, S), head voltages (T,) and capacitors in service (T, N, 3)."""
    load = with_stations(problem.load_kva, position, problem.stations.bus)
    flow = power_flow(problem.feeder, load, head_pu, 1e-11, capacitor_kvar=kvar)
    there = problem.feeder.phase_present.copy()
    there[0] = False
    size_sq = np.abs(flow.voltage_pu) ** 2
    below = np.where(there, limits.vmin_pu**2 - size_sq, -np.inf).max(axis=(1, 2))
    above = np.where(there, size_sq - limits.vmax_pu**2, -np.inf).max(axis=(1, 2))
    current = np.abs(branch_current_a(problem.feeder, load, flow.voltage_pu, None, kvar)).max(axis=2)[:, 1:]
    over = ((current / limits.current_a[:, 1:]) ** 2 - 1.0).max(axis=1)
    excess = excesses(problem.feeder, limits, load, flow, head_pu, kvar)
    return np.asarray(np.max([below, above, over, excess[:, 3], excess[:, 4]], axis=0))


def widened(limits: Limits, by: float) -> Limits:
    """Limits that are wider by so many pu, or such a share."""
    return Limits(
        vmin_pu=limits.vmin_pu - by,
        vmax_pu=limits.vmax_pu + by,
        current_a=limits.current_a * (1.0 + by),
        head_kva=limits.head_kva * (1.0 + by),
        unbalance_frac=limits.unbalance_frac + by,
    )


def steps_kvar(problem: NetworkProblem, in_service: FloatArray) -> FloatArray:
    """Capacitors (T, N, 3) of so many steps of each bank (T, K), fractions too."""
    return np.asarray(np.tensordot(in_service, bank_kvar(problem.devices, len(problem.feeder)), axes=1))


def position_excess(problem: NetworkProblem, position: FloatArray) -> FloatArray:
    """(T, C) by how much positions (T, S) exceed the limits under every joint position, negative with room."""
    out = np.empty(problem.admissible.shape)
    n_positions = len(problem.tap_position)
    for slot in range(problem.n_slots):
        base = np.repeat(problem.load_kva[slot : slot + 1], n_positions, axis=0)
        load = with_stations(base, np.repeat(position[slot : slot + 1], n_positions, axis=0), problem.stations.bus)
        flow = power_flow(problem.feeder, load, problem.head_pu, capacitor_kvar=problem.kvar)
        here = rows_of_limits(problem.limits, np.full(n_positions, slot))
        out[slot] = excesses(problem.feeder, here, load, flow, problem.head_pu, problem.kvar).max(axis=1)
    return out


def branch_current_pu(problem: NetworkProblem, plan: NetworkPlan, flow: PowerFlow) -> ComplexArray:
    """Branch currents (T, N, 3) of the plan's power flow [pu]."""
    current = branch_current_a(
        problem.feeder, plan_load_kva(problem, plan), flow.voltage_pu, None, problem.kvar[plan.devices]
    )
    return np.asarray(current / problem.feeder.base_current_a)


def check(problem: NetworkProblem, plan: NetworkPlan) -> None:
    """InfeasibleError where a plan breaks a rule of the stations, ConfigError where its devices cannot follow it.

    The order of (N3) is part of it: nobody curtails or leaves drivers waiting whose storage could still move.
    """
    check_stations(problem.market, plan.stations)
    own = plan.stations
    least, largest = storage_range_kw(problem, own.storage_kw)
    rules = (
        ("PV is curtailed after the storage took what it can", np.minimum(own.curtailed_kw, largest - own.storage_kw)),
        ("drivers wait after the storage gave what it can", np.minimum(own.unserved_kw, own.storage_kw - least)),
    )
    for rule, excess in rules:
        slot, station = divmod(int(np.argmax(excess)), problem.n_stations)
        if excess[slot, station] > ORDER_TOLERANCE_KW:
            raise InfeasibleError(
                f"plan: {rule}, but station {problem.stations.name[station]!r} misses it by "
                f"{excess[slot, station]:.3g} kW in slot {slot}"
            )
    possible = problem.admissible[np.arange(problem.n_slots), plan.devices]
    if not possible.all():
        raise InfeasibleError(
            "plan: the base load must keep its limits under the devices, but does not in slot "
            f"{int(np.argmin(possible))}"
        )
    checked_schedule(problem.devices, schedule_of(problem, plan), problem.n_slots, "plan")
