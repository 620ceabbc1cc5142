"""The cars of a city, their diaries of trips, and the charging sessions that follow.

A *diary* is one car's trips from 06:00 of a calendar date to 06:00 of the next: it starts and ends at home. The survey
behind the travel tables has one night bin (23:00-06:00), so a border at 06:00 splits none of its bins, and trips home
after midnight belong to the evening before. Diaries follow each other without a gap; the noon-to-noon windows of a
`Day` cut them in the middle.

Times inside this module are counted in slots (half-hours) from 00:00 of the first simulated date.
"""

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit

from evcs_gym.envs.compilation import inner
from evcs_gym.envs.data import TravelTables, VehicleModels, calendar_day_types
from evcs_gym.envs.errors import ConfigError
from evcs_gym.envs.types import BALANCED, BoolArray, FloatArray, IntArray, Sessions, frozen
from evcs_gym.envs.units import DAY_START_HOUR, N_SLOTS, SLOT_H

__all__ = [
    "Diaries",
    "EnergyLedger",
    "FastRequests",
    "Fleet",
    "FleetDay",
    "TravelLaw",
    "TravelTables",
    "draw_diaries",
    "draw_fleet",
    "fit_travel_law",
    "simulate_sessions",
]

SINGLE_PHASE_MAX_KW: Final = 7.4
"""Home cars up to and including this power charge on one phase, others balanced (model.md section 0)."""
FAST_REQUEST_BELOW_SOC_FRAC: Final = 0.3
"""A car that is not at home and below this charges fast (model.md section 8)."""
DIARY_START_SLOT: Final = 12
"""A diary runs from 06:00 to 06:00 of the next date."""
NOON_SLOT: Final = round(DAY_START_HOUR / SLOT_H)
HOME: Final = -1
"""Stands for a leg in `FastRequests` where a trip begins or ends at home."""

# ------------------------------------------------------------------------------------------------------- fleet


@dataclass(frozen=True, eq=False)
class Fleet:
    """The V cars of a city, sorted by bus; all arrays (V,).

    bus: column of the charging bus. phase: 0, 1, 2, or -1 for balanced charging. capacity_kwh: battery.
    ac_power_kw: the car's AC limit. charge_power_kw: smaller of the home charger and that, grid side; 0 for a car
    without a charger at home, which only charges fast.
    dc_power_kw: the car's DC limit. consumption_kwh_per_km: from the battery. efficiency_frac: grid to battery.
    is_worker: whose travel tables the car follows. model: row of the vehicle models.
    """

    bus: IntArray
    phase: IntArray
    model: IntArray
    capacity_kwh: FloatArray
    ac_power_kw: FloatArray
    charge_power_kw: FloatArray
    dc_power_kw: FloatArray
    consumption_kwh_per_km: FloatArray
    efficiency_frac: FloatArray
    is_worker: BoolArray

    def __len__(self) -> int:
        return len(self.bus)


def draw_fleet(
    *,
    n_cars_per_bus: IntArray,
    models: VehicleModels,
    charger_power_kw: FloatArray,
    charger_share_frac: FloatArray,
    consumption_kwh_per_km: tuple[float, float],
    efficiency_frac: float,
    worker_share_frac: float,
    rng: np.random.Generator,
    home_charger_frac: float = 1.0,
) -> Fleet:
    """Cars of a city: models by registrations, home chargers by shares, consumption uniform in a range.

    Args:
        n_cars_per_bus: cars at each charging bus, (C,).
        models: cars on sale. charger_power_kw, charger_share_frac: home chargers and their shares, (K,).
        consumption_kwh_per_km: lowest and highest. efficiency_frac: grid to battery, of every car.
        worker_share_frac: share of cars that follow the workers' travel tables.
        home_charger_frac: share of cars that can charge at home.

    Raises:
        ConfigError: a count is negative, a power, consumption or efficiency out of range, shares that miss 1.
    """
    n_cars_per_bus = np.asarray(n_cars_per_bus)
    charger_power_kw = np.asarray(charger_power_kw, dtype=np.float64)
    charger_share_frac = np.asarray(charger_share_frac, dtype=np.float64)
    _check_fleet(
        n_cars_per_bus,
        charger_power_kw,
        charger_share_frac,
        consumption_kwh_per_km,
        efficiency_frac,
        {"worker_share_frac": worker_share_frac, "home_charger_frac": home_charger_frac},
    )
    n_cars = int(n_cars_per_bus.sum())
    model = _choose(models.n_registrations, rng.random(n_cars))
    charger = _choose(charger_share_frac, rng.random(n_cars))
    one_of_three = rng.integers(0, 3, n_cars)
    low, high = consumption_kwh_per_km
    charge_power_kw = np.minimum(charger_power_kw[charger], models.ac_power_kw[model])
    arrays = {
        "bus": np.repeat(np.arange(len(n_cars_per_bus)), n_cars_per_bus),
        "phase": np.where(charge_power_kw <= SINGLE_PHASE_MAX_KW, one_of_three, BALANCED),
        "model": model,
        "capacity_kwh": models.capacity_kwh[model],
        "ac_power_kw": models.ac_power_kw[model],
        "charge_power_kw": charge_power_kw,
        "dc_power_kw": models.dc_power_kw[model],
        "consumption_kwh_per_km": low + (high - low) * rng.random(n_cars),
        "efficiency_frac": np.full(n_cars, float(efficiency_frac)),
        "is_worker": rng.random(n_cars) < worker_share_frac,
    }
    arrays["charge_power_kw"] = np.where(rng.random(n_cars) < home_charger_frac, arrays["charge_power_kw"], 0.0)
    return Fleet(**{name: frozen(array) for name, array in arrays.items()})


