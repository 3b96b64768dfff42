"""Folders that people give as a checkpoint: runs, adapters, Git LFS pointers, folders around a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from reallm.checkpoint.reader import open_checkpoint
from reallm.checkpoint.save import write_tokenizer
from reallm.errors import CheckpointError, ConfigError
from reallm.experiments.preflight.checks import check_checkpoint
from reallm.hf.checkpoint_folder import base_folder, read_hf_config, resolve_path
from reallm.hf.conversion.transformers_io import load_tokenizer
from tests.helpers.hf_grid import raw_config, save_hf
from tests.helpers.tokenizers import tiny_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 538090408\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    save_hf(raw_config("gqa"), folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """The folder of a run with checkpoints after steps 9 and 10, as `reallm sft` leaves it."""
    made = tmp_path / "runs" / "mine"
    for step in ("step-000009", "step-000010"):
        shutil.copytree(folder, made / "checkpoints" / step)
    (made / "config.yaml").write_text("epochs: 1\n")
    (made / "checkpoints" / "last").symlink_to("step-000010")
    return made


class TestRun:
    def test_means_its_newest_checkpoint(self, run: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert resolve_path(run) == run / "checkpoints" / "step-000010"
        assert resolve_path(str(run / "checkpoints")) == run / "checkpoints" / "step-000010"
        assert (
            f"{run} is the folder of a run; its newest checkpoint is taken, {run}/checkpoints/step-000010"
            in (caplog.messages[0])
        )
        assert "best" not in caplog.text

    def test_names_its_best_checkpoint_if_that_is_another(self, run: Path, caplog: pytest.LogCaptureFixture) -> None:
        (run / "checkpoints" / "best").symlink_to("step-000009")
        resolve_path(run)
        assert caplog.messages[0].endswith(f"step-000010; its best is {run}/checkpoints/best")

    def test_without_links(self, run: Path) -> None:
        (run / "checkpoints" / "last").unlink()
        assert resolve_path(run) == run / "checkpoints" / "step-000010"

    def test_without_a_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "config.yaml").touch()
        with pytest.raises(CheckpointError, match="but that of a run that has saved nothing yet"):
            read_hf_config(resolve_path(tmp_path))

    def test_a_folder_of_runs(self, run: Path) -> None:
        with pytest.raises(CheckpointError, match="it holds the runs 'mine': give one of them"):
            read_hf_config(resolve_path(run.parent))

    def test_a_checkpoint_in_it_is_itself(self, run: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert resolve_path(run / "checkpoints" / "last") == run / "checkpoints" / "last"
        assert not caplog.messages


class TestAdapter:
    @pytest.fixture
    def adapter(self, tmp_path: Path) -> Path:
        made = tmp_path / "adapter"
        made.mkdir()
        (made / "adapter_model.safetensors").touch()
        content = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
        (made / "adapter_config.json").write_text(json.dumps(content))
        return made

    def test_is_named_with_its_base_and_how_to_merge_them(self, adapter: Path) -> None:
        with pytest.raises(
            CheckpointError, match=r"adapter holds an adapter of 'org/base', not a whole model"
        ) as caught:
            read_hf_config(adapter)
        assert f"model.lora.path={adapter}, or --adapter {adapter}" in str(caught.value)
        assert f"reallm merge {adapter} --base MODEL --output FOLDER" in str(caught.value)

    def test_beside_the_config_of_its_base(self, adapter: Path, original: Path) -> None:
        shutil.copy(original / "config.json", adapter)
        with pytest.raises(CheckpointError, match="holds an adapter of 'org/base'"):
            open_checkpoint(adapter)

    def test_whose_config_is_broken(self, adapter: Path) -> None:
        (adapter / "adapter_config.json").write_text("[]")
        with pytest.raises(CheckpointError, match="holds an adapter, not a whole model; give its base model"):
            read_hf_config(adapter)

    @pytest.mark.parametrize("base", ["x" * 5000, "~nobody-has-this-name/base"], ids=["long", "nobody"])
    def test_whose_base_is_no_path_at_all(self, adapter: Path, base: str) -> None:
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        with pytest.raises(CheckpointError, match=r"^the path .* cannot be used \(.+\); give another one$"):
            base_folder(adapter)


class TestGitLFSPointer:
    SAID = r"{} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull` in "

    def test_in_place_of_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").write_text(POINTER)
        with pytest.raises(CheckpointError, match=self.SAID.format("model.safetensors")):
            open_checkpoint(folder)

    def test_in_place_of_an_index(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(POINTER)
        with pytest.raises(CheckpointError, match=self.SAID.format("model.safetensors.index.json")):
            open_checkpoint(folder)

    def test_in_place_of_a_config(self, folder: Path) -> None:
        (folder / "config.json").write_text(POINTER)
        with pytest.raises(CheckpointError, match=self.SAID.format("config.json")):
            read_hf_config(folder)

    def test_in_place_of_a_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text(POINTER)
        with pytest.raises(CheckpointError, match=self.SAID.format("tokenizer.json")):
            load_tokenizer(folder)
        with pytest.raises(ConfigError, match=f"model.path: .*{self.SAID.format('tokenizer.json')}"):
            check_checkpoint("model.path", str(folder))


class TestFolderAround:
    def test_one_checkpoint(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match=f"holds no config.json: .*; did you mean {folder}"):
            read_hf_config(folder.parent)

    def test_several_checkpoints(self, folder: Path) -> None:
        shutil.copytree(folder, folder.parent / "critic")
        with pytest.raises(CheckpointError, match="there are checkpoints in its folders 'critic', 'model'"):
            read_hf_config(folder.parent)

    def test_a_cache_of_the_hub(self, folder: Path, tmp_path: Path) -> None:
        snapshot = shutil.copytree(folder, tmp_path / "hub" / "models--org--name" / "snapshots" / "abc")
        with pytest.raises(CheckpointError, match=f"did you mean {snapshot}"):
            read_hf_config(tmp_path / "hub" / "models--org--name")


class TestLinksOutOfTheFolder:
    """They are not followed: what they lead to would be read, and copied into the next checkpoint."""

    @pytest.fixture
    def secret(self, tmp_path: Path) -> Path:
        (tmp_path / "secret").write_text("secret")
        return tmp_path / "secret"

    @pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "chat_templates/x.jinja"])
    def test_are_not_followed_by_the_tokenizer(self, folder: Path, secret: Path, name: str) -> None:
        link(folder / name, secret)
        with pytest.raises(
            CheckpointError, match=f"^{folder / name} is a link that leads out of its folder, to .*secret"
        ):
            load_tokenizer(folder)

    @pytest.mark.parametrize("name", ["tokenizer.json", "chat_templates/x.jinja", "additional_chat_templates/x.jinja"])
    def test_are_not_copied(self, folder: Path, secret: Path, tmp_path: Path, name: str) -> None:
        link(folder / name, secret)
        (tmp_path / "new").mkdir()
        with pytest.raises(CheckpointError, match="leads out of its folder"):
            write_tokenizer(tmp_path / "new", carry_from=folder, tokenizer=None)
        assert not [file for file in (tmp_path / "new").rglob("*") if file.is_file()]

    def test_are_refused_before_training(self, folder: Path, secret: Path) -> None:
        link(folder / "added_tokens.json", secret)
        with pytest.raises(ConfigError, match=r"model\.path: .*added_tokens\.json is a link that leads out"):
            check_checkpoint("model.path", str(folder))


def link(file: Path, target: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    file.symlink_to(target)


def test_a_pipe_among_the_files_of_a_tokenizer_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "merges.txt")
    with pytest.raises(CheckpointError, match=r"merges\.txt cannot be read \(it is not a regular file\)"):
        load_tokenizer(folder)


def test_an_adapter_whose_base_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": ')
    with pytest.raises(CheckpointError, match=r"adapter_config\.json cannot be read as JSON"):
        base_folder(tmp_path)
