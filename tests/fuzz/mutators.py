"""Seeded mutation of small files: of bytes, and of the values in JSON."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, -5, 7, 2**31, 2**63, -(2**63), 10**30, 10**7, 0.0, -0.5, 0.5, 1e-300, 1e308,
    float("nan"), float("inf"), "", " ", "a", "1", "nan", "x" * 5000, "\x1b[31m\x00\n", "\ud800", "é\u202e", "../../x",
    "/dev/zero", "module:name", "${oc.env:HOME}", [], {}, [[]], [None], [1, 2, 3], ["a", 5], {"a": 1}, {"": {}},
)  # fmt: skip
"""What a value is replaced by."""

_SNIPPETS: tuple[bytes, ...] = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b"\x1b[2J", b"{", b"}", b"[", b"]", b'"', b":", b",",
    b"=", b"-1", b"1e999", b"9" * 30, b"9" * 5000, b"NaN", b"null", b"[" * 2000, b'{"a":' * 2000, b"%s%n", b"${", b"{{",
    b"}}", b"{%", b"%}", b"&a [*a, *a]", b"!!python/object:os.system", b"<<: *a", b"\xed\xa0\x80",
    b"A" * 10_000, b"../", b"@",
)  # fmt: skip
"""What is written into bytes."""


def mutated(corpus: Sequence[bytes], rng: random.Random) -> bytes:
    """One of the files, changed once or a few times; now and then as it is."""
    content = rng.choice(corpus)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        content = (rng.random() < 0.7 and _json_mutated(content, rng)) or _bytes_mutated(content, corpus, rng)
    return content


def _bytes_mutated(content: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    stop = min(len(content), start + rng.choice((1, 2, 8, 64, len(content))))
    kind = rng.randrange(6)
    if kind == 0 and content:  # a flipped bit
        at = rng.randrange(len(content))
        return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
    if kind == 1:
        return content[:start] + content[stop:]
    if kind == 2:
        return content[:start] + content[start:stop] * rng.choice((2, 3, 50)) + content[stop:]
    if kind == 3:
        return content[:start]
    if kind == 4:  # a part of another file
        other = rng.choice(corpus)
        at = rng.randrange(len(other) + 1)
        return content[:start] + other[at : at + rng.choice((1, 8, 64, 512))] + content[stop:]
    return content[:start] + rng.choice(_SNIPPETS) + content[rng.choice((start, stop)) :]


def _json_mutated(content: bytes, rng: random.Random) -> bytes | None:
    """JSON with a value replaced, removed, renamed or nested; None if the content is no JSON."""
    if content[:1] not in b"[{":
        return None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    places = list(_places(value))
    if not places:
        return None
    container, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[rng.choice(("", "x", "é", "a.b", "__class__", key.upper(), key + "_"))] = container.pop(key)
    elif kind == 2:  # the value of another place
        other, other_key = rng.choice(places)
        container[key] = copy.deepcopy(other[other_key])
    elif kind == 3:
        for _ in range(rng.choice((1, 2, 90, 200))):
            container[key] = [container[key]] if rng.random() < 0.5 else {"a": container[key]}
    elif kind == 4 and type(container[key]) in (int, float):
        container[key] = rng.choice(
            (container[key] * -1, container[key] * 10**9, [container[key]], f"{container[key]}.5")
        )
    else:
        container[key] = copy.deepcopy(rng.choice(_VALUES))
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return None


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container below a value with each of its keys or indices; not those of very long lists."""
    waiting = [value]
    while waiting:
        container = waiting.pop()
        if not isinstance(container, dict | list):
            continue
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        for key in keys[:200]:
            yield container, key
            waiting.append(container[key])
