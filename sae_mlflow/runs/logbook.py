"""What a layer's training has said so far, and that the store is told each of it once."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sae_mlflow.records import EpochRecord, WithinEpochRecord
from sae_mlflow.runs.mirror import Mirror
from sae_mlflow.tracking.contents import within_epoch
from sae_mlflow.tracking.open_run import OpenRun

Logged = EpochRecord | WithinEpochRecord


class Logbook:
    """The records of a layer, in order.

    One is written down before the store is told of it, so that a checkpoint made in between has it;
    a training that goes on tells whatever the store lacks, with the time at which it was made.
    """

    def __init__(self, run: OpenRun, there: Mapping[str, set[int]] | None = None) -> None:
        """
        Args:
            there: the steps at which each metric stands in the store already.
        """
        self._run = run
        self._there = there or {}
        self.mirror = Mirror()
        """Takes what the store takes."""
        self.records: list[Logged] = []
        self.history: dict[str, list[float]] = {}
        """Each metric's values, one an epoch."""

    def write_down(self, record: Logged) -> None:
        self.records.append(record)
        if isinstance(record, EpochRecord):
            for key, value in record.metrics.items():
                self.history.setdefault(key, []).append(value)

    def tell(self, record: Logged) -> None:
        """Log what the store lacks of a record."""
        match record:
            case EpochRecord():
                step, metrics = record.epoch, record.metrics | self._best(record.epoch)
            case WithinEpochRecord():
                step, metrics = record.tokens, within_epoch(record.metrics)
        if lacking := self._lacking(step, metrics):
            self._run.log_metrics(step, lacking, record.made_at)
            self.mirror.log(step, lacking, record.made_at)

    def facts(self) -> dict[str, Any]:
        """As JSON can hold them."""
        return {
            "epochs": [asdict(r) for r in self.records if isinstance(r, EpochRecord)],
            "parts": [asdict(r) for r in self.records if isinstance(r, WithinEpochRecord)],
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Write down what `facts` gave."""
        parts = (WithinEpochRecord(**each) for each in facts["parts"])
        epochs = (EpochRecord(**each) for each in facts["epochs"])
        records: list[Logged] = [*parts, *epochs]
        for record in records:
            self.write_down(record)

    def _lacking(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        return {k: v for k, v in metrics.items() if step not in self._there.get(k, ())}

    def _best(self, epoch: int) -> dict[str, float]:
        """The UI's table shows only a metric's last value; these keep the best one in sight."""
        so_far = self.history["val_fvu"][:epoch]
        best = min(so_far)
        return {"best_val_fvu": best, "best_epoch": so_far.index(best) + 1}
