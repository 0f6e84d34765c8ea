"""The page in a real browser: each control does what it says, nothing is fetched, names are inert.

Needs playwright and a Chromium (DSA_CHROMIUM names one that is not on the PATH); with
DSA_REQUIRE_CHROMIUM=1 their absence is a failure, and that of axe-core, which the package
axe-playwright-python carries.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from results_factory import cases_of, results, session, standard_cases
from test_compare import noisy
from test_report import hostile

from dsa_profiler.analysis.compare import compare
from dsa_profiler.report import compare_view, render
from dsa_profiler.report.charts import Line
from dsa_profiler.session import GpuState

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update")  # fmt: skip
CHROMIUM = os.environ.get("DSA_CHROMIUM") or shutil.which("chromium") or ""
SIZE = {"width": 1400, "height": 1000}
FIRST, SECOND = "generation-b1-s15-h128-bfloat16", "generation-b1-s1023-h128-bfloat16"


@pytest.fixture(scope="module")
def browser():
    required = os.environ.get("DSA_REQUIRE_CHROMIUM") == "1"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        if required:
            raise
        pytest.skip("needs playwright")
    if not Path(CHROMIUM).is_file() and not required:
        pytest.skip("needs Chromium on the PATH, or named by DSA_CHROMIUM")
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield running
        running.close()


class Visits:
    """Pages opened by tests. What they log and request is kept, to be looked at in the end."""

    def __init__(self, browser):
        self.browser, self.pages, self.troubles, self.requests = browser, [], [], []

    def go(self, path, fragment="", **options):
        """A new page; its charts are drawn when this returns."""
        context = self.browser.new_context(viewport=SIZE, **options)
        page = context.new_page()
        self.pages.append(page)
        page.set_default_timeout(10_000)
        page.on("console", lambda m: self.troubles.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: self.troubles.append(str(e)))
        page.on("request", lambda r: self.requests.append(r.url))
        page.goto(f"{path.as_uri()}#{fragment}")
        return page

    def end(self):
        """No error was logged, and nothing was requested but the pages themselves."""
        for page in self.pages:
            page.context.close()
        assert self.troubles == []
        assert all(url.startswith("file://") for url in self.requests)
        assert len(self.requests) == len(self.pages)


@pytest.fixture
def visit(browser):
    visits = Visits(browser)
    yield visits.go
    visits.end()


@pytest.fixture(scope="module")
def tab(browser, small):
    """One page for all tests that leave no trace in it but fragment, size and colour scheme, which
    are put back here: loading it takes long.
    """
    visits = Visits(browser)
    page = visits.go(small)

    def show(fragment="", scheme="light"):
        page.set_viewport_size(SIZE)
        page.emulate_media(color_scheme=scheme)
        page.evaluate("fragment => { location.hash = fragment; }", fragment)
        page.evaluate("help.close(); document.activeElement.blur(); scrollTo(0, 0)")
        page.wait_for_timeout(50)  # hashchange comes later
        page.locator("#plot-latency .scatterlayer .trace").first.wait_for(state="attached")
        return page

    show.troubles = visits.troubles
    yield show
    visits.end()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A page with two slices, a floor on half of the cases, a prediction, and one case's power."""
    cases = (*cases_of("context"), *cases_of())
    lines = [Line("prediction", "prediction", {c.slug: 2e5 for c in cases})]
    path = tmp_path_factory.mktemp("small") / "index.html"
    state = GpuState((1700, 1755.0, 1980), 3201, 61, (), 612.0, 71.0, 2e6, 1700.0)
    made = results(cases)
    rows = tuple(replace(c, gpu=state) if c.case.slug == SECOND else c for c in made.cases)
    return render.write(replace(made, cases=rows), session(cases), path, lines)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    base = results(cases_of())
    document = compare(noisy(base, 1), noisy(base, 2, scale=1.2)).as_json()
    return compare_view.write(document, tmp_path_factory.mktemp("compare") / "index.html")


def drawer_slug(page):
    return page.text_content("#drawer .slug") if page.is_visible("#drawer") else None


