"""(Q1) to (Q6): by hand, against the power flow, the textbook's branch-flow programme, and all that stations may do."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from market_problems import problem_by_hand
from network_problems import line_with_load, network_by_hand, plan_at

from evcs_gym.baselines import solvers
from evcs_gym.baselines.certificate import conic_cut, in_second_order_cones
from evcs_gym.baselines.decomposition import (
    Search,
    SlotMatrices,
    cone_rows,
    cut_of,
    plan_cut,
    references_of,
    shared_values,
    slot_matrices,
    solve_slot,
)
from evcs_gym.baselines.forms.network import (
    BOUND_SLACK,
    Reference,
    Tightness,
    branch_ranges_pu,
    self_impedance_pu,
    slot_form,
    whole_form,
)
from evcs_gym.baselines.market_network import tightness_of
from evcs_gym.baselines.problems.network import NetworkProblem, common_excess, plan_flow
from evcs_gym.baselines.solvers import SecondOrderRows, StandardForm, compile_model, solve_second_order
from evcs_gym.envs.errors import DataError, SolverError
from evcs_gym.envs.grid import Feeder, load_feeder
from evcs_gym.envs.grid.devices import CapacitorBank, Devices, Oltc
from evcs_gym.envs.types import FloatArray

FOREVER = 1e12
SOLVED = 1e-6
"""Voltages of a cone programme solved to 1e-10 are this exact."""


def city(load_frac: float = 0.6, devices: Devices | None = None, **limits: float) -> NetworkProblem:
    """Two stations on the unbalanced 33-bus feeder, whose phases are coupled."""
    market = problem_by_hand(1, 2, bus=[17, 24], pv_kw=[700, 200], ev_kw=[0, 300], storage_kw=300.0)
    moves = Devices(Oltc(start=4), (CapacitorBank(29, 200.0, 3, 2),)) if devices is None else devices
    return network_by_hand(market, load_feeder("synthetic33"), load_frac=load_frac, devices=moves, **limits)


def flat(problem: NetworkProblem) -> Reference:
    """No current, the head's voltage everywhere."""
    unit = np.exp(-2j * np.pi / 3.0 * np.arange(3)) * problem.head_pu[problem.own[0]]
    return Reference(unit * problem.feeder.phase_present, np.zeros((len(problem.feeder), 3), dtype=complex))


def least_current(problem: NetworkProblem, matrices: SlotMatrices, shared: FloatArray) -> tuple[FloatArray, FloatArray]:
    """sqrt(v) and P of the programme with the least sum of l at given shared values, excess zero."""
    form, model = matrices.compiled.form, matrices.form.model
    cost, fixed, x = np.zeros_like(form.cost), np.zeros(len(form.cost), dtype=np.bool_), np.zeros(len(form.cost))
    cost[matrices.compiled.columns(list(model.l.values()))] = 1.0
    fixed[matrices.shared], x[matrices.shared] = True, shared
    fixed[matrices.compiled.columns([model.excess])] = True
    answer = solve_second_order(replace(form, cost=cost).fixed(fixed, x), matrices.cones, 30.0)
    v, p = (answer.x[matrices.compiled.columns(list(variable.values()))] for variable in (model.v, model.P))
    return np.sqrt(v), p


# --- by hand -------------------------------------------------------------------------------------------------


def test_rows_of_a_single_branch_by_hand() -> None:
    """53.425 ohm are 1 pu: 0.1 + 0.05j; 0.3 + 0.12j pu of load; the station injects 150 kW, 0.05 pu per phase."""
    base = 12.66**2 / 3.0
    feeder = line_with_load(1, 0.1 * base, 0.05 * base, 300 + 120j)
    problem = network_by_hand(problem_by_hand(1), feeder, load_frac=1.0, vmin_pu=0.5)
    form = slot_form(problem, 0, flat(problem), Tightness())
    p, q, current, head = 0.26, 0.13, 0.2, 1.0
    for phase in range(3):
        form.model.P[1, phase].value, form.model.Q[1, phase].value = p, q
        form.model.l[1, phase].value, form.model.v[1, phase].value = current, 0.9
    form.model.head.value, form.model.position[0].value, form.model.excess.value = head, 150.0, 0.0
    drop = form.model.q1_voltage_drop[1, 0]
    assert drop.body() - drop.upper() == pytest.approx(0.9 - (1.0 - 2 * (0.1 * p + 0.05 * q) + 0.0125 * current))
    active = form.model.q2_active_balance[1, 2]
    assert active.body() - active.upper() == pytest.approx(p - 0.1 * current + 0.05 - 0.3)
    reactive = form.model.q3_reactive_balance[1, 1]
    assert reactive.body() - reactive.upper() == pytest.approx(q - 0.05 * current - 0.12)
    first, *others = form.cones[0].rows
    sizes = [constant + sum(a * x.value for a, x in zip(factor, variable, strict=True))
             for constant, factor, variable in (first, *others)]  # fmt: skip
    assert sizes == pytest.approx([head + current, head - current, 2 * p, 2 * q])


