"""`TokenTexts`: single tokens as text and as bytes, as log-probabilities name them."""

from __future__ import annotations

import re
from functools import cache, cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_START = "\u2581"
"""What SentencePiece has instead of a space."""


class TokenTexts:
    """The texts of a tokenizer's tokens.

    A token may be a part of a character; its text is then `bytes:\\xe2\\x82`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
        self._texts: dict[int, tuple[str, list[int] | None]] = {}

    def text(self, token_id: int) -> str:
        """The text of a token, different from those of others."""
        return self._text_and_bytes(token_id)[0]

    def utf8(self, token_id: int) -> list[int] | None:
        """The bytes of a token; None for an id that the tokenizer does not have."""
        return self._text_and_bytes(token_id)[1]

    def n_characters(self, token_id: int) -> int:
        """The number of characters that begin in a token."""
        return sum(byte & 0xC0 != 0x80 for byte in self.utf8(token_id) or ())  # the others continue a character

    def _text_and_bytes(self, token_id: int) -> tuple[str, list[int] | None]:
        found = self._texts.get(token_id)
        if found is None:
            found = self._texts[token_id] = self._look_up(token_id)
        return found

    def _look_up(self, token_id: int) -> tuple[str, list[int] | None]:
        written = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(written, str):  # models may have more embeddings than their tokenizer has tokens
            return f"token_id:{token_id}", None
        raw = self._bytes(token_id, written)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return text, list(raw)

    def _bytes(self, token_id: int, written: str) -> bytes:
        """The bytes of a token that the vocabulary has in this form."""
        if token_id in self._added:
            return self._added[token_id].encode()
        if self._writes_bytes:
            table = _byte_of_character()
            if all(character in table for character in written):
                return bytes(table[character] for character in written)
        if byte := _BYTE.fullmatch(written):
            return bytes.fromhex(byte[1])
        return written.replace(_WORD_START, " ").encode()

    @cached_property
    def _writes_bytes(self) -> bool:
        """Whether the vocabulary has a character for each byte, as that of GPT-2."""
        space = self._tokenizer.get_vocab().get("\u0120")
        return space is not None and self._tokenizer.decode([space]) == " "


@cache
def _byte_of_character() -> dict[str, int]:
    """The bytes of the characters that byte-level vocabularies have for them: `Ġ` for the space.

    The printable characters of Latin-1 stand for themselves, and those from U+0100 for the others, in order (Radford et
    al. 2019, Language Models are Unsupervised Multitask Learners; the table is that of their code).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
