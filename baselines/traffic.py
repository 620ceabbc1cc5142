"""The traffic equilibrium by convex programming: slower than `evcs_gym.envs.traffic` and independent of it."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from evcs_gym.baselines.certificate import SolutionStatus, plain, relative_gap
from evcs_gym.baselines.forms.traffic import TrafficForm, add_tangent, traffic_form
from evcs_gym.baselines.problems.traffic import TrafficProblem, check, cost_eur, lower_bound_eur
from evcs_gym.baselines.solvers import ConicRows, compile_model, solve_conic
from evcs_gym.envs.errors import ConfigError, ConvergenceError
from evcs_gym.envs.traffic import TrafficModel
from evcs_gym.envs.traffic.charging import check_capacity, joined_demand, station_integral
from evcs_gym.envs.traffic.kernels import ERLANG, LARGEST_UTILISATION, erlang_sojourn
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import N_SLOTS

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

_FIRST_TANGENTS = 12
"""Tangents of each Erlang-C station to begin with, closer together towards its capacity."""
_MAX_ROUNDS = 30
_STEPS = 0.5 ** np.arange(8)
"""Shares of the way from the plan to an answer that are tried."""


@dataclass(frozen=True)
class TrafficCertificate:
    """Evidence for a plan of traffic, and what the environment's own equilibrium is beside it.

    slot: of the day. equilibrium_cost_eur, equilibrium_relative_gap: (T3) of the flows that the day carries, and the
    gap (T4) that they reached; None where no day was given. n_rounds: solves; more than one only for Erlang-C stations.
    """

    slot: int | None
    equilibrium_cost_eur: float | None
    equilibrium_relative_gap: float | None
    n_rounds: int
    solver: str


@dataclass(frozen=True, eq=False)
class TrafficSolution:
    """The best plan found for a slot and its certificate.

    flow_veh_per_h: (R,) of roads, stations, the outside option. cost_eur: (T3) of it by the problem's own numpy.
    lower_bound_eur: f + SPTT - TSTT at a flow; no plan costs less. relative_gap: between both.
    """

    flow_veh_per_h: FloatArray
    cost_eur: float
    lower_bound_eur: float
    relative_gap: float
    seconds: float
    certificate: TrafficCertificate
    problem: str = "traffic"
    status: str = SolutionStatus.OPTIMAL

    def plan_arrays(self) -> dict[str, FloatArray]:
        """The plan by name, as it is stored."""
        return {"flow_veh_per_h": self.flow_veh_per_h}

    def as_dict(self, plan: bool = False) -> dict[str, Any]:
        """The solution as plain numbers, lists and strings; ``plan`` adds the plan."""
        return plain(self, plan)


def solve_traffic(
    scenario: "Scenario", day: "Day", slot: int, gap: float = 1e-6, time_limit_s: float = 60.0
) -> TrafficSolution:
    """The traffic of one slot of a day as a convex programme: the demand that travels then, at retail prices.

    Raises ConfigError for a scenario or a day without stations or a slot out of range, else as `traffic_optimum`.
    """
    model, assets, traffic, stations = scenario.traffic_model, scenario.stations, day.traffic, day.stations
    if traffic is None or stations is None:
        raise ConfigError(f"traffic: the day must be one of scenario {scenario.name!r}, got one without stations")
    if not 0 <= slot < N_SLOTS:
        raise ConfigError(f"traffic: slot must be in 0..{N_SLOTS - 1}, got {slot}")
    through, charging = traffic.assigned_veh_per_h[slot]
    flow = np.concatenate([traffic.link_flow_veh_per_h[slot], stations.arrivals_veh_per_h[slot]])
    problem = TrafficProblem(model, np.concatenate([through, charging]), model.fixed_h(assets.retail_eur_per_kwh))
    return _optimum(problem, gap, time_limit_s, (slot, cost_eur(problem, flow), float(traffic.relative_gap[slot])))


def traffic_optimum(
    model: TrafficModel,
    charging_veh_per_h: ArrayLike,
    through_veh_per_h: ArrayLike,
    price_eur_per_kwh: ArrayLike = 0.0,
    gap: float = 1e-6,
    time_limit_s: float = 60.0,
) -> TrafficSolution:
    """Minimise (T3) for charging and through demand (K,) at the stations' prices (S,), and prove how good it is.

    Raises InfeasibleError for demand that does not fit, DataError for arrays out of range, SolverError where the solver
    fails, ConvergenceError if the gap is not proven.
    """
    demand = joined_demand(model, np.asarray(through_veh_per_h), np.asarray(charging_veh_per_h))
    return _optimum(TrafficProblem(model, demand, model.fixed_h(price_eur_per_kwh)), gap, time_limit_s)


def _optimum(
    problem: TrafficProblem,
    gap: float,
    time_limit_s: float,
    day: tuple[int | None, float | None, float | None] = (None, None, None),
) -> TrafficSolution:
    check_capacity(problem.model, problem.demand_veh_per_h[problem.model.network.n_pairs :])
    began = time.perf_counter()
    form = traffic_form(problem)
    _first_tangents(problem, form)
    plan, solver = _solve(form, time_limit_s)
    cost, bound, n_rounds = cost_eur(problem, plan), lower_bound_eur(problem, plan), 1
    while relative_gap(cost, bound) > gap and n_rounds < _MAX_ROUNDS and _has_queues(problem):
        n_rounds += 1
        answer, solver = _solve(traffic_form(problem, plan), time_limit_s)
        tries = [plan + step * (answer - plan) for step in _STEPS]
        costs = [cost_eur(problem, flow) for flow in tries]
        bound = max(bound, lower_bound_eur(problem, answer), lower_bound_eur(problem, tries[int(np.argmin(costs))]))
        if min(costs) >= cost:
            break
        plan, cost = tries[int(np.argmin(costs))], min(costs)
    found = relative_gap(cost, bound)
    if found > gap:
        raise ConvergenceError(
            f"{problem.model.network.name}: a relative gap of {gap:.3g} was asked for, {found:.3g} proven after "
            f"{n_rounds} solves; raise gap"
        )
    check(problem, plan)
    evidence = TrafficCertificate(*day, n_rounds, solver)
    return TrafficSolution(plan, cost, bound, found, time.perf_counter() - began, evidence)


def _has_queues(problem: TrafficProblem) -> bool:
    return bool((problem.model.graph.arrays.kind == ERLANG).any())


def _solve(form: TrafficForm, time_limit_s: float) -> tuple[FloatArray, str]:
    """Flows (R,) [veh/h] of the conic programme; rounding below zero is cut off."""
    compiled = compile_model(form.model)
    cones = [
        ConicRows(
            kind=cone.kind,
            alpha=cone.alpha,
            constant=cone.constant,
            column=tuple(-1 if v is None else int(compiled.columns([v])[0]) for v in cone.variable),
            factor=cone.factor,
        )
        for cone in form.cones
    ]
    x, solver = solve_conic(compiled.form, cones, time_limit_s)
    flow = x[compiled.columns(form.flow)]
    return np.maximum(flow, 0.0) * form.unit_veh_per_h, solver


def _first_tangents(problem: TrafficProblem, form: TrafficForm) -> None:
    arrays = problem.model.graph.arrays
    for r in np.flatnonzero(arrays.kind == ERLANG).tolist():
        for share in 1.0 - (1.0 - LARGEST_UTILISATION) ** np.linspace(0.0, 1.0, _FIRST_TANGENTS):
            _tangent(problem, form, r, float(share) * arrays.capacity[r])


def _tangent(problem: TrafficProblem, form: TrafficForm, resource: int, flow: float) -> None:
    stations = problem.model.stations
    k = resource - problem.model.network.n_links
    time_h, _ = erlang_sojourn(flow, float(stations.service_h[k]), int(stations.n_chargers[k]))
    add_tangent(form, resource, flow, station_integral(stations, k, flow), time_h)
