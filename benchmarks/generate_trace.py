"""A large synthetic trace, true to nsys' schema 3.7.2: a tensor-parallel server of 8 processes.

    python benchmarks/generate_trace.py out.sqlite --kernels 1000000

Every process runs steps > layers > stages > operators (ranges nested four deep, texts in the row
as torch gives them). Each operator launches kernels and records an event; every 50th launches a
graph instead, whose kernels share one correlation id. Correlation ids count from 1 in every
process. Rows lie as in real exports: kernels and ranges by start over all processes, API calls
thread by thread. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

PROCESSES, LAYERS, GRAPH_EVERY = 8, 61, 50
STAGES = ("qkv_a_proj", "q_b_proj", "indexer_q_proj", "indexer_cache", "mqa_logits", "topk",
          "sparse_attn", "o_proj")  # fmt: skip
STEPS = 120
OPERATORS = PROCESSES * STEPS * LAYERS * len(STAGES)
RANGES = OPERATORS * 2 + PROCESSES * STEPS * (LAYERS + 1)
GAP = 2_000
ROWS_AT_ONCE = 400_000

TABLES = {
    "StringIds": "id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL",
    "ANALYSIS_DETAILS": "globalVid INTEGER NOT NULL, duration INTEGER NOT NULL, "
    "startTime INTEGER NOT NULL, stopTime INTEGER NOT NULL",
    "META_DATA_EXPORT": "name TEXT NOT NULL, value TEXT",
    "TARGET_INFO_GPU": "vmId INTEGER NOT NULL, id INTEGER NOT NULL, name TEXT, "
    "computeMajor INTEGER, computeMinor INTEGER, smCount INTEGER",
    "ENUM_NSYS_EVENT_TYPE": "id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT",
    "CUPTI_ACTIVITY_KIND_KERNEL": "start INTEGER NOT NULL, end INTEGER NOT NULL, "
    "deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, greenContextId INTEGER, "
    "streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, "
    "demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, mangledName INTEGER, "
    "launchType INTEGER, cacheConfig INTEGER, registersPerThread INTEGER NOT NULL, "
    "gridX INTEGER NOT NULL, gridY INTEGER NOT NULL, gridZ INTEGER NOT NULL, "
    "blockX INTEGER NOT NULL, blockY INTEGER NOT NULL, blockZ INTEGER NOT NULL, "
    "staticSharedMemory INTEGER NOT NULL, dynamicSharedMemory INTEGER NOT NULL, "
    "localMemoryPerThread INTEGER NOT NULL, localMemoryTotal INTEGER NOT NULL, "
    "gridId INTEGER NOT NULL, sharedMemoryExecuted INTEGER, graphNodeId INTEGER, "
    "sharedMemoryLimitConfig INTEGER",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start INTEGER NOT NULL, end INTEGER NOT NULL, "
    "eventClass INTEGER NOT NULL, globalTid INTEGER, correlationId INTEGER, "
    "nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL, callchainId INTEGER",
    "NVTX_EVENTS": "start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, "
    "rangeId INTEGER, category INTEGER, color INTEGER, text TEXT, globalTid INTEGER, "
    "endGlobalTid INTEGER, textId INTEGER, domainId INTEGER, uint64Value INTEGER, "
    "int64Value INTEGER, doubleValue REAL, uint32Value INTEGER, int32Value INTEGER, "
    "floatValue REAL, jsonTextId INTEGER, jsonText TEXT",
}


def generate(
    path: Path, kernels: int, seed: int = 0, parquet: Path | None = None
) -> dict[str, int]:
    """Write the trace with about `kernels` kernels, and as a parquetdir too; rows per table."""
    rng = np.random.default_rng(seed)
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        for table, columns in TABLES.items():
            db.execute(f"CREATE TABLE {table} ({columns})")
        parts = [_process(rank, kernels, rng) for rank in range(PROCESSES)]
        rows = {
            "CUPTI_ACTIVITY_KIND_KERNEL": _by_start([p["kernels"] for p in parts]),
            "CUPTI_ACTIVITY_KIND_RUNTIME": _join([p["calls"] for p in parts]),
            "NVTX_EVENTS": _by_start([p["ranges"] for p in parts]),
        }
        last = max(int(t["end"].max()) for t in rows.values())
        _facts(db, last)
        counts = {}
        for table, columns in rows.items():
            texts = _range_texts() if table == "NVTX_EVENTS" else []
            counts[table] = _insert(db, table, columns, texts)
            if parquet is not None:
                _write_parquet(parquet, table, columns, texts)
        db.commit()
        for table in set(TABLES) - set(rows) if parquet is not None else ():
            _copy_parquet(db, parquet, table)
    return counts


Columns = Mapping[str, "np.ndarray[Any, Any]"]


def _process(rank: int, kernels: int, rng: np.random.Generator) -> dict[str, Columns]:
    n = OPERATORS // PROCESSES
    operator = np.arange(n)
    graph = operator % GRAPH_EVERY == GRAPH_EVERY - 1
    plain = kernels * (GRAPH_EVERY - 1) // GRAPH_EVERY // (n * PROCESSES) or 1
    spread = kernels // PROCESSES - plain * int((~graph).sum())
    inside = max(2, round(spread / int(graph.sum())))
    launches = np.where(graph, 1, plain)
    lasts = 6_000 + launches * 3_000 + rng.integers(0, 2_000, n)
    begin = 5_000_000 + np.cumsum(lasts + GAP) - lasts
    finish = begin + lasts

    op = np.repeat(operator, launches)
    nth = np.arange(len(op)) - np.repeat(np.cumsum(launches) - launches, launches)
    called = begin[op] + 1_000 + nth * 3_000
    calls_start = np.concatenate([called, finish - 2_500])
    order = np.argsort(calls_start, kind="stable")
    correlation = np.empty(len(order), np.int64)
    correlation[order] = np.arange(1, len(order) + 1)
    process = 1 << 48 | (4_000 + rank) << 24
    thread = np.full(len(order), process | 4_000 + rank)
    record = np.arange(len(order)) >= len(op)
    name = np.where(record, 2, np.where(np.concatenate([graph[op], graph]), 1, 0)) + 100
    calls = {
        "start": calls_start, "end": calls_start + 1_800, "eventClass": 0 * thread,
        "globalTid": thread, "correlationId": correlation, "nameId": name,
        "returnValue": 0 * thread,
    }  # fmt: skip
    copies = np.where(graph[op], inside, 1)
    owner = np.repeat(np.arange(len(op)), copies)
    slot = np.arange(len(owner)) - np.repeat(np.cumsum(copies) - copies, copies)
    start = called[owner] + 4_000 + slot * 2_500 + rng.integers(0, 400, len(owner))
    names = 1 + (op[owner] % len(STAGES)) * 4 + (nth[owner] + slot) % 4
    table = {
        "start": start,
        "end": start + rng.integers(1_000, 24_000, len(owner)),
        "deviceId": np.full(len(owner), rank),
        "contextId": np.ones(len(owner), np.int64),
        "greenContextId": np.zeros(len(owner), np.int64),
        "streamId": np.where(graph[op][owner], 13, 7),
        "correlationId": correlation[: len(op)][owner],
        "globalPid": np.full(len(owner), process),
        "demangledName": names,
        "shortName": names + 40,
        "mangledName": names + 200,
        "launchType": np.ones(len(owner), np.int64),
        "cacheConfig": np.zeros(len(owner), np.int64),
        "registersPerThread": 32 + names,
        "gridX": rng.integers(1, 4_096, len(owner)),
        **{c: np.ones(len(owner), np.int64) for c in ("gridY", "gridZ", "blockY", "blockZ")},
        "blockX": np.full(len(owner), 128),
        **{
            c: np.zeros(len(owner), np.int64)
            for c in ("staticSharedMemory", "localMemoryPerThread", "sharedMemoryLimitConfig")
        },
        "dynamicSharedMemory": np.full(len(owner), 49_152),
        "localMemoryTotal": np.full(len(owner), 250_871_808),
        "gridId": np.arange(len(owner)) + 1,
        "sharedMemoryExecuted": np.full(len(owner), 32_768),
        "graphNodeId": np.where(graph[op][owner], slot + 1, -1),
    }
    return {"kernels": table, "calls": calls, "ranges": _ranges(begin, finish, thread[0])}


def _ranges(begin: Any, finish: Any, thread: int) -> Columns:
    """Operators, their stages, layers and steps, each a little wider than what it holds."""
    size = {0: 1, 1: 1, 2: len(STAGES), 3: len(STAGES) * LAYERS}
    starts = [begin[::n] - 200 * level for level, n in size.items()]
    ends = [finish[n - 1 :: n] + 200 * level for level, n in size.items()]
    text = [_text_number(level, np.arange(len(starts[level]))) for level in size]
    total = sum(len(s) for s in starts)
    return {
        "start": np.concatenate(starts), "end": np.concatenate(ends),
        "eventType": np.full(total, 59), "text": np.concatenate(text),
        "globalTid": np.full(total, thread), "domainId": np.zeros(total, np.int64),
    }  # fmt: skip


def _text_number(level: int, i: Any) -> Any:
    stages = len(STAGES)
    if level == 0:
        return (i // stages) % LAYERS * stages + i % stages
    first = (LAYERS * stages, LAYERS * stages + stages, LAYERS * stages + stages + LAYERS)
    return first[level - 1] + i % (stages, LAYERS, STEPS)[level - 1]


def _range_texts() -> list[str]:
    operators = [
        f"aten::{s}, shape = [64, {128 * layer}]" for layer in range(LAYERS) for s in STAGES
    ]
    layers = [f"layer_{i}" for i in range(LAYERS)]
    return [*operators, *STAGES, *layers, *(f"step {i}" for i in range(STEPS))]


def _facts(db: sqlite3.Connection, last: int) -> None:
    kernels = [f"{s}_kernel_{v}" for s in STAGES for v in range(4)]
    arguments = "<128, 64, (bool)1>(const float *, int *, unsigned int)"
    db.executemany("INSERT INTO StringIds VALUES (?, ?)", [
        *((1 + i, f"void dsa::{k}{arguments}") for i, k in enumerate(kernels)),
        *((41 + i, k) for i, k in enumerate(kernels)),
        *((201 + i, f"_Z{k}") for i, k in enumerate(kernels)),
        (100, "cudaLaunchKernel_v7000"), (101, "cudaGraphLaunch_v10000"),
        (102, "cudaEventRecord_v3020"),
    ])  # fmt: skip
    db.execute("INSERT INTO ANALYSIS_DETAILS VALUES (0, ?, 0, ?)", (last + 1, last + 1))
    version = {"EXPORT_PRODUCT_NAME": "synthetic", "EXPORT_PRODUCT_VERSION": "2023.4.4.54",
               "EXPORT_SCHEMA_VERSION": "3.7.2", "EXPORT_SCHEMA_VERSION_MAJOR": "3",
               "EXPORT_SCHEMA_VERSION_MINOR": "7", "EXPORT_SCHEMA_VERSION_MICRO": "2"}  # fmt: skip
    db.executemany("INSERT INTO META_DATA_EXPORT VALUES (?, ?)", version.items())
    db.executemany(
        "INSERT INTO TARGET_INFO_GPU VALUES (0, ?, 'NVIDIA H200 (synthetic)', 9, 0, 132)",
        [(i,) for i in range(PROCESSES)],
    )
    db.executemany("INSERT INTO ENUM_NSYS_EVENT_TYPE VALUES (?, ?, ?)", [
        (59, "NvtxPushPopRange", "NVTX Push/Pop Range"),
        (60, "NvtxStartEndRange", "NVTX Start/End Range"),
    ])  # fmt: skip


def _join(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _by_start(parts: list[Columns]) -> Columns:
    whole = _join(parts)
    order = np.argsort(whole["start"], kind="stable")
    return {name: column[order] for name, column in whole.items()}


def _insert(db: sqlite3.Connection, table: str, columns: Columns, texts: list[str]) -> int:
    names = ", ".join(columns)
    values = ", ".join("nullif(?, -1)" for _ in columns)
    for rows in _rows(columns, texts):
        db.executemany(f"INSERT INTO {table} ({names}) VALUES ({values})", rows)
    return len(columns["start"])


def _rows(columns: Columns, texts: list[str]) -> Iterator[Iterator[tuple[Any, ...]]]:
    for i in range(0, len(columns["start"]), ROWS_AT_ONCE):
        block = {n: c[i : i + ROWS_AT_ONCE].tolist() for n, c in columns.items()}
        if texts:
            block["text"] = [texts[t] for t in block["text"]]
        yield zip(*block.values(), strict=True)


def _write_parquet(folder: Path, table: str, columns: Columns, texts: list[str]) -> None:
    """One table as nsys exports it: not compressed, global ids unsigned."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {}
    for name, column in columns.items():
        if name == "text":
            arrays[name] = pa.array(texts).take(pa.array(column))
        elif name.startswith("global"):
            arrays[name] = pa.array(column.astype(np.uint64))
        else:
            arrays[name] = pa.array(column, mask=column == -1)
    nulls = pa.nulls(len(columns["start"]), pa.int64())
    for name in ("endGlobalTid", "textId") if table == "NVTX_EVENTS" else ():
        arrays[name] = nulls
    pq.write_table(pa.table(arrays), folder / f"{table}.parquet", compression="none")


def _copy_parquet(db: sqlite3.Connection, folder: Path, table: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cursor = db.execute(f"SELECT * FROM {table}")
    rows = [dict(zip((d[0] for d in cursor.description), row, strict=True)) for row in cursor]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{table}.parquet", compression="none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--kernels", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parquet", type=Path, help="a folder for the same tables as parquetdir")
    args = parser.parse_args()
    for table, rows in generate(args.path, args.kernels, args.seed, args.parquet).items():
        print(f"{rows:>12,} {table}")


if __name__ == "__main__":
    main()
