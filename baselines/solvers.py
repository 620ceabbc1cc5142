"""Who solves: find, probe, limit and run the solver; the only file that names HiGHS and Clarabel.

A Pyomo model becomes matrices once (`compile_model`), the matrices go to a child process that runs HiGHS and can be
killed (`solve`, `solve_all`). The child runs this very file as a program, so that it starts in a fraction of a second
and never imports the caller's ``__main__``: therefore nothing of the project, of Pyomo or of SciPy is imported at the
top of this file.
"""

import atexit
import contextlib
import importlib
import math
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from evcs_gym.envs.errors import InfeasibleError, SolverError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

SOLVER_NAME = "HiGHS"
START_LIMIT_S = 60.0
"""Longest time in which a child must have started: a loaded machine reads its libraries slowly."""
KILL_AFTER_S = 2.0
"""A child that has not answered this long after its time limit is killed: HiGHS looks at its clock between nodes."""
N_WORKERS = 2
CONIC_TOLERANCE = 1e-10
"""Gap and feasibility that the conic solver is asked for; what it reaches is proven by the caller."""
SECOND_ORDER_TOLERANCE = 1e-9
"""The same of second-order programmes of the network: at 1e-10 a third of them stops short of it."""


class Status(StrEnum):
    """How a solve ended. ``TIME_LIMIT`` may come with a solution and a bound, and then both are valid."""

    OPTIMAL = "optimal"
    TIME_LIMIT = "time_limit"


@dataclass(frozen=True, eq=False)
class StandardForm:
    """min cost x + offset, row_lower <= A x <= row_upper, col_lower <= x <= col_upper, x integer where ``integer``.

    A is stored by columns: entries start[j]:start[j+1] of ``index`` (row) and ``value`` belong to column j. n columns,
    m rows: cost, col_lower, col_upper, integer (n,); row_lower, row_upper (m,); start (n + 1,); index, value (nnz,).
    """

    cost: FloatArray
    offset: float
    start: IntArray
    index: IntArray
    value: FloatArray
    row_lower: FloatArray
    row_upper: FloatArray
    col_lower: FloatArray
    col_upper: FloatArray
    integer: BoolArray

    def relaxed(self) -> "StandardForm":
        """The same without integrality."""
        return replace(self, integer=np.zeros_like(self.integer))

    def fixed(self, columns: BoolArray, x: FloatArray) -> "StandardForm":
        """The same with the marked columns (n,) fixed at their values in ``x`` (n,)."""
        return replace(
            self,
            col_lower=np.where(columns, x, self.col_lower),
            col_upper=np.where(columns, x, self.col_upper),
        )

    def objective(self, x: FloatArray) -> float:
        """Objective of a point (n,)."""
        return float(self.cost @ x + self.offset)


