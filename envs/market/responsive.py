"""Responsive demand: drivers answer the stations' retail prices within the slot, or do not charge here at all.

A layer above `evcs_gym.envs.market.core`: the traffic equilibrium of the slot is solved at the prices asked, with an
outside option of fixed cost, and its charging power takes the place of the day's. Who travels in a slot is the day's
(with its carry-over), so that a day is complete before it begins; where and whether cars charge is what responds.
`responsive_demand` of a scenario switches it on. Forecasts stay those of the stations' own prices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from evcs_gym.envs.errors import ConfigError, ConvergenceError, DataError
from evcs_gym.envs.market.core import (
    MarketAction,
    MarketOutcome,
    MarketState,
    MarketWorld,
    initial_state,
    step,
    with_reset_rows,
)
from evcs_gym.envs.market.core_kernels import Demand
from evcs_gym.envs.market.operators import PRO_RATA, Operator
from evcs_gym.envs.market.prepare import MarketScenario, market_world
from evcs_gym.envs.threads import run_rows
from evcs_gym.envs.traffic import TrafficModel, solve_batch, traffic_model
from evcs_gym.envs.traffic.batch import PARALLEL_FROM, solve_apart
from evcs_gym.envs.traffic.charging import refuse_overfull
from evcs_gym.envs.traffic.equilibrium import Columns
from evcs_gym.envs.traffic.kernels import time_rows
from evcs_gym.envs.traffic.periods import charging_kw
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray, frozen
from evcs_gym.envs.units import SLOT_H

_REFERENCE_STREAM: Final = 8
_REFERENCE_ROWS: Final = 2048
_REFERENCE_GAP: Final = 1e-6
"""Random demands and prices whose equilibria give the paths that every row begins with."""


class _ResponsiveSpec(Protocol):
    @property
    def least_retail_eur_per_kwh(self) -> float: ...
    @property
    def largest_retail_eur_per_kwh(self) -> float: ...
    @property
    def outside_eur(self) -> float: ...
    @property
    def relative_gap(self) -> float: ...


class _RoadsSpec(Protocol):
    @property
    def charging_share_frac(self) -> float: ...


class ResponsiveScenario(MarketScenario, Protocol):
    """What responsive demand reads of a scenario beside the market."""

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def departures_frac(self) -> FloatArray: ...
    @property
    def road_demand(self) -> _RoadsSpec: ...
    @property
    def traffic_model(self) -> TrafficModel: ...
    @property
    def responsive_demand(self) -> _ResponsiveSpec: ...


@dataclass(frozen=True, eq=False)
class ResponsiveWorld:
    """A market world whose drivers respond; D days, T slots, K pairs, Q paths, S stations.

    model: roads and stations with the outside option. paths: those that every row begins with. assigned_veh_per_h:
    (D, T, 2 K), who travels. before_veh_per_h: (D, S), arrivals in the slot before the day's first.
    least_retail_eur_per_kwh, largest_retail_eur_per_kwh: prices that stations may ask drivers. relative_gap: (T4).
    """

    market: MarketWorld
    model: TrafficModel
    paths: Columns
    assigned_veh_per_h: FloatArray
    before_veh_per_h: FloatArray
    least_retail_eur_per_kwh: float
    largest_retail_eur_per_kwh: float
    relative_gap: float


@dataclass(frozen=True, eq=False)
class ResponsiveState:
    """market: see `MarketState`. arrivals_veh_per_h: (B, S) of the slot before, whose cars still charge.
    path_flow_veh_per_h: (B, Q) of the slot before, from which the next equilibrium starts."""

    market: MarketState
    arrivals_veh_per_h: FloatArray
    path_flow_veh_per_h: FloatArray


@dataclass(frozen=True, eq=False)
class Drivers:
    """What drivers did in the slot.

    arrivals_veh_per_h: (B, S). link_flow_veh_per_h: (B, L). outside_veh_per_h: (B,) cars that do not charge here.
    travel_eur: (B,) value of everybody's time on roads and at stations. outside_eur: (B,) cost of the outside option.
    relative_gap: (B,) reached.
    """

    arrivals_veh_per_h: FloatArray
    link_flow_veh_per_h: FloatArray
    outside_veh_per_h: FloatArray
    travel_eur: FloatArray
    outside_eur: FloatArray
    relative_gap: FloatArray


def responsive_world(
    scenario: ResponsiveScenario, days: Sequence[Any], like: ResponsiveWorld | None = None
) -> ResponsiveWorld:
    """Stack days for the market and for the drivers' answers. like: a world of the same scenario, to take its paths.

    Raises:
        ConfigError: a scenario without ``responsive_demand``; what `market_world` refuses.
        DataError: a day without traffic, or with that of other roads.
    """
    shape = (2, scenario.traffic_model.network.n_pairs)
    for day in days:
        if day.traffic is None or day.traffic.assigned_veh_per_h.shape[1:] != shape:
            raise DataError(
                f"day {day.split}/{day.seed} must have the traffic of scenario {scenario.name!r}, {shape} in each "
                "slot; draw it from this scenario"
            )
    market = market_world(scenario, days)
    assigned = np.stack([day.traffic.assigned_veh_per_h for day in days])
    before = np.stack([day.stations.arrivals_veh_per_h[0] for day in days])
    return responsive_of(scenario, market, assigned.reshape(*assigned.shape[:2], -1), before, like)


def responsive_of(
    scenario: ResponsiveScenario,
    market: MarketWorld,
    assigned_veh_per_h: FloatArray,
    before_veh_per_h: FloatArray,
    like: ResponsiveWorld | None = None,
) -> ResponsiveWorld:
    """The world of stacked days, see `ResponsiveWorld`; the arrays become its own."""
    spec, base = scenario.responsive_demand, scenario.traffic_model
    if like is None:
        model = traffic_model(base.network, base.stations, base.value_of_time_eur_per_h, spec.outside_eur)
        paths = _reference_paths(model, scenario)
    else:
        model, paths = like.model, like.paths
    return ResponsiveWorld(
        market=market,
        model=model,
        paths=paths,
        assigned_veh_per_h=frozen(assigned_veh_per_h),
        before_veh_per_h=frozen(before_veh_per_h),
        least_retail_eur_per_kwh=spec.least_retail_eur_per_kwh,
        largest_retail_eur_per_kwh=spec.largest_retail_eur_per_kwh,
        relative_gap=spec.relative_gap,
    )


def initial_responsive_state(world: ResponsiveWorld, day: IntArray) -> ResponsiveState:
    """Slot 0 of the given days (B,), after a slot at the stations' own prices. ConfigError for a row not there."""
    market = initial_state(world.market, day)
    return ResponsiveState(
        market=market,
        arrivals_veh_per_h=world.before_veh_per_h[market.day],
        path_flow_veh_per_h=np.zeros((len(market.day), world.paths.n_paths)),
    )


