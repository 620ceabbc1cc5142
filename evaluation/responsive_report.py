"""The page of a comparison on days whose drivers respond: the report's machinery, own columns and drawings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evcs_gym.envs.units import DAY_START_HOUR, N_SLOTS, SLOT_H
from evcs_gym.evaluation import figures
from evcs_gym.evaluation.records import read_training_curve, write_text
from evcs_gym.evaluation.report import SEEN, changed_note, page_html, provenance_rows, reach_of_intervals
from evcs_gym.evaluation.responsive import Answered, Interval, ResponsiveComparison, ResponsiveResult
from evcs_gym.evaluation.responsive_tables import headline

TEMPLATE = "report_responsive.html"
COLUMNS = (
    ("profit", "EUR/day"),
    ("ahead", "EUR/day"),
    ("time", "h/day"),
    ("outside", "cars/day"),
    ("served", "kWh/day"),
    ("paid", "EUR/kWh"),
    ("gain", "EUR/day"),
    ("capped", "slots/day"),
    ("violations", "per day"),
)
N_DRAWN = 5
"""Policies whose first day is drawn: those of the largest profit; the table holds all."""


def write_responsive_report(path: Path, answered: Answered) -> Path:
    """Write a self-contained report.html; see `evcs_gym.evaluation.report.write_report`."""
    return write_text(path, page_html([_shown(answered)]))


def _shown(answered: Answered) -> dict[str, Any]:
    """What the template shows."""
    comparison = answered.comparison
    return {
        "template": TEMPLATE,
        "headline": headline(comparison),
        "caption": comparison.caption,
        "seen": SEEN.get(comparison.split, ""),
        "tiles": _tiles(comparison),
        "columns": COLUMNS,
        "rows": [_row(result) for result in comparison.results],
        "stations": _stations(comparison),
        "station_names": comparison.stations,
        "notes": _notes(comparison),
        "provenance": provenance_rows(comparison.provenance, comparison),
        **_drawings(answered),
    }


def _label(result: ResponsiveResult) -> str:
    """Policy and retail prices; a learned policy has its own."""
    return result.policy if result.kind != "rule" else f"{result.policy}, {result.retail} prices"


def _tiles(comparison: ResponsiveComparison) -> list[dict[str, str]]:
    first, best = comparison.results[0], max(comparison.results, key=lambda result: result.mean.profit_eur.value)
    tiles = [(best, "the largest profit"), *([] if best is first else [(first, "the first line")])]
    numbers = [
        {"number": f"{result.mean.profit_eur.value:.2f}", "words": f"EUR/day, {words}: {_label(result)}"}
        for result, words in tiles
    ]
    return [*numbers, {"number": str(len(comparison.day_seeds)), "words": f"{comparison.split} days"}]


def _row(result: ResponsiveResult) -> dict[str, Any]:
    mean = result.mean
    plain = (
        (mean.travel_h, ".1f"),
        (mean.outside_veh, ".1f"),
        (mean.served_kwh, ".0f"),
        (mean.retail_eur_per_kwh, ".4f"),
        (mean.cooperative_eur, ".2f"),
        (float(np.mean(result.n_capped_slots)), ".1f"),
        (float(np.mean(result.n_violations)), ".1f"),
    )
    n_seeds = len(result.training_seeds)
    words = f"{result.note}; {n_seeds} seed{'s' if n_seeds > 1 else ''}" if n_seeds else "rule"
    return {
        "label": _label(result),
        "kind": result.kind,
        "words": words,
        "cells": [
            _interval_cell(mean.profit_eur, ".2f"),
            _interval_cell(mean.ahead_eur, "+.2f"),
            *({"number": format(value, form), "interval": ""} for value, form in plain),
        ],
    }


def _interval_cell(mean: Interval, form: str) -> dict[str, str]:
    known = mean.low is not None and mean.high is not None
    return {"number": f"{mean.value:{form}}", "interval": f"{mean.low:.0f} to {mean.high:.0f}" if known else ""}


def _stations(comparison: ResponsiveComparison) -> list[dict[str, Any]]:
    """Tables of what each station earned and served."""

    def rows(name: str, form: str) -> list[dict[str, Any]]:
        return [
            {"label": _label(result), "cells": [format(value, form) for value in getattr(result.mean, name)]}
            for result in comparison.results
        ]

    return [
        {"title": "Profit of each station", "unit": "EUR per day", "rows": rows("station_profit_eur", ".1f")},
        {"title": "Energy served by each station", "unit": "kWh per day", "rows": rows("station_served_kwh", ".0f")},
    ]


def _notes(comparison: ResponsiveComparison) -> Sequence[str]:
    """What a reader should know before quoting a number."""
    n_seeds = [len(result.training_seeds) for result in comparison.results if result.training_seeds]
    return (
        *changed_note(comparison.provenance),
        *reach_of_intervals(len(comparison.day_seeds), n_seeds),
        "Who travels is the day's; where cars charge, and whether they do, is their answer to the prices. A policy "
        "with a larger profit may have taken it from drivers: see time, cars outside and the community's gain.",
        f"Every slot's traffic equilibrium is solved to a relative gap of {comparison.provenance.relative_gap:g}.",
    )


def _drawings(answered: Answered) -> dict[str, Any]:
    """SVG text by its name in the template."""
    results = answered.comparison.results
    bars = [figures.Bar(_label(result), result.kind, **result.mean.profit_eur.model_dump()) for result in results]
    profit = figures.bar_figure(bars, "profit of all stations, EUR/day")
    best_first = sorted(range(len(results)), key=lambda k: -results[k].mean.profit_eur.value)[:N_DRAWN]
    days = {_label(results[k]): answered.first_day[k] for k in best_first}
    time_h = DAY_START_HOUR + SLOT_H * np.arange(N_SLOTS, dtype=np.float64)
    curves = {
        name: read_training_curve(*files, measure="profit_eur")
        for name, files in answered.curves.items()
        if all(file.is_file() for file in files)
    }
    training = None
    if curves:
        figure = figures.training_figure(curves, "profit, EUR/day")
        training = figures.svg_text(figure, "training", "Profit against training steps")
    return {
        "profit_svg": figures.svg_text(profit, "profit", "Profit of every policy with its interval"),
        "training_svg": training,
        "day_title": answered.first_title,
        "day_svg": figures.svg_text(
            figures.responsive_day_figure(time_h, days), "day", "Retail prices, charging power and cars outside"
        ),
    }
