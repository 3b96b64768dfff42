"""`PartialCompletion`: a completion while its tokens are generated, and when it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from reallm.generation.random import StreamPosition
from reallm.generation.request import Completion, FinishedEvent, FinishReason, Request, TokenEvent
from reallm.generation.sampling import Sampled
from reallm.generation.text import TextStream, TokenDecoder


class SampledToken(NamedTuple):
    """The next token of one sequence; see `Sampled`."""

    token_id: int
    logprob: float
    model_logprob: float | None
    kept_mass: float | None
    kept_ids: Sequence[int] | None
    top_logprobs: list[tuple[int, float]] | None


def sampled_tokens(sampled: Sampled) -> Iterator[SampledToken]:
    """The next token of each sequence."""
    n_tokens = len(sampled.token_ids)

    def values(column: Any) -> Sequence[Any]:
        if column is None:
            return [None] * n_tokens
        return column.tolist() if isinstance(column, Tensor) else column

    return map(SampledToken, *map(values, sampled))


class PartialCompletion:
    """One sample of a request, token by token.

    Args:
        request_id: number of the request.
        request: the request.
        sample: index of the sample in the request.
        key: hash of the request's key.
        stop_token_ids: tokens that end it.
        decoder: decodes its tokens; None: it gets no text.
    """

    def __init__(
        self,
        request_id: int,
        request: Request,
        sample: int,
        *,
        key: int,
        stop_token_ids: tuple[int, ...],
        decoder: TokenDecoder | None,
    ) -> None:
        config = request.config
        self.request_id, self.config = request_id, config
        self.completion = Completion(
            list(request.prompt_ids),
            sample=request.first_sample + sample,
            text=None if decoder is None else "",
            model_logprobs=[] if config.model_logprobs else None,
            kept_mass=[] if config.kept_mass else None,
            kept_ids=[] if config.kept_ids else None,
            top_logprobs=[] if config.top_logprobs else None,
        )
        self.has_ended = config.max_new_tokens == 0
        """Whether no further token is generated."""
        self._key, self._stop_token_ids = key, stop_token_ids
        self._text = None if decoder is None else TextStream(decoder, config.stop)

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the prompt and of those generated so far."""
        return len(self.completion.prompt_ids) + len(self.completion.token_ids)

    @property
    def stream(self) -> StreamPosition:
        """The position of the next token in a stream of random numbers."""
        return StreamPosition(self.config.seed, self._key, self.completion.sample, len(self.completion.token_ids))

    @property
    def banned(self) -> tuple[int, ...]:
        """The tokens that may not come next."""
        return self._stop_token_ids if len(self.completion.token_ids) < self.config.min_new_tokens else ()

    def append(self, token: SampledToken) -> TokenEvent:
        """Append the next token, with which the completion may end."""
        done = self.completion
        done.token_ids.append(token.token_id)
        done.logprobs.append(token.logprob)
        for values, value in (
            (done.model_logprobs, token.model_logprob),
            (done.kept_mass, token.kept_mass),
            (done.kept_ids, None if token.kept_ids is None else list(token.kept_ids)),
            (done.top_logprobs, token.top_logprobs),
        ):
            if values is not None:
                values.append(value)  # type: ignore[arg-type]
        text = ""
        if done.is_finite:
            if token.token_id in self._stop_token_ids:
                done.stop_token = token.token_id
            if self._text is not None:
                text, done.stop_string = self._text.push(token.token_id)
        is_stopped = done.stop_token is not None or done.stop_string is not None
        done.finish_reason = "stop" if is_stopped else "length"
        is_full = len(done.token_ids) >= self.config.max_new_tokens
        self.has_ended = is_stopped or is_full or not done.is_finite
        top_logprobs = None if done.top_logprobs is None else done.top_logprobs[-1]
        return TokenEvent(self.request_id, done.sample, token.token_id, token.logprob, text, top_logprobs)

    def finish(self, reason: FinishReason | None = None) -> FinishedEvent:
        """The completion as it is, with the rest of its text; `reason` is why it ended, if it did not by itself."""
        self.has_ended = True
        done, rest = self.completion, ""
        if self._text is not None:
            rest = self._text.finish()
            done.text, done.stop_string = self._text.text, self._text.stop_string
            if done.stop_string is not None:
                done.finish_reason = "stop"
        if reason is not None:
            done.finish_reason = reason
        return FinishedEvent(self.request_id, done.sample, done, rest)
