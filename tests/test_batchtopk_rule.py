"""What BatchTopK keeps of a batch that it sees in chunks, against a full sort."""

import math

import numpy as np
import pytest
import torch
from random_codes import random, rows_of, with_ties

from sae_mlflow.sae.select import BatchTopK

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float32, torch.float64]


def picked(pre_acts, k, chunk_rows=16, passes=20):
    """What the rule keeps, as `[batch, d_sae]`, when it sees so many rows at once."""
    seen = 0

    def chunks():
        nonlocal seen
        seen += 1
        assert seen <= passes, "the batch is encoded again and again"
        for start in range(0, max(len(pre_acts), 1), chunk_rows):
            yield pre_acts[start : start + chunk_rows]

    values, latents, starts = BatchTopK(k).pick(chunks)
    assert len(starts) == len(pre_acts) + 1 and starts[0] == 0 and starts[-1] == len(values)
    dense = torch.zeros_like(pre_acts)
    dense[torch.from_numpy(rows_of(starts)), latents] = values
    assert (dense > 0).sum() == len(values), "a latent was kept twice, or isn't positive"
    return dense


def sorted_out(pre_acts, k):
    """The `k * batch` largest of the positive ones, where there are no ties."""
    flat = np.sort(pre_acts.numpy().clip(min=0), axis=None)[::-1]
    wanted = min(k * len(pre_acts), len(flat))
    border = flat[wanted - 1] if wanted else np.inf
    return np.where(pre_acts.numpy() >= border, pre_acts.numpy(), 0).clip(min=0)


def uneven(first, rest):
    """A batch of 200 tokens whose first 64, which suggest a bound, aren't like the others."""
    scales = torch.full((200, 1), rest)
    scales[:64] = first
    return random(200, 50) * scales


BATCHES = {
    "even": random(200, 50),
    "the first tokens are huge": uneven(1e6, 1.0),
    "the first tokens are larger": uneven(3.0, 1.0),
    "the first tokens are tiny": uneven(1e-6, 1.0),
    "the first tokens fire nothing": uneven(-1.0, 1.0) - 5 * (torch.arange(200) < 64)[:, None],
    "only the first token fires": -random(200, 50).abs().index_fill(0, torch.tensor([0]), -1.0),
    "few are positive": random(200, 50) - 2.5,
    "none is positive": -random(200, 50).abs(),
    "all are positive": random(200, 50).abs() + 1,
    "one token": random(1, 50),
    "no token": random(0, 50),
}


@pytest.mark.parametrize("k", [1, 4, 50])
@pytest.mark.parametrize("batch", BATCHES)
def test_batchtopk_keeps_what_a_sort_of_the_whole_batch_puts_first(batch, k):
    pre_acts = BATCHES[batch]
    np.testing.assert_array_equal(picked(pre_acts, k).numpy(), sorted_out(pre_acts, k))
    np.testing.assert_array_equal(
        BatchTopK(k).masked(pre_acts).numpy(), sorted_out(pre_acts, k), "the dense way"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 4, 50])
def test_batchtopk_adds_biases_that_the_chunks_lack(k, dtype):
    products, bias = random(200, 50, dtype=dtype), 2 * random(50, seed=1, dtype=dtype)
    values, latents, starts = BatchTopK(k).pick(lambda: iter(products.split(30)), bias)
    dense = np.zeros((200, 50), values.numpy().dtype)
    dense[rows_of(starts), latents] = values
    np.testing.assert_array_equal(dense, sorted_out(products + bias, k))


@pytest.mark.parametrize("k", [1, 7, 13])
def test_batchtopk_of_ties_at_the_border_keeps_exactly_k_times_batch(k):
    pre_acts = with_ties(100, 40)
    kept = picked(pre_acts, k)
    assert (kept > 0).sum() == 100 * k
    dense = BatchTopK(k).masked(pre_acts)
    assert (dense != 0).sum() == 100 * k
    best = np.sort(pre_acts.numpy(), axis=None)[::-1][: 100 * k]
    for one in (kept, dense):
        np.testing.assert_array_equal(np.sort(one[one > 0].numpy()), best[::-1])


def test_batchtopk_of_ties_keeps_fewer_where_fewer_are_positive():
    pre_acts = with_ties(100, 40)
    n_positive = (pre_acts > 0).sum()
    assert n_positive < 100 * 30
    assert (picked(pre_acts, 30) > 0).sum() == n_positive
    assert (BatchTopK(30).masked(pre_acts) != 0).sum() == n_positive


def test_batchtopk_of_infinite_tokens_ends():
    """Nothing is over a bound that the first tokens suggest to be infinite, nor over a quarter."""
    pre_acts = uneven(math.inf, 1.0).nan_to_num(0.0, posinf=math.inf, neginf=-math.inf)
    kept = picked(pre_acts, 4)
    assert (kept == math.inf).sum() == 800


def test_batchtopk_of_what_isnt_a_number_keeps_what_is():
    pre_acts = random(100, 40)
    pre_acts[:70] = math.nan
    np.testing.assert_array_equal(
        picked(pre_acts, 3).numpy(), sorted_out(pre_acts.nan_to_num(0.0), 3).clip(min=0)
    )
