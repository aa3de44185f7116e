"""The operations on sparse codes against NumPy in float64.

Each is held to the same in both ways: compiled, and by the standard operators that run elsewhere.
"""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from random_codes import ragged, random, rows_of, with_ties

from sae_mlflow.sae import kernels
from sae_mlflow.sae.kernels import cpu

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float32, torch.float64]


class Place(str):
    """The name of a device that is the CPU, but isn't known as one."""

    type = "elsewhere"


class Elsewhere(torch.Tensor):
    """A tensor that standard operators are chosen for."""

    @property
    def device(self):
        return Place("cpu")


@pytest.fixture(params=["compiled", "standard operators"])
def placed(request):
    """Puts a tensor where the kernels run in one way or the other."""
    if request.param == "compiled":
        return lambda tensor: tensor
    return lambda tensor: tensor.as_subclass(Elsewhere)


def as_numpy(tensor):
    return tensor.as_subclass(torch.Tensor).numpy()


# -- topk -------------------------------------------------------------------------------------

# batch, d_sae, k: in two stages with groups of 16 and of 8, with and without latents that are in
# no group, in one stage, k = 1, k = d_sae, one row and none
TOPK_SHAPES = [
    (50, 640, 5),
    (50, 192, 5),
    (50, 199, 5),
    (50, 1031, 16),
    (20, 64, 4),
    (20, 100, 7),
    (6, 1100, 4),  # wide enough for the largest groups
    (20, 33, 33),
    (20, 16, 1),
    (3, 4096, 1),
    (1, 257, 3),
    (0, 96, 4),
    (4, 1, 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numbers", [random, with_ties])
@pytest.mark.parametrize("shape", TOPK_SHAPES)
def test_topk_keeps_the_values_that_a_sort_puts_last(shape, numbers, dtype, placed):
    batch, d_sae, k = shape
    rows = numbers(batch, d_sae, dtype=dtype)
    values, latents = map(as_numpy, kernels.topk(placed(rows), k))
    assert values.shape == latents.shape == (batch, k) and latents.dtype == np.int64
    np.testing.assert_array_equal(np.sort(values), np.sort(rows.numpy())[:, d_sae - k :])
    np.testing.assert_array_equal(np.take_along_axis(rows.numpy(), latents, 1), values)
    assert all(len(set(row)) == k for row in latents.tolist()), "a latent was kept twice"


@pytest.mark.parametrize("value", [0.0, -math.inf, math.inf])
def test_topk_of_equal_values_is_k_distinct_latents(value, placed):
    values, latents = kernels.topk(placed(torch.full((3, 200), value)), 6)
    assert (values == value).all()
    assert all(len(set(row)) == 6 for row in latents.tolist())


def test_topk_reads_strided_rows(placed):
    rows = random(12, 400)
    expected, _ = kernels.topk(rows[:, ::2].contiguous(), 5)
    for strided in (rows[:, ::2], rows[:, ::2].t().contiguous().t()):
        values, _ = kernels.topk(placed(strided), 5)
        np.testing.assert_array_equal(np.sort(as_numpy(values)), np.sort(expected.numpy()))


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(30, 640, 5), (30, 199, 5), (30, 33, 7), (30, 20, 20)])
def test_rows_that_arent_numbers_give_latents_that_exist_and_leave_the_others_alone(
    shape, share, placed
):
    batch, d_sae, k = shape
    rows = random(batch, d_sae)
    generator = torch.Generator().manual_seed(1)
    broken = torch.rand(batch, d_sae, generator=generator) < share
    broken[::2] = False
    rows[broken] = math.nan
    values, latents = map(as_numpy, kernels.topk(placed(rows), k))
    assert latents.min() >= 0 and latents.max() < d_sae
    assert all(len(set(row)) == k for row in latents.tolist())
    np.testing.assert_array_equal(np.take_along_axis(rows.numpy(), latents, 1), values)
    np.testing.assert_array_equal(
        np.sort(values[::2]), np.sort(rows.numpy()[::2])[:, d_sae - k :], "a sound row"
    )


