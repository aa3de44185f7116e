"""The plot command and the pictures in the store."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from matplotlib.figure import Figure
from plot_store import (
    MODEL,
    STEM,
    add_layer,
    add_parent,
    dots_per_inch,
    filled_store,
    history,
    lines,
    new_experiment,
    tree,
    write_histories,
)

from sae_mlflow.commands.cli import run_cli
from sae_mlflow.plot import (
    app,
)
from sae_mlflow.plots import drawing
from sae_mlflow.plots.choice import Choice
from sae_mlflow.plots.runs import draw_experiments, draw_layer_run, draw_parent
from sae_mlflow.plots.style import load_style

LAYER_PICTURES = [
    f"{STEM}_layer10_{kind}.png" for kind in ("reconstruction_loss", "training_history")
]
OVERLAYS = [f"{STEM}_all_layers_{m}.png" for m in ("l0_norm", "reconstruction_loss", "total_loss")]


class Outcome:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.lines, self.err = status, out.splitlines(), err


@pytest.fixture
def plot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """`plot("--experiment", ...)`: the command, in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drawing, "PROCESSES", 1)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["plot", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            run_cli(app)
        out, err = capsys.readouterr()
        return Outcome(end.value.code, out, err)

    return run


@pytest.fixture
def plot_experiment(plot):
    """Its pictures; pages are test_interactive's."""

    def run(*arguments: object) -> Outcome:
        options = ("--no-interactive", "--tracking-uri", filled_store()[0].uri)
        return plot(*options, "--experiment", *arguments)

    return run


def artifacts(run_id: str) -> dict[str, int]:
    """A run's pictures by name, with their dots per inch."""
    with TemporaryDirectory() as folder:
        found = filled_store()[0].download(f"runs:/{run_id}/training_plots", Path(folder))
        return {file.name: dots_per_inch(file) for file in sorted(found.iterdir())}


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


# -- what the pipeline calls ----------------------------------------------------------------


def test_a_layers_two_pictures_are_drawn_from_the_store_into_its_run(figures):
    store, runs = filled_store()
    addresses = draw_layer_run(store, runs["layer10"])
    folder = f"runs:/{runs['layer10']}/training_plots"
    assert addresses == [f"{folder}/{name}" for name in LAYER_PICTURES]
    assert sorted(artifacts(runs["layer10"])) == LAYER_PICTURES
    training, single = figures
    assert len(training.axes) == 4
    assert single.axes[0].lines[0].get_xdata().tolist() == [1, 2, 3]
    assert single.axes[0].lines[0].get_ydata().tolist() == [0.8, 0.4, 0.2]
    assert [text.get_text() for text in training.texts] == [
        f"{MODEL} · layer10",
        "topk · k=32 · 4,608 latents · seed 0",
    ]


def test_pictures_have_150_dots_per_inch():
    store, runs = filled_store()
    draw_layer_run(store, runs["layer10"])
    assert set(artifacts(runs["layer10"]).values()) == {150}


def test_a_parent_gets_its_layers_over_each_other(figures):
    store, runs = filled_store()
    addresses = draw_parent(store, runs["parent"], Choice(interactive="none"))
    assert addresses == [f"runs:/{runs['parent']}/training_plots/{name}" for name in OVERLAYS]
    by_metric = dict(zip(("reconstruction_loss", "total_loss", "l0_norm"), figures, strict=True))
    assert legend(by_metric["total_loss"]) == ["layer9", "layer10", "layer20"]
    assert lines(by_metric["reconstruction_loss"]) == {
        "layer9": [0.4, 0.2, 0.1],
        "layer10": [0.8, 0.4, 0.2],
        "layer20": [0.6, 0.3, 0.15],
    }


def test_a_parent_without_a_finished_layer_gets_nothing():
    store, _ = filled_store()
    parent = add_parent(store, new_experiment(store, "no layer yet"))
    add_layer(store, parent, "layer1", status="FAILED")
    assert draw_parent(store, parent.run_id) == []


def test_layers_that_have_not_finished_are_named_in_overlays_and_by_the_command(figures, capsys):
    store, _ = filled_store()
    parent = add_parent(store, new_experiment(store, "some lost"))
    for layer, status in (("layer10", "FAILED"), ("layer9", "KILLED"), ("layer3", "FAILED")):
        add_layer(store, parent, layer, status=status)
    add_layer(store, parent, "layer2", history(3, 0.4))
    add_layer(store, parent, "layer3", history(3))  # another try, which worked
    parent.finish("FAILED")
    said = "left out: layer9 (killed), layer10 (failed)"
    draw_parent(store, parent.run_id, Choice(interactive="none"))
    assert [said in figure.texts[1].get_text() for figure in figures] == [True] * 3
    figures.clear()
    choice = Choice(interactive="none", comparison=True, log=False, style=load_style("paper"))
    drawn = list(draw_experiments(store, ["some lost"], choice))
    assert drawn == [] and said in capsys.readouterr().err
    told = [said in " ".join(text.get_text() for text in figure.texts) for figure in figures]
    assert told.count(False) == 4, "the pictures of the two layers that are drawn"


def test_a_diverged_run_is_drawn_as_far_as_it_goes(figures, capsys):
    store, runs = filled_store()
    assert len(draw_layer_run(store, runs["diverged"])) == 2
    assert figures[1].axes[0].texts[0].get_text() == "final\nNaN"
    assert figures[1].axes[0].get_xlabel() == "epoch (no number at 2-3)"


def test_a_run_without_metrics_is_passed_over_with_a_warning(capsys):
    store, _ = filled_store()
    parent = add_parent(store, new_experiment(store, "no metrics"))
    assert draw_layer_run(store, add_layer(store, parent, "layer1", {})) == []
    assert "layer1_training_history.png isn't drawn" in capsys.readouterr().err


# -- the command over an experiment ---------------------------------------------------------


def test_an_experiment_is_drawn_whole_into_its_runs_and_a_folder(
    plot_experiment, tmp_path, figures
):
    _, runs = filled_store()
    outcome = plot_experiment("llama2", "--output-dir", tmp_path / "out")
    assert outcome.status == 0
    files = [line for line in outcome.lines if not line.startswith("runs:/")]
    assert len(files) == len(outcome.lines) - len(files) == 3 * 2 + 3 + 1
    assert all(Path(file).is_file() for file in files)
    assert tree(tmp_path / "out") == sorted(
        f"{STEM}/training_plots/{name}.png"
        for name in [
            *(
                f"{STEM}_layer{n}_{k}"
                for n in (9, 10, 20)
                for k in ("training_history", "reconstruction_loss")
            ),
            *(f"{STEM}_all_layers_{m}" for m in ("reconstruction_loss", "total_loss", "l0_norm")),
            "final_metrics_by_layer",
        ]
    )
    assert sorted(artifacts(runs["layer10"])) == LAYER_PICTURES
    assert sorted(artifacts(runs["parent"])) == sorted([*OVERLAYS, "final_metrics_by_layer.png"])


def test_without_log_and_comparison_only_the_layers_files_are_left(plot_experiment, tmp_path):
    outcome = plot_experiment(
        "llama2", "--no-log", "--no-comparison", "--layers", "10", "--output-dir", "out"
    )
    assert outcome.lines == [
        f"out/{STEM}/training_plots/{STEM}_layer10_training_history.png",
        f"out/{STEM}/training_plots/{STEM}_layer10_reconstruction_loss.png",
    ]


@pytest.mark.parametrize("name", [MODEL, STEM])
def test_a_model_is_found_by_its_name_and_its_folders(plot_experiment, name):
    arguments = ("--no-log", "--output-dir", "o", "--layers", "9", "--no-comparison")
    assert plot_experiment("llama2", "--model-name", name, *arguments).status == 0


def test_a_metric_alone_is_one_picture_a_layer_and_one_overlay(plot_experiment, figures):
    outcome = plot_experiment("llama2", "--metric", "l0_norm", "--no-log", "--output-dir", "o")
    names = [
        f"{STEM}_{what}_l0_norm.png" for what in ("layer9", "layer10", "layer20", "all_layers")
    ]
    assert [Path(line).name for line in outcome.lines] == names
    assert lines(figures[-1]) == {f"layer{n}": [32.0] * 3 for n in (9, 10, 20)}


def overlay_of_loss(figures: Sequence[Figure]) -> Figure:
    (found,) = [
        figure
        for figure in figures
        if figure.texts[0].get_text().endswith("all layers")
        and figure.axes[0].get_title() == "Reconstruction loss"
    ]
    return found


@pytest.fixture(scope="module")
def swept() -> dict[str, str]:
    """Experiment `sweep`: one training of layer 5 with k = 8, 16 and two seeds each."""
    store, _ = filled_store()
    parent = add_parent(store, new_experiment(store, "sweep"))
    runs = {"parent": parent.run_id}
    for k in (8, 16):
        for seed in (0, 1):
            numbers = history(2, start=k + seed)
            runs[f"{k}/{seed}"] = add_layer(store, parent, "layer5", numbers, sae__k=k, seed=seed)
    return runs


def test_settings_of_one_layer_are_told_apart_in_labels_and_file_names(
    plot_experiment, figures, swept
):
    outcome = plot_experiment("sweep", "--output-dir", "o")
    files = [Path(line).name for line in outcome.lines if not line.startswith("runs:/")]
    assert f"{STEM}_layer5_sae.k-8_training_history.png" in files
    assert f"{STEM}_layer5_sae.k-16_training_history.png" in files
    assert lines(overlay_of_loss(figures)) == {
        "layer5 · sae.k=8": [9.0, 4.5],  # the later seed
        "layer5 · sae.k=16": [17.0, 8.5],
    }
    # in its own run a picture needs no such name
    assert f"{STEM}_layer5_training_history.png" in artifacts(swept["8/1"])


def test_all_runs_are_mean_and_range_over_seeds_in_the_parent(plot_experiment, figures, swept):
    outcome = plot_experiment("sweep", "--runs", "all")
    overlay = overlay_of_loss(figures)
    assert lines(overlay) == {
        "layer5 · sae.k=8": [8.5, 4.25],
        "layer5 · sae.k=16": [16.5, 8.25],
    }
    assert len(overlay.axes[0].collections) == 2
    assert {line.split("/")[1] for line in outcome.lines} == {swept["parent"]}
    assert f"{STEM}_layer5_sae.k-16_reconstruction_loss.png" in artifacts(swept["parent"])


def test_overlays_over_several_parents_go_to_a_run_of_their_own(plot_experiment):
    store, _ = filled_store()
    experiment_id = new_experiment(store, "two parents")
    layers = [add_layer(store, add_parent(store, experiment_id), f"layer{n}") for n in (1, 2)]
    outcome = plot_experiment("two parents", "--metric", "total_loss")
    overlay = outcome.lines[-1].split("/")[1]
    assert overlay not in layers
    assert store.run(overlay).tags["sae.role"] == "comparison"
    again = plot_experiment("two parents", "--metric", "total_loss")
    assert again.lines == outcome.lines  # the same run each time


def test_overlays_of_a_deleted_parent_go_to_a_run_of_their_own(plot_experiment):
    store, _ = filled_store()
    parent = add_parent(store, new_experiment(store, "orphans"))
    add_layer(store, parent, "layer1")
    store._client.delete_run(parent.run_id)
    outcome = plot_experiment("orphans", "--metric", "total_loss")
    assert outcome.status == 0
    assert store.run(outcome.lines[-1].split("/")[1]).tags["sae.role"] == "comparison"


def test_a_run_deleted_while_drawing_is_said_and_the_rest_goes_on(plot_experiment, monkeypatch):
    store, _ = filled_store()
    parent = add_parent(store, new_experiment(store, "deleted"))
    first, second = (add_layer(store, parent, f"layer{n}") for n in (1, 2))
    save = Figure.savefig

    def delete_and_save(figure: Figure, *args: object, **kwargs: object) -> None:
        store._client.delete_run(first)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", delete_and_save)
    outcome = plot_experiment("deleted", "--metric", "total_loss")
    assert outcome.status == 0
    assert [line.split("/")[1] for line in outcome.lines] == [second, parent.run_id]
    assert f"run {first} has been deleted" in outcome.err


def test_many_pictures_are_drawn_in_two_processes(monkeypatch, tmp_path):
    from sae_mlflow.plots.frames import history_table
    from sae_mlflow.plots.pictures import Picture

    monkeypatch.setattr(drawing, "MANY", 2)
    table = history_table("m", {"layer1": history(2)})
    paths = [tmp_path / f"{n}.png" for n in range(4)]
    pictures = [
        Picture("single_metric", table, path.with_suffix(""), "total_loss") for path in paths
    ]
    assert list(drawing.draw_all(pictures)) == [[path] for path in paths]
    assert [dots_per_inch(path) for path in paths] == [150] * 4


def test_formats_are_logged_and_copied_in_a_style(plot_experiment, tmp_path):
    store, _ = filled_store()
    parent = add_parent(store, new_experiment(store, "formats"))
    run_id = add_layer(store, parent, "layer3")
    outcome = plot_experiment("formats", "--format", "pdf,svg", "--style", "dark", *METRIC_OUT)
    assert outcome.status == 0
    names = [f"{STEM}_layer3_total_loss.{ending}" for ending in ("pdf", "svg")]
    assert outcome.lines == [
        *(f"o/{STEM}/training_plots/{name}" for name in names),
        *(f"runs:/{run_id}/training_plots/{name}" for name in names),
    ]
    svg = (tmp_path / outcome.lines[1]).read_text(encoding="utf-8")
    assert "#15181e" in svg, "the dark page"


METRIC_OUT = ("--metric", "total_loss", "--no-comparison", "--output-dir", "o")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--format", "png,gif", "There is no format 'gif'. There are: png, pdf, svg"),
        ("--style", "papr", "There is no plot style 'papr'. Did you mean paper? There are: dark"),
    ],
)
def test_an_unknown_format_or_style_is_refused_first(plot, option, value, message):
    outcome = plot("--experiment", "anything", option, value)
    assert outcome.status == 2 and message in outcome.err


