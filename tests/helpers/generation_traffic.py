"""Random requests to a generation engine: some are cancelled, some share prompts, and there is not room for all."""

from __future__ import annotations

import random
from collections import Counter

from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.request import FinishedEvent, Request

STOPS = ("e", "ab", "\n\n", "éé")


class Traffic:
    """Requests that come, and some that are cancelled, between the steps of an engine.

    Args:
        engine: the engine; it needs a decoder, for stop strings.
        vocab_size: number of tokens; prompts are random ones.
        longest_prompt: number of tokens of the longest prompts.
        most_new: number of tokens of the longest completions.
        seed: determines all requests.
    """

    def __init__(
        self, engine: GenerationEngine, vocab_size: int, *, longest_prompt: int, most_new: int, seed: int
    ) -> None:
        self.engine, self.ended = engine, Counter[str]()
        """How many samples have ended, by the reason."""
        self.n_tokens = 0
        self._vocab_size, self._longest, self._most_new = vocab_size, longest_prompt, most_new
        self._random = random.Random(seed)
        self._waiting: list[int] = []
        self._prefixes = [self._prompt(longest_prompt) for _ in range(3)]

    def step(self, *, arrivals: float = 0.5, cancellations: float = 0.05) -> None:
        """Add a request or cancel one, with these probabilities, and let the engine make a step."""
        if self._random.random() < arrivals:
            self._waiting.append(self.engine.add(self._request()))
        if self._waiting and self._random.random() < cancellations:
            self.engine.cancel(self._random.choice(self._waiting))
        for event in self.engine.step():
            if isinstance(event, FinishedEvent):
                self.ended[event.completion.finish_reason] += 1
                self.n_tokens += len(event.completion.token_ids)
        self._waiting = self._waiting[-64:]

    def finish(self) -> None:
        """Step until nothing is left to do."""
        while self.engine.has_work:
            self.step(arrivals=0.0)

    def _prompt(self, n_tokens: int) -> tuple[int, ...]:
        return tuple(self._random.randrange(self._vocab_size) for _ in range(n_tokens))

    def _request(self) -> Request:
        draw = self._random
        prompt = self._prompt(draw.randint(1, max(1, self._longest // 4)))
        if draw.random() < 0.4:  # one of a few prefixes, not always whole
            prefix = draw.choice(self._prefixes)
            prompt = prefix[: draw.randint(self._longest // 2, self._longest - 1)] + prompt[:1]
        config = GenerationConfig(
            max_new_tokens=draw.choice((0, 1, self._most_new // 16, self._most_new // 4, self._most_new)),
            temperature=draw.choice((0.5, 1.0, 1.5)),
            top_k=draw.choice((None, None, 5)),
            top_p=draw.choice((None, None, 0.9)),
            min_p=draw.choice((None, None, 0.05)),
            stop=draw.choice(((), (), STOPS)),
            stop_token_ids=draw.choice(((), (1,))),
            n=draw.choice((1, 1, 2, 4)),
            seed=draw.randrange(1000),
        )
        return Request(prompt, config, key=draw.randrange(1 << 30))
