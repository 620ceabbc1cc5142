"""The command that shows the rounds of the four-stage method."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from evcs_gym.baselines.four_stage import Round, Talk
from evcs_gym.evaluation.cli import app
from evcs_gym.evaluation.rounds import round_rows, talk_records


def one_round(number: int, cap_kw: float, curtailed_kwh: float, change_eur: float) -> Round:
    caps, nothing = np.array([[cap_kw, np.inf]]), np.zeros((1, 2))
    profit = np.array([10.0 + change_eur, 5.0])
    change = np.array([change_eur, 0.0])
    return Round(number, caps, caps, nothing, np.array([0.04]), curtailed_kwh, 0.0, profit, change)


def test_a_row_for_every_round_and_how_the_talk_ended() -> None:
    first, second = one_round(1, np.inf, 0.0, 0.0), one_round(2, 30.0, 4.0, -1.5)
    rows = round_rows([Talk(0, 47, (first, second), agreed=False), Talk(0, 48, (first,), agreed=True)])
    assert [(row["slot"], row["round"], row["ended"]) for row in rows] == [
        (47, 1, ""),
        (47, 2, "operator"),
        (48, 1, "agreed"),
    ]
    assert [(row["n_caps"], row["curtailed_kwh"], row["change_eur"]) for row in rows[:2]] == [
        (0, 0.0, 0.0),
        (1, 4.0, -1.5),
    ]
    assert rows[1]["profit_eur"] == pytest.approx(13.5)
    (record,) = talk_records([Talk(0, 47, (second,), agreed=False)])
    assert record["rounds"][0]["cap_kw"] == [[30.0, None]]
    json.dumps(record, allow_nan=False)


def test_the_command_shows_a_day_on_which_the_network_binds() -> None:
    """Test day 1: caps after the first round, agreement in a later one, a plan that is then played."""
    done = CliRunner().invoke(app, ["rounds", "--day", "1", "--operator", "pro_rata", "--json"])
    assert done.exit_code == 0
    content = json.loads(done.stdout)
    (talk,) = content["talks"]
    assert (talk["slot"], talk["agreed"], len(talk["rounds"]) > 1) == (0, True, True)
    assert any(cap is not None for slot in talk["rounds"][1]["cap_kw"] for cap in slot)
    shown = CliRunner().invoke(app, ["rounds", "--day", "1", "--operator", "pro_rata"])
    assert f"community cost {content['cost_eur']:.2f} EUR" in shown.stdout


def test_an_operator_that_does_not_exist_is_refused() -> None:
    done = CliRunner().invoke(app, ["rounds", "--operator", "prorata"])
    assert done.exit_code == 2
    assert "there is no operator 'prorata'; did you mean 'pro_rata'?" in done.output
