"""PaliGemma's tokens: by the published tokenizer.json, or a stand-in for random weights."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vlaprune.errors import UserError
from vlaprune.nn.hub import locate

BEGIN = 2  # <bos>
KEPT = 256  # texts whose tokens are remembered


@dataclass(frozen=True)
class Text:
    """Token ids of a whole text; `told` are the numbers of those that are the instruction."""

    ids: tuple[int, ...]
    told: range


class Words:
    """Turns text into tokens.

    encode  text -> ids, without special tokens
    file    the tokenizer.json that it was read from; None for the stand-in
    """

    def __init__(self, encode: Callable[[str], list[int]], file: Path | None = None) -> None:
        self._encode = lru_cache(KEPT)(encode)
        self.file = file

    def plain(self, instruction: str) -> Text:
        """The tokens of begin, instruction and line break; the line break is encoded by itself."""
        ids = self._encode(instruction)
        return Text((BEGIN, *ids, *self._encode("\n")), range(1, 1 + len(ids)))

    def form(self, before: str, instruction: str, after: str) -> Text:
        """The tokens of begin and of `before`, a space, `instruction` and `after`, encoded as one text."""
        ids = self._encode(f"{before} {instruction}{after}")
        start = 1 + len(self._encode(before))
        stop = 1 + len(self._encode(f"{before} {instruction}"))
        return Text((BEGIN, *ids), range(start, stop))


def tokenizer_of(source: str | None, vocabulary: int) -> Words:
    """Turns text into tokens by the tokenizer.json in a folder or a repository of the hub; None for the stand-in.

    UserError where it is not PaliGemma's, or has more tokens than the model has embeddings.
    """
    if source is None:
        return Words(lambda text: stand_in(text, vocabulary))
    from tokenizers import Tokenizer

    folder = Path(locate(source, ("tokenizer.json",), "tokenizer"))
    file = folder if folder.is_file() else folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exceptions
        raise UserError(f"{file} cannot be read ({error}); set model.tokenizer to PaliGemma's") from None
    tokenizer.no_padding()  # a file may keep these of its last use
    tokenizer.no_truncation()
    begin = tokenizer.token_to_id("<bos>")
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    line = tokenizer.encode("\n", add_special_tokens=False).ids
    if begin != BEGIN or size > vocabulary or len(line) != 1:
        raise UserError(
            f"{file} is not PaliGemma's: <bos> is {begin} instead of {BEGIN}, a line break makes {len(line)} tokens, "
            f"and it has {size} for {vocabulary} embeddings"
        )
    return Words(lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids), file)


def stand_in(text: str, vocabulary: int) -> list[int]:
    """Token ids for random weights: one for each word, digit, sign and line break, fixed by its letters."""
    parts = re.findall(r"[^\W\d]+|\d|[^\w\s]|\n", text)
    return [3 + zlib.crc32(p.encode()) % (vocabulary - 3) for p in parts]
