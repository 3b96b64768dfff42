"""Prompts that are continued together, one token at a time, over a KV cache.

Shapes: T packed tokens, A sequences still running, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from reallm.generation.sampling import SamplingConfig, sample
from reallm.model.packed import PackedSequences
from reallm.model.rope import keys_are_stale
from reallm.model.transformer import Transformer
from reallm.seeding import derive_seed

ToText = Callable[[list[int]], str]


@dataclass
class Completion:
    """What one prompt was continued with."""

    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    """The new tokens, the stop token included."""
    logprobs: list[float] = field(default_factory=list)
    """Of each new token, under the model at the sampling temperature."""
    finish_reason: Literal["stop", "length"] = "length"
    text: str | None = None
    """The new tokens as text without special tokens; None where no tokenizer was at hand."""


class DecodeBatch:
    """Texts that grow together, and the keys and values that a model, or a stage of one, has of them.

    Args:
        model: what they are continued with.
        completions: by their places in the whole list of prompts, from which their random streams follow; they grow.
        sampling: how tokens are drawn, and when a text ends.
        to_text: for stop strings.
    """

    def __init__(
        self,
        model: Transformer,
        completions: Mapping[int, Completion],
        sampling: SamplingConfig,
        to_text: ToText | None = None,
    ) -> None:
        self.completions, self.sampling, self.to_text = completions, sampling, to_text
        self.running = list(completions)
        """Places of the texts that go on; `A` is how many."""
        longest = max(len(completion.prompt_ids) for completion in completions.values())
        self.config = model.config
        self.cache = model.new_cache(len(self.running), longest + sampling.max_new_tokens)

    def next_input(self, device: torch.device) -> tuple[Tensor, PackedSequences]:
        """What the cache does not hold of the texts, their last tokens included: [T], and where each text's lie."""
        texts = [[*self.completions[place].prompt_ids, *self.completions[place].token_ids] for place in self.running]
        totals = [len(text) for text in texts]
        if keys_are_stale(self.config, self.cache.lengths, totals):
            self.cache.lengths = [0] * len(texts)  # where frequencies follow the length, as in dynamic RoPE
        past = list(self.cache.lengths)
        fresh = [token for text, held in zip(texts, past, strict=True) for token in text[held:]]
        seqs = PackedSequences.from_lengths(
            [total - held for total, held in zip(totals, past, strict=True)], cached_lengths=past, device=device
        )
        return torch.tensor(fresh, device=device), seqs

    def draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The next token [A] of each text from logits [A, V], and its log-probability [A]."""
        return sample(logits, self.sampling, [self._generators[place] for place in self.running])

    def extend(self, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Give each running text its next token; those that end with it stop running."""
        for place, token, logprob in zip(self.running, tokens, logprobs, strict=True):
            completion = self.completions[place]
            completion.token_ids.append(token)
            completion.logprobs.append(logprob)
            if self._stops(completion):
                completion.finish_reason = "stop"
        going = [row for row, place in enumerate(self.running) if self._goes_on(self.completions[place])]
        if len(going) < len(self.running):
            self.cache.keep(going)
            self.running = [self.running[row] for row in going]

    @cached_property
    def _generators(self) -> dict[int, torch.Generator]:
        seed = self.sampling.seed
        return {place: torch.Generator().manual_seed(derive_seed(seed, "sample", place)) for place in self.completions}

    def _goes_on(self, completion: Completion) -> bool:
        return completion.finish_reason != "stop" and len(completion.token_ids) < self.sampling.max_new_tokens

    def _stops(self, completion: Completion) -> bool:
        if completion.token_ids[-1] in self.sampling.stop_token_ids:
            return True
        if not self.sampling.stop:
            return False
        assert self.to_text is not None, "stop strings need a tokenizer"
        text = self.to_text(completion.token_ids)
        return any(stop in text for stop in self.sampling.stop)


def last_rows(hidden: Tensor, seqs: PackedSequences) -> Tensor:
    """Hidden states [A, E] of the last token of each text, of those of all tokens [T, E]."""
    return hidden[seqs.cu_seqlens[1:].long() - 1]