def test_capacitor_steps_give_b_v_or_nothing() -> None:
    """600 kvar in 3 steps of 200: a step is 0.0667 pu per phase times v; two of three are in service."""
    problem = city()
    plan = plan_at(problem, np.array([[0.0, 0.0]]))
    matrices = slot_matrices(problem, 0, references_of(problem, plan)[0], Tightness(BOUND_SLACK))
    form, model = matrices.compiled.form, matrices.form.model
    fixed, x = np.zeros(len(form.cost), dtype=np.bool_), np.zeros(len(form.cost))
    fixed[matrices.shared], x[matrices.shared] = True, shared_values(problem, plan)[0]
    answer = solve_second_order(form.fixed(fixed, x), matrices.cones, 30.0)
    given = {key: answer.x[matrices.compiled.columns([variable])][0] for key, variable in model.kvar.items()}
    v = {f: answer.x[matrices.compiled.columns([model.v[29, f]])][0] for f in range(3)}
    for f in range(3):
        assert [given[0, i, f] for i in range(3)] == pytest.approx([v[f] / 15, v[f] / 15, 0.0], abs=1e-7)


def test_the_self_impedance_of_a_lateral_is_that_of_the_phases_present() -> None:
    impedance = np.zeros((4, 3, 3), dtype=complex)
    impedance[1] = np.full((3, 3), 0.3 + 0.3j) + np.diag([0.7, 0.8, 0.9])
    impedance[2, :2, :2] = [[1.0, 0.2], [0.2, 1.4]]
    impedance[3, 0, 0] = 0.5
    feeder = Feeder.from_arrays(
        parent=[-1, 0, 1, 2], impedance_ohm=impedance, line_to_line_kv=12.66, load_kva=np.zeros((4, 3))
    )
    assert self_impedance_pu(feeder) * feeder.base_ohm == pytest.approx([0.0, 0.8, 1.0, 0.0])


# --- against the power flow ----------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [(700.0, -500.0), (-300.0, 400.0)])
def test_at_its_reference_the_programme_is_the_power_flow(position: tuple[float, float]) -> None:
    """Coupled phases, unbalanced loads, capacitors: exact, with tight cones."""
    problem = city()
    slack, mismatch = tightness_of(problem, plan_at(problem, np.array([position])))
    assert slack < SOLVED
    assert mismatch < SOLVED


def test_phases_that_are_absent_have_no_variables_and_the_rest_is_the_power_flow() -> None:
    impedance = np.zeros((4, 3, 3), dtype=complex)
    impedance[1] = np.full((3, 3), 1.0 + 2.0j) + np.diag([2.0, 2.2, 2.4])
    impedance[2, :2, :2] = [[2.0 + 1j, 0.6 + 0.8j], [0.6 + 0.8j, 2.4 + 1j]]
    impedance[3, 0, 0] = 3.0 + 1j
    load = np.zeros((4, 3), dtype=complex)
    load[1], load[2, :2], load[3, 0] = [200, 100, 300j], [100 + 50j, 80], 90 + 20j
    feeder = Feeder.from_arrays(parent=[-1, 0, 1, 2], impedance_ohm=impedance, line_to_line_kv=12.66, load_kva=load)
    problem = network_by_hand(problem_by_hand(1, bus=[1]), feeder, load_frac=1.0)
    slack, mismatch = tightness_of(problem, plan_at(problem, np.array([[-400.0]])))
    form = slot_form(problem, 0, flat(problem), Tightness())
    assert sorted(form.model.P) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)]
    assert max(slack, mismatch) < SOLVED


def test_without_coupling_it_is_the_plain_branch_flow_programme_whatever_the_reference() -> None:
    """Farivar and Low 2013: tight and exact for loads; kappa and eta vanish, so a flat reference changes nothing."""
    feeder = load_feeder("case33bw")
    market = problem_by_hand(1, 2, bus=[17, 24], connection_kw=2000.0, storage_kw=500.0)
    problem = network_by_hand(market, feeder, load_frac=1.0, vmin_pu=0.85)
    plan = plan_at(problem, np.array([[-300.0, 200.0]]))
    matrices = slot_matrices(problem, 0, flat(problem), Tightness(BOUND_SLACK))
    size, p = least_current(problem, matrices, shared_values(problem, plan)[0])
    cells, flow = list(matrices.form.model.v), plan_flow(problem, plan)
    true = np.array([abs(flow.voltage_pu[0][cell]) for cell in cells])
    assert np.abs(size - true).max() < SOLVED
    sent = sum(value for cell, value in zip(cells, p.tolist(), strict=True) if cell[0] == 1)
    loads = feeder.load_kva.real.sum() + 100.0
    assert (1000.0 * sent - loads) == pytest.approx(float(flow.loss_kw[0]), abs=1e-2)


