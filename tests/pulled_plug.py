"""A training that ends by Ctrl-C at a moment that one chooses."""

from contextlib import contextmanager

from sae_mlflow.reporting.display import Display, LayerDisplay


class PullsThePlug(Display):
    """Ctrl-C when an epoch of a layer is shown: by then the store has it."""

    def __init__(self, layer: str, epoch: int) -> None:
        super().__init__()
        self._moment = layer, epoch

    @contextmanager
    def layer(self, label, epochs, epoch_tokens):
        yield _Plug(label, self._moment)


class _Plug(LayerDisplay):
    def __init__(self, label, moment):
        self._label, self._moment = label, moment

    def epoch(self, record):
        if (self._label, record.epoch) == self._moment:
            raise KeyboardInterrupt
