"""A root of tables that an installed aiconfigurator answers from, without touching the package.

The first root that knows a system and version wins whole, so ours shows every table of the package
(by links) and adds a version folder of its own with the measured DSA tables. Shipped rows stay
reachable under their own version; only `merge` mixes, and then by key, ours first.

No `query_versions.yaml` and no reuse manifest are carried over: the first would refuse our version,
the second would answer from another backend's rows where ours has a hole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dsa_profiler import __version__
from dsa_profiler.columns import MODULE_KEY
from dsa_profiler.errors import InputError, UsageError
from dsa_profiler.export import module_rows, module_tables
from dsa_profiler.export.aic_package import Package, version_key
from dsa_profiler.results import Results
from dsa_profiler.session import Session

SCHEMA = 1
MARKER = "dsa_profiler.json"
_VERSION = re.compile(r"\d+(\.\d+)+([a-z]+\d+)?(\.post\d+)?(\+[a-z0-9.]+)?")


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """What a root now holds for one system and version. `tables` are the rows by phase."""

    root: Path
    way: str
    system: str
    backend: str
    version: str
    tables: Mapping[str, pd.DataFrame]
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """Where tables go: a system, backend and version of an installed package, and how."""

    package: Package
    system: str
    backend: str
    version: str
    merge: bool


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
    power: Mapping[str, float] | None = None,
) -> Written:
    """Write the session's module tables into `root`, in the layout that `package` reads.

    heads    local head counts that must be there; a missing one is refused.
    power    W by case slug, where it was measured.
    Raises `InputError` for what cannot be fed, `UsageError` for an unwritable root; the root is
    replaced whole or left as it was.
    """
    tables = module_rows.module_rows(results, session, gemm_type, power)
    module_rows.require_heads(tables, heads)
    known = module_rows.origin(session, gemm_type)
    wanted = version or default_version(package, system, backend, known.version, merge)
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
    """Write rows that are in `columns.MODULE_HEADER` already. `runtime`: the framework's version."""
    _check(target)
    layout = target.package.layout
    shown = {phase: _fit(frame, layout.prefixes) for phase, frame in tables.items()}
    if target.merge:
        shown = {phase: _merged(frame, shipped(target, phase)) for phase, frame in shown.items()}
    with _replacing_folder(root) as part:
        folder = _link_package(part, target)
        files = []
        for phase, frame in shown.items():
            path = folder / f"dsa_{phase}_module_perf{layout.suffix}"
            path.unlink(missing_ok=True)
            writer = module_tables.write_csv if layout.suffix == ".txt" else module_tables.write_parquet
            writer(module_rows.ordered(frame), path)
            files.append(path)
        if layout.way == "overlay":
            files.append(_write_meta(folder, target, runtime))
        if kernels is not None and len(kernels):
            files += _write_kernels(kernels, part / "dsa_profiler" / target.system / target.version)
        _write_marker(part, target, shown, runtime)
    relative = tuple(root / f.relative_to(part) for f in files)
    return Written(
        root, layout.way, target.system, target.backend, target.version, shown, relative
    )


def shipped(target: Target, phase: str, version: str | None = None) -> pd.DataFrame | None:
    """The package's own rows of a phase, at `version` (the target's by default), or None."""
    layout = target.package.layout
    folder = layout.folder.format(backend=target.backend, version=version or target.version)
    path = target.package.data(target.system) / folder / f"dsa_{phase}_module_perf{layout.suffix}"
    return module_tables.read(path).frame if path.is_file() else None


def default_version(
    package: Package, system: str, backend: str, runtime: str, merge: bool = False
) -> str:
    """A version of our own just above the one measured, so that all else fills from below it.

    Tables measured on a framework that the package does not know go above its newest version. With
    `merge` the shipped version itself.
    """
    dsa = package.versions(system, backend, "dsa_generation_module_perf")
    base = (dsa if merge else None) or package.versions(system, backend)
    if not base:
        raise InputError(
            "backend-unknown",
            f"aiconfigurator {package.version} ships nothing for {backend} on {system}",
            "give another --backend",
        )
    if merge:
        return runtime if runtime in base else base[-1]
    known = bool(_VERSION.fullmatch(runtime)) and runtime in {*base, *dsa}
    return f"{runtime if known else base[-1]}+dsa"