def test_the_known_losses_of_the_33_bus_feeder_come_out() -> None:
    """202.677 kW (Baran and Wu 1989, as recomputed by everyone since)."""
    problem = network_by_hand(problem_by_hand(1, bus=[1]), load_feeder("case33bw"), load_frac=1.0, vmin_pu=0.85)
    matrices = slot_matrices(problem, 0, flat(problem), Tightness(BOUND_SLACK))
    _, p = least_current(problem, matrices, shared_values(problem, plan_at(problem, np.zeros((1, 1))))[0])
    first = [value for cell, value in zip(matrices.form.model.P, p.tolist(), strict=True) if cell[0] == 1]
    assert 1000.0 * sum(first) - 3715.0 == pytest.approx(202.677, abs=2e-3)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-1.0, 1.0), min_size=2, max_size=2))
def test_what_the_power_flow_allows_no_cut_of_the_relaxation_forbids(share: list[float]) -> None:
    """Cuts of three references, one of them taken at a position that breaks limits; up to the linearisation error."""
    plan = plan_at(STRESSED, 500.0 * np.array([share]))
    assume(common_excess(STRESSED, plan)[0] <= 0.0)
    values = shared_values(STRESSED, plan)[0]
    for constant, slope in CUTS:
        assert constant + slope @ values <= 2e-4


STRESSED = city(0.7, vmin_pu=0.94, vmax_pu=1.03)


def _cuts() -> list[tuple[float, FloatArray]]:
    out = []
    search = Search(STRESSED, 1e-4, FOREVER)
    for position in ((-500.0, -500.0), (-500.0, 300.0)):
        plan = plan_at(STRESSED, np.array([position]))
        matrices = slot_matrices(STRESSED, 0, references_of(STRESSED, plan)[0], Tightness(BOUND_SLACK))
        answer = solve_slot(search, matrices, shared_values(STRESSED, plan)[0])
        cut = cut_of(0, matrices, answer.row_dual, answer.cone_dual)
        assert cut.constant + cut.slope @ shared_values(STRESSED, plan)[0] > 1e-3
        out.append((cut.constant, cut.slope))
    return out


CUTS = _cuts()


def test_branches_stay_within_the_ranges_of_the_chords() -> None:
    """Whatever the stations do within theirs."""
    problem = city()
    low_p, high_p, low_q, high_q = branch_ranges_pu(problem, 0)
    rng = np.random.default_rng(1)
    for _ in range(20):
        plan = plan_at(problem, rng.uniform([[400, -400]], [[1000, 200]]))
        reference = references_of(problem, plan)[0]
        power = reference.voltage_pu[problem.feeder.parent] * np.conj(reference.current_pu)
        inside = (power.real >= low_p) & (power.real <= high_p) & (power.imag >= low_q) & (power.imag <= high_q)
        assert inside[1:].all()


def test_a_cut_of_the_plan_says_what_the_power_flow_says_and_leads_back_to_the_limit() -> None:
    """One step along the cut removes the excess but for its square."""
    problem = STRESSED
    plan = plan_at(problem, np.array([[-500.0, -100.0]]))
    excess, values = common_excess(problem, plan), shared_values(problem, plan)[0]
    cut = plan_cut(Search(problem, 1e-4, FOREVER), 0, references_of(problem, plan)[0], values, float(excess[0]))
    assert excess[0] > 1e-3
    assert cut.constant + cut.slope @ values == pytest.approx(excess[0])
    step = -excess[0] / cut.slope[0]
    after = common_excess(problem, plan_at(problem, np.array([[-500.0 + step, -100.0]])))
    assert abs(after[0]) < 0.05 * excess[0]


def test_unbalance_is_limited_at_the_bus_that_shows_it() -> None:
    """(Q6) at its reference says what the power flow says: the excess over a tight limit is the same."""
    problem = city(0.8, vmin_pu=0.8, vmax_pu=1.2, unbalance_frac=0.001)
    loose = replace(problem, limits=replace(problem.limits, unbalance_frac=0.5 * problem.limits.unbalance_frac))
    plan = plan_at(loose, np.array([[0.0, 0.0]]))
    matrices = slot_matrices(loose, 0, references_of(loose, plan)[0], Tightness(0.0, 1e-6))
    assert any(cone.name.startswith("q6_unbalance") for cone in matrices.form.cones)
    answer = solve_slot(Search(loose, 1e-4, FOREVER), matrices, shared_values(loose, plan)[0])
    assert answer.objective == pytest.approx(common_excess(loose, plan)[0], rel=1e-2)


