"""Captions → token ids, once, while indexing: planning needs their counts, rendering copies them into batches.

In: a Hugging Face `tokenizer.json` that the user names, or nothing: then the tokens are the bytes of UTF-8 and an end
mark. Out: counts and ids, and what names the tokenizer in the index. Nobody tokenises after this, so planner and
renderer cannot disagree, and a daemon needs no tokenizer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import IndexFileError

BYTES = "bytes"
"""The hash of the tokenizer that needs no file."""

BYTES_END = 256
"""Its end mark, which closes every caption and is counted; ids below it are the bytes."""


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What an index says of its captions' tokens.

    Attributes:
        hash: names the tokenizer; empty without captions.
        vocabulary: ids are below this; 0 without captions.
        end: the id that closes every caption; −1 where the tokenizer sets no such mark.
    """

    hash: str
    vocabulary: int
    end: int


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Tokenises.

    Attributes:
        facts: what the index is to say of it.
        columns: captions → `caption_tokens` (i32 counts, 0 without a caption) and `caption_ids` (lists of i32; null
            where the tokens are the bytes).
    """

    facts: TokenFacts
    columns: Callable[[Sequence[str | None]], dict[str, Any]]


def load_tokenizer(path: str | os.PathLike[str] | None) -> Tokenizer:
    """The tokenizer at `path`, or that of bytes for None.

    Truncation and padding that the file asks for are switched off: captions are cut by the plan.

    Raises:
        IndexFileError: the file is missing or no tokenizer, or the package `tokenizers` is not installed.
    """
    if path is None:
        return Tokenizer(TokenFacts(BYTES, BYTES_END + 1, BYTES_END), _bytes)
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as e:
        raise IndexFileError(f"tokenizer '{os.fspath(path)}' cannot be read: {e.strerror}") from None
    try:
        import tokenizers
    except ImportError:
        raise IndexFileError(
            "a tokenizer.json needs the package 'tokenizers': pip install tokenizers (our extra 'captions'), or index without "
            "it, by bytes"
        ) from None
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        vocabulary = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        trial = tokenizer.encode("a")
    except Exception as e:  # the package raises nothing narrower
        raise IndexFileError(f"'{os.fspath(path)}' is no tokenizer.json: {e}") from None
    end = trial.ids[-1] if trial.ids and trial.special_tokens_mask[-1] else -1

    def columns(captions: Sequence[str | None]) -> dict[str, Any]:
        given = [caption for caption in captions if caption]
        try:
            encoded = iter(tokenizer.encode_batch(given) if given else [])
        except Exception as e:  # the package raises nothing narrower
            raise IndexFileError(
                f"tokenizer '{os.fspath(path)}' cannot say {_unsayable(tokenizer, given)!r}: {e}; give it an unknown token "
                "that is in its vocabulary, or index without it, by bytes"
            ) from None
        ids = [next(encoded).ids if caption else [] for caption in captions]
        offsets = np.zeros(len(ids) + 1, np.int32)
        np.cumsum([len(each) for each in ids], out=offsets[1:])
        flat = pa.array(np.fromiter((i for each in ids for i in each), np.int32, int(offsets[-1])))
        return {"caption_tokens": np.diff(offsets), "caption_ids": pa.ListArray.from_arrays(offsets, flat)}

    return Tokenizer(TokenFacts(hashlib.blake2b(content, digest_size=16).hexdigest(), vocabulary, end), columns)


def _unsayable(tokenizer: Any, captions: Sequence[str]) -> str:
    """The first caption that a tokenizer has no tokens for, cut to what a message can show."""
    for caption in captions:
        try:
            tokenizer.encode(caption)
        except Exception:
            return caption[:80]
    return ""


def checked_caption(caption: object) -> str | None:
    """A caption as sources take it; a blank one is none.

    Raises:
        ValueError: it is no text, or holds half a surrogate pair, which no UTF-8 can say.
    """
    if caption is None:
        return None
    if not isinstance(caption, str):
        raise ValueError(f"caption {repr(caption)[:80]} is no text")
    if not caption.strip():
        return None
    try:
        caption.encode()
    except UnicodeEncodeError:
        raise ValueError(f"caption {caption[:80]!r} cannot be written as UTF-8") from None
    return caption


def _bytes(captions: Sequence[str | None]) -> dict[str, Any]:
    counts = [len(caption.encode()) + 1 if caption else 0 for caption in captions]
    return {"caption_tokens": np.array(counts, np.int32), "caption_ids": pa.nulls(len(counts), pa.list_(pa.int32()))}
