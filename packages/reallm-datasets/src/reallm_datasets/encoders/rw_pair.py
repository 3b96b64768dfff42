"""Encodes better and worse answers to a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reallm.data.chat.template import Conversation
from reallm.data.messages import Message, Tool, read_messages, read_tools
from reallm.data.rows import Row
from reallm.data.tokenization.encoder import EncodedRow
from reallm.seeding import derive_seed
from reallm_datasets.config import Overlong
from reallm_datasets.encoding import Encoded, Encoder, PromptAnswer
from reallm_datasets.limits import truncate_or_drop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Text = PromptAnswer | Conversation
Pair = tuple[Text, Text]


class PairEncoder:
    """Fields of k pairs: `input_ids` int32 of 2k sequences, better and worse in turn, `seqlens` and `prompt_lens`.

    `seqlens` int64 [2k] are the lengths of the sequences; `prompt_lens` int64 [2k] says how many tokens at the
    beginning of each are the prompt's.

    Args:
        tokenizer: the model's tokenizer.
        max_pairs_per_prompt: use at most so many pairs of a row, chosen by `seed` and the row's id.
        max_seqlen: longest sequence in tokens.
        overlong: what to do with longer ones: "truncate" them, or "drop" their pairs.
        seed: seed of the choice of pairs.
        tools: tools of conversations that have none of their own.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_pairs_per_prompt: int,
        max_seqlen: int,
        overlong: Overlong,
        seed: int,
        tools: Sequence[Tool],
    ) -> None:
        self._encoder = Encoder(tokenizer)
        self._max_pairs_per_prompt = max_pairs_per_prompt
        self._max_seqlen = max_seqlen
        self._overlong = overlong
        self._seed = seed
        self._tools = tools

    def encode(self, rows: Sequence[Row]) -> list[EncodedRow]:
        """See `reallm.data.tokenization.encoder.RowEncoder`."""
        pairs = [_chosen(self._pairs(row), self._max_pairs_per_prompt, row, self._seed) for row in rows]
        texts = [text for of_row in pairs for pair in of_row for text in pair]
        sequences = iter(self._encoder.sequences(texts))
        return [self._encoded(sequences, of_row) for of_row in pairs]

    def _encoded(self, sequences: Iterator[Encoded], pairs: Sequence[Pair]) -> EncodedRow:
        """What becomes of the next pairs."""
        kept: list[Encoded] = []
        remarks: list[str] = []
        for better, _ in pairs:
            remarks += better.remarks if isinstance(better, Conversation) else ()
            fitted = [truncate_or_drop(next(sequences), self._max_seqlen, self._overlong) for _ in range(2)]
            pair = [sequence for sequence, _ in fitted if sequence is not None]
            what = {what for _, what in fitted if what}
            dropped = {phrase for phrase in what if phrase.startswith("dropped")}
            if not dropped and np.array_equal(pair[0].ids, pair[1].ids):
                dropped = {"dropped: both answers are the same"}
            remarks += [f"pairs {phrase}" for phrase in sorted(dropped or what)]
            if not dropped:
                kept += pair
        if not kept:
            return EncodedRow(None, (*remarks, "without a pair left"))
        fields = {
            "input_ids": np.concatenate([sequence.ids for sequence in kept]),
            "seqlens": np.array([len(sequence.ids) for sequence in kept], np.int64),
            "prompt_lens": np.array([sequence.answer_mask.argmax() for sequence in kept], np.int64),
        }
        return EncodedRow(fields, tuple(remarks))

    def _pairs(self, row: Row) -> list[Pair]:
        """All pairs of a row, the better one first."""
        if "pos_answers" in row or "neg_answers" in row:
            prompt, pos, neg = row.text("prompt"), row.texts("pos_answers"), row.texts("neg_answers")
            if len(pos) != len(neg):
                raise row.error(
                    f"keys 'pos_answers' and 'neg_answers': found {len(pos)} and {len(neg)} texts, wanted as many"
                )
            return [(PromptAnswer(prompt, p), PromptAnswer(prompt, n)) for p, n in zip(pos, neg, strict=True)]
        row.need_one_of("chosen", "pos_answers")
        if isinstance(row.values["chosen"], list) or isinstance(row.values.get("prompt"), list):
            chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
            if chosen[:-1] != rejected[:-1]:
                raise row.error("keys 'chosen' and 'rejected': the conversations differ before their last message")
            return [(self._answer(chosen, row), self._answer(rejected, row))]
        prompt = row.text("prompt")
        return [(PromptAnswer(prompt, row.text("chosen")), PromptAnswer(prompt, row.text("rejected")))]

    def _answer(self, messages: list[Message], row: Row) -> Conversation:
        chat = self._encoder.chat.conversation(messages, row, read_tools(row, self._tools), train_on="last")
        if not chat.turns:
            raise row.error(chat.remarks[0].removeprefix("dropped: "))
        return chat


def _messages(row: Row, key: str) -> list[Message]:
    """The whole conversation of `chosen` or `rejected`, with what comes from `prompt` if it begins with the answer."""
    given = row.values.get(key)
    answer: list[Message] = (
        [{"role": "assistant", "content": row.text(key)}] if isinstance(given, str) else read_messages(row, key)
    )
    if answer[-1]["role"] != "assistant":
        raise row.error(f"key '{key}': the last message is the {answer[-1]['role']}'s, wanted the assistant's")
    if answer[0]["role"] != "assistant" and isinstance(row.values.get("prompt"), str | None):
        return answer  # the conversation is whole; a `prompt` of text repeats its question
    if isinstance(row.values.get("prompt"), str):
        return [{"role": "user", "content": row.text("prompt")}, *answer]
    return [*read_messages(row, "prompt"), *answer]


def _chosen(pairs: list[Pair], at_most: int, row: Row, seed: int) -> list[Pair]:
    if len(pairs) <= at_most:
        return pairs
    random = np.random.default_rng(derive_seed(seed, "pairs", row.id))
    return [pairs[i] for i in sorted(random.choice(len(pairs), at_most, replace=False))]
