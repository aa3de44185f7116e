"""What transformers says on the way that no user can act on, kept off the terminal."""

import contextlib
import io
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_transformers(*, bars_too: bool = False) -> Iterator[None]:
    """Hold back transformers' notices while something loads; its errors are raised as ever.

    Args:
        bars_too: hold back whatever is written to stderr, for the bars that have no switch (the
            GGUF reader's); without it a download from the Hub still shows how far it is.
    """
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    enable_progress_bars()  # transformers' switch turns the Hub's bars off as well
    stderr = contextlib.redirect_stderr(io.StringIO()) if bars_too else contextlib.nullcontext()
    try:
        with warnings.catch_warnings(), stderr:
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
