"""The other side of the comparison: models of transformers with random weights, of which every part has an effect.

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
"""Of matrices; with hidden states of 32 numbers, logits are then of order one and attention is far from uniform."""
VECTOR_STD = 0.2
"""Added to vectors as transformers initialises them: norms and biases have an effect, too."""
LENGTHS = (1, 7, 16, 33, 2, 40)
"""Of the sequences that are compared: around windows, and on both sides of where frequencies change."""
MOST_TOKENS = 80
"""Token ids are lower, so that a vocabulary may be made smaller."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers says in log messages and warnings about models as odd as these."""
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
    """What transformers makes of a `config.json`; attention is computed step by step, as written."""
    from transformers import AutoConfig

    content = copy.deepcopy(dict(raw))  # it may change what it is given
    with quiet():
        return AutoConfig.for_model(content.pop("model_type"), **content, attn_implementation="eager")


def hf_class(name: str) -> type[PreTrainedModel] | None:
    """The class of transformers of this name; None if it has none."""
    import transformers

    found = getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else None


def hf_model(raw: Mapping[str, Any]) -> PreTrainedModel:
    """The model of a `config.json`, in evaluation mode. Each weight follows from its name, whatever else there is."""
    model = _fresh_model(raw, SEED)
    fill(model)
    return model.eval()


def fresh_state(raw: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """The tensors of a checkpoint of a model that transformers has just made."""
    return checkpoint_state(_fresh_model(raw, seed))


def _fresh_model(raw: Mapping[str, Any], seed: int) -> PreTrainedModel:
    cls = hf_class(raw["architectures"][0])
    assert cls is not None, "checked before"
    with quiet(), torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return cls(hf_config(raw))


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Give every parameter the value that follows from its name."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(derive_seed(SEED, "weights", name))
        drawn = torch.empty(parameter.shape).normal_(generator=generator)
        if parameter.dim() == 1:
            parameter.add_(drawn * VECTOR_STD)
        else:
            parameter.copy_(drawn * STD)


def sequences(vocab_size: int, lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    """Random sequences [T] int64 of some lengths."""
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randint(0, min(vocab_size, MOST_TOKENS), (length,), generator=generator) for length in lengths]


def packed(samples: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The sequences one after another, and their bounds."""
    bounds = torch.tensor([0, *map(len, samples)]).cumsum(0).to(torch.int32)
    return torch.cat(list(samples)), bounds


def logits_of(model: nn.Module, samples: Sequence[Tensor]) -> Tensor:
    """Logits [T, V] of a transformers model for each sequence alone, one after another."""
    return torch.cat([model(sample[None], use_cache=False).logits[0] for sample in samples])
