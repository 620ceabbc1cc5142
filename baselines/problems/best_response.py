"""One station's day against the recorded bids of the others: data, what it can earn in each slot, what a plan earns.

The others' quantities (before (M6)) and asks stay as they were recorded, their held-back energy is ignored, no network
operator acts. What the station earns in a slot is then linear in its storage power on a few intervals, `ways`; an
interval per price that it can reach, since sellers below it and buyers are given. Under `mid_market` its share of the
demand, under `pay_as_ask` the price that it pays follow from its own quantity by a quotient, which is not linear: these
rules are refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.market.auction import clear
from evcs_gym.envs.market.station import (
    Assets,
    Slot,
    dispatch,
    hold_unsold,
    missing_cost_eur,
    next_energy,
    power_interval,
)
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import SLOT_H

PRICE_RULES: Final = ("marginal", "critical")
"""Price rules under which a best response is exact."""
ASK_STEP_EUR_PER_KWH: Final = 1e-6
"""What an ask stays below another's to be served first."""
STEP_KW: Final = 1e-5
"""What a quantity stays below one at which the price changes: tolerances of auction and solver must not choose it."""


@dataclass(frozen=True, eq=False)
class ResponseProblem:
    """The day of one station, T slots, against O others.

    assets: columns of the one station, (1,). import_eur_per_kwh, export_eur_per_kwh, pv_kw available, ev_kw asked for
    by drivers: (T,). others_kw: positions offered before (M6), surplus > 0, others_ask_eur_per_kwh: (T, O).
    """

    name: str
    assets: Assets
    import_eur_per_kwh: FloatArray
    export_eur_per_kwh: FloatArray
    network_fee_eur_per_kwh: float
    price_rule: str
    reservation: bool
    pv_kw: FloatArray
    ev_kw: FloatArray
    others_kw: FloatArray
    others_ask_eur_per_kwh: FloatArray

    @property
    def n_slots(self) -> int:
        """Number of slots T."""
        return len(self.pv_kw)

    @property
    def missing_eur_per_kwh(self) -> float:
        """(S3) What a kWh costs that the storage lacks at the end."""
        return float(self.import_eur_per_kwh.max() / self.assets.charge_efficiency_frac[0])

    @property
    def floor_kwh(self) -> FloatArray:
        """Least energy that can be reached, (T + 1,): E_min, less what self-discharge takes from there on."""
        kept = 1.0 - self.assets.self_discharge_frac[0]
        return np.asarray(self.assets.energy_min_kwh[0] * kept ** np.arange(self.n_slots + 1))


class Way(NamedTuple):
    """One way to spend a slot: storage power within [low_kw, high_kw], of one sign, at an ask, earns base_eur +
    slope_eur_per_kw * power, up to `ASK_STEP_EUR_PER_KWH` and `STEP_KW`.

    full, empty: only where the storage ends the slot full, or at its least energy. shared: in a tie, where it offers
    more than it ends up with, for its share: see `wish_kw`.
    """

    slot: int
    low_kw: float
    high_kw: float
    base_eur: float
    slope_eur_per_kw: float
    ask_eur_per_kwh: float
    full: bool = False
    empty: bool = False
    shared: bool = False

    @property
    def discharges(self) -> bool:
        """Whether the storage gives."""
        return self.low_kw < 0.0

    def value_eur(self, power_kw: float) -> float:
        """What it earns."""
        return self.base_eur + self.slope_eur_per_kw * power_kw


class Trade(NamedTuple):
    """Net positions [low_kw, high_kw] (surplus > 0) that bring fixed + price * position per hour at an ask. shared: see
    `Way`."""

    low_kw: float
    high_kw: float
    price_eur_per_kwh: float
    fixed_eur_per_h: float
    ask_eur_per_kwh: float
    shared: bool = False


@dataclass(frozen=True, eq=False)
class Played:
    """What wishes and asks become, (T,): executed storage power and position, energy (T + 1,); profit in EUR."""

    storage_kw: FloatArray
    position_kw: FloatArray
    energy_kwh: FloatArray
    profit_eur: float


def refuse_other_rules(price_rule: str) -> None:
    """Refuse price rules that have no exact response.

    Raises:
        ConfigError: profit is not piecewise linear in the own quantity.
    """
    if price_rule not in PRICE_RULES:
        raise ConfigError(
            f"best response: market.rule must be {' or '.join(PRICE_RULES)}, where profit is linear in the own "
            f"quantity between prices, got {price_rule!r}; compare policies of that city without exploit"
        )


