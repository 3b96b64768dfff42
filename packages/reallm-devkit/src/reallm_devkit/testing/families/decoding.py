"""The checks of the KV cache: decoding, and generating with it, compute what a full forward pass computes.

Shapes: T packed tokens, S sequences, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.request import Completion, Request
from reallm.model.packed import PackedSequences
from reallm.model.rope import keys_are_stale
from reallm.model.transformer import Transformer
from reallm_devkit.testing.checks import CheckFailed, check
from reallm_devkit.testing.families.closeness import LOGITS_TOLERANCE, max_difference, tolerance_scale
from reallm_devkit.testing.families.numerics import packing
from reallm_devkit.testing.families.subject import FamilySubject, custom_layers_location

PREFILLED = 0.4
"""Fraction of each sequence that is prefilled. A second chunk of `CHUNK` tokens follows, then single tokens."""
CHUNK = 3
N_NEW = 10
"""Number of tokens that are generated after each prompt."""
N_SAMPLES = 3
MOST_SEQUENCES = 2
"""Of a step of the engine; fewer than the samples, so that some are copied from a sequence that has gone on."""
MOST_TOKENS = 9
"""Of a step of the engine, so that long prompts are computed in parts."""


@check(needs=[packing])
@torch.no_grad()
def decode(subject: FamilySubject) -> str:
    """prefill, then tokens one by one, give the logits of the full forward pass"""
    model, samples = subject.model, [sample for sample in subject.samples if len(sample) > CHUNK + 2]
    numbers = [number for number, sample in enumerate(subject.samples) if len(sample) > CHUNK + 2]
    whole = subject.logits.split([len(sample) for sample in subject.samples])
    cache = subject.model.new_cache(len(samples), max(map(len, samples)))
    worst = 0.0
    n_steps = 0
    while any(cached < len(sample) for cached, sample in zip(cache.lengths, samples, strict=True)):
        unfinished = [row for row, sample in enumerate(samples) if cache.lengths[row] < len(sample)]
        if len(unfinished) < len(samples):
            cache.keep(unfinished)
            samples, numbers = [samples[row] for row in unfinished], [numbers[row] for row in unfinished]
        cached_lengths = list(cache.lengths)
        new_lengths = [
            _next_length(cached, len(sample)) for cached, sample in zip(cached_lengths, samples, strict=True)
        ]
        totals = [cached + new for cached, new in zip(cached_lengths, new_lengths, strict=True)]
        if keys_are_stale(model.config, cached_lengths, totals):  # as `generate_tokens` does
            cache.lengths = cached_lengths = [0] * len(samples)
            new_lengths = totals
        seqs = PackedSequences.from_lengths(new_lengths, cached_lengths=cached_lengths)
        chunks = [
            sample[cached : cached + new]
            for sample, cached, new in zip(samples, cached_lengths, new_lengths, strict=True)
        ]
        hidden = model.forward_hidden(torch.cat(chunks), seqs, cache)
        last = model.head(hidden[seqs.cu_seqlens[1:].long() - 1])
        for row, (number, total) in enumerate(zip(numbers, totals, strict=True)):
            expected = _logits_after(model, samples[row], total, whole[number])
            difference, token, _ = max_difference(last[row], expected)
            if not difference <= LOGITS_TOLERANCE * tolerance_scale(expected):
                where = f"sequence {number}, token {total - 1}, with {cached_lengths[row]} tokens in the cache"
                raise CheckFailed(
                    f"logits of the full forward pass within {LOGITS_TOLERANCE:.0e}",
                    f"they differ by up to {difference:.2g}",
                    f"{where}; vocabulary {token}",
                    custom_layers_location(subject) or subject.at(["rope", "sliding_window", "attention"]),
                )
            worst = max(worst, difference)
        n_steps += 1
    return f"{n_steps} steps up to {max(map(len, subject.samples))} tokens, within {worst:.1e}"


@check(needs=[decode])
@torch.no_grad()
def generate(subject: FamilySubject) -> str:
    """generated tokens have the log-probabilities of the full forward pass, however prompts and samples share steps"""
    model, worst = subject.model, 0.0
    completions = _generate(subject)
    for completion in completions:
        sequence = torch.tensor([*completion.prompt_ids, *completion.token_ids])
        whole = model(sequence, torch.tensor([0, len(sequence)]))
        for index, (token, logprob) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
            n_before = len(completion.prompt_ids) + index
            logits = _logits_after(model, sequence, n_before, whole)
            difference = abs(float(logits.log_softmax(dim=-1)[token]) - logprob)
            # a log-probability is the difference of a logit and of a sum of all of them
            if not difference <= 2 * LOGITS_TOLERANCE * tolerance_scale(logits):
                n_prompt = len(completion.prompt_ids)
                raise CheckFailed(
                    f"log-probabilities of the full forward pass within {2 * LOGITS_TOLERANCE:.0e}",
                    f"they differ by {difference:.2g}",
                    f"a prompt of {n_prompt} tokens, sample {completion.sample}, new token {index}",
                    custom_layers_location(subject) or subject.at(["rope", "sliding_window", "attention"]),
                )
            worst = max(worst, difference)
    return f"{len(completions)} samples of {N_NEW} tokens, within {worst:.1e}"


def _generate(subject: FamilySubject) -> list[Completion]:
    """Samples of prompts, of which only a few are computed in the same step."""
    config = GenerationConfig(max_new_tokens=N_NEW, temperature=1.0, n=N_SAMPLES)
    with GenerationEngine(
        subject.model, max_batch_tokens=MOST_TOKENS, max_batch_sequences=MOST_SEQUENCES, kv_cache_tokens=4096
    ) as engine:
        for key, sample in enumerate(subject.samples):
            engine.add(Request(tuple(sample.tolist()), config, key))
        return engine.run()


def _logits_after(model: Transformer, sequence: Tensor, n_tokens: int, whole: Tensor) -> Tensor:
    """Logits [V] after the first tokens of a sequence, from those of a full forward pass, `whole` [T, V]."""
    if keys_are_stale(model.config, [n_tokens], [len(sequence)]):
        # RoPE frequencies that depend on the length are those of the shorter sequence
        logits: Tensor = model(sequence[:n_tokens], torch.tensor([0, n_tokens]))[-1]
        return logits
    return whole[n_tokens - 1]


def _next_length(cached: int, length: int) -> int:
    """How many tokens the next step takes: the prefill, then one chunk, then single tokens."""
    if cached == 0:
        return max(1, int(length * PREFILLED))
    return CHUNK if cached == int(length * PREFILLED) and cached + CHUNK < length else 1
