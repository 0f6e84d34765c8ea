"""Which workload `auto` is on this machine: `python -m dsa_profiler.workloads.choose [OPTIONS]`.

The official layer where its package is there and known, else the kernels, else the reference. A
process of its own asks, because asking loads torch and whole inference packages. OPTIONS is the
workload's options as one JSON object; the answer is one line of JSON on stdout:

    {"workload": "reference", "why": "kernels: ...; trtllm: ..."}
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from dsa_profiler.errors import DsaError


def _trtllm(options: Mapping[str, Any]) -> None:
    import_module("dsa_profiler.workloads.trtllm_probe").probe()


def _kernels(options: Mapping[str, Any]) -> None:
    measure = import_module("dsa_profiler.workloads.measure")
    import_module("dsa_profiler.workloads.kernels").ready(measure.device_of("auto"), options)


ASKED: dict[str, Callable[[Mapping[str, Any]], None]] = {"trtllm": _trtllm, "kernels": _kernels}
"""Best first; the reference needs no asking."""


def choose(options: Mapping[str, Any]) -> tuple[str, str]:
    """The workload and, for each better one, why not it."""
    refused = []
    for name, ask in ASKED.items():
        try:
            ask(options)
        except DsaError as error:
            refused.append(f"{name}: {error.what}")
        except Exception as error:  # a package that breaks while it loads must not break the sweep
            line = str(error).partition("\n")[0]
            refused.append(f"{name}: {type(error).__name__}: {line}"[:200])
        else:
            return name, "; ".join([*refused, f"{name}: its probe passed"])
    return "reference", "; ".join(refused)


def main(argv: Sequence[str]) -> int:
    options = json.loads(argv[0]) if argv else {}
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # packages greet on stdout when they load
    name, why = choose(options)
    print(json.dumps({"workload": name, "why": why}), file=answer, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
