"""Products of linear layers: right by every library, the same for any batch where that is claimed, never stale."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from reallm.errors import ConfigError
from reallm.model.products import backend, onednn
from reallm.model.products import linear as products
from reallm.model.products.linear import input_grads, joint_linear, linear, linear_into, uses_onednn
from reallm.model.products.prepacked import PrepackedWeight, settled_weights
from reallm.model.transformer import Transformer
from tests.helpers.tiny_config import TINY

needs_onednn = pytest.mark.skipif(
    onednn.why_unavailable() is not None, reason=f"needs oneDNN in torch: {onednn.why_unavailable()}"
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["torch", pytest.param("onednn", marks=needs_onednn)])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library that computes products in a test, whatever the machine is."""
    name: str = request.param
    monkeypatch.setattr(products, "linear_backend", lambda: name)
    return name


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "linear_backend", lambda: "onednn")


# ---------------------------------------------------------------------- values and gradients


@pytest.mark.parametrize("shape", [(5, 6), (1, 6), (0, 6), (2, 3, 6), (6,), (300, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_formula(library: str, shape: tuple[int, ...], bias: bool) -> None:
    inputs = [randn(*shape, seed=1), randn(7, 6, seed=2), *([randn(7, seed=3)] if bias else [])]
    ours, exact = ([t.to(dtype).requires_grad_() for t in inputs] for dtype in (torch.float32, torch.float64))
    out, expected = linear(*ours), F.linear(*exact)
    assert out.shape == expected.shape
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
    grad = randn(*out.shape, seed=4)
    found = torch.autograd.grad(out, ours, grad)
    for one, right in zip(found, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        torch.testing.assert_close(one.double(), right, rtol=0, atol=1e-4)


@pytest.mark.parametrize("trained", ["x", "weight", "bias"])
def test_only_gradients_that_are_asked_for_are_computed(library: str, trained: str) -> None:
    tensors = {"x": randn(3, 6), "weight": randn(7, 6), "bias": randn(7)}
    tensors[trained].requires_grad_()
    linear(**tensors).sum().backward()
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == [trained]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 5), (7, 6)), "mat1 and mat2 shapes cannot be multiplied"),
        (((3, 6), (7, 6), (6,)), "size"),
        (((), (7, 6)), "linear"),
    ],
)
def test_tensors_that_do_not_match_are_told_as_torch_tells_it(
    library: str, shapes: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        linear(*(randn(*shape) for shape in shapes))


def test_tensors_of_any_strides(library: str) -> None:
    for x in (randn(6, 5).t(), randn(5, 12)[:, 3:9], randn(10, 6)[::2], randn(1, 6).expand(5, 6)):
        for weight in (randn(7, 6), randn(6, 7).t(), randn(7, 9)[:, :6]):
            torch.testing.assert_close(linear(x, weight), x @ weight.t(), rtol=0, atol=1e-5)


def test_products_into_memory_that_is_there(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PIECE_BYTES", 4 * 40 * 3)  # three rows each
    x, weight, out = randn(8, 6), randn(40, 6), torch.full((8, 40), float("nan"))
    linear_into(x, weight, out)
    torch.testing.assert_close(out, x @ weight.t(), rtol=0, atol=1e-5)


def test_gradients_of_inputs(library: str) -> None:
    grad, weight = randn(9, 7), randn(7, 6)
    torch.testing.assert_close(input_grads(grad, weight), grad @ weight, rtol=0, atol=1e-5)


def test_saves_no_more_for_the_backward_pass_than_torch_does(library: str) -> None:
    def saved(function: Callable[..., Tensor], x: Tensor, weight: Tensor) -> set[int]:
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            function(x, weight)
        return {tensor.data_ptr() for tensor in kept}

    for x_trained, weight_trained in ((True, True), (True, False), (False, True)):
        x, weight = randn(3, 6).requires_grad_(x_trained), randn(7, 6).requires_grad_(weight_trained)
        assert saved(linear, x, weight) == saved(F.linear, x, weight)


# ---------------------------------------------------------------------- where it does not fit


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
def test_only_plain_float32_tensors_on_the_cpu_go_to_onednn() -> None:
    x, weight = randn(3, 6), nn.Parameter(randn(7, 6))
    assert uses_onednn(x, weight)
    assert not uses_onednn(x.double(), weight.double())
    assert not uses_onednn(x.bfloat16(), weight.bfloat16())
    assert not uses_onednn(x.to("meta"), weight.to("meta"))
    assert not uses_onednn(x[:0], weight)
    assert not uses_onednn(x.as_subclass(type("Other", (Tensor,), {})), weight)


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch imports its rules of forward mode so
def test_modes_and_transforms_of_torch_see_the_operators_they_know() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x, weight = randn(3, 6), randn(7, 6)
    with FlopCounterMode(display=False) as counter:
        linear(x, weight)
    assert counter.get_total_flops() == 2 * 3 * 7 * 6
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    jacobian = torch.func.jacrev(lambda row: linear(row, weight))(x[0])
    torch.testing.assert_close(jacobian, weight)
    batched = torch.func.vmap(lambda row: linear(row, weight))(x)
    torch.testing.assert_close(batched, F.linear(x, weight))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(linear(forward_ad.make_dual(x, x), weight)).tangent
    torch.testing.assert_close(tangent, F.linear(x, weight))


def test_a_wrong_or_missing_operator_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget() -> None:
        onednn.why_unavailable.cache_clear()
        backend.linear_backend.cache_clear()

    monkeypatch.setattr(backend, "cpu_vendor", lambda: "AuthenticAMD")
    right = onednn.product

    def wrong(x: Tensor, weight: Tensor, bias: Tensor | None = None, prepacked: Tensor | None = None) -> Tensor:
        return right(x, weight, bias, prepacked) * (1.0 if prepacked is None else 1.001)

    def missing(*_: object, **__: object) -> Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    try:
        for product, reason in ((wrong, "are wrong"), (missing, "do not work here: '_OpNamespace'")):
            monkeypatch.setattr(onednn, "product", product)
            forget()
            assert reason in (onednn.why_unavailable() or "")
            assert onednn.why_not_batch_invariant() == onednn.why_unavailable()
            assert backend.linear_backend() == "torch"
    finally:
        monkeypatch.undo()
        forget()


def test_a_lack_of_memory_is_not_taken_for_a_missing_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object, **__: object) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")

    onednn.why_unavailable.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(onednn, "product", lacking)
        with pytest.raises(RuntimeError, match="allocate memory"):
            onednn.why_unavailable()
    assert onednn.why_unavailable() is None, "another attempt finds it"


def test_sums_with_a_product_are_used_only_where_they_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    right = onednn.product_of_rows

    def wrong(*arguments: Tensor) -> Tensor:
        return right(*arguments) * 1.0000002

    def missing(*_: Tensor) -> Tensor:
        raise NotImplementedError("no kernel")

    try:
        for product in (wrong, missing):
            monkeypatch.setattr(onednn, "product_of_rows", product)
            onednn.adds_exactly.cache_clear()
            assert not onednn.adds_exactly()
    finally:
        monkeypatch.undo()
        onednn.adds_exactly.cache_clear()


# ---------------------------------------------------------------------- the backend


@pytest.mark.parametrize(
    ("vendor", "works", "named", "expected"),
    [
        ("AuthenticAMD", True, "", "onednn"),
        ("AuthenticAMD", False, "", "torch"),
        ("AuthenticAMD", True, "torch", "torch"),
        ("GenuineIntel", True, "", "torch"),
        ("GenuineIntel", True, "onednn", "onednn"),
        ("", True, "", "torch"),
    ],
)
def test_the_choice_is_a_rule(
    monkeypatch: pytest.MonkeyPatch, vendor: str, works: bool, named: str, expected: str
) -> None:
    monkeypatch.setattr(backend, "cpu_vendor", lambda: vendor)
    monkeypatch.setattr(backend, "why_unavailable", lambda: None if works else "not here")
    monkeypatch.setenv(backend.OVERRIDE, named)
    assert backend.linear_backend.__wrapped__() == expected


def test_a_choice_that_is_not_possible_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "why_unavailable", lambda: "this version of torch has no oneDNN")
    monkeypatch.setenv(backend.OVERRIDE, "mkl")
    with pytest.raises(ConfigError, match="REALLM_LINEAR=mkl is not one of onednn, torch"):
        backend.linear_backend.__wrapped__()
    monkeypatch.setenv(backend.OVERRIDE, "onednn")
    with pytest.raises(ConfigError, match="REALLM_LINEAR=onednn is not possible: this version of torch has no oneDNN"):
        backend.linear_backend.__wrapped__()


