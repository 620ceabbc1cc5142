"""The speed rows of traffic, and the synthetic networks they are measured on."""

import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.traffic import assign, load_roads, synthetic_roads
from evcs_gym.evaluation import speed_traffic as timing
from evcs_gym.evaluation.speed import SpeedRow

PEER = """#!{python}
import json, numpy as np, sys
data = np.load(sys.argv[3])
flow = np.zeros(len(data["tail"]))
print("RESULT " + json.dumps({{"seconds": 2.0, "gap": 1e-6, "flow": flow.tolist()}}))
"""


def peer(folder: Path, text: str) -> str:
    """A program that answers as a Python with AequilibraE would."""
    program = folder / "peer"
    program.write_text(text.format(python=sys.executable), encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def test_a_synthetic_network_is_its_seeds_and_reaches_a_tight_gap() -> None:
    roads, same, other = (synthetic_roads(120, 16, seed) for seed in (3, 3, 4))
    assert (roads.n_nodes, roads.n_closed, roads.n_pairs) == (120, 16, 16 * 15)
    assert np.array_equal(roads.demand_veh_per_h, same.demand_veh_per_h)
    assert not np.array_equal(roads.demand_veh_per_h, other.demand_veh_per_h)
    assert assign(roads, relative_gap=1e-12).converged


def test_the_demand_of_a_synthetic_network_loads_its_streets_as_asked() -> None:
    roads = synthetic_roads(120, 16, mean_load_frac=0.25)
    empty = assign(roads.with_demand(1e-9 * roads.demand_veh_per_h), relative_gap=0.5)
    street = (roads.tail >= 16) & (roads.head >= 16)
    load = 1e9 * empty.link_flow_veh_per_h[street] / roads.capacity_veh_per_h[street]
    assert load.mean() == pytest.approx(0.25)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 zones and 9 crossings are needed, got 1 and 99"):
        synthetic_roads(100, 1)
    with pytest.raises(ConfigError, match="mean_load_frac must be positive, got 0"):
        synthetic_roads(100, 9, mean_load_frac=0.0)


def test_rows_stand_alone_without_data_and_peer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(timing.REFERENCE_DATA, raising=False)
    monkeypatch.delenv(timing.PEER_PYTHON, raising=False)
    monkeypatch.setattr(timing, "_SIZES", ((60, 8), (100, 12)))
    monkeypatch.setattr(timing, "_PEER_SIZE", (60, 8))
    monkeypatch.setattr(timing, "_batch_row", lambda *_: timing._row("b", load_roads("city12"), 2, 1e-7, 1.0))
    monkeypatch.setattr(timing, "_days_row", lambda queue: timing._row(queue, load_roads("city12"), 4, 1e-7, 1.0))
    rows = timing.speed_traffic(min_seconds=0.0)
    assert [(row.nodes, row.batch) for row in rows[:4]] == [(60, 1), (60, 1), (100, 1), (100, 1)]
    assert [row.case for row in rows[8:10]] == ["davidson", "erlang"]
    assert rows[-1].case.startswith("city12, answer to prices")
    assert all(row.seconds_per_item * row.items_per_second == pytest.approx(1.0) for row in rows)
    assert list(rows[0].as_dict())[:6] == list(SpeedRow.__dataclass_fields__)[:6]
    assert all(row.as_dict()["buses"] is None for row in rows)
    assert "SiouxFalls_net.tntp, its rows are left out" in caplog.text
    assert "the rows of AequilibraE are left out" in caplog.text


def test_the_peer_gets_the_network_and_its_answer_becomes_a_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(timing.PEER_PYTHON, peer(tmp_path, PEER))
    (row,) = timing._peer_rows("braess", load_roads("braess"))
    assert (row.name, row.seconds_per_item, row.relative_gap) == ("AequilibraE", 2.0, 1e-6)
    assert "Beckmann -1.0e+00 above the least" in row.case  # it answered with flows of zero


def test_a_peer_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="AequilibraE must give a result, it said: no luck"):
        timing.run_peer(peer(tmp_path, "#!{python}\nimport sys\nsys.exit('no luck')\n"), load_roads("braess"))


def test_a_peer_that_takes_too_long_is_left_out_with_a_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(timing, "_PEER_LIMIT_S", 0.2)
    monkeypatch.setenv(timing.PEER_PYTHON, peer(tmp_path, "#!{python}\nimport time\ntime.sleep(30)\n"))
    assert timing._peer_rows("braess", load_roads("braess")) == []
    assert "AequilibraE has not ended on braess within 0.2 s, its row is left out" in caplog.text
