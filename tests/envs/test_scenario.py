"""Every check on user input: each complaint says where, what must hold and what was got."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from envs_fixtures import tiny_content, tiny_scenario
from pydantic import ValidationError

from evcs_gym.envs import ConfigError, DataError, Scenario, load_scenario, shipped_scenarios
from evcs_gym.envs.scenario import scenario_from_dict
from evcs_gym.envs.specs import nearest, validated


def changed(path: str, value: Any) -> dict[str, Any]:
    """The tiny scenario's content with the value at a dotted path set; numbers are positions in lists."""
    content = copy.deepcopy(tiny_content())
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = content
    for part in parents:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    place[last] = value
    return content


def without(path: str) -> dict[str, Any]:
    """The tiny scenario's content without the key at a dotted path."""
    content = changed(path, None)
    *parents, last = path.split(".")
    place: Any = content
    for part in parents:
        place = place[part]
    del place[last]
    return content


# --------------------------------------------------------------------------------------------------------- what is read


def test_every_shipped_scenario_loads_by_its_name() -> None:
    assert "ieee33_residential" in shipped_scenarios()
    for name in shipped_scenarios():
        assert load_scenario(name).name == name


def test_yaml_file_of_a_user_reads_bus_numbers_as_names(tmp_path: Path) -> None:
    file = tmp_path / "city.yaml"
    text = yaml.safe_dump(tiny_content()).replace("bus: '18'", "bus: 18").replace("bus: '33'", "bus: 33")
    assert "bus: 18" in text
    file.write_text(text.replace("pv_profile", "load_profile_at_bus: {7: G0-A}\n  pv_profile"), encoding="utf-8")
    scenario = load_scenario(file)
    assert [bus.bus for bus in scenario.charging_buses] == ["18", "33"]
    assert scenario.profiles_spec.load_profile_at_bus == {"7": "G0-A"}
    assert scenario.charging_bus.tolist() == [17, 32]  # bus 1 of the feeder is row 0
    assert load_scenario(str(file)) == scenario


def test_defaults_are_the_documented_ones() -> None:
    scenario = tiny_scenario()
    assert (scenario.normal_charging.mode, scenario.normal_charging.disaggregation) == ("on_off", "laxity")
    assert scenario.normal_charging.voltage_eur_per_pu == 100.0
    assert (scenario.feeder_spec.vmin_pu, scenario.feeder_spec.vmax_pu) == (0.90, 1.10)
    assert scenario.fleet_spec.request_below_soc_frac == 0.8
    assert scenario.forecast.kind == "perfect"


def test_scenario_survives_a_round_trip_through_its_own_dump() -> None:
    scenario = load_scenario("ieee33_residential")
    dumped = scenario.model_dump(mode="json", by_alias=True)
    assert scenario_from_dict(yaml.safe_load(yaml.safe_dump(dumped))) == scenario


def test_scenario_pickles_and_copies_with_its_cached_parts() -> None:
    scenario = tiny_scenario(n_cars=(3, 2))
    assert len(scenario.fleet) == 5
    for twin in (pickle.loads(pickle.dumps(scenario)), copy.deepcopy(scenario)):
        assert twin == scenario
        np.testing.assert_array_equal(twin.fleet.capacity_kwh, scenario.fleet.capacity_kwh)


def test_scenario_is_frozen_at_every_depth() -> None:
    scenario = tiny_scenario()
    with pytest.raises(ValidationError, match="frozen"):
        scenario.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        scenario.tariff.import_adder_eur_per_kwh = 0.2
    with pytest.raises(ValueError, match="read-only"):
        scenario.charging_bus[0] = 3


def test_installed_power_is_the_sum_of_chargers_and_never_zero() -> None:
    scenario = tiny_scenario(n_cars=(4, 0))
    assert scenario.installed_kw[0] == pytest.approx(scenario.fleet.charge_power_kw.sum())
    assert scenario.installed_kw[1] == 1.0


def test_as_printed_weighs_both_terms_with_omega1() -> None:
    assert tiny_scenario(omega2=3.0).normal_charging.energy_weight == 3.0
    assert tiny_scenario(as_printed=True, omega1_eur_per_kwh=0.5).normal_charging.energy_weight == 0.5


# ----------------------------------------------------------------------------------------------------- files and syntax


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("ieee33_residentail", r"nothing called 'ieee33_residentail'.*did you mean 'ieee33_residential'\?"),
        ("zzz", r"known keys: .*ieee33_residential.*or give the path of a YAML file"),
        ("missing/city.yaml", r"city\.yaml: cannot be read \(No such file or directory\); give a YAML file"),
    ],
)
def test_missing_scenario_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_scenario(name)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: [tiny", r"city\.yaml: is no valid YAML: .*line 1"),
        ("- a\n- b", r"city\.yaml: must hold keys and values, got list"),
        ("", r"city\.yaml: must hold keys and values, got NoneType"),
        ("!!python/object/apply:os.getcwd []", r"city\.yaml: is no valid YAML: could not determine a constructor"),
    ],
)
def test_broken_yaml_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "city.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint):
        load_scenario(file)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "city.yaml"
    file.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigError, match=r"city\.yaml: is no UTF-8 text"):
        load_scenario(file)


