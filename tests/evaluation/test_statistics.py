"""Captured share and its interval: sums by hand, properties, and scipy's bootstrap as the oracle."""

from random import Random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.types import FloatArray
from evcs_gym.evaluation import statistics
from evcs_gym.evaluation.statistics import captured, captured_difference, captured_share, day_counts

Costs = tuple[FloatArray, FloatArray, FloatArray]


@st.composite
def costs(draw: st.DrawFn) -> Costs:
    """(cost (R, D), naive (D,), bound (D,)) with at least 1 EUR of room on every day."""
    n_seeds, n_days = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    money = st.floats(-100.0, 100.0)
    bound = draw(arrays(np.float64, n_days, elements=money))
    room = draw(arrays(np.float64, n_days, elements=st.floats(1.0, 50.0)))
    cost = bound + draw(arrays(np.float64, (n_seeds, n_days), elements=st.floats(0.0, 80.0)))
    return cost, bound + room, bound


def test_captured_is_a_ratio_of_sums_and_not_a_mean_of_daily_ratios() -> None:
    # saved 2 of 2 and 0 of 40: 2 / 42, where the mean of the daily ratios would say 1/2
    assert captured_share([8.0, 100.0], [10.0, 100.0], [8.0, 60.0]) == pytest.approx(2 / 42)


def test_captured_averages_over_training_seeds() -> None:
    # saved 4 and 6 of 10 on the first day, 0 and 2 of 10 on the second: 12 / 2 of 20
    assert captured_share([[6, 10], [4, 8]], [10, 10], [0, 0]) == pytest.approx(0.3)


def test_interval_of_two_days_reaches_from_the_worse_to_the_better_day() -> None:
    # a replicate holds the first day twice, both, or the second twice, with chances 1/4, 1/2, 1/4
    estimate = captured([8.0, 2.0], [10.0, 10.0], [0.0, 0.0])
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((0.2, 0.5, 0.8))


def test_interval_covers_training_seeds_when_days_are_alike() -> None:
    estimate = captured([[8.0, 8.0], [2.0, 2.0]], [10.0, 10.0], [0.0, 0.0])
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((0.2, 0.5, 0.8))


def test_equal_seeds_add_no_certainty() -> None:
    # days are shared by the seeds: three seeds that do the same know no more about days than one
    naive, bound = np.full(5, 10.0), np.zeros(5)
    cost = np.array([1.0, 3.0, 5.0, 2.0, 9.0])
    assert captured([cost, cost, cost], naive, bound) == captured(cost, naive, bound)


def test_a_day_without_room_counts_in_neither_sum() -> None:
    estimate = captured([5.0, 5.0, 5.0, 5.0], [10.0, 10.0, 5.0, 5.0], [0.0, 0.0, 5.0, 5.0])
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((0.5, 0.5, 0.5))


def test_one_day_has_no_interval() -> None:
    estimate = captured([[5.0], [6.0]], [10.0], [0.0])
    assert (estimate.value, estimate.low, estimate.high) == (pytest.approx(0.45), None, None)


def test_difference_is_paired_by_day() -> None:
    # one policy saves exactly a tenth of the room more on every day: the difference is certain, the shares are not
    naive, bound = np.array([10.0, 30.0, 20.0]), np.array([0.0, 10.0, 15.0])
    worse = np.array([[9.0, 12.0, 17.0], [8.0, 15.0, 16.0]])
    difference = captured_difference(worse[:1] - 0.1 * (naive - bound), worse[:1], naive, bound)
    assert (difference.low, difference.value, difference.high) == pytest.approx((0.1, 0.1, 0.1))
    alone = captured(worse, naive, bound)
    assert alone.low is not None
    assert alone.high is not None
    assert alone.high - alone.low > 0.2


def test_difference_draws_the_seeds_of_both_policies() -> None:
    # seeds capture .2, .8 against .1, .3: the extremes of the difference are .2 - .3 and .8 - .1, each 1/16 likely
    naive, bound = np.full(2, 10.0), np.zeros(2)
    difference = captured_difference([[8, 8], [2, 2]], [[9, 9], [7, 7]], naive, bound)
    assert (difference.low, difference.value, difference.high) == pytest.approx((-0.1, 0.3, 0.7))


def test_policies_meet_the_same_resampled_days() -> None:
    drawn = day_counts(7, 100, seed=3)
    assert (drawn.sum(axis=1) == 7).all()
    assert np.array_equal(drawn, day_counts(7, 100, seed=3))
    assert not np.array_equal(drawn, day_counts(7, 100, seed=4))


