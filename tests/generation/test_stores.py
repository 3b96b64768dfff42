"""Which store a network gets."""

from __future__ import annotations

import pytest
import torch

from reallm.generation.page_store import PageStore
from reallm.generation.row_store import RowStore
from reallm.generation.stores import make_store
from reallm.model.attention import varlen
from tests.helpers.attention_layers import LatentAttention, SilentAttention, model_of
from tests.helpers.imports import imported_by
from tests.helpers.variants import BASE, build

GENERATE = """
from reallm import ReaLModel, ReaLModelConfig

sizes = {"n_layers": 1, "hidden_size": 8, "intermediate_size": 8, "n_q_heads": 1, "n_kv_heads": 1, "head_dim": 8}
ReaLModel(ReaLModelConfig(**sizes, vocab_size=16, max_positions=16)).generate([[1, 2]], max_new_tokens=2)
"""


@pytest.fixture
def kernel(monkeypatch):
    """As on a GPU with a torch that has the kernel for pages."""
    monkeypatch.setattr(varlen, "supports_pages", lambda: True)
    monkeypatch.setattr(varlen, "supports", lambda device, dtype, head_dim, spec: spec.has_kernel)


def test_rows_on_a_cpu():
    assert isinstance(make_store(build(BASE), 1000), RowStore)


def test_generating_on_a_cpu_imports_no_kernel_and_no_compiler():
    assert imported_by(GENERATE, "torch.nn.attention.varlen", "torch._dynamo", "sympy", "transformers") == []


def test_pages_where_there_is_a_kernel(kernel):
    store = make_store(build(BASE), 1000)
    assert isinstance(store, PageStore)
    assert (store.n_pages, store.device) == (3, torch.device("cpu"))


@pytest.mark.parametrize(
    "model", [build(BASE.replace(attn_softcap=2.0)), model_of(LatentAttention), model_of(SilentAttention)]
)
def test_rows_where_the_kernel_does_not_compute_attention(kernel, model):
    assert isinstance(make_store(model, 1000), RowStore)


def test_rows_where_torch_has_no_kernel_for_pages(kernel, monkeypatch):
    monkeypatch.setattr(varlen, "supports_pages", lambda: False)
    assert isinstance(make_store(build(BASE), 1000), RowStore)


def test_the_installed_torch_says_whether_it_has_a_kernel_for_pages():
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert varlen.supports_pages() == (version >= (2, 12))
