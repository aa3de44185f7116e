"""The history files: what is read and written, and what a bad one is told."""

import json
from pathlib import Path

import numpy as np
import pytest
from plot_store import history

from sae_mlflow.errors import UserError
from sae_mlflow.history import check_history, layer_of, read_history, write_history


def write(folder: Path, data: object) -> Path:
    path = folder / "layer10_training_history.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_what_was_written_is_read_again(tmp_path):
    path = tmp_path / "model" / "layer10_training_history.json"
    write_history(path, history(3))
    assert read_history(path) == history(3)
    assert list(path.parent.iterdir()) == [path]  # no temporary file stays


def test_a_written_history_can_be_read_by_others(tmp_path):
    path = tmp_path / "h.json"
    write_history(path, history(1))
    assert path.stat().st_mode & 0o044 == 0o044


def test_values_that_are_no_numbers_are_written_as_null(tmp_path):
    path = tmp_path / "h.json"
    write_history(path, {"total_loss": [1.0, float("nan"), float("inf"), 1.7976931348623157e308]})
    assert json.loads(path.read_text()) == {"total_loss": [1.0, None, None, None]}


def test_more_lists_are_read_and_other_things_left_out(tmp_path):
    path = write(tmp_path, {**history(2), "fvu": [0.5, 0.25], "model": "m", "epochs": 2})
    assert read_history(path) == {**history(2), "fvu": [0.5, 0.25]}


def test_arrays_and_tuples_are_taken():
    arrays = {key: np.array(values, dtype=np.float32) for key, values in history(2).items()}
    assert check_history(arrays, "h")["reconstruction_loss"] == pytest.approx([0.8, 0.4])
    assert check_history({"l0_norm": (1, 2)}, "h", needed=("l0_norm",)) == {"l0_norm": [1.0, 2.0]}


def with_value(value: object) -> dict[str, list[object]]:
    return {**history(3), "l0_norm": [1.0, value, 3.0]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{not json", "is not JSON"),
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([1, 2], "holds a list, but a history maps metric names to lists"),
        ({"total_loss": [1.0]}, "lacks reconstruction_loss, sparsity_loss, l0_norm"),
        ({**history(3), "l0_norm": [1.0]}, "lists differ in length: .*l0_norm has 1"),
        ({**history(3), "fvu": [1.0]}, "lists differ in length: .*fvu has 1"),
        (history(0), "the lists are empty"),
        ({**history(3), "l0_norm": 32.0}, "l0_norm is 32.0, but it takes a list"),
        ({**history(3), "l0_norm": "abc"}, "l0_norm is 'abc', but it takes a list"),
        (with_value("32"), "l0_norm at epoch 2 is '32', but it has to be a finite number"),
        (with_value(True), "l0_norm at epoch 2 is True"),
        (with_value(None), "l0_norm at epoch 2 is null"),
        (with_value(float("nan")), "l0_norm at epoch 2 is nan"),
        (with_value(float("-inf")), "l0_norm at epoch 2 is -inf"),
        (with_value([1.0]), r"l0_norm at epoch 2 is \[1.0\]"),
        (with_value(10**400), "l0_norm at epoch 2 is 1000000"),
    ],
)
def test_a_bad_file_is_told_what_is_wrong_and_where(tmp_path, data, message):
    path = write(tmp_path, data)
    with pytest.raises(UserError, match=message) as caught:
        read_history(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_missing_file_is_told_which_there_are(tmp_path):
    write(tmp_path, history(1))
    with pytest.raises(UserError, match=r"doesn't exist.*layer10_training_history.json"):
        read_history(tmp_path / "layer9_training_history.json")
    with pytest.raises(UserError, match="There is no folder"):
        read_history(tmp_path / "none" / "x.json")


def test_a_folder_and_a_picture_are_not_histories(tmp_path):
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        read_history(tmp_path)
    (tmp_path / "x.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match="is not JSON"):
        read_history(tmp_path / "x.json")


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="h.json can't be written: .*file is a file"):
        write_history(tmp_path / "file" / "h.json", history(1))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layer10_training_history.json", "layer10"),
        ("layer10_mlp_training_history.json", "layer10_mlp"),
        ("10_training_history.json", "layer10"),
        ("mine.json", "mine"),
    ],
)
def test_the_layer_stands_in_the_name(name, layer):
    assert layer_of(Path("saes/model") / name) == layer
