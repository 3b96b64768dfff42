"""Conversion of state dicts between our names and the names in a family's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from reallm.errors import CheckpointError, ConfigError, did_you_mean, quoted
from reallm.hf.conversion.mapping import WeightMapping, weight_mappings
from reallm.hf.family import HFFamily
from reallm.hf.tables.weights import as_source, names_in
from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import EMBEDDING_WEIGHT
from reallm.model.parameters import parameter_shapes
from reallm.model.sharding import Box


def hf_names(family: HFFamily, config: ReaLModelConfig, layer: int | None = None) -> list[str]:
    """Names of a checkpoint's tensors, in the order in which checkpoints have them.

    `layer` selects the tensors of one layer: 0 is the embedding, `block + 1` a block, n+1 the output head (only its
    norm if the head is tied).
    """
    mappings = weight_mappings(family, config)
    return [name for mapping in mappings if layer in (None, mapping.layer) for name in mapping.hf_names]


class LazyHFStateDict(Mapping[str, Tensor]):
    """Tensors under the checkpoint's names, each made from our parameters when it is accessed."""

    def __init__(self, state: Mapping[str, Tensor], mappings: Sequence[WeightMapping]) -> None:
        self._state = state
        self._sources = {name: (mapping, item) for mapping in mappings for item, name in enumerate(mapping.hf_names)}

    def __getitem__(self, name: str) -> Tensor:
        mapping, item = self._sources[name]
        return mapping.to_hf(self._state, item)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def meta_tensor(self, name: str) -> Tensor:
        """A tensor on the meta device with the shape and dtype of tensor `name`, without making that."""
        mapping, _ = self._sources[name]
        return torch.empty(mapping.hf_shape, dtype=self._state[mapping.parameters[0]].dtype, device="meta")


def state_dict_to_hf(family: HFFamily, state: Mapping[str, Tensor], config: ReaLModelConfig) -> LazyHFStateDict:
    """Any subset of our parameters under the checkpoint's names and in its order; mere renamings are not copied.

    Raises:
        ConfigError: a name is not a parameter, or a parameter lacks the others that share a tensor with it.
    """
    mappings = [item for item in weight_mappings(family, config) if any(name in state for name in item.parameters)]
    known = {name for mapping in mappings for name in mapping.parameters}
    for name in state:
        if name not in known:
            raise ConfigError(
                f"'{name}' is not a parameter of this model{did_you_mean(name, parameter_shapes(config))}"
            )
    for mapping in mappings:
        missing = [name for name in mapping.parameters if name not in state]
        if missing:
            raise ConfigError(
                f"'{mapping.hf_names[0]}' holds {quoted(mapping.parameters)} together; give {quoted(missing)} as well"
            )
    return LazyHFStateDict(state, mappings)


def state_dict_from_hf(family: HFFamily, hf_state: Mapping[str, Tensor], config: ReaLModelConfig) -> dict[str, Tensor]:
    """Any subset of a checkpoint's tensors under our names; tensors that are only renamed are not copied.

    Tensors without effect are dropped, as are a tied head and, for a critic, a language model's head.

    Raises:
        CheckpointError: a tensor is not a parameter; tensors that belong together are incomplete; or a head should be
            tied but differs.
    """
    check_tied_head(family, hf_state, config)
    mappings = weight_mappings(family, config)
    known = {name for mapping in mappings for name in mapping.hf_names} | unused_head_names(family, config)
    for name in hf_state:
        if name not in known and not family.weights.is_ignored(name):
            raise CheckpointError(f"tensor '{name}' is not a parameter of family '{family.names[0]}'; remove it")
    state: dict[str, Tensor] = {}
    for mapping in mappings:
        present = [name for name in mapping.hf_names if name in hf_state]
        if present and len(present) < len(mapping.hf_names):
            missing = next(name for name in mapping.hf_names if name not in hf_state)
            raise CheckpointError(f"'{present[0]}' is present without '{missing}', and both belong to one parameter")
        if present:
            state.update(mapping.from_hf([hf_state[name] for name in present]))
    return state


def unused_head_names(family: HFFamily, config: ReaLModelConfig) -> set[str]:
    """Checkpoint names of a language model's output head, if this model has none because it is tied or a critic."""
    language_model = head_names(family, is_critic=False)
    unused = language_model if config.head_is_tied else language_model - head_names(family, is_critic=config.is_critic)
    has_own_bias = config.head_is_tied and config.head_has_bias
    return {name for name in unused if not (has_own_bias and name.endswith(".bias"))}


def head_names(family: HFFamily, *, is_critic: bool) -> set[str]:
    """Checkpoint names of the output projection's weight and bias, whether or not a model has them."""
    entries = family.weights.head_entries(is_critic=is_critic)
    modules = [as_source(entry).name for key, entry in entries.items() if "out" in names_in(key)]
    return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


def check_tied_head(
    family: HFFamily, hf_state: Mapping[str, Tensor], config: ReaLModelConfig, box: Box | None = None
) -> int:
    """Check that a head that is tied to the embedding, but is in the checkpoint nevertheless, equals it.

    Args:
        family: family whose names the tensors have.
        hf_state: a checkpoint's tensors.
        config: configuration of the model; a head that it does not tie is ignored.
        box: the part of the embedding in which they are compared; None: all of it.

    Returns:
        The bytes of the head that were compared.

    Raises:
        CheckpointError: the head and the embedding differ.
    """
    if not config.head_is_tied:
        return 0
    mapping = next(item for item in weight_mappings(family, config) if EMBEDDING_WEIGHT in item.parameters)
    (embedding,) = mapping.hf_names
    compared = box.slices if box is not None and mapping.is_renaming else ()
    n_bytes = 0
    for head in (name for name in unused_head_names(family, config) if name.endswith(".weight")):
        if embedding in hf_state and head in hf_state:
            duplicate = hf_state[head][compared]
            n_bytes += duplicate.nbytes
            if not torch.equal(hf_state[embedding][compared], duplicate):
                raise CheckpointError(
                    f"tie_word_embeddings is true, but '{head}' differs from '{embedding}'; set it to false to keep "
                    f"both, or remove '{head}'"
                )
    return n_bytes
