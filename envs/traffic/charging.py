"""Equilibrium of two classes: through traffic, and cars that pass exactly one charging station.

Layer 0 of the graph is uncharged, layer 1 charged; every road has an arc in both that share its flow, and a station is
an arc from (its node, 0) to (its node, 1). Through traffic stays in layer 0, charging cars travel from layer 0 to 1.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from evcs_gym.envs.errors import ConfigError, DataError, InfeasibleError, SolverError
from evcs_gym.envs.traffic.equilibrium import Columns, GraphFlow, check_limits, refuse_unconverged, solve_graph
from evcs_gym.envs.traffic.graph import Graph, Resources, build_graph, pair_labels, road_resources
from evcs_gym.envs.traffic.kernels import BPR, DAVIDSON, ERLANG, LARGEST_UTILISATION, erlang_sojourn
from evcs_gym.envs.traffic.roads import RoadNetwork
from evcs_gym.envs.traffic.shipped import table
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray, frozen

CAPACITY_RESERVE: Final = 1.1
"""Charging demand must fit through station capacities divided by this."""
DEFAULT_ENERGY_KWH: Final = 20.0
DEFAULT_CHARGER_KW: Final = 150.0
DEFAULT_DAVIDSON_J: Final = 0.1
_PANELS: Final = 60
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


class Queue(StrEnum):
    """Law of a station's time: ``DAVIDSON`` T0 (1 + J y / (C - y)), or ``ERLANG``, the exact mean of M/M/s."""

    DAVIDSON = "davidson"
    ERLANG = "erlang"


@dataclass(frozen=True, eq=False)
class Stations:
    """S charging stations: node, number of chargers, power of each [kW], all (S,); energy per car, law of the queue.

    Raises DataError: arrays of different length, no charger, a power or an energy that is not positive.
    """

    node: IntArray
    n_chargers: IntArray
    charger_kw: FloatArray
    energy_kwh: float = DEFAULT_ENERGY_KWH
    queue: Queue = Queue.DAVIDSON
    davidson_j: float = DEFAULT_DAVIDSON_J

    def __post_init__(self) -> None:
        if not len(self.node) == len(self.n_chargers) == len(self.charger_kw) > 0:
            lengths = [len(self.node), len(self.n_chargers), len(self.charger_kw)]
            raise DataError(f"stations: node, n_chargers and charger_kw must be equally long, not empty, got {lengths}")
        if not (math.isfinite(self.energy_kwh) and self.energy_kwh > 0.0 and self.davidson_j > 0.0):
            raise DataError(
                f"stations: energy_kwh and davidson_j must be positive, got {self.energy_kwh} and {self.davidson_j}"
            )
        for k in np.flatnonzero((self.n_chargers < 1) | ~(self.charger_kw > 0.0))[:1]:
            raise DataError(
                f"stations: station {k} must have chargers with a positive power, "
                f"got {self.n_chargers[k]} of {self.charger_kw[k]} kW"
            )

    def __len__(self) -> int:
        return len(self.node)

    @property
    def service_h(self) -> FloatArray:
        """Time of charging (S,) [h]."""
        return np.asarray(self.energy_kwh / self.charger_kw)

    @property
    def capacity_veh_per_h(self) -> FloatArray:
        """Cars that the chargers can serve (S,) [veh/h]."""
        return np.asarray(self.n_chargers / self.service_h)


def load_stations(queue: Queue | str = Queue.DAVIDSON) -> Stations:
    """The eight stations of "city12"."""
    rows = table("roads_city12_stations.csv")
    n_chargers: IntArray = frozen(rows["n_chargers"].astype(np.int64))
    return Stations(
        node=frozen(rows["node"].astype(np.int64) - 1),
        n_chargers=n_chargers,
        charger_kw=frozen(np.full(len(n_chargers), DEFAULT_CHARGER_KW)),
        queue=Queue(queue),
    )


