"""Runs of `rw` and `dpo`: what they save, what they resume, and what the reference is."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console

from reallm.algorithms.dpo.config import DPOConfig
from reallm.algorithms.graph import Graph
from reallm.algorithms.rw.config import RWConfig
from reallm.config.args import CriticArgs, ModelArgs, ReferenceArgs
from reallm.config.load import load
from reallm.config.optimizer import OptimizerConfig
from reallm.errors import ConfigError
from reallm.experiments.preflight.checks import check
from reallm.experiments.run.runner import RunResult, run
from reallm.plugins import registry
from tests.experiments.checkpointing.test_resume import assert_same_run, stop_after
from tests.experiments.conftest import records


def write_pairs(path: Path, n: int = 12) -> Path:
    """Rows whose better answers are about colours, and whose worse ones are about animals."""
    rows = []
    for number in range(n):
        draw = random.Random(number)
        chosen, rejected = draw.choices(["red", "blue", "old"], k=2 + number % 3), draw.choices(["sun", "sea"], k=3)
        rows.append(
            {"prompt": f"Say {number}:", "chosen": " " + " ".join(chosen), "rejected": " " + " ".join(rejected)}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_labelled(path: Path) -> Path:
    rows = [json.loads(line) for line in write_pairs(path).read_text().splitlines()]
    labelled = [
        {"prompt": row["prompt"], "completion": row["chosen" if i % 2 else "rejected"], "label": bool(i % 2)}
        for i, row in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    return path


def dataset(folder: Path, name: str = "rw_pair", *, valid: bool = True) -> Any:
    write = write_labelled if name == "unpaired_preference" else write_pairs
    train = write(folder / f"{name}.jsonl")
    return registry.get("dataset", name).config_class()(
        train_path=str(train), valid_path=str(train) if valid else None, max_seqlen=64, train_bs_n_seqs=4
    )


def common(folder: Path) -> dict[str, Any]:
    return {
        "optimizer": OptimizerConfig(lr=3e-3),
        "loggers": ["jsonl"],
        "output_dir": str(folder / "runs"),
        "eval_generations": 0,
    }


def dpo(folder: Path, checkpoint: Path, **settings: Any) -> DPOConfig:
    unpaired = settings.get("loss_type") in ("kto", "apo_zero_unpaired")
    defaults = {
        "actor": ModelArgs(path=str(checkpoint), device="cpu"),
        "ref": ReferenceArgs(device="cpu"),
        "dataset": dataset(folder, "unpaired_preference" if unpaired else "rw_pair"),
    }
    return DPOConfig(**{**common(folder), **defaults, **settings})


def rw(folder: Path, checkpoint: Path, **settings: Any) -> RWConfig:
    model = CriticArgs(path=str(checkpoint), device="cpu")
    return RWConfig(**{**common(folder), "model": model, "dataset": dataset(folder), **settings})


def quiet_run(config: Any) -> RunResult:
    name = "dpo" if isinstance(config, DPOConfig) else "rw"
    return run(config, name, name=name, console=Console(file=io.StringIO()))


def with_settings(checkpoint: Path, folder: Path, **settings: Any) -> Path:
    """A copy of a checkpoint whose `config.json` has other values."""
    shutil.copytree(checkpoint, folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | settings))
    return folder


def transformers_scores(checkpoint: Path, texts: list[str]) -> list[float]:
    """Scores of texts one by one, by transformers."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]


def reallm_scores(checkpoint: Path, texts: list[str]) -> list[float]:
    from reallm.engine.real_model import ReaLModel

    model = ReaLModel.from_pretrained(checkpoint)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    bounds = torch.tensor([0, *(len(each) for each in ids)]).cumsum(0)
    return model.scores(torch.cat(ids), bounds)[bounds[1:] - 1].tolist()


TEXTS = ["Say 3: red old", "Say 14: sun", "Hello"]


