"""The solver in its child process: sums by hand, statuses, time limits, interrupts, a missing solver."""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyomo.environ as pyo
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array

from evcs_gym.baselines import solvers
from evcs_gym.baselines.certificate import dual_bound
from evcs_gym.baselines.solvers import (
    HotProgrammes,
    StandardForm,
    Status,
    Task,
    compile_model,
    components,
    priced,
    probe,
    solve,
    solve_all,
    stop_workers,
)
from evcs_gym.envs.errors import ConfigError, DataError, InfeasibleError, SolverError

LIMIT_S = 20.0


def form_of(
    cost: list[float],
    matrix: list[list[float]],
    lower: list[float],
    upper: list[float],
    box: tuple[float, float] = (0.0, 1.0),
    integer: bool = False,
) -> StandardForm:
    """A small programme from dense rows."""
    a = csc_array(np.array(matrix, dtype=np.float64))
    n = len(cost)
    return StandardForm(
        cost=np.array(cost, dtype=np.float64),
        offset=0.0,
        start=a.indptr.astype(np.int64),
        index=a.indices.astype(np.int64),
        value=a.data,
        row_lower=np.array(lower, dtype=np.float64),
        row_upper=np.array(upper, dtype=np.float64),
        col_lower=np.full(n, box[0]),
        col_upper=np.full(n, box[1]),
        integer=np.full(n, integer),
    )


def market_split() -> StandardForm:
    """Five equations in forty binaries, with slacks to minimise: hours of work for any solver (Cornuejols, Dawande)."""
    rng = np.random.default_rng(5)
    a = rng.integers(0, 100, (5, 40)).astype(float)
    both = np.hstack([a, np.eye(5), -np.eye(5)])
    half = np.floor(a.sum(axis=1) / 2)
    form = form_of([0.0] * 40 + [1.0] * 10, both.tolist(), half.tolist(), half.tolist())
    binary = np.arange(50) < 40
    return replace(form, integer=binary, col_upper=np.where(binary, 1.0, 1e4))


def test_a_cheap_and_a_dear_good_share_one_place() -> None:
    """One unit is needed, the cheap good covers 0.6 of it at 1 EUR, the dear one the rest at 3 EUR: 0.6 + 1.2 EUR."""
    form = replace(form_of([1.0, 3.0], [[1.0, 1.0]], [1.0], [1.0]), col_upper=np.array([0.6, 1.0]))
    result = solve(Task(form), LIMIT_S)
    assert result.status is Status.OPTIMAL
    np.testing.assert_allclose(result.x, [0.6, 0.4])
    assert result.objective == pytest.approx(1.8)
    # the marginal unit costs 3 EUR: 3 * 1 + (1 - 3) * 0.6
    assert result.row_dual == pytest.approx([3.0])
    assert dual_bound(form, np.array([3.0]))[0] == pytest.approx(1.8)


def test_a_knapsack_takes_the_best_pair() -> None:
    """Values 5, 4, 3 with weights 4, 3, 2 in a bag for 5: the last two, worth 7."""
    form = form_of([-5.0, -4.0, -3.0], [[4.0, 3.0, 2.0]], [-np.inf], [5.0], integer=True)
    result = solve(Task(form), LIMIT_S)
    np.testing.assert_allclose(result.x, [0.0, 1.0, 1.0])
    assert result.objective == pytest.approx(-7.0)
    assert result.bound == pytest.approx(-7.0)
    assert result.row_dual is None


