"""Softmax over the vocabulary: exact, and the same for a row in any batch."""

from __future__ import annotations

import pytest
import torch

from reallm.errors import ConfigError
from reallm.model.softmax import columns_of_block, fixed_point, from_fixed_point, highest, inverse_of, logprob, softmax

N_THREADS = [1, 2]


@pytest.fixture(params=N_THREADS)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_vocab", [5, 256, 257, 1000, 49_152, 50_257])
@pytest.mark.usefixtures("threads")
def test_a_row_does_not_depend_on_the_batch(n_vocab, dtype):
    logits = torch.randn(9, n_vocab, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 4
    for temperature in (1.0, 0.7):
        whole = softmax(logits, highest(logits), inverse_of(temperature))
        for start, stop in [(0, 1), (8, 9), (3, 5), (2, 9)]:
            part = logits[start:stop].clone()
            # the temperature of each row may be given, too, as sampling does if they differ
            column = torch.full((stop - start, 1), inverse_of(temperature), dtype=torch.float64)
            for inverse_temperature in (inverse_of(temperature), column):
                found = softmax(part, highest(part), inverse_temperature)
                assert all(torch.equal(a, b[start:stop]) for a, b in zip(found, whole, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_probabilities_are_exact(dtype, temperature):
    logits = (torch.randn(20, 151_936, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    exact = (logits.double() / temperature).log_softmax(-1)
    best = highest(logits)
    found = softmax(logits, best, inverse_of(temperature))
    # sums of float32 numbers over blocks only, and logarithms in float64
    torch.testing.assert_close(
        logprob(logits[:, :9], found.normalizer, inverse_of(temperature)), exact[:, :9], rtol=0, atol=2e-7
    )
    assert found.weights.dtype == best.logits.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones_like(found.weights[:, 0]), rtol=0, atol=1e-5)
    probabilities = found.weights * found.factor(found.normalizer)
    # torch's float32 softmax on CPUs has exponentials of 20 units in the last place
    torch.testing.assert_close(probabilities.double(), exact.exp(), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_memory_of_the_logits_can_be_overwritten(temperature):
    logits = torch.randn(5, 3000, generator=torch.Generator().manual_seed(0))
    expected = softmax(logits, highest(logits), inverse_of(temperature))
    found = softmax(logits, highest(logits), inverse_of(temperature), overwrite=True)
    assert found.weights.data_ptr() == logits.data_ptr()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_sums_are_whole_numbers():
    x = torch.tensor([0.0, 2.0**-80, 0.25, 1.0])
    assert fixed_point(x).tolist() == [0, 1, 2**58, 2**60]
    assert from_fixed_point(fixed_point(x[2:])).tolist() == [0.25, 1.0]
    logits = torch.zeros(2, 1024)
    assert softmax(logits, highest(logits)).cumulative.tolist() == [[2**58, 2**59, 3 * 2**58, 2**60]] * 2


def test_columns_of_blocks():
    columns = columns_of_block(torch.tensor([[0], [2]]), 600)
    assert columns[0].tolist() == list(range(256))
    assert columns[1].tolist() == [*range(512, 600), *[599] * 168]


def test_the_highest_logit_has_the_lowest_column_that_has_it():
    logits = torch.zeros(4, 700)
    logits[0, [699, 300, 255]] = logits[1, [256, 512]] = logits[2, 699] = 1.5
    for each in (logits, logits.bfloat16()):
        assert highest(each).columns.tolist() == [[255], [256], [699], [0]]
        assert highest(each).logits.tolist() == [[1.5], [1.5], [1.5], [0.0]]


@pytest.mark.parametrize("inverse_temperature", [1.0, 1.25])
def test_what_is_impossible_at_the_end_of_a_row_changes_nothing(inverse_temperature):
    logits = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    expected = softmax(logits, highest(logits), inverse_temperature)
    for n_more in (1, 256, 1000, 40_000):
        longer = torch.cat((logits, torch.full((3, n_more), -torch.inf)), dim=1)
        found = softmax(longer, highest(longer), inverse_temperature)
        assert torch.equal(found.weights[:, :512], expected.weights)
        assert torch.equal(found.cumulative[:, -1], expected.cumulative[:, -1])
        assert torch.equal(found.normalizer, expected.normalizer)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "1", None])
def test_a_temperature_at_which_there_is_no_softmax(temperature):
    with pytest.raises(ConfigError, match=f"temperature={temperature!r} must be a number more than 0; greedy"):
        inverse_of(temperature)
