"""Tables of a comparison on days whose drivers respond, for the terminal."""

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from evcs_gym.evaluation.report import common_start
from evcs_gym.evaluation.responsive import ResponsiveComparison, ResponsiveMeans, ResponsiveResult

_COLUMNS: dict[str, tuple[str, str]] = {
    "travel h": ("travel_h", ".1f"),
    "outside": ("outside_veh", ".1f"),
    "served kWh": ("served_kwh", ".0f"),
    "gain EUR": ("cooperative_eur", ".2f"),
}
"""Title -> field of `ResponsiveMeans` and its format."""
UNITS = (
    "Means per day: stations' profit and what it is ahead of the first line (95 %), everybody's hours on roads and at "
    "stations, cars that did not charge here, energy charged, community's gain."
)


def responsive_tables(comparison: ResponsiveComparison) -> tuple[Table, Table, Table]:
    """All stations together, then profit and served energy of each, policies in the order they were named."""
    return (
        _totals(comparison),
        _per_station(comparison, "Profit", "EUR/day", lambda mean: mean.station_profit_eur, ".1f"),
        _per_station(comparison, "Energy served", "kWh/day", lambda mean: mean.station_served_kwh, ".0f"),
    )


def headline(comparison: ResponsiveComparison) -> str:
    """What is compared, in one line."""
    n_days, n = len(comparison.day_seeds), len(comparison.results)
    days = f"{n_days} {comparison.split} day{'' if n_days == 1 else 's'}"
    return f"Market, drivers respond: {n} result{'' if n == 1 else 's'} on {days} of {comparison.scenario}"


def _totals(comparison: ResponsiveComparison) -> Table:
    table = _table(headline(comparison))
    for title in ("profit EUR", "ahead EUR", *_COLUMNS):
        table.add_column(title, justify="right", no_wrap=title != "ahead EUR")
    for result in comparison.results:
        mean, ahead = result.mean, result.mean.ahead_eur
        known = ahead.low is not None and ahead.high is not None
        interval = f" ({ahead.low:.0f} to {ahead.high:.0f})" if known else ""
        cells = [format(getattr(mean, field), form) for field, form in _COLUMNS.values()]
        _add(table, result, [f"{mean.profit_eur.value:.2f}", f"{ahead.value:+.0f}{interval}", *cells])
    table.caption, table.caption_justify = Text(f"{UNITS} {comparison.caption}"), "left"
    return table


def _per_station(
    comparison: ResponsiveComparison,
    what: str,
    unit: str,
    values: Callable[[ResponsiveMeans], Sequence[float]],
    form: str,
) -> Table:
    common = common_start(comparison.stations)
    table = _table(f"{what} of each station{f' ({common}...)' if common else ''}, {unit}")
    for station in comparison.stations:
        table.add_column(Text(station.removeprefix(common)), justify="right", no_wrap=True)
    for result in comparison.results:
        _add(table, result, [format(value, form) for value in values(result.mean)])
    return table


def _table(title: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_style="bold")
    table.title, table.title_justify = Text(title), "left"
    table.add_column("policy", overflow="fold")
    table.add_column("retail", no_wrap=True)
    return table


def _add(table: Table, result: ResponsiveResult, cells: Sequence[str]) -> None:
    table.add_row(*(Text(cell) for cell in (result.policy, result.retail, *cells)))
