"""`TokenBroadcast`: tokens that one rank samples for all ranks that hold one copy of the network between them.

Logits on different ranks may differ in their last bits, and only the last stage of a pipeline has any.

Shapes: A sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.generation.config import GenerationConfig
from reallm.generation.partial_completion import SampledToken
from reallm.generation.sampling import Sampled
from reallm.parallel.mesh import Group

N_NUMBERS = 5
"""Numbers that are sent of each token, before its top log-probabilities: id, three of `Sampled`, count of kept ids."""


class TokenBroadcast:
    """Broadcasts sampled tokens from one rank of a group to all of it.

    Args:
        group: the ranks.
        source: number in the whole job of the rank that samples.
        device: device of the messages.
    """

    def __init__(self, group: Group, source: int, device: torch.device) -> None:
        self._group, self._source, self._device = group, source, device
        self._is_source = dist.get_rank() == source

    def start(
        self, sample: Callable[[], Sampled], configs: Sequence[GenerationConfig]
    ) -> Callable[[], list[SampledToken]]:
        """Start a broadcast; ranks can compute while it is in flight.

        Args:
            sample: samples the next token of each sequence; called on the source only, at once.
            configs: configurations of the sequences.

        Returns:
            A function that waits for the tokens. All ranks call it, in the order in which they were started.
        """
        n_top = max((config.top_logprobs for config in configs), default=0)
        # float64 holds ids and float32 log-probabilities exactly
        numbers = torch.zeros(len(configs), N_NUMBERS + 2 * n_top, dtype=torch.float64, device=self._device)
        kept_ids: list[Sequence[int]] = []
        if self._is_source:
            sampled = sample()
            write_numbers(sampled, numbers)
            kept_ids = sampled.kept_ids or []
        work = dist.broadcast(numbers, src=self._source, group=self._group, async_op=True)
        assert work is not None

        def wait() -> list[SampledToken]:
            work.wait()
            rows = numbers.tolist()
            ids = self._broadcast_kept_ids(kept_ids, sum(int(row[N_NUMBERS - 1]) for row in rows))
            return [read_token(row, config, ids) for row, config in zip(rows, configs, strict=True)]

        return wait

    def _broadcast_kept_ids(self, kept_ids: Sequence[Sequence[int]], n_ids: int) -> Iterator[int]:
        """Broadcast the ids that truncation has kept, one sequence after another, if any asks for them."""
        ids = torch.zeros(n_ids, dtype=torch.int64, device=self._device)
        if n_ids:
            if self._is_source:
                ids.copy_(torch.tensor([each for row in kept_ids for each in row]))
            dist.broadcast(ids, src=self._source, group=self._group)
        return iter(ids.tolist())


def write_numbers(sampled: Sampled, numbers: Tensor) -> None:
    """Write sampled tokens to a float64 tensor [A, 5 + 2 K], where K is the largest number of top log-probabilities."""
    for index, column in enumerate(sampled[: N_NUMBERS - 1]):
        if isinstance(column, Tensor):
            numbers[:, index] = column
    for row, ids in enumerate(sampled.kept_ids or ()):
        numbers[row, N_NUMBERS - 1] = len(ids)
    for row, top in enumerate(sampled.top_logprobs or ()):
        numbers[row, N_NUMBERS : N_NUMBERS + 2 * len(top)] = torch.tensor(top, dtype=torch.float64).flatten()


def read_token(row: Sequence[float], config: GenerationConfig, kept_ids: Iterator[int]) -> SampledToken:
    """A token from its row of `write_numbers` and the kept ids of this row and of later ones."""
    token_id, logprob, model_logprob, kept_mass, n_kept, *top = row
    return SampledToken(
        int(token_id),
        logprob,
        model_logprob,
        kept_mass,
        list(islice(kept_ids, int(n_kept))),
        [(int(id_), value) for id_, value in zip(top[::2], top[1::2], strict=True)][: config.top_logprobs],
    )
