"""Kills a sweep at random moments and checks what is left: `python tests/fault_harness.py -n 100`.

One trial: start a sweep as a process of its own; kill its parent, its profiler, its worker or (on a
local Ray cluster) a node at a moment drawn from the seed, or as soon after it as that is there; run
it again until it is whole; look for what must not be: a finished case lost or measured twice, a
wrong outcome, a stray process, a left-over file, a byte that differs from an uninterrupted sweep
and that no clock had a say in (`timeless.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import timeless

from dsa_profiler import marks
from dsa_profiler import session as sessions
from dsa_profiler.capture import child
from dsa_profiler.session import Session
from dsa_profiler.trace import reader

HERE = Path(__file__).parent
TARGETS = ("parent", "profiler", "worker", "node")
WANTED = {"session.json", "chunk.json", "outcome.jsonl", "trace.sqlite", "log.txt",
          "analysis.sqlite"}  # fmt: skip
TIMEOUT_S = 600
RECORDING = 0.7
"""The share of a sweep after which there may be no other target than the parent."""


@dataclass
class Trial:
    """What one trial found; `faults` is empty when every law held."""

    seed: int
    target: str
    moment_s: float
    hit: bool = False
    done_before: int = 0
    runs: int = 1
    faults: list[str] = field(default_factory=list)


@dataclass
class Calm:
    """The sweep when nobody kills anything: the span that moments are drawn from, and its end."""

    seconds: float
    outcome: str


def target_of(seed: int) -> str:
    return TARGETS[seed % len(TARGETS)]


def command(folder: Path, tracer: str, *more: str) -> list[str]:
    """The sweep of a trial: four cases of a tiny model in chunks of two, or its resumption."""
    return [sys.executable, "-m", "dsa_profiler", "run", "--output", str(folder), "--name", "s",
            "-q", "--chunk-cases", "2", "--tracer", tracer, "--device", "cpu", *more]  # fmt: skip


GRID = ("--model", str(HERE / "capture_model"), "--batch-sizes", "1,2", "--seq-lens", "8,24",
        "--warmup", "1", "--iterations", "3", "--mode", "generation")  # fmt: skip


class Nodes:
    """A local Ray cluster: a head, and two nodes that say they have a GPU each."""

    def __init__(self, home: Path) -> None:
        from ray.cluster_utils import Cluster

        home.mkdir()
        os.environ["TMPDIR"], tempfile.tempdir = str(home), None
        self.home = home
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            self.cluster.add_node(num_cpus=1, num_gpus=1)
        self.cluster.wait_for_nodes()

    @property
    def flags(self) -> tuple[str, str]:
        return "--ray", self.cluster.address

    def busy(self) -> list[int]:
        """The processes of a node that records; none while no node does."""
        for node in self.cluster.worker_nodes:
            found = [held.process.pid for of in node.all_processes.values() for held in of]
            for pid in found:
                tasks = Path(f"/proc/{pid}/task").glob("*/children")
                with contextlib.suppress(OSError):
                    found += [int(c) for path in tasks for c in path.read_text("ascii").split()]
            if any(b"dsa_profiler.workloads.worker" in word for p in found for word in _words(p)):
                return found
        return []

    def left(self) -> list[str]:
        """Folders and processes of jobs; a guard may need a moment."""
        deadline = time.monotonic() + 10
        while True:
            found = [f"left on a node: {p.name}" for p in self.home.glob("dsa-profiler-*")]
            found += [f"stray process {pid}" for pid in child.members(self.home)]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.1)


@contextlib.contextmanager
def _place(target: str) -> Iterator[tuple[Path, Nodes | None]]:
    """A folder of its own for a trial, and nodes where it is about one; all of it is removed."""
    folder = Path(tempfile.mkdtemp(prefix="dsa-fault-", dir="/tmp"))
    nodes = Nodes(folder / "n") if target == "node" else None
    try:
        yield folder, nodes
    finally:
        if nodes is not None:
            nodes.cluster.shutdown()
        child.end(folder)
        shutil.rmtree(folder, ignore_errors=True)


def trial(seed: int, calm: Calm, tracer: str = "nsys") -> Trial:
    """Run one trial."""
    target = target_of(seed)
    span = calm.seconds if target == "parent" else RECORDING * calm.seconds
    report = Trial(seed, target, random.Random(seed).uniform(0, span))
    with _place(target) as (folder, nodes):
        more = nodes.flags if nodes else ()
        session = folder / "traces/s"
        parent = _start(command(folder, tracer, *GRID, *more))
        time.sleep(report.moment_s)
        while not report.hit and parent.poll() is None:
            report.hit = _kill(parent, session, target, nodes)
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            parent.wait(TIMEOUT_S)
        if parent.poll() is None:
            report.faults.append("never ended")
            parent.kill()
        before = _load(session)
        prints = _prints(session, before)
        report.done_before = len(prints)
        for report.runs in range(2, 6):
            flags = GRID if before is None else ("--resume", "--retry", "all")
            if _start(command(folder, tracer, *flags, *more)).wait(TIMEOUT_S) == 0:
                break
        else:
            report.faults.append(f"not whole after {report.runs} runs")
        report.faults += _check(session, prints) + (nodes.left() if nodes else [])
        if not report.faults:
            report.faults += _differences(calm.outcome, timeless.of(session))
    return report


def _differences(calm: str, killed: str) -> list[str]:
    lines = difflib.unified_diff(calm.splitlines(), killed.splitlines(), n=0, lineterm="")
    return [f"not as uninterrupted: {' '.join(line.split())}" for line in lines][:6]


def _start(arguments: list[str]) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(arguments, stdout=quiet, stderr=quiet, env=env)


def _kill(parent: subprocess.Popen[bytes], session: Path, target: str, nodes: Nodes | None) -> bool:
    """SIGKILL to the target, if it lives; the worker says its own process id."""
    if target == "parent":
        parent.kill()
        return True
    if nodes is not None:
        doomed = nodes.busy()
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(doomed)
    for pid in child.members(session):
        words = _words(pid)
        is_profiler = words[0].endswith(b"nsys") and b"profile" in words
        is_worker = words[1:3] == [b"-m", b"dsa_profiler.workloads.worker"]
        if is_profiler if target == "profiler" else is_worker:
            return child.send(pid, session, signal.SIGKILL)
    return False


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]


def _load(session: Path) -> Session | None:
    return sessions.load(session) if (session / sessions.MANIFEST).exists() else None


def _prints(session: Path, found: Session | None) -> dict[str, tuple[str, str]]:
    """Every finished case with its chunk and the digest of its trace."""
    if found is None:
        return {}
    return {
        case.slug: (o.chunk, _digest(session / "chunks" / o.chunk / "trace.sqlite"))
        for case, o in found.outcomes.items()
        if o.status == "done"
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check(session: Path, before: dict[str, tuple[str, str]]) -> list[str]:
    found = sessions.load(session)
    faults = [f"not done: {c.slug}" for c in found.plan.cases if c not in found.outcomes]
    faults += [f"{o.status}: {c.slug}" for c, o in found.outcomes.items() if o.status != "done"]
    after = _prints(session, found)
    faults += [f"lost or changed: {slug}" for slug, p in before.items() if after.get(slug) != p]
    for chunk in found.chunks:
        mine = {c.slug for c, o in found.outcomes.items() if o.chunk == chunk.name}
        seen = _case_marks(session / chunk.trace) if chunk.trace else Counter()
        faults += [
            f"{seen[slug]} marks of {slug} in {chunk.name}" for slug in mine if seen[slug] != 1
        ]
    deadline = time.monotonic() + 5
    while child.members(session) and time.monotonic() < deadline:
        time.sleep(0.1)
    faults += [f"stray process {pid}" for pid in child.members(session)]
    files = [p for p in session.rglob("*") if p.is_file() and not p.name.startswith("dsa_")]
    faults += [f"left over: {p.relative_to(session)}" for p in files if p.name not in WANTED]
    return faults


def _case_marks(path: Path) -> Counter[str]:
    trace = reader.read(path)
    parsed = (marks.parse(trace.strings.get(i, "")) for i in trace.ranges.text.tolist())
    return Counter(mark.value for mark in parsed if mark is not None and mark.kind == "case")


def uninterrupted(target: str, tracer: str = "nsys") -> Calm:
    with _place(target) as (folder, nodes):
        began = time.monotonic()
        more = nodes.flags if nodes else ()
        code = _start(command(folder, tracer, *GRID, *more)).wait(TIMEOUT_S)
        if code:
            raise SystemExit(f"the sweep itself fails: exit {code}")
        return Calm(time.monotonic() - began, timeless.of(folder / "traces/s"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("-j", type=int, default=1, help="trials at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tracer", default="nsys")
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.j, mp_context=spawn, max_tasks_per_child=1) as pool:
        calm = {t: pool.submit(uninterrupted, t, args.tracer) for t in TARGETS}
        print({target: round(found.result().seconds, 1) for target, found in calm.items()})
        seeds = range(args.seed, args.seed + args.n)
        running = [pool.submit(trial, s, calm[target_of(s)].result(), args.tracer) for s in seeds]
        reports = [_told(one.result()) for one in running]
    print("\n| killed | trials | hit | finished before | faults |\n|---|---|---|---|---|")
    for target in TARGETS:
        mine = [r for r in reports if r.target == target]
        sums = (len(mine), sum(r.hit for r in mine), sum(r.done_before for r in mine),
                sum(len(r.faults) for r in mine))  # fmt: skip
        print(f"| {target} | {' | '.join(map(str, sums))} |")
    return 1 if any(r.faults for r in reports) else 0


def _told(report: Trial) -> Trial:
    print(
        f"{report.seed} {report.target} at {report.moment_s:.2f} s "
        f"{'hit' if report.hit else 'missed'} done before: {report.done_before} "
        f"{'; '.join(report.faults) or 'ok'}",
        flush=True,
    )
    return report


if __name__ == "__main__":
    sys.exit(main())
