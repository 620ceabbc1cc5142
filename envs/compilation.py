"""How numba compiles what other kernels call."""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from numba import njit

_WITHOUT_ENTRY: Final[dict[str, Any]] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def inner(function: _Function) -> _Function:
    """Compile for use by other kernels only; the disk cache of the kernel that calls it holds a copy.

    Entry points for Python are left out: every array of a record among the arguments would cost compile time in them.
    """
    return cast(_Function, njit(**_WITHOUT_ENTRY)(function))
