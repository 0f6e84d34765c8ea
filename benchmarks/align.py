"""How long alignment takes: 10,000 kernels against 10,000, and a server of 61 layers x 200 steps.

    python benchmarks/align.py [--steps 200] [--layers 61] [--repeat 7]

Prints milliseconds: CPU time, the median of the repeats, and wall time, the best of them (the
machine may have other work). The traces are synthetic (tests/align_factory.py)
and already in memory where a line says "after loading"; the last line reads its file as well.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import align_factory as factory

from dsa_profiler.analysis import lcs
from dsa_profiler.analysis.align import align
from dsa_profiler.trace import reader, writer

KERNELS = 10_000


Time = tuple[float, float]


def timed(repeat: int, work: Callable[[], Any]) -> Time:
    """Milliseconds: median CPU time, best wall time."""
    cpu, wall = [], []
    for _ in range(repeat):
        begin, busy = time.perf_counter(), time.process_time()
        work()
        wall.append(1e3 * (time.perf_counter() - begin))
        cpu.append(1e3 * (time.process_time() - busy))
    return statistics.median(cpu), min(wall)


def streams(seed: int = 0) -> tuple[list[int], list[int]]:
    """Two streams of like layers; the second lacks, adds and changes three in a hundred."""
    rng = random.Random(seed)
    layer = [rng.randrange(30) for _ in range(40)]
    a = (layer * (KERNELS // len(layer) + 1))[:KERNELS]
    b = [rng.randrange(30) if rng.random() < 0.03 else x for x in a if rng.random() > 0.01]
    b += a[: KERNELS - len(b)]
    return a, b


def lcs_lines(repeat: int) -> list[tuple[str, Time, str]]:
    a, b = streams()
    fast = lcs.LCSseq
    out = []
    if fast is not None:
        out.append(("LCS 10,000 x 10,000, rapidfuzz", timed(repeat, lambda: lcs.pairs(a, b)), "50"))
        same = lcs.pairs(a, b)
    lcs.LCSseq = None
    try:
        out.append(("LCS 10,000 x 10,000, pure", timed(repeat, lambda: lcs.pairs(a, b)), "50"))
        if fast is not None:
            assert lcs.pairs(a, b) == same
    finally:
        lcs.LCSseq = fast
    return out


def align_line(repeat: int) -> tuple[str, Time, str]:
    """Two recordings of 10,000 kernels, with one kernel missing and other tiles."""
    iterations = KERNELS // len(factory.DECODE)
    left = factory.standalone(iterations=iterations)
    layer = len(factory.DECODE) + len(factory.MOE)
    steps = -(-KERNELS // (61 * layer))
    how = factory.Server(layers=61, steps=max(steps, 3), dense_layers=3)
    right = factory.server(factory.retiled(factory.without(factory.DECODE, 8)), how)
    found = align([left], [right])
    assert [f.stage for f in found.missing] == ["indexer_quant"]
    what = f"align {len(left.kernels):,} x {len(right.kernels):,} kernels, after loading"
    return what, timed(repeat, lambda: align([left], [right])), "50"


def server_lines(layers: int, steps: int, repeat: int) -> list[tuple[str, Time, str]]:
    how = factory.Server(layers=layers, steps=steps, dense_layers=3)
    left, right = factory.standalone(), factory.server(how=how)
    found = align([left], [right])
    assert found.verdict == "pass"
    assert (found.server["steps"], found.server["dsa_layers"]) == (steps, layers)
    what = f"align a server of {layers} layers x {steps} steps ({len(right.kernels):,} kernels)"
    out = [(f"{what}, after loading", timed(repeat, lambda: align([left], [right])), "10,000")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "server.sqlite"
        writer.write(right, path)
        whole = timed(repeat, lambda: align([left], [reader.read(path)]))
    return [*out, (f"{what}, from its file", whole, "10,000")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, {platform.machine()}")
    lines = [*lcs_lines(args.repeat), align_line(args.repeat)]
    lines += server_lines(args.layers, args.steps, min(args.repeat, 3))
    print("       CPU ms    wall ms  wanted ms")
    for what, (cpu, wall), wanted in lines:
        print(f"{cpu:13,.1f}{wall:11,.1f}{wanted:>11}  {what}")


if __name__ == "__main__":
    main()
