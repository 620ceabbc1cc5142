"""Documentation that runs: examples are executed, commands parsed, names looked up."""

import ast
import importlib
import importlib.metadata
import re
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from evcs_gym.envs import ENVIRONMENT_IDS, load_scenario
from evcs_gym.envs.errors import DataError
from evcs_gym.envs.fleet import observation as normal_observation
from evcs_gym.envs.market import observation as market_observation
from evcs_gym.envs.specs import shipped
from evcs_gym.evaluation.benchmark import game_of
from evcs_gym.evaluation.cli import app
from evcs_gym.evaluation.pages import RESULTS_FILES, observation_page, with_results
from evcs_gym.evaluation.records import read_json

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
QUICK = ("--version", "--help", "scenario")
"""Commands that take a second: they are run as written."""


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(path), flags=re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    """Every `evcs-gym ...` of a page, in code blocks and inline, as arguments without the program's name."""
    lines = [line for block in blocks(path, "bash") for line in block.splitlines()]
    lines += re.findall(r"(?<!`)`(evcs-gym [^`]+)`(?!`)", re.sub(r"^```.*?^```", "", text_of(path), flags=re.M | re.S))
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("evcs-gym ")]


def page_ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- README and the other pages ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [page for page in PAGES if blocks(page, "python")], ids=page_ids)
def test_python_examples_run(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    for number, block in enumerate(blocks(path, "python")):
        exec(compile(block, f"{path.name}, block {number}", "exec"), names)
    if path.name == "README.md":
        words = r"policy ([\d.]+) EUR, optimum ([\d.]+) EUR, no policy below ([\d.]+) EUR\n"
        said = re.fullmatch(words, capsys.readouterr().out)
        assert said is not None
        policy_eur, optimum_eur, bound_eur = (float(number) for number in said.groups())
        assert bound_eur <= optimum_eur < policy_eur


def test_readme_shows_commands_and_an_example() -> None:
    assert len(blocks(ROOT / "README.md", "python")) == 1
    assert {"doctor", "solve", "train", "watch", "compare"} <= {command[0] for command in commands(ROOT / "README.md")}


@pytest.mark.parametrize("path", [page for page in PAGES if commands(page)], ids=page_ids)
def test_commands_have_existing_options_and_names(path: Path) -> None:
    group: Any = typer.main.get_command(app)
    for arguments in commands(path):
        if arguments[0].startswith("-") or len(arguments) == 1:
            assert arguments[0] in (*QUICK, *group.commands), f"{path.name}: evcs-gym {arguments[0]}"
            continue
        command = group.commands[arguments[0]]
        context = command.make_context(arguments[0], arguments[1:])  # raises on unknown options and wrong values
        check_names(arguments[0], context.params)


def check_names(command: str, given: dict[str, Any]) -> None:
    """What a command is given by name exists: a preset, a scenario, rules."""
    if command == "train":
        assert given["preset"] in shipped("training")
    if command == "scenario":
        assert given["name"] in shipped("scenarios")
    if command == "compare":
        _, game = game_of(given["problem"])
        for policy in given["policies"]:
            assert policy in (*game.rules, *game.plans) or policy.startswith("runs/"), policy


def test_quick_commands_of_the_readme_run() -> None:
    program = Path(sys.executable).parent / "evcs-gym"
    quick = [arguments for arguments in commands(ROOT / "README.md") if arguments[0] in QUICK]
    assert quick
    for arguments in quick:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert yaml.safe_load(done.stdout)["name"] == load_scenario(arguments[1]).name


def test_make_targets_in_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", text_of(ROOT / "Makefile"), flags=re.MULTILINE))
    for path in PAGES:
        in_blocks = [line for block in blocks(path, "bash") for line in block.splitlines() if line.startswith("make ")]
        named = re.findall(r"`make ([a-z -]+)", text_of(path)) + [line.removeprefix("make ") for line in in_blocks]
        for words in named:
            wanted = re.match(r"[a-z -]+", words)
            assert wanted is not None
            assert set(wanted[0].split()) <= targets, f"{path.name}: make {words}"


@pytest.mark.parametrize("path", PAGES, ids=page_ids)
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text_of(path)):
        if not target.startswith("https://"):
            assert (path.parent / target.split("#")[0]).exists(), f"{path.name}: {target}"


