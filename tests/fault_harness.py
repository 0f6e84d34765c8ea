"""Kills a sweep at a random moment and checks what is left: `python tests/fault_harness.py -n 100`.

One trial: start a sweep as a process of its own, kill its parent, its profiler or its worker at a
moment drawn from the seed, run it again until it is whole, and look for what must not be: a
finished case lost or measured twice, a wrong outcome, a stray process, a left-over file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dsa_profiler import marks
from dsa_profiler import session as sessions
from dsa_profiler.capture import child
from dsa_profiler.session import Session
from dsa_profiler.trace import reader

HERE = Path(__file__).parent
TARGETS = ("parent", "profiler", "worker")
WANTED = {"session.json", "chunk.json", "outcome.jsonl", "trace.sqlite", "log.txt",
          "analysis.sqlite"}  # fmt: skip
TIMEOUT_S = 300


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


def command(folder: Path, tracer: str, *more: str) -> list[str]:
    """The sweep of a trial: four cases of a tiny model in chunks of two, or its resumption."""
    grid = ["--model", str(HERE / "capture_model"), "--batch-sizes", "1,2", "--seq-lens", "8,24",
            "--warmup", "1", "--iterations", "3", "--device", "cpu", "--mode", "generation",
            "--tracer", tracer]  # fmt: skip
    return [sys.executable, "-m", "dsa_profiler", "run", "--output", str(folder), "--name", "s",
            "-q", "--chunk-cases", "2", *(more or grid)]  # fmt: skip


def trial(seed: int, longest_s: float, tracer: str = "nsys") -> Trial:
    """Run one trial in a folder of its own, which is removed."""
    draw = random.Random(seed)
    report = Trial(seed, draw.choice(TARGETS), draw.uniform(0, longest_s))
    folder = Path(tempfile.mkdtemp(prefix="dsa-fault-"))
    try:
        _run(folder, report, tracer)
    finally:
        child.end(folder)
        shutil.rmtree(folder)
    return report


def _run(folder: Path, report: Trial, tracer: str) -> None:
    session = folder / "traces/s"
    parent = _start(command(folder, tracer))
    time.sleep(report.moment_s)
    report.hit = _kill(parent, session, report.target)
    parent.wait(TIMEOUT_S)
    before = _load(session)
    prints = _prints(session, before)
    report.done_before = len(prints)
    for report.runs in range(2, 6):
        if before is None:
            again = _start(command(folder, tracer))
        else:
            again = _start(command(folder, tracer, "--resume", "--retry", "all"))
        code = again.wait(TIMEOUT_S)
        if code == 0:
            break
    else:
        report.faults.append(f"still exit {code} after {report.runs} runs")
    report.faults += _check(session, prints)


def _start(arguments: list[str]) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(arguments, stdout=quiet, stderr=quiet, env=env)


def _kill(parent: subprocess.Popen[bytes], session: Path, target: str) -> bool:
    """SIGKILL to the target, if it lives; the worker says its own process id."""
    if target == "parent":
        if parent.poll() is not None:
            return False
        parent.kill()
        return True
    for pid in child.members(session):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        is_profiler = words[0].endswith(b"nsys") and b"profile" in words
        is_worker = words[1:3] == [b"-m", b"dsa_profiler.workloads.worker"]
        if is_profiler if target == "profiler" else is_worker:
            return child.send(pid, session, signal.SIGKILL)
    return False


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


def uninterrupted_s(tracer: str = "nsys") -> float:
    """How long the sweep takes when nobody kills anything: the span that moments are drawn from."""
    folder = Path(tempfile.mkdtemp(prefix="dsa-fault-"))
    try:
        began = time.monotonic()
        code = _start(command(folder, tracer)).wait(TIMEOUT_S)
        if code:
            raise SystemExit(f"the sweep itself fails: exit {code}")
        return time.monotonic() - began
    finally:
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tracer", default="nsys")
    args = parser.parse_args()
    longest = uninterrupted_s(args.tracer)
    print(f"uninterrupted: {longest:.1f} s", flush=True)
    reports = []
    for seed in range(args.seed, args.seed + args.n):
        report = trial(seed, longest, args.tracer)
        reports.append(report)
        print(
            f"{seed} {report.target} at {report.moment_s:.2f} s "
            f"{'hit' if report.hit else 'missed'} done before: {report.done_before} "
            f"{'; '.join(report.faults) or 'ok'}",
            flush=True,
        )
    print("\n| killed | trials | hit | finished before | faults |\n|---|---|---|---|---|")
    for target in TARGETS:
        mine = [r for r in reports if r.target == target]
        sums = (len(mine), sum(r.hit for r in mine), sum(r.done_before for r in mine),
                sum(len(r.faults) for r in mine))  # fmt: skip
        print(f"| {target} | {' | '.join(map(str, sums))} |")
    return 1 if any(r.faults for r in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
