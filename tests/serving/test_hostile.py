"""Valid, hostile and cancelled requests together: each gets its answer, and nothing of them is left in the server.

`python benchmarks/serving_soak.py` does so for ten minutes with a process of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import threading
from pathlib import Path

import pytest

from reallm.serving import connections
from tests.helpers.hostile_requests import attacks, stalling
from tests.helpers.known_requests import known_requests
from tests.helpers.running_server import RunningServer
from tests.helpers.server_traffic import ServerTraffic
from tests.helpers.waiting import wait_until

N_REQUESTS, N_CLIENTS = 50, 12
LARGE = 1 << 18
"""Bytes; larger requests are left to the benchmark, but for those that the traffic happens to have."""


def traffic(running: RunningServer, n_known: int = 0) -> ServerTraffic:
    known = known_requests(running.model, running.tokenizer, n_known, longest=600, seed=1)
    host, port = running.url.removeprefix("http://").split(":")
    return ServerTraffic(host, int(port), key="none", known=known, longest=400)


def n_open() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_mixed_traffic_is_answered_and_leaves_nothing(running: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    clients = traffic(running, 16)

    async def pass_over() -> None:
        await clients.run(N_REQUESTS, N_CLIENTS)
        assert await clients.quiet() == {"running": 0, "waiting": 0, "free_kv_cache_tokens": 16384}

    asyncio.run(pass_over())
    n_files, n_threads = n_open(), threading.active_count()
    asyncio.run(pass_over())
    wait_until(lambda: n_open() <= n_files)
    assert threading.active_count() <= n_threads
    for tally in (clients.valid, clients.hostile, clients.left):
        assert tally.n > 10
        assert not tally.flaws, "\n".join(tally.flaws)
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_each_hostile_request_is_refused(running: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    clients = traffic(running)
    given = (attack for attack in attacks() if sum(map(len, attack.sent.parts)) < LARGE)

    async def send() -> None:
        while some := [*itertools.islice(given, N_CLIENTS)]:
            await clients.attack(some)

    asyncio.run(send())
    assert not clients.hostile.flaws, "\n".join(clients.hostile.flaws)
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_clients_that_stall_are_ended(running: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SECONDS_TO_TRANSFER", 1.5)
    clients, state = traffic(running), running.server.server_state

    async def all_ended() -> None:
        async with asyncio.timeout(240):
            while not state.connections:
                await asyncio.sleep(0.05)
            while state.connections:
                await asyncio.sleep(0.05)

    async def send() -> None:
        await asyncio.gather(clients.attack(stalling()), clients.leave_unread(all_ended()))
        await clients.quiet()

    asyncio.run(send())
    assert not clients.hostile.flaws, "\n".join(clients.hostile.flaws)
    assert not clients.left.flaws, "\n".join(clients.left.flaws)


def test_clients_beyond_the_bound_are_refused_at_once(running: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_until(lambda: not running.server.server_state.connections)
    monkeypatch.setattr(connections, "most_connections", lambda: 3)
    host, port = running.url.removeprefix("http://").split(":")
    opened = [socket.create_connection((host, int(port))) for _ in range(3)]
    try:
        wait_until(lambda: len(running.server.server_state.connections) == 3)
        with socket.create_connection((host, int(port))) as refused:
            received = refused.makefile("rb").read()
        assert received.startswith(b"HTTP/1.1 503 ")
        assert b"too many connections" in received
    finally:
        for connection in opened:
            connection.close()
    wait_until(lambda: not running.server.server_state.connections)
