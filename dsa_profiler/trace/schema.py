"""Names and numbers of the nsys SQLite schema, versions 2.9.1 to 3.28.

Tables are created lazily: an absent one means "no rows". Columns come and go between versions, so
a reader asks the file what it has and these names say what to ask for.
"""

from __future__ import annotations

KERNEL = "CUPTI_ACTIVITY_KIND_KERNEL"
MEMCPY = "CUPTI_ACTIVITY_KIND_MEMCPY"
MEMSET = "CUPTI_ACTIVITY_KIND_MEMSET"
RUNTIME = "CUPTI_ACTIVITY_KIND_RUNTIME"
GRAPH_TRACE = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
GRAPH_NODES = ("CUDA_GRAPH_NODE_EVENTS", "CUDA_GRAPH_EVENTS")
"""Node creations. Up to 3.7.2 they are in CUDA_GRAPH_EVENTS, a name that later holds whole graphs:
the table is told by its column `graphNodeId`, never by its name."""
NVTX = "NVTX_EVENTS"
STRINGS = "StringIds"
EXPORT = ("META_DATA_EXPORT", "EXPORT_META_DATA")
CAPTURE = "META_DATA_CAPTURE"
DIAGNOSTIC = "DIAGNOSTIC_EVENT"
DETAILS = "ANALYSIS_DETAILS"
GPU = "TARGET_INFO_GPU"
CUDA_DEVICE = "TARGET_INFO_CUDA_DEVICE"

EVENTS = (KERNEL, MEMCPY, MEMSET, RUNTIME, GRAPH_TRACE, *GRAPH_NODES, NVTX)
KNOWN = frozenset((*EVENTS, *EXPORT, DETAILS))
"""A file with none of these tables is no nsys export."""

KIND_KERNEL, KIND_MEMCPY, KIND_MEMSET = 0, 1, 2

PUSH_POP = (59, 70)
"""NVTX event types that nest on their thread (70: as read from nvtxt)."""
START_END = (60, 71)
"""NVTX event types that may interleave, and end on another thread."""
DOMAIN = 75

MEMSET_NAME = "[memset]"
COPY_KINDS = {
    1: "HtoD", 2: "DtoH", 3: "HtoA", 4: "AtoH", 5: "AtoA", 6: "AtoD", 7: "DtoA", 8: "DtoD",
    9: "HtoH", 10: "PtoP",
}  # fmt: skip

GRAPH_MODE = "CUDA_GRAPH_TRACE_OPTIONS:MODE"
"""Matched by suffix: some versions put `PROCESS_0:` before it."""
OPTIONS = (
    GRAPH_MODE,
    "CUDA_TRACE_SCOPE",
    "START_TRIGGER",
    "STOP_TRIGGER",
    "START_DELAY_MS",
    "RUN_DURATION_MS",
    "TRACE_AFTER_FORK_BEFORE_EXEC",
    "CUDA_FLUSH_ON_CUDA_PROFILER_STOP",
    "INCLUDE_CHILDREN",
)
"""The only capture options ever read: the table also holds every environment variable."""
OPTION_VALUE = r"[A-Za-z0-9_.]{1,40}"
"""What the value of such an option looks like; anything else is not shown."""


def copy_name(kind: int) -> str:
    """The name of a memory copy of CUPTI kind `kind`: `[memcpy HtoD]`."""
    return f"[memcpy {COPY_KINDS.get(kind, f'kind {kind}')}]"


def copy_kind(name: str) -> int:
    """The inverse of `copy_name`; 0 (unknown) for any other text."""
    inner = name.removeprefix("[memcpy ").removesuffix("]")
    if inner.startswith("kind "):
        return int(inner[5:]) if inner[5:].lstrip("-").isdigit() else 0
    return next((k for k, v in COPY_KINDS.items() if v == inner), 0)
