"""Spread the rows of a batch over threads: kernels run without Python's lock.

Plain threads rather than numba's ``prange``: the same compiled kernel serves any number of them (a parallel one takes
seconds longer to compile), a waiting thread does not spin where cores are shared, and no thread pool is left behind
that a forked process could not use.
"""

import threading
from collections.abc import Callable
from typing import Any

import numba


def run_rows(
    kernel: Callable[..., None], n_rows: int, arguments: tuple[Any, ...], *, parallel_from: int, block: int = 1
) -> None:
    """Call ``kernel(first, stop, *arguments)`` on contiguous parts of 0 .. n_rows, one per numba thread.

    Parts begin at multiples of ``block``. Batches of fewer than ``parallel_from`` rows stay on the calling thread.
    Kernels must not raise.
    """
    n_threads = numba.get_num_threads() if n_rows >= parallel_from else 1
    if n_threads == 1:
        kernel(0, n_rows, *arguments)
        return
    n_blocks = -(-n_rows // block)
    bounds = [min(n_blocks * k // n_threads * block, n_rows) for k in range(n_threads + 1)]
    threads = [
        threading.Thread(target=kernel, args=(bounds[k], bounds[k + 1], *arguments)) for k in range(1, n_threads)
    ]
    for thread in threads:
        thread.start()
    kernel(bounds[0], bounds[1], *arguments)
    for thread in threads:
        thread.join()
