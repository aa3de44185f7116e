"""Findings on the pictures: where a mark stands, what it says, and that none is cut or covered."""

import itertools
import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from plot_store import add_layer, add_parent, filled_store, history, new_experiment

from sae_mlflow.health.finding import words
from sae_mlflow.plots import frames
from sae_mlflow.plots.choice import Choice
from sae_mlflow.plots.curve import Curve
from sae_mlflow.plots.figures import single_metric, training_history
from sae_mlflow.plots.frames import history_table, over_seeds
from sae_mlflow.plots.marks import NO_MARKS, Mark, draw_marks, marks_of
from sae_mlflow.plots.panels import draw_panel
from sae_mlflow.plots.runs import _layer_jobs, draw_experiments
from sae_mlflow.plots.style import load_style


def marks(reasons, status="warning"):
    return marks_of({"sae.health": status, "sae.health.reasons": reasons})


def page(reasons, status="warning", **curves):
    table = history_table("org/model", {"layer10": history(6) | curves})
    return training_history(table, "topk", marks=marks(reasons, status))


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title() == title)


def said(axes):
    """A panel's words, but for its target's."""
    written = (text.get_text() for text in axes.texts)
    return [text for text in written if text and not text.startswith("target")]


def notes(figure):
    return "\n".join(text.get_text() for text in figure.texts)


def test_a_finding_stands_at_its_epoch_on_its_metrics_panel_and_nowhere_else():
    """At epoch 3 the total loss is 0.8 / 4 + 0.01."""
    figure = page("loss_spike at epoch 3, not_converged")
    axes = panel(figure, "Total loss")
    assert said(axes) == ["loss spike"]
    (point,) = (line for line in axes.lines if line.get_label() == "_mark")
    assert point.get_xydata().tolist() == [[3, pytest.approx(0.21)]]
    assert said(panel(figure, "Reconstruction loss")) == []
    assert "health: warning, not converged" in notes(figure) and "spike" not in notes(figure)


def test_what_has_no_panel_on_the_page_is_said_under_the_title_with_its_epoch():
    figure = page("dead_latents at epoch 4")
    assert "health: warning, dead latents (epoch 4)" in notes(figure)
    assert all(
        not line.get_label().startswith("_mark") for axes in figure.axes for line in axes.lines
    )


def test_a_run_that_is_well_or_was_not_judged_looks_as_without():
    assert "health" not in notes(page("", "ok")) + notes(page("", ""))
    table = history_table("m", {"layer1": history(3)})
    assert "health" not in notes(training_history(table, "", marks=NO_MARKS))


def test_a_value_that_is_no_number_is_marked_where_its_epoch_is():
    figure = page("not_finite at epoch 2", "failed", total_loss=[0.8, math.nan] + [0.3] * 4)
    assert said(panel(figure, "Total loss")) == ["not finite"]
    assert said(panel(figure, "Reconstruction loss")) == [], "that one is finite there"
    assert "health: failed" in notes(figure)


def test_a_single_metric_has_its_marks_too():
    table = history_table("m", {"layer1": {"dead_fraction": [0.0, 0.1, 0.2, 0.3]}})
    figure = single_metric(table, "dead_fraction", "", marks=marks("dead_latents at epoch 3"))
    assert "dead latents" in said(figure.axes[0]) and "health: warning" in notes(figure)


MANY = ("loss_spike", "plateau_too_early", "not_converged")


@pytest.mark.parametrize("epochs", [(1, 1, 1), (6, 6, 6), (1, 6, 3), (3, 4, 4)])
@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize(
    "values", [[0.8, 0.4, 0.2, 0.1, 0.05, 0.02], [0.1, 0.1, 0.2, 0.5, 0.7, 1.0]]
)
def test_words_are_neither_cut_nor_over_each_other_nor_over_the_curve(epochs, scale, values):
    """Measured on the drawn page, in pixels."""
    found = ", ".join(f"{code} at epoch {e}" for code, e in zip(MANY, epochs, strict=True))
    style = load_style()
    with style.theme():
        figure = Figure(figsize=(5.2, 3.5))
        axes = figure.subplots()
        table = over_seeds(history_table("m", {"layer1": {"total_loss": values}}))
        curve = Curve(table, "#0072b2")
        draw_panel(axes, style, "total_loss", [curve], range(1, 7), "Total loss")
        if scale == "log":
            axes.set_ylim(0.01, 1.1)
            axes.set_yscale("log")
        draw_marks(axes, style, curve, marks(found).on("total_loss", curve))
        FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in axes.texts]
    frame = axes.get_window_extent()
    assert [text.get_text() for text in axes.texts] == [words(code) for code in MANY]
    for box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    points = axes.transData.transform(list(enumerate(values, start=1)))
    assert min(box.y0 for box in boxes) > points[:, 1].max()


def test_pictures_out_of_the_store_bear_what_the_tags_say(tmp_path):
    store, _ = filled_store()
    experiment = new_experiment(store, "marked")
    run_id = add_layer(store, add_parent(store, experiment), "layer1")
    tags = {"sae.health": "warning", "sae.health.reasons": "loss_spike at epoch 2, not_converged"}
    store.reopen(run_id).tag(tags)
    grouped = frames.groups(store.layer_runs(experiment), "latest")
    table = frames.run_table(store, grouped, ["total_loss", "reconstruction_loss"])
    jobs = _layer_jobs(store, table, grouped, None, Choice(output_dir=tmp_path))
    for job in jobs:
        assert job.picture.marks.marks == (Mark("loss_spike", 2), Mark("not_converged", None))
    pages = Choice(output_dir=tmp_path, interactive="all")
    *_, page = [job.picture for job in _layer_jobs(store, table, grouped, None, pages)]
    assert page.note.endswith(" · health: warning, loss spike (epoch 2), not converged")
    made = list(draw_experiments(store, ["marked"], Choice(output_dir=tmp_path, log=False)))
    assert any("training_history" in name for name in made)
