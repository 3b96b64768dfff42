"""`StatedRates`: times of the pieces of a model from its shapes and the stated figures of a machine.

Matrix products take the longer of computing and of reading their weights (the roofline model; Williams et al., 2009);
what is between them takes the time to read and write activations. FLOPs and bytes follow from the shapes of parameters,
so that a plugin's layers are counted too.

Shapes: T packed tokens, E hidden, F intermediate, H query heads, K KV heads, D head dim, V vocabulary, X experts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from reallm.config.optimizer import OptimizerConfig
from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import block_layers, head_weight_name
from reallm.model.parameters import ParameterInfo, parameter_infos
from reallm.parallel.sharding import tp_box
from reallm.planning.kept_tokens import kept_numbers, mean_head_width, state_bytes
from reallm.planning.machine import Machine
from reallm.planning.rates import Division, Piece
from reallm.training.memory import state_per_parameter

ATTENTION_SHARE = 0.5
"""Share of the FLOP/s of matrix products that attention reaches."""
ATTENTION_BACKWARD = 2.5
"""FLOPs of attention's backward pass, relative to the forward pass: five products for two."""
STREAM_PASSES = 10
"""Times that [T, E] is read or written in a block, between products: two norms and two residual sums."""
HEAD_PASSES = 2
"""Times that queries and keys are read or written, to be rotated."""
INNER_PASSES = 3
"""Times that [T, F] is read or written by the activation."""
LOGIT_PASSES = 3
"""Times that float32 logits are read or written for log-probabilities."""


@dataclass(frozen=True)
class _Matrices:
    """Numbers of elements of the matrices of a piece on one rank."""

    dense: float
    """Of those that all tokens are multiplied by."""
    experts: float = 0.0
    """Of all experts together."""
    share_chosen: float = 0.0
    """Share of the experts that a token is multiplied by."""

    @property
    def of_token(self) -> float:
        """Elements that a token is multiplied by."""
        return self.dense + self.experts * self.share_chosen

    def read(self, n_tokens: float) -> float:
        """Elements that are read for so many tokens: of the experts only those that a token chooses."""
        return self.dense + self.experts * (1 - (1 - self.share_chosen) ** n_tokens)


