"""User equilibrium: no driver can save time by another route (Wardrop 1952).

Minimises Beckmann's function (Beckmann, McGuire, Winsten 1956) over path flows by gradient projection with column
generation (Jayakrishnan, Tsai, Prashker, Rajadhyaksha 1994, Transportation Research Record 1443): shortest paths at the
current times are added to the paths of each pair, then flow is shifted between the paths of one pair after the other
by safeguarded Newton steps, until the costs of used paths agree.
"""

import math
import time
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from evcs_gym.envs.errors import ConfigError, ConvergenceError, DataError
from evcs_gym.envs.threads import run_rows
from evcs_gym.envs.traffic.graph import Graph, pair_costs, refuse_unreachable, road_graph
from evcs_gym.envs.traffic.kernels import (
    excess_and_least,
    load_flows,
    merge_columns,
    resource_times,
    sweeps,
    trees,
)
from evcs_gym.envs.traffic.roads import RoadNetwork
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray, frozen

_SWEEPS: Final = 30
"""Rounds of shifts between two passes of shortest paths."""
_SHARE: Final = 0.02
"""Rounds of shifts end when the excess cost has fallen to this share of what it was."""
_PATIENCE: Final = 40
"""Passes without a better gap after which the search ends: rounding is reached."""
_PARALLEL_NODES: Final = 20_000
"""Origins times nodes from which threads pay for their launch."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Paths of K pairs, Q in all: those of pair i are pair_start[i] .. pair_start[i + 1], with the resources
    path_start[q] .. path_start[q + 1] of path_resource. Pairs may have none.
    """

    pair_start: IntArray
    path_start: IntArray
    path_resource: IntArray

    @property
    def n_paths(self) -> int:
        """Number of paths Q."""
        return len(self.path_start) - 1

    def pair_of_path(self) -> IntArray:
        """Pair of each path, (Q,)."""
        return np.repeat(np.arange(len(self.pair_start) - 1), np.diff(self.pair_start))


@dataclass(frozen=True, eq=False)
class GraphFlow:
    """An equilibrium on a graph: flow_veh_per_h and cost_h of resources (R,), least cost of pairs (K,), its paths.

    relative_gap: (T4) with a shortest-path pass at the final flows. excess_veh: its numerator.
    """

    flow_veh_per_h: FloatArray
    cost_h: FloatArray
    pair_cost_h: FloatArray
    columns: Columns
    path_flow_veh_per_h: FloatArray
    relative_gap: float
    excess_veh: float
    iterations: int
    converged: bool
    seconds: float


@dataclass(frozen=True, eq=False)
class Assignment:
    """A user equilibrium of a road network.

    link_flow_veh_per_h, link_time_h: (L,). relative_gap: (T4), reached. beckmann: value of Beckmann's function [veh].
    total_travel_time: sum of flow times time [veh], without what links cost beside time. od_time_h: (K,) least
    generalised cost of each pair, equal to its time where links cost nothing beside time; inf where no path leads.
    iterations: shortest-path passes. converged: whether the gap asked for was reached.
    columns, path_flow_veh_per_h: the paths with flow, to start another assignment from; not unique.
    """

    link_flow_veh_per_h: FloatArray
    link_time_h: FloatArray
    relative_gap: float
    beckmann: float
    total_travel_time: float
    od_time_h: FloatArray
    iterations: int
    converged: bool
    columns: Columns
    path_flow_veh_per_h: FloatArray


