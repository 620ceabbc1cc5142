"""The network-constrained optimum: against enumeration and the whole programme, under limits that bind, and shipped."""

import itertools
import json
import re
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from market_problems import problem_by_hand
from network_problems import line_with_load, network_by_hand, plan_at
from typer.testing import CliRunner

from evcs_gym import baselines
from evcs_gym.baselines import decomposition, market_network, optimum
from evcs_gym.baselines.decomposition import (
    Cut,
    Search,
    best_schedule,
    cone_rows,
    day_matrices,
    find_plan,
    lift_bound,
    network_free_bound,
    only,
    references_of,
    shared_values,
    with_cuts,
)
from evcs_gym.baselines.forms.network import Tightness, whole_form
from evcs_gym.baselines.market_network import NetworkSolution, caps_of, solve_market_network
from evcs_gym.baselines.problems.market import MarketPlan, energies_kwh
from evcs_gym.baselines.problems.network import (
    LIMIT_NAMES,
    NetworkPlan,
    NetworkProblem,
    check,
    common_excess,
    cost_eur,
    joint_positions,
    network_problem,
    plan_excess,
    position_kw,
    position_range_kw,
    storage_range_kw,
    worst_places,
)
from evcs_gym.baselines.solvers import Result, Status, compile_model, solve_second_order
from evcs_gym.envs import Day, Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError, ConvergenceError, InfeasibleError
from evcs_gym.envs.grid import load_feeder
from evcs_gym.envs.grid.devices import CapacitorBank, Devices, Oltc
from evcs_gym.envs.grid.operator import Limits
from evcs_gym.envs.types import FloatArray
from evcs_gym.evaluation import cli

LIMIT_S = 60.0
OHM = 12.66**2 / 3.0
"""Impedance of 1 pu."""


def search_of(problem: NetworkProblem, gap: float = 1e-6) -> Search:
    return Search(problem, gap, time.monotonic() + LIMIT_S)


def sunny(n_slots: int = 3, devices: Devices | None = None) -> NetworkProblem:
    """Two stations at the end of a long line with more sun than the upper voltage limit takes; exports bring money."""
    market = problem_by_hand(
        n_slots, 2, bus=[1, 2], pv_kw=[0.0, 900.0], ev_kw=[100.0, 0.0], storage_kw=60.0, storage_kwh=60.0,
        energy_start_kwh=30.0, degradation_eur_per_kwh=0.01,
    )  # fmt: skip
    feeder = line_with_load(2, 0.10 * OHM, 0.05 * OHM, 50 + 20j)
    moves = {} if devices is None else {"devices": devices}
    return network_by_hand(market, feeder, load_frac=1.0, vmin_pu=0.8, vmax_pu=1.02, **moves)  # type: ignore[arg-type]


def hungry() -> NetworkProblem:
    """Cars at the end of the line ask for more than the lower voltage limit lets through; storage helps."""
    market = problem_by_hand(
        3, 2, bus=[1, 2], ev_kw=[[50, 300], [50, 700], [50, 300]], storage_kw=100.0, storage_kwh=100.0,
        energy_start_kwh=40.0, imports=[0.10, 0.12, 0.11], charge_efficiency_frac=0.95, discharge_efficiency_frac=0.95,
    )  # fmt: skip
    return network_by_hand(market, line_with_load(2, 0.12 * OHM, 0.05 * OHM, 50 + 20j), load_frac=1.0, vmin_pu=0.95)


def own_plan(search: Search) -> NetworkPlan:
    plan = find_plan(search, only(search.problem, search.problem.own))
    assert plan is not None
    return plan


# --- limits that bind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [sunny(), hungry()], ids=["sunny", "hungry"])
def test_a_plan_keeps_the_limits_stands_at_one_and_is_possible(problem: NetworkProblem) -> None:
    search = search_of(problem)
    plan = own_plan(search)
    check(problem, plan)
    assert -2e-5 < common_excess(problem, plan).max() < 1e-6
    assert network_free_bound(search) < cost_eur(problem, plan) - 0.01


