"""The worlds: what happens in one slot of a day.

Importing this package registers the environments:

>>> import gymnasium as gym
>>> import evcs_gym.envs
>>> gym.spec("evcs/NormalCharging-v0").id
'evcs/NormalCharging-v0'
"""

if __name__ != "evcs_gym.envs":
    raise ImportError(
        f"this folder is the package evcs_gym.envs, but it was imported as {__name__!r}: "
        "install the project (pip install -e .) and write 'import evcs_gym.envs'"
    )

from gymnasium.envs.registration import register, registry

from evcs_gym.envs.day import Day
from evcs_gym.envs.errors import (
    ConfigError,
    ConvergenceError,
    DataError,
    EvcsError,
    InfeasibleError,
    SolverError,
)
from evcs_gym.envs.scenario import Scenario, load_scenario, shipped_scenarios
from evcs_gym.envs.types import Sessions

__all__ = [
    "ConfigError",
    "ConvergenceError",
    "DataError",
    "Day",
    "EvcsError",
    "InfeasibleError",
    "Scenario",
    "Sessions",
    "SolverError",
    "load_scenario",
    "shipped_scenarios",
]

ENVIRONMENT_IDS = ("evcs/NormalCharging-v0",)
"""Every environment that this package registers."""

if ENVIRONMENT_IDS[0] not in registry:
    register(
        id="evcs/NormalCharging-v0",
        entry_point="evcs_gym.envs.fleet.env:NormalChargingEnv",
        vector_entry_point="evcs_gym.envs.fleet.vector:NormalChargingVectorEnv",
    )
