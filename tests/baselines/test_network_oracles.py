"""The network's programmes against what others wrote: enumeration, textbook relaxations, published capacitors."""

import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from market_problems import problem_by_hand
from network_problems import line_with_load, network_by_hand, plan_at

from evcs_gym.baselines.decomposition import (
    Search,
    SlotMatrices,
    find_plan,
    lift_bound,
    network_free_bound,
    only,
    references_of,
    shared_values,
    slot_matrices,
)
from evcs_gym.baselines.forms.network import Tightness
from evcs_gym.baselines.market import solve_programme
from evcs_gym.baselines.market_network import tightness_of
from evcs_gym.baselines.problems.market import MarketPlan, cost, energies_kwh, executed
from evcs_gym.baselines.problems.network import (
    NetworkPlan,
    NetworkProblem,
    common_excess,
    cost_eur,
    plan_flow,
    position_kw,
    storage_range_kw,
)
from evcs_gym.baselines.second_opinion import second_opinion, solve_by_tangents
from evcs_gym.baselines.solvers import solve_second_order
from evcs_gym.envs.grid import Feeder, load_feeder, power_flow
from evcs_gym.envs.grid.devices import CapacitorBank, Devices, Oltc
from evcs_gym.envs.types import FloatArray

OHM = 12.66**2 / 3.0
"""Impedance of 1 pu."""
LIMIT_S = 60.0
STEP_KW = 20.0


def search_of(problem: NetworkProblem) -> Search:
    return Search(problem, 1e-6, time.monotonic() + LIMIT_S)


def decomposed(problem: NetworkProblem) -> tuple[float, NetworkPlan]:
    """Bound and plan, devices as they stand."""
    search = search_of(problem)
    plan = find_plan(search, only(problem, problem.own))
    assert plan is not None
    return max(network_free_bound(search), lift_bound(search, references_of(problem, plan), np.inf)), plan


# --- tiny cities by enumeration ------------------------------------------------------------------------------


def thirsty(ev_kw: float = 300.0, vmin_pu: float = 0.95) -> NetworkProblem:
    """Two stations, three slots; cars at the end of the line ask for more than the voltage lets through, storage
    without losses moves 20 kW or 10 kWh at a time."""
    market = problem_by_hand(
        3, 2, bus=[1, 2], ev_kw=[[20, ev_kw], [40, 2.0 * ev_kw], [20, ev_kw]], pv_kw=[[0, 0], [40, 0], [0, 0]],
        storage_kw=40.0, storage_kwh=40.0, energy_start_kwh=20.0, imports=[0.10, 0.13, 0.11],
    )  # fmt: skip
    feeder = line_with_load(2, 0.12 * OHM, 0.05 * OHM, 50 + 20j)
    return network_by_hand(market, feeder, load_frac=1.0, vmin_pu=vmin_pu)


def schedules(problem: NetworkProblem) -> list[FloatArray]:
    """All storage schedules (T, S) in steps of 20 kW that the storages can follow."""
    market, powers = problem.market, np.arange(-40.0, 40.1, STEP_KW)
    alone = [np.array(row) for row in itertools.product(powers, repeat=problem.n_slots)]
    found = []
    for pair in itertools.product(alone, alone):
        storage = np.stack(pair, axis=1)
        energy = energies_kwh(market, storage)
        if energy.min() >= -1e-9 and (energy <= market.stations.storage_kwh + 1e-9).all():
            found.append(storage)
    return found


def least_unserved_kw(problem: NetworkProblem) -> Callable[[float, float, int], float]:
    """kW that the cars at the end wait for, given both storage powers in a slot, by bisection on the power flow."""
    known: dict[tuple[float, float, int], float] = {}

    def excess(first_kw: float, second_kw: float, slot: int, unserved_kw: float) -> float:
        storage, waiting = np.zeros((3, 2)), np.zeros((3, 2))
        storage[slot], waiting[slot, 1] = (first_kw, second_kw), unserved_kw
        plan = NetworkPlan(MarketPlan(storage, np.zeros((3, 2)), waiting), problem.own)
        return float(common_excess(problem, plan)[slot])

    def least(first_kw: float, second_kw: float, slot: int) -> float:
        key = (first_kw, second_kw, slot)
        if key not in known:
            low, high = 0.0, float(problem.market.ev_kw[slot, 1])
            if excess(*key, 0.0) <= 0.0:
                high = 0.0
            while high - low > 1e-3:
                middle = 0.5 * (low + high)
                low, high = (low, middle) if excess(*key, middle) <= 0.0 else (middle, high)
            known[key] = high
        return known[key]

    return least


