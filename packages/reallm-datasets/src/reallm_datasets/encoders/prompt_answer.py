"""Encodes prompts with their answers, and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reallm.data.chat.template import Conversation, TrainOn
from reallm.data.messages import Tool, read_messages, read_tools
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
        train_on: what of a row is trained.
        tools: tools of conversations that have none of their own.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_seqlen: int,
        overlong: Overlong,
        train_on: TrainOn,
        tools: Sequence[Tool],
    ) -> None:
        self._encoder = Encoder(tokenizer)
        self._max_seqlen = max_seqlen
        self._overlong = overlong
        self._train_on = train_on
        self._tools = tools

    def encode(self, rows: Sequence[Row]) -> list[EncodedRow]:
        """See `reallm.data.tokenization.encoder.RowEncoder`."""
        texts = [self._text(row) for row in rows]
        sequences = self._encoder.sequences(texts, at_most=self._max_seqlen)
        return [self._encoded(*one) for one in zip(texts, sequences, strict=True)]

    def _encoded(self, text: PromptAnswer | Conversation, sequence: Encoded) -> EncodedRow:
        told = text.remarks if isinstance(text, Conversation) else ()
        if isinstance(text, Conversation) and not text.turns:
            return EncodedRow(None, told)
        if self._train_on == "all" and isinstance(text, PromptAnswer):
            sequence.answer_mask[:] = True
        kept, phrase = truncate_or_drop(sequence, self._max_seqlen, self._overlong)
        remarks = (*told, phrase) if phrase else told
        if kept is None:
            return EncodedRow(None, remarks)
        if isinstance(text, PromptAnswer) and not text.answer:
            remarks += ("with an empty answer",)
        kept.answer_mask[0] = False  # no token before it to predict it from
        return EncodedRow({"input_ids": kept.ids, "loss_mask": kept.answer_mask}, remarks)

    def _text(self, row: Row) -> PromptAnswer | Conversation:
        if row.original.get("completion") is not None and row.values.get("label") is False:
            raise row.error(
                f"key '{row.name('label')}': false marks a completion that should not be imitated, which "
                "dataset.name=unpaired_preference reads; leave such rows out, or remove the key if it means something "
                "else"
            )
        # rows in the format of Alpaca have a prompt for tokenizers without a chat template
        if "messages" in row and (self._encoder.has_chat or not ("prompt" in row and "answer" in row)):
            messages, tools = read_messages(row, "messages"), read_tools(row, self._tools)
            return self._encoder.chat.conversation(messages, row, tools, train_on=self._train_on)
        if "text" in row and "prompt" not in row:
            return PromptAnswer("", row.text("text"))
        row.need_one_of("messages", "prompt", "text")
        if "answer" not in row and "chosen" in row:
            raise row.error(
                "it has a better and a worse answer, which dataset.name=rw_pair reads; to train the better one, "
                f"give dataset.columns.answer={row.name('chosen')}"
            )
        return PromptAnswer(row.text("prompt"), row.text("answer"))
