"""Algorithms of third parties that replace one interface of ours: `reallm-my-ppo`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.third_party.conftest import PLUGINS

TINY_MODELS = """
import json
import torch
from reallm import ReaLModel
from reallm.demo.tokenizer import byte_tokenizer
from transformers import LlamaConfig

tokenizer = byte_tokenizer()
sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id, **sizes)
ReaLModel.from_llama(config, dtype=torch.float32, seed=1).save_pretrained("model", tokenizer=tokenizer)
ReaLModel.from_llama(config, dtype=torch.float32, seed=2, is_critic=True).save_pretrained("reward", tokenizer=tokenizer)
with open("prompts.jsonl", "w") as file:
    for n in range(8):
        print(json.dumps({"prompt": f"Say {n}."}), file=file)
"""

RUN = (
    *("my-ppo", "actor.path=model", "reward.path=reward"),
    *("dataset.train_path=prompts.jsonl", "dataset.train_bs_n_seqs=4", "ppo.ppo_n_minibatches=1"),
    *("ppo.gen.max_new_tokens=4", "max_steps=1", "loggers=[jsonl]"),
)


def n_lines(distribution):
    """Lines of the Python files of a distribution."""
    files = (PLUGINS / distribution / "src").rglob("*.py")
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def test_the_documentation_states_its_lines():
    page = (PLUGINS.parent.parent / "docs" / "write-an-algorithm.md").read_text(encoding="utf-8")
    assert f"Its Python files have {n_lines('reallm-my-ppo')} lines in all." in page


def test_a_reward_interface_of_the_packages_own_replaces_that_of_ppo(environment):
    here = environment("reallm-my-ppo")
    made = subprocess.run([sys.executable, "-c", TINY_MODELS], cwd=here.folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    rewards = {}
    for cost in (0, 100):
        done = here.reallm(*RUN, f"token_cost={cost}", f"name=cost{cost}")
        assert done.returncode == 0, done.stderr
        lines = (here.folder / "runs" / f"cost{cost}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        first = next(line for line in map(json.loads, lines) if "actor_train/reward" in line)
        rewards[cost] = first["actor_train/reward"], first["actor_train/completions/mean_length"]
    assert rewards[0][1] == rewards[100][1]
    assert rewards[0][0] - rewards[100][0] == pytest.approx(100 * rewards[0][1], rel=1e-5)
