"""Which training goes on, and which starts afresh; and all that goes on with it beside weights."""

import re
import shlex
import shutil
import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
import torch
import typer
from faults.killed_trainings import Home
from faults.tracking_server import TrackingServer
from pulled_plug import PullsThePlug

from sae_mlflow.__main__ import app
from sae_mlflow.checkpoint import read_checkpoint, save_checkpoint
from sae_mlflow.commands.train import without_resume as train_command_line
from sae_mlflow.config import Settings
from sae_mlflow.errors import UserError
from sae_mlflow.evaluation.evaluate import evaluate
from sae_mlflow.naming import run_folder
from sae_mlflow.pipeline import run_training
from sae_mlflow.reporting.display import Display
from sae_mlflow.runs.lock import hold, let_go
from sae_mlflow.runs.numbers import are_of, differing, number_settings
from sae_mlflow.secrets import without_secrets
from sae_mlflow.tracking.contents import EVALUATION_METRICS
from sae_mlflow.tracking.open_run import param_text
from sae_mlflow.tracking.store import Store

QUIET = ("plots.after_training=false", "plots.live=false", "evaluate.after_training=false")
SECRET = "S3cret-of-mine!"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(tiny_settings):
    def make(*overrides: str) -> Settings:
        return tiny_settings(*QUIET, "train.epochs=3", *overrides)

    return make


@pytest.fixture
def store(tmp_path, request):
    """A file, or a server that keeps artifacts as well."""
    if getattr(request, "param", "") != "server":
        yield Store(f"sqlite:///{tmp_path}/mlflow.db")
        return
    server = TrackingServer(tmp_path)
    server.start()
    yield Store(server.uri)
    server.stop()


@pytest.fixture
def train(settings, store):
    def run(*overrides, display=None, top=None, **options):
        chosen = settings(*overrides).model_copy(update=top or {})
        return run_training(chosen, display or Display(), tracking_uri=store.uri, **options)

    return run


@pytest.fixture
def interrupt(train):
    """`interrupt("layer2", 2, ...)`: a training ends by Ctrl-C after an epoch of a layer."""

    def run(layer, epoch, *overrides, **options):
        with pytest.raises(KeyboardInterrupt):
            train(*overrides, display=PullsThePlug(layer, epoch), **options)

    return run


def unfinished_layers(store):
    rows = store.layer_runs(store.find_experiment("sae"), finished=False)
    return [row for row in rows if row.status != "FINISHED"]


def parents(store):
    """The newest first."""
    return store.parent_runs(store.find_experiment("sae"), running=False)


def test_auto_goes_on_with_the_newest_unfinished_training_of_these_settings(
    train, interrupt, store, capsys
):
    interrupt("layer1", 1)
    interrupt("layer1", 2)
    newer, older = parents(store)
    training = train(resume="auto")
    assert [row.status for row in parents(store)] == ["FINISHED", "KILLED"]
    assert f"Going on with run {newer.run_id}" in capsys.readouterr().out
    assert {store.run(row.run_id).parent_id for row in training.rows} == {newer.run_id}
    train(resume="auto")
    assert [row.status for row in parents(store)] == ["FINISHED"] * 2
    assert len(parents(store)) == 2 and parents(store)[1].run_id == older.run_id
    train(resume="auto")
    assert "this one starts afresh" in capsys.readouterr().out
    assert len(parents(store)) == 3


def test_a_layer_that_has_finished_is_left_alone_and_the_rest_start(train, interrupt, store):
    interrupt("layer2", 1)
    (first,) = store.layer_runs(store.find_experiment("sae"))
    parent = parents(store)[0]
    training = train(resume=parent.run_id)
    assert [row.layer for row in training.rows] == ["layer1", "layer2"]
    assert training.rows[0].run_id == first.run_id
    assert (
        store._client.get_run(first.run_id).info.end_time
        < training.store._client.get_run(training.rows[1].run_id).info.end_time
    )
    untouched = store.run(first.run_id)
    assert (untouched.metrics, untouched.params, untouched.tags) == (
        first.metrics,
        first.params,
        first.tags,
    )
    row = training.rows[0]
    assert [len(values) for values in row.history.values()] == [3] * len(row.history)
    assert row.history.keys() == training.rows[1].history.keys()
    assert row.weight_bytes == training.rows[1].weight_bytes
    note = store.run(parent.run_id).tags["mlflow.note.content"]
    assert "[layer1]" in note and "[layer2]" in note


