"""Encodes completions of prompts, each with a label that says whether it is good."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reallm.data.chat.template import Conversation
from reallm.data.messages import Tool, read_messages
from reallm.data.row_formats.formats import check_column
from reallm.data.row_formats.pairs import prompt_was_found
from reallm.data.rows import Row, describe
from reallm.data.tokenization.encoder import EncodedRow
from reallm_datasets.config import Overlong
from reallm_datasets.encoders.pairs import Text, has_empty_answer, has_pairs, last_answer, read_pairs
from reallm_datasets.encoding import Encoded, Encoder, PromptAnswer
from reallm_datasets.limits import truncate_or_drop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Labelled = tuple[Text, bool]
"""A completion with its prompt, and whether it is good."""

GOOD, BAD = ("true", "1", "chosen", "desirable"), ("false", "0", "rejected", "undesirable")
"""Labels as text, in lower case: tables of text have them so."""


class UnpairedPreferenceEncoder:
    """Fields of k completions of a prompt: `input_ids` int32 of k sequences, `seqlens`, `prompt_lens` and `labels`.

    `seqlens` int64 [k] are the lengths of the sequences; `prompt_lens` int64 [k] says how many tokens at the beginning
    of each are the prompt's; `labels` bool [k] says which completions are good. A row has one completion, or those of
    its pairs.

    Args:
        tokenizer: the model's tokenizer.
        max_seqlen: longest sequence in tokens.
        overlong: what to do with longer ones: "truncate" or "drop".
        tools: tools of conversations that have none of their own.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_seqlen: int, overlong: Overlong, tools: Sequence[Tool]
    ) -> None:
        self._encoder = Encoder(tokenizer)
        self._max_seqlen = max_seqlen
        self._overlong = overlong
        self._tools = tools

    def encode(self, rows: Sequence[Row]) -> list[EncodedRow]:
        """See `reallm.data.tokenization.encoder.RowEncoder`."""
        completions = [self._completions(row) for row in rows]
        texts = [text for of_row in completions for text, _ in of_row]
        sequences = iter(self._encoder.sequences(texts, at_most=self._max_seqlen))
        return [self._encoded(sequences, of_row, row) for of_row, row in zip(completions, rows, strict=True)]

    def _encoded(self, sequences: Iterator[Encoded], completions: Sequence[Labelled], row: Row) -> EncodedRow:
        """What becomes of the next completions, those of `row`."""
        remarks = ["with a prompt that both answers begin with"] if prompt_was_found(row) else []
        remarks += [] if completions else ["dropped: both answers are the same"]
        kept: list[tuple[Encoded, bool]] = []
        for text, label in completions:
            remarks += text.remarks if isinstance(text, Conversation) else ()
            sequence, phrase = truncate_or_drop(next(sequences), self._max_seqlen, self._overlong)
            remarks += [phrase] if phrase else []
            if sequence is not None:
                remarks += ["with an empty completion"] if has_empty_answer(text) else []
                kept.append((sequence, label))
        remarks = list(dict.fromkeys(remarks))
        if not kept:
            return EncodedRow(None, tuple(remarks))
        fields = {
            "input_ids": np.concatenate([sequence.ids for sequence, _ in kept]),
            "seqlens": np.array([len(sequence.ids) for sequence, _ in kept], np.int64),
            "prompt_lens": np.array([sequence.prompt_len for sequence, _ in kept], np.int64),
            "labels": np.array([label for _, label in kept], np.bool_),
        }
        return EncodedRow(fields, tuple(remarks))

    def _completions(self, row: Row) -> list[Labelled]:
        """The completions of a row, and whether each is good; none of pairs of the same answer."""
        if has_pairs(row) and "label" not in row:
            pairs = read_pairs(row, self._encoder, self._tools)
            differing = [pair for pair in pairs if pair.chosen != pair.rejected]
            return [one for pair in differing for one in ((pair.chosen, True), (pair.rejected, False))]
        row.need_one_of("prompt", "messages")
        if "messages" in row and (self._encoder.has_chat or "prompt" not in row):
            messages = read_messages(row, "messages")
            if messages[-1]["role"] != "assistant":
                found = f"the last message is the {messages[-1]['role']}'s, wanted the assistant's"
                raise row.error(f"key '{_completion_key(row)}': {found}")
            text: Text = last_answer(messages, row, self._encoder, self._tools)
        else:
            key = "answer" if "answer" in row else "completion"
            check_column(row, key, "text")
            text = PromptAnswer(row.text("prompt"), row.text(key))
        return [(text, _label(row))]


def _completion_key(row: Row) -> str:
    """The key with the answer in the row's file."""
    found = next((key for key in ("completion", "answer", "messages") if row.original.get(key) is not None), "prompt")
    return row.name(found)


def _label(row: Row) -> bool:
    wanted = "true or false: whether the completion is good"
    check_column(row, "label", wanted)
    given: Any = row.values["label"]
    text = str(given).strip().lower() if isinstance(given, str) else ""
    if given in (0, 1) or text in (*GOOD, *BAD):
        return text in GOOD if text else bool(given)
    raise row.error(f"key '{row.name('label')}': found {describe(given)}, wanted {wanted}")
