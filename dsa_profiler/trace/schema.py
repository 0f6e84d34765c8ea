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
TIME_SHIFT = "EXPORT_CONFIG_TIME_SHIFT"
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
RANK = "DISTRIBUTED_RANK"
"""Ours: the rank that a torch.profiler trace says it is."""
OPTIONS = (
    RANK,
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


WRITTEN_VERSION = "3.7.2"
OUR_VERSION = "DSA_PROFILER_VERSION"
SOURCE_SCHEMA = "DSA_SOURCE_SCHEMA_VERSION"
SKIPPED_ROWS = "DSA_SKIPPED_ROWS"
"""What a file that we wrote says of the file it came from, in the table of export metadata."""
_ID = "INTEGER NOT NULL"
_STRING = "INTEGER NOT NULL -- REFERENCES StringIds(id)"
_PLACE = {"start": _ID, "end": _ID, "deviceId": _ID, "contextId": _ID}
_OWNER = {"streamId": _ID, "correlationId": "INTEGER", "globalPid": "INTEGER"}
_GRID = dict.fromkeys(
    (
        "registersPerThread", "gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ",
        "staticSharedMemory", "dynamicSharedMemory", "localMemoryPerThread", "localMemoryTotal",
        "gridId",
    ),
    _ID,
)  # fmt: skip
_NAME_VALUE = {"name": "TEXT NOT NULL", "value": "TEXT"}

WRITTEN: dict[str, dict[str, str]] = {
    STRINGS: {"id": "INTEGER NOT NULL PRIMARY KEY", "value": "TEXT NOT NULL"},
    DETAILS: dict.fromkeys(("globalVid", "duration", "startTime", "stopTime"), _ID),
    EXPORT[0]: _NAME_VALUE,
    CAPTURE: _NAME_VALUE,
    DIAGNOSTIC: {
        **dict.fromkeys(("timestamp", "timestampType", "source", "severity"), _ID),
        "text": "TEXT NOT NULL",
        "globalPid": "INTEGER",
    },
    GPU: {
        "vmId": _ID,
        "id": _ID,
        "name": "TEXT",
        **dict.fromkeys(("computeMajor", "computeMinor", "smCount"), "INTEGER"),
    },
    KERNEL: {
        **_PLACE,
        "greenContextId": "INTEGER",
        **_OWNER,
        "demangledName": _STRING,
        "shortName": _STRING,
        "mangledName": "INTEGER -- REFERENCES StringIds(id)",
        "launchType": "INTEGER",
        "cacheConfig": "INTEGER",
        **_GRID,
        "sharedMemoryExecuted": "INTEGER",
        "graphNodeId": "INTEGER",
        "sharedMemoryLimitConfig": "INTEGER",
    },
    MEMCPY: {
        **_PLACE,
        "greenContextId": "INTEGER",
        **_OWNER,
        "bytes": _ID,
        "copyKind": _ID,
        "graphNodeId": "INTEGER",
    },
    MEMSET: {
        **_PLACE,
        "greenContextId": "INTEGER",
        **_OWNER,
        "value": _ID,
        "bytes": _ID,
        "graphNodeId": "INTEGER",
    },
    RUNTIME: {
        "start": _ID,
        "end": _ID,
        "eventClass": _ID,
        "globalTid": "INTEGER",
        "correlationId": "INTEGER",
        "nameId": _STRING,
        "returnValue": _ID,
        "callchainId": "INTEGER",
    },
    GRAPH_TRACE: {
        **_PLACE,
        **_OWNER,
        "graphId": _ID,
        "graphExecId": _ID,
    },
    GRAPH_NODES[0]: {
        "start": _ID,
        "end": _ID,
        "eventClass": _ID,
        "globalTid": "INTEGER",
        "nameId": _STRING,
        "graphNodeId": _ID,
        "originalGraphNodeId": "INTEGER",
    },
    NVTX: {
        "start": _ID,
        "end": "INTEGER",
        "eventType": _ID,
        "rangeId": "INTEGER",
        "category": "INTEGER",
        "color": "INTEGER",
        "text": "TEXT",
        "globalTid": "INTEGER",
        "endGlobalTid": "INTEGER",
        "textId": "INTEGER -- REFERENCES StringIds(id)",
        "domainId": "INTEGER",
    },
}
"""The tables and columns that `writer` writes, a subset of nsys' own with their types. The column
comments matter: the references to StringIds are what `scrub` goes by."""


def create_table(table: str) -> str:
    """The DDL of a written table, a column a line as nsys writes it."""
    lines = []
    columns = list(WRITTEN[table].items())
    for i, (name, kind) in enumerate(columns):
        kind, _, comment = kind.partition(" -- ")
        comma = "," if i + 1 < len(columns) else ""
        lines.append(f'    "{name}" {kind}{comma}{f" -- {comment}" if comment else ""}')
    return f"CREATE TABLE {table} (\n" + "\n".join(lines) + "\n)"
