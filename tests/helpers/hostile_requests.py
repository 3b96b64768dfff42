"""Requests that a server must refuse: wrong values of every parameter, broken JSON, broken HTTP, clients that stall."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.helpers.http_exchange import Exchange, answers_of, flaw_of_refusal, post

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_NO_NUMBERS: tuple[Any, ...] = ("1", [], [1], {}, {"a": 1}, True, math.nan, math.inf, -math.inf)
_NO_WHOLE_NUMBERS = (*_NO_NUMBERS, 1.5, 1e308)
_LONG = "x" * 1_000_000

_WRONG: Mapping[str, tuple[Any, ...]] = {
    "model": (3, 1.5, [], {}, True, "other", _LONG, "\ud83d", "../../etc/passwd", "a\x1b[2Jb\n"),
    "n": (*_NO_WHOLE_NUMBERS, 0, -1, 129, 10**9, 10**30),
    "max_tokens": (*_NO_WHOLE_NUMBERS, -1, 10**6, 2**63, 10**30, -(10**4000)),
    "min_tokens": (*_NO_WHOLE_NUMBERS, -1, 10**6, 10**30),
    "temperature": (*_NO_NUMBERS, -1, -1e-300, "hot"),
    "top_p": (*_NO_NUMBERS, 0, -1, 1.5, 10**30),
    "top_k": (*_NO_WHOLE_NUMBERS, -2, -(10**30)),
    "min_p": (*_NO_NUMBERS, -1, 1.5),
    "seed": (*_NO_WHOLE_NUMBERS, 2**63, -(2**63) - 1, 10**30),
    "stop": (3, {}, True, "", [""], [1], ["a", None], [["a"]], ["x"] * 100_000, _LONG, [_LONG, "a"]),
    "stream": ("yes", 1, 0, [], {}),
    "stream_options": (3, "x", [], True, {"include_usage": 3}, {"include_usage": []}),
    "logit_bias": ({"5": 1}, 3, [5], "x"),
    "presence_penalty": (0.5, "x", [], {}, math.nan),
    "frequency_penalty": (0.5, "x", [], {}),
    "temprature": (1,),
    "__class__": (1, {}),
    "": (1,),
    "\ud83d": (1,),
    _LONG: (1,),
}
"""For each parameter of both endpoints, values that it cannot have."""

_WRONG_COMPLETIONS: Mapping[str, tuple[Any, ...]] = {
    "prompt": (
        None, "", [], {}, 3, True, 1.5, [[]], ["a", 3], [True], [1.5], [-1], [10**30], [99_999], [[5], []],
        "\ud83d", ["a", "\udc00"], "x" * 10_000_000, "\x00\x1b\u202e " * 2_000_000, " " * 10_000_000, [5] * 1_000_000,
        ["a"] * 3000, [[5]] * 3000, ["x" * 5_000] * 2000, {"a": {"b": [1]}},
    ),
    "logprobs": (*_NO_WHOLE_NUMBERS, -1, 21, 10**30),
    "suffix": ("x", 3),
    "best_of": (2, 10**9, "x"),
    "echo": (True, "x", []),
}  # fmt: skip


def _user(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


_FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {}}}
_WRONG_CHAT: Mapping[str, tuple[Any, ...]] = {
    "messages": (
        None, "hi", [], {}, 3, True, ["hi"], [3], [[]], [{}], [None], [{"role": "user"}], [{"content": "x"}],
        [{"role": 3, "content": "x"}], [{"role": None, "content": "x"}], [{"role": [], "content": "x"}],
        _user(3), _user({}), _user(True), _user([3]), _user([{}]), _user([{"type": "text"}]), _user("\ud83d"),
        _user([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]), _user([{"type": [], "text": "x"}]),
        _user([{"type": "text", "text": "\udc00"}]), _user("x" * 10_000_000), _user(_nested(400)),
        [*_user("x"), {"role": "assistant", "content": "y"}],
        [{"role": "assistant", "tool_calls": 3}, *_user("x")],
        [{"role": "assistant", "tool_calls": [3]}, *_user("x")],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, *_user("x")],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 5000}}]}, *_user("x")],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": _nested(400)}}]}, *_user("x")],
        [{"role": "user", "content": "x", "weight": "y"}], [{"role": "user", "content": "x", "train": True}],
        [{"role": "\ud83d", "content": "x"}], _user("x") * 50_000,
    ),
    "max_completion_tokens": (*_NO_WHOLE_NUMBERS, -1, 10**6, 10**30),
    "logprobs": ("x", 1, [], {}),
    "top_logprobs": (*_NO_WHOLE_NUMBERS, -1, 2, 21, 10**30),
    "tools": (3, "x", {}, [3], [{}], [{"type": "function"}], [_FUNCTION], [_FUNCTION] * 1000, [_nested(400)],
              [{"type": "function", "function": {"name": "f", "parameters": _nested(400)}}]),
    "tool_choice": ("required", {}, 3, [], {"type": "function", "function": {"name": "f"}}),
    "response_format": ({"type": "json_object"}, 3, "x"),
    "functions": ([{"name": "f"}], 3),
}  # fmt: skip

_NO_JSON: Mapping[str, bytes] = {
    "empty": b"", "brace": b"{", "half": b'{"prompt": "x", "max', "list": b"[1]", "text": b'"x"', "null": b"null",
    "number": b"5", "word": b"nul", "UTF-16 mark": b"\xff\xfe{", "no UTF-8": b'{"prompt": "\xc3\x28"}',
    "surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}', "control character": b'{"prompt": "a\x00b"}',
    "two values": b'{"prompt": "x"} {"prompt": "x"}', "single quotes": b"{'prompt': 'x'}",
    "lists in lists": b"[" * 200_000, "objects in objects": b'{"prompt":' * 100_000,
    "deep and whole": b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "long number": b'{"prompt": "x", "seed": ' + b"9" * 100_000 + b"}", "large number": b'{"prompt": "x", "n": 1e999}',
    "binary": bytes(range(256)) * 40, "compressed": gzip.compress(b'{"prompt": "x"}', mtime=0),
    "code": b"__import__('os').system('true')", "form": b"prompt=x&max_tokens=5",
}  # fmt: skip
_PATHS = (
    "/", "/v1", "/v1/embeddings", "/v1/completions/", "//v1//completions", "/v1/models/", "/v1/models/other", "*",
    "/v1/models/../../../etc/passwd", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/etc/passwd", "/docs",
    "/..%2f..%2fetc/passwd", "/%00", "/%0d%0aSet-Cookie:%20a=b", "/%ff%fe", "/?a=b&c", "/health/..", "/%1b[2J",
    "/openapi.json", "/" + "a" * 8000, "http://other/v1/models/x", "/v1/models/" + "%f0%9f%98%80" * 200,
)  # fmt: skip
_WITHOUT = b'{"prompt": "a", "max_tokens": 2}'


@dataclass(frozen=True)
class Attack:
    """A hostile exchange.

    Args:
        name: what is wrong.
        sent: the exchange.
        n_answers: number of answers that must come, each of them a refusal; None: at most refusals.
        is_head: whether the answer is to a HEAD request, and has no body.
    """

    name: str
    sent: Exchange
    n_answers: int | None = 1
    is_head: bool = False

    def flaw_of(self, received: bytes) -> str | None:
        """What is wrong with what the server has sent; None if nothing is."""
        try:
            answers = answers_of(received, is_head=self.is_head)
        except (ValueError, KeyError) as error:
            return f"{self.name}: {error!r}"
        flaws = [flaw for answer in answers if (flaw := flaw_of_refusal(answer, is_head=self.is_head))]
        if self.n_answers is not None and len(answers) != self.n_answers:
            flaws.append(f"{len(answers)} answers, not {self.n_answers}")
        return f"{self.name}: {'; '.join(flaws)}" if flaws else None


def attacks(key: str = "none") -> Iterator[Attack]:
    """All of them once; `key` is the server's API key, without which few come further."""
    authorization = f"Authorization: Bearer {key}"

    def one(name: str, sent: bytes, *, is_head: bool = False) -> Attack:
        return Attack(name, Exchange([sent]), is_head=is_head)

    yield from _wrong_values(authorization)
    for name, body in _NO_JSON.items():
        yield one(f"body: {name}", post(COMPLETIONS, body, authorization))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "\x01", ""):
        yield one(f"content type {kind!r}", post(COMPLETIONS, _WITHOUT, authorization, f"Content-Type: {kind}"))
    for header in ("X-None: 1", "Authorization: Bearer wrong", "Authorization: Basic eA==", f"Authorization: {key}",
                   "Authorization: Bearer \xff\xfe"):  # fmt: skip
        if key != "none":
            yield one(f"key: {header!r}", post(COMPLETIONS, _WITHOUT, header))
            yield one(f"key with a long body: {header!r}", post(COMPLETIONS, b"[" * 5_000_000, header))
    for method, path in _paths():
        line = f"{method} {path} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n{authorization}\r\n\r\n".encode()
        yield one(f"{method} {path[:40]}", line, is_head=method == "HEAD")
    yield from _broken_http(authorization)
    yield from _gone(authorization)


