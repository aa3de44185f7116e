"""The four plotting functions that can be imported, and the names of pictures."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from plot_store import MODEL, STEM, dots_per_inch, history, lines, tree, write_histories

from sae_mlflow.errors import UserError
from sae_mlflow.plot import (
    load_and_plot_from_json,
    plot_all_layers_comparison,
    plot_reconstruction_loss_only,
    plot_sae_training_history,
)
from sae_mlflow.plots.choice import parse_layers
from sae_mlflow.plots.pictures import distinct, stem


@pytest.mark.parametrize("layer", [10, "10", "layer10"])
def test_a_layer_may_be_written_in_three_ways(tmp_path, layer):
    (path,) = plot_reconstruction_loss_only(history(2), MODEL, layer, tmp_path)
    assert path == tmp_path / f"{STEM}_layer10_reconstruction_loss.png"
    assert dots_per_inch(path) == 150


def test_each_function_writes_straight_into_the_folder(tmp_path, figures):
    assert plot_sae_training_history(history(2), "m", 1, str(tmp_path)) == [
        tmp_path / "m_layer1_training_history.png"
    ]
    histories = {10: history(2), "9": history(2, 0.4)}
    assert plot_all_layers_comparison(histories, "m", tmp_path) == [
        tmp_path / "m_all_layers_reconstruction_loss.png"
    ]
    assert lines(figures[1]) == {"layer9": [0.4, 0.2], "layer10": [0.8, 0.4]}
    (path,) = plot_all_layers_comparison(histories, "m", tmp_path, metric="l0_norm")
    assert path.name == "m_all_layers_l0_norm.png"


def test_a_json_file_gives_both_pictures(tmp_path):
    file = write_histories(tmp_path) / "layer9_training_history.json"
    out = tmp_path / "plots"
    assert load_and_plot_from_json(file, "m", 9, out) == [
        out / "m_layer9_training_history.png",
        out / "m_layer9_reconstruction_loss.png",
    ]
    assert tree(out) == ["m_layer9_reconstruction_loss.png", "m_layer9_training_history.png"]


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/passwd", "..", "a\\..\\b", "x" * 400, "\0", ""]
)
def test_no_model_name_leaves_the_folder(tmp_path, name):
    out = tmp_path / "out"
    (path,) = plot_reconstruction_loss_only(history(2), name, "../../layer1", out)
    assert path.parent == out
    assert tree(tmp_path) == [f"out/{path.name}"]


def test_a_history_without_a_needed_key_is_refused(tmp_path):
    with pytest.raises(UserError, match="The history of m layer1 lacks total_loss"):
        plot_sae_training_history({"reconstruction_loss": [1.0]}, "m", 1, tmp_path)
    with pytest.raises(UserError, match="no metric 'fvu'. It has l0_norm"):
        plot_all_layers_comparison({1: history(2)}, "m", tmp_path, metric="fvu")
    with pytest.raises(UserError, match="have to be one or more, each of another layer"):
        plot_all_layers_comparison({1: history(2), "layer1": history(2)}, "m", tmp_path)
    with pytest.raises(UserError, match="have to be one or more"):
        plot_all_layers_comparison({}, "m", tmp_path)
    assert tree(tmp_path) == []


def test_a_picture_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    (path,) = plot_reconstruction_loss_only(history(2), "m", 1, tmp_path)
    before = path.read_bytes()

    def half(_: Figure, target: Path, **__: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(UserError, match="can't be written: No space left"):
        plot_reconstruction_loss_only(history(3), "m", 1, tmp_path)
    assert path.read_bytes() == before
    assert tree(tmp_path) == [path.name]


# -- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("10,15", ("layer10", "layer15")),
        ("layer10,layer15", ("layer10", "layer15")),
        ("layer10, layer10_mlp", ("layer10", "layer10_mlp")),
        ("3-5,4", ("layer3", "layer4", "layer5")),
        ("layers.3.mlp", ("layer3_mlp",)),
    ],
)
def test_layers_are_written_as_in_settings(text, labels):
    assert parse_layers(text) == labels


def test_file_names_stay_short_and_apart():
    assert len(stem("x" * 500, "layer10", "text.source=" + "y" * 500)) <= 180
    assert stem("x" * 500, "layer10").endswith("_layer10")
    alike = [stem("m", "layer10", "text.source=" + "y" * 500 + end) for end in "ab"]
    assert [name[-9] for name in alike] == ["-", "-"] and alike[0][:-8] == alike[1][:-8]
    assert alike[0] != alike[1] and max(map(len, alike)) == 180
    assert stem("m", "layer10", "sae.k=8") == "m_layer10_sae.k-8"
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]
