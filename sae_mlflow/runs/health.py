"""A layer's health while it trains: looked at after every epoch, in the run's tags and artifact."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from sae_mlflow.health.check import check
from sae_mlflow.health.facts import facts_of
from sae_mlflow.health.finding import Finding, Verdict, words
from sae_mlflow.health.stored import judge_run, record
from sae_mlflow.runs.training import Training
from sae_mlflow.sae import SAE
from sae_mlflow.tracking.contents import FINISHED, RUNNING
from sae_mlflow.tracking.open_run import OpenRun

STOPPED = "health.on_failure=stop"
"""How the reason of a run begins that was stopped for its health."""

History = Mapping[str, list[float]]


class LayerFailed(Exception):
    """A layer's training was stopped for its health; its run is closed with this as the reason."""


class LayerHealth:
    """Judges a layer after every epoch; where a failed one is to be stopped, it keeps the weights
    of the last epoch that was good."""

    def __init__(
        self, training: Training, run: OpenRun, label: str, params: Mapping[str, object], sae: SAE
    ) -> None:
        """
        Args:
            params: the run's.
        """
        self._training = training
        self._run = run
        self._label = label
        self._params = params
        self._sae = sae
        self._stops = training.settings.health.on_failure == "stop"
        self._tagged: dict[str, str] = {}
        self.good: dict[str, Tensor] = {}
        """Weights of the last epoch that was good, where a failed one stops the training."""
        self.verdict = Verdict()
        """As of the last epoch."""
        self.stopped = False

    def epoch(self, history: History) -> None:
        """An epoch has ended. Sets `stopped` where the training has to."""
        self._judge(history, RUNNING)
        if not self._stops:
            return
        if self.verdict.status == "failed":
            self.stopped = True
        else:
            self.good = {name: value.clone() for name, value in self._sae.state_dict().items()}

    def resume(self, history: History, good: Mapping[str, Tensor], at_epochs_end: bool) -> None:
        """Be as at the checkpoint that a training goes on from.

        Args:
            good: of the checkpoint.
            at_epochs_end: it was made before that epoch was judged.
        """
        device = self._sae.W_dec.device
        self.good = {name: value.to(device) for name, value in good.items()}
        if at_epochs_end:
            self.epoch(history)
        elif history:
            self._judge(history, RUNNING)

    def finish(self, history: History) -> None:
        """The training is over: its verdict goes into the run, and is said."""
        if not self.stopped:
            self._judge(history, FINISHED)
        record(self._run, self.verdict)
        _say(self._training, self._label, self.verdict.findings)

    def keep_good_weights(self) -> bool:
        """Give the SAE of a stopped training its last good weights; False where there are none."""
        if not self.stopped:
            return True
        if not self.good:
            return False
        self._sae.load_state_dict(self.good)
        return True

    @property
    def failure(self) -> str:
        """Why the training was stopped."""
        worst = self.verdict.findings[0]
        return (
            f"{STOPPED}: {worst.reason}: {worst.message}. "
            f"Try {worst.advice}, or health.on_failure=warn."
        )

    def _judge(self, history: History, status: str) -> None:
        facts = facts_of(self._params, {}, status)
        verdict = check(history, facts, self._training.settings.health)
        if verdict.tags != self._tagged:
            self._run.tag(verdict.tags)
        self._tagged, self.verdict = verdict.tags, verdict


def judge_again(training: Training) -> None:
    """Once layers are evaluated, judge their runs with what that found of latents as well."""
    training.store.flush()
    for n, row in enumerate(training.rows):
        if not row.evaluation:
            continue
        run = training.store.run(row.run_id)
        verdict = judge_run(training.store, run)
        if verdict.tags != row.verdict.tags:
            record(training.store.reopen(row.run_id), verdict)
            known = {finding.code for finding in row.verdict.findings}
            _say(training, row.layer, [f for f in verdict.findings if f.code not in known])
            training.rows[n] = replace(row, verdict=verdict)


def _say(training: Training, label: str, findings: Sequence[Finding]) -> None:
    for finding in findings:
        training.display.warn(
            f"{label}: health {finding.severity}, {words(finding.code)}: {finding.message}. "
            f"Try {finding.advice}."
        )