# ------------------------------------------------------------------------------------------------------ keys and values


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("tarif", r"^city: tarif is no known key; did you mean 'tariff'\?"),
        ("feeder.vmin", r"city: feeder\.vmin is no known key; did you mean 'vmin_pu'\?"),
        ("tariff.import_adder", r"tariff\.import_adder is no known key; did you mean 'import_adder_eur_per_kwh'\?"),
        ("profiles.load_profile", r"profiles\.load_profile is no known key; did you mean 'load_profiles'\?"),
        ("charging_buses.1.n_car", r"charging_buses\.1\.n_car is no known key; did you mean 'n_cars'\?"),
        ("fleet.worker_share", r"fleet\.worker_share is no known key; did you mean 'worker_share_frac'\?"),
        ("forecast.kinds", r"forecast\.kinds is no known key; did you mean 'kind'\?"),
        ("normal_charging.omega1", r"normal_charging\.omega1 is no known key; did you mean 'omega1_eur_per_kwh'\?"),
        ("forecast.xyz", r"forecast\.xyz is no known key; known keys: kind, noise_correlation_frac"),
        ("feeder_spec", r"feeder_spec is no known key; did you mean 'feeder'\?"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_known_one(path: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        scenario_from_dict(changed(path, 1), "city")


@pytest.mark.parametrize("path", ["name", "feeder", "profiles.pv_profile", "charging_buses", "normal_charging"])
def test_missing_key_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=rf"city: {path} is missing"):
        scenario_from_dict(without(path), "city")


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("name", "a b", r"name: string should match pattern .*, got 'a b'"),
        ("name", "../x", r"name: string should match pattern"),
        ("seed", -1, r"seed: input should be greater than or equal to 0, got -1"),
        ("feeder.source_pu", 12.66, r"feeder\.source_pu: input should be less than or equal to 1\.2, got 12\.66"),
        ("feeder.vmin_pu", 1.05, r"feeder\.vmin_pu: input should be less than 1, got 1\.05"),
        ("feeder.vmax_pu", 0.95, r"feeder\.vmax_pu: input should be greater than 1, got 0\.95"),
        ("profiles.base_load_frac", 80, r"profiles\.base_load_frac: input should be less than or equal to 3, got 80"),
        ("profiles.load_profiles", [], r"profiles\.load_profiles: tuple should have at least 1 item"),
        ("tariff.import_adder_eur_per_kwh", 50, r"input should be less than or equal to 10, got 50"),
        ("tariff.export_fee_eur_per_kwh", -0.1, r"input should be greater than or equal to 0, got -0\.1"),
        (
            "forecast.kind",
            "oracle",
            r"forecast\.kind: input should be 'perfect', 'persistence' or 'noisy', got 'oracle'",
        ),
        ("forecast.noise_correlation_frac", 1.0, r"noise_correlation_frac: input should be less than 1, got 1\.0"),
        ("charging_buses", [], r"charging_buses: tuple should have at least 1 item"),
        ("charging_buses.0.n_cars", -1, r"charging_buses\.0\.n_cars: input should be greater than or equal to 0"),
        ("charging_buses.0.n_cars", 2.5, r"charging_buses\.0\.n_cars: input should be a valid integer"),
        ("charging_buses.0.pv_kw", "6 MW", r"charging_buses\.0\.pv_kw: input should be a valid number.*got '6 MW'"),
        ("charging_buses.0.pv_kw", float("nan"), r"charging_buses\.0\.pv_kw: .*finite number, got nan"),
        ("charging_buses.0.wind_kw", float("inf"), r"charging_buses\.0\.wind_kw: .*finite number, got inf"),
        ("charging_buses.0.bus", 1.5, r"charging_buses\.0\.bus: input should be a valid string, got 1\.5"),
        ("fleet.charger_power_kw", [3.7, 0.0, 11.0], r"fleet\.charger_power_kw\.1: input should be greater than 0"),
        ("fleet.efficiency_frac", 92, r"fleet\.efficiency_frac: input should be less than or equal to 1, got 92"),
        ("fleet.request_below_soc_frac", 0.3, r"request_below_soc_frac: input should be greater than 0\.3, got 0\.3"),
        ("fleet.n_burn_in_days", 3, r"n_burn_in_days: input should be greater than or equal to 7, got 3"),
        ("fleet", "many", r"fleet: input should be .*FleetSpec, got 'many'"),
        ("normal_charging.mode", "onoff", r"normal_charging\.mode: input should be 'on_off' or 'modulated'"),
        ("normal_charging.omega1_eur_per_kwh", -1, r"omega1_eur_per_kwh: input should be greater than or equal to 0"),
        ("normal_charging.disaggregation", "price", r"input should be 'laxity' or 'price_laxity', got 'price'"),
        ("normal_charging.voltage_eur_per_pu", 1e7, r"voltage_eur_per_pu: input should be less than or equal to"),
    ],
)
def test_value_of_the_wrong_type_or_range_is_refused(path: str, value: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        scenario_from_dict(changed(path, value), "city")


def test_all_complaints_come_at_once() -> None:
    content = changed("feeder.vmin", 0.9)
    content["seed"] = "x"
    with pytest.raises(ConfigError) as caught:
        scenario_from_dict(content, "city")
    assert [line.split(" ")[1].rstrip(":") for line in str(caught.value).splitlines()] == ["seed", "feeder.vmin"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"charger_share_frac": [0.5, 0.5]},
            r"fleet: charger_share_frac must have one entry per charger_power_kw, got 2 and 3",
        ),
        ({"charger_share_frac": [0.5, 0.5, 0.5]}, r"fleet: charger_share_frac must sum to 1, got 1\.5"),
        (
            {"consumption_min_kwh_per_km": 0.3},
            r"consumption_min_kwh_per_km must not exceed consumption_max_kwh_per_km, got 0\.3 and 0\.22",
        ),
    ],
)
def test_fleet_statistics_that_contradict_each_other_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        scenario_from_dict(changed("fleet", change))


