"""Reading nsys SQLite: every schema generation, odd rows, and the writer that is its inverse."""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import trace_factory
from trace_factory import Program

from dsa_profiler.columns import NULL, PROCESS_MASK, Gpu, Trace
from dsa_profiler.errors import InputError
from dsa_profiler.trace import schema
from dsa_profiler.trace.reader import read
from dsa_profiler.trace.writer import write

PARTS = ("kernels", "launches", "ranges", "graph_nodes", "graph_launches")


def assert_same(a: Trace, b: Trace) -> None:
    assert a.strings == b.strings
    for part in PARTS:
        for f in dataclasses.fields(getattr(a, part)):
            left, right = getattr(getattr(a, part), f.name), getattr(getattr(b, part), f.name)
            np.testing.assert_array_equal(left, right, f"{part}.{f.name}")


def change(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()
    return path


@pytest.fixture
def written(tmp_path: Path) -> Path:
    trace = trace_factory.dsa_trace(graph="node", processes=2)
    write(trace, tmp_path / "t.sqlite")
    return tmp_path / "t.sqlite"


@pytest.mark.parametrize("graph", ["none", "node", "graph"])
def test_what_is_written_reads_back_the_same(tmp_path: Path, graph: str) -> None:
    trace = trace_factory.dsa_trace(graph=graph, processes=2)
    write(trace, tmp_path / "t.sqlite")
    back = read(tmp_path / "t.sqlite")
    assert back.info == trace.info
    assert_same(trace, back)


def test_everything_a_trace_can_hold_survives_the_file(tmp_path: Path) -> None:
    program = Program()
    thread = program.thread(pid=7, hw=0xFE)  # a negative process id
    with thread.range("outer", domain="NCCL"), thread.range("[no text]"):
        thread.launch("[memcpy HtoD]", 500, kind=1)
        thread.launch("[memcpy PtoP]", 700, stream=3, kind=1)
        thread.launch("[memset]", 20, kind=2)
        thread.launch("kernel<(int)1>(float *)", 10_000)
    program.ranges.append((5, 5, thread.thread, "an instant", None, False, False))
    program.ranges.append((6, 900_000_000, thread.thread, "cut off", "dsa", True, True))
    trace = program.trace(
        duration_ns=900_000_000,
        gpus=(Gpu("A", 90, 132), Gpu("B", None, None)),
        graph_mode="graph",
        options={schema.GRAPH_MODE: "Graph", "START_TRIGGER": "Manual"},
        diagnostics=trace_factory.diagnostics((2, "No NVTX events collected"), (1, "ok")),
        skipped_rows={"NVTX_EVENTS: not an integer": 3},
    )
    assert int(trace.kernels.process[0]) < 0
    write(trace, tmp_path / "t.sqlite")
    back = read(tmp_path / "t.sqlite")
    assert back.info == trace.info
    assert_same(trace, back)


def test_domains_without_ranges_are_remembered(tmp_path: Path) -> None:
    write(trace_factory.build(domains_without_ranges=True), tmp_path / "t.sqlite")
    assert read(tmp_path / "t.sqlite").info.domains_without_ranges


def test_the_same_trace_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(trace_factory.dsa_trace(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("generation", trace_factory.GENERATIONS)
def test_every_schema_generation_reads_the_same(tmp_path: Path, generation: str) -> None:
    trace = trace_factory.dsa_trace(graph="node", hops=2)
    back = read(trace_factory.export(trace, tmp_path / "t.sqlite", generation))
    assert back.info.schema_version == generation
    assert back.info.graph_mode == ("node" if generation in ("3.24.0", "3.25.0") else None)
    assert_same(trace, back)


def test_ids_of_strings_do_not_depend_on_the_order_of_rows(written: Path, tmp_path: Path) -> None:
    shuffled = tmp_path / "shuffled.sqlite"
    shuffled.write_bytes(written.read_bytes())
    for table in (schema.KERNEL, schema.RUNTIME, schema.NVTX, schema.GRAPH_NODES[0]):
        change(
            shuffled,
            f"CREATE TABLE other AS SELECT * FROM {table} ORDER BY start % 7919",
            f"DELETE FROM {table}",
            f"INSERT INTO {table} SELECT * FROM other",
            "DROP TABLE other",
        )
    a, b = read(written), read(shuffled)
    assert a.strings == b.strings
    for part in PARTS:
        rows = [
            sorted(zip(*(getattr(x, f.name).tolist() for f in dataclasses.fields(x)), strict=True))
            for x in (getattr(a, part), getattr(b, part))
        ]
        assert rows[0] == rows[1]


def test_ranges_that_cannot_enclose_do_not_nest(written: Path) -> None:
    with closing(sqlite3.connect(written)) as db:
        thread = db.execute(f"SELECT globalTid FROM {schema.NVTX} LIMIT 1").fetchone()[0]
    row = f"INSERT INTO {schema.NVTX} (start, end, eventType, text, globalTid, endGlobalTid) VALUES"
    change(
        written,
        f"{row} (10, 20, 70, 'from nvtxt', {thread}, NULL)",
        f"{row} (10, 20, 71, 'start/end from nvtxt', {thread}, NULL)",
        f"{row} (10, 20, 59, 'ends here', {thread}, {thread})",
        f"{row} (10, 20, 59, 'ends elsewhere', {thread}, {thread + 1})",
        f"{row} (10, 10, 59, 'no length', {thread}, NULL)",
        f"{row} (10, 20, 34, 'a mark is no range', {thread}, NULL)",
        f"{row} (10, NULL, 59, 'never popped', {thread}, NULL)",
    )
    trace = read(written)
    rows = {
        trace.strings[t]: (bool(n), bool(c))
        for t, n, c in zip(
            trace.ranges.text.tolist(), trace.ranges.nests, trace.ranges.truncated, strict=True
        )
    }
    assert rows["from nvtxt"] == (True, False)
    assert rows["start/end from nvtxt"] == (False, False)
    assert rows["ends here"] == (True, False)
    assert rows["ends elsewhere"] == (False, False)
    assert rows["no length"] == (False, False)
    assert rows["never popped"] == (True, True)
    assert "a mark is no range" not in rows


def test_rows_that_cannot_be_are_counted_and_left_out(written: Path) -> None:
    before = read(written)
    others = list(schema.WRITTEN[schema.KERNEL])[2:]
    row = (
        f"INSERT INTO {schema.KERNEL} (start, end, {', '.join(others)}) "
        f"SELECT %s, {', '.join(others)} FROM {schema.KERNEL} LIMIT 1"
    )
    change(written, *(row % times for times in ("20, 10", "0, 9e18", "'soon', 5", "1.5, 8")))
    after = read(written)
    assert len(after.kernels) == len(before.kernels)
    assert dict(after.info.skipped_rows) == {
        f"{schema.KERNEL}: ends before it starts": 1,
        f"{schema.KERNEL}: not an integer": 2,
        f"{schema.KERNEL}: time out of range": 1,
    }


def test_a_name_that_the_file_does_not_have_is_shown_as_missing(written: Path) -> None:
    change(written, f"DELETE FROM {schema.STRINGS} WHERE value LIKE '%topKPerRow%'")
    trace = read(written)
    assert "[name missing]" in {trace.strings[i] for i in trace.kernels.name.tolist()}


def test_kernels_without_a_process_stay_without_one(written: Path) -> None:
    change(written, f"UPDATE {schema.KERNEL} SET globalPid = NULL, correlationId = NULL")
    trace = read(written)
    assert set(trace.kernels.process.tolist()) == {NULL}
    assert NULL not in set((trace.launches.thread & PROCESS_MASK).tolist())


def test_node_zero_is_no_node(written: Path) -> None:
    change(written, f"UPDATE {schema.KERNEL} SET graphNodeId = 0 WHERE rowid % 2")
    trace = read(written)
    assert set(trace.kernels.graph_node[::2].tolist()) == {NULL}
    assert NULL not in trace.kernels.graph_node[1::2]


def test_texts_that_are_no_utf8_are_still_texts(written: Path) -> None:
    change(written, f"UPDATE {schema.NVTX} SET text = CAST(x'FF41' AS TEXT) WHERE eventType = 59")
    assert "�A" in read(written).strings.values()


def test_options_pass_by_an_allow_list_only(written: Path) -> None:
    rows = {
        "PROCESS_0:ENVIRONMENT_VARIABLE": "TOKEN=hunter2",
        "START_DELAY_MS": "60; TOKEN=hunter2",
        "PROCESS_1:CUDA_TRACE_SCOPE": "ProcessTree",
    }
    change(
        written, *(f"INSERT INTO {schema.CAPTURE} VALUES ('{k}', '{v}')" for k, v in rows.items())
    )
    info = read(written).info
    assert info.options["PROCESS_1:CUDA_TRACE_SCOPE"] == "ProcessTree"
    assert "hunter2" not in repr(info)


def test_a_file_without_analysis_details_cuts_nothing_off(written: Path) -> None:
    change(written, f"DELETE FROM {schema.DETAILS}")
    trace = read(written)
    assert not trace.ranges.truncated.any()
    assert trace.info.duration_ns > int(trace.ranges.end.max())


def test_gpus_are_those_that_processes_used(written: Path) -> None:
    change(
        written,
        f"INSERT INTO {schema.GPU} VALUES (0, 5, 'idle', 9, 0, 132)",
        f"CREATE TABLE {schema.CUDA_DEVICE} (gpuId INTEGER, cudaId INTEGER, pid INTEGER)",
        f"INSERT INTO {schema.CUDA_DEVICE} VALUES (0, 0, 1)",
    )
    assert [g.name for g in read(written).info.gpus] == ["NVIDIA H200 (synthetic)"]


def test_reading_leaves_the_file_and_its_folder_alone(written: Path) -> None:
    written.chmod(0o444)
    before = written.read_bytes()
    read(written)
    assert written.read_bytes() == before
    assert [p.name for p in written.parent.iterdir()] == [written.name]


@pytest.mark.parametrize(
    ("content", "slug"),
    [
        (b"", "trace-unknown"),
        (b"PK\x03\x04", "trace-unknown"),
        (b"\x7fELF", "trace-unknown"),
        (b"SQLite format 3\x00", "trace-broken"),
        (b"SQLite format 3\x00" + b"\xff" * 5000, "trace-broken"),
        (b"{}", "trace-foreign"),
        (b"[1, 2", "trace-broken"),
        (b"\x1f\x8b\x08", "trace-broken"),
        (b'{"traceEvents": []}', "trace-foreign"),
    ],
)
def test_what_is_no_trace_is_refused_with_a_cure(tmp_path: Path, content: bytes, slug: str) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read(path)
    assert error.value.slug == slug
    assert error.value.cure


def test_other_paths_that_are_no_trace(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "absent.sqlite")
    with pytest.raises(InputError, match="without parquet tables"):
        read(tmp_path)
    other = change(tmp_path / "other.sqlite", "CREATE TABLE notes (text TEXT)")
    with pytest.raises(InputError, match="none of the tables"):
        read(other)


def test_a_view_in_the_place_of_a_table_is_not_computed(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    write(trace_factory.build(), path)
    change(
        path,
        f"CREATE VIEW {schema.KERNEL} AS WITH RECURSIVE n(start) AS "
        "(SELECT 1 UNION ALL SELECT start + 1 FROM n) SELECT start, start AS end FROM n",
    )
    assert len(read(path).kernels) == 0
