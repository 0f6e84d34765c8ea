"""Chrome traces of torch.profiler (Kineto): torch itself, vLLM, SGLang, TensorRT-LLM.

Read: kernels, copies and memsets; runtime and driver calls as launches; `user_annotation` events
(record_function and the like) as ranges. Operators (`cpu_op`) and Python frames are not ranges:
they would come between a kernel and the mark that encloses its launch. `ts` and `dur` are
microseconds with decimals and become whole nanoseconds by decimal arithmetic, since a double
cannot hold the nanoseconds of an epoch time. The first event starts at 0.

A kernel event says its device, not its process. Where a file holds several processes, a device's
kernels belong to the process whose calls launched them: the one with the most matching correlation
ids before the kernels' starts, of equals the one with the shortest way from call to kernel.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.columns import (
    NULL,
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
from dsa_profiler.trace.strings import NO_TEXT, Names
from dsa_profiler.trace.tables import LATEST, LONGEST

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints

GZIP = b"\x1f\x8b"
PRODUCER = "torch.profiler"
ACTIVITY = {
    "kernel": schema.KIND_KERNEL,
    "gpu_memcpy": schema.KIND_MEMCPY,
    "memcpy": schema.KIND_MEMCPY,
    "gpu_memset": schema.KIND_MEMSET,
    "memset": schema.KIND_MEMSET,
}
CALLS = frozenset({"cuda_runtime", "cuda_driver", "runtime", "driver"})
ANNOTATION = "user_annotation"
WORD = 1 << 24


@dataclass(slots=True)
class _Events:
    """Rows gathered while the JSON is parsed; times in ns, ids as the file has them."""

    activities: list[tuple[Any, ...]] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    annotations: list[tuple[Any, ...]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    events: int = 0

    def take(self, item: dict[str, Any]) -> dict[str, Any] | None:
        """The hook of the JSON parser: an event becomes a row at once and is forgotten."""
        if "ph" not in item:
            return item
        self.events += 1
        category = str(item.get("cat", "")).lower()
        if item["ph"] != "X" or not (
            category in ACTIVITY or category in CALLS or category == ANNOTATION
        ):
            return None
        start, length = nanoseconds(item.get("ts")), nanoseconds(item.get("dur", 0))
        if start is None or length is None:
            self.skipped[f"{category}: not a time"] += 1
        elif length < 0:
            self.skipped[f"{category}: ends before it starts"] += 1
        elif abs(start) >= LATEST or length > LONGEST:
            self.skipped[f"{category}: time out of range"] += 1
        else:
            self._sort(category, item, start, start + length)
        return None

    def _sort(self, category: str, item: dict[str, Any], start: int, end: int) -> None:
        args = item.get("args")
        args = args if isinstance(args, dict) else {}
        pid, tid, name = item.get("pid"), item.get("tid"), str(item.get("name", ""))
        if category in ACTIVITY:
            device = _whole(args.get("device", args.get("inDevice", pid)))
            stream = _whole(args.get("stream", tid))
            correlation = _whole(args.get("correlation"))
            node = _whole(args.get("graph node id")) or NULL
            kind = ACTIVITY[category]
            row = (start, end, device, stream, _key(pid), correlation, node, name, kind)
            self.activities.append(row)
        elif category in CALLS:
            correlation = _whole(args.get("correlation"))
            self.calls.append((start, end, _key(pid), _key(tid), correlation))
        else:
            self.annotations.append((start, end, _key(pid), _key(tid), name or NO_TEXT))


def read(path: Path) -> Trace:
    """Read a `.json` or `.json.gz`. Raises InputError for other JSON and for a file cut off."""
    events = _Events()
    document = _parse(path, events)
    top = document if isinstance(document, dict) else {}
    if not (events.activities or events.calls or events.annotations):
        raise InputError(
            "trace-foreign",
            f"{path.name} holds no GPU kernel, CUDA call or annotation of torch.profiler"
            + (f" among {events.events} events" if events.events else ""),
            "record with torch.profiler and activities CPU and CUDA, then export_chrome_trace",
        )
    return _assemble(events, top)


def nanoseconds(value: object) -> int | None:
    """Microseconds as the file writes them to the nearest ns, None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    if isinstance(value, int):
        return value * 1000
    whole, _, part = value.partition(".")
    if len(part) <= 3 and part.isdigit() and whole.lstrip("-").isdigit():
        sign = -1 if whole.startswith("-") else 1
        return int(whole) * 1000 + sign * int(part.ljust(3, "0"))
    try:
        number = Decimal(value)
        return round(number * 1000) if number.adjusted() < 20 else LATEST
    except (InvalidOperation, ValueError, OverflowError):
        return None


