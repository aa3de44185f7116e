"""What is to be seen of a training before it ends: its picture, and figures within long epochs."""

import re

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from sae_mlflow.errors import UserError
from sae_mlflow.pipeline import run_training
from sae_mlflow.plots import runs as plots_of_runs
from sae_mlflow.reporting.display import Display

ONE_LAYER = ("model.layers=1", "evaluate.after_training=false")


@pytest.fixture
def trained(tiny_settings, tmp_path, monkeypatch, one_thread):
    """`trained("plots.live_seconds=1e-9", ...)`: the layer's run of a training, and its store."""
    monkeypatch.chdir(tmp_path)

    def train(*overrides):
        settings = tiny_settings(*ONE_LAYER, *overrides)
        training = run_training(settings, Display(), tracking_uri=f"sqlite:///{tmp_path}/live.db")
        return training.store.run(training.rows[0].run_id), training.store

    return train


def slider(run, store):
    """Steps at which the UI's image panel has an image, in the order they were logged."""
    files = MlflowClient(store.uri).list_artifacts(run.run_id, "images")
    found = [
        re.fullmatch(r"images/(.+)\+step\+(\d+)\+timestamp\+(\d+)\+.*\.png", file.path)
        for file in files
    ]
    entries = sorted((int(m[3]), int(m[2]), m[1]) for m in found if m)
    assert {name for *_, name in entries} <= {"training_history"}, (
        "the same in every run: they stand side by side"
    )
    return [step for _, step, _ in entries]


def test_the_slider_has_a_picture_an_epoch_and_one_at_step_zero_where_it_opens(trained, tmp_path):
    run, store = trained("train.epochs=3", "plots.live_seconds=0.000001")
    assert slider(run, store) == [0, 1, 2, 3]
    assert run.tags["mlflow.loggedImages"] == "True"
    for file in store.download(f"runs:/{run.run_id}/images", tmp_path / "down").iterdir():
        with Image.open(file) as image:
            assert image.width > 200


def test_it_is_drawn_no_more_often_than_asked_but_once_at_the_end(trained):
    run, store = trained("train.epochs=3", "plots.live_seconds=3600")
    assert slider(run, store) == [0, 3]


def test_the_picture_in_the_run_is_there_after_the_first_epoch(trained, tmp_path, monkeypatch):
    """Each drawing replaces the one before; it shows the epochs so far, read from the store."""
    seen = []
    draw = plots_of_runs.draw_live

    def watched(store, run_id, steps, choice):
        (address,) = draw(store, run_id, steps, choice)
        file = store.download(address, tmp_path / "down")
        epochs = [epoch for _, epoch, _ in store.history(run_id, ["total_loss"])]
        seen.append((file.name, epochs, store.run(run_id).status))
        return [address]

    monkeypatch.setattr("sae_mlflow.runs.live.draw_live", watched)
    trained("train.epochs=3", "plots.live_seconds=0.000001", "plots.after_training=false")
    name = "tiny-llama_layer1_training_history.png"
    assert seen == [
        (name, [1], "RUNNING"),
        (name, [1, 2], "RUNNING"),
        (name, [1, 2, 3], "RUNNING"),
    ]


def test_the_slider_has_its_png_whatever_formats_are_asked_for(trained):
    run, store = trained("plots.live_seconds=0.000001", "plots.formats=svg", "plots.style=dark")
    assert slider(run, store) == [0, 1, 2]
    plots = MlflowClient(store.uri).list_artifacts(run.run_id, "training_plots")
    assert [file.path.rpartition(".")[2] for file in plots] == ["svg", "svg"]


def test_a_bad_style_ends_a_training_before_it_starts(trained):
    with pytest.raises(UserError, match="no plot style 'drak'. Did you mean dark?"):
        trained("plots.style=drak")


def test_without_live_there_is_neither_slider_nor_picture_before_the_end(trained):
    run, store = trained("plots.live=false", "plots.live_seconds=0.000001")
    assert slider(run, store) == []
    plots = MlflowClient(store.uri).list_artifacts(run.run_id, "training_plots")
    assert len(plots) == 2


def test_a_live_picture_that_cannot_be_drawn_costs_a_warning_and_no_training(
    trained, monkeypatch, capsys
):
    import matplotlib.figure

    def broken(*_args, **_kwargs):
        raise OSError("no space left for pictures")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", broken)
    run, _ = trained("plots.live_seconds=0.000001", "plots.after_training=false")
    assert run.status == "FINISHED"
    shown = capsys.readouterr().out
    assert "The plots of layer1 weren't drawn" in shown and "no space left for pictures" in shown


def test_long_epochs_log_within_the_epoch_under_keys_of_their_own(trained):
    """About 3,700 training tokens an epoch in batches of 128; every 1,024: three times an epoch."""
    run, store = trained("train.epochs=2", "train.log_every_tokens=1024")
    client = MlflowClient(store.uri)
    within = client.get_metric_history(run.run_id, "within_epoch/total_loss")
    per_epoch = int(run.params["data.train_tokens"]) // 128 * 128
    assert 3 * 1024 <= per_epoch < 4 * 1024
    steps = [start + n * 1024 for start in (0, per_epoch) for n in (1, 2, 3)]
    assert [m.step for m in within] == steps
    assert [m.step for m in client.get_metric_history(run.run_id, "total_loss")] == [1, 2]
    keys = {key.removeprefix("within_epoch/") for key in run.metrics if "/" in key}
    assert keys == {
        *("total_loss", "reconstruction_loss", "sparsity_loss", "l0_norm", "fvu"),
        *("explained_variance", "cosine_similarity", "dead_fraction", "learning_rate"),
        "tokens_per_second",
    }


def test_how_often_it_logs_does_not_make_it_another_training(trained):
    """Pictures tell runs apart by settings that change numbers; this one doesn't."""
    from sae_mlflow.plots.frames import groups

    trained("train.log_every_tokens=1024")
    run, store = trained("train.log_every_tokens=2048")
    rows = store.layer_runs(run.experiment_id)
    assert len(rows) == 2 and len(groups(rows, "latest")) == 1
