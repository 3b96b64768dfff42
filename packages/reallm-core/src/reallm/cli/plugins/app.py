"""`reallm plugins`: lists the installed plugins, the things that they offer, and their problems."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from reallm.cli.plugins.check import check_plugin
from reallm.cli.plugins.new import new_plugin
from reallm.plugins.registry import registry

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def list_plugins(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List what is installed: datasets, model families, algorithms, loggers.

    The exit code is 1 if a plugin has failed.

    \b
      reallm plugins                 everything
      reallm plugins show llama      all that is known of one thing
      reallm plugins check NAME      whether it keeps the promises that reallm relies on
      reallm plugins new KIND NAME   a plugin package to begin with
      REALLM_DISABLE_PLUGINS=reallm-hf-mistral,dataset.prompt reallm plugins
    """
    if context.invoked_subcommand is not None:
        return
    from reallm.cli.plugins import table as plugins_table

    found = registry()
    if as_json:
        typer.echo(json.dumps(plugins_table.as_json(found), indent=2))
    else:
        plugins_table.show(found)
    if any(loaded.failures for loaded in found.listing()):
        raise typer.Exit(1)


@app.command("show")
def show_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What a plugin offers, or a distribution.")],
) -> None:
    """Print all that is known of one thing: `reallm plugins show llama`."""
    from reallm.cli.plugins import show as plugins_page

    plugins_page.show(registry(), name)


app.command("check")(check_plugin)
app.command("new")(new_plugin)
