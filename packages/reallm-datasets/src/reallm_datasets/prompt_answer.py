"""Prompts with their answers, or conversations: for supervised fine-tuning."""

from __future__ import annotations

import torch

from reallm.data.chat.template import TrainOn
from reallm.data.datasets import DatasetUtility
from reallm.data.messages import load_tools
from reallm.data.namedarray import NamedArray
from reallm.data.row_sources import Source
from reallm.data.tokenization.tokenized_rows import tokenize_rows
from reallm.errors import counted
from reallm_datasets.config import (
    Overlong,
    PromptAnswerDatasetConfig,
    check_at_least,
    check_num_proc,
    check_overlong,
    check_train_on,
)
from reallm_datasets.encoders.prompt_answer import PromptAnswerEncoder
from reallm_datasets.encoding import Encoder
from reallm_datasets.limits import REMEDIES

_REMEDIES = {
    **REMEDIES,
    "no turn is to be trained": "switch a turn of the assistant on in the data",
    "no turn can be trained": "give another dataset.chat_template",
}
"""Part of a remark about rows that are dropped -> what to do."""


class PromptAnswerDataset(torch.utils.data.Dataset[NamedArray]):
    """Samples of `input_ids` int64 [L] and `loss_mask` bool [L], True for the tokens that are trained as targets.

    Rows have the texts `prompt` and `answer`, or a conversation as `messages`, which comes first if both are there, or
    a plain `text`, which is trained whole. An end-of-sequence token is trained after an answer and a text. Without a
    chat template, rows that have `prompt` and `answer` beside `messages` are trained by these.

    Args:
        util: seed, ranks and tokenizer.
        path: where the rows come from, as `reallm.data.rows.read_rows` takes it.
        max_seqlen: longest sequence in tokens.
        overlong: "truncate" cuts the end off longer ones, "drop" leaves them out. Those whose prompt alone fills
            `max_seqlen` are dropped in any case.
        pad_to_max_length: pad each sequence to `max_seqlen` at its end, with tokens that are not trained.
        train_on: what of a row is trained: "assistant" for the answer, or each turn of the assistant; "last" for the
            answer, or only the last of these turns; "all" for the prompt too, or the whole conversation.
        tools_path: a file with the tools of conversations that have none of their own: a JSON list, or JSON lines.
        num_proc: worker processes that tokenize, at most, if there is much to do; None: one for each core.
        cache_dir: folder that keeps the tokens of large files; "auto": `~/.cache/reallm/tokenized`; None: no cache.

    Raises:
        ConfigError: an argument is out of range.
        DataError: a row is invalid, or no sample is left.
    """

    def __init__(
        self,
        util: DatasetUtility,
        *,
        path: Source,
        max_seqlen: int = PromptAnswerDatasetConfig.max_seqlen,
        overlong: Overlong = PromptAnswerDatasetConfig.overlong,
        pad_to_max_length: bool = PromptAnswerDatasetConfig.pad_to_max_length,
        train_on: TrainOn = PromptAnswerDatasetConfig.train_on,
        tools_path: str | None = PromptAnswerDatasetConfig.tools_path,
        num_proc: int | None = PromptAnswerDatasetConfig.num_proc,
        cache_dir: str | None = PromptAnswerDatasetConfig.cache_dir,
    ) -> None:
        check_at_least("max_seqlen", max_seqlen, 2)
        check_overlong(overlong)
        check_train_on(train_on)
        check_num_proc(num_proc)
        tools = load_tools(tools_path) if tools_path else ()
        self._padded_length = max_seqlen if pad_to_max_length else 0
        self._padding = Encoder(util.tokenizer).padding if pad_to_max_length else 0
        encoder = PromptAnswerEncoder(util.tokenizer, max_seqlen, overlong, train_on, tools)
        self._rows = tokenize_rows(path, encoder, util, num_proc=num_proc, cache_dir=cache_dir)
        self._rows.need_samples(_REMEDIES)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> NamedArray:
        ids, trained = self._rows.field("input_ids", i), self._rows.field("loss_mask", i)
        length = max(len(ids), self._padded_length)
        input_ids = torch.full((length,), self._padding, dtype=torch.int64)
        input_ids[: len(ids)] = torch.from_numpy(ids)
        loss_mask = torch.zeros(length, dtype=torch.bool)
        loss_mask[: len(ids)] = torch.from_numpy(trained)
        lengths = ((length,),)
        return NamedArray(input_ids=input_ids, loss_mask=loss_mask).with_metadata(
            seqlens={"input_ids": lengths, "loss_mask": lengths}, ids=(self._rows.id(i),)
        )

    def cache_key(self) -> str | None:
        """The key of the cached tokens and of their order; None if they are not cached."""
        return self._rows.cache_key

    def report(self) -> str:
        """One line: rows read, samples and tokens made of them, and how many were cut or dropped, and why."""
        n_tokens, n_trained = self._rows.n_elements("input_ids"), self._rows.n_true("loss_mask")
        return self._rows.report(
            f"{counted(len(self), 'sample')}, {counted(n_tokens, 'token')}, {n_trained:,} of them trained"
        )
