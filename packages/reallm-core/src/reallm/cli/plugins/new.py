"""`reallm plugins new`: a plugin package to begin with."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reallm.errors import ConfigError
from reallm.hookspecs import HOOK_API
from reallm.plugins import registry
from reallm.plugins.known import providers, to_begin_with

if TYPE_CHECKING:
    from reallm_devkit.scaffold.family import Draft

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

    A family begins with what can be told of its model type from transformers; what cannot is said.

    \b
      reallm plugins new dataset my-data
      reallm plugins new logger my-log --dir ~/plugins
      reallm plugins new family my-model --model-type qwen3
    """
    from reallm_devkit.scaffold.architecture import architecture_of
    from reallm_devkit.scaffold.family import drafted
    from reallm_devkit.scaffold.project import planned
    from reallm_devkit.scaffold.writing import rendered, write

    if model_type is not None and kind != "family":
        raise ConfigError(f"--model-type is for families, and this is to be a {kind}; leave it out")
    core = ".".join(version("reallm-core").split(".")[:2])
    project = planned(kind, name, core=core, hook_api="{}.{}".format(*HOOK_API))
    if project.name in registry.declared(kind):
        raise ConfigError(f"the {kind} '{project.name}' is installed already; choose another name")
    for distribution in providers(kind, project.name):
        raise ConfigError(f"the {kind} '{project.name}' is in {distribution}; install that, or choose another name")
    if kind == "family":
        architecture = architecture_of(model_type or to_begin_with("family")[1])
        project = replace(project, architecture=architecture, draft=drafted(architecture))
    files = rendered(project)
    target = folder.expanduser() / project.distribution
    write(files, target)
    typer.echo(f"{target}/")
    for path in files:
        typer.echo(f"  {path}")
    begin = "It works as it is."
    if project.draft is not None:
        begin = f"{begun(project.draft, architecture.model_type)} See docs/write-a-family.md."
    typer.echo(
        f"\n{begin} Next:\n\n"
        f"  cd {target}\n"
        f'  pip install -e ".[test]"\n'
        f"  pytest\n"
        f"  reallm plugins check {project.name}{ARGUMENTS.get(kind, '')}\n\n"
        f"and then change {files_to_change(kind, project.package)}."
    )


def begun(draft: Draft, model_type: str) -> str:
    """What is done of a family and what is left to do, in a sentence or two."""
    if not draft.seen:
        return (
            f"A beginning, from the configuration of {model_type} alone: transformers could make no small model of it "
            f"to look at. {counted(len(draft.keys), 'key')} of config.json have no row yet, and the entries of the "
            "weight table are those that most decoders have."
        )
    open_ends = [
        *([f"{counted(len(draft.keys), 'key')} of config.json without a row"] if draft.keys else []),
        *([f"{counted(len(draft.tensors), 'tensor')} without an entry"] if draft.tensors else []),
    ]
    if open_ends:
        return (
            f"A beginning, from what transformers tells of {model_type}. Left to you: {' and '.join(open_ends)}, "
            'marked "yet" in plugin.py; the checks name those without which it cannot be right.'
        )
    return f"Every key and tensor of {model_type} has a place; the checks say whether it is the right one."


def counted(n: int, what: str) -> str:
    """`1 key`, `2 keys`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def files_to_change(kind: str, package: str) -> str:
    """Where a plugin of a kind does its work."""
    names = {"dataset": ("config", "dataset"), "family": ("plugin",), "logger": ("logger",)}[kind]
    return " and ".join(f"src/{package}/{name}.py" for name in names)
