"""Mixed traffic to a server: valid requests, hostile ones, and clients that go away, the same for a seed."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.helpers.hostile_requests import COMPLETIONS, Attack, attacks
from tests.helpers.http_exchange import Ending, Exchange, answers_of, exchange, post
from tests.helpers.known_requests import KnownRequest

MOST_FLAWS = 20


@dataclass
class Tally:
    """Requests of one kind, and those of them that the server answered as it should."""

    n: int = 0
    n_right: int = 0
    flaws: list[str] = field(default_factory=list)
    """What was wrong, of the first few."""

    def add(self, flaw: str | None) -> None:
        """Count one."""
        self.n += 1
        self.n_right += flaw is None
        if flaw is not None and len(self.flaws) < MOST_FLAWS:
            self.flaws.append(flaw[:2000])

    @property
    def share(self) -> float:
        """The share that was answered as it should be."""
        return self.n_right / max(1, self.n)


class ServerTraffic:
    """Clients of one server.

    Args:
        host: the server's address.
        port: its port.
        key: its API key.
        known: valid requests with their answers.
        longest: most tokens of the requests that are left alone.
        seed: determines all requests, their order, and how clients go away.
    """

    def __init__(
        self, host: str, port: int, *, key: str, known: Sequence[KnownRequest], longest: int, seed: int = 0
    ) -> None:
        self.valid, self.hostile, self.left = Tally(), Tally(), Tally()
        self.kinds: Counter[str] = Counter()
        self._host, self._port, self._key, self._known, self._longest = host, port, key, known, longest
        self._random = random.Random(seed)
        self._attacks: list[Attack] = []

    async def run(self, n_requests: int, n_clients: int) -> None:
        """Send so many requests, so many at a time."""
        waiting = iter([self._next() for _ in range(n_requests)])
        await asyncio.gather(*(self._client(waiting) for _ in range(n_clients)))

    async def attack(self, given: Iterable[Attack]) -> None:
        """Send all of these at the same time."""
        await asyncio.gather(*(self._attack(attack) for attack in given))

    async def load(self) -> dict[str, int]:
        """What the server says that it is busy with."""
        request = f"GET /load HTTP/1.1\r\nHost: soak\r\nConnection: close\r\nAuthorization: Bearer {self._key}\r\n\r\n"
        received = await exchange(self._host, self._port, Exchange([request.encode()]))
        found: dict[str, int] = answers_of(received)[0].json
        return found

    async def quiet(self) -> dict[str, int]:
        """What the server says when nothing is left to do; an error if there always is."""
        for _ in range(600):
            load = await self.load()
            if not load["running"] and not load["waiting"]:
                return load
            await asyncio.sleep(0.1)
        raise AssertionError(f"the server is still busy with requests of clients that are gone: {load}")

    async def leave_unread(self, wait: Awaitable[None]) -> None:
        """Ask for a long stream and do not receive it while waiting; the server must have ended it then."""
        body = {"prompt": "The fox", "n": 128, "max_tokens": 64, "min_tokens": 64, "logprobs": 20, "stream": True}
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        loop, received = asyncio.get_running_loop(), bytearray()
        with connection:
            await loop.sock_connect(connection, (self._host, self._port))
            sent = post(COMPLETIONS, json.dumps(body).encode(), f"Authorization: Bearer {self._key}")
            await loop.sock_sendall(connection, sent)
            await wait
            try:
                async with asyncio.timeout(240):
                    while data := await loop.sock_recv(connection, 1 << 16):
                        received += data
            except ConnectionError:
                pass
        self.kinds["unread"] += 1
        has_ended = not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        self.left.add(None if received and has_ended else f"a stream that nobody read was sent: {received[-200:]!r}")

    def _next(self) -> Any:
        """The next client, as a function."""
        draw = self._random
        kind = draw.random()
        if kind < 0.55:
            chosen = [(draw.choice(self._known), draw.random() < 0.5) for _ in range(draw.choice((1, 1, 1, 2)))]
            return lambda: self._ask(chosen)
        if kind < 0.85:
            if not self._attacks:
                self._attacks = [*attacks(self._key)]
                draw.shuffle(self._attacks)
            attack = self._attacks.pop()
            return lambda: self._attack(attack)
        body = {"prompt": "The fox" * draw.randint(1, 20), "max_tokens": self._longest, "seed": draw.randrange(100)}
        body |= {"n": draw.choice((1, 2, 4)), "stream": draw.random() < 0.7, "min_tokens": self._longest}
        ending: Ending = draw.choice(("close", "reset"))
        sent = post(COMPLETIONS, json.dumps(body).encode(), f"Authorization: Bearer {self._key}")
        leave_after = draw.choice((0, 1, 2000)) if body["stream"] else 0
        parts = (sent, b"") if draw.random() < 0.5 else (sent,)
        gone = Exchange(parts, draw.choice((0.01, 0.1, 0.5)), ending, leave_after)
        return lambda: self._leave(gone)

    async def _client(self, waiting: Iterator[Any]) -> None:
        for send in waiting:
            await send()

    async def _ask(self, chosen: Sequence[tuple[KnownRequest, bool]]) -> None:
        """Send valid requests on one connection, all at once."""
        last = len(chosen) - 1
        sent = [one.sent(self._key, stream=stream, keep_alive=i != last) for i, (one, stream) in enumerate(chosen)]
        try:
            answers = answers_of(await exchange(self._host, self._port, Exchange([b"".join(sent)])))
        except (OSError, ValueError) as error:
            answers = []
            problem = repr(error)
        else:
            problem = f"{len(answers)} answers to {len(chosen)} requests"
        for i, (one, stream) in enumerate(chosen):
            self.kinds[f"{one.path}{' streamed' if stream else ''}"] += 1
            flaw = one.flaw_of(answers[i], stream=stream) if len(answers) == len(chosen) else problem
            self.valid.add(None if flaw is None else f"{one.body}: {flaw}")

    async def _attack(self, attack: Attack) -> None:
        self.kinds["hostile"] += 1
        try:
            received = await exchange(self._host, self._port, attack.sent)
            self.hostile.add(attack.flaw_of(received))
        except OSError as error:
            self.hostile.add(f"{attack.name}: {error!r}")

    async def _leave(self, gone: Exchange) -> None:
        self.kinds[f"left, {gone.ending}"] += 1
        received = await exchange(self._host, self._port, gone)
        self.left.add(None if received[:12] in (b"", b"HTTP/1.1 200") or len(received) < 12 else f"{received[:300]!r}")
