"""Fast charging as data: requests, stations, cost of a plan, check of a plan (model.md section 8).

A plan sends every request of a window of slots to a station or strands it. The window is the whole day (the
clairvoyant problem) or one slot (the strategy of the paper); what charges of earlier slots still draw, and the plugs
that they hold, are data. What a charge draws after the window is nobody's cost there.

Sun, Yang, Yan (2017), 10.1186/s41601-017-0065-x, equations (1), (2) and (4), in the form of model.md section 8.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from evcs_gym.baselines.problems.balance import Balance, imbalance_kw
from evcs_gym.baselines.problems.normal_charging import N_CONNECTIONS, NetworkProblem
from evcs_gym.envs.errors import DataError, InfeasibleError
from evcs_gym.envs.fleet.fast import requests_of, within_reach
from evcs_gym.envs.fleet.kernels import ENERGY_ROUNDING_KWH
from evcs_gym.envs.grid import power_flow
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario


@dataclass(frozen=True, eq=False)
class FastProblem:
    """Requests R, sorted by (slot, car), stations J and slots T of a window.

    slot, car: (R,). need_kwh: (1 - SoC0) C, (R,). detour_kwh: dis E_c, (R, J). reach: (4), (R, J). request_weight:
    omega2 nbar / n of the request's slot, (R,). plug_kw: (J,). net_kw: base load and committed load less DG, (T, J).
    free_plugs: plugs that no earlier charge holds, (T, J). import_eur_per_kwh: (T,).
    absorb_eur_per_kw: omega1 times the slot's length. stranded_eur: price of a stranded car. balance: what stands for
    the first term of (1).
    """

    slot: IntArray
    car: IntArray
    need_kwh: FloatArray
    detour_kwh: FloatArray
    reach: BoolArray
    request_weight: FloatArray
    plug_kw: FloatArray
    net_kw: FloatArray
    free_plugs: IntArray
    import_eur_per_kwh: FloatArray
    absorb_eur_per_kw: float
    stranded_eur: float
    balance: Balance = "exchange"

    @property
    def n_requests(self) -> int:
        """Number of requests R."""
        return len(self.slot)

    @property
    def n_stations(self) -> int:
        """Number of stations J; a plan says J for stranded."""
        return len(self.plug_kw)

    @property
    def n_slots(self) -> int:
        """Length of the window T."""
        return len(self.net_kw)

    @property
    def fixed_eur(self) -> float:
        """The part of (2) that no plan changes: (1 - SoC0) C RTP of the cars that reach a station."""
        price = self.request_weight * self.import_eur_per_kwh[self.slot]
        return float((price * self.need_kwh)[self.reach.any(axis=1)].sum())


@dataclass(frozen=True, eq=False)
class Arcs:
    """Pairs of a request and a station that (4) allows, sorted by request, A arcs.

    request, station: (A,). first: where those of each request begin, (R + 1,). energy_eur: its part of the second term
    of (1), (A,). load_arc, load_place, load_kw: what an arc draws, an entry for every slot of the window in which it
    holds its plug; place = slot * J + station.
    """

    request: IntArray
    station: IntArray
    first: IntArray
    energy_eur: FloatArray
    load_arc: IntArray
    load_place: IntArray
    load_kw: FloatArray


@dataclass(frozen=True, eq=False)
class FastPlan:
    """Where every request of the day goes, (R,): a station, or J for stranded."""

    station: IntArray


def problem_of(scenario: "Scenario", day: "Day") -> FastProblem:
    """The clairvoyant problem of a day.

    Raises:
        ConfigError, DataError: a scenario or a day without fast charging.
    """
    spec, stations, fast = scenario.fast_charging, scenario.fast_stations, requests_of(day)
    n_requests = np.bincount(fast.slot, minlength=N_SLOTS)
    reach = within_reach(fast, spec.reserve_soc_frac)
    return FastProblem(
        slot=fast.slot,
        car=fast.car,
        need_kwh=(1.0 - fast.soc0_frac) * fast.capacity_kwh,
        detour_kwh=np.where(reach, fast.distance_km, 0.0) * fast.consumption_kwh_per_km[:, None],
        reach=reach,
        request_weight=spec.energy_weight / n_requests[fast.slot],
        plug_kw=stations.plug_kw,
        net_kw=fast.base_kw - fast.dg_kw,
        free_plugs=np.tile(stations.n_plugs, (N_SLOTS, 1)),
        import_eur_per_kwh=day.import_eur_per_kwh,
        absorb_eur_per_kw=spec.absorb_eur_per_kw,
        stranded_eur=spec.stranded_eur,
    )


def network_of(scenario: "Scenario", day: "Day") -> NetworkProblem:
    """The network of the same day, with the stations in the place of charging buses."""
    return NetworkProblem(
        feeder=day.feeder,
        source_pu=day.source_pu,
        charging_bus=scenario.fast_stations.bus,
        load_kva=day.load_kva,
        base_voltage_pu=day.base_voltage_pu,
        vmin_pu=day.vmin_pu,
        vmax_pu=day.vmax_pu,
        voltage_eur_per_pu=scenario.fast_charging.voltage_eur_per_pu,
        capacitor_kvar=day.capacitor_kvar if scenario.devices.banks else None,
    )


def check_data(problem: FastProblem) -> None:
    """Refuse data that no plan can have.

    Raises:
        DataError: NaN, negative prices, requests out of order or outside the window.
    """
    for name in ("need_kwh", "detour_kwh", "request_weight", "plug_kw", "net_kw", "import_eur_per_kwh"):
        values = getattr(problem, name)
        values = values[problem.reach] if name == "detour_kwh" else values
        if not np.isfinite(values).all():
            raise DataError(f"problem.{name} must be finite, got NaN or infinity")
    if problem.absorb_eur_per_kw < 0.0 or (problem.request_weight < 0.0).any() or problem.stranded_eur < 0.0:
        raise DataError(
            "problem.absorb_eur_per_kw, problem.request_weight and problem.stranded_eur must not be negative, got "
            f"{problem.absorb_eur_per_kw}, {problem.request_weight.min(initial=0.0)} and {problem.stranded_eur}"
        )
    if (problem.plug_kw <= 0.0).any():
        raise DataError(f"problem.plug_kw must be positive, got {problem.plug_kw.min()}")
    slot = problem.slot
    if len(slot) and (slot.min() < 0 or slot.max() >= problem.n_slots or (np.diff(slot) < 0).any()):
        raise DataError(
            f"problem.slot must rise within 0..{problem.n_slots - 1}, got {slot.min()}..{slot.max()}; sort the requests"
        )


def arcs_of(problem: FastProblem) -> Arcs:
    """The arcs of a problem, see `Arcs`."""
    request, station = np.nonzero(problem.reach)
    slot, plug = problem.slot[request], problem.plug_kw[station]
    energy_kwh = problem.need_kwh[request] + problem.detour_kwh[request, station]
    n_held = np.minimum(charge_slots(energy_kwh, plug), problem.n_slots - slot)
    arc = np.repeat(np.arange(len(request)), n_held)
    since = np.arange(len(arc)) - np.repeat(np.cumsum(n_held) - n_held, n_held)
    price = problem.request_weight[request] * problem.import_eur_per_kwh[slot]
    return Arcs(
        request=request,
        station=station,
        first=np.searchsorted(request, np.arange(problem.n_requests + 1)),
        energy_eur=price * energy_kwh,
        load_arc=arc,
        load_place=(slot[arc] + since) * problem.n_stations + station[arc],
        load_kw=charge_kw(energy_kwh[arc], plug[arc], since),
    )


def charge_slots(energy_kwh: FloatArray, plug_kw: FloatArray) -> IntArray:
    """Slots in which a charge holds its plug."""
    return np.ceil((energy_kwh - ENERGY_ROUNDING_KWH) / (plug_kw * SLOT_H)).astype(np.int64)


def charge_kw(energy_kwh: FloatArray, plug_kw: FloatArray, since: IntArray) -> FloatArray:
    """Power of a charge ``since`` slots after it began: the plug's, or what is left."""
    return np.asarray(np.clip(energy_kwh / SLOT_H - since * plug_kw, 0.0, plug_kw))


