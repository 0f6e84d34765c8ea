"""analysis.sqlite: tables with keys whose numbers are the results'."""

from __future__ import annotations

import sqlite3

import pytest
from results_factory import cases_of, floored, results, session

from dsa_profiler.export import store
from dsa_profiler.model import Case
from dsa_profiler.plan import Plan, Skip


@pytest.fixture
def database(tmp_path):
    cases = cases_of()
    skipped = (Skip(Case("generation", 1024, 131071), "too large"),)
    path = store.write(
        results(cases), session(cases, plan=Plan(cases, skipped)), tmp_path / "analysis.sqlite"
    )
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    yield connection
    connection.close()


def test_every_number_of_a_case_is_there(database):
    found = results(cases_of())
    for case in found.cases:
        row = database.execute(
            "select span_median_ns, busy_ns, gap_ns from cases where id = ?", [case.case.slug]
        ).fetchone()
        assert row == (case.span_ns.median, case.busy_ns, case.gap_ns)
        stages = database.execute(
            "select stage, median_ns from stages where [case] = ?", [case.case.slug]
        ).fetchall()
        assert dict(stages) == {s.stage: s.median_ns for s in case.stages}
        names = database.execute(
            "select name from kernels where [case] = ? order by position", [case.case.slug]
        )
        assert [n for (n,) in names] == [k.name for k in case.kernels]


def test_tables_have_keys_and_references(database):
    for table in ("meta", "cases", "stages", "kernels", "kernel_totals", "outcomes", "skipped"):
        columns = database.execute(f"pragma table_info([{table}])").fetchall()
        assert any(c[5] for c in columns), table
    references = database.execute("pragma foreign_key_list(stages)").fetchall()
    assert [(r[2], r[3], r[4]) for r in references] == [("cases", "case", "id")]
    assert database.execute("pragma foreign_key_check").fetchall() == []
    assert database.execute("pragma integrity_check").fetchone() == ("ok",)


def test_schema_version_and_environment_travel_along(database):
    meta = dict(database.execute("select key, value from meta").fetchall())
    assert meta["schema"] == "1"
    assert meta["tool_version"]
    assert meta["session"] == "sample"
    environment = dict(database.execute("select key, value from environment").fetchall())
    assert environment["nsys"] == "2025.3.1.90"
    assert database.execute("select reason from skipped").fetchall() == [("too large",)]
    assert database.execute("select count(*) from warnings").fetchone()[0] > 1


def test_a_bare_trace_needs_no_session(tmp_path):
    path = store.write(results(()), None, tmp_path / "a.sqlite")
    with sqlite3.connect(path) as connection:
        assert connection.execute("select count(*) from cases").fetchone() == (0,)


def test_same_input_same_bytes(tmp_path):
    cases = cases_of()
    one = store.write(results(cases), session(cases), tmp_path / "a.sqlite")
    two = store.write(results(cases), session(cases), tmp_path / "b.sqlite")
    assert one.read_bytes() == two.read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    cases = cases_of()
    path = store.write(results(cases), session(cases), tmp_path / "a.sqlite")
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        store.write(None, None, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.sqlite"]


def test_floors_stand_beside_what_was_measured(tmp_path):
    cases = cases_of()
    found = floored(results(cases), session(cases))
    path = store.write(found, session(cases), tmp_path / "a.sqlite")
    with sqlite3.connect(path) as connection:
        rows = connection.execute("select id, floor_ns, roofline_share from cases").fetchall()
        staged = connection.execute(
            "select floor_ns, roofline_share from stages where stage = 'o_proj'"
        ).fetchall()
    assert rows == [(c.case.slug, c.floor.floor_ns, c.roofline_share()) for c in found.cases]
    assert all(floor > 0 and share > 0 for floor, share in staged)
