"""The activation cache: filled once, for all layers, whole or noticed; listed and pruned."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cached_acts import (
    expected_rows,
    filled,
    opened,
    planned,
    windows_of,
    xs,
)

from sae_mlflow.activations import cache
from sae_mlflow.activations.harvest import fill_activations
from sae_mlflow.activations.layer import open_activations
from sae_mlflow.activations.plan import plan_activations
from sae_mlflow.config import Settings
from sae_mlflow.disk import Pruning
from sae_mlflow.errors import UserError
from sae_mlflow.lm.files import weights_hash
from sae_mlflow.lm.loading import load_language_model

Make = Callable[..., Settings]
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_cache_is_listed_while_entries_come_and_go() -> None:
    folder, done = cache.activations_folder() / "entry", threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            folder.mkdir(parents=True)
            cache.touch(folder)
            cache.write_facts(folder, model="m", tokens=3)
            time.sleep(1e-4)
            shutil.rmtree(folder)

    other = threading.Thread(target=come_and_go)
    other.start()
    seen, end = set(), time.monotonic() + 1.5
    try:
        while time.monotonic() < end:
            seen |= {entry.key for entry in cache.list_cache()}
    finally:
        done.set()
        other.join()
    assert seen == {"entry"}


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
        cache.prune_cache(Pruning(["nope"]))
    assert cache.prune_cache(Pruning(older_than_days=1)).freed == entries[1].bytes
    assert [entry.key for entry in cache.list_cache()] == [new.key]
    assert cache.prune_cache(Pruning([new.key])).freed == entries[0].bytes
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
    assert cache.prune_cache(Pruning(everything=True)).freed == 0
    fill.close()
    assert cache.prune_cache(Pruning(everything=True)).freed > 0
