"""Second opinions on the market with its network: (Q1) to (Q6) of all slots at once, solved without decomposition.

The day's programme in one piece, the order of (N3) and the positions of the devices with their binaries, goes either to
HiGHS, with tangents in the place of the cones, added until the cones hold, or to a solver that knows cones (SCIP;
Gurobi and MOSEK where licensed). Neither shares a cut, a dual or a bound with the decomposition. Meant for a few slots:
`window` cuts them out of a day.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from evcs_gym.baselines.certificate import SolutionStatus, relative_gap
from evcs_gym.baselines.cone_solvers import CONE_SOLVERS, solve_cones
from evcs_gym.baselines.decomposition import (
    DayMatrices,
    Search,
    cone_rows,
    find_plan,
    lift_bound,
    network_free_bound,
    plan_of,
    references_of,
)
from evcs_gym.baselines.forms.network import BOUND_SLACK, Reference, Tightness, self_impedance_pu, whole_form
from evcs_gym.baselines.problems.market import executed
from evcs_gym.baselines.problems.network import (
    NetworkPlan,
    NetworkProblem,
    common_excess,
    cost_eur,
    rows_of_limits,
    scale_eur,
)
from evcs_gym.baselines.solvers import (
    SecondOrderRows,
    StandardForm,
    Status,
    Task,
    compile_model,
    solve,
    solver_version,
)
from evcs_gym.envs.errors import ConfigError, ConvergenceError
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import PHASE_BASE_KVA, SLOT_H

TANGENT: Final = "tangent"
SECOND_SOLVERS: Final = (TANGENT, *CONE_SOLVERS)
"""Ways to a second opinion."""
GAP: Final = 1e-6
"""Relative gap that is asked for."""
AGREED: Final = 1e-4
"""Share of the cost by which one way's bound may exceed the other's cost."""
MAX_REFRESHES: Final = 4
SETTLED_PU: Final = 1e-6
"""Voltages of reference and plan that differ by less are the same."""
CONE_TOLERANCE: Final = 2e-6
"""By how much a cone may be missed, in pu: twice what HiGHS lets a row of a MILP miss."""
_ROUGH: Final = 1e-4
"""The same while whole numbers are relaxed."""
_GRACE_S: Final = 2.0
"""Time for a bound when time is over."""
_LOSS_EUR_PER_KWH: Final = 1e-5
"""Price of losses while points are sought."""
_LEAST_OHM_PU: Final = 1e-3
"""Branches of less resistance are priced as if they had this."""
_SMALL: Final = 1e-7
"""Entries of a tangent below are charged at their largest value: HiGHS drops them."""


@dataclass(frozen=True, eq=False)
class SecondOpinion:
    """What another solver says of a day, or of some slots of it.

    bound_eur: no point of the programme costs less, in the solver's own tolerance; limits are wider by what (N4)
    allows, as in the bound of the decomposition. cost_eur: of its plan by the problem's own numpy, infinite without
    one. status: ``optimal`` where both agree and the references are those of the plan, or were given. excess: of the
    plan in the nonlinear power flow over the exact limits, as in `common_excess`; above what (N4) allows the relaxation
    is loose and the plan impossible. mismatch_pu: largest difference between the voltages of the plan and of its
    reference. n_programmes solved; n_tangents in the last one.
    """

    solver: str
    solver_version: str
    bound_eur: float
    cost_eur: float
    status: str
    seconds: float
    plan: NetworkPlan | None
    excess: float
    mismatch_pu: float
    n_refreshes: int
    n_programmes: int
    n_tangents: int

    def as_dict(self) -> dict[str, Any]:
        """The opinion as plain numbers and strings, without the plan; None for what there is not."""
        names = (name for name in type(self).__dataclass_fields__ if name != "plan")
        values = {name: getattr(self, name) for name in names}
        return {n: None if isinstance(v, float) and not np.isfinite(v) else v for n, v in values.items()}


@dataclass(frozen=True, eq=False)
class _Answer:
    """Of one programme: a point or None, a bound, whether the solver ended in time."""

    x: FloatArray | None
    bound: float
    in_time: bool
    version: str
    n_programmes: int = 1
    n_tangents: int = 0


def second_opinion(
    problem: NetworkProblem,
    solver: str = TANGENT,
    time_limit_s: float = 60.0,
    references: Sequence[Reference] | None = None,
) -> SecondOpinion:
    """Solve the whole programme of a few slots and say what comes out.

    Args:
        solver: one of `SECOND_SOLVERS`; "tangent" is HiGHS with tangents of the cones.
        references: what each slot is linearised at; by default the power flow of idle stations, then that of the plan,
            until both agree.

    Raises:
        ConfigError: an unknown solver, no time. InfeasibleError: no positions keep the limits. ConvergenceError: no
            power flow at a plan. SolverError: the solver is missing, has no licence, or failed.
    """
    if solver not in SECOND_SOLVERS:
        raise ConfigError(f"second opinion: solver must be one of {', '.join(SECOND_SOLVERS)}, got {solver!r}")
    if not 0.0 < time_limit_s < float("inf"):
        raise ConfigError(f"second opinion: time_limit_s must be a positive number of seconds, got {time_limit_s}")
    began = time.monotonic()
    end, n_programmes, mismatch = began + time_limit_s, 0, np.inf
    at = _idle_references(problem) if references is None else list(references)
    last = MAX_REFRESHES if references is None else 0
    for n_refreshes in range(last + 1):  # noqa: B007
        answer, matrices = _programme(problem, solver, at, end)
        n_programmes += answer.n_programmes
        plan = None if answer.x is None else plan_of(problem, matrices, answer.x)
        if plan is None:
            break
        fresh = references_of(problem, plan)
        mismatch = _difference_pu(fresh, at)
        if mismatch <= SETTLED_PU or time.monotonic() >= end:
            break
        at = fresh
    cost = np.inf if plan is None else cost_eur(problem, plan)
    closed = plan is not None and relative_gap(cost, answer.bound, scale_eur(problem, cost)) <= 10.0 * GAP
    settled = references is not None or mismatch <= SETTLED_PU
    in_time = answer.in_time and (settled or time.monotonic() < end)
    late = SolutionStatus.GAP_OPEN if in_time else SolutionStatus.TIME_LIMIT
    return SecondOpinion(
        solver=solver,
        solver_version=answer.version,
        bound_eur=answer.bound,
        cost_eur=cost,
        status=str(SolutionStatus.OPTIMAL if closed and settled else late),
        seconds=time.monotonic() - began,
        plan=plan,
        excess=np.inf if plan is None else float(common_excess(problem, plan).max()),
        mismatch_pu=mismatch,
        n_refreshes=n_refreshes,
        n_programmes=n_programmes,
        n_tangents=answer.n_tangents,
    )


def window(problem: NetworkProblem, first: int, n_slots: int) -> NetworkProblem:
    """Some slots as a day of their own: stores and devices stand at its beginning as at the day's.

    Raises:
        ConfigError: slots that the day does not have.
    """
    if first < 0 or n_slots < 1 or first + n_slots > problem.n_slots:
        raise ConfigError(
            f"second opinion: slots must lie in 0..{problem.n_slots - 1}, got {n_slots} from slot {first} on"
        )
    rows, market = slice(first, first + n_slots), problem.market
    names = ("import_eur_per_kwh", "export_eur_per_kwh", "pv_kw", "ev_kw")
    return replace(
        problem,
        market=replace(market, **{name: getattr(market, name)[rows] for name in names}),
        load_kva=problem.load_kva[rows],
        limits=rows_of_limits(problem.limits, np.arange(first, first + n_slots)),
        admissible=problem.admissible[rows],
        own=problem.own[rows],
    )


@dataclass(frozen=True, eq=False)
class TwoOpinions:
    """Some slots of a day by the decomposition and by another solver.

    first_slot, n_slots: which. lower_bound_eur, cost_eur: of the decomposition on these slots. agree: no bound of one
    lies above the cost of the other by more than `AGREED` of it.
    """

    first_slot: int
    n_slots: int
    lower_bound_eur: float
    cost_eur: float
    second: SecondOpinion

    @property
    def agree(self) -> bool:
        """See the class."""
        room = AGREED * max(1.0, abs(self.cost_eur))
        return self.second.bound_eur <= self.cost_eur + room and self.lower_bound_eur <= self.second.cost_eur + room

    def as_dict(self) -> dict[str, Any]:
        """Both opinions as plain numbers and strings."""
        own = {name: getattr(self, name) for name in ("first_slot", "n_slots", "lower_bound_eur", "cost_eur", "agree")}
        return {**own, "second": self.second.as_dict()}


def two_opinions(
    problem: NetworkProblem, plan: NetworkPlan, solver: str = TANGENT, n_slots: int = 2, time_limit_s: float = 60.0
) -> TwoOpinions:
    """Both ways on the slots around the one in which a plan of the day leaves the least room to a limit.

    Raises:
        ConvergenceError: no plan of the slots before time was over. What `second_opinion` and `window` raise.
    """
    tight = int(common_excess(problem, plan).argmax())
    first = min(max(tight - n_slots // 2, 0), max(problem.n_slots - n_slots, 0))
    part = window(problem, first, n_slots)
    search = Search(part, GAP, time.monotonic() + time_limit_s)
    free = network_free_bound(search)
    own = find_plan(search, part.admissible)
    if own is None:
        raise ConvergenceError("second opinion: time was over before the decomposition had a plan; raise time_limit_s")
    references = references_of(part, own)
    bound = max(free, lift_bound(search, references, cost_eur(part, own)))
    return TwoOpinions(first, n_slots, bound, cost_eur(part, own), second_opinion(part, solver, time_limit_s))


def _idle_references(problem: NetworkProblem) -> list[Reference]:
    """The power flow of stations whose storage rests, under the day's own devices."""
    idle = executed(problem.market, np.zeros_like(problem.market.pv_kw))
    return references_of(problem, NetworkPlan(idle, problem.own))


