"""A trace to results: attribution, stages, totals, cases and warnings in one pass.

The same rows in any order give the same results, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dsa_profiler.analysis import activities, cases, totals
from dsa_profiler.analysis.attribute import attribute, find_marks
from dsa_profiler.analysis.coding import distinct
from dsa_profiler.analysis.iterations import iterations
from dsa_profiler.analysis.notes import notes
from dsa_profiler.analysis.stages import stage
from dsa_profiler.columns import PROCESS_MASK, Trace
from dsa_profiler.errors import Warn
from dsa_profiler.results import CaseResult, Results, TraceSummary


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one trace contributes: everything of its results, in a form that adds up exactly."""

    summary: TraceSummary
    totals: totals.Totals
    cases: tuple[CaseResult, ...]
    warnings: tuple[Warn, ...]


def analyze(trace: Trace) -> Results:
    """The JSON contract for one trace."""
    return join([part(trace)])


def part(trace: Trace) -> Part:
    """Analyse one trace of possibly several."""
    marks = find_marks(trace)
    attribution = attribute(trace, marks)
    staging = stage(trace, attribution, marks)
    measured = iterations(trace, marks)
    if len(trace.kernels) or len(trace.graph_launches):
        ran = activities.on_gpu(trace, attribution, staging, measured)
    else:
        ran = activities.on_host(trace, marks, measured)
    summed = totals.totals(trace, attribution, staging)
    return Part(
        _summary(trace),
        summed,
        cases.results(measured, ran),
        notes(trace, attribution, measured, summed.coverage),
    )


def join(parts: Sequence[Part]) -> Results:
    """Results of all parts: totals summed, cases one after another, equal warnings told once."""
    merged = totals.merge(p.totals for p in parts)
    return Results(
        trace=_merged_summary([p.summary for p in parts]),
        coverage=merged.coverage,
        kernel_totals=totals.kernel_rows(merged),
        range_totals=totals.range_rows(merged),
        cases=tuple(case for p in parts for case in p.cases),
        warnings=tuple(dict.fromkeys(w for p in parts for w in p.warnings)),
    )


def _summary(trace: Trace) -> TraceSummary:
    processes = {*distinct(trace.kernels.process).tolist()}
    for thread in (trace.launches.thread, trace.ranges.thread):
        processes.update((distinct(thread) & PROCESS_MASK).tolist())
    return TraceSummary(
        producer=trace.info.producer,
        schema_version=trace.info.schema_version,
        gpus=tuple(gpu.name for gpu in trace.info.gpus),
        processes=len(processes),
        kernels=int(np.count_nonzero(trace.kernels.kind == 0)),
        launches=len(trace.launches),
        ranges=len(trace.ranges),
        duration_ns=trace.info.duration_ns,
    )


def _merged_summary(parts: Sequence[TraceSummary]) -> TraceSummary:
    if len(parts) == 1:
        return parts[0]
    return TraceSummary(
        producer=" + ".join(dict.fromkeys(p.producer for p in parts)),
        schema_version=" + ".join(dict.fromkeys(p.schema_version for p in parts)),
        gpus=tuple(dict.fromkeys(gpu for p in parts for gpu in p.gpus)),
        processes=sum(p.processes for p in parts),
        kernels=sum(p.kernels for p in parts),
        launches=sum(p.launches for p in parts),
        ranges=sum(p.ranges for p in parts),
        duration_ns=sum(p.duration_ns for p in parts),
    )
