"""What is kept of rollouts for people to read."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from reallm.algorithms.rl.rollout import pack
from reallm.algorithms.rl.rollout_record import rollout_records
from reallm.data.batching import split_groups
from reallm.data.namedarray import NamedArray
from reallm.generation.request import Completion
from tests.helpers.preferences import context
from tests.helpers.tokenizers import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
NAN = float("nan")


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def completion(prompt: str, answer: list[int]) -> Completion:
    logprobs = [-0.123456 * (i + 1) for i in range(len(answer))]
    return Completion(ids(prompt), answer, logprobs, "stop" if answer[-1:] in ([], [EOS]) else "length")


def answers(*found: tuple[str, list[int]], n: int) -> NamedArray:
    batch = pack([completion(*one) for one in found], n)
    rows = [f"row {i}" for i in range(len(found) // n)]
    return split_groups(batch.with_metadata(ids=rows), dict.fromkeys(batch, 1))


def recorded(batch: NamedArray, n_prompts: int | None = None, **numbers: Any) -> list[dict[str, Any]]:
    at = context(tokenizer=TOKENIZER, step=3)
    zeros = torch.zeros(len(batch["logprobs"]), dtype=torch.float64)
    return json.loads(json.dumps(rollout_records(batch, at, n_prompts, **{"advantages": zeros, **numbers})))


def test_a_prompt_is_kept_with_its_answers_and_the_numbers_of_their_tokens() -> None:
    batch = answers(("say é:", [*ids("no"), EOS]), ("say é:", ids("yes")), n=2)
    n = len(batch["logprobs"])
    mask = torch.ones(n, dtype=torch.bool)
    mask[0] = False
    (record,) = recorded(
        batch,
        advantages=torch.arange(n, dtype=torch.float64),
        rewards=torch.tensor([1.0, NAN]),
        reward_parts={"accuracy": torch.tensor([1.0, NAN])},
        kl=torch.full((n,), 0.5),
        mask=mask,
    )
    assert (record["step"], record["id"], record["prompt"]) == (3, "row 0", "say é:")
    assert not record["no_variance"]
    ended, cut = record["answers"]
    assert ended["text"] == "no"
    assert ended["tokens"][-1] == ended["ended_by"] == "<|im_end|>"
    assert (ended["reward"], ended["reward_parts"]) == (1.0, {"accuracy": 1.0})
    assert (cut["text"], cut["ended_by"], cut["reward"]) == ("yes", "length", None)
    assert cut["reward_parts"] == {"accuracy": None}
    assert ended["logprobs"][:2] == [-0.1235, -0.2469]
    assert ended["length"] == len(ended["tokens"]) == len(ended["advantages"]) == len(ended["kl"])
    assert ended["mask"] == [False, *[True] * (ended["length"] - 1)]
    assert ended["advantage"] == sum(range(1, ended["length"])) / (ended["length"] - 1)
    assert ended["difference"] is None


def test_the_first_prompts_are_kept_and_those_without_variance_are_marked() -> None:
    batch = answers(*[(f"{prompt}:", ids(answer)) for prompt in "abc" for answer in "xy"], n=2)
    rewards: Tensor = torch.tensor([0.2, 0.2, 0.0, 1.0, 1.0, 1.0])
    records = recorded(batch, 2, rewards=rewards)
    assert [(one["prompt"], one["no_variance"]) for one in records] == [("a:", True), ("b:", False)]
    assert len(recorded(batch, None)) == 3
    assert recorded(batch, 0) == []


def test_an_empty_answer_and_numbers_that_are_not_finite_have_a_record() -> None:
    batch = answers(("a:", []), ("a:", ids("x")), n=2)
    (record,) = recorded(batch, kl=torch.full((len(batch["logprobs"]),), NAN), rewards=torch.tensor([0.5, NAN]))
    empty, other = record["answers"]
    assert (empty["text"], empty["length"], empty["ended_by"], empty["advantage"]) == ("", 0, "", None)
    assert set(other["kl"]) == {None}
    assert not record["no_variance"]
