"""Prompts alone: for generation and reinforcement learning."""

from __future__ import annotations

import torch

from reallm.data.datasets import DatasetUtility
from reallm.data.messages import load_tools
from reallm.data.namedarray import NamedArray
from reallm.data.row_sources import Source
from reallm.data.tokenization.tokenized_rows import tokenize_rows
from reallm.errors import counted
from reallm_datasets.columns import decode_columns
from reallm_datasets.config import Overlong, PromptOnlyDatasetConfig, check_at_least, check_num_proc, check_overlong
from reallm_datasets.encoders.prompt import PromptEncoder
from reallm_datasets.encoding import Encoder


class PromptOnlyDataset(torch.utils.data.Dataset[NamedArray]):
    """Samples of `prompt_ids` int64 [L], with the other columns of their rows as metadata `columns`.

    Rows have the text `prompt`, or a conversation as `prompt` or `messages` whose last message is to be answered; such
    rows have the conversation as column `messages`.

    Args:
        util: seed, ranks and tokenizer.
        path: where the rows come from, as `reallm.data.rows.read_rows` takes it.
        max_prompt_len: longest prompt in tokens.
        overlong: "drop" leaves longer ones out; "truncate" keeps the beginning-of-sequence token, if there is one,
            and the end of the prompt, because that is where its question is.
        pad_to_max_length: pad each prompt to `max_prompt_len` at its beginning.
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
        max_prompt_len: int = PromptOnlyDatasetConfig.max_prompt_len,
        overlong: Overlong = PromptOnlyDatasetConfig.overlong,
        pad_to_max_length: bool = PromptOnlyDatasetConfig.pad_to_max_length,
        tools_path: str | None = PromptOnlyDatasetConfig.tools_path,
        num_proc: int | None = PromptOnlyDatasetConfig.num_proc,
        cache_dir: str | None = PromptOnlyDatasetConfig.cache_dir,
    ) -> None:
        check_at_least("max_prompt_len", max_prompt_len, 1)
        check_overlong(overlong)
        check_num_proc(num_proc)
        tools = load_tools(tools_path) if tools_path else ()
        self._padded_length = max_prompt_len if pad_to_max_length else 0
        self._padding = Encoder(util.tokenizer).padding if pad_to_max_length else 0
        encoder = PromptEncoder(util.tokenizer, max_prompt_len, overlong, tools)
        self._rows = tokenize_rows(path, encoder, util, num_proc=num_proc, cache_dir=cache_dir)
        self._rows.need_samples({"longer than": "raise max_prompt_len", "is empty": "give rows with a prompt"})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> NamedArray:
        ids = self._rows.field("prompt_ids", i)
        length = max(len(ids), self._padded_length)
        prompt_ids = torch.full((length,), self._padding, dtype=torch.int64)
        prompt_ids[length - len(ids) :] = torch.from_numpy(ids)
        return NamedArray(prompt_ids=prompt_ids).with_metadata(
            seqlens={"prompt_ids": ((length,),)},
            ids=(self._rows.id(i),),
            columns=(decode_columns(self._rows.field("columns", i)),),
        )

    def cache_key(self) -> str | None:
        """The key of the cached tokens and of their order; None if they are not cached."""
        return self._rows.cache_key

    def report(self) -> str:
        """One line: rows read, prompts and tokens made of them, and how many were cut or dropped, and why."""
        n_tokens = self._rows.n_elements("prompt_ids")
        return self._rows.report(f"{counted(len(self), 'prompt')}, {counted(n_tokens, 'token')}")
