"""Runs held against each other: which pictures there are, what is in them, and how they read."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from plot_store import add_layer, add_parent, filled_store, history, new_experiment
from readable import assert_readable

from sae_mlflow.density import density_table, write_density_table
from sae_mlflow.errors import UserError
from sae_mlflow.plots import frames
from sae_mlflow.plots.choice import Choice
from sae_mlflow.plots.compare.figures import comparison
from sae_mlflow.plots.compare.pareto import frontier, points
from sae_mlflow.plots.compare.plan import Compared, comparisons
from sae_mlflow.plots.compare.tables import ends_table, over_seeds_of, run_labels
from sae_mlflow.plots.runs import draw_experiments
from sae_mlflow.plots.style import load_style
from sae_mlflow.plots.value_axis import fit_values

STYLES = ["default", "paper", "dark", "talk"]


def train(store, experiment_id, layers, *, start=0.8, fvu=0.3, tags=None, tmp_path=None, **params):
    """One training of some layers, as it would be left in the store; returns its runs."""
    parent = add_parent(store, experiment_id)
    runs = []
    for place, number in enumerate(layers):
        metrics = history(4, start) | {
            "val_fvu": [0.9, 0.7, 0.5, fvu + 0.1 * place],
            "val_l0_norm": [float(params.get("sae__k", 32))] * 4,
            "val_dead_fraction": [0.3, 0.2, 0.1, 0.02 * place],
        }
        run = add_layer(store, parent, f"layer{number}", metrics, **params)
        for key, value in (tags or {}).items():
            MlflowClient(store.uri).set_tag(run, key, value)
        if tmp_path is not None:
            evaluate(store, run, tmp_path, place)
        runs.append(run)
    parent.finish()
    return runs


def evaluate(store, run, tmp_path, dead):
    """What an evaluation leaves: densities of 100 latents on 1,000 tokens, some of them dead."""
    dead = min(dead, 20)
    density = np.repeat([0.001, 0.01, 0.2, 0.0], [40, 40, 20 - dead, dead])
    file = tmp_path / "density.csv"
    write_density_table(density_table(density, 1000), file)
    client = MlflowClient(store.uri)
    client.log_artifact(run, str(file), "evaluation")
    client.log_metric(run, "latents_dead_fraction", dead / 100, step=4)
    client.log_metric(run, "ce_loss_recovered", 0.9, step=4)
    client.log_metric(run, "evaluation_tokens", 1000, step=4)


@pytest.fixture
def experiment(request):
    """A new experiment in the shared store: the store and the experiment's name and id."""
    store, _ = filled_store()
    name = f"vs {request.node.name}"
    return store, name, new_experiment(store, name)


def compared(store, experiment_id, metric=None):
    return Compared(store, frames.groups(store.layer_runs(experiment_id), "all"), metric)


def names(pictures):
    return [picture.path.name for picture in pictures]


def picture_of(pictures, name):
    (found,) = [picture for picture in pictures if picture.path.name == name]
    return found


def lines(axes):
    """What a panel's lines are called, and their last values."""
    named = [line for line in axes.lines if not line.get_label().startswith("_")]
    return {line.get_label(): line.get_ydata()[-1] for line in named}


# -- tables -----------------------------------------------------------------------------------


def test_a_run_is_called_by_its_architecture_and_what_sets_it_apart(experiment):
    store, _, experiment_id = experiment
    (topk16,) = train(store, experiment_id, [3], sae__k=16)
    (topk64,) = train(store, experiment_id, [3], sae__k=64)
    tags = {"sae.architecture": "jumprelu"}
    (jumprelu,) = train(store, experiment_id, [3], tags=tags, sae__architecture="jumprelu")
    labels = run_labels(store.layer_runs(experiment_id))
    assert labels == {
        topk16: "topk · sae.k=16",
        topk64: "topk · sae.k=64",
        jumprelu: "jumprelu",
    }


def test_the_ends_are_by_layer_number_with_their_depth(experiment):
    store, _, experiment_id = experiment
    train(store, experiment_id, [10, 9, 0], lm__n_layers=11)
    ends = ends_table(store.layer_runs(experiment_id))
    assert ends["layer"].tolist() == ["layer0", "layer9", "layer10"]
    assert ends["depth"].tolist() == [0.0, 0.9, 1.0]
    assert ends["val_fvu"].tolist() == pytest.approx([0.5, 0.4, 0.3])


