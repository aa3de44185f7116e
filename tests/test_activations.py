import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_mlflow.activations import cache
from sae_mlflow.activations.harvest import fill_activations
from sae_mlflow.activations.layer import LayerActivations, open_activations
from sae_mlflow.activations.plan import ActivationPlan, plan_activations
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.lm.files import weights_hash
from sae_mlflow.lm.hookpoints import LanguageModel
from sae_mlflow.lm.loading import load_language_model, load_tokenizer
from sae_mlflow.sae.base import Batch
from sae_mlflow.text.corpus import Windows, token_windows

Make = Callable[..., Settings]
pytestmark = pytest.mark.usefixtures("one_thread")


def windows_of(settings: Settings) -> Windows:
    return token_windows(settings.text, load_tokenizer(settings.model))


def planned(settings: Settings) -> ActivationPlan:
    return plan_activations(settings, windows_of(settings))


def filled(settings: Settings) -> ActivationPlan:
    plan = planned(settings)
    for _ in fill_activations(plan, load_language_model(settings.model)):
        pass
    return planned(settings)


def opened(settings: Settings) -> list[LayerActivations]:
    return open_activations(filled(settings))


def expected_rows(lm: LanguageModel, windows: np.ndarray, block: int) -> np.ndarray:
    """A block's outputs at ordinary positions, from transformers, one window at a time."""
    rows = []
    for window in windows:
        with torch.no_grad():
            ids = torch.from_numpy(window[None]).long()
            hidden = lm.model(ids, output_hidden_states=True).hidden_states[block + 1][0].numpy()
        rows += [hidden[i] for i, token in enumerate(window) if i > 0 and token not in (0, 1)]
    return np.stack(rows)


def in_order(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T[::-1])]


def epoch(layer: LayerActivations, seed: int, batch: int = 128) -> torch.Tensor:
    return xs(layer.batches(batch, torch.Generator().manual_seed(seed)))


def xs(batches: Iterable[Batch]) -> torch.Tensor:
    return torch.cat([batch.x for batch in batches])


def ys(batches: Iterable[Batch]) -> torch.Tensor:
    return torch.cat([batch.y for batch in batches])


