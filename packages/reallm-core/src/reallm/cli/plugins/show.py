"""`reallm plugins show NAME`: all that is known of one thing that is installed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reallm.cli.plugins import table as plugins_table
from reallm.errors import PluginError, ReallmError
from reallm.plugins.finder import canonical
from reallm.plugins.loader import Loaded, Offer
from reallm.plugins.registry import Registry

Fact = tuple[str, str]
"""A label and its text."""


def show(registry: Registry, name: str) -> None:
    """Print a page for each thing of this name: things that plugins offer, or a distribution with its plugins.

    Raises:
        PluginError: nothing has the name; gives similar names, what to install and what is installed.
    """
    console = Console(highlight=False)
    by_distribution = [plugin for plugin in registry.plan.plugins if canonical(plugin.distribution) == canonical(name)]
    if by_distribution:
        pages = [_distribution_page(loaded) for loaded in registry.listing() if loaded.plugin in by_distribution]
    else:
        pages = [_offer_page(offer) for offer in registry.offers_named(name)]
    for number, (title, facts) in enumerate(pages):
        if number:
            console.print()
        console.print(Text(title, style="bold"))
        grid = Table.grid(padding=(0, 2, 0, 0))
        for label, text in facts:
            if text:
                grid.add_row(Text(f"  {label}", style="cyan"), Text(text))
        console.print(grid)


def _distribution_page(loaded: Loaded) -> tuple[str, list[Fact]]:
    plugin = loaded.plugin
    facts = [
        ("version", plugin.version + (" (editable)" if plugin.editable else "")),
        ("state", plugins_table.state(loaded)),
        ("why", "\n".join(loaded.failures)),
        ("notes", "\n".join(loaded.notes)),
        ("entry points", "\n".join(f"{entry} = {plugin.value}" for entry in plugin.entries)),
        ("blocked", ", ".join(plugin.blocked)),
        ("offers", "\n".join(plugins_table.by_kind((offer.kind, offer.name) for offer in loaded.offers))),
    ]
    return plugin.distribution, facts


def _offer_page(offer: Offer) -> tuple[str, list[Fact]]:
    plugin = offer.plugin
    about = {
        "dataset": _dataset,
        "family": _family,
        "algorithm": _algorithm,
        "logger": _logger,
        "callback": _callback,
        "reward": _reward,
        "implementation": _implementation,
    }
    facts = [
        ("description", offer.value.description),
        ("provided by", plugin.release + (" (editable)" if plugin.editable else "")),
        ("module", plugin.value),
        *about[offer.kind](offer.name, offer.value),
    ]
    return f"{offer.kind} {offer.name}", facts


def _family(name: str, family: Any) -> list[Fact]:
    methods = (f"{prefix}_{name}" for prefix in ("from", "to", "config_from", "config_to"))
    return [
        ("all names", ", ".join(family.names)),
        ("model_type", family.model_type),
        ("architectures", "\n".join(family.architectures)),
        ("critics", "\n".join(family.critic_architectures)),
        ("methods", "\n".join(f"ReaLModel.{method}" for method in methods)),
    ]


def _dataset(name: str, spec: Any) -> list[Fact]:
    return [
        ("class", _reference(spec.dataset)),
        ("configuration", _reference(spec.config)),
        ("use", f"dataset.name={name}"),
        ("keys", _keys(spec.config_class)),
    ]


def _algorithm(name: str, algorithm: Any) -> list[Fact]:
    return [
        ("configuration", _reference(algorithm.config)),
        ("interfaces", "\n".join(f"{role}: {_reference(cls)}" for role, cls in algorithm.interfaces.items())),
        ("calls", _calls(algorithm)),
        ("graph", f"reallm graph {name}"),
        ("keys", f"reallm {name} --help"),
    ]


def _calls(algorithm: Any) -> str:
    """The calls of its graph with the default settings, a line each."""
    from reallm.algorithms.graph import Graph
    from reallm.config.load import load
    from reallm.experiments.reports.graph_layout import does

    try:
        graph = Graph.of(algorithm, load(algorithm.config_class()).with_placeholders().build())
    except ReallmError as error:
        return str(error)
    return "\n".join(
        f"{call.name}: {does(call)}, {', '.join(call.inputs)}"
        + (f" -> {', '.join(call.outputs)}" if call.outputs else "")
        for call in graph.calls
    )


def _logger(name: str, spec: Any) -> list[Fact]:
    return [
        ("class", _reference(spec.logger)),
        ("needs", _needs(spec)),
        ("use", f"loggers=[{name}]"),
    ]


def _callback(name: str, spec: Any) -> list[Fact]:
    return [("class", _reference(spec.callback)), ("use", f"callbacks=[{name}]")]


def _reward(name: str, spec: Any) -> list[Fact]:
    return [
        ("function", _reference(spec.function)),
        ("columns", ", ".join(spec.columns)),
        ("needs", _needs(spec)),
        ("use", f"reward={name}"),
    ]


def _implementation(name: str, spec: Any) -> list[Fact]:
    return [("function", _reference(spec.family)), ("use", f"model.implementation={name}")]


def _needs(spec: Any) -> str:
    return f"{', '.join(spec.requires)} ({spec.install_command})" if spec.requires else ""


def _reference(cls: Any) -> str:
    return cls if isinstance(cls, str) else f"{cls.__module__}:{cls.__qualname__}"


def _keys(config_class: Callable[[], type]) -> str:
    """The fields of a dataset's configuration, as `--help` writes them."""
    from reallm import field_types
    from reallm.config import schema

    try:
        cls = config_class()
    except PluginError as error:
        return str(error)
    if not dataclasses.is_dataclass(cls):
        return f"{cls!r} is not a dataclass"
    keys: Iterable[schema.Key] = schema.groups(cls)[-1].keys
    return "\n".join(
        f"dataset.{key.name}  {field_types.type_text(key.type)}, "
        f"{'required' if key.required else 'default ' + field_types.value_text(key.default)}"
        + (f"\n    {key.help}" if key.help else "")
        for key in keys
    )
