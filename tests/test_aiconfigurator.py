"""Roots of tables, judged by the real packages: what they answer, and what is refused."""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import aiconfigurator_packages as real
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import results_factory as factory

from dsa_profiler import cli
from dsa_profiler.cli import export as export_verb
from dsa_profiler.cli import feed
from dsa_profiler.cli import verify as verify_verb
from dsa_profiler.cli.source import Source
from dsa_profiler.errors import DsaError, EnvironmentFault, Exit, InputError
from dsa_profiler.export import aic_package, aiconfigurator, module_rows, read_back
from dsa_profiler.export.aic_package import Target
from dsa_profiler.export.read_back import Setup, Verdict
from dsa_profiler.model import Case
from dsa_profiler.session import GpuState

VERSION = "1.3.0rc20+dsa"
CASES = (*factory.cases_of("generation", (128, 16)), *factory.cases_of("context", (128, 16)))
V32 = "DeepseekV32ForCausalLM"


def target(minor: int = 12, version: str = VERSION, merge: bool = False) -> Target:
    return Target(real.package(minor), real.SYSTEM, real.BACKEND, version, merge)


def write(root: Path, tables: dict[str, pd.DataFrame], at: Target | None = None) -> Path:
    aiconfigurator.write_tables(tables, root, at or target(), runtime="1.3.0rc20")
    return root


def write_session(root: Path, minor: int = 12, **options: object) -> aiconfigurator.Written:
    results, session = factory.results(CASES), factory.session(CASES)
    return aiconfigurator.write(
        results, session, root, package=real.package(minor), system=real.SYSTEM, **options
    )  # type: ignore[arg-type]


def check(root: Path, setup: Setup | None = None) -> Verdict:
    entry = read_back.entries(root)[0]
    return read_back.verify(root, entry, real.package(12), setup, "1.3.0rc20")


def ask(root: Path, queries: list[list[object]], minor: int = 12) -> list[float | None]:
    entry = read_back.entries(root)[0]
    answers: list[float | None] = read_back.ask(real.package(minor), entry, root, queries)[
        "answers"
    ]
    return answers


def context(heads: int, isl: int, batch: int = 1) -> list[object]:
    return ["context", V32, "bfloat16", "bfloat16", "fp8_block", heads, 0, isl, batch]


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize(
    ("minor", "way"), [(7, "patch"), (8, "csv"), (10, "parquet"), (12, "overlay")]
)
def test_the_way_is_chosen_by_what_the_package_has(minor: int, way: str) -> None:
    package = real.package(minor)
    assert (package.layout.way, package.version) == (way, f"0.{minor}.0")


def test_twice_the_latency_is_twice_the_estimate(tmp_path: Path) -> None:
    tables = real.shipped_tables(times=2.0)
    verdict = check(write(tmp_path / "root", tables), Setup())
    assert verdict.mismatches == ()
    assert verdict.rows == sum(map(len, tables.values())) == 6848
    assert verdict.before is not None
    assert verdict.after is not None
    spent = [e.ttft * e.context_share for e in (verdict.before, verdict.after)]
    assert spent[1] == pytest.approx(2 * spent[0], rel=1e-9)
    assert verdict.after.ttft - verdict.before.ttft == pytest.approx(spent[0], rel=1e-9)
    decode = [e.tpot * e.generation_share for e in (verdict.before, verdict.after)]
    assert decode[1] == pytest.approx(2 * decode[0], rel=1e-9)


def test_fp8_caches_and_nvfp4_projections_come_back_too(tmp_path: Path) -> None:
    """B200: an FP8 cache is looked up by the kernel's source as well, and ours is a new one."""
    tables = {
        phase: real.shipped("b200_sxm", "1.3.0rc20", phase).assign(kernel_source="dsa_profiler_x")
        for phase in ("context", "generation")
    }
    assert {"bfloat16", "fp8"} == set(tables["context"]["kv_cache_dtype"])
    at = Target(real.package(12), "b200_sxm", real.BACKEND, VERSION, False)
    verdict = check(write(tmp_path / "root", tables, at))
    assert (verdict.rows, verdict.mismatches, verdict.error) == (12840, (), "")


