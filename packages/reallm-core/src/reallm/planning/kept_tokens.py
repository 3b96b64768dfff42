"""What layers keep for decoding, as they declare it: keys and values or latents of tokens, and states of sequences."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from reallm.model.attention.kv_cache import CacheTensor
from reallm.model.config import ReaLModelConfig
from reallm.model.parameters import meta_model


@lru_cache(maxsize=256)
def kept_numbers(config: ReaLModelConfig, tp: int) -> int:
    """Numbers that one of `tp` ranks keeps of a token, in all blocks."""
    return sum(math.prod(each.local_shape(tp)) for kept in _kept_by_block(config) for each in kept)


@lru_cache(maxsize=256)
def state_bytes(config: ReaLModelConfig, tp: int, dtype: torch.dtype) -> int:
    """Bytes of the states of a sequence that one of `tp` ranks keeps, in all blocks."""
    kept = (each for spec in meta_model(config).cache_specs().values() for each in spec if not each.per_token)
    return sum(each.local_bytes(tp, dtype) for each in kept)


@lru_cache(maxsize=64)
def mean_head_width(config: ReaLModelConfig) -> float:
    """Numbers that a head reads of each token, in the mean over the blocks: the dims of its key and of its value.

    What is the only tensor of a layer, as a latent is, is read as both.
    """
    widths = [sum(each.shape[-1] for each in kept) * (2 if len(kept) == 1 else 1) for kept in _kept_by_block(config)]
    return sum(widths) / config.n_layers


def _kept_by_block(config: ReaLModelConfig) -> list[list[CacheTensor]]:
    """The tensors of each block that have a part for each token."""
    return [[each for each in spec if each.per_token] for spec in meta_model(config).cache_specs().values()]
