"""The modified single-sided auction with limited information: what stations trade with each other in a slot.

The clearing sees signed quantities, asks and the tariffs that everybody knows, nothing else: its signature is the
limited-information rule. Sellers (position > 0) ask; buyers (position < 0) reveal quantity only and take the price.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from evcs_gym.envs.errors import ConfigError, DataError
from evcs_gym.envs.threads import run_rows
from evcs_gym.envs.types import BoolArray, FloatArray, IntArray

PriceRule = Literal["marginal", "critical", "mid_market", "pay_as_ask"]
"""How the price of a slot follows from the asks; see `clear`."""
PRICE_RULES: Final[tuple[PriceRule, ...]] = get_args(PriceRule)
MARGINAL, CRITICAL, MID_MARKET, PAY_AS_ASK = range(4)
TIE_FRAC: Final = 1e-9
"""Quantities that differ by this share count as equal where the price is chosen: rounding must not choose it."""
_PARALLEL_FROM: Final = 4096
"""Rows from which a second thread pays."""


@dataclass(frozen=True, eq=False)
class Clearing:
    """What the auction decides.

    price_eur_per_kwh: (...), published. accepted_kw: (..., S), signed like the positions. volume_kw: (...), published.
    payment_eur_per_h: (..., S), > 0 what a buyer pays in the market, network fee included, < 0 what a seller
    receives; trades with the utility are apart.
    """

    price_eur_per_kwh: FloatArray
    accepted_kw: FloatArray
    volume_kw: FloatArray
    payment_eur_per_h: FloatArray


def clear(
    position_kw: ArrayLike,
    ask_eur_per_kwh: ArrayLike,
    import_eur_per_kwh: ArrayLike,
    export_eur_per_kwh: ArrayLike,
    network_fee_eur_per_kwh: float,
    rule: str = "marginal",
) -> Clearing:
    """Clear one slot, or many at once, (M1)-(M5) of docs/model.md.

    position_kw, ask_eur_per_kwh: (..., S); a surplus is positive. Asks of sellers lie in [export, import - fee]; those
    of buyers are not looked at. import_eur_per_kwh, export_eur_per_kwh: (...) or one number. rule: `marginal` (ask of
    the marginal group), `critical` (ask of the first group that is not fully accepted), `mid_market` (asks ignored) or
    `pay_as_ask`. Stations of equal ask share pro rata; the result does not depend on their order.

    Raises ConfigError for an unknown rule, tariffs that allow arbitrage and asks outside the band, DataError for
    shapes that do not fit, no station, and values that are not finite.

    >>> slot = clear([100.0, 50.0, -120.0], [0.06, 0.04, 0.0], 0.10, 0.03, 0.008)
    >>> float(slot.price_eur_per_kwh), slot.accepted_kw.tolist()
    (0.06, [70.0, 50.0, -120.0])
    """
    code = rule_code(rule)
    position, ask, tariffs = _checked(
        position_kw, ask_eur_per_kwh, import_eur_per_kwh, export_eur_per_kwh, network_fee_eur_per_kwh
    )
    n_stations, shape = position.shape[-1], position.shape[:-1]
    n_rows = int(np.prod(shape))
    accepted, payment = np.empty(position.shape), np.empty(position.shape)
    price, volume = np.empty(n_rows), np.empty(n_rows)
    flat = [array.reshape(n_rows, n_stations) for array in (position, ask, accepted, payment)]
    arguments = (flat[0], flat[1], *tariffs, float(network_fee_eur_per_kwh), code, flat[2], flat[3], price, volume)
    run_rows(_clear_rows, n_rows, arguments, parallel_from=_PARALLEL_FROM)
    return Clearing(price.reshape(shape), accepted, volume.reshape(shape), payment)


def rule_code(rule: str) -> int:
    """The number by which kernels know a price rule.

    Raises:
        ConfigError: no such rule.
    """
    if rule not in PRICE_RULES:
        raise ConfigError(f"market: rule must be one of {', '.join(PRICE_RULES)}, got {rule!r}")
    return PRICE_RULES.index(rule)


def check_tariffs(import_eur_per_kwh: FloatArray, export_eur_per_kwh: FloatArray, fee_eur_per_kwh: float) -> None:
    """Refuse tariffs at which energy could be bought and sold at a profit in one slot.

    Raises:
        DataError: a tariff that is not finite. ConfigError: export + fee >= import, or a negative fee.
    """
    prices: dict[str, FloatArray | float] = {
        "import": import_eur_per_kwh,
        "export": export_eur_per_kwh,
        "network fee": fee_eur_per_kwh,
    }
    for name, values in prices.items():
        if not np.isfinite(values).all():
            raise DataError(f"market: the {name} price must be finite, got NaN or infinity")
    margin = np.asarray(import_eur_per_kwh - export_eur_per_kwh - fee_eur_per_kwh)
    if fee_eur_per_kwh < 0.0 or margin.min() <= 0.0:
        place = np.unravel_index(int(np.argmin(margin)), margin.shape)
        raise ConfigError(
            "market: the network fee must be >= 0 and export + network fee must stay below import, or stations could "
            f"trade with the utility at a profit; got import {import_eur_per_kwh[place]}, "
            f"export {export_eur_per_kwh[place]}, fee {fee_eur_per_kwh}"
        )


def _checked(
    position_kw: ArrayLike, ask_eur_per_kwh: ArrayLike, imports: ArrayLike, exports: ArrayLike, fee: float
) -> tuple[FloatArray, FloatArray, tuple[FloatArray, FloatArray]]:
    """Copies of positions and asks (..., S) and tariffs (rows,), in the one layout of the kernel."""
    position, ask = (np.array(x, dtype=np.float64, order="C") for x in (position_kw, ask_eur_per_kwh))
    if position.ndim == 0 or position.shape != ask.shape or position.shape[-1] == 0:
        raise DataError(
            "market: position_kw and ask_eur_per_kwh must have one shape (..., S) with at least one station, got "
            f"{position.shape} and {ask.shape}"
        )
    shape = position.shape[:-1]
    tariffs = []
    for name, value in (("import", imports), ("export", exports)):
        array = np.asarray(value, dtype=np.float64)
        if array.shape not in ((), shape):
            raise DataError(f"market: {name}_eur_per_kwh must be one number or of shape {shape}, got {array.shape}")
        tariffs.append(np.array(np.broadcast_to(array, shape), order="C"))
    check_tariffs(tariffs[0], tariffs[1], fee)
    for name, array in (("position_kw", position), ("ask_eur_per_kwh", ask)):
        if not np.isfinite(array).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise DataError(f"market: {name}{list(place)} must be finite, got {array[place]}")
    check_asks(ask, tariffs[1], tariffs[0] - fee, position > 0.0)
    return position, ask, (tariffs[0].reshape(-1), tariffs[1].reshape(-1))


def check_asks(ask_eur_per_kwh: FloatArray, low: FloatArray, high: FloatArray, read: BoolArray) -> None:
    """Refuse asks (..., S) outside the band of their slot, low and high (...), where they are read.

    Raises:
        ConfigError: names the first.
    """
    outside = read & ((ask_eur_per_kwh < low[..., None]) | (ask_eur_per_kwh > high[..., None]))
    if outside.any():
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ConfigError(
            f"market: ask_eur_per_kwh{list(place)} must lie in [export, import - network fee] = "
            f"[{low[place[:-1]]}, {high[place[:-1]]}], got {ask_eur_per_kwh[place]}"
        )


@njit(cache=True, nogil=True)
def _clear_rows(
    first: int,
    stop: int,
    position_kw: FloatArray,
    ask: FloatArray,
    imports: FloatArray,
    exports: FloatArray,
    fee: float,
    rule: int,
    accepted_kw: FloatArray,
    payment: FloatArray,
    price: FloatArray,
    volume_kw: FloatArray,
) -> None:
    order = np.empty(position_kw.shape[1], dtype=np.int64)
    for row in range(first, stop):
        price[row], volume_kw[row] = clear_row(
            position_kw[row], ask[row], imports[row], exports[row], fee, rule, order, accepted_kw[row], payment[row]
        )


@njit(cache=True, nogil=True)
def clear_row(
    position_kw: FloatArray,
    ask: FloatArray,
    import_price: float,
    export_price: float,
    fee: float,
    rule: int,
    order: IntArray,
    accepted_kw: FloatArray,
    payment: FloatArray,
) -> tuple[float, float]:
    """Price and volume of one slot; writes accepted quantities and payments (S,). order: scratch (S,)."""
    top = import_price - fee
    n_sellers, n_buyers = sort_offers(position_kw, ask, rule != MID_MARKET, order)
    supply = _total(position_kw, order, 0, n_sellers)
    demand = -_total(position_kw, order, n_sellers, n_sellers + n_buyers)
    volume = min(supply, demand)  # (M1)
    for station in range(position_kw.size):
        accepted_kw[station] = 0.0
        payment[station] = 0.0
    if volume == 0.0:
        return (export_price if n_buyers == 0 else top), 0.0
    marginal, critical = accept_sellers(position_kw, ask, rule, order, n_sellers, volume, top, accepted_kw)
    for place in range(n_sellers, n_sellers + n_buyers):
        station = order[place]
        accepted_kw[station] = position_kw[station] * (volume / demand) if supply < demand else position_kw[station]
    scarce = supply <= demand * (1.0 + TIE_FRAC)
    if rule == MID_MARKET:  # (M3)
        price = 0.5 * (export_price + top)
    elif rule == PAY_AS_ASK:
        price = _mean_ask(ask, accepted_kw, order, n_sellers, volume, marginal)
    elif scarce:
        price = top
    else:
        price = marginal if rule == MARGINAL else critical
    for place in range(n_sellers + n_buyers):
        station = order[place]
        own = price + fee if place >= n_sellers else (ask[station] if rule == PAY_AS_ASK else price)
        payment[station] = -accepted_kw[station] * own  # (M4)
    return price, volume


@njit(cache=True, nogil=True)
def sort_offers(position_kw: FloatArray, ask: FloatArray, by_ask: bool, order: IntArray) -> tuple[int, int]:
    """Sellers by (ask, quantity), then buyers by quantity, into ``order``; their numbers.

    The order of the sums is that of the offers, not of the stations: a result does not depend on how they are listed.
    """
    n_sellers, n_sorted = 0, 0
    for station in range(position_kw.size):
        if position_kw[station] > 0.0:
            place = n_sellers
            while place > 0 and _comes_before(position_kw, ask, by_ask, station, order[place - 1]):
                order[place] = order[place - 1]
                place -= 1
            order[place] = station
            n_sellers += 1
    n_sorted = n_sellers
    for station in range(position_kw.size):
        if position_kw[station] < 0.0:
            place = n_sorted
            while place > n_sellers and position_kw[station] > position_kw[order[place - 1]]:
                order[place] = order[place - 1]
                place -= 1
            order[place] = station
            n_sorted += 1
    return n_sellers, n_sorted - n_sellers


@njit(cache=True, nogil=True)
def _comes_before(position_kw: FloatArray, ask: FloatArray, by_ask: bool, one: int, other: int) -> bool:
    if by_ask and ask[one] != ask[other]:
        return bool(ask[one] < ask[other])
    return bool(position_kw[one] < position_kw[other])


@njit(cache=True, nogil=True)
def _total(values: FloatArray, order: IntArray, first: int, stop: int) -> float:
    """Compensated sum (Neumaier 1974) of values of one sign: its error is one rounding, however many there are."""
    total, lost = 0.0, 0.0
    for place in range(first, stop):
        value = values[order[place]]
        new = total + value
        lost += (total - new) + value if abs(total) >= abs(value) else (value - new) + total
        total = new
    return total + lost


@njit(cache=True, nogil=True)
def accept_sellers(
    position_kw: FloatArray,
    ask: FloatArray,
    rule: int,
    order: IntArray,
    n_sellers: int,
    volume: float,
    top: float,
    accepted_kw: FloatArray,
) -> tuple[float, float]:
    """Accept by ascending ask until the volume is reached; the marginal ask and the first not fully accepted one."""
    marginal, critical, found = ask[order[0]], top, False
    place = 0
    while place < n_sellers:
        end = place + 1
        while end < n_sellers and (rule == MID_MARKET or ask[order[end]] == ask[order[place]]):
            end += 1
        before = _total(position_kw, order, 0, place)
        group = _total(position_kw, order, place, end)
        left = max(volume - before, 0.0)
        for member in range(place, end):  # (M2)
            own = position_kw[order[member]]
            accepted_kw[order[member]] = own if left >= group else own * (left / group)
        if before < volume * (1.0 - TIE_FRAC):
            marginal = ask[order[place]]
        if not found and before + group > volume * (1.0 + TIE_FRAC):
            critical, found = ask[order[place]], True
        place = end
    return marginal, critical


@njit(cache=True, nogil=True)
def _mean_ask(
    ask: FloatArray, accepted_kw: FloatArray, order: IntArray, n_sellers: int, volume: float, highest: float
) -> float:
    """Volume-weighted mean of the accepted asks; between the lowest and the marginal one whatever the rounding."""
    mean = 0.0
    for place in range(n_sellers):
        mean += ask[order[place]] * (accepted_kw[order[place]] / volume)
    return float(min(max(mean, ask[order[0]]), highest))
