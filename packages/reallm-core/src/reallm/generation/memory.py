"""The memory that keys and values of generated sequences may take."""

from __future__ import annotations

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
    return _bytes_kept(network, per_token=True)


def bytes_per_sequence(network: Transformer) -> int:
    """Bytes of the states that they keep of each sequence, beside those of its tokens."""
    return _bytes_kept(network, per_token=False)


def _bytes_kept(network: Transformer, *, per_token: bool) -> int:
    dtype = next(network.parameters()).dtype
    specs = network.cache_specs().values()
    return sum(
        each.local_bytes(network.tp_size, dtype) for spec in specs for each in spec if each.per_token == per_token
    )


def default_kv_cache_tokens(network: Transformer) -> int:
    """Number of tokens whose keys and values fit in half of the memory that prepacked weights leave free.

    States count as if each sequence had the tokens of the smallest row. Processes of a job on the same machine share
    its memory.
    """
    device = next(network.parameters()).device
    available = available_memory(device)
    size = bytes_per_token(network) + -(-bytes_per_sequence(network) // BLOCK_SIZE)
    if available is None or size == 0:
        return TOKENS_OF_UNKNOWN_MEMORY
    rank_env = RankEnv.from_environment(os.environ) if device.type == "cpu" else None
    n_processes = 1 if rank_env is None else rank_env.local_size
    free = max(0, available // n_processes - prepacked_bytes(network))
    return max(BLOCK_SIZE, int(free * SHARE_OF_MEMORY) // size)