def _difference_pu(one: Sequence[Reference], other: Sequence[Reference]) -> float:
    """Largest difference of a voltage."""
    return max(float(np.abs(a.voltage_pu - b.voltage_pu).max()) for a, b in zip(one, other, strict=True))


def _programme(
    problem: NetworkProblem, solver: str, references: Sequence[Reference], end: float
) -> tuple[_Answer, DayMatrices]:
    """The whole programme at given references."""
    form, cones = whole_form(problem, references, Tightness(BOUND_SLACK))
    compiled = compile_model(form.stations.model)
    shared = np.array([compiled.columns(variables) for variables in form.shared])
    rows, left_s = cone_rows(cones, compiled), max(end - time.monotonic(), 0.1)
    matrices = DayMatrices(compiled, form, shared)
    if solver == TANGENT:
        guess = partial(_point_of_plan, problem, matrices)
        start = _point_of(problem, matrices, references, problem.own)
        return solve_by_tangents(compiled.form, rows, left_s, start, guess, _loss_eur(problem, matrices)), matrices
    found = solve_cones(solver, compiled.form, rows, left_s, GAP)
    answer = _Answer(found.x, found.bound, found.status is Status.OPTIMAL, found.version)
    return answer, matrices


def _loss_eur(problem: NetworkProblem, matrices: DayMatrices) -> FloatArray:
    """(n,) a small price of losses on every l."""
    cost, model = np.zeros(len(matrices.compiled.form.cost)), matrices.form.stations.model
    resistance = np.maximum(self_impedance_pu(problem.feeder).real, _LEAST_OHM_PU)
    price = SLOT_H * PHASE_BASE_KVA * _LOSS_EUR_PER_KWH * resistance
    for t in range(problem.n_slots):
        variables = model.network[t].l
        cost[matrices.compiled.columns(list(variables.values()))] = [price[bus] for bus, _ in variables]
    return cost


