"""Figures of a report, from plain records to SVG text that is inlined into a page.

Colours are those of Okabe and Ito (2008, Color Universal Design), which colour-blind readers can tell apart.
Ink and grid are written as CSS values (`currentColor`, `var(--grid)`), so one drawing reads on a light and a
dark page. Figures are made as objects; pyplot and its global state are never touched.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from evcs_gym.baselines.problems.balance import BALANCES
from evcs_gym.baselines.score_responsive import FirstDay
from evcs_gym.envs.errors import DataError
from evcs_gym.envs.types import BoolArray, FloatArray
from evcs_gym.envs.units import US_PER_S
from evcs_gym.evaluation.pareto import ParetoPoint
from evcs_gym.evaluation.records import Comparison, DayTrace, Kind, MarketTrace, PolicyResult, TrainingCurve
from evcs_gym.evaluation.speed import SpeedRow

BLUE: Final = "#0072b2"
VERMILLION: Final = "#d55e00"
GREEN: Final = "#009e73"
ORANGE: Final = "#e69f00"
SKY: Final = "#56b4e9"
PURPLE: Final = "#cc79a7"
GREY: Final = "#8b929a"
KIND_COLOUR: Final[dict[Kind, str]] = {
    "rule": GREY,
    "planner": ORANGE,
    "learned": BLUE,
    "clone": SKY,
    "optimum": GREEN,
}
SEED_COLOURS: Final = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY)
PHASES: Final = ("a", "b", "c")
PHASE_COLOURS: Final = (BLUE, ORANGE, GREEN)

# Stand-ins that no palette colour uses; `svg_text` turns them into CSS values.
INK: Final = "#010203"
GRID: Final = "#040506"
CSS_VALUE: Final = {INK: "currentColor", GRID: "var(--grid, #c8ccd2)"}

DASHED: Final = (0, (4, 2))
VISIBLE_PU: Final = 1e-6
"""Smallest excursion that is marked: above the tolerance of the power flow, below anything one could see."""
WIDTH_IN: Final = 9.6
STYLE: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "evcs-gym",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.6,
    "text.color": INK,
    "xtick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def svg_text(figure: Figure, name: str, description: str) -> str:
    """The figure as an SVG element to be inlined in HTML.

    Args:
        figure: what the functions of this module return.
        name: prefix of all ids: several drawings live in one page, where ids must differ.
        description: read out by screen readers.
    """
    buffer = io.StringIO()
    with _style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    for colour, value in CSS_VALUE.items():
        text = text.replace(colour, value)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head, body = text.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{label}">{body}'


def _shown(field: str, known: Iterable[str], labels: Sequence[str] | None) -> list[str]:
    """The policies to draw, or a DataError where there are none or one is not in the trace."""
    available = list(known)
    wanted = available if labels is None else list(labels)
    absent = [label for label in wanted if label not in available]
    if absent or not wanted:
        raise DataError(f"figure: policies to draw must be in DayTrace.{field}, which holds {available}, got {wanted}")
    return wanted


# --- (a) one day -------------------------------------------------------------------------------------------


def day_figure(trace: DayTrace, labels: Sequence[str] | None = None) -> Figure:
    """Load, generation, price and charging of one day: a price strip, then one panel per policy.

    labels: policies to show, in order; all of the trace by default.
    """
    shown = _shown("charging_kw", trace.charging_kw, labels)
    n_columns = 2 if len(shown) == 4 else min(3, len(shown))
    n_rows = -(-len(shown) // n_columns)
    with _style():
        size_in = (WIDTH_IN, 1.35 + 2.15 * n_rows)
        figure = Figure(figsize=size_in, layout=ConstrainedLayoutEngine(wspace=0.03))
        grid = figure.add_gridspec(n_rows + 1, n_columns, height_ratios=[0.62] + [1.0] * n_rows)
        top_kw = 1.06 * _largest_kw(trace, shown)
        for column in range(n_columns):
            _price_panel(figure.add_subplot(grid[0, column]), trace, column)
        for index, label in enumerate(shown):
            row, column = divmod(index, n_columns)
            axes = figure.add_subplot(grid[row + 1, column])
            _charging_panel(axes, trace, label, top_kw)
            _clock_axis(axes, trace.time_h, labelled=index + n_columns >= len(shown))
            axes.tick_params(labelleft=column == 0)
            if column == 0:
                axes.set_ylabel("kW")
        handles, names = figure.axes[n_columns].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def _largest_kw(trace: DayTrace, shown: Iterable[str]) -> float:
    stacked = [trace.base_kw + trace.charging_kw[label] for label in shown]
    return float(max(np.max(stacked), trace.dg_kw.max(), 1.0))


def _price_panel(axes: Axes, trace: DayTrace, column: int) -> None:
    edges_h, price = _steps(trace.time_h, 100.0 * trace.import_eur_per_kwh)
    axes.plot(edges_h, price, color=PURPLE, drawstyle="steps-post", linewidth=1.6)
    axes.set_title("Import price")
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(labelleft=column == 0)
    if column == 0:
        axes.set_ylabel("ct/kWh")
    _clock_axis(axes, trace.time_h, labelled=False)


def _charging_panel(axes: Axes, trace: DayTrace, label: str, top_kw: float) -> None:
    edges_h, base_kw = _steps(trace.time_h, trace.base_kw)
    _, total_kw = _steps(trace.time_h, trace.base_kw + trace.charging_kw[label])
    _, dg_kw = _steps(trace.time_h, trace.dg_kw)
    area: dict[str, Any] = {"step": "post", "lw": 0}
    axes.fill_between(edges_h, 0.0, base_kw, color=GREY, alpha=0.45, label="load without cars", **area)
    axes.fill_between(edges_h, base_kw, total_kw, color=BLUE, alpha=0.85, label="charging", **area)
    axes.plot(edges_h, dg_kw, color=ORANGE, drawstyle="steps-post", lw=1.8, label="local generation (DG)")
    axes.set_ylim(0.0, top_kw)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(label)


# --- (b) voltage by phase ----------------------------------------------------------------------------------


def voltage_figure(trace: DayTrace | MarketTrace, labels: Sequence[str] | None = None) -> Figure:
    """Lowest and highest voltage over the buses, per slot and phase, one row per policy, limits drawn.

    The limits drawn are the tightest over the buses; slots in which some bus is outside its own limit are
    marked.
    """
    shown = _shown("voltage_pu", trace.voltage_pu, labels)
    with _style():
        figure = Figure(figsize=(WIDTH_IN, 0.75 + 1.55 * len(shown)), layout="constrained")
        panels = figure.subplots(len(shown), len(PHASES), sharex=True, sharey=True, squeeze=False)
        for row, label in enumerate(shown):
            for phase, axes in enumerate(panels[row]):
                _voltage_panel(axes, trace, trace.voltage_pu[label], phase)
                _clock_axis(axes, trace.time_h, labelled=row == len(shown) - 1)
                axes.set_title(f"{label}, phase {PHASES[phase]}")
            panels[row, 0].set_ylabel("pu")
        handles: dict[str, Artist] = {}
        for axes in panels.flat:
            found, names = axes.get_legend_handles_labels()
            handles = dict(zip(names, found, strict=True)) | handles
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    return figure


def _voltage_panel(axes: Axes, trace: DayTrace | MarketTrace, voltage_pu: FloatArray, phase: int) -> None:
    present = (voltage_pu[:, :, phase] > 0.0).any(axis=0)
    if not present.any():
        axes.text(0.5, 0.5, "no bus on this phase", ha="center", transform=axes.transAxes)
        return
    v_pu, low_pu, high_pu = (array[:, present, phase] for array in (voltage_pu, trace.vmin_pu, trace.vmax_pu))
    edges_h, lowest = _steps(trace.time_h, v_pu.min(axis=1))
    _, highest = _steps(trace.time_h, v_pu.max(axis=1))
    colour, name = PHASE_COLOURS[phase], "lowest to highest bus"
    axes.fill_between(edges_h, lowest, highest, step="post", color=colour, alpha=0.55, lw=0, label=name)
    for limit_pu in (low_pu.max(axis=1), high_pu.min(axis=1)):
        _, limit = _steps(trace.time_h, limit_pu)
        axes.plot(edges_h, limit, color=VERMILLION, lw=1.1, ls=DASHED, drawstyle="steps-post", label="limits")
    _mark_outside(axes, trace.time_h, np.any(v_pu < low_pu - VISIBLE_PU, axis=1), v_pu.min(axis=1))
    _mark_outside(axes, trace.time_h, np.any(v_pu > high_pu + VISIBLE_PU, axis=1), v_pu.max(axis=1))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _mark_outside(axes: Axes, time_h: FloatArray, outside: BoolArray, edge_pu: FloatArray) -> None:
    """A cross in the middle of every slot in which some bus is outside its own limit."""
    if outside.any():
        edges_h, _ = _steps(time_h, edge_pu)
        middle_h = 0.5 * (edges_h[:-1] + edges_h[1:])
        name = "outside the limits"
        axes.plot(middle_h[outside], edge_pu[outside], "x", color=VERMILLION, ms=4.5, label=name)


# --- (m) a day of the market -------------------------------------------------------------------------------


def market_figure(trace: MarketTrace, labels: Sequence[str] | None = None) -> Figure:
    """Price between the tariffs, volume traded and energy stored, a line for every policy."""
    shown = _shown("price_eur_per_kwh", trace.price_eur_per_kwh, labels)
    with _style():
        figure = Figure(figsize=(WIDTH_IN, 6.4), layout="constrained")
        price, volume, stored = figure.subplots(3, 1, sharex=True)
        _tariff_band(price, trace)
        edges_h, surplus_kw = _steps(trace.time_h, trace.surplus_kw)
        volume.plot(edges_h, surplus_kw, color=GREY, drawstyle="steps-post", lw=1.2, label="surplus of all stations")
        for index, label in enumerate(shown):
            line: dict[str, Any] = {"color": SEED_COLOURS[index % len(SEED_COLOURS)], "lw": 1.6, "label": label}
            line["drawstyle"] = "steps-post"
            price.plot(edges_h, _steps(trace.time_h, 100.0 * trace.price_eur_per_kwh[label])[1], **line)
            volume.plot(edges_h, _steps(trace.time_h, trace.volume_kw[label])[1], **line)
            stored.plot(edges_h[1:], trace.stored_kwh[label], **(line | {"drawstyle": "default"}))
        for axes, title, unit in (
            (price, "Price of the market, between export and import tariff", "ct/kWh"),
            (volume, "Traded between stations", "kW"),
            (stored, "Energy in all storages", "kWh"),
        ):
            axes.set_title(title)
            axes.set_ylabel(unit)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            _clock_axis(axes, trace.time_h, labelled=axes is stored)
        volume.set_ylim(bottom=0.0)
        handles, names = volume.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 4))
    return figure


def _tariff_band(axes: Axes, trace: MarketTrace) -> None:
    edges_h, high = _steps(trace.time_h, 100.0 * trace.import_eur_per_kwh)
    _, low = _steps(trace.time_h, 100.0 * trace.export_eur_per_kwh)
    axes.fill_between(edges_h, low, high, step="post", color=GREY, alpha=0.22, lw=0)


# --- (c) captured share ------------------------------------------------------------------------------------


def captured_figure(comparison: Comparison) -> Figure:
    """Captured share of every policy with its 95 % interval, best on top; 0 is the naive rule, 1 the bound."""
    results = sorted(comparison.results, key=lambda result: result.captured)
    with _style():
        figure = Figure(figsize=(WIDTH_IN, 0.9 + 0.36 * len(results)), layout="constrained")
        axes = figure.subplots()
        for y, result in enumerate(results):
            _captured_bar(axes, y, result)
        axes.set_yticks(range(len(results)), [result.label for result in results])
        axes.axvline(0.0, color=INK, linewidth=0.9)
        axes.axvline(1.0, color=INK, linewidth=1.1, ls=DASHED)
        lowest = min([0.0] + [r.captured if r.captured_low is None else r.captured_low for r in results])
        axes.set_xlim(lowest - (0.03 if lowest < 0.0 else 0.0), 1.02)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("captured share (0 = naive rule, dashed line at 1 = proven bound)")
    return figure


def _captured_bar(axes: Axes, y: int, result: PolicyResult) -> None:
    axes.barh(y, result.captured, height=0.62, color=KIND_COLOUR[result.kind], alpha=0.9, lw=0)
    words = f"{result.captured:.3f}"
    if result.captured_low is not None and result.captured_high is not None:
        axes.plot([result.captured_low, result.captured_high], [y, y], color=INK, linewidth=1.4)
        words += f"  ({result.captured_low:.2f} to {result.captured_high:.2f})"
    axes.annotate(
        words,
        (1.0, y),
        xycoords=axes.get_yaxis_transform(),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
    )


# --- (r) where drivers respond -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A mean with its interval, None on a single day."""

    label: str
    kind: Kind
    value: float
    low: float | None
    high: float | None


