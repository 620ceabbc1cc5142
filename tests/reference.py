"""Plain, slow twins of the compiled kernels: the equations of docs/model.md and nothing else."""

import itertools
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from evcs_gym.envs.fleet.normal import State, View, World
from evcs_gym.envs.fleet.observation import OBSERVATION
from evcs_gym.envs.grid import PHASE_UNIT, Feeder, power_flow
from evcs_gym.envs.grid.devices import Devices
from evcs_gym.envs.grid.operator import PASS_TOLERANCE, Limits, excesses, with_stations
from evcs_gym.envs.market import PRICE_RULES
from evcs_gym.envs.market.core import MarketAction, MarketState, MarketWorld
from evcs_gym.envs.market.view import own_plan, view
from evcs_gym.envs.traffic import Queue, RoadNetwork, TrafficModel
from evcs_gym.envs.types import BoolArray, ComplexArray, FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS, PHASE_BASE_KVA, SLOT_H


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


def general_sweep_reference(feeder: Feeder, source_pu: float, n_sweeps: int = 300) -> ComplexArray:
    """Voltages (N, 3) of a feeder with equipment on all phases at its nominal loads; twin of ``solve_general``."""
    parts = feeder.equipment
    if parts is None:
        raise ValueError("a feeder with equipment is needed")
    outwards = sorted(range(1, len(feeder)), key=lambda bus: _depth(feeder, bus))
    voltage = np.tile(source_pu * PHASE_UNIT, (len(feeder), 1))
    for bus in outwards:
        voltage[bus] = parts.transfer[bus] @ voltage[feeder.parent[bus]]
    for _ in range(n_sweeps):
        branch = np.zeros_like(voltage)
        for bus in reversed(outwards):
            branch[bus] += _bus_current(feeder, bus, voltage[bus])
            branch[feeder.parent[bus]] += parts.transfer[bus].T @ branch[bus]
        for bus in outwards:
            voltage[bus] = parts.transfer[bus] @ voltage[feeder.parent[bus]] - feeder.impedance_pu[bus] @ branch[bus]
    return voltage


def _bus_current(feeder: Feeder, bus: int, voltage: ComplexArray) -> ComplexArray:
    """What loads and shunts draw at a bus, (3,) per unit."""
    parts = feeder.equipment
    if parts is None:
        raise ValueError("a feeder with equipment is needed")
    current = parts.shunt_siemens[bus] * feeder.base_ohm[bus] @ voltage
    for phase in range(3):
        following = (phase + 1) % 3
        between = voltage[phase] - voltage[following]
        current[phase] += _model_current(feeder.load_kva[bus, phase], parts.share_frac[bus, phase], voltage[phase], 1.0)
        line = _model_current(parts.delta_kva[bus, phase], parts.delta_share_frac[bus, phase], between, math.sqrt(3.0))
        current[phase] += line
        current[following] -= line
    return current


def _model_current(load_kva: complex, share: FloatArray, voltage: complex, nominal: float) -> complex:
    size = abs(voltage) / nominal
    power = load_kva / PHASE_BASE_KVA * (share[0] + share[1] * size + share[2] * size**2)
    return complex(np.conj(power / voltage))


def factor_reference(
    feeder: Feeder,
    limits: Limits,
    base_load_kva: ComplexArray,
    position_kw: FloatArray,
    station_bus: IntArray,
    excess: float,
) -> tuple[FloatArray, BoolArray]:
    """Factor and scaled positions (B, S) of the operator ``pro_rata`` by bisection; twin of ``adjust_rows``.

    The largest factor that a bisection of [0, 1] finds to exceed no limit by more than ``excess``.
    """

    def excess_of(tried_kw: FloatArray) -> FloatArray:
        load = with_stations(base_load_kva, tried_kw, station_bus)
        flow = power_flow(feeder, load, tolerance_pu=1e-12)
        return excesses(feeder, limits, load, flow, np.ones(len(load)))

    broken = excess_of(position_kw) > PASS_TOLERANCE
    below, above, other = broken[:, :1], broken[:, 1:2], broken[:, 2:].any(axis=1, keepdims=True)
    every = other | (below & above)
    group = np.where(every, position_kw != 0, (below & (position_kw < 0)) | (above & (position_kw > 0)))
    failed = excess_of(np.where(group, 0.0, position_kw)).max(axis=1) > PASS_TOLERANCE
    group = np.where(failed[:, None], position_kw != 0, group)
    low, high = np.zeros(len(position_kw)), np.ones(len(position_kw))
    for _ in range(30):
        tried = (low + high) / 2
        passed = excess_of(np.where(group, tried[:, None] * position_kw, position_kw)).max(axis=1) <= excess
        low, high = np.where(passed, tried, low), np.where(passed, high, tried)
    return np.where(broken.any(axis=1), low, 1.0), group


