"""A day of the market as an animated picture."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from evcs_gym.baselines.rules_market import MARKET_RULES, MarketRule
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.files import replace_file
from evcs_gym.envs.market.batch import MarketBatch
from evcs_gym.envs.market.pool import any_world
from evcs_gym.envs.market.render import Scene, draw_frame, write_gif
from evcs_gym.envs.specs import nearest
from evcs_gym.envs.units import N_SLOTS

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

SLOWEST_PER_S, FASTEST_PER_S = 0.1, 50.0
"""Bounds of what a GIF can hold: pictures last whole hundredths of a second."""
DEFAULT_RULE: Final = "dp_truthful"


def rule_called(name: str) -> MarketRule:
    """The rule of the market with this name.

    Raises:
        ConfigError: no such rule; names the nearest one.
    """
    if name not in MARKET_RULES:
        raise ConfigError(f"render: there is no rule {name!r}{nearest(name, sorted(MARKET_RULES))}")
    return MARKET_RULES[name]


def day_frames(scenario: "Scenario", day: "Day", rule: MarketRule) -> Iterator[np.ndarray]:
    """A picture of every slot of the day, all stations playing the rule."""
    batch = MarketBatch(any_world(scenario, [day]), 1)
    batch.start(np.zeros(1, dtype=np.int64))
    prices: list[float] = []
    for slot in range(N_SLOTS):
        done = batch.play(rule(batch.view(), batch.plan), autoreset=False)
        prices.append(float(done.outcome.price_eur_per_kwh[0]))
        energy = batch.running().energy_kwh[0]
        yield draw_frame(Scene(scenario, day, batch.world, slot, done.outcome, energy, tuple(prices), done.drivers))


def write_film(
    path: Path,
    scenario: "Scenario",
    day: "Day",
    policy: str = DEFAULT_RULE,
    frames_per_s: float = 4.0,
    listener: Callable[[int], None] = lambda slot: None,
) -> None:
    """Write the day as a GIF; ``listener`` is told each slot that was drawn.

    Raises:
        ConfigError: no such rule, a rate that a GIF cannot hold, a scenario without stations.
        DataError: the file cannot be written.
    """
    if not SLOWEST_PER_S <= frames_per_s <= FASTEST_PER_S:
        raise ConfigError(f"render: frames_per_s must be in {SLOWEST_PER_S}..{FASTEST_PER_S}, got {frames_per_s}")
    frames = []
    for slot, frame in enumerate(day_frames(scenario, day, rule_called(policy))):
        frames.append(frame)
        listener(slot)
    film = write_gif(frames, frames_per_s)
    replace_file(path, lambda file: file.write(film))
