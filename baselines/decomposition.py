"""The network-constrained market solved slot by slot: a master for the day, the network of a slot for each cut.

(C) does not price losses, so the network only says which positions are possible. The master (stations, auction,
devices) proposes positions; the nonlinear power flow of all slots finds those that break a limit; there the conic
programme of the slot is solved, and its duals are a linear cut that every possible position keeps. Two sets of cuts are
kept apart: those of the *bound* come from the relaxation (Q1)-(Q6) with limits relaxed by what (N4) allows, linearised
at the plan; those of the *plan* from the exact limits with l held near the power flow (the majorant), linearised at the
positions that they cut off.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from evcs_gym.baselines.certificate import conic_cut, dual_bound
from evcs_gym.baselines.forms import network as forms
from evcs_gym.baselines.forms.network import BOUND_SLACK, Cone, DayForm, Orders, Reference, SlotForm, Tightness
from evcs_gym.baselines.problems.market import MarketPlan
from evcs_gym.baselines.problems.network import (
    ORDER_TOLERANCE_KW,
    Network,
    NetworkPlan,
    NetworkProblem,
    branch_current_pu,
    breaches,
    common_excess,
    cost_eur,
    excess_at,
    plan_flow,
    position_excess,
    position_kw,
    position_range_kw,
    scale_eur,
    steps_kvar,
    storage_range_kw,
    widened,
)
from evcs_gym.baselines.solvers import (
    N_WORKERS,
    Compiled,
    SecondOrderResult,
    SecondOrderRows,
    StandardForm,
    Task,
    compile_model,
    solve,
    solve_all,
    solve_second_order,
)
from evcs_gym.envs.errors import ConvergenceError, InfeasibleError
from evcs_gym.envs.grid.device_plan import bank_states, best_path
from evcs_gym.envs.grid.operator import PASS_TOLERANCE
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray

LIMIT_TOLERANCE: Final = 1e-7
"""Excess over a limit that the power flow of a plan may show: a tenth of what the environment's operator lets pass."""
CUT_TOLERANCE: Final = 1e-8
"""Excess from which a slot's programme gives a cut."""
MAX_ROUNDS: Final = 60
_MAJORANT_FRAC: Final = tuple(0.1 * 0.5**k for k in (0, 3, 6, 9, 12))
"""Shares of the largest limit of l by which l may exceed its tangent, tried in this order."""
_AGREES_FRAC: Final = 0.1
"""Difference between programme and power flow, as a share of the excess, at which the slopes are taken."""
_AGREES_PU: Final = 1e-3
"""The same, absolute, that the smallest delta may leave."""
_HOLDING: Final = 1e-7
"""A cut with less room than this holds the plan."""
_ROOM: Final = 1e-6
"""Room in the power flow from which a cut that holds the plan is stale."""
_SETTLED_FRAC: Final = 0.01
"""Share of the gap asked for that another refresh must gain."""
_GRACE_S: Final = 2.0
"""A slot takes milliseconds: it is not cut short at the very end."""
_EXCESS_WEIGHT: Final = 500.0
_ROOM_WANTED: Final = 0.005
"""Room to the limits that a schedule of the devices looks for once no limit is broken."""
_CURTAIL_EUR_PER_KWH: Final = 1e-5
"""Price of curtailment in plans, so that a plan curtails only where it gains; re-priced without it."""
_MASTER_GAP_FRAC: Final = 0.1
"""Share of the gap asked for that the master's own search may leave."""
_ELASTIC_ROUNDS: Final = 10
"""Elastic masters before the last answer is taken as the least excess."""
_FORESEEN_FRAC: Final = 0.05
"""Share of an excess by which a slot's elastic column may miss it."""
_N_NAMED: Final = 5
"""Broken limits that an error names."""
_PATIENCE: Final = 12
"""Rounds of cuts without gain after which a bound is settled."""
N_NARROWINGS: Final = 8
"""Times that ranges of positions are narrowed and cuts begin again."""
_AROUND_FRAC: Final = 1e-6
_AROUND_KW: Final = 1e-6
"""Room that is left around the cost of the plan at hand, and around a narrowed range."""
_COMPILE: Final = threading.Lock()
"""Pyomo is not made for threads."""


