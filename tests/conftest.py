"""What all tests share: a cache of their own, the shipped scenario and a tiny city."""

from collections.abc import Iterator

import pytest
from envs_fixtures import model_city_content, tiny_scenario

from evcs_gym.envs import Scenario, load_scenario
from evcs_gym.envs.scenario import scenario_from_dict


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Pools and references of the tests lie in a folder of their own, never in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVCS_GYM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shipped_scenario() -> Scenario:
    """The default city."""
    return load_scenario("ieee33_residential")


@pytest.fixture(scope="session")
def small_scenario() -> Scenario:
    """Two charging buses of the 33-bus feeder, six cars: real days that play fast."""
    return tiny_scenario(n_cars=(12, 6))


@pytest.fixture(scope="session")
def model_city() -> Scenario:
    """A tap changer, two capacitor banks and nominal limits of all four kinds."""
    return scenario_from_dict(model_city_content())
