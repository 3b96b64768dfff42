"""Log-probabilities of generated tokens in the two forms of the API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

from reallm.generation.request import Completion, TokenEvent
from reallm.serving.responses import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from reallm.serving.token_texts import TokenTexts


class ScoredToken(NamedTuple):
    """A token that was drawn, its log-probability, and the most likely tokens at its position with theirs."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]

    @classmethod
    def of_event(cls, event: TokenEvent) -> Self:
        """The token of an event."""
        return cls(event.token_id, event.logprob, event.top_logprobs or [])

    @classmethod
    def all_of(cls, completion: Completion) -> list[Self]:
        """The tokens of a completion."""
        tops = completion.top_logprobs or [[] for _ in completion.token_ids]
        return list(map(cls, completion.token_ids, completion.logprobs, tops))


def completion_logprobs(tokens: Iterable[ScoredToken], texts: TokenTexts, offset: int = 0) -> CompletionLogprobs:
    """The form of `/v1/completions`; `offset` is the number of characters before."""
    made = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for token in tokens:
        text = texts.text(token.token_id)
        made.tokens.append(text)
        made.token_logprobs.append(token.logprob)
        made.top_logprobs.append({texts.text(one): logprob for one, logprob in token.top} | {text: token.logprob})
        made.text_offset.append(offset)
        offset += texts.n_characters(token.token_id)
    return made


def chat_logprobs(tokens: Iterable[ScoredToken], texts: TokenTexts) -> ChatLogprobs:
    """The form of `/v1/chat/completions`."""

    def named(token_id: int, logprob: float) -> TopLogprob:
        return TopLogprob(token=texts.text(token_id), logprob=logprob, bytes=texts.utf8(token_id))

    return ChatLogprobs(
        content=[
            TokenLogprob(
                **named(token.token_id, token.logprob).model_dump(),
                top_logprobs=[named(one, logprob) for one, logprob in token.top],
            )
            for token in tokens
        ]
    )
