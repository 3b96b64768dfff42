"""Encodes prompts with their answers, and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reallm.data.chat import Conversation
from reallm.data.rows import Row
from reallm.data.tokenization.encoder import EncodedRow
from reallm_datasets.config import Overlong
from reallm_datasets.encoding import Encoded, Encoder, PromptAnswer
from reallm_datasets.limits import truncate_or_drop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptAnswerEncoder:
    """Fields `input_ids` int32 [L] and `loss_mask` bool [L], True for the tokens that are trained as targets.

    Args:
        tokenizer: the model's tokenizer.
        max_seqlen: longest sequence in tokens.
        overlong: what to do with longer ones: "truncate" or "drop".
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_seqlen: int, overlong: Overlong) -> None:
        self._encoder = Encoder(tokenizer)
        self._max_seqlen = max_seqlen
        self._overlong = overlong

    def encode(self, rows: Sequence[Row]) -> list[EncodedRow]:
        """See `reallm.data.tokenization.encoder.RowEncoder`."""
        texts = [_text(row, self._encoder) for row in rows]
        return [self._encoded(*one) for one in zip(texts, self._encoder.sequences(texts), strict=True)]

    def _encoded(self, text: PromptAnswer | Conversation, sequence: Encoded) -> EncodedRow:
        kept, phrase = truncate_or_drop(sequence, self._max_seqlen, self._overlong)
        remarks: tuple[str, ...] = (phrase,) if phrase else ()
        if kept is None:
            return EncodedRow(None, remarks)
        if isinstance(text, PromptAnswer) and not text.answer:
            remarks += ("with an empty answer",)
        kept.answer_mask[0] = False  # no token before it to predict it from
        return EncodedRow({"input_ids": kept.ids, "loss_mask": kept.answer_mask}, remarks)


def _text(row: Row, encoder: Encoder) -> PromptAnswer | Conversation:
    if "messages" in row:
        return encoder.chat.conversation(row.messages("messages"), row)
    row.need_one_of("messages", "prompt")
    return PromptAnswer(row.text("prompt"), row.text("answer"))