def distances(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """`[n, m]`, exactly 0 between equal rows."""
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


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
    with pytest.raises(UserError, match=r"layer1: [\d,]+ training and .*max_norm_ratio = 1\.0001"):
        opened(settings)


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


def test_a_cache_of_version_0_1_0_is_named_and_collected_anew(
    tiny_settings: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Written here by hand, under its key and names: it had no checksums, and so can't be known
    to be what was written."""
    settings = tiny_settings("model.layers=[1]")
    windows, lm = windows_of(settings), load_language_model(settings.model)
    facts = {
        "weights": weights_hash(settings.model),
        "windows": windows.sha256,
        "context": 32,
        "lm_dtype": "float32",
        "dtype": "float32",
        "exclusions": "no special tokens, no first positions; v1",
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache.activations_folder() / key
    folder.mkdir(parents=True)
    splits = (expected_rows(lm, split, 1) for split in (windows.train, windows.held_out))
    rows = np.concatenate(list(splits)) + 1  # not what the model gives
    rows.tofile(folder / "layers.1.acts")
    np.linalg.norm(rows, axis=1).astype(np.float32).tofile(folder / "layers.1.norms")
    plan = planned(settings)
    assert plan.missing == ("layers.1",) and plan.tokens_to_read == 4096
    said = f"Cached activations {key}: layers.1.acts: another version of sae-mlflow wrote it."
    assert said in caplog.text and "layers.1 is collected anew." in caplog.text
    (layer,) = opened(settings)
    raw = (xs(layer.held_out_batches(64)) / layer.scale_in).numpy()
    np.testing.assert_allclose(raw, rows[-layer.n_held_out :] - 1, rtol=1e-4, atol=1e-6)


def test_one_forward_pass_feeds_every_layer(tiny_settings: Make) -> None:
    settings = tiny_settings("model.layers=[0,1,2,layers.1.mlp]", "activations.batch_windows=8")
    lm = load_language_model(settings.model)
    passes: list[int] = []
    lm.model.model.layers[0].register_forward_hook(lambda _, args, out: passes.append(len(args[0])))
    plan = planned(settings)
    done = list(fill_activations(plan, lm))
    assert passes == [8] * 16  # 128 windows
    assert done == [8 * 32 * (i + 1) for i in range(16)]
    assert done[-1] == plan.tokens_to_read == 4096


def test_what_is_announced_is_what_is_written(tiny_settings: Make) -> None:
    plan = planned(tiny_settings())
    for _ in fill_activations(plan, load_language_model(plan.settings.model)):
        pass
    written = sum(
        f.stat().st_size for f in plan.folder.iterdir() if f.suffix in {".acts", ".norms", ".sums"}
    )
    assert plan.bytes_to_write == written > 0
    again = planned(tiny_settings())
    assert (again.missing, again.bytes_to_write, again.tokens_to_read) == ((), 0, 0)


def test_one_more_layer_pays_for_itself_alone(tiny_settings: Make) -> None:
    filled(tiny_settings())
    before = {f: f.stat().st_mtime_ns for f in planned(tiny_settings()).folder.glob("*.acts")}
    plan = planned(tiny_settings("model.layers=[1,2,3]"))
    assert plan.missing == ("layers.3",)
    n_rows = int(plan.stores[0].rows_before[-1])
    assert plan.bytes_to_write == n_rows * (32 * 4 + 4) + 40 + 128 * 32  # sums: 128 windows
    filled(plan.settings)
    assert {f: f.stat().st_mtime_ns for f in before} == before


@pytest.mark.parametrize(
    "override",
    [
        "model.dtype=bfloat16",
        "text.context=16",
        "text.shuffle_seed=1",
        "activations.dtype=bfloat16",
    ],
)
def test_whatever_changes_the_numbers_has_a_cache_of_its_own(
    tiny_settings: Make, override: str
) -> None:
    assert planned(tiny_settings()).key != planned(tiny_settings(override)).key


def test_what_does_not_change_them_shares_it(tiny_settings: Make) -> None:
    key = planned(tiny_settings()).key
    for override in (
        "model.layers=[3]",
        "sae.k=7",
        "train.epochs=9",
        "activations.batch_windows=3",
    ):
        assert planned(tiny_settings(override)).key == key


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_a_cache_in_half_the_bytes_holds_the_same_within_rounding(
    tiny_settings: Make, dtype: str, error: float
) -> None:
    exact, rounded = (
        opened(tiny_settings())[0],
        opened(tiny_settings(f"activations.dtype={dtype}"))[0],
    )
    expected, got = xs(exact.held_out_batches(64)), xs(rounded.held_out_batches(64))
    assert got.dtype == torch.float32
    expected, got = expected / exact.scale_in, got / rounded.scale_in
    torch.testing.assert_close(got, expected, rtol=1.1 * error, atol=1e-6)


FILL = """
import json, sys
from sae_mlflow.activations.harvest import fill_activations
from sae_mlflow.activations.plan import plan_activations
from sae_mlflow.config import Settings
from sae_mlflow.text.corpus import token_windows
from sae_mlflow.lm.loading import load_language_model, load_tokenizer
settings = Settings.model_validate(json.loads(sys.argv[1]))
plan = plan_activations(settings, token_windows(settings.text, load_tokenizer(settings.model)))
for tokens in fill_activations(plan, load_language_model(settings.model)):
    print(tokens, flush=True)
    sys.stdin.readline()
"""


def test_a_fill_that_is_killed_goes_on_where_it_was_and_ends_in_the_same_bytes(
    tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings("activations.batch_windows=5")
    command = [sys.executable, "-c", FILL, json.dumps(settings.model_dump(mode="json"))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        for expected in (160, 320, 480):
            assert process.stdout.readline() == f"{expected}\n"
            if expected < 480:
                process.stdin.write("\n")
                process.stdin.flush()
        process.send_signal(signal.SIGKILL)
    plan = planned(settings)
    assert plan.tokens_to_read == 4096 - 480
    with plan.stores[0].files.acts.open("ab") as file:
        file.write(b"half a row")  # as a kill in the middle of a write leaves it
    resumed = filled(settings)
    monkeypatch.setenv("SAE_MLFLOW_CACHE", str(tmp_path / "other"))
    in_one_go = filled(settings)
    for one, other in zip(resumed.stores, in_one_go.stores, strict=True):
        assert one.files.acts.read_bytes() == other.files.acts.read_bytes()
        assert one.files.norms.read_bytes() == other.files.norms.read_bytes()
        assert one.files.sums.read_bytes() == other.files.sums.read_bytes()


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2 + 3)


def lengthen(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(bytes(4096))


def blank(file: Path) -> None:
    """As a machine that loses power leaves pages that it never wrote."""
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 4)
        opened.write(bytes(file.stat().st_size // 2))


@pytest.mark.parametrize("damage", [cut, lengthen, blank, Path.unlink])
@pytest.mark.parametrize("suffix", ["acts", "norms", "sums"])
def test_files_that_are_not_what_was_written_are_filled_again(
    tiny_settings: Make, damage: Callable[[Path], None], suffix: str
) -> None:
    settings = tiny_settings("model.layers=[0,1]")
    plan = filled(settings)
    file = plan.folder / f"layers.1.{suffix}"
    whole = file.read_bytes()
    damage(file)
    assert planned(settings).missing == ("layers.1",)
    filled(settings)
    assert file.read_bytes() == whole


def test_two_fills_at_once_write_once(tiny_settings: Make) -> None:
    plan = planned(tiny_settings())
    lm = load_language_model(plan.settings.model)
    first = fill_activations(plan, lm)
    next(first)
    second: list[int] = [-1]
    thread = threading.Thread(target=lambda: second.extend(fill_activations(plan, lm)))
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive()
    for _ in first:
        pass
    thread.join(timeout=10)
    assert second == [-1] and not planned(tiny_settings()).missing


def test_a_disk_that_cannot_hold_the_activations_is_said_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"take 5\.0 TB, but .* has [\d.]+ .B free.*bfloat16"):
        cache.check_disk(5 * 10**12)
    cache.check_disk(10)


def test_less_text_than_one_batch_is_refused_before_anything_is_loaded(tiny_settings: Make) -> None:
    settings = tiny_settings("train.batch_tokens=5000")
    with pytest.raises(
        UserError, match=r"tiny\.txt gives 3,\d+ training tokens.*batch_tokens = 5,000"
    ):
        planned(settings)


def test_a_context_longer_than_the_model_reads_is_refused(tiny_settings: Make) -> None:
    with pytest.raises(UserError, match=r"text.context = 65, but .* reads at most 64 tokens"):
        planned(tiny_settings("text.context=65"))


def test_another_models_tokenizer_is_refused(tiny_settings: Make) -> None:
    settings = tiny_settings()
    windows = windows_of(settings)
    windows.train[0, 3] = 202
    with pytest.raises(UserError, match=r"token 202, but the model knows 0\.\.201"):
        plan_activations(settings, windows)


def test_the_cache_is_listed_and_pruned(tiny_settings: Make) -> None:
    old, new = filled(tiny_settings("model.layers=[2,1]")), filled(tiny_settings("text.context=16"))
    os.utime(old.folder / "last_used", (0, 0))
    entries = cache.list_cache()
    assert [entry.key for entry in entries] == [new.key, old.key]
    assert entries[1].hookpoints == ("layers.1", "layers.2")
    assert (entries[1].tokens, entries[1].text) == (4096, "tiny.txt")
    assert entries[1].model.endswith("tiny-llama")
    assert entries[1].bytes == sum(f.stat().st_size for f in old.folder.iterdir())
    with pytest.raises(UserError, match=rf"'nope'. There are: {new.key}, {old.key}"):
        cache.prune_cache(["nope"])
    assert cache.prune_cache(older_than_days=1) == entries[1].bytes
    assert [entry.key for entry in cache.list_cache()] == [new.key]
    assert cache.prune_cache([new.key]) == entries[0].bytes
    assert cache.list_cache() == []


def test_opening_marks_an_entry_as_used(tiny_settings: Make) -> None:
    plan = filled(tiny_settings())
    os.utime(plan.folder / "last_used", (0, 0))
    open_activations(plan)
    assert time.time() - cache.list_cache()[0].last_used < 60


def test_an_entry_that_is_being_written_is_not_pruned(tiny_settings: Make) -> None:
    plan = planned(tiny_settings())
    fill = fill_activations(plan, load_language_model(plan.settings.model))
    next(fill)
    assert cache.prune_cache(everything=True) == 0
    fill.close()
    assert cache.prune_cache(everything=True) > 0
