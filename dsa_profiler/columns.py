"""The columns of a trace: what `trace` reads from any file and `analysis` computes on.

All times are int64 nanoseconds on the trace's own clock. All ids are int64; -1 stands for NULL, so
that no column ever turns into floats and loses the low bits of a 64-bit id. Rows keep the file's
order; nothing may depend on it.

Process and thread ids are nsys' own: globalTid = hw(8) | vm(8) | pid(24) | tid(24), and the process
of a thread is `thread & ~0xFFFFFF`. They may be negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
    Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

PROCESS_MASK = ~0xFFFFFF
NULL = -1

PREDICTED = "dsa_profiler_predicted"
"""How `kernel_source` begins on a row that a cost model filled in; no measured row begins so."""

PERF_HEADER = (
    "framework", "version", "device", "op_name", "kernel_source", "dsa_dtype", "num_heads",
    "index_n_heads", "index_topk", "batch_size", "isl", "tp_size", "step", "latency",
)  # fmt: skip
"""The seed's CSV header. Further columns come only after these. `latency` is in ms."""

MODULE_HEADER = (
    "framework", "version", "device", "op_name", "kernel_source", "model", "architecture",
    "mla_dtype", "kv_cache_dtype", "gemm_type", "num_heads", "batch_size", "isl", "tp_size", "step",
    "latency",
)  # fmt: skip
"""A row of aiconfigurator's DSA module tables: one latency in ms for the whole attention module.
In context `isl` counts new tokens and `step` cached ones; in generation isl = 1, step = kv length.
An optional last column `power` is in W."""

MODULE_KEY = (
    "architecture", "mla_dtype", "kv_cache_dtype", "gemm_type", "num_heads", "batch_size", "isl",
    "step",
)  # fmt: skip
"""What a reader of those tables looks a row up by."""


@dataclass(frozen=True, slots=True, eq=False)
class Kernels:
    """GPU activities: one row a kernel, memcpy or memset.

    `correlation` is unique only inside `process`. `name` indexes `Trace.strings` (demangled name;
    memory operations get names like `[memcpy HtoD]`). `graph_node` is set for a kernel that a CUDA
    graph replayed. `kind` is 0 kernel, 1 memcpy, 2 memset.
    """

    start: Ints
    end: Ints
    device: Ints
    stream: Ints
    process: Ints
    correlation: Ints
    graph_node: Ints
    name: Ints
    kind: Ints

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True, slots=True, eq=False)
class Launches:
    """Runtime and driver API calls: the host side of a launch, joined by (process, correlation)."""

    start: Ints
    end: Ints
    thread: Ints
    correlation: Ints

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """NVTX ranges with a length. `text` and `domain` index `Trace.strings` (NULL: default domain).

    `nests` is False for start/end ranges, which may interleave and never enclose anything.
    `truncated` is True where the end of the collection cut the range off.
    """

    start: Ints
    end: Ints
    thread: Ints
    text: Ints
    domain: Ints
    nests: Bools
    truncated: Bools

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True, slots=True, eq=False)
class GraphNodes:
    """Creation and clone of CUDA graph nodes; `original` chains a clone to what it came from.

    Keyed by (process of `thread`, `node`). `start` and `end` are the creation call's.
    """

    start: Ints
    end: Ints
    thread: Ints
    node: Ints
    original: Ints

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True, slots=True, eq=False)
class GraphLaunches:
    """Whole-graph records of graph-mode captures: the kernels inside are not in the file."""

    start: Ints
    end: Ints
    device: Ints
    stream: Ints
    process: Ints
    correlation: Ints

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One DIAGNOSTIC_EVENT. severity: 1 info, 2 warning, 3 error, 4 verbose."""

    severity: int
    text: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the trace describes it; `sm` is compute capability times ten (90 for Hopper)."""

    name: str
    sm: int | None = None
    sm_count: int | None = None


@dataclass(frozen=True, slots=True)
class TraceInfo:
    """Where a trace comes from. `graph_mode` is `graph`, `node` or None when the file is silent."""

    producer: str
    schema_version: str
    duration_ns: int
    gpus: tuple[Gpu, ...] = ()
    graph_mode: str | None = None
    diagnostics: tuple[Diagnostic, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    domains_without_ranges: bool = False
    skipped_rows: Mapping[str, int] = field(default_factory=dict)
    """Rows that could not be used, by reason (end before start, not an integer, ...)."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A whole trace as columns, whoever recorded it."""

    info: TraceInfo
    kernels: Kernels
    launches: Launches
    ranges: Ranges
    graph_nodes: GraphNodes
    graph_launches: GraphLaunches
    strings: Mapping[int, str]
    """Every string that a `name`, `text` or `domain` column refers to."""