# -- the command over files -----------------------------------------------------------------


def test_a_folder_of_histories_is_drawn_beside_them(plot, tmp_path):
    write_histories(tmp_path / "results" / "saes" / "modelA")
    write_histories(tmp_path / "results" / "saes" / "modelB", ["layer3_mlp"])
    outcome = plot()
    assert outcome.lines == [
        f"results/saes/{model}/training_plots/{model}_{layer}_{kind}.png"
        for model, layer in (("modelA", "layer9"), ("modelA", "layer10"), ("modelB", "layer3_mlp"))
        for kind in ("training_history", "reconstruction_loss")
    ]
    assert all(Path(line).is_file() for line in outcome.lines)


def test_histories_are_narrowed_and_compared(plot, tmp_path):
    for model in (STEM, "other"):
        write_histories(tmp_path / "saes" / model, ["layer8", "layer9", "layer10"])
    outcome = plot(
        *("--sae-dir", "saes", "--model-name", MODEL, "--layers", "8-9"),
        *("--comparison", "--metric", "l0_norm", "--no-interactive", "--output-dir", "out"),
    )
    folder = f"out/{STEM}/training_plots"
    names = [f"{STEM}_{what}_l0_norm.png" for what in ("layer8", "layer9", "all_layers")]
    assert outcome.lines == [f"{folder}/{name}" for name in names]


