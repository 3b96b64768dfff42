"""Short causal convolution, one filter for each channel, over packed sequences.

Shapes: T packed tokens, S sequences, C channels, K size of a filter, L tokens of one sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reallm.model.attention.kv_cache import CacheTensor
from reallm.model.packed import PackedSequences
from reallm.model.sharding import Shard, Shards


class CausalConv(nn.Module):
    """Depthwise convolution of each token with the K - 1 tokens before it; each sequence begins with zeros.

    `y[t] = sum_j weight[:, j] * x[t - (K - 1) + j]`, added up in this order in at least float32, so that a token has
    the same result whatever else the pass computes. Under tensor parallelism it acts on the channels that it gets.

    Args:
        n_channels: number of channels C of the whole layer.
        size: size K of a filter.
        bias: whether each channel has a bias.
    """

    def __init__(self, n_channels: int, size: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_channels, 1, size))  # as that of nn.Conv1d in checkpoints
        self.bias = nn.Parameter(torch.empty(n_channels)) if bias else None
        self.shards: Shards = {name: Shard(0) for name, _ in self.named_parameters()}
        self.cache_tensor = CacheTensor((size - 1, n_channels), per_token=False, shard=Shard(1))
        """The state of a sequence: its last K - 1 inputs."""

    def forward(self, x: Tensor, seqs: PackedSequences, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The outputs [T, C] for `x` [T, C].

        Args:
            x: inputs of the tokens.
            seqs: the sequences of the pack.
            before: [S, K - 1, C] inputs before those of the pass; None: zeros.

        Returns:
            The outputs, and the last inputs [S, K - 1, C] of each sequence, for its next tokens.
        """
        n_before = self.weight.shape[-1] - 1
        if before is None:
            before = x.new_zeros(len(seqs.lengths), n_before, x.shape[-1])
        if seqs.n_tokens == len(seqs.lengths) and seqs.max_length == 1:
            inputs = torch.cat((before, x.unsqueeze(1)), dim=1)
            return self._convolved(inputs).squeeze(1), inputs[:, 1:]
        parts = zip(before.unbind(), x.split(list(seqs.lengths)), strict=True)
        inputs = torch.cat([part for each in parts for part in each])
        # a sequence of L tokens is L + K - 1 inputs; the K - 1 outputs between two sequences are of neither
        outputs = self._convolved(inputs)
        starts = [start + i * n_before for i, start in enumerate(seqs.starts)]
        ends = [start + length for start, length in zip(starts, seqs.lengths, strict=True)]
        after = torch.stack([inputs[end : end + n_before] for end in ends])
        if len(starts) > 1:
            outputs = torch.cat([outputs[start:end] for start, end in zip(starts, ends, strict=True)])
        return outputs, after

    def _convolved(self, inputs: Tensor) -> Tensor:
        """The outputs [..., L, C] for inputs [..., L + K - 1, C]."""
        wide, size = torch.promote_types(inputs.dtype, torch.float32), self.weight.shape[-1]
        length, filters = inputs.shape[-2] - size + 1, self.weight.to(wide).unbind(-1)
        inputs_wide = inputs.to(wide)
        total = inputs_wide.narrow(-2, 0, length) * filters[0].squeeze(-1)
        for offset in range(1, size):
            total = total + inputs_wide.narrow(-2, offset, length) * filters[offset].squeeze(-1)
        if self.bias is not None:
            total = total + self.bias.to(wide)
        return total.to(inputs.dtype)
