"""The network-free optimum of the market: a linear programme, a bound for every policy, a plan that the environment
plays.

1. *Bound*: (C) over all storage schedules, curtailment and unserved energy, without network. Its duals prove it. Every
   policy is a plan of this programme, whatever asks, caps and limits do to it, so no policy costs less.
2. *Plan*: the storage powers of the programme as the environment executes them, without operator. Where a connection is
   full the environment moves the storage before it curtails or leaves drivers waiting, and no station discharges below
   its least energy; the bound knows neither. Where that costs more than the gap asked for, the exact programme, which
   knows both, finds the best plan that can be played.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evcs_gym.baselines.certificate import SolutionStatus, dual_bound, plain, relative_gap
from evcs_gym.baselines.forms.market import MarketForm, market
from evcs_gym.baselines.policy_market import PlanPolicy
from evcs_gym.baselines.problems import market as problems
from evcs_gym.baselines.problems.market import MarketPlan, MarketProblem
from evcs_gym.baselines.score_market import MarketRollout, market_rollout
from evcs_gym.baselines.solvers import SOLVER_NAME, Compiled, Status, Task, compile_model, solve, solver_version
from evcs_gym.envs.market.operators import NO_OPERATOR, PRO_RATA, Operator
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.types import FloatArray

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario


LEAST_GAP = 1e-9
"""A relative gap below this is rounding: nothing is left to prove."""
ROUNDING_FRAC = 1e-12
"""Share of the day's scale by which the bound is lowered: the environment adds the same terms up in another order."""


@dataclass(frozen=True)
class MarketCertificate:
    """Evidence for a plan of the market.

    network: what the programme knows of it. exact: whether the exact programme was needed. programme_cost_eur,
    programme_bound_eur: of the last programme; the latter is the solution's lower bound unless ``exact``.
    plan_cost_eur: of the plan by the problem's own numpy. replay_relative_error: between that and the environment's
    step. scale_eur: what relative gaps and errors are divided by where the cost is smaller. n_violations: slots of the
    replay outside an effective limit. operated_cost_eur, n_capped_slots: the same plan under the operator, which keeps
    them. unserved_kwh, curtailed_kwh: of the replay.
    """

    network: str
    programme_cost_eur: float
    programme_bound_eur: float
    exact: bool
    plan_cost_eur: float
    replay_relative_error: float
    scale_eur: float
    n_violations: int
    operated_cost_eur: float
    n_capped_slots: int
    unserved_kwh: float
    curtailed_kwh: float
    solver: str
    solver_version: str


@dataclass(frozen=True, eq=False)
class MarketSolution:
    """The best plan found for a day of the market, with what is proven about it.

    cost_eur: (C) of the plan, replayed through the environment without operator. lower_bound_eur: no policy costs less
    in the environment. relative_gap: (cost - programme bound) / max(scale, |cost|). status: a `SolutionStatus`.
    """

    cost_eur: float
    lower_bound_eur: float
    relative_gap: float
    status: str
    seconds: float
    plan: MarketPlan
    certificate: MarketCertificate
    problem: str = "market"

    def plan_arrays(self) -> dict[str, FloatArray]:
        """The plan by name, as it is stored."""
        return {name: getattr(self.plan, name) for name in MarketPlan.__dataclass_fields__}

    def as_dict(self, plan: bool = False) -> dict[str, Any]:
        """The solution as plain numbers, lists and strings; ``plan`` adds the plan."""
        return plain(self, plan)


@dataclass(frozen=True, eq=False)
class MarketAnswer:
    """Answer of a programme: the plan that the environment makes of it, the programme's cost of the solver's point, the
    proven bound, whether the solver ended in time, and whether it was the exact programme."""

    plan: MarketPlan
    cost_eur: float
    bound_eur: float
    in_time: bool
    exact: bool = False


