"""Checks of the calls that compute outputs: generation, inference and rewards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reallm.data.array import describe
from reallm.data.batching import gather, n_samples, select, split_samples
from reallm.data.namedarray import NamedArray
from reallm.specs import ModelFunctionCall
from reallm_devkit.testing.algorithms.graph import interfaces
from reallm_devkit.testing.algorithms.subject import AlgorithmSubject
from reallm_devkit.testing.checks import CheckFailed, Skipped, check

TOLERANCE = 1e-4
"""Of outputs, relative to the largest one: sums in another order."""


@check(needs=[interfaces])
def outputs(subject: AlgorithmSubject) -> str:
    """each call returns the keys that the graph says, for all samples, with their seqlens"""
    batch = subject.whole
    for call in _output_calls(subject):
        for key in call.outputs:
            value = batch[key]
            if isinstance(value, Tensor) and value.requires_grad:
                look_at = subject.at(call.role, call.kind)
                raise CheckFailed("outputs without gradients: .detach()", "with", f"'{key}' of '{call.name}'", look_at)
    written = [f"{key} {describe(batch[key])}" for call in _output_calls(subject) for key in call.outputs]
    return ", ".join(written)


@check(needs=[outputs])
def output_order(subject: AlgorithmSubject) -> str:
    """outputs are those of the samples in their order: in another order, the same ones in that order"""
    calls, batch = _output_calls(subject), subject.whole
    order = list(range(n_samples(subject.inputs)))[::-1]
    other = subject.session.with_outputs(select(subject.inputs, order))
    _compare(
        subject,
        calls,
        select(batch, order),
        other,
        "with the samples in reverse order",
        "random numbers that follow from the sample, as context.seed_for(..., sample_id) and context.generate do, and "
        "outputs in the order of the batch",
    )
    return f"{n_samples(batch)} samples in reverse"


@check(needs=[outputs])
def one_by_one(subject: AlgorithmSubject) -> str:
    """what is generated or computed before training for a sample does not depend on the others in its batch"""
    calls = [call for call in _output_calls(subject) if call.kind == "generate" or call.precompute]
    if not calls:
        raise Skipped("no call generates, or is precomputed")
    kinds = ("generate", "inference") if any(call.precompute for call in calls) else ("generate",)
    alone = gather([subject.session.with_outputs(one, kinds=kinds) for one in split_samples(subject.inputs)])
    calls = [call for call in calls if all(key in alone for key in call.outputs)]
    _compare(subject, calls, subject.whole, alone, "computed one by one", "outputs that follow from the sample alone")
    return ", ".join(call.name for call in calls)


def _output_calls(subject: AlgorithmSubject) -> list[ModelFunctionCall]:
    calls = [call for call in subject.graph.calls if call.kind != "train_step"]
    if not calls:
        raise Skipped("all calls train")
    return calls


def _compare(
    subject: AlgorithmSubject,
    calls: Sequence[ModelFunctionCall],
    expected: NamedArray,
    found: NamedArray,
    how: str,
    remedy: str,
) -> None:
    """Check that the outputs of calls are equal."""
    for call in calls:
        for key in call.outputs:
            for row, (one, two) in enumerate(zip(split_samples(expected), split_samples(found), strict=True)):
                if not same(one, two, key):
                    seen = f"{_shown(two[key])} instead of {_shown(one[key])} {how}"
                    where = f"'{key}' of sample {row}, written by '{call.name}'"
                    raise CheckFailed(remedy, seen, where, subject.at(call.role, call.kind))


def same(one: NamedArray, two: NamedArray, key: str) -> bool:
    """Whether a field is the same in two batches, up to the rounding of sums."""
    if one.metadata["seqlens"][key] != two.metadata["seqlens"][key]:
        return False
    a, b = one[key], two[key]
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return bool((a == b).all())
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    largest = float(a.abs().max()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=TOLERANCE * max(largest, 1e-3), equal_nan=True)


def _shown(value: object) -> str:
    """The first few elements."""
    if not isinstance(value, Tensor):
        return repr(value)
    shown = ", ".join(f"{number:.4g}" for number in value.flatten()[:6].tolist())
    return f"[{shown}{', ...' if value.numel() > 6 else ''}]"
