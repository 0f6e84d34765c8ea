"""From the tables of an nsys export to a `Trace`, whatever file format holds the tables.

Laws: every kernel, copy, call, range and node of a file is in the trace or counted in
`info.skipped_rows`; each distinct string has one id, its rank in sorted order, so ids do not
depend on the order of rows.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from dsa_profiler.columns import (
    NULL,
    PROCESS_MASK,
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
from dsa_profiler.errors import InputError
from dsa_profiler.trace import schema
from dsa_profiler.trace.private import clean_text, private_values
from dsa_profiler.trace.sqlite import Block
from dsa_profiler.trace.strings import MISSING, NO_TEXT, Names

if TYPE_CHECKING:
    from dsa_profiler.columns import Bools, Ints

LATEST = 1 << 62
"""Times at or beyond ± this are no times (2^62 ns: the year 2116 in epoch ns)."""
LONGEST = 1 << 50
"""No event lasts 13 days; bounding a duration keeps sums of thousands of them inside int64."""
BLOCK = 1 << 15


class Source(Protocol):
    """A file with nsys' tables: `sqlite.Sqlite` or `parquet.Parquet`."""

    def columns(self, table: str) -> tuple[str, ...]: ...
    def load(self, table: str, names: Sequence[str], text: str = "") -> Block: ...
    def rows(self, table: str, names: Sequence[str]) -> list[tuple[Any, ...]]: ...
    def strings(self, table: str, used: set[int]) -> dict[int, str]: ...


def assemble(source: Source, path: Path) -> Trace:
    """All columns of an export. A file without any of nsys' tables is refused."""
    if not any(source.columns(table) for table in schema.KNOWN):
        raise InputError(
            "trace-foreign",
            f"{path.name} has none of the tables of an nsys export",
            "export the report with: nsys export --type sqlite REPORT.nsys-rep",
        )
    skipped: Counter[str] = Counter()
    names = Names()
    kernels = _kernels(source, names, skipped)
    launches = _launches(source, skipped)
    nodes = _graph_nodes(source, skipped)
    graphs = _graph_launches(source, skipped)
    export = _export_metadata(source)
    shift = _shift(export)
    duration = _duration(source)
    if duration is None:
        events = source.load(schema.NVTX, ("start", "end"))
        duration = _after(kernels, launches, graphs, events) - shift
    ranges, domains = _ranges(source, names, duration + shift, skipped)
    strings = names.finish(lambda used: source.strings(schema.STRINGS, used))
    return Trace(
        info=_info(source, export, duration, domains and not len(ranges), skipped),
        kernels=_earlier(kernels, shift),
        launches=_earlier(launches, shift),
        ranges=_earlier(ranges, shift),
        graph_nodes=_earlier(nodes, shift),
        graph_launches=_earlier(graphs, shift),
        strings=strings,
    )


Part = TypeVar("Part", Kernels, Launches, Ranges, GraphNodes, GraphLaunches)


def _earlier(part: Part, shift: int) -> Part:
    """The same rows on the clock of the collection; an export may have shifted them."""
    return replace(part, start=part.start - shift, end=part.end - shift) if shift else part


def _kernels(source: Source, names: Names, skipped: Counter[str]) -> Kernels:
    """Kernels, copies and memsets, in this order."""
    kinds = (schema.KIND_KERNEL, schema.KIND_MEMCPY, schema.KIND_MEMSET)
    parts = [p for p in (_activity(source, k, names, skipped) for k in kinds) if len(p[0])]
    if not parts:
        return Kernels(*[np.empty(0, np.int64)] * 9)
    columns = parts[0] if len(parts) == 1 else [np.concatenate(c) for c in zip(*parts, strict=True)]
    names.add(columns[7])
    return Kernels(*columns)


def _activity(source: Source, kind: int, names: Names, skipped: Counter[str]) -> list[Ints]:
    table = (schema.KERNEL, schema.MEMCPY, schema.MEMSET)[kind]
    label = {0: ("demangledName", "shortName"), 1: ("copyKind",), 2: ()}[kind]
    ids = ("deviceId", "streamId", "globalPid", "correlationId", "graphNodeId")
    have = source.columns(table)
    name_column = next((c for c in label if c in have), "")
    wanted = ("start", "end", *ids, *((name_column,) if name_column else ()))
    block = source.load(table, wanted)
    keep = _usable(block, table, skipped)
    columns = [_kept(block[c], keep) for c in wanted[:7]]
    if (columns[6] == 0).any():  # CUPTI's word for "launched by no graph"
        columns[6] = np.where(columns[6] == 0, NULL, columns[6])
    if kind == schema.KIND_KERNEL:
        raw = block[name_column] if name_column else np.full(len(block), NULL, np.int64)
        name = names.ids(_kept(raw, keep))
        name[name == NULL] = names.plain(MISSING)
    elif name_column:
        copies, index = np.unique(_kept(block[name_column], keep), return_inverse=True)
        plain = [names.plain(schema.copy_name(int(k))) for k in copies]
        name = np.array([*plain, NULL], np.int64)[index]
    else:
        text = schema.MEMSET_NAME if kind == schema.KIND_MEMSET else schema.copy_name(0)
        name = np.full(len(columns[0]), names.plain(text), np.int64)
    return [*columns, name, np.broadcast_to(np.int64(kind), len(name))]


