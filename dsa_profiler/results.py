"""What `analyze` found: the rows of the JSON contract, in its order and with its names.

Times are nanoseconds. `as_json` of `Results` is schema 1 of `analyze --json`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dsa_profiler.errors import Warn
from dsa_profiler.model import Case
from dsa_profiler.session import GpuState

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
    """One stage of a case: `median_ns` of the summed kernel time per iteration, which
    `iteration_ns` has one by one.
    """

    stage: str
    group: str
    kernels_per_iteration: float
    median_ns: float
    share: float
    iteration_ns: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The contract's keys; the times one by one are for comparisons only."""
        return {name: value for name, value in asdict(self).items() if name != "iteration_ns"}


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
class StageFloor:
    """The speed of light of one stage: ns with the padding that the kernels execute (`floor_ns`)
    and without it (`useful_ns`); `bound` is `compute` or `memory`.
    """

    stage: str
    flops_useful: float
    flops_executed: float
    bytes: float
    useful_ns: float
    floor_ns: float
    bound: str
    launches: int


@dataclass(frozen=True, slots=True)
class Floor:
    """The time no kernel can beat, by stage. `launch_ns` is a term of its own, in no sum here."""

    case: Case
    system: str
    stages: tuple[StageFloor, ...]
    launches: int
    launch_ns: float

    @property
    def floor_ns(self) -> float:
        """Sum of the stages as executed: padded heads and slots included."""
        return sum(s.floor_ns for s in self.stages)

    @property
    def useful_ns(self) -> float:
        """Sum of the stages, counting only what the model asks for."""
        return sum(s.useful_ns for s in self.stages)

    def stage_ns(self, stage: str) -> float | None:
        """floor_ns of a stage; None for one that is free at best (norms, RoPE, cache writes)."""
        return next((s.floor_ns for s in self.stages if s.stage == stage), None)

    def as_json(self) -> dict[str, Any]:
        return {
            "system": self.system,
            "floor_ns": self.floor_ns,
            "useful_ns": self.useful_ns,
            "launches": self.launches,
            "launch_ns": self.launch_ns,
            "stages": [asdict(s) for s in self.stages],
        }


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
    floor: Floor | None = None
    gpu: GpuState | None = None

    def roofline_share(self, stage: str | None = None) -> float | None:
        """The floor over what was measured, of the case or of one stage; None without a floor."""
        if self.floor is None:
            return None
        if stage is None:
            return _share(self.floor.floor_ns, self.span_ns.median)
        measured = next((s.median_ns for s in self.stages if s.stage == stage), 0.0)
        return _share(self.floor.stage_ns(stage), measured)

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
            "stages": [s.as_json() for s in self.stages],
            "kernels": [asdict(k) for k in self.kernels],
            "warnings": [w.as_json() for w in self.warnings],
            "iteration_spans_ns": list(self.iteration_spans_ns),
            "window_ns": list(self.window_ns),
            "floor": self.floor and {**self.floor.as_json(), "share": self.roofline_share()},
            "gpu": self.gpu and self.gpu.as_json(),
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


def _share(floor: float | None, measured: float) -> float | None:
    return floor / measured if floor is not None and measured > 0 else None
