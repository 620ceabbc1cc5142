"""The exact optimum of fast charging: slot by slot (the strategy of [S]) or the clairvoyant day.

One programme serves both: a window of slots. For each:

1. *Relaxation*: the LP of (1), (2), (4) and the plugs. Its duals prove a bound. In a window of one slot in which every
   station has one power it is whole, and proven at once.
2. *Plan*: its point, made executable by `played`; then a MILP in which only requests are free that the relaxation
   splits or is nearly indifferent about; then, where the gap is still too large, one in which all columns are free that
   the reduced costs do not rule out: its bound is that of the whole. Every MILP starts from the best plan.
3. *Lazy rows*: that nobody is stranded who could have been served, where a point strands on purpose; voltage rows where
   the exact power flow of the plan breaks limits, until no new one is needed.

What charges of earlier slots draw is in the data of a slot: the day of slots is their optima one after the other.
"""

import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evcs_gym.baselines.certificate import SolutionStatus, dual_bound, plain
from evcs_gym.baselines.forms import fast_charging as forms
from evcs_gym.baselines.forms.normal_charging import VoltageRows
from evcs_gym.baselines.normal_charging import (
    LEAST_GAP,
    MAX_CORRECTIONS,
    MAX_ROUNDS,
    VIOLATION_PU,
    Budget,
    Flow,
    corrected,
    voltage_gain,
    with_new_rows,
)
from evcs_gym.baselines.problems import fast_charging as problems
from evcs_gym.baselines.problems.fast_charging import Arcs, FastPlan, FastProblem
from evcs_gym.baselines.problems.normal_charging import NetworkProblem, excess_pu, voltage_cost
from evcs_gym.baselines.solvers import SOLVER_NAME, Compiled, Task, compile_model, solve, solver_version
from evcs_gym.envs.errors import ConfigError, ConvergenceError
from evcs_gym.envs.fleet.fast import replay
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

HORIZONS = ("day", "slot")
"""What is optimised at once: the clairvoyant day, or each slot by itself."""
ROUNDING_EUR = 1e-7
"""A gap below this is rounding: nothing is left to prove. Bounds for policies are lowered by it: solver and environment
add the same terms up in another order."""
FIXING_MARGIN_EUR = 1e-6
"""Reduced costs rule a column out only if they exceed the gap by this, against rounding."""
WHOLE = 1e-6
"""A share within this of a whole number is whole; a row that is broken by less is kept."""
MAX_LAZY_ROUNDS = 30
N_FREE = 150
"""Requests that the restricted MILP may decide beside those that the relaxation splits."""
HARD_EUR_PER_PU = 1e6
"""Price of voltage in programmes of the printed form, whose (3) is hard: kept where any plan can keep it."""


@dataclass(frozen=True, eq=False)
class Answer:
    """Plan (R,) of a programme, its cost there (with the linear voltage rows), the proven bound, and what relative gaps
    are divided by: the part of the cost that a plan changes, at least 1 EUR."""

    station: IntArray
    cost_eur: float
    bound_eur: float
    scale_eur: float

    @property
    def relative_gap(self) -> float:
        """What is not proven, as a share of the part of the cost that a plan changes."""
        return max(0.0, self.cost_eur - self.bound_eur) / self.scale_eur


@dataclass(frozen=True)
class FastCertificate:
    """Evidence for a plan of fast charging.

    horizon: of `HORIZONS`. programme_cost_eur, programme_bound_eur: of the solved programme, with voltage rows where
    they are active; of the slots' programmes their sums. controllable_eur: the part of that cost that a plan changes,
    by which the relative gap is divided: all but (1 - SoC0) C RTP of the cars that reach a station, weighted as in (1).
    network_bound_eur: the programme's bound where voltage rows are active, else None; never a bound on policies.
    plan_cost_eur: of the plan by the problem's own numpy and one exact power flow. replay_relative_error: between that
    and the environment. voltage_eur, voltage_excess_pu, n_violations, n_stranded, unabsorbed_kwh, beyond_kwh: from the
    replay. linear_error_pu: largest error of an active voltage row at the plan. n_voltage_rows, n_rounds: rows added,
    rounds of adding them.
    """

    horizon: str
    programme_cost_eur: float
    programme_bound_eur: float
    controllable_eur: float
    network_bound_eur: float | None
    plan_cost_eur: float
    replay_relative_error: float
    voltage_eur: float
    voltage_excess_pu: float
    n_violations: int
    n_stranded: int
    unabsorbed_kwh: float
    beyond_kwh: float
    linear_error_pu: float
    n_voltage_rows: int
    n_rounds: int
    solver: str
    solver_version: str


