"""What each tensor of a checkpoint holds: a family's table applied to one configuration, and checked.

holdings(family, config)  ->  for each tensor: our parameters in it, and how
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from reallm.errors import ConfigError, PluginError, did_you_mean
from reallm.hf.conversion.families import describe_family
from reallm.hf.conversion.slicing import SliceRead, read_slice
from reallm.hf.family import HFFamily
from reallm.hf.tables.arrangements import Arrangement, Fused, Same, Transposed
from reallm.hf.tables.weights import Ours, Part, names_in, stored
from reallm.model.config import ReaLModelConfig, is_custom_class
from reallm.model.parameter_names import layer_number, path_in_layer
from reallm.model.parameters import parameter_shapes
from reallm.model.sharding import Box, Shape

EACH = "{each}"


CONTROLLED_BY: Mapping[str, tuple[str, ...]] = {
    "positions": ("learned_positions",),
    "attn.q_norm": ("qk_norm",),
    "attn.k_norm": ("qk_norm",),
    "attn_norm": ("norm_placement",),
    "mlp_norm": ("norm_placement", "parallel_residual", "shared_norm"),
    "attn_post_norm": ("norm_placement",),
    "mlp_post_norm": ("norm_placement",),
    "mlp.gate": ("mlp", "moe"),
    "mlp.up": ("mlp", "moe"),
    "mlp.down": ("mlp", "moe"),
    "mlp.router": ("moe",),
    "mlp.experts.gate": ("moe",),
    "mlp.experts.up": ("moe",),
    "mlp.experts.down": ("moe",),
    "norm": ("final_norm",),
    "out": ("tied_embeddings",),
}
"""Modules that a network may or may not have -> the fields of `ReaLModelConfig` that decide."""


STANDARD_MODULES = CONTROLLED_BY.keys() | {"tokens", "attn.q", "attn.k", "attn.v", "attn.o"}
"""Modules with parameters that the core's own layers have, in one configuration or another."""


