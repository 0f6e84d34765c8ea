"""The official layer: TensorRT-LLM's DeepseekV32Attention with its cache manager and metadata.

Options: `gemm_type` (bfloat16, fp8_block), `weight_init` (normal, dummy), `max_seq_len` of the
cache (the case's own by default; give the server's to get its top-k variant), `cuda_graph` (the
worker's).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from dsa_profiler.model import Case, ModelShape
from dsa_profiler.workloads import trtllm_cache, trtllm_layer, trtllm_marks
from dsa_profiler.workloads.instrument import StageMark, patched, unmarked
from dsa_profiler.workloads.reference import case_seed
from dsa_profiler.workloads.seam import Output, Step
from dsa_profiler.workloads.trtllm_faults import explained
from dsa_profiler.workloads.trtllm_probe import Capabilities, probe


class TensorRT:
    """The workload: one layer a head count and cache type, one cache a case."""

    def __init__(
        self,
        found: Capabilities,
        model: ModelShape,
        device: torch.device,
        seed: int,
        options: Mapping[str, Any],
    ) -> None:
        self.found, self.model, self.device, self.seed = found, model, device, seed
        self.gemm = str(options.get("gemm_type", "bfloat16"))
        self.init = str(options.get("weight_init", "normal"))
        self.max_seq_len = int(options.get("max_seq_len", 0))
        self.sm = int(found.get("get_sm_version")())
        self.built: tuple[tuple[int, str], Any, Any] | None = None
        self.unmarked: tuple[str, ...] = ()

    @property
    def environment(self) -> Mapping[str, Any]:
        return {
            "framework": "TRTLLM",
            "framework_version": self.found.version,
            "sm": self.sm,
            "gemm_type": self.gemm,
            "compute_dtype": "bfloat16",
            "weight_init": f"normal(0, {trtllm_layer.WEIGHT_STD})"
            if self.init == "normal"
            else "dummy",
            "max_seq_len": self.max_seq_len or "case",
            "hadamard": trtllm_layer.hadamard(self.found),
            "tokens_per_block": trtllm_cache.tokens_per_block(self.sm),
            **({"unmarked_stages": list(self.unmarked)} if self.unmarked else {}),
        }

    def prepare(self, case: Case) -> Step:
        max_seq_len = self.max_seq_len or case.kv_len
        trtllm_cache.check(case, self.sm, max_seq_len)
        with explained():
            config, layer = self.layer_of(case)
            cache = trtllm_cache.manager(self.found, config, case, self.sm, max_seq_len)
            metadata = trtllm_cache.metadata(self.found, config, layer, cache, case, self.device)
            return Forward(self, case, config, layer, cache, metadata)

    def layer_of(self, case: Case) -> tuple[Any, Any]:
        """The layer with that many heads and that cache; only the latest is kept."""
        key = (case.num_heads, case.dtype)
        if self.built is None or self.built[0] != key:
            self.built = None
            tokens = max(case.tokens, 8192)
            config = trtllm_layer.model_config(self.found, self.model, case, self.gemm, tokens)
            layer = trtllm_layer.attention(self.found, config, self.device, self.seed, self.init)
            self.built = key, config, layer
            self.unmarked = trtllm_marks.unhooked(trtllm_marks.root(self.found, layer))
        return self.built[1], self.built[2]

    def inputs(self, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions [tokens], contiguous, and hidden states [tokens, hidden]."""
        new = case.tokens // case.batch_size
        past = case.kv_len - new
        positions = torch.arange(past, past + new, device=self.device).repeat(case.batch_size)
        generator = torch.Generator(self.device).manual_seed(case_seed(case, self.seed))
        size = (case.tokens, self.model.hidden_size)
        hidden = torch.empty(size, dtype=torch.bfloat16, device=self.device)
        return positions, hidden.normal_(generator=generator)


class Forward:
    """One iteration. The cache manager is shut down when the step is dropped."""

    def __init__(
        self, workload: TensorRT, case: Case, config: Any, layer: Any, cache: Any, metadata: Any
    ) -> None:
        self.found, self.config, self.layer, self.metadata = (
            workload.found, config, layer, metadata,
        )  # fmt: skip
        self.positions, self.hidden = workload.inputs(case)
        self.start = trtllm_marks.root(workload.found, layer)
        self.table = trtllm_marks.table(self.start)
        weakref.finalize(self, cache.shutdown)

    def __call__(self, mark: StageMark) -> Output:
        table = {} if mark is unmarked else self.table
        with explained(), patched(self.start, table, mark), self._server_context():
            output = self.layer.forward(self.positions, self.hidden, self.metadata)
        if output.shape != self.hidden.shape:
            raise ValueError(
                f"the layer returned {list(output.shape)}, expected {list(self.hidden.shape)}"
            )
        return output  # type: ignore[no-any-return]

    @contextmanager
    def _server_context(self) -> Iterator[None]:
        """What the model engine sets around a forward: the metadata for ops that look it up, and
        several streams while a graph is captured, as the server captures its decode graphs.
        """
        with self.found.get("model_extra_attrs")(self.config.extra_attrs):
            attributes = self.found.get("get_model_extra_attrs")()
            attributes["attention_metadata"] = weakref.ref(self.metadata)
            if "with_multi_stream" in self.found.where and _capturing():
                with self.found.get("with_multi_stream")(True):
                    yield
            else:
                yield


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def build(
    model: ModelShape, device: torch.device, seed: int, options: Mapping[str, Any]
) -> TensorRT:
    """The worker's entry. An absent or unknown package is a named error, before any case."""
    return TensorRT(probe(), model, device, seed, options)
