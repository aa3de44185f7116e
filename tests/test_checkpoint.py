"""A training's state: taken at any record, on disk and back, it goes on with the same bits; and a
file that isn't whole is noticed."""

import errno
import hashlib
import inspect
import itertools
import json
import os
import pickle
import random
import stat
import struct
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from faults.full_disk import small_disk
from safetensors.torch import load_file
from synthetic import Synthetic, World

from sae_mlflow.checkpoint import (
    KEPT,
    Damaged,
    checkpoints,
    read_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)
from sae_mlflow.config_sae import SAESettings
from sae_mlflow.config_train import TrainSettings
from sae_mlflow.errors import UserError
from sae_mlflow.optimizers import check_optimizer
from sae_mlflow.records import EpochRecord, StepRecord, WithinEpochRecord
from sae_mlflow.sae import build_sae
from sae_mlflow.train import Trainer, train
from sae_mlflow.train_state import TrainerState, Unfit, restore, state_of

WORLD = World(d=16, n_directions=24)
N_TRAIN, BATCH = 330, 32  # ten batches an epoch, and ten tokens that wait for another one
OPTIONS = {
    "topk": {"k": 3},
    "batchtopk": {"k": 3},
    "matryoshka": {"k": 3},
    "standard": {},
    "gated": {},
    "jumprelu": {},
    "transcoder": {"k": 3},
    "skip_transcoder": {"codes": "jumprelu"},
    "crosscoder": {},
}


def trained_on(architecture):
    transcodes, layers = "transcoder" in architecture, 2 if architecture == "crosscoder" else 1
    world = replace(WORLD, transcodes=transcodes, layers=layers)
    return Synthetic(world, N_TRAIN, 64), [WORLD.d] * layers, WORLD.d if transcodes else None


def make(architecture="topk", **settings):
    """A trainer of 3 epochs that loses latents and starts them anew; and what it is trained on."""
    acts, widths, d_out = trained_on(architecture)
    chosen = {
        "epochs": 3,
        "batch_tokens": BATCH,
        "learning_rate": 1e-2,
        "log_every_tokens": 4 * BATCH,
        "dead_after_tokens": 2 * BATCH,
        "resample_at": (0.2, 0.5),
    }
    sae = build_sae(
        SAESettings(architecture=architecture, d_sae=40, **OPTIONS[architecture]), widths, d_out
    )
    return Trainer(sae, TrainSettings(**chosen | settings), N_TRAIN), acts


def shown(record):
    """What a record says, but for the clock's part of it."""
    match record:
        case StepRecord():
            facts = record.epoch, record.tokens, record.loss.item(), record.n_dead.item()
            return (*facts, record.so_far.tokens, record.so_far.fvu())
        case WithinEpochRecord() | EpochRecord():
            facts = asdict(record)
            del facts["made_at"], facts["metrics"]["tokens_per_second"]
            return facts


def bits(trainer):
    """All tensors of a trainer's state as bytes, and its numbers, but for the clock's."""
    state = state_of(trainer)
    numbers = {k: v for k, v in state.numbers.items() if not k.endswith("seconds")}
    tensors = {k: v.detach().contiguous().numpy().tobytes() for k, v in state.tensors.items()}
    return tensors, numbers


def there_and_back(trainer, folder):
    """A trainer's state as a new process would find it."""
    state = state_of(trainer)
    saved = read_checkpoint(save_checkpoint(folder, state.tensors, {"trainer": state.numbers}))
    return TrainerState(saved.tensors, saved.facts["trainer"])


def disturb_generators():
    """What another process would start with."""
    torch.rand(7), random.random(), np.random.rand()


def assert_goes_on_as_if_nothing_had_happened(at, folder, *args, **settings):
    whole, acts = make(*args, **settings)
    rest = [shown(record) for record in itertools.islice(train(whole, acts, 0), at, None)]
    first, acts = make(*args, **settings)
    records = train(first, acts, 0)
    for _ in range(at):
        next(records)
    state = there_and_back(first, folder)
    disturb_generators()
    again, acts = make(*args, **settings)
    restore(again, state)
    assert bits(again) == bits(first)
    assert [shown(record) for record in train(again, acts, 0)] == rest
    assert bits(again) == bits(whole)