def test_sun_that_the_line_does_not_take_is_curtailed_after_the_storage_is_full() -> None:
    plan = own_plan(search_of(sunny()))
    assert plan.stations.curtailed_kw[:, 1].min() > 100.0
    assert plan.stations.storage_kw[0, 1] == pytest.approx(60.0, abs=1e-4)


def test_drivers_wait_after_the_storage_is_empty() -> None:
    plan = own_plan(search_of(hungry()))
    assert plan.stations.unserved_kw[1, 1] > 1.0
    assert energies_kwh(hungry().market, plan.stations.storage_kw)[2, 1] == pytest.approx(0.0, abs=1e-4)


def test_a_tap_that_may_move_saves_the_sun() -> None:
    """One step down makes room for all of it: the plan is the network-free one, and its cost is its bound."""
    problem = sunny(devices=Devices(Oltc(step_pu=0.05, lowest=-1, highest=1, start=0, max_moves=1)))
    search = search_of(problem)
    free = find_plan(search, only(problem, problem.own), network=False)
    assert free is not None
    devices, left = best_schedule(search, position_kw(problem, free))
    assert problem.tap_position[devices].tolist() == [-1, -1, -1]
    assert left == 0.0
    assert (plan_excess(problem, replace(free, devices=devices)) < 0.0).all()
    assert cost_eur(problem, free) == pytest.approx(network_free_bound(search), abs=1e-6)


def test_the_joint_search_finds_the_tap_too() -> None:
    problem = sunny(devices=Devices(Oltc(step_pu=0.05, lowest=-1, highest=1, start=0, max_moves=1)))
    search = search_of(problem)
    plan = find_plan(search, problem.admissible)
    assert plan is not None
    assert cost_eur(problem, plan) == pytest.approx(network_free_bound(search), abs=2e-3)


def test_a_budget_of_no_moves_keeps_every_device_where_it_is() -> None:
    problem = sunny(devices=Devices(Oltc(step_pu=0.05, lowest=-1, highest=1, start=0, max_moves=0)))
    assert problem.tap_position.tolist() == [0]
    devices, left = best_schedule(search_of(problem), np.array([[-100.0, 900.0]] * 3))
    assert devices.tolist() == [0, 0, 0]
    assert left > 0.01


# --- against enumeration and the whole programme -------------------------------------------------------------


def best_of_grid(problem: NetworkProblem, step_kw: float) -> tuple[float, int]:
    """Least cost of all storage powers on a grid; each slot curtails at station 1 as little as the limits allow."""
    market, powers = problem.market, np.arange(-60.0, 60.1, step_kw)
    best, n_tried = np.inf, 0
    curtailed = {}
    for pair in itertools.product(powers, powers):
        low, high = 0.0, 900.0
        for _ in range(12):  # bisection on the power flow
            middle = 0.5 * (low + high)
            trial = slot_plan(problem, np.array(pair), middle)
            low, high = (low, middle) if common_excess(problem, trial).max() <= 1e-7 else (middle, high)
        curtailed[pair] = 0.0 if common_excess(problem, slot_plan(problem, np.array(pair), 0.0)).max() <= 1e-7 else high
    for choice in itertools.product(curtailed, repeat=market.n_slots):
        storage = np.array(choice)
        energy = market.stations.energy_start_kwh + np.cumsum(0.5 * storage, axis=0)
        if energy.min() < -1e-9 or (energy > market.stations.storage_kwh + 1e-9).any():
            continue
        cut = np.zeros_like(storage)
        cut[:, 1] = [curtailed[pair] for pair in choice]
        plan = NetworkPlan(MarketPlan(storage, cut, np.zeros_like(cut)), problem.own)
        room = storage_range_kw(problem, storage)[1] - storage
        if np.minimum(cut, room).max() > 1e-5:  # (N3)
            continue
        n_tried += 1
        best = min(best, cost_eur(problem, plan))
    return best, n_tried


