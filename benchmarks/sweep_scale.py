"""A sweep of 10,000 cases on 64 workers with faults, its scheduling real, its kernels imagined.

    python benchmarks/sweep_scale.py [--cases 10000] [--workers 64] [--seed 0]

The board, its judgements and the manifest on disk are the product's own. Only time is simulated: a
case takes what a lognormal draw around its predicted cost says, a worker takes seconds to start,
some die at a random case, some nodes vanish for minutes with all that their job had. Printed: the
makespan against its lower bound (all work / workers, or the longest case), and the wall time that
scheduling really took against the makespan.
"""

from __future__ import annotations

import argparse
import heapq
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from dsa_profiler import session as sessions
from dsa_profiler.capture.board import Board, Job
from dsa_profiler.capture.outcome import Story
from dsa_profiler.capture.recording import Watched
from dsa_profiler.config import weight
from dsa_profiler.model import Case, load_model
from dsa_profiler.plan import Plan
from dsa_profiler.session import Session

START_S = 10.0
CRASH_RATE, LOST_RATE, LOST_S = 0.02, 0.005, 120.0
MEAN_CASE_S, NOISE = 20.0, 0.3


class Clock:
    """Draws durations and fates, the same for the same seed."""

    def __init__(self, cases: list[Case], seed: int) -> None:
        self.draw = random.Random(seed)
        scale = MEAN_CASE_S * len(cases) / sum(map(predicted, cases))
        self.seconds = {c: scale * predicted(c) * self.draw.lognormvariate(0, NOISE) for c in cases}
        self.crashed: set[Case] = set()

    def run(self, job: Job) -> tuple[float, Watched]:
        """How long a job takes and how it ends. A node lost gives nothing back."""
        if self.draw.random() < LOST_RATE:
            return LOST_S, Watched(Story(), "lost", 137)
        story, spent = Story(ready={}), START_S
        dies_at = len(job.cases) if self.draw.random() >= CRASH_RATE else self.draw.randrange(
            len(job.cases))  # fmt: skip
        for number, case in enumerate(job.cases):
            spent += self.seconds[case]
            if number == dies_at and case not in self.crashed:
                self.crashed.add(case)
                story.running = case.slug
                return spent, Watched(story, "died", 139, self._arrived(story, job))
            story.ended[case.slug] = {"status": "done", "iterations": 10}
        story.bye = True
        return spent, Watched(story, "well", 0, self._arrived(story, job))

    @staticmethod
    def _arrived(story: Story, job: Job) -> frozenset[Case]:
        return frozenset(case for case in job.cases if case.slug in story.ended)


def predicted(case: Case) -> float:
    return weight(case) ** 0.5


def cases_of(count: int) -> list[Case]:
    """`count` distinct cases over all head counts, of both phases."""
    draw = random.Random(1)
    found: dict[Case, None] = {}
    while len(found) < count:
        heads = draw.choice((128, 64, 32, 16, 8))
        if draw.random() < 0.4:
            length = draw.randrange(1, 32768)
            found[Case("context", draw.randrange(1, 1 + 65536 // length), length, heads)] = None
        else:
            length = 2 ** draw.randrange(1, 18) - draw.randrange(2)
            found[Case("generation", draw.randrange(1, 1025), length, heads)] = None
    return list(found)


def simulate(cases: list[Case], workers: int, seed: int, folder: Path) -> dict[str, float]:
    session = Session(
        name="scale", created="", workload="reference", tracer="nsys",
        model=load_model("deepseek-v3.2"), plan=Plan(tuple(cases)), settings={}, environment={},
    )  # fmt: skip
    clock = Clock(cases, seed)
    board = Board(folder, session, tuple(cases), slots=workers, cost=predicted)
    now, spent, jobs = 0.0, 0.0, 0
    running: list[tuple[float, int, float, Job, Watched]] = []
    idle = workers
    while True:
        began = time.perf_counter()
        while idle and (job := board.take(wait=False)) is not None:
            spent += time.perf_counter() - began
            job.place.mkdir(parents=True)
            seconds, watched = clock.run(job)
            heapq.heappush(running, (now + seconds, jobs, seconds, job, watched))
            idle, jobs = idle - 1, jobs + 1
            began = time.perf_counter()
        spent += time.perf_counter() - began
        if not running:
            break
        now, _, seconds, job, watched = heapq.heappop(running)
        began = time.perf_counter()
        board.put(job, watched, seconds)
        spent += time.perf_counter() - began
        idle += 1
    began = time.perf_counter()
    board.save()
    spent += time.perf_counter() - began
    outcomes = sessions.load(folder).outcomes
    work = sum(clock.seconds.values())
    return {
        "cases": len(cases), "done": sum(o.status == "done" for o in outcomes.values()),
        "jobs": jobs, "makespan_s": now,
        "lower_bound_s": max(work / workers, max(clock.seconds.values())),
        "scheduling_s": spent,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        got = simulate(cases_of(args.cases), args.workers, args.seed, Path(folder))
    above = got["makespan_s"] / got["lower_bound_s"] - 1
    overhead = got["scheduling_s"] / got["makespan_s"]
    for name, value in got.items():
        print(f"{name:>14} {value:,.1f}")
    print(f"   above bound {above:.1%}   (wanted: at most 10%)")
    print(f"    scheduling {overhead:.2%} of the makespan   (wanted: below 2%)")
    print(f"          peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    good = got["done"] == got["cases"] and above <= 0.10 and overhead < 0.02
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
