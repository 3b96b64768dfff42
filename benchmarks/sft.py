"""Training speed: one optimizer step of reallm against transformers, on the same sequences, weights and optimizer.

The work: 16 sequences of lognormal lengths (about 2,000 tokens), 40 % of the tokens carry loss, a Llama of 40M
parameters, float32, AdamW. The peers are transformers with

- `padded`: all sequences padded to the longest, as its Trainer does;
- `sorted`: sorted by length and padded in four groups;
- `packed`: one row with `position_ids` that start anew for each sequence.

Each round runs every side once; figures are ratios of tokens a second within a round. Before any speed is printed, the
losses of the first steps are compared.

    python benchmarks/sft.py --quick --json figures.json
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from common import Ratio, interleave, machine, parser, write_json
from reallm import NamedArray, OptimizerConfig, ReaLModel
from reallm.algorithms.sft import SFTInterface
from reallm.data.batching import gather
from reallm.engine.train import TrainEngine

LEARNING_RATE = 1e-4
IGNORED = -100


@dataclass(frozen=True)
class Sequence:
    tokens: Tensor
    """[L] int64."""
    loss_mask: Tensor
    """[L] bool, True on the last 40 %."""

    @property
    def labels(self) -> Tensor:
        return self.tokens.masked_fill(~self.loss_mask, IGNORED)


def make_sequences(n: int, vocab_size: int, seed: int) -> list[Sequence]:
    """Lengths are lognormal with a median of 110 and a long tail, cut at 1,024."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(110), 0.8, n), 8, 1024).astype(int)
    sequences = []
    for length in lengths:
        mask = torch.zeros(int(length), dtype=torch.bool)
        mask[-max(1, round(0.4 * length)) :] = True
        sequences.append(Sequence(torch.from_numpy(random.integers(0, vocab_size, length)), mask))
    return sequences


class TransformersTrainer:
    """Steps of a transformers model, with the loss averaged over the whole batch as its Trainer does."""

    def __init__(self, model: nn.Module, batches: Callable[[list[Sequence]], list[dict[str, Tensor]]]) -> None:
        self.model = model.train()
        self.batches = batches
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )

    def step(self, sequences: list[Sequence]) -> float:
        n_targets = sum(int(sequence.loss_mask[1:].sum()) for sequence in sequences)
        total = 0.0
        for inputs in self.batches(sequences):
            loss = self.model(**inputs, num_items_in_batch=n_targets, use_cache=False).loss
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total


def padded(sequences: list[Sequence]) -> list[dict[str, Tensor]]:
    longest = max(len(sequence.tokens) for sequence in sequences)
    shape = (len(sequences), longest)
    inputs = {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, IGNORED),
    }
    for row, sequence in enumerate(sequences):
        n = len(sequence.tokens)
        inputs["input_ids"][row, :n] = sequence.tokens
        inputs["attention_mask"][row, :n] = 1
        inputs["labels"][row, :n] = sequence.labels
    return [inputs]


