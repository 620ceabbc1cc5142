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

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from evcs_gym.envs.market.parallel import StationsEnv

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
    "market_env",
    "shipped_scenarios",
]

_VIEWS = {
    "evcs/NormalCharging-v0": ("fleet.env:NormalChargingEnv", "fleet.vector:NormalChargingVectorEnv"),
    "evcs/FastCharging-v0": ("fleet.fast_env:FastChargingEnv", "fleet.fast_vector:FastChargingVectorEnv"),
    "evcs/Market-v0": ("market.env:MarketEnv", "market.vector:MarketVectorEnv"),
    "evcs/Bidding-v0": ("market.env:BiddingEnv", "market.vector:BiddingVectorEnv"),
}
ENVIRONMENT_IDS = tuple(_VIEWS)
"""Every environment that this package registers."""

for _id, (_one, _many) in _VIEWS.items():
    if _id not in registry:
        register(id=_id, entry_point=f"{__name__}.{_one}", vector_entry_point=f"{__name__}.{_many}")


def market_env(
    scenario: Scenario | str = "ieee33_twelve",
    split: str = "train",
    pool_days: int = 256,
    *,
    render_mode: str | None = None,
    **settings: Any,
) -> "StationsEnv":
    """The market of charging stations as a PettingZoo `ParallelEnv`, every station an agent.

    Args:
        scenario: a `Scenario` with stations, a shipped name or a path.
        split: "train", "validation" or "test": the calendar days of the pool. pool_days: number of prepared days.
        render_mode: None or "rgb_array".
        settings: of `evcs_gym.envs.market.batch.MarketBatch`: team_frac (0 own profit, 1 that of all stations),
            residual (storage power is added to that of the station's own plan), reward_shift, operator.

    Raises:
        ConfigError: a scenario without stations, an unknown split or render mode, a share outside [0, 1].
    """
    from evcs_gym.envs.market.env import OneMarket
    from evcs_gym.envs.market.parallel import StationsEnv

    return StationsEnv(OneMarket(scenario, split, pool_days, **settings), render_mode)