# ---------------------------------------------------------------------- the same bits for any batch


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(("n", "k"), [(192, 576), (576, 1536), (33, 65), (1, 96)])
def test_rows_do_not_depend_on_the_batch_where_that_is_claimed(n_threads: int, n: int, k: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        if reason := onednn.why_not_batch_invariant():
            pytest.skip(f"not claimed on this machine: {reason}")
        x, weight, prepacked = randn(300, k, seed=1), randn(n, k, seed=2), PrepackedWeight()
        whole = linear(x, weight)
        for rows in (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 255, 256, 257, 299):
            assert torch.equal(linear(x[:rows], weight), whole[:rows]), rows
            assert torch.equal(linear(x[:rows], weight, None, prepacked), whole[:rows]), rows
            assert torch.equal(linear(x[:rows].requires_grad_(), weight), whole[:rows]), rows
        order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
        assert torch.equal(linear(x.detach()[order], weight), whole[order])
        logits = torch.empty(300, n)
        linear_into(x.detach(), weight, logits)
        assert torch.equal(logits, whole)
    finally:
        torch.set_num_threads(before)


def test_a_claim_that_does_not_hold_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    if onednn.why_unavailable():
        monkeypatch.setattr(onednn, "why_unavailable", lambda: None)

    def depends_on_the_batch(x: Tensor, weight: Tensor, *_: object, **__: object) -> Tensor:
        return F.linear(x, weight) + len(x)

    monkeypatch.setattr(onednn, "product", depends_on_the_batch)
    monkeypatch.setattr(onednn, "prepack", lambda weight: weight)
    reason = onednn._why_rows_differ.__wrapped__(torch.get_num_threads()) or ""
    assert reason.startswith("rows depend on the batch of oneDNN's products with a weight of 7 x 5 on ")


# ---------------------------------------------------------------------- prepacked weights


def _step(weight: nn.Parameter) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.5).step()


