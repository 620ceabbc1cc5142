"""Peak and squares in the place of the printed first term: by hand, by enumeration, and what they refuse."""

import dataclasses
import itertools
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_fast_exact import play, tiny_problem

from evcs_gym.baselines.fast_charging import solve_programme as solve_fast
from evcs_gym.baselines.normal_charging import Budget, solve_programme
from evcs_gym.baselines.problems.balance import BALANCES, Balance, imbalance_kw, reference_kw
from evcs_gym.baselines.problems.fast_charging import FastProblem
from evcs_gym.baselines.problems.normal_charging import NormalProblem, bus_power_kw, check_data
from evcs_gym.envs.errors import DataError


def budget() -> Budget:
    return Budget(time.monotonic(), 60.0)


def one_car(balance: Balance, base_kw: list[float], **changes: Any) -> NormalProblem:
    """A car of 20 kW that needs 10 kWh while the base is what is given; every slot has the same price."""
    n = len(base_kw)
    plain = NormalProblem(
        mode="modulated",
        bus=np.zeros(1, dtype=np.int64),
        phase=np.full(1, -1),
        arrival_slot=np.zeros(1, dtype=np.int64),
        departure_slot=np.full(1, n),
        car=np.zeros(1, dtype=np.int64),
        power_kw=np.full(1, 20.0),
        energy_kwh=np.full(1, 10.0),
        n_slots=np.ones(1, dtype=np.int64),
        infeasible_kwh=np.zeros(1),
        net_kw=np.array(base_kw)[:, None],
        import_eur_per_kwh=np.full(n, 0.1),
        gap_eur_per_kwh=0.2,
        energy_weight=1.0,
        balance=balance,
    )
    return dataclasses.replace(plain, **changes)


def test_the_three_terms_by_hand() -> None:
    net, total = np.array([[-2.0, 1.0], [4.0, -1.0]]), np.array([[1.0, 1.0], [4.0, -3.0]])
    assert imbalance_kw("exchange", total, net) == 9.0
    assert imbalance_kw("peak", total, net) == 2 * (4.0 + 3.0)
    assert reference_kw(net) == 2.0
    assert imbalance_kw("quadratic", total, net) == (1 + 1 + 16 + 9) / 2.0


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_with_the_energy_fixed_the_exchange_is_twice_what_is_not_taken(seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = rng.normal(0.0, 10.0, (6, 3))
    one, other = rng.random((6, 3)), rng.random((6, 3))
    other *= one.sum() / other.sum()
    missed = [float(np.maximum(-(net + p), 0.0).sum()) for p in (one, other)]
    exchange = [imbalance_kw("exchange", net + p, net) for p in (one, other)]
    assert exchange[0] - exchange[1] == pytest.approx(2.0 * (missed[0] - missed[1]), abs=1e-9)


def test_where_base_exceeds_generation_the_printed_term_does_not_balance_and_the_others_do() -> None:
    base = [10.0, 30.0, 20.0]
    printed = solve_programme(one_car("exchange", base), None, 0.0, budget())
    # 60 + 20 kW x .5 h x .2 EUR/kWh + 10 kWh x .1 EUR/kWh, wherever the car charges
    assert printed.cost_eur == pytest.approx(9.0)
    for slot in range(3):
        anywhere = np.zeros((3, 1))
        anywhere[slot] = 20.0
        problem = one_car("exchange", base)
        assert imbalance_kw("exchange", problem.net_kw + bus_power_kw(problem, anywhere), problem.net_kw) == 80.0
    peak = solve_programme(one_car("peak", base), None, 0.0, budget())
    # 20 kW fit under 30 kW: 3 x 30 kW
    assert peak.cost_eur == pytest.approx(0.1 * 90.0 + 1.0)
    assert peak.bound_eur == pytest.approx(peak.cost_eur)
    squares = solve_programme(one_car("quadratic", base), None, 0.0, budget())
    # the water level 25 kW in the first and last slot: 15 and 5 kW; 25^2 + 30^2 + 25^2 over a mean base of 20 kW
    np.testing.assert_allclose(squares.power_kw[:, 0], [15.0, 0.0, 5.0], atol=1.3)
    assert squares.cost_eur == pytest.approx(0.1 * 2150.0 / 20.0 + 1.0, rel=1e-3)
    assert squares.bound_eur <= 0.1 * 2150.0 / 20.0 + 1.0


@pytest.mark.parametrize("balance", [balance for balance in BALANCES if balance != "exchange"])
@given(st.integers(0, 10_000), st.sampled_from([1, 3]))
@settings(max_examples=8, deadline=None)
def test_tiny_days_of_fast_charging_agree_with_enumeration(balance: Balance, seed: int, n_slots: int) -> None:
    problem = dataclasses.replace(tiny_problem(seed, 4, 2, n_slots), balance=balance)
    answer = solve_fast(problem, None, 0.0, budget())
    plans = (np.array(plan) for plan in itertools.product(range(3), repeat=4))
    best = min(cost for cost, allowed in (_by_twin(problem, plan) for plan in plans) if allowed)
    assert answer.bound_eur <= best + 1e-6
    assert best - 1e-6 <= answer.cost_eur
    if balance == "peak":
        assert answer.cost_eur == pytest.approx(best, abs=1e-6)
        assert answer.bound_eur == pytest.approx(best, abs=1e-6)
    else:  # between tangents a square is seen too small by the square of half their distance
        assert answer.relative_gap < 0.05


def _by_twin(problem: FastProblem, station: np.ndarray) -> tuple[float, bool]:
    played = play(problem, station)
    total = problem.net_kw + played.load_kw
    change = imbalance_kw(problem.balance, total, problem.net_kw) - np.abs(total).sum()
    return played.cost_eur + problem.absorb_eur_per_kw * change, played.allowed


def test_whole_slots_know_the_printed_term_only() -> None:
    with pytest.raises(DataError, match=r"balance must be exchange where problem\.mode is on_off"):
        check_data(one_car("peak", [10.0, 30.0], mode="on_off"))
