"""How the worker runs one case, untraced and traced, and what a fault in one does to the sweep."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from time import monotonic
from typing import Any

import torch

from dsa_profiler import marks
from dsa_profiler.errors import DsaError
from dsa_profiler.model import Case
from dsa_profiler.workloads import measure, settle
from dsa_profiler.workloads.instrument import TextMark, stage_mark, unmarked
from dsa_profiler.workloads.order import Order
from dsa_profiler.workloads.seam import Output, Workload

BATCH_NS = 1e8
"""Under load the host waits for the device this often: a queue of long iterations has no end."""


@dataclass(slots=True)
class Bench:
    """The two ways to run a case, and what a fault in one does to the sweep: nothing."""

    order: Order
    device: torch.device
    workload: Workload
    say: Callable[..., None]
    untraced_ns: dict[Case, float] = field(default_factory=dict)
    peak: dict[Case, int | None] = field(default_factory=dict)
    rounds: dict[Case, int] = field(default_factory=dict)
    notes: dict[Case, str] = field(default_factory=dict)
    timed_s: dict[Case, tuple[float, float]] = field(default_factory=dict)
    load: dict[Case, tuple[float, float, int]] = field(default_factory=dict)

    def each(
        self, cases: Sequence[Case], run: Callable[[Case], None], last: bool, begun: int = 0
    ) -> tuple[Case, ...]:
        """Run the cases until told to stop; returns those that went well. A case ends when it
        fails, or when it went well in its `last` pass. The first `begun` are run whatever is told.

        A fault that took the CUDA context along is raised: every later case would fail with it. The
        sweep runs the others in a new process, and this one alone.
        """
        well = []
        for number, case in enumerate(cases):
            if number >= begun and self.order.told_to_stop:
                break
            self.say("start", case=case.slug)
            try:
                run(case)
            except Exception as error:
                traceback.print_exc()
                if measure.is_poisoned(self.device):
                    raise
                status = "oom" if measure.is_out_of_memory(error) else "failed"
                self.end(case, status, detail=one_line(error))
            else:
                well.append(case)
                if last:
                    self.end(
                        case,
                        "done",
                        iterations=self.rounds[case],
                        detail=self.notes.get(case, ""),
                    )
            measure.release()
        return tuple(well)

    def end(self, case: Case, status: str, **more: Any) -> None:
        self.say(
            "end",
            case=case.slug,
            status=status,
            untraced_ns=self.untraced_ns.get(case),
            peak_memory_bytes=self.peak.get(case),
            timed_s=self.timed_s.get(case),
            load=self.load.get(case),
            **{"detail": "", **more},
        )

    def untraced(self, case: Case) -> None:
        """Warm up, then time without marks; refuse output that holds NaN or infinity."""
        measure.reset_peak(self.device)
        eager = self.workload.prepare(case)
        output: Output | None = None

        def step() -> Output:
            return eager(unmarked)

        def once() -> float:
            nonlocal output
            elapsed, output = measure.elapsed_ns(step, self.device)
            self.beat(case)
            return elapsed

        goal = self.order.goal
        settle.warm_up(once, self.order.warmup, goal)
        if self.as_graph(case):
            step = measure.captured(eager)
        begin = monotonic()
        times, met = settle.measure(once, self.order.iterations, goal)
        self.timed_s[case] = begin, monotonic()
        self.rounds[case] = len(times)
        if goal is not None and not met:
            self.notes[case] = settle.complaint(times, goal)
        self.peak[case] = measure.peak_bytes(self.device)
        if output is not None and not bool(output.isfinite().all()):
            raise ArithmeticError("the output holds NaN or infinity")
        self.untraced_ns[case] = median(times)
        if self.order.power_s:
            self.load[case] = self.loaded(case, step)

    def loaded(self, case: Case, step: Callable[[], Output]) -> tuple[float, float, int]:
        """Repeat the step without a pause: begin and end in monotonic seconds, and how often. One
        iteration is far shorter than the time in which NVML's energy counter moves once.
        """
        batch = max(1, ceil(BATCH_NS / self.untraced_ns[case]))
        begin = end = monotonic()
        count = 0
        while not count or end - begin < self.order.power_s:
            for _ in range(batch):
                step()
            measure.synchronise(self.device)
            end, count = monotonic(), count + batch
            self.beat(case)
        return begin, end, count

    def traced(self, case: Case, mark: TextMark) -> None:
        """Warm up and iterate, everything marked. A graph is captured in a warm-up of its own, so
        that the marks of its stages lie inside the window and outside every iteration.
        """
        eager = self.workload.prepare(case)
        stages = stage_mark(mark)
        with mark(marks.case(case.slug)):
            for n in range(self.order.warmup):
                self.once(case, n, mark(marks.warmup(n)), lambda: eager(stages))
            step: Callable[[], Output] = lambda: eager(stages)  # noqa: E731
            if self.as_graph(case):
                with mark(marks.warmup(self.order.warmup)):
                    step = measure.captured(eager, stages)
            for n in range(self.rounds[case]):
                self.once(case, n, mark(marks.iteration(n)), step)

    def once(self, case: Case, number: int, range_: Any, step: Callable[[], Output]) -> None:
        """One iteration in its range; the device has finished before the range ends."""
        with range_:
            step()
            measure.synchronise(self.device)
        self.beat(case)

    def beat(self, case: Case) -> None:
        self.say("beat", case=case.slug)

    def as_graph(self, case: Case) -> bool:
        wanted = bool(self.order.options.get("cuda_graph"))
        return wanted and self.device.type == "cuda" and case.phase == "generation"


def one_line(error: Exception) -> str:
    """What went wrong with a case, for the manifest; the traceback goes to the log."""
    if isinstance(error, DsaError):
        return f"{error.what}; {error.cure}"
    if measure.is_out_of_memory(error):
        asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        more = f": tried to allocate {asked[1]}" if asked else ""
        return f"out of memory{more}; give smaller batches or lengths, or a GPU with more memory"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
