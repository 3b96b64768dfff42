"""SmolLM2 on preferences: a reward model that transformers scores alike, and DPO that learns."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from reallm.cli.main import run
from reallm.engine.real_model import ReaLModel
from tests.helpers.smollm2 import smollm2_folder

SUMS = [
    {"prompt": f"What is {a} + {b}?", "chosen": f" It is {a + b}.", "rejected": f" Who knows, maybe {a + b + 1} or so?"}
    for a, b in (random.Random(seed).sample(range(2, 40), 2) for seed in range(12))
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SUMS), encoding="utf-8")
    return path


def command(algorithm: str, role: str, rows: Path, *more: str) -> list[dict[str, float]]:
    """The metrics of a run of three steps."""
    code = run(
        [
            algorithm, f"{role}.path={smollm2_folder()}", f"dataset.train_path={rows}", f"dataset.valid_path={rows}",
            "dataset.train_bs_n_seqs=6", "epochs=2", "max_steps=3", "eval_every=3", "eval_generations=0",
            f"output_dir={rows.parent}", "name=run", "loggers=[jsonl]",
            "optimizer.schedule=constant", "optimizer.warmup_steps=0", *more,
        ]
    )  # fmt: skip
    assert code == 0
    return [json.loads(line) for line in (rows.parent / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_reward_model_has_equal_scores_in_transformers_padded_or_not(rows: Path) -> None:
    metrics = command("rw", "model", rows, "optimizer.lr=5e-5")
    assert metrics[-1]["eval/loss"] < metrics[0]["eval/loss"]
    checkpoint = rows.parent / "run" / "checkpoints" / "last"
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    theirs: Any = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32)
    texts = [row["prompt"] + row["chosen"] for row in SUMS[:3]] + [SUMS[0]["prompt"] + SUMS[0]["rejected"]]
    tokenizer.pad_token = "<|im_start|>"  # not the token that ends texts, with which this model pads
    theirs.config.pad_token_id = tokenizer.pad_token_id
    padded = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = theirs(**padded).logits[:, 0].tolist()
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    bounds = torch.tensor([0, *(len(each) for each in ids)]).cumsum(0)
    ours = ReaLModel.from_pretrained(checkpoint, dtype="float32").scores(torch.cat(ids), bounds)[bounds[1:] - 1]
    assert ours.tolist() == pytest.approx(expected, abs=1e-3)
    assert max(expected) - min(expected) > 0.1  # not all the same


def test_dpo_learns_what_was_chosen(rows: Path) -> None:
    metrics = command("dpo", "actor", rows, "optimizer.lr=1e-5")
    assert metrics[0]["eval/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert metrics[-1]["eval/loss"] < 0.6
    assert metrics[-1]["eval/rewards/accuracies"] > 0.9
