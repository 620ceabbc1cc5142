"""The exact optimum of normal charging: bound, rounding, restricted programmes, lazy voltage rows.

1. *Bound*: the LP of ``modulated`` without network. Every policy of either mode obeys it.
2. *Plan without network*: the programme of the scenario's own mode. It falls apart into buses. For each, the LP
   relaxation; a MILP in which only the fractional columns are free; the local search; then, where the gap is still too
   large, a MILP in which all columns are free that the reduced costs do not rule out: its bound is that of the whole.
3. *Network*: the exact power flow of the plan; where it breaks limits, linear voltage rows with a priced slack are
   added and the programme is solved again, until no new row is needed. The rows couple the buses; with the rows at
   their dual prices it falls apart again, which gives a bound and a start. The exact power flow prices the plan.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from evcs_gym.baselines.certificate import Certificate, Solution, SolutionStatus, dual_bound, relative_gap
from evcs_gym.baselines.forms import normal_charging as forms
from evcs_gym.baselines.forms.normal_charging import NormalForm, VoltageRows
from evcs_gym.baselines.local_search import improved, kicked
from evcs_gym.baselines.problems import normal_charging as problems
from evcs_gym.baselines.problems.normal_charging import Classes, NetworkProblem, NormalPlan, NormalProblem
from evcs_gym.baselines.solvers import (
    N_WORKERS,
    SOLVER_NAME,
    Compiled,
    StandardForm,
    Task,
    compile_model,
    components,
    priced,
    solve_all,
    solver_version,
)
from evcs_gym.envs.errors import ConvergenceError, SolverError
from evcs_gym.envs.fleet.normal import replay
from evcs_gym.envs.grid.linear import lindistflow
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

WHOLE = 1e-6
"""A column within this of a whole number is whole: the solver's own tolerance."""
ROUNDING_EUR = 1e-7
"""A gap below this is rounding: nothing is left to prove."""
FIXING_MARGIN_EUR = 1e-6
"""Reduced costs rule a column out only if they exceed the gap by this, against rounding."""
BOX_TOLERANCE = 1e-5
"""A solver's answer further outside its box than this is an error, not rounding."""
MARGIN_PU = 0.005
"""Largest margin of a voltage row; its own is the optimism found that stretching its slope does not remove."""
MAX_STRETCH = 2.0
"""Largest factor on the slope of a linear voltage."""
LEAST_CHANGE_PU = 1e-3
"""A linear change of voltage below this is too small to measure a factor on it."""
NEAR_PU = 0.001
"""In a slot with a violation, bus-phases this close to a limit get a row too: fewer rounds."""
VIOLATION_PU = 1e-6
"""Excess below this is rounding."""
MAX_ROUNDS = 20
KICK_SHARE_FRAC = 0.3
"""Share of the time left that the iterated local search may take before the MILP with all rows."""
WORTH_JUDGING_FRAC = 0.1
"""A plan of an earlier round is taken if it saves more than this share of the gap asked for: judging it is a solve."""
MAX_CORRECTIONS = 3
"""Times that all rows are made exact at the latest plan, where their error is worth more than the gap asked for."""
LEAST_GAP = 1e-4
"""Errors of the rows below this share of the cost are not worth another round, however small the gap asked for."""


@dataclass(frozen=True)
class Budget:
    """Wall time of a search, by the monotonic clock."""

    began_s: float
    limit_s: float

    def left_s(self) -> float:
        """Seconds left, negative when over."""
        return self.began_s + self.limit_s - time.monotonic()


