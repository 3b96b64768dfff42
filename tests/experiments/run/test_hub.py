"""Uploads to the hub: what is checked before training, what is uploaded, and what is said when it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub.errors import LocalTokenNotFoundError

from reallm.cli.main import run as reallm
from reallm.errors import ConfigError, ReallmError
from reallm.experiments.run import hub
from reallm.experiments.runs.info import read_run
from tests.experiments.conftest import Trainer
from tests.helpers.run_folders import write_run


class FakeApi:
    """The hub's client, without the hub. What is done and what goes wrong is kept on the class."""

    user: dict[str, Any]
    error: Exception | None
    made: list[tuple[str, bool, bool]]
    commits: list[dict[str, bytes]]

    def whoami(self) -> dict[str, Any]:
        if isinstance(self.error, LocalTokenNotFoundError | ConnectionError):
            raise self.error
        return self.user

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> str:
        self.made.append((repo, private, exist_ok))
        return f"https://hub/{repo}"

    def create_commit(self, repo: str, operations: list[Any], *, commit_message: str) -> None:
        if self.error is not None:
            raise self.error
        self.commits.append({one.path_in_repo: _content(one.path_or_fileobj) for one in operations})


def _content(source: str | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    with open(source, "rb") as file:  # noqa: PTH123 - the client takes text
        return file.read()


@pytest.fixture(autouse=True)
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    user = {"name": "me", "orgs": [{"name": "our-lab"}], "auth": {"accessToken": {"role": "write"}}}
    fake = type("FakeApi", (FakeApi,), {"user": user, "error": None, "made": [], "commits": []})
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    return fake


def test_a_run_is_uploaded_when_it_is_done(trainer: Trainer, api: type[FakeApi]) -> None:
    result = trainer.run(trainer.config(n_valid=3, push_to_hub="our-lab/my-model", name="a"))
    assert api.made == [("our-lab/my-model", True, True)]
    (files,) = api.commits
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files.keys()
    assert not any("training_state" in name for name in files)
    assert result.checkpoint is not None
    assert files["model.safetensors"] == (result.checkpoint / "model.safetensors").read_bytes()
    assert "pushed to https://hub/our-lab/my-model" in trainer.output

    card = files["README.md"].decode()
    head = yaml.safe_load(card.split("---")[1])
    assert head == {"library_name": "transformers", "tags": ["reallm", "sft"]}
    assert "| `eval/loss` |" in card
    assert 'dataset.train_path: "train-10.jsonl"' in card
    assert "optimizer.lr: 0.001" in card
    assert str(trainer.folder) not in card


def test_the_best_checkpoint_is_taken_if_there_is_one(trainer: Trainer, api: type[FakeApi]) -> None:
    config = trainer.config(n_valid=3, epochs=2, eval_every=2, best_metric="eval/loss", best_mode="max")
    result = trainer.run(config)
    best = (result.run_dir / "checkpoints" / "best").resolve()
    assert best != result.checkpoint
    hub.push_run(result.run_dir, "me/it")
    assert api.commits[0]["model.safetensors"] == (best / "model.safetensors").read_bytes()


def test_the_card_names_the_library_and_the_base_of_the_trained_model(trainer: Trainer) -> None:
    run = read_run(trainer.run(trainer.config()).run_dir)
    whole = {"path": "org/base", "dtype": "auto", "lora": {"rank": None, "path": None}}
    adapted = whole | {"lora": {"rank": 4, "path": None}}
    for actor, ref, library in ((whole, adapted, "transformers"), (adapted, whole, "peft")):
        settings = {"plan": {"machine": "here.yaml"}, "actor": actor, "ref": ref | {"path": "org/other"}}
        card = hub.model_card(run, settings, "me/it")
        head = yaml.safe_load(card.split("---")[1])
        assert (head["library_name"], head["base_model"]) == (library, "org/base")
        assert "here.yaml" not in card


def test_nothing_is_uploaded_unless_asked_for(trainer: Trainer, api: type[FakeApi]) -> None:
    trainer.run(trainer.config())
    assert not api.made


@pytest.mark.parametrize(
    ("repo", "changes", "message"),
    [
        ("my-model", {}, "must name a repository as owner/name"),
        ("a/b/c", {}, "must name a repository as owner/name"),
        ("else/m", {}, "'me' may not write to 'else'; you may write to me, our-lab"),
        ("me/m", {"error": LocalTokenNotFoundError("no token")}, "not logged in to the hub; run `hf auth login`"),
        ("me/m", {"user": {"name": "me", "auth": {"accessToken": {"role": "read"}}}}, "your token is read-only"),
    ],
)
def test_what_would_fail_is_found_before_training(
    trainer: Trainer, api: type[FakeApi], repo: str, changes: dict[str, Any], message: str
) -> None:
    for name, value in changes.items():
        setattr(api, name, value)
    with pytest.raises(ConfigError) as error:
        trainer.run(trainer.config(push_to_hub=repo))
    assert str(error.value).startswith(f"push_to_hub={repo}: ")
    assert message in str(error.value)
    assert not (trainer.folder / "runs").exists()


def test_a_hub_that_cannot_be_reached_is_said_before_training(trainer: Trainer, api: type[FakeApi]) -> None:
    api.error = ConnectionError("no route")
    with pytest.raises(hub.HubError, match="push_to_hub=me/m: cannot log in to the hub: no route"):
        trainer.run(trainer.config(push_to_hub="me/m"))


def test_a_failure_after_training_is_one_line_with_the_command_for_later(
    trainer: Trainer, api: type[FakeApi], capsys: pytest.CaptureFixture[str]
) -> None:
    api.error = RuntimeError("the hub\nis down")
    result = trainer.run(trainer.config(push_to_hub="me/m", name="a"))
    line = f"push to me/m failed: the hub is down; to push later: reallm push {result.run_dir} me/m"
    assert line in trainer.output.splitlines()

    assert reallm(["push", str(result.run_dir), "me/m"]) == 2
    assert line in capsys.readouterr().err
    api.error = None
    assert reallm(["push", str(result.run_dir), "me/m"]) == 0
    assert capsys.readouterr().out == "pushed to https://hub/me/m\n"


@pytest.mark.parametrize("checkpoint", ["checkpoints/step-000001", "../mine"])
def test_the_run_of_somebody_else_uploads_no_file_from_elsewhere(
    tmp_path: Path, api: type[FakeApi], checkpoint: str
) -> None:
    secret = tmp_path / "mine" / "id"
    secret.parent.mkdir()
    secret.write_text("secret")
    run = write_run(tmp_path / "theirs", losses=[1.0], resumable=True, settings={}, checkpoint=checkpoint)
    (run / "checkpoints" / "step-000001" / "notes.txt").symlink_to(secret)
    with pytest.raises(ReallmError, match=r"notes.txt is a link that leads out|has no checkpoint to upload"):
        hub.push_run(run, "me/model")
    assert api.commits == []
