"""The main job on real input: `reallm sft` fine-tunes SmolLM2 on text it gets better at, and transformers loads it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import transformers

from reallm.cli.main import run
from reallm.engine.real_model import ReaLModel
from tests.helpers.docstrings import docstring_rows
from tests.helpers.smollm2 import smollm2_folder


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_loss_on_held_out_docstrings_falls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = docstring_rows()
    random.Random(0).shuffle(rows)
    train, valid = write(tmp_path / "train.jsonl", rows[12:]), write(tmp_path / "valid.jsonl", rows[:12])

    code = run(
        [
            "sft", f"model.path={smollm2_folder()}", f"dataset.train_path={train}", f"dataset.valid_path={valid}",
            "dataset.max_seqlen=96", "dataset.train_bs_n_seqs=8", "optimizer.lr=1e-4", "max_steps=4",
            "eval_max_new_tokens=8", f"output_dir={tmp_path}", "name=docstrings", "loggers=[jsonl]",
        ]
    )  # fmt: skip

    assert code == 0
    folder = tmp_path / "docstrings"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [record["eval/loss"] for record in records if "eval/loss" in record]
    assert len(losses) == 2
    assert losses[1] < 0.9 * losses[0], losses

    checkpoint = folder / "checkpoints" / "last"
    assert f"checkpoint: {checkpoint.resolve()}" in capsys.readouterr().out
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    prompt = tokenizer(rows[0]["prompt"], return_tensors="pt")
    theirs = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    ours = ReaLModel.from_pretrained(checkpoint)
    [completion] = ours.generate([prompt["input_ids"][0].tolist()], max_new_tokens=12, temperature=0.0)
    assert completion.token_ids == theirs.tolist()
