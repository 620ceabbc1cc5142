"""The speed of fast charging: what is measured, and figures that only a broken step would miss."""

import numpy as np
import pytest

from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.fleet import fast
from evcs_gym.evaluation import speed_fast as timing


def test_rows_show_steps_and_slots() -> None:
    rows = {(row.case, row.batch): row for row in timing.speed_fast(batches=(8,), min_seconds=0.0, n_cars=3000)}
    assert set(rows) == {
        ("batched", 8),
        ("gymnasium", 1),
        ("reset", 1),
        ("slot of 3000 cars, request by request", 1),
        ("slot of 3000 cars, at once", 1),
    }
    for row in rows.values():
        assert row.items_per_second == pytest.approx(1.0 / row.seconds_per_item)
        assert list(row.as_dict())[:6] == ["name", "case", "buses", "batch", "seconds_per_item", "items_per_second"]
    # a tenth of what a loaded machine reaches
    assert rows["batched", 8].items_per_second > 2000.0
    assert rows["gymnasium", 1].items_per_second > 300.0
    assert rows["slot of 3000 cars, at once", 1].items_per_second > 200.0


def test_a_city_of_more_cars_has_plugs_in_proportion_and_its_plan_is_allowed() -> None:
    city = timing.city_of(5000)
    cars, plugs = sum(home.n_cars for home in city.charging_buses), city.fast_stations.n_plugs.sum()
    assert cars == pytest.approx(5000, abs=10)
    assert plugs == pytest.approx(32 * 2, abs=3)
    world = fast.make_fast_world(city, [city.day(0)])
    plan = timing.nearest_plan(world)
    assert len(plan) == world.n_requests[0]
    result = fast.replay(city, city.day(0), plan)
    assert (np.bincount(plan, minlength=6)[:5] > 0).all()
    assert result.cost_eur > 0.0


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"speed fast: every batch must hold at least one environment, got \[0\]"):
        timing.speed_fast(batches=(0,))
