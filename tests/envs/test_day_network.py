"""The network of a scenario: its YAML, the device schedule of a day, limits, normal charging under devices."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from envs_fixtures import model_city_content, tiny_content
from power_grid_model import PowerGridModel, initialize_array

from evcs_gym.baselines.problems import normal_charging as problems
from evcs_gym.baselines.solve import optimum
from evcs_gym.envs import ConfigError, Scenario
from evcs_gym.envs.day import Day, with_devices
from evcs_gym.envs.errors import DataError
from evcs_gym.envs.fleet import normal, pool
from evcs_gym.envs.fleet.env import NormalChargingEnv
from evcs_gym.envs.grid import branch_current_a, capacitor_siemens, load_feeder, power_flow, voltage_unbalance_frac
from evcs_gym.envs.grid.devices import DeviceSchedule, checked_schedule, moves_of
from evcs_gym.envs.network import nominal_limits
from evcs_gym.envs.scenario import scenario_from_dict
from evcs_gym.envs.units import N_SLOTS
from evcs_gym.evaluation.speed import power_grid_model_input


def city_with(feeder: dict[str, Any] | None = None, **devices: Any) -> Scenario:
    content = model_city_content(**devices)
    content["feeder"] |= feeder or {}
    return scenario_from_dict(content, "city")


def listed(tap: int = 2, **changes: Any) -> dict[str, Any]:
    """A ``devices`` section with a schedule in which nothing moves."""
    steps = {"30": [1] * N_SLOTS, "13": [1] * N_SLOTS}
    schedule = {"tap_position": [tap] * N_SLOTS, "capacitor_step": steps, **changes}
    return {"controller": "schedule", "schedule": schedule}


@pytest.fixture(scope="module")
def day(model_city: Scenario) -> Day:
    return model_city.day(0)


# -------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("devices", "complaint"),
    [
        ({"controler": "local"}, r"feeder\.devices\.controler is no known key; did you mean 'controller'"),
        ({"controller": "fuzzy"}, r"feeder\.devices\.controller: input should be 'dynamic_programme', 'local' or"),
        ({"controller": "local"}, r"local must be given with controller: local, and only then, got controller: local"),
        ({"local": {"bus": 18}}, r"local must be given .*, got controller: dynamic_programme"),
        ({"controller": "schedule"}, r"schedule must be given with controller: schedule"),
        (
            {"controller": "local", "local": {"bus": 18, "deadband_pu": 0.006}},
            r"local\.deadband_pu must be wider than tap_changer\.step_pu, .* got 0\.006 and 0\.00625",
        ),
        ({"controller": "local", "local": {"bus": 99}}, r"feeder\.devices\.local\.bus must be a bus .*, got '99'"),
        (
            {"capacitors": [{"bus": "3o", "kvar_per_step": 600}]},
            r"feeder\.devices\.capacitors\.0\.bus must be a bus of the feeder, got '3o'; did you mean '3",
        ),
        (
            {"capacitors": [{"bus": 30, "kvar_per_step": 600}] * 2},
            r"capacitors must be at different buses, got '30' twice; add up their steps",
        ),
        ({"capacitors": [{"bus": 30, "kvar_per_step": 0}]}, r"kvar_per_step: input should be greater than 0"),
        ({"capacitors": [{"bus": 1, "kvar_per_step": 9}]}, r"capacitors\.0\.bus must be row 1\.\.32 with three phases"),
        ({"tap_changer": {"start": 20}}, r"tap_changer must have lowest <= start <= highest"),
        (listed(tap_position=[2] * 47), r"schedule\.tap_position must have one number per slot, 48, got 47"),
        (listed(capacitor_step={"30": [1] * 48}), r"capacitor_step must have one list per bank \(30, 13\), got 30"),
        (listed(capacitor_step={}), r"capacitor_step must have one list per bank \(30, 13\), got none"),
        (
            listed(capacitor_step={"30": [1] * 48, "13": [1] * 40}),
            r"schedule\.capacitor_step\.13 must have one number per slot, 48, got 40",
        ),
        (listed(tap=17), r"schedule: tap_position must be in -16\.\.16, got 17 in slot 0"),
        (listed(tap=15), r"schedule: tap_position must move by at most 12 steps a day, .* got 13"),
    ],
)
def test_devices_that_make_no_sense_are_refused(devices: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        city_with(**devices)


def test_the_default_section_has_no_devices_and_no_limits_beside_voltage() -> None:
    scenario = scenario_from_dict(tiny_content())
    day = scenario.day(0)
    assert day.source_pu.tolist() == [1.0] * N_SLOTS
    assert not day.tap_position.any()
    assert day.capacitor_step.shape == (N_SLOTS, 0)
    assert not day.capacitor_kvar.any()
    assert np.isinf(day.head_limit_kva).all()
    assert np.isinf(day.current_limit_a).all()


def test_ampacities_are_a_factor_of_the_currents_at_nominal_load(model_city: Scenario) -> None:
    """At least 100 A: only the first branches carry more than 67 A per phase."""
    feeder = load_feeder("synthetic33")
    flow = power_flow(feeder, feeder.load_kva[None])
    current = np.abs(branch_current_a(feeder, feeder.load_kva[None], flow.voltage_pu))[0].max(axis=1)
    np.testing.assert_allclose(model_city.feeder.ampacity_a, np.maximum(1.5 * current, 100.0))
    assert model_city.feeder.ampacity_a[1] > 300.0
    assert model_city.feeder.ampacity_a[17] == 100.0


def test_ampacities_need_a_nominal_power_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    heavy = dataclasses.replace(load_feeder("synthetic33"), load_kva=load_feeder("synthetic33").load_kva * 10.0)
    monkeypatch.setattr("evcs_gym.envs.network.load_feeder", lambda _: heavy)
    with pytest.raises(ConfigError, match=r"feeder\.ampacity_factor needs the currents .* no power flow at source_pu"):
        city_with()


# -------------------------------------------------------------------------------------------------- schedule of the day


def test_the_day_shows_its_schedule_and_what_it_makes_of_the_network(model_city: Scenario, day: Day) -> None:
    checked_schedule(model_city.devices, day.schedule, N_SLOTS, "day")
    np.testing.assert_allclose(day.source_pu, 1.0 + 0.00625 * day.tap_position, rtol=1e-15)
    assert set(np.unique(day.capacitor_kvar[:, 29])) <= {0.0, 200.0}
    np.testing.assert_array_equal(day.capacitor_kvar[:, 29, 0], 200.0 * day.capacitor_step[:, 0])
    np.testing.assert_array_equal(day.capacitor_kvar[:, 12, 2], 100.0 * day.capacitor_step[:, 1])
    flow = power_flow(
        day.feeder, day.load_kva, source_pu=day.source_pu, capacitor_kvar=day.capacitor_kvar, tolerance_pu=1e-12
    )
    np.testing.assert_allclose(day.base_voltage_pu, np.abs(flow.voltage_pu), atol=1e-7)


def test_power_grid_model_finds_the_base_voltages_of_the_day(day: Day) -> None:
    """Head voltage and shunts of single slots, given to a program that others wrote."""
    switched = [0, *np.flatnonzero(np.diff(day.capacitor_step, axis=0).any(axis=1))[:2] + 1]
    assert len({(int(day.tap_position[t]), *day.capacitor_step[t].tolist()) for t in switched}) > 1
    for slot in switched:
        loaded = dataclasses.replace(day.feeder, load_kva=day.load_kva[slot])
        given = power_grid_model_input(loaded, float(day.source_pu[slot]))
        buses = np.flatnonzero(day.capacitor_kvar[slot, :, 0])
        shunt = initialize_array("input", "shunt", len(buses))
        shunt["id"], shunt["node"], shunt["status"] = 998 + np.arange(len(buses)), buses, 1
        shunt["g1"] = shunt["g0"] = 0.0
        kvar = day.capacitor_kvar[slot, buses]
        siemens = [capacitor_siemens(k, day.feeder.line_to_line_kv)[0, 0].imag for k in kvar]
        shunt["b1"] = shunt["b0"] = siemens
        given["shunt"] = shunt
        node = PowerGridModel(given).calculate_power_flow(symmetric=False, error_tolerance=1e-12)["node"]
        np.testing.assert_allclose(day.base_voltage_pu[slot], node["u_pu"], rtol=0, atol=1e-7)


def test_the_same_seed_gives_the_same_schedule(model_city: Scenario, day: Day) -> None:
    again = scenario_from_dict(model_city_content()).day(0)
    np.testing.assert_array_equal(again.tap_position, day.tap_position)
    np.testing.assert_array_equal(again.base_voltage_pu, day.base_voltage_pu)


def test_a_day_inside_its_nominal_limits_has_them_as_effective_limits(model_city: Scenario, day: Day) -> None:
    nominal = nominal_limits(model_city)
    for name in ("vmin_pu", "vmax_pu", "current_a", "head_kva", "unbalance_frac"):
        np.testing.assert_array_equal(getattr(day.limits, name), getattr(nominal, name), err_msg=name)
    assert day.head_limit_kva[0] == 6000.0


def test_what_the_base_load_needs_is_allowed_to_it() -> None:
    """Limits below what the base load takes are raised to that, in each slot; the power flow says what it takes."""
    tight = {"ampacity_factor": 0.1, "ampacity_least_a": 0.0, "head_kva": 100.0, "vuf_max_frac": 1e-4}
    day = city_with(tight).day(0)
    flow = power_flow(day.feeder, day.load_kva, source_pu=day.source_pu, capacitor_kvar=day.capacitor_kvar)
    current = branch_current_a(day.feeder, day.load_kva, flow.voltage_pu, capacitor_kvar=day.capacitor_kvar)
    np.testing.assert_allclose(
        day.current_limit_a[:, 1:], np.maximum(np.abs(current).max(axis=2), day.feeder.ampacity_a)[:, 1:], rtol=1e-6
    )
    unit = np.exp(-2j * np.pi / 3.0 * np.arange(3)) * day.source_pu[:, None] * day.feeder.phase_kv
    np.testing.assert_allclose(day.head_limit_kva, np.abs((unit * np.conj(current[:, 0])).sum(axis=1)), rtol=1e-6)
    vuf = voltage_unbalance_frac(flow.voltage_pu)
    np.testing.assert_allclose(day.unbalance_limit_frac, np.maximum(vuf, 1e-4), atol=1e-8)


def test_a_listed_schedule_and_relays_make_days_too() -> None:
    assert city_with(**listed()).day(0).tap_position.tolist() == [2] * N_SLOTS
    relays = city_with(controller="local", local={"bus": 18, "target_pu": 0.99, "deadband_pu": 0.03})
    relayed = relays.day(0)
    assert moves_of(relays.devices, relayed.schedule)[0] <= 12
    measured = relayed.base_voltage_pu[:, 17].mean(axis=1)
    assert np.all(np.abs(measured - 0.99) <= 0.015)


# -------------------------------------------------------------------------------------------------------- given devices


def test_given_devices_change_the_voltages_and_not_the_limits(model_city: Scenario, day: Day) -> None:
    lower = DeviceSchedule(np.full(N_SLOTS, 1), np.ones((N_SLOTS, 2), dtype=np.int64))
    other = with_devices(model_city, day, lower)
    assert other.tap_position.tolist() == [1] * N_SLOTS
    np.testing.assert_allclose(other.source_pu, 1.00625)
    assert np.abs(other.base_voltage_pu - day.base_voltage_pu).max() > 0.005
    assert other.limits.vmin_pu is day.vmin_pu
    assert other.limits.current_a is day.current_limit_a


@pytest.mark.parametrize(
    ("tap", "complaint"),
    [
        (-8, r"base load of 2016-.* in slot \d+ bus '\d+' has 0\.9\d+ pu on phase [abc], limits 0\.9500 and 1\.0500"),
        (
            14,
            r"base load of 2016-.* in slot \d+ bus '\d+' has 1\.\d+ pu on phase [abc], limits 0\.9500 and 1\.05",
        ),
    ],
)
def test_devices_under_which_the_base_load_breaks_a_limit_are_refused(
    model_city: Scenario, day: Day, tap: int, complaint: str
) -> None:
    given = DeviceSchedule(np.full(N_SLOTS, tap), np.ones((N_SLOTS, 2), dtype=np.int64))
    with pytest.raises(ConfigError, match=complaint):
        with_devices(model_city, day, given)


def test_devices_under_which_the_base_load_breaks_the_kva_limit_are_refused() -> None:
    """The limit is what the day's own schedule needs; without capacitors the same load takes more kVA."""
    scenario = city_with({"head_kva": 1.0})
    day = scenario.day(0)
    none = DeviceSchedule(np.full(N_SLOTS, 2), np.zeros((N_SLOTS, 2), dtype=np.int64))
    with pytest.raises(ConfigError, match=r"in slot \d+ the kVA at the head exceeds its limit by .*; take other"):
        with_devices(scenario, day, none)


