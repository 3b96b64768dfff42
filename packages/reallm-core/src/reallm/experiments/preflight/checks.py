"""What can be found out about a configuration before a model is loaded, each as a small function.

The functions go by what a configuration holds (a `ModelArgs`, a dataset, loggers, a run folder), so they serve any
experiment. Each raises a `ReallmError` that names the key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reallm.config.args import ModelArgs
from reallm.config.parallel import PREFIX, ParallelArgs
from reallm.config.schema import dataset_fields, in_group
from reallm.errors import ConfigError, ReallmError
from reallm.experiments.checkpointing.resume import AUTO, named_run
from reallm.experiments.runs.folder import holds_something
from reallm.hf.checkpoint_folder import read_hf_config, resolve_path
from reallm.hf.conversion.config import config_from_hf, load_model_config
from reallm.hf.conversion.families import family_for
from reallm.hf.file_names import CONFIG_NAME, TOKENIZER_FILES
from reallm.parallel.layout import Layout
from reallm.plugins import registry


def check(config: Any) -> None:
    """All checks that apply to an experiment's configuration.

    Raises:
        ReallmError: the first thing that would stop the run; one line with the key and the remedy.
    """
    if hasattr(config, "loggers"):
        check_loggers(config.loggers)
    resume: Any = getattr(config, "resume", None)
    name: Any = getattr(config, "name", None)
    goes_on = resume not in (None, AUTO)
    if goes_on:
        named_run(Path(resume))
    elif resume is None and name is not None and hasattr(config, "output_dir"):
        check_run_folder(Path(config.output_dir) / name)
    for name in dataset_fields(type(config)):
        check_dataset(name, getattr(config, name))
    if hasattr(config, "optimizer"):
        check_schedule(config.optimizer.warmup_steps, getattr(config, "max_steps", None))
    parallel = getattr(config, "parallel", ParallelArgs())
    models = [(item.name, getattr(config, item.name)) for item in dataclasses.fields(config)]
    for name, value in models:
        if isinstance(value, ModelArgs):
            if not goes_on:  # else the models are in the run's own checkpoint
                check_checkpoint(f"{name}.path", value.path)
                check_layout(f"{name}.path", value, parallel)
            check_device(value.device)
            check_trainable(f"{name}.dtype", value.dtype)


def check_loggers(names: Sequence[str]) -> None:
    """Each logger is offered by an installed plugin."""
    for name in names:
        try:
            registry.get("logger", name)
        except ReallmError as error:
            raise ConfigError(f"loggers=[{','.join(names)}]: {error}") from error


def check_run_folder(folder: Path) -> None:
    """No earlier run lies there."""
    if folder.is_file() or (folder.is_dir() and holds_something(folder)):
        raise ConfigError(f"name={folder.name}: the run folder '{folder}' exists; choose another name or remove it")


def check_dataset(key: str, config: Any) -> None:
    """What the dataset's configuration itself can check, in its method `check()`, if it has one."""
    if callable(getattr(config, "check", None)):
        try:
            config.check()
        except ReallmError as error:
            raise ConfigError(in_group(key, type(config), error)) from error


def check_schedule(warmup_steps: int | None, max_steps: int | None) -> None:
    """The warm-up ends before training does."""
    if warmup_steps is not None and max_steps is not None and warmup_steps >= max_steps:
        raise ConfigError(f"optimizer.warmup_steps={warmup_steps} must be less than max_steps={max_steps}")


def check_checkpoint(key: str, path: str) -> None:
    """The checkpoint is one that an installed family reads, its files are whole, and it has a tokenizer."""
    try:
        folder = resolve_path(path)
        raw = read_hf_config(folder)
        config_from_hf(family_for(raw, folder), raw, source=folder / CONFIG_NAME)

        from reallm.checkpoint.reader import open_checkpoint  # brings torch, so only when all else is well

        open_checkpoint(folder)
    except ReallmError as error:
        raise ConfigError(f"{key}: {error}") from error
    if not any(True for pattern in TOKENIZER_FILES for _ in folder.glob(pattern)):
        raise ConfigError(f"{key}: no tokenizer in {folder}; copy tokenizer.json and tokenizer_config.json there")


def check_layout(key: str, args: ModelArgs, parallel: ParallelArgs) -> None:
    """The model can be split into so many parts and stages."""
    if parallel.pp == parallel.tp == 1:
        return
    from reallm.parallel.sharding import check_fits  # brings torch, so only where it can tell something

    try:
        check_fits(load_model_config(args.path), Layout(pp=parallel.pp, tp=parallel.tp))
    except ConfigError as error:
        raise ConfigError(f"{PREFIX}{error} ({key}={args.path})") from error


def check_trainable(key: str, dtype: str) -> None:
    """The number format is one that can be trained."""
    if dtype == "float16":
        raise ConfigError(f"{key}=float16 cannot be trained, its gradients underflow; use bfloat16 or float32")


def check_device(name: str) -> None:
    """The device is there."""
    if name == "cuda":
        from reallm.experiments.preflight.device import (
            choose_device,  # brings torch, so only where it can tell something
        )

        choose_device(name)