def test_a_history_file_says_model_and_layer_by_its_place(plot, tmp_path, figures):
    write_histories(tmp_path / "modelA")
    outcome = plot("--history-file", "modelA/layer10_training_history.json")
    assert [Path(line).name for line in outcome.lines] == [
        "modelA_layer10_training_history.png",
        "modelA_layer10_reconstruction_loss.png",
    ]
    assert figures[0].texts[0].get_text() == "modelA · layer10"


def test_a_history_file_can_be_given_another_model_and_layer(plot, tmp_path, figures):
    write_histories(tmp_path / "x")
    file = "x/layer10_training_history.json"
    outcome = plot(
        "--history-file", file, "--model-name", MODEL, "--layers", "7", "--output-dir", "."
    )
    assert outcome.lines[0] == f"{STEM}/training_plots/{STEM}_layer7_training_history.png"
    assert figures[0].texts[0].get_text() == f"{MODEL} · layer7"


# -- what goes wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llama3"], "No experiment 'llama3' in .* There are: .*llama2"),
        (["empty"], "Experiment 'empty' in .* has no SAE runs"),
        (["llama2", "--model-name", "gpt2"], f"no finished run of 'gpt2'. It has {MODEL}"),
        (["llama2", "--layers", "10,11"], "has no layer11. It has layer9, layer10, layer20"),
        (["llama2", "--layers", ","], "--layers ',' names no layer"),
        (["llama2", "--metric", "fvu"], "no metric 'fvu'. It has l0_norm, reconstruction_loss"),
        (["llama2", "--history-file", "x"], "--experiment draws from the store, --history-file"),
        (["llama2", "--sae-dir", "x"], "--experiment draws from the store, --sae-dir"),
        (["llama2", "--no-log"], "--no-log without --output-dir DIR would leave no picture"),
    ],
)
def test_a_bad_choice_of_runs_is_one_line_and_status_2(
    plot_experiment, tmp_path, arguments, message
):
    assert_refused(plot_experiment(*arguments), message)
    assert tree(tmp_path) == []


