"""Estimates of the memory that training takes, made before anything is allocated.

The memory of parameters, gradients and optimizer follows from their shapes. That of activations is found by tracing the
network, forward and backward, with tensors that have shapes but no memory, and counting the bytes alive: the count
includes whatever a plugin's block does, and recomputation.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reallm.config.optimizer import OptimizerConfig
from reallm.errors import ReallmError
from reallm.generation.memory import bytes_per_sequence, bytes_per_token
from reallm.machine_errors import raise_shortage
from reallm.model.config import ReaLModelConfig
from reallm.model.linear_cross_entropy import chunk_size
from reallm.model.packed import PackedSequences
from reallm.model.parameter_names import EMBEDDING_LAYER, is_trained, parameter_dtype
from reallm.model.parameters import meta_model, n_trained, new_meta_model, parameter_shapes, quantized_sizes
from reallm.model.products.linear import PIECE_BYTES, uses_onednn
from reallm.model.products.nf4 import nf4_bytes
from reallm.model.quantized import quantized_layers
from reallm.model.transformer import Transformer
from reallm.training.kept_traces import kept
from reallm.training.meta_results import result_on_meta
from reallm.training.update_rules import update_rules

GIB = 2**30
FRAGMENTATION = 0.3
"""Memory that the C library's allocator loses on a CPU, as a share of the bytes that come and go; with one that maps
each tensor separately, the bytes alive are within 5 % of what a process takes."""
PIECES_HELD = 3
"""Pieces of logits for which the C library has memory, of which one is used: an aligned block does not fit into the
hole that another one of its size has left."""
TRACED_BLOCKS = (1, 2)
"""Numbers of blocks of one kind in the two traced networks from which a network with more is extrapolated."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one model takes at its peak, by purpose: one that is trained, or one that is only called."""

    parameters: int
    gradients: int
    optimizer: int
    """Moments, and float32 masters of half-precision parameters."""
    activations: int | None
    """Bytes that a micro-batch of `n_tokens` adds, with temporary gradients; None if the network cannot be traced."""
    n_tokens: int
    share_lost: float = 0.0
    """What the allocator loses, as a share of the bytes that come and go."""
    copies: int = 0
    """Parameters of copies in other layouts."""
    kv_cache: int = 0
    """Keys and values of `n_cached` tokens, while the model generates."""
    n_cached: int = 0

    @property
    def persistent(self) -> int:
        """Bytes that stay allocated from step to step: everything but activations and keys and values."""
        return self.parameters + self.gradients + self.optimizer + self.copies

    @property
    def transient(self) -> int:
        """Bytes that a call adds. A model generates at other times than it is trained."""
        return max(self.activations or 0, self.kv_cache)

    @property
    def fragmentation(self) -> int:
        """Bytes that the allocator loses."""
        return int(self.share_lost * (self.gradients + self.transient))

    @property
    def total(self) -> int:
        """The sum of all bytes at the peak."""
        return self.persistent + self.transient + self.fragmentation

    def __str__(self) -> str:
        parts: dict[str, int | None] = {
            "parameters": self.parameters,
            **({"copies in other layouts": self.copies} if self.copies else {}),
            **({"gradients": self.gradients, "optimizer": self.optimizer} if self.gradients else {}),
            f"activations at {self.n_tokens:,} tokens": self.activations,
            **({f"keys and values of {self.n_cached:,} tokens": self.kv_cache} if self.kv_cache else {}),
        }
        if self.fragmentation:
            parts["allocator"] = self.fragmentation
        listed = ", ".join(f"{name} {'unknown' if n is None else size_text(n)}" for name, n in parts.items())
        return f"about {size_text(self.total)}: {listed}"


def size_text(n_bytes: float) -> str:
    """Format bytes for people: `0.7 MiB`, `42 MiB`, `1.3 GiB`, `24 GiB`."""
    size, unit = (n_bytes / GIB, "GiB") if n_bytes >= GIB else (n_bytes / 2**20, "MiB")
    return f"{size:.1f} {unit}" if size < 10 else f"{size:,.0f} {unit}"


def estimate(
    config: ReaLModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    lengths: Sequence[int],
    *,
    gradient_checkpointing: Any = "none",
    optimizer: OptimizerConfig | None = None,
) -> MemoryEstimate:
    """Estimate the memory of training with `TrainEngine`; `lengths` are the sequences of the largest micro-batch.

    The optimizer is AdamW if it is not given.
    """
    size, trained = max(dtype.itemsize, 4), _trained_elements(config, dtype)
    n_half = sum(n for each, n in trained.items() if each.itemsize < 4)
    activations = traced_activations(config, dtype, device, lengths, gradient_checkpointing)
    if activations is not None:
        activations += n_half * dtype.itemsize  # gradients in half precision, before those of the masters get them
    return MemoryEstimate(
        parameters=parameter_bytes(config, dtype),
        gradients=sum(trained.values()) * size,
        optimizer=_optimizer_state(config, optimizer or OptimizerConfig()) * size + 4 * n_half,
        activations=activations,
        n_tokens=sum(lengths),
        share_lost=share_lost(device),
    )


