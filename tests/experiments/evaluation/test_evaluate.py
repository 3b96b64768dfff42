"""`evaluate` and `reallm eval`: the numbers of an evaluation in training, in any layout, and what is written."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from reallm.algorithms.sft.config import SFTConfig
from reallm.cli.main import run as reallm
from reallm.config.args import ModelArgs
from reallm.config.parallel import ParallelArgs
from reallm.engine.real_model import ReaLModel
from reallm.errors import DataError, NonFiniteError
from reallm.experiments.evaluation.evaluate import EvalResult, evaluate
from reallm.launch.job import Job
from reallm.plugins import registry
from tests.experiments.conftest import Trainer, mixture, records
from tests.helpers.ranks import on_ranks
from tests.helpers.tokenizers import tiny_tokenizer


def last_evaluation(trainer: Trainer, **changes: Any) -> tuple[dict[str, float], SFTConfig]:
    """The metrics of a run's last evaluation, and the configuration that evaluates its last checkpoint."""
    config = trainer.config(**{"n_valid": 5, **changes})
    result = trainer.run(config)
    metrics = {name: value for name, value in records(result)[-1].items() if name.startswith("eval/")}
    model = dataclasses.replace(config.model, path=str(result.checkpoint))
    return metrics, dataclasses.replace(config, model=model)


def evaluated(config: SFTConfig, job: Job | None = None) -> EvalResult:
    return evaluate(config, registry.get("algorithm", "sft"), console=Console(file=io.StringIO()), job=job)


def test_metrics_are_those_of_the_evaluation_in_training(trainer: Trainer) -> None:
    metrics, config = last_evaluation(trainer, max_tokens_per_microbatch=40)
    result = evaluated(config)
    assert result.metrics == metrics
    assert result.n_samples == 5


def test_without_validation_data_the_training_data_is_evaluated(trainer: Trainer) -> None:
    metrics, config = last_evaluation(trainer)
    rows = dataclasses.replace(config.dataset, train_path=config.dataset.valid_path, valid_path=None)
    assert evaluated(dataclasses.replace(config, dataset=rows)).metrics == metrics


def evaluate_on_rank(rank: int, n_ranks: int, config: SFTConfig, output: str) -> None:
    torch.set_num_threads(1)
    store = dist.PrefixStore(output, dist.distributed_c10d._get_default_store())
    result = evaluated(config, Job(rank, n_ranks, rank, n_ranks, store))
    Path(output, f"{rank}.json").write_text(json.dumps(dict(result.metrics)))


@pytest.mark.parametrize("parallel", [ParallelArgs(dp=2, zero=3), ParallelArgs(tp=2), ParallelArgs(pp=2)], ids=str)
def test_in_any_layout_all_ranks_get_the_same(trainer: Trainer, tmp_path: Path, parallel: ParallelArgs) -> None:
    config = trainer.config(n_valid=5, model=ModelArgs(path=str(trainer.checkpoint), device="cpu"))
    expected = evaluated(config).metrics
    on_ranks(2, evaluate_on_rank, 2, dataclasses.replace(config, parallel=parallel), str(tmp_path))
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    assert found[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("parallel", [ParallelArgs(dp=2), ParallelArgs(tp=2)], ids=str)
def test_metrics_of_each_source_are_those_of_the_evaluation_in_training(
    trainer: Trainer, tmp_path: Path, parallel: ParallelArgs
) -> None:
    metrics, config = last_evaluation(trainer, dataset=mixture(trainer), max_steps=2)
    assert {"eval/loss/few", "eval/loss/many"} < set(metrics)
    assert evaluated(config).metrics == metrics
    on_ranks(2, evaluate_on_rank, 2, dataclasses.replace(config, parallel=parallel), str(tmp_path))
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1] == pytest.approx(metrics, rel=1e-5)


