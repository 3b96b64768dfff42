"""Checks of a configuration before a model is loaded, each a small function.

They depend only on the contents of a configuration (a `ModelArgs`, a dataset, loggers, a run folder), and so apply to
every algorithm. Each raises a `ReallmError` that names the key.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import given_layouts
from reallm.config.args import ModelArgs
from reallm.config.dataset import dataset_name
from reallm.config.lora import LoRAArgs
from reallm.config.optimizer import check_trainable, check_unsharded
from reallm.config.parallel import PREFIX, ParallelArgs
from reallm.config.schema import dataset_fields, in_group
from reallm.config.training import AUTO, DEFAULT_OUTPUT_DIR, model_args, role_optimizer
from reallm.errors import ConfigError, ReallmError
from reallm.experiments.preflight.models import planned_model, with_base_models
from reallm.experiments.preflight.quantized_base import check_quantized_base, check_quantized_calls
from reallm.experiments.runs.folder import RunFolder, has_content
from reallm.experiments.runs.resumable import find_resumable
from reallm.hf.checkpoint_folder import files_of, read_hf_config, refuse_lfs_pointer, resolve_path
from reallm.hf.conversion.config import config_from_hf, has_critic_head, load_model_config
from reallm.hf.conversion.families import family_for
from reallm.hf.file_names import CONFIG_NAME, TOKENIZER_FILES
from reallm.options import is_missing
from reallm.parallel.layout import Layout
from reallm.plugins import registry
from reallm.specs import STANDARD_IMPLEMENTATION


def check(config: Any, graph: Graph, *, training: bool = True) -> None:
    """Run all checks that apply to the configuration of an algorithm.

    Args:
        config: the configuration.
        graph: the graph that the algorithm has with it.
        training: whether models are to be trained; otherwise they are evaluated.

    Raises:
        ReallmError: something would stop the run; reports the first in one line, with the key and the remedy.
    """
    for key, kind in (("loggers", "logger"), ("callbacks", "callback")):
        check_plugins(key, kind, getattr(config, key, ()))
    resume: Any = getattr(config, "resume", None)
    name: Any = getattr(config, "name", None)
    is_resume = resume not in (None, AUTO)
    output_dir: Any = getattr(config, "output_dir", None)
    if is_resume:
        find_resumable(resume, output_dir or DEFAULT_OUTPUT_DIR)
    elif output_dir is not None:
        check_output_dir(Path(output_dir))
        if resume is None and name is not None:
            check_run_folder(Path(output_dir) / name)
    for field in dataset_fields(type(config)):
        check_dataset(field, getattr(config, field))
        check_dataset_keys(getattr(config, field), graph)
    check_roles(config, graph)
    fields = [item.name for item in dataclasses.fields(config)]
    for role in sorted(graph.roles, key=fields.index):  # a model that is by default another one stands after it
        is_trained = role in graph.trained_roles
        if not (training and is_trained):
            config = with_base_models(config, [role])
        args = model_args(config, role)
        if not (is_resume and is_trained):  # trained models are in the run's checkpoint
            check_checkpoint(f"{role}.path", args.path, args.implementation)
            check_head(f"{role}.path", args, is_trained=is_trained)
            check_adapters(role, args, is_trained=is_trained, exact=getattr(config, "exact", False))
            check_quantized_base(role, args)
        check_device(args.device)
        if is_trained:
            check_trainable(args.dtype, f"{role}.dtype")
    check_quantized_calls(config, graph)
    known = [role for role in graph.roles if not (is_resume and role in graph.trained_roles)]
    check_layouts(config, graph, known=known, training=training)


def check_roles(config: Any, graph: Graph) -> None:
    """Check that no role has a checkpoint that no call reads, nor an optimizer although it is not trained.

    Raises:
        ConfigError: a setting would have no effect; names it.
    """
    used = {model_args(config, role).path for role in graph.roles}
    for item in dataclasses.fields(config):
        args, role = getattr(config, item.name), item.name
        if not isinstance(args, ModelArgs):
            continue
        if role not in graph.roles and args.path and not is_missing(args.path) and args.path not in used:
            raise ConfigError(
                f"{role}.path={args.path} has no effect: with these settings, no call of the algorithm uses '{role}'; "
                "leave it out"
            )
        if role not in graph.trained_roles and args.optimizer:
            key, value = next(iter(args.optimizer.items()))
            trained = " and ".join(f"{one}.optimizer" for one in graph.trained_roles)
            raise ConfigError(
                f"{role}.optimizer.{key}={value} has no effect: '{role}' is not trained; there is {trained}"
            )


def check_plugins(key: str, kind: str, names: Sequence[str]) -> None:
    """Check that an installed plugin offers each thing that a key names, such as the loggers."""
    for name in names:
        try:
            registry.get(kind, name)
        except ReallmError as error:
            raise ConfigError(f"{key}=[{','.join(names)}]: {error}") from error


def check_output_dir(folder: Path) -> None:
    """Check that run folders can be made in the folder, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise ConfigError(f"output_dir={folder}: {existing} is a file; give the path of a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir={folder}: {existing} is not writable; give another folder")


def check_run_folder(folder: Path) -> None:
    """Check that the folder of a new run does not exist, or is empty."""
    if folder.is_file() or (folder.is_dir() and has_content(folder)):
        hint = f"; to continue it: resume={folder.name}" if RunFolder(folder).config.is_file() else ""
        raise ConfigError(
            f"name={folder.name}: the run folder '{folder}' exists; choose another name or remove it{hint}"
        )