@dataclass(frozen=True, eq=False)
class Cut:
    """Duals of a slot's programme, and what they say at the present reference: constant + slope . shared <= 0."""

    slot: int
    row_dual: FloatArray
    cone_dual: FloatArray
    constant: float
    slope: FloatArray


@dataclass(frozen=True, eq=False)
class SlotMatrices:
    """A slot's programme as matrices, with the columns that it shares with the day."""

    compiled: Compiled
    cones: SecondOrderRows
    shared: IntArray
    form: SlotForm


@dataclass(frozen=True, eq=False)
class DayMatrices:
    """The master as matrices; shared: (T, P) columns; columns of the variables of stations, each (T, S)."""

    compiled: Compiled
    form: DayForm
    shared: IntArray

    def values(self, x: FloatArray, name: str, shape: tuple[int, int]) -> FloatArray:
        """Values of a variable of the stations."""
        return x[self.compiled.columns(getattr(self.form.stations, name))].reshape(shape)


@dataclass(eq=False)
class Search:
    """What a search knows: cuts, the cells in which binaries order the stations, how long it may last, and positions
    (T, S) of the relaxation that held the bound last."""

    problem: NetworkProblem
    gap: float
    end: float
    bound_cuts: list[Cut] = field(default_factory=list)
    plan_cuts: list[Cut] = field(default_factory=list)
    orders: Orders = forms.NO_ORDERS
    n_rounds: int = 0
    n_solves: int = 0
    n_doubtful: int = 0
    lifted_kw: FloatArray | None = None

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return self.end - time.monotonic()


def cone_rows(cones: Sequence[Cone], compiled: Compiled) -> SecondOrderRows:
    """The cones of a form over the columns of its matrices."""
    constant: list[float] = []
    row: list[int] = []
    column: list[int] = []
    value: list[float] = []
    for cone in cones:
        for start, factors, variables in cone.rows:
            for factor, variable in zip(factors, variables, strict=True):
                row.append(len(constant))
                column.append(compiled.column_of[id(variable)])
                value.append(factor)
            constant.append(start)
    return SecondOrderRows(
        np.array(constant, dtype=np.float64), np.array(row, dtype=np.int64), np.array(column, dtype=np.int64),
        np.array(value, dtype=np.float64), np.array([len(cone.rows) for cone in cones], dtype=np.int64),
    )  # fmt: skip


def slot_matrices(problem: Network, slot: int, reference: Reference, tightness: Tightness) -> SlotMatrices:
    """The programme of a slot, linearised at a reference."""
    with _COMPILE:
        form = forms.slot_form(problem, slot, reference, tightness)
        compiled = compile_model(form.model)
        return SlotMatrices(compiled, cone_rows(form.cones, compiled), compiled.columns(form.shared), form)


def day_matrices(problem: NetworkProblem, allowed: BoolArray, orders: Orders = forms.NO_ORDERS) -> DayMatrices:
    """The master of a day with the allowed (T, C) joint positions of the devices."""
    form = forms.day_form(problem, allowed, orders)
    compiled = compile_model(form.stations.model)
    shared = np.array([compiled.columns(variables) for variables in form.shared])
    return DayMatrices(compiled, form, shared)


def solve_slot(search: Search, matrices: SlotMatrices, shared: FloatArray) -> SecondOrderResult:
    """The least common excess over the limits at given values (P,) of what the slot shares with the day."""
    form = matrices.compiled.form
    fixed, x = np.zeros(len(form.cost), dtype=np.bool_), np.zeros(len(form.cost))
    fixed[matrices.shared], x[matrices.shared] = True, shared
    found = solve_second_order(form.fixed(fixed, x), matrices.cones, max(search.left_s, 0.0) + _GRACE_S)
    search.n_solves += 1
    search.n_doubtful += found.doubtful
    return found


