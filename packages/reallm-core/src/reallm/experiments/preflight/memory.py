"""Compares the memory that training needs with the free memory before it starts; explains failed allocations."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.config.training import TrainingConfig, model_args
from reallm.errors import ConfigError, ReallmError
from reallm.experiments.preflight.device import choose_device, choose_dtype
from reallm.hf.conversion.config import load_model_config
from reallm.launch.job import Job
from reallm.machine_memory import available_memory
from reallm.parallel.layout import Layout
from reallm.training.memory import MemoryEstimate, estimate, size_text

if TYPE_CHECKING:
    from reallm.algorithms.role import Role

TOLERANCE = 0.85
"""Share of an estimate that must fit for a run to start: estimates are within 15 % of the measured memory."""


def estimate_model(
    args: ModelArgs, dtype: torch.dtype, device: torch.device, largest: Sequence[int], optimizer: OptimizerConfig
) -> MemoryEstimate:
    """Estimate the memory for training the model of a checkpoint, from its config alone.

    Args:
        args: arguments of the model.
        dtype: dtype of its parameters.
        device: device on which it is trained.
        largest: lengths of the sequences in the largest micro-batch.
        optimizer: the optimizer, for the size of its state.
    """
    return estimate(
        load_model_config(args.path),
        dtype,
        device,
        largest,
        gradient_checkpointing=args.gradient_checkpointing,
        optimizer=optimizer,
    )


def split_estimate(whole: MemoryEstimate, layout: Layout, zero: int) -> MemoryEstimate:
    """Approximate memory of one process of a layout, given the estimate for a single process.

    Stages and shards are assumed to be of equal size. Activations are not divided by `pp`: each stage holds the
    activations of fewer layers, but of several micro-batches at a time.
    """
    n, fsdp = layout.pp * layout.tp, layout.dp if layout.fsdp else 1
    parameters = whole.parameters // (n * (fsdp if zero >= 3 else 1))
    gradients = whole.gradients // (n * (fsdp if zero >= 2 else 1))
    optimizer = whole.optimizer // (n * fsdp)
    activations = None if whole.activations is None else whole.activations // layout.tp
    alive = dataclasses.replace(
        whole, parameters=parameters, gradients=gradients, optimizer=optimizer, activations=activations, fragmentation=0
    )
    lost = whole.fragmentation / max(1, whole.total - whole.fragmentation)
    return dataclasses.replace(alive, fragmentation=int(lost * alive.total))


def memory_lines(
    config: TrainingConfig,
    trained: Sequence[str],
    largest: Sequence[int],
    job: Job,
    layouts: Mapping[str, Layout] | None,
) -> list[str]:
    """Lines about the memory that training needs and the free memory, to print before anything is loaded.

    Args:
        config: configuration of the run.
        trained: the roles that are trained.
        largest: lengths of the sequences in the largest micro-batch.
        job: job of this process; processes on one machine share its main memory.
        layouts: layout of each role; None for a single process.

    Raises:
        ConfigError: training cannot fit, even if the estimate is too high by its largest error.
    """
    needed: dict[torch.device, list[MemoryEstimate]] = {}
    lines = []
    for role in trained:
        args = model_args(config, role)
        device = choose_device(args.device, job.gpu)
        one = estimate_model(args, choose_dtype(args.dtype, device), device, largest, config.optimizer)
        if layouts is not None:
            one = split_estimate(one, layouts[role], config.parallel.zero)
        needed.setdefault(device, []).append(one)
        whose = "" if len(trained) == 1 else f" of {role}"
        lines.append(f"memory{whose}{'' if job.is_alone else ' of each process'}: {one}")
    for device, estimates in needed.items():
        lines += _compare(estimates, device, job.local_size if device.type == "cpu" else 1)
    return lines


def _compare(estimates: Sequence[MemoryEstimate], device: torch.device, n_sharing: int) -> list[str]:
    available = available_memory(device)
    if available is None:
        return []
    available //= n_sharing
    total, kept = sum(one.total for one in estimates), sum(one.persistent for one in estimates)
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
def explained_shortage(what: str, roles: Mapping[str, Role], config: TrainingConfig) -> Iterator[None]:
    """Context that replaces a failed allocation's error by one that lists the uses of memory and the remedies.

    Args:
        what: activity of the block, which completes the message `out of memory in`.
        roles: roles whose models are in memory.
        config: configuration of the run.

    Raises:
        ReallmError: in place of torch's error.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        held = "; ".join(f"{name} {_held(role)}" for name, role in roles.items())
        raise ReallmError(
            f"out of memory in {what}{f', which asked for {asked[1]} more' if asked else ''}. Allocated: {held}; "
            f"the rest is activations. Lower max_tokens_per_microbatch={config.max_tokens_per_microbatch}"
            f"{_checkpointing_hint(roles)}; results stay the same"
        ) from error


def _held(role: Role) -> str:
    """`parameters 0.5 GiB, gradients 0.5 GiB, optimizer 1.0 GiB` of a role's model."""
    parameters = list(role.model.parameters())
    sizes = {"parameters": sum(parameter.nbytes for parameter in parameters)}
    if role.engine is not None:
        state = role.engine.state(weights=role.engine.has_masters)
        sizes["gradients"] = sum(parameter.numel() * max(4, parameter.itemsize) for parameter in parameters)
        sizes["optimizer"] = sum(tensor.nbytes for tensor in (*state.moments.values(), *state.weights.values()))
    return ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items())


def _checkpointing_hint(roles: Mapping[str, Role]) -> str:
    keys = [
        f"{name}.gradient_checkpointing=full"
        for name, role in roles.items()
        if role.args.gradient_checkpointing != "full"
    ]
    return f", or set {' and '.join(keys)}" if keys else ""
