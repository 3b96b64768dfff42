"""`DecodePass`: the forward pass of a decoding step on a CPU, one new token a sequence, in few calls.

A step of few sequences takes little longer than reading the weights, so that every call of a module, a view or a small
operation counts. This pass computes what the general one does, bit for bit. What differs: the product before a residual
sum computes the sum too; queries and keys are rotated together and in place; since a product has at least four rows,
all operations have; and weights are known to be prepacked, so that no product looks whether they are.

Shapes: S sequences, R = max(S, 4) rows, E hidden, F intermediate, H query heads, K KV heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn

from reallm.model.attention.gqa import Attention
from reallm.model.attention.kv_cache import BlockCache, ForwardCache
from reallm.model.block import Block, ParallelBlock
from reallm.model.layers import Activation, GatedMLP, Linear, PlainMLP, RMSNorm
from reallm.model.packed import PackedSequences
from reallm.model.parameter_names import EMBEDDING_LAYER, head_layer
from reallm.model.products.onednn import PREPACKED_COPIES, adds_exactly, product_of_rows
from reallm.model.products.prepacked import WeightOwner
from reallm.model.rope import rotations
from reallm.model.transformer import Transformer


class DecodePass:
    """The decoding pass of a network, made by `of`."""

    def __init__(self, network: Transformer, blocks: Mapping[int, Block | ParallelBlock]) -> None:
        self._network = network
        self._embedding = network.layers[str(EMBEDDING_LAYER)]
        self._final_norm = network.layers[str(head_layer(network.config))]
        self._blocks = {number: _Block(block) for number, block in blocks.items()}
        self._products = [product for block in self._blocks.values() for product in block.products]
        modules = [module for block in blocks.values() for module in block.modules()]
        self._hooks = [hooks for each in modules for hooks in (each._forward_hooks, each._forward_pre_hooks)]

    @classmethod
    def of(cls, network: Transformer) -> DecodePass | None:
        """The pass of a whole network; None unless it covers all blocks.

        It covers attention without a gate of its output, and an MLP without experts, one after the other or in
        parallel. Norms and where they are, activations, biases, rotations, windows, soft caps, sinks and slopes may be
        any that the configuration knows.
        """
        blocks = {number: network.layers[str(number)] for number in network.block_numbers}
        if not adds_exactly() or not all(map(_is_covered, blocks.values())):
            return None
        return cls(network, {number: cast(Block | ParallelBlock, block) for number, block in blocks.items()})

    @property
    def is_possible(self) -> bool:
        """Whether it can replace the general pass now: in a context of `settled_weights`, and if no hook is called."""
        if any(self._hooks):
            return False
        if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
            return False
        return all(product.is_settled for product in self._products)

    @torch.inference_mode()  # no autograd: fewer instructions in each call
    def hidden(self, tokens: Sequence[int], seqs: PackedSequences, cache: ForwardCache) -> Tensor:
        """Hidden states [S, E] after the final norm, without gradients; as `Transformer.forward_hidden`.

        Args:
            tokens: the new token of each sequence.
            seqs: the sequences.
            cache: what the blocks keep of earlier tokens, each in a `BlockCache`.
        """
        rows = _with_copies(tokens)
        cached_lengths = _with_copies(seqs.cached_lengths)
        seqs_of_rows = PackedSequences.from_lengths([1] * len(rows), cached_lengths=cached_lengths)
        x = self._embedding(torch.tensor(rows), seqs_of_rows)
        step = _Step(self._network, seqs, x)
        for number, block in self._blocks.items():
            x = block(x, step, cast(BlockCache, cache.blocks[number]))
        cache.advance(seqs.lengths)
        return cast(Tensor, self._final_norm(x))[: len(tokens)]


class _Step:
    """What all blocks share in a pass over sequences, the first of which are those of the rows `x` [R, E]."""

    def __init__(self, network: Transformer, seqs: PackedSequences, x: Tensor) -> None:
        config, self.is_exact = network.config, network.exact
        n_heads = config.n_q_heads, config.n_kv_heads, config.n_kv_heads
        self.n_sequences, self.rotations = seqs.n_tokens, rotations(config, seqs, x.dtype)
        self.joint_rotations = [each.joint(n_heads, config.head_dim, len(x)) for each in self.rotations]
        """The same for queries and keys as one; None where that is not possible."""


class _Product:
    """The product of a linear layer, or of several that multiply the same input."""

    def __init__(self, owner: WeightOwner, *layers: Linear) -> None:
        self._owner, self._layers = owner, layers
        self._has_bias = any(layer.bias is not None for layer in layers)
        self.sizes = [layer.out_features for layer in layers]
        """Number of outputs of each layer."""

    @property
    def is_settled(self) -> bool:
        """Whether there is a prepacked form that is known to be that of the weights."""
        prepacked = self._owner.prepacked
        return prepacked is not None and prepacked.settled is not None

    def __call__(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """The outputs [R, sum of sizes] of the layers, plus `addend`."""
        prepacked = self._owner.prepacked
        assert prepacked is not None
        assert prepacked.settled is not None
        return product_of_rows(x, prepacked.settled, self._bias if self._has_bias else None, addend)

    @property
    def _bias(self) -> Tensor:
        biases: list[Tensor] = [
            layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in self._layers
        ]
        return biases[0] if len(biases) == 1 else torch.cat(biases)


class _Block:
    """The pass through one block."""

    def __init__(self, block: Block | ParallelBlock) -> None:
        attn, mlp = cast(Attention, block.attn), cast(GatedMLP | PlainMLP, block.mlp)
        self._block, self._attn = block, attn
        self._attn_norm, self._mlp_norm = _norm(block.attn_norm), _norm(block.mlp_norm)
        self._is_parallel = isinstance(block, ParallelBlock)
        self._shares_norm = isinstance(block, ParallelBlock) and block.shares_norm
        self._attn_post_norm, self._mlp_post_norm = (
            (None, None) if isinstance(block, ParallelBlock) else (block.attn_post_norm, block.mlp_post_norm)
        )
        self._qkv, self._o = _Product(attn, attn.q, attn.k, attn.v), _Product(attn.o, attn.o)
        self._is_plain = attn.clip is None and isinstance(attn.q_norm, nn.Identity)
        self._up = _Product(mlp, mlp.gate, mlp.up) if isinstance(mlp, GatedMLP) else _Product(mlp.up, mlp.up)
        self._down = _Product(mlp.down, mlp.down)
        self._act, self._is_gated = cast(Activation, mlp.act), isinstance(mlp, GatedMLP)
        self.products = self._qkv, self._o, self._up, self._down

    def __call__(self, x: Tensor, step: _Step, cache: BlockCache) -> Tensor:
        """The block's output [R, E]."""
        spec, n = self._attn.of_heads(self._attn.inference_spec), step.n_sequences
        block_input, normed = x, self._attn_norm(x)
        q, k, v = self._heads(self._qkv(normed), spec.rotation, step)
        attended = _rows_with_copies(cache.attend(q, k, v, spec).flatten(1))
        x = self._plus(x, self._o, attended, self._attn_post_norm)
        if not self._shares_norm:
            normed = self._mlp_norm(block_input if self._is_parallel else x)
        inner = self._up(normed)
        activation = self._act.exact_function if step.is_exact else self._act.function
        if self._is_gated:
            gate, up = inner.chunk(2, dim=-1)
            inner = activation(gate).mul_(up)
        else:  # without the copies: with more elements some activations compute the last ones in another way
            inner = _rows_with_copies(activation(inner[:n]))
        return self._plus(x, self._down, inner, self._mlp_post_norm)

    def _plus(self, x: Tensor, product: _Product, inputs: Tensor, norm: nn.Module | None) -> Tensor:
        """The residual connection: `x` [R, E] and a product of `inputs` [R, ...]."""
        if norm is None and self._block.add.multiplier == 1.0:
            return product(inputs, x)
        return cast(Tensor, self._block.add(x, product(inputs), norm))

    def _heads(self, qkv: Tensor, rotation: int | None, step: _Step) -> Sequence[Tensor]:
        """Rotated queries [S, H, D] and keys [S, K, D], and values [S, K, D], from the output of their product."""
        attn, n = self._attn, step.n_sequences
        joint = None if rotation is None else step.joint_rotations[rotation]
        if joint is not None and self._is_plain:
            return joint(qkv)
        q, k, v = (part[:n] for part in qkv.split_with_sizes(self._qkv.sizes, dim=-1))
        q, k, v = attn.heads(q, attn.q_norm), attn.heads(k, attn.k_norm), attn.heads(v)
        if rotation is not None:
            q, k = step.rotations[rotation].both(q, k)
        return q, k, v


