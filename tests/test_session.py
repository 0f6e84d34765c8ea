"""The manifest: what is written is read back, and what is done stays done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsa_profiler import session
from dsa_profiler.errors import InputError, UsageError
from dsa_profiler.model import load_model
from dsa_profiler.plan import Grid, build
from dsa_profiler.session import Chunk, Outcome, Session


def a_session() -> Session:
    plan = build([Grid("context", (1, 2), (16, 32), limit=32)])
    return Session(
        name="night",
        created="2026-01-01T00:00:00Z",
        workload="reference",
        tracer="nsys",
        model=load_model("deepseek-v3.2"),
        plan=plan,
        settings={"warmup": 2},
        environment={"device": "cpu"},
    )


def test_a_manifest_survives_the_disk(tmp_path: Path) -> None:
    before = a_session()
    first = before.plan.cases[0]
    before = before.with_chunk(
        Chunk("0001", (first,), "chunks/0001/trace.sqlite"),
        {first: Outcome("done", "0001", untraced_ns=12.5)},
    )
    session.save(tmp_path, before)
    assert session.load(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["session.json"]


def test_what_is_done_is_never_overwritten_and_the_rest_is_pending() -> None:
    now = a_session()
    first, second, *_ = now.plan.cases
    now = now.with_chunk(Chunk("0001", (first,), "t"), {first: Outcome("done", "0001")})
    now = now.with_chunk(
        Chunk("0002", (first, second)),
        {first: Outcome("failed", "0002"), second: Outcome("oom", "0002")},
    )
    assert now.outcomes[first].status == "done"
    assert now.outcomes[second].status == "oom"
    assert now.pending() == now.plan.cases[2:]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 1}', '{"schema": 1, "plan": ["x"]}'])
def test_a_broken_manifest_is_bad_input(tmp_path: Path, text: str) -> None:
    (tmp_path / "session.json").write_text(text)
    with pytest.raises(InputError, match=r"session\.json"):
        session.load(tmp_path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "session.json").write_text(json.dumps({**a_session().as_json(), "schema": 2}))
    with pytest.raises(InputError, match="schema 2"):
        session.load(tmp_path)


def write_half(path: Path) -> None:
    with session.replacing(path) as part:
        part.write_text("half")
        path.parent.write_text("the disk says no")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    session.write_atomic(path, "old")
    with pytest.raises(IsADirectoryError):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        session.write_atomic(tmp_path / "file" / "x.txt", "")
