#!/usr/bin/env python3
"""Teach an installed aiconfigurator 0.7.0 about DSA, or take that out again.

    python sdk_patch/apply.py {check,apply,revert} --package FOLDER

FOLDER is a virtual environment, a site-packages folder or the package itself. Needs the standard
library only. Each patched file keeps its own bytes and gains a marked block at its end; one file is
new. A file whose bytes are not those of a known release (manifest.json) is never touched, so that
`revert` can promise the very bytes that were there. Twice `apply` is once `apply`.

Exit codes: 0 done, or check found it applied; 2 usage; 3 no such package, or one that takes no
patch; 4 a file that is not known; 6 check found it not applied.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BEGIN, END = b"# dsa_profiler: begin", b"# dsa_profiler: end\n"


class Refused(Exception):
    """What happened, what cures it, and the exit code."""

    def __init__(self, code: int, what: str, cure: str) -> None:
        super().__init__(what)
        self.code, self.what, self.cure = code, what, cure


@dataclass(frozen=True)
class File:
    """One file of the package: its bytes without and with the patch, and now (None: absent)."""

    path: Path
    plain: bytes | None
    patched: bytes
    now: bytes | None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("action", choices=("check", "apply", "revert"))
    parser.add_argument("--package", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args(argv)
    try:
        return run(args.action, args.package)
    except Refused as refused:
        print(f"error: {refused.what}\n cure: {refused.cure}", file=sys.stderr)
        return refused.code


def run(action: str, folder: Path) -> int:
    package = locate(folder)
    release, files = recognise(package)
    applied = [f for f in files if f.now == f.patched]
    if action == "check":
        state = (
            "applied"
            if len(applied) == len(files)
            else "partly applied"
            if applied
            else "not applied"
        )
        print(f"aiconfigurator {release} at {package}: {state}")
        return 0 if state == "applied" else 6
    wanted = {f.path: f.patched if action == "apply" else f.plain for f in files}
    changed = {f.path: wanted[f.path] for f in files if f.now != wanted[f.path]}
    replace(changed)
    for path in changed:
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()
    done = "applied to" if action == "apply" else "reverted in"
    print(f"{done} aiconfigurator {release} at {package}: {len(changed)} of {len(files)} files")
    return 0


def locate(folder: Path) -> Path:
    """The package folder; one that is newer than the patch is sent to the tables instead."""
    options = [folder, folder / "aiconfigurator"]
    options += [p / "aiconfigurator" for p in sorted(folder.glob("lib/python3*/site-packages"))]
    for package in options:
        sdk = package / "sdk"
        if (package.parent / "aiconfigurator_core" / "sdk").is_dir():
            raise Refused(3, f"{package} answers from a compiled engine: no code to patch", _TABLES)
        if (sdk / "operations" / "dsa.py").is_file() or "class ContextDSAModule" in _text(
            sdk / "operations.py"
        ):
            raise Refused(3, f"{package} knows DSA already: no code to patch", _TABLES)
        if "def query_context_mla" in _text(sdk / "perf_database.py"):
            return package
    raise Refused(3, f"no aiconfigurator in {folder}", "give its virtual environment")


_TABLES = "give it tables: `dsa-profiler export SESSION --to aiconfigurator --root DIR`"


def recognise(package: Path) -> tuple[str, list[File]]:
    """The release whose bytes these are, with or without the patch; anything else is refused."""
    targets = json.loads((HERE / "manifest.json").read_text("utf-8"))["targets"]
    strange: list[str] = []
    for target in targets:
        files, strange = _files(package, target)
        if not strange:
            return target["release"], files
    known = ", ".join(t["release"] for t in targets)
    raise Refused(
        4,
        f"{strange[0]} is not the one of a known release ({known}): left alone",
        f"reinstall aiconfigurator {known} and try again",
    )


def _files(package: Path, target: dict) -> tuple[list[File], list[str]]:
    files, strange = [], []
    for name, source in target["add"].items():
        path = package / name
        now = path.read_bytes() if path.is_file() else None
        patched = _marked(HERE / source)
        if now is not None and not now.startswith(BEGIN):
            strange.append(str(path))
        files.append(File(path, None, patched, now))
    for name, entry in target["append"].items():
        path = package / name
        now = path.read_bytes() if path.is_file() else b""
        plain = now.partition(b"\n" + BEGIN)[0]
        if hashlib.sha256(plain).hexdigest() != entry["sha256"]:
            strange.append(str(path))
        files.append(File(path, plain, plain + b"\n" + block(HERE / entry["block"]), now))
    return files, strange


def block(path: Path) -> bytes:
    """The marked part of a block's file; what stands before it is there for linters only."""
    text = path.read_bytes()
    return text[text.index(BEGIN) :]


def _marked(path: Path) -> bytes:
    return BEGIN + b"\n" + path.read_bytes() + END


def replace(changed: dict[Path, bytes | None]) -> None:
    """Put all new bytes in place, or none: everything is written beside its target first."""
    parts: list[tuple[Path, Path]] = []
    try:
        for path, data in changed.items():
            if data is None:
                if not os.access(path.parent, os.W_OK):
                    raise PermissionError(13, "Permission denied")
                continue
            handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            parts.append((Path(part), path))
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            mode = path.stat().st_mode if path.exists() else 0o644
            os.chmod(part, mode & 0o777)
        for part, path in parts:
            os.replace(part, path)
        for path, data in changed.items():
            if data is None:
                path.unlink()
    except OSError as error:
        where = next(iter(changed)).parent
        raise Refused(
            2, f"cannot write in {where}: {error.strerror}", "nothing was changed; make it writable"
        ) from None
    finally:
        for part, _ in parts:
            Path(part).unlink(missing_ok=True)


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
