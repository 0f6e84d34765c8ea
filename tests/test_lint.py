"""What a lint finds, on tables made for it and on the ones that aiconfigurator ships."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import aiconfigurator_packages as real
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import results_factory as factory

from dsa_profiler import cli
from dsa_profiler.analysis import agreement, bracket, lint, subject, systems
from dsa_profiler.analysis.lint import Storage
from dsa_profiler.analysis.subject import Finding
from dsa_profiler.errors import Exit, InputError
from dsa_profiler.export import module_rows, module_tables
from dsa_profiler.model import Case, load_model

V32 = "DeepseekV32ForCausalLM"
STEPS = (127, 255, 511, 1023, 2000, 2047, 2048, 2100, 4095, 8191)


def table(
    steps: tuple[int, ...] = STEPS,
    heads: tuple[int, ...] = (8, 16, 32, 64, 128),
    batches: tuple[int, ...] = (1, 4, 16, 64),
) -> pd.DataFrame:
    """A smooth generation table without a fault: a floor plus a little for size and heads."""
    rows = [
        {
            "device": "NVIDIA H200", "op_name": "dsa_generation_module", "architecture": V32,
            "mla_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "gemm_type": "bfloat16",
            "num_heads": h, "batch_size": b, "isl": 1, "step": s,
            "latency": 0.3 + 0.0005 * h + 0.002 * b + 1e-6 * s + 1e-8 * s * b,
        }
        for h in heads for b in batches for s in steps
    ]  # fmt: skip
    return pd.DataFrame(rows)


def found(frame: pd.DataFrame, **options: object) -> list[Finding]:
    return lint.lint(frame, "generation", **options)  # type: ignore[arg-type]


def slugs(frame: pd.DataFrame, **options: object) -> set[str]:
    return {f.slug for f in found(frame, **options)}


def test_a_table_without_a_fault_has_no_findings() -> None:
    assert found(table()) == []


def test_a_key_that_comes_twice_is_an_error() -> None:
    frame = table()
    extra = frame.iloc[[3]].assign(latency=frame["latency"].iloc[3] * 1.05)
    [finding] = found(pd.concat([frame, extra], ignore_index=True))
    assert (finding.slug, finding.severity, finding.rows) == ("duplicate-key", "error", 2)
    assert "5% apart" in finding.what


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_latency_that_is_none_is_an_error(value: float) -> None:
    frame = table()
    frame.loc[5, "latency"] = value
    assert [f.slug for f in found(frame) if f.severity == "error"] == ["latency-value"]


@pytest.mark.parametrize(("factor", "unit"), [(1e-3, "seconds"), (1e3, "microseconds")])
def test_another_unit_is_recognised(factor: float, unit: str) -> None:
    frame = table()
    [finding] = [f for f in found(frame.assign(latency=frame["latency"] * factor))
                 if f.slug == "unit"]  # fmt: skip
    assert unit in finding.what


def test_a_row_that_no_kernel_can_reach_is_an_error() -> None:
    frame = table()
    frame.loc[0, "latency"] = 0.01
    assert "too-fast" in slugs(frame)


def test_a_kernels_time_among_modules_is_an_error() -> None:
    frame = table()
    frame.loc[0, "op_name"] = "dsa_topk"
    assert "op-name" in slugs(frame)


@pytest.mark.parametrize(
    ("storage", "slug"),
    [
        (Storage({"step": "int32"}, {"step": "zstd"}, {}), "column-type"),
        (Storage({"latency": "float"}, {"step": "zstd"}, {}), "column-type"),
        (Storage({}, {"step": "gzip"}, {}), "column-codec"),
        (Storage({}, {"step": "zstd"}, {"latency": 1}), "column-null"),
        (Storage({}, {"step": "zstd"}, {}, half_rows=4), "half-name"),
    ],
)
def test_storage_that_readers_refuse_is_an_error(storage: Storage, slug: str) -> None:
    [finding] = found(table(), storage=storage)
    assert (finding.slug, finding.severity) == (slug, "error")


def test_a_csv_may_be_stored_as_a_csv_is() -> None:
    storage = Storage({"step": "int64", "latency": "float64"}, {}, {}, half_rows=100)
    assert found(table(), storage=storage) == []


def test_a_spike_that_all_curves_share_is_told_once() -> None:
    frame = table()
    frame.loc[frame["step"] == 4095, "latency"] *= 1.6
    [finding] = [f for f in found(frame) if f.slug == "spike"]
    assert "spike at kv 4096" in finding.what
    assert "20 of 20 curves" in finding.what
    assert "profile 2100, 4095 and 8191" in finding.cure


def test_a_spike_at_the_first_selection_says_what_would_explain_it() -> None:
    frame = table((511, 1023, 2047, 2048, 4095))
    frame.loc[frame["step"] == 2048, "latency"] *= 1.6
    [finding] = [f for f in found(frame) if f.slug == "spike"]
    assert "the first point at which top-k selects" in finding.what
    assert "--seq-lens 1023,2039,2047,2048,2099,3071,4096" in finding.cure


def test_a_single_bad_point_is_told_as_such() -> None:
    frame = table(batches=(1, 2, 4, 8, 16, 32, 64))
    frame.loc[(frame["step"] == 511) & (frame["num_heads"] == 16) & (frame["batch_size"] == 8),
              "latency"] *= 1.5  # fmt: skip
    assert {"spike-scattered"} <= slugs(frame)
    assert "spike" not in slugs(frame)


def test_less_time_for_more_work_is_found() -> None:
    frame = table()
    frame.loc[frame["batch_size"] == 64, "latency"] *= 0.5
    findings = [f for f in found(frame) if f.slug == "not-monotone"]
    assert any("along batch_size" in f.what for f in findings)


def test_a_knee_is_found_where_it_is() -> None:
    frame = table()
    grown = np.maximum(1.0, (frame["step"] / 1023.0) ** 1.5)
    [finding] = [f for f in found(frame.assign(latency=frame["latency"] * grown))
                 if f.slug == "knee" and "kv" in f.what]  # fmt: skip
    assert "knee at kv 1024" in finding.what


def test_a_missing_head_count_is_named_with_its_cost() -> None:
    frame = table(heads=(16, 32, 64, 128))
    assert [f.slug for f in found(frame)] == ["heads-missing"]
    [finding] = found(frame, reference=table())
    assert "no rows for 8 local heads" in finding.what
    assert "40 rows of the reference" in finding.what


def test_missing_points_at_top_k_are_named_with_what_a_line_costs() -> None:
    frame = table((255, 511, 1023, 2048, 4095))
    frame.loc[frame["step"] > 2047, "latency"] *= 2
    [finding] = [f for f in found(frame) if f.slug == "anchor-missing"]
    assert "nothing close below top-k at 2048 keys (nearest: 1024)" in finding.what
    assert "answers +" in finding.what


def test_a_wide_spread_is_found() -> None:
    frame = table()
    frame = frame.assign(p10_ms=frame["latency"] * 0.99, p90_ms=frame["latency"] * 1.01)
    assert found(frame) == []
    frame.loc[7, "p90_ms"] = frame.loc[7, "latency"] * 1.3
    [finding] = found(frame)
    assert (finding.slug, finding.rows) == ("spread", 1)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(InputError, match="no rows"):
        found(table().iloc[:0])


def test_the_order_of_rows_changes_nothing() -> None:
    frame = table((511, 1023, 2048, 4095), heads=(16, 128))
    frame.loc[frame["step"] == 2048, "latency"] *= 1.6
    turned = frame.iloc[::-1].reset_index(drop=True)
    assert found(frame) == found(turned)


def test_a_session_explains_its_spike_by_kernels() -> None:
    cases = tuple(Case("generation", b, s) for b in (1, 2) for s in (1023, 2047, 2048, 4095))
    results = factory.results(cases)
    slow = []
    for one in results.cases:
        if one.case.seq_len == 2048:
            kernels = tuple(
                replace(k, median_ns=k.median_ns + 300_000) if k.stage == "topk" else k
                for k in one.kernels
            )
            span = replace(one.span_ns, median=one.span_ns.median + 300_000)
            one = replace(one, kernels=kernels, span_ns=span)
        slow.append(one)
    results = replace(results, cases=tuple(slow))
    frame = module_rows.lint_rows(results, factory.session(cases))["generation"]
    [finding] = [f for f in found(frame, results=results.cases) if f.slug == "spike"]
    assert finding.cure.startswith("from 2047 to 2048 grow: void vllm::topKPerRowDecode")
    assert "+0.3" in finding.cure


def test_host_timed_sessions_may_be_looked_at() -> None:
    cases = factory.cases_of("generation")
    frames = module_rows.lint_rows(factory.results(cases, timing="host"), factory.session(cases))
    assert len(frames["generation"]) == len(cases)


@pytest.mark.parametrize(
    ("system", "version", "least"),
    [
        ("h200_sxm", "1.3.0rc20", 120), ("h200_sxm", "1.3.0rc23", 120),
        ("h100_sxm", "1.3.0rc20", 120), ("b200_sxm", "1.3.0rc20", 180),
    ],
)  # fmt: skip
def test_the_shipped_decode_tables_have_a_spike_at_2049(
    system: str, version: str, least: int
) -> None:
    findings = lint.lint(real.shipped(system, version, "generation"), "generation")
    [spike] = [f for f in findings if f.slug == "spike"]
    assert "spike at kv 2049, the first point at which top-k selects" in spike.what
    assert spike.rows >= least
    assert "per-kernel profile on both sides" in spike.cure
    assert "anchor-missing" in {f.slug for f in findings}
    assert not [f for f in findings if f.severity == "error"]


@pytest.mark.parametrize("system", ["h200_sxm", "h100_sxm", "b200_sxm"])
def test_the_shipped_context_tables_are_sound(system: str) -> None:
    table = module_tables.read(real.shipped_path(system, "1.3.0rc20", "context"))
    storage = Storage(table.types, table.codecs, table.nulls, table.half_rows)
    findings = lint.lint(table.frame, "context", storage)
    assert not [f for f in findings if f.severity == "error"]
    assert "spike" not in {f.slug for f in findings}


def test_a_table_of_128_heads_answers_16_less_than_half_right() -> None:
    whole = real.shipped("h200_sxm", "1.3.0rc20", "context")
    findings = lint.lint(whole[whole["num_heads"] == 128], "context", reference=whole)
    by_heads = [f for f in findings if f.slug == "heads-missing"]
    assert len(by_heads) == 4
    [sixteen] = [f for f in by_heads if "16 local heads" in f.what]
    assert "-5" in sixteen.what or "-6" in sixteen.what


def test_the_cost_of_a_hole_is_what_the_engine_answers() -> None:
    """16 heads out of 128: the engine's own answer, 2.97 ms, where 6.97 were measured."""
    whole = real.shipped("h200_sxm", "1.3.0rc20", "context")
    at = whole[(whole["gemm_type"] == "fp8_block") & (whole["batch_size"] == 1)
               & (whole["isl"] == 4096) & (whole["step"] == 0)]  # fmt: skip
    known, asked = at[at["num_heads"] == 128], at[at["num_heads"] == 16]
    shape, sheet = load_model("deepseek-v3.2"), systems.load("h200_sxm", datasheet=True)
    sols = [subject.engine_sol(shape, sheet, rows, "context") for rows in (known, asked)]
    answered = bracket.answer(known, asked, "num_heads", *sols)
    assert answered.item() == pytest.approx(2.97, abs=0.03)
    assert asked["latency"].item() == pytest.approx(6.9658)