def _point_of_plan(problem: NetworkProblem, matrices: DayMatrices, x: FloatArray) -> FloatArray:
    """The power flow of the plan in a point."""
    plan = plan_of(problem, matrices, x)
    return _point_of(problem, matrices, references_of(problem, plan), plan.devices)


def _point_of(
    problem: NetworkProblem, matrices: DayMatrices, references: Sequence[Reference], devices: IntArray
) -> FloatArray:
    """(n,) P, Q, v, l and head voltages of power flows; nothing else is set."""
    x, model = np.zeros(len(matrices.compiled.form.cost)), matrices.form.stations.model
    head, parent = problem.head_pu[devices] ** 2, problem.feeder.parent
    for t, reference in enumerate(references):
        net, cells = model.network[t], list(model.network[t].v)
        power = reference.voltage_pu[parent] * np.conj(reference.current_pu)
        found = {
            "P": power.real,
            "Q": power.imag,
            "v": abs(reference.voltage_pu) ** 2,
            "l": abs(reference.current_pu) ** 2,
        }
        for name, values in found.items():
            columns = matrices.compiled.columns([getattr(net, name)[cell] for cell in cells])
            x[columns] = [values[cell] for cell in cells]
        x[matrices.shared[t, problem.n_stations]] = head[t]
    return x


# -- tangents ---------------------------------------------------------------------------------------------------------


