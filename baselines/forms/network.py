"""The network-constrained market in Pyomo, (Q1) to (Q6) of model.md section 7 (ii); knows no solver.

Three models share the functions below: `day_form`, the stations and devices of the whole day without the network;
`slot_form`, the network of one slot for given positions, head voltage and capacitor steps with the least common excess
over its limits as objective; `adjustment_form`, the least adjustment of given positions that keeps the limits of a
slot. `whole_form` is the first and the network of every slot at once, for small horizons. Pyomo carries what is linear;
cones stand beside it as `Cone` records over its variables. Powers of the network are per unit of one phase, v and l are
squared magnitudes of voltage and current.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyomo.environ as pyo
from pyomo.core.expr.numeric_expr import LinearExpression

from evcs_gym.baselines.forms.market import MarketForm, market
from evcs_gym.baselines.problems.network import Network, NetworkProblem, position_range_kw
from evcs_gym.envs.grid import Feeder, voltage_unbalance_frac
from evcs_gym.envs.grid.devices import bank_kvar
from evcs_gym.envs.grid.powerflow import PHASE_UNIT
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray
from evcs_gym.envs.units import PHASE_BASE_KVA

VOLTAGE_BOX_PU: Final = (0.6, 1.4)
"""No voltage outside is looked for: twice as far from 1 as any limit in use."""
EXCESS_BOX: Final = (-1.0, 5.0)
"""Range of the common excess over the limits."""
BOUND_SLACK: Final = 1e-4
"""What (N4) allows beyond the limits: a bound takes them wider by this."""
_ROTATION: Final = np.exp(2j * np.pi / 3.0)

Row = tuple[float, tuple[float, ...], tuple[Any, ...]]
"""An affine row: constant, factors, variables."""


@dataclass(frozen=True, eq=False)
class Cone:
    """Affine rows of which the first is at least the Euclidean norm of the others."""

    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, eq=False)
class Reference:
    """What one slot is linearised at: complex voltage_pu and branch current_pu (N, 3) of a power flow."""

    voltage_pu: ComplexArray
    current_pu: ComplexArray


@dataclass(frozen=True, eq=False)
class Tightness:
    """How a slot's limits are taken. relaxed: all limits are wider by this (pu, or share of the limit). majorant_pu:
    with a number, l may exceed the tangent of (P2 + Q2) / v at the reference by that much and no more."""

    relaxed: float = 0.0
    majorant_pu: float | None = None


@dataclass(frozen=True, eq=False)
class SlotForm:
    """A model, its cones, and the variables that the day shares with the slot: positions (S,) [kW], the squared head
    voltage, and steps in service of each bank, one variable per step."""

    model: Any
    cones: list[Cone]
    shared: list[Any]


@dataclass(frozen=True, eq=False)
class DayForm:
    """The market's form with devices and, for each slot, what it shares with the network, as in `SlotForm.shared`."""

    stations: MarketForm
    shared: list[list[Any]]


# -- the day: stations, auction, devices ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Orders:
    """Cells (slot, station) in which binaries enforce what the optimum respects nearly everywhere by itself: storage
    moves before PV is curtailed, and before drivers wait (N3). That a storage does not charge and discharge at once
    needs none: it burns energy, which curtailing or not buying does for less."""

    curtail: frozenset[tuple[int, int]] = frozenset()
    unserved: frozenset[tuple[int, int]] = frozenset()


NO_ORDERS: Final = Orders()


def day_form(problem: NetworkProblem, allowed: BoolArray, orders: Orders = NO_ORDERS) -> DayForm:
    """min (C) over what stations do and over the allowed (T, C) joint positions; the network is not in it."""
    stations = market(problem.market)
    model = stations.model
    least, largest = position_range_kw(problem)
    for (t, s), variable in model.position_kw.items():
        variable.setlb(float(least[t, s]))
        variable.setub(float(largest[t, s]))
    n3_storage_first(model, problem, orders)
    _device_variables(model, problem, allowed)
    one_position(model, problem)
    head_voltage(model, problem)
    steps_in_service(model, problem)
    movement_budgets(model, problem)
    steps = list(model.step_index)
    shared = [
        [*(model.position_kw[t, s] for s in model.stations), model.head[t], *(model.step[t, k, i] for k, i in steps)]
        for t in model.slots
    ]
    return DayForm(stations, shared)


