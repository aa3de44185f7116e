"""How the CPU kernels are compiled, just in time, and kept.

Threads are OpenMP's where numba has it: on Linux that is the pool that torch works with, whose idle
threads would otherwise spin against ours (at 4,096 x 3,072 that ate the whole gain).

Where numba can't be imported, no kernel may be called.
"""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
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
    # its name on disk: numba looks for changes in a kernel's own file alone, not in its loops'
    function.__qualname__ += f"_{_sources()}"
    return numba.njit(cache=_can_be_kept(), fastmath=_REORDER, **options)(function)


@cache
def _sources() -> str:
    """Eight characters that another version of any kernel changes."""
    digest = sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


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