def test_a_sessions_rows_come_back_as_written_under_strict_provenance(tmp_path: Path) -> None:
    written = write_session(tmp_path / "root")
    verdict = check(tmp_path / "root")
    assert (verdict.mismatches, verdict.error, verdict.rows) == ((), "", len(CASES))
    assert written.target.version == VERSION
    assert all(f.is_file() and not f.is_symlink() for f in written.files)


def test_strict_provenance_refuses_a_root_without_its_metadata(tmp_path: Path) -> None:
    write_session(tmp_path / "root")
    next((tmp_path / "root" / "data").rglob(f"{VERSION}/collection_meta.yaml")).unlink()
    verdict = check(tmp_path / "root")
    assert len(verdict.mismatches) == verdict.rows
    assert "provenance" in verdict.error or "collection_meta" in verdict.error


@pytest.mark.parametrize("minor", [8, 10])
def test_rows_come_back_from_the_older_releases_too(minor: int, tmp_path: Path) -> None:
    written = write_session(tmp_path / "root", minor)
    entry = read_back.entries(tmp_path / "root")[0]
    frames = written.tables
    queries = [[phase, *row] for phase, f in frames.items() for row in read_back.keys(f)]
    latencies = [ms for f in frames.values() for ms in f["latency"]]
    reply = read_back.ask(real.package(minor), entry, tmp_path / "root", queries)
    assert reply["answers"] == pytest.approx(latencies, rel=1e-6), reply["error"]


def test_rows_with_cached_context_stay_out_of_the_release_that_ignores_them(
    tmp_path: Path,
) -> None:
    tables = {p: f[f["num_heads"] == 16] for p, f in real.shipped_tables().items()}
    at = target(8, "1.2.0rc5+dsa")
    written = aiconfigurator.write_tables(tables, tmp_path / "root", at, runtime="1.3.0rc20")
    assert set(tables["context"]["step"]) == {0, 128}
    assert set(written.tables["context"]["step"]) == {0}


def test_no_shipped_row_answers_for_ours_unless_merged(tmp_path: Path) -> None:
    """The engine fills a version from older ones row by row: 32 heads are not in our session."""
    alone, merged = tmp_path / "alone", tmp_path / "merged"
    write_session(alone)
    write_session(merged, merge=True)
    shipped = real.shipped(real.SYSTEM, "1.3.0rc20", "context")
    key = {"num_heads": 32, "isl": 4096, "batch_size": 1, "step": 0, "gemm_type": "fp8_block"}
    row = shipped[(shipped[list(key)] == pd.Series(key)).all(axis=1)]
    query = context(32, 4096)
    query[4] = "fp8_block"
    assert ask(merged, [query]) == [row["latency"].item()]
    assert ask(alone, [query]) != [row["latency"].item()]


def test_merged_ours_win_where_both_have_a_row(tmp_path: Path) -> None:
    tables = {"context": real.shipped_tables(times=3.0)["context"].query("num_heads == 16")}
    root = write(tmp_path / "root", tables, target(merge=True))
    shipped = real.shipped_tables()["context"]
    frame = shipped[shipped["step"] == 0].query("isl == 4096 and batch_size == 1")
    queries = [["context", *row] for row in read_back.keys(frame)]
    times = [3.0 if h == 16 else 1.0 for h in frame["num_heads"]]
    expected = [t * ms for t, ms in zip(times, frame["latency"], strict=True)]
    assert ask(root, queries) == pytest.approx(expected, rel=1e-9)


def test_what_the_engine_answers_otherwise_is_a_mismatch(tmp_path: Path) -> None:
    """A row that comes twice: the last one wins, so the first is not what was written."""
    write_session(tmp_path / "root")
    path = read_back.entries(tmp_path / "root")[0].files["context"]
    table = pq.read_table(path)
    frame = table.slice(0, 1).to_pandas().assign(latency=999.0)
    extra = pa.Table.from_pandas(frame, schema=table.schema, preserve_index=False)
    pq.write_table(pa.concat_tables([table, extra]), path, compression="zstd")
    wrong = check(tmp_path / "root").mismatches
    assert [m.answer for m in wrong] == [999.0]