def n3_storage_first(model: Any, problem: NetworkProblem, orders: Orders) -> None:
    """(N3): PV is curtailed only where the storage charges at full power or gets full; drivers wait only where it gives
    full power or gets empty. Two binaries name the reason."""
    own, market_problem = problem.stations, problem.market
    for name in ("curtail", "unserved"):
        cells = [(t, s, k) for t, s in sorted(getattr(orders, name)) for k in range(2)]
        setattr(model, f"{name}_reason", pyo.Var(cells, domain=pyo.Binary))
    model.n3_order = pyo.ConstraintList()
    add = model.n3_order.add
    for t, s in sorted(orders.curtail):
        strong, full, pv = model.curtail_reason[t, s, 0], model.curtail_reason[t, s, 1], market_problem.pv_kw[t, s]
        power, size = own.storage_kw[s], own.storage_kwh[s]
        add(_at_most([(1.0, model.curtailed_kw[t, s]), (-pv, strong), (-pv, full)], 0.0))
        add(_at_most([(2 * power, strong), (-1.0, model.charge_kw[t, s]), (1.0, model.discharge_kw[t, s])], power))
        add(_at_most([(size, full), (-1.0, model.energy_kwh[t + 1, s])], 0.0))
    for t, s in sorted(orders.unserved):
        strong, empty, ev = model.unserved_reason[t, s, 0], model.unserved_reason[t, s, 1], market_problem.ev_kw[t, s]
        power, room = own.storage_kw[s], own.storage_kwh[s] - own.energy_min_kwh[s]
        add(_at_most([(1.0, model.unserved_kw[t, s]), (-ev, strong), (-ev, empty)], 0.0))
        add(_at_most([(2 * power, strong), (1.0, model.charge_kw[t, s]), (-1.0, model.discharge_kw[t, s])], power))
        add(_at_most([(1.0, model.energy_kwh[t + 1, s]), (room, empty)], own.storage_kwh[s]))


def _device_variables(model: Any, problem: NetworkProblem, allowed: BoolArray) -> None:
    """One-hot joint positions, and what they make of the head voltage and of every step."""
    slots = range(problem.n_slots)
    cells = [(int(t), int(c)) for t, c in np.argwhere(allowed)]
    head_sq = problem.head_pu**2
    model.chosen = pyo.Var(cells, domain=pyo.Binary)
    model.choices = {t: [c for u, c in cells if u == t] for t in slots}
    model.head = pyo.Var(slots, bounds=(float(head_sq.min()), float(head_sq.max())))
    model.step_index = [(k, i) for k, bank in enumerate(problem.devices.banks) for i in range(bank.n_steps)]
    model.step = pyo.Var([(t, k, i) for t in slots for k, i in model.step_index], bounds=(0.0, 1.0))


def one_position(model: Any, problem: NetworkProblem) -> None:
    """(Q1), OLTC and banks: one joint position in every slot."""

    def rule(_: Any, t: int) -> Any:
        return _equal([(1.0, model.chosen[t, c]) for c in model.choices[t]], 1.0)

    model.q1_one_position = pyo.Constraint(range(problem.n_slots), rule=rule)


def head_voltage(model: Any, problem: NetworkProblem) -> None:
    """(Q1), OLTC: the squared head voltage of the chosen position, exact."""
    head_sq = problem.head_pu**2

    def rule(_: Any, t: int) -> Any:
        return _equal([(1.0, model.head[t]), *((-head_sq[c], model.chosen[t, c]) for c in model.choices[t])], 0.0)

    model.q1_head = pyo.Constraint(range(problem.n_slots), rule=rule)


def steps_in_service(model: Any, problem: NetworkProblem) -> None:
    """(Q3), banks: step i of a bank is in service where the chosen position has more than i steps."""
    steps = problem.capacitor_step

    def rule(_: Any, t: int, k: int, i: int) -> Any:
        on = [(-1.0, model.chosen[t, c]) for c in model.choices[t] if steps[c, k] > i]
        return _equal([(1.0, model.step[t, k, i]), *on], 0.0)

    model.q3_steps = pyo.Constraint(list(model.step), rule=rule)


