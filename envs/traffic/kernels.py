"""Numba kernels of the traffic equilibrium; arrays and scalars only.

A *graph* has arcs between nodes; an arc uses one *resource* (a road or a station), which several arcs may share: flows
and times belong to resources. A *pair* is a commodity from an origin node to a destination node. The paths of pair i
are ``pair_start[i] .. pair_start[i + 1]``, the resources of path q ``path_start[q] .. path_start[q + 1]`` of
``path_resource``; a path may use a resource twice. Costs are generalised times [h].
They run without Python's lock and write into arrays, so that threads share a batch.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from evcs_gym.envs.compilation import inner
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray

BPR = 0
DAVIDSON = 1
ERLANG = 2
LARGEST_UTILISATION = 0.999
"""Above it the time of a station is continued as a straight line; results there are refused."""
_MAX_STEPS = 60
"""Newton steps of one shift between two paths."""
_GOOD_STEP = 0.25
"""A shift ends when the difference of the costs has fallen to this share."""
_SWEEPS_PER_ROW = 6000
"""Rounds over all pairs of a row before it is given up."""
_MISSED_SHARE = 0.2
"""Share of the tolerated excess from which a path that is not known is missed; below it the known ones will do."""
_IDLE_SHARE = 1e-3
"""Pairs below this share of the mean excess aimed at are passed over, but for every fourth sweep."""


class GraphArrays(NamedTuple):
    """What stays of a graph: R resources, N nodes, A arcs by tail (forward star)."""

    kind: IntArray  # (R,)
    base_h: FloatArray  # (R,) free-flow or service time
    slope: FloatArray  # (R,) BPR: base B / capacity^power; Davidson: J; Erlang: number of chargers
    power: FloatArray  # (R,)
    capacity: FloatArray  # (R,) [veh/h]
    first_arc: IntArray  # (N + 1,)
    arc_head: IntArray  # (A,)
    arc_tail: IntArray  # (A,)
    arc_resource: IntArray  # (A,)
    no_through: BoolArray  # (N,) nodes that a path may only begin or end at
    origin: IntArray  # (O,) nodes where pairs begin
    pair_origin: IntArray  # (K,) row of origin
    pair_destination: IntArray  # (K,)


# --- times ------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def erlang_b(load: float, n_servers: int) -> float:
    """Blocking probability of M/M/s/s by the usual recursion, load in erlang."""
    blocking = 1.0
    for k in range(1, n_servers + 1):
        blocking = load * blocking / (k + load * blocking)
    return blocking


@njit(cache=True, nogil=True)
def erlang_sojourn(flow: float, service_h: float, n_servers: int) -> tuple[float, float]:
    """Exact mean time in an M/M/s station [h] and its derivative by the flow [h^2]; flow < s / service time."""
    load = flow * service_h
    if load <= 0.0:
        return service_h, service_h * service_h if n_servers == 1 else 0.0
    s = float(n_servers)
    b = erlang_b(load, n_servers)
    db = b * (s / load - 1.0 + b)
    rest = s - load * (1.0 - b)
    waiting = s * b / rest  # probability of waiting
    d_waiting = s * (db * rest + b * (1.0 - b - load * db)) / (rest * rest)
    free = s - load
    time = service_h * (1.0 + waiting / free)  # (T2) M/M/s
    slope = service_h * service_h * (d_waiting / free + waiting / (free * free))
    return time, slope


@njit(cache=True, nogil=True)
def _within(kind: int, base: float, slope: float, capacity: float, flow: float) -> tuple[float, float]:
    if kind == DAVIDSON:
        free = capacity - flow
        return base * (1.0 + slope * flow / free), base * slope * capacity / (free * free)  # (T2) Davidson
    return erlang_sojourn(flow, base, int(slope))


@njit(cache=True, nogil=True)
def _station(kind: int, base: float, slope: float, capacity: float, flow: float) -> tuple[float, float]:
    """Time of a station and its derivative, continued as a straight line where it is nearly full."""
    border = LARGEST_UTILISATION * capacity
    if flow <= border:
        return _within(kind, base, slope, capacity, flow)
    time, derivative = _within(kind, base, slope, capacity, border)
    return time + derivative * (flow - border), derivative


@njit(cache=True, nogil=True)
def _time(graph: GraphArrays, r: int, flow: float) -> tuple[float, float]:
    """Time of resource r [h] and its derivative by the flow."""
    if graph.kind[r] != BPR:
        return _station(graph.kind[r], graph.base_h[r], graph.slope[r], graph.capacity[r], flow)
    k = graph.slope[r]
    if k == 0.0 or flow <= 0.0 < graph.power[r] - 1.0:
        return graph.base_h[r], 0.0
    power = graph.power[r]
    if power == 4.0:
        cube = flow * flow * flow
        return graph.base_h[r] + k * cube * flow, 4.0 * k * cube  # (T1) the usual power
    if power == 1.0:
        return graph.base_h[r] + k * flow, k
    steep = k * flow ** (power - 1.0)
    return graph.base_h[r] + steep * flow, power * steep  # (T1) any power


@njit(cache=True, nogil=True)
def resource_times(
    graph: GraphArrays, flow: FloatArray, fixed_h: FloatArray, cost: FloatArray, derivative: FloatArray
) -> None:
    """Generalised costs (R,) and derivatives at flows (R,)."""
    for r in range(flow.size):
        time, slope = _time(graph, r, flow[r])
        cost[r] = fixed_h[r] + time
        derivative[r] = slope


# --- shortest paths ----------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _sift_up(heap: IntArray, place: IntArray, distance: FloatArray, i: int, node: int) -> None:
    key = distance[node]
    while i > 0:
        parent = (i - 1) >> 1
        if distance[heap[parent]] <= key:
            break
        heap[i] = heap[parent]
        place[heap[i]] = i
        i = parent
    heap[i] = node
    place[node] = i


@njit(cache=True, nogil=True)
def _sift_down(heap: IntArray, place: IntArray, distance: FloatArray, size: int, node: int) -> None:
    key, i = distance[node], 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and distance[heap[child + 1]] < distance[heap[child]]:
            child += 1
        if distance[heap[child]] >= key:
            break
        heap[i] = heap[child]
        place[heap[i]] = i
        i = child
    heap[i] = node
    place[node] = i


@njit(cache=True, nogil=True)
def dijkstra(
    graph: GraphArrays,
    origin: int,
    cost: FloatArray,
    distance: FloatArray,
    arc_into: IntArray,
    heap: IntArray,
    place: IntArray,
) -> None:
    """Least costs (N,) from one node and the arc by which each node is reached (-1: not); heap, place (N,) work."""
    for node in range(distance.size):
        distance[node] = np.inf
        arc_into[node] = -1
        place[node] = -1
    distance[origin] = 0.0
    heap[0], place[origin], size = origin, 0, 1
    while size > 0:
        node = heap[0]
        size -= 1
        if size > 0:
            _sift_down(heap, place, distance, size, heap[size])
        if graph.no_through[node] and node != origin:
            continue
        for arc in range(graph.first_arc[node], graph.first_arc[node + 1]):
            head = graph.arc_head[arc]
            reach = distance[node] + cost[graph.arc_resource[arc]]
            if reach < distance[head]:
                distance[head] = reach
                arc_into[head] = arc
                if place[head] < 0:
                    place[head] = size
                    size += 1
                _sift_up(heap, place, distance, place[head], head)


@njit(cache=True, nogil=True)
def trees(first: int, stop: int, graph: GraphArrays, cost: FloatArray, distance: FloatArray, into: IntArray) -> None:
    """`dijkstra` from the origins first .. stop - 1: distance, into (O, N)."""
    heap = np.empty(distance.shape[1], np.int64)
    place = np.empty(distance.shape[1], np.int64)
    for o in range(first, stop):
        dijkstra(graph, graph.origin[o], cost, distance[o], into[o], heap, place)


@njit(cache=True, nogil=True)
def least_costs(graph: GraphArrays, cost: FloatArray, distance: FloatArray, waiting: BoolArray) -> None:
    """Least costs from all origins at once, distance (N, O): the numbers of `trees`, without the trees.

    Nodes whose costs fell pass them on, over the nodes up and down (Yen 1970) until none falls. Costs are sums along
    the same paths, so the result is that of `dijkstra` bit for bit; origins lie side by side as the processor's lanes.
    """
    n_nodes, n_origins = distance.shape
    for i in range(n_nodes):
        waiting[i] = False
        for o in range(n_origins):
            distance[i, o] = np.inf
    for o in range(n_origins):
        distance[graph.origin[o], o] = 0.0
        waiting[graph.origin[o]] = True
    again, upwards = True, True
    while again:
        again = False
        for i in range(n_nodes):
            tail = i if upwards else n_nodes - 1 - i
            if waiting[tail]:
                waiting[tail] = False
                again = True
                _pass_on(graph, cost, tail, distance, waiting)
        upwards = not upwards


@inner
def _pass_on(graph: GraphArrays, cost: FloatArray, tail: int, distance: FloatArray, waiting: BoolArray) -> None:
    """Costs of a node's neighbours by way of it; those that fell are ``waiting`` to pass theirs on."""
    n_origins = distance.shape[1]
    for arc in range(graph.first_arc[tail], graph.first_arc[tail + 1]):
        head, c, fell = graph.arc_head[arc], cost[graph.arc_resource[arc]], 0
        if graph.no_through[tail]:
            for o in range(n_origins):
                if graph.origin[o] == tail and c < distance[head, o]:
                    distance[head, o] = c
                    fell = 1
        else:
            for o in range(n_origins):
                before, reach = distance[head, o], distance[tail, o] + c
                fell |= reach < before
                distance[head, o] = min(reach, before)
        if fell:
            waiting[head] = True


