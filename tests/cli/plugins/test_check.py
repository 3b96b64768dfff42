"""`reallm plugins check`: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reallm import builtin
from reallm.cli.main import run
from reallm.plugins import registry
from reallm.plugins.finder import Plan, Plugin
from reallm_devkit import DATASET_CHECKS, LOGGER_CHECKS
from tests.devkit.testing.datasets.broken_datasets import ROWS

NAMES = (
    *(f"dataset.{name}" for name in ("words", "both", "strange")),
    *(f"logger.{name}" for name in ("lines", "both", "forgetful", "first-line", "loud")),
)


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = Plugin("reallm-offering", "1.0", "tests.devkit.testing.offering_plugin", NAMES)
    loggers = (f"logger.{name}" for name in ("jsonl", "tensorboard", "trackio", "wandb"))
    algorithms = (f"algorithm.{name}" for name in builtin.reallm_algorithms())
    core = Plugin("reallm-core", "0.1", "reallm.builtin", (*algorithms, *loggers))
    made = registry.Registry(Plan((core, ours)))
    monkeypatch.setattr(registry, "registry", lambda: made)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")


def test_what_keeps_its_promises_is_a_line_for_each_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "lines"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "logger lines of reallm-offering 1.0"
    assert [line.split()[1] for line in out[2 : 2 + len(LOGGER_CHECKS)]] == [check.name for check in LOGGER_CHECKS]
    assert "passed   steps         6 values logged" in out
    assert "skipped  killed        a LoggerKit with read(run_dir) would look at what is there before close()" in out
    assert out[-1].startswith(f"{len(LOGGER_CHECKS) - 1} passed, 1 skipped in ")


def test_a_dataset_takes_its_keys_as_a_run_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "words", "dataset.train_path=rows.jsonl", "dataset.my_arg=3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["name"], found["passed"]) == ("dataset", "words", True)
    assert [result["check"] for result in found["results"]] == [check.name for check in DATASET_CHECKS]
    assert found["counts"] == {"passed": len(DATASET_CHECKS), "failed": 0, "skipped": 0}


def test_what_fails_is_explained_and_gives_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "first-line"]) == 1
    out = capsys.readouterr().out
    assert "failed   continues     " in out
    failure = out.partition("\n\ncontinues: a run that is continued in its folder keeps what was logged before\n")[2]
    labels = [line[2:10].strip() for line in failure.splitlines() if line.startswith("  ") and line[2] != " "]
    assert labels == ["expected", "seen", "where", "look at"]
    assert "broken_loggers.py:" in failure
    assert "'log.jsonl', continued after step 4" in failure


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "first-line", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    (failed,) = [result for result in found["results"] if result["status"] == "failed"]
    assert failed["check"] == "continues"
    assert set(failed["failure"]) == {"expected", "seen", "where", "look_at"}


def test_what_a_plugin_prints_is_not_in_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "loud", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["passed"]
    assert "step 1000000" in captured.err


def test_a_logger_whose_package_is_missing_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("reallm_devkit.testing.loggers.recording.is_installed", lambda module: False)
    assert run(["plugins", "check", "trackio"]) == 0
    assert 'skipped  torn-file     needs trackio: pip install "reallm-core[trackio]"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("words", "dataset.train_path is required: rows with a key 'text'"),
        ("wrds", "no installed plugin offers anything named 'wrds'; did you mean 'words'?"),
        ("words --kind logger", "no installed plugin offers the logger 'words'"),
        ("words --kind datset", "--kind datset: there is no such kind of plugin; did you mean 'dataset'?"),
        ("both", "dataset.train_path is required: rows with a key 'text'"),
        ("both --json", "'both' is the name of the dataset and of the logger; say which is meant: --kind dataset"),
        ("sft", "an algorithm is checked with a tiny model, and no family is installed; pip install reallm-hf-llama"),
        ("sft dataset.train_path=rows.jsonl --checkpoint x", "--checkpoint is for model families; an algorithm"),
        ("words dataset.train_pth=x", "unknown key 'dataset.train_pth'; did you mean 'dataset.train_path'?"),
        ("words train_path=x", "unknown key 'train_path'; did you mean 'dataset.train_path'?"),
        ("words dataset.train_path=rows.jsonl dataset.my_arg=x", "dataset.my_arg=x: must be a whole number"),
        ("words dataset.train_path=rows.jsonl dataset.name=both", "dataset.name=both is another dataset than words"),
        ("words dataset.train_path=rows.jsonl tokenizer=nowhere", "tokenizer=nowhere: nowhere does not exist"),
        ("words dataset.train_path=rows.jsonl --checkpoint x", "--checkpoint is for model families"),
        ("strange dataset.train_path=rows.jsonl", "dataset 'strange': its configuration cannot be read: "),
        ("lines run_dir=x", "'run_dir=x': a logger is checked without keys; write reallm plugins check lines"),
        ("lines --checkpoint x", "'--checkpoint': a logger is checked without keys"),
    ],
)
def test_what_cannot_be_checked_is_one_line_and_exit_code_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plugins", "check", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_a_name_that_is_two_things_is_checked_as_the_one_that_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "both", "--kind", "logger"]) == 0
    assert capsys.readouterr().out.startswith("logger both of reallm-offering 1.0\n")


def test_help_is_as_wide_as_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "check", "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "--checkpoint" in out
