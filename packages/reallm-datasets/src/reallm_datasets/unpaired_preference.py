"""Completions of prompts, each with a label that says whether it is good: for preference optimization (KTO)."""

from __future__ import annotations

import numpy as np
import torch

from reallm.data.datasets import DatasetUtility
from reallm.data.messages import load_tools
from reallm.data.namedarray import NamedArray
from reallm.data.row_sources import Source
from reallm.data.tokenization.tokenized_rows import tokenize_rows
from reallm.errors import TooFewSamplesError, counted
from reallm.seeding import derive_seed
from reallm_datasets.config import (
    Overlong,
    UnpairedPreferenceDatasetConfig,
    check_at_least,
    check_num_proc,
    check_overlong,
)
from reallm_datasets.encoders.unpaired_preference import UnpairedPreferenceEncoder
from reallm_datasets.limits import REMEDIES

MAX_STEPS = 8
"""How many rows are looked at to find one with another prompt."""


class UnpairedPreferenceDataset(torch.utils.data.Dataset[NamedArray]):
    """Samples of `input_ids` int64 with two sequences, `prompt_lens` int64 [2] and `labels` bool [1].

    The first sequence is a prompt with its completion, and `labels` says whether that is good. The second one is the
    same prompt with the completion of another row, from which KTO (arXiv 2402.01306) estimates the KL divergence.
    `prompt_lens` says how many tokens at the beginning of each are the prompt's.

    Which row the other completion comes from depends on the seed and the rows alone: it is the next one in a cyclic
    order of all rows, on whatever rank, and another one further on if that has the same prompt.

    Rows have one of

    - `prompt`, `completion` and `label`, as texts or messages;
    - a conversation as `messages`, whose last message is the completion, and `label`;
    - pairs, as `PairedComparisonDataset` takes them, without a `label`: each gives two samples.

    A label is true or false, 1 or 0, or one of these, `chosen` and `rejected` or `desirable` and `undesirable` as text.

    Args:
        util: seed, ranks and tokenizer.
        path: where the rows come from, as `reallm.data.rows.read_rows` takes it.
        max_seqlen: longest sequence in tokens.
        overlong: "truncate" cuts the end off longer ones, "drop" leaves them out. Those whose prompt alone fills
            `max_seqlen` are dropped in any case.
        tools_path: a file with the tools of conversations that have none of their own: a JSON list, or JSON lines.
        num_proc: worker processes that tokenize, at most, if there is much to do; None: one for each core.
        cache_dir: folder that keeps the tokens of large files; "auto": `~/.cache/reallm/tokenized`; None: no cache.

    Raises:
        ConfigError: an argument is out of range.
        DataError: a row is invalid, or fewer than two rows are left.
    """

    def __init__(
        self,
        util: DatasetUtility,
        *,
        path: Source,
        max_seqlen: int = UnpairedPreferenceDatasetConfig.max_seqlen,
        overlong: Overlong = UnpairedPreferenceDatasetConfig.overlong,
        tools_path: str | None = UnpairedPreferenceDatasetConfig.tools_path,
        num_proc: int | None = UnpairedPreferenceDatasetConfig.num_proc,
        cache_dir: str | None = UnpairedPreferenceDatasetConfig.cache_dir,
    ) -> None:
        check_at_least("max_seqlen", max_seqlen, 2)
        check_overlong(overlong)
        check_num_proc(num_proc)
        tools = load_tools(tools_path) if tools_path else ()
        encoder = UnpairedPreferenceEncoder(util.tokenizer, max_seqlen, overlong, tools)
        self._rows = tokenize_rows(path, encoder, util, num_proc=num_proc, cache_dir=cache_dir)
        self._rows.need_samples({**REMEDIES, "are the same": "give answers that differ"})
        n_rows = len(self._rows.of_all_ranks)
        if n_rows < 2:
            raise TooFewSamplesError(
                f"{self._rows.source}: one row is left, but each needs the completion of another row, from which the "
                "KL divergence is estimated; give two rows or more"
            )
        self._max_seqlen = max_seqlen
        self._order = np.random.default_rng(derive_seed(util.seed, "completions of other rows")).permutation(n_rows)
        self._place = np.argsort(self._order)
        self._starts = np.cumsum([0, *self._rows.lengths("labels")])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, i: int) -> NamedArray:
        if not 0 <= i < len(self):
            raise IndexError(i)
        row = int(np.searchsorted(self._starts, i, side="right")) - 1
        number = i - int(self._starts[row])
        index = self._rows.index(row)
        prompt, completion = self._sequence(index, number)
        sequences = [
            np.concatenate([prompt, answer])[: self._max_seqlen] for answer in (completion, self._other(index, number))
        ]
        labels = self._rows.field("labels", row)
        return NamedArray(
            input_ids=torch.from_numpy(np.concatenate(sequences).astype(np.int64)),
            prompt_lens=torch.full((2,), len(prompt), dtype=torch.int64),
            labels=torch.from_numpy(labels[number : number + 1].copy()),
        ).with_metadata(
            seqlens={"input_ids": (tuple(map(len, sequences)),), "prompt_lens": ((1, 1),), "labels": ((1,),)},
            ids=(self._id(row, number, labels),),
        )

    def cache_key(self) -> str | None:
        """The key of the cached tokens and of their order; None if they are not cached."""
        return self._rows.cache_key

    def report(self) -> str:
        """One line: rows read, samples of each label, and how many were cut or dropped, and why."""
        n_good = self._rows.n_true("labels")
        return self._rows.report(
            f"{counted(len(self), 'sample')}, {n_good:,} of them good and {len(self) - n_good:,} bad, "
            f"{counted(self._rows.n_elements('input_ids'), 'token')}"
        )

    def _sequence(self, index: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of the prompt and of a completion, of a row of any rank."""
        fields = self._rows.of_all_ranks
        ends = np.cumsum([0, *fields.field("seqlens", index)])
        ids = fields.field("input_ids", index)[ends[number] : ends[number + 1]]
        prompt_len = int(fields.field("prompt_lens", index)[number])
        return ids[:prompt_len], ids[prompt_len:]

    def _other(self, index: int, number: int) -> np.ndarray:
        """The completion of another row, if possible of one with another prompt."""
        prompt, _ = self._sequence(index, number)
        place, n_rows = int(self._place[index]), len(self._order)
        found = None
        for step in range(1, min(MAX_STEPS, n_rows - 1) + 1):
            other = int(self._order[(place + step) % n_rows])
            n_completions = len(self._rows.of_all_ranks.field("seqlens", other))
            its_prompt, completion = self._sequence(other, number % n_completions)
            if not np.array_equal(prompt, its_prompt):
                return completion
            found = completion if found is None else found
        assert found is not None
        return found

    def _id(self, row: int, number: int, labels: np.ndarray) -> str:
        """The row's id; of rows with several completions, with the label and a number: `a.jsonl:12/chosen`."""
        if len(labels) == 1:
            return self._rows.id(row)
        which = int((labels[:number] == labels[number]).sum())
        return f"{self._rows.id(row)}/{'chosen' if labels[number] else 'rejected'}{f' {which + 1}' if which else ''}"
