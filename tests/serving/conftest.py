"""One server for the tests of a file, and a client."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.helpers.running_server import RunningServer, running_server, tiny_model


@pytest.fixture(scope="package")
def running() -> Iterator[RunningServer]:
    with running_server(*tiny_model(), kv_cache_tokens=16384) as server:
        yield server


@pytest.fixture
def client(running: RunningServer) -> Iterator[openai.OpenAI]:
    with running.client() as made:
        yield made
