"""Plots: `python -m sae_mlflow.plot`, and four functions for histories that one has at hand."""

from sae_mlflow.commands.cli import make_app, run_cli
from sae_mlflow.commands.plot import plot_command
from sae_mlflow.plots.histories import (
    load_and_plot_from_json,
    plot_all_layers_comparison,
    plot_reconstruction_loss_only,
    plot_sae_training_history,
)

__all__ = [
    "load_and_plot_from_json",
    "plot_all_layers_comparison",
    "plot_reconstruction_loss_only",
    "plot_sae_training_history",
]

app = make_app()
app.command()(plot_command)


def main() -> None:
    run_cli(app)


if __name__ == "__main__":
    main()