def slot_plan(problem: NetworkProblem, storage_kw: FloatArray, curtailed_kw: float) -> NetworkPlan:
    wide = np.tile(storage_kw, (problem.n_slots, 1))
    cut = np.zeros_like(wide)
    cut[:, 1] = curtailed_kw
    return NetworkPlan(MarketPlan(wide, cut, np.zeros_like(cut)), problem.own)


def test_a_tiny_city_agrees_with_enumeration() -> None:
    """Two stations, two slots, storage in steps of 20 kW, curtailment by bisection on the power flow."""
    problem = sunny(2)
    search = search_of(problem)
    cost = cost_eur(problem, own_plan(search))
    best, n_tried = best_of_grid(problem, 20.0)
    assert n_tried > 30
    assert best - 0.02 < cost < best + 2e-3


def test_the_whole_programme_has_the_bound_of_the_decomposition() -> None:
    """One conic programme over three slots (Clarabel), whole numbers relaxed, at the same references and limits."""
    problem = hungry()
    search = search_of(problem)
    plan = own_plan(search)
    references = references_of(problem, plan)
    form, cones = whole_form(problem, references, Tightness(decomposition.BOUND_SLACK))
    compiled = compile_model(form.stations.model)
    whole = solve_second_order(compiled.form.relaxed(), cone_rows(cones, compiled), 30.0)
    bound = lift_bound(search, references, np.inf)
    assert not whole.doubtful
    assert bound == pytest.approx(whole.objective, abs=1e-4)
    assert bound <= cost_eur(problem, plan) + 1e-6


def test_imports_are_proven_to_the_gap_asked_for() -> None:
    """Cones are tight where voltage is low: bound and plan differ by what (N4) allows, a few watts."""
    problem = hungry()
    search = search_of(problem)
    plan = own_plan(search)
    bound = lift_bound(search, references_of(problem, plan), np.inf)
    assert 0.0 <= cost_eur(problem, plan) - bound < 0.01 * (cost_eur(problem, plan) - network_free_bound(search))


def test_bounds_stay_below_every_plan_that_keeps_the_limits() -> None:
    problem = sunny()
    search = search_of(problem)
    plan = own_plan(search)
    bound = lift_bound(search, references_of(problem, plan), np.inf)
    rng, n_tried = np.random.default_rng(3), 0
    for _ in range(200):
        other = slot_plan(problem, rng.uniform(-20, 20, 2), rng.uniform(0.0, 900.0))
        if common_excess(problem, other).max() <= 0.0:
            n_tried += 1
            assert bound <= cost_eur(problem, other)
    assert n_tried > 20
    assert bound <= cost_eur(problem, plan)


def test_narrowed_positions_lift_the_bound_and_hold_the_plan() -> None:
    """Chords over what may still cost less than the plan are shorter than those over all that stations can do."""
    problem = sunny()
    search = search_of(problem)
    plan = own_plan(search)
    cost, references = cost_eur(problem, plan), references_of(problem, plan)
    wide = lift_bound(search_of(problem), references, np.inf)
    assert wide + 0.5 < lift_bound(search, references, np.inf, cost) <= cost
    matrices, ranges = day_matrices(problem, problem.admissible), position_range_kw(problem)
    least, largest = decomposition._narrowed(search, matrices, ranges, np.arange(3), cost)
    position = position_kw(problem, plan)
    assert ((least <= position) & (position <= largest)).all()
    assert (largest - least)[:, 1].max() < 0.2 * (ranges[1] - ranges[0])[:, 1].min()


def test_a_bound_beyond_the_plan_at_hand_is_worth_the_plan() -> None:
    """What was narrowed away may cost as little as the cutoff."""
    problem = sunny()
    search = search_of(problem)
    plan = own_plan(search)
    free = network_free_bound(search)
    assert lift_bound(search, references_of(problem, plan), np.inf, free + 1.0) == pytest.approx(free + 1.0)


def test_slots_that_pass_the_power_flow_are_not_solved() -> None:
    problem = sunny(devices=Devices(Oltc(step_pu=0.05, lowest=-1, highest=-1, start=-1, max_moves=0)))
    search = search_of(problem)
    plan = own_plan(search)
    assert lift_bound(search, references_of(problem, plan), np.inf) == pytest.approx(network_free_bound(search))
    assert (search.n_solves, search.bound_cuts) == (0, [])