def cut_of(slot: int, matrices: SlotMatrices, row_dual: FloatArray, cone_dual: FloatArray, ray: bool = False) -> Cut:
    """What duals say about a slot; those of a ray leave the objective out."""
    form = matrices.compiled.form
    if ray:
        form = replace(form, cost=np.zeros_like(form.cost), offset=0.0)
    constant, slope = conic_cut(form, matrices.cones, row_dual, cone_dual, matrices.shared)
    return Cut(slot, row_dual, cone_dual, constant, slope)


def with_cuts(form: StandardForm, shared: IntArray, cuts: Sequence[Cut]) -> StandardForm:
    """The master (n columns, shared (T, P) among them) with a row -slope . shared >= constant for every cut.

    Rows are scaled to a largest entry of 1; entries that HiGHS would drop are charged at their largest value.
    """
    whole, lower, _ = _cut_rows(form, shared, cuts)
    return _with_rows(form, whole, lower)


def elastic(form: StandardForm, shared: IntArray, cuts: Sequence[Cut]) -> StandardForm:
    """The master in which every slot may exceed its limits by a column of its own, (T,) behind all others; the sum of
    these columns is what it minimises."""
    from scipy.sparse import csc_array, hstack

    n_slots, (whole, lower, scale) = len(shared), _cut_rows(form, shared, cuts)
    m = len(form.row_lower)
    row, slot = m + np.arange(len(cuts)), np.array([cut.slot for cut in cuts], dtype=np.int64)
    room = csc_array((1.0 / scale, (row, slot)), shape=(m + len(cuts), n_slots))
    wider = replace(
        form,
        cost=np.concatenate([np.zeros_like(form.cost), np.ones(n_slots)]),
        offset=0.0,
        col_lower=np.concatenate([form.col_lower, np.zeros(n_slots)]),
        col_upper=np.concatenate([form.col_upper, np.full(n_slots, np.inf)]),
        integer=np.concatenate([form.integer, np.zeros(n_slots, dtype=np.bool_)]),
    )
    return _with_rows(wider, csc_array(hstack([whole, room], format="csc")), lower)


def _with_rows(form: StandardForm, whole: Any, lower: FloatArray) -> StandardForm:
    """The form with a longer matrix, whose new rows are at least ``lower``."""
    return replace(
        form,
        start=whole.indptr.astype(np.int64),
        index=whole.indices.astype(np.int64),
        value=whole.data,
        row_lower=np.concatenate([form.row_lower, lower]),
        row_upper=np.concatenate([form.row_upper, np.full(len(lower), np.inf)]),
    )


def _cut_rows(form: StandardForm, shared: IntArray, cuts: Sequence[Cut]) -> tuple[Any, FloatArray, FloatArray]:
    """The matrix with a row for every cut, their lower sides, and what they were divided by."""
    from scipy.sparse import csc_array, csr_array, vstack

    n, m = len(form.cost), len(form.row_lower)
    matrix = csc_array((form.value, form.index, form.start), shape=(m, n))
    row, column, value, lower, scales = [], [], [], [], []
    for number, cut in enumerate(cuts):
        columns = shared[cut.slot]
        scale = max(float(np.abs(cut.slope).max()), 1e-12)
        slope = cut.slope / scale
        small = np.abs(slope) < 1e-7
        least = np.where(slope > 0.0, form.col_lower[columns], form.col_upper[columns])
        scales.append(scale)
        lower.append(cut.constant / scale + float((slope * least)[small].sum()))
        row += [number] * int((~small).sum())
        column += columns[~small].tolist()
        value += (-slope[~small]).tolist()
    extra = csr_array((value, (row, column)), shape=(len(cuts), n))
    return csc_array(vstack([matrix, extra], format="csc")), np.array(lower), np.array(scales)


