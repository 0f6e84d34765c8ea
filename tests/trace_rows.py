"""Traces from rows: a few tuples become the columns, for tests that state every number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dsa_profiler.columns import (
    NULL,
    GraphLaunches,
    GraphNodes,
    Kernels,
    Launches,
    Ranges,
    Trace,
    TraceInfo,
)

INFO = TraceInfo("rows", "3.25.0", 1 << 40)


def process(pid: int, hw: int = 0) -> int:
    """A globalPid; a hardware id above 0x7F makes it negative."""
    value = hw << 56 | 1 << 48 | pid << 24
    return value - (1 << 64) if value >= 1 << 63 else value


def trace(
    kernels: Sequence[dict[str, Any]] = (),
    launches: Sequence[tuple[int, int, int, int]] = (),
    ranges: Sequence[dict[str, Any]] = (),
    nodes: Sequence[tuple[int, int, int, int, int]] = (),
    graphs: Sequence[tuple[int, int, int, int, int, int]] = (),
    info: TraceInfo = INFO,
) -> Trace:
    """kernels: start, end, process, correlation and more; ranges: start, end, thread, text."""
    strings: dict[str, int] = {}

    def text(value: str | None) -> int:
        return NULL if value is None else strings.setdefault(value, len(strings))

    columns = {
        name: [k.get(name, default) for k in kernels]
        for name, default in (
            ("start", 0), ("end", 1), ("device", 0), ("stream", 7), ("process", process(1)),
            ("correlation", NULL), ("graph_node", NULL), ("name", "kernel"), ("kind", 0),
        )
    }  # fmt: skip
    columns["name"] = [text(name) for name in columns["name"]]
    return Trace(
        info,
        Kernels(*(_ints(c) for c in columns.values())),
        Launches(*_columns(launches, 4)),
        Ranges(
            _ints([r["start"] for r in ranges]),
            _ints([r["end"] for r in ranges]),
            _ints([r.get("thread", process(1) | 1) for r in ranges]),
            _ints([text(r["text"]) for r in ranges]),
            _ints([text(r.get("domain")) for r in ranges]),
            np.array([r.get("nests", True) for r in ranges], np.bool_),
            np.array([r.get("truncated", False) for r in ranges], np.bool_),
        ),
        GraphNodes(*_columns(nodes, 5)),
        GraphLaunches(*_columns(graphs, 6)),
        {number: value for value, number in strings.items()},
    )


def shuffled(source: Trace, seed: int = 1) -> Trace:
    """The same trace with the rows of every table in another order, and strings renumbered."""
    rng = np.random.default_rng(seed)
    ids = list(source.strings)
    moved = dict(zip(ids, (1_000 + 3 * rng.permutation(len(ids))).tolist(), strict=True))

    def shuffle(table: Any, names: tuple[str, ...]) -> Any:
        order = rng.permutation(len(table))
        columns = {f: getattr(table, f)[order] for f in type(table).__dataclass_fields__}
        for name in names:
            columns[name] = _ints([moved.get(n, n) for n in columns[name].tolist()])
        return type(table)(**columns)

    return replace(
        source,
        kernels=shuffle(source.kernels, ("name",)),
        launches=shuffle(source.launches, ()),
        ranges=shuffle(source.ranges, ("text", "domain")),
        graph_nodes=shuffle(source.graph_nodes, ()),
        graph_launches=shuffle(source.graph_launches, ()),
        strings={moved[n]: source.strings[n] for n in reversed(ids)},
    )


def _ints(values: Sequence[int]) -> Any:
    return np.array(values, np.int64)


def _columns(rows: Sequence[tuple[int, ...]], width: int) -> list[Any]:
    return [_ints([row[n] for row in rows]) for n in range(width)]
