"""Causal attention over packed sequences: one signature, several implementations.

Shapes: T packed tokens, S sequences, H query heads, K KV heads, D head dim, L length of one sequence.

On CUDA in half precision the whole pack goes through one `varlen_attn` call. Everywhere else each sequence is a
separate `scaled_dot_product_attention` call, which on CPU is several times faster than padding, masking or compiled
flex attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from reallm.model.activation_checkpointing import checkpoint
from reallm.model.attention import masks, varlen
from reallm.model.attention.kv_cache import BlockCache, LayerCache, store
from reallm.model.attention.masks import CausalMasks, Slopes, alibi_slopes, causal_mask, rows_mask
from reallm.model.attention.sinks import attend_on_cpu
from reallm.model.config import ReaLModelConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.packed import PackedSequences


@dataclass(frozen=True)
class AttentionSpec:
    """Settings of a block's attention, and its parameters beside projections."""

    scale: float
    """Factor on scores."""
    window: int | None = None
    """Number of tokens that each token sees, itself included; None: itself and all before it."""
    softcap: float | None = None
    """Scores become `softcap * tanh(score / softcap)`."""
    dropout: float = 0.0
    """Dropout of attention weights."""
    rotation: int | None = None
    """Index of the block's RoPE in `config.distinct_ropes`; None: no rotation."""
    slopes: Slopes | None = None
    """Slope of ALiBi of each query head: `-slope * distance` is added to scores. A layer replaces them by those of the
    heads that it has, `of_heads`."""
    sinks: Tensor | None = field(default=None, compare=False)
    """[H], a logit of each query head that takes part in the softmax, and whose weight is dropped. It is a parameter,
    which a layer adds in each forward pass, `of_heads`."""

    @classmethod
    def of_block(cls, config: ReaLModelConfig, block: int) -> AttentionSpec:
        """Settings of a block, numbered from 0, from the configuration."""
        rope = config.ropes[block]
        return cls(
            scale=config.attn_scales[block],
            window=config.windows[block],
            softcap=config.attn_softcap,
            dropout=config.attn_dropout,
            rotation=None if rope is None else config.distinct_ropes.index(rope),
            slopes=None if config.alibi_scale is None else alibi_slopes(config.n_q_heads, config.alibi_scale),
        )

    def without_dropout(self) -> AttentionSpec:
        """These settings without dropout, for inference."""
        return replace(self, dropout=0.0)

    def of_heads(self, *, sinks: Tensor | None = None, slopes: Slopes | None = None) -> AttentionSpec:
        """These settings with what belongs to the query heads that a layer has on this rank."""
        if sinks is None and slopes is None:
            return self
        return replace(self, sinks=sinks, slopes=self.slopes if slopes is None else slopes)

    @property
    def has_kernel(self) -> bool:
        """Whether torch has a fused kernel for these settings, which never materialises the scores."""
        return self.softcap is None and self.dropout == 0.0


def attend(
    q: Tensor, k: Tensor, v: Tensor, context: ForwardContext, spec: AttentionSpec, cache: LayerCache | None
) -> Tensor:
    """Rotate queries and keys, write keys and values to the cache, attend.

    Args:
        q: [T, H, D] queries, before rotation.
        k: [T, K, D] keys, before rotation; K divides H.
        v: [T, K, W] values; W may differ from D.
        context: context of this forward pass.
        spec: settings of this block, `AttentionSpec.of_block(config, block)`; in evaluation `.without_dropout()`.
        cache: what is kept of the earlier tokens of this block; the new keys and values are appended in place.

    Returns:
        [T, H, W], dtype of `q`.
    """
    if spec.rotation is not None:
        q, k = context.rotations[spec.rotation].both(q, k)
    return context.attention(q, k, v, context, spec, cache)


def attend_rotated(
    q: Tensor, k: Tensor, v: Tensor, context: ForwardContext, spec: AttentionSpec, cache: LayerCache | None
) -> Tensor:
    """`attend` after the rotation: `q` [T, H, D], `k` and `v` [T, K, D] -> [T, H, D]."""
    if isinstance(cache, BlockCache):
        return cache.attend(q, k, v, spec)
    seqs = context.seqs
    if cache is not None:
        store(cache, (k, v), seqs.cached_lengths, seqs.lengths)
    if cache is None or not any(seqs.cached_lengths):
        if context.checkpoint_attention and not spec.has_kernel:
            return checkpoint(attend_packed, q, k, v, seqs, spec, context.masks)
        return attend_packed(q, k, v, seqs, spec, context.masks)
    keys, values = cache[:2]
    return attend_cached(q, keys, values, context, spec)


