"""Parameters of ours <-> tensors of a family's checkpoints: names, state dicts, shapes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor

from reallm.errors import CheckpointError
from reallm.hf.family import HFFamily
from reallm.model.config import ReaLModelConfig
from reallm.model.transformer import Transformer


@lru_cache(maxsize=16)
def parameter_shapes(config: ReaLModelConfig) -> Mapping[str, tuple[int, ...]]:
    """The shape of every parameter of ours, in the network's order; nothing is allocated."""
    with torch.device("meta"):
        model = Transformer(config)
    return MappingProxyType({name: tuple(parameter.shape) for name, parameter in model.named_parameters()})


def hf_names(family: HFFamily, config: ReaLModelConfig) -> dict[str, str]:
    """The checkpoint's name of every parameter, in the order in which checkpoints hold them."""
    return _named(family, config, list(parameter_shapes(config)))


def embedding_names(family: HFFamily, config: ReaLModelConfig) -> list[str]:
    """Checkpoint names of the parameters of the token embedding (layer 0)."""
    return layer_names(family, config, 0)


def block_names(family: HFFamily, config: ReaLModelConfig, block: int) -> list[str]:
    """Checkpoint names of the parameters of a block, numbered from 0 as in checkpoints (layer `block + 1`)."""
    assert 0 <= block < config.n_layers, f"block {block} of {config.n_layers}"
    return layer_names(family, config, block + 1)


def head_names(family: HFFamily, config: ReaLModelConfig) -> list[str]:
    """Checkpoint names of the parameters of the output head (layer n+1); a tied head has only its norm."""
    return layer_names(family, config, config.n_layers + 1)


def layer_names(family: HFFamily, config: ReaLModelConfig, layer: int) -> list[str]:
    """Checkpoint names of the parameters of a layer: 0 is the embedding, n+1 the head."""
    prefix = f"layers.{layer}."
    return [theirs for ours, theirs in hf_names(family, config).items() if ours.startswith(prefix)]


def state_dict_to_hf(family: HFFamily, state: Mapping[str, Tensor], config: ReaLModelConfig) -> dict[str, Tensor]:
    """Any subset of our parameters under the checkpoint's names and in its order; tensors are not copied.

    Raises:
        ConfigError: a name that is no parameter of ours.
    """
    return {theirs: state[ours] for ours, theirs in _named(family, config, list(state)).items()}


def state_dict_from_hf(family: HFFamily, hf_state: Mapping[str, Tensor], config: ReaLModelConfig) -> dict[str, Tensor]:
    """Any subset of a checkpoint's tensors under our names; tensors are not copied.

    Tensors without effect are dropped, as are the duplicate of a tied embedding and, for a critic, the head of a
    language model.

    Raises:
        CheckpointError: a tensor that is no parameter of ours; a head that should be tied but differs.
    """
    refuse_untied_head(family, hf_state, config)
    dropped = unused_names(family, config)
    state: dict[str, Tensor] = {}
    for theirs, tensor in hf_state.items():
        if family.weights.is_ignored(theirs) or theirs in dropped:
            continue
        ours = family.weights.our_name(theirs, config.n_layers, is_critic=config.is_critic)
        if ours is None:
            raise CheckpointError(f"tensor '{theirs}' is no parameter of family '{family.names[0]}'; remove it")
        state[ours] = tensor
    return state


def unused_names(family: HFFamily, config: ReaLModelConfig) -> set[str]:
    """Checkpoint names of what a language model has and this model has not: the head, if it is tied or a critic's."""
    out = f"layers.{config.n_layers + 1}.out.weight"
    lm_head = family.weights.hf_name(out, config.n_layers)
    own_head = family.weights.hf_name(out, config.n_layers, is_critic=config.is_critic)
    return {lm_head} if config.head_is_tied or lm_head != own_head else set()


def refuse_untied_head(family: HFFamily, hf_state: Mapping[str, Tensor], config: ReaLModelConfig) -> None:
    """Raise CheckpointError if a head that should repeat the embedding is there and differs from it."""
    if not config.head_is_tied:
        return
    names = ("layers.0.tokens.weight", f"layers.{config.n_layers + 1}.out.weight")
    embedding, head = (family.weights.hf_name(name, config.n_layers) for name in names)
    if embedding in hf_state and head in hf_state and not torch.equal(hf_state[embedding], hf_state[head]):
        raise CheckpointError(
            f"tie_word_embeddings is true, but '{head}' differs from '{embedding}'; set it to false to keep both, "
            f"or remove '{head}'"
        )


def _named(family: HFFamily, config: ReaLModelConfig, names: list[str]) -> dict[str, str]:
    table, n_layers, is_critic = family.weights, config.n_layers, config.is_critic
    names.sort(key=lambda name: table.position(name, n_layers, is_critic=is_critic))
    return {name: table.hf_name(name, n_layers, is_critic=is_critic) for name in names}