def assert_refused(outcome: Outcome, message: str) -> None:
    import re

    assert outcome.status == 2
    assert outcome.lines == []
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)


def test_an_experiment_without_finished_runs_says_which_there_are(plot_experiment):
    store, _ = filled_store()
    parent = add_parent(store, new_experiment(store, "unfinished"))
    add_layer(store, parent, "layer1", status="FAILED")
    assert_refused(plot_experiment("unfinished"), f"no finished SAE run: {MODEL}_layer1 is FAILED")


def test_a_folder_that_cannot_be_written_is_refused_before_the_store_is_asked(plot, tmp_path):
    (tmp_path / "file").touch()
    nowhere = ("--experiment", "x", "--tracking-uri", "http://127.0.0.1:9")
    assert_refused(plot(*nowhere, "--output-dir", "file"), "can't be written: file is a file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is no folder results/saes. .*--experiment NAME"),
        (["--sae-dir", "none"], "There is no folder none"),
        (["--sae-dir", "empty"], "empty holds no {model}/{layer}_training_history.json"),
        (["--sae-dir", "saes", "--model-name", "x"], "saes has no model 'x'. It has modelA"),
        (["--sae-dir", "saes", "--layers", "1"], "saes has no layer1. It has layer9, layer10"),
        (["--sae-dir", "saes", "--metric", "fvu"], "saes/modelA has no metric 'fvu'. It has l0"),
        (["--sae-dir", "saes", "--history-file", "x"], "exclude each other"),
        (["--sae-dir", "saes", "--runs", "all"], "--runs is about runs in the store"),
        (["--sae-dir", "saes", "--no-log"], "--no-log is about runs in the store"),
        (["--sae-dir", "saes", "--output-dir", "file/x"], "can't be written: file is a file"),
        (["--history-file", "x.json"], "x.json doesn't exist"),
        (["--history-file", "file"], "file is not JSON"),
        (["--history-file", "file", "--layers", "1,2"], "--layers names 2 layers"),
        (["--history-file", "file", "--comparison"], "--comparison needs several layers"),
        (["--experiment", "x", "--tracking-uri", "http://127.0.0.1:9"], "can't be reached"),
        (["--experiment", "x", "--tracking-uri", "sqlite:///none/x.db"], "can't be reached"),
    ],
)
def test_bad_input_is_one_line_and_status_2(plot, tmp_path, arguments, message):
    write_histories(tmp_path / "saes" / "modelA")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    assert_refused(plot(*arguments), message)
    assert tree(tmp_path) == before


