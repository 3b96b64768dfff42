"""Prepacked weights for decoding, where the machine has room for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from reallm.machine_memory import available_memory
from reallm.model.parameter_names import head_weight_name
from reallm.model.products.linear import uses_onednn
from reallm.model.products.prepacked import PrepackedWeight
from reallm.model.quantized import linear_layers_with_weights
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import is_fsdp

FEW_STEPS = 16
"""Number of decoding steps below which prepacking takes longer than it saves."""


def prepacked_for_decoding(model: Transformer) -> AbstractContextManager[list[PrepackedWeight]]:
    """Context in which a network decodes with prepacked weights, which are freed at the end.

    Without any if less than twice the memory for them is free; see also `prepacked_bytes`. Results are the same.
    """
    n_bytes, available = prepacked_bytes(model), available_memory(next(model.parameters()).device)
    if n_bytes == 0 or (available is not None and 2 * n_bytes > available):
        return nullcontext([])
    return model.prepacked_weights()


def prepacked_bytes(model: Transformer) -> int:
    """Bytes that prepacked weights take; 0 if there are none.

    There are none where oneDNN does not compute products; of parameters that are offloaded, which are freed to save
    memory; or of those that FSDP shards, which it writes unnoticed.
    """
    weights = prepacked_parameters(model)
    if is_fsdp(model) or not weights or not uses_onednn(weights[0], weights[0]):
        return 0
    is_offloaded = any(not weight.untyped_storage().nbytes() for weight in weights)
    return 0 if is_offloaded else sum(weight.nbytes for weight in weights)


def prepacked_parameters(model: Transformer) -> list[Tensor]:
    """The weights that `Transformer.prepacked_weights` copies: those of linear layers, and the embedding if it is the
    head's."""
    of_layers = [layer.weight for layer in linear_layers_with_weights(model)]
    of_head = [weight for name, weight in model.named_parameters() if name == head_weight_name(model.config)]
    return list({id(weight): weight for weight in (*of_layers, *of_head)}.values())
