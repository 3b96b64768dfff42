"""`reallm eval --lm-eval` on tasks in local files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from reallm.cli.main import run as reallm
from tests.helpers.jobs import Command
from tests.lm_eval_harness.conftest import theirs

DOCUMENTS = [
    {"question": "The sky on a clear day is", "choices": [" blue", " made of cheese"], "answer": 0},
    {"question": "Paris is the capital of", "choices": [" Brazil", " France"], "answer": 1},
    {"question": "Two plus two is", "choices": [" four", " eleven"], "answer": 0},
]
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WORDS = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two tasks; the working directory is beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    for name, body in (("facts", CHOICE), ("words", WORDS)):
        about = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\ntest_split: test"
        (folder / f"{name}.yaml").write_text(about + body)
    return folder


def test_results_are_those_of_the_harness_with_its_own_model(
    checkpoints: dict[str, Path], tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoints["smollm2"]
    arguments = ["eval", f"model.path={model}", "--lm-eval", "facts,words", "--include-path", str(tasks)]
    assert reallm([*arguments, "--json", "result.json"]) == 0
    found = {
        (row["task"], row["metric"]): row["value"] for row in json.loads(Path("result.json").read_text())["results"]
    }
    expected = simple_evaluate(
        theirs(model), tasks=["facts", "words"], task_manager=TaskManager(include_path=str(tasks))
    )
    assert expected is not None
    of_facts, of_words = expected["results"]["facts"], expected["results"]["words"]
    assert found == {
        ("facts", "acc"): of_facts["acc,none"],
        ("facts", "acc_norm"): of_facts["acc_norm,none"],
        ("words", "exact_match"): of_words["exact_match,none"],
    }
    assert found["facts", "acc"] == 1.0
    out = capsys.readouterr().out
    assert "facts  acc          none    1.000" in out


def test_two_ranks_give_the_result_of_one(checkpoints: dict[str, Path], tasks: Path) -> None:
    results = []
    for name, layout in (("one", []), ("two", ["parallel.tp=2"])):
        keys = [f"model.path={checkpoints['tiny']}", "--lm-eval", "facts,words", "--include-path", str(tasks)]
        ended = Command(tasks.parent, ["eval", *keys, "--limit", "2", "--json", f"{name}.json", *layout]).end()
        assert ended.code == 0, ended.err
        results.append(json.loads(Path(f"{name}.json").read_text())["results"])
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lm-eval", "fact"], "--lm-eval fact: the harness has no such task; did you mean 'facts'"),
        (["--lm-eval", "gone.yaml"], "--lm-eval gone.yaml: the harness has no such task"),
        (["--lm-eval", ","], "--lm-eval names no task"),
        (["--lm-eval", "facts", "dataset.path=x"], "dataset.* names rows, but --lm-eval evaluates on tasks"),
        (["--limit", "3", "dataset.path=x"], "--limit is an option of the harness; name its tasks, --lm-eval TASKS"),
    ],
)
def test_mistakes_are_one_line(
    checkpoints: dict[str, Path],
    tasks: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    options = ["--include-path", str(tasks)] if "--lm-eval" in arguments else []
    assert reallm(["eval", f"model.path={checkpoints['tiny']}", *options, *arguments]) == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_a_chat_template_that_is_asked_for_must_exist(
    checkpoints: dict[str, Path], tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(checkpoints["tiny"], "model", ignore=shutil.ignore_patterns("chat_template*"))
    keys = ["model.path=model", "--lm-eval", "facts", "--include-path", str(tasks)]
    assert reallm(["eval", *keys, "--apply-chat-template"]) == 2
    assert "--apply-chat-template: the tokenizer has no chat template" in capsys.readouterr().err


def test_the_folder_of_tasks_must_exist(checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    keys = [f"model.path={checkpoints['tiny']}", "--lm-eval", "facts", "--include-path", "gone"]
    assert reallm(["eval", *keys]) == 2
    assert "--include-path gone: there is no such folder" in capsys.readouterr().err