def check_data(problem: ResponseProblem) -> None:
    """Refuse what has no exact response.

    Raises:
        ConfigError: a price rule under which profit is not piecewise linear in the own quantity.
        DataError: wrong shapes, values that are not finite.
    """
    refuse_other_rules(problem.price_rule)
    n_slots, n_others = len(problem.import_eur_per_kwh), problem.others_kw.shape[-1]
    own, others = ("export_eur_per_kwh", "pv_kw", "ev_kw"), ("others_kw", "others_ask_eur_per_kwh")
    for name in (*own, *others):
        values, shape = getattr(problem, name), (n_slots,) if name in own else (n_slots, n_others)
        if values.shape != shape or not np.isfinite(values).all():
            raise DataError(f"problem.{name} must be a finite array {shape}, got {values.shape} or NaN")


# --- what a plan earns ---------------------------------------------------------------------------------------


def play(problem: ResponseProblem, wish_kw: FloatArray, ask_eur_per_kwh: FloatArray) -> Played:
    """Wishes and asks (T,) through the station and the auction of the environment, slot by slot."""
    assets, energy, profit = problem.assets, np.empty(problem.n_slots + 1), 0.0
    storage, position = np.empty(problem.n_slots), np.empty(problem.n_slots)
    energy[0] = assets.energy_start_kwh[0]
    for t in range(problem.n_slots):
        least, largest = power_interval(energy[t], assets, 0)
        limit = assets.connection_kw[0]
        done = dispatch(problem.pv_kw[t], problem.ev_kw[t], wish_kw[t], least, largest, limit)
        cleared = clear(
            np.append(problem.others_kw[t], done.position_kw),
            np.append(problem.others_ask_eur_per_kwh[t], ask_eur_per_kwh[t]),
            problem.import_eur_per_kwh[t],
            problem.export_eur_per_kwh[t],
            problem.network_fee_eur_per_kwh,
            problem.price_rule,
        )
        accepted, payment = float(cleared.accepted_kw[-1]), float(cleared.payment_eur_per_h[-1])
        if problem.reservation:
            done = hold_unsold(done, accepted, ask_eur_per_kwh[t], problem.export_eur_per_kwh[t])
        storage[t], position[t] = done.storage_kw, done.position_kw
        energy[t + 1] = next_energy(energy[t], done.storage_kw, assets, 0)
        profit += _slot_profit_eur(problem, t, done, accepted, payment)
    profit -= missing_cost_eur(energy[-1], problem.import_eur_per_kwh.max(), assets, 0)
    return Played(storage, position, energy, float(profit))


def _slot_profit_eur(
    problem: ResponseProblem, t: int, done: Slot, accepted_kw: float, payment_eur_per_h: float
) -> float:
    """(S4): income, trade, what is left with the utility, degradation, drivers that wait in vain."""
    assets, rest = problem.assets, done.position_kw - accepted_kw
    gain = assets.retail_eur_per_kwh[0] * (problem.ev_kw[t] - done.unserved_kw) - payment_eur_per_h
    gain += rest * (problem.export_eur_per_kwh[t] if rest > 0.0 else problem.import_eur_per_kwh[t])
    gain -= assets.degradation_eur_per_kwh[0] * abs(done.storage_kw)
    return float(SLOT_H * (gain - assets.lost_load_eur_per_kwh[0] * done.unserved_kw))


# --- what can be earned in a slot ----------------------------------------------------------------------------


def ways(problem: ResponseProblem, kept_ask_eur_per_kwh: FloatArray | None = None, step_kw: float = 0.0) -> list[Way]:
    """All that is worth choosing in each slot, in the order of slots.

    step_kw: what a quantity stays below one at which the price turns against the station. With 0 they are limits: no
    plan earns more, but a plan at such a quantity may earn less.

    kept_ask_eur_per_kwh: (T,) asks that stay; where one equals another's, the share is a tangent, a little more than
    the station gets. Without, every ask that matters is tried: just below each of the others', and the band's ends.
    """
    out: list[Way] = []
    for t in range(problem.n_slots):
        kept = None if kept_ask_eur_per_kwh is None else float(kept_ask_eur_per_kwh[t])
        trades = [*_purchases(problem, t, step_kw), *_sales(problem, t, kept, step_kw)]
        out += _useful([*_ways_of(problem, t, trades), *_ways_at_the_connection(problem, t, trades)])
    return out


def _steps(problem: ResponseProblem, t: int) -> tuple[list[float], list[float], float]:
    """Asks of the other sellers in ascending order, what is offered up to each of them, and the others' demand."""
    offer = np.maximum(problem.others_kw[t], 0.0)
    asks = np.unique(problem.others_ask_eur_per_kwh[t][offer > 0.0])
    upto = [float(offer[problem.others_ask_eur_per_kwh[t] <= ask].sum()) for ask in asks]
    return asks.tolist(), upto, float(np.maximum(-problem.others_kw[t], 0.0).sum())


