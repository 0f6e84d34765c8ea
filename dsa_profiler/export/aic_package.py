"""The installed aiconfigurator: where it is, and which way our tables can reach its estimates.

Nothing is imported from it: its numpy pins may exclude ours. The way is chosen by what the package
has, never by its version text:

    overlay  aiconfigurator_core has the sdk: a compiled engine reads parquet from a root of tables
             (0.10 has that package too, but without the sdk, and answers in Python)
    parquet  operations/dsa.py answers queries in Python: parquet in the backend's version folder
    csv      ContextDSAModule in the single file operations.py: CSV, and `step` is ignored
    patch    query_context_mla but no DSA at all: `sdk_patch` adds it, and reads CSV
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dsa_profiler.errors import EnvironmentFault, InputError

VARIABLE = "DSA_AICONFIGURATOR"
_CURE = (
    "pip install aiconfigurator==0.12.0 into a virtual environment and name that environment "
    f"with --package, or in ${VARIABLE}"
)


@dataclass(frozen=True, slots=True)
class Layout:
    """How one way stores tables: the folder below a system's data, the file, its limits."""

    way: str
    folder: str
    suffix: str
    prefixes: bool
    """Whether rows with cached context tokens may be there: 0.8 takes them for rows without."""


LAYOUTS = {
    "overlay": Layout("overlay", "sparse_attention/{backend}/{version}", ".parquet", True),
    "parquet": Layout("parquet", "{backend}/{version}", ".parquet", True),
    "csv": Layout("csv", "{backend}/{version}", ".txt", False),
    "patch": Layout("patch", "{backend}/{version}", ".txt", True),
}


@dataclass(frozen=True, slots=True)
class Package:
    """An installed aiconfigurator. `home` is its package folder, `systems` its packaged root."""

    home: Path
    version: str
    layout: Layout
    python: Path

    @property
    def systems(self) -> Path:
        return self.home / "systems"

    def data(self, system: str) -> Path:
        """The packaged data folder of a system; an unknown system is named."""
        sheet = self.systems / f"{system}.yaml"
        if not sheet.is_file():
            known = sorted(p.stem for p in self.systems.glob("*.yaml") if (_data_dir(p)))
            raise InputError(
                "system-unknown",
                f"aiconfigurator {self.version} has no system {system!r}",
                f"one of {', '.join(known)}",
            )
        return self.systems / str(_data_dir(sheet))

    def versions(self, system: str, backend: str, table: str = "gemm_perf") -> list[str]:
        """Shipped versions that hold `table`, oldest first."""
        data = self.data(system)
        found = {
            p.parent.name
            for pattern in (f"{backend}/*/{table}.*", f"*/{backend}/*/{table}.*")
            for p in data.glob(pattern)
        }
        return sorted(found, key=version_key)


@dataclass(frozen=True, slots=True)
class Target:
    """Where tables go: a system, backend and version of an installed package, and how."""

    package: Package
    system: str
    backend: str
    version: str
    merge: bool


def locate(where: str | os.PathLike[str] | None = None) -> Package:
    """The package in `where` (an environment, its python, or a folder of packages), else in
    $DSA_AICONFIGURATOR, else beside us. Raises `EnvironmentFault` when there is none.
    """
    given = where or os.environ.get(VARIABLE)
    if given is None:
        spec = find_spec("aiconfigurator_core") or find_spec("aiconfigurator")
        if spec is None or spec.origin is None:
            raise EnvironmentFault(
                "aiconfigurator-missing", "no aiconfigurator is installed", _CURE
            )
        return _package(Path(spec.origin).parent.parent, Path(sys.executable))
    path = Path(given)
    base = path.parent.parent if path.is_file() else path
    folders = [base, *sorted(base.glob("lib/python3*/site-packages"))]
    for folder in folders:
        if any(
            (folder / name / "sdk").is_dir() for name in ("aiconfigurator_core", "aiconfigurator")
        ):
            return _package(folder, _python(folder))
    raise EnvironmentFault("aiconfigurator-missing", f"no aiconfigurator in {given}", _CURE)


def version_key(text: str) -> tuple[int | str, ...]:
    """Sorts 1.3.0rc9 < 1.3.0rc20 < 1.3.0 < 1.3.0.post1, and a local label after its base."""
    base, _, local = text.partition("+")
    match = re.match(r"v?(\d+(?:\.\d+)*)(?:\.?(?:rc|a|b|dev)(\d+))?(?:\.?post(\d+))?", base)
    if match is None:
        return (0, 0, 0, 0, 0, text)
    release = [int(n) for n in match[1].split(".")]
    release = (release + [0] * 4)[:4]
    pre = int(match[2]) if match[2] is not None else 1 << 30
    return (*release, pre, f"{int(match[3] or 0):09d}+{local}")


def _package(folder: Path, python: Path) -> Package:
    core = folder / "aiconfigurator_core"
    home = core if (core / "sdk").is_dir() else folder / "aiconfigurator"
    return Package(home, _version(folder, home.name), LAYOUTS[_way(home)], python)


def _way(home: Path) -> str:
    sdk = home / "sdk"
    if home.name == "aiconfigurator_core":
        return "overlay"
    if "def query" in _text(sdk / "operations" / "dsa.py"):
        return "parquet"
    if "class ContextDSAModule" in _text(sdk / "operations.py"):
        return "csv"
    if "def query_context_mla" in _text(sdk / "perf_database.py"):
        return "patch"
    raise EnvironmentFault(
        "aiconfigurator-unknown",
        f"{home} is an aiconfigurator of a shape that this version does not know",
        "releases 0.7.0, 0.8.0, 0.10.0 and 0.12.0 are known; tell us of yours",
    )


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""


def _version(folder: Path, name: str) -> str:
    found = sorted(folder.glob(f"{name}-*.dist-info"))
    return found[0].name.removesuffix(".dist-info").rpartition("-")[2] if found else "unknown"


def _python(folder: Path) -> Path:
    candidate = folder.parents[2] / "bin" / "python"
    return candidate if candidate.is_file() else Path(sys.executable)


def _data_dir(sheet: Path) -> str | None:
    match = re.search(r"^data_dir:\s*([^\s#]+)", _text(sheet), re.MULTILINE)
    return match[1] if match else None
