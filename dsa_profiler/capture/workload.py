"""Which workload `auto` means, and whether one can begin here at all.

A child is asked what it means, for this process loads neither torch nor CUDA.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from dsa_profiler.capture import probe
from dsa_profiler.errors import EnvironmentFault, UsageError

CHOOSER = "dsa_profiler.workloads.choose"
TIMEOUT_S = 300
REFERENCE = "pip install 'dsa-profiler[reference]', or use a container that brings it"
NEEDS = {
    "reference": ("torch", REFERENCE),
    "kernels": ("torch", REFERENCE),
    "trtllm": (
        "tensorrt_llm",
        "run in NVIDIA's TensorRT-LLM container (1.2.0rc5 or newer), or use --workload kernels "
        "or reference",
    ),
}
"""Workload -> (the module without which it cannot begin, the cure)."""


def choose(cuda: bool, options: Mapping[str, Any]) -> tuple[str, str]:
    """The workload and why it is this one. Without CUDA nobody needs to be asked; a chooser that
    dies leaves the reference, and says so.
    """
    if not cuda:
        return "reference", "no CUDA device"
    command = [sys.executable, "-m", CHOOSER, json.dumps(dict(options))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        answer = json.loads(done.stdout)
        return str(answer["workload"]), str(answer["why"])
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        return "reference", f"asking for a better one failed: {error}"


def require(workload: str) -> None:
    """Refuse a workload that is none, or that lacks its package here."""
    if workload not in NEEDS:
        raise UsageError(
            "workload-unknown", f"unknown workload {workload!r}", f"one of {', '.join(NEEDS)}"
        )
    module, cure = NEEDS[workload]
    if not probe.has_module(module):
        raise EnvironmentFault(
            f"{module}-missing",
            f"workload {workload} needs {module}, which is not installed here",
            cure,
        )