def bar_figure(bars: Sequence[Bar], axis: str) -> Figure:
    """A bar for every mean with its 95 % interval, in the order given from the top."""
    with _style():
        figure = Figure(figsize=(WIDTH_IN, 0.9 + 0.36 * len(bars)), layout="constrained")
        axes = figure.subplots()
        for y, bar in enumerate(reversed(bars)):
            axes.barh(y, bar.value, height=0.62, color=KIND_COLOUR[bar.kind], alpha=0.9, lw=0)
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [y, y], color=INK, linewidth=1.4)
        axes.set_yticks(range(len(bars)), [bar.label for bar in reversed(bars)])
        axes.axvline(0.0, color=INK, linewidth=0.9)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(axis)
    return figure


def responsive_day_figure(time_h: FloatArray, days: Mapping[str, FirstDay]) -> Figure:
    """Retail prices, charging power and cars that do not charge here on one day, a line for every policy."""
    with _style():
        figure = Figure(figsize=(WIDTH_IN, 6.4), layout="constrained")
        retail, charging, outside = figure.subplots(3, 1, sharex=True)
        for index, (label, day) in enumerate(days.items()):
            colour = SEED_COLOURS[index % len(SEED_COLOURS)]
            line: dict[str, Any] = {"color": colour, "lw": 1.6, "label": label, "drawstyle": "steps-post"}
            cents = 100.0 * day.retail_eur_per_kwh
            edges_h, mean = _steps(time_h, cents.mean(axis=1))
            low, high = (_steps(time_h, edge)[1] for edge in (cents.min(axis=1), cents.max(axis=1)))
            retail.fill_between(edges_h, low, high, step="post", color=colour, alpha=0.18, lw=0)
            retail.plot(edges_h, mean, **line)
            charging.plot(edges_h, _steps(time_h, day.charging_kw)[1], **line)
            outside.plot(edges_h, _steps(time_h, day.outside_veh_per_h)[1], **line)
        for axes, title, unit in (
            (retail, "Retail prices of the stations", "ct/kWh"),
            (charging, "Charging power that drivers ask for", "kW"),
            (outside, "Cars that do not charge here", "cars/h"),
        ):
            axes.set_title(title)
            axes.set_ylabel(unit)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            _clock_axis(axes, time_h, labelled=axes is outside)
        handles, names = charging.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 3))
    return figure


