"""The steps joined: a raw recording to a trace of the session, a trace or a session to results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dsa_profiler import marks
from dsa_profiler.errors import EnvironmentFault
from dsa_profiler.model import Case

if TYPE_CHECKING:
    from dsa_profiler.columns import Trace

SQLITE_MAGIC = b"SQLite format 3\0"


def finish(raw: Path, target: Path, expected: Mapping[Case, int]) -> frozenset[Case]:
    """Make `target`, a trace in nsys' schema without secrets, from the recording `raw`.

    Returns the cases of `expected` (case -> iterations) whose every iteration mark is there, whole.
    A recording without any mark of ours, or with domains but no ranges, is raised as
    EnvironmentFault, since the next one would hold none either.
    """
    from dsa_profiler.trace import reader, scrub, writer

    trace = reader.read(raw)
    counted = iterations(trace)
    if not counted:
        raise _no_marks(trace)
    with raw.open("rb") as file:
        native = file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    if native:
        scrub.scrub(raw, target)
    else:
        writer.write(trace, target)
    return frozenset(case for case, least in expected.items() if counted.get(case.slug, 0) >= least)


def iterations(trace: Trace) -> dict[str, int]:
    """Whole iteration marks inside each whole case mark of a trace, by slug."""
    ranges = trace.ranges
    ours = {i: m for i, text in trace.strings.items() if (m := marks.parse(text)) is not None}
    cases: list[tuple[int, int, int, str]] = []
    rounds: list[tuple[int, int, int]] = []
    columns = (ranges.text, ranges.thread, ranges.start, ranges.end, ranges.truncated)
    for text, thread, start, end, cut in zip(*(c.tolist() for c in columns), strict=True):
        mark = ours.get(text)
        if mark is None or cut:
            continue
        if mark.kind == "case":
            cases.append((thread, start, end, mark.value))
        elif mark.kind == "iter":
            rounds.append((thread, start, end))
    counted = {slug: 0 for *_, slug in cases}
    for thread, start, end, slug in cases:
        counted[slug] += sum(t == thread and start <= s and e <= end for t, s, e in rounds)
    return counted


def _no_marks(trace: Trace) -> EnvironmentFault:
    if trace.info.domains_without_ranges:
        return EnvironmentFault(
            "marks-lost",
            "the profiler recorded NVTX domains but no ranges: every mark was lost",
            "install nvtx==0.2.10 (0.2.12 and later record nothing under nsys up to 2023.4), "
            "or record with --tracer torch",
        )
    return EnvironmentFault(
        "marks-lost",
        "the recording holds none of the marks of its cases",
        "see the chunk's log.txt; record with --tracer torch if nsys cannot trace NVTX here",
    )