def test_one_bad_history_among_many_leaves_nothing_drawn(plot, tmp_path):
    folder = write_histories(tmp_path / "saes" / "modelA")
    bad = {**history(2), "l0_norm": [1.0, math.nan]}
    (folder / "layer30_training_history.json").write_text(json.dumps(bad))
    before = tree(tmp_path)
    assert_refused(plot("--sae-dir", "saes"), "layer30.*l0_norm at epoch 2 is nan")
    assert tree(tmp_path) == before


def test_two_folders_of_one_model_are_not_drawn_over_each_other(plot, tmp_path):
    write_histories(tmp_path / "saes" / "first" / "modelA")
    write_histories(tmp_path / "saes" / "second" / "modelA")
    outcome = plot("--sae-dir", "saes", "--output-dir", "out")
    assert_refused(outcome, "first/modelA and saes/second/modelA would both be drawn into")
    assert len(plot("--sae-dir", "saes", "--layers", "9", "--metric", "l0_norm").lines) == 2


def test_the_real_command_prints_no_traceback_and_ends_with_2(tmp_path):
    command = [sys.executable, "-m", "sae_mlflow.plot", "--history-file", "none.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: none.json doesn't exist")


def test_the_real_command_draws_an_experiment_in_two_processes(tmp_path):
    command = [sys.executable, "-m", "sae_mlflow.plot", "--experiment", "llama2", "--no-log"]
    options = ["--output-dir", "out", "--tracking-uri", filled_store()[0].uri]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [f"out/{file}" for file in tree(tmp_path / "out")]
    expected = "2 a layer, 3 overlays, their page, final values, and a page of those"
    assert len(done.stdout.splitlines()) == 12, expected


def test_plotting_imports_neither_torch_nor_transformers(tmp_path):
    store, runs = filled_store()
    code = (
        "import sys\n"
        "from sae_mlflow import plot\n"
        "light = {'numpy', 'pandas', 'matplotlib', 'seaborn', 'mlflow'} & set(sys.modules)\n"
        "assert not light, f'import sae_mlflow.plot alone imported {light}'\n"
        "from sae_mlflow.plots.runs import draw_layer_run\n"
        "from sae_mlflow.tracking.store import Store\n"
        f"draw_layer_run(Store({store.uri!r}), {runs['layer9']!r})\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