class StatedRates:
    """Times of the pieces of a model on one rank, from stated figures; see `Rates`.

    Args:
        machine: the figures.
        config: the model.
        dtype: dtype of its parameters.
        optimizer: its optimizer, for the state that a step reads and writes.
    """

    source = "stated"

    def __init__(
        self, machine: Machine, config: ReaLModelConfig, dtype: torch.dtype, optimizer: OptimizerConfig | None = None
    ) -> None:
        self._machine, self._config = machine, config
        self._dtype, self._itemsize = dtype, dtype.itemsize
        self._optimizer = optimizer or OptimizerConfig()
        self._windows = Counter(config.windows)

    def when_busy(self, n_ranks: int) -> StatedRates:
        """The same rates: the figures of a machine are those of a rank while all compute."""
        return self

    def forward(self, piece: Piece, lengths: Sequence[int], tp: int = 1) -> float:
        """A forward pass over packed sequences of these lengths."""
        n = sum(lengths)
        if piece == "embedding":
            return self._read(2 * n * self._config.hidden_size * self._itemsize)
        products = self._products(_matrices(self._config, piece, tp), n)
        if piece == "head":
            return products + self._logits(n, tp)
        return products + self._attention(lengths, tp) + self._between_products(n, tp)

    def backward(self, piece: Piece, lengths: Sequence[int], tp: int = 1) -> float:
        """The backward pass that follows a forward pass; the head computes its logits once more."""
        n = sum(lengths)
        if piece == "embedding":
            return self._read(3 * n * self._config.hidden_size * self._itemsize)
        products = self._products(_matrices(self._config, piece, tp), n)
        if piece == "head":
            return 3 * products + 2 * self._logits(n, tp)
        return 2 * products + ATTENTION_BACKWARD * self._attention(lengths, tp) + 2 * self._between_products(n, tp)

    def decode(self, piece: Piece, n_sequences: int, context: float, tp: int = 1, division: Division = "") -> float:
        """A pass over one new token of each sequence; as fast if the network is divided."""
        if piece == "embedding":
            return self._read(2 * n_sequences * self._config.hidden_size * self._itemsize)
        products = self._products(_matrices(self._config, piece, tp), n_sequences)
        if piece == "head":
            return products + self._read(n_sequences * 4 * self._vocabulary / tp)
        config, seen = self._config, self._mean_over_windows(lambda window: min(context, window))
        kept = kept_numbers(config, tp) / config.n_layers
        states = 2 * state_bytes(config, tp, self._dtype) / config.n_layers  # read and written
        cached = self._read(n_sequences * (seen * kept * self._itemsize + states))
        flops = 2 * n_sequences * seen * config.n_q_heads / tp * mean_head_width(config)
        attention = max(cached, flops / (ATTENTION_SHARE * self._machine.flops))
        return products + attention + self._between_products(n_sequences, tp)

    def generation_start(self, n_parameters: int) -> float:
        """On a CPU the weights are copied into the order in which decoding reads them; on a GPU nothing is counted."""
        return self._read(2 * n_parameters * self._itemsize) if self._machine.device == "cpu" else 0.0

    def optimizer(self, n_parameters: int) -> float:
        """An optimizer step: reads gradients, reads and writes the state, masters and parameters."""
        masters = 8 if self._itemsize < 4 else 0
        state = 2 * max(4, self._itemsize) * state_per_parameter(self._config, self._optimizer)
        norm_and_gradients = 2 * max(4, self._itemsize)
        return self._read(n_parameters * (norm_and_gradients + state + masters + 2 * self._itemsize))

    def all_reduce(self, n_bytes: int, ranks: Sequence[int]) -> float:
        """A sum over ranks: as many bytes as in a ring, and the latency of a tree.

        Between nodes, the ranks of one node share what they exchange with another.
        """
        n = len(ranks)
        if n <= 1:
            return 0.0
        link = self._machine.link(ranks)
        n_nodes = len({self._machine.node(rank) for rank in ranks})
        bandwidth = link.bandwidth
        if n_nodes > 1:
            bandwidth = min(bandwidth * n / n_nodes, self._machine.within_node.bandwidth)
        return 2 * (n - 1) / n * n_bytes / bandwidth + 2 * math.ceil(math.log2(n)) * link.latency

    def all_gather(self, n_bytes: int, ranks: Sequence[int]) -> float:
        """A gather: the second half of a sum in a ring."""
        return self.all_reduce(n_bytes, ranks) / 2

    def reduce_scatter(self, n_bytes: int, ranks: Sequence[int]) -> float:
        """A sum of which each rank gets a part: the first half of a sum in a ring."""
        return self.all_reduce(n_bytes, ranks) / 2

    def point_to_point(self, n_bytes: int, ranks: Sequence[int]) -> float:
        """A message from the first of two ranks to the second."""
        return self._machine.link(ranks).seconds(n_bytes)

    def host_copy(self, n_bytes: int) -> float:
        """A copy from the device to host memory, or back."""
        return self._machine.host.seconds(n_bytes)

    # ------------------------------------------------------------------ parts of pieces

    @property
    def _vocabulary(self) -> int:
        return 1 if self._config.is_critic else self._config.vocab_size

    def _read(self, n_bytes: float) -> float:
        return n_bytes / self._machine.memory_bandwidth

    def _products(self, matrices: _Matrices, n_tokens: float) -> float:
        """One pass of products over so many tokens."""
        computing = 2 * matrices.of_token * n_tokens / self._machine.flops
        return max(computing, self._read(matrices.read(n_tokens) * self._itemsize))

    def _logits(self, n_tokens: float, tp: int) -> float:
        """Log-probabilities from logits."""
        return self._read(LOGIT_PASSES * 4 * n_tokens * self._vocabulary / tp)

    def _between_products(self, n_tokens: float, tp: int) -> float:
        """Norms, rotations, activations and sums of a block."""
        config = self._config
        heads = HEAD_PASSES * (config.n_q_heads + config.n_kv_heads) * config.head_dim
        inner = INNER_PASSES * self._intermediate
        return self._read(n_tokens * self._itemsize * (STREAM_PASSES * config.hidden_size + (heads + inner) / tp))

    @property
    def _intermediate(self) -> float:
        """Mean of F over the blocks; of experts, of those that a token chooses and those that all share."""
        config, n_expert = self._config, len(self._config.expert_blocks)
        chosen = 0 if config.moe is None else config.moe.top_k * config.expert_size + config.shared_expert_size
        return (n_expert * chosen + (config.n_layers - n_expert) * config.intermediate_size) / config.n_layers

    def _attention(self, lengths: Sequence[int], tp: int) -> float:
        """Causal attention, in a forward pass: each token sees itself and those before it, in its window."""
        pairs = self._mean_over_windows(lambda window: sum(_pairs(length, window) for length in lengths))
        flops = 2 * pairs * self._config.n_q_heads / tp * (self._config.head_dim + self._config.value_dim)
        return flops / (ATTENTION_SHARE * self._machine.flops)

    def _mean_over_windows(self, value: Callable[[float], float]) -> float:
        """The mean of a function of the window over the blocks."""
        return sum(value(window or math.inf) * n for window, n in self._windows.items()) / self._config.n_layers


def _pairs(length: int, window: float) -> float:
    """Pairs of a token and one that it sees, in a sequence."""
    if length <= window:
        return length * (length + 1) / 2
    return window * (window + 1) / 2 + (length - window) * window


@lru_cache(maxsize=1024)
def _matrices(config: ReaLModelConfig, piece: Piece, tp: int) -> _Matrices:
    """The matrices of the head, or the mean of those of the blocks, as the first of `tp` ranks holds them."""
    infos = parameter_infos(config)
    if piece == "head":
        name = head_weight_name(config)
        return _Matrices(_numel([info for info in infos if info.name == name], tp))
    blocks = block_layers(config)
    matrices = [info for info in infos if info.layer in blocks and len(info.shape) > 1]
    experts = [info for info in matrices if _is_experts(info, config)]
    dense = [info for info in matrices if not _is_experts(info, config)]
    share = 0.0 if config.moe is None else config.moe.top_k / config.moe.n_experts
    return _Matrices(_numel(dense, tp) / config.n_layers, _numel(experts, tp) / config.n_layers, share)


def _is_experts(info: ParameterInfo, config: ReaLModelConfig) -> bool:
    """Whether a parameter is that of all experts, stacked [X, out, in]."""
    return config.moe is not None and len(info.shape) > 2 and info.shape[0] == config.moe.n_experts


def _numel(infos: Sequence[ParameterInfo], tp: int) -> int:
    return sum(tp_box(info, tp, 0).numel for info in infos)
