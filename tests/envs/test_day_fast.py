"""Fast charging of a day: the section of the scenario, who asks where, and the same day with the load in it."""

import dataclasses
import datetime
from typing import Any

import numpy as np
import pytest
from fast_fixtures import fast_content, fast_scenario
from hypothesis import given, settings
from hypothesis import strategies as st

from evcs_gym.baselines.registry import make_rule
from evcs_gym.baselines.score import rollout, world_of
from evcs_gym.envs import ConfigError, ConvergenceError, DataError, Scenario, load_scenario
from evcs_gym.envs.day_fast import _end_of_leg, with_fast_load
from evcs_gym.envs.fleet import fast, normal
from evcs_gym.envs.fleet.vehicles import FAST_REQUEST_BELOW_SOC_FRAC, HOME, simulate_sessions
from evcs_gym.envs.scenario import scenario_from_dict
from evcs_gym.envs.units import N_SLOTS


@pytest.fixture(scope="module")
def city() -> Scenario:
    """Two stations, one of them at a bus where cars charge at home, and 500 cars."""
    return fast_scenario()


def simulated(scenario: Scenario, seed: int, n_burn_in: int = 14) -> Any:
    """The fleet's simulation of a day of the scenario, with what the day does not keep."""
    return simulate_sessions(
        scenario.fleet,
        scenario.travel,
        first_date=datetime.date(2016, 5, 4),
        n_burn_in=n_burn_in,
        request_below_soc_frac=scenario.fleet_spec.request_below_soc_frac,
        rng=np.random.default_rng(seed),
    )


# ------------------------------------------------------------------------------------------------ who asks, and where


def test_requests_are_the_fleets_and_stand_on_the_roads(city: Scenario) -> None:
    day = city.day(3)
    asked = fast.requests_of(day)
    assert len(asked) > 20
    assert (asked.soc0_frac < FAST_REQUEST_BELOW_SOC_FRAC).all()
    np.testing.assert_array_equal(asked.capacity_kwh, city.fleet.capacity_kwh[asked.car])
    np.testing.assert_array_equal(asked.consumption_kwh_per_km, city.fleet.consumption_kwh_per_km[asked.car])
    np.testing.assert_array_equal(np.lexsort((asked.car, asked.slot)), np.arange(len(asked)))
    distances = city.road_distances.distance_km
    np.testing.assert_array_equal(asked.distance_km, distances[asked.node][:, city.fast_stations.node])
    assert len(np.unique(asked.node)) > 6  # they are spread over the city
    for array in vars(asked).values():
        assert not array.flags.writeable


def test_the_second_world_leaves_the_first_as_it_is(city: Scenario) -> None:
    content = fast_content()
    del content["fast_charging"], content["roads"]
    alone, both = scenario_from_dict(content).day(2), city.day(2)
    assert alone.fast is None
    for name, array in vars(alone.sessions).items():
        np.testing.assert_array_equal(array, getattr(both.sessions, name))
    np.testing.assert_array_equal(alone.base_kw, both.base_kw)
    np.testing.assert_array_equal(alone.dg_kw[:, 1], both.dg_kw[:, 1])
    # bus 18 has a station with 100 kW of sun beside the 60 kW of its homes: the bus has one generation
    asked = fast.requests_of(both)
    np.testing.assert_allclose(both.dg_kw[:, 0], alone.dg_kw[:, 0] * 160 / 60)
    np.testing.assert_array_equal(asked.dg_kw[:, 0], both.dg_kw[:, 0])
    np.testing.assert_array_equal(asked.base_kw[:, 0], both.base_kw[:, 0])
    # and the feeder sees both stations' generation once
    more_kw = (alone.load_kva - both.load_kva).real.sum(axis=2)
    np.testing.assert_allclose(more_kw[:, city.fast_stations.bus[0]], both.dg_kw[:, 0] - alone.dg_kw[:, 0], atol=1e-9)
    np.testing.assert_allclose(more_kw[:, city.fast_stations.bus[1]], asked.dg_kw[:, 1], atol=1e-9)
    assert np.abs(np.delete(more_kw, city.fast_stations.bus, axis=1)).max() < 1e-9