def test_the_environment_plays_a_day_under_given_devices(model_city: Scenario, day: Day) -> None:
    env = NormalChargingEnv(model_city, pool_days=1)
    given = DeviceSchedule(np.full(N_SLOTS, 1), np.ones((N_SLOTS, 2), dtype=np.int64))
    env.reset(options={"day": day, "devices": given})
    assert env.day.tap_position.tolist() == [1] * N_SLOTS
    env.step(np.zeros(2))
    assert env.state is not None
    assert np.abs(env.state.voltage_pu[0, 0]) == pytest.approx(1.00625)
    for options in ({"devices": given}, {"day": day, "devices": [1] * N_SLOTS}):
        with pytest.raises(ConfigError, match=r"options\['devices'\] must be a DeviceSchedule, given together with"):
            env.reset(options=options)
    with pytest.raises(ConfigError, match=r"devices: tap_position must move by at most 12 steps"):
        env.reset(options={"day": day, "devices": dataclasses.replace(given, tap_position=given.tap_position + 15)})


# ------------------------------------------------------------------------------------------------------ normal charging


def test_a_step_has_the_power_flow_of_its_slot(model_city: Scenario, day: Day) -> None:
    """Two rows in different slots of one day: each has the head voltage and the capacitors of its own slot."""
    world = normal.make_world(model_city, [day])
    state = normal.initial_state(world, np.zeros(2, dtype=np.int64))
    changed = np.flatnonzero(np.diff(day.source_pu))
    slots = np.array([int(changed[0]), int(changed[0]) + 1])
    state = dataclasses.replace(state, slot=slots, remaining_kwh=np.zeros_like(state.remaining_kwh))
    _, outcome = normal.step(world, state, np.zeros_like(state.remaining_kwh))
    np.testing.assert_allclose(np.abs(outcome.voltage_pu), day.base_voltage_pu[slots], atol=1e-7)
    assert outcome.n_violations.tolist() == [0, 0]