def _parse(path: Path, events: _Events) -> object:
    """The JSON with every event already taken out of it; decimals stay text."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw.startswith(GZIP) else raw
        del raw
        return json.loads(data.decode("utf-8", "replace"), object_hook=events.take, parse_float=str)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise InputError(
            "trace-broken",
            f"{path.name} cannot be read as a chrome trace: {str(error) or 'too deeply nested'}",
            "record it again and let the profiler finish writing",
        ) from None


def _whole(value: object) -> int:
    """An id, or NULL for what is none."""
    if isinstance(value, str) and value.lstrip("-").isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= LATEST:
        return NULL
    return value


def _key(value: object) -> int | str:
    """A process or thread id; some events carry a word instead."""
    return value if type(value) is int else str(value)


def _assemble(events: _Events, top: dict[str, Any]) -> Trace:
    rows = (events.activities, events.calls, events.annotations)
    first = min(r[0] for part in rows for r in part)
    last = max(r[1] for part in rows for r in part)
    hosts = [(r[2], r[3]) for part in rows[1:] for r in part]
    threads = _thread_ids(hosts)
    process_of = {pid: thread & ~(WORD - 1) for (pid, _), thread in threads.items()}
    launches = Launches(
        *_columns(((r[0] - first, r[1] - first, threads[r[2:4]], r[4]) for r in events.calls), 4)
    )
    names = Names()
    kernels = _kernels(events, process_of, names, first)
    ranges = _ranges(events, threads, names, first)
    names.add(kernels.name)
    names.add(ranges.text)
    none = np.empty(0, np.int64)
    return Trace(
        info=_info(top, last - first + 1, events),
        kernels=kernels,
        launches=launches,
        ranges=ranges,
        graph_nodes=GraphNodes(*[none] * 5),
        graph_launches=GraphLaunches(*[none] * 6),
        strings=names.finish(lambda used: {}),
    )


def _kernels(events: _Events, process_of: dict[Any, int], names: Names, first: int) -> Kernels:
    owner = _owners(events, process_of)
    rows = []
    for start, end, device, stream, pid, correlation, node, name, kind in sorted(
        events.activities, key=lambda r: r[8]
    ):
        text = names.plain(_name(name, kind))
        where = (device, stream, owner[pid], correlation, node)
        rows.append((start - first, end - first, *where, text, kind))
    return Kernels(*_columns(rows, 9))


def _ranges(
    events: _Events, threads: dict[tuple[Any, Any], int], names: Names, first: int
) -> Ranges:
    rows = (
        (r[0] - first, r[1] - first, threads[r[2:4]], names.plain(r[4])) for r in events.annotations
    )
    start, end, thread, text = _columns(rows, 4)
    domain = np.full(len(start), NULL, np.int64)
    return Ranges(start, end, thread, text, domain, end > start, np.zeros(len(start), np.bool_))


def _columns(rows: Iterable[Sequence[int]], width: int) -> list[Ints]:
    """Rows of ints as contiguous columns."""
    table = np.fromiter(rows, dtype=np.dtype((np.int64, width)))
    return [np.ascontiguousarray(table[:, i]) for i in range(width)]


def _thread_ids(hosts: Iterable[tuple[Any, Any]]) -> dict[tuple[Any, Any], int]:
    """Ids of (pid, tid) packed as nsys does; ids that do not fit 24 bits are counted from 1."""
    pairs = sorted(set(hosts), key=lambda p: (str(type(p[0])), p[0], str(type(p[1])), p[1]))
    pids = _small(list(dict.fromkeys(p for p, _ in pairs)))
    ids: dict[tuple[Any, Any], int] = {}
    for pid, small in pids.items():
        tids = _small([t for p, t in pairs if p == pid])
        ids |= {(pid, tid): 1 << 48 | small << 24 | low for tid, low in tids.items()}
    return ids


def _small(values: list[Any]) -> dict[Any, int]:
    fits = all(isinstance(v, int) and 0 <= v < WORD for v in values)
    return {v: v if fits else i for i, v in enumerate(values, 1)}


def _owners(events: _Events, process_of: dict[Any, int]) -> dict[Any, int]:
    """The process of each pid under which kernels stand: usually a device's number."""
    groups = dict.fromkeys(r[4] for r in events.activities)
    if len(process_of) <= 1:
        return dict.fromkeys(groups, next(iter(process_of.values()), NULL))
    called: dict[int, dict[Any, int]] = {}
    for start, _, pid, _, correlation in events.calls:
        called.setdefault(correlation, {}).setdefault(pid, start)
    votes: dict[Any, dict[Any, tuple[int, int]]] = {pid: {} for pid in groups}
    for start, _, _, _, group, correlation, *_ in events.activities:
        for pid, launch in called.get(correlation, {}).items():
            if launch <= start:
                count, nearness = votes[group].get(pid, (0, 0))
                votes[group][pid] = (count + 1, nearness + launch - start)
    return {
        group: process_of[max(found, key=lambda pid: (found[pid], process_of[pid]))]
        if (found := votes[group])
        else process_of.get(group, NULL)
        for group in groups
    }


def _name(name: str, kind: int) -> str:
    if kind == schema.KIND_MEMSET:
        return schema.MEMSET_NAME
    if kind == schema.KIND_MEMCPY:
        words = name.split()
        known = len(words) > 1 and words[1] in schema.COPY_KINDS.values()
        return f"[memcpy {words[1]}]" if known else schema.copy_name(0)
    return name


def _info(top: dict[str, Any], duration: int, events: _Events) -> TraceInfo:
    devices = top.get("deviceProperties")
    distributed = top.get("distributedInfo")
    rank = _whole(distributed.get("rank")) if isinstance(distributed, dict) else NULL
    return TraceInfo(
        producer=PRODUCER,
        schema_version=f"kineto {_whole(top.get('schemaVersion', 0))}",
        duration_ns=duration,
        gpus=tuple(_gpu(d) for d in devices if isinstance(d, dict))
        if isinstance(devices, list)
        else (),
        options={} if rank == NULL else {schema.RANK: str(rank)},
        skipped_rows=dict(sorted(events.skipped.items())),
    )


def _gpu(device: dict[str, Any]) -> Gpu:
    major, minor, count = (
        _whole(device.get(k)) for k in ("computeMajor", "computeMinor", "numSms")
    )
    return Gpu(
        name=str(device.get("name", "unknown")),
        sm=None if NULL in (major, minor) else major * 10 + minor,
        sm_count=None if count == NULL else count,
    )
