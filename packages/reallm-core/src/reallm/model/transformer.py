"""`Transformer`: the network of embedding, blocks and head over packed tokens.

Shapes: T packed tokens, S sequences, N selected tokens, E hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reallm.compiled_code import check_own_folder
from reallm.errors import ConfigError, PluginError, did_you_mean, quoted
from reallm.model.activation_checkpointing import checkpoint, selective_checkpoint
from reallm.model.adapted import adapters_off
from reallm.model.attention.exact import ExactAttention
from reallm.model.attention.functional import attend_rotated
from reallm.model.attention.gqa import attention_heads
from reallm.model.attention.kv_cache import CacheSpec, ForwardCache, KVCache, keys_and_values
from reallm.model.block import call_block, make_block
from reallm.model.compile import CompiledBlocks, check_compiler, compile_blocks
from reallm.model.config import GradientCheckpointing, ReaLModelConfig
from reallm.model.ends import make_embedding, make_head
from reallm.model.forward_context import AttentionFunction, ForwardContext
from reallm.model.layers import Projections
from reallm.model.linear_cross_entropy import (
    CrossEntropy,
    OutputHead,
    VocabReplicated,
    Vocabulary,
    head_cross_entropy,
    head_logprobs,
    head_logprobs_and_entropies,
)
from reallm.model.linear_top_k import TopK, head_logprobs_and_rest, head_top_k
from reallm.model.lora import add_adapters
from reallm.model.lora_config import LoRAConfig
from reallm.model.packed import PackedSequences
from reallm.model.parameter_names import (
    EMBEDDING_LAYER,
    all_layers,
    block_layers,
    head_bias_name,
    head_layer,
    head_weight_name,
    is_trained,
    split_parameter_name,
)
from reallm.model.products.linear import linear
from reallm.model.products.prepacked import PrepackedWeight, prepacked_weights
from reallm.model.quantized import linear_layers_with_weights, quantize_linear_layers
from reallm.model.rope import rotations
from reallm.model.router_stats import RouterStatsLog
from reallm.model.sharding import Shard, Split, TPUnits, as_split
from reallm.seeding import derive_seed


class Transformer(nn.Module):
    """A decoder-only transformer on packed sequences, as actor (logits) or critic (scores).

    Layers are numbered 0 (embedding), 1..n (blocks), n+1 (head), and parameters are named after them:
    `layers.0.tokens.weight`, `layers.3.attn.q.weight`, `layers.9.out.weight`.

    Args:
        config: configuration of the whole network.
        layers: numbers of the layers to build, such as those of a pipeline stage; None: all.
    """

    exact = False
    """Whether a token's result is the same, bit for bit, whatever else a forward pass computes; see `model.exact`."""
    prepacked: PrepackedWeight | None = None
    """Holder of the prepacked form of the output head's weight, in a context of `prepacked_weights`."""

    def __init__(self, config: ReaLModelConfig, layers: range | None = None) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing: GradientCheckpointing = "none"
        """The activations that training recomputes in the backward pass instead of saving; can be changed any time."""
        self._compiled: CompiledBlocks | None = None
        self.tp_size = 1
        """Number of ranks among which tensor parallelism has split the layers."""
        self.vocabulary: Vocabulary = VocabReplicated()
        """The local rows of the output head."""
        self.compile_blocker: str | None = None
        """The reason that blocks cannot go through `torch.compile`; None: they can."""
        self.exact_probes: dict[tuple[torch.device, torch.dtype, int], str | None] = {}
        """Device, dtype and number of threads -> the reason that passes cannot be exact, as probed; None: they can."""
        self.router_stats: RouterStatsLog | None = None
        """Log in which forward passes in training record router statistics; None: they are not recorded."""
        numbers = all_layers(config) if layers is None else layers
        self.layers = nn.ModuleDict({str(number): _make_layer(config, number) for number in numbers})
        if config.lora is not None:
            self._add_adapters(config.lora, is_whole=layers is None)
        self.compile_blocker = self._first_declared("compile_blocker")

    def forward(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Logits [T, V] of packed sequences, or scores [T] if this is a critic.

        Args:
            tokens: [T] integers, the sequences one after another.
            cu_seqlens: [S+1] integers, on the CPU or with the tokens; sequence `i` owns the tokens
                `cu_seqlens[i]:cu_seqlens[i+1]`.

        Raises:
            DataError: `cu_seqlens` does not bound the tokens.
        """
        return self.head(self.hidden(tokens, cu_seqlens))

    def hidden(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Hidden states [T, E] after the final norm; arguments as in `forward`."""
        return self.forward_hidden(tokens, PackedSequences.from_cu_seqlens(cu_seqlens, tokens))

    def forward_hidden(self, tokens: Tensor, seqs: PackedSequences, cache: ForwardCache | None = None) -> Tensor:
        """Hidden states [T, E] after the final norm; with a cache, of the tokens that follow the cached ones.

        Args:
            tokens: [T] integers; only the embedding reads them.
            seqs: the sequences of the batch.
            cache: the attention layers' tensors of earlier tokens; updated in place.
        """
        x = self.layers[str(EMBEDDING_LAYER)](tokens, seqs)
        mode = self.gradient_checkpointing if self.training and torch.is_grad_enabled() else "none"
        compiled = self._compiled if cache is None else None  # decoding consists of many small steps of other shapes
        context = ForwardContext(
            seqs,
            rotations(self.config, seqs, x.dtype),
            self._attention(compiled),
            checkpoint_attention=mode == "selective",
            router_stats=self.router_stats if self.training and torch.is_grad_enabled() else None,
        )
        if compiled:
            compiled.prepare(x, context)
        run_block = _block_runner(mode, compiled)
        for number in self.block_numbers:
            x = run_block(self.layers[str(number)], x, context, cache.blocks[number] if cache else None)
        if cache:
            cache.advance(seqs.lengths)
        return self.layers[str(head_layer(self.config))](x)

    def _add_adapters(self, lora: LoRAConfig, *, is_whole: bool) -> None:
        """Add adapters to the blocks, and freeze everything else; see `is_trained`."""
        found = {path for number in self.block_numbers for path in add_adapters(self.layers[str(number)], lora)}
        missing = [path for path in lora.targets if path not in found]
        if is_whole and missing:
            raise ConfigError(f"lora.targets has {quoted(missing)}, which no block has as a linear layer; leave it out")
        if lora.quantize_base is not None:
            for number in self.block_numbers:
                quantize_linear_layers(self.layers[str(number)])
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and is_trained(name, self.config))

    def adapters_off(self) -> AbstractContextManager[None]:
        """Context in which forward passes are those of the base model; does nothing for a network without adapters."""
        return adapters_off(self)

    @property
    def block_numbers(self) -> list[int]:
        """Numbers, from 1, of the blocks that this model has."""
        return [number for number in map(int, self.layers) if number in block_layers(self.config)]

    def new_cache(self, n_sequences: int, capacity: int) -> KVCache:
        """An empty cache for sequences of up to `capacity` tokens, with the dtype and device of the parameters."""
        parameter, specs = next(self.parameters()), self.cache_specs()
        return KVCache(specs, n_sequences, capacity, tp=self.tp_size, dtype=parameter.dtype, device=parameter.device)

    def cache_specs(self) -> dict[int, CacheSpec]:
        """Number of a block -> tensors that its attention declares to keep for decoding; by default keys and values."""
        default = keys_and_values(self.config)
        return {
            number: next(_declared(self.layers[str(number)], "cache_spec"), default) for number in self.block_numbers
        }

    @property
    def layout_blocker(self) -> str | None:
        """The reason that tensor and pipeline parallelism cannot split the network, as a block declares it; or None."""
        return self._first_declared("layout_blocker")

    def _first_declared(self, name: str) -> str | None:
        blocks = (self.layers[str(number)] for number in self.block_numbers)
        return next((found for block in blocks for found in _declared(block, name)), None)

    def tp_units(self) -> tuple[TPUnits, ...]:
        """The units of all blocks that tensor parallelism divides among ranks, as layers declare them.

        The attention of a block in which nothing declares a `cache_spec` is taken to have query and KV heads.
        """
        found: dict[TPUnits, None] = {}
        for block in (self.layers[str(number)] for number in self.block_numbers):
            if next(_declared(block, "cache_spec"), None) is None:
                found |= dict.fromkeys(attention_heads(self.config))
            for units in _declared(block, "tp_units"):
                found |= dict.fromkeys(units)
        return tuple(found)

    def compile_blocks(self) -> None:
        """Run the blocks through `torch.compile` from now on, in training and evaluation; decoding is not compiled.

        Raises:
            ConfigError: a requirement of `torch.compile` is not installed, gradient checkpointing is selective, or
                layers are split.
        """
        if self.compile_blocker is not None:
            raise ConfigError(f"model.compile=true does not work with {self.compile_blocker}; leave model.compile out")
        check_compiler(next(self.parameters()).device)
        check_own_folder()
        compiled = compile_blocks()
        _block_runner(self.gradient_checkpointing, compiled)
        self._compiled = compiled

    @property
    def is_compiled(self) -> bool:
        """Whether the blocks run through `torch.compile`."""
        return self._compiled is not None

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, E], or scores [N] if this is a critic."""
        if self.config.is_critic:
            return linear(hidden, self.head_weight, self.head_bias, exact=self.exact)[:, 0]
        return self._output_head.logits(hidden)

    def cross_entropy(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> CrossEntropy:
        """Cross-entropy of the logits of `hidden` [N, E] against `targets` [N], without holding logits `[N, V]`."""
        assert not self.config.is_critic, "a critic has no logits"
        return head_cross_entropy(hidden, targets, self._output_head, temperature)

    def logprobs(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities [N], float32, of `targets` [N] under `hidden` [N, E], without holding logits `[N, V]`."""
        assert not self.config.is_critic, "a critic has no logits"
        return head_logprobs(hidden, targets, self._output_head, temperature)

    def logprobs_and_entropies(
        self, hidden: Tensor, targets: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N] as `logprobs` gives them, and entropies [N] of the distributions, in nats."""
        assert not self.config.is_critic, "a critic has no logits"
        return head_logprobs_and_entropies(hidden, targets, self._output_head, temperature)

    def top_k(self, hidden: Tensor, k: int, temperature: float = 1.0, n_tokens: int | None = None) -> TopK:
        """The `k` most likely of the first `n_tokens` tokens, None: of all, under `hidden` [N, E]; see `head_top_k`."""
        assert not self.config.is_critic, "a critic has no logits"
        return head_top_k(hidden, k, self._output_head, n_tokens or self.config.vocab_size, temperature)

    def logprobs_and_rest(self, hidden: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities [N, K+1] of `tokens` [N, K] and of all others together, under `hidden` [N, E]."""
        assert not self.config.is_critic, "a critic has no logits"
        return head_logprobs_and_rest(hidden, tokens, self._output_head, temperature)

    @property
    def _output_head(self) -> OutputHead:
        config = self.config
        return OutputHead(
            self.head_weight,
            self.head_bias,
            config.logit_multiplier,
            config.logit_softcap,
            self.vocabulary,
            self.prepacked,
            self.exact,
        )

    def _attention(self, compiled: CompiledBlocks | None) -> AttentionFunction:
        if self.exact:
            return ExactAttention()
        return compiled.attention if compiled else attend_rotated

    def prepacked_weights(self) -> AbstractContextManager[list[PrepackedWeight]]:
        """Context for many forward passes of few tokens without gradients, in which layers read prepacked weights.

        Results are the same. The prepacked forms are made as they are needed, and again for a weight that has changed;
        they take as much memory as the weights, and the time of a forward pass of 64 tokens.
        """
        modules = list(self.modules())
        joint = [module for module in modules if isinstance(module, Projections) and module.joint_layers]
        within = {layer for module in joint for layer in module.joint_layers}
        single = [module for module in linear_layers_with_weights(self) if module not in within]
        return prepacked_weights([self, *joint, *single])

    @property
    def head_weight(self) -> nn.Parameter:
        """Output projection [V, E] ([1, E] for a critic); the embedding itself if the head is tied."""
        return self.get_parameter(head_weight_name(self.config))

    @property
    def head_bias(self) -> nn.Parameter | None:
        """Bias [V] of the output projection, if it has one."""
        name = head_bias_name(self.config)
        return None if name is None else self.get_parameter(name)

    def parameter_shards(self) -> dict[str, Shard | None]:
        """Parameter -> the split that tensor parallelism may use, as its layer declares it.

        Raises:
            PluginError: a layer does not declare one of its parameters, or declares one that it does not have.
        """
        declared = {
            f"{path}.{name}": shard
            for path, module in self.named_modules()
            for name, shard in getattr(module, "shards", {}).items()
        }
        parameters = dict(self.named_parameters()).keys()
        for name in parameters ^ declared.keys():
            owner, own_name = split_parameter_name(name)
            cls = type(self.get_submodule(owner)).__qualname__
            if name in parameters:
                raise PluginError(f"{cls} has the parameter '{own_name}', which is missing from its `shards`; add it")
            raise PluginError(f"{cls}.shards has '{own_name}', which is not one of its parameters; remove it")
        return declared

    def module_splits(self) -> dict[str, Split]:
        """Path of a module -> its `split`, for modules that declare one.

        Raises:
            PluginError: a module declares a value that is not allowed.
        """
        return {
            path: as_split(str(module.split), type(module).__qualname__)
            for path, module in self.named_modules()
            if getattr(module, "split", None) is not None
        }

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> None:
        """Initialise all parameters: matrices normal with `config.init_std`, vectors one, biases zero.

        A layer can choose other values with a method `fresh_parameter(name, generator)`, which returns the value of one
        of its parameters, or None for the default.
        """
        for path, module in self.named_modules():
            fresh_parameter = getattr(module, "fresh_parameter", None)
            for own_name, parameter in module.named_parameters(recurse=False):
                name = f"{path}.{own_name}"
                value = fresh_parameter(own_name, random_stream(name, seed)) if fresh_parameter else None
                parameter.copy_(initial_weight(name, parameter.shape, self.config, seed) if value is None else value)


