"""One case on the kernels, judged by plain PyTorch on the same device, inputs and caches."""

from __future__ import annotations

from typing import Any

import torch
from reference_oracle import distance, wrong_picks

from dsa_profiler.model import Case, ModelShape
from dsa_profiler.workloads import quant
from dsa_profiler.workloads.core import TorchCore
from dsa_profiler.workloads.instrument import unmarked
from dsa_profiler.workloads.kernels import HopperKernels
from dsa_profiler.workloads.kernels_source import Kernels
from dsa_profiler.workloads.reference import Reference, case_seed, fill

SCORES = 1e-3
"""Tolerance of a pick's score, as a part of the largest of its row."""


def errors(
    kernels: Kernels, model: ModelShape, case: Case, device: torch.device, seed: int
) -> dict[str, float]:
    """Rows whose picks are not the best by score, and relative errors of what a step makes.

    Every kernel is judged on what it was given, in the kernels' own caches: picks by the plain
    scores of the same e4m3 operands (one that was rounded to bfloat16 on its way may land on the
    next e4m3 value), the output over the same picks and the same KV rows. How far those operands
    (`scores`) and rows (`rows`) are from plain ones is told apart, and `whole` is the output's way
    to a plain one over the same picks, with rows that were never quantised. Scores are measured by
    what they are summed from: the few of a short case may cancel to almost nothing.
    """
    made, plain = HopperKernels(kernels, model, device, seed, {}), Reference(model, device, seed)
    made.dtype = plain.dtype = torch.bfloat16
    core, x = made.core_and_input(case, made.layer_of(case.num_heads))
    poison(core)
    given: dict[str, Any] = {}
    _keep(core, "logits", given)
    out = made.layer_of(case.num_heads).forward(x, core, unmarked)
    q, weights = given["logits"]

    layer = plain.layer_of(case.num_heads)
    usual = _plain_core(model, case, device)
    generator = torch.Generator(device).manual_seed(case_seed(case, seed))
    fill(usual, layer, case.batch_size, generator)
    _keep(usual, "logits", given)
    layer.forward(x, usual, unmarked)
    plain_scores = _plain_core(model, case, device)
    plain_scores.keys, plain_scores.key_scale = usual.keys, usual.key_scale

    same = _same_caches(model, case, core)
    scores = same.logits(q.view(case.batch_size, core.new, *q.shape[2:]), weights)
    want = layer.forward(x, same, unmarked)
    usual.topk = same.topk  # type: ignore[method-assign]
    whole = layer.forward(x, usual, unmarked)
    seen = scores > -torch.inf
    plain_q, plain_weights = given["logits"]
    wanted_scores = plain_scores.logits(plain_q, plain_weights)[seen]
    terms = plain_scores.logits(plain_q, plain_weights.abs())[seen]
    return {
        "wrong picks": wrong_picks(core.picks.cpu(), scores.cpu(), model.index_topk, SCORES),
        "scores": float((scores[seen] - wanted_scores).norm() / terms.norm()),
        "rows": distance(same.rows.cpu(), usual.rows.cpu()),
        "output": distance(out.cpu(), want.cpu()),
        "whole": distance(out.cpu(), whole.cpu()),
    }


def assert_small(found: dict[str, float], case: Case, note: str = "") -> None:
    """The limits. e4m3 rounds with 2.55e-2 of a value in the mean square: stored rows lie within
    3e-2, and an output, a mixture of few or of equal ones, around that.
    """
    fp8 = case.dtype == "fp8"
    assert found["wrong picks"] == 0, (found, note)
    assert found["scores"] < 8e-2, (found, note)
    assert found["rows"] < (3e-2 if fp8 else 1e-2), (found, note)
    assert found["output"] < 1e-2, (found, note)
    assert found["whole"] < (5e-2 if fp8 else 1e-2), (found, note)


def _plain_core(
    model: ModelShape, case: Case, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> TorchCore:
    new = case.tokens // case.batch_size
    past = case.kv_len - new
    return TorchCore(model, case.batch_size, past, new, cache_dtype=dtype, device=device)


def _same_caches(model: ModelShape, case: Case, core: Any) -> TorchCore:
    """A plain core that holds what the kernels' caches hold, and picks what they picked."""
    same = _plain_core(model, case, core.device, torch.float32)
    values, scale = quant.unpack_pages(core.key_pages)
    same.keys = values.view(case.batch_size, core.capacity, -1)[:, : case.kv_len]
    same.key_scale = scale.view(case.batch_size, core.capacity)[:, : case.kv_len]
    rows = core.rows.view(case.batch_size, core.capacity, -1)[:, : case.kv_len]
    if case.dtype == "fp8":
        rows = quant.unpack_rows(rows, model.kv_lora_rank)
    same.rows = rows.float().contiguous()
    same.store_keys = same.store_rows = lambda *_: None  # type: ignore[method-assign]
    same.topk = lambda _: core.picks.long()  # type: ignore[method-assign]
    return same


def _keep(core: Any, name: str, given: dict[str, Any]) -> None:
    """Note what a stage of the core is called with."""
    call = getattr(core, name)

    def kept(*arguments: torch.Tensor) -> Any:
        given[name] = tuple(a.clone() for a in arguments)
        return call(*arguments)

    setattr(core, name, kept)


def poison(core: Any) -> None:
    """What a step should overwrite holds nonsense, and so does the memory it will be given."""
    core.picks.fill_(7)
    core.queries[:, : core.heads] = torch.nan
    for chunk in core.chunks:
        chunk.keys.view(torch.uint8).fill_(0x7F)
        chunk.scale.fill_(0xFF)
    if core.device.type == "cuda":
        del [torch.full((1 << 28,), torch.nan, device=core.device)][0]
