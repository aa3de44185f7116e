"""How the CPU kernels are compiled, and the loops that several of them are made of.

Threads are OpenMP's where numba has it: on Linux that is the pool that torch works with, whose idle
threads would otherwise spin against ours (at 4,096 x 3,072 that ate the whole gain).

numba keeps a compiled kernel until the kernel's own file changes: after a change to a loop here,
touch `cpu.py` and `tile_products.py` too. Where numba can't be imported, no kernel may be called.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sae_mlflow.errors import reason_of
from sae_mlflow.folders import cache_folder
from sae_mlflow.terminal import warn

numba: Any
prange: Any
trailing_zeros: Any
try:
    import numba
    from numba import prange
    from numba.core.codegen import get_host_cpu_features
    from numba.cpython.unsafe.numbers import trailing_zeros
except ImportError as error:  # each version of numba is for some versions of NumPy
    numba, prange, trailing_zeros = None, range, None
    warn(f"numba can't be imported ({reason_of(error)}), so that training on a CPU takes longer.")

AVAILABLE = numba is not None
"""Whether kernels can be compiled."""

if AVAILABLE:
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    if numba.config.CPU_FEATURES is None and "+avx512f" in get_host_cpu_features().split(","):
        # else LLVM takes vectors of 256 bits where there are 512: up to a third slower
        numba.config.CPU_FEATURES = f"{get_host_cpu_features()},-prefer-256-bit"

_REORDER = {"reassoc", "contract", "nsz"}  # sums in vector order; NaN and infinity stay theirs


def parallel(function: Callable[..., Any]) -> Any:
    """A kernel, whose `prange` is shared out over threads."""
    return _compiled(function, parallel=True)


def inner(function: Callable[..., Any]) -> Any:
    """A part of kernels."""
    return _compiled(function)


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    """A function that is compiled on first use, and kept on disk where that can be."""
    if not AVAILABLE:
        return function
    return numba.njit(cache=_can_be_kept(), fastmath=_REORDER, **options)(function)


@cache
def _can_be_kept() -> bool:
    """Whether there is a folder for compiled kernels: numba's own, or else in our cache."""
    for folder in (numba.config.CACHE_DIR, str(cache_folder() / "numba")):
        numba.config.CACHE_DIR = folder
        try:
            numba.njit(cache=True)(_can_be_kept.__wrapped__)  # compiles nothing
        except RuntimeError:
            continue  # it can't be written
        return True
    warn(
        "compiled kernels can't be kept, so that each process compiles them anew, some ten "
        "seconds. Point NUMBA_CACHE_DIR at a folder that can be written."
    )
    return False


def array(tensor: Tensor) -> Any:
    """What a kernel reads a tensor as."""
    return tensor.detach().contiguous().numpy()


def n_threads() -> int:
    """As many as torch has; numba's first use of its pool would set torch's number too."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return threads


@inner
def add_rows(values: Any, members: Any, first: int, end: int, rows: Any, total: Any) -> None:
    """Add `values[i] * rows[members[i]]` to the total, for i from first to before end."""
    i = first
    while i + 4 <= end:  # four at once: the sum is read and written a quarter as often
        v0, v1, v2, v3 = values[i], values[i + 1], values[i + 2], values[i + 3]
        r0, r1 = rows[members[i]], rows[members[i + 1]]
        r2, r3 = rows[members[i + 2]], rows[members[i + 3]]
        for j in range(len(total)):
            total[j] += v0 * r0[j] + v1 * r1[j] + v2 * r2[j] + v3 * r3[j]
        i += 4
    while i < end:
        value, row = values[i], rows[members[i]]
        for j in range(len(total)):
            total[j] += value * row[j]
        i += 1


@inner
def dots(one: Any, rows: Any, members: Any, first: int, end: int, out: Any) -> None:
    """`out[i] = one . rows[members[i]]`, for i from first to before end."""
    zero = rows.dtype.type(0)  # a plain 0 would make float64 sums of float32, four times slower
    i = first
    while i + 4 <= end:  # four sums at once, so that none waits for the one before
        r0, r1 = rows[members[i]], rows[members[i + 1]]
        r2, r3 = rows[members[i + 2]], rows[members[i + 3]]
        t0 = t1 = t2 = t3 = zero
        for j in range(len(one)):
            t0 += one[j] * r0[j]
            t1 += one[j] * r1[j]
            t2 += one[j] * r2[j]
            t3 += one[j] * r3[j]
        out[i], out[i + 1], out[i + 2], out[i + 3] = t0, t1, t2, t3
        i += 4
    while i < end:
        row, total = rows[members[i]], zero
        for j in range(len(one)):
            total += one[j] * row[j]
        out[i] = total
        i += 1


@inner
def miss(recon: Any, y: Any, error: Any) -> Any:
    """Write `recon - y` and return its squared length."""
    square = recon.dtype.type(0)
    for j in range(len(y)):
        error[j] = recon[j] - y[j]
        square += error[j] * error[j]
    return square