@dataclass(frozen=True, eq=False)
class Compiled:
    """A Pyomo model as matrices; `columns` finds its variables, `rows` its constraints."""

    form: StandardForm
    column_of: dict[int, int]
    row_of: dict[int, int]

    def columns(self, variables: Sequence[Any]) -> IntArray:
        """Column of each Pyomo variable."""
        return np.array([self.column_of[id(variable)] for variable in variables], dtype=np.int64)

    def rows(self, constraints: Sequence[Any]) -> IntArray:
        """Row of each Pyomo constraint; of one with two different sides the last."""
        return np.array([self.row_of[id(constraint)] for constraint in constraints], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Basis:
    """Where a simplex ended: the solver's numbers for columns (n,) and rows (m,). A programme of the same matrix with
    other costs and bounds starts from there."""

    column: NDArray[np.int8]
    row: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Task:
    """One solve: what, and when to stop (relative gap of the objective, absolute gap in its unit, start point).

    presolve: whether the solver may simplify the programme first. basis: where to start, for programmes without
    integers. keep_basis: whether the result has one.
    """

    form: StandardForm
    relative_gap: float = 0.0
    absolute_gap: float = 0.0
    start: FloatArray | None = None
    presolve: bool = True
    basis: Basis | None = None
    keep_basis: bool = False


@dataclass(frozen=True, eq=False)
class Result:
    """Answer of a solver. x: (n,) or None where none was found. bound: no x of the programme costs less, in the
    solver's own tolerance (-inf where unknown). row_dual: (m,), for programmes without integers, else None.
    """

    x: FloatArray | None
    row_dual: FloatArray | None
    objective: float
    bound: float
    status: Status
    seconds: float
    n_nodes: int
    basis: Basis | None = None


@dataclass(frozen=True)
class SolverInfo:
    """What `probe` found: name, version, whether a real LP and a real MILP came out right, and why not."""

    name: str
    version: str
    ok: bool
    detail: str


def compile_model(model: Any) -> Compiled:
    """Matrices of a linear Pyomo model; minimisation only.

    Raises:
        ConfigError: the model maximises.
    """
    from pyomo.core import minimize
    from pyomo.repn.plugins.standard_form import LinearStandardFormCompiler

    from evcs_gym.envs.errors import ConfigError

    info = LinearStandardFormCompiler().write(model, mixed_form=True)
    if info.objectives[0].sense != minimize:
        raise ConfigError(f"{model.name}: the objective must be minimised, got a maximisation; negate it")
    bound_type = np.array([row.bound_type for row in info.rows], dtype=np.int64)  # -1: >=, 0: =, 1: <=
    rhs = np.asarray(info.rhs, dtype=np.float64)
    lower = [-np.inf if variable.lb is None else variable.lb for variable in info.columns]
    upper = [np.inf if variable.ub is None else variable.ub for variable in info.columns]
    form = StandardForm(
        cost=np.asarray(info.c.todense(), dtype=np.float64).ravel(),
        offset=float(np.asarray(info.c_offset).ravel()[0]),
        start=info.A.indptr.astype(np.int64),
        index=info.A.indices.astype(np.int64),
        value=info.A.data.astype(np.float64),
        row_lower=np.where(bound_type <= 0, rhs, -np.inf),
        row_upper=np.where(bound_type >= 0, rhs, np.inf),
        col_lower=np.array(lower, dtype=np.float64),
        col_upper=np.array(upper, dtype=np.float64),
        integer=np.array([not variable.is_continuous() for variable in info.columns], dtype=np.bool_),
    )
    return Compiled(
        form,
        {id(variable): column for column, variable in enumerate(info.columns)},
        {id(row.constraint): number for number, row in enumerate(info.rows)},
    )


def components(form: StandardForm) -> list[tuple[StandardForm, IntArray]]:
    """Independent parts of a programme, each with its columns in the whole; the first one carries the offset."""
    from scipy.sparse import csc_array
    from scipy.sparse.csgraph import connected_components

    n_rows, n_columns = len(form.row_lower), len(form.cost)
    matrix = csc_array((form.value, form.index, form.start), shape=(n_rows, n_columns))
    column = np.repeat(np.arange(n_columns), np.diff(form.start))
    ones = np.ones(len(column), dtype=np.int8)
    graph = csc_array((ones, (form.index, n_rows + column)), shape=(n_rows + n_columns, n_rows + n_columns))
    label: IntArray = connected_components(graph, directed=False)[1].astype(np.int64)
    lonely = np.flatnonzero(np.diff(form.start) == 0)
    if len(lonely):  # columns without rows are one part together: each alone would be a solve
        label[n_rows + lonely] = label[n_rows + lonely[0]]
    names, label = np.unique(label, return_inverse=True)
    n_parts = len(names)
    parts = []
    for part in range(n_parts):
        rows = np.flatnonzero(label[:n_rows] == part)
        columns = np.flatnonzero(label[n_rows:] == part)
        inner = matrix[:, columns].tocsr()[rows].tocsc()
        parts.append(
            (
                StandardForm(
                    cost=form.cost[columns],
                    offset=form.offset if part == 0 else 0.0,
                    start=inner.indptr.astype(np.int64),
                    index=inner.indices.astype(np.int64),
                    value=inner.data,
                    row_lower=form.row_lower[rows],
                    row_upper=form.row_upper[rows],
                    col_lower=form.col_lower[columns],
                    col_upper=form.col_upper[columns],
                    integer=form.integer[columns],
                ),
                columns,
            )
        )
    return parts


def priced(form: StandardForm, rows: IntArray, row_dual: FloatArray) -> StandardForm:
    """The programme in which some rows (R,) of the form a x >= b are replaced by their price: + dual (b - a x).

    For duals >= 0 its optimum is a lower bound of the programme's (Lagrange), with integers too, and it may fall apart.
    """
    price = np.zeros(len(form.row_lower))
    price[rows] = np.maximum(row_dual, 0.0)
    column = np.repeat(np.arange(len(form.cost)), np.diff(form.start))
    kept_row = np.ones(len(price), dtype=np.bool_)
    kept_row[rows] = False
    kept = kept_row[form.index]
    count = np.bincount(column[kept], minlength=len(form.cost))
    return replace(
        form,
        cost=form.cost - np.bincount(column, weights=form.value * price[form.index], minlength=len(form.cost)),
        offset=form.offset + float(price[rows] @ form.row_lower[rows]),
        start=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        index=(np.cumsum(kept_row) - 1)[form.index[kept]],
        value=form.value[kept],
        row_lower=form.row_lower[kept_row],
        row_upper=form.row_upper[kept_row],
    )


def solve(task: Task, time_limit_s: float) -> Result:
    """Solve in a child process that is killed ``KILL_AFTER_S`` after its time limit.

    Raises:
        DataError: NaN in the programme.
        InfeasibleError: the programme has no feasible point.
        SolverError: the solver is missing, died, or ended with a status that proves nothing (named in the message).
    """
    check_numbers(task.form)
    if time_limit_s <= 0.0:
        return _nothing(0.0)
    began = time.perf_counter()
    with _worker() as worker:
        reply = worker.ask(_request(task, time_limit_s), time_limit_s + KILL_AFTER_S)
    seconds = time.perf_counter() - began
    if reply is None:
        return _nothing(seconds)
    if reply["status"] == "infeasible":
        raise infeasible_error(task.form)
    if reply["status"] not in set(Status):
        raise _solver_error(f"ended with status {reply['status']!r} ({reply['detail']}), which proves nothing")
    return Result(
        x=reply["x"],
        row_dual=reply["row_dual"],
        objective=reply["objective"],
        bound=reply["bound"],
        status=Status(reply["status"]),
        seconds=seconds,
        n_nodes=reply["n_nodes"],
        basis=None if reply["basis"] is None else Basis(*reply["basis"]),
    )


def _request(task: Task, time_limit_s: float) -> dict[str, Any]:
    """What a child is asked for, in plain arrays and numbers."""
    return {
        **{name: getattr(task.form, name) for name in StandardForm.__dataclass_fields__},
        "time_limit_s": time_limit_s,
        "relative_gap": task.relative_gap,
        "absolute_gap": task.absolute_gap,
        "start_x": task.start,
        "presolve": task.presolve,
        "basis": None if task.basis is None else (task.basis.column, task.basis.row),
        "keep_basis": task.keep_basis,
    }


def solve_all(tasks: Sequence[Task], time_limit_s: float, n_workers: int = N_WORKERS) -> list[Result]:
    """`solve` of several tasks in parallel, answers in their order; the time limit is for all of them together."""
    if len(tasks) <= 1 or n_workers <= 1:
        end = time.monotonic() + time_limit_s
        return [solve(task, end - time.monotonic()) for task in tasks]
    end = time.monotonic() + time_limit_s
    with ThreadPoolExecutor(min(n_workers, len(tasks))) as pool:
        futures = [pool.submit(lambda task: solve(task, end - time.monotonic()), task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:  # an interrupt too: threads that wait for a child end only when the child does
            for future in futures:
                future.cancel()
            stop_workers()
            raise


@dataclass(frozen=True)
class ConicRows:
    """Three affine rows, constant + factor x[column] (-1: no column), that lie in a cone.

    ``power``: row0^alpha row1^(1 - alpha) >= |row2|. ``exponential``: row1 exp(row0 / row1) <= row2.
    """

    kind: str
    alpha: float
    constant: tuple[float, ...]
    column: tuple[int, ...]
    factor: tuple[float, ...]


def solve_conic(form: StandardForm, cones: Sequence[ConicRows], time_limit_s: float) -> tuple[FloatArray, str]:
    """A point (n,) of a programme with cones, and the solver's name and version; the caller proves how good it is.

    Clarabel runs in this process: it looks at its clock in every iteration, and an iteration is short.

    Raises:
        DataError: NaN in the programme.
        InfeasibleError: the programme has no feasible point.
        SolverError: the solver is missing or ended with a status that proves nothing.
    """
    from evcs_gym.envs.errors import SolverError

    check_numbers(form)
    clarabel = _clarabel()
    from scipy.sparse import csc_matrix

    rows, right, kinds = _conic_rows(clarabel, form, cones)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.time_limit = float(time_limit_s)
    settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = CONIC_TOLERANCE
    n = len(form.cost)
    found = clarabel.DefaultSolver(csc_matrix((n, n)), form.cost, rows, right, kinds, settings).solve()
    status = str(found.status)
    if status in ("PrimalInfeasible", "AlmostPrimalInfeasible"):
        raise infeasible_error(form, "Clarabel")
    if status not in ("Solved", "AlmostSolved", "InsufficientProgress"):
        raise SolverError(f"solver Clarabel: ended with status {status!r}, which proves nothing; raise time_limit_s")
    return np.array(found.x), f"Clarabel {clarabel.__version__}"


def _conic_rows(clarabel: Any, form: StandardForm, cones: Sequence[ConicRows]) -> tuple[Any, FloatArray, list[Any]]:
    """Rows, right sides and cones of right - rows x in cones: equalities, inequalities and boxes, then the cones."""
    from scipy.sparse import csc_matrix, csr_matrix, identity, vstack

    n, m = len(form.cost), len(form.row_lower)
    matrix = csc_matrix((form.value, form.index, form.start), shape=(m, n)).tocsr()
    equal = form.row_lower == form.row_upper
    lower, upper = np.isfinite(form.row_lower) & ~equal, np.isfinite(form.row_upper) & ~equal
    box = identity(n, format="csr")
    below, above = np.isfinite(form.col_lower), np.isfinite(form.col_upper)
    parts = [matrix[equal], -matrix[lower], matrix[upper], -box[below], box[above]]
    right = [
        form.row_lower[equal], -form.row_lower[lower], form.row_upper[upper], -form.col_lower[below],
        form.col_upper[above],
    ]  # fmt: skip
    n_linear = sum(part.shape[0] for part in parts[1:])
    kinds = [clarabel.ZeroConeT(int(equal.sum())), clarabel.NonnegativeConeT(n_linear)]
    used = [(3 * c + k, cone.column[k], cone.factor[k]) for c, cone in enumerate(cones) for k in range(3)]
    entries = [(row, column, -factor) for row, column, factor in used if column >= 0]
    if cones:
        row, column, value = (np.array(values) for values in zip(*entries, strict=True))
        parts.append(csr_matrix((value, (row, column)), shape=(3 * len(cones), n)))
        right.append(np.array([constant for cone in cones for constant in cone.constant]))
    for cone in cones:
        kinds.append(clarabel.PowerConeT(cone.alpha) if cone.kind == "power" else clarabel.ExponentialConeT())
    return vstack(parts, format="csc"), np.concatenate(right), kinds


@dataclass(frozen=True, eq=False)
class SecondOrderRows:
    """Rows constant + G x, stacked cone after cone: the first of each is at least the Euclidean norm of the others.

    constant: (R,). row, column, value: entries of G. size: (C,) rows of each cone.
    """

    constant: FloatArray
    row: IntArray
    column: IntArray
    value: FloatArray
    size: IntArray


@dataclass(frozen=True, eq=False)
class SecondOrderResult:
    """x (n,), row_dual (m,) and cone_dual (R,) of a programme with cones, which the caller turns into proofs.

    ray: the duals prove, up to rounding, that no point keeps all rows, and x means nothing. doubtful: the solver
    stopped short of its tolerance; its duals still give true cuts, its x and objective are to be looked at.
    """

    x: FloatArray
    row_dual: FloatArray
    cone_dual: FloatArray
    objective: float
    ray: bool
    doubtful: bool


_DOUBTFUL = ("AlmostSolved", "InsufficientProgress", "NumericalError", "MaxIterations", "AlmostPrimalInfeasible")


def solve_second_order(form: StandardForm, cones: SecondOrderRows, time_limit_s: float) -> SecondOrderResult:
    """Clarabel on a continuous programme with second-order cones; columns with equal bounds are constants.

    It runs in this process: it looks at its clock in every iteration, an iteration is short, and it leaves other
    threads running. row_dual > 0 belongs to the lower side of a row.

    Raises:
        DataError: NaN in the programme.
        SolverError: the solver is missing or ended with a status that proves nothing.
    """
    clarabel = _clarabel()
    check_numbers(form)
    from scipy.sparse import csc_matrix

    rows, right, kinds, sides, free = _second_order_rows(clarabel, form, cones)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.time_limit = float(time_limit_s)
    settings.max_threads = 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = SECOND_ORDER_TOLERANCE
    n_free = int(free.sum())
    found = clarabel.DefaultSolver(csc_matrix((n_free, n_free)), form.cost[free], rows, right, kinds, settings).solve()
    status = str(found.status)
    doubtful = status in _DOUBTFUL
    if status not in ("Solved", "PrimalInfeasible") and not doubtful:
        from evcs_gym.envs.errors import SolverError

        raise SolverError(f"solver Clarabel: ended with status {status!r}, which proves nothing; raise time_limit_s")
    x = form.col_lower.copy()
    x[free] = np.array(found.x)
    dual = np.array(found.z)
    row_dual = np.zeros(len(form.row_lower))
    start = 0
    for mask, sign in sides:
        count = int(mask.sum())
        row_dual[mask] += sign * dual[start : start + count]
        start += count
    first_cone = len(right) - len(cones.constant)
    return SecondOrderResult(
        x, row_dual, dual[first_cone:], form.objective(x), status.endswith("PrimalInfeasible"), doubtful
    )


def _clarabel() -> Any:
    from evcs_gym.envs.errors import SolverError

    try:
        return importlib.import_module("clarabel")
    except ImportError as error:
        raise SolverError(
            f"solver Clarabel: could not be loaded: {error}; install it (pip install clarabel)"
        ) from error


def _second_order_rows(
    clarabel: Any, form: StandardForm, cones: SecondOrderRows
) -> tuple[Any, FloatArray, list[Any], list[tuple[BoolArray, float]], BoolArray]:
    """Rows, right sides and cones of right - rows x; which rows of the form lie where, and their sign; free columns."""
    from scipy.sparse import csc_matrix, csr_matrix, identity, vstack

    n, m = len(form.cost), len(form.row_lower)
    free = form.col_lower < form.col_upper
    fixed = np.where(free, 0.0, form.col_lower)
    matrix = csc_matrix((form.value, form.index, form.start), shape=(m, n)).tocsr()
    shift = matrix @ fixed
    equal = form.row_lower == form.row_upper
    lower, upper = np.isfinite(form.row_lower) & ~equal, np.isfinite(form.row_upper) & ~equal
    box = identity(n, format="csr")
    below, above = np.isfinite(form.col_lower) & free, np.isfinite(form.col_upper) & free
    cone = csr_matrix((cones.value, (cones.row, cones.column)), shape=(len(cones.constant), n))
    parts = [matrix[equal], -matrix[lower], matrix[upper], -box[below], box[above], -cone]
    right = np.concatenate(
        [
            (form.row_lower - shift)[equal], -(form.row_lower - shift)[lower], (form.row_upper - shift)[upper],
            -form.col_lower[below], form.col_upper[above], cones.constant + cone @ fixed,
        ]
    )  # fmt: skip
    n_linear = sum(part.shape[0] for part in parts[1:5])
    kinds = [clarabel.ZeroConeT(int(equal.sum())), clarabel.NonnegativeConeT(n_linear)]
    kinds += [clarabel.SecondOrderConeT(int(size)) for size in cones.size]
    sides = [(equal, -1.0), (lower, 1.0), (upper, -1.0)]
    return vstack(parts, format="csr")[:, np.flatnonzero(free)].tocsc(), right, kinds, sides, free


def probe() -> list[SolverInfo]:
    """Solve a real LP and a real MILP: what ``evcs-gym doctor`` reports. Never raises."""
    from evcs_gym.envs.errors import EvcsError

    # max x + y, x + 2 y <= 3, 2 x + y <= 3: (1, 1); with the first capacity 2 instead and integers: one of them 1
    form = StandardForm(
        cost=np.array([-1.0, -1.0]),
        offset=0.0,
        start=np.array([0, 2, 4], dtype=np.int64),
        index=np.array([0, 1, 0, 1], dtype=np.int64),
        value=np.array([1.0, 2.0, 2.0, 1.0]),
        row_lower=np.full(2, -np.inf),
        row_upper=np.array([3.0, 3.0]),
        col_lower=np.zeros(2),
        col_upper=np.ones(2) * 5.0,
        integer=np.zeros(2, dtype=np.bool_),
    )
    milp = replace(form, integer=np.ones(2, dtype=np.bool_), row_upper=np.array([2.0, 3.0]))
    try:
        version = solver_version()
        found = [solve(Task(program), START_LIMIT_S).objective for program in (form, milp)]
    except EvcsError as error:
        return [SolverInfo(SOLVER_NAME, "", False, str(error))]
    ok = np.allclose(found, [-2.0, -1.0], atol=1e-6)
    detail = "LP and MILP solved" if ok else f"LP and MILP must give -2 and -1, got {found}"
    return [SolverInfo(SOLVER_NAME, version, bool(ok), detail)]


def probe_second_order() -> SolverInfo:
    """Solve a real cone by Clarabel: min r, |(3, 4)| <= r. Never raises."""
    from evcs_gym.envs.errors import EvcsError

    nothing, none = np.zeros(0), np.zeros(0, dtype=np.int64)
    form = StandardForm(
        np.ones(1), 0.0, np.zeros(2, dtype=np.int64), none, nothing, nothing, nothing, np.zeros(1), np.full(1, 9.0),
        np.zeros(1, dtype=np.bool_),
    )  # fmt: skip
    first = np.zeros(1, dtype=np.int64)
    cone = SecondOrderRows(np.array([0.0, 3.0, 4.0]), first, first, np.ones(1), np.array([3]))
    try:
        found = solve_second_order(form, cone, START_LIMIT_S).objective
    except EvcsError as error:
        return SolverInfo("Clarabel", "", False, str(error))
    ok = abs(found - 5.0) < 1e-6
    return SolverInfo(
        "Clarabel", _clarabel().__version__, ok, "cone solved" if ok else f"cone must give 5, got {found}"
    )


def solver_version() -> str:
    """Version of the solver that a child process loads.

    Raises:
        SolverError: the solver is missing.
    """
    with _worker() as worker:
        return worker.version


# -- the children, seen from the parent -------------------------------------------------------------------------------


class _Worker:
    """A running child; `ask` sends a programme and waits."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", os.path.abspath(__file__)]  # -P: this folder must not shadow packages
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C of the terminal is the parent's to handle
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise _solver_error(f"could not be started: {error}") from error
        hello = self._receive(START_LIMIT_S)
        if hello is None or "error" in hello:
            self.kill()
            reason = "gave no answer" if hello is None else hello["error"]
            raise _solver_error(f"could not be loaded: {reason}; install it (pip install highspy)")
        self.version: str = hello["version"]

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any] | None:
        """The child's reply, or None when it had to be killed. The worker is dead after None or an exception."""
        assert self.process.stdin is not None
        try:
            _write(self.process.stdin, request)
        except OSError as error:
            raise _solver_error(f"died before it got the programme (exit code {self.process.poll()})") from error
        return self._receive(limit_s)

    def _receive(self, limit_s: float) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        overrun = threading.Event()

        def stop() -> None:
            overrun.set()
            self.process.kill()

        timer = threading.Timer(limit_s, stop)
        timer.daemon = True
        timer.start()
        try:
            reply = _read(self.process.stdout)
        finally:
            timer.cancel()
        if overrun.is_set():
            self.process.wait()  # so that `alive` knows
            return None
        if reply is None:
            raise _solver_error(f"died without an answer (exit code {self.process.wait()})")
        return reply

    def alive(self) -> bool:
        """Whether the child still runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End the child and release its pipes."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # a pipe to a dead child cannot be flushed
                    pipe.close()
        self.process.wait()


_CHANGEABLE = ("cost", "col_lower", "col_upper", "row_lower", "row_upper")
"""What a `HotProgramme` takes anew for every solve."""


class HotProgrammes:
    """Linear programmes that stay loaded in a child of their own, by key.

    A solve sends costs, bounds and right sides only and starts from the basis of the last one: programmes that differ
    little from solve to solve take a fraction of the time. The child ends with this object.
    """

    def __init__(self) -> None:
        self._child: _Worker | None = None
        self._loaded: dict[int, StandardForm] = {}

    def load(self, key: int, form: StandardForm) -> None:
        """Keep a programme under a key; its matrix stays.

        Raises:
            DataError: NaN in the programme. SolverError: the solver is missing, died or refused the programme.
        """
        check_numbers(form)
        self._ask({"load": key, **_request(Task(form.relaxed()), math.inf)}, START_LIMIT_S)
        self._loaded[key] = form

    def solve(self, key: int, form: StandardForm, time_limit_s: float) -> FloatArray:
        """Optimal point (n,) of a loaded programme with the costs, bounds and right sides of ``form``.

        Raises:
            ConfigError: nothing is loaded under the key, or a programme with another matrix.
            DataError: NaN in the programme.
            InfeasibleError: the programme has no feasible point.
            SolverError: the solver died, or ended without an optimum, as when time was over.
        """
        from evcs_gym.envs.errors import ConfigError

        if key not in self._loaded:
            raise ConfigError(f"no programme is loaded under key {key}; call load first")
        if form.value is not self._loaded[key].value:
            raise ConfigError(f"the programme under key {key} must keep its matrix, got another one; load that one")
        check_numbers(form)
        changes = {"keep_basis": False} | {name: getattr(form, name) for name in _CHANGEABLE}
        reply = self._ask({"hot": key, "time_limit_s": time_limit_s, **changes}, time_limit_s + KILL_AFTER_S)
        if reply["status"] == "infeasible":
            raise infeasible_error(form)
        if reply["status"] != Status.OPTIMAL:
            raise _solver_error(f"ended with status {reply['status']!r} ({reply['detail']}), which is no optimum")
        return np.asarray(reply["x"])

    def _ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        if self._child is None:
            self._child = _Worker()
            weakref.finalize(self, self._child.kill)
        child, clean = self._child, False
        try:
            reply = child.ask(request, limit_s)
            clean = reply is not None and reply["status"] != "failed"
        finally:
            if not clean:  # nobody knows what it still holds
                child.kill()
                self._child, self._loaded = None, {}
        if reply is None or not clean:
            raise _solver_error(f"gave no answer within {limit_s:.3g} s" if reply is None else reply["detail"])
        return reply


_lock = threading.Lock()
_idle: list[_Worker] = []
_busy: list[_Worker] = []
_owner_pid = os.getpid()


@contextlib.contextmanager
def _worker() -> Iterator[_Worker]:
    """An idle child or a new one; it goes back to the pool unless it died or the caller was interrupted."""
    global _owner_pid
    with _lock:
        if _owner_pid != os.getpid():  # after a fork the children belong to the parent: two speakers garble a pipe
            _idle.clear()
            _busy.clear()
            _owner_pid = os.getpid()
        worker = _idle.pop() if _idle else None
    if worker is None or not worker.alive():
        worker = _Worker()
    with _lock:
        _busy.append(worker)
    clean = False
    try:
        yield worker
        clean = True
    finally:
        with _lock:
            if worker in _busy:
                _busy.remove(worker)
            keep = clean and worker.alive() and len(_idle) < N_WORKERS
            if keep:
                _idle.append(worker)
        if not keep:
            worker.kill()


def stop_workers() -> None:
    """Kill all children of this process; the next solve starts a new one."""
    with _lock:
        if _owner_pid != os.getpid():
            return
        workers = [*_idle, *_busy]
        _idle.clear()
    for worker in workers:
        worker.process.kill()


atexit.register(stop_workers)


def check_numbers(form: StandardForm) -> None:
    """HiGHS takes NaN without a word."""
    from evcs_gym.envs.errors import DataError

    for name in ("cost", "value", "row_lower", "row_upper", "col_lower", "col_upper"):
        if np.isnan(getattr(form, name)).any():
            raise DataError(f"{name} of a programme must be numbers, got NaN; look for NaN in the data it was made of")


def _nothing(seconds: float) -> Result:
    """Out of time, nothing found: the weakest answer that is still true."""
    return Result(None, None, np.inf, -np.inf, Status.TIME_LIMIT, seconds, 0)


def _solver_error(what: str) -> "SolverError":
    from evcs_gym.envs.errors import SolverError

    return SolverError(f"solver {SOLVER_NAME}: {what}; run 'evcs-gym doctor'")


def infeasible_error(form: StandardForm, solver: str = SOLVER_NAME) -> "InfeasibleError":
    from evcs_gym.envs.errors import InfeasibleError

    return InfeasibleError(
        f"solver {solver}: a programme of {len(form.cost)} variables and {len(form.row_lower)} rows has no "
        "feasible point; its data contradict each other"
    )


# -- the child --------------------------------------------------------------------------------------------------------


def _write(pipe: IO[bytes], message: dict[str, Any]) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(struct.pack("<Q", len(data)))
    pipe.write(data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> dict[str, Any] | None:
    """The next message, or None at the end of the pipe."""
    header = pipe.read(8)
    if len(header) < 8:
        return None
    (n_bytes,) = struct.unpack("<Q", header)
    data = pipe.read(n_bytes)
    return pickle.loads(data) if len(data) == n_bytes else None


def _serve() -> None:
    """Life of a child: say hello, then answer until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    try:
        highspy: Any = importlib.import_module("highspy")
    except ImportError as error:
        _write(answers, {"error": str(error)})
        return
    _write(answers, {"version": highspy.Highs().version()})
    loaded: dict[int, Any] = {}
    while (request := _read(sys.stdin.buffer)) is not None:
        try:
            reply = _answer(highspy, request, loaded)
        except Exception as error:  # the parent must learn of anything that goes wrong here
            reply = {"status": "failed", "detail": f"{type(error).__name__}: {error}"}
        _write(answers, reply)


def _load(highspy: Any, request: dict[str, Any]) -> Any:
    """A HiGHS instance with the programme and its options."""
    n_columns, n_rows = len(request["cost"]), len(request["row_lower"])
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = n_columns, n_rows
    lp.col_cost_, lp.offset_ = request["cost"], request["offset"]
    lp.col_lower_, lp.col_upper_ = request["col_lower"], request["col_upper"]
    lp.row_lower_, lp.row_upper_ = request["row_lower"], request["row_upper"]
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = request["start"].astype(np.int32)
    lp.a_matrix_.index_ = request["index"].astype(np.int32)
    lp.a_matrix_.value_ = request["value"]
    if request["integer"].any():
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[int(flag)] for flag in request["integer"]]
    highs = highspy.Highs()
    for name, value in (
        ("output_flag", False),
        ("threads", 1),
        ("time_limit", float(request["time_limit_s"])),
        ("mip_rel_gap", float(request["relative_gap"])),
        ("mip_abs_gap", float(request["absolute_gap"])),
        ("presolve", "choose" if request["presolve"] else "off"),
    ):
        if highs.setOptionValue(name, value) == highspy.HighsStatus.kError:
            raise ValueError(f"option {name} = {value} refused")
    if highs.passModel(lp) == highspy.HighsStatus.kError:
        raise ValueError("the programme was refused")
    if request["start_x"] is not None:
        start = highspy.HighsSolution()
        start.col_value = request["start_x"].tolist()
        highs.setSolution(start)  # only a hint: a refused start point costs time, not truth
    if request["basis"] is not None:
        status = list(highspy.HighsBasisStatus.__members__.values())
        basis = highspy.HighsBasis()
        basis.col_status, basis.row_status = ([status[k] for k in part.tolist()] for part in request["basis"])
        basis.valid = True
        highs.setBasis(basis)  # a hint too
    return highs


def _answer(highspy: Any, request: dict[str, Any], loaded: dict[int, Any]) -> dict[str, Any]:
    """Reply to a request: keep a programme, solve a kept one again, or solve a new one."""
    if "load" in request:
        loaded[request["load"]] = _load(highspy, request)
        return {"status": "loaded"}
    return _run_highs(highspy, request, _changed(loaded[request["hot"]], request) if "hot" in request else None)


def _changed(highs: Any, request: dict[str, Any]) -> Any:
    """A loaded programme with other costs, bounds and right sides; its last basis is the start."""
    columns = np.arange(len(request["cost"]), dtype=np.int32)
    rows = np.arange(len(request["row_lower"]), dtype=np.int32)
    highs.changeColsCost(len(columns), columns, request["cost"])
    highs.changeColsBounds(len(columns), columns, request["col_lower"], request["col_upper"])
    highs.changeRowsBounds(len(rows), rows, request["row_lower"], request["row_upper"])
    highs.setOptionValue("time_limit", highs.getRunTime() + float(request["time_limit_s"]))  # its clock runs on
    return highs


def _run_highs(highspy: Any, request: dict[str, Any], kept: Any = None) -> dict[str, Any]:
    """Solve one programme, a new or a kept one, and put the outcome into plain arrays and numbers."""
    highs = _load(highspy, request) if kept is None else kept
    highs.run()
    status = highs.getModelStatus()
    names = {
        highspy.HighsModelStatus.kOptimal: "optimal",
        highspy.HighsModelStatus.kModelEmpty: "optimal",
        highspy.HighsModelStatus.kTimeLimit: "time_limit",
        highspy.HighsModelStatus.kInfeasible: "infeasible",
        highspy.HighsModelStatus.kUnbounded: "unbounded",
        highspy.HighsModelStatus.kUnboundedOrInfeasible: "unbounded or infeasible",
    }
    info, solution = highs.getInfo(), highs.getSolution()
    is_mip = kept is None and bool(request["integer"].any())
    optimal = names.get(status) == "optimal"
    feasible = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible or optimal
    bound = info.mip_dual_bound if is_mip else info.objective_function_value if optimal else -np.inf
    return {
        "status": names.get(status, "failed"),
        "detail": highs.modelStatusToString(status),
        "x": np.array(solution.col_value) if feasible else None,
        "row_dual": np.array(solution.row_dual) if solution.dual_valid and not is_mip else None,
        "objective": float(info.objective_function_value) if feasible else np.inf,
        "bound": float(bound),
        "n_nodes": int(max(info.mip_node_count, 0)) if is_mip else 0,
        "basis": _basis_of(highs) if request["keep_basis"] and optimal and not is_mip else None,
    }


def _basis_of(highs: Any) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    basis = highs.getBasis()
    columns, rows = (np.array([int(k) for k in s], dtype=np.int8) for s in (basis.col_status, basis.row_status))
    return columns, rows


if __name__ == "__main__":
    _serve()
