"""Several optimizer steps on the rollouts of a step: mini-batches of whole prompts, and passes over them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from reallm.algorithms.context import CallContext
from reallm.data.batching import n_samples, select
from reallm.data.namedarray import NamedArray
from reallm.training.engine import TrainEngine
from reallm.training.objective import Objective


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


def train_minibatches(
    engine: TrainEngine,
    batch: NamedArray,
    objective: Objective,
    context: CallContext,
    *,
    num_minibatches: int,
    num_iterations: int = 1,
) -> list[dict[str, float]]:
    """Take an optimizer step on each mini-batch, in several passes with other mini-batches each.

    Args:
        engine: the engine of the policy.
        batch: the answers of a step, whose coefficients have been computed.
        objective: the loss.
        context: the run and the step, which choose the mini-batches.
        num_minibatches: mini-batches of whole prompts into which the batch is cut.
        num_iterations: passes over the batch.

    Returns:
        The metrics of each optimizer step.
    """
    return [
        engine.train_batch(part, objective)
        for iteration in range(num_iterations)
        for part in minibatches(batch, num_minibatches, context.seed_for("minibatches", context.call, iteration))
    ]


def merged_metrics(of_steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of several optimizer steps as one: the sum of `tokens`, the last `lr` and `skipped_steps`, the
    extremes of what is called `/max` or `/min`, and means of all others, over the steps that have them."""
    if len(of_steps) == 1:
        return dict(of_steps[0])
    merged: dict[str, float] = {}
    for name in dict.fromkeys(name for metrics in of_steps for name in metrics):
        values = [metrics[name] for metrics in of_steps if name in metrics]
        merged[name] = _MERGED.get(name.rpartition("/")[2], fmean)(values)
    return merged


def _last(values: Sequence[float]) -> float:
    return values[-1]


_MERGED: Mapping[str, Callable[[Sequence[float]], float]] = {
    "tokens": sum, "lr": _last, "skipped_steps": _last, "max": max, "min": min,
}  # fmt: skip
