"""The check of the KV cache: decoding computes what a full forward pass computes.

Shapes: T packed tokens, S sequences, V vocabulary.
"""

from __future__ import annotations

import torch

from reallm.model.packed import PackedSequences
from reallm.model.rope import keys_are_stale
from reallm_devkit.testing.checks import CheckFailed, check
from reallm_devkit.testing.families.closeness import LOGITS_TOLERANCE, max_difference, tolerance_scale
from reallm_devkit.testing.families.numerics import packing
from reallm_devkit.testing.families.subject import FamilySubject, custom_layers_location

PREFILLED = 0.4
"""Fraction of each sequence that is prefilled. A second chunk of `CHUNK` tokens follows, then single tokens."""
CHUNK = 3


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
            # RoPE frequencies that depend on the length are those of the shorter sequence
            expected = whole[number][total - 1]
            if keys_are_stale(model.config, [total], [len(samples[row])]):
                expected = model(samples[row][:total], torch.tensor([0, total]))[-1]
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


def _next_length(cached: int, length: int) -> int:
    """How many tokens the next step takes: the prefill, then one chunk, then single tokens."""
    if cached == 0:
        return max(1, int(length * PREFILLED))
    return CHUNK if cached == int(length * PREFILLED) and cached + CHUNK < length else 1
