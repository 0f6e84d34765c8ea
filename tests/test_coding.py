"""Codes, groups and sums are numpy's own answers, on columns of one block and of many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dsa_profiler.analysis.coding import (
    BLOCK,
    FEW,
    TABLE,
    Numbering,
    blocks,
    distinct,
    groups,
    look_up,
    place_in,
    ranks,
)
from dsa_profiler.analysis.tally import Tally, total

COLUMNS = {
    "empty": np.empty(0, np.int64),
    "one": np.array([-7]),
    "dense, many blocks": np.random.default_rng(0).integers(-9, 900, 2 * BLOCK + 5),
    "far apart, many blocks": np.random.default_rng(1).integers(-50, 50, BLOCK + 3) << 50,
    "the ends of int64": np.array([-(1 << 63), (1 << 63) - 1, 0, -1, 0]),
}


@pytest.fixture(params=COLUMNS)
def column(request: pytest.FixtureRequest) -> Any:
    return COLUMNS[request.param]


def test_blocks_cover_every_row_once() -> None:
    for count in (0, 1, BLOCK, BLOCK + 1):
        rows = [n for part in blocks(count) for n in range(part.start, part.stop)]
        assert rows == list(range(count))


def test_distinct_and_numbers(column: Any) -> None:
    ids = distinct(column)
    assert np.array_equal(ids, np.unique(column))
    assert np.array_equal(ids[Numbering.over(ids).of(column)], column)


def test_groups_hold_every_row_of_their_value(column: Any) -> None:
    ids = distinct(column)
    for known in (ids, ids[:FEW], ids[: FEW + 1]):
        found = dict(groups(known, column))
        assert sorted(found) == list(range(len(known)))
        for number, rows in found.items():
            assert np.array_equal(rows, np.flatnonzero(column == known[number]))


def test_what_is_not_known_has_no_place() -> None:
    assert place_in(np.array([3, 5, 9]), np.array([1, 3, 4, 9, 10])).tolist() == [-1, 0, -1, 2, -1]
    table = {3: 1, TABLE * 4: 2, -8: 3}
    assert look_up(table, np.array([3, -8, 0, TABLE * 4, -1])).tolist() == [1, 3, -1, 2, -1]
    assert look_up({}, np.array([3])).tolist() == [-1]


@pytest.mark.parametrize("many", [0, 1, 5, 400])
def test_ranks_are_those_of_a_search(many: int) -> None:
    rng = np.random.default_rng(many)
    known = np.sort(rng.integers(0, 50, 100))
    for values in (rng.integers(-5, 55, many), np.sort(rng.integers(-5, 55, many))):
        assert ranks(known, values).tolist() == np.searchsorted(known, values, "right").tolist()
    assert ranks(known[:0], known).tolist() == [0] * 100


def test_a_tally_is_exact_at_any_size() -> None:
    tally = Tally.of(3)
    expected = [0, 0, 0]
    for ns in ([5, 7, 9], [(1 << 54) + 1, 1, 1], [1 << 61, (1 << 61) + 3, 3], [1 << 62, 1, 1]):
        code = np.array([0, 0, 2])
        tally.add(code, np.array(ns))
        expected = [expected[0] + ns[0] + ns[1], 0, expected[2] + ns[2]]
    assert list(tally.items()) == [(0, 8, expected[0]), (2, 4, expected[2])]
    assert total(np.array([1 << 62, (1 << 62) + 1])) == (1 << 63) + 1