def best_of_grid(problem: NetworkProblem) -> tuple[float, float, int]:
    """Least cost without network, least cost within its limits, and how many schedules kept the order of (N3)."""
    free, best, n_tried, waits = np.inf, np.inf, 0, least_unserved_kw(problem)
    nothing = np.zeros((problem.n_slots, 2))
    for storage in schedules(problem):
        free = min(free, cost(problem.market, MarketPlan(storage, nothing, nothing)))
        unserved = nothing.copy()
        for slot in range(problem.n_slots):
            unserved[slot, 1] = waits(float(storage[slot, 0]), float(storage[slot, 1]), slot)
        room = storage - storage_range_kw(problem, storage)[0]
        if np.minimum(unserved, room).max() > 1e-6:
            continue
        n_tried += 1
        best = min(best, cost_eur(problem, NetworkPlan(MarketPlan(storage, nothing, unserved), problem.own)))
    return free, best, n_tried


@functools.cache
def best_of_thirsty() -> tuple[float, float, int]:
    return best_of_grid(thirsty())


def test_a_tiny_city_without_network_costs_what_enumeration_says() -> None:
    """All powers of the optimum are multiples of 20 kW: the numbers are the same."""
    problem = thirsty(ev_kw=60.0, vmin_pu=0.8)
    free, _, _ = best_of_grid(problem)
    found = solve_programme(problem.market, LIMIT_S)
    assert found.bound_eur == pytest.approx(free, abs=1e-6)
    assert cost(problem.market, executed(problem.market, found.plan.storage_kw)) == pytest.approx(free, abs=1e-6)


@pytest.mark.parametrize("way", ["decomposition", "tangent"])
def test_a_tiny_city_with_its_network_costs_what_enumeration_says(way: str) -> None:
    """Every schedule of the grid is a plan: bounds lie below the best, here near it, as what is short is voltage."""
    problem = thirsty()
    free, best, n_tried = best_of_thirsty()
    bound, plan = decomposed(problem)
    bound = bound if way == "decomposition" else second_opinion(problem, way, LIMIT_S).bound_eur
    assert n_tried > 20
    assert best > free + 10.0
    assert bound <= best
    assert best - bound < 0.01 * (best - free)
    assert bound <= cost_eur(problem, plan) <= best + 1e-3


# --- textbook relaxations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("vmin_pu", [0.93, 0.94])
def test_without_coupling_the_optimum_is_that_of_the_plain_branch_flow(vmin_pu: float) -> None:
    """The 33-bus feeder, balanced; drivers wait where the lower voltage limit binds."""
    from reference_network import plain_branch_flow

    market = problem_by_hand(
        1, 2, bus=[17, 24], ev_kw=[900, 600], storage_kw=0.0, storage_kwh=0.0, energy_start_kwh=0.0,
        connection_kw=2000.0,
    )  # fmt: skip
    problem = network_by_hand(market, load_feeder("case33bw"), load_frac=0.6, vmin_pu=vmin_pu)
    other, (bound, plan) = plain_branch_flow(problem), decomposed(problem)
    assert other.looseness < 1e-5
    assert cost_eur(problem, plan) == pytest.approx(other.cost_eur, abs=1e-4)
    assert plan.stations.unserved_kw[0] == pytest.approx(other.unserved_kw, abs=1e-3)
    assert bound <= other.cost_eur
    assert np.sqrt(other.squared_pu) == pytest.approx(np.abs(plan_flow(problem, plan).voltage_pu[0, :, 0]), abs=1e-6)


def sunny33(vmax_pu: float) -> NetworkProblem:
    """Sun at two ends of the unbalanced feeder, whose phases are coupled."""
    market = problem_by_hand(
        1, 2, bus=[17, 24], pv_kw=[1800, 600], storage_kw=0.0, storage_kwh=0.0, energy_start_kwh=0.0,
        connection_kw=2000.0,
    )  # fmt: skip
    return network_by_hand(market, load_feeder("synthetic33"), load_frac=0.4, vmin_pu=0.9, vmax_pu=vmax_pu)


def head_kw(problem: NetworkProblem, plan: NetworkPlan) -> float:
    """What the source gives, by the power flow."""
    return float(problem.load_kva.real.sum() - position_kw(problem, plan).sum() + plan_flow(problem, plan).loss_kw[0])


