"""A server of a tiny model in this process, on a free port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import torch
from transformers import PreTrainedTokenizerFast

from reallm.engine.real_model import ReaLModel
from reallm.generation.engine import GenerationEngine
from reallm.serving.address import bind, url
from reallm.serving.app import create_app
from reallm.serving.engine_thread import EngineThread
from reallm.serving.served_model import ServedModel
from reallm.serving.server import Server
from tests.helpers.hf_grid import raw_config
from tests.helpers.tokenizers import tiny_tokenizer

CONTEXT = 4096


@dataclass
class RunningServer:
    """A server that accepts requests, and what it is made of."""

    url: str
    model: ReaLModel
    tokenizer: PreTrainedTokenizerFast
    engine: GenerationEngine
    thread: EngineThread
    server: Server

    def client(self, **options: Any) -> openai.OpenAI:
        """A client that does not try again."""
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})

    def async_client(self) -> openai.AsyncOpenAI:
        """The same for coroutines."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


def tiny_model() -> tuple[ReaLModel, PreTrainedTokenizerFast]:
    """A model in float64, so that what it generates does not depend on the batch, and its tokenizer."""
    tokenizer = tiny_tokenizer()
    config = {**raw_config("gqa"), "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT,
              "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.3}  # fmt: skip
    return ReaLModel.from_llama(config, seed=4).to(torch.float64).eval(), tokenizer


@contextmanager
def running_server(
    model: ReaLModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    api_key: str | None = None,
    seed: int = 0,
    **engine_options: Any,
) -> Iterator[RunningServer]:
    """Context with a server of the model, called `tiny`."""
    engine = model.generation_engine(tokenizer, **engine_options)
    served = ServedModel.of(model.config, engine, tokenizer, "tiny", seed)
    bound, started = bind("127.0.0.1", 0), threading.Event()
    with EngineThread(engine) as thread:
        server = Server(create_app(served, thread, api_key=api_key), thread, started.set)
        serving = threading.Thread(target=server.run, args=([bound],))
        address = url(bound)
        serving.start()
        try:
            assert started.wait(240)
            yield RunningServer(address, model, tokenizer, engine, thread, server)
        finally:
            server.should_exit = True
            serving.join()
