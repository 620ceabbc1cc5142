"""Roads and charging stations of a scenario: what is refused, what stations own, what a day brings them."""

import copy
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from envs_fixtures import tiny_content, tiny_scenario
from hypothesis import given, settings
from hypothesis import strategies as st

from evcs_gym.envs import ConfigError, Scenario, load_scenario
from evcs_gym.envs.day_traffic import RELATIVE_GAP
from evcs_gym.envs.fleet.pool import load_pool
from evcs_gym.envs.scenario import scenario_from_dict
from evcs_gym.envs.traffic import assign_charging, solve_batch
from evcs_gym.envs.traffic.batch import solve_apart
from evcs_gym.envs.units import N_SLOTS, SLOT_H

STATIONS: list[dict[str, Any]] = [
    {"bus": 18, "node": 1, "pv_kw": 100, "storage_kwh": 200, "n_plugs": 2},
    {"bus": 33, "node": 6, "n_plugs": 2, "plug_kw": 140, "name": "south", "retail_eur_per_kwh": 0.5},
]


def road_content(home: bool = False, **sections: Any) -> dict[str, Any]:
    """A scenario with two stations on the shipped roads; keywords change or add keys of its sections."""
    content = tiny_content()
    if not home:
        del content["charging_buses"], content["normal_charging"]
    content["roads"] = {"name": "city12", "demand_frac": 0.5, "charging_share_frac": 0.009}
    content["stations"] = copy.deepcopy(STATIONS)
    for section, values in sections.items():
        content[section] = {**content.get(section, {}), **values} if isinstance(values, dict) else values
    return content


def road_scenario(home: bool = False, **sections: Any) -> Scenario:
    return scenario_from_dict(road_content(home, **sections), "city")


@pytest.fixture(scope="module")
def city() -> Scenario:
    return load_scenario("ieee33_twelve")


# ------------------------------------------------------------------------------------------------------------- sections


@pytest.mark.parametrize(
    ("drop", "complaint"),
    [
        (("normal_charging",), r"city: normal_charging is missing; charging at home needs charging_buses and normal_c"),
        (("charging_buses",), r"city: charging_buses is missing; charging at home needs"),
        (("roads",), r"city: roads is missing; charging stations needs roads and stations, or none of traffic too"),
        (("stations",), r"city: stations is missing; charging stations needs"),
        (("roads", "stations"), r"city: roads is missing; charging stations needs"),
        (("charging_buses", "normal_charging"), r"city: charging_buses is missing; charging at home needs"),
        (
            ("charging_buses", "normal_charging", "fleet", "roads", "stations", "traffic"),
            r"city: normal_charging or stations is missing; a scenario needs charging_buses and normal_charging, or",
        ),
    ],
)
def test_a_world_is_there_as_a_whole_or_not_at_all(drop: tuple[str, ...], complaint: str) -> None:
    content = {key: value for key, value in road_content(home=True, fleet={}, traffic={}).items() if key not in drop}
    with pytest.raises(ConfigError, match=complaint):
        scenario_from_dict(content, "city")


def station(**values: Any) -> list[dict[str, Any]]:
    """The two stations with values of the first changed."""
    return [{**STATIONS[0], **values}, STATIONS[1]]


LINKS = [{"tail": a, "head": b, "free_flow_min": 5, "capacity_veh_per_h": 900} for a, b in ((1, 2), (2, 3), (3, 1))]
PAIRS = [{"origin": 1, "destination": 3, "demand_veh_per_h": 400}]