# ------------------------------------------------------------------------------------------------ normal charging


@dataclass(frozen=True)
class CarNow:
    """A car present in a slot that still needs energy, in plain numbers."""

    session: int
    car: int
    stay: int
    power_kw: float
    remaining_kwh: float
    on_off: bool

    @property
    def needed(self) -> int:
        """Fewest slots that deliver what is left."""
        return math.ceil(self.remaining_kwh / (self.power_kw * SLOT_H) - 1e-9)

    @property
    def largest_kw(self) -> float:
        """What it can take in this slot."""
        return self.power_kw if self.on_off else min(self.power_kw, self.remaining_kwh / SLOT_H)

    @property
    def least_kw(self) -> float:
        """What it must take in this slot to be full in time."""
        if self.on_off:
            return self.power_kw if self.needed >= self.stay else 0.0
        later_kwh = (self.stay - 1) * self.power_kw * SLOT_H
        return min(max(self.remaining_kwh - later_kwh, 0.0) / SLOT_H, self.largest_kw)


def cars_now(world: World, state: State, row: int, bus: int) -> list[CarNow]:
    """Cars of a bus that are present and not full."""
    d, t, days = int(state.day[row]), int(state.slot[row]), world.days
    return [
        CarNow(
            session=i,
            car=int(days.car[d, i]),
            stay=int(days.departure_slot[d, i]) - t,
            power_kw=float(days.power_kw[d, i]),
            remaining_kwh=float(state.remaining_kwh[row, i]),
            on_off=world.rules.on_off,
        )
        for i in range(days.bus_start[d, bus], days.bus_start[d, bus + 1])
        if days.arrival_slot[d, i] <= t < days.departure_slot[d, i] and state.remaining_kwh[row, i] > 1e-9
    ]


def bounds_reference(world: World, state: State) -> tuple[FloatArray, FloatArray]:
    """Least and largest power of every charging bus, each (B, C)."""
    cars = [[cars_now(world, state, row, bus) for bus in range(world.n_buses)] for row in range(len(state.day))]
    least = np.array([[sum(car.least_kw for car in here) for here in row] for row in cars])
    largest = np.array([[sum(car.largest_kw for car in here) for here in row] for row in cars])
    return least, largest


def knee_reference(action: float, surplus_kw: float, least_kw: float, largest_kw: float) -> float:
    """Bus power of an action, in the form of the study: u = (a + 1) / 2 in [0, 1]."""
    u, knee = (action + 1.0) / 2.0, float(np.clip(surplus_kw, least_kw, largest_kw))
    if u < 0.5:
        return least_kw + 2.0 * u * (knee - least_kw)
    return knee + (2.0 * u - 1.0) * (largest_kw - knee)


def known_reference(world: World, state: State, row: int) -> tuple[FloatArray, FloatArray]:
    """Import price (T,) and net load (T, C) as known in the row's slot: truth to the slot, forecast beyond."""
    d, t, days = int(state.day[row]), int(state.slot[row]), world.days
    growth = np.array([days.growth_frac[d, s - t] if s > t else 0.0 for s in range(N_SLOTS)])
    price = days.import_eur_per_kwh[d] + growth * days.price_error_eur_per_kwh[d]
    base = days.base_kw[d] + growth[:, None] * days.base_error_kw[d]
    dg = days.dg_kw[d] + growth[:, None] * days.dg_error_kw[d]
    return price, base - dg


