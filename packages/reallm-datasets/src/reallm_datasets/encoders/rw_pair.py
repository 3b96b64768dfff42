"""Encodes better and worse answers to a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reallm.data.chat.template import Conversation
from reallm.data.messages import Tool
from reallm.data.row_formats.pairs import prompt_was_found
from reallm.data.rows import Row
from reallm.data.tokenization.encoder import EncodedRow
from reallm.seeding import derive_seed
from reallm_datasets.config import Overlong
from reallm_datasets.encoders.pairs import Pair, has_empty_answer, read_pairs
from reallm_datasets.encoding import Encoded, Encoder
from reallm_datasets.limits import truncate_or_drop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PairEncoder:
    """Fields of k pairs: `input_ids` int32 of 2k sequences, better and worse in turn, `seqlens` and `prompt_lens`.

    `seqlens` int64 [2k] are the lengths of the sequences; `prompt_lens` int64 [2k] says how many tokens at the
    beginning of each are the prompt's; `margins` float32 [k] has 0 for pairs without one.

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
        pairs = [
            _chosen(read_pairs(row, self._encoder, self._tools), self._max_pairs_per_prompt, row, self._seed)
            for row in rows
        ]
        texts = [text for of_row in pairs for pair in of_row for text in (pair.chosen, pair.rejected)]
        sequences = iter(self._encoder.sequences(texts, at_most=self._max_seqlen))
        return [self._encoded(sequences, of_row, row) for of_row, row in zip(pairs, rows, strict=True)]

    def _encoded(self, sequences: Iterator[Encoded], pairs: Sequence[Pair], row: Row) -> EncodedRow:
        """What becomes of the next pairs, those of `row`."""
        kept: list[Encoded] = []
        margins: list[float] = []
        remarks = ["with a prompt that both answers begin with"] if prompt_was_found(row) else []
        remarks += ["with a margin"] if "margin" in row else []
        for pair in pairs:
            remarks += pair.chosen.remarks if isinstance(pair.chosen, Conversation) else ()
            whole = [next(sequences), next(sequences)]
            fitted = [truncate_or_drop(one, self._max_seqlen, self._overlong) for one in whole]
            both = [sequence for sequence, _ in fitted if sequence is not None]
            what = {what for _, what in fitted if what}
            dropped = {phrase for phrase in what if phrase.startswith("dropped")}
            # of sequences that are far too long, only the beginnings are tokenized
            is_whole = len(whole[0].ids) <= self._max_seqlen or pair.chosen == pair.rejected
            if is_whole and np.array_equal(whole[0].ids, whole[1].ids):
                dropped = {"dropped: both answers are the same"}
            elif not dropped and np.array_equal(both[0].ids, both[1].ids):
                dropped = {f"dropped: the answers do not differ within {self._max_seqlen} tokens"}
            remarks += [f"pairs {phrase}" for phrase in sorted(dropped or what)]
            if dropped:
                continue
            if has_empty_answer(pair.chosen) or has_empty_answer(pair.rejected):
                remarks.append("pairs with an empty answer")
            kept += both
            margins.append(pair.margin)
        if not kept:
            return EncodedRow(None, (*remarks, "without a pair left"))
        fields = {
            "input_ids": np.concatenate([sequence.ids for sequence in kept]),
            "seqlens": np.array([len(sequence.ids) for sequence in kept], np.int64),
            "prompt_lens": np.array([sequence.prompt_len for sequence in kept], np.int64),
            "margins": np.array(margins, np.float32),
        }
        return EncodedRow(fields, tuple(remarks))


def _chosen(pairs: list[Pair], at_most: int, row: Row, seed: int) -> list[Pair]:
    if len(pairs) <= at_most:
        return pairs
    random = np.random.default_rng(derive_seed(seed, "pairs", row.id))
    return [pairs[i] for i in sorted(random.choice(len(pairs), at_most, replace=False))]