def movement_budgets(model: Any, problem: NetworkProblem) -> None:
    """(Q5), devices: movements over the day, counted from the start positions, keep their budgets."""
    taps, banks = problem.devices.tap_changer, problem.devices.banks
    moves = [(problem.tap_position, taps.start, taps.max_moves)]
    moves += [(problem.capacitor_step[:, k], bank.start, bank.max_switchings) for k, bank in enumerate(banks)]
    slots = range(problem.n_slots)
    model.moved = pyo.Var(slots, range(len(moves)), bounds=lambda _, t, m: (0.0, float(max(moves[m][2], 0))))
    model.q5_moves = pyo.ConstraintList()
    for m, (place, start, budget) in enumerate(moves):
        for t in slots:
            now = [(float(place[c]), model.chosen[t, c]) for c in model.choices[t]]
            before = [] if t == 0 else [(-float(place[c]), model.chosen[t - 1, c]) for c in model.choices[t - 1]]
            fixed = float(start) if t == 0 else 0.0
            for sign in (1.0, -1.0):
                change = [(sign * factor, variable) for factor, variable in [*now, *before]]
                model.q5_moves.add(_at_most([*change, (-1.0, model.moved[t, m])], sign * fixed))
        model.q5_moves.add(_at_most([(1.0, model.moved[t, m]) for t in slots], float(budget)))


# -- the slot: three phases, linearised coupling between them ---------------------------------------------------------


def slot_form(problem: Network, slot: int, reference: Reference, tightness: Tightness) -> SlotForm:
    """The network of one slot: least common excess over the limits for given positions, head voltage and steps."""
    model = pyo.ConcreteModel(name=f"network of slot {slot}")
    shared = _shared_variables(model, problem, slot)
    model.excess = pyo.Var(bounds=EXCESS_BOX)
    cones = add_network(model, problem, slot, reference, tightness, shared, model.excess)
    model.cost = pyo.Objective(expr=1.0 * model.excess)
    return SlotForm(model, cones, shared)


def adjustment_form(
    problem: Network, slot: int, reference: Reference, tightness: Tightness, position_kw: FloatArray
) -> SlotForm:
    """The least adjustment of given positions (S,) of one slot that keeps its limits: min sum |position_kw| - |g|, each
    g between zero and what was given, which the ranges of the problem say. A cost of 1 is the power base of a phase."""
    model = pyo.ConcreteModel(name=f"adjustment of slot {slot}")
    shared = _shared_variables(model, problem, slot)
    cones = add_network(model, problem, slot, reference, tightness, shared, None)
    sign = np.sign(position_kw) / PHASE_BASE_KVA
    terms = [(-float(sign[s]), model.position[s]) for s in range(len(position_kw))]
    model.cost = pyo.Objective(expr=_sum(terms) + float(sign @ position_kw))
    return SlotForm(model, cones, shared)


def _shared_variables(model: Any, problem: Network, slot: int) -> list[Any]:
    """Positions within their ranges, the squared head voltage, and every step of a bank; as in `SlotForm.shared`."""
    (least, largest), head_sq = problem.range_kw, problem.head_pu**2
    stations = range(len(problem.station_bus))
    model.position = pyo.Var(stations, bounds=lambda _, s: (float(least[slot, s]), float(largest[slot, s])))
    model.head = pyo.Var(bounds=(float(head_sq.min()), float(head_sq.max())))
    steps = [(k, i) for k, bank in enumerate(problem.devices.banks) for i in range(bank.n_steps)]
    model.step = pyo.Var(steps, bounds=(0.0, 1.0))
    return [*model.position.values(), model.head, *model.step.values()]


def whole_form(
    problem: NetworkProblem, references: Sequence[Reference], tightness: Tightness
) -> tuple[DayForm, list[Cone]]:
    """Day and network in one model, with the order of (N3) everywhere: the oracle on small horizons."""
    cells = frozenset((t, s) for t in range(problem.n_slots) for s in range(problem.n_stations))
    form = day_form(problem, problem.admissible, Orders(cells, cells))
    model = form.stations.model
    model.network = pyo.Block(range(problem.n_slots))
    cones: list[Cone] = []
    for t, reference in enumerate(references):
        cones += add_network(model.network[t], problem, t, reference, tightness, form.shared[t], None)
    return form, cones


