"""The speed rows: their arithmetic, their shape, and what happens where a peer is not installed."""

import logging
import sys
import time

import numpy as np
import pytest

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.grid import power_flow
from evcs_gym.evaluation.figures import growth_figure
from evcs_gym.evaluation.speed import SpeedRow, median_seconds, speed_power_flow, synthetic_tree


def test_median_of_calls() -> None:
    seconds = median_seconds(lambda: time.sleep(0.01), min_seconds=0.0, min_calls=3)
    assert 0.01 <= seconds < 0.1


def test_own_rows_stand_alone_where_no_peer_is_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "power_grid_model", None)
    monkeypatch.setitem(sys.modules, "pandapower", None)
    with caplog.at_level(logging.WARNING):
        rows = speed_power_flow(batches=(1, 3), min_seconds=0.0, growth_buses=(), growth_feeders=())
    assert [(row.name, row.case, row.buses, row.batch) for row in rows] == [
        ("evcs-gym", "synthetic33", 33, 1),
        ("evcs-gym", "synthetic33", 33, 3),
    ]
    for row in rows:
        assert row.seconds_per_item * row.items_per_second == pytest.approx(1.0)
    assert "power-grid-model is not installed" in caplog.text
    assert "pandapower is not installed" in caplog.text


def test_power_grid_model_gets_a_row_for_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandapower", None)
    rows = [
        row
        for row in speed_power_flow((1, 2), 0.0, growth_buses=(), growth_feeders=())
        if row.name == "power-grid-model"
    ]
    assert [row.batch for row in rows] == [1, 2]
    assert all(row.case.startswith("synthetic33, ") for row in rows)
    assert all(row.times_own > 1.0 for row in rows)


def test_trees_of_every_size_are_equally_hard_and_get_a_row() -> None:
    lowest = []
    for n_buses in (40, 400):
        feeder = synthetic_tree(n_buses)
        lowest.append(abs(power_flow(feeder, feeder.load_kva[None]).voltage_pu).min())
    assert lowest == pytest.approx([0.947, 0.947], abs=2e-3)  # 0.95 without losses
    *trees, shipped = speed_power_flow((1,), 0.0, growth_buses=(40, 60))[-3:]
    assert [row.buses for row in trees] == [40, 60]
    assert all(row.case.startswith("tree") for row in trees)
    assert shipped.buses == 131
    assert shipped.case.startswith("ieee123, ")


def test_the_growth_figure_has_a_point_for_every_tree() -> None:
    rows = [SpeedRow("evcs-gym", f"tree{n}", n, 64, n * 1e-7, 1e7 / n) for n in (33, 66)]
    axes = growth_figure(rows).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[33, 3.3], [66, 6.6]])
    with pytest.raises(DataError, match="needs rows of at least two trees"):
        growth_figure(rows[:1])


def test_a_row_as_plain_values() -> None:
    assert SpeedRow("x", "y", 33, 2, 0.5, 2.0, 3.0).as_dict() == {
        "name": "x",
        "case": "y",
        "buses": 33,
        "batch": 2,
        "seconds_per_item": 0.5,
        "items_per_second": 2.0,
        "times_own": 3.0,
    }


@pytest.mark.parametrize("batches", [(), (0, 4)])
def test_empty_batches_are_refused(batches: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="every batch must hold at least one case"):
        speed_power_flow(batches=batches)
