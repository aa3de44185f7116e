"""One run as a TensorBoard event file: scalars by step, histograms, settings with final figures."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from sae_mlflow.density import DensityTable
from sae_mlflow.errors import UserError


def check_installed(wanted_by: str) -> None:
    """Raise a UserError where TensorBoard isn't installed."""
    if find_spec("tensorboard") is None:
        raise UserError(
            f"{wanted_by} needs TensorBoard, which isn't installed. "
            "Run: pip install 'sae-mlflow[tensorboard]'"
        )


class EventFile:
    """A new event file in a folder; TensorBoard shows a folder's files as one run."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            UserError: the folder can't be written.
        """
        from torch.utils.tensorboard import SummaryWriter

        try:
            self._writer = SummaryWriter(str(folder))
        except OSError as error:
            raise UserError(f"{folder} can't be written: {error.strerror}.") from None

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._writer.close()

    def scalars(self, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Values of one step, on disk at once.

        Args:
            seconds: when they were made, since 1970.
        """
        for tag, value in metrics.items():
            self._writer.add_scalar(tag, value, step, walltime=seconds)
        self._writer.flush()

    def density(self, table: DensityTable, step: int) -> None:
        """The histogram of log10 density over the latents that fired: `latents/log10_density`."""
        counts = table.latents.tolist()
        middles = (table.edges[:-1] + table.edges[1:]) / 2
        filled = table.latents.nonzero()[0]
        if not len(filled):
            return
        self._writer.add_histogram_raw(
            "latents/log10_density",
            min=float(table.edges[filled[0]]),
            max=float(table.edges[filled[-1] + 1]),
            num=sum(counts),
            sum=float((table.latents * middles).sum()),
            sum_squares=float((table.latents * middles**2).sum()),
            bucket_limits=table.edges.tolist(),  # upper ones; below the first edge is nothing
            bucket_counts=[0, *counts],
            global_step=step,
        )

    def settings(self, params: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """A row of TensorBoard's table of hyperparameters.

        Args:
            metrics: final figures; the last scalars of the same tags are what it shows.
        """
        from torch.utils.tensorboard.summary import hparams

        shown = {key: _number_or_text(value) for key, value in params.items()}
        writer = self._writer._get_file_writer()
        for summary in hparams(shown, dict(metrics)):
            writer.add_summary(summary)


def _number_or_text(text: str) -> bool | float | str:
    if text in ("True", "False"):
        return text == "True"
    try:
        return float(text)
    except ValueError:
        return text
