"""How a policy is scored: ratios of sums over days, with bootstrap intervals (docs/model.md, section 10).

captured = sum(naive - cost) / sum(naive - bound) over the same days; gap = 1 - captured. 0 is the naive
rule, 1 the proven bound. Sums, never means of daily ratios: a day on which nothing can be saved would
otherwise weigh as much as the day on which everything can.

The interval is a percentile bootstrap over days *and* training seeds. Every seed is scored on the same days,
so the two factors are crossed and both are resampled once per replicate: one draw of days, shared by all
seeds and by all policies, and one draw of seeds (the pigeonhole bootstrap: Owen 2007, The Annals of Applied
Statistics 1(2):386-411, 10.1214/07-AOAS122). Drawing new days for each seed would treat one hard day, met by
three seeds, as three hard days and give an interval that is too narrow.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.types import FloatArray

N_RESAMPLES: Final = 10_000
CONFIDENCE: Final = 0.95
DAY_STREAM: Final = 0
SEED_STREAM: Final = 1


@dataclass(frozen=True)
class Estimate:
    """A number and its interval; low and high are None on fewer than two days, which have no spread."""

    value: float
    low: float | None
    high: float | None


def captured_share(cost_eur: ArrayLike, naive_cost_eur: ArrayLike, lower_bound_eur: ArrayLike) -> float:
    """Ratio of sums over days, averaged over training seeds.

    Args:
        cost_eur: (n_seeds, n_days) or (n_days,) cost of the policy [EUR].
        naive_cost_eur: (n_days,) cost of the naive rule on the same days [EUR].
        lower_bound_eur: (n_days,) proven lower bound of the same days [EUR].

    Raises:
        DataError: shapes differ, a number is not finite, or the naive rule leaves nothing to capture.
    """
    cost, naive, bound = _checked(cost_eur, naive_cost_eur, lower_bound_eur)
    return float((naive - cost.mean(axis=0)).sum() / _room_eur(naive, bound))


def captured(
    cost_eur: ArrayLike,
    naive_cost_eur: ArrayLike,
    lower_bound_eur: ArrayLike,
    *,
    confidence: float = CONFIDENCE,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Captured share with its percentile interval over days and training seeds.

    Args:
        cost_eur: (n_seeds, n_days) or (n_days,) cost of the policy [EUR]; a rule has one row.
        naive_cost_eur, lower_bound_eur: (n_days,) [EUR].
        confidence: mass of the interval, in (0, 1).
        n_resamples: replicates of the bootstrap.
        seed: of the resampling. The days drawn depend on it and on n_days alone, so policies stay paired.
    """
    cost, naive, bound = _checked(cost_eur, naive_cost_eur, lower_bound_eur)
    share = captured_share(cost, naive, bound)
    low, high = _interval(naive - cost, naive - bound, confidence, n_resamples, seed)
    return Estimate(share, low, high)