def solve_market(
    scenario: "Scenario", day: "Day", wanted_gap: float = 1e-6, time_limit_s: float = 60.0
) -> MarketSolution:
    """See `evcs_gym.baselines.optimum`."""
    began, wanted_gap = time.monotonic(), max(wanted_gap, LEAST_GAP)
    problem = problems.problem_of(scenario, day)
    answer = solve_programme(problem, time_limit_s)
    lower_bound, scale = answer.bound_eur, max(1.0, problems.gap_scale_eur(problem))
    if relative_gap(problems.cost(problem, answer.plan), lower_bound, scale) > wanted_gap:
        left_s = time_limit_s - (time.monotonic() - began)
        answer = best_played(problem, answer, wanted_gap * scale, left_s)
    problems.check(problem, answer.plan)
    free, operated = (replay(scenario, day, answer.plan.storage_kw, how) for how in (NO_OPERATOR, PRO_RATA))
    plan_cost, cost = problems.cost(problem, answer.plan), float(free.cost_eur[0])
    gap = relative_gap(cost, answer.bound_eur, scale)
    open_status = SolutionStatus.GAP_OPEN if answer.in_time else SolutionStatus.TIME_LIMIT
    certificate = MarketCertificate(
        network="none",
        programme_cost_eur=answer.cost_eur,
        programme_bound_eur=answer.bound_eur,
        exact=answer.exact,
        plan_cost_eur=plan_cost,
        replay_relative_error=abs(cost - plan_cost) / max(scale, abs(plan_cost)),
        scale_eur=scale,
        n_violations=int(free.n_violations[0]),
        operated_cost_eur=float(operated.cost_eur[0]),
        n_capped_slots=int(operated.n_capped_slots[0]),
        unserved_kwh=float(free.unserved_kwh[0]),
        curtailed_kwh=float(free.curtailed_kwh[0]),
        solver=SOLVER_NAME,
        solver_version=solver_version(),
    )
    return MarketSolution(
        cost_eur=cost,
        lower_bound_eur=lower_bound,
        relative_gap=gap,
        status=str(SolutionStatus.OPTIMAL if gap <= wanted_gap else open_status),
        seconds=time.monotonic() - began,
        plan=answer.plan,
        certificate=certificate,
    )


def solve_programme(problem: MarketProblem, time_limit_s: float) -> MarketAnswer:
    """Plan and proven bound of the linear programme; idle storages where time ran out before the solver had a plan.

    Raises:
        DataError, ConfigError: data that no plan can have. SolverError: no solver, or one that failed.
    """
    problems.check_data(problem)
    form = market(problem)
    compiled = compile_model(form.model)
    result = solve(Task(compiled.form), time_limit_s)
    dual = np.zeros(len(compiled.form.row_lower)) if result.row_dual is None else result.row_dual
    bound, _ = dual_bound(compiled.form, dual)
    bound -= ROUNDING_FRAC * max(1.0, problems.gap_scale_eur(problem))
    wish = np.zeros(problem.pv_kw.shape) if result.x is None else _storage_kw(problem, form, compiled, result.x)
    plan = problems.executed(problem, wish)
    cost = problems.cost(problem, plan) if result.x is None else compiled.form.objective(result.x)
    return MarketAnswer(plan, cost, bound, in_time=result.status is Status.OPTIMAL)


def best_played(problem: MarketProblem, known: MarketAnswer, gap_eur: float, time_limit_s: float) -> MarketAnswer:
    """The best plan that the environment can play without operator, by the exact programme, and that programme's bound;
    where time runs out the better of its plan and the known one.

    Raises:
        SolverError: no solver, or one that failed.
    """
    form = market(problem, exact=True)
    compiled = compile_model(form.model)
    result = solve(Task(compiled.form, absolute_gap=0.5 * gap_eur), time_limit_s)
    plan, cost = known.plan, problems.cost(problem, known.plan)
    if result.x is not None:
        found = problems.executed(problem, _storage_kw(problem, form, compiled, result.x))
        if problems.cost(problem, found) < cost:
            plan, cost = found, compiled.form.objective(result.x)
    bound = max(known.bound_eur, min(result.bound, cost))
    return MarketAnswer(plan, cost, bound, result.status is Status.OPTIMAL, exact=True)


def _storage_kw(problem: MarketProblem, form: MarketForm, compiled: Compiled, x: FloatArray) -> FloatArray:
    """Storage powers (T, S) of a point of the programme."""
    charge, discharge = (x[compiled.columns(variables)] for variables in (form.charge, form.discharge))
    return np.asarray((charge - discharge).reshape(problem.pv_kw.shape))


def replay(scenario: "Scenario", day: "Day", storage_kw: FloatArray, operator: Operator = NO_OPERATOR) -> MarketRollout:
    """Put storage powers (T, S) through the environment slot by slot; asks stand at the export price."""
    world = market_world(scenario, [day])
    return market_rollout(world, PlanPolicy(storage_kw[None]), operator)
