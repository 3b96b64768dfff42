"""The decoding loop: prefill all prompts in one packed pass, then one token for each sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reallm.errors import DataError, NonFiniteError, counted
from reallm.generation.prepacking import prepacked_for_decoding
from reallm.generation.sampling import SamplingConfig
from reallm.generation.sequence import Completion, DecodeBatch, ToText, last_hidden
from reallm.model.config import ReaLModelConfig
from reallm.model.transformer import Transformer
from reallm.notices import notify_once
from reallm.parallel.mesh import Mesh

__all__ = ["Completion", "generate_tokens"]


@torch.no_grad()
def generate_tokens(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    to_text: ToText | None = None,
    mesh: Mesh | None = None,
) -> list[Completion]:
    """Continue each prompt (token ids) until a stop token, a stop string or `max_new_tokens`.

    The completion of a prompt depends on the prompt, its index and the seed, not on other prompts or the layout.

    Args:
        model: the whole network, or this rank's part of it.
        prompts: token ids of each prompt.
        sampling: settings for sampling tokens and for ending a sequence.
        to_text: decodes token ids, for stop strings.
        mesh: the layout over which the model is parallelized: all its ranks make the same call and get the same result.
            None: this process holds the whole network.

    Returns:
        One completion for each prompt, in their order.

    Raises:
        DataError: an empty prompt, a token that is not in the vocabulary, or a prompt that may outgrow the model's
            learned positions; names its index.
        NonFiniteError: logits are NaN or infinite; names the first prompt and the step. The same on all ranks.
    """
    completions = [Completion(_checked(model, index, prompt)) for index, prompt in enumerate(prompts)]
    if not completions:
        return []
    _check_lengths(model, completions, sampling.max_new_tokens)
    with prepacked_for_decoding(model, sampling.max_new_tokens):
        if mesh is not None and mesh.layout.size > 1:
            from reallm.generation.distributed import run_distributed

            run_distributed(model, completions, sampling, to_text, mesh)
        else:
            run_local(model, DecodeBatch(model, dict(enumerate(completions)), sampling, to_text))
    _refuse_nonfinite(completions)
    return completions


def run_local(model: Transformer, batch: DecodeBatch) -> None:
    """Decode a batch until all its sequences have ended, in a process that holds the whole network."""
    device = next(model.parameters()).device
    while batch.running:
        tokens, seqs = batch.next_input(device)
        hidden = model.forward_hidden(tokens, seqs, batch.cache)
        next_tokens, logprobs = batch.sample(model.head(last_hidden(hidden, seqs)))
        batch.append(next_tokens.tolist(), logprobs.tolist())


def _refuse_nonfinite(completions: Sequence[Completion]) -> None:
    """Raise NonFiniteError for the first completion that has ended because its logits were not finite."""
    failed = [index for index, completion in enumerate(completions) if not completion.is_finite]
    if not failed:
        return
    step = len(completions[failed[0]].logprobs)
    others = f" (and those of {counted(len(failed) - 1, 'more prompt')})" if len(failed) > 1 else ""
    raise NonFiniteError(f"prompt {failed[0]}: the logits of new token {step}{others} are not finite")


def _checked(model: Transformer, index: int, prompt: Sequence[int]) -> list[int]:
    """The token ids of a prompt, after checking that the model knows them."""
    ids = [int(token) for token in prompt]
    if not ids:
        raise DataError(f"prompt {index} has no tokens; give at least one, such as the beginning-of-sequence token")
    highest, lowest = max(ids), min(ids)
    if lowest < 0 or highest >= model.config.vocab_size:
        culprit = lowest if lowest < 0 else highest
        raise DataError(
            f"prompt {index} has token {culprit}, but the model has tokens 0 to {model.config.vocab_size - 1}; take "
            "the tokenizer that belongs to this model, or load the model with min_vocab_size=len(tokenizer)"
        )
    return ids


def _check_lengths(model: Transformer, completions: Sequence[Completion], max_new_tokens: int) -> None:
    """Raise DataError for a prompt that may outgrow the learned positions, before any token is generated.

    Without learned positions, a notice says that a sequence may outgrow the lengths that the model was trained on.
    """
    longest = model.config.longest_sequence
    if longest is None:
        _warn_of_length(model.config, max(len(completion.prompt_ids) for completion in completions) + max_new_tokens)
        return
    for index, completion in enumerate(completions):
        n = len(completion.prompt_ids)
        room = longest + 1 - n  # the last new token is never read
        if room < max_new_tokens:
            remedy = f"give max_new_tokens={room} or less" if room > 0 else "shorten it"
            raise DataError(
                f"prompt {index} has {n} tokens, and with max_new_tokens={max_new_tokens} it may outgrow the {longest} "
                f"positions that the model has learned; {remedy}"
            )


def _warn_of_length(config: ReaLModelConfig, length: int) -> None:
    if config.outgrown_by(length):
        notify_once(
            f"a prompt and its completion may have {length:,} tokens, more than the {config.max_positions:,} that the "
            "model was made for (max_position_embeddings); expect worse text beyond them, or lower max_new_tokens"
        )
