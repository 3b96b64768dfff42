"""Parameters of ours <-> tensors of a family's checkpoints: names and state dicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from reallm.errors import CheckpointError, ConfigError, did_you_mean
from reallm.hf.conversion.mapping import WeightMapping, listed, weight_mappings
from reallm.hf.family import HFFamily
from reallm.hf.tables.weights import names_in, stored
from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import EMBEDDING_LAYER, EMBEDDING_WEIGHT, head_layer
from reallm.model.parameters import parameter_shapes
from reallm.model.sharding import Box


def hf_names(family: HFFamily, config: ReaLModelConfig) -> list[str]:
    """The names of all tensors of a checkpoint, in the order in which checkpoints have them."""
    return [name for holding in weight_mappings(family, config) for name in holding.theirs]


def embedding_hf_names(family: HFFamily, config: ReaLModelConfig) -> list[str]:
    """Checkpoint names of the parameters of the token embedding (layer 0)."""
    return layer_hf_names(family, config, EMBEDDING_LAYER)


def block_hf_names(family: HFFamily, config: ReaLModelConfig, block: int) -> list[str]:
    """Checkpoint names of the parameters of a block, numbered from 0 as in checkpoints (layer `block + 1`)."""
    assert 0 <= block < config.n_layers, f"block {block} of {config.n_layers}"
    return layer_hf_names(family, config, block + 1)


def head_hf_names(family: HFFamily, config: ReaLModelConfig) -> list[str]:
    """Checkpoint names of the parameters of the output head (layer n+1); a tied head has only its norm."""
    return layer_hf_names(family, config, head_layer(config))


def layer_hf_names(family: HFFamily, config: ReaLModelConfig, layer: int) -> list[str]:
    """Checkpoint names of the parameters of a layer: 0 is the embedding, n+1 the head."""
    return [name for holding in weight_mappings(family, config) if holding.layer == layer for name in holding.theirs]


class HFState(Mapping[str, Tensor]):
    """Tensors under the checkpoint's names, made from ours when they are asked for.

    `like(name)` tells shape and dtype without making anything.
    """

    def __init__(self, state: Mapping[str, Tensor], found: Sequence[WeightMapping]) -> None:
        self._state = state
        self._places = {name: (holding, item) for holding in found for item, name in enumerate(holding.theirs)}

    def __getitem__(self, name: str) -> Tensor:
        holding, item = self._places[name]
        return holding.to_hf(self._state, item)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def like(self, name: str) -> Tensor:
        """A tensor on the meta device with the shape and dtype of that one."""
        holding, _ = self._places[name]
        return torch.empty(holding.shape, dtype=self._state[holding.ours[0]].dtype, device="meta")


def state_dict_to_hf(family: HFFamily, state: Mapping[str, Tensor], config: ReaLModelConfig) -> HFState:
    """Any subset of our parameters under the checkpoint's names and in its order; those renamed only are not copied.

    Raises:
        ConfigError: a name that is no parameter of ours, or one without those that share a tensor with it.
    """
    found = [holding for holding in weight_mappings(family, config) if any(name in state for name in holding.ours)]
    known = {name for holding in found for name in holding.ours}
    for name in state:
        if name not in known:
            raise ConfigError(f"'{name}' is no parameter of this model{did_you_mean(name, parameter_shapes(config))}")
    for holding in found:
        missing = [name for name in holding.ours if name not in state]
        if missing:
            raise ConfigError(
                f"'{holding.theirs[0]}' holds {listed(holding.ours)} together; give {listed(missing)} as well"
            )
    return HFState(state, found)


def state_dict_from_hf(family: HFFamily, hf_state: Mapping[str, Tensor], config: ReaLModelConfig) -> dict[str, Tensor]:
    """Any subset of a checkpoint's tensors under our names; those renamed only are not copied.

    Tensors without effect are dropped, as are the duplicate of a tied embedding and, for a critic, the head of a
    language model.

    Raises:
        CheckpointError: a tensor that is no parameter of ours; one of several that belong together, without the others;
            a head that should be tied but differs.
    """
    refuse_untied_head(family, hf_state, config)
    found = weight_mappings(family, config)
    known = {name for holding in found for name in holding.theirs} | unused_names(family, config)
    for name in hf_state:
        if name not in known and not family.weights.is_ignored(name):
            raise CheckpointError(f"tensor '{name}' is no parameter of family '{family.names[0]}'; remove it")
    state: dict[str, Tensor] = {}
    for holding in found:
        present = [name for name in holding.theirs if name in hf_state]
        if present and len(present) < len(holding.theirs):
            missing = next(name for name in holding.theirs if name not in hf_state)
            raise CheckpointError(f"'{present[0]}' is there without '{missing}', and both are one parameter of ours")
        if present:
            state.update(holding.from_hf([hf_state[name] for name in present]))
    return state


def unused_names(family: HFFamily, config: ReaLModelConfig) -> set[str]:
    """Checkpoint names of what a language model has and this model has not: the head, if it is tied or a critic's."""
    table = family.weights
    of_model = {stored(theirs).name for key, theirs in table.head.items() if "out" in names_in(key)}
    own = {
        stored(theirs).name
        for key, theirs in table.head_part(is_critic=config.is_critic).items()
        if "out" in names_in(key)
    }
    unused = of_model if config.head_is_tied else of_model - own
    kinds = ("weight",) if config.head_is_tied and config.head_has_bias else ("weight", "bias")
    return {f"{name}.{kind}" for name in unused for kind in kinds}


def refuse_untied_head(
    family: HFFamily, hf_state: Mapping[str, Tensor], config: ReaLModelConfig, box: Box | None = None
) -> int:
    """Look whether a head that should repeat the embedding is there and differs from it.

    Args:
        box: the part of the embedding in which they are compared; None: all of it.

    Returns:
        The bytes of the head that were looked at.

    Raises:
        CheckpointError: they differ.
    """
    if not config.head_is_tied:
        return 0
    holding = next(item for item in weight_mappings(family, config) if EMBEDDING_WEIGHT in item.ours)
    (embedding,) = holding.theirs
    part = box.slices if box is not None and holding.is_renaming else ()
    n_bytes = 0
    for head in (name for name in unused_names(family, config) if name.endswith(".weight")):
        if embedding in hf_state and head in hf_state:
            found = hf_state[head][part]
            n_bytes += found.nbytes
            if not torch.equal(hf_state[embedding][part], found):
                raise CheckpointError(
                    f"tie_word_embeddings is true, but '{head}' differs from '{embedding}'; set it to false to keep "
                    f"both, or remove '{head}'"
                )
    return n_bytes
