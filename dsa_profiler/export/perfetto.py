"""A trace as trace-event JSON, for Perfetto (ui.perfetto.dev opens it from disk) and chrome://tracing.

Tracks: a host process with its threads (ranges, and the calls that launched something), and a
process a GPU with its streams and a track a stage. Flow arrows lead from a launch to its kernel.
Slices of a track always nest: what would cross another slice goes to a further lane of its track.

Format: Trace Event Format (Google, 2016), complete events `X`, metadata `M`, flows `s` and `f`.
`ts` and `dur` are microseconds there, written to the nanosecond.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dsa_profiler import __version__
from dsa_profiler.columns import PROCESS_MASK
from dsa_profiler.marks import STAGES
from dsa_profiler.session import replacing

if TYPE_CHECKING:
    from dsa_profiler.columns import Trace

Event = dict[str, Any]
KINDS = ("kernel", "memcpy", "memset")


class Slice(NamedTuple):
    """One bar of a track. `row` is the row it comes from, for flows."""

    start: int
    end: int
    name: str
    category: str
    row: int
    args: dict[str, Any]


class Track(NamedTuple):
    """A track's place: its process, the name of the process, and its own name; in this order."""

    process: tuple[int, int, int]
    process_name: str
    order: int
    name: str


def write(trace: Trace, stages: Sequence[int], launches: Sequence[int], path: Path) -> Path:
    """Write the trace; a path that ends in .gz is compressed. Same input, same bytes.

    stages    per kernel, its index in marks.STAGES.
    launches  per kernel, the row of its launch or -1.
    """
    document = {
        "displayTimeUnit": "ns",
        "otherData": {"tool": f"dsa_profiler {__version__}", "producer": trace.info.producer},
        "traceEvents": list(events(trace, stages, launches)),
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    if path.suffix == ".gz":
        text = gzip.compress(text, 6, mtime=0)
    with replacing(path) as part:
        part.write_bytes(text)
    return path


def events(trace: Trace, stages: Sequence[int], launches: Sequence[int]) -> Iterator[Event]:
    """All events: metadata of a track, then its slices by time, then the flows."""
    tracks = _tracks(trace, stages, launches)
    pids = {p: i for i, p in enumerate(sorted({t.process for t in tracks}), start=1)}
    threads: dict[int, int] = defaultdict(int)
    named: set[int] = set()
    launched: dict[int, tuple[int, int, float]] = {}
    ran: dict[int, tuple[int, int, float]] = {}
    for track in sorted(tracks):
        pid = pids[track.process]
        if pid not in named:
            named.add(pid)
            yield _metadata("process_name", pid, 0, name=track.process_name)
            yield _metadata("process_sort_index", pid, 0, sort_index=pid)
        for number, lane in enumerate(nested(tracks[track])):
            threads[pid] += 1
            tid = threads[pid]
            name = track.name if not number else f"{track.name} ({number + 1})"
            yield _metadata("thread_name", pid, tid, name=name)
            yield _metadata("thread_sort_index", pid, tid, sort_index=tid)
            for bar in lane:
                yield _complete(bar, pid, tid)
                if bar.category == "launch":
                    launched[bar.row] = (pid, tid, bar.start / 1e3)
                elif bar.category in KINDS:
                    ran[bar.row] = (pid, tid, bar.start / 1e3)
    yield from _flows(launches, launched, ran)


def nested(bars: Iterable[Slice]) -> list[list[Slice]]:
    """Bars spread over as few lanes as greed finds, such that those of a lane nest or follow."""
    lanes: list[tuple[list[Slice], list[int]]] = []
    for bar in sorted(bars, key=lambda b: (b.start, -b.end, b.name, b.row)):
        for lane, ends in lanes:
            while ends and ends[-1] <= bar.start:
                ends.pop()
            if not ends or bar.end <= ends[-1]:
                lane.append(bar)
                ends.append(bar.end)
                break
        else:
            lanes.append(([bar], [bar.end]))
    return [lane for lane, _ in lanes]


def _tracks(
    trace: Trace, stages: Sequence[int], launches: Sequence[int]
) -> dict[Track, list[Slice]]:
    tracks: dict[Track, list[Slice]] = defaultdict(list)
    text = trace.strings
    ranges = trace.ranges
    columns = (ranges.start, ranges.end, ranges.thread, ranges.text)
    for row, (start, end, thread, name) in enumerate(
        zip(*(c.tolist() for c in columns), strict=True)
    ):
        bar = Slice(start, max(start, end), text.get(name, ""), "range", row, {})
        tracks[_thread(thread, 0, "ranges")].append(bar)
    calls = trace.launches
    used = {row for row in launches if row >= 0}
    for row in sorted(used):
        start, end = int(calls.start[row]), int(calls.end[row])
        bar = Slice(start, max(start, end), "launch", "launch", row,
                    {"correlation": int(calls.correlation[row])})  # fmt: skip
        tracks[_thread(int(calls.thread[row]), 1, "launches")].append(bar)
    _gpu_tracks(trace, stages, tracks)
    return tracks


def _gpu_tracks(trace: Trace, stages: Sequence[int], tracks: dict[Track, list[Slice]]) -> None:
    kernels = trace.kernels
    columns = (kernels.start, kernels.end, kernels.process, kernels.device, kernels.stream,
               kernels.name, kernels.kind, kernels.correlation)  # fmt: skip
    rows = zip(*(c.tolist() for c in columns), strict=True)
    for row, (start, end, process, device, stream, name, kind, correlation) in enumerate(rows):
        stage = STAGES[stages[row]]
        category = KINDS[kind] if 0 <= kind < len(KINDS) else KINDS[0]
        args = {"stage": stage, "correlation": correlation, "stream": stream}
        label = trace.strings.get(name, "")
        place = (1, _pid(process), device)
        title = f"GPU {device} of process {_pid(process)}"
        end = max(start, end)
        tracks[Track(place, title, stream, f"stream {stream}")].append(
            Slice(start, end, label, category, row, args)
        )
        order = (1 << 40) + stages[row]
        tracks[Track(place, title, order, f"stage {stage}")].append(
            Slice(start, end, label, "stage", row, args)
        )


def _thread(thread: int, order: int, what: str) -> Track:
    process, tid = _pid(thread), thread & 0xFFFFFF
    return Track((0, process, 0), f"process {process}", tid * 2 + order, f"thread {tid} {what}")


def _pid(thread: int) -> int:
    """The operating system's number in nsys' global id: hw(8) vm(8) pid(24) tid(24)."""
    return ((thread & PROCESS_MASK) >> 24) & 0xFFFFFF


def _complete(bar: Slice, pid: int, tid: int) -> Event:
    event: Event = {"ph": "X", "name": bar.name, "cat": bar.category, "pid": pid, "tid": tid}
    event |= {"ts": bar.start / 1e3, "dur": (bar.end - bar.start) / 1e3}
    return {**event, "args": bar.args} if bar.args else event


def _metadata(what: str, pid: int, tid: int, **args: Any) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}


def _flows(
    launches: Sequence[int],
    launched: dict[int, tuple[int, int, float]],
    ran: dict[int, tuple[int, int, float]],
) -> Iterator[Event]:
    """An arrow a kernel: `s` at its launch, `f` at its start, with an id of its own."""
    for kernel, launch in enumerate(launches):
        if launch not in launched or kernel not in ran:
            continue
        for phase, (pid, tid, ts) in (("s", launched[launch]), ("f", ran[kernel])):
            event = {"ph": phase, "name": "launch", "cat": "flow", "id": kernel + 1}
            event |= {"pid": pid, "tid": tid, "ts": ts}
            yield {**event, "bp": "e"} if phase == "f" else event
