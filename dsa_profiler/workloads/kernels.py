"""The layer on the real Hopper kernels: FlashMLA, DeepGEMM's MQA logits and top-k by row.

Projections run on cuBLAS through PyTorch, norms and caches on the package's own ops where these are
there and agree with PyTorch, rotation too. LayerNorm and Hadamard are plain PyTorch:
`indexer_rope_norm` launches more kernels here than in a server.

Options
kernels_path  folder of an unpacked wheel or bundle; by default what the variable DSA_KERNELS_PATH
              names, else the installed package
source        vllm, or sglang: attention and top-k of sglang-kernel, DeepGEMM still from vllm
max_seq_len   columns of the decode scores, which choose the top-k variant; the case's own length
              by default
cuda_graph    the worker's
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dsa_profiler.model import Case, ModelShape
from dsa_profiler.workloads import kernels_core, kernels_source
from dsa_profiler.workloads.core import Core
from dsa_profiler.workloads.kernels_check import settled
from dsa_profiler.workloads.kernels_core import HopperCore
from dsa_profiler.workloads.kernels_source import Kernels
from dsa_profiler.workloads.reference import Layer, Reference


class KernelLayer(Layer):
    """The reference's layer with the package's RMSNorm and rotation where there are any."""

    def __init__(self, kernels: Kernels, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.norm, self.turn = kernels.rms_norm, kernels.rotate
        w = self.weights  # the op wants weight and input of one type
        self.weights = replace(w, q_norm=w.q_norm.to(self.dtype), kv_norm=w.kv_norm.to(self.dtype))
        self.cos_sin = torch.cat((self.cos, self.sin), -1)
        self.positions: dict[tuple[int, int, int], Tensor] = {}

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.norm is None:
            return super().rms_norm(x, weight)
        rows = x.flatten(0, -2)
        out = torch.empty_like(rows, memory_format=torch.contiguous_format)
        self.norm(out, rows, weight, self.shape.rms_norm_eps)
        return out.view(x.shape)

    def rotate(self, q: Tensor, k: Tensor, past: int) -> tuple[Tensor, Tensor]:
        if self.turn is None:
            return super().rotate(q, k, past)
        return self._turned(q, k, past, pairs=True)

    def rotate_index(self, q: Tensor, k: Tensor, past: int) -> tuple[Tensor, Tensor]:
        if self.turn is None:
            return super().rotate_index(q, k, past)
        return self._turned(q, k.to(q.dtype), past, pairs=self.shape.indexer_rope_interleave)

    def _turned(self, q: Tensor, k: Tensor, past: int, pairs: bool) -> tuple[Tensor, Tensor]:
        """Both in place, by one launch."""
        place = (k.shape[0], past, k.shape[1])
        if place not in self.positions:  # made in a warm-up: a graph finds it made
            row = torch.arange(past, past + k.shape[1], device=self.device)
            self.positions = {place: row.repeat(k.shape[0], 1)}
        at = self.positions[place]
        assert self.turn is not None
        self.turn(at, q, k, q.shape[-1], self.cos_sin, not pairs, 0, False)
        return q, k


class HopperKernels(Reference):
    """The workload: the reference's weights and inputs, another core."""

    def __init__(
        self,
        kernels: Kernels,
        model: ModelShape,
        device: torch.device,
        seed: int,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(model, device, seed)
        self.kernels = kernels
        self.max_seq_len = int(options.get("max_seq_len") or 0)
        self.environment |= {**kernels.environment, "max_seq_len": str(self.max_seq_len or "case")}

    def make_layer(self, heads: int) -> Layer:
        kernels_core.padded_heads(heads)
        return KernelLayer(self.kernels, self.model, heads, self.dtype, self.device, self.seed)

    def make_core(self, case: Case) -> Core:
        return HopperCore(self.kernels, self.model, case, self.device, self.max_seq_len)


def ready(device: torch.device, options: Mapping[str, Any]) -> Kernels:
    """The kernels, loaded, or the error that says what this machine lacks."""
    kernels_source.check_machine(device)
    path = options.get("kernels_path") or os.environ.get(kernels_source.PATH)
    source = str(options.get("source") or "vllm")
    return kernels_source.load(kernels_source.find(str(path) if path else None, source))


def build(
    model: ModelShape, device: torch.device, seed: int, options: Mapping[str, Any]
) -> HopperKernels:
    """The worker's entry."""
    kernels_core.check_model(model)
    kernels = settled(ready(device, options), device)
    return HopperKernels(kernels, model, device, seed, options)