@dataclass(frozen=True, eq=False)
class Part:
    """An independent part of a programme: best point and what is proven.

    columns: in the whole. x: None where nothing was found. bound_eur: the best known; relaxation_eur: the one to which
    row_dual and reduced_cost belong.
    """

    form: StandardForm
    columns: IntArray
    x: FloatArray | None
    bound_eur: float
    relaxation_eur: float
    row_dual: FloatArray
    reduced_cost: FloatArray

    @property
    def cost_eur(self) -> float:
        """Cost of the best point, +inf without one."""
        return np.inf if self.x is None else self.form.objective(self.x)

    @property
    def gap_eur(self) -> float:
        """What is not proven."""
        return max(0.0, self.cost_eur - self.bound_eur)

    @property
    def fractional(self) -> BoolArray:
        """Integer columns whose value is not whole."""
        assert self.x is not None
        return self.form.integer & (np.abs(self.x - np.rint(self.x)) > WHOLE)


@dataclass(frozen=True, eq=False)
class Answer:
    """Plan of a programme, its cost in the programme (with the linear voltage rows), and the proven bound."""

    power_kw: FloatArray
    cost_eur: float
    bound_eur: float


def solve_normal_charging(
    scenario: "Scenario", day: "Day", wanted_gap: float = 1e-3, time_limit_s: float = 60.0
) -> Solution:
    """See `evcs_gym.baselines.optimum`."""
    budget = Budget(time.monotonic(), time_limit_s)
    problem, network = problems.problem_of(scenario, day), problems.network_of(scenario, day)
    problems.check_data(problem)
    bound_problem = problems.problem_of(scenario, day, "modulated")
    lower_bound = solve_programme(bound_problem, None, 0.0, budget)
    free = lower_bound if problem.mode == "modulated" else solve_programme(problem, None, wanted_gap, budget)
    found = with_network(problem, network, free, wanted_gap, budget)
    return _certified(scenario, day, problem, network, lower_bound.bound_eur, found, wanted_gap, budget)


# -- one programme ----------------------------------------------------------------------------------------------------


def solve_programme(
    problem: NormalProblem, rows: VoltageRows | None, gap: float, budget: Budget, relaxed: bool = False
) -> Answer:
    """Plan and proven bound of the programme with the given voltage rows; the plan is fractional if ``relaxed``."""
    classes = problems.classes_of(problem)
    if not len(classes.n_cars):
        nobody = np.zeros((len(problem.net_kw), problem.n_sessions))
        cost = programme_cost(problem, rows, nobody)
        return Answer(nobody, cost, cost)
    form = forms.normal_charging(problem, classes, rows)
    compiled = compile_model(form.model)
    parts = relaxations(compiled.form.relaxed() if relaxed else compiled.form, budget, split=rows is None)
    if problem.mode == "on_off" and not relaxed:
        parts = rounded(parts, gap, budget)
        parts = searched(problem, classes, form, compiled, rows, cells_of_parts(classes, form, compiled, parts), parts)
        if rows is not None:
            parts = [decoupled(problem, classes, form, compiled, rows, parts[0], gap, budget)]
        parts = closed(parts, gap, budget)
    plan_problem = replace(problem, mode="modulated") if relaxed else problem
    cells = polished(plan_problem, classes, cells_of_parts(classes, form, compiled, parts))
    power_kw = problems.plan_of_cells(plan_problem, classes, cells)
    return Answer(power_kw, programme_cost(problem, rows, power_kw), float(sum(part.bound_eur for part in parts)))


def programme_cost(problem: NormalProblem, rows: VoltageRows | None, power_kw: FloatArray) -> float:
    """Cost of a plan in a programme: (5), and the slack of the linear voltage rows."""
    cost = problems.cost(problem, power_kw)
    if rows is not None and len(rows.slot):
        cost += rows.price_eur_per_pu * float(rows.slack_pu(problems.connection_power_kw(problem, power_kw)).sum())
    return cost


