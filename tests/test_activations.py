"""What a layer's activations give to a training: batches, splits, scales, and pairs of sides."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cached_acts import (
    distances,
    epoch,
    expected_rows,
    filled,
    in_order,
    opened,
    planned,
    windows_of,
    xs,
    ys,
)
from safetensors.torch import load_file, save_file

from sae_mlflow.activations import cache
from sae_mlflow.activations.layer import open_activations
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.lm.loading import load_language_model

Make = Callable[..., Settings]
pytestmark = pytest.mark.usefixtures("one_thread")


def test_held_out_batches_are_the_held_out_activations_in_order(tiny_settings: Make) -> None:
    settings = tiny_settings()
    layers = opened(settings)
    lm = load_language_model(settings.model)
    for block, layer in zip((1, 2), layers, strict=True):
        expected = expected_rows(lm, windows_of(settings).held_out, block)
        batches = list(layer.held_out_batches(100))
        assert [len(b.x) for b in batches[:-1]] == [100] * (len(batches) - 1)
        got = (xs(batches) / layer.scale_in).numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_an_epoch_is_every_training_token_once_in_random_order(tiny_settings: Make) -> None:
    settings = tiny_settings()
    layer = opened(settings)[0]
    lm = load_language_model(settings.model)
    expected = expected_rows(lm, windows_of(settings).train, 1)
    assert layer.n_train == len(expected)
    got = (epoch(layer, seed=0, batch=1) / layer.scale_in).numpy()
    np.testing.assert_allclose(in_order(got), in_order(expected), rtol=1e-4, atol=1e-6)


def test_batches_are_drawn_from_the_whole_set_anew_each_epoch(tiny_settings: Make) -> None:
    """A buffer takes the first batch from the file's beginning; this comes from all of it."""
    layer = opened(tiny_settings())[0]
    in_file_order = layer._reads[0].read(layer._train_rows, layer.device)
    generator = torch.Generator().manual_seed(5)
    first, second = (next(iter(layer.batches(128, generator))).x for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, next(iter(layer.batches(128, torch.Generator().manual_seed(5)))).x)
    places = distances(first, in_file_order).argmin(dim=1)
    quarters = torch.bincount(places * 4 // layer.n_train, minlength=4)
    assert quarters.min() >= 16 and quarters.sum() == 128  # 32 each on average


def test_a_seed_means_the_same_batches_as_ever(tiny_settings: Make) -> None:
    """One permutation of the training tokens an epoch; a resumed training relies on it."""
    settings = tiny_settings()
    layer = opened(settings)[0]
    rows = expected_rows(load_language_model(settings.model), windows_of(settings).train, 1)
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(len(rows), generator=generator)[:50]
    expected = torch.cat([torch.from_numpy(rows)[order], epoch_order(rows, generator, 128)])
    ours = torch.Generator().manual_seed(3)
    got = torch.cat([layer.sample(50, ours).x, xs(layer.batches(128, ours))])
    torch.testing.assert_close(got / layer.scale_in, expected.double(), rtol=1e-4, atol=1e-6)


def epoch_order(rows: np.ndarray, generator: torch.Generator, batch: int) -> torch.Tensor:
    order = torch.randperm(len(rows), generator=generator)
    return torch.from_numpy(rows)[order[: len(rows) // batch * batch]]


def test_a_shorter_last_training_batch_is_dropped(tiny_settings: Make) -> None:
    layer = opened(tiny_settings())[0]
    batches = list(layer.batches(1000, torch.Generator()))
    assert [b.x.shape for b in batches] == [(1000, 32)] * (layer.n_train // 1000)
    assert layer.n_train % 1000


def test_the_scale_makes_the_mean_square_of_training_activations_1(tiny_settings: Make) -> None:
    settings = tiny_settings()
    lm = load_language_model(settings.model)
    for block, layer in zip((1, 2), opened(settings), strict=True):
        rows = expected_rows(lm, windows_of(settings).train, block).astype(np.float64)
        assert layer.scale_in.shape == (32,) and layer.scale_in.dtype == torch.float64
        expected = np.full(32, 1 / np.sqrt(np.mean(rows**2)))
        np.testing.assert_allclose(layer.scale_in.numpy(), expected, rtol=1e-5)
        assert epoch(layer, 0, batch=1).double().square().mean().item() == pytest.approx(1)


def test_a_sample_is_random_scaled_training_rows(tiny_settings: Make) -> None:
    layer = opened(tiny_settings())[0]
    sample = layer.sample(50, torch.Generator().manual_seed(0)).x
    assert sample.shape == (50, 32)
    assert distances(sample, epoch(layer, 1, batch=1)).min(dim=1).values.max() == 0
    assert len(layer.sample(10**6, torch.Generator()).x) == layer.n_train


@pytest.fixture
def giant_settings(tiny_model: Path, tiny_settings: Make, tmp_path: Path) -> Make:
    """The tiny model, but `word7` (token 9) has an embedding 10,000 times the usual."""
    import shutil

    folder = Path(shutil.copytree(tiny_model, tmp_path / "giant"))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][9] *= 10_000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return lambda *overrides: tiny_settings(f"model.name={folder}", *overrides)


def test_tokens_with_giant_norms_are_left_out_of_both_splits_and_counted(
    giant_settings: Make,
) -> None:
    settings = giant_settings("model.layers=[0]")
    windows = windows_of(settings)
    (layer,) = opened(settings)
    n_train = int((windows.train[:, 1:] == 9).sum())
    n_held_out = int((windows.held_out[:, 1:] == 9).sum())
    assert n_train > 3 and n_held_out > 0
    assert (layer.n_giant_train, layer.n_giant_held_out) == (n_train, n_held_out)
    assert (
        epoch(layer, 0, batch=1).shape[0]
        == layer.n_train
        == planned(settings).n_train_rows - n_train
    )
    assert epoch(layer, 0).norm(dim=1).max() < 10 * epoch(layer, 0).norm(dim=1).median()
    held_out = xs(layer.held_out_batches(64))
    assert len(held_out) == layer.n_held_out
    assert held_out.norm(dim=1).max() < 10 * held_out.norm(dim=1).median()


def test_the_cap_on_norms_is_applied_at_opening_and_costs_no_new_cache(
    giant_settings: Make,
) -> None:
    filled(giant_settings("model.layers=[0]"))
    wider = planned(giant_settings("model.layers=[0]", "activations.max_norm_ratio=1e9"))
    assert not wider.missing
    assert open_activations(wider)[0].n_giant_train == 0


def test_activations_that_are_not_numbers_are_left_out(
    giant_settings: Make, tiny_settings: Make
) -> None:
    """In float16 the giant token overflows: infinite norms, and no NaN in any batch."""
    (layer,) = opened(giant_settings("model.layers=[0]", "activations.dtype=float16"))
    assert layer.n_giant_train > 0
    assert epoch(layer, 0).isfinite().all()


def test_where_the_cap_leaves_less_than_a_batch_the_numbers_are_said(tiny_settings: Make) -> None:
    settings = tiny_settings("activations.max_norm_ratio=1.0001", "train.batch_tokens=3000")
    with pytest.raises(
        UserError, match=r"layer1: [\d,]+ training and .*max_norm_ratio = 1\.0001"
    ) as said:
        opened(settings)
    assert "less than one batch of train.batch_tokens = 3,000" in str(said.value)
    assert ", lower train.batch_tokens, or raise activations.max_norm_ratio." in str(said.value)


def test_an_autoencoder_reconstructs_the_very_tensor_that_it_reads(tiny_settings: Make) -> None:
    layer = opened(tiny_settings())[0]
    generator = torch.Generator()
    for batch in (
        next(iter(layer.batches(128, generator))),
        next(iter(layer.held_out_batches(128))),
        layer.sample(5, generator),
    ):
        assert batch.y is batch.x
    assert torch.equal(layer.scale_in, layer.scale_out)
    assert (layer.site.label, layer.d_in, layer.d_out) == ("layer1", 32, 32)


@pytest.fixture
def transcoder_settings(tiny_settings: Make) -> Make:
    return lambda *more: tiny_settings(
        "sae.architecture=transcoder", "model.layers=[layers.2.mlp]", *more
    )


def test_a_transcoders_rows_belong_to_the_same_tokens(transcoder_settings: Make) -> None:
    """The oracle: the MLP itself, run on each x, gives its y."""
    settings = transcoder_settings()
    (layer,) = opened(settings)
    mlp = load_language_model(settings.model).model.model.layers[2].mlp
    generator = torch.Generator().manual_seed(0)
    for batches in (
        list(layer.batches(128, generator)),
        list(layer.held_out_batches(100)),
        [layer.sample(64, generator)],
    ):
        x, y = xs(batches) / layer.scale_in, ys(batches) / layer.scale_out
        with torch.no_grad():
            torch.testing.assert_close(mlp(x.float()), y.float(), rtol=1e-4, atol=1e-6)


def test_a_transcoders_two_sides_have_each_a_width_and_a_scale(tiny_settings: Make) -> None:
    """`down_proj` takes 48 dimensions to 32."""
    settings = tiny_settings("sae.architecture=transcoder", "model.layers=[layers.2.mlp.down_proj]")
    (layer,) = opened(settings)
    assert (layer.d_in, layer.d_out) == (48, 32)
    assert layer.scale_in.shape == (48,) and layer.scale_out.shape == (32,)
    batches = list(layer.batches(1, torch.Generator()))
    for side, scale in ((xs(batches), layer.scale_in), (ys(batches), layer.scale_out)):
        assert side.double().square().mean().item() == pytest.approx(1)
        raw = side.double() / scale
        assert scale.unique().item() == pytest.approx(raw.square().mean().item() ** -0.5)
    assert layer.scale_in[0] != layer.scale_out[0]


def test_a_transcoder_and_an_autoencoder_share_what_they_both_read(
    tiny_settings: Make, transcoder_settings: Make
) -> None:
    filled(tiny_settings("model.layers=[layers.2.mlp]"))
    plan = planned(transcoder_settings())
    assert plan.missing == ("layers.2.mlp:input",)
    filled(plan.settings)
    assert not planned(tiny_settings("model.layers=[layers.2.mlp]")).missing
    (entry,) = cache.list_cache()
    assert set(entry.hookpoints) == {"layers.2.mlp", "layers.2.mlp:input"}


def test_sites_open_in_the_order_of_the_layers(tiny_settings: Make) -> None:
    plan = filled(tiny_settings("sae.architecture=transcoder", "model.layers=[layers.1.mlp,2,1]"))
    both_ends = ("layers.1.mlp:input", "layers.1.mlp", "layers.2:input", "layers.2")
    assert plan.hookpoints == (*both_ends, "layers.1:input", "layers.1")
    labels = [acts.site.label for acts in open_activations(plan)]
    assert labels == ["layer1_mlp", "layer2", "layer1"]


@pytest.fixture
def crosscoder_settings(tiny_settings: Make) -> Make:
    return lambda *more: tiny_settings(
        "sae.architecture=crosscoder", "model.layers=[2,0,layers.3.mlp.gate_proj]", *more
    )


def test_a_crosscoder_reads_its_layers_side_by_side_each_with_a_scale_of_its_own(
    crosscoder_settings: Make,
) -> None:
    settings = crosscoder_settings()
    (layer,) = opened(settings)
    assert layer.site.label == "layer0-2-3_mlp_gate_proj"
    assert layer.d_in == layer.d_out == 32 + 32 + 48
    lm, windows = load_language_model(settings.model), windows_of(settings)
    held_out = xs(layer.held_out_batches(100))
    for begin, block in ((0, 2), (32, 0)):
        train = expected_rows(lm, windows.train, block).astype(np.float64)
        scale = 1 / np.sqrt(np.mean(train**2))
        np.testing.assert_allclose(layer.scale_in[begin : begin + 32].numpy(), scale, rtol=1e-5)
        expected = expected_rows(lm, windows.held_out, block) * scale
        part = held_out[:, begin : begin + 32].numpy()
        np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-6)
    gate = epoch(layer, 0, batch=1)[:, 64:].double()
    assert gate.square().mean().item() == pytest.approx(1)


def test_a_crosscoder_reconstructs_the_very_tensor_that_it_reads(crosscoder_settings: Make) -> None:
    (layer,) = opened(crosscoder_settings())
    batch = next(iter(layer.batches(128, torch.Generator())))
    assert batch.y is batch.x and batch.x.shape == (128, 112)


def test_a_token_that_is_a_giant_at_any_of_the_layers_is_left_out_of_all(
    giant_settings: Make,
) -> None:
    """Block 0's MLP sees `word7` through a norm, as large as any token: there it is no giant."""
    layers = "model.layers=[layers.0.mlp,0]"
    mlp, block = opened(giant_settings(layers))
    (both,) = opened(giant_settings(layers, "sae.architecture=crosscoder"))
    assert mlp.n_giant_train == mlp.n_giant_held_out == 0 < block.n_giant_train
    assert (both.n_giant_train, both.n_giant_held_out) == (
        block.n_giant_train,
        block.n_giant_held_out,
    )
    assert (both.n_train, both.n_held_out) == (block.n_train, block.n_held_out)
    mlp_part, block_part = xs(both.held_out_batches(64)).split(32, dim=1)
    assert torch.equal(block_part, xs(block.held_out_batches(64)))
    tokens = torch.from_numpy(windows_of(giant_settings()).held_out)[:, 1:].flatten()
    usual = tokens[(tokens != 0) & (tokens != 1)] != 9
    expected = xs(mlp.held_out_batches(64))[usual] / mlp.scale_in
    torch.testing.assert_close(mlp_part / both.scale_in[:32], expected)


def test_a_transcoder_leaves_out_tokens_whose_input_or_output_is_a_giant(
    giant_settings: Make,
) -> None:
    """A block takes in and puts out the giant embedding; so the count is once a token."""
    settings = giant_settings("model.layers=[0]", "sae.architecture=transcoder")
    (layer,) = opened(settings)
    assert layer.n_giant_train == int((windows_of(settings).train[:, 1:] == 9).sum())
    for side in (xs, ys):
        norms = side(layer.held_out_batches(64)).norm(dim=1)
        assert norms.max() < 10 * norms.median()