def add_network(
    model: Any,
    problem: Network,
    slot: int,
    reference: Reference,
    tightness: Tightness,
    shared: Sequence[Any],
    excess: Any | None,
) -> list[Cone]:
    """Variables and (Q1)-(Q6) of a slot. shared: of `SlotForm`. excess: what all limits are widened by, or None."""
    net = _Network.of(problem, slot, reference, tightness, shared, excess)
    _network_variables(model, net)
    q1_voltage_drop(model, net)
    q2_active_balance(model, net)
    q3_reactive_balance(model, net)
    q3_capacitors(model, net)
    q5_limits(model, net)
    if tightness.majorant_pu is None:
        q4_chord(model, net)
    else:
        q4_majorant(model, net)
    return [*q4_cone(model, net), *q5_transformer(model, net), *q6_unbalance(model, net)]


@dataclass(frozen=True, eq=False)
class _Network:
    """What the functions of a slot read. cells: (bus, phase) that exist behind the source; children of every bus;
    coupling: z~, kappa, eta of the branch to every bus but the source."""

    problem: Network
    slot: int
    reference: Reference
    tightness: Tightness
    position: list[Any]
    head: Any
    step: dict[tuple[int, int], Any]
    excess: Any | None
    cells: list[tuple[int, int]]
    children: list[list[int]]
    self_pu: ComplexArray
    coupling: dict[int, tuple[ComplexArray, ComplexArray, FloatArray]]

    @classmethod
    def of(
        cls,
        problem: Network,
        slot: int,
        reference: Reference,
        tightness: Tightness,
        shared: Sequence[Any],
        excess: Any,
    ) -> "_Network":
        feeder, n = problem.feeder, len(problem.station_bus)
        present = feeder.phase_present
        cells = [(j, f) for j in feeder.sweep_order[1:].tolist() for f in range(3) if present[j, f]]
        children: list[list[int]] = [[] for _ in range(len(feeder))]
        for j in feeder.sweep_order[1:].tolist():
            children[feeder.parent[j]].append(j)
        steps = [(k, i) for k, bank in enumerate(problem.devices.banks) for i in range(bank.n_steps)]
        step = dict(zip(steps, shared[n + 1 :], strict=True))
        position, head = list(shared[:n]), shared[n]
        self_pu = self_impedance_pu(feeder)
        coupling = {bus: _coupling(feeder, reference, self_pu, bus) for bus in range(1, len(feeder))}
        own = (position, head, step, excess, cells, children, self_pu, coupling)
        return cls(problem, slot, reference, tightness, *own)

    @property
    def feeder(self) -> Feeder:
        return self.problem.feeder

    def present(self, bus: int) -> list[int]:
        """Phases of a bus."""
        return np.flatnonzero(self.feeder.phase_present[bus]).tolist()

    def above(self, model: Any, bus: int, phase: int) -> Any:
        """Squared voltage at the parent of a bus."""
        parent = int(self.feeder.parent[bus])
        return self.head if parent == 0 else model.v[parent, phase]

    def slack(self, scale: float) -> list[tuple[float, Any]]:
        """The excess in the unit of a row."""
        return [] if self.excess is None else [(-scale, self.excess)]


def self_impedance_pu(feeder: Feeder) -> ComplexArray:
    """(N,) z1 of every branch: mean self less mean mutual impedance of the phases present, 0 with one phase."""
    out = np.zeros(len(feeder), dtype=np.complex128)
    for bus in range(1, len(feeder)):
        present = np.flatnonzero(feeder.phase_present[bus])
        inner = feeder.impedance_pu[bus][np.ix_(present, present)]
        if len(present) > 1:
            mutual = (inner.sum() - np.trace(inner)) / (len(present) * (len(present) - 1))
            out[bus] = np.trace(inner) / len(present) - mutual
    return out