# --- paths -------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def path_cost(q: int, path_start: IntArray, path_resource: IntArray, cost: FloatArray) -> float:
    """Cost of path q."""
    total = 0.0
    for e in range(path_start[q], path_start[q + 1]):
        total += cost[path_resource[e]]
    return total


@njit(cache=True, nogil=True)
def tree_length(graph: GraphArrays, into: IntArray, pair: int) -> int:
    """Arcs of the pair's path in its origin's tree."""
    row, node, n = graph.pair_origin[pair], graph.pair_destination[pair], 0
    while node != graph.origin[row]:
        node = graph.arc_tail[into[row, node]]
        n += 1
    return n


@njit(cache=True, nogil=True)
def write_tree_path(graph: GraphArrays, into: IntArray, pair: int, path_resource: IntArray, end: int) -> None:
    """Write the resources of the pair's path in its origin's tree so that they stop before ``end``."""
    row, node = graph.pair_origin[pair], graph.pair_destination[pair]
    while node != graph.origin[row]:
        arc = into[row, node]
        end -= 1
        path_resource[end] = graph.arc_resource[arc]
        node = graph.arc_tail[arc]


@njit(cache=True, nogil=True)
def excess_and_least(
    demand: FloatArray,
    pair_start: IntArray,
    path_start: IntArray,
    path_resource: IntArray,
    path_flow: FloatArray,
    cost: FloatArray,
    shortest: FloatArray,
    wanted: BoolArray,
) -> tuple[float, float]:
    """Excess cost of the flows over the least costs of their pairs, ``shortest`` (K,), and demand times least cost.

    wanted: (K,) set where the least cost is below that of every known path of a pair with demand.
    """
    excess, least = 0.0, 0.0
    for i in range(demand.size):
        wanted[i] = False
        if demand[i] <= 0.0:
            continue
        least += demand[i] * shortest[i]
        cheapest = np.inf
        for q in range(pair_start[i], pair_start[i + 1]):
            c = path_cost(q, path_start, path_resource, cost)
            cheapest = min(cheapest, c)
            if path_flow[q] > 0.0:
                excess += path_flow[q] * (c - shortest[i])
        wanted[i] = cheapest > shortest[i] * (1.0 + 1e-15) + 1e-300
    return excess, least


