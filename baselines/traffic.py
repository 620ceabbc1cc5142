"""The traffic equilibrium by convex programming: slower than `evcs_gym.envs.traffic` and independent of it."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evcs_gym.baselines.certificate import relative_gap
from evcs_gym.baselines.forms.traffic import TrafficForm, add_tangent, traffic_form
from evcs_gym.baselines.problems.traffic import TrafficProblem, check, cost_eur, lower_bound_eur
from evcs_gym.baselines.solvers import ConicRows, compile_model, solve_conic
from evcs_gym.envs.errors import ConvergenceError
from evcs_gym.envs.traffic import TrafficModel
from evcs_gym.envs.traffic.charging import check_capacity, joined_demand, station_integral
from evcs_gym.envs.traffic.kernels import ERLANG, LARGEST_UTILISATION, erlang_sojourn
from evcs_gym.envs.types import FloatArray

_FIRST_TANGENTS = 12
"""Tangents of each Erlang-C station to begin with, closer together towards its capacity."""
_MAX_ROUNDS = 30


@dataclass(frozen=True, eq=False)
class TrafficSolution:
    """The best plan found for a slot and its certificate.

    flow_veh_per_h: (R,) of roads, stations, the outside option. cost_eur: (T3) of it by the problem's own numpy.
    lower_bound_eur: f + SPTT - TSTT at the plan; no plan costs less. relative_gap: between both.
    n_rounds: solves; more than one only where tangents were added.
    """

    flow_veh_per_h: FloatArray
    cost_eur: float
    lower_bound_eur: float
    relative_gap: float
    n_rounds: int
    seconds: float
    solver: str


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
    check_capacity(model, demand[model.network.n_pairs :])
    problem = TrafficProblem(model, demand, model.fixed_h(price_eur_per_kwh))
    began = time.perf_counter()
    form = traffic_form(problem)
    _first_tangents(problem, form)
    plan, cost, bound = np.zeros(len(problem.fixed_h)), np.inf, -np.inf
    for n_rounds in range(1, _MAX_ROUNDS + 1):
        answer, solver = _solve(form, time_limit_s)
        # tangents make answers jump around the optimum: the point between them is nearer, and as feasible
        for flow in (answer,) if n_rounds == 1 else (answer, 0.5 * (answer + plan)):
            bound = max(bound, lower_bound_eur(problem, flow))
            if cost_eur(problem, flow) < cost:
                plan, cost = flow, cost_eur(problem, flow)
            more = _tangents_at(problem, form, flow)
        found = relative_gap(cost, bound)
        if found <= gap:
            check(problem, plan)
            return TrafficSolution(plan, cost, bound, found, n_rounds, time.perf_counter() - began, solver)
        if not more:
            break
    raise ConvergenceError(
        f"{model.network.name}: a relative gap of {gap:.3g} was asked for, {found:.3g} proven after {n_rounds} solves; "
        "raise gap"
    )


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


def _tangents_at(problem: TrafficProblem, form: TrafficForm, flow: FloatArray) -> bool:
    """A tangent more for every Erlang-C station; False where there is none, so that another solve is in vain."""
    arrays = problem.model.graph.arrays
    stations = np.flatnonzero(arrays.kind == ERLANG).tolist()
    for r in stations:
        _tangent(problem, form, r, min(float(flow[r]), LARGEST_UTILISATION * arrays.capacity[r]))
    return bool(stations)


def _tangent(problem: TrafficProblem, form: TrafficForm, resource: int, flow: float) -> None:
    stations = problem.model.stations
    k = resource - problem.model.network.n_links
    time_h, _ = erlang_sojourn(flow, float(stations.service_h[k]), int(stations.n_chargers[k]))
    add_tangent(form, resource, flow, station_integral(stations, k, flow), time_h)
