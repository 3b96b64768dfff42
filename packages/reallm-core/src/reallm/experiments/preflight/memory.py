"""Compares the memory that training needs with the free memory before it starts; explains failed allocations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.config.training import TrainingConfig, model_args, role_optimizer
from reallm.errors import ConfigError, ReallmError
from reallm.experiments.preflight.device import choose_device, choose_dtype
from reallm.generation.memory import SHARE_OF_MEMORY
from reallm.generation.prefix_index import BLOCK_SIZE
from reallm.generation.scheduler import MAX_BATCH_SEQUENCES
from reallm.hf.conversion.config import load_model_config
from reallm.launch.job import Job
from reallm.machine_memory import available_memory
from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import adapter_dtype
from reallm.model.parameters import n_parameters, n_trained
from reallm.planning.activations import rank_activations
from reallm.planning.rank_share import RankShare
from reallm.training.memory import (
    MemoryEstimate,
    estimate,
    estimate_call,
    kv_cache_bytes,
    size_text,
)

if TYPE_CHECKING:
    from reallm.algorithms.role import Role

TOLERANCE = 0.85
"""Share of an estimate that must fit for a run to start: estimates are within 15 % of the measured memory."""


def estimate_model(
    args: ModelArgs,
    dtype: torch.dtype,
    device: torch.device,
    largest: Sequence[int],
    optimizer: OptimizerConfig,
    model: ReaLModelConfig | None = None,
) -> MemoryEstimate:
    """Estimate the memory for training the model of a checkpoint, from its config alone.

    Args:
        args: arguments of the model.
        dtype: dtype of its parameters.
        device: device on which it is trained.
        largest: lengths of the sequences in the largest micro-batch.
        optimizer: the optimizer, for the size of its state.
        model: its architecture; None: that of its checkpoint.
    """
    return estimate(
        model or load_model_config(args.path, is_critic=args.is_critic, implementation=args.implementation),
        dtype,
        device,
        largest,
        gradient_checkpointing=args.gradient_checkpointing,
        optimizer=optimizer,
    )


def split_estimate(whole: MemoryEstimate, share: RankShare, activations: int | None) -> MemoryEstimate:
    """The memory of one process of a layout, given the estimate for a single process.

    Args:
        whole: that estimate.
        share: what the fullest process holds.
        activations: bytes of activations on it.
    """
    n, trained = n_parameters(share.config), n_trained(share.config)
    parameters = share.while_trained if whole.gradients else share.while_called
    return replace(
        whole,
        parameters=whole.parameters * parameters // n,
        gradients=whole.gradients * share.gradients // trained,
        optimizer=whole.optimizer * share.held_trained // trained,
        activations=activations,
        kv_cache=int(whole.kv_cache * share.cache / share.layout.dp),
    )


@dataclass(frozen=True)
class _RoleNeeds:
    """What one role takes on a process that holds a part of it."""

    role: str
    estimate: MemoryEstimate
    device: torch.device
    ranks: frozenset[int]
    is_offloaded: bool
    """Whether its model is in the device's memory during its own calls alone."""
    is_only_before: bool
    """Whether it is called before training alone."""

    @property
    def kept(self) -> int:
        """Bytes that stay allocated while other roles are called."""
        one = self.estimate
        return 0 if self.is_offloaded else one.parameters + one.optimizer + one.copies


def memory_lines(
    config: TrainingConfig,
    graph: Graph,
    placement: Placement,
    interfaces: Mapping[str, Any],
    models: Mapping[str, ReaLModelConfig],
    largest: Mapping[str, Sequence[int]],
    batch_size: int,
    job: Job,
) -> list[str]:
    """Lines about the memory that all roles need and the free memory, to print before anything is loaded.

    Calls run one after another: beside what stays allocated, only the largest call counts.

    Args:
        config: configuration of the run.
        graph: graph of the algorithm.
        placement: where the calls are computed.
        interfaces: an instance of each role's interface class; see `GenerateInterface.planned_kv_tokens`.
        models: architecture of each role's model.
        largest: lengths of the sequences in the largest micro-batch of each role.
        batch_size: samples of a step.
        job: job of this process; processes on one machine share its main memory.

    Raises:
        ConfigError: it cannot fit, even if the estimate is too high by its largest error.
    """
    needs = [
        _needs_of(role, config, graph, placement, interfaces[role], models[role], largest[role], batch_size, job)
        for role in graph.roles
    ]
    each = "" if job.is_alone else " of each process"
    lines = []
    for one in needs:
        whose = "" if len(needs) == 1 else f" of {one.role}"
        when = ", before training unless cached" if one.is_only_before else ", offloaded" if one.is_offloaded else ""
        lines.append(f"memory{whose}{each}{when}: {one.estimate}")
    for device in dict.fromkeys(one.device for one in needs):
        on_device = [one for one in needs if one.device == device]
        rank = max(range(job.size), key=lambda rank: _peak(on_device, rank))
        if len(needs) > 1:
            lines.append(
                f"memory of all roles{each}: about {size_text(_peak(on_device, rank))} at the peak, when "
                f"{_largest(on_device, rank).role} is called"
            )
        lines += _compare(on_device, rank, device, job.local_size if device.type == "cpu" else 1)
    return lines


