"""Broken trace files: exit 4 or a right answer, never a traceback, a hang or a flood of memory.

150 files in the suite; `--slow` runs the whole 10,000. Every file is made from its number alone.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import signal
import sqlite3
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trace_factory

from dsa_profiler.cli import main
from dsa_profiler.columns import Trace
from dsa_profiler.model import Case
from dsa_profiler.trace import schema

FEW, ALL, BATCH = 150, 10_000, 500
HANG_S = 30
SLACK = 8 << 20
TABLES = (
    schema.KERNEL,
    schema.RUNTIME,
    schema.NVTX,
    schema.GRAPH_NODES[0],
    schema.STRINGS,
    schema.DETAILS,
    schema.EXPORT[0],
    schema.GPU,
    schema.GRAPH_TRACE,
)
VALUES = (
    "NULL",
    "0",
    "-1",
    "9223372036854775807",
    "-9223372036854775808",
    "4611686018427387904",
    "4294967296",
    "1.5",
    "9e300",
    "'text'",
    "''",
    "x'FF00FE'",
    "CAST(x'C328' AS TEXT)",
    "start",
    "end",
    "(rowid * 2654435761) % 1000000007",
    "zeroblob(5000)",
    "printf('%.3000c', 'x')",
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The whole files that the broken ones are made from."""
    folder = tmp_path_factory.mktemp("sound")
    cases = (Case("generation", 4, 128), Case("context", 1, 64))
    node = trace_factory.dsa_trace(cases, 2, 1, processes=2, graph="node", hops=2)
    files = {
        generation: trace_factory.export(node, folder / generation, generation).read_bytes()
        for generation in trace_factory.GENERATIONS
    }
    graph = trace_factory.dsa_trace(cases, 2, 1, graph="graph")
    files["graph"] = trace_factory.export(graph, folder / "graph").read_bytes()
    files["json"] = chrome(node)
    files["json.gz"] = gzip.compress(files["json"], mtime=0)
    return files


def chrome(trace: Trace) -> bytes:
    """The ranges, launches and kernels of a trace as torch.profiler writes them."""
    events = []
    ranges, kernels = trace.ranges, trace.kernels
    for start, end, thread, text in zip(
        *(c.tolist() for c in (ranges.start, ranges.end, ranges.thread, ranges.text)), strict=True
    ):
        event = _event("user_annotation", trace.strings[text], start, end)
        events.append({**event, "pid": 7, "tid": thread & 0xFFFFFF})
    for i, (start, end, name) in enumerate(
        zip(*(c.tolist() for c in (kernels.start, kernels.end, kernels.name)), strict=True)
    ):
        args = {"device": 0, "stream": 7, "correlation": i}
        event = _event("kernel", trace.strings[name], start, end)
        events.append({**event, "pid": 0, "tid": 7, "args": args})
        event = _event("cuda_runtime", "cudaLaunchKernel", start - 3000, start - 1000)
        events.append({**event, "pid": 7, "tid": 1000, "args": args})
    return json.dumps({"schemaVersion": 1, "traceEvents": events}).encode()


def _event(category: str, name: str, start: int, end: int) -> dict[str, Any]:
    micros = {"ts": start / 1000, "dur": (end - start) / 1000}
    return {"ph": "X", "cat": category, "name": name, **micros}


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 4, 40, 400))):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def flip_head(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 3))):
        out[rng.randrange(min(len(out), 120))] = rng.randrange(256)
    return bytes(out)


def move_pages(rng: random.Random, data: bytes) -> bytes:
    """Copy, swap or blank whole pages: b-trees that point at each other, or at nothing."""
    size = 4096
    pages = [data[i : i + size] for i in range(0, len(data), size)]
    for _ in range(rng.choice((1, 3, 9))):
        a, b = rng.randrange(len(pages)), rng.randrange(len(pages))
        pages[a] = rng.choice((pages[b], bytes(size), rng.randbytes(size)))
    return b"".join(pages)


def splice(rng: random.Random, data: bytes) -> bytes:
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:a] + data[b:] if rng.random() < 0.5 else data[:b] + data[a:]


def rows(rng: random.Random, data: bytes, path: Path) -> bytes:
    """Values, rows, columns and tables that no exporter writes, in a file that is whole."""
    path.write_bytes(data)
    with closing(sqlite3.connect(path)) as db:
        for _ in range(rng.choice((1, 2, 5))):
            with contextlib.suppress(sqlite3.Error):
                db.execute(_statement(rng, db))
        db.commit()
    return path.read_bytes()