def test_a_start_point_is_taken() -> None:
    form = market_split()
    start = np.zeros(50)
    start[40:45] = form.row_lower
    result = solve(Task(form, start=start), 0.5)
    assert result.objective <= form.objective(start) + 1e-6


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_small_binary_programmes_agree_with_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost, matrix = rng.integers(-9, 10, 6), rng.integers(-5, 6, (2, 6))
    form = form_of(cost.tolist(), matrix.tolist(), [-np.inf] * 2, [3.0, 4.0], integer=True)
    points = np.array(list(itertools.product([0.0, 1.0], repeat=6)))
    allowed = points[(points @ matrix.T <= [3.0, 4.0]).all(axis=1)]
    best = (allowed @ cost).min()
    assert solve(Task(form), LIMIT_S).objective == pytest.approx(best)
    relaxed = solve(Task(form.relaxed()), LIMIT_S)
    assert relaxed.row_dual is not None
    assert dual_bound(form, relaxed.row_dual)[0] == pytest.approx(relaxed.objective)
    assert relaxed.objective <= best + 1e-9


def test_a_pyomo_model_becomes_its_matrices() -> None:
    """min 2 x + 3 y + 7, x + y >= 1, x - y = 0.5, y whole: rows, boxes and offset as written."""
    model = pyo.ConcreteModel()
    model.x, model.y = pyo.Var(bounds=(0, 2)), pyo.Var(domain=pyo.Integers, bounds=(0, 3))
    model.cost = pyo.Objective(expr=2 * model.x + 3 * model.y + 7)
    model.enough = pyo.Constraint(expr=model.x + model.y >= 1)
    model.tied = pyo.Constraint(expr=model.x - model.y == 0.5)
    compiled = compile_model(model)
    x, y = compiled.columns([model.x, model.y])
    enough, tied = (0, 1) if np.isinf(compiled.form.row_upper[0]) else (1, 0)
    form = compiled.form
    assert form.offset == 7.0
    assert (form.cost[x], form.cost[y]) == (2.0, 3.0)
    assert (form.row_lower[enough], form.row_upper[enough]) == (1.0, np.inf)
    assert (form.row_lower[tied], form.row_upper[tied]) == (0.5, 0.5)
    assert (form.col_upper[x], form.col_upper[y]) == (2.0, 3.0)
    assert form.integer.tolist() == [bool(column == y) for column in range(2)]
    dense = csc_array((form.value, form.index, form.start)).toarray()
    assert (dense[tied, x], dense[tied, y]) == (1.0, -1.0)
    result = solve(Task(form), LIMIT_S)
    assert result.objective == pytest.approx(2 * 1.5 + 3 + 7)  # y = 1, x = 1.5: y = 0 gives x + y = 0.5 only


def test_a_model_that_maximises_is_refused() -> None:
    model = pyo.ConcreteModel(name="greedy")
    model.x = pyo.Var(bounds=(0, 1))
    model.gain = pyo.Objective(expr=model.x, sense=pyo.maximize)
    model.row = pyo.Constraint(expr=model.x <= 1)
    with pytest.raises(ConfigError, match="greedy: the objective must be minimised"):
        compile_model(model)


def test_components_have_the_optimum_of_the_whole() -> None:
    matrix = [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    form = replace(form_of([1.0, 2.0, 5.0, 4.0], matrix, [1.0, 1.0], [2.0, 2.0]), offset=10.0)
    parts = components(form)
    assert sorted(tuple(columns) for _, columns in parts) == [(0, 1), (2, 3)]
    results = solve_all([Task(part) for part, _ in parts], LIMIT_S)
    assert sum(result.objective for result in results) == pytest.approx(solve(Task(form), LIMIT_S).objective)
    assert sum(result.objective for result in results) == pytest.approx(15.0)


def test_a_row_at_its_dual_price_keeps_the_optimum_and_falls_apart() -> None:
    """A unit is needed, 0.6 of it costs 1 EUR each, the rest 3 EUR: at a price of 3 EUR the bound is 1.8 EUR."""
    form = replace(form_of([1.0, 3.0], [[1.0, 1.0]], [1.0], [np.inf]), col_upper=np.array([0.6, 1.0]))
    cheap = priced(form, np.array([0]), np.array([3.0]))
    assert len(cheap.row_lower) == 0
    assert cheap.offset == 3.0
    np.testing.assert_allclose(cheap.cost, [-2.0, 0.0])
    ((alone, columns),) = components(cheap)  # columns without rows are one part
    assert columns.tolist() == [0, 1]
    assert solve(Task(alone), LIMIT_S).objective == pytest.approx(1.8)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_rows_at_any_price_give_a_true_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-3, 6, (3, 5)).astype(float)
    need = np.minimum(matrix.clip(0).sum(axis=1), 2.0)
    form = form_of(rng.integers(-4, 9, 5).tolist(), matrix.tolist(), need.tolist(), [np.inf] * 3, integer=True)
    cheap = priced(form, np.array([0, 2]), rng.uniform(0.0, 3.0, 2))
    points = np.array(list(itertools.product([0.0, 1.0], repeat=5)))
    feasible = points[(points @ matrix.T >= need).all(axis=1)]
    if len(feasible):
        bound = sum(solve(Task(part), LIMIT_S).objective for part, _ in components(cheap))
        assert bound <= (feasible @ form.cost).min() + 1e-9