def _needs_of(
    role: str,
    config: TrainingConfig,
    graph: Graph,
    placement: Placement,
    interface: Any,
    model: ReaLModelConfig,
    largest: Sequence[int],
    batch_size: int,
    job: Job,
) -> _RoleNeeds:
    args, calls = model_args(config, role), [call for call in graph.calls if call.role == role]
    device = choose_device(args.device, job.gpu)
    dtype = choose_dtype(args.dtype, device)
    if role in graph.trained_roles:
        one = estimate_model(args, dtype, device, largest, role_optimizer(config, role), model)
    else:
        one = estimate_call(model, dtype, device, largest)
    planned = getattr(interface, "planned_kv_tokens", None)
    if planned is not None and any(call.kind == "generate" for call in calls):
        n_cached = planned(batch_size)
        n_sequences = min(MAX_BATCH_SEQUENCES, -(-n_cached // BLOCK_SIZE))  # the smallest rows have a block of tokens
        size, free = kv_cache_bytes(model, dtype, n_cached, n_sequences), available_memory(device)
        # with less room, sequences wait for each other
        size = size if free is None else min(size, int(SHARE_OF_MEMORY * free))
        one = replace(one, n_cached=n_cached, kv_cache=size)
    if role in placement.shared and role in graph.roles_of_steps:  # it has at most an adapter of its own
        one = replace(one, parameters=(n_parameters(model) - n_parameters(model.base)) * adapter_dtype(dtype).itemsize)
    home, *others = placement.copies(role)
    if not job.is_alone:
        zero, checkpointing = config.parallel.zero, args.gradient_checkpointing if one.gradients else None
        activations = rank_activations(model, home.tp, dtype, device, largest, checkpointing)
        if activations is not None and one.gradients and dtype.itemsize < 4:
            activations += RankShare(model, home, zero).gradients * dtype.itemsize
        copies = sum(RankShare(model, layout, zero).gathered * dtype.itemsize for layout in others)
        one = replace(split_estimate(one, RankShare(model, home, zero), activations), copies=copies)
    return _RoleNeeds(
        role,
        one,
        device,
        frozenset(rank for layout in (home, *others) for rank in layout.ranks),
        all(call.name in placement.offloaded and call.name not in placement.prefetched for call in calls),
        role not in graph.roles_of_steps,
    )


def _peak_in(needs: Sequence[_RoleNeeds], rank: int, called: _RoleNeeds) -> int:
    """Bytes on a rank during the largest call to one of the roles."""
    others = [one for one in needs if rank in one.ranks and one != called and not one.is_only_before]
    alive = called.estimate.persistent + called.estimate.transient
    alive += 0 if called.is_only_before else sum(one.kept for one in others)
    return alive + called.estimate.fragmentation


def _peak(needs: Sequence[_RoleNeeds], rank: int) -> int:
    """The most bytes on a rank at any time."""
    return max((_peak_in(needs, rank, one) for one in needs if rank in one.ranks), default=0)


def _largest(needs: Sequence[_RoleNeeds], rank: int) -> _RoleNeeds:
    """The role in whose call the peak is."""
    return max((one for one in needs if rank in one.ranks), key=lambda one: _peak_in(needs, rank, one))


def _compare(needs: Sequence[_RoleNeeds], rank: int, device: torch.device, n_sharing: int) -> list[str]:
    available = available_memory(device)
    if available is None:
        return []
    available //= n_sharing
    total = _peak(needs, rank)
    if total <= available:
        return [f"        {size_text(available)} is free on {device}"]
    here = [one for one in needs if rank in one.ranks and not one.is_only_before]
    kept = sum(one.kept for one in here) + max((one.estimate.gradients for one in here), default=0)
    called = _largest(needs, rank)
    remedy = f"lower {'' if len(needs) == 1 else f'{called.role}.'}max_tokens_per_microbatch"
    if called.estimate.gradients:
        name = called.role if len(needs) > 1 else "model"
        remedy += f" or set {name}.gradient_checkpointing=full"
    if kept >= available:
        remedy = (
            "parameters, gradients and optimizer alone do not fit: train a smaller model, or use more memory"
            if len(needs) == 1
            else "parameters, gradients and optimizers alone do not fit: offload a role between its calls "
            "(<call>.offload=true), take smaller models, or use more memory"
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
        sizes["gradients"] = sum(each.numel() * max(4, each.itemsize) for each in parameters if each.requires_grad)
        sizes["optimizer"] = sum(tensor.nbytes for tensor in (*state.moments.values(), *state.weights.values()))
    return ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items())


def _checkpointing_hint(roles: Mapping[str, Role]) -> str:
    keys = [
        f"{name}.gradient_checkpointing=full"
        for name, role in roles.items()
        if role.args.gradient_checkpointing != "full"
    ]
    return f", or set {' and '.join(keys)}" if keys else ""
