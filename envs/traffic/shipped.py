"""Road networks, stations and a daily profile that the package carries; origins are in envs/data/SOURCES.md."""

import csv
from importlib.resources import files
from typing import Final

import numpy as np

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.traffic.roads import RoadNetwork
from evcs_gym.envs.types import FloatArray, frozen

SHIPPED_ROADS: Final = ("city12", "nguyen_dupuis", "braess", "grid24")
"""Names that `load_roads` knows."""
_ON_A_MAP: Final = ("city12", "grid24")
"""Networks whose nodes have places."""
MIN_PER_H: Final = 60.0
_DATA: Final = "evcs_gym.envs.data"


def load_roads(name: str) -> RoadNetwork:
    """A shipped network: "city12" and "grid24" (ours), "nguyen_dupuis" or "braess".

    The files count nodes from 1, the arrays from 0. Raises ConfigError for another name.
    """
    if name not in SHIPPED_ROADS:
        raise ConfigError(f"load_roads: name must be one of {', '.join(SHIPPED_ROADS)}, got {name!r}")
    links, pairs = table(f"roads_{name}_links.csv"), table(f"roads_{name}_pairs.csv")
    nodes = table(f"roads_{name}_nodes.csv") if name in _ON_A_MAP else None
    return RoadNetwork.from_arrays(
        name=name,
        tail=links["tail"].astype(np.int64) - 1,
        head=links["head"].astype(np.int64) - 1,
        free_flow_h=links["free_flow_min"] / MIN_PER_H,
        capacity_veh_per_h=links["capacity_veh_per_h"],
        bpr_b=links["bpr_b"],
        bpr_power=links["bpr_power"],
        length_km=links["length_km"],
        origin=pairs["origin"].astype(np.int64) - 1,
        destination=pairs["destination"].astype(np.int64) - 1,
        demand_veh_per_h=pairs["demand_veh_per_h"],
        node_xy_km=None if nodes is None else np.stack([nodes["x_km"], nodes["y_km"]], axis=1),
    )


def load_departures_frac() -> FloatArray:
    """Departures of "city12" in each of the 48 slots as a fraction of the demand in its pair table, (48,)."""
    profile: FloatArray = frozen(table("roads_city12_profile.csv")["departures_frac"])
    return profile


def table(name: str) -> dict[str, FloatArray]:
    """Columns of a shipped table whose entries after the header are numbers."""
    with (files(_DATA) / name).open("r", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    values = np.array(rows, dtype=np.float64)
    return {key: values[:, column].copy() for column, key in enumerate(header)}