@settings(deadline=None, max_examples=40)
@given(costs(), st.floats(-1e3, 1e3), st.floats(0.1, 10.0))
def test_a_constant_or_another_currency_changes_nothing(case: Costs, constant: float, rate: float) -> None:
    cost, naive, bound = case
    plain = captured(cost, naive, bound, n_resamples=200)
    moved = captured(*(rate * array + constant for array in case), n_resamples=200)
    assert (moved.value, moved.low, moved.high) == pytest.approx((plain.value, plain.low, plain.high), abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(costs(), st.randoms(use_true_random=False))
def test_the_order_of_days_and_seeds_is_irrelevant(case: Costs, random: Random) -> None:
    cost, naive, bound = case
    days, seeds = list(range(cost.shape[1])), list(range(cost.shape[0]))
    random.shuffle(days)
    random.shuffle(seeds)
    shuffled = captured_share(cost[seeds][:, days], naive[days], bound[days])
    assert shuffled == pytest.approx(captured_share(cost, naive, bound), abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(costs())
def test_the_interval_stays_between_the_worst_and_the_best_day_of_any_seed(case: Costs) -> None:
    cost, naive, bound = case
    daily = (naive - cost) / (naive - bound)
    estimate = captured(cost, naive, bound, n_resamples=200)
    assert estimate.low is not None
    assert estimate.high is not None
    assert daily.min() - 1e-9 <= estimate.low <= estimate.high <= daily.max() + 1e-9


@settings(deadline=None, max_examples=20)
@given(costs())
def test_the_naive_rule_scores_0_and_the_bound_1_without_doubt(case: Costs) -> None:
    _, naive, bound = case
    for cost, share in ((naive, 0.0), (bound, 1.0)):
        estimate = captured(cost, naive, bound, n_resamples=200)
        assert (estimate.low, estimate.value, estimate.high) == pytest.approx((share, share, share), abs=1e-9)


def test_interval_agrees_with_scipy_for_one_seed() -> None:
    rng = np.random.default_rng(5)
    room = rng.uniform(10.0, 40.0, 30)
    saved = room * rng.normal(0.8, 0.15, 30)

    def ratio(saved_eur: FloatArray, room_eur: FloatArray, axis: int = -1) -> FloatArray:
        return np.asarray(saved_eur.sum(axis=axis) / room_eur.sum(axis=axis))

    oracle = scipy.stats.bootstrap(
        (saved, room), ratio, paired=True, vectorized=True, method="percentile", n_resamples=20_000, rng=rng
    ).confidence_interval
    ours = captured(-saved, np.zeros(30), -room, n_resamples=20_000)
    # both quantiles carry Monte-Carlo noise: about 1 % of the width of the interval at 20,000 resamples
    tolerance = 0.04 * (oracle.high - oracle.low)
    assert ours.low == pytest.approx(oracle.low, abs=tolerance)
    assert ours.high == pytest.approx(oracle.high, abs=tolerance)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"must be \(n_seeds, n_days\).*got \(1, 2\), \(3,\) and \(3,\)"):
        captured_share([1.0, 2.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0])


def test_no_days_are_refused() -> None:
    with pytest.raises(DataError, match="at least one seed and one day"):
        captured_share([[]], [], [])


def test_a_number_that_is_not_finite_is_refused_with_its_place() -> None:
    with pytest.raises(DataError, match=r"cost_eur must be finite, got nan at index \(1, 0\)"):
        captured_share([[1.0, 2.0], [np.nan, 2.0]], [3.0, 3.0], [0.0, 0.0])


def test_days_on_which_nothing_can_be_captured_are_refused() -> None:
    with pytest.raises(DataError, match="use more days with sessions"):
        captured_share([1.0, 2.0], [1.0, 2.0], [1.0, 2.0])


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_that_is_no_share_is_refused(confidence: float) -> None:
    with pytest.raises(DataError, match="confidence must lie between 0 and 1"):
        captured([1.0, 2.0], [3.0, 3.0], [0.0, 0.0], confidence=confidence)


def test_no_resamples_are_refused() -> None:
    with pytest.raises(DataError, match="n_resamples must be at least 1"):
        captured([1.0, 2.0], [3.0, 3.0], [0.0, 0.0], n_resamples=0)


# --- means ---------------------------------------------------------------------------------------------------


def test_means_and_paired_differences_by_hand() -> None:
    """Two seeds on two days: (1 + 3 + 5 + 7) / 4 = 4; the other's mean is 1. The first seed alone is 1 above it on both
    days: a difference without spread."""
    values, other = [[1.0, 3.0], [5.0, 7.0]], [[0.0, 2.0]]
    mean = statistics.mean(values)
    assert mean.value == 4.0
    assert mean.low is not None
    assert mean.high is not None
    assert 1.0 <= mean.low < 4.0 < mean.high <= 7.0
    assert statistics.mean_difference(values, other).value == 3.0
    even = statistics.mean_difference([[1.0, 3.0]], other)
    assert (even.value, even.low, even.high) == (1.0, 1.0, 1.0)
    assert statistics.mean([[2.0]]) == statistics.Estimate(2.0, None, None)


def test_means_of_nothing_and_of_other_days_are_refused() -> None:
    with pytest.raises(DataError, match=r"values must be finite numbers \(n_seeds, n_days\)"):
        statistics.mean([[np.nan]])
    with pytest.raises(DataError, match=r"both must have the same days, got 1 and 2"):
        statistics.mean_difference([[1.0]], [[1.0, 2.0]])
