"""Finds out whether a model computes finite numbers at all, and if not, which weight or layer is at fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reallm.checkpoint.finite import nonfinite_names
from reallm.errors import NonFiniteError, counted
from reallm.generation.logprobs import forward_packed
from reallm.model.parameter_names import EMBEDDING_LAYER, all_layers, head_layer
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import local_tensors
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import all_gather_json
from reallm.parallel.parallelize import local_layers

N_TOKENS = 8
"""Length of the sequence that is tried."""


def model_fault(network: Transformer, mesh: Mesh | None = None) -> str | None:
    """The reason that results of a model are not finite whatever its input, as a clause; None if they are finite.

    The model is tried with a few tokens that have nothing to do with any data. With a mesh, all ranks of its layout
    call this, and get the same result.
    """
    weights = nonfinite_names(local_tensors(network))
    layers, output_is_finite = _try(network, mesh)
    if mesh is not None and mesh.layout.size > 1:
        by_rank = all_gather_json([weights, layers], mesh.all).values()
        weights = sorted({name for names, _ in by_rank for name in names})
        layers = sorted({layer for _, numbers in by_rank for layer in numbers})
    if weights:
        more = f" and {counted(len(weights) - 1, 'more parameter')} have" if len(weights) > 1 else " has"
        return f"the parameter '{weights[0]}'{more} values that are NaN or infinite"
    if output_is_finite:
        return None
    dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
    where = _layer_text(layers[0], network) if layers else "the output head"
    remedy = "" if dtype == "float32" else "; in float32 it may be"
    return f"the weights are finite, but in {dtype} the output of {where} is not{remedy}"


@contextmanager
def nonfinite_explained(network: Transformer, mesh: Mesh | None = None) -> Iterator[None]:
    """Context whose NonFiniteError says what is wrong with the model, as `model_fault` finds it."""
    try:
        yield
    except NonFiniteError as error:
        fault = model_fault(network, mesh) or "for other tokens they are finite, and so are the weights"
        raise NonFiniteError(f"{error}; {fault}") from None


@torch.no_grad()
def _try(network: Transformer, mesh: Mesh | None) -> tuple[list[int], bool]:
    """Numbers of this rank's layers whose output is not finite, in order, and whether the log-probabilities are."""
    nonfinite: list[int] = []

    def watch(number: int, module: nn.Module) -> Any:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                nonfinite.append(number)

        return module.register_forward_hook(look)

    n_tokens = min(N_TOKENS, network.config.longest_sequence or N_TOKENS)
    tokens = torch.arange(n_tokens) % network.config.vocab_size

    def per_token(hidden: Tensor, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        return network.head(hidden) if network.config.is_critic else network.logprobs(hidden, tokens)

    numbers = all_layers(network.config) if mesh is None else local_layers(network.config, mesh)
    with ExitStack() as hooks:
        if not network.is_compiled:  # compiled blocks would be compiled again
            for number in numbers:
                hooks.callback(watch(number, network.layers[str(number)]).remove)
        result = forward_packed(network, tokens, torch.tensor([0, n_tokens]), per_token, mesh=mesh)
    return sorted(nonfinite), bool(result.isfinite().all())


def _layer_text(number: int, network: Transformer) -> str:
    if number == EMBEDDING_LAYER:
        return "the embedding"
    return "the final norm" if number == head_layer(network.config) else f"block {number} of {network.config.n_layers}"
