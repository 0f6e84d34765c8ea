"""Reading nsys SQLite: every schema generation, and the writer that is its inverse."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import trace_factory

from dsa_profiler.columns import Trace
from dsa_profiler.trace.reader import read
from dsa_profiler.trace.writer import write

PARTS = ("kernels", "launches", "ranges", "graph_nodes", "graph_launches")


def assert_same(a: Trace, b: Trace) -> None:
    assert a.strings == b.strings
    for part in PARTS:
        for f in dataclasses.fields(getattr(a, part)):
            left, right = getattr(getattr(a, part), f.name), getattr(getattr(b, part), f.name)
            np.testing.assert_array_equal(left, right, f"{part}.{f.name}")


@pytest.mark.parametrize("graph", ["none", "node", "graph"])
def test_what_is_written_reads_back_the_same(tmp_path: Path, graph: str) -> None:
    trace = trace_factory.dsa_trace(graph=graph, processes=2)
    write(trace, tmp_path / "t.sqlite")
    back = read(tmp_path / "t.sqlite")
    assert back.info == trace.info
    assert_same(trace, back)


@pytest.mark.parametrize("generation", trace_factory.GENERATIONS)
def test_every_schema_generation_reads_the_same(tmp_path: Path, generation: str) -> None:
    trace = trace_factory.dsa_trace(graph="node", hops=2)
    back = read(trace_factory.export(trace, tmp_path / "t.sqlite", generation))
    assert back.info.schema_version == generation
    assert back.info.graph_mode == ("node" if generation in ("3.24.0", "3.25.0") else None)
    assert_same(trace, back)
