"""Per case: what one iteration took, stage by stage and kernel by kernel.

A kernel belongs to the iteration that launched it, whenever it ran. Where several GPUs share an
iteration, each is looked at alone and the slowest speaks for it: a sum over GPUs is no latency.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.analysis.iterations import Iterations
from dsa_profiler.analysis.occupancy import Occupancy, occupancy
from dsa_profiler.errors import Warn
from dsa_profiler.marks import GROUP_OF, STAGES
from dsa_profiler.model import Case
from dsa_profiler.results import CaseResult, KernelStat, Spread, StageStat, Timing

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints

    Numbers = np.ndarray[Any, np.dtype[np.float64]]

OUTLIER = 0.1
"""An iteration is an outlier beyond this share of the median and five deviations (MAD)."""
SLOW_START = 1.5
"""A first iteration this many times slower than the median of the others is told."""


@dataclass(frozen=True, slots=True, eq=False)
class Activities:
    """What ran in the measured iterations, one entry a kernel, copy, fill or hidden graph launch;
    or, where the host is timed, one a piece of a stage range.

    `lane` numbers (process, device), or threads where the host is timed. `name` indexes `names`,
    `stage` marks.STAGES. `opaque` marks graph launches whose kernels the trace does not show.
    """

    iteration: Ints
    lane: Ints
    start: Ints
    end: Ints
    name: Ints
    stage: Ints
    opaque: Ints
    names: Sequence[str]
    timing: Timing


def results(iterations: Iterations, activities: Activities) -> tuple[CaseResult, ...]:
    """One result for every case with at least one measured iteration, in order of time."""
    cases = tuple(dict.fromkeys(iterations.case))
    number = {case: n for n, case in enumerate(cases)}
    of_iteration = np.array([number[c] for c in iterations.case], np.int64)
    owner = of_iteration[activities.iteration]
    order = np.lexsort((activities.start, activities.lane, activities.iteration, owner))
    bounds = np.searchsorted(owner[order], np.arange(len(cases) + 1))
    marked = Counter(iterations.case)
    out = []
    for case, low, high in zip(cases, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if low < high:
            rows = order[low:high]
            out.append(_case(case, activities, rows, marked[case], iterations.cut[case]))
    return tuple(out)


def _case(case: Case, found: Activities, rows: Ints, marked: int, cut: int) -> CaseResult:
    slowest, lanes = _slowest_lanes(found, rows)
    spans = [o.span for o, _ in slowest]
    rows = np.concatenate([part for _, part in slowest])
    place = np.repeat(np.arange(len(slowest)), [len(part) for _, part in slowest])
    stages = _stages(found, rows, place, len(slowest))
    warnings = [
        *_timing_warnings(found, rows, lanes),
        *_missing(marked - len(slowest), cut),
        *_uneven(spans),
    ]
    return CaseResult(
        case=case,
        iterations=len(slowest),
        span_ns=_spread(spans),
        busy_ns=_median([o.busy for o, _ in slowest]),
        overlap_ns=_median([o.overlap for o, _ in slowest]),
        gap_ns=_median([o.gap for o, _ in slowest]),
        stages=stages,
        kernels=_kernels(found, rows, place, len(slowest)),
        warnings=tuple(warnings),
        timing=found.timing,
        iteration_spans_ns=tuple(spans),
        window_ns=(int(found.start[rows].min()), int(found.end[rows].max())),
    )


def _slowest_lanes(found: Activities, rows: Ints) -> tuple[list[tuple[Occupancy, Ints]], int]:
    """Of each iteration the lane with the longest span: its occupancy and rows; and how many lanes
    the case has. `rows` are sorted by iteration and lane.
    """
    iteration, lane = found.iteration[rows], found.lane[rows]
    borders = np.flatnonzero((iteration[1:] != iteration[:-1]) | (lane[1:] != lane[:-1])) + 1
    best: dict[int, tuple[Occupancy, Ints]] = {}
    for part in np.split(rows, borders):
        spent = occupancy(found.start[part], found.end[part])
        key = int(found.iteration[part[0]])
        if key not in best or spent.span > best[key][0].span:
            best[key] = (spent, part)
    return list(best.values()), len(np.unique(lane))


def _stages(found: Activities, rows: Ints, place: Ints, count: int) -> tuple[StageStat, ...]:
    codes, stage = np.unique(found.stage[rows], return_inverse=True)
    sums, calls = _table(found, rows, place, stage, count, len(codes))
    medians = np.median(sums, axis=0)
    whole = float(medians.sum())
    stats = [
        StageStat(
            stage=STAGES[code],
            group=GROUP_OF[STAGES[code]],
            kernels_per_iteration=float(calls[n]) / count if found.timing == "gpu" else 0.0,
            median_ns=float(medians[n]),
            share=float(medians[n]) / whole if whole else 0.0,
            iteration_ns=tuple(int(ns) for ns in sums[:, n]),
        )
        for n, code in enumerate(codes.tolist())
    ]
    return tuple(sorted(stats, key=lambda s: (-s.median_ns, s.stage)))


def _kernels(found: Activities, rows: Ints, place: Ints, count: int) -> tuple[KernelStat, ...]:
    if found.timing == "host":
        return ()
    pair = found.name[rows] * len(STAGES) + found.stage[rows]
    codes, column = np.unique(pair, return_inverse=True)
    sums, calls = _table(found, rows, place, column, count, len(codes))
    low, middle, high = np.percentile(sums, [10, 50, 90], axis=0)
    stats = [
        KernelStat(
            name=found.names[code // len(STAGES)],
            stage=STAGES[code % len(STAGES)],
            calls_per_iteration=float(calls[n]) / count,
            median_ns=float(middle[n]),
            p10_ns=float(low[n]),
            p90_ns=float(high[n]),
        )
        for n, code in enumerate(codes.tolist())
    ]
    return tuple(sorted(stats, key=lambda k: (-k.median_ns, k.name, k.stage)))


def _table(
    found: Activities, rows: Ints, place: Ints, column: Ints, count: int, width: int
) -> tuple[Numbers, Ints]:
    """Summed time by (iteration, column), zero where an iteration has none; calls by column."""
    duration = found.end[rows] - found.start[rows]
    sums = np.bincount(place * width + column, weights=duration, minlength=count * width)
    calls = np.bincount(column, minlength=width).astype(np.int64)
    return sums.reshape(count, width).astype(np.float64), calls


def _timing_warnings(found: Activities, rows: Ints, lanes: int) -> list[Warn]:
    out = []
    if found.timing == "host":
        out.append(
            Warn(
                "host-timing",
                "the trace has no GPU kernels: stages are timed by their host ranges",
                "profile on a GPU for kernel times",
            )
        )
    elif lanes > 1:
        out.append(
            Warn(
                "several-devices",
                f"{lanes} GPUs share each iteration; the slowest one's times are shown",
                "profile one rank for its own times",
            )
        )
    hidden = int(np.count_nonzero(found.opaque[rows]))
    if hidden:
        out.append(_hidden(hidden))
    return out


def _hidden(count: int) -> Warn:
    return Warn(
        "kernels-not-visible",
        f"{count} graph launches: kernels not visible (record with --cuda-graph-trace=node)",
        "record again with --cuda-graph-trace=node",
    )


def _missing(empty: int, cut: int) -> list[Warn]:
    out = []
    if empty > 0:
        out.append(
            Warn(
                "iterations-empty",
                f"{empty} iterations have no kernel in the trace and are left out",
                "record with --cuda-graph-trace=node, and look for lost records in the warnings",
            )
        )
    if cut:
        out.append(
            Warn(
                "iterations-truncated",
                f"{cut} iterations were cut off by the end of the collection and are left out",
                "let the collection run until the program ends",
            )
        )
    return out


def _uneven(spans: list[int]) -> list[Warn]:
    """A slow first iteration, and outliers among the others."""
    out: list[Warn] = []
    rest = spans[1:] if len(spans) > 2 else spans
    middle = _median(rest)
    if not middle:
        return out
    if len(spans) > 2 and spans[0] > SLOW_START * middle:
        out.append(
            Warn(
                "first-iteration-slow",
                f"the first iteration took {spans[0] / middle:.1f} times the median of the others",
                "add warm-up iterations",
            )
        )
    if len(rest) < 4:
        return out
    deviation = 1.4826 * _median([abs(s - middle) for s in rest])
    limit = max(5 * deviation, OUTLIER * middle)
    count = sum(abs(s - middle) > limit for s in rest)
    if count:
        out.append(
            Warn(
                "outlier-iterations",
                f"{count} of {len(spans)} iterations are more than {limit / middle:.0%} "
                "from the median",
                "lock the clocks, keep the machine to yourself, or run more iterations",
            )
        )
    return out


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _spread(values: Sequence[int]) -> Spread:
    low, middle, high = np.percentile(values, [10, 50, 90]).tolist()
    return Spread(middle, low, high, float(min(values)), float(max(values)))
