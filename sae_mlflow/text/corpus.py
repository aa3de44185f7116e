"""Documents (embedded, local files, a Hub data set) to token windows `[n, context]`.

A window is a stretch of documents packed one behind the other, each after a separator, and cut
every `context` tokens. Training and held-out windows share no document.
"""

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_mlflow.config import TextSettings
from sae_mlflow.errors import UserError
from sae_mlflow.text.documents import documents

_DOCUMENTS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Windows:
    """What the LM reads."""

    train: np.ndarray
    """int32 `[n_train, context]`."""
    held_out: np.ndarray
    """int32 `[n_held_out, context]`."""
    special_ids: frozenset[int]
    """Tokens whose positions are left out of training: the tokenizer's special ones and the
    separator."""
    source: str
    """What was read, for the record."""
    sha256: str
    """Over everything that decides which tokens are kept: both splits and the special ids."""
    note: str = ""
    """What a user should know: that there was less text than `text.tokens`."""

    @property
    def context(self) -> int:
        return int(self.train.shape[1])

    @property
    def n_tokens(self) -> int:
        return int(self.train.size + self.held_out.size)

    def kept(self, windows: np.ndarray) -> np.ndarray:
        """Which positions of `windows [n, context]` may be trained on: bool `[n, context]`.

        A window's first position is left out as well: it has nothing to attend to, and models make
        it an attention sink with a norm over 100 times the usual.
        """
        kept = np.isin(windows, np.fromiter(self.special_ids, np.int32), invert=True)
        kept[:, 0] = False
        return kept


def token_windows(text: TextSettings, tokenizer: Any) -> Windows:
    """Read, shuffle, tokenize and pack documents until there are `text.tokens` tokens.

    Raises:
        UserError: no such text, or too little for one window on either side.
    """
    separator = _separator(tokenizer)
    source, texts = documents(text)
    asked_held_out, asked_train = _asked(text)
    train, held_out = array("i"), array("i")
    for ids in _tokenized(texts, tokenizer):
        if len(train) >= asked_train and len(held_out) >= asked_held_out:
            break
        share = text.held_out_fraction * (len(train) + len(held_out))
        behind = len(held_out) < share and len(held_out) < asked_held_out
        side = held_out if behind or len(train) >= asked_train else train
        side.extend(ids if separator is None else [separator, *ids])
    if min(len(train), len(held_out)) < text.context:
        raise UserError(_too_little(source, text, len(train), len(held_out)))
    windows = _cut(train, asked_train, text), _cut(held_out, asked_held_out, text)
    special_ids = _special_ids(tokenizer, separator)
    return Windows(
        train=windows[0],
        held_out=windows[1],
        special_ids=special_ids,
        source=source,
        sha256=_digest(windows, special_ids),
        note=_note(windows[0].size + windows[1].size, asked_train + asked_held_out, source),
    )


def _note(n_tokens: int, asked: int, source: str) -> str:
    if n_tokens == asked:
        return ""
    return f"{source} gives {n_tokens:,} tokens, fewer than the {asked:,} asked for; all are used."


def _asked(text: TextSettings) -> tuple[int, int]:
    """Tokens wanted in the held-out and in the training split: whole windows, one at least."""
    n_windows = max(2, text.tokens // text.context)
    n_held_out = min(max(1, round(n_windows * text.held_out_fraction)), n_windows - 1)
    return n_held_out * text.context, (n_windows - n_held_out) * text.context


def _cut(tokens: array, asked: int, text: TextSettings) -> np.ndarray:
    n_windows = min(len(tokens), asked) // text.context
    whole = np.frombuffer(tokens, dtype=np.int32, count=n_windows * text.context)
    return whole.reshape(n_windows, text.context)


def _digest(splits: tuple[np.ndarray, ...], special_ids: frozenset[int]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(special_ids)).encode())
    for windows in splits:
        digest.update(f"{windows.shape}".encode())
        digest.update(windows.tobytes())
    return digest.hexdigest()


def _too_little(source: str, text: TextSettings, n_train: int, n_held_out: int) -> str:
    if n_train + n_held_out == 0:
        return f"There is no text in {source}. Give text.source something to read."
    return (
        f"{source} gives {n_train:,} tokens for training and {n_held_out:,} held out, but each "
        f"needs a window of text.context = {text.context}, from documents of its own. Give more "
        "text or more documents (blank lines part a .txt file), or lower text.context."
    )


def _separator(tokenizer: Any) -> int | None:
    """The token that comes before each document: what the model saw there in its own training."""
    begins = tokenizer("a").input_ids[:1]
    if tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id]:
        return int(tokenizer.bos_token_id)
    return tokenizer.get_vocab().get("<|endoftext|>", tokenizer.eos_token_id)


def _special_ids(tokenizer: Any, separator: int | None) -> frozenset[int]:
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    separators = set() if separator is None else {separator}
    return frozenset(map(int, added | set(tokenizer.all_special_ids) | separators))


def _tokenized(texts: Iterator[str], tokenizer: Any) -> Iterator[list[int]]:
    while batch := list(itertools.islice(texts, _DOCUMENTS_AT_ONCE)):
        yield from tokenizer(
            batch,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # that a document is longer than the model reads is no news here
        ).input_ids
