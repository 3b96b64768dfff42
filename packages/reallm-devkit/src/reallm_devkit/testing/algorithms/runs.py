"""Checks of whole runs: metrics, repetition, evaluation, state and resuming."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from reallm.algorithms.graph import Graph
from reallm.algorithms.interface_state import interface_states
from reallm.errors import PluginError
from reallm.experiments.checkpointing.train_state import read_state
from reallm.specs import Algorithm
from reallm_devkit.testing.algorithms.gradients import training
from reallm_devkit.testing.algorithms.subject import STEPS, AlgorithmSubject, Line, read_lines, train_lines
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.process_state import call_and_compare

OF_ENGINE = ("lr", "grad_norm", "tokens", "skipped_steps", "aux_loss")
"""Metrics that every training has."""
KILLED_AT = 3
"""The step in which the run is killed whose save, after the second step, is resumed."""


class _KilledError(Exception):
    """Stands in for the end of the process."""


@check(needs=[training])
def run(subject: AlgorithmSubject) -> str:
    """a run of a few steps trains, evaluates and saves"""
    lines = read_lines(subject.first_run)
    names = dict.fromkeys(name for line in lines for name in line if name not in ("step", "epoch"))
    return f"{STEPS} steps: {', '.join(names)}"


@check(needs=[run])
def metrics(subject: AlgorithmSubject) -> str:
    """all metrics that it gives are declared in `metric_names`, so that a mistyped best_metric is found at once"""
    given = {name for line in read_lines(subject.first_run) for name in line} - {"step", "epoch"}
    for call in subject.graph.calls:
        cls = subject.spec.interface_class(call.role)
        gives = call.kind == "train_step" or hasattr(cls, "eval_metrics")
        if gives and getattr(cls, "metric_names", None) is None:
            expected = "metric_names = (...), a class attribute with the names of its metrics"
            raise CheckFailed(expected, "none", f"the interface of '{call.role}'", subject.at(call.role))
    for name in undeclared(given, subject.spec, subject.graph):
        role = subject.graph.train_calls[0].role
        expected = "its name in metric_names, or call_metric_names, of the interface that gives it"
        raise CheckFailed(expected, "it is in none", f"the metric '{name}'", subject.at(role))
    evaluated = sorted(name for name in given if name.startswith("eval/"))
    return f"evaluations give {', '.join(evaluated) or 'nothing'}"


def undeclared(given: Iterable[str], spec: Algorithm, graph: Graph) -> list[str]:
    """The metrics among those of a run that no interface of the algorithm declares."""
    declared = []
    for call in graph.calls:
        cls = spec.interface_class(call.role)
        names = tuple(getattr(cls, "metric_names", ()))
        prefix = graph.metric_prefix(call.name)
        if call.kind == "train_step":
            prefixes = prefix, graph.eval_prefixes[call.name]
            declared += [f"{prefix}/{name}" for prefix in prefixes for name in (*names, *OF_ENGINE)]
        if hasattr(cls, "eval_metrics"):
            declared += [f"eval/{name}" for name in names]
        declared += [f"{prefix}/{name}" for name in getattr(cls, "call_metric_names", ())]
    return sorted(name for name in given if not any(fnmatchcase(name, pattern) for pattern in declared))


@check(needs=[run])
def same_twice(subject: AlgorithmSubject) -> str:
    """the same run gives the same numbers, bit for bit, and the process is as before"""
    _, changed = call_and_compare(lambda: subject.session.train(subject.session.with_outputs(subject.inputs)))
    if changed:
        expected = "random numbers of generators of its own, seeded by context.seed_for(...)"
        role = subject.graph.train_calls[0].role
        raise CheckFailed(expected, f"changes {' and '.join(changed)}", look_at=subject.at(role, "train_step"))
    again = subject.run("again")
    _compare(
        subject,
        read_lines(subject.first_run),
        read_lines(again),
        "in the same run",
        "random numbers from context.seed_for(...), and nothing that depends on the time or the order of a set",
    )
    _compare_weights(subject, subject.first_run, again, "in the same run", "the same weights")
    return f"{STEPS} steps, weights and metrics"


@check(needs=[same_twice])
def evaluation(subject: AlgorithmSubject) -> str:
    """an evaluation changes nothing: without any, training gives the same numbers"""
    if not subject.has_validation():
        raise Skipped("there are no validation rows: give rows, or dataset.valid_path")
    dataset = subject.config.dataset
    without = subject.run("unevaluated", dataset=dataclasses.replace(dataset, valid_path=None), eval_every=None)
    remedy = "an evaluation (not context.training) that leaves the interface as it is"
    _compare(subject, train_lines(subject.first_run), train_lines(without), "without evaluations", remedy)
    n_evaluations = len(read_lines(subject.first_run)) - len(train_lines(subject.first_run))
    return f"with and without {n_evaluations} evaluations"


@check(needs=[training])
def state(subject: AlgorithmSubject) -> str:
    """`state()` of an interface is JSON, and `load_state` restores it in a new one"""
    made = subject.session.interfaces()
    having = [role for role, one in made.items() if hasattr(one, "state") or hasattr(one, "load_state")]
    if not having:
        raise Skipped("no interface has a method state")
    for role in having:
        for method in ("state", "load_state"):
            if not hasattr(made[role], method):
                expected = "both state() and load_state(state)"
                raise CheckFailed(expected, f"no {method}", f"the interface of '{role}'", subject.at(role))
    saved = read_state(_last_checkpoint(subject.first_run))[0].interfaces
    for role in having:
        try:
            of_role = saved.get(role, {})
            made[role].load_state(of_role)
            again = interface_states({role: made[role]})[role]
        except PluginError as error:
            raise CheckFailed("a state of JSON types", str(error), look_at=subject.at(role, "state")) from error
        if again != of_role:
            where = f"after load_state of the interface of '{role}'"
            raise CheckFailed(f"the state {of_role}", f"{again}", where, subject.at(role, "load_state"))
    return ", ".join(f"{role}: {saved.get(role)}" for role in having)


@check(needs=[same_twice])
def resume(subject: AlgorithmSubject) -> str:
    """killed and resumed, it continues bit for bit, with what interfaces remember"""
    folder = subject.folder.path / "runs" / "killed"
    with suppress(_KilledError):
        subject.run("killed", _killing(subject.spec, subject.graph.train_calls[0].role))
    subject.run("killed", resume=str(folder))
    remedy = "all that an interface remembers from step to step in state() and load_state(), and nothing else"
    how = f"killed in step {KILLED_AT} and resumed"
    _compare(subject, read_lines(subject.first_run), read_lines(folder), how, remedy)
    _compare_weights(subject, subject.first_run, folder, how, remedy)
    return f"{how}: the same {STEPS} steps"


def _killing(algorithm: Algorithm, role: str) -> Algorithm:
    """An algorithm whose run ends with an exception in a step."""
    cls: Any = algorithm.interface_class(role)

    class Killing(cls):
        def train_step(self, engine: Any, batch: Any, context: Any) -> Any:
            if context.step == KILLED_AT:
                raise _KilledError
            return super().train_step(engine, batch, context)

    return dataclasses.replace(algorithm, interfaces={**algorithm.interfaces, role: Killing})


def _compare(subject: AlgorithmSubject, expected: list[Line], found: list[Line], how: str, remedy: str) -> None:
    """Check that the metrics of two runs are equal."""
    by_step = {(line["step"], "epoch" in line): line for line in found}
    for line in expected:
        other = by_step.get((line["step"], "epoch" in line), {})
        for name, value in line.items():
            if other.get(name) != value:
                seen = f"{how}, '{name}' is {other.get(name)} instead of {value}"
                role = subject.graph.train_calls[0].role
                raise CheckFailed(remedy, seen, f"step {line['step']}", subject.at(role, "train_step"))


def _compare_weights(subject: AlgorithmSubject, one: Path, two: Path, how: str, remedy: str) -> None:
    """Check that the last weights of two runs are equal."""
    for file in sorted(_last_checkpoint(one).rglob("*.safetensors")):
        other = _last_checkpoint(two) / file.relative_to(_last_checkpoint(one))
        expected, found = load_file(file), load_file(other)
        for name, tensor in expected.items():
            if not torch.equal(tensor, found[name]):
                role = subject.graph.train_calls[0].role
                raise CheckFailed(
                    remedy, f"{how}, '{name}' has other values", file.name, subject.at(role, "train_step")
                )


def _last_checkpoint(run_dir: Path) -> Path:
    return sorted((run_dir / "checkpoints").glob("step-*"))[-1]
