"""A changed file of a checkpoint is named before training goes on, and by `reallm verify`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reallm.checkpoint.checksums import CHECKSUMS
from reallm.cli.main import run as command
from reallm.errors import CheckpointError
from reallm.experiments.runs.folder import TRAINING_STATE
from reallm.plugins import registry
from tests.experiments.conftest import Trainer

STEP = "step-000002"


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Trainer:
    return Trainer(tmp_path_factory.mktemp("verify"), checkpoint, registry.get("algorithm", "sft"))


@pytest.fixture(scope="module")
def saved(trainer: Trainer) -> Path:
    """The folder of a run that has saved after its second step."""
    return trainer.run(trainer.config(name="run", max_steps=2)).run_dir


@pytest.fixture
def run_dir(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    copy = saved.with_name(f"{tmp_path.name}-{tmp_path.parent.name}")
    shutil.copytree(saved, copy, symlinks=True)
    return copy


def resume(trainer: Trainer, run_dir: Path) -> None:
    trainer.run(trainer.config(name=run_dir.name, max_steps=3, resume=str(run_dir)))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    f"{TRAINING_STATE}/state.json",
    f"{TRAINING_STATE}/model/model.safetensors",
]


@pytest.mark.parametrize("at", [0, -1])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_named_before_training_goes_on(trainer: Trainer, run_dir: Path, name: str, at: int) -> None:
    path = run_dir / "checkpoints" / STEP / name
    flip(path, at)
    with pytest.raises(CheckpointError) as caught:
        resume(trainer, run_dir)
    assert str(caught.value) == (
        f"{path} has other bytes than when it was saved; copy it again, or, if you changed it yourself, remove "
        f"{path.parents[name.count('/model/')] / CHECKSUMS}"
    )


@pytest.mark.parametrize("name", [CHECKSUMS, f"{TRAINING_STATE}/{CHECKSUMS}"])
def test_so_is_one_in_the_checksums(trainer: Trainer, run_dir: Path, name: str) -> None:
    path = run_dir / "checkpoints" / STEP / name
    for at in (0, path.read_text().index("xxh3") + 15, path.stat().st_size - 8):
        flip(path, at)
        with pytest.raises(CheckpointError, match="checksums.json is damaged"):
            resume(trainer, run_dir)
        flip(path, at)


def test_missing_and_shortened_files(trainer: Trainer, run_dir: Path) -> None:
    path = run_dir / "checkpoints" / STEP / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        CheckpointError, match=f"has {len(content) - 1} bytes, and had {len(content)} when it was saved"
    ):
        resume(trainer, run_dir)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing; copy it again"):
        resume(trainer, run_dir)


def test_a_state_without_its_own_file_is_no_older_save(trainer: Trainer, run_dir: Path) -> None:
    state = run_dir / "checkpoints" / STEP / TRAINING_STATE
    (state / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state.json is missing; copy it again"):
        resume(trainer, run_dir)
    (state / CHECKSUMS).unlink()
    with pytest.raises(CheckpointError, match=r"state.json is damaged \(.*\); the optimizer's state is lost"):
        resume(trainer, run_dir)


def test_files_of_others_beside_the_checkpoint_do_not_matter(trainer: Trainer, run_dir: Path) -> None:
    (run_dir / "checkpoints" / STEP / "README.md").write_text("mine")
    resume(trainer, run_dir)


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", f"{TRAINING_STATE}/rank-1.json"])
def test_one_that_was_added_is_named_if_it_could_be_read(trainer: Trainer, run_dir: Path, name: str) -> None:
    path = run_dir / "checkpoints" / STEP / name
    path.write_text("{}")
    with pytest.raises(CheckpointError, match=f"{path} was not there when this was saved; remove it"):
        resume(trainer, run_dir)


def test_blanks_that_were_added_to_the_checksums_are_named_too(trainer: Trainer, run_dir: Path) -> None:
    path = run_dir / "checkpoints" / STEP / CHECKSUMS
    path.write_text(path.read_text() + " ")
    with pytest.raises(CheckpointError, match="checksums.json is damaged"):
        resume(trainer, run_dir)


def test_a_checkpoint_without_checksums_is_resumed_as_before_and_said_to_have_none(
    trainer: Trainer, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_dir / "checkpoints" / STEP
    (folder / TRAINING_STATE / CHECKSUMS).unlink()
    assert command(["verify", str(run_dir)]) == 0
    assert f"as saved, but no checksums in '{TRAINING_STATE}'; what is there can be" in capsys.readouterr().out
    (folder / CHECKSUMS).unlink()
    assert command(["verify", str(run_dir)]) == 0
    assert f"{STEP}: no checksums; it can be read, with the training state" in capsys.readouterr().out
    resume(trainer, run_dir)
    assert f"note: {folder} has no {CHECKSUMS}; damage to its files is not noticed" in trainer.output


def test_the_command_checks_all_checkpoints_of_a_run(
    trainer: Trainer, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume(trainer, run_dir)
    capsys.readouterr()
    assert command(["verify", str(run_dir)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{STEP}: ")
    assert first.endswith("all as saved")
    assert second.endswith("all as saved, with the training state of step 3")
    flip(run_dir / "checkpoints" / STEP / "config.json", 5)
    assert command(["verify", str(run_dir)]) == 2
    printed = capsys.readouterr()
    assert f"{STEP}: damaged: {run_dir / 'checkpoints' / STEP / 'config.json'} has other bytes" in printed.out
    assert printed.err == f"error: {run_dir}: 1 of 2 checkpoints damaged, as said above\n"
    assert command(["verify", str(run_dir / "checkpoints" / "step-000003")]) == 0
    capsys.readouterr()
    assert command(["verify", str(run_dir / "nothing")]) == 2
    assert "does not exist; give the folder of a run or of a checkpoint" in capsys.readouterr().err


BEST = {"metric": "eval/loss", "value": 1.0, "step": 1, "checkpoint": "checkpoints/step-000001"}


def _set(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_set("step", value=-5), "'step' is -5, not a number from 0 to 1000000000000"),
        (_set("step", value=10**30), "'step' is 10{30}, not a number"),
        (_set("step", value=True), "'step' is True"),
        (_set("step", value=3), "'step' is 3, in the checkpoint step-000002"),
        (_set("evaluated_step", value="2"), "'evaluated_step' is '2'"),
        (_set("engines", value=[]), r"'engines' is \[\], not an object"),
        (_set("engines", value={"../model": {}}), "'engines' has '../model', which is no role"),
        (_set("engines", "model", "step", value=None), "'engines.model.step' is None"),
        (_set("metrics", value={"a": "b"}), "'metrics.a' is 'b', not a number"),
        (
            _set("best", value={"metric": "a", "value": 1, "step": 1, "checkpoint": "/etc"}),
            "'best.checkpoint' is '/etc'",
        ),
        (_set("seconds", value=-1), "'seconds' is -1"),
        (_set("versions", value={"torch": 2}), "'versions.torch' is 2, not text"),
        (_set("generators", "python", value=[3, [1, 2], None]), "generators: "),
        (_set("generators", "numpy", value=["MT19937", [-1], 0, 0, 0.0]), "generators: "),
        (_set("generators", "torch", value={"cpu": [1, 2]}), "generators: "),
        (_set("generators", "torch", value={"disk": [1]}), "generators: 'disk' is no device"),
        (_set("callbacks", value=3), "'callbacks' is 3"),
        (lambda content: content.pop("data"), "'data' is missing"),
    ],
)
def test_a_state_with_values_that_it_cannot_have(trainer: Trainer, run_dir: Path, edit: Any, reason: str) -> None:
    folder = run_dir / "checkpoints" / STEP / TRAINING_STATE
    (folder / CHECKSUMS).unlink()
    content = json.loads((folder / "state.json").read_text())
    edit(content)
    (folder / "state.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"state.json is damaged \({reason}") as caught:
        resume(trainer, run_dir)
    assert "\n" not in str(caught.value)
