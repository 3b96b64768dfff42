"""Checks that the outputs of calls are finite before a model is trained with them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from reallm.data.namedarray import NamedArray, flatten
from reallm.errors import NonFiniteError, counted
from reallm.specs import ModelFunctionCall


def check_finite(call: ModelFunctionCall, outputs: NamedArray, read: Collection[str], names: Sequence[str]) -> None:
    """Check the floating-point outputs of a call that training reads. A field that is None has no numbers to check.

    Args:
        call: the call.
        outputs: its outputs.
        read: the keys that train calls read.
        names: name of each sample.

    Raises:
        NonFiniteError: a number is NaN or infinite; names the call, the key and the first such sample.
    """
    for name, value in flatten(outputs):
        key = name.partition(".")[0]
        if key not in read or value is None or isinstance(value, NamedArray):
            continue
        values = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        if not values.is_floating_point() or bool(torch.isfinite(values).all()):
            continue
        is_wrong = ~torch.isfinite(values).reshape(len(values), -1).all(dim=1)
        sizes = torch.tensor([sum(sample) for sample in outputs.metadata["seqlens"][key]])
        samples = torch.repeat_interleave(torch.arange(len(sizes)), sizes)[is_wrong.cpu()]
        first, n_others = int(samples[0]), len(samples.unique()) - 1
        number = values[~torch.isfinite(values)][0].item()
        others = f" and {counted(n_others, 'other sample')}" if n_others else ""
        raise NonFiniteError(
            f"the call '{call.name}' gives {number} as '{name}' for {names[first]}{others}, and nothing can be trained "
            f"with it; look at what the {'reward function' if call.kind == 'reward' else f'model of {call.role}'} "
            "makes of it"
        )