def _check_fleet(
    n_cars_per_bus: Any,
    charger_power_kw: FloatArray,
    charger_share_frac: FloatArray,
    consumption_kwh_per_km: tuple[float, float],
    efficiency_frac: float,
    share_frac: dict[str, float],
) -> None:
    low, high = consumption_kwh_per_km
    integral = np.issubdtype(n_cars_per_bus.dtype, np.integer) and n_cars_per_bus.ndim == 1 and n_cars_per_bus.size > 0
    rules = (
        (
            integral and bool(np.all(n_cars_per_bus >= 0)),
            "n_cars_per_bus must hold whole numbers >= 0, one per bus",
            n_cars_per_bus,
        ),
        (bool(np.all(charger_power_kw > 0)), "charger_power_kw must be positive", charger_power_kw),
        (
            charger_share_frac.shape == charger_power_kw.shape
            and bool(np.all(charger_share_frac >= 0))
            and abs(float(charger_share_frac.sum()) - 1) < 1e-9,
            "charger_share_frac must hold one share >= 0 per charger_power_kw and sum to 1",
            charger_share_frac,
        ),
        (0 < low <= high, "consumption_kwh_per_km must be 0 < lowest <= highest", consumption_kwh_per_km),
        (0 < efficiency_frac <= 1, "efficiency_frac must be in (0, 1]", efficiency_frac),
        *((0 <= share <= 1, f"{name} must be in [0, 1]", share) for name, share in share_frac.items()),
    )
    for holds, rule, got in rules:
        if not holds:
            raise ConfigError(f"draw_fleet: {rule}, got {got}")


def _choose(weight: Any, uniform: FloatArray) -> IntArray:
    """Index drawn with probability proportional to ``weight`` for every uniform number in [0, 1)."""
    cumulative = np.cumsum(weight)
    last = np.flatnonzero(weight)[-1]  # rounding must not choose an entry of weight 0 behind it
    chosen: IntArray = np.minimum(np.searchsorted(cumulative / cumulative[-1], uniform, side="right"), last)
    return chosen


# ------------------------------------------------------------------------------------------------- travel law

RESERVE_TOLERANCE: Final = 1e-9
N_FIT_SWEEPS: Final = 120
"""Sweeps of the fit; the largest total variation distance then is below 0.002 + what no diary can reach."""
CUMULATIVE_DECIMALS: Final = 12
"""Fitted probabilities are rounded: the last bits differ between processors, the drawn trips must not."""
UNIFORMS_PER_LEG: Final = 5
"""Slot, class, cell, place in the cell, moment in the slot."""


class Pattern(NamedTuple):
    """Order of a day's legs: ``home`` says which lead home, ``retrace`` which go back the way of the leg before."""

    home: tuple[bool, ...]
    retrace: tuple[bool, ...]


class TravelLaw(NamedTuple):
    """A probability law of diaries, fitted to travel tables; what the kernels draw from.

    Axes: G = 2 x 3 person and day types, A patterns (0 is the day at home), J legs, K duration classes, L = 48 slots
    of a diary from 06:00, R cells of the distance-duration table, D destinations.

    pattern_cum: (2, 3, A). n_legs: (A,). home, retrace: (A, J). reserved_slots: (K,) slots that a leg of a class may
    take. slot_cum: (2, 3, A, J, K, L + 1) cumulative probability of the departure slot before earlier legs are known
    (given the class for a retraced leg, else equal for all). class_cum: (2, 3, A, J, L, K) of the class given the slot.
    cell_cum: (K, R) of the cell given the class. cell_km, cell_h: (R, 2) lower border and width.
    destination_cum: (2, 3, L, D) of an outward leg's destination given its slot.
    """

    pattern_cum: FloatArray
    n_legs: IntArray
    home: BoolArray
    retrace: BoolArray
    reserved_slots: IntArray
    slot_cum: FloatArray
    class_cum: FloatArray
    cell_cum: FloatArray
    cell_km: FloatArray
    cell_h: FloatArray
    destination_cum: FloatArray


class _Weights(NamedTuple):
    """Weights of the maximum-entropy law: departures outward and home (G, L), classes (G, K)."""

    outward: FloatArray
    home: FloatArray
    leg_class: FloatArray


class _Shape(NamedTuple):
    """What the fit does not change: patterns as arrays, reserved slots, where a leg's end lies in time."""

    n_legs: IntArray  # (A,)
    home: BoolArray  # (A, J)
    retrace: BoolArray  # (A, J)
    reserved_slots: IntArray  # (K,)
    free_from: IntArray  # (K, L): first slot in which the next leg may leave, N_SLOTS + 1 if after the diary


