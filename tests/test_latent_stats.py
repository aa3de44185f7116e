"""Densities and cosines, with numbers that can be checked by hand."""

import csv

import numpy as np
import pytest
import torch
from spliced_models import identity_sae, random_sae

from sae_mlflow.density import density_metrics, density_table, write_density_table
from sae_mlflow.evaluation.latent_stats import (
    FiringCounts,
    decoder_max_cosine,
    encoder_decoder_cosine,
    weight_metrics,
)


def test_density_is_the_share_of_tokens_with_a_latent_above_zero():
    counts = FiringCounts(3)
    counts.add(torch.tensor([[1.0, 0.0, 0.5], [2.0, 0.0, 0.0]]))
    counts.add(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert counts.tokens == 4
    assert counts.density().tolist() == [0.75, 0.0, 0.25]


def test_shares_count_latents_over_one_and_ten_percent_and_dead_ones():
    density = np.array([0.0, 0.01, 0.02, 0.1, 0.5])  # exactly 1% isn't over 1%
    assert density_metrics(density) == {
        "latents_over_1_percent": 0.6,
        "latents_over_10_percent": 0.2,
        "latents_dead_fraction": 0.2,
    }


def test_every_latent_is_in_one_bin_or_never_fired():
    tokens = 1000
    density = np.array([0, 0, 1, 2, 10, 100, 999, 1000]) / tokens
    table = density_table(density, tokens)
    assert table.never_fired == 2
    assert table.latents.sum() == 6 and table.d_sae == 8
    assert (table.edges[0], table.edges[-1]) == (-3.0, 0.0)
    assert np.allclose(np.diff(table.edges), 1 / 3)
    by_bin = dict(zip(np.round(table.edges, 2).tolist(), table.latents.tolist(), strict=False))
    assert by_bin[-3.0] == 2  # one firing and two: log10 -3 and -2.7
    assert by_bin[-2.0] == 1 and by_bin[-1.0] == 1
    assert table.latents[-1] == 2  # the share 1 itself is in the last bin


@pytest.mark.parametrize("tokens", [7, 100, 1920, 8128])
def test_no_bin_between_firing_once_and_twice_is_always_empty(tokens):
    table = density_table(np.arange(1, tokens + 1) / tokens, tokens)
    assert table.latents.sum() == tokens
    first = int(table.latents.argmax() if tokens < 3 else np.nonzero(table.latents)[0][0])
    assert (table.latents[first:] > 0).all()


def test_the_table_file_says_each_bin_and_first_those_that_never_fired(tmp_path):
    file = tmp_path / "density.csv"
    write_density_table(density_table(np.array([0, 0.01, 0.02, 1.0]), 100), file)
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert rows[0] == {
        "log10_density_from": "",
        "log10_density_to": "",
        "latents": "1",
        "share_of_latents": "0.25",
    }
    assert rows[1]["log10_density_from"] == "-2.0000"
    assert sum(int(row["latents"]) for row in rows) == 4
    assert rows[-1]["log10_density_to"] == "0.0000"


def test_the_largest_cosine_is_with_another_row():
    """Rows along x, y and the diagonal: 0.7071 is each one's nearest."""
    rows = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    assert decoder_max_cosine(rows) == pytest.approx(0.5**0.5, rel=1e-6)
    assert decoder_max_cosine(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == -1.0


def test_rows_in_chunks_are_those_of_the_whole_matrix():
    rows = torch.randn(2500, 6, generator=torch.Generator().manual_seed(0))
    unit = (rows / rows.norm(dim=1, keepdim=True)).double().numpy()
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    assert decoder_max_cosine(rows) == pytest.approx(cosines.max(axis=1).mean(), abs=1e-6)


def test_the_encoder_decoder_cosine_is_one_where_they_are_each_others_transpose():
    sae = identity_sae(5)
    assert encoder_decoder_cosine(sae.W_enc, sae.W_dec) == 1.0
    assert encoder_decoder_cosine(-2 * sae.W_enc, sae.W_dec) == -1.0


def test_a_transcoder_has_no_encoder_decoder_cosine():
    """Its rows are in different spaces, even where these have the same width."""
    sae = random_sae(6, 6)
    assert set(weight_metrics(sae, reads_what_it_writes=False)) == {"decoder_max_cosine"}
    both = {"decoder_max_cosine", "encoder_decoder_cosine"}
    assert set(weight_metrics(sae, reads_what_it_writes=True)) == both