@pytest.mark.parametrize("kind", ["perfect", "persistence", "noisy"])
def test_forecasts_at_the_stations_are_physical_and_a_stream_of_their_own(kind: str) -> None:
    content = {**fast_content(), "forecast": {"kind": kind}}
    day = scenario_from_dict(content).day(4)
    asked, forecast = fast.requests_of(day), day.forecast
    for error, truth in ((forecast.fast_base_kw, asked.base_kw), (forecast.fast_dg_kw, asked.dg_kw)):
        assert error.shape == truth.shape
        assert (truth + error > -1e-9).all()
        assert error.any() is np.bool_(kind != "perfect")
    del content["fast_charging"], content["roads"]
    alone = scenario_from_dict(content).day(4).forecast
    np.testing.assert_array_equal(alone.base_kw, forecast.base_kw)
    assert alone.fast_dg_kw.shape == (N_SLOTS, 0)


def test_a_car_is_in_one_mode_at_a_time_by_the_printed_thresholds(city: Scenario) -> None:
    # Home below .8, on the way below .3; a car that asks on its way stands at no plug at home in that slot, and cars
    # without a charger at home never ask there.
    for seed in range(6):
        day = city.day(seed)
        at_home, asked = day.sessions, fast.requests_of(day)
        assert (at_home.soc0_frac < 0.8).all()
        assert (city.fleet.charge_power_kw[at_home.car] > 0.0).all()
        for car, slot in zip(asked.car, asked.slot, strict=True):
            own = at_home.car == car
            # a request at the start of slot t was on the road in slot t - 1 and in t
            inside = (at_home.arrival_slot[own] <= slot - 1) & (slot < at_home.departure_slot[own])
            assert not inside.any()


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=8)
def test_energy_of_every_car_is_conserved_over_thirty_days_of_both_modes(city: Scenario, seed: int) -> None:
    fleet, ledger = city.fleet, simulated(city, seed, n_burn_in=29).ledger
    charged_kwh = ledger.home_charged_kwh * fleet.efficiency_frac + ledger.fast_charged_kwh
    driven_kwh = ledger.distance_km * fleet.consumption_kwh_per_km - ledger.clamped_kwh
    stored_kwh = fleet.capacity_kwh * (ledger.last_soc_frac - ledger.first_soc_frac)
    np.testing.assert_allclose(charged_kwh - driven_kwh, stored_kwh, atol=1e-8)
    without = fleet.charge_power_kw == 0.0
    assert 0.6 < without.mean() < 0.8  # 30 % have a charger at home
    assert not ledger.home_charged_kwh[without].any()
    assert ledger.fast_charged_kwh[without].sum() > 5 * ledger.fast_charged_kwh[~without].sum()


def test_legs_say_where_a_request_comes_from_and_goes_to(city: Scenario) -> None:
    asked = simulated(city, 0).fast_requests
    arrived = asked.share_frac == 1.0
    assert 0 < arrived.sum() < len(arrived)
    assert (asked.to_leg[arrived] != HOME).all()  # who comes home does not ask there
    assert (asked.from_leg == HOME).any()
    assert (asked.to_leg == HOME).any()
    assert ((asked.share_frac > 0.0) & (asked.share_frac <= 1.0)).all()
    away = (asked.from_leg != HOME) & (asked.to_leg != HOME)
    assert (asked.to_leg[away] > asked.from_leg[away]).all()


def test_a_leg_that_is_met_again_leads_to_the_same_node(city: Scenario) -> None:
    # A car that asks on arrival and again on its next trip stands in between where the first one ended: the origin
    # follows from the leg alone, so equal legs give equal nodes.
    car, leg = np.array([4, 4, 9, 4]), np.array([17, 17, 17, HOME])
    nodes = _end_of_leg(city, car, leg, 123456789)
    assert nodes[0] == nodes[1]
    assert nodes[3] == city.home_node[city.fleet.bus[4]]
    many = _end_of_leg(city, np.repeat(np.arange(500), 12), np.tile(np.arange(12), 500), 99)
    assert np.bincount(many, minlength=12).min() > 400  # 500 each if drawn evenly