def _purchases(problem: ResponseProblem, t: int, step_kw: float) -> Iterator[Trade]:
    """A buyer pays the dearest ask that all demand needs, on all it buys; never more than the utility's price."""
    asks, upto, demand = _steps(problem, t)
    limit, fee = problem.assets.connection_kw[0], problem.network_fee_eur_per_kwh
    low = problem.export_eur_per_kwh[t]
    yield Trade(-limit, 0.0, problem.import_eur_per_kwh[t], 0.0, low)
    for ask, offered in zip(asks, upto, strict=True):
        if offered - demand > step_kw:
            yield Trade(-min(offered - demand - step_kw, limit), 0.0, ask + fee, 0.0, low)


def _sales(problem: ResponseProblem, t: int, kept_ask: float | None, step_kw: float) -> Iterator[Trade]:
    """A seller gets the dearest ask that the demand needs, its own where it is not sold out."""
    low, limit = float(problem.export_eur_per_kwh[t]), float(problem.assets.connection_kw[0])
    if kept_ask is None or kept_ask <= low:
        yield Trade(0.0, limit, low, 0.0, low)  # sold at the utility's price, or better
    for price, ask, left, own in _reachable(problem, t, kept_ask, step_kw):
        if price > low and left > 0.0:
            yield Trade(0.0, min(left, limit), price, 0.0, ask)
        held = _most_unsold_kw(problem, t)
        if own and ask > low and held > max(left, 0.0):  # the rest of the sun goes to the utility
            left = max(left, 0.0)
            yield Trade(left, held, low, (price - low) * left, ask)
    if kept_ask is not None and kept_ask > low:
        yield from _shared_sales(problem, t, kept_ask)


def _most_unsold_kw(problem: ResponseProblem, t: int) -> float:
    """Largest position of which a part is not sold: what the storage would have given for it stays there (M6)."""
    limit = float(problem.assets.connection_kw[0])
    return min(float(problem.pv_kw[t] - problem.ev_kw[t]), limit) if problem.reservation else limit


def _reachable(
    problem: ResponseProblem, t: int, kept_ask: float | None, step_kw: float
) -> Iterator[tuple[float, float, float, bool]]:
    """Prices at which the station can sell: (price, its ask, most that it sells at it, whether the price is its ask).

    What it sells at a price is the demand less the offers below that price. At its own ask more may be offered.
    """
    low, top = float(problem.export_eur_per_kwh[t]), _largest_ask(problem, t)
    asks, upto, demand = _steps(problem, t)
    below = [0.0, *upto]
    if kept_ask is None:
        for k, price in enumerate(asks):
            cheaper = asks[k - 1] if k else low
            yield price, max(price - ASK_STEP_EUR_PER_KWH, 0.5 * (cheaper + price)), demand - below[k], True
        yield top, top, demand - below[-1], True
        return
    left, tied = _tie(problem, t, kept_ask)
    if tied == 0.0 or left <= 0.0:
        yield kept_ask, kept_ask, left, True
    for k, price in enumerate(asks):
        if price > kept_ask:
            yield price, kept_ask, demand - below[k] - step_kw, False
    yield top, kept_ask, demand - below[-1] - step_kw, False


def _largest_ask(problem: ResponseProblem, t: int) -> float:
    return float(problem.import_eur_per_kwh[t]) - problem.network_fee_eur_per_kwh


def _tie(problem: ResponseProblem, t: int, ask: float) -> tuple[float, float]:
    """What the demand leaves to those who ask this, and what others of them offer."""
    offer, asks = np.maximum(problem.others_kw[t], 0.0), problem.others_ask_eur_per_kwh[t]
    demand = float(np.maximum(-problem.others_kw[t], 0.0).sum())
    return demand - float(offer[asks < ask].sum()), float(offer[asks == ask].sum())


def _shared_sales(problem: ResponseProblem, t: int, ask: float) -> Iterator[Trade]:
    """Pro rata among equal asks: of an offer x the share left x / (x + tied) is sold.

    Within the storage's power it is nearly straight: its tangent in the middle lies above it. To discharge, the station
    offers more than it ends up with, since what is not sold is held back (M6).
    """
    left, tied = _tie(problem, t, ask)
    surplus, power = float(problem.pv_kw[t] - problem.ev_kw[t]), float(problem.assets.storage_kw[0])
    limit, low = float(problem.assets.connection_kw[0]), float(problem.export_eur_per_kwh[t])
    first, held = max(left - tied, surplus - power, 0.0), _most_unsold_kw(problem, t)
    most = min(surplus + power, limit)
    if tied == 0.0 or left <= 0.0 or most <= first:
        return
    if held > first:
        middle = 0.5 * (first + min(held, most))
        slope = left * tied / (middle + tied) ** 2
        sold = left * middle / (middle + tied)
        yield Trade(first, held, low + (ask - low) * slope, (ask - low) * (sold - slope * middle), ask)
    if problem.reservation:
        share = left * most / (most + tied)
        if share > surplus:
            yield Trade(max(left - tied, surplus, 0.0), share, ask, 0.0, ask, shared=True)
        else:
            yield Trade(surplus, surplus, low, (ask - low) * share, ask, shared=True)


