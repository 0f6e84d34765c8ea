"""Synthetic traces, true to nsys' schema and labelled as what they are.

`Program` is a small host and GPU: threads push ranges and launch kernels on a clock, graphs are
captured and replayed, and `trace()` hands out the columns. `dsa_trace` is the profile of a DSA
layer made with it; `export` writes any trace in the shape of one schema generation of nsys.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dsa_profiler import marks
from dsa_profiler.columns import (
    NULL,
    Diagnostic,
    Gpu,
    GraphLaunches,
    GraphNodes,
    Kernels,
    Launches,
    Ranges,
    Trace,
    TraceInfo,
)
from dsa_profiler.model import Case
from dsa_profiler.trace import schema, writer

PRODUCER = "synthetic nsys"
GENERATIONS = ("2.9.1", "3.0.0", "3.7.2", "3.13.2", "3.24.0", "3.25.0")
CASES = (
    Case("context", 1, 1024),
    Case("generation", 64, 4095),
)
LAYER: dict[str, tuple[tuple[str, int], ...]] = {
    "qkv_a_proj": (("nvjet_tst_64x32_64x16_2x4_h_bz_NNT", 9_000),),
    "q_b_proj": (("nvjet_tst_128x64_64x9_1x2_h_bz_TNT", 14_000),),
    "indexer_q_proj": (("nvjet_tst_64x8_64x16_4x1_v_bz_TNN", 6_000),),
    "indexer_cache": (
        (
            "void tensorrt_llm::kernels::indexerKCacheScatterUnifiedKernel"
            "(const unsigned char *, const unsigned char *, unsigned char *, const long *)",
            3_000,
        ),
    ),
    "mqa_logits": (
        (
            "void deep_gemm::sm90_fp8_paged_mqa_logits<1u, 64u, 128u, 64u, true, false, 3u, 3u, "
            "256u, 128u, 512u, 1u, float>(unsigned int, unsigned int, const unsigned int *)",
            21_000,
        ),
    ),
    "topk": (
        (
            "void tensorrt_llm::kernels::topKPerRowDecode<512, true, false, false>"
            "(const float *, const int *, int *, int, int, int, int)",
            26_000,
        ),
    ),
    "sparse_attn": (
        (
            "void sm90::fwd::sparse_attn_fwd_kernel<sm90::fwd::KernelTemplate<576, false>>"
            "(const __grid_constant__ SparseAttnFwdParams)",
            48_000,
        ),
    ),
    "o_proj": (("nvjet_tst_192x128_64x5_2x1_v_bz_TNT", 18_000),),
}
"""Stage -> (demangled kernel name, ns): one decode step of the layer, with real names."""


def process_id(pid: int, hw: int = 0, vm: int = 1) -> int:
    """The globalPid of nsys; hw above 0x7F makes it negative, as in real files."""
    value = hw << 56 | vm << 48 | pid << 24
    return value - (1 << 64) if value >= 1 << 63 else value


@dataclass
class Graph:
    """A captured graph: (node id, kernel name, ns) in order, and the nodes' executable clones."""

    nodes: list[tuple[int, str, int]] = field(default_factory=list)


