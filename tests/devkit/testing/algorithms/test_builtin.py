"""The algorithms of the core keep the promises of all algorithms."""

from __future__ import annotations

import pytest
import torch

from reallm_devkit import AlgorithmKit

WORDS = ["red", "blue", "old", "new", "sun"]


def words(number: int, n: int) -> str:
    return " " + " ".join(WORDS[(number + 2 * i) % len(WORDS)] for i in range(n))


PAIRS = [
    {"prompt": f"Say {number}:", "chosen": words(number, 1 + number % 3), "rejected": words(number + 1, 1 + number % 2)}
    for number in range(9)
]
ANSWERS = [{"prompt": row["prompt"], "answer": row["chosen"]} for row in PAIRS]
LABELLED = [
    {"prompt": row["prompt"], "completion": row["chosen"], "label": number % 2 == 0} for number, row in enumerate(PAIRS)
]

LOSS_TYPES = {
    "ipo": ["loss_type=ipo"],
    "aot": ["loss_type=aot", "rpo_alpha=1.0"],
    "simpo": ["loss_type=simpo"],
    "live": ["ref_logprobs=live", "sync_ref_model=true", "ref_model_sync_steps=2"],
}
IN_ONE_PROCESS = {"layouts": "the losses of other types are computed from the same log-probabilities"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class TestSFT(AlgorithmKit):
    algorithm = "sft"
    rows = ANSWERS


class TestRewardModels(AlgorithmKit):
    algorithm = "rw"
    rows = PAIRS
    arguments = ("center_coef=0.01",)


class TestPreferences(AlgorithmKit):
    algorithm = "dpo"
    rows = PAIRS


class TestLossTypes(AlgorithmKit):
    algorithm = "dpo"
    rows = PAIRS
    settings = LOSS_TYPES
    skip = IN_ONE_PROCESS

    def cases(self) -> list[str]:
        return list(self.settings)


class TestSingleAnswers(AlgorithmKit):
    algorithm = "dpo"
    rows = LABELLED
    arguments = ("loss_type=kto", "dataset.name=unpaired_preference")
    skip = IN_ONE_PROCESS
