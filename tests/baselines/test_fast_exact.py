"""The exact optimum of fast charging against hand sums, enumeration, another programme and the environment."""

import dataclasses
import itertools
import time

import numpy as np
import pytest
from fast_fixtures import Request, fast_hand_day, fast_scenario
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_fast_exact import best_by_enumeration, one_slot, play, tiny_problem
from scipy.optimize import LinearConstraint, milp

from evcs_gym.baselines import optimum
from evcs_gym.baselines.fast_charging import Answer, solve_fast_charging, solve_programme
from evcs_gym.baselines.forms import fast_charging as forms
from evcs_gym.baselines.normal_charging import Budget
from evcs_gym.baselines.problems import fast_charging as problems
from evcs_gym.baselines.problems.fast_charging import FastProblem
from evcs_gym.baselines.reference import lower_bound_eur
from evcs_gym.baselines.solvers import compile_model
from evcs_gym.envs import Day, Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError, DataError, InfeasibleError
from evcs_gym.envs.fleet.fast import replay
from evcs_gym.envs.types import FloatArray

EXACT_EUR = 1e-6
"""What solvers may be off: their tolerance times prices of this size."""


def by_hand(n_requests: int = 2, **changes: object) -> FastProblem:
    """One slot, two stations of 40 kW: the near one without DG, the far one with 40 kW; cars that need 50 kWh."""
    plain = FastProblem(
        slot=np.zeros(n_requests, dtype=np.int64),
        car=np.arange(n_requests),
        need_kwh=np.full(n_requests, 50.0),
        detour_kwh=np.tile([1.0, 3.0], (n_requests, 1)),
        reach=np.ones((n_requests, 2), dtype=np.bool_),
        request_weight=np.ones(n_requests),
        plug_kw=np.full(2, 40.0),
        net_kw=np.array([[0.0, -40.0]]),
        free_plugs=np.full((1, 2), 5),
        import_eur_per_kwh=np.array([0.1]),
        absorb_eur_per_kw=0.05,
        stranded_eur=50.0,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def solved(problem: FastProblem, relaxed: bool = False) -> Answer:
    return solve_programme(problem, None, 0.0, Budget(time.monotonic(), 60.0), relaxed=relaxed)


def random_day(n_requests: int, n_stations: int, n_slots: int, seed: int = 0) -> FastProblem:
    """Many requests, plugs enough for all: what counts is where the DG is, how strong plugs are, and the way."""
    rng = np.random.default_rng(seed)
    slot = np.sort(rng.integers(0, n_slots, n_requests))
    reach = rng.random((n_requests, n_stations)) < 0.8
    reach[:, 0] = True
    count = np.bincount(slot, minlength=n_slots)
    return FastProblem(
        slot=slot,
        car=np.arange(n_requests),
        need_kwh=rng.uniform(25.0, 70.0, n_requests),
        detour_kwh=rng.uniform(0.1, 4.0, (n_requests, n_stations)),
        reach=reach,
        request_weight=n_requests / n_slots / np.maximum(count, 1)[slot],
        plug_kw=rng.choice([30.0, 50.0, 120.0], n_stations),
        net_kw=-rng.uniform(0.0, 2.0, (n_slots, n_stations)) * 60.0 * n_requests / n_slots / n_stations,
        free_plugs=np.full((n_slots, n_stations), n_requests),
        import_eur_per_kwh=rng.uniform(0.05, 0.3, n_slots),
        absorb_eur_per_kw=0.05,
        stranded_eur=50.0,
    )


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_one_car_takes_the_surplus_and_the_other_one_stays_near() -> None:
    answer = solved(by_hand())
    # |40 - 40| + |0 + 40| kW at .05 EUR, and (50 + 3 + 50 + 1) kWh at .1 EUR
    assert answer.cost_eur == pytest.approx(0.05 * 40.0 + 0.1 * 104.0)
    assert sorted(answer.station.tolist()) == [0, 1]
    # 2 x 50 kWh at .1 EUR are paid whatever the plan is
    assert answer.scale_eur == pytest.approx(12.4 - 10.0)


def test_a_dear_way_beats_the_surplus() -> None:
    answer = solved(by_hand(detour_kwh=np.tile([1.0, 45.0], (2, 1))))
    # the far station saves 80 kW x .05 EUR = 4 EUR and costs 44 kWh x .1 EUR = 4.4 EUR
    assert answer.station.tolist() == [0, 0]


def test_what_a_charge_draws_later_counts_in_the_day_and_not_in_the_slot() -> None:
    fast = np.array([40.0, 104.0])
    two_slots = by_hand(
        1,
        plug_kw=fast,
        detour_kwh=np.array([[2.0, 2.0]]),
        net_kw=np.array([[-45.0, -100.0], [30.0, 0.0]]),
        free_plugs=np.full((2, 2), 5),
        import_eur_per_kwh=np.array([0.1, 0.1]),
    )
    # 52 kWh: 40, 40 and 24 kW at the slow station, 104 kW for one slot at the quick one; what is after the day is free
    # slow: |-5| + 100 + |70| + 0, quick: 45 + |4| + 30 + 0 kW
    assert solved(two_slots).station.tolist() == [1]
    alone = problems.slot_of(two_slots, problems.arcs_of(two_slots), 0, np.array([2]))
    assert problems.arcs_of(alone).load_kw.tolist() == [40.0, 104.0]
    heavier = dataclasses.replace(two_slots, net_kw=np.array([[-45.0, -20.0], [-40.0, 0.0]]))
    assert solved(heavier).station.tolist() == [0]


def test_nobody_is_stranded_on_purpose() -> None:
    dear = by_hand(1, import_eur_per_kwh=np.array([9.0]), stranded_eur=0.0, free_plugs=np.array([[0, 1]]))
    assert solved(dear).station.tolist() == [1]


def test_who_is_stranded_is_the_last_one_and_not_the_dearest() -> None:
    one_plug = by_hand(free_plugs=np.array([[1, 0]]), detour_kwh=np.array([[9.0, 3.0], [1.0, 3.0]]))
    assert solved(one_plug).station.tolist() == [0, 2]


def test_a_committed_plug_is_free_again_when_its_charge_is_over() -> None:
    later = by_hand(
        2,
        slot=np.array([0, 2]),
        reach=np.array([[True, False], [True, False]]),
        net_kw=np.zeros((4, 2)),
        free_plugs=np.full((4, 2), 1),
        import_eur_per_kwh=np.full(4, 0.1),
    )
    # 51 kWh at 40 kW hold the plug for three slots: the car of slot 2 finds it taken, one of slot 3 does not
    assert solved(later).station.tolist() == [0, 2]
    assert solved(dataclasses.replace(later, slot=np.array([0, 3]))).station.tolist() == [0, 0]


def test_a_day_without_requests_costs_what_its_base_costs() -> None:
    empty = by_hand(0)
    assert solved(empty).cost_eur == solved(empty).bound_eur == pytest.approx(0.05 * 40.0)


# -- properties and oracles -------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.sampled_from([1, 3]), st.sampled_from([2, 3]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_tiny_days_agree_with_enumeration(seed: int, n_slots: int, n_stations: int, equal_power: bool) -> None:
    problem = tiny_problem(seed, 4, n_stations, n_slots, equal_power)
    best, answer = best_by_enumeration(problem), solved(problem)
    assert play(problem, answer.station).allowed
    assert answer.cost_eur == pytest.approx(best, abs=EXACT_EUR)
    assert answer.bound_eur == pytest.approx(best, abs=EXACT_EUR)


@given(st.integers(0, 10_000), st.sampled_from([1, 3]))
@settings(max_examples=20, deadline=None)
def test_cost_and_check_agree_with_the_plain_twin_on_every_plan(seed: int, n_slots: int) -> None:
    problem = tiny_problem(seed, 4, 2, n_slots)
    arcs = problems.arcs_of(problem)
    for plan in itertools.product(range(3), repeat=4):
        station, twin = np.array(plan), play(problem, np.array(plan))
        try:
            problems.check(problem, arcs, station)
            allowed = True
        except InfeasibleError:
            allowed = False
        assert allowed == twin.allowed
        if allowed:
            assert problems.cost(problem, arcs, station) == pytest.approx(twin.cost_eur)
            chosen = problems.chosen_arcs(problem, arcs, station).astype(np.float64)
            np.testing.assert_allclose(problems.new_load_kw(problem, arcs, chosen), twin.load_kw, atol=1e-9)


@given(st.integers(0, 10_000), st.sampled_from([1, 3]))
@settings(max_examples=30, deadline=None)
def test_wishes_are_followed_where_they_are_allowed_and_a_plan_is_its_own_wish(seed: int, n_slots: int) -> None:
    problem = tiny_problem(seed, 8, 3, n_slots)
    wish = np.random.default_rng(seed).integers(0, 4, 8)
    station = problems.played(problem, wish)
    problems.check(problem, problems.arcs_of(problem), station)
    np.testing.assert_array_equal(problems.played(problem, station), station)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_in_one_slot_with_one_power_the_relaxation_is_whole_and_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_requests, n_stations = 30, 4
    problem = by_hand(
        n_requests,
        need_kwh=rng.uniform(25.0, 70.0, n_requests),
        detour_kwh=rng.uniform(0.1, 4.0, (n_requests, n_stations)),
        reach=rng.random((n_requests, n_stations)) < 0.9,
        plug_kw=rng.choice([30.0, 50.0], n_stations),
        net_kw=rng.uniform(-700.0, 100.0, (1, n_stations)),
        free_plugs=np.full((1, n_stations), 25),
    )
    answer = solved(problem, relaxed=True)
    assert answer.cost_eur - answer.bound_eur <= EXACT_EUR


def printed_milp(problem: FastProblem) -> float:
    """(1), (2), (4) as printed, |x| as two inequalities, by another compiler and interface."""
    shape = (problem.n_requests, problem.n_stations)
    n_x, n_z = problem.n_requests * problem.n_stations, problem.net_kw.size
    energy = problem.need_kwh[:, None] + problem.detour_kwh
    price = (problem.request_weight * problem.import_eur_per_kwh[problem.slot])[:, None]
    load = np.zeros((*problem.net_kw.shape, *shape))
    for r, j in np.ndindex(*shape):
        left, t = energy[r, j], int(problem.slot[r])
        while left > 1e-9 and t < problem.n_slots:
            load[t, j, r, j] = min(problem.plug_kw[j], 2.0 * left)
            left, t = left - 0.5 * load[t, j, r, j], t + 1
    flat, net = load.reshape(n_z, n_x), problem.net_kw.ravel()
    one = np.kron(np.eye(problem.n_requests), np.ones(problem.n_stations))
    result = milp(
        np.concatenate([(price * energy).ravel(), np.full(n_z, problem.absorb_eur_per_kw)]),
        integrality=np.concatenate([np.ones(n_x), np.zeros(n_z)]),
        bounds=(np.zeros(n_x + n_z), np.concatenate([problem.reach.ravel().astype(float), np.full(n_z, np.inf)])),
        constraints=[
            LinearConstraint(np.hstack([one, np.zeros((problem.n_requests, n_z))]), 1.0, 1.0),
            LinearConstraint(np.hstack([-flat, np.eye(n_z)]), net, np.inf),
            LinearConstraint(np.hstack([flat, np.eye(n_z)]), -net, np.inf),
        ],
        options={"mip_rel_gap": 1e-6, "time_limit": 30.0},
    )
    assert result.success
    return float(result.fun)


@pytest.mark.parametrize("n_slots", [1, 8])
def test_the_printed_programme_solved_elsewhere_has_the_same_optimum(n_slots: int) -> None:
    problem = random_day(24, 3, n_slots)
    answer = solve_programme(problem, None, 1e-6, Budget(time.monotonic(), 60.0))
    assert answer.cost_eur == pytest.approx(printed_milp(problem), rel=3e-6)


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_every_plan_is_a_point_of_the_form_and_costs_the_same(seed: int) -> None:
    problem = tiny_problem(seed, 6, 3, 3)
    arcs = problems.arcs_of(problem)
    station = problems.played(problem, np.random.default_rng(seed).integers(0, 4, 6))
    form = forms.fast_charging(problem, arcs)
    pairs = np.argwhere(problem.reach)
    forms.stranded_last(form, problem, arcs, pairs)
    compiled = compile_model(form.model)
    variables, values = forms.point_of_plan(form, problem, arcs, station, None)
    x = np.zeros(len(compiled.form.cost))
    x[compiled.columns(variables)] = values
    assert compiled.form.objective(x) == pytest.approx(problems.cost(problem, arcs, station))
    column = np.repeat(np.arange(len(x)), np.diff(compiled.form.start))
    rows = np.bincount(
        compiled.form.index, weights=compiled.form.value * x[column], minlength=len(compiled.form.row_lower)
    )
    assert (rows >= compiled.form.row_lower - 1e-9).all()
    assert (rows <= compiled.form.row_upper + 1e-9).all()


def test_five_hundred_cars_of_unequal_power_are_proven_well_within_the_limit() -> None:
    problem = one_slot(500, 5)
    # asked for within 3 s on two cores; here machines may be busy with other tests
    answer = solve_programme(problem, None, 2e-3, Budget(time.monotonic(), 12.0))
    problems.check(problem, problems.arcs_of(problem), answer.station)
    assert answer.relative_gap <= 2e-3


def test_without_time_there_is_a_plan_that_can_be_executed_and_a_true_bound() -> None:
    problem = random_day(40, 3, 8)
    answer = solve_programme(problem, None, 0.0, Budget(time.monotonic() - 100.0, 60.0))
    problems.check(problem, problems.arcs_of(problem), answer.station)
    proven = solve_programme(problem, None, 1e-3, Budget(time.monotonic(), 60.0))
    assert np.isfinite(answer.bound_eur)
    assert answer.bound_eur < proven.bound_eur <= proven.cost_eur < answer.cost_eur


# -- the environment --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Scenario:
    return fast_scenario()


def crowded(scenario: Scenario) -> Day:
    """Seven requests for five plugs: charges that last, a car that reaches one station, one that reaches none."""
    requests = [
        Request(slot, soc0_frac=soc, distance_km=way)
        for slot, soc, way in [
            (3, 0.2, (5.0, 10.0)), (3, 0.25, (1.0, 20.0)), (3, 0.1, (9.0, 3.0)), (4, 0.2, (2.0, 80.0)),
            (4, 0.05, (90.0, 90.0)), (5, 0.2, (5.0, 8.0)), (5, 0.15, (4.0, 4.0)),
        ]
    ]  # fmt: skip
    dg_kw = np.zeros((48, 2))
    dg_kw[3:6], dg_kw[7:10] = [60.0, 150.0], [90.0, 0.0]
    return fast_hand_day(scenario, *requests, dg_kw=dg_kw)


def test_brute_force_through_the_environment_finds_nothing_cheaper(tiny: Scenario) -> None:
    day = crowded(tiny)
    solution = optimum(tiny, day, "fast_charging", relative_gap=0.0)
    costs = []
    for plan in itertools.product(range(3), repeat=7):
        try:
            costs.append(replay(tiny, day, np.array(plan)).cost_eur)
        except InfeasibleError:
            continue
    assert len(costs) > 10
    assert solution.cost_eur == pytest.approx(min(costs), abs=1e-4)
    assert solution.lower_bound_eur <= min(costs) + EXACT_EUR
    assert solution.certificate.replay_relative_error < 1e-6


@pytest.mark.parametrize("horizon", ["day", "slot"])
def test_a_shipped_day_is_proven_and_replays(horizon: str) -> None:
    scenario = load_scenario("ieee33_mobility")
    day = scenario.day(0, "test")
    solution = optimum(scenario, day, "fast_charging", relative_gap=2e-3, horizon=horizon)
    certificate = solution.certificate
    assert solution.status == "optimal"
    assert solution.relative_gap <= 2e-3
    assert certificate.replay_relative_error < 1e-6
    assert certificate.programme_bound_eur <= certificate.programme_cost_eur + EXACT_EUR
    assert solution.lower_bound_eur <= solution.cost_eur + EXACT_EUR
    assert solution.as_dict(plan=True)["plan"]["station"] == solution.plan.station.tolist()


def test_the_bound_holds_for_every_policy_and_the_day_beats_the_slots() -> None:
    scenario = load_scenario("ieee33_mobility")
    day = scenario.day(1, "test")
    bound = lower_bound_eur(scenario, day, "fast_charging")
    problem = problems.problem_of(scenario, day)
    whole, slots = (optimum(scenario, day, "fast_charging", horizon=horizon) for horizon in ("day", "slot"))
    assert bound <= whole.cost_eur <= slots.cost_eur + 2e-3 * whole.certificate.controllable_eur
    for seed in range(5):
        wish = np.random.default_rng(seed).integers(0, problem.n_stations, problem.n_requests)
        assert replay(scenario, day, problems.played(problem, wish)).cost_eur >= max(bound, whole.lower_bound_eur)


def with_tight_voltage(scenario: Scenario, day: Day, below_pu: float) -> Day:
    """The day with a lower limit that lies this far below the voltage without charging."""
    return dataclasses.replace(day, vmin_pu=day.base_voltage_pu - below_pu)


def test_voltage_rows_save_what_violations_cost(tiny: Scenario) -> None:
    day = with_tight_voltage(tiny, crowded(tiny), 0.002)
    dear = tiny.model_copy(
        update={"fast_charging_spec": tiny.fast_charging.model_copy(update={"voltage_eur_per_pu": 5000.0})}
    )
    solution = optimum(dear, day, "fast_charging", relative_gap=0.0)
    blind = solve_programme(problems.problem_of(dear, day), None, 0.0, Budget(time.monotonic(), 60.0))
    careless = replay(dear, day, blind.station)
    assert careless.voltage_eur.sum() > 1.0
    assert solution.certificate.n_voltage_rows > 0
    assert solution.cost_eur < careless.cost_eur - 0.1
    costs = []
    for plan in itertools.product(range(3), repeat=7):
        try:
            costs.append(replay(dear, day, np.array(plan)).cost_eur)
        except InfeasibleError:
            continue
    assert solution.cost_eur == pytest.approx(min(costs), rel=1e-3)
    slots = optimum(dear, day, "fast_charging", relative_gap=0.0, horizon="slot")
    assert slots.certificate.replay_relative_error < 1e-6
    assert slots.certificate.n_voltage_rows > 0


def test_as_printed_keeps_voltage_hard_where_a_plan_can(tiny: Scenario) -> None:
    spec = tiny.fast_charging.model_copy(update={"as_printed": True})
    printed = tiny.model_copy(update={"fast_charging_spec": spec})
    day = with_tight_voltage(printed, crowded(printed), 0.002)
    solution = optimum(printed, day, "fast_charging", relative_gap=0.0)
    least = np.inf
    for plan in itertools.product(range(3), repeat=7):
        try:
            least = min(least, replay(printed, day, np.array(plan)).violation_pu.sum())
        except InfeasibleError:
            continue
    assert solution.certificate.voltage_excess_pu <= least + 1e-4
    assert solution.certificate.replay_relative_error < 1e-6


# -- what is refused --------------------------------------------------------------------------------------------------


def test_plans_that_the_environment_does_not_allow_are_refused() -> None:
    problem = by_hand(free_plugs=np.array([[1, 1]]), reach=np.array([[True, False], [True, True]]))
    arcs = problems.arcs_of(problem)
    with pytest.raises(InfeasibleError, match=r"request 0 .* out of its reach"):
        problems.check(problem, arcs, np.array([1, 0]))
    with pytest.raises(InfeasibleError, match=r"request 1 .* without a free plug"):
        problems.check(problem, arcs, np.array([0, 0]))
    with pytest.raises(InfeasibleError, match=r"request 1 .* stranded although"):
        problems.check(problem, arcs, np.array([0, 2]))
    with pytest.raises(DataError, match="a plan must name a station"):
        problems.check(problem, arcs, np.array([0, 3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"need_kwh": np.array([np.nan, 1.0])}, "need_kwh must be finite"),
        ({"stranded_eur": -1.0}, "must not be negative"),
        ({"plug_kw": np.array([0.0, 40.0])}, "plug_kw must be positive"),
        ({"slot": np.array([0, 1])}, "slot must rise within"),
    ],
)
def test_data_that_no_plan_can_have_is_refused(change: dict[str, FloatArray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        problems.check_data(by_hand(**change))


def test_horizons_are_checked(tiny: Scenario) -> None:
    with pytest.raises(ConfigError, match="horizon must be one of day, slot"):
        solve_fast_charging(tiny, crowded(tiny), horizon="week")
    with pytest.raises(ConfigError, match="horizon is for fast_charging alone"):
        optimum(tiny, tiny.day(0), "normal_charging", horizon="day")
