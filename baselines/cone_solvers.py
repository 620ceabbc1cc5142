"""Who solves a whole programme with second-order cones and whole numbers: SCIP, and Gurobi and MOSEK where licensed.

None of them is needed: they give second opinions. Each solve has a child process of its own, which runs this very file
as a program: these solvers may abort the process that they run in, or look at no clock. Nothing of the project is
imported at the top of this file, so that the child imports nothing of it.
"""

import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from evcs_gym.baselines.solvers import SecondOrderRows, SolverInfo, StandardForm, Status

CONE_SOLVERS: Final = {"scip": "SCIP", "gurobi": "Gurobi", "mosek": "MOSEK"}
"""Solvers by the name that `solve_cones` takes."""
HOW_TO_INSTALL: Final = {
    "scip": "pip install evcs-gym[scip]",
    "gurobi": "pip install gurobipy, with a licence",
    "mosek": "pip install Mosek, with a licence",
}
START_LIMIT_S: Final = 60.0
"""Longest time in which a child must have loaded its solver and the programme: a loaded machine reads slowly."""
PROBE_LIMIT_S: Final = 20.0
N_PROBE_COLUMNS: Final = 2500
"""Columns of the programme that `probe_cones` solves: more than a trial licence allows."""


@dataclass(frozen=True, eq=False)
class ConeResult:
    """Answer of a solver: x (n,) or None where none was found; bound: no point costs less, in the solver's own
    tolerance (-inf where unknown); the solver's version, empty where it had to be killed."""

    x: NDArray[np.float64] | None
    bound: float
    status: "Status"
    seconds: float
    version: str


def solve_cones(
    solver: str, form: "StandardForm", cones: "SecondOrderRows", time_limit_s: float, relative_gap: float = 0.0
) -> ConeResult:
    """Solve a programme with cones and whole numbers.

    Raises:
        ConfigError: an unknown solver. DataError: NaN in the programme. InfeasibleError: no point keeps all rows.
        SolverError: the solver is missing, has no licence, died, or ended with a status that proves nothing.
    """
    from evcs_gym.baselines.solvers import Status, check_numbers, infeasible_error
    from evcs_gym.envs.errors import ConfigError, SolverError

    if solver not in CONE_SOLVERS:
        raise ConfigError(f"solver must be one of {', '.join(CONE_SOLVERS)}, got {solver!r}")
    check_numbers(form)
    empty = np.bincount(form.index, minlength=len(form.row_lower)) == 0  # no interface takes them
    if ((form.row_lower > 0.0) | (form.row_upper < 0.0))[empty].any():
        raise infeasible_error(form, CONE_SOLVERS[solver])
    request = {
        "solver": solver,
        "time_limit_s": time_limit_s,
        "relative_gap": relative_gap,
        "form": {name: getattr(form, name) for name in type(form).__dataclass_fields__},
        "cones": {name: getattr(cones, name) for name in type(cones).__dataclass_fields__},
    }
    began = time.perf_counter()
    reply = _ask(request, time_limit_s + START_LIMIT_S)
    seconds = time.perf_counter() - began
    if reply is None:
        return ConeResult(None, -np.inf, Status.TIME_LIMIT, seconds, "")
    if reply["status"] == "infeasible":
        raise infeasible_error(form, CONE_SOLVERS[solver])
    if reply["status"] not in set(Status):
        reason = _REASONS[reply["status"]].format(reply["detail"], HOW_TO_INSTALL[solver])
        raise SolverError(f"solver {CONE_SOLVERS[solver]}: {reason}")
    return ConeResult(reply["x"], reply["bound"], Status(reply["status"]), seconds, reply["version"])


_REASONS: Final = {
    "missing": "could not be loaded: {}; install it ({})",
    "no_licence": "was found, but has no licence for this programme: {}; it needs one ({})",
    "failed": "ended with {}, which proves nothing; take another solver",
    "died": "died without an answer ({}); take another solver",
}


