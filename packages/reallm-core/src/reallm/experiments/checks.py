"""What can be found out about a configuration before a model is loaded, each as a small function.

The functions go by what a configuration holds (a `ModelArgs`, a dataset, loggers, a run folder), so they serve any
experiment. Each raises a `ReallmError` that names the key.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reallm.errors import ConfigError, did_you_mean, ReallmError
from reallm.experiments.config import ModelArgs
from reallm.experiments.config_dataset import PATHS
from reallm.experiments.schema import dataset_fields
from reallm.hf import config_io
from reallm.plugins import registry


def check(config: Any) -> None:
    """All checks that apply to an experiment's configuration.

    Raises:
        ReallmError: the first thing that would stop the run; one line with the key and the remedy.
    """
    if hasattr(config, "loggers"):
        check_loggers(config.loggers)
    if hasattr(config, "output_dir"):
        check_run_folder(Path(config.output_dir), getattr(config, "name", None))
    for name in dataset_fields(type(config)):
        check_dataset(name, getattr(config, name))
    if hasattr(config, "optimizer"):
        check_schedule(config.optimizer.warmup_steps, getattr(config, "max_steps", None))
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(value, ModelArgs):
            check_checkpoint(f"{item.name}.path", value.path)
            check_device(item.name, value)


def check_loggers(names: Sequence[str]) -> None:
    """Each logger is offered by an installed plugin."""
    for name in names:
        try:
            registry.get("logger", name)
        except ReallmError as error:
            raise ConfigError(f"loggers=[{','.join(names)}]: {error}") from error


def check_run_folder(output_dir: Path, name: str | None) -> None:
    """The run folder can be made and no earlier run lies there."""
    if name is not None:
        if not name.strip() or Path(name).name != name:
            raise ConfigError(f"name={name}: must be the name of a folder, without '/'; output_dir says where it lies")
        folder = output_dir / name
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise ConfigError(f"name={name}: '{folder}' exists already; choose another name or remove it")
    existing = next(path for path in (output_dir.absolute(), *output_dir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"output_dir={output_dir}: '{existing}' is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir={output_dir}: no permission to write in '{existing}'")


def check_dataset(key: str, config: Any) -> None:
    """The files that a dataset's configuration names are there; what kind they must be is the dataset's affair."""
    for field in PATHS.values():
        path = getattr(config, field, None)
        if isinstance(path, str) and not Path(path).exists():
            raise ConfigError(f"{key}.{field}={path}: no such file{_beside(Path(path))}")


def check_schedule(warmup_steps: int | None, max_steps: int | None) -> None:
    """The warm-up ends before training does."""
    if warmup_steps is not None and max_steps is not None and warmup_steps >= max_steps:
        raise ConfigError(f"optimizer.warmup_steps={warmup_steps} must be less than max_steps={max_steps}")


def check_checkpoint(key: str, path: str) -> None:
    """The checkpoint has a configuration that an installed family can read, weights in safetensors, and a tokenizer."""
    from reallm.hf import families

    folder = config_io.resolve_path(path)
    raw = config_io.read_config(folder)
    config_io.from_hf(families.family_for(raw, folder), raw, source=folder / config_io.CONFIG_NAME)
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"{key}={path}: no *.safetensors in it; only safetensors checkpoints can be trained")
    if not any((folder / name).exists() for name in config_io.TOKENIZER_FILES):
        raise ConfigError(f"{key}={path}: no tokenizer in it; copy tokenizer.json and tokenizer_config.json there")


def check_device(key: str, args: ModelArgs) -> None:
    """The device is there and knows the number format."""
    if args.device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"{key}.device=cuda: PyTorch sees no GPU here; write {key}.device=cpu or auto")
    if args.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"{key}.dtype=bfloat16: this GPU does not have it; write {key}.dtype=float16 or float32")


def _beside(path: Path) -> str:
    """The file in the same folder that was probably meant, or that the folder itself is missing."""
    if not path.parent.is_dir():
        return f" (there is no folder '{path.parent}')"
    return did_you_mean(path.name, sorted(item.name for item in path.parent.iterdir()))
