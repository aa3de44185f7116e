"""Verdicts about runs as a table: a row a finding, and one for a run that is well."""

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from sae_mlflow.health.finding import Finding, Verdict, words
from sae_mlflow.terminal import plain
from sae_mlflow.tracking.contents import SHORT_ID, RunRow

HEALTH_COLOURS: Mapping[str, str] = {"ok": "green", "warning": "yellow", "failed": "red"}

_WIDE = 110  # columns of a terminal that has room for what to try beside the finding


def health_table(
    judged: Sequence[tuple[RunRow, Verdict]],
    width: int = 80,
    to_file: bool = False,
    apart: Sequence[str] = (),
) -> Table:
    """Runs in the order given, each with its findings.

    Args:
        width: of the terminal, in characters.
        to_file: each line whole and on its own, with the run's whole id; a terminal's table has the
            first 8 characters of it, once.
        apart: of each run the settings in which it differs from the others.
    """
    wide = to_file or width >= _WIDE
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold underline")
    table.add_column("run", no_wrap=True)
    table.add_column("layer", no_wrap=True)
    if any(apart):
        table.add_column("setting", no_wrap=to_file)
    table.add_column("status", no_wrap=True)
    table.add_column("finding" if wide else "finding, what to try", no_wrap=to_file)
    for name in ("epoch", "number"):
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column("what to try", no_wrap=to_file, overflow="fold")
    for (row, verdict), setting in zip(judged, apart or [""] * len(judged), strict=True):
        run_id = row.run_id if to_file else row.run_id[:SHORT_ID]
        status = Text(verdict.status, style=HEALTH_COLOURS[verdict.status])
        head = [Text(run_id, style="dim"), Text(plain(row.layer)), status]
        if any(apart):
            head.insert(2, Text(plain(setting)))
        for finding in verdict.findings:
            table.add_row(*head, *_cells(finding, wide))
            if not to_file:
                head = [Text() for _ in head]
        if not verdict.findings:
            table.add_row(*head)
    return table


def _cells(finding: Finding, wide: bool) -> Iterator[Text]:
    found = plain(f"{words(finding.code)}: {finding.message}")
    yield Text(found if wide else f"{found}\n{finding.advice}")
    yield Text("" if finding.epoch is None else str(finding.epoch))
    yield Text(f"{finding.number:.4g}")
    if wide:
        yield Text(finding.advice)
