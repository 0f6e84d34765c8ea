"""The library in ten lines: `python examples/where_does_the_time_go.py TRACE_OR_SESSION`.

Prints the stages that cost most in each case, and the kernels that nothing could name.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dsa_profiler import pipeline


def main(path: Path) -> None:
    results = pipeline.analyze(path)
    for case in results.cases:
        top = sorted(case.stages, key=lambda stage: -stage.median_ns)[:3]
        told = ", ".join(f"{stage.stage} {stage.share:.0%}" for stage in top)
        print(f"{case.case.slug}: {case.span_ns.median / 1e6:.3f} ms ({told})")
    for name in results.coverage.unknown_kernels:
        print(f"unknown: {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