def cheaper_slots_reference(world: World, price: FloatArray, net_kw: FloatArray, slot: int, stay: int) -> int:
    """Number of the slots ahead in a stay in which a kWh costs less than now."""
    marginal = world.spec.energy_weight * price + world.spec.omega1_eur_per_kwh * np.sign(net_kw)
    return int((marginal[slot + 1 : slot + stay] < marginal[slot] - 1e-9).sum())


def dispatch_reference(world: World, state: State, action: FloatArray) -> FloatArray:
    """Power of every car (B, S): must-run first, then every car in its order that fits by the rule *sum plus half*."""
    out = np.zeros_like(state.remaining_kwh)
    least, largest = bounds_reference(world, state)
    for row, (d, t) in enumerate(zip(state.day, state.slot, strict=True)):
        price, net = known_reference(world, state, row)
        for bus in range(world.n_buses):
            surplus = float(world.days.dg_kw[d, t, bus] - world.days.base_kw[d, t, bus])
            target = knee_reference(float(action[row, bus]), surplus, least[row, bus], largest[row, bus])
            keys = {}
            cars = cars_now(world, state, row, bus)
            for car in cars:
                cheaper = cheaper_slots_reference(world, price, net[:, bus], int(t), car.stay) - car.needed
                keys[car.session] = (cheaper if world.rules.price_laxity else 0, car.stay - car.needed, car.car)
            total = float(least[row, bus])
            for car in sorted(cars, key=lambda one: keys[one.session]):
                extra = car.largest_kw - car.least_kw
                if world.rules.on_off:
                    extra = extra if total + extra / 2.0 <= target else 0.0
                else:
                    extra = max(min(extra, target - total), 0.0)
                out[row, car.session] = car.least_kw + extra
                total += extra
    return out


def envelope_reference(cars: list[CarNow], leads: list[int]) -> tuple[list[float], list[float]]:
    """Energy that must, and that can, flow within each lead time."""
    must = [
        sum(max(0.0, c.remaining_kwh - c.power_kw * SLOT_H * max(0, c.stay - lead)) for c in cars) for lead in leads
    ]
    can = [sum(min(c.remaining_kwh, c.power_kw * SLOT_H * min(c.stay, lead)) for c in cars) for lead in leads]
    return must, can


@dataclass(frozen=True)
class Valley:
    """What water-filling of the cars present says: see `valley_reference`."""

    level_eur_per_kwh: float
    here_kw: float
    cheaper_low_kwh: float
    cheaper_high_kwh: float
    surplus_kwh: float
    cost_eur: float


def valley_reference(world: World, price: FloatArray, net_kw: FloatArray, slot: int, cars: list[CarNow]) -> Valley:
    """Fill the energy of the cars into the blocks ahead, cheapest first: surplus at w2 price - w1, the rest of the
    capacity of the cars still there at w2 price + w1; of equal ones the surplus first, then the earlier slot. A block
    takes from the car with the least time to spare first, within its stay and its power."""
    w1, w2 = world.spec.omega1_eur_per_kwh, world.spec.energy_weight
    blocks = []
    for s in range(slot, N_SLOTS):
        capacity = sum(car.power_kw for car in cars if s < slot + car.stay)
        inside = min(max(-float(net_kw[s]), 0.0), capacity)
        blocks.append((w2 * float(price[s]) - w1, 0, s, inside * SLOT_H))
        blocks.append((w2 * float(price[s]) + w1, 1, s, (capacity - inside) * SLOT_H))
    low_here, high_here = w2 * float(price[slot]) - w1, w2 * float(price[slot]) + w1
    level, here, paid = low_here, 0.0, 0.0
    urgent = sorted(cars, key=lambda car: car.stay - car.remaining_kwh / (car.power_kw * SLOT_H))
    left = [car.remaining_kwh for car in urgent]
    plan = np.zeros((len(cars), N_SLOTS))
    for cost, _, s, size in sorted(blocks):
        room = size
        for j, car in enumerate(urgent):
            if s < slot + car.stay and room > 1e-9:
                take = min(left[j], car.power_kw * SLOT_H - plan[j, s], room)
                left[j], plan[j, s], room = left[j] - take, plan[j, s] + take, room - take
        if size - room > 1e-9:
            level = cost
            paid += (size - room) * cost
            here += (size - room) / SLOT_H if s == slot else 0.0
    return Valley(
        level,
        here,
        sum(size for cost, _, _, size in blocks if cost < low_here - 1e-12),
        sum(size for cost, _, _, size in blocks if cost < high_here - 1e-12),
        sum(size for _, kind, _, size in blocks if kind == 0),
        paid,
    )


