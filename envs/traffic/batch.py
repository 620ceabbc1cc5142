"""Many equilibria of one model at once: thousands of demands, or stations' prices, on shared paths.

Rows share the paths; each is judged by shortest paths of its own, and where a row would take a path that is not among
the shared ones, that path is added and the row goes on. A row's result meets the gap whatever its neighbours are.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from evcs_gym.envs.errors import ConvergenceError, DataError
from evcs_gym.envs.threads import run_rows
from evcs_gym.envs.traffic.charging import TrafficModel, joined_demand, refuse_overfull
from evcs_gym.envs.traffic.equilibrium import Columns, check_limits, solve_graph
from evcs_gym.envs.traffic.graph import Graph, pair_costs
from evcs_gym.envs.traffic.kernels import (
    balance_rows,
    excess_and_least,
    merge_columns,
    resource_times,
    trees,
)
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray

PARALLEL_FROM: Final = 32
"""Rows from which a batch is spread over threads."""
_MAX_PASSES: Final = 300
"""Judgements of a row by shortest paths before it is given up."""
_MAX_ROUNDS: Final = 60
"""Times that paths are added."""
_ROWS_PER_ROUND: Final = 64
"""Rows whose missing paths are added together."""
_SEED_GAP: Final = 1e-4


@dataclass(frozen=True, eq=False)
class BatchFlow:
    """Equilibria of B rows; R resources, K pairs of the graph, Q paths.

    flow_veh_per_h: (B, R). pair_cost_h: (B, K) least costs. relative_gap: (B,) of (T4). columns: the shared paths.
    path_flow_veh_per_h: (B, Q). converged: (B,).
    """

    flow_veh_per_h: FloatArray
    pair_cost_h: FloatArray
    relative_gap: FloatArray
    columns: Columns
    path_flow_veh_per_h: FloatArray
    converged: BoolArray


def solve_batch(
    graph: Graph,
    demand: FloatArray,
    relative_gap: float = 1e-6,
    start: BatchFlow | None = None,
    fixed_h: FloatArray | None = None,
) -> BatchFlow:
    """Equilibria of demands (B, K) on one graph; ``fixed_h`` (B, R) or (R,) takes the place of the graph's.

    start: equilibria of the same rows to begin from; its paths are used again. A row that does not reach the gap is
    marked in ``converged``. Rows are spread over threads from 32 on. Raises InfeasibleError for pairs without a path,
    DataError for arrays that do not fit the graph, ConfigError for a gap out of range.
    """
    check_limits(relative_gap, 1.0)
    fixed = np.atleast_2d(graph.fixed_h if fixed_h is None else fixed_h)
    _check_batch(graph, demand, fixed, start)
    n_rows = len(demand)
    columns, path_flow = _begin(graph, demand, fixed, start)
    out = BatchFlow(
        flow_veh_per_h=np.zeros((n_rows, len(graph.fixed_h))),
        pair_cost_h=np.zeros((n_rows, graph.n_pairs)),
        relative_gap=np.full(n_rows, np.inf),
        columns=columns,
        path_flow_veh_per_h=path_flow,
        converged=np.zeros(n_rows, dtype=np.bool_),
    )
    rows, wants = np.arange(n_rows), np.zeros(n_rows, dtype=np.bool_)
    for _ in range(_MAX_ROUNDS):
        wants = _run(graph, demand, fixed, relative_gap, out, rows)
        rows = rows[wants]
        if not len(rows):
            break
        out = _with_missing_paths(graph, demand, fixed, out, rows)
    out.converged[:] = out.relative_gap <= relative_gap
    return out


def solve_apart(
    graph: Graph,
    demand: FloatArray,
    relative_gap: float,
    paths: Columns,
    path_flow_veh_per_h: FloatArray | None = None,
    fixed_h: FloatArray | None = None,
) -> BatchFlow:
    """`solve_batch` with given paths (Q,), to begin from flows (B, Q) on them or none: rows do not know each other.

    A row that wants another path is solved with paths of its own, which the others do not see: its path flows are then
    those on the given paths only. So a row's answer is the same, bit for bit, in every batch.
    """
    check_limits(relative_gap, 1.0)
    fixed = np.atleast_2d(graph.fixed_h if fixed_h is None else fixed_h)
    shape = (len(demand), paths.n_paths)
    path_flow = np.zeros(shape) if path_flow_veh_per_h is None else path_flow_veh_per_h.copy()
    flow, cost = np.zeros((len(demand), len(graph.fixed_h))), np.zeros((len(demand), graph.n_pairs))
    gap, done = np.full(len(demand), np.inf), np.zeros(len(demand), dtype=np.bool_)
    out = BatchFlow(flow, cost, gap, paths, path_flow, done)
    _check_batch(graph, demand, fixed, out)
    for b in np.flatnonzero(_run(graph, demand, fixed, relative_gap, out, np.arange(len(demand)))).tolist():
        begin = BatchFlow(flow[b : b + 1], cost[b : b + 1], gap[b : b + 1], paths, path_flow[b : b + 1], done)
        own = fixed[b : b + 1] if len(fixed) > 1 else fixed
        alone = solve_batch(graph, demand[b : b + 1], relative_gap, begin, own)
        flow[b], cost[b], gap[b] = alone.flow_veh_per_h[0], alone.pair_cost_h[0], alone.relative_gap[0]
    done[:] = gap <= relative_gap
    return out


def _run(
    graph: Graph, demand: FloatArray, fixed: FloatArray, relative_gap: float, out: BatchFlow, rows: IntArray
) -> BoolArray:
    """Solve the rows (M,) on the known paths, into ``out``; which of them want another path, (M,)."""
    everything = len(rows) == len(demand)
    part = slice(None) if everything else rows
    path_flow = np.ascontiguousarray(out.path_flow_veh_per_h[part])
    flow, pair_cost, gap = out.flow_veh_per_h[part], out.pair_cost_h[part], out.relative_gap[part]
    wants = np.zeros(len(rows), dtype=np.bool_)
    c = out.columns
    arguments = (
        graph.arrays,
        np.ascontiguousarray(fixed[part]) if len(fixed) > 1 else fixed,
        np.ascontiguousarray(demand[part]),
        c.pair_start,
        c.path_start,
        c.path_resource,
        path_flow,
        flow,
        pair_cost,
        gap,
        wants,
        relative_gap,
        _MAX_PASSES,
    )
    run_rows(balance_rows, len(rows), arguments, parallel_from=PARALLEL_FROM)
    if not everything or path_flow is not out.path_flow_veh_per_h:
        out.path_flow_veh_per_h[part], out.flow_veh_per_h[part] = path_flow, flow
        out.pair_cost_h[part], out.relative_gap[part] = pair_cost, gap
    return wants


def _begin(graph: Graph, demand: FloatArray, fixed: FloatArray, start: BatchFlow | None) -> tuple[Columns, FloatArray]:
    """Paths and flows to begin with: the start's, else paths of the equilibria of the mean and the largest demand."""
    if start is not None:
        return start.columns, start.path_flow_veh_per_h.copy()
    mean_fixed, largest = fixed.mean(axis=0), demand.max(axis=0, initial=0.0)
    seed = solve_graph(graph, largest, _SEED_GAP, np.inf, fixed_h=mean_fixed)
    return seed.columns, np.zeros((len(demand), seed.columns.n_paths))


