"""Losses of several terms, batches that an objective prepares, and training without dropout, in one process."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from reallm.algorithms.sft.interface import SFTInterface
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import gather, n_samples, select
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, DataError, NonFiniteError, PluginError
from reallm.model.config import GradientCheckpointing, MoEConfig
from reallm.model.transformer import Transformer
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput, Totals
from tests.helpers.tiny_config import TINY
from tests.training.loss_terms import GROUPS, OBJECTIVES, ScoredPairs, WeightedAnswers
from tests.training.train_cases import batch_of

CONFIG = TINY.replace(vocab_size=51)
# with a large eps, what AdamW does is smooth in the gradients
FLAT = OptimizerConfig(lr=1e-2, eps=1e-3, schedule="constant", warmup_steps=0)
NOISE: dict[str, dict[str, Any]] = {
    "embedding": {"embedding_dropout": 0.3},
    "attention": {"attn_dropout": 0.3},
    "residual": {"residual_dropout": 0.3},
    "jitter": {"moe": MoEConfig(4, 2, 24, jitter=0.3)},
}


def engine_for(model: ReaLModel, max_tokens: int = 10_000, **kwargs: Any) -> TrainEngine:
    return TrainEngine(model, FLAT, total_steps=100, max_tokens_per_microbatch=max_tokens, **kwargs)


def tiny_model(objective: object = None, dtype: torch.dtype = torch.float64, **changes: Any) -> ReaLModel:
    return ReaLModel(CONFIG.replace(is_critic=isinstance(objective, ScoredPairs), **changes), dtype=dtype, seed=3)


def parameters(model: ReaLModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("batch", GROUPS, ids=["first", "second", "third"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_loss_of_two_terms_does_not_depend_on_the_cut(name: str, batch: NamedArray) -> None:
    objective = OBJECTIVES[name]()
    reference = tiny_model(objective)
    expected = objective.reference(reference, batch)
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(expected, list(reference.parameters()))]).norm()
    stepped = []
    for max_tokens in (1, 20, 45, 10_000):
        model = tiny_model(objective)
        metrics = engine_for(model, max_tokens).train_batch(batch, objective)
        assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-11)
        assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-10)
        stepped.append(parameters(model))
    for other in stepped[:-1]:
        for parameter, value in other.items():
            torch.testing.assert_close(value, stepped[-1][parameter], rtol=1e-10, atol=1e-11, msg=parameter)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_order_and_grouping_of_samples_do_not_matter(name: str) -> None:
    objective = OBJECTIVES[name]()
    stepped = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        model = tiny_model(objective)
        engine_for(model, 45).train_batch(select(GROUPS[0], order), objective)
        stepped.append(parameters(model))
    for parameter, value in stepped[0].items():
        torch.testing.assert_close(value, stepped[1][parameter], rtol=1e-9, atol=1e-10, msg=parameter)


def test_evaluation_prepares_each_batch() -> None:
    for objective in (WeightedAnswers(), ScoredPairs()):
        model = tiny_model(objective)
        whole, cut = (engine_for(model, n).evaluate(GROUPS, objective) for n in (10_000, 20))
        losses = [objective.reference(model, batch).item() for batch in GROUPS]
        each = [engine_for(model, 20).evaluate([batch], objective).loss for batch in GROUPS]
        assert each == pytest.approx(losses, rel=1e-11)
        assert cut.means == pytest.approx(whole.means, rel=1e-11)
        assert cut.loss_weights == pytest.approx(whole.loss_weights)
        assert sum((engine_for(model, 20).evaluate([batch], objective) for batch in GROUPS), Totals()) == cut


def test_totals_of_several_terms() -> None:
    totals = Totals({"a": 3.0, "b": 0.0}, {"a": 2.0, "b": 0.0}, 5, {"x": 1.0}) + Totals({"a": 1.0}, {"a": 2.0}, 1)
    assert totals == Totals({"a": 4.0, "b": 0.0}, {"a": 4.0, "b": 0.0}, 6, {"x": 1.0})
    assert (totals.loss_sum, totals.loss_weight, totals.means, totals.loss) == (4.0, 4.0, {"a": 1.0}, 1.0)
    assert Totals().loss == 0.0
    assert Totals().means == {}


class Terms(SFTInterface):
    """SFT's loss as given terms, with given weights per loss token."""

    def __init__(self, losses: dict[str, float], weights: dict[str, float]) -> None:
        self.losses, self.weights = losses, weights

    def loss_weight(self, batch: NamedArray) -> dict[str, float]:  # type: ignore[override]
        n = super().loss_weight(batch)
        return {term: n * each for term, each in self.weights.items()}

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        output = super().loss(network, batch)
        return LossOutput({term: output.loss_sum * each for term, each in self.losses.items()}, output.stats)


