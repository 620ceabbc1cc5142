"""The three-phase distribution network: feeder and power flow."""

from evcs_gym.envs.grid.equipment import (
    DELTA_WYE_LAG,
    DELTA_WYE_LEAD,
    Equipment,
    capacitor_siemens,
    regulator,
)
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
    "DELTA_WYE_LAG",
    "DELTA_WYE_LEAD",
    "PHASE_UNIT",
    "SHIPPED_FEEDERS",
    "Equipment",
    "Feeder",
    "LinDistFlow",
    "PowerFlow",
    "branch_current_a",
    "capacitor_siemens",
    "lindistflow",
    "load_feeder",
    "power_flow",
    "regulator",
    "voltage_unbalance_frac",
]