@pytest.mark.parametrize("mode", ["on_off", "modulated"])
def test_the_optimum_replays_under_devices(mode: str) -> None:
    content = model_city_content()
    content["normal_charging"]["mode"] = mode
    scenario = scenario_from_dict(content)
    day = scenario.day(0)
    solution = optimum(scenario, day)
    assert solution.certificate.replay_relative_error <= 1e-6
    assert solution.lower_bound_eur <= solution.cost_eur
    replayed = normal.replay(scenario, day, solution.plan.power_kw)
    assert replayed.cost_eur == pytest.approx(solution.cost_eur, rel=1e-6)


def test_problem_and_environment_price_voltages_alike_under_devices(day: Day, model_city: Scenario) -> None:
    """Limits at the base voltages: whatever is charged breaks them."""
    tight = dataclasses.replace(day, vmin_pu=day.base_voltage_pu.copy())
    problem, network = problems.problem_of(model_city, tight), problems.network_of(model_city, tight)
    classes = problems.classes_of(problem)
    plan_kw = problems.plan_of_cells(problem, classes, problems.on_arrival_cells(classes))
    voltage, converged = problems.plan_voltage(problem, network, plan_kw)
    replayed = normal.replay(model_city, tight, plan_kw)
    assert converged.all()
    assert replayed.voltage_eur > 0.01
    assert replayed.voltage_eur == pytest.approx(problems.voltage_cost(network, voltage), rel=1e-4)
    np.testing.assert_allclose(np.abs(replayed.voltage_pu), voltage, atol=1e-7)