ENGINE = """
import json, sys
from aiconfigurator_core.sdk import EngineHandle, common, operations as o, perf_database
e = EngineHandle.for_database(perf_database.get_database('h200_sxm', 'trtllm', '1.3.0rc20'))
kv, half, out = common.KVCacheQuantMode.bfloat16, common.FMHAQuantMode.bfloat16, []
for phase, gemm, heads, step, isl, batch in json.load(sys.stdin):
    g = common.GEMMQuantMode[gemm]
    context = phase == 'context'
    op = (o.ContextDSAModule('c', 1.0, heads, kv, half, g) if context
          else o.GenerationDSAModule('g', 1.0, heads, kv, g))
    at = dict(s=isl, prefix=step) if context else dict(s=isl + step)
    spec = '[' + op._spec_json() + ']'
    [reply] = e.evaluate_ops_sol_json(spec, is_context=context, batch_size=batch, **at)
    out.append(reply[1])
print(json.dumps(out))
"""


def test_the_engines_speed_of_light_is_ours() -> None:
    shape, sheet = load_model("deepseek-v3.2"), systems.load("h200_sxm", datasheet=True)
    columns = ["gemm_type", "num_heads", "step", "isl", "batch_size"]
    parts = [
        (phase, real.shipped("h200_sxm", "1.3.0rc20", phase).sample(150, random_state=1))
        for phase in ("context", "generation")
    ]
    asked = [[phase, *row] for phase, f in parts for row in f[columns].to_numpy().tolist()]
    run = [str(real.package(12).python), "-c", ENGINE]
    out = subprocess.run(run, input=json.dumps(asked), capture_output=True, text=True, check=True)
    ours = np.concatenate([subject.engine_sol(shape, sheet, f, phase) for phase, f in parts])
    assert ours == pytest.approx(np.array(json.loads(out.stdout)), rel=1e-3)