def test_a_trip_longer_than_the_battery_is_counted_and_the_car_goes_on() -> None:
    # The smallest battery, at the largest consumption: some trips of the survey are longer.
    content = fast_content(n_cars=(2000, 0))
    content["fleet"] = {
        "home_charger_frac": 0.0,
        "consumption_min_kwh_per_km": 0.9,
        "consumption_max_kwh_per_km": 0.9,
    }
    thirsty = scenario_from_dict(content)
    found = simulated(thirsty, 0)
    assert found.n_clamped > 0
    assert found.ledger.clamped_kwh.sum() > 0.0
    assert (found.ledger.last_soc_frac >= 0.0).all()
    asked = fast.requests_of(thirsty.day(0))
    empty = asked.soc0_frac == 0.0
    assert empty.any()  # asked for at the end of a slot in which it ran dry
    stranded = ~fast.within_reach(asked, 0.0).any(axis=1)
    assert stranded[empty].mean() > 0.5  # only cars at a station's node can charge there


# ------------------------------------------------------------------------------------------------- the scenario section


def changed(**parts: Any) -> dict[str, Any]:
    """The content with sections replaced (None: left out)."""
    content = {**fast_content(), **parts}
    return {key: value for key, value in content.items() if value is not None}


def with_station(**values: Any) -> dict[str, Any]:
    """The content with the second station changed."""
    content = fast_content()
    content["fast_charging"]["stations"][1].update(values)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(roads=None), "roads is missing; fast_charging needs roads, charging_buses and normal_charging"),
        (changed(charging_buses=None), "charging_buses is missing"),
        (
            changed(charging_buses=None, normal_charging=None, fleet=None),
            "normal_charging is missing; fast_charging needs",
        ),
        (changed(traffic={}), "stations is missing; charging stations needs stations"),
        (changed(roads={"name": "nguyen_dupuis"}), "needs roads with lengths, all of 'nguyen_dupuis' are 0 km"),
        (
            with_station(n_plugs=0),
            r"fast_charging.stations.1.n_plugs: input should be greater than or equal to 1, got 0",
        ),
        (with_station(plug_kw=0), r"stations.1.plug_kw: input should be greater than 0"),
        (with_station(bus=99), r"x.yaml: fast_charging.stations.1.bus must be a bus of feeder 'synthetic33'"),
        (
            with_station(bus=1),
            r"stations.1.bus must have three phases and not be the source bus, got '1'",
        ),
        (with_station(node=13), r"fast_charging.stations.1.node must be a node of roads 'city12' .*1\.\.12\), got 13"),
        (with_station(bus=18), r"fast_charging.stations.1.bus must not come twice, got '18'; add up plugs"),
        (with_station(name="slow"), r"fast_charging.stations.1.name must not come twice, got 'slow'"),
        (with_station(plug=3), r"fast_charging.stations.1.plug is no known key; did you mean 'plug_kw'"),
        (
            changed(charging_buses=[{"bus": 18, "n_cars": 5}]),
            r"charging_buses.0.node must be a node of roads 'city12' .* in a scenario with fast_charging, got None",
        ),
        (changed(charging_buses=[{"bus": 18, "n_cars": 5, "node": 13}]), r"charging_buses.0.node must be .* got 13"),
        (
            fast_content(as_printed=True, reserve_soc_frac=0.1),
            r"reserve_soc_frac must be 0 when as_printed is true \(the paper has none\), got 0.1",
        ),
        (fast_content(reserve_soc_frac=0.3), "reserve_soc_frac: input should be less than 0.3"),
        (fast_content(mean_requests_per_slot=0), "mean_requests_per_slot: input should be greater than 0"),
        (changed(fleet={"home_charger_frac": 1.1}), "home_charger_frac: input should be less than or equal to 1"),
    ],
)
def test_impossible_sections_are_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scenario_from_dict(content, "x.yaml")