def _coupling(
    feeder: Feeder, reference: Reference, self_pu: ComplexArray, bus: int
) -> tuple[ComplexArray, ComplexArray, FloatArray]:
    """Of the branch to a bus: z~ (3, 3), kappa (3,), eta (3,) at the reference; zero on absent phases."""
    z1, voltage, current = self_pu[bus], reference.voltage_pu[feeder.parent[bus]], reference.current_pu[bus]
    impedance, there = feeder.impedance_pu[bus], feeder.phase_present[bus]
    ratio = np.where(there[:, None] & there[None], voltage[:, None] / np.where(there, voltage, 1.0)[None], 0.0)
    drop = impedance @ current
    kappa = drop * np.conj(current) - z1 * np.abs(current) ** 2
    eta = np.abs(drop) ** 2 - np.abs(z1) ** 2 * np.abs(current) ** 2
    return np.conj(impedance) * ratio, kappa, eta


def power_box_pu(problem: Network) -> float:
    """No branch carries more per phase: twice all loads and all that stations can give or take."""
    own = np.abs(problem.load_kva).sum(axis=(1, 2)).max() + problem.reach_kw
    banks = sum(bank.kvar_per_step * bank.n_steps for bank in problem.devices.banks) + problem.standing_kvar.sum()
    return float(2.0 * (own + banks) / PHASE_BASE_KVA)


def current_box(problem: Network, slot: int, relaxed: float) -> FloatArray:
    """(N,) limit of l: the ampacity where there is one, else what the box of powers allows."""
    limit = problem.limits.current_a[slot] / problem.feeder.base_current_a * (1.0 + relaxed)
    return np.asarray(np.minimum(limit, power_box_pu(problem) / VOLTAGE_BOX_PU[0]) ** 2)


def _network_variables(model: Any, net: _Network) -> None:
    box, low, high = power_box_pu(net.problem), VOLTAGE_BOX_PU[0] ** 2, VOLTAGE_BOX_PU[1] ** 2
    limit = current_box(net.problem, net.slot, net.tightness.relaxed)
    widest = 1.0 if net.excess is None else 1.0 + EXCESS_BOX[1]
    model.P = pyo.Var(net.cells, bounds=(-box, box))
    model.Q = pyo.Var(net.cells, bounds=(-box, box))
    model.v = pyo.Var(net.cells, bounds=(low, high))
    model.l = pyo.Var(net.cells, bounds=lambda _, j, f: (0.0, float(limit[j]) * widest))
    banks = [(k, i, f) for k, i in net.step for f in range(3)]
    most = {(k, i): net.problem.devices.banks[k].kvar_per_step / 3.0 / PHASE_BASE_KVA * high for k, i in net.step}
    model.kvar = pyo.Var(banks, bounds=lambda _, k, i, f: (0.0, most[k, i]))


def q1_voltage_drop(model: Any, net: _Network) -> None:
    """(Q1): v_j = v_i - 2 sum_p [Re z~ P - Im z~ Q] + |z1|^2 l + eta."""

    def rule(_: Any, j: int, f: int) -> Any:
        coupling, _kappa, eta = net.coupling[j]
        body = [(1.0, model.v[j, f]), (-1.0, net.above(model, j, f)), (-(abs(net.self_pu[j]) ** 2), model.l[j, f])]
        for p in net.present(j):
            body += [(2.0 * coupling[f, p].real, model.P[j, p]), (-2.0 * coupling[f, p].imag, model.Q[j, p])]
        return _equal(body, float(eta[f]))

    model.q1_voltage_drop = pyo.Constraint(net.cells, rule=rule)


def q2_active_balance(model: Any, net: _Network) -> None:
    """(Q2): what arrives, P - Re z1 l - Re kappa, and the stations' injection supply load and branches below."""
    bus_of, load = net.problem.station_bus.tolist(), net.problem.load_kva[net.slot]

    def rule(_: Any, j: int, f: int) -> Any:
        _coupled, kappa, _eta = net.coupling[j]
        body = [(1.0, model.P[j, f]), (-net.self_pu[j].real, model.l[j, f])]
        body += [(-1.0, model.P[k, f]) for k in net.children[j] if net.feeder.phase_present[k, f]]
        body += [(1.0 / (3.0 * PHASE_BASE_KVA), net.position[s]) for s, bus in enumerate(bus_of) if bus == j]
        return _equal(body, float(load[j, f].real / PHASE_BASE_KVA + kappa[f].real))

    model.q2_active_balance = pyo.Constraint(net.cells, rule=rule)


