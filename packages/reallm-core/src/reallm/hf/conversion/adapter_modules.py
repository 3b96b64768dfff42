"""What can have an adapter: the linear layers of the checkpoint's model, in PEFT's words, and ours that they hold.

transformers keeps the weights of all experts of a block in two parameters, `gate_up_proj` and `down_proj`, whatever the
checkpoint has, and PEFT adapts parameters (`target_parameters`). On one module it nests them:

    mlp.experts.gate_up_proj  ->  mlp.experts.base_layer.lora_A.weight
    mlp.experts.down_proj     ->  mlp.experts.lora_A.weight
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from reallm.errors import ConfigError, did_you_mean, quoted
from reallm.hf.conversion.mapping import WeightMapping, weight_mappings
from reallm.hf.family import HFFamily
from reallm.hf.tables.arrangements import Arrangement, Fused, Same, Transposed
from reallm.model.config import ReaLModelConfig
from reallm.model.lora import adaptable_layers
from reallm.model.moe.expert_linear import ExpertLinear
from reallm.model.moe.router import Router
from reallm.model.parameter_names import block_layers, module_of, path_in_layer
from reallm.model.parameters import meta_model
from reallm.model.sharding import Shape

ALL_LINEAR = "all-linear"
"""The name that means all linear layers of blocks, experts and routers included, as in PEFT."""
GATE_UP, DOWN = "gate_up_proj", "down_proj"
"""The parameters of experts in transformers."""
_EXPERT_PARAMETER = {"gate": GATE_UP, "up": GATE_UP, "down": DOWN}
"""The last part of the path of our layer of experts -> the parameter that holds it."""


@dataclass(frozen=True)
class AdaptableModule:
    """A linear layer of the checkpoint's model in a block, or a parameter of its experts, and ours that it holds."""

    name: str
    """Its name: `model.layers.2.self_attn.q_proj` as in the checkpoint, `model.layers.2.mlp.experts.down_proj`."""
    mappings: tuple[WeightMapping, ...]
    """Those of its weight: one, or for experts one for each of our layers."""
    is_router: bool = False

    @property
    def is_experts(self) -> bool:
        """Whether it is a parameter with the weights of all experts."""
        return self.mappings[0].is_stacked

    @property
    def layer(self) -> int:
        """Number of the block."""
        return self.mappings[0].layer

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of our weights."""
        return tuple(name for mapping in self.mappings for name in mapping.parameters)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes of our weights, [(X,) out, in] each."""
        return tuple(shape for mapping in self.mappings for shape in mapping.shapes)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of our layers within the block: `attn.q`."""
        return tuple(module_of(path_in_layer(name)) for name in self.parameters)

    @property
    def name_in_block(self) -> str:
        """Its name after the number of the block: `self_attn.q_proj`."""
        return self.name.rpartition(f".{self.layer - 1}.")[2]

    @property
    def names_in_checkpoint(self) -> list[str]:
        """The last part of the checkpoint's name of each of the modules: of experts, `gate_proj` and `up_proj`."""
        return [_name_in_checkpoint(mapping).rpartition(".")[2] for mapping in self.mappings]

    @property
    def is_transposed(self) -> bool:
        """Whether its weight is stored as [in, out]."""
        return isinstance(self.mappings[0].arrangement, Transposed)

    @property
    def of_outputs(self) -> Arrangement:
        """The arrangement of our outputs in its outputs."""
        if self.is_experts:
            return Fused() if len(self.mappings) > 1 else Same()
        arrangement = self.mappings[0].arrangement
        return arrangement.of if isinstance(arrangement, Transposed) else arrangement

    def paths_of(self, target: str) -> Iterator[str]:
        """Paths of our layers that a target names: by the module's name, or that of experts in the checkpoint."""
        for mapping in self.mappings:
            if target == ALL_LINEAR or ends_with(self.name, target) or ends_with(_name_in_checkpoint(mapping), target):
                yield from (module_of(path_in_layer(name)) for name in mapping.parameters)