def test_schedules_are_mixed_slot_by_slot() -> None:
    """Steps down in the first slot only, and in the last only: together they save the sun of both."""
    devices = Devices(Oltc(step_pu=0.05, lowest=-1, highest=0, start=-1, max_moves=2))
    problem = sunny(devices=devices)
    down, up = (int(np.flatnonzero(problem.tap_position == tap)[0]) for tap in (-1, 0))
    tried = [np.array([down, up, up]), np.array([up, up, down])]
    search = search_of(problem)
    plans = [find_plan(search_of(problem), only(problem, schedule)) for schedule in tried]
    costs = [cost_eur(problem, plan) for plan in plans if plan is not None]
    assert plans[0] is not None
    better = market_network._improved(search, plans[0], tried, -np.inf)
    assert better.devices.tolist() == [down, up, down]
    assert cost_eur(problem, better) < min(costs) - 1.0


def test_capacitors_that_lower_losses_most_are_those_that_enumeration_finds() -> None:
    """Two banks on the 33-bus feeder: least current over all steps, by the programme and by the power flow."""
    banks = (CapacitorBank(12, 300.0, 1, 0), CapacitorBank(29, 600.0, 1, 0))
    devices = Devices(Oltc(lowest=0, highest=0, max_moves=0), banks)
    feeder = load_feeder("case33bw")
    problem = network_by_hand(problem_by_hand(1, bus=[1]), feeder, load_frac=1.0, devices=devices, vmin_pu=0.85)
    losses = {}
    for joint in range(len(problem.tap_position)):
        plan = replace(plan_at(problem, np.zeros((1, 1))), devices=np.array([joint]))
        losses[joint] = float(decomposition.plan_flow(problem, plan).loss_kw[0])
    best = min(losses, key=lambda joint: losses[joint])
    assert problem.capacitor_step[best].tolist() == [1, 1]
    assert losses[best] < 151.0 < losses[0] == pytest.approx(202.677, abs=1e-3)
    for joint, loss in losses.items():
        plan = replace(plan_at(problem, np.zeros((1, 1))), devices=np.array([joint]))
        references = [decomposition.Reference(r.voltage_pu, 0 * r.current_pu) for r in references_of(problem, plan)]
        matrices = decomposition.slot_matrices(problem, 0, references[0], Tightness(decomposition.BOUND_SLACK))
        assert programme_loss_kw(problem, matrices, shared_values(problem, plan)[0]) == pytest.approx(loss, abs=2e-2)


def programme_loss_kw(problem: NetworkProblem, matrices: Any, shared: FloatArray) -> float:
    form, model = matrices.compiled.form, matrices.form.model
    first = matrices.compiled.columns([model.P[1, f] for f in range(3)])
    cost, fixed, x = np.zeros_like(form.cost), np.zeros(len(form.cost), dtype=np.bool_), np.zeros(len(form.cost))
    cost[first] = 1.0
    fixed[matrices.shared], x[matrices.shared] = True, shared
    fixed[matrices.compiled.columns([model.excess])] = True
    answer = solve_second_order(replace(form, cost=cost).fixed(fixed, x), matrices.cones, 30.0)
    return float(1000.0 * answer.x[first].sum() - problem.load_kva.real.sum())