def _launches(source: Source, skipped: Counter[str]) -> Launches:
    wanted = ("start", "end", "globalTid", "correlationId")
    block = source.load(schema.RUNTIME, wanted)
    keep = _usable(block, schema.RUNTIME, skipped)
    return Launches(*(_kept(block[c], keep) for c in wanted))


def _graph_nodes(source: Source, skipped: Counter[str]) -> GraphNodes:
    wanted = ("start", "end", "globalTid", "graphNodeId", "originalGraphNodeId")
    table = next((t for t in schema.GRAPH_NODES if "graphNodeId" in source.columns(t)), "")
    block = source.load(table, wanted)
    keep = _usable(block, table, skipped)
    return GraphNodes(*(_kept(block[c], keep) for c in wanted))


def _graph_launches(source: Source, skipped: Counter[str]) -> GraphLaunches:
    wanted = ("start", "end", "deviceId", "streamId", "globalPid", "correlationId")
    block = source.load(schema.GRAPH_TRACE, wanted)
    keep = _usable(block, schema.GRAPH_TRACE, skipped)
    return GraphLaunches(*(_kept(block[c], keep) for c in wanted))


def _ranges(
    source: Source, names: Names, duration: int, skipped: Counter[str]
) -> tuple[Ranges, bool]:
    """Ranges with a length or an instant, and whether any domain was registered.

    A range of length zero keeps its row but does not nest: it cannot enclose a call, and interval
    nesting by sorted starts is only exact without it. The same holds for one that ends on another
    thread. A range without an end was open when collection stopped and ends there.
    """
    wanted = ("start", "end", "eventType", "globalTid", "endGlobalTid", "domainId", "textId")
    block = source.load(schema.NVTX, wanted, "text")
    if block.skipped:
        skipped[f"{schema.NVTX}: not an integer"] += block.skipped
    kind = block["eventType"]
    text = names.plains(block.text, block.texts)
    if (block["textId"] != NULL).any():
        text = np.where(text == NULL, names.ids(block["textId"]), text)

    push_pop = (kind == schema.PUSH_POP[0]) | (kind == schema.PUSH_POP[1])
    start_end = (kind == schema.START_END[0]) | (kind == schema.START_END[1])
    domains = _domains(block, text, kind == schema.DOMAIN)
    some = push_pop | start_end
    only = None if some.all() else some
    order = ("start", "end", "globalTid", "endGlobalTid", "domainId")
    start, end, thread, ender, domain_id = (_kept(block[c], only) for c in order)
    text = _kept(text, only)
    text[text == NULL] = names.plain(NO_TEXT)
    open_end = end == NULL
    truncated = open_end | (end == duration)
    if open_end.any():
        end = np.where(open_end, np.maximum(duration, start), end)
    nests = _kept(push_pop, only) & (end > start) & ((ender == NULL) | (ender == thread))
    domain = _domain_of(thread, domain_id, domains)

    keep = _plausible(start, end, schema.NVTX, skipped)
    columns = (start, end, thread, text, domain, nests, truncated)
    ranges = Ranges(*(_kept(c, keep) for c in columns))
    names.add(ranges.text)
    names.add(ranges.domain)
    return ranges, bool(domains)


def _domains(block: Block, text: Ints, rows: Bools) -> dict[tuple[int, int], int]:
    """Interim name of each (process, domain id); ids are reused between processes."""
    process = block["globalTid"][rows] & PROCESS_MASK
    keys = zip(process.tolist(), block["domainId"][rows].tolist(), strict=True)
    return dict(zip(keys, text[rows].tolist(), strict=True))


