"""The LCS: exact, and the same pairs whatever is installed."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsa_profiler.analysis import lcs

SEQUENCES = st.lists(st.integers(0, 5), max_size=40)


def table(a: list[int], b: list[int]) -> int:
    """The length of the LCS by the textbook."""
    best = [0] * (len(b) + 1)
    for x in a:
        last = 0
        for j, y in enumerate(b):
            last, best[j + 1] = best[j + 1], last + 1 if x == y else max(best[j + 1], best[j])
    return best[-1]


@given(SEQUENCES, SEQUENCES)
def test_pairs_are_a_common_subsequence_and_as_long_as_one_can_be(
    a: list[int], b: list[int]
) -> None:
    found = lcs.pairs(a, b)
    assert all(a[i] == b[j] for i, j in found)
    assert all(x < y and p < q for (x, p), (y, q) in itertools.pairwise(found))
    assert len(found) == table(a, b)


@given(SEQUENCES, SEQUENCES)
def test_pairs_do_not_depend_on_what_is_installed(a: list[int], b: list[int]) -> None:
    pytest.importorskip("rapidfuzz")
    fast = lcs.pairs(a, b)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lcs, "LCSseq", None)
        assert lcs.pairs(a, b) == fast


@given(SEQUENCES, SEQUENCES)
def test_likeness_never_costs_a_pair(a: list[int], b: list[int]) -> None:
    found = lcs.weighted(a, b, lambda i, j: 1 / (1 + abs(i - j)))
    assert all(a[i] == b[j] for i, j in found)
    assert len(found) == table(a, b)


def test_likeness_decides_which_of_three_is_missing() -> None:
    assert lcs.weighted([1, 1, 1], [1, 1], lambda i, j: float(i == j + 1)) == [(1, 0), (2, 1)]


def test_a_repetitive_stream_of_layers_is_matched_whole() -> None:
    """What difflib fails at: ten thousand kernels that are all alike."""
    rng = random.Random(1)
    a = [rng.randrange(30) for _ in range(40)] * 60
    b = [x for n, x in enumerate(a) if n % 97]
    assert len(lcs.pairs(a, b)) == len(b)