def patterns(n_trips: int) -> tuple[Pattern, ...]:
    """Patterns of a day with ``n_trips`` legs: one tour first, then every split into two tours.

    A tour leads outward once or more and then home. Of a tour with one outward leg the way home retraces it.
    """
    splits = [(n_trips,), *((first, n_trips - first) for first in range(2, n_trips - 1))]
    tours = [[[False] * (n - 1) + [True] for n in split] for split in splits]
    return tuple(
        Pattern(
            home=tuple(leg for tour in day for leg in tour),
            retrace=tuple(leg and len(tour) == 2 for tour in day for leg in tour),
        )
        for day in tours
    )


@lru_cache(maxsize=8)
def fit_travel_law(tables: TravelTables) -> TravelLaw:
    """The law of diaries with the most entropy that has the tables' marginals, as far as diaries can have them.

    emobpy draws departures and destinations independently from these tables and rejects days that make no sense, which
    shifts the times. Here a day's pattern is drawn first (number of trips from its table; two tours instead of one so
    often that the share of trips home is the table's); given the pattern, P(slots s, classes c) is proportional to
    prod_i w(s_i) v(c_i) over ordered diaries: leg i + 1 leaves after the slots reserved for leg i, the last leg ends by
    06:00. The weights w (outward, home) and v are fitted by iterative scaling so that departures outward, departures
    home and the durations of all trips have the tables' distributions (Csiszar 1975, 10.1214/aop/1176996454). Within a
    class, distance and duration follow the joint table. A few slots cannot be matched: nobody comes home in the first
    hour of a diary or leaves in its last.
    """
    reserved_slots, class_of_cell, cell_frac = _classes(tables)
    shape, pattern_frac = _shape(tables, reserved_slots)
    n_people, n_day_types = tables.departure_frac.shape[:2]
    departures = np.roll(tables.departure_frac, -DIARY_START_SLOT, axis=2).reshape(
        -1, N_SLOTS, len(tables.destinations)
    )
    home = departures[:, :, tables.home]
    outward = departures.sum(axis=2) - home
    class_frac = np.bincount(class_of_cell, weights=cell_frac, minlength=len(reserved_slots))
    target = _Weights(
        outward=outward / outward.sum(axis=1, keepdims=True),
        home=home / home.sum(axis=1, keepdims=True),
        leg_class=np.repeat(class_frac[None], len(home), axis=0),
    )
    mass = _fit(target, shape, pattern_frac)
    slot_cum, class_cum = _drawing_tables(mass, shape)
    split = (n_people, n_day_types)
    cell_km, cell_h = _cell_borders(tables)
    away = departures.copy()
    away[:, :, tables.home] = 0.0
    return TravelLaw(
        pattern_cum=_cumulative(pattern_frac).reshape(*split, -1),
        n_legs=shape.n_legs,
        home=shape.home,
        retrace=shape.retrace,
        reserved_slots=reserved_slots,
        slot_cum=slot_cum.reshape(*split, *slot_cum.shape[1:]),
        class_cum=class_cum.reshape(*split, *class_cum.shape[1:]),
        cell_cum=_cumulative(np.where(class_of_cell == np.arange(len(reserved_slots))[:, None], cell_frac, 0.0)),
        cell_km=cell_km,
        cell_h=cell_h,
        destination_cum=_cumulative(away).reshape(*split, *away.shape[1:]),
    )


def _classes(tables: TravelTables) -> tuple[IntArray, IntArray, FloatArray]:
    """Slots that each duration class reserves (K,), class of each cell (R,), probability of each cell (R,)."""
    whole_slots = np.ceil(tables.duration_edge_h[1:] / SLOT_H - RESERVE_TOLERANCE).astype(np.int64)
    reserved_slots, class_of_column = np.unique(whole_slots, return_inverse=True)
    class_of_cell = np.broadcast_to(class_of_column, tables.leg_frac.shape).ravel()
    return reserved_slots, class_of_cell.astype(np.int64), tables.leg_frac.ravel()


def _cell_borders(tables: TravelTables) -> tuple[FloatArray, FloatArray]:
    """Lower border and width of every cell in km and in h, (R, 2) each."""
    rows, columns = np.indices(tables.leg_frac.shape)
    cells = []
    for edge, index in ((tables.distance_edge_km, rows.ravel()), (tables.duration_edge_h, columns.ravel())):
        cells.append(np.stack([edge[index], np.diff(edge)[index]], axis=1))
    return cells[0], cells[1]