def plan_of(problem: NetworkProblem, matrices: DayMatrices, x: FloatArray) -> NetworkPlan:
    """The plan in a point of the master; rounding of the solver is cut off."""
    shape = (problem.n_slots, problem.n_stations)
    storage = matrices.values(x, "charge", shape) - matrices.values(x, "discharge", shape)
    curtailed = np.clip(matrices.values(x, "curtailed", shape), 0.0, problem.market.pv_kw)
    unserved = np.clip(matrices.values(x, "unserved", shape), 0.0, problem.market.ev_kw)
    position = np.zeros(problem.n_slots, dtype=np.int64)
    chosen = matrices.form.stations.model.chosen
    best = np.full(problem.n_slots, -1.0)
    for (slot, joint), value in zip(chosen, x[matrices.compiled.columns(list(chosen.values()))].tolist(), strict=True):
        if value > best[slot]:
            best[slot], position[slot] = value, joint
    return NetworkPlan(MarketPlan(storage, curtailed, unserved), position)


def shared_values(problem: NetworkProblem, plan: NetworkPlan) -> FloatArray:
    """(T, P) what the slots share with the day in a plan, in the order of the forms."""
    head = problem.head_pu[plan.devices][:, None] ** 2
    steps = problem.capacitor_step[plan.devices]
    on = [steps[:, k] > i for k, bank in enumerate(problem.devices.banks) for i in range(bank.n_steps)]
    return np.concatenate(
        [position_kw(problem, plan), head, *(np.asarray(s, dtype=np.float64)[:, None] for s in on)], axis=1
    )


def references_of(problem: NetworkProblem, plan: NetworkPlan) -> list[Reference]:
    """The power flow of every slot of a plan.

    Raises:
        ConvergenceError: a slot without power flow.
    """
    flow = plan_flow(problem, plan)
    if not flow.converged.all():
        slot = int(np.argmin(flow.converged))
        raise ConvergenceError(
            f"market: slot {slot} has no power flow at the positions of the plan; lower connection_kw or the base load"
        )
    current = branch_current_pu(problem, plan, flow)
    return [Reference(flow.voltage_pu[t], current[t]) for t in range(problem.n_slots)]


# -- plans ------------------------------------------------------------------------------------------------------------


def only(problem: NetworkProblem, position: IntArray) -> BoolArray:
    """(T, C) that allows one joint position in every slot."""
    out = np.zeros_like(problem.admissible)
    out[np.arange(problem.n_slots), position] = True
    return out


def find_plan(search: Search, allowed: BoolArray, *, network: bool = True) -> NetworkPlan | None:
    """The cheapest plan under the allowed (T, C) joint positions that keeps the limits in the power flow.

    Each round the master proposes, the power flow judges, and slots that break a limit get a cut. At the end cuts that
    hold the plan further from a limit than the power flow does are refreshed there, and the search goes on while that
    gains. None when time runs out before a plan is found. Without network its limits are not looked at.

    Raises:
        InfeasibleError: no positions keep the limits.
    """
    problem, best, best_eur = search.problem, None, np.inf
    for _ in range(MAX_ROUNDS):
        if search.left_s <= 0.0:
            break
        search.n_rounds += 1
        plan = _master_plan(search, allowed)
        if plan is None:
            break
        more = _more_orders(problem, plan, search.orders)
        if more is not None:
            search.orders = more
        excess = common_excess(problem, plan) if network else np.full(problem.n_slots, -1.0)
        broken = np.flatnonzero(excess > LIMIT_TOLERANCE)
        if len(broken) == 0 and more is None:
            gained, best_eur = best_eur - cost_eur(problem, plan), min(best_eur, cost_eur(problem, plan))
            best = plan if gained > 0.0 else best
            settled = gained <= _SETTLED_FRAC * search.gap * scale_eur(problem, best_eur)
            if not _refresh(search, plan, excess) or settled:
                return best
        _cut_plan(search, plan, excess, broken)
    return best