def _fraction(power_kw: float, least_kw: float, largest_kw: float) -> float:
    if largest_kw - least_kw <= 1e-6:
        return 0.0
    return float(np.clip((power_kw - least_kw) / (largest_kw - least_kw), 0.0, 1.0))


def action_reference(power_kw: float, surplus_kw: float, least_kw: float, largest_kw: float) -> float:
    """The action whose knee gives a power; powers outside the bounds are taken to them, 0 where there is no choice."""
    power, knee = (float(np.clip(kw, least_kw, largest_kw)) for kw in (power_kw, surplus_kw))
    width = knee - least_kw if power < knee else largest_kw - knee
    return (power - knee) / width if width > 1e-6 else 0.0


def scale_of(unit: str) -> float:
    """The number that a unit of the observation table begins with, 1 if none."""
    first = unit.split()[0]
    return float(first) if first[0].isdigit() else 1.0


def observation_reference(world: World, state: State, row: int, bus: int) -> dict[str, list[float]]:
    """Observation of a bus by the names of the table, in its units, before clipping."""
    physical = _features(world, state, row, bus)
    return {f.name: [value / scale_of(f.unit) for value in physical.pop(f.name)] for f in OBSERVATION} | physical


def _features(world: World, state: State, row: int, bus: int) -> dict[str, list[float]]:
    """The features of the table in EUR, kWh, kW, pu, cars and slots; "installed kW" is divided out."""
    d, t, days = int(state.day[row]), int(state.slot[row]), world.days
    price, nets = known_reference(world, state, row)
    net, cars = nets[:, bus], cars_now(world, state, row, bus)
    installed, energy = float(world.installed_kw[bus]), sum(car.remaining_kwh for car in cars)
    least, largest = sum(car.least_kw for car in cars), sum(car.largest_kw for car in cars)
    valley = valley_reference(world, price, net, t, cars)
    must, can = envelope_reference(cars, [1, 2, 4, 6, 8, 12, 16, 20, 24, 28])
    w1, here = world.spec.omega1_eur_per_kwh, world.spec.energy_weight * float(price[t])
    feeder_bus = int(world.charging_bus[bus])
    limit = days.vmin_pu[d, t, feeder_bus]
    hours = [slice(t + 2 * h, t + 2 * h + 2) for h in range(20)]
    per_kwh = 1.0 / max(energy, 1e-6)
    return {
        "time": [t / 48, math.sin(2 * math.pi * t / 48), math.cos(2 * math.pi * t / 48)],
        "power_least": [least / installed],
        "power_largest": [largest / installed],
        "energy_needed": [energy / installed],
        "cars": [float(len(cars))],
        "laxity_mean": [sum(car.stay - car.needed for car in cars) / max(len(cars), 1)],
        "power_required_mean": [sum(car.remaining_kwh / (car.stay * SLOT_H) for car in cars) / installed],
        "energy_urgent": [sum(c.remaining_kwh for c in cars if c.stay - c.needed <= 6) / installed],
        "valley_to_low": [valley.level_eur_per_kwh - (here - w1)],
        "valley_to_high": [valley.level_eur_per_kwh - (here + w1)],
        "valley_power": [valley.here_kw / installed],
        "cheaper_than_low": [min(valley.cheaper_low_kwh * per_kwh, 5.0)],
        "cheaper_than_high": [min(valley.cheaper_high_kwh * per_kwh, 5.0)],
        "surplus_ahead": [min(valley.surplus_kwh * per_kwh, 3.0)],
        "valley_action": [action_reference(valley.here_kw, -float(net[t]), least, largest)],
        "knee_fraction": [_fraction(-float(net[t]), least, largest)],
        "envelope_must": [kwh / installed for kwh in must],
        "envelope_can": [kwh / installed for kwh in can],
        "price_deviation": [float(price[t]) - float(price.mean())],
        "net_load": [float(net[t]) / installed],
        "price_ahead": [float((price[hour] - price[t]).sum()) / 2 for hour in hours],
        "net_ahead": [float(net[hour].sum()) / 2 / installed for hour in hours],
        "voltage_base_headroom": [float((days.base_voltage_pu[d, t, feeder_bus] - limit).min())],
        "voltage_last_headroom": [float((np.abs(state.voltage_pu[row, feeder_bus]) - limit).min())],
        "valley_cost": [valley.cost_eur - world.spec.energy_weight * float(price.mean()) * energy],
    }


