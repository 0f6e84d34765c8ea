"""The standard grids, to the case."""

from __future__ import annotations

import pytest

from dsa_profiler.errors import UsageError
from dsa_profiler.model import Case
from dsa_profiler.plan import Grid, build, smoke, standard


@pytest.mark.parametrize(
    ("phase", "cases", "points"), [("context", 110, 162), ("generation", 181, 187)]
)
def test_the_standard_grids_hold_what_they_should(phase: str, cases: int, points: int) -> None:
    plan = build([standard(phase)], max_position=163_840)  # type: ignore[arg-type]
    assert len(plan.cases) == cases
    assert len(plan.cases) + len(plan.skipped) == points
    assert all("exceeds" in skip.reason for skip in plan.skipped)


def test_the_limits_keep_the_corner_that_the_tables_have() -> None:
    plan = build([standard("generation")])
    assert Case("generation", 1024, 16383) in plan.cases
    assert Case("generation", 1024, 32767) not in plan.cases
    assert Case("context", 2, 32768) in build([standard("context")]).cases


def test_head_counts_are_an_axis() -> None:
    plan = build([standard("context", (128, 64, 16))])
    assert len(plan.cases) == 330
    assert {c.num_heads for c in plan.cases} == {128, 64, 16}


def test_a_plan_has_no_repeats_and_keeps_its_order() -> None:
    grid = Grid("context", (1, 1), (16, 64, 16))
    plan = build([grid, grid])
    assert plan.cases == (Case("context", 1, 16), Case("context", 1, 64))


def test_a_case_beyond_the_models_positions_is_skipped_with_its_reason() -> None:
    plan = build([Grid("generation", (1,), (10, 5000))], max_position=4096)
    assert plan.cases == (Case("generation", 1, 10),)
    assert plan.skipped[0].reason == "5,001 tokens exceed the model's 4,096"


@pytest.mark.parametrize("grid", [Grid("context", (), (1,)), Grid("context", (2,), (9,), limit=17)])
def test_an_empty_grid_is_an_error(grid: Grid) -> None:
    with pytest.raises(UsageError, match="no case"):
        build([grid])


def test_the_smoke_grid_lies_on_both_sides_of_topk() -> None:
    lengths = {c.kv_len for c in build([smoke("generation")]).cases}
    assert min(lengths) <= 2048 < max(lengths)
