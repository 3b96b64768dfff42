"""The model of commands that generate: loaded from a checkpoint, with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from reallm.errors import CheckpointError, ConfigError

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


class GivenModel(NamedTuple):
    """A model, and where and how it is computed, as the command line gives it."""

    key: str
    """What errors call the model: `--model`."""
    path: str
    """A checkpoint's folder, that of a run, or an id on the hub; or an adapter whose base model is at hand."""
    adapter: str | None
    """The value of `--adapter`."""
    implementation: str
    """The value of `--implementation`."""
    device: str
    """The value of `--device`: `cpu`, `cuda`, or `auto`, a GPU if there is one."""


class ModelFolders(NamedTuple):
    """The folders that a model is loaded from."""

    base: Path
    adapter: Path | None
    tokenizer: Path


def check_model(given: GivenModel) -> ModelFolders:
    """Check that a model can be loaded, without loading it; returns its folders, downloaded if it is on the hub.

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
        base = resolve_path(given.path)
        if is_adapter_folder(base):
            if given.adapter is not None:
                raise ConfigError(
                    f"{given.path} holds an adapter too; give its base model with --adapter {given.adapter}"
                )
            found, base = base, base_folder(base)
    except CheckpointError as error:
        raise ConfigError(f"{given.key}: {error}") from error
    if given.adapter is not None:
        try:
            found = resolve_adapter(given.adapter)
        except CheckpointError as error:
            raise ConfigError(f"--adapter: {error}") from error
    tokenizer = tokenizer_folder(base, found)
    check_checkpoint(given.key, str(base), given.implementation, needs_tokenizer=tokenizer == base)
    return ModelFolders(base, found, tokenizer)


def check_device(device: str) -> None:
    """Raise ConfigError if the value of `--device` is none."""
    if device not in DEVICES:
        raise ConfigError(f"--device {device}: must be auto, cpu or cuda")


def load_model(
    given: GivenModel, folders: ModelFolders, *, dtype: str | None = None, chat: bool = False
) -> LoadedModel:
    """Load a model that generates, and its tokenizer. An adapter is added to the weights.

    Args:
        given: the model.
        folders: its folders, of `check_model`.
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
    name = given.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = as_device(name, "--device")
    if wanted is None and device.type == "cpu":
        wanted = torch.float32
    lora = None if folders.adapter is None else LoRAArgs(path=str(folders.adapter))
    model = ReaLModel.from_pretrained(
        folders.base, dtype=wanted, device=device, lora=lora, implementation=given.implementation
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
