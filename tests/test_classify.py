"""Stages and families: every rule on its own examples, what is no part of attention, and order."""

from __future__ import annotations

import sys
from importlib import resources

import pytest

from dsa_profiler.analysis.classify import END, START, Rule, by_order, classify, rules
from dsa_profiler.marks import STAGES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLES = [(rule, text) for rule in rules().kernels for text in rule.examples]


def test_there_are_at_least_sixty_real_names() -> None:
    assert len({text for _, text in EXAMPLES}) >= 60
    assert all(rule.examples for rule in rules().kernels)


def test_rules_hold_only_the_keys_that_the_file_explains() -> None:
    text = resources.files("dsa_profiler.analysis").joinpath("kernels.toml").read_text("utf-8")
    data = tomllib.loads(text)
    known = {"base", "template", "namespace", "stage", "family", "source", "since", "until",
             "examples"}  # fmt: skip
    assert all(entry.keys() <= known for entry in data["kernel"])
    assert all(entry["source"] for entry in data["kernel"])
    assert all(entry.keys() == {"after", "before", "sequence"} for entry in data["order"])
    stages = {*STAGES, START, END}
    assert all({entry["after"], entry["before"]} <= stages for entry in data["order"])


@pytest.mark.parametrize(("rule", "text"), EXAMPLES, ids=[t[:70] for _, t in EXAMPLES])
def test_each_rule_classifies_its_examples(rule: Rule, text: str) -> None:
    kernel = classify(text)
    assert (kernel.stage, kernel.family) == (rule.stage, rule.family)


@pytest.mark.parametrize(
    "text",
    [
        "void tensorrt_llm::kernels::deepseek_v3_topk_kernel<float, float, int, 256, 8>(float*)",
        "void moe::dev::routing::routingDeepSeek::routingIndicesClusterKernel<X>(X)",
        "void routingIndicesHistogramKernel<X>(X)",
        "void at::native::sbtopk::gatherTopK<float, unsigned int, 2, false>(T)",
        "void at::native::mbtopk::gatherTopK<float, unsigned int, 2>(T)",
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy<X, unsigned int, 3, 64>(X*)",
        "void vllm::moe::topkGatingSoftmax<8, 256, 4, 16, 32>(float const*)",
        "void my_topKPerRowDecode_like<512>(int)",
        "void deep_gemm::sm90_fp8_gemm_1d2d_impl<2112u, 7168u>(float*)",
        "nvjet_tst_64x8_64x16_4x1_v_bz_TNN",
        "void flashinfer::norm::RMSNormKernel<8u, __nv_bfloat16>(__nv_bfloat16*)",
        "void radixPassKernel<float>(float*)",
    ],
)
def test_a_name_that_proves_nothing_gets_no_stage(text: str) -> None:
    assert classify(text).stage is None


def test_metadata_kernels_are_not_logits() -> None:
    assert classify("deep_gemm::sm90_paged_mqa_logits_metadata<32u>(int)").stage == "schedule"


LAYER = [  # TensorRT-LLM 1.3, BF16, SM90: (stage by name, family) in order of launch
    (None, "gemm"), (None, "norm"), (None, "norm"), (None, "cat"), (None, "gemm"), (None, "gemm"),
    (None, "gemm"), ("indexer_rope_norm", "indexer_norm"), ("indexer_rope_norm", "rope"),
    ("indexer_quant", "indexer_quant"), ("indexer_quant", "indexer_quant"),
    ("indexer_quant", "indexer_weight_scale"), ("indexer_cache", "indexer_cache"),
    ("mqa_logits", "mqa_logits"), ("topk", "topk"), ("index_convert", "index_convert"),
    ("rope_append", "rope_append"), (None, "gemm"), (None, "cat"), ("sparse_attn", "sparse_attn"),
    (None, "gemm"), (None, "gemm"),
]  # fmt: skip


def placed(layer: list[tuple[str | None, str]]) -> list[str | None]:
    return by_order([stage for stage, _ in layer], [family for _, family in layer])


def test_a_layer_is_told_by_the_order_of_its_kernels() -> None:
    found = placed(LAYER)
    told = [by_place or by_name for by_place, (by_name, _) in zip(found, LAYER, strict=True)]
    assert told == [
        "qkv_a_proj", "qkv_a_norm", "qkv_a_norm", "qkv_a_norm", "q_b_proj", "indexer_q_proj",
        "indexer_k_proj", "indexer_rope_norm", "indexer_rope_norm", "indexer_quant",
        "indexer_quant", "indexer_quant", "indexer_cache", "mqa_logits", "topk", "index_convert",
        "rope_append", "q_absorb", "q_absorb", "sparse_attn", "v_up_proj", "o_proj",
    ]  # fmt: skip


def test_split_k_and_quantisation_go_with_their_gemm() -> None:
    tail = [("sparse_attn", "sparse_attn"), (None, "quant"), (None, "gemm"), (None, "splitk"),
            (None, "gemm"), (None, "splitk"), ("communication", "communication")]  # fmt: skip
    assert placed(tail) == [
        None, "v_up_proj", "v_up_proj", "v_up_proj", "o_proj", "o_proj", None,
    ]  # fmt: skip


@pytest.mark.parametrize("extra", ["gemm", "norm", "", "moe"])
def test_order_fails_closed_on_one_kernel_too_many(extra: str) -> None:
    assert placed([*LAYER[:4], (None, extra), *LAYER[4:]])[:8] == [None] * 8
    tail = placed([*LAYER, (None, extra)])
    assert tail[20:] == [None] * 3


def test_order_says_nothing_without_anchors() -> None:
    assert placed([(None, "gemm"), (None, "gemm")]) == [None, None]
    assert placed([]) == []
