"""The gated delta rule (Yang et al., 2024: Gated Delta Networks): attention with a state of fixed size per head.

For each token, with key `k`, value `v`, decay `g <= 0` and learning rate `beta`, the state `S` [D, W] becomes

    S = exp(g) S;  S = S + k (beta (v - k S));  the output is  q S / sqrt(D)

Sequences with one new token are computed like that. In longer ones, chunks of `CHUNK` tokens are computed at once: a
triangular system gives what each token writes as a linear function of the state before the chunk. All that does not
depend on that state is one batch over the chunks of all sequences. Then come steps over the chunks of a sequence, each
for all sequences that are long enough; as in `torch.nn.utils.rnn.PackedSequence`, nothing is padded to the longest.

Shapes: T packed tokens, S sequences, N chunks, C tokens of a chunk, K key heads, H value heads, D key dim, W value dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 64
NORM_EPS = 1e-6


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, lengths: Sequence[int], state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Outputs and final states of packed sequences; nothing leaks from one to the next.

    Computed in at least float32. As in transformers, queries and keys are divided by their L2 norms first.

    Args:
        q: [T, K, D] queries; each key head serves H / K successive value heads.
        k: [T, K, D] keys.
        v: [T, H, W] values.
        g: [T, H] logarithms of decays, at most 0.
        beta: [T, H] learning rates in [0, 1].
        lengths: number of tokens of each sequence.
        state: [S, H, D, W] initial states, not modified; None: zeros.

    Returns:
        Outputs [T, H, W], dtype of `v`, and final states [S, H, D, W], in at least float32.
    """
    dtype, n_heads = v.dtype, v.shape[1]
    wide = torch.promote_types(dtype, torch.float32)
    q, k, v, g, beta = (x.to(wide) for x in (q, k, v, g, beta))
    q, k = (_normalized(x).repeat_interleave(n_heads // x.shape[1], dim=1) for x in (q, k))
    q = q * q.shape[-1] ** -0.5
    if state is None:
        state = v.new_zeros(len(lengths), n_heads, k.shape[-1], v.shape[-1])
    single = [row for row, length in enumerate(lengths) if length == 1]
    inputs, state = _Inputs(q, k, v, g, beta), state.to(wide)
    if len(single) == len(lengths):
        out, state = _one_token(inputs, state)
    elif single and not torch.is_grad_enabled():  # a pass of generation
        out, state = _single_and_longer(inputs, lengths, state)
    else:
        out, state = _in_chunks(inputs, lengths, state)
    return out.to(dtype), state


class _Inputs(NamedTuple):
    """Inputs of the rule for T tokens, wide."""

    q: Tensor
    """[T, H, D], normalized and scaled; likewise `k`."""
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor

    def of(self, tokens: Tensor) -> _Inputs:
        """Those of some tokens [T], true or false each."""
        return _Inputs(*(x[tokens] for x in self))


def _one_token(inputs: _Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """The rule for one token of each sequence."""
    q, k, v, g, beta = inputs
    state = state * g.exp()[..., None, None]
    correction = (v - (k.unsqueeze(-2) @ state).squeeze(-2)) * beta.unsqueeze(-1)
    state = state + k.unsqueeze(-1) * correction.unsqueeze(-2)
    return (q.unsqueeze(-2) @ state).squeeze(-2), state


def _in_chunks(inputs: _Inputs, lengths: Sequence[int], state: Tensor) -> tuple[Tensor, Tensor]:
    """The rule for sequences of any lengths, chunk by chunk."""
    plan = _Chunks(lengths, state.device)
    q, k, v, g, beta = (plan.spread(x).transpose(1, 2) for x in inputs)  # [N, H, C, ...]
    # logarithms of decays from before the chunk to each token, in float64 since differences of large ones are taken
    decay = g.cumsum(dim=-1, dtype=torch.float64)
    # from token j to token i >= j
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=g.device).triu(1)
    between = (decay.unsqueeze(-1) - decay.unsqueeze(-2)).to(g.dtype).masked_fill(later, float("-inf")).exp()
    from_start, to_end = (x.to(g.dtype).exp().unsqueeze(-1) for x in (decay, decay[..., -1:] - decay))
    # what each token writes: (I + tril(beta k k^T between, -1)) written = beta (v - from_start k S)
    scaled_k = k * beta.unsqueeze(-1)
    system = scaled_k @ k.transpose(-1, -2) * between
    sides = torch.cat((v * beta.unsqueeze(-1), scaled_k * from_start), dim=-1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    written, erased = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    within, reads = q @ k.transpose(-1, -2) * between, q * from_start
    writes, kept = (k * to_end).transpose(-1, -2), from_start[..., -1:, :]

    state, outputs, finished = state[plan.order], [], []
    parts = (x.split(plan.n_active) for x in (written, erased, within, reads, writes, kept))
    for n, (written, erased, within, reads, writes, kept) in zip(plan.n_active, zip(*parts, strict=True), strict=True):
        finished.append(state[n:])
        state = state[:n]
        written = written - erased @ state
        outputs.append(torch.baddbmm((reads @ state).flatten(0, 1), within.flatten(0, 1), written.flatten(0, 1)))
        state = state * kept + writes @ written
    final = torch.cat([state, *reversed(finished)])
    out = torch.cat(outputs).unflatten(0, (-1, v.shape[1]))  # [N, H, C, W]
    return plan.gather(out.transpose(1, 2)), final[plan.rank]


class _Chunks:
    """The order of chunks: the first ones of all sequences, the longest sequence first, then the second ones, ....

    Sequences of 150, 10 and 70 tokens have the chunks a0 c0 b0, a1 c1, a2.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        n_chunks = [-(-length // CHUNK) for length in lengths]
        order = sorted(range(len(lengths)), key=lambda row: -n_chunks[row])
        self.n_active = [sum(n > step for n in n_chunks) for step in range(max(n_chunks, default=0))]
        """Number of sequences that have a chunk in each step; these are the first in `order`."""
        self.order = torch.tensor(order, device=device)
        """Sequences [S], longest first."""
        self.rank = self.order.argsort()
        """Index [S] of each sequence in `order`."""
        starts = torch.tensor([0, *accumulate(self.n_active)])
        position = torch.cat([torch.arange(length) for length in lengths])
        rank = self.rank.cpu().repeat_interleave(torch.tensor(lengths))
        self.slots = ((starts[position // CHUNK] + rank) * CHUNK + position % CHUNK).to(device)
        """Place [T] of each token in all chunks [N * C]."""

    def spread(self, x: Tensor) -> Tensor:
        """[T, ...] -> [N, C, ...], zeros behind the last token of a sequence."""
        spread = x.new_zeros(sum(self.n_active) * CHUNK, *x.shape[1:]).index_copy(0, self.slots, x)
        return spread.unflatten(0, (-1, CHUNK))

    def gather(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> [T, ...]."""
        return x.flatten(0, 1).index_select(0, self.slots)


def _single_and_longer(inputs: _Inputs, lengths: Sequence[int], state: Tensor) -> tuple[Tensor, Tensor]:
    """The rule for sequences of one token, which need no chunk of their own, beside longer ones."""
    is_single = torch.tensor([length == 1 for length in lengths])
    of_single = is_single.repeat_interleave(torch.tensor(lengths))
    longer = [length for length in lengths if length != 1]
    out, final = torch.empty_like(inputs.v), torch.empty_like(state)
    out[of_single], final[is_single] = _one_token(inputs.of(of_single), state[is_single])
    out[~of_single], final[~is_single] = _in_chunks(inputs.of(~of_single), longer, state[~is_single])
    return out, final


def _normalized(x: Tensor) -> Tensor:
    """`x` [..., D] divided by its L2 norm."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + NORM_EPS)
