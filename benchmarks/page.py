"""How long the page of a standard grid takes to write, how large it is, and when it paints.

`python benchmarks/page.py [SESSION]`: of a session, else of synthetic results, 181 cases with
60 kernels each. Painting needs playwright and a Chromium; wanted: 3 s, 6 MB, 2 s.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsa_profiler.report import render

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
KERNELS = 60
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update")  # fmt: skip


def main() -> None:
    results, session = _given(Path(sys.argv[1])) if len(sys.argv) > 1 else _synthetic()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "index.html"
        took = []
        for _ in range(3):
            render.packed_plotly.cache_clear()
            began = time.perf_counter()
            render.write(results, session, path)
            took.append(time.perf_counter() - began)
        print(f"cases {len(results.cases)}, kernels {sum(len(c.kernels) for c in results.cases)}")
        print(f"render  {min(took):.2f} s (best of 3, plotly packed each time)")
        print(f"size    {path.stat().st_size / 1e6:.2f} MB")
        for name, ms in _paint(path).items():
            print(f"{name:<7} {ms:.0f} ms")


def _given(folder: Path) -> tuple[Any, Any]:
    from dsa_profiler import pipeline, session

    return pipeline.analyze(folder), session.load(folder)


def _synthetic() -> tuple[Any, Any]:
    from results_factory import results, session, standard_cases

    cases = standard_cases()
    found = results(cases)
    rows = []
    for row in found.cases:
        more = [
            replace(row.kernels[i % len(row.kernels)], name=f"void elementwise_kernel<{i}>(int)")
            for i in range(KERNELS - len(row.kernels))
        ]
        rows.append(replace(row, kernels=(*row.kernels, *more)))
    return replace(found, cases=tuple(rows)), session(cases)


def _paint(path: Path) -> dict[str, float]:
    """First paint and all charts drawn, ms after navigation began."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {}
    with sync_playwright() as driver:
        chromium = shutil.which("chromium") or ""
        browser = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page()
        page.goto(path.as_uri())
        page.wait_for_selector("#plot-latency .scatterlayer .trace", state="attached")
        drawn = page.evaluate("performance.now()")
        paints = page.evaluate("performance.getEntriesByType('paint').map((e) => e.startTime)")
        browser.close()
    return {"paint": min(paints), "charts": drawn}


if __name__ == "__main__":
    main()
