"""What a city is like under a rule: competition by hand, the default city, the other cities."""

import json

import numpy as np
import pytest
import yaml
from envs_fixtures import tiny_content
from typer.testing import CliRunner

from evcs_gym.envs import load_scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.road_specs import ResponsiveSpec
from evcs_gym.evaluation import cli
from evcs_gym.evaluation.city import CityTable, city_table, competition_of


@pytest.fixture(scope="module")
def default_city() -> CityTable:
    return city_table(load_scenario("ieee33_twelve"))


def test_a_seller_is_pivotal_if_the_others_cannot_serve_the_demand() -> None:
    offers = np.array(
        [
            [60.0, 60.0, -50.0],  # each of the two alone is enough
            [60.0, 40.0, -50.0],  # without the first 10 are missing
            [60.0, 40.0, -100.0],  # not more than is asked for
            [90.0, 0.0, -50.0],  # one seller
            [90.0, 90.0, 0.0],  # nobody buys
        ]
    )
    competition, pivotal = competition_of(offers)
    assert competition.tolist() == [True, True, False, False, False]
    assert pivotal.tolist() == [False, True, False, False, False]


def test_in_the_default_city_bidding_storage_and_network_matter(default_city: CityTable) -> None:
    """The truthful rule on the 50 test days; docs/scenarios.md shows the figures."""
    assert (default_city.n_days, default_city.policy) == (50, "dp_truthful")
    assert default_city.binding_days_frac >= 0.15
    assert min(default_city.undervoltage_days_frac, default_city.overvoltage_days_frac) > 0.0
    assert default_city.trade_frac >= 0.10
    assert default_city.competition_slots_frac >= 0.15
    assert 0.10 <= default_city.pivotal_frac <= 0.40


def test_days_bind_where_some_limit_was_broken(default_city: CityTable) -> None:
    parts = [value for key, value in default_city.as_dict().items() if key.endswith("_days_frac")]
    whole, *each = (float(part) for part in parts)
    assert max(each) <= whole <= sum(each)


@pytest.mark.parametrize(
    ("name", "n_stations", "n_buses", "n_nodes"),
    [("ieee33_twelve", 8, 33, 12), ("nguyen_dupuis_33", 6, 33, 13), ("ieee123_grid24", 20, 131, 24)],
)
def test_every_shipped_city_keeps_room_for_its_stations_and_plays_a_day(
    name: str, n_stations: int, n_buses: int, n_nodes: int
) -> None:
    city = load_scenario(name)
    assert (len(city.stations), len(city.feeder), city.roads.n_nodes) == (n_stations, n_buses, n_nodes)
    assert city.check("test", n_days=4).worst.room_pu >= 0.005
    table = city_table(city, n_days=1)
    assert 0.0 < table.trade_frac < 1.0
    assert table.unserved_kwh_per_day < 0.01 * table.ev_kwh_per_day


def test_idle_storage_trades_and_unserved_energy_are_counted() -> None:
    table = city_table(load_scenario("ieee33_twelve"), "idle", n_days=2, split="validation")
    assert (table.policy, table.n_days, table.split, table.n_stations, table.n_buses) == (
        "idle",
        2,
        "validation",
        8,
        33,
    )
    assert 0.0 < table.trade_frac < 1.0
    assert table.community_eur_per_day > 0.0


def test_the_command_prints_the_table() -> None:
    runner = CliRunner()
    done = runner.invoke(cli.app, ["city", "ieee33_twelve", "--policy", "idle", "--days", "1", "--json"])
    content = json.loads(done.stdout)
    assert (content["scenario"], content["policy"], content["n_days"]) == ("ieee33_twelve", "idle", 1)
    plain = runner.invoke(cli.app, ["city", "ieee33_twelve", "--policy", "idle", "--days", "1"])
    assert "trade_frac" in plain.stdout


def test_bad_questions_are_refused() -> None:
    city = load_scenario("ieee33_twelve")
    with pytest.raises(ConfigError, match=r"city: there is no market rule 'dp_trutful'.*dp_truthful"):
        city_table(city, "dp_trutful")
    responsive = city.model_copy(update={"responsive_demand": ResponsiveSpec()})
    with pytest.raises(ConfigError, match="city: responsive_demand must be off"):
        city_table(responsive)
    with pytest.raises(ConfigError, match="city: n_days must be at least 1, got 0"):
        city_table(city, n_days=0)


def test_a_city_without_stations_is_refused(tmp_path: object) -> None:
    from evcs_gym.envs.scenario import scenario_from_dict

    content = yaml.safe_load(yaml.safe_dump(tiny_content()))
    with pytest.raises(ConfigError, match="stations is no section of this scenario"):
        city_table(scenario_from_dict(content), n_days=1)