def test_an_infeasible_programme_is_an_error() -> None:
    form = form_of([1.0], [[1.0]], [2.0], [3.0])
    with pytest.raises(InfeasibleError, match="1 variables and 1 rows has no feasible point"):
        solve(Task(form), LIMIT_S)


def test_an_unbounded_programme_is_an_error_with_its_status() -> None:
    form = form_of([-1.0], [[0.5]], [0.0], [np.inf], box=(0.0, np.inf))
    with pytest.raises(SolverError, match=r"status 'unbounded.*proves nothing"):
        solve(Task(form), LIMIT_S)


def test_a_refused_programme_is_an_error() -> None:
    form = replace(form_of([1.0], [[1.0]], [0.0], [1.0]), index=np.array([5]))  # there is no row 5
    with pytest.raises(SolverError, match=r"status 'failed' \(ValueError: the programme was refused\)"):
        solve(Task(form), LIMIT_S)


def test_nan_is_refused_before_the_solver_sees_it() -> None:
    form = replace(form_of([1.0], [[1.0]], [0.0], [1.0]), cost=np.array([np.nan]))
    with pytest.raises(DataError, match="cost of a programme must be numbers, got NaN"):
        solve(Task(form), LIMIT_S)


def test_the_time_limit_is_kept_and_its_bound_is_true() -> None:
    began = time.monotonic()
    result = solve(Task(market_split()), 0.5)
    assert time.monotonic() - began < 0.5 + solvers.KILL_AFTER_S + 1.0
    assert result.status is Status.TIME_LIMIT
    assert result.bound <= result.objective


def test_without_time_nothing_is_claimed() -> None:
    result = solve(Task(market_split()), 0.0)
    assert (result.status, result.x, result.bound) == (Status.TIME_LIMIT, None, -np.inf)


def test_a_child_that_overruns_is_killed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    # the child is told 1000 s, the parent waits 0.5 s: as if the solver did not look at its clock
    monkeypatch.setattr(solvers, "KILL_AFTER_S", 0.5 - 1000.0)
    began = time.monotonic()
    result = solve(Task(market_split()), 1000.0)
    assert time.monotonic() - began < 5.0
    assert (result.status, result.x, result.bound) == (Status.TIME_LIMIT, None, -np.inf)
    monkeypatch.undo()
    assert probe()[0].ok


def test_a_child_that_dies_is_an_error_and_is_replaced() -> None:
    assert probe()[0].ok
    (worker,) = solvers._idle[-1:]
    timer = threading.Timer(0.3, worker.process.kill)
    timer.start()
    with pytest.raises(SolverError, match="died without an answer"):
        solve(Task(market_split()), 1000.0)
    assert probe()[0].ok


def test_a_child_that_died_idle_is_replaced() -> None:
    assert probe()[0].ok
    for worker in solvers._idle:
        worker.process.kill()
        worker.process.wait()
    assert probe()[0].ok


