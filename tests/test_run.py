"""`run`, the main command: real workers, real nsys, a model small enough to be quick."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from dsa_profiler import marks, session
from dsa_profiler.cli import main
from dsa_profiler.trace import reader

MODEL = str(Path(__file__).parent / "capture_model")
GRID = ["--model", MODEL, "--batch-sizes", "1,2", "--seq-lens", "8,24", "--warmup", "1",
        "--iterations", "3", "--device", "cpu"]  # fmt: skip


def run(*arguments: object) -> int:
    return main(["run", *map(str, arguments)])


def lines_of(capsys) -> list[str]:
    return capsys.readouterr().err.strip().splitlines()


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Tiny kernels on a busy machine: torch's threads would wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """One sweep by each tracer, into one folder."""
    folder = tmp_path_factory.mktemp("run")
    for tracer in ("nsys", "torch"):
        assert run(*GRID, "--tracer", tracer, "--output", folder, "--name", tracer, "-q") == 0
    return folder


def marks_of(folder: Path) -> Counter[str]:
    """Every mark text of ours in the traces of a session, with how often it is there."""
    found: Counter[str] = Counter()
    for path in sorted(folder.glob("chunks/*/trace.sqlite")):
        trace = reader.read(path)
        texts = (trace.strings.get(i, "") for i in trace.ranges.text.tolist())
        found.update(t for t in texts if marks.parse(t) is not None)
    return found


@pytest.mark.nsys
def test_real_nsys_records_every_mark_of_every_case(recorded):
    found = session.load(recorded / "traces/nsys")
    assert len(found.plan.cases) == 8
    assert {o.status for o in found.outcomes.values()} == {"done"}
    seen = marks_of(recorded / "traces/nsys")
    assert {t: n for t, n in seen.items() if t.startswith("dsa:case")} == {
        marks.case(c.slug): 1 for c in found.plan.cases
    }
    assert [seen[marks.iteration(n)] for n in range(4)] == [8, 8, 8, 0]
    assert [seen[marks.warmup(n)] for n in range(2)] == [8, 0]
    stages = {t for t in seen if t.startswith("dsa:stage")}
    assert {marks.stage(s) for s in ("qkv_a_proj", "topk", "sparse_attn", "o_proj")} <= stages
    assert all(seen[t] == 8 * 4 for t in stages - {marks.stage("index_convert")})


@pytest.mark.nsys
def test_the_torch_tracer_gives_the_same_cases_and_stages(recorded):
    by_nsys, by_torch = (marks_of(recorded / "traces" / t) for t in ("nsys", "torch"))
    assert by_nsys == by_torch
    results = [_results(recorded / "traces" / t) for t in ("nsys", "torch")]
    shapes = [
        [(c["id"], c["iterations"], sorted(s["stage"] for s in c["stages"])) for c in r["cases"]]
        for r in results
    ]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 8


@pytest.mark.parametrize("whole", [False, True])
def test_a_machine_without_the_packages_for_tables_can_record(tmp_path, capsys, monkeypatch, whole):
    """And is told what it lacks when it is asked for more; the session is the same."""
    for absent in ("pandas", "plotly", "sqlite_utils", "pyarrow", "jinja2", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, absent, None)
    only = [] if whole else ["--record-only"]
    code = run(*GRID[:4], "--seq-lens", 8, *GRID[6:], "--mode", "generation", "--tracer", "torch",
               "--output", tmp_path, "--name", "x", *only)  # fmt: skip
    told = lines_of(capsys)[-1 - whole]
    assert code == (3 if whole else 0)
    assert ("[dependency-missing]" if whole else f"recorded {tmp_path / 'traces/x'}") in told
    found = session.load(tmp_path / "traces/x")
    assert {o.status for o in found.outcomes.values()} == {"done"}
    assert (tmp_path / "traces/x" / found.chunks[0].trace).exists()
    assert not (tmp_path / "reports").exists()


def _results(folder: Path) -> dict:
    from dsa_profiler import pipeline

    return pipeline.analyze(folder).as_json()


@pytest.mark.nsys
def test_a_sweep_ends_with_tables_and_a_page_and_nothing_else(recorded):
    names = {p.name for p in (recorded / "traces/nsys").iterdir()}
    assert {"session.json", "chunks", "analysis.sqlite", "dsa_context_bf16_perf.txt",
            "dsa_generation_bf16_perf.txt"} <= names  # fmt: skip
    assert not [n for n in names if n.startswith(".")]
    page = (recorded / "reports/nsys/index.html").read_text("utf-8")
    assert "<html" in page
    leftovers = {p.name for p in (recorded / "traces/nsys/chunks").rglob("*") if p.is_file()}
    assert leftovers == {"chunk.json", "outcome.jsonl", "trace.sqlite", "log.txt"}


@pytest.mark.nsys
def test_the_traces_hold_neither_user_nor_environment(recorded):
    blob = b"".join(p.read_bytes() for p in recorded.glob("traces/*/chunks/*/trace.sqlite"))
    blob += b"".join(p.read_bytes() for p in recorded.glob("traces/*/session.json"))
    for secret in (os.environ.get("HOME", "/nonexistent/home"), os.uname().nodename, "PATH="):
        assert len(secret) < 4 or secret.encode() not in blob


def test_json_is_one_document_with_results_and_files(tmp_path, capsys):
    code = run("--model", MODEL, "--mode", "generation", "--batch-sizes", 1, "--seq-lens", 8,
               "--tracer", "torch", "--device", "cpu", "--output", tmp_path, "--json")  # fmt: skip
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert code == 0
    assert document["outcomes"] == {"generation-b1-s8-h4-bfloat16": "done"}
    assert all(Path(path).exists() for path in document["files"])
    assert document["results"]["cases"][0]["timing"] == "host"
    assert "describe this CPU" in told.err


def test_iterations_go_on_until_the_median_settles_or_say_that_it_did_not(tmp_path, capsys):
    code = run("--model", MODEL, "--mode", "generation", "--batch-sizes", 1, "--seq-lens", 8,
               "--tracer", "torch", "--device", "cpu", "--settle", 1e-9, "--budget", 2,
               "--output", tmp_path, "--name", "s", "--json")  # fmt: skip
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    (outcome,) = session.load(tmp_path / "traces/s").outcomes.values()
    assert outcome.status == "done"
    assert "never settled" in outcome.detail
    assert document["results"]["cases"][0]["iterations"] > 5
    assert "case-unsettled" in [w["slug"] for w in document["results"]["warnings"]]


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--dry-run", "--preset", "standard") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "context-b1-s1-h128-bfloat16"
    assert out[-1] == "291 cases (110 context, 181 generation), 58 skipped"
    assert sum(line.startswith("skip ") for line in out) == 58
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--mode", "decode"], 2, "decode"),
        (["--batch-sizes", "0"], 2, "at least 1"),
        (["--batch-sizes", "-3"], 2, "at least 1"),
        (["--batch-sizes", "one"], 2, "no list of whole numbers"),
        (["--batch-sizes", ""], 2, "no case"),
        (["--workload", "magic"], 2, "magic"),
        (["--tracer", "perf"], 2, "perf"),
        (["--frobnicate"], 2, "frobnicate"),
        (["--model", "no/such/model"], 4, "no/such/model"),
        (["--config", "no.toml"], 4, "no.toml"),
        (["--nsys", "/no/nsys", "--tracer", "nsys"], 3, "/no/nsys"),
        (["--resume"], 4, "no session"),
        (["--name", "a/b"], 2, "a/b"),
    ],
)
def test_bad_input_is_two_lines_and_leaves_nothing(
    tmp_path, capsys, monkeypatch, arguments, code, told
):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == code
    lines = lines_of(capsys)
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert told in lines[0]
    assert lines[1].startswith(" cure: ")
    assert list(tmp_path.iterdir()) == []


def test_a_config_without_index_fields_is_named(tmp_path, capsys):
    data = json.loads((Path(MODEL) / "config.json").read_text("utf-8"))
    del data["index_topk"]
    (tmp_path / "config.json").write_text(json.dumps(data), "utf-8")
    assert run("--model", tmp_path, "--output", tmp_path / "out") == 4
    assert "index_topk" in lines_of(capsys)[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_said_before_anything_runs(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", "utf-8")
    code = run("--model", MODEL, "--tracer", "torch", "--output", tmp_path / "file")
    assert code == 2
    assert "cannot write" in lines_of(capsys)[0]
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_second_session_of_one_name_and_a_changed_plan_are_refused(recorded, capsys):
    assert run(*GRID, "--tracer", "torch", "--output", recorded, "--name", "torch") == 2
    assert "holds a session already" in lines_of(capsys)[0]
    code = run("--output", recorded, "--name", "torch", "--resume", "--model", MODEL,
               "--batch-sizes", "1,2,4", "--seq-lens", "8,24")  # fmt: skip
    assert code == 2
    assert "another plan" in lines_of(capsys)[0]
    assert run("--output", recorded, "--name", "torch", "--resume", "--iterations", 4) == 2
    assert "iterations = 3, asked for 4" in lines_of(capsys)[0]
    assert run("--output", recorded, "--name", "torch", "--resume", "--power", 3) == 2
    assert "power = 1.0, asked for 3" in lines_of(capsys)[0]


def test_a_session_of_another_version_or_a_newer_schema_is_refused(recorded, tmp_path, capsys):
    manifest = json.loads((recorded / "traces/torch/session.json").read_text("utf-8"))
    for change, code, told in (({"tool_version": "9.9"}, 2, "9.9"), ({"schema": 9}, 4, "schema 9")):
        path = tmp_path / "traces/t/session.json"
        session.write_atomic(path, json.dumps({**manifest, **change}))
        assert run("--output", tmp_path, "--name", "t", "--resume") == code
        assert told in lines_of(capsys)[0]


def test_resuming_a_whole_session_measures_nothing_again(recorded):
    before = session.load(recorded / "traces/torch")
    assert run("--output", recorded, "--name", "torch", "--resume", "-q") == 0
    assert session.load(recorded / "traces/torch") == before


def process(folder):
    """The words of a `run` on its own, whose session is `s` in `folder`."""
    words = ("-m", "dsa_profiler", "run", "--output", str(folder), "--name", "s")
    return [sys.executable, *words]


def test_ctrl_c_keeps_what_is_finished_and_resume_does_the_rest(tmp_path):
    """As a user does it: a process, a signal, exit 130, then --resume."""
    command = process(tmp_path)
    sweep = subprocess.Popen(
        [*command, *GRID, "--tracer", "torch", "--chunk-cases", "2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    second = tmp_path / "traces/s/chunks/0002/outcome.jsonl"
    deadline = time.monotonic() + 120
    while not second.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait(timeout=120) == 130
    before = session.load(tmp_path / "traces/s")
    done = [c for c, o in before.outcomes.items() if o.status == "done"]
    assert 2 <= len(done) < 8
    assert subprocess.run([*command, "--resume", "-q"], capture_output=True).returncode == 0
    after = session.load(tmp_path / "traces/s")
    assert [o.status for o in after.outcomes.values()] == ["done"] * 8
    assert all(after.outcomes[c] == before.outcomes[c] for c in done)


def test_a_second_ctrl_c_stops_now_and_a_second_run_is_refused_meanwhile(tmp_path, capsys):
    command = process(tmp_path)
    slowly = ["--settle", "1e-9", "--budget", "30", "--tracer", "torch", "--chunk-cases", "1"]
    quiet = subprocess.DEVNULL
    sweep = subprocess.Popen([*command, *GRID, *slowly], stdout=quiet, stderr=quiet)
    running = tmp_path / "traces/s/chunks/0001/outcome.jsonl"
    deadline = time.monotonic() + 120
    while not (running.exists() and "beat" in running.read_text("utf-8")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert run("--output", tmp_path, "--name", "s", "--resume", "-q") == 2
    assert "another run is recording" in lines_of(capsys)[0]
    sweep.send_signal(signal.SIGINT)
    time.sleep(0.5)
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait(timeout=120) == 130
    found = session.load(tmp_path / "traces/s")
    assert [o.status for o in found.outcomes.values()] == ["interrupted"]


def test_some_cases_that_fail_leave_the_rest_and_exit_5(tmp_path, capsys):
    huge = 1 << 40
    code = run("--model", MODEL, "--mode", "generation", "--batch-sizes", f"1,{huge}",
               "--seq-lens", 8, "--tracer", "torch", "--device", "cpu", "--output", tmp_path,
               "--json", "-q")  # fmt: skip
    assert code == 5
    statuses = json.loads(capsys.readouterr().out)["outcomes"]
    assert statuses == {
        "generation-b1-s8-h4-bfloat16": "done",
        f"generation-b{huge}-s8-h4-bfloat16": "oom",
    }