def polished(problem: NormalProblem, classes: Classes, cells: FloatArray) -> FloatArray:
    """A solver's answer (M,) without its rounding: whole in ``on_off``, else inside its box with exact sums (8).

    Raises:
        SolverError: the answer is off by more than rounding.
    """
    largest = classes.n_cars[classes.cell_class].astype(np.float64)
    whole = problem.mode == "on_off"
    exact = np.rint(np.clip(cells, 0.0, largest)) if whole else np.clip(cells, 0.0, largest)
    off = float(np.abs(exact - cells).max())
    if off > BOX_TOLERANCE:
        raise SolverError(f"solver {SOLVER_NAME}: a charging variable is {off:.3g} away from an allowed value")
    if whole:
        return np.asarray(exact)
    need = classes.need_slots * classes.n_cars
    total = np.add.reduceat(exact, classes.first_cell[:-1])
    room = np.add.reduceat(largest - exact, classes.first_cell[:-1])
    down = np.where(total > need, need / np.maximum(total, WHOLE), 1.0)[classes.cell_class]
    up = np.where(total < need, (need - total) / np.maximum(room, WHOLE), 0.0)[classes.cell_class]
    return np.asarray(exact * down + (largest - exact) * np.minimum(up, 1.0))


def point_of(parts: Sequence[Part], n_columns: int) -> FloatArray:
    """The point (n,) of the whole programme, NaN where a part has none."""
    x = np.full(n_columns, np.nan)
    for part in parts:
        if part.x is not None:
            x[part.columns] = part.x
    return x


def cells_of_parts(classes: Classes, form: NormalForm, compiled: Compiled, parts: Sequence[Part]) -> FloatArray:
    """Cars that charge in each cell, (M,). Cars of a part that ran out of time charge on arrival: that is always
    feasible, and the gap says what it is worth."""
    cells = point_of(parts, len(compiled.form.cost))[compiled.columns(form.charging)]
    return np.where(np.isnan(cells), problems.on_arrival_cells(classes), cells)


def relaxations(form: StandardForm, budget: Budget, split: bool = True) -> list[Part]:
    """The independent parts of a programme with the solutions of their relaxations, which may be fractional."""
    pieces = components(form) if split else [(form, np.arange(len(form.cost)))]
    results = solve_all([Task(part.relaxed()) for part, _ in pieces], budget.left_s())
    parts = []
    for (part, columns), result in zip(pieces, results, strict=True):
        row_dual = np.zeros(len(part.row_lower)) if result.row_dual is None else result.row_dual
        bound, reduced = dual_bound(part, row_dual)
        parts.append(Part(part, columns, result.x, bound, bound, row_dual, reduced))
    return parts


def searched(
    problem: NormalProblem,
    classes: Classes,
    form: NormalForm,
    compiled: Compiled,
    rows: VoltageRows | None,
    cells: FloatArray,
    parts: Sequence[Part],
) -> list[Part]:
    """The parts at the point that the local search finds from a plan's cells (M,), where that is cheaper."""
    power_kw = improved(problem, problems.plan_of_cells(problem, classes, cells), rows)
    return at_plan(problem, classes, form, compiled, rows, power_kw, parts)


def at_plan(
    problem: NormalProblem,
    classes: Classes,
    form: NormalForm,
    compiled: Compiled,
    rows: VoltageRows | None,
    power_kw: FloatArray,
    parts: Sequence[Part],
) -> list[Part]:
    """The parts at a plan (T, S), where that is cheaper."""
    cells = np.rint(problems.cells_of_plan(problem, classes, power_kw))
    variables, values = forms.point_of_plan(form, problem, cells, power_kw, rows)
    x = np.zeros(len(compiled.form.cost))
    x[compiled.columns(variables)] = values
    return [
        replace(part, x=x[part.columns]) if part.form.objective(x[part.columns]) < part.cost_eur else part
        for part in parts
    ]