def _master_plan(search: Search, allowed: BoolArray) -> NetworkPlan | None:
    """The master's answer under the plan's cuts."""
    problem = search.problem
    matrices = day_matrices(problem, allowed, search.orders)
    form = with_cuts(matrices.compiled.form, matrices.shared, search.plan_cuts)
    columns = matrices.compiled.columns(matrices.form.stations.curtailed)
    cost = form.cost.copy()
    cost[columns] += _CURTAIL_EUR_PER_KWH
    try:
        found = solve(Task(replace(form, cost=cost), relative_gap=_MASTER_GAP_FRAC * search.gap), search.left_s)
    except InfeasibleError:
        return _least_excess(search, matrices)
    return None if found.x is None else plan_of(problem, matrices, found.x)


def _least_excess(search: Search, matrices: DayMatrices) -> NetworkPlan | None:
    """A plan where the cuts contradict each other, as cuts of other positions may: they begin anew, the elastic master
    proposes the least sum of excesses, the power flow judges, and slots in which it shows more than was foreseen get a
    cut. None when time is over.

    Raises:
        InfeasibleError: the plan of the least excess breaks limits; says which, where and by how much.
    """
    problem, form, n = search.problem, matrices.compiled.form, len(matrices.compiled.form.cost)
    search.plan_cuts = []
    for last in (*(False,) * (_ELASTIC_ROUNDS - 1), True):
        found = solve(Task(elastic(form, matrices.shared, search.plan_cuts)), search.left_s)
        if found.x is None:
            return None
        plan = plan_of(problem, matrices, found.x[:n])
        excess = common_excess(problem, plan)
        if excess.max() <= LIMIT_TOLERANCE:
            return plan
        fresh = np.flatnonzero(excess > found.x[n:] + np.maximum(_FORESEEN_FRAC * excess, LIMIT_TOLERANCE))
        if last or len(fresh) == 0:
            raise _infeasible(problem, plan)
        _cut_plan(search, plan, excess, fresh)
    return None


def _infeasible(problem: NetworkProblem, plan: NetworkPlan) -> InfeasibleError:
    """What the plan of the least excess breaks."""
    found = breaches(problem, plan, LIMIT_TOLERANCE)
    more = f" and {len(found) - _N_NAMED} more" if len(found) > _N_NAMED else ""
    return InfeasibleError(
        "market: no positions of the stations keep the network's limits under these devices; with the least excess "
        f"there is {', '.join(str(breach) for breach in found[:_N_NAMED])}{more}; widen the limits, lower the base "
        "load or let the devices move further"
    )


def _refresh(search: Search, plan: NetworkPlan, excess: FloatArray) -> bool:
    """Cuts that hold the plan where the power flow leaves room say there what the power flow says; whether any did."""
    values, refreshed = shared_values(search.problem, plan), False
    for number, cut in enumerate(search.plan_cuts):
        says = cut.constant + float(cut.slope @ values[cut.slot])
        if says > -_HOLDING and excess[cut.slot] < says - _ROOM:
            search.plan_cuts[number] = replace(cut, constant=cut.constant + float(excess[cut.slot]) - says)
            refreshed = True
    return refreshed


def best_schedule(search: Search, position: FloatArray) -> tuple[IntArray, float]:
    """Joint positions (T,) of the devices for positions (T, S) of the stations, and the sum of excesses they leave.

    (P10) over the admissible joint positions: the least sum of excesses, then room to the limits of `_ROOM_WANTED`.
    """
    problem, devices = search.problem, search.problem.devices
    excess = position_excess(problem, position)
    price = _EXCESS_WEIGHT * np.maximum(excess - PASS_TOLERANCE, 0.0) + np.maximum(excess + _ROOM_WANTED, 0.0) ** 2
    states, taps = bank_states(devices), devices.tap_changer
    lowest = int(problem.tap_position.min())
    row = np.full((len(states.combinations), int(problem.tap_position.max()) - lowest + 1), -1, dtype=np.int64)
    for joint, steps in enumerate(problem.capacitor_step):
        combination = int(np.flatnonzero((states.combinations == steps).all(axis=1))[0])
        row[combination, problem.tap_position[joint] - lowest] = joint
    there = (row >= 0)[None] & problem.admissible[:, row]
    cost = np.where(there, price[:, row], np.inf)
    n_moves = min(taps.max_moves, problem.n_slots * (row.shape[1] - 1))
    value, tap, state = best_path(cost, states, taps.start - lowest, n_moves, False)
    chosen = row[states.combination[state], tap] if np.isfinite(value) else problem.own
    left = np.maximum(excess[np.arange(problem.n_slots), chosen] - PASS_TOLERANCE, 0.0)
    return np.asarray(chosen, dtype=np.int64), float(left.sum())


