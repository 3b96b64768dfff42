"""What calls write: checked, and merged into the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reallm.data.batching import n_samples
from reallm.data.namedarray import NamedArray, merge
from reallm.errors import PluginError, kind_of
from reallm.specs import ModelFunctionCall

WEIGHTS_VERSIONS = "weights_versions"
"""Metadata of a batch with generated tokens: role -> the version of the weights that generated them."""


def merged(batch: NamedArray, parts: Sequence[NamedArray]) -> NamedArray:
    """The batch with outputs of calls; with generated tokens, the version of the weights is noted."""
    versions: dict[str, int] = {}
    for part in (batch, *parts):
        versions |= part.metadata.get(WEIGHTS_VERSIONS, {})
    if not versions:
        return merge([batch, *parts])
    plain = [part.with_metadata(**{WEIGHTS_VERSIONS: None}) for part in (batch, *parts)]
    return merge(plain).with_metadata(**{WEIGHTS_VERSIONS: versions})


def check_outputs(call: ModelFunctionCall, outputs: Any, batch: NamedArray) -> None:
    """Check what an interface returned.

    Raises:
        PluginError: it is not a batch with the call's output keys for the samples of the input.
    """
    where = f"the interface of '{call.role}': {call.kind} for the call '{call.name}' returned"
    if not isinstance(outputs, NamedArray):
        raise PluginError(f"{where} {kind_of(outputs)}, not a NamedArray")
    missing = [key for key in call.outputs if key not in outputs]
    if missing:
        raise PluginError(f"{where} no '{missing[0]}', which the graph says it writes; it has {', '.join(outputs)}")
    extra = [key for key in outputs if key not in call.outputs]
    if extra:
        raise PluginError(f"{where} '{extra[0]}', which is not among the call's outputs, {', '.join(call.outputs)}")
    if n_samples(outputs) != n_samples(batch):
        raise PluginError(f"{where} {n_samples(outputs)} samples for a batch of {n_samples(batch)}")
