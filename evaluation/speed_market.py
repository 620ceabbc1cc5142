"""How fast the market of charging stations is: batches with prepared and with responsive traffic, one environment."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.core import MarketAction, MarketWorld, ask_band
from evcs_gym.envs.market.responsive import (
    ResponsiveState,
    ResponsiveWorld,
    initial_responsive_state,
    responsive_world,
    step_responsive,
)
from evcs_gym.envs.road_specs import ResponsiveSpec
from evcs_gym.envs.scenario import Scenario, load_scenario
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS
from evcs_gym.evaluation.speed import median_seconds

SCENARIO: Final = "ieee33_twelve"
POOL_DAYS: Final = 32
DRIFT_EUR_PER_KWH: Final = 0.02
"""Largest change of a retail price from one slot to the next where demand responds."""


@dataclass(frozen=True)
class MarketSpeedRow:
    """One measured figure: median wall time of a day over its steps, and the CPU time of all threads, which other work
    on the machine disturbs less. Agents are stations. The first values are those of `evaluation.speed.SpeedRow`."""

    name: str
    case: str
    buses: int
    batch: int
    seconds_per_item: float
    items_per_second: float
    cpu_seconds_per_item: float
    agent_steps_per_second: float
    bus_steps_per_second: float
    times_own: float = math.nan

    def as_dict(self) -> dict[str, str | int | float]:
        """The row as plain values, for JSON."""
        return asdict(self)


def speed_market(batches: Sequence[int] = (256, 1024), min_seconds: float = 1.0) -> list[MarketSpeedRow]:
    """Environment steps per second of the default city: random actions, a power flow in every step, on all threads.

    Cases: ``prepared_traffic`` with the full observation; ``responsive_demand``, where the equilibrium of the slot is
    solved at prices that move by up to 0.02 EUR/kWh, without observation; ``gymnasium`` and ``pettingzoo`` with one
    environment; ``reset`` from the pool.

    Raises ConfigError if a batch is empty.
    """
    if not batches or min(batches) < 1:
        raise ConfigError(f"speed market: every batch must hold at least one environment, got {list(batches)}")
    scenario = load_scenario(SCENARIO)
    responsive = responsive_world(_responsive(scenario), scenario.days(range(POOL_DAYS)))
    rows = [_row("prepared_traffic", scenario, batch, prepared_day(scenario, batch), min_seconds) for batch in batches]
    rows += [
        _row("responsive_demand", scenario, batch, responsive_day(responsive, batch), min_seconds) for batch in batches
    ]
    rows.append(_row("gymnasium", scenario, 1, gymnasium_day(scenario), min_seconds))
    rows.append(_row("pettingzoo", scenario, 1, pettingzoo_day(scenario), min_seconds))
    return [*rows, _row("reset", scenario, 1, _resets(scenario), min_seconds)]


def _responsive(scenario: Scenario) -> Scenario:
    return scenario.model_copy(update={"responsive_demand": ResponsiveSpec()})


def _row(case: str, scenario: Scenario, batch: int, play: Callable[[], object], min_seconds: float) -> MarketSpeedRow:
    seconds, cpu_seconds = (
        median_seconds(play, min_seconds, min_calls=3, clock=clock) / (N_SLOTS * batch)
        for clock in (time.perf_counter, time.process_time)
    )
    n_buses, n_agents = len(scenario.feeder), len(scenario.stations)
    return MarketSpeedRow(
        "evcs-gym", case, n_buses, batch, seconds, 1.0 / seconds, cpu_seconds, n_agents / seconds, n_buses / seconds
    )


def prepared_day(scenario: Scenario, batch: int) -> Callable[[], object]:
    """A day of a batch of environments, every station acting at random."""
    from evcs_gym.envs.market.batch import MarketBatch
    from evcs_gym.envs.market.pool import load_market_pool

    rows = MarketBatch(load_market_pool(scenario, "train", POOL_DAYS), batch)
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (N_SLOTS, batch, len(scenario.stations), 2))
    rows.reset(0)

    def play() -> None:
        for action in actions:
            rows.step(action)

    return play


def responsive_day(world: ResponsiveWorld, batch: int) -> Callable[[], object]:
    """A day of a batch whose drivers answer prices, every station acting at random."""
    rng, shape = np.random.default_rng(0), (N_SLOTS, batch, world.market.n_stations)
    power, ask = rng.uniform(-1.0, 1.0, shape), rng.uniform(0.0, 1.0, shape)
    low, high = world.least_retail_eur_per_kwh, world.largest_retail_eur_per_kwh
    drift = np.cumsum(rng.uniform(-DRIFT_EUR_PER_KWH, DRIFT_EUR_PER_KWH, shape), axis=0)
    price = np.clip(world.market.assets.retail_eur_per_kwh + drift, low, high)
    days = np.arange(batch) % world.market.n_days

    def play() -> None:
        state = initial_responsive_state(world, days)
        for slot in range(N_SLOTS):
            action = _market_action(world.market, state, power[slot], ask[slot])
            state, _, _ = step_responsive(world, state, action, price[slot])

    return play


def _market_action(world: MarketWorld, state: ResponsiveState, power: FloatArray, ask: FloatArray) -> MarketAction:
    low, high = (edge[:, None] for edge in ask_band(world, state.market))
    return MarketAction(power * world.assets.storage_kw, np.clip(low + ask * (high - low), low, high))


def gymnasium_day(scenario: Scenario) -> Callable[[], object]:
    """A day of the central controller through Gymnasium."""
    import gymnasium as gym

    env: Any = gym.make("evcs/Market-v0", scenario=scenario, pool_days=POOL_DAYS)
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (N_SLOTS, *env.action_space.shape)).astype(np.float32)

    def play() -> None:
        env.reset()
        for action in actions:
            env.step(action)

    return play


def pettingzoo_day(scenario: Scenario) -> Callable[[], object]:
    """A day of all stations through PettingZoo."""
    from evcs_gym.envs import market_env

    env, rng = market_env(scenario=scenario, pool_days=POOL_DAYS), np.random.default_rng(0)
    actions = [
        {agent: rng.uniform(-1.0, 1.0, 2).astype(np.float32) for agent in env.possible_agents} for _ in range(N_SLOTS)
    ]

    def play() -> None:
        env.reset()
        for action in actions:
            env.step(action)

    return play


def _resets(scenario: Scenario) -> Callable[[], object]:
    """As many resets as a day has slots."""
    from evcs_gym.envs.market.env import MarketEnv

    env = MarketEnv(scenario, pool_days=POOL_DAYS)
    return lambda: [env.reset() for _ in range(N_SLOTS)]
