"""A network in stages: its losses, gradients and results are those of one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reallm.model.config import MoEConfig, ReaLModelConfig
from reallm.model.router_stats import RouterStatsLog
from reallm.model.transformer import Transformer
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.parallel.pipeline_parallel.runner import PipelineRunner, StageReduction
from reallm.parallel.pipeline_parallel.stage import make_stage
from reallm.parallel.sharding import local_boxes, stage_layers
from tests.helpers.ranks import on_ranks

LLAMA = ReaLModelConfig(
    n_layers=4,
    hidden_size=16,
    n_q_heads=4,
    n_kv_heads=2,
    head_dim=4,
    intermediate_size=24,
    vocab_size=40,
    max_positions=64,
    init_std=0.2,
)
CONFIGS = {
    "llama": LLAMA,
    "tied, with a table of positions": LLAMA.replace(
        tied_embeddings=True, rope=None, learned_positions=True, norm="layer", norm_bias=True, embedding_multiplier=2.0
    ),
    "critic": LLAMA.replace(is_critic=True),
    "norms after the sum": LLAMA.replace(norm_placement="post", norm="layer", norm_bias=True, final_norm=False),
    "experts": LLAMA.replace(moe=MoEConfig(4, 2, 12, aux_loss_coef=0.1)),
}
SIZES = [[5, 3], [1], [9, 2, 4], [2, 2], [7]]
"""Lengths of the sequences of each micro-batch."""
TOLERANCE = {"rtol": 1e-5, "atol": 1e-7}
"""Operations are those of one process; gradients of several micro-batches may be summed in another order."""
COEF = 0.1


def micro_batches(n: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randint(0, 40, (sum(sizes),), generator=generator), torch.tensor([0, *sizes]).cumsum(0))
        for sizes in (SIZES * 3)[:n]
    ]


def loss_of(model: Transformer, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
    hidden = model.hidden(tokens, cu_seqlens)
    if model.config.is_critic:
        return model.head(hidden).square().sum()
    return model.cross_entropy(hidden, tokens.roll(1)).loss_sum / 7


def stage_of(config: ReaLModelConfig, mesh: Mesh, mode: str = "none") -> Transformer:
    """This rank's stage of a network with initial weights."""
    model = Transformer(config, stage_layers(config, mesh.layout.pp)[mesh.coordinate.pp])
    make_stage(model, mesh)
    model.init_weights(3)
    model.gradient_checkpointing = mode  # type: ignore[assignment]
    return model.train()


def aux_loss(model: Transformer, routing: dict[int, RouterStatsLog], tokens: list[int]) -> StageReduction:
    """The load-balancing loss, as the example of `StageReduction` has it."""
    moe = model.config.moe
    assert moe is not None
    routings = {}

    def local(i):
        routings[i] = routing[i].close()
        counts, probs = zip(*((each.counts, each.prob_sums) for each in routings[i]), strict=True)
        return torch.stack([sum(counts).float(), sum(probs)])

    def loss(i, total):
        n_tokens = tokens[i] * model.config.n_layers
        probs = sum(each.prob_sums for each in routings.pop(i))
        return COEF * len(probs) / n_tokens**2 * (total[0] * probs).sum()

    return StageReduction((2, moe.n_experts), local, loss)


def train(model: Transformer, mesh: Mesh, n: int, *, with_sizes: bool = False) -> list[Tensor]:
    parts = micro_batches(n)
    routing: dict[int, RouterStatsLog] = {}

    def forward(i):
        if model.config.moe:
            routing[i] = model.router_stats = RouterStatsLog()
        return loss_of(model, *parts[i])

    n_tokens = [len(tokens) for tokens, _ in parts]
    planned = n_tokens if with_sizes else None
    reduction = aux_loss(model, routing, n_tokens) if model.config.moe else None
    return PipelineRunner(model, mesh).run(n, forward, train=True, reduction=reduction, n_tokens=planned)


def gradients(model: Transformer) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def stages_train(rank, cases):
    results = []
    for config, mode, n, pp in cases:
        layout = Layout(pp=pp)
        if rank >= pp:
            results.append(None)
            continue
        mesh = Mesh.of(layout)
        model = stage_of(config, mesh, mode)
        assert list(dict(model.named_parameters())) == list(local_boxes(config, layout, rank))
        losses = train(model, mesh, n, with_sizes=n % 2 == 0)
        first = gradients(model)
        model.zero_grad()
        again = train(model, mesh, n, with_sizes=n % 2 == 1)
        assert all(torch.equal(one, other) for one, other in zip(losses, again, strict=True))
        assert first.keys() == gradients(model).keys()
        assert all(torch.equal(first[name], grad) for name, grad in gradients(model).items())
        results.append((losses, first))
    return results


def whole_network(config: ReaLModelConfig, n: int) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same with autograd alone."""
    from reallm.model.moe.layer import load_balancing_loss

    model = Transformer(config)
    model.init_weights(3)
    model.train()
    losses = []
    for tokens, bounds in micro_batches(n):
        model.router_stats = notes = RouterStatsLog()
        loss = loss_of(model, tokens, bounds)
        losses.append(loss.detach())
        routing = notes.close()
        (loss + COEF * load_balancing_loss(routing) if routing else loss).backward()
    return losses, gradients(model)


def put_together(stages: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Gradients of all stages; those of a tied embedding are summed."""
    together: dict[str, Tensor] = {}
    for grads in stages:
        for name, grad in grads.items():
            together[name] = together[name] + grad if name in together else grad
    return together


def compare(results, cases):
    for place, (config, _, n, _) in enumerate(cases):
        stages = [each[place] for each in results if each[place] is not None]
        losses, grads = whole_network(config, n)
        assert [len(stage[0]) for stage in stages] == [0] * (len(stages) - 1) + [n]
        torch.testing.assert_close(stages[-1][0], losses, **TOLERANCE)
        ours = put_together([stage[1] for stage in stages])
        assert ours.keys() == grads.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(ours[name], grad, msg=lambda text, name=name: f"{name}: {text}", **TOLERANCE)


def test_losses_and_gradients_are_those_of_one_process():
    cases = [(config, "none", n, pp) for config in CONFIGS.values() for pp, n in ((2, 5), (3, 4), (4, 5))]
    cases.append((CONFIGS["experts"], "none", 3, 1))
    compare(on_ranks(4, stages_train, cases), cases)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 11])
def test_any_number_of_micro_batches(n):
    cases = [(LLAMA, "none", n, pp) for pp in (2, 4)]
    results = on_ranks(4, stages_train, cases)
    if n:
        compare(results, cases)
    else:
        assert all(each is None or each == ([], {}) for rank in results for each in rank)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_gradient_checkpointing(mode):
    cases = [(CONFIGS[name], mode, 3, 2) for name in ("llama", "experts")]
    compare(on_ranks(2, stages_train, cases), cases)
