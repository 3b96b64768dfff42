"""Streams, clients that go away, and requests that are batched."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import defaultdict
from typing import Any

import openai
import pytest

from reallm.generation.request import FinishedEvent, TokenEvent
from tests.helpers.running_server import CONTEXT, RunningServer
from tests.helpers.waiting import wait_until

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
OPTIONS: dict[str, Any] = {"model": "tiny", "max_tokens": 20, "seed": 3}
LONG: dict[str, Any] = {"model": "tiny", "prompt": "The fox", "max_tokens": CONTEXT - 100,
                        "extra_body": {"min_tokens": CONTEXT - 100}}  # fmt: skip


@pytest.mark.parametrize("n", [1, 2])
def test_the_pieces_of_a_completion_are_the_whole(client: openai.OpenAI, n: int) -> None:
    whole = client.completions.create(**OPTIONS, prompt=["The fox", "What"], n=n, logprobs=1)
    texts: defaultdict[int, str] = defaultdict(str)
    tokens, offsets, reasons = defaultdict(list), defaultdict(list), {}
    chunks = list(client.completions.create(**OPTIONS, prompt=["The fox", "What"], n=n, logprobs=1, stream=True))
    for chunk in chunks:
        [choice] = chunk.choices
        texts[choice.index] += choice.text
        if choice.logprobs is not None:
            tokens[choice.index] += choice.logprobs.tokens
            offsets[choice.index] += choice.logprobs.text_offset
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(whole.choices) == len(reasons) == 2 * n
    for choice in whole.choices:
        assert texts[choice.index] == choice.text
        assert reasons[choice.index] == choice.finish_reason
        assert choice.logprobs is not None
        assert tokens[choice.index] == choice.logprobs.tokens
        assert offsets[choice.index] == choice.logprobs.text_offset


def test_the_pieces_of_an_answer_are_the_whole(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {**OPTIONS, "messages": QUESTION, "n": 2, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options)
    texts, contents, roles, reasons = defaultdict(str), defaultdict(list), defaultdict(list), {}
    *chunks, last = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        [choice] = chunk.choices
        roles[choice.index].append(choice.delta.role)
        texts[choice.index] += choice.delta.content or ""
        contents[choice.index] += choice.logprobs.content if choice.logprobs else []
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert last.choices == []
    assert last.usage == whole.usage
    for choice in whole.choices:
        assert roles[choice.index][0] == "assistant"
        assert not any(roles[choice.index][1:])
        assert texts[choice.index] == choice.message.content
        assert reasons[choice.index] == choice.finish_reason
        assert contents[choice.index] == choice.logprobs.content


def test_a_stop_string_is_never_sent(client: openai.OpenAI) -> None:
    free = client.completions.create(**OPTIONS, prompt="The fox").choices[0].text
    stop = free[4:7]
    chunks = list(client.completions.create(**OPTIONS, prompt="The fox", stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == free[: free.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_stream_ends_as_the_api_says(running: RunningServer) -> None:
    body = json.dumps({"prompt": "The fox", "max_tokens": 2, "stream": True})
    lines = exchange(running, body).split("\r\n\r\n", 1)[1].splitlines()
    events = [line for line in lines if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: "))["object"] == "text_completion" for event in events[:-1])
    assert all("usage" not in json.loads(event.removeprefix("data: ")) for event in events[:-1])


def exchange(running: RunningServer, body: str) -> str:
    """What the server sends for a completion request, all of it."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        received = b""
        while data := connection.recv(65536):
            received += data
    return received.decode()


def test_what_is_wrong_with_a_stream_is_said_before_it_begins(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'prompt' has 5,000 tokens"):
        client.completions.create(model="tiny", prompt=[5] * 5000, stream=True)


@pytest.fixture
def ended(running: RunningServer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why samples ended, in order."""
    step, reasons = running.engine.step, []

    def noting_step() -> Any:
        events = step()
        reasons.extend(event.completion.finish_reason for event in events if isinstance(event, FinishedEvent))
        return events

    monkeypatch.setattr(running.engine, "step", noting_step)
    return reasons


def test_a_client_that_leaves_a_stream_frees_the_engine(
    running: RunningServer, client: openai.OpenAI, ended: list[str]
) -> None:
    stream = client.completions.create(**LONG, n=4, stream=True)
    next(iter(stream))
    assert running.engine.has_work
    stream.close()
    wait_until(lambda: not running.engine.has_work)
    assert ended == ["cancelled"] * 4


def test_a_client_that_does_not_wait_for_its_answer_frees_the_engine(running: RunningServer, ended: list[str]) -> None:
    async def leave() -> None:
        async with running.async_client() as client:
            waiting = asyncio.create_task(client.completions.create(**LONG))
            while not running.engine.has_work:
                await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(leave())
    wait_until(lambda: not running.engine.has_work)
    assert ended == ["cancelled"]


def test_requests_at_the_same_time_are_batched_and_get_what_each_gets_alone(
    running: RunningServer, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def request(i: int) -> dict[str, Any]:
        prompt = "The quick brown fox " * (1 + i % 5) + str(i)
        return {"model": "tiny", "prompt": prompt, "seed": i, "max_tokens": 20 + i, "n": 1 + i % 3, "logprobs": 1}

    alone = [client.completions.create(**request(i)) for i in range(20)]
    batches: list[int] = []
    step = running.engine.step

    def noting_step() -> Any:
        events = step()
        batches.append(len({event.request_id for event in events if isinstance(event, TokenEvent)}))
        return events

    monkeypatch.setattr(running.engine, "step", noting_step)

    async def together() -> list[Any]:
        async with running.async_client() as other:
            return await asyncio.gather(*(other.completions.create(**request(i)) for i in range(20)))

    for one, among_others in zip(alone, asyncio.run(together()), strict=True):
        assert [choice.text for choice in among_others.choices] == [choice.text for choice in one.choices]
        assert among_others.usage == one.usage
        for found, expected in zip(among_others.choices, one.choices, strict=True):
            assert found.logprobs.tokens == expected.logprobs.tokens
            assert found.logprobs.token_logprobs == pytest.approx(expected.logprobs.token_logprobs, rel=1e-5)
    assert max(batches) > 10
