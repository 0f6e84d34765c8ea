"""What a trace cannot show, said aloud: losses, hidden kernels, cut ranges, missing marks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from dsa_profiler.analysis.attribute import Attribution
from dsa_profiler.analysis.iterations import Iterations
from dsa_profiler.errors import Warn
from dsa_profiler.results import Coverage

if TYPE_CHECKING:
    from dsa_profiler.columns import Trace

WARNING, ERROR = 2, 3
VISIBLE_NODES = "record again with --cuda-graph-trace=node"


def notes(
    trace: Trace, attribution: Attribution, iterations: Iterations, coverage: Coverage
) -> tuple[Warn, ...]:
    """All warnings of one trace, in a fixed order."""
    return (
        *_diagnostics(trace),
        *_hidden(trace),
        *_lost(trace, attribution, iterations, coverage),
        *_ranges(trace, attribution),
        *_marks(iterations),
    )


def _diagnostics(trace: Trace) -> list[Warn]:
    told = Counter(
        " ".join(d.text.split())
        for d in trace.info.diagnostics
        if d.severity in (WARNING, ERROR) and d.text.strip()
    )
    return [
        Warn("diagnostic", text if count == 1 else f"{text} ({count} times)", "")
        for text, count in sorted(told.items())
    ]


def _hidden(trace: Trace) -> list[Warn]:
    count = len(trace.graph_launches)
    if count:
        spent = int((trace.graph_launches.end - trace.graph_launches.start).sum())
        return [
            Warn(
                "kernels-not-visible",
                f"{count} CUDA graph launches ({spent / 1e6:.3f} ms) hide their kernels: "
                "kernels not visible (record with --cuda-graph-trace=node)",
                VISIBLE_NODES,
            )
        ]
    if trace.info.graph_mode == "graph":
        return [
            Warn(
                "graph-mode",
                "captured with whole-graph tracing: kernels of CUDA graphs would not be visible",
                VISIBLE_NODES,
            )
        ]
    return []


def _lost(
    trace: Trace, attribution: Attribution, iterations: Iterations, coverage: Coverage
) -> list[Warn]:
    out = []
    # where iterations are timed on the host, each of their cases says that there is no kernel
    if not (coverage.kernels or len(trace.graph_launches) or iterations.case):
        out.append(Warn("no-kernels", "the trace has no GPU kernels", "record with -t cuda,nvtx"))
    unlaunched = coverage.reasons.get("no_launch", 0)
    if unlaunched:
        spent = coverage.reasons_ns["no_launch"] / 1e6
        out.append(
            Warn(
                "no-launch",
                f"{unlaunched} kernels ({spent:.3f} ms) have no launch in the trace: "
                "no range can be told for them",
                "start the collection before the work",
            )
        )
    adrift = coverage.reasons.get("graph_only", 0)
    if adrift:
        out.append(
            Warn(
                "graph-only",
                f"{adrift} kernels of CUDA graphs lie in no range, neither at launch nor at "
                "capture",
                "start the collection before the graphs are captured",
            )
        )
    if attribution.duplicate_launches:
        out.append(
            Warn(
                "duplicate-launches",
                f"{attribution.duplicate_launches} launches repeat the id of another one of their "
                "process; the earliest counts",
            )
        )
    for reason, count in sorted(trace.info.skipped_rows.items()):
        if count:
            out.append(Warn("rows-skipped", f"{count} rows could not be used: {reason}"))
    return out


def _ranges(trace: Trace, attribution: Attribution) -> list[Warn]:
    out = []
    if trace.info.domains_without_ranges:
        out.append(
            Warn(
                "marks-lost",
                "NVTX domains but no ranges: every mark was lost",
                "install nvtx==0.2.10 (0.2.12 and later record nothing under nsys up to 2023.4)",
            )
        )
    elif not len(trace.ranges):
        out.append(
            Warn(
                "no-ranges",
                "the trace has no NVTX ranges: every kernel is outside of them",
                "record with -t cuda,nvtx",
            )
        )
    cut = int(np.count_nonzero(trace.ranges.truncated))
    if cut:
        out.append(
            Warn(
                "ranges-truncated",
                f"{cut} ranges were still open when the collection ended; no statistics use them",
                "let the collection run until the program ends",
            )
        )
    if attribution.unnested_threads:
        out.append(
            Warn(
                "ranges-not-nested",
                f"the ranges of {attribution.unnested_threads} threads do not nest; the latest "
                "started one counts as the innermost",
            )
        )
    return out


def _marks(iterations: Iterations) -> list[Warn]:
    out = []
    if iterations.strays:
        out.append(
            Warn(
                "marks-astray",
                f"{iterations.strays} dsa:iter marks lie in no dsa:case that can be read",
                "mark iterations inside cases, as dsa_profiler.marks writes them",
            )
        )
    measured = set(iterations.case)
    for case in iterations.marked:
        if case not in measured:
            out.append(
                Warn(
                    "case-empty",
                    f"{case.slug}: no whole iteration in the trace",
                    "record it again",
                )
            )
    return out
