"""The report of a comparison: one HTML file that needs nothing else, and the same table for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import jinja2
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from evcs_gym.evaluation import figures, statistics
from evcs_gym.evaluation.exploitability import ExploitSummary, summary
from evcs_gym.evaluation.records import (
    Comparison,
    DayTrace,
    MarketTrace,
    PolicyResult,
    Provenance,
    TrainingCurve,
    write_csv,
    write_json,
    write_station_csv,
    write_text,
)

Curves = TrainingCurve | Mapping[str, TrainingCurve] | None
Traces = Sequence[DayTrace | MarketTrace]
TEMPLATE = "report.html"
KIND_WORDS = {
    "rule": "rule",
    "planner": "solves a programme every slot",
    "learned": "learned",
    "clone": "learned, warm start",
    "optimum": "exact, knows the day",
}
SEEN = {
    "train": "These are training days: learned policies may have seen them.",
    "validation": "No policy was trained on these days, but the best checkpoints may have been chosen on them.",
    "test": "No policy was trained or chosen on these days.",
}
MISSING = "–"


@dataclass(frozen=True, eq=False)
class Part:
    """One comparison of a page: its numbers, days to draw, each with the policies it holds, and training curves."""

    comparison: Comparison
    traces: Traces = ()
    training_curve: Curves = None


@dataclass(frozen=True)
class Row:
    """One line of the table, as it is printed."""

    label: str
    kind: str
    kind_words: str
    cost: str
    captured: str
    interval: str
    gap: str
    violations: str
    unmet: str
    ms: str
    note: str
    profit: str = ""
    traded: str = ""
    capped: str = ""
    curtailed: str = ""
    stranded: str = ""
    unabsorbed: str = ""


def table_rows(comparison: Comparison) -> tuple[Row, ...]:
    """The proven bound, then the policies from the best captured share to the worst."""
    best_first = sorted(comparison.results, key=lambda result: -result.captured)
    return (_bound_row(comparison), *(_row(result) for result in best_first))


def _bound_row(comparison: Comparison) -> Row:
    return Row(
        label="proven bound",
        kind="bound",
        kind_words="no policy can be below",
        cost=f"{np.mean(comparison.lower_bound_eur):.2f}",
        captured="1.000",
        interval="",
        gap="0.000",
        violations=MISSING,
        unmet=MISSING,
        ms=MISSING,
        note=comparison.bound_label,
        **dict.fromkeys(("profit", "traded", "capped", "curtailed"), MISSING if comparison.stations else ""),
        **dict.fromkeys(("stranded", "unabsorbed"), MISSING if comparison.is_fast else ""),
    )


def _row(result: PolicyResult) -> Row:
    low, high = result.captured_low, result.captured_high
    note = [result.note] if result.note else []
    if result.relative_gap is not None:
        note.append(f"solved to a certified gap of {100 * max(result.relative_gap):.2g} % or less")
    return Row(
        label=result.label,
        kind=result.kind,
        kind_words=_kind_words(result),
        cost=f"{result.mean_cost_eur:.2f}",
        captured=f"{result.captured:.3f}",
        interval="" if low is None or high is None else f"{low:.2f} to {high:.2f}",
        gap=f"{result.gap:.3f}",
        violations=f"{result.mean_violations:.1f}",
        unmet=f"{np.mean(result.unmet_kwh):.1f}",
        ms=MISSING if result.ms_per_decision is None else f"{result.ms_per_decision:.3g}",
        note="; ".join(note),
        **_market_cells(result),
        **_fast_cells(result),
    )


def _market_cells(result: PolicyResult) -> dict[str, str]:
    if result.market is None:
        return {}
    return {
        "profit": f"{sum(result.market.mean_profit_eur):.2f}",
        "traded": f"{np.mean(result.market.traded_kwh):.0f}",
        "capped": f"{np.mean(result.market.n_capped_slots):.1f}",
        "curtailed": f"{np.mean(result.market.curtailed_kwh):.1f}",
    }


def _fast_cells(result: PolicyResult) -> dict[str, str]:
    if result.fast is None:
        return {}
    return {
        "stranded": f"{np.mean(result.fast.n_stranded):.1f}",
        "unabsorbed": f"{np.mean(result.fast.unabsorbed_kwh):.0f}",
    }


def _kind_words(result: PolicyResult) -> str:
    words = KIND_WORDS[result.kind]
    n_seeds = len(result.cost_eur)
    return words if n_seeds == 1 else f"{words}, {n_seeds} seeds"


def rich_table(comparison: Comparison) -> Table:
    """The table of the report for the terminal, 80 columns wide; unmet energy has a column where there is
    any, the market has columns of its own.
    """
    unmet = any(np.any(result.unmet_kwh) for result in comparison.results) and not comparison.is_fast
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_style="bold")
    table.title, table.title_justify = Text(headline(comparison)), "left"
    table.add_column("policy", overflow="fold")
    columns = {"EUR/day": "cost", "captured (95 %)": "captured", **_own_columns(comparison)}
    columns |= {"unmet" if comparison.stations else "unmet kWh": "unmet"} if unmet else {}
    if comparison.stations:
        table.caption, table.caption_justify = (
            Text("profit EUR; traded, curtailed, unmet kWh; capped slots; a day"),
            "left",
        )
    if comparison.is_fast:
        table.caption, table.caption_justify = Text("local generation not taken: kWh a day"), "left"
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    styles = {"bound": "dim", "learned": "bold", "clone": "bold"}
    for row in table_rows(comparison):
        share = row.captured + (f" ({row.interval})" if row.interval else "")
        cells = [row.label, *(share if field == "captured" else getattr(row, field) for field in columns.values())]
        # Text, not str: a label such as 'ppo[3]' is not markup.
        table.add_row(*(Text(cell) for cell in cells), style=styles.get(row.kind))
    return table


def _own_columns(comparison: Comparison) -> dict[str, str]:
    """Columns of the terminal's table that depend on the problem: title -> field of `Row`."""
    if comparison.stations:
        return {"profit": "profit", "traded": "traded", "capped": "capped", "curt.": "curtailed"}
    if comparison.is_fast:
        return {"not taken": "unabsorbed", "stranded": "stranded", "viol./day": "violations", "ms/dec.": "ms"}
    return {"gap": "gap", "viol./day": "violations", "ms/dec.": "ms"}


