"""Whether the memory that training takes is there, before it begins; and where it went, when it was not."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from reallm.config.args import ModelArgs
from reallm.config.training import TrainingConfig, model_args
from reallm.errors import ConfigError, ReallmError
from reallm.experiments.preflight.device import choose_device, choose_dtype
from reallm.hf.conversion.config import load_model_config
from reallm.launch.job import Job
from reallm.parallel.layout import Layout
from reallm.training.memory import MemoryEstimate, available_memory, estimate, size_text

if TYPE_CHECKING:
    from reallm.algorithms.executor import LoadedModel

TOLERANCE = 0.85
"""An estimate is held to 15 % of what is measured: what is there must be less than this share of it to be refused."""


def estimate_model(args: ModelArgs, dtype: torch.dtype, device: torch.device, largest: Sequence[int]) -> MemoryEstimate:
    """What training the model of a checkpoint takes, by its config alone.

    Args:
        args: of the model.
        dtype: it is trained in.
        device: it is trained on.
        largest: lengths of the sequences in the largest micro-batch.
    """
    return estimate(
        load_model_config(args.path), dtype, device, largest, gradient_checkpointing=args.gradient_checkpointing
    )


def cut_by_sender(whole: MemoryEstimate, layout: Layout, zero: int) -> MemoryEstimate:
    """About what one process of a layout takes of what training takes in all.

    Stages and parts of layers are taken as equal, and the sharing of activations by the stages as made up for by the
    micro-batches that are in a pipeline at a time.
    """
    n, fsdp = layout.pp * layout.tp, layout.dp if layout.fsdp else 1
    parameters = whole.parameters // (n * (fsdp if zero >= 3 else 1))
    gradients = whole.gradients // (n * (fsdp if zero >= 2 else 1))
    optimizer = whole.optimizer // (n * fsdp)
    activations = None if whole.activations is None else whole.activations // layout.tp
    alive = dataclasses.replace(
        whole, parameters=parameters, gradients=gradients, optimizer=optimizer, activations=activations, holes=0
    )
    lost = whole.holes / max(1, whole.total - whole.holes)
    return dataclasses.replace(alive, holes=int(lost * alive.total))


def memory_lines(
    config: TrainingConfig,
    trained: Sequence[str],
    largest: Sequence[int],
    job: Job,
    layouts: Mapping[str, Layout] | None,
) -> list[str]:
    """What training the models of these roles takes and what is there, to be told before anything is loaded.

    Args:
        config: of the experiment.
        trained: the roles.
        largest: lengths of the sequences in the largest micro-batch.
        job: of this process. Those of one machine share the memory of its CPUs.
        layouts: by role, of which each process takes its part; None for a process alone.

    Raises:
        ConfigError: it cannot fit, also if the estimate is too high by as much as it can be.
    """
    needed: dict[torch.device, list[MemoryEstimate]] = {}
    lines = []
    for role in trained:
        args = model_args(config, role)
        device = choose_device(args.device, job.gpu)
        one = estimate_model(args, choose_dtype(args.dtype, device), device, largest)
        if layouts is not None:
            one = cut_by_sender(one, layouts[role], config.parallel.zero)
        needed.setdefault(device, []).append(one)
        whose = "" if len(trained) == 1 else f" of {role}"
        lines.append(f"memory{whose}{'' if job.is_alone else ' of each process'}: {one}")
    for device, estimates in needed.items():
        lines += _judged(estimates, device, job.local_size if device.type == "cpu" else 1)
    return lines


def _judged(estimates: Sequence[MemoryEstimate], device: torch.device, n_sharing: int) -> list[str]:
    available = available_memory(device)
    if available is None:
        return []
    available //= n_sharing
    total, kept = sum(one.total for one in estimates), sum(one.kept for one in estimates)
    if total <= available:
        return [f"        {size_text(available)} is free on {device}"]
    remedy = (
        "lower max_tokens_per_microbatch or set model.gradient_checkpointing=full"
        if kept < available
        else "parameters, gradients and optimizer alone do not fit: train a smaller model, or use more memory"
    )
    text = f"training takes about {size_text(total)}, and {size_text(available)} is free on {device}"
    if total * TOLERANCE > available:
        raise ConfigError(f"{text}: {remedy}")
    return [f"memory is tight: {text}; if it runs out, {remedy}"]


@contextmanager
def explained_shortage(what: str, models: Mapping[str, LoadedModel], config: TrainingConfig) -> Iterator[None]:
    """Say of an allocation that failed in the block what memory was used for, and which settings would help.

    Raises:
        ReallmError: in place of torch's error.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        held = "; ".join(f"{name} {_held(loaded)}" for name, loaded in models.items())
        raise ReallmError(
            f"out of memory in {what}{f', which asked for {asked[1]} more' if asked else ''}. Allocated were: {held}; "
            f"the rest is activations. Lower max_tokens_per_microbatch={config.max_tokens_per_microbatch}"
            f"{_checkpointing_hint(models)}; results stay the same"
        ) from error


def _held(loaded: LoadedModel) -> str:
    """`parameters 0.5 GiB, gradients 0.5 GiB, optimizer 1.0 GiB` of one model."""
    parameters = list(loaded.role.model.parameters())
    parts = {"parameters": sum(parameter.nbytes for parameter in parameters)}
    if loaded.role.engine is not None:
        state = loaded.role.engine.state(weights=loaded.role.engine.has_masters)
        parts["gradients"] = sum(parameter.numel() * max(4, parameter.itemsize) for parameter in parameters)
        parts["optimizer"] = sum(tensor.nbytes for tensor in (*state.moments.values(), *state.weights.values()))
    return ", ".join(f"{name} {size_text(size)}" for name, size in parts.items())


def _checkpointing_hint(models: Mapping[str, LoadedModel]) -> str:
    roles = [name for name, loaded in models.items() if loaded.args.gradient_checkpointing != "full"]
    keys = [f"{name}.gradient_checkpointing=full" for name in roles]
    return f", or set {' and '.join(keys)}" if keys else ""
