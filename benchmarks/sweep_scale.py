"""A sweep of 10,000 cases on 64 workers with faults, its scheduling real, its kernels imagined.

    python benchmarks/sweep_scale.py [--cases 10000] [--workers 64] [--seeds 0,1,2]

The board, its judgements, the manifest on disk, the predicted costs and the estimate of the time
left are the product's own, with its defaults. Only time is simulated: a case takes what a lognormal
draw around its predicted cost says, a worker takes seconds to start, some workers die at a random
case, and nodes of eight vanish with all that their jobs had: noticed after 65 s (what Ray takes
for a node that falls silent), back after ten.

The lower bound is the time in which the workers could do all work, or the longest case where that
is more: every case once, no start, no crash, no gap, but without a node's workers while it is away,
which no schedule can use; `all there` counts those as well. Scheduling is the wall time that
taking, judging and saving really took. `eta` is how far the estimate of the end was off at that
share of the makespan, in shares of the makespan.
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
from dsa_profiler.cli import cost
from dsa_profiler.cli.progress import Estimate
from dsa_profiler.model import Case, load_model
from dsa_profiler.plan import Plan
from dsa_profiler.session import Session

START_S, CRASH_RATE = 10.0, 0.02
NODE, NOTICED_S, AWAY_S = 8, 65.0, 600.0
LOSSES_A_SWEEP = 1.0
MEAN_CASE_S, NOISE = 20.0, 0.3
LOOKS = (0.1, 0.25, 0.5, 0.75)
"""Shares of the makespan at which the estimate is compared with what came."""


class World:
    """Durations and fates, the same for the same seed. Only the scale of the prediction is right:
    what a case takes is drawn around it.
    """

    def __init__(self, costs: dict[Case, float], workers: int, seed: int) -> None:
        self.draw = random.Random(seed)
        scale = MEAN_CASE_S * len(costs) / sum(costs.values())
        self.costs = {c: scale * cost for c, cost in costs.items()}
        self.seconds = {c: s * self.draw.lognormvariate(0, NOISE) for c, s in self.costs.items()}
        self.crashed: set[Case] = set()
        self.ends: list[tuple[float, str]] = []
        span, nodes = sum(self.seconds.values()) / workers, -(-workers // NODE)
        self.losses: list[tuple[float, int]] = []
        at = self.draw.expovariate(LOSSES_A_SWEEP / span)
        while at < 2 * span:
            self.losses.append((at, self.draw.randrange(nodes)))
            at += self.draw.expovariate(LOSSES_A_SWEEP / span)

    def least_s(self, work: float, workers: int) -> float:
        """The time in which the workers that are there could do the work."""
        least = before = 0.0
        while least == 0.0 or least > before:
            before = least
            away = sum(min(max(before - at, 0.0), AWAY_S) * NODE for at, _ in self.losses)
            least = (work + away) / workers
        return least

    def run(self, job: Job, worker: int, now: float) -> tuple[float, float, Watched]:
        """When a job that begins now is put back, when its worker is free again, how it ended."""
        story, at = Story(ready={}), now + START_S
        dies = len(job.cases)
        if self.draw.random() < CRASH_RATE:
            dies = self.draw.randrange(len(job.cases))
        ends, ending = [], "well"
        for number, case in enumerate(job.cases):
            at += self.seconds[case]
            if number == dies and case not in self.crashed:
                self.crashed.add(case)
                story.running, ending = case.slug, "died"
                break
            story.ended[case.slug] = {"status": "done", "iterations": 10}
            ends.append((at, case.slug))
        for lost_at, node in self.losses:
            if node == worker // NODE and now - AWAY_S < lost_at < at:
                told = max(lost_at, now) + NOTICED_S
                return told, max(told, lost_at + AWAY_S), Watched(Story(), "lost", 137)
        self.ends += ends
        arrived = frozenset(case for case in job.cases if case.slug in story.ended)
        return at, at, Watched(story, ending, 0 if ending == "well" else 139, arrived)


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
        model=load_model("deepseek-v3.2"), plan=Plan(tuple(cases)), environment={},
        settings={"warmup": 3, "iterations": 10, "device": "cuda"},
    )  # fmt: skip
    world = World(cost.of(session, cases), workers, seed)
    board = Board(folder, session, tuple(cases), slots=workers, cost=world.costs.__getitem__)
    now, spent, jobs, lost = 0.0, 0.0, 0, 0
    running: list[tuple[float, int, float, Job, Watched, float, int]] = []
    idle = [(0.0, worker) for worker in range(workers)]
    while True:
        heapq.heapify(idle)
        while idle and idle[0][0] <= now:
            began = time.perf_counter()
            job = board.take(wait=False)
            spent += time.perf_counter() - began
            if job is None:
                break
            _, worker = heapq.heappop(idle)
            job.place.mkdir(parents=True)
            told, free, watched = world.run(job, worker, now)
            heapq.heappush(running, (told, jobs, now, job, watched, free, worker))
            jobs += 1
        if not running:
            break
        back = min((at for at, _ in idle if at > now), default=float("inf"))
        if back < running[0][0]:
            now = back
            continue
        now, _, since, job, watched, free, worker = heapq.heappop(running)
        lost += watched.ending == "lost"
        began = time.perf_counter()
        board.put(job, watched, now - since)
        spent += time.perf_counter() - began
        idle.append((free, worker))
    began = time.perf_counter()
    board.save()
    spent += time.perf_counter() - began
    outcomes = sessions.load(folder).outcomes
    work, longest = sum(world.seconds.values()), max(world.seconds.values())
    return {
        "cases": len(cases), "done": sum(o.status == "done" for o in outcomes.values()),
        "jobs": jobs, "lost": lost, "makespan_s": now,
        "all_there_s": max(work / workers, longest),
        "lower_bound_s": max(world.least_s(work, workers), longest),
        "scheduling_s": spent,
        **{f"eta_{share:.0%}": off for share, off in _estimates(world, now)},
    }  # fmt: skip


def _estimates(world: World, makespan: float) -> list[tuple[float, float]]:
    """How far the estimate is off at each look, in shares of the makespan."""
    now = 0.0
    estimate, out, ends = Estimate(world.costs, 1, lambda: now), [], sorted(world.ends)
    slugs = {case.slug for case in world.costs}
    for share in LOOKS:
        while ends and ends[0][0] <= share * makespan:
            now, slug = ends.pop(0)
            if slug in slugs:
                estimate.add({"event": "end", "case": slug})
        left = estimate.left_s
        out.append((share, (left - (makespan - now)) / makespan if left else float("inf")))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    cases, good = cases_of(args.cases), True
    head = ("seed", "done", "jobs", "lost", "all there", "lower bound", "makespan", "above it",
            "scheduling", *(f"eta at {share:.0%}" for share in LOOKS))  # fmt: skip
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for seed in map(int, args.seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            got = simulate(cases, args.workers, seed, Path(folder))
        above = got["makespan_s"] / got["lower_bound_s"] - 1
        overhead = got["scheduling_s"] / got["makespan_s"]
        off = " | ".join(f"{got[f'eta_{share:.0%}']:+.1%}" for share in LOOKS)
        print(
            f"| {seed} | {got['done']:,} | {got['jobs']:,} | {got['lost']} | "
            f"{got['all_there_s']:,.0f} s | {got['lower_bound_s']:,.0f} s | "
            f"{got['makespan_s']:,.0f} s | {above:.1%} | {overhead:.2%} | {off} |", flush=True,
        )  # fmt: skip
        good &= got["done"] == got["cases"] and above <= 0.10 and overhead < 0.02
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nwanted: at most 10% above the bound, scheduling below 2%; {peak:.0f} MiB")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
