"""A dataflow graph as text: a block of lines for each call, in execution order."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from reallm.algorithms.graph import Edge, Graph
from reallm.config.args import CallArgs
from reallm.errors import counted
from reallm.experiments.reports.graph_layout import does
from reallm.specs import ModelFunctionCall

INDENT = 14
"""Column in which the facts of a call begin, after their labels."""

Fact = tuple[str, str]
"""A label and its text."""


def print_graph(name: str, description: str, graph: Graph, call_args: Mapping[str, CallArgs]) -> None:
    """Print the graph of the algorithm `name`; see `call_facts`."""
    console = Console(highlight=False)
    console.print(Text.assemble((name, "bold"), f": {description}" if description else ""))
    for line in overview(graph):
        console.print(Text(line))
    for number, call in enumerate(graph.calls, 1):
        console.print()
        console.print(Text.assemble(f"{number}. ", (call.name, "bold"), "  ", does(call)))
        for label, text in call_facts(call, graph, call_args.get(call.name)):
            first, *others = textwrap.wrap(text, max(20, console.width - INDENT))
            console.print(Text.assemble("   ", (label.ljust(INDENT - 3), "cyan"), first))
            for line in others:
                console.print(Text(" " * INDENT + line))


def overview(graph: Graph) -> list[str]:
    """Lines about the graph as a whole: the number of calls, the models, and what the dataset must give."""
    n = counted(len(graph.calls), "call")
    models = (f"{role} (trained)" if role in graph.trained_roles else role for role in graph.roles)
    return [
        f"{n} a step{', made in this order' if len(graph.calls) > 1 else ''}; models: {', '.join(models)}",
        f"needed of the dataset: {', '.join(graph.dataset_keys)}",
    ]


def call_facts(call: ModelFunctionCall, graph: Graph, args: CallArgs | None) -> list[Fact]:
    """What is to be said of a call: what it reads of whom and writes, what it waits for, where it is computed."""
    facts = [("reads", _keys_by_source(call, graph)), ("writes", ", ".join(call.outputs))]
    facts += [("waits for", text) for text in _weights_awaited(call, graph)]
    if call.precompute:
        facts.append(("when", "once for all rows, before training; the results are cached"))
    for update in call.updates:
        step = "each step" if update.every == 1 else f"every {update.every:,} steps"
        what = f"becomes {call.role}" if update.eta == 1 else f"moves to {call.role} by {update.eta:g} of the distance"
        facts.append(("then", f"{update.target} {what}, {step}"))
    if args is not None and args.layout is not None:
        facts.append(("layout", args.layout))
    if args is not None and args.offload:
        facts.append(("offload", f"{call.role} goes to host memory until its next call"))
    if args is not None and args.prefetch:
        facts.append(("prefetch", f"{call.role} comes back from host memory beside the call before"))
    if args is not None and args.max_tokens_per_microbatch is not None:
        facts.append(("micro-batch", f"{args.max_tokens_per_microbatch:,} tokens at most"))
    return [(label, text) for label, text in facts if text]


def _keys_by_source(call: ModelFunctionCall, graph: Graph) -> str:
    """`prompt_ids of the dataset; scores of rew_inf`."""
    source = {edge.key: edge.source for edge in graph.edges if edge.target == call.name and edge.key is not None}
    by_source: dict[str, list[str]] = {}
    for key in call.inputs:
        by_source.setdefault(source.get(key, "the dataset"), []).append(key)
    return "; ".join(f"{', '.join(keys)} of {name}" for name, keys in by_source.items())


def _weights_awaited(call: ModelFunctionCall, graph: Graph) -> list[str]:
    """The calls whose weights, or after whose use of the weights, a call runs."""
    next_step = [edge for edge in graph.edges if edge.next_step]
    found: list[Edge] = [edge for edge in (*graph.needed_edges, *next_step) if edge.key is None]
    return [
        f"{edge.source} of the step before: its new weights" if edge.next_step else f"{edge.source}: the same weights"
        for edge in found
        if edge.target == call.name
    ]
