"""`reallm plan`: the execution plan of a run, its time and its memory, without starting a process."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reallm.cli.trust import TrustCode, with_trust
from reallm.errors import ConfigError
from reallm.plugins import registry

if TYPE_CHECKING:
    from reallm.algorithms.graph import Graph
    from reallm.model.config import ReaLModelConfig

PLACEHOLDER = "..."


def plan(
    algorithm: Annotated[str, typer.Argument(metavar="ALGORITHM", help="Name of the algorithm, such as ppo.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Its keys, as in a run; of models a folder with config.json will do."),
    ] = None,
    config: Annotated[
        list[Path] | None, typer.Option("--config", metavar="FILE", help="Read keys from a YAML file; repeatable.")
    ] = None,
    trust_code: TrustCode = False,
    ranks: Annotated[
        int | None, typer.Option("--ranks", metavar="N", min=1, help="Number of ranks; by default the machine's.")
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option("--machine", metavar="NAME|FILE", help="h100, a YAML file, ...; by default this machine."),
    ] = None,
    prompt_lens: Annotated[
        str | None, typer.Option("--prompt-lens", metavar="LENGTHS", help="Lengths of prompts: 512, uniform:64:512.")
    ] = None,
    answer_lens: Annotated[
        str | None,
        typer.Option("--answer-lens", metavar="LENGTHS", help="Of answers: lognormal:256:1, a run's rollouts.jsonl."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile", metavar="FILE", help="Use times measured on this machine; what the file lacks is measured now."
        ),
    ] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Draw the step into an SVG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Plan where each call of an algorithm is computed, and show what a step takes; nothing is started or loaded.

    With allocation=search (the default here) the fastest plan that fits into memory;
    with heuristic the usual one, with manual that of the keys, such as actor_gen.layout=dp8.

    \b
      reallm plan ppo actor.path=PATH reward.path=PATH --machine h100
      reallm plan grpo --config run.yaml --machine cluster.yaml --ranks 1024 --svg plan.svg
    """
    if svg is not None and svg.suffix != ".svg":
        raise ConfigError(f"--svg {svg}: the name must end in .svg")
    offered = registry.get("algorithm", algorithm)

    with _without_collections():
        from reallm.algorithms.graph import Graph
        from reallm.cli.algorithm import load_configuration

        loaded = load_configuration(algorithm, config or [], ["allocation=search", *with_trust(arguments, trust_code)])
        settings = loaded.with_placeholders().build()
        graph = Graph.of(offered, settings)
        models = _models(settings, graph)

        from reallm.cli.plan_view import PlannedStep, draw, print_plan, to_json
        from reallm.planning.allocation import planned
        from reallm.planning.configured_workload import configured_workload
        from reallm.planning.find_machine import find_machine
        from reallm.planning.job import PlannedJob
        from reallm.training.kept_traces import kept_traces

        workload = configured_workload(settings, graph, prompt_lens=prompt_lens, answer_lens=answer_lens)
        machine = machine or settings.plan.machine
        job = PlannedJob.of(settings, graph, models, find_machine(machine, ranks), workload.workload)
        if profile is None and settings.plan.profile is not None:
            profile = Path(settings.plan.profile)
        if profile is not None:
            from reallm.cli.plan_profile import profiled

            job = profiled(job, profile, is_here=machine is None)
        with kept_traces():
            found = planned(settings, job)
            step = PlannedStep(job, found.plan, job.simulator.simulate(found.plan), found.search)
            if as_json:
                typer.echo(json.dumps(to_json(algorithm, step), indent=2))
            else:
                print_plan(algorithm, step, workload)
        if svg is not None:
            draw(svg, algorithm, step)
            typer.echo(f"written: {svg}", err=as_json)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Context without garbage collection, which would go through all that torch has imported, for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _models(settings: Any, graph: Graph) -> dict[str, ReaLModelConfig]:
    """The architecture of each role's model.

    Raises:
        ConfigError: the path of one is missing; names the key.
    """
    from reallm.config.training import model_args
    from reallm.experiments.preflight.models import planned_model

    for role in graph.roles:
        if model_args(settings, role).path == PLACEHOLDER:
            raise ConfigError(f"{role}.path is missing; a folder with the config.json of the model is enough")
    return {role: planned_model(model_args(settings, role), None) for role in graph.roles}
