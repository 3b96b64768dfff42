"""Attention whose result for a token is the same, bit for bit, whatever else the forward pass computes.

Two numbers would change its last bits: that of the keys, by which sums over them are divided, and that of the queries,
since products of one to three rows have code of their own. So positions are divided into chunks: a query reads the keys
up to the end of its chunk through a mask, alone or with others, and queries are computed in multiples of four. The keys
behind the end of a sequence have no weight; they may be anything finite.

Shapes: T packed tokens, N sequences, H query heads, K KV heads, D head dim, L tokens of one sequence, C capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache as memoize
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from reallm.errors import counted
from reallm.model.activation_checkpointing import checkpoint
from reallm.model.attention.functional import AttentionSpec, mask_of_grouped, sdpa
from reallm.model.attention.kv_cache import BlockCache, LayerCache, store
from reallm.model.attention.masks import Slopes, causal_mask
from reallm.model.forward_context import ForwardContext
from reallm.model.packed import PackedSequences

CHUNK = 64
"""Number of positions in a chunk; larger ones let decoding read more keys, smaller ones make more calls."""
ROWS = 4
"""Each call has a multiple of this number of queries."""
PROBED_WIDTHS, PROBED_RANGES = (CHUNK, 9 * CHUNK, 17 * CHUNK), ((0, 1), (5, 8), (7, 41), (30, 63), (63, 64))
"""Numbers of keys, and ranges of a chunk's queries, with which the probe checks that the results are the same."""
_REMEDY = " (MKL_CBWR=AVX2,STRICT in the environment may help)"


class ExactAttention:
    """`attend_rotated` of one forward pass of an exact network."""

    def __init__(self) -> None:
        self._mask = memoize(chunk_mask)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, context: ForwardContext, spec: AttentionSpec, cache: LayerCache | None
    ) -> Tensor:
        """Attend; see `ForwardContext.attention`."""
        if isinstance(cache, BlockCache):
            return cache.attend(q, k, v, spec)
        seqs = context.seqs
        if cache is not None:
            store(cache, (k, v), seqs.cached_lengths, seqs.lengths)
            return self._attend(q, list(zip(*cache[:2], strict=True)), seqs, spec)
        if context.checkpoint_attention and not spec.has_kernel:
            return checkpoint(self._attend_packed, q, k, v, seqs, spec)
        return self._attend_packed(q, k, v, seqs, spec)

    def _attend_packed(self, q: Tensor, k: Tensor, v: Tensor, seqs: PackedSequences, spec: AttentionSpec) -> Tensor:
        keys, values = (packed.transpose(0, 1).split(list(seqs.lengths), dim=1) for packed in (k, v))
        return self._attend(q, list(zip(keys, values, strict=True)), seqs, spec)

    def _attend(
        self, q: Tensor, rows: Sequence[tuple[Tensor, Tensor]], seqs: PackedSequences, spec: AttentionSpec
    ) -> Tensor:
        """Attention of each sequence's new tokens over its row of keys and values [K, C, D]."""
        mask = self._mask(chunk_end(max(seqs.totals)), spec.window, q.dtype, q.device, spec.slopes)
        each = zip(q.split(list(seqs.lengths)), rows, seqs.totals, strict=True)
        return torch.cat([attend_chunks(new, keys, values, total, mask, spec) for new, (keys, values), total in each])


