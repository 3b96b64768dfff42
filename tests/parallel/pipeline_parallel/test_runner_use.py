"""A pipeline in evaluation and in trouble: results, memory and errors."""

from __future__ import annotations

import gc
import time
import weakref
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from reallm.errors import ConfigError, PeerError, PluginError
from reallm.model.config import ReaLModelConfig
from reallm.model.transformer import Transformer
from reallm.offload.model import ModelOffload
from reallm.parallel.mesh import Mesh
from reallm.parallel.pipeline_parallel.p2p import MAX_PENDING_SENDS
from reallm.parallel.pipeline_parallel.runner import PipelineRunner
from reallm.parallel.pipeline_parallel.stage import make_stage
from reallm.parallel.sharding import stage_layers
from tests.helpers.ranks import on_ranks

CONFIG = ReaLModelConfig(
    n_layers=3,
    hidden_size=16,
    n_q_heads=2,
    n_kv_heads=2,
    head_dim=8,
    intermediate_size=24,
    vocab_size=40,
    max_positions=64,
    init_std=0.2,
)
PARTS = [(torch.arange(size) * 3 % 40, torch.tensor([0, size // 2, size])) for size in (7, 1, 12, 4)]


def stage_of(mesh):
    model = Transformer(CONFIG, stage_layers(CONFIG, mesh.layout.pp)[mesh.coordinate.pp])
    make_stage(model, mesh)
    model.init_weights(3)
    return model.train()


def forward_of(model):
    return lambda i: model(*PARTS[i])


def loss_of(model):
    return lambda i: model(*PARTS[i]).square().sum()


def refused(error, call):
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------- evaluation


def stages_infer(rank):
    mesh = Mesh.of("pp3")
    model = stage_of(mesh).eval()
    pipeline = PipelineRunner(model, mesh)
    sizes = [len(tokens) for tokens, _ in PARTS]
    results = pipeline.run(4, forward_of(model), train=False)
    again = pipeline.run(4, forward_of(model), train=False, n_tokens=sizes)
    assert all(torch.equal(one, other) for one, other in zip(results, again, strict=True))
    assert not any(result.requires_grad for result in results)
    assert "hidden" not in vars(model)
    return results


def test_evaluation_gives_the_results_of_one_process_on_the_last_stage():
    *others, last = on_ranks(3, stages_infer)
    assert others == [[], []]
    model = Transformer(CONFIG)
    model.init_weights(3)
    with torch.no_grad():
        expected = [model(*part) for part in PARTS]
    # the same operations on the same numbers
    assert all(torch.equal(one, other) for one, other in zip(last, expected, strict=True))


def one_stage(rank):
    mesh = Mesh.of("tp1")
    model = stage_of(mesh)
    order = []

    def forward(i):
        order.append(f"F{i}")
        return loss_of(model)(i)

    PipelineRunner(model, mesh).run(3, forward, train=True, on_backward=lambda i: order.append(f"B{i}"))
    return order


def test_a_single_stage_is_a_plain_loop():
    assert on_ranks(1, one_stage) == [["F0", "B0", "F1", "B1", "F2", "B2"]]


# ---------------------------------------------------------------------- what is kept, and for how long


def stages_keep_little(rank):
    mesh = Mesh.of("pp3")
    model = stage_of(mesh)
    blocks = [model.layers[str(number)] for number in model.block_numbers]
    came_in: list[weakref.ref[torch.Tensor]] = []
    went_out: list[weakref.ref[torch.Tensor]] = []
    blocks[0].register_forward_pre_hook(lambda _, inputs: came_in.append(weakref.ref(inputs[0])))
    blocks[-1].register_forward_hook(lambda _, __, output: went_out.append(weakref.ref(output)))
    most_in = most_out = 0

    def n_alive(references):
        return sum(reference() is not None for reference in references)

    def on_backward(i):
        nonlocal most_in, most_out
        most_in, most_out = max(most_in, n_alive(came_in)), max(most_out, n_alive(went_out))

    gc.disable()  # nothing may have to wait for the collector of cycles
    try:
        PipelineRunner(model, mesh).run(4, loss_of(model), train=True, on_backward=on_backward)
    finally:
        gc.enable()
    return most_in, most_out, n_alive(came_in + went_out)


def test_outputs_go_when_they_are_sent_and_nothing_is_left_at_the_end():
    results = on_ranks(3, stages_keep_little)
    # what comes in is kept from the forward to the backward pass: of as many as there are stages from here on
    assert [most_in for most_in, _, _ in results] == [3, 2, 1]
    # what goes out only while it is on its way
    assert all(most_out <= MAX_PENDING_SENDS for _, most_out, _ in results)
    assert [left for _, _, left in results] == [0, 0, 0]


# ---------------------------------------------------------------------- other layouts and wrappers


def stages_in_another_order(rank):
    mesh = Mesh.of("pp3@2,0,1")
    model = stage_of(mesh)
    return PipelineRunner(model, mesh).run(4, loss_of(model), train=True)


def test_ranks_may_be_stages_in_any_order():
    results = on_ranks(3, stages_in_another_order)
    assert [len(losses) for losses in results] == [0, 4, 0]


def stages_with_frozen_layers(rank):
    mesh = Mesh.of("pp2")
    model = stage_of(mesh)
    model.requires_grad_(mesh.is_last_stage)
    PipelineRunner(model, mesh).run(3, loss_of(model), train=True)
    return [name for name, parameter in model.named_parameters() if parameter.grad is not None]


def test_a_stage_that_is_frozen_has_no_backward_pass():
    first, last = on_ranks(2, stages_with_frozen_layers)
    assert first == []
    assert "layers.4.out.weight" in last


def stages_offloaded(rank):
    mesh = Mesh.of("pp2")
    model = stage_of(mesh)
    before = PipelineRunner(model, mesh).run(4, loss_of(model), train=True)
    ModelOffload(model).wait()
    after = PipelineRunner(model, mesh).run(4, loss_of(model), train=True)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert "hidden" not in vars(model)
    return len(after)


def test_an_offloaded_stage_comes_back_by_itself():
    assert on_ranks(2, stages_offloaded) == [0, 4]


# ---------------------------------------------------------------------- mistakes and trouble


def stage_called_by_itself(rank):
    model = stage_of(Mesh.of("pp2"))
    if rank == 1:
        return refused(ConfigError, lambda: model(*PARTS[0]))
    return ""


def test_a_later_stage_cannot_be_called_by_itself():
    assert (
        "call token_logprobs, scores or generate, train with TrainEngine, or use a layout"
        in on_ranks(2, stage_called_by_itself)[1]
    )


def loss_without_hidden(rank):
    mesh = Mesh.of("pp2")
    model = stage_of(mesh)
    pipeline = PipelineRunner(model, mesh)
    text = refused(PluginError, lambda: pipeline.run(2, lambda i: torch.zeros(()), train=True))
    again = refused(PeerError, lambda: pipeline.run(2, loss_of(model), train=True))
    return text, again


def test_a_loss_that_never_calls_hidden_is_named_and_the_pipeline_is_not_used_again():
    for text, again in on_ranks(2, loss_without_hidden):
        assert "does not call model.hidden for micro-batch 0" in text
        assert "start the job again" in again


def loss_calls_hidden_twice(rank):
    mesh = Mesh.of("pp2", timeout=timedelta(seconds=4))
    model = stage_of(mesh)
    pipeline = PipelineRunner(model, mesh)

    def forward(i):
        return sum(model.hidden(*PARTS[i]).sum() for _ in range(2))

    return refused(PluginError if rank else PeerError, lambda: pipeline.run(2, forward, train=True))


def test_a_loss_that_calls_hidden_twice_is_named():
    first, last = on_ranks(2, loss_calls_hidden_twice)
    assert "calls model.hidden twice for micro-batch 0" in last
    assert first.startswith(
        "rank 0 (stage 0 of tp1pp2dp1) could not get from rank 1 (stage 1): gradients of micro-batch 0"
    )


def wrong_sizes(rank):
    mesh = Mesh.of("pp2", timeout=timedelta(seconds=4))
    model = stage_of(mesh)
    pipeline = PipelineRunner(model, mesh)
    error = PluginError if rank else PeerError
    return refused(error, lambda: pipeline.run(2, loss_of(model), train=True, n_tokens=[7, 5]))


def test_sizes_that_are_not_those_of_the_loss_are_named():
    assert "puts 1 tokens of micro-batch 1 through the model, but its sizes say 5" in on_ranks(2, wrong_sizes)[1]


def stuck(rank):
    mesh = Mesh.of("pp2", timeout=timedelta(seconds=1))
    model = stage_of(mesh)
    pipeline = PipelineRunner(model, mesh)

    def forward(i):
        if rank == 0 and i == 1:
            time.sleep(2.5)
        return loss_of(model)(i)

    return refused(PeerError, lambda: pipeline.run(4, forward, train=True))


def test_a_stage_that_is_stuck_is_named_in_time():
    first, last = on_ranks(2, stuck)
    assert last.startswith(
        "rank 1 (stage 1 of tp1pp2dp1) could not get from rank 0 (stage 0): hidden states of micro-bat"
    )
    assert "rank 0 has ended or is stuck, see what it says" in last
    assert "rank 1 (stage 1)" in first


def gone(rank):
    mesh = Mesh.of("pp2")
    model = stage_of(mesh)
    pipeline = PipelineRunner(model, mesh)

    def forward(i):
        if rank == 0 and i == 1:
            raise KeyboardInterrupt
        return loss_of(model)(i)

    if rank == 0:
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(4, forward, train=True)
        for group in (mesh.p2p_forward_group(0), mesh.p2p_backward_group(0)):
            dist.destroy_process_group(group)  # as the end of the process does
        return ""
    return refused(PeerError, lambda: pipeline.run(4, forward, train=True))


def test_a_stage_that_has_ended_is_named_at_once():
    _, text = on_ranks(2, gone)
    assert text.startswith("rank 1 (stage 1 of tp1pp2dp1) could not")
    assert "rank 0 has ended or is stuck" in text
    assert "imed out" not in text  # it did not have to wait for that


def different_parts(rank):
    mesh = Mesh.of("pp2", timeout=timedelta(seconds=1))
    model = stage_of(mesh)
    pipeline = PipelineRunner(model, mesh)
    return refused(PeerError, lambda: pipeline.run(2, lambda i: loss_of(model)(i if rank else i + 1), train=True))


def test_stages_that_are_given_different_micro_batches_do_not_take_each_others_messages():
    assert "could not get from rank 0 (stage 0): hidden states of micro-batch 0" in on_ranks(2, different_parts)[1]