def water_filling_reference(view: View, row: int, bus: int, n_passes: int) -> float:
    """Power of the present slot in a plan of the cars present, one car at a time, least laxity first; each car takes
    the slots that cost least given all others, of equal ones the earlier; repeated ``n_passes`` times."""
    t = int(view.slot[row])
    w1, w2 = view.rules.omega1_eur_per_kwh, view.rules.energy_weight
    net = (view.base_kw - view.dg_kw)[row, :, bus]
    cars = range(int(view.bus_start[row, bus]), int(view.bus_start[row, bus + 1]))
    stay = {i: int(view.departure_slot[row, i]) - t for i in cars}
    needed = {i: math.ceil(view.remaining_kwh[row, i] / (view.power_kw[row, i] * SLOT_H) - 1e-9) for i in cars}
    plan = {i: np.zeros(N_SLOTS) for i in cars}
    for _ in range(n_passes):
        for i in sorted(cars, key=lambda i: stay[i] - needed[i]):
            others = net + sum((plan[j] for j in cars if j != i), np.zeros(N_SLOTS))
            power, left = float(view.power_kw[row, i]), float(view.remaining_kwh[row, i])
            price = view.import_eur_per_kwh[row]
            cost = [w2 * price[s] * power + w1 * (abs(others[s] + power) - abs(others[s])) for s in range(N_SLOTS)]
            plan[i] = np.zeros(N_SLOTS)
            for s in sorted(range(t, t + stay[i]), key=lambda s: cost[s]):
                plan[i][s] = min(power, left / SLOT_H)
                left = max(left - plan[i][s] * SLOT_H, 0.0)
    return float(sum(plan[i][t] for i in cars))


def plan_cost_reference(world: World, power_kw: FloatArray) -> tuple[float, float]:
    """(5) of a plan (T, S) of the world's only day: exchange with the network and energy [EUR], without voltage."""
    days, starts = world.days, world.days.bus_start[0]
    bus_kw = np.stack([power_kw[:, a:b].sum(axis=1) for a, b in pairwise(starts)], axis=1)
    gap_kwh = np.abs(days.base_kw[0] + bus_kw - days.dg_kw[0]).sum() * SLOT_H
    energy_eur = (days.import_eur_per_kwh[0] @ bus_kw).sum() * SLOT_H
    return float(world.spec.omega1_eur_per_kwh * gap_kwh), float(world.spec.energy_weight * energy_eur)


def least_costs_reference(roads: RoadNetwork, cost_h: FloatArray) -> FloatArray:
    """Least cost of each pair (K,) at link costs (L,), inf without a path; twin of ``traffic.kernels.trees``.

    Bellman and Ford: every link relaxed as often as there are nodes.
    """
    least = np.full(roads.n_pairs, np.inf)
    for origin in set(roads.origin.tolist()):
        distance = [math.inf] * roads.n_nodes
        distance[origin] = 0.0
        for _ in range(roads.n_nodes):
            for tail, head, cost in zip(roads.tail.tolist(), roads.head.tolist(), cost_h.tolist(), strict=True):
                if tail == origin or tail >= roads.n_closed:
                    distance[head] = min(distance[head], distance[tail] + cost)
        mine = roads.origin == origin
        least[mine] = np.array(distance)[roads.destination[mine]]
    return least


