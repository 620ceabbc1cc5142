"""Traffic of days: what drivers set out to do, and where they charge; drawn from seeds, solved for many days at once.

Every day begins with the same paths and follows its own warm starts, so that a day does not depend on the days that it
is asked for with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from evcs_gym.envs.errors import ConfigError, InfeasibleError
from evcs_gym.envs.road_specs import SPREAD_REACH
from evcs_gym.envs.traffic.batch import solve_batch
from evcs_gym.envs.traffic.charging import check_capacity
from evcs_gym.envs.traffic.equilibrium import Columns
from evcs_gym.envs.traffic.periods import DayTraffic, assign_days, check_days_model
from evcs_gym.envs.types import FloatArray, TrafficDay, frozen

if TYPE_CHECKING:
    from evcs_gym.envs.scenario import Scenario

RELATIVE_GAP: Final = 1e-7
"""Gap (T4) to which the slots of days are solved."""
_REFERENCE_STREAM: Final = 7
_REFERENCE_ROWS: Final = 64
_DAYS_AT_ONCE: Final = 1024
"""Days solved together: bounds the memory."""


@dataclass(frozen=True, eq=False)
class TrafficSample:
    """Traffic of one day; (T, S). yesterday_ev_kw: what a persistence forecast takes the day for, else None."""

    ev_kw: FloatArray
    arrivals_veh_per_h: FloatArray
    wait_h: FloatArray
    report: TrafficDay
    yesterday_ev_kw: FloatArray | None


def check_traffic(scenario: "Scenario", source: str) -> None:
    """Refuse, when a scenario is read, what no day of it could do.

    Raises ConfigError: a charge longer than a slot, a trip at free flow with charging longer than 0.8 slots, charging
    demand that its stations could not serve on the busiest day (capacities / 1.1). With carry-over a slot may still
    get more than its own departures: that is refused with the day.
    """
    spec, model = scenario.road_demand, scenario.traffic_model
    peak = float(scenario.departures_frac.max()) * spec.largest_factor * spec.charging_share_frac
    try:
        check_days_model(model, scenario.traffic_spec.carry_over)
        check_capacity(model, peak * model.network.demand_veh_per_h)
    except (ConfigError, InfeasibleError) as error:
        raise ConfigError(f"{source}: {error}") from None


def reference_paths(scenario: "Scenario") -> Columns:
    """Paths that random demands of the scenario use, from nothing to the most that a day can ask for."""
    rng = np.random.default_rng([scenario.seed, _REFERENCE_STREAM])
    spec, network = scenario.road_demand, scenario.roads
    most = float(scenario.departures_frac.max()) * spec.largest_factor * network.demand_veh_per_h
    rows = np.linspace(0.02, 1.0, _REFERENCE_ROWS)[:, None] * most
    rows = rows * rng.uniform(1.0 - SPREAD_REACH * spec.pair_spread_frac, 1.0, rows.shape)
    share = spec.charging_share_frac
    demand = np.concatenate([(1.0 - share) * rows, share * rows], axis=1)
    fixed = scenario.traffic_model.fixed_h(scenario.stations.retail_eur_per_kwh)
    return solve_batch(scenario.traffic_model.graph, demand, RELATIVE_GAP, fixed_h=fixed).columns


def sample_traffic(scenario: "Scenario", keys: Sequence[Sequence[int]]) -> list[TrafficSample]:
    """The traffic of the days whose streams of random numbers begin with these keys.

    Raises InfeasibleError for a slot whose charging demand does not fit, ConvergenceError for one that is not solved.
    """
    samples: list[TrafficSample] = []
    for first in range(0, len(keys), _DAYS_AT_ONCE):
        samples += _sample(scenario, keys[first : first + _DAYS_AT_ONCE])
    return samples


def _sample(scenario: "Scenario", keys: Sequence[Sequence[int]]) -> list[TrafficSample]:
    remember = scenario.forecast.kind == "persistence"
    demand = np.stack([_departures(scenario, key, n_days=2 if remember else 1) for key in keys])  # (D, 1 or 2, T, K)
    share = scenario.road_demand.charging_share_frac
    rows = demand.reshape(-1, *demand.shape[2:])
    solved = assign_days(
        scenario.traffic_model,
        (1.0 - share) * rows,
        share * rows,
        scenario.stations.retail_eur_per_kwh,
        carry_over=scenario.traffic_spec.carry_over,
        relative_gap=RELATIVE_GAP,
        paths=scenario.traffic_paths,
    )
    step = demand.shape[1]
    return [_one(solved, day, day + 1 if remember else None) for day in range(0, len(rows), step)]


def _departures(scenario: "Scenario", key: Sequence[int], n_days: int) -> FloatArray:
    """Departures of the day and, where asked for, of the day before it, (n_days, T, K)."""
    rng, spec = np.random.default_rng(key), scenario.road_demand
    days = []
    for _ in range(n_days):
        day = 1.0 + spec.day_spread_frac * rng.uniform(-SPREAD_REACH, SPREAD_REACH)
        pair = 1.0 + spec.pair_spread_frac * rng.uniform(-SPREAD_REACH, SPREAD_REACH, scenario.roads.n_pairs)
        days.append(scenario.departures_frac[:, None] * scenario.roads.demand_veh_per_h * day * pair)
    return np.stack(days)


def _one(solved: DayTraffic, day: int, yesterday: int | None) -> TrafficSample:
    def row(values: FloatArray, at: int = day) -> FloatArray:
        own: FloatArray = frozen(values[at].copy())  # a view would keep all days alive
        return own

    return TrafficSample(
        ev_kw=row(solved.station_kw),
        arrivals_veh_per_h=row(solved.station_veh_per_h),
        wait_h=row(solved.wait_h),
        report=TrafficDay(
            assigned_veh_per_h=row(solved.assigned_veh_per_h),
            link_flow_veh_per_h=row(solved.link_flow_veh_per_h),
            relative_gap=row(solved.relative_gap),
            on_road_veh=row(solved.on_road_veh),
            committed_kw=frozen(solved.committed_kw[day, -1].copy()),
        ),
        yesterday_ev_kw=None if yesterday is None else row(solved.station_kw, yesterday),
    )
