"""Where the published traces lie that are not part of this repository.

DSA_PUBLIC_TRACES names the folder; else the nearest `shared/traces` beside or above the repository.
Without one, tests on them are skipped, unless DSA_REQUIRE_PUBLIC_TRACES=1 makes that a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MFU_BEFORE = "mfu_2gpu_before.sqlite"
MFU_AFTER = "mfu_2gpu_after.sqlite"
GRAPH_MODE = "nsight-2025.5.2.sqlite"
CLOVERLEAF = "perlmutter-cloverleaf-cuda.sqlite"
NVTX_2022 = "real_nsys2022.4_nvtxonly_d5.sqlite"
NVTX_2023 = "real_nsys2023.4_nvtxonly_d1.sqlite"
DELAYED = "real_nsys2023.4_nvtxonly_dd.sqlite"
ALL = (MFU_BEFORE, MFU_AFTER, GRAPH_MODE, CLOVERLEAF, NVTX_2022, NVTX_2023, DELAYED)


def folder() -> Path | None:
    """The folder of the published traces, None where there is none."""
    named = os.environ.get("DSA_PUBLIC_TRACES")
    root = Path(__file__).resolve().parents[1]
    candidates = (
        [Path(named)] if named else [p / "shared" / "traces" for p in (root, *root.parents)]
    )
    return next((c for c in candidates if c.is_dir()), None)


def trace(name: str) -> Path:
    """The path of one published trace; skips the test, or fails it where it is required."""
    found = folder()
    if found is not None and (found / name).is_file():
        return found / name
    reason = f"the published trace {name} is not here (set DSA_PUBLIC_TRACES)"
    if os.environ.get("DSA_REQUIRE_PUBLIC_TRACES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
