"""The measured iterations of a trace: which marks make one, and what ran in it.

An iteration is a `dsa:iter` inside a `dsa:case`. Warm-ups are not among them, nor iterations that
the end of the collection cut off. Several processes that mark the same iteration of the same case
(ranks of one layer) share it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.analysis import nesting
from dsa_profiler.analysis.attribute import Marks, innermost
from dsa_profiler.columns import NULL, PROCESS_MASK, Trace
from dsa_profiler.errors import UsageError
from dsa_profiler.model import Case

if TYPE_CHECKING:
    Rows = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, slots=True, eq=False)
class Iterations:
    """`of_range` gives a range row's iteration, NULL for none; `case` each iteration's case.

    Iterations of a case are in order of time; cases in order of their first iteration. `cut` counts
    iterations that the end of the collection cut off; `strays` are marks that lead nowhere.
    """

    of_range: Rows
    case: tuple[Case, ...]
    cut: Counter[Case]
    marked: tuple[Case, ...]
    strays: int


def iterations(trace: Trace, marks: Marks) -> Iterations:
    """Find the measured iterations among a trace's marks."""
    ranges = trace.ranges
    cases = nesting.build(ranges, marks.case, trace.strings)
    rows = np.array(
        [r for r in marks.iteration.tolist() if marks.parsed[int(ranges.text[r])].kind == "iter"],
        np.int64,
    )
    around = innermost(cases, ranges, rows).tolist()
    named = {n: _case(m.value) for n, m in marks.parsed.items() if m.kind == "case"}
    found: list[tuple[int, Case, int, int, int]] = []
    cut: Counter[Case] = Counter()
    strays = 0
    for row, case_row in zip(rows.tolist(), around, strict=True):
        case = named[int(ranges.text[case_row])] if case_row >= 0 else None
        if case is None:
            strays += 1
        elif ranges.truncated[row]:
            cut[case] += 1
        else:
            number = marks.parsed[int(ranges.text[row])].number
            process = int(ranges.thread[row]) & PROCESS_MASK
            found.append((int(ranges.start[row]), case, number, process, row))
    of_range = np.full(len(ranges), NULL, np.int32)
    keys = _shared(sorted(found))
    place = {key: n for n, key in enumerate(dict.fromkeys(key for key, _ in keys))}
    for key, row in keys:
        of_range[row] = place[key]
    marked = {named[int(ranges.text[r])] for r in marks.case.tolist()}
    return Iterations(
        of_range,
        tuple(case for case, _, _ in place),
        cut,
        tuple(sorted(c for c in marked if c is not None)),
        strays,
    )


def _shared(
    found: list[tuple[int, Case, int, int, int]],
) -> list[tuple[tuple[Case, int, int], int]]:
    """Key each range by (case, number, how often this process had that number before)."""
    seen: Counter[tuple[Case, int, int]] = Counter()
    out = []
    for _, case, number, process, row in found:
        again = seen[case, number, process]
        seen[case, number, process] += 1
        out.append(((case, number, again), row))
    return out


def _case(slug: str) -> Case | None:
    try:
        return Case.from_slug(slug)
    except UsageError:
        return None