def check_dataset(key: str, config: Any) -> None:
    """Check that the dataset's configuration passes its method `check()`, if it has one."""
    if callable(getattr(config, "check", None)):
        try:
            config.check()
        except ReallmError as error:
            raise ConfigError(in_group(key, type(config), error)) from error


def check_dataset_keys(config: Any, graph: Graph) -> None:
    """Check that the dataset gives the keys that the calls of the graph read, if it declares its keys."""
    name = dataset_name(config)
    keys = registry.get("dataset", name).keys
    if keys:
        graph.check_producers(keys, name)


def check_checkpoint(
    key: str, path: str, implementation: str = STANDARD_IMPLEMENTATION, *, needs_tokenizer: bool = True
) -> None:
    """Check that an installed family can read the checkpoint, its files are complete, and it has a tokenizer.

    An `implementation` of a plugin takes the place of the families.
    """
    try:
        folder = resolve_path(path)
        raw = read_hf_config(folder)
        config_from_hf(family_for(raw, folder, implementation), raw, source=folder / CONFIG_NAME)

        from reallm.checkpoint.reader import open_checkpoint  # imports torch, so only when everything else is right

        open_checkpoint(folder)
        tokenizer_files = files_of(folder, TOKENIZER_FILES)
        for file in tokenizer_files:
            refuse_lfs_pointer(file)
    except ReallmError as error:
        raise ConfigError(f"{key}: {error}") from error
    if needs_tokenizer and not tokenizer_files:
        raise ConfigError(f"{key}: no tokenizer in {folder}; copy tokenizer.json and tokenizer_config.json there")


def check_head(key: str, args: ModelArgs, *, is_trained: bool) -> None:
    """Check that a checkpoint has the output head that its role needs; a trained critic may get a new one."""
    folder = resolve_path(args.path)
    raw = read_hf_config(folder)
    is_critic = has_critic_head(family_for(raw, folder, args.implementation), raw)
    if is_critic and not args.is_critic:
        raise ConfigError(f"{key}={args.path}: {raw['architectures'][0]} is a reward model; take a language model")
    if args.is_critic and not is_critic and not is_trained:
        raise ConfigError(
            f"{key}={args.path}: a language model has no scalar head that gives scores; take a reward model, such as "
            "`reallm rw` trains"
        )


def check_adapters(role: str, args: ModelArgs, *, is_trained: bool, exact: bool = False) -> None:
    """Check that the model of a role can have the adapters that it is to have.

    Args:
        role: the role.
        args: its arguments.
        is_trained: whether it is trained; otherwise its adapter must exist.
        exact: whether log-probabilities are to be those of sampling, bit for bit.

    Raises:
        ConfigError: it cannot; names the key.
    """
    lora = args.lora
    if not lora.is_on:
        return
    if lora.path is None and not is_trained:
        raise ConfigError(
            f"{role}.lora.rank={lora.rank} has no effect: '{role}' is not trained; there is {role}.lora.path"
        )
    for key in ("add_tokens", "resize_vocab"):
        if getattr(args, key):
            raise ConfigError(
                f"{role}.{key} does not work with {role}.lora, whose base model does not change: new rows would stay "
                "untrained; leave one of the two out"
            )
    if exact and not args.is_critic:
        raise ConfigError(f"exact=true does not work with {role}.lora; leave one of the two out")
    try:
        planned_model(args, None)
    except ConfigError as error:
        raise ConfigError(in_group(f"{role}.lora", LoRAArgs, error)) from error
    except ReallmError as error:
        raise ConfigError(f"{role}.lora.path: {error}") from error


def check_layouts(config: Any, graph: Graph, *, known: Sequence[str], training: bool = True) -> None:
    """Check the layouts of calls, by the configs of checkpoints alone.

    Args:
        config: the configuration.
        graph: the graph that the algorithm has with it.
        known: the roles whose checkpoints are known.
        training: whether models are to be trained; otherwise they are evaluated.

    Raises:
        ConfigError: a model cannot be split so, or its optimizer needs whole matrices; names the key.
    """
    given = given_layouts(config, graph)
    parallel = getattr(config, "parallel", ParallelArgs())
    for call in graph.calls:
        if call.kind == "reward":
            continue
        layout = given.get(call.name, Layout(pp=parallel.pp, tp=parallel.tp))
        prefix = f"{call.name}.layout={layout.short}: " if call.name in given else PREFIX
        if call.role in known:
            check_layout(f"{call.role}.path", model_args(config, call.role), layout, prefix)
        if call.kind != "train_step" or not training:
            continue
        optimizer = role_optimizer(config, call.role)
        if call.name in given:
            check_unsharded(optimizer, replace(layout, fsdp=True), f"{call.name}.layout={layout.short}")
        else:
            check_unsharded(optimizer, parallel.smallest_layout)


def check_layout(key: str, args: ModelArgs, layout: Layout, prefix: str = PREFIX) -> None:
    """Check that the model of a checkpoint can be split over a layout, by its config alone.

    Args:
        key: key of the checkpoint.
        args: arguments of the model.
        layout: the layout.
        prefix: beginning of the message of an error, before the size that does not fit.
    """
    if layout.pp == layout.tp == 1:
        return
    from reallm.parallel.sharding import check_fits  # imports torch, so only when it is needed

    try:
        check_fits(load_model_config(args.path, implementation=args.implementation), layout)
        for rank in layout.ranks if layout.tp > 1 else ():
            coordinate = layout.coordinate(rank)
            assert coordinate is not None
            layout.check_ascending(layout.tp_ranks(coordinate))
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error} ({key}={args.path})") from error


def check_device(name: str) -> None:
    """Check that the machine has the device."""
    if name == "cuda":
        from reallm.experiments.preflight.device import choose_device  # imports torch, so only when it is needed

        choose_device(name)
