"""Reader of the TNTP text format: a header in angle brackets, comments after ~, a table of links, trips by origin."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.types import FloatArray, IntArray

PathLike = str | os.PathLike[str]
_N_COLUMNS = 9
_END = "END OF METADATA"


@dataclass(frozen=True, eq=False)
class NetFile:
    """Links of a file, arrays (L,); nodes count from 0. first_through counts from 1, as the file does."""

    n_zones: int
    n_nodes: int
    first_through: int
    tail: IntArray
    head: IntArray
    capacity: FloatArray
    length: FloatArray
    free_flow: FloatArray
    b: FloatArray
    power: FloatArray
    toll: FloatArray


@dataclass(frozen=True, eq=False)
class TripsFile:
    """Pairs with demand of a file, arrays (K,); zones count from 0."""

    n_zones: int
    origin: IntArray
    destination: IntArray
    demand: FloatArray


def read_net(path: PathLike) -> NetFile:
    """Links of a ``*_net.tntp`` file.

    Raises DataError: no such file, a header entry that is missing, a row that is too short or holds no numbers, another
    number of links than the header says.
    """
    header, lines = _split(path)
    counts = {key: _count(path, header, key) for key in ("NUMBER OF ZONES", "NUMBER OF NODES", "NUMBER OF LINKS")}
    through = _count(path, header, "FIRST THRU NODE") if "FIRST THRU NODE" in header else 1
    rows = []
    for number, line in lines:
        words = line.rstrip("; \t").split()
        if len(words) < _N_COLUMNS:
            raise DataError(f"{path}, line {number}: a link needs {_N_COLUMNS} columns or more, got {len(words)}")
        rows.append([_number(path, number, word) for word in words[:_N_COLUMNS]])
    if len(rows) != counts["NUMBER OF LINKS"]:
        raise DataError(f"{path}: NUMBER OF LINKS is {counts['NUMBER OF LINKS']}, but {len(rows)} rows follow")
    table = np.array(rows, dtype=np.float64).reshape(-1, _N_COLUMNS)
    nodes = table[:, :2].astype(np.int64) - 1
    return NetFile(
        n_zones=counts["NUMBER OF ZONES"],
        n_nodes=counts["NUMBER OF NODES"],
        first_through=through,
        tail=nodes[:, 0],
        head=nodes[:, 1],
        capacity=table[:, 2],
        length=table[:, 3],
        free_flow=table[:, 4],
        b=table[:, 5],
        power=table[:, 6],
        toll=table[:, 8],
    )


def read_trips(path: PathLike) -> TripsFile:
    """Demand of a ``*_trips.tntp`` file; zero entries and trips within a zone are left out.

    Raises DataError: no such file, no NUMBER OF ZONES, an entry that cannot be read, a zone out of range, a sum that
    differs from TOTAL OD FLOW by more than its rounding (1e-3 of it).
    """
    header, lines = _split(path)
    n_zones = _count(path, header, "NUMBER OF ZONES")
    table = np.zeros((n_zones, n_zones))
    origin = -1
    for number, line in lines:
        if line.lower().startswith("origin"):
            origin = _zone(path, number, line[len("origin") :].strip(), n_zones)
            continue
        for entry in filter(None, (part.strip() for part in line.split(";"))):
            zone, colon, value = entry.partition(":")
            if not colon or origin < 0:
                raise DataError(f"{path}, line {number}: expected 'zone : trips;' below an Origin, got {entry!r}")
            table[origin, _zone(path, number, zone.strip(), n_zones)] += _number(path, number, value.strip())
    if "TOTAL OD FLOW" in header:
        said, found = _number(path, 0, header["TOTAL OD FLOW"]), float(table.sum())
        if abs(said - found) > 1e-3 * max(1.0, abs(said)):
            raise DataError(f"{path}: TOTAL OD FLOW is {said}, but the trips add up to {found}")
    np.fill_diagonal(table, 0.0)
    start, end = np.nonzero(table)
    return TripsFile(n_zones, start.astype(np.int64), end.astype(np.int64), table[start, end])


def _split(path: PathLike) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """Header entries, and (number, text) of every line below the header that says something."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); a TNTP text file is needed") from error
    header: dict[str, str] = {}
    lines: list[tuple[int, str]] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("~")[0].strip()
        entry = re.match(r"<(.+?)>\s*(.*)", raw.strip()) if _END not in header else None
        if entry is not None:
            header[entry[1].strip().upper()] = entry[2].partition("~")[0].strip()
        elif line:
            lines.append((number, line))
    if _END not in header:
        raise DataError(f"{path}: a TNTP file has a line <{_END}>, but there is none")
    return header, lines


def _count(path: PathLike, header: dict[str, str], key: str) -> int:
    if not re.fullmatch(r"\d+", header.get(key, "")):
        raise DataError(f"{path}: the header needs a whole number <{key}>, got {header.get(key)!r}")
    return int(header[key])


def _number(path: PathLike, line: int, word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise DataError(f"{path}, line {line}: a number was expected, got {word!r}") from error


def _zone(path: PathLike, line: int, word: str, n_zones: int) -> int:
    if not re.fullmatch(r"\d+", word) or not 1 <= int(word) <= n_zones:
        raise DataError(f"{path}, line {line}: a zone 1..{n_zones} was expected, got {word!r}")
    return int(word) - 1
