"""The check of the KV cache: decoding computes what a full forward pass computes.

Shapes: T packed tokens, S sequences, V vocabulary.
"""

from __future__ import annotations

import torch

from reallm.model.packed import PackedSequences
from reallm.model.rope import keys_are_stale
from reallm_devkit.testing.checks import CheckFailed, check
from reallm_devkit.testing.families.closeness import MOST_LOGITS, largest, scale
from reallm_devkit.testing.families.numbers import packing
from reallm_devkit.testing.families.subject import FamilySubject, own_classes

PREFILLED = 0.4
"""How much of each sequence is prefilled; a second chunk of several tokens and then single ones follow."""
CHUNK = 3


@check(needs=[packing])
@torch.no_grad()
def decode(subject: FamilySubject) -> str:
    """prefill, then tokens one by one, give the logits of the full forward pass"""
    model, samples = subject.ours, [sample for sample in subject.samples if len(sample) > CHUNK + 2]
    numbers = [number for number, sample in enumerate(subject.samples) if len(sample) > CHUNK + 2]
    whole = subject.logits.split([len(sample) for sample in subject.samples])
    cache = subject.ours.new_cache(len(samples), max(map(len, samples)))
    worst = 0.0
    n_steps = 0
    while any(held < len(sample) for held, sample in zip(cache.lengths, samples, strict=True)):
        going = [row for row, sample in enumerate(samples) if cache.lengths[row] < len(sample)]
        if len(going) < len(samples):
            cache.keep(going)
            samples, numbers = [samples[row] for row in going], [numbers[row] for row in going]
        past = list(cache.lengths)
        wanted = [_next(held, len(sample)) for held, sample in zip(past, samples, strict=True)]
        totals = [held + new for held, new in zip(past, wanted, strict=True)]
        if keys_are_stale(model.config, past, totals):  # as `generate_tokens` does
            cache.lengths = past = [0] * len(samples)
            wanted = totals
        seqs = PackedSequences.from_lengths(wanted, cached_lengths=past)
        pieces = [sample[held : held + new] for sample, held, new in zip(samples, past, wanted, strict=True)]
        hidden = model.forward_hidden(torch.cat(pieces), seqs, cache)
        last = model.head(hidden[seqs.cu_seqlens[1:].long() - 1])
        for row, (number, total) in enumerate(zip(numbers, totals, strict=True)):
            # frequencies that follow the length are those of the shorter sequence
            expected = whole[number][total - 1]
            if keys_are_stale(model.config, [total], [len(samples[row])]):
                expected = model(samples[row][:total], torch.tensor([0, total]))[-1]
            difference, token, _ = largest(last[row], expected)
            if not difference <= MOST_LOGITS * scale(expected):
                raise CheckFailed(
                    f"logits of the full forward pass within {MOST_LOGITS:.0e}",
                    f"they differ by up to {difference:.2g}",
                    f"sequence {number}, token {total - 1}, with {past[row]} tokens in the cache; vocabulary {token}",
                    own_classes(subject) or subject.at(["rope", "sliding_window", "attention"]),
                )
            worst = max(worst, difference)
        n_steps += 1
    return f"{n_steps} steps up to {max(map(len, subject.samples))} tokens, within {worst:.1e}"


def _next(held: int, length: int) -> int:
    """How many tokens come next: most of a prompt, some at once, then one at a time."""
    if held == 0:
        return max(1, int(length * PREFILLED))
    return CHUNK if held == int(length * PREFILLED) and held + CHUNK < length else 1
