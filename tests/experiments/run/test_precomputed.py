"""Precomputed calls: outputs are computed once, cached, kept in the run folder, and the model is freed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from reallm.algorithms.context import CallContext
from reallm.algorithms.precompute import input_hash
from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.args import ModelArgs
from reallm.config.parallel import ParallelArgs
from reallm.config.training import TrainingConfig
from reallm.data.batching import cu_seqlens, n_samples
from reallm.data.datasets import Samples
from reallm.data.namedarray import NamedArray
from reallm.data.sample_fields import load_fields
from reallm.data.tokenization import tokenized_rows
from reallm.data.tokenization.cache import entry_for
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, PluginError
from reallm.experiments.run import precomputed
from reallm.experiments.run.runner import RunResult, run
from reallm.launch.job import Job
from reallm.model.transformer import Transformer
from reallm.specs import Algorithm, ModelFunctionCall
from reallm.training.objective import LossOutput
from tests.experiments.checkpointing.test_resume import assert_same_run, stop_after
from tests.experiments.conftest import Trainer, mixture
from tests.helpers.ranks import on_ranks

ANSWERS = ("input_ids", "loss_mask")


@dataclass(frozen=True)
class HeldConfig(TrainingConfig):
    """A model that is trained more where a reference is surer."""

    model: ModelArgs = field(default_factory=ModelArgs)
    ref: ModelArgs = field(default_factory=ModelArgs)


class Reference:
    """Mean log-probability of each sample's tokens."""

    def __init__(self, config: HeldConfig) -> None:
        self.config = config

    def inference(self, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        bounds = cu_seqlens(batch, "input_ids")
        logprobs = model.token_logprobs(batch["input_ids"], bounds, max_tokens=context.max_tokens_per_microbatch)
        means = torch.stack([logprobs[a:b].mean() for a, b in pairwise(bounds.tolist())])
        seqlens = {"ref_logprobs": [[1]] * n_samples(batch)}
        return NamedArray(ref_logprobs=means).with_metadata(seqlens=seqlens, ids=batch.metadata["ids"])


class Held(SFTInterface):
    metric_names = (*SFTInterface.metric_names, "ref")

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        output, ref = super().loss(network, batch), batch["ref_logprobs"]
        return LossOutput(output.loss_sum * (1 + 0.1 * ref.mean().exp()), {**output.stats, "ref": ref.sum()})

    def metrics(self, totals: Any) -> dict[str, float]:
        return {**super().metrics(totals), "ref": totals.stats["ref"]}


GRAPH = (
    ModelFunctionCall("ref_inf", "ref", "inference", ("input_ids",), ("ref_logprobs",), precompute=True),
    ModelFunctionCall("train", "model", "train_step", (*ANSWERS, "ref_logprobs")),
)
HELD = Algorithm(HeldConfig, GRAPH, {"ref": Reference, "model": Held})
LIVE = Algorithm(HeldConfig, (dataclasses.replace(GRAPH[0], precompute=False), GRAPH[1]), HELD.interfaces)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reallm" / "precomputed"


@pytest.fixture
def ref(tmp_path: Path, checkpoint: Path) -> Path:
    folder = tmp_path / "ref"
    shutil.copytree(checkpoint, folder)
    return folder


@pytest.fixture
def held(trainer: Trainer) -> Trainer:
    trainer.algorithm, trainer.name = HELD, None
    return trainer


def config(trainer: Trainer, ref: Path, **changes: Any) -> HeldConfig:
    of_ref = {name: changes.pop(name) for name in ("dtype",) if name in changes}
    base = trainer.config(**changes)
    fields = {item.name: getattr(base, item.name) for item in dataclasses.fields(base)}
    return HeldConfig(**fields, ref=ModelArgs(path=str(ref), device="cpu", **of_ref))


def train(trainer: Trainer, ref: Path, **changes: Any) -> RunResult:
    return trainer.run(config(trainer, ref, **changes))  # type: ignore[arg-type]


def damage_weights(folder: Path, by: float = 1.5) -> None:
    """Change one number in the middle of the weights."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name].view(-1)[0] += by
    save_file(tensors, file, {"format": "pt"})


def test_a_precomputed_call_gives_the_numbers_of_a_live_one(held: Trainer, ref: Path, cache: Path) -> None:
    precomputed = train(held, ref, n_valid=3)
    assert "ref_inf: computed for 10 samples of train in" in held.output
    assert "ref_inf: computed for 3 samples of valid in" in held.output
    assert "\nref: " not in held.output  # the model is not there in training
    assert len(list(cache.glob("*.safetensors"))) == 2
    assert {path.name for path in (precomputed.run_dir / "precomputed" / "ref_inf").iterdir()} == {
        "train.safetensors", "valid.safetensors"
    }  # fmt: skip
    held.algorithm = LIVE
    live = train(held, ref, n_valid=3)
    assert "\nref: " in f"\n{held.output}"
    for name in ("train/loss", "eval/loss", "train/ref"):
        assert precomputed.metrics[name] == pytest.approx(live.metrics[name], rel=1e-6)


def test_a_second_run_reads_the_cache_and_loads_no_reference(
    held: Trainer, ref: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(held, ref, n_valid=3)
    monkeypatch.setattr(Reference, "inference", lambda *_: pytest.fail("computed again"))
    second = train(held, ref, n_valid=3)
    assert "ref_inf: outputs for 10 samples of train are read from the cache: " in held.output
    assert "ref_inf: outputs for 3 samples of valid are read from the cache: " in held.output
    assert second.metrics["train/loss"] == first.metrics["train/loss"]


def test_samples_whose_tokens_are_cached_are_read_once(
    held: Trainer, ref: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    n_hashed: list[int] = []

    def counted_hash(call: ModelFunctionCall, samples: Samples, advance: Any) -> str:
        n_hashed.append(len(samples))
        return input_hash(call, samples, advance)

    monkeypatch.setattr(precomputed, "input_hash", counted_hash)
    monkeypatch.setattr(tokenized_rows, "entry_for", partial(entry_for, min_bytes=0))
    settings = {"n_rows": 12, "max_steps": 1}
    dataset = dataclasses.replace(held.config(**settings).dataset, cache_dir=str(tmp_path / "tokens"))
    first = train(held, ref, dataset=dataset, name="first", **settings)
    assert n_hashed == [12]
    second = train(held, ref, dataset=dataset, name="second", **settings)
    assert second.metrics["train/loss"] == first.metrics["train/loss"]
    assert n_hashed == [12]
    train(held, ref, dataset=dataset, name="other-order", seed=5, **settings)
    assert n_hashed == [12, 12]
    train(held, ref, dataset=dataclasses.replace(dataset, cache_dir=None), name="not-cached", **settings)
    assert n_hashed == [12, 12, 12]
    for memo in (tmp_path / "cache" / "reallm" / "precomputed" / "inputs").iterdir():
        memo.write_text("damaged")
    third = train(held, ref, dataset=dataset, name="third", **settings)
    assert third.metrics["train/loss"] == first.metrics["train/loss"]
    assert n_hashed == [12, 12, 12, 12]


@pytest.mark.parametrize("change", ["row", "weights", "dtype", "key"])
def test_other_data_and_another_reference_are_computed_anew(
    held: Trainer, ref: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept(train(held, ref))
    changes: dict[str, Any] = {}
    if change == "row":
        monkeypatch.setattr(
            "tests.experiments.conftest.write_rows", lambda path, numbers: _with_another_last_row(path, len(numbers))
        )
    elif change == "weights":
        damage_weights(ref)
    elif change == "dtype":
        changes["dtype"] = "bfloat16"
    else:
        monkeypatch.setattr(Reference, "precompute_key", {"temperature": 1.0}, raising=False)
    after = kept(train(held, ref, **changes))
    assert "ref_inf: computed for 10 samples of train" in held.output
    assert torch.equal(after, before) == (change == "key")


def kept(result: RunResult) -> torch.Tensor:
    """The outputs that a run has computed for its training data."""
    return load_fields(result.run_dir / "precomputed" / "ref_inf" / "train.safetensors")[0]["ref_logprobs"].values


def _with_another_last_row(path: Path, n: int) -> Path:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == n
    rows[-1]["answer"] += " tea"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_outputs_of_a_mixture_are_those_of_each_source(held: Trainer, ref: Path) -> None:
    changes = {"dataset": mixture(held), "max_steps": 2}
    precomputed = train(held, ref, **changes)
    assert {path.stem for path in (precomputed.run_dir / "precomputed" / "ref_inf").iterdir()} == {
        "train-few", "train-many", "valid-few", "valid-many"
    }  # fmt: skip
    held.algorithm = LIVE
    live = train(held, ref, **changes)
    for name in ("train/ref", "eval/loss/few"):
        assert precomputed.metrics[name] == pytest.approx(live.metrics[name], rel=1e-6)


def test_a_damaged_file_is_computed_again(held: Trainer, ref: Path, cache: Path) -> None:
    first = train(held, ref)
    (file,) = cache.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    second = train(held, ref)
    assert f"outputs that were computed before cannot be used, and are computed again ({file} is damaged" in held.output
    assert second.metrics["train/ref"] == first.metrics["train/ref"]
    train(held, ref)
    assert "are read from the cache" in held.output


def test_without_a_cache_outputs_stay_in_memory_and_in_the_run_folder(
    held: Trainer, ref: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataclasses.replace(held.config().dataset, cache_dir=None)
    result = train(held, ref, dataset=dataset)
    assert not cache.exists() or not list(cache.glob("*.safetensors"))
    assert list((result.run_dir / "precomputed").rglob("*.safetensors"))

    monkeypatch.setattr("reallm.experiments.run.precomputed.user_cache", lambda name: None)
    train(held, ref)
    assert f"ref_inf: outputs are not cached, {cache} cannot be written to" in held.output


def test_a_resumed_run_goes_on_with_its_own_outputs(
    held: Trainer, ref: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(held, ref, n_valid=3, epochs=2, name="whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        stopped = train(held, ref, n_valid=3, epochs=2, name="stopped")
    shutil.rmtree(cache)
    monkeypatch.setattr(Reference, "inference", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr("reallm.experiments.run.precomputed.versions", lambda: {"torch": "another"})
    resumed = train(held, ref, n_valid=3, epochs=2, name="stopped", resume=str(stopped.run_dir))
    assert resumed.steps == 6
    assert_same_run(whole.run_dir, resumed.run_dir)


def test_a_run_is_not_resumed_with_another_reference(held: Trainer, ref: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        stopped = train(held, ref, name="stopped")
    with pytest.raises(ConfigError, match=r"^ref: the settings are not those with which the outputs of 'ref_inf'"):
        train(held, ref, name="stopped", resume=str(stopped.run_dir), dtype="bfloat16")
    damage_weights(ref)
    with pytest.raises(ConfigError, match=r"^ref.path: the weights are not those with which the outputs of 'ref_inf'"):
        train(held, ref, name="stopped", resume=str(stopped.run_dir))


def test_long_rows_are_computed_together_within_the_token_budget(
    held: Trainer, ref: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []
    inference = Reference.inference

    def noted(self: Reference, model: ReaLModel, batch: NamedArray, context: CallContext) -> NamedArray:
        batches.append([sum(lengths) for lengths in batch.metadata["seqlens"]["input_ids"]])
        return inference(self, model, batch, context)

    monkeypatch.setattr(Reference, "inference", noted)
    result = train(held, ref, max_tokens_per_microbatch=40)
    sizes = [size for batch in batches for size in batch]
    assert sizes == sorted(sizes, reverse=True)
    assert len(batches) > 1
    assert all(sum(batch) <= 40 for batch in batches)
    fields, _ = load_fields(result.run_dir / "precomputed" / "ref_inf" / "train.safetensors")
    assert len(fields["ref_logprobs"]) == 10


def test_a_key_that_is_not_json_is_the_plugins_mistake(
    held: Trainer, ref: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reference, "precompute_key", {1, 2}, raising=False)
    with pytest.raises(PluginError, match=r"^the interface of 'ref' has a precompute_key that is not made of JSON's"):
        train(held, ref)


def train_on_rank(rank: int, config: HeldConfig) -> float:
    torch.set_num_threads(1)
    store = dist.PrefixStore(f"{config.output_dir}/{config.parallel}", dist.distributed_c10d._get_default_store())
    return run(config, HELD, job=Job(rank, 2, rank, 2, store)).metrics["train/loss"]


@pytest.mark.parametrize("parallel", [ParallelArgs(dp=2), ParallelArgs(tp=2)])
def test_ranks_compute_outputs_together_and_read_those_of_one_process(
    held: Trainer, ref: Path, tmp_path: Path, parallel: ParallelArgs
) -> None:
    dataset = dataclasses.replace(held.config(n_valid=3).dataset, cache_dir=str(tmp_path / "here"))
    of_both = config(held, ref, dataset=dataset, parallel=parallel)
    computed = on_ranks(2, train_on_rank, of_both)
    assert computed[0] == computed[1]
    files = sorted((tmp_path / "here" / "precomputed").glob("*.safetensors"))
    contents = [file.read_bytes() for file in files]
    assert len(files) == 2
    alone = train(held, ref, dataset=dataset)  # reads what the ranks have written
    assert "are read from the cache" in held.output
    assert alone.metrics["train/loss"] == pytest.approx(computed[0], rel=1e-5)
    assert on_ranks(2, train_on_rank, of_both) == computed
    assert [file.read_bytes() for file in files] == contents