@njit(cache=True, nogil=True)
def merge_columns(
    graph: GraphArrays,
    into: IntArray,
    wanted: BoolArray,
    pair_start: IntArray,
    path_start: IntArray,
    path_resource: IntArray,
    path_flow: FloatArray,
    drop: bool,
) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    """Columns with one path more for each wanted pair; ``drop`` leaves paths without flow out."""
    n_pairs = wanted.size
    n_paths, n_entries = 0, 0
    for i in range(n_pairs):
        for q in range(pair_start[i], pair_start[i + 1]):
            if path_flow[q] > 0.0 or not drop:
                n_paths += 1
                n_entries += path_start[q + 1] - path_start[q]
        if wanted[i]:
            n_paths += 1
            n_entries += tree_length(graph, into, i)
    new_pair = np.empty(n_pairs + 1, np.int64)
    new_start = np.empty(n_paths + 1, np.int64)
    new_resource = np.empty(n_entries, np.int64)
    new_flow = np.zeros(n_paths)
    n_paths, n_entries = 0, 0
    new_start[0] = 0
    for i in range(n_pairs):
        new_pair[i] = n_paths
        for q in range(pair_start[i], pair_start[i + 1]):
            if path_flow[q] > 0.0 or not drop:
                for e in range(path_start[q], path_start[q + 1]):
                    new_resource[n_entries] = path_resource[e]
                    n_entries += 1
                new_flow[n_paths] = path_flow[q]
                n_paths += 1
                new_start[n_paths] = n_entries
        if wanted[i]:
            n_entries += tree_length(graph, into, i)
            write_tree_path(graph, into, i, new_resource, n_entries)
            n_paths += 1
            new_start[n_paths] = n_entries
    new_pair[n_pairs] = n_paths
    return new_pair, new_start, new_resource, new_flow