def _with_missing_paths(
    graph: Graph, demand: FloatArray, fixed: FloatArray, out: BatchFlow, rows: IntArray
) -> BatchFlow:
    """``out`` with the paths that some of the rows want."""
    arrays = graph.arrays
    distance = np.empty((len(arrays.origin), graph.n_nodes))
    into = np.empty(distance.shape, dtype=np.int64)
    cost, slope = np.empty(len(graph.fixed_h)), np.empty(len(graph.fixed_h))
    wanted = np.zeros(graph.n_pairs, dtype=np.bool_)
    columns, path_flow = out.columns, out.path_flow_veh_per_h
    # rows far apart differ more than neighbours do
    for b in rows[:: max(1, len(rows) // _ROWS_PER_ROUND)]:
        resource_times(arrays, out.flow_veh_per_h[b], fixed[b if len(fixed) > 1 else 0], cost, slope)
        trees(0, len(arrays.origin), arrays, cost, distance, into)
        excess_and_least(
            demand[b],
            columns.pair_start,
            columns.path_start,
            columns.path_resource,
            np.zeros(columns.n_paths),
            cost,
            pair_costs(graph, distance),
            wanted,
        )
        if wanted.any():
            columns, path_flow = _grown(graph, into, wanted, columns, path_flow)
    return BatchFlow(out.flow_veh_per_h, out.pair_cost_h, out.relative_gap, columns, path_flow, out.converged)


def _grown(
    graph: Graph, into: IntArray, wanted: BoolArray, columns: Columns, path_flow: FloatArray
) -> tuple[Columns, FloatArray]:
    """Columns with one path more at the end of each wanted pair, and the rows' flows (B, Q) with zeros for them."""
    c = columns
    *new, _ = merge_columns(
        graph.arrays, into, wanted, c.pair_start, c.path_start, c.path_resource, np.zeros(c.n_paths), False
    )
    return Columns(*new), np.insert(path_flow, c.pair_start[1:][wanted], 0.0, axis=1)


def _check_batch(graph: Graph, demand: FloatArray, fixed: FloatArray, start: BatchFlow | None) -> None:
    if demand.ndim != 2 or demand.shape[1] != graph.n_pairs:
        raise DataError(f"{graph.name}: demand must have shape (B, {graph.n_pairs}), got {demand.shape}")
    if not (np.isfinite(demand) & (demand >= 0.0)).all():
        raise DataError(f"{graph.name}: demand must be finite and not negative, got a row with {demand.min()}")
    if fixed.shape not in ((1, len(graph.fixed_h)), (len(demand), len(graph.fixed_h))):
        raise DataError(f"{graph.name}: fixed_h must have shape (B, {len(graph.fixed_h)}), got {fixed.shape}")
    if start is not None and start.path_flow_veh_per_h.shape != (len(demand), start.columns.n_paths):
        raise DataError(
            f"{graph.name}: start must hold the same {len(demand)} rows, got {len(start.path_flow_veh_per_h)}"
        )


def respond(
    model: TrafficModel,
    through_veh_per_h: ArrayLike,
    charging_veh_per_h: ArrayLike,
    price_eur_per_kwh: ArrayLike,
    previous: BatchFlow | None = None,
    relative_gap: float = 1e-6,
) -> tuple[FloatArray, BatchFlow]:
    """Cars at each station (B, S) [veh/h] when stations ask prices (B, S), for demands (B, K).

    previous: the answer to the last prices, from which the search starts. With an outside option in the model demand
    is elastic: cars for which it is cheaper do not charge. Raises ConvergenceError if a row does not reach the gap,
    InfeasibleError for stations that end up overfull, DataError for arrays out of range.
    """
    demand = joined_demand(model, np.asarray(through_veh_per_h), np.asarray(charging_veh_per_h))
    found = solve_batch(model.graph, demand, relative_gap, previous, model.fixed_h(price_eur_per_kwh))
    if not found.converged.all():
        row = int(np.argmin(found.converged))
        raise ConvergenceError(
            f"{model.network.name}: row {row} must reach relative_gap {relative_gap:.3g}, got "
            f"{found.relative_gap[row]:.3g}; raise relative_gap"
        )
    cars = found.flow_veh_per_h[:, model.station_resources]
    refuse_overfull(model, cars)
    return cars, found
