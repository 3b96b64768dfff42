"""What each token of a sequence adds to its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\ufffd"
"""How tokenizers decode bytes that are not a whole character."""
MAX_PIECES = 8
"""Most tokens that one character is taken to consist of: it has at most four bytes, some tokens are empty text."""


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; together they are the text of the sequence.

    Of several tokens that make one character, such as the bytes of an emoji, the last one has it, and the others are
    empty. Special tokens are shown as they are written.
    """

    def decode(some: Sequence[int]) -> str:
        text = tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    # Some tokenizers drop the space before the first word, so each piece is decoded with the one before it.
    texts: list[str] = []
    before = done = 0
    for end in range(1, len(ids) + 1):
        context, text = decode(ids[before:done]), decode(ids[before:end])
        is_last = end == len(ids) or end - done >= MAX_PIECES
        if text.endswith(INCOMPLETE) and not is_last:
            texts.append("")
            continue
        texts.append(text[len(context) :])
        before, done = done, end
    return texts