@dataclass(frozen=True, eq=False)
class FastSolution:
    """The best plan found for a day of fast charging, with what is proven about it.

    cost_eur: of the plan, replayed through the environment. lower_bound_eur: the clairvoyant day's bound without
    network; no policy costs less. relative_gap: (programme cost - programme bound) / controllable cost, at least 1 EUR.
    status: a `SolutionStatus`.
    """

    cost_eur: float
    lower_bound_eur: float
    relative_gap: float
    status: str
    seconds: float
    plan: FastPlan
    certificate: FastCertificate
    problem: str = "fast_charging"

    def plan_arrays(self) -> dict[str, Any]:
        """The plan by name, as it is stored."""
        return {"station": self.plan.station}

    def as_dict(self, plan: bool = False) -> dict[str, Any]:
        """The solution as plain numbers, lists and strings; ``plan`` adds the plan."""
        return plain(self, plan)


def solve_fast_charging(
    scenario: "Scenario", day: "Day", wanted_gap: float = 1e-3, time_limit_s: float = 60.0, horizon: str = "day"
) -> FastSolution:
    """See `evcs_gym.baselines.optimum`.

    Raises:
        ConfigError: an unknown horizon, a scenario without fast charging.
        ConvergenceError: the power flow of the best plan collapses. SolverError: no solver, or one that failed.
    """
    if horizon not in HORIZONS:
        raise ConfigError(f"horizon must be one of {', '.join(HORIZONS)}, got {horizon!r}")
    budget = Budget(time.monotonic(), time_limit_s)
    problem, network = problems.problem_of(scenario, day), problems.network_of(scenario, day)
    problems.check_data(problem)
    if scenario.fast_charging.as_printed:
        network = replace(network, voltage_eur_per_pu=HARD_EUR_PER_PU)
    if horizon == "slot":  # what time is left goes into the bound of the day
        found = slot_by_slot(problem, network, wanted_gap, budget)
        free = solve_programme(problem, None, wanted_gap, budget, start=found.answer.station)
    else:
        free = solve_programme(problem, None, wanted_gap, budget)
        found = with_network(problem, network, free, wanted_gap, budget)
    return _certified(scenario, day, problem, free.bound_eur, found, horizon, wanted_gap, budget)


def day_bound_eur(scenario: "Scenario", day: "Day", gap: float, time_limit_s: float) -> float:
    """Proven bound of the clairvoyant day without network: no policy of the environment costs less."""
    problem = problems.problem_of(scenario, day)
    problems.check_data(problem)
    return solve_programme(problem, None, gap, Budget(time.monotonic(), time_limit_s)).bound_eur - ROUNDING_EUR


# -- one programme ----------------------------------------------------------------------------------------------------


def solve_programme(
    problem: FastProblem,
    rows: VoltageRows | None,
    gap: float,
    budget: Budget,
    start: IntArray | None = None,
    relaxed: bool = False,
) -> Answer:
    """Executable plan and proven bound of a window with the given voltage rows, from the plan ``start`` (R,) or none;
    ``relaxed`` stops after the relaxation.

    Raises:
        SolverError: no solver, or one that failed.
    """
    arcs = problems.arcs_of(problem)
    nowhere = np.full(problem.n_requests, problem.n_stations)
    station = problems.played(problem, nowhere if start is None else start)
    search = _Search(problem, arcs, rows, station, gap, budget)
    if len(arcs.request):
        search.relax()
        if not relaxed:
            search.restrict()
            search.close()
    return Answer(search.station, search.cost_eur, search.bound_eur, search.scale_eur)