@dataclass
class Thread:
    """One host thread with its clock; a GPU stream of its process runs behind it."""

    program: Program
    process: int
    thread: int
    now: int
    device: int = 0
    graph: Graph | None = None

    @contextmanager
    def range(self, text: str, domain: str | None = None) -> Iterator[None]:
        """A push/pop range around the block."""
        start = self.now
        self.now += 100
        yield
        self.now += 100
        self.program.ranges.append((start, self.now, self.thread, text, domain, True, False))
        self.now += 50

    def launch(self, name: str, ns: int, stream: int = 7, kind: int = schema.KIND_KERNEL) -> None:
        """An API call and its kernel; in a capture, a node instead."""
        if self.graph is not None:
            node = self.program.next_node()
            self.program.nodes.append((self.now, self.now + 500, self.thread, node, NULL))
            self.graph.nodes.append((node, name, ns))
            self.now += 600
            return
        correlation = self._call()
        start = self.program.run(self.process, self.device, stream, self.now, ns)
        self.program.kernels.append(
            (start, start + ns, self.device, stream, self.process, correlation, NULL, name, kind)
        )

    @contextmanager
    def capture(self, hops: int = 1) -> Iterator[Graph]:
        """Launches in the block become nodes; on instantiation each is cloned `hops` times."""
        self.graph = graph = Graph()
        yield graph
        self.graph = None
        for _ in range(hops):
            for i, (node, name, ns) in enumerate(graph.nodes):
                clone = self.program.next_node()
                self.program.nodes.append((self.now, self.now + 300, self.thread, clone, node))
                graph.nodes[i] = (clone, name, ns)
                self.now += 400

    def replay(self, graph: Graph, stream: int = 7, visible: bool = True) -> None:
        """Launch a graph. `visible` is node mode; else one row stands for the whole launch."""
        correlation = self._call()
        begin = end = self.now
        for node, name, ns in graph.nodes:
            start = self.program.run(self.process, self.device, stream, self.now, ns)
            begin, end = (begin if end > begin else start), start + ns
            if visible:
                self.program.kernels.append(
                    (start, end, self.device, stream, self.process, correlation, node, name, 0)
                )
        if not visible:
            self.program.graphs.append((begin, end, self.device, stream, self.process, correlation))

    def _call(self) -> int:
        correlation = self.program.next_correlation(self.process)
        self.program.launches.append((self.now, self.now + 2_000, self.thread, correlation))
        self.now += 2_500
        return correlation


class Program:
    """A recording in the making. Correlation ids count from 1 in every process, so they collide."""

    def __init__(self, start: int = 1_000_000) -> None:
        self.start = start
        self.kernels: list[tuple[Any, ...]] = []
        self.launches: list[tuple[Any, ...]] = []
        self.ranges: list[tuple[Any, ...]] = []
        self.nodes: list[tuple[Any, ...]] = []
        self.graphs: list[tuple[Any, ...]] = []
        self._busy: dict[tuple[int, int, int], int] = {}
        self._correlations: dict[int, int] = {}
        self._nodes = 0

    def thread(self, pid: int = 1000, tid: int = 0, hw: int = 0, device: int = 0) -> Thread:
        process = process_id(pid, hw)
        return Thread(self, process, process | (tid or pid), self.start, device)

    def run(self, process: int, device: int, stream: int, earliest: int, ns: int) -> int:
        """When a kernel starts on its stream."""
        key = (process, device, stream)
        start = max(self._busy.get(key, 0) + 300, earliest + 3_000)
        self._busy[key] = start + ns
        return start

    def next_correlation(self, process: int) -> int:
        self._correlations[process] = self._correlations.get(process, 0) + 1
        return self._correlations[process]

    def next_node(self) -> int:
        self._nodes += 1
        return self._nodes

    def trace(self, **info: Any) -> Trace:
        """The columns; `info` overrides fields of the TraceInfo."""
        return build(self.kernels, self.launches, self.ranges, self.nodes, self.graphs, **info)


def build(
    kernels: Sequence[tuple[Any, ...]] = (),
    launches: Sequence[tuple[Any, ...]] = (),
    ranges: Sequence[tuple[Any, ...]] = (),
    nodes: Sequence[tuple[Any, ...]] = (),
    graphs: Sequence[tuple[Any, ...]] = (),
    **info: Any,
) -> Trace:
    """A trace from rows in the order of the columns' fields; names are given as text."""
    kernels = sorted(kernels, key=lambda r: r[8])
    used = {r[7] for r in kernels} | {r[3] for r in ranges} | {r[4] for r in ranges}
    strings = dict(enumerate(sorted(used - {None})))
    number = {text: i for i, text in strings.items()} | {None: NULL}
    ends = [r[1] for rows in (kernels, launches, ranges, graphs) for r in rows]
    facts = {
        "producer": PRODUCER,
        "schema_version": schema.WRITTEN_VERSION,
        "duration_ns": 1 + max(ends, default=0),
        "gpus": (Gpu("NVIDIA H200 (synthetic)", 90, 132),),
        **info,
    }
    return Trace(
        TraceInfo(**facts),
        Kernels(*_ints([(*r[:7], number[r[7]], r[8]) for r in kernels], 9)),
        Launches(*_ints(launches, 4)),
        Ranges(
            *_ints([(*r[:3], number[r[3]], number[r[4]]) for r in ranges], 5),
            np.array([r[5] for r in ranges], np.bool_),
            np.array([r[6] for r in ranges], np.bool_),
        ),
        GraphNodes(*_ints(nodes, 5)),
        GraphLaunches(*_ints(graphs, 6)),
        strings,
    )