def _more_orders(problem: NetworkProblem, plan: NetworkPlan, orders: Orders) -> Orders | None:
    """The orders with the cells in which the plan breaks (N3), None if there are none."""
    own = plan.stations
    least, largest = storage_range_kw(problem, own.storage_kw)
    curtail = _cells(np.minimum(own.curtailed_kw, largest - own.storage_kw) > ORDER_TOLERANCE_KW)
    unserved = _cells(np.minimum(own.unserved_kw, own.storage_kw - least) > ORDER_TOLERANCE_KW)
    if curtail <= orders.curtail and unserved <= orders.unserved:
        return None
    return Orders(orders.curtail | curtail, orders.unserved | unserved)


def _cells(mask: BoolArray) -> frozenset[tuple[int, int]]:
    return frozenset((int(t), int(s)) for t, s in np.argwhere(mask))


def _cut_plan(search: Search, plan: NetworkPlan, excess: FloatArray, slots: IntArray) -> None:
    """A cut in some slots at the plan's own power flow."""
    references, values = references_of(search.problem, plan), shared_values(search.problem, plan)

    def work(slot: int) -> Cut:
        return plan_cut(search, slot, references[slot], values[slot], float(excess[slot]))

    search.plan_cuts += spread(work, slots)


def plan_cut(search: Search, slot: int, reference: Reference, shared: FloatArray, excess: float) -> Cut:
    """A cut at the reference's own shared values, where the power flow shows this excess.

    l exceeds its tangent by delta at most; delta falls until the programme agrees with the power flow. What is left of
    the difference goes into the constant, so that the cut says there what the power flow says.

    Raises:
        ConvergenceError: they do not agree.
    """
    limit = float(forms.current_box(search.problem, slot, 0.0)[1:].max())
    for share in _MAJORANT_FRAC:
        matrices = slot_matrices(search.problem, slot, reference, Tightness(0.0, share * limit))
        answer = solve_slot(search, matrices, shared)
        if answer.ray or abs(answer.objective - excess) <= max(_AGREES_FRAC * abs(excess), LIMIT_TOLERANCE):
            break
    else:
        if abs(answer.objective - excess) > _AGREES_PU:
            raise ConvergenceError(
                f"market: the programme of slot {slot} must show the excess of the power flow, {excess:.3g}, got "
                f"{answer.objective:.3g}; the linearisation does not hold there"
            )
    cut = cut_of(slot, matrices, answer.row_dual, answer.cone_dual, answer.ray)
    if answer.ray:
        return cut
    return replace(cut, constant=cut.constant + excess - float(cut.constant + cut.slope @ shared))


def spread(work: Callable[[int], Any], slots: IntArray) -> list[Any]:
    """Slots are independent: two at a time, as the conic solver leaves other threads running."""
    if len(slots) <= 1:
        return [work(int(slot)) for slot in slots]
    with ThreadPoolExecutor(N_WORKERS) as pool:
        return list(pool.map(work, [int(slot) for slot in slots]))


# -- bounds -----------------------------------------------------------------------------------------------------------


def network_free_bound(search: Search) -> float:
    """No policy costs less, whatever the network does: the linear programme without it, dual residual charged."""
    matrices = day_matrices(search.problem, only(search.problem, search.problem.own))
    found = _relaxed(matrices.compiled.form, search)
    return dual_bound(matrices.compiled.form, found[1])[0]


