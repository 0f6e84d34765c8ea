"""Which workload `auto` means: a child is asked, for this process loads neither torch nor CUDA."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

CHOOSER = "dsa_profiler.workloads.choose"
TIMEOUT_S = 300


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