def _ints(rows: Sequence[tuple[Any, ...]], width: int) -> list[np.ndarray[Any, Any]]:
    return [np.array([r[i] for r in rows], np.int64) for i in range(width)]


def dsa_trace(
    cases: Sequence[Case] = CASES,
    iterations: int = 3,
    warmup: int = 1,
    processes: int = 1,
    graph: str = "none",
    hops: int = 1,
    seed: int = 0,
) -> Trace:
    """A DSA layer under our marks. `graph`: `none`, `node` or `graph` (kernels not visible).

    With a graph, the stages were marked while the graph was captured, before the iterations;
    the iterations only launch it.
    """
    rng = random.Random(seed)
    program = Program()
    for rank in range(processes):
        thread = program.thread(pid=1000 + rank, device=rank)
        for case in cases:
            with thread.range(marks.case(case.slug)):
                captured = None
                if graph != "none":
                    with thread.capture(hops) as captured:
                        _layer(thread, rng)
                for i in range(warmup + iterations):
                    mark = marks.warmup(i) if i < warmup else marks.iteration(i - warmup)
                    with thread.range(mark):
                        if captured is not None:
                            thread.replay(captured, visible=graph == "node")
                        else:
                            _layer(thread, rng)
                        thread.now += 300_000
    options = {schema.GRAPH_MODE: graph.capitalize()} if graph != "none" else {}
    return program.trace(graph_mode=None if graph == "none" else graph, options=options)