@dataclass(frozen=True, eq=False)
class TrafficModel:
    """Roads with stations, prepared: the two-layer graph; resources are L roads, S stations, the outside option.

    value_of_time_eur_per_h: of everybody. outside_eur: what it costs a car not to charge at all, None where it must.
    Pairs of the graph: K of through traffic, then the same K of charging cars.
    """

    network: RoadNetwork
    stations: Stations
    value_of_time_eur_per_h: float
    outside_eur: float | None
    graph: Graph

    @property
    def station_resources(self) -> slice:
        """Where stations stand among the resources."""
        return slice(self.network.n_links, self.network.n_links + len(self.stations))

    def fixed_h(self, price_eur_per_kwh: ArrayLike) -> FloatArray:
        """Fixed costs of the resources as time, (..., R), for prices (..., S) or one price."""
        price = np.asarray(price_eur_per_kwh, dtype=np.float64)
        price = np.broadcast_to(price, (*price.shape[:-1], len(self.stations)))
        if not np.isfinite(price).all():
            raise DataError("prices of stations must be finite; check price_eur_per_kwh")
        fixed = np.tile(self.graph.fixed_h, (*price.shape[:-1], 1)).reshape(*price.shape[:-1], -1)
        fixed[..., self.station_resources] = price * self.stations.energy_kwh / self.value_of_time_eur_per_h
        return fixed


@dataclass(frozen=True, eq=False)
class ChargingAssignment:
    """Equilibrium with stations; L links, S stations, K pairs.

    link_flow_veh_per_h, link_time_h: (L,), both classes together. station_veh_per_h, station_kw, waiting_h,
    utilisation_frac: (S,); the power is that of the arriving cars' energy. outside_veh_per_h: cars that do not charge.
    through_cost_h, charging_cost_h: (K,) least generalised costs. relative_gap: (T4), reached; excess_eur is its
    numerator. beckmann_eur: (T3).
    """

    link_flow_veh_per_h: FloatArray
    link_time_h: FloatArray
    station_veh_per_h: FloatArray
    station_kw: FloatArray
    waiting_h: FloatArray
    utilisation_frac: FloatArray
    outside_veh_per_h: float
    through_cost_h: FloatArray
    charging_cost_h: FloatArray
    relative_gap: float
    excess_eur: float
    beckmann_eur: float
    iterations: int
    converged: bool
    columns: Columns
    path_flow_veh_per_h: FloatArray


def traffic_model(
    network: RoadNetwork, stations: Stations, value_of_time_eur_per_h: float = 15.0, outside_eur: float | None = None
) -> TrafficModel:
    """Roads and stations as one graph.

    Raises DataError for a station at no node or at a zone that is not passed through, ConfigError for a value of time
    that is not positive or a negative outside cost.
    """
    if not (math.isfinite(value_of_time_eur_per_h) and value_of_time_eur_per_h > 0.0):
        raise ConfigError(f"traffic: value_of_time_eur_per_h must be positive, got {value_of_time_eur_per_h}")
    if outside_eur is not None and not (math.isfinite(outside_eur) and outside_eur >= 0.0):
        raise ConfigError(f"traffic: outside_eur must not be negative, got {outside_eur}")
    for k in np.flatnonzero((stations.node < network.n_closed) | (stations.node >= network.n_nodes))[:1]:
        raise DataError(
            f"{network.name}: station {k} must stand at a node {network.n_closed}..{network.n_nodes - 1} that cars "
            f"may pass, got {stations.node[k]}"
        )
    resources = road_resources(network).joined(_station_resources(stations))
    if outside_eur is not None:
        resources = resources.joined(_outside_resource(outside_eur / value_of_time_eur_per_h))
    origin, destination = network.origin, network.destination
    graph = build_graph(
        network.name,
        resources,
        _layered_arcs(network, stations, outside_eur is not None),
        (np.concatenate([origin, origin]), np.concatenate([destination, destination + network.n_nodes])),
        np.tile(np.arange(network.n_nodes) < network.n_closed, 2),
        pair_labels(network) + pair_labels(network, ", charging"),
    )
    return TrafficModel(network, stations, value_of_time_eur_per_h, outside_eur, graph)