def least_head(problem: NetworkProblem, plan: NetworkPlan) -> tuple[float, FloatArray]:
    """Least power at the head [kW] of the relaxation, linearised at a plan, with its positions; limits are exact."""
    matrices = slot_matrices(problem, 0, references_of(problem, plan)[0], Tightness())
    compiled, model = matrices.compiled, matrices.form.model
    first = compiled.columns([model.P[1, phase] for phase in range(3)])
    price, fixed = np.zeros_like(compiled.form.cost), np.zeros(len(compiled.form.cost), dtype=np.bool_)
    price[first] = 1000.0
    devices = matrices.shared[problem.n_stations :]
    fixed[devices], fixed[compiled.columns([model.excess])] = True, True
    x = np.zeros(len(price))
    x[devices] = shared_values(problem, plan)[0, problem.n_stations :]
    found = solve_second_order(replace(compiled.form, cost=price).fixed(fixed, x), matrices.cones, LIMIT_S)
    return found.objective, found.x[matrices.shared[: problem.n_stations]]


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("vmax_pu", [1.2, 1.02])
def test_the_semidefinite_relaxation_bounds_what_we_say(vmax_pu: float) -> None:
    """Where no limit binds it is the power flow, as ours is; where one does, both relaxations lose the same sun in
    currents that do not flow, and both lie below every plan."""
    from reference_network import semidefinite

    problem = sunny33(vmax_pu)
    full = plan_at(problem, np.array([[1800.0, 600.0]]))
    other = semidefinite(problem, np.zeros(2), np.array([1800.0, 600.0]))
    ours, position = least_head(problem, full)
    assert ours == pytest.approx(other.head_kw, abs=0.02)
    assert position == pytest.approx(other.position_kw, abs=0.1)
    if vmax_pu > 1.1:
        assert other.looseness < 1e-4
        assert head_kw(problem, full) == pytest.approx(other.head_kw, abs=0.02)
        return
    assert other.looseness > 0.1
    shares = np.linspace(0.0, 1.0, 41)
    plans = [plan_at(problem, share * np.array([[1800.0, 600.0]])) for share in shares]
    possible = [head_kw(problem, plan) for plan in plans if common_excess(problem, plan)[0] <= 0.0]
    assert 2 < len(possible) < 41
    assert min(possible) > max(ours, other.head_kw)


def test_at_a_plan_with_tight_cones_the_programme_is_the_power_flow() -> None:
    """v by bus and phase, after the refresh at the plan: 1e-6 pu, on coupled phases with capacitors and a tap."""
    market = problem_by_hand(2, 2, bus=[17, 24], ev_kw=[[300, 200], [700, 100]], storage_kw=50.0)
    devices = Devices(Oltc(start=2), (CapacitorBank(29, 200.0, 3, 2),))
    problem = network_by_hand(market, load_feeder("synthetic33"), load_frac=0.7, devices=devices, vmin_pu=0.94)
    _, plan = decomposed(problem)
    assert plan.stations.unserved_kw.max() > 10.0
    slack, mismatch = tightness_of(problem, plan)
    assert slack < 1e-6
    assert mismatch < 1e-6


# --- published capacitors ------------------------------------------------------------------------------------


def older33() -> Feeder:
    """The 33-bus feeder with line 7-8 of 1.7114 + 1.2351j ohm, on which capacitors are usually placed."""
    feeder = load_feeder("case33bw")
    ohm = feeder.impedance_pu * feeder.base_ohm[:, None, None]
    ohm[7] = (1.7114 + 1.2351j) * np.eye(3)
    return Feeder.from_arrays(parent=feeder.parent, impedance_ohm=ohm, line_to_line_kv=12.66, load_kva=feeder.load_kva)


def losses_kw(feeder: Feeder, kvar_at: list[dict[int, float]]) -> FloatArray:
    """Losses of the nominal load less kvar at buses, by name from 1, that do not depend on the voltage."""
    load = np.repeat(feeder.load_kva[None], len(kvar_at), axis=0)
    for row, given in enumerate(kvar_at):
        for bus, kvar in given.items():
            load[row, bus - 1] -= 1j * kvar / 3.0
    return power_flow(feeder, load, 1.0, 1e-12).loss_kw


PUBLISHED = (
    ({30: 1258.0}, 151.38),
    ({12: 465.0, 30: 1063.0}, 141.84),
    ({13: 388.0, 24: 544.0, 30: 1037.0}, 138.26),
)
"""Best sizes for one, two and three places, and their losses [kW], as the literature on capacitor placement quotes them
for this data."""


