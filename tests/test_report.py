"""The page as data and as text: what it says, that it loads nothing, and that names stay text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace

import pytest
from results_factory import cases_of, floored, results, session, standard_cases

from dsa_profiler.errors import UsageError, Warn
from dsa_profiler.marks import STAGE_GROUPS, STAGES
from dsa_profiler.model import Case
from dsa_profiler.plan import Plan, Skip
from dsa_profiler.report import charts, render, view
from dsa_profiler.report.charts import Line
from dsa_profiler.session import Outcome

HOSTILE = (
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror='window.hacked=1'>\"'`",
    "\u202egnp.exe\u2066 right to left \u0000\u2028",
    "k" * 10_000,
    "{{ 7*7 }} {% raw %} ${7*7} <!--",
)


def hostile():
    """Results and a session in which every text that comes from outside is hostile."""
    cases = cases_of()[:4]
    found = results(cases)
    rows = []
    for i, row in enumerate(found.cases):
        kernels = tuple(
            replace(k, name=HOSTILE[(i + j) % len(HOSTILE)] + str(j))
            for j, k in enumerate(row.kernels)
        )
        warning = Warn("evil", HOSTILE[i], HOSTILE[1])
        rows.append(replace(row, kernels=kernels, warnings=(warning,)))
    totals = tuple(
        replace(k, name=HOSTILE[i % len(HOSTILE)] + str(i))
        for i, k in enumerate(found.kernel_totals)
    )
    found = replace(
        found,
        cases=tuple(rows),
        kernel_totals=totals,
        warnings=tuple(Warn("evil", h, h) for h in HOSTILE),
        trace=replace(found.trace, gpus=HOSTILE[:2], producer=HOSTILE[0]),
    )
    environment = {"host": HOSTILE[0], HOSTILE[1]: HOSTILE[2], "gpus": [{"name": HOSTILE[0]}]}
    outcomes = {cases[0]: Outcome("failed", detail=HOSTILE[0])}
    return found, session(cases, name=HOSTILE[0], environment=environment, outcomes=outcomes)


def sha256(code):
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def text_of(path):
    return path.read_text("utf-8")


def data_of(html):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1]
    )


def test_every_stage_has_one_colour_of_its_own():
    assert set(charts.STAGE_COLOURS) == set(STAGES)
    assert set(charts.GROUP_COLOURS) == set(STAGE_GROUPS)
    assert len(set(charts.STAGE_COLOURS.values())) == len(STAGES)


@pytest.mark.parametrize("kind", ["normal", "deuteranopia", "protanopia", "tritanopia"])
def test_groups_stay_apart_for_colour_blind_eyes(kind):
    seen = {g: simulate(c, kind) for g, c in charts.GROUP_COLOURS.items()}
    for one in seen:
        for other in seen:
            if one < other:
                assert distance(seen[one], seen[other]) > 0.06, (one, other)


@pytest.mark.parametrize("ramps", [charts.RAMPS, charts.RATIO_RAMPS])
def test_text_reads_on_every_step_of_a_ramp(ramps):
    for ramp in ramps.values():
        for colour in ramp:
            assert charts.contrast(charts.ink(colour), colour) >= 4.5


def test_a_sequential_ramp_only_grows():
    for theme, ramp in charts.RAMPS.items():
        against = [charts.contrast(c, charts.BACKGROUNDS[theme]) for c in ramp]
        assert against == sorted(against)


def test_stacks_hold_each_case_once_along_either_axis():
    cases = cases_of()
    found = results(cases)
    stacks = charts.stacks(found.cases)
    for fixed in ("batch_size", "seq_len"):
        slugs = [s for stack in stacks[fixed].values() for s in stack["cases"]]
        assert sorted(slugs) == sorted(c.slug for c in cases)
    by_slug = {c.case.slug: c for c in found.cases}
    for stack in stacks["batch_size"].values():
        assert stack["x"] == sorted(stack["x"])
        for i, slug in enumerate(stack["cases"]):
            total = sum(series[i] for series in stack["stages"].values())
            assert total == pytest.approx(
                sum(s.median_ns for s in by_slug[slug].stages) / 1e6, rel=1e-4
            )


def test_curves_draw_what_each_line_knows():
    cases = cases_of()
    found = results(cases)
    floor = Line("floor h200_sxm", "floor", {c.slug: 1e4 for c in cases if c.seq_len > 100})
    curves = charts.curves(found.cases, [floor, Line("nothing", "prediction", {})])
    assert {(c["batch"], c["kind"]) for c in curves} == {
        (b, k) for b in (1, 2, 8) for k in ("measured", "floor")
    }
    for curve in curves:
        assert len(curve["x"]) == len(curve["y"]) == len(curve["cases"])
        if curve["kind"] == "floor":
            assert min(curve["x"]) > 100
            assert set(curve["y"]) == {0.01}


def test_floors_of_the_results_are_a_line_a_metric_and_a_column(tmp_path):
    cases = cases_of()
    found = floored(results(cases), session(cases))
    shown = view.session_view(found, session(cases))
    assert list(shown["metrics"]) == ["latency", "spread", "roofline"]
    kinds = {c["kind"] for c in shown["data"]["slices"][0]["curves"]}
    assert kinds == {"measured", "floor"}
    html = text_of(render.write(found, session(cases), tmp_path / "a.html"))
    share = found.cases[0].roofline_share()
    assert f'<td class="num">{100 * share:.1f}%</td>' in html


def test_levels_keep_to_the_ramp():
    assert charts.level(0, 0, 0) == 0
    assert [charts.level(v, 0, 1) for v in (-1, 0, 0.5, 1, 2)] == [0, 0, 5, 9, 9]
    levels = [charts.ratio_level(r) for r in (0.1, 0.8, 0.97, 0.99, 1, 1.01, 1.03, 1.3, 9)]
    assert levels == sorted(levels)
    assert (levels[0], levels[4], levels[-1]) == (0, 4, 8)


def test_slices_split_what_one_map_cannot_show():
    cases = (*cases_of(heads=(128, 64)), Case("context", 1, 64, prefix=128))
    shown = view.session_view(results(cases), session(cases))
    assert [s["id"] for s in shown["slices"]] == [
        "context-p128-h128-bfloat16",
        "generation-h128-bfloat16",
        "generation-h64-bfloat16",
    ]
    placed = [i for s in shown["slices"] for row in s["grid"] for i in row if i]
    assert sorted(placed) == sorted(c.slug for c in cases)


def test_verdict_tells_what_is_missing():
    cases = cases_of()
    assert view.verdict(results(cases), session(cases))["state"] == "good"
    outcomes = {c: Outcome("done") for c in cases[1:]} | {cases[0]: Outcome("oom")}
    told = view.verdict(results(cases[1:]), session(cases, outcomes=outcomes))
    assert told == {"state": "fair", "text": "11 of 12 cases measured, 1 failed"}
    assert view.verdict(results(()), None)["state"] == "bad"


def test_what_was_not_measured_is_on_the_page(tmp_path):
    cases = cases_of()
    skipped = Skip(Case("generation", 1024, 131071), "batch x length exceeds the limit")
    outcomes = {cases[0]: Outcome("timeout", detail="longer than 60 s")}
    found = session(cases, plan=Plan(cases, (skipped,)), outcomes=outcomes)
    html = text_of(render.write(results(cases[1:]), found, tmp_path / "a.html"))
    assert "longer than 60 s" in html
    assert "batch x length exceeds the limit" in html


def test_the_page_holds_every_number_without_scripts(tmp_path):
    cases = cases_of()
    found = results(cases)
    html = text_of(render.write(found, session(cases), tmp_path / "a.html"))
    bare = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    for row in found.cases:
        assert f'<tr id="{row.case.slug}"' in bare
        assert f"{row.span_ns.median / 1e6:.4f}" in bare
    for text in ("NVIDIA H200", "nvtx 0.2.10", "the clock was not locked", "topKPerRowDecode"):
        assert text in bare


def test_data_holds_every_kernel_of_every_case(tmp_path):
    cases = cases_of()
    found = results(cases)
    data = data_of(text_of(render.write(found, session(cases), tmp_path / "a.html")))
    for row in found.cases:
        kernels = data["cases"][row.case.slug]["kernels"]
        assert [data["names"][k[0]] for k in kernels] == [k.name for k in row.kernels]
        assert [k[3] for k in kernels] == pytest.approx([k.median_ns / 1e6 for k in row.kernels])


def test_nothing_is_fetched_and_only_our_scripts_run(tmp_path):
    cases = cases_of()
    html = text_of(render.write(results(cases), session(cases), tmp_path / "a.html"))
    csp = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1].replace("&#39;", "'")
    assert csp.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in csp
    assert "unsafe-inline" not in csp.split("script-src")[1].split(";")[0]
    allowed = set(re.findall(r"'sha256-([^']+)'", csp))
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    hashes = {sha256(code) for code in scripts}
    assert allowed - hashes == {sha256(render.plotly_js())}
    assert hashes < allowed
    markup = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)|url\(|@import""", markup)