def _station_resources(stations: Stations) -> Resources:
    davidson = stations.queue is Queue.DAVIDSON
    n = len(stations)
    return Resources(
        kind=np.full(n, DAVIDSON if davidson else ERLANG, dtype=np.int64),
        base_h=stations.service_h,
        slope=np.full(n, stations.davidson_j) if davidson else stations.n_chargers.astype(np.float64),
        power=np.ones(n),
        capacity=stations.capacity_veh_per_h,
        fixed_h=np.zeros(n),
    )


def _outside_resource(cost_h: float) -> Resources:
    one = np.ones(1)
    kind = np.full(1, BPR, dtype=np.int64)
    return Resources(kind=kind, base_h=0.0 * one, slope=0.0 * one, power=one, capacity=one, fixed_h=cost_h * one)


def _layered_arcs(network: RoadNetwork, stations: Stations, outside: bool) -> tuple[IntArray, IntArray, IntArray]:
    """Arcs of the two layers, of the stations between them and, at every origin, of the outside option."""
    n, n_links = network.n_nodes, network.n_links
    links, nodes = np.arange(n_links), stations.node
    begin = [network.tail, network.tail + n, nodes]
    end = [network.head, network.head + n, nodes + n]
    resource = [links, links, n_links + np.arange(len(stations))]
    if outside:
        origins = np.unique(network.origin)
        begin.append(origins)
        end.append(origins + n)
        resource.append(np.full(len(origins), n_links + len(stations)))
    return np.concatenate(begin), np.concatenate(end), np.concatenate(resource)


def assign_charging(
    model: TrafficModel,
    charging_veh_per_h: ArrayLike,
    through_veh_per_h: ArrayLike | None = None,
    price_eur_per_kwh: ArrayLike = 0.0,
    relative_gap: float = 1e-6,
    max_seconds: float = 60.0,
    require_convergence: bool = False,
) -> ChargingAssignment:
    """Equilibrium of charging (K,) and through demand (K,), by default the network's, at the stations' prices (S,).

    Raises InfeasibleError if a pair has no path, if charging demand exceeds what its stations can serve (names them and
    the shortfall) or a station ends up fuller than the law of its queue holds for; ConvergenceError if asked to;
    DataError for demands and prices out of range.
    """
    check_limits(relative_gap, max_seconds)
    through = model.network.demand_veh_per_h if through_veh_per_h is None else through_veh_per_h
    demand = joined_demand(model, np.asarray(through), np.asarray(charging_veh_per_h))
    check_capacity(model, demand[model.network.n_pairs :])
    fixed = model.fixed_h(price_eur_per_kwh)
    found = solve_graph(model.graph, demand, relative_gap, max_seconds, fixed_h=fixed)
    if require_convergence:
        refuse_unconverged(model.graph, found, relative_gap)
    refuse_overfull(model, found.flow_veh_per_h[model.station_resources])
    return _assignment(model, found, fixed)


def _assignment(model: TrafficModel, found: GraphFlow, fixed_h: FloatArray) -> ChargingAssignment:
    n_links, n_pairs, at = model.network.n_links, model.network.n_pairs, model.station_resources
    link_flow, station_flow = found.flow_veh_per_h[:n_links], found.flow_veh_per_h[at]
    return ChargingAssignment(
        link_flow_veh_per_h=frozen(link_flow),
        link_time_h=frozen(model.network.link_time_h(link_flow)),
        station_veh_per_h=frozen(station_flow),
        station_kw=frozen(station_flow * model.stations.energy_kwh),
        waiting_h=frozen(found.cost_h[at] - fixed_h[at] - model.stations.service_h),
        utilisation_frac=frozen(station_flow / model.stations.capacity_veh_per_h),
        outside_veh_per_h=float(found.flow_veh_per_h[at.stop :].sum()),
        through_cost_h=frozen(found.pair_cost_h[:n_pairs]),
        charging_cost_h=frozen(found.pair_cost_h[n_pairs:]),
        relative_gap=found.relative_gap,
        excess_eur=found.excess_veh * model.value_of_time_eur_per_h,
        beckmann_eur=beckmann_eur(model, found.flow_veh_per_h, fixed_h),
        iterations=found.iterations,
        converged=found.converged,
        columns=found.columns,
        path_flow_veh_per_h=found.path_flow_veh_per_h,
    )


