"""The run that `resume=` names: by name, by path, or by a checkpoint in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from reallm.errors import ConfigError
from reallm.experiments.runs.resumable import find_resumable
from tests.helpers.run_folders import write_run


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with three checkpoints, of which the newest has its training state, and a run that has saved nothing."""
    monkeypatch.chdir(tmp_path)
    run = write_run(Path("runs/first-try"), losses=[1.0] * 30, settings={}, resumable=True)
    for step in (10, 20):
        (run / "checkpoints" / f"step-{step:06d}").mkdir()
    (run / "checkpoints" / "last").symlink_to("step-000030")
    (run / "checkpoints" / "best").symlink_to("step-000020")
    write_run(Path("runs/new"), losses=[], settings={})
    write_run(Path("runs/.hidden"), settings={})
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")


@pytest.mark.parametrize(
    ("resume", "path"),
    [
        ("first-try", "runs/first-try"),
        ("runs/first-try", "runs/first-try"),
        ("runs/first-try/", "runs/first-try"),
        ("first-try/checkpoints/last", "runs/first-try"),
        ("runs/first-try/checkpoints", "runs/first-try"),
        ("runs/first-try/checkpoints/last", "runs/first-try"),
        ("runs/first-try/checkpoints/step-000030", "runs/first-try"),
        ("runs/first-try/checkpoints/step-30", "runs/first-try"),
        ("runs/first-try/checkpoints/last/training_state", "runs/first-try"),
        ("new", "runs/new"),
        (".hidden", "runs/.hidden"),
    ],
)
def test_a_run_is_found(resume, path):
    assert str(find_resumable(resume, "runs").path) == path


def test_a_path_comes_before_a_name():
    write_run(Path("new"), settings={})
    assert str(find_resumable("new", "runs").path) == "new"


def test_a_run_that_is_this_folder_has_its_name(monkeypatch):
    monkeypatch.chdir("runs/first-try")
    assert find_resumable(".", "runs").path == Path.cwd()
    assert find_resumable("checkpoints/last", "runs").path == Path.cwd()


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        (
            "runs/first-try/checkpoints/best",
            "a run can only be resumed from its newest checkpoint, here step-000030: write resume=runs/first-try, or "
            "start a new run from this one with model.path=runs/first-try/checkpoints/step-000020",
        ),
        (
            "first-try/checkpoints/step-10",
            "a run can only be resumed from its newest checkpoint, here step-000030: write resume=runs/first-try, or "
            "start a new run from this one with model.path=runs/first-try/checkpoints/step-000010",
        ),
        (
            "runs/first-try/checkpoints/step-40",
            "the run runs/first-try has no such checkpoint; it has step-000010, step-000020, step-000030",
        ),
        ("frist-try", "there is no such run; did you mean 'first-try'?"),
        ("runs/frist-try", "there is no such run; did you mean 'first-try'?"),
        ("frist-try/checkpoints/last", "there is no such run; did you mean 'first-try'?"),
        ("zzz", "there is no such folder, nor a run of this name in runs"),
        ("elsewhere/zzz", "there is no such folder"),
    ],
)
def test_what_cannot_be_resumed_says_what_to_do(resume, message):
    with pytest.raises(ConfigError) as caught:
        find_resumable(resume, "runs")
    assert str(caught.value) == f"resume={resume}: {message}"


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        ("model", "resume=model is a model's checkpoint, not a run; to train it, start a new run with "
                  "model.path=model, or actor.path=model"),
        ("runs", "resume=runs is not a run: runs has no config.yaml; it holds the runs .hidden, first-try, new"),
        ("runs/new/..", "resume=runs/new/.. is not a run: runs/new/.. has no config.yaml; it holds the runs .hidden, "
                        "first-try, new"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_run_says_what_it_is(resume, message):
    with pytest.raises(ConfigError) as caught:
        find_resumable(resume, "runs")
    assert str(caught.value) == message
