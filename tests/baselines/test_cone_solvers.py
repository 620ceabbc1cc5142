"""Solvers of cones and whole numbers in a child of their own: by hand, missing, without licence, aborting, hanging."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evcs_gym.baselines import cone_solvers
from evcs_gym.baselines.cone_solvers import CONE_SOLVERS, ConeResult, probe_cones, solve_cones
from evcs_gym.baselines.solvers import SecondOrderRows, StandardForm, Status
from evcs_gym.envs.errors import ConfigError, DataError, InfeasibleError, SolverError

LIMIT_S = 30.0
MODULES = {"scip": "pyscipopt", "gurobi": "gurobipy", "mosek": "mosek"}
"""What each solver is imported as."""


def least_radius(low: float = 1.0, high: float = 8.0, most: float = 90.0) -> tuple[StandardForm, SecondOrderRows]:
    """min r + 10, |(3, y, 0)| <= r <= most, 2 y + w = 2 with w whole in -8..8 and ``low`` <= y <= ``high``."""
    form = StandardForm(
        cost=np.array([1.0, 0.0, 0.0]), offset=10.0, start=np.array([0, 0, 1, 2]), index=np.array([0, 0]),
        value=np.array([2.0, 1.0]), row_lower=np.array([2.0]), row_upper=np.array([2.0]),
        col_lower=np.array([0.0, low, -8.0]), col_upper=np.array([most, high, 8.0]),
        integer=np.array([False, False, True]),
    )  # fmt: skip
    cones = SecondOrderRows(
        np.array([0.0, 3.0, 0.0, 0.0]), np.array([0, 2]), np.array([0, 1]), np.ones(2), np.array([4])
    )
    return form, cones


@pytest.fixture(params=sorted(CONE_SOLVERS))
def solver(request: pytest.FixtureRequest) -> str:
    """Every solver that works here; which do is what the probe says of a programme that a trial licence takes too."""
    name: str = request.param
    if importlib.util.find_spec(MODULES[name]) is None:
        pytest.skip(f"{MODULES[name]} is not installed")
    try:
        solve_cones(name, *least_radius(), LIMIT_S)
    except SolverError as error:
        if "no licence" not in str(error):
            raise
        pytest.skip(str(error))
    return name


StubMaker = Callable[[str], None]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StubMaker:
    """Puts a module in the place of pyscipopt."""

    def make(code: str) -> None:
        (tmp_path / "pyscipopt.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return make


# --- what works here -----------------------------------------------------------------------------------------


def test_a_cone_with_a_whole_number_by_hand(solver: str) -> None:
    """y = 4 - w / 2 is a multiple of a half: the least above 3.8 is 4, and the radius 5."""
    form, cones = least_radius(low=3.8)
    found = solve_cones(solver, form, cones, LIMIT_S)
    assert found.x is not None
    assert found.x == pytest.approx([5.0, 4.0, -6.0], abs=1e-5)
    assert (found.bound, found.status) == (pytest.approx(15.0, abs=1e-5), Status.OPTIMAL)
    assert found.version.split(".")[0].isdigit()


def test_a_contradiction_is_infeasible(solver: str) -> None:
    with pytest.raises(InfeasibleError, match=f"{CONE_SOLVERS[solver]}: a programme of 3 variables and 1 rows has no"):
        solve_cones(solver, *least_radius(most=2.0), LIMIT_S)


def test_rows_with_one_side_and_columns_without_rows_are_taken_too(solver: str) -> None:
    """2 y + w >= 2 and <= 9, y free in 1..8: r = |(3, 1)| as w may be 0."""
    form, cones = least_radius()
    wide = StandardForm(**{**vars(form), "row_upper": np.array([9.0])})
    found = solve_cones(solver, wide, cones, LIMIT_S)
    assert found.bound == pytest.approx(10.0 + np.sqrt(10.0), abs=1e-5)


def test_a_programme_without_an_end_proves_nothing() -> None:
    pytest.importorskip("pyscipopt", reason="SCIP is not installed")
    form, cones = least_radius()
    endless = StandardForm(**{**vars(form), "cost": np.array([-1.0, 0.0, 0.0]), "col_upper": np.full(3, np.inf)})
    with pytest.raises(SolverError, match=r"SCIP: ended with status '(unbounded|inforunbd)', which proves nothing"):
        solve_cones("scip", endless, cones, LIMIT_S)


def test_every_solver_is_probed_and_says_what_is_the_matter() -> None:
    found = {info.name: info for info in probe_cones()}
    assert set(found) == {"SCIP", "Gurobi", "MOSEK"}
    for name, info in found.items():
        assert info.ok or "could not be loaded" in info.detail or "has no licence" in info.detail, name
    there = importlib.util.find_spec("pyscipopt") is not None
    assert found["SCIP"].ok == there


# --- what can go wrong ---------------------------------------------------------------------------------------


def test_bad_input_is_refused() -> None:
    form, cones = least_radius()
    with pytest.raises(ConfigError, match=r"solver must be one of scip, gurobi, mosek, got 'cplex'"):
        solve_cones("cplex", form, cones, 1.0)
    with pytest.raises(DataError, match="col_lower of a programme must be numbers, got NaN"):
        solve_cones("scip", *least_radius(low=np.nan), 1.0)


def test_a_row_without_columns_that_cannot_hold_is_infeasible() -> None:
    form, cones = least_radius()
    empty = StandardForm(**{**vars(form), "start": np.zeros(4, dtype=np.int64), "index": np.zeros(0, dtype=np.int64)})
    with pytest.raises(InfeasibleError, match="SCIP: a programme of 3 variables and 1 rows has no feasible point"):
        solve_cones("scip", empty, cones, LIMIT_S)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "raise ImportError('not here')",
            r"could not be loaded: not here; install it \(pip .*evcs-gym\[scip",
        ),
        ("raise OSError('licence expired')", r"was found, but has no licence .*OSError: licence expired; it needs one"),
        ("raise OSError('broken')", r"ended with OSError: broken, which proves nothing"),
        ("import os; os.abort()", r"died without an answer \(exit code -6\)"),
        ("import os, sys; print('out of luck', file=sys.stderr, flush=True); os._exit(3)", r"exit code 3 out of luck"),
    ],
)
def test_a_solver_that_fails_is_an_error_that_says_how(stub: StubMaker, code: str, words: str) -> None:
    stub(code)
    with pytest.raises(SolverError, match=f"solver SCIP: .*{words}"):
        solve_cones("scip", *least_radius(), LIMIT_S)


def test_the_probe_of_a_solver_that_fails_does_not_raise(stub: StubMaker) -> None:
    stub("import os; os.abort()")
    info = next(info for info in probe_cones() if info.name == "SCIP")
    assert (info.ok, info.version) == (False, "")
    assert info.detail.startswith("solver SCIP: died without an answer")


def test_a_solver_that_never_answers_is_killed(stub: StubMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    stub("import time; time.sleep(1000.0)")
    monkeypatch.setattr(cone_solvers, "START_LIMIT_S", 0.5)
    found = solve_cones("scip", *least_radius(), 0.5)
    assert (found.x, found.bound, found.status) == (None, -np.inf, Status.TIME_LIMIT)
    assert found.seconds < 10.0


def test_what_a_library_prints_does_not_garble_the_answer(stub: StubMaker) -> None:
    stub("print('welcome to a solver'); raise ImportError('not today')")
    with pytest.raises(SolverError, match="could not be loaded: not today"):
        solve_cones("scip", *least_radius(), LIMIT_S)


def test_an_interpreter_that_cannot_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(SolverError, match=r"died without an answer \(its process could not be started"):
        solve_cones("scip", *least_radius(), LIMIT_S)


def test_a_wrong_answer_to_the_probe_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ConeResult(np.full(cone_solvers.N_PROBE_COLUMNS, 1.0), 1.0, Status.OPTIMAL, 0.0, "9")
    monkeypatch.setattr(cone_solvers, "solve_cones", lambda *_: wrong)
    assert all(not info.ok and "must give 2.23607, got 1 (optimal)" in info.detail for info in probe_cones())
