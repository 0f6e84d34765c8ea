"""Options and fixtures of the whole suite."""

from __future__ import annotations

import os
import shutil

import pytest

# Tests run side by side and start children that use torch: their threads would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the long forms as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="long form; run with --slow"))
        if "nsys" in item.keywords and not _nsys():
            item.add_marker(pytest.mark.skip(reason="needs nsys on the PATH"))
        if "gpu" in item.keywords and not _cuda():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def _nsys() -> bool:
    """Whether to record for real; where it is required, its absence shall fail and not skip."""
    return shutil.which("nsys") is not None or os.environ.get("DSA_REQUIRE_NSYS") == "1"


def _cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())