def _shape(tables: TravelTables, reserved_slots: IntArray) -> tuple[_Shape, FloatArray]:
    """Patterns as arrays, and their probabilities (G, A)."""
    n_trips_max = tables.n_trips_frac.shape[1] - 1
    days: list[Pattern] = [Pattern((), ())]
    frac = [np.tile(tables.n_trips_frac[:, 0], len(tables.departure_frac))]
    two_tours = _two_tour_frac(tables)
    for n_trips in range(2, n_trips_max + 1):
        n_trips_frac = np.tile(tables.n_trips_frac[:, n_trips], len(tables.departure_frac))
        one_tour, *splits = patterns(n_trips)
        days += [one_tour, *splits]
        frac.append(n_trips_frac * (1 - two_tours if splits else 1.0))
        frac += [n_trips_frac * two_tours / len(splits) for _ in splits]
    slot = np.arange(N_SLOTS)
    # A leg leaves inside its slot and takes up to its reserved slots: it may end in the slot after them.
    free_from = slot + reserved_slots[:, None] + 1
    shape = _Shape(
        n_legs=np.array([len(day.home) for day in days], dtype=np.int64),
        home=_padded([day.home for day in days], n_trips_max),
        retrace=_padded([day.retrace for day in days], n_trips_max),
        reserved_slots=reserved_slots,
        free_from=np.minimum(free_from, N_SLOTS + 1),
    )
    return shape, np.stack(frac, axis=1)


def _padded(rows: Sequence[tuple[bool, ...]], width: int) -> BoolArray:
    return np.array([[*row, *[False] * (width - len(row))] for row in rows], dtype=np.bool_)


def _two_tour_frac(tables: TravelTables) -> FloatArray:
    """Share of two-tour days among days of four or more trips that gives the tables' share of trips home, (G,)."""
    n_trips = np.arange(tables.n_trips_frac.shape[1])
    home_share = tables.departure_frac[..., tables.home].sum(axis=2)  # (2, 3)
    n_home = home_share * (tables.n_trips_frac @ n_trips)
    out_at_all, splittable = 1 - tables.n_trips_frac[:, 0], tables.n_trips_frac[:, 4:].sum(axis=1)
    share: FloatArray = np.clip((n_home - out_at_all) / np.maximum(splittable, 1e-12), 0.0, 1.0).ravel()
    return share


def _fit(target: _Weights, shape: _Shape, pattern_frac: FloatArray) -> FloatArray:
    """Iterative scaling; the unnormalised probabilities (J, G, A, K, L) of leaving in a slot with a class."""
    weights = target
    for _ in range(N_FIT_SWEEPS):
        mass, onward = _backward(weights, shape)
        expected = _expected(mass, onward, shape, pattern_frac)
        # The square root damps: several legs of a diary share one weight.
        weights = _Weights(*(w * np.sqrt(_ratio(t, e)) for w, t, e in zip(weights, target, expected, strict=True)))
    return _backward(weights, shape)[0]


def _ratio(target: FloatArray, expected: FloatArray) -> FloatArray:
    """target / expected; 1 where no diary can reach the entry."""
    ratio: FloatArray = np.divide(target, expected, out=np.ones_like(target), where=expected > 0)
    return ratio


def _backward(weights: _Weights, shape: _Shape) -> tuple[FloatArray, FloatArray]:
    """Backward pass over the legs.

    Returns ``mass`` (J, G, A, K, L): weight of everything from leg j on if it leaves in slot s with class k; and
    ``onward`` (J + 1, G, A, K, L + 2): weight of everything from leg j on if the car is free from slot e on, having
    last driven class k. Slot L is the end of the diary, L + 1 too late.
    """
    n_patterns, n_legs_max = shape.home.shape
    n_groups, n_classes = weights.leg_class.shape
    onward = np.zeros((n_legs_max + 1, n_groups, n_patterns, n_classes, N_SLOTS + 2))
    onward[n_legs_max, ..., : N_SLOTS + 1] = 1.0
    mass = np.zeros((n_legs_max, n_groups, n_patterns, n_classes, N_SLOTS))
    classes = np.arange(n_classes)[:, None]
    for leg in reversed(range(n_legs_max)):
        used = shape.n_legs > leg
        home, retrace = shape.home[used, leg], shape.retrace[used, leg]
        slot_weight = np.where(home[None, :, None], weights.home[:, None], weights.outward[:, None])  # (G, A, L)
        class_weight = np.where(retrace[None, :, None], 1.0, weights.leg_class[:, None])  # (G, A, K)
        after = onward[leg + 1][:, used][:, :, classes, shape.free_from]
        here = slot_weight[:, :, None] * class_weight[..., None] * after
        mass[leg][:, used] = here
        onward[leg] = onward[leg + 1]
        onward[leg][:, used, :, :N_SLOTS] = np.cumsum(_pooled(here, retrace)[..., ::-1], axis=-1)[..., ::-1]
        onward[leg][:, used, :, N_SLOTS:] = 0.0
    return mass, onward


def _pooled(per_class: FloatArray, retrace: BoolArray) -> FloatArray:
    """Sum over classes (G, A, K, L) repeated for each, but left as it is where the leg keeps the class before it."""
    pooled: FloatArray = np.where(retrace[None, :, None, None], per_class, per_class.sum(axis=2, keepdims=True))
    return pooled


