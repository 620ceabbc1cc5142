"""The three-phase distribution network: feeder and power flow."""

from evcs_gym.envs.grid.feeder import SHIPPED_FEEDERS, Feeder, load_feeder
from evcs_gym.envs.grid.linear import LinDistFlow, lindistflow
from evcs_gym.envs.grid.powerflow import (
    PHASE_UNIT,
    PowerFlow,
    branch_current_a,
    power_flow,
    voltage_unbalance_frac,
)

__all__ = [
    "PHASE_UNIT",
    "SHIPPED_FEEDERS",
    "Feeder",
    "LinDistFlow",
    "PowerFlow",
    "branch_current_a",
    "lindistflow",
    "load_feeder",
    "power_flow",
    "voltage_unbalance_frac",
]