def _is_covered(block: nn.Module) -> bool:
    """Whether a block is of the kind that `_Block` computes, and its layers do nothing of their own."""
    if type(block) is not Block and type(block) is not ParallelBlock:
        return False
    if type(block.attn) is not Attention or block.attn.gate is not None or type(block.mlp) not in (GatedMLP, PlainMLP):
        return False
    linear = [module for module in block.modules() if isinstance(module, nn.Linear)]
    return type(block.mlp.act) is Activation and all(isinstance(each, Linear) and each.is_plain for each in linear)


def _norm(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """A norm; if it is an RMS norm of float32, in half as many calls, with the same result.

    `torch.rms_norm` makes a tensor of each number, in the dtype of the input, at each call.
    """
    if type(norm) is not RMSNorm or norm.weight is None or norm.bias is not None or norm.offset:
        return norm
    size, eps = (torch.tensor(float(number), dtype=torch.float32) for number in (norm.weight.numel(), norm.eps))
    parameters = cast(dict[str, Tensor], norm._parameters)  # where an assignment to `norm.weight` is seen too

    def normed(x: Tensor) -> Tensor:
        squares = x * x
        scale = squares.sum(-1, True).div_(size).add_(eps).rsqrt_()
        return torch.mul(x, scale, out=squares).mul_(parameters["weight"])

    return normed


def _with_copies(values: Sequence[int]) -> list[int]:
    """Values of the sequences, and those of the copies of the first."""
    return [*values, *[values[0]] * (PREPACKED_COPIES - len(values))]


def _rows_with_copies(rows: Tensor) -> Tensor:
    """Rows [S, ...] of the sequences, and copies of the first: [R, ...]."""
    if len(rows) == 1:
        return rows.expand(PREPACKED_COPIES, -1)
    if len(rows) >= PREPACKED_COPIES:
        return rows
    return torch.cat((rows, rows[:1].expand(PREPACKED_COPIES - len(rows), -1)))