def _relaxed(form: StandardForm, search: Search) -> tuple[FloatArray, FloatArray]:
    """Point and row duals of the relaxation.

    Raises:
        ConvergenceError: time was over.
    """
    found = solve(Task(form.relaxed()), max(search.left_s, _GRACE_S))
    if found.x is None or found.row_dual is None:
        raise ConvergenceError("market: the linear programme of the day was not solved in time; raise time_limit_s")
    return found.x, found.row_dual


@dataclass(frozen=True, eq=False)
class Narrowed:
    """A problem whose positions stay in given ranges (T, S): what (Q1)-(Q6) read of it (`Network`)."""

    problem: NetworkProblem
    range_kw: tuple[FloatArray, FloatArray]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.problem, name)


def lift_bound(search: Search, references: Sequence[Reference], target_eur: float, cutoff_eur: float = np.inf) -> float:
    """A bound of the network-constrained day: cuts of the relaxation, linearised at the references, until no slot's
    programme exceeds its limits, the bound reaches the target, nothing is gained any more, or time is over. The
    positions of the last master stay in ``search.lifted_kw``.

    cutoff_eur: cost of a plan at hand. Positions in slots that hold the bound are narrowed to what costs no more: the
    chords of (Q4) get shorter, and cuts begin again. What is narrowed away costs more than the plan.
    """
    problem, best = search.problem, -np.inf
    matrices, ranges = day_matrices(problem, problem.admissible), position_range_kw(problem)
    for _ in range(N_NARROWINGS if np.isfinite(cutoff_eur) else 1):
        now, x, row_dual = _lift(search, Narrowed(problem, ranges), matrices, references, target_eur)
        gained, best = now - best, max(best, min(now, cutoff_eur))
        search.lifted_kw = x[matrices.shared][:, : problem.n_stations]
        reached = best >= min(target_eur, cutoff_eur)  # no point of the master costs less than a cutoff that is reached
        if reached or gained <= _least_gain_eur(search) or search.left_s <= 0.0:
            break
        slots, around = _holding_slots(search, matrices, row_dual), _AROUND_FRAC * scale_eur(problem, cutoff_eur)
        ranges = _narrowed(search, matrices, ranges, slots, cutoff_eur + around)
        matrices = _within(matrices, ranges)
    return best


def _least_gain_eur(search: Search) -> float:
    """What another step of a search must gain."""
    return _SETTLED_FRAC * search.gap * scale_eur(search.problem, 0.0)


def _lift(
    search: Search, network: Narrowed, matrices: DayMatrices, references: Sequence[Reference], target_eur: float
) -> tuple[float, FloatArray, FloatArray]:
    """The bound after rounds of cuts, with the point and the row duals of the last master."""
    slots: dict[int, SlotMatrices] = {}
    bounds: list[float] = []
    while True:
        form = with_cuts(matrices.compiled.form, matrices.shared, search.bound_cuts)
        x, row_dual = _relaxed(form, search)
        bounds.append(dual_bound(form, row_dual)[0])
        stalled = len(bounds) > _PATIENCE and max(bounds) - max(bounds[:-_PATIENCE]) <= _least_gain_eur(search)
        if max(bounds) >= target_eur or search.left_s <= 0.0 or stalled or len(bounds) == MAX_ROUNDS:
            break
        fresh = [cut for cut in _bound_cuts(search, network, references, x[matrices.shared], slots) if cut is not None]
        if not fresh:
            break
        search.bound_cuts += fresh
    return max(bounds), x, row_dual


def _holding_slots(search: Search, matrices: DayMatrices, row_dual: FloatArray) -> IntArray:
    """Slots of which a cut holds the master."""
    first = len(matrices.compiled.form.row_lower)
    held = {cut.slot for cut, dual in zip(search.bound_cuts, row_dual[first:].tolist(), strict=False) if dual > 1e-9}
    return np.array(sorted(held), dtype=np.int64)


