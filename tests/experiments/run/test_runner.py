"""`run`: what it prints, what lies in the run folder afterwards, and that the numbers are those of the data."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from reallm.algorithms.context import CallContext
from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.data.datasets import DatasetUtility
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, DataError, UnknownNameError
from reallm.experiments.run import loggers as logs
from reallm.experiments.runs.folder import RunFolder
from reallm.loggers.jsonl import JsonlLogger
from reallm.loggers.tensorboard import TensorBoardLogger
from reallm.plugins import registry
from reallm.specs import ModelFunctionCall
from tests.experiments.conftest import Trainer, records
from tests.helpers.hangup import hangup_by_default


def steps_with(result: Any, metric: str) -> list[float]:
    return [record["step"] for record in records(result) if metric in record]


def test_a_run_leaves_a_folder_with_everything(trainer: Trainer) -> None:
    config = trainer.config(n_valid=5, epochs=2, save_every=2, keep_last=None, name="mine", loggers=["tensorboard"])
    result = trainer.run(config)

    folder = trainer.folder / "runs" / "mine"
    assert result.run_dir == folder
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "loss.png", "summary.json", "summary.html",
        "samples.jsonl", "data.json", ".lock",
    }  # fmt: skip
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tensorboard").glob("events.*"))

    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["epochs"] == 2
    assert saved["optimizer"]["lr"] == 1e-3
    assert saved["dataset"]["train_path"] == config.dataset.train_path

    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        "step-000002", "step-000004", "step-000006", "last",
    }  # fmt: skip
    assert (folder / "checkpoints" / "last").resolve() == (folder / "checkpoints" / "step-000006").resolve()
    assert result.checkpoint == folder / "checkpoints" / "step-000006"

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == summary["total_steps"] == 6
    assert summary["status"] == "done"
    assert summary["checkpoint"] == "checkpoints/step-000006"
    assert summary["metrics"]["eval/loss"] == records(result)[-1]["eval/loss"]


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_all_files_of_a_run_have_the_modes_of_the_umask(trainer: Trainer, umask: int) -> None:
    before = os.umask(umask)
    try:
        result = trainer.run(trainer.config(n_valid=5, loggers=["tensorboard"]))
    finally:
        os.umask(before)
    paths = [path for path in [result.run_dir, *result.run_dir.rglob("*")] if not path.is_symlink()]
    wanted = {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in paths}
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in paths} == wanted


def test_it_says_what_will_happen_and_how_to_go_on(trainer: Trainer) -> None:
    result = trainer.run(trainer.config(n_valid=5))
    for expected in (
        str(trainer.checkpoint), "parameters, float32 on cpu", "train-10.jsonl: 10 rows", "valid.jsonl: 5 rows",
        "3 steps of 4 samples, 3 an epoch", "step 1/3  loss ", "tokens/s", "step 3/3", "eval/perplexity",
        f'AutoModelForCausalLM.from_pretrained("{result.checkpoint}")', f"reallm generate --model {result.checkpoint}",
    ):  # fmt: skip
        assert expected in trainer.output, expected


def test_metrics_are_complete_and_count_every_token_once_an_epoch(trainer: Trainer) -> None:
    result = trainer.run(trainer.config(epochs=2))
    steps = records(result)
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    for record in steps:
        assert record.keys() == {
            "step", "epoch", "train/loss", "train/perplexity", "train/accuracy", "train/loss_tokens", "train/lr",
            "train/grad_norm", "train/tokens", "train/tokens_per_s", "train/memory_gib",
        }  # fmt: skip
    assert [record["epoch"] for record in steps] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    # 10 rows in steps of 4, 4 and 2: both epochs see the same tokens
    for key in ("train/tokens", "train/loss_tokens"):
        assert sum(record[key] for record in steps[:3]) == sum(record[key] for record in steps[3:])
        assert steps[2][key] < steps[0][key]


def test_the_same_run_twice_gives_the_same_numbers_and_another_seed_others(trainer: Trainer) -> None:
    def numbers(**changes: Any) -> list[dict[str, float]]:
        result = trainer.run(trainer.config(n_valid=3, epochs=2, **changes))
        return [
            {k: v for k, v in record.items() if not k.endswith(("tokens_per_s", "memory_gib"))}
            for record in records(result)
        ]

    first = numbers(name="a")
    assert numbers(name="b") == first
    assert numbers(name="c", seed=2) != first


def test_results_do_not_depend_on_the_token_budget(trainer: Trainer) -> None:
    losses = []
    for budget in (1, 40, 8192):
        result = trainer.run(trainer.config(epochs=2, max_tokens_per_microbatch=budget, name=f"budget-{budget}"))
        losses.append([record["train/loss"] for record in records(result)])
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)


def test_the_checkpoint_is_what_was_trained_and_transformers_loads_it(trainer: Trainer) -> None:
    result = trainer.run(trainer.config(n_valid=4, epochs=3))
    assert result.checkpoint is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(result.checkpoint)
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.checkpoint)
    original = transformers.AutoTokenizer.from_pretrained(trainer.checkpoint)
    assert tokenizer.get_vocab() == original.get_vocab()
    assert tokenizer.chat_template == original.chat_template

    valid = registry.get("dataset", "prompt_answer").dataset_class()
    total, count = 0.0, 0
    for sample in _all(valid(util=DatasetUtility(1, 0, 1, tokenizer), path=str(trainer.folder / "valid.jsonl"))):
        with torch.no_grad():
            logits = model(sample.input_ids[None]).logits[0]
        nll = torch.nn.functional.cross_entropy(logits[:-1], sample.input_ids[1:], reduction="none")
        total += nll[sample.loss_mask[1:]].sum().item()
        count += int(sample.loss_mask[1:].sum())
    assert records(result)[-1]["eval/loss"] == pytest.approx(total / count, rel=1e-5)
    assert records(result)[-1]["eval/perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


def _all(dataset: Any) -> list[NamedArray]:
    return [dataset[i] for i in range(len(dataset))]


def test_evaluation_comes_first_then_once_an_epoch_then_at_the_end(trainer: Trainer) -> None:
    each_epoch = trainer.run(trainer.config(n_valid=3, epochs=3, max_steps=7, name="a"))
    assert steps_with(each_epoch, "eval/loss") == [0, 3, 6, 7]
    every_two = trainer.run(trainer.config(n_valid=3, epochs=2, max_steps=5, eval_every=2, name="b"))
    assert steps_with(every_two, "eval/loss") == [0, 2, 4, 5]
    assert steps_with(every_two, "train/loss") == [1, 2, 3, 4, 5]
    without = trainer.run(trainer.config(name="c"))
    assert steps_with(without, "eval/loss") == []


def test_it_learns_32_rows_by_heart(trainer: Trainer) -> None:
    config = trainer.config(n_rows=32, batch_size=16, epochs=70, optimizer=OptimizerConfig(lr=8e-3))
    result = trainer.run(config)
    assert records(result)[0]["train/loss"] > 4
    assert result.metrics["train/loss"] < 0.05
    assert result.checkpoint is not None
    model = ReaLModel.from_pretrained(result.checkpoint)
    row = json.loads(Path(config.dataset.train_path).read_text().splitlines()[7])
    [completion] = model.generate([row["prompt"]], temperature=0.0, max_new_tokens=30)
    assert completion.text == row["answer"]
    assert completion.finish_reason == "stop"


def test_a_bfloat16_run_saves_in_the_format_of_the_checkpoint(trainer: Trainer) -> None:
    args = ModelArgs(path=str(trainer.checkpoint), device="cpu", dtype="bfloat16", gradient_checkpointing="full")
    result = trainer.run(trainer.config(model=args))
    assert "bfloat16 on cpu" in trainer.output
    assert result.checkpoint is not None
    assert next(ReaLModel.from_pretrained(result.checkpoint).parameters()).dtype == torch.float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::UserWarning:torch.*")
def test_compiled_blocks_and_recomputed_activations_train_the_same(trainer: Trainer) -> None:
    losses = {}
    for name, changes in {
        "plain": {},
        "compiled": {"compile": True},
        "selective": {"gradient_checkpointing": "selective"},
        "full": {"gradient_checkpointing": "full"},
    }.items():
        args = ModelArgs(path=str(trainer.checkpoint), device="cpu", **changes)
        result = trainer.run(trainer.config(model=args, name=name))
        losses[name] = [line["train/loss"] for line in records(result)]
    assert losses["selective"] == losses["full"] == losses["plain"]
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-5)  # float32, other order of sums


def test_ctrl_c_saves_and_says_where(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    log = JsonlLogger.log

    def log_and_interrupt(self: JsonlLogger, step: int, metrics: Mapping[str, float]) -> None:
        log(self, step, metrics)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(JsonlLogger, "log", log_and_interrupt)
    before = signal.getsignal(signal.SIGINT)
    result = trainer.run(trainer.config(n_valid=3, epochs=5))
    assert result.interrupted
    assert result.steps == 2
    assert result.checkpoint == result.run_dir / "checkpoints" / "step-000002"
    assert "stopped after 2 steps" in trainer.output
    assert str(result.checkpoint) in trainer.output
    assert ReaLModel.from_pretrained(result.checkpoint).config.n_layers == 2
    assert json.loads((result.run_dir / "summary.json").read_text())["status"] == "stopped"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_step_saves_nothing(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JsonlLogger, "log", lambda self, step, metrics: os.kill(os.getpid(), signal.SIGTERM))
    result = trainer.run(trainer.config(n_valid=3))
    assert result.checkpoint is None
    assert result.steps == 0
    assert "nothing is saved" in trainer.output


def test_a_second_ctrl_c_stops_at_once(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(self: JsonlLogger, step: int, metrics: Mapping[str, float]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(JsonlLogger, "log", twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(trainer.config(name="twice"))
    assert not (trainer.folder / "runs" / "twice" / "checkpoints").exists()


def test_a_signal_while_the_reports_are_written_does_not_end_the_run(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_plot(folder: RunFolder, echo: Callable[[str], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        folder.plot.touch()

    monkeypatch.setattr("reallm.experiments.run.runner.write_plot", write_plot)
    with hangup_by_default():
        result = trainer.run(trainer.config())
    assert not result.interrupted
    assert (result.run_dir / "loss.png").exists()


def test_a_failing_logger_is_reported_once_and_the_run_goes_on(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: TensorBoardLogger, step: int, metrics: Mapping[str, float]) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(TensorBoardLogger, "log", fail)
    result = trainer.run(trainer.config(loggers=["tensorboard"]))
    assert trainer.output.count("logger 'tensorboard' failed and is switched off") == 1
    assert "RuntimeError: the disk is on fire" in trainer.output
    assert steps_with(result, "train/loss") == [1, 2, 3]


def test_a_failing_jsonl_costs_the_curves_and_not_the_checkpoint(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: JsonlLogger, run_dir: Path, config: Mapping[str, Any]) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(JsonlLogger, "__init__", fail)
    result = trainer.run(trainer.config())
    assert "logger 'jsonl' failed" in trainer.output
    assert "no plot of the losses" in trainer.output
    assert result.checkpoint is not None
    assert result.checkpoint.is_dir()


def test_a_logger_without_its_package_is_a_note(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    result = trainer.run(trainer.config(loggers=["jsonl", "tensorboard"]))
    assert (
        "logger 'tensorboard' is off, since its packages are missing: pip install \"reallm-core[tensorboard]\""
        in trainer.output
    )
    assert not (result.run_dir / "tensorboard").exists()


def test_an_unknown_logger_is_named_before_anything_is_trained(trainer: Trainer) -> None:
    with pytest.raises(UnknownNameError, match="tensorbord.*did you mean 'tensorboard'"):
        trainer.run(trainer.config(loggers=["tensorbord"]))
    assert trainer.output == ""
    assert not (trainer.folder / "runs").exists()


def test_a_run_folder_is_never_written_into_twice(trainer: Trainer) -> None:
    trainer.run(trainer.config(name="once"))
    with pytest.raises(ConfigError, match=r"runs/once exists and is not empty; give another name="):
        trainer.run(trainer.config(name="once"))


def test_a_run_that_cannot_start_leaves_no_folder(trainer: Trainer) -> None:
    config = trainer.config(name="bad")
    Path(config.dataset.train_path).write_text('{"prompt": "no answer"}\n')
    with pytest.raises(DataError, match=r"train-10\.jsonl:1"):
        trainer.run(config)
    assert not (trainer.folder / "runs" / "bad").exists()


def test_a_dataset_without_the_keys_of_the_algorithm_is_named(trainer: Trainer) -> None:
    path = trainer.folder / "prompts.jsonl"
    path.write_text('{"prompt": "hello"}\n')
    dataset = registry.get("dataset", "prompt").config_class()(train_path=str(path))
    with pytest.raises(DataError, match=r"'train' needs 'input_ids', which dataset 'prompt' does not give"):
        trainer.run(trainer.config(dataset=dataset))


class Weighted(SFTInterface):
    """An algorithm of two calls: one looks at the data, the other trains on what it found."""

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        keep = torch.ones_like(batch["loss_mask"])
        return NamedArray(keep=keep).with_metadata(seqlens={"keep": batch.metadata["seqlens"]["loss_mask"]})

    def train_step(self, engine: Any, batch: NamedArray, context: CallContext) -> dict[str, float]:
        assert bool(batch["keep"].all())
        return super().train_step(engine, batch, context)


def test_an_algorithm_with_several_calls_runs_in_the_order_of_its_keys(trainer: Trainer) -> None:
    look = ModelFunctionCall("look", "model", "inference", ("loss_mask",), ("keep",))
    train = ModelFunctionCall("fit", "model", "train_step", ("input_ids", "loss_mask", "keep"))
    plain = trainer.run(trainer.config(n_valid=3, name="plain"))
    trainer.algorithm = dataclasses.replace(trainer.algorithm, graph=(train, look), interfaces={"model": Weighted})
    result = trainer.run(trainer.config(n_valid=3, name="weighted"))
    losses = [record["train/loss"] for record in records(result) if "train/loss" in record]
    assert losses == [record["train/loss"] for record in records(plain) if "train/loss" in record]
    assert result.metrics["eval/loss"] == plain.metrics["eval/loss"]
