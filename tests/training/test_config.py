"""Presets: what ships is valid, and every mistake is named with the way out."""

from pathlib import Path

import pytest

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.scenario import load_scenario
from evcs_gym.envs.specs import shipped
from evcs_gym.training.config import Preset, load_preset

PRESET = "normal_charging"


@pytest.mark.parametrize("name", shipped("training"))
def test_every_shipped_preset_names_itself_and_a_scenario_that_loads(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert load_scenario(preset.scenario).name == preset.scenario


@pytest.mark.parametrize("name", shipped("training"))
def test_a_preset_survives_json(name: str) -> None:
    preset = load_preset(name)
    assert Preset.model_validate(preset.model_dump(mode="json")) == preset


def test_a_preset_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nppo:\n  learning_rate_start: 1e-3\n", encoding="utf-8")
    preset = load_preset(path, ["total_steps=1000"])
    assert (preset.name, preset.total_steps, preset.ppo.learning_rate_start) == ("mine", 1000, 1e-3)


def test_set_reaches_sections_and_leaves_the_rest() -> None:
    preset = load_preset(PRESET, ["ppo.gamma=0.99", "validation.n_days=3", "rows=environments"])
    plain = load_preset(PRESET)
    assert (preset.ppo.gamma, preset.validation.n_days, preset.rows) == (0.99, 3, "environments")
    assert preset.ppo.model_copy(update={"gamma": plain.ppo.gamma}) == plain.ppo
    assert preset.validation.every_rollouts == plain.validation.every_rollouts


@pytest.mark.parametrize(
    ("assignment", "value"), [("ppo.learning_rate_start=1e-3", 1e-3), ("ppo.learning_rate_start=.002", 0.002)]
)
def test_set_reads_numbers_as_people_write_them(assignment: str, value: float) -> None:
    assert load_preset(PRESET, [assignment]).ppo.learning_rate_start == value


def test_set_reads_powers_of_ten_as_counts_and_lists_as_lists() -> None:
    preset = load_preset(PRESET, ["total_steps=1e5", "ppo.hidden_units=[32, 16]"])
    assert (preset.total_steps, preset.ppo.hidden_units) == (100_000, (32, 16))


def test_set_opens_a_section_that_is_null(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nclone: null\n", encoding="utf-8")
    assert load_preset(path).clone is None
    cloned = load_preset(path, ["clone.n_passes=2"]).clone
    assert cloned is not None
    assert cloned.n_passes == 2


def test_later_settings_win() -> None:
    assert load_preset(PRESET, ["n_envs=3", "n_envs=5"]).n_envs == 5


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("totalsteps=5", "normal_charging.yaml: totalsteps is no known key; did you mean 'total_steps'"),
        ("ppo.learning_rate=1", "ppo.learning_rate is no known key; did you mean 'learning_rate_"),
        ("validation.ndays=1", "validation.ndays is no known key; did you mean 'n_days'"),
        ("clone.n_pass=1", "clone.n_pass is no known key; did you mean 'n_passes'"),
        ("total_steps=0", "total_steps: input should be greater than or equal to 1, got 0"),
        ("total_steps=many", "total_steps: input should be a valid integer.*got 'many'"),
        ("ppo.gamma=1.5", "ppo.gamma: input should be less than or equal to 1, got 1.5"),
        ("ppo.batch_size=1", "ppo.batch_size: input should be greater than or equal to 2"),
        ("ppo.n_steps=1", "ppo.n_steps: input should be greater than or equal to 2"),
        ("ppo.learning_rate_end=0.1", "ppo: learning_rate_end must not exceed learning_rate_start, got 0.1 and 0.0004"),
        ("ppo.learning_rate_start=.inf", "ppo.learning_rate_start: input should be a finite number"),
        ("ppo.hidden_units=[]", "ppo.hidden_units: .*at least 1"),
        ("validation.n_days=37", "validation.n_days: input should be less than or equal to 36"),
        ("reward_scale_per_eur=-1", "reward_scale_per_eur: input should be greater than 0"),
        ("rows=cars", "rows: input should be 'buses', 'stations' or 'environments', got 'cars'"),
        ("total_steps", "--set takes key=value, got 'total_steps'"),
        ("=3", "--set takes key=value, got '=3'"),
        ("n_envs.deep=3", "n_envs: input should be a valid integer"),
        ("name.deep=3", "--set name.deep=3: 'name' is no section"),
        ("ppo.gamma=[1", r"--set ppo.gamma=\[1: the value is no valid YAML"),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_preset(PRESET, [assignment])


def test_a_joint_policy_cannot_be_cloned() -> None:
    with pytest.raises(ConfigError, match=r"clone needs rows: buses, got environments"):
        load_preset("normal_charging_warm", ["rows=environments"])


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"nothing called 'normal_chargin'.*did you mean 'normal_charging'"):
        load_preset("normal_chargin")


def test_a_preset_without_a_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("total_steps: 10\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine.yaml: name is missing"):
        load_preset(path)
