"""The loops that several compiled CPU kernels are made of."""

from typing import Any

import numpy as np

from sae_mlflow.sae.kernels.jit import inner


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


@inner
def ones(word: Any) -> int:
    n = 0
    while word:
        word &= word - np.uint64(1)  # without the lowest one; compiled to one instruction
        n += 1
    return n
