"""Parts of the documentation that are made from code and from result files: `make docs`."""

import sys
from pathlib import Path

from evcs_gym.envs.errors import DataError
from evcs_gym.envs.fleet.observation import observation_page as normal_charging_page
from evcs_gym.envs.market.observation import observation_page as market_page
from evcs_gym.evaluation.records import Comparison, read_json, write_text
from evcs_gym.evaluation.report import MISSING, table_rows

RESULTS_FILE = "docs/results/normal_charging.json"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def observation_page() -> str:
    """Markdown page of what every environment shows."""
    return f"{normal_charging_page()}\n{market_page()}"


def results_block(comparison: Comparison) -> str:
    """The results of a comparison as Markdown: the table, and with which command and versions it was made."""
    lines = [
        f"{len(comparison.day_seeds)} {comparison.split} days of `{comparison.scenario}`; learned policies: mean over "
        "training seeds; intervals: 95 % bootstrap over days and seeds.",
        "",
        "| policy | what it is | EUR/day | captured | 95 % | violations/day | ms/decision |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table_rows(comparison):
        cells = (row.label, row.kind_words, row.cost, row.captured, row.interval or MISSING, row.violations, row.ms)
        lines.append(f"| {' | '.join(cells)} |")
    origin = comparison.provenance
    lines += [
        "",
        f"Made with `{origin.command}` ({origin.solver}, gap {origin.relative_gap:g}; evcs-gym {origin.version}, "
        f"{origin.timestamp[:10]}). Every number of every day: [{RESULTS_FILE}]({RESULTS_FILE}).",
    ]
    return "\n".join(lines)


def with_results(page: str, comparison: Comparison) -> str:
    """The page with its results block replaced.

    Raises:
        DataError: the page has no place for results.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise DataError(f"the page must hold {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{results_block(comparison)}\n{END}{tail}"


def main(root: Path) -> None:
    """Write docs/observation.md and the results of README.md."""
    write_text(root / "docs" / "observation.md", observation_page())
    readme = root / "README.md"
    write_text(readme, with_results(readme.read_text(encoding="utf-8"), read_json(root / RESULTS_FILE)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
