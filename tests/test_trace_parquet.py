"""A parquetdir export gives the same trace as the SQLite export of the same report."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trace_factory
from test_trace_reader import assert_same

from dsa_profiler.errors import InputError
from dsa_profiler.trace import schema
from dsa_profiler.trace.parquet import Parquet
from dsa_profiler.trace.reader import read

UNSIGNED = {"globalTid", "globalPid", "endGlobalTid", "domainId", "rangeId", "duration"}


def parquetdir(source: Path, folder: Path, row_group: int = 1 << 20) -> Path:
    """What nsys writes: a file a table, global ids unsigned, no compression."""
    folder.mkdir()
    with closing(sqlite3.connect(source)) as db:
        tables = [r[0] for r in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = db.execute(f"PRAGMA table_info({table})").fetchall()
            rows = db.execute(f"SELECT * FROM {table}").fetchall()
            arrays = {
                str(c[1]): _array(str(c[1]), str(c[2]), [r[i] for r in rows])
                for i, c in enumerate(columns)
            }
            pq.write_table(
                pa.table(arrays), folder / f"{table}.parquet", row_group, compression="none"
            )
    return folder


def _array(name: str, kind: str, values: list[Any]) -> pa.Array:
    if kind != "INTEGER":
        return pa.array(values, pa.string())
    if name in UNSIGNED:
        return pa.array([v if v is None else v & ((1 << 64) - 1) for v in values], pa.uint64())
    return pa.array(values, pa.int32() if name == "id" else pa.int64())


@pytest.mark.parametrize("row_group", [1 << 20, 7])
@pytest.mark.parametrize("generation", ["2.9.1", "3.7.2", "3.25.0"])
def test_it_reads_as_the_sqlite_does(tmp_path: Path, generation: str, row_group: int) -> None:
    trace = trace_factory.dsa_trace(graph="node", processes=2)
    source = trace_factory.export(trace, tmp_path / "t.sqlite", generation)
    a, b = read(source), read(parquetdir(source, tmp_path / "t", row_group))
    assert a.info == b.info
    assert_same(a, b)


def test_negative_process_ids(tmp_path: Path) -> None:
    program = trace_factory.Program()
    thread = program.thread(pid=9, hw=0xFF)
    with thread.range("r"):
        thread.launch("k", 5)
    source = trace_factory.export(program.trace(), tmp_path / "t.sqlite", "3.24.0")
    b = read(parquetdir(source, tmp_path / "t"))
    assert int(b.kernels.process[0]) < 0
    assert_same(read(source), b)


CONSTANT: dict[str, list[Any]] = {
    "one value": [5, 5, 5, 5],
    "one value and NULL": [5, None, 5, 5],
    "NULL alone": [None] * 4,
    "negative": [-7] * 4,
    "minus one": [-1] * 4,
    "large": [1 << 40] * 4,
    "above 2^31": [(1 << 31) + 3] * 4,
    "above 2^63": [(1 << 63) + 3] * 4,
    "two groups, two values": [5, 5, 6, 6],
    "NULL, then a value": [None, None, 5, 5],
}


KINDS = {
    "int16": range(-(1 << 15), 1 << 15),
    "int32": range(-(1 << 31), 1 << 31),
    "int64": range(-(1 << 63), 1 << 63),
    "uint8": range(1 << 8),
    "uint32": range(1 << 32),
    "uint64": range(1 << 64),
}


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        (what, kind)
        for what, values in CONSTANT.items()
        for kind, holds in KINDS.items()
        if all(v is None or v in holds for v in values)
    ],
)
def test_statistics_change_no_column(tmp_path: Path, what: str, kind: str) -> None:
    column = pa.array(CONSTANT[what], kind)
    table = pa.table({"start": column, "other": pa.array([1, 2, 3, 4])})
    found = []
    for told in (True, False):
        folder = tmp_path / str(told)
        folder.mkdir()
        pq.write_table(table, folder / f"{schema.NVTX}.parquet", 2, write_statistics=told)
        found.append(Parquet(folder).load(schema.NVTX, ("start", "other"))["start"].tolist())
    assert found[0] == found[1]


def test_a_column_of_another_type_is_counted_out(tmp_path: Path) -> None:
    source = trace_factory.export(trace_factory.dsa_trace(), tmp_path / "t.sqlite", "3.7.2")
    folder = parquetdir(source, tmp_path / "t")
    file = folder / f"{schema.KERNEL}.parquet"
    table = pq.read_table(file)
    i = table.schema.get_field_index("start")
    pq.write_table(table.set_column(i, "start", table["start"].cast(pa.float64())), file)
    trace = read(folder)
    assert len(trace.kernels) == 0
    assert trace.info.skipped_rows == {f"{schema.KERNEL}: not an integer": table.num_rows}


def test_a_broken_table_is_refused(tmp_path: Path) -> None:
    source = trace_factory.export(trace_factory.dsa_trace(), tmp_path / "t.sqlite", "3.7.2")
    folder = parquetdir(source, tmp_path / "t")
    file = folder / f"{schema.NVTX}.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError) as error:
        read(folder)
    assert error.value.slug == "trace-broken"
