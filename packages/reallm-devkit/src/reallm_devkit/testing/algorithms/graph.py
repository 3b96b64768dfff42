"""Checks of an algorithm's graph and of the classes that it calls."""

from __future__ import annotations

import inspect

from reallm.algorithms.interface_checks import ARGUMENTS
from reallm.errors import DataError, ReallmError
from reallm_devkit.testing.algorithms.configuration import configuration
from reallm_devkit.testing.algorithms.subject import AlgorithmSubject
from reallm_devkit.testing.checks import CheckFailed, check


@check(needs=[configuration])
def graph(subject: AlgorithmSubject) -> str:
    """its graph is valid, the same each time, and reads keys that the dataset or an earlier call gives"""
    try:
        found = subject.graph
    except ReallmError as error:
        raise CheckFailed("a graph that can be executed", str(error), look_at=subject.at_graph) from error
    if subject.spec.calls(subject.config) != subject.spec.calls(subject.config):
        expected = "the same calls each time, from the configuration alone"
        raise CheckFailed(expected, "other calls the second time", look_at=subject.at_graph)
    dataset = subject.config.datasets()["train"].name
    try:
        found.check_producers(tuple(subject.inputs.keys()), dataset)
    except DataError as error:
        raise CheckFailed("inputs that something gives", str(error), look_at=subject.at_graph) from error
    return " -> ".join(call.name for call in found.calls)


@check(needs=[graph])
def interfaces(subject: AlgorithmSubject) -> str:
    """each interface is made from the configuration, and has the methods that the graph calls"""
    made = {}
    for role in subject.graph.all_roles:
        cls = subject.spec.interface_class(role)
        made[role] = cls(subject.config)
    for call in subject.graph.calls:
        method, arguments = getattr(made[call.role], call.kind, None), ARGUMENTS[call.kind]
        name = f"{type(made[call.role]).__qualname__}.{call.kind}"
        where, look_at = f"call '{call.name}' to the role '{call.role}'", subject.at(call.role, call.kind)
        expected = f"the method {call.kind}(self, {', '.join(arguments)})"
        if not callable(method):
            raise CheckFailed(expected, f"{type(made[call.role]).__qualname__} has none", where, look_at)
        try:
            inspect.signature(method).bind(*arguments)
        except TypeError as error:
            raise CheckFailed(expected, f"{name}{inspect.signature(method)}", where, look_at) from error
    return ", ".join(f"{role}: {type(one).__qualname__}" for role, one in made.items())