def test_a_cell_opens_its_case_and_close_closes_it(tab):
    page = tab("slice=generation-h128-bfloat16")
    assert drawer_slug(page) is None
    page.click(f"#map [data-case='{FIRST}']")
    assert drawer_slug(page) == FIRST
    assert page.url.endswith(f"#{FIRST}&slice=generation-h128-bfloat16")
    page.click("#drawer-close")
    assert drawer_slug(page) is None
    page.click(f"#cases tr[data-case='{SECOND}'] td:nth-child(3)")
    assert drawer_slug(page) == SECOND
    page.keyboard.press("Escape")
    assert drawer_slug(page) is None


def press(page, selector):
    """Click the middle of the first such mark: plotly listens on a layer above its marks."""
    mark = page.locator(selector).first
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    page.wait_for_timeout(100)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(100)


def test_a_bar_and_a_point_open_their_case(tab):
    page = tab("slice=generation-h128-bfloat16")
    press(page, "#plot-stages .bars .point path")
    assert drawer_slug(page) == FIRST
    page.keyboard.press("Escape")
    press(page, "#plot-latency .scatterlayer .points path")
    assert drawer_slug(page) == FIRST


def test_the_fragment_brings_a_view_back(tab):
    state = f"{SECOND}&fix=seq_len&metric=spread&q=b1&share=1&theme=dark"
    page = tab(state)
    assert drawer_slug(page) == SECOND
    assert page.input_value("#slice") == "generation-h128-bfloat16"
    assert page.input_value("#fix") == "seq_len"
    assert page.input_value("#filter") == "b1"
    assert page.get_attribute("#metric [data-value=spread]", "aria-pressed") == "true"
    assert page.get_attribute("#share [data-value='1']", "aria-pressed") == "true"
    assert page.evaluate("document.documentElement.className") == "scripted dark"
    assert page.locator("#plot-stages .ytick").last.text_content() == "100%"


@pytest.mark.parametrize("fragment", ["%", "%E0%A4%A&a=%", "=&&=", "__proto__=1&case=nope", "map"])
def test_a_broken_fragment_is_harmless(tab, fragment):
    page = tab(fragment)
    assert drawer_slug(page) is None
    assert page.locator("#map .cell:visible").count() == 12


def test_the_metric_recolours_the_map(tab):
    page = tab("slice=generation-h128-bfloat16")
    cell = page.locator(f"#map [data-case='{FIRST}']")
    before = cell.text_content()
    page.click("#metric [data-value=spread]")
    assert cell.text_content().endswith("%")
    assert "metric=spread" in page.url
    page.keyboard.press("m")
    assert cell.text_content() == before


def test_the_slice_chooses_what_is_shown(tab):
    page = tab()
    assert page.locator("#map [data-slice]:visible").get_attribute("data-slice") == (
        "context-h128-bfloat16"
    )
    page.select_option("#slice", "generation-h128-bfloat16")
    assert page.locator("#cases [data-slice]:visible").get_attribute("data-slice") == (
        "generation-h128-bfloat16"
    )
    assert "cached tokens" in page.text_content("#plot-latency")


def test_stages_switch_scale_and_axis(tab):
    page = tab("slice=generation-h128-bfloat16")
    ticks = page.locator("#plot-stages .xtick")
    assert ticks.all_text_contents() == ["15", "1,023", "2,047", "4,095"]
    page.select_option("#fix", "seq_len")
    assert ticks.all_text_contents() == ["1", "2", "8"]
    page.select_option("#at", "4095")
    assert "at=4095" in page.url
    page.keyboard.press("s")
    assert page.get_attribute("#share [data-value='1']", "aria-pressed") == "true"
    assert "share of kernel time" in page.text_content("#plot-stages")
    assert page.locator("#legend li li").count() >= 10


def test_the_filter_finds_whole_sizes_and_words(tab):
    page = tab("slice=generation-h128-bfloat16")
    rows = page.locator("#cases [data-slice=generation-h128-bfloat16] tbody tr:visible")
    assert rows.count() == 12
    page.keyboard.press("/")
    page.keyboard.type("s15")
    assert rows.count() == 3
    page.fill("#filter", "b8 s4095")
    assert rows.count() == 1
    page.fill("#filter", "no such thing")
    assert rows.count() == 0
    page.focus("#filter")
    page.keyboard.press("Escape")
    assert rows.count() == 12
    assert page.evaluate("document.activeElement.id") != "filter"


