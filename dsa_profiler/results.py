"""What `analyze` found: the rows of the JSON contract, in its order and with its names.

Times are nanoseconds. `as_json` of `Results` is schema 1 of `analyze --json`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dsa_profiler.errors import Warn
from dsa_profiler.model import Case

SCHEMA = 1
Timing = Literal["gpu", "host"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution over iterations, in ns."""

    median: float
    p10: float
    p90: float
    min: float
    max: float


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """The file in numbers."""

    producer: str
    schema_version: str
    gpus: tuple[str, ...]
    processes: int
    kernels: int
    launches: int
    ranges: int
    duration_ns: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the kernel time is accounted for.

    `kernels` = `attributed` + `unattributed`, in rows and (…_ns) in time. `reasons` splits the
    unattributed rows; `provenance` says how the attributed ones got their stage.
    """

    kernels: int
    attributed: int
    unattributed: int
    unknown_kernels: tuple[str, ...]
    total_ns: int = 0
    attributed_ns: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    reasons_ns: dict[str, int] = field(default_factory=dict)
    provenance: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KernelTotal:
    """One demangled kernel name over the whole trace."""

    name: str
    stage: str
    calls: int
    total_ns: int
    min_ns: int
    median_ns: float
    max_ns: int


@dataclass(frozen=True, slots=True)
class RangeTotal:
    """One (innermost enclosing range, kernel) pair over the whole trace."""

    range: str
    kernel: str
    calls: int
    total_ns: int


@dataclass(frozen=True, slots=True)
class StageStat:
    """One stage of a case: `median_ns` of the summed kernel time per iteration."""

    stage: str
    group: str
    kernels_per_iteration: float
    median_ns: float
    share: float


@dataclass(frozen=True, slots=True)
class KernelStat:
    """One kernel of a case; times are sums over its calls in one iteration."""

    name: str
    stage: str
    calls_per_iteration: float
    median_ns: float
    p10_ns: float
    p90_ns: float


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case. span: first kernel start to last kernel end; busy: union over streams;
    overlap: sum - busy; gap: span - busy. `timing` is `host` where the trace has no GPU kernels
    and the stages were timed by their host ranges.
    """

    case: Case
    iterations: int
    span_ns: Spread
    busy_ns: float
    overlap_ns: float
    gap_ns: float
    stages: tuple[StageStat, ...]
    kernels: tuple[KernelStat, ...]
    warnings: tuple[Warn, ...] = ()
    timing: Timing = "gpu"
    iteration_spans_ns: tuple[int, ...] = ()
    window_ns: tuple[int, int] = (0, 0)
    """First kernel start and last kernel end of the case on the trace's clock, for Nsight."""

    def as_json(self) -> dict[str, Any]:
        case = self.case
        return {
            "id": case.slug,
            "phase": case.phase,
            "batch_size": case.batch_size,
            "seq_len": case.seq_len,
            "num_heads": case.num_heads,
            "dtype": case.dtype,
            "prefix": case.prefix,
            "timing": self.timing,
            "iterations": self.iterations,
            "span_ns": asdict(self.span_ns),
            "busy_ns": self.busy_ns,
            "overlap_ns": self.overlap_ns,
            "gap_ns": self.gap_ns,
            "stages": [asdict(s) for s in self.stages],
            "kernels": [asdict(k) for k in self.kernels],
            "warnings": [w.as_json() for w in self.warnings],
            "iteration_spans_ns": list(self.iteration_spans_ns),
            "window_ns": list(self.window_ns),
        }


@dataclass(frozen=True, slots=True)
class Results:
    """Everything `analyze` says of one trace, or of the traces of one session."""

    trace: TraceSummary
    coverage: Coverage
    kernel_totals: tuple[KernelTotal, ...]
    range_totals: tuple[RangeTotal, ...]
    cases: tuple[CaseResult, ...]
    warnings: tuple[Warn, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "trace": asdict(self.trace),
            "coverage": asdict(self.coverage),
            "kernel_totals": [asdict(k) for k in self.kernel_totals],
            "range_totals": [asdict(r) for r in self.range_totals],
            "cases": [c.as_json() for c in self.cases],
            "warnings": [w.as_json() for w in self.warnings],
        }