def _layer(thread: Thread, rng: random.Random) -> None:
    for stage, kernels in LAYER.items():
        with thread.range(marks.stage(stage)):
            for name, ns in kernels:
                thread.launch(name, ns + rng.randrange(ns // 20))


def export(trace: Trace, path: Path, generation: str = "3.25.0") -> Path:
    """Write the trace as nsys of that generation would have: its tables, columns and quirks."""
    if generation not in GENERATIONS:
        raise ValueError(f"no such generation: {generation}")
    writer.write(replace(trace, info=replace(trace.info, schema_version=generation)), path)
    with closing(sqlite3.connect(path)) as db:
        number = tuple(int(p) for p in generation.split("."))
        for applies, change in _CHANGES:
            if applies(number):
                change(db)
        db.execute("UPDATE meta SET value = ? WHERE name = 'EXPORT_SCHEMA_VERSION'", (generation,))
        db.execute("DELETE FROM meta WHERE name LIKE 'DSA_%'")
        old = number < (3, 1)
        db.execute(f"ALTER TABLE meta RENAME TO {schema.EXPORT[1 if old else 0]}")
        db.commit()
        db.execute("VACUUM")
    return path


def _rename_meta(db: sqlite3.Connection) -> None:
    db.execute(f"ALTER TABLE {schema.EXPORT[0]} RENAME TO meta")


def _without_capture(db: sqlite3.Connection) -> None:
    db.execute(f"DROP TABLE IF EXISTS {schema.CAPTURE}")
    db.execute(f"DROP TABLE IF EXISTS {schema.DIAGNOSTIC}")


def _old_nodes(db: sqlite3.Connection) -> None:
    """Node creations under the name that later means whole graphs; graph launches unknown."""
    if _columns(db, schema.GRAPH_NODES[0]):
        db.execute(f"ALTER TABLE {schema.GRAPH_NODES[0]} RENAME TO {schema.GRAPH_NODES[1]}")
    db.execute(f"DROP TABLE IF EXISTS {schema.GRAPH_TRACE}")


def _new_graphs(db: sqlite3.Connection) -> None:
    """The new meaning of CUDA_GRAPH_EVENTS: graphs, not nodes."""
    db.execute(
        f"CREATE TABLE {schema.GRAPH_NODES[1]} (start INTEGER NOT NULL, end INTEGER NOT NULL, "
        "eventClass INTEGER NOT NULL, globalTid INTEGER, nameId INTEGER NOT NULL, "
        "graphId INTEGER, originalGraphId INTEGER, graphExecId INTEGER)"
    )
    db.execute(f"INSERT INTO {schema.GRAPH_NODES[1]} VALUES (5, 6, 95, 1, 0, 1, NULL, NULL)")


def _extra_columns(db: sqlite3.Connection) -> None:
    for table in (schema.RUNTIME, schema.MEMCPY):
        if _columns(db, table):
            db.execute(f"ALTER TABLE {table} ADD COLUMN name TEXT")


def _enums(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE ENUM_NSYS_EVENT_TYPE (id INTEGER NOT NULL, name TEXT, label TEXT)")
    db.executemany(
        "INSERT INTO ENUM_NSYS_EVENT_TYPE VALUES (?, ?, ?)",
        [(59, "NvtxPushPopRange", "NVTX Push/Pop Range"), (60, "NvtxStartEndRange", "Start/End")],
    )


def _not_lazy(db: sqlite3.Connection) -> None:
    for table in (schema.MEMSET, schema.KERNEL, schema.NVTX, schema.RUNTIME, schema.GRAPH_NODES[1]):
        if not _columns(db, table):
            source = schema.GRAPH_NODES[0] if table == schema.GRAPH_NODES[1] else table
            db.execute(schema.create_table(source).replace(source, table, 1))


def _without_mode(db: sqlite3.Connection) -> None:
    if _columns(db, schema.CAPTURE):
        db.execute(f"DELETE FROM {schema.CAPTURE} WHERE name = ?", (schema.GRAPH_MODE,))


def _process_prefix(db: sqlite3.Connection) -> None:
    if _columns(db, schema.CAPTURE):
        db.execute(
            f"UPDATE {schema.CAPTURE} SET name = 'PROCESS_0:' || name WHERE name = ?",
            (schema.GRAPH_MODE,),
        )


def _kernel_columns(db: sqlite3.Connection) -> None:
    """The kernel table of 3.24 and later: more columns, another order."""
    have = _columns(db, schema.KERNEL)
    if not have:
        return
    later = ("qmdBulkReleaseDone", "qmdPreexitDone", "qmdLastCtaDone", "graphId", "clusterX")
    order = [*have[6:], *later, *have[:6]]
    ddl = ", ".join(f'"{c}" INTEGER' for c in order)
    db.execute(f"ALTER TABLE {schema.KERNEL} RENAME TO old")
    db.execute(f"CREATE TABLE {schema.KERNEL} ({ddl})")
    both = ", ".join(f'"{c}"' for c in have)
    db.execute(f"INSERT INTO {schema.KERNEL} ({both}) SELECT {both} FROM old")
    db.execute("DROP TABLE old")


def _tensor_sizes(db: sqlite3.Connection) -> None:
    if _columns(db, schema.KERNEL):
        db.execute(
            f"ALTER TABLE {schema.KERNEL} ADD COLUMN tensorSizeMinusOneElements "
            "TEXT NOT NULL DEFAULT ''"
        )


def _plain_texts(db: sqlite3.Connection) -> None:
    """Half of the ranges with their text in the row, as torch.cuda.nvtx gives them."""
    if _columns(db, schema.NVTX):
        db.execute(
            f"UPDATE {schema.NVTX} SET text = (SELECT value FROM {schema.STRINGS} "
            "WHERE id = textId), textId = NULL WHERE textId IS NOT NULL AND rowid % 2"
        )


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [str(r[1]) for r in db.execute(f"PRAGMA table_info({table})")]


_Version = tuple[int, ...]
_CHANGES: tuple[tuple[Callable[[_Version], bool], Callable[[sqlite3.Connection], None]], ...] = (
    (lambda v: True, _rename_meta),
    (lambda v: True, _plain_texts),
    (lambda v: v < (3, 1), _without_capture),
    (lambda v: v < (3, 13), _old_nodes),
    (lambda v: v >= (3, 13), _new_graphs),
    (lambda v: v >= (3,), _enums),
    (lambda v: v < (3,), _extra_columns),
    (lambda v: v < (3,), _not_lazy),
    (lambda v: v < (3, 20), _without_mode),
    (lambda v: (3, 20) <= v <= (3, 24, 0), _process_prefix),
    (lambda v: v >= (3, 24), _kernel_columns),
    (lambda v: v >= (3, 25), _tensor_sizes),
)


def diagnostics(*rows: tuple[int, str]) -> tuple[Diagnostic, ...]:
    """Diagnostics for `TraceInfo`, from (severity, text)."""
    return tuple(Diagnostic(*r) for r in rows)
