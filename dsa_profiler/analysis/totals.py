"""Sums over a whole trace, marks or none: by kernel, by range, and what is accounted for.

Kernels only: a copy is no kernel, and these sums are held against nsys' own. All sums are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.analysis.attribute import REASONS, Attribution
from dsa_profiler.analysis.stages import PROVENANCE, UNKNOWN, Staging
from dsa_profiler.columns import Trace
from dsa_profiler.marks import STAGES
from dsa_profiler.results import Coverage, KernelTotal, RangeTotal

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints

EXACT = 1 << 53
"""Below this, a float64 sum of whole numbers is exact."""


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """What adds up over traces: durations by name, time by (name, stage) and (range, kernel)."""

    durations: Mapping[str, Ints]
    stage_ns: Mapping[tuple[str, str], int]
    pairs: Mapping[tuple[str, str], tuple[int, int]]
    coverage: Coverage


def totals(trace: Trace, attribution: Attribution, staging: Staging) -> Totals:
    """Sum up one trace."""
    rows = np.flatnonzero(trace.kernels.kind == 0)
    whole = len(rows) == len(trace.kernels)

    def of(column: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return column if whole else column[rows]

    duration = of(trace.kernels.end) - of(trace.kernels.start)
    name, stage = of(trace.kernels.name), of(staging.stage)
    reason, enclosing = of(attribution.reason), of(attribution.enclosing)
    stage_sums = _sums(name * len(STAGES) + stage, duration)
    stage_ns: dict[tuple[str, str], int] = {}
    for code, _, total in stage_sums:
        key = (trace.strings.get(code // len(STAGES), ""), STAGES[code % len(STAGES)])
        stage_ns[key] = stage_ns.get(key, 0) + total
    return Totals(
        _durations(trace, name, duration),
        stage_ns,
        _pairs(trace, enclosing, name, duration),
        _coverage(reason, stage, of(staging.provenance), duration, stage_ns),
    )


def merge(parts: Iterable[Totals]) -> Totals:
    """Add up the totals of several traces."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    durations: dict[str, list[Ints]] = {}
    stage_ns: dict[tuple[str, str], int] = {}
    pairs: dict[tuple[str, str], tuple[int, int]] = {}
    for part in parts:
        for name, values in part.durations.items():
            durations.setdefault(name, []).append(values)
        for key, total in part.stage_ns.items():
            stage_ns[key] = stage_ns.get(key, 0) + total
        for key, (calls, total) in part.pairs.items():
            had = pairs.get(key, (0, 0))
            pairs[key] = (had[0] + calls, had[1] + total)
    return Totals(
        {name: np.concatenate(values) for name, values in durations.items()},
        stage_ns,
        pairs,
        _merge_coverage([p.coverage for p in parts]),
    )


def kernel_rows(found: Totals) -> tuple[KernelTotal, ...]:
    """One row a name, the longest total first. `stage` is where most of its time went."""
    best: dict[str, tuple[int, str]] = {}
    for (name, stage), total in found.stage_ns.items():
        best[name] = min(best.get(name, (1, "")), (-total, stage))
    rows = [
        KernelTotal(
            name=name,
            stage=best[name][1],
            calls=len(values),
            total_ns=_sum(values),
            min_ns=int(values.min()),
            median_ns=float(np.median(values)),
            max_ns=int(values.max()),
        )
        for name, values in found.durations.items()
    ]
    return tuple(sorted(rows, key=lambda r: (-r.total_ns, r.name)))


def range_rows(found: Totals) -> tuple[RangeTotal, ...]:
    """One row a (innermost range, kernel) pair, the longest total first."""
    rows = [RangeTotal(r, k, calls, total) for (r, k), (calls, total) in found.pairs.items()]
    return tuple(sorted(rows, key=lambda r: (-r.total_ns, r.range, r.kernel)))


def _durations(trace: Trace, name: Ints, duration: Ints) -> dict[str, Ints]:
    if not len(name):
        return {}
    narrow = int(name.min()) >= 0 and int(name.max()) < 1 << 15
    order = np.argsort(name.astype(np.int16) if narrow else name, kind="stable")
    ordered = name[order]
    values = duration[order]
    del order
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    out: dict[str, Ints] = {}
    for number, part in zip(ordered[first].tolist(), np.split(values, first[1:]), strict=True):
        text = trace.strings.get(number, "")
        out[text] = np.concatenate([out[text], part]) if text in out else part
    return out