@pytest.mark.parametrize(
    "override", ["sae.k=5", "train.epochs=4", "text.tokens=3968", "activations.max_norm_ratio=9"]
)
def test_settings_that_change_the_numbers_start_afresh_and_are_refused_with_an_id(
    override, train, interrupt, store
):
    interrupt("layer1", 1)
    (parent,) = parents(store)
    key, value = override.split("=")
    with pytest.raises(UserError, match=rf"{key} = {value}\S*, which was \d") as caught:
        train(override, resume=parent.run_id)
    assert str(caught.value).count("which was") == 1
    assert parents(store)[0].status == "KILLED"
    train(override, resume="auto")
    assert [row.status for row in parents(store)] == ["FINISHED", "KILLED"]


def test_a_training_from_before_a_setting_was_there_goes_on(train, interrupt, store):
    interrupt("layer1", 1)
    (parent,) = parents(store)
    database = sqlite3.connect(store.uri.removeprefix("sqlite:///"))
    with database:
        database.execute("DELETE FROM params WHERE key = 'train.gradient_clip'")
    train(resume="auto")
    assert [(row.run_id, row.status) for row in parents(store)] == [(parent.run_id, "FINISHED")]


def test_settings_that_a_store_keeps_in_another_form_are_the_same(
    settings, train, store, monkeypatch
):
    """Cut, without what can't be printed, and without what was a secret."""
    data = settings().model_dump(mode="json", by_alias=True)
    data["model"]["name"], data["text"]["source"] = SECRET, f"a\tb{'c' * 7_000}"
    chosen = Settings.model_validate(data)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    run = store.open_run(store.experiment_id("sae"), "sweep", {"sae.role": "sweep"})
    run.log_params({k: without_secrets(param_text(v)) for k, v in chosen.flat().items()})
    there = store.run(run.run_id).params
    assert there["model.name"] == "***" and len(there["text.source"]) == 6_000
    for was in there, number_settings(chosen), {k: param_text(v) for k, v in chosen.flat().items()}:
        assert are_of(chosen, was) and differing(chosen, was) == []
    assert not are_of(settings(f"text.source=a{'c' * 7_000}"), there)
    assert not are_of(chosen, {}) and not are_of(chosen, {"config": "x.yaml"})


def test_settings_that_change_no_number_go_on(train, interrupt, store, tmp_path):
    interrupt("layer1", 1)
    others = (f"output.dir={tmp_path}/out", "plots.formats=svg", "checkpoint.every_seconds=7")
    train(*others, "tracking.wait_seconds=7", resume="auto")
    (parent,) = parents(store)
    assert parent.status == "FINISHED" and parent.params["plots.formats"] == "png"
    assert (tmp_path / "out" / "tiny-llama" / "layer2_training_history.json").is_file()


def test_what_cant_go_on_is_refused_in_a_sentence(train, interrupt, store):
    training = train()
    (parent,) = parents(store)
    with pytest.raises(UserError, match=r"has finished: there is nothing to go on with\."):
        train(resume=parent.run_id)
    with pytest.raises(UserError, match=rf"^Run {parent.run_id} \(tiny-llama\) has finished"):
        train(resume=training.rows[0].run_id)
    with pytest.raises(UserError, match="No run 'nonsense'"):
        train(resume="nonsense")
    other = store.open_run(training.experiment.id, "other", {})
    with pytest.raises(UserError, match=r"is no training of SAEs\. Give the parent run of one"):
        train(resume=other.run_id)
    interrupt("layer1", 1)
    (layer,) = store.layer_runs(
        training.experiment.id, parent_id=parents(store)[0].run_id, finished=False
    )
    train(resume=layer.run_id)  # its parent is meant
    assert store.run(layer.run_id).status == "FINISHED"


