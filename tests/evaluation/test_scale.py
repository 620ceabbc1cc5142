"""Scale: cities of many small cars, cells in processes, a file that goes on, and what happens when time is over."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.fleet.needs import session_needs
from evcs_gym.evaluation import scale
from evcs_gym.evaluation.cli import app
from evcs_gym.evaluation.scale import CELLS, ScaleRow, city_of, day_of, main, measure, scale_table


@pytest.mark.parametrize("world", CELLS)
def test_the_same_energy_is_split_among_more_cars(world: str) -> None:
    small, large = city_of(world, 300), city_of(world, 3000)
    assert sum(bus.n_cars for bus in large.charging_buses) == pytest.approx(3000, abs=4)
    battery = [day_of(city, world).sessions.capacity_kwh.mean() for city in (small, large)]
    assert battery[0] / battery[1] == pytest.approx(10.0, rel=0.1)
    if world == "fast_charging":
        power = [float(city.fast_stations.n_plugs @ city.fast_stations.plug_kw) for city in (small, large)]
        assert power[0] == pytest.approx(power[1])


def test_a_smaller_car_needs_as_many_slots() -> None:
    city = city_of("normal_charging", 2000)
    plain, small = city.day(0, "test").sessions, day_of(city, "normal_charging").sessions
    for mode in ("on_off", "modulated"):
        assert session_needs(small, mode).n_slots.tolist() == session_needs(plain, mode).n_slots.tolist()


@pytest.mark.parametrize(("world", "cell"), [(world, cell) for world, cells in CELLS.items() for cell in cells])
def test_every_cell_measures(world: str, cell: str) -> None:
    row = measure(world, 60, cell, 20.0)
    assert (row.world, row.n_cars, row.cell, row.status) == (world, 60, cell, "done")
    assert row.seconds >= 0.0
    assert row.memory_mib > 50.0
    if cell in ("exact", "bound"):
        assert row.bound_eur <= row.cost_eur + 1e-6
    json.dumps(row.as_dict(), allow_nan=False)


def row_of(world: str, n_cars: int, cell: str, status: str = "done") -> ScaleRow:
    return ScaleRow(world, n_cars, cell, 5, 1.0, np.nan, 100.0, 2.0, 1.0, status)


def test_what_is_known_is_not_measured_again_and_bounds_only_where_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def played(world: str, n_cars: int, cell: str, _limit_s: float) -> ScaleRow:
        asked.append((world, cell))
        return row_of(
            world, n_cars, cell, "time_limit at 3 %" if (world, cell) == ("fast_charging", "exact") else "done"
        )

    monkeypatch.setattr(scale, "_in_a_process", played)
    first = scale_table([10], 5.0, tmp_path)
    assert ("normal_charging", "bound") not in asked  # the exact plan is proven
    assert ("fast_charging", "bound") in asked
    n_asked = len(asked)
    again = scale_table([10], 5.0, tmp_path)
    assert len(asked) == n_asked
    assert [row.as_dict() for row in again] == [row.as_dict() for row in first]
    (tmp_path / "scale.json").write_text("[{}]")
    with pytest.raises(DataError, match=r"scale.json: must hold rows of scale, got 'world'; delete it"):
        scale_table([10], 5.0, tmp_path)


def test_cells_that_fail_or_take_too_long_are_rows_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = scale._in_a_process("normal_charging", 60, "no_such_cell", 5.0)
    assert failed.status == "failed: scale: 'normal_charging' has no cell 'no_such_cell'"
    monkeypatch.setattr(scale, "START_S", 0.1)
    monkeypatch.setattr(scale, "STOP_S", 0.5)
    stopped = scale._in_a_process("normal_charging", 60, "exact", 0.1)
    assert stopped.status == "stopped after 0 s"
    assert stopped.as_dict()["cost_eur"] is None


def test_the_program_prints_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["normal_charging", "60", "environment", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["cell"] == "environment"
    assert main(["normal_charging", "60", "nothing", "5"]) == 1


def test_impossible_sizes_and_times_are_refused() -> None:
    with pytest.raises(ConfigError, match="scale: cars and limit_s must be positive, got \\[\\] and 5"):
        scale_table([], 5.0)
    with pytest.raises(ConfigError, match="scale: cars and limit_s must be positive"):
        scale_table([10], 0.0)


def test_a_planner_without_time_says_how_far_it_came() -> None:
    row = measure("fast_charging", 60, "slot_optimum", 1e-9)
    assert row.status == "stopped after 1 decisions"
    assert np.isnan(row.cost_eur)
    assert measure("normal_charging", 60, "water_filling", 1e-9).ms_per_slot > 0.0


def test_the_command_prints_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: Any = [row_of("normal_charging", 10, "environment")]
    monkeypatch.setattr(scale, "scale_table", lambda *_: rows)
    done = CliRunner().invoke(app, ["scale", "--cars", "10", "--limit-s", "5", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["rows"][0]["gap"] == pytest.approx(0.5)
    assert "environment" in CliRunner().invoke(app, ["scale", "--cars", "10"]).stdout