@pytest.mark.parametrize("max_tokens", [30, 10_000])
def test_one_term_by_name_is_the_same_as_a_number_and_a_term_without_weight_as_none(max_tokens: int) -> None:
    batch = batch_of((5, 2), (30, 29), (17, 0), (8, 8), (2, 1), (40, 3))
    found = []
    for objective in (
        SFTInterface(),
        Terms({"a": 1.0}, {"a": 1.0}),
        Terms({"b": math.nan, "a": 1.0}, {"b": 0, "a": 1}),
    ):
        model = tiny_model(dtype=torch.float32, moe=MoEConfig(4, 2, 24, aux_loss_coef=0.5))
        metrics = engine_for(model, max_tokens).train_batch(batch, objective)
        found.append((metrics, parameters(model)))
    for metrics, stepped in found[1:]:
        assert metrics == found[0][0]
        assert all(torch.equal(value, found[0][1][name]) for name, value in stepped.items())


def test_the_load_balancing_loss_has_the_mean_of_the_shares_of_all_terms() -> None:
    """Terms with weights in the same ratio everywhere share it as one of them does."""
    batch = batch_of((5, 2), (30, 20), (17, 0), (40, 3))
    found = []
    for objective in (Terms({"a": 1.0}, {"a": 1.0}), Terms({"a": 0.25, "b": 2.25}, {"a": 0.5, "b": 4.5})):
        model = tiny_model(moe=MoEConfig(4, 2, 24, aux_loss_coef=0.5))
        metrics = engine_for(model, 30).train_batch(batch, objective)
        found.append((metrics["aux_loss"], metrics["grad_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-12)


@pytest.mark.parametrize(
    ("losses", "weights", "message"),
    [
        ({"a": 1, "b": 1}, {"a": 1}, "Terms.loss of a micro-batch gives the loss terms a, b, but .*whole batch a;"),
        ({"a": 1}, {"a": 1, "b": 0}, "gives the loss terms a, but Terms.loss_weight of the whole batch a, b;"),
        ({"loss": 1}, {"a": 1}, "gives the loss terms loss, but Terms.loss_weight of the whole batch a;"),
    ],
)
def test_terms_that_differ_are_an_error_that_names_them(
    losses: dict[str, float], weights: dict[str, float], message: str
) -> None:
    engine = engine_for(tiny_model())
    with pytest.raises(PluginError, match=message):
        engine.train_batch(batch_of((5, 2), (30, 29)), Terms(losses, weights))


def test_weights_must_have_the_same_terms_for_each_micro_batch() -> None:
    class Moody(Terms):
        def loss_weight(self, batch: NamedArray) -> dict[str, float]:
            return super().loss_weight(batch) | ({"b": 1.0} if n_samples(batch) == 1 else {})

    with pytest.raises(PluginError, match="Moody.loss_weight of a micro-batch gives the loss terms a, but .* a, b;"):
        engine_for(tiny_model(), 30).train_batch(batch_of((5, 2), (30, 20), (6, 3)), Moody({"a": 1.0}, {"a": 1.0}))


def test_what_is_prepared_must_be_a_batch_and_dropout_a_bool() -> None:
    class NoBatch(SFTInterface):
        def prepare(self, batch: NamedArray) -> None:
            return None

    class Unclear(SFTInterface):
        dropout = 0.1

    engine, batch = engine_for(tiny_model()), batch_of((5, 2))
    for run in (lambda objective: engine.train_batch(batch, objective), lambda o: engine.evaluate([batch], o)):
        with pytest.raises(PluginError, match="NoBatch.prepare must return the batch as a NamedArray, not None"):
            run(NoBatch())
        with pytest.raises(ConfigError, match=r"Unclear.dropout=0.1 must be True or False"):
            run(Unclear())
    with pytest.raises(DataError, match="a batch must be a NamedArray"):
        engine.train_batch([batch], WeightedAnswers())  # type: ignore[arg-type]


def test_samples_that_are_not_finite_are_found_in_the_prepared_batch() -> None:
    class Faulty(WeightedAnswers):
        """The loss of the sample with the lowest reward of the batch is not finite."""

        def prepare(self, batch: NamedArray) -> NamedArray:
            prepared = super().prepare(batch)
            prepared["advantages"][prepared["advantages"].argmin()] = math.nan
            return prepared

    batch = gather(GROUPS[:2])
    lowest = int(batch["rewards"].argmin())
    (name,) = WeightedAnswers().prepare(batch).metadata["ids"][lowest : lowest + 1]
    model = tiny_model()
    before = parameters(model)
    engine = engine_for(model, 45)
    with pytest.raises(NonFiniteError, match=f"step 1: the loss of '{name}' is not finite"):
        engine.train_batch(batch, Faulty())
    assert all(torch.equal(value, before[name]) for name, value in parameters(model).items())


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("noise", NOISE)
def test_an_objective_can_train_without_dropout(noise: str, checkpointing: GradientCheckpointing) -> None:
    changes = NOISE[noise]
    quiet = {"moe": MoEConfig(4, 2, 24)} if "moe" in changes else {}
    found = []
    for config, dropout in ((changes, False), (quiet, True), (changes, True)):
        model = tiny_model(**config)
        model.gradient_checkpointing = checkpointing
        engine = engine_for(model, 45)
        metrics = [engine.train_batch(GROUPS[0], WeightedAnswers(dropout=dropout)) for _ in range(2)]
        assert model.training
        found.append((metrics, parameters(model)))
    (metrics, stepped), (quiet_metrics, quiet_stepped), (noisy_metrics, _) = found
    assert metrics == quiet_metrics
    assert all(torch.equal(value, quiet_stepped[name]) for name, value in stepped.items())
    assert noisy_metrics != quiet_metrics


def test_objectives_with_and_without_dropout_take_turns() -> None:
    """A step with dropout draws the same numbers whatever the steps before it did."""
    models = [tiny_model(residual_dropout=0.3) for _ in range(2)]
    engines = [engine_for(model, 45) for model in models]
    for first, engine in zip((True, False), engines, strict=True):
        state = copy.deepcopy(models[0].state_dict())
        engine.train_batch(GROUPS[0], WeightedAnswers(dropout=first))
        engine.model.load_state_dict(state)
    found = [engine.train_batch(GROUPS[1], WeightedAnswers(dropout=True))["loss"] for engine in engines]
    assert found[0] == found[1]
    assert found[0] != engines[0].evaluate([GROUPS[1]], WeightedAnswers()).loss


def test_the_version_of_the_weights_counts_updates_and_survives_a_resume() -> None:
    config = OptimizerConfig(lr=1e-3, schedule="constant", warmup_steps=0, on_nonfinite="skip")
    engine = TrainEngine(tiny_model(), config, total_steps=10, max_tokens_per_microbatch=100)
    batch, versions = batch_of((5, 2), (30, 20)), [engine.weights_version]
    for objective in (Terms({"a": 1.0}, {"a": 1.0}), Terms({"a": math.inf}, {"a": 1.0}), SFTInterface()):
        engine.train_batch(batch, objective)
        versions.append(engine.weights_version)
    assert versions == [0, 1, 1, 2]
    resumed = TrainEngine(tiny_model(), config, total_steps=10, max_tokens_per_microbatch=100)
    resumed.load_state(engine.state())
    assert resumed.weights_version == 2