@pytest.mark.parametrize("architecture", OPTIONS)
@pytest.mark.parametrize("at", [1, 5, 9, 13, 20, 38])
def test_a_training_saved_at_a_record_goes_on_with_the_same_bits(architecture, at, tmp_path):
    """An epoch is 10 steps, 2 parts of 4 steps each after the 4th and the 8th, and its own record:
    13 in all. Saved after step 1, before and after a part's record, at an epoch's end, and later,
    once latents were started anew in mid-epoch."""
    assert_goes_on_as_if_nothing_had_happened(at, tmp_path, architecture)


def optimizers():
    for name, found in vars(torch.optim).items():
        if inspect.isclass(found) and issubclass(found, torch.optim.Optimizer):
            try:
                check_optimizer(name, {})
            except UserError:
                continue
            yield name


def test_there_are_optimizers_to_try():
    assert {"Adam", "AdamW", "SGD", "RMSprop", "NAdam", "ASGD", "Adafactor"} <= set(optimizers())


@pytest.mark.parametrize("name", [*optimizers()])
def test_every_optimizer_goes_on_with_the_same_bits(name, tmp_path):
    assert_goes_on_as_if_nothing_had_happened(17, tmp_path, optimizer=name)


@pytest.mark.parametrize("options", [{"amsgrad": True}, {"fused": False}, {"foreach": True}])
def test_adam_in_its_other_forms_too(options, tmp_path):
    if "foreach" in options:
        options = options | {"fused": False}
    assert_goes_on_as_if_nothing_had_happened(17, tmp_path, optimizer_options=options)


def test_the_encoders_moments_lie_in_memory_as_the_optimizer_has_them(tmp_path):
    """Fused Adam reads memory as it lies: with other strides it would be wrong without a word."""
    trainer, acts = make()
    list(itertools.islice(train(trainer, acts, 0), 5))
    again, _ = make()
    restore(again, there_and_back(trainer, tmp_path))
    for one, other in ((trainer, again),):
        for name, parameter in one.optimized.items():
            for key, value in one.optimizer.state[parameter].items():
                found = other.optimizer.state[other.optimized[name]][key]
                assert (found.stride(), found.dtype) == (value.stride(), value.dtype), (name, key)
    assert again.encoder_rows.data_ptr() == again.sae.W_enc.data_ptr()
    assert again.sae.W_enc.t().is_contiguous()


def test_every_random_state_is_put_back(tmp_path):
    trainer, acts = make()
    list(itertools.islice(train(trainer, acts, 0), 5))
    state = there_and_back(trainer, tmp_path)

    def draw():
        return torch.rand(3).tolist(), random.gauss(0, 1), np.random.randn()

    expected = draw()
    again, _ = make()
    restore(again, state)
    assert draw() == expected


def test_weights_that_are_no_numbers_and_another_saes_are_not_gone_on_from():
    trainer, acts = make()
    list(itertools.islice(train(trainer, acts, 0), 5))
    state = state_of(trainer)
    for value in (torch.nan, torch.inf):
        broken = state.tensors["sae.W_dec"].clone()
        broken[3, 2] = value
        again, _ = make()
        with pytest.raises(Unfit, match=r"no numbers: W_dec has NaN or infinity"):
            restore(again, replace(state, tensors=state.tensors | {"sae.W_dec": broken}))
        assert not again.has_begun and not again.sae.W_enc.any()
    other, _ = make("standard")
    with pytest.raises(Unfit, match="of another SAE"):
        restore(other, replace(state, tensors={**state.tensors, "sae.b_enc": torch.zeros(3)}))


def test_a_threshold_that_no_batch_has_set_yet_is_no_number_and_no_trouble(tmp_path):
    trainer, _ = make("batchtopk")
    trainer.has_begun = True
    again, _ = make("batchtopk")
    restore(again, there_and_back(trainer, tmp_path))
    assert again.sae.threshold.isnan()


# -- the file -----------------------------------------------------------------------------------

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "transposed": torch.arange(6, dtype=torch.float64).reshape(2, 3).t(),
    "none": torch.zeros(0, 4),
    "one": torch.tensor(7),
    "yes": torch.tensor([True, False, True]),
    "narrow": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
}
FACTS = {"epochs": [{"loss": 0.1 + 0.2, "worst": float("inf")}], "name": "ä"}


def test_a_file_gives_back_what_it_was_given(tmp_path):
    saved = read_checkpoint(save_checkpoint(tmp_path / "new" / "folder", TENSORS, FACTS))
    assert saved.facts == FACTS and saved.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert saved.tensors[name].dtype == tensor.dtype
        assert torch.equal(saved.tensors[name], tensor)


