"""The speed rows: their arithmetic, their shape, and what happens where a peer is not installed."""

import logging
import sys
import time

import pytest

from evcs_gym.envs.errors import ConfigError
from evcs_gym.evaluation.speed import SpeedRow, median_seconds, speed_power_flow


def test_median_of_calls() -> None:
    seconds = median_seconds(lambda: time.sleep(0.01), min_seconds=0.0, min_calls=3)
    assert 0.01 <= seconds < 0.1


def test_own_rows_stand_alone_where_no_peer_is_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "power_grid_model", None)
    monkeypatch.setitem(sys.modules, "pandapower", None)
    with caplog.at_level(logging.WARNING):
        rows = speed_power_flow(batches=(1, 3), min_seconds=0.0)
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
    rows = [row for row in speed_power_flow(batches=(1, 2), min_seconds=0.0) if row.name == "power-grid-model"]
    assert [row.batch for row in rows] == [1, 2]
    assert all(row.case.startswith("synthetic33, ") for row in rows)


def test_a_row_as_plain_values() -> None:
    assert SpeedRow("x", "y", 33, 2, 0.5, 2.0).as_dict() == {
        "name": "x",
        "case": "y",
        "buses": 33,
        "batch": 2,
        "seconds_per_item": 0.5,
        "items_per_second": 2.0,
    }


@pytest.mark.parametrize("batches", [(), (0, 4)])
def test_empty_batches_are_refused(batches: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="every batch must hold at least one case"):
        speed_power_flow(batches=batches)
