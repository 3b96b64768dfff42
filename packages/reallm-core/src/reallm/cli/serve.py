"""`reallm serve`: a server for clients of the OpenAI API."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
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
    load_model,
)
from reallm.cli.streams import outliving_readers
from reallm.errors import ConfigError
from reallm.printable import printable
from reallm.specs import STANDARD_IMPLEMENTATION

if TYPE_CHECKING:
    from socket import socket

    from reallm.engine.real_model import ReaLModel
    from reallm.serving.served_model import ServedModel

INSTALL = "pip install 'reallm-core[serve]'"


def serve(
    path: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Checkpoint to serve: a folder or a hub id.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="PATH", help="The same, as an option.")] = None,
    adapter: AdapterOption = None,
    implementation: ImplementationOption = STANDARD_IMPLEMENTATION,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="REALLM_API_KEY", help="Key that requests must have.", show_default=False),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the model for clients. Default: the folder's.", show_default=False),
    ] = None,
    device: DeviceOption = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="float32, bfloat16, ... Default: float32 on a CPU, else as saved.", show_default=False
        ),
    ] = None,
    max_batch_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Most tokens that are computed at once, of all requests.")
    ] = 2048,
    kv_cache_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Most tokens in the KV cache. Default: what fits.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of requests that have none of their own.")] = 0,
) -> None:
    """Serve a checkpoint to clients of the OpenAI API.

    \b
      reallm serve PATH
      reallm serve PATH --host 0.0.0.0 --api-key KEY
    """
    if missing := [package for package in ("fastapi", "uvicorn") if find_spec(package) is None]:
        raise ConfigError(f"reallm serve needs {' and '.join(missing)}; {INSTALL}")
    path, key = _one_of(path, model)
    check_device(device)

    from reallm.serving.address import bind, is_local

    with bind(host, port) as bound:
        if api_key is None and not is_local(bound):
            typer.echo(f"warning: other machines may reach {host}, and no API key is asked for (--api-key)", err=True)
        given = GivenModel(key, path, adapter, implementation, device)
        loaded, tokenizer = load_model(given, check_model(given), dtype=dtype)

        from reallm.serving.app import create_app
        from reallm.serving.engine_thread import EngineThread
        from reallm.serving.served_model import ServedModel
        from reallm.serving.server import Server

        loaded.generate([[0]], max_new_tokens=1)  # damaged weights are found now, not with the first request
        engine = loaded.generation_engine(tokenizer, max_batch_tokens=max_batch_tokens, kv_cache_tokens=kv_cache_tokens)
        served = ServedModel.of(loaded.config, engine, tokenizer, name or _name(path), seed)
        with EngineThread(engine) as thread, outliving_readers(), _printed_access_log():
            app = create_app(served, thread, api_key=api_key)
            server = Server(app, thread, lambda: typer.echo(printable(_greeting(loaded, served, bound))))
            server.run(sockets=[bound])
    raise typer.Exit(server.exit_code)


def _one_of(path: str | None, model: str | None) -> tuple[str, str]:
    """The checkpoint, and what errors call it."""
    if path and model:
        raise ConfigError(f"two models: {path} and --model {model}; give one of them")
    if model:
        return model, "--model"
    if path:
        return path, "MODEL"
    raise ConfigError("no model to serve; give a checkpoint's folder or a hub id: reallm serve PATH")


def _name(path: str) -> str:
    """The name of a checkpoint's folder, or of the link to it, as it was given; a hub id as it is."""
    folder = Path(path)
    if not folder.exists():
        return path
    return folder.resolve().name if folder.name in ("", "..") else folder.name


@contextmanager
def _printed_access_log() -> Iterator[None]:
    """Context in which the lines of the access log are printed."""
    import logging

    logger, handler = logging.getLogger("reallm.serving.access_log"), logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _greeting(model: ReaLModel, served: ServedModel, bound: socket) -> str:
    from reallm.experiments.reports.number_format import short
    from reallm.serving.address import url

    parameter = next(model.parameters())
    n_parameters = short(sum(each.numel() for each in model.parameters()))
    dtype = str(parameter.dtype).removeprefix("torch.")
    path, body = "completions", '"prompt": "The capital of France is"'
    if served.chat_template is not None:
        message = {"role": "user", "content": "What is the capital of France?"}
        path, body = "chat/completions", f'"messages": [{json.dumps(message)}], "temperature": 0, "max_tokens": 100'
    return f"""\
serving '{served.name}' at {url(bound)}/v1: {n_parameters} parameters, {dtype} on {parameter.device}, \
context of {served.context_length:,} tokens

  curl {url(bound)}/v1/{path} -H 'Content-Type: application/json' \\
    -d '{{{body}}}'

Ctrl-C stops the server"""