def with_reset_responsive_rows(
    world: ResponsiveWorld, state: ResponsiveState, rows: BoolArray, day: IntArray
) -> ResponsiveState:
    """The state in which the marked rows (B,) begin the given days (number of marked rows,)."""
    fresh = initial_responsive_state(world, day)
    arrivals, flow = state.arrivals_veh_per_h.copy(), state.path_flow_veh_per_h.copy()
    arrivals[rows], flow[rows] = fresh.arrivals_veh_per_h, fresh.path_flow_veh_per_h
    return ResponsiveState(with_reset_rows(world.market, state.market, rows, day), arrivals, flow)


def step_responsive(
    world: ResponsiveWorld,
    state: ResponsiveState,
    action: MarketAction,
    retail_eur_per_kwh: FloatArray,
    operator: Operator = PRO_RATA,
) -> tuple[ResponsiveState, MarketOutcome, Drivers]:
    """One slot, pure: drivers answer the prices (B, S) that stations ask, then the market's `step` with their demand.

    Raises:
        DataError, ConfigError: prices of another shape, not finite or outside what stations may ask; what `step`
            refuses. ConvergenceError: an equilibrium that does not reach the gap.
    """
    retail = _checked_retail(world, state, retail_eur_per_kwh)
    drivers, path_flow = answer_prices(world, state, retail)
    ev_kw = charging_kw(world.model.stations, drivers.arrivals_veh_per_h, state.arrivals_veh_per_h)
    market, outcome = step(world.market, state.market, action, operator, Demand(ev_kw, retail))
    return ResponsiveState(market, drivers.arrivals_veh_per_h, path_flow), outcome, drivers


def cooperative_eur(outcome: MarketOutcome, drivers: Drivers) -> FloatArray:
    """What the community gains in the slot, (B,): minus its cost, everybody's time and the outside option. Payments of
    drivers to stations cancel."""
    return np.asarray(-outcome.community_eur - drivers.travel_eur - drivers.outside_eur)


