"""The command `reallm`: its subcommands, and the output and exit code of errors."""

from __future__ import annotations

import atexit
import errno
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from reallm.cli.algorithm import algorithm_command
from reallm.cli.compare import compare
from reallm.cli.demo import demo
from reallm.cli.eval import evaluate
from reallm.cli.generate import generate
from reallm.cli.graph import graph
from reallm.cli.merge import merge
from reallm.cli.plan import plan
from reallm.cli.plugins.app import app as plugins
from reallm.cli.preview import DEFAULT_ALGORITHM, preview
from reallm.cli.push import push
from reallm.cli.realloc import realloc
from reallm.cli.runs import runs
from reallm.cli.serve import serve
from reallm.cli.streams import discard, open_closed_streams, output_problem, tell, tell_interrupted
from reallm.cli.verify import verify
from reallm.errors import ReallmError, did_you_mean, nearest
from reallm.machine_errors import as_machine_error
from reallm.plugins import registry
from reallm.plugins.finder import as_metadata_error
from reallm.printable import printable_line

UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Typer's error for a wrong option or argument, of which typer makes only the subclass `BadParameter` public."""

TAKING_KEYS = ("eval", "preview")
"""The commands with options of their own that take the keys of an algorithm."""

HELP = """\
Post-training of large language models: fine-tune, generate, and see what is installed.

\b
  reallm demo           train a tiny model and see what comes out
  reallm sft --help     fine-tuning: all keys, with types and defaults
  reallm graph sft      the calls of an algorithm and what they wait for
  reallm plan ppo       the fastest layout of each call, its time and memory
  reallm preview        the first rows of your data, as training gets them
  reallm generate       text as it comes, a conversation, a file of prompts
  reallm serve          a server for clients of the OpenAI API
  reallm eval           loss, perplexity and accuracy of a checkpoint on rows
  reallm runs           your runs: state, steps, losses
  reallm compare A B    the curves, results and settings of runs side by side
  reallm verify RUN     whether its checkpoints are as they were saved
  reallm realloc        what it takes to move a model to another layout
  reallm plugins        installed datasets, model families, algorithms
"""


class Commands(TyperGroup):
    """The core's commands, and a command for each algorithm that a plugin offers."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands; reads entry points and imports no plugin."""
        return list(dict.fromkeys([*registry.declared("algorithm"), *super().list_commands(ctx)]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command with this name; None if there is none."""
        found = super().get_command(ctx, cmd_name)
        if found is None and (cmd_name in registry.declared("algorithm") or cmd_name in registry.names("algorithm")):
            return algorithm_command(cmd_name)
        return found

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that `args` begin with; the error for an unknown one names the nearest."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            names = list(dict.fromkeys([*self.list_commands(ctx), *registry.names("algorithm")]))
            hint = did_you_mean(args[0], names)
            raise CommandError(f"no command '{args[0]}'{hint + ' C' if hint else '; c'}ommands: {', '.join(names)}")
        return super().resolve_command(ctx, args)


class CommandError(ReallmError):
    """A command that does not exist."""


app = typer.Typer(
    cls=Commands,
    help=HELP,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command(short_help="Show the first rows of the data, token by token.")(preview)
app.command(
    short_help="Show the calls of an algorithm.",
    context_settings={"ignore_unknown_options": True},  # the error says how to write `--lr 1e-4`
)(graph)
app.command(
    short_help="Plan where each call of an algorithm is computed.", context_settings={"ignore_unknown_options": True}
)(plan)
app.command()(generate)
app.command(short_help="Add a LoRA adapter to the weights of its base model.")(merge)
app.command(short_help="Serve a checkpoint to clients of the OpenAI API.")(serve)
app.command("eval", add_help_option=False)(evaluate)
app.command()(runs)
app.command(short_help="Compare runs: their curves, metrics and settings.")(compare)
app.command(short_help="Check every file of a run's checkpoints.")(verify)
app.command(short_help="Upload the checkpoint of a run to the Hugging Face hub.")(push)
app.command(short_help="Show what moving a model between two layouts would send.")(realloc)
app.add_typer(plugins, name="plugins", short_help="List what is installed, and what is wrong with it.")


def _show_version(is_given: bool) -> None:
    if is_given:
        from importlib.metadata import version

        typer.echo(f"reallm-core {version('reallm-core')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code: 2 for an error of one line on stderr, 130 for Ctrl-C.

    Such an error is a user's mistake, or says what the machine lacks, such as memory or a disk that can be written.

    Other exceptions are bugs and keep their traceback.
    """
    open_closed_streams()
    try:
        Path.cwd()  # raises here if it no longer exists, and not in the middle of something
        code = app(list(arguments) or ["--help"], prog_name="reallm", standalone_mode=False)
        sys.stdout.flush()
    except ReallmError as error:
        return _fail(str(error))
    except UsageError as error:
        return _fail(_usage_problem(error, arguments))
    except BrokenPipeError:
        return _without_reader()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # as rich ends
            return _without_reader()
        raise
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        known = as_metadata_error(as_machine_error(error))
        full = isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full and (problem := output_problem()):
            return _fail(f"standard output cannot be written: {problem}; free the disk, or write to another file")
        if known is error:
            raise
        return _fail(str(known))
    if code == 130:  # typer turns Ctrl-C into this code
        tell_interrupted()
    return code if isinstance(code, int) else 0


def _usage_problem(error: Any, arguments: Sequence[str]) -> str:
    """The message of an error of typer's; for a key that is written as an option, how to write it."""
    message: str = error.format_message()
    if hasattr(error, "possibilities") and arguments[0] in TAKING_KEYS:  # the option does not exist
        option: str = error.option_name
        if nearest(option.lstrip("-"), [name.lstrip("-") for name in error.possibilities or ()]):
            return _as_clause(message)

        from reallm.config.schema import groups
        from reallm.config.suggestions import key_as_option

        at = next(i for i, argument in enumerate(arguments) if argument.startswith(option))
        found = list(groups(registry.get("algorithm", DEFAULT_ALGORITHM).config_class(), tolerate=True))
        if problem := key_as_option(arguments[at], "".join(arguments[at + 1 : at + 2]), found):
            return problem
    if hasattr(error, "param_type") and error.ctx is not None:  # an argument or option is missing
        usage = " ".join([error.ctx.command_path, *error.ctx.command.collect_usage_pieces(error.ctx)])
        return f"{_as_clause(message)}; write {usage}"
    return _as_clause(message)


def _as_clause(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")


def _fail(message: str) -> int:
    tell(f"error: {printable_line(message)}\n")
    return 2


def _without_reader() -> int:
    """Drop the rest of the output, whose reader (`| head`) has gone; the exit code is that of SIGPIPE."""
    discard(sys.stdout)
    return 141


def main() -> NoReturn:
    """Entry point of the command `reallm`: runs the command line of this process, and ends the process."""
    code = run(sys.argv[1:])
    # What Python does at its end, but without taking apart all modules object by object, which takes long for torch.
    threading._shutdown()  # type: ignore[attr-defined]  # joins the threads that are no daemons
    atexit._run_exitfuncs()
    with suppress(OSError):  # `run` has said so
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
