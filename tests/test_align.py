"""Alignment of pairs whose truth is planted."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from align_factory import (
    DECODE,
    DECODE_CASE,
    DENSE,
    PREFILL,
    PREFILL_CASE,
    SHORT_DECODE,
    STYLES,
    K,
    Server,
    retiled,
    server,
    slower,
    standalone,
    with_extra,
    without,
)
from trace_factory import Program, dsa_trace

from dsa_profiler.analysis import expected, reasons
from dsa_profiler.analysis.align import align
from dsa_profiler.analysis.alignment import Alignment
from dsa_profiler.analysis.options import Options
from dsa_profiler.analysis.verdict import Tolerance
from dsa_profiler.columns import Gpu, Kernels, Launches, Ranges, Trace
from dsa_profiler.errors import UsageError
from dsa_profiler.marks import STAGES
from dsa_profiler.model import Case

SHORT_CASE = Case("generation", 64, 1023)


def status(found: Alignment) -> dict[str, str]:
    return {c.name: c.status for c in found.checks}


def names(found: Alignment) -> set[str]:
    return {r["name"] for r in found.reasons}


def slugs(found: Alignment) -> list[str]:
    return [p.slug for p in found.problems]


@pytest.mark.parametrize(
    ("mode", "method"),
    [("node", "anchors"), ("eager", "anchors"), ("captured", "graph_capture"), ("marks", "marks")],
)
def test_equal_sides_pass_however_the_layers_are_found(mode: str, method: str) -> None:
    found = align([standalone()], [server(how=Server(layers=7, mode=mode))])
    assert found.verdict == "pass"
    assert set(status(found).values()) == {"pass"}
    e2e = found.server
    assert (e2e["steps"], e2e["layers_per_step"], e2e["dsa_layers"]) == (4, 7, 7)
    assert e2e["method"] == method
    assert [p["stage"] for p in found.pairs] == [k.stage for k in DECODE]


def test_all_61_layers_are_counted() -> None:
    found = align([standalone()], [server(how=Server(layers=61, steps=2, dense_layers=3))])
    assert found.verdict == "pass"
    assert found.server["layers_per_step"] == found.server["dsa_layers"] == 61
    assert {p["e2e"]["n"] for p in found.pairs} == {122}


@pytest.mark.parametrize("style", STYLES)
def test_the_steps_of_every_server_are_found(style: str) -> None:
    found = align([standalone()], [server(how=Server(style=style))])
    assert found.verdict == "pass", found.checks
    assert found.server["steps"] == 4
    assert found.server["steps_by"] == ("graph launch" if style == "none" else "range")


def test_an_eager_server_without_ranges_has_a_period() -> None:
    found = align([standalone()], [server(how=Server(style="none", mode="eager"))])
    assert found.verdict == "pass"
    assert found.server["steps_by"] == "period"
    assert found.server["layers_per_step"] == 5


def test_times_are_medians_with_spread_and_ratios_are_standalone_over_e2e() -> None:
    found = align([standalone(noise=0)], [server(slower(DECODE, "topk", 1.5), Server(noise=0))])
    row = next(p for p in found.pairs if p["stage"] == "topk")
    assert row["standalone_ns"] == 26_000
    assert row["e2e_ns"] == 39_000
    assert row["ratio"] == pytest.approx(26 / 39, abs=1e-4)
    assert row["standalone"] == {"p10_ns": 26_000, "p90_ns": 26_000, "n": 5}
    assert row["e2e"] == {"p10_ns": 39_000, "p90_ns": 39_000, "n": 20}
    stage = next(s for s in found.stages if s["stage"] == "qkv_a_norm")
    assert stage["standalone_ns"] == 5_000, "a stage is the sum of its kernels in a layer"


@pytest.mark.parametrize("stage", sorted({k.stage for k in DECODE}))
def test_one_stage_2_6_times_slower_fails_the_latency_check_alone(stage: str) -> None:
    found = align([standalone()], [server(slower(DECODE, stage, 2.6))])
    assert found.verdict == "fail"
    assert status(found) == {
        "kernel_names_match": "pass",
        "latency_within_tolerance": "fail",
        "no_missing_or_extra_kernels": "pass",
    }
    row = next(s for s in found.stages if s["stage"] == stage)
    assert row["ratio"] == pytest.approx(1 / 2.6, rel=0.1)
    others = [s["ratio"] for s in found.stages if s["stage"] != stage]
    assert all(0.85 < r < 1.15 for r in others)


@pytest.mark.parametrize("place", range(len(DECODE)), ids=lambda n: f"{n}-{DECODE[n].stage}")
def test_a_missing_kernel_is_named(place: int) -> None:
    found = align([standalone()], [server(without(DECODE, place))])
    assert found.verdict == "fail"
    assert [f.kernel for f in found.missing] == [DECODE[place].name]
    assert [f.stage for f in found.missing] == [DECODE[place].stage]
    assert not found.extra
    assert len(found.pairs) == len(DECODE) - 1


@pytest.mark.parametrize(
    ("mode", "place"),
    [("node", n) for n in range(1, len(DECODE) + 1)]
    + [("marks", n) for n in range(1, len(DECODE))],
)
def test_an_extra_kernel_is_named(mode: str, place: int) -> None:
    extra = K("", "void somebody::new_kernel<3>(float *)", 3000)
    found = align([standalone()], [server(with_extra(DECODE, place, extra), Server(mode=mode))])
    assert found.verdict == "fail"
    assert [f.kernel for f in found.extra] == [extra.name]
    assert not found.missing
    assert extra.name in found.unknown


def test_tiles_of_matrix_products_do_not_matter() -> None:
    found = align([standalone()], [server(retiled(DECODE))])
    assert found.verdict == "pass"
    assert "autotuner" in names(found)
    assert [p["how"] for p in found.pairs].count("retuned") == 6


def test_another_precision_of_a_matrix_product_does_matter() -> None:
    other = [replace(k, name=k.name.replace("nvjet_tst", "nvjet_qqtst")) for k in DECODE]
    found = align([standalone()], [server(other)])
    assert status(found)["kernel_names_match"] == "fail"
    assert "quantisation" in names(found)


def test_another_kernel_for_the_same_stage_is_renamed_not_missing() -> None:
    changed = [
        replace(k, name="void tensorrt_llm::_v1::kernels::radixPassKernel<float, int>(x)")
        if k.stage == "topk"
        else k
        for k in DECODE
    ]
    found = align([standalone()], [server(changed)])
    assert status(found)["kernel_names_match"] == "fail"
    assert not found.missing
    assert not found.extra
    assert "radixPassKernel" in found.checks[0].detail


def test_spelling_namespace_and_version_do_not_rename_a_kernel() -> None:
    changed = [
        replace(k, name="void sm90::sparse_attn_fwd_kernel(SparsePrefillParams)")
        if k.stage == "sparse_attn"
        else replace(k, name=k.name.replace("tensorrt_llm::kernels", "tensorrt_llm::_v1::kernels"))
        for k in DECODE
    ]
    assert align([standalone()], [server(changed)]).verdict == "pass"


def test_what_surrounds_the_module_is_never_extra() -> None:
    found = align([standalone()], [server(how=Server(layers=9, dense_layers=3))])
    assert not found.extra
    kernels = {k["kernel"] for k in (vars_of(x) for x in found.lanes["e2e"])}
    assert not kernels & {k.name for k in DENSE if "silu" in k.name}
    assert not any("allreduce" in name for name in kernels)


def vars_of(lane: Any) -> dict[str, Any]:
    return {"kernel": lane.kernel, "slot": lane.slot}


def test_a_kernel_missing_in_layers_of_one_kind_is_found_with_its_layers() -> None:
    some = dict.fromkeys((0, 1), without(DECODE, 3))
    found = align([standalone()], [server(how=Server(layers=8, dense_layers=3), per_layer=some)])
    assert found.verdict == "fail"
    assert [(f.kernel, f.where) for f in found.missing] == [(DECODE[3].name, "layers 0-1")]


def test_a_missing_anchor_is_a_missing_kernel_and_not_a_missing_layer() -> None:
    rope = next(n for n, k in enumerate(DECODE) if k.stage == "rope_append")
    some = {2: without(DECODE, rope)}
    found = align([standalone()], [server(how=Server(layers=6), per_layer=some)])
    assert found.server["layers_per_step"] == 6
    assert [(f.stage, f.where) for f in found.missing] == [("rope_append", "layers 2")]


def test_streams_of_a_graph_change_the_union_and_not_the_sum() -> None:
    one_stream = [replace(k, stream=7) for k in DECODE]
    found = align([standalone(one_stream)], [server(how=Server(noise=0))])
    assert found.verdict == "pass"
    left, right = found.totals["standalone"], found.totals["e2e"]
    assert left["sum_ns"] == pytest.approx(right["sum_ns"], rel=0.05)
    assert left["overlap_ns"] == 0
    assert right["sum_ns"] - right["overlap_ns"] + right["gap_ns"] == pytest.approx(
        right["span_ns"], abs=1
    )


def test_kernels_that_two_streams_issue_in_another_order_are_moved() -> None:
    moved = [*DECODE[:9], DECODE[10], DECODE[9], *DECODE[11:]]
    found = align([standalone()], [server(moved)])
    assert found.verdict == "pass"
    assert "moved" in {p["how"] for p in found.pairs}


def test_ranks_are_merged_and_a_straggler_is_shown() -> None:
    found = align([standalone()], [server(how=Server(ranks=4, slow_rank=1.4))])
    assert found.verdict == "pass"
    assert [r.straggler for r in found.ranks] == [False, False, False, True]
    assert found.ranks[3].to_median == pytest.approx(1.4, rel=0.05)
    assert found.server["ranks"] == 4
    assert found.server["steps"] == 4, "steps are counted on a rank, not summed"


def test_one_file_a_rank_is_one_server() -> None:
    files = [server(seed=n) for n in range(3)]
    found = align([standalone()], files)
    assert found.verdict == "pass"
    assert found.server["ranks"] == 3
    assert len({r.rank for r in found.ranks}) == 3


def test_a_kernel_missing_on_one_rank_fails() -> None:
    found = align([standalone()], [server(), server(without(DECODE, 9))])
    assert found.verdict == "fail"
    assert found.missing[0].where.startswith("ranks 1")


def test_only_steps_of_the_case_are_compared() -> None:
    others = ((1, 0), (2, 60), (0, 63), (1, 63))
    found = align([standalone()], [server(how=Server(other_steps=others))])
    assert found.verdict == "pass"
    assert found.server["steps"] == 4
    assert found.server["steps_found"] == 8


def test_prefill_steps_need_the_tokens_of_the_case() -> None:
    left = [standalone(PREFILL, PREFILL_CASE)]
    how = Server(case=PREFILL_CASE, mode="eager", style="trtllm_tokens")
    assert align(left, [server(PREFILL, how)]).verdict == "pass"
    longer = replace(how, case=replace(PREFILL_CASE, seq_len=8192))
    found = align(left, [server(PREFILL, longer)])
    assert found.verdict == "inconclusive"
    assert slugs(found) == ["align-wrong-batch"]
    assert "8192 tokens" in found.problems[0].what


def test_hidden_kernels_are_inconclusive_with_their_cure() -> None:
    found = align([standalone()], [server(how=Server(mode="hidden"))])
    assert found.verdict == "inconclusive"
    assert slugs(found) == ["align-kernels-hidden"]
    assert "--cuda-graph-trace=node" in found.problems[0].cure


def test_two_phases_are_inconclusive() -> None:
    prefill = server(PREFILL, Server(case=PREFILL_CASE, mode="eager"))
    assert slugs(align([standalone()], [prefill])) == ["align-wrong-batch"]
    silent = server(PREFILL, Server(case=PREFILL_CASE, mode="eager", style="none"))
    found = align([standalone()], [silent])
    assert found.verdict == "inconclusive"
    assert "align-phases" in slugs(found)


def test_a_wrong_batch_names_the_batches_that_are_there() -> None:
    how = Server(case=Case("generation", 32, 4095))
    found = align([standalone()], [server(how=how)])
    assert found.verdict == "inconclusive"
    assert "batch 64" in found.problems[0].what
    assert "32 generation" in found.problems[0].what


def test_too_few_steps_are_inconclusive() -> None:
    found = align([standalone()], [server(how=Server(steps=1))])
    assert found.verdict == "inconclusive"
    assert "align-few-steps" in slugs(found)
    assert (
        align([standalone()], [server(how=Server(steps=1))], Options(min_steps=1)).verdict == "pass"
    )


def test_no_anchor_no_steps_no_kernels() -> None:
    program = Program()
    thread = program.thread()
    with thread.range("[Executor] _forward_step 1: 0 ctx reqs, 64 gen reqs"):
        thread.launch("void some::kernel(x)", 1000)
    assert slugs(align([standalone()], [program.trace()])) == ["align-no-anchors"]
    assert slugs(align([standalone()], [Program().trace()])) == ["align-no-gpu"]
    one = server(how=Server(style="none", mode="eager", layers=1, steps=1))
    assert "align-no-steps" in slugs(align([standalone()], [one]))


def test_an_annotated_length_that_differs_is_inconclusive() -> None:
    how = Server(case=replace(DECODE_CASE, seq_len=9000), style="vllm_kv")
    assert "align-length" in slugs(align([standalone()], [server(how=how)]))
    told = align([standalone()], [server()], Options(e2e_kv=1024))
    assert "align-length" in slugs(told)


def test_short_sequences_need_neither_logits_nor_topk() -> None:
    found = align([standalone(SHORT_DECODE, SHORT_CASE)], [server(SHORT_DECODE)])
    assert found.verdict == "pass"
    assert found.settings["standalone"]["kv"] == "short"


@pytest.mark.parametrize(("length", "kv"), [(2047, "short"), (2048, "long")])
def test_the_border_lies_between_2048_and_2049_keys(length: int, kv: str) -> None:
    case = replace(DECODE_CASE, seq_len=length)
    found = align([standalone(DECODE, case)], [server()])
    assert found.settings["standalone"]["kv"] == kv


def test_kernels_that_a_short_server_rightly_lacks_are_explained_and_the_standalone_flagged() -> (
    None
):
    found = align([standalone(DECODE, SHORT_CASE)], [server(SHORT_DECODE)])
    assert not found.missing
    assert {f.stage for f in found.explained} == {"mqa_logits", "topk"}
    assert {f.stage for f in found.flagged} == {"mqa_logits", "topk"}
    assert {f.where for f in found.flagged} == {"standalone"}
    assert found.verdict == "fail", "a layer that scores is not what the server runs"
    silent = align([standalone(DECODE, SHORT_CASE)], [server(SHORT_DECODE, Server(style="sglang"))])
    assert {f.stage for f in silent.explained} == {"mqa_logits", "topk"}


def test_a_long_request_in_the_batch_shows_as_extra_scoring() -> None:
    found = align([standalone(SHORT_DECODE, SHORT_CASE)], [server(DECODE)])
    assert found.verdict == "fail"
    assert {f.stage for f in found.extra} == {"mqa_logits", "topk"}
    assert "short_sequence_skip" in names(found)


def test_a_required_kernel_on_neither_side_is_inconclusive() -> None:
    found = align([standalone(SHORT_DECODE)], [server(SHORT_DECODE)])
    assert found.verdict == "inconclusive"
    assert slugs(found) == ["align-required-unseen"] * 2


def test_a_kernel_that_the_era_forbids_is_flagged_on_both_sides() -> None:
    name = "void fast_hadamard_transform_kernel<fast_hadamard_transform_kernel_traits<16, 7>>(x)"
    both = with_extra(DECODE, 8, K("indexer_quant", name, 2500))
    late = align([standalone(both)], [server(both)], Options(era="D"))
    assert late.verdict == "fail"
    assert {f.where for f in late.flagged} == {"standalone", "e2e"}
    assert align([standalone(both)], [server(both)], Options(era="B")).verdict == "pass"
    assert align([standalone(both)], [server(both)]).verdict == "pass", "no era, no guess"
    early = align([standalone(both)], [server()], Options(era="B"))
    assert early.verdict == "pass"
    assert [f.kind for f in early.explained] == ["missing"]
    assert "hadamard" in names(early)


def test_a_split_k_reduction_comes_and_goes() -> None:
    reduction = K("", "void cublasLt::splitKreduce_kernel<32, 16, int>(x)", 2000)
    found = align([standalone()], [server(with_extra(DECODE, 4, reduction))])
    assert found.verdict == "pass"
    assert [f.kind for f in found.explained] == ["extra"]


def test_multi_token_prediction_is_told_by_the_logits_kernel() -> None:
    other = [replace(k, name=k.name.replace("<1u, 64u", "<2u, 64u")) for k in DECODE]
    assert "mtp" in names(align([standalone()], [server(other)]))


def test_tolerances_and_gates() -> None:
    pair = [standalone()], [server(slower(DECODE, "topk", 2.6))]
    assert align(*pair, Options(tolerance=Tolerance(3.0))).verdict == "pass"
    assert align(*pair, Options(tolerance=Tolerance(2.0, {"topk": 3.0}))).verdict == "pass"
    assert align(*pair, Options(tolerance=Tolerance(3.0, {"topk": 2.0}))).verdict == "fail"
    assert align(*pair, Options(fail_on=frozenset({"names", "kernels"}))).verdict == "pass"
    gone = align([standalone()], [server(without(DECODE, 5))], Options(fail_on=frozenset()))
    assert gone.verdict == "pass"
    assert status(gone)["no_missing_or_extra_kernels"] == "fail"


def test_swapping_the_sides_swaps_missing_and_extra() -> None:
    extra = K("", "void somebody::new_kernel<3>(x)", 3000)
    a = standalone(with_extra(DECODE, 12, extra))
    b = server(without(DECODE, 6))
    there, back = align([a], [b]), align([b], [a])
    assert [f.kernel for f in there.missing] == [f.kernel for f in back.extra]
    assert [f.kernel for f in there.extra] == [f.kernel for f in back.missing]
    assert len(there.missing) == 2
    for p, q in zip(there.pairs, back.pairs, strict=True):
        assert (p["kernel"], p["standalone_ns"]) == (q["e2e_kernel"], q["e2e_ns"])
        assert p["ratio"] == pytest.approx(1 / q["ratio"], rel=1e-3)


def shuffled(trace: Trace, seed: int) -> Trace:
    """The same rows in another order."""
    rng = np.random.default_rng(seed)

    def mixed(table: Any, kind: type) -> Any:
        order = rng.permutation(len(table))
        return kind(*(getattr(table, name)[order] for name in kind.__slots__))

    return replace(
        trace,
        kernels=mixed(trace.kernels, Kernels),
        launches=mixed(trace.launches, Launches),
        ranges=mixed(trace.ranges, Ranges),
    )


@pytest.mark.parametrize("mode", ["node", "captured", "eager"])
def test_the_order_of_rows_changes_nothing(mode: str) -> None:
    left, right = standalone(), server(without(DECODE, 4), Server(mode=mode, ranks=2))
    plain = align([left], [right]).as_json()
    again = align([shuffled(left, 1)], [shuffled(right, 2)]).as_json()
    assert plain == again


def test_two_servers_align_without_any_marks() -> None:
    found = align([server()], [server(seed=9)])
    assert found.verdict == "pass"
    worse = align([server()], [server(without(DECODE, 9), seed=9)])
    assert [f.kernel for f in worse.missing] == [DECODE[9].name]


def test_a_standalone_trace_without_marks_aligns_too() -> None:
    found = align([standalone(marked=False)], [server()])
    assert found.verdict == "pass"
    assert len(found.pairs) == len(DECODE)


def test_layers_without_surroundings_and_of_few_kernels() -> None:
    """The plainest recording there is: eight kernels a layer, nothing between the layers."""
    case = Case("generation", 64, 4095)
    kernels = [
        K("", name, ns)
        for name, ns in (
            ("nvjet_tst_64x32_64x16_2x4_h_bz_NNT", 9_000),
            ("void deep_gemm::sm90_fp8_paged_mqa_logits<1u, 64u>(x)", 21_000),
            ("void tensorrt_llm::kernels::topKPerRowDecode<512>(x)", 26_000),
            ("void sm90::fwd::sparse_attn_fwd_kernel<X>(x)", 48_000),
            ("nvjet_tst_192x128_64x5_2x1_v_bz_TNT", 18_000),
        )
    ]
    for how in (Server(surroundings=False), Server(surroundings=False, mode="eager")):
        assert align([standalone(kernels, case)], [server(kernels, how)]).verdict == "pass"
        for place in range(len(kernels)):
            changed = server(without(kernels, place), how)
            assert align([standalone(kernels, case)], [changed]).verdict != "pass"


def test_two_marked_recordings_of_one_case_align() -> None:
    case = Case("generation", 64, 4095)
    found = align([dsa_trace([case])], [dsa_trace([case], seed=5)])
    assert found.verdict == "pass"
    assert found.server["method"] == "marks"
    other = align([dsa_trace([case])], [dsa_trace([Case("context", 1, 1024)])])
    assert slugs(other) == ["align-other-case"]


def test_a_case_is_chosen_by_what_the_server_ran() -> None:
    cases = [Case("context", 1, 1024), Case("generation", 64, 4095)]
    found = align([dsa_trace(cases)], [server()])
    assert found.settings["case"] == cases[1].slug
    two = [Case("generation", 64, 4095), Case("generation", 64, 8191)]
    unsure = align([dsa_trace(two)], [server()])
    assert slugs(unsure) == ["align-several-cases"]
    assert align([dsa_trace(two)], [server()], Options(case=two[0].slug)).settings["case"]
    with pytest.raises(UsageError, match="no case"):
        align([dsa_trace(two)], [server()], Options(case=cases[0].slug))


def test_a_layer_that_differs_in_one_step_is_noted_and_not_judged() -> None:
    program_free = server(how=Server(steps=4, mode="eager", noise=0))
    sparse = next(n for n, t in program_free.strings.items() if "sparse_attn_fwd" in t)
    rows = np.flatnonzero(program_free.kernels.name == sparse)
    name = program_free.kernels.name.copy()
    name[rows[0]] = next(n for n, t in program_free.strings.items() if "topKPerRow" in t)
    odd = replace(program_free, kernels=replace(program_free.kernels, name=name))
    found = align([standalone()], [odd])
    assert found.verdict == "pass"
    assert found.server["deviating_layers"] == 1
    assert "align-deviating" in [n.slug for n in found.notes]


def test_json_has_the_keys_of_the_contract_in_their_order() -> None:
    document = align([standalone()], [server(without(DECODE, 3))]).as_json()
    assert list(document)[:8] == [
        "schema", "verdict", "checks", "e2e", "stages", "pairs", "missing", "extra",
    ]  # fmt: skip
    assert document["schema"] == 1
    assert [list(c) for c in document["checks"]] == [["name", "status", "detail"]] * 3
    assert list(document["e2e"])[:4] == ["steps", "layers_per_step", "dsa_layers", "method"]
    assert list(document["stages"][0]) == ["stage", "standalone_ns", "e2e_ns", "ratio"]
    assert list(document["pairs"][0])[:5] == [
        "stage", "kernel", "standalone_ns", "e2e_ns", "ratio",
    ]  # fmt: skip
    assert document["missing"] == [DECODE[3].name]


def test_the_window_of_a_slot_is_its_kernel_on_the_trace() -> None:
    trace = server(how=Server(mode="eager"))
    found = align([standalone()], [trace])
    for row in found.pairs:
        start, end = row["e2e_window"]
        at = np.flatnonzero(trace.kernels.start == start)
        assert trace.kernels.end[at[0]] == end
        assert trace.strings[int(trace.kernels.name[at[0]])] == row["e2e_kernel"]


def test_rules_and_reasons_are_sound_data() -> None:
    for rule in expected.rules():
        assert rule.set in ("required", "optional", "forbidden")
        assert rule.on in ("", "standalone", "e2e")
        assert rule.stage in STAGES or rule.pattern is not None
        assert rule.why
        assert set(rule.when) <= set(expected.Setting.__slots__)
    assert list(reasons.FITS) == list(expected.reasons())


def test_no_reason_is_told_without_evidence() -> None:
    found = align([standalone()], [server(how=Server(mode="eager"))])
    assert found.reasons == ()


def test_random_seeds_give_the_same_document() -> None:
    rng = random.Random(4)
    kernels = without(DECODE, rng.randrange(len(DECODE)))
    first = align([standalone()], [server(kernels)]).as_json()
    assert first == align([standalone()], [server(kernels)]).as_json()


def test_a_recording_aligns_with_itself() -> None:
    kinds = {0: without(DECODE, 3), 2: without(DECODE, 9)}
    for trace in (standalone(), server(how=Server(ranks=2)), server(per_layer=kinds)):
        found = align([trace], [trace])
        assert found.verdict == "pass"
        assert {s["ratio"] for s in found.stages} == {1.0}


def test_a_trace_without_sparse_attention_is_no_pass() -> None:
    dense = [
        replace(k, name="void sm90::flash_fwd_splitkv_mla_kernel<Traits<X>>(x)")
        if k.stage == "sparse_attn"
        else k
        for k in SHORT_DECODE
        if not k.stage.startswith("index")
    ]
    found = align([server(dense)], [server(dense)])
    assert found.verdict == "inconclusive"
    assert found.server["dsa_layers"] == 0
    assert found.server["layers_per_step"] == 5


FMHA = "fmhaSm100fKernel_QkvBfloat16OBfloat16HQk576HV512HVPerCta256PagedKvDenseP64VarSeqQ16Kv128"
SM100 = [
    K("qkv_a_proj", "nvjet_sm100_tst_128x256_64x4_2x1_2cta_h_bz_TNT", 6_000),
    K("qkv_a_norm", DECODE[1].name, 2_000),
    K("qkv_a_norm", DECODE[2].name, 2_000),
    K("q_b_proj", "nvjet_sm100_tst_64x64_64x4_2x1_2cta_h_bz_TNT", 7_000),
    K("indexer_cache", "tensorrt_llm::kernels::indexerKCacheScatterUnifiedKernel(x)", 2_500),
    K("mqa_logits", "void deep_gemm::sm100_fp8_paged_mqa_logits<1u, 64u>(x)", 9_000),
    K("topk", "void tensorrt_llm::_v1::kernels::topKPerRowDecodeFused<512>(x)", 14_000),
    K(
        "rope_append",
        "void tensorrt_llm::kernels::applyMLARopeAndAssignQKVKernelGeneration<__nv_bfloat16>(x)",
        4_000,
    ),
    K("sparse_attn", FMHA, 20_000),
    K("sparse_attn_combine", "void tensorrt_llm::kernels::fmhaReductionKernel<512, 64>(x)", 5_000),
    K("o_proj", "nvjet_sm100_tst_192x128_64x4_2x1_2cta_h_bz_TNT", 11_000),
]
FP8_DECODE = "flash_fwd_splitkv_mla_fp8_sparse_kernel"
VLLM = [
    K("qkv_a_proj", DECODE[0].name, 9_000),
    K("qkv_a_norm", "void vllm::rms_norm_kernel<c10::BFloat16, 8, 2>(x)", 2_000),
    K("q_b_proj", DECODE[3].name, 12_000),
    K("indexer_cache", "void vllm::indexer_k_quant_and_cache_kernel<__nv_bfloat16>(x)", 2_000),
    K("mqa_logits", "void deep_gemm::sm90_fp8_paged_mqa_logits<1u, 64u>(x)", 20_000),
    K("topk", "void vllm::persistent::persistent_topk_kernel<2048, 4u>(x)", 15_000),
    K("rope_append", "void vllm::concat_and_cache_ds_mla_kernel<__nv_bfloat16>(x)", 3_000),
    K("sparse_attn", f"void sm90::decode::sparse_fp8::{FP8_DECODE}<X>(Params)", 40_000),
    K("sparse_attn_combine", "void smxx::decode::flash_fwd_mla_combine_kernel<X>(x)", 4_000),
    K("v_up_proj", DECODE[-2].name, 12_000),
    K("o_proj", DECODE[-1].name, 31_000),
]


@pytest.mark.parametrize(("kernels", "style"), [(SM100, "trtllm"), (VLLM, "vllm")])
def test_other_machines_and_servers_align(kernels: list[K], style: str) -> None:
    case = replace(DECODE_CASE, dtype="fp8")
    chip = {"gpus": (Gpu("B200", 100),)} if kernels is SM100 else {}
    for mode in ("node", "eager"):
        how = Server(style=style, mode=mode, case=case)
        left = [standalone(kernels, case, **chip)]
        found = align(left, [server(kernels, how, **chip)])
        assert found.verdict == "pass", found.checks
        assert found.server["dsa_layers"] == 5
        for place in range(len(kernels)):
            worse = align(left, [server(without(kernels, place), how, **chip)])
            assert [f.kernel for f in worse.missing] == [kernels[place].name]


def test_an_fp8_decode_kernel_is_flagged_in_tensorrt_llm_on_hopper() -> None:
    case = replace(DECODE_CASE, dtype="fp8")
    found = align([standalone(VLLM, case)], [server(VLLM, Server(style="trtllm", case=case))])
    assert found.verdict == "fail"
    assert {f.stage for f in found.flagged} == {"sparse_attn", "sparse_attn_combine"}


def test_a_standalone_layer_in_a_graph_aligns_by_its_capture() -> None:
    case = Case("generation", 64, 4095)
    graph, eager = dsa_trace([case], graph="node"), dsa_trace([case], seed=3)
    found = align([graph], [eager])
    assert found.verdict == "pass"
    assert found.settings["standalone"]["graph"] is True
    assert "graph_or_eager" in names(found)
    assert "unknown" not in {s["stage"] for s in found.stages}
    hidden = align([dsa_trace([case], graph="graph")], [eager])
    assert slugs(hidden) == ["align-kernels-hidden"]
    assert hidden.problems[0].what.startswith("standalone")


def test_a_stage_that_is_slow_on_one_rank_alone_fails() -> None:
    slow = server(slower(DECODE, "topk", 2.6), seed=7)
    found = align([standalone()], [server(seed=5), server(seed=6), slow])
    assert found.verdict == "fail"
    assert status(found)["latency_within_tolerance"] == "fail"
    assert "topk on e2e rank 2" in found.checks[1].detail
    back = align([server(seed=5), server(seed=6), slow], [standalone()])
    assert "topk on standalone rank 2" in back.checks[1].detail


def test_a_stage_that_is_slow_in_one_layer_alone_is_noted() -> None:
    some = {3: slower(DECODE, "topk", 2.6)}
    found = align([standalone()], [server(per_layer=some)])
    assert found.verdict == "pass"
    assert [n.slug for n in found.notes] == ["align-uneven"]
    assert "topk on e2e layer 3" in found.notes[0].what
