"""A batch of sequences that are decoded together over a KV cache.

Shapes: T packed tokens, A running sequences, V vocabulary, E hidden.
"""

from __future__ import annotations

import math
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
"""Token ids -> text."""


@dataclass
class Completion:
    """A prompt and the tokens generated after it."""

    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    """The generated tokens: all that were sampled, the stop token or the tokens of a stop string included."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each of `token_ids`, under the model at the sampling temperature."""
    finish_reason: Literal["stop", "length"] = "length"
    text: str | None = None
    """The generated tokens as text without special tokens, up to where a stop string begins, even if that is inside a
    token; None without a tokenizer."""

    @property
    def is_finite(self) -> bool:
        """Whether all logits were finite; if not, the last log-probability is NaN, and the sequence has ended."""
        return not self.logprobs or not math.isnan(self.logprobs[-1])


class DecodeBatch:
    """Sequences that are decoded together, and their KV cache for a model or a stage of one.

    Args:
        model: the network, or this rank's part of it.
        completions: completions by their index in the whole list of prompts, which determines their random streams;
            extended in place.
        sampling: settings for sampling tokens and for ending a sequence.
        to_text: decodes token ids, for stop strings.
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
        """Indices of the sequences that have not ended; `A` is their number."""
        longest = max(len(completion.prompt_ids) for completion in completions.values())
        self.config = model.config
        self.cache = model.new_cache(len(self.running), longest + sampling.max_new_tokens)

    def next_input(self, device: torch.device) -> tuple[Tensor, PackedSequences]:
        """The tokens [T] of the running sequences that are not in the cache yet, and their bounds."""
        running = [self.completions[index] for index in self.running]
        sequences = [[*completion.prompt_ids, *completion.token_ids] for completion in running]
        totals = [len(sequence) for sequence in sequences]
        if keys_are_stale(self.config, self.cache.lengths, totals):
            self.cache.lengths = [0] * len(sequences)  # RoPE frequencies depend on the length (dynamic RoPE)
        cached = list(self.cache.lengths)
        new_tokens = [token for sequence, n in zip(sequences, cached, strict=True) for token in sequence[n:]]
        lengths = [total - n for total, n in zip(totals, cached, strict=True)]
        return (
            torch.tensor(new_tokens, device=device),
            PackedSequences.from_lengths(lengths, cached_lengths=cached, device=device),
        )

    def sample(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Next token [A] of each running sequence from logits [A, V], and its log-probability [A]."""
        return sample(logits, self.sampling, [self._generators[index] for index in self.running])

    def append(self, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Append the next token to each running sequence; sequences that end with it leave the batch."""
        for index, token, logprob in zip(self.running, tokens, logprobs, strict=True):
            completion = self.completions[index]
            completion.token_ids.append(token)
            completion.logprobs.append(logprob)
            if self._stops(completion):
                completion.finish_reason = "stop"
        unfinished = [row for row, index in enumerate(self.running) if self._is_unfinished(self.completions[index])]
        if len(unfinished) < len(self.running):
            self.cache.keep(unfinished)
            self.running = [self.running[row] for row in unfinished]

    @cached_property
    def _generators(self) -> dict[int, torch.Generator]:
        seed = self.sampling.seed
        return {index: torch.Generator().manual_seed(derive_seed(seed, "sample", index)) for index in self.completions}

    def _is_unfinished(self, completion: Completion) -> bool:
        is_full = len(completion.token_ids) >= self.sampling.max_new_tokens
        return completion.finish_reason != "stop" and completion.is_finite and not is_full

    def _stops(self, completion: Completion) -> bool:
        if not completion.is_finite:
            return False
        if completion.token_ids[-1] in self.sampling.stop_token_ids:
            return True
        if not self.sampling.stop:
            return False
        assert self.to_text is not None, "stop strings need a tokenizer"
        text = self.to_text(completion.token_ids)
        return any(stop in text for stop in self.sampling.stop)


def text_before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string in it; the whole text if it has none."""
    return text[: min((start for stop in stops if (start := text.find(stop)) >= 0), default=len(text))]


def last_hidden(hidden: Tensor, seqs: PackedSequences) -> Tensor:
    """Hidden states [A, E] of the last token of each sequence, from the hidden states of all tokens [T, E]."""
    return hidden[seqs.cu_seqlens[1:].long() - 1]