def test_j_and_k_walk_through_what_the_filter_left(tab):
    page = tab("slice=generation-h128-bfloat16&q=b8")
    for key, slug in (("j", "s15"), ("j", "s1023"), ("k", "s15"), ("k", "s15")):
        page.keyboard.press(key)
        assert drawer_slug(page) == f"generation-b8-{slug}-h128-bfloat16"
    current = page.locator("#cases tr[aria-current]")
    assert current.get_attribute("data-case") == "generation-b8-s15-h128-bfloat16"


def test_keys_typed_into_a_field_are_text(tab):
    page = tab()
    page.focus("#filter")
    page.keyboard.type("jks?")
    assert page.input_value("#filter") == "jks?"
    assert drawer_slug(page) is None
    assert not page.is_visible("#help")


def test_help_opens_and_closes(tab):
    page = tab()
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("j")
    assert drawer_slug(page) is None
    page.click("#help button")
    assert not page.is_visible("#help")
    page.click("#help-open")
    assert page.is_visible("#help")


def test_tables_sort_both_ways(tab):
    page = tab("slice=context-h128-bfloat16")  # the other tests walk the other slice
    column = page.locator("#cases [data-slice=context-h128-bfloat16] tbody tr td:nth-child(3)")
    header = page.locator("#cases [data-slice=context-h128-bfloat16] th:nth-child(3)")
    for direction, reverse in (("descending", True), ("ascending", False)):
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == direction
        values = [float(t) for t in column.all_text_contents()]
        assert values == sorted(values, reverse=reverse)


def test_the_drawer_tells_everything_of_a_case(tab):
    page = tab(SECOND)
    found = next(c for c in results(cases_of()).cases if c.case.slug == SECOND)
    told = page.text_content("#drawer")
    for text in ("median", "gap", "overlap", "untraced", "prediction", "In Nsight Systems"):
        assert text in told
    for fact in ("power612", "idle71", "energy1224", "above idle1082", "SM clock1755"):
        assert fact in told
    for kernel in found.kernels:
        assert kernel.name in told
    assert page.locator("#drawer .dots i").count() == len(found.iteration_spans_ns)
    times = page.locator("#drawer table").nth(1).locator("tbody td:nth-child(4)")
    page.locator("#drawer table").nth(1).locator("th:nth-child(4) button").click()
    values = [float(t) for t in times.all_text_contents()]
    assert values == sorted(values, reverse=True)
    assert max(values) == pytest.approx(max(k.median_ns for k in found.kernels) / 1e3, abs=0.01)


def test_copies_are_csv_and_markdown(tab):
    page = tab(SECOND)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    read = "navigator.clipboard.readText()"
    page.click("#drawer [data-format=csv]")
    page.wait_for_selector("#toast.on")
    lines = page.evaluate(read).splitlines()
    assert lines[0] == "stage,kernel,calls,median_ms,p10_ms,p90_ms"
    assert len(lines) == 1 + len(page.locator("#drawer table").nth(1).locator("tbody tr").all())
    page.click("#drawer [data-format=markdown]")
    page.locator("#toast.on", has_text="Markdown").wait_for()
    table = page.evaluate(read).splitlines()
    assert table[0].startswith("| stage | kernel |")
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    page.keyboard.press("Escape")
    page.click("[data-copy=csv]")
    page.locator("#toast.on", has_text="12 cases").wait_for()
    rows = page.evaluate(read).splitlines()
    assert rows[0] == "batch,sequence,median ms,spread,gap,longest stage,case"
    assert len(rows) == 13
    assert any(row.startswith("1,4095,") and "generation-b1-s4095-" in row for row in rows)


