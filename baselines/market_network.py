"""The proven optimum of the market with its network: `optimum(..., problem="market", network="misocp")`."""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from evcs_gym.baselines import decomposition as search_module
from evcs_gym.baselines.certificate import SolutionStatus, plain, relative_gap
from evcs_gym.baselines.decomposition import Search, best_schedule, find_plan, lift_bound, network_free_bound, only
from evcs_gym.baselines.forms.network import BOUND_SLACK, Reference, Tightness
from evcs_gym.baselines.problems.market import MarketPlan
from evcs_gym.baselines.problems.network import (
    LIMIT_NAMES,
    ORDER_TOLERANCE_KW,
    Breach,
    NetworkPlan,
    NetworkProblem,
    check,
    cost_eur,
    network_problem,
    plan_excess,
    position_kw,
    scale_eur,
    schedule_of,
    worst_places,
)
from evcs_gym.baselines.solvers import solve_second_order, solver_version
from evcs_gym.envs.day import with_devices
from evcs_gym.envs.errors import ConvergenceError
from evcs_gym.envs.grid.devices import moves_of
from evcs_gym.envs.market.core import MarketAction, initial_state, step
from evcs_gym.envs.market.prepare import market_world
from evcs_gym.envs.types import FloatArray, IntArray
from evcs_gym.envs.units import N_SLOTS, SLOT_H

if TYPE_CHECKING:
    from evcs_gym.envs.day import Day
    from evcs_gym.envs.scenario import Scenario

REPLAY_TOLERANCE: Final = 1e-4
"""Relative error that a replay may show."""


@dataclass(frozen=True)
class NetworkCertificate:
    """Evidence for a plan of the market with its network.

    network: what the programme knows of it. network_free_bound_eur: holds for every policy whatever the network does.
    network_bound_eur: of the relaxation (Q1)-(Q6) with limits wider by what (N4) allows, linearised at the plan; None
    where the first was enough. Both charge the dual residual over the boxes of the variables. own_devices_cost_eur: of
    the best plan found under the day's own device schedule, None where the plan itself has it or none was looked for.
    cone_slack_pu, voltage_mismatch_pu: largest v l - P2 - Q2, and largest difference of sqrt(v) from the power flow, of
    the programmes with least current at the plan. limits: largest excess of the plan's power flow over the effective
    limits, negative where there is room; nearest_limits: the slot and bus of each of them. replay_cost_eur,
    replay_relative_error: of the plan through the environment's step with its devices. n_capped: cells (slot, station)
    in which the plan curtails or leaves drivers waiting.
    """

    network: str
    network_free_bound_eur: float
    network_bound_eur: float | None
    own_devices_cost_eur: float | None
    cone_slack_pu: float
    voltage_mismatch_pu: float
    limits: dict[str, float]
    nearest_limits: list[Breach]
    replay_cost_eur: float
    replay_relative_error: float
    curtailed_kwh: float
    unserved_kwh: float
    n_capped: int
    n_tap_moves: int
    n_switchings: int
    n_rounds: int
    n_plan_cuts: int
    n_bound_cuts: int
    n_slot_solves: int
    n_doubtful_solves: int
    solver: str
    solver_version: str


@dataclass(frozen=True, eq=False)
class NetworkSolution:
    """The best plan found for a day of the market with its network, with what is proven about it.

    cost_eur: of the plan by the problem's own numpy. lower_bound_eur: the larger bound of the certificate.
    relative_gap: their difference over max(1 EUR, |cost|, deficits of idle storages). status: a `SolutionStatus`.
    """

    cost_eur: float
    lower_bound_eur: float
    relative_gap: float
    status: str
    seconds: float
    plan: NetworkPlan
    tap_position: IntArray
    capacitor_step: IntArray
    position_kw: FloatArray
    certificate: NetworkCertificate
    problem: str = "market"

    def plan_arrays(self) -> dict[str, Any]:
        """The plan by name, as it is stored."""
        arrays = {name: getattr(self.plan.stations, name) for name in MarketPlan.__dataclass_fields__}
        own = {name: getattr(self, name) for name in ("position_kw", "tap_position", "capacitor_step")}
        return {**arrays, **own}

    def as_dict(self, plan: bool = False) -> dict[str, Any]:
        """The solution as plain numbers, lists and strings; ``plan`` adds the plan."""
        return plain(self, plan)


