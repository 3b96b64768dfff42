"""Better and worse answers to a prompt: for reward models and preference optimization."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from reallm.data.chat import Conversation
from reallm.data.datasets import DatasetUtility
from reallm.data.namedarray import NamedArray
from reallm.data.row_sources import Source
from reallm.data.rows import Row, read_rows
from reallm.seeding import derive_seed
from reallm_datasets.config import Overlong, PairedComparisonDatasetConfig, check_at_least, check_overlong
from reallm_datasets.encoding import Encoded, Encoder, PromptAnswer
from reallm_datasets.limits import truncate_or_drop
from reallm_datasets.progress import tokenizer_batches
from reallm_datasets.report import Report
from reallm_datasets.sequences import SequenceBuilder

Text = PromptAnswer | Conversation
Pair = tuple[Text, Text]


class PairedComparisonDataset(torch.utils.data.Dataset[NamedArray]):
    """Samples of k pairs: `input_ids` int64 with 2k sequences, better and worse in turn, and `prompt_lens` int64 [2k].

    `prompt_lens` says how many tokens at the beginning of each sequence are the prompt's. Rows have one of

    - `prompt` with the lists `pos_answers` and `neg_answers`, equally long: the i-th of one is better than the
      i-th of the other;
    - `prompt`, `chosen` and `rejected`, as texts;
    - `chosen` and `rejected` as conversations that differ in the assistant's last turn; what they have in common may
      be left out of them and given as `prompt`.

    Args:
        util: seed, ranks and tokenizer.
        path: where the rows come from, as `reallm.data.rows.read_rows` takes it.
        max_pairs_per_prompt: use at most so many pairs of a row, chosen by the seed and the row's id.
        max_seqlen: longest sequence in tokens.
        overlong: "truncate" cuts the end off longer ones, "drop" leaves out pairs with a longer one. Pairs whose
            prompt alone fills `max_seqlen`, and pairs of equal sequences, are dropped in any case.

    Raises:
        ConfigError: if an argument is out of range.
        DataError: if a row is bad, or no sample is left.
    """

    def __init__(
        self,
        util: DatasetUtility,
        *,
        path: Source,
        max_pairs_per_prompt: int = PairedComparisonDatasetConfig.max_pairs_per_prompt,
        max_seqlen: int = PairedComparisonDatasetConfig.max_seqlen,
        overlong: Overlong = PairedComparisonDatasetConfig.overlong,
    ) -> None:
        check_at_least("max_pairs_per_prompt", max_pairs_per_prompt, 1)
        check_at_least("max_seqlen", max_seqlen, 2)
        check_overlong(overlong)
        rows = util.shard(read_rows(path))
        encoder = Encoder(util.tokenizer)
        self._report = Report(path, len(rows))
        ids, prompt_lens, first = SequenceBuilder(np.int32), array("q"), array("q", [0])
        names: list[str] = []
        for batch in tokenizer_batches(rows, util):
            pairs = [_chosen(_pairs(row, encoder), max_pairs_per_prompt, row, util.seed) for row in batch]
            texts = [text for of_row in pairs for pair in of_row for text in pair]
            sequences = iter(encoder.sequences(texts))
            for row, of_row in zip(batch, pairs, strict=True):
                kept = self._kept(sequences, len(of_row), max_seqlen, overlong)
                if not kept:
                    self._report.count("without a pair left")
                    continue
                for sequence in kept:
                    ids.append(sequence.ids)
                    prompt_lens.append(int(sequence.answer_mask.argmax()))
                first.append(len(prompt_lens))
                names.append(row.id)
        if not names:
            raise self._report.no_samples_error("raise max_seqlen, or look at the answers")
        self._ids, self._names = ids.build(), names
        self._prompt_lens = np.frombuffer(prompt_lens, np.int64)
        self._first = np.frombuffer(first, np.int64)

    def _kept(self, sequences: Iterator[Encoded], n_pairs: int, max_seqlen: int, overlong: Overlong) -> list[Encoded]:
        """The sequences of the next pairs, without those pairs that are dropped."""
        kept: list[Encoded] = []
        for _ in range(n_pairs):
            fitted = [truncate_or_drop(next(sequences), max_seqlen, overlong) for _ in range(2)]
            pair = [sequence for sequence, _ in fitted if sequence is not None]
            what = {what for _, what in fitted if what}
            dropped = {phrase for phrase in what if phrase.startswith("dropped")}
            if not dropped and np.array_equal(pair[0].ids, pair[1].ids):
                dropped = {"dropped: both answers are the same"}
            for phrase in sorted(dropped or what):
                self._report.count(f"pairs {phrase}")
            if not dropped:
                kept += pair
        return kept

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> NamedArray:
        if not 0 <= i < len(self):
            raise IndexError(i)
        start, end = self._first[i], self._first[i + 1]
        sequences = [self._ids[s] for s in range(start, end)]
        return NamedArray(
            input_ids=torch.from_numpy(np.concatenate(sequences).astype(np.int64)),
            prompt_lens=torch.tensor(self._prompt_lens[start:end]),
        ).with_metadata(
            seqlens={"input_ids": (tuple(map(len, sequences)),), "prompt_lens": ((1,) * len(sequences),)},
            ids=(self._names[i],),
        )

    def report(self) -> str:
        """One line: rows read, samples, pairs and tokens made of them, and what was cut or dropped, and why."""
        n_pairs, n_tokens = len(self._ids) // 2, len(self._ids.values)
        return self._report.line(f"{len(self):,} samples, {n_pairs:,} pairs, {n_tokens:,} tokens")


def _pairs(row: Row, encoder: Encoder) -> list[Pair]:
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
        better, worse = (encoder.chat.conversation(one, row, only_last=True) for one in (chosen, rejected))
        return [(better, worse)]
    prompt = row.text("prompt")
    return [(PromptAnswer(prompt, row.text("chosen")), PromptAnswer(prompt, row.text("rejected")))]


def _messages(row: Row, key: str) -> list[dict[str, Any]]:
    """The whole conversation of `chosen` or `rejected`, with what comes from `prompt` if it begins with the answer."""
    given = row.values.get(key)
    answer = [{"role": "assistant", "content": row.text(key)}] if isinstance(given, str) else row.messages(key)
    if answer[-1]["role"] != "assistant":
        raise row.error(f"key '{key}': the last message is the {answer[-1]['role']}'s, wanted the assistant's")
    if answer[0]["role"] != "assistant" and isinstance(row.values.get("prompt"), str | None):
        return answer  # the conversation is whole; a `prompt` of text repeats its question
    if isinstance(row.values.get("prompt"), str):
        return [{"role": "user", "content": row.text("prompt")}, *answer]
    return [*row.messages("prompt"), *answer]


def _chosen(pairs: list[Pair], at_most: int, row: Row, seed: int) -> list[Pair]:
    if len(pairs) <= at_most:
        return pairs
    random = np.random.default_rng(derive_seed(seed, "pairs", row.id))
    return [pairs[i] for i in sorted(random.choice(len(pairs), at_most, replace=False))]