def _load(weight: nn.Parameter) -> None:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = weight
    layer.load_state_dict({"weight": weight.detach() + 1})


def _rounded(weight: nn.Parameter) -> None:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = weight
    layer.to(torch.bfloat16)
    layer.to(torch.float32)
    assert layer.weight is weight


def _assign(weight: nn.Parameter) -> None:
    weight.data = weight.data + 1


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize(
    "change",
    [
        _step,
        _load,
        _rounded,
        _assign,
        lambda weight: weight.detach().mul_(2),
        lambda weight: weight.detach()[3].zero_(),
        lambda weight: nn.init.ones_(weight),
    ],
    ids=["step", "load_state_dict", "to", "assign", "in place", "a row in place", "init"],
)
def test_a_prepacked_weight_is_never_stale(change: Callable[[nn.Parameter], None]) -> None:
    weight, x, prepacked = nn.Parameter(randn(64, 96)), randn(4, 96), PrepackedWeight()
    with torch.no_grad():
        before = linear(x, weight, None, prepacked)
        change(weight)
        after = linear(x, weight, None, prepacked)
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, x @ weight.t(), rtol=0, atol=1e-4)


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
def test_settled_weights_give_the_same_and_are_looked_at_again_afterwards() -> None:
    weights, biases = [nn.Parameter(randn(64, 96)), nn.Parameter(randn(32, 96))], [None, nn.Parameter(randn(32))]
    forms = prepacked, joint = PrepackedWeight(), PrepackedWeight()

    def computed(x: Tensor) -> list[Tensor]:
        parts = joint_linear(x, weights, biases, joint)
        assert parts is not None
        return [linear(x, weights[1], biases[1], prepacked), *parts]

    with torch.no_grad():
        for x in (randn(1, 96), randn(5, 96), randn(2, 3, 96)):
            expected = computed(x)
            with settled_weights(forms):
                assert prepacked.settled is not None
                assert all(map(torch.equal, computed(x), expected))
        weights[1].mul_(2)
        torch.testing.assert_close(computed(x)[0], F.linear(x, weights[1], biases[1]))
        with torch.autocast("cpu"), settled_weights(forms):
            assert prepacked.settled is None
        with settled_weights(forms):  # no token of a pass may be sampled
            assert linear(randn(0, 96), weights[0], None, prepacked).shape == (0, 64)
            assert joint_linear(randn(0, 96), weights, biases, joint) is None
        prepacked.drop()
        with settled_weights(forms):  # there is nothing to settle
            assert torch.equal(computed(x)[0], computed(x)[2])


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
def test_a_prepacked_weight_is_made_once_and_only_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    monkeypatch.setattr("reallm.model.products.prepacked.prepack", lambda w: made.append(w) or onednn.prepack(w))
    weight, prepacked = nn.Parameter(randn(64, 96)), PrepackedWeight()
    linear(randn(4, 96), weight, None, prepacked)  # with gradients
    assert (len(made), prepacked.nbytes) == (0, 0)
    with torch.no_grad():
        for rows in (1, 4, 300):
            linear(randn(rows, 96), weight, None, prepacked)
    assert (len(made), prepacked.nbytes) == (1, weight.nbytes)
    prepacked.drop()
    assert prepacked.nbytes == 0


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
def test_weights_that_are_prepacked_together_give_what_each_gives() -> None:
    weights = [nn.Parameter(randn(n, 48, seed=n)) for n in (32, 16, 5)]
    biases = [None, nn.Parameter(randn(16)), None]
    prepacked = PrepackedWeight()
    with torch.no_grad():
        for x in (randn(1, 48), randn(7, 48), randn(2, 40, 48)):
            found = joint_linear(x, weights, biases, prepacked)
            assert found is not None
            for one, weight, bias in zip(found, weights, biases, strict=True):
                expected = linear(x, weight, bias)
                assert torch.equal(one, expected) or onednn.why_not_batch_invariant()
                torch.testing.assert_close(one, expected, rtol=0, atol=1e-5)
        assert prepacked.nbytes >= 4 * 48 * (32 + 16 + 5)
        weights[1].mul_(2)
        found = joint_linear(x, weights, biases, prepacked)
        assert found is not None
        torch.testing.assert_close(found[1], linear(x, weights[1], biases[1]), rtol=0, atol=1e-5)


