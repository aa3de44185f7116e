"""Rows of a data set on the Hub, streamed: nothing but what is read comes over the network."""

from collections.abc import Iterator
from typing import Any

from sae_mlflow.errors import UserError

_HUB_SECONDS = 10


def stream_rows(
    name: str, subset: str | None, split: str, shuffle_seed: int, buffer_rows: int
) -> Iterator[dict[str, Any]]:
    """A data set's rows: its shards in random order, and rows shuffled `buffer_rows` at a time.

    Raises:
        UserError: no such data set, subset or split; it's gated; the Hub can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
    )

    try:
        # asked first because it fails at once, where `datasets` tries again for half a minute
        found = HfApi().dataset_info(name, timeout=_HUB_SECONDS)
    except HFValidationError:
        raise UserError(
            f"text.source = {name!r} is neither `embedded`, a file that exists nor a data set's "
            "name on the Hub. Correct it."
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"text.source = {name!r} is neither a file here nor a data set on the Hub (or a "
            "private one). Correct it, or log in with `hf auth login`."
        ) from None
    except HfHubHTTPError as error:
        raise UserError(f"The Hub refused {name}: {str(error).splitlines()[0]}") from None
    except (OSError, HTTPError) as error:
        raise UserError(
            f"text.source = {name!r} is no file here, and the Hub can't be reached ({error}). "
            "Connect, give a local file, or use `embedded`."
        ) from None
    yield from rows_of(name, found.sha, subset, split, shuffle_seed, buffer_rows)


def rows_of(
    name: str,
    commit: str | None,
    subset: str | None,
    split: str,
    shuffle_seed: int,
    buffer_rows: int,
) -> Iterator[dict[str, Any]]:
    """Rows of a data set that is there; see `stream_rows`."""
    import datasets

    try:
        stream = datasets.load_dataset(name, subset, split=split, revision=commit, streaming=True)
        yield from stream.shuffle(seed=shuffle_seed, buffer_size=buffer_rows)
    except datasets.exceptions.DatasetNotFoundError:
        raise UserError(
            f"{name} can't be read from the Hub; it may be gated. Accept its terms at "
            f"https://huggingface.co/datasets/{name} and log in with `hf auth login`."
        ) from None
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        raise UserError(
            f"text.source = {name!r} is a data set with a script, which could do anything here and "
            "isn't run. Choose one that holds its data as files."
        ) from None
    except (ValueError, OSError) as error:  # no such subset or split, with the ones there are
        raise UserError(f"text.source = {name!r}: {str(error).splitlines()[0]}") from None
