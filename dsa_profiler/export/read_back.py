"""Read a root back through aiconfigurator itself: every row, and the estimate that it changes.

The judge is the engine, not our own reading of the format: what it does not answer with the number
that was written is a failure, whatever the file looks like.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from dsa_profiler.errors import EnvironmentFault, InputError
from dsa_profiler.export import module_tables
from dsa_profiler.export.aic_package import Package
from dsa_profiler.export.aic_root import MARKER

TOLERANCE = 1e-6
MODEL = "deepseek-ai/DeepSeek-V3.2"
QUERY = (
    "architecture", "mla_dtype", "kv_cache_dtype", "gemm_type", "num_heads", "step", "isl",
    "batch_size",
)  # fmt: skip
TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Entry:
    """One system, backend and version that a root holds, from its marker file."""

    system: str
    backend: str
    version: str
    way: str
    files: Mapping[str, Path]
    merged: bool = False


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A row that the engine answers differently; `answer` is None where it refuses."""

    phase: str
    key: str
    written: float
    answer: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A static estimate. ttft and tpot in ms; `share` is DSA attention's part of each."""

    ttft: float
    tpot: float
    context_share: float
    generation_share: float

    @classmethod
    def of(cls, run: Mapping[str, Any], osl: int) -> Estimate:
        context, generation = run["context"], run["generation"]
        ttft, decode = sum(context.values()), sum(generation.values())
        return cls(
            ttft,
            decode / (osl - 1),
            context.get("context_attention", 0.0) / ttft,
            generation.get("generation_attention", 0.0) / decode,
        )


@dataclass(frozen=True, slots=True)
class Setup:
    """What the estimate serves: tensor parallelism (MoE expert-parallel over it), sizes, types."""

    model: str = MODEL
    tp: int = 8
    batch: int = 1
    isl: int = 4096
    osl: int = 64
    kv: str = "bfloat16"
    gemm: str = "fp8_block"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the engine made of one entry. `before` is the package's own estimate, where it has one;
    an estimate that was refused leaves its reason in `refused`.
    """

    entry: Entry
    rows: int
    mismatches: tuple[Mismatch, ...]
    error: str
    before: Estimate | None
    after: Estimate | None
    refused: Mapping[str, str]


def entries(root: Path) -> list[Entry]:
    """What the marker says is in `root`; the tables are looked up, not trusted."""
    try:
        marker = json.loads((root / MARKER).read_text("utf-8"))
        listed = sorted(marker["entries"].items())
    except FileNotFoundError:
        raise InputError(
            "root-foreign",
            f"{root} is no root of tables: no {MARKER}",
            "give the --root of `export --to aiconfigurator`",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "root-broken", f"cannot read {root / MARKER}: {error}", "export the session again"
        ) from None
    found = []
    for name, facts in listed:
        system, backend, version, way = _named(root, name, facts)
        merged = facts.get("merged") is True
        files = {
            phase: path
            for phase in ("context", "generation")
            for path in sorted((root / "data").rglob(f"{version}/dsa_{phase}_module_perf.*"))
            if backend in path.parts and system in path.parts
        }
        if not files:
            raise InputError(
                "root-broken", f"{root} lost its tables of {name}", "export the session again"
            )
        found.append(Entry(system, backend, version, way, files, merged))
    return found


def _named(root: Path, name: str, facts: Any) -> tuple[str, str, str, str]:
    parts = name.split("/")
    if len(parts) != 3 or not all(parts) or not isinstance(facts, dict) or "way" not in facts:
        raise InputError(
            "root-broken", f"cannot read {root / MARKER}: {name!r}", "export the session again"
        )
    return parts[0], parts[1], parts[2], str(facts["way"])


def verify(
    root: Path, entry: Entry, package: Package, setup: Setup | None, before: str | None = None
) -> Verdict:
    """Every row of an entry asked of the engine, and the estimate at `setup` before and after.

    setup   None asks for the rows alone.
    before  the shipped version that the first estimate uses; None where the package ships no DSA.
    """
    if entry.way != package.layout.way:
        raise InputError(
            "root-other-layout",
            f"{root} is laid out for the {entry.way!r} way; aiconfigurator {package.version} "
            f"reads {package.layout.way!r}",
            "export again with this --package, or verify with the other one",
        )
    frames = {phase: module_tables.read(path).frame for phase, path in entry.files.items()}
    queries = [[phase, *row] for phase, frame in frames.items() for row in keys(frame)]
    runs = [] if setup is None else [_run(setup, root.resolve(), entry.version)]
    if setup is not None and before is not None:
        runs.append(_run(setup, None, before))
    reply = ask(package, entry, root, queries, runs)
    written = [ms for frame in frames.values() for ms in frame["latency"].tolist()]
    wrong = tuple(
        Mismatch(query[0], _key(query), ms, answer)
        for query, ms, answer in zip(queries, written, reply["answers"], strict=True)
        if answer is None or abs(answer - ms) > TOLERANCE * max(ms, 1.0)
    )
    estimates, refused = {}, {}
    for name, run in zip(("after", "before"), reply["runs"], strict=False):
        if "error" in run:
            refused[name] = str(run["error"])
        elif setup is not None:
            estimates[name] = Estimate.of(run, setup.osl)
    return Verdict(
        entry,
        len(queries),
        wrong,
        reply["error"],
        estimates.get("before"),
        estimates.get("after"),
        refused,
    )


def _run(setup: Setup, root: Path | None, version: str) -> dict[str, Any]:
    where = {"root": None if root is None else str(root), "version": version}
    return {**asdict(setup), **where}


def ask(
    package: Package,
    entry: Entry,
    root: Path,
    queries: Sequence[Sequence[Any]],
    runs: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Put queries to the engine in its own interpreter. Raises `EnvironmentFault` if it breaks."""
    script = resources.files("dsa_profiler.export").joinpath("engine.py").read_text("utf-8")
    request = {
        "way": package.layout.way,
        "root": str(root.resolve()),
        "system": entry.system,
        "backend": entry.backend,
        "version": entry.version,
        "queries": queries,
        "runs": list(runs),
    }
    try:
        done = subprocess.run(
            [str(package.python), "-c", script],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": str(package.home.parent)},
        )
        if done.returncode == 0:
            reply: dict[str, Any] = json.loads(done.stdout)
            return reply
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        said = str(error)
    raise EnvironmentFault(
        "aiconfigurator-broken",
        f"aiconfigurator {package.version} did not answer: {said[:300]}",
        f"try `{package.python} -c 'import {package.home.name}'`; reinstall it if that fails",
    )


def keys(frame: pd.DataFrame) -> list[list[Any]]:
    """The query keys of a table's rows, as plain JSON values."""
    columns = [frame[c].tolist() for c in QUERY]
    return [list(row) for row in zip(*columns, strict=True)]


def _key(query: Sequence[Any]) -> str:
    return " ".join(f"{n}={v}" for n, v in zip(QUERY, query[1:], strict=True))
