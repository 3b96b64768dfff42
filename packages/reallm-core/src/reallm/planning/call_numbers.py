"""How the calls of a graph depend on each other, by their numbers in it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from reallm.algorithms.graph import Graph


def home_numbers(graph: Graph) -> dict[int, int]:
    """Number of each call to a model that its home is not chosen by -> number of the call that chooses it."""
    homes: dict[str, int] = {}
    for number, call in enumerate(graph.calls):
        if call.kind == "train_step" and graph.calls[homes.get(call.role, number)].kind != "train_step":
            homes[call.role] = number
        elif call.kind != "reward":
            homes.setdefault(call.role, number)
    return {
        number: homes[call.role]
        for number, call in enumerate(graph.calls)
        if call.kind != "reward" and homes[call.role] != number
    }


def base_home_numbers(graph: Graph, homes: Mapping[int, int], bases: Mapping[str, str]) -> dict[int, int]:
    """Number of each call to a role in `bases` -> number of the call that chooses the home of the role there."""
    choosing = {call.role: n for n, call in enumerate(graph.calls) if call.kind != "reward" and n not in homes}
    return {number: choosing[bases[call.role]] for number, call in enumerate(graph.calls) if call.role in bases}


def independent_calls(graph: Graph) -> list[list[int]]:
    """For each call those that it neither waits for nor is waited for by."""
    numbers = {call.name: number for number, call in enumerate(graph.calls)}
    before: list[set[int]] = []
    for call in graph.calls:
        sources = {numbers[edge.source] for edge in graph.edges if edge.target == call.name and not edge.next_step}
        before.append(sources.union(*(before[source] for source in sources)))
    return [
        [other for other in numbers.values() if other not in {number, *earlier} and number not in before[other]]
        for number, earlier in enumerate(before)
    ]


def reads_of_calls(graph: Graph) -> list[list[tuple[int, tuple[int, ...], tuple[str, ...]]]]:
    """For each call what it reads of others: the call that writes it, those that fetched it before, and keys."""
    writers: dict[str, int] = {}
    fetched: dict[str, list[int]] = {}
    found = []
    for number, call in enumerate(graph.calls):
        groups: dict[tuple[int, tuple[int, ...]], list[str]] = {}
        if not call.precompute:
            for key in call.inputs:
                if key in writers:
                    groups.setdefault((writers[key], tuple(fetched[key])), []).append(key)
                    fetched[key].append(number)
            for key in call.outputs:
                writers[key], fetched[key] = number, []
        found.append([(writer, earlier, tuple(keys)) for (writer, earlier), keys in groups.items()])
    return found
