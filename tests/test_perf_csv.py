"""The CSVs hold what was measured, under the header that users' scripts expect."""

from __future__ import annotations

import csv

import pytest
from results_factory import cases_of, floored, results, session

from dsa_profiler.columns import PERF_HEADER
from dsa_profiler.errors import InputError
from dsa_profiler.export import perf_csv
from dsa_profiler.model import Case


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_are_named_by_phase_and_dtype(tmp_path):
    cases = (
        Case("context", 1, 16),
        Case("generation", 1, 16),
        Case("generation", 1, 16, 64, "fp8"),
    )
    paths = perf_csv.write(results(cases), session(cases), tmp_path)
    assert [p.name for p in paths] == [
        "dsa_context_bf16_perf.txt",
        "dsa_context_bf16_kernels.csv",
        "dsa_generation_bf16_perf.txt",
        "dsa_generation_bf16_kernels.csv",
        "dsa_generation_fp8_perf.txt",
        "dsa_generation_fp8_kernels.csv",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)


def test_header_starts_with_the_contract(tmp_path):
    cases = cases_of()
    perf, _ = perf_csv.write(results(cases), session(cases), tmp_path)
    first_line = perf.read_text().splitlines()[0]
    assert first_line.startswith(
        "framework,version,device,op_name,kernel_source,dsa_dtype,num_heads,index_n_heads,"
        "index_topk,batch_size,isl,tp_size,step,latency,"
    )
    assert first_line.split(",")[: len(PERF_HEADER)] == list(PERF_HEADER)


def test_latency_is_the_median_span_in_ms(tmp_path):
    cases = cases_of("generation")
    found = results(cases)
    perf, _ = perf_csv.write(found, session(cases), tmp_path)
    rows = read(perf)
    assert len(rows) == len(cases)
    for row, result in zip(rows, found.cases, strict=True):
        assert float(row["latency"]) == pytest.approx(result.span_ns.median / 1e6, abs=1e-6)
        assert row["case"] == result.case.slug
        assert (int(row["isl"]), int(row["step"])) == (result.case.seq_len, 1)
        assert float(row["p10_ms"]) <= float(row["latency"]) <= float(row["p90_ms"])
        assert row["timing"] == "gpu"


def test_context_step_is_the_cached_prefix(tmp_path):
    cases = (Case("context", 2, 64), Case("context", 2, 64, prefix=128))
    rows = read(perf_csv.write(results(cases), session(cases), tmp_path)[0])
    assert [(r["isl"], r["step"], r["prefix"]) for r in rows] == [
        ("64", "0", "0"),
        ("64", "128", "128"),
    ]


def test_rows_name_model_and_machine(tmp_path):
    cases = cases_of()
    row = read(perf_csv.write(results(cases), session(cases), tmp_path)[0])[0]
    assert row["device"] == "NVIDIA H200"
    assert (row["index_n_heads"], row["index_topk"]) == ("64", "2048")


@pytest.mark.parametrize(
    ("workload", "recorded", "named"),
    [
        ("reference", {"torch": "2.13.0"}, ("PyTorch", "2.13.0")),
        ("reference", {"packages": {"torch": "2.13.0"}}, ("PyTorch", "2.13.0")),
        ("trtllm", {"tensorrt_llm": "1.3.0rc20"}, ("TRTLLM", "1.3.0rc20")),
        (
            "kernels",
            {"torch": "2.11.0", "kernels_source": "vllm", "kernels_version": "0.26.0"},
            ("vllm_kernels", "0.26.0"),
        ),
        ("kernels", {"torch": "2.11.0", "kernels_source": "sglang"}, ("sglang_kernels", "unknown")),
        ("kernels", {}, ("unknown_kernels", "unknown")),
    ],
)
def test_rows_name_what_ran(workload, recorded, named):
    found = perf_csv.identity(session(cases_of(), workload=workload, environment=recorded))
    assert (found.framework, found.version) == named


def test_a_cpu_run_names_the_cpu(tmp_path):
    cases = cases_of()
    here = session(
        cases, environment={"gpus": [{"name": "G"}], "cpu": "A CPU"}, settings={"device": "cpu"}
    )
    rows = read(perf_csv.write(results(cases, timing="host"), here, tmp_path)[0])
    assert {r["device"] for r in rows} == {"A CPU"}
    assert {r["timing"] for r in rows} == {"host"}


def test_kernels_survive_hostile_names(tmp_path):
    from dataclasses import replace

    name = 'k<"a,b">(\n)\u202e=1'
    cases = cases_of()[:1]
    found = results(cases)
    one = found.cases[0]
    kernels = (replace(one.kernels[0], name=name), *one.kernels[1:])
    found = replace(found, cases=(replace(one, kernels=kernels),))
    _, path = perf_csv.write(found, session(cases), tmp_path)
    rows = read(path)
    assert rows[0]["kernel"] == name
    assert len(rows) == len(kernels)


def test_same_input_same_bytes(tmp_path):
    cases = cases_of()
    one = perf_csv.write(results(cases), session(cases), tmp_path / "a")
    two = perf_csv.write(results(cases), session(cases), tmp_path / "b")
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_nothing_measured_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no measured case"):
        perf_csv.write(results(()), session(()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_floor_has_its_share(tmp_path):
    cases = cases_of()
    found = floored(results(cases), session(cases))
    rows = read(perf_csv.write(found, session(cases), tmp_path)[0])
    for row, result in zip(rows, found.cases, strict=True):
        assert float(row["floor_ms"]) == pytest.approx(result.floor.floor_ns / 1e6, abs=1e-6)
        share = float(row["floor_ms"]) / float(row["latency"])
        assert float(row["roofline_share"]) == pytest.approx(share, abs=1e-3)
    bare = read(perf_csv.write(results(cases), session(cases), tmp_path)[0])
    assert {(r["floor_ms"], r["roofline_share"]) for r in bare} == {("", "")}
