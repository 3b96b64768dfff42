"""States: what a layer keeps of a sequence whatever its length, such as the last inputs of a convolution.

A layer declares them in `cache_spec`, as `CacheTensor(shape, per_token=False)`, behind what it keeps of each token. In
each pass it reads the states of all sequences, and writes those after their new tokens:

    states = read_states(cache, self.cache_spec, context.seqs)
    y, *states = ...
    write_states(cache, self.cache_spec, *states)

Shapes: S sequences.
"""

from __future__ import annotations

from torch import Tensor

from reallm.model.attention.kv_cache import BlockCache, CacheSpec, LayerCache, n_per_token
from reallm.model.packed import PackedSequences


def read_states(cache: LayerCache | None, spec: CacheSpec, seqs: PackedSequences) -> tuple[Tensor, ...] | None:
    """The states of the sequences of a forward pass, before its tokens.

    Args:
        cache: the layer's cache; None in training.
        spec: what the layer has declared, its `cache_spec`.
        seqs: the sequences of the pass.

    Returns:
        A tensor [S, *shape] for each declared state, in which sequences of which nothing is cached have zeros; the
        layer may change them. None if nothing is cached of any sequence: all states are zeros.
    """
    if cache is None or not any(seqs.cached_lengths):
        return None
    if isinstance(cache, BlockCache):
        return cache.read_states()
    states = tuple(state.clone() for state in cache[n_per_token(spec) :])
    for row, n_cached in enumerate(seqs.cached_lengths):
        if n_cached == 0:
            for state in states:
                state[row] = 0
    return states


def write_states(cache: LayerCache | None, spec: CacheSpec, *states: Tensor) -> None:
    """Keep states [S, *shape], one for each that the layer has declared, for the next pass; without a cache, nothing.

    To be called in each pass, also if `read_states` has returned None.
    """
    if isinstance(cache, BlockCache):
        cache.write_states(*states)
    elif cache is not None:
        for held, state in zip(cache[n_per_token(spec) :], states, strict=True):
            held.copy_(state)
