"""No verdict of pass on a planted difference, and no fail without one, over random pairs."""

from __future__ import annotations

import pytest
from align_random import pair

from dsa_profiler.analysis.align import align


def judge(seeds: range) -> tuple[list[str], list[str], int]:
    """Planted pairs that passed, equal pairs that did not, and how many were planted."""
    passed, failed, planted = [], [], 0
    for seed in seeds:
        one = pair(seed)
        found = align([one.standalone], [one.server])
        told = f"seed {seed}: {one.planted or 'equal'}, {one.how}"
        planted += bool(one.planted)
        if one.planted and found.verdict == "pass":
            passed.append(told)
        if not one.planted and found.verdict != "pass":
            failed.append(f"{told}: {[c.detail for c in found.checks]} {found.problems}")
    return passed, failed, planted


def test_no_planted_difference_passes_and_equal_pairs_do() -> None:
    passed, failed, planted = judge(range(120))
    assert not passed
    assert not failed
    assert 60 < planted < 120


@pytest.mark.parametrize("seed", range(300, 330))
def test_swapping_a_random_pair_swaps_missing_and_extra(seed: int) -> None:
    one = pair(seed)
    there = align([one.standalone], [one.server])
    back = align([one.server], [one.standalone])
    assert sorted(f.kernel for f in there.missing) == sorted(f.kernel for f in back.extra)
    assert sorted(f.kernel for f in there.extra) == sorted(f.kernel for f in back.missing)
    assert (there.verdict == "pass") == (back.verdict == "pass")


@pytest.mark.slow
def test_a_thousand_random_pairs() -> None:
    passed, failed, planted = judge(range(10_000, 11_000))
    assert not passed
    assert not failed
    assert planted > 700
