"""`reallm merge`: add a LoRA adapter to the weights of its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reallm.cli.generation_model import ImplementationOption
from reallm.errors import ConfigError
from reallm.specs import STANDARD_IMPLEMENTATION


def merge(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="Folder of the adapter, or of the run that has trained it.")
    ],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write the whole model into.")],
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Base model, if it is not where the adapter says.", show_default=False),
    ] = None,
    implementation: ImplementationOption = STANDARD_IMPLEMENTATION,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="bfloat16, float32, ... Default: as the base model.", show_default=False),
    ] = None,
) -> None:
    """Write a model with a LoRA adapter added to its weights, as transformers loads it.

    \b
      reallm merge runs/my-run --output merged
    """
    from reallm.experiments.runs.folder import has_content

    if output.is_file() or (output.is_dir() and has_content(output)):
        raise ConfigError(f"--output {output} exists; choose another folder, or remove it")

    from reallm.hf.checkpoint_folder import base_folder, resolve_adapter, resolve_path, tokenizer_folder

    folder = resolve_adapter(adapter)
    model_folder = base_folder(folder) if base is None else resolve_path(base)

    from reallm.checkpoint.adapter import AdapterFolder  # imports torch, so only when everything else is right
    from reallm.config.lora import LoRAArgs
    from reallm.dtype_device import as_dtype
    from reallm.engine.real_model import ReaLModel
    from reallm.experiments.reports.number_format import short
    from reallm.hf.conversion.transformers_io import load_tokenizer

    wanted = None if dtype is None else as_dtype(dtype, "--dtype")
    has_scalar_head = AdapterFolder(folder).raw.get("task_type") == "SEQ_CLS"
    model = ReaLModel.from_pretrained(
        model_folder,
        is_critic=True if has_scalar_head else None,
        lora=LoRAArgs(path=str(folder)),
        implementation=implementation,
    )
    merged = model.merged()
    tokenizer = None if tokenizer_folder(model_folder, folder) == model_folder else load_tokenizer(folder)
    merged.save_pretrained(output, dtype=wanted, tokenizer=tokenizer)
    n = short(sum(parameter.numel() for parameter in merged.parameters()))
    typer.echo(f"{output}: {model_folder} with the adapter of {folder} merged, {n} parameters")