@pytest.mark.parametrize(
    ("section", "value", "complaint"),
    [
        ("roads", {"name": "city13"}, r"load_roads: name must be one of city12, .*, got 'city13'"),
        (
            "roads",
            {"charging_share": 0.1},
            r"roads\.charging_share is no known key; did you mean 'charging_share_frac'",
        ),
        ("roads", {"charging_share_frac": 2}, r"roads\.charging_share_frac: input should be less than or equal to 1"),
        ("roads", {"demand_frac": -1}, r"roads\.demand_frac: input should be greater than or equal to 0, got -1"),
        ("roads", {"day_spread_frac": 0.6}, r"roads\.day_spread_frac: input should be less than or equal to 0\.5"),
        ("roads", {"profile_frac": [1.0]}, r"roads: profile_frac must have 48 entries or be city12, got 1"),
        ("roads", {"links": LINKS}, r"roads: own roads need links and pairs, .*, got 3 links and 0 pairs"),
        ("traffic", {"queue": "erlang"}, r"traffic\.queue: input should be 'davidson' or 'erlang_c', got 'erlang'"),
        ("traffic", {"value_of_time_eur_per_h": 0}, r"value_of_time_eur_per_h: input should be greater than 0, got 0"),
        (
            "traffic",
            {"energy_per_charge_kwh": 90},
            r"city: city12: a charge must end within a slot of 0\.5 h",
        ),
        (
            "traffic",
            {"energy_per_charge_kwh": 30},
            r"city: city12: .* trip with charging must take at most 0\.8 slots",
        ),
        ("roads", {"charging_share_frac": 0.1}, r"city: city12: charging demand must fit .* fall short by .* veh/h"),
        ("stations", [], r"stations: tuple should have at least 1 item"),
        ("stations", station(bus=99), r"stations\.0\.bus must be a bus of feeder 'synthetic33' \(1\.\.33\), got '99'"),
        ("stations", station(bus=1), r"stations\.0\.bus must have three phases and not be the source bus, got '1'"),
        ("stations", station(node=13), r"stations\.0\.node must be a node of roads 'city12' .*\(1\.\.12\), got 13"),
        ("stations", station(node=0), r"stations\.0\.node: input should be greater than or equal to 1, got 0"),
        ("stations", station(name="south"), r"stations\.1\.name must not come twice, got 'south'"),
        ("stations", station(n_plugs=0), r"stations\.0\.n_plugs: input should be greater than or equal to 1, got 0"),
        ("stations", station(plug=150), r"stations\.0\.plug is no known key; did you mean 'plug_kw'"),
        ("stations", station(energy_start_kwh=201), r"stations\.0: energy must hold .*, got 0\.0, 201\.0 and 200\.0"),
        ("stations", station(energy_min_kwh=150), r"stations\.0: energy must hold .*, got 150\.0, 100\.0 and 200\.0"),
        (
            "stations",
            station(energy_min_kwh=100, storage_kw=0),
            r"stations\.0: storage_kw must make up for what energy_min_kwh loses in a slot \(0\.02 kWh\), got 0 kWh",
        ),
    ],
)
def test_what_no_city_can_have_is_refused(section: str, value: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        road_scenario(**{section: value})


def test_what_stations_own_by_hand() -> None:
    assets = road_scenario().stations
    assert assets.name == ("station_0", "south")
    assert (assets.bus.tolist(), assets.node.tolist(), assets.n_plugs.tolist()) == ([17, 32], [0, 5], [2, 2])
    assert assets.storage_kw == pytest.approx([0.35 * 200, 0.0])
    assert assets.energy_start_kwh.tolist() == [100.0, 0.0]
    assert assets.connection_kw == pytest.approx([2 * 150 + 35, 2 * 140])  # both above their photovoltaics
    assert assets.retail_eur_per_kwh.tolist() == [0.4, 0.5]
    sunny = road_scenario(stations=station(pv_kw=900, energy_start_kwh=60, storage_kw=80)).stations
    assert (sunny.connection_kw[0], sunny.energy_start_kwh[0], sunny.storage_kw[0]) == (900.0, 60.0, 80.0)
    assert road_scenario(stations=station(connection_kw=200)).stations.connection_kw[0] == 200.0


def test_own_roads_count_nodes_from_one_and_scale_their_demand() -> None:
    own = {"name": "mine", "links": LINKS, "pairs": PAIRS, "demand_frac": 0.5, "profile_frac": [0.1] * N_SLOTS}
    scenario = road_scenario(roads=own, stations=[{**STATIONS[0], "node": 2}])
    assert (scenario.roads.name, scenario.roads.n_nodes, scenario.roads.n_links) == ("mine", 3, 3)
    assert scenario.roads.free_flow_h == pytest.approx([5 / 60] * 3)
    assert scenario.roads.demand_veh_per_h.tolist() == [200.0]
    assert scenario.departures_frac.tolist() == [0.1] * N_SLOTS


def test_what_needs_a_missing_world_says_which() -> None:
    home, roads = tiny_scenario(), road_scenario()
    for name in ("roads", "stations", "traffic_model", "departures_frac"):
        with pytest.raises(ConfigError, match=r"tiny: (roads|stations) is no section of this scenario; add roads and"):
            getattr(home, name)
    with pytest.raises(ConfigError, match=r"tiny: normal_charging is no section of this scenario; add charging_buses"):
        _ = roads.normal_charging
    with pytest.raises(ConfigError, match=r"tiny: fleet is no section of this scenario"):
        _ = roads.fleet
    with pytest.raises(ConfigError, match=r"tiny: normal_charging is no section"):
        load_pool(roads)
    assert home.day(0).stations is None
    assert home.day(0).traffic is None
    assert len(roads.day(0).sessions) == 0


def test_what_is_shown_of_a_scenario_reads_back_and_leaves_missing_worlds_out() -> None:
    for scenario, absent in ((tiny_scenario(), {"roads", "traffic", "stations"}), (road_scenario(), {"fleet"})):
        shown = scenario.model_dump(mode="json", by_alias=True)
        assert not absent & set(shown)
        assert scenario_from_dict(shown) == scenario
    assert {"roads", "normal_charging"} <= set(road_scenario(home=True).model_dump(by_alias=True))


def test_a_copy_with_another_section_is_another_city() -> None:
    scenario = road_scenario(home=True)
    assert scenario.roads.name == "city12"  # derived, and kept
    spec = scenario.normal_charging.model_copy(update={"mode": "modulated"})
    assert scenario.model_copy(update={"normal_charging": spec}).normal_charging.mode == "modulated"
    roads = scenario.road_demand.model_copy(update={"demand_frac": 0.1})
    for key in ("roads", "roads_spec"):
        copied = scenario.model_copy(update={key: roads})
        assert copied.roads.demand_veh_per_h == pytest.approx(0.2 * scenario.roads.demand_veh_per_h)
    assert scenario.model_copy().roads is scenario.roads
    with pytest.raises(ConfigError, match="tiny: road is no section of a scenario; did you mean 'roads'"):
        scenario.model_copy(update={"road": roads})


# ----------------------------------------------------------------------------------------------------------------- days


def arrays_of(scenario: Scenario, *seeds: int) -> list[dict[str, np.ndarray]]:
    found = []
    for day in scenario.days(seeds):
        assert day.stations is not None
        assert day.traffic is not None
        found.append({**dataclasses.asdict(day.stations), **dataclasses.asdict(day.traffic)})
    return found


@settings(deadline=None, max_examples=4)
@given(seeds=st.lists(st.integers(0, 500), min_size=2, max_size=12))
def test_a_day_is_the_same_bit_for_bit_in_any_company(city: Scenario, seeds: list[int]) -> None:
    alone, together = arrays_of(city, seeds[-1])[0], arrays_of(city, *seeds)[-1]
    for name, array in alone.items():
        np.testing.assert_array_equal(array, together[name], err_msg=name)


def test_a_copy_of_a_scenario_draws_the_same_days(city: Scenario) -> None:
    own, copied = arrays_of(city, 5)[0], arrays_of(pickle.loads(pickle.dumps(city)), 5)[0]
    fresh = arrays_of(load_scenario("ieee33_twelve"), 5)[0]
    for name, array in own.items():
        np.testing.assert_array_equal(array, copied[name], err_msg=name)
        np.testing.assert_array_equal(array, fresh[name], err_msg=name)


def test_rows_solved_apart_are_equilibria_and_one_that_wants_a_path_leaves_the_others_alone() -> None:
    model = road_scenario().traffic_model
    demand = np.concatenate([model.network.demand_veh_per_h, 0.003 * model.network.demand_veh_per_h])
    light = solve_batch(model.graph, 1e-3 * demand[None], 1e-10)  # the fastest path of each pair and no other
    rows = np.stack([1e-3 * demand, 2.0 * demand, 2e-3 * demand])
    found = solve_apart(model.graph, rows, 1e-10, light.columns)
    alone = solve_apart(model.graph, rows[2:], 1e-10, light.columns)
    assert found.converged.all()
    assert found.columns is light.columns
    np.testing.assert_array_equal(found.flow_veh_per_h[2], alone.flow_veh_per_h[0])
    full = solve_batch(model.graph, rows, 1e-10)
    assert full.columns.n_paths > light.columns.n_paths
    np.testing.assert_allclose(found.flow_veh_per_h, full.flow_veh_per_h, atol=1e-2)


def test_without_carry_over_each_slot_is_the_equilibrium_of_its_own_departures() -> None:
    scenario = road_scenario(traffic={"carry_over": False})
    day, model = scenario.day(4), scenario.traffic_model
    assert day.stations is not None
    assert day.traffic is not None
    assert not day.traffic.on_road_veh.any()
    for slot in (0, 10, 39):
        through, charging = day.traffic.assigned_veh_per_h[slot]
        assert charging == pytest.approx(0.009 / 0.991 * through)
        own = assign_charging(model, charging, through, [0.4, 0.5], relative_gap=1e-10)
        assert day.stations.arrivals_veh_per_h[slot] == pytest.approx(own.station_veh_per_h, abs=0.01)
        assert day.stations.wait_h[slot] == pytest.approx(own.waiting_h, abs=1e-5)
        assert day.traffic.link_flow_veh_per_h[slot] == pytest.approx(own.link_flow_veh_per_h, abs=1.0)


def test_energy_and_cars_of_a_day_by_the_rules(city: Scenario) -> None:
    day = city.day(7, "test")
    assert day.stations is not None
    assert day.traffic is not None
    assert day.traffic.relative_gap.max() <= RELATIVE_GAP
    y, late = day.stations.arrivals_veh_per_h, (20.0 / 150.0) / (2 * SLOT_H)
    before = np.concatenate([y[:1], y[:-1]])
    np.testing.assert_allclose(day.stations.ev_kw, 20.0 * ((1 - late) * y + late * before))  # (T6) by hand
    np.testing.assert_allclose(day.traffic.committed_kw, 20.0 * late * y[-1])
    np.testing.assert_allclose(y.sum(axis=1), day.traffic.assigned_veh_per_h[:, 1].sum(axis=1), rtol=1e-9)
    free = city.traffic_model.stations.capacity_veh_per_h - y
    np.testing.assert_allclose(day.stations.wait_h, 20.0 / 150.0 * 0.1 * y / free, rtol=1e-9)  # (T2), J = 0.1
    pv = city.profiles.pv_frac[:, city.profiles.pv_name.index("PV4")]
    assert 0.0 < day.stations.pv_kw.max() <= 1300.0 * pv.max()
    np.testing.assert_allclose(day.stations.pv_kw[:, 1] * 1200.0, day.stations.pv_kw[:, 0] * 100.0)


@pytest.mark.parametrize(("name", "low_kw", "high_kw"), [("ieee33_twelve", 70, 470), ("nguyen_dupuis_33", 120, 470)])
def test_shipped_cities_load_their_chargers_and_leave_the_base_load_inside_the_limits(
    name: str, low_kw: float, high_kw: float
) -> None:
    scenario = load_scenario(name)
    days = scenario.days(range(0, 300, 15), "train")
    peak = np.stack([day.stations.ev_kw for day in days if day.stations is not None]).max(axis=(0, 1))
    assert (peak > low_kw).all()
    assert (peak < high_kw).all()
    assert (peak < scenario.stations.n_plugs * scenario.stations.plug_kw).all()
    for day in days:
        seen = day.base_voltage_pu[:, scenario.feeder.phase_present]
        assert 0.955 < seen.min() <= seen.max() < 1.045


def test_days_differ_in_demand_as_far_as_the_scenario_says() -> None:
    scenario = road_scenario(roads={"day_spread_frac": 0.1, "pair_spread_frac": 0.05}, traffic={"carry_over": False})
    totals = []
    for day in scenario.days(range(200)):
        assert day.traffic is not None
        totals.append(day.traffic.assigned_veh_per_h.sum(axis=(0, 1)))
    mean = scenario.departures_frac.sum() * scenario.roads.demand_veh_per_h
    factor = np.stack(totals) / mean
    assert factor.mean() == pytest.approx(1.0, abs=0.03)
    assert factor.mean(axis=1).std() == pytest.approx(0.1, rel=0.15)
    assert (factor / factor.mean(axis=1, keepdims=True)).std() == pytest.approx(0.05, rel=0.15)
    assert factor.max() <= scenario.road_demand.largest_factor
    same = road_scenario(roads={"day_spread_frac": 0.0, "pair_spread_frac": 0.0}).days([0, 1])
    np.testing.assert_array_equal(same[0].stations.ev_kw, same[1].stations.ev_kw)  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------------ forecasts


def test_forecasts_of_stations_are_the_truth_yesterday_or_noise() -> None:
    truth = road_scenario().day(5)
    yesterday = road_scenario(forecast={"kind": "persistence"}).day(5)
    noisy = road_scenario(forecast={"kind": "noisy"}, traffic={"noise_ev_frac": 0.3}).day(5)
    assert truth.stations is not None
    assert not truth.forecast.station_ev_kw.any()
    assert not truth.forecast.station_pv_kw.any()
    for day in (yesterday, noisy):
        assert day.stations is not None
        np.testing.assert_array_equal(day.stations.ev_kw, truth.stations.ev_kw)  # the day itself is the same
        assert day.forecast.station_ev_kw.shape == (N_SLOTS, 2)
        assert (day.stations.ev_kw + day.forecast.station_ev_kw >= 0.0).all()
        assert (day.stations.pv_kw + day.forecast.station_pv_kw >= 0.0).all()
        assert day.forecast.station_ev_kw.any()
    share = (truth.stations.ev_kw + yesterday.forecast.station_ev_kw).sum() / truth.stations.ev_kw.sum()
    assert share != pytest.approx(1.0, abs=1e-4)
    assert share == pytest.approx(1.0, abs=0.4)


def test_stations_beside_home_charging_leave_its_days_as_they_were() -> None:
    plain = tiny_scenario(n_cars=(12, 6)).day(3, "test")
    content = road_content(home=True)
    content["charging_buses"][0]["n_cars"], content["charging_buses"][1]["n_cars"] = 12, 6
    content["forecast"] = {"kind": "noisy"}
    both = scenario_from_dict(content).day(3, "test")
    for name in ("import_eur_per_kwh", "base_kw", "dg_kw", "load_kva", "vmin_pu"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(both, name), err_msg=name)
    np.testing.assert_array_equal(plain.sessions.soc0_frac, both.sessions.soc0_frac)
    del content["roads"], content["stations"]
    noisy = scenario_from_dict(content).day(3, "test")
    np.testing.assert_array_equal(noisy.forecast.dg_kw, both.forecast.dg_kw)


def test_rules_of_a_market_need_stations() -> None:
    content = {**tiny_content(), "market": {"rule": "critical"}}
    with pytest.raises(ConfigError, match="market needs roads and stations"):
        scenario_from_dict(content)