def estimate_call(
    config: ReaLModelConfig, dtype: torch.dtype, device: torch.device, lengths: Sequence[int]
) -> MemoryEstimate:
    """Estimate the memory of a model that is called without being trained; `lengths` are those of its largest
    forward pass."""
    activations = traced_activations(config, dtype, device, lengths, None)
    return MemoryEstimate(parameter_bytes(config, dtype), 0, 0, activations, sum(lengths), share_lost(device))


def share_lost(device: torch.device) -> float:
    """What the allocator of a device loses, as a share of the bytes that come and go."""
    return FRAGMENTATION if device.type == "cpu" else 0.0


def parameter_bytes(config: ReaLModelConfig, dtype: torch.dtype) -> int:
    """Bytes of all parameters of a network of this dtype, and of quantized weights; adapters have at least float32."""
    shapes = parameter_shapes(config)
    quantized = sum(map(nf4_bytes, quantized_sizes(config)))
    return quantized + sum(math.prod(shape) * parameter_dtype(name, dtype).itemsize for name, shape in shapes.items())


def _trained_elements(config: ReaLModelConfig, dtype: torch.dtype) -> Counter[torch.dtype]:
    """Dtype -> number of elements of the parameters that are trained in it."""
    found: Counter[torch.dtype] = Counter()
    for name, shape in parameter_shapes(config).items():
        if is_trained(name, config):
            found[parameter_dtype(name, dtype)] += math.prod(shape)
    return found


def traced_activations(
    config: ReaLModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    lengths: Sequence[int],
    gradient_checkpointing: Any,
) -> int | None:
    """Bytes of activations at their peak while sequences of these lengths are trained on, temporary gradients included.

    With `gradient_checkpointing=None` the model is only called. On the meta device it is traced several times as fast,
    as on a GPU that has a kernel for attention, but without what layers do on one kind of device alone.

    Returns:
        None: a plugin's layers do what is not possible without values.
    """
    peaks = activation_peaks(config, dtype, device, lengths, gradient_checkpointing)
    return None if peaks is None else max(peaks)


def activation_peaks(
    config: ReaLModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    lengths: Sequence[int],
    gradient_checkpointing: Any,
    n_scored: int | None = None,
) -> ActivationPeaks | None:
    """As `traced_activations`, by what is computed; `n_scored` of the tokens have logits or scores, None: all."""
    n_scored = sum(lengths) if n_scored is None else n_scored
    try:
        if gradient_checkpointing is None:
            peaks = _call_peaks(config, dtype, device, lengths, n_scored)
        else:
            peaks = _step_peaks(config, dtype, device, lengths, gradient_checkpointing, n_scored)
        dequantized = max(quantized_sizes(config), default=0) * dtype.itemsize  # the backward pass makes one at a time
        return peaks._replace(
            head=peaks.head + _piece_bytes(config, n_scored, dtype, device), blocks=peaks.blocks + dequantized
        )
    except ReallmError:  # such as a sequence longer than the positions that the model has learned
        raise
    except Exception as error:  # the rest is still worth estimating
        raise_shortage(error)
        return None


class ActivationPeaks(NamedTuple):
    """The most bytes alive at once beyond parameters and gradients, in the parts of a pass."""

    head: int
    """Until the head has computed its logits, a chunk of tokens at a time."""
    blocks: int
    """At other times: of a step in the backward pass, of a call in the blocks."""


