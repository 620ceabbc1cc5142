"""The doctor: what it finds here, and that it finds what is missing instead of breaking."""

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from evcs_gym.baselines import cone_solvers, solvers
from evcs_gym.baselines.solvers import SolverInfo
from evcs_gym.evaluation import doctor
from evcs_gym.evaluation.doctor import Check, Diagnosis


def found(diagnosis: Diagnosis) -> dict[str, Check]:
    return {check.name: check for check in diagnosis.checks}


def test_a_diagnosis_is_well_when_everything_required_is() -> None:
    needed, liked = Check("a", False, True, ""), Check("b", False, False, "")
    assert Diagnosis((liked,)).ok
    assert not Diagnosis((liked, needed)).ok
    assert Diagnosis((liked,)).as_dict() == {
        "ok": True,
        "checks": [{"name": "b", "ok": False, "required": False, "detail": ""}],
    }


def test_here_everything_required_works(tmp_path: Path) -> None:
    diagnosis = doctor.diagnose(tmp_path)
    missing = [check for check in diagnosis.checks if check.required and not check.ok]
    assert missing == []
    checks = found(diagnosis)
    assert checks["numpy"].detail == importlib.metadata.version("numpy")
    assert checks["solver HiGHS"].ok
    assert checks["solver Clarabel"].ok
    assert {"solver SCIP", "solver Gurobi", "solver MOSEK"} <= set(checks)
    assert str(tmp_path) in checks["disk, current folder"].detail
    assert int(checks["torch threads"].detail) >= 1
    assert {"GPU", "numba threads", "numba cache", "environment evcs/NormalCharging-v0"} <= set(checks)


def test_a_check_that_breaks_is_a_finding() -> None:
    def broken() -> list[Check]:
        raise ImportError("no such library")

    assert doctor._guarded("torch", True, broken) == [Check("torch", False, True, "ImportError: no such library")]


def test_a_package_that_is_absent_says_how_to_get_it() -> None:
    assert doctor._package("a-distribution-nobody-made", required=True) == Check(
        "a-distribution-nobody-made", False, True, "not installed: pip install a-distribution-nobody-made"
    )


def test_required_packages_are_those_of_the_distribution_without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy<2.5,>=2.1", "stable-baselines3>=2.6", 'ray[rllib]>=2.40; extra == "cluster"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: lines)
    assert doctor._requirements() == ["numpy", "stable-baselines3"]


def _probe(monkeypatch: pytest.MonkeyPatch, ok: dict[str, bool]) -> list[Check]:
    found = {name: SolverInfo(name, "1", good, "d") for name, good in ok.items()}
    monkeypatch.setattr(solvers, "probe", lambda: [found["HiGHS"]])
    monkeypatch.setattr(solvers, "probe_second_order", lambda: found["Clarabel"])
    monkeypatch.setattr(cone_solvers, "probe_cones", lambda: [found["SCIP"]])
    return list(doctor._solvers())


@pytest.mark.parametrize("missing", ["HiGHS", "Clarabel"])
def test_without_a_solver_that_is_needed_something_required_is_missing(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    checks = _probe(monkeypatch, {"HiGHS": True, "Clarabel": True, "SCIP": True, missing: False})
    assert Check(f"solver {missing}", False, True, "1 d") in checks
    assert not Diagnosis(tuple(checks)).ok


def test_solvers_for_second_opinions_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = _probe(monkeypatch, {"HiGHS": True, "Clarabel": True, "SCIP": False})
    assert checks[-1] == Check("solver SCIP", False, False, "1 d")
    assert Diagnosis(tuple(checks)).ok


def test_a_configured_numba_cache_is_the_only_one_looked_at(tmp_path: Path) -> None:
    assert doctor._numba_cache_folders(str(tmp_path)) == [tmp_path]
    assert len(doctor._numba_cache_folders("")) == 2


def test_a_folder_that_does_not_exist_yet_is_judged_by_its_parent_and_not_made(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert doctor._writable(folder)
    assert doctor._disk("disk", folder, required=True).ok
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert doctor._disk("disk", tmp_path, required=True) == Check("disk", False, True, f"{tmp_path} cannot be written")
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    cache = next(check for check in doctor._numba() if check.name == "numba cache")
    assert not cache.ok
    assert "set NUMBA_CACHE_DIR" in cache.detail


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * 10**8))
    check = doctor._disk("disk", tmp_path, required=True)
    assert (check.ok, check.detail) == (False, f"0.2 GB free in {tmp_path} (1 GB are needed)")
