"""Prompts alone: for generation and reinforcement learning."""

from __future__ import annotations

import numpy as np
import torch

from reallm.data.datasets import DatasetUtility
from reallm.data.namedarray import NamedArray
from reallm.data.row_sources import Source
from reallm.data.rows import Row, read_rows
from reallm_datasets.config import Overlong, PromptOnlyDatasetConfig, check_at_least, check_overlong
from reallm_datasets.encoding import Encoder
from reallm_datasets.progress import tokenizer_batches
from reallm_datasets.report import Report
from reallm_datasets.sequences import SequenceBuilder


class PromptOnlyDataset(torch.utils.data.Dataset[NamedArray]):
    """Samples of `prompt_ids` int64 [L].

    Rows have the text `prompt`, or a conversation as `messages` whose last message is to be answered.

    Args:
        util: seed, ranks and tokenizer.
        path: where the rows come from, as `reallm.data.rows.read_rows` takes it.
        max_prompt_len: longest prompt in tokens.
        overlong: "drop" leaves longer ones out; "truncate" keeps the beginning-of-sequence token, if there is one,
            and the end of the prompt, because that is where its question is.
        pad_to_max_length: pad each prompt to `max_prompt_len` at its beginning.

    Raises:
        ConfigError: if an argument is out of range.
        DataError: if a row is bad, or no sample is left.
    """

    def __init__(
        self,
        util: DatasetUtility,
        *,
        path: Source,
        max_prompt_len: int = PromptOnlyDatasetConfig.max_prompt_len,
        overlong: Overlong = PromptOnlyDatasetConfig.overlong,
        pad_to_max_length: bool = PromptOnlyDatasetConfig.pad_to_max_length,
    ) -> None:
        check_at_least("max_prompt_len", max_prompt_len, 1)
        check_overlong(overlong)
        rows = util.shard(read_rows(path))
        encoder = Encoder(util.tokenizer)
        bos = util.tokenizer.bos_token_id
        self._report = Report(path, len(rows))
        self._padded_length = max_prompt_len if pad_to_max_length else 0
        self._padding = encoder.padding if pad_to_max_length else 0
        ids = SequenceBuilder(np.int32)
        names: list[str] = []
        for batch in tokenizer_batches(rows, util):
            prompts = encoder.prompts([_text(row, encoder) for row in batch], ["messages" in row for row in batch])
            for row, prompt in zip(batch, prompts, strict=True):
                if not len(prompt):
                    self._report.count("dropped: the prompt is empty")
                    continue
                if len(prompt) > max_prompt_len:
                    if overlong == "drop":
                        self._report.count(f"dropped: longer than {max_prompt_len} tokens")
                        continue
                    self._report.count(f"cut to {max_prompt_len} tokens")
                    prompt = _end(prompt, max_prompt_len, bos)
                ids.append(prompt)
                names.append(row.id)
        if not names:
            raise self._report.no_samples_error("raise max_prompt_len")
        self._ids, self._names = ids.build(), names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> NamedArray:
        ids = self._ids[i]
        length = max(len(ids), self._padded_length)
        prompt_ids = torch.full((length,), self._padding, dtype=torch.int64)
        prompt_ids[length - len(ids) :] = torch.from_numpy(ids)
        return NamedArray(prompt_ids=prompt_ids).with_metadata(
            seqlens={"prompt_ids": ((length,),)}, ids=(self._names[i],)
        )

    def report(self) -> str:
        """One line: rows read, prompts and tokens made of them, and how many were cut or dropped, and why."""
        return self._report.line(f"{len(self):,} prompts, {len(self._ids.values):,} tokens")


def _text(row: Row, encoder: Encoder) -> str:
    if "messages" in row:
        return encoder.chat.prompt(row.messages("messages"), row)
    row.need_one_of("messages", "prompt")
    return row.text("prompt")


def _end(prompt: np.ndarray, length: int, bos: int | None) -> np.ndarray:
    """The last `length` tokens, of which the first is the beginning-of-sequence token if it was before."""
    end = prompt[-length:].copy()
    if prompt[0] == bos:
        end[0] = bos
    return end
