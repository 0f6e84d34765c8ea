"""The reference layer against a naive second writing of it, and the laws of its parts."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from reference_oracle import (
    CPU,
    F64,
    SMALL,
    core_of,
    distance,
    forward,
    layer_of,
    plain_rope,
    tokens,
    watched,
    with_past,
    wrong_picks,
)

from dsa_profiler import marks
from dsa_profiler.errors import UsageError
from dsa_profiler.model import Case, ModelShape, load_model
from dsa_profiler.workloads import rope
from dsa_profiler.workloads.core import TorchCore
from dsa_profiler.workloads.instrument import unmarked
from dsa_profiler.workloads.quant import hadamard
from dsa_profiler.workloads.reference import Reference, build, fill

EXACT = 1e-12
TOPK = SMALL.index_topk

STAGES = [
    "qkv_a_proj", "qkv_a_norm", "q_b_proj", "indexer_q_proj", "indexer_k_proj",
    "indexer_rope_norm", "indexer_quant", "indexer_cache", "mqa_logits", "topk", "index_convert",
    "q_absorb", "rope_append", "sparse_attn", "v_up_proj", "o_proj",
]  # fmt: skip


def assert_is_the_layer(shape: ModelShape, heads: int, batch: int, length: int) -> None:
    """A context pass without quantisation: scores, selection and output are the oracle's."""
    layer = layer_of(shape, heads)
    x = tokens(layer, batch, length)
    out, scores, picks = watched(layer, core_of(layer, batch, 0, length), x)
    want, want_scores = forward(layer, x, picks)
    want_scores = torch.as_tensor(want_scores)
    seen = want_scores > -torch.inf
    assert torch.equal(scores > -torch.inf, seen)
    assert distance(scores[seen], want_scores[seen]) < EXACT
    assert wrong_picks(picks, want_scores, shape.index_topk, EXACT) == 0
    assert distance(out, want) < EXACT


@pytest.mark.parametrize("length", [1, TOPK - 1, TOPK, TOPK + 1, 3 * TOPK])
@pytest.mark.parametrize(("batch", "heads"), [(1, 3), (3, 5), (2, 1)])
def test_gathered_absorbed_attention_is_masked_multi_head_attention(
    length: int, batch: int, heads: int
) -> None:
    assert_is_the_layer(SMALL, heads, batch, length)


@pytest.mark.parametrize(
    "shape",
    [
        plain_rope(SMALL),
        replace(SMALL, indexer_rope_interleave=True),
        replace(SMALL, qk_nope_head_dim=14, v_head_dim=20, q_lora_rank=30, index_n_heads=3),
        replace(SMALL, index_head_dim=8),
    ],
    ids=["no-yarn", "indexer-interleaved", "glm-like", "rope-fills-the-index-head"],
)
def test_it_holds_for_other_shapes(shape: ModelShape) -> None:
    assert_is_the_layer(shape, 2, 2, 20)


@pytest.mark.parametrize("name", ["deepseek-v3.2", "glm-5"])
def test_it_holds_at_true_dimensions(name: str) -> None:
    assert_is_the_layer(replace(load_model(name), index_topk=4), 2, 1, 7)


def test_the_two_indexer_rope_layouts_select_differently() -> None:
    """Else the option would be a decoration."""
    layer = layer_of()
    x = tokens(layer, 1, 24)
    out = layer.forward(x, core_of(layer, 1, 0, 24), unmarked)
    layer.shape = replace(SMALL, indexer_rope_interleave=True)
    assert distance(layer.forward(x, core_of(layer, 1, 0, 24), unmarked), out) > 1e-3


def test_hadamard_leaves_the_scores_unchanged() -> None:
    layer = layer_of()
    x = tokens(layer, 2, 20)
    core = core_of(layer, 2, 0, 20)
    _, rotated, _ = watched(layer, core, x)
    layer.hadamard = torch.eye(SMALL.index_head_dim, dtype=F64)
    _, plain, _ = watched(layer, core, x)
    seen = plain > -torch.inf
    assert distance(rotated[seen], plain[seen]) < EXACT
    assert torch.equal(rotated > -torch.inf, seen)


