"""The way of a new plugin: written by `reallm plugins new`, installed by pip, found, checked, used in a run."""

from __future__ import annotations

import json

import pytest

from tests.third_party.conftest import fresh_environment, pip_install

TINY_MODEL = """
from reallm import ReaLModel
from reallm.demo.tokenizer import byte_tokenizer
from transformers import LlamaConfig

tokenizer = byte_tokenizer()
sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id, **sizes)
ReaLModel.from_llama(config).save_pretrained("model", tokenizer=tokenizer)
"""


FOLDERS = ["reallm-my-rows", "reallm-my-log", "reallm-hf-my-model", "reallm-my-callback", "reallm-my-rl"]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """An environment with a plugin of each kind that were written in it a moment ago."""
    environment = fresh_environment(tmp_path_factory.mktemp("fresh"))
    for kind, name in (
        ("dataset", "my-rows"),
        ("logger", "my-log"),
        ("family", "my-model"),
        ("callback", "my-callback"),
        ("algorithm", "my-rl"),
    ):
        done = environment.forked().reallm("plugins", "new", kind, name)
        assert done.returncode == 0, done.stderr
    pip_install(environment, *(str(environment.folder / name) for name in FOLDERS))
    return environment


@pytest.fixture(scope="module")
def here(fresh):
    """The same, with a tiny model, for what needs torch."""
    here = fresh.forked()
    here.compute(TINY_MODEL)
    return here


def test_they_are_found(fresh):
    done = fresh.reallm("plugins", "--json")
    assert done.returncode == 0, done.stdout
    rows = {row["distribution"]: row for row in json.loads(done.stdout)["plugins"]}
    assert rows["reallm-my-rows"]["offers"] == [{"kind": "dataset", "name": "my-rows"}]
    assert rows["reallm-my-log"]["offers"] == [{"kind": "logger", "name": "my-log"}]
    assert rows["reallm-my-callback"]["offers"] == [{"kind": "callback", "name": "my-callback"}]
    assert rows["reallm-my-rl"]["offers"] == [{"kind": "algorithm", "name": "my-rl"}]
    assert rows["reallm-hf-my-model"]["offers"] == [{"kind": "family", "name": "my_model"}]


@pytest.mark.parametrize("folder", FOLDERS)
def test_their_own_tests_pass(here, folder):
    is_forked = "ignore::pytest.PytestAssertRewriteWarning"  # of plugins of pytest that are imported already
    done = here.run("-m", "pytest", "-q", "-W", "error", "-W", is_forked, folder)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["my-rows", "dataset.train_path=reallm-my-rows/tests/rows.jsonl"], ["my-log"], ["my_model"]],
    ids=lambda arguments: arguments[0],
)
def test_they_pass_the_conformance_kit_from_the_command_line(here, arguments):
    done = here.reallm("plugins", "check", "--json", *arguments)
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["passed"]
    assert report["counts"]["passed"] > 10


def test_a_model_is_trained_with_the_dataset_and_the_logger(here):
    rows = "reallm-my-rows/tests/rows.jsonl"
    done = here.reallm(
        "sft",
        "model.path=model",
        "dataset.name=my-rows",
        f"dataset.train_path={rows}",
        f"dataset.valid_path={rows}",
        "dataset.train_bs_n_seqs=2",
        "loggers=[jsonl,my-log]",
        "callbacks=[my-callback]",
        "name=run",
    )
    assert done.returncode == 0, done.stderr
    folder = here.folder / "runs" / "run"
    wanted = {
        (record["step"], name, value)
        for record in map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        for name, value in record.items()
        if name != "step"
    }
    lines = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    logged = {(int(step), name, float(value)) for step, name, value in (line.split(",") for line in lines)}
    assert logged == wanted
    assert {name for _, name, _ in logged} >= {"train/loss", "eval/loss"}


def test_a_model_is_trained_with_the_algorithm(here):
    prompts = "dataset.train_path=reallm-my-rl/tests/prompts.jsonl"
    done = here.reallm("my-rl", "actor.path=model", prompts, "max_new_tokens=4", "loggers=[jsonl]", "name=rl")
    assert done.returncode == 0, done.stderr
    assert "train/best_score" in (here.folder / "runs" / "rl" / "metrics.jsonl").read_text(encoding="utf-8")
