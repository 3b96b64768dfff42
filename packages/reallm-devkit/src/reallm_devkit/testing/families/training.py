"""Checks for training: initial weights, gradient checkpointing, router statistics."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

import torch
from torch import Tensor

from reallm.errors import one_line
from reallm.hf.conversion.state_dict import state_dict_from_hf
from reallm.model.config import GradientCheckpointing, ReaLModelConfig
from reallm.model.linear_cross_entropy import next_token_targets
from reallm.model.parameter_names import module_of, path_in_layer
from reallm.model.router_stats import RouterStatsLog
from reallm.model.transformer import Transformer
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.families.numerics import logits, packing
from reallm_devkit.testing.families.reference import fresh_state, pack, quiet
from reallm_devkit.testing.families.subject import (
    FamilySubject,
    custom_class_location,
    custom_layers_location,
    run_packed,
)
from reallm_devkit.testing.source import location

MAX_FROM_UNIFORM = 0.5
"""Largest distance, in nats, of the loss of an initialised model from that of a uniform guess."""
CONSTANT_TOLERANCE = 0.01
"""Relative; transformers initialises some constants in bfloat16, which has three digits."""
CHECKPOINTING_TOLERANCE = 1e-6
"""Largest difference of gradients with and without checkpointing, relative to the largest gradient."""
AUX_LOSS_TOLERANCE = 1e-5


@check(needs=[logits])
@torch.no_grad()
def initialisation(subject: FamilySubject) -> str:
    """initial weights depend on the seed alone, and the loss is that of a uniform guess"""
    model, again, other = (Transformer(subject.config) for _ in range(3))
    for network, seed in ((model, 0), (again, 0), (other, 1)):
        for parameter in network.parameters():
            parameter.fill_(float("nan"))
        network.init_weights(seed)
    for (name, one), two in zip(model.named_parameters(), again.parameters(), strict=True):
        if not one.isfinite().all():
            raise CheckFailed("finite weights", "some that are not", f"'{name}'", _owner(model, name))
        if not torch.equal(one, two):
            raise CheckFailed("the same weights from the same seed", "others", f"'{name}'", _owner(model, name))
    if all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True)):
        raise CheckFailed("other weights from another seed", "the same", look_at=custom_layers_location(subject))
    n_constant = _check_constants(subject, model)
    tokens, cu_seqlens = subject.packed
    at, targets = next_token_targets(tokens, cu_seqlens, torch.ones_like(tokens, dtype=torch.bool))
    loss = float(torch.nn.functional.cross_entropy(run_packed(model.eval(), tokens, cu_seqlens)[at], targets))
    uniform = math.log(subject.config.vocab_size)
    if not abs(loss - uniform) <= MAX_FROM_UNIFORM:
        raise CheckFailed(
            f"a loss of about {uniform:.2f}, that of guessing one of {subject.config.vocab_size} tokens",
            f"{loss:.2f}",
            "the network with fresh weights",
            custom_layers_location(subject) or subject.at(["init_std", "norm_offset", "embedding_multiplier"]),
        )
    return f"{n_constant} parameters begin as in transformers; loss {loss:.2f}, that of guessing {uniform:.2f}"


def _check_constants(subject: FamilySubject, model: Transformer) -> int:
    """Check that parameters which transformers initialises to a constant have that constant; returns their number."""
    family, config = subject.family, subject.config
    fresh = [state_dict_from_hf(family, fresh_state(subject.raw, seed), config) for seed in (0, 1)]
    n_constant = 0
    for name, parameter in model.named_parameters():
        theirs, number = fresh[0][name], float(fresh[0][name].flatten()[0])
        if not (torch.equal(theirs, fresh[1][name]) and bool((theirs == number).all())):
            continue  # random, or not constant
        n_constant += 1
        if not torch.allclose(parameter, theirs.to(parameter.dtype), rtol=CONSTANT_TOLERANCE, atol=0.0):
            owner = model.get_submodule(module_of(name))
            how = "" if hasattr(owner, "fresh_parameter") else ": give its module a fresh_parameter(name, generator)"
            raise CheckFailed(
                f"{number:.6g}, with which {subject.architecture} begins{how}",
                f"{float(parameter.flatten()[0]):.6g}",
                f"parameter '{name}' of a fresh model",
                custom_class_location(model, module_of(name)) or subject.at(["norm_offset"], [path_in_layer(name)]),
            )
    return n_constant


@check(needs=[packing])
def checkpointing(subject: FamilySubject) -> str:
    """gradients are the same in every mode of gradient checkpointing"""
    model = Transformer(without_noise(subject.config))
    model.load_state_dict(subject.model.state_dict())
    model.train()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found: dict[str, dict[str, Tensor]] = {}
    for mode in get_args(GradientCheckpointing):
        model.gradient_checkpointing = mode
        try:
            out = run_packed(model, *subject.packed)
            gradients = torch.autograd.grad(
                out.logsumexp(-1).sum() + out[:, 0].sum(), list(trained.values()), allow_unused=True
            )
        except RuntimeError as error:
            reason = one_line(error)
            where = f"gradient_checkpointing='{mode}'"
            raise CheckFailed("a backward pass", reason, where, custom_layers_location(subject)) from error
        by_name = zip(trained, gradients, strict=True)
        found[mode] = {name: gradient for name, gradient in by_name if gradient is not None}
    for mode, gradients_of_mode in found.items():
        for name, expected in found["none"].items():
            gradient = gradients_of_mode.get(name, torch.zeros_like(expected))
            difference = float((gradient - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
            if not difference <= CHECKPOINTING_TOLERANCE:
                raise CheckFailed(
                    "the gradient without checkpointing",
                    f"it differs by {difference:.2g}, relative to its largest",
                    f"gradient_checkpointing='{mode}', parameter '{name}'",
                    custom_layers_location(subject) or _owner(model, name),
                )
    return f"{', '.join(found)}: {len(found['none'])} gradients"


@check(needs=[logits])
def experts(subject: FamilySubject) -> str:
    """the load-balancing loss of the routers is that of transformers"""
    config = subject.config
    if config.moe is None:
        raise Skipped("this configuration has no experts")
    from reallm.model.moe.layer import load_balancing_loss

    model = Transformer(without_noise(config))
    model.load_state_dict(subject.model.state_dict())
    model.train()
    sample = max(subject.samples, key=len)
    model.router_stats = log = RouterStatsLog()
    run_packed(model, *pack([sample]))
    stats = log.close()
    n_layers = len(config.expert_blocks)
    if len(stats) != n_layers:
        expected = f"statistics of {n_layers} routers in training"
        raise CheckFailed(expected, f"of {len(stats)}", look_at=custom_layers_location(subject) or subject.at(["moe"]))
    with quiet(), torch.no_grad():
        outputs = subject.hf_model(sample[None], output_router_logits=True, use_cache=False)
    theirs = getattr(outputs, "aux_loss", None)
    if theirs is None:
        raise Skipped(f"{subject.architecture} has no load-balancing loss to compare with")
    found, expected_loss = float(load_balancing_loss(stats).detach()), float(theirs)
    if not abs(found - expected_loss) <= AUX_LOSS_TOLERANCE * max(1.0, expected_loss):
        look_at = custom_layers_location(subject) or subject.at(["moe", "top_k", "n_experts"])
        raise CheckFailed(f"a load-balancing loss of {expected_loss:.6f}", f"{found:.6f}", look_at=look_at)
    return f"{n_layers} routers, loss {found:.4f}"


def without_noise(config: ReaLModelConfig) -> ReaLModelConfig:
    """The configuration without dropout and jitter, so that training mode computes the same as evaluation mode."""
    moe = config.moe and dataclasses.replace(config.moe, jitter=0.0)
    return config.replace(moe=moe, embedding_dropout=0.0, attn_dropout=0.0, residual_dropout=0.0)


def _owner(model: Transformer, name: str) -> str:
    """The location of the class of the module that owns a parameter."""
    return location(type(model.get_submodule(module_of(name))))