def test_links_to_headings_lead_to_headings() -> None:
    for path in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]+)#([^)]+)\)", text_of(path)):
            headings = re.findall(r"^#+ (.+)$", text_of(path.parent / target), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_the_place_of_the_results_is_marked() -> None:
    assert re.findall(r"<!-- results:(\w+) -->", text_of(ROOT / "README.md")) == ["begin", "end"]


# --- pages that follow the code ----------------------------------------------------------------------------


def test_the_observation_page_is_the_table() -> None:
    assert text_of(ROOT / "docs" / "observation.md") == observation_page(), "run `make docs`"
    for table in (normal_observation.OBSERVATION, market_observation.OBSERVATION):
        assert all(f"`{feature.name}`" in observation_page() for feature in table)


def model_rows() -> list[tuple[str, str, str]]:
    """(equation, functions, tests) of every row of docs/model.md that has four columns."""
    lines = text_of(ROOT / "docs" / "model.md").splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| ")]
    return [(row[0].strip(), row[2], row[3]) for row in cells if len(row) == 4 and row[0].strip() != "equation"]


def test_the_model_names_functions_that_exist() -> None:
    rows = model_rows()
    assert len(rows) > 20
    for equation, functions, _ in rows:
        names = re.findall(r"`(evcs_gym\.[\w.]+)`", functions)
        assert names, f"{equation} names no function"
        for name in names:
            module, _, attribute = name.rpartition(".")
            assert callable(getattr(importlib.import_module(module), attribute)), f"{equation}: {name}"


def test_the_model_names_tests_that_exist() -> None:
    for equation, _, tests in model_rows():
        names = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
        assert names, f"{equation} names no test"
        for file, function in names:
            tree = ast.parse(text_of(ROOT / file))
            defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert function in defined, f"{equation}: {file} has no {function}"


def test_the_model_holds_every_numbered_equation() -> None:
    numbers = {number for equation, _, _ in model_rows() for number in re.findall(r"^\(([A-Z]?\d+)\)", equation)}
    expected = {f"P{number}" for number in range(1, 11)}
    expected |= {"N1", "N2", "N4", "T1", "T2", "T3", "T4", "T5", "T6"}
    expected |= {"N3", "S1", "S2", "S3", "S4", "M1", "M2", "M3", "M4", "M5", "M6"}
    expected |= {f"Q{number}" for number in range(1, 7)}
    assert numbers == expected | {str(number) for number in range(1, 9)}


def test_every_environment_is_in_the_readme() -> None:
    for name in ENVIRONMENT_IDS:
        assert name in text_of(ROOT / "README.md")


# --- citation and changelog --------------------------------------------------------------------------------


def test_the_citation_has_what_the_format_asks_for() -> None:
    citation = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == importlib.metadata.version("evcs-gym")
    assert citation["license"] == "MIT"
    assert {"message", "title", "authors", "type"} <= set(citation)
    assert isinstance(citation.get("date-released", date.min), date)
    for work in (citation, *citation["references"]):
        assert work["title"]
        assert all({"name"} <= set(author) or {"family-names"} <= set(author) for author in work["authors"])
    for reference in citation["references"]:
        assert re.fullmatch(r"10\.\d{4,}/\S+", reference["doi"])


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(
        r"^## \[(.+?)\] - (unreleased|\d{4}-\d\d-\d\d)$", text_of(ROOT / "CHANGELOG.md"), flags=re.MULTILINE
    )
    assert versions[0][0] == importlib.metadata.version("evcs-gym")


@pytest.mark.parametrize("place", RESULTS_FILES)
def test_results_in_the_readme_are_those_of_the_result_files(place: str) -> None:
    readme = text_of(ROOT / "README.md")
    assert with_results(readme, place, read_json(ROOT / RESULTS_FILES[place])) == readme


def test_a_page_without_a_place_for_results_is_refused() -> None:
    with pytest.raises(DataError, match=r"must hold <!-- results:begin --> and <!-- results:end -->"):
        with_results("no place", "results", read_json(ROOT / RESULTS_FILES["results"]))
