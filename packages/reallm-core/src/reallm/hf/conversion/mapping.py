"""Mappings from checkpoint tensors to parameters: a family's `WeightTable`, applied to a configuration and checked.

weight_mappings(family, config) -> for each HF tensor: the parameters in it, and how they are arranged
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from reallm.errors import ConfigError, PluginError, did_you_mean, one_line, quoted
from reallm.hf.conversion.families import describe_family
from reallm.hf.conversion.slicing import SliceRead, read_slice
from reallm.hf.family import HFFamily
from reallm.hf.tables.arrangements import Arrangement, Fused, Same, Transposed
from reallm.hf.tables.weights import Entries, ModuleKey, as_source, names_in
from reallm.machine_errors import raise_shortage
from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import layer_number, path_in_layer
from reallm.model.parameters import parameter_shapes
from reallm.model.sharding import Box, Shape

EACH = "{each}"
"""Placeholder in an HF tensor's name: the index of the item along dim 0 of the parameters, such as the expert."""

CONTROLLED_BY: Mapping[str, tuple[str, ...]] = {
    "positions": ("learned_positions",),
    "embedding_norm": ("embedding_norm",),
    "attn.gate": ("attn_output_gate",),
    "attn.q_norm": ("qk_norm",),
    "attn.k_norm": ("qk_norm",),
    "attn.sinks": ("attn_sinks",),
    "attn_norm": ("norm_placement",),
    "mlp_norm": ("norm_placement", "parallel_residual", "shared_norm"),
    "attn_post_norm": ("norm_placement",),
    "mlp_post_norm": ("norm_placement",),
    "mlp.gate": ("mlp", "moe"),
    "mlp.up": ("mlp", "moe"),
    "mlp.down": ("mlp", "moe"),
    "mlp.router": ("moe",),
    "mlp.router.bias": ("moe",),
    "mlp.router.correction_bias": ("moe",),
    "mlp.experts.gate": ("moe",),
    "mlp.experts.up": ("moe",),
    "mlp.experts.down": ("moe",),
    "mlp.shared.gate": ("moe",),
    "mlp.shared.up": ("moe",),
    "mlp.shared.down": ("moe",),
    "mlp.shared.token_gate": ("moe",),
    "norm": ("final_norm",),
    "out": ("tied_embeddings",),
}
"""Modules that only some networks have -> the fields of `ReaLModelConfig` that determine whether they do."""

STANDARD_MODULES = CONTROLLED_BY.keys() | {"tokens", "attn.q", "attn.k", "attn.v", "attn.o"}
"""Modules with parameters of the core's layers, over all configurations."""