@njit(cache=True, nogil=True)
def load_flows(path_start: IntArray, path_resource: IntArray, path_flow: FloatArray, flow: FloatArray) -> None:
    """Flows of the resources (R,) from those of the paths."""
    for r in range(flow.size):
        flow[r] = 0.0
    for q in range(path_flow.size):
        if path_flow[q] > 0.0:
            for e in range(path_start[q], path_start[q + 1]):
                flow[path_resource[e]] += path_flow[q]


# --- shifts between two paths ------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _difference(
    a: int, b: int, path_start: IntArray, path_resource: IntArray, count: IntArray, touched: IntArray, sign: IntArray
) -> int:
    """Resources that path a uses more often than path b or less: their number, ``touched`` and ``sign``."""
    n = 0
    for e in range(path_start[a], path_start[a + 1]):
        count[path_resource[e]] += 1
    for e in range(path_start[b], path_start[b + 1]):
        count[path_resource[e]] -= 1
    for e in range(path_start[a], path_start[a + 1]):
        r = path_resource[e]
        if count[r] != 0:
            touched[n], sign[n], count[r] = r, count[r], 0
            n += 1
    for e in range(path_start[b], path_start[b + 1]):
        r = path_resource[e]
        if count[r] != 0:
            touched[n], sign[n], count[r] = r, count[r], 0
            n += 1
    return n


@njit(cache=True, nogil=True)
def shift(
    graph: GraphArrays,
    fixed_h: FloatArray,
    touched: IntArray,
    sign: IntArray,
    n: int,
    most: float,
    least: float,
    flow: FloatArray,
    cost: FloatArray,
    derivative: FloatArray,
) -> float:
    """Flow moved from path a to path b, within [least, most], so that their costs meet; updates flows and costs.

    Newton steps on the difference of the costs, a monotone function of what is moved, kept between the two points
    that enclose its zero.
    """
    moved, gap, slope = 0.0, 0.0, 0.0
    for j in range(n):
        r = touched[j]
        gap += sign[j] * cost[r]
        slope += sign[j] * sign[j] * derivative[r]
    start_gap, low, high = abs(gap), least, most
    for _ in range(_MAX_STEPS):
        if gap > 0.0:
            low = moved
        elif gap < 0.0:
            high = moved
        else:
            break
        target = moved + gap / slope if slope > 0.0 else (high if gap > 0.0 else low)
        # an end of the range may be the answer; between two tried points a wild step is replaced by the middle
        if target >= high:
            target = high if high == most else 0.5 * (low + high)
        elif target <= low:
            target = low if low == least else 0.5 * (low + high)
        step = target - moved
        if step == 0.0:
            break
        gap, slope = 0.0, 0.0
        for j in range(n):
            r = touched[j]
            flow[r] = max(flow[r] - sign[j] * step, 0.0)
            time, d = _time(graph, r, flow[r])
            cost[r] = fixed_h[r] + time
            derivative[r] = d
            gap += sign[j] * cost[r]
            slope += sign[j] * sign[j] * d
        moved = target
        if abs(gap) <= _GOOD_STEP * start_gap:
            break
    return moved