def joined_demand(model: TrafficModel, through: FloatArray, charging: FloatArray) -> FloatArray:
    """Demand of the graph's pairs (..., 2 K): through, then charging.

    Raises DataError for another length, and for values that are negative or not finite.
    """
    n_pairs = model.network.n_pairs
    for key, value in (("through_veh_per_h", through), ("charging_veh_per_h", charging)):
        if value.shape[-1:] != (n_pairs,) or value.shape != through.shape:
            raise DataError(f"{model.network.name}: {key} must have shape (..., {n_pairs}), got {value.shape}")
        bad = ~(np.isfinite(value) & (value >= 0.0))
        if bad.any():
            place = tuple(int(axis[0]) for axis in np.nonzero(bad))
            label = model.graph.pair_label[place[-1]]
            raise DataError(
                f"{model.network.name}: {key} must be finite and not negative, pair {place[-1]} ({label}) "
                f"has {value[place]}"
            )
    return np.concatenate([through, charging], axis=-1).astype(np.float64)


# --- capacity ----------------------------------------------------------------------------------------------


def check_capacity(model: TrafficModel, charging_veh_per_h: FloatArray) -> None:
    """Refuse charging demand (K,) that does not fit through capacities / 1.1; an outside option takes any.

    A maximum flow from pairs to the stations that they can reach. InfeasibleError names the tight stations.
    """
    short, stations = _lacking(model, charging_veh_per_h)
    if stations:
        raise InfeasibleError(
            f"{model.network.name}: charging demand must fit through the stations with a reserve of "
            f"{CAPACITY_RESERVE - 1:.0%}, but stations {stations} fall short by {short:.6g} veh/h; add chargers or "
            "lower charging_veh_per_h"
        )


def check_capacity_rows(model: TrafficModel, charging_veh_per_h: FloatArray) -> None:
    """`check_capacity` of every row (B, K); one look where the largest demands of all pairs fit together."""
    if _lacking(model, charging_veh_per_h.max(axis=0, initial=0.0))[1]:
        for row in charging_veh_per_h:
            check_capacity(model, row)


def _lacking(model: TrafficModel, charging_veh_per_h: FloatArray) -> tuple[float, list[int]]:
    """What of the demand (K,) finds no room [veh/h], and the tight stations; none where all fits."""
    if model.outside_eur is not None:
        return 0.0, []
    masks, group = np.unique(_reach(model), axis=0, return_inverse=True)
    masks = masks.astype(np.bool_)
    demand: FloatArray = np.zeros(len(masks))
    np.add.at(demand, group.ravel(), charging_veh_per_h)
    capacity = model.stations.capacity_veh_per_h / CAPACITY_RESERVE
    if masks.all():
        short, stations = float(demand.sum() - capacity.sum()), list(range(len(capacity)))
    else:
        short, stations = _shortfall(demand, masks, capacity)
    return (short, stations) if short > 1e-9 * max(1.0, float(demand.sum())) else (0.0, [])


