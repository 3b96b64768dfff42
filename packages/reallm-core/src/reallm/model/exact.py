"""Exact mode: what a network computes for a token is the same, bit for bit, whatever else a forward pass computes.

A packed forward pass of training and the passes by which a sequence was generated then give the same log-probabilities.
Products are computed by oneDNN on a CPU, whose rows do not depend on each other, and on a GPU a fixed number of rows
at a time, as norms are (`products.fixed_rows`). Attention is computed in chunks of positions (`model.attention.exact`),
activations by operations that treat all elements alike (`model.activations`). The rest needs nothing: softmax is
computed in blocks, and sums and products of two numbers are rounded correctly.

Libraries promise none of this, so it is probed: with random products and attention, and by passes of the network
itself, which finds layers of plugins that are not exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reallm.errors import ConfigError
from reallm.model.attention.exact import why_attention_is_not_exact
from reallm.model.attention.kv_cache import KVCache
from reallm.model.packed import PackedSequences
from reallm.model.products.onednn import why_not_batch_invariant
from reallm.model.rope import longest_with_fixed_frequencies
from reallm.model.softmax import highest, softmax
from reallm.model.transformer import Transformer

PASSES = ((37, 1), (28, 1), (1, 1), (1, 1), (3, 2))
"""Numbers of new tokens of two sequences in the cached passes of the probe; the first one outgrows a chunk of
attention."""


class ExactMode:
    """Context in which forward passes of a network are exact; it can be entered again and again, and nested.

    Args:
        network: the network; its layers must not be replaced afterwards.

    Raises:
        ConfigError: its forward passes cannot be exact; says why.
    """

    def __init__(self, network: Transformer) -> None:
        if reason := why_not_exact(network):
            raise ConfigError(f"exact mode is not possible: {reason}; leave exact out")
        self._network, self._layers = network, _exact_layers(network)
        self._before: list[bool] = []

    def __enter__(self) -> None:
        self._before.append(self._network.exact)
        _set_exact(self._layers, True)

    def __exit__(self, *exception: object) -> None:
        _set_exact(self._layers, self._before.pop())


def why_not_exact(network: Transformer) -> str | None:
    """The reason that forward passes of a network cannot be exact; None: they can, as probed."""
    parameters = list(network.parameters())
    device, dtype = parameters[0].device, parameters[0].dtype
    if network.config.base_is_quantized:
        return "the base model is in 4 bits"
    if not all(_has_exact_products(p) for p in parameters):
        return "it needs float32 parameters on a CPU, or float32 or half precision on a CUDA GPU"
    is_sharded = network.tp_size > 1 or any(type(p.data) is not Tensor for p in parameters)
    if is_sharded or len(network.block_numbers) < network.config.n_layers:
        return "it needs the whole network in each process, without tensor parallelism, a pipeline or FSDP"
    if network.is_compiled:
        return "it does not work with compiled blocks, since decoding is never compiled"
    probed = device, dtype, torch.get_num_threads()
    if probed not in network.exact_probes:
        reason = _why_cpu_differs(network) if device.type == "cpu" else None
        network.exact_probes[probed] = reason or _why_passes_differ(network)
    return network.exact_probes[probed]


def _has_exact_products(parameter: Tensor) -> bool:
    dtypes = {"cpu": {torch.float32}, "cuda": {torch.float32, torch.bfloat16, torch.float16}}
    return parameter.dtype in dtypes.get(parameter.device.type, ())


def _why_cpu_differs(network: Transformer) -> str | None:
    """The reason that products or attention on the CPU cannot be exact."""
    config = network.config
    return why_not_batch_invariant() or why_attention_is_not_exact(config.n_q_heads, config.n_kv_heads, config.head_dim)


def _exact_layers(network: Transformer) -> list[nn.Module]:
    """The network and the layers in it that declare `exact`."""
    return [module for module in network.modules() if hasattr(type(module), "exact")]


def _set_exact(layers: Sequence[nn.Module], value: bool) -> None:
    for layer in layers:
        layer.__dict__["exact"] = value  # nn.Module.__setattr__ takes as long as a small layer


@torch.no_grad()
def _why_passes_differ(network: Transformer) -> str | None:
    """Compare a packed pass over two sequences with cached passes over parts of them, block by block."""
    limits = network.config.longest_sequence, longest_with_fixed_frequencies(network.config)
    totals = [min(sum(sizes), *(limit or sum(sizes) for limit in limits)) for sizes in zip(*PASSES, strict=True)]
    generator, device = torch.Generator().manual_seed(0), next(network.parameters()).device
    sequences = [torch.randint(network.config.vocab_size, (n,), generator=generator).to(device) for n in totals]
    cache, parts = network.new_cache(len(totals), max(totals)), []
    was_training, layers = network.training, _exact_layers(network)
    network.eval()
    _set_exact(layers, True)
    try:
        packed = _outputs(network, sequences, None)
        for sizes in PASSES:
            ranges = [slice(start, start + n) for start, n in zip(cache.lengths, sizes, strict=True)]
            parts.append(_outputs(network, [s[each] for s, each in zip(sequences, ranges, strict=True)], cache))
        hidden = packed[0][-1]
        one, all_rows = network.head(hidden[:1]), network.head(hidden)
        head_differs = not torch.equal(one, all_rows[:1])
        is_policy = not network.config.is_critic
        softmax_differs = is_policy and not torch.equal(_normalizers(one), _normalizers(all_rows)[:1])
    finally:
        _set_exact(layers, False)
        network.train(was_training)
    for outputs, *of_parts in zip(packed, *parts, strict=True):
        differs = (torch.cat(of_parts, dim=1) != outputs).flatten(1).any(dim=1).tolist()
        if True in differs:
            name = [*(f"block {number}" for number in network.block_numbers), "the final norm"][differs.index(True)]
            return f"the result of {name} for a token depends on what else a forward pass computes"
    if head_differs:
        return "logits of a token depend on the other tokens"
    return "the softmax of a token's logits depends on the other tokens" if softmax_differs else None


def _normalizers(logits: Tensor) -> Tensor:
    return softmax(logits, highest(logits)).normalizer


def _outputs(network: Transformer, sequences: Sequence[Tensor], cache: KVCache | None) -> list[Tensor]:
    """Outputs [blocks + 1, L, E] of all blocks and the final norm for each sequence, given the cached tokens."""
    outputs: list[Tensor] = []
    hooks = [
        network.layers[str(number)].register_forward_hook(lambda *call: outputs.append(call[2]))
        for number in network.block_numbers
    ]
    sizes = [len(sequence) for sequence in sequences]
    seqs = PackedSequences.from_lengths(
        sizes, cached_lengths=None if cache is None else cache.lengths, device=sequences[0].device
    )
    try:
        outputs.append(network.forward_hidden(torch.cat(list(sequences)), seqs, cache))
    finally:
        for hook in hooks:
            hook.remove()
    return list(torch.stack(outputs).split(sizes, dim=1))
