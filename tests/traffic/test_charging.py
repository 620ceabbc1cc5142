"""Charging layer: queue laws, sums by hand, capacity; batch, days and response to prices against the single solver."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import erlang_c_reference, times_reference
from scipy.integrate import quad

from evcs_gym.envs.errors import ConfigError, ConvergenceError, DataError, InfeasibleError
from evcs_gym.envs.traffic import (
    Queue,
    RoadNetwork,
    Stations,
    TrafficModel,
    assign,
    assign_charging,
    assign_days,
    load_departures_frac,
    load_roads,
    load_stations,
    respond,
    road_graph,
    solve_batch,
    traffic_model,
)
from evcs_gym.envs.traffic.charging import check_capacity_rows, station_integral
from evcs_gym.envs.traffic.kernels import erlang_b, erlang_sojourn, resource_times, time_rows
from evcs_gym.envs.types import FloatArray

TIGHT = 1e-13
"""Link flows are flat in the gap: agreement to 1e-6 veh/h needs it near rounding."""
SHARE = 0.06


def stations(node: list[int], n_chargers: list[int], **options: Any) -> Stations:
    power = np.full(len(node), 150.0)
    return Stations(np.array(node), np.array(n_chargers), power, **options)


def two_ways(n_chargers: tuple[int, int] = (4, 4), **options: Any) -> TrafficModel:
    """0 to 3 over node 1 or 2, each with a station; roads that never slow down, 0.1 h and 0.15 h each way."""
    roads = RoadNetwork.from_arrays(
        name="two ways",
        tail=[0, 1, 0, 2],
        head=[1, 3, 2, 3],
        free_flow_h=[0.05, 0.05, 0.075, 0.075],
        capacity_veh_per_h=1e9,
        bpr_b=0.0,
        origin=[0],
        destination=[3],
        demand_veh_per_h=[10.0],
    )
    return traffic_model(roads, stations([1, 2], list(n_chargers)), **options)


def city(queue: str = "davidson", outside_eur: float | None = None) -> TrafficModel:
    return traffic_model(load_roads("city12"), load_stations(queue), outside_eur=outside_eur)


def departures(model: TrafficModel, n_days: int, seed: int = 0, load: float = 1.0) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    demand = load * model.network.demand_veh_per_h * load_departures_frac()[:, None]
    demand = demand * rng.uniform(0.85, 1.1, (n_days, *demand.shape))
    return (1.0 - SHARE) * demand, SHARE * demand


# --- queues ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "n_servers", "waiting"),
    # Erlang-C table: s = 1: rho; s = 2, a = 1: 1/3; s = 3, a = 2: 4/9; s = 5, a = 4: 0.5541; s = 10, a = 8: 0.4092
    [(0.5, 1, 0.5), (1.0, 2, 1 / 3), (2.0, 3, 4 / 9), (4.0, 5, 0.5541), (8.0, 10, 0.4092)],
)
def test_the_queue_is_that_of_an_erlang_c_table(load: float, n_servers: int, waiting: float) -> None:
    time, _ = erlang_sojourn(load / 0.2, 0.2, n_servers)
    assert (time / 0.2 - 1.0) * (n_servers - load) == pytest.approx(waiting, abs=5e-5)
    assert erlang_c_reference(load, n_servers) == pytest.approx(waiting, abs=5e-5)


@pytest.mark.parametrize("n_servers", [1, 2, 7, 40])
@pytest.mark.parametrize("share", [1e-6, 0.1, 0.7, 0.99])
def test_the_queue_equals_its_plain_twin_and_its_slope_is_the_derivative(n_servers: int, share: float) -> None:
    service, flow = 0.25, share * n_servers / 0.25
    time, slope = erlang_sojourn(flow, service, n_servers)
    waiting = erlang_c_reference(flow * service, n_servers)
    assert time == pytest.approx(service * (1.0 + waiting / (n_servers - flow * service)), rel=1e-12)
    step = 1e-5 * flow * (1.0 - share)
    ends = [erlang_sojourn(flow + sign * step, service, n_servers)[0] for sign in (-1, 1)]
    assert slope == pytest.approx((ends[1] - ends[0]) / (2.0 * step), rel=1e-4, abs=1e-7)


def test_blocking_of_one_and_two_servers_by_hand() -> None:
    assert erlang_b(1.0, 1) == pytest.approx(1 / 2)
    assert erlang_b(1.0, 2) == pytest.approx(1 / 5)
    assert erlang_sojourn(0.0, 0.3, 1) == (0.3, pytest.approx(0.09))


@pytest.mark.parametrize("queue", list(Queue))
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.998])
def test_the_integral_of_a_station_is_that_of_its_time(queue: Queue, share: float) -> None:
    case = stations([0], [6], queue=queue)
    service, capacity = case.service_h[0], case.capacity_veh_per_h[0]

    def time(flow: float) -> float:
        if queue is Queue.ERLANG:
            return erlang_sojourn(flow, service, 6)[0]
        return float(service * (1.0 + 0.1 * flow / (capacity - flow)))

    expected, _ = quad(time, 0.0, share * capacity, epsabs=0.0, epsrel=1e-12, limit=500)
    assert station_integral(case, 0, share * capacity) == pytest.approx(expected, rel=1e-10)


# --- one equilibrium ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", list(Queue))
def test_two_stations_share_cars_until_their_costs_meet(queue: Queue) -> None:
    model = two_ways()
    model = traffic_model(model.network, replace(model.stations, queue=queue), value_of_time_eur_per_h=20.0)
    price = np.array([0.40, 0.35])
    found = assign_charging(model, [40.0], [10.0], price, relative_gap=TIGHT)
    y = found.station_veh_per_h
    assert y.sum() == pytest.approx(40.0)
    assert y.min() > 0.0
    cost = np.array([0.10, 0.15]) + model.stations.service_h + found.waiting_h + price * 20.0 / 20.0
    assert cost == pytest.approx([found.charging_cost_h[0]] * 2, rel=1e-9)
    if queue is Queue.DAVIDSON:
        assert found.waiting_h == pytest.approx(0.1 * model.stations.service_h * y / (30.0 - y), rel=1e-9)
    assert found.through_cost_h == pytest.approx([0.10])
    assert found.link_flow_veh_per_h == pytest.approx([y[0] + 10.0, y[0] + 10.0, y[1], y[1]])
    assert found.station_kw == pytest.approx(20.0 * y)
    assert found.utilisation_frac == pytest.approx(y / 30.0)


def test_a_detour_may_use_a_road_twice() -> None:
    """A ring 0 -> 1 -> 2 -> 0, a station at 2, a trip from 0 to 1: the first road is driven before and after."""
    roads = RoadNetwork.from_arrays(
        tail=[0, 1, 2],
        head=[1, 2, 0],
        free_flow_h=0.1,
        capacity_veh_per_h=20.0,
        origin=[0],
        destination=[1],
        demand_veh_per_h=[5.0],
    )
    found = assign_charging(traffic_model(roads, stations([2], [4])), [10.0], relative_gap=TIGHT)
    assert found.link_flow_veh_per_h.tolist() == [25.0, 10.0, 10.0]


def test_without_charging_cars_the_roads_are_those_of_the_plain_solver() -> None:
    model = city()
    plain = assign(model.network, relative_gap=TIGHT)
    found = assign_charging(model, np.zeros(12), relative_gap=TIGHT)
    assert found.link_flow_veh_per_h == pytest.approx(plain.link_flow_veh_per_h, abs=1e-6)
    assert found.beckmann_eur == pytest.approx(15.0 * plain.beckmann, rel=1e-12)


@pytest.mark.parametrize("queue", list(Queue))
def test_a_dearer_station_never_gets_more_cars(queue: Queue) -> None:
    model = city(queue.value)
    demand = SHARE * model.network.demand_veh_per_h
    price, last = np.full(8, 0.4), math.inf
    for own in (0.35, 0.4, 0.45, 0.5):
        price[2] = own
        cars = assign_charging(model, demand, price_eur_per_kwh=price, relative_gap=1e-10).station_veh_per_h[2]
        assert cars <= last + 1e-4
        last = cars


def test_the_outside_option_takes_the_cars_for_which_it_is_cheaper() -> None:
    """Charging costs 0.1 h and 20/150 h at 20 EUR/h and 8 EUR: 12.667 EUR before waiting, 2 EUR of them the trip."""
    rich = two_ways(value_of_time_eur_per_h=20.0, outside_eur=30.0)
    poor = two_ways(value_of_time_eur_per_h=20.0, outside_eur=10.0)
    assert assign_charging(rich, [40.0], price_eur_per_kwh=0.4, relative_gap=1e-10).outside_veh_per_h == 0.0
    assert assign_charging(poor, [40.0], price_eur_per_kwh=0.4, relative_gap=1e-10).outside_veh_per_h == 40.0
    some = two_ways(value_of_time_eur_per_h=20.0, outside_eur=11.0)
    found = assign_charging(some, [400.0], price_eur_per_kwh=0.4, relative_gap=1e-12)
    assert found.charging_cost_h[0] == pytest.approx(0.1 + 11.0 / 20.0)
    assert found.outside_veh_per_h + found.station_veh_per_h.sum() == pytest.approx(400.0)


# --- refusals ----------------------------------------------------------------------------------------------


def test_demand_beyond_the_capacity_names_the_stations_and_the_shortfall() -> None:
    model = two_ways()  # 60 veh/h / 1.1 = 54.545
    with pytest.raises(InfeasibleError, match=r"stations \[0, 1\] fall short by 5\.45455 veh/h; add chargers"):
        assign_charging(model, [60.0])
    assert assign_charging(model, [54.5]).station_veh_per_h.sum() == pytest.approx(54.5)


def fork() -> TrafficModel:
    """Node 2 leads nowhere for the second pair: it must charge at station 0; each station takes 30 / 1.1 veh/h."""
    roads = RoadNetwork.from_arrays(
        tail=[0, 1, 0, 2, 1],
        head=[1, 3, 2, 3, 4],
        free_flow_h=0.05,
        capacity_veh_per_h=1e3,
        origin=[0, 0],
        destination=[3, 4],
        demand_veh_per_h=1.0,
    )
    return traffic_model(roads, stations([1, 2], [4, 4]))


def test_rows_that_fit_one_by_one_are_accepted_though_their_largest_demands_together_are_not() -> None:
    check_capacity_rows(fork(), np.array([[50.0, 0.0], [0.0, 25.0]]))
    with pytest.raises(InfeasibleError, match=r"stations \[0\] fall short by 12\.7273 veh/h"):
        check_capacity_rows(fork(), np.array([[50.0, 0.0], [5.0, 40.0]]))


def test_only_the_stations_that_demand_must_use_are_named() -> None:
    model = fork()
    with pytest.raises(InfeasibleError, match=r"stations \[0\] fall short by 12\.7273 veh/h"):
        assign_charging(model, [5.0, 40.0])
    assert assign_charging(model, [25.0, 25.0], relative_gap=1e-9).station_veh_per_h.sum() == pytest.approx(50.0)


def test_a_station_that_ends_up_overfull_is_named() -> None:
    with pytest.raises(InfeasibleError, match=r"station 0 must stay below 99\.9% of its capacity, got"):
        assign_charging(two_ways(), [50.0], price_eur_per_kwh=np.array([0.0, 1e4]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"node": np.array([1])}, r"must be equally long, not empty, got \[1, 2, 2\]"),
        ({"energy_kwh": 0.0}, "energy_kwh and davidson_j must be positive, got 0.0 and 0.1"),
        ({"n_chargers": np.array([4, 0])}, "station 1 must have chargers with a positive power, got 0 of 150.0 kW"),
    ],
)
def test_impossible_stations_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        replace(two_ways().stations, **change)


def test_models_out_of_range_are_refused() -> None:
    roads = two_ways().network
    with pytest.raises(DataError, match=r"station 0 must stand at a node 0\.\.3 that cars may pass, got 9"):
        traffic_model(roads, stations([9], [4]))
    with pytest.raises(ConfigError, match="value_of_time_eur_per_h must be positive, got 0"):
        traffic_model(roads, stations([1], [4]), value_of_time_eur_per_h=0.0)
    with pytest.raises(ConfigError, match="outside_eur must not be negative, got -1"):
        traffic_model(roads, stations([1], [4]), outside_eur=-1.0)


def test_demands_and_prices_out_of_range_are_refused() -> None:
    model = two_ways()
    with pytest.raises(DataError, match=r"charging_veh_per_h must have shape \(\.\.\., 1\), got \(2,\)"):
        assign_charging(model, [1.0, 2.0])
    with pytest.raises(DataError, match=r"charging_veh_per_h must be finite and not negative, pair 0 .* has -1\.0"):
        assign_charging(model, [-1.0])
    with pytest.raises(DataError, match="prices of stations must be finite"):
        assign_charging(model, [1.0], price_eur_per_kwh=math.nan)
    with pytest.raises(ConvergenceError, match="city12: relative_gap 0 was asked for"):
        assign_charging(city(), np.full(12, 20.0), relative_gap=0.0, max_seconds=1e-9, require_convergence=True)


# --- batch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [0.5, 1.0, 2.5])
def test_batch_flows_equal_those_of_the_single_solver(load: float) -> None:
    roads = load_roads("city12")
    demand = load * roads.demand_veh_per_h * np.random.default_rng(0).uniform(0.3, 1.3, (64, 12))
    found = solve_batch(road_graph(roads), demand, relative_gap=TIGHT)
    assert found.converged.all()
    for row in range(0, 64, 9):
        single = assign(roads.with_demand(demand[row]), relative_gap=TIGHT)
        assert found.flow_veh_per_h[row] == pytest.approx(single.link_flow_veh_per_h, abs=1e-6)


def test_a_row_does_not_depend_on_threads() -> None:
    import numba

    roads = load_roads("city12")
    graph = road_graph(roads)
    demand = 2.0 * roads.demand_veh_per_h * np.random.default_rng(1).uniform(0.5, 1.2, (70, 12))
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        alone = solve_batch(graph, demand)
        numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
        spread = solve_batch(graph, demand)
    finally:
        numba.set_num_threads(before)
    assert np.array_equal(alone.flow_veh_per_h, spread.flow_veh_per_h)


def test_inputs_of_a_batch_stay_untouched() -> None:
    roads = load_roads("city12")
    demand = np.tile(2.0 * roads.demand_veh_per_h, (3, 1))
    first = solve_batch(road_graph(roads), demand)
    kept = first.path_flow_veh_per_h.copy()
    solve_batch(road_graph(roads), 1.1 * demand, start=first)
    assert np.array_equal(first.path_flow_veh_per_h, kept)
    assert np.array_equal(demand, np.tile(2.0 * roads.demand_veh_per_h, (3, 1)))


def test_batches_that_do_not_fit_are_refused() -> None:
    graph = road_graph(load_roads("braess"))
    with pytest.raises(DataError, match=r"demand must have shape \(B, 1\), got \(2, 3\)"):
        solve_batch(graph, np.ones((2, 3)))
    with pytest.raises(DataError, match="demand must be finite and not negative, got a row with -1"):
        solve_batch(graph, -np.ones((2, 1)))
    with pytest.raises(DataError, match=r"fixed_h must have shape \(B, 5\), got \(3, 5\)"):
        solve_batch(graph, np.ones((2, 1)), fixed_h=np.zeros((3, 5)))
    with pytest.raises(DataError, match="start must hold the same 3 rows, got 2"):
        solve_batch(graph, np.ones((3, 1)), start=solve_batch(graph, np.ones((2, 1))))


# --- response to prices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", list(Queue))
def test_the_answer_to_prices_is_that_of_the_single_solver_cold_and_warm(queue: Queue) -> None:
    model = city(queue.value, outside_eur=12.0)
    rng = np.random.default_rng(2)
    through = 0.9 * model.network.demand_veh_per_h * rng.uniform(0.5, 1.0, (40, 12))
    price = rng.uniform(0.35, 0.45, (40, 8))
    _, previous = respond(model, through, 0.07 * through, price)
    price += rng.uniform(-0.02, 0.02, price.shape)
    warm, _ = respond(model, through, 0.07 * through, price, previous, relative_gap=TIGHT)
    cold, _ = respond(model, through, 0.07 * through, price, relative_gap=TIGHT)
    assert warm == pytest.approx(cold, abs=1e-6)
    for row in (0, 17, 39):
        single = assign_charging(model, 0.07 * through[row], through[row], price[row], relative_gap=TIGHT)
        assert warm[row] == pytest.approx(single.station_veh_per_h, abs=1e-6)


def test_a_response_that_does_not_converge_is_an_error() -> None:
    model = city()
    demand = np.tile(model.network.demand_veh_per_h, (2, 1))
    with pytest.raises(ConvergenceError, match="row 0 must reach relative_gap 0, got"):
        respond(model, 2.0 * demand, 0.05 * demand, 0.4, relative_gap=0.0)


# --- days --------------------------------------------------------------------------------------------------


def test_without_carry_over_the_slots_are_independent() -> None:
    model = city()
    through, charging = departures(model, 2)
    found = assign_days(model, through, charging, 0.4, carry_over=False, relative_gap=TIGHT)
    assert not found.carry_frac.any()
    for day, slot in ((0, 0), (0, 11), (1, 40)):
        single = assign_charging(model, charging[day, slot], through[day, slot], 0.4, relative_gap=TIGHT)
        assert found.link_flow_veh_per_h[day, slot] == pytest.approx(single.link_flow_veh_per_h, abs=1e-6)
        assert found.station_veh_per_h[day, slot] == pytest.approx(single.station_veh_per_h, abs=1e-6)


def test_with_carry_over_each_slot_is_the_equilibrium_of_what_the_rule_assigns_to_it() -> None:
    """The rule, slot by slot with the single solver."""
    model = city()
    through, charging = (values[:, :6] for values in departures(model, 1, load=1.3))
    found = assign_days(model, through, charging, 0.4, relative_gap=TIGHT)
    wanted = np.stack([through[0], charging[0]], axis=1)
    longer = np.array([[0.0], [20.0 / 150.0]])
    single = assign_charging(model, wanted[0, 1], wanted[0, 0], 0.4, relative_gap=TIGHT)
    share = np.minimum(1.0, single.through_cost_h + longer)
    for slot in range(6):
        now = np.minimum(1.0, single.through_cost_h + longer)  # slots of half an hour: tau / (2 slots) = tau / h
        before = wanted[max(0, slot - 1)] * share
        assigned = wanted[slot] * (1.0 - now) + before
        single = assign_charging(model, assigned[1], assigned[0], 0.4, relative_gap=TIGHT)
        assert found.link_flow_veh_per_h[0, slot] == pytest.approx(single.link_flow_veh_per_h, abs=1e-6)
        share = now


def test_vehicles_and_energy_are_conserved() -> None:
    model = city("erlang")
    through, charging = departures(model, 3)
    found = assign_days(model, through, charging, 0.4)
    left = np.stack([through, charging], axis=2).sum(axis=1) + found.carried_in_veh_per_h
    there = found.assigned_veh_per_h.sum(axis=1) + found.carried_out_veh_per_h
    assert there == pytest.approx(left, rel=1e-12)
    assert found.station_veh_per_h.sum(axis=-1) == pytest.approx(
        found.assigned_veh_per_h[:, :, 1].sum(axis=-1), rel=1e-9
    )
    energy = found.station_kw.sum(axis=1) + found.committed_kw[:, -1]
    arrived = 20.0 * found.station_veh_per_h.sum(axis=1) + found.committed_kw[:, 0]
    assert energy == pytest.approx(arrived, rel=1e-12)


def test_committed_load_by_hand() -> None:
    """8 minutes of 30: 2/15 of what arrives in a slot is still charging in the next."""
    model = two_ways(n_chargers=(8, 8))
    found = assign_days(model, np.full((1, 2, 1), 10.0), np.array([[[30.0], [60.0]]]), carry_over=False)
    first, second = found.station_veh_per_h[0]
    assert found.station_kw[0, 0] == pytest.approx(20.0 * first)
    assert found.station_kw[0, 1] == pytest.approx(20.0 * (second * 13 / 15 + first * 2 / 15))
    assert found.committed_kw[0] == pytest.approx(np.stack([first, first, second]) * 20.0 * 2 / 15)


def test_days_that_cannot_be_computed_are_refused() -> None:
    model = two_ways()
    one = np.ones((1, 2, 1))
    with pytest.raises(DataError, match=r"departures must have shape \(D, T, K\), got \(2, 2\)"):
        assign_days(model, one[0], one[0])
    slow = traffic_model(model.network, replace(model.stations, charger_kw=np.full(2, 30.0)))
    with pytest.raises(ConfigError, match=r"a charge must end within a slot of 0\.5 h, got 0\.6667 h"):
        assign_days(slow, one, one)
    late = traffic_model(model.network, replace(model.stations, charger_kw=np.full(2, 50.0)))
    with pytest.raises(ConfigError, match=r"at most 0\.8 slots at free flow, pair 0 \(0 -> 3\) takes 1; set"):
        assign_days(late, one, one)
    fields = {key: getattr(model.network, key) for key in model.network.__dataclass_fields__}
    tolled = traffic_model(RoadNetwork.from_arrays(**{**fields, "fixed_h": 0.1}), model.stations)
    with pytest.raises(ConfigError, match=r"roads must cost nothing beside time, got fixed_h up to 0\.1"):
        assign_days(tolled, one, one)
    with pytest.raises(InfeasibleError, match=r"stations \[0, 1\] fall short by 45\.4545 veh/h"):
        assign_days(model, one, 100.0 * one)
    through, charging = departures(city(), 1, load=2.0)
    with pytest.raises(ConvergenceError, match="day 0, slot 0 must reach relative_gap 0, got"):
        assign_days(city(), through, 0.5 * charging, 0.4, relative_gap=0.0)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), queue=st.sampled_from(list(Queue)), utilisation=st.floats(0.05, 0.99))
def test_times_of_roads_and_stations_equal_their_plain_twin(seed: int, queue: Queue, utilisation: float) -> None:
    model = traffic_model(load_roads("city12"), load_stations(queue))
    most = np.concatenate([3.0 * model.network.capacity_veh_per_h, utilisation * model.stations.capacity_veh_per_h])
    flow = np.random.default_rng(seed).uniform(0.05 * most, most, (3, len(most)))
    expected = np.stack([times_reference(model, row) for row in flow])
    times, one, slope = np.empty(flow.shape), np.empty(len(most)), np.empty(len(most))
    time_rows(0, 3, model.graph.arrays, np.zeros(len(most)), flow, times)
    np.testing.assert_allclose(times, expected, rtol=1e-11)
    resource_times(model.graph.arrays, flow[0], np.zeros(len(most)), one, slope)
    np.testing.assert_array_equal(one, times[0])
    eps = 1e-4
    ahead = times_reference(model, flow[0] + eps)
    np.testing.assert_allclose(slope, (ahead - times_reference(model, flow[0] - eps)) / (2 * eps), rtol=1e-3, atol=1e-9)