def logits_bytes(config: ReaLModelConfig, n_scored: int, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of a chunk of the logits of so many tokens, and of what products are copied from; 0 for a critic."""
    if config.is_critic:
        return 0
    chunk = 4 * config.vocab_size * chunk_size(n_scored, config.vocab_size, device)
    return chunk + _piece_bytes(config, n_scored, dtype, device)


def _piece_bytes(config: ReaLModelConfig, n_scored: int, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes for the pieces of logits that oneDNN computes, which are then copied; fake tensors do not show them."""
    if config.is_critic or device.type != "cpu":
        return 0
    weight = torch.empty(1, 1, dtype=dtype)
    if not uses_onednn(weight, weight):
        return 0
    return PIECES_HELD * min(PIECE_BYTES, 4 * config.vocab_size * n_scored)


def kv_cache_bytes(config: ReaLModelConfig, dtype: torch.dtype, n_tokens: int, n_sequences: int) -> int:
    """Bytes of the keys and values of so many tokens, and of the states of so many sequences, in all blocks."""
    network = new_meta_model(config).to(dtype)
    return n_tokens * bytes_per_token(network) + n_sequences * bytes_per_sequence(network)


@lru_cache(maxsize=64)
def state_per_parameter(config: ReaLModelConfig, optimizer: OptimizerConfig) -> float:
    """Elements that the optimizer keeps for each trained parameter, on average, without masters."""
    return _optimizer_state(config, optimizer) / n_trained(config)


def _optimizer_state(config: ReaLModelConfig, optimizer: OptimizerConfig) -> int:
    """Number of elements that the optimizer keeps, without masters."""
    network = meta_model(config)
    rules = update_rules(network, optimizer)
    return sum(
        math.prod(shape)
        for name, parameter in network.named_parameters()
        if is_trained(name, config)
        for shape in rules[name].state_shapes(tuple(parameter.shape), optimizer).values()
        if shape
    )


def _step_peaks(
    config: ReaLModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    lengths: Sequence[int],
    gradient_checkpointing: Any,
    n_scored: int,
) -> ActivationPeaks:
    def trace(blocks: Iterable[int]) -> _StepPeaks:
        traced = config.with_blocks(*sorted(blocks))
        on_lengths = _equivalent_lengths(traced, lengths)
        return _trace_step(traced, dtype, device, on_lengths, gradient_checkpointing, n_scored)

    few, more = TRACED_BLOCKS
    if config.n_layers <= more:
        whole = trace(range(config.n_layers))
        return ActivationPeaks(whole.forward, max(whole.last_block, whole.other_blocks))
    kinds = config.alike_blocks()
    # the last blocks of each kind, which include the last of all: memory may peak in its backward pass
    low = trace(block for blocks in kinds for block in blocks[-few:])
    forward, last_block, other_blocks = low
    for kind, blocks in enumerate(kinds):
        if len(blocks) <= few:
            continue
        high = trace(
            block for each, numbers in enumerate(kinds) for block in numbers[-(more if each == kind else few) :]
        )
        slope = Fraction(len(blocks) - few, min(len(blocks), more) - few)
        forward += int(slope * (high.forward - low.forward))
        last_block += int(slope * (high.last_block - low.last_block))
        # after the last block's backward pass memory only falls, except for the embedding's gradient, which is the same
        # at any depth
        other_blocks = max(other_blocks, high.other_blocks)
    return ActivationPeaks(forward, max(last_block, other_blocks))


def _call_peaks(
    config: ReaLModelConfig, dtype: torch.dtype, device: torch.device, lengths: Sequence[int], n_scored: int
) -> ActivationPeaks:
    # nothing is kept of a block after the next one, so that two blocks of each kind have the peak of all
    few = sorted(block for blocks in config.alike_blocks() for block in blocks[-2:])
    traced = config.with_blocks(*few)
    return _trace_call(traced, dtype, device, _equivalent_lengths(traced, lengths), n_scored)


class _StepPeaks(NamedTuple):
    """The most bytes alive at once beyond parameters and gradients, in each phase of a step."""

    forward: int
    """Peak in the forward pass, up to the loss."""
    last_block: int
    """Peak in the backward pass of the head and the last block."""
    other_blocks: int
    """Peak in the rest of the backward pass."""


@kept(_StepPeaks)
def _trace_step(
    config: ReaLModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    lengths: tuple[int, ...],
    gradient_checkpointing: Any,
    n_scored: int,
) -> _StepPeaks:
    """The peaks of a forward and a backward pass; traced once for models and calls that are alike."""
    network = new_meta_model(config).train()
    network.gradient_checkpointing = gradient_checkpointing
    alive = AliveBytes()
    with _fake_inputs(network, dtype, device, lengths) as (tokens, seqs):
        after_last_block: list[int] = []

        def watch(block: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            if not after_last_block and x.requires_grad:  # not when it is recomputed, with detached inputs
                x.register_hook(lambda gradient: after_last_block.append(alive.restart()))

        if (
            config.lora is not None
        ):  # so that the only block of a network is as any other, to whose input gradients come
            network.layers[str(EMBEDDING_LAYER)].register_forward_hook(lambda _, __, out: out.requires_grad_())
        network.layers[str(config.n_layers)].register_forward_pre_hook(watch)
        with alive:
            scored = tokens[:n_scored]  # indices or targets: fake ones are all alike
            hidden = network.forward_hidden(tokens, seqs)[scored]
            loss = network.head(hidden).sum() if config.is_critic else network.cross_entropy(hidden, scored).loss_sum
            forward = alive.restart()
            loss.backward()
    return _StepPeaks(forward, max(after_last_block), alive.peak)


@kept(ActivationPeaks)
def _trace_call(
    config: ReaLModelConfig, dtype: torch.dtype, device: torch.device, lengths: tuple[int, ...], n_scored: int
) -> ActivationPeaks:
    """The peaks of a forward pass without gradients; traced once for models and calls that are alike."""
    network, alive = new_meta_model(config).eval(), AliveBytes()
    with _fake_inputs(network, dtype, device, lengths) as (tokens, seqs), torch.no_grad(), alive:
        hidden, scored = network.forward_hidden(tokens, seqs), tokens[:n_scored]
        blocks = alive.restart()
        _ = network.head(hidden) if config.is_critic else network.logprobs(hidden[scored], scored)
    return ActivationPeaks(alive.peak, blocks)


@contextmanager
def _fake_inputs(
    network: Transformer, dtype: torch.dtype, device: torch.device, lengths: tuple[int, ...]
) -> Iterator[tuple[Tensor, PackedSequences]]:
    """Context in which a network has parameters without values, with gradients as if from an earlier micro-batch; gives
    such tokens and their sequences."""
    seqs = PackedSequences.from_lengths(lengths)
    positions = seqs.positions  # needs values, so it is computed before tensors are fake
    fake = None
    if device.type != "meta":
        from torch._subclasses.fake_tensor import FakeTensorMode  # imports much

        fake = FakeTensorMode()
    with fake or nullcontext(), _without_log_of_torch():
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                of_dtype = parameter_dtype(f".{name}", dtype)
                value = nn.Parameter(
                    torch.empty(parameter.shape, dtype=of_dtype, device=device), requires_grad=parameter.requires_grad
                )
                if value.requires_grad:
                    value.grad = torch.empty(parameter.shape, dtype=of_dtype, device=device)
                setattr(module, name, value)
        for layer in quantized_layers(network).values():
            layer.quantized = _TracedWeight(
                torch.empty(layer.out_features, layer.in_features, dtype=dtype, device=device)
            )
        tokens = torch.empty(seqs.n_tokens, dtype=torch.int64, device=device)
        cu_seqlens, positions = (
            each.to(device) if fake is None else fake.from_tensor(each).to(device)
            for each in (seqs.cu_seqlens, positions)
        )
        on_device = PackedSequences(seqs.lengths, cu_seqlens, seqs.cached_lengths)
        vars(on_device)["positions"] = positions
        yield tokens, on_device


@contextmanager
def _without_log_of_torch() -> Iterator[None]:
    """Context in which torch does not log an error of an operation on fake tensors before it raises it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled


@dataclass(frozen=True)
class _TracedWeight:
    """A quantized weight of which only shape, dtype and device count."""

    weight: Tensor

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight, bias)

    def dequantize(self) -> Tensor:
        return self.weight


def depends_on_lengths(config: ReaLModelConfig) -> bool:
    """Whether the memory of activations depends on the lengths of sequences, and not on their sum alone."""
    keeps_scores = config.attn_softcap is not None or config.attn_dropout > 0
    return keeps_scores or any(config.windows) or config.alibi_scale is not None or config.learned_positions


def _equivalent_lengths(config: ReaLModelConfig, lengths: Sequence[int]) -> tuple[int, ...]:
    """Lengths of fewer sequences that take the same memory, since each sequence costs time to trace.

    If attention scores are not kept, only the number of tokens matters. If they or masks are kept, the lengths matter
    too, and learned positions limit them: then all sequences are made as long as the longest, which takes no less.
    """
    total = sum(lengths)
    if not depends_on_lengths(config):
        return (total,)
    longest = max(lengths)
    return (longest,) * (total // longest) + ((total % longest,) if total % longest else ())


class AliveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations allocate and that are still referenced."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((*args, *kwargs.values())):
            self._count(tensor.untyped_storage(), is_new=False)  # a result may be a view of it
        result = result_on_meta(func, args, kwargs)
        if result is None:
            result = func(*args, **kwargs)
        for tensor in _tensors((result,)):
            self._count(tensor.untyped_storage(), is_new=True)
        self.peak = max(self.peak, self._now)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Of torch: whether `torch.compile` is kept from this mode, for which its compiler would be imported."""
        return False

    def restart(self) -> int:
        """Return the peak so far; the next peak starts from the bytes alive now."""
        peak, self.peak = self.peak, self._now
        return peak

    def _count(self, storage: torch.UntypedStorage, *, is_new: bool) -> None:
        key = storage._cdata
        if key not in self._alive:
            size = storage.nbytes() if is_new else 0

            def release(_: object) -> None:
                del self._alive[key]
                self._now -= size

            self._alive[key] = weakref.ref(storage, release)
            self._now += size


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among the arguments or results of an operation, some of which may be in lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found
