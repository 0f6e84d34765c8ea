"""A scrubbed trace computes the same and gives nothing away."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import public_traces
import pytest
import trace_factory
from test_trace_reader import assert_same, change

from dsa_profiler.cli import main
from dsa_profiler.errors import InputError
from dsa_profiler.trace import schema
from dsa_profiler.trace.private import clean_text
from dsa_profiler.trace.reader import read
from dsa_profiler.trace.scrub import scrub
from dsa_profiler.trace.writer import write

SECRET = "hunter2"
OTHER_TABLES = {
    "TARGET_INFO_SYSTEM_ENV": "globalVid INTEGER, devStateName TEXT, name TEXT, value TEXT",
    "PROCESSES": "globalPid INTEGER, pid INTEGER, name TEXT",
    "ProcessStreams": "globalPid INTEGER, filenameId INTEGER, contentId INTEGER",
    "ANALYSIS_FILE": "id INTEGER, filename TEXT, contentId INTEGER, globalPid INTEGER",
    "OSRT_API": "start INTEGER, end INTEGER, nameId INTEGER, globalTid INTEGER",
    "SOME_FUTURE_TABLE": "text TEXT",
}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A trace with a secret in each place where nsys stores text."""
    program = trace_factory.Program()
    thread = program.thread()
    with thread.range("dsa:iter 0"):
        thread.launch("kernel", 100)
    trace = program.trace(diagnostics=trace_factory.diagnostics((2, "filled below")))
    path = trace_factory.export(trace, tmp_path / "planted.sqlite", "3.25.0")
    s, n = SECRET, iter(range(10_000, 20_000))
    strings = {k: next(n) for k in ("process", "file", "stdout", "busy thread", "payload", "gone")}
    change(
        path,
        *(f"CREATE TABLE {t} ({columns})" for t, columns in OTHER_TABLES.items()),
        *(
            f"INSERT INTO {schema.STRINGS} VALUES ({i}, '{s} {k}')"
            for k, i in strings.items()
            if k != "busy thread"
        ),
        f"INSERT INTO {schema.STRINGS} VALUES ({strings['busy thread']}, 'python')",
        "CREATE TABLE ThreadNames (nameId INTEGER NOT NULL, -- REFERENCES StringIds(id)\n"
        "priority INTEGER, globalTid INTEGER)",
        f"INSERT INTO ThreadNames VALUES ({strings['process']}, 1, 42)",
        f"INSERT INTO ThreadNames VALUES ({strings['busy thread']}, 1, {thread.thread})",
        f"INSERT INTO TARGET_INFO_SYSTEM_ENV VALUES (0, 'x', 'Hostname', '{s}')",
        f"INSERT INTO PROCESSES VALUES (1, 1, '/opt/{s}/bin/python')",
        f"INSERT INTO ProcessStreams VALUES (1, {strings['file']}, {strings['stdout']})",
        f"INSERT INTO ANALYSIS_FILE VALUES (1, '/home/{s}', {strings['stdout']}, 1)",
        f"INSERT INTO OSRT_API VALUES (1, 2, {strings['gone']}, {thread.thread})",
        f"INSERT INTO SOME_FUTURE_TABLE VALUES ('{s}')",
        f"CREATE TABLE IF NOT EXISTS {schema.CAPTURE} (name TEXT NOT NULL, value TEXT)",
        *(
            f"INSERT INTO {schema.CAPTURE} VALUES ('{k}', '{v}')"
            for k, v in {
                "PROCESS_0:ENVIRONMENT_VARIABLE": f"TOKEN={s}",
                "PROCESS_0:WORKING_DIR": f"/home/{s}",
                "PROCESS_0:USER_NAME": s,
                f"NEW_KEY_{s}": s,
                "START_TRIGGER": "Manual",
                "PROCESS_0:START_DELAY_MS": f"1 {s}",
            }.items()
        ),
        *(
            f"INSERT INTO {schema.EXPORT[0]} VALUES ('{k}', '{v}')"
            for k, v in {
                "EXPORT_HOST": s,
                "EXPORT_PARAM_INPUT_PATH_ABS": f"/home/{s}/report.nsys-rep",
                "EXPORT_ARCH": f"x64 /home/{s}",
            }.items()
        ),
        f"UPDATE {schema.DIAGNOSTIC} SET text = 'Process launched in /home/{s}/run by {s} with "
        f"TOKEN={s} on {s}@node, 3 CUPTI events dropped'",
        f"ALTER TABLE {schema.GPU} ADD COLUMN uuid TEXT",
        f"UPDATE {schema.GPU} SET uuid = '{s}'",
        f"ALTER TABLE {schema.RUNTIME} ADD COLUMN note TEXT",
        f"UPDATE {schema.RUNTIME} SET note = '{s}'",
        f"ALTER TABLE {schema.NVTX} ADD COLUMN jsonTextId INTEGER",
        f"ALTER TABLE {schema.NVTX} ADD COLUMN jsonText TEXT",
        f"UPDATE {schema.NVTX} SET jsonTextId = {strings['payload']}, jsonText = '{s}'",
        f"INSERT INTO {schema.NVTX} (start, eventType, text, globalTid) VALUES (1, 39, '{s}', 1)",
        "CREATE TABLE TARGET_INFO_SESSION_START_TIME (utcEpochNs INTEGER, localTime TEXT)",
        f"INSERT INTO TARGET_INFO_SESSION_START_TIME VALUES (1, '{s}')",
        f"INSERT INTO {schema.STRINGS} VALUES (30000, '{s} deleted')",
        f"DELETE FROM {schema.STRINGS} WHERE id = 30000",
    )
    return path


