"""A mark parses back to what built it, and nothing else is a mark."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsa_profiler import marks


def test_every_stage_has_one_group() -> None:
    assert len(marks.STAGES) == len(set(marks.STAGES)) == 22
    assert marks.GROUP_OF["index_convert"] == "topk"


@given(st.integers(0, 10**9))
def test_numbers_round_trip(n: int) -> None:
    assert marks.parse(marks.iteration(n)) == marks.Mark("iter", str(n))
    assert marks.parse(marks.warmup(n)) == marks.Mark("warmup", str(n))
    parsed = marks.parse(marks.iteration(n))
    assert parsed is not None
    assert parsed.number == n


@pytest.mark.parametrize("stage", marks.STAGES)
def test_stages_round_trip(stage: str) -> None:
    assert marks.parse(marks.stage(stage)) == marks.Mark("stage", stage)


def test_cases_round_trip() -> None:
    assert marks.parse(marks.case("context-b1-s16-h128-bfloat16")) == marks.Mark(
        "case", "context-b1-s16-h128-bfloat16"
    )


def test_a_stage_outside_the_list_cannot_be_marked() -> None:
    with pytest.raises(ValueError, match="not a stage"):
        marks.stage("attention")


@pytest.mark.parametrize(
    "text",
    ["", "dsa:", "dsa:iter", "dsa:iter ", "dsa:iter -1", "dsa:iter ²", "dsa:stage nope",
     "dsa:layer 1", "[DG] jit", "dsa:iter  1", "xdsa:iter 1"],
)  # fmt: skip
def test_others_ranges_are_not_marks(text: str) -> None:
    assert marks.parse(text) is None


@given(st.text())
def test_parsing_never_fails(text: str) -> None:
    mark = marks.parse(text)
    assert mark is None or text == f"dsa:{mark.kind} {mark.value}"
