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
    """Rows whose picks are not the best by score, and relative errors of scores and output.

    Picks are judged by the plain scores of the very e4m3 operands that the kernels were given: an
    operand rounded to bfloat16 on its way may land on the next e4m3 value. `scores` is how far
    those are from the scores of plain operands. The output is compared over the kernels' own picks,
    so that a tie counts nothing, and with KV rows in bfloat16 whatever the case's type, so that an
    fp8 case shows its quantisation.
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
    expected = _plain_core(model, case, device)
    generator = torch.Generator(device).manual_seed(case_seed(case, seed))
    fill(expected, layer, case.batch_size, generator)
    _keep(expected, "logits", given)
    expected.topk = lambda _: core.picks.long()  # type: ignore[method-assign]
    want = layer.forward(x, expected, unmarked)

    usual = _plain_core(model, case, device)
    usual.keys, usual.key_scale = expected.keys, expected.key_scale
    plain_scores = usual.logits(*given["logits"])
    values, scale = quant.unpack_pages(core.key_pages)
    usual.keys = values.view(case.batch_size, core.capacity, -1)[:, : case.kv_len]
    usual.key_scale = scale.view(case.batch_size, core.capacity)[:, : case.kv_len]
    scores = usual.logits(q.view(case.batch_size, core.new, *q.shape[2:]), weights)
    seen = scores > -torch.inf
    return {
        "wrong picks": wrong_picks(core.picks.cpu(), scores.cpu(), model.index_topk, SCORES),
        "scores": distance(scores[seen].cpu(), plain_scores[seen].cpu()),
        "output": distance(out.cpu(), want.cpu()),
    }


def _plain_core(model: ModelShape, case: Case, device: torch.device) -> TorchCore:
    new = case.tokens // case.batch_size
    return TorchCore(model, case.batch_size, case.kv_len - new, new, device=device)


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
