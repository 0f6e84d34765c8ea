"""report and export from a session on disk to files that hold the same numbers."""

from __future__ import annotations

import csv
import gzip
import json
import sqlite3

import pytest
import trace_factory
from results_factory import cases_of, disk_session, results, session

from dsa_profiler import pipeline
from dsa_profiler.cli import main
from dsa_profiler.errors import InputError
from dsa_profiler.export import markdown, perfetto
from dsa_profiler.marks import STAGES


@pytest.fixture
def folder(tmp_path):
    return disk_session(tmp_path / "traces" / "mine", trace_factory.CASES)


def test_every_format_of_a_session(folder, tmp_path, capsys):
    assert main(["export", str(folder), "--to", "all", "-o", str(tmp_path / "out")]) == 0
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == [
        "analysis.sqlite",
        "dsa_context_bf16_kernels.csv",
        "dsa_context_bf16_perf.txt",
        "dsa_generation_bf16_kernels.csv",
        "dsa_generation_bf16_perf.txt",
        "mine-0000.perfetto.json.gz",
        "summary.md",
    ]
    printed = capsys.readouterr().out.split()
    assert sorted(p.rpartition("/")[2] for p in printed) == names


def test_formats_agree_with_analyze(folder, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(folder), "--to", "all", "-o", str(out), "-q"]) == 0
    found = {c.case.slug: c for c in pipeline.analyze(folder).cases}
    with sqlite3.connect(out / "analysis.sqlite") as database:
        stored = dict(database.execute("select id, span_median_ns from cases"))
    assert stored == {slug: c.span_ns.median for slug, c in found.items()}
    with (out / "dsa_generation_bf16_perf.txt").open() as file:
        for row in csv.DictReader(file):
            assert float(row["latency"]) == pytest.approx(
                found[row["case"]].span_ns.median / 1e6, abs=1e-6
            )
    for result in found.values():
        assert f"{result.span_ns.median / 1e6:.3f}" in (out / "summary.md").read_text()