def assign(
    network: RoadNetwork,
    relative_gap: float = 1e-6,
    max_seconds: float = 60.0,
    warm_start: Assignment | None = None,
    require_convergence: bool = False,
) -> Assignment:
    """User equilibrium of a network's demand.

    relative_gap: (T4), at which the search stops. max_seconds: wall time after which it stops too. warm_start: an
    assignment of the same roads and pairs under another demand. require_convergence: raise where the gap is not
    reached, instead of reporting it.

    Raises InfeasibleError if a pair with demand has no path, ConvergenceError if asked to, ConfigError for a gap or a
    time limit out of range, DataError for a warm start of another network.

    >>> from evcs_gym.envs.traffic import load_roads
    >>> result = assign(load_roads("braess"), relative_gap=1e-12)
    >>> result.od_time_h.round(6).tolist(), round(result.beckmann, 6), round(result.total_travel_time, 6)
    ([92.0], 386.0, 552.0)
    """
    check_limits(relative_gap, max_seconds)
    start = None if warm_start is None else (warm_start.columns, warm_start.path_flow_veh_per_h)
    graph = road_graph(network)
    if start is not None and (
        len(start[0].pair_start) != network.n_pairs + 1
        or start[0].path_resource.max(initial=-1) >= network.n_links
        or len(warm_start.link_flow_veh_per_h) != network.n_links  # type: ignore[union-attr]
    ):
        raise DataError(f"{network.name}: warm_start must be an assignment of the same links and pairs; leave it out")
    found = solve_graph(graph, network.demand_veh_per_h, relative_gap, max_seconds, start)
    if require_convergence:
        refuse_unconverged(graph, found, relative_gap)
    link_time = network.link_time_h(found.flow_veh_per_h)
    return Assignment(
        link_flow_veh_per_h=frozen(found.flow_veh_per_h),
        link_time_h=frozen(link_time),
        relative_gap=found.relative_gap,
        beckmann=network.beckmann_veh(found.flow_veh_per_h),
        total_travel_time=math.fsum(found.flow_veh_per_h * link_time),
        od_time_h=frozen(found.pair_cost_h),
        iterations=found.iterations,
        converged=found.converged,
        columns=found.columns,
        path_flow_veh_per_h=found.path_flow_veh_per_h,
    )


def check_limits(relative_gap: float, max_seconds: float) -> None:
    """ConfigError for a gap outside [0, 1) or a time limit that is not positive."""
    if not 0.0 <= relative_gap < 1.0:
        raise ConfigError(f"assign: relative_gap must be in [0, 1), got {relative_gap}")
    if not max_seconds > 0.0:
        raise ConfigError(f"assign: max_seconds must be positive, got {max_seconds}")


def refuse_unconverged(graph: Graph, found: GraphFlow, relative_gap: float) -> None:
    """ConvergenceError where the gap was not reached."""
    if not found.converged:
        raise ConvergenceError(
            f"{graph.name}: relative_gap {relative_gap:.3g} was asked for, {found.relative_gap:.3g} reached after "
            f"{found.iterations} passes in {found.seconds:.3g} s; raise max_seconds or relative_gap"
        )


def solve_graph(
    graph: Graph,
    demand: ArrayLike,
    relative_gap: float,
    max_seconds: float,
    start: tuple[Columns, FloatArray] | None = None,
    fixed_h: FloatArray | None = None,
) -> GraphFlow:
    """Equilibrium on a graph for a demand (K,); ``fixed_h`` (R,) takes the place of the graph's own."""
    return _Search(graph, np.array(demand, dtype=np.float64), fixed_h, start).run(relative_gap, max_seconds)


