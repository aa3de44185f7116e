import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults.tiny import WORDS, word_tokenizer

from sae_mlflow.config import TextSettings
from sae_mlflow.errors import UserError
from sae_mlflow.text import hub
from sae_mlflow.text.corpus import Windows, token_windows

SEPARATOR = 0


def words(*numbers: int) -> str:
    return " ".join(WORDS[n] for n in numbers)


def write(file: Path, *documents: str) -> str:
    file.write_text("\n\n".join(documents), encoding="utf-8")
    return str(file)


def read(source: str | tuple[str, ...], **settings: object) -> Windows:
    text = TextSettings.model_validate({"source": source, "context": 4, "tokens": 8} | settings)
    return token_windows(text, word_tokenizer())


def documents_in(windows: np.ndarray) -> list[tuple[int, ...]]:
    """Documents of a packed stream; the last one may be cut."""
    stream = " ".join(map(str, windows.reshape(-1)))
    parts = f" {stream} ".split(f" {SEPARATOR} ")
    return [tuple(map(int, part.split())) for part in parts if part.strip()]


def test_a_window_is_a_separator_and_a_document_where_that_fills_it(tmp_path: Path) -> None:
    """word0 is token 2; one of the two documents trains, the other is held out."""
    windows = read(write(tmp_path / "a.txt", words(0, 1, 2), words(10, 11, 12)))
    assert {tuple(*windows.train.tolist()), tuple(*windows.held_out.tolist())} == {
        (0, 2, 3, 4),
        (0, 12, 13, 14),
    }
    assert windows.train.dtype == windows.held_out.dtype == np.int32


def test_documents_run_on_from_window_to_window(tmp_path: Path) -> None:
    """A separator, then two tokens, and again; windows cut where they may."""
    source = write(tmp_path / "a.txt", *[words(i, i + 50) for i in range(20)])
    stream = read(source, tokens=60, held_out_fraction=0.5).train.reshape(-1).tolist()
    assert stream[::3] == [SEPARATOR] * len(stream[::3])
    assert all(
        second == first + 50 for first, second in zip(stream[1::3], stream[2::3], strict=False)
    )


def test_no_document_is_on_both_sides_and_each_is_whole(text_file: Path) -> None:
    ids = {word: i + 2 for i, word in enumerate(WORDS)}
    originals = {
        tuple(ids[word] for word in paragraph.split())
        for paragraph in text_file.read_text().split("\n\n")
    }
    windows = read(str(text_file), tokens=4096, context=32, held_out_fraction=0.25)
    *train, _ = documents_in(windows.train)
    *held_out, _ = documents_in(windows.held_out)
    assert len(train) > 80 and len(held_out) > 20
    assert set(train) <= originals and set(held_out) <= originals
    assert not set(train) & set(held_out)


def test_as_many_tokens_are_read_as_asked_and_their_share_is_held_out(text_file: Path) -> None:
    windows = read(str(text_file), tokens=4096, context=32, held_out_fraction=0.25)
    assert windows.train.shape == (96, 32)
    assert windows.held_out.shape == (32, 32)
    assert windows.n_tokens == 4096 and windows.note == ""