def test_rows_of_a_mixture_are_evaluated_once_whatever_their_weights(trainer: Trainer) -> None:
    printed = io.StringIO()
    config = trainer.config(dataset=mixture(trainer, valid_fraction=None))
    console = Console(file=printed, width=200)
    assert evaluate(config, registry.get("algorithm", "sft"), console=console).n_samples == 80
    assert "rows: 80 samples of 2 sources: few 20, many 60\n" in printed.getvalue()


def test_data_without_samples_is_an_error(trainer: Trainer) -> None:
    (trainer.folder / "empty.jsonl").write_text('{"prompt": "", "answer": ""}\n')
    config = trainer.config()
    rows = dataclasses.replace(config.dataset, train_path=str(trainer.folder / "empty.jsonl"))
    with pytest.raises(DataError):
        evaluated(dataclasses.replace(config, dataset=rows))


def test_rows_longer_than_the_model_is_made_for_are_warned_of(trainer: Trainer) -> None:
    config = trainer.config()
    write = trainer.folder / "long.jsonl"
    write.write_text(json.dumps({"prompt": "the sea", "answer": "blue " * 300}) + "\n")
    dataset = dataclasses.replace(config.dataset, train_path=str(write), max_seqlen=300)
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    evaluate(dataclasses.replace(config, dataset=dataset), registry.get("algorithm", "sft"), console=console)
    assert "warning: 1 of 1 sample has more than the 256 tokens that" in printed.getvalue().replace("\n", " ")


def test_a_model_that_gives_nothing_finite_is_an_error(trainer: Trainer) -> None:
    folder = trainer.folder / "overflowing"
    model = ReaLModel.from_pretrained(trainer.checkpoint)
    with torch.no_grad():
        model.get_parameter("layers.2.mlp.up.weight").fill_(3e38)
    model.save_pretrained(folder, tokenizer=tiny_tokenizer())
    message = r"overflowing gives results that are NaN or infinite, whatever the rows; .* output of block 2 of 2 is not"
    with pytest.raises(NonFiniteError, match=message):
        evaluated(trainer.config(model=ModelArgs(path=str(folder), device="cpu")))


def test_the_command_prints_a_table_and_writes_nothing_unless_asked(
    trainer: Trainer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, config = last_evaluation(trainer, name="a")
    monkeypatch.chdir(trainer.folder)
    before = sorted(trainer.folder.rglob("*"))
    keys = [f"model.path={config.model.path}", f"dataset.path={config.dataset.valid_path}", "dataset.max_seqlen=64"]
    keys += ["dataset.valid_bs_n_seqs=2"]

    assert reallm(["eval", *keys]) == 0
    out = capsys.readouterr().out
    assert "5 rows" in out
    assert f"eval/loss         {metrics['eval/loss']:.4g}" in out
    assert sorted(trainer.folder.rglob("*")) == before

    assert reallm(["eval", *keys, "--json", "result.json"]) == 0
    written = json.loads(Path("result.json").read_text())
    assert written["metrics"] == metrics
    assert written["n_samples"] == 5
    assert written["settings"]["dataset"]["train_path"] == config.dataset.valid_path

    capsys.readouterr()
    assert reallm(["eval", *keys, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.path=m"], "dataset.path is required: the rows to evaluate"),
        (["model.path=m", "dataset.path=gone.jsonl"], "dataset.path: gone.jsonl: no such file"),
        (["model.path=m", "dataset.path=x", "optimizer.lr=1"], "unknown key 'optimizer.lr'"),
        (["dataset.path=x", "--json", "gone/x.json"], "--json gone/x.json: there is no folder gone"),
        (["--algorithm", "sftt", "dataset.path=x"], "no installed plugin offers the algorithm 'sftt'"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reallm(["eval", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_help_lists_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert reallm(["eval", "--help"]) == 0
    out = capsys.readouterr().out
    for text in ("reallm eval model.path=PATH dataset.path=rows.jsonl", "parallel.tp", "dataset.max_seqlen", "--json"):
        assert text in out
    keys = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line[2] != " "]
    assert "model.optimizer" in keys
    assert not [key for key in keys if key.startswith("optimizer")]