def chosen_arcs(problem: FastProblem, arcs: Arcs, station: IntArray) -> BoolArray:
    """Which arcs a plan (R,) takes, (A,)."""
    return np.asarray(arcs.station == station[arcs.request])


def new_load_kw(problem: FastProblem, arcs: Arcs, chosen: FloatArray) -> FloatArray:
    """What arcs taken to the shares ``chosen`` (A,) draw, (T, J)."""
    weights = arcs.load_kw * chosen[arcs.load_arc]
    load = np.bincount(arcs.load_place, weights=weights, minlength=problem.net_kw.size)
    return np.asarray(load.reshape(problem.net_kw.shape), dtype=np.float64)


def held_plugs(problem: FastProblem, arcs: Arcs, chosen: FloatArray) -> FloatArray:
    """Plugs that arcs taken to the shares ``chosen`` (A,) hold, (T, J)."""
    held = np.bincount(arcs.load_place, weights=chosen[arcs.load_arc], minlength=problem.net_kw.size)
    return np.asarray(held.reshape(problem.net_kw.shape), dtype=np.float64)


def cost(problem: FastProblem, arcs: Arcs, station: IntArray) -> float:
    """Cost of a plan (R,) without the voltage term [EUR]: both terms of (1) and the stranded cars."""
    chosen = chosen_arcs(problem, arcs, station).astype(np.float64)
    total_kw = problem.net_kw + new_load_kw(problem, arcs, chosen)
    absorb_eur = problem.absorb_eur_per_kw * imbalance_kw(problem.balance, total_kw, problem.net_kw)
    n_stranded = int((station == problem.n_stations).sum())
    return float(absorb_eur + arcs.energy_eur @ chosen + problem.stranded_eur * n_stranded)