def programme_cost(problem: FastProblem, arcs: Arcs, rows: VoltageRows | None, station: IntArray) -> float:
    """Cost of a plan in a programme: (1) with stranded cars, and the slack of the linear voltage rows."""
    cost = problems.cost(problem, arcs, station)
    if rows is not None and len(rows.slot):
        chosen = problems.chosen_arcs(problem, arcs, station).astype(np.float64)
        load_kw = problems.balanced_kw(problems.new_load_kw(problem, arcs, chosen))
        cost += rows.price_eur_per_pu * float(rows.slack_pu(load_kw).sum())
    return cost


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Without garbage collection: a model is made of very many small objects, which the collector would look through
    again and again, for half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Search:
    """A programme in the middle of its search: mutable, unlike the records of the project.

    station: the best plan that can be executed, (R,). point: of the last relaxation, (n,). reduced_cost (n,) and
    relaxation_eur belong to it; both are kept for the integer columns alone. known: pairs r * J + j with a
    row of `stranded_last`.
    """

    def __init__(
        self,
        problem: FastProblem,
        arcs: Arcs,
        rows: VoltageRows | None,
        station: IntArray,
        wanted_gap: float,
        budget: Budget,
    ) -> None:
        self.problem, self.arcs, self.rows, self.budget = problem, arcs, rows, budget
        self.station, self.wanted_gap = station, wanted_gap
        self.cost_eur = programme_cost(problem, arcs, rows, station)
        if not len(arcs.request):  # nothing to decide
            self.bound_eur = self.cost_eur
            return
        with _collector_paused():
            self.form = forms.fast_charging(problem, arcs, rows)
        self.known: set[int] = set()
        self.point: FloatArray | None = None
        self.reduced_cost = np.zeros(0)
        self._compile()
        form = self.compiled.form
        # all duals 0: weak, but there is a true bound whatever happens
        self.bound_eur = self.relaxation_eur = dual_bound(form, np.zeros(len(form.row_lower)))[0]

    def _compile(self) -> None:
        with _collector_paused():
            self.compiled: Compiled = compile_model(self.form.model)
        self.dispatch = self.compiled.columns(self.form.dispatch)
        self.stranded = self.compiled.columns(self.form.stranded)

    @property
    def scale_eur(self) -> float:
        """What relative gaps are divided by: the cost that depends on the plan, at least 1 EUR."""
        return max(1.0, abs(self.cost_eur - self.problem.fixed_eur))

    @property
    def allowed_eur(self) -> float:
        """The gap at which the search may stop."""
        return max(self.wanted_gap * self.scale_eur, ROUNDING_EUR)

    @property
    def over(self) -> bool:
        """Whether nothing is left to prove, or no time."""
        return self.cost_eur - self.bound_eur <= self.allowed_eur or self.budget.left_s() <= 0.0

    def relax(self) -> None:
        """The relaxation with the rows of `stranded_last` that it needs: bound, reduced costs, a first plan."""
        for _ in range(MAX_LAZY_ROUNDS):
            form = self.compiled.form
            result = solve(Task(form.relaxed()), self.budget.left_s())
            if result.x is None or result.row_dual is None:
                return
            self.point = result.x
            self.relaxation_eur, self.reduced_cost = dual_bound(form, result.row_dual)
            self.bound_eur = max(self.bound_eur, self.relaxation_eur)
            self._offer(result.x)
            if self.over or not self._forbid_stranding(result.x):
                return

    def restrict(self) -> None:
        """A better plan: requests stay where relaxation and plan agree and another station would cost clearly more."""
        if self.over or self.point is None:
            return
        free = self._undecided(self.point)
        start = self._start()
        fixed = np.zeros(len(start), dtype=np.bool_)
        fixed[self.dispatch] = ~free[self.arcs.request]
        fixed[self.stranded] = ~free
        form = self.compiled.form.fixed(fixed, start)
        result = solve(Task(form, absolute_gap=0.5 * self.allowed_eur, start=start), self.budget.left_s())
        if result.x is not None:
            self._offer(result.x)

    def close(self) -> None:
        """Prove and improve: only columns that the reduced costs do not rule out are free.

        A column at an end of its box whose reduced cost exceeds the gap is there in every better point, so that the
        bound of this smaller programme is one of the whole.
        """
        for _ in range(MAX_LAZY_ROUNDS):
            if self.over or self.point is None:
                return
            form, reduced = self.compiled.form, self.reduced_cost
            end = np.where(reduced > 0.0, form.col_lower, form.col_upper)
            room_eur = self.cost_eur - self.relaxation_eur + FIXING_MARGIN_EUR
            ruled_out = form.integer & (np.abs(reduced) > room_eur)
            task = Task(form.fixed(ruled_out, end), absolute_gap=0.95 * self.allowed_eur, start=self._start())
            result = solve(task, self.budget.left_s())
            self.bound_eur = max(self.bound_eur, min(result.bound, self.cost_eur))
            if result.x is None:
                return
            self._offer(result.x)
            if not self._forbid_stranding(result.x):
                return

    def _offer(self, x: FloatArray) -> None:
        """Take the plan that is played for the largest shares of a point, where it is cheaper."""
        share = np.zeros((self.problem.n_requests, self.problem.n_stations + 1))
        share[self.arcs.request, self.arcs.station] = x[self.dispatch]
        share[:, -1] = x[self.stranded]
        station = problems.played(self.problem, np.argmax(share, axis=1))
        cost = programme_cost(self.problem, self.arcs, self.rows, station)
        if cost < self.cost_eur:
            self.station, self.cost_eur = station, cost

    def _forbid_stranding(self, x: FloatArray) -> bool:
        """Add the rows of `stranded_last` that a point breaks; whether there were any."""
        problem, stranded = self.problem, x[self.stranded]
        free = problem.free_plugs[problem.slot]
        held = problems.plugs_before(problem, self.arcs, x[self.dispatch])
        broken = problem.reach & (free * stranded[:, None] - held > WHOLE)
        pairs = [int(place) for place in np.flatnonzero(broken) if int(place) not in self.known]
        if not pairs:
            return False
        self.known.update(pairs)
        forms.stranded_last(self.form, problem, self.arcs, np.column_stack(divmod(np.array(pairs), problem.n_stations)))
        before = np.concatenate([self.dispatch, self.stranded])
        self._compile()
        if self.point is not None:  # new rows may put the columns into another order
            after = np.concatenate([self.dispatch, self.stranded])
            for values in (self.point, self.reduced_cost):
                values[after] = values[before]
        return True

    def _undecided(self, x: FloatArray) -> BoolArray:
        """Requests (R,) that the restricted MILP decides: split by the point, elsewhere in the plan, or nearly
        indifferent (the second smallest reduced cost of the request's columns is small)."""
        problem, arcs = self.problem, self.arcs
        share, stranded = x[self.dispatch], x[self.stranded]
        in_plan = problems.chosen_arcs(problem, arcs, self.station)
        differs = np.abs(share - in_plan) > WHOLE
        free: BoolArray = np.abs(stranded - (self.station == problem.n_stations)) > WHOLE
        free[arcs.request[differs]] = True
        other = np.where(in_plan, np.inf, np.abs(self.reduced_cost[self.dispatch]))
        regret = np.full(problem.n_requests, np.inf)
        np.minimum.at(regret, arcs.request, other)
        free[np.argsort(regret, kind="stable")[:N_FREE]] = True
        return free

    def _start(self) -> FloatArray:
        """The plan as a point of the programme."""
        variables, values = forms.point_of_plan(self.form, self.problem, self.arcs, self.station, self.rows)
        x = np.zeros(len(self.compiled.form.cost))
        x[self.compiled.columns(variables)] = values
        return x