def decoupled(
    problem: NormalProblem,
    classes: Classes,
    form: NormalForm,
    compiled: Compiled,
    rows: VoltageRows,
    part: Part,
    gap: float,
    budget: Budget,
) -> Part:
    """A programme with voltage rows, its gap narrowed by the same with the rows at their dual prices.

    That one falls apart into buses. Its bound holds for the programme; its plan is a new start of the local search.
    """
    if part.gap_eur <= gap * max(1.0, abs(part.cost_eur)) or not np.isfinite(part.gap_eur):
        return part
    slack = compiled.columns(form.slack)
    voltage_rows = part.form.index[part.form.start[slack]]  # a slack is in its own row only
    cheap = relaxations(priced(part.form, voltage_rows, part.row_dual[voltage_rows]), budget)
    cheap = closed(rounded(cheap, 0.5 * gap, budget), 0.5 * gap, budget)
    cells = np.rint(cells_of_parts(classes, form, compiled, cheap))
    (part,) = searched(problem, classes, form, compiled, rows, cells, [part])
    part = replace(part, bound_eur=max(part.bound_eur, sum(one.bound_eur for one in cheap)))
    cells = np.rint(cells_of_parts(classes, form, compiled, [part]))
    target_eur = part.bound_eur + gap * max(1.0, abs(part.bound_eur))
    plan_kw = problems.plan_of_cells(problem, classes, cells)
    plan_kw = kicked(problem, plan_kw, rows, target_eur, KICK_SHARE_FRAC * budget.left_s())
    return at_plan(problem, classes, form, compiled, rows, plan_kw, [part])[0]


def closed(parts: Sequence[Part], gap: float, budget: Budget) -> list[Part]:
    """Prove, and improve, parts until the sum of their gaps is small enough or time is over."""
    parts, tried = list(parts), set()
    while True:
        allowed = gap * max(1.0, abs(sum(part.cost_eur for part in parts)))
        share = common_gap(np.array([part.gap_eur for part in parts]), allowed)
        gaps = [part.gap_eur if np.isfinite(part.gap_eur) else 0.0 for part in parts]
        wide = [i for i, width in enumerate(gaps) if width > max(share, ROUNDING_EUR) and i not in tried]
        if not wide or budget.left_s() <= 0.0:
            return parts
        # widest first, as many as there are workers: what they leave of the allowance goes to the others
        chosen = sorted(wide, key=lambda i: -parts[i].gap_eur)[:N_WORKERS]
        tried.update(chosen)
        for i, part in zip(chosen, _reduced([parts[i] for i in chosen], share, budget), strict=True):
            parts[i] = part


def common_gap(gaps_eur: FloatArray, allowed_eur: float) -> float:
    """Largest gap s that every part may keep: the sum of min(gap, s) is what is allowed, +inf if all gaps fit."""
    if float(gaps_eur.sum()) <= allowed_eur:
        return float("inf")
    ordered = np.sort(gaps_eur)
    below = np.concatenate([[0.0], np.cumsum(ordered)[:-1]])
    share = (allowed_eur - below) / np.arange(len(ordered), 0, -1)
    return float(share[np.argmax(share <= ordered)])


def rounded(parts: Sequence[Part], gap: float, budget: Budget) -> list[Part]:
    """Whole points: only the fractional columns of the relaxation are free. Always feasible: the free columns of a car
    add up to a whole number."""
    out = list(parts)
    todo = [i for i, part in enumerate(parts) if part.x is not None and part.fractional.any()]
    allowed_eur = 0.5 * gap * max(1.0, abs(sum(part.bound_eur for part in parts))) / max(1, len(todo))
    tasks = []
    for i in todo:
        part, x = parts[i], _whole(parts[i])
        tasks.append(Task(part.form.fixed(part.form.integer & ~part.fractional, x), absolute_gap=allowed_eur))
    for i, result in zip(todo, solve_all(tasks, budget.left_s()), strict=True):
        out[i] = replace(parts[i], x=result.x)
    return out


def _whole(part: Part) -> FloatArray:
    """The point with its integer columns put on whole numbers."""
    assert part.x is not None
    return np.where(part.form.integer, np.rint(part.x), part.x)


