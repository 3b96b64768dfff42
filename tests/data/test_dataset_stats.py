"""What is measured of a dataset before training."""

from __future__ import annotations

import torch

from reallm.data.dataset_stats import measure
from reallm.data.namedarray import NamedArray
from reallm.data.sampler import StepSampler


def test_the_sequences_that_a_sample_becomes_are_not_kept_together() -> None:
    samples = [NamedArray(prompt_ids=torch.arange(n)).with_metadata(seqlens={"prompt_ids": [(n,)]}) for n in (2, 3)]
    stats = measure(samples, lambda sample: [len(sample["prompt_ids"]) + 5] * 4, StepSampler(2, 2, 1, None, 1), 32)
    assert sorted(stats.lengths) == [7, 8]
    assert stats.tokens_per_step == 4 * 7 + 4 * 8
    assert stats.micro_batches_per_step == 2
    assert sum(stats.largest) <= 32
