"""`CallTimes`: how long the calls to one model take in a layout, as the engine computes them.

Shapes: T packed tokens, E hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from reallm.generation.scheduler import MAX_BATCH_TOKENS
from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import block_layers, layer_number
from reallm.model.parameters import meta_model
from reallm.parallel.layout import Coordinate, Layout
from reallm.parallel.sharding import stage_layers
from reallm.planning.cost_settings import RoleSettings
from reallm.planning.costs import CallCost
from reallm.planning.rank_share import RankShare
from reallm.planning.rates import Division, Rates
from reallm.planning.sequences import MicroBatches, Sequences

RECOMPUTED = {"none": 0.0, "selective": 0.1, "full": 1.0}
"""Share of the blocks' forward pass that gradient checkpointing computes once more."""
GRADIENT_BYTES = 4
"""Bytes of an element of a gradient that is reduced over ranks; float64 parameters have 8."""
FIRST = Coordinate(0, 0, 0)


@dataclass(frozen=True)
class _Pass:
    """A forward or backward pass of a stage, in seconds."""

    compute: float
    communication: float

    @property
    def seconds(self) -> float:
        return self.compute + self.communication


@dataclass(frozen=True)
class CallTimes:
    """Times of the calls to one model in one layout.

    All ranks of a layout are taken to be as fast as those of its first replica; stages differ.
    """

    config: ReaLModelConfig
    layout: Layout
    rates: Rates
    settings: RoleSettings
    sequences: Sequences
    zero: int = 1
    sequence_parallel: bool = False
    overlaps: bool = True
    """Whether FSDP's collectives proceed while blocks are computed."""

    def train_step(self, max_tokens: int) -> CallCost:
        """All optimizer steps of the call: 1F1B over micro-batches, reduction of gradients, update."""
        batches = self.sequences.training(self.layout.dp, self.layout.pp, max_tokens)
        stages = [self._trained(stage, batches) for stage in range(self.layout.pp)]
        one = self._pipelined(stages, batches, n_directions=2)
        forward = sum(self._forward(stage, batches).compute for stage in range(self.layout.pp)) / self.layout.pp
        one = _plus(one, communication=self._reduction(batches.n, forward, one.compute - forward))
        one = _plus(one, compute=self.rates.optimizer(self._share.held_trained))
        return _times(self.sequences.workload.optimizer_steps, one, math.ceil(batches.n))

    def inference(self, max_tokens: int) -> CallCost:
        """A forward pass over all sequences, for which FSDP gathers all parameters once, beforehand."""
        batches = self.sequences.inference(self.layout.dp, self.layout.pp, max_tokens)
        stages = [self._forward(stage, batches) for stage in range(self.layout.pp)]
        one = self._pipelined(stages, batches, n_directions=1)
        return _plus(one, communication=self._gather_seconds(1))

    def generate(self, max_sequences: int) -> CallCost:
        """Prompts once, then a token of each answer that is not complete in each step.

        With a pipeline as many steps are in flight as there are stages, each with its share of the sequences.
        """
        compute, communication, bubble = self._prefill()
        n_messages = self.layout.tp * self.layout.pp > 1  # what was sampled is told to all ranks of a replica
        replica = self.layout.replica_ranks(FIRST)
        for steps in self.sequences.generation(self.layout.dp, max_sequences):
            in_flight = min(self.layout.pp, max(1, int(steps.n_sequences)))
            width = max(1, round(steps.n_sequences / in_flight))
            stages = [self._decode(stage, width, steps.context) for stage in range(self.layout.pp)]
            slowest = max(stages, key=lambda one: one.seconds)
            passing = sum(one.seconds for one in stages) + self._boundaries(width)
            told = self.rates.all_gather(8 * width, replica) if n_messages else 0.0
            whole = max(in_flight * slowest.seconds, passing) + told
            compute += steps.n_steps * in_flight * slowest.compute
            communication += steps.n_steps * (in_flight * slowest.communication + told)
            bubble += steps.n_steps * (whole - told - in_flight * slowest.seconds)
        if not self.layout.fsdp:
            compute += self.rates.generation_start(self._share.held)
        return CallCost(compute, communication + self._gather_seconds(1), bubble)

    @cached_property
    def _share(self) -> RankShare:
        return RankShare(self.config, self.layout, self.zero)

    # ------------------------------------------------------------------ passes of a stage

    @cached_property
    def _blocks(self) -> list[int]:
        """Number of blocks of each stage."""
        blocks = block_layers(self.config)
        return [
            len([layer for layer in layers if layer in blocks]) for layers in stage_layers(self.config, self.layout.pp)
        ]

    def _pieces(self, stage: int) -> tuple[bool, int, bool]:
        """Whether a stage has the embedding, its number of blocks, and whether it has the head."""
        return stage == 0, self._blocks[stage], stage == self.layout.pp - 1

    def _forward(self, stage: int, batches: MicroBatches) -> _Pass:
        """Forward passes of all micro-batches."""
        return self._over(batches, stage, self.rates.forward, n_reduced=self._n_reduced)

    def _trained(self, stage: int, batches: MicroBatches) -> _Pass:
        """Forward and backward passes of all micro-batches, with what is recomputed."""
        forward = self._forward(stage, batches)
        backward = self._over(batches, stage, self.rates.backward, n_reduced=self._n_reduced)
        share = RECOMPUTED[self.settings.gradient_checkpointing]
        again = self._over(batches, stage, self.rates.forward, n_reduced=self._n_reduced, blocks_only=True)
        return _Pass(
            forward.compute + backward.compute + share * again.compute,
            forward.communication + backward.communication + (again.communication if share == 1 else 0.0),
        )

    def _over(
        self,
        batches: MicroBatches,
        stage: int,
        seconds: Callable[..., float],
        *,
        n_reduced: int,
        blocks_only: bool = False,
    ) -> _Pass:
        """Passes over all micro-batches of a rank."""
        embeds, n_blocks, ends = self._pieces(stage)
        compute = communication = 0.0
        tp = self.layout.tp
        for lengths, n in batches.alike.items():
            compute += n * n_blocks * seconds("block", lengths, tp)
            n_reductions = n_blocks * n_reduced
            if not blocks_only:
                compute += n * seconds("embedding", lengths, tp) if embeds else 0.0
                compute += n * seconds("head", (self._scored(lengths),), tp) if ends else 0.0
                n_reductions += embeds + ends
            communication += n * n_reductions * self._tp_reduction(sum(lengths))
        return _Pass(batches.weight * compute, batches.weight * communication)

    def _scored(self, lengths: Sequence[int]) -> int:
        """Tokens that the head computes: those of answers, or all if there are none."""
        share = self.sequences.share_of_answers
        return math.ceil(sum(lengths) * share) if share else sum(lengths)

    @cached_property
    def _n_reduced(self) -> int:
        """Collectives of tensor parallelism in a pass of a block: one for each layer that sums partial outputs."""
        return _row_splits(self.config)

    def _tp_reduction(self, n_tokens: float) -> float:
        """The sum of hidden states over tensor-parallel ranks."""
        n_bytes = int(n_tokens * self.config.hidden_size * self.settings.dtype.itemsize)
        return self.rates.all_reduce(n_bytes, self._tp_ranks)

    @cached_property
    def _tp_ranks(self) -> tuple[int, ...]:
        return tuple(self.layout.tp_ranks(FIRST))

    @cached_property
    def _dp_ranks(self) -> tuple[int, ...]:
        return tuple(self.layout.dp_ranks(FIRST))

    # ------------------------------------------------------------------ pipelines

    def _pipelined(self, stages: Sequence[_Pass], batches: MicroBatches, n_directions: int) -> CallCost:
        """Micro-batches through all stages: the slowest stage is busy throughout, the others fill and drain."""
        slowest = max(stages, key=lambda one: one.seconds)
        bubble = (sum(one.seconds for one in stages) - slowest.seconds) / batches.n
        n_tokens = batches.n_tokens / batches.n
        messages = n_directions * self._boundaries(n_tokens)
        return CallCost(slowest.compute, slowest.communication + messages, bubble, math.ceil(batches.n))

    def _boundaries(self, n_tokens: float) -> float:
        """A message of hidden states through all stages; while a pipeline is full, others are computed meanwhile."""
        n_bytes = int(n_tokens * self.config.hidden_size * self.settings.dtype.itemsize)
        ranks = self.layout.pp_ranks(FIRST)
        return sum(self.rates.point_to_point(n_bytes, pair) for pair in pairwise(ranks))

    # ------------------------------------------------------------------ generation

    def _decode(self, stage: int, width: int, context: float) -> _Pass:
        embeds, n_blocks, ends = self._pieces(stage)
        how = self.layout.tp, self._division
        compute = n_blocks * self.rates.decode("block", width, context, *how)
        compute += self.rates.decode("embedding", width, context, *how) if embeds else 0.0
        compute += self.rates.decode("head", width, context, *how) if ends else 0.0
        communication = (n_blocks * self._n_reduced + embeds) * self._tp_reduction(width)
        if ends:  # the ranks gather logits
            n_bytes = width * self.config.vocab_size * self.settings.dtype.itemsize
            communication += self.rates.all_gather(n_bytes, self._tp_ranks)
        return _Pass(compute, communication)

    @property
    def _division(self) -> Division:
        return "fsdp" if self.layout.fsdp else "pp" if self.layout.pp > 1 else ""

    def _prefill(self) -> tuple[float, float, float]:
        """Compute, communication and bubble of all prompts of a rank, in steps of as many as fit."""
        workload = self.sequences.workload
        n, mean = self.sequences.prompts(self.layout.dp), max(1, round(workload.prompts.mean))
        n_each = max(1, min(n, MAX_BATCH_TOKENS // mean))
        batches = MicroBatches(((mean,) * n_each,), max(1.0, n / n_each))
        stages = []
        for stage in range(self.layout.pp):
            embeds, n_blocks, ends = self._pieces(stage)
            compute = n_blocks * self.rates.forward("block", batches.lengths[0], self.layout.tp)
            compute += self.rates.forward("embedding", batches.lengths[0], self.layout.tp) if embeds else 0.0
            compute += self.rates.decode("head", n_each, mean, self.layout.tp, self._division) if ends else 0.0
            communication = (n_blocks * self._n_reduced + embeds) * self._tp_reduction(n_each * mean)
            stages.append(_Pass(batches.n * compute, batches.n * communication))
        one = self._pipelined(stages, batches, n_directions=1)
        return one.compute, one.communication, one.bubble

    # ------------------------------------------------------------------ data parallelism

    def _reduction(self, n_microbatches: float, forward: float, backward: float) -> float:
        """What data parallelism adds to an optimizer step, beyond what FSDP hides behind blocks.

        Args:
            n_microbatches: micro-batches of the step.
            forward: seconds of their forward passes.
            backward: seconds of their backward passes.
        """
        if self.layout.dp == 1:
            return 0.0
        size = max(GRADIENT_BYTES, self.settings.dtype.itemsize)
        n_bytes = size * self._share.gathered
        if not self.layout.fsdp:
            return self.rates.all_reduce(n_bytes, self._dp_ranks)
        sums = self._of_units(self.rates.reduce_scatter, n_bytes)
        n_gathers, n_scatters = (2 * n_microbatches if self.zero >= 3 else 1), (n_microbatches if self.zero >= 2 else 1)
        shown = self._exposed(self._gather_seconds(n_gathers), forward * n_gathers / max(n_gathers, n_microbatches))
        return shown + self._exposed(n_scatters * sums, backward * n_scatters / n_microbatches)

    def _gather_seconds(self, n_gathers: float) -> float:
        """FSDP's gathers of the parameters of a rank's stage."""
        if not self.layout.fsdp:
            return 0.0
        n_bytes = self._share.gathered * self.settings.dtype.itemsize
        return n_gathers * self._of_units(self.rates.all_gather, n_bytes)

    def _of_units(self, collective: Callable[[int, Sequence[int]], float], n_bytes: float) -> float:
        """A collective over data-parallel ranks for each unit of FSDP, which is a block, or what is no block."""
        n_units = max(self._blocks) + 1
        return n_units * collective(int(n_bytes / n_units), self._dp_ranks)

    def _exposed(self, communication: float, compute: float) -> float:
        """The part of FSDP's collectives that nothing hides: the first unit's, and what takes longer than computing."""
        if not self.overlaps:
            return communication
        return max(communication / (max(self._blocks) + 1), communication - compute)


def _plus(one: CallCost, compute: float = 0.0, communication: float = 0.0) -> CallCost:
    return CallCost(one.compute + compute, one.communication + communication, one.bubble, one.n_microbatches)


def _times(n: int, one: CallCost, n_microbatches: int) -> CallCost:
    return CallCost(n * one.compute, n * one.communication, n * one.bubble, n_microbatches)


@lru_cache(maxsize=64)
def _row_splits(config: ReaLModelConfig) -> int:
    """Layers of a block whose outputs are partial sums with tensor parallelism, on average over the blocks."""
    splits = meta_model(config).module_splits()
    blocks = block_layers(config)
    rows = [path for path, split in splits.items() if split != "column" and layer_number(path) in blocks]
    outermost = [path for path in rows if not any(path.startswith(f"{other}.") for other in rows)]
    return round(len(outermost) / config.n_layers)
