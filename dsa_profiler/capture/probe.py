"""The machine a session is recorded on, without loading torch or CUDA into this process.

No user name, no host name, no path: a manifest is made to be shared.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata, util
from typing import Any

from dsa_profiler import __version__

PACKAGES = ("torch", "nvtx", "triton", "tensorrt_llm", "vllm", "sglang", "numpy")
_FIELDS = ("name", "compute_cap", "driver_version", "memory.total")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as the driver names it. `sm` is the compute capability times ten."""

    name: str
    sm: int
    driver: str
    memory_mib: int


def gpus() -> tuple[Gpu, ...]:
    """The GPUs a worker would see, in the driver's order; none when they are hidden or absent."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not shutil.which("nvidia-smi"):
        return ()
    query = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if done.returncode:
        return ()
    return tuple(gpu for line in done.stdout.splitlines() if (gpu := _gpu(line)) is not None)


def has_module(name: str) -> bool:
    """Whether `import name` would find something, without importing it."""
    try:
        return util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def environment(found: tuple[Gpu, ...], nsys_version: str | None) -> dict[str, Any]:
    """What a reader of the results must know of the machine."""
    return {
        "dsa_profiler": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "gpus": [asdict(gpu) for gpu in found],
        "nsys": nsys_version,
        "packages": {name: v for name in PACKAGES if (v := version(name)) is not None},
    }


def _gpu(line: str) -> Gpu | None:
    fields = [field.strip() for field in line.split(",")]
    try:
        name, capability, driver, memory = fields
        return Gpu(name, round(float(capability) * 10), driver, int(float(memory)))
    except ValueError:
        return None


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
