"""Products: what each library gives on this machine, in the shapes of SmolLM2-135M's linear layers and its head.

`forward` is `x @ w.T` of M rows, as in decoding (few) and in training (many); `input_grad` and `weight_grad` are its
gradients. Sides: `torch` (`torch.mm` into memory that is there: MKL in torch's builds for x86), `onednn`, and
`onednn_prepacked` with the weight in its own order. Weights of small layers take turns, so that they come from memory.

A figure `products_<kind>_<n>x<k>_m<M>_<side>` says how many times as fast as torch a side is. `products_chosen_<kind>`
is the speed of what reallm chooses divided by that of the best side, the geometric mean over all shapes: below 0.9 the
rule in `reallm/model/products/backend.py` does not fit this machine.

    python benchmarks/products.py --quick --json figures.json
"""

from __future__ import annotations

import statistics

from common import Ratio, interleave, machine, parser, write_json
from matrix_products import Products
from reallm.model.products import onednn
from reallm.model.products.backend import linear_backend

LAYERS = ((576, 576), (192, 576), (960, 576), (1536, 576), (3072, 576), (576, 1536))
HEAD = (49152, 576)
"""(n, k): outputs and inputs; 960 and 3072 are those of queries, keys and values, and of gate and up, when joined."""
ROWS = (1, 4, 16, 64, 256, 2048)
TRAINED_ROWS = 256
"""Number of rows from which products are taken to be of training, and gradients are measured; of fewer, to be of
decoding, with prepacked weights."""
MOST_LOGITS = 1024
"""Number of rows of the largest product of the head."""
MEMORY = 64 << 20
"""Bytes of weights that a call goes through, about twice a large cache, if it has few rows."""


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    rounds = 5 if arguments.quick else 15
    print(f"{machine()}; rule: {linear_backend()}")
    print(f"oneDNN: {onednn.why_unavailable() or 'available'}; rows do not depend on the batch: ", end="")
    print(onednn.why_not_batch_invariant() or "true, as probed")
    figures: dict[str, float] = {}
    shares: dict[str, list[float]] = {}
    for n, k in (*LAYERS, HEAD):
        for m in ROWS:
            if (n, k) == HEAD and m > MOST_LOGITS:
                continue
            n_weights = max(1, MEMORY // (4 * n * k)) if m < TRAINED_ROWS else 1
            products = Products(m, k, n, n_weights=n_weights)
            products.check()
            for kind, ways in products.kinds.items():
                if kind != "forward" and m < TRAINED_ROWS:
                    continue
                seconds = interleave(ways, rounds)
                best = {name: min(each) for name, each in seconds.items()}
                speeds = ", ".join(f"{name} {products.operations / s / 1e9:.1f}" for name, s in best.items())
                chosen = _chosen(kind, m)
                print(f"{kind:12s} n {n:5d}  k {k:4d}  m {m:4d}  {speeds} GFLOP/s, chosen: {chosen}", flush=True)
                for name in ways.keys() - {"torch"}:
                    ratio = Ratio.of(seconds["torch"], seconds[name])
                    figures[f"products_{kind}_{n}x{k}_m{m}_{name}"] = ratio.median
                shares.setdefault(kind, []).append(min(best.values()) / best[chosen])
    for kind, each in shares.items():
        figures[f"products_chosen_{kind}"] = statistics.geometric_mean(each)
        print(f"{kind}: reallm's choice reaches {figures[f'products_chosen_{kind}']:.2f} of the best side")
    write_json(arguments.json, figures)


def _chosen(kind: str, m: int) -> str:
    if linear_backend() == "torch" or kind == "weight_grad":
        return "torch"
    return "onednn_prepacked" if kind == "forward" and m < TRAINED_ROWS else "onednn"


if __name__ == "__main__":
    main()