def test_a_child_that_dies_before_the_programme_arrives_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe()[0].ok
    worker = solvers._idle[-1]
    worker.process.kill()
    worker.process.wait()
    monkeypatch.setattr(solvers._Worker, "alive", lambda self: True)
    with pytest.raises(SolverError, match=r"died (before it got the programme|without an answer)"):
        solve(Task(market_split()), 5.0)
    monkeypatch.undo()
    assert probe()[0].ok


def test_one_failure_of_many_is_not_lost() -> None:
    good, bad = form_of([1.0], [[1.0]], [0.0], [1.0]), form_of([1.0], [[1.0]], [2.0], [3.0])
    with pytest.raises(InfeasibleError, match="no feasible point"):
        solve_all([Task(good), Task(bad), Task(good)], LIMIT_S)
    assert probe()[0].ok


def test_a_missing_solver_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "highspy.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stop_workers()
    with pytest.raises(SolverError, match=r"could not be loaded: not here; install it \(pip install highspy\)"):
        solve(Task(form_of([1.0], [[1.0]], [0.0], [1.0])), LIMIT_S)
    (info,) = probe()
    assert (info.name, info.ok) == ("HiGHS", False)
    assert "could not be loaded" in info.detail


def test_an_interpreter_that_cannot_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    stop_workers()
    with pytest.raises(SolverError, match="could not be started"):
        solve(Task(form_of([1.0], [[1.0]], [0.0], [1.0])), LIMIT_S)


def test_the_probe_solves_and_reports_the_version() -> None:
    (info,) = probe()
    assert info.ok
    assert info.detail == "LP and MILP solved"
    assert info.version.split(".")[0].isdigit()


def test_the_child_imports_neither_the_project_nor_pyomo() -> None:
    child = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", solvers.__file__],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=True,
    )
    names = {line.rsplit(b"|", 1)[-1].strip().split(b".")[0] for line in child.stderr.splitlines()}
    assert b"highspy" in names
    assert not names & {b"evcs_gym", b"pyomo", b"numba", b"torch", b"scipy", b"gymnasium"}


SCRIPT = """
import sys
print("ran", flush=True)  # printed twice if a child imported the caller's script again
from evcs_gym.baselines.solvers import probe
print(probe()[0].ok, flush=True)
"""


