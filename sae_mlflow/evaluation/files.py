"""An evaluation as files, as they stand under `evaluation/` among a run's artifacts."""

from collections.abc import Sequence
from pathlib import Path

from sae_mlflow.density import density_table, write_density_table
from sae_mlflow.evaluation.evaluate import Evaluation
from sae_mlflow.evaluation.page import Card, latent_page
from sae_mlflow.plots.formats import save
from sae_mlflow.plots.style import Style, load_style
from sae_mlflow.tracking.contents import DENSITY_TABLE, EVALUATION_FOLDER
from sae_mlflow.tracking.open_run import OpenRun

DENSITY_FIGURE, LATENT_PAGE = "density.png", "latents.html"


def log_evaluation(run: OpenRun, epochs: int, evaluation: Evaluation, folder: Path) -> None:
    """Log an evaluation to its layer's run; the metrics come last: where they stand, all does.

    Args:
        epochs: of the training: what was evaluated is the SAE as it was after them.
        folder: with the files.
    """
    run.log_folder(folder, EVALUATION_FOLDER)
    run.log_metrics(epochs, evaluation.metrics)


def write_density(
    evaluation: Evaluation,
    folder: Path,
    *,
    model: str,
    layer: str,
    note: str = "",
    style: Style | None = None,
) -> None:
    """Write `density.csv` and `density.png`.

    Args:
        model: as it stands in titles.
        layer: the site's label.
        note: a line under the picture's title.
        style: the picture's; unset means the default.
    """
    # matplotlib takes a second to import
    from sae_mlflow.plots.density_figure import density_figure

    style = style or load_style()
    table = density_table(evaluation.density, evaluation.spliced_tokens)
    write_density_table(table, folder / DENSITY_TABLE)
    figure = density_figure(table, model, layer, style, note)
    save(figure, style, folder / DENSITY_FIGURE)


def write_latent_page(
    evaluation: Evaluation, cards: Sequence[Card], folder: Path, *, title: str, note: str = ""
) -> None:
    """Write `latents.html`; `write_density` comes first, its picture is on the page."""
    read = int(evaluation.metrics["evaluation_tokens"])
    notes = [
        note,
        f"{len(cards)} of {len(evaluation.density):,} latents, on {read:,} tokens of held-out text,"
        f" {read - evaluation.spliced_tokens:,} of which pass the SAE by.",
    ]
    if evaluation.firings is not None and not evaluation.firings.complete:
        notes.append("So much fires that the examples are from the first part of the text alone.")
    png = (folder / DENSITY_FIGURE).read_bytes()
    page = latent_page(title, [n for n in notes if n], evaluation.metrics, png, cards)
    (folder / LATENT_PAGE).write_text(page, encoding="utf-8")
