"""Road traffic: user equilibrium, with charging stations and over the slots of a day."""

from evcs_gym.envs.traffic.batch import BatchFlow, respond, solve_batch
from evcs_gym.envs.traffic.charging import (
    ChargingAssignment,
    Queue,
    Stations,
    TrafficModel,
    assign_charging,
    load_stations,
    traffic_model,
)
from evcs_gym.envs.traffic.equilibrium import Assignment, assign
from evcs_gym.envs.traffic.graph import Graph, road_graph
from evcs_gym.envs.traffic.periods import DayTraffic, assign_days
from evcs_gym.envs.traffic.roads import RoadNetwork
from evcs_gym.envs.traffic.shipped import SHIPPED_ROADS, load_departures_frac, load_roads
from evcs_gym.envs.traffic.synthetic import synthetic_roads

__all__ = [
    "SHIPPED_ROADS",
    "Assignment",
    "BatchFlow",
    "ChargingAssignment",
    "DayTraffic",
    "Graph",
    "Queue",
    "RoadNetwork",
    "Stations",
    "TrafficModel",
    "assign",
    "assign_charging",
    "assign_days",
    "load_departures_frac",
    "load_roads",
    "load_stations",
    "respond",
    "road_graph",
    "solve_batch",
    "synthetic_roads",
    "traffic_model",
]
