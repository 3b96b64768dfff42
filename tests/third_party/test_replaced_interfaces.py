"""What third parties put in place of parts of ours: `reallm-my-task`, `reallm-my-ppo` and `reallm-my-remax`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.third_party.conftest import PLUGINS, Environment

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

ONE_STEP = ("actor.path=model", "max_steps=1", "loggers=[jsonl]", "seed=3")
PROMPTS = ("dataset.train_path=prompts.jsonl", "dataset.train_bs_n_seqs=4")
PPO = ("my-ppo", "reward.path=reward", "ppo.ppo_n_minibatches=1", "ppo.gen.max_new_tokens=4", *PROMPTS)
REMAX = ("reward=rewards.py:vowels", "gen.max_new_tokens=6", *PROMPTS)
TASK = ("dataset.name=my-task", "dataset.size=8", "dataset.largest=4", "dataset.train_bs_n_seqs=2", "reward=my-task")

VOWELS = """
def vowels(completions):
    return [float(sum(letter in text for letter in "aeiou")) - len(text) for text in completions]
"""


def n_lines(distribution):
    """Lines of the Python files of a distribution."""
    files = (PLUGINS / distribution / "src").rglob("*.py")
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    Environment(Path(sys.executable), (), folder).compute(TINY_MODELS)
    (folder / "rewards.py").write_text(VOWELS, encoding="utf-8")
    return folder


@pytest.fixture
def metrics_of_a_step(environment, inputs):
    """`metrics_of_a_step(distribution, arguments)`: what a run of one step logs."""

    def run(distribution, *arguments):
        here = environment(distribution)
        shutil.copytree(inputs, here.folder, dirs_exist_ok=True)
        done = here.reallm(*arguments, *ONE_STEP, "name=run")
        assert done.returncode == 0, done.stderr
        text = (here.folder / "runs" / "run" / "metrics.jsonl").read_text(encoding="utf-8")
        shutil.rmtree(here.folder / "runs")
        return {name: value for line in text.splitlines() for name, value in json.loads(line).items()}

    return run


@pytest.mark.parametrize("distribution", ["reallm-my-ppo", "reallm-my-remax"])
def test_the_documentation_states_its_lines(distribution):
    page = (PLUGINS.parent.parent / "docs" / "write-an-algorithm.md").read_text(encoding="utf-8")
    assert f"| `{distribution}` | {n_lines(distribution)} | " in page


def test_a_dataset_and_a_reward_of_one_package_are_a_task(metrics_of_a_step):
    metrics = metrics_of_a_step("reallm-my-task", "grpo", "num_generations=2", "gen.max_new_tokens=2", *TASK)
    assert 0 <= metrics["train/rewards/my-task/mean"] <= 1


def test_a_reward_interface_of_the_packages_own_replaces_that_of_ppo(metrics_of_a_step):
    free, costly = (metrics_of_a_step("reallm-my-ppo", *PPO, f"token_cost={cost}") for cost in (0, 100))
    length = free["actor_train/completions/mean_length"]
    assert length == costly["actor_train/completions/mean_length"]
    difference = free["actor_train/reward"] - costly["actor_train/reward"]
    assert difference == pytest.approx(100 * length, rel=1e-5)


def test_remax_as_a_graph_and_a_policy_of_the_packages_own_agrees_with_the_preset(metrics_of_a_step):
    own = metrics_of_a_step("reallm-my-remax", "my-remax", *REMAX)
    ours = metrics_of_a_step("reallm-my-remax", "grpo", "preset=remax", *REMAX)
    assert own["train/reward"] == ours["train/reward"] != own["train/greedy_reward"]
    assert own["train/entropy"] == ours["train/entropy"]
    # The preset divides a summed loss by the longest answer that is allowed.
    assert own["train/loss"] == pytest.approx(ours["train/loss"] * 6, rel=1e-6)
