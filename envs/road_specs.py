"""The ``roads``, ``traffic`` and ``responsive_demand`` sections of a scenario: roads, demand, how drivers choose."""

import math
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from evcs_gym.envs.specs import Frac, PricePerKwh, Spec
from evcs_gym.envs.traffic import Queue, RoadNetwork, load_departures_frac, load_roads
from evcs_gym.envs.traffic.roads import DEFAULT_B, DEFAULT_POWER
from evcs_gym.envs.traffic.shipped import MIN_PER_H
from evcs_gym.envs.types import FloatArray, frozen
from evcs_gym.envs.units import N_SLOTS

Node = Annotated[int, Field(ge=1, le=1_000_000)]
"""Node of the roads, counted from 1 as in the shipped tables."""
SPREAD_REACH: Final = math.sqrt(3.0)
"""Largest deviation of an evenly drawn number from its mean, in standard deviations."""


class LinkSpec(Spec):
    """A one-way road of an own network."""

    tail: Node
    head: Node
    free_flow_min: Annotated[float, Field(ge=0.0, le=500.0)]
    capacity_veh_per_h: Annotated[float, Field(gt=0.0, le=1e6)]
    bpr_b: Annotated[float, Field(ge=0.0, le=100.0)] = DEFAULT_B
    bpr_power: Annotated[float, Field(ge=0.0, le=20.0)] = DEFAULT_POWER
    length_km: Annotated[float, Field(ge=0.0, le=1e4)] = 0.0


class PairSpec(Spec):
    """Demand of an own network from one node to another."""

    origin: Node
    destination: Node
    demand_veh_per_h: Annotated[float, Field(ge=0.0, le=1e6)]


class RoadsSpec(Spec):
    """Roads and their demand: a shipped network's name, or links and pairs of an own one.

    Departures of a pair in slot t are demand_frac * its demand * profile_frac[t] * the day's factor * the pair's; both
    factors are drawn evenly around 1 with standard deviations ``day_spread_frac`` and ``pair_spread_frac``. Of
    them ``charging_share_frac`` charge on their way. ``profile_frac``: 48 numbers, or "city12", the shipped profile.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    links: tuple[LinkSpec, ...] = ()
    pairs: tuple[PairSpec, ...] = ()
    demand_frac: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    charging_share_frac: Frac = 0.02
    profile_frac: Literal["city12"] | tuple[Annotated[float, Field(ge=0.0, le=100.0)], ...] = "city12"
    day_spread_frac: Annotated[float, Field(ge=0.0, le=0.5)] = 0.08
    pair_spread_frac: Annotated[float, Field(ge=0.0, le=0.5)] = 0.05

    @model_validator(mode="after")
    def _own(self) -> Self:
        if bool(self.links) != bool(self.pairs):
            raise ValueError(
                f"own roads need links and pairs, a shipped network neither, got {len(self.links)} links and "
                f"{len(self.pairs)} pairs"
            )
        if not isinstance(self.profile_frac, str) and len(self.profile_frac) != N_SLOTS:
            raise ValueError(f"profile_frac must have {N_SLOTS} entries or be city12, got {len(self.profile_frac)}")
        return self

    @property
    def largest_factor(self) -> float:
        """Largest product of a day's and a pair's factor."""
        return (1.0 + SPREAD_REACH * self.day_spread_frac) * (1.0 + SPREAD_REACH * self.pair_spread_frac)


class TrafficSpec(Spec):
    """How drivers choose: value of time, law of the stations' queue, energy per charge.

    carry_over: cars that are still on the road at the end of a slot belong to the next. noise_ev_frac: of noisy
    forecasts of the charging power, as ``forecast.noise_*_frac`` of the others.
    """

    value_of_time_eur_per_h: Annotated[float, Field(gt=0.0, le=500.0)] = 15.0
    queue: Literal["davidson", "erlang_c"] = "davidson"
    davidson_j: Annotated[float, Field(gt=0.0, le=10.0)] = 0.1
    energy_per_charge_kwh: Annotated[float, Field(gt=0.0, le=200.0)] = 20.0
    carry_over: bool = True
    noise_ev_frac: Frac = 0.15

    @property
    def law(self) -> Queue:
        """Law of the queue as the traffic stage names it."""
        return Queue.ERLANG if self.queue == "erlang_c" else Queue.DAVIDSON


class ResponsiveSpec(Spec):
    """Drivers who answer prices: what stations may ask them, and what it costs a car not to charge here at all.

    relative_gap: to which the equilibrium of a slot is solved within the step.
    """

    least_retail_eur_per_kwh: PricePerKwh = 0.30
    largest_retail_eur_per_kwh: PricePerKwh = 0.50
    outside_eur: Annotated[float, Field(ge=0.0, le=1e4)] = 12.0
    relative_gap: Annotated[float, Field(gt=0.0, le=0.01)] = 1e-4

    @model_validator(mode="after")
    def _band(self) -> Self:
        if not self.least_retail_eur_per_kwh < self.largest_retail_eur_per_kwh:
            raise ValueError(
                "least_retail_eur_per_kwh must be below largest_retail_eur_per_kwh, got "
                f"{self.least_retail_eur_per_kwh} and {self.largest_retail_eur_per_kwh}"
            )
        return self


def road_network(spec: RoadsSpec) -> RoadNetwork:
    """Roads with the demand of a profile of 1. ConfigError for a name that is not shipped, DataError for bad links."""
    if not spec.links:
        network = load_roads(spec.name)
    else:
        columns = {key: np.array([getattr(link, key) for link in spec.links]) for key in LinkSpec.model_fields}
        network = RoadNetwork.from_arrays(
            name=spec.name,
            tail=columns["tail"] - 1,
            head=columns["head"] - 1,
            free_flow_h=columns["free_flow_min"] / MIN_PER_H,
            capacity_veh_per_h=columns["capacity_veh_per_h"],
            bpr_b=columns["bpr_b"],
            bpr_power=columns["bpr_power"],
            length_km=columns["length_km"],
            origin=[pair.origin - 1 for pair in spec.pairs],
            destination=[pair.destination - 1 for pair in spec.pairs],
            demand_veh_per_h=[pair.demand_veh_per_h for pair in spec.pairs],
        )
    return network.with_demand(spec.demand_frac * network.demand_veh_per_h)


def road_profile(spec: RoadsSpec) -> FloatArray:
    """Departures of each slot as a share of the demand, (T,)."""
    if isinstance(spec.profile_frac, str):
        return load_departures_frac()
    profile: FloatArray = frozen(np.array(spec.profile_frac, dtype=np.float64))
    return profile