def _declared(block: nn.Module, name: str) -> Iterator[Any]:
    """Values of an attribute of the modules in a block that have it."""
    return (getattr(module, name) for module in block.modules() if getattr(module, name, None) is not None)


def _make_layer(config: ReaLModelConfig, number: int) -> nn.Module:
    if number == EMBEDDING_LAYER:
        return make_embedding(config)
    return make_head(config) if number == head_layer(config) else make_block(config, number - 1)


def _block_runner(mode: GradientCheckpointing, compiled: CompiledBlocks | None) -> Callable[..., Tensor]:
    """A function `runner(block, x, context, cache)` that runs a block with checkpointing and compilation."""
    call = compiled.call if compiled else call_block
    runners: dict[str, Callable[..., Tensor]] = {
        "none": call,
        "selective": selective_checkpoint,
        "full": partial(checkpoint, call),
    }
    if mode not in runners:
        known = ", ".join(runners)
        raise ConfigError(f"gradient_checkpointing={mode!r} is not one of {known}{did_you_mean(mode, runners)}")
    if mode == "selective" and compiled:
        # compiled code has no separate layers, and saves the inputs of matrix products anyway
        raise ConfigError("model.compile=true works with gradient_checkpointing none or full, not with selective")
    return runners[mode]


def initial_weight(name: str, shape: torch.Size, config: ReaLModelConfig, seed: int) -> Tensor:
    """Default initial value of a parameter, float32 on the CPU.

    Each parameter has its own random stream, from the seed and its name, so that values do not depend on the order of
    layers or on the layers that a rank holds.
    """
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) < 2:  # a scale
        return torch.ones(shape)
    return torch.empty(shape).normal_(0.0, config.init_std, generator=random_stream(name, seed))


def random_stream(name: str, seed: int) -> torch.Generator:
    """The generator of the initial value of a parameter."""
    return torch.Generator().manual_seed(derive_seed(seed, "init", name))