def _pairs(
    trace: Trace, enclosing: np.ndarray[Any, Any], name: Ints, duration: Ints
) -> dict[tuple[str, str], tuple[int, int]]:
    inside = np.flatnonzero(enclosing >= 0)
    if not len(inside):
        return {}
    name = name[inside]
    base = int(name.min())
    width = int(name.max()) - base + 1
    code = trace.ranges.text[enclosing[inside]]
    shift = int(code.min())
    code = code - shift
    code *= width
    code += name
    code -= base
    out: dict[tuple[str, str], tuple[int, int]] = {}
    for pair, calls, total in _sums(code, duration[inside]):
        text = trace.strings.get(pair // width + shift, "")
        key = (text, trace.strings.get(pair % width + base, ""))
        had = out.get(key, (0, 0))
        out[key] = (had[0] + calls, had[1] + total)
    return out


def _sums(code: Ints, values: Ints) -> list[tuple[int, int, int]]:
    """(code, rows, sum) of every code that occurs."""
    if not len(code):
        return []
    low, high = int(code.min()), int(code.max())
    shift = low
    if high - low > 4 * len(code) + (1 << 16):
        codes, code = np.unique(code, return_inverse=True)
        shift = 0
    else:
        codes = np.arange(low, high + 1)
    dense = code - shift if shift else code
    calls = np.bincount(dense, minlength=len(codes))
    if _exact(values):
        sums = np.bincount(dense, weights=values, minlength=len(codes))
        used = np.flatnonzero(calls)
        columns = (codes[used], calls[used], sums[used].astype(np.int64))
        return list(zip(*(c.tolist() for c in columns), strict=True))
    slow: dict[int, int] = {}
    for place, value in zip(dense.tolist(), values.tolist(), strict=True):
        slow[place] = slow.get(place, 0) + value
    return [(int(codes[p]), int(calls[p]), total) for p, total in slow.items()]


def _exact(values: Ints) -> bool:
    return float(np.abs(values).sum(dtype=np.float64)) < EXACT


def _sum(values: Ints) -> int:
    return int(values.sum()) if _exact(values) else sum(values.tolist())


def _coverage(
    reason: np.ndarray[Any, Any],
    stage: np.ndarray[Any, Any],
    provenance: np.ndarray[Any, Any],
    duration: Ints,
    stage_ns: Mapping[tuple[str, str], int],
) -> Coverage:
    rows = {code: (calls, total) for code, calls, total in _sums(reason.astype(np.int64), duration)}
    attributed, attributed_ns = rows.get(0, (0, 0))
    told = np.bincount(provenance[reason == 0], minlength=len(PROVENANCE)).tolist()
    return Coverage(
        kernels=len(reason),
        attributed=attributed,
        unattributed=len(reason) - attributed,
        unknown_kernels=tuple(sorted({n for n, s in stage_ns if s == STAGES[UNKNOWN]})),
        total_ns=_sum(duration),
        attributed_ns=attributed_ns,
        reasons={REASONS[c]: rows[c][0] for c in sorted(rows) if c},
        reasons_ns={REASONS[c]: rows[c][1] for c in sorted(rows) if c},
        provenance={p: n for p, n in zip(PROVENANCE, told, strict=True) if n},
    )


def _merge_coverage(parts: list[Coverage]) -> Coverage:
    def add(field: str) -> dict[str, int]:
        out: dict[str, int] = {}
        for part in parts:
            for key, value in getattr(part, field).items():
                out[key] = out.get(key, 0) + value
        return dict(sorted(out.items()))

    return Coverage(
        kernels=sum(p.kernels for p in parts),
        attributed=sum(p.attributed for p in parts),
        unattributed=sum(p.unattributed for p in parts),
        unknown_kernels=tuple(sorted({n for p in parts for n in p.unknown_kernels})),
        total_ns=sum(p.total_ns for p in parts),
        attributed_ns=sum(p.attributed_ns for p in parts),
        reasons=add("reasons"),
        reasons_ns=add("reasons_ns"),
        provenance=add("provenance"),
    )
