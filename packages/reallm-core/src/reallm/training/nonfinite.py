"""What is said of a step whose loss or gradients are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reallm.data.batching import n_samples
from reallm.data.namedarray import NamedArray
from reallm.errors import NonFiniteError


def nonfinite_error(
    step: int, loss_sum: float, grad_norm: float, culprits: Sequence[str], names: Sequence[str]
) -> NonFiniteError:
    """The error of a step that changed nothing.

    Args:
        step: 1 is the first.
        culprits: the samples whose loss is not finite, as far as it is known; a group of samples of which one is to
            blame is named `one of 'a', 'b'` by whoever gives it.
        names: all samples of the step.
    """
    if math.isfinite(loss_sum):
        what = f"the gradients are not finite (norm {grad_norm}); samples of the step: {some(names)}"
    elif culprits:
        what = f"the loss of {some(culprits)} is not finite ({loss_sum})"
    else:
        what = f"the loss is not finite ({loss_sum}); samples of the step: {some(names)}"
    return NonFiniteError(
        f"step {step}: {what}. The parameters are as before the step: look at these samples, lower optimizer.lr or "
        "give it a longer warm-up, train with model.dtype=float32, or set optimizer.on_nonfinite=skip"
    )


def sample_names(batch: NamedArray) -> Sequence[str]:
    """The ids of the samples; of a batch without ids, numbers."""
    ids: Sequence[str] | None = batch.metadata.get("ids")
    return ids if ids is not None else [f"sample {row}" for row in range(n_samples(batch))]


def some(names: Sequence[str], n: int = 8) -> str:
    """The first names, quoted, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:n])
    return shown if len(names) <= n else f"{shown} and {len(names) - n} more"