@pytest.mark.parametrize(("problem", "at_most"), [(sunny(), 0.025), (hungry(), 0.004)], ids=["sunny", "hungry"])
def test_a_gap_that_stays_is_said(
    problem: NetworkProblem, at_most: float, shipped: tuple[Scenario, Day], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits bind whatever the devices do: the bound rises above the network-free one and stops below the plan."""
    monkeypatch.setattr(market_network, "network_problem", lambda scenario, day: problem)
    monkeypatch.setattr(market_network, "_certificate", lambda *found: found[-1])
    found = solve_market_network(*shipped, wanted_gap=1e-4, time_limit_s=20.0)
    free, lifted, _own = found.certificate  # type: ignore[misc]
    assert found.status == "gap_open"
    assert free + 1.0 < lifted == found.lower_bound_eur < found.cost_eur
    assert 1e-4 < found.relative_gap < at_most


# --- shipped days --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> tuple[Scenario, Day]:
    """A day on which the network-free plan breaks a voltage limit under the day's own devices."""
    scenario = load_scenario("ieee33_twelve")
    return scenario, scenario.day(6, "test")


@pytest.fixture(scope="module")
def solution(shipped: tuple[Scenario, Day]) -> NetworkSolution:
    found = optimum(*shipped, problem="market", relative_gap=1e-4, time_limit_s=90.0, network="misocp")
    assert isinstance(found, NetworkSolution)
    return found


def test_a_shipped_day_is_proven_and_replays(shipped: tuple[Scenario, Day], solution: NetworkSolution) -> None:
    evidence = solution.certificate
    assert solution.status == "optimal"
    assert solution.relative_gap <= 1e-4
    assert evidence.replay_relative_error < 1e-6
    assert evidence.cone_slack_pu < 1e-6
    assert evidence.voltage_mismatch_pu < 1e-5
    assert max(evidence.limits.values()) <= 1e-6
    market = optimum(*shipped, problem="market", relative_gap=1e-4, network="none")
    assert market.certificate.n_violations > 0  # type: ignore[union-attr]
    assert solution.lower_bound_eur >= market.lower_bound_eur - 1e-6
    assert set(solution.as_dict(plan=True)["plan"]) == {
        "storage_kw", "curtailed_kw", "unserved_kw", "position_kw", "tap_position", "capacitor_step",
    }  # fmt: skip


def test_the_command_prints_all_that_a_certificate_must_hold(
    solution: NetworkSolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def solved(*_: Any, **options: Any) -> NetworkSolution:
        asked.update(options)
        return solution

    monkeypatch.setattr(baselines, "optimum", solved)
    command = ["solve", "market", "--network", "misocp", "--day", "6", "--split", "test", "--json"]
    told = json.loads(CliRunner().invoke(cli.app, command).stdout)
    assert (asked["network"], asked["relative_gap"]) == ("misocp", None)
    assert {"relative_gap", "lower_bound_eur", "cost_eur", "status", "seconds", "certificate"} <= set(told)
    assert {"cone_slack_pu", "voltage_mismatch_pu", "limits", "replay_relative_error"} <= set(told["certificate"])
    assert set(told["certificate"]["limits"]) == set(LIMIT_NAMES)
    assert {place["limit"] for place in told["certificate"]["nearest_limits"]} <= set(LIMIT_NAMES)


def test_the_gap_asked_for_is_one_in_ten_thousand_where_nothing_is_said(
    shipped: tuple[Scenario, Day], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(market_network, "solve_market_network", lambda *given: given[2])
    assert optimum(*shipped, problem="market", network="misocp") == 1e-4
    assert optimum(*shipped, problem="market", network="misocp", relative_gap=1e-6) == 1e-6


def test_under_its_own_devices_the_day_costs_more_and_replays_too(shipped: tuple[Scenario, Day]) -> None:
    scenario, day = shipped
    problem = network_problem(scenario, day)
    search = search_of(problem, 1e-4)
    plan = own_plan(search)
    assert cost_eur(problem, plan) > network_free_bound(search) + 1e-3
    replayed = market_network.replay_eur(scenario, day, problem, plan)
    assert replayed == pytest.approx(cost_eur(problem, plan), rel=1e-6)


def test_a_plan_that_curtails_replays_under_its_own_caps(shipped: tuple[Scenario, Day]) -> None:
    """Where a storage cannot take more, 5 kW of sun given up by hand: possible, and the replay says the same."""
    scenario, day = shipped
    problem = network_problem(scenario, day)
    plan = own_plan(search_of(problem, 1e-4))
    position, room = position_kw(problem, plan), storage_range_kw(problem, plan.stations.storage_kw)[1]
    curtailed = np.where((position > 10.0) & (room - plan.stations.storage_kw < 1e-9), 5.0, 0.0)
    assert curtailed.any()
    other = replace(plan, stations=replace(plan.stations, curtailed_kw=curtailed))
    check(problem, other)
    assert np.isfinite(caps_of(problem, other)).sum() == (curtailed > 0).sum()
    replayed = market_network.replay_eur(scenario, day, problem, other)
    assert replayed == pytest.approx(cost_eur(problem, other), rel=1e-6)


# --- what can go wrong ---------------------------------------------------------------------------------------


def test_too_many_joint_positions_are_refused() -> None:
    banks = tuple(CapacitorBank(bus, 10.0, 9, 0, 9) for bus in (1, 2, 3, 4))
    with pytest.raises(ConfigError, match=r"at most 10000 joint positions .* got 250000; lower budgets or steps"):
        joint_positions(Devices(Oltc(), banks))


def test_a_feeder_with_equipment_is_refused(shipped: tuple[Scenario, Day]) -> None:
    class Elsewhere:
        feeder = load_feeder("ieee13")

        def __getattr__(self, name: str) -> Any:
            return getattr(shipped[0], name)

    with pytest.raises(ConfigError, match=r"network 'misocp' knows lines and constant-power wye loads, and feeder"):
        network_problem(Elsewhere(), shipped[1])  # type: ignore[arg-type]


def test_plans_that_break_the_order_or_stand_where_the_base_load_fails_are_refused() -> None:
    problem = sunny(devices=Devices(Oltc(step_pu=0.05, lowest=-1, highest=1, start=0, max_moves=3)))
    plan = own_plan(search_of(problem))
    idle = replace(plan.stations, storage_kw=np.zeros_like(plan.stations.storage_kw))
    with pytest.raises(InfeasibleError, match=r"PV is curtailed after the storage took what it can, but station 's1'"):
        check(problem, replace(plan, stations=idle))
    waiting = replace(idle, curtailed_kw=np.zeros((3, 2)), unserved_kw=np.full((3, 2), [50.0, 0.0]))
    with pytest.raises(InfeasibleError, match=r"drivers wait after the storage gave what it can, but station 's0'"):
        check(problem, replace(plan, stations=waiting))
    none = replace(problem, admissible=problem.admissible & (problem.tap_position == 0))
    with pytest.raises(
        InfeasibleError, match=r"base load must keep its limits under the devices, but does not in slot 0"
    ):
        check(none, replace(plan, devices=np.array([2, 2, 2])))


def narrowed(problem: NetworkProblem, bus: int, **change: float) -> NetworkProblem:
    """Limits of one bus in slot 1 that are not the effective ones."""
    limits = {name: np.array(getattr(problem.limits, name)) for name in Limits.__dataclass_fields__}
    for name, value in change.items():
        limits[name][1, bus] = value
    return replace(problem, limits=Limits(**limits))


@pytest.mark.parametrize(
    ("problem", "kind", "bus"),
    [
        (narrowed(hungry(), 2, vmin_pu=0.999), 0, 2),
        (narrowed(sunny(), 2, vmax_pu=0.93), 1, 2),
        (narrowed(hungry(), 1, current_a=5.0), 2, 1),
    ],
)
def test_an_infeasible_network_is_named_with_limit_slot_bus_and_size(
    problem: NetworkProblem, kind: int, bus: int
) -> None:
    """The size is the least that a grid of positions leaves on the power flow."""
    with pytest.raises(InfeasibleError, match=r"no positions of the stations .* with the least excess") as refused:
        own_plan(search_of(problem))
    name, unit = LIMIT_NAMES[kind].rsplit("_", maxsplit=1)
    said = re.findall(rf"there is {name} of ([\d.]+) {unit} at bus {bus} in slot 1; widen", str(refused.value))
    least, largest = position_range_kw(problem)
    steps = [np.linspace(least[1, s], largest[1, s], n) for s, n in ((0, 9), (1, 41))]
    left = [plan_excess(problem, plan_at(problem, np.array([pair] * 3)))[1, kind] for pair in itertools.product(*steps)]
    assert float(said[0]) == pytest.approx(min(left), rel=0.02, abs=1e-3)


def test_cuts_that_contradict_each_other_but_not_the_power_flow_are_refreshed() -> None:
    """A cut that no position keeps, and no limit behind it."""
    problem = sunny()
    search, plan = search_of(problem), own_plan(search_of(problem))
    n_shared = day_matrices(problem, problem.admissible).shared.shape[1]
    search.plan_cuts = [Cut(1, np.zeros(0), np.zeros(0), 1.0, np.full(n_shared, 1e-9))]
    found = find_plan(search, problem.admissible)
    assert found is not None
    assert cost_eur(problem, found) == pytest.approx(cost_eur(problem, plan), abs=1e-3)


def test_the_nearest_limit_has_a_place() -> None:
    """Sun at the end of the line: the upper voltage limit of bus 2 holds the plan."""
    problem = sunny()
    plan = own_plan(search_of(problem))
    nearest = {place.limit: place for place in worst_places(problem, plan)}
    assert (nearest["overvoltage_pu"].bus, abs(nearest["overvoltage_pu"].excess) < 1e-5) == (2, True)
    largest = plan_excess(problem, plan).max(axis=0)
    assert [nearest[n].excess for n in LIMIT_NAMES if n in nearest] == pytest.approx(largest[np.isfinite(largest)])


def test_a_position_without_power_flow_is_named() -> None:
    problem = sunny()
    with pytest.raises(ConvergenceError, match=r"slot 0 has no power flow at the positions of the plan"):
        references_of(problem, plan_at(problem, np.array([[0.0, -90_000.0]] * 3)))


def test_a_programme_that_contradicts_the_power_flow_is_an_error() -> None:
    problem = sunny()
    plan = plan_at(problem, np.array([[-100.0, 900.0]] * 3))
    values = shared_values(problem, plan)[0]
    with pytest.raises(ConvergenceError, match=r"slot 0 must show the excess of the power flow, 1, got"):
        decomposition.plan_cut(search_of(problem), 0, references_of(problem, plan)[0], values, 1.0)


def test_small_entries_of_a_cut_are_charged_and_not_dropped() -> None:
    """HiGHS drops entries below 1e-9: the row without them is no stronger than the cut."""
    problem = sunny()
    matrices = day_matrices(problem, problem.admissible)
    slope = np.zeros(matrices.shared.shape[1])
    slope[:2] = 1.0, 1e-8
    form = with_cuts(matrices.compiled.form, matrices.shared, [Cut(0, np.zeros(0), np.zeros(0), -5.0, slope)])
    least = matrices.compiled.form.col_lower[matrices.shared[0, 1]]
    assert form.row_lower[-1] == pytest.approx(-5.0 + 1e-8 * least)
    assert len(form.value) == len(matrices.compiled.form.value) + 1


def test_without_time_there_is_no_plan(shipped: tuple[Scenario, Day], monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Result(None, None, np.inf, -np.inf, Status.TIME_LIMIT, 0.0, 0)
    monkeypatch.setattr(decomposition, "solve", lambda task, limit: nothing)
    with pytest.raises(
        ConvergenceError, match=r"linear programme of the day was not solved in time; raise time_limit_s"
    ):
        solve_market_network(*shipped, time_limit_s=1.0)
    monkeypatch.setattr(market_network, "network_free_bound", lambda search: 0.0)
    with pytest.raises(ConvergenceError, match=r"time was over before a plan that keeps the network's limits"):
        solve_market_network(*shipped, time_limit_s=1.0)


def test_a_replay_that_costs_something_else_is_an_error(
    shipped: tuple[Scenario, Day], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(market_network, "replay_eur", lambda *a: 1e9)
    monkeypatch.setattr(market_network, "tightness_of", lambda *a: (0.0, 0.0))
    with pytest.raises(ConvergenceError, match=r"environment must price the plan as the problem does"):
        solve_market_network(*shipped)


def test_networks_are_named(shipped: tuple[Scenario, Day]) -> None:
    with pytest.raises(ConfigError, match=r"network must be one of none, misocp"):
        optimum(*shipped, problem="market", network="copper")