def solve_market_network(
    scenario: "Scenario", day: "Day", wanted_gap: float = 1e-4, time_limit_s: float = 90.0
) -> NetworkSolution:
    """The cheapest plan of stations and devices that keeps the network's limits, and a bound on all of them.

    Raises:
        ConfigError: a scenario without stations, a feeder with equipment, too many joint positions of the devices.
        InfeasibleError: no positions keep the limits.
        ConvergenceError: no plan before time was over; a plan that the environment does not price alike.
        SolverError: no solver, or one that failed.
    """
    began = time.perf_counter()
    problem = network_problem(scenario, day)
    search = Search(problem, wanted_gap, time.monotonic() + time_limit_s)
    free_eur = network_free_bound(search)
    plan, own_eur = _plan(search, free_eur)
    bound, network_eur = free_eur, None
    if not _proven(problem, plan, free_eur, wanted_gap):
        target = cost_eur(problem, plan) - 0.1 * wanted_gap * scale_eur(problem, cost_eur(problem, plan))
        network_eur = lift_bound(search, search_module.references_of(problem, plan), target)
        bound = max(free_eur, network_eur)
        if not _proven(problem, plan, bound, wanted_gap) and search.left_s > 0.0:
            joint = find_plan(replace(search, plan_cuts=list(search.plan_cuts)), problem.admissible)
            if joint is not None and cost_eur(problem, joint) < cost_eur(problem, plan):
                plan = joint
    check(problem, plan)
    cost = cost_eur(problem, plan)
    gap = relative_gap(cost, bound, scale_eur(problem, cost))
    late = SolutionStatus.TIME_LIMIT if search.left_s <= 0.0 else SolutionStatus.GAP_OPEN
    certificate = _certificate(scenario, day, search, plan, (free_eur, network_eur, own_eur))
    schedule = schedule_of(problem, plan)
    return NetworkSolution(
        cost_eur=cost,
        lower_bound_eur=bound,
        relative_gap=gap,
        status=SolutionStatus.OPTIMAL if gap <= wanted_gap else late,
        seconds=time.perf_counter() - began,
        plan=plan,
        tap_position=schedule.tap_position,
        capacitor_step=schedule.capacitor_step,
        position_kw=position_kw(problem, plan),
        certificate=certificate,
    )


def _proven(problem: NetworkProblem, plan: NetworkPlan, bound_eur: float, gap: float) -> bool:
    cost = cost_eur(problem, plan)
    return cost - bound_eur <= gap * scale_eur(problem, cost)


def _plan(search: Search, free_eur: float) -> tuple[NetworkPlan, float | None]:
    """The best of: the network-free plan under the day's devices or under those that suit it best, and the plans that
    keep the limits under either; with the cost of the best one under the day's own devices, if another is better.

    Raises:
        ConvergenceError: none before time was over.
    """
    problem = search.problem
    own = only(problem, problem.own)
    wished = find_plan(search, own, network=False)
    if wished is None:
        raise _late()
    if (plan_excess(problem, wished) <= search_module.LIMIT_TOLERANCE).all():
        return wished, None
    position, excess = best_schedule(search, position_kw(problem, wished))
    moved = replace(wished, devices=position)
    if excess == 0.0 and (plan_excess(problem, moved) <= search_module.LIMIT_TOLERANCE).all():
        return moved, None
    best = _under(search, position, 0.6)
    if best is not None and _proven(problem, best, free_eur, search.gap):
        return best, None
    under_own = _under(search, problem.own, 0.3)
    if under_own is not None and (best is None or cost_eur(problem, under_own) <= cost_eur(problem, best)):
        return under_own, None
    if best is None:
        raise _late()
    return best, None if under_own is None else cost_eur(problem, under_own)


def _under(search: Search, devices: IntArray, share: float) -> NetworkPlan | None:
    """The cheapest plan under given devices (T,), within a share of the time left."""
    part = replace(search, plan_cuts=[], end=time.monotonic() + share * search.left_s)
    plan = find_plan(part, only(search.problem, devices))
    for name in ("n_rounds", "n_solves", "n_doubtful"):
        setattr(search, name, getattr(part, name))
    search.plan_cuts = part.plan_cuts
    return plan


def _late() -> ConvergenceError:
    return ConvergenceError("market: time was over before a plan that keeps the network's limits; raise time_limit_s")


# -- evidence ---------------------------------------------------------------------------------------------------------


