"""What `sae-mlflow watch` tells of trainings: from a store that fills, ends, and goes away."""

import io
import math
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from faults.tracking_server import TrackingServer
from plot_store import new_experiment
from rich.console import Console
from running_trainings import log, open_layer, open_parent

from sae_mlflow.errors import UserError
from sae_mlflow.tracking.contents import ROLE_COMPARISON
from sae_mlflow.tracking.store import Store
from sae_mlflow.watching.state import LayerState, TrainingState, Watch, planned_layers
from sae_mlflow.watching.table import duration, news, sparkline, tables


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(f"sqlite:///{tmp_path_factory.mktemp('watched')}/mlflow.db")


@pytest.fixture
def experiment(store, request):
    new_experiment(store, request.node.name)
    return request.node.name


def shown(trainings, note="", width=140):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables(trainings, ["http://host/#/run"] * len(trainings), note, width))
    return console.export_text()


def test_a_training_is_followed_from_its_first_layer_to_its_end(store, experiment):
    parent = open_parent(store, experiment)
    watch = Watch(store, experiment)
    (state,) = watch.look()
    assert [(x.layer, x.status, x.epoch) for x in state.layers] == [
        ("layer9", "WAITING", 0),
        ("layer10", "WAITING", 0),
    ]
    nine = open_layer(store, parent, "layer9")
    for epoch, loss in enumerate([0.8, 0.4, 0.2], start=1):
        log(nine, epoch, loss)
    (state,) = watch.look()
    first, second = state.layers
    assert (first.status, first.epoch, first.epochs) == ("RUNNING", 3, 4)
    assert first.losses == (0.8, 0.4, 0.2)
    assert first.figures == {
        "total_loss": 0.2,
        "val_fvu": 0.1,
        "l0_norm": 32.0,
        "dead_fraction": 0.01,
    }
    assert second.status == "WAITING"
    log(nine, 4, 0.1)
    nine.finish()
    open_layer(store, parent, "layer10").finish("FAILED")
    parent.finish("FAILED")
    (state,) = watch.look()
    assert [x.status for x in state.layers] == ["FINISHED", "FAILED"]
    assert not state.is_running and state.seconds_left == 0.0


def test_a_training_that_failed_before_its_layers_says_why(store, experiment):
    parent = open_parent(store, experiment)
    watch = Watch(store, experiment)
    before = watch.look()
    parent.fail("the text has gone\nand more")
    now = watch.look()
    assert now[0].layers == ()
    assert "failed: the text has gone" in shown(now).splitlines()
    assert list(news(before, now)) == [f"{now[0].model}  failed: the text has gone"]
    assert list(news(now, now)) == []


def test_a_layer_that_failed_says_why(store, experiment):
    parent = open_parent(store, experiment)
    watch = Watch(store, experiment)
    nine = open_layer(store, parent, "layer9")
    nine.tag({"sae.health": "failed", "sae.health.reasons": "run_failed at epoch 0"})
    nine.fail("OutOfMemoryError: no room\nand more")
    (line,) = (each for each in shown(watch.look()).splitlines() if "no room" in each)
    assert line.startswith("run failed") and line.endswith("(OutOfMemoryError: no room): layer9")
    assert any("OutOfMemoryError: no room" in each for each in news([], watch.look()))


def test_the_time_left_is_what_the_epochs_so_far_took(store, experiment):
    """Two of four epochs in 0.6 s: about as long again for this layer, and twice for the next."""
    parent = open_parent(store, experiment)
    layer = open_layer(store, parent, "layer9")
    started = store.run(layer.run_id).start_time / 1000
    for epoch in (1, 2):
        time.sleep(0.3)
        log(layer, epoch, 1.0)
    took = time.time() - started
    (state,) = Watch(store, experiment).look()
    assert state.layers[0].seconds_left == pytest.approx(took, abs=0.5)
    assert state.layers[1].seconds_left is None
    assert state.seconds_left == pytest.approx(3 * took, abs=1.0)


def test_before_the_first_epoch_no_time_is_promised(store, experiment):
    open_layer(store, open_parent(store, experiment), "layer9")
    (state,) = Watch(store, experiment).look()
    assert state.seconds_left is None and "left" not in shown([state]).splitlines()[0]