def test_the_ends_of_a_sweep_are_by_number(experiment):
    store, _, experiment_id = experiment
    for k in (128, 8, 32):
        for seed in (10, 9):
            train(store, experiment_id, [3], sae__k=k, seed=seed)
    ends = ends_table(store.layer_runs(experiment_id))
    assert ends["label"].tolist() == [f"topk · sae.k={k}" for k in (8, 8, 32, 32, 128, 128)]
    assert ends["seed"].tolist() == ["9", "10"] * 3


def test_seeds_are_a_mean_and_a_range(experiment):
    store, _, experiment_id = experiment
    for seed, fvu in enumerate((0.2, 0.3, 0.7)):
        train(store, experiment_id, [3], fvu=fvu, seed=seed)
    spread = over_seeds_of(ends_table(store.layer_runs(experiment_id)), "val_fvu")
    row = spread.iloc[0]
    assert (row["mean"], row["low"], row["high"], row["seeds"]) == pytest.approx((0.4, 0.2, 0.7, 3))


def test_the_frontier_is_what_no_point_beats():
    """(2, 5) is beaten by (1, 4); (3, 3) by none; of two at 3 the lower one counts."""
    x, y = [2, 1, 3, 3, 5, 4], [5, 4, 3, 3.5, 3, 1]
    assert frontier(x, y) == [1, 2, 5]
    assert frontier([], []) == []


def test_pareto_points_are_held_out_where_there_are_held_out_values():
    ends = pd.DataFrame(
        {
            "model": "m",
            "architecture": "topk",
            "layer": ["layer1", "layer2", "layer3", "layer3"],
            "label": "topk",
            "l0_norm": [30.0, 31.0, 32.0, 34.0],
            "val_l0_norm": [10.0, math.nan, math.nan, math.nan],
            "fvu": [0.5, 0.6, 0.7, 0.9],
            "ce_loss_recovered": [0.9, math.nan, 0.5, math.nan],
        }
    )
    got = points(ends)
    assert got["l0"].tolist() == [10.0, 31.0, 33.0]
    assert got["missed_variance"].tolist() == pytest.approx([0.5, 0.6, 0.8])
    assert got["missed_ce_loss"].iloc[0] == pytest.approx(0.1)
    assert got["missed_ce_loss"].iloc[1:].isna().all(), "a mean with a missing value is none"
    assert got["seeds"].tolist() == [1, 1, 2]
    assert (got["low_missed_variance"][2], got["high_missed_variance"][2]) == (0.7, 0.9)


def test_values_that_are_all_0_have_0_as_their_only_tick():
    """And not an axis of millionths."""
    axes = Figure().subplots()
    fit_values(axes, np.zeros(3), above_zero=True)
    low, high = axes.get_ylim()
    assert [tick for tick in axes.get_yticks() if low <= tick <= high] == [0]
    assert high - low > 0.5


# -- which pictures ---------------------------------------------------------------------------


def test_one_run_alone_is_compared_with_nothing(experiment):
    store, _, experiment_id = experiment
    train(store, experiment_id, [3])
    assert comparisons(compared(store, experiment_id)) == []


def test_layers_of_one_training_are_compared_by_what_they_came_to(experiment, tmp_path):
    """And by what sparsity costs where it differs: else that is the final values over again."""
    store, _, experiment_id = experiment
    train(store, experiment_id, [3, 4], tmp_path=tmp_path)
    pictures = comparisons(compared(store, experiment_id))
    assert names(pictures) == ["final_metrics_by_layer", "dead_latents", "density"]
    train(store, experiment_id, [3], tmp_path=tmp_path, sae__k=33)
    pictures = comparisons(compared(store, experiment_id))
    assert names(pictures) == ["pareto", "final_metrics_by_layer", "dead_latents", "density"]


