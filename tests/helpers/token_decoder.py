"""A decoder without a tokenizer: token 7 is the text `<7>`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from reallm.generation.text import TokenDecoder


class NumberDecoder(TokenDecoder):
    """Decodes each token to its number in angle brackets."""

    cleans_up = False  # type: ignore[assignment]

    def __init__(self) -> None:
        pass

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f"<{token}>" for token in ids)

    def kind(self, token_id: int) -> Literal["text", "byte", "skipped"]:
        return "text"
