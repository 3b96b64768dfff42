"""The model of commands that generate: loaded from a checkpoint, with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from reallm.errors import CheckpointError, ConfigError
from reallm.specs import STANDARD_IMPLEMENTATION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reallm.engine.real_model import ReaLModel
    from reallm.generation.engine import GenerationEngine
    from reallm.generation.request import Event, Request
    from reallm.launch.signals import StopRequest

DEVICES = ("auto", "cpu", "cuda")

DeviceOption = Annotated[
    str, typer.Option("--device", metavar="NAME", help="cpu, cuda, or auto: a GPU if there is one.")
]
"""The option `--device`; `check_device` checks its value."""


class LoadedModel(NamedTuple):
    """A model that generates, and its tokenizer."""

    model: ReaLModel
    tokenizer: PreTrainedTokenizerBase


AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", metavar="FOLDER", help="LoRA adapter of the model, as PEFT or a run has saved it."),
]
"""The option `--adapter`."""


ImplementationOption = Annotated[
    str,
    typer.Option(
        "--implementation",
        metavar="NAME",
        help="Whose layers compute the model: those of the installed families, or a plugin's, such as transformers.",
    ),
]
"""The option `--implementation`."""


class ModelFolders(NamedTuple):
    """The folders that a model is loaded from, and the name of what computes it."""

    base: Path
    adapter: Path | None
    tokenizer: Path
    implementation: str


def check_model(
    key: str, path: str, adapter: str | None = None, implementation: str = STANDARD_IMPLEMENTATION
) -> ModelFolders:
    """Check that a model can be loaded, without loading it; returns its folders, downloaded if it is on the hub.

    Args:
        key: what errors call the model, as it was given: `--model`.
        path: a checkpoint's folder, that of a run, or an id on the hub; or an adapter whose base model is at hand.
        adapter: the value of `--adapter`.
        implementation: the value of `--implementation`.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from reallm.experiments.preflight.checks import check_checkpoint
    from reallm.hf.checkpoint_folder import (
        base_folder,
        is_adapter_folder,
        resolve_adapter,
        resolve_path,
        tokenizer_folder,
    )

    found = None
    try:
        base = resolve_path(path)
        if is_adapter_folder(base):
            if adapter is not None:
                raise ConfigError(f"{path} holds an adapter too; give its base model with --adapter {adapter}")
            found, base = base, base_folder(base)
    except CheckpointError as error:
        raise ConfigError(f"{key}: {error}") from error
    if adapter is not None:
        try:
            found = resolve_adapter(adapter)
        except CheckpointError as error:
            raise ConfigError(f"--adapter: {error}") from error
    tokenizer = tokenizer_folder(base, found)
    check_checkpoint(key, str(base), implementation, needs_tokenizer=tokenizer == base)
    return ModelFolders(base, found, tokenizer, implementation)


def check_device(device: str) -> None:
    """Raise ConfigError if the value of `--device` is none."""
    if device not in DEVICES:
        raise ConfigError(f"--device {device}: must be auto, cpu or cuda")


def load_model(folders: ModelFolders, *, device: str, dtype: str | None = None, chat: bool = False) -> LoadedModel:
    """Load a model that generates, and its tokenizer. An adapter is added to the weights.

    Args:
        folders: the folders of the checkpoint.
        device: `cpu`, `cuda`, or `auto`: a GPU if there is one.
        dtype: name of a dtype; None: float32 on a CPU, which is fastest there, else the checkpoint's.
        chat: whether the tokenizer must have a chat template.

    Raises:
        ConfigError: there is no such device or dtype, or no chat template.
    """
    from reallm.hf.conversion.transformers_io import load_tokenizer

    tokenizer = load_tokenizer(folders.tokenizer)
    if chat and not tokenizer.chat_template:
        raise ConfigError(f"--chat: the tokenizer in '{folders.tokenizer}' has no chat template; leave --chat out")

    import torch

    from reallm.config.lora import LoRAArgs
    from reallm.dtype_device import as_device, as_dtype
    from reallm.engine.real_model import ReaLModel

    wanted = None if dtype is None else as_dtype(dtype, "--dtype")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = as_device(device, "--device")
    if wanted is None and found.type == "cpu":
        wanted = torch.float32
    lora = None if folders.adapter is None else LoRAArgs(path=str(folders.adapter))
    model = ReaLModel.from_pretrained(
        folders.base, dtype=wanted, device=found, lora=lora, implementation=folders.implementation
    )
    return LoadedModel(model.merged(), tokenizer)


def events(engine: GenerationEngine, requests: Sequence[tuple[str, Request]], stop: StopRequest) -> Iterator[Event]:
    """The events of requests, given with the names of their prompts for errors, until all have ended.

    After a request to stop they end as they are.
    """
    from reallm.generation.nonfinite import refuse_nonfinite
    from reallm.generation.request import FinishedEvent

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
