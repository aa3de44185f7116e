"""NaN, infinity and changed bytes: noticed, named, and never trained on without a word."""

import json
import math
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cached_acts import filled, planned, windows_of
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file
from saved_saes import CASES, change_config, saved

from sae_mlflow import load_sae
from sae_mlflow.activations.harvest import fill_activations
from sae_mlflow.activations.layer import LayerActivations, open_activations
from sae_mlflow.checkpoint import read_facts
from sae_mlflow.config import Settings
from sae_mlflow.config_load import load_settings
from sae_mlflow.errors import UserError
from sae_mlflow.history import read_history, write_history
from sae_mlflow.lm.files import weights_hash
from sae_mlflow.lm.loading import load_language_model
from sae_mlflow.pipeline import run_training
from sae_mlflow.plot import plot_reconstruction_loss_only
from sae_mlflow.reporting.display import Display

pytestmark = pytest.mark.usefixtures("one_thread")
UP_2 = "model.layers.2.mlp.up_proj.weight"
QUIET = ("plots.after_training=false", "plots.live=false")


@pytest.fixture
def with_weights(tiny_model, tmp_path):
    """`with_weights(change)`: a copy of the tiny model whose weights a function has changed."""

    def make(change) -> Path:
        folder = Path(shutil.copytree(tiny_model, tmp_path / "changed"))
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def nan_in_block_2(weights):
    weights[UP_2][3, 5] = math.nan


def nan_in_word7(weights):
    weights["model.embed_tokens.weight"][9, 0] = math.nan


def test_a_model_whose_weights_are_no_numbers_is_named_before_it_is_read(
    with_weights, tiny_settings
):
    folder = with_weights(nan_in_block_2)
    plan = planned(tiny_settings(f"model.name={folder}", "model.layers=[1,2]"))
    with pytest.raises(UserError) as error:
        list(fill_activations(plan, load_language_model(plan.settings.model)))
    assert str(error.value) == (
        f"The activations of {folder} at layers.2 aren't numbers (NaN or infinity), and neither "
        f"are its weights {UP_2}. Fetch or save the model again."
    )
    filled(tiny_settings(f"model.name={folder}", "model.layers=[1]"))  # the block before is well


def test_an_lm_whose_number_format_is_too_narrow_is_said(with_weights, tiny_settings):
    def wide(weights):
        for name in (UP_2, UP_2.replace("up_proj", "gate_proj")):
            weights[name] *= 1e5  # to 10^4; their products come to 10^8, and float16 ends at 65,504

    folder = with_weights(wide)
    plan = planned(tiny_settings(f"model.name={folder}", "model.dtype=float16"))
    with pytest.raises(UserError, match=r"though its weights are: model\.dtype = float16 may be"):
        list(fill_activations(plan, load_language_model(plan.settings.model)))
    filled(tiny_settings(f"model.name={folder}"))  # in float32 all is well


def tokens_not_finite(settings, block: int) -> tuple[int, int]:
    """How many kept tokens of a block aren't finite, and the first's window, by transformers."""
    windows, lm = windows_of(settings), load_language_model(settings.model)
    count, first = 0, None
    for n, window in enumerate(np.concatenate([windows.train, windows.held_out])):
        ids = torch.from_numpy(window[None]).long()
        with torch.no_grad():
            hidden = lm.model(ids, output_hidden_states=True).hidden_states[block + 1][0]
        kept = [i for i, token in enumerate(window) if i > 0 and token not in (0, 1)]
        bad = int((~hidden[kept].isfinite().all(dim=1)).sum())
        first = n if bad and first is None else first
        count += bad
    return count, first


def test_a_few_tokens_that_are_no_numbers_are_left_out_counted_and_named(
    with_weights, tiny_settings, tmp_path, monkeypatch, capsys
):
    """One word's embedding is NaN: so is all that its window reads from there on."""
    monkeypatch.chdir(tmp_path)
    settings = tiny_settings(
        f"model.name={with_weights(nan_in_word7)}",
        "model.layers=1",
        "train.epochs=1",
        *QUIET,
        "evaluate.after_training=false",
    )
    count, first = tokens_not_finite(settings, 1)
    assert 100 < count < 1500 and first < 20
    training = run_training(settings, Display(), tracking_uri=f"sqlite:///{tmp_path}/bad.db")
    said = f"layer1: of these, {count:,} hold NaN or infinity at layers.1, the first in window "
    assert f"warning: {said}{first} of the text" in capsys.readouterr().out
    row = training.store.run(training.rows[0].run_id)
    assert row.params["data.not_finite_tokens"] == str(count)
    assert all(math.isfinite(value) for value in row.metrics.values())


