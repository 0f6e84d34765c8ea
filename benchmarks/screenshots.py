"""Pictures of the pages: `python benchmarks/screenshots.py SESSION [SESSION] --to docs/images`.

One session gives the page's views, two also the comparison. Needs playwright and a Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dsa_profiler.analysis import compare
from dsa_profiler.cli import source
from dsa_profiler.report import compare_view, render

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sessions", nargs="+", type=Path)
    parser.add_argument("--to", type=Path, default=Path("docs/images"))
    parser.add_argument("--case", help="the case whose drawer is shown; the last one otherwise")
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        pages = _pages(args.sessions, Path(place))
        _shoot(pages, args.case, args.to)


def _pages(sessions: list[Path], place: Path) -> dict[str, Any]:
    with source.opened(sessions[0]) as found:
        out: dict[str, Any] = {
            "page": render.write(found.results, found.session, place / "page.html"),
            "case": found.results.cases[-1].case.slug,
        }
        if len(sessions) > 1:
            with source.opened(sessions[1]) as other:
                told = compare.compare(found.results, other.results, found.session, other.session)
            out["compare"] = compare_view.write(told.as_json(), place / "compare.html")
    return out


def _shoot(pages: dict[str, Any], case: str | None, target: Path) -> None:
    from playwright.sync_api import sync_playwright

    slug = case or pages["case"]
    slice_ = slug.split("-b")[0] + "-h" + slug.split("-h")[1]
    views = [
        ("page-light", pages["page"], f"slice={slice_}", "light", 1500),
        ("page-dark", pages["page"], f"slice={slice_}&share=1&metric=spread", "dark", 1000),
        ("case", pages["page"], slug, "light", 1000),
    ]
    if "compare" in pages:
        views.append(("compare", pages["compare"], "", "light", 1000))
    with sync_playwright() as driver:
        chromium = shutil.which("chromium") or ""
        browser = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        for name, path, fragment, scheme, height in views:
            page = browser.new_page(viewport={"width": 1400, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(f"{path.as_uri()}#{fragment}")
            page.wait_for_timeout(2500)
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=target / f"{name}.png")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