def _expected(mass: FloatArray, onward: FloatArray, shape: _Shape, pattern_frac: FloatArray) -> _Weights:
    """Forward pass: distributions of departures outward, departures home and classes under the law."""
    n_legs_max, n_groups, _, n_classes, _ = mass.shape
    state = np.zeros((*mass.shape[1:-1], N_SLOTS + 1))
    state[:, :, 0, 0] = pattern_frac  # every diary begins free, the class before the first leg is of no account
    total = _Weights(np.zeros((n_groups, N_SLOTS)), np.zeros((n_groups, N_SLOTS)), np.zeros((n_groups, n_classes)))
    for leg in range(n_legs_max):
        used = shape.n_legs > leg
        home = shape.home[used, leg]
        free, weight = state[:, used], onward[leg][:, used, :, : N_SLOTS + 1]
        rate = np.divide(free, weight, out=np.zeros_like(free), where=weight > 0)[..., :N_SLOTS]
        leaving = mass[leg][:, used] * np.cumsum(_pooled(rate, shape.retrace[used, leg]), axis=-1)
        by_slot = leaving.sum(axis=2)
        total.outward[:] += by_slot[:, ~home].sum(axis=1)
        total.home[:] += by_slot[:, home].sum(axis=1)
        total.leg_class[:] += leaving.sum(axis=(1, 3))
        moved = np.zeros_like(free)
        for k, reserved in enumerate(shape.reserved_slots):
            moved[:, :, k, reserved + 1 :] = leaving[:, :, k, : N_SLOTS - reserved]
        state[:, used] = moved
    return _Weights(*(counts / counts.sum(axis=1, keepdims=True) for counts in total))


def _drawing_tables(mass: FloatArray, shape: _Shape) -> tuple[FloatArray, FloatArray]:
    """``slot_cum`` (G, A, J, K, L + 1) and ``class_cum`` (G, A, J, L, K) of TravelLaw."""
    pooled = np.stack([_pooled(mass[leg], shape.retrace[:, leg]) for leg in range(len(mass))], axis=2)
    slot_cum = np.concatenate([np.zeros((*pooled.shape[:-1], 1)), _cumulative(pooled)], axis=-1)
    return slot_cum, _cumulative(np.moveaxis(mass, (0, 4), (2, 3)))


def _cumulative(weight: FloatArray) -> FloatArray:
    """Cumulative share along the last axis, ending in 1 (0 where all weights are 0)."""
    total = weight.sum(axis=-1, keepdims=True)
    share = np.cumsum(np.divide(weight, total, out=np.zeros_like(weight), where=total > 0), axis=-1)
    rounded: FloatArray = np.minimum(np.round(share, CUMULATIVE_DECIMALS), 1.0)
    return rounded


# ------------------------------------------------------------------------------------------------------ diaries


@inner
def _pick(cumulative: FloatArray, uniform: float) -> int:
    """First index whose cumulative share exceeds ``uniform``; the last one that has a share at all if none does."""
    last = 0
    for i in range(len(cumulative)):
        if uniform < cumulative[i]:
            return i
        if i > 0 and cumulative[i] > cumulative[last]:
            last = i
    return last


@inner
def _pick_slot(cumulative: FloatArray, earliest: int | np.int64, uniform: float) -> int:
    """Slot drawn among those from ``earliest`` on; ``cumulative`` has a leading 0."""
    before = cumulative[earliest]
    return _pick(cumulative[1:], before + uniform * (cumulative[-1] - before))


@inner
def _draw_diary(
    law: TravelLaw,
    person: int,
    day_type: int,
    uniforms: FloatArray,
    leave: FloatArray,
    arrive: FloatArray,
    km: FloatArray,
    home: BoolArray,
) -> int:
    """Number of legs of one car and date; fills their times [slots from 00:00 of the date], km and whether home."""
    pattern = _pick(law.pattern_cum[person, day_type], uniforms[0])
    earliest, leg_class, distance_km, duration = np.int64(0), 0, 0.0, 0.0  # numba: a plain 0 is a type of its own
    for leg in range(law.n_legs[pattern]):
        u = uniforms[1 + UNIFORMS_PER_LEG * leg : 1 + UNIFORMS_PER_LEG * (leg + 1)]
        slot = _pick_slot(law.slot_cum[person, day_type, pattern, leg, leg_class], earliest, u[0])
        if not law.retrace[pattern, leg]:
            leg_class = _pick(law.class_cum[person, day_type, pattern, leg, slot], u[1])
            cell = _pick(law.cell_cum[leg_class], u[2])
            # One place in the cell for both: far is long, so that no speed leaves the cell's corners.
            distance_km = law.cell_km[cell, 0] + u[3] * law.cell_km[cell, 1]
            duration = (law.cell_h[cell, 0] + u[3] * law.cell_h[cell, 1]) / SLOT_H
        leave[leg] = DIARY_START_SLOT + slot + u[4]
        arrive[leg] = leave[leg] + duration
        km[leg] = distance_km
        home[leg] = law.home[pattern, leg]
        earliest = slot + law.reserved_slots[leg_class] + 1
    return int(law.n_legs[pattern])


@njit(cache=True)
def _draw_diaries(
    law: TravelLaw,
    person: IntArray,
    day_type: IntArray,
    uniforms: FloatArray,
    leave: FloatArray,
    arrive: FloatArray,
    km: FloatArray,
    home: BoolArray,
    n_legs: IntArray,
) -> None:
    for row in range(len(person)):
        n_legs[row] = _draw_diary(
            law, person[row], day_type[row], uniforms[row], leave[row], arrive[row], km[row], home[row]
        )


