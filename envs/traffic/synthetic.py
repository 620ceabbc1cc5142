"""Road networks from a seed, of any size: for speed and growth, no real place."""

import math

import numpy as np

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.traffic.equilibrium import assign
from evcs_gym.envs.traffic.roads import DEFAULT_B, RoadNetwork
from evcs_gym.envs.types import FloatArray, IntArray

_BLOCK_KM = 0.8
_SPEEDS_KM_PER_H = (30.0, 50.0, 80.0)
_CAPACITIES_VEH_PER_H = (600.0, 1200.0, 2400.0)
_CONNECTOR_H = 0.01
_CONNECTOR_VEH_PER_H = 1e5


def synthetic_roads(n_nodes: int, n_zones: int, seed: int = 0, mean_load_frac: float = 0.25) -> RoadNetwork:
    """A grid of streets with some missing, zones tied to it by connectors, and trips by a gravity model.

    n_nodes counts both. Zones come first and are not passed through; each has two connectors that never slow down.
    Trips join all pairs of zones. mean_load_frac: mean of flow over capacity of the streets if everybody took the way
    that is shortest without traffic. Raises ConfigError for fewer than 2 zones or fewer than 9 crossings.
    """
    n_crossings = n_nodes - n_zones
    if n_zones < 2 or n_crossings < 9:
        raise ConfigError(f"synthetic_roads: 2 zones and 9 crossings are needed, got {n_zones} and {n_crossings}")
    if not 0.0 < mean_load_frac < math.inf:
        raise ConfigError(f"synthetic_roads: mean_load_frac must be positive, got {mean_load_frac}")
    rng = np.random.default_rng(seed)
    crossing_km, streets = _streets(rng, n_crossings)
    zone_km = crossing_km[rng.choice(n_crossings, n_zones, replace=n_zones > n_crossings)] + rng.normal(
        0.0, 0.3, (n_zones, 2)
    )
    near = np.argsort(((zone_km[:, None] - crossing_km) ** 2).sum(axis=-1), axis=1)[:, :2]
    connectors = np.stack([np.repeat(np.arange(n_zones), 2), n_zones + near.ravel()], axis=1)
    one_way = np.concatenate([connectors, streets + n_zones])
    rank = rng.choice(3, len(streets), p=(0.5, 0.35, 0.15))
    xy = np.concatenate([zone_km, crossing_km])
    length = np.linalg.norm(xy[one_way[:, 0]] - xy[one_way[:, 1]], axis=1)
    time = np.full(len(one_way), _CONNECTOR_H)
    time[len(connectors) :] = length[len(connectors) :] / np.array(_SPEEDS_KM_PER_H)[rank]
    capacity = np.full(len(one_way), _CONNECTOR_VEH_PER_H)
    capacity[len(connectors) :] = np.array(_CAPACITIES_VEH_PER_H)[rank]
    origin, destination, demand = _trips(rng, zone_km)
    roads = RoadNetwork.from_arrays(
        name=f"synthetic, {n_nodes} nodes, {n_zones} zones, seed {seed}",
        tail=one_way.T.ravel(),
        head=one_way[:, ::-1].T.ravel(),
        free_flow_h=np.tile(time, 2),
        capacity_veh_per_h=np.tile(capacity, 2),
        bpr_b=np.tile(np.where(np.arange(len(one_way)) < len(connectors), 0.0, DEFAULT_B), 2),
        length_km=np.tile(length, 2),
        origin=origin,
        destination=destination,
        demand_veh_per_h=1e-9 * demand,
        n_closed=n_zones,
        node_xy_km=xy,
    )
    empty = assign(roads, relative_gap=0.5)
    street = np.tile(np.arange(len(one_way)) >= len(connectors), 2)
    load = float((empty.link_flow_veh_per_h / roads.capacity_veh_per_h)[street].mean())
    return roads.with_demand(roads.demand_veh_per_h * mean_load_frac / load)


def _streets(rng: np.random.Generator, n_crossings: int) -> tuple[FloatArray, IntArray]:
    """Crossings (n, 2) on a jittered grid, and pairs of neighbours (m, 2); a tenth of the rungs is missing."""
    width = math.ceil(math.sqrt(n_crossings))
    node = np.arange(n_crossings)
    xy = _BLOCK_KM * (np.stack([node % width, node // width], axis=1) + rng.uniform(-0.3, 0.3, (n_crossings, 2)))
    # the rows and the first column stay whole, so that every crossing is reached
    along = node[(node % width < width - 1) & (node + 1 < n_crossings)]
    up = node[node + width < n_crossings]
    up = up[(up % width == 0) | (rng.random(len(up)) < 0.9)]
    return xy, np.concatenate([np.stack([along, along + 1], axis=1), np.stack([up, up + width], axis=1)])


def _trips(rng: np.random.Generator, zone_km: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
    """All pairs of zones; trips fall with distance."""
    n_zones = len(zone_km)
    weight = rng.lognormal(0.0, 1.0, n_zones)
    origin, destination = np.nonzero(~np.eye(n_zones, dtype=np.bool_))
    distance = np.linalg.norm(zone_km[origin] - zone_km[destination], axis=1)
    demand = weight[origin] * weight[destination] * np.exp(-distance / 6.0)
    return origin.astype(np.int64), destination.astype(np.int64), demand
