"""`evcs-gym doctor`: is everything here that the project needs, and does it work?

Every check ends in a record, never in an exception: this is what one runs when something is broken.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from evcs_gym.baselines.solvers import SolverInfo

DISTRIBUTION: Final = "evcs-gym"
PEERS: Final = ("power-grid-model", "pandapower", "ray")
LEAST_FREE_GB: Final = 1.0
"""Checkpoints, TensorBoard logs and the cached days of one training run stay well below this."""
BYTES_PER_GB: Final = 10**9


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, whether it is well, whether the project needs it, what was found."""

    name: str
    ok: bool
    required: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """All checks; ok when nothing required is missing."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks if check.required)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: {"ok", "checks": [{"name", "ok", "required", "detail"}]}."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}


def diagnose(folder: Path | None = None) -> Diagnosis:
    """Look at everything. folder: where runs will be written, the current one by default."""
    here = folder or Path.cwd()
    checks = [
        *_guarded("python", True, _python),
        *_guarded("packages", True, _packages),
        *_guarded("solvers", True, _solvers),
        *_guarded("environment", True, _environment),
        *_guarded("numba", True, _numba),
        *_guarded("torch", True, _torch),
        *_guarded("disk, current folder", True, lambda: [_disk("disk, current folder", here, required=True)]),
        *_guarded("disk, cache folder", False, _cache_folder),
    ]
    return Diagnosis(tuple(checks))


def _guarded(name: str, required: bool, look: Callable[[], Iterable[Check]]) -> list[Check]:
    """The checks, or one failed check: a broken import is a finding of the doctor, not its end."""
    try:
        return list(look())
    except Exception as error:
        return [Check(name, False, required, f"{type(error).__name__}: {error}")]


def _python() -> Iterable[Check]:
    yield Check("python", True, False, f"{platform.python_version()} at {sys.executable}")
    yield Check("machine", True, False, f"{platform.platform()}, {os.cpu_count()} cores")


def _packages() -> Iterable[Check]:
    yield _package(DISTRIBUTION, required=True)
    needed = _requirements()
    for name in needed:
        yield _package(name, required=True)
    for name in PEERS:
        if name not in needed:
            yield _package(name, required=False)


def _requirements() -> list[str]:
    """Names of the distributions that this one needs in any case (those of extras carry a marker)."""
    lines = importlib.metadata.requires(DISTRIBUTION) or []
    names = [re.match(r"[A-Za-z0-9._-]+", line) for line in lines if "extra ==" not in line]
    return [found.group() for found in names if found]


def _package(name: str, required: bool) -> Check:
    try:
        return Check(name, True, required, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, required, f"not installed: pip install {name}")


def _solvers() -> Iterable[Check]:
    from evcs_gym.baselines import cone_solvers, solvers

    for solver in (*solvers.probe(), solvers.probe_second_order()):
        yield _solver(solver, required=True)
    for solver in cone_solvers.probe_cones():  # second opinions: nothing needs them
        yield _solver(solver, required=False)


def _solver(found: "SolverInfo", required: bool) -> Check:
    return Check(f"solver {found.name}", found.ok, required, f"{found.version} {found.detail}".strip())


def _environment() -> Iterable[Check]:
    import gymnasium

    import evcs_gym.envs

    for name in evcs_gym.envs.ENVIRONMENT_IDS:
        env = gymnasium.make(name)
        env.reset(seed=0)
        env.step(env.action_space.sample())
        env.close()
        yield Check(f"environment {name}", True, True, "made, reset and stepped once")


def _numba() -> Iterable[Check]:
    import numba

    settings: Any = numba.config
    yield Check("numba threads", True, False, f"{settings.NUMBA_NUM_THREADS}")
    folders = _numba_cache_folders(str(settings.CACHE_DIR))
    usable = [folder for folder in folders if _writable(folder)]
    detail = (
        f"compiled kernels are kept in {usable[0]}"
        if usable
        else (
            f"neither {' nor '.join(map(str, folders))} can be written: every start compiles anew; "
            "set NUMBA_CACHE_DIR to a folder that can"
        )
    )
    yield Check("numba cache", bool(usable), False, detail)


def _numba_cache_folders(configured: str) -> list[Path]:
    """Where numba keeps kernels: the configured folder, else beside the code, else in the user's cache
    folder.
    """
    if configured:
        return [Path(configured)]
    from numba.misc import appdirs

    untyped: Any = appdirs
    beside = Path(__file__).resolve().parent.parent / "envs" / "grid" / "__pycache__"
    return [beside, Path(untyped.AppDirs(appname="numba", appauthor=False).user_cache_dir)]


def _writable(folder: Path) -> bool:
    """Whether a file can be made in the folder or, where it is missing, in its nearest parent. Leaves
    nothing.
    """
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            return True
    except OSError:
        return False


def _nearest(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _torch() -> Iterable[Check]:
    import torch

    yield Check("torch threads", True, False, f"{torch.get_num_threads()}")
    gpu = torch.cuda.is_available()
    detail = torch.cuda.get_device_name(0) if gpu else "none found: training runs on the CPU, which is enough"
    yield Check("GPU", gpu, False, detail)


def _cache_folder() -> Iterable[Check]:
    from evcs_gym.envs.pool import cache_folder

    yield _disk("disk, cache folder", cache_folder(), required=False)


def _disk(name: str, folder: Path, required: bool) -> Check:
    free_gb = shutil.disk_usage(_nearest(folder)).free / BYTES_PER_GB
    if not _writable(folder):
        return Check(name, False, required, f"{folder} cannot be written")
    detail = f"{free_gb:.1f} GB free in {folder} ({LEAST_FREE_GB:g} GB are needed)"
    return Check(name, free_gb >= LEAST_FREE_GB, required, detail)
