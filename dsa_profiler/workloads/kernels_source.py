"""Where the Hopper kernels come from: parts of an installed package, found and loaded one by one.

The vllm wheel carries FlashMLA, top-k and cache ops as torch libraries and DeepGEMM as an extension
with headers; nothing of vllm's Python is imported. Every part is looked for, loaded and compared
with the calls made here, and what is missing or different is named before anything runs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dsa_profiler.errors import EnvironmentFault, UsageError
from dsa_profiler.workloads.kernels_contract import call_difference, contract, op_difference, ops

_RECORDED = contract()
WANTED = f"vllm=={_RECORDED['vllm']['version']} beside torch=={_RECORDED['torch']['version']}"
CURE = f"pip install {WANTED}, or give --kernels-path the folder of an unpacked wheel or bundle"

PATH = "DSA_KERNELS_PATH"
"""Set by `run --kernels-path`; a session's manifest holds no path."""

FOLDERS = (
    "", "vllm", "vllm_ops", "site/vllm_ops", "site/vllm", "sgl_kernel", "sgl_kernel/sm90", "sm90",
)  # fmt: skip
LIBRARIES = {
    "vllm": {"flashmla": "_flashmla_C*.so", "ops": "_C_stable_libtorch*.so"},
    "sglang": {"flashmla": "flashmla_ops*.so", "ops": "common_ops*.so"},
}
PACKAGES = {"vllm": ("vllm",), "sglang": ("sgl_kernel", "vllm")}
"""Source -> packages that its parts may lie in. sglang's has no DeepGEMM: that is vllm's again."""
GEMM_FOLDERS = (
    "deep_gemm", "third_party/deep_gemm", "vllm/third_party/deep_gemm", "site/deep_gemm",
    "site/vllm/third_party/deep_gemm",
)  # fmt: skip
REQUIRED = {
    "sparse_prefill": "_flashmla_C.sparse_prefill_fwd",
    "sparse_decode": "_flashmla_C.sparse_decode_fwd",
    "topk_prefill": "_C.top_k_per_row_prefill",
    "topk_decode": "_C.top_k_per_row_decode",
}
OPTIONAL = {
    "rms_norm": "_C.rms_norm",
    "rotate": "_C.rotary_embedding",
    "quantise_and_cache": "_C_cache_ops.indexer_k_quant_and_cache",
    "gather_keys": "_C_cache_ops.cp_gather_indexer_k_quant_cache",
    "cache_rows": "_C_cache_ops.concat_and_cache_mla",
    "group_quant": "_C.per_token_group_fp8_quant",
}
"""Ops that have a plain PyTorch stand-in here: used where they are and agree with it."""

SGLANG = {
    "sparse_prefill": "sgl_kernel.sparse_prefill_fwd",
    "sparse_decode": "sgl_kernel.sparse_decode_fwd",
    "fast_topk": "sgl_kernel.fast_topk",
}
"""The second source: the same attention, another top-k."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The files of one source. `version` is vllm's, where a wheel's metadata says it."""

    flashmla: Path
    ops: Path
    deep_gemm: Path
    version: str = "unknown"
    source: str = "vllm"


@dataclass(frozen=True, slots=True)
class Kernels:
    """The loaded calls, with the packages' own arguments. An op that is None has a stand-in."""

    sparse_prefill: Callable[..., Any]
    sparse_decode: Callable[..., Any]
    topk_prefill: Callable[..., Any]
    topk_decode: Callable[..., Any]
    mqa_logits: Callable[..., Any]
    paged_mqa_logits: Callable[..., Any]
    paged_metadata: Callable[..., Any]
    num_sms: Callable[[], int]
    rms_norm: Callable[..., Any] | None = None
    rotate: Callable[..., Any] | None = None
    quantise_and_cache: Callable[..., Any] | None = None
    gather_keys: Callable[..., Any] | None = None
    cache_rows: Callable[..., Any] | None = None
    group_quant: Callable[..., Any] | None = None
    environment: dict[str, str] = field(default_factory=dict)