# -- the network ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Found:
    """A plan as the answer of a programme with active voltage rows or none, and what adding them took."""

    answer: Answer
    n_rows: int = 0
    n_rounds: int = 0
    linear_error_pu: float = 0.0


def with_network(problem: FastProblem, network: NetworkProblem, free: Answer, gap: float, budget: Budget) -> Found:
    """The cheapest plan of a window, by the exact power flow, among those of the rounds of adding voltage rows."""
    arcs = problems.arcs_of(problem)
    flow = _flow_of(problem, arcs, network, None, free.station)
    best, best_eur = free, _true_cost(problem, arcs, network, free, flow)
    if excess_pu(network, flow.voltage_pu).max() <= VIOLATION_PU or network.voltage_eur_per_pu == 0.0:
        return Found(free)
    gain = voltage_gain(network)
    flow = _flow_of(problem, arcs, network, gain, free.station)
    rows, answer, n_rounds, n_corrections = with_new_rows(network, gain, None, flow), free, 0, 0
    while rows is not None and n_rounds < MAX_ROUNDS and budget.left_s() > 0.0:
        n_rounds += 1
        used, answer = rows, solve_programme(problem, rows, gap, budget, start=best.station)
        flow = _flow_of(problem, arcs, network, gain, answer.station)
        true_eur = _true_cost(problem, arcs, network, answer, flow)
        if true_eur < best_eur:
            best, best_eur = answer, true_eur
        rows = with_new_rows(network, gain, used, flow)
        if rows is used:
            if abs(answer.cost_eur - true_eur) <= max(gap, LEAST_GAP) * answer.scale_eur:
                break
            if n_corrections >= MAX_CORRECTIONS:
                break
            rows, n_corrections = corrected(network, gain, used, flow), n_corrections + 1
    if n_rounds == 0:
        return Found(free)
    # a plan of an earlier round is judged by the last programme: the one that made it lacked rows
    cost = programme_cost(problem, arcs, used, best.station)
    judged = replace(answer, station=best.station, cost_eur=cost, scale_eur=max(1.0, abs(cost - problem.fixed_eur)))
    error = _linear_error_pu(problem, arcs, network, gain, used, best.station)
    return Found(judged, len(used.slot), n_rounds, error)