# -- above ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numbers", [random, with_ties])
@pytest.mark.parametrize("shape", [(20, 33), (1, 7), (0, 16), (9, 1), (9, 64), (9, 128), (40, 300)])
def test_above_lists_row_by_row_what_is_strictly_over_each_latents_bound(
    shape, numbers, dtype, placed
):
    rows, bounds = numbers(*shape, dtype=dtype), with_ties(shape[1], dtype=dtype)
    values, latents, counts = map(as_numpy, kernels.above(placed(rows), placed(bounds)))
    over = rows.numpy() > bounds.numpy()
    np.testing.assert_array_equal(counts, over.sum(axis=1))
    np.testing.assert_array_equal(latents, np.nonzero(over)[1])
    np.testing.assert_array_equal(values, rows.numpy()[over])


@pytest.mark.parametrize(("bound", "n"), [(-math.inf, 60), (math.inf, 0), (math.nan, 0)])
def test_above_may_keep_all_or_nothing(bound, n, placed):
    values, latents, counts = kernels.above(placed(random(4, 15)), placed(torch.full((15,), bound)))
    assert len(values) == len(latents) == counts.sum() == n


def test_above_reads_strided_rows_and_one_bound_for_all(placed):
    rows, bound = random(12, 40)[:, ::2], torch.tensor(0.3).expand(20)
    values, latents, _ = map(as_numpy, kernels.above(placed(rows), placed(bound)))
    np.testing.assert_array_equal(latents, np.nonzero(rows.numpy() > np.float32(0.3))[1])
    np.testing.assert_array_equal(values, rows.numpy()[rows.numpy() > np.float32(0.3)])


def test_what_isnt_a_number_is_over_no_bound(placed):
    rows = random(6, 50)
    rows[1] = math.nan
    rows[2, ::3] = math.nan
    values, _, counts = map(as_numpy, kernels.above(placed(rows), placed(torch.zeros(50))))
    assert counts[1] == 0 and not np.isnan(values).any()
    np.testing.assert_array_equal(counts, (rows.numpy() > 0).sum(axis=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_above_finds_the_few_and_the_many_among_infinite_bounds_too(dtype, placed):
    """Infinity less infinity, if somebody took it, is not a number."""
    rows, bounds = random(40, 1000, dtype=dtype), torch.full((1000,), 2.0, dtype=dtype)
    rows[10:20] += 3
    rows[:, 70], bounds[70] = math.inf, math.inf
    rows[:, 71], bounds[71] = math.inf, -math.inf
    rows[::2, 500], bounds[500] = -math.inf, -math.inf
    bounds[3] = math.nan
    values, latents, counts = map(as_numpy, kernels.above(placed(rows), placed(bounds)))
    over = rows.numpy() > bounds.numpy()
    np.testing.assert_array_equal(counts, over.sum(axis=1))
    np.testing.assert_array_equal(latents, np.nonzero(over)[1])
    np.testing.assert_array_equal(values, rows.numpy()[over])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(50, 640, 5), (20, 199, 5), (20, 33, 33), (1, 257, 3), (0, 96, 4)]
)
def test_biases_that_are_still_to_be_added_count(shape, dtype, placed):
    batch, d_sae, k = shape
    rows, bias = random(batch, d_sae, dtype=dtype), 3 * random(d_sae, seed=1, dtype=dtype)
    pre_acts, bounds = (rows + bias).numpy(), random(d_sae, seed=2, dtype=dtype)
    values, latents = map(as_numpy, kernels.topk(placed(rows), k, placed(bias)))
    np.testing.assert_array_equal(np.sort(values), np.sort(pre_acts)[:, d_sae - k :])
    np.testing.assert_array_equal(np.take_along_axis(pre_acts, latents, 1), values)
    found = kernels.above(placed(rows), placed(bounds), placed(bias))
    values, latents, counts = map(as_numpy, found)
    over = pre_acts > bounds.numpy()
    np.testing.assert_array_equal(counts, over.sum(axis=1))
    np.testing.assert_array_equal(latents, np.nonzero(over)[1])
    np.testing.assert_array_equal(values, pre_acts[over])