def test_models_architectures_and_seeds_are_each_compared_where_they_differ(experiment):
    store, _, experiment_id = experiment
    train(store, experiment_id, [3, 4], seed=0)
    train(store, experiment_id, [3, 4], seed=1)
    train(store, experiment_id, [3], tags={"sae.architecture": "gated"}, sae__architecture="gated")
    train(store, experiment_id, [3, 5], model="gpt2")
    pictures = comparisons(compared(store, experiment_id, "reconstruction_loss"))
    model = "meta-llama-Llama-2-7b-hf"
    assert names(pictures) == [
        "compare_models_reconstruction_loss",
        f"{model}_compare_architectures_reconstruction_loss",
        f"{model}_compare_seeds_reconstruction_loss",
    ]
    figure = comparison(pictures[0])
    drawn = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert drawn == ["layer3"], "the one layer that both models have"


def test_models_of_different_depth_are_compared_over_relative_depth(experiment):
    store, _, experiment_id = experiment
    train(store, experiment_id, [0, 5, 10], fvu=0.2, lm__n_layers=11)
    train(store, experiment_id, [0, 10, 20], fvu=0.5, lm__n_layers=21, model="gpt2")
    pictures = comparisons(compared(store, experiment_id, "val_fvu"))
    figure = comparison(picture_of(pictures, "compare_models_by_depth_val_fvu"))
    (axes,) = figure.axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0.0, 0.5, 1.0]] * 2
    values = [line.get_ydata().tolist() for line in axes.lines]
    assert values == [pytest.approx([0.5, 0.6, 0.7]), pytest.approx([0.2, 0.3, 0.4])]


def test_many_layers_are_a_heat_map_with_a_row_each(experiment):
    store, _, experiment_id = experiment
    train(store, experiment_id, range(13))
    pictures = comparisons(compared(store, experiment_id, "val_fvu"))
    figure = comparison(picture_of(pictures, "meta-llama-Llama-2-7b-hf_heat_map_val_fvu"))
    grid = figure.axes[0].images[0].get_array()
    assert grid.shape == (13, 4)
    assert grid[:, 3].tolist() == pytest.approx([0.3 + 0.1 * n for n in range(13)])


# -- what is in them --------------------------------------------------------------------------


def test_facets_have_a_line_for_each_architecture_in_the_same_look(experiment):
    store, _, experiment_id = experiment
    train(store, experiment_id, [3, 4], start=0.8)
    tags = {"sae.architecture": "gated"}
    train(store, experiment_id, [3, 4], start=0.4, tags=tags, sae__architecture="gated")
    pictures = comparisons(compared(store, experiment_id, "reconstruction_loss"))
    figure = comparison(picture_of(pictures, "compare_architectures_reconstruction_loss"))
    first, second = figure.axes
    assert lines(first) == lines(second) == {"topk": 0.1, "gated": 0.05}
    looks = [
        [(line.get_color(), line.get_linestyle()) for line in axes.lines[:2]]
        for axes in figure.axes
    ]
    assert looks[0] == looks[1] and len(set(looks[0])) == 2
    assert first.get_ylim() == second.get_ylim()


def test_seeds_are_a_line_within_a_band(experiment):
    store, _, experiment_id = experiment
    for seed, start in enumerate((0.8, 0.4)):
        train(store, experiment_id, [3], start=start, seed=seed)
    pictures = comparisons(compared(store, experiment_id, "reconstruction_loss"))
    (axes,) = comparison(picture_of(pictures, "compare_seeds_reconstruction_loss")).axes
    assert lines(axes) == {"topk": pytest.approx(0.075)}
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == pytest.approx((0.05, 0.8))


def test_densities_are_a_ridge_a_layer_with_the_dead_in_words(experiment, tmp_path):
    store, _, experiment_id = experiment
    train(store, experiment_id, [9, 10], tmp_path=tmp_path)
    picture = picture_of(comparisons(compared(store, experiment_id)), "density")
    shares = picture.table.groupby("ridge", sort=False)["share"].sum()
    assert shares.to_dict() == pytest.approx({"layer9": 1.0, "layer10": 0.99})
    (axes,) = comparison(picture).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer10", "layer9"]
    assert [text.get_text() for text in axes.texts] == ["dead 0.0%", "dead 1.0%"]