def _reduced(parts: Sequence[Part], allowance_eur: float, budget: Budget) -> list[Part]:
    """The parts with a smaller gap: only columns that the reduced costs do not rule out are free.

    A column at an end of its box whose reduced cost exceeds the gap is there in every better point, so that the bound
    of this smaller programme is one of the whole.
    """
    tasks = []
    for part in parts:
        x = _whole(part)
        end = np.where(part.reduced_cost > 0.0, part.form.col_lower, part.form.col_upper)
        room_eur = part.cost_eur - part.relaxation_eur + FIXING_MARGIN_EUR
        ruled_out = part.form.integer & (np.abs(part.reduced_cost) > room_eur)
        tasks.append(Task(part.form.fixed(ruled_out, end), absolute_gap=0.95 * allowance_eur, start=x))
    out = []
    for part, result in zip(parts, solve_all(tasks, budget.left_s()), strict=True):
        bound = max(part.bound_eur, min(result.bound, part.cost_eur))
        better = result.x is not None and part.form.objective(result.x) < part.cost_eur
        out.append(replace(part, x=result.x if better else part.x, bound_eur=bound))
    return out


# -- the network ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Found:
    """A plan as the answer of a programme, that programme's voltage rows (None without), the exact voltages of the plan
    (T, N, P), and the rounds it took."""

    answer: Answer
    rows: VoltageRows | None
    voltage_pu: FloatArray
    n_rounds: int


@dataclass(frozen=True, eq=False)
class Flow:
    """Exact power flow of a plan beside its linear voltages, (T, N, P), and which slots converged, (T,)."""

    voltage_pu: FloatArray
    linear_pu: FloatArray
    converged: BoolArray


def voltage_gain(network: NetworkProblem) -> FloatArray:
    """Change of |V|^2 with the power of each charging bus on each connection, (N, P, C, 4) per kW."""
    resistance = lindistflow(network.feeder).resistance
    per_phase = -resistance[:, :, network.charging_bus, :]
    return np.concatenate([per_phase, per_phase.mean(axis=3, keepdims=True)], axis=3)


def flow_of(problem: NormalProblem, network: NetworkProblem, gain: FloatArray, power_kw: FloatArray) -> Flow:
    """Voltages of a plan: exact, and linear in the cars about the exact flow of the load without them."""
    voltage, converged = problems.plan_voltage(problem, network, power_kw)
    group_kw = problems.connection_power_kw(problem, power_kw)
    change_sq = np.tensordot(group_kw, gain, axes=((1, 2), (2, 3)))
    base = network.base_voltage_pu
    return Flow(voltage, base + change_sq / (2.0 * np.maximum(base, WHOLE)), converged)


def with_network(problem: NormalProblem, network: NetworkProblem, free: Answer, gap: float, budget: Budget) -> Found:
    """The cheapest plan, by the exact power flow, among those of the rounds of adding voltage rows."""
    gain = voltage_gain(network)
    flow = flow_of(problem, network, gain, free.power_kw)
    rows, last, n_rounds = with_new_rows(network, gain, None, flow), Found(free, None, flow.voltage_pu, 0), 0
    candidates = [last]
    # the relaxation first gathers the rows that matter: it is far cheaper than whole cars
    for relaxed in (True, False) if problem.mode == "on_off" else (False,):
        settled, n_corrections = rows is None, 0
        while not settled and n_rounds < MAX_ROUNDS and budget.left_s() > 0.0:
            n_rounds += 1
            answer = solve_programme(problem, rows, gap, budget, relaxed=relaxed)
            flow = flow_of(problem, network, gain, answer.power_kw)
            last = Found(answer, rows, flow.voltage_pu, n_rounds)
            if not relaxed:
                candidates.append(last)
            rows = with_new_rows(network, gain, last.rows, flow)
            error_eur = abs(answer.cost_eur - _true_cost(problem, network, last))
            allowed_eur = max(gap, LEAST_GAP) * max(1.0, abs(answer.cost_eur))
            settled = rows is last.rows and (error_eur <= allowed_eur or n_corrections >= MAX_CORRECTIONS)
            if rows is last.rows and rows is not None and not settled:
                rows, n_corrections = corrected(network, gain, rows, flow), n_corrections + 1
    best = min(candidates, key=lambda found: _true_cost(problem, network, found))
    worth_eur = WORTH_JUDGING_FRAC * gap * max(1.0, abs(last.answer.cost_eur))
    if last in candidates and _true_cost(problem, network, best) >= _true_cost(problem, network, last) - worth_eur:
        best = last
    if best is not last:
        best = _judged(problem, network, gain, best, last, gap, budget)
    return replace(best, n_rounds=n_rounds)