def captured_difference(
    cost_eur: ArrayLike,
    other_cost_eur: ArrayLike,
    naive_cost_eur: ArrayLike,
    lower_bound_eur: ArrayLike,
    *,
    confidence: float = CONFIDENCE,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Captured share of a policy minus that of another one, paired by day; positive where the first is
    better.

    Args:
        cost_eur, other_cost_eur: (n_seeds, n_days) or (n_days,) [EUR]; the numbers of seeds may differ.
        naive_cost_eur, lower_bound_eur: (n_days,) [EUR].
        confidence, n_resamples, seed: as in `captured`.
    """
    cost, naive, bound = _checked(cost_eur, naive_cost_eur, lower_bound_eur)
    other, _, _ = _checked(other_cost_eur, naive_cost_eur, lower_bound_eur)
    share = captured_share(cost, naive, bound) - captured_share(other, naive, bound)
    low, high = _interval(
        -_pairs(cost, other), naive - bound, confidence, n_resamples, seed, n_seeds=(len(cost), len(other))
    )
    return Estimate(share, low, high)


def mean(values: ArrayLike) -> Estimate:
    """Mean per day of values (n_seeds, n_days) with its 95 % percentile interval over days and training seeds."""
    rows = _rows(values)
    low, high = _interval(rows, np.ones(rows.shape[1]), CONFIDENCE, N_RESAMPLES, 0)
    return Estimate(float(rows.mean()), low, high)


def mean_difference(values: ArrayLike, other: ArrayLike) -> Estimate:
    """Mean per day of values (n_seeds, n_days) minus that of others, paired by day, with its interval as `mean`.

    Raises:
        DataError: shapes differ in days, no day, or a number is not finite.
    """
    first, second = _rows(values), _rows(other)
    if first.shape[1] != second.shape[1]:
        raise DataError(f"statistics: both must have the same days, got {first.shape[1]} and {second.shape[1]}")
    sizes = (len(first), len(second))
    low, high = _interval(_pairs(first, second), np.ones(first.shape[1]), CONFIDENCE, N_RESAMPLES, 0, n_seeds=sizes)
    return Estimate(float(first.mean() - second.mean()), low, high)


def _rows(values: ArrayLike) -> FloatArray:
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or rows.size == 0 or not np.isfinite(rows).all():
        raise DataError(f"statistics: values must be finite numbers (n_seeds, n_days), got an array {rows.shape}")
    return rows


def _pairs(first: FloatArray, second: FloatArray) -> FloatArray:
    """Differences, one row per pair of seeds, those of the first slowest: both factors are then drawn as independent
    seeds."""
    return np.asarray((first[:, None, :] - second[None, :, :]).reshape(len(first) * len(second), -1))


def _interval(
    saved_eur: FloatArray,
    room_eur: FloatArray,
    confidence: float,
    n_resamples: int,
    seed: int,
    n_seeds: tuple[int, ...] | None = None,
) -> tuple[float | None, float | None]:
    """Percentile interval of sum(saved) / sum(room); saved_eur (n_seeds, n_days), room_eur (n_days,)."""
    if not 0.0 < confidence < 1.0:
        raise DataError(f"statistics: confidence must lie between 0 and 1, got {confidence}")
    if n_resamples < 1:
        raise DataError(f"statistics: n_resamples must be at least 1, got {n_resamples}")
    n_days = len(room_eur)
    if n_days < 2:
        return None, None
    n_drawn = day_counts(n_days, n_resamples, seed)
    weight = _seed_weights(n_seeds or (len(saved_eur),), n_resamples, seed)
    saved = ((weight @ saved_eur) * n_drawn).sum(axis=1)
    room = n_drawn @ room_eur
    # A replicate made only of days without room has no ratio; the others are the distribution given that one
    # exists.
    defined = room > 0.0
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(saved[defined] / room[defined], [tail, 1.0 - tail])
    return float(low), float(high)


def day_counts(n_days: int, n_resamples: int, seed: int) -> FloatArray:
    """How often each replicate drew each day, (n_resamples, n_days); rows sum to n_days.

    Has a stream of its own, so that policies with different numbers of seeds meet the same days.
    """
    return _counts(n_days, n_resamples, np.random.default_rng([seed, DAY_STREAM]))


def _seed_weights(n_seeds: tuple[int, ...], n_resamples: int, seed: int) -> FloatArray:
    """Weights of the seeds (or of the pairs of seeds of two policies), (n_resamples, prod(n_seeds)), rows
    sum to 1.
    """
    rng = np.random.default_rng([seed, SEED_STREAM])
    weight = np.ones((n_resamples, 1))
    for n in n_seeds:
        drawn = _counts(n, n_resamples, rng) / n
        weight = (weight[:, :, None] * drawn[:, None, :]).reshape(n_resamples, -1)
    return weight


def _counts(n: int, n_resamples: int, rng: np.random.Generator) -> FloatArray:
    """Counts of n draws with replacement from n items, per replicate: (n_resamples, n)."""
    return rng.multinomial(n, np.full(n, 1.0 / n), size=n_resamples).astype(np.float64)


def _room_eur(naive: FloatArray, bound: FloatArray) -> float:
    """Denominator of the captured share [EUR]."""
    room = float((naive - bound).sum())
    if not room > 0.0:
        raise DataError(
            "statistics: the captured share needs days on which the naive rule costs more than the bound, "
            f"got sum(naive - bound) = {room:.6g} EUR over {len(naive)} days; use more days with sessions"
        )
    return room


def _checked(
    cost_eur: ArrayLike, naive_cost_eur: ArrayLike, lower_bound_eur: ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The arguments as float arrays (n_seeds, n_days), (n_days,), (n_days,), or a DataError."""
    cost = np.atleast_2d(np.asarray(cost_eur, dtype=np.float64))
    naive = np.asarray(naive_cost_eur, dtype=np.float64)
    bound = np.asarray(lower_bound_eur, dtype=np.float64)
    if cost.ndim != 2 or naive.ndim != 1 or bound.shape != naive.shape or cost.shape[1:] != naive.shape:
        raise DataError(
            "statistics: cost_eur must be (n_seeds, n_days), naive_cost_eur and lower_bound_eur (n_days,), "
            f"got {cost.shape}, {naive.shape} and {bound.shape}"
        )
    if cost.size == 0:
        raise DataError(f"statistics: at least one seed and one day are needed, got cost_eur {cost.shape}")
    for name, array in (("cost_eur", cost), ("naive_cost_eur", naive), ("lower_bound_eur", bound)):
        if not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise DataError(f"statistics: {name} must be finite, got {array[where]} at index {where}")
    return cost, naive, bound