def find(path: str | None = None, source: str = "vllm") -> Parts:
    """The parts under `path`, or of the installed packages; all three or a named error."""
    if source not in LIBRARIES:
        raise UsageError(
            "source-unknown", f"unknown source {source!r}", f"one of {', '.join(LIBRARIES)}"
        )
    roots = [Path(path)] if path else [root for p in PACKAGES[source] for root in _installed(p)]
    if not roots:
        raise EnvironmentFault(
            "kernels-missing", f"the package {PACKAGES[source][0]} is not installed", CURE
        )
    patterns = LIBRARIES[source]
    found = {
        name: next((f for root in roots for f in _files(root, pattern)), None)
        for name, pattern in patterns.items()
    }
    places = (root / folder for root in roots for folder in GEMM_FOLDERS)
    found["deep_gemm"] = next((p for p in places if (p / "__init__.py").is_file()), None)
    missing = [name for name, part in found.items() if part is None]
    if missing:
        names = {**patterns, "deep_gemm": "deep_gemm/"}
        raise EnvironmentFault(
            "kernels-missing",
            f"{' and '.join(map(str, roots))} hold no {', '.join(names[n] for n in missing)}",
            CURE,
        )
    return Parts(**found, version=_version(roots[-1]), source=source)  # type: ignore[arg-type]


def _installed(package: str) -> Iterator[Path]:
    """The folder of an installed package, without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return
    if spec is not None and spec.submodule_search_locations:
        yield Path(next(iter(spec.submodule_search_locations)))


def _files(root: Path, pattern: str) -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((root / folder).glob(pattern))


def _version(root: Path) -> str:
    for folder in (root, root.parent, root / "site"):
        for info in sorted(folder.glob("vllm-*.dist-info")):
            return info.name.removeprefix("vllm-").removesuffix(".dist-info")
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return "unknown"


def load(parts: Parts) -> Kernels:
    """Load every part and compare its calls with the ones made here. Needs no GPU."""
    for library in (parts.flashmla, parts.ops):
        _load_library(library)
    schemas = ops()
    if parts.source == "sglang":
        calls = adapted({name: _op(op, schemas[op]) for name, op in SGLANG.items()})
        wanted: dict[str, str] = {}
    else:
        calls = {name: _op(op, schemas[op]) for name, op in REQUIRED.items()}
        wanted = OPTIONAL
    extra, changed = _optional({name: (op, schemas[op]) for name, op in wanted.items()})
    gemm = _deep_gemm(parts.deep_gemm)
    for name, signature in _RECORDED["deep_gemm"]["calls"].items():
        call = getattr(gemm, name, None)
        told = "is missing" if call is None else call_difference(call, signature)
        if told:
            raise EnvironmentFault("kernels-changed", f"deep_gemm.{name} {told}", f"use {WANTED}")
    about = {
        "kernels_source": parts.source,
        "kernels_version": parts.version,
        "deep_gemm": str(getattr(gemm, "__version__", "unknown")),
        **({"kernels_changed": "; ".join(changed)} if changed else {}),
    }
    return Kernels(
        **calls,
        mqa_logits=gemm.fp8_mqa_logits,
        paged_mqa_logits=gemm.fp8_paged_mqa_logits,
        paged_metadata=gemm.get_paged_mqa_logits_metadata,
        num_sms=gemm.get_num_sms,
        **extra,
        environment=about,
    )


def adapted(ops: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Sglang's ops behind the calls of vllm's: no output argument, and one top-k for both phases,
    which takes lengths instead of ends.
    """
    prefill, decode, fast_topk = (ops[name] for name in SGLANG)

    def topk_prefill(
        logits: Any, starts: Any, ends: Any, indices: Any, rows: int, stride0: int, stride1: int,
        k: int,
    ) -> None:  # fmt: skip
        fast_topk(logits, indices, ends - starts, starts)

    def topk_decode(
        logits: Any, next_n: int, lengths: Any, indices: Any, rows: int, stride0: int,
        stride1: int, k: int,
    ) -> None:  # fmt: skip
        fast_topk(logits, indices, lengths, None)

    return {
        "sparse_prefill": lambda *a: prefill(*a[:-1]),
        "sparse_decode": lambda *a: decode(*a[:-1]),
        "topk_prefill": topk_prefill,
        "topk_decode": topk_decode,
    }


def _load_library(library: Path) -> None:
    ops: Any = torch.ops  # without annotations
    try:
        ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        raise _load_fault(library.name, error) from None