def profit_rows(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """(label, profit of each station [EUR/day]) in the order of `table_rows`; empty outside the market."""
    best_first = sorted(comparison.results, key=lambda result: -result.captured)
    return tuple(
        (result.label, *(f"{profit:.1f}" for profit in result.market.mean_profit_eur))
        for result in best_first
        if result.market is not None
    )


def profit_table(comparison: Comparison) -> Table:
    """Profit of each station under each policy [EUR/day], for the terminal."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_style="bold")
    common = common_start(comparison.stations)
    named = f" ({common}...)" if common else ""
    table.title, table.title_justify = Text(f"Profit of each station{named}, EUR/day"), "left"
    table.add_column("policy", overflow="fold")
    for station in comparison.stations:
        table.add_column(Text(station.removeprefix(common)), justify="right", no_wrap=True)
    for row in profit_rows(comparison):
        table.add_row(*(Text(cell) for cell in row))
    return table


def exploit_table(summaries: Mapping[str, ExploitSummary]) -> Table:
    """Exploitability, mark-up and price of anarchy of policies, for the terminal."""
    table = empty_table("Best responses, EUR/day")
    words = (
        "largest and mean strategic part of a station; mark-up over the competitive price, EUR/kWh; price of anarchy; "
        "slots with a pivotal seller, % of those with competition; mean replay error"
    )
    table.caption, table.caption_justify = Text(words), "left"
    for name in ("policy", "largest", "mean (95 %)", "mark-up", "anarchy (95 %)", "pivotal", "replay"):
        first = name == "policy"
        table.add_column(name, justify="left" if first else "right", no_wrap=not first, overflow="fold")
    for label, known in summaries.items():
        table.add_row(Text(label), *exploit_cells(known))
    return table


def exploit_cells(known: ExploitSummary) -> tuple[str, ...]:
    """The numbers of `exploit_table` as they are printed."""
    return (
        f"{known.largest_eur:.2f}",
        interval_words(known.mean_eur),
        MISSING if known.markup_eur_per_kwh is None else f"{known.markup_eur_per_kwh:.4f}",
        interval_words(known.anarchy_eur),
        MISSING if known.pivotal_frac is None else f"{100.0 * known.pivotal_frac:.0f}",
        f"{known.mean_replay_error_eur:.2f}",
    )


def exploit_summaries(comparison: Comparison) -> dict[str, ExploitSummary]:
    """By label, from the best captured share to the worst, of the policies for which best responses were asked."""
    best_first = sorted(comparison.results, key=lambda result: -result.captured)
    return {result.label: summary(result.exploit) for result in best_first if result.exploit}


def exploit_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """(label, numbers of `exploit_cells`, strategic part of each station) of each policy."""
    return [
        (label, *exploit_cells(known), *(f"{estimate.value:.2f}" for estimate in known.strategic_eur))
        for label, known in exploit_summaries(comparison).items()
    ]


def empty_table(title: str) -> Table:
    """A table for the terminal."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_style="bold")
    table.title, table.title_justify = Text(title), "left"
    return table


def interval_words(estimate: statistics.Estimate) -> str:
    """A mean with its interval, where there is one."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} ({estimate.low:.1f} to {estimate.high:.1f})"


def common_start(names: Sequence[str]) -> str:
    """Letters with which all names begin; none of a single name, which would be all of it."""
    if len(names) < 2:
        return ""
    return "".join(letters[0] for letters in takewhile(lambda c: len(set(c)) == 1, zip(*names, strict=False)))


def headline(comparison: Comparison) -> str:
    """What is compared, in one line."""
    of = "" if comparison.scenario == comparison.problem else f" of {comparison.scenario}"
    problem = comparison.problem.replace("_", " ").capitalize()
    return f"{problem}: {_n_policies(comparison)} on {_n_days(comparison)}{of}"


def _n_policies(comparison: Comparison) -> str:
    n = len(comparison.results)
    return f"{n} policy" if n == 1 else f"{n} policies"


def _n_days(comparison: Comparison) -> str:
    n = len(comparison.day_seeds)
    return f"{n} {comparison.split} day" + ("" if n == 1 else "s")


def best_learned(comparison: Comparison) -> PolicyResult | None:
    """The learned policy with the largest captured share, None where none was compared."""
    learned = [result for result in comparison.results if result.kind in ("learned", "clone")]
    return max(learned, key=lambda result: result.captured, default=None)


# --- notes -------------------------------------------------------------------------------------------------


def honest_notes(comparison: Comparison) -> tuple[str, ...]:
    """What a reader should know before quoting a number, worked out from the records."""
    notes = [*_defects(comparison), *_reach_of_bound(comparison), *_reach_of_intervals(comparison)]
    infeasible_kwh = float(np.mean(comparison.infeasible_kwh))
    if infeasible_kwh > 0.0:
        notes.append(
            f"On an average day {infeasible_kwh:.1f} kWh cannot be charged by any policy, because a car leaves "
            "too early; such cars charge in every slot and no policy is charged for the missing energy."
        )
    who = "all stations" if comparison.stations else "one request" if comparison.is_fast else "all charging buses"
    notes.append(
        f"Milliseconds per decision are wall time on the machine named below, for one decision of {who}, "
        "without the power flow; the plan of an exact optimum is solved once for the whole day."
    )
    return (*notes, *comparison.notes)


def changed_note(origin: Provenance) -> list[str]:
    """A word where the code was not that of a commit."""
    if origin.git_hash is None or not origin.git_hash.endswith("+changed"):
        return []
    return ["The code had uncommitted changes: the commit below is not exactly what ran."]


def _defects(comparison: Comparison) -> list[str]:
    notes = []
    if not comparison.complete:
        notes.append("This comparison was interrupted or is still running: policies are missing.")
    broken = comparison.below_bound()
    if broken:
        named = ", ".join(f"{label} on day {day}" for label, day in broken[:5])
        notes.append(
            f"DEFECT: {len(broken)} costs lie below the proven bound ({named}{', …' if len(broken) > 5 else ''}). "
            "The bound or the cost is wrong; do not quote these results."
        )
    return [*notes, *changed_note(comparison.provenance)]


def _reach_of_bound(comparison: Comparison) -> list[str]:
    notes = [
        f"The bound ({comparison.bound_label}) holds for every policy, also for one that knows the whole day; "
        "it need not be reachable, so a gap of zero may be impossible."
    ]
    if any(result.kind == "optimum" for result in comparison.results):
        notes.append(
            "The exact optimum sees the whole day before it happens. The other policies do not: part of their gap "
            "is the price of not knowing, not of deciding badly."
        )
    return notes


def _reach_of_intervals(comparison: Comparison) -> list[str]:
    n_seeds = [len(result.cost_eur) for result in comparison.results if result.kind in ("learned", "clone")]
    return reach_of_intervals(len(comparison.day_seeds), n_seeds)


def reach_of_intervals(n_days: int, n_seeds: Sequence[int]) -> list[str]:
    """What intervals say and what they do not; n_seeds: training seeds of each learned policy."""
    if n_days < 2:
        return ["One day has no spread: no intervals are given, and the order of the policies may be chance."]
    notes = [
        "Intervals are 95 % percentile bootstraps over days and training seeds, drawn together and with the "
        "same days for every policy: two policies whose intervals overlap may still differ clearly day by day."
    ]
    if n_seeds and min(n_seeds) < 5:
        notes.append(
            f"Learned policies were trained with as few as {min(n_seeds)} seed{'s' if min(n_seeds) > 1 else ''}: "
            "their intervals understate how much training varies."
        )
    return notes


@dataclass(frozen=True)
class CleanRow:
    """A policy restricted to the days on which it kept all voltage limits."""

    label: str
    n_days: int
    captured: str


def clean_rows(comparison: Comparison) -> tuple[CleanRow, ...]:
    """Captured share on the days without violation, for every policy; empty where nobody left the limits."""
    if all(result.mean_violations == 0.0 for result in comparison.results):
        return ()
    best_first = sorted(comparison.results, key=lambda result: -result.captured)
    return tuple(_clean_row(comparison, result) for result in best_first)


def _clean_row(comparison: Comparison, result: PolicyResult) -> CleanRow:
    days = list(result.clean_days)
    naive = np.asarray(comparison.naive_cost_eur)[days]
    bound = np.asarray(comparison.lower_bound_eur)[days]
    if not (naive - bound).sum() > 0.0:
        return CleanRow(result.label, len(days), MISSING)
    share = statistics.captured_share(np.asarray(result.cost_eur)[:, days], naive, bound)
    return CleanRow(result.label, len(days), f"{share:.3f}")


# --- page --------------------------------------------------------------------------------------------------


def write_report(
    path: Path,
    comparison: Comparison,
    traces: Traces = (),
    training_curve: Curves = None,
) -> Path:
    """Write a self-contained report.html: styles and drawings inside, no script, nothing loaded from
    elsewhere.

    Args:
        path: of the file; replaced whole.
        comparison: the numbers.
        traces: days to draw, each with the policies it holds.
        training_curve: captured share on validation days while training, of one run or of several by label.
    """
    return write_parts(path, [Part(comparison, traces, training_curve)])


def write_parts(path: Path, parts: Sequence[Part]) -> Path:
    """Write one report of several comparisons, one below the other; see `write_report`."""
    return write_text(path, parts_html(parts))


def publish(
    folder: Path,
    comparison: Comparison,
    traces: Traces = (),
    training_curve: Curves = None,
) -> Path:
    """Write comparison.json, days.csv and report.html into a folder; the path of the report.

    Called again after every policy, it leaves the last complete state behind whenever it is interrupted.
    """
    write_json(folder / "comparison.json", comparison)
    write_csv(folder / "days.csv", comparison)
    if comparison.stations:
        write_station_csv(folder / "stations.csv", comparison)
    return write_report(folder / "report.html", comparison, traces, training_curve)


def report_html(comparison: Comparison, traces: Traces = (), training_curve: Curves = None) -> str:
    """The page of `write_report` as text."""
    return parts_html([Part(comparison, traces, training_curve)])


def parts_html(parts: Sequence[Part]) -> str:
    """The page of `write_parts` as text."""
    return page_html([_shown(part, "" if number == 0 else f"part{number}-") for number, part in enumerate(parts)])


def page_html(parts: Sequence[Mapping[str, Any]]) -> str:
    """One page of parts below each other: each holds its headline and the name and the variables of its template."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    title = "; ".join(part["headline"] for part in parts)
    return environment.get_template(TEMPLATE).render(title=title, parts=parts)


def _source(name: str) -> str:
    return resources.files("evcs_gym.evaluation").joinpath(name).read_text(encoding="utf-8")


def _shown(part: Part, prefix: str) -> dict[str, Any]:
    """What the template shows of a part; prefix: of the ids of its drawings."""
    comparison = part.comparison
    return {
        "template": "report_bounded.html",
        "comparison": comparison,
        "headline": headline(comparison),
        "n_policies": _n_policies(comparison),
        "n_days": _n_days(comparison),
        "seen": SEEN.get(comparison.split, ""),
        "key": _key(comparison),
        "best": best_learned(comparison),
        "naive_eur": f"{np.mean(comparison.naive_cost_eur):.2f}",
        "bound_eur": f"{np.mean(comparison.lower_bound_eur):.2f}",
        "rows": table_rows(comparison),
        "profits": profit_rows(comparison),
        "exploits": exploit_rows(comparison),
        "clean": clean_rows(comparison),
        "notes": honest_notes(comparison),
        "provenance": provenance_rows(comparison.provenance, comparison),
        **_drawings(comparison, part.traces, part.training_curve, prefix),
    }


def _key(comparison: Comparison) -> list[tuple[str, str]]:
    """(colour, words) of the kinds of policies in the bar chart."""
    shown = {result.kind for result in comparison.results}
    return [(colour, KIND_WORDS[kind]) for kind, colour in figures.KIND_COLOUR.items() if kind in shown]


def _drawings(comparison: Comparison, traces: Traces, curve: Curves, prefix: str) -> dict[str, Any]:
    """SVG text by its name in the template."""
    captured = figures.captured_figure(comparison)
    words = "Captured share of every policy with its interval"
    training = None
    if curve:
        runs = {"": curve} if isinstance(curve, TrainingCurve) else curve
        figure = figures.training_figure(runs)
        training = figures.svg_text(figure, f"{prefix}training", "Captured share against training steps")
    return {
        "captured_svg": figures.svg_text(captured, f"{prefix}captured", words),
        "training_svg": training,
        "days": [_day_drawings(prefix, index, trace) for index, trace in enumerate(traces)],
    }


def _day_drawings(prefix: str, index: int, trace: DayTrace | MarketTrace) -> dict[str, Any]:
    title = trace.title or f"day {index + 1}"
    if isinstance(trace, MarketTrace):
        words = f"Price, trade and stored energy, {title}"
        day = figures.svg_text(figures.market_figure(trace), f"{prefix}day{index}", words)
    else:
        words = f"Load, generation, price and charging, {title}"
        day = figures.svg_text(figures.day_figure(trace), f"{prefix}day{index}", words)
    voltage = None
    if trace.voltage_pu:
        words = f"Voltage by phase and policy, {title}"
        voltage = figures.svg_text(figures.voltage_figure(trace), f"{prefix}voltage{index}", words)
    return {"title": title, "market": isinstance(trace, MarketTrace), "day_svg": day, "voltage_svg": voltage}


class Asked(Protocol):
    """The question of a comparison."""

    @property
    def scenario(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def day_seeds(self) -> tuple[int, ...]: ...


def provenance_rows(origin: Provenance, comparison: Asked) -> list[tuple[str, str]]:
    """Names and values of the footer."""
    return [
        ("evcs-gym", origin.version),
        ("commit", origin.git_hash or "not run from a checkout"),
        ("configuration", origin.config_hash),
        ("scenario", comparison.scenario),
        ("days", f"{comparison.split}, seeds {_ranges(comparison.day_seeds)}"),
        ("training seeds", _ranges(origin.training_seeds) or "none"),
        ("solver", f"{origin.solver}, relative gap {origin.relative_gap:g}"),
        ("Python", origin.python),
        ("numpy", origin.numpy),
        ("torch", origin.torch or "not installed"),
        ("highspy", origin.highspy or "not installed"),
        ("machine", origin.platform),
        ("made", origin.timestamp),
        ("command", origin.command),
    ]


def _ranges(seeds: Sequence[int]) -> str:
    """Seeds as ranges: 0, 1, 2, 7 is '0-2, 7'."""
    runs: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