def test_agreement_counts_and_ranks_by_key() -> None:
    ours, theirs = table(), table(heads=(16, 32, 64, 128, 256))
    ours = ours.assign(latency=ours["latency"] * 1.1)
    ours.loc[ours["num_heads"] == 16, "latency"] *= 2
    found = agreement.agree(ours, theirs)
    assert (found.shared, found.only_ours, found.only_theirs) == (160, 40, 40)
    assert found.by_heads[16] == (pytest.approx(2.2), 40)
    assert found.quantiles[3] == pytest.approx(1.1)
    assert all("num_heads=16" in key for key, _, _ in found.worst)


def test_tables_without_a_key_in_common_agree_on_nothing() -> None:
    found = agreement.agree(table(heads=(8,)), table(heads=(16,)))
    assert (found.shared, found.quantiles, found.worst) == (0, (), ())


def test_two_campaigns_of_one_machine_differ_as_known() -> None:
    new = real.shipped("h200_sxm", "1.3.0rc23", "generation")
    old = real.shipped("h200_sxm", "1.3.0rc20", "generation")
    found = agreement.agree(new, old)
    assert found.shared == 2944
    assert found.off == pytest.approx(0.019, abs=0.001)


def test_the_verb_prints_findings_and_the_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = table((511, 1023, 2048, 4095)).assign(
        framework="TRTLLM", version="1", kernel_source="x", model="m", tp_size=1
    )
    frame.loc[frame["step"] == 2048, "latency"] *= 1.6
    path = tmp_path / "dsa_generation_module_perf.parquet"
    module_tables.write_parquet(module_rows.ordered(frame), path)
    assert cli.main(["lint", str(path), "--against", str(path)]) == 0
    said = capsys.readouterr().out
    assert "warning spike: deepseek-v3.2 generation: spike at kv 2049" in said
    assert "80 keys in both, 0 here alone, 0 there alone" in said
    assert "median 1.000, p5 1.000, p95 1.000" in said
    assert cli.main(["lint", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [t["rows"] for t in document["tables"]] == [80]


def test_the_verb_leaves_with_six_for_what_a_reader_trips_over(tmp_path: Path) -> None:
    path = tmp_path / "dsa_generation_module_perf.parquet"
    frame = table().assign(num_heads=table()["num_heads"].astype("int32"))
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, compression="gzip")
    assert cli.main(["lint", str(path)]) == Exit.GATE


@pytest.mark.parametrize("name", ["absent", "folder"])
def test_the_verb_names_what_is_no_table(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    assert cli.main(["lint", str(tmp_path / name)]) == Exit.BAD_INPUT
    assert name in capsys.readouterr().err


def test_compare_takes_tables_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table().assign(framework="TRTLLM", version="1", kernel_source="x", model="m", tp_size=1)
    paths = []
    for name, rows in (("a", frame), ("b", frame.assign(latency=frame["latency"] * 2).iloc[1:])):
        (tmp_path / name).mkdir()
        paths.append(str(tmp_path / name / "dsa_generation_module_perf.parquet"))
        rows.to_parquet(paths[-1])
    assert cli.main(["compare", *paths]) == Exit.OK
    out = capsys.readouterr().out
    assert f"{len(frame) - 1} keys in both, 0 B alone, 1 A alone" in out
    assert "latency B / A: median 2.000" in out
    assert cli.main(["compare", *paths, "--fail-above", "5%"]) == Exit.USAGE
