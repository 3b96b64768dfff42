"""Prepacked weights for decoding, where the machine has room for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from reallm.machine_memory import available_memory
from reallm.model.products.linear import uses_onednn
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import is_fsdp

FEW_STEPS = 16
"""Number of decoding steps below which prepacking takes longer than it saves."""


def prepacked_for_decoding(model: Transformer, n_steps: int) -> AbstractContextManager[object]:
    """Context in which a network decodes up to `n_steps` tokens with prepacked weights, which are freed at the end.

    Not for few steps, nor where oneDNN does not compute products; for offloaded parameters, which are freed to save
    memory, or those that FSDP shards, which it writes unnoticed; or if less than twice the memory for them is free.
    Results are the same.
    """
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    if n_steps < FEW_STEPS or is_fsdp(model) or not weights or not uses_onednn(weights[0], weights[0]):
        return nullcontext()
    is_offloaded = any(not weight.untyped_storage().nbytes() for weight in weights)
    available = available_memory(weights[0].device)
    if is_offloaded or (available is not None and 2 * sum(weight.nbytes for weight in weights) > available):
        return nullcontext()
    return model.prepacked_weights()