@dataclass(frozen=True, eq=False)
class Diaries:
    """Trips of n independent dates, (n, J); only the first ``n_legs`` (n,) entries of a row count.

    leave_slots, arrive_slots: times in half-hours from 00:00 of the date (up to 60: 06:00 of the next).
    distance_km. home: whether the leg leads home. destination: column of the travel tables' destinations.
    """

    n_legs: IntArray
    leave_slots: FloatArray
    arrive_slots: FloatArray
    distance_km: FloatArray
    home: BoolArray
    destination: IntArray


def draw_diaries(tables: TravelTables, is_worker: Any, day_type: Any, rng: np.random.Generator) -> Diaries:
    """Diaries of n dates, one per entry of ``is_worker`` and ``day_type`` (n,); see `fit_travel_law`."""
    law = fit_travel_law(tables)
    person, day_type = np.asarray(is_worker, dtype=np.int64), np.asarray(day_type, dtype=np.int64)
    n, n_legs_max = len(person), law.home.shape[1]
    uniforms = rng.random((n, 1 + UNIFORMS_PER_LEG * n_legs_max))
    leave, arrive, km = np.zeros((3, n, n_legs_max))
    home, n_legs = np.zeros((n, n_legs_max), dtype=np.bool_), np.zeros(n, dtype=np.int64)
    _draw_diaries(law, person, day_type, uniforms, leave, arrive, km, home, n_legs)
    slot = np.clip(np.floor(leave).astype(np.int64) - DIARY_START_SLOT, 0, N_SLOTS - 1)
    cumulative = law.destination_cum[person[:, None], day_type[:, None], slot]  # (n, J, D)
    outward = (cumulative <= rng.random((n, n_legs_max))[..., None]).sum(axis=2)
    return Diaries(n_legs, leave, arrive, km, home, np.where(home, tables.home, outward))


# ----------------------------------------------------------------------------------------------------- sessions

FIRST_SOC_RANGE_FRAC: Final = (0.5, 1.0)
"""State of charge before the burn-in, uniform: forgotten after it."""


@dataclass(frozen=True, eq=False)
class FastRequests:
    """Fast-charging requests of a window, arrays (F,) sorted by (slot, car).

    slot: the slot at whose start the car is dispatched: it was below the limit and not at home at the end of the slot
    before (slot 0: at the day's start). car: index in the fleet. soc_frac: state of charge then.
    from_leg, to_leg: where its trip began and where it leads: at the end of that leg of the car's diaries (numbered on
    over all simulated dates), or `HOME`. share_frac: of the trip's way that is behind it, 1 on arrival.
    """

    slot: IntArray
    car: IntArray
    soc_frac: FloatArray
    from_leg: IntArray
    to_leg: IntArray
    share_frac: FloatArray


@dataclass(frozen=True, eq=False)
class EnergyLedger:
    """What happened to each car's battery over all simulated windows, arrays (V,).

    capacity * (last_soc - first_soc) = home_charged * efficiency + fast_charged + clamped - distance * consumption.
    home_charged_kwh is grid side; fast_charged_kwh is battery side; clamped_kwh is energy that was driven but not there
    (the state of charge stops at 0).
    """

    first_soc_frac: FloatArray
    last_soc_frac: FloatArray
    distance_km: FloatArray
    home_charged_kwh: FloatArray
    fast_charged_kwh: FloatArray
    clamped_kwh: FloatArray


@dataclass(frozen=True, eq=False)
class FleetDay:
    """The last simulated window of a fleet: its charging sessions at home and what else happened in it.

    missing_kwh: (S,) energy on the battery side that full power throughout the session cannot deliver (infeasible
    energy, model.md section 9). n_dropped: requests that were shorter than one whole slot and are no sessions.
    n_clamped: times a car drove on an empty battery, in all simulated windows.
    """

    sessions: Sessions
    missing_kwh: FloatArray
    fast_requests: FastRequests
    n_dropped: int
    n_clamped: int
    ledger: EnergyLedger


