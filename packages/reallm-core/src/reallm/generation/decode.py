"""The decoding loop: prefill all prompts in one packed pass, then one token for each sequence at a time.

Shapes: T packed tokens, A sequences still running, E hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from reallm.errors import DataError
from reallm.generation.sampling import SamplingConfig, draw
from reallm.model.cache import KVCache
from reallm.model.rope import keys_are_stale
from reallm.model.sequences import Sequences
from reallm.model.transformer import Transformer
from reallm.seeding import derive_seed


@dataclass
class Completion:
    """What one prompt was continued with."""

    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    """The new tokens, the stop token included."""
    logprobs: list[float] = field(default_factory=list)
    """Of each new token, under the model at the sampling temperature."""
    finish_reason: Literal["stop", "length"] = "length"
    text: str | None = None
    """The new tokens as text without special tokens; None where no tokenizer was at hand."""


@torch.no_grad()
def decode(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    to_text: Callable[[list[int]], str] | None = None,
) -> list[Completion]:
    """Continue each prompt (token ids) until a stop token, a stop string or `max_new_tokens`.

    What a prompt is continued with depends on the prompt, the seed and its place in the list, not on the other prompts.

    Raises:
        DataError: an empty prompt, a token the vocabulary does not have, or a prompt that may grow beyond the positions
            that the model has learned, by its place in the list.
    """
    completions = [Completion(_checked(model, place, prompt)) for place, prompt in enumerate(prompts)]
    if not completions:
        return []
    _check_lengths(model, completions, sampling.max_new_tokens)
    generators = [
        torch.Generator().manual_seed(derive_seed(sampling.seed, "sample", place)) for place in range(len(prompts))
    ]
    running = list(range(len(completions)))
    capacity = max(len(completion.prompt_ids) for completion in completions) + sampling.max_new_tokens
    cache = model.new_cache(len(running), capacity)

    while running:
        texts = [[*completions[place].prompt_ids, *completions[place].token_ids] for place in running]
        logits = model.head(_last_hidden(model, texts, cache))
        tokens, logprobs = draw(logits, sampling, [generators[place] for place in running])
        for place, token, logprob in zip(running, tokens.tolist(), logprobs.tolist(), strict=True):
            completions[place].token_ids.append(token)
            completions[place].logprobs.append(logprob)
            if _stops(completions[place], sampling, to_text):
                completions[place].finish_reason = "stop"
        going = [
            row
            for row, place in enumerate(running)
            if completions[place].finish_reason != "stop"
            and len(completions[place].token_ids) < sampling.max_new_tokens
        ]
        if len(going) < len(running):
            cache.keep(going)
            running = [running[row] for row in going]
    return completions


def _checked(model: Transformer, place: int, prompt: Sequence[int]) -> list[int]:
    ids = [int(token) for token in prompt]
    if not ids:
        raise DataError(f"prompt {place} has no tokens; give at least one, such as the beginning-of-sequence token")
    highest, lowest = max(ids), min(ids)
    if lowest < 0 or highest >= model.config.vocab_size:
        culprit = lowest if lowest < 0 else highest
        raise DataError(
            f"prompt {place} has token {culprit}, but the model knows 0 to {model.config.vocab_size - 1}; "
            "is the tokenizer that of this model?"
        )
    return ids


def _check_lengths(model: Transformer, completions: Sequence[Completion], max_new_tokens: int) -> None:
    """Refuse at once what would otherwise fail in the middle."""
    longest = model.config.longest_sequence
    if longest is None:
        return
    for place, completion in enumerate(completions):
        n = len(completion.prompt_ids)
        room = longest + 1 - n  # the last new token is never read
        if room < max_new_tokens:
            remedy = f"give max_new_tokens={room} or less" if room > 0 else "shorten it"
            raise DataError(
                f"prompt {place} has {n} tokens, and with max_new_tokens={max_new_tokens} it may outgrow the {longest} "
                f"positions that the model has learned; {remedy}"
            )


def _last_hidden(model: Transformer, texts: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
    """Hidden states [A, E] of the last token of each text, computing only what the cache does not hold."""
    device = next(model.parameters()).device
    totals = [len(text) for text in texts]
    if keys_are_stale(model.config, cache.lengths, totals):  # where frequencies follow the length, as in dynamic RoPE
        cache.lengths = [0] * len(texts)
    past = list(cache.lengths)
    seqs = Sequences.from_lengths(
        [total - held for total, held in zip(totals, past, strict=True)], past=past, device=device
    )
    fresh = [token for text, held in zip(texts, past, strict=True) for token in text[held:]]
    hidden = model.run(torch.tensor(fresh, device=device), seqs, cache)
    return hidden[seqs.cu_seqlens[1:].long() - 1]


def _stops(completion: Completion, sampling: SamplingConfig, to_text: Callable[[list[int]], str] | None) -> bool:
    if completion.token_ids[-1] in sampling.stop_token_ids:
        return True
    if not sampling.stop:
        return False
    assert to_text is not None, "stop strings need a tokenizer"
    text = to_text(completion.token_ids)
    return any(stop in text for stop in sampling.stop)