def _check(target: Target) -> None:
    package, layout = target.package, target.package.layout
    data = package.data(target.system)
    if not (package.versions(target.system, target.backend)):
        default_version(package, target.system, target.backend, "")
    if not _VERSION.fullmatch(target.version):
        raise InputError(
            "version-malformed",
            f"{target.version!r} does not sort among versions; the engine would find no GEMM below",
            "give one like 1.3.0rc20+dsa or 1.3.0rc20.post1",
        )
    taken = data / layout.folder.format(backend=target.backend, version=target.version)
    if target.merge and not taken.is_dir():
        known = package.versions(target.system, target.backend, "dsa_generation_module_perf")
        raise InputError(
            "version-unknown",
            f"nothing to merge with: no DSA tables of {target.backend} {target.version} ship for "
            f"{target.system}",
            f"give --version, one of {', '.join(known) or 'none'}, or leave --merge out",
        )
    if not target.merge and taken.is_dir():
        raise InputError(
            "version-shipped",
            f"{target.backend} {target.version} ships with aiconfigurator; its rows would be hidden",
            "leave --version out for a version of its own, or give --merge to keep both",
        )


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


def _link_package(part: Path, target: Target) -> Path:
    """Show the package's tables in `part` by links; returns the real folder for our tables."""
    package = target.package
    data = package.data(target.system)
    sheet = part / f"{target.system}.yaml"
    if not sheet.exists():
        shutil.copyfile(package.systems / sheet.name, sheet)
    inside = data.relative_to(package.systems)
    folder = package.layout.folder.format(backend=target.backend, version=target.version)
    source, mirror = data, part / inside
    for name in (*Path(folder).parts, ""):
        _open_up(source, mirror)
        source, mirror = source / name, mirror / name
    if package.layout.way != "overlay" and not target.merge:
        base = data / target.backend / package.versions(target.system, target.backend)[-1]
        _open_up(base, mirror)  # these releases fill nothing from other versions
    return mirror


def _open_up(source: Path, mirror: Path) -> None:
    """Make `mirror` a real folder whose entries link into `source`; keep what is there already."""
    if mirror.is_symlink():
        mirror.unlink()
    mirror.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        for entry in sorted(source.iterdir()):
            link = mirror / entry.name
            if not link.exists() and not link.is_symlink():
                link.symlink_to(entry.resolve())


def _write_meta(folder: Path, target: Target, runtime: str) -> Path:
    """What strict provenance asks for; in a merged folder other tables keep their status."""
    path = folder / "collection_meta.yaml"
    old = path.read_text("utf-8") if path.is_file() else ""
    status = dict(re.findall(r"^  (\w+):\n(?:    .*\n)*?    status: (\w+)", old, re.MULTILINE))
    tables = sorted(p.stem for p in folder.glob("*.parquet"))
    lines = ["schema_version: 1", "provenance: collected", "runtime:"]
    lines += [f"  framework: {target.backend}", f"  version: {_quoted(runtime)}", "tables:"]
    for name in tables:
        known = "complete" if name.startswith("dsa_") else status.get(name, "complete")
        lines += [f"  {name}:", f"    status: {known}"]
    path.unlink(missing_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def _quoted(text: str) -> str:
    return json.dumps(text)


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
    path = part / MARKER
    entries = json.loads(path.read_text("utf-8"))["entries"] if path.is_file() else {}
    entries[f"{target.system}/{target.backend}/{target.version}"] = {
        "way": target.package.layout.way,
        "package": target.package.version,
        "runtime": runtime,
        "merged": target.merge,
        "rows": {phase: len(frame) for phase, frame in sorted(tables.items())},
    }
    document = {"schema": SCHEMA, "tool_version": __version__, "entries": entries}
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", "utf-8")


@contextmanager
def _replacing_folder(root: Path) -> Iterator[Path]:
    """A copy of `root` (or an empty folder) that takes its place if the block ends well.

    Refuses a folder that is not ours: replacing it would throw somebody's files away.
    """
    if root.exists() and not (root / MARKER).is_file() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(
            "root-foreign",
            f"{root} holds other things than a root of ours",
            "give a new folder, or one that this command wrote",
        )
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    except OSError as error:
        raise _unwritable(root, error) from None
    fresh, old = part / "new", part / "old"
    try:
        if root.exists():
            if not os.access(root, os.W_OK):
                raise _unwritable(root, PermissionError(13, "Permission denied"))
            shutil.copytree(root, fresh, symlinks=True)
        else:
            fresh.mkdir()
        yield fresh
        if root.exists():
            root.rename(old)
        fresh.rename(root)
    finally:
        if old.exists() and not root.exists():
            old.rename(root)
        shutil.rmtree(part, ignore_errors=True)


def _unwritable(root: Path, error: OSError) -> UsageError:
    return UsageError(
        "folder-unwritable",
        f"cannot write {root}: {error.strerror}",
        "give a folder that can be written, with --root",
    )


def sorted_versions(names: Sequence[str]) -> list[str]:
    return sorted(names, key=version_key)
