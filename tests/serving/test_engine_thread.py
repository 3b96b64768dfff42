"""What clients get when the engine fails, and when the server stops."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Any

import openai
import pytest
import torch

from reallm.serving.engine_thread import EngineThread
from tests.helpers.running_server import CONTEXT, RunningServer, running_server

LONG: dict[str, Any] = {"model": "tiny", "prompt": "The fox", "max_tokens": CONTEXT - 100,
                        "extra_body": {"min_tokens": CONTEXT - 100}}  # fmt: skip


def failing_once(running: RunningServer, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the next step of the engine fail."""
    step = running.engine.step

    def fail() -> Any:
        monkeypatch.setattr(running.engine, "step", step)
        raise error

    monkeypatch.setattr(running.engine, "step", fail)


def test_a_defect_ends_the_answers_in_flight_and_the_server_goes_on(
    running: RunningServer, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing_once(running, monkeypatch, RuntimeError("out of\nmemory"))
    with pytest.raises(openai.InternalServerError, match="the engine failed: out of memory") as raised:
        client.completions.create(model="tiny", prompt="The fox")
    assert raised.value.type == "server_error"
    assert "1 request failed" in caplog.text
    assert "RuntimeError: out of\nmemory" in caplog.text
    assert client.completions.create(model="tiny", prompt="The fox").choices
    assert not running.engine.has_work


def test_a_lack_of_memory_is_a_line_of_the_log_without_a_traceback(
    running: RunningServer, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing_once(running, monkeypatch, RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    with pytest.raises(openai.InternalServerError, match="the engine failed: "):
        client.completions.create(model="tiny", prompt="The fox")
    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert record.getMessage().startswith("1 request failed while the engine generated: more memory is asked for")
    assert record.exc_info is None


def test_a_defect_in_the_middle_of_a_stream_is_its_last_event(
    running: RunningServer, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = iter(client.completions.create(**LONG, stream=True))
    next(stream)
    failing_once(running, monkeypatch, RuntimeError("out of memory"))
    with pytest.raises(openai.APIError, match="the engine failed: out of memory"):
        list(stream)
    assert client.completions.create(model="tiny", prompt="The fox").choices


def test_a_broken_gpu_ends_the_server(running: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server(running.model, running.tokenizer) as server, server.client() as client:
        failing_once(server, monkeypatch, torch.AcceleratorError("CUDA error: device-side assert triggered", 710))
        with pytest.raises(openai.InternalServerError, match="CUDA error"):
            client.completions.create(model="tiny", prompt="The fox")
    assert server.server.exit_code == 1


def test_logits_that_are_not_finite_are_an_error_of_their_request_alone(
    running: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = running.model, running.tokenizer
    embedding = next(model.parameters())
    assert embedding.shape[0] >= len(tokenizer)
    [token] = tokenizer.encode("F")
    kept = embedding[token].clone()
    with torch.no_grad():
        embedding[token] = torch.nan
    try:
        with running_server(model, tokenizer) as server, server.client() as client:
            stream = iter(client.completions.create(**LONG, stream=True))
            next(stream)
            with pytest.raises(openai.InternalServerError, match="new token 1.* not finite"):
                client.completions.create(model="tiny", prompt=["The fox", "F"], temperature=0)
            assert next(stream).choices
            stream.close()
    finally:
        with torch.no_grad():
            embedding[token] = kept
    assert "not finite" in caplog.text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_answers_in_flight_and_the_server(
    running: RunningServer, number: signal.Signals, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    with running_server(running.model, running.tokenizer) as server, server.client() as client:
        stream = iter(client.completions.create(**LONG, stream=True))
        next(stream)
        server.server.handle_exit(number, None)
        with pytest.raises(openai.APIError, match="the server is shutting down"):
            list(stream)
    assert server.server.exit_code == code
    assert not server.engine.has_work
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_stopped_thread_refuses_requests(running: RunningServer) -> None:
    with running_server(running.model, running.tokenizer) as server, server.client() as client:
        assert isinstance(server.thread, EngineThread)
        server.thread.stop()
        with pytest.raises(openai.InternalServerError, match="the server is shutting down") as raised:
            client.completions.create(model="tiny", prompt="The fox")
        assert raised.value.status_code == 503


def test_a_load_whose_event_loop_has_been_closed_does_not_end_the_thread(running: RunningServer) -> None:
    thread, loop = EngineThread(running.engine), asyncio.new_event_loop()
    asked = thread.load()

    async def ask() -> None:
        asked.send(None)  # up to where it waits; a task would complain that it never ends

    loop.run_until_complete(ask())
    loop.close()
    thread._inbox.get()()  # as the thread does it
    asked.close()