def test_a_parent_that_was_killed_before_its_settings_stood_there(train, store):
    """Isn't found by `auto`, since nobody knows whose it is; named, it takes them."""
    experiment = store.experiment_id("sae")
    bare = store.open_run(experiment, "bare", {"sae.role": "sweep", "sae.model": "tiny-llama"})
    train(resume="auto")
    assert store.run(bare.run_id).status == "RUNNING" and len(parents(store)) == 2
    train(resume=bare.run_id)
    row = store.run(bare.run_id)
    assert row.status == "FINISHED" and row.params["sae.k"] == "4"
    assert "config.yaml" in store.artifacts(bare.run_id)


def test_another_text_is_refused_and_the_old_one_goes_on(
    train, interrupt, store, text_file, tmp_path
):
    text = tmp_path / "text.txt"
    shutil.copy(text_file, text)
    source = f"text.source={text}"
    interrupt("layer1", 1, source)
    text.write_text(text.read_text().replace("word7 ", "word8 "))
    with pytest.raises(UserError, match=r"text\.txt has changed since run .* read it"):
        train(source, resume="auto")
    shutil.copy(text_file, text)
    train(source, resume="auto")
    assert [row.status for row in parents(store)] == ["FINISHED"]


def test_what_another_process_trains_is_not_taken_up(tmp_path, settings, train, capsys):
    data = settings().model_dump(mode="json", by_alias=True)
    data |= {"experiment": "tiny", "train": {**data["train"], "epochs": 100_000}}
    home = Home.make(tmp_path / "home", data)
    process = home.start()
    try:
        while not home.files("state/checkpoints/*/*.safetensors"):
            assert process.is_alive()
        (parent,) = (row for row in home.rows() if row.tags["sae.role"] == "sweep")
        home.train("--resume", parent.run_id, status=2)
        assert f"Run {parent.run_id} (tiny-llama) is being trained by another process" in home.said
        assert process.is_alive() and home.store.run(parent.run_id).status == "RUNNING"
    finally:
        process.terminate()
        process.join(60)
    assert process.exitcode == 143 and home.store.run(parent.run_id).status == "KILLED"


def test_what_another_host_trains_is_not_taken_up_until_it_gives_no_sign(train, interrupt, store):
    interrupt("layer1", 1)
    (parent,) = parents(store)
    now = datetime.now(UTC)
    there = {"sae.host": "elsewhere", "sae.host_id": "0" * 16}
    store.resume_run(parent).tag({**there, "sae.heartbeat": f"{now:%Y-%m-%dT%H:%M:%SZ}"})
    with pytest.raises(UserError, match="is being trained by another process"):
        train(resume=parent.run_id)
    train(resume="auto")  # afresh
    assert len(parents(store)) == 2
    long_ago = now - timedelta(minutes=16)
    store.reopen(parent.run_id).tag({"sae.heartbeat": f"{long_ago:%Y-%m-%dT%H:%M:%SZ}"})
    train(resume=parent.run_id)
    assert [row.status for row in parents(store)] == ["FINISHED", "FINISHED"]


@pytest.mark.parametrize("store", ["file", "server"], indirect=True)
def test_from_another_machine_it_goes_on_with_the_checkpoint_in_the_run(
    train, interrupt, store, own_state, monkeypatch, capsys
):
    """Two are kept there as well; none once it has finished."""
    logged = "checkpoint.log=true"
    interrupt("layer1", 3, logged)
    (layer,) = unfinished_layers(store)
    names = store.artifacts(layer.run_id, "checkpoint")
    assert sorted(names) == ["checkpoint/00000002.safetensors", "checkpoint/00000003.safetensors"]
    assert (own_state / "checkpoints" / layer.run_id / "00000003.safetensors").is_file()
    monkeypatch.setenv("SAE_MLFLOW_STATE", str(own_state.with_name("elsewhere")))
    train(logged, resume="auto")
    said = capsys.readouterr().out
    assert "layer1 goes on in epoch 4" in said and "starts afresh" not in said
    for row in store.layer_runs(store.find_experiment("sae")):
        assert store.artifacts(row.run_id, "checkpoint") == []
        assert not [*own_state.with_name("elsewhere").glob("checkpoints/*")]