def _domain_of(thread: Ints, domain: Ints, names: dict[tuple[int, int], int]) -> Ints:
    rows = np.flatnonzero(domain > 0)
    if not len(rows) or not names:
        return np.broadcast_to(np.int64(NULL), len(domain))
    out = np.full(len(domain), NULL, np.int64)
    processes, p = np.unique(thread[rows] & PROCESS_MASK, return_inverse=True)
    ids, d = np.unique(domain[rows], return_inverse=True)
    pairs, index = np.unique(p * len(ids) + d, return_inverse=True)
    found = [
        names.get((int(processes[k // len(ids)]), int(ids[k % len(ids)])), NULL)
        for k in pairs.tolist()
    ]
    out[rows] = np.array(found, np.int64)[index]
    return out


def _usable(block: Block, table: str, skipped: Counter[str]) -> Bools | None:
    if block.skipped:
        skipped[f"{table}: not an integer"] += block.skipped
    return _plausible(block["start"], block["end"], table, skipped)


def _plausible(start: Ints, end: Ints, table: str, skipped: Counter[str]) -> Bools | None:
    """Rows whose times can be times; None for all of them, the usual case, which copies nothing."""
    if all(_sound(start[i : i + BLOCK], end[i : i + BLOCK]) for i in range(0, len(start), BLOCK)):
        return None
    length = end - start
    backwards = end < start
    absurd = ~backwards & ((start <= -LATEST) | (end >= LATEST) | (length > LONGEST))
    for reason, bad in (("ends before it starts", backwards), ("time out of range", absurd)):
        if count := int(np.count_nonzero(bad)):
            skipped[f"{table}: {reason}"] += count
    return ~(backwards | absurd)


def _sound(start: Ints, end: Ints) -> bool:
    """Whether all rows of a block, small enough for the cache, have times that can be times."""
    length = end - start
    inside = int(start.min()) > -LATEST and int(end.max()) < LATEST
    return inside and int(length.min()) >= 0 and int(length.max()) <= LONGEST


def _kept(column: np.ndarray[Any, Any], keep: Bools | None) -> Any:
    return column if keep is None else column[keep]


def _duration(source: Source) -> int | None:
    found = [d for (d,) in source.rows(schema.DETAILS, ("duration",)) if isinstance(d, int)]
    return max(found, default=None)


def _after(*parts: Kernels | Launches | GraphLaunches | Block) -> int:
    """A collection end for files that do not tell: one past the last event, so none is cut off."""
    columns = [p["end"] if isinstance(p, Block) else p.end for p in parts]
    return 1 + max((int(c[c < LATEST].max(initial=0)) for c in columns), default=0)


def _export_metadata(source: Source) -> dict[str, str]:
    return {
        str(name): str(value)
        for table in schema.EXPORT
        for name, value in source.rows(table, ("name", "value"))
    }


def _shift(export: Mapping[str, str]) -> int:
    """What `--ts-normalize` or `--ts-shift` added to every time; taken off again here."""
    text = export.get(schema.TIME_SHIFT, "0")
    value = int(text) if re.fullmatch(r"-?\d{1,19}", text) else 0
    return value if abs(value) < LATEST else 0


def _info(
    source: Source,
    export: Mapping[str, str],
    duration: int,
    bare_domains: bool,
    skipped: Counter[str],
) -> TraceInfo:
    product = (export.get("EXPORT_PRODUCT_NAME", ""), export.get("EXPORT_PRODUCT_VERSION", ""))
    options = _options(source)
    modes = {v.lower() for k, v in options.items() if k.endswith(schema.GRAPH_MODE)}
    return TraceInfo(
        producer=" ".join(p for p in product if p) or "unknown",
        schema_version=export.get(schema.SOURCE_SCHEMA)
        or export.get("EXPORT_SCHEMA_VERSION", "unknown"),
        duration_ns=duration,
        gpus=_gpus(source),
        graph_mode=next((m for m in ("graph", "node") if m in modes), None),
        diagnostics=_diagnostics(source),
        options=options,
        domains_without_ranges=bare_domains,
        skipped_rows=_all_skipped(skipped, export.get(schema.SKIPPED_ROWS)),
    )


def _diagnostics(source: Source) -> tuple[Diagnostic, ...]:
    """What nsys had to say, cleaned of what it says about the machine."""
    rows = source.rows(schema.DIAGNOSTIC, ("severity", "text"))
    private = private_values(source) if rows else ()
    return tuple(
        Diagnostic(severity if isinstance(severity, int) else 1, clean_text(text, private))
        for severity, text in rows
        if isinstance(text, str)
    )


def _all_skipped(here: Counter[str], earlier: str | None) -> dict[str, int]:
    """Rows left out now, and those left out when we wrote the file."""
    try:
        before = json.loads(earlier) if earlier else {}
    except ValueError:
        before = {}
    if isinstance(before, dict):
        here.update({str(k): v for k, v in before.items() if type(v) is int and v > 0})
    return dict(sorted(here.items()))


def _options(source: Source) -> dict[str, str]:
    """Capture options, by the allow-list: the same table holds every environment variable."""
    found: dict[str, str] = {}
    for name, value in source.rows(schema.CAPTURE, ("name", "value")):
        known = isinstance(name, str) and re.fullmatch(r"(PROCESS_\d+:)?(.+)", name)
        if known and known[2] in schema.OPTIONS and re.fullmatch(schema.OPTION_VALUE, str(value)):
            found[str(name)] = str(value)
    return dict(sorted(found.items()))


def _gpus(source: Source) -> tuple[Gpu, ...]:
    """The GPUs that processes used, where the file says so; else all GPUs of the node."""
    used = {i for (i,) in source.rows(schema.CUDA_DEVICE, ("gpuId",)) if i is not None}
    wanted = ("id", "name", "computeMajor", "computeMinor", "smCount")
    rows = [r for r in source.rows(schema.GPU, wanted) if isinstance(r[0], int)]
    listed = [r for r in rows if r[0] in used] or rows
    return tuple(
        Gpu(
            name=str(name or "unknown"),
            sm=major * 10 + minor if isinstance(major, int) and isinstance(minor, int) else None,
            sm_count=count if isinstance(count, int) else None,
        )
        for _, name, major, minor, count in sorted(listed, key=lambda r: r[0])
    )