def test_a_reward_model_is_one_of_transformers_with_equal_scores_before_and_after_more_training(
    tmp_path: Path, checkpoint: Path
) -> None:
    first = quiet_run(rw(tmp_path, checkpoint, epochs=3, best_metric="eval/accuracy", best_mode="max"))
    saved = first.checkpoint
    assert first.metrics["eval/accuracy"] == 1
    assert transformers_scores(saved, TEXTS) == pytest.approx(reallm_scores(saved, TEXTS), abs=1e-5)

    # as transformers saves it, it is read again, and trained on from the same scores
    theirs = tmp_path / "theirs"
    transformers.AutoModelForSequenceClassification.from_pretrained(saved).save_pretrained(theirs)
    transformers.AutoTokenizer.from_pretrained(saved).save_pretrained(theirs)
    assert reallm_scores(theirs, TEXTS) == reallm_scores(saved, TEXTS)
    again = quiet_run(rw(tmp_path, theirs, name="again"))
    assert records(again)[0]["eval/loss"] == pytest.approx(first.metrics["eval/loss"], rel=1e-6)
    assert transformers_scores(again.checkpoint, TEXTS) == pytest.approx(
        reallm_scores(again.checkpoint, TEXTS), abs=1e-5
    )


def test_the_report_loads_a_reward_model_with_its_class(tmp_path: Path, checkpoint: Path) -> None:
    printed = io.StringIO()
    result = run(rw(tmp_path, checkpoint), "rw", name="rw", console=Console(file=printed, width=200))
    assert "model = AutoModelForSequenceClassification.from_pretrained(" in printed.getvalue()
    page = (result.run_dir / "summary.html").read_text()
    assert "AutoModelForSequenceClassification" in page
    assert "reallm generate" not in printed.getvalue() + page


KNOWN = {"sigmoid": math.log(2), "hinge": 1.0, "ipo": 25.0, "kto": 0.5}


@pytest.mark.parametrize("loss_type", KNOWN)
def test_dropout_in_the_config_does_not_change_the_first_loss(tmp_path: Path, checkpoint: Path, loss_type: str) -> None:
    noisy = with_settings(checkpoint, tmp_path / "noisy", attention_dropout=0.1)
    first = records(quiet_run(dpo(tmp_path, noisy, loss_type=loss_type, max_steps=1)))
    found = next(line["train/loss"] for line in first if "train/loss" in line)
    assert found == pytest.approx(KNOWN[loss_type], rel=1e-6)


@pytest.mark.parametrize("ref_logprobs", ["cache", "live"])
def test_the_reference_is_not_changed_by_training(tmp_path: Path, checkpoint: Path, ref_logprobs: Any) -> None:
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    result = quiet_run(dpo(tmp_path, checkpoint, ref_logprobs=ref_logprobs, epochs=7))
    assert result.steps == 21
    assert {file.name: file.read_bytes() for file in checkpoint.iterdir()} == before
    # what the policy says after training, minus the reward over beta, is what the reference says
    last, first = records(result)[-1], records(result)[0]
    for which in ("chosen", "rejected"):
        ref_logps = last[f"eval/logps/{which}"] - last[f"eval/rewards/{which}"] / 0.1
        assert ref_logps == pytest.approx(first[f"eval/logps/{which}"], rel=1e-5)


