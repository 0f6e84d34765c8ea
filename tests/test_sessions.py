"""`sessions`: what is recorded, what went wrong, in text and JSON."""

import json

import pytest

from dsa_profiler import session as sessions
from dsa_profiler.cli import main
from dsa_profiler.model import load_model
from dsa_profiler.plan import Grid, build
from dsa_profiler.session import Chunk, Outcome, Session


@pytest.fixture
def stored(tmp_path):
    plan = build([Grid("generation", (1, 2, 4), (64,))])
    one, two, _ = plan.cases
    found = Session(
        name="s", created="2026-01-01T00:00:00Z", workload="reference", tracer="nsys",
        model=load_model("glm-5"), plan=plan, settings={}, environment={},
    ).with_chunk(
        Chunk("0001", (one, two)),
        {one: Outcome("done", "0001"), two: Outcome("oom", "0001", "out of memory")},
    )  # fmt: skip
    folder = tmp_path / "traces/s"
    sessions.save(folder, found)
    (folder / "chunks/0001").mkdir(parents=True)
    (folder / "chunks/0001/log.txt").write_text("begin\nCUDA out of memory\n\n", "utf-8")
    return tmp_path


def test_the_list_counts_outcomes(stored, capsys):
    assert main(["sessions", "--output", str(stored)]) == 0
    assert capsys.readouterr().out == "s  reference/nsys  1/3 done, 1 oom, 1 pending\n"


def test_one_session_tells_why_with_the_end_of_its_log(stored, capsys):
    assert main(["sessions", "s", "--output", str(stored)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "oom: generation-b2-s64-h128-bfloat16  out of memory",
        "    begin",
        "    CUDA out of memory",
    ]


def test_json_is_one_document(stored, capsys):
    assert main(["sessions", str(stored / "traces/s"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["outcomes"] == {"done": 1, "oom": 1}
    assert [entry["status"] for entry in document["not_done"]] == ["oom"]


def test_a_broken_or_newer_manifest_is_named_and_the_rest_is_listed(stored, capsys):
    bad = stored / "traces/bad/session.json"
    bad.parent.mkdir()
    bad.write_text('{"schema": 99}', "utf-8")
    assert main(["sessions", "--output", str(stored)]) == 4
    told = capsys.readouterr()
    assert "s  reference/nsys" in told.out
    assert "schema 99" in told.err