def q3_reactive_balance(model: Any, net: _Network) -> None:
    """(Q3): the same for reactive power, with the capacitors in service; those that stand give b v."""
    load, standing = net.problem.load_kva[net.slot], net.problem.standing_kvar / PHASE_BASE_KVA

    def rule(_: Any, j: int, f: int) -> Any:
        _coupled, kappa, _eta = net.coupling[j]
        body = [(1.0, model.Q[j, f]), (-net.self_pu[j].imag, model.l[j, f])]
        body += [(-1.0, model.Q[k, f]) for k in net.children[j] if net.feeder.phase_present[k, f]]
        body += [(1.0, model.kvar[k, i, f]) for k, i in net.step if net.problem.devices.banks[k].bus == j]
        body += [(float(standing[j, f]), model.v[j, f])] if standing[j, f] > 0.0 else []
        return _equal(body, float(load[j, f].imag / PHASE_BASE_KVA + kappa[f].imag))

    model.q3_reactive_balance = pyo.Constraint(net.cells, rule=rule)


def q3_capacitors(model: Any, net: _Network) -> None:
    """(Q3), banks: a step gives b v where it is in service and nothing elsewhere; exact for whole steps."""
    low, high = VOLTAGE_BOX_PU[0] ** 2, VOLTAGE_BOX_PU[1] ** 2
    nominal = bank_kvar(net.problem.devices, len(net.feeder)) / PHASE_BASE_KVA
    model.q3_capacitors = pyo.ConstraintList()
    for (k, i), step in net.step.items():
        bus = net.problem.devices.banks[k].bus
        for f in range(3):
            b, given, v = float(nominal[k, bus, f]), model.kvar[k, i, f], model.v[bus, f]
            model.q3_capacitors.add(_at_most([(1.0, given), (-b * high, step)], 0.0))
            model.q3_capacitors.add(_at_most([(-1.0, given), (b * low, step)], 0.0))
            model.q3_capacitors.add(_at_most([(1.0, given), (-b, v), (-b * low, step)], -b * low))
            model.q3_capacitors.add(_at_most([(-1.0, given), (b, v), (b * high, step)], b * high))


def q4_cone(model: Any, net: _Network) -> list[Cone]:
    """(Q4): P^2 + Q^2 <= v_i l, as |(2 P, 2 Q, v_i - l)| <= v_i + l."""
    cones = []
    for j, f in net.cells:
        above, current = net.above(model, j, f), model.l[j, f]
        rows: tuple[Row, ...] = (
            (0.0, (1.0, 1.0), (above, current)), (0.0, (1.0, -1.0), (above, current)),
            (0.0, (2.0,), (model.P[j, f],)), (0.0, (2.0,), (model.Q[j, f],)),
        )  # fmt: skip
        cones.append(Cone(f"q4_cone[{j},{f}]", rows))
    return cones


def branch_ranges_pu(problem: Network, slot: int) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """(N, 3) least and largest P, then Q, at the head of every branch, whatever stations and banks do in the slot.

    What flows is the loads below, the stations below within their ranges, and losses: at most sum_p |Z_fp| times the
    square of the largest current. That is the limit's, or what the ranges themselves say at the least voltage; each
    pass is true if the one before it is.
    """
    feeder, present = problem.feeder, problem.feeder.phase_present
    floor_sq = np.where(present, least_voltage_sq(problem, slot, BOUND_SLACK), np.inf)[feeder.parent]
    current_sq = np.repeat(current_box(problem, slot, BOUND_SLACK)[:, None], 3, axis=1)
    lowest, highest = _injected(problem, slot)
    for _ in range(N_RANGE_PASSES):
        lost = np.abs(feeder.impedance_pu).sum(axis=2) * current_sq.max(axis=1)[:, None]
        low, high = lowest.copy(), highest.copy()
        for bus in feeder.sweep_order[:0:-1].tolist():
            low[:, bus] -= lost[bus]
            high[:, bus] += lost[bus]
            low[:, feeder.parent[bus]] += low[:, bus]
            high[:, feeder.parent[bus]] += high[:, bus]
        largest = np.maximum(np.abs(low), np.abs(high))
        current_sq = np.minimum(current_sq, (largest**2).sum(axis=0) / floor_sq)
    return low[0], high[0], low[1], high[1]