@dataclass(frozen=True)
class WeightMapping:
    """HF tensors and the parameters that they hold; the parameters are read and written together.

    There is one HF tensor, or, if `is_stacked`, one for each item along dim 0 of the parameters.
    """

    layer: int
    """Number of the layer: 0 is the embedding, n+1 the head."""
    parameters: tuple[str, ...]
    """Names of our parameters."""
    hf_names: tuple[str, ...]
    """Names of the HF tensors."""
    shapes: tuple[Shape, ...]
    """Shapes of the parameters."""
    arrangement: Arrangement
    config: ReaLModelConfig
    is_stacked: bool = False
    """Whether each HF tensor is one item along dim 0 of the parameters, such as one expert."""

    @property
    def is_renaming(self) -> bool:
        """Whether the HF tensor is the parameter under another name."""
        return len(self.hf_names) == 1 and not self.is_stacked and isinstance(self.arrangement, Same)

    @property
    def hf_shape(self) -> Shape:
        """The shape of each HF tensor."""
        return self.arrangement.shape(self._item_shapes, self._kind, self.config)

    def to_hf(self, state: Mapping[str, Tensor], item: int) -> Tensor:
        """HF tensor number `item`, made from the parameters in `state`; not a copy if it is a renaming."""
        if self.is_renaming:
            return state[self.parameters[0]]
        boxes = self.boxes_in(item)
        return self.pack([state[name][box.slices] for name, box in zip(self.parameters, boxes, strict=True)])

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """One HF tensor, made from the box of each parameter that it holds (`boxes_in`)."""
        if isinstance(self.arrangement, Same):
            return parts[0].reshape(self.hf_shape)
        hf_tensor = parts[0].new_empty(self.hf_shape)
        for view, part in zip(self._views(hf_tensor), parts, strict=True):
            view.copy_(part.reshape(view.shape))
        return hf_tensor

    def boxes_in(self, item: int) -> list[Box]:
        """The box of each parameter that HF tensor number `item` holds."""
        boxes = [Box.whole(shape) for shape in self.shapes]
        return [box.narrowed(0, item, item + 1) for box in boxes] if self.is_stacked else boxes

    def from_hf(self, hf_tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The parameters, made from all of the HF tensors; views where their elements are contiguous there."""
        if self.is_renaming:
            return {self.parameters[0]: hf_tensors[0]}
        return {
            name: self.read_box(name, Box.whole(shape), hf_tensors.__getitem__).tensor
            for name, shape in zip(self.parameters, self.shapes, strict=True)
        }

    def read_box(self, parameter: str, box: Box, hf_tensor: Callable[[int], Tensor]) -> SliceRead:
        """A box of one parameter.

        Args:
            parameter: name of the parameter.
            box: box in coordinates of the whole parameter.
            hf_tensor: function that returns the HF tensor with a number; called only for tensors that `box` needs.
        """
        index = self.parameters.index(parameter)
        shape = self._item_shapes[index]
        if not self.is_stacked:
            return read_slice(self._views(hf_tensor(0))[index], shape, box)
        if not box.numel:
            return SliceRead(hf_tensor(0).new_empty(box.shape), 0)
        box_of_item = Box(box.starts[1:], box.stops[1:])
        items = [
            read_slice(self._views(hf_tensor(item))[index], shape, box_of_item)
            for item in range(box.starts[0], box.stops[0])
        ]
        return SliceRead(torch.stack([item.tensor for item in items]), sum(item.bytes_read for item in items))

    def arrangement_error(self) -> str | None:
        """Reason that the arrangement has no inverse: HF elements in no or several parameters; None if it has one."""
        if isinstance(self.arrangement, Same):
            return None if len(self.parameters) == 1 else "holds one parameter, but the key names several"
        try:
            n_hf, n_ours = math.prod(self.hf_shape), sum(map(math.prod, self._item_shapes))
            if n_hf != n_ours:
                return f"has the shape {list(self.hf_shape)}, {n_hf:,} numbers, for parameters of {n_ours:,}"
            if _is_known_to_invert(self.arrangement):
                return None
            uses = torch.zeros(self.hf_shape, dtype=torch.uint8)
            for view, shape in zip(self._views(uses), self._item_shapes, strict=True):
                if view.numel() != math.prod(shape):
                    return f"has a part of the shape {list(view.shape)} for a parameter of the shape {list(shape)}"
                view.add_(1)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise_shortage(error)
            return f"cannot be taken apart: {one_line(error)}"
        wrong = int((uses != 1).sum())
        return f"has {wrong:,} of its {n_hf:,} numbers in no parameter or in several" if wrong else None

    @property
    def _item_shapes(self) -> list[Shape]:
        """Shapes of the parts of the parameters that one HF tensor holds."""
        return [shape[1:] if self.is_stacked else shape for shape in self.shapes]

    @property
    def _kind(self) -> str:
        return self.parameters[0].rpartition(".")[2]

    def _views(self, hf_tensor: Tensor) -> Sequence[Tensor]:
        return self.arrangement.views(hf_tensor, self._item_shapes, self._kind, self.config)


def _is_known_to_invert(arrangement: Arrangement) -> bool:
    """Whether an arrangement of the core has an inverse for all shapes, so that no tensor is needed to try it."""
    inner = arrangement.of if isinstance(arrangement, Transposed) else arrangement
    return isinstance(inner, Same) or (isinstance(inner, Fused) and inner.groups is None)


@lru_cache(maxsize=16)
def weight_mappings(family: HFFamily, config: ReaLModelConfig) -> tuple[WeightMapping, ...]:
    """The mapping of every HF tensor of a checkpoint, in the order in which checkpoints have them.

    Raises:
        PluginError: the family's table misses a parameter, names one that does not exist, or has an arrangement without
            an inverse; names the plugin and the key.
    """
    try:
        mappings = list(_apply_table(family, config))
        _check_arrangements(mappings)
    except ConfigError as error:
        reason = str(error).removeprefix("weight table: ")
        raise PluginError(f"{describe_family(family)}: weight table: {reason}") from error
    return tuple(mappings)


def _apply_table(family: HFFamily, config: ReaLModelConfig) -> Iterator[WeightMapping]:
    """The mappings of all layers; each parameter is in exactly one.

    Raises:
        ConfigError: a parameter without an entry, or an entry without a parameter.
    """
    config = config.base
    shapes = parameter_shapes(config)
    used: set[str] = set()
    table = family.weights.of_config(config)
    for layer, names in groupby(shapes, key=layer_number):
        entries = table.entries(layer, config.n_layers, is_critic=config.is_critic)
        by_kind = _by_key(entries, layer, list(names))
        for key, entry in entries.items():
            for kind, parameters in sorted(by_kind.pop(key, {}).items(), key=lambda item: item[0] == "bias"):
                used.update(names_in(key))
                source = as_source(entry)
                hf_name = source.name.replace("{}", str(layer - 1)) + (f".{kind}" if kind else "")
                is_stacked = EACH in source.name
                n_items = shapes[parameters[0]][0] if is_stacked else 1
                yield WeightMapping(
                    layer,
                    tuple(parameters),
                    tuple(hf_name.replace(EACH, str(item)) for item in range(n_items)),
                    tuple(shapes[name] for name in parameters),
                    source.arrangement,
                    config,
                    is_stacked,
                )
    if not config.custom_classes and not _chooses_layers(family):
        _refuse_unknown_modules(family, used)


def _by_key(entries: Entries, layer: int, names: Sequence[str]) -> dict[ModuleKey, dict[str, list[str]]]:
    """Key of the table -> kind -> the parameters of a layer, in the key's order.

    The kind is `weight` or `bias`, or empty if the key is a whole parameter.

    Raises:
        ConfigError: a parameter that has no entry, or whose partners in a shared tensor do not exist.
    """
    key_of = {name: key for key in entries for name in names_in(key)}
    found: dict[ModuleKey, dict[str, dict[str, str]]] = {}
    for name in names:
        path = path_in_layer(name)
        module, _, kind = path.rpartition(".")
        entry, kind = (path, "") if path in key_of else (module, kind)
        if entry not in key_of:
            fields = CONTROLLED_BY.get(entry, ())
            why = f", which is there because of {' and '.join(fields)}" if fields else ""
            raise ConfigError(f"has no entry '{entry}' for the parameter '{name}'{why}{did_you_mean(entry, key_of)}")
        found.setdefault(key_of[entry], {}).setdefault(kind, {})[entry] = name
    for key, kinds in found.items():
        for kind, parameters in kinds.items():
            missing = [name for name in names_in(key) if name not in parameters]
            if missing:
                what = f"{missing[0]}.{kind}" if kind else missing[0]
                raise ConfigError(f"{quoted(names_in(key))} share a tensor, but layer {layer} has no '{what}'")
    return {
        key: {kind: [parameters[name] for name in names_in(key)] for kind, parameters in kinds.items()}
        for key, kinds in found.items()
    }


def _chooses_layers(family: HFFamily) -> bool:
    """Whether keys of `config.json` choose kinds of layers, of which another configuration may have classes."""
    return any(field in ("attention", "mlp", "block") for row in family.config.rows for field in row.fields)


def _refuse_unknown_modules(family: HFFamily, used: set[str]) -> None:
    """Raise ConfigError for an entry whose module no network of the core's layers has."""
    table = family.weights
    for entries in (table.embedding, table.block, table.head, table.critic_head):
        for key in entries:
            for name in names_in(key):
                module = name.removesuffix(".weight").removesuffix(".bias")
                if name not in used and module not in STANDARD_MODULES:
                    near = did_you_mean(name, STANDARD_MODULES)
                    raise ConfigError(f"'{name}' is not a parameter of the model{near}")


def _check_arrangements(mappings: Sequence[WeightMapping]) -> None:
    """Raise ConfigError for an arrangement without an inverse; one that many blocks share is checked once."""
    seen: set[tuple[Arrangement, tuple[Shape, ...]]] = set()
    for mapping in mappings:
        checked = (mapping.arrangement, mapping.shapes)
        if checked in seen:
            continue
        seen.add(checked)
        error = mapping.arrangement_error()
        if error:
            keys = quoted([path_in_layer(name) for name in mapping.parameters])
            raise ConfigError(f"{keys}: the tensor '{mapping.hf_names[0]}' {error}; the arrangement has no inverse")