def _judged(
    problem: NormalProblem,
    network: NetworkProblem,
    gain: FloatArray,
    best: Found,
    last: Found,
    gap: float,
    budget: Budget,
) -> Found:
    """A plan of an earlier round with the gap that it has in the programme whose rows are exact at this plan.

    The programme that made it lacked rows: its gap would flatter. Without time it is judged by the last programme.
    """
    plan_kw, rows, bound_eur = best.answer.power_kw, last.rows, last.answer.bound_eur
    if rows is not None and budget.left_s() > 0.0:
        rows = corrected(network, gain, rows, flow_of(problem, network, gain, plan_kw))
        bound_eur = solve_programme(problem, rows, gap, budget).bound_eur
    return replace(best, answer=Answer(plan_kw, programme_cost(problem, rows, plan_kw), bound_eur), rows=rows)


def _true_cost(problem: NormalProblem, network: NetworkProblem, found: Found) -> float:
    return problems.cost(problem, found.answer.power_kw) + problems.voltage_cost(network, found.voltage_pu)


def with_new_rows(
    network: NetworkProblem, gain: FloatArray, rows: VoltageRows | None, flow: Flow
) -> VoltageRows | None:
    """The rows and those that a plan's violations add to them; the same object if they add nothing.

    Where voltage has no price, rows would say nothing.
    """
    if network.voltage_eur_per_pu == 0.0:
        return rows
    seen = np.where(flow.converged[:, None, None], flow.voltage_pu, flow.linear_pu)
    bad_slot = problems.excess_pu(network, flow.voltage_pu).max(axis=(1, 2), keepdims=True) > VIOLATION_PU
    added = []
    for sign, limit in ((1.0, network.vmin_pu), (-1.0, network.vmax_pu)):
        wanted = (sign * (seen - limit) < NEAR_PU) & bad_slot & (network.base_voltage_pu > 0.0)
        wanted[:, 0] = False  # the source is given
        if rows is not None:
            known = rows.sign == sign
            wanted[rows.slot[known], rows.bus[known], rows.phase[known]] = False
        added.append(_rows_at(network, gain, flow, np.argwhere(wanted), sign))
    if not any(len(new.slot) for new in added):
        return rows
    return _joined([*([] if rows is None else [rows]), *added])


def corrected(network: NetworkProblem, gain: FloatArray, rows: VoltageRows, flow: Flow) -> VoltageRows:
    """The same rows, exact at another plan."""
    place = np.column_stack([rows.slot, rows.bus, rows.phase])
    return _joined([_rows_at(network, gain, flow, place[rows.sign == sign], sign) for sign in (1.0, -1.0)])


def _rows_at(network: NetworkProblem, gain: FloatArray, flow: Flow, place: IntArray, sign: float) -> VoltageRows:
    """Rows at places (R, 3) of (slot, bus, phase), corrected so that they are exact at the plan of ``flow``.

    LinDistFlow neglects losses and is optimistic: its slope is stretched to the secant through the plan, and what a
    stretch cannot explain becomes a margin.
    """
    t, n, p = place.T
    base = network.base_voltage_pu[t, n, p]
    linear = flow.linear_pu[t, n, p] - base
    exact = np.where(flow.converged[t], flow.voltage_pu[t, n, p] - base, MAX_STRETCH * linear)
    steep = sign * linear < -LEAST_CHANGE_PU
    stretch = np.where(steep, np.clip(exact / np.where(steep, linear, 1.0), 1.0, MAX_STRETCH), 1.0)
    optimism = np.clip(sign * (stretch * linear - exact), 0.0, MARGIN_PU)
    limit = network.vmin_pu if sign > 0.0 else network.vmax_pu
    return VoltageRows(
        slot=t,
        bus=n,
        phase=p,
        limit_pu=limit[t, n, p] + sign * optimism,
        base_pu=base,
        sign=np.full(len(t), sign),
        gain_pu_per_kw=gain[n, p] * (stretch / (2.0 * base))[:, None, None],
        price_eur_per_pu=network.voltage_eur_per_pu,
    )