def _injected(problem: Network, slot: int) -> tuple[FloatArray, FloatArray]:
    """Least and largest (2, N, 3) P and Q that buses draw: loads, stations and banks."""
    load = problem.load_kva[slot] / PHASE_BASE_KVA
    low, high = np.stack([load.real, load.imag]), np.stack([load.real, load.imag])
    least, largest = problem.range_kw
    for s, bus in enumerate(problem.station_bus.tolist()):
        low[0, bus] -= largest[slot, s] / (3.0 * PHASE_BASE_KVA)
        high[0, bus] -= least[slot, s] / (3.0 * PHASE_BASE_KVA)
    for bank in problem.devices.banks:
        most = bank.kvar_per_step * bank.n_steps / (3.0 * PHASE_BASE_KVA)
        low[1, bank.bus] -= most * VOLTAGE_BOX_PU[1] ** 2
    low[1] -= problem.standing_kvar / PHASE_BASE_KVA * VOLTAGE_BOX_PU[1] ** 2
    return low, high


N_RANGE_PASSES: Final = 6


def least_voltage_sq(problem: Network, slot: int, relaxed: float) -> FloatArray:
    """(N, 3) least squared voltage that limits and tap positions leave; 0 on absent phases."""
    least = (np.asarray(problem.limits.vmin_pu[slot]) - relaxed) ** 2
    least[0] = problem.head_pu.min() ** 2
    return np.where(problem.feeder.phase_present, least, 0.0)


def q4_chord(model: Any, net: _Network) -> None:
    """(Q4) from above: l v_i = P^2 + Q^2 lies below the chords of both squares over all that a branch can carry.

    True of every power flow that keeps its limits, so a bound stays one: it keeps the relaxation from losing surplus in
    a current that does not flow.
    """
    p_low, p_high, q_low, q_high = branch_ranges_pu(net.problem, net.slot)
    least = least_voltage_sq(net.problem, net.slot, net.tightness.relaxed)
    model.q4_chord = pyo.ConstraintList()
    for j, f in net.cells:
        floor = float(least[net.feeder.parent[j], f])
        p, q = (p_low[j, f], p_high[j, f]), (q_low[j, f], q_high[j, f])
        body = [(floor, model.l[j, f]), (-(p[0] + p[1]), model.P[j, f]), (-(q[0] + q[1]), model.Q[j, f])]
        model.q4_chord.add(_at_most([*body, *net.slack(1.0)], float(-p[0] * p[1] - q[0] * q[1])))


def q4_majorant(model: Any, net: _Network) -> None:
    """(Q4) from above, for plans only: l exceeds the tangent of (P^2 + Q^2) / v_i at the reference by at most delta."""
    delta = net.tightness.majorant_pu
    model.q4_majorant = pyo.ConstraintList()
    for j, f in net.cells:
        v0 = net.reference.voltage_pu[net.feeder.parent[j], f]
        s0 = v0 * np.conj(net.reference.current_pu[j, f])
        p, q = s0.real / abs(v0) ** 2, s0.imag / abs(v0) ** 2
        body = [(1.0, model.l[j, f]), (-2.0 * p, model.P[j, f]), (-2.0 * q, model.Q[j, f])]
        body.append((p * p + q * q, net.above(model, j, f)))
        model.q4_majorant.add(_at_most(body, float(delta or 0.0)))


def q5_limits(model: Any, net: _Network) -> None:
    """(Q5): effective limits of voltage and current; the excess widens v by itself, l by itself times the limit."""
    limits, relaxed = net.problem.limits, net.tightness.relaxed
    low, high = (limits.vmin_pu[net.slot] - relaxed) ** 2, (limits.vmax_pu[net.slot] + relaxed) ** 2
    largest = current_box(net.problem, net.slot, relaxed)
    model.q5_undervoltage = pyo.Constraint(
        net.cells, rule=lambda _, j, f: _at_most([(-1.0, model.v[j, f]), *net.slack(1.0)], -float(low[j, f]))
    )
    model.q5_overvoltage = pyo.Constraint(
        net.cells, rule=lambda _, j, f: _at_most([(1.0, model.v[j, f]), *net.slack(1.0)], float(high[j, f]))
    )
    model.q5_current = pyo.Constraint(
        net.cells,
        rule=lambda _, j, f: _at_most([(1.0, model.l[j, f]), *net.slack(float(largest[j]))], float(largest[j])),
    )


