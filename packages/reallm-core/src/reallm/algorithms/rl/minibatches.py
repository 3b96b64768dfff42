"""Cuts the rollouts of a step into the mini-batches of several optimizer steps."""

from __future__ import annotations

import random

from reallm.data.batching import n_samples, select
from reallm.data.namedarray import NamedArray


def minibatches(batch: NamedArray, k: int, seed: int) -> list[NamedArray]:
    """Cut a batch into `k` batches of nearly as many prompts each, chosen at random; each keeps the order of `batch`.

    All answers to a prompt are in the same one: they are one sample, or samples with the same `groups`. With fewer
    prompts than `k`, some batches are empty, so that every step of a run makes as many optimizer steps.

    Args:
        batch: the rollouts.
        k: number of batches.
        seed: seed of the choice, such as `context.seed_for("minibatches", call, iteration)`.
    """
    if k == 1:
        return [batch]
    groups = batch.metadata.get("groups") or range(n_samples(batch))
    prompts = sorted(set(groups))
    random.Random(seed).shuffle(prompts)
    place = {prompt: i % k for i, prompt in enumerate(prompts)}
    rows: list[list[int]] = [[] for _ in range(k)]
    for row, group in enumerate(groups):
        rows[place[group]].append(row)
    return [select(batch, one) for one in rows]
