"""The tiny city of the training tests."""

from pathlib import Path

import pytest
from training_fixtures import tiny_city

from evcs_gym.envs import Scenario, load_scenario
from evcs_gym.envs.fleet.normal import World, make_world


@pytest.fixture(scope="session")
def city_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YAML file of the tiny city."""
    return tiny_city(tmp_path_factory.mktemp("city"))


@pytest.fixture(scope="session")
def city(city_file: Path) -> Scenario:
    """The tiny city."""
    return load_scenario(city_file)


@pytest.fixture(scope="session")
def world(city: Scenario) -> World:
    """Four days of it."""
    return make_world(city, city.days(range(4)))