# --- (d) training ------------------------------------------------------------------------------------------


def training_figure(curves: Mapping[str, TrainingCurve], measure: str = "captured share") -> Figure:
    """A measure on validation days while training: a line for every seed of every run, by the run's label.

    One run is drawn with a colour for every seed, several with a colour for every run.
    """
    with _style():
        figure = Figure(figsize=(WIDTH_IN, 2.9), layout="constrained")
        axes = figure.subplots()
        for index, (label, curve) in enumerate(curves.items()):
            if len(curves) == 1:
                names = {int(seed): f"seed {seed}" for seed in np.unique(curve.training_seed)}
                _run_lines(axes, curve, names, SEED_COLOURS)
            else:
                first = {int(curve.training_seed.min()): label}
                _run_lines(axes, curve, first, [SEED_COLOURS[index % len(SEED_COLOURS)]])
        if measure == "captured share":
            axes.axhline(1.0, color=INK, linewidth=1.1, ls=DASHED)
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.set_xlabel("training steps (one step = one slot of one row of the batch)")
        axes.set_ylabel(measure)
        axes.legend(loc="lower right")
    return figure


def _run_lines(axes: Axes, curve: TrainingCurve, names: Mapping[int, str], colours: Sequence[str]) -> None:
    """A line for every seed, colours in turn; seeds without a name stay out of the legend."""
    for index, seed in enumerate(np.unique(curve.training_seed)):
        rows = np.flatnonzero(curve.training_seed == seed)
        # a run that was resumed judged its checkpoint twice: file order stands between equal steps
        rows = rows[np.argsort(curve.n_steps[rows], kind="stable")]
        steps, share, colour = curve.n_steps[rows], curve.measure[rows], colours[index % len(colours)]
        axes.plot(steps, share, color=colour, lw=1.8, marker="o", ms=3, label=names.get(int(seed)))