def test_quantised_scores_stay_near_the_exact_ones() -> None:
    """Both scales are folded in: the queries' into the weights, the keys' by column."""
    layer = layer_of(dtype=torch.float32)
    x = tokens(layer, 2, 20)
    _, exact, _ = watched(layer, core_of(layer, 2, 0, 20), x)
    _, quantised, _ = watched(layer, core_of(layer, 2, 0, 20, exact=False), x)
    seen = exact > -torch.inf
    assert 1e-4 < distance(quantised[seen], exact[seen]) < 5e-2


@pytest.mark.parametrize("length", [TOPK - 3, TOPK, TOPK + 1, 30])
def test_topk_picks_the_best_by_score_and_nothing_from_the_future(length: int) -> None:
    """With quantisation on, and judged by the quantised scores."""
    layer = layer_of(dtype=torch.float32)
    x = tokens(layer, 3, length)
    core = core_of(layer, 3, 0, length, exact=False)
    _, scores, picks = watched(layer, core, x)
    assert wrong_picks(picks, scores, TOPK, 1e-6) == 0
    rows = core.convert(picks)
    assert torch.equal(rows >= 0, picks >= 0)
    sequence = torch.arange(3).repeat_interleave(length)[:, None]
    assert torch.equal(rows[rows >= 0], (picks + sequence * length)[picks >= 0])


def test_the_judge_of_picks_refuses_wrong_ones() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, -torch.inf]])
    assert wrong_picks(torch.tensor([[2, 0]]), scores, 2) == 0
    for bad in ([0, 1], [0, 0], [0, -1], [0, 3]):
        assert wrong_picks(torch.tensor([bad]), scores, 2) == 1, bad
    scores[0, 1] = torch.nan
    assert wrong_picks(torch.tensor([[0, 2]]), scores, 2) == 1


@pytest.mark.parametrize("past", [1, TOPK - 1, TOPK, TOPK + 1, 25])
def test_a_generation_step_is_the_next_row_of_a_context_pass(past: int) -> None:
    layer = layer_of()
    x = tokens(layer, 2, past + 1)
    context = core_of(layer, 2, 0, past + 1)
    want = layer.forward(x, context, unmarked)[:, past:]
    step = with_past(core_of(layer, 2, past, 1), context)
    assert distance(layer.forward(x[:, past:], step, unmarked), want) < EXACT


@pytest.mark.parametrize(("past", "new"), [(5, 20), (TOPK, TOPK), (20, 3)])
def test_a_context_after_a_prefix_is_the_tail_of_the_whole(past: int, new: int) -> None:
    layer = layer_of()
    x = tokens(layer, 2, past + new)
    whole = core_of(layer, 2, 0, past + new)
    want = layer.forward(x, whole, unmarked)[:, past:]
    tail = with_past(core_of(layer, 2, past, new), whole)
    assert distance(layer.forward(x[:, past:], tail, unmarked), want) < EXACT


def test_a_step_can_be_repeated() -> None:
    layer = layer_of(dtype=torch.float32)
    x, core = tokens(layer, 2, 9), core_of(layer, 2, 4, 9, exact=False)
    fill(core, layer, 2, torch.Generator().manual_seed(1))
    first = layer.forward(x, core, unmarked)
    assert torch.equal(layer.forward(x, core, unmarked), first)


@pytest.mark.parametrize("budget", [1, 700, 5000])
def test_blocks_change_nothing(budget: int) -> None:
    layer = layer_of()
    x = tokens(layer, 3, 20)
    want = layer.forward(x, core_of(layer, 3, 0, 20), unmarked)
    got = layer.forward(x, core_of(layer, 3, 0, 20, budget=budget), unmarked)
    assert distance(got, want) < EXACT


def test_float32_and_fp8_caches_stay_close() -> None:
    """float32 to its precision; fp8 KV within 5e-2 (about 2e-2 expected), and not by being bf16."""
    shape = replace(SMALL, kv_lora_rank=256)
    exact = layer_of(shape)
    layer = layer_of(shape, dtype=torch.float32)
    layer.weights = type(exact.weights)(
        **{name: getattr(exact.weights, name).float() for name in exact.weights.__slots__}
    )
    x = tokens(exact, 2, 16)
    want = exact.forward(x, core_of(exact, 2, 0, 16), unmarked)
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        core = TorchCore(shape, 2, 0, 16, cache_dtype=dtype, exact=True)
        found[dtype] = distance(layer.forward(x.float(), core, unmarked), want)
    assert found[torch.float32] < 1e-5
    assert 1e-5 < found[torch.bfloat16] < 1e-2
    assert 1e-3 < found[torch.uint8] < 5e-2


