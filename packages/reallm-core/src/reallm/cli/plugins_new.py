"""`reallm plugins new`: a plugin package to begin with."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from reallm.errors import ConfigError
from reallm.hookspecs import HOOK_API
from reallm.plugins import registry
from reallm.plugins.known import providers, to_begin_with

ARGUMENTS = {"dataset": " dataset.train_path=tests/rows.jsonl"}
"""What `reallm plugins check` needs beside the name."""


def new_plugin(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="dataset, family or logger.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it offers: my-data.")],
    folder: Annotated[
        Path, typer.Option("--dir", metavar="PATH", help="Where to put the package's folder.", show_default="here")
    ] = Path(),
    model_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Of a family: model_type of its config.json.", show_default="llama"),
    ] = None,
) -> None:
    """Write a small package with a plugin that works, and with tests that pass.

    A family begins with what transformers declares of its model type; the tests say what is missing.

    \b
      reallm plugins new dataset my-data
      reallm plugins new logger my-log --dir ~/plugins
      reallm plugins new family my-model --model-type qwen3
    """
    from reallm.scaffold.architecture import architecture_of
    from reallm.scaffold.project import planned
    from reallm.scaffold.writing import rendered, write

    if model_type is not None and kind != "family":
        raise ConfigError(f"--model-type is for families, and this is to be a {kind}; leave it out")
    core = ".".join(version("reallm-core").split(".")[:2])
    project = planned(kind, name, core=core, hook_api="{}.{}".format(*HOOK_API))
    if project.name in registry.declared(kind):
        raise ConfigError(f"the {kind} '{project.name}' is installed already; choose another name")
    for distribution in providers(kind, project.name):
        raise ConfigError(f"the {kind} '{project.name}' is in {distribution}; install that, or choose another name")
    if kind == "family":
        project = replace(project, architecture=architecture_of(model_type or to_begin_with("family")[1]))
    files = rendered(project)
    target = folder.expanduser() / project.distribution
    write(files, target)
    typer.echo(f"{target}/")
    for path in files:
        typer.echo(f"  {path}")
    begin = "It works as it is."
    if project.architecture is not None:
        begin = f"A beginning, from what transformers declares of {project.architecture.model_type}."
    typer.echo(
        f"\n{begin} Next:\n\n"
        f"  cd {target}\n"
        f'  pip install -e ".[test]"\n'
        f"  pytest\n"
        f"  reallm plugins check {project.name}{ARGUMENTS.get(kind, '')}\n\n"
        f"and then change {files_to_change(kind, project.package)}."
    )


def files_to_change(kind: str, package: str) -> str:
    """Where a plugin of a kind does its work."""
    names = {"dataset": ("config", "dataset"), "family": ("plugin",), "logger": ("logger",)}[kind]
    return " and ".join(f"src/{package}/{name}.py" for name in names)