def _statement(rng: random.Random, db: sqlite3.Connection) -> str:
    table = rng.choice(TABLES)
    columns = [r[1] for r in db.execute(f"PRAGMA table_info({table})")] or ["start"]
    column, value = rng.choice(columns), rng.choice(VALUES)
    every = rng.choice((1, 2, 7, 1_000_000))
    some, raw = rng.randrange(1 << 30), rng.randbytes(9).hex()
    return rng.choice(
        (
            f'UPDATE {table} SET "{column}" = {value} WHERE rowid % {every} = 0',
            f'UPDATE {table} SET "{column}" = {value} WHERE rowid % {every} = 0',
            f'UPDATE {table} SET "{column}" = "{rng.choice(columns)}"',
            f"DELETE FROM {table} WHERE rowid % {every} = 0",
            f"DROP TABLE {table}",
            f'ALTER TABLE {table} RENAME COLUMN "{column}" TO other',
            f"ALTER TABLE {table} ADD COLUMN extra INTEGER DEFAULT {rng.choice(VALUES[:4])}",
            f"INSERT INTO {table} SELECT * FROM {table}",
            f"UPDATE {schema.GRAPH_NODES[0]} SET originalGraphNodeId = graphNodeId",
            f"UPDATE {schema.GRAPH_NODES[0]} SET originalGraphNodeId = "
            f"(graphNodeId + {rng.randrange(9)}) % 40",
            f"UPDATE {schema.NVTX} SET end = start + rowid * {some} % 100000007",
            f"UPDATE {schema.NVTX} SET text = CAST(x'{raw}' AS TEXT), textId = NULL",
            f"UPDATE {schema.KERNEL} SET correlationId = correlationId % 3",
        )
    )


def broken(number: int, sound: dict[str, bytes], folder: Path) -> Path:
    """Broken file number so-and-so."""
    rng = random.Random(number)
    name = rng.choice(sorted(sound))
    data = sound[name]
    byte_wise: list[Callable[[random.Random, bytes], bytes]] = [cut, flip, flip_head, splice]
    path = folder / "broken"
    if name.startswith("json"):
        data = rng.choice(byte_wise)(rng, data)
    else:
        how = rng.randrange(8)
        data = rows(rng, data, path) if how < 4 else rng.choice([*byte_wise, move_pages])(rng, data)
    path.write_bytes(data)
    return path


@contextlib.contextmanager
def at_most(seconds: int, what: str) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"{what} hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def analyze(path: Path) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["analyze", str(path), "--json"])
    return code, out.getvalue(), err.getvalue()


def memory(path: Path) -> int:
    """Peak bytes allocated while the file is analysed."""
    tracemalloc.start()
    try:
        analyze(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def check(number: int, sound: dict[str, bytes], folder: Path) -> int:
    path = broken(number, sound, folder)
    with at_most(HANG_S, f"file {number}"):
        code, out, err = analyze(path)
    assert code in (0, 4), f"file {number}: exit {code}\n{err}"
    assert "Traceback" not in err
    if code == 0:
        coverage = json.loads(out)["coverage"]
        assert coverage["kernels"] == coverage["attributed"] + coverage["unattributed"], number
        assert coverage["unattributed"] == sum(coverage["reasons"].values()), number
    else:
        assert err.startswith("error: "), err
        assert len(err.strip().splitlines()) == 2, err
    return code


def test_whole_files_are_answered(sound: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in sound.items():
        (tmp_path / "whole").write_bytes(data)
        assert analyze(tmp_path / "whole")[0] == 0, name


def test_some_broken_files(sound: dict[str, bytes], tmp_path: Path) -> None:
    codes = Counter(check(i, sound, tmp_path) for i in range(FEW))
    assert min(codes[0], codes[4]) > FEW // 10, codes


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FEW, ALL, BATCH))
def test_all_broken_files(first: int, sound: dict[str, bytes], tmp_path: Path) -> None:
    for i in range(first, min(first + BATCH, ALL)):
        check(i, sound, tmp_path)


def test_a_broken_file_takes_no_more_memory_than_two_whole_ones(
    sound: dict[str, bytes], tmp_path: Path
) -> None:
    whole = 0
    for data in sound.values():
        (tmp_path / "whole").write_bytes(data)
        whole = max(whole, memory(tmp_path / "whole"))
    for i in range(40):
        assert memory(broken(i, sound, tmp_path)) <= 2 * whole + SLACK, i


def test_a_broken_file_is_scrubbed_or_refused(sound: dict[str, bytes], tmp_path: Path) -> None:
    for i in range(60):
        path, target = broken(i, sound, tmp_path), tmp_path / "clean"
        target.unlink(missing_ok=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = main(["scrub", str(path), str(target)])
        assert code in (0, 4), i
        assert target.exists() == (code == 0), i
