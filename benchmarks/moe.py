"""Experts: one layer of a mixture of experts against those of transformers, in all of its implementations.

Both shapes are those of known models at a smaller scale: the main one as Mixtral (8 experts, 2 a token),
`qwen3_moe` as Qwen3-MoE (64 experts, 8 a token). `train` is forward and backward over 512 tokens with the gradients
of all weights, `prefill` the forward pass alone, `decode_<n>` the forward pass over n tokens. All sides have the same
weights, and what they compute must agree before anything is timed.

A figure says how many times as long a side takes as reallm: `loop` the loop over experts, `grouped_mm` and `batched_mm`
what transformers calls by that name. The last gathers a copy of the weights for each token, and only decodes here.

    python benchmarks/moe.py --quick --json figures.json
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from common import Ratio, interleave, machine, parser, write_json
from reallm.model.attention.functional import attend_rotated
from reallm.model.config import MoEConfig, ReaLModelConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.moe.layer import MoEMLP
from reallm.model.packed import PackedSequences

N_TOKENS = 512
DECODED = (1, 4, 16)
SIDES = {"loop": "eager", "grouped_mm": "grouped_mm", "batched_mm": "batched_mm"}
"""What transformers calls the implementation of each side."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one layer; `suffix` ends the names of its figures."""

    hidden: int
    inner: int
    n_experts: int
    top_k: int
    suffix: str = ""


SHAPES = (
    Shape(hidden=1024, inner=1792, n_experts=8, top_k=2),
    Shape(hidden=1024, inner=384, n_experts=64, top_k=8, suffix="_qwen3_moe"),
)


class Layers:
    """The layer of transformers and ours, with the same weights."""

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        self.theirs, self.config = their_layer(shape)
        config = ReaLModelConfig(
            n_layers=1,
            hidden_size=shape.hidden,
            n_q_heads=1,
            n_kv_heads=1,
            head_dim=shape.hidden,
            intermediate_size=shape.inner,
            vocab_size=1,
            max_positions=N_TOKENS,
            moe=MoEConfig(shape.n_experts, shape.top_k, shape.inner),
        )
        self.ours = MoEMLP(config)
        with torch.no_grad():
            for parameter in self.theirs.parameters():
                parameter.normal_(std=0.02)
            gate, up = self.theirs.experts.gate_up_proj.chunk(2, dim=1)
            self.ours.router.weight.copy_(self.theirs.gate.weight)
            self.ours.experts.gate.weight.copy_(gate)
            self.ours.experts.up.weight.copy_(up)
            self.ours.experts.down.weight.copy_(self.theirs.experts.down_proj)

    def forward(self, side: str, x: Tensor) -> Tensor:
        if side == "reallm":
            context = ForwardContext(PackedSequences.from_lengths([len(x)]), rotations=(), attention=attend_rotated)
            return self.ours(x, context)
        self.config._experts_implementation = SIDES[side]
        return self.theirs(x[None])[0]

    def train(self, side: str, x: Tensor, cotangent: Tensor) -> Tensor:
        """One forward and backward pass; the gradient of `x`."""
        x = x.detach().requires_grad_()
        layer = self.ours if side == "reallm" else self.theirs
        layer.zero_grad(set_to_none=True)
        self.forward(side, x).backward(cotangent)
        assert x.grad is not None
        return x.grad

    @torch.no_grad()
    def infer(self, side: str, x: Tensor) -> Tensor:
        return self.forward(side, x)


def their_layer(shape: Shape) -> tuple[nn.Module, object]:
    from transformers import MixtralConfig, Qwen3MoeConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    sizes = {"hidden_size": shape.hidden, "num_experts_per_tok": shape.top_k}
    if shape.suffix:
        config = Qwen3MoeConfig(
            moe_intermediate_size=shape.inner, num_experts=shape.n_experts, norm_topk_prob=True, **sizes
        )
        return Qwen3MoeSparseMoeBlock(config), config
    config = MixtralConfig(intermediate_size=shape.inner, num_local_experts=shape.n_experts, **sizes)
    return MixtralSparseMoeBlock(config), config


def check(results: dict[str, Tensor]) -> None:
    """Refuse to time what does not agree: sums of float32 products, added up in another order."""
    for side, result in results.items():
        if not torch.allclose(result, results["reallm"], rtol=1e-3, atol=1e-4):
            raise SystemExit(f"{side} computes something else than reallm")


def measure(shape: Shape, rounds: int) -> dict[str, float]:
    """Print and return the figures of one shape."""
    layers, figures = Layers(shape), {}
    x, cotangent = torch.randn(2, N_TOKENS, shape.hidden)
    most = ["reallm", "loop", "grouped_mm"]

    def compare(work: str, sides: list[str], run: Callable[[str], Tensor], rounds: int, repeat: int = 1) -> None:
        check({side: run(side) for side in sides})
        systems = {side: partial(lambda side: [run(side) for _ in range(repeat)], side) for side in sides}
        seconds = interleave(systems, rounds)
        print(f"{work}{shape.suffix}: reallm {sorted(seconds['reallm'])[rounds // 2] / repeat * 1000:.1f} ms")
        for side in sides[1:]:
            ratio = Ratio.of(seconds[side], seconds["reallm"])
            print(f"  {side:12s} {ratio}")
            figures[f"{side}_{work}{shape.suffix}"] = ratio.median
            if side == "loop":
                figures[f"{side}_{work}{shape.suffix}_bar"] = 1.0

    compare("train", most, lambda side: layers.train(side, x, cotangent), rounds)
    compare("prefill", most, lambda side: layers.infer(side, x), rounds)
    for n in DECODED:
        few = x[:n]
        compare(f"decode_{n}", ["reallm", *SIDES], partial(layers.infer, x=few), 2 * rounds, repeat=5)
    return figures


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    options = parser(str(__doc__).splitlines()[0]).parse_args()
    print(f"{machine()}; torch {torch.__version__}; median and quartiles of the time over that of reallm")
    figures: dict[str, float] = {}
    for shape in SHAPES:
        figures |= measure(shape, rounds=5 if options.quick else 21)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
