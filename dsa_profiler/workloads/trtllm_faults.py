"""What TensorRT-LLM says when a case fails, told with its cause and its cure.

Its messages are assertions of kernels and Python's own complaints, matched here by a few words.
What is not known passes as it is; out of memory is left to the worker, which knows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from dsa_profiler.errors import DsaError, EnvironmentFault
from dsa_profiler.workloads.measure import is_out_of_memory

REPORT = "report it with the output of `dsa-profiler doctor --contract`"

FAULTS: tuple[tuple[str, EnvironmentFault], ...] = (
    (
        r"No module named '(deep_gemm|fast_hadamard_transform|flash_mla)",
        EnvironmentFault(
            "trtllm-dependency",
            "a package that the layer calls is not installed",
            "run in NVIDIA's TensorRT-LLM container, unchanged: DeepGEMM and FlashMLA come with it",
        ),
    ),
    (
        r"nvcc|nvrtc|CUDA_HOME|(?i:deep_?gemm).*(?i:compil|jit)",
        EnvironmentFault(
            "trtllm-jit",
            "DeepGEMM could not compile its kernels, which it does at first use",
            "set CUDA_HOME to a CUDA toolkit (the container has one), or DG_JIT_USE_NVRTC=1",
        ),
    ),
    (
        r"no kernel image is available|(?i:unsupported (architecture|SM))",
        EnvironmentFault(
            "trtllm-architecture",
            "this build of TensorRT-LLM has no kernel for this GPU",
            "use the container's own build, on a Hopper or Blackwell GPU",
        ),
    ),
    (
        r"(?i:heads?\b.*multiple of)|h_q\b",
        EnvironmentFault(
            "trtllm-heads",
            "FlashMLA's kernel takes 64 or 128 heads, and this release does not pad them",
            "give --num-heads 64,128, or use a release that pads (1.2.0rc5 and newer)",
        ),
    ),
    (
        r"kBFloat16|(?i:kv\b.*\b(bf16|bfloat16))",
        EnvironmentFault(
            "trtllm-kv-dtype",
            "the sparse attention kernel of this GPU takes a BF16 KV cache only",
            "leave --dtypes at bfloat16; FP8 KV needs Blackwell, or --workload kernels",
        ),
    ),
    (
        r"pos(ition)?_ids.*contiguous",
        EnvironmentFault(
            "trtllm-positions",
            "the layer wants position ids in one contiguous piece and did not get them",
            f"the adapter makes them so, this release wants another form: {REPORT}",
        ),
    ),
    (
        r"max_input_uncached_seq_len|num_cached_tokens",
        EnvironmentFault(
            "trtllm-metadata",
            "the attention metadata does not fit the batch: one new token a generation request, "
            "and its cached tokens before it",
            f"this release counts otherwise than the adapter: {REPORT}",
        ),
    ),
    (
        r"(?i:no free blocks|allocate new blocks)",
        EnvironmentFault(
            "trtllm-blocks",
            "the KV cache has no block left for the case",
            "give smaller --batch-sizes or --seq-lens, or free the GPU's memory",
        ),
    ),
    (
        r"post_load_weights",
        EnvironmentFault(
            "trtllm-weights",
            "the layer misses a weight that is prepared after loading",
            f"this release prepares weights otherwise than the adapter: {REPORT}",
        ),
    ),
    (
        r"unexpected keyword argument|missing \d+ required|has no attribute",
        EnvironmentFault(
            "trtllm-layout",
            "a part of the package takes or holds something else than in the releases known",
            f"{REPORT}, or use a version between 1.2.0rc5 and 1.3.0rc2x",
        ),
    ),
)
"""Words of a message -> what they mean; the first that matches counts."""


@contextmanager
def explained() -> Iterator[None]:
    """Raise what the package raises as a named error with a cure, where it is known."""
    try:
        yield
    except DsaError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        for words, known in FAULTS:
            if re.search(words, text):
                said = f"{known.what} ({type(error).__name__}: {text[:160]})"
                raise EnvironmentFault(known.slug, said, known.cure) from error
        raise
