"""Where text comes from: the embedded corpus, local files or a Hub data set, in random order.

Documents are: an article of the embedded text; a paragraph (between blank lines) of a .txt file; a
line of a .jsonl file; a row of a .parquet file or of a Hub data set.
"""

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from sae_mlflow.config import EMBEDDED_TEXT, TextSettings
from sae_mlflow.errors import UserError, known
from sae_mlflow.folders import is_there, user_path
from sae_mlflow.text.embedded import embedded_text

_SUFFIXES = (".txt", ".jsonl", ".parquet")
_SHUFFLE_CHARACTERS = 64 * 1024 * 1024
_HUB_SHUFFLE_DOCUMENTS = 10_000


def documents(text: TextSettings) -> tuple[str, Iterator[str]]:
    """What is read, for the record, and its documents in random order."""
    sources = [text.source] if isinstance(text.source, str) else list(text.source)
    if sources == [EMBEDDED_TEXT]:
        articles = json.loads(embedded_text().read_text(encoding="utf-8")).values()
        extracts = [article["extract"] for article in articles]
        name = "embedded: English Wikipedia summaries (CC BY-SA 4.0)"
        return name, shuffled(extracts, text.shuffle_seed)
    files = [user_path(source) for source in sources]
    if len(sources) == 1 and not is_there(files[0]) and files[0].suffix not in _SUFFIXES:
        return _hub_documents(sources[0], text)
    for file in files:
        _check_file(file)
    in_files = itertools.chain.from_iterable(_file_documents(f, text.column) for f in files)
    name = ", ".join(file.name for file in files)
    return name, shuffled(filter(str.strip, in_files), text.shuffle_seed)


def shuffled(documents: Iterable[str], seed: int) -> Iterator[str]:
    """Documents in random order: of all, or, past 64M characters, of that many at a time."""
    rng = random.Random(seed)
    buffer: list[str] = []
    characters = 0
    for document in documents:
        buffer.append(document)
        characters += len(document)
        while characters > _SHUFFLE_CHARACTERS:
            i = rng.randrange(len(buffer))
            buffer[i], buffer[-1] = buffer[-1], buffer[i]
            characters -= len(buffer[-1])
            yield buffer.pop()
    rng.shuffle(buffer)
    yield from buffer


def _check_file(file: Path) -> None:
    if not is_there(file):
        several = f" Several files are a list: [{file}]." if "," in str(file) else ""
        raise UserError(f"text.source: {str(file)!r} doesn't exist. Correct the path.{several}")
    if file.is_dir() or file.suffix not in _SUFFIXES:
        what = "a folder" if file.is_dir() else f"a {file.suffix or 'nameless'} file"
        raise UserError(f"text.source: {file} is {what}. Give {', '.join(_SUFFIXES)} files.")


def _file_documents(file: Path, column: str) -> Iterator[str]:
    try:
        match file.suffix:
            case ".txt":
                yield from _paragraphs(file)
            case ".jsonl":
                yield from _json_lines(file, column)
            case _:
                yield from _parquet_rows(file, column)
    except UnicodeDecodeError:
        raise UserError(f"{file} is not text in UTF-8. Convert it first.") from None
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"{file} can't be read: {reason}.") from None


def _paragraphs(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8-sig") as lines:
        for blank, group in itertools.groupby(lines, key=str.isspace):
            if not blank:
                yield "".join(group).strip()


def _json_lines(file: Path, column: str) -> Iterator[str]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", None) or str(error).splitlines()[0]
                raise UserError(f"{file}, line {number}, is not JSON: {reason}.") from None
            yield _field(row, column, f"{file}, line {number}")


def _parquet_rows(file: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
    except pa.ArrowException:
        raise UserError(f"{file} is not a parquet file.") from None
    if column not in table.schema_arrow.names:
        raise UserError(_no_column(str(file), column, table.schema_arrow.names))
    try:
        for batch in table.iter_batches(batch_size=1024, columns=[column]):
            yield from (_field(row, column, str(file)) for row in batch.to_pylist())
    except (pa.ArrowException, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} is a damaged parquet file: {reason}. Fetch it again.") from None


def _hub_documents(name: str, text: TextSettings) -> tuple[str, Iterator[str]]:
    from sae_mlflow.text.hub import stream_rows

    label = " ".join(filter(None, [name, text.subset, text.split]))
    rows = stream_rows(name, text.subset, text.split, text.shuffle_seed, _HUB_SHUFFLE_DOCUMENTS)
    return label, filter(str.strip, (_field(row, text.column, label) for row in rows))


def _field(row: object, column: str, where: str) -> str:
    """A row's text; an empty one counts as none."""
    if not isinstance(row, dict):
        raise UserError(f"{where} holds {type(row).__name__}, but a row is an object with fields.")
    if column not in row:
        raise UserError(_no_column(where, column, list(row)))
    if not isinstance(row[column], str | None):
        held = type(row[column]).__name__
        raise UserError(f"{where}: {column!r} holds {held}. Set text.column to a field of text.")
    return row[column] or ""


def _no_column(where: str, column: str, names: list[str]) -> str:
    return f"{where} has no column {column!r}. Set text.column to one of: {known(names)}."