def _wrong_values(authorization: str) -> Iterator[Attack]:
    for path, own, valid in (
        (COMPLETIONS, _WRONG_COMPLETIONS, {"prompt": "The fox", "max_tokens": 4}),
        (CHAT, _WRONG_CHAT, {"messages": _user("The fox"), "max_tokens": 4}),
    ):
        for field, values in {**_WRONG, **own}.items():
            for i, value in enumerate(values):
                body: dict[str, Any] = {**valid, field: value}
                if field == "max_completion_tokens":
                    del body["max_tokens"]
                content = json.dumps(body).encode()
                if i % 2 and field != "stream":
                    content = json.dumps({**body, "stream": True}).encode()
                name = f"{path} {field[:20]!a}: {json.dumps(value)[:40] if i else value!r:.40}"
                yield Attack(name, Exchange([post(path, content, authorization)]))


def _paths() -> Iterator[tuple[str, str]]:
    for path in _PATHS:
        yield "GET", path
    for method in (
        "HEAD",
        "PUT",
        "DELETE",
        "PATCH",
        "OPTIONS",
        "TRACE",
        "CONNECT",
        "get",
        "X" * 300,
        "GETX",
    ):
        yield method, COMPLETIONS
    yield "POST", "/health"
    yield "POST", "/v1/models"


