"""A network of which each rank of a layout has a part, and how it gets from one layout to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.errors import ConfigError, PeerError
from reallm.model.attention.kv_cache import KVCache
from reallm.model.config import ReaLModelConfig
from reallm.model.packed import PackedSequences
from reallm.model.sharding import Box
from reallm.model.transformer import Transformer
from reallm.offload.model import ModelOffload
from reallm.parallel.fsdp import is_fsdp, local_tensors
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.parallel.parallelize import boxes_here, init_local_weights, load_local, local_layers, parallelize

if TYPE_CHECKING:
    from reallm.reallocation.execute import ReallocationResult


@dataclass
class MeshCache:
    """The meshes between which a model has been moved: making process groups takes longer than a move."""

    known: dict[Layout, Mesh] = field(default_factory=dict)

    def of(self, layout: Layout | Mesh | str) -> Mesh:
        """The mesh of a layout, the same one each time."""
        if isinstance(layout, Mesh):
            return self.known.setdefault(layout.layout, layout)
        layout = Layout.parse(layout) if isinstance(layout, str) else layout
        if layout not in self.known:
            self.known[layout] = Mesh.of(layout)
        return self.known[layout]


def _check_takes(into: ShardedTransformer, layout: Layout, dtype: torch.dtype | None) -> None:
    """Raise ConfigError unless a model can take parameters in a layout and of a type."""
    if into.layout != layout:
        raise ConfigError(f"into= is in the layout {into.layout}, not in {layout}; leave it out, or give its own")
    if dtype not in (None, into.dtype):
        raise ConfigError(f"into= is in {into.dtype}, not in {dtype}; leave one of both out")


@dataclass(frozen=True)
class _BuildArgs:
    """How a model was made, for others like it."""

    cls: type[ShardedTransformer]
    """Before FSDP2 put one of its own in its place."""
    dtype: torch.dtype
    device: torch.device
    zero: int
    sequence_parallel: bool


class ShardedTransformer(Transformer):
    """A `Transformer` of which this process has the part that a mesh gives it, or all of it without a mesh.

    Args:
        config: of the whole network.
        dtype: of the parameters.
        device: where they lie; `meta` for a network without numbers.
        seed: of fresh weights, which are the same in every layout.
        mesh: the layout; None: this process has the whole network.
        zero: how much FSDP2 frees, where the layout is one of FSDP: 1 nothing, 2 gradients after each micro-batch, 3
            parameters after each use as well.
        sequence_parallel: whether ranks of tensor parallelism have a part of the tokens each between their layers.

    Raises:
        ConfigError: the layout does not fit the heads, the layers or the number of ranks.
    """

    def __init__(
        self,
        config: ReaLModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
        mesh: Mesh | None = None,
        zero: int = 3,
        sequence_parallel: bool = False,
    ) -> None:
        device = torch.device(device)
        with torch.device(device if mesh is None else "meta"):
            super().__init__(config, None if mesh is None else local_layers(config, mesh))
        self.to(dtype)
        self.mesh = mesh
        """Where the parts of the model are; None if this process has all of it."""
        self.meshes = MeshCache({} if mesh is None else {mesh.layout: mesh})
        self._made = _BuildArgs(type(self), dtype, device, zero, sequence_parallel)
        self._offload: ModelOffload | None = None
        self._is_half_moved = False
        self.moved: ReallocationResult | None = None
        """What the last `reallocate` that made this model, or wrote into it, has moved."""
        if mesh is not None:
            parallelize(self, mesh, zero=zero, sequence_parallel=sequence_parallel)
        if device.type == "meta":
            return
        if mesh is None:
            self.init_weights(seed)
        else:
            fresh = init_local_weights(config, boxes_here(config, mesh), seed)
            load_local(self, {name: part.to(device, dtype) for name, part in fresh}, device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters; where none are here, that with which the model was made."""
        return next((parameter.dtype for parameter in self.parameters()), self._made.dtype)

    @property
    def device(self) -> torch.device:
        """Where the parameters lie; where none are here, where they would."""
        return next((parameter.device for parameter in self.parameters()), self._made.device)

    @property
    def layout(self) -> Layout:
        """How the model is spread; where each process of a job has all of it, these are copies of each other."""
        return self._own_mesh.layout

    @property
    def boxes(self) -> Mapping[str, Box]:
        """The part of each parameter that is here, in coordinates of the whole one."""
        return boxes_here(self.config, self._own_mesh)

    def local_tensors(self) -> dict[str, Tensor]:
        """The parts themselves, not copies: `boxes[name].shape` each. What is offloaded is brought back first."""
        self.reload()
        return local_tensors(self)

    def async_offload(self, *, stream: bool = False) -> None:
        """Begin to move the parameters to host memory: pinned memory for those of a GPU, a file for those of a CPU.

        Until `wait_for_offload`, which frees their memory, the model can be used and must not be changed. Afterwards
        the next forward pass brings it back layer by layer, each while the one before it computes.

        Args:
            stream: let blocks go again as soon as they were used, so that two of them are in memory at a time: a model
                that is larger than the memory can serve. Not for models that are trained.

        Raises:
            DataError: the host has no room; says where.
        """
        self.reload()
        if len(self.layers):
            self._offload = ModelOffload(self, stream=stream)

    def wait_for_offload(self) -> None:
        """Return when the parameters have left the memory of their device; at once if they are not leaving."""
        if self._offload is not None:
            self._offload.wait()

    def reload(self) -> None:
        """Bring back what is offloaded, for good. Whatever reads the parameters otherwise than by a forward pass needs
        it; the methods of this class do it by themselves.

        Raises:
            PeerError: a move into this model has failed.
        """
        self._check_whole()
        if self._offload is not None:
            self._offload.reload()
            self._offload = None

    def forward_hidden(self, tokens: Tensor, seqs: PackedSequences, cache: KVCache | None = None) -> Tensor:
        """See `Transformer`."""
        self._check_whole()
        return super().forward_hidden(tokens, seqs, cache)

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

        All processes of the job call it, those that are in neither layout too. Each element that a rank lacks is sent
        to it once; what it has it keeps. The plan is made once for each pair of layouts. It succeeds on all ranks or
        on none.

        Args:
            to: the layout.
            into: a model in that layout, such as an earlier result, that takes the parameters into its memory, where
                they go straight; if that fails it cannot be used until another move into it succeeds. None makes one.
            eta: of `into`, what it takes: `eta * these + (1 - eta) * its own`, as in a moving average.
            dtype: of the result; None: that of `into`, or else of this model.
            share: let the result use the memory of parts that it has in common with this model. To be used where this
                model is given up, as in `model = model.reallocate(to, share=True)`, or does not change.
            checksum: prove that what arrives is what was sent.

        Raises:
            ConfigError: the layout does not fit the model or the job, or is not that of `into`.
            PeerError: another rank is missing or stuck, or a checksum differs; names the rank and the parameter.
        """
        from reallm.reallocation.execute import execute
        from reallm.reallocation.plan import plan

        mesh = self.meshes.of(to)
        if into is not None:
            _check_takes(into, mesh.layout, dtype)
        elif eta != 1.0:
            raise ConfigError(f"eta={eta} mixes into a model that is there already; give that as into=")
        target = self._like(mesh, dtype or self.dtype) if into is None else into
        own = self.local_tensors()
        with target._taking():
            moved = target.moved = execute(
                plan(self.config, self.layout, mesh.layout).for_rank(mesh.rank),
                source=own,
                held=self.boxes,
                wanted=target.boxes,
                into=target._places(self.device) if into is not None or is_fsdp(target) else None,
                eta=eta,
                source_dtype=self.dtype,
                dtype=target.dtype,
                device=self.device,
                checksum=checksum,
                timeout=mesh.timeout,
            )
        if into is None and not is_fsdp(target):
            kept = {} if share else {name: own[name].clone() for name in own if moved.tensors.get(name) is own[name]}
            load_local(target, {**moved.tensors, **kept}, self.device)
        return target

    @contextmanager
    def _taking(self) -> Iterator[None]:
        """Parameters are written in the block; after an error in it this model cannot be used."""
        if self._offload is not None:
            self._offload.reload()
            self._offload = None
        self._is_half_moved = True
        yield
        self._is_half_moved = False

    def _check_whole(self) -> None:
        if self._is_half_moved:
            raise PeerError(
                f"rank {self._own_mesh.rank}: an earlier move into this model has failed, so that its parameters are "
                "of no use; move into it again, or use the model that was moved"
            )

    def _places(self, device: torch.device) -> dict[str, Tensor]:
        """Memory for the parts that are here, with or without numbers."""
        if any(parameter.is_meta for parameter in self.parameters()):
            self.to_empty(device=device)
        return local_tensors(self)

    def _like(self, mesh: Mesh, dtype: torch.dtype) -> Self:
        """A model in another layout, without numbers."""
        made = self._made
        model = cast("type[Self]", made.cls)(
            self.config,
            dtype=dtype,
            device="meta",
            mesh=mesh,
            zero=made.zero,
            sequence_parallel=made.sequence_parallel,
        )
        model.meshes, model._made = self.meshes, replace(made, dtype=dtype, device=self.device)
        return model.train(self.training)

    @property
    def _own_mesh(self) -> Mesh:
        if self.mesh is not None:
            return self.mesh
        return self.meshes.of(Layout(dp=dist.get_world_size() if dist.is_initialized() else 1))