def answer_prices(world: ResponsiveWorld, state: ResponsiveState, retail: FloatArray) -> tuple[Drivers, FloatArray]:
    """The equilibrium of the state's slot at prices (B, S), and its path flows (B, Q).

    Rows do not know each other: an answer is the same, bit for bit, in every batch.
    """
    model, market = world.model, state.market
    demand, fixed = world.assigned_veh_per_h[market.day, market.slot], model.fixed_h(retail)
    found = solve_apart(model.graph, demand, world.relative_gap, world.paths, state.path_flow_veh_per_h, fixed)
    if not found.converged.all():
        row = int(np.argmin(found.converged))
        raise ConvergenceError(
            f"{model.network.name}: the answer to prices of row {row} must reach relative_gap {world.relative_gap:.3g},"
            f" got {found.relative_gap[row]:.3g}; raise responsive_demand.relative_gap"
        )
    flow, at = found.flow_veh_per_h, model.station_resources
    refuse_overfull(model, flow[:, at])
    drivers = Drivers(
        arrivals_veh_per_h=np.ascontiguousarray(flow[:, at]),
        link_flow_veh_per_h=flow[:, : at.start],
        outside_veh_per_h=flow[:, at.stop],
        travel_eur=_travel_eur(model, flow),
        outside_eur=SLOT_H * float(model.outside_eur or 0.0) * flow[:, at.stop],
        relative_gap=found.relative_gap,
    )
    return drivers, found.path_flow_veh_per_h


def _travel_eur(model: TrafficModel, flow: FloatArray) -> FloatArray:
    """Value of the time (B,) that everybody spends on roads and at stations in a slot, for flows (B, R)."""
    time, free = np.empty(flow.shape), np.zeros(flow.shape[1])
    run_rows(time_rows, len(flow), (model.graph.arrays, free, flow, time), parallel_from=PARALLEL_FROM)
    return np.asarray(SLOT_H * model.value_of_time_eur_per_h * np.einsum("br,br->b", flow, time))


def _checked_retail(world: ResponsiveWorld, state: ResponsiveState, retail_eur_per_kwh: FloatArray) -> FloatArray:
    retail = np.array(retail_eur_per_kwh, dtype=np.float64, order="C")
    if retail.shape != state.arrivals_veh_per_h.shape:
        raise DataError(f"retail prices must have shape (B, S) = {state.arrivals_veh_per_h.shape}, got {retail.shape}")
    low, high = world.least_retail_eur_per_kwh, world.largest_retail_eur_per_kwh
    outside = ~((retail >= low) & (retail <= high))
    if outside.any():
        row, station = (int(i) for i in np.argwhere(outside)[0])
        raise ConfigError(
            f"retail price [{row}, {station}] must lie in [{low}, {high}] of responsive_demand, got "
            f"{retail[row, station]}"
        )
    return retail


def _reference_paths(model: TrafficModel, scenario: ResponsiveScenario) -> Columns:
    """Paths that demands like the city's use at random prices, alike or far apart: the same whatever days there are."""
    rng = np.random.default_rng([scenario.seed, _REFERENCE_STREAM])
    spec, share = scenario.responsive_demand, scenario.road_demand.charging_share_frac
    n_rows, n_stations, n_some = _REFERENCE_ROWS, len(model.stations), _REFERENCE_ROWS // 4
    most = np.outer([1.0 - share, share], model.network.demand_veh_per_h).ravel()
    busy = rng.choice(scenario.departures_frac, (n_rows, 1)) * rng.uniform(0.8, 1.25, (n_rows, 1))
    rows = busy * most * rng.uniform(0.8, 1.0, (n_rows, len(most)))
    low, high = spec.least_retail_eur_per_kwh, spec.largest_retail_eur_per_kwh
    price = rng.uniform(low, high, (n_rows, n_stations))
    price[:n_some] = rng.choice([low, high], (n_some, n_stations))
    alike = rng.uniform(low, high, (n_some, 1)) + 0.1 * (high - low) * rng.uniform(-1.0, 1.0, (n_some, n_stations))
    price[n_some : 2 * n_some] = alike
    return solve_batch(model.graph, rows, _REFERENCE_GAP, fixed_h=model.fixed_h(price)).columns