def chunk_end(n_tokens: int) -> int:
    """The end of the chunk in which the last of so many tokens is."""
    return -(-n_tokens // CHUNK) * CHUNK


def chunk_mask(
    n_keys: int, window: int | None, dtype: torch.dtype, device: torch.device, slopes: Slopes | None = None
) -> Tensor:
    """`causal_mask` [..., CHUNK, n_keys] of the queries of a chunk for the keys before its end.

    Args:
        n_keys: number of keys, a multiple of `CHUNK`.
        window: as in `causal_mask`.
        dtype: dtype of the scores.
        device: device of the scores.
        slopes: as in `causal_mask`.
    """
    return causal_mask(CHUNK, n_keys, window, dtype, device, slopes)


def attend_chunks(q: Tensor, keys: Tensor, values: Tensor, total: int, mask: Tensor, spec: AttentionSpec) -> Tensor:
    """Attention of the last L tokens of one sequence over all its tokens.

    Args:
        q: [L, H, D] rotated queries.
        keys: [K, C, D] rotated keys; those behind the sequence's end may be anything finite.
        values: [K, C, D].
        total: number of tokens of the sequence, those of the queries included.
        mask: `chunk_mask` for `chunk_end(total)` keys or more.
        spec: settings of the block.

    Returns:
        [L, H, D].
    """
    missing = chunk_end(total) - keys.shape[1]
    if missing > 0:
        keys, values = F.pad(keys, (0, 0, 0, missing)), F.pad(values, (0, 0, 0, missing))
    outputs, start = [q[:0]], total - len(q)
    for queries in q.split(_chunk_sizes(start, total)):
        left, right = key_range(start, spec.window)
        row, n = start % CHUNK, len(queries)
        seen = _filled_up(mask[..., row : row + n, mask.shape[-1] - (right - left) :])
        out = _attend(_filled_up(queries.transpose(0, 1)), keys[:, left:right], values[:, left:right], seen, spec)
        outputs.append(out[:, :n].transpose(0, 1))
        start += n
    return torch.cat(outputs)


def attend_rows(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, spec: AttentionSpec) -> Tensor:
    """Attention of one query of each of N sequences over the `key_range` of its chunk, which is the same for all.

    Args:
        q: [N, H, D] rotated queries.
        keys: [N, K, W, D] rotated keys of the range.
        values: [N, K, W, D].
        mask: `rows_mask` of the range.
        spec: settings of the block.

    Returns:
        [N, H, D].
    """
    mask = mask_of_grouped(mask, keys.shape[1])
    assert mask is not None
    grouped = q.unflatten(1, (keys.shape[1], -1))  # the query heads of a KV head are queries of one head
    missing = -grouped.shape[2] % ROWS
    filled = F.pad(grouped, (0, 0, 0, missing))
    if spec.sinks is not None:
        spec = replace(spec, sinks=F.pad(spec.sinks.view(grouped.shape[1:3]), (0, missing)))
    if mask.shape[2] > 1:
        mask = F.pad(mask, (0, 0, 0, missing))
    return _attend(filled, keys, values, mask, spec)[:, :, : grouped.shape[2]].flatten(1, 2)


def _attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, spec: AttentionSpec) -> Tensor:
    """`sdpa`, on a GPU by the one kernel that takes masks and computes a query alike among any others."""
    if q.is_cpu or spec.softcap is not None or spec.sinks is not None:
        return sdpa(q, keys, values, mask, spec)
    groups = q.shape[-3] // keys.shape[-3]
    if groups > 1:  # the kernel has no groups of its own
        keys, values = keys.repeat_interleave(groups, dim=-3), values.repeat_interleave(groups, dim=-3)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return sdpa(q, keys, values, mask, spec)


def key_range(position: int, window: int | None) -> tuple[int, int]:
    """The range of keys that the query at a position reads, as all queries of its chunk do."""
    start = position // CHUNK * CHUNK
    # it begins with the chunk in which the window of the chunk's first query begins
    left = 0 if window is None else max(0, start - window + 1) // CHUNK * CHUNK
    return left, start + CHUNK


def _chunk_sizes(start: int, stop: int) -> list[int]:
    """Sizes of the parts into which chunks divide the positions from `start` to `stop`."""
    ends = range(start // CHUNK * CHUNK + CHUNK, chunk_end(stop) + 1, CHUNK)
    bounds = [start, *(min(end, stop) for end in ends)]
    return [end - begin for begin, end in pairwise(bounds) if end > begin]


def _filled_up(x: Tensor) -> Tensor:
    """`x` [..., n, D] with its last row repeated up to a multiple of `ROWS`."""
    missing = -x.shape[-2] % ROWS
    return torch.cat((x, x[..., -1:, :].expand(*x.shape[:-2], missing, -1)), dim=-2) if missing else x


def why_attention_is_not_exact(n_q_heads: int, n_kv_heads: int, head_dim: int) -> str | None:
    """The reason that attention on the CPU may depend on what else is computed; None: as probed, it does not."""
    return _why_attention_differs(n_q_heads, n_kv_heads, head_dim, torch.get_num_threads())


@memoize
def _why_attention_differs(n_q_heads: int, n_kv_heads: int, head_dim: int, n_threads: int) -> str | None:
    """Compare a whole chunk of queries with some of them, and with one of each head in a batch of rows."""
    spec, generator, n_rows = AttentionSpec(head_dim**-0.5), torch.Generator().manual_seed(0), 3
    for width in PROBED_WIDTHS:
        keys, values = torch.randn(2, n_rows, n_kv_heads, width, head_dim, generator=generator)
        q = torch.randn(CHUNK, n_q_heads, head_dim, generator=generator)
        mask = chunk_mask(width, None, q.dtype, q.device)
        whole = attend_chunks(q, keys[0], values[0], width, mask, spec)
        for start, stop in PROBED_RANGES:
            total = width - CHUNK + stop
            if not torch.equal(attend_chunks(q[start:stop], keys[0], values[0], total, mask, spec), whole[start:stop]):
                return f"attention depends on the number of queries on {counted(n_threads, 'thread')}{_REMEDY}"
        for row in (0, CHUNK - 1):
            seen = mask[row].expand(n_rows, -1)
            if not torch.equal(attend_rows(q[row].expand(n_rows, -1, -1), keys, values, seen, spec)[0], whole[row]):
                return f"attention depends on the number of sequences on {counted(n_threads, 'thread')}{_REMEDY}"
    return None
