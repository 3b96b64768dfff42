"""`reallm graph`: the calls of an algorithm and what they wait for, as text and as a drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reallm.cli.trust import TrustCode, with_trust
from reallm.errors import ConfigError
from reallm.plugins import registry


def graph(
    algorithm: Annotated[str, typer.Argument(metavar="ALGORITHM", help="Name of the algorithm, such as sft.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Its keys, as in a run; no path is needed.")
    ] = None,
    config: Annotated[
        list[Path] | None, typer.Option("--config", metavar="FILE", help="Read keys from a YAML file; repeatable.")
    ] = None,
    trust_code: TrustCode = False,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draw the graph into an SVG file.")] = None,
) -> None:
    """Print the graph of an algorithm: its calls in execution order, and what each of them waits for.

    The graph depends on the settings; nothing is loaded.

    \b
      reallm graph sft
      reallm graph sft --config run.yaml --svg graph.svg
    """
    if svg is not None and svg.suffix != ".svg":
        raise ConfigError(f"--svg {svg}: the name must end in .svg")
    offered = registry.get("algorithm", algorithm)

    from reallm.algorithms.graph import Graph
    from reallm.cli.algorithm import load_configuration
    from reallm.cli.graph_view import print_graph
    from reallm.config.training import call_args_of

    loaded = load_configuration(algorithm, config or [], with_trust(arguments, trust_code))
    settings = loaded.with_placeholders().build()
    found = Graph.of(offered, settings)
    call_args = call_args_of(settings)
    print_graph(algorithm, offered.description, found, call_args)
    if svg is not None:
        from reallm.experiments.reports.graph_svg import write_graph_svg

        write_graph_svg(svg, algorithm, found, call_args)
        typer.echo(f"written: {svg}")