@njit(cache=True, nogil=True)
def balance_pair(
    graph: GraphArrays,
    fixed_h: FloatArray,
    begin: int,
    stop: int,
    path_start: IntArray,
    path_resource: IntArray,
    path_flow: FloatArray,
    flow: FloatArray,
    cost: FloatArray,
    derivative: FloatArray,
    count: IntArray,
    touched: IntArray,
    sign: IntArray,
) -> tuple[float, float]:
    """One round of shifts of a pair towards its cheapest path; its excess before and the least cost."""
    best, least = begin, np.inf
    for q in range(begin, stop):
        c = path_cost(q, path_start, path_resource, cost)
        if c < least:
            best, least = q, c
    excess = 0.0
    for q in range(begin, stop):
        if q == best or path_flow[q] <= 0.0:
            continue
        n = _difference(q, best, path_start, path_resource, count, touched, sign)
        gap = 0.0
        for j in range(n):
            gap += sign[j] * cost[touched[j]]
        excess += abs(gap) * (path_flow[q] if gap > 0.0 else path_flow[best])
        moved = shift(graph, fixed_h, touched, sign, n, path_flow[q], -path_flow[best], flow, cost, derivative)
        path_flow[q] = max(path_flow[q] - moved, 0.0)
        path_flow[best] = max(path_flow[best] + moved, 0.0)
    return excess, least


@njit(cache=True, nogil=True)
def sweeps(
    graph: GraphArrays,
    fixed_h: FloatArray,
    demand: FloatArray,
    pair_start: IntArray,
    path_start: IntArray,
    path_resource: IntArray,
    path_flow: FloatArray,
    flow: FloatArray,
    cost: FloatArray,
    derivative: FloatArray,
    target: float,
    max_sweeps: int,
) -> tuple[int, float]:
    """Rounds over all pairs until the excess cost seen in one of them is below ``target`` [veh]; rounds, excess.

    Gradient projection on path flows, one pair after the other (Jayakrishnan et al. 1994).
    """
    count = np.zeros(flow.size, np.int64)
    touched = np.empty(2 * flow.size, np.int64)
    sign = np.empty(2 * flow.size, np.int64)
    active = np.empty(demand.size, np.int64)
    n_active = 0
    for i in range(demand.size):
        if demand[i] > 0.0 and pair_start[i + 1] - pair_start[i] > 1:
            active[n_active] = i
            n_active += 1
    excess = np.full(n_active, np.inf)
    total, n_sweeps = 0.0, 0
    for sweep in range(max_sweeps):
        total = 0.0
        for j in range(n_active):
            if sweep % 4 != 0 and excess[j] <= _IDLE_SHARE * target / n_active:
                continue
            i = active[j]
            excess[j], _ = balance_pair(
                graph,
                fixed_h,
                pair_start[i],
                pair_start[i + 1],
                path_start,
                path_resource,
                path_flow,
                flow,
                cost,
                derivative,
                count,
                touched,
                sign,
            )
            total += excess[j]
        n_sweeps += 1
        if total <= target:
            break
    return n_sweeps, total


@njit(cache=True, nogil=True)
def _missed(
    demand: FloatArray,
    pair_start: IntArray,
    path_start: IntArray,
    path_resource: IntArray,
    cost: FloatArray,
    shortest: FloatArray,
    wanted: BoolArray,
) -> float:
    """Excess cost of the best flows on the known paths because of shorter paths that are not known."""
    missed = 0.0
    for i in range(demand.size):
        if wanted[i]:
            cheapest = np.inf
            for q in range(pair_start[i], pair_start[i + 1]):
                cheapest = min(cheapest, path_cost(q, path_start, path_resource, cost))
            missed += demand[i] * (cheapest - shortest[i])
    return missed


# --- many demands on one graph -----------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def scale_row(
    demand: FloatArray,
    pair_start: IntArray,
    path_start: IntArray,
    path_resource: IntArray,
    path_flow: FloatArray,
    cost: FloatArray,
) -> None:
    """Scale the path flows (Q,) of a row to its demand (K,); pairs without flow begin on their cheapest path."""
    for i in range(demand.size):
        total, best, least = 0.0, -1, np.inf
        for q in range(pair_start[i], pair_start[i + 1]):
            total += path_flow[q]
        if total > 0.0:
            share = demand[i] / total
            for q in range(pair_start[i], pair_start[i + 1]):
                path_flow[q] *= share
        elif demand[i] > 0.0:
            for q in range(pair_start[i], pair_start[i + 1]):
                c = path_cost(q, path_start, path_resource, cost)
                if c < least:
                    best, least = q, c
            if best >= 0:
                path_flow[best] = demand[i]


