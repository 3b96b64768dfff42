"""Checks of logits and gradients, against transformers and between packs and single sequences.

Shapes: T packed tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from reallm.hf.conversion.state_dict import state_dict_from_hf
from reallm.hf.conversion.transformers_io import checkpoint_state
from reallm.model.parameter_names import module_of, path_in_layer
from reallm_devkit.testing.checks import CheckFailed, check
from reallm_devkit.testing.families.closeness import LOGITS_TOLERANCE, max_difference, tolerance_scale
from reallm_devkit.testing.families.diagnosis import find_divergence
from reallm_devkit.testing.families.reference import SEED, logits_of, pack
from reallm_devkit.testing.families.subject import (
    FamilySubject,
    custom_class_location,
    custom_layers_location,
    run_packed,
)
from reallm_devkit.testing.families.tensors import state_dict

M = TypeVar("M", bound=nn.Module)

GRADIENT_TOLERANCE = 5e-5
"""Largest difference of gradients, relative to the parameter's largest gradient or, if that is more, to a hundredth of
the largest one of all: smaller gradients are rounding of terms that cancel (a bias of keys has no effect)."""
MAX_BF16_ERROR_RATIO = 1.3
"""Largest ratio of our error of bfloat16 logits against float32 to that of transformers. An error is the median over
tokens of the root mean square; a median, since rounding may send single tokens to other experts. The families of reallm
have ratios of 0.85 to 1.17."""


@check(needs=[state_dict])
def packing(subject: FamilySubject) -> str:
    """each sequence of a pack is computed as if it were alone"""
    with torch.no_grad():
        alone = torch.cat([run_packed(subject.model, *pack([sample])) for sample in subject.samples])
    difference, row, _ = max_difference(subject.logits, alone)
    if not difference <= LOGITS_TOLERANCE * tolerance_scale(alone):
        raise CheckFailed(
            f"logits of the pack within {LOGITS_TOLERANCE:.0e} of those of each sequence alone",
            f"they differ by up to {difference:.2g}",
            subject.token_position(row),
            custom_layers_location(subject) or subject.at(["attention", "sliding_window", "rope"]),
        )
    return f"{len(subject.samples)} sequences in {len(alone)} tokens, within {difference:.1e}"


@check(needs=[packing])
def logits(subject: FamilySubject) -> str:
    """logits are those of transformers in float32"""
    expected = subject.expected
    difference, row, token = max_difference(subject.logits, expected)
    if not difference <= LOGITS_TOLERANCE * tolerance_scale(expected):
        divergence = find_divergence(subject)
        raise CheckFailed(
            f"logits of {subject.architecture} within {LOGITS_TOLERANCE:.0e}; they reach {expected.abs().max():.2g}",
            f"they differ by up to {difference:.2g}",
            f"{subject.token_position(row)}, vocabulary {token}; it begins here: {divergence.where}",
            divergence.look_at,
        )
    return f"within {difference:.1e}, where logits reach {expected.abs().max():.2g}"


@check(needs=[logits])
def gradients(subject: FamilySubject) -> str:
    """the gradient of every parameter is that of transformers in float32"""
    direction = torch.randn(subject.expected.shape, generator=torch.Generator().manual_seed(SEED))
    (run_packed(subject.model, *subject.packed) * direction).sum().backward()
    (logits_of(subject.hf_model, subject.samples) * direction).sum().backward()
    ours = {name: _pop_gradient(parameter) for name, parameter in subject.model.named_parameters()}
    trained = [(name, parameter) for name, parameter in subject.hf_model.named_parameters() if parameter.requires_grad]
    theirs = {name: _pop_gradient(parameter) for name, parameter in trained}
    expected = state_dict_from_hf(subject.family, checkpoint_state(subject.hf_model, theirs), subject.config)
    _check_same_are_trained(subject, ours, expected)
    floor = max(float(gradient.abs().max()) for gradient in expected.values()) / 100
    worst = 0.0
    for name, gradient in sorted(
        expected.items(), key=lambda item: bool(ours[item[0]].any())
    ):  # parameters without any gradient first
        difference = float((ours[name] - gradient).abs().max()) / max(float(gradient.abs().max()), floor)
        if not difference <= GRADIENT_TOLERANCE:
            module = path_in_layer(name)
            expected_gradient = f"a gradient within {GRADIENT_TOLERANCE:.0e} of that of {subject.architecture}"
            raise CheckFailed(
                f"{expected_gradient}, relative to its largest",
                "no gradient at all" if not ours[name].any() else f"it differs by {difference:.2g}",
                f"parameter '{name}'",
                custom_class_location(subject.model, module_of(name)) or subject.at((), [module]),
            )
        worst = max(worst, difference)
    n_others = len(ours) - len(expected)
    others = f", and {n_others} that are not trained" if n_others else ""
    return f"{len(expected)} parameters{others}, within {worst:.1e}"


def _check_same_are_trained(subject: FamilySubject, ours: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that both train the same parameters. A buffer of transformers is a parameter without gradient in ours."""
    for name, parameter in subject.model.named_parameters():
        look_at = custom_class_location(subject.model, module_of(name)) or subject.at((), [path_in_layer(name)])
        if name not in expected and ours[name].any():
            raise CheckFailed(
                f"no gradient, since {subject.architecture} has it as a buffer, or does not train it: "
                "nn.Parameter(..., requires_grad=False)",
                f"a gradient of up to {ours[name].abs().max():.2g}",
                f"parameter '{name}'",
                look_at,
            )
        if name in expected and not parameter.requires_grad:
            raise CheckFailed(
                f"a parameter that is trained, as in {subject.architecture}",
                "requires_grad=False",
                f"parameter '{name}'",
                look_at,
            )