def sorted_by_length(sequences: list[Sequence]) -> list[dict[str, Tensor]]:
    ordered = sorted(sequences, key=lambda sequence: len(sequence.tokens))
    size = -(-len(ordered) // 4)
    return [padded(ordered[start : start + size])[0] for start in range(0, len(ordered), size)]


def packed(sequences: list[Sequence]) -> list[dict[str, Tensor]]:
    labels = [sequence.labels.clone() for sequence in sequences]
    for label in labels:
        label[0] = IGNORED  # nothing predicts the first token of a sequence
    return [
        {
            "input_ids": torch.cat([sequence.tokens for sequence in sequences])[None],
            "position_ids": torch.cat([torch.arange(len(sequence.tokens)) for sequence in sequences])[None],
            "labels": torch.cat(labels)[None],
        }
    ]


def reallm_batch(sequences: list[Sequence]) -> NamedArray:
    return gather(
        [
            NamedArray(input_ids=sequence.tokens, loss_mask=sequence.loss_mask).with_metadata(
                seqlens={key: ((len(sequence.tokens),),) for key in ("input_ids", "loss_mask")}
            )
            for sequence in sequences
        ]
    )


def gemm_seconds_per_flop(n_tokens: int, hidden: int, inner: int) -> Callable[[], None]:
    """A chain of the model's own matrix products, of `4 * n_tokens * hidden * inner` operations."""
    x, up, down = torch.randn(n_tokens, hidden), torch.randn(hidden, inner), torch.randn(inner, hidden)
    first, second = torch.empty(n_tokens, inner), torch.empty(n_tokens, hidden)

    def run() -> None:
        torch.mm(x, up, out=first)
        torch.mm(first, down, out=second)

    return run


def step_flops(model: ReaLModel, sequences: list[Sequence]) -> float:
    """Operations that a step cannot do without: 6 a weight and token, and attention over half of each square."""
    config = model.config
    n_tokens = sum(len(sequence.tokens) for sequence in sequences)
    n_targets = sum(int(sequence.loss_mask[1:].sum()) for sequence in sequences)
    in_blocks = sum(
        parameter.numel() for name, parameter in model.named_parameters() if ".attn." in name or ".mlp." in name
    )
    squares = sum(len(sequence.tokens) ** 2 for sequence in sequences)
    # forward: q @ k and p @ v, 2 operations each for half of L x L scores of every head; backward twice that
    attention = 3 * 2 * 2 * 0.5 * squares * config.n_q_heads * config.head_dim * config.n_layers
    return 6.0 * in_blocks * n_tokens + 6.0 * config.vocab_size * config.hidden_size * n_targets + attention


def main() -> None:
    arguments = parser(str(__doc__).splitlines()[0]).parse_args()
    rounds = 3 if arguments.quick else 11
    hf_config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        use_cache=False,
    )
    torch.manual_seed(0)
    origin = transformers.LlamaForCausalLM(hf_config)
    sequences = make_sequences(16, hf_config.vocab_size, seed=0)
    n_tokens = sum(len(sequence.tokens) for sequence in sequences)

    def peer(batches: Callable[[list[Sequence]], list[dict[str, Tensor]]]) -> TransformersTrainer:
        model = transformers.LlamaForCausalLM(hf_config)
        model.load_state_dict(origin.state_dict())
        return TransformersTrainer(model, batches)

    peers = {"padded": peer(padded), "sorted": peer(sorted_by_length), "packed": peer(packed)}
    model = ReaLModel.from_llama(origin)
    optimizer = OptimizerConfig(lr=LEARNING_RATE, schedule="constant", warmup_steps=0)
    engine = TrainEngine(model, optimizer, total_steps=1000, max_tokens_per_microbatch=16384)
    batch, objective = reallm_batch(sequences), SFTInterface()

    print(f"{machine()}; torch {torch.__version__}, transformers {transformers.__version__}")
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M parameters, {len(sequences)} sequences, "
        f"{n_tokens} tokens, the longest {max(len(s.tokens) for s in sequences)}"
    )
    for step in range(2):
        ours = engine.train_batch(batch, objective)["loss"]
        theirs = {name: trainer.step(sequences) for name, trainer in peers.items()}
        worst = max(abs(ours - loss) for loss in theirs.values())
        print(f"step {step + 1}: loss {ours:.6f}, largest difference to a peer {worst:.1e}")
        assert worst < 2e-4, f"the sides do not compute the same: {ours} against {theirs}"

    gemm = gemm_seconds_per_flop(n_tokens, hf_config.hidden_size, hf_config.intermediate_size)
    seconds = interleave(
        {
            "reallm": lambda: engine.train_batch(batch, objective),
            **{name: (lambda trainer=trainer: trainer.step(sequences)) for name, trainer in peers.items()},
            "gemm": lambda: [gemm() for _ in range(20)],
        },
        rounds,
        warm_up=0,  # the compared steps were it
    )
    figures: dict[str, float] = {}
    print(f"\ntokens/s of reallm over transformers, median of {rounds} rounds (quartiles)")
    for name in peers:
        ratio = Ratio.of(seconds[name], seconds["reallm"])
        figures[f"sft_over_transformers_{name}"] = ratio.median
        print(f"  {name:8s} {ratio}")
    gemm_rate = 20 * 4.0 * n_tokens * hf_config.hidden_size * hf_config.intermediate_size
    flops = step_flops(model, sequences)
    share = Ratio.of([flops / s for s in seconds["reallm"]], [gemm_rate / s for s in seconds["gemm"]])
    figures["sft_share_of_gemm_ceiling"] = share.median
    print(f"share of the matrix product's speed measured in the same rounds: {share}")
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
