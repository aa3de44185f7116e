"""The tables of layers that a person reads: in the runs' descriptions and at the command's end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sae_mlflow.architectures import TOPK_FAMILY
from sae_mlflow.config import Settings
from sae_mlflow.config_sae import SAESettings
from sae_mlflow.health.finding import Verdict
from sae_mlflow.reporting.markdown import literal
from sae_mlflow.tracking.contents import ui_page

COLUMNS = (
    "layer",
    "held-out FVU",
    "best at epoch",
    "loss",
    "L0",
    "dead",
    "CE recovered",
    "tokens/s",
    "health",
)


@dataclass(frozen=True)
class TrainedLayer:
    """One layer that has trained."""

    layer: str
    """As in tags: `layer10`."""
    experiment_id: str
    run_id: str
    history: Mapping[str, list[float]]
    weight_bytes: int = 0
    """Of its SAE."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """The figures of its evaluation; empty where there was none."""
    verdict: Verdict = field(default_factory=Verdict)
    stopped: bool = False
    """Whether its training was, for its health."""

    def cells(self) -> tuple[str, ...]:
        """The final figures, in the order of `COLUMNS`."""
        last = {key: values[-1] for key, values in self.history.items()}
        held_out = self.history["val_fvu"]
        return (
            self.layer,
            f"{last['val_fvu']:.4f}",
            str(held_out.index(min(held_out)) + 1),
            f"{last['reconstruction_loss']:.4f}",
            f"{last['l0_norm']:.1f}",
            f"{last['dead_fraction']:.1%}",
            f"{self.evaluation['ce_loss_recovered']:.1%}" if self.evaluation else "-",
            f"{last['tokens_per_second']:,.0f}",
            self.verdict.status,
        )


def parent_note(settings: Settings, rows: Sequence[TrainedLayer]) -> str:
    """The parent run's description: what was trained, and a table of layers."""
    sae, text = settings.sae, settings.text
    lines = [
        f"**{literal(settings.model.label)}** · {_shown(sae)} · "
        f"{text.tokens:,} tokens, {settings.train.epochs} epochs",
        "",
        _table_line(COLUMNS),
        "|---" + "|---:" * (len(COLUMNS) - 1) + "|",
    ]
    for row in rows:
        layer, *figures = row.cells()
        link = f"[{layer}]({ui_page(row.experiment_id, row.run_id)})"
        lines.append(_table_line([link, *figures]))
    return "\n".join(lines)


def _shown(sae: SAESettings) -> str:
    """The architecture and what sets its sparsity."""
    if sae.activation in TOPK_FAMILY:
        return f"{sae.architecture}, k = {sae.k}"
    if sae.activation == "jumprelu" and sae.target_l0:
        return f"{sae.architecture}, target L0 = {sae.target_l0:g}"
    return sae.architecture


def launcher_note(experiment_id: str, run_id: str, experiment: str) -> str:
    """The description of a launcher's run whose training went to another experiment."""
    return (
        f"The training's runs are in experiment **{literal(experiment)}**: "
        f"[open them]({ui_page(experiment_id, run_id)})."
    )


def _table_line(cells: Sequence[str]) -> str:
    """MLflow sets a table's cells without a gap; an en space in each keeps them apart."""
    return "| " + " | ".join(f"{cell}\u2002" for cell in cells) + " |"