def slot_by_slot(problem: FastProblem, network: NetworkProblem, gap: float, budget: Budget) -> Found:
    """The optimum of each slot after those before it: the strategy of the paper. Sums over the slots."""
    arcs = problems.arcs_of(problem)
    station = np.full(problem.n_requests, problem.n_stations)
    cost = bound = 0.0
    n_rows, n_rounds, error = 0, 0, 0.0
    for t in range(problem.n_slots):
        window = problems.slot_of(problem, arcs, t, station)
        committed_kw = (window.net_kw - problem.net_kw[t])[0]
        found = best_slot(window, problems.network_of_slot(network, t, committed_kw), gap, budget)
        station[problem.slot == t] = found.answer.station
        cost, bound = cost + found.answer.cost_eur, bound + found.answer.bound_eur
        n_rows, n_rounds = n_rows + found.n_rows, n_rounds + found.n_rounds
        error = max(error, found.linear_error_pu)
    return Found(Answer(station, cost, bound, max(1.0, abs(cost - problem.fixed_eur))), n_rows, n_rounds, error)


def best_slot(window: FastProblem, network: NetworkProblem, gap: float, budget: Budget) -> Found:
    """The best plan of a window with its network: `slot_of` and `network_of_slot` make both."""
    return with_network(window, network, solve_programme(window, None, gap, budget), gap, budget)


def _load_kw(problem: FastProblem, arcs: Arcs, station: IntArray) -> FloatArray:
    """What the charges of a plan draw in the window, (T, J)."""
    return problems.new_load_kw(problem, arcs, problems.chosen_arcs(problem, arcs, station).astype(np.float64))