def test_as_printed_has_one_weight() -> None:
    with pytest.raises(ConfigError, match=r"normal_charging: omega2 must be 1 when as_printed is true.*got 2"):
        tiny_scenario(as_printed=True, omega2=2.0)


# ------------------------------------------------------------------------------------ what the feeder and the year have


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (
            "charging_buses.1.bus",
            "99",
            r"charging_buses\.1\.bus must be a bus of feeder 'synthetic33' \(1\.\.33\), got '99'",
        ),
        ("charging_buses.0.bus", 1, r"charging_buses\.0\.bus must not be the source bus, got '1'"),
        ("charging_buses.1.bus", 18, r"charging_buses\.1\.bus must not come twice, got '18'"),
        (
            "profiles.load_profile_at_bus",
            {40: "H0-A"},
            r"profiles\.load_profile_at_bus\.40 must be a bus of the feeder",
        ),
        (
            "profiles.load_profile_at_bus",
            {4: "HO-A"},
            r"profiles\.load_profile_at_bus: there is no profile 'HO-A'; did you mean 'H0-A'\?",
        ),
        (
            "profiles.load_profiles",
            ["lv_rural"],
            r"profiles\.load_profiles: there is no profile 'lv_rural'; did you mean",
        ),
        ("profiles.pv_profile", "PV44", r"profiles\.pv_profile: there is no profile 'PV44'; did you mean 'PV4'\?"),
        ("profiles.wind_profile", "XX", r"profiles\.wind_profile: there is no profile 'XX'; known keys: WP12, WP4"),
        ("feeder.name", "synthetic34", r"synthetic33"),
    ],
)
def test_names_that_do_not_exist_are_refused(path: str, value: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        scenario_from_dict(changed(path, value), "city")


def test_year_without_profiles_is_refused() -> None:
    with pytest.raises(DataError, match=r"year must be one of \[2016\], got 2023"):
        scenario_from_dict(changed("profiles.year", 2023))


def test_export_plus_network_fee_must_stay_below_import() -> None:
    # import - export - fee = adder + min(spot, export fee) - network fee: 0.002 + 0.01 - 0.02 < 0 where spot > 0.01
    tariff = {"import_adder_eur_per_kwh": 0.002, "export_fee_eur_per_kwh": 0.01, "network_fee_eur_per_kwh": 0.02}
    with pytest.raises(
        ConfigError, match=r"export \+ network fee must stay below import in every hour of 2016.*margin -0"
    ):
        scenario_from_dict(changed("tariff", tariff))


def test_shipped_tariffs_leave_a_margin_in_every_half_hour() -> None:
    scenario = load_scenario("ieee33_residential")
    spot = scenario.profiles.price_eur_per_kwh
    import_price = spot + scenario.tariff.import_adder_eur_per_kwh
    export_price = np.maximum(0.0, spot - scenario.tariff.export_fee_eur_per_kwh)
    assert (export_price + scenario.tariff.network_fee_eur_per_kwh < import_price).all()


def test_nearest_key_or_all_keys() -> None:
    assert nearest("colour", ["color", "size"]) == "; did you mean 'color'?"
    assert nearest("zz", ["color", "size"]) == "; known keys: color, size"


def test_validated_names_the_whole_file_where_no_key_is_to_blame() -> None:
    with pytest.raises(ConfigError, match=r"^city: input should be a valid dictionary or instance of Scenario, got 3"):
        validated(Scenario, 3, "city")  # type: ignore[arg-type]
