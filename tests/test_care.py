"""bundle, completion and the columns' page."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import tarfile
from pathlib import Path

import pytest
import trace_factory
from results_factory import cases_of, disk_session, results, session

from dsa_profiler import pipeline
from dsa_profiler import session as sessions
from dsa_profiler.cli import main
from dsa_profiler.cli.verbs import VERBS
from dsa_profiler.columns import PERF_HEADER
from dsa_profiler.export import dictionary, perf_csv, store

ROOT = Path(__file__).parents[1]


def test_columns_are_explained_in_the_order_they_are_written(tmp_path):
    known = dictionary.columns()
    assert list(known["perf"]) == [*PERF_HEADER, *perf_csv.EXTRA_HEADER]
    assert list(known["kernels"]) == list(perf_csv.KERNEL_HEADER)
    cases = cases_of()
    path = store.write(results(cases), session(cases), tmp_path / "a.sqlite")
    with sqlite3.connect(path) as database:
        tables = [
            t for (t,) in database.execute("select name from sqlite_master where type='table'")
        ]
        assert tables == list(known["sqlite"])
        for table in tables:
            columns = [row[1] for row in database.execute(f"pragma table_info([{table}])")]
            assert columns == list(known["sqlite"][table]), table


def test_the_columns_page_is_generated(capsys):
    assert main(["help", "--columns"]) == 0
    kept = (ROOT / "docs" / "columns.md").read_text("utf-8")
    assert capsys.readouterr().out == kept, "dsa-profiler help --columns > docs/columns.md"


@pytest.fixture
def folder(tmp_path):
    made = disk_session(tmp_path / "traces" / "mine", trace_factory.CASES)
    (made / "chunks" / "0000" / "log.txt").write_text("a secret path")
    found = sessions.load(made)
    environment = {**found.environment, "hostname": "secret-node", "user": "secret-me"}
    from dataclasses import replace

    sessions.save(made, replace(found, environment=environment))
    return made


def test_a_bundle_is_a_session_again_and_tells_no_secret(folder, tmp_path):
    target = tmp_path / "mine.tar.gz"
    assert main(["bundle", str(folder), "-o", str(target), "-q"]) == 0
    with tarfile.open(target) as tar:
        assert all(m.isfile() and m.name.startswith("mine/") and m.uname == "" for m in tar)
        tar.extractall(tmp_path / "there", filter="data")
    copy = tmp_path / "there" / "mine"
    assert pipeline.analyze(copy).as_json()["cases"] == pipeline.analyze(folder).as_json()["cases"]
    names = {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()}
    assert {"session.json", "reports/index.html", "reports/analysis.sqlite"} <= names
    assert not any(b"secret" in p.read_bytes() for p in copy.rglob("*") if p.is_file())


def test_the_same_session_is_the_same_bundle(folder, tmp_path):
    for name in ("a", "b"):
        assert main(["bundle", str(folder), "-o", str(tmp_path / name), "-q"]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_no_session_cannot_be_bundled(tmp_path, capsys):
    assert main(["bundle", str(tmp_path), "-o", str(tmp_path / "a")]) == 4
    assert not (tmp_path / "a").exists()
    assert "[session-not-found]" in capsys.readouterr().err


def complete(script, *words):
    """What bash would offer for the last of the words."""
    ask = (
        f"{script}\nCOMP_WORDS=({' '.join(words)}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
        '_dsa_profiler; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_verbs_and_options(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert complete(script, "dsa-profiler", "co") == ["compare", "completion"]
    assert complete(script, "dsa-profiler", "compare", "--fail") == ["--fail-above"]
    assert "--to" in complete(script, "dsa-profiler", "export", "--")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_the_script(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)
    if found := shutil.which(shell):
        subprocess.run([found, "-n"], input=script, text=True, check=True)


def test_an_unknown_shell_is_a_usage_error(capsys):
    assert main(["completion", "bsh"]) == 2
    assert "did you mean 'bash'?" in capsys.readouterr().err