def simulate_sessions(
    fleet: Fleet,
    tables: TravelTables,
    *,
    first_date: datetime.date,
    n_burn_in: int,
    request_below_soc_frac: float = 0.8,
    rng: np.random.Generator,
) -> FleetDay:
    """Charging sessions of the window from noon of ``first_date`` to noon of the next date.

    ``n_burn_in`` windows before it are simulated too, so that the states of charge do not depend on how they began. A
    car that comes home to a charger, or is there at noon, with less than ``request_below_soc_frac`` requests: from the
    first whole slot after its arrival to the slot in which it leaves, cut at the next noon. Then it is full, or as full
    as full power makes it, whatever a policy does (model.md section 9). A car below 0.3 and not at home at the end of a
    slot charges fast and is full (section 8).

    Args:
        fleet: V cars. tables: travel habits; the day type of every date follows from the calendar.
        rng: all randomness; equal seeds give equal sessions.

    Raises:
        ConfigError: n_burn_in negative, request_below_soc_frac outside (0.3, 1].
    """
    if n_burn_in < 0:
        raise ConfigError(f"simulate_sessions: n_burn_in must be >= 0 windows, got {n_burn_in}")
    if not FAST_REQUEST_BELOW_SOC_FRAC < request_below_soc_frac <= 1:
        raise ConfigError(
            f"simulate_sessions: request_below_soc_frac must be in ({FAST_REQUEST_BELOW_SOC_FRAC}, 1], "
            f"got {request_below_soc_frac}"
        )
    law = fit_travel_law(tables)
    n_cars, n_dates, n_legs_max = len(fleet), n_burn_in + 2, law.home.shape[1]
    day_type = calendar_day_types(first_date - datetime.timedelta(days=n_burn_in), n_dates)
    low, high = FIRST_SOC_RANGE_FRAC
    first_soc_frac = low + (high - low) * rng.random(n_cars)
    uniforms = rng.random((n_cars, n_dates, 1 + UNIFORMS_PER_LEG * n_legs_max))
    log = _Log(
        session=np.zeros((n_cars * (n_legs_max + 1), len(_SESSION_COLUMNS))),
        fast=np.zeros((n_cars * N_SLOTS, len(_FAST_COLUMNS))),
        ledger=np.zeros((n_cars, len(_LEDGER_COLUMNS))),
        tally=np.zeros(len(_COUNTS), dtype=np.int64),
    )
    batteries = _Batteries(
        capacity_kwh=fleet.capacity_kwh,
        gain_frac_per_slot=fleet.charge_power_kw * fleet.efficiency_frac * SLOT_H / fleet.capacity_kwh,
        need_frac_per_km=fleet.consumption_kwh_per_km / fleet.capacity_kwh,
        efficiency_frac=fleet.efficiency_frac,
    )
    person = fleet.is_worker.astype(np.int64)
    last_soc_frac = first_soc_frac.copy()
    _simulate(law, person, day_type, batteries, float(request_below_soc_frac), uniforms, last_soc_frac, log)
    return _fleet_day(fleet, log, first_soc_frac, last_soc_frac)


class _Batteries(NamedTuple):
    """What the kernel needs of the cars, (V,)."""

    capacity_kwh: FloatArray
    gain_frac_per_slot: FloatArray
    need_frac_per_km: FloatArray
    efficiency_frac: FloatArray


class _Log(NamedTuple):
    """What the kernel writes: rows of sessions and fast requests of the last window, ledger of all, counts."""

    session: FloatArray
    fast: FloatArray
    ledger: FloatArray
    tally: IntArray


_SESSION_COLUMNS: Final = ("car", "arrival_slot", "departure_slot", "soc0_frac", "missing_kwh")
_FAST_COLUMNS: Final = ("slot", "car", "soc_frac", "from_leg", "to_leg", "share_frac")
_FAST_WHOLE: Final = ("slot", "car", "from_leg", "to_leg")
_LEDGER_COLUMNS: Final = ("distance_km", "home_charged_kwh", "fast_charged_kwh", "clamped_kwh")
_DISTANCE, _HOME_CHARGED, _FAST_CHARGED, _CLAMPED = range(len(_LEDGER_COLUMNS))
_COUNTS: Final = ("sessions", "fast requests", "dropped", "clamped")
_N_SESSIONS, _N_FAST, _N_DROPPED, _N_CLAMPED = range(len(_COUNTS))


def _fleet_day(fleet: Fleet, log: _Log, first_soc_frac: FloatArray, last_soc_frac: FloatArray) -> FleetDay:
    """Records from the kernel's rows, in their canonical orders."""
    car, arrival, departure, soc0_frac, missing_kwh = log.session[: log.tally[_N_SESSIONS]].T
    car = car.astype(np.int64)
    order = np.lexsort((car, arrival, fleet.bus[car]))
    car = car[order]
    sessions = Sessions(
        bus=fleet.bus[car],
        phase=fleet.phase[car],
        arrival_slot=arrival[order].astype(np.int64),
        departure_slot=departure[order].astype(np.int64),
        soc0_frac=soc0_frac[order],
        capacity_kwh=fleet.capacity_kwh[car],
        power_kw=fleet.charge_power_kw[car],
        efficiency_frac=fleet.efficiency_frac[car],
        car=car,
    )
    fast = dict(zip(_FAST_COLUMNS, log.fast[: log.tally[_N_FAST]].T, strict=True))
    fast_order = np.lexsort((fast["car"], fast["slot"]))
    for array in vars(sessions).values():
        frozen(array)
    return FleetDay(
        sessions=sessions,
        missing_kwh=frozen(missing_kwh[order]),
        fast_requests=FastRequests(
            **{
                name: frozen(values[fast_order].astype(np.int64 if name in _FAST_WHOLE else np.float64))
                for name, values in fast.items()
            }
        ),
        n_dropped=int(log.tally[_N_DROPPED]),
        n_clamped=int(log.tally[_N_CLAMPED]),
        ledger=EnergyLedger(
            first_soc_frac=frozen(first_soc_frac),
            last_soc_frac=frozen(last_soc_frac),
            **{name: frozen(log.ledger[:, i].copy()) for i, name in enumerate(_LEDGER_COLUMNS)},
        ),
    )