def test_published_capacitors_lose_what_is_published() -> None:
    feeder = older33()
    assert losses_kw(feeder, [{}])[0] == pytest.approx(210.998, abs=1e-3)
    assert losses_kw(load_feeder("case33bw"), [{}])[0] == pytest.approx(202.677, abs=1e-3)
    found = losses_kw(feeder, [given for given, _ in PUBLISHED])
    assert found == pytest.approx([loss for _, loss in PUBLISHED], abs=0.01)


@pytest.mark.parametrize("given", [given for given, _ in PUBLISHED], ids=len)
def test_the_cone_programme_finds_the_published_sizes(given: dict[int, float]) -> None:
    """The relaxation is tight, so nothing at these buses loses less."""
    from reference_network import least_loss_kvar

    feeder = older33()
    loss, kvar, looseness = least_loss_kvar(feeder, [bus - 1 for bus in given])
    assert looseness < 1e-5
    assert kvar == pytest.approx(list(given.values()), abs=1.5)
    assert loss == pytest.approx(losses_kw(feeder, [given])[0], abs=2e-3)


def test_the_best_steps_of_150_kvar_have_no_better_neighbour() -> None:
    """450 kvar at buses 12 and 24, 1050 at 30: 138.43 kW; a step more or less, or the next bus, loses more."""
    feeder, best = older33(), {12: 450.0, 24: 450.0, 30: 1050.0}
    moves = [{**best, bus: best[bus] + change} for bus, change in itertools.product(best, (-150.0, 150.0))]
    for bus, other in itertools.product(best, (-1, 1)):
        moves.append({**{b: kvar for b, kvar in best.items() if b != bus}, bus + other: best[bus]})
    found = losses_kw(feeder, [best, *moves])
    assert found[0] == pytest.approx(138.429, abs=1e-3)
    assert found[1:].min() > found[0]


def test_switched_steps_of_the_programme_are_those_that_enumeration_finds() -> None:
    """(Q3), (Q4) with whole steps at buses 13, 24 and 30, capacitors that follow the voltage: the tangents find the
    best of 512 combinations, and its losses are those of the power flow."""
    steps = {13: (150.0, 300.0), 24: (150.0, 300.0, 600.0), 30: (150.0, 300.0, 600.0, 600.0)}
    banks = tuple(CapacitorBank(bus - 1, kvar, 1, 0) for bus, sizes in steps.items() for kvar in sizes)
    devices = Devices(Oltc(lowest=0, highest=0, max_moves=0), banks)
    problem = network_by_hand(problem_by_hand(1, bus=[1]), older33(), load_frac=1.0, devices=devices, vmin_pu=0.85)
    flow = power_flow(
        problem.feeder,
        np.repeat(problem.load_kva, len(problem.tap_position), axis=0),
        1.0,
        1e-11,
        capacitor_kvar=problem.kvar,
    )
    plan = replace(plan_at(problem, np.zeros((1, 1))), devices=np.array([int(flow.loss_kw.argmin())]))
    matrices = slot_matrices(problem, 0, references_of(problem, plan)[0], Tightness(0.01))
    chosen, loss = least_loss_steps(problem, matrices, plan)
    sizes = np.array([bank.kvar_per_step for bank in banks])
    at = np.array([bank.bus + 1 for bank in banks])
    given = {bus: float((sizes * chosen)[at == bus].sum()) for bus in steps}
    assert given == {13: 450.0, 24: 600.0, 30: 1200.0}
    assert loss == pytest.approx(float(flow.loss_kw.min()), abs=2e-3)


def least_loss_steps(problem: NetworkProblem, matrices: SlotMatrices, plan: NetworkPlan) -> tuple[FloatArray, float]:
    """Steps in service and losses [kW] that the programme finds; positions and head voltage as in the plan."""
    compiled, model = matrices.compiled, matrices.form.model
    first = compiled.columns([model.P[1, phase] for phase in range(3)])
    step = matrices.shared[problem.n_stations + 1 :]
    price, integer = np.zeros_like(compiled.form.cost), np.zeros(len(compiled.form.cost), dtype=np.bool_)
    price[first], integer[step] = 1000.0, True
    fixed, x = np.zeros(len(price), dtype=np.bool_), np.zeros(len(price))
    fixed[matrices.shared[: problem.n_stations + 1]], fixed[compiled.columns([model.excess])] = True, True
    x[matrices.shared] = shared_values(problem, plan)[0]
    form = replace(compiled.form, cost=price, integer=integer).fixed(fixed, x)
    found = solve_by_tangents(form, matrices.cones, LIMIT_S, x, lambda at: at, np.zeros(len(price)))
    assert found.x is not None
    return np.round(found.x[step]), float(found.x[first].sum() * 1000.0 - problem.load_kva.real.sum())