def _broken_http(authorization: str) -> Iterator[Attack]:
    start = (
        f"POST {COMPLETIONS} HTTP/1.1\r\nHost: soak\r\n{authorization}\r\nContent-Type: application/json\r\n".encode()
    )
    chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
    get = b"GET /v1/models/x HTTP/1.1\r\nHost: soak\r\n" + authorization.encode() + b"\r\n"
    for name, sent in {
        "length of -1": start + b"Content-Length: -1\r\n\r\n" + _WITHOUT,
        "length of words": start + b"Content-Length: many\r\n\r\n" + _WITHOUT,
        "two lengths": start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + _WITHOUT,
        "lengths in one": start + b"Content-Length: 5, 6\r\n\r\n" + _WITHOUT,
        "length of 10^30": start + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n" + _WITHOUT,
        "length of 10^15": start + b"Content-Length: 1" + b"0" * 15 + b"\r\n\r\n" + _WITHOUT,
        "length of 4300 digits": start + b"Content-Length: " + b"9" * 4400 + b"\r\n\r\n" + _WITHOUT,
        "length and chunks": start + b"Content-Length: 500\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "unknown transfer encoding": start + b"Transfer-Encoding: gzip\r\n\r\n" + _WITHOUT,
        "two transfer encodings": start + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "chunk of words": chunked + b"zz\r\nabc\r\n0\r\n\r\n",
        "chunk of -5": chunked + b"-5\r\nabcde\r\n0\r\n\r\n",
        "chunk of 10^40": chunked + b"1" + b"0" * 40 + b"\r\nabc",
        "chunk without an end": chunked + b"3\r\nabcdef\r\n0\r\n\r\n",
        "chunk with a long extension": chunked + b"3;" + b"a" * 100_000 + b"\r\nabc\r\n0\r\n\r\n",
        "chunks and long trailers": chunked + b"2\r\n{}\r\n0\r\nA: " + b"a" * 100_000 + b"\r\n\r\n",
        "garbage after chunks": chunked + b"2\r\n{\r\r\n\x00\xff\r\n",
        "empty chunks": chunked + b"0\r\n\r\n",
        "no host": b"GET /health HTTP/1.1\r\n\r\n",
        "two hosts": b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "HTTP/0.9": b"GET /health\r\n\r\n",
        "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(range(200)) + b"\r\n\r\n",
        "binary": bytes(range(1, 256)) * 20 + b"\r\n\r\n",
        "only newlines": b"\n" * 70_000,
        "long header": get + b"A: " + b"a" * 200_000 + b"\r\n\r\n",
        "many headers": get + b"".join(b"A%d: a\r\n" % i for i in range(20_000)) + b"\r\n",
        "long path": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        "path that is not ASCII": b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        "header with NUL": get + b"A: a\x00b\r\n\r\n",
        "header without a name": get + b": a\r\n\r\n",
        "header name with a space": get + b"A b: a\r\n\r\n",
        "header without a colon": get + b"Abc\r\n\r\n",
        "header with an escape": get + b"A\x1b[2J: a\r\n\r\n",
    }.items():  # fmt: skip
        yield Attack(f"HTTP: {name}", Exchange([sent]))
    body_of_20_mb = b'{"prompt": "' + b"x" * 20_000_000 + b'"}'
    yield Attack("HTTP/2", Exchange([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]), n_answers=None)
    yield Attack("HTTP: a body of 20 MB", Exchange([post(COMPLETIONS, body_of_20_mb, authorization)]))
    chunks = [b"10000\r\n" + b"x" * 65_536 + b"\r\n"] * 400
    yield Attack(
        "HTTP: 26 MB in chunks",
        Exchange([chunked.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), *chunks, b"0\r\n\r\n"]),
    )
    expecting = post(COMPLETIONS, b"{", authorization, "Expect: 100-continue")
    yield Attack("HTTP: a body that is waited for", Exchange([expecting[:-1], expecting[-1:]], pause=0.05))
    wrong = post(COMPLETIONS, b'{"n": 0}', authorization, keep_alive=True)
    last = post(COMPLETIONS, b"{", authorization)
    yield Attack("HTTP: three requests at once", Exchange([wrong + wrong + last]), n_answers=3)
    yield Attack("HTTP: garbage after a request", Exchange([wrong + b"\x00\xff\r\n\r\n"]), n_answers=2)
    short = post(
        COMPLETIONS, b'{"n": 0}' + b"x" * 40 + b"\r\n\r\n", authorization, "Content-Length: 8", keep_alive=True
    )
    yield Attack(
        "HTTP: a length that is too small", Exchange([short.replace(b"Connection: close\r\n", b"")]), n_answers=2
    )
    pieces = [wrong[i : i + 1] for i in range(len(wrong) - 8)]
    yield Attack("HTTP: byte by byte", Exchange([*pieces, b'{"n": 0}', last], pause=0.001), n_answers=2)
    upgrade = get.replace(
        b"\r\n", b"\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n", 1
    )
    yield Attack("HTTP: an upgrade to a socket", Exchange([upgrade + b"\r\n"]))


