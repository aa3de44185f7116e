"""Event files, as TensorBoard's own readers see them: beside a training, and out of the store."""

import csv
import json
import subprocess
import sys

import pytest
from plot_store import add_layer, add_parent, history, new_experiment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from sae_mlflow.config_load import load_settings
from sae_mlflow.density import density_table, read_density_table, write_density_table
from sae_mlflow.errors import UserError
from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display
from sae_mlflow.tensorboard.export import export_experiment
from sae_mlflow.tracking.store import Store


def read(folder):
    """A run's folder by TensorBoard's own reader, all of it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    return events.Reload()


def curve(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def hyperparameters(folder):
    """What TensorBoard's plugin for them finds: settings, and the metrics beside them."""
    start = None
    content = EventAccumulator(str(folder)).Reload().summary_metadata
    for metadata in content.values():
        if metadata.plugin_data.plugin_name == "hparams":
            data = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
            if data.HasField("session_start_info"):
                start = data.session_start_info.hparams
            if data.HasField("experiment"):
                metrics = {info.name.tag for info in data.experiment.metric_infos}
    settings = {key: value.WhichOneof("kind") for key, value in start.items()}
    values = {key: getattr(start[key], kind) for key, kind in settings.items()}
    return values, metrics


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model, text_file):
    """A real training with both trackers: its store, its layers' runs and the folder of events."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("trained")
        patch.chdir(home)
        patch.setenv("SAE_MLFLOW_CACHE", str(home / "cache"))
        overrides = {
            "experiment": "both",
            "trackers": ["mlflow", "tensorboard"],
            "model.name": str(tiny_model),
            "model.layers": [1, 2],
            "text.source": str(text_file),
            "text.tokens": 4096,
            "text.context": 32,
            "sae.k": 4,
            "train.epochs": 3,
            "train.batch_tokens": 128,
            "train.log_every_tokens": 1024,
            "plots.after_training": False,
            "plots.live": False,
        }
        settings = load_settings("sae_quick.yaml", overrides)
        training = run_training(settings, Display(), tracking_uri=f"sqlite:///{home}/mlflow.db")
    rows = training.store.layer_runs(training.experiment.id)[::-1]
    return training.store, rows, home / "tensorboard"


def folders(root):
    return sorted({file.parent for file in root.rglob("events.out.tfevents.*")})


def test_a_training_leaves_a_folder_a_layer_beside_the_runs(trained):
    _, rows, root = trained
    names = {f"both/{row.name}-{row.run_id[:8]}" for row in rows}
    assert {str(folder.relative_to(root)) for folder in folders(root)} == names


def test_its_scalars_are_what_the_store_holds(trained):
    store, rows, root = trained
    for row in rows:
        events = read(root / "both" / f"{row.name}-{row.run_id[:8]}")
        assert set(events.Tags()["scalars"]) == set(row.metrics)
        for tag in row.metrics:
            stored = [(step, value) for step, value, _ in store.timed_history(row.run_id, tag)]
            found = curve(events, tag)
            assert [step for step, _ in found] == [step for step, _ in stored], tag
            values = [value for _, value in stored]
            assert [value for _, value in found] == pytest.approx(values, rel=1e-6, nan_ok=True)


def test_the_histogram_has_the_latents_of_the_density_table(trained, tmp_path):
    store, rows, root = trained
    for row in rows:
        events = read(root / "both" / f"{row.name}-{row.run_id[:8]}")
        (entry,) = events.Histograms("latents/log10_density")
        place = f"runs:/{row.run_id}/evaluation/density.csv"
        table = list(csv.DictReader(store.download(place, tmp_path / row.run_id).open()))
        filled = [line for line in table if line["log10_density_from"] and int(line["latents"])]
        assert entry.step == 3
        assert entry.histogram_value.num == sum(int(line["latents"]) for line in filled)
        counts = dict(
            zip(entry.histogram_value.bucket_limit, entry.histogram_value.bucket, strict=True)
        )
        for line in filled:
            near = min(counts, key=lambda limit: abs(limit - float(line["log10_density_to"])))
            assert near == pytest.approx(float(line["log10_density_to"]), abs=1e-3)
            assert counts[near] == int(line["latents"])


def test_settings_stand_beside_the_final_figures(trained):
    _, rows, root = trained
    values, metrics = hyperparameters(root / "both" / f"{rows[0].name}-{rows[0].run_id[:8]}")
    assert values["sae.k"] == 4 and values["train.batch_tokens"] == 128
    assert values["sae.architecture"] == "topk" and values["layer"] == "layer1"
    assert {"val_fvu", "l0_norm", "ce_loss_recovered"} <= metrics <= set(rows[0].metrics)


def test_an_export_makes_the_same_of_the_store_and_replaces_what_was_there(trained, tmp_path):
    store, rows, root = trained
    for _ in range(2):
        made = list(export_experiment(store, "both", tmp_path))
    assert [folder.name for folder in made] == [f"{row.name}-{row.run_id[:8]}" for row in rows]
    for folder in made:
        assert len(list(folder.iterdir())) == 1, "one file, however often"
        ours, theirs = read(folder), read(root / "both" / folder.name)
        assert set(ours.Tags()["scalars"]) == set(theirs.Tags()["scalars"])
        for tag in ours.Tags()["scalars"]:
            assert curve(ours, tag) == curve(theirs, tag)
        assert hyperparameters(folder) == hyperparameters(root / "both" / folder.name)
        ((a,), (b,)) = (e.Histograms("latents/log10_density") for e in (ours, theirs))
        assert a.histogram_value == b.histogram_value


def test_exported_scalars_keep_their_time(trained, tmp_path):
    store, rows, _ = trained
    folder = next(export_experiment(store, "both", tmp_path))
    times = [event.wall_time for event in read(folder).Scalars("total_loss")]
    stored = [ms / 1000 for *_, ms in store.timed_history(rows[0].run_id, "total_loss")]
    assert times == pytest.approx(stored, abs=1e-3)


def test_runs_without_evaluation_diverged_or_still_running_are_exported_too(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    new_experiment(store, "odd")
    parent = add_parent(store, store.experiment_id("odd"))
    gone = {"total_loss": [0.5, float("inf"), float("nan")]}
    add_layer(store, parent, "layer1", gone, model="</a>../..", status="FAILED")
    add_layer(store, parent, "layer2", history(2))
    made = list(export_experiment(store, "odd", tmp_path / "tb"))
    assert all(folder.parent == tmp_path / "tb" / "odd" for folder in made)
    values = [value for _, value in curve(read(made[0]), "total_loss")]
    assert values[:2] == [0.5, float("inf")] and values[2] != values[2]
    assert read(made[1]).Tags()["histograms"] == []


def test_bad_input_is_one_sentence(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    new_experiment(store, "empty")
    with pytest.raises(UserError, match="Experiment 'empty' in .* has no SAE runs"):
        list(export_experiment(store, "empty", tmp_path))
    parent = add_parent(store, store.experiment_id("empty"))
    add_layer(store, parent, "layer1", history(1))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="tb/empty/.* can't be written: .*file is a file. Choose"):
        list(export_experiment(store, "empty", tmp_path / "file" / "tb"))


def test_mlflow_cannot_be_left_out(tmp_path):
    with pytest.raises(UserError, match="trackers = .*, but mlflow has to be among them"):
        load_settings("sae_quick.yaml", {"trackers": ["tensorboard"]})
    both = load_settings("sae_quick.yaml", {"trackers": "mlflow, tensorboard"})
    assert both.trackers == ("mlflow", "tensorboard")


def test_a_folder_that_cannot_be_written_costs_a_warning_and_no_training(
    tiny_settings, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "sae").write_text("")  # where the experiment's folder would be
    settings = tiny_settings(
        "output.tensorboard_dir=events", "plots.after_training=false", "model.layers=1"
    ).model_copy(update={"trackers": ("mlflow", "tensorboard")})
    training = run_training(settings, Display(), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert training.store.layer_runs(training.experiment.id)[0].status == "FINISHED"
    shown = capsys.readouterr().out
    assert shown.count("warning: TensorBoard's files in events/sae/") == 2, "once, and at the end"


def test_a_folder_that_can_never_be_written_is_refused_before_a_store_is_opened(
    tiny_settings, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    settings = tiny_settings("output.tensorboard_dir=file/tb")
    both = settings.model_copy(update={"trackers": ("mlflow", "tensorboard")})
    with pytest.raises(UserError, match=r"output\.tensorboard_dir: file/tb can't be written: "):
        run_training(both, Display(), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_density_table_read_again_is_the_one_that_was_written(tmp_path):
    import numpy as np

    table = density_table(np.array([0.0, 0.01, 0.02, 0.5, 1.0]), tokens=1000)
    write_density_table(table, tmp_path / "density.csv")
    again = read_density_table(tmp_path / "density.csv")
    assert again.never_fired == 1 and again.latents.tolist() == table.latents.tolist()
    np.testing.assert_allclose(again.edges, table.edges, atol=5e-5)
    heads = "log10_density_from,b,c,d\n"
    for bad in (
        *("", "a,b\n", heads + ",,1,0.5\nx,y,2,1\n", heads + ",,1,0.5\nnan,0,2,1\n"),
        *(heads + ",,0,0\n-1,0,0,0\n", heads + f",,1,0.5\n-1,0,{10**30},1\n"),
    ):
        (tmp_path / "density.csv").write_text(bad)
        with pytest.raises(UserError, match="density.csv is not a table of densities"):
            read_density_table(tmp_path / "density.csv")


def test_the_command_names_each_folder(trained, tmp_path):
    store, rows, _ = trained
    command = [sys.executable, "-m", "sae_mlflow", "export-tensorboard", "--experiment", "both"]
    where = ["--output", str(tmp_path / "tb"), "--tracking-uri", store.uri]
    done = subprocess.run([*command, *where], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), json.dumps(done.stderr)
    assert [line.rsplit("/", 1)[1] for line in done.stdout.splitlines()] == [
        f"{row.name}-{row.run_id[:8]}" for row in rows
    ]
