"""The model of commands that generate: loaded from a checkpoint, with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reallm.errors import ConfigError
from reallm.generation.nonfinite import refuse_nonfinite
from reallm.generation.request import FinishedEvent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reallm.engine.real_model import ReaLModel
    from reallm.generation.engine import GenerationEngine
    from reallm.generation.request import Event, Request
    from reallm.launch.signals import StopRequest

DEVICES = ("auto", "cpu", "cuda")


class LoadedModel(NamedTuple):
    """A model that generates, and its tokenizer."""

    model: ReaLModel
    tokenizer: PreTrainedTokenizerBase


def check_model(key: str, path: str) -> Path:
    """Check that a model can be loaded, without loading it; returns its folder, downloaded if it is on the hub.

    Args:
        key: what errors call the model, as it was given: `--model`.
        path: a checkpoint's folder, that of a run, or an id on the hub.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from reallm.experiments.preflight.checks import check_checkpoint
    from reallm.hf.checkpoint_folder import resolve_path

    check_checkpoint(key, path)
    return resolve_path(path)


def check_device(device: str) -> None:
    """Raise ConfigError if the value of `--device` is none."""
    if device not in DEVICES:
        raise ConfigError(f"--device {device}: must be auto, cpu or cuda")


def load_model(folder: Path, device: str, *, chat: bool = False) -> LoadedModel:
    """Load a model that generates: in float32 on a CPU, which is fastest there; in the checkpoint's dtype on a GPU.

    Args:
        folder: folder of the checkpoint.
        device: `cpu`, `cuda`, or `auto`: a GPU if there is one.
        chat: whether its tokenizer must have a chat template.

    Raises:
        ConfigError: there is no such device, or no chat template.
    """
    from reallm.hf.conversion.transformers_io import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if chat and not tokenizer.chat_template:
        raise ConfigError(f"--chat: the tokenizer in '{folder}' has no chat template; leave --chat out")

    import torch

    from reallm.engine.real_model import ReaLModel

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ConfigError("--device cuda: PyTorch sees no GPU here; use cpu or auto")
    device = ("cuda" if has_gpu else "cpu") if device == "auto" else device
    model = ReaLModel.from_pretrained(folder, dtype=torch.float32 if device == "cpu" else None, device=device)
    return LoadedModel(model, tokenizer)


def events(engine: GenerationEngine, requests: Sequence[tuple[str, Request]], stop: StopRequest) -> Iterator[Event]:
    """The events of requests, given with the names of their prompts for errors, until all have ended.

    After a request to stop they end as they are.
    """
    names = {engine.add(request, name=name): name for name, request in requests}
    running = [*names]
    while engine.has_work:
        if stop.is_set():
            for number in running:
                engine.cancel(number)
            running = []
        found = engine.step()
        refuse_nonfinite((names[one.request_id], one.completion) for one in found if isinstance(one, FinishedEvent))
        yield from found