def plugs_before(problem: FastProblem, arcs: Arcs, chosen: FloatArray) -> FloatArray:
    """Plugs of each station held when the turn of each request comes, by charges of the window, (R, J)."""
    taken = np.zeros((problem.n_requests, problem.n_stations))
    taken[arcs.request, arcs.station] = chosen
    of_slot = np.zeros((problem.n_slots, problem.n_stations))
    np.add.at(of_slot, problem.slot, taken)
    carried = held_plugs(problem, arcs, chosen) - of_slot
    earlier = np.cumsum(of_slot, axis=0) - of_slot
    before = np.cumsum(taken, axis=0) - taken - earlier[problem.slot]
    return np.asarray(carried[problem.slot] + before)


def played(problem: FastProblem, wish: IntArray) -> IntArray:
    """The plan (R,) that the environment allows and that follows the wishes (R,) where it does.

    Requests in their order: a wish that is out of reach or full, or to be stranded where a station is free, gives way
    to the station that is cheapest in (1) as things stand.
    """
    n_stations, n_slots = problem.n_stations, problem.n_slots
    total_kw, free = problem.net_kw.copy(), problem.free_plugs.copy()
    station, stations = np.full(problem.n_requests, n_stations), np.arange(n_stations)
    for r in range(problem.n_requests):
        t = int(problem.slot[r])
        allowed = problem.reach[r] & (free[t] > 0)
        if not allowed.any():
            continue
        j = int(wish[r])
        energy = problem.need_kwh[r] + problem.detour_kwh[r]
        held = np.minimum(charge_slots(np.where(allowed, energy, 0.0), problem.plug_kw), n_slots - t)
        if j >= n_stations or not allowed[j]:
            steps = np.arange(int(held.max()))
            draw = charge_kw(np.where(allowed, energy, 0.0), problem.plug_kw, steps[:, None])
            here = total_kw[t : t + len(steps)]
            exchange_kw = (np.abs(here + draw) - np.abs(here)).sum(axis=0)
            price = problem.request_weight[r] * problem.import_eur_per_kwh[t]
            marginal = price * energy + problem.absorb_eur_per_kw * exchange_kw
            j = int(stations[np.argmin(np.where(allowed, marginal, np.inf))])
        until = t + int(held[j])
        steps = np.arange(until - t)
        total_kw[t:until, j] += charge_kw(energy[j], problem.plug_kw[j], steps)
        free[t:until, j] -= 1
        station[r] = j
    return station


