"""Layers that are in no overlay, since no run of theirs has finished: which they are, and words."""

from collections.abc import Sequence

from sae_mlflow import naming
from sae_mlflow.errors import known
from sae_mlflow.plots.choice import Choice, same_model
from sae_mlflow.plots.frames import group_key, groups, setting_labels
from sae_mlflow.tracking.contents import FINISHED, RunRow


def unfinished(rows: Sequence[RunRow], choice: Choice) -> list[RunRow]:
    """The chosen runs that haven't finished, where none with the same settings has, by layer.

    Args:
        rows: finished ones and others, newest first.
    """
    finished = {group_key(row) for row in rows if row.status == FINISHED}
    newest = {group_key(row): row for row in reversed(rows)}
    lost = [
        row
        for key, row in newest.items()
        if key not in finished
        and (choice.model is None or same_model(row.model, choice.model))
        and (not choice.layers or row.layer in choice.layers)
    ]
    return sorted(lost, key=lambda row: naming.layer_order(row.layer))


def left_out(lost: Sequence[RunRow], drawn: Sequence[RunRow]) -> str:
    """`left out: layer15 (failed), layer25 (killed)`; nothing where nothing is.

    Args:
        lost: of `unfinished`.
        drawn: the runs that are shown: what differs among all of them is named.
    """
    every = [[row] for row in (*lost, *(group[0] for group in groups(drawn, "latest")))]
    several = len({group[0].model for group in every}) > 1
    named: dict[str, None] = {}
    for row, setting in zip(lost, setting_labels(every), strict=False):  # theirs come first
        words = (row.model if several else "", row.layer, setting)
        named[f"{' · '.join(filter(None, words))} ({row.status.lower()})"] = None
    return f"left out: {known(list(named), limit=6)}" if named else ""
