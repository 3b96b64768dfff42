"""The server as a reader: what a client sends goes through the connection, the application and the engine.

All in one thread and without sockets, so that thousands of requests are answered in a second.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from reallm.engine.real_model import ReaLModel
from reallm.errors import DataError
from reallm.serving.app import create_app
from reallm.serving.connections import Connection
from reallm.serving.engine_thread import EngineThread
from reallm.serving.served_model import ServedModel
from tests.fuzz.runner import Read
from tests.helpers.hf_grid import raw_config
from tests.helpers.hostile_requests import CHAT, COMPLETIONS
from tests.helpers.http_exchange import answers_of, flaw_of_refusal, post
from tests.helpers.tokenizers import tiny_tokenizer

CONTEXT = 64
_LONG_AFTER = 1e6
"""Seconds after which a client that has not sent all is refused."""
_COMPLETION = {"prompt": ["a", "b"], "max_tokens": 3, "logprobs": 2, "top_p": 0.9, "seed": 7, "stop": ["x"]}
_CHAT = {"messages": [{"role": "user", "content": "1 + 1?"}], "max_tokens": 5, "temperature": 0.5, "top_k": 5,
         "min_p": 0.1, "n": 2, "logprobs": True, "top_logprobs": 2, "stream": True,
         "stream_options": {"include_usage": True}}  # fmt: skip


def open_bodies(folder: Path) -> tuple[Sequence[bytes], Read]:
    """Reads bodies of requests, sent as they are."""
    server = _Server()

    def read(content: bytes) -> object:
        return server.answers(post(CHAT if b"messages" in content else COMPLETIONS, content))

    return [json.dumps(body).encode() for body in (_COMPLETION, _CHAT)], read


def open_connections(folder: Path) -> tuple[Sequence[bytes], Read]:
    """Reads all that a client sends on a connection."""
    completion, chat = (json.dumps(body).encode() for body in (_COMPLETION, _CHAT))
    chunks = b"%x\r\n%s\r\n%x;a=b\r\n%s\r\n0\r\nA: b\r\n\r\n" % (9, completion[:9], len(completion) - 9, completion[9:])
    chunked = post(COMPLETIONS, b"", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"") + chunks
    upgrade = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    get = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n"
    expecting = post(COMPLETIONS, completion, "Expect: 100-continue", "Authorization: Bearer x")
    return [
        post(CHAT, chat), chunked, get + post(COMPLETIONS, completion, keep_alive=True) + get, expecting,
        b"GET /load HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", upgrade,
    ], _Server().answers  # fmt: skip


class _Server:
    """A server without sockets."""

    def __init__(self) -> None:
        tokenizer = tiny_tokenizer()
        config = {**raw_config("gqa"), "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}
        model = ReaLModel.from_llama(config, seed=4).eval()
        engine = model.generation_engine(tokenizer, kv_cache_tokens=16 * CONTEXT)
        self._engine = _EngineInTurns(engine)
        served = ServedModel.of(model.config, engine, tokenizer, "tiny")
        app = create_app(served, self._engine)
        self._config = uvicorn.Config(app, http=Connection, ws="none", lifespan="off", log_config=None)
        self._state, self._loop = ServerState(), asyncio.new_event_loop()

    def answers(self, sent: bytes) -> object:
        """The answers to what a client sends before it closes its connection. Raises DataError for a refusal."""
        received = self._loop.run_until_complete(self._exchange(sent))
        assert b"HTTP/1.1 5" not in received, received[:2000]
        if b"HEAD" in sent:  # its answers have no bodies
            return received
        answers = answers_of(received)
        for answer in answers:
            if answer.status != 200:
                flaw = flaw_of_refusal(answer)
                assert flaw is None, flaw
                raise DataError(answer.json["error"]["message"])
            assert answer.headers["content-type"].startswith("text/event-stream") or answer.json is not None
            assert b'"server_error"' not in answer.body, answer.body[-2000:]
        return answers

    async def _exchange(self, sent: bytes) -> bytes:
        connection = Connection(self._config, self._state, {}, self._loop)
        transport = _Transport(connection)
        connection.connection_made(transport)
        if sent:
            connection.data_received(sent)
        await self._settle()
        for _ in range(2):  # a request that has not all been sent
            connection.check(self._loop.time() + _LONG_AFTER)
            await self._settle()
        transport.close()
        await self._settle()
        assert transport.is_lost
        return bytes(transport.received)

    async def _settle(self) -> None:
        """Let the server work until it waits for the client."""
        n_idle = 0
        while n_idle < 3:
            await asyncio.sleep(0)
            waiting = [connection for connection in self._state.connections if _awaits_client(connection)]
            is_busy = self._engine.take_turn() or len(waiting) < len(self._state.tasks)
            n_idle = 0 if is_busy else n_idle + 1


def _awaits_client(connection: Any) -> bool:
    """Whether a request is answered whose body is not there yet."""
    return connection.cycle is not None and connection.cycle.more_body and not connection.cycle.response_complete


class _EngineInTurns(EngineThread):
    """An engine without a thread."""

    def take_turn(self) -> bool:
        """Do one thing; False if there is nothing to do."""
        if not self._inbox.empty():
            self._inbox.get()()
        elif self._engine.has_work:
            self._step()
        else:
            return False
        return True


class _Transport(asyncio.Transport):
    """The connection's other side, which keeps what is sent to it."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.received = bytearray()
        self.is_lost = False
        self._connection, self._is_closing = connection, False

    def write(self, data: Any) -> None:
        if not self._is_closing:
            self.received += data

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._connection.loop.call_soon(self._lose)

    abort = close

    def _lose(self) -> None:
        self.is_lost = True
        self._connection.connection_lost(None)
