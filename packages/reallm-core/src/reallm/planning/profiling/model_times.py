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
import torch.distributed as dist
from torch import Tensor

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.prepacking import FEW_STEPS
from reallm.generation.request import Request
from reallm.model.config import ReaLModelConfig
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import unsharded
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.planning.profiling.profile import DecodeTimes, ModelProfile, PassTimes
from reallm.planning.profiling.timing import synchronize, time_rounds
from reallm.planning.rates import Division
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import hidden_states

MORE_BLOCKS = 4
"""Blocks by which the larger network exceeds the smaller one, which has one."""
DECODE_STEPS = 8
"""Steps of generation that are timed at once."""
LEAD = 3
"""Steps before them: prompts, and what is prepared at first use."""
MAX_NEW_TOKENS = LEAD + DECODE_STEPS + FEW_STEPS
"""Tokens that are asked for: so many that decoding is prepared for."""
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
    n_busy: Sequence[int] = (1,),
    seconds: float,
    advance: Callable[[float], None] = lambda share: None,
) -> dict[int, ModelProfile]:
    """Measure an architecture. All ranks of a job make the same call.

    Args:
        config: the architecture.
        dtype: dtype of its parameters.
        device: where to compute.
        sizes: what to measure it at; values that it cannot have are left out.
        trains: whether backward passes and optimizer steps are measured.
        generates: whether decoding is measured.
        n_busy: numbers of ranks that compute at the same time while the others are idle, in ascending order. Layers
            that are split by tensor parallelism are measured on the most of them alone.
        seconds: time for it, of which preparations are not a part.
        advance: called with the share of it that is done.

    Returns:
        The times by the number of ranks that computed.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    works: dict[_Key, Callable[[], Sequence[float]]] = {}
    n_parameters: dict[int, int] = {}
    shards = {tp: shard for tp in sizes.tp if (shard := shard_config(config, tp)) is not None}
    longest = config.longest_sequence or MANY
    for tp, shard in shards.items():
        for n_blocks in (1, 1 + MORE_BLOCKS):
            blocks = [index % shard.n_layers for index in range(n_blocks)]
            measured = _Measured(shard.with_blocks(*blocks), dtype, device, is_split=tp > 1)
            of_network = _works(measured, sizes, longest, trains=trains, generates=generates)
            n_parameters.setdefault(n_blocks, sum(parameter.numel() for parameter in measured.model.parameters()))
            for n in n_busy if tp == 1 else n_busy[-1:]:
                for (kind, point), work in of_network.items():
                    works[_Key(n, kind, (tp, *point), n_blocks)] = work if rank < n else _idle
            for division in ("pp", "fsdp") if generates and tp == 1 and dist.is_initialized() else ():
                divided = _Measured(shard.with_blocks(*blocks), dtype, device, division=division)
                for point, work in _decoding_works(divided, sizes, longest).items():
                    works[_Key(n_busy[-1], "decode", (tp, *point), n_blocks, division)] = work
    medians = time_rounds(works, seconds, advance)
    return {
        n: _profile({key: found for key, found in medians.items() if key.n_busy == n}, n_parameters, trains=trains)
        for n in n_busy
    }


class _Key(NamedTuple):
    """What is measured."""

    n_busy: int
    kind: str
    point: tuple[int, ...]
    """Ranks that share a layer, and sizes."""
    n_blocks: int
    division: Division = ""


def _idle() -> Sequence[float]:
    return []


def _works(
    measured: _Measured, sizes: Sizes, longest: int, *, trains: bool, generates: bool
) -> dict[tuple[str, tuple[int, ...]], Callable[[], Sequence[float]]]:
    """What is timed of a network, by its kind and sizes."""
    works: dict[tuple[str, tuple[int, ...]], Callable[[], Sequence[float]]] = {}
    for n_sequences, length in sizes.passes:
        if length <= longest:
            batch = measured.batch(n_sequences, length)
            works["pass", (n_sequences, length)] = measured.training(batch) if trains else measured.inference(batch)
    decoding = _decoding_works(measured, sizes, longest) if generates else {}
    works |= {("decode", point): work for point, work in decoding.items()}
    if decoding:
        works["start", ()] = measured.starting(min(sizes.contexts))
    return works


def _decoding_works(
    measured: _Measured, sizes: Sizes, longest: int
) -> dict[tuple[int, int], Callable[[], Sequence[float]]]:
    """Steps of generation, by width and context."""
    return {
        (width, context): measured.decoding(width, context)
        for context in sizes.contexts
        if context + LEAD + DECODE_STEPS <= longest
        for width in sizes.widths
    }


class _Split(NamedTuple):
    """Seconds of one block, and of the rest."""

    block: float
    ends: float

    @classmethod
    def of(cls, small: float, large: float) -> _Split:
        block = max(0.0, (large - small) / MORE_BLOCKS)
        return cls(block, max(0.0, small - block))


def _profile(medians: dict[_Key, list[float]], n_parameters: dict[int, int], *, trains: bool) -> ModelProfile:
    passes, decoding, starts = [], [], []
    steps: dict[int, list[float]] = {n_blocks: [] for n_blocks in n_parameters}
    for key, small in medians.items():
        if key.n_blocks > 1:
            continue
        large = medians[key._replace(n_blocks=1 + MORE_BLOCKS)]
        tp, *sizes = key.point
        if key.kind == "decode":
            width, context = sizes
            split = _Split.of(small[0], large[0])
            decoding.append(DecodeTimes(tp, width, context + LEAD + DECODE_STEPS // 2, *split, key.division))
        elif key.kind == "start" and tp == 1:
            starts += [*zip(n_parameters.values(), (small[0], large[0]), strict=True)]
        elif key.kind == "pass":
            n_sequences, length = sizes
            forward = _Split.of(small[0], large[0])
            both = _Split.of(small[1], large[1]) if trains else forward
            backward = [max(0.0, each - once) for each, once in zip(both, forward, strict=True)]
            passes.append(PassTimes(tp, n_sequences, length, *forward, backward[0], backward[1]))
            if trains and tp == 1:
                steps[1].append(small[2])
                steps[1 + MORE_BLOCKS].append(large[2])
    optimizer = tuple((n_parameters[n_blocks], min(found)) for n_blocks, found in steps.items() if found)
    return ModelProfile(tuple(passes), tuple(decoding), optimizer, tuple(starts))


class _Measured:
    """A network with random weights, and functions that time passes of it.

    Args:
        config: the architecture.
        dtype: dtype of its parameters.
        device: where it is computed.
        is_split: whether it stands for the shard of a rank that splits layers with others.
        division: whether it stands for a stage, or is sharded by FSDP over all ranks of the job.
    """

    def __init__(
        self,
        config: ReaLModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        *,
        is_split: bool = False,
        division: Division = "",
    ) -> None:
        mesh = Mesh.of(Layout(dp=dist.get_world_size(), fsdp=True)) if division == "fsdp" else None
        self.model = ReaLModel(config, dtype=dtype, device=device, mesh=mesh, zero=1)
        self._config, self._device = config, device
        self._engine: TrainEngine | None = None
        self._draw = torch.Generator().manual_seed(1)
        if is_split or division == "pp":  # a hook keeps decoding from its pass for whole networks
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
        requests = [self._request(context) for _ in range(width)]

        def work() -> Sequence[float]:
            with unsharded(self.model.network), self._generation_engine(width, context) as engine:
                for request in requests:
                    engine.add(request)
                for _ in range(LEAD):
                    engine.step()
                begin = synchronize(self._device)
                for _ in range(DECODE_STEPS):
                    engine.step()
                return [(synchronize(self._device) - begin) / DECODE_STEPS]

        return work

    def starting(self, context: int) -> Callable[[], Sequence[float]]:
        """Seconds of what is done once before sequences are generated."""
        requests = [self._request(context) for _ in range(2)]

        def work() -> Sequence[float]:
            begin = synchronize(self._device)
            times = []
            with self._generation_engine(1, context) as engine:
                for request in requests:
                    number = engine.add(request)
                    engine.step()
                    times.append(synchronize(self._device))
                    engine.cancel(number)
            return [max(0.0, (times[0] - begin) - (times[1] - times[0]))]

        return work

    def _generation_engine(self, width: int, context: int) -> GenerationEngine:
        self.model.eval()
        return GenerationEngine(
            self.model.network,
            max_batch_tokens=MANY,
            max_batch_sequences=width,
            kv_cache_tokens=2 * width * (context + MAX_NEW_TOKENS + 512),
        )

    def _request(self, context: int) -> Request:
        config = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, temperature=1.0, stop_token_ids=())
        return Request(tuple(self._tokens(context).tolist()), config)

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
