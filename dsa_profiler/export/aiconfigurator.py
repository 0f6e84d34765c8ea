"""A root of tables that an installed aiconfigurator answers from, without touching the package.

The first root that knows a system and version wins whole, so ours shows every table of the package
(by links) and adds a version folder of its own with the measured DSA tables.

The engine of 0.11 and later fills a version from older ones row by row, not table by table: beside
shipped DSA rows, a query between two of ours may be answered from a shipped neighbour, and nothing
says so. Hence a root shows no shipped DSA rows unless `merge` asks for just that; a query that ours
cannot answer then fails or is extrapolated from ours.

No `query_versions.yaml` and no reuse manifest are carried over: the first would refuse our version,
the second would answer from another backend's rows where ours has a hole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dsa_profiler import __version__
from dsa_profiler.columns import MODULE_KEY
from dsa_profiler.errors import InputError
from dsa_profiler.export import module_rows, module_tables
from dsa_profiler.export.aic_package import Package, Target, version_key
from dsa_profiler.export.aic_root import MARKER, link_package, replacing_folder, write_meta
from dsa_profiler.results import Results
from dsa_profiler.session import Session

SCHEMA = 1
GENERATION = "dsa_generation_module_perf"
_VERSION = re.compile(r"\d+(\.\d+)+([a-z]+\d+)?(\.post\d+)?(\+[a-z0-9.]+)?")


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """What a root now holds for one target. `tables` are the rows by phase."""

    root: Path
    target: Target
    tables: Mapping[str, pd.DataFrame]
    files: tuple[Path, ...]

    @property
    def way(self) -> str:
        return self.target.package.layout.way


def write(
    results: Results,
    session: Session,
    root: Path,
    *,
    package: Package,
    system: str,
    backend: str = "trtllm",
    version: str | None = None,
    merge: bool = False,
    gemm_type: str | None = None,
    heads: Sequence[int] = (),
) -> Written:
    """Write the session's module tables into `root`, in the layout that `package` reads.

    heads    local head counts that must be there; a missing one is refused.
    Raises `InputError` for what cannot be fed, `UsageError` for an unwritable root; the root is
    replaced whole or left as it was.
    """
    tables = module_rows.module_rows(results, session, gemm_type)
    module_rows.require_heads(tables, heads)
    known = module_rows.origin(session, gemm_type)
    wanted = version or default_version(package, system, backend, known.version)
    target = Target(package, system, backend, wanted, merge)
    kernels = module_rows.kernel_rows(results, session, gemm_type)
    return write_tables(tables, root, target, runtime=known.version, kernels=kernels)


def write_tables(
    tables: Mapping[str, pd.DataFrame],
    root: Path,
    target: Target,
    *,
    runtime: str,
    kernels: pd.DataFrame | None = None,
) -> Written:
    """Write rows that are in `columns.MODULE_HEADER` already; `runtime`: framework's version."""
    _check(target)
    _check_alone(root, target)
    layout = target.package.layout
    shown = {phase: _fit(frame, layout.prefixes) for phase, frame in tables.items()}
    if target.merge and layout.way != "overlay":  # the engine of the overlay merges by itself
        shown = {phase: _merged(frame, shipped(target, phase)) for phase, frame in shown.items()}
    with replacing_folder(root) as part:
        folder = link_package(part, target)
        files = []
        for phase, frame in shown.items():
            path = folder / f"dsa_{phase}_module_perf{layout.suffix}"
            path.unlink(missing_ok=True)
            writer = (
                module_tables.write_csv if layout.suffix == ".txt" else module_tables.write_parquet
            )
            writer(module_rows.ordered(frame), path)
            files.append(path)
        if layout.way == "overlay":
            files.append(write_meta(folder, target.backend, runtime))
        if kernels is not None and len(kernels):
            files += _write_kernels(kernels, part / "dsa_profiler" / target.system / target.version)
        _write_marker(part, target, shown, runtime)
    relative = tuple(root / f.relative_to(part) for f in files)
    return Written(root, target, shown, relative)


