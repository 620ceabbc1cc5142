"""The page of a comparison of strategies: one HTML file that needs nothing else, in the style of the report."""

from importlib import resources
from pathlib import Path
from typing import Any, Final

import jinja2
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from evcs_gym.evaluation import figures
from evcs_gym.evaluation.records import DayTrace, write_json, write_text
from evcs_gym.evaluation.report import TEMPLATE, provenance_rows
from evcs_gym.evaluation.strategy import UNCOORDINATED, StrategyComparison, StrategyResult, table_rows

STRATEGY_TEMPLATE: Final = "strategy.html"


def headline(comparison: StrategyComparison) -> str:
    """What is compared, in one line."""
    n = len(comparison.day_seeds)
    days = f"{n} {comparison.split} day" + ("" if n == 1 else "s")
    return f"Fast charging, then charging at home: {days} of {comparison.scenario}"


def strategy_table(comparison: StrategyComparison) -> Table:
    """The table for the terminal: a line for each measure, a column for each strategy."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_style="bold")
    table.title, table.title_justify = Text(headline(comparison)), "left"
    rows = table_rows(comparison)
    for name in rows[0]:
        words = name in ("measure", "unit")
        table.add_column(Text(name), justify="left" if words else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))
    return table


def publish(folder: Path, comparison: StrategyComparison, trace: DayTrace) -> Path:
    """Write strategy.json and strategy.html into a folder; the path of the page.

    Raises:
        DataError: the folder cannot be written.
    """
    write_json(folder / "strategy.json", comparison)
    return write_text(folder / "strategy.html", strategy_html(comparison, trace))


def strategy_html(comparison: StrategyComparison, trace: DayTrace) -> str:
    """The page as text. trace: the first day."""
    folder = resources.files("evcs_gym.evaluation")
    source = folder.joinpath(STRATEGY_TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    words = "of every bus and phase over all days, under each strategy"
    drawn = {
        "day_svg": figures.svg_text(figures.day_figure(trace), "day", f"Load, generation and charging, {trace.title}"),
        "voltage_svg": figures.svg_text(figures.voltage_figure(trace), "voltage", f"Voltage by phase, {trace.title}"),
        "profile_svg": figures.svg_text(figures.profile_figure(profiles(comparison)), "profile", f"Voltages {words}"),
    }
    return environment.from_string(source).render(
        style=_style(folder.joinpath(TEMPLATE).read_text(encoding="utf-8")),
        headline=headline(comparison),
        comparison=comparison,
        uncoordinated=UNCOORDINATED,
        title=trace.title,
        rows=table_rows(comparison),
        notes=notes(comparison),
        provenance=provenance_rows(comparison.provenance, comparison),
        **drawn,
    )


def _style(page: str) -> str:
    """The style sheet of the report: both pages look alike, and it is written once."""
    return page.partition("<style>")[2].partition("</style>")[0]


def profiles(comparison: StrategyComparison) -> figures.VoltageProfiles:
    """Lowest and highest voltages as the figure takes them."""
    return figures.VoltageProfiles(
        bus_name=comparison.bus_name,
        vmin_pu=comparison.vmin_pu,
        vmax_pu=comparison.vmax_pu,
        lowest_pu={result.label: result.lowest_pu for result in comparison.results},
        highest_pu={result.label: result.highest_pu for result in comparison.results},
    )


def notes(comparison: StrategyComparison) -> list[str]:
    """What a reader should know before quoting a number."""
    lines = [
        "Our own case: no paper's figures are reproduced. Generation counts as absorbed at its own feeder bus only.",
        "Fast charging is dispatched first and does not know of charging at home, which takes its load as given; where "
        "a station and cars at home share a bus, both costs hold its exchange with the network: they are not added.",
        "A price per car is what its driver pays at the import price, weights and mean requests of (1) left out.",
        "Voltages hold both loads; limits are those of the day without any car.",
    ]
    for result in comparison.results:
        lines += _gap_notes(result)
    git_hash = comparison.provenance.git_hash
    if git_hash is not None and git_hash.endswith("+changed"):
        lines.append("The code had uncommitted changes: the commit below is not exactly what ran.")
    return lines


def _gap_notes(result: StrategyResult) -> list[str]:
    gaps: dict[str, Any] = {"fast charging": result.fast_gap, "charging at home": result.normal_gap}
    return [
        f"{result.label}: exact plans of {what} know the whole day; each is within {100 * gap:.2g} % of a proven bound."
        for what, gap in gaps.items()
        if gap is not None
    ]