@njit(cache=True)
def _simulate(
    law: TravelLaw,
    person: IntArray,
    day_type: IntArray,
    batteries: _Batteries,
    request_below: float,
    uniforms: FloatArray,
    soc: FloatArray,
    log: _Log,
) -> None:
    """Every car through its dates; writes ``soc`` and ``log``. Window w runs from noon of date w to noon of w + 1."""
    n_legs_max = law.home.shape[1]
    n_windows = len(day_type) - 1
    end = float(NOON_SLOT + N_SLOTS * n_windows)
    leave, arrive, km = np.zeros(n_legs_max), np.zeros(n_legs_max), np.zeros(n_legs_max)
    home = np.zeros(n_legs_max, dtype=np.bool_)
    for car in range(len(person)):
        home_since = float(DIARY_START_SLOT)
        at_home = True
        place = HOME
        for date in range(len(day_type)):
            n_legs = _draw_diary(law, person[car], day_type[date], uniforms[car, date], leave, arrive, km, home)
            for leg in range(n_legs):
                start, stop = leave[leg] + N_SLOTS * date, arrive[leg] + N_SLOTS * date
                if start >= end:
                    break
                if at_home:
                    soc[car] = _stay_home(car, home_since, start, n_windows, soc[car], request_below, batteries, log)
                goal = HOME if home[leg] else date * n_legs_max + leg
                soc[car] = _drive(car, start, stop, km[leg], place, goal, n_windows, soc[car], batteries, log)
                at_home, home_since, place = home[leg], stop, goal
        if at_home:
            soc[car] = _stay_home(car, home_since, end, n_windows, soc[car], request_below, batteries, log)


@inner
def _stay_home(
    car: int,
    since: float,
    until: float,
    n_windows: int,
    soc: float,
    request_below: float,
    batteries: _Batteries,
    log: _Log,
) -> float:
    """State of charge when the car leaves; one request per window in which it is home and below the limit."""
    first_window = max(0, math.floor((since - NOON_SLOT) / N_SLOTS))
    for window in range(first_window, n_windows):
        noon = NOON_SLOT + N_SLOTS * window
        arrival = max(0, math.ceil(since) - noon)
        departure = min(N_SLOTS, math.floor(until) - noon)
        if until <= noon:
            break
        if soc >= request_below or arrival >= N_SLOTS or batteries.gain_frac_per_slot[car] == 0.0:
            continue
        recorded = window == n_windows - 1
        if departure <= arrival:
            log.tally[_N_DROPPED] += recorded
            continue
        gained = min(1.0 - soc, (departure - arrival) * batteries.gain_frac_per_slot[car])
        if recorded:
            row = log.session[log.tally[_N_SESSIONS]]
            row[0], row[1], row[2], row[3] = car, arrival, departure, soc
            row[4] = max(0.0, 1.0 - soc - gained) * batteries.capacity_kwh[car]
            log.tally[_N_SESSIONS] += 1
        log.ledger[car, _HOME_CHARGED] += gained * batteries.capacity_kwh[car] / batteries.efficiency_frac[car]
        soc += gained
    return soc


@inner
def _drive(
    car: int,
    start: float,
    stop: float,
    km: float,
    place: int,
    goal: int,
    n_windows: int,
    soc: float,
    batteries: _Batteries,
    log: _Log,
) -> float:
    """State of charge on arrival; looks at the end of every slot on the way, and of the slot of an arrival not home."""
    need = km * batteries.need_frac_per_km[car]
    log.ledger[car, _DISTANCE] += km
    before = start
    boundary = math.floor(start) + 1
    while boundary < stop:
        soc = _spend(car, soc, need * (boundary - before) / (stop - start), batteries, log)
        soc = _charge_fast(
            car, boundary, place, goal, (boundary - start) / (stop - start), n_windows, soc, batteries, log
        )
        before = float(boundary)
        boundary += 1
    soc = _spend(car, soc, need * (stop - before) / (stop - start), batteries, log)
    if goal != HOME:
        soc = _charge_fast(car, boundary, place, goal, 1.0, n_windows, soc, batteries, log)
    return soc


@inner
def _spend(car: int, soc: float, need: float, batteries: _Batteries, log: _Log) -> float:
    """State of charge after driving; what is not there is counted, not forgotten."""
    if need > soc:
        log.ledger[car, _CLAMPED] += (need - soc) * batteries.capacity_kwh[car]
        log.tally[_N_CLAMPED] += 1
        return 0.0
    return soc - need


@inner
def _charge_fast(
    car: int,
    boundary: int,
    place: int,
    goal: int,
    share: float,
    n_windows: int,
    soc: float,
    batteries: _Batteries,
    log: _Log,
) -> float:
    """Full if the state of charge is below the limit at the end of a slot; logged in the last window."""
    if soc >= FAST_REQUEST_BELOW_SOC_FRAC:
        return soc
    slot = boundary - NOON_SLOT - N_SLOTS * (n_windows - 1)
    if 0 <= slot < N_SLOTS:
        row = log.fast[log.tally[_N_FAST]]
        row[0], row[1], row[2], row[3], row[4], row[5] = slot, car, soc, place, goal, share
        log.tally[_N_FAST] += 1
    log.ledger[car, _FAST_CHARGED] += (1.0 - soc) * batteries.capacity_kwh[car]
    return 1.0
