"""Prompts with their answers, or conversations: for supervised fine-tuning."""

from __future__ import annotations

import numpy as np
import torch

from reallm.data.chat import Conversation
from reallm.data.datasets import DatasetUtility
from reallm.data.namedarray import NamedArray
from reallm.data.row_sources import Source
from reallm.data.rows import Row, read_rows
from reallm_datasets.config import Overlong, PromptAnswerDatasetConfig, check_at_least, check_overlong
from reallm_datasets.encoding import Encoder, PromptAnswer
from reallm_datasets.limits import truncate_or_drop
from reallm_datasets.progress import tokenizer_batches
from reallm_datasets.report import Report
from reallm_datasets.sequences import SequenceBuilder


class PromptAnswerDataset(torch.utils.data.Dataset[NamedArray]):
    """Samples of `input_ids` int64 [L] and `loss_mask` bool [L], True for the tokens that are trained as targets.

    Rows have the texts `prompt` and `answer`, or a conversation as `messages`, which comes first if both are there.
    Trained are the answer and the end-of-sequence token, or all turns of the assistant.

    Args:
        util: seed, ranks and tokenizer.
        path: where the rows come from, as `reallm.data.rows.read_rows` takes it.
        max_seqlen: longest sequence in tokens.
        overlong: "truncate" cuts the end off longer ones, "drop" leaves them out. Those whose prompt alone fills
            `max_seqlen` are dropped in any case.
        pad_to_max_length: pad each sequence to `max_seqlen` at its end, with tokens that are not trained.

    Raises:
        ConfigError: if an argument is out of range.
        DataError: if a row is bad, or no sample is left.
    """

    def __init__(
        self,
        util: DatasetUtility,
        *,
        path: Source,
        max_seqlen: int = PromptAnswerDatasetConfig.max_seqlen,
        overlong: Overlong = PromptAnswerDatasetConfig.overlong,
        pad_to_max_length: bool = PromptAnswerDatasetConfig.pad_to_max_length,
    ) -> None:
        check_at_least("max_seqlen", max_seqlen, 2)
        check_overlong(overlong)
        rows = util.shard(read_rows(path))
        encoder = Encoder(util.tokenizer)
        self._report = Report(path, len(rows))
        self._padded_length = max_seqlen if pad_to_max_length else 0
        self._padding = encoder.padding if pad_to_max_length else 0
        ids, trained = SequenceBuilder(np.int32), SequenceBuilder(np.bool_)
        names: list[str] = []
        for batch in tokenizer_batches(rows, util):
            texts = [_text(row, encoder) for row in batch]
            for row, text, sequence in zip(batch, texts, encoder.sequences(texts), strict=True):
                kept, phrase = truncate_or_drop(sequence, max_seqlen, overlong)
                if phrase:
                    self._report.count(phrase)
                if kept is None:
                    continue
                if isinstance(text, PromptAnswer) and not text.answer:
                    self._report.count("with an empty answer")
                kept.answer_mask[0] = False  # no token before it to predict it from
                ids.append(kept.ids)
                trained.append(kept.answer_mask)
                names.append(row.id)
        if not names:
            raise self._report.no_samples_error("raise max_seqlen")
        self._ids, self._trained, self._names = ids.build(), trained.build(), names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> NamedArray:
        ids, trained = self._ids[i], self._trained[i]
        length = max(len(ids), self._padded_length)
        input_ids = torch.full((length,), self._padding, dtype=torch.int64)
        input_ids[: len(ids)] = torch.from_numpy(ids)
        loss_mask = torch.zeros(length, dtype=torch.bool)
        loss_mask[: len(ids)] = torch.from_numpy(trained)
        lengths = ((length,),)
        return NamedArray(input_ids=input_ids, loss_mask=loss_mask).with_metadata(
            seqlens={"input_ids": lengths, "loss_mask": lengths}, ids=(self._names[i],)
        )

    def report(self) -> str:
        """One line: rows read, samples and tokens made of them, and how many were cut or dropped, and why."""
        n_tokens, n_trained = len(self._ids.values), int(self._trained.values.sum())
        return self._report.line(f"{len(self):,} samples, {n_tokens:,} tokens, {n_trained:,} of them trained")


def _text(row: Row, encoder: Encoder) -> PromptAnswer | Conversation:
    if "messages" in row:
        return encoder.chat.conversation(row.messages("messages"), row)
    row.need_one_of("messages", "prompt")
    return PromptAnswer(row.text("prompt"), row.text("answer"))