@njit(cache=True, nogil=True)
def lacks_paths(demand: FloatArray, pair_start: IntArray) -> bool:
    """Whether a pair with demand has no path."""
    n_lacking = 0
    for i in range(demand.size):
        n_lacking += demand[i] > 0.0 and pair_start[i + 1] == pair_start[i]
    return n_lacking > 0


@njit(cache=True, nogil=True)
def time_rows(
    first: int, stop: int, graph: GraphArrays, fixed_h: FloatArray, flow: FloatArray, time_h: FloatArray
) -> None:
    """Costs of the resources (B, R) at flows (B, R), with fixed costs (R,), for rows first .. stop - 1."""
    slope = np.empty(flow.shape[1])
    for b in range(first, stop):
        resource_times(graph, flow[b], fixed_h, time_h[b], slope)


@njit(cache=True, nogil=True)
def balance_rows(
    first: int,
    stop: int,
    graph: GraphArrays,
    fixed_h: FloatArray,
    demand: FloatArray,
    pair_start: IntArray,
    path_start: IntArray,
    path_resource: IntArray,
    path_flow: FloatArray,
    flow: FloatArray,
    pair_cost: FloatArray,
    gap: FloatArray,
    wants: BoolArray,
    tolerance: float,
    max_passes: int,
) -> None:
    """Equilibria of rows first .. stop - 1 on the given paths, each judged by shortest paths of its own.

    fixed_h: (B or 1, R). demand: (B, K). path_flow: (B, Q), a start and the answer. flow: (B, R). pair_cost: (B, K).
    gap: (B,) of (T4). wants: (B,) whether a pair would take a path that is not among those given.
    """
    n_resources, n_pairs = flow.shape[1], demand.shape[1]
    cost, slope = np.empty(n_resources), np.empty(n_resources)
    distance = np.empty((graph.no_through.size, graph.origin.size))
    waiting = np.empty(graph.no_through.size, np.bool_)
    wanted = np.zeros(n_pairs, np.bool_)
    for b in range(first, stop):
        fixed = fixed_h[b if fixed_h.shape[0] > 1 else 0]
        flow[b, :] = 0.0
        resource_times(graph, flow[b], fixed, cost, slope)
        scale_row(demand[b], pair_start, path_start, path_resource, path_flow[b], cost)
        wants[b] = lacks_paths(demand[b], pair_start)
        gap[b] = np.inf
        target, n_left = np.inf, _SWEEPS_PER_ROW
        for sweep_pass in range(max_passes):
            load_flows(path_start, path_resource, path_flow[b], flow[b])
            resource_times(graph, flow[b], fixed, cost, slope)
            if wants[b]:
                break
            if sweep_pass > 0:
                least_costs(graph, cost, distance, waiting)
                shortest = pair_cost[b]
                for i in range(n_pairs):
                    shortest[i] = distance[graph.pair_destination[i], graph.pair_origin[i]]
                excess, least = excess_and_least(
                    demand[b], pair_start, path_start, path_resource, path_flow[b], cost, shortest, wanted
                )
                gap[b] = excess / (excess + least) if excess + least > 0.0 else 0.0
                if gap[b] <= tolerance:
                    break
                missed = _missed(demand[b], pair_start, path_start, path_resource, cost, shortest, wanted)
                wants[b] = missed > _MISSED_SHARE * tolerance * (excess + least)
                if wants[b] or n_left <= 0:
                    break
            total = 0.0
            for r in range(n_resources):
                total += flow[b, r] * cost[r]
            target = 0.6 * tolerance * total if sweep_pass == 0 else 0.3 * target
            n_sweeps, _ = sweeps(
                graph,
                fixed,
                demand[b],
                pair_start,
                path_start,
                path_resource,
                path_flow[b],
                flow[b],
                cost,
                slope,
                target,
                min(200, n_left),
            )
            n_left -= n_sweeps
