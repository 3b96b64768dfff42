"""Valid requests to a server of a model, each with the answer that the engine alone gives."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reallm.engine.real_model import ReaLModel
from reallm.generation.config import GenerationConfig
from reallm.generation.request import Completion, Request
from tests.helpers.hostile_requests import CHAT, COMPLETIONS
from tests.helpers.http_exchange import HTTPAnswer, post

_WORDS = ("The", " fox", " jumps", " é€", "\n", " 12", "日本", " <|im_start|>", " and", "x" * 40)
_PREFIX_WORDS = 60


@dataclass(frozen=True)
class KnownRequest:
    """A request without `stream`, and the completions that are its answer, by prompt, then by sample."""

    path: str
    body: dict[str, Any]
    completions: Sequence[Completion]

    def sent(self, key: str, *, stream: bool, keep_alive: bool = False) -> bytes:
        """The request as it is sent."""
        body = json.dumps({**self.body, "stream": stream, "stream_options": {"include_usage": True}}).encode()
        return post(self.path, body, f"Authorization: Bearer {key}", keep_alive=keep_alive)

    def flaw_of(self, answer: HTTPAnswer, *, stream: bool) -> str | None:
        """What is wrong with an answer; None if nothing is."""
        if answer.status != 200:
            return f"status {answer.status}: {answer.body[:300]!r}"
        try:
            found = _streamed(answer.events) if stream else _whole(answer.json)
        except (ValueError, KeyError, TypeError) as error:
            return f"{error!r} in {answer.body[:500]!r}"
        expected = self._expected()
        return None if found == expected else f"found {found}, wanted {expected}"

    def _expected(self) -> dict[str, Any]:
        n_prompt = sum(len(one.prompt_ids) for one in self.completions[:: self.body.get("n", 1)])
        n_new = sum(len(one.token_ids) for one in self.completions)
        has_logprobs = self.body.get("logprobs") not in (None, False)
        texts = [one.text for one in self.completions]
        logprobs = [[round(value, 6) for value in one.logprobs] for one in self.completions]
        return {
            "texts": texts,
            "reasons": [one.finish_reason for one in self.completions],
            "logprobs": logprobs if has_logprobs else [[] for _ in texts],
            "tokens": [n_prompt, n_new],
        }


def known_requests(model: ReaLModel, tokenizer: Any, n: int, *, longest: int, seed: int) -> list[KnownRequest]:
    """`n` requests of all kinds, of up to `longest` tokens, the same for a seed."""
    draw = random.Random(seed)
    prefixes = ["".join(draw.choices(_WORDS, k=_PREFIX_WORDS)) for _ in range(3)]
    found = []
    with model.generation_engine(tokenizer) as engine:
        for i in range(n):
            texts = [_text(draw, prefixes, tokenizer, longest) for _ in range(1 if i % 2 else draw.choice((1, 1, 3)))]
            options = _options(draw)
            if i % 2:
                path, body = CHAT, {"messages": [{"role": "user", "content": texts[0]}]}
                rendered = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, tokenize=False)
                prompts = [tokenizer.encode(rendered, add_special_tokens=False)]
                scored = {"logprobs": True, "top_logprobs": 3}
            else:
                prompts = [tokenizer.encode(text) for text in texts]
                path, body = COMPLETIONS, {"prompt": draw.choice((texts, prompts))}
                scored = {"logprobs": 3}
            config = _config(options)
            for key, prompt in enumerate(prompts):
                engine.add(Request(tuple(prompt), config, key))
            found.append(KnownRequest(path, body | options | draw.choice(({}, scored)), engine.run()))
    return found


def _text(draw: random.Random, prefixes: Sequence[str], tokenizer: Any, longest: int) -> str:
    text = "".join(draw.choices(_WORDS, k=draw.choice((1, 2, 5, 20))))
    if draw.random() < 0.5:
        text = draw.choice(prefixes) + text
    while len(tokenizer.encode(text)) > longest // 2:
        text = text[: len(text) // 2] or "a"
    return text


def _options(draw: random.Random) -> dict[str, Any]:
    """Parameters of the API beside prompts and log-probabilities."""
    options: dict[str, Any] = {"max_tokens": draw.choice((1, 4, 16, 64)), "temperature": 0}
    if draw.random() < 0.5:
        options |= {
            "temperature": draw.choice((0.7, 1.0, 1.5)),
            "seed": draw.randrange(1000),
            "n": draw.choice((1, 2, 5)),
        }
        options |= draw.choice(({}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.05}))
    return options | draw.choice(({}, {"stop": "e"}, {"stop": ["ab", "\n", "é"]}, {"min_tokens": 1}))


def _config(options: dict[str, Any]) -> GenerationConfig:
    stop = options.get("stop", ())
    return GenerationConfig(
        max_new_tokens=options["max_tokens"],
        min_new_tokens=options.get("min_tokens", 0),
        temperature=float(options["temperature"]),
        top_p=options.get("top_p"),
        top_k=options.get("top_k"),
        min_p=options.get("min_p"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        n=options.get("n", 1),
        seed=options.get("seed", 0),
    )


def _whole(body: dict[str, Any]) -> dict[str, Any]:
    choices = sorted(body["choices"], key=lambda choice: choice["index"])
    return {
        "texts": [choice["message"]["content"] if "message" in choice else choice["text"] for choice in choices],
        "reasons": [choice["finish_reason"] for choice in choices],
        "logprobs": [_logprobs(choice["logprobs"]) for choice in choices],
        "tokens": [body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]],
    }


def _streamed(events: list[Any]) -> dict[str, Any]:
    *chunks, usage, done = events
    if done != "[DONE]":
        raise ValueError(f"the last event is {done}")
    indices = sorted({choice["index"] for chunk in chunks for choice in chunk["choices"]})
    found: dict[str, Any] = {"texts": [], "reasons": [], "logprobs": []}
    for index in indices:
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        texts = [choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in own]
        found["texts"].append("".join(texts))
        found["reasons"] += [choice["finish_reason"] for choice in own if choice["finish_reason"]]
        found["logprobs"].append([value for choice in own for value in _logprobs(choice["logprobs"])])
    return {**found, "tokens": [usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]]}


def _logprobs(found: dict[str, Any] | None) -> list[float]:
    if found is None:
        return []
    values = found["token_logprobs"] if "token_logprobs" in found else [one["logprob"] for one in found["content"]]
    return [round(value, 6) for value in values]
