"""The speed of the market: what is measured, and figures that only a broken step would miss."""

import pytest

from evcs_gym.envs.errors import ConfigError
from evcs_gym.evaluation import speed_market as timing


def test_rows_show_steps_of_environments_agents_and_buses() -> None:
    rows = {(row.case, row.batch): row for row in timing.speed_market(batches=(8,), min_seconds=0.0)}
    assert set(rows) == {
        ("prepared_traffic", 8),
        ("responsive_demand", 8),
        ("gymnasium", 1),
        ("pettingzoo", 1),
        ("reset", 1),
    }
    for row in rows.values():
        assert row.items_per_second == pytest.approx(1.0 / row.seconds_per_item)
        assert row.agent_steps_per_second == pytest.approx(8 * row.items_per_second)
        assert row.bus_steps_per_second == pytest.approx(33 * row.items_per_second)
        assert list(row.as_dict())[:6] == ["name", "case", "buses", "batch", "seconds_per_item", "items_per_second"]
    # a tenth of what a loaded machine reaches
    assert rows["prepared_traffic", 8].items_per_second > 2000.0
    assert rows["responsive_demand", 8].items_per_second > 500.0
    assert rows["gymnasium", 1].items_per_second > 200.0


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"speed market: every batch must hold at least one environment, got \[0\]"):
        timing.speed_market(batches=(0,))