def test_one_null_refuses_the_whole_file(tmp_path: Path) -> None:
    write_session(tmp_path / "root")
    path = read_back.entries(tmp_path / "root")[0].files["context"]
    table = pq.read_table(path)
    latency = [None, *table["latency"].to_pylist()[1:]]
    at = table.schema.get_field_index("latency")
    pq.write_table(table.set_column(at, "latency", pa.array(latency, pa.float64())), path)
    verdict = check(tmp_path / "root")
    assert {m.phase for m in verdict.mismatches} == {"context"}
    assert "Null" in verdict.error


def test_power_becomes_energy(tmp_path: Path) -> None:
    tables = {p: f.assign(power=500.0) for p, f in real.shipped_tables().items()}
    root = write(tmp_path / "root", tables)
    code = (
        "import sys; from aiconfigurator_core.sdk import EngineHandle\n"
        "e = EngineHandle.compile('deepseek-ai/DeepSeek-V3.2', 'h200_sxm', 'trtllm',"
        f" backend_version='{VERSION}', tp_size=8, moe_tp_size=1, moe_ep_size=8,"
        " kvcache_quant_mode='bfloat16', systems_path=sys.argv[1])\n"
        "c, _ = e.run_static_per_op(batch_size=1, isl=4096, osl=2)\n"
        "print(*next(o[1:3] for o in c if o[0] == 'context_attention'))"
    )
    python = str(real.package(12).python)
    out = subprocess.run(
        [python, "-c", code, str(root)], capture_output=True, text=True, check=True
    )
    ms, energy = map(float, out.stdout.split())
    assert energy == pytest.approx(500.0 * ms)


def test_what_nvml_measured_is_in_the_tables_and_they_still_verify(tmp_path: Path) -> None:
    results, session = factory.results(CASES), factory.session(CASES)
    state = GpuState((1980, 1980.0, 1980), 3201, 61, power_w=612.5, idle_w=71.0, load_ns=1e6)
    measured = replace(results, cases=tuple(replace(c, gpu=state) for c in results.cases))
    root = tmp_path / "root"
    written = aiconfigurator.write(
        measured, session, root, package=real.package(12), system=real.SYSTEM
    )
    for path in (f for f in written.files if "module" in f.name):
        table = pq.read_table(path)
        assert table.schema.field("power").type == pa.float64()
        assert set(table["power"].to_pylist()) == {612.5}
    verdict = check(root)
    assert (verdict.rows, verdict.mismatches, verdict.error) == (len(CASES), (), "")


def test_kernels_lie_beside_with_the_same_keys(tmp_path: Path) -> None:
    written = write_session(tmp_path / "root")
    kernels = [f for f in written.files if "kernels" in f.name]
    assert [f.name for f in kernels] == [
        "dsa_context_kernels.parquet",
        "dsa_generation_kernels.parquet",
    ]
    names = set(pq.read_schema(kernels[0]).names)
    assert set(read_back.QUERY) <= names
    assert "latency" not in names


