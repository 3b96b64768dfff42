"""Checks of losses and gradients: what they do not depend on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from reallm.data.batching import n_samples, select
from reallm.data.namedarray import NamedArray
from reallm.errors import ReallmError
from reallm.specs import ModelFunctionCall
from reallm.training.objective import loss_weights, prepare
from reallm_devkit.testing.algorithms.calls import outputs, same
from reallm_devkit.testing.algorithms.graph import interfaces
from reallm_devkit.testing.algorithms.session import Gradients, TrainResult, inputs_of
from reallm_devkit.testing.algorithms.subject import AlgorithmSubject
from reallm_devkit.testing.checks import CheckFailed, Skipped, check

TOLERANCE = 1e-4
"""Of gradients, relative to the largest one, and of metrics: sums in another order."""
SUMS = (
    "sums over the samples of a micro-batch in `loss` and its stats, divided by nothing; what depends on the whole "
    "batch is computed in `prepare`"
)


def _whole(subject: AlgorithmSubject) -> NamedArray:
    """The batch that train calls get their inputs from."""
    return subject.whole


@check(needs=[interfaces])
def training(subject: AlgorithmSubject) -> str:
    """each train call makes its optimizer steps, with gradients and with metrics that are finite numbers"""
    _needs_outputs(subject)
    found = []
    for call in subject.graph.train_calls:
        result, where = subject.session.train(_whole(subject))[call.name], f"call '{call.name}'"
        look_at = subject.at(call.role, "loss")
        for name, value in result.metrics.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                expected = "metrics that are finite numbers"
                raise CheckFailed(expected, f"{value!r}", f"'{name}' of {where}", subject.at(call.role, "metrics"))
        largest = [max((float(each.abs().max()) for each in step.values()), default=0.0) for step in result.gradients]
        if not largest or not all(largest):
            expected = "a loss with gradients: computed from network.hidden, without detach() or no_grad()"
            raise CheckFailed(expected, "no gradients, or all of them 0", where, look_at)
        loss = f", loss {result.metrics['loss']:.4g}" if "loss" in result.metrics else ""
        found.append(f"{call.name}: {len(largest)} step{'s' if len(largest) > 1 else ''}{loss}")
    return "; ".join(found)


@check(needs=[training])
def weights(subject: AlgorithmSubject) -> str:
    """loss weights and numbers of tokens of a batch are the sums of those of its samples"""
    made, found = subject.session.interfaces(), []
    for call in subject.graph.train_calls:
        interface, where = made[call.role], f"call '{call.name}'"
        batch = prepare(interface, inputs_of(call, _whole(subject)))
        rows = [select(batch, [row]) for row in range(n_samples(batch))]
        n_tokens = interface.n_tokens(batch)
        if not (isinstance(n_tokens, list) and len(n_tokens) == len(rows)):
            expected = f"the tokens of each of {len(rows)} samples"
            raise CheckFailed(expected, f"{n_tokens!r}", where, subject.at(call.role, "n_tokens"))
        if [interface.n_tokens(row) for row in rows] != [[n] for n in n_tokens]:
            expected = "the tokens of a sample, whatever else is in the batch"
            raise CheckFailed(expected, "other numbers one by one", where, subject.at(call.role, "n_tokens"))
        whole, parts = loss_weights(interface, batch), [loss_weights(interface, row) for row in rows]
        for term, weight in whole.items():
            total = math.fsum(part.get(term, math.nan) for part in parts)
            if not math.isclose(total, weight, rel_tol=1e-6, abs_tol=1e-9):
                expected = f"a weight that is the sum of those of the samples, {total:.6g}, as for a number of tokens"
                seen = f"{weight:.6g}"
                raise CheckFailed(expected, seen, f"term '{term}' of {where}", subject.at(call.role, "loss_weight"))
        found += [f"{weight:.6g} of '{term}'" for term, weight in whole.items()]
    return ", ".join(found)


@check(needs=[weights])
def cut(subject: AlgorithmSubject) -> str:
    """losses and gradients do not depend on how a batch is cut into micro-batches"""
    expected = subject.session.train(_whole(subject))
    made = subject.session.interfaces()
    n_tokens = [
        n
        for call in subject.graph.train_calls
        for n in made[call.role].n_tokens(prepare(made[call.role], inputs_of(call, _whole(subject))))
    ]
    budgets = [1, max(n_tokens) + min(n_tokens)]
    for budget in budgets:
        how = f"with max_tokens_per_microbatch={budget}"
        batch = subject.session.with_outputs(subject.generated, max_tokens=budget)
        for call in subject.graph.calls:
            for key in call.outputs:
                if call.kind != "train_step" and not same(_whole(subject), batch, key):
                    remedy = "outputs that do not depend on context.max_tokens_per_microbatch"
                    where = f"'{key}', written by '{call.name}'"
                    raise CheckFailed(remedy, f"others {how}", where, subject.at(call.role, call.kind))
        _compare(subject, expected, subject.session.train(batch, budget), how, SUMS)
    return f"{len(n_tokens)} samples together, and with {' and '.join(map(str, budgets))} tokens at once"


@check(needs=[weights])
def sample_order(subject: AlgorithmSubject) -> str:
    """losses and gradients do not depend on the order of samples"""
    _needs_one_step(subject)
    expected = subject.session.train(_whole(subject))
    order = list(range(n_samples(_whole(subject))))[::-1]
    found = subject.session.train(select(_whole(subject), order))
    remedy = "a loss that treats each sample, or the batch as a set, whatever its order"
    _compare(subject, expected, found, "with the samples in reverse order", remedy)
    return f"{len(order)} samples in reverse"


@check(needs=[weights])
def ids(subject: AlgorithmSubject) -> str:
    """losses and gradients do not depend on the names of samples"""
    if "ids" not in subject.inputs.metadata:
        raise Skipped("samples of this dataset have no ids")
    expected = subject.session.train(_whole(subject))
    generated = subject.generated
    renamed = generated.with_metadata(ids=[f"renamed-{row}" for row in range(n_samples(generated))])
    found = subject.session.train(subject.session.with_outputs(renamed))
    remedy = "losses and rewards that follow from fields and columns; ids are for errors and for random numbers"
    _compare(subject, expected, found, "with other ids", remedy)
    return f"{n_samples(generated)} samples renamed"


def _needs_outputs(subject: AlgorithmSubject) -> None:
    """Skip where the check of outputs has failed, so that one fault has one report."""
    try:
        _ = subject.whole
    except (CheckFailed, ReallmError) as error:
        raise Skipped(f"comes when '{outputs.name}' passes") from error


def _needs_one_step(subject: AlgorithmSubject) -> None:
    if any(len(result.gradients) > 1 for result in subject.session.train(_whole(subject)).values()):
        raise Skipped("a train call makes several optimizer steps, on parts that follow from the order")


def _compare(
    subject: AlgorithmSubject,
    expected: Mapping[str, TrainResult],
    found: Mapping[str, TrainResult],
    how: str,
    remedy: str,
) -> None:
    """Check that the gradients of the first optimizer step, and the metrics, are the same."""
    for call in subject.graph.train_calls:
        one, two = expected[call.name], found[call.name]
        name = _different_gradient(one.gradients[0], two.gradients[0])
        if name is not None:
            difference = _relative_difference(one.gradients[0][name], two.gradients[0].get(name))
            loss = _losses(one, two)
            seen = f"{how}, the gradient of '{name}' differs by {difference:.2g} of the largest{loss}"
            raise CheckFailed(remedy, seen, f"call '{call.name}'", subject.at(call.role, "loss"))
        _compare_metrics(subject, call, one, two, how, remedy)


def _compare_metrics(
    subject: AlgorithmSubject, call: ModelFunctionCall, one: TrainResult, two: TrainResult, how: str, remedy: str
) -> None:
    for name, value in one.metrics.items():
        other = two.metrics.get(name, math.nan)
        if not math.isclose(value, other, rel_tol=1e-3, abs_tol=TOLERANCE):
            seen = f"{how}, '{name}' is {other:.6g} instead of {value:.6g}"
            raise CheckFailed(remedy, seen, f"call '{call.name}'", subject.at(call.role, "metrics"))


def _losses(one: TrainResult, two: TrainResult) -> str:
    losses = [each.metrics.get("loss") for each in (one, two)]
    if None in losses:
        return ""
    return f"; the loss is {losses[1]:.6g} instead of {losses[0]:.6g}"


def _different_gradient(one: Gradients, two: Gradients) -> str | None:
    """The parameter whose gradients differ most, if they do."""
    worst = max(one, key=lambda name: _relative_difference(one[name], two.get(name), _largest(one)))
    return worst if _relative_difference(one[worst], two.get(worst), _largest(one)) > TOLERANCE else None


def _relative_difference(one: torch.Tensor, two: torch.Tensor | None, largest: float | None = None) -> float:
    if two is None:
        return math.inf
    return float((one - two).abs().max()) / (largest or max(float(one.abs().max()), 1e-12))


def _largest(gradients: Gradients) -> float:
    return max(float(each.abs().max()) for each in gradients.values())