def test_hostile_names_stay_text(tmp_path):
    found, owner = hostile()
    html = text_of(render.write(found, owner, tmp_path / "a.html"))
    assert html.count("<script") == len(render.SESSION_SCRIPTS) + 2
    assert "<img" not in re.sub(r"<script.*?</script>", "", html, flags=re.S)
    names = data_of(html)["names"]
    assert any(n.startswith(HOSTILE[0]) for n in names)
    assert any(len(n) > 10_000 for n in names)


def test_a_bare_trace_and_an_empty_one_have_a_page(tmp_path):
    cases = cases_of()
    assert "trace" in text_of(render.write(results(cases), None, tmp_path / "a.html"))
    assert "holds no case" in text_of(render.write(results(()), None, tmp_path / "b.html"))


def test_host_timing_is_said_on_top(tmp_path):
    cases = cases_of()
    told = "Timed on the host."
    assert told in text_of(
        render.write(results(cases, timing="host"), session(cases), tmp_path / "a.html")
    )
    assert told not in text_of(render.write(results(cases), session(cases), tmp_path / "b.html"))


def test_same_input_same_bytes(tmp_path):
    cases = cases_of()
    one = render.write(results(cases), session(cases), tmp_path / "a.html")
    two = render.write(results(cases), session(cases), tmp_path / "b.html")
    assert one.read_bytes() == two.read_bytes()


