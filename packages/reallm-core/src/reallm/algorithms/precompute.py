"""Precomputed calls: their outputs for all samples of a dataset, computed once before training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence

from torch import Tensor

from reallm.algorithms.finite_outputs import check_finite
from reallm.data.batching import gather, lengths
from reallm.data.datasets import Samples
from reallm.data.metadata import thaw
from reallm.data.namedarray import NamedArray, split
from reallm.data.sample_fields import SampleField
from reallm.errors import PluginError, kind_of
from reallm.specs import ModelFunctionCall
from reallm.training.nonfinite import sample_names


def input_hash(call: ModelFunctionCall, samples: Samples, advance: Callable[[int], None]) -> str:
    """SHA-256 of what a call reads of all samples: their input fields and the other columns of their rows.

    Args:
        call: the call.
        samples: the dataset.
        advance: called with the number of samples after some are done.
    """
    digest = hashlib.sha256()
    for row in range(len(samples)):
        sample = samples[row]
        for key in call.inputs:
            value = sample[key]
            array = value.numpy(force=True) if isinstance(value, Tensor) else value
            digest.update(f"{key} {array.dtype} {array.shape} {sample.metadata['seqlens'][key]}\n".encode())
            digest.update(array.tobytes())
        columns = sample.metadata.get("columns")
        if columns is not None:
            digest.update(repr(thaw(columns)).encode())
        advance(1)
    return digest.hexdigest()


def precompute(
    call: ModelFunctionCall,
    samples: Samples,
    read: Collection[str],
    outputs: Callable[[NamedArray], NamedArray],
    max_tokens: int,
    advance: Callable[[int, int], None],
) -> dict[str, SampleField]:
    """The outputs of a call for all samples, by key.

    Samples of like length are computed together, the longest first, so that a lack of memory shows at once.

    Args:
        call: the call.
        samples: the dataset.
        read: the keys that train calls read, which must be finite.
        outputs: function that makes the call, and returns the batch with its outputs.
        max_tokens: limit on the tokens of a batch; a longer sample is a batch of its own.
        advance: called with the samples and tokens of each batch that is done.

    Raises:
        PluginError: an output is not a tensor with a length for each sample.
        NonFiniteError: an output that training reads is not finite; names the sample.
    """
    sizes = [_n_tokens(call, samples[row]) for row in range(len(samples))]
    values: dict[str, list[Tensor]] = {key: [] for key in call.outputs}
    seqlens: dict[str, list[tuple[int, ...]]] = {key: [] for key in call.outputs}
    rows: list[int] = []
    for of_batch in _batches(sizes, max_tokens):
        batch = outputs(gather([samples[row] for row in of_batch]))
        check_finite(call, split(batch, [call.outputs])[0], read, sample_names(batch))
        for key in call.outputs:
            value = batch[key]
            if not isinstance(value, Tensor):
                raise PluginError(
                    f"the call '{call.name}' is precomputed, and its output '{key}' must be a tensor, not "
                    f"{kind_of(value)}"
                )
            values[key].append(value.detach().to("cpu", copy=True))
            seqlens[key] += batch.metadata["seqlens"][key]
        rows += of_batch
        advance(len(of_batch), sum(sizes[row] for row in of_batch))
    return {key: SampleField.of_batches(values[key], seqlens[key], rows) for key in call.outputs}


def _n_tokens(call: ModelFunctionCall, sample: NamedArray) -> int:
    """Tokens of a sample: the size of its longest input."""
    return max(sum(lengths(sample, key)) for key in call.inputs)


def _batches(sizes: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of samples in batches of at most `max_tokens`, by descending size.

    >>> list(_batches([3, 9, 4, 3], 7))
    [[1], [2, 0], [3]]
    """
    batch: list[int] = []
    n_tokens = 0
    for row in sorted(range(len(sizes)), key=lambda row: (-sizes[row], row)):
        if batch and n_tokens + sizes[row] > max_tokens:
            yield batch
            batch, n_tokens = [], 0
        batch.append(row)
        n_tokens += sizes[row]
    if batch:
        yield batch