def _joined(rows: Sequence[VoltageRows]) -> VoltageRows:
    names = [name for name in VoltageRows.__dataclass_fields__ if name != "price_eur_per_pu"]
    arrays = {name: np.concatenate([getattr(row, name) for row in rows]) for name in names}
    return VoltageRows(**arrays, price_eur_per_pu=rows[0].price_eur_per_pu)


# -- the certificate --------------------------------------------------------------------------------------------------


def _certified(
    scenario: "Scenario",
    day: "Day",
    problem: NormalProblem,
    network: NetworkProblem,
    lower_bound_eur: float,
    found: Found,
    wanted_gap: float,
    budget: Budget,
) -> Solution:
    """The solution: its plan checked, put through the environment, and compared with this module's own cost."""
    plan_kw, answer = found.answer.power_kw, found.answer
    problems.check(problem, plan_kw)
    replayed = replay(scenario, day, plan_kw)
    if not replayed.converged.all():
        slot = int(np.argmin(replayed.converged))
        raise ConvergenceError(
            f"{day.scenario}, {day.split} day {day.seed}: the best plan has no power flow in slot {slot}, although "
            "every violation is priced; raise voltage_eur_per_pu or take fewer cars"
        )
    plan_cost = problems.cost(problem, plan_kw) + problems.voltage_cost(network, found.voltage_pu)
    gap = relative_gap(answer.cost_eur, answer.bound_eur)
    open_status = SolutionStatus.TIME_LIMIT if budget.left_s() <= 0.0 else SolutionStatus.GAP_OPEN
    certificate = Certificate(
        programme_cost_eur=answer.cost_eur,
        programme_bound_eur=answer.bound_eur,
        network_bound_eur=None if found.rows is None else answer.bound_eur,
        plan_cost_eur=plan_cost,
        replay_relative_error=abs(replayed.cost_eur - plan_cost) / max(1.0, abs(plan_cost)),
        voltage_eur=replayed.voltage_eur,
        voltage_excess_pu=float(replayed.violation_pu.sum()),
        n_violations=int(replayed.n_violations.sum()),
        linear_error_pu=_linear_error_pu(problem, found),
        infeasible_kwh=float(problem.infeasible_kwh.sum()),
        missing_kwh=replayed.missing_kwh,
        n_voltage_rows=0 if found.rows is None else len(found.rows.slot),
        n_rounds=found.n_rounds,
        solver=SOLVER_NAME,
        solver_version=solver_version(),
    )
    return Solution(
        problem="normal_charging",
        cost_eur=replayed.cost_eur,
        lower_bound_eur=lower_bound_eur,
        relative_gap=gap,
        status=str(SolutionStatus.OPTIMAL if gap <= wanted_gap else open_status),
        seconds=time.monotonic() - budget.began_s,
        plan=NormalPlan(plan_kw),
        certificate=certificate,
    )


def _linear_error_pu(problem: NormalProblem, found: Found) -> float:
    """Largest error of the linear voltage of the rows at the plan."""
    rows = found.rows
    if rows is None:
        return 0.0
    exact = found.voltage_pu[rows.slot, rows.bus, rows.phase]
    linear = rows.voltage_pu(problems.connection_power_kw(problem, found.answer.power_kw))
    return float(np.abs(linear - exact).max())