@lru_cache(maxsize=16)
def adaptable_modules(family: HFFamily, config: ReaLModelConfig) -> tuple[AdaptableModule, ...]:
    """The modules of the checkpoint's model that can have adapters, in all blocks."""
    config = config.base
    layers = {f"{path}.weight": layer for path, layer in adaptable_layers(meta_model(config)).items()}
    found: dict[str, AdaptableModule] = {}
    for mapping in weight_mappings(family, config):
        ours = [layers.get(name) for name in mapping.parameters]
        if mapping.layer not in block_layers(config) or None in ours:
            continue
        module = AdaptableModule(_name(mapping), (mapping,), isinstance(ours[0], Router))
        if module.is_experts != isinstance(ours[0], ExpertLinear) or not isinstance(module.of_outputs, Same | Fused):
            continue  # experts that the checkpoint has in one tensor
        before = found.get(module.name)
        if before is not None:  # gate and up, in the order in which transformers has them
            in_order = sorted((*before.mappings, mapping), key=lambda each: each.parameters)
            module = AdaptableModule(module.name, tuple(in_order))
        found[module.name] = module
    # elsewhere transformers, and so PEFT, may call a router otherwise than the checkpoint
    has_experts = any(module.is_experts for module in found.values())
    return tuple(module for module in found.values() if has_experts or not module.is_router)


def _name(mapping: WeightMapping) -> str:
    if not mapping.is_stacked:
        return module_of(mapping.hf_names[0])
    ours = module_of(mapping.parameters[0]).rpartition(".")[2]
    return f"{module_of(_name_in_checkpoint(mapping))}.{_EXPERT_PARAMETER.get(ours, ours)}"


def _name_in_checkpoint(mapping: WeightMapping) -> str:
    """The name of a module in the checkpoint, of experts without the number of one: `...mlp.experts.up_proj`."""
    name = module_of(mapping.hf_names[0])
    if not mapping.is_stacked:
        return name
    container, _, own_name = name.rsplit(".", 2)
    return f"{container}.{own_name}"


def target_paths(family: HFFamily, config: ReaLModelConfig, targets: str | Sequence[str]) -> tuple[str, ...]:
    """Paths of our layers in a block for the names of a checkpoint's modules, `all-linear` or as in PEFT.

    A name means all modules that end with it: `q_proj`, or `self_attn.q_proj`.

    Raises:
        ConfigError: the blocks have no such linear layer, or only some of those that PEFT adapts together are named.
    """
    modules = adaptable_modules(family, config)
    names = [targets] if isinstance(targets, str) else list(targets)
    found: set[str] = set()
    for name in names:
        paths = {path for one in modules for path in one.paths_of(name)}
        if not paths:
            known = list(dict.fromkeys(one.name_in_block.rpartition(".")[2] for one in modules))
            raise ConfigError(
                f"targets: '{name}' is not a linear layer of the model's blocks{did_you_mean(name, known)}; they have "
                f"{', '.join(known)}, and {ALL_LINEAR} means all of them"
            )
        found |= paths
    # in the order in which blocks have them, so that equal targets are equal
    in_order = tuple(dict.fromkeys(path for one in modules for path in one.paths if path in found))
    adapted_modules(family, config, in_order)
    return in_order


def adapted_modules(family: HFFamily, config: ReaLModelConfig, targets: Sequence[str]) -> list[AdaptableModule]:
    """The modules that hold the layers at the paths `targets` of blocks.

    Raises:
        ConfigError: only some of the layers that share an adapter in PEFT have one.
    """
    found = [module for module in adaptable_modules(family, config) if set(targets) & set(module.paths)]
    for module in found:
        if not set(targets).issuperset(module.paths):
            names = module.names_in_checkpoint if module.is_experts else module.paths
            raise ConfigError(
                f"targets: '{module.name_in_block}' holds {quoted(names)} together; give adapters to all or to none"
            )
    return found


def names_in_file(modules: Sequence[AdaptableModule]) -> Mapping[str, AdaptableModule]:
    """The name before `.lora_A.weight` of each of the adapted modules in the file of an adapter."""
    names = {module.name for module in modules}
    found = {}
    for module in modules:
        container, _, own_name = module.name.rpartition(".")
        is_nested = own_name == GATE_UP and f"{container}.{DOWN}" in names
        name = module.name if not module.is_experts else f"{container}.base_layer" if is_nested else container
        found[name] = module
    return found


def names_in_words_of(family: HFFamily, config: ReaLModelConfig, names: Iterable[str]) -> dict[str, str]:
    """Names of tensors with the checkpoint's word for what has the experts of a block -> names in an adapter's file.

    transformers, and so PEFT, calls it `mlp` in models whose checkpoints have another word for it, as Mixtral's.
    """
    words = {module.name.split(".")[-3] for module in adaptable_modules(family, config) if module.is_experts}
    word = words.pop() if len(words) == 1 else "mlp"
    return {name.replace(".mlp.", f".{word}.", 1): name for name in names}


def ends_with(name: str, part: str) -> bool:
    """Whether a dotted name is or ends with another."""
    return name == part or name.endswith(f".{part}")