def times_reference(model: TrafficModel, flow: FloatArray) -> FloatArray:
    """Times of roads and stations (R,) at flows (R,), one by one; twin of ``traffic.kernels.resource_times``."""
    roads, stations = model.network, model.stations
    times = [
        roads.free_flow_h[a] * (1.0 + roads.bpr_b[a] * (flow[a] / roads.capacity_veh_per_h[a]) ** roads.bpr_power[a])
        for a in range(roads.n_links)
    ]
    for k, y in enumerate(flow[roads.n_links :].tolist()):
        service, servers = stations.energy_kwh / stations.charger_kw[k], int(stations.n_chargers[k])
        free = servers / service - y
        if stations.queue is Queue.DAVIDSON:
            times.append(service * (1.0 + stations.davidson_j * y / free))
        else:
            times.append(service + erlang_c_reference(y * service, servers) / free)
    return np.array(times)


def erlang_c_reference(load: float, n_servers: int) -> float:
    """Probability of waiting in M/M/s by the textbook's sums, load in erlang; twin of the kernel's recursion."""
    terms = [load**k / math.factorial(k) for k in range(n_servers)]
    last = load**n_servers / math.factorial(n_servers) * n_servers / (n_servers - load)
    return last / (math.fsum(terms) + last)


def device_path_reference(
    cost: FloatArray, devices: Devices, combinations: IntArray, n_moves: int, bottleneck: bool
) -> float:
    """Least sum or maximum of cost (T, C, X) over all device schedules within the budgets, looked at one by one."""
    n_slots, n_combinations, n_taps = cost.shape
    best = math.inf
    start = np.array([bank.start for bank in devices.banks])
    limits = np.array([bank.max_switchings for bank in devices.banks])
    for path in itertools.product(itertools.product(range(n_combinations), range(n_taps)), repeat=n_slots):
        rows, taps = [p[0] for p in path], [p[1] for p in path]
        steps = np.vstack([start, combinations[rows]])
        switched = np.abs(np.diff(steps, axis=0)).sum(axis=0)
        if (switched <= limits).all() and np.abs(np.diff([devices.tap_changer.start, *taps])).sum() <= n_moves:
            costs = [cost[t, c, x] for t, (c, x) in enumerate(path)]
            best = min(best, max(costs) if bottleneck else math.fsum(costs))
    return best


# --- market --------------------------------------------------------------------------------------------------


def auction_reference(
    position_kw: list[float], ask: list[float], imports: float, exports: float, fee: float, rule: str
) -> tuple[float, float, list[float], list[float]]:
    """Price, volume, accepted quantities, payments of a slot; twin of ``evcs_gym.envs.market.auction.clear_row``."""
    top, n = imports - fee, len(position_kw)
    sellers, buyers = [i for i in range(n) if position_kw[i] > 0], [i for i in range(n) if position_kw[i] < 0]
    supply, demand = math.fsum(position_kw[i] for i in sellers), -math.fsum(position_kw[i] for i in buyers)
    volume, accepted = min(supply, demand), [0.0] * n
    if volume == 0.0:
        return (top if buyers else exports), 0.0, accepted, [0.0] * n
    names = [exports if rule == "mid_market" else ask[i] for i in sellers]
    marginal, critical, before = exports, top, 0.0
    for price in sorted(set(names)):
        group = [i for i, name in zip(sellers, names, strict=True) if name == price]
        total = math.fsum(position_kw[i] for i in group)
        share = min(max(volume - before, 0.0) / total, 1.0)
        for i in group:
            accepted[i] = share * position_kw[i]
        if before < volume * (1 - 1e-9):
            marginal = price
        if critical == top and before + total > volume * (1 + 1e-9):
            critical = price
        before += total
    for i in buyers:
        accepted[i] = position_kw[i] * min(volume / demand, 1.0)
    scarce = supply <= demand * (1 + 1e-9)
    mean = sum(ask[i] * accepted[i] for i in sellers) / volume
    prices = {"marginal": top if scarce else marginal, "critical": top if scarce else critical}
    prices |= {"mid_market": (exports + top) / 2, "pay_as_ask": mean}
    price = prices[rule]
    own = [ask[i] if rule == "pay_as_ask" else price for i in range(n)]
    paid = [-accepted[i] * (own[i] if position_kw[i] > 0 else price + fee) for i in range(n)]
    return price, volume, accepted, paid


