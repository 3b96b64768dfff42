"""Checks of a request against a model, before anything is computed."""

from __future__ import annotations

from reallm.errors import ConfigError, DataError, counted
from reallm.generation.request import Request
from reallm.model.config import ReaLModelConfig
from reallm.model.rope import longest_with_fixed_frequencies
from reallm.notices import notify_once


def check_request(config: ReaLModelConfig, request: Request, name: str, *, has_decoder: bool) -> None:
    """Check that a model can continue a prompt.

    Without learned positions, a notice says that a sequence may outgrow the lengths that the model was trained on.

    Args:
        config: configuration of the model.
        request: the request.
        name: what errors call the prompt: `prompt 3`.
        has_decoder: whether tokens can be decoded.

    Raises:
        DataError: the prompt is empty, has a token outside of the vocabulary, or may outgrow learned positions.
        ConfigError: stop strings without a tokenizer, or `min_new_tokens` where every token is a stop token.
    """
    prompt, settings = request.prompt_ids, request.config
    if not prompt:
        raise DataError(f"{name} has no tokens; give at least one, such as the beginning-of-sequence token")
    highest, lowest = max(prompt), min(prompt)
    if lowest < 0 or highest >= config.vocab_size:
        culprit = lowest if lowest < 0 else highest
        raise DataError(
            f"{name} has token {culprit}, but the model has tokens 0 to {config.vocab_size - 1}; take the tokenizer "
            "that belongs to this model, or load the model with min_vocab_size=len(tokenizer)"
        )
    if settings.stop and not has_decoder:
        raise ConfigError(f"{name}: stop strings need a tokenizer")
    if settings.min_new_tokens and {*(settings.stop_token_ids or ())}.issuperset(range(config.vocab_size)):
        raise ConfigError(
            f"{name}: every token is in stop_token_ids, so there cannot be min_new_tokens={settings.min_new_tokens}; "
            "leave one of them out"
        )
    n_tokens, max_new_tokens = len(prompt), settings.max_new_tokens
    if config.longest_sequence is None:
        _warn_of_length(config, n_tokens + max_new_tokens)
        return
    room = config.longest_sequence + 1 - n_tokens  # the last new token is never read
    if room < max_new_tokens:
        remedy = f"give max_new_tokens={room} or less" if room > 0 else "shorten it"
        raise DataError(
            f"{name} has {counted(n_tokens, 'token')}, and with max_new_tokens={max_new_tokens} it may outgrow the "
            f"{config.longest_sequence} positions that the model has learned; {remedy}"
        )


def check_exact_request(config: ReaLModelConfig, request: Request, name: str) -> None:
    """Check that RoPE frequencies stay the same while a prompt is continued, so that exact mode is possible.

    Raises:
        DataError: they may change.
    """
    n_prompt, max_new_tokens = len(request.prompt_ids), request.config.max_new_tokens
    longest = longest_with_fixed_frequencies(config)
    if longest is not None and n_prompt + max_new_tokens > longest:
        raise DataError(
            f"{name} has {counted(n_prompt, 'token')}, and with max_new_tokens={max_new_tokens} it "
            f"may outgrow the {longest:,} tokens beyond which RoPE frequencies depend on a sequence's length, which "
            "exact mode excludes; lower max_new_tokens, or leave exact out"
        )


def _warn_of_length(config: ReaLModelConfig, length: int) -> None:
    if config.outgrown_by(length):  # without the length, so that it is said once for all requests
        notify_once(
            f"a prompt and its completion may have more than the {config.max_positions:,} tokens that the model was "
            "made for (max_position_embeddings); expect worse text beyond them, or lower max_new_tokens"
        )
