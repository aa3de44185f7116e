"""Findings about a training, and the verdict that they add up to."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["warning", "failed"]
Status = Literal["ok", "warning", "failed"]

STATUS_TAG, REASONS_TAG = "sae.health", "sae.health.reasons"
HEALTH_FILE = "health.json"


@dataclass(frozen=True)
class Kind:
    """What all findings of one code share."""

    severity: Severity
    metrics: tuple[str, ...] = ()
    """The curves that it is seen on."""


_ERROR = ("val_fvu", "fvu", "reconstruction_loss", "val_reconstruction_loss")
_DEAD = ("dead_fraction", "val_dead_fraction")
_L0 = ("l0_norm", "val_l0_norm")

KINDS: dict[str, Kind] = {
    "not_finite": Kind("failed"),
    "diverged": Kind("failed", _ERROR),
    "fvu_above_1": Kind("failed", _ERROR),
    "l0_collapsed": Kind("failed", _L0),
    "run_failed": Kind("failed"),
    "interrupted": Kind("warning"),
    "loss_spike": Kind("warning", ("total_loss",)),
    "not_converged": Kind("warning", ("total_loss",)),
    "plateau_too_early": Kind("warning", ("total_loss",)),
    "validation_gap": Kind("warning", _ERROR),
    "dead_latents": Kind("warning", _DEAD),
    "dead_latents_rising": Kind("warning", _DEAD),
    "dense_latents": Kind("warning"),
    "l0_off_target": Kind("warning", _L0),
    "giant_norms": Kind("warning"),
    "tokens_left_out": Kind("warning"),
    "learning_rate": Kind("warning"),
}
"""Every code there is, the worst first."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a training."""

    code: str
    """Of `KINDS`."""
    message: str
    """What is seen, in a clause."""
    advice: str
    """What to try: settings, and a value for them."""
    number: float
    """What was held against the threshold."""
    epoch: int | None = None
    """Where it began; None for what is about the whole training, or its end."""

    @property
    def severity(self) -> Severity:
        return KINDS[self.code].severity

    @property
    def reason(self) -> str:
        """`loss_spike at epoch 3`, as it stands in the run's tag."""
        return self.code if self.epoch is None else f"{self.code} at epoch {self.epoch}"


@dataclass(frozen=True)
class Verdict:
    """All findings about one training, the worst first."""

    findings: tuple[Finding, ...] = ()

    @property
    def status(self) -> Status:
        severities = {finding.severity for finding in self.findings}
        return "failed" if "failed" in severities else "warning" if severities else "ok"

    @property
    def reasons(self) -> str:
        """`loss_spike at epoch 3, not_converged`; empty where nothing was found."""
        return ", ".join(finding.reason for finding in self.findings)

    @property
    def tags(self) -> dict[str, str]:
        return {STATUS_TAG: self.status, REASONS_TAG: self.reasons}

    def to_json(self) -> str:
        """`status` and `findings`; a number that isn't finite is text, as JSON has none."""
        findings = [
            {"severity": finding.severity, **asdict(finding), "number": _json_number(finding)}
            for finding in self.findings
        ]
        content = {"status": self.status, "findings": findings}
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def verdict(findings: Iterable[Finding]) -> Verdict:
    """Of findings in any order."""
    order = list(KINDS)
    return Verdict(tuple(sorted(findings, key=lambda finding: order.index(finding.code))))


def parse_reasons(text: str) -> list[tuple[str, int | None]]:
    """A tag's codes, each with its epoch where it has one; a code that isn't known is left out."""
    found: list[tuple[str, int | None]] = []
    for part in text.split(", "):
        match = re.fullmatch(r"(\w+)(?: at epoch (\d+))?", part)
        if match and match[1] in KINDS:
            found.append((match[1], int(match[2]) if match[2] else None))
    return found


def words(code: str) -> str:
    """A code as a person reads it: `FVU above 1`."""
    text = code.replace("_", " ")
    return text.replace("fvu", "FVU").replace("l0", "L0")


def shown(codes: Sequence[tuple[str, int | None]]) -> str:
    """`loss spike (epoch 3), not converged`."""
    return ", ".join(words(c) if e is None else f"{words(c)} (epoch {e})" for c, e in codes)


def _json_number(finding: Finding) -> float | str:
    return finding.number if math.isfinite(finding.number) else str(finding.number)