def test_nan_is_never_laundered() -> None:
    """A NaN in the input reaches the output of its own token, and the error measure."""
    layer = layer_of()
    x = tokens(layer, 1, 12)
    want = layer.forward(x, core_of(layer, 1, 0, 12), unmarked)
    x[0, 5, 0] = torch.nan
    out = layer.forward(x, core_of(layer, 1, 0, 12), unmarked)
    assert out[0, 5].isnan().all()
    assert torch.equal(out[0, :5], want[0, :5])
    assert not distance(out, want) < 1e9


@pytest.mark.parametrize(("past", "new"), [(0, 5), (9, 1), (4, 6)])
def test_every_stage_is_marked_once_and_in_order(past: int, new: int) -> None:
    layer = layer_of()
    seen: list[str] = []
    depth = 0

    @contextmanager
    def mark(stage: str):
        nonlocal depth
        assert depth == 0, "stages do not nest"
        depth += 1
        seen.append(stage)
        yield
        depth -= 1

    core = core_of(layer, 2, past, new)
    fill(core, layer, 2, torch.Generator().manual_seed(1))
    layer.forward(tokens(layer, 2, new), core, mark)
    assert seen == STAGES
    others = {"sparse_attn_combine", "dense_attn", *marks.STAGE_GROUPS["other"]}
    assert set(seen) == set(marks.STAGES) - others


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    v32 = load_model("deepseek-v3.2")
    plain = rope.frequencies(replace(v32.rope, factor=1.0), 64, 163840)
    yarn = rope.frequencies(v32.rope, 64, 163840)
    ratio = yarn / plain
    turns = plain * v32.rope.original_max_position / (2 * torch.pi)
    assert torch.all(ratio[turns > 45] == 1)
    assert torch.allclose(ratio[turns < 0.8], torch.tensor(1 / 40, dtype=F64))
    assert torch.all(ratio.diff() < 1e-15)
    assert torch.equal(rope.frequencies(v32.rope, 64, 4096), plain)


@pytest.mark.parametrize("dim", [1, 2, 16, 128])
def test_hadamard_is_orthonormal_and_its_own_inverse(dim: int) -> None:
    matrix = hadamard(dim, F64)
    assert torch.allclose(matrix @ matrix, torch.eye(dim, dtype=F64), atol=1e-14)
    assert torch.all(matrix.abs() == matrix.abs()[0, 0])


def test_prepare_is_fresh_a_case_and_the_same_a_seed() -> None:
    model = replace(SMALL, kv_lora_rank=128)
    generation = Case("generation", 2, 20, 3, "fp8")

    def output(case: Case, seed: int = 0) -> torch.Tensor:
        return Reference(model, CPU, seed).prepare(case)(unmarked)

    first = output(generation)
    assert first.shape == (2, 1, SMALL.hidden_size)
    assert first.isfinite().all()
    assert torch.equal(output(generation), first)
    assert not torch.equal(output(generation, seed=1), first)
    other = output(replace(generation, seq_len=21))
    assert not torch.equal(other, first)
    context = output(Case("context", 2, 5, 3, "float32", prefix=7))
    assert context.shape == (2, 5, SMALL.hidden_size)


def test_weights_are_shared_by_cases_of_one_head_count() -> None:
    workload = Reference(SMALL, CPU, 0)
    layer = workload.layer_of(3)
    assert workload.layer_of(3) is layer
    assert workload.layer_of(2).heads == 2


def test_what_cannot_be_is_named_before_anything_is_built() -> None:
    with pytest.raises(UsageError, match="index_head_dim = 48"):
        build(replace(SMALL, index_head_dim=48), CPU, 0, {})
    with pytest.raises(UsageError, match="needs 65 positions"):
        Reference(SMALL, CPU, 0).prepare(Case("generation", 1, 64, 3))