def test_the_last_good_one_stays_until_there_are_two_newer_ones(
    interrupt, store, own_state, tmp_path, capsys
):
    """Here and in the run, where the newest is damaged."""
    logged = ("checkpoint.log=true", "model.layers=1", "train.epochs=6")
    interrupt("layer1", 3, *logged)
    (layer,) = unfinished_layers(store)
    here = own_state / "checkpoints" / layer.run_id
    (there,) = tmp_path.glob(f"mlruns/*/{layer.run_id}/artifacts/checkpoint")
    for folder in here, there:
        (folder / "00000003.safetensors").write_bytes(b"rubbish")
    interrupt("layer1", 3, *logged, resume="auto")
    assert "goes on in epoch 3" in capsys.readouterr().out
    for folder in here, there:
        names = sorted(file.name for file in folder.iterdir())
        assert names == ["00000002.safetensors", "00000004.safetensors"]
        for name in names:
            read_checkpoint(folder / name)


def test_checkpoints_of_a_run_that_has_finished_are_removed_and_another_machine_named(
    train, interrupt, store, own_state, tmp_path, capsys
):
    """It was killed between the two. An older checkpoint says no version of ours."""
    interrupt("layer2", 1, "checkpoint.log=true")
    (unfinished,) = unfinished_layers(store)
    (finished,) = store.layer_runs(store.find_experiment("sae"))
    (path,) = own_state.glob(f"checkpoints/{unfinished.run_id}/*.safetensors")
    saved = read_checkpoint(path)
    del saved.facts["machine"]["sae-mlflow"]
    path.unlink()
    save_checkpoint(path.parent, saved.tensors, saved.facts)
    left = own_state / "checkpoints" / finished.run_id
    save_checkpoint(left, saved.tensors, saved.facts)
    store.reopen(finished.run_id).log_file(path, "checkpoint")
    train(resume="auto")
    assert not [*own_state.glob("checkpoints/*")]
    assert store.artifacts(finished.run_id, "checkpoint") == []
    said = capsys.readouterr().out
    assert "layer2 was trained with sae-mlflow unknown, now 0." in said


def test_a_layer_that_its_health_stopped_stays_so_and_one_that_it_was_about_to_stop_is(
    train, interrupt, store
):
    """An L0 of 4 counts as collapsed here, from the first epoch on."""
    stop = ("health.on_failure=stop", "health.min_l0=5")
    interrupt("layer2", 1, *stop)
    (second, first) = store.layer_runs(store.find_experiment("sae"), finished=False)
    assert (first.status, second.status) == ("FAILED", "KILLED")
    training = train(*stop, resume="auto")
    assert [(row.run_id, row.stopped) for row in training.rows] == [
        (first.run_id, True),
        (second.run_id, True),
    ]
    assert store.run(first.run_id).tags == first.tags
    assert store.run(second.run_id).tags["sae.failure"].startswith("health.on_failure=stop: l0_")
    assert store.run(second.run_id).status == "FAILED"
    assert store.run(second.run_id).metrics.keys() == first.metrics.keys()
    assert parents(store)[0].status == "FINISHED"


@pytest.mark.parametrize("tag", ["{}/models", "../../models"])
def test_a_stores_tag_leads_to_no_folder_but_our_own(
    tag, train, interrupt, store, own_state, tmp_path
):
    interrupt("layer1", 1)
    (layer,) = unfinished_layers(store)
    theirs = tmp_path / "models"
    theirs.mkdir()
    for name in ("iso.part", "00001.safetensors"):
        (theirs / name).write_text("mine")
    store.reopen(layer.run_id).tag({"sae.journal_id": tag.format(tmp_path)})
    assert (own_state / "checkpoints" / tag.format(tmp_path)).is_dir()
    train(resume="auto")
    assert sorted(file.name for file in theirs.iterdir()) == ["00001.safetensors", "iso.part"]
    assert not [*own_state.glob("checkpoints/*")]


