"""Who acts in an environment: one controller of all storages, or one station among others that play a rule.

A role stands between a batch of the market and an environment's own spaces: numbers in [-1, 1] to wishes and asks, what
all stations observe to what the actor sees, a slot to its reward. Views for one and for many environments share it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from gymnasium import spaces

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.market.batch import MarketBatch, MarketBatchStep
from evcs_gym.envs.market.core import MarketAction, MarketOutcome, MarketWorld
from evcs_gym.envs.market.observation import action_space, observation_space
from evcs_gym.envs.market.play import Rule, community_reward_eur, published_terms, slot_terms, station_terms, truthful
from evcs_gym.envs.market.responsive import Drivers
from evcs_gym.envs.types import FloatArray


class Role(Protocol):
    """See the module."""

    @property
    def spaces(self) -> tuple[spaces.Box, spaces.Box]:
        """Of observation and action of one environment."""
        ...

    @property
    def action_meaning(self) -> str:
        """What the numbers of an action are, for complaints."""
        ...

    def market_action(self, batch: MarketBatch, action: FloatArray) -> MarketAction:
        """Wishes and asks of all stations, (B, S), of actions (B, ...)."""
        ...

    def retail_eur_per_kwh(self, batch: MarketBatch, action: FloatArray) -> FloatArray | None:
        """Retail prices of all stations, (B, S), where drivers respond."""
        ...

    def seen(self, observation: np.ndarray) -> np.ndarray:
        """The actor's part of observations (B, S, F)."""
        ...

    def reward_eur(self, batch: MarketBatch, done: MarketBatchStep) -> FloatArray:
        """Reward of a slot, (B,)."""
        ...

    def terms(self, outcome: MarketOutcome) -> Mapping[str, np.ndarray]:
        """Named numbers of a slot that the actor is told, (B,) or (B, S)."""
        ...

    def driver_terms(self, drivers: Drivers) -> Mapping[str, np.ndarray]:
        """What it is told of drivers who respond."""
        ...


@dataclass(frozen=True)
class Central:
    """One controller of the storages of all stations; asks stand at the export price. Its reward is minus what the
    community pays."""

    n_stations: int
    responsive: bool = False

    @property
    def action_meaning(self) -> str:
        """See `Role`."""
        return "storage power and retail price of each station" if self.responsive else "the storage of each station"

    @property
    def spaces(self) -> tuple[spaces.Box, spaces.Box]:
        """Observation (S, F), action (S,), or (S, 2) with retail prices."""
        shape = (self.n_stations, 2) if self.responsive else (self.n_stations,)
        return observation_space(self.n_stations), action_space(*shape)

    def market_action(self, batch: MarketBatch, action: FloatArray) -> MarketAction:
        """See `Role`."""
        storage = action[..., 0] if self.responsive else action
        return batch.storage_action(storage)

    def retail_eur_per_kwh(self, batch: MarketBatch, action: FloatArray) -> FloatArray | None:
        """See `Role`."""
        return batch.retail_eur_per_kwh(action[..., [0, 0, 1]]) if self.responsive else None

    def seen(self, observation: np.ndarray) -> np.ndarray:
        """All stations."""
        return observation

    def reward_eur(self, batch: MarketBatch, done: MarketBatchStep) -> FloatArray:
        """See `Role`."""
        reward = community_reward_eur(batch.world, done.before, done.outcome, batch.reward_shift)
        return reward if done.drivers is None else reward - done.drivers.travel_eur - done.drivers.outside_eur

    def terms(self, outcome: MarketOutcome) -> Mapping[str, np.ndarray]:
        """Sums over the stations, and what each did."""
        return {**slot_terms(outcome), **{f"station_{name}": getattr(outcome, name) for name in _OWN}}

    def driver_terms(self, drivers: Drivers) -> Mapping[str, np.ndarray]:
        """Everybody's time, those who do not charge here, and arrivals at each station."""
        names = ("travel_eur", "outside_eur", "outside_veh_per_h", "relative_gap")
        return {
            **{name: getattr(drivers, name) for name in names},
            "station_arrivals_veh_per_h": drivers.arrivals_veh_per_h,
        }


_OWN = ("profit_eur", "position_kw", "storage_kw", "accepted_kw", "cap_kw")


@dataclass(frozen=True)
class Bidder:
    """One station that decides on storage and ask; the others play a rule. Its reward is its own profit, or a mix with
    that of all stations where the batch says so."""

    station: int
    others: Rule = truthful
    responsive: bool = False

    @property
    def action_meaning(self) -> str:
        """See `Role`."""
        return "storage power, ask and retail price" if self.responsive else "storage power and ask"

    @property
    def spaces(self) -> tuple[spaces.Box, spaces.Box]:
        """Observation (F,), action (2,), or (3,) with a retail price."""
        return observation_space(None), action_space(3 if self.responsive else 2)

    def market_action(self, batch: MarketBatch, action: FloatArray) -> MarketAction:
        """See `Role`."""
        theirs = self.others(batch.view(), batch.plan)
        numbers = np.zeros((batch.n_rows, batch.world.n_stations, 2))
        numbers[:, self.station] = action[:, :2]
        mine = batch.market_action(numbers)
        storage, ask = theirs.storage_kw.copy(), theirs.ask_eur_per_kwh.copy()
        storage[:, self.station] = mine.storage_kw[:, self.station]
        ask[:, self.station] = mine.ask_eur_per_kwh[:, self.station]
        return MarketAction(storage, ask)

    def retail_eur_per_kwh(self, batch: MarketBatch, action: FloatArray) -> FloatArray | None:
        """See `Role`; the others keep their own prices."""
        mine = batch.retail_eur_per_kwh(action[:, None])
        if mine is None:
            return None
        retail = np.tile(batch.world.assets.retail_eur_per_kwh, (batch.n_rows, 1))
        retail[:, self.station] = mine[:, 0]
        return retail

    def seen(self, observation: np.ndarray) -> np.ndarray:
        """The station's own."""
        return observation[:, self.station]

    def reward_eur(self, batch: MarketBatch, done: MarketBatchStep) -> FloatArray:
        """See `Role`."""
        return done.reward_eur[:, self.station]

    def terms(self, outcome: MarketOutcome) -> Mapping[str, np.ndarray]:
        """The station's own, and what the market published."""
        own = {name: values[:, self.station] for name, values in station_terms(outcome).items()}
        return {**own, **published_terms(outcome)}

    def driver_terms(self, drivers: Drivers) -> Mapping[str, np.ndarray]:
        """Arrivals at the station."""
        return {"arrivals_veh_per_h": drivers.arrivals_veh_per_h[:, self.station]}


def told(role: Role, done: MarketBatchStep) -> dict[str, np.ndarray]:
    """All that an actor is told of a slot."""
    return {**role.terms(done.outcome), **({} if done.drivers is None else role.driver_terms(done.drivers))}


def bidder(world: MarketWorld, station: int | str, others: Rule = truthful, responsive: bool = False) -> Bidder:
    """The role of a station, by number or name.

    Raises:
        ConfigError: no such station; others that are no rule.
    """
    names = world.stations.name
    if isinstance(station, str) and station in names:
        station = names.index(station)
    if isinstance(station, (str, bool)) or not 0 <= station < len(names):
        raise ConfigError(f"station must be one of {', '.join(names)} or a number 0..{len(names) - 1}, got {station!r}")
    if not callable(others):
        raise ConfigError(
            "others must be a rule, a function of view and plans to a MarketAction "
            f"(evcs_gym.baselines.rules_market.MARKET_RULES holds some by name), got {others!r}"
        )
    return Bidder(int(station), others, responsive)
