"""The house itself: what is installed is what lies here, and the rules of the conventions hold in every file."""

import ast
import configparser
import doctest
import importlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PORTIONS = ("envs", "baselines", "training", "evaluation", "configs")
HEAVY = ("torch", "pyomo", "pandapower", "matplotlib", "pandas", "stable_baselines3", "highspy", "clarabel", "networkx")
IMPORT_CPU_S = 1.0
"""What `import evcs_gym.envs` may take: the best of three, in CPU time, since tests share their cores."""
SHIPPED_DATA_BYTES = 3e6

SIMULATED = {"P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P10", "N1", "N2", "N4"}
SIMULATED |= {"T1", "T2", "T3", "T4", "T5", "T6", "1", "2", "3", "4", "5", "6"}
SIMULATED |= {"N3", "S1", "S2", "S3", "S4", "M1", "M2", "M3", "M4", "M5", "M6"}
"""Equations of the model that stand as a comment `# (P1)` where the world computes them."""
PROGRAMMED = {"1", "2", "3", "4", "5", "6", "7", "8"}
"""Equations of the model that have a function `c5_...` in baselines/forms."""
UNITS = ROOT / "envs" / "units.py"


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def modules() -> list[Path]:
    return sorted(path for portion in PORTIONS for path in (ROOT / portion).rglob("*.py"))


def project_files() -> list[Path]:
    """Every text file that belongs to the project (not what git ignores)."""
    folders = [ROOT / name for name in (*PORTIONS, "tests", "docs", ".ci", ".github") if (ROOT / name).is_dir()]
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    binary = {".npz", ".png", ".pyc", ".nbi", ".nbc"}
    return sorted(path for path in found if path.suffix not in binary and "__pycache__" not in path.parts)


def run_python(code: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


# --- packages and data -------------------------------------------------------------------------------------


def test_the_package_list_is_the_list_of_folders(setup_cfg: configparser.ConfigParser) -> None:
    listed = lines_of(setup_cfg["options"]["packages"])
    mapped = dict(re.split(r"\s*=\s*", line) for line in lines_of(setup_cfg["options"]["package_dir"]))
    folders = [path.parent.relative_to(ROOT) for portion in PORTIONS for path in (ROOT / portion).rglob("__init__.py")]
    assert sorted(listed) == sorted("evcs_gym." + ".".join(folder.parts) for folder in folders)
    assert mapped == {name: name.removeprefix("evcs_gym.").replace(".", "/") for name in listed}


def test_every_data_file_is_shipped_and_every_pattern_finds_one(setup_cfg: configparser.ConfigParser) -> None:
    mapped = dict(re.split(r"\s*=\s*", line) for line in lines_of(setup_cfg["options"]["package_dir"]))
    shipped, empty = set(), []
    for package, globs in setup_cfg["options.package_data"].items():
        for glob in re.split(r"[,\s]+", globs.strip()):
            found = set((ROOT / mapped[package]).glob(glob))
            shipped |= found
            if not found:
                empty.append(f"{package}: {glob}")
    present = {path for portion in PORTIONS for path in (ROOT / portion).rglob("*") if path.is_file()}
    forgotten = {p for p in present if p.suffix != ".py" and "__pycache__" not in p.parts} - shipped
    assert not forgotten, f"the wheel would drop {sorted(str(path.relative_to(ROOT)) for path in forgotten)}"
    assert not empty, f"setup.cfg, package_data: nothing matches {empty}"
    assert sum(path.stat().st_size for path in shipped) < SHIPPED_DATA_BYTES


def test_every_portion_is_typed_and_the_namespace_stays_open() -> None:
    assert all((ROOT / portion / "py.typed").is_file() for portion in PORTIONS)
    assert not (ROOT / "__init__.py").exists()
    assert (ROOT / ".typecheck" / "evcs_gym").resolve() == ROOT


@pytest.mark.parametrize("portion", PORTIONS)
def test_a_portion_under_its_folder_name_is_refused(portion: str) -> None:
    done = run_python(f"import {portion}", cwd=ROOT)
    assert done.returncode == 1
    assert re.search(
        rf"ImportError: this folder is the package evcs_gym\.{portion}, but it was imported as '{portion}': "
        rf"install the project \(pip install -e \.\) and write 'import evcs_gym\.{portion}'",
        done.stderr,
    )


def test_importing_the_worlds_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; begin = time.process_time(); import evcs_gym.envs\n"
        f"print(time.process_time() - begin, *sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    answers = [run_python(code).stdout.split() for _ in range(3)]
    assert [heavy for _, *heavy in answers] == [[], [], []]
    assert min(float(answer[0]) for answer in answers) < IMPORT_CPU_S


# --- dependencies ------------------------------------------------------------------------------------------


def requirements(setup_cfg: configparser.ConfigParser, extra: str | None = None) -> list[Requirement]:
    section, key = ("options", "install_requires") if extra is None else ("options.extras_require", extra)
    return [Requirement(line) for line in lines_of(setup_cfg[section][key])]


def test_constraints_pin_every_dependency_within_its_range(setup_cfg: configparser.ConfigParser) -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert list(pins) == sorted(pins), "constraints.txt is sorted by name, so that a change is one line"
    for requirement in [*requirements(setup_cfg), *requirements(setup_cfg, "dev")]:
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement} does not allow {pin}"
        assert "+" not in pin, f"{requirement.name}: a local build cannot be had everywhere"