def test_nothing_planted_comes_through(planted: Path, tmp_path: Path) -> None:
    assert planted.read_bytes().count(SECRET.encode()) > 25
    target = tmp_path / "clean.sqlite"
    done = scrub(planted, target)
    assert SECRET.encode() not in target.read_bytes()
    assert SECRET.encode("utf-16-le") not in target.read_bytes()
    assert set(done.dropped) == set(OTHER_TABLES)


def test_what_is_computed_stays_the_same(planted: Path, tmp_path: Path) -> None:
    scrub(planted, tmp_path / "clean.sqlite")
    before, after = read(planted), read(tmp_path / "clean.sqlite")
    assert_same(before, after)
    assert after.info.options == {"START_TRIGGER": "Manual"} == dict(before.info.options)
    assert "3 CUPTI events dropped" in after.info.diagnostics[0].text
    assert before.info.gpus == after.info.gpus
    with closing(sqlite3.connect(tmp_path / "clean.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM ThreadNames").fetchone() == (1,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA freelist_count").fetchone() == (0,)


@pytest.mark.parametrize("generation", trace_factory.GENERATIONS)
def test_every_schema_generation(tmp_path: Path, generation: str) -> None:
    source = trace_factory.export(
        trace_factory.dsa_trace(graph="node"), tmp_path / "t.sqlite", generation
    )
    scrub(source, tmp_path / "clean.sqlite")
    before, after = read(source), read(tmp_path / "clean.sqlite")
    assert before.info == after.info
    assert_same(before, after)


@pytest.mark.parametrize("name", public_traces.ALL)
def test_published_traces_keep_every_row_and_string(tmp_path: Path, name: str) -> None:
    source = public_traces.trace(name)
    done = scrub(source, tmp_path / "clean.sqlite")
    assert done.strings == done.strings_before
    before, after = read(source), read(tmp_path / "clean.sqlite")
    assert_same(before, after)
    assert before.info == after.info


def test_what_is_read_quotes_no_secret_either(planted: Path) -> None:
    assert SECRET not in repr(read(planted).info)


def test_what_is_written_from_columns_holds_no_secret_either(planted: Path, tmp_path: Path) -> None:
    write(read(planted), tmp_path / "t.sqlite")
    assert SECRET.encode() not in (tmp_path / "t.sqlite").read_bytes()
    assert_same(read(planted), read(tmp_path / "t.sqlite"))


def test_it_can_take_the_place_of_its_source(planted: Path) -> None:
    before = read(planted)
    scrub(planted, planted)
    assert_same(before, read(planted))
    assert SECRET.encode() not in planted.read_bytes()


def test_the_same_trace_gives_the_same_bytes(planted: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        scrub(planted, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_chrome_trace_becomes_a_clean_sqlite(tmp_path: Path) -> None:
    source = tmp_path / "t.json"
    event = {"ph": "X", "cat": "user_annotation", "name": "dsa:iter 0", "pid": 1, "tid": 1,
             "ts": 1, "dur": 2, "args": {"env": SECRET}}  # fmt: skip
    source.write_text(json.dumps({"host_name": SECRET, "traceEvents": [event]}))
    scrub(source, tmp_path / "clean.sqlite")
    assert SECRET.encode() not in (tmp_path / "clean.sqlite").read_bytes()
    assert_same(read(source), read(tmp_path / "clean.sqlite"))


def test_a_broken_source_leaves_no_target(tmp_path: Path) -> None:
    (tmp_path / "t.sqlite").write_bytes(b"SQLite format 3\x00" + b"x" * 5000)
    with pytest.raises(InputError):
        scrub(tmp_path / "t.sqlite", tmp_path / "clean.sqlite")
    assert [p.name for p in tmp_path.iterdir()] == ["t.sqlite"]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Cannot open /home/me/x.log: denied", "Cannot open <path>: denied"),
        ("~/run and ../x", "<path> and <path>"),
        (r"in C:\Users\me", "in <path>"),
        ("with TOKEN=abc set", "with <assignment> set"),
        ("on me@node1.example at 10.0.0.7", "on <address> at <address>"),
        ("1/2 events, 50 % and/or more", "1/2 events, 50 % and/or more"),
        ("Number of CUPTI events produced: \t5974", "Number of CUPTI events produced: \t5974"),
    ],
)
def test_diagnostics_without_what_is_private(text: str, clean: str) -> None:
    assert clean_text(text) == clean


def test_the_verb(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scrub", str(planted), str(tmp_path / "c.sqlite"), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["dropped"]) == set(OTHER_TABLES)
    assert main(["scrub", str(planted), str(tmp_path)]) == 2
    assert main(["scrub", str(tmp_path / "absent"), str(tmp_path / "d.sqlite")]) == 4
    assert not (tmp_path / "d.sqlite").exists()