def check(problem: FastProblem, arcs: Arcs, station: IntArray) -> None:
    """Refuse a plan (R,) that the environment does not allow.

    Raises:
        DataError: wrong shape or a station that does not exist. InfeasibleError: names the request and what must hold.
    """
    n = problem.n_stations
    if station.shape != (problem.n_requests,) or (len(station) and (station.min() < 0 or station.max() > n)):
        raise DataError(
            f"a plan must name a station 0..{n - 1}, or {n} for stranded, for each of {problem.n_requests} requests, "
            f"got shape {station.shape} and {station.min(initial=0)}..{station.max(initial=0)}"
        )
    rows, sent = np.arange(problem.n_requests), station < n
    target = np.minimum(station, n - 1)
    free = problem.free_plugs[problem.slot] - plugs_before(
        problem, arcs, chosen_arcs(problem, arcs, station).astype(np.float64)
    )
    _refuse_plan(problem, station, sent & ~problem.reach[rows, target], "is sent out of its reach (4)")
    _refuse_plan(problem, station, sent & (free[rows, target] < 0.5), "is sent to a station without a free plug")
    open_to = problem.reach & (free > 0.5)
    _refuse_plan(problem, station, ~sent & open_to.any(axis=1), "is stranded although a station in reach has a plug")


def _refuse_plan(problem: FastProblem, station: IntArray, bad: BoolArray, rule: str) -> None:
    if bad.any():
        r = int(np.argmax(bad))
        raise InfeasibleError(
            f"request {r} (car {int(problem.car[r])}, slot {int(problem.slot[r])}) {rule}: station {int(station[r])} "
            f"of 0..{problem.n_stations - 1} ({problem.n_stations}: stranded), reach "
            f"{np.flatnonzero(problem.reach[r]).tolist()}; send it elsewhere"
        )


def slot_of(problem: FastProblem, arcs: Arcs, slot: int, station: IntArray) -> FastProblem:
    """The problem of one slot after the plan (R,) of the slots before it: their charges are committed."""
    before = problem.slot < slot
    chosen = (chosen_arcs(problem, arcs, station) & before[arcs.request]).astype(np.float64)
    here, now = np.flatnonzero(problem.slot == slot), slice(slot, slot + 1)
    return replace(
        problem,
        slot=np.zeros(len(here), dtype=np.int64),
        car=problem.car[here],
        need_kwh=problem.need_kwh[here],
        detour_kwh=problem.detour_kwh[here],
        reach=problem.reach[here],
        request_weight=problem.request_weight[here],
        net_kw=(problem.net_kw + new_load_kw(problem, arcs, chosen))[now],
        free_plugs=problem.free_plugs[now] - np.rint(held_plugs(problem, arcs, chosen)[now]).astype(np.int64),
        import_eur_per_kwh=problem.import_eur_per_kwh[now],
    )


def plan_voltage(network: NetworkProblem, load_kw: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Voltage magnitude with station loads (T, J), by the exact power flow, (T, N, P), and which slots converged, (T,).

    Stations draw balanced on three phases at unity power factor. A collapsed slot has zero volts everywhere, as in the
    environment.
    """
    load = network.load_kva.copy()
    for column, bus in enumerate(network.charging_bus):
        load[:, bus] += load_kw[:, column, None] / 3.0
    flow = power_flow(network.feeder, load, source_pu=network.source_pu, capacitor_kvar=network.capacitor_kvar)
    return np.where(flow.converged[:, None, None], np.abs(flow.voltage_pu), 0.0), flow.converged


def balanced_kw(load_kw: FloatArray) -> FloatArray:
    """Station loads (T, J) by connection, (T, J, 4), as the voltage rows take them: all on the balanced one."""
    group_kw = np.zeros((*load_kw.shape, N_CONNECTIONS))
    group_kw[:, :, -1] = load_kw
    return group_kw


def network_of_slot(network: NetworkProblem, slot: int, committed_kw: FloatArray) -> NetworkProblem:
    """The network of one slot in which stations already draw ``committed_kw`` (J,); the limits stay the day's."""
    now = slice(slot, slot + 1)
    kvar = None if network.capacitor_kvar is None else network.capacitor_kvar[now]
    alone = replace(
        network,
        source_pu=network.source_pu[now],
        load_kva=network.load_kva[now].copy(),
        base_voltage_pu=network.base_voltage_pu[now],
        vmin_pu=network.vmin_pu[now],
        vmax_pu=network.vmax_pu[now],
        capacitor_kvar=kvar,
    )
    if not committed_kw.any():
        return alone
    voltage_pu, _ = plan_voltage(alone, committed_kw[None])
    for column, bus in enumerate(network.charging_bus):
        alone.load_kva[0, bus] += committed_kw[column] / 3.0
    return replace(alone, base_voltage_pu=voltage_pu)
