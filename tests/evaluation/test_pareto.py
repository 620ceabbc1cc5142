"""The sweep over the two weights: fronts that fall, the scenario's own weights in the middle, and what is refused."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from fast_fixtures import fast_scenario
from typer.testing import CliRunner

from evcs_gym.baselines.reference import lower_bound_eur
from evcs_gym.envs import Scenario
from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.evaluation import cli
from evcs_gym.evaluation.figures import pareto_figure, svg_text
from evcs_gym.evaluation.pareto import RELATIVE_GAP, ParetoPoint, pareto, printed

SHARES = (0.02, 0.2, 0.5, 0.98)


@pytest.fixture(scope="module")
def tiny() -> Scenario:
    return fast_scenario((30, 20))


@pytest.fixture(scope="module")
def normal_points(tiny: Scenario) -> list[ParetoPoint]:
    return pareto("normal_charging", tiny, 2, balances=("exchange", "peak"), shares=SHARES)


def test_more_weight_on_balance_never_costs_balance_and_never_saves_money(normal_points: list[ParetoPoint]) -> None:
    own = [point for point in normal_points if point.balance == "exchange"]
    assert [point.share for point in own] == list(SHARES)
    for less, more in pairwise(own):
        assert more.exchange_kwh <= less.exchange_kwh + 1e-4
        assert more.charging_eur >= less.charging_eur - 1e-4
    assert own[0].unabsorbed_kwh > own[-1].unabsorbed_kwh


def test_the_exchange_falls_by_twice_what_is_absorbed(normal_points: list[ParetoPoint]) -> None:
    first, last = normal_points[0], normal_points[3]
    fall = first.exchange_kwh - last.exchange_kwh
    assert fall == pytest.approx(2.0 * (first.unabsorbed_kwh - last.unabsorbed_kwh), abs=1e-3)


def test_the_peak_is_lower_where_it_is_the_aim(normal_points: list[ParetoPoint]) -> None:
    assert normal_points[-1].balance == "peak"
    assert normal_points[-1].peak_kw < normal_points[3].peak_kw


def test_in_the_middle_stand_the_weights_of_the_scenario(tiny: Scenario, normal_points: list[ParetoPoint]) -> None:
    bounds = [lower_bound_eur(tiny, tiny.day(seed, "test"), "normal_charging") for seed in range(2)]
    assert normal_points[2].objective_eur == pytest.approx(sum(bounds) / 2)


def test_fast_charging_has_a_front_too_and_every_point_its_gap(tiny: Scenario) -> None:
    seen: list[tuple[int, int]] = []
    points = pareto(
        "fast_charging", tiny, 1, shares=(0.02, 0.5), listener=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 2), (2, 2)]
    assert points[1].exchange_kwh <= points[0].exchange_kwh + 1e-3
    for point in points:
        assert point.relative_gap <= RELATIVE_GAP
        assert point.bound_eur <= point.objective_eur + 1e-6


def test_as_printed_takes_the_weights_of_the_paper(tiny: Scenario) -> None:
    assert printed("normal_charging", tiny).normal_charging.as_printed
    fast = printed("fast_charging", tiny).fast_charging
    assert fast.as_printed
    assert fast.reserve_soc_frac == 0.0
    own = pareto("normal_charging", tiny, 1, shares=(0.5,))
    paper = pareto("normal_charging", tiny, 1, shares=(0.5,), as_printed=True)
    # omega1 then multiplies both terms, and is not 1
    assert paper[0].objective_eur < own[0].objective_eur


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"problem": "market"}, "pareto: problem must be one of normal_charging, fast_charging"),
        ({"balances": ("flat",)}, "pareto: balance must be one of exchange, peak, quadratic"),
        ({"shares": (1.0,)}, "pareto: shares must lie between 0 and 1"),
        ({"time_limit_s": 0.0}, "pareto: time_limit_s must be a positive number"),
    ],
)
def test_what_cannot_be_swept_is_refused(tiny: Scenario, arguments: dict[str, object], message: str) -> None:
    options: dict[str, object] = {"problem": "normal_charging", "scenario": tiny, "n_days": 1} | arguments
    with pytest.raises(ConfigError, match=message):
        pareto(**options)  # type: ignore[arg-type]


def test_the_figure_draws_every_form(normal_points: list[ParetoPoint]) -> None:
    text = svg_text(pareto_figure(normal_points), "pareto", "front")
    assert "peak exchange, kW" in text
    with pytest.raises(DataError, match="at least one point"):
        pareto_figure([])


def test_the_command_prints_points_and_stores_the_plot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "_load_scenario", lambda _name: fast_scenario((30, 20)))
    result = CliRunner().invoke(
        cli.app, ["pareto", "normal_charging", "--days", "1", "--json", "--plot", str(tmp_path / "front.png")]
    )
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["points"]) == 11
    assert (tmp_path / "front.png").stat().st_size > 1000