def attend_cached(q: Tensor, keys: Tensor, values: Tensor, context: ForwardContext, spec: AttentionSpec) -> Tensor:
    """Attention of the new tokens `q` [T, H, D] of the sequences over cached `keys` and `values` [S, K, C, D]."""
    seqs = context.seqs
    if seqs.max_length == 1 == min(seqs.lengths):
        return _decode(q, keys, values, seqs, spec)
    return torch.cat(
        [
            attend_sequence(new, keys[row, :, :total], values[row, :, :total], spec, context.masks)
            for row, (new, total) in enumerate(zip(q.split(list(seqs.lengths)), seqs.totals, strict=True))
        ]
    )


def with_one_head_dim(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Queries, keys and values [..., D] with zeros up to one size, and the size of values without them.

    Kernels that never materialise the scores take heads of one size only.
    """
    size = max(q.shape[-1], v.shape[-1])
    wide_q, wide_k, wide_v = (x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1])) for x in (q, k, v))
    return wide_q, wide_k, wide_v, v.shape[-1]


def append(cache: LayerCache | None, new: Tensor, seqs: PackedSequences) -> int:
    """Append what a block keeps of each token [T, K, D], as keys and values in one; for a layer that declares one
    `CacheTensor((K, D))`.

    Returns:
        The number of the first tokens to which `attend_new` applies, since nothing is cached of their sequences, or
        there is no cache; `attend_kept` applies to all others.
    """
    if cache is None:
        return len(new)
    if isinstance(cache, BlockCache):
        cache.append(new)
        return cache.n_started
    store(cache, (new,), seqs.cached_lengths, seqs.lengths)
    return 0 if any(seqs.cached_lengths) else len(new)


def attend_new(
    q: Tensor, k: Tensor, v: Tensor, context: ForwardContext, spec: AttentionSpec, cache: LayerCache | None
) -> Tensor:
    """Attention within sequences of which nothing is cached, after `append`; as `attend_rotated`, writing nothing."""
    if isinstance(cache, BlockCache):
        return cache.attend_started(q, k, v, spec)
    return context.attention(q, k, v, context, spec, None)


def attend_kept(q: Tensor, context: ForwardContext, spec: AttentionSpec, cache: LayerCache) -> Tensor:
    """Attention of the other tokens [T, H, D], after `append`, over what is kept, which is keys and values in one.

    Returns:
        [T, H, D].
    """
    if isinstance(cache, BlockCache):
        return cache.attend_cached(q, spec)
    kept = cache[0]
    return attend_cached(q, kept, kept, context, spec)


def attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seqs: PackedSequences,
    spec: AttentionSpec,
    causal_masks: CausalMasks | None = None,
) -> Tensor:
    """Causal attention within each sequence of the pack: `q` [T, H, D], `k` and `v` [T, K, D] -> [T, H, D]."""
    causal_masks = causal_masks or CausalMasks(seqs.max_length)
    if varlen.supports(q.device, q.dtype, max(q.shape[-1], v.shape[-1]), spec):
        q, k, v, value_dim = with_one_head_dim(q, k, v)
        return varlen.attend_packed(q, k, v, seqs, spec)[..., :value_dim]
    lengths = list(seqs.lengths)
    return torch.cat(
        [
            attend_sequence(qs, ks.transpose(0, 1), vs.transpose(0, 1), spec, causal_masks)
            for qs, ks, vs in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        ]
    )


def attend_sequence(
    q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, causal_masks: CausalMasks | None = None
) -> Tensor:
    """Attention of the last L tokens of one sequence over all its tokens.

    Args:
        q: [L, H, D] rotated queries.
        k: [K, L', D] rotated keys, those of the queries at the end.
        v: [K, L', W] values.
        spec: settings of the block.
        causal_masks: the masks of the forward pass; None: this sequence has its own.

    Returns:
        [L, H, W].
    """
    n_new, total = q.shape[0], k.shape[1]
    if n_new == 0:
        return q[..., : v.shape[-1]]
    if q.shape[-1] != v.shape[-1]:
        q, k, v, value_dim = with_one_head_dim(q, k, v)
        return attend_sequence(q, k, v, spec, causal_masks)[..., :value_dim]
    q, causal_masks = q.transpose(0, 1), causal_masks or CausalMasks(total)
    whole = spec.window is None or total <= spec.window
    if whole and n_new == total and spec.slopes is None:
        return sdpa(q, k, v, None, spec, causal=True).transpose(0, 1)
    chunk = masks.CHUNK
    if spec.slopes is None:
        chunk = n_new if whole else max(chunk, spec.window or 0)
    outputs = []
    for start in range(0, n_new, chunk):
        end = min(start + chunk, n_new)
        # queries at positions first..last see keys from first - window + 1 to themselves
        first, last = total - n_new + start, total - n_new + end
        left = 0 if spec.window is None else max(0, first - spec.window + 1)
        mask = causal_masks(last - first, last - left, spec, q)
        outputs.append(sdpa(q[:, start:end], k[:, left:last], v[:, left:last], mask, spec))
    return torch.cat(outputs, dim=1).transpose(0, 1)


def attend_rows(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, spec: AttentionSpec) -> Tensor:
    """Attention of one query of each of N sequences over a row of keys of its own.

    The query heads that share a KV head are computed as queries of one head, so that each key is read once.

    Args:
        q: [N, H, D] rotated queries.
        keys: [N, K, C, D] rotated keys.
        values: [N, K, C, D].
        mask: `rows_mask`, of the dtype of `q`; None: all keys are seen.
        spec: settings of the block.

    Returns:
        [N, H, D].
    """
    grouped = q.view(len(q), keys.shape[1], -1, q.shape[-1])
    return sdpa(grouped, keys, values, mask_of_grouped(mask, keys.shape[1]), spec).flatten(1, 2)


def mask_of_grouped(mask: Tensor | None, n_kv_heads: int) -> Tensor | None:
    """A `rows_mask` [N, C] or [H, N, C] as [N, 1, 1, C] or [N, K, H / K, C], for the query heads of each KV head."""
    if mask is None or mask.dim() == 2:
        return None if mask is None else mask[:, None, None]
    return mask.transpose(0, 1).unflatten(1, (n_kv_heads, -1))


def _decode(q: Tensor, keys: Tensor, values: Tensor, seqs: PackedSequences, spec: AttentionSpec) -> Tensor:
    """Attention of one new token of each sequence: `q` [S, H, D] over cached `keys` and `values` [S, K, C, D]."""
    longest = max(seqs.totals)
    mask = rows_mask(seqs.totals, 0, longest, spec.window, q.dtype, q.device, spec.slopes)
    return attend_rows(q, keys[:, :, :longest], values[:, :, :longest], mask, spec)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, spec: AttentionSpec, *, causal: bool = False) -> Tensor:
    """Attention of [..., H, L, D] queries over [..., K, L', D] keys; `mask`, added, is [L, L'] or as many dims as `q`.

    The query heads of a KV head may be queries of one head: H is then K, and L the number of them.
    """
    on_cpu = q.is_cpu or q.is_meta
    if spec.softcap is not None or (spec.sinks is not None and (spec.dropout or not on_cpu)):
        return _with_scores(q, k, v, mask, spec, causal)
    batched = (q, k, v) if q.dim() == 4 else (q[None], k[None], v[None])
    mask = mask[None] if mask is not None and mask.dim() == 3 else mask
    if spec.sinks is not None:
        out = attend_on_cpu(*batched, _sinks_of(q, spec.sinks), mask, spec.scale, causal=causal)
    elif q.is_meta and not spec.dropout and q.shape[-1] == v.shape[-1]:
        # there torch would compute scores, which no kernel keeps
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, _ = kernel(*batched, is_causal=causal, attn_mask=mask, scale=spec.scale)
    else:
        out = F.scaled_dot_product_attention(
            *batched,
            attn_mask=mask,
            dropout_p=spec.dropout,
            is_causal=causal,
            scale=spec.scale,
            enable_gqa=q.shape[-3] != k.shape[-3],
        )
    return out if q.dim() == 4 else out[0]


def _sinks_of(q: Tensor, sinks: Tensor) -> Tensor:
    """The sinks of queries [..., H, L, D], to be broadcast to [..., H, L]."""
    return sinks.view(q.shape[-3], -1)


def _with_scores(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, spec: AttentionSpec, causal: bool) -> Tensor:
    """`sdpa` for which torch has no kernel: of soft-capped scores (Gemma 2 report, section 2), and of sinks with
    dropout or on a device other than the CPU."""
    groups = q.shape[-3] // k.shape[-3]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=-3), v.repeat_interleave(groups, dim=-3)
    scores = q @ k.transpose(-1, -2) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    if causal:
        mask = causal_mask(q.shape[-2], q.shape[-2], None, q.dtype, q.device)
    if mask is not None:
        scores = scores + mask
    if spec.sinks is not None:
        sinks = _sinks_of(q, spec.sinks).to(scores.dtype).unsqueeze(-1)
        scores = torch.cat((scores, sinks.expand(*scores.shape[:-1], 1)), dim=-1)
    wide = torch.promote_types(q.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=wide).to(q.dtype)
    return F.dropout(weights[..., : v.shape[-2]], spec.dropout) @ v
