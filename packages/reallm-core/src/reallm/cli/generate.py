"""`reallm generate`: continue prompts with a checkpoint, on the terminal, in a file or in a conversation."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reallm.cli.generation_model import (
    AdapterOption,
    DeviceOption,
    GivenModel,
    ImplementationOption,
    check_device,
    check_model,
    events,
    load_model,
)
from reallm.errors import ConfigError
from reallm.specs import STANDARD_IMPLEMENTATION

if TYPE_CHECKING:
    from reallm.generation.config import GenerationConfig

MAX_NEW_TOKENS, MAX_NEW_TOKENS_IN_CHAT = 128, 1024
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def generate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL PROMPT", help="Checkpoint (a folder or a hub id), and texts to continue."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Checkpoint, if it is not the first argument: all arguments are texts then."),
    ] = None,
    adapter: AdapterOption = None,
    implementation: ImplementationOption = STANDARD_IMPLEMENTATION,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="More prompts: .txt, one a line, or .jsonl, key 'prompt' or 'messages'."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the rows of --prompts with their completions as JSON lines; the same command goes on after a "
            "kill.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output and start afresh.")] = False,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Ask in the form of the model's chat template; without prompts, a conversation."),
    ] = False,
    n: Annotated[int, typer.Option("--n", metavar="N", min=1, max=65_536, help="Samples of each prompt.")] = 1,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help=f"Most tokens to add to a prompt. Default: {MAX_NEW_TOKENS}, in a conversation "
            f"{MAX_NEW_TOKENS_IN_CHAT}.",
            show_default=False,
        ),
    ] = None,
    min_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=0, help="Tokens before which a text does not end by itself.")
    ] = 0,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T",
            min=0,
            help="0: always the most likely token; 1: sample as the model says. Default: 1 with --top-k, --top-p, "
            "--min-p or several samples, else 0.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(metavar="K", min=1, help="Sample from the K most likely tokens.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Sample from the most likely tokens that have P of the probability."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(metavar="P", help="Sample from tokens with at least P times the highest probability."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before TEXT where it appears; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the sampling.")] = 0,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Continue prompts with a checkpoint.

    \b
      reallm generate MODEL "Once upon a time"
      reallm generate MODEL --chat                     a conversation
      reallm generate MODEL --chat --temperature 0.7 "Who wrote Faust?"
      reallm generate MODEL --prompts in.jsonl --output out.jsonl
      reallm generate MODEL --adapter runs/my-run "Once upon a time"
    """
    key, path, texts = _model_and_texts(model, list(arguments or []))
    is_conversation = chat and not texts and prompts_file is None
    if is_conversation:
        _check_conversation(path, as_json=as_json, n=n)
    elif not texts and prompts_file is None:
        raise ConfigError(_nothing_to_continue(path, is_named=model is not None))
    _check_output(output, overwrite=overwrite, has_texts=bool(texts), has_file=prompts_file is not None)
    if as_json and output is not None:
        raise ConfigError("--output writes JSON lines anyway; leave --json out")

    from reallm.generation.config import GenerationConfig

    check_device(device)
    default = MAX_NEW_TOKENS_IN_CHAT if is_conversation else MAX_NEW_TOKENS
    try:
        config = GenerationConfig(
            max_new_tokens=default if max_new_tokens is None else max_new_tokens,
            min_new_tokens=min_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            stop=tuple(stop or ()),
            n=n,
            seed=seed,
        )
    except ConfigError as error:
        raise ConfigError(_with_options(str(error))) from None
    given = GivenModel(key, path, adapter, implementation, device)
    if is_conversation:
        from reallm.cli.chat import converse

        converse(given, config)
    elif output is not None:
        from reallm.cli.generate_file import generate_file

        assert prompts_file is not None
        generate_file(given, prompts_file, output, config, chat=chat, overwrite=overwrite)
    else:
        _print_completions(given, texts, prompts_file, config, chat=chat, as_json=as_json)


def _with_options(message: str) -> str:
    """A message about fields, `top_p=1.5`, in terms of the options: `--top-p 1.5`."""
    return re.sub(r"\b[a-z_]+=", lambda field: f"--{field[0][:-1].replace('_', '-')} ", message)


def _model_and_texts(model: str | None, arguments: list[str]) -> tuple[str, str, list[str]]:
    """What errors call the model, its path, and the texts to continue."""
    if model is not None:
        return "--model", model, arguments
    if not arguments:
        raise ConfigError(
            'no model is given; write reallm generate MODEL "Once upon a time", where MODEL is a checkpoint\'s folder '
            "or a hub id"
        )
    return "MODEL", arguments[0], arguments[1:]


def _nothing_to_continue(path: str, *, is_named: bool) -> str:
    if not is_named and not _exists(path) and not _HUB_ID.fullmatch(path):
        return f"the first argument is the model, and '{path}' is none; write reallm generate MODEL {shlex.quote(path)}"
    return (
        f'nothing to continue; give prompts (reallm generate {path} "Once upon a time") or a file of them '
        "(--prompts FILE)"
    )


def _exists(path: str) -> bool:
    from reallm.arguments import as_path

    with suppress(ConfigError):  # a long text is no path at all
        return as_path(path).exists()
    return False


def _check_conversation(path: str, *, as_json: bool, n: int) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(
            f'a conversation needs a terminal; give a message (reallm generate {path} --chat "Who wrote Faust?") or a '
            "file of them (--prompts FILE)"
        )
    if as_json:
        raise ConfigError("--json is for prompts on the command line or in a file, not for a conversation")
    if n > 1:
        raise ConfigError(f"--n {n} is for prompts on the command line or in a file, not for a conversation")


def _check_output(output: Path | None, *, overwrite: bool, has_texts: bool, has_file: bool) -> None:
    if output is None:
        if overwrite:
            raise ConfigError("--overwrite is for --output FILE")
        return
    if not has_file or has_texts:
        raise ConfigError("--output FILE is for the prompts of a file: give them with --prompts FILE, and no others")
    if output.suffix != ".jsonl":
        raise ConfigError(f"--output {output}: the name must end in .jsonl, since it gets a JSON object on each line")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}")


def _print_completions(
    model: GivenModel,
    texts: Sequence[str],
    prompts_file: Path | None,
    config: GenerationConfig,
    *,
    chat: bool,
    as_json: bool,
) -> None:
    """Print completions while they are generated."""
    from reallm.cli.generation_view import JsonView, TextView
    from reallm.generation.completed_rows import check_columns
    from reallm.generation.prompts import PromptEncoder, as_prompts, read_prompts
    from reallm.generation.request import Request
    from reallm.launch.signals import stop_requests

    prompts = as_prompts(texts, chat=chat)
    if prompts_file is not None:
        prompts += read_prompts(prompts_file, chat=chat)
    if as_json:
        for prompt in prompts:
            check_columns(prompt.row)
    folders = check_model(model)
    loaded = load_model(model, folders, chat=chat)

    from reallm.engine.diagnosis import nonfinite_explained  # imports torch, so only when everything else is right

    encode = PromptEncoder(loaded.tokenizer, folders.tokenizer)
    requests = [
        (prompt.row.place, Request(tuple(encode(prompt)), config, key=index)) for index, prompt in enumerate(prompts)
    ]
    view = (JsonView if as_json else TextView)(prompts, config.n, partial(typer.echo, nl=False))
    with (
        stop_requests(announce=False) as stop,
        nonfinite_explained(loaded.model.network),
        loaded.model.generation_engine(loaded.tokenizer) as engine,
    ):
        for event in events(engine, requests, stop):
            view.show(event)
    if stop.is_set():
        raise KeyboardInterrupt