def test_the_theme_turns_and_follows_the_system(tab):
    page = tab(scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#theme")
    light = page.evaluate(colour)
    assert light == "rgb(255, 255, 255)" != dark
    page.keyboard.press("t")
    assert page.evaluate(colour) == dark
    assert page.text_content("#theme") == "Theme: dark"
    page.keyboard.press("t")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(colour) == light


def test_without_scripts_the_tables_are_there(visit, small):
    page = visit(small, java_script_enabled=False)
    assert page.is_visible("noscript p")
    assert page.locator("#map table:visible").count() == 2
    assert page.locator("#cases tbody tr:visible").count() == 24
    assert (
        page.locator("#drawer, #plot-stages, #filter, #theme").locator("visible=true").count() == 0
    )
    page.click(f"#map [data-case='{SECOND}']")
    assert page.url.endswith(f"#{SECOND}")


def test_hostile_names_are_inert_and_readable(visit, tmp_path):
    found, owner = hostile()
    page = visit(render.write(found, owner, tmp_path / "a.html"))
    for row in page.locator("#cases tbody tr").all():
        row.locator("a").click()
        assert page.locator("#drawer td.name").count() > 0
        page.keyboard.press("Escape")
    page.keyboard.press("s")
    assert page.evaluate("window.hacked") is None
    assert "</script><script>window.hacked=1</script>" in page.text_content("#kernels")
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_an_injected_script_is_stopped_by_the_policy(tab):
    page = tab()
    page.evaluate(
        """() => { const s = document.createElement("script"); s.textContent = "window.hacked = 1";
        document.body.append(s); const i = document.createElement("img");
        i.setAttribute("onerror", "window.hacked = 1"); i.src = "data:,";
        document.body.append(i); window.added = [s, i]; }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert len(tab.troubles) >= 2
    assert all("Content Security Policy" in text for text in tab.troubles)
    tab.troubles.clear()
    page.evaluate("added.forEach((element) => element.remove())")


def test_a_narrow_window_scrolls_only_its_tables(tab):
    page = tab()
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.keyboard.press("j")
    assert page.evaluate("document.getElementById('drawer').getBoundingClientRect().left") >= 0


def test_the_standard_grid_paints_within_two_seconds(visit, tmp_path):
    cases = standard_cases()
    page = visit(render.write(results(cases), session(cases), tmp_path / "a.html"))
    page.wait_for_selector("#plot-latency .scatterlayer .trace")
    paints = page.evaluate("performance.getEntriesByType('paint').map((e) => e.startTime)")
    assert min(paints) < 2000


def test_the_comparison_filters_walks_and_opens(visit, comparison):
    page = visit(comparison)
    rows = page.locator("#cases tbody tr:visible")
    page.fill("#filter", "b8 slower")
    assert rows.count() == 4
    page.locator("#filter").blur()
    page.keyboard.press("j")
    assert drawer_slug(page) == "generation-b8-s15-h128-bfloat16"
    assert page.locator("#drawer tbody tr").count() >= 10
    page.keyboard.press("Escape")
    assert drawer_slug(page) is None
    page.click(f"#map [data-case='{FIRST}']")
    assert drawer_slug(page) == FIRST


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", ["page", "drawer", "help", "comparison"])
def test_axe_finds_nothing_serious(visit, tab, comparison, view, scheme):
    if os.environ.get("DSA_REQUIRE_CHROMIUM") != "1":
        pytest.importorskip("axe_playwright_python")
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js")
    page = visit(comparison) if view == "comparison" else tab()
    page.emulate_media(color_scheme=scheme)
    if view in ("drawer", "comparison"):
        page.keyboard.press("j")
    elif view == "help":
        page.keyboard.press("?")
    page.wait_for_function("document.getAnimations().every(a => a.playState === 'finished')")
    page.evaluate(axe.read_text("utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [
        (v["id"], [n["target"] for n in v["nodes"]][:3])
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_it_prints_without_controls_and_with_every_row(visit, small):
    page = visit(small)
    page.emulate_media(media="print")
    assert page.locator("nav.bar").is_hidden()
    assert page.locator("#drawer").is_hidden()
    cut = "nodes => nodes.filter(n => n.scrollHeight > n.clientHeight + 1).length"
    assert page.locator(".scroll").evaluate_all(cut) == 0
    assert page.locator("#cases tbody tr").count() > 0
