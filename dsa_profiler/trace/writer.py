"""A `Trace` as an nsys SQLite export: `read(write(trace))` is the same trace.

Tables and columns are those of schema 3.7.2 plus the graph tables of later versions, so whatever
reads an nsys export reads this too. Columns that a `Trace` does not have (grid sizes, registers)
are written as 0, and empty tables are left out, as nsys does. The file takes its place at once or
not at all.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler import __version__
from dsa_profiler.columns import NULL, PROCESS_MASK, Kernels, Ranges, Trace, TraceInfo
from dsa_profiler.session import replacing
from dsa_profiler.trace import schema
from dsa_profiler.trace.strings import NO_TEXT

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints

LAUNCH = "launch"
"""The API name of every launch: a `Trace` does not keep it."""


def write(trace: Trace, path: Path) -> None:
    """Write the trace. Rows keep their order; kernels, copies and memsets go to their tables."""
    with replacing(path) as part, closing(sqlite3.connect(part)) as db:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        _write_info(db, trace.info)
        launch = max(trace.strings, default=-1) + 1
        strings = {**trace.strings, launch: LAUNCH}
        _insert(db, schema.STRINGS, {"id": list(strings), "value": list(strings.values())})
        _write_activities(db, trace.kernels, trace.strings)
        _write_launches(db, trace, launch)
        _write_ranges(db, trace.ranges, trace)
        db.commit()


def _write_info(db: sqlite3.Connection, info: TraceInfo) -> None:
    product, _, version = info.producer.rpartition(" ")
    if not version[:1].isdigit():
        product, version = info.producer, ""
    parts = zip(("MAJOR", "MINOR", "MICRO"), schema.WRITTEN_VERSION.split("."), strict=True)
    export = {
        "EXPORT_PRODUCT_NAME": product,
        "EXPORT_PRODUCT_VERSION": version,
        "EXPORT_SCHEMA_VERSION": schema.WRITTEN_VERSION,
        **{f"EXPORT_SCHEMA_VERSION_{k}": v for k, v in parts},
        schema.OUR_VERSION: __version__,
        schema.SOURCE_SCHEMA: info.schema_version,
        schema.SKIPPED_ROWS: json.dumps(dict(info.skipped_rows), sort_keys=True),
    }
    _insert_pairs(db, schema.EXPORT[0], export)
    options = dict(info.options)
    if info.graph_mode and not any(k.endswith(schema.GRAPH_MODE) for k in options):
        options[schema.GRAPH_MODE] = info.graph_mode.capitalize()
    _insert_pairs(db, schema.CAPTURE, options)
    _insert(db, schema.DETAILS, {"duration": [info.duration_ns]})
    _insert(
        db,
        schema.DIAGNOSTIC,
        {
            "severity": [d.severity for d in info.diagnostics],
            "text": [d.text for d in info.diagnostics],
        },
    )
    _insert(
        db,
        schema.GPU,
        {
            "id": range(len(info.gpus)),
            "name": [g.name for g in info.gpus],
            "computeMajor": [None if g.sm is None else g.sm // 10 for g in info.gpus],
            "computeMinor": [None if g.sm is None else g.sm % 10 for g in info.gpus],
            "smCount": [g.sm_count for g in info.gpus],
        },
    )


def _write_activities(db: sqlite3.Connection, k: Kernels, strings: Mapping[int, str]) -> None:
    tables = {
        schema.KIND_KERNEL: schema.KERNEL,
        schema.KIND_MEMCPY: schema.MEMCPY,
        schema.KIND_MEMSET: schema.MEMSET,
    }
    for kind, table in tables.items():
        rows = np.flatnonzero(k.kind == kind)
        name = k.name[rows].tolist()
        columns: dict[str, Iterable[Any]] = {
            "start": k.start[rows].tolist(),
            "end": k.end[rows].tolist(),
            "deviceId": k.device[rows].tolist(),
            "streamId": k.stream[rows].tolist(),
            "correlationId": k.correlation[rows].tolist(),
            "globalPid": k.process[rows].tolist(),
            "graphNodeId": k.graph_node[rows].tolist(),
        }
        if kind == schema.KIND_KERNEL:
            columns |= {"demangledName": name, "shortName": name}
        elif kind == schema.KIND_MEMCPY:
            copies = {i: schema.copy_kind(strings[i]) for i in set(name)}
            columns["copyKind"] = [copies[i] for i in name]
        _insert(db, table, columns)


def _write_launches(db: sqlite3.Connection, trace: Trace, name: int) -> None:
    launches, nodes, graphs = trace.launches, trace.graph_nodes, trace.graph_launches
    _insert(
        db,
        schema.RUNTIME,
        {
            "start": launches.start.tolist(),
            "end": launches.end.tolist(),
            "globalTid": launches.thread.tolist(),
            "correlationId": launches.correlation.tolist(),
            "nameId": [name] * len(launches),
        },
    )
    _insert(
        db,
        schema.GRAPH_NODES[0],
        {
            "start": nodes.start.tolist(),
            "end": nodes.end.tolist(),
            "globalTid": nodes.thread.tolist(),
            "nameId": [name] * len(nodes),
            "graphNodeId": nodes.node.tolist(),
            "originalGraphNodeId": nodes.original.tolist(),
        },
    )
    _insert(
        db,
        schema.GRAPH_TRACE,
        {
            "start": graphs.start.tolist(),
            "end": graphs.end.tolist(),
            "deviceId": graphs.device.tolist(),
            "streamId": graphs.stream.tolist(),
            "globalPid": graphs.process.tolist(),
            "correlationId": graphs.correlation.tolist(),
        },
    )


def _write_ranges(db: sqlite3.Connection, r: Ranges, trace: Trace) -> None:
    """Ranges by registered text; `nests` is the event type: 59 (push/pop) or 60 (start/end)."""
    duration = trace.info.duration_ns
    empty = {i for i, text in trace.strings.items() if text == NO_TEXT}
    ids, rows = _domain_ids(r.thread & PROCESS_MASK, r.domain, trace.strings)
    if trace.info.domains_without_ranges and not rows:
        rows = [(0, 1, "")]
    _insert(
        db,
        schema.NVTX,
        {
            "start": [*([0] * len(rows)), *r.start.tolist()],
            "end": [
                *([None] * len(rows)),
                *np.where(r.truncated & (r.end != duration), NULL, r.end).tolist(),
            ],
            "eventType": [*([schema.DOMAIN] * len(rows)), *np.where(r.nests, 59, 60).tolist()],
            "globalTid": [*(p for p, _, _ in rows), *r.thread.tolist()],
            "domainId": [*(d for _, d, _ in rows), *ids],
            "textId": [
                *([None] * len(rows)),
                *(None if i in empty else i for i in r.text.tolist()),
            ],
            "text": [*(t for _, _, t in rows), *([None] * len(r))],
        },
    )


def _domain_ids(
    process: Ints, domain: Ints, strings: Mapping[int, str]
) -> tuple[list[int], list[tuple[int, int, str]]]:
    """Each range's domain id, counted per process from 1, and the rows that name them."""
    ids: dict[tuple[int, int], int] = {}
    count: dict[int, int] = {}
    out = []
    for p, d in zip(process.tolist(), domain.tolist(), strict=True):
        if d == NULL:
            out.append(0)
            continue
        if (p, d) not in ids:
            ids[p, d] = count[p] = count.get(p, 0) + 1
        out.append(ids[p, d])
    return out, [(p, i, strings[d]) for (p, d), i in ids.items()]


def _insert_pairs(db: sqlite3.Connection, table: str, pairs: Mapping[str, str]) -> None:
    _insert(db, table, {"name": list(pairs), "value": list(pairs.values())})


def _insert(db: sqlite3.Connection, table: str, columns: Mapping[str, Iterable[Any]]) -> None:
    """Create the table and fill it; -1 becomes NULL where the column allows it, absent ones 0."""
    values = []
    for name, kind in schema.WRITTEN[table].items():
        if name not in columns:
            values.append("0" if "NOT NULL" in kind else "NULL")
        else:
            values.append("?" if "NOT NULL" in kind else f"nullif(?, {NULL})")
    ordered = [columns[n] for n in schema.WRITTEN[table] if n in columns]
    rows = list(zip(*ordered, strict=True))
    if not rows:
        return
    db.execute(schema.create_table(table))
    db.executemany(f"INSERT INTO {table} VALUES ({', '.join(values)})", rows)
