"""All that reallm relies on, checked by its conformance kit."""

from pathlib import Path
from typing import ClassVar

from reallm_devkit import AlgorithmKit

PROMPTS = Path(__file__).with_name("prompts.jsonl")


class TestRaft(AlgorithmKit):
    algorithm = "raft"
    arguments: ClassVar = [f"dataset.train_path={PROMPTS}", "n=3", "max_new_tokens=6"]
    settings: ClassVar = {"wanted": ["reward=reallm_raft.rewards:wanted"]}