@pytest.mark.parametrize("how", ["script", "-c", "-"])
def test_scripts_without_a_guard_and_prompts_can_solve(how: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = {"script": [str(tmp_path / "script.py")], "-c": ["-c", SCRIPT], "-": ["-"]}[how]
    done = subprocess.run([sys.executable, *arguments], input=SCRIPT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["ran", "True"], done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
@pytest.mark.parametrize("n_tasks", [1, 2])
def test_an_interrupt_ends_the_solve_and_the_child(n_tasks: int, tmp_path: Path) -> None:
    (tmp_path / "hard.pickle").write_bytes(pickle.dumps(market_split()))
    code = textwrap.dedent(f"""
        import pathlib, pickle, signal
        from evcs_gym.baselines import solvers
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits "ignore"
        form = pickle.loads(pathlib.Path({str(tmp_path / "hard.pickle")!r}).read_bytes())
        solvers.probe()
        print(solvers._idle[-1].process.pid, flush=True)
        solvers.solve_all([solvers.Task(form)] * {n_tasks}, 1000.0)
    """)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        time.sleep(0.7)
        began = time.monotonic()
        parent.send_signal(signal.SIGINT)
        _, stderr = parent.communicate(timeout=20)
        assert time.monotonic() - began < 15.0  # of a solve that takes its 1000 s
    finally:
        parent.kill()
    assert b"KeyboardInterrupt" in stderr
    with pytest.raises(ProcessLookupError):
        os.kill(child_pid, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_children_of_its_own() -> None:
    code = textwrap.dedent("""
        import os
        from evcs_gym.baselines import solvers
        assert solvers.probe()[0].ok
        before = [worker.process.pid for worker in solvers._idle]
        if (pid := os.fork()) == 0:
            good = solvers.probe()[0].ok and before != [worker.process.pid for worker in solvers._idle]
            solvers.stop_workers()
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert solvers.probe()[0].ok and before == [worker.process.pid for worker in solvers._idle]
        print("fine")
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["fine"], done.stderr


# --------------------------------------------------------------------------------------------- programmes that stay


def test_a_loaded_programme_follows_its_costs_and_right_sides() -> None:
    # x + y = 1 in [0, 1]: all into the cheaper column; then half a unit more than one column holds
    form, hot = form_of([1.0, 2.0], [[1.0, 1.0]], [1.0], [1.0]), HotProgrammes()
    hot.load(0, form)
    assert hot.solve(0, form, LIMIT_S).tolist() == [1.0, 0.0]
    other = replace(form, cost=np.array([2.0, 1.0]))
    assert hot.solve(0, other, LIMIT_S).tolist() == [0.0, 1.0]
    more = replace(other, row_lower=np.array([1.5]), row_upper=np.array([1.5]))
    assert hot.solve(0, more, LIMIT_S).tolist() == [0.5, 1.0]
    assert hot.solve(0, form, LIMIT_S).tolist() == [1.0, 0.0]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_hot_start_ends_where_a_cold_one_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(4, 8)).tolist()
    hot = HotProgrammes()
    for number in range(4):
        cost, side = rng.normal(size=8).tolist(), rng.normal(size=4)
        form = form_of(cost, matrix, (side - 1.0).tolist(), (side + 1.0).tolist(), box=(-5.0, 5.0))
        if number == 0:
            loaded = form
            hot.load(3, loaded)
        form = replace(form, value=loaded.value)
        assert form.objective(hot.solve(3, form, LIMIT_S)) == pytest.approx(solve(Task(form), LIMIT_S).objective)


def test_an_impossible_or_unknown_loaded_programme_is_an_error() -> None:
    form, hot = form_of([1.0, 2.0], [[1.0, 1.0]], [1.0], [1.0]), HotProgrammes()
    with pytest.raises(ConfigError, match="no programme is loaded under key 0; call load first"):
        hot.solve(0, form, LIMIT_S)
    hot.load(0, form)
    with pytest.raises(InfeasibleError, match="2 variables and 1 rows has no feasible point"):
        hot.solve(0, replace(form, row_lower=np.array([3.0]), row_upper=np.array([3.0])), LIMIT_S)
    with pytest.raises(DataError, match="cost of a programme must be numbers, got NaN"):
        hot.solve(0, replace(form, cost=np.array([np.nan, 1.0])), LIMIT_S)
    assert hot.solve(0, form, LIMIT_S).tolist() == [1.0, 0.0]  # none of this ends the child
    with pytest.raises(ConfigError, match="the programme under key 0 must keep its matrix, got another one"):
        hot.solve(0, form_of([1.0], [[1.0]], [1.0], [1.0]), LIMIT_S)


def test_a_child_that_dies_or_fails_is_an_error_and_its_programmes_are_gone() -> None:
    form, hot = form_of([1.0, 2.0], [[1.0, 1.0]], [1.0], [1.0]), HotProgrammes()
    hot.load(0, form)
    assert hot._child is not None
    hot._child.process.kill()
    with pytest.raises(SolverError, match="solver HiGHS: died"):
        hot.solve(0, form, LIMIT_S)
    with pytest.raises(ConfigError, match="no programme is loaded under key 0"):
        hot.solve(0, form, LIMIT_S)
    wrong = replace(form, index=np.array([0, 7], dtype=np.int64))  # a row that does not exist
    with pytest.raises(SolverError, match="the programme was refused"):
        hot.load(0, wrong)
    hot.load(0, form)  # a new child
    assert hot.solve(0, form, LIMIT_S).tolist() == [1.0, 0.0]