def test_a_density_table_that_is_broken_costs_its_ridge_alone(experiment, tmp_path):
    store, _, experiment_id = experiment
    runs = train(store, experiment_id, [9, 10], tmp_path=tmp_path)
    (tmp_path / "density.csv").write_text("nothing,of\nthe,kind\n")
    MlflowClient(store.uri).log_artifact(runs[0], str(tmp_path / "density.csv"), "evaluation")
    picture = picture_of(comparisons(compared(store, experiment_id)), "density")
    assert set(picture.table["ridge"]) == {"layer10"}
    assert "can't be read: layer9" in picture.note


# -- how they read ----------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3, 12, 48])
def test_nothing_is_cut_or_lies_on_another(layers, experiment, tmp_path):
    """Two models, two settings, names that would be TeX; the model's other picture has 48 rows."""
    store, _, experiment_id = experiment
    shown = range(layers)
    train(store, experiment_id, shown, tmp_path=tmp_path, sae__k=16, lm__n_layers=48)
    train(store, experiment_id, shown, start=0.5, sae__k=64, lm__n_layers=48)
    train(store, experiment_id, shown, fvu=0.4, model="a_$b$_<i>c</i>", lm__n_layers=96)
    pictures = comparisons(compared(store, experiment_id))
    assert {picture.kind for picture in pictures} >= {"facets", "pareto", "by_depth", "ridges"}
    of_each_kind = {picture.kind: picture for picture in pictures}
    for look, picture in itertools.product(map(load_style, STYLES), of_each_kind.values()):
        assert_readable(comparison(picture.drawn(look, ["png"])), look)


# -- out of the store -------------------------------------------------------------------------


def test_what_several_models_share_goes_to_a_run_of_its_own(experiment, tmp_path):
    store, name, experiment_id = experiment
    train(store, experiment_id, [3])
    train(store, experiment_id, [3], model="gpt2")
    made = list(draw_experiments(store, [name], Choice(output_dir=tmp_path)))
    (address,) = [line for line in made if line.startswith("runs:") and "pareto.png" in line]
    run = store.run(address.split("/")[1])
    assert run.tags["sae.role"] == "comparison" and run.model == "all models"
    assert (tmp_path / "all-models" / "training_plots" / "pareto.png").stat().st_size > 0


def test_a_filter_narrows_the_runs(experiment, tmp_path):
    store, name, experiment_id = experiment
    train(store, experiment_id, [3], sae__k=16, fvu=0.05)
    train(store, experiment_id, [4], sae__k=16, fvu=0.5)
    train(store, experiment_id, [5], sae__k=64, fvu=0.05)
    condition = "params.sae.k = '16' and metrics.val_fvu < 0.1"
    choice = Choice(filter=condition, log=False, output_dir=tmp_path)
    made = {Path(line).name for line in draw_experiments(store, [name], choice)}
    assert "meta-llama-Llama-2-7b-hf_layer3_training_history.png" in made
    assert not [file for file in made if "layer4" in file or "layer5" in file]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("metrics.val_fvu < 0.001", "no finished SAE run for which"),
        ("metrics.val_fvu <", "isn't one of MLflow's"),
        ("nonsense", "isn't one of MLflow's"),
    ],
)
def test_a_filter_that_nothing_passes_or_that_is_none_is_said(condition, message, experiment):
    store, name, experiment_id = experiment
    train(store, experiment_id, [3])
    with pytest.raises(UserError, match=message):
        list(draw_experiments(store, [name], Choice(filter=condition)))


def test_experiments_are_held_against_each_other(experiment, tmp_path):
    """The same settings and seed in two experiments are two lines, each called by its experiment;
    what they share goes to the first."""
    store, name, experiment_id = experiment
    other = new_experiment(store, f"{name} again")
    train(store, experiment_id, [3], start=0.8)
    train(store, other, [3], start=0.4)
    made = list(draw_experiments(store, [name, f"{name} again"], Choice(output_dir=tmp_path)))
    (address,) = [a for a in made if a.startswith("runs:") and "final_metrics_by_layer.png" in a]
    assert store.run(address.split("/")[1]).experiment_id == experiment_id
    rows = store.layer_runs(experiment_id) + store.layer_runs(other)
    assert len(rows) == 2
    drawn = [Path(line).name for line in made if line.endswith("training_history.png")]
    assert len([file for file in drawn if "experiment-" in file]) == 2
