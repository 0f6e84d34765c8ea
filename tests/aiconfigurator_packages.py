"""The real aiconfigurator releases that tests run against, each in its own environment."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from dsa_profiler.export import aic_package, module_tables
from dsa_profiler.export.aic_package import Package

ROOT = Path(__file__).parents[1]
SYSTEM, BACKEND = "h200_sxm", "trtllm"


def environments() -> Path:
    return Path(os.environ.get("DSA_AIC_VENVS") or ROOT / ".venv-aic")


@cache
def package(minor: int) -> Package:
    """Release 0.`minor`.0. Where it is required its absence fails; else the test is skipped."""
    home = environments() / f"v{minor}"
    if not (home / ".ready").is_file():
        how = f"no aiconfigurator 0.{minor}.0 in {home}: run .ci/aiconfigurator_venvs.sh"
        if os.environ.get("DSA_REQUIRE_AIC") == "1":
            pytest.fail(how)
        pytest.skip(how)
    return aic_package.locate(home)


def place(minor: int) -> str:
    """What `--package` takes for release 0.`minor`.0; skips or fails as `package` does."""
    package(minor)
    return str(environments() / f"v{minor}")


def copied(minor: int, folder: Path) -> Package:
    """A copy of a release's code to patch at will; its data are links to the original's."""
    source = package(minor)
    home = folder / source.home.name
    home.mkdir(parents=True)
    for entry in source.home.iterdir():
        if entry.name in ("systems", "webapp", "model_configs"):
            (home / entry.name).symlink_to(entry)
        elif entry.is_dir():
            _copy_code(entry, home / entry.name)
        else:
            (home / entry.name).write_bytes(entry.read_bytes())
    return replace(source, home=home)


def _copy_code(source: Path, target: Path) -> None:
    import shutil

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


@cache
def shipped(system: str, version: str, phase: str) -> pd.DataFrame:
    """DeepSeek-V3.2's rows that 0.12.0 ships."""
    frame = module_tables.read(shipped_path(system, version, phase)).frame
    return frame[frame["architecture"] == "DeepseekV32ForCausalLM"].reset_index(drop=True)


def shipped_path(system: str, version: str, phase: str) -> Path:
    data = package(12).data(system) / "sparse_attention" / BACKEND / version
    return data / f"dsa_{phase}_module_perf.parquet"


def shipped_tables(version: str = "1.3.0rc20", times: float = 1.0) -> dict[str, pd.DataFrame]:
    """Both phases of H200, all latencies times a factor."""
    tables = {phase: shipped(SYSTEM, version, phase) for phase in ("context", "generation")}
    return {phase: f.assign(latency=f["latency"] * times) for phase, f in tables.items()}


def model_folder(folder: Path) -> Path:
    """DeepSeek-V3.2's config.json as 0.12.0 packages it, for releases that do not."""
    config = package(12).home / "model_configs" / "deepseek-ai--DeepSeek-V3.2_config.json"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(config.read_bytes())
    return folder