def test_all_that_runs_is_watched_what_begins_later_too_and_nothing_older(store, experiment):
    old = open_parent(store, experiment)
    old.finish()
    one, other = open_parent(store, experiment), open_parent(store, experiment)
    watch = Watch(store, experiment)
    assert [t.run_id for t in watch.look()] == [one.run_id, other.run_id]
    one.finish()
    later = open_parent(store, experiment)
    assert [t.run_id for t in watch.look()] == [one.run_id, other.run_id, later.run_id]


def test_where_nothing_runs_the_newest_is_shown_as_it_ended(store, experiment):
    open_parent(store, experiment).finish()
    time.sleep(0.002)
    newest = open_parent(store, experiment)
    newest.finish("KILLED")
    (state,) = Watch(store, experiment).look()
    assert (state.run_id, state.status) == (newest.run_id, "KILLED")


def test_one_training_or_one_layer_alone_can_be_watched(store, experiment):
    parent, _ = open_parent(store, experiment), open_parent(store, experiment)
    layer = open_layer(store, parent, "layer10")
    (whole,) = Watch(store, None, parent.run_id).look()
    assert (whole.run_id, len(whole.layers)) == (parent.run_id, 2)
    (alone,) = Watch(store, None, layer.run_id).look()
    assert [x.layer for x in alone.layers] == ["layer10"] and alone.is_running
    layer.finish()
    assert not Watch(store, None, layer.run_id).look()[0].is_running


def test_what_cannot_be_watched_is_said(store, experiment):
    with pytest.raises(UserError, match="has no SAE runs. Train some with sae-mlflow"):
        Watch(store, experiment)
    tags = {"sae.role": ROLE_COMPARISON}
    other = store.open_run(store.experiment_id(experiment), "comparison", tags)
    with pytest.raises(UserError, match=f"Run {other.run_id} .* is no training of SAEs"):
        Watch(store, None, other.run_id)
    with pytest.raises(UserError, match="No experiment 'nowhere'"):
        Watch(store, "nowhere")


def test_a_training_that_is_deleted_is_watched_no_more(store, experiment):
    from mlflow.tracking import MlflowClient

    parent = open_parent(store, experiment)
    watch = Watch(store, experiment)
    assert watch.look()
    MlflowClient(store.uri).delete_run(parent.run_id)
    assert watch.look() == []


def test_planned_layers_are_those_of_the_params():
    assert planned_layers({"model.layers": "9,10,layers.3.mlp"}) == [
        *("layer9", "layer10", "layer3_mlp")
    ]
    several = {"model.layers": "10,9", "sae.architecture": "crosscoder"}
    assert planned_layers(several) == ["layer9-10"]
    assert planned_layers({}) == []


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([2.0], "▁"),
        ([5.0, 5.0], "▁▁"),
        ([7.0, 0.0, 3.0, 1.0], "█▁▄▂"),
        ([1.0, math.nan, 0.0], "█x▁"),
        ([1.797e308, 2.0, 1.0], "x█▁"),
        ([8.0, 6.0, 4.0, 2.0], "█▆▃▁"),
    ],
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest_value(values, line):
    assert sparkline(values) == line


def test_a_long_curve_is_averaged_into_the_width():
    """Means of 8, 4 and 0 in thirds."""
    assert sparkline([7.0, 9.0, 3.0, 5.0, -1.0, 1.0], width=3) == "█▅▁"
    assert len(sparkline([float(n) for n in range(1000)])) == 16


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.4, "0 s"), (89, "89 s"), (150, "2 min"), (5400, "1 h 30 min")],
)
def test_durations_are_round(seconds, text):
    assert duration(seconds) == text


LAYER = LayerState(
    "layer10",
    "RUNNING",
    6,
    (0.8, 0.4),
    {"total_loss": 0.4, "val_fvu": 0.25, "l0_norm": 32.0, "dead_fraction": 0.013},
    "warning",
    20.0,
    40.0,
    "r1",
)


def test_the_table_shows_a_layers_figures_and_what_is_left():
    waiting = LayerState("layer15", "WAITING", 6)
    text = shown([TrainingState("p", "1", "org/model", "RUNNING", (LAYER, waiting))])
    assert "org/model · running · 0 of 2 layers done · about 2 min left" in text
    (line,) = (line for line in text.splitlines() if "layer10" in line)
    for part in ("running", "2/6", "0.4000", "█▁", "0.2500", "32.0", "1.3%", "warning", "40 s"):
        assert part in line
    assert "http://host/#/run" in text