def shipped(target: Target, phase: str) -> pd.DataFrame | None:
    """The newest rows of a phase that the package itself ships at or below the target's version."""
    package, layout = target.package, target.package.layout
    table = f"dsa_{phase}_module_perf"
    for version in reversed(package.versions(target.system, target.backend, table)):
        folder = layout.folder.format(backend=target.backend, version=version)
        path = package.data(target.system) / folder / f"{table}{layout.suffix}"
        if path.is_file() and version_key(version) <= version_key(target.version):
            return module_tables.read(path).frame
    return None


def default_version(package: Package, system: str, backend: str, runtime: str) -> str:
    """A version of our own just above the one measured, so that all else fills from below it.

    Tables measured on a framework that the package does not know go above its newest version.
    """
    base = package.versions(system, backend)
    if not base:
        raise InputError(
            "backend-unknown",
            f"aiconfigurator {package.version} ships nothing for {backend} on {system}",
            "give another --backend",
        )
    known = {*base, *package.versions(system, backend, GENERATION)}
    return f"{runtime if runtime in known else base[-1]}+dsa"


def _check(target: Target) -> None:
    package = target.package
    default_version(package, target.system, target.backend, "")
    if not _VERSION.fullmatch(target.version):
        raise InputError(
            "version-malformed",
            f"{target.version!r} does not sort among versions; the engine would find no GEMM below",
            "give one like 1.3.0rc20+dsa or 1.3.0rc20.post1",
        )
    base = package.versions(target.system, target.backend)
    if version_key(target.version) < version_key(base[0]):
        raise InputError(
            "version-unknown",
            f"{target.version} is older than all that ships for {target.backend} on "
            f"{target.system}: GEMM and MoE could not be filled in",
            f"give a version above {base[0]}, like {base[-1]}+dsa",
        )
    if target.version in {*base, *package.versions(target.system, target.backend, GENERATION)}:
        raise InputError(
            "version-shipped",
            f"{target.backend} {target.version} ships with aiconfigurator; it would be hidden",
            f"leave --version out for a version of its own, or give {target.version}+dsa",
        )


def _check_alone(root: Path, target: Target) -> None:
    """Two versions of ours in one root would fill each other's holes, row by row."""
    others = [
        name
        for name in _marked(root)
        if name.rsplit("/", 1)[0] == f"{target.system}/{target.backend}"
        and not name.endswith(f"/{target.version}")
    ]
    if others and not target.merge:
        raise InputError(
            "root-taken",
            f"{root} already holds {others[0]}; the engine would mix the two row by row",
            "give another --root, the same --version to replace it, or --merge to mix",
        )


def _marked(root: Path) -> dict[str, Any]:
    path = root / MARKER
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8"))["entries"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "root-broken", f"cannot read {path}: {error}", "give a new --root"
        ) from None


def _fit(frame: pd.DataFrame, prefixes: bool) -> pd.DataFrame:
    """Rows that the layout can tell apart: 0.8 ignores cached context tokens, the last row wins."""
    if prefixes or not frame["op_name"].str.contains("context").any():
        return frame
    return frame[frame["step"] == 0]


def _merged(ours: pd.DataFrame, theirs: pd.DataFrame | None) -> pd.DataFrame:
    """Both, ours where the key is in both. A power column only where all rows have one."""
    if theirs is None:
        return ours
    both = pd.concat([ours, theirs], ignore_index=True).drop_duplicates(list(MODULE_KEY))
    return both.dropna(axis="columns")


def _write_kernels(kernels: pd.DataFrame, folder: Path) -> list[Path]:
    """Our own tables beside the engine's: kernels by the same keys."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for op_name, rows in kernels.groupby("op_name", sort=True):
        path = folder / f"{str(op_name).replace('_module', '_kernels')}.parquet"
        module_tables.write_parquet(rows.reset_index(drop=True), path)
        written.append(path)
    return written


def _write_marker(
    part: Path, target: Target, tables: Mapping[str, pd.DataFrame], runtime: str
) -> None:
    entries = _marked(part)
    entries[f"{target.system}/{target.backend}/{target.version}"] = {
        "way": target.package.layout.way,
        "package": target.package.version,
        "runtime": runtime,
        "merged": target.merge,
        "rows": {phase: len(frame) for phase, frame in sorted(tables.items())},
    }
    document = {"schema": SCHEMA, "tool_version": __version__, "entries": entries}
    (part / MARKER).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", "utf-8")
