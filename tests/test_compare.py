"""A comparison finds planted changes, keeps quiet about noise, and gates."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from results_factory import cases_of, disk_session, results, session

from dsa_profiler.analysis.compare import compare
from dsa_profiler.cli import main
from dsa_profiler.errors import InputError
from dsa_profiler.export import markdown
from dsa_profiler.model import Case, load_model
from dsa_profiler.report import compare_view
from dsa_profiler.results import Spread


def noisy(found, seed, sigma=0.01, count=40, scale=1.0):
    """The same results, their iterations drawn anew around `scale` x the median."""
    rng = random.Random(seed)
    rows = []
    for row in found.cases:
        spans = sorted(
            round(row.span_ns.median * scale * (1 + sigma * rng.gauss(0, 1))) for _ in range(count)
        )
        middle = (spans[(count - 1) // 2] + spans[count // 2]) / 2
        spread = Spread(middle, spans[count // 10], spans[-count // 10], spans[0], spans[-1])
        rng.shuffle(spans)
        rows.append(replace(row, span_ns=spread, iteration_spans_ns=tuple(spans)))
    return replace(found, cases=tuple(rows))


def test_a_planted_change_is_found_with_its_size():
    base = results(cases_of())
    found = compare(noisy(base, 1), noisy(base, 2, scale=1.1))
    assert {c.verdict for c in found.cases} == {"slower"}
    assert found.total.ratio == pytest.approx(1.1, abs=0.01)
    for change in found.cases:
        assert change.low < change.ratio < change.high
        assert change.low > 1.05


def test_the_interval_holds_the_truth_nineteen_times_in_twenty():
    base = results(cases_of())
    inside = total = 0
    for seed in range(12):
        found = compare(noisy(base, 2 * seed, 0.03), noisy(base, 2 * seed + 1, 0.03))
        inside += sum(c.low <= 1 <= c.high for c in found.cases)
        total += len(found.cases)
    assert 0.90 <= inside / total <= 0.99


def test_noise_alone_is_the_same():
    base = results(cases_of())
    verdicts = [
        c.verdict
        for seed in range(6)
        for c in compare(noisy(base, seed, 0.02), noisy(base, seed + 99, 0.02)).cases
    ]
    assert verdicts.count("same") / len(verdicts) > 0.95


def test_itself_is_the_same_to_the_digit():
    found = results(cases_of())
    told = compare(found, found, session(cases_of()), session(cases_of()))
    assert {(c.ratio, c.verdict) for c in told.cases} == {(1.0, "same")}
    assert told.warnings == ()
    assert told.total.ratio == 1.0


def test_swapping_the_sides_inverts_the_ratios():
    base = results(cases_of())
    a, b = noisy(base, 1), noisy(base, 2, scale=1.3)
    there, back = compare(a, b), compare(b, a)
    for one, other in zip(there.cases, back.cases, strict=True):
        assert one.ratio * other.ratio == pytest.approx(1)
        assert (one.verdict, other.verdict) == ("slower", "faster")


def test_few_iterations_have_no_interval_and_say_so():
    base = results(cases_of())
    found = compare(noisy(base, 1, count=2), noisy(base, 2, count=2, scale=1.2))
    assert {(c.low, c.high, c.verdict) for c in found.cases} == {(None, None, "unsure")}
    assert "compare-few-iterations" in [w.slug for w in found.warnings]


def test_stages_are_blamed():
    base = results(cases_of())
    rows = []
    for row in base.cases:
        stages = tuple(
            replace(s, median_ns=s.median_ns * (1.5 if s.stage == "sparse_attn" else 1))
            for s in row.stages
        )
        rows.append(replace(row, stages=stages))
    told = dict(compare(base, replace(base, cases=tuple(rows))).stages)
    assert told["sparse_attn"].ratio == pytest.approx(1.5)
    assert told["o_proj"].ratio == pytest.approx(1.0)


def test_what_cannot_be_compared_is_refused():
    cases = cases_of()
    base = results(cases)
    with pytest.raises(InputError, match="no case in common"):
        compare(base, results((Case("context", 1, 16),)))
    with pytest.raises(InputError, match="timed on the gpu"):
        compare(base, results(cases, timing="host"))
    with pytest.raises(InputError, match="different models"):
        compare(base, base, session(cases), session(cases, model=load_model("glm-5")))


def test_what_makes_it_doubtful_is_said():
    cases = cases_of()
    base = results(cases)
    other = replace(base, trace=replace(base.trace, gpus=("NVIDIA H20",)))
    environment = {**session(cases).environment, "packages": {"torch": "2.11.0", "nvtx": "0.2.10"}}
    told = compare(base, other, session(cases), session(cases, environment=environment))
    whats = [w.what for w in told.warnings]
    assert "gpus differs: NVIDIA H200 in A, NVIDIA H20 in B" in whats
    assert "torch differs: 2.13.0 in A, 2.11.0 in B" in whats
    assert len(whats) == 2


def test_cases_of_one_side_are_listed():
    cases = cases_of()
    told = compare(results(cases), results(cases[1:]))
    assert (told.only_a, told.only_b) == ((cases[0].slug,), ())
    assert len(told.cases) == len(cases) - 1


def test_markdown_lists_the_largest_changes_first():
    base = results(cases_of())
    document = compare(noisy(base, 1), noisy(base, 2, scale=1.2)).as_json()
    document["a"] = "be|fore <b>"
    document["gate"] = {"fail_above": 0.05, "failed": [c["id"] for c in document["cases"]]}
    text = markdown.comparison(document, rows=3)
    assert "be\\|fore &lt;b&gt;" in text
    assert "Gate **failed**: 12 cases slower by more than 5 %." in text
    assert text.count("| slower |") == 3
    assert "9 more cases changed." in text


def test_the_page_holds_every_case(tmp_path):
    base = results(cases_of())
    document = compare(noisy(base, 1), noisy(base, 2, scale=1.2)).as_json()
    html = compare_view.write(document, tmp_path / "a.html").read_text()
    assert all(f'<tr id="{c["id"]}"' in html for c in document["cases"])
    assert len(html) < 300_000
    assert compare_view.write(document, tmp_path / "b.html").read_text() == html


def test_the_verb_gates_with_exit_six(tmp_path, capsys):
    cases = (Case("context", 1, 1024), Case("generation", 64, 4095))
    a = disk_session(tmp_path / "traces" / "a", cases)
    b = disk_session(tmp_path / "traces" / "b", cases, seed=3)
    page = tmp_path / "c.html"
    assert main(["compare", str(a), str(b), "-o", str(page), "--fail-above", "50%"]) == 0
    assert capsys.readouterr().out.strip().endswith(str(page))
    assert main(["compare", str(a), str(b), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [c["id"] for c in document["cases"]] == [c.slug for c in cases]
    assert main(["compare", str(a), str(b), "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("## b against a\n")
    slow = slower(tmp_path / "traces" / "slow", cases)
    assert main(["compare", str(a), str(slow), "--fail-above", "5%", "-q"]) == 6
    told = capsys.readouterr()
    assert told.out == ""
    assert "2 of 2 cases are slower by more than 5 %" in told.err
    assert main(["compare", str(slow), str(a), "--fail-above", "0.05", "-q"]) == 0


def slower(folder, cases):
    """A session whose kernels, and the gaps between them, all take twice as long."""
    import sqlite3

    disk_session(folder, cases)
    with sqlite3.connect(folder / "chunks" / "0000" / "trace.sqlite") as database:
        for table in ("CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"):
            database.execute(f"update {table} set start = 2 * start, [end] = 2 * [end]")
    return folder


@pytest.mark.parametrize("limit", ["x", "-1", "5%%", ""])
def test_a_limit_that_is_none_is_a_usage_error(limit, tmp_path, capsys):
    assert main(["compare", "a", "b", f"--fail-above={limit}"]) == 2
    assert "write 5% or 0.05" in capsys.readouterr().err


def test_a_stages_ratio_has_its_own_interval():
    def side(scale):
        base = results([Case("generation", 1, 64)])
        [case] = base.cases
        times = tuple(scale * n for n in (1000, 1010, 1020, 1030, 1040))
        stage = replace(case.stages[0], median_ns=float(times[2]), iteration_ns=times)
        return replace(base, cases=(replace(case, stages=(stage,)),))

    [change] = compare(side(1), side(2)).cases
    [stage] = change.stages
    assert stage.ratio == 2.0
    assert stage.low is not None
    assert stage.high is not None
    assert 1.9 < stage.low < 2.0 < stage.high < 2.1
