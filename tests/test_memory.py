"""What malloc is told, by what the C library takes; its `mallopt` returns 0 for what it refuses."""

import pytest

from sae_mlflow import memory

TRIM, MMAP = -1, -3
MB = 1 << 20


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (1 << 40, {MMAP: 1024 * MB, TRIM: 1024 * MB}),
        (32 * MB, {MMAP: 32 * MB, TRIM: 1024 * MB}),  # glibc before 2.35
        (0, {}),
    ],
)
def test_the_heap_is_never_kept_without_the_tensors_that_belong_in_it(largest, expected):
    taken = {}

    def mallopt(which, value):
        if which == MMAP and value > largest:
            return 0
        taken[which] = value
        return 1

    memory._keep_freed(mallopt)
    assert taken == expected
