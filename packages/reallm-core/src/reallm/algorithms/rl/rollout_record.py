"""Records of rollouts for people to read: a prompt with its answers, their rewards, and numbers of each token.

Shapes: S answers, N tokens of answers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reallm.algorithms.context import CallContext
from reallm.data.batching import cu_seqlens
from reallm.data.namedarray import NamedArray
from reallm.data.preview.token_text import token_texts
from reallm.data.special_tokens import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LENGTH = "length"
"""What ended an answer that is as long as allowed."""
DIGITS = 4
"""Significant digits of the numbers in a record."""


def rollout_records(
    answers: NamedArray,
    context: CallContext,
    n_prompts: int | None,
    *,
    advantages: Tensor | None,
    rewards: Tensor | None = None,
    reward_parts: Mapping[str, Tensor] | None = None,
    difference: Tensor | None = None,
    kl: Tensor | None = None,
    mask: Tensor | None = None,
) -> list[dict[str, Any]]:
    """The first prompts of a step with their answers, as JSON types for `CallContext.keep_rollouts`.

    A record is

        {"step": 3, "id": "prompts.jsonl:7", "prompt": "...", "no_variance": false, "answers": [
            {"text": "...", "reward": 1.0, "reward_parts": {"accuracy": 1.0}, "length": 2, "ended_by": "<|im_end|>",
             "advantage": 0.7, "tokens": ["...", ...], "logprobs": [-0.1, ...], "difference": [...], "kl": [...],
             "advantages": [...], "mask": [true, ...]}]}

    with null for what is unknown or not finite. `no_variance`: whether the prompt has several rewards, all equal.
    `ended_by`: `length`, or the text of the last token. `advantage`: the mean over the tokens that are trained on.

    Args:
        answers: each answer as a sample, as `split_groups` makes them: `input_ids`, `prompt_lens`, `logprobs` and
            `truncated`, with `ids` and `groups` as metadata.
        context: the run and the step.
        n_prompts: number of prompts; None: all.
        advantages: advantage of each token [N]; None: there are none.
        rewards: reward of each answer [S], NaN for one without; None: there are no rewards.
        reward_parts: name of a reward -> that of each answer [S], NaN where it does not apply.
        difference: log-probability of each token in training, less that in sampling [N].
        kl: estimate of the KL divergence from the reference at each token [N].
        mask: whether a token is trained on [N] bool; None: all are.
    """
    groups = list(answers.metadata["groups"])
    numbers = list(dict.fromkeys(groups))[:n_prompts]
    ids, prompt_lens = answers["input_ids"].tolist(), answers["prompt_lens"].tolist()
    is_cut = answers["truncated"].tolist()
    bounds = list(itertools.pairwise(cu_seqlens(answers, "input_ids").tolist()))
    spans = list(itertools.pairwise(cu_seqlens(answers, "logprobs").tolist()))
    totals = [None] * len(groups) if rewards is None else [_number(one) for one in rewards.tolist()]
    parts = {name: [_number(one) for one in values.tolist()] for name, values in (reward_parts or {}).items()}
    trained = torch.ones_like(answers["logprobs"], dtype=torch.bool) if mask is None else mask.bool()
    of_tokens = {"logprobs": answers["logprobs"], "difference": difference, "kl": kl, "advantages": advantages}

    def answer(i: int) -> dict[str, Any]:
        (start, end), (first, last) = bounds[i], spans[i]
        tokens = ids[start + prompt_lens[i] : end]
        texts = token_texts(context.tokenizer, tokens)
        is_trained = trained[first:last]
        counted = torch.empty(0) if advantages is None else advantages[first:last][is_trained].double()
        return {
            "text": "".join(texts[: _n_text(context.tokenizer, tokens)]),
            "reward": totals[i],
            "reward_parts": {name: values[i] for name, values in parts.items()},
            "length": len(tokens),
            "ended_by": LENGTH if is_cut[i] else _last_text(texts),
            "advantage": _number(float(counted.mean())) if len(counted) else None,
            "tokens": texts,
            **{name: _numbers(values, first, last) for name, values in of_tokens.items()},
            "mask": is_trained.tolist(),
        }

    records = []
    for number in numbers:
        rows = [row for row, group in enumerate(groups) if group == number]
        start = bounds[rows[0]][0]
        given = [totals[row] for row in rows if totals[row] is not None]
        records.append(
            {
                "step": context.step,
                "id": answers.metadata["ids"][rows[0]] if "ids" in answers.metadata else str(number),
                "prompt": "".join(token_texts(context.tokenizer, ids[start : start + prompt_lens[rows[0]]])),
                "no_variance": len(given) > 1 and len(set(given)) == 1,
                "answers": [answer(row) for row in rows],
            }
        )
    return records


def _n_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> int:
    """Number of tokens without the special ones at the end."""
    special = special_ids(tokenizer)
    return next((n for n in range(len(tokens), 0, -1) if tokens[n - 1] not in special), 0)


def _last_text(texts: Sequence[str]) -> str:
    return texts[-1] if texts else ""


def _numbers(values: Tensor | None, start: int, end: int) -> list[float | None] | None:
    return None if values is None else [_number(value) for value in values[start:end].tolist()]


def _number(value: float) -> float | None:
    """A number with a few significant digits; None if it is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