def _reach(model: TrafficModel) -> BoolArray:
    """(K, S) whether a pair can pass a station on its way."""
    network = model.network
    reachable = np.eye(network.n_nodes, dtype=np.bool_)
    passes = np.arange(network.n_nodes) >= network.n_closed
    for _ in range(network.n_nodes):
        before = int(reachable.sum())
        for tail, head in zip(network.tail, network.head, strict=True):
            reachable[:, head] |= reachable[:, tail] & (passes[tail] | (np.arange(network.n_nodes) == tail))
        if int(reachable.sum()) == before:
            break
    nodes = model.stations.node
    return np.asarray(reachable[network.origin][:, nodes] & reachable[nodes][:, network.destination].T)


def _shortfall(demand: FloatArray, reach: BoolArray, capacity: FloatArray) -> tuple[float, list[int]]:
    """What of the demand (G,) finds no room in the stations (S,) within its reach (G, S), and the tight stations.

    The maximum flow as a linear programme; the tight stations are those where more room would be worth something.
    """
    from scipy.optimize import linprog

    n_groups, n_stations = reach.shape
    leaves = np.kron(np.eye(n_groups), np.ones(n_stations))
    enters = np.kron(np.ones(n_groups), np.eye(n_stations))
    found = linprog(
        c=-np.ones(reach.size),
        A_ub=np.concatenate([leaves, enters]),
        b_ub=np.concatenate([demand, capacity]),
        bounds=[(0.0, None if open_way else 0.0) for open_way in reach.ravel().tolist()],
    )
    if found.status != 0:
        raise SolverError(f"check of station capacity: the maximum flow must be solved, got {found.message!r}")
    worth = found.ineqlin.marginals[n_groups:]
    return float(demand.sum() + found.fun), np.flatnonzero(worth < -0.5).tolist()


def refuse_overfull(model: TrafficModel, station_veh_per_h: FloatArray) -> None:
    """InfeasibleError where a flow (..., S) is beyond the range in which the law of the queue is used."""
    share = station_veh_per_h / model.stations.capacity_veh_per_h
    worst = share.reshape(-1, len(model.stations)).max(axis=0, initial=0.0)
    for k in np.flatnonzero(worst > LARGEST_UTILISATION)[:1]:
        raise InfeasibleError(
            f"{model.network.name}: station {k} must stay below {LARGEST_UTILISATION:.1%} of its capacity, got "
            f"{worst[k]:.4%}; add chargers there or make the others cheaper"
        )


# --- Beckmann's function -----------------------------------------------------------------------------------


def beckmann_eur(model: TrafficModel, flow: FloatArray, fixed_h: FloatArray) -> float:
    """(T3) at flows of the resources (R,): value of time times the integrals of times and fixed costs."""
    links, at = model.network.n_links, model.station_resources
    roads = model.network.beckmann_veh(flow[:links])
    queues = [station_integral(model.stations, k, flow[at][k]) for k in range(len(model.stations))]
    total = roads + math.fsum(queues) + math.fsum(fixed_h[links:] * flow[links:])
    return model.value_of_time_eur_per_h * total  # (T3)


def station_integral(stations: Stations, station: int, flow: float) -> float:
    """Integral of a station's time from 0 to a flow below its capacity [veh]; Erlang-C by Gauss-Legendre rules.

    The panels grow finer towards the flow: the time grows like a pole at the capacity.
    """
    service, capacity = float(stations.service_h[station]), float(stations.capacity_veh_per_h[station])
    if stations.queue is Queue.DAVIDSON:
        queue = -flow - capacity * math.log1p(-flow / capacity)
        return service * (flow + stations.davidson_j * queue)
    free = capacity - flow
    border = capacity - capacity * (free / capacity) ** np.linspace(0.0, 1.0, _PANELS + 1)
    middle, half = 0.5 * (border[1:] + border[:-1]), 0.5 * np.diff(border)
    points = middle[:, None] + half[:, None] * _NODES
    n_chargers = int(stations.n_chargers[station])
    times = np.array([[erlang_sojourn(y, service, n_chargers)[0] for y in row] for row in points.tolist()])
    return math.fsum((half[:, None] * _WEIGHTS * times).ravel())
