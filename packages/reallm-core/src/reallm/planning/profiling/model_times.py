"""Measures one architecture on this rank, through the engines that runs use.

What one block takes is the difference between networks of several blocks and of one; what is left is the ends:
embedding, head, and all that is done once in a pass. Ranks that split layers by tensor parallelism are stood for by a
network with their shares of heads, intermediate size and vocabulary; what they tell each other is measured apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.request import Request
from reallm.model.config import ReaLModelConfig
from reallm.model.transformer import Transformer
from reallm.planning.profiling.profile import DecodeTimes, ModelProfile, PassTimes
from reallm.planning.profiling.timing import synchronize, time_rounds
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import hidden_states

MORE_BLOCKS = 4
"""Blocks by which the larger network exceeds the smaller one, which has one."""
DECODE_STEPS = 8
"""Steps of generation that are timed at once."""
LEAD = 3
"""Steps before them: prompts, and what is prepared at first use."""
MANY = 2**40


@dataclass(frozen=True)
class Sizes:
    """The sizes at which a model is measured."""

    tp: tuple[int, ...] = (1,)
    passes: tuple[tuple[int, int], ...] = ((1, 64), (4, 64), (16, 64), (1, 512), (2, 512))
    """Number of sequences and their length, of forward and backward passes."""
    widths: tuple[int, ...] = (1, 8, 32)
    """Numbers of sequences that generate at the same time."""
    contexts: tuple[int, ...] = (32, 512)
    """Tokens before those that are generated."""


def shard_config(config: ReaLModelConfig, tp: int) -> ReaLModelConfig | None:
    """An architecture whose layers are as large as the share of one of `tp` ranks; None if it cannot be split so."""
    moe = config.moe
    sizes = {
        "n_q_heads": config.n_q_heads,
        "n_kv_heads": config.n_kv_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
    }
    if config.n_kv_heads < tp and tp % config.n_kv_heads == 0:
        sizes["n_kv_heads"] = tp  # each rank holds a copy of a KV head
    if moe is not None and moe.intermediate_size is not None:
        sizes["expert"] = moe.intermediate_size
    if any(size % tp for name, size in sizes.items() if name != "vocab_size"):
        return None
    shares = {name: -(-size // tp) for name, size in sizes.items()}
    expert = shares.pop("expert", None)
    if expert is not None:
        assert moe is not None
        return config.replace(**shares, moe=dataclasses.replace(moe, intermediate_size=expert))
    return config.replace(**shares)


def measure_model(
    config: ReaLModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    sizes: Sizes,
    *,
    trains: bool,
    generates: bool,
    seconds: float,
    advance: Callable[[float], None] = lambda share: None,
) -> ModelProfile:
    """Measure an architecture. All ranks of a job make the same call.

    Args:
        config: the architecture.
        dtype: dtype of its parameters.
        device: where to compute.
        sizes: what to measure it at; values that it cannot have are left out.
        trains: whether backward passes and optimizer steps are measured.
        generates: whether decoding is measured.
        seconds: time for it, of which preparations are not a part.
        advance: called with the share of it that is done.
    """
    works: dict[tuple[str, Any, int], Callable[[], Sequence[float]]] = {}
    n_parameters: dict[int, int] = {}
    shards = {tp: shard for tp in sizes.tp if (shard := shard_config(config, tp)) is not None}
    longest = config.longest_sequence or MANY
    for tp, shard in shards.items():
        for n_blocks in (1, 1 + MORE_BLOCKS):
            blocks = [index % shard.n_layers for index in range(n_blocks)]
            measured = _Measured(shard.with_blocks(*blocks), dtype, device, is_shard=tp > 1)
            for n_sequences, length in sizes.passes:
                if length <= longest:
                    batch = measured.batch(n_sequences, length)
                    key = ("pass", (tp, n_sequences, length), n_blocks)
                    works[key] = measured.training(batch) if trains else measured.inference(batch)
            for context in sizes.contexts if generates else ():
                if context + LEAD + DECODE_STEPS <= longest:
                    for width in sizes.widths:
                        works["decode", (tp, width, context), n_blocks] = measured.decoding(width, context)
            n_parameters[n_blocks] = sum(parameter.numel() for parameter in measured.model.parameters())
    medians = time_rounds(works, seconds, advance)
    return _profile(medians, n_parameters if trains else {}, next(iter(shards)))


class _Split(NamedTuple):
    """Seconds of one block, and of the rest."""

    block: float
    ends: float

    @classmethod
    def of(cls, small: float, large: float) -> _Split:
        block = max(0.0, (large - small) / MORE_BLOCKS)
        return cls(block, max(0.0, small - block))


def _profile(
    medians: dict[tuple[str, Any, int], list[float]], n_parameters: dict[int, int], first_tp: int
) -> ModelProfile:
    passes, decoding = [], []
    steps: dict[int, list[float]] = {n_blocks: [] for n_blocks in n_parameters}
    for (kind, point, n_blocks), small in medians.items():
        if n_blocks > 1:
            continue
        large = medians[kind, point, 1 + MORE_BLOCKS]
        if kind == "decode":
            tp, width, context = point
            decoding.append(DecodeTimes(tp, width, context + LEAD + DECODE_STEPS // 2, *_Split.of(small[0], large[0])))
            continue
        tp, n_sequences, length = point
        forward = _Split.of(small[0], large[0])
        both = _Split.of(small[1], large[1]) if n_parameters else forward
        backward = [max(0.0, each - once) for each, once in zip(both, forward, strict=True)]
        passes.append(PassTimes(tp, n_sequences, length, *forward, backward[0], backward[1]))
        if n_parameters and tp == first_tp:
            steps[1].append(small[2])
            steps[1 + MORE_BLOCKS].append(large[2])
    optimizer = tuple((n_parameters[n_blocks], min(found)) for n_blocks, found in steps.items() if found)
    return ModelProfile(tuple(passes), tuple(decoding), optimizer)


class _Measured:
    """A network with random weights, and functions that time passes of it."""

    def __init__(self, config: ReaLModelConfig, dtype: torch.dtype, device: torch.device, *, is_shard: bool) -> None:
        self.model = ReaLModel(config, dtype=dtype, device=device)
        self._config, self._device = config, device
        self._engine: TrainEngine | None = None
        self._draw = torch.Generator().manual_seed(1)
        if is_shard:  # a hook, as those of tensor parallelism, keeps decoding from its pass for whole networks
            for number in self.model.network.block_numbers:
                self.model.network.layers[str(number)].register_forward_pre_hook(lambda module, inputs: None)

    def batch(self, n_sequences: int, length: int) -> NamedArray:
        """Random sequences."""
        tokens = self._tokens(n_sequences * length)
        return NamedArray(input_ids=tokens, loss_mask=torch.ones_like(tokens, dtype=torch.bool)).with_metadata(
            seqlens={name: [[length]] * n_sequences for name in ("input_ids", "loss_mask")}
        )

    def inference(self, batch: NamedArray) -> Callable[[], Sequence[float]]:
        """A forward pass to log-probabilities or scores: its seconds."""
        tokens, length = batch["input_ids"], batch.metadata["seqlens"]["input_ids"][0][0]
        cu_seqlens = torch.arange(0, len(tokens) + 1, length)
        compute = self.model.scores if self._config.is_critic else self.model.token_logprobs

        def work() -> Sequence[float]:
            self.model.eval()
            begin = synchronize(self._device)
            compute(tokens, cu_seqlens)
            return [synchronize(self._device) - begin]

        return work

    def training(self, batch: NamedArray) -> Callable[[], Sequence[float]]:
        """Seconds of inference, of a forward and backward pass, and of an optimizer step."""
        if self._engine is None:
            self._engine = TrainEngine(self.model, OptimizerConfig(lr=1e-9, schedule="constant"), 10**9, MANY)
        engine, inference, objective = self._engine, self.inference(batch), _objective(self._config)

        def work() -> Sequence[float]:
            times: list[float] = []
            engine.before_optimizer_step = lambda: times.append(synchronize(self._device))
            [forward] = inference()
            begin = synchronize(self._device)
            engine.train_batch(batch, objective)
            return [forward, times[0] - begin, synchronize(self._device) - times[0]]

        return work

    def decoding(self, width: int, context: int) -> Callable[[], Sequence[float]]:
        """Seconds of a step of generation that samples `width` sequences."""
        prompts = [self._tokens(context).tolist() for _ in range(width)]
        config = GenerationConfig(max_new_tokens=LEAD + DECODE_STEPS + 16, temperature=1.0, stop_token_ids=())

        def work() -> Sequence[float]:
            self.model.eval()
            engine = GenerationEngine(
                self.model.network,
                max_batch_tokens=MANY,
                max_batch_sequences=width,
                kv_cache_tokens=2 * width * (context + config.max_new_tokens + 512),
            )
            with engine:
                for prompt in prompts:
                    engine.add(Request(tuple(prompt), config))
                for _ in range(LEAD):
                    engine.step()
                begin = synchronize(self._device)
                for _ in range(DECODE_STEPS):
                    engine.step()
                return [(synchronize(self._device) - begin) / DECODE_STEPS]

        return work

    def _tokens(self, n: int) -> Tensor:
        return torch.randint(self._config.vocab_size, (n,), generator=self._draw)


def _objective(config: ReaLModelConfig) -> Any:
    return _SquaredScores() if config.is_critic else SFTInterface()


class _SquaredScores(SFTInterface):
    """The objective of a critic: it costs what the loss of values costs."""

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """The sum of squared scores."""
        return LossOutput(network.head(hidden_states(network, batch)).float().square().sum())

    def metrics(self, totals: Totals) -> dict[str, float]:
        """None: nobody reads them."""
        return {}
