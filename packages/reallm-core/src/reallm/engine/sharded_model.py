"""`ShardedModel`: a network of which each rank of a layout holds a part; it can be offloaded and reallocated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reallm.arguments import check_instance
from reallm.dtype_device import as_device, as_dtype, as_dtype_or_device
from reallm.errors import ConfigError, DataError, PeerError
from reallm.model.config import GradientCheckpointing, ReaLModelConfig
from reallm.model.inputs import as_tokens
from reallm.model.linear_cross_entropy import CrossEntropy
from reallm.model.parameter_names import adapter_dtype, is_adapter, is_trained, parameter_dtype
from reallm.model.parameters import parameter_shapes
from reallm.model.sharding import Box
from reallm.model.transformer import Transformer
from reallm.offload.model import ModelOffload
from reallm.parallel.fsdp import is_fsdp, local_tensors
from reallm.parallel.layout import Layout, as_layout
from reallm.parallel.mesh import Mesh
from reallm.parallel.parallelize import init_local_weights, load_local, local_layers, parallelize
from reallm.parallel.sharding import local_boxes

if TYPE_CHECKING:
    from reallm.reallocation.execute import ReallocationResult


T = TypeVar("T")


@dataclass
class MeshCache:
    """Cache of the meshes between which a model is moved: making process groups takes longer than a move."""

    known: dict[Layout, Mesh] = field(default_factory=dict)

    def get(self, layout: Layout | Mesh | str) -> Mesh:
        """The mesh of a layout, the same one each time."""
        if isinstance(layout, Mesh):
            return self.known.setdefault(layout.layout, layout)
        layout = as_layout(layout)
        if layout not in self.known:
            self.known[layout] = Mesh.of(layout)
        return self.known[layout]


@dataclass(frozen=True)
class _BuildArgs:
    """Arguments that a model was built with, other than its configuration and its mesh."""

    dtype: torch.dtype
    device: torch.device
    zero: int
    sequence_parallel: bool


class ShardedModel:
    """A `Transformer` of which this rank holds the part that a mesh assigns to it, or all of it without a mesh.

    It is called like its `network`, and has the methods of an `nn.Module` that deal with parameters and modes.
    Parameters are named as in the network: `layers.0.tokens.weight`. Other attributes of a module are found on
    `network`.

    Args:
        config: configuration of the whole network.
        dtype: dtype of the parameters, or its name, such as `"bfloat16"`.
        device: device of the parameters; `meta` for a network without values.
        seed: seed of the initial weights, which are the same in every layout.
        mesh: the layout; None: this process holds the whole network.
        zero: ZeRO level, for a layout with FSDP: 1 frees nothing, 2 frees gradients after each micro-batch, 3 also
            frees parameters after each use.
        sequence_parallel: whether tensor-parallel ranks also split the tokens, outside of the layers that they split.

    Raises:
        ConfigError: the layout does not fit the heads, the layers or the number of ranks.
    """

    def __init__(
        self,
        config: ReaLModelConfig,
        *,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
        mesh: Mesh | None = None,
        zero: int = 3,
        sequence_parallel: bool = False,
    ) -> None:
        check_instance(
            "config", config, ReaLModelConfig, f"{type(self).__name__}.from_pretrained(path) loads a checkpoint"
        )
        dtype, device = as_dtype(dtype), as_device(device)
        if config.base_is_quantized and device.type != "meta":
            raise ConfigError("lora.quantize_base quantizes the weights of a checkpoint; load one with from_pretrained")
        if config.base_is_quantized and mesh is not None:
            raise ConfigError(
                "lora.quantize_base: a base model in 4 bits is held by one process alone; leave it out, or start one "
                "process, and load it without a mesh"
            )
        if mesh is not None:
            check_instance("mesh", mesh, Mesh, 'write Mesh.of("tp2")')
        with torch.device(device if mesh is None else "meta"):
            network = Transformer(config, None if mesh is None else local_layers(config, mesh)).to(dtype)
        self.config = config
        self.mesh = mesh
        """The ranks that share the model; None if this process holds all of it."""
        self.meshes = MeshCache({} if mesh is None else {mesh.layout: mesh})
        self.moved: ReallocationResult | None = None
        """Result of the last `reallocate` that made this model or wrote into it: how much was moved."""
        self._network = network
        self._build_args = _BuildArgs(dtype, device, zero, sequence_parallel)
        self._offload: ModelOffload | None = None
        self._broken: str | None = None
        """The reason that the parameters or the ranks' passes can no longer be relied on; None: they can."""
        self._frozen_contents = object()
        """Stands for the values of the parameters that are not trained: the same in models that have them in common."""
        self._check_before_use: Callable[[Mapping[str, Tensor]], None] | None = None
        """Check of the parameters that is left until the network is first used; None: there is none, or it is done."""
        if mesh is not None:
            parallelize(network, mesh, zero=zero, sequence_parallel=sequence_parallel)
        if device.type == "meta":
            return
        if mesh is None:
            network.init_weights(seed)
        else:
            initial = init_local_weights(config, local_boxes(config, mesh.layout, mesh.rank), seed)
            tensors = {name: tensor.to(device, parameter_dtype(name, dtype)) for name, tensor in initial}
            load_local(network, tensors, device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._network!r})"

    # ------------------------------------------------------------------ the network

    @property
    def network(self) -> Transformer:
        """The layers that this rank holds, as a module to pass to losses.

        Raises:
            PeerError: an earlier error has left it unusable; says which.
            CheckpointError: parameters that are mapped from a file, and now read for the first time, are not finite.
        """
        self._check_usable()
        self._check_parameters()
        return self._network

    def _check_parameters(self) -> None:
        if self._check_before_use is not None:
            self._check_before_use(self.local_tensors())
            self._check_before_use = None

    def _refuse_if_quantized(self, what: str) -> None:
        if self.config.base_is_quantized:
            raise ConfigError(f"lora.quantize_base: a base model in 4 bits cannot be {what}; leave it out")

    def _check_usable(self) -> None:
        if self._broken is not None:
            raise PeerError(self._broken)

    def __call__(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Logits [T, V] of packed sequences, or scores [T] of a critic; see `Transformer.forward`."""
        logits: Tensor = self.network(self._as_tokens(tokens), cu_seqlens)
        return logits

    def hidden(self, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Hidden states [T, E] after the final norm; see `Transformer.hidden`."""
        return self.network.hidden(self._as_tokens(tokens), cu_seqlens)

    def _as_tokens(self, tokens: Tensor) -> Tensor:
        """Checked tokens, where the parameters are."""
        tokens = as_tokens(tokens, self.config.vocab_size)
        if not tokens.numel():
            raise DataError("there are no tokens; give at least one")
        return tokens.to(self.device)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, E], or scores [N] of a critic."""
        return self.network.head(hidden)

    def cross_entropy(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> CrossEntropy:
        """Cross-entropy of the logits of `hidden` [N, E] against `targets` [N], without holding logits `[N, V]`."""
        return self.network.cross_entropy(hidden, targets, temperature)

    def logprobs(self, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities [N], float32, of `targets` [N] under `hidden` [N, E], without holding logits `[N, V]`."""
        return self.network.logprobs(hidden, targets, temperature)

    @property
    def head_weight(self) -> nn.Parameter:
        """The output projection [V, E] ([1, E] of a critic); the embedding's table if the head is tied."""
        return self._network.head_weight

    @property
    def gradient_checkpointing(self) -> GradientCheckpointing:
        """The activations that training recomputes in the backward pass instead of keeping; can be changed any time."""
        return self._network.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, mode: GradientCheckpointing) -> None:
        self._network.gradient_checkpointing = mode

    def compile_blocks(self) -> None:
        """Run the blocks through `torch.compile` from now on; see `Transformer.compile_blocks`."""
        self._network.compile_blocks()

    @property
    def is_compiled(self) -> bool:
        """Whether the blocks run through `torch.compile`."""
        return self._network.is_compiled

    def adapters_off(self) -> AbstractContextManager[None]:
        """Context in which the model computes as its base model does, without adapters."""
        return self._network.adapters_off()

    @contextmanager
    def other_adapter(self, adapter: Mapping[str, Tensor]) -> Iterator[None]:
        """Context in which the model computes with other values of its adapters, which are kept where these were.

        Args:
            adapter: parameter -> this rank's part; meanwhile it has the values of this model.
        """
        self._exchange(adapter)
        try:
            yield
        finally:
            if self._broken is None:  # else the error that has left it unusable is the one to be told
                self._exchange(adapter)

    @torch.no_grad()
    def _exchange(self, adapter: Mapping[str, Tensor]) -> None:
        own = self.local_tensors()
        for name, tensor in adapter.items():
            values = own[name].clone()
            own[name].copy_(tensor)
            tensor.copy_(values)

    # ------------------------------------------------------------------ parameters and modes, as in an nn.Module

    def parameters(self) -> Iterator[nn.Parameter]:
        """The local parameters; offloaded ones have no memory until `reload`."""
        return self._network.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The local parameters by name; see `parameters`."""
        return self._network.named_parameters()

    def get_parameter(self, name: str) -> nn.Parameter:
        """A local parameter by name."""
        return self._network.get_parameter(name)

    def state_dict(self) -> dict[str, Any]:
        """The local parameters by name, not copies. Offloaded parameters are brought back first."""
        self.reload()
        return self._network.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Copy values into the local parameters; see `nn.Module.load_state_dict`."""
        self.reload()
        self._frozen_contents = object()
        return self._network.load_state_dict(state_dict, strict=strict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all local parameters, or set them to zero."""
        self._network.zero_grad(set_to_none)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert the parameters in place; arguments as in `nn.Module.to`. Reloads what is offloaded.

        A dtype can be given by its name, such as `"bfloat16"`, too.
        """
        self.reload()
        args = tuple(as_dtype_or_device(each) if isinstance(each, str) else each for each in args)
        for name, convert in {"dtype": as_dtype, "device": as_device}.items():
            if kwargs.get(name) is not None:
                kwargs[name] = convert(kwargs[name])
        # applies to a rank without parameters too, whose dtype and device follow from the arguments alone
        before = torch.empty(0, dtype=self._build_args.dtype, device=self._build_args.device)
        like = before.to(*args, **kwargs)
        if (like.dtype, like.device) != (before.dtype, before.device):
            self._refuse_if_quantized("converted or moved")
        self._frozen_contents = object()
        self._network.to(*args, **kwargs)
        self._build_args = replace(self._build_args, dtype=like.dtype, device=like.device)
        return self

    @property
    def training(self) -> bool:
        """Whether dropout and gradient checkpointing are on."""
        return self._network.training

    def train(self, mode: bool = True, *, dropout: bool = True) -> Self:
        """Turn dropout and gradient checkpointing on, or off.

        Args:
            mode: whether to turn them on.
            dropout: False leaves the layers in evaluation mode, so that they add no dropout, jitter or other noise.
        """
        self._network.train(mode)
        if not dropout:
            self._network.layers.eval()
        return self

    def eval(self) -> Self:
        """Turn dropout and gradient checkpointing off."""
        return self.train(False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters; on a rank without any, the dtype on the other ranks."""
        return next((parameter.dtype for parameter in self.parameters()), self._build_args.dtype)

    @property
    def device(self) -> torch.device:
        """The device of the parameters; on a rank without any, the device they would be on."""
        return next((parameter.device for parameter in self.parameters()), self._build_args.device)

    # ------------------------------------------------------------------ placement

    @property
    def layout(self) -> Layout:
        """The layout in which ranks share the model; `dp<n>` without a mesh, where each process holds all of it."""
        return self._effective_mesh.layout

    @property
    def boxes(self) -> Mapping[str, Box]:
        """Parameter -> the part of it that this rank holds, in coordinates of the whole parameter."""
        return local_boxes(self.config, self.layout, self._effective_mesh.rank)

    def local_tensors(self) -> dict[str, Tensor]:
        """Parameter -> this rank's part, `boxes[name].shape`, not a copy. Offloaded parts are brought back first."""
        self.reload()
        return local_tensors(self._network)

    @property
    def _effective_mesh(self) -> Mesh:
        if self.mesh is not None:
            return self.mesh
        return self.meshes.get(Layout(dp=dist.get_world_size() if dist.is_initialized() else 1))

    # ------------------------------------------------------------------ offloading

    def async_offload(self, *, stream: bool = False) -> None:
        """Begin to move the parameters to host memory: from a GPU to pinned memory, from a CPU to a file.

        Until `wait_for_offload`, which frees their memory, the model can be used but must not be changed. Afterwards
        the next forward pass brings it back layer by layer, each layer while the one before it computes.

        Args:
            stream: free blocks again after each use, so that only two are in memory at a time, which lets a model
                larger than the memory run inference. Not for models that are trained.

        Raises:
            DataError: the host has no room; says where.
        """
        self._refuse_if_quantized("offloaded")
        self.reload()
        self._check_parameters()
        if len(self._network.layers):
            self._offload = ModelOffload(self._network, stream=stream)

    def wait_for_offload(self) -> None:
        """Wait until the parameters have left the memory of their device; return at once if no offload has begun."""
        if self._offload is not None:
            self._offload.wait()

    @property
    def offloaded_bytes(self) -> int:
        """Bytes of the parameters if any is in host memory, or on its way there or back; 0 if none is."""
        return 0 if self._offload is None else self._offload.offloaded_bytes

    def start_reload(self) -> None:
        """Begin to bring back what is offloaded, all of it, in the background; the next use waits for the rest."""
        if self._offload is not None:
            self._offload.start_reload()

    def reload(self) -> None:
        """Bring back what is offloaded, for good.

        Needed before parameters are read other than by a forward pass or by methods of this class, such as through
        `parameters()`.

        Raises:
            PeerError: an earlier error has left the model unusable.
        """
        self._check_usable()
        self._end_offload()

    def _end_offload(self) -> None:
        if self._offload is not None:
            self._offload.reload()
            self._offload = None

    # ------------------------------------------------------------------ reallocation

    def reallocate(
        self,
        to: Layout | Mesh | str,
        *,
        into: Self | None = None,
        eta: float = 1.0,
        dtype: torch.dtype | None = None,
        share: bool = False,
        checksum: bool = False,
    ) -> Self:
        """The model in another layout, such as `"tp2pp1dp2"` or `"dp2@4-7"`; this one stays as it is.

        All ranks of both layouts call it; other ranks of the job may, and take no part. Models on disjoint ranks are
        moved concurrently. Each element that a rank lacks is sent to it once; elements that it already holds are kept.
        The plan is made once for each pair of layouts. It succeeds on all ranks or on none. Of a model with adapters,
        only what is trained is moved into a model that has got the rest from this one before.

        Args:
            to: the layout.
            into: a model in that layout, such as an earlier result, whose memory receives the parameters directly; if
                the move fails, it cannot be used until another move into it succeeds. None makes a new model.
            eta: weight of the new parameters: `into` becomes `eta * new + (1 - eta) * old`, as in a moving average.
            dtype: dtype of the result; None: the dtype of `into`, or else of this model.
            share: let the result use the memory of parts that it has in common with this model. Only for a model that
                is discarded, as in `model = model.reallocate(to, share=True)`, or does not change.
            checksum: verify that the values received are the values sent.

        Raises:
            ConfigError: the layout does not fit the model or the job, or is not that of `into`.
            PeerError: another rank is missing or stuck, or a checksum differs; names the rank and the parameter.
        """
        from reallm.reallocation.execute import execute, merged
        from reallm.reallocation.plan import plan

        self._refuse_if_quantized("moved to another layout")
        mesh = self.meshes.get(to)
        if into is not None:
            _check_target(into, mesh.layout, dtype)
        elif eta != 1.0:
            raise ConfigError(f"eta={eta} averages into an existing model; pass that as into=")
        target = self._empty_like(mesh, dtype or self.dtype) if into is None else into
        source = self.local_tensors()
        receives_in_place = into is not None or is_fsdp(target._network)
        ranks = None if self.config.lora is None else tuple(sorted({*self.layout.ranks, *mesh.layout.ranks}))
        with target._receiving_weights():
            received = target._allocated_tensors(self.device) if receives_in_place else None
            moved = target.moved = merged(
                execute(
                    plan(self.config, self.layout, mesh.layout, names),
                    mesh,
                    source=_only(source, names),
                    source_boxes=_only(self.boxes, names),
                    target_boxes=_only(target.boxes, names),
                    ranks=ranks,
                    into=None if received is None else _only(received, names),
                    eta=eta,
                    source_dtype=source_dtype,
                    dtype=target_dtype,
                    device=self.device,
                    checksum=checksum,
                )
                for names, source_dtype, target_dtype in self._moves(target)
            )
            target._frozen_contents = self._frozen_contents if eta == 1.0 else object()
        if not receives_in_place:  # a new model, which has got all parameters
            shared = [name for name, tensor in source.items() if moved.tensors.get(name) is tensor]
            copies = {} if share else {name: source[name].clone() for name in shared}
            load_local(target._network, {**moved.tensors, **copies}, self.device)
        return target

    def _moves(self, target: ShardedModel) -> list[tuple[frozenset[str] | None, torch.dtype, torch.dtype]]:
        """Names of parameters that move together, None: all, with their dtypes here and in the target."""
        if self.config.lora is None:
            return [(None, self.dtype, target.dtype)]
        has_frozen = target._frozen_contents is self._frozen_contents
        names = [name for name in parameter_shapes(self.config) if not has_frozen or is_trained(name, self.config)]
        adapters = frozenset(filter(is_adapter, names))
        moves = [
            (frozenset(names) - adapters, self.dtype, target.dtype),
            (adapters, adapter_dtype(self.dtype), adapter_dtype(target.dtype)),
        ]
        return [move for move in moves if move[0]]

    def _empty_like(self, mesh: Mesh, dtype: torch.dtype) -> Self:
        """A model of the same network in another layout, on the meta device."""
        args = self._build_args
        model = type(self)(
            self.config,
            dtype=dtype,
            device="meta",
            mesh=mesh,
            zero=args.zero,
            sequence_parallel=args.sequence_parallel,
        )
        model.meshes, model._build_args = self.meshes, replace(args, dtype=dtype, device=self.device)
        return model.train(self.training)

    def _allocated_tensors(self, device: torch.device) -> dict[str, Tensor]:
        """The local tensors, allocated on `device` if they are still on the meta device."""
        if any(parameter.is_meta for parameter in self.parameters()):
            self._network.to_empty(device=device)
        return local_tensors(self._network)

    @contextmanager
    def _receiving_weights(self) -> Iterator[None]:
        """Context for overwriting the parameters; an error leaves the model unusable until another move into it."""
        half_moved = (
            f"rank {self._effective_mesh.rank}: an earlier move into this model has failed, so that its parameters are "
            "incomplete; move into it again, or use the model it was to be made from"
        )
        if self._broken != half_moved:
            self._check_usable()
        self._end_offload()
        with self.broken_by_error(half_moved):
            yield
        self._broken = None

    @contextmanager
    def broken_by_error(self, why: str) -> Iterator[None]:
        """Context in which an error leaves the model unusable: later uses raise PeerError(why)."""
        try:
            yield
        except BaseException:
            self._broken = why
            raise


def _only(values: Mapping[str, T], names: frozenset[str] | None) -> Mapping[str, T]:
    return values if names is None else {name: value for name, value in values.items() if name in names}


def _check_target(into: ShardedModel, layout: Layout, dtype: torch.dtype | None) -> None:
    """Raise ConfigError unless `into` can receive parameters in this layout and dtype."""
    if into.layout != layout:
        raise ConfigError(
            f"into= has the layout {into.layout}, not {layout}; leave it out, or reallocate to its layout"
        )
    if dtype not in (None, into.dtype):
        raise ConfigError(f"into= has {into.dtype}, not {dtype}; leave out one of the two")
