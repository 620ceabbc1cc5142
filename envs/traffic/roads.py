"""Road networks: links, origin-destination pairs, the public TNTP format, shipped networks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.traffic.tntp import PathLike, read_net, read_trips
from evcs_gym.envs.types import FloatArray, IntArray, frozen

DEFAULT_B: Final = 0.15
DEFAULT_POWER: Final = 4.0


@dataclass(frozen=True, eq=False)
class RoadNetwork:
    """Roads of L one-way links between N nodes, and K origin-destination pairs; all arrays read-only.

    tail, head: (L,) nodes 0 .. N - 1. free_flow_h, capacity_veh_per_h, bpr_b, bpr_power: (L,) of
        t(x) = free_flow (1 + b (x / capacity)^power) (Bureau of Public Roads, 1964). length_km: (L,).
    fixed_h: (L,) what a link costs beside its time, as time: tolls and distance.
    origin, destination: (K,) nodes of the pairs. demand_veh_per_h: (K,).
    n_closed: nodes 0 .. n_closed - 1 are zones that paths may begin or end at, but not pass through.
    node_xy_km: (N, 2) where known, for drawing. name: for messages.
    """

    name: str
    n_nodes: int
    tail: IntArray
    head: IntArray
    free_flow_h: FloatArray
    capacity_veh_per_h: FloatArray
    bpr_b: FloatArray
    bpr_power: FloatArray
    length_km: FloatArray
    fixed_h: FloatArray
    origin: IntArray
    destination: IntArray
    demand_veh_per_h: FloatArray
    n_closed: int = 0
    node_xy_km: FloatArray | None = None

    @property
    def n_links(self) -> int:
        """Number of links L."""
        return len(self.tail)

    @property
    def n_pairs(self) -> int:
        """Number of origin-destination pairs K."""
        return len(self.origin)

    @classmethod
    def from_arrays(
        cls,
        *,
        tail: ArrayLike,
        head: ArrayLike,
        free_flow_h: ArrayLike,
        capacity_veh_per_h: ArrayLike,
        origin: ArrayLike,
        destination: ArrayLike,
        demand_veh_per_h: ArrayLike,
        bpr_b: ArrayLike = DEFAULT_B,
        bpr_power: ArrayLike = DEFAULT_POWER,
        length_km: ArrayLike = 0.0,
        fixed_h: ArrayLike = 0.0,
        n_nodes: int | None = None,
        n_closed: int = 0,
        node_xy_km: ArrayLike | None = None,
        name: str = "roads",
    ) -> "RoadNetwork":
        """A network from arrays as described at the class; numbers stand for all links. Nodes count from 0.

        Raises DataError: lengths differ, a node out of range, a capacity that is not positive, a negative time, cost
        or demand, a power between 0 and 1, a value that is not finite, a pair that leads nowhere or comes twice.

        >>> roads = RoadNetwork.from_arrays(tail=[0, 0], head=[1, 1], free_flow_h=[0.1, 0.2],
        ...     capacity_veh_per_h=[100.0, 200.0], origin=[0], destination=[1], demand_veh_per_h=[150.0])
        >>> roads.n_links, roads.n_pairs
        (2, 1)
        """
        tails, heads = _integers(tail, name, "tail"), _integers(head, name, "head")
        pairs = [_integers(value, name, key) for key, value in (("origin", origin), ("destination", destination))]
        n_links = len(tails)
        links = {
            key: _numbers(value, name, key, n_links)
            for key, value in (
                ("free_flow_h", free_flow_h),
                ("capacity_veh_per_h", capacity_veh_per_h),
                ("bpr_b", bpr_b),
                ("bpr_power", bpr_power),
                ("length_km", length_km),
                ("fixed_h", fixed_h),
            )
        }
        demand = _numbers(demand_veh_per_h, name, "demand_veh_per_h", len(pairs[0]))
        known = [int(values.max(initial=-1)) for values in (tails, heads, *pairs)]
        network = cls(
            name=name,
            n_nodes=max(known) + 1 if n_nodes is None else n_nodes,
            tail=frozen(tails),
            head=frozen(heads),
            **{key: frozen(value) for key, value in links.items()},
            origin=frozen(pairs[0]),
            destination=frozen(pairs[1]),
            demand_veh_per_h=frozen(demand),
            n_closed=n_closed,
            node_xy_km=None if node_xy_km is None else frozen(np.array(node_xy_km, dtype=np.float64)),
        )
        _check_links(network)
        _check_pairs(network)
        return network

    @classmethod
    def from_tntp(
        cls,
        net_path: PathLike,
        trips_path: PathLike,
        toll_factor: float = 0.0,
        distance_factor: float = 0.0,
        time_unit_h: float = 1.0,
    ) -> "RoadNetwork":
        """A network in the TNTP format of the Transportation Networks collection (Stabler et al.).

        toll_factor, distance_factor: file units of time per unit of toll and of length. time_unit_h: length of the
        file's unit of time; with 1 all results are in the file's own units, as published objectives are. Zones below
        FIRST THRU NODE are not passed through; trips within a zone are left out; lengths are taken as they stand.

        Raises DataError: a file that is missing or malformed, counts that differ from its header, and what
        `from_arrays` refuses.
        """
        for key, value in (("toll_factor", toll_factor), ("distance_factor", distance_factor)):
            if not (math.isfinite(value) and value >= 0.0):
                raise ConfigError(f"from_tntp: {key} must be a number that is not negative, got {value}")
        if not (math.isfinite(time_unit_h) and time_unit_h > 0.0):
            raise ConfigError(f"from_tntp: time_unit_h must be positive, got {time_unit_h}")
        net, trips = read_net(net_path), read_trips(trips_path)
        if trips.n_zones != net.n_zones:
            raise DataError(
                f"{trips_path}: NUMBER OF ZONES must be that of {net_path}, {net.n_zones}, got {trips.n_zones}"
            )
        return cls.from_arrays(
            name=str(net_path),
            n_nodes=net.n_nodes,
            tail=net.tail,
            head=net.head,
            free_flow_h=net.free_flow * time_unit_h,
            capacity_veh_per_h=net.capacity,
            bpr_b=net.b,
            bpr_power=net.power,
            length_km=net.length,
            fixed_h=(toll_factor * net.toll + distance_factor * net.length) * time_unit_h,
            origin=trips.origin,
            destination=trips.destination,
            demand_veh_per_h=trips.demand,
            n_closed=net.first_through - 1,
        )

    def with_demand(self, demand_veh_per_h: ArrayLike) -> "RoadNetwork":
        """The same roads and pairs with another demand (K,)."""
        fields = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return RoadNetwork.from_arrays(**{**fields, "demand_veh_per_h": demand_veh_per_h})

    def link_time_h(self, link_flow_veh_per_h: ArrayLike) -> FloatArray:
        """Travel times (..., L) [h] at flows (..., L), without what links cost beside time."""
        share = np.asarray(link_flow_veh_per_h, dtype=np.float64) / self.capacity_veh_per_h
        return np.asarray(self.free_flow_h * (1.0 + self.bpr_b * share**self.bpr_power))

    def beckmann_veh(self, link_flow_veh_per_h: ArrayLike) -> float:
        """Sum over links of the integral of time and fixed cost from 0 to the flow; its minimum is the equilibrium."""
        flow = np.asarray(link_flow_veh_per_h, dtype=np.float64)
        grown = self.bpr_b / (self.bpr_power + 1.0) * (flow / self.capacity_veh_per_h) ** self.bpr_power
        return math.fsum(flow * (self.free_flow_h * (1.0 + grown) + self.fixed_h))

    def to_geojson(self, link_flow_veh_per_h: ArrayLike | None = None) -> dict[str, Any]:
        """A GeoJSON FeatureCollection: a Point per node, a LineString per link with its data and flow.

        Positions are local kilometres, not longitude and latitude. Raises DataError without positions or for flows of
        another length.
        """
        xy, flow = self._positions("to_geojson"), self._flows(link_flow_veh_per_h)
        features = [_feature("Point", xy[node].tolist(), {"node": node}) for node in range(self.n_nodes)]
        for link in range(self.n_links):
            line = [xy[self.tail[link]].tolist(), xy[self.head[link]].tolist()]
            features.append(_feature("LineString", line, self._link(link, flow)))
        return {"type": "FeatureCollection", "name": self.name, "features": features}

    def to_networkx(self, link_flow_veh_per_h: ArrayLike | None = None) -> Any:
        """A networkx MultiDiGraph with the data of each link and, where given, its flow. Needs networkx."""
        import networkx

        flow = self._flows(link_flow_veh_per_h)
        graph = networkx.MultiDiGraph(name=self.name)
        for node in range(self.n_nodes):
            graph.add_node(
                node, **({} if self.node_xy_km is None else {"xy_km": tuple(self.node_xy_km[node].tolist())})
            )
        for link in range(self.n_links):
            graph.add_edge(int(self.tail[link]), int(self.head[link]), key=link, **self._link(link, flow))
        return graph

    def plot(self, link_flow_veh_per_h: ArrayLike | None = None, axes: Any = None) -> Any:
        """The matplotlib figure of the roads; width and colour grow with flow over capacity.

        axes: to draw on, by default those of a new figure. Each direction is drawn to the right of the middle of the
        road. Raises DataError without positions.
        """
        if axes is None:
            from matplotlib.figure import Figure

            axes = Figure(figsize=(6.0, 5.0), layout="constrained").subplots()
        xy, flow = self._positions("plot"), self._flows(link_flow_veh_per_h)
        share = np.zeros(self.n_links) if flow is None else flow / self.capacity_veh_per_h
        largest = max(1.0, float(share.max(initial=0.0)))
        for link in range(self.n_links):
            begin, end = xy[self.tail[link]], xy[self.head[link]]
            aside = np.array([end[1] - begin[1], begin[0] - end[0]]) * 0.02
            x, y = np.stack([begin + aside, end + aside]).T
            axes.plot(x, y, color=(share[link] / largest, 0.3, 0.5), linewidth=1.0 + 4.0 * share[link] / largest)
        axes.plot(xy[:, 0], xy[:, 1], "o", color="0.2")
        for node in range(self.n_nodes):
            axes.annotate(str(node + 1), xy[node], xytext=(4, 4), textcoords="offset points")
        axes.set_aspect("equal")
        return axes.figure

    def _link(self, link: int, flow: FloatArray | None) -> dict[str, Any]:
        names = ("tail", "head", "free_flow_h", "capacity_veh_per_h", "length_km")
        data = {"link": link, **{name: getattr(self, name)[link].item() for name in names}}
        return data if flow is None else {**data, "flow_veh_per_h": float(flow[link])}

    def _positions(self, what: str) -> FloatArray:
        if self.node_xy_km is None:
            raise DataError(f"{self.name}: {what} needs positions, but node_xy_km is None; give them to from_arrays")
        return self.node_xy_km

    def _flows(self, link_flow_veh_per_h: ArrayLike | None) -> FloatArray | None:
        if link_flow_veh_per_h is None:
            return None
        return _numbers(np.atleast_1d(link_flow_veh_per_h), self.name, "link_flow_veh_per_h", self.n_links)


def _feature(kind: str, coordinates: Sequence[Any], properties: dict[str, Any]) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _integers(value: ArrayLike, name: str, key: str) -> IntArray:
    array = np.array(value)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(f"{name}: {key} must be a list of whole numbers, got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def _numbers(value: ArrayLike, name: str, key: str, length: int) -> FloatArray:
    array = np.array(value, dtype=np.float64)
    if array.ndim == 0:
        array = np.full(length, float(array))
    if array.shape != (length,):
        raise DataError(f"{name}: {key} must have {length} entries, got shape {array.shape}")
    if not np.isfinite(array).all():
        entry = int(np.argmin(np.isfinite(array)))
        raise DataError(f"{name}: {key} must be finite, got {array[entry]} at index {entry}")
    return array


def _check_links(network: RoadNetwork) -> None:
    name = network.name
    for key in ("tail", "head"):
        nodes = getattr(network, key)
        if len(nodes) != network.n_links:
            raise DataError(f"{name}: head must have {network.n_links} entries as tail has, got {len(nodes)}")
        for link in np.flatnonzero((nodes < 0) | (nodes >= network.n_nodes))[:1]:
            raise DataError(f"{name}: {key} must be a node 0..{network.n_nodes - 1}, link {link} has {nodes[link]}")
    for link in np.flatnonzero(network.capacity_veh_per_h <= 0.0)[:1]:
        capacity = network.capacity_veh_per_h[link]
        raise DataError(
            f"{name}: capacity_veh_per_h must be positive, link {link} {_ends(network, link)} has {capacity}"
        )
    for key in ("free_flow_h", "bpr_b", "fixed_h", "length_km"):
        values = getattr(network, key)
        for link in np.flatnonzero(values < 0.0)[:1]:
            raise DataError(
                f"{name}: {key} must not be negative, link {link} {_ends(network, link)} has {values[link]}"
            )
    power = network.bpr_power
    for link in np.flatnonzero((power != 0.0) & (power < 1.0))[:1]:
        raise DataError(
            f"{name}: bpr_power must be 0 or at least 1, link {link} {_ends(network, link)} has {power[link]}"
        )
    if network.node_xy_km is not None and network.node_xy_km.shape != (network.n_nodes, 2):
        raise DataError(f"{name}: node_xy_km must have shape ({network.n_nodes}, 2), got {network.node_xy_km.shape}")
    if not 0 <= network.n_closed <= network.n_nodes:
        raise DataError(f"{name}: n_closed must be in 0..{network.n_nodes}, got {network.n_closed}")


def _ends(network: RoadNetwork, link: int) -> str:
    return f"({network.tail[link]} -> {network.head[link]})"


def _check_pairs(network: RoadNetwork) -> None:
    name, origin, destination = network.name, network.origin, network.destination
    if len(origin) != len(destination):
        raise DataError(f"{name}: destination must have {len(origin)} entries as origin has, got {len(destination)}")
    for key, nodes in (("origin", origin), ("destination", destination)):
        for pair in np.flatnonzero((nodes < 0) | (nodes >= network.n_nodes))[:1]:
            raise DataError(f"{name}: {key} must be a node 0..{network.n_nodes - 1}, pair {pair} has {nodes[pair]}")
    for pair in np.flatnonzero(origin == destination)[:1]:
        raise DataError(f"{name}: a pair must lead to another node, pair {pair} begins and ends at {origin[pair]}")
    code = origin * network.n_nodes + destination
    if len(np.unique(code)) < len(code):
        order = np.argsort(code, kind="stable")
        pair = int(order[1:][np.diff(code[order]) == 0][0])
        raise DataError(f"{name}: a pair must come once, pair {pair} ({origin[pair]} -> {destination[pair]}) does not")
    for pair in np.flatnonzero(network.demand_veh_per_h < 0.0)[:1]:
        raise DataError(
            f"{name}: demand_veh_per_h must not be negative, pair {pair} ({origin[pair]} -> {destination[pair]}) "
            f"has {network.demand_veh_per_h[pair]}"
        )
