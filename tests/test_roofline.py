"""The floors: worked by hand elsewhere, reproduced here; and the laws they keep."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsa_profiler.analysis import roofline, systems
from dsa_profiler.cli import main
from dsa_profiler.errors import UsageError
from dsa_profiler.model import Case, load_model
from dsa_profiler.results import CaseResult, Coverage, Results, Spread, StageStat, TraceSummary

V32 = load_model("deepseek-v3.2")
H200 = systems.load("h200_sxm")
PROJECTIONS = tuple(roofline.projections(V32, 128))

# Worked apart from this code, at 790 TFLOP/s bf16, 1580 FP8 and 4.3 TB/s. By (batch, length): us of
# projections, logits, top-k, attention useful and executed; ms of the floor, useful and executed.
CONTEXT = {
    (1, 1024): (521, 5, 2, 185, 739, 0.71, 1.27),
    (1, 2048): (1042, 22, 6, 740, 1479, 1.81, 2.55),
    (1, 4096): (2085, 87, 16, 2219, 2958, 4.41, 5.15),
    (1, 8192): (4170, 348, 47, 5176, 5915, 9.74, 10.5),
    (1, 16384): (8340, 1392, 156, 11091, 11830, 21.0, 21.7),
    (1, 32768): (16680, 5567, 562, 22921, 23660, 45.7, 46.5),
    (16, 4096): (33359, 1392, 250, 35496, 47321, 70.5, 82.3),
    (256, 256): (33359, 139, 133, 4387, 47321, 38.0, 81.0),
}
# batch, cached keys: us of projections, logits, top-k, attention useful; us floor
GENERATION = {
    (1, 16384): (94, 1, 0, 1, 95),
    (1, 131072): (94, 4, 0, 1, 99),
    (128, 1024): (97, 4, 0.4, 46, 148),
    (128, 16384): (97, 67, 2.2, 92, 258),
    (64, 131072): (95, 265, 7.9, 46, 415),
    (128, 131072): (97, 531, 15.9, 92, 736),
    (1024, 1024): (521, 35, 2.9, 370, 929),
    (1024, 8192): (521, 267, 9.8, 739, 1538),
    (1024, 16384): (521, 533, 17.6, 739, 1811),
}


def _us(case: Case) -> tuple[dict[str, float], dict[str, float]]:
    found = roofline.floor(V32, case, H200)
    useful = {s.stage: s.useful_ns / 1e3 for s in found.stages}
    executed = {s.stage: s.floor_ns / 1e3 for s in found.stages}
    for row in (useful, executed):
        row["all"] = sum(row.values())
        row["projections"] = sum(row[s] for s in PROJECTIONS)
    return useful, executed


@pytest.mark.parametrize("point", CONTEXT)
def test_context_floors_are_the_worked_ones(point):
    projections, logits, topk, attention, padded, floor_ms, executed_ms = CONTEXT[point]
    useful, executed = _us(Case("context", *point))
    assert useful["projections"] == pytest.approx(projections, abs=1)
    assert useful["mqa_logits"] == pytest.approx(logits, abs=0.6)
    assert useful["topk"] == pytest.approx(topk, abs=0.6)
    assert useful["sparse_attn"] == pytest.approx(attention, abs=1)
    assert executed["sparse_attn"] == pytest.approx(padded, abs=1)
    assert useful["all"] / 1e3 == pytest.approx(floor_ms, rel=0.007)
    assert executed["all"] / 1e3 == pytest.approx(executed_ms, rel=0.007)


@pytest.mark.parametrize("point", GENERATION)
def test_generation_floors_are_the_worked_ones(point):
    projections, logits, topk, attention, floor_us = GENERATION[point]
    useful, _ = _us(Case("generation", *point))
    assert useful["projections"] == pytest.approx(projections, abs=1)
    assert useful["mqa_logits"] == pytest.approx(logits, abs=0.6)
    assert useful["topk"] == pytest.approx(topk, abs=0.13)
    assert useful["sparse_attn"] == pytest.approx(attention, abs=0.6)
    assert useful["all"] == pytest.approx(floor_us, abs=1.1)


def test_a_layer_has_201_million_attention_parameters_and_402_mflop_a_token():
    parameters = {s: p for s, (p, _) in roofline.projections(V32, 128).items()}
    assert sum(parameters.values()) == pytest.approx(201.06e6, rel=1e-4)
    mflop = {s: 2 * p / 1e6 for s, p in parameters.items()}
    assert mflop["qkv_a_proj"] == pytest.approx(22.0 + 8.3, abs=0.1)
    assert mflop["q_b_proj"] == pytest.approx(75.5, abs=0.05)
    assert mflop["o_proj"] == pytest.approx(234.9, abs=0.05)
    assert mflop["indexer_q_proj"] == pytest.approx(25.2, abs=0.05)
    assert mflop["indexer_k_proj"] == pytest.approx(1.8 + 0.9, abs=0.1)
    assert mflop["q_absorb"] == mflop["v_up_proj"] == pytest.approx(16.8, abs=0.05)


def test_hopper_executes_64_heads_for_16_and_2048_slots_for_one_key():
    found = roofline.floor(V32, Case("context", 1, 128, 16), H200)
    attention = next(s for s in found.stages if s.stage == "sparse_attn")
    assert attention.flops_executed == 2 * 64 * (576 + 512) * 128 * 2048
    assert attention.flops_useful == 2 * 16 * (576 + 512) * 128 * 129 / 2
    blackwell = roofline.floor(V32, Case("context", 1, 128, 16), systems.load("b200_sxm"))
    attention = next(s for s in blackwell.stages if s.stage == "sparse_attn")
    assert attention.flops_executed == attention.flops_useful


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 4096))
def test_a_prefix_costs_what_the_tail_of_the_whole_context_costs(prefix, new, top_k):
    whole, head, tail = (
        roofline.Points.of(Case("context", 2, s, prefix=p))
        for s, p in ((prefix + new, 0), (prefix, 0), (new, prefix))
    )
    assert tail.pairs == whole.pairs - head.pairs
    assert tail.selected(top_k) == whole.selected(top_k) - head.selected(top_k)
    by_hand = 2 * sum(min(prefix + t + 1, top_k) for t in range(new))
    assert tail.selected(top_k) == by_hand


@given(st.integers(0, 3000), st.integers(1, 3000), st.integers(1, 32), st.sampled_from((64, 128)))
def test_short_rows_fill_whole_tiles_of_keys(prefix, new, tiles, tile):
    at = roofline.Points.of(Case("context", 2, new, prefix=prefix))
    rows = (min(prefix + t + 1, tiles * tile) for t in range(new))
    assert at.selected(tiles * tile, tile) == 2 * sum(-(-row // tile) * tile for row in rows)


@given(
    st.sampled_from(("context", "generation")),
    st.integers(1, 512),
    st.integers(1, 65536),
    st.sampled_from((1, 8, 16, 64, 128)),
    st.sampled_from(systems.names()),
)
def test_floors_are_positive_and_grow_with_batch_and_length(phase, batch, seq, heads, name):
    system = systems.load(name)
    here = roofline.floor(V32, Case(phase, batch, seq, heads), system)
    longer = roofline.floor(V32, Case(phase, batch, 2 * seq, heads), system)
    wider = roofline.floor(V32, Case(phase, 2 * batch, seq, heads), system)
    assert 0 < here.useful_ns <= here.floor_ns
    assert here.floor_ns <= longer.floor_ns
    assert here.floor_ns <= wider.floor_ns


def test_a_system_is_known_by_its_device_name_or_not_at_all():
    assert systems.of_device("NVIDIA H200").name == "h200_sxm"
    assert systems.of_device("NVIDIA GB200").name == "gb200"
    assert systems.of_device("NVIDIA H20-3e").name == "h20_3e"
    assert systems.of_device("NVIDIA H20").name == "h20_sxm"
    assert systems.of_device("Tesla T4") is None
    with pytest.raises(UsageError, match="h300"):
        systems.load("h300")
    assert systems.load("h200_sxm", datasheet=True).bfloat16 > H200.bfloat16


@pytest.mark.parametrize("name", systems.names())
def test_every_system_says_where_its_numbers_come_from(name):
    system = systems.load(name)
    assert system.source
    assert system.fp8 == pytest.approx(2 * system.bfloat16, rel=0.01)
    assert 1e12 < system.bandwidth < 1e13


def _results(timing: str) -> Results:
    case = Case("generation", 64, 4095)
    stage = StageStat("sparse_attn", "sparse_attn", 1.0, 100_000.0, 0.5)
    norm = StageStat("qkv_a_norm", "projections", 1.0, 5_000.0, 0.02)
    row = CaseResult(
        case, 5, Spread(*[200_000.0] * 5), 200_000.0, 0.0, 0.0, (stage, norm), (), timing=timing
    )
    summary = TraceSummary("x", "1", ("NVIDIA H200",), 1, 1, 1, 1, 1)
    return Results(summary, Coverage(1, 1, 0, ()), (), (), (row,))


def test_floors_ride_along_with_gpu_times_and_never_with_host_times():
    row = roofline.attach(_results("gpu"), V32, H200).cases[0]
    assert row.roofline_share("sparse_attn") == row.floor.stage_ns("sparse_attn") / 100_000
    assert row.roofline_share("qkv_a_norm") is None
    assert row.roofline_share() == row.floor.floor_ns / 200_000
    assert row.as_json()["floor"]["floor_ns"] == row.floor.floor_ns
    assert roofline.attach(_results("host"), V32, H200).cases[0].roofline_share() is None


def test_the_model_verb_prints_the_floor_of_any_shape(capsys):
    argv = ["model", "deepseek-v3.2", "--roofline", "--system", "h200_sxm"]
    argv += ["--mode", "context", "--seq-lens", "4096,32768", "--num-heads", "128,16"]
    assert main([*argv, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [c["id"] for c in document["cases"]] == [
        "context-b1-s4096-h128-bfloat16",
        "context-b1-s32768-h128-bfloat16",
        "context-b1-s4096-h16-bfloat16",
        "context-b1-s32768-h16-bfloat16",
    ]
    assert document["cases"][0]["useful_ms"] == pytest.approx(4.41, rel=0.002)
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "floor 5.145 ms, useful 4.406 ms" in text
    assert "measured on one H200" in text


@pytest.mark.parametrize(
    "flags", [["--system", "z80"], ["--batch-sizes", "0"], ["--seq-lens", "1,x"]]
)
def test_the_model_verb_refuses_in_two_lines(flags, capsys):
    assert main(["model", "glm-5", "--roofline", *flags]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_weights_in_fewer_bits_lower_the_floor_where_weights_bound_it():
    case = Case("generation", 1, 4096)
    b200 = systems.load("b200_sxm")
    floors = [roofline.floor(V32, case, b200, g).floor_ns for g in ("bfloat16", "fp8", "nvfp4")]
    assert floors == sorted(floors, reverse=True)
    assert floors[1] < 0.7 * floors[0]
    assert replace(b200, nvfp4=0.0).peak("nvfp4") == b200.bfloat16