def test_no_joint_product_with_gradients_or_where_onednn_does_not_compute(library: str) -> None:
    x, weights = randn(3, 48), [nn.Parameter(randn(8, 48)), nn.Parameter(randn(4, 48))]
    assert joint_linear(x, weights, [None, None], PrepackedWeight()) is None
    with torch.no_grad():
        assert joint_linear(x.double(), [w.double() for w in weights], [None, None], PrepackedWeight()) is None
        assert (joint_linear(x, weights, [None, None], PrepackedWeight()) is None) == (library == "torch")


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("tied", [True, False])
def test_a_network_gives_the_same_logits_with_prepacked_weights_and_gives_the_memory_back(tied: bool) -> None:
    model = Transformer(TINY.replace(tied_embeddings=tied))
    model.init_weights()
    tokens, bounds = torch.tensor([5, 6, 7, 8, 9]), torch.tensor([0, 3, 5])
    with torch.no_grad():
        expected = model(tokens, bounds)
        with model.prepacked_weights() as forms:
            torch.testing.assert_close(model(tokens, bounds), expected, rtol=0, atol=1e-6)
            # in each block queries with keys and values, outputs, gate with up, down; and the head
            assert sum(form.nbytes > 0 for form in forms) == 2 * 4 + 1
            model.layers["1"].mlp.gate.weight.zero_()
            assert not torch.equal(model(tokens, bounds), expected)
    assert all(getattr(module, "prepacked", None) is None for module in model.modules())
    copy.deepcopy(model)


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
def test_contexts_share_the_prepacked_weights_and_the_last_one_frees_them() -> None:
    model = Transformer(TINY)
    model.init_weights()
    first, second = model.prepacked_weights(), model.prepacked_weights()
    with torch.no_grad():
        forms = first.__enter__()
        model(torch.tensor([5, 6]), torch.tensor([0, 2]))
        assert second.__enter__() == forms
        first.__exit__(None, None, None)
        assert model.prepacked is forms[0]
        second.__exit__(None, None, None)
    assert model.prepacked is None


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
def test_hooks_on_a_layer_still_run_where_weights_are_prepacked_together() -> None:
    model = Transformer(TINY)
    model.init_weights()
    tokens, bounds = torch.tensor([5, 6, 7]), torch.tensor([0, 3])
    seen: list[int] = []
    layer = model.layers["1"].attn.k
    with torch.no_grad(), model.prepacked_weights():
        expected = model(tokens, bounds)
        layer.register_forward_hook(lambda *_: seen.append(1))
        torch.testing.assert_close(model(tokens, bounds), expected, rtol=0, atol=1e-6)
    assert seen == [1]
    with torch.no_grad(), model.prepacked_weights() as forms:  # and it is prepacked by itself
        torch.testing.assert_close(model(tokens, bounds), expected, rtol=0, atol=1e-6)
        assert sum(form.nbytes > 0 for form in forms) == 2 * 4 + 1 + 2


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
def test_an_error_gives_the_memory_back_too() -> None:
    model = Transformer(TINY)
    model.init_weights()
    with pytest.raises(RuntimeError, match="stop"), model.prepacked_weights():
        raise RuntimeError("stop")
    assert model.prepacked is None


MANY_SHAPES = """
import sys
from pathlib import Path
import torch
from reallm.model.products import onednn
from reallm.model.products.linear import linear

def resident_mib():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024

dtype = getattr(torch, sys.argv[1])
weight = torch.randn(64, 64, dtype=dtype)
product = linear
if dtype == torch.float32:  # on any processor
    assert onednn.why_unavailable() is None
    product = onednn.product
product(torch.randn(1000, 64, dtype=dtype), weight)
before = resident_mib()
for n_rows in range(2, 502):
    product(torch.randn(n_rows, 64, dtype=dtype), weight)
print(resident_mib() - before)
"""


@needs_onednn
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, which says what memory is resident")
@pytest.mark.parametrize(("dtype", "most_mib"), [("float32", 125), ("bfloat16", 200)])
def test_memory_does_not_grow_with_every_number_of_rows(dtype: str, most_mib: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in onednn.CACHE_CAPACITIES}
    command = [sys.executable, "-c", MANY_SHAPES, dtype]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    # half a MiB for each shape: about 65 MiB with 128 that are kept, 250 with all of them; in bfloat16 115 and 325
    assert float(said) < most_mib, said