@pytest.mark.parametrize("loss_type", ["sigmoid", "aot", "kto"])
def test_cached_and_live_log_probabilities_of_the_reference_agree(
    tmp_path: Path, checkpoint: Path, loss_type: str
) -> None:
    cached, live = (
        records(quiet_run(dpo(tmp_path, checkpoint, loss_type=loss_type, epochs=2, ref_logprobs=how, name=how)))
        for how in ("cache", "live")
    )
    for one, other in zip(cached, live, strict=True):
        for name in one:
            if not name.endswith(("tokens_per_s", "memory_gib")):
                assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    "settings",
    [{}, {"ref_logprobs": "live"}, {"loss_type": "kto"}, {"sync_ref_model": True, "ref_model_sync_steps": 2}],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    def config(**changes: Any) -> DPOConfig:
        return dpo(tmp_path, checkpoint, epochs=2, **settings, **changes)

    whole = quiet_run(config(name="whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 3, signal.SIGTERM)
        assert quiet_run(config(name="stopped")).interrupted
    resumed = quiet_run(config(name="stopped", resume=str(tmp_path / "runs" / "stopped")))
    assert resumed.steps == 6
    assert_same_run(whole.run_dir, resumed.run_dir)


def test_a_stopped_reward_model_goes_on_bit_for_bit(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = with_settings(checkpoint, tmp_path / "noisy", attention_dropout=0.1)
    whole = quiet_run(rw(tmp_path, noisy, epochs=2, name="whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 3, signal.SIGTERM)
        assert quiet_run(rw(tmp_path, noisy, epochs=2, name="stopped")).interrupted
    resumed = quiet_run(rw(tmp_path, noisy, epochs=2, name="stopped", resume=str(tmp_path / "runs" / "stopped")))
    assert_same_run(whole.run_dir, resumed.run_dir)


def test_a_reference_that_is_the_policy_after_each_step_has_the_loss_of_equal_models(
    tmp_path: Path, checkpoint: Path
) -> None:
    following = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    for loss in (line["train/loss"] for line in records(quiet_run(dpo(tmp_path, checkpoint, **following)))[1:4]):
        assert loss == pytest.approx(math.log(2), rel=1e-5)


def test_a_reference_follows_the_policy_every_few_steps(tmp_path: Path, checkpoint: Path) -> None:
    settings = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.6, "epochs": 2}
    fixed, following = (
        [line["train/loss"] for line in records(quiet_run(dpo(tmp_path, checkpoint, **more))) if "train/loss" in line]
        for more in ({"epochs": 2, "ref_logprobs": "live", "name": "fixed"}, {**settings, "name": "following"})
    )
    assert fixed[:2] == following[:2]
    assert all(one < other for one, other in zip(fixed[2:], following[2:], strict=True))  # closer to the reference


def test_a_resumed_run_keeps_the_reference_that_it_began_with(tmp_path: Path, checkpoint: Path) -> None:
    result = quiet_run(dpo(tmp_path, checkpoint, max_steps=2))
    written = load(DPOConfig, [result.run_dir / "config.yaml"], ["actor.path=elsewhere"]).build()
    assert written.ref.path == str(checkpoint)


def test_a_policy_prefers_what_was_chosen(tmp_path: Path, checkpoint: Path) -> None:
    for loss_type in ("sigmoid", "simpo", "orpo"):
        settings = {"best_metric": "eval/rewards/accuracies", "best_mode": "max"}
        result = quiet_run(dpo(tmp_path, checkpoint, loss_type=loss_type, epochs=6, name=loss_type, **settings))
        assert result.metrics["eval/rewards/accuracies"] == 1


@pytest.mark.parametrize(("role", "is_critic"), [("actor", True), ("ref", True), ("model", False)])
def test_a_model_with_the_wrong_head_is_refused_before_it_is_loaded(
    tmp_path: Path, checkpoint: Path, role: str, is_critic: bool
) -> None:
    if is_critic:
        reward_model = quiet_run(rw(tmp_path, checkpoint, max_steps=1)).checkpoint
        args = {"actor": ModelArgs(path=str(checkpoint)), "ref": ReferenceArgs(path=str(checkpoint))}
        args[role] = dataclasses.replace(args[role], path=str(reward_model))
        config = dpo(tmp_path, checkpoint, **args)
        graph = Graph.of(registry.get("algorithm", "dpo"), config)
        with pytest.raises(
            ConfigError, match=f"^{role}.path=.*: LlamaForSequenceClassification is a reward model; take"
        ):
            check(config, graph)
    else:  # a language model gets a scalar head when a reward model is trained from it
        config = rw(tmp_path, checkpoint)
        check(config, Graph.of(registry.get("algorithm", "rw"), config))


def test_a_classifier_with_two_labels_is_no_reward_model(tmp_path: Path, checkpoint: Path) -> None:
    reward_model = quiet_run(rw(tmp_path, checkpoint, max_steps=1)).checkpoint
    other = with_settings(reward_model, tmp_path / "two", id2label={"0": "bad", "1": "good"})
    config = rw(tmp_path, other)
    with pytest.raises(ConfigError, match=r"model\.path: .*the head gives 2 numbers per token \(num_labels\)"):
        check(config, Graph.of(registry.get("algorithm", "rw"), config))
