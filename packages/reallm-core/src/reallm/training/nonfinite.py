"""The error of a step whose loss or gradients are not finite, and the samples it names."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reallm.data.batching import n_samples
from reallm.data.namedarray import NamedArray
from reallm.errors import NonFiniteError, quoted

MAX_NAMES = 8
"""The most samples that an error names."""


def nonfinite_error(
    step: int, loss_sum: float, grad_norm: float, nonfinite_samples: Sequence[str], all_samples: Sequence[str]
) -> NonFiniteError:
    """The error of a step that changed nothing.

    Args:
        step: number of the step, from 1.
        nonfinite_samples: samples whose loss is not finite, as far as known; with several ranks all samples of the
            micro-batches that contain one.
        all_samples: all samples of the step.
    """
    if math.isfinite(loss_sum):
        what = f"the gradients are not finite (norm {grad_norm}); samples of the step: {quoted(all_samples, MAX_NAMES)}"
    elif nonfinite_samples:
        what = f"the loss of {quoted(nonfinite_samples, MAX_NAMES)} is not finite ({loss_sum})"
    else:
        what = f"the loss is not finite ({loss_sum}); samples of the step: {quoted(all_samples, MAX_NAMES)}"
    return NonFiniteError(
        f"step {step}: {what}. The parameters are as before the step: look at these samples, lower optimizer.lr or "
        "give it a longer warm-up, train with model.dtype=float32, or set optimizer.on_nonfinite=skip"
    )


def nonfinite_model_error(step: int, loss_sum: float, fault: str) -> NonFiniteError:
    """The error of a step whose loss is not finite because the model gives nothing finite, whatever the samples.

    Args:
        step: number of the step, from 1.
        loss_sum: the loss that is not finite.
        fault: what is wrong with the model, as `model_fault` finds it.
    """
    return NonFiniteError(
        f"step {step}: the loss is not finite ({loss_sum}), but not because of the data: the model gives the same for "
        f"other tokens; {fault}. Start from another checkpoint"
    )


def sample_names(batch: NamedArray) -> Sequence[str]:
    """The ids of the samples, or numbers for a batch without ids."""
    ids: Sequence[str] | None = batch.metadata.get("ids")
    return ids if ids is not None else [f"sample {row}" for row in range(n_samples(batch))]