def test_the_same_session_is_the_same_bytes(tmp_path: Path) -> None:
    write_session(tmp_path / "a")
    write_session(tmp_path / "b")
    write_session(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_root_holds_one_version_unless_merged(tmp_path: Path) -> None:
    write_session(tmp_path / "root")
    held = files(tmp_path / "root")
    with pytest.raises(InputError, match="already holds"):
        write_session(tmp_path / "root", version="1.3.0rc20+other")
    assert files(tmp_path / "root") == held
    write_session(tmp_path / "root", version="1.3.0rc20+other", merge=True)
    assert len(read_back.entries(tmp_path / "root")) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"system": "h999"}, "no system 'h999'"),
        ({"backend": "nothing"}, "ships nothing for nothing"),
        ({"version": "1.3.0rc20"}, "ships with aiconfigurator"),
        ({"version": "mine"}, "does not sort"),
        ({"version": "0.1.0"}, "older than all"),
        ({"version": "1.3.0/../../x"}, "does not sort"),
        ({"gemm_type": "int3"}, "unknown gemm type"),
        ({"heads": (16, 32)}, "no context rows for 32 local heads"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    tmp_path: Path, options: dict[str, object], words: str
) -> None:
    results, session = factory.results(CASES), factory.session(CASES)
    whole = {"system": real.SYSTEM, "package": real.package(12), **options}
    with pytest.raises(DsaError, match=words):
        aiconfigurator.write(results, session, tmp_path / "root", **whole)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_host_timed_sessions_write_nothing(tmp_path: Path) -> None:
    results = factory.results(CASES, timing="host")
    with pytest.raises(InputError, match="not timed on a GPU"):
        aiconfigurator.write(
            results,
            factory.session(CASES),
            tmp_path / "root",
            package=real.package(12),
            system=real.SYSTEM,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DsaError, match="cannot write") as refused:
        write_session(tmp_path / "file" / "root")
    assert refused.value.exit_code == Exit.USAGE
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other things"):
        write_session(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failure_on_the_way_leaves_the_old_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_session(tmp_path / "root")
    held = files(tmp_path / "root")
    monkeypatch.setattr(aiconfigurator, "_write_kernels", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_session(tmp_path / "root")
    assert files(tmp_path / "root") == held
    assert [p.name for p in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("text", ["", "{}", '{"entries": 3}', "[1]", '{"entries": {"a/b/c": {}}}'])
def test_a_broken_marker_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "dsa_profiler.json").write_text(text)
    with pytest.raises(InputError, match=r"root|tables"):
        read_back.entries(tmp_path)


def test_a_package_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="no aiconfigurator in"):
        aic_package.locate(tmp_path)


def test_a_package_of_unknown_shape_is_named(tmp_path: Path) -> None:
    (tmp_path / "aiconfigurator" / "sdk").mkdir(parents=True)
    with pytest.raises(EnvironmentFault, match="shape"):
        aic_package.locate(tmp_path)


def test_a_package_that_breaks_is_an_environment_fault(tmp_path: Path) -> None:
    from dataclasses import replace

    write_session(tmp_path / "root")
    broken = replace(real.package(12), python=tmp_path / "no-python")
    entry = read_back.entries(tmp_path / "root")[0]
    with pytest.raises(EnvironmentFault, match="did not answer"):
        read_back.verify(tmp_path / "root", entry, broken, Setup(), None)


def test_default_versions_sort_just_above_what_was_measured() -> None:
    package = real.package(12)
    named = {
        runtime: aiconfigurator.default_version(package, real.SYSTEM, real.BACKEND, runtime)
        for runtime in ("1.3.0rc20", "1.3.0rc23", "2.13.0", "unknown")
    }
    assert named == {
        "1.3.0rc20": "1.3.0rc20+dsa",
        "1.3.0rc23": "1.3.0rc23+dsa",
        "2.13.0": "1.3.0rc20+dsa",
        "unknown": "1.3.0rc20+dsa",
    }


def export_args(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    export_verb.add_arguments(parser)
    return parser.parse_args(["session", "--to", "aiconfigurator", *options])


def source_of(cases: tuple[Case, ...]) -> Source:
    return Source(Path("session"), Path("session"), factory.results(cases), factory.session(cases))


def test_export_says_what_was_written_how_it_compares_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = tuple(Case("context", 1, s, 16) for s in (1024, 2048, 4096))
    where = ["--package", real.place(12), "--system", real.SYSTEM]
    args = export_args("--root", str(tmp_path / "root"), *where)
    assert feed.run(source_of(cases), args) == 0
    said = capsys.readouterr().out
    assert "context: 3 rows, local heads 16" in said
    assert "shipped: 3 keys in both, 0 ours alone, 3901 theirs alone" in said
    assert "no rows for 8 local heads (tensor parallelism 16)" in said
    assert "over 3 rows of the reference" in said
    assert f"--perf-db-version {VERSION}" in said


def test_export_as_json_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--package", real.place(12), "--system", real.SYSTEM, "--json"]
    feed.run(source_of(CASES), export_args("--root", str(tmp_path / "root"), *where))
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == {"context": 24, "generation": 24}
    assert document["version"] == VERSION


def test_export_needs_a_root_a_system_and_a_session(tmp_path: Path) -> None:
    with pytest.raises(DsaError, match="needs --root and --system"):
        feed.run(source_of(CASES), export_args())
    trace = Source(Path("t.sqlite"), Path("t.sqlite"), factory.results(CASES), None)
    with pytest.raises(DsaError, match="a trace alone"):
        feed.run(trace, export_args("--root", str(tmp_path), "--system", real.SYSTEM))


def test_a_finished_sweep_on_disk_changes_the_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way by the command line: a session's traces, its rows, the engine's estimate."""
    cases = [Case("context", 1, s, 16) for s in (2048, 4096)]
    cases += [Case("generation", 1, s, 16) for s in (4095, 4159)]
    folder = factory.disk_session(tmp_path / "traces" / "sweep", cases)
    where = ["--package", real.place(12)]
    to = ["--to", "aiconfigurator", "--system", real.SYSTEM, "--root", str(tmp_path / "root")]
    assert cli.main(["export", str(folder), *to, *where]) == 0
    assert cli.main(["lint", str(folder)]) == Exit.GATE
    assert "take less than h200_sxm needs" in capsys.readouterr().out  # the trace is made up
    options = ["--gemm-type", "bfloat16", "--json"]
    assert cli.main(["verify", str(tmp_path / "root"), *where, *options]) == 0
    [entry] = json.loads(capsys.readouterr().out)["entries"]
    assert (entry["rows"], entry["mismatches"]) == (4, [])
    measured = factory_ms(tmp_path / "root", "context", 4096)
    after = entry["after"]["ttft"] * entry["after"]["context_share"]
    assert after == pytest.approx(61 * measured)
    assert entry["before"]["ttft"] != entry["after"]["ttft"]


def factory_ms(root: Path, phase: str, isl: int) -> float:
    """The row that was exported at batch 1."""
    frame = pd.read_parquet(read_back.entries(root)[0].files[phase])
    return float(frame.loc[frame["isl"] == isl, "latency"].item())


def test_verify_prints_the_report_and_the_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "root", real.shipped_tables(times=2.0))
    where = ["--package", real.place(12)]
    assert cli.main(["verify", str(tmp_path / "root"), *where]) == 0
    said = capsys.readouterr().out
    for line in (
        "Model: deepseek-ai/DeepSeek-V3.2",
        "Architecture: DeepseekV32ForCausalLM",
        "Family: DEEPSEEKV32",
        "DSA: index_n_heads=64 index_head_dim=128 index_topk=2048",
        "Layers: 61 (MLA: 0, DSA: 61)",
        "Rows: context 3904, generation 2944",
        "Missing: nothing",
        "Read back: 6848 of 6848 rows as written",
    ):
        assert line in said
    assert "564.131     989.045" in said


def test_verify_leaves_with_six_when_a_row_is_answered_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_session(tmp_path / "root")
    monkeypatch.setattr(read_back, "TOLERANCE", -1.0)
    where = ["--package", real.place(12), "--json"]
    assert cli.main(["verify", str(tmp_path / "root"), *where]) == Exit.GATE
    document = json.loads(capsys.readouterr().out)
    assert len(document["entries"][0]["mismatches"]) == len(CASES)


def test_what_an_estimate_asks_beyond_the_rows_is_said() -> None:
    tables = module_rows.module_rows(factory.results(CASES), factory.session(CASES), "fp8_block")
    missing = verify_verb._support(tables, Setup())["missing"]
    assert "context rows for 64, 32, 8 local heads" in missing
    assert any(line.startswith("context rows at 4096") for line in missing)
