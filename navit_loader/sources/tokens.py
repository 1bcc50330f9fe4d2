"""Caption → how many tokens it has, which is what planning needs of it.

In: a Hugging Face `tokenizer.json` that the user names, or nothing: then a token is a byte of UTF-8. Out: counts, and
the tokenizer's hash, which stands in the index so that another tokenizer is noticed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import IndexFileError

BYTES = "bytes"
"""The hash of the tokenizer that needs no file."""


@dataclass(frozen=True)
class Tokenizer:
    """Counts tokens.

    Attributes:
        hash: names the tokenizer.
        count: captions → token counts, 0 where there is no caption.
    """

    hash: str
    count: Callable[[Sequence[str | None]], list[int]]


def load_tokenizer(path: str | os.PathLike[str] | None) -> Tokenizer:
    """The tokenizer at `path`, or that of bytes for None.

    Raises:
        IndexFileError: the file is missing or no tokenizer, or the package `tokenizers` is not installed.
    """
    if path is None:
        return Tokenizer(
            BYTES, lambda captions: [0 if caption is None else len(caption.encode()) for caption in captions]
        )
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as e:
        raise IndexFileError(f"tokenizer '{os.fspath(path)}' cannot be read: {e.strerror}") from None
    try:
        import tokenizers
    except ImportError:
        raise IndexFileError("counting caption tokens with a tokenizer.json needs the package 'tokenizers'") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as e:  # the package raises nothing narrower
        raise IndexFileError(f"'{os.fspath(path)}' is no tokenizer.json: {e}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(captions: Sequence[str | None]) -> list[int]:
        if not any(captions):
            return [0] * len(captions)
        encoded = tokenizer.encode_batch([caption or "" for caption in captions])
        return [len(each.ids) if caption else 0 for each, caption in zip(encoded, captions, strict=True)]

    return Tokenizer(hashlib.blake2b(content, digest_size=16).hexdigest(), count)
