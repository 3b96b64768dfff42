"""The memory that keys and values of generated sequences may take."""

from __future__ import annotations

import math
import os

from reallm.generation.prefix_index import BLOCK_SIZE
from reallm.generation.prepacking import prepacked_bytes
from reallm.launch.rank_env import RankEnv
from reallm.machine_memory import available_memory
from reallm.model.transformer import Transformer

SHARE_OF_MEMORY = 0.5
"""Share of the free memory that the cache may take; the rest is for activations, logits and others."""
TOKENS_OF_UNKNOWN_MEMORY = 65536


def bytes_per_token(network: Transformer) -> int:
    """Bytes that the blocks of a network, or of a rank's part of it, keep of each token."""
    dtype = next(network.parameters()).dtype
    return sum(
        math.prod(each.local_shape(network.tp_size)) * (each.dtype or dtype).itemsize
        for spec in network.cache_specs().values()
        for each in spec
        if each.per_token
    )


def default_kv_cache_tokens(network: Transformer) -> int:
    """Number of tokens whose keys and values fit in half of the memory that prepacked weights leave free.

    Processes of a job on the same machine share its memory.
    """
    device = next(network.parameters()).device
    available, size = available_memory(device), bytes_per_token(network)
    if available is None or size == 0:
        return TOKENS_OF_UNKNOWN_MEMORY
    rank_env = RankEnv.from_environment(os.environ) if device.type == "cpu" else None
    n_processes = 1 if rank_env is None else rank_env.local_size
    free = max(0, available // n_processes - prepacked_bytes(network))
    return max(BLOCK_SIZE, int(free * SHARE_OF_MEMORY) // size)
