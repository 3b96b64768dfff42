"""Softmax over the vocabulary: exact, and the same for a row in any batch."""

from __future__ import annotations

import pytest
import torch

from reallm.model import softmax

N_THREADS = [1, 2]


@pytest.fixture(params=N_THREADS)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def normalizer(logits, inverse_temperature):
    highest = logits.amax(dim=-1, keepdim=True)
    sums = softmax.block_sums(softmax.exponentials(logits, highest, inverse_temperature))
    return sums, softmax.total(sums), softmax.logprob(logits[:, :3], highest, softmax.total(sums), inverse_temperature)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_vocab", [5, 256, 257, 1000, 49_152, 50_257])
@pytest.mark.usefixtures("threads")
def test_a_row_does_not_depend_on_the_batch(n_vocab, dtype):
    logits = torch.randn(9, n_vocab, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 4
    whole = normalizer(logits, 0.7)
    for start, stop in [(0, 1), (8, 9), (3, 5), (2, 9)]:
        # the temperature of each row may be given, too, as sampling does for different ones
        column = torch.full((stop - start, 1), 0.7, dtype=torch.float64)
        for inverse_temperature in (0.7, column):
            part = normalizer(logits[start:stop].clone(), inverse_temperature)
            assert all(torch.equal(a, b[start:stop]) for a, b in zip(part, whole, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
def test_log_probabilities_are_exact(temperature):
    logits = torch.randn(20, 151_936, generator=torch.Generator().manual_seed(0)) * 3
    *_, found = normalizer(logits, softmax.inverse_of(temperature))
    exact = (logits.double() / temperature).log_softmax(-1)[:, :3]
    # the quotient by the temperature has 24 bits, of which the difference to the highest logit needs up to 7
    torch.testing.assert_close(found, exact, rtol=3e-7, atol=1e-6)


def test_blocks():
    x = torch.arange(1200.0).reshape(2, 600)
    assert softmax.block_sums(x).tolist() == [[float(part.sum()) for part in row.split(256)] for row in x]
    assert softmax.block_maxima(x).tolist() == [[255, 511, 599], [855, 1111, 1199]]
    assert softmax.block_sums(x[:, :512]).shape == (2, 2)
    assert softmax.block_maxima(x[:, :10]).tolist() == [[9], [609]]
    columns = softmax.columns_of_block(torch.tensor([[0], [2]]), 600)
    assert columns[0].tolist() == list(range(256))
    assert columns[1].tolist() == [*range(512, 600), *[599] * 168]
