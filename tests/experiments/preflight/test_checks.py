"""What is found out before a model is loaded."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from reallm.algorithms.graph import Graph
from reallm.algorithms.sft.config import SFTConfig
from reallm.config.args import CallArgs, ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.errors import ConfigError
from reallm.experiments.preflight import checks
from tests.algorithms import three_roles
from tests.helpers import fake_plugins
from tests.helpers.run_folders import write_run
from tests.helpers.tiny_config import TINY


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_plugins.install(monkeypatch)


@pytest.fixture
def known_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any config.json is one that an installed family reads."""
    monkeypatch.setattr(checks, "family_for", lambda raw, path, implementation: None)
    monkeypatch.setattr(checks, "config_from_hf", lambda family, raw, source: None)


def config(tmp_path: Path, **changes) -> SFTConfig:
    values = {
        "model": ModelArgs(path=str(tmp_path)),
        "dataset": fake_plugins.RowsConfig(train_path="t.jsonl"),
        "output_dir": str(tmp_path / "runs"),
        **changes,
    }
    return SFTConfig(**values)


def check(config: SFTConfig) -> None:
    checks.check(config, Graph.of(fake_plugins.OFFERS["algorithm"]["sft"], config))


def refused(config: SFTConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check(config)
    assert "\n" not in str(caught.value)


def checkpoint(folder: Path, *, tokenizer: bool = True) -> Path:
    import torch
    from safetensors.torch import save_file

    (folder / "config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer:
        (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_configuration_that_is_right_passes(tmp_path, known_family):
    checkpoint(tmp_path)
    check(config(tmp_path))


def test_an_unknown_logger(tmp_path):
    refused(config(tmp_path, loggers=["jsonl", "mlflow"]), r"^loggers=\[jsonl,mlflow\]: no logger 'mlflow'")


def test_a_run_folder_that_is_taken(tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"^model\.path"):  # an empty folder may be used
        check(config(tmp_path, name="mine"))
    (tmp_path / "runs" / "mine" / "config.yaml").write_text("")
    refused(config(tmp_path, name="mine"), "^name=mine: the run folder .* exists; choose another name or remove it")


def test_a_run_folder_that_is_taken_by_a_run_can_be_resumed(tmp_path):
    write_run(tmp_path / "runs" / "mine", settings={})
    refused(config(tmp_path, name="mine"), "; choose another name or remove it; to continue it: resume=mine$")


def test_a_folder_of_runs_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    refused(config(tmp_path, output_dir=str(tmp_path / "file")), "file is a file; give the path of a folder")
    refused(config(tmp_path, output_dir=str(tmp_path / "file" / "runs")), "file is a file; give the path of a folder")


def test_a_folder_of_runs_that_is_not_writable(tmp_path, monkeypatch):
    monkeypatch.setattr(checks.os, "access", lambda path, mode: False)
    refused(config(tmp_path), "is not writable; give another folder")


def test_what_the_dataset_checks_itself(tmp_path):
    dataset = fake_plugins.RowsConfig(train_path="t.csv")
    refused(config(tmp_path, dataset=dataset), r"^dataset\.train_path: t\.csv: unknown extension")


def test_a_warm_up_longer_than_the_training(tmp_path):
    with pytest.raises(ConfigError, match=r"^optimizer\.warmup_steps=10 must be less than max_steps=10$"):
        config(tmp_path, optimizer=OptimizerConfig(warmup_steps=10), max_steps=10)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{tmp}/nope", r"^model\.path: .*nope does not exist"),
        ("{tmp}/a.txt", r"^model\.path: .*a\.txt is a file"),
        ("{tmp}", r"^model\.path: .* no config\.json"),
    ],
)
def test_a_path_without_a_checkpoint(path, message, tmp_path):
    (tmp_path / "a.txt").write_text("")
    refused(config(tmp_path, model=ModelArgs(path=path.format(tmp=tmp_path))), message)


def test_a_family_that_is_not_installed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    refused(config(tmp_path), r"^model\.path: .*no installed family reads model_type 'llama'.*reallm-hf-llama")


def test_a_checkpoint_without_weights(tmp_path, known_family):
    (tmp_path / "config.json").write_text("{}")
    refused(config(tmp_path), rf"^model\.path: .*{re.escape(str(tmp_path))}.*safetensors")


def test_a_checkpoint_without_tokenizer(tmp_path, known_family):
    checkpoint(tmp_path, tokenizer=False)
    refused(config(tmp_path), r"^model\.path: no tokenizer in .*tokenizer\.json")


def test_a_number_format_that_cannot_be_trained(tmp_path, known_family):
    checkpoint(tmp_path)
    refused(config(tmp_path, model=ModelArgs(path=str(tmp_path), dtype="float16")), r"^model\.dtype=float16 .*bfloat16")


def test_a_gpu_that_is_not_there(tmp_path, known_family, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoint(tmp_path)
    refused(config(tmp_path, model=ModelArgs(path=str(tmp_path), device="cuda")), r"^model\.device=cuda")


@pytest.mark.parametrize(
    ("layouts", "optimizer", "message"),
    [
        ({"actor_train": "tp3"}, "adamw", r"actor_train\.layout=tp3: tp=3 does not fit .* \(actor\.path=actor\)"),
        ({"ref_inf": "pp3@2-4"}, "adamw", r"ref_inf\.layout=pp3@2-4: pp=3 stages are too many .* \(ref\.path=ref\)"),
        ({"actor_gen": "tp2@3,1"}, "adamw", r"actor_gen\.layout=tp2@3,1: .* must ascend"),
        ({"actor_train": "dp2"}, "muon", r"optimizer\.name=muon .* which actor_train\.layout=dp2 would split"),
    ],
)
def test_layouts_of_calls_that_do_not_fit(monkeypatch, layouts, optimizer, message):
    monkeypatch.setattr(checks, "load_model_config", lambda path, implementation: TINY)
    calls = {name: CallArgs(layout) for name, layout in layouts.items()}
    config = three_roles.Config(optimizer=OptimizerConfig(name=optimizer), **calls)
    graph = Graph.of(three_roles.ALGORITHM, config)
    with pytest.raises(ConfigError, match=f"^{message}"):
        checks.check_layouts(config, graph, known=graph.roles)


def test_settings_of_a_role_that_have_no_effect():
    graph = Graph.of(three_roles.ALGORITHM, three_roles.Config())
    config = three_roles.Config(ref=ModelArgs(path="ref", optimizer={"lr": 1e-3}))
    with pytest.raises(
        ConfigError, match=r"^ref.optimizer.lr=0.001 has no effect: 'ref' is not trained; there is actor"
    ):
        checks.check_roles(config, graph)
    without_reference = Graph(tuple(call for call in graph.calls if call.role == "actor"))
    with pytest.raises(
        ConfigError, match=r"^ref.path=ref has no effect: with these settings, no call of the algorithm"
    ):
        checks.check_roles(three_roles.Config(), without_reference)


@pytest.mark.parametrize("name", [".", "nope"])
def test_a_checkpoint_that_two_roles_have_is_named_by_the_first(tmp_path, name):
    args = ModelArgs(path=str(tmp_path / name))
    config = three_roles.Config(actor=args, ref=args)
    graph = Graph.of(three_roles.ALGORITHM, config)
    with pytest.raises(ConfigError, match=r"^actor\.path: "):
        checks.check(dataclasses.replace(config, dataset=fake_plugins.RowsConfig(train_path="t.jsonl")), graph)


def test_a_path_without_a_model_to_evaluate(tmp_path):
    settings = config(tmp_path, model=ModelArgs(path=str(tmp_path / "nope")))
    graph = Graph.of(fake_plugins.OFFERS["algorithm"]["sft"], settings)
    with pytest.raises(ConfigError, match=r"^model\.path: .*nope does not exist"):
        checks.check(settings, graph, training=False)


def test_a_matrix_that_only_generation_splits_suits_any_optimizer(monkeypatch):
    monkeypatch.setattr(checks, "load_model_config", lambda path, implementation: TINY)
    calls = {"actor_gen": CallArgs("tp2"), "actor_train": CallArgs("pp2"), "ref_inf": CallArgs("dp2")}
    config = three_roles.Config(optimizer=OptimizerConfig(name="muon"), **calls)
    checks.check_layouts(config, Graph.of(three_roles.ALGORITHM, config), known=["actor", "ref"])