def _certificate(
    scenario: "Scenario", day: "Day", search: Search, plan: NetworkPlan, costs: tuple[float, float | None, float | None]
) -> NetworkCertificate:
    problem, cost = search.problem, cost_eur(search.problem, plan)
    slack, mismatch = tightness_of(problem, plan)
    replayed = replay_eur(scenario, day, problem, plan)
    error = abs(replayed - cost) / scale_eur(problem, cost)
    if error > REPLAY_TOLERANCE:
        raise ConvergenceError(
            f"market: the environment must price the plan as the problem does, {cost:.6f} EUR, got {replayed:.6f} EUR"
        )
    n_taps, n_switchings = moves_of(problem.devices, schedule_of(problem, plan))
    return NetworkCertificate(
        network="misocp",
        network_free_bound_eur=costs[0],
        network_bound_eur=costs[1],
        own_devices_cost_eur=costs[2],
        cone_slack_pu=slack,
        voltage_mismatch_pu=mismatch,
        limits=dict(zip(LIMIT_NAMES, plan_excess(problem, plan).max(axis=0).tolist(), strict=True)),
        nearest_limits=worst_places(problem, plan),
        replay_cost_eur=replayed,
        replay_relative_error=error,
        curtailed_kwh=float(SLOT_H * plan.stations.curtailed_kw.sum()),
        unserved_kwh=float(SLOT_H * plan.stations.unserved_kw.sum()),
        n_capped=int(np.isfinite(caps_of(problem, plan)).sum()),
        n_tap_moves=n_taps,
        n_switchings=int(n_switchings.sum()),
        n_rounds=search.n_rounds,
        n_plan_cuts=len(search.plan_cuts),
        n_bound_cuts=len(search.bound_cuts),
        n_slot_solves=search.n_solves,
        n_doubtful_solves=search.n_doubtful,
        solver="HiGHS, Clarabel",
        solver_version=solver_version(),
    )


def tightness_of(problem: NetworkProblem, plan: NetworkPlan) -> tuple[float, float]:
    """Largest v l - P2 - Q2 and |sqrt v - V of the power flow| of the programmes with least current at the plan.

    Each slot is linearised at the plan's own power flow, with its limits as in the bound and positions, head voltage
    and steps as in the plan: the relaxation is exact there if both are zero.
    """
    references = search_module.references_of(problem, plan)
    shared = search_module.shared_values(problem, plan)
    slots = np.arange(problem.n_slots)
    found = np.array(
        search_module.spread(lambda slot: _slot_tightness(problem, slot, references[slot], shared[slot]), slots)
    )
    return float(found[:, 0].max()), float(found[:, 1].max())


def _slot_tightness(
    problem: NetworkProblem, slot: int, reference: Reference, shared: FloatArray
) -> tuple[float, float]:
    matrices = search_module.slot_matrices(problem, slot, reference, Tightness(BOUND_SLACK))
    model, compiled = matrices.form.model, matrices.compiled
    cells = list(model.l)
    current, voltage = (compiled.columns(list(v.values())) for v in (model.l, model.v))
    cost = np.zeros_like(compiled.form.cost)
    cost[current] = 1.0
    fixed, x = np.zeros(len(cost), dtype=np.bool_), np.zeros(len(cost))
    excess = compiled.columns([model.excess])
    fixed[matrices.shared], fixed[excess], x[matrices.shared] = True, True, shared
    form = replace(compiled.form, cost=cost).fixed(fixed, x)
    answer = solve_second_order(form, matrices.cones, SLOT_LIMIT_S)
    powers = [answer.x[compiled.columns(list(v.values()))] for v in (model.P, model.Q)]
    squares = dict(zip(cells, answer.x[voltage].tolist(), strict=True))
    above = np.array([squares.get((int(problem.feeder.parent[j]), f), shared[problem.n_stations]) for j, f in cells])
    slack = above * answer.x[current] - powers[0] ** 2 - powers[1] ** 2
    size = np.array([abs(reference.voltage_pu[j, f]) for j, f in cells])
    return float(slack.max()), float(np.abs(np.sqrt(answer.x[voltage]) - size).max())


SLOT_LIMIT_S: Final = 10.0
"""Longest time of one slot's programme."""


# -- replay -----------------------------------------------------------------------------------------------------------


def caps_of(problem: NetworkProblem, plan: NetworkPlan) -> FloatArray:
    """(T, S) bounds on |position| where the plan curtails or leaves drivers waiting, infinite elsewhere."""
    held = (plan.stations.curtailed_kw > ORDER_TOLERANCE_KW) | (plan.stations.unserved_kw > ORDER_TOLERANCE_KW)
    return np.where(held, np.abs(position_kw(problem, plan)), np.inf)


def replay_eur(scenario: "Scenario", day: "Day", problem: NetworkProblem, plan: NetworkPlan) -> float:
    """Community cost of the plan through the environment's step: its devices, its caps, asks at the export price."""
    moved = with_devices(scenario, day, schedule_of(problem, plan))
    world = market_world(scenario, [moved])
    caps, state, total = caps_of(problem, plan), initial_state(world, np.zeros(1, dtype=np.int64)), 0.0
    for slot in range(N_SLOTS):
        ask = np.full((1, problem.n_stations), day.export_eur_per_kwh[slot])
        action = MarketAction(plan.stations.storage_kw[slot][None], ask, caps[slot][None])
        state, outcome = step(world, state, action)
        total += float(outcome.community_eur[0])
    return total
