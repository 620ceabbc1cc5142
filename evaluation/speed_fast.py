"""How fast the environment of fast charging is: batches, one environment, and a slot of a hundred thousand cars."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet import fast
from evcs_gym.envs.fleet.fast_batch import FastBatch
from evcs_gym.envs.fleet.fast_env import DEFAULT_SCENARIO, FastChargingEnv
from evcs_gym.envs.fleet.fast_pool import load_fast_pool
from evcs_gym.envs.scenario import Scenario, load_scenario, scenario_from_dict
from evcs_gym.envs.specs import read_yaml
from evcs_gym.envs.types import IntArray
from evcs_gym.envs.units import N_SLOTS
from evcs_gym.evaluation.speed import median_seconds

POOL_DAYS: Final = 32
STEPS_PER_CALL: Final = 50
LARGE_CITY_CARS: Final = 100_000


@dataclass(frozen=True)
class FastSpeedRow:
    """One measured figure: median wall time of a call over its items, steps or slots, and the CPU time of all threads,
    which other work on the machine disturbs less. The first values are those of `evaluation.speed.SpeedRow`."""

    name: str
    case: str
    buses: int
    batch: int
    seconds_per_item: float
    items_per_second: float
    cpu_seconds_per_item: float
    times_own: float = math.nan

    def as_dict(self) -> dict[str, str | int | float]:
        """The row as plain values, for JSON."""
        return asdict(self)


def speed_fast(
    batches: Sequence[int] = (256, 1024), min_seconds: float = 1.0, n_cars: int = LARGE_CITY_CARS
) -> list[FastSpeedRow]:
    """Steps per second of the default city, random allowed actions, on all threads; and of a city of ``n_cars``.

    Cases: ``batched`` with observation and masks, an item is a step of one environment; ``gymnasium`` with one
    environment; ``reset`` from the pool. Of the large city, whose stations have as many more plugs, an item is a slot:
    ``slot of N cars, request by request`` and ``slot of N cars, at once``, in one environment.

    Raises ConfigError if a batch is empty.
    """
    if not batches or min(batches) < 1:
        raise ConfigError(f"speed fast: every batch must hold at least one environment, got {list(batches)}")
    scenario = load_scenario(DEFAULT_SCENARIO)
    n_buses = len(scenario.feeder)
    rows = [
        _row("batched", n_buses, batch, STEPS_PER_CALL * batch, batched_steps(scenario, batch), min_seconds)
        for batch in batches
    ]
    env = FastChargingEnv(scenario, pool_days=POOL_DAYS)
    rows.append(_row("gymnasium", n_buses, 1, STEPS_PER_CALL, partial(gymnasium_steps, env), min_seconds))
    rows.append(_row("reset", n_buses, 1, 1, env.reset, min_seconds))
    large = city_of(n_cars)
    world = fast.make_fast_world(large, [large.day(0)])
    plan = nearest_plan(world)
    for case, width in (("request by request", 1), ("at once", int(np.diff(world.days.slot_start[0]).max()))):
        name = f"slot of {n_cars} cars, {case}"
        rows.append(_row(name, n_buses, 1, N_SLOTS, partial(play_plan, world, plan, width), min_seconds))
    return rows


def _row(
    case: str, n_buses: int, batch: int, n_items: int, call: Callable[[], object], min_seconds: float
) -> FastSpeedRow:
    seconds, cpu_seconds = (
        median_seconds(call, min_seconds, min_calls=3, clock=clock) / n_items
        for clock in (time.perf_counter, time.process_time)
    )
    return FastSpeedRow("evcs-gym", case, n_buses, batch, seconds, 1.0 / seconds, cpu_seconds)


def _allowed(masks: np.ndarray, draws: np.ndarray) -> IntArray:
    """An allowed action of every row, by a number in [0, 1)."""
    place = (draws * masks.sum(axis=1)).astype(np.int64)
    return np.asarray((np.cumsum(masks, axis=1) > place[:, None]).argmax(axis=1))


def batched_steps(scenario: Scenario, batch: int) -> Callable[[], object]:
    """Some steps of a batch of environments, in which days end and begin as they do."""
    rows = FastBatch(load_fast_pool(scenario, "train", POOL_DAYS), batch)
    draws = np.random.default_rng(0).random((STEPS_PER_CALL, batch))
    rows.reset(0)

    def play() -> None:
        for draw in draws:
            rows.step(_allowed(rows.action_masks(), draw))

    return play


def gymnasium_steps(env: FastChargingEnv) -> None:
    """The first steps of a day of one environment, each to the first allowed station; with its reset."""
    env.reset(seed=0)
    for _ in range(STEPS_PER_CALL):
        env.step(int(env.action_masks().argmax()))


def city_of(n_cars: int) -> Scenario:
    """The default city with as many cars, spread as there, and plugs in proportion."""
    source, content = read_yaml("scenarios", DEFAULT_SCENARIO)
    homes: list[dict[str, Any]] = content["charging_buses"]
    times = n_cars / sum(home["n_cars"] for home in homes)
    for places, key in ((homes, "n_cars"), (content["fast_charging"]["stations"], "n_plugs")):
        for place in places:
            place[key] = max(1, round(place[key] * times))
    return scenario_from_dict(content, source)


def nearest_plan(world: fast.FastWorld) -> IntArray:
    """The nearest allowed station of every request of the world's first day: what a forbidden action becomes."""
    state, plan = fast.initial_state(world, np.zeros(1, dtype=np.int64)), np.zeros((1, world.n_requests[0]), dtype=int)
    far = np.full((1, int(np.diff(world.days.slot_start[0]).max())), -1)
    while state.slot[0] < N_SLOTS:
        first = int(state.request[0])
        state, outcome = fast.step_executed(world, state, far)
        sent = outcome.station[0][outcome.station[0] >= 0]
        plan[0, first : first + len(sent)] = sent
    return np.asarray(plan[0])


def play_plan(world: fast.FastWorld, plan: IntArray, width: int) -> None:
    """The world's first day, with its masks and observations, ``width`` requests at a time."""
    state = fast.initial_state(world, np.zeros(1, dtype=np.int64))
    padded = np.concatenate([plan, np.zeros(width, dtype=np.int64)])
    while state.slot[0] < N_SLOTS:
        fast.action_masks(world, state)
        fast.observe(world, state)
        first = int(state.request[0])
        action = padded[None, first : first + width].copy()
        state, _ = fast.step(world, state, action)