@dataclass
class StationReference:
    """One station in one slot: twin of the kernels of ``evcs_gym.envs.market.station``."""

    pv_kw: float
    ev_kw: float
    least_kw: float
    largest_kw: float
    storage_kw: float = 0.0
    curtailed_kw: float = 0.0
    unserved_kw: float = 0.0

    @property
    def position_kw(self) -> float:
        return self.pv_kw - self.curtailed_kw - (self.ev_kw - self.unserved_kw) - self.storage_kw

    def follow(self, cap_kw: float) -> None:
        """Storage first, then photovoltaics or cars."""
        too_much = max(self.position_kw - cap_kw, 0.0) - max(-cap_kw - self.position_kw, 0.0)
        wanted = self.storage_kw + too_much
        self.storage_kw = min(max(wanted, self.least_kw), self.largest_kw) if too_much else self.storage_kw
        self.curtailed_kw += max(self.position_kw - cap_kw, 0.0)
        self.unserved_kw += max(-cap_kw - self.position_kw, 0.0)


def market_slot_reference(
    world: MarketWorld, state: MarketState, action: MarketAction, cap_kw: FloatArray, row: int
) -> dict[str, list[float]]:
    """Positions, storage, accepted quantities, profits and next energies of one row under given caps; twin of the
    market's step."""
    d, t, assets, days, rules = state.day[row], state.slot[row], world.assets, world.days, world.rules
    imports, exports = float(days.import_eur_per_kwh[d, t]), float(days.export_eur_per_kwh[d, t])
    fee, rule, ask = rules.network_fee_eur_per_kwh, PRICE_RULES[rules.price_rule], action.ask_eur_per_kwh[row].tolist()
    stations = []
    for n in range(world.n_stations):
        kept = state.energy_kwh[row, n] * (1 - assets.self_discharge_frac[n])
        give = max(kept - assets.energy_min_kwh[n], 0.0) * assets.discharge_efficiency_frac[n] / SLOT_H
        take = max(assets.storage_kwh[n] - kept, 0.0) / assets.charge_efficiency_frac[n] / SLOT_H
        least, largest = max(-assets.storage_kw[n], -give), min(assets.storage_kw[n], take)
        station = StationReference(days.pv_kw[d, t, n], days.ev_kw[d, t, n], least, largest)
        station.storage_kw = min(max(action.storage_kw[row, n], least), largest)
        station.follow(assets.connection_kw[n])
        stations.append(station)
    found = auction_reference([s.position_kw for s in stations], ask, imports, exports, fee, rule)
    for n, station in enumerate(stations):
        if rules.reservation and rule != "mid_market" and station.position_kw > 0 and ask[n] > exports:
            unsold = station.position_kw - found[2][n]
            station.storage_kw += min(unsold, max(-station.storage_kw, 0.0))
    if np.isfinite(cap_kw[row]).any():
        for n, station in enumerate(stations):
            station.follow(cap_kw[row, n])
        found = auction_reference([s.position_kw for s in stations], ask, imports, exports, fee, rule)
    profits, energies = [], []
    for n, station in enumerate(stations):
        rest = station.position_kw - found[2][n]
        gain = assets.retail_eur_per_kwh[n] * (station.ev_kw - station.unserved_kw) - found[3][n]
        gain += rest * (exports if rest > 0 else imports)
        gain -= assets.degradation_eur_per_kwh[n] * abs(station.storage_kw)
        gain -= assets.lost_load_eur_per_kwh[n] * station.unserved_kw
        up, down = max(station.storage_kw, 0.0), max(-station.storage_kw, 0.0)
        change = assets.charge_efficiency_frac[n] * up - down / assets.discharge_efficiency_frac[n]
        energy = state.energy_kwh[row, n] * (1 - assets.self_discharge_frac[n]) + SLOT_H * change
        missing = max(assets.energy_start_kwh[n] - energy, 0.0) / assets.charge_efficiency_frac[n]
        dearest = days.import_eur_per_kwh[d].max() if t == N_SLOTS - 1 else 0.0
        profits.append(SLOT_H * gain - missing * dearest)
        energies.append(energy)
    return {
        "position_kw": [s.position_kw for s in stations],
        "storage_kw": [s.storage_kw for s in stations],
        "curtailed_kw": [s.curtailed_kw for s in stations],
        "unserved_kw": [s.unserved_kw for s in stations],
        "accepted_kw": found[2],
        "profit_eur": profits,
        "energy_kwh": energies,
    }