NOT_INSTALLED = {"dss": ["dss_python"]}
"""Distributions of modules that an extra brings, for environments without it."""


def test_every_import_is_declared(setup_cfg: configparser.ConfigParser) -> None:
    """At the top of a module only what is always installed; inside functions also what an extra brings."""
    distributions = importlib.metadata.packages_distributions()
    always = {canonicalize_name(r.name) for r in requirements(setup_cfg)}
    every = [
        requirement for extra in setup_cfg["options.extras_require"] for requirement in requirements(setup_cfg, extra)
    ]
    extras = {canonicalize_name(requirement.name) for requirement in every}
    undeclared = []
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            for name in imported(node):
                top = name.split(".")[0]
                if top in sys.stdlib_module_names or top == "evcs_gym":
                    continue
                names = {canonicalize_name(d) for d in distributions.get(top, NOT_INSTALLED.get(top, [top]))}
                if not names & (always if node in tree.body else always | extras):
                    undeclared.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")  # type: ignore[attr-defined]
    assert not undeclared


def imported(node: ast.AST) -> list[str]:
    """Modules that a statement imports; a relative import begins with a dot."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["." * node.level + (node.module or "")]
    return []


# --- conventions -------------------------------------------------------------------------------------------


def test_imports_are_absolute_and_begin_with_evcs_gym() -> None:
    for path in [*modules(), *sorted((ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in imported(node):
                assert name.split(".")[0] not in ("", *PORTIONS), f"{path.relative_to(ROOT)}: import {name}"


def test_conversions_stand_in_units_only() -> None:
    found = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            number = isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value in (1000, 3600)
            if number and path != UNITS:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")  # type: ignore[attr-defined]
    assert not found, f"1000 and 3600 belong into envs/units.py under a name, found in {found}"


def numbered_comments() -> Iterator[tuple[str, str, str]]:
    """(number, what follows it, place) of every comment that begins with the number of an equation."""
    for path in modules():
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            found = re.search(r"# \(([A-Z]?[0-9]+[a-z]?)\)(.*)$", text)
            if found:
                yield found[1], found[2].strip(" ,."), f"{path.relative_to(ROOT)}:{line}"


def test_every_simulated_equation_carries_its_number_once() -> None:
    """Once, or once for each of its named terms; (6) is a factor inside the second term of (5)."""
    comments = list(numbered_comments())
    twice = [key for key, n in Counter((number, term) for number, term, _ in comments).items() if n > 1]
    assert not twice, f"numbers that come twice: {twice} among {comments}"
    for number, n in Counter(number for number, _, _ in comments).items():
        assert n == 1 or all(term for other, term, _ in comments if other == number), f"({number}) without its term"
    mentioned = {number for _, term, _ in comments for number in re.findall(r"\(([A-Z]?[0-9]+)\)", term)}
    numbers = {number for number, _, _ in comments} | mentioned
    assert numbers >= SIMULATED, f"missing: {sorted(SIMULATED - numbers)}"
    assert numbers <= SIMULATED | PROGRAMMED, f"not in the model: {sorted(numbers - SIMULATED - PROGRAMMED)}"


def test_every_programmed_equation_has_a_function_that_states_it() -> None:
    """c5_..., c6_... in baselines/forms: an infeasibility report then cites the model."""
    found = set()
    for path in sorted((ROOT / "baselines" / "forms").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            name = re.match(r"c([0-9]+)_", node.name) if isinstance(node, ast.FunctionDef) else None
            if name is not None:
                assert isinstance(node, ast.FunctionDef)
                assert f"({name[1]})" in (ast.get_docstring(node) or ""), f"{node.name} does not state ({name[1]})"
                found.add(name[1])
    assert found == PROGRAMMED


def test_no_file_names_a_package_registry() -> None:
    """Where packages come from is pip's setting, not the project's. The names are in pieces: this file counts too."""
    pieces = ("py" + r"pi\.org", "python" + r"hosted\.org", "ana" + r"conda\.(org|com)", "whl/" + "cpu")
    hosts = re.compile("|".join(pieces))
    for path in project_files():
        found = hosts.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)} names {found[0] if found else ''}"


def test_examples_in_docstrings_are_true() -> None:
    n_examples = 0
    for portion in PORTIONS:
        package = importlib.import_module(f"evcs_gym.{portion}")
        names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
        for name in [package.__name__, *names]:
            result = doctest.testmod(importlib.import_module(name))
            assert result.failed == 0, f"{name}: {result}"
            n_examples += result.attempted
    assert n_examples > 0
