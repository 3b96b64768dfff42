"""`reallm generate --prompts in.jsonl --output out.jsonl`: completions for the rows of a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from reallm.checkpoint.fingerprint import checkpoint_fingerprint
from reallm.cli.generation_model import GivenModel, check_model, load_model
from reallm.cli.streams import outliving_readers
from reallm.data.tokenization.progress import RowProgress
from reallm.errors import DataError, counted
from reallm.generation.completion_file import CompletionFile, partial_folder
from reallm.generation.prompt_files import check_prompts, complete_prompts
from reallm.generation.prompts import PromptEncoder, read_prompts
from reallm.launch.signals import stop_requests
from reallm.specs import STANDARD_IMPLEMENTATION

if TYPE_CHECKING:
    from reallm.generation.config import GenerationConfig


@outliving_readers()
def generate_file(
    model: GivenModel,
    prompts_file: Path,
    output: Path,
    config: GenerationConfig,
    *,
    chat: bool,
    overwrite: bool,
) -> None:
    """Write the rows of a file of prompts with their completions; a call after a kill goes on where that one was.

    Args:
        model: the model.
        prompts_file: the file of prompts.
        output: the file to write.
        config: settings for sampling tokens and for ending a text.
        chat: whether texts are messages of the user.
        overwrite: replace the file if it exists, and start afresh.
    """
    if prompts_file.resolve() == output.resolve():
        raise DataError(f"--output {output} is the file of prompts; give another name")
    console = Console(stderr=True)
    with RowProgress("checking prompts", lambda: None, console=console) as checking:
        n_rows = check_prompts(prompts_file, chat=chat, on_row=lambda: checking.advance(1))
    folders = check_model(model)
    settings = {
        "model": str(folders.base.resolve()),
        "weights": checkpoint_fingerprint(folders.base),
        **({} if folders.adapter is None else {"adapter": checkpoint_fingerprint(folders.adapter)}),
        **({} if model.implementation == STANDARD_IMPLEMENTATION else {"implementation": model.implementation}),
        "chat": chat,
        **asdict(config),
    }
    from reallm.engine.diagnosis import nonfinite_explained  # imports torch, so only when everything else is right

    with CompletionFile.open(output, settings, overwrite=overwrite) as file:
        if file.n_rows:
            typer.echo(
                f"{output}: {file.n_rows:,} of {counted(n_rows, 'row')} are done; going on with the next", err=True
            )
        loaded = load_model(model, folders, chat=chat)
        with (
            RowProgress("generating", lambda: n_rows, done=file.n_rows, console=console) as progress,
            stop_requests(announce=False) as stop,
            nonfinite_explained(loaded.model.network),
            loaded.model.generation_engine(loaded.tokenizer) as engine,
        ):
            is_done = complete_prompts(
                read_prompts(prompts_file, chat=chat),
                file,
                engine,
                PromptEncoder(loaded.tokenizer, folders.tokenizer),
                config,
                stopped=stop.is_set,
                on_progress=progress.advance,
            )
        if is_done:
            file.finish()
            typer.echo(f"{output}: {counted(n_rows, 'row')}")
            return
        typer.echo(
            f"\n{file.n_rows:,} of {counted(n_rows, 'row')} are done, and kept in {partial_folder(output)}; the same "
            f"command{' without --overwrite' if overwrite else ''} goes on with the next",
            err=True,
        )
    raise KeyboardInterrupt