def _narrowed(
    search: Search, matrices: DayMatrices, ranges: tuple[FloatArray, FloatArray], slots: IntArray, cutoff_eur: float
) -> tuple[FloatArray, FloatArray]:
    """Ranges (T, S) of positions in some slots under which the relaxed master may still cost no more than the cutoff:
    proven by duals, as any bound."""
    form = with_cuts(matrices.compiled.form, matrices.shared, search.bound_cuts).relaxed()
    form = replace(_with_cost_row(form, cutoff_eur), offset=0.0)
    least, largest = ranges[0].copy(), ranges[1].copy()
    cells = [(int(t), s) for t in slots for s in range(search.problem.n_stations) if largest[t, s] > least[t, s]]
    tasks = []
    for cell in cells:
        unit = np.zeros_like(form.cost)
        unit[matrices.shared[cell]] = 1.0
        tasks += [Task(replace(form, cost=unit)), Task(replace(form, cost=-unit))]
    answers = solve_all(tasks, search.left_s)
    reached = [
        -np.inf if answer.row_dual is None else dual_bound(task.form, answer.row_dual)[0]
        for task, answer in zip(tasks, answers, strict=True)
    ]
    for cell, low, minus_high in zip(cells, reached[::2], reached[1::2], strict=True):
        least[cell] = np.clip(low - _AROUND_KW, least[cell], largest[cell])
        largest[cell] = np.clip(-minus_high + _AROUND_KW, least[cell], largest[cell])
    return least, largest


def _with_cost_row(form: StandardForm, cutoff_eur: float) -> StandardForm:
    """The form with a last row: its cost is at most the cutoff."""
    from scipy.sparse import csc_array, csr_array, vstack

    n = len(form.cost)
    matrix = csc_array((form.value, form.index, form.start), shape=(len(form.row_lower), n))
    whole = csc_array(vstack([matrix, csr_array(-form.cost[None])], format="csc"))
    return _with_rows(form, whole, np.array([form.offset - cutoff_eur]))


def _within(matrices: DayMatrices, ranges: tuple[FloatArray, FloatArray]) -> DayMatrices:
    """The master with positions in given ranges (T, S)."""
    form, columns = matrices.compiled.form, matrices.shared[:, : ranges[0].shape[1]]
    low, high = form.col_lower.copy(), form.col_upper.copy()
    low[columns], high[columns] = ranges
    return replace(matrices, compiled=replace(matrices.compiled, form=replace(form, col_lower=low, col_upper=high)))


def _bound_cuts(
    search: Search,
    network: Narrowed,
    references: Sequence[Reference],
    values: FloatArray,
    slots: dict[int, SlotMatrices],
) -> list[Cut | None]:
    """A cut for every slot whose relaxation exceeds the limits at the master's values (T, P).

    Where the power flow keeps the wider limits of the bound there, so does the relaxation but for the error of its
    linearisation: such slots are left out, which can only lower the bound.
    """

    def work(slot: int) -> Cut | None:
        if slot not in slots:
            slots[slot] = slot_matrices(network, slot, references[slot], Tightness(BOUND_SLACK))
        answer = solve_slot(search, slots[slot], values[slot])
        if not answer.ray and answer.objective <= CUT_TOLERANCE:
            return None
        cut = cut_of(slot, slots[slot], answer.row_dual, answer.cone_dual, answer.ray)
        return cut if cut.constant + float(cut.slope @ values[slot]) > CUT_TOLERANCE else None

    return spread(work, np.flatnonzero(_relaxed_excess(search.problem, values) > CUT_TOLERANCE))


def _relaxed_excess(problem: NetworkProblem, values: FloatArray) -> FloatArray:
    """(T,) excess over the bound's limits by the power flow at shared values (T, P), fractions of devices too."""
    n, first, steps = problem.n_stations, problem.n_stations + 1, []
    for bank in problem.devices.banks:
        steps.append(values[:, first : first + bank.n_steps].sum(axis=1))
        first += bank.n_steps
    kvar = steps_kvar(problem, np.stack(steps, axis=1) if steps else np.zeros((len(values), 0)))
    limits = widened(problem.limits, BOUND_SLACK)
    return excess_at(problem, limits, values[:, :n], np.sqrt(values[:, n]), kvar)