@dataclass(frozen=True)
class WeightMapping:
    """Tensors of a checkpoint and the parameters of ours that they hold, which are read and written together.

    It is one tensor, or one for each item along the first dim of ours.
    """

    layer: int
    """0 is the embedding, n+1 the head."""
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    shapes: tuple[Shape, ...]
    """Of ours."""
    arrangement: Arrangement
    config: ReaLModelConfig
    is_stack: bool = False
    """Whether each of their tensors is one item along the first dim of ours."""

    @property
    def is_renaming(self) -> bool:
        """Whether their tensor is our parameter under another name."""
        return len(self.theirs) == 1 and not self.is_stack and isinstance(self.arrangement, Same)

    @property
    def shape(self) -> Shape:
        """The shape of each of their tensors."""
        return self.arrangement.shape(self._item_shapes, self._kind, self.config)

    def to_hf(self, state: Mapping[str, Tensor], item: int) -> Tensor:
        """Their tensor number `item`, made from ours; not a copy if it is a renaming."""
        if self.is_renaming:
            return state[self.ours[0]]
        boxes = self.boxes_in(item)
        return self.joined([state[name][box.slices] for name, box in zip(self.ours, boxes, strict=True)])

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """One of their tensors, made from what it holds of each of ours: `parts_of` it."""
        if isinstance(self.arrangement, Same):
            return parts[0].reshape(self.shape)
        theirs = parts[0].new_empty(self.shape)
        for view, part in zip(self._views(theirs), parts, strict=True):
            view.copy_(part.reshape(view.shape))
        return theirs

    def boxes_in(self, item: int) -> list[Box]:
        """The part of each of ours that their tensor number `item` holds."""
        boxes = [Box.whole(shape) for shape in self.shapes]
        return [box.narrowed(0, item, item + 1) for box in boxes] if self.is_stack else boxes

    def from_hf(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Ours, made from all of their tensors; views of theirs where the numbers lie together."""
        if self.is_renaming:
            return {self.ours[0]: tensors[0]}
        return {
            name: self.part(name, Box.whole(shape), tensors.__getitem__).tensor
            for name, shape in zip(self.ours, self.shapes, strict=True)
        }

    def part(self, name: str, box: Box, tensor: Callable[[int], Tensor]) -> SliceRead:
        """The part `box` of a parameter of ours.

        Args:
            name: of ours.
            box: in coordinates of the whole parameter.
            tensor: gives their tensor of a number; only those are asked for of which something is needed.
        """
        place = self.ours.index(name)
        shape = self._item_shapes[place]
        if not self.is_stack:
            return read_slice(self._views(tensor(0))[place], shape, box)
        if not box.numel:
            return SliceRead(tensor(0).new_empty(box.shape), 0)
        of_item = Box(box.starts[1:], box.stops[1:])
        items = [
            read_slice(self._views(tensor(item))[place], shape, of_item) for item in range(box.starts[0], box.stops[0])
        ]
        return SliceRead(torch.stack([item.tensor for item in items]), sum(item.bytes_read for item in items))

    def fault(self) -> str | None:
        """What is wrong with the arrangement: numbers of theirs that are no parameter's, or several parameters'."""
        if isinstance(self.arrangement, Same):
            return None if len(self.ours) == 1 else "holds one parameter, but the key names several"
        try:
            n_theirs, n_ours = math.prod(self.shape), sum(map(math.prod, self._item_shapes))
            if n_theirs != n_ours:
                return f"has the shape {list(self.shape)}, {n_theirs:,} numbers, for parameters of {n_ours:,}"
            if _is_sure(self.arrangement):
                return None
            uses = torch.zeros(self.shape, dtype=torch.uint8)
            for view, shape in zip(self._views(uses), self._item_shapes, strict=True):
                if view.numel() != math.prod(shape):
                    return f"has a part of the shape {list(view.shape)} for a parameter of the shape {list(shape)}"
                view.add_(1)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            return f"cannot be taken apart: {' '.join(str(error).split())}"
        wrong = int((uses != 1).sum())
        return f"has {wrong:,} of its {n_theirs:,} numbers in no parameter or in several" if wrong else None

    @property
    def _item_shapes(self) -> list[Shape]:
        return [shape[1:] if self.is_stack else shape for shape in self.shapes]

    @property
    def _kind(self) -> str:
        return self.ours[0].rpartition(".")[2]

    def _views(self, theirs: Tensor) -> Sequence[Tensor]:
        return self.arrangement.views(theirs, self._item_shapes, self._kind, self.config)


def _is_sure(arrangement: Arrangement) -> bool:
    """Whether an arrangement of the core has an inverse for all shapes, so that none must be tried."""
    inner = arrangement.of if isinstance(arrangement, Transposed) else arrangement
    return isinstance(inner, Same) or (isinstance(inner, Fused) and inner.groups is None)


@lru_cache(maxsize=16)
def weight_mappings(family: HFFamily, config: ReaLModelConfig) -> tuple[WeightMapping, ...]:
    """What every tensor of a checkpoint holds, in the order in which checkpoints have them.

    Raises:
        PluginError: the family's table misses a parameter, names one that does not exist, or has an arrangement without
            an inverse; names the plugin and the key.
    """
    try:
        found = list(_holdings(family, config))
        _check_first_blocks(found)
    except ConfigError as error:
        raise PluginError(f"{describe_family(family)}: weight table: {error}") from error
    return tuple(found)


def _holdings(family: HFFamily, config: ReaLModelConfig) -> Iterator[WeightMapping]:
    """Those of all layers; each parameter is in one of them.

    Raises:
        ConfigError: a parameter without an entry, or an entry without a parameter.
    """
    shapes = parameter_shapes(config)
    used: set[str] = set()
    for layer, names in groupby(shapes, key=layer_number):
        part = family.weights.part(layer, config.n_layers, is_critic=config.is_critic)
        by_kind = _by_entry(part, layer, list(names))
        for key, theirs in part.items():
            for kind, ours in sorted(by_kind.pop(key, {}).items(), key=lambda item: item[0] == "bias"):
                used.update(names_in(key))
                name, arrangement = stored(theirs).name, stored(theirs).arrangement
                their_name = name.replace("{}", str(layer - 1)) + (f".{kind}" if kind else "")
                is_stack = EACH in name
                n_items = shapes[ours[0]][0] if is_stack else 1
                yield WeightMapping(
                    layer,
                    tuple(ours),
                    tuple(their_name.replace(EACH, str(item)) for item in range(n_items)),
                    tuple(shapes[name] for name in ours),
                    arrangement,
                    config,
                    is_stack,
                )
    if not any(map(is_custom_class, (config.norm, config.attention, config.mlp, config.block))):
        _refuse_unknown(family, used)


def _by_entry(part: Part, layer: int, names: Sequence[str]) -> dict[Ours, dict[str, list[str]]]:
    """Key of the table -> kind -> our parameters in the key's order.

    The kind is `weight` or `bias`, or empty where the key is a whole parameter.

    Raises:
        ConfigError: a parameter that has no entry, or whose partners in a shared tensor do not exist.
    """
    homes = {name: key for key in part for name in names_in(key)}
    found: dict[Ours, dict[str, dict[str, str]]] = {}
    for name in names:
        path = path_in_layer(name)
        module, _, kind = path.rpartition(".")
        here, kind = (path, "") if path in homes else (module, kind)
        if here not in homes:
            fields = CONTROLLED_BY.get(here, ())
            why = f", which is there because of {' and '.join(fields)}" if fields else ""
            raise ConfigError(f"has no entry '{here}' for the parameter '{name}'{why}{did_you_mean(here, homes)}")
        found.setdefault(homes[here], {}).setdefault(kind, {})[here] = name
    for key, kinds in found.items():
        for kind, ours in kinds.items():
            missing = [name for name in names_in(key) if name not in ours]
            if missing:
                what = f"{missing[0]}.{kind}" if kind else missing[0]
                raise ConfigError(f"{listed(names_in(key))} share a tensor, but layer {layer} has no '{what}'")
    return {
        key: {kind: [ours[name] for name in names_in(key)] for kind, ours in kinds.items()}
        for key, kinds in found.items()
    }


def _refuse_unknown(family: HFFamily, used: set[str]) -> None:
    """Raise ConfigError for an entry of the table that no network of the core's own layers has."""
    table = family.weights
    for part in (table.embedding, table.block, table.head, table.critic_head):
        for key in part:
            for name in names_in(key):
                module = name.removesuffix(".weight").removesuffix(".bias")
                if name not in used and module not in STANDARD_MODULES:
                    near = did_you_mean(name, STANDARD_MODULES)
                    raise ConfigError(f"'{name}' is no parameter of the model{near}")


def _check_first_blocks(found: Sequence[WeightMapping]) -> None:
    """Raise ConfigError for an arrangement without an inverse; what is the same in many blocks is looked at once."""
    seen: set[tuple[Arrangement, tuple[Shape, ...]]] = set()
    for holding in found:
        what = (holding.arrangement, holding.shapes)
        if what in seen:
            continue
        seen.add(what)
        fault = holding.fault()
        if fault:
            keys = listed([name.split(".", 2)[2] for name in holding.ours])
            raise ConfigError(f"{keys}: the tensor '{holding.theirs[0]}' {fault}; the arrangement has no inverse")


def listed(names: Sequence[str]) -> str:
    """Names as errors show them: `'a', 'b'`."""
    return ", ".join(f"'{name}'" for name in names)
