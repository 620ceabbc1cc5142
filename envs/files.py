"""Files that are replaced whole: an interruption, or a second process, never leaves half of one."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from evcs_gym.envs.errors import DataError


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write beside the target, flush to disk, rename over it; folders are made.

    Raises:
        OSError: the folder cannot be made or written; the file is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:  # an interrupt too: no half-written file is left behind
        Path(temporary).unlink(missing_ok=True)
        raise


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """`write_whole` for results.

    Raises:
        DataError: the folder cannot be made or written; the file is then as it was.
    """
    try:
        write_whole(path, write)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