def _ask(request: dict[str, Any], limit_s: float) -> dict[str, Any] | None:
    """The reply of a child, None where it had to be killed."""
    command = [sys.executable, "-P", os.path.abspath(__file__)]  # -P: this folder must not shadow packages
    try:
        done = subprocess.run(
            command,
            input=pickle.dumps(request, protocol=pickle.HIGHEST_PROTOCOL),
            capture_output=True,
            timeout=limit_s,
            start_new_session=True,  # Ctrl-C of the terminal is the parent's to handle
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        return {"status": "died", "detail": f"its process could not be started: {error}"}
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return {"status": "died", "detail": " ".join([f"exit code {done.returncode}", *words])}
    reply: dict[str, Any] = pickle.loads(done.stdout)
    return reply


def probe_cones() -> "list[SolverInfo]":
    """Solve a real programme with a cone and a whole number by each solver: what ``evcs-gym doctor`` reports."""
    from evcs_gym.baselines.solvers import SolverInfo
    from evcs_gym.envs.errors import EvcsError

    form, cones = _probe_programme()
    found = []
    for solver, name in CONE_SOLVERS.items():
        try:
            answer = solve_cones(solver, form, cones, PROBE_LIMIT_S)
        except EvcsError as error:
            found.append(SolverInfo(name, "", False, str(error)))
            continue
        value = np.nan if answer.x is None else form.objective(answer.x)
        ok = abs(value - np.hypot(2.0, 1.0)) < 1e-5 and abs(answer.bound - value) < 1e-5
        detail = "cone with a whole number solved" if ok else f"must give 2.23607, got {value:.6g} ({answer.status})"
        found.append(SolverInfo(name, answer.version, bool(ok), detail))
    return found


def _probe_programme() -> "tuple[StandardForm, SecondOrderRows]":
    """min r, |(2, y)| <= r, y + 2 z = 3 with z binary, 0 <= y <= 9: y = z = 1; and idle columns."""
    from evcs_gym.baselines.solvers import SecondOrderRows, StandardForm

    n = N_PROBE_COLUMNS
    start = np.minimum(np.arange(n + 1), 3) - 1
    start[0] = 0
    form = StandardForm(
        cost=np.eye(n)[0],
        offset=0.0,
        start=start.astype(np.int64),
        index=np.zeros(2, dtype=np.int64),
        value=np.array([1.0, 2.0]),
        row_lower=np.array([3.0]),
        row_upper=np.array([3.0]),
        col_lower=np.zeros(n),
        col_upper=np.where(np.arange(n) == 2, 1.0, 9.0),
        integer=np.arange(n) == 2,
    )
    rows = np.array([0, 2])
    return form, SecondOrderRows(np.array([0.0, 2.0, 0.0]), rows, np.array([0, 1]), np.ones(2), np.array([3]))


# -- the child --------------------------------------------------------------------------------------------------------


def _serve() -> None:
    """Life of a child: read a programme, solve it, answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answer
    request = pickle.load(sys.stdin.buffer)
    try:
        reply = _ADAPTERS[request["solver"]](request)
    except ImportError as error:
        reply = {"status": "missing", "detail": str(error)}
    except Exception as error:  # the parent must learn of anything that goes wrong here
        words = " ".join(str(error).split())
        kind = "no_licence" if "licens" in words.lower() or "licenc" in words.lower() else "failed"
        reply = {"status": kind, "detail": f"{type(error).__name__}: {words}"}
    pickle.dump(reply, answers)
    answers.flush()


def _rows(form: dict[str, Any]) -> list[tuple[list[int], list[float]]]:
    """Columns and values of every row."""
    rows: list[tuple[list[int], list[float]]] = [([], []) for _ in form["row_lower"]]
    for column in range(len(form["cost"])):
        for entry in range(form["start"][column], form["start"][column + 1]):
            columns, values = rows[form["index"][entry]]
            columns.append(column)
            values.append(float(form["value"][entry]))
    return rows


def _cone_rows(cones: dict[str, Any]) -> list[list[tuple[float, list[int], list[float]]]]:
    """For every cone its rows: constant, columns, values."""
    flat: list[tuple[float, list[int], list[float]]] = [(float(constant), [], []) for constant in cones["constant"]]
    for row, column, value in zip(cones["row"], cones["column"], cones["value"], strict=True):
        flat[row][1].append(int(column))
        flat[row][2].append(float(value))
    ends = np.cumsum(cones["size"]).tolist()
    return [flat[end - size : end] for end, size in zip(ends, cones["size"].tolist(), strict=True)]


def _scip(request: dict[str, Any]) -> dict[str, Any]:
    scip: Any = importlib.import_module("pyscipopt")
    form, model = request["form"], scip.Model()
    model.hideOutput()
    model.setParam("limits/time", float(request["time_limit_s"]))
    model.setParam("limits/gap", float(request["relative_gap"]))
    x = [
        model.addVar(vtype="I" if whole else "C", lb=float(low), ub=float(high), obj=float(cost))
        for whole, low, high, cost in zip(
            form["integer"], form["col_lower"], form["col_upper"], form["cost"], strict=True
        )
    ]
    model.addObjoffset(float(form["offset"]))
    for (columns, values), low, high in zip(_rows(form), form["row_lower"], form["row_upper"], strict=True):
        body = scip.quicksum(value * x[column] for column, value in zip(columns, values, strict=True))
        if not columns:
            continue
        if np.isfinite(low):
            model.addCons(body == float(low) if low == high else body >= float(low))
        if np.isfinite(high) and low != high:
            model.addCons(body <= float(high))
    for rows in _cone_rows(request["cones"]):
        sides = []
        for place, (constant, columns, values) in enumerate(rows):
            side = model.addVar(lb=0.0 if place == 0 else None, ub=None)
            terms = scip.quicksum(value * x[column] for column, value in zip(columns, values, strict=True))
            model.addCons(side - terms == constant)
            sides.append(side)
        model.addCons(scip.quicksum(side * side for side in sides[1:]) <= sides[0] * sides[0])
    model.optimize()
    status = {"gaplimit": "optimal", "timelimit": "time_limit"}.get(model.getStatus(), model.getStatus())
    known = status in ("optimal", "time_limit", "infeasible")
    point = model.getBestSol() if known and model.getNSols() > 0 else None
    bound = float(model.getDualbound())
    return {
        "status": status if known else "failed",
        "detail": f"status {status!r}",
        "x": None if point is None else np.array([model.getSolVal(point, variable) for variable in x]),
        "bound": bound if abs(bound) < model.infinity() else -np.inf,
        "version": str(model.version()),
    }


def _licensed(interface: str, module: str, gap_option: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A solver behind one of Pyomo's interfaces that know cones."""

    def run(request: dict[str, Any]) -> dict[str, Any]:
        package: Any = importlib.import_module(module)
        pmo: Any = importlib.import_module("pyomo.kernel")
        environ: Any = importlib.import_module("pyomo.environ")
        form = request["form"]
        model, columns = _kernel_model(pmo, request)
        options = {gap_option: float(request["relative_gap"])}
        solver = environ.SolverFactory(interface)
        found = solver.solve(model, load_solutions=False, timelimit=float(request["time_limit_s"]), options=options)
        ended = str(found.solver.termination_condition)
        status = {"optimal": "optimal", "maxTimeLimit": "time_limit", "infeasible": "infeasible"}.get(ended, "failed")
        x = None
        if status == "optimal":  # at the time limit the interfaces do not say whether there is a point
            solver.load_vars()
            x = np.array(
                [low if v.value is None else v.value for v, low in zip(columns, form["col_lower"], strict=True)]
            )
        true = status == "optimal" or form["integer"].any()  # of a stopped solve without integers it is the objective
        bound = found.problem.lower_bound if true else None
        version = getattr(package, "__version__", "")
        return {
            "status": status,
            "detail": f"termination {ended!r}",
            "x": x,
            "bound": -np.inf if bound is None else float(bound),
            "version": str(version),
        }

    return run


def _kernel_model(pmo: Any, request: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The programme in Pyomo's kernel, the only one of its two modelling layers with cones."""
    form, model = request["form"], pmo.block()
    model.x = pmo.variable_list(
        pmo.variable(domain=pmo.Integers if whole else pmo.Reals, lb=float(low), ub=float(high))
        for whole, low, high in zip(form["integer"], form["col_lower"], form["col_upper"], strict=True)
    )
    x = list(model.x)
    model.rows = pmo.constraint_list()
    for (columns, values), low, high in zip(_rows(form), form["row_lower"], form["row_upper"], strict=True):
        bounds = {"lb": float(low) if np.isfinite(low) else None, "ub": float(high) if np.isfinite(high) else None}
        if columns:
            model.rows.append(pmo.linear_constraint([x[column] for column in columns], values, **bounds))
    model.sides, model.cones = pmo.variable_list(), pmo.constraint_list()
    for rows in _cone_rows(request["cones"]):
        sides = []
        for place, (constant, columns, values) in enumerate(rows):
            side = pmo.variable(lb=0.0) if place == 0 else pmo.variable()
            model.sides.append(side)
            variables, factors = [side, *(x[column] for column in columns)], [1.0, *(-value for value in values)]
            model.rows.append(pmo.linear_constraint(variables, factors, rhs=constant))
            sides.append(side)
        model.cones.append(pmo.conic.quadratic(r=sides[0], x=sides[1:]))
    priced = np.flatnonzero(form["cost"]).tolist()
    model.cost = pmo.objective(sum(float(form["cost"][j]) * x[j] for j in priced) + float(form["offset"]))
    return model, x


_ADAPTERS: Final[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "scip": _scip,
    "gurobi": _licensed("gurobi_direct", "gurobipy", "MIPGap"),
    "mosek": _licensed("mosek_direct", "mosek", "dparam.mio_tol_rel_gap"),
}


if __name__ == "__main__":
    _serve()