def _thousands(value: float, _: int | None) -> str:
    return f"{value:,.0f}"


# --- (e) speed ---------------------------------------------------------------------------------------------


def growth_figure(rows: Sequence[SpeedRow]) -> Figure:
    """Time of one power flow against the number of buses, for the trees of ``speed_power_flow``.

    The dashed line is exact proportion to the buses, through the smallest tree.
    """
    trees = sorted((row for row in rows if row.case.startswith("tree")), key=lambda row: row.buses)
    if len(trees) < 2:
        raise DataError(f"growth figure: it needs rows of at least two trees, got {len(trees)}; see speed_power_flow")
    buses = np.array([row.buses for row in trees], dtype=np.float64)
    time_us = np.array([row.seconds_per_item for row in trees]) * US_PER_S
    with _style():
        figure = Figure(figsize=(WIDTH_IN, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot(buses, time_us, color=BLUE, marker="o", lw=1.8, label="evcs-gym, one core, tolerance 1e-8 pu")
        axes.plot(buses, time_us[0] * buses / buses[0], color=INK, lw=1.1, ls=DASHED, label="proportional to buses")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("buses")
        axes.set_ylabel("microseconds per power flow")
        axes.legend(loc="lower right")
    return figure


def pareto_figure(points: Sequence[ParetoPoint]) -> Figure:
    """Charging cost against DG that nobody takes and against the peak, one line for each form of the first term."""
    if not points:
        raise DataError("pareto figure: it needs at least one point, got none")
    colours = dict(zip(BALANCES, (BLUE, VERMILLION, GREEN), strict=True))
    with _style():
        figure = Figure(figsize=(WIDTH_IN, 3.6), layout="constrained")
        both = figure.subplots(1, 2)
        for axes, name, label in zip(
            both, ("unabsorbed_kwh", "peak_kw"), ("DG not taken, kWh a day", "peak exchange, kW"), strict=True
        ):
            for balance in dict.fromkeys(point.balance for point in points):
                own = sorted((point for point in points if point.balance == balance), key=lambda point: point.share)
                x, y = [point.charging_eur for point in own], [getattr(point, name) for point in own]
                axes.plot(x, y, color=colours[balance], marker="o", ms=4.0, lw=1.6, label=balance)
                for end in (own[0], own[-1]):
                    at = (end.charging_eur, getattr(end, name))
                    axes.annotate(f"{end.share:g}", at, xytext=(4, 4), textcoords="offset points", fontsize=8.5)
            axes.set_xlabel("charging cost, EUR a day")
            axes.set_ylabel(label)
        both[0].legend(loc="upper right")
    return figure


# --- axes --------------------------------------------------------------------------------------------------


def _steps(time_h: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Slot edges (T+1,) and values with the last one repeated, so that the last slot is drawn too."""
    slot_h = time_h[-1] - time_h[-2] if len(time_h) > 1 else 1.0
    return np.append(time_h, time_h[-1] + slot_h), np.append(values, values[-1])


def _clock_axis(axes: Axes, time_h: FloatArray, labelled: bool) -> None:
    edges_h, _ = _steps(time_h, time_h)
    axes.set_xlim(edges_h[0], edges_h[-1])
    axes.xaxis.set_major_locator(MultipleLocator(6.0))
    axes.xaxis.set_major_formatter(FuncFormatter(_clock))
    axes.tick_params(labelbottom=labelled)


def _clock(value: float, _: int | None) -> str:
    return f"{round(value) % 24:02d}:00"


# --- (f) voltage of every bus ------------------------------------------------------------------------------


@dataclass(frozen=True)
class VoltageProfiles:
    """Lowest and highest voltage of every bus and phase by strategy, each (n_buses, 3), 0 where there is no such phase;
    vmin_pu, vmax_pu: the limits, alike."""

    bus_name: Sequence[str]
    vmin_pu: Sequence[Sequence[float]]
    vmax_pu: Sequence[Sequence[float]]
    lowest_pu: Mapping[str, Sequence[Sequence[float]]]
    highest_pu: Mapping[str, Sequence[Sequence[float]]]


def profile_figure(profiles: VoltageProfiles) -> Figure:
    """A panel per phase: range of the voltage of every bus, one band per strategy, the limits dashed."""
    place = np.arange(len(profiles.bus_name))
    with _style():
        figure = Figure(figsize=(WIDTH_IN, 0.9 + 1.9 * len(PHASES)), layout="constrained")
        panels = figure.subplots(len(PHASES), 1, sharex=True, sharey=True)
        for phase, axes in enumerate(panels):
            for label, colour in zip(profiles.lowest_pu, SEED_COLOURS, strict=False):
                low, high = (_of_phase(of[label], phase) for of in (profiles.lowest_pu, profiles.highest_pu))
                axes.fill_between(place, low, high, color=colour, alpha=0.25, lw=0)
                axes.plot(place, low, color=colour, lw=1.3, marker=".", label=label)
                axes.plot(place, high, color=colour, lw=0.8)
            for limit in (profiles.vmin_pu, profiles.vmax_pu):
                axes.plot(place, _of_phase(limit, phase), color=VERMILLION, lw=1.1, ls=DASHED, label="limits")
            axes.set_title(f"phase {PHASES[phase]}")
            axes.set_ylabel("pu")
        step = max(1, len(place) // 33)
        panels[-1].set_xticks(place[::step], [str(name) for name in profiles.bus_name[::step]])
        panels[-1].set_xlabel("bus of the feeder")
        handles, names = panels[0].get_legend_handles_labels()
        shown = dict(zip(names, handles, strict=True))
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown))
    return figure


def _of_phase(values: Sequence[Sequence[float]], phase: int) -> FloatArray:
    """One phase of all buses; NaN, which is not drawn, where it is absent."""
    column = np.array(values)[:, phase]
    return np.where(column > 0.0, column, np.nan)