def test_the_whole_model_has_the_rows_of_every_slot() -> None:
    problem = city()
    form, cones = whole_form(problem, references_of(problem, plan_at(problem, np.zeros((1, 2)))), Tightness())
    assert len(cones) >= 96
    assert len(form.stations.model.network[0].q1_voltage_drop) == 96


# --- duals and the solver ------------------------------------------------------------------------------------


def least_radius() -> tuple[StandardForm, SecondOrderRows]:
    """min r with |(3, y)| <= r, 0 <= r <= 9, -4 <= y <= 4, y shared: sqrt(9 + y^2)."""
    form = StandardForm(
        cost=np.array([1.0, 0.0]), offset=0.0, start=np.array([0, 0, 0]), index=np.zeros(0, dtype=np.int64),
        value=np.zeros(0), row_lower=np.zeros(0), row_upper=np.zeros(0), col_lower=np.array([0.0, -4.0]),
        col_upper=np.array([9.0, 4.0]), integer=np.zeros(2, dtype=np.bool_),
    )  # fmt: skip
    cones = SecondOrderRows(
        np.array([0.0, 3.0, 0.0]), np.array([0, 2]), np.array([0, 1]), np.array([1.0, 1.0]), np.array([3])
    )
    return form, cones


def test_a_cone_programme_by_hand() -> None:
    form, cones = least_radius()
    answer = solve_second_order(form.fixed(np.array([False, True]), np.array([0.0, 4.0])), cones, 10.0)
    assert (answer.objective, answer.ray) == (pytest.approx(5.0), False)
    constant, slope = conic_cut(form, cones, answer.row_dual, answer.cone_dual, np.array([1]))
    assert (constant, slope[0]) == (pytest.approx(9.0 / 5.0, abs=1e-6), pytest.approx(4.0 / 5.0, abs=1e-6))


@settings(deadline=None)
@given(st.lists(st.floats(-3.0, 3.0), min_size=3, max_size=3), st.floats(-4.0, 4.0))
def test_any_duals_of_cones_give_a_true_cut(dual: list[float], y: float) -> None:
    form, cones = least_radius()
    constant, slope = conic_cut(form, cones, np.zeros(0), np.array(dual), np.array([1]))
    assert constant + slope[0] * y <= np.hypot(3.0, y) + 1e-9


def test_duals_outside_their_cone_are_raised_into_it() -> None:
    cones = SecondOrderRows(
        np.zeros(5), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0), np.array([2, 3])
    )
    raised = in_second_order_cones(cones, np.array([1.0, -2.0, 9.0, 3.0, 4.0]))
    assert raised == pytest.approx([2.0, -2.0, 9.0, 3.0, 4.0])


def test_an_infeasible_cone_programme_gives_a_ray() -> None:
    form, cones = least_radius()
    tight = replace(form, col_upper=np.array([2.0, 4.0]))
    answer = solve_second_order(tight, cones, 10.0)
    free = replace(tight, cost=np.zeros(2))
    assert answer.ray
    assert conic_cut(free, cones, answer.row_dual, answer.cone_dual, np.array([1]))[0] > 0.0


def test_nan_and_a_missing_solver_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    form, cones = least_radius()
    with pytest.raises(DataError, match=r"cost of a programme must be numbers, got NaN"):
        solve_second_order(replace(form, cost=np.array([np.nan, 0.0])), cones, 1.0)

    def missing(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(solvers.importlib, "import_module", missing)
    with pytest.raises(SolverError, match=r"Clarabel: could not be loaded: no clarabel; install it"):
        solve_second_order(form, cones, 1.0)


def test_a_cone_programme_without_time_proves_nothing() -> None:
    problem = city()
    plan = plan_at(problem, np.zeros((1, 2)))
    matrices = slot_matrices(problem, 0, references_of(problem, plan)[0], Tightness())
    with pytest.raises(SolverError, match=r"Clarabel: ended with status 'MaxTime', which proves nothing"):
        solve_second_order(matrices.compiled.form, matrices.cones, 1e-9)


def test_cones_without_variables_have_constant_rows_only() -> None:
    form = slot_form(city(), 0, flat(city()), Tightness())
    compiled = compile_model(form.model)
    rows = cone_rows(form.cones, compiled)
    assert rows.size.sum() == len(rows.constant)
    assert rows.row.max() < len(rows.constant)
