"""Counter-based random numbers: the published answers, and independence of what they are drawn for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reallm.generation.random import StreamPosition, hash_key, philox4x32, uniform

# counter, key, answer: the lines "philox4x32 10" of kat_vectors in the Random123 library
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


def philox_of_ints(counter, key):
    """Philox4x32-10 of the paper, on Python's integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        x, y = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (y >> 32) ^ b ^ k, y % 2**32, (x >> 32) ^ d ^ m, x % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def test_philox_gives_the_published_answers():
    counters, keys, answers = (
        torch.tensor([words(text) for text in column]) for column in zip(*KNOWN_ANSWERS, strict=True)
    )
    assert torch.equal(philox4x32(counters, keys), answers)


def test_philox_of_tensors_is_that_of_integers():
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(2**32, (500, 4), generator=generator)
    keys = torch.randint(2**32, (500, 2), generator=generator)
    expected = [philox_of_ints(counter, key) for counter, key in zip(counters.tolist(), keys.tolist(), strict=True)]
    assert philox4x32(counters, keys).tolist() == expected


def test_a_number_has_the_53_highest_bits_of_two_words_of_its_position():
    key = hash_key("a prompt")
    position = StreamPosition(seed=-3, key=key, sample=5, position=70_000)
    first, second, *_ = philox_of_ints((70_000, 5, key % 2**32, key >> 32), (2**32 - 3, 2**32 - 1))
    (number,) = uniform([position]).tolist()
    assert number == ((first >> 5) * 2**26 + (second >> 6)) / 2**53
    assert uniform([position]).dtype == torch.float64
    assert uniform([]).tolist() == []


def test_a_number_does_not_depend_on_the_others():
    positions = [StreamPosition(seed, hash_key(key), 2, at) for seed in (0, 9) for key in "ab" for at in range(50)]
    assert uniform(positions).tolist() == [uniform([position]).item() for position in positions]


def test_hashes_of_keys_are_the_same_in_every_process():
    assert hash_key(0) == 16_965_118_934_318_357_350
    assert hash_key("ä") == 10_887_838_253_421_484_670
    hashes = [hash_key(key) for key in [0, 7, "7", "", "ä", "\ud800", 2**70, -1]]
    assert len(set(hashes)) == len(hashes)
    assert all(0 <= value < 2**64 for value in hashes)


NEIGHBOURS = {
    "seed": lambda i: StreamPosition(i, hash_key(0), 0, 0),
    "key": lambda i: StreamPosition(0, hash_key(i), 0, 0),
    "key of 64 bits": lambda i: StreamPosition(0, i, 0, 0),
    "text as key": lambda i: StreamPosition(0, hash_key(f"prompt {i}"), 0, 0),
    "sample": lambda i: StreamPosition(0, hash_key(0), i, 0),
    "position": lambda i: StreamPosition(0, hash_key(0), 0, i),
    "position of another key": lambda i: StreamPosition(0, hash_key(1), 0, i),
}


@pytest.fixture(scope="module")
def numbers():
    return {name: uniform([at(i) for i in range(20_000)]).numpy() for name, at in NEIGHBOURS.items()}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbours_have_independent_uniform_numbers(name, numbers):
    x = numbers[name]
    n = len(x)
    assert x.min() >= 0
    assert x.max() < 1
    counts = np.histogram(x, bins=100, range=(0, 1))[0]
    # chi-square with 99 degrees of freedom: standard deviation 14
    assert abs(((counts - n / 100) ** 2 / (n / 100)).sum() - 99) < 4.5 * 14.1
    for lag in (1, 2, 7, 256):
        # pairs of neighbours fill the unit square evenly, which says more than that they do not correlate
        pairs = np.histogram2d(x[:-lag], x[lag:], bins=10, range=[(0, 1), (0, 1)])[0]
        expected = (n - lag) / 100
        assert abs(((pairs - expected) ** 2 / expected).sum() - 99) < 4.5 * 14.1
        # the standard error of a correlation is 1 / sqrt(n)
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 4.5 / n**0.5


def test_streams_do_not_correlate_or_repeat(numbers):
    drawn = np.stack([numbers[name] for name in NEIGHBOURS])
    correlations = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 4.5 / drawn.shape[1] ** 0.5
    # each name is drawn at position 0 of the first stream once or more; all other numbers differ
    assert len(np.unique(drawn)) >= drawn.size - len(NEIGHBOURS)