def test_where_there_is_less_text_all_of_it_is_used_and_the_note_says_so(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", *[words(i, i + 1, i + 2) for i in range(10)])
    windows = read(source, tokens=4000, held_out_fraction=0.2)
    assert (len(windows.train), len(windows.held_out)) == (8, 2)
    assert windows.note == "a.txt gives 40 tokens, fewer than the 4,000 asked for; all are used."


def test_the_shuffle_seed_alone_decides_the_order(text_file: Path) -> None:
    first, again, other = (read(str(text_file), tokens=512, shuffle_seed=s) for s in (3, 3, 4))
    assert np.array_equal(first.train, again.train) and first.sha256 == again.sha256
    assert not np.array_equal(first.train, other.train) and first.sha256 != other.sha256


def test_special_tokens_and_first_positions_are_not_kept() -> None:
    windows = Windows(
        train=np.array([[5, 6, 0, 7], [0, 8, 1, 9]], dtype=np.int32),
        held_out=np.zeros((1, 4), dtype=np.int32),
        special_ids=frozenset({0, 1}),
        source="",
        sha256="",
    )
    assert windows.kept(windows.train).tolist() == [
        [False, True, False, True],
        [False, True, False, True],
    ]
    assert not windows.kept(windows.held_out).any()


def test_the_separator_is_the_token_that_the_tokenizer_begins_a_text_with(text_file: Path) -> None:
    text = TextSettings(source=str(text_file), context=8, tokens=64)
    begins, plain = (
        token_windows(text, word_tokenizer(bos=True)),
        token_windows(text, word_tokenizer()),
    )
    assert begins.train[0, 0] == 2 and begins.special_ids == {0, 1, 2}
    assert plain.train[0, 0] == 0 and plain.special_ids == {0, 1}


def test_jsonl_parquet_and_txt_of_the_same_documents_give_the_same_windows(tmp_path: Path) -> None:
    documents = [words(i, i + 1, i + 2) for i in range(30)]
    rows = [{"id": i, "body": document} for i, document in enumerate(documents)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=7)
    txt = read(write(tmp_path / "a.txt", *documents), tokens=80)
    for name in ("a.jsonl", "a.parquet"):
        assert read(str(tmp_path / name), column="body", tokens=80).sha256 == txt.sha256


def test_several_files_are_read_as_one_text(tmp_path: Path) -> None:
    files = tuple(write(tmp_path / f"{n}.txt", words(n, n, n)) for n in (3, 4))
    windows = read(files)
    assert windows.source == "3.txt, 4.txt"
    assert {windows.train[0, 1], windows.held_out[0, 1]} == {5, 6}


def test_rows_of_a_data_set_are_streamed_in_an_order_drawn_from_the_seed(tmp_path: Path) -> None:
    """`datasets` reads a local folder the way it reads one on the Hub."""
    rows = [{"text": f"document {i}"} for i in range(50)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    got = [list(hub.rows_of(str(tmp_path), None, None, "train", seed, 100)) for seed in (0, 0, 1)]
    assert got[0] == got[1] != got[2]
    assert sorted(r["text"] for r in got[0]) == sorted(r["text"] for r in rows)
    with pytest.raises(UserError, match="test"):
        list(hub.rows_of(str(tmp_path), None, None, "test", 0, 100))


BAD_TEXTS = {
    "missing.txt": (None, r"'.*missing\.txt' doesn't exist"),
    "a.txt,b.txt": (None, r"doesn't exist.* Several files are a list: \[.*a\.txt,b\.txt\]\.$"),
    "empty.txt": ("", r"There is no text in empty\.txt"),
    "blank.txt": (" \n\n \n", r"There is no text in blank\.txt"),
    "short.txt": ("word1", r"gives 2 tokens for training and 0 held out.*text\.context = 4"),
    "latin.txt": ("caf\xe9".encode("latin-1"), r"latin\.txt is not text in UTF-8"),
    "notes.md": ("word1", r"notes\.md is a \.md file\. Give \.txt, \.jsonl, \.parquet"),
    "column.jsonl": ('{"body": "a", "id": 1}', r"no column 'text'.*one of: body, id"),
    "broken.jsonl": ('{"text": "a"}\n{"text', r"broken\.jsonl, line 2, is not JSON"),
    "number.jsonl": ('{"text": 5}', r"line 1: 'text' holds int"),
    "list.jsonl": ("[1]", r"line 1 holds list"),
    "fake.parquet": ("PAR", r"fake\.parquet is not a parquet file"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_a_text_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path, name: str) -> None:
    content, message = BAD_TEXTS[name]
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / name))


def test_a_folder_is_not_a_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        read(str(tmp_path))


def test_a_parquet_file_without_the_column_says_which_there_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"title": ["a"], "body": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'text'.*one of: title, body"):
        read(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["no-such-owner-7f3a/no-such-data", "../x", "two words"])
def test_a_data_set_that_is_not_there_is_refused_at_once(name: str) -> None:
    with pytest.raises(UserError, match="text.source"):
        read(name)
