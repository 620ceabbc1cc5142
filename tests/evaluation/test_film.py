"""A day of the market as an animated picture, from the command line."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from evcs_gym.envs import Scenario, load_scenario
from evcs_gym.envs.errors import ConfigError
from evcs_gym.evaluation import cli, film


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of one colour, brighter with the slot: drawing is tested elsewhere."""
    monkeypatch.setattr(film, "draw_frame", lambda scene: np.full((20, 30, 3), 5 * scene.slot, dtype=np.uint8))


@pytest.fixture(scope="module")
def city() -> Scenario:
    """The default city."""
    return load_scenario("ieee33_twelve")


@pytest.mark.usefixtures("quick")
def test_the_command_writes_all_slots_of_a_day(tmp_path: Path) -> None:
    out = tmp_path / "new" / "day.gif"
    done = CliRunner().invoke(cli.app, ["render", "--policy", "idle", "--day", "3", "--out", str(out)])
    assert (done.exit_code, done.stdout.strip()) == (0, str(out))
    with Image.open(out) as picture:
        shown_ms = 0
        for frame in range(picture.n_frames):  # type: ignore[attr-defined]
            picture.seek(frame)
            shown_ms += picture.info["duration"]
        assert shown_ms == 48 * 250


def test_scenes_follow_the_rule(city: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes: list[film.Scene] = []
    monkeypatch.setattr(film, "draw_frame", lambda scene: scenes.append(scene) or np.zeros((2, 2, 3), dtype=np.uint8))
    day = city.day(3, "test")
    assert len(list(film.day_frames(city, day, film.rule_called("idle")))) == 48
    assert [scene.slot for scene in scenes] == list(range(48))
    assert [len(scene.price_eur_per_kwh) for scene in scenes] == list(range(1, 49))
    start = city.stations.energy_start_kwh
    np.testing.assert_allclose(scenes[0].energy_kwh, start * (1.0 - city.stations.self_discharge_frac))
    capped = np.any([np.isfinite(scene.outcome.cap_kw).any() for scene in scenes if scene.outcome is not None])
    assert scenes[-1].energy_kwh.max() <= start.max() or capped  # idle storage only loses


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy", "dp_truthfull"), "there is no rule 'dp_truthfull'.*dp_truthful"),
        (("--frames-per-s", "0"), r"frames_per_s must be in 0.1..50.0, got 0.0"),
        (("--scenario", "ieee33_residential"), "no section of this scenario|has no stations"),
        (("--out", "/dev/null/day.gif"), "cannot be written"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(cli.app, ["render", "--out", "runs/never.gif", *arguments])
    assert done.exit_code == cli.EXIT_ERROR
    assert re.search(words, " ".join(done.stderr.split()))


def test_rules_are_found_by_name() -> None:
    with pytest.raises(ConfigError, match="there is no rule 'none'"):
        film.rule_called("none")