def _flow_of(
    problem: FastProblem, arcs: Arcs, network: NetworkProblem, gain: FloatArray | None, station: IntArray
) -> Flow:
    """Voltages of a plan: exact and, with a gain, linear about the exact flow of the load without it."""
    load_kw, base = _load_kw(problem, arcs, station), network.base_voltage_pu
    voltage, converged = problems.plan_voltage(network, load_kw)
    if gain is None:
        return Flow(voltage, voltage, converged)
    change_sq = np.tensordot(problems.balanced_kw(load_kw), gain, axes=((1, 2), (2, 3)))
    return Flow(voltage, base + change_sq / (2.0 * np.maximum(base, WHOLE)), converged)


def _true_cost(problem: FastProblem, arcs: Arcs, network: NetworkProblem, answer: Answer, flow: Flow) -> float:
    return problems.cost(problem, arcs, answer.station) + voltage_cost(network, flow.voltage_pu)


def _linear_error_pu(
    problem: FastProblem,
    arcs: Arcs,
    network: NetworkProblem,
    gain: FloatArray,
    rows: VoltageRows,
    station: IntArray,
) -> float:
    """Largest error of the linear voltage of the rows at the plan."""
    exact = _flow_of(problem, arcs, network, gain, station).voltage_pu[rows.slot, rows.bus, rows.phase]
    linear = rows.voltage_pu(problems.balanced_kw(_load_kw(problem, arcs, station)))
    return float(np.abs(linear - exact).max())


# -- the certificate --------------------------------------------------------------------------------------------------


def _certified(
    scenario: "Scenario",
    day: "Day",
    problem: FastProblem,
    lower_bound_eur: float,
    found: Found,
    horizon: str,
    wanted_gap: float,
    budget: Budget,
) -> FastSolution:
    """The solution: its plan checked, put through the environment, and compared with this module's own cost."""
    answer, arcs = found.answer, problems.arcs_of(problem)
    problems.check(problem, arcs, answer.station)
    replayed = replay(scenario, day, answer.station)
    if not replayed.converged.all():
        slot = int(np.argmin(replayed.converged))
        raise ConvergenceError(
            f"{day.scenario}, {day.split} day {day.seed}: the best plan has no power flow in slot {slot}, although "
            "every violation is priced; raise voltage_eur_per_pu or take fewer cars"
        )
    own = problems.network_of(scenario, day)
    flow = _flow_of(problem, arcs, own, None, answer.station)
    plan_cost = _true_cost(problem, arcs, own, answer, flow)
    open_status = SolutionStatus.TIME_LIMIT if budget.left_s() <= 0.0 else SolutionStatus.GAP_OPEN
    certificate = FastCertificate(
        horizon=horizon,
        programme_cost_eur=answer.cost_eur,
        programme_bound_eur=answer.bound_eur,
        controllable_eur=answer.cost_eur - problem.fixed_eur,
        network_bound_eur=answer.bound_eur if found.n_rows else None,
        plan_cost_eur=plan_cost,
        replay_relative_error=abs(replayed.cost_eur - plan_cost) / max(1.0, abs(plan_cost)),
        voltage_eur=float(replayed.voltage_eur.sum()),
        voltage_excess_pu=float(replayed.violation_pu.sum()),
        n_violations=int(replayed.n_violations.sum()),
        n_stranded=int(replayed.n_stranded.sum()),
        unabsorbed_kwh=float(replayed.unabsorbed_kwh.sum()),
        beyond_kwh=float(replayed.beyond_kwh.sum()),
        linear_error_pu=found.linear_error_pu,
        n_voltage_rows=found.n_rows,
        n_rounds=found.n_rounds,
        solver=SOLVER_NAME,
        solver_version=solver_version(),
    )
    return FastSolution(
        cost_eur=replayed.cost_eur,
        lower_bound_eur=lower_bound_eur - ROUNDING_EUR,
        relative_gap=answer.relative_gap,
        status=str(SolutionStatus.OPTIMAL if answer.relative_gap <= wanted_gap else open_status),
        seconds=time.monotonic() - budget.began_s,
        plan=FastPlan(answer.station),
        certificate=certificate,
    )