class _Search:
    """State of one search: flows and costs of resources, paths and their flows."""

    def __init__(
        self, graph: Graph, demand: FloatArray, fixed_h: FloatArray | None, start: tuple[Columns, FloatArray] | None
    ) -> None:
        n_resources, n_origins = len(graph.fixed_h), len(graph.arrays.origin)
        self.graph, self.demand = graph, demand
        self.fixed_h = graph.fixed_h if fixed_h is None else fixed_h
        self.flow, self.cost, self.slope = (np.zeros(n_resources) for _ in range(3))
        self.distance = np.empty((n_origins, graph.n_nodes))
        self.into = np.empty((n_origins, graph.n_nodes), dtype=np.int64)
        self.wanted: BoolArray = np.zeros(graph.n_pairs, dtype=np.bool_)
        self.columns, self.path_flow = scaled_start(graph.n_pairs, demand, start)
        self._load()
        self._shortest_paths()
        refuse_unreachable(graph, demand, self.distance)
        self._begin()

    def _begin(self) -> None:
        """Pairs without a path get the cheapest one, with all their demand."""
        self.wanted[:] = (self.demand > 0.0) & (np.diff(self.columns.pair_start) == 0)
        new = self.wanted.copy()
        if new.any():
            self._add_paths()
            self.path_flow[self.columns.pair_start[:-1][new]] = self.demand[new]
            self._load()

    def run(self, relative_gap: float, max_seconds: float) -> GraphFlow:
        """Shortest paths, then shifts, until the gap or the time limit is reached or rounding ends the progress."""
        began = time.perf_counter()
        best, passes, stale = np.inf, 0, 0
        while True:
            self._shortest_paths()
            excess, gap = self._gap()
            passes += 1
            best, stale = (gap, 0) if gap < 0.9 * best else (best, stale + 1)
            seconds = time.perf_counter() - began
            if gap <= relative_gap or seconds >= max_seconds or stale >= _PATIENCE:
                return self._result(gap, excess, passes, gap <= relative_gap, seconds)
            self._add_paths()
            self._shift(_SHARE * excess)
            self._load()

    def _shortest_paths(self) -> None:
        arguments = (self.graph.arrays, self.cost, self.distance, self.into)
        n_origins, n_nodes = self.distance.shape
        run_rows(trees, n_origins, arguments, parallel_from=max(2, _PARALLEL_NODES // max(1, n_nodes)))

    def _gap(self) -> tuple[float, float]:
        c = self.columns
        excess, least = excess_and_least(
            self.demand,
            c.pair_start,
            c.path_start,
            c.path_resource,
            self.path_flow,
            self.cost,
            pair_costs(self.graph, self.distance),
            self.wanted,
        )
        total = excess + least
        return excess, excess / total if total > 0.0 else 0.0  # (T4)

    def _add_paths(self) -> None:
        c = self.columns
        *new, self.path_flow = merge_columns(
            self.graph.arrays,
            self.into,
            self.wanted,
            c.pair_start,
            c.path_start,
            c.path_resource,
            self.path_flow,
            True,
        )
        self.columns = Columns(*new)

    def _shift(self, target: float) -> None:
        c = self.columns
        sweeps(
            self.graph.arrays,
            self.fixed_h,
            self.demand,
            c.pair_start,
            c.path_start,
            c.path_resource,
            self.path_flow,
            self.flow,
            self.cost,
            self.slope,
            target,
            _SWEEPS,
        )

    def _load(self) -> None:
        """Flows from the paths anew, so that rounding does not add up, and their costs."""
        load_flows(self.columns.path_start, self.columns.path_resource, self.path_flow, self.flow)
        resource_times(self.graph.arrays, self.flow, self.fixed_h, self.cost, self.slope)

    def _result(self, gap: float, excess: float, passes: int, converged: bool, seconds: float) -> GraphFlow:
        return GraphFlow(
            flow_veh_per_h=self.flow,
            cost_h=self.cost,
            pair_cost_h=pair_costs(self.graph, self.distance),
            columns=self.columns,
            path_flow_veh_per_h=self.path_flow,
            relative_gap=gap,
            excess_veh=excess,
            iterations=passes,
            converged=bool(converged),
            seconds=seconds,
        )


def scaled_start(
    n_pairs: int, demand: FloatArray, start: tuple[Columns, FloatArray] | None
) -> tuple[Columns, FloatArray]:
    """Paths to begin with and their flows, scaled to the demand (K,); none without a start."""
    if start is None:
        nothing = np.zeros(0, dtype=np.int64)
        return Columns(np.zeros(n_pairs + 1, dtype=np.int64), np.zeros(1, dtype=np.int64), nothing), np.zeros(0)
    columns, flow = start
    pair = columns.pair_of_path()
    before = np.bincount(pair, weights=flow, minlength=n_pairs)
    first = np.zeros(columns.n_paths)
    used = np.diff(columns.pair_start) > 0
    first[columns.pair_start[:-1][used]] = 1.0
    share = np.where(before[pair] > 0.0, flow / np.where(before[pair] > 0.0, before[pair], 1.0), first)
    return columns, share * demand[pair]
