"""Observations as tables: a table is data, and gives the space, the documentation page and the tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Feature:
    """One row of the table: name, how many numbers, unit after scaling, what it means."""

    name: str
    size: int
    unit: str
    meaning: str


def n_features(table: Sequence[Feature]) -> int:
    """How many numbers the table describes."""
    return sum(feature.size for feature in table)


def slices_of(table: Sequence[Feature]) -> dict[str, slice]:
    """Where each feature lies in the last axis of the observation."""
    stops = np.cumsum([feature.size for feature in table])
    return {f.name: slice(int(stop) - f.size, int(stop)) for f, stop in zip(table, stops, strict=True)}


def page_rows(table: Sequence[Feature]) -> list[str]:
    """The table in Markdown, heading included."""
    lines = ["| position | name | unit | meaning |", "|---|---|---|---|"]
    for feature in table:
        place = slices_of(table)[feature.name]
        position = str(place.start) if feature.size == 1 else f"{place.start}..{place.stop - 1}"
        lines.append(f"| {position} | `{feature.name}` | {feature.unit} | {feature.meaning} |")
    return lines
