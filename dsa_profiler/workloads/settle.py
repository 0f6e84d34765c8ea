"""When is a case measured well enough? When the interval of its median is narrow, or time is up.

The interval is distribution-free: by the binomial law of order statistics, the k-th smallest and
k-th largest of n independent times enclose the true median with at least the confidence wanted.
Latencies are skewed, so nothing here assumes a normal distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from time import monotonic

CONFIDENCE = 0.95
MOST = 500


@dataclass(frozen=True, slots=True)
class Goal:
    """`width`: the interval's length over the median, e.g. 0.02. `budget_s`: to get there."""

    width: float
    budget_s: float = 10.0


def interval(times: Sequence[float]) -> tuple[float, float] | None:
    """The interval of the median at 95 % confidence; None for fewer than six times.

    P(median < k-th smallest) = sum of C(n, i) / 2^n over i < k, the same on the other side.
    """
    count, ordered = len(times), sorted(times)
    rank, tail = 0, 0.0
    while True:
        tail += comb(count, rank) / 2**count
        if 2 * tail > 1 - CONFIDENCE:
            break
        rank += 1
    return (ordered[rank - 1], ordered[count - rank]) if rank else None


def width(times: Sequence[float]) -> float:
    """The interval's length over the median; infinite while there is no interval."""
    found = interval(times)
    return (found[1] - found[0]) / median(times) if found else float("inf")


def complaint(times: Sequence[float], goal: Goal) -> str:
    """What is said of a case that did not get there."""
    told = f"within {width(times):.1%}" if interval(times) else "not at all"
    return (
        f"never settled: the median is known {told} after {len(times)} iterations, "
        f"wanted {goal.width:.1%}"
    )


def measure(
    once: Callable[[], float],
    least: int,
    goal: Goal | None,
    clock: Callable[[], float] = monotonic,
) -> tuple[list[float], bool]:
    """At least `least` times of `once`, and more until the goal is met; whether it was met.

    Without a goal `least` times are enough by decree.
    """
    begin = clock()
    times = [once() for _ in range(least)]
    if goal is None:
        return times, True
    while width(times) > goal.width:
        if len(times) >= MOST or clock() - begin > goal.budget_s:
            return times, False
        times.append(once())
    return times, True


def warm_up(
    once: Callable[[], float],
    least: int,
    goal: Goal | None,
    clock: Callable[[], float] = monotonic,
) -> None:
    """At least `least` runs, and more until two windows in a row agree within the goal's width,
    for a quarter of its budget at most: clocks ramp, caches fill, autotuners try.
    """
    begin = clock()
    times = [once() for _ in range(least)]
    if goal is None:
        return
    while len(times) < MOST and clock() - begin < goal.budget_s / 4:
        if len(times) >= 6:
            before, after = median(times[-6:-3]), median(times[-3:])
            if abs(after - before) <= goal.width * before:
                return
        times.append(once())
