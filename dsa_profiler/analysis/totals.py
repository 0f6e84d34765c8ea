"""Sums over a whole trace, marks or none: by kernel, by range, and what is accounted for.

Kernels only: a copy is no kernel, and these sums are held against nsys' own. All sums are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dsa_profiler.analysis.attribute import REASONS, Attribution
from dsa_profiler.analysis.coding import Numbering, blocks, distinct, order_by
from dsa_profiler.analysis.stages import PROVENANCE, UNKNOWN, Staging
from dsa_profiler.analysis.tally import Tally, total
from dsa_profiler.columns import NULL, Kernels, Trace
from dsa_profiler.marks import STAGES
from dsa_profiler.results import Coverage, KernelTotal, RangeTotal

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints

PAIRS = 1 << 20
"""Up to as many possible (range, kernel) pairs are counted in a table of all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """What adds up over traces: durations by name, time by (name, stage) and (range, kernel)."""

    durations: Mapping[str, Ints]
    stage_ns: Mapping[tuple[str, str], int]
    pairs: Mapping[tuple[str, str], tuple[int, int]]
    coverage: Coverage


def totals(trace: Trace, attribution: Attribution, staging: Staging) -> Totals:
    """Sum up one trace."""
    kernels = trace.kernels
    names = Numbering.over(distinct(kernels.name))
    by_stage = Tally.of(len(names.ids) * len(STAGES))
    by_reason = Tally.of(len(REASONS))
    told = np.zeros(len(PROVENANCE), np.int64)
    for rows, ns in _kernel_blocks(kernels):
        by_stage.add(names.of(kernels.name[rows]) * len(STAGES) + staging.stage[rows], ns)
        reason = attribution.reason[rows]
        by_reason.add(reason.astype(np.int64), ns)
        told += np.bincount(staging.provenance[rows][reason == 0], minlength=len(PROVENANCE))
    texts = [trace.strings.get(n, "") for n in names.ids.tolist()]
    stage_ns: dict[tuple[str, str], int] = {}
    for code, _, spent in by_stage.items():
        key = (texts[code // len(STAGES)], STAGES[code % len(STAGES)])
        stage_ns[key] = stage_ns.get(key, 0) + spent
    calls = by_stage.rows.reshape(-1, len(STAGES)).sum(axis=1)
    return Totals(
        _durations(kernels, names, texts, calls),
        stage_ns,
        _pairs(trace, attribution, names, texts),
        _coverage(by_reason, told, stage_ns),
    )


def _kernel_blocks(kernels: Kernels) -> Iterator[tuple[slice | Ints, Ints]]:
    """The rows that are kernels and their durations, block after block."""
    for part in blocks(len(kernels)):
        kind = kernels.kind[part]
        rows = np.flatnonzero(kind == 0) + part.start if kind.any() else part
        yield rows, kernels.end[rows] - kernels.start[rows]


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
        for key, spent in part.stage_ns.items():
            stage_ns[key] = stage_ns.get(key, 0) + spent
        for key, (calls, spent) in part.pairs.items():
            had = pairs.get(key, (0, 0))
            pairs[key] = (had[0] + calls, had[1] + spent)
    return Totals(
        {name: np.concatenate(values) for name, values in durations.items()},
        stage_ns,
        pairs,
        _merge_coverage([p.coverage for p in parts]),
    )


def kernel_rows(found: Totals) -> tuple[KernelTotal, ...]:
    """One row a name, the longest total first. `stage` is where most of its time went."""
    best: dict[str, tuple[int, str]] = {}
    for (name, stage), spent in found.stage_ns.items():
        best[name] = min(best.get(name, (1, "")), (-spent, stage))
    rows = [
        KernelTotal(
            name=name,
            stage=best[name][1],
            calls=len(values),
            total_ns=total(values),
            min_ns=int(values.min()),
            median_ns=float(np.median(values)),
            max_ns=int(values.max()),
        )
        for name, values in found.durations.items()
    ]
    return tuple(sorted(rows, key=lambda r: (-r.total_ns, r.name)))


def range_rows(found: Totals) -> tuple[RangeTotal, ...]:
    """One row a (innermost range, kernel) pair, the longest total first."""
    rows = [RangeTotal(r, k, calls, spent) for (r, k), (calls, spent) in found.pairs.items()]
    return tuple(sorted(rows, key=lambda r: (-r.total_ns, r.range, r.kernel)))


def _durations(
    kernels: Kernels, names: Numbering, texts: list[str], calls: Ints
) -> dict[str, Ints]:
    """Durations by name: each block is sorted by name, and each name has its place in one array."""
    if not texts:
        return {}
    values = np.empty(int(calls.sum()), np.int64)
    ends = np.cumsum(calls)
    free = ends - calls
    for rows, ns in _kernel_blocks(kernels):
        code = names.of(kernels.name[rows])
        order = order_by(code, len(calls))
        code = code[order]
        count = np.bincount(code, minlength=len(calls))
        nth = np.arange(len(code)) - (np.cumsum(count) - count)[code]
        values[free[code] + nth] = ns[order]
        free += count
    out: dict[str, Ints] = {}
    for text, part in zip(texts, np.split(values, ends[:-1]), strict=True):
        if len(part):
            out[text] = np.concatenate([out[text], part]) if text in out else part
    return out


def _pairs(
    trace: Trace, attribution: Attribution, names: Numbering, texts: list[str]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Calls and time by (text of the innermost range, kernel name)."""
    kernels, enclosing = trace.kernels, attribution.enclosing
    used = np.zeros(len(trace.ranges) + 1, np.bool_)
    used[enclosing] = True
    used[-1] = False
    ranges = Numbering.over(distinct(trace.ranges.text[np.flatnonzero(used[:-1])]))
    if not len(ranges.ids):
        return {}
    number = np.full(len(used), NULL, np.int64)
    number[used] = ranges.of(trace.ranges.text[used[:-1]])

    def codes() -> Iterator[tuple[Ints, Ints]]:
        for rows, ns in _kernel_blocks(kernels):
            text = number[enclosing[rows]]
            inside = text >= 0
            code = text * len(names.ids) + names.of(kernels.name[rows])
            yield (code, ns) if inside.all() else (code[inside], ns[inside])

    width = len(ranges.ids) * len(names.ids)
    known = Numbering.over(
        np.arange(width) if width <= PAIRS else _merged(distinct(code) for code, _ in codes())
    )
    tally = Tally.of(len(known.ids))
    for code, ns in codes():
        tally.add(code if width <= PAIRS else known.of(code), ns)
    out: dict[tuple[str, str], tuple[int, int]] = {}
    for place, calls, spent in tally.items():
        range_number, name = divmod(int(known.ids[place]), len(names.ids))
        key = (trace.strings.get(int(ranges.ids[range_number]), ""), texts[name])
        had = out.get(key, (0, 0))
        out[key] = (had[0] + calls, had[1] + spent)
    return out


def _merged(parts: Iterable[Ints]) -> Ints:
    return distinct(np.concatenate(list(parts)))


def _coverage(by_reason: Tally, told: Ints, stage_ns: Mapping[tuple[str, str], int]) -> Coverage:
    rows = {code: (calls, spent) for code, calls, spent in by_reason.items()}
    attributed, attributed_ns = rows.get(0, (0, 0))
    kernels = sum(calls for calls, _ in rows.values())
    return Coverage(
        kernels=kernels,
        attributed=attributed,
        unattributed=kernels - attributed,
        unknown_kernels=tuple(sorted({n for n, s in stage_ns if s == STAGES[UNKNOWN]})),
        total_ns=sum(spent for _, spent in rows.values()),
        attributed_ns=attributed_ns,
        reasons={REASONS[c]: rows[c][0] for c in sorted(rows) if c},
        reasons_ns={REASONS[c]: rows[c][1] for c in sorted(rows) if c},
        provenance={p: n for p, n in zip(PROVENANCE, told.tolist(), strict=True) if n},
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
