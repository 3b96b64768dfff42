"""Checks of what training needs: fresh weights, gradient checkpointing, the statistics of routers."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

import torch
from torch import Tensor

from reallm.hf.conversion.state_dict import state_dict_from_hf
from reallm.model.config import GradientCheckpointing, ReaLModelConfig
from reallm.model.linear_cross_entropy import next_token_targets
from reallm.model.parameter_names import module_of, path_in_layer
from reallm.model.router_stats import RouterStatsLog
from reallm.model.transformer import Transformer
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.families.numbers import logits, packing
from reallm_devkit.testing.families.reference import fresh_state, packed, quiet
from reallm_devkit.testing.families.subject import FamilySubject, empty_network, own_class, own_classes, run_packed

MOST_FROM_UNIFORM = 0.5
"""How far, in nats, the loss of a fresh model may be from that of guessing."""
MOST_FRESH = 0.01
"""Relative: transformers makes some constants in bfloat16, which has three digits."""
MOST_CHECKPOINTED = 1e-6
"""Of gradients with and without checkpointing, relative to the largest; they are the same operations again."""
MOST_AUX_LOSS = 1e-5


@check(needs=[logits])
@torch.no_grad()
def initialisation(subject: FamilySubject) -> str:
    """fresh weights follow from the seed, and know nothing yet"""
    model, again, other = (empty_network(subject.config) for _ in range(3))
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
        raise CheckFailed("other weights from another seed", "the same", look_at=own_classes(subject))
    n_constant = _check_constants(subject, model)
    tokens, cu_seqlens = subject.packed
    at, targets = next_token_targets(tokens, cu_seqlens, torch.ones_like(tokens, dtype=torch.bool))
    loss = float(torch.nn.functional.cross_entropy(run_packed(model.eval(), tokens, cu_seqlens)[at], targets))
    uniform = math.log(subject.config.vocab_size)
    if not abs(loss - uniform) <= MOST_FROM_UNIFORM:
        raise CheckFailed(
            f"a loss of about {uniform:.2f}, that of guessing one of {subject.config.vocab_size} tokens",
            f"{loss:.2f}",
            "the network with fresh weights",
            own_classes(subject) or subject.at(["init_std", "norm_offset", "embedding_multiplier"]),
        )
    return f"{n_constant} parameters begin as in transformers; loss {loss:.2f}, that of guessing {uniform:.2f}"


def _check_constants(subject: FamilySubject, model: Transformer) -> int:
    """Parameters that begin with one number in transformers begin with that number; how many they are."""
    family, config = subject.family, subject.config
    fresh = [state_dict_from_hf(family, fresh_state(subject.raw, seed), config) for seed in (0, 1)]
    n_constant = 0
    for name, parameter in model.named_parameters():
        theirs, number = fresh[0][name], float(fresh[0][name].flatten()[0])
        if not (torch.equal(theirs, fresh[1][name]) and bool((theirs == number).all())):
            continue  # random, or a number for each place
        n_constant += 1
        if not torch.allclose(parameter, theirs.to(parameter.dtype), rtol=MOST_FRESH, atol=0.0):
            owner = model.get_submodule(module_of(name))
            how = "" if hasattr(owner, "fresh_parameter") else ": give its module a fresh_parameter(name, generator)"
            raise CheckFailed(
                f"{number:.6g}, with which {subject.architecture} begins{how}",
                f"{float(parameter.flatten()[0]):.6g}",
                f"parameter '{name}' of a fresh model",
                own_class(model, module_of(name)) or subject.at(["norm_offset"], [path_in_layer(name)]),
            )
    return n_constant


@check(needs=[packing])
def checkpointing(subject: FamilySubject) -> str:
    """gradients are the same, whatever the backward pass computes again"""
    model = empty_network(without_noise(subject.config))
    model.load_state_dict(subject.ours.state_dict())
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
            reason = " ".join(str(error).split())
            where = f"gradient_checkpointing='{mode}'"
            raise CheckFailed("a backward pass", reason, where, own_classes(subject)) from error
        by_name = zip(trained, gradients, strict=True)
        found[mode] = {name: gradient for name, gradient in by_name if gradient is not None}
    for mode, gradients_of_mode in found.items():
        for name, expected in found["none"].items():
            gradient = gradients_of_mode.get(name, torch.zeros_like(expected))
            difference = float((gradient - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
            if not difference <= MOST_CHECKPOINTED:
                raise CheckFailed(
                    "the gradient without checkpointing",
                    f"it differs by {difference:.2g}, relative to its largest",
                    f"gradient_checkpointing='{mode}', parameter '{name}'",
                    own_classes(subject) or _owner(model, name),
                )
    return f"{', '.join(found)}: {len(found['none'])} gradients"


@check(needs=[logits])
def experts(subject: FamilySubject) -> str:
    """the load-balancing loss of the routers is that of transformers"""
    config = subject.config
    if config.moe is None:
        raise Skipped("this configuration has no experts")
    from reallm.model.moe.layer import load_balancing_loss

    model = empty_network(without_noise(config))
    model.load_state_dict(subject.ours.state_dict())
    model.train()
    sample = max(subject.samples, key=len)
    model.router_stats = notes = RouterStatsLog()
    run_packed(model, *packed([sample]))
    stats = notes.close()
    n_layers = len(config.expert_blocks)
    if len(stats) != n_layers:
        expected = f"statistics of {n_layers} routers in training"
        raise CheckFailed(expected, f"of {len(stats)}", look_at=own_classes(subject) or subject.at(["moe"]))
    with quiet(), torch.no_grad():
        outputs = subject.theirs(sample[None], output_router_logits=True, use_cache=False)
    theirs = getattr(outputs, "aux_loss", None)
    if theirs is None:
        raise Skipped(f"{subject.architecture} has no load-balancing loss to compare with")
    found, expected_loss = float(load_balancing_loss(stats).detach()), float(theirs)
    if not abs(found - expected_loss) <= MOST_AUX_LOSS * max(1.0, expected_loss):
        look_at = own_classes(subject) or subject.at(["moe", "top_k", "n_experts"])
        raise CheckFailed(f"a load-balancing loss of {expected_loss:.6f}", f"{found:.6f}", look_at=look_at)
    return f"{n_layers} routers, loss {found:.4f}"


def without_noise(config: ReaLModelConfig) -> ReaLModelConfig:
    """The same without dropout and jitter, so that training computes what evaluation does."""
    moe = config.moe and dataclasses.replace(config.moe, jitter=0.0)
    return config.replace(moe=moe, embedding_dropout=0.0, attn_dropout=0.0, residual_dropout=0.0)


def _owner(model: Transformer, name: str) -> str:
    """Where the class that owns a parameter is written."""
    from reallm_devkit.testing.source import location

    return location(type(model.get_submodule(module_of(name))))
