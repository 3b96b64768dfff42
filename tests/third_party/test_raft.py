"""The algorithm of the tutorial, `reallm-raft`: its graph, what it learns, and how it is evaluated and resumed."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.third_party.conftest import Environment

TINY_MODEL = """
import json
import torch
from reallm import ReaLModel
from reallm.demo.tokenizer import byte_tokenizer
from transformers import LlamaConfig

tokenizer = byte_tokenizer()
sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id, **sizes)
ReaLModel.from_llama(config, dtype=torch.float32, seed=1).save_pretrained("model", tokenizer=tokenizer)
with open("prompts.jsonl", "w") as file:
    for n in range(32):
        print(json.dumps({"prompt": f"Say {n}.", "wanted": str(n)}), file=file)
"""

RUN = (
    *("raft", "actor.path=model", "dataset.train_path=prompts.jsonl", "dataset.valid_path=prompts.jsonl"),
    *("dataset.train_bs_n_seqs=16", "n=8", "max_new_tokens=12", "optimizer.lr=0.01", "epochs=6", "eval_every=6"),
    *("loggers=[jsonl]", "eval_generations=2"),
)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    Environment(Path(sys.executable), (), folder).compute(TINY_MODEL)
    return folder


@pytest.fixture
def here(environment, inputs):
    here = environment("reallm-raft")
    shutil.copytree(inputs, here.folder, dirs_exist_ok=True)
    return here


def test_its_graph_is_drawn(here):
    done = here.reallm("graph", "raft")
    assert done.returncode == 0, done.stderr
    for name in ("actor_gen", "score", "actor_train", "input_ids", "scores"):
        assert name in done.stdout


def test_the_mean_reward_of_the_validation_prompts_rises(here):
    done = here.reallm(*RUN, "name=run")
    assert done.returncode == 0, done.stderr
    lines = metrics(here.folder / "runs" / "run")
    rewards = {line["step"]: line["eval/reward"] for line in lines if "eval/reward" in line}
    assert list(rewards) == [0, 6, 12]
    assert rewards[0] < 0.5
    assert rewards[12] > 0.9
    best = [line["train/best_score"] for line in lines if "train/best_score" in line]
    assert sum(best[-3:]) > sum(best[:3])
    samples = (here.folder / "runs" / "run" / "summary.html").read_text(encoding="utf-8")
    assert re.search(r"Say \d+\.", samples)


def test_a_reward_function_of_the_users_own_gets_texts_and_columns(here):
    (here.folder / "mine.py").write_text(
        "def score(prompt, answer, columns):\n"
        "    assert prompt == f\"Say {columns['wanted']}.\"\n"
        "    return -len(answer)\n",
        encoding="utf-8",
    )
    done = here.reallm(*RUN, "name=own", "reward=mine:score", "max_steps=1")
    assert done.returncode == 0, done.stderr
    assert metrics(here.folder / "runs" / "own")[0]["eval/reward"] <= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reward=mine"], "reward=mine is not a function; write module:function"),
        (["reward=nowhere:score"], "reward=nowhere:score: cannot import 'nowhere:score': No module named 'nowhere'"),
        (["n=0"], "n=0 must be at least 1"),
        (["temperature=0"], "temperature=0.0 must be more than 0, or all answers are the same"),
        (["reward=builtins:print"], "reward=builtins:print gives None for 'prompts.jsonl:2', not a number"),
    ],
)
def test_what_cannot_be_is_one_line(here, arguments, message):
    done = here.reallm(*RUN, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