def test_a_layer_that_is_mostly_no_numbers_is_an_error(with_weights, tiny_settings):
    """The cache's format is too narrow for three words of four."""

    def wide(weights):
        weights["model.embed_tokens.weight"][50:] *= 1e7

    settings = tiny_settings(
        f"model.name={with_weights(wide)}", "model.layers=0", "activations.dtype=float16"
    )
    said = r"layer0: [\d,]+ of [\d,]+ tokens at layers\.0 aren't numbers .* activations\.dtype = "
    with pytest.raises(UserError, match=said + "float16 may be too narrow for them: try bfloat16"):
        open_activations(filled(settings))


def test_a_loss_that_becomes_nan_is_no_silent_success(tiny_settings, tmp_path, monkeypatch, capsys):
    """Its run says failed, its figures go missing with a word, and its SAE doesn't load."""
    monkeypatch.chdir(tmp_path)
    batches = LayerActivations.batches

    def with_nan(self, *arguments):
        for batch in batches(self, *arguments):
            if self.site.label == "layer1":
                batch.x[0, 0] = math.nan
            yield batch

    monkeypatch.setattr(LayerActivations, "batches", with_nan)
    settings = tiny_settings("train.epochs=1", *QUIET)
    training = run_training(settings, Display(), tracking_uri=f"sqlite:///{tmp_path}/nan.db")
    bad, good = (training.store.run(row.run_id) for row in training.rows)
    assert bad.tags["sae.health"] == "failed" and "not_finite" in bad.tags["sae.health.reasons"]
    said = capsys.readouterr().out
    assert "layer1: health failed" in said and "layer1 isn't evaluated: its loss is no" in said
    assert "ce_loss_recovered" in good.metrics and "ce_loss_recovered" not in bad.metrics
    with pytest.raises(UserError, match=r"weights that aren't numbers .* in W_enc"):
        load_sae(f"runs:/{bad.run_id}/sae", tracking_uri=training.store.uri)
    assert MlflowClient(training.store.uri).get_run(bad.run_id).info.status == "FINISHED"


def test_nothing_is_saved_of_what_was_trained_on_a_changed_row(
    tiny_settings, tmp_path, monkeypatch, own_state
):
    """A GPU has seen it by then, and wasn't asked yet."""
    monkeypatch.chdir(tmp_path)
    batches, n_read = LayerActivations.batches, []

    def with_changed_row(self, *arguments):
        for batch in batches(self, *arguments):
            n_read.append(batch)
            if len(n_read) == 40:
                self._reads[0].check._changed = torch.tensor(7)
            yield batch

    monkeypatch.setattr(LayerActivations, "batches", with_changed_row)
    settings = tiny_settings("checkpoint.every_seconds=0.000001", *QUIET)
    with pytest.raises(UserError, match="row 7 is not what was written"):
        run_training(settings, Display(), tracking_uri=f"sqlite:///{tmp_path}/changed.db")
    newest = max(own_state.glob("checkpoints/*/*.safetensors"))
    assert read_facts(newest)["trainer"]["steps_done"] == 39


def test_weights_that_change_under_the_same_name_have_another_hash(
    with_weights, tiny_settings, tiny_model
):
    """In place, with as many bytes, and with the times that it had before."""
    folder = with_weights(lambda weights: None)
    file = folder / "model.safetensors"
    model = tiny_settings(f"model.name={folder}").model
    hashes = {weights_hash(model)}
    assert hashes == {weights_hash(tiny_settings(f"model.name={tiny_model}").model)}
    for bit in range(5):
        stat = file.stat()
        content = bytearray(file.read_bytes())
        content[-100] ^= 1 << bit
        with file.open("r+b") as opened:
            opened.write(content)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        hashes.add(weights_hash(model))
    assert len(hashes) == 6


def test_a_file_of_remembered_hashes_that_a_disk_has_changed_is_no_obstacle(
    tiny_settings, tmp_path
):
    memo = tmp_path / "cache" / "weights_hashes.json"
    model = tiny_settings().model
    expected = weights_hash(model)
    for content in ("", "[1]", '{"a": 1}', "\0", json.dumps({"/x 1 2": None})):
        memo.parent.mkdir(exist_ok=True)
        memo.write_text(content)
        assert weights_hash(model) == expected


def some_places(size: int, seed: int, n: int) -> list[int]:
    return sorted({0, size - 1, *random.Random(seed).sample(range(size), n)})