@check(needs=[logits])
def bf16(subject: FamilySubject) -> str:
    """in bfloat16, logits are as near to those in float32 as transformers' are"""
    with torch.no_grad():
        theirs = logits_of(_bf16_copy(subject.hf_model), subject.samples)
        ours = _bf16_logits(subject)
    our_error, their_error = (_median_rms(found - subject.expected) for found in (ours, theirs))
    if not our_error <= MAX_BF16_ERROR_RATIO * their_error:
        raise CheckFailed(
            f"an error of at most {MAX_BF16_ERROR_RATIO} times that of transformers in bfloat16, which is "
            f"{their_error:.2g}",
            f"an error of {our_error:.2g}",
            "root mean square of a token's logits against float32, median over tokens",
            custom_layers_location(subject)
            or subject.at(["norm", "embedding_multiplier", "attn_softcap", "logit_softcap"]),
        )
    return f"error {our_error:.2g}, that of transformers {their_error:.2g}"


def _bf16_logits(subject: FamilySubject) -> Tensor:
    """Our logits [T, V] in bfloat16.

    Raises:
        CheckFailed: they are not bfloat16, such as when a custom layer returned float32.
    """
    model, other_dtypes = _bf16_copy(subject.model), dict[str, torch.dtype]()

    def register(path: str, module: nn.Module) -> None:
        def record(_: object, __: object, out: object) -> None:
            if isinstance(out, Tensor) and out.is_floating_point() and out.dtype != torch.bfloat16:
                other_dtypes.setdefault(path, out.dtype)

        module.register_forward_hook(record)

    for path, module in model.named_modules():
        register(path, module)
    try:
        logits = run_packed(model, *subject.packed)
        seen = f"{logits.dtype}"
    except RuntimeError as error:
        if not any(custom_class_location(model, path) for path in other_dtypes):
            raise
        logits, seen = None, f"raised RuntimeError: {error}"
    if logits is not None and logits.dtype == torch.bfloat16:
        return logits
    path = next((path for path in other_dtypes if custom_class_location(model, path)), "")
    raise CheckFailed(
        "bfloat16 logits of bfloat16 parameters",
        seen,
        f"{path} gives {other_dtypes[path]}" if path else "",
        custom_class_location(model, path) or subject.lines.family_line(),
    )


def _pop_gradient(parameter: nn.Parameter) -> Tensor:
    """Return and clear the gradient of a parameter; zeros if it has none."""
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient


def _bf16_copy(model: M) -> M:
    nn.Module.to(copied := copy.deepcopy(model), torch.bfloat16)
    return copied


def _median_rms(errors: Tensor) -> float:
    return float(errors.float().square().mean(dim=-1).sqrt().median())