def wish_kw(problem: ResponseProblem, way: Way, power_kw: float) -> float:
    """The storage power to wish for so that a way ends with ``power_kw``."""
    if not way.shared:
        return power_kw
    left, tied = _tie(problem, way.slot, way.ask_eur_per_kwh)
    power, surplus = float(problem.assets.storage_kw[0]), float(problem.pv_kw[way.slot] - problem.ev_kw[way.slot])
    sold = surplus - power_kw
    if way.low_kw == way.high_kw or sold >= left:
        return -power
    return max(surplus - sold * tied / (left - sold), -power)


def _ways_of(problem: ResponseProblem, t: int, trades: list[Trade]) -> Iterator[Way]:
    """Trades as storage powers of one sign, sun and drivers served in full."""
    assets, surplus = problem.assets, float(problem.pv_kw[t] - problem.ev_kw[t])
    power, wear = assets.storage_kw[0], assets.degradation_eur_per_kwh[0]
    income = SLOT_H * assets.retail_eur_per_kwh[0] * problem.ev_kw[t]
    for trade in trades:
        base = income + SLOT_H * (trade.fixed_eur_per_h + trade.price_eur_per_kwh * surplus)
        for sign, least, largest in ((-1.0, -power, 0.0), (1.0, 0.0, power)):
            low, high = max(surplus - trade.high_kw, least), min(surplus - trade.low_kw, largest)
            if low <= high and not (sign < 0.0 and low == 0.0):
                slope = -SLOT_H * (trade.price_eur_per_kwh + sign * wear)
                yield Way(t, low, high, base, slope, trade.ask_eur_per_kwh, shared=trade.shared)


def _ways_at_the_connection(problem: ResponseProblem, t: int, trades: list[Trade]) -> Iterator[Way]:
    """(N3): where the connection is full, sun is curtailed or drivers wait only after the storage has done all it can:
    with all its power, or up to its end."""
    assets, surplus = problem.assets, float(problem.pv_kw[t] - problem.ev_kw[t])
    limit, power, wear = assets.connection_kw[0], assets.storage_kw[0], assets.degradation_eur_per_kwh[0]
    income = SLOT_H * assets.retail_eur_per_kwh[0] * problem.ev_kw[t]
    for trade in trades:
        if trade.high_kw >= limit and surplus > limit:
            base = income + SLOT_H * (trade.fixed_eur_per_h + trade.price_eur_per_kwh * limit)
            most = min(power, surplus - limit)
            yield Way(t, 0.0, most, base, -SLOT_H * wear, trade.ask_eur_per_kwh, full=True)
            if power < surplus - limit:
                yield Way(t, power, power, base, -SLOT_H * wear, trade.ask_eur_per_kwh)
        if trade.low_kw <= -limit and surplus < -limit:
            lost = SLOT_H * (assets.lost_load_eur_per_kwh[0] + assets.retail_eur_per_kwh[0])
            base = income + SLOT_H * (trade.fixed_eur_per_h - trade.price_eur_per_kwh * limit)
            base += lost * (limit + surplus)
            most, slope = max(-power, surplus + limit), SLOT_H * wear - lost
            yield Way(t, most, 0.0, base, slope, trade.ask_eur_per_kwh, empty=True)
            if -power > surplus + limit:
                yield Way(t, -power, -power, base, slope, trade.ask_eur_per_kwh)


def _useful(found: list[Way]) -> list[Way]:
    """Ways that no other one beats wherever they are open."""
    kept: list[Way] = []
    for k, way in enumerate(found):
        rivals = [*kept, *found[k + 1 :]]
        if not any(_beats(other, way) for other in rivals):
            kept.append(way)
    return kept


def _beats(one: Way, other: Way) -> bool:
    wider = one.low_kw <= other.low_kw and one.high_kw >= other.high_kw and one.discharges == other.discharges
    free = one.full <= other.full and one.empty <= other.empty
    return (
        wider
        and free
        and one.value_eur(other.low_kw) >= other.value_eur(other.low_kw)
        and one.value_eur(other.high_kw) >= other.value_eur(other.high_kw)
    )
