"""Checks of what the network computes, against transformers and against itself.

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
from reallm_devkit.testing.families.closeness import MOST_LOGITS, largest, scale
from reallm_devkit.testing.families.diagnosis import first_difference
from reallm_devkit.testing.families.reference import SEED, logits_of, packed
from reallm_devkit.testing.families.subject import FamilySubject, own_class, own_classes, run_packed
from reallm_devkit.testing.families.tensors import state_dict

M = TypeVar("M", bound=nn.Module)

MOST_GRADIENTS = 5e-5
"""Of each parameter's gradient, relative to its largest number. Where that is below a hundredth of the largest of all,
it is rounding of larger numbers that cancel (a bias of keys has no effect), and is taken relative to those."""
MOST_BF16 = 1.3
"""Error of bfloat16 logits against float32, ours relative to that of transformers: the median over tokens of the root
mean square. A median, since rounding may send a single token to other experts. Our own families have 0.85 to 1.17."""


@check(needs=[state_dict])
def packing(subject: FamilySubject) -> str:
    """each sequence of a pack is computed as if it were alone"""
    with torch.no_grad():
        alone = torch.cat([run_packed(subject.ours, *packed([sample])) for sample in subject.samples])
    difference, row, _ = largest(subject.logits, alone)
    if not difference <= MOST_LOGITS * scale(alone):
        raise CheckFailed(
            f"logits of the pack within {MOST_LOGITS:.0e} of those of each sequence alone",
            f"they differ by up to {difference:.2g}",
            subject.place(row),
            own_classes(subject) or subject.at(["attention", "sliding_window", "rope"]),
        )
    return f"{len(subject.samples)} sequences in {len(alone)} tokens, within {difference:.1e}"


@check(needs=[packing])
def logits(subject: FamilySubject) -> str:
    """logits are those of transformers in float32"""
    expected = subject.expected
    difference, row, token = largest(subject.logits, expected)
    if not difference <= MOST_LOGITS * scale(expected):
        place = first_difference(subject)
        raise CheckFailed(
            f"logits of {subject.architecture} within {MOST_LOGITS:.0e}; they reach {expected.abs().max():.2g}",
            f"they differ by up to {difference:.2g}",
            f"{subject.place(row)}, vocabulary {token}; it begins here: {place.where}",
            place.look_at,
        )
    return f"within {difference:.1e}, where logits reach {expected.abs().max():.2g}"


@check(needs=[logits])
def gradients(subject: FamilySubject) -> str:
    """the gradient of every parameter is that of transformers in float32"""
    direction = torch.randn(subject.expected.shape, generator=torch.Generator().manual_seed(SEED))
    (run_packed(subject.ours, *subject.packed) * direction).sum().backward()
    (logits_of(subject.theirs, subject.samples) * direction).sum().backward()
    ours = {name: _taken(parameter) for name, parameter in subject.ours.named_parameters()}
    trained = [(name, parameter) for name, parameter in subject.theirs.named_parameters() if parameter.requires_grad]
    theirs = {name: _taken(parameter) for name, parameter in trained}
    expected = state_dict_from_hf(subject.family, checkpoint_state(subject.theirs, theirs), subject.config)
    _check_same_are_trained(subject, ours, expected)
    floor = max(float(gradient.abs().max()) for gradient in expected.values()) / 100
    worst = 0.0
    for name, gradient in sorted(expected.items(), key=lambda item: bool(ours[item[0]].any())):  # none at all first
        difference = float((ours[name] - gradient).abs().max()) / max(float(gradient.abs().max()), floor)
        if not difference <= MOST_GRADIENTS:
            module = path_in_layer(name)
            raise CheckFailed(
                f"a gradient within {MOST_GRADIENTS:.0e} of that of {subject.architecture}, relative to its largest",
                "no gradient at all" if not ours[name].any() else f"it differs by {difference:.2g}",
                f"parameter '{name}'",
                own_class(subject.ours, module_of(name)) or subject.at((), [module]),
            )
        worst = max(worst, difference)
    n_others = len(ours) - len(expected)
    others = f", and {n_others} that are not trained" if n_others else ""
    return f"{len(expected)} parameters{others}, within {worst:.1e}"


def _check_same_are_trained(subject: FamilySubject, ours: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """What transformers trains we train, and nothing else: what it has as a buffer is a parameter of ours."""
    for name, parameter in subject.ours.named_parameters():
        look_at = own_class(subject.ours, module_of(name)) or subject.at((), [path_in_layer(name)])
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
        theirs = logits_of(_in_bf16(subject.theirs), subject.samples)
        ours = _bf16_logits(subject)
    our_error, their_error = (_typical(found - subject.expected) for found in (ours, theirs))
    if not our_error <= MOST_BF16 * their_error:
        raise CheckFailed(
            f"an error of at most {MOST_BF16} times that of transformers in bfloat16, which is {their_error:.2g}",
            f"an error of {our_error:.2g}",
            "root mean square of a token's logits against float32, median over tokens",
            own_classes(subject) or subject.at(["norm", "embedding_multiplier", "attn_softcap", "logit_softcap"]),
        )
    return f"error {our_error:.2g}, that of transformers {their_error:.2g}"


def _bf16_logits(subject: FamilySubject) -> Tensor:
    """Our logits [T, V] in bfloat16; where there are none, a layer of the family's own may have given float32."""
    model, others = _in_bf16(subject.ours), dict[str, torch.dtype]()

    def listen(path: str, module: nn.Module) -> None:
        def note(_: object, __: object, out: object) -> None:
            if isinstance(out, Tensor) and out.is_floating_point() and out.dtype != torch.bfloat16:
                others.setdefault(path, out.dtype)

        module.register_forward_hook(note)

    for path, module in model.named_modules():
        listen(path, module)
    try:
        logits = run_packed(model, *subject.packed)
        seen = f"{logits.dtype}"
    except RuntimeError as error:
        if not any(own_class(model, path) for path in others):
            raise
        logits, seen = None, f"raised RuntimeError: {error}"
    if logits is not None and logits.dtype == torch.bfloat16:
        return logits
    path = next((path for path in others if own_class(model, path)), "")
    raise CheckFailed(
        "bfloat16 logits of bfloat16 parameters",
        seen,
        f"{path} gives {others[path]}" if path else "",
        own_class(model, path) or subject.lines.family_line(),
    )


def _taken(parameter: nn.Parameter) -> Tensor:
    """The gradient, which the parameter does not keep."""
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient


def _in_bf16(model: M) -> M:
    nn.Module.to(copied := copy.deepcopy(model), torch.bfloat16)
    return copied


def _typical(errors: Tensor) -> float:
    return float(errors.float().square().mean(dim=-1).sqrt().median())
