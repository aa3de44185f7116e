"""From runs in the store to the page's HTML."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from sae_mlflow.plots.drawing import draw_all
from sae_mlflow.plots.style import Style
from sae_mlflow.report.contents import gather
from sae_mlflow.report.page import Drawn, Pictures, page_html
from sae_mlflow.report.pictures import Shown, compared, histories, overlays, report_style, styled
from sae_mlflow.secrets import without_secrets
from sae_mlflow.tracking.contents import RunRow
from sae_mlflow.tracking.store import Store


def report_html(
    store: Store,
    experiment: str,
    rows: Sequence[RunRow],
    style: Style,
    pool: ProcessPoolExecutor | None = None,
) -> str:
    """The report of these runs, its pictures drawn in this style.

    Args:
        experiment: its name.
        rows: of `contents.rows_of`.
        pool: of `drawing.drawing_processes`, so that they start while the store is read.
    """
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    style = report_style(style)
    contents = gather(store, experiment, rows)
    sections = [
        styled(shown, style)
        for shown in (
            overlays(contents, style),
            compared(store, contents, style),
            histories(contents, style),
        )
    ]
    drawn = iter(_drawn([each for shown in sections for each in shown], pool))
    pictures = Pictures(*([next(drawn) for _ in shown] for shown in sections))
    return without_secrets(page_html(contents, pictures, style, made))


def _drawn(shown: Sequence[Shown], pool: ProcessPoolExecutor | None) -> list[Drawn]:
    with TemporaryDirectory(prefix="sae_mlflow-") as scratch:
        pictures = [each.picture.at(Path(scratch) / str(n)) for n, each in enumerate(shown)]
        # closed, so that no process goes on drawing into a folder that is gone
        with closing(draw_all(pictures, pool)) as files:
            return [
                Drawn(each, file.read_bytes())
                for each, (file, *_) in zip(shown, files, strict=True)
            ]