def _gone(authorization: str) -> Iterator[Attack]:
    """Clients that go away before they have sent a request."""
    whole = post(COMPLETIONS, _WITHOUT, authorization)
    for name, sent in {
        "nothing": b"",
        "half a head": whole[:60],
        "half a body": whole[:-10],
        "a line": whole[:30],
    }.items():
        for ending in ("half-close", "close", "reset"):
            yield Attack(f"{name}, then {ending}", Exchange([sent], ending=ending), n_answers=None)
    large = post(COMPLETIONS, b'{"prompt": "' + b"x" * 3_000_000, authorization, "Content-Length: 9000000")
    for ending in ("close", "reset"):
        yield Attack(f"half of a large body, then {ending}", Exchange([large], ending=ending), n_answers=None)


def stalling(key: str = "none") -> Iterator[Attack]:
    """Clients that stall while they send: the server must end each of them, with a refusal if they have begun."""
    whole = post(COMPLETIONS, b'{"prompt": "a", "max_tokens": 2}', f"Authorization: Bearer {key}")
    yield Attack("nothing is ever sent", Exchange([]), n_answers=0)
    yield Attack("half a head and no more", Exchange([whole[:60]]))
    yield Attack("half a body and no more", Exchange([whole[:-10]]))
    yield Attack("a head byte by byte", Exchange([whole[i : i + 1] for i in range(len(whole))], pause=1.0))
    at = len(whole) - 30
    yield Attack("a body byte by byte", Exchange([whole[:at], *([b" "] * 200)], pause=1.0))
