"""Better and worse answers to a prompt: for reward models and preference optimization."""

from __future__ import annotations

import numpy as np
import torch

from reallm.data.datasets import DatasetUtility
from reallm.data.messages import load_tools
from reallm.data.namedarray import NamedArray
from reallm.data.row_sources import Source
from reallm.data.tokenization.tokenized_rows import tokenize_rows
from reallm.errors import counted
from reallm_datasets.config import (
    Overlong,
    PairedComparisonDatasetConfig,
    check_at_least,
    check_num_proc,
    check_overlong,
)
from reallm_datasets.encoders.rw_pair import PairEncoder
from reallm_datasets.limits import REMEDIES


class PairedComparisonDataset(torch.utils.data.Dataset[NamedArray]):
    """Samples of k pairs: `input_ids` int64, `prompt_lens` int64 [2k] and `margins` float32 [k].

    `input_ids` has 2k sequences, better and worse in turn. `prompt_lens` says how many tokens at the beginning of each
    are the prompt's, and `margins` by how much the first of a pair is better: the row's `margin`, a number for each
    pair or one for all, or else 0. Rows have one of

    - `prompt` with the lists `pos_answers` and `neg_answers`, equally long: the i-th of one is better than the
      i-th of the other;
    - `prompt`, `chosen` and `rejected`, as texts; or the last two alone, which begin with the prompt;
    - `chosen` and `rejected` as conversations that differ in the assistant's last turn; what they have in common may
      be left out of them and given as `prompt`.

    Args:
        util: seed, ranks and tokenizer.
        path: where the rows come from, as `reallm.data.rows.read_rows` takes it.
        max_pairs_per_prompt: use at most so many pairs of a row, chosen by the seed and the row's id.
        max_seqlen: longest sequence in tokens.
        overlong: "truncate" cuts the end off longer ones, "drop" leaves out pairs with a longer one. Pairs whose
            prompt alone fills `max_seqlen`, and pairs of equal sequences, are dropped in any case.
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
        max_pairs_per_prompt: int = PairedComparisonDatasetConfig.max_pairs_per_prompt,
        max_seqlen: int = PairedComparisonDatasetConfig.max_seqlen,
        overlong: Overlong = PairedComparisonDatasetConfig.overlong,
        tools_path: str | None = PairedComparisonDatasetConfig.tools_path,
        num_proc: int | None = PairedComparisonDatasetConfig.num_proc,
        cache_dir: str | None = PairedComparisonDatasetConfig.cache_dir,
    ) -> None:
        check_at_least("max_pairs_per_prompt", max_pairs_per_prompt, 1)
        check_at_least("max_seqlen", max_seqlen, 2)
        check_overlong(overlong)
        check_num_proc(num_proc)
        tools = load_tools(tools_path) if tools_path else ()
        encoder = PairEncoder(util.tokenizer, max_pairs_per_prompt, max_seqlen, overlong, util.seed, tools)
        self._rows = tokenize_rows(path, encoder, util, num_proc=num_proc, cache_dir=cache_dir)
        self._rows.need_samples(
            {**REMEDIES, "are the same": "give answers that differ", "do not differ": "raise max_seqlen"}
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> NamedArray:
        seqlens = tuple(self._rows.field("seqlens", i).tolist())
        return NamedArray(
            input_ids=torch.from_numpy(self._rows.field("input_ids", i).astype(np.int64)),
            prompt_lens=torch.from_numpy(self._rows.field("prompt_lens", i).copy()),
            margins=torch.from_numpy(self._rows.field("margins", i).copy()),
        ).with_metadata(
            seqlens={
                "input_ids": (seqlens,),
                "prompt_lens": ((1,) * len(seqlens),),
                "margins": ((1,) * (len(seqlens) // 2),),
            },
            ids=(self._rows.id(i),),
        )

    def cache_key(self) -> str | None:
        """The key of the cached tokens and of their order; None if they are not cached."""
        return self._rows.cache_key

    def report(self) -> str:
        """One line: rows read, samples, pairs and tokens made of them, and what was cut or dropped, and why."""
        n_pairs, n_tokens = self._rows.n_elements("seqlens") // 2, self._rows.n_elements("input_ids")
        return self._rows.report(
            f"{counted(len(self), 'sample')}, {counted(n_pairs, 'pair')}, {counted(n_tokens, 'token')}"
        )
