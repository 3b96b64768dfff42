"""Reference models of transformers, with random weights large enough that every part has an effect.

Shapes: T tokens of one sequence, V vocabulary.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reallm.hf.conversion.transformers_io import checkpoint_state
from reallm.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SEED = 1
STD = 0.25
"""Of matrices: with a hidden size of 32, logits are of order one and attention is far from uniform."""
VECTOR_STD = 0.2
"""Of the noise added to the initial values of vectors, so that norms and biases have an effect."""
LENGTHS = (1, 7, 16, 33, 2, 40)
"""Lengths of the compared sequences: below and above window sizes, and lengths at which RoPE frequencies change."""
TOKEN_ID_BOUND = 80
"""All token ids are below this, so that they fit a smaller vocabulary as well."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' log messages, warnings and progress bars for a block."""
    from transformers.utils import logging

    before, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if had_bars:
            logging.enable_progress_bar()


def hf_config(raw: Mapping[str, Any]) -> PreTrainedConfig:
    """transformers' configuration of a `config.json`, with eager attention."""
    from transformers import AutoConfig

    content = copy.deepcopy(dict(raw))  # transformers may change it
    with quiet():
        return AutoConfig.for_model(content.pop("model_type"), **content, attn_implementation="eager")


def hf_class(name: str) -> type[PreTrainedModel] | None:
    """The model class of transformers of this name; None if there is none."""
    import transformers

    cls = getattr(transformers, name, None)
    is_model = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    return cls if is_model else None


def hf_model(raw: Mapping[str, Any]) -> PreTrainedModel:
    """transformers' model of a `config.json`, in evaluation mode. Each weight depends only on its name and shape."""
    model = _fresh_model(raw, SEED)
    init_by_name(model)
    return model.eval()


def meta_model(raw: Mapping[str, Any]) -> PreTrainedModel:
    """transformers' model of a `config.json` on the meta device: its modules and shapes, without values."""
    cls = hf_class(raw["architectures"][0])
    assert cls is not None, "the check `default-config` makes sure of it"
    with quiet(), torch.device("meta"):
        return cls(hf_config(raw))


def fresh_state(raw: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """The checkpoint tensors of a model as transformers initialises it."""
    return checkpoint_state(_fresh_model(raw, seed))


def _fresh_model(raw: Mapping[str, Any], seed: int) -> PreTrainedModel:
    cls = hf_class(raw["architectures"][0])
    assert cls is not None, "the check `default-config` makes sure of it"
    with quiet(), torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return cls(hf_config(raw))


@torch.no_grad()
def init_by_name(model: nn.Module) -> None:
    """Initialise every parameter from a seed derived from its name."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(derive_seed(SEED, "weights", name))
        drawn = torch.empty(parameter.shape).normal_(generator=generator)
        if parameter.dim() == 1:
            parameter.add_(drawn * VECTOR_STD)
        else:
            parameter.copy_(drawn * STD)


def sequences(vocab_size: int, lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    """Random sequences of token ids [T] int64 of the given lengths."""
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randint(0, min(vocab_size, TOKEN_ID_BOUND), (length,), generator=generator) for length in lengths]


def pack(samples: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Concatenate sequences: tokens [T] and cu_seqlens [S+1] int32."""
    cu_seqlens = torch.tensor([0, *map(len, samples)]).cumsum(0).to(torch.int32)
    return torch.cat(list(samples)), cu_seqlens


def logits_of(model: nn.Module, samples: Sequence[Tensor]) -> Tensor:
    """Logits [T, V] of a transformers model, which runs each sequence alone, concatenated."""
    return torch.cat([model(sample[None], use_cache=False).logits[0] for sample in samples])
