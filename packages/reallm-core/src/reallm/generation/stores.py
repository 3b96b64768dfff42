"""The KV store for a network: pages where torch has a kernel for them, else rows."""

from __future__ import annotations

from reallm.generation.kv_store import KVStore
from reallm.generation.page_store import PageStore
from reallm.generation.row_store import RowStore
from reallm.model.attention import varlen
from reallm.model.attention.functional import AttentionSpec
from reallm.model.config import is_custom_class
from reallm.model.transformer import Transformer


def make_store(network: Transformer, n_tokens: int, *, exact: bool = False) -> KVStore:
    """A store for a network, or a rank's part of it.

    Args:
        network: the network.
        n_tokens: number of tokens for which pages have room; rows are allocated as they are needed.
        exact: use rows, since the kernel for pages adds up in another order than that of training.
    """
    return PageStore.of(network, n_tokens) if not exact and _can_use_pages(network) else RowStore.of(network)


def _can_use_pages(network: Transformer) -> bool:
    """Whether the attention of all blocks is the core's, which the kernel for pages computes on this device.

    The blocks of other pipeline stages count too, so that all stages place sequences alike.
    """
    config, parameter = network.config, next(network.parameters())
    specs = [AttentionSpec.of_block(config, index).without_dropout() for index in range(config.n_layers)]
    return (
        not any(map(is_custom_class, config.attentions))
        and not is_custom_class(config.block)
        and config.value_dim == config.head_dim
        and all(varlen.supports(parameter.device, parameter.dtype, config.head_dim, spec) for spec in specs)
        and varlen.supports_pages()  # last: it imports the kernel, and with it `torch._dynamo`, in a second
    )