def test_an_id_that_is_no_name_of_a_folder_stays_within_ours(tmp_path):
    for run_id in ("../../x", "/etc/x", "..", "", "a" * 300, "0" * 31, f"{'0' * 32}-pending/../.."):
        assert re.fullmatch("[0-9a-f]{32}", run_folder(run_id))
        lock = hold(tmp_path, run_id)
        assert [file.name for file in tmp_path.iterdir()] == [f"{run_folder(run_id)}.lock"]
        let_go(lock)
    for run_id in ("0" * 32, f"{'a' * 32}-pending"):
        assert run_folder(run_id) == run_id


def test_the_last_good_weights_are_in_the_checkpoint_where_a_bad_epoch_would_need_them(
    interrupt, own_state
):
    interrupt("layer1", 2, "health.on_failure=stop", "train.batch_tokens=64")
    older, newer = sorted(own_state.glob("checkpoints/*/*.safetensors"))
    was, now = read_checkpoint(older).tensors, read_checkpoint(newer).tensors
    assert torch.equal(now["good.W_dec"], was["sae.W_dec"])
    assert not torch.equal(now["good.W_dec"], now["sae.W_dec"])


def test_the_slider_shows_each_epoch_once(train, interrupt, store):
    live = ("plots.live=true", "plots.after_training=true", "plots.live_seconds=0.000001")
    interrupt("layer1", 2, *live, "model.layers=1")
    training = train(*live, "model.layers=1", resume="auto")
    files = store.artifacts(training.rows[0].run_id, "images")
    steps = [int(re.search(r"step\D(\d+)\D", file)[1]) for file in files if file.endswith(".png")]
    assert sorted(steps) == [0, 1, 3], "the plug was pulled before the second was drawn"


def test_tensorboards_files_have_each_step_once_and_with_its_time(
    train, interrupt, store, tmp_path
):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    top = {"trackers": ("mlflow", "tensorboard")}
    interrupt("layer1", 2, "model.layers=1", top=top)
    training = train("model.layers=1", resume="auto", top=top)
    (folder,) = (tmp_path / "tensorboard" / "sae").iterdir()
    events = accumulator(str(folder)).Reload()
    for metric in ("total_loss", "val_fvu", "best_epoch"):
        expected = store.timed_history(training.rows[0].run_id, metric)
        assert [step for step, _, _ in expected] == [1, 2, 3]
        found = [(e.step, e.value, e.wall_time) for e in events.Scalars(metric)]
        assert [step for step, _, _ in found] == [1, 2, 3]
        for (_, value, seconds), (_, logged, milliseconds) in zip(found, expected, strict=True):
            assert value == pytest.approx(logged, rel=1e-6)
            assert seconds == pytest.approx(milliseconds / 1000, abs=1e-3)


def test_a_folder_for_checkpoints_that_cant_be_had_is_refused_before_anything_starts(
    train, store, tmp_path
):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Point checkpoint\.dir at a folder that can be written"):
        train(f"checkpoint.dir={tmp_path}/file/folder")
    assert store._client.get_experiment_by_name("sae") is None


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("--config a.yaml --layers 1,2 --pt", "--config a.yaml --layers 1,2 --pt"),
        ("--config=a.yaml --resume auto", "--config a.yaml"),
        ("", ""),
        ("--resume=abc --set 'sae.k=3 seed=1'", "--set 'sae.k=3 seed=1'"),
        ("--config a.yaml --layers '' --set '' --resume ''", "--config a.yaml"),
        (
            "--tracking-uri postgresql://me:secret@host/db",
            "--tracking-uri 'postgresql://me:***@host/db'",
        ),
    ],
)
def test_the_hint_is_the_command_as_it_was_typed(given, shown):
    train = typer.main.get_command(app).commands["train"]
    context = train.make_context("train", shlex.split(given))
    assert train_command_line(context) == f"sae-mlflow train {shown}".strip()


def test_the_names_of_evaluations_are_those_that_an_evaluation_gives():
    for name in EVALUATION_METRICS:
        assert f"`{name}`" in evaluate.__doc__