def solve_by_tangents(
    form: StandardForm,
    cones: SecondOrderRows,
    time_limit_s: float,
    start: FloatArray,
    guess: Callable[[FloatArray], FloatArray],
    nudge: FloatArray,
) -> _Answer:
    """A programme with cones by linear ones: tangents where the last point misses a cone, until none is missed.

    Whole numbers are relaxed until the cones hold roughly. Points are sought with ``nudge`` (n,) added to the cost: the
    programme itself does not care how large most variables of the cones are, and its points would wander. The bound is
    that of the last tangents without it. The point is None where a cone is still missed when time is over. start: a
    point (n,) with tangents of all cones; guess: makes another one of every point found.
    """
    end, n_programmes, whole = time.monotonic() + time_limit_s, 0, not form.integer.any()
    now = _with_rows(replace(form, cost=form.cost + nudge), *tangents(form, cones, start, -np.inf))
    x = None
    while x is None:
        found = solve(_task(now if whole else now.relaxed(), 10.0 * GAP), end - time.monotonic())
        n_programmes += 1
        if found.x is None or found.status is not Status.OPTIMAL:
            break
        matrix, lower = tangents(form, cones, found.x, CONE_TOLERANCE if whole else _ROUGH)
        if len(lower):
            now = _with_rows(now, matrix, lower)
            now = _with_rows(now, *tangents(form, cones, guess(found.x), -np.inf))
        elif whole:
            x = found.x
        whole = whole or len(lower) == 0
    proof = solve(_task(replace(now, cost=form.cost), 0.1 * GAP), max(end - time.monotonic(), _GRACE_S))
    n_tangents = len(now.row_lower) - len(form.row_lower)
    in_time = x is not None and proof.status is Status.OPTIMAL
    return _Answer(x, proof.bound, in_time, solver_version(), n_programmes + 1, n_tangents)


def _task(form: StandardForm, relative_gap: float) -> Task:
    """Without presolve: that of HiGHS 1.15 calls many nearly parallel tangents a contradiction where there is none."""
    return Task(form, relative_gap=relative_gap, presolve=False)


def tangents(form: StandardForm, cones: SecondOrderRows, x: FloatArray, tolerance: float) -> tuple[Any, FloatArray]:
    """Rows a x >= b, as a matrix (K, n) and b (K,), for the K cones that a point (n,) misses by more than that.

    With u the direction of the other rows r at the point, first(x) >= |r(x)| implies first(x) >= u r(x).
    """
    from scipy.sparse import csr_matrix

    n, n_rows = len(form.cost), len(cones.constant)
    sides = csr_matrix((cones.value, (cones.row, cones.column)), shape=(n_rows, n))
    at = cones.constant + sides @ x
    first = np.concatenate([[0], np.cumsum(cones.size)[:-1]]).astype(np.int64)
    norm = np.sqrt(np.maximum(np.add.reduceat(at**2, first) - at[first] ** 2, 0.0))
    missed = np.flatnonzero((norm - at[first] > tolerance) & (norm > 0.0))
    row: list[int] = []
    column: list[int] = []
    weight: list[float] = []
    for number, cone in enumerate(missed.tolist()):
        begin, stop = first[cone], first[cone] + cones.size[cone]
        row += [number] * (stop - begin)
        column += range(begin, stop)
        weight += [1.0, *(-at[begin + 1 : stop] / norm[cone]).tolist()]
    chosen = csr_matrix((weight, (row, column)), shape=(len(missed), n_rows))
    return _without_small(form, (chosen @ sides).tocsr(), -np.asarray(chosen @ cones.constant, dtype=np.float64))


def _without_small(form: StandardForm, matrix: Any, lower: FloatArray) -> tuple[Any, FloatArray]:
    """Rows a x >= b without their small entries, whose largest values are taken off b."""
    small = np.abs(matrix.data) < _SMALL
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    most = np.where(matrix.data > 0.0, form.col_upper[matrix.indices], form.col_lower[matrix.indices]) * matrix.data
    right = lower - np.bincount(row[small], weights=most[small], minlength=len(lower))
    matrix.data[small] = 0.0
    matrix.eliminate_zeros()
    return matrix, np.asarray(right)


def _with_rows(form: StandardForm, matrix: Any, lower: FloatArray) -> StandardForm:
    """The programme with rows matrix x >= lower below its own."""
    from scipy.sparse import csc_array, vstack

    own = csc_array((form.value, form.index, form.start), shape=(len(form.row_lower), len(form.cost)))
    whole = csc_array(vstack([own, matrix], format="csc"))
    return replace(
        form,
        start=whole.indptr.astype(np.int64),
        index=whole.indices.astype(np.int64),
        value=whole.data,
        row_lower=np.concatenate([form.row_lower, lower]),
        row_upper=np.concatenate([form.row_upper, np.full(len(lower), np.inf)]),
    )
