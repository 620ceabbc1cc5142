"""The network-free optimum of the market: a linear programme, a bound for every policy, a plan that the environment
plays.

1. *Bound*: (C) over all storage schedules, curtailment and unserved energy, without network. Its duals prove it. Every
   policy is a plan of this programme, whatever asks, caps and limits do to it, so no policy costs less.
2. *Plan*: the storage powers of the programme as the environment executes them, without operator. Where a connection is
   full the environment moves the storage before it curtails or leaves drivers waiting, and no station discharges below
   its least energy; the programme knows neither. What that costs is in the gap.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evcs_gym.baselines.certificate import SolutionStatus, dual_bound, plain, relative_gap
from evcs_gym.baselines.forms.market import market
from evcs_gym.baselines.policy_market import PlanPolicy
from evcs_gym.baselines.problems import market as problems
from evcs_gym.baselines.problems.market import MarketPlan, MarketProblem
from evcs_gym.baselines.score_market import MarketRollout, market_rollout
from evcs_gym.baselines.solvers import SOLVER_NAME, Status, Task, compile_model, solve, solver_version
from evcs_gym.envs.market.operators import NO_OPERATOR, PRO_RATA, Operator
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.types import FloatArray

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario


@dataclass(frozen=True)
class MarketCertificate:
    """Evidence for a plan of the market.

    network: what the programme knows of it. programme_cost_eur: of the solver's own point; its bound is the solution's
    lower bound. plan_cost_eur: of the plan by the problem's own numpy. replay_relative_error: between that and the
    environment's step. scale_eur: what relative gaps and errors are divided by where the cost is smaller.
    n_violations: slots of the replay outside an effective limit. operated_cost_eur, n_capped_slots: the same plan under
    the operator, which keeps them. unserved_kwh, curtailed_kwh: of the replay.
    """

    network: str
    programme_cost_eur: float
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
    in the environment. relative_gap: (cost - bound) / max(scale, |cost|). status: a `SolutionStatus`.
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
    """Answer of the programme: the plan that the environment makes of it, the programme's cost of the solver's point,
    the proven bound, and whether the solver ended in time."""

    plan: MarketPlan
    cost_eur: float
    bound_eur: float
    in_time: bool


def solve_market(
    scenario: "Scenario", day: "Day", wanted_gap: float = 1e-6, time_limit_s: float = 60.0
) -> MarketSolution:
    """See `evcs_gym.baselines.optimum`."""
    began = time.monotonic()
    problem = problems.problem_of(scenario, day)
    answer = solve_programme(problem, time_limit_s)
    problems.check(problem, answer.plan)
    free, operated = (replay(scenario, day, answer.plan.storage_kw, how) for how in (NO_OPERATOR, PRO_RATA))
    scale = max(1.0, problems.gap_scale_eur(problem))
    plan_cost, cost = problems.cost(problem, answer.plan), float(free.cost_eur[0])
    gap = relative_gap(cost, answer.bound_eur, scale)
    open_status = SolutionStatus.GAP_OPEN if answer.in_time else SolutionStatus.TIME_LIMIT
    certificate = MarketCertificate(
        network="none",
        programme_cost_eur=answer.cost_eur,
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
        lower_bound_eur=answer.bound_eur,
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
    wish, cost = np.zeros(problem.pv_kw.shape), np.inf
    if result.x is not None:
        charge, discharge = (result.x[compiled.columns(v)] for v in (form.charge, form.discharge))
        wish, cost = (charge - discharge).reshape(wish.shape), compiled.form.objective(result.x)
    dual = np.zeros(len(compiled.form.row_lower)) if result.row_dual is None else result.row_dual
    bound, _ = dual_bound(compiled.form, dual)
    plan = problems.executed(problem, wish)
    if not np.isfinite(cost):
        cost = problems.cost(problem, plan)
    return MarketAnswer(plan, cost, bound, in_time=result.status is Status.OPTIMAL)


def replay(scenario: "Scenario", day: "Day", storage_kw: FloatArray, operator: Operator = NO_OPERATOR) -> MarketRollout:
    """Put storage powers (T, S) through the environment slot by slot; asks stand at the export price."""
    world = market_world(scenario, [day])
    return market_rollout(world, PlanPolicy(storage_kw[None]), operator)