def q5_transformer(model: Any, net: _Network) -> list[Cone]:
    """(Q5), head: apparent power of the three phases together."""
    limit = float(net.problem.limits.head_kva[net.slot] / PHASE_BASE_KVA) * (1.0 + net.tightness.relaxed)
    if not np.isfinite(limit):
        return []
    first = [(j, f) for j in net.children[0] for f in net.present(j)]
    slack = net.slack(-limit)
    rows: tuple[Row, ...] = (
        (limit, tuple(a for a, _ in slack), tuple(x for _, x in slack)),
        (0.0, (1.0,) * len(first), tuple(model.P[cell] for cell in first)),
        (0.0, (1.0,) * len(first), tuple(model.Q[cell] for cell in first)),
    )
    return [Cone("q5_transformer", rows)]


UNBALANCE_WATCH_FRAC: Final = 0.7
"""Buses whose unbalance at the reference exceeds this share of the limit get (Q6); elsewhere it is far from binding,
leaving it out only relaxes, and the power flow of the plan looks at every bus."""


def q6_unbalance(model: Any, net: _Network) -> list[Cone]:
    """(Q6): |V-| <= limit Re(V+ turned to the real axis), both linear in P and Q with voltages of the reference."""
    voltage = net.reference.voltage_pu
    limit = net.problem.limits.unbalance_frac[net.slot] + net.tightness.relaxed
    watched = np.flatnonzero(voltage_unbalance_frac(voltage) > UNBALANCE_WATCH_FRAC * limit)
    minus = np.array([1.0, _ROTATION**2, _ROTATION], dtype=np.complex128) / 3.0
    plus = np.array([1.0, _ROTATION, _ROTATION**2], dtype=np.complex128) / 3.0
    head_pu = float(np.abs(voltage[0]).mean())
    cones = []
    for bus in watched.tolist():
        turn = np.exp(-1j * np.angle(plus @ voltage[bus]))
        negative, positive = (
            _path_rows(model, net, bus, np.asarray(minus)),
            _path_rows(model, net, bus, np.asarray(plus * turn)),
        )
        # the head's voltage is linear in its square around the reference
        start = complex(plus @ PHASE_UNIT) * turn
        frac = float(limit[bus])
        first = [(frac * start.real / (2.0 * head_pu), net.head), *((frac * a, x) for a, x in positive[0])]
        first += [(-factor, x) for factor, x in net.slack(abs(complex(plus @ voltage[bus])))]
        rows = (_row(frac * start.real * head_pu / 2.0, first), _row(0.0, negative[0]), _row(0.0, negative[1]))
        cones.append(Cone(f"q6_unbalance[{bus}]", rows))
    return cones


def _path_rows(model: Any, net: _Network, bus: int, weight: ComplexArray) -> tuple[list[tuple[float, Any]], ...]:
    """Real and imaginary part of -weight . sum over the path of Z conj((P + jQ) / V_i), as terms."""
    real: list[tuple[float, Any]] = []
    imaginary: list[tuple[float, Any]] = []
    while bus > 0:
        above = net.reference.voltage_pu[net.feeder.parent[bus]]
        for p in net.present(bus):
            factor = -(weight @ net.feeder.impedance_pu[bus][:, p]) / np.conj(above[p])
            real += [(factor.real, model.P[bus, p]), (factor.imag, model.Q[bus, p])]
            imaginary += [(factor.imag, model.P[bus, p]), (-factor.real, model.Q[bus, p])]
        bus = int(net.feeder.parent[bus])
    return real, imaginary


# -- linear rows ------------------------------------------------------------------------------------------------------


def _row(constant: float, terms: Sequence[tuple[float, Any]]) -> Row:
    return constant, tuple(a for a, _ in terms), tuple(x for _, x in terms)


def _sum(terms: Sequence[tuple[float, Any]]) -> LinearExpression:
    return LinearExpression(constant=0.0, linear_coefs=[float(a) for a, _ in terms], linear_vars=[x for _, x in terms])


def _equal(terms: Sequence[tuple[float, Any]], value: float) -> Any:
    return (float(value), _sum(terms), float(value))


def _at_most(terms: Sequence[tuple[float, Any]], value: float) -> Any:
    return (None, _sum(terms), float(value))