def test_the_standard_grid_keeps_to_six_megabytes(tmp_path):
    cases = standard_cases()
    assert len(cases) == 181
    path = render.write(results(cases), session(cases), tmp_path / "a.html")
    assert path.stat().st_size <= 6_000_000


def test_an_unwritable_place_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    cases = cases_of()
    with pytest.raises(UsageError, match="cannot write"):
        render.write(results(cases), session(cases), tmp_path / "file" / "a.html")


# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
MATRICES = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
                   (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
                     (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602),
                   (0.004733, 0.691367, 0.303900)),
}  # fmt: skip


def simulate(colour, kind):
    linear = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in linear]
    rows = MATRICES[kind]
    return [max(0.0, sum(m * c for m, c in zip(row, linear, strict=True))) for row in rows]


def distance(one, other):
    """Euclidean distance in OKLab."""
    return sum((a - b) ** 2 for a, b in zip(oklab(one), oklab(other), strict=True)) ** 0.5


def oklab(rgb):
    r, g, b = rgb
    lms = (
        0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b,
        0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b,
        0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b,
    )
    l, m, s = (v ** (1 / 3) for v in lms)  # noqa: E741
    return (
        0.2104542553 * l + 0.7936177850 * m - 0.0040720468 * s,
        1.9779984951 * l - 2.4285922050 * m + 0.4505937099 * s,
        0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s,
    )
