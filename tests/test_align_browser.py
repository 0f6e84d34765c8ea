"""The alignment's page in a real browser: slots light up, sort and copy; nothing is fetched."""

from __future__ import annotations

from pathlib import Path

import pytest
from align_factory import DECODE, K, Server, server, slower, standalone, without
from test_report_browser import Visits, browser

from dsa_profiler.analysis.align import align
from dsa_profiler.report import align_view

__all__ = ["browser"]


@pytest.fixture
def page(browser, tmp_path: Path):
    evil = "void <img src=x onerror=\"document.title='caught'\">::kernel(x)"
    kernels = [K(k.stage, evil, k.ns) if k.stage == "index_convert" else k for k in DECODE]
    worse = slower(without(kernels, 8), "topk", 2.6)
    found = align([standalone(kernels)], [server(worse, Server(ranks=2))])
    path = align_view.write(found.as_json(), tmp_path / "align.html")
    visits = Visits(browser)
    yield visits.go(path)
    visits.end()


def test_a_slot_lights_up_in_both_lanes_and_in_the_table(page) -> None:
    page.locator("rect[data-slot='3']").first.hover()
    lit = page.locator(".on[data-slot='3']")
    assert lit.count() == 4, "two kernels, the band between them, and the row"
    assert page.locator(".on:not([data-slot='3'])[data-slot]").count() == 0


def test_slots_sort_by_lost_time(page) -> None:
    page.locator("#slots th", has_text="lost").locator("button").click()
    first = page.locator("#slots tbody tr").first
    assert "topKPerRowDecode" in first.inner_text()


def test_a_time_range_is_copied(page) -> None:
    page.locator("code[data-copy]").first.click()
    assert "Copied the time range" in page.locator("#toast").inner_text()


def test_what_is_missing_stands_on_top_and_names_are_text(page) -> None:
    assert page.locator("#differences td", has_text="fusedCatFp8Kernel").count() == 1
    assert page.locator("img").count() == 0
    assert "Alignment of" in page.title()