def test_what_health_found_stands_below_the_table_and_in_the_news():
    """Layers that ail of the same share a line."""
    spike = replace(LAYER, reasons="loss_spike at epoch 2, dead_latents at epoch 1")
    layers = (spike, replace(spike, layer="layer15"), replace(LAYER, layer="layer20"))
    state = TrainingState("p", "1", "m", "RUNNING", layers)
    found = "dead latents (epoch 1)"
    lines = [line.rstrip() for line in shown([state]).splitlines() if found in line]
    assert lines == ["loss spike (epoch 2), dead latents (epoch 1): layer10, layer15"]
    first, *_ = news([], [state])
    assert "health warning (loss spike (epoch 2), dead latents (epoch 1))" in first


def test_48_layers_fit_80_columns_without_a_cut():
    layers = tuple(replace(LAYER, layer=f"layer{n}", losses=(0.5,) * 6) for n in range(48))
    text = shown([TrainingState("p", "1", "m", "RUNNING", layers)], width=80)
    lines = [line for line in text.splitlines() if line.startswith("layer") and "6/6" in line]
    assert len(lines) == 48 and "…" not in text


def test_hostile_names_reach_the_terminal_as_text():
    evil = LayerState("[red]layer\x1b[2J", "RUNNING", 1, (1.0,), {}, "\x07[link=x]")
    state = TrainingState("p", "1", "a\nb[bold]", "RUNNING", (evil,))
    text = shown([state])
    assert "\x1b[2J" not in text and "\x07" not in text
    assert "[red]layer" in text and "a b[bold]" in text
    assert not any("\x1b" in line or "\x07" in line for line in news([], [state]))


def test_news_are_what_changed():
    before = [TrainingState("p", "1", "m", "RUNNING", (LAYER,))]
    assert list(news(before, before)) == []
    (line,) = news([], before)
    assert line == (
        "layer10  running  epoch 2/6  loss 0.4000  held-out FVU 0.2500  L0 32.0  dead 1.3%  "
        "health warning  time left 40 s"
    )


def lines_of(process, until, seconds=60):
    """The lines that a process prints up to one that holds a text."""
    lines, end = [], time.monotonic() + seconds
    for line in process.stdout:
        lines.append(line.rstrip())
        if until in line:
            return lines
        assert time.monotonic() < end, lines
    raise AssertionError(f"{until!r} never came: {lines}")


def test_the_command_outlives_an_outage_of_the_server_and_ends_with_the_training(tmp_path):
    server = TrackingServer(tmp_path)
    server.start()
    command = [sys.executable, "-m", "sae_mlflow", "watch", "--every", "0.3"]
    where = ["--experiment", "far", "--tracking-uri", server.uri]
    try:
        store = Store(server.uri)
        parent = open_parent(store, "far", "9")
        layer = open_layer(store, parent, "layer9", epochs=2)
        log(layer, 1, 0.8)
        with subprocess.Popen([*command, *where], stdout=subprocess.PIPE, text=True) as watching:
            assert "epoch 1/2  loss 0.8000" in lines_of(watching, "layer9")[-1]
            server.stop()
            lines = lines_of(watching, "Trying again")
            assert lines[-1].startswith(f"The tracking store {server.uri} ")
            server.start()
            log(layer, 2, 0.4)
            layer.finish()
            parent.finish()
            rest = lines_of(watching, "epoch 2/2  loss 0.4000")
            assert not any("Trying again" in line for line in rest), "an outage is said once"
            watching.communicate(timeout=30)
        assert watching.returncode == 0
    finally:
        server.stop()


def test_the_command_exits_1_where_a_training_failed(store, experiment):
    open_parent(store, experiment).finish("FAILED")
    command = [sys.executable, "-m", "sae_mlflow", "watch", "--experiment", experiment]
    done = subprocess.run(
        [*command, "--tracking-uri", store.uri], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "")


def test_the_command_wants_an_experiment_or_a_run():
    for arguments in ([], ["--experiment", "a", "--run", "b"]):
        command = [sys.executable, "-m", "sae_mlflow", "watch", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr == "error: Give one of --experiment NAME and --run ID.\n"
