"""A root's folders: the package's tables shown by links, ours as real files, replaced whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsa_profiler.errors import InputError, UsageError
from dsa_profiler.export.aic_package import Target

MARKER = "dsa_profiler.json"
META = "collection_meta.yaml"


def link_package(part: Path, target: Target) -> Path:
    """Show the package's tables in `part` by links; returns the real folder for our tables."""
    package = target.package
    data = package.data(target.system)
    sheet = part / f"{target.system}.yaml"
    if not sheet.exists():
        shutil.copyfile(package.systems / sheet.name, sheet)
    folder = Path(package.layout.folder.format(backend=target.backend, version=target.version))
    source, mirror = data, part / data.relative_to(package.systems)
    for name in folder.parts:
        _open_up(source, mirror)
        source, mirror = source / name, mirror / name
    if package.layout.way == "overlay":
        for version in sorted(source.parent.iterdir()) if source.parent.is_dir() else ():
            _show_version(version, mirror.parent / version.name, target.merge)
    else:  # these releases fill nothing from other versions
        base = package.versions(target.system, target.backend)[-1]
        _open_up(data / target.backend / base, mirror)
    mirror.mkdir(exist_ok=True)
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


def _show_version(source: Path, mirror: Path, whole: bool) -> None:
    """A shipped version: whole by one link, or opened up and without its DSA tables."""
    if mirror.is_symlink():
        mirror.unlink()
    shutil.rmtree(mirror, ignore_errors=True)
    if whole:
        mirror.symlink_to(source.resolve())
        return
    rest = [p for p in sorted(source.glob("*.parquet")) if not p.name.startswith("dsa_")]
    if rest:
        _open_up(source, mirror)
        for table in mirror.glob("dsa_*.parquet"):
            table.unlink()
        write_meta(mirror, *_runtime(source / META))


def write_meta(folder: Path, framework: str, runtime: str) -> Path:
    """What strict provenance asks for; tables of others keep the status they had."""
    path = folder / META
    old = path.read_text("utf-8") if path.is_file() else ""
    status = dict(re.findall(r"^  (\w+):\n(?:    .*\n)*?    status: (\w+)", old, re.MULTILINE))
    lines = ["schema_version: 1", "provenance: collected", "runtime:"]
    lines += [f"  framework: {framework}", f"  version: {json.dumps(runtime)}", "tables:"]
    for name in sorted(p.stem for p in folder.glob("*.parquet")):
        lines += [f"  {name}:", f"    status: {status.get(name, 'complete')}"]
    path.unlink(missing_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def _runtime(meta: Path) -> tuple[str, str]:
    """Framework and version that a shipped folder's metadata names."""
    text = meta.read_text("utf-8") if meta.is_file() else ""
    found = dict(re.findall(r"^  (framework|version): *[\"']?([^\s\"']+)", text, re.MULTILINE))
    return found.get("framework", "unknown"), found.get("version", meta.parent.name)


@contextmanager
def replacing_folder(root: Path) -> Iterator[Path]:
    """A copy of `root` (or an empty folder) that takes its place if the block ends well.

    Refuses a folder that is not ours: replacing it would throw somebody's files away.
    """
    if (
        root.exists()
        and not (root / MARKER).is_file()
        and (not root.is_dir() or any(root.iterdir()))
    ):
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
