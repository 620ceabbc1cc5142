"""Parts of the documentation that are made from code and from result files: `make docs`."""

import sys
from pathlib import Path

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.fleet.fast_observation import fast_observation_page
from evcs_gym.envs.fleet.observation import observation_page as normal_charging_page
from evcs_gym.envs.market.observation import observation_page as market_page
from evcs_gym.evaluation.records import Comparison, read_json, write_text
from evcs_gym.evaluation.report import MISSING, table_rows

RESULTS_FILES = {
    "results": "docs/results/normal_charging.json",
    "market-results": "docs/results/market.json",
    "fast-results": "docs/results/fast_charging.json",
}
"""Result file of each place of README.md that lies between ``<!-- place:begin -->`` and ``<!-- place:end -->``."""
_COLUMNS = {"what it is": "kind_words", "EUR/day": "cost", "captured": "captured", "95 %": "interval"}
_OWN_COLUMNS = {"violations/day": "violations", "ms/decision": "ms"}
_FAST_COLUMNS = {"not taken": "unabsorbed", "stranded": "stranded", **_OWN_COLUMNS}
_MARKET_COLUMNS = {"profit": "profit", "traded": "traded", "capped slots": "capped", "unmet": "unmet"}


def observation_page() -> str:
    """Markdown page of what every environment shows."""
    return f"{normal_charging_page()}\n{market_page()}\n{fast_observation_page()}"


def results_block(comparison: Comparison, file: str) -> str:
    """The results of a comparison as Markdown: the table, and with which command and versions it was made."""
    own, units = _OWN_COLUMNS, ""
    if comparison.stations:
        own, units = _MARKET_COLUMNS, " Profit of all stations in EUR, traded and unmet energy in kWh, a day."
    elif comparison.is_fast:
        own, units = _FAST_COLUMNS, " Local generation that is not taken in kWh, stranded cars, a day."
    columns = _COLUMNS | own
    lines = [
        f"{len(comparison.day_seeds)} {comparison.split} days of `{comparison.scenario}`; learned policies: mean over "
        f"training seeds; intervals: 95 % bootstrap over days and seeds.{units}",
        "",
        f"| policy | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in table_rows(comparison):
        cells = (row.label, *(getattr(row, field) or MISSING for field in columns.values()))
        lines.append(f"| {' | '.join(cells)} |")
    origin = comparison.provenance
    lines += [
        "",
        f"Made with `{origin.command}` ({origin.solver}, gap {origin.relative_gap:g}; evcs-gym {origin.version}, "
        f"{origin.timestamp[:10]}). Every number of every day: [{file}]({file}).",
    ]
    return "\n".join(lines)


def with_results(page: str, place: str, comparison: Comparison) -> str:
    """The page with one of its results blocks replaced; places as in `RESULTS_FILES`.

    Raises:
        DataError: the page has no place of this name.
    """
    begin, end = f"<!-- {place}:begin -->", f"<!-- {place}:end -->"
    head, begun, rest = page.partition(begin)
    _, ended, tail = rest.partition(end)
    if not begun or not ended:
        raise DataError(f"the page must hold {begin} and {end}")
    return f"{head}{begin}\n{results_block(comparison, RESULTS_FILES[place])}\n{end}{tail}"


def main(root: Path) -> None:
    """Write docs/observation.md and the results of README.md."""
    write_text(root / "docs" / "observation.md", observation_page())
    readme = root / "README.md"
    page = readme.read_text(encoding="utf-8")
    for place, file in RESULTS_FILES.items():
        page = with_results(page, place, read_json(root / file))
    write_text(readme, page)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