def test_a_pool_comes_back_from_disk_with_its_devices(
    model_city: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVCS_GYM_CACHE", str(tmp_path))
    made, read = pool.load_pool(model_city, "test", 2), pool.load_pool(model_city, "test", 2)
    assert made.source_pu.shape == (2, N_SLOTS)
    for name in ("source_pu", "capacitor_step", "bank_kvar"):
        np.testing.assert_array_equal(getattr(made, name), getattr(read, name))


def test_a_day_whose_schedule_does_not_fit_is_refused(model_city: Scenario, day: Day) -> None:
    with pytest.raises(DataError, match=r"source_pu must have shape \(48,\), got \(\)"):
        normal.make_world(model_city, [dataclasses.replace(day, source_pu=np.array(1.0))])
    with pytest.raises(DataError, match=r"capacitor_step must have shape \(48, 2\), got \(48, 0\)"):
        normal.make_world(model_city, [dataclasses.replace(day, capacitor_step=day.capacitor_step[:, :0])])


# ---------------------------------------------------------------------------------------------------------------- check


def test_days_of_all_splits_keep_their_room(model_city: Scenario) -> None:
    found = model_city.check(n_days=3)
    assert [(day.split, day.seed) for day in found.days[::3]] == [("train", 0), ("validation", 0), ("test", 0)]
    assert len(found.days) == 9
    assert found.worst.room_pu >= 0.005
    for row in found.days[:2]:
        day = model_city.day(row.seed, row.split)
        room = np.minimum(day.base_voltage_pu - 0.95, 1.05 - day.base_voltage_pu)
        assert row.room_pu == room.min()
        assert row.date == day.date
        bus = model_city.feeder.bus_name.index(row.bus)
        assert room[row.slot, bus, "abc".index(row.phase)] == row.room_pu
        assert (row.n_tap_moves, list(row.n_switchings)) == (
            moves_of(model_city.devices, day.schedule)[0],
            moves_of(model_city.devices, day.schedule)[1].tolist(),
        )
    summary = found.as_dict()
    assert summary["n_days"] == 9
    assert summary["n_tap_moves"] <= 12
    assert max(summary["n_switchings"]) <= 4


def test_one_split_is_checked_whole(small_scenario: Scenario) -> None:
    found = small_scenario.check("validation")
    assert len({day.date for day in found.days}) == 36
    assert found.worst.room_pu == min(day.room_pu for day in found.days)
    assert found.as_dict()["n_switchings"] == []
    assert (found.as_dict()["current_frac"], found.as_dict()["head_frac"]) == (0.0, 0.0)


def test_less_room_than_the_margin_is_refused_with_its_place() -> None:
    """Nothing may move, and the head stands at 1.05 pu: 0 pu of room at the first bus."""
    fixed = city_with(**listed(tap=8, capacitor_step={}), tap_changer={"start": 8}, capacitors=[])
    with pytest.raises(
        ConfigError,
        match=r"model_city: the base load of test/0 \(2016-.*\) must stay at least 0\.005 pu inside .*, got -?0\.0000 "
        r"pu in slot \d+ at bus '1', phase a; change feeder\.devices or lower",
    ):
        fixed.check("test", 1)


@pytest.mark.parametrize(
    ("feeder", "complaint"),
    [
        ({"ampacity_factor": 0.1, "ampacity_least_a": 1.0}, r"its current reaches [\d.]+ of 1\.0 allowed; raise"),
        ({"head_kva": 500.0}, r"its apparent power at the head reaches [\d.]+ of 1\.0 allowed"),
        ({"vuf_max_frac": 0.001}, r"its voltage unbalance reaches 0\.00\d of 0\.001 allowed"),
    ],
)
def test_a_base_load_outside_another_nominal_limit_is_refused(feeder: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        city_with(feeder).check("test", 1)


def test_a_scenario_without_devices_is_reported_and_not_refused() -> None:
    content = copy.deepcopy(tiny_content())
    content["feeder"]["vmax_pu"] = 1.001
    assert scenario_from_dict(content).check("test", 2).worst.room_pu < 0.005


def test_a_feeder_with_regulators_and_absent_phases_takes_devices_too() -> None:
    """The bank stands in for kvar that the feeder could have as a shunt of its own: same voltages, same room."""
    content = tiny_content()
    content["feeder"] = {"name": "ieee13", "vmin_pu": 0.8, "vmax_pu": 1.2}
    content["charging_buses"] = [{"bus": "671", "n_cars": 0, "pv_kw": 60}, {"bus": "680", "n_cars": 0}]
    content["feeder"]["devices"] = {
        **listed(tap=1, capacitor_step={"680": [1] * N_SLOTS}),
        "capacitors": [{"bus": "680", "kvar_per_step": 300.0}],
    }
    scenario = scenario_from_dict(content)
    day, found = scenario.day(0), scenario.check("train", 1).worst
    present = scenario.feeder.phase_present
    size = day.base_voltage_pu[:, present]
    assert found.room_pu == np.minimum(size - 0.8, 1.2 - size).min()
    bus = scenario.feeder.bus_name.index("680")
    parts = scenario.feeder.equipment
    assert parts is not None
    shunt = parts.shunt_siemens.copy()
    shunt[bus] += capacitor_siemens(np.full(3, 100.0), float(parts.bus_kv[bus]))
    own = dataclasses.replace(scenario.feeder, equipment=dataclasses.replace(parts, shunt_siemens=shunt))
    flow = power_flow(own, day.load_kva, source_pu=1.00625)
    np.testing.assert_allclose(day.base_voltage_pu, np.abs(flow.voltage_pu), atol=1e-7)


def test_what_to_check_is_checked(small_scenario: Scenario) -> None:
    with pytest.raises(ConfigError, match="n_days must be at least 1, got 0"):
        small_scenario.check(n_days=0)
    with pytest.raises(ConfigError, match="split must be one of train, validation, test, got 'all'"):
        small_scenario.check("all")
