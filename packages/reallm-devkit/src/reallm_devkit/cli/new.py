"""`reallm plugins new`: writes a plugin package and prints what to do next."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import typer

from reallm.errors import ConfigError, counted
from reallm.hookspecs import HOOK_API
from reallm.plugins import registry
from reallm.plugins.known import providers, suggested_first
from reallm_devkit.scaffold.architecture import architecture_of
from reallm_devkit.scaffold.family import Draft, draft_tables
from reallm_devkit.scaffold.project import plan_project
from reallm_devkit.scaffold.writing import render, write_files

CHECK_ARGUMENTS = {
    "dataset": " dataset.train_path=tests/rows.jsonl",
    "algorithm": " dataset.train_path=tests/prompts.jsonl",
}
"""Kind -> what `reallm plugins check` needs beside the name."""


def new_plugin(kind: str, name: str, *, folder: Path, model_type: str | None) -> None:
    """Write the package into a new folder in `folder`, and print its files and the next steps.

    Raises:
        ConfigError: if an argument is wrong, or the name is taken.
        DataError: if the folder cannot be written.
    """
    if model_type is not None and kind != "family":
        raise ConfigError(f"--model-type is for families, not for a {kind}; leave it out")
    core = ".".join(version("reallm-core").split(".")[:2])
    project = plan_project(kind, name, core=core, hook_api="{}.{}".format(*HOOK_API))
    if project.name in registry.declared(kind):
        raise ConfigError(f"the {kind} '{project.name}' is installed already; choose another name")
    for distribution in providers(kind, project.name):
        raise ConfigError(f"the {kind} '{project.name}' is in {distribution}; install that, or choose another name")
    if kind == "family":
        architecture = architecture_of(model_type or suggested_first("family")[1])
        project = replace(project, architecture=architecture, draft=draft_tables(architecture))
    files = render(project)
    target = folder.expanduser() / project.distribution
    write_files(files, target)
    typer.echo(f"{target}/")
    for path in files:
        typer.echo(f"  {path}")
    state = "It works as it is."
    if project.draft is not None:
        state = f"{state_of_draft(project.draft, architecture.model_type)} See docs/write-a-family.md."
    typer.echo(
        f"\n{state} Next:\n\n"
        f"  cd {target}\n"
        f'  pip install -e ".[test]"\n'
        f"  pytest\n"
        f"  reallm plugins check {project.name}{CHECK_ARGUMENTS.get(kind, '')}\n\n"
        f"and then change {files_to_change(kind, project.package)}."
    )


def state_of_draft(draft: Draft, model_type: str) -> str:
    """A sentence or two on what the draft of a family has, and what its author has to add."""
    if not draft.inspected:
        return (
            f"A beginning, from the configuration of {model_type} alone: transformers could make no small model of it "
            f"to look at. {counted(len(draft.missing_keys), 'key')} of config.json have no row yet, and the entries of "
            "the weight table are those that most decoders have."
        )
    gaps = [
        *([f"{counted(len(draft.missing_keys), 'key')} of config.json without a row"] if draft.missing_keys else []),
        *([f"{counted(len(draft.missing_tensors), 'tensor')} without an entry"] if draft.missing_tensors else []),
    ]
    if gaps:
        return (
            f"A beginning, from what transformers tells of {model_type}. Left to you: {' and '.join(gaps)}, "
            'marked "yet" in plugin.py; the checks name those without which it cannot be right.'
        )
    return f"Every key and tensor of {model_type} has a place; the checks say whether it is the right one."


def files_to_change(kind: str, package: str) -> str:
    """The files in which a plugin of a kind does its work."""
    names = {
        "dataset": ("config", "dataset"),
        "family": ("plugin",),
        "algorithm": ("config", "interface"),
        "logger": ("logger",),
        "callback": ("callback",),
        "reward": ("reward",),
    }[kind]
    return " and ".join(f"src/{package}/{name}.py" for name in names)