def market_observation_reference(world: MarketWorld, state: MarketState, row: int, station: int) -> FloatArray:
    """What a station observes, written down feature by feature from what it may know."""
    seen, plan = view(world, state), own_plan(world, state)
    slot, assets = int(state.slot[row]), world.assets
    price, export = seen.import_eur_per_kwh[row], seen.export_eur_per_kwh[row, slot]
    fee = world.rules.network_fee_eur_per_kwh
    spread, now, later = price.std() + 0.003, price[slot], price[slot + 1 :]
    windows = [(1, 2), (2, 4), (4, 8), (8, 12), (12, 18), (18, 26), (26, 48)]
    scale, capacity = max(assets.storage_kw[station], 50.0), max(assets.storage_kwh[station], 50.0)
    net = (seen.pv_kw - seen.ev_kw)[row, :, station]

    def ahead(series: FloatArray) -> list[float]:
        return [float(np.mean(series[slot + a : slot + b])) if slot + a < 48 else series[-1] for a, b in windows]

    last = 0.0
    if slot:
        at = (state.day[row], slot - 1)
        low, high = world.days.export_eur_per_kwh[at], world.days.import_eur_per_kwh[at] - fee
        last = (state.price_eur_per_kwh[row] - low) / (high - low)
    band = now - fee - export
    angle = 2.0 * np.pi * slot / 48
    values: list[float] = [slot / 48, np.sin(angle), np.cos(angle), (now - price.mean()) / spread]
    values += [2.0 * (price < now).sum() / 47 - 1.0, 2.0 * (later < now).sum() / max(len(later), 1) - 1.0]
    values += [(max(now, *later) - now) / spread if len(later) else 0.0]
    values += [(min(now, *later) - now) / spread if len(later) else 0.0]
    values += [spread / 0.01, export / 0.05, *((x - now) / spread for x in ahead(price))]
    values += [seen.pv_kw[row, slot, station] / scale, seen.ev_kw[row, slot, station] / scale, net[slot] / scale]
    values += [x / scale for x in ahead(net)]
    values += [np.tanh(0.5 * np.clip(sign * net[slot:], 0.0, None).sum() / capacity) for sign in (1.0, -1.0)]
    installed = world.stations
    values += [installed.pv_kw[station] / 1e3, installed.n_plugs[station] * installed.plug_kw[station] / 500.0]
    values += [installed.storage_kwh[station] / 1e3, 2.0 * state.energy_kwh[row, station] / capacity - 1.0, last]
    values += [state.volume_kw[row] / scale, min(state.cap_kw[row, station] / assets.connection_kw[station], 1.0)]
    values += [state.accepted_kw[row, station] / scale, state.position_kw[row, station] / scale]
    values += [plan.storage_kw[row, station] / scale, (plan.ask_eur_per_kwh[row, station] - export) / band]
    values += [np.clip((plan.water_eur_per_kwh[row, station] - export) / band, -0.5, 2.0)]
    return np.clip(np.array(values), -10.0, 10.0)