def _load_fault(name: str, error: BaseException) -> EnvironmentFault:
    text = _whole_text(error)
    if "undefined symbol" in text:
        return EnvironmentFault(
            "kernels-other-torch",
            f"{name} was built for another torch than {torch.__version__}",
            f"use {WANTED}",
        )
    library = re.search(r"(lib\S+?\.so[.\d]*): cannot open shared object", text)
    if library:
        return EnvironmentFault(
            "kernels-library",
            f"{name} needs {library[1]}, which is not on this machine",
            "run on a machine with an NVIDIA driver and a CUDA 13 build of torch",
        )
    line = text.strip().partition("\n")[0][:200]
    return EnvironmentFault("kernels-broken", f"{name} does not load: {line}", f"use {WANTED}")


def _whole_text(error: BaseException) -> str:
    """Torch wraps the loader's error in one that says nothing: the cause comes first."""
    cause = error.__cause__ or error.__context__
    return f"{_whole_text(cause)}\n{error}" if cause is not None else str(error)


def _op(name: str, schema: str) -> Callable[..., Any]:
    """The op, if its schema is the recorded one."""
    namespace, _, call = name.partition(".")
    try:
        op = getattr(getattr(torch.ops, namespace), call).default
    except (AttributeError, RuntimeError):
        raise EnvironmentFault("kernels-changed", f"no op {name}", f"use {WANTED}") from None
    told = op_difference(op._schema, schema)
    if told:
        raise EnvironmentFault("kernels-changed", f"{name} {told}", f"use {WANTED}")
    return op  # type: ignore[no-any-return]


def _optional(
    wanted: Mapping[str, tuple[str, str]],
) -> tuple[dict[str, Any], list[str]]:
    """The ops that are as recorded, None for the others, and what is wrong with those."""
    found: dict[str, Any] = {}
    changed = []
    for name, (op, schema) in wanted.items():
        try:
            found[name] = _op(op, schema)
        except EnvironmentFault as fault:
            found[name] = None
            changed.append(fault.what)
    return found, changed


def _deep_gemm(folder: Path) -> Any:
    """DeepGEMM from its folder, which stays off sys.path: vllm keeps other packages beside it."""
    if (loaded := sys.modules.get("deep_gemm")) is not None:
        return loaded
    _set_cuda_home()
    spec = importlib.util.spec_from_file_location(
        "deep_gemm", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise EnvironmentFault("kernels-broken", f"{folder} is no Python package", CURE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["deep_gemm"] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules["deep_gemm"]
        raise _load_fault("deep_gemm", error) from None
    return module


def _set_cuda_home() -> None:
    """DeepGEMM looks for its compiler under CUDA_HOME, at import."""
    if "CUDA_HOME" not in os.environ:
        nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
        os.environ["CUDA_HOME"] = str(Path(nvcc).parent.parent)


def check_machine(device: torch.device) -> None:
    """A Hopper GPU and a compiler for DeepGEMM's kernels."""
    if device.type != "cuda":
        raise EnvironmentFault(
            "cuda-missing",
            "the workload kernels needs a CUDA GPU, and torch sees none",
            "run on a Hopper GPU, or use --workload reference",
        )
    sm = torch.cuda.get_device_capability()
    if sm != (9, 0):
        raise EnvironmentFault(
            "sm-unsupported",
            f"these kernels are built for SM 90, this GPU is SM {sm[0]}{sm[1]}",
            "run on an H100, H200 or H20, or use --workload reference",
        )
    _set_cuda_home()
    nvcc = Path(os.environ.get("DG_JIT_NVCC_COMPILER") or f"{os.environ['CUDA_HOME']}/bin/nvcc")
    if not nvcc.exists():
        raise EnvironmentFault(
            "nvcc-missing",
            f"no nvcc at {nvcc}: DeepGEMM compiles its kernels at first use",
            "set CUDA_HOME to a CUDA toolkit of 12.8 or later; its NVRTC does not do instead",
        )


def main() -> int:
    """A package's kernels, or what they lack here, as a line of JSON, for `doctor`. Needs no GPU.

    python -m dsa_profiler.workloads.kernels_source
    """
    try:
        print(json.dumps(load(find(os.environ.get(PATH))).environment))
    except EnvironmentFault as fault:
        print(json.dumps({"what": fault.what, "cure": fault.cure}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