def test_a_file_is_safetensors_and_its_last_bytes_are_the_checksum_of_the_others(tmp_path):
    path = save_checkpoint(tmp_path, TENSORS, FACTS)
    content = path.read_bytes()
    assert content[-32:] == hashlib.sha256(content[:-32]).digest()
    tensors = load_file(path)
    assert bytes(tensors.pop("sha256").numpy()) == content[-32:]
    assert tensors.keys() == TENSORS.keys()


def test_the_last_two_are_kept_and_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "00000009.part").write_bytes(b"half")
    paths = [save_checkpoint(tmp_path, TENSORS, {"n": n}) for n in range(5)]
    assert KEPT == 2 and checkpoints(tmp_path) == [paths[4], paths[3]]
    assert {*tmp_path.iterdir()} == {*paths[3:]}
    assert [read_checkpoint(path).facts["n"] for path in checkpoints(tmp_path)] == [4, 3]
    remove_checkpoints(tmp_path)
    assert not tmp_path.exists()


def test_one_that_cant_be_gone_on_from_doesnt_count(tmp_path):
    paths = [save_checkpoint(tmp_path, TENSORS, {"n": n}) for n in range(3)]
    paths[2].write_bytes(b"rubbish")
    newest = save_checkpoint(tmp_path, TENSORS, {"n": 3}, [paths[2]])
    assert checkpoints(tmp_path) == [newest, paths[1]]
    assert [read_checkpoint(path).facts["n"] for path in checkpoints(tmp_path)] == [3, 1]


def test_a_folder_that_cant_be_synced_costs_nothing(tmp_path, monkeypatch):
    """As on some network and FUSE mounts; a folder's descriptor alone answers so."""
    fsync = os.fsync

    def refuses(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuses)
    paths = [save_checkpoint(tmp_path, TENSORS, {"n": n}) for n in range(4)]
    assert {*tmp_path.iterdir()} == {*paths[2:]}


def test_a_file_of_which_any_part_was_cut_off_is_noticed(tmp_path):
    path = save_checkpoint(tmp_path, TENSORS, FACTS)
    content = path.read_bytes()
    for length in [*range(0, len(content), 23), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(Damaged, match="checksum doesn't hold"):
            read_checkpoint(path)


def test_every_flipped_bit_is_noticed(tmp_path):
    path = save_checkpoint(tmp_path, TENSORS, FACTS)
    content = path.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(Damaged):
            read_checkpoint(path)


def with_checksum(content):
    return content[:-32] + hashlib.sha256(content[:-32]).digest()


def test_another_version_is_named_though_its_checksum_holds(tmp_path):
    path = save_checkpoint(tmp_path, TENSORS, FACTS)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["version"] = "7"
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    path.write_bytes(
        with_checksum(struct.pack("<Q", len(written)) + written + content[8 + length :])
    )
    with pytest.raises(Damaged, match="of version 7, and version 1 is read"):
        read_checkpoint(path)


class Trap:
    """Unpickling it would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("sums", [False, True], ids=["as it is", "with a checksum"])
def test_a_pickle_in_the_place_of_a_file_is_never_unpickled(tmp_path, sums):
    sprung = tmp_path / "sprung"
    for save in (lambda trap, path: path.write_bytes(pickle.dumps(trap)), torch.save):
        path = tmp_path / "00000001.safetensors"
        save(Trap(sprung), path)
        if sums:
            path.write_bytes(with_checksum(path.read_bytes() + bytes(32)))
        with pytest.raises(Damaged):
            read_checkpoint(path)
        assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap works


def test_a_full_disk_leaves_the_last_good_ones_and_nothing_half_written(tmp_path):
    big = {"weights": torch.rand(300_000)}  # 1.2 MB: two fit, a third doesn't
    with small_disk(tmp_path / "disk", megabytes=3) as disk:
        good = [save_checkpoint(disk, big, {"n": n}) for n in range(2)]
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(disk, big, {"n": 2})
        assert {*disk.iterdir()} == {*good}
        assert [read_checkpoint(path).facts["n"] for path in checkpoints(disk)] == [1, 0]
        good[0].unlink()
        assert read_checkpoint(save_checkpoint(disk, big, {"n": 3})).facts == {"n": 3}
