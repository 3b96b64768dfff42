"""What people mistype, and the one line they get."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reallm.algorithms.sft.config import SFTConfig
from reallm.config.load import load
from reallm.errors import ReallmError
from tests.helpers import fake_plugins


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_plugins.install(monkeypatch)


def message(*arguments: str, files: list[Path] | None = None) -> str:
    """The error of these arguments, which must be one line."""
    with pytest.raises(ReallmError) as caught:
        load(SFTConfig, files or [], arguments).build()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("modle.path=x", "'model.path'"),
        ("model.pth=x", "'model.path'"),
        ("path=x", "'model.path'"),
        ("model_path=x", "'model.path'"),
        ("MODEL.PATH=x", "'model.path'"),
        ("dataset.train_pth=x", "'dataset.train_path'"),
        ("dataset.path=x", "'dataset.train_path'"),
        ("train_path=x", "'dataset.train_path'"),
        ("lr=1e-4", "'optimizer.lr'"),
        ("model.lr=1e-4", "'optimizer.lr'"),
        ("optim.lr=1e-4", "'optimizer.lr'"),
        ("warmup=10", "'optimizer.warmup_steps' or 'optimizer.warmup_ratio'"),
        ("optimizer.beta=0.9", "'optimizer.beta1' or 'optimizer.beta2'"),
        ("optimizer.lrr=1", "'optimizer.lr'"),
        ("epoch=3", "'epochs'"),
        ("logger=[jsonl]", "'loggers'"),
        ("dataset.paht=x", "'dataset.train_path' or 'dataset.valid_path'"),
        ("+optimizer.lr=1", "'optimizer.lr'"),
    ],
)
def test_an_unknown_key_names_the_nearest(typed, meant):
    key = typed.partition("=")[0]
    assert message(typed) == f"unknown key '{key}'; did you mean {meant}?"


@pytest.mark.parametrize("key", ["zzz", "optimizer.zzz", "best_model_of_all", "r", "optimizer.x"])
def test_without_a_similar_key_none_is_suggested(key):
    assert message(f"{key}=1") == f"unknown key '{key}'; --help lists all keys"


def test_the_keys_of_a_small_group_are_listed():
    assert message("dataset.a.b=1") == "unknown key 'dataset.a.b'; --help lists all keys"
    text = message("dataset.name=my-dataset", "dataset.x=1")
    assert text == "unknown key 'dataset.x'; keys of my-dataset: name, my_arg, mode, extra"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("optimizer.lr=fast", "optimizer.lr=fast: must be a number"),
        ("epochs=3.5", "epochs=3.5: must be a whole number"),
        ("epochs=null", "epochs must not be null; it must be a whole number"),
        ("eval_every=often", "eval_every=often: must be a whole number or null"),
        ("model.compile=maybe", "model.compile=maybe: must be true or false"),
        ("optimizer.schedule=cosinus", "must be one of cosine, linear, constant; did you mean 'cosine'?"),
        ("model.dtype=fp16", "model.dtype=fp16: must be one of auto, float32, bfloat16, float16"),
        ("model.device=gpu", "model.device=gpu: must be one of auto, cpu, cuda"),
        ("loggers=jsonl", "loggers=jsonl: must be a list; write loggers=[jsonl]"),
        ("name=run-${sed}", "name: Interpolation key 'sed' not found"),
        ("name=${", "a reference to a key is written ${key}"),
        ("dataset=my-dataset", "'dataset' is a group of keys, not a value; write dataset.name=VALUE"),
        ("model=path", "'model' is a group of keys, not a value; write model.path=VALUE"),
        ("dataset.name=nope", "no dataset 'nope' is installed; pip install"),
    ],
)
def test_a_wrong_value_tells_what_is_allowed(typed, said):
    assert said in message(typed)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--model.path", "x"], "'--model.path x': keys are written without dashes and with '=': model.path=x"),
        (["--model.path=x"], "'--model.path=x': keys are written without dashes and with '=': model.path=x"),
        (["--model", "x"], "'--model x': keys are written without dashes and with '=': model.path=x"),
        (["--lr", "1e-4"], "optimizer.lr=1e-4"),
        (["--learning-rate", "1e-4"], "optimizer.lr=1e-4"),
        (["--epochs", "3", "seed=1"], "'--epochs 3': keys are written without dashes and with '=': epochs=3"),
        (["-lr", "3"], "optimizer.lr=3"),
        (["--conf", "run.yaml"], "unknown option '--conf'; did you mean '--config'?"),
        (["--preview", "1"], "'--preview' is not an option of this command, but of those that train"),
        (["--xyzzy"], "unknown option '--xyzzy'; options are --config, --print-config, --preview, --dry-run, --help"),
        (["model.path"], "'model.path' has no value; write model.path=VALUE"),
        (["model.path="], "'model.path=' has no value; write model.path=VALUE"),
        (["model.path=", "x"], "'model.path=' has no value; write model.path=VALUE without spaces"),
        (["model.path", "=x"], "'model.path =x': write model.path=x without spaces"),
        (["model.path", "=", "x"], "'model.path = x': write model.path=x without spaces"),
        (["model.path = x"], "'model.path = x': write model.path=x without spaces"),
        (["=x"], "'=x' has no key"),
        (["run.yaml"], "to read a YAML file write --config run.yaml"),
        (["epoch"], "'epoch' is not key=value; did you mean epochs=VALUE?"),
        (["train"], "'train' is not key=value"),
    ],
)
def test_an_argument_that_is_not_key_value_tells_how_to_write_it(typed, said):
    assert said in message(*typed)


def test_a_path_alone_tells_the_key_of_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").touch()
    Path("model").mkdir()
    Path("model/config.json").touch()
    Path("run/checkpoints").mkdir(parents=True)
    for path, key in (("rows.jsonl", "dataset.train_path"), ("model", "model.path"), ("run", "model.path")):
        assert message(path) == f"'{path}' is not key=value; did you mean {key}={path}?"


def test_all_missing_keys_are_named_with_what_they_are():
    text = message()
    assert text.startswith("model.path is required: HuggingFace checkpoint")
    assert "; dataset.train_path is required: rows to train on" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("model:\n  path: [a\n", r"run\.yaml:\d: not valid YAML"),
        ("model:\n\tpath: a\n", r"run\.yaml:2: not valid YAML"),
        ("- model\n", r"run\.yaml:1: a configuration is 'key: value' lines"),
        ("model\n", r"run\.yaml:1: a configuration is 'key: value' lines"),
        ("seed: 1\nseed: 2\n", r"run\.yaml:2: not valid YAML: found duplicate key seed"),
        (
            "seed: 1\n\noptimizer:\n  lrr: 3\n",
            r"run\.yaml:4: unknown key 'optimizer\.lrr'; did you mean 'optimizer\.lr'",
        ),
        ("optimizer:\n  lr: fast\n", r"run\.yaml:2: optimizer\.lr=fast: must be a number"),
        ("optimizer: 3\n", r"run\.yaml:1: 'optimizer' is a group of keys"),
        ("model:\n  path: [a, b]\n", r"run\.yaml:2: model\.path=\['a', 'b'\]: must be text"),
        ("model:\n  path: {a: b}\n", r"run\.yaml:3: |run\.yaml:2: unknown key 'model\.path\.a'"),
        ("{[1]: 2}\n", r"run\.yaml.*: "),
        ("!!python/object:os.system {}\n", r"run\.yaml.*: not valid YAML"),
    ],
)
def test_a_mistake_in_a_file_names_file_and_line(content, said, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    assert re.search(said, message(files=[path]))


def test_a_file_that_cannot_be_read(tmp_path):
    assert "nope.yaml: No such file or directory" in message(files=[tmp_path / "nope.yaml"])
    assert "Is a directory" in message(files=[tmp_path])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml: not UTF-8 text" in message(files=[tmp_path / "binary.yaml"])