def test_a_scenario_is_read_back_from_what_it_prints(city: Scenario, small_scenario: Scenario) -> None:
    printed = city.model_dump(by_alias=True, mode="json")
    assert {"roads", "fast_charging"} <= set(printed)
    assert not {"stations", "traffic", "market"} & set(printed)
    assert scenario_from_dict(printed) == city
    assert "fast_charging" not in small_scenario.model_dump(by_alias=True)
    with pytest.raises(ConfigError, match="stations is no section of this scenario"):
        _ = city.stations
    with pytest.raises(ConfigError, match="fast_charging is no section of this scenario; add fast_charging and roads"):
        _ = small_scenario.fast_stations


# ---------------------------------------------------------------------------------------- normal charging on top of it


def test_fast_load_is_part_of_the_base_and_limits_stay(city: Scenario) -> None:
    day = city.day(1)
    load = np.zeros((N_SLOTS, 2))
    load[10] = 60.0, 90.0
    more = with_fast_load(city, day, load)
    np.testing.assert_allclose(more.base_kw[:, 0] - day.base_kw[:, 0], load[:, 0])  # a station at this bus
    np.testing.assert_array_equal(more.base_kw[:, 1], day.base_kw[:, 1])
    added = more.load_kva - day.load_kva
    assert np.abs(added[10, city.fast_stations.bus] - np.array([[20.0], [30.0]])).max() < 1e-9
    assert np.abs(added).sum() == pytest.approx(150.0)
    assert (more.base_voltage_pu[10] < day.base_voltage_pu[10] + 1e-9).all()
    np.testing.assert_allclose(more.base_voltage_pu[9], day.base_voltage_pu[9], atol=1e-9)
    for name in ("vmin_pu", "vmax_pu", "current_limit_a"):
        assert getattr(more, name) is getattr(day, name)
    # the same day in normal charging: |base| grows by what the station draws
    bare = dataclasses.replace(day, dg_kw=np.zeros_like(day.dg_kw))
    world = normal.make_world(city, [bare, dataclasses.replace(more, dg_kw=bare.dg_kw)])
    state = dataclasses.replace(normal.initial_state(world, np.arange(2)), slot=np.full(2, 10))
    _, outcome = normal.step(world, state, normal.dispatch(world, state, np.full((2, 2), -1.0)))
    gap_eur = outcome.gap_eur[1] - outcome.gap_eur[0]
    assert gap_eur == pytest.approx([city.normal_charging.omega1_eur_per_kwh * 0.5 * 60.0, 0.0])


def test_fast_load_is_checked(city: Scenario, small_scenario: Scenario) -> None:
    day = city.day(0)
    for load in (np.zeros((N_SLOTS, 3)), np.full((N_SLOTS, 2), np.nan), np.full((N_SLOTS, 2), -1.0)):
        with pytest.raises(DataError, match=r"load_kw must be a finite array \(48, 2\) of powers"):
            with_fast_load(city, day, load)
    with pytest.raises(ConvergenceError, match="have no power flow in slot 0"):
        with_fast_load(city, day, np.full((N_SLOTS, 2), 1e6))
    with pytest.raises(ConfigError, match="with_fast_load needs a scenario with fast_charging"):
        with_fast_load(small_scenario, small_scenario.day(0), np.zeros((N_SLOTS, 2)))


# ----------------------------------------------------------------------------------------------------- the shipped city


def test_weights_of_the_shipped_scenario_balance_the_mean_uncontrolled_day() -> None:
    """Section 8: omega1 makes both terms of (1) equal on the mean day on which all go to the nearest station."""
    scenario = load_scenario("ieee33_mobility")
    days = scenario.days(range(40))
    done = rollout(world_of(scenario, days, "fast_charging"), make_rule("nearest", "fast_charging"))
    spec = scenario.fast_charging
    # 40 of the 256 days from which the numbers come: a standard error of about 2 % each
    assert done.n_requests.mean() / N_SLOTS == pytest.approx(spec.mean_requests_per_slot, rel=0.07)
    assert done.absorb_eur.mean() == pytest.approx(done.energy_eur.mean(), rel=0.07)
    assert 200 < done.n_requests.mean() < 400