def test_files_go_beside_the_traces_by_default(folder, tmp_path, capsys):
    assert main(["export", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert all(p.startswith(str(tmp_path / "reports" / "mine")) for p in told["files"])
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "reports" / "mine" / "index.html")


def test_a_trace_alone_has_a_page_and_no_perf_csv(folder, tmp_path, capsys):
    trace = next(folder.glob("chunks/*/trace.sqlite"))
    assert main(["report", str(trace), "-o", str(tmp_path / "a.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cases"] == len(trace_factory.CASES)
    assert main(["export", str(trace), "--to", "csv", "-o", str(tmp_path / "out")]) == 4
    assert "give the session's folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["export", str(trace), "--to", "sqlite", "-o", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("verb", ["report", "export"])
@pytest.mark.parametrize("what", ["absent", "empty", "noise", "folder"])
def test_bad_input_is_two_lines_and_leaves_nothing(verb, what, tmp_path, capsys):
    bad = tmp_path / "bad.sqlite"
    if what == "folder":
        bad.mkdir()
    elif what != "absent":
        bad.write_bytes(b"" if what == "empty" else b"no trace at all" * 99)
    assert main([verb, str(bad), "-o", str(tmp_path / "out")]) == 4
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 2
    assert err.startswith("error: ")
    assert "\n cure: " in err
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_a_usage_error(folder, capsys):
    assert main(["export", str(folder), "--to", "csvv"]) == 2
    assert "did you mean 'csv'" in capsys.readouterr().err


def test_markdown_keeps_hostile_text_in_its_cell():
    from test_report import hostile

    found, owner = hostile()
    text = markdown.summary(found, owner)
    assert "<script" not in text
    assert "<img" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_markdown_maps_every_case(tmp_path):
    cases = cases_of(heads=(128, 64))
    text = markdown.write(results(cases), session(cases), tmp_path / "a.md").read_text()
    assert "### generation, 128 heads, bfloat16" in text
    assert "### generation, 64 heads, bfloat16" in text
    assert "| sparse_attn |" in text
    with pytest.raises(InputError, match="no measured case"):
        markdown.write(results(()), None, tmp_path / "b.md")


def timeline(folder, tmp_path):
    assert main(["export", str(folder), "--to", "perfetto", "-o", str(tmp_path / "t"), "-q"]) == 0
    return json.loads(gzip.decompress((tmp_path / "t" / "mine-0000.perfetto.json.gz").read_bytes()))


FIELDS = {  # Trace Event Format: required and allowed fields by phase
    "X": ({"ph", "name", "cat", "pid", "tid", "ts", "dur"}, {"args"}),
    "M": ({"ph", "name", "pid", "tid", "args"}, set()),
    "s": ({"ph", "name", "cat", "id", "pid", "tid", "ts"}, set()),
    "f": ({"ph", "name", "cat", "id", "pid", "tid", "ts", "bp"}, set()),
}
TYPES = {"ph": str, "name": str, "cat": str, "pid": int, "tid": int, "ts": float, "dur": float,
         "args": dict, "id": int, "bp": str}  # fmt: skip


def test_every_timeline_event_has_the_documented_fields(folder, tmp_path):
    document = timeline(folder, tmp_path)
    assert set(document) <= {"traceEvents", "displayTimeUnit", "otherData"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    seen = set()
    for event in document["traceEvents"]:
        required, allowed = FIELDS[event["ph"]]
        assert required <= set(event) <= required | allowed
        assert all(isinstance(value, TYPES[key]) for key, value in event.items())
        assert event.get("dur", 0) >= 0
        seen.add(event["ph"])
    assert seen == set(FIELDS)


def test_timeline_slices_nest_and_flows_join_slices(folder, tmp_path):
    found = timeline(folder, tmp_path)["traceEvents"]
    starts = {}
    open_ends = {}
    last = {}
    for event in found:
        if event["ph"] != "X":
            continue
        track = (event["pid"], event["tid"])
        begin, end = round(event["ts"] * 1e3), round((event["ts"] + event["dur"]) * 1e3)
        assert begin >= last.get(track, begin)
        last[track] = begin
        ends = open_ends.setdefault(track, [])
        while ends and ends[-1] <= begin:
            ends.pop()
        assert not ends or end <= ends[-1]
        ends.append(end)
        starts.setdefault(track, set()).add(event["ts"])
    flows = {}
    for event in found:
        if event["ph"] in "sf":
            assert event["ts"] in starts[event["pid"], event["tid"]]
            flows.setdefault(event["id"], []).append(event["ph"])
    assert flows
    assert all(phases == ["s", "f"] for phases in flows.values())


def test_timeline_has_each_kernel_on_its_stream_and_its_stage(folder, tmp_path):
    found = timeline(folder, tmp_path)["traceEvents"]
    kernels = pipeline.analyze(folder).trace.kernels
    bars = [e for e in found if e["ph"] == "X"]
    assert sum(e["cat"] == "stage" for e in bars) == kernels
    assert sum(e["cat"] in perfetto.KINDS for e in bars) == kernels
    names = {e["args"]["name"] for e in found if e["ph"] == "M" and e["name"] == "thread_name"}
    staged = {e["args"]["stage"] for e in bars if e["cat"] == "stage"}
    assert staged <= set(STAGES)
    assert {f"stage {s}" for s in staged} <= names


def test_crossing_slices_get_lanes_of_their_own():
    bars = [perfetto.Slice(s, e, "", "range", i, {}) for i, (s, e) in
            enumerate([(0, 10), (2, 5), (4, 12), (5, 9), (10, 11), (12, 12)])]  # fmt: skip
    lanes = [[(b.start, b.end) for b in lane] for lane in perfetto.nested(bars)]
    assert lanes == [[(0, 10), (2, 5), (5, 9), (10, 11), (12, 12)], [(4, 12)]]


def test_same_session_same_timeline(folder, tmp_path):
    timeline(folder, tmp_path)
    once = (tmp_path / "t" / "mine-0000.perfetto.json.gz").read_bytes()
    timeline(folder, tmp_path)
    assert (tmp_path / "t" / "mine-0000.perfetto.json.gz").read_bytes() == once