@pytest.mark.parametrize("file", ["sae_weights.safetensors", "cfg.json"])
@pytest.mark.parametrize("case", ["topk", "jumprelu", "crosscoder"])
def test_a_saved_sae_that_was_cut_or_changed_is_never_another_sae(tmp_path, case, file):
    """What its checksum is for: a flipped bit in the weights, or in `k`."""
    saved(tmp_path / "sae", case)
    path = tmp_path / "sae" / file
    whole = path.read_bytes()
    expected = load_sae(tmp_path / "sae").state_dict()

    def is_noticed(content: bytes) -> bool:
        path.write_bytes(content)
        try:
            found = load_sae(tmp_path / "sae")
        except UserError as error:
            assert str(tmp_path / "sae") in str(error)
            return True
        assert all(torch.equal(found.state_dict()[name], p) for name, p in expected.items())
        return False

    for place in some_places(len(whole.strip()), seed=1, n=60):
        assert is_noticed(whole[:place])
    if file == "sae_weights.safetensors":
        for place in some_places(len(whole), seed=2, n=60):
            flipped = bytes([whole[place] ^ 1 << place % 8])
            assert is_noticed(whole[:place] + flipped + whole[place + 1 :])
    else:
        places = range(len(whole))
        n = sum(is_noticed(whole[:p] + bytes([whole[p] ^ 1]) + whole[p + 1 :]) for p in places)
        assert n > 0.9 * len(whole)  # white space may change, and the checksum's own name


def test_a_sae_that_was_changed_on_purpose_loads_without_its_checksum(tmp_path):
    saved(tmp_path / "sae")
    file = tmp_path / "sae" / "cfg.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"k": 7}))
    with pytest.raises(UserError, match=r"isn't as it was saved: .*remove sha256\)"):
        load_sae(tmp_path / "sae")
    del config["sha256"]
    file.write_text(json.dumps(config | {"k": 7}))
    assert load_sae(tmp_path / "sae").k == 7


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_saved_sae_with_a_weight_that_is_no_number_is_refused(tmp_path, case, value):
    saved(tmp_path / "sae", case)
    change_config(tmp_path / "sae")
    file = tmp_path / "sae" / "sae_weights.safetensors"
    weights = load_file(file)
    weights["W_dec"].view(-1)[5] = value
    save_file(weights, file)
    n = weights["W_dec"].numel()
    with pytest.raises(UserError, match=rf"numbers \(NaN or infinity\): 1 of {n:,} in W_dec"):
        load_sae(tmp_path / "sae")


CONFIG = b"""# a short config
experiment: "tiny"
model: {name: gpt2, layers: [1, 3-7, layers.2.mlp]}
train:
  epochs: 2
  learning_rate: 2.5e-4
  optimizer_options:
    betas: [0.0, 0.999]
"""


def settings_in(file: Path, content: bytes) -> Settings | None:
    """None where it is an error, which names the file."""
    file.write_bytes(content)
    try:
        return load_settings(str(file))
    except UserError as error:
        assert file.name in str(error)
        return None


def test_a_config_cut_at_any_byte_is_settings_or_an_error_that_names_it(tmp_path):
    found = [settings_in(tmp_path / "cut.yaml", CONFIG[:end]) for end in range(len(CONFIG))]
    assert found[0] is None and found[-1] == settings_in(tmp_path / "whole.yaml", CONFIG)
    assert sum(each is None for each in found) > len(CONFIG) / 3


def test_a_config_with_a_flipped_bit_is_settings_or_an_error_that_names_it(tmp_path):
    file, n_bad, n = tmp_path / "flipped.yaml", 0, 0
    for place in range(len(CONFIG)):
        for bit in (0, 3, 6, 7):
            flipped = bytes([CONFIG[place] ^ 1 << bit])
            n_bad += settings_in(file, CONFIG[:place] + flipped + CONFIG[place + 1 :]) is None
            n += 1
    assert n / 2 < n_bad < n


def test_a_history_cut_at_any_byte_is_an_error_and_with_a_flipped_bit_maybe_a_history(tmp_path):
    file = tmp_path / "layer1_training_history.json"
    keys = ("total_loss", "reconstruction_loss", "sparsity_loss", "l0_norm", "val_fvu")
    write_history(file, {key: [0.5, 0.25, 32.0] for key in keys})
    whole = file.read_bytes()
    for end in range(len(whole) - 1):  # the last byte ends the line
        if whole[:end].strip() != whole.strip():
            file.write_bytes(whole[:end])
            with pytest.raises(UserError, match="layer1_training_history"):
                read_history(file)
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytes([whole[place] ^ 1 << bit])
            file.write_bytes(whole[:place] + flipped + whole[place + 1 :])
            try:
                history = read_history(file)
            except UserError as error:
                assert "layer1_training_history" in str(error)
            else:
                assert {len(values) for values in history.values()} == {3}
                assert all(math.isfinite(v) for values in history.values() for v in values)


def test_a_number_too_large_for_an_axis_is_a_gap_with_a_word(tmp_path):
    """matplotlib computes with limits, and would raise beyond 1e308, or draw a flat line."""
    keys = ("total_loss", "reconstruction_loss", "sparsity_loss", "l0_norm")
    history = {key: [0.5, 0.25, 1e300] for key in keys}
    (file,) = plot_reconstruction_loss_only(history, "m", 1, tmp_path, formats="svg")
    assert "epoch (no number at 3)" in file.read_text()