# -- by_latent --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20, 33), (1, 7), (0, 16), (30, 1), (5, 400)])
def test_by_latent_sorts_codes_by_latent_and_then_by_token(shape, placed):
    batch, d_sae = shape
    latents, starts = ragged(batch, d_sae)
    got = kernels.by_latent(placed(latents), placed(starts), d_sae)
    latent_starts, tokens, places = map(as_numpy, got)
    order = np.lexsort((rows_of(starts), latents.numpy()))
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(tokens, rows_of(starts)[order])
    expected = np.searchsorted(latents.numpy()[order], np.arange(d_sae + 1))
    np.testing.assert_array_equal(latent_starts, expected)


# -- the two products -------------------------------------------------------------------------

# rows of the result, rows that are summed, dimensions
PRODUCTS = [(20, 33, 6), (1, 7, 5), (0, 16, 3), (30, 1, 1), (5, 400, 17), (9, 12, 64)]


def tolerance(dtype, scale):
    return {"rtol": 0, "atol": scale * (1e-5 if dtype == torch.float32 else 1e-13)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", PRODUCTS)
def test_weighted_rows_is_a_sparse_matrix_times_a_dense_one(shape, dtype, placed):
    n, m, d = shape
    members, starts = ragged(n, m)
    values, rows = random(len(members), dtype=dtype), random(m, d, seed=1, dtype=dtype)
    dense = np.zeros((n, m))
    dense[rows_of(starts), members] = values
    got = kernels.weighted_rows(*map(placed, (values, members, starts, rows)))
    assert got.dtype == dtype
    np.testing.assert_allclose(as_numpy(got), dense @ rows.double().numpy(), **tolerance(dtype, 30))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", PRODUCTS)
def test_row_dots_is_a_dense_product_where_the_members_are(shape, dtype, placed):
    n, m, d = shape
    members, starts = ragged(n, m)
    grad, rows = random(n, d, dtype=dtype), random(m, d, seed=1, dtype=dtype)
    got = kernels.row_dots(*map(placed, (grad, rows, members, starts)))
    expected = (grad.double().numpy() @ rows.double().numpy().T)[rows_of(starts), members]
    assert got.dtype == dtype
    np.testing.assert_allclose(as_numpy(got), expected, **tolerance(dtype, 30))


def test_the_products_read_strided_tensors(placed):
    members, starts = ragged(10, 12)
    values, rows, grad = random(2 * len(members))[::2], random(5, 12).t(), random(10, 10)[:, ::2]
    one = kernels.weighted_rows(*map(placed, (values, members, starts, rows)))
    other = kernels.row_dots(*map(placed, (grad, rows, members, starts)))
    values, rows, grad = values.contiguous(), rows.contiguous(), grad.contiguous()
    for strided, contiguous in [
        (one, kernels.weighted_rows(*map(placed, (values, members, starts, rows)))),
        (other, kernels.row_dots(*map(placed, (grad, rows, members, starts)))),
    ]:
        np.testing.assert_allclose(
            as_numpy(strided), as_numpy(contiguous), **tolerance(torch.float32, 30)
        )


def test_a_sum_of_nothing_is_zero_even_beside_what_isnt_a_number(placed):
    """Token 1 has no latent; token 0's row is NaN."""
    members, starts = torch.tensor([0]), torch.tensor([0, 1, 1])
    rows = torch.tensor([[math.nan, 1.0], [2.0, 3.0]])
    got = as_numpy(kernels.weighted_rows(*map(placed, (torch.ones(1), members, starts, rows))))
    np.testing.assert_array_equal(got, [[math.nan, 1.0], [0.0, 0.0]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_remove_along_leaves_rows_that_are_orthogonal_to_their_own(dtype, placed):
    rows = torch.nn.functional.normalize(random(13, 7, dtype=dtype))
    grad = random(13, 7, seed=1, dtype=dtype)
    wide, exact = rows.double().numpy(), grad.double().numpy()
    expected = exact - (exact * wide).sum(axis=1, keepdims=True) * wide
    got = placed(grad.clone())
    kernels.remove_along(got, placed(rows))
    np.testing.assert_allclose(as_numpy(got), expected, **tolerance(dtype, 3))
    strided = placed(torch.stack([grad, grad], dim=-1)[..., 0])
    kernels.remove_along(strided, placed(rows))
    np.testing.assert_allclose(as_numpy(strided), expected, **tolerance(dtype, 3))


# -- lists ------------------------------------------------------------------------------------


def test_a_latent_fired_where_one_of_its_values_is_positive(placed):
    values = torch.tensor([2.0, -1.0, 0.0, math.nan, 4.0, -3.0])
    latents = torch.tensor([4, 0, 1, 2, 0, 4])
    fired = kernels.fired(placed(values), placed(latents), 6)
    assert fired.tolist() == [True, False, False, False, True, False]


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_kept_codes_keep_their_order_and_their_token(share, placed):
    _, starts = ragged(20, 15)
    n = int(starts[-1])
    mask = torch.rand(n, generator=torch.Generator().manual_seed(0)) < share
    places, kept_starts = map(as_numpy, kernels.kept(placed(mask), placed(starts)))
    np.testing.assert_array_equal(places, np.nonzero(mask.numpy())[0])
    counts = np.bincount(rows_of(starts)[mask.numpy()], minlength=20)
    np.testing.assert_array_equal(np.diff(kept_starts), counts)


# -- threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "kernel", ["topk", "above", "by_latent", "weighted_rows", "row_dots", "reconstruct"]
)
def test_the_number_of_threads_doesnt_change_a_bit(kernel, dtype, in_threads):
    batch, d_sae, d = 67, 333, 19
    latents, starts = ragged(batch, d_sae, most=40)
    values, rows = random(len(latents), dtype=dtype), random(d_sae, d, seed=1, dtype=dtype)
    pre_acts, grad = random(batch, d_sae, dtype=dtype), random(batch, d, seed=2, dtype=dtype)
    calls = {
        "topk": (pre_acts, 5),
        "above": (pre_acts, random(d_sae, dtype=dtype)),
        "by_latent": (latents, starts, d_sae),
        "weighted_rows": (values, latents, starts, rows),
        "row_dots": (grad, rows, latents, starts),
        "reconstruct": (values, latents, starts, rows, rows[0], grad),
    }
    module = cpu if kernel == "reconstruct" else kernels
    results = [
        in_threads(n, lambda: getattr(module, kernel)(*calls[kernel])) for n in (1, 2, 3, 100)
    ]
    first, *others = [r if isinstance(r, tuple) else (r,) for r in results]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_kernels_leave_torch_its_number_of_threads():
    """In a process of its own: numba's pool starts with the first kernel, and on Linux it shares
    OpenMP's setting with torch."""
    code = (
        "import torch; torch.set_num_threads(1);"
        "from sae_mlflow.sae import kernels;"
        "kernels.topk(torch.ones(4, 12), 3); print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_vectors_are_as_wide_as_the_cpu_has_unless_numba_was_told_what_to_use():
    code = (
        "import numba; from numba.core.codegen import get_host_cpu_features as has;"
        "wide = '+avx512f' in has().split(',');"
        "from sae_mlflow.sae import kernels;"
        "chosen = numba.config.CPU_FEATURES;"
        "print(chosen if chosen == '+sse2' else ('-prefer-256-bit' in str(chosen)) == wide)"
    )
    for told, expected in (({}, "True"), ({"NUMBA_CPU_FEATURES": "+sse2"}, "+sse2")):
        environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CPU_FEATURES"} | told
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert done.stdout.strip() == expected
